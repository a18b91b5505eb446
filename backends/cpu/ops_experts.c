/* ops_experts.c - mixtures of experts: routing, grouping by expert, products by expert, weighted sum.
 *
 * Buckets up to 8 go through the (token, slot) pairs one by one; wider ones through the experts, each with all
 * its columns gathered, so that its weights are read and decoded once for up to RQ_MM_COLS columns. A column's
 * bits are the same either way (matmul.h). */
#include "backends/cpu/program.h"

#include <math.h>
#include <string.h>

/* ---- route ----------------------------------------------------------------------------------------------- */

typedef struct route_args {
    rq_tensor logits, ids, weights;
    uint32_t n_used;
    float scale;
} route_args;

/* Probabilities are monotone in the logits, so the largest logits are picked; a NaN counts as the smallest. */
static void pick(const float *logits, uint32_t n, uint32_t n_used, int32_t *ids)
{
    for (uint32_t s = 0; s < n_used; s++) {
        int32_t best = -1;
        for (uint32_t e = 0; e < n; e++) {
            float x = isnan(logits[e]) ? -INFINITY : logits[e];
            if (best >= 0) {
                float y = isnan(logits[best]) ? -INFINITY : logits[best];
                if (!(x > y)) continue;
            }
            bool taken = false;
            for (uint32_t i = 0; i < s; i++) taken = taken || ids[i] == (int32_t)e;
            if (!taken) best = (int32_t)e;
        }
        ids[s] = best;
    }
}

static void run_route(rq_cpu_worker *w, const void *args)
{
    const route_args *a = args;
    uint32_t n = a->logits.ne[0], t;
    float *p = (float *)w->own;
    while (rq_cpu_take(w, w->active < a->logits.ne[1] ? w->active : a->logits.ne[1], &t)) {
        const float *x = (const float *)(a->logits.p + t * a->logits.nb[1]);
        int32_t *ids = (int32_t *)(a->ids.p + t * a->ids.nb[1]);
        float *weights = (float *)(a->weights.p + t * a->weights.nb[1]), max;
        pick(x, n, a->n_used, ids);
        w->vec->argmax(x, n, &max);
        for (uint32_t e = 0; e < n; e++) p[e] = x[e] - max;
        w->vec->exp(p, p, n);
        double sum = 0, used = 0;
        for (uint32_t e = 0; e < n; e++) sum += (double)p[e];
        for (uint32_t s = 0; s < a->n_used; s++) used += (double)p[ids[s]] / sum;
        if (used < 0x1p-14) used = 0x1p-14;
        for (uint32_t s = 0; s < a->n_used; s++)
            weights[s] = (float)((double)p[ids[s]] / sum / used * (double)a->scale);
    }
}

void rq_cpu_route(rq_cpu_builder *b, const rq_op *op)
{
    route_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->logits = rq_cpu_tensor(b, op->in[0]);
    a->ids = rq_cpu_tensor(b, op->out[0]);
    a->weights = rq_cpu_tensor(b, op->out[1]);
    a->n_used = op->p.route.n_used;
    a->scale = op->p.route.scale;
    if (a->n_used > a->logits.ne[0]) rq_cpu_fail(b, "it picks more experts than there are");
    rq_cpu_own(b, a->logits.ne[0] * sizeof(float));
    rq_cpu_emit(b, run_route, a, false);
}

/* ---- group ----------------------------------------------------------------------------------------------- */

typedef struct group_args {
    rq_tensor ids;
    int32_t *block;
    uint32_t n_expert;
    rq_group_layout layout;
} group_args;

/* A counting sort by one worker: some ten microseconds for the widest bucket. */
static void run_group(rq_cpu_worker *w, const void *args)
{
    const group_args *a = args;
    uint32_t unit;
    if (!rq_cpu_take(w, 1, &unit)) return;
    const rq_group_layout *l = &a->layout;
    uint32_t n_used = a->ids.ne[0], n_tokens = w->active < a->ids.ne[1] ? w->active : a->ids.ne[1];
    int32_t *counts = a->block + l->counts, *starts = a->block + l->starts, *order = a->block + l->order,
            *tiles = a->block + l->tiles;
    memset(counts, 0, a->n_expert * sizeof *counts);
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t s = 0; s < n_used; s++) {
            int32_t e = ((const int32_t *)(a->ids.p + t * a->ids.nb[1]))[s];
            if (e >= 0 && (uint32_t)e < a->n_expert) counts[e]++;
        }
    int32_t at = 0, n_tiles = 0, n_active = 0;
    for (uint32_t e = 0; e < a->n_expert; e++) {
        starts[e] = at;
        n_active += counts[e] > 0;
        for (int32_t i = 0; i < counts[e]; i += RQ_GROUP_TILE) {
            int32_t rows = counts[e] - i < RQ_GROUP_TILE ? counts[e] - i : RQ_GROUP_TILE;
            tiles[3 * n_tiles] = (int32_t)e;
            tiles[3 * n_tiles + 1] = at + i;
            tiles[3 * n_tiles + 2] = rows;
            n_tiles++;
        }
        at += counts[e];
    }
    starts[a->n_expert] = at;
    memset(counts, 0, a->n_expert * sizeof *counts); /* now: places used, counted up to the same numbers */
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t s = 0; s < n_used; s++) {
            int32_t e = ((const int32_t *)(a->ids.p + t * a->ids.nb[1]))[s];
            if (e >= 0 && (uint32_t)e < a->n_expert)
                order[starts[e] + counts[e]++] = (int32_t)(t * n_used + s);
        }
    a->block[0] = at;
    a->block[1] = n_tiles;
    a->block[2] = n_active;
    a->block[3] = 0;
}

void rq_cpu_group(rq_cpu_builder *b, const rq_op *op)
{
    group_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->ids = rq_cpu_tensor(b, op->in[0]);
    rq_tensor block = rq_cpu_tensor(b, op->out[0]);
    a->block = (int32_t *)(void *)block.p;
    a->n_expert = op->p.group.n_expert;
    a->layout = rq_group_layout_of(a->n_expert, a->ids.ne[0], a->ids.ne[1]);
    if (a->layout.words > block.ne[0] * block.ne[1]) rq_cpu_fail(b, "its work block is too small");
    rq_cpu_emit(b, run_group, a, false);
}

/* ---- products by expert ---------------------------------------------------------------------------------- */

enum { UNIT_BYTES = 128 * 1024, ROW_MULTIPLE = 16, PAIR_BUCKET = 8 };

typedef struct experts_args {
    rq_tensor w, x, ids;
    const int32_t *block;
    rq_group_layout layout;
    float *y;        /* [n_out, k, T] */
    uint64_t y_pair; /* floats between pairs: n_out */
    uint32_t n_in, n_out, n_expert, n_used, n_tokens;
    uint32_t rows_per_token; /* activation rows of a token: 1 or k */
    bool in_place, own;
    uint64_t acts, act_stride; /* activation rows [T][rows_per_token] */
    uint64_t own_mm;
    uint64_t act_rows, y_rows; /* pointers of all pairs in the order of the group block, in shared scratch */
    uint32_t unit_rows, n_units; /* of one expert */
} experts_args;

static uint32_t tokens_of(const rq_cpu_worker *w, const experts_args *a)
{
    return w->active < a->n_tokens ? w->active : a->n_tokens;
}

/* Activation row of pair t * k + s. */
static const uint8_t *act_row(const rq_cpu_worker *w, const experts_args *a, uint32_t pair)
{
    uint32_t t = pair / a->n_used, s = a->rows_per_token == 1 ? 0 : pair % a->n_used;
    if (a->in_place) return a->x.p + s * a->x.nb[1] + t * a->x.nb[2];
    return (a->own ? w->own : w->shared) + a->acts + (t * a->rows_per_token + s) * a->act_stride;
}

static void convert_row(const rq_cpu_worker *w, const experts_args *a, uint32_t row)
{
    uint32_t t = row / a->rows_per_token, s = row % a->rows_per_token;
    rq_matmul_quantize_act(w->isa, a->w.type, (const float *)(a->x.p + s * a->x.nb[1] + t * a->x.nb[2]),
                           (a->own ? w->own : w->shared) + a->acts + row * a->act_stride, a->n_in);
}

static void run_convert(rq_cpu_worker *w, const void *args)
{
    const experts_args *a = args;
    uint32_t row, n_rows = tokens_of(w, a) * a->rows_per_token;
    while (rq_cpu_take(w, n_rows, &row)) convert_row(w, a, row);
}

/* Pointers of the columns of all experts, once for all units. */
static void run_gather(rq_cpu_worker *w, const void *args)
{
    const experts_args *a = args;
    const int32_t *order = a->block + a->layout.order;
    const void **act_rows = (const void **)(w->shared + a->act_rows);
    float **y_rows = (float **)(w->shared + a->y_rows);
    uint32_t unit, most = tokens_of(w, a) * a->n_used;
    while (rq_cpu_take(w, (most + 1023) / 1024, &unit)) {
        uint32_t n = (uint32_t)a->block[0];
        for (uint32_t i = unit * 1024; i < n && i < (unit + 1) * 1024; i++) {
            act_rows[i] = act_row(w, a, (uint32_t)order[i]);
            y_rows[i] = a->y + (uint64_t)order[i] * a->y_pair;
        }
    }
}

static void unit_range(const experts_args *a, uint32_t unit, uint32_t *r0, uint32_t *r1)
{
    *r0 = unit * a->unit_rows;
    *r1 = *r0 + a->unit_rows < a->n_out ? *r0 + a->unit_rows : a->n_out;
}

static void run_pairs(rq_cpu_worker *w, const void *args)
{
    const experts_args *a = args;
    uint32_t n_tokens = tokens_of(w, a), unit, r0, r1;
    bool converted = !a->own;
    while (rq_cpu_take(w, n_tokens * a->n_used * a->n_units, &unit)) {
        if (!converted) {
            for (uint32_t r = 0; r < n_tokens * a->rows_per_token; r++) convert_row(w, a, r);
            converted = true;
        }
        uint32_t pair = unit / a->n_units, t = pair / a->n_used, s = pair % a->n_used;
        int32_t e = ((const int32_t *)(a->ids.p + t * a->ids.nb[1]))[s];
        if (e < 0 || (uint32_t)e >= a->n_expert) continue;
        unit_range(a, unit % a->n_units, &r0, &r1);
        rq_matmul_rows(w->isa, a->w.type, a->w.p + (uint32_t)e * a->w.nb[2] + r0 * a->w.nb[1], a->w.nb[1],
                       a->n_in, 0, r1 - r0, act_row(w, a, pair), 0, 1, a->y + pair * a->y_pair + r0, 0,
                       w->own + a->own_mm);
    }
}

static void run_experts(rq_cpu_worker *w, const void *args)
{
    const experts_args *a = args;
    const int32_t *starts = a->block + a->layout.starts, *counts = a->block + a->layout.counts;
    const void *const *act_rows = (const void *const *)(w->shared + a->act_rows);
    float *const *y_rows = (float *const *)(w->shared + a->y_rows);
    uint32_t unit, r0, r1;
    while (rq_cpu_take(w, a->n_expert * a->n_units, &unit)) {
        uint32_t e = unit / a->n_units;
        if (counts[e] <= 0) continue;
        unit_range(a, unit % a->n_units, &r0, &r1);
        rq_matmul_gather(w->isa, a->w.type, a->w.p + e * a->w.nb[2], a->w.nb[1], a->n_in, r0, r1,
                         act_rows + starts[e], y_rows + starts[e], counts[e], w->own + a->own_mm);
    }
}

void rq_cpu_matmul_experts(rq_cpu_builder *b, const rq_op *op)
{
    experts_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->w = rq_cpu_tensor(b, op->in[0]);
    a->x = rq_cpu_tensor(b, op->in[1]);
    a->ids = rq_cpu_tensor(b, op->in[2]);
    rq_tensor block = rq_cpu_tensor(b, op->in[3]), y = rq_cpu_tensor(b, op->out[0]);
    a->block = (const int32_t *)(void *)block.p;
    a->y = (float *)(void *)y.p;
    a->n_in = a->w.ne[0];
    a->n_out = a->w.ne[1];
    a->n_expert = a->w.ne[2];
    a->n_used = a->ids.ne[0];
    a->n_tokens = a->ids.ne[1];
    a->rows_per_token = a->x.ne[1];
    a->y_pair = y.nb[1] / sizeof(float);
    a->layout = rq_group_layout_of(a->n_expert, a->n_used, a->n_tokens);
    size_t bytes = rq_matmul_act_bytes(a->w.type, a->n_in);
    if (bytes == 0 || a->x.ne[0] != a->n_in || (a->rows_per_token != 1 && a->rows_per_token != a->n_used)) {
        rq_cpu_fail(b, "its operands have an unsuitable type or shape");
        return;
    }
    bool pairs = a->n_tokens <= PAIR_BUCKET || !a->block;
    uint32_t n_rows = a->n_tokens * a->rows_per_token;
    uint64_t own = 0;
    a->in_place = rq_matmul_act_kind(a->w.type) == RQ_ACT_F32;
    a->own = pairs && n_rows == 1;
    a->act_stride = (bytes + 63) & ~(uint64_t)63;
    if (!a->in_place) {
        if (a->own)
            own += a->act_stride;
        else
            a->acts = rq_cpu_shared(b, a->act_stride * n_rows);
    }
    a->own_mm = own;
    rq_cpu_own(b, own + rq_matmul_scratch_bytes());
    uint64_t unit = UNIT_BYTES / (a->w.nb[1] ? a->w.nb[1] : 1);
    unit -= unit % ROW_MULTIPLE;
    a->unit_rows = unit < ROW_MULTIPLE ? ROW_MULTIPLE : unit < a->n_out ? (uint32_t)unit : a->n_out;
    a->n_units = (a->n_out + a->unit_rows - 1) / a->unit_rows;
    bool barrier = false;
    if (!a->in_place && !a->own) {
        rq_cpu_emit(b, run_convert, a, false);
        barrier = true;
    }
    if (pairs) {
        rq_cpu_emit(b, run_pairs, a, barrier);
        return;
    }
    uint64_t pointers = (uint64_t)a->n_tokens * a->n_used * sizeof(void *);
    a->act_rows = rq_cpu_shared(b, pointers);
    a->y_rows = rq_cpu_shared(b, pointers);
    rq_cpu_emit(b, run_gather, a, false);
    rq_cpu_emit(b, run_experts, a, true);
}

/* ---- combine --------------------------------------------------------------------------------------------- */

typedef struct combine_args {
    rq_tensor y, weights, out;
} combine_args;

static void run_combine(rq_cpu_worker *w, const void *args)
{
    const combine_args *a = args;
    uint32_t t;
    while (rq_cpu_take(w, w->active < a->out.ne[1] ? w->active : a->out.ne[1], &t)) {
        float *out = (float *)(a->out.p + t * a->out.nb[1]);
        for (uint32_t s = 0; s < a->weights.ne[0]; s++) {
            const float *y = (const float *)(a->y.p + s * a->y.nb[1] + t * a->y.nb[2]);
            float weight = ((const float *)(a->weights.p + t * a->weights.nb[1]))[s];
            if (s == 0)
                w->vec->scale(y, weight, out, a->out.ne[0]);
            else
                w->vec->weigh_add(y, weight, out, a->out.ne[0]);
        }
    }
}

void rq_cpu_combine(rq_cpu_builder *b, const rq_op *op)
{
    combine_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->y = rq_cpu_tensor(b, op->in[0]);
    a->weights = rq_cpu_tensor(b, op->in[1]);
    a->out = rq_cpu_tensor(b, op->out[0]);
    rq_cpu_emit(b, run_combine, a, false);
}
