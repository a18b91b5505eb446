/* ops_cache.c - writing keys and values into pages, alone and fused with the norms and rotations before it.
 *
 * K is stored transposed ([dim_k][64]), so a token's key goes to one column of its page: dim_k writes, 128 bytes
 * apart. A unit is one head and up to 64 tokens of the step: rows are made first, then written element by element
 * for all tokens that go to the same page, so that neighbouring tokens share the cache lines. */
#include "backends/cpu/program.h"
#include "backends/formats/half.h"

#include <string.h>

typedef struct write_args {
    rq_tensor q, k, v, q_out;
    const rq_cache_pool *pool;
    uint32_t group, layer;
    uint32_t n_q; /* query heads to rotate, 0 when it is a plain write */
    const float *q_norm, *k_norm;
    float eps;
    bool normed, rotate;
    uint64_t table; /* of cos and sin, in fixed scratch */
    uint32_t n_rot;
    rq_pairing pairing;
} write_args;

enum { PIECE = RQ_PAGE_TOKENS };

/* A piece covers PIECE tokens of the step; one that meets the border of a page is worked through in parts. */
static uint32_t part_end(const uint32_t *slots, const int32_t *runs, uint32_t first, uint32_t end)
{
    uint32_t t = first + 1;
    while (t < end && runs[t] >= 0 && slots[t] / RQ_PAGE_TOKENS == slots[first] / RQ_PAGE_TOKENS) t++;
    return t;
}

/* y = rope(norm(x)) as far as asked for; returns where the result is (x itself when nothing was asked for). */
static const float *make_row(const rq_cpu_worker *w, const write_args *a, const float *x, const float *norm,
                             uint32_t d, uint32_t t, float *y)
{
    if (a->normed) {
        w->vec->rms_norm(x, norm, y, d, a->eps);
        x = y;
    }
    if (a->rotate) {
        const float *table = (const float *)(w->fixed + a->table) + (size_t)t * a->n_rot;
        w->vec->rope(x, table, table + a->n_rot / 2, y, d, a->n_rot, a->pairing);
        x = y;
    }
    return x;
}

static void query_head(const rq_cpu_worker *w, const write_args *a, uint32_t head, uint32_t first,
                       uint32_t end)
{
    for (uint32_t t = first; t < end; t++)
        make_row(w, a, (const float *)(a->q.p + head * a->q.nb[1] + t * a->q.nb[2]), a->q_norm, a->q.ne[0], t,
                 (float *)(a->q_out.p + head * a->q_out.nb[1] + t * a->q_out.nb[2]));
}

/* x in an exact type of 16 bits. */
static void to_half(const rq_cpu_worker *w, rq_type type, const float *x, uint16_t *y, size_t n)
{
    if (type == RQ_TYPE_F16)
        w->vec->to_f16(x, y, n);
    else
        for (size_t i = 0; i < n; i++) y[i] = rq_bhalf_from_f32(x[i]);
}

/* Columns of the tokens of a part, from rows [n][d] of 16 or 32 bits to [d][64] at places slots[i] % 64. */
static void scatter_16(const uint16_t *rows, uint32_t n, uint32_t d, const uint32_t *slots, uint16_t *k)
{
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t t = 0; t < n; t++)
            k[(size_t)i * RQ_PAGE_TOKENS + slots[t] % RQ_PAGE_TOKENS] = rows[(size_t)t * d + i];
}

static void scatter_32(const float *rows, uint32_t n, uint32_t d, const uint32_t *slots, float *k)
{
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t t = 0; t < n; t++)
            k[(size_t)i * RQ_PAGE_TOKENS + slots[t] % RQ_PAGE_TOKENS] = rows[(size_t)t * d + i];
}

static void write_part(const rq_cpu_worker *w, const write_args *a, uint32_t head, uint32_t first,
                       uint32_t end, const uint32_t *slots)
{
    uint32_t dk = a->k.ne[0], dv = a->v.ne[0], n = end - first;
    uint32_t page = slots[first] / RQ_PAGE_TOKENS;
    uint8_t *block = rq_pool_exact_block(a->pool, page, a->layer, head);
    if (!block) return;
    float *row = (float *)w->own;
    uint8_t *rows = w->own + (size_t)dk * sizeof(float);
    rq_type type_k = a->pool->group->type_k, type_v = a->pool->group->type_v;
    bool half = type_k != RQ_TYPE_F32;
    for (uint32_t t = first; t < end; t++) {
        const float *x = (const float *)(a->k.p + head * a->k.nb[1] + t * a->k.nb[2]);
        x = make_row(w, a, x, a->k_norm, dk, t, row);
        if (half)
            to_half(w, type_k, x, (uint16_t *)(void *)rows + (size_t)(t - first) * dk, dk);
        else
            memcpy((float *)(void *)rows + (size_t)(t - first) * dk, x, dk * sizeof *x);
    }
    if (half)
        scatter_16((const uint16_t *)(void *)rows, n, dk, slots + first, (uint16_t *)(void *)block);
    else
        scatter_32((const float *)(void *)rows, n, dk, slots + first, (float *)(void *)block);
    uint8_t *values = block + a->pool->layout.k_bytes;
    for (uint32_t t = first; t < end; t++) {
        const float *x = (const float *)(a->v.p + head * a->v.nb[1] + t * a->v.nb[2]);
        size_t at = (size_t)(slots[t] % RQ_PAGE_TOKENS) * dv;
        if (type_v != RQ_TYPE_F32)
            to_half(w, type_v, x, (uint16_t *)(void *)values + at, dv);
        else
            memcpy((float *)(void *)values + at, x, dv * sizeof *x);
    }
}

static void run_write(rq_cpu_worker *w, const void *args)
{
    const write_args *a = args;
    const uint32_t *slots = rq_step_at(w->words, w->header->token_slot[a->group]);
    const int32_t *runs = rq_cpu_token_run(w);
    uint32_t heads = a->n_q + a->k.ne[1], pieces = (w->active + PIECE - 1) / PIECE, unit;
    while (rq_cpu_take(w, heads * pieces, &unit)) {
        uint32_t head = unit % heads, first = unit / heads * PIECE,
                 end = first + PIECE < w->active ? first + PIECE : w->active;
        if (head < a->n_q) {
            query_head(w, a, head, first, end);
            continue;
        }
        while (first < end) {
            if (runs[first] < 0) { /* padding writes nothing */
                first++;
                continue;
            }
            uint32_t to = part_end(slots, runs, first, end);
            write_part(w, a, head - a->n_q, first, to, slots);
            first = to;
        }
    }
}

static write_args *begin(rq_cpu_builder *b, rq_ref cache, rq_ref k, rq_ref v)
{
    write_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return NULL;
    const rq_value *c = &rq_cpu_tape(b)->values[cache];
    a->group = c->index;
    a->layer = c->layer;
    a->pool = &rq_cpu_bindings(b)->pools[c->index];
    a->k = rq_cpu_tensor(b, k);
    a->v = rq_cpu_tensor(b, v);
    const rq_cache_group *g = a->pool->group;
    if (a->k.ne[0] != g->dim_k || a->v.ne[0] != g->dim_v || a->k.ne[1] != g->n_heads ||
        a->v.ne[1] != g->n_heads)
        rq_cpu_fail(b, "keys or values do not have the shape of the cache group");
    rq_cpu_own(b, (uint64_t)(PIECE + 1) * a->k.ne[0] * sizeof(float));
    return a;
}

void rq_cpu_kv_write(rq_cpu_builder *b, const rq_op *op)
{
    write_args *a = begin(b, op->in[0], op->in[1], op->in[2]);
    rq_cpu_emit(b, run_write, a, false);
}

void rq_cpu_qkv_write(rq_cpu_builder *b, const rq_op *op)
{
    write_args *a = begin(b, op->in[6], op->in[1], op->in[2]);
    if (!a) return;
    a->q = rq_cpu_tensor(b, op->in[0]);
    a->q_out = rq_cpu_tensor(b, op->out[0]);
    a->n_q = a->q.ne[1];
    a->q_norm = (const float *)(void *)rq_cpu_tensor(b, op->in[4]).p;
    a->k_norm = (const float *)(void *)rq_cpu_tensor(b, op->in[5]).p;
    a->normed = op->p.fused.normed;
    a->eps = op->p.fused.eps;
    a->rotate = true;
    a->n_rot = op->p.fused.n_rot;
    a->pairing = op->p.fused.pairing;
    a->table = rq_cpu_rope_table(b, (const float *)(void *)rq_cpu_tensor(b, op->in[3]).p, a->n_rot,
                                 op->p.fused.magnitude);
    rq_cpu_emit(b, run_write, a, false);
}
