/* experts.c - routing and by-expert products. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"
#include "backends/ops.h"

#include <math.h>
#include <string.h>

/* A logit that is not a number loses against every other one. */
static double logit(const rq_ref_view *x, uint32_t e, uint32_t t)
{
    float l = *rq_ref_f32(x, e, t, 0, 0);
    return isnan(l) ? -INFINITY : fmin((double)l, 3.4e38);
}

static bool chosen(const rq_ref_view *ids, uint32_t t, uint32_t n, uint32_t e)
{
    for (uint32_t s = 0; s < n; s++)
        if (*rq_ref_i32(ids, s, t) == (int32_t)e) return true;
    return false;
}

rq_status rq_ref_route(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), ids = rq_ref_out(r, 0), w = rq_ref_out(r, 1);
    uint32_t n_expert = x.v->ne[0], n_used = r->op->p.route.n_used;
    for (uint32_t t = 0; t < r->tape->bucket; t++) {
        double largest = -INFINITY, sum = 0, used = 0;
        for (uint32_t e = 0; e < n_expert; e++) largest = fmax(largest, logit(&x, e, t));
        for (uint32_t e = 0; e < n_expert; e++) sum += exp(logit(&x, e, t) - largest);
        for (uint32_t s = 0; s < n_used; s++) {
            int32_t best = -1;
            for (uint32_t e = 0; e < n_expert; e++)
                if (!chosen(&ids, t, s, e) && (best < 0 || logit(&x, e, t) > logit(&x, (uint32_t)best, t)))
                    best = (int32_t)e;
            *rq_ref_i32(&ids, s, t) = best;
            used += exp(logit(&x, (uint32_t)best, t) - largest) / sum;
        }
        for (uint32_t s = 0; s < n_used; s++) {
            double p = exp(logit(&x, (uint32_t)*rq_ref_i32(&ids, s, t), t) - largest) / sum;
            *rq_ref_f32(&w, s, t, 0, 0) = (float)(p / fmax(used, 0x1p-14) * (double)r->op->p.route.scale);
        }
    }
    return RQ_OK;
}

rq_status rq_ref_group(const rq_ref_run *r)
{
    rq_ref_view ids = rq_ref_in(r, 0), y = rq_ref_out(r, 0);
    uint32_t n_used = ids.v->ne[0], n_expert = r->op->p.group.n_expert;
    rq_group_layout l = rq_group_layout_of(n_expert, n_used, r->tape->bucket);
    int32_t *block = rq_ref_i32(&y, 0, 0);
    uint32_t n_pairs = 0, n_tiles = 0, n_active = 0;
    memset(block, 0, l.words * sizeof *block);
    for (uint32_t e = 0; e < n_expert; e++) {
        uint32_t start = n_pairs;
        block[l.starts + e] = (int32_t)start;
        for (uint32_t t = 0; t < r->tape->bucket; t++)
            for (uint32_t s = 0; s < n_used && rq_ref_run_of(r, t); s++)
                if (*rq_ref_i32(&ids, s, t) == (int32_t)e)
                    block[l.order + n_pairs++] = (int32_t)(t * n_used + s);
        uint32_t count = n_pairs - start;
        block[l.counts + e] = (int32_t)count;
        n_active += count > 0;
        for (uint32_t at = 0; at < count; at += RQ_GROUP_TILE, n_tiles++) {
            int32_t *tile = block + l.tiles + 3 * n_tiles;
            tile[0] = (int32_t)e;
            tile[1] = (int32_t)(start + at);
            tile[2] = (int32_t)(count - at < RQ_GROUP_TILE ? count - at : RQ_GROUP_TILE);
        }
    }
    block[l.starts + n_expert] = (int32_t)n_pairs;
    block[0] = (int32_t)n_pairs;
    block[1] = (int32_t)n_tiles;
    block[2] = (int32_t)n_active;
    return RQ_OK;
}

/* Goes through (token, slot) pairs; the group block is for those who want tiles. */
rq_status rq_ref_matmul_experts(const rq_ref_run *r)
{
    rq_ref_view w = rq_ref_in(r, 0), x = rq_ref_in(r, 1), ids = rq_ref_in(r, 2), y = rq_ref_out(r, 0);
    uint32_t n_in = w.v->ne[0], n_out = w.v->ne[1], n_expert = w.v->ne[2], n_used = ids.v->ne[0];
    float *row = rq_calloc(n_in, sizeof *row);
    if (!row) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a row of weights");
    for (uint32_t e = 0; e < n_expert; e++)
        for (uint32_t o = 0; o < n_out; o++) {
            rq_ref_decode(&w, o, e, row);
            for (uint32_t t = 0; t < r->tape->bucket; t++)
                for (uint32_t s = 0; s < n_used && rq_ref_run_of(r, t); s++) {
                    if (*rq_ref_i32(&ids, s, t) != (int32_t)e) continue;
                    double sum = 0;
                    for (uint32_t i = 0; i < n_in; i++)
                        sum += (double)row[i] * *rq_ref_f32(&x, i, x.v->ne[1] == 1 ? 0 : s, t, 0);
                    *rq_ref_f32(&y, o, s, t, 0) = (float)sum;
                }
        }
    rq_free(row);
    return RQ_OK;
}

rq_status rq_ref_combine(const rq_ref_run *r)
{
    rq_ref_view y = rq_ref_in(r, 0), w = rq_ref_in(r, 1), out = rq_ref_out(r, 0);
    for (uint32_t t = 0; t < r->tape->bucket; t++)
        for (uint32_t i = 0; i < y.v->ne[0]; i++) {
            double sum = 0;
            for (uint32_t s = 0; s < y.v->ne[1]; s++)
                sum += (double)*rq_ref_f32(&w, s, t, 0, 0) * *rq_ref_f32(&y, i, s, t, 0);
            *rq_ref_f32(&out, i, t, 0, 0) = (float)sum;
        }
    return RQ_OK;
}
