/* rqvk-needle - how often a model finds a planted fact again, by length of context, depth and cache format. */
#include "backends/base/mem.h"
#include "tools/common/args.h"
#include "tools/needle/report.h"
#include "tools/ppl/files.h"
#include "tools/ppl/interrupt.h"
#include "tools/ppl/lanes.h"
#include "tools/ppl/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct list {
    uint32_t values[RQ_NEEDLE_MAX_DEPTHS], n, most, min, max;
} list;

typedef struct settings {
    rq_engine_args engine;
    list lengths, depths;
    const char *text, *formats, *csv, *json, *svg;
    uint32_t trials, lanes;
    uint64_t seed;
} settings;

static rq_status parse_list(void *target, const char *value, rq_error *err)
{
    list *l = target;
    l->n = 0;
    for (const char *p = value;; p++) {
        char *end;
        errno = 0;
        unsigned long x = strtoul(p, &end, 10);
        if (end == p || *p == '-' || errno || x < l->min || x > l->max || (*end && *end != ','))
            return rq_fail(err, RQ_ERR_ARGUMENT, "\"%s\" is not a list of numbers between %u and %u", value,
                           l->min, l->max);
        if (l->n == l->most)
            return rq_fail(err, RQ_ERR_ARGUMENT, "more than %u numbers in \"%s\"", l->most, value);
        l->values[l->n++] = (uint32_t)x;
        if (!*end) return RQ_OK;
        p = end;
    }
}

static void add_options(rq_options *options, settings *s)
{
    rq_options_engine(options, &s->engine);
    size_t kept = 0;
    /* The formats are a list here, the context follows from the lengths. */
    for (size_t i = 0; i < options->n; i++) {
        const rq_engine_params *p = &s->engine.params;
        const void *target = options->items[i].target;
        if (target == &p->type_k || target == &p->type_v || target == &p->cache_tokens || target == &p->n_ctx)
            continue;
        options->items[kept++] = options->items[i];
    }
    options->n = kept;
    rq_options_heading(options, "Measurement");
    const rq_option more[] = {
        {.names = "-f,--file",
         .kind = RQ_OPT_STRING,
         .target = &s->text,
         .value = "FILE",
         .shown = "",
         .help = "text around the facts; nothing of it should have been trained on"},
        {.names = "--formats",
         .kind = RQ_OPT_STRING,
         .target = &s->formats,
         .value = "LIST",
         .help = "cache formats as in rqvk-ppl; the others are compared with the first"},
        {.names = "--lengths",
         .kind = RQ_OPT_CALL,
         .call = parse_list,
         .target = &s->lengths,
         .value = "N,...",
         .shown = "256,512,1024, up to what the model was trained for",
         .help = "tokens of a context, the answer included"},
        {.names = "--depths",
         .kind = RQ_OPT_CALL,
         .call = parse_list,
         .target = &s->depths,
         .value = "N,...",
         .shown = "0,25,50,75,100",
         .help = "where the fact asked for stands, in percent"},
        {.names = "--trials",
         .kind = RQ_OPT_U32,
         .target = &s->trials,
         .min = 1,
         .max = 1 << 24,
         .help = "trials in all, rounded up to the same number for each length and depth"},
        {.names = "-s,--seed", .kind = RQ_OPT_U64, .target = &s->seed, .help = "same seed, same trials"},
        {.names = "--lanes",
         .kind = RQ_OPT_U32,
         .target = &s->lanes,
         .max = RQ_MAX_LANES,
         .shown = "one per thread for models up to 64 MiB, else one",
         .help = "trials run at once, each with engines of its own"},
        {.names = "--csv",
         .kind = RQ_OPT_STRING,
         .target = &s->csv,
         .value = "FILE",
         .shown = "",
         .help = "write the outcome of every trial"},
        {.names = "--json",
         .kind = RQ_OPT_STRING,
         .target = &s->json,
         .value = "FILE",
         .shown = "",
         .help = "write the figures as JSON"},
        {.names = "--svg",
         .kind = RQ_OPT_STRING,
         .target = &s->svg,
         .value = "FILE",
         .shown = "",
         .help = "draw a heat map"},
    };
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) rq_options_add(options, more[i]);
}

static rq_status check(const settings *s, rq_error *err)
{
    if (!s->text)
        return rq_fail(err, RQ_ERR_ARGUMENT, "no text given: name a file with -f FILE (see --help)");
    rq_status status = rq_output_check(s->csv, err);
    if (!status) status = rq_output_check(s->json, err);
    if (!status) status = rq_output_check(s->svg, err);
    return status;
}

/* Lengths that were not asked for but do not fit the model are left out. */
static rq_status choose_lengths(const settings *s, const rq_model_info *info, rq_needle_job *job,
                                rq_error *err)
{
    static const uint32_t usual[] = {256, 512, 1024};
    for (uint32_t i = 0; i < s->lengths.n; i++) job->lengths[job->n_lengths++] = s->lengths.values[i];
    for (int i = 0; i < 3 && s->lengths.n == 0; i++)
        if (usual[i] <= info->n_ctx_train) job->lengths[job->n_lengths++] = usual[i];
    return job->n_lengths ? RQ_OK
                          : rq_fail(err, RQ_ERR_UNSUPPORTED,
                                    "the model was trained for only %u tokens: choose --lengths yourself",
                                    info->n_ctx_train);
}

static rq_status write_csv(void *user, FILE *out, rq_error *err)
{
    rq_needle_print_csv(user, out);
    return RQ_OK;
}

static rq_status write_json(void *user, FILE *out, rq_error *err)
{
    rq_needle_print_json(user, out);
    return RQ_OK;
}

static rq_status write_svg(void *user, FILE *out, rq_error *err)
{
    return rq_needle_print_svg(user, out, err);
}

static rq_status report(const settings *s, const rq_needle_job *job, const rq_needle_results *results,
                        rq_error *err)
{
    rq_needle_report r = {.job = job, .results = results, .text_path = s->text};
    rq_model_describe(job->model, &r.model);
    rq_needle_print_table(&r, stdout);
    rq_status status = rq_output_write(s->csv, write_csv, &r, err);
    if (!status) status = rq_output_write(s->json, write_json, &r, err);
    if (!status && results->n_done) status = rq_output_write(s->svg, write_svg, &r, err);
    return status;
}

static rq_status run(settings *set, const rq_model *model, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_entries entries = {0};
    rq_needle_haystack haystack = {0};
    rq_needle_job job = {.model = model,
                         .params = set->engine.params,
                         .haystack = &haystack,
                         .entries = &entries,
                         .n_depths = set->depths.n,
                         .seed = set->seed,
                         .n_threads = set->engine.params.n_threads};
    memcpy(job.depths, set->depths.values, sizeof job.depths);
    job.params.n_ctx = 0;
    job.n_lanes = rq_lanes_for(info.file_bytes, job.n_threads, set->lanes);
    rq_status s = rq_entries_parse(set->formats, &entries, err);
    if (!s) s = rq_entries_check_foreign(&entries, err);
    if (!s) s = choose_lengths(set, &info, &job, err);
    uint64_t cells = rq_needle_n_cells(&job);
    if (!s && cells) job.n_each = (uint32_t)((set->trials + cells - 1) / cells);

    char *text = NULL;
    size_t bytes = 0;
    if (!s) s = rq_needle_form_of(model, &job.form, err);
    if (!s) s = rq_text_read(set->text, &text, &bytes, err);
    if (!s) s = rq_needle_haystack_make(model, text, bytes, &haystack, err);
    rq_free(text);
    rq_needle_results results = {0};
    if (!s) {
        rq_interrupt_install();
        s = rq_needle_run(&job, &results, err);
        if (!s) s = report(set, &job, &results, err);
    }
    rq_needle_results_free(&results);
    rq_needle_haystack_free(&haystack);
    return s;
}

int main(int argc, char **argv)
{
    settings set = {.engine = rq_engine_args_default(),
                    .formats = "f16,q8_0,q4_0,wht4,wht3,wht2",
                    .lengths = {.most = RQ_NEEDLE_MAX_LENGTHS, .min = RQ_NEEDLE_SHORTEST, .max = 1 << 20},
                    .depths = {{0, 25, 50, 75, 100}, 5, RQ_NEEDLE_MAX_DEPTHS, 0, 100},
                    .trials = 2000,
                    .seed = 1};
    rq_options options = {0};
    add_options(&options, &set);
    const rq_program_text text = {
        .program = "rqvk-needle",
        .usage = "-m MODEL -f TEXT [--formats LIST] [--lengths LIST] [--depths LIST] [--trials N] [options]",
        .about =
            "Plants facts in a text, asks for one of them at its end, and counts the right answers under "
            "every cache format, with the same trials for each.",
        .footer = "Ctrl-C stops after the trials in progress and writes what there is."};
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (set.engine.list_devices) return rq_print_devices();

    rq_error err = {0};
    rq_model *model = NULL;
    rq_status s = check(&set, &err);
    if (!s) s = rq_engine_args_open(&set.engine, &model, NULL, &err);
    if (!s) s = run(&set, model, &err);
    rq_model_free(model);
    return s ? rq_complain("rqvk-needle", &err) : 0;
}
