/* ops.c - which launches an operation becomes, and with which arguments. */
#include "backends/cuda/cu.h"

#include "backends/ops.h"
#include "backends/tape/fuse.h"

#include <string.h>

static uint32_t divide_up(uint64_t a, uint64_t b)
{
    return (uint32_t)((a + b - 1) / b);
}

static uint64_t tables_of(const cu_builder *b)
{
    return cu_address(cu_device_of(b)->tables);
}

static uint32_t rows_of(const cu_view *v)
{
    return v->ne[1] * v->ne[2] * v->ne[3];
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

static void embed(cu_builder *b, const rq_op *op)
{
    const rq_value *w = &cu_tape(b)->values[op->in[0]];
    const rq_memory *sampled = cu_bindings(b)->persist[RQ_PERSIST_SAMPLED];
    cuda_embed_args a = {.step = cu_step_address(b),
                         .table = cu_value(b, op->in[0]).address,
                         .tables = tables_of(b),
                         .y = cu_value(b, op->out[0]).address,
                         .sampled = cu_address(sampled),
                         .row_bytes = w->stride[1],
                         .n = w->ne[0],
                         .n_vocab = w->ne[1],
                         .n_slots = sampled ? (uint32_t)(sampled->bytes / 4) : 0,
                         .type = (uint32_t)w->type};
    cu_launch(b, CU_embed, &a, sizeof a, divide_up(w->ne[0], 512), cu_tape(b)->bucket, 1, false);
}

static void norm(cu_builder *b, const rq_op *op)
{
    bool joins = op->kind == RQ_OP_NORM_JOIN;
    cu_view x = cu_value(b, op->in[0]), second = {0};
    if (joins) second = cu_value(b, op->in[2]);
    cuda_norm_args a = {.x = x.address,
                        .weight = op->kind == RQ_OP_L2_NORM ? 0 : cu_value(b, op->in[1]).address,
                        .second = second.address,
                        .y = cu_value(b, op->out[0]).address,
                        .stride = {x.stride[1], x.stride[2], x.stride[3]},
                        .second_stride = {second.stride[1], second.stride[2], second.stride[3]},
                        .n = x.ne[0],
                        .ne1 = x.ne[1],
                        .ne2 = x.ne[2],
                        .l2 = op->kind == RQ_OP_L2_NORM,
                        .join = !joins            ? 0
                                : op->p.fused.glu ? 2 + (uint32_t)op->p.fused.act
                                                  : 1,
                        .eps = joins ? op->p.fused.eps : op->p.norm.eps};
    cu_launch(b, CU_rms_norm, &a, sizeof a, rows_of(&x), 1, 1, false);
}

static void pointwise(cu_builder *b, cuda_pointwise_kind kind, cu_view x, cu_view second, cu_view y,
                      float factor)
{
    bool row = second.address && rows_of(&second) == 1 && rows_of(&x) > 1;
    cuda_pointwise_args a = {.x = x.address,
                             .second = second.address,
                             .y = y.address,
                             .stride = {x.stride[1], x.stride[2], x.stride[3]},
                             .n = second.ne[0] > x.ne[0] ? second.ne[0] : x.ne[0],
                             .ne1 = x.ne[1],
                             .ne2 = x.ne[2],
                             .rows = rows_of(&x),
                             .kind = kind,
                             .one = second.ne[0] > x.ne[0],
                             .factor = factor};
    for (uint32_t i = 0; i < 3; i++) a.second_stride[i] = row ? 0 : second.stride[1 + i];
    cu_launch(b, CU_pointwise, &a, sizeof a, divide_up((uint64_t)a.n * a.rows, 256), 1, 1, false);
}

static void pointwise_op(cu_builder *b, const rq_op *op)
{
    static const cuda_pointwise_kind of_act[] = {
        [RQ_ACT_SILU] = CUDA_SILU, [RQ_ACT_GELU_TANH] = CUDA_GELU, [RQ_ACT_SIGMOID] = CUDA_SIGMOID};
    cu_view x = cu_value(b, op->in[0]), none = {0};
    if (op->kind == RQ_OP_COPY) {
        pointwise(b, CUDA_COPY, x, none, cu_value(b, op->in[1]), 0);
        return;
    }
    cu_view y = cu_value(b, op->out[0]);
    if (op->kind == RQ_OP_SCALE) {
        pointwise(b, CUDA_SCALE, x, none, y, op->p.scale.factor);
        return;
    }
    if (op->kind == RQ_OP_SOFTCAP) {
        pointwise(b, CUDA_SOFTCAP, x, none, y, op->p.softcap.cap);
        return;
    }
    cuda_pointwise_kind kind = op->kind == RQ_OP_ADD   ? CUDA_ADD
                               : op->kind == RQ_OP_MUL ? CUDA_MUL
                                                       : of_act[op->p.glu.act];
    pointwise(b, kind, x, cu_value(b, op->in[1]), y, 0);
}

static void rope(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_rope_args a = {.step = cu_step_address(b),
                        .x = x.address,
                        .inv_freq = cu_value(b, op->in[1]).address,
                        .y = cu_value(b, op->out[0]).address,
                        .head_stride = x.stride[1],
                        .token_stride = x.stride[2],
                        .d = x.ne[0],
                        .heads = x.ne[1],
                        .n_rot = op->p.rope.n_rot,
                        .neox = op->p.rope.pairing == RQ_ROPE_NEOX,
                        .magnitude = op->p.rope.magnitude};
    cu_launch(b, CU_rope, &a, sizeof a, x.ne[2], x.ne[1], 1, false);
}

/* The rotation of a ROTATE whose tables are these operands; nothing where there is no ROTATE. */
static cuda_rotation rotation_of(cu_builder *b, const rq_op *rotate)
{
    cuda_rotation r = {0};
    if (!rotate) return r;
    cu_view data = cu_value(b, rotate->in[1]), mean = cu_value(b, rotate->in[2]),
            lambda = cu_value(b, rotate->in[3]);
    r = (cuda_rotation){.data = data.address,
                        .mean = mean.address,
                        .lambda = rotate->p.rotate.inverse ? 0 : lambda.address,
                        .data_columns = data.address ? data.ne[1] : 1,
                        .data_floats = (uint32_t)data.stride[1],
                        .mean_columns = mean.address ? mean.ne[1] : 1,
                        .lambda_columns = lambda.address ? lambda.ne[1] : 1,
                        .n_blocks = rotate->p.rotate.n_blocks,
                        .inverse = rotate->p.rotate.inverse};
    for (uint32_t i = 0; i < r.n_blocks; i++) {
        const rq_rotation_block *block = &rotate->p.rotate.blocks[i];
        r.blocks[i].offset = (uint16_t)block->offset;
        r.blocks[i].count = (uint16_t)block->count;
        r.blocks[i].size = (uint16_t)block->size;
        r.blocks[i].hadamard = block->hadamard;
    }
    return r;
}

static void rotate(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_rotate_args a = {.x = x.address,
                          .y = cu_value(b, op->out[0]).address,
                          .head_stride = x.stride[1],
                          .token_stride = x.stride[2],
                          .d = x.ne[0],
                          .heads = x.ne[1],
                          .turn = rotation_of(b, op)};
    cu_launch(b, CU_rotate, &a, sizeof a, x.ne[1], x.ne[2], 1, false);
}

/* Rotations of wide steps by one matrix as large as a head, which blocks of the plain kernel would read over and over
 * (cuda/rotate_tile.cu). */
static bool turns_in_tiles(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]), data = cu_value(b, op->in[1]), mean = cu_value(b, op->in[2]),
            lambda = cu_value(b, op->in[3]);
    const rq_rotation_block *block = &op->p.rotate.blocks[0];
    if (op->p.rotate.n_blocks != 1 || block->hadamard || block->count != 1 || block->size != x.ne[0] ||
        x.ne[0] < 32 || x.ne[0] > 256 || x.ne[2] <= RQ_NARROW_BUCKET)
        return false;
    cuda_turn_args a = {.x = x.address,
                        .data = data.address,
                        .mean = mean.address,
                        .lambda = lambda.address,
                        .y = cu_value(b, op->out[0]).address,
                        .head_stride = x.stride[1],
                        .token_stride = x.stride[2],
                        .d = x.ne[0],
                        .heads = x.ne[1],
                        .tokens = x.ne[2],
                        .data_columns = data.ne[1],
                        .mean_columns = mean.address ? mean.ne[1] : 1,
                        .lambda_columns = lambda.address ? lambda.ne[1] : 1,
                        .inverse = op->p.rotate.inverse};
    cu_launch(b, CU_rotate_tile, &a, sizeof a, x.ne[1], divide_up(x.ne[2], 32), 1, false);
    return true;
}

static void rotate_any(cu_builder *b, const rq_op *op)
{
    if (!turns_in_tiles(b, op)) rotate(b, op);
}

static void select_rows(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_select_args a = {.step = cu_step_address(b),
                          .x = x.address,
                          .y = cu_value(b, op->out[0]).address,
                          .n = x.ne[0],
                          .n_rows = x.ne[1]};
    cu_launch(b, CU_select_rows, &a, sizeof a, divide_up(x.ne[0], 256), cu_tape(b)->bucket, 1, false);
}

static void argmax(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]), sampled = cu_value(b, op->in[1]);
    uint32_t rows = cu_tape(b)->bucket;
    if (rows > RQ_HEAD_ROWS) {
        cu_op_fail(b, "more than %d rows", RQ_HEAD_ROWS);
        return;
    }
    cuda_argmax_args a = {.step = cu_step_address(b),
                          .logits = x.address,
                          .best = cu_scratch(b, 4 * RQ_HEAD_ROWS),
                          .sampled = sampled.address,
                          .stride = x.stride[1],
                          .n = x.ne[0],
                          .n_slots = sampled.ne[1],
                          .n_rows = rows};
    cu_launch(b, CU_argmax, &a, sizeof a, rows, 1, 1, false);
    cu_launch(b, CU_argmax_last, &a, sizeof a, 1, 1, 1, true);
}

/* ---- products -------------------------------------------------------------------------------------------- */

static uint32_t matvec_kernel(rq_type type, uint32_t columns)
{
    return (columns == 1 ? CU_MATVEC_1 : columns <= 4 ? CU_MATVEC_4 : CU_MATVEC_8) + (uint32_t)type;
}

static void launch_matvec(cu_builder *b, cuda_matvec_args *a, rq_type type, uint32_t pairs)
{
    uint64_t rows = 0;
    for (uint32_t j = 0; j < a->n_jobs; j++) rows += a->n_out[j];
    const rq_type_info *info = rq_type_get((uint32_t)type);
    uint32_t blocks = divide_up(rows, info->is_quantized ? 16 : 8), most = cu_device_of(b)->n_processors * 4;
    cu_launch(b, matvec_kernel(type, a->columns), a, sizeof *a, blocks < most ? blocks : most, pairs, 1,
              false);
}

/* Products of one x; those of weights of one type and row size in one launch. addends: NULL, or 0 where nothing is
 * added. Of a gated pair both weights have one type, and one result. */
static void matvecs(cu_builder *b, const cuda_matvec_args *common, const rq_ref *weights,
                    const rq_ref *addends, const rq_ref *results, uint32_t n, uint32_t pairs)
{
    const rq_value *values = cu_tape(b)->values;
    bool done[CUDA_MATVEC_JOBS] = {false};
    for (uint32_t i = 0; i < n; i++) {
        if (done[i]) continue;
        cuda_matvec_args a = *common;
        const rq_value *w = &values[weights[i]];
        a.n_jobs = 0;
        a.n_in = w->ne[0];
        a.row_bytes = w->stride[1];
        a.expert_bytes = w->stride[2];
        for (uint32_t k = i; k < n; k++) {
            if (done[k] || values[weights[k]].type != w->type || values[weights[k]].stride[1] != a.row_bytes)
                continue;
            done[k] = true;
            cu_view y = cu_value(b, results[common->glu ? 0 : k]), addend = {0};
            if (addends && addends[k]) addend = cu_value(b, addends[k]);
            a.w[a.n_jobs] = cu_value(b, weights[k]).address;
            a.y[a.n_jobs] = y.address;
            a.y_stride[a.n_jobs] = y.stride[1];
            a.addend[a.n_jobs] = addend.address;
            a.addend_stride[a.n_jobs] = rows_of(&addend) > 1 ? addend.stride[1] : 0;
            a.n_out[a.n_jobs++] = values[weights[k]].ne[1];
        }
        launch_matvec(b, &a, w->type, pairs);
    }
}

static void launch_matmul(cu_builder *b, rq_ref weight, cu_view x, cu_view y)
{
    const rq_value *w = &cu_tape(b)->values[weight];
    uint32_t word = cu_extent_word(b), columns = x.ne[1];
    cuda_matmul_args a = {.w = cu_value(b, weight).address,
                          .x = x.address,
                          .y = y.address,
                          .tables = tables_of(b),
                          .step = word == UINT32_MAX ? 0 : cu_step_address(b),
                          .row_bytes = w->stride[1],
                          .x_stride = x.stride[1],
                          .y_stride = y.stride[1],
                          .n_in = w->ne[0],
                          .n_out = w->ne[1],
                          .columns = columns,
                          .extent_word = word};
    cu_launch(b, CU_MATMUL + (uint32_t)w->type, &a, sizeof a, divide_up(w->ne[1], 64), divide_up(columns, 64),
              1, false);
}

/* Buckets up to 8 take matvec, whose sums do not depend on the bucket (DESIGN 2.3). */
static void matmul(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[1]);
    if (x.ne[1] > CUDA_MATVEC_TOKENS) {
        launch_matmul(b, op->in[0], x, cu_value(b, op->out[0]));
        return;
    }
    cuda_matvec_args a = {
        .x = x.address, .x_stride = x.stride[1], .columns = x.ne[1], .tables = tables_of(b)};
    matvecs(b, &a, &op->in[0], NULL, &op->out[0], 1, 1);
}

static void products(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_matvec_args a = {.x = x.address,
                          .x_stride = x.stride[1],
                          .columns = x.ne[1],
                          .tables = tables_of(b),
                          .norm_weight = cu_value(b, op->in[1]).address,
                          .normed = op->p.fused.normed,
                          .eps = op->p.fused.eps};
    matvecs(b, &a, &op->in[2], &op->in[2 + RQ_PRODUCTS_MAX], &op->out[0], op->n_out, 1);
}

/* By expert: a column for each pair of token and slot. */
static void experts(cu_builder *b, cuda_matvec_args *a, cu_view x, rq_ref ids_ref, rq_ref weight)
{
    cu_view ids = cu_value(b, ids_ref);
    a->step = cu_step_address(b);
    a->ids = ids.address;
    a->n_used = ids.ne[0];
    a->n_expert = cu_tape(b)->values[weight].ne[2];
    a->columns = 1;
    bool by_slot = x.ne[2] > 1 || x.ne[1] != cu_tape(b)->bucket; /* [n_in, 1 or k, T], or [n_in, T] */
    a->x_stride = by_slot ? x.stride[2] : x.stride[1];
    a->slot_stride = by_slot && x.ne[1] > 1 ? x.stride[1] : 0;
}

static void glu_products(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_matvec_args a = {.x = x.address,
                          .x_stride = x.stride[1],
                          .columns = x.ne[1],
                          .tables = tables_of(b),
                          .norm_weight = cu_value(b, op->in[1]).address,
                          .normed = op->p.fused.normed,
                          .eps = op->p.fused.eps,
                          .glu = 1 + (uint32_t)op->p.fused.act};
    if (op->in[4]) experts(b, &a, x, op->in[4], op->in[2]);
    matvecs(b, &a, &op->in[2], NULL, &op->out[0], 2, op->in[4] ? a.n_used * cu_tape(b)->bucket : 1);
}

static void matmul_experts(cu_builder *b, const rq_op *op)
{
    const rq_value *w = &cu_tape(b)->values[op->in[0]];
    cu_view x = cu_value(b, op->in[1]);
    uint32_t k = cu_tape(b)->values[op->in[2]].ne[0], bucket = cu_tape(b)->bucket;
    if (bucket <= CUDA_MATVEC_TOKENS) {
        cuda_matvec_args a = {.x = x.address, .tables = tables_of(b)};
        experts(b, &a, x, op->in[2], op->in[0]);
        matvecs(b, &a, &op->in[0], NULL, &op->out[0], 1, k * bucket);
        return;
    }
    cu_view weight = cu_value(b, op->in[0]), group = cu_value(b, op->in[3]), y = cu_value(b, op->out[0]);
    uint64_t slot_stride = x.ne[1] > 1 ? x.stride[1] : 0;
    rq_group_layout l = rq_group_layout_of(w->ne[2], k, bucket);
    cuda_matmul_args a = {.w = weight.address,
                          .x = x.address,
                          .y = y.address,
                          .tables = tables_of(b),
                          .group = group.address,
                          .row_bytes = w->stride[1],
                          .expert_bytes = w->stride[2],
                          .x_stride = x.stride[2],
                          .slot_stride = slot_stride,
                          .n_in = w->ne[0],
                          .n_out = w->ne[1],
                          .n_used = k,
                          .order = l.order,
                          .tiles = l.tiles};
    cu_launch(b, CU_MATMUL + (uint32_t)w->type, &a, sizeof a, divide_up(w->ne[1], 64), l.max_tiles, 1, false);
}

/* ---- cache ----------------------------------------------------------------------------------------------- */

static void kv_write(cu_builder *b, const rq_op *op)
{
    const rq_value *cache = &cu_tape(b)->values[op->in[0]];
    cu_view k = cu_value(b, op->in[1]), v = cu_value(b, op->in[2]);
    cuda_kv_args a = {.step = cu_step_address(b),
                      .pool = cu_pool_address(b, cache->index),
                      .k = k.address,
                      .v = v.address,
                      .k_stride = {k.stride[1], k.stride[2]},
                      .v_stride = {v.stride[1], v.stride[2]},
                      .group = cache->index,
                      .layer = cache->layer};
    cu_launch(b, CU_kv_write, &a, sizeof a, cu_tape(b)->bucket, k.ne[1], 1, false);
}

static void qkv_write(cu_builder *b, const rq_op *op)
{
    const rq_tape *tape = cu_tape(b);
    const rq_value *cache = &tape->values[op->in[6]];
    cu_view q = cu_value(b, op->in[0]), k = cu_value(b, op->in[1]), v = cu_value(b, op->in[2]);
    cuda_qkv_args a = {.step = cu_step_address(b),
                       .pool = cu_pool_address(b, cache->index),
                       .q = q.address,
                       .k = k.address,
                       .v = v.address,
                       .inv_freq = cu_value(b, op->in[3]).address,
                       .q_weight = cu_value(b, op->in[4]).address,
                       .k_weight = cu_value(b, op->in[5]).address,
                       .y = cu_value(b, op->out[0]).address,
                       .q_stride = {q.stride[1], q.stride[2]},
                       .k_stride = {k.stride[1], k.stride[2]},
                       .v_stride = {v.stride[1], v.stride[2]},
                       .group = cache->index,
                       .layer = cache->layer,
                       .heads = q.ne[1],
                       .kv_heads = k.ne[1],
                       .dk = k.ne[0],
                       .dv = v.ne[0],
                       .n_rot = op->p.fused.n_rot,
                       .neox = op->p.fused.pairing == RQ_ROPE_NEOX,
                       .normed = op->p.fused.normed,
                       .v_normed = op->p.fused.v_normed,
                       .magnitude = op->p.fused.magnitude,
                       .eps = op->p.fused.eps};
    for (uint32_t i = 0; i < 3; i++) a.turns[i] = rotation_of(b, rq_fused_rotate(tape, op, i));
    cu_launch(b, CU_qkv_write, &a, sizeof a, tape->bucket, q.ne[1] + 2 * k.ne[1], 1, false);
}

static void kv_encode(cu_builder *b, const rq_op *op)
{
    const rq_value *cache = &cu_tape(b)->values[op->in[0]];
    const rq_cache_group *g = cu_bindings(b)->pools[cache->index].group;
    cuda_kv_args a = {.step = cu_step_address(b),
                      .pool = cu_pool_address(b, cache->index),
                      .tables = tables_of(b),
                      .group = cache->index,
                      .layer = cache->layer};
    cu_launch(b, CU_kv_encode, &a, sizeof a, cu_bindings(b)->caps->max_encodes, g->n_heads, 2, false);
}

/* Groups whose coded pages attend_coded reads: both sides coded, tiles of 16 elements within groups of one scale. */
static bool on_matrix_units(const rq_cache_group *g)
{
    if (!rq_kv_bits(g->form_k) || !rq_kv_bits(g->form_v) || g->dim_k > 256 || g->dim_v > 256 || g->dim_v % 16)
        return false;
    for (uint32_t i = 0, n = rq_kv_groups(g->form_v, g->dim_v); i < n; i++)
        if (rq_kv_group_size(g->form_v, g->dim_v, i) % 16) return false;
    return true;
}

/* Groups of exact pages that attend_group reads: halves, and several query heads that share a KV head. */
static bool in_groups(const rq_cache_group *g, uint32_t per_kv_head)
{
    return !rq_group_is_coded(g) && per_kv_head >= 4 && g->type_k == RQ_TYPE_F16 &&
           g->type_v == RQ_TYPE_F16 && g->dim_k <= 256 && g->dim_v <= 256 && g->dim_k % 16 == 0 &&
           g->dim_v % 16 == 0;
}

/* Attention of wide steps in tiles: the kernel for heads of this size, and its rows; 0 rows where there is none. */
static uint32_t tile_rows(const cu_builder *b, const rq_cache_group *g, uint32_t *kernel)
{
    uint32_t d = g->dim_k > g->dim_v ? g->dim_k : g->dim_v, rows = 128;
    const cu_device *device = cu_device_of(b);
    if (cu_tape(b)->bucket <= RQ_NARROW_BUCKET || g->type_k != RQ_TYPE_F16 || g->type_v != RQ_TYPE_F16 ||
        d > 512 || device->major < 8)
        return 0;
    *kernel = d <= 64 ? CU_attend_tile_64 : CU_attend_tile_128;
    if (d > 128) {
        *kernel = d <= 256 ? CU_attend_tile_256 : CU_attend_tile_512;
        rows = d <= 256 ? 64 : 32;
        if (d > 256 && g->form_v == RQ_KV_Q8_0) return 0; /* no room for so many scales */
    }
    return cu_kernel_shared_bytes(*kernel) <= device->shared_bytes ? rows : 0;
}

static void attend(cu_builder *b, const rq_op *op)
{
    const rq_value *cache = &cu_tape(b)->values[op->in[0]];
    const rq_cache_group *g = cu_bindings(b)->pools[cache->index].group;
    const rq_step_caps *caps = cu_bindings(b)->caps;
    cu_view q = cu_value(b, op->in[1]), mean = {0};
    if (op->n_in > 2) mean = cu_value(b, op->in[2]);
    uint32_t bucket = cu_tape(b)->bucket, heads = q.ne[1], group = heads / g->n_heads;
    bool splits = bucket <= RQ_NARROW_BUCKET;
    cuda_attend_args a = {.step = cu_step_address(b),
                          .pool = cu_pool_address(b, cache->index),
                          .tables = tables_of(b),
                          .q = q.address,
                          .mean = mean.address,
                          .y = cu_value(b, op->out[0]).address,
                          .head_stride = q.stride[1],
                          .token_stride = q.stride[2],
                          .group = cache->index,
                          .layer = cache->layer,
                          .heads = heads,
                          .per_kv_head = group,
                          .partial_floats = (g->dim_v + 2 + 15) / 16 * 16,
                          .mean_stride = mean.ne[1] > 1 ? g->dim_k : 0,
                          .scale = op->p.attend.scale,
                          .softcap = op->p.attend.softcap};
    if (splits) a.partials = cu_scratch(b, 4ull * caps->max_partials * heads * a.partial_floats);
    uint32_t queries = bucket < RQ_TILE_TOKENS ? bucket : RQ_TILE_TOKENS;
    uint32_t split_pages = divide_up(caps->max_pages, RQ_SPLIT_PAGES);
    uint32_t tiles = bucket / RQ_TILE_TOKENS + 2 * (bucket < RQ_MAX_RUNS ? bucket : RQ_MAX_RUNS);
    uint32_t work = splits ? bucket * split_pages : tiles < bucket ? tiles : bucket;
    if (work > caps->max_work) work = caps->max_work;
    _Static_assert(CU_attend_8 == CU_attend_1 + 3, "kernels by rows, one after the other");
    /* rows of a block: few need no more, and wide heads have no room for more */
    uint32_t rows = 1, kernel = CU_attend_1, most = g->dim_v > 256 ? 2 : g->dim_v > 128 ? 4 : 8;
    while (rows < most && rows < queries * group) rows *= 2, kernel++;
    if (on_matrix_units(g)) {
        bool usual = g->form_k == RQ_KV_C3 && g->form_v == RQ_KV_C3 && g->dim_k == g->dim_v;
        rows = 8, kernel = CU_attend_coded;
        if (usual && g->dim_k == 128) kernel = CU_attend_coded_3_128;
        if (usual && g->dim_k == 256) kernel = CU_attend_coded_3_256;
    }
    if (in_groups(g, group)) rows = 8, kernel = CU_attend_group;
    uint32_t tile_kernel, tile = tile_rows(b, g, &tile_kernel);
    if (tile) rows = tile, kernel = tile_kernel;
    cu_launch(b, kernel, &a, sizeof a, work, g->n_heads, divide_up(queries * group, rows), splits);
    if (!splits) return;
    cuda_finish_args f = {.attend = a};
    if (op->kind == RQ_OP_ATTEND_ROTATE) {
        cu_view gate = cu_value(b, op->in[5]);
        f.turn = rotation_of(b, rq_fused_rotate(cu_tape(b), op, 0));
        f.gate = gate.address;
        f.gate_stride[0] = gate.stride[1];
        f.gate_stride[1] = gate.stride[2];
    }
    cu_launch(b, CU_attend_finish, &f, sizeof f, work, heads, queries, true);
}

/* ---- experts --------------------------------------------------------------------------------------------- */

static void route(cu_builder *b, const rq_op *op)
{
    cu_view x = cu_value(b, op->in[0]);
    cuda_route_args a = {.logits = x.address,
                         .ids = cu_value(b, op->out[0]).address,
                         .weights = cu_value(b, op->out[1]).address,
                         .stride = x.stride[1],
                         .n_expert = x.ne[0],
                         .n_used = op->p.route.n_used,
                         .scale = op->p.route.scale};
    cu_launch(b, CU_route, &a, sizeof a, cu_tape(b)->bucket, 1, 1, false);
}

static void group(cu_builder *b, const rq_op *op)
{
    cu_view ids = cu_value(b, op->in[0]);
    uint32_t bucket = cu_tape(b)->bucket;
    rq_group_layout l = rq_group_layout_of(op->p.group.n_expert, ids.ne[0], bucket);
    cuda_group_args a = {.step = cu_step_address(b),
                         .ids = ids.address,
                         .block = cu_value(b, op->out[0]).address,
                         .n_expert = op->p.group.n_expert,
                         .n_used = ids.ne[0],
                         .bucket = bucket,
                         .counts = l.counts,
                         .starts = l.starts,
                         .order = l.order,
                         .tiles = l.tiles};
    cu_launch(b, CU_group, &a, sizeof a, 1, 1, 1, false);
}

static void combine(cu_builder *b, const rq_op *op)
{
    cu_view y = cu_value(b, op->in[0]), w = cu_value(b, op->in[1]), addend = {0}, row = {0}, gate = {0};
    if (op->kind == RQ_OP_COMBINE_ADD) {
        addend = cu_value(b, op->in[2]);
        row = cu_value(b, op->in[3]);
        gate = cu_value(b, op->in[4]);
    }
    cuda_combine_args a = {.y = y.address,
                           .weights = w.address,
                           .row = row.address,
                           .gate = gate.address,
                           .addend = addend.address,
                           .row_stride = row.stride[1],
                           .gate_stride = gate.stride[1],
                           .addend_stride = addend.stride[1],
                           .out = cu_value(b, op->out[0]).address,
                           .slot_stride = y.stride[1],
                           .token_stride = y.stride[2],
                           .weight_stride = w.stride[1],
                           .n = y.ne[0],
                           .n_used = y.ne[1]};
    cu_launch(b, CU_combine, &a, sizeof a, divide_up(y.ne[0], 256), cu_tape(b)->bucket, 1, false);
}

/* ---------------------------------------------------------------------------------------------------------- */

void cu_compile_op(cu_builder *b, const rq_op *op)
{
    static void (*const make[RQ_OP_COUNT])(cu_builder *, const rq_op *) = {
        [RQ_OP_EMBED] = embed,
        [RQ_OP_RMS_NORM] = norm,
        [RQ_OP_MATMUL] = matmul,
        [RQ_OP_ADD] = pointwise_op,
        [RQ_OP_MUL] = pointwise_op,
        [RQ_OP_SCALE] = pointwise_op,
        [RQ_OP_SOFTCAP] = pointwise_op,
        [RQ_OP_GLU] = pointwise_op,
        [RQ_OP_ROPE] = rope,
        [RQ_OP_ROTATE] = rotate_any,
        [RQ_OP_KV_WRITE] = kv_write,
        [RQ_OP_KV_ENCODE] = kv_encode,
        [RQ_OP_ATTEND] = attend,
        [RQ_OP_L2_NORM] = norm,
        [RQ_OP_SHORT_CONV] = cu_short_conv,
        [RQ_OP_DELTA_RULE] = cu_delta_rule,
        [RQ_OP_ROUTE] = route,
        [RQ_OP_GROUP] = group,
        [RQ_OP_MATMUL_EXPERTS] = matmul_experts,
        [RQ_OP_COMBINE] = combine,
        [RQ_OP_COPY] = pointwise_op,
        [RQ_OP_SELECT_ROWS] = select_rows,
        [RQ_OP_ARGMAX] = argmax,
        [RQ_OP_PRODUCTS] = products,
        [RQ_OP_GLU_PRODUCTS] = glu_products,
        [RQ_OP_QKV_WRITE] = qkv_write,
        [RQ_OP_ATTEND_ROTATE] = attend,
        [RQ_OP_COMBINE_ADD] = combine,
        [RQ_OP_NORM_JOIN] = norm,
    };
    if (op->kind < RQ_OP_COUNT && make[op->kind])
        make[op->kind](b, op);
    else
        cu_op_fail(b, "there is no kernel for it");
}

static bool readable(const rq_tape *tape, rq_ref weight, rq_error *why)
{
    const rq_type_info *info = rq_type_get((uint32_t)tape->values[weight].type);
    if (info && info->is_weight) return true;
    rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA cannot read weights of type %s",
            info && info->name ? info->name : "unknown");
    return false;
}

/* The caches there are kernels for: f16, f32 and bf16, q8_0, the codec rows and klt3. A tape that does not know its
 * groups is asked about when it does. */
static bool caches_supported(const rq_tape *tape, const rq_op *op, rq_error *why)
{
    for (uint32_t i = 0; i < op->n_in; i++) {
        const rq_value *v = &tape->values[op->in[i]];
        if (op->in[i] == 0 || v->space != RQ_SPACE_CACHE || !tape->groups || v->index >= tape->n_groups)
            continue;
        const rq_cache_group *g = &tape->groups[v->index];
        for (uint32_t side = 0; side < 2; side++) {
            rq_kv_form form = side ? g->form_v : g->form_k;
            if (form != RQ_KV_Q4_0 && form != RQ_KV_TRIP) continue;
            rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA keeps no caches in %s, which are for the processor alone",
                    form == RQ_KV_Q4_0 ? "q4_0" : "codecs under measurement");
            return false;
        }
    }
    return true;
}

bool cu_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why)
{
    (void)device;
    const rq_value *v = tape->values;
    if (!caches_supported(tape, op, why)) return false;
    switch (op->kind) {
    case RQ_OP_EMBED:
    case RQ_OP_MATMUL:
    case RQ_OP_MATMUL_EXPERTS:
        return readable(tape, op->in[0], why);
    case RQ_OP_ATTEND:
        if (v[op->in[1]].ne[0] <= 512 && v[op->out[0]].ne[0] / v[op->in[1]].ne[1] <= 512) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA has attention for heads of up to 512 elements");
        return false;
    case RQ_OP_ROUTE:
        if (v[op->in[0]].ne[0] <= 64 * 256) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA routes to at most %d experts", 64 * 256);
        return false;
    case RQ_OP_PRODUCTS: /* fused where matvec does it all */
    case RQ_OP_GLU_PRODUCTS: {
        bool glu = op->kind == RQ_OP_GLU_PRODUCTS;
        if (tape->bucket > CUDA_MATVEC_TOKENS || v[op->in[0]].ne[1] > CUDA_MATVEC_TOKENS) break;
        for (uint32_t i = 0; i < (glu ? 2u : op->n_out); i++)
            if (!readable(tape, op->in[2 + i], why)) return false;
        const rq_value *gate = &v[op->in[2]], *up = &v[op->in[3]];
        if (glu && (gate->type != up->type || gate->stride[1] != up->stride[1] ||
                    (op->in[4] && gate->stride[2] != up->stride[2])))
            break;
        return true;
    }
    case RQ_OP_ATTEND_ROTATE: /* where splits are merged by a launch of their own */
        if (tape->bucket <= RQ_NARROW_BUCKET && v[op->in[1]].ne[0] <= 512 && v[op->out[0]].ne[0] <= 512)
            return true;
        break;
    case RQ_OP_QKV_WRITE:
        if (v[op->in[0]].ne[0] <= RQ_ROTATION_MAX_DIM && v[op->in[2]].ne[0] <= RQ_ROTATION_MAX_DIM)
            return true;
        break;
    case RQ_OP_GLU:
    case RQ_OP_DELTA_RULE:
        if (tape->values[op->in[2]].ne[0] <= 256) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA has recurrent layers with keys of up to 256 elements");
        return false;
    case RQ_OP_RMS_NORM:
    case RQ_OP_L2_NORM:
    case RQ_OP_SHORT_CONV:
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_SCALE:
    case RQ_OP_SOFTCAP:
    case RQ_OP_ROPE:
    case RQ_OP_ROTATE:
    case RQ_OP_KV_WRITE:
    case RQ_OP_KV_ENCODE:
    case RQ_OP_GROUP:
    case RQ_OP_COMBINE:
    case RQ_OP_COPY:
    case RQ_OP_SELECT_ROWS:
    case RQ_OP_ARGMAX:
    case RQ_OP_COMBINE_ADD:
    case RQ_OP_NORM_JOIN:
        return true;
    default:
        break;
    }
    rq_fail(why, RQ_ERR_UNSUPPORTED, "CUDA has no kernel for %s here", rq_op_get(op->kind)->name);
    return false;
}

const char *cu_implementation(rq_device *device, const rq_tape *tape, const rq_op *op)
{
    (void)tape;
    (void)op;
    return device->backend->name;
}
