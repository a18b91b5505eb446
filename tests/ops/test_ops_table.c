/* The table: every operation x types x shapes x backends and implementations, against the reference. Rotations and
 * coded pages are in test_cache_table.c.
 *
 *   test_ops_table [-v] [IMPLEMENTATION] [--variant NAME]
 *
 * Prints, per implementation and operation, the worst error as a share of its tolerance. */
#include "tests/ops/walk.h"

#include <math.h>

/* ---- builders ------------------------------------------------------------------------------------------ */

/* m: rows of the table */
static void build_embed(rq_tape *t, const op_case *c)
{
    rq_op_embed(t, case_weight(t, 0, c->type, c->n, c->m, 1));
}

/* heads > 0: of heads inside wider rows; flag: without weight */
static void build_norm(rq_tape *t, const op_case *c)
{
    rq_ref x = c->heads ? 0 : case_rows(t, c->n);
    if (c->heads)
        x = rq_tape_view(t, case_rows(t, c->n * (c->heads + 2)), c->n, c->n, c->heads, c->n, t->bucket,
                         (uint64_t)c->n * (c->heads + 2));
    rq_op_rms_norm(t, x, c->flag ? 0 : case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1), 1e-6f);
}

static void build_matmul(rq_tape *t, const op_case *c)
{
    rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), case_rows(t, c->n));
}

/* flag: the second operand is one row */
static void build_add(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1) : case_rows(t, c->n);
    rq_op_add(t, case_rows(t, c->n), b);
}

static void build_mul(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1) : case_rows(t, c->n);
    rq_op_mul(t, case_rows(t, c->n), b);
}

/* flag: nearly linear where most values are */
static void build_softcap(rq_tape *t, const op_case *c)
{
    rq_op_softcap(t, case_rows(t, c->n), c->flag ? 30.0f : 0.7f);
}

static void build_scale(rq_tape *t, const op_case *c)
{
    rq_op_scale(t, case_rows(t, c->n), -0.37f);
}

/* flag: gate and up are the halves of one product */
static void build_glu(rq_tape *t, const op_case *c)
{
    rq_ref gate, up;
    if (c->flag) {
        rq_ref both = case_rows(t, 2 * c->n);
        gate = rq_tape_view(t, both, 0, c->n, t->bucket, 2ull * c->n, 1, 2ull * c->n * t->bucket);
        up = rq_tape_view(t, both, c->n, c->n, t->bucket, 2ull * c->n, 1, 0);
    } else {
        gate = case_rows(t, c->n);
        up = case_rows(t, c->n);
    }
    rq_op_glu(t, gate, up, c->act);
}

/* flag: one gate for a row */
static void build_gate(rq_tape *t, const op_case *c)
{
    rq_ref gate = rq_tape_view(t, case_rows(t, c->n + 3), 1, c->flag ? 1 : c->n, t->bucket, c->n + 3, 1, 0);
    rq_op_glu(t, gate, case_rows(t, c->n), c->act);
}

/* heads > 0: of heads inside wider rows */
static void build_l2(rq_tape *t, const op_case *c)
{
    rq_ref x = c->heads ? 0 : case_rows(t, c->n);
    if (c->heads)
        x = rq_tape_view(t, case_rows(t, c->n * (c->heads + 2)), c->n, c->n, c->heads, c->n, t->bucket,
                         (uint64_t)c->n * (c->heads + 2));
    rq_op_l2_norm(t, x, 1e-6f);
}

/* m: taps; flag: channels inside wider rows */
static void build_conv(rq_tape *t, const op_case *c)
{
    uint32_t width = c->flag ? c->n + 5 : c->n;
    rq_ref x = case_rows(t, width);
    if (c->flag) x = rq_tape_view(t, x, 5, c->n, t->bucket, width, 1, 0);
    rq_op_short_conv(t, rq_tape_state(t, 0, 1), x, case_weight(t, 0, RQ_TYPE_F32, c->n, c->m, 1));
}

/* dim x m: the matrix of one of `heads`; n of them share a key; flag: tiled. q, k and v are parts of one row, as a
 * convolution leaves them. */
static void build_delta(rq_tape *t, const op_case *c)
{
    uint32_t n_k = c->heads / c->n, row = 2 * n_k * c->dim + c->heads * c->m;
    rq_ref all = case_rows(t, row);
    rq_ref q = rq_tape_view(t, all, 0, c->dim, n_k, c->dim, t->bucket, row);
    rq_ref k = rq_tape_view(t, all, (uint64_t)n_k * c->dim, c->dim, n_k, c->dim, t->bucket, row);
    const rq_delta_in in = {
        .state = rq_tape_state(t, 0, 1),
        .q = rq_op_l2_norm(t, q, 1e-6f),
        .k = rq_op_l2_norm(t, k, 1e-6f),
        .v = rq_tape_view(t, all, 2ull * n_k * c->dim, c->m, c->heads, c->m, t->bucket, row),
        .alpha = case_rows(t, c->heads),
        .beta = case_rows(t, c->heads),
        .rate = case_weight(t, 0, RQ_TYPE_F32, c->heads, 1, 1),
        .offset = case_weight(t, 1, RQ_TYPE_F32, c->heads, 1, 1),
        .scale = 1 / sqrtf((float)c->dim),
        .tiled = c->flag,
    };
    rq_op_delta_rule(t, &in);
}

static void build_rope(rq_tape *t, const op_case *c)
{
    rq_op_rope(t, case_heads(t, c->dim, c->heads), case_weight(t, 0, RQ_TYPE_F32, c->n_rot / 2, 1, 1),
               c->n_rot, c->pairing, c->flag ? 1.3f : 1.0f);
}

static uint32_t dim_v(const op_case *c)
{
    return c->m ? c->m : c->dim;
}

static void build_kv_write(rq_tape *t, const op_case *c)
{
    rq_op_kv_write(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->kv_heads),
                   case_heads(t, dim_v(c), c->kv_heads));
}

static void build_attend(rq_tape *t, const op_case *c)
{
    rq_op_attend(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->heads), dim_v(c),
                 1 / sqrtf((float)c->dim), c->softcap);
}

static void build_route(rq_tape *t, const op_case *c)
{
    rq_ref ids, weights;
    rq_op_route(t, case_rows(t, c->n_expert), c->n_used, c->flag ? 2.5f : 1.0f, &ids, &weights);
}

static void build_group(rq_tape *t, const op_case *c)
{
    rq_op_group(t, rq_tape_act(t, RQ_TYPE_I32, c->n_used, t->bucket, 1, 1), c->n_expert);
}

/* flag: every slot has its own row */
static void build_experts(rq_tape *t, const op_case *c)
{
    rq_ref ids = rq_tape_act(t, RQ_TYPE_I32, c->n_used, t->bucket, 1, 1),
           group = rq_op_group(t, ids, c->n_expert);
    rq_op_matmul_experts(t, case_weight(t, 0, c->type, c->n, c->m, c->n_expert),
                         case_heads(t, c->n, c->flag ? c->n_used : 1), ids, group);
}

static void build_combine(rq_tape *t, const op_case *c)
{
    rq_op_combine(t, case_heads(t, c->n, c->n_used), case_rows(t, c->n_used));
}

static void build_copy(rq_tape *t, const op_case *c)
{
    rq_op_copy(t, case_rows(t, c->n), rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, c->n, t->bucket));
}

static void build_select(rq_tape *t, const op_case *c)
{
    rq_op_select_rows(t, rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, c->n, t->bucket));
}

static void build_argmax(rq_tape *t, const op_case *c)
{
    rq_op_argmax(t, case_rows(t, c->n),
                 rq_tape_persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, t->persist_rows[RQ_PERSIST_SAMPLED]));
}

/* heads: how many; flag: the norm has no weight; gate: each with a bias */
static void build_norm_matmuls(rq_tape *t, const op_case *c)
{
    rq_ref h = rq_op_rms_norm(t, case_rows(t, c->n), c->flag ? 0 : case_weight(t, 4, RQ_TYPE_F32, c->n, 1, 1),
                              1e-6f);
    for (uint32_t i = 0; i < c->heads; i++) {
        uint32_t m = i ? 9 : c->m;
        rq_ref y = rq_op_matmul(t, case_weight(t, i, c->type, c->n, m, 1), h);
        if (c->gate) rq_op_add(t, y, case_weight(t, 5 + i, RQ_TYPE_F32, m, 1, 1));
    }
}

/* A mixture's norm: the router's product and those of gate and up by expert share it. */
static void build_norm_experts(rq_tape *t, const op_case *c)
{
    rq_ref h = rq_op_rms_norm(t, case_rows(t, c->n), case_weight(t, 2, RQ_TYPE_F32, c->n, 1, 1), 1e-6f),
           ids = rq_tape_act(t, RQ_TYPE_I32, c->n_used, t->bucket, 1, 1),
           group = t->bucket > RQ_NARROW_BUCKET ? rq_op_group(t, ids, c->n_expert) : 0;
    rq_op_matmul(t, case_weight(t, 3, RQ_TYPE_F32, c->n, c->n_expert, 1), h);
    rq_ref x = rq_tape_view(t, h, 0, c->n, 1, c->n, t->bucket, c->n);
    rq_ref gate = rq_op_matmul_experts(t, case_weight(t, 0, c->type, c->n, c->m, c->n_expert), x, ids, group);
    rq_op_glu(t, gate,
              rq_op_matmul_experts(t, case_weight(t, 1, c->type, c->n, c->m, c->n_expert), x, ids, group),
              c->act);
}

/* flag: with a gated row */
static void build_combine_add(rq_tape *t, const op_case *c)
{
    rq_ref y = rq_op_combine(t, case_heads(t, c->n, c->n_used), case_rows(t, c->n_used));
    if (c->flag) y = rq_op_add(t, y, rq_op_glu(t, case_rows(t, 1), case_rows(t, c->n), RQ_ACT_SIGMOID));
    rq_op_add(t, y, case_rows(t, c->n));
}

/* heads > 0: of heads inside wider rows; flag: gated, else added to */
static void build_norm_join(rq_tape *t, const op_case *c)
{
    uint32_t heads = c->heads ? c->heads : 1, width = c->n * (heads + 2);
    rq_ref x = rq_tape_view(t, case_rows(t, width), c->n, c->n, heads, c->n, t->bucket, width),
           other = rq_tape_view(t, case_rows(t, width), 0, c->n, heads, c->n, t->bucket, width);
    x = rq_op_rms_norm(t, x, c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1) : 0, 1e-6f);
    if (c->flag)
        rq_op_glu(t, other, x, c->act);
    else
        rq_op_add(t, x, other);
}

static void build_norm_glu(rq_tape *t, const op_case *c)
{
    rq_ref h = rq_op_rms_norm(t, case_rows(t, c->n), case_weight(t, 2, RQ_TYPE_F32, c->n, 1, 1), 1e-6f);
    rq_ref gate = rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), h);
    rq_op_glu(t, gate, rq_op_matmul(t, case_weight(t, 1, c->type, c->n, c->m, 1), h), c->act);
}

/* flag: a bias row */
static void build_matmul_add(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 1, RQ_TYPE_F32, c->m, 1, 1) : case_rows(t, c->m);
    rq_op_add(t, rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), case_rows(t, c->n)), b);
}

/* flag: with norms. The result is attended to, so that the pattern is one. */
static void build_qk(rq_tape *t, const op_case *c)
{
    rq_ref q = case_heads(t, c->dim, c->heads), k = case_heads(t, c->dim, c->kv_heads);
    rq_ref v = case_heads(t, dim_v(c), c->kv_heads), f = case_weight(t, 0, RQ_TYPE_F32, c->n_rot / 2, 1, 1);
    if (c->flag) {
        q = rq_op_rms_norm(t, q, case_weight(t, 1, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
        k = rq_op_rms_norm(t, k, case_weight(t, 2, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
    }
    q = rq_op_rope(t, q, f, c->n_rot, c->pairing, 1);
    k = rq_op_rope(t, k, f, c->n_rot, c->pairing, 1);
    rq_ref cache = rq_tape_cache(t, 0, 1);
    rq_op_kv_write(t, cache, k, v);
    rq_op_attend(t, cache, q, dim_v(c), 1 / sqrtf((float)c->dim), 0);
}

/* ---- the catalogue ------------------------------------------------------------------------------------- */

static void walk_products(walker *w, rq_type type)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    uint32_t block = info->block_elems;
    const uint32_t widths[] = {block, 3 * block, block == 1 ? 257 : block < 256 ? 9 * block : 4 * block, 512};
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t n = widths[i];
        bool few = i != 3; /* the widest shape goes through all buckets */
        if (walk_is_quick() && i % 2 == 0) continue;
        op_case c = {
            .kind = RQ_OP_MATMUL, .type = type, .what = "plain", .build = build_matmul, .n = n, .m = 33};
        walk(w, &c, few ? 8 : 64);
        if (i == 1) c.m = 1, walk(w, &c, 16);
        if (few) continue;
        c = (op_case){.kind = RQ_OP_PRODUCTS,
                      .type = type,
                      .what = "residual",
                      .build = build_matmul_add,
                      .n = n,
                      .m = 17};
        walk(w, &c, 64);
        c.flag = true, c.what = "bias";
        walk(w, &c, 16);
        c = (op_case){.kind = RQ_OP_GLU_PRODUCTS,
                      .type = type,
                      .what = "silu",
                      .build = build_norm_glu,
                      .n = n,
                      .m = 67};
        walk(w, &c, 64);
        for (uint32_t k = 1; k <= 5; k++) {
            c = (op_case){.kind = RQ_OP_PRODUCTS,
                          .type = type,
                          .what = k < 5 ? "1-4" : "3 with biases",
                          .build = build_norm_matmuls,
                          .n = n,
                          .m = 21,
                          .heads = k < 5 ? k : 3,
                          .gate = k == 5,
                          .flag = k == 2};
            walk(w, &c, k == 3 ? 64 : 8);
        }
        for (uint32_t skew = 0; skew < 3; skew++) {
            c = (op_case){.kind = RQ_OP_MATMUL_EXPERTS,
                          .type = type,
                          .what = skew == 0   ? "even"
                                  : skew == 1 ? "all to the same"
                                              : "the last ones",
                          .build = build_experts,
                          .n = skew ? 2 * block < 64 ? 64 : 2 * block : n,
                          .m = 11,
                          .n_expert = 7,
                          .n_used = 2,
                          .skew = skew,
                          .flag = skew == 2};
            walk(w, &c, 64);
            c.kind = RQ_OP_GLU_PRODUCTS, c.build = build_norm_experts;
            if (skew < 2) c.act = skew ? RQ_ACT_GELU_TANH : RQ_ACT_SILU, walk(w, &c, 8);
        }
    }
    op_case e = {
        .kind = RQ_OP_EMBED, .type = type, .what = "rows", .build = build_embed, .n = 3 * block, .m = 13};
    walk(w, &e, 16);
}

static void every_product(walker *w)
{
    for (uint32_t type = 0; type < RQ_TYPE_LIMIT; type++) {
        const rq_type_info *info = rq_type_get(type);
        if (info && info->is_weight) walk_products(w, (rq_type)type);
    }
}

static void every_pointwise(walker *w)
{
    static const uint32_t widths[] = {1, 5, 64, 257, 1024};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t flag = 0; flag < 2; flag++) {
            if (walk_is_quick() && i % 2 == 0) continue;
            op_case c = {.type = RQ_TYPE_F32, .what = "", .n = widths[i], .flag = flag};
#define POINTWISE(k, b) c.kind = k, c.build = b, walk(w, &c, 64)
            POINTWISE(RQ_OP_RMS_NORM, build_norm);
            POINTWISE(RQ_OP_ADD, build_add);
            POINTWISE(RQ_OP_MUL, build_mul);
            POINTWISE(RQ_OP_SCALE, build_scale);
            POINTWISE(RQ_OP_SOFTCAP, build_softcap);
            c.act = RQ_ACT_SILU;
            POINTWISE(RQ_OP_GLU, build_glu);
            c.act = RQ_ACT_GELU_TANH;
            POINTWISE(RQ_OP_GLU, build_glu);
            POINTWISE(RQ_OP_NORM_JOIN, build_norm_join);
            POINTWISE(RQ_OP_COPY, build_copy);
            c.heads = 3;
            POINTWISE(RQ_OP_RMS_NORM, build_norm);
            POINTWISE(RQ_OP_NORM_JOIN, build_norm_join);
            c.rows = true;
            POINTWISE(RQ_OP_SELECT_ROWS, build_select);
            POINTWISE(RQ_OP_ARGMAX, build_argmax);
#undef POINTWISE
        }
}

static void every_attention(walker *w)
{
    static const uint32_t dims[] = {64, 80, 96, 128, 256}, ratios[] = {1, 2, 4, 7};
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t r = 0; r < 4; r++) {
            if (walk_is_quick() && r != d % 4) continue;
            op_case c = {.type = (d + r) % 2 ? RQ_TYPE_F32 : RQ_TYPE_F16,
                         .what = "far",
                         .dim = dims[d],
                         .kv_heads = 2,
                         .heads = 2 * ratios[r],
                         .position = 1100};
            c.kind = RQ_OP_ATTEND, c.build = build_attend;
            walk(w, &c, r == 1 ? 64 : 8); /* three splits; the second run crosses a page */
            c.position = 0, c.what = "first position";
            walk(w, &c, 2);
            c.position = 1100, c.window = 100, c.what = "window";
            if (r == 2) walk(w, &c, 64);
            c.window = 0, c.softcap = 20, c.what = "soft cap";
            if (r == 3) walk(w, &c, 16);
            c.softcap = 0, c.m = 48, c.what = "narrower values";
            if (r == 0) walk(w, &c, 16);
            c.m = 0, c.position = 70, c.what = "write";
            c.kind = RQ_OP_KV_WRITE, c.build = build_kv_write;
            walk(w, &c, r ? 8 : 64);
        }
    op_case large = {.kind = RQ_OP_ATTEND,
                     .type = RQ_TYPE_F16,
                     .what = "largest heads",
                     .build = build_attend,
                     .dim = 512,
                     .kv_heads = 1,
                     .heads = 4,
                     .position = 300};
    if (!walk_is_quick()) walk(w, &large, 16);
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t i = 0; i < 4; i++) {
            op_case c = {.kind = RQ_OP_QKV_WRITE,
                         .type = i < 3 ? RQ_TYPE_F16 : RQ_TYPE_F32,
                         .what = "turn and write",
                         .build = build_qk,
                         .dim = dims[d],
                         .kv_heads = 2,
                         .heads = 2 * ratios[i],
                         .position = 200,
                         .n_rot = i == 2 ? dims[d] / 4 * 2 : dims[d],
                         .flag = i != 1,
                         .pairing = i % 2 ? RQ_ROPE_NORM : RQ_ROPE_NEOX};
            walk(w, &c, d == 1 ? 64 : 8);
        }
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t i = 0; i < 4; i++) {
            op_case c = {.kind = RQ_OP_ROPE,
                         .type = RQ_TYPE_F32,
                         .what = "turn",
                         .build = build_rope,
                         .dim = dims[d],
                         .heads = 3,
                         .n_rot = i < 2 ? dims[d] : dims[d] / 4 * 2,
                         .pairing = i % 2 ? RQ_ROPE_NEOX : RQ_ROPE_NORM,
                         .position = i == 3 ? 1 << 20 : 5000,
                         .flag = i == 2};
            walk(w, &c, d == 3 ? 64 : 8);
        }
}

static void every_routing(walker *w)
{
    static const struct {
        uint32_t e, k;
    } shapes[] = {{2, 1}, {6, 6}, {8, 2}, {60, 4}, {128, 8}};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t skew = 0; skew < 3; skew++) {
            op_case c = {.type = RQ_TYPE_F32,
                         .what = "",
                         .n_expert = shapes[i].e,
                         .n_used = shapes[i].k,
                         .skew = skew,
                         .flag = skew == 1,
                         .n = skew == 0 ? 33 : 256};
            if (skew == 2 && c.n_used == c.n_expert) continue; /* needs one more than are used */
            c.kind = RQ_OP_ROUTE, c.build = build_route, walk(w, &c, 64);
            c.kind = RQ_OP_GROUP, c.build = build_group, walk(w, &c, 64);
            c.kind = RQ_OP_COMBINE, c.build = build_combine, walk(w, &c, 64);
            c.kind = RQ_OP_COMBINE_ADD, c.build = build_combine_add, walk(w, &c, 64);
        }
}

static void every_recurrence(walker *w)
{
    static const uint32_t widths[] = {5, 64, 257, 1024}, taps[] = {4, 2, 3, RQ_MAX_CONV_TAPS};
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t flag = 0; flag < 2; flag++) {
            op_case c = {.type = RQ_TYPE_F32,
                         .what = "",
                         .n = widths[i],
                         .flag = flag,
                         .act = RQ_ACT_SIGMOID,
                         .gate = true};
            c.kind = RQ_OP_GLU, c.build = build_gate, walk(w, &c, 64);
            c.act = RQ_ACT_SILU, walk(w, &c, 8);
            c.kind = RQ_OP_L2_NORM, c.build = build_l2, c.heads = flag ? 3 : 0, walk(w, &c, 64);
            c.kind = RQ_OP_SHORT_CONV, c.build = build_conv, c.heads = 0, c.m = taps[i];
            c.position = 100, c.what = "goes on", walk(w, &c, 64);
            c.position = 0, c.what = "begins", walk(w, &c, 2);
            c.position = 7, c.what = "long", walk_once(w, &c, 250);
        }
    static const struct {
        uint32_t dk, dv, heads, shared;
    } shapes[] = {{128, 128, 4, 2}, {64, 64, 6, 3},  {32, 40, 2, 1},
                  {16, 4, 4, 4},    {128, 72, 3, 1}, {192, 24, 2, 1}};
    for (uint32_t i = 0; i < 6; i++)
        for (uint32_t flag = 0; flag < 2; flag++) {
            if (walk_is_quick() && (i % 2 == 0 || i == 5)) continue;
            op_case c = {.kind = RQ_OP_DELTA_RULE,
                         .type = RQ_TYPE_F32,
                         .what = "goes on",
                         .build = build_delta,
                         .dim = shapes[i].dk,
                         .m = shapes[i].dv,
                         .heads = shapes[i].heads,
                         .n = shapes[i].shared,
                         .flag = flag,
                         .position = 100};
            walk(w, &c, 64);
            c.position = 0, c.what = "begins", walk(w, &c, 2);
            c.position = 7, c.what = "long";
            if (i < 2) walk_once(w, &c, 250);
        }
}

static void every_row(walker *w)
{
    if (w->products_only) {
        every_product(w);
        return;
    }
    every_recurrence(w);
    every_pointwise(w);
    every_routing(w);
    every_attention(w);
    every_product(w);
}

static bool is_mine(rq_op_kind kind)
{
    return kind != RQ_OP_ROTATE && kind != RQ_OP_KV_ENCODE && kind != RQ_OP_ATTEND_ROTATE;
}

int main(int argc, char **argv)
{
    return walk_table(argc, argv, every_row, is_mine);
}
