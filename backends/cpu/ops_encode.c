/* ops_encode.c - bringing full pages into coded form. A unit is K or V of one head of one page: the exact block
 * is widened to floats with the tokens side by side (K lies so, V is transposed) and coded in one call. It reads
 * the exact block once and writes the coded one once. */
#include "backends/cpu/program.h"
#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

#include <string.h>

typedef struct encode_args {
    const rq_cache_pool *pool;
    uint32_t group, layer;
    const rq_heads *heads;
    const rq_kv_encoder *encoder;
    _Atomic uint64_t *not_finite; /* may be NULL */
} encode_args;

/* One side of a block. */
typedef struct side {
    bool is_v;
    uint32_t d;
    rq_type type;
    rq_kv_form form;
    const uint8_t *exact;
    uint64_t exact_bytes;
    uint8_t *words, *scales;
} side;

/* [rows][n] to [n][rows], in squares that stay in the first-level cache. */
static void transpose(const float *x, uint32_t rows, uint32_t n, float *y)
{
    enum { SQUARE = 16 };
    for (uint32_t r0 = 0; r0 < rows; r0 += SQUARE)
        for (uint32_t c0 = 0; c0 < n; c0 += SQUARE)
            for (uint32_t r = r0; r < rows && r < r0 + SQUARE; r++)
                for (uint32_t c = c0; c < n && c < c0 + SQUARE; c++)
                    y[(size_t)c * rows + r] = x[(size_t)r * n + c];
}

static void narrow(rq_type type, const float *x, uint8_t *y, size_t n)
{
    uint16_t *h = (uint16_t *)(void *)y;
    if (type == RQ_TYPE_F32)
        memcpy(y, x, n * sizeof *x);
    else
        for (size_t i = 0; i < n; i++)
            h[i] = type == RQ_TYPE_F16 ? rq_half_from_f32(x[i]) : rq_bhalf_from_f32(x[i]);
}

/* `x` and `y` have room for a block of floats each. */
static void encode_side(const encode_args *a, const side *s, float *x, float *y)
{
    const rq_cache_group *g = a->pool->group;
    size_t n = (size_t)RQ_PAGE_TOKENS * s->d;
    if (s->form == RQ_KV_SAME) {
        memcpy(s->words, s->exact, s->exact_bytes);
        return;
    }
    a->heads->widen(s->type, s->exact, x, n);
    if (s->form == RQ_KV_TRIP) { /* wants rows */
        float *rows = s->is_v ? x : y;
        if (!s->is_v) transpose(x, s->d, RQ_PAGE_TOKENS, rows);
        g->trip(g->trip_user, s->is_v, rows, RQ_PAGE_TOKENS, s->d);
        if (!s->is_v) transpose(rows, RQ_PAGE_TOKENS, s->d, x);
        narrow(s->type, x, s->words, n);
        return;
    }
    if (s->is_v) transpose(x, RQ_PAGE_TOKENS, s->d, y);
    uint64_t bad = rq_kv_encode_block(a->encoder, s->form, s->is_v, s->d, s->is_v ? y : x,
                                      (uint32_t *)(void *)s->words, s->scales);
    if (bad && a->not_finite) atomic_fetch_add_explicit(a->not_finite, bad, memory_order_relaxed);
}

static void run_encode(rq_cpu_worker *w, const void *args)
{
    const encode_args *a = args;
    const rq_cache_pool *pool = a->pool;
    const rq_cache_group *g = pool->group;
    const rq_coded_layout *l = &pool->coded_layout;
    const rq_encode *encodes = rq_step_at(w->words, w->header->encodes[a->group]);
    uint32_t most = g->dim_k > g->dim_v ? g->dim_k : g->dim_v, unit;
    float *x = (float *)w->own, *y = x + (size_t)RQ_PAGE_TOKENS * most;
    while (rq_cpu_take(w, w->header->n_encodes[a->group] * g->n_heads * 2, &unit)) {
        const rq_encode *e = &encodes[unit / 2 / g->n_heads];
        uint32_t head = unit / 2 % g->n_heads;
        const uint8_t *exact = rq_pool_exact_block(pool, e->exact, a->layer, head);
        uint8_t *coded = rq_pool_coded_block(pool, e->coded, a->layer, head);
        if (!exact || !coded) continue;
        side k = {.d = g->dim_k,
                  .type = g->type_k,
                  .form = g->form_k,
                  .exact = exact,
                  .exact_bytes = pool->layout.k_bytes,
                  .words = coded,
                  .scales = coded + l->k_bytes + l->v_bytes};
        side v = {.is_v = true,
                  .d = g->dim_v,
                  .type = g->type_v,
                  .form = g->form_v,
                  .exact = exact + pool->layout.k_bytes,
                  .exact_bytes = pool->layout.v_bytes,
                  .words = coded + l->k_bytes,
                  .scales = coded + l->k_bytes + l->v_bytes + l->k_scale_bytes};
        encode_side(a, unit % 2 ? &v : &k, x, y);
    }
}

void rq_cpu_kv_encode(rq_cpu_builder *b, const rq_op *op)
{
    encode_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    const rq_value *cache = &rq_cpu_tape(b)->values[op->in[0]];
    const rq_cpu_isa *isa = rq_cpu_device_of(b)->isa;
    a->group = cache->index;
    a->layer = cache->layer;
    a->pool = &rq_cpu_bindings(b)->pools[cache->index];
    a->heads = rq_heads_of(isa);
    a->not_finite = rq_cpu_bindings(b)->not_finite;
    a->encoder = rq_kv_encoder_by_name(isa->name); /* NULL: the best there is */
    const rq_cache_group *g = a->pool->group;
    if (!rq_group_is_coded(g) || a->pool->n_coded == 0) {
        rq_cpu_fail(b, "the cache group has no coded pages");
        return;
    }
    rq_cpu_own(b, 2ull * RQ_PAGE_TOKENS * (g->dim_k > g->dim_v ? g->dim_k : g->dim_v) * sizeof(float));
    rq_cpu_emit(b, run_encode, a, false);
}
