/* rqvk-kv synth: formats on synthetic sets. */
#include "tools/common/progress.h"
#include "tools/kv/commands.h"
#include "tools/kv/experiment.h"
#include "tools/kv/options.h"

#include <math.h>
#include <string.h>

typedef struct synth {
    kv_experiment base;
    kv_format_args formats;
    kv_output out;
    const char *sets;
    float spread;
    kv_format_list list;
    kv_set_kind kinds[KV_SET_COUNT];
    size_t n_kinds;
} synth;

static const kv_column columns[] = {
    {"set", 0},          {"format", 0},     {"bits_k", 4}, {"bits_v", 4},     {"k_nmse", 5},
    {"k_nmse_error", 5}, {"k_cosine", 5},   {"v_nmse", 5}, {"logit_rmse", 4}, {"kl", 5},
    {"top1", 3},         {"out_k", 4},      {"out_v", 4},  {"out", 4},        {"out_unbiased", 4},
    {"best_gain_k", 4},  {"best_gain_v", 4}};

static void add_row(kv_table *t, const char *set, const kv_result *r)
{
    const kv_quality *q = &r->quality;
    const double numbers[] = {r->bits_k, r->bits_v,     q->k_nmse,       r->k_nmse_error, q->k_cosine,
                              q->v_nmse, q->logit_rmse, q->kl,           q->top1,         q->out_k,
                              q->out_v,  q->out,        q->out_unbiased, q->best_gain_k,  q->best_gain_v};
    kv_table_text(t, set);
    kv_table_text(t, r->name);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) kv_table_number(t, numbers[i]);
}

static rq_status choose_sets(synth *o, rq_error *err)
{
    if (strcmp(o->sets, "all") == 0) {
        for (int i = 0; i < KV_SET_COUNT; i++) o->kinds[o->n_kinds++] = (kv_set_kind)i;
        return RQ_OK;
    }
    rq_status s = RQ_OK;
    for (const char *p = o->sets; !s && *p;) {
        char name[32];
        size_t bytes = strcspn(p, ",");
        (void)snprintf(name, sizeof name, "%.*s", (int)(bytes < 31 ? bytes : 31), p);
        if (o->n_kinds == KV_SET_COUNT) return rq_fail(err, RQ_ERR_ARGUMENT, "--set names a set twice");
        s = kv_set_of_name(name, &o->kinds[o->n_kinds++], err);
        p += bytes + (p[bytes] == ',');
    }
    if (!s && o->n_kinds == 0) s = rq_fail(err, RQ_ERR_ARGUMENT, "--set names no set");
    return s;
}

static void advance(void *user)
{
    rq_progress *p = user;
    rq_progress_set(p, p->done + 1);
}

/* Quality of the attention's output against bits, one drawing per call: the first set. */
static rq_status draw(const synth *o, const kv_result *results, rq_error *err)
{
    kv_point points[KV_MAX_FORMATS];
    for (size_t i = 0; i < o->list.n; i++)
        points[i] = (kv_point){.x = (results[i].bits_k + results[i].bits_v) / 2,
                               .y = results[i].quality.out,
                               .label = results[i].name};
    char title[96];
    (void)snprintf(title, sizeof title, "Set %s, heads of %u", kv_set_name(o->kinds[0]), o->base.dim);
    return kv_output_draw(&o->out, title, "relative error of attention's output", points, o->list.n, err);
}

static rq_status print(const synth *o, const kv_table *table, rq_error *err)
{
    char text[6][32];
    (void)snprintf(text[0], sizeof text[0], "%u", o->base.dim);
    (void)snprintf(text[1], sizeof text[1], "%u", o->base.n_keys);
    (void)snprintf(text[2], sizeof text[2], "%u", o->base.n_queries);
    (void)snprintf(text[3], sizeof text[3], "%u", o->base.n_heads);
    (void)snprintf(text[4], sizeof text[4], "%g", o->base.spread);
    (void)snprintf(text[5], sizeof text[5], "%llu", (unsigned long long)o->base.seed);
    const kv_note notes[] = {{"commit", RQVK_COMMIT}, {"dim", text[0]},   {"keys", text[1]},
                             {"queries", text[2]},    {"heads", text[3]}, {"spread", text[4]},
                             {"seed", text[5]}};
    return kv_output_table(&o->out, table, "rqvk-kv synth", notes, sizeof notes / sizeof *notes, err);
}

static rq_status run(synth *o, rq_error *err)
{
    kv_result results[KV_MAX_FORMATS];
    kv_table table;
    kv_table_start(&table, columns, sizeof columns / sizeof *columns);
    rq_status s = o->out.columns ? kv_table_show(&table, o->out.columns, err) : RQ_OK;
    rq_progress progress =
        rq_progress_start(stderr, "measure", "runs", (uint64_t)o->n_kinds * o->base.n_heads * o->list.n);
    for (size_t k = 0; !s && k < o->n_kinds; k++) {
        kv_experiment e = o->base;
        e.set = o->kinds[k];
        s = kv_experiment_run(&e, &o->list, results, advance, &progress, err);
        for (size_t f = 0; !s && f < o->list.n; f++) add_row(&table, kv_set_name(e.set), &results[f]);
        if (!s && k == 0 && o->out.svg) s = draw(o, results, err);
    }
    rq_progress_end(&progress);
    if (!s) s = print(o, &table, err);
    kv_table_free(&table);
    return s;
}

static void add_options(rq_options *options, synth *o)
{
    rq_options_add(
        options, (rq_option){.names = "--set",
                             .kind = RQ_OPT_STRING,
                             .target = &o->sets,
                             .value = "LIST",
                             .help = "gaussian, outliers, outliers-q, rope-adjacent, rope, offset, student, "
                                     "or all"});
    kv_options_formats(options, &o->formats);
    rq_options_heading(options, "Sets");
    rq_options_add(options, (rq_option){.names = "--dim",
                                        .kind = RQ_OPT_U32,
                                        .target = &o->base.dim,
                                        .min = 8,
                                        .max = 1024,
                                        .help = "elements of a head, a multiple of 8"});
    rq_options_add(options, (rq_option){.names = "--keys",
                                        .kind = RQ_OPT_U32,
                                        .target = &o->base.n_keys,
                                        .min = 2,
                                        .max = 1 << 16,
                                        .help = "keys of a head"});
    rq_options_add(options, (rq_option){.names = "--queries",
                                        .kind = RQ_OPT_U32,
                                        .target = &o->base.n_queries,
                                        .min = 2,
                                        .max = 1 << 12,
                                        .help = "queries of a head"});
    rq_options_add(options, (rq_option){.names = "--heads",
                                        .kind = RQ_OPT_U32,
                                        .target = &o->base.n_heads,
                                        .min = 1,
                                        .max = 1 << 16,
                                        .help = "independent heads, with sets and rotations of their own"});
    rq_options_add(options, (rq_option){.names = "--spread",
                                        .kind = RQ_OPT_F32,
                                        .target = &o->spread,
                                        .min = 0.01,
                                        .max = 100,
                                        .help = "standard deviation of the logits over the keys"});
    rq_options_add(options, (rq_option){.names = "--seed",
                                        .kind = RQ_OPT_U64,
                                        .target = &o->base.seed,
                                        .help = "of sets and rotations"});
    kv_options_output(options, &o->out, "also draw output error against bits of the first set");
}

int kv_synth_main(int argc, char **argv)
{
    synth o = {.base = kv_experiment_default(),
               .sets = "gaussian",
               .formats = {.names = kv_format_all},
               .spread = 2};
    rq_options options = {0};
    add_options(&options, &o);
    const rq_program_text text = {.program = "rqvk-kv synth",
                                  .usage = "[--set LIST] [--formats LIST] [--opponent] [options]",
                                  .about = "Measures cache formats on synthetic keys, values and queries.",
                                  .footer = "\nkl: of attention's weights, natural logarithm. out: relative "
                                            "error of attention's output with keys\n"
                                            "and values in the format; out_unbiased: values times 1 / (1 - "
                                            "v_nmse). best_gain: the factor on\n"
                                            "decoded keys or values that would fit best."};
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    o.base.spread = (double)o.spread;
    rq_error err = {0};
    rq_status s = choose_sets(&o, &err);
    if (!s) s = kv_formats_choose(&o.formats, &o.list, &err);
    if (!s) s = run(&o, &err);
    return s ? rq_complain(text.program, &err) : 0;
}
