/* cache.c - key/value pages: exact write and attention. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"

#include <math.h>

/* Start of one KV head's block of one layer in a page. */
static char *head_block(const rq_cache_pool *pool, uint32_t page, uint32_t layer, uint32_t head)
{
    const rq_page_layout *l = &pool->layout;
    uint32_t in_slab = page & ((1u << l->slab_shift) - 1);
    char *slab = pool->slabs[page >> l->slab_shift]->host;
    return slab + in_slab * l->page_bytes + layer * l->layer_bytes + head * l->head_bytes;
}

static void put(char *block, uint64_t index, rq_type type, float x)
{
    if (type == RQ_TYPE_F32)
        ((float *)(void *)block)[index] = x;
    else
        ((uint16_t *)(void *)block)[index] = rq_f32_to_f16(x);
}

static double take(const char *block, uint64_t index, rq_type type)
{
    if (type == RQ_TYPE_F32) return ((const float *)(const void *)block)[index];
    return rq_f16_to_f32(((const uint16_t *)(const void *)block)[index]);
}

rq_status rq_ref_kv_write(const rq_ref_run *r)
{
    const rq_value *cache = &r->tape->values[r->op->in[0]];
    const rq_cache_pool *pool = &r->env->pools[cache->index];
    const rq_cache_group *g = pool->group;
    rq_ref_view k = rq_ref_in(r, 1), v = rq_ref_in(r, 2);
    const rq_step_header *h = rq_ref_step(r);
    const uint32_t *slots = rq_step_at(r->env->step_words, h->token_slot[cache->index]);
    for (uint32_t t = 0; t < r->tape->bucket; t++) {
        if (!rq_ref_run_of(r, t)) continue;
        uint32_t page = slots[t] / RQ_PAGE_TOKENS, at = slots[t] % RQ_PAGE_TOKENS;
        for (uint32_t head = 0; head < g->n_heads; head++) {
            char *block = head_block(pool, page, cache->layer, head);
            for (uint32_t i = 0; i < g->dim_k; i++)
                put(block, (uint64_t)i * RQ_PAGE_TOKENS + at, g->type_k, *rq_ref_f32(&k, i, head, t, 0));
            for (uint32_t i = 0; i < g->dim_v; i++)
                put(block + pool->layout.k_bytes, (uint64_t)at * g->dim_v + i, g->type_v,
                    *rq_ref_f32(&v, i, head, t, 0));
        }
    }
    return RQ_OK;
}

/* One query head of one token. scores has room for every position of the sequence. */
static void attend_head(const rq_ref_run *r, const rq_ref_view *q, const rq_ref_view *y, uint32_t t,
                        uint32_t head, double *scores)
{
    const rq_value *cache = &r->tape->values[r->op->in[0]];
    const rq_cache_pool *pool = &r->env->pools[cache->index];
    const rq_cache_group *g = pool->group;
    const rq_run *run = rq_ref_run_of(r, t);
    const uint32_t *table =
        (const uint32_t *)pool->table->host + (uint64_t)run->seq * r->env->caps->max_pages;
    uint32_t kv_head = head / (q->v->ne[1] / g->n_heads);
    uint32_t last = rq_ref_position(r, t),
             first = g->window && last + 1 > g->window ? last + 1 - g->window : 0;
    double softcap = r->op->p.attend.softcap, largest = -INFINITY, sum = 0;
    for (uint32_t j = first; j <= last; j++) {
        const char *block = head_block(pool, table[j / RQ_PAGE_TOKENS], cache->layer, kv_head);
        double s = 0;
        for (uint32_t i = 0; i < g->dim_k; i++)
            s += (double)*rq_ref_f32(q, i, head, t, 0) *
                 take(block, (uint64_t)i * RQ_PAGE_TOKENS + j % RQ_PAGE_TOKENS, g->type_k);
        s *= (double)r->op->p.attend.scale;
        if (softcap > 0) s = softcap * tanh(s / softcap);
        scores[j] = s;
        if (s > largest) largest = s;
    }
    for (uint32_t j = first; j <= last; j++) {
        scores[j] = exp(scores[j] - largest);
        sum += scores[j];
    }
    for (uint32_t i = 0; i < g->dim_v; i++) {
        double o = 0;
        for (uint32_t j = first; j <= last; j++) {
            const char *block = head_block(pool, table[j / RQ_PAGE_TOKENS], cache->layer, kv_head);
            o += scores[j] *
                 take(block + pool->layout.k_bytes, (uint64_t)(j % RQ_PAGE_TOKENS) * g->dim_v + i, g->type_v);
        }
        *rq_ref_f32(y, (uint64_t)head * g->dim_v + i, t, 0, 0) = (float)(o / sum);
    }
}

rq_status rq_ref_attend(const rq_ref_run *r)
{
    rq_ref_view q = rq_ref_in(r, 1), y = rq_ref_out(r, 0);
    double *scores = rq_calloc((size_t)r->env->caps->max_pages * RQ_PAGE_TOKENS, sizeof *scores);
    if (!scores) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for attention scores");
    for (uint32_t t = 0; t < r->tape->bucket; t++)
        for (uint32_t head = 0; head < q.v->ne[1] && rq_ref_run_of(r, t); head++)
            attend_head(r, &q, &y, t, head, scores);
    rq_free(scores);
    return RQ_OK;
}

rq_status rq_ref_kv_encode(const rq_ref_run *r)
{
    return rq_fail(r->err, RQ_ERR_UNSUPPORTED, "this build has no coder");
}
