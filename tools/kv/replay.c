/* rqvk-kv replay: formats on captured queries, keys and values. */
#include "backends/base/mem.h"
#include "tools/common/progress.h"
#include "tools/kv/commands.h"
#include "tools/kv/options.h"
#include "tools/kv/replay_run.h"

#include <math.h>
#include <string.h>

/* What llama.cpp's users accept: the yardstick of "harmless" for the format "auto". */
static const char yardstick[] = "ref-q4_0-h64";

typedef struct replay {
    kv_format_args formats;
    kv_output out;
    const char *profile, *detail, *table;
    uint32_t n_positions;
    float bound, gain_k, gain_v;
    kv_format_list list;
    kv_manifest manifest;
    kv_table rows;
    struct {
        kv_quality sum, layer;
        double bits_k, bits_v;
    } of[KV_MAX_FORMATS]; /* index of the list */
    rq_progress progress;
} replay;

static const kv_column columns[] = {
    {"layer", 0},        {"head", 0},        {"format", 0},     {"bits_k", 4},   {"bits_v", 4},
    {"k_nmse", 5},       {"k_cosine", 5},    {"v_nmse", 5},     {"v_cosine", 5}, {"logit_rmse", 4},
    {"kl", 5},           {"top1", 3},        {"out_k", 4},      {"out_v", 4},    {"out", 4},
    {"out_unbiased", 4}, {"best_gain_k", 4}, {"best_gain_v", 4}};

static void add_row(kv_table *t, const char *layer, const char *head, const char *format, double bits_k,
                    double bits_v, const kv_quality *q)
{
    const double numbers[] = {bits_k,      bits_v,        q->k_nmse,       q->k_cosine,    q->v_nmse,
                              q->v_cosine, q->logit_rmse, q->kl,           q->top1,        q->out_k,
                              q->out_v,    q->out,        q->out_unbiased, q->best_gain_k, q->best_gain_v};
    kv_table_text(t, layer);
    kv_table_text(t, head);
    kv_table_text(t, format);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) kv_table_number(t, numbers[i]);
}

/* A layer's mean goes into the table when its last head is done. */
static rq_status receive(void *user, const kv_replay_row *row, rq_error *err)
{
    replay *o = user;
    char layer[16], head[16];
    size_t f = 0;
    while (strcmp(o->list.names[f], row->format) != 0) f++;
    (void)snprintf(layer, sizeof layer, "%u", row->layer);
    (void)snprintf(head, sizeof head, "%u", row->head);
    kv_quality_add(&o->of[f].sum, &row->quality);
    kv_quality_add(&o->of[f].layer, &row->quality);
    o->of[f].bits_k = row->bits_k;
    o->of[f].bits_v = row->bits_v;
    if (strcmp(o->detail, "head") == 0)
        add_row(&o->rows, layer, head, row->format, row->bits_k, row->bits_v, &row->quality);
    const kv_capture_layer *l = o->manifest.layers;
    while (l->layer != row->layer) l++;
    if (row->head + 1 == l->n_heads_kv) {
        kv_quality mean = kv_quality_mean(&o->of[f].layer);
        if (strcmp(o->detail, "all") != 0)
            add_row(&o->rows, layer, "all", row->format, row->bits_k, row->bits_v, &mean);
        memset(&o->of[f].layer, 0, sizeof o->of[f].layer);
    }
    rq_progress_set(&o->progress, o->progress.done + 1);
    return RQ_OK;
}

/* Pairs of our own formats with the error of attention's output when both sides are lossy: the two sides' errors are
 * independent, so their squares add. Pairs that keep a side exact are the first ones. */
static rq_status write_choice(const replay *o, rq_error *err)
{
    rq_kv_table table = {.model = o->manifest.model_hash, .bound = (double)o->bound};
    table.rows = rq_calloc(RQ_KV_MAX_TABLE, sizeof *table.rows);
    if (!table.rows) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a table of formats");
    table.rows[table.n++] = (rq_kv_table_row){"f16", "f16", 16, 0};
    for (size_t i = 0; i < o->list.n; i++) {
        kv_quality k = kv_quality_mean(&o->of[i].sum);
        if (strcmp(o->list.names[i], yardstick) == 0 && !(o->bound > 0)) table.bound = k.out;
        if (strncmp(o->list.names[i], "ref-", 4) == 0) continue;
        for (size_t j = 0; j < o->list.n && table.n < RQ_KV_MAX_TABLE; j++) {
            if (strncmp(o->list.names[j], "ref-", 4) == 0) continue;
            kv_quality v = kv_quality_mean(&o->of[j].sum);
            rq_kv_table_row *row = &table.rows[table.n++];
            (void)snprintf(row->type_k, sizeof row->type_k, "%s", o->list.names[i]);
            (void)snprintf(row->type_v, sizeof row->type_v, "%s", o->list.names[j]);
            row->bits = (o->of[i].bits_k + o->of[j].bits_v) / 2;
            row->error = sqrt(k.out_k * k.out_k + v.out_v * v.out_v);
        }
    }
    (void)snprintf(table.note, sizeof table.note,
                   "error of attention's output over %u tokens of %.80s%s; bound %s", o->manifest.n_tokens,
                   o->manifest.text, o->profile ? ", with a profile" : "",
                   o->bound > 0 ? "as asked for" : "that of q4_0 behind a Hadamard of 64");
    rq_status s = rq_kv_table_write(&table, o->table, err);
    rq_kv_table_free(&table);
    return s;
}

static rq_status draw(const replay *o, rq_error *err)
{
    kv_point points[KV_MAX_FORMATS];
    for (size_t i = 0; i < o->list.n; i++)
        points[i] = (kv_point){.x = (o->of[i].bits_k + o->of[i].bits_v) / 2,
                               .y = kv_quality_mean(&o->of[i].sum).kl,
                               .label = o->list.names[i]};
    return kv_output_draw(&o->out, o->profile ? "Captured attention, with a profile" : "Captured attention",
                          "KL of attention's weights", points, o->list.n, err);
}

static rq_status print(replay *o, rq_error *err)
{
    for (size_t f = 0; f < o->list.n; f++) {
        kv_quality mean = kv_quality_mean(&o->of[f].sum);
        add_row(&o->rows, "all", "all", o->list.names[f], o->of[f].bits_k, o->of[f].bits_v, &mean);
    }
    char tokens[16], positions[16], gain_k[16], gain_v[16];
    (void)snprintf(gain_k, sizeof gain_k, "%g", (double)o->gain_k);
    (void)snprintf(gain_v, sizeof gain_v, "%g", (double)o->gain_v);
    (void)snprintf(tokens, sizeof tokens, "%u", o->manifest.n_tokens);
    (void)snprintf(positions, sizeof positions, "%u", o->n_positions);
    const kv_note notes[] = {{"commit", RQVK_COMMIT},
                             {"model", o->manifest.model},
                             {"text", o->manifest.text},
                             {"captured", o->manifest.created},
                             {"capture_commit", o->manifest.commit},
                             {"tokens", tokens},
                             {"positions", positions},
                             {"profile", o->profile ? o->profile : "none"},
                             {"gain_k", gain_k},
                             {"gain_v", gain_v}};
    return kv_output_table(&o->out, &o->rows, "rqvk-kv replay", notes, sizeof notes / sizeof *notes, err);
}

/* For every layer of the capture? */
static bool has_bases(const kv_manifest *m, const rq_kv_profile *p)
{
    for (uint32_t i = 0; i < m->n_layers; i++) {
        uint32_t l = m->layers[i].layer;
        if (l >= p->n_layers || !p->layers[l].klt_k || !p->layers[l].klt_v) return false;
    }
    return true;
}

static rq_status run(replay *o, const char *folder, rq_error *err)
{
    rq_kv_profile *profile = NULL;
    rq_status s = kv_formats_choose(&o->formats, &o->list, err);
    if (!s && o->out.columns) s = kv_table_show(&o->rows, o->out.columns, err);
    if (!s && o->table && !(o->bound > 0)) s = kv_format_list_add(&o->list, yardstick, err);
    if (!s) s = kv_manifest_read(folder, &o->manifest, err);
    if (!s && o->profile) s = rq_kv_profile_read(o->profile, &profile, err);
    if (!s && profile && has_bases(&o->manifest, profile) && o->formats.names == kv_format_all)
        s = kv_format_list_add(&o->list, "klt4,klt3,klt2", err);
    if (!s) {
        uint64_t heads = 0;
        for (uint32_t i = 0; i < o->manifest.n_layers; i++) heads += o->manifest.layers[i].n_heads_kv;
        kv_replay r = {.folder = folder,
                       .manifest = &o->manifest,
                       .formats = &o->list,
                       .profile = profile,
                       .n_positions = o->n_positions,
                       .gain_k = (double)o->gain_k,
                       .gain_v = (double)o->gain_v};
        o->progress = rq_progress_start(stderr, "replay", "runs", heads * o->list.n);
        s = kv_replay_run(&r, receive, o, err);
        rq_progress_end(&o->progress);
    }
    if (!s) s = print(o, err);
    if (!s && o->out.svg) s = draw(o, err);
    if (!s && o->table) s = write_choice(o, err);
    rq_kv_profile_free(profile);
    kv_manifest_free(&o->manifest);
    kv_table_free(&o->rows);
    return s;
}

static void add_options(rq_options *options, replay *o)
{
    kv_options_formats(options, &o->formats);
    rq_options_add(options, (rq_option){.names = "--profile",
                                        .kind = RQ_OPT_STRING,
                                        .target = &o->profile,
                                        .value = "FILE",
                                        .help = "means, scales and rotations from rqvk-kv calibrate"});
    rq_options_add(options,
                   (rq_option){.names = "--positions",
                               .kind = RQ_OPT_U32,
                               .target = &o->n_positions,
                               .min = 1,
                               .max = 1 << 16,
                               .help = "positions whose queries are looked at, spread over the last 3/4"});
    rq_options_add(options,
                   (rq_option){.names = "--detail",
                               .kind = RQ_OPT_STRING,
                               .target = &o->detail,
                               .choices = "all,layer,head",
                               .help = "rows for everything together, for layers too, or for heads too"});
    rq_options_add(options, (rq_option){.names = "--gain-k",
                                        .kind = RQ_OPT_F32,
                                        .target = &o->gain_k,
                                        .min = 0.5,
                                        .max = 2,
                                        .help = "factor on decoded keys of our own codes"});
    rq_options_add(options, (rq_option){.names = "--gain-v",
                                        .kind = RQ_OPT_F32,
                                        .target = &o->gain_v,
                                        .min = 0.5,
                                        .max = 2,
                                        .help = "factor on decoded values of our own codes"});
    kv_options_output(options, &o->out, "also draw KL against bits");
    rq_options_add(options,
                   (rq_option){.names = "--table",
                               .kind = RQ_OPT_STRING,
                               .target = &o->table,
                               .value = "FILE",
                               .help = "also write the table that the cache format \"auto\" reads: the "
                                       "model's path and \".kvtable\""});
    rq_options_add(options, (rq_option){.names = "--bound",
                                        .kind = RQ_OPT_F32,
                                        .target = &o->bound,
                                        .shown = "what q4_0 behind a Hadamard of 64 has",
                                        .help = "output error up to which \"auto\" may go"});
}

int kv_replay_main(int argc, char **argv)
{
    replay *o = rq_calloc(1, sizeof *o);
    rq_error err = {0};
    if (!o) {
        rq_fail(&err, RQ_ERR_MEMORY, "out of memory");
        return rq_complain("rqvk-kv replay", &err);
    }
    o->formats.names = kv_format_all;
    o->detail = "all";
    o->n_positions = 64;
    o->gain_k = o->gain_v = 1;
    kv_table_start(&o->rows, columns, sizeof columns / sizeof *columns);
    rq_options options = {0};
    add_options(&options, o);
    const rq_program_text text = {
        .program = "rqvk-kv replay",
        .usage = "FOLDER [--formats LIST] [--profile FILE] [options]",
        .about = "Measures cache formats on what rqvk-kv capture took from a model.",
        .footer =
            "\nEvery key and value is in the format, recent ones too. kl: of attention's weights, natural\n"
            "logarithm. out: relative error of attention's output; out_unbiased: decoded values times\n"
            "1 / (1 - v_nmse). best_gain: the factor on decoded keys or values that would fit best."};
    const char *folder[1] = {NULL};
    size_t n = 1;
    int code = rq_args_run(&text, &options, argc, argv, folder, &n);
    if (code < 0) {
        rq_status s =
            n == 1 ? RQ_OK : rq_fail(&err, RQ_ERR_ARGUMENT, "a folder of a capture is needed (see --help)");
        if (!s) s = run(o, folder[0], &err);
        code = s ? rq_complain(text.program, &err) : 0;
    }
    rq_free(o);
    return code;
}
