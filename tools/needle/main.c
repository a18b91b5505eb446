/* rqvk-needle - how often a model finds a planted fact again, by length of context, depth and cache format. */
#include "backends/base/mem.h"
#include "tools/common/numbers.h"
#include "tools/common/output.h"
#include "tools/needle/report.h"
#include "tools/ppl/interrupt.h"
#include "tools/ppl/lanes.h"
#include "tools/ppl/measure.h"
#include "tools/ppl/text.h"

#include <string.h>

typedef struct settings {
    rq_measure_args common;
    rq_numbers lengths, depths;
    uint32_t trials;
    uint64_t seed;
} settings;

static void add_options(rq_options *options, settings *s)
{
    rq_options_measure(options, &s->common,
                       "cache formats as in rqvk-ppl; the others are compared with the first");
    rq_options_drop(options, &s->common.engine.params.n_ctx); /* follows from the lengths */
    rq_options_find(options, &s->common.text)->help =
        "text around the facts; nothing of it should have been trained on";
    const rq_option more[] = {
        {.names = "--lengths",
         .kind = RQ_OPT_CALL,
         .call = rq_numbers_parse,
         .target = &s->lengths,
         .value = "N,...",
         .shown = "256,512,1024, up to what the model was trained for",
         .help = "tokens of a context, the answer included"},
        {.names = "--depths",
         .kind = RQ_OPT_CALL,
         .call = rq_numbers_parse,
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
    };
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) rq_options_add(options, more[i]);
    rq_options_results(options, &s->common,
                       (rq_results_help){.lanes = "trials run at once, each with engines of its own",
                                         .csv = "write the outcome of every trial",
                                         .svg = "draw a heat map"});
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
    const rq_measure_args *c = &s->common;
    rq_needle_report r = {.job = job, .results = results, .text_path = c->text};
    rq_model_describe(job->model, &r.model);
    rq_needle_print_table(&r, stdout);
    rq_status status = rq_output_write(c->csv, write_csv, &r, err);
    if (!status) status = rq_output_write(c->json, write_json, &r, err);
    if (!status && results->n_done) status = rq_output_write(c->svg, write_svg, &r, err);
    return status;
}

static rq_status run(void *user, const rq_model *model, rq_error *err)
{
    const settings *set = user;
    const rq_measure_args *c = &set->common;
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_entries entries = {0};
    rq_needle_haystack haystack = {0};
    rq_needle_job job = {.model = model,
                         .params = c->engine.params,
                         .haystack = &haystack,
                         .entries = &entries,
                         .n_depths = set->depths.n,
                         .seed = set->seed,
                         .n_threads = c->engine.params.n_threads};
    memcpy(job.depths, set->depths.values, sizeof *job.depths * job.n_depths);
    job.params.n_ctx = 0;
    job.n_lanes = rq_lanes_for(info.file_bytes, job.n_threads, c->lanes);
    rq_status s = rq_entries_parse(c->formats, &entries, err);
    if (!s) s = rq_entries_check_foreign(&entries, err);
    if (!s) s = choose_lengths(set, &info, &job, err);
    uint64_t cells = rq_needle_n_cells(&job);
    if (!s && cells) job.n_each = (uint32_t)((set->trials + cells - 1) / cells);

    char *text = NULL;
    size_t bytes = 0;
    if (!s) s = rq_needle_form_of(model, &job.form, err);
    if (!s) s = rq_text_read(c->text, &text, &bytes, err);
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
    settings set = {.common = {.engine = rq_engine_args_default(), .formats = "f16,q8_0,q4_0,wht4,wht3,wht2"},
                    .lengths = {.most = RQ_NEEDLE_MAX_LENGTHS, .min = RQ_NEEDLE_SHORTEST, .max = 1 << 20},
                    .depths = {{0, 25, 50, 75, 100}, 5, 0, 100, RQ_NEEDLE_MAX_DEPTHS},
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
    return rq_measure_main(&text, &options, &set.common, argc, argv, run, &set);
}
