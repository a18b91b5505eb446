#include "backends/ops.h"

#include <math.h>
#include <stddef.h>

enum { STEP = RQ_OP_READS_STEP, SAMPLED = RQ_OP_READS_SAMPLED };

static const rq_op_info catalogue[RQ_OP_COUNT] = {
    /* kind                      name                min in  out   optional  written  flags */
    [RQ_OP_NONE] = {"none", 0, 0, 0, 0, 0, 0, 0},
    [RQ_OP_EMBED] = {"embed", 1, 1, 1, 1, 0, 0, STEP | SAMPLED},
    [RQ_OP_RMS_NORM] = {"rms_norm", 2, 2, 1, 1, 1 << 1, 0, 0},
    [RQ_OP_L2_NORM] = {"l2_norm", 1, 1, 1, 1, 0, 0, 0},
    [RQ_OP_MATMUL] = {"matmul", 2, 2, 1, 1, 0, 0, 0},
    [RQ_OP_ADD] = {"add", 2, 2, 1, 1, 0, 0, 0},
    [RQ_OP_MUL] = {"mul", 2, 2, 1, 1, 0, 0, 0},
    [RQ_OP_SCALE] = {"scale", 1, 1, 1, 1, 0, 0, 0},
    [RQ_OP_SOFTCAP] = {"softcap", 1, 1, 1, 1, 0, 0, 0},
    [RQ_OP_GLU] = {"glu", 2, 2, 1, 1, 0, 0, 0},
    [RQ_OP_ROPE] = {"rope", 2, 2, 1, 1, 0, 0, STEP},
    [RQ_OP_ROTATE] = {"rotate", 4, 4, 1, 1, 1 << 1 | 1 << 2 | 1 << 3, 0, 0},
    [RQ_OP_KV_WRITE] = {"kv_write", 3, 3, 0, 0, 0, 1 << 0, STEP},
    [RQ_OP_KV_ENCODE] = {"kv_encode", 1, 1, 0, 0, 0, 1 << 0, STEP},
    [RQ_OP_ATTEND] = {"attend", 3, 3, 1, 1, 1 << 2, 0, STEP},
    [RQ_OP_SHORT_CONV] = {"short_conv", 3, 3, 1, 1, 0, 1 << 0, STEP},
    [RQ_OP_DELTA_RULE] = {"delta_rule", 8, 8, 1, 1, 0, 1 << 0, STEP},
    [RQ_OP_ROUTE] = {"route", 1, 1, 2, 2, 0, 0, 0},
    [RQ_OP_GROUP] = {"group", 1, 1, 1, 1, 0, 0, STEP},
    [RQ_OP_MATMUL_EXPERTS] = {"matmul_experts", 4, 4, 1, 1, 1 << 3, 0, STEP},
    [RQ_OP_COMBINE] = {"combine", 2, 2, 1, 1, 0, 0, 0},
    [RQ_OP_COPY] = {"copy", 2, 2, 0, 0, 0, 1 << 1, 0},
    [RQ_OP_SELECT_ROWS] = {"select_rows", 1, 1, 1, 1, 0, 0, STEP},
    [RQ_OP_ARGMAX] = {"argmax", 2, 2, 0, 0, 0, 1 << 1, STEP},
    [RQ_OP_PRODUCTS] = {"products", 10, 10, 1, 4, 0x3fa, 0, 0},
    [RQ_OP_GLU_PRODUCTS] = {"glu_products", 5, 5, 1, 1, 1 << 1 | 1 << 4, 0, STEP},
    [RQ_OP_QKV_WRITE] = {"qkv_write", 14, 14, 1, 1, 0x3fb0, 1 << 6, STEP},
    [RQ_OP_ATTEND_ROTATE] = {"attend_rotate", 6, 6, 1, 1, 0x3c, 0, STEP},
    [RQ_OP_COMBINE_ADD] = {"combine_add", 5, 5, 1, 1, 1 << 3 | 1 << 4, 0, 0},
    [RQ_OP_NORM_JOIN] = {"norm_join", 3, 3, 1, 1, 1 << 1, 0, 0},
};

const rq_op_info *rq_op_get(rq_op_kind kind)
{
    return &catalogue[(uint32_t)kind < RQ_OP_COUNT ? kind : RQ_OP_NONE];
}

/* ---- bytes touched
 * ----------------------------------------------------------------------------------------- */

uint64_t rq_value_span(const rq_value *v)
{
    if (v->space == RQ_SPACE_CACHE || v->space == RQ_SPACE_STATE || v->space == RQ_SPACE_NONE) return 0;
    uint64_t bytes = rq_row_bytes(v->type, v->ne[0]);
    for (int i = 1; i < 4; i++) bytes += (v->ne[i] - 1) * v->stride[i];
    return bytes;
}

static rq_range range_of(const rq_value *v, const uint64_t *arena_offset, bool write)
{
    rq_range r = {.space = v->space, .index = v->index, .layer = v->layer, .write = write};
    if (v->space == RQ_SPACE_CACHE || v->space == RQ_SPACE_STATE) {
        r.end = UINT64_MAX;
        return r;
    }
    r.begin = v->offset;
    if (v->space == RQ_SPACE_ACT && arena_offset) {
        r.begin += arena_offset[v->index];
        r.index = 0;
    }
    r.end = r.begin + rq_value_span(v);
    return r;
}

uint32_t rq_op_ranges(const rq_tape *tape, const rq_op *op, const uint64_t *arena_offset, rq_range *out)
{
    const rq_op_info *info = rq_op_get(op->kind);
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_in; i++) {
        if (!op->in[i]) continue;
        const rq_value *v = &tape->values[op->in[i]];
        out[n++] = range_of(v, arena_offset, info->written >> i & 1);
        if (v->space != RQ_SPACE_CACHE || tape->bucket <= RQ_NARROW_BUCKET) continue;
        out[n] = out[n - 1];
        out[n].layer = RQ_SCRATCH_LAYER;
        out[n++].write = op->kind != RQ_OP_ATTEND && op->kind != RQ_OP_KV_ENCODE;
    }
    for (uint32_t i = 0; i < op->n_out; i++)
        if (op->out[i]) out[n++] = range_of(&tape->values[op->out[i]], arena_offset, true);
    if (info->flags & RQ_OP_READS_STEP) out[n++] = (rq_range){.space = RQ_SPACE_STEP, .end = UINT64_MAX};
    if (info->flags & RQ_OP_READS_SAMPLED)
        out[n++] = (rq_range){.space = RQ_SPACE_PERSIST, .index = RQ_PERSIST_SAMPLED, .end = UINT64_MAX};
    return n;
}

bool rq_ranges_conflict(const rq_range *a, uint32_t n_a, const rq_range *b, uint32_t n_b)
{
    for (uint32_t i = 0; i < n_a; i++)
        for (uint32_t j = 0; j < n_b; j++) {
            if (!a[i].write && !b[j].write) continue;
            if (a[i].space != b[j].space || a[i].index != b[j].index || a[i].layer != b[j].layer) continue;
            if (a[i].begin < b[j].end && b[j].begin < a[i].end) return true;
        }
    return false;
}

/* ---- tolerance
 * --------------------------------------------------------------------------------------------- */

/* Sources. u = 2^-24 is the unit roundoff of f32; a value rounded to a format of unit roundoff v has a mean
 * square relative error of at most v^2 / 3.
 *
 * f32 sums: recursive sums of n independent terms err by about n u^2 / 6 of the result's mean square (Higham
 * 2002, section 4.2, statistical model): 1e-11 at n = 16384; ten times that.
 *
 * f16, bf16: activations may be rounded to the weight's type (matrix units take both operands alike):
 * v = 2^-11: 8e-8, v = 2^-9 (round to nearest of 8 bits): 1.3e-6; rounded up.
 *
 * Blocks: activations may be quantised to int8 with one scale per block of up to 256: step amax / 127, mean
 * square error amax^2 / (12 * 127^2); for normal data E[amax^2] <= 8.2 at 256 elements: 4.2e-5; rounded up to
 * 1e-4. llama.cpp's own bar for these is 5e-4 (test-backend-ops.cpp).
 *
 * Attention: q and the probabilities may be rounded to f16 where the cache is f16: 8e-8 each, and the score's
 * error enters through the exponential; 1e-6. bf16: the cached values are exact in f32, so the same. f32: sums
 * and one exponential.
 *
 * Coded pages: queries, and weights times scales, may be reduced to integers of b bits and a sign, with one scale
 * for a head or a part of it and for a page of 64 tokens. By the above a query's rounding gives each score an error
 * of 8.2 / (12 * 4^b) of its mean square; with scores of unit variance that is the relative error of every weight
 * and of the output (those of different tokens are independent). Weights err by 64 times w_max^2 / (12 * 4^b) over
 * a sum of squares of at least w_max^2. With b = 15 that is 6e-9 together, which leaves the error of the exact
 * pages beside: 1e-6. (With b = 7 it would be 4e-4, more than a wrong gain makes.)
 *
 * Recurrences: each token adds the roundings of two sums over dk elements and of the state's update to what it
 * inherits, which the next tokens do not enlarge (|I - beta k k^T| <= 1 for keys of length 1, decay <= 1): over the
 * 2048 tokens of a step at most 2048 (dk / 6 + 1) u^2 = 1.6e-10 at dk = 128; six times that.
 *
 * Pointwise: + - * of f32 in double and rounded once more have the bits of f32 arithmetic (Figueroa 1995), hence
 * 0; elementary functions may err by 8 units in the last place. */
static const double SUM_F32 = 1e-10, SUM_F16 = 1e-7, SUM_BF16 = 4e-6, SUM_BLOCK = 1e-4;

static double matmul_tolerance(rq_type type)
{
    if (type == RQ_TYPE_F32) return SUM_F32;
    if (type == RQ_TYPE_F16) return SUM_F16;
    if (type == RQ_TYPE_BF16) return SUM_BF16;
    return SUM_BLOCK;
}

double rq_op_tolerance(rq_op_kind kind, rq_type type)
{
    switch (kind) {
    case RQ_OP_EMBED:
    case RQ_OP_KV_ENCODE:
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_SCALE:
    case RQ_OP_KV_WRITE:
    case RQ_OP_GROUP:
    case RQ_OP_COPY:
    case RQ_OP_SELECT_ROWS:
    case RQ_OP_ARGMAX:
        return 0;
    case RQ_OP_RMS_NORM:
    case RQ_OP_L2_NORM:
        return SUM_F32;
    case RQ_OP_DELTA_RULE:
        return 1e-9;
    case RQ_OP_GLU:
    case RQ_OP_SOFTCAP:
    case RQ_OP_SHORT_CONV: /* a sum of up to 8 terms, then silu */
    case RQ_OP_ROPE:
    case RQ_OP_ROUTE:
        return 1e-11; /* relative error of 8 u at most of three factors, squared: 2e-12 */
    case RQ_OP_ROTATE:
        return 1e-11; /* as f32 sums, n <= 512 */
    case RQ_OP_COMBINE:
        return 1e-12;       /* a short sum: k <= 64 terms, k u^2 */
    case RQ_OP_COMBINE_ADD: /* a sigmoid in it */
        return 1e-11;
    case RQ_OP_NORM_JOIN:
        return SUM_F32;
    case RQ_OP_MATMUL:
    case RQ_OP_MATMUL_EXPERTS:
        return matmul_tolerance(type);
    case RQ_OP_PRODUCTS:
        return 2 * matmul_tolerance(type); /* the norm's error comes on top */
    case RQ_OP_GLU_PRODUCTS:
        return 4 * matmul_tolerance(type); /* two products multiplied, |act'| <= 1.13 */
    case RQ_OP_ATTEND:
    case RQ_OP_ATTEND_ROTATE: /* what follows is exact beside it */
        return type == RQ_TYPE_F32 ? 1e-9 : 1e-6;
    case RQ_OP_QKV_WRITE: /* q; a cached element next to a tie may round the other way: v^2 / 3 */
        return matmul_tolerance(type);
    case RQ_OP_NONE:
    case RQ_OP_COUNT:
        break;
    }
    return 0;
}

/* The bars of the project's issue 7. That they can be met: a sum of up to dk + chunk terms errs by their square root times
 * the unit of rounding, which the state inherits without enlarging it: 16 * 6e-8 in F32; operands of bf16 err by 2^-9,
 * each in two parts by 2^-17. */
double rq_delta_tolerance(rq_type products)
{
    return products == RQ_TYPE_F32 ? 1e-4 : 2e-3;
}

/* ---- cost ------------------------------------------------------------------------------------------------ */

static double elements(const rq_value *v)
{
    return (double)v->ne[0] * v->ne[1] * v->ne[2] * v->ne[3];
}

static double bytes_of(const rq_value *v)
{
    return (double)rq_row_bytes(v->type, v->ne[0]) * v->ne[1] * v->ne[2] * v->ne[3];
}

static double type_bytes(rq_type type)
{
    return type == RQ_TYPE_F32 ? 4 : 2;
}

/* Flops of a primitive or fused operation; a multiply and an add count as two. */
static double flops_of(const rq_tape *tape, const rq_op *op, uint32_t kv_len, double head_dims)
{
    /* Reference 0 is a value without elements. */
    const rq_value *in0 = &tape->values[op->in[0]], *out = &tape->values[op->out[0]];
    switch (op->kind) {
    case RQ_OP_MATMUL:
    case RQ_OP_MATMUL_EXPERTS:
        return 2.0 * in0->ne[0] * elements(out);
    case RQ_OP_RMS_NORM:
    case RQ_OP_L2_NORM:
        return 4.0 * elements(out);
    case RQ_OP_SHORT_CONV:
        return (2.0 * tape->values[op->in[2]].ne[1] + 6) * elements(out);
    case RQ_OP_DELTA_RULE: /* read, update, read again */
        return 7.0 * tape->values[op->in[2]].ne[0] * elements(out);
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_SCALE:
        return elements(out);
    case RQ_OP_GLU:
    case RQ_OP_SOFTCAP:
        return 8.0 * elements(out);
    case RQ_OP_ROPE:
        return 3.0 * elements(out);
    case RQ_OP_ROTATE: {
        double sum = 2.0 * in0->ne[0];
        for (uint32_t i = 0; i < op->p.rotate.n_blocks; i++) {
            const rq_rotation_block *b = &op->p.rotate.blocks[i];
            sum += (double)b->count * b->size * (b->hadamard ? 2 + log2(b->size) : 2.0 * b->size);
        }
        return sum * elements(out) / out->ne[0];
    }
    case RQ_OP_ATTEND:
        return 2.0 * head_dims * kv_len;
    case RQ_OP_ROUTE:
        return 8.0 * elements(in0);
    case RQ_OP_COMBINE:
        return 2.0 * elements(in0);
    case RQ_OP_ARGMAX:
        return elements(in0);
    default:
        break;
    }
    double sum = 0;
    if (op->kind >= RQ_OP_FUSED_FIRST)
        for (uint32_t i = 0; i < op->prim_count; i++)
            sum += flops_of(tape, &tape->prims[op->prim_first + i], kv_len, head_dims);
    return sum;
}

/* Bytes of the state of one sequence. */
static double state_bytes(const rq_tape *tape, const rq_op *op)
{
    if (op->kind == RQ_OP_SHORT_CONV) {
        const rq_value *w = &tape->values[op->in[2]];
        return 4.0 * w->ne[0] * (w->ne[1] - 1);
    }
    const rq_value *k = &tape->values[op->in[2]], *v = &tape->values[op->in[3]];
    return 4.0 * k->ne[0] * v->ne[0] * v->ne[1];
}

static bool attends(const rq_op *op)
{
    return op->kind == RQ_OP_ATTEND || op->kind == RQ_OP_ATTEND_ROTATE;
}

/* The ids of a product by expert; 0 of other operations. */
static rq_ref by_expert(const rq_op *op)
{
    return op->kind == RQ_OP_MATMUL_EXPERTS ? op->in[2] : op->kind == RQ_OP_GLU_PRODUCTS ? op->in[4] : 0;
}

/* Bytes of the cache that an operation touches with T tokens that each see `kv_len` positions. */
static double cache_bytes(const rq_tape *tape, const rq_op *op, const rq_cache_group *g, uint32_t kv_len)
{
    double row = g->n_heads * (g->dim_k * type_bytes(g->type_k) + g->dim_v * type_bytes(g->type_v));
    if (!attends(op)) return row * tape->bucket;
    double coded_row = (double)rq_coded_layout_of(g).layer_bytes / RQ_PAGE_TOKENS;
    uint32_t seen = g->window && g->window < kv_len ? g->window : kv_len, coded = 0;
    if (rq_group_is_coded(g) && kv_len)
        coded = (rq_kv_boundary(g, kv_len - 1) - g->sink_pages) * RQ_PAGE_TOKENS;
    if (coded > seen) coded = seen; /* sinks beyond the end */
    /* tokens of one sequence share what they read: once for up to RQ_TILE_TOKENS queries */
    uint32_t tiles = (tape->bucket + RQ_TILE_TOKENS - 1) / RQ_TILE_TOKENS;
    return (row * (seen - coded) + coded_row * coded) * tiles;
}

rq_op_cost rq_op_cost_of(const rq_tape *tape, const rq_op *op, const rq_cache_group *groups, uint32_t kv_len)
{
    const rq_op_info *info = rq_op_get(op->kind);
    rq_op_cost cost = {0};
    double head_dims = 0;
    for (uint32_t i = 0; i < op->n_in; i++) {
        if (!op->in[i]) continue;
        const rq_value *v = &tape->values[op->in[i]];
        double bytes = v->space == RQ_SPACE_CACHE || v->space == RQ_SPACE_STATE ? 0 : bytes_of(v);
        if (op->kind == RQ_OP_EMBED)
            bytes = (double)rq_row_bytes(v->type, v->ne[0]) * tape->bucket;
        else if (op->kind == RQ_OP_SELECT_ROWS)
            bytes = (double)v->ne[0] * 4 * tape->bucket;
        else if (v->space == RQ_SPACE_WEIGHT && by_expert(op)) {
            /* tokens choose k of E experts: an expert is missed by all with (1 - k/E)^T */
            double e = v->ne[2], k = tape->values[by_expert(op)].ne[0];
            if (e < k) e = k; /* a norm's weight */
            bytes *= 1 - pow(1 - k / e, tape->bucket);
        } else if (op->kind == RQ_OP_COPY && i == 1)
            bytes = bytes_of(&tape->values[op->in[0]]);
        else if (op->kind == RQ_OP_ARGMAX && i == 1)
            bytes = 4.0 * tape->bucket;
        else if (v->space == RQ_SPACE_CACHE && groups) {
            const rq_cache_group *g = &groups[v->index];
            bytes = cache_bytes(tape, op, g, kv_len);
            if (attends(op)) {
                head_dims = (double)(g->dim_k + g->dim_v) * tape->values[op->in[1]].ne[1] * tape->bucket;
                if (g->window && g->window < kv_len) head_dims *= (double)g->window / kv_len;
            }
            if (op->kind == RQ_OP_KV_ENCODE) { /* in the long run a page for every 64 tokens */
                cost.bytes_read += bytes;
                bytes = (double)rq_coded_layout_of(g).layer_bytes / RQ_PAGE_TOKENS * tape->bucket;
            }
        }
        if (v->space == RQ_SPACE_STATE) { /* the tokens of a step are one sequence's */
            bytes = state_bytes(tape, op);
            cost.bytes_read += bytes;
        }
        if (info->written >> i & 1)
            cost.bytes_written += bytes;
        else
            cost.bytes_read += bytes;
    }
    for (uint32_t i = 0; i < op->n_out; i++)
        if (op->out[i]) cost.bytes_written += bytes_of(&tape->values[op->out[i]]);
    cost.flops = flops_of(tape, op, kv_len, head_dims);
    return cost;
}

rq_type rq_op_weight_type(const rq_tape *tape, const rq_op *op)
{
    rq_type type = RQ_TYPE_F32;
    double largest = 0;
    for (uint32_t i = 0; i < op->n_in; i++) {
        const rq_value *v = op->in[i] ? &tape->values[op->in[i]] : NULL;
        if (!v || v->space != RQ_SPACE_WEIGHT || elements(v) <= largest) continue;
        largest = elements(v);
        type = v->type;
    }
    return type;
}
