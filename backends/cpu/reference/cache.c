/* cache.c - key/value pages: exact write and attention. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"
#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

#include <math.h>

static void put(char *block, uint64_t index, rq_type type, float x)
{
    if (type == RQ_TYPE_F32)
        ((float *)(void *)block)[index] = x;
    else
        ((uint16_t *)(void *)block)[index] = type == RQ_TYPE_F16 ? rq_half_from_f32(x) : rq_bhalf_from_f32(x);
}

static double take(const char *block, uint64_t index, rq_type type)
{
    if (type == RQ_TYPE_F32) return ((const float *)(const void *)block)[index];
    uint16_t h = ((const uint16_t *)(const void *)block)[index];
    return type == RQ_TYPE_F16 ? rq_half_to_f32(h) : rq_bhalf_to_f32(h);
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
            char *block = (char *)rq_pool_exact_block(pool, page, cache->layer, head);
            for (uint32_t i = 0; i < g->dim_k; i++)
                put(block, (uint64_t)i * RQ_PAGE_TOKENS + at, g->type_k, *rq_ref_f32(&k, i, head, t, 0));
            for (uint32_t i = 0; i < g->dim_v; i++)
                put(block + pool->layout.k_bytes, (uint64_t)at * g->dim_v + i, g->type_v,
                    *rq_ref_f32(&v, i, head, t, 0));
        }
    }
    return RQ_OK;
}

/* ---- coded pages ----------------------------------------------------------------------------------------- */

/* One side of a head's block, by the words of cache.h. */
typedef struct side {
    bool is_v;
    uint32_t d;
    rq_type type;
    rq_kv_form form;
    char *exact, *words, *scales;
} side;

static side side_of(const rq_cache_pool *pool, char *exact, char *coded, bool is_v)
{
    const rq_cache_group *g = pool->group;
    const rq_coded_layout *l = &pool->coded_layout;
    side k = {
        false, g->dim_k, g->type_k, g->form_k, exact, coded, coded ? coded + l->k_bytes + l->v_bytes : NULL};
    side v = {true,
              g->dim_v,
              g->type_v,
              g->form_v,
              exact ? exact + pool->layout.k_bytes : NULL,
              coded ? coded + l->k_bytes : NULL,
              coded ? coded + l->k_bytes + l->v_bytes + l->k_scale_bytes : NULL};
    return is_v ? v : k;
}

/* Place of (element, token) in an exact block. */
static uint64_t place(const side *s, uint32_t i, uint32_t t)
{
    return s->is_v ? (uint64_t)t * s->d + i : (uint64_t)i * RQ_PAGE_TOKENS + t;
}

static rq_status encode_side(const rq_ref_run *r, const rq_cache_group *g, const side *s)
{
    float *x = rq_calloc((size_t)s->d * RQ_PAGE_TOKENS, sizeof *x);
    if (!x) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a page");
    bool code = s->form != RQ_KV_SAME && s->form != RQ_KV_TRIP;
    for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t++)
        for (uint32_t i = 0; i < s->d; i++)
            x[code ? (size_t)i * RQ_PAGE_TOKENS + t : (size_t)t * s->d + i] =
                (float)take(s->exact, place(s, i, t), s->type);
    if (code)
        rq_kv_encode_block(rq_kv_encoder_by_name("scalar"), s->form, s->is_v, s->d, x,
                           (uint32_t *)(void *)s->words, s->scales);
    else {
        if (s->form == RQ_KV_TRIP) g->trip(g->trip_user, s->is_v, x, RQ_PAGE_TOKENS, s->d);
        for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t++)
            for (uint32_t i = 0; i < s->d; i++)
                put(s->words, place(s, i, t), s->type, x[(size_t)t * s->d + i]);
    }
    rq_free(x);
    return RQ_OK;
}

rq_status rq_ref_kv_encode(const rq_ref_run *r)
{
    const rq_value *cache = &r->tape->values[r->op->in[0]];
    const rq_cache_pool *pool = &r->env->pools[cache->index];
    const rq_step_header *h = rq_ref_step(r);
    const rq_encode *e = rq_step_at(r->env->step_words, h->encodes[cache->index]);
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < h->n_encodes[cache->index]; i++)
        for (uint32_t head = 0; head < pool->group->n_heads; head++)
            for (int is_v = 0; is_v < 2 && status == RQ_OK; is_v++) {
                side s = side_of(pool, (char *)rq_pool_exact_block(pool, e[i].exact, cache->layer, head),
                                 (char *)rq_pool_coded_block(pool, e[i].coded, cache->layer, head), is_v);
                status = encode_side(r, pool->group, &s);
            }
    return status;
}

/* ---- attention ------------------------------------------------------------------------------------------- */

/* What a KV head's page holds in each form, as attention sees it: K [dim_k][64] and V [64][dim_v], gains
 * included. Blocks are decoded when they are wanted first. */
typedef struct decoded {
    double *block[RQ_PAGE_FORMS];
} decoded;

typedef struct attention {
    const rq_ref_run *r;
    const rq_cache_pool *pool;
    uint32_t layer;
    rq_ref_view q, mean, y;
    decoded *pages; /* [page index][KV head] of the sequence in hand */
    uint32_t seq;
    double *scores; /* room for every position of a sequence */
    double *out;    /* [dim_v] */
    bool failed;
} attention;

static double gain_of(rq_kv_form form, bool is_v)
{
    const rq_kv_codec *row = rq_kv_codec_of(form);
    return row ? (double)(is_v ? row->gain_v : row->gain_k) : 1;
}

static void decode_side(const side *s, bool coded, double *to, float *room)
{
    if (coded && s->form != RQ_KV_SAME && s->form != RQ_KV_TRIP) {
        rq_kv_decode_block(s->form, s->is_v, s->d, (const uint32_t *)(void *)s->words, s->scales, room);
        for (uint32_t n = 0; n < rq_kv_spans(s->form); n++) {
            rq_kv_span span = rq_kv_span_of(s->form, s->d, n);
            double gain = gain_of(span.form, s->is_v);
            for (uint32_t i = span.first; i < span.first + span.size; i++)
                for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t++)
                    to[place(s, i, t)] = (double)room[(size_t)i * RQ_PAGE_TOKENS + t] * gain;
        }
        return;
    }
    for (uint64_t i = 0; i < (uint64_t)s->d * RQ_PAGE_TOKENS; i++)
        to[i] = take(coded ? s->words : s->exact, i, s->type);
}

/* The page as a query at `position` reads it; zeros where there is no page. NULL when memory ran out. */
static const double *page_of(attention *a, uint32_t index, uint32_t head, uint32_t position)
{
    const rq_cache_group *g = a->pool->group;
    bool coded = !rq_kv_reads_exact(g, position, index);
    double **block = &a->pages[(uint64_t)index * g->n_heads + head].block[coded];
    if (*block) return *block;
    const rq_memory *tables = coded ? a->pool->coded_table : a->pool->table;
    uint32_t page = ((const uint32_t *)tables->host)[(uint64_t)a->seq * a->r->env->caps->max_pages + index];
    char *exact = coded ? NULL : (char *)rq_pool_exact_block(a->pool, page, a->layer, head);
    char *code = coded ? (char *)rq_pool_coded_block(a->pool, page, a->layer, head) : NULL;
    uint64_t n_k = (uint64_t)g->dim_k * RQ_PAGE_TOKENS, n_v = (uint64_t)g->dim_v * RQ_PAGE_TOKENS;
    *block = rq_calloc(n_k + n_v, sizeof **block);
    float *room = rq_calloc(n_k > n_v ? n_k : n_v, sizeof *room);
    if (*block && room && (exact || code)) {
        side k = side_of(a->pool, exact, code, false), v = side_of(a->pool, exact, code, true);
        decode_side(&k, coded, *block, room);
        decode_side(&v, coded, *block + n_k, room);
    }
    a->failed |= !*block || !room;
    rq_free(room);
    return *block;
}

static void forget_pages(attention *a)
{
    uint64_t n = (uint64_t)a->r->env->caps->max_pages * a->pool->group->n_heads;
    for (uint64_t i = 0; i < n; i++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++) {
            rq_free(a->pages[i].block[form]);
            a->pages[i].block[form] = NULL;
        }
}

/* One query head of one token. */
static void attend_head(attention *a, uint32_t t, uint32_t head)
{
    const rq_cache_group *g = a->pool->group;
    uint32_t kv_head = head / (a->q.v->ne[1] / g->n_heads);
    uint32_t last = rq_ref_position(a->r, t),
             first = g->window && last + 1 > g->window ? last + 1 - g->window : 0;
    double softcap = a->r->op->p.attend.softcap, scale = a->r->op->p.attend.scale;
    double largest = -INFINITY, sum = 0, of_mean = 0;
    if (a->mean.data && softcap > 0)
        for (uint32_t i = 0; i < g->dim_k; i++)
            of_mean += (double)*rq_ref_f32(&a->q, i, head, t, 0) *
                       (double)*rq_ref_f32(&a->mean, i, kv_head / (g->n_heads / a->mean.v->ne[1]), 0, 0);
    for (uint32_t p = first / RQ_PAGE_TOKENS; p <= last / RQ_PAGE_TOKENS; p++) {
        const double *keys = page_of(a, p, kv_head, last);
        if (!keys) return;
        double s[RQ_PAGE_TOKENS];
        for (uint32_t j = 0; j < RQ_PAGE_TOKENS; j++) s[j] = of_mean;
        for (uint32_t i = 0; i < g->dim_k; i++, keys += RQ_PAGE_TOKENS) {
            double q = *rq_ref_f32(&a->q, i, head, t, 0);
            for (uint32_t j = 0; j < RQ_PAGE_TOKENS; j++) s[j] += q * keys[j];
        }
        for (uint32_t j = 0; j < RQ_PAGE_TOKENS; j++) {
            double x = s[j] * scale;
            a->scores[p * RQ_PAGE_TOKENS + j] = softcap > 0 ? softcap * tanh(x / softcap) : x;
        }
    }
    for (uint32_t j = first; j <= last; j++)
        if (a->scores[j] > largest) largest = a->scores[j];
    for (uint32_t i = 0; i < g->dim_v; i++) a->out[i] = 0;
    for (uint32_t j = first; j <= last; j++) {
        double weight = exp(a->scores[j] - largest);
        const double *v = page_of(a, j / RQ_PAGE_TOKENS, kv_head, last) +
                          (uint64_t)g->dim_k * RQ_PAGE_TOKENS + (uint64_t)(j % RQ_PAGE_TOKENS) * g->dim_v;
        for (uint32_t i = 0; i < g->dim_v; i++) a->out[i] += weight * v[i];
        sum += weight;
    }
    for (uint32_t i = 0; i < g->dim_v; i++)
        *rq_ref_f32(&a->y, (uint64_t)head * g->dim_v + i, t, 0, 0) = (float)(a->out[i] / sum);
}

rq_status rq_ref_attend(const rq_ref_run *r)
{
    const rq_value *cache = &r->tape->values[r->op->in[0]];
    attention a = {.r = r,
                   .pool = &r->env->pools[cache->index],
                   .layer = cache->layer,
                   .q = rq_ref_in(r, 1),
                   .mean = rq_ref_in(r, 2),
                   .y = rq_ref_out(r, 0),
                   .seq = UINT32_MAX};
    size_t max_pages = r->env->caps->max_pages;
    a.scores = rq_calloc(max_pages * RQ_PAGE_TOKENS, sizeof *a.scores);
    a.pages = rq_calloc(max_pages * a.pool->group->n_heads, sizeof *a.pages);
    a.out = rq_calloc(a.pool->group->dim_v, sizeof *a.out);
    a.failed = !a.scores || !a.pages || !a.out;
    for (uint32_t t = 0; t < r->tape->bucket && !a.failed; t++) {
        const rq_run *run = rq_ref_run_of(r, t);
        if (!run) continue;
        if (run->seq != a.seq) forget_pages(&a);
        a.seq = run->seq;
        for (uint32_t head = 0; head < a.q.v->ne[1]; head++) attend_head(&a, t, head);
    }
    if (a.pages) forget_pages(&a);
    rq_free(a.pages);
    rq_free(a.scores);
    rq_free(a.out);
    return a.failed ? rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for attention") : RQ_OK;
}
