/* attend.c - attention over the pages of the cache, exact ones and coded ones.
 *
 * A unit is (work item, KV head, block of queries): at most BLOCK_ROWS rows (queries x the query heads of the KV
 * head), so that queries, state and one widened page stay in the second-level cache. For each split of
 * RQ_SPLIT_PAGES pages, cut at absolute positions, the online softmax starts afresh (vec/attend_impl.h); the
 * splits' states are merged in ascending order. An item that covers several splits merges as it goes; items
 * that are one split each leave their state in a partial buffer, and a second instruction merges those. Both do
 * the same arithmetic in the same order, so a query's bits depend on its position and the cache alone.
 *
 * In which form a query reads a page is a function of positions (rq_kv_reads_exact). Inside a tile at most the
 * last query differs from the others, so a page may be visited in both forms, each for its own queries.
 *
 * Memory: a generated token reads each visible page of K and V once (all query heads of a KV head together); a
 * prompt reads it once for every BLOCK_ROWS rows, from the third-level cache as a rule. */
#include "backends/cpu/program.h"
#include "backends/formats/kv_codec.h"

#include <math.h>
#include <string.h>

enum { BLOCK_ROWS = 128 };

typedef struct attend_args {
    rq_tensor q;
    float *y;          /* [dim_v * n_q, T] */
    uint64_t y_stride; /* floats */
    const float *mean; /* [dim_k, heads] or NULL */
    uint64_t mean_stride;
    uint32_t kv_per_mean; /* KV heads that share a column of it */
    const rq_cache_pool *pool;
    const uint32_t *table, *coded_table; /* coded_table NULL: exact pages only */
    rq_attend_code code_k, code_v;       /* of coded pages, but for the addresses */
    uint32_t k_groups;
    uint32_t max_pages, n_seqs;
    uint32_t cache_group, layer;
    uint32_t n_kv, group; /* KV heads, query heads for each */
    uint32_t dim_k, dim_v, pad_v;
    uint32_t block_queries, max_blocks; /* of one item */
    float scale, softcap;
    /* partial results: [slot][query head] of (max, sum, values [dim_v]) in shared scratch */
    uint64_t partials, partial_floats;
    /* this worker's scratch */
    uint64_t own_q, own_bias, own_panel, own_scores, own_split, own_total;
    uint64_t own_q_codes, own_q_scales, own_codes;
} attend_args;

/* max, sum and values of some rows. */
typedef struct attend_state {
    float *max, *sum, *out;
} attend_state;

static attend_state state_at(const rq_cpu_worker *w, uint64_t offset, uint32_t max_rows)
{
    float *p = (float *)(w->own + offset);
    return (attend_state){p, p + max_rows, p + 2 * (size_t)max_rows};
}

static void reset(attend_state *s, uint32_t rows, uint32_t pad_v)
{
    for (uint32_t r = 0; r < rows; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
    memset(s->out, 0, (size_t)rows * pad_v * sizeof *s->out);
}

/* The block of a page index of the sequence, NULL when the table has no page there. */
static const uint8_t *page_at(const attend_args *a, uint32_t seq, uint32_t index, uint32_t head, bool coded)
{
    if (seq >= a->n_seqs || index >= a->max_pages) return NULL;
    size_t entry = (size_t)seq * a->max_pages + index;
    return coded ? rq_pool_coded_block(a->pool, a->coded_table[entry], a->layer, head)
                 : rq_pool_exact_block(a->pool, a->table[entry], a->layer, head);
}

/* Visible keys [lo, hi) of page `index` for a query at position `pos`. */
static void visible(uint32_t pos, uint32_t window, uint32_t index, uint8_t *lo, uint8_t *hi)
{
    uint32_t base = index * RQ_PAGE_TOKENS, first = window && pos >= window ? pos + 1 - window : 0;
    *hi = (uint8_t)(pos < base ? 0 : pos - base >= RQ_PAGE_TOKENS ? RQ_PAGE_TOKENS : pos - base + 1);
    *lo = (uint8_t)(first <= base ? 0 : first - base >= RQ_PAGE_TOKENS ? RQ_PAGE_TOKENS : first - base);
}

static uint32_t max_rows_of(const attend_args *a)
{
    return a->block_queries * a->group;
}

/* Points the block at a page. */
static void show_page(const attend_args *a, rq_attend_block *b, const uint8_t *page, bool coded)
{
    const rq_coded_layout *l = &a->pool->coded_layout;
    b->k = page;
    b->v = page + (coded ? l->k_bytes : a->pool->layout.k_bytes);
    b->code_k.form = b->code_v.form = RQ_KV_SAME;
    if (!coded) return;
    b->code_k = a->code_k;
    b->code_v = a->code_v;
    b->code_k.words = b->k;
    b->code_v.words = b->v;
    b->code_k.scales = page + l->k_bytes + l->v_bytes;
    b->code_v.scales = page + l->k_bytes + l->v_bytes + l->k_scale_bytes;
}

/* Adds page `index` in one form for the queries that read it in that form. */
static void attend_form(const rq_cpu_worker *w, const attend_args *a, rq_attend_block *b, uint32_t seq,
                        uint32_t head, const uint32_t *pos, uint32_t index, bool coded, uint8_t *lo,
                        uint8_t *hi)
{
    const uint8_t *page = page_at(a, seq, index, head, coded);
    if (!page) return;
    const rq_cache_group *g = a->pool->group;
    for (uint32_t i = 0; i < b->n_queries; i++)
        if (rq_kv_reads_exact(g, pos[i], index) != coded)
            visible(pos[i], g->window, index, &lo[i], &hi[i]);
        else
            lo[i] = hi[i] = 0;
    show_page(a, b, page, coded);
    w->vec->attend_page(b);
}

/* State of queries [first, first + n) of the step over pages [p0, p1), which lie in one split. */
static void attend_split(const rq_cpu_worker *w, const attend_args *a, uint32_t seq, uint32_t head,
                         uint32_t first, uint32_t n, uint32_t p0, uint32_t p1, attend_state *s)
{
    const uint32_t *pos = rq_cpu_token_pos(w) + first;
    const rq_cache_group *g = a->pool->group;
    uint8_t lo[RQ_TILE_TOKENS], hi[RQ_TILE_TOKENS];
    rq_attend_block b = {
        .n_queries = n,
        .group = a->group,
        .dim_k = a->dim_k,
        .dim_v = a->dim_v,
        .pad_v = a->pad_v,
        .type_k = g->type_k,
        .type_v = g->type_v,
        .softcap = a->softcap,
        .bias = a->mean ? (const float *)(w->own + a->own_bias) : NULL,
        .q = (const float *)(w->own + a->own_q),
        .q_codes = (const int16_t *)(w->own + a->own_q_codes),
        .q_scales = (const float *)(w->own + a->own_q_scales),
        .lo = lo,
        .hi = hi,
        .max = s->max,
        .sum = s->sum,
        .out = s->out,
        .panel = (float *)(w->own + a->own_panel),
        .scores = (float *)(w->own + a->own_scores),
        .codes = w->own + a->own_codes,
    };
    reset(s, n * a->group, a->pad_v);
    for (uint32_t p = p0; p < p1; p++) {
        /* fetched ahead: the next page as the first query will read it */
        bool next_coded = p + 1 < p1 && !rq_kv_reads_exact(g, pos[0], p + 1);
        b.next = p + 1 < p1 ? page_at(a, seq, p + 1, head, next_coded) : NULL;
        b.next_bytes = (uint32_t)(next_coded ? a->pool->coded_layout.head_bytes : a->pool->layout.head_bytes);
        bool any[2] = {false, false};
        for (uint32_t i = 0; i < n; i++) any[!rq_kv_reads_exact(g, pos[i], p)] = true;
        if (any[1] && a->coded_table) attend_form(w, a, &b, seq, head, pos, p, true, lo, hi);
        if (any[0]) attend_form(w, a, &b, seq, head, pos, p, false, lo, hi);
    }
}

/* Queries times the scale, [n * group][dim_k]; what coded pages need of them; their product with the mean. */
static void load_queries(const rq_cpu_worker *w, const attend_args *a, uint32_t head, uint32_t first,
                         uint32_t n)
{
    float *to = (float *)(w->own + a->own_q), *bias = (float *)(w->own + a->own_bias);
    float *scales = (float *)(w->own + a->own_q_scales);
    int16_t *codes = (int16_t *)(w->own + a->own_q_codes);
    const float *mean = a->mean ? a->mean + head / a->kv_per_mean * a->mean_stride : NULL;
    for (uint32_t t = first; t < first + n; t++)
        for (uint32_t g = 0; g < a->group; g++, to += a->dim_k) {
            w->vec->scale((const float *)(a->q.p + (head * a->group + g) * a->q.nb[1] + t * a->q.nb[2]),
                          a->scale, to, a->dim_k);
            if (rq_kv_bits(a->code_k.form)) {
                w->vec->attend_reduce(to, a->dim_k, &a->code_k, codes, scales);
                codes += a->dim_k;
                scales += a->k_groups;
            }
            if (mean) {
                double sum = 0;
                for (uint32_t i = 0; i < a->dim_k; i++) sum += (double)to[i] * (double)mean[i];
                *bias++ = (float)sum;
            }
        }
}

static float *partial_at(const rq_cpu_worker *w, const attend_args *a, uint32_t slot, uint32_t q_head)
{
    return (float *)(w->shared + a->partials) +
           ((uint64_t)slot * a->n_kv * a->group + q_head) * a->partial_floats;
}

static float *result_at(const attend_args *a, uint32_t token, uint32_t q_head)
{
    return a->y + token * a->y_stride + (uint64_t)q_head * a->dim_v;
}

static void run_block(const rq_cpu_worker *w, const attend_args *a, const rq_work *work, uint32_t head,
                      uint32_t block)
{
    uint32_t skip = block * a->block_queries;
    if (skip >= work->count) return;
    uint32_t first = work->first + skip, n = work->count - skip;
    if (n > a->block_queries) n = a->block_queries;
    const rq_run *run = (const rq_run *)rq_step_at(w->words, w->header->runs) + work->run;
    attend_state split = state_at(w, a->own_split, max_rows_of(a)),
                 total = state_at(w, a->own_total, max_rows_of(a));
    uint32_t rows = n * a->group;
    load_queries(w, a, head, first, n);
    if (work->n_splits > 1) {
        attend_split(w, a, run->seq, head, first, n, work->page_first, work->page_end, &split);
        for (uint32_t r = 0; r < rows; r++) {
            float *p = partial_at(w, a, work->partial + skip + r / a->group, head * a->group + r % a->group);
            p[0] = split.max[r];
            p[1] = split.sum[r];
            memcpy(p + 2, split.out + (size_t)r * a->pad_v, a->dim_v * sizeof *p);
        }
        return;
    }
    uint32_t last_pos = rq_cpu_token_pos(w)[first + n - 1], end = last_pos / RQ_PAGE_TOKENS + 1;
    if (end > work->page_end) end = work->page_end;
    attend_state *s = &split;
    for (uint32_t p = work->page_first, cut; p < end; p = cut) {
        cut = (p / RQ_SPLIT_PAGES + 1) * RQ_SPLIT_PAGES;
        if (cut > end) cut = end;
        if (p == work->page_first) {
            s = cut == end ? &split : &total; /* the first split becomes the total */
            attend_split(w, a, run->seq, head, first, n, p, cut, s);
            continue;
        }
        attend_split(w, a, run->seq, head, first, n, p, cut, &split);
        w->vec->attend_merge(total.max, total.sum, total.out, a->pad_v, split.max, split.sum, split.out,
                             a->pad_v, rows, a->dim_v);
    }
    for (uint32_t r = 0; r < rows; r++)
        w->vec->attend_finish(s->out + (size_t)r * a->pad_v, s->sum[r],
                              result_at(a, first + r / a->group, head * a->group + r % a->group), a->dim_v);
}

/* Items are taken from the last one: in a prompt that is the longest. */
static void run_attend(rq_cpu_worker *w, const void *args)
{
    const attend_args *a = args;
    const rq_work *work = rq_step_at(w->words, w->header->work[a->cache_group]);
    uint32_t n_work = w->header->n_work[a->cache_group], unit;
    while (rq_cpu_take(w, n_work * a->n_kv * a->max_blocks, &unit)) {
        uint32_t block = unit % a->max_blocks, rest = unit / a->max_blocks;
        run_block(w, a, &work[n_work - 1 - rest / a->n_kv], rest % a->n_kv, block);
    }
}

/* Partial results of a tile are merged where its first item stands. */
static void run_merge(rq_cpu_worker *w, const void *args)
{
    const attend_args *a = args;
    const rq_work *work = rq_step_at(w->words, w->header->work[a->cache_group]);
    uint32_t n_work = w->header->n_work[a->cache_group], unit;
    while (rq_cpu_take(w, n_work * a->n_kv, &unit)) {
        const rq_work *first = &work[unit / a->n_kv];
        uint32_t head = unit % a->n_kv;
        if (first->n_splits <= 1 || first->split != 0) continue;
        for (uint32_t i = 0; i < first->count; i++)
            for (uint32_t g = 0; g < a->group; g++) {
                uint32_t q_head = head * a->group + g;
                float *total = partial_at(w, a, first->partial + i, q_head);
                for (uint32_t s = 1; s < first->n_splits; s++) {
                    const float *p = partial_at(w, a, first[s].partial + i, q_head);
                    w->vec->attend_merge(total, total + 1, total + 2, 0, p, p + 1, p + 2, 0, 1, a->dim_v);
                }
                w->vec->attend_finish(total + 2, total[1], result_at(a, first->first + i, q_head), a->dim_v);
            }
    }
}

static uint64_t place(uint64_t *at, uint64_t floats)
{
    uint64_t here = *at;
    *at += (floats * sizeof(float) + 63) & ~63ull;
    return here;
}

void rq_cpu_attend(rq_cpu_builder *b, const rq_op *op)
{
    attend_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    const rq_bindings *bindings = rq_cpu_bindings(b);
    const rq_value *cache = &rq_cpu_tape(b)->values[op->in[0]];
    a->cache_group = cache->index;
    a->layer = cache->layer;
    a->pool = &bindings->pools[cache->index];
    const rq_cache_group *g = a->pool->group;
    a->q = rq_cpu_tensor(b, op->in[1]);
    rq_tensor y = rq_cpu_tensor(b, op->out[0]);
    a->y = (float *)(void *)y.p;
    a->y_stride = y.nb[1] / sizeof(float);
    a->table = a->pool->table->host;
    bool coded = rq_group_is_coded(g);
    if (coded) {
        a->coded_table = a->pool->coded_table->host;
        a->code_k = rq_attend_code_of(g->form_k, false);
        a->code_v = rq_attend_code_of(g->form_v, true);
        a->k_groups = rq_kv_groups(g->form_k, g->dim_k);
    }
    a->max_pages = bindings->caps->max_pages;
    a->n_seqs = bindings->caps->n_seqs;
    a->n_kv = g->n_heads;
    a->group = a->n_kv ? a->q.ne[1] / a->n_kv : 0;
    a->dim_k = g->dim_k;
    a->dim_v = g->dim_v;
    a->pad_v = (a->dim_v + RQ_PANEL - 1) / RQ_PANEL * RQ_PANEL;
    a->scale = op->p.attend.scale;
    a->softcap = op->p.attend.softcap;
    if (a->q.ne[0] != a->dim_k || a->group * a->n_kv != a->q.ne[1] || a->group == 0 ||
        y.ne[0] != a->dim_v * a->q.ne[1] || a->dim_k % 8 || a->dim_v % 8) {
        rq_cpu_fail(b, "queries do not have the shape of the cache group");
        return;
    }
    rq_tensor mean = rq_cpu_tensor(b, op->n_in > 2 ? op->in[2] : 0);
    if (mean.p && a->softcap > 0) {
        a->mean = (const float *)(const void *)mean.p;
        a->mean_stride = mean.ne[1] > 1 ? mean.nb[1] / sizeof(float) : 0;
        a->kv_per_mean = mean.ne[1] ? a->n_kv / mean.ne[1] : 0;
        if (a->kv_per_mean == 0 || a->n_kv % mean.ne[1]) {
            rq_cpu_fail(b, "attention has %u KV heads, the mean of its keys %u", a->n_kv, mean.ne[1]);
            return;
        }
    }
    uint32_t bucket = rq_cpu_tape(b)->bucket, most = bucket < RQ_TILE_TOKENS ? bucket : RQ_TILE_TOKENS;
    a->block_queries = BLOCK_ROWS / a->group;
    if (a->block_queries > most) a->block_queries = most;
    if (a->block_queries == 0) a->block_queries = 1;
    a->max_blocks = (most + a->block_queries - 1) / a->block_queries;

    uint64_t rows = max_rows_of(a), own = 0;
    a->own_q = place(&own, rows * a->dim_k);
    a->own_panel = place(&own, (uint64_t)RQ_PANEL * (a->dim_k > RQ_PAGE_TOKENS ? a->dim_k : RQ_PAGE_TOKENS));
    a->own_scores = place(&own, rows * RQ_PAGE_TOKENS);
    a->own_split = place(&own, rows * (2 + a->pad_v));
    a->own_total = place(&own, rows * (2 + a->pad_v));
    a->own_bias = place(&own, a->mean ? rows : 0);
    if (coded) {
        a->own_q_codes = place(&own, rows * a->dim_k / 2);
        a->own_q_scales = place(&own, rows * a->k_groups);
        a->own_codes = place(&own, rq_attend_code_scratch(rows) / sizeof(float) + 1);
    }
    rq_cpu_own(b, own);
    a->partial_floats = (a->dim_v + 2 + 15) / 16 * 16; /* no two results share a cache line */
    if (bucket <= 8)
        a->partials = rq_cpu_shared(b, (uint64_t)bindings->caps->max_partials * a->q.ne[1] *
                                           a->partial_floats * sizeof(float));
    rq_cpu_emit(b, run_attend, a, false);
    if (bucket <= 8) rq_cpu_emit(b, run_merge, a, true);
}
