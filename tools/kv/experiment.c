#include "tools/kv/experiment.h"

#include "backends/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

kv_experiment kv_experiment_default(void)
{
    return (kv_experiment){
        .dim = 128, .n_keys = 1024, .n_queries = 64, .n_heads = 12, .spread = 2, .seed = 100};
}

/* Room for decoded keys and values of one head. */
typedef struct decoded {
    float *k, *v;
} decoded;

static rq_status run_format(const kv_experiment *e, const kv_set *set, const kv_exact *exact,
                            const char *name, uint32_t head, const decoded *room, kv_result *out,
                            double *nmse_squares, rq_error *err)
{
    kv_format *format_k = NULL, *format_v = NULL;
    kv_quality quality;
    size_t bytes = sizeof(float) * set->n * set->dim;
    rq_status s = kv_format_make(name, e->dim, e->seed + 400 + head, &format_k, err);
    if (!s) s = kv_format_make(name, e->dim, e->seed + 800 + head, &format_v, err);
    if (!s) {
        memcpy(room->k, set->k, bytes);
        memcpy(room->v, set->v, bytes);
        s = kv_format_trip(format_k, false, room->k, set->n, err);
    }
    if (!s) s = kv_format_trip(format_v, true, room->v, set->n, err);
    if (!s) s = kv_measure(exact, room->k, room->v, &quality, err);
    if (!s) {
        (void)snprintf(out->name, sizeof out->name, "%s", kv_format_name(format_k));
        out->bits_k = kv_format_bits(format_k, false);
        out->bits_v = kv_format_bits(format_v, true);
        kv_quality_add(&out->quality, &quality);
        *nmse_squares += quality.k_nmse * quality.k_nmse;
    }
    kv_format_free(format_k);
    kv_format_free(format_v);
    return s;
}

static rq_status run_head(const kv_experiment *e, const kv_format_list *formats, uint32_t head,
                          kv_result *out, double *nmse_squares, void (*step)(void *user), void *user,
                          rq_error *err)
{
    kv_set set = {0};
    rq_status s = kv_set_make(e->set, e->dim, e->n_keys, e->n_queries, e->spread, e->seed + head, &set, err);
    if (s) return s;
    kv_case c = {.n = set.n,
                 .n_queries = set.n_queries,
                 .dim_k = set.dim,
                 .dim_v = set.dim,
                 .k = set.k,
                 .v = set.v,
                 .q = set.q};
    kv_exact exact = {0};
    decoded room = {rq_malloc(sizeof(float) * set.n * set.dim), rq_malloc(sizeof(float) * set.n * set.dim)};
    if (!room.k || !room.v) {
        rq_free(room.k);
        rq_free(room.v);
        kv_set_free(&set);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a synthetic set");
    }
    s = kv_exact_make(&c, &exact, err);
    for (size_t f = 0; !s && f < formats->n; f++) {
        s = run_format(e, &set, &exact, formats->names[f], head, &room, &out[f], &nmse_squares[f], err);
        if (step) step(user);
    }
    kv_exact_free(&exact);
    rq_free(room.k);
    rq_free(room.v);
    kv_set_free(&set);
    return s;
}

rq_status kv_experiment_run(const kv_experiment *e, const kv_format_list *formats, kv_result *out,
                            void (*step)(void *user), void *user, rq_error *err)
{
    double nmse_squares[KV_MAX_FORMATS] = {0};
    memset(out, 0, sizeof *out * formats->n);
    rq_status s = RQ_OK;
    for (uint32_t h = 0; !s && h < e->n_heads; h++)
        s = run_head(e, formats, h, out, nmse_squares, step, user, err);
    double n = e->n_heads;
    for (size_t f = 0; !s && f < formats->n; f++) {
        out[f].quality = kv_quality_mean(&out[f].quality);
        double mean = out[f].quality.k_nmse, variance = fmax(0, nmse_squares[f] / n - mean * mean);
        out[f].k_nmse_error = n > 1 ? sqrt(variance / (n - 1)) : 0;
    }
    return s;
}
