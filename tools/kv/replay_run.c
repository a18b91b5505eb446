#include "tools/kv/replay_run.h"

#include "backends/base/mem.h"

#include <string.h>

/* The engine's own seeds (engine/kv/plan.c): keys and values of all layers and heads share these two rotations. */
enum { SEED_K = 1, SEED_V = 2 };

/* Everything about one KV head of one layer. */
typedef struct head {
    const rq_kv_layer_profile *profile; /* NULL: none */
    double gain_k, gain_v;
    uint32_t index;
    kv_case c;
    float *k, *v, *q, *k_hat, *v_hat;
    uint32_t *from, *to;
} head;

static void head_free(head *h)
{
    rq_free(h->k);
    rq_free(h->v);
    rq_free(h->q);
    rq_free(h->k_hat);
    rq_free(h->v_hat);
    rq_free(h->from);
    rq_free(h->to);
}

/* Position of the i-th of n queries: the last 3/4 of the text, evenly, the very last token included. */
static uint32_t query_position(uint32_t n_tokens, uint32_t n, uint32_t i)
{
    uint32_t first = n_tokens / 4, span = n_tokens - 1 - first;
    return n < 2 ? n_tokens - 1 : first + (uint32_t)((uint64_t)span * i / (n - 1));
}

static rq_status head_load(const kv_replay *r, const kv_capture_layer *l, const kv_tensors *t, uint32_t index,
                           head *out, rq_error *err)
{
    uint32_t n = r->manifest->n_tokens, group = l->n_heads / l->n_heads_kv;
    uint32_t n_positions = r->n_positions < n ? r->n_positions : n, n_queries = n_positions * group;
    head h = {.index = index, .gain_k = r->gain_k, .gain_v = r->gain_v};
    h.k = rq_malloc(sizeof(float) * n * l->dim_k);
    h.v = rq_malloc(sizeof(float) * n * l->dim_v);
    h.k_hat = rq_malloc(sizeof(float) * n * l->dim_k);
    h.v_hat = rq_malloc(sizeof(float) * n * l->dim_v);
    h.q = rq_malloc(sizeof(float) * n_queries * l->dim_k);
    h.from = rq_malloc(sizeof(uint32_t) * n_queries);
    h.to = rq_malloc(sizeof(uint32_t) * n_queries);
    if (!h.k || !h.v || !h.k_hat || !h.v_hat || !h.q || !h.from || !h.to) {
        head_free(&h);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for layer %u of a capture", l->layer);
    }
    kv_capture_head(t, "k", index, 0, n, h.k);
    kv_capture_head(t, "v", index, 0, n, h.v);
    for (uint32_t i = 0; i < n_queries; i++) {
        uint32_t position = query_position(n, n_positions, i / group);
        kv_capture_head(t, "q", index * group + i % group, position, 1, h.q + (size_t)i * l->dim_k);
        h.to[i] = position + 1;
        h.from[i] = l->window && position + 1 > l->window ? position + 1 - l->window : 0;
    }
    for (size_t i = 0; i < (size_t)n_queries * l->dim_k; i++) h.q[i] *= (float)l->scale;
    h.c = (kv_case){.n = n,
                    .n_queries = n_queries,
                    .dim_k = l->dim_k,
                    .dim_v = l->dim_v,
                    .k = h.k,
                    .v = h.v,
                    .q = h.q,
                    .from = h.from,
                    .to = h.to,
                    .softcap = l->softcap};
    if (r->profile) h.profile = &r->profile->layers[l->layer];
    *out = h;
    return RQ_OK;
}

/* out = what is left of rows after the format, with the shift and the scales of a profile around it. */
static rq_status trip(const kv_format *f, bool is_v, const float *rows, uint32_t n, uint32_t dim,
                      const float *mean, const float *lambda, double gain, float *out, rq_error *err)
{
    for (size_t i = 0; i < (size_t)n * dim; i++) {
        float x = rows[i] - (mean ? mean[i % dim] : 0);
        out[i] = lambda ? lambda[i % dim] * x : x;
    }
    rq_status s = kv_format_trip(f, is_v, out, n, err);
    for (size_t i = 0; !s && i < (size_t)n * dim; i++) {
        float x = (float)gain * (lambda ? out[i] / lambda[i % dim] : out[i]);
        out[i] = x + (mean ? mean[i % dim] : 0);
    }
    return s;
}

static const float *of_head(const float *vectors, uint32_t index, uint32_t floats)
{
    return vectors ? vectors + (size_t)index * floats : NULL;
}

/* A side of a format with the learned rotation or basis of the head, if there is one and the format takes it. */
static rq_status make_side(const char *name, uint32_t dim, uint64_t seed, const float *so8, const float *klt,
                           kv_format **out, rq_error *err)
{
    rq_status s = kv_format_make(name, dim, seed, out, err);
    if (s) return s;
    if (so8 && strncmp(name, "so8", 3) == 0) s = kv_format_use_so8(*out, so8, err);
    if (klt && kv_format_is_klt(*out)) s = kv_format_use_klt(*out, seed, klt, err);
    if (s) kv_format_free(*out);
    return s;
}

static rq_status run_format(const head *h, const kv_exact *exact, const char *name, kv_replay_row *row,
                            rq_error *err)
{
    static const rq_kv_layer_profile nothing = {0};
    const rq_kv_layer_profile *p = h->profile ? h->profile : &nothing;
    kv_format *k = NULL, *v = NULL;
    uint32_t dim_k = h->c.dim_k, dim_v = h->c.dim_v, i = h->index;
    rq_status s = make_side(name, dim_k, SEED_K, of_head(p->so8_k, i, 8 * dim_k),
                            of_head(p->klt_k, i, dim_k * dim_k), &k, err);
    if (s) return s;
    s = make_side(name, dim_v, SEED_V, of_head(p->so8_v, i, 8 * dim_v), of_head(p->klt_v, i, dim_v * dim_v),
                  &v, err);
    if (s) {
        kv_format_free(k);
        return s;
    }
    bool coded = !kv_format_is_foreign(k) && !kv_format_is_exact(k);
    if (!coded) p = &nothing;
    s = trip(k, false, h->k, h->c.n, dim_k, of_head(p->mean_k, i, dim_k),
             kv_format_is_klt(k) ? NULL : of_head(p->lambda_k, i, dim_k), coded ? h->gain_k : 1, h->k_hat,
             err);
    if (!s)
        s = trip(v, true, h->v, h->c.n, dim_v, of_head(p->mean_v, i, dim_v), NULL, coded ? h->gain_v : 1,
                 h->v_hat, err);
    if (!s) s = kv_measure(exact, h->k_hat, h->v_hat, &row->quality, err);
    row->format = name;
    row->bits_k = kv_format_bits(k, false);
    row->bits_v = kv_format_bits(v, true);
    kv_format_free(k);
    kv_format_free(v);
    return s;
}

static rq_status check_profile(const kv_replay *r, rq_error *err)
{
    const rq_kv_profile *p = r->profile;
    const kv_manifest *m = r->manifest;
    if (!p) return RQ_OK;
    if (p->identity.model != m->model_hash || p->identity.rope != m->rope_hash)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "the cache profile was made for another model than the capture in %s", r->folder);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const kv_capture_layer *l = &m->layers[i];
        if (l->layer >= p->n_layers || p->layers[l->layer].n_heads != l->n_heads_kv ||
            p->layers[l->layer].dim_k != l->dim_k || p->layers[l->layer].dim_v != l->dim_v)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "the cache profile has another layer %u than the capture in %s", l->layer,
                           r->folder);
    }
    return RQ_OK;
}

rq_status kv_replay_run(const kv_replay *r,
                        rq_status (*row)(void *user, const kv_replay_row *row, rq_error *err), void *user,
                        rq_error *err)
{
    rq_status s = check_profile(r, err);
    for (uint32_t i = 0; !s && i < r->manifest->n_layers; i++) {
        const kv_capture_layer *l = &r->manifest->layers[i];
        kv_tensors tensors = {0};
        s = kv_capture_open(r->folder, r->manifest, l, &tensors, err);
        for (uint32_t j = 0; !s && j < l->n_heads_kv; j++) {
            head h = {0};
            kv_exact exact = {0};
            s = head_load(r, l, &tensors, j, &h, err);
            if (!s) s = kv_exact_make(&h.c, &exact, err);
            for (size_t f = 0; !s && f < r->formats->n; f++) {
                kv_replay_row out = {.layer = l->layer, .head = j};
                s = run_format(&h, &exact, r->formats->names[f], &out, err);
                if (!s) s = row(user, &out, err);
            }
            kv_exact_free(&exact);
            head_free(&h);
        }
        if (!s && rq_map_lost(&tensors.map))
            s = rq_fail(err, RQ_ERR_IO, "layer %u of %s became shorter while it was read", l->layer,
                        r->folder);
        kv_tensors_close(&tensors);
    }
    return s;
}
