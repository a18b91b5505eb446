/* rqvk-synth - writes a GGUF file of a known model's shape with random weights. */
#include "backends/base/buf.h"
#include "tools/common/args.h"
#include "tools/common/progress.h"
#include "tools/synth/file.h"
#include "tools/synth/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

static const char PROGRAM[] = "rqvk-synth";

static void show_progress(void *context, uint64_t done, uint64_t total)
{
    rq_progress *progress = context;
    if (!progress->total) *progress = rq_progress_start(stderr, "writing", "bytes", total);
    rq_progress_set(progress, done);
}

/* What --help prints below the options: the tables of presets and types. */
static void describe(rq_buf *text)
{
    size_t n;
    const synth_preset *presets = synth_presets(&n);
    rq_buf_puts(text, "presets:\n");
    for (size_t i = 0; i < n; i++)
        rq_buf_printf(text, "  %-16s %s: %" PRIu32 " layers, %" PRIu32 " wide, %" PRIu32 " tokens\n",
                      presets[i].name, presets[i].about, presets[i].n_layer, presets[i].n_embd,
                      presets[i].n_vocab);
    rq_buf_puts(text, "mixtures:\n ");
    for (const char *const *name = synth_mixture_names(); *name; name++) rq_buf_printf(text, " %s", *name);
    rq_buf_puts(text, "\ntypes:\n ");
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++)
        if (rq_type_get(id) && synth_can_make((rq_type)id)) rq_buf_printf(text, " %s", rq_type_get(id)->name);
    rq_buf_puts(text, "\n");
}

int main(int argc, char **argv)
{
    const char *preset_name = NULL, *type = "q4_k_m", *path = NULL;
    uint32_t layers = 0, vocab = 0;
    uint64_t seed = 1;
    bool pure = false, sparse = false, mtp = false;
    size_t n_paths = 1;
    rq_buf tables = {.max = 1 << 16};
    rq_options options = {0};
    rq_options_add(&options, (rq_option){.names = "--preset",
                                         .kind = RQ_OPT_STRING,
                                         .target = &preset_name,
                                         .value = "NAME",
                                         .help = "the model whose shape the file has (required)"});
    rq_options_add(&options, (rq_option){.names = "--type",
                                         .kind = RQ_OPT_STRING,
                                         .target = &type,
                                         .help = "a mixture, or one type for all matrices"});
    rq_options_add(&options, (rq_option){.names = "--pure",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &pure,
                                         .help = "a name that is a mixture and a type means the type"});
    rq_options_add(&options,
                   (rq_option){.names = "--mtp",
                               .kind = RQ_OPT_FLAG,
                               .target = &mtp,
                               .help = "with the block that predicts a token further on (Qwen 3.5, 3.6)"});
    rq_options_add(&options, (rq_option){.names = "--layers",
                                         .kind = RQ_OPT_U32,
                                         .target = &layers,
                                         .min = 1,
                                         .max = 1024,
                                         .shown = "those of the preset",
                                         .help = "number of layers"});
    rq_options_add(&options, (rq_option){.names = "--vocab",
                                         .kind = RQ_OPT_U32,
                                         .target = &vocab,
                                         .min = 256,
                                         .max = 1 << 20,
                                         .shown = "that of the preset",
                                         .help = "tokens in the vocabulary"});
    rq_options_add(&options, (rq_option){.names = "-s,--seed",
                                         .kind = RQ_OPT_U64,
                                         .target = &seed,
                                         .help = "the same seed gives the same file"});
    rq_options_add(&options,
                   (rq_option){.names = "--sparse",
                               .kind = RQ_OPT_FLAG,
                               .target = &sparse,
                               .help = "leave holes where the matrices are: enough for --plan, and takes no "
                                       "room on the disk"});
    describe(&tables);
    const rq_program_text text = {.program = PROGRAM,
                                  .usage = "OUT.gguf --preset NAME [options]",
                                  .about = "Writes a model file of a known shape with random weights.",
                                  .footer = tables.failed ? NULL : tables.data};
    int code = rq_args_run(&text, &options, argc, argv, &path, &n_paths);
    rq_buf_free(&tables);
    if (code >= 0) return code;

    rq_error err = {0};
    rq_status status = RQ_OK;
    const synth_preset *found = preset_name ? synth_preset_find(preset_name) : NULL;
    synth_mixture mixture = {0};
    if (!n_paths)
        status = rq_fail(&err, RQ_ERR_ARGUMENT, "name the file to write: %s", text.usage);
    else if (!preset_name)
        status = rq_fail(&err, RQ_ERR_ARGUMENT,
                         "say which model's shape is wanted: --preset NAME (--help lists them)");
    else if (!found)
        status = rq_fail(&err, RQ_ERR_ARGUMENT, "there is no preset '%s' (--help lists them)", preset_name);
    else if (!synth_mixture_find(type, pure, &mixture))
        status = rq_fail(&err, RQ_ERR_ARGUMENT, "'%s' is no type or mixture for weights (--help lists them)",
                         type);
    else if (mtp && found->family != SYNTH_QWEN35)
        status = rq_fail(&err, RQ_ERR_ARGUMENT, "--mtp: files of %s have no such block", found->name);
    if (status || !found) {
        rq_complain(PROGRAM, &err);
        return 2;
    }
    synth_preset preset = *found;
    if (layers) preset.n_layer = layers;
    preset.n_mtp = mtp;
    if (vocab) preset.n_vocab = vocab;
    rq_progress progress = {0};
    uint64_t start_ns = rq_tool_now_ns();
    status = synth_write(path, &preset, &mixture, seed, sparse, show_progress, &progress, &err);
    if (progress.total) rq_progress_end(&progress);
    if (status) return rq_complain(PROGRAM, &err);
    struct stat st;
    if (!stat(path, &st))
        printf("%s: %s, %s, %.1f MB in %.1f s\n", path, preset.name, mixture.name, (double)st.st_size / 1e6,
               (double)(rq_tool_now_ns() - start_ns) / 1e9);
    return 0;
}
