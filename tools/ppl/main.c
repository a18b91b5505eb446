/* rqvk-ppl - perplexity of a text, and how far the next-token distributions move when the cache is compressed. */
#include "backends/base/mem.h"
#include "tools/common/output.h"
#include "tools/kv/foreign.h"
#include "tools/kv/published.h"
#include "tools/ppl/interrupt.h"
#include "tools/ppl/lanes.h"
#include "tools/ppl/measure.h"
#include "tools/ppl/report.h"
#include "tools/ppl/text.h"

#include <string.h>

typedef struct settings {
    rq_measure_args common;
    uint32_t stride, windows;
    bool all, opponent;
} settings;

enum { DEFAULT_CONTEXT = 1024 };

static void add_options(rq_options *options, settings *s)
{
    rq_options_measure(
        options, &s->common,
        "cache formats: wht3 (keys and values), wht4/wht3 (keys/values), wht3:cal (with the model's "
        "profile), all; f16 is always measured");
    rq_option *n_ctx = rq_options_find(options, &s->common.engine.params.n_ctx);
    n_ctx->shown = "1024, or what the model was trained for if that is less";
    n_ctx->help = "tokens of a window";
    const rq_option list[] = {
        {.names = "--opponent",
         .kind = RQ_OPT_FLAG,
         .target = &s->opponent,
         .help = "measure the formats of other systems too, after checking them against published figures"},
        {.names = "--all",
         .kind = RQ_OPT_FLAG,
         .target = &s->all,
         .help = "score every token of a window, not only its second half"},
        {.names = "--stride",
         .kind = RQ_OPT_U32,
         .target = &s->stride,
         .max = 1 << 24,
         .shown = "the window",
         .help = "tokens from the start of a window to the next one's"},
        {.names = "--windows,--chunks",
         .kind = RQ_OPT_U32,
         .target = &s->windows,
         .max = 1 << 24,
         .shown = "the whole text",
         .help = "most windows"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
    rq_options_results(options, &s->common,
                       (rq_results_help){.lanes = "windows evaluated at once, each with engines of its own",
                                         .csv = "write the figures as CSV",
                                         .svg = "draw KL against bits per element"});
}

static rq_status add_foreign(rq_entries *entries, rq_error *err)
{
    rq_status s = RQ_OK;
    for (size_t i = 0; kv_foreign_name(i) && !s; i++)
        if (kv_published_has(kv_foreign_name(i))) s = rq_entries_parse(kv_foreign_name(i), entries, err);
    return s;
}

/* It is what the others are compared with, and measured in any case. */
static void leave_out_f16(rq_entries *entries)
{
    size_t at = rq_entries_find(entries, "f16");
    if (at == entries->n) return;
    entries->n--;
    memmove(&entries->items[at], &entries->items[at + 1], (entries->n - at) * sizeof *entries->items);
}

static rq_status write_csv(void *user, FILE *out, rq_error *err)
{
    rq_ppl_print_csv(user, out);
    return RQ_OK;
}

static rq_status write_json(void *user, FILE *out, rq_error *err)
{
    rq_ppl_print_json(user, out);
    return RQ_OK;
}

static rq_status write_svg(void *user, FILE *out, rq_error *err)
{
    return rq_ppl_print_svg(user, out, err);
}

static rq_status report(const settings *set, const rq_ppl_job *job, const rq_ppl_results *results,
                        rq_error *err)
{
    rq_ppl_report r = {.job = job,
                       .results = results,
                       .text_path = set->common.text,
                       .all = set->all,
                       .interrupted = results->n_done < results->n_windows,
                       .columns = rq_calloc(results->n_columns, sizeof *r.columns)};
    if (!r.columns) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the figures");
    rq_model_describe(job->model, &r.model);
    rq_status s = rq_ppl_figures_of(job, results, &results->reference, &r.reference, err);
    bool drawable = false;
    for (size_t i = 0; i < results->n_columns && !s; i++) {
        if (results->columns[i].refused[0]) continue;
        s = rq_ppl_figures_of(job, results, &results->columns[i], &r.columns[i], err);
        drawable |= results->n_done > 0 && !r.columns[i].kl_refused;
    }
    if (!s) rq_ppl_print_table(&r, stdout);
    if (!s) s = rq_output_write(set->common.csv, write_csv, &r, err);
    if (!s) s = rq_output_write(set->common.json, write_json, &r, err);
    if (!s && drawable) s = rq_output_write(set->common.svg, write_svg, &r, err);
    rq_free(r.columns);
    return s;
}

static rq_status run(void *user, const rq_model *model, rq_error *err)
{
    const settings *set = user;
    const rq_measure_args *c = &set->common;
    rq_tokens ids = {0};
    rq_entries entries = {0};
    rq_status s = rq_entries_parse(c->formats, &entries, err);
    if (!s) leave_out_f16(&entries);
    if (!s && set->opponent) s = add_foreign(&entries, err);
    if (!s) s = rq_entries_check_foreign(&entries, err);
    /* Does a sequence of this model begin with a token of its own? */
    rq_tokens bos = {0};
    if (!s) s = rq_tokenize(model, "", 0, RQ_MODEL_BOS, &bos, err);
    rq_ppl_job job = {.model = model,
                      .params = c->engine.params,
                      .ids = &ids,
                      .bos = bos.n ? bos.ids[0] : 0,
                      .entries = &entries,
                      .n_threads = c->engine.params.n_threads};
    rq_model_info info;
    rq_model_describe(model, &info);
    job.n_lanes = rq_lanes_for(info.file_bytes, job.n_threads, c->lanes);
    uint32_t n_ctx = c->engine.params.n_ctx;
    if (!n_ctx) n_ctx = info.n_ctx_train < DEFAULT_CONTEXT ? info.n_ctx_train : DEFAULT_CONTEXT;
    if (!s) s = rq_text_tokens(model, c->text, &ids, err);
    if (!s)
        s = rq_windows_plan(ids.n, n_ctx, set->stride, bos.n ? 1 : 0, set->all, set->windows, &job.windows,
                            err);
    rq_ppl_results results = {0};
    if (!s) {
        rq_interrupt_install();
        s = rq_ppl_run(&job, &results, err);
        if (!s) s = report(set, &job, &results, err);
    }
    rq_ppl_results_free(&results);
    rq_tokens_free(&bos);
    rq_tokens_free(&ids);
    return s;
}

int main(int argc, char **argv)
{
    settings set = {
        .common = {.engine = rq_engine_args_default(), .formats = "q8_0,q4_0,wht4,wht3,wht2,planar3,iso3"}};
    rq_options options = {0};
    add_options(&options, &set);
    const rq_program_text text = {
        .program = "rqvk-ppl",
        .usage = "-m MODEL -f TEXT [--formats LIST] [options]",
        .about =
            "Perplexity of a text under compressed caches, and how far every next-token distribution is from "
            "that of an f16 cache.",
        .footer = "Ctrl-C stops after the windows in progress and writes what there is."};
    return rq_measure_main(&text, &options, &set.common, argc, argv, run, &set);
}
