/* recurrent.c - recurrent layers: which kernels they become. */
#include "backends/cuda/cu.h"

enum {
    COLUMNS = 32, /* of a block of a delta rule in token form */
    MOST_RUNS =
        8 /* at a time, of a program that goes in chunks: prompts are few; of more each block takes some */
};
_Static_assert((int)CUDA_DELTA_LONG == (int)RQ_DELTA_LONG, "kernels and the ground floor agree");

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static uint32_t runs_of(const cu_builder *b)
{
    uint32_t bucket = cu_tape(b)->bucket;
    return bucket < RQ_MAX_RUNS ? bucket : RQ_MAX_RUNS;
}

static const rq_value *state_of(const cu_builder *b, const rq_op *op)
{
    return &cu_tape(b)->values[op->in[0]];
}

static const rq_state_pool *pool_of(const cu_builder *b, const rq_op *op)
{
    return &cu_bindings(b)->states[state_of(b, op)->index];
}

/* Bytes from a slot's start to the layer's pending area. */
static uint64_t pending_of(const cu_builder *b, const rq_op *op)
{
    const rq_state_layout *l = &pool_of(b, op)->layout;
    return l->state_bytes + state_of(b, op)->layer * l->pending_bytes;
}

void cu_short_conv(cu_builder *b, const rq_op *op)
{
    const rq_state_pool *pool = pool_of(b, op);
    cu_view x = cu_value(b, op->in[1]), w = cu_value(b, op->in[2]);
    cuda_conv_args a = {.step = cu_step_address(b),
                        .state = cu_address(pool->memory),
                        .x = x.address,
                        .w = w.address,
                        .y = cu_value(b, op->out[0]).address,
                        .slot_bytes = pool->layout.slot_bytes,
                        .layer_bytes = pool->layout.layer_bytes,
                        .pending = pending_of(b, op) + pool->layout.pending_x,
                        .x_stride = x.stride[1],
                        .w_stride = w.stride[1],
                        .layer = state_of(b, op)->layer,
                        .n_slots = pool->n_slots,
                        .channels = x.ne[0],
                        .taps = w.ne[1],
                        .places = pool->group->n_pending};
    uint32_t pieces = runs_of(b) + cu_tape(b)->bucket / CUDA_CONV_PIECE;
    cu_launch(b, CU_short_conv, &a, sizeof a, divide_up(x.ne[0], 64), pieces, 1, false);
}

/* Width of the kernels that take keys of dk elements in chunks, or 0: this program goes token by token. */
static uint32_t chunk_width(const cu_builder *b, uint32_t dk)
{
    const cu_device *d = cu_device_of(b);
    uint32_t width = dk <= 64 ? 64 : 128;
    uint32_t shared = cu_kernel_shared_bytes(width == 64 ? CU_delta_chunk_64 : CU_delta_chunk_128);
    if (dk > 128 || d->major < 8 || shared > d->shared_bytes) return 0;
    return rq_delta_in_chunks(d->delta_form, true, cu_tape(b)->bucket) ? width : 0;
}

/* What chunks need is made by one launch for all of them, then they are walked through. */
static void in_chunks(cu_builder *b, const cuda_delta_args *a, uint32_t width)
{
    uint32_t pieces = cu_tape(b)->bucket / RQ_DELTA_LONG; /* chunks at most, and runs */
    cu_launch(b, width == 64 ? CU_delta_prepare_64 : CU_delta_prepare_128, a, sizeof *a, pieces, a->key_heads,
              1, false);
    cu_launch(b, width == 64 ? CU_delta_chunk_64 : CU_delta_chunk_128, a, sizeof *a,
              pieces < MOST_RUNS ? pieces : MOST_RUNS, a->heads, divide_up(a->dv, CUDA_DELTA_COLUMNS), true);
}

void cu_delta_rule(cu_builder *b, const rq_op *op)
{
    const rq_state_pool *pool = pool_of(b, op);
    const rq_state_layout *l = &pool->layout;
    cu_view q = cu_value(b, op->in[1]), k = cu_value(b, op->in[2]), v = cu_value(b, op->in[3]),
            alpha = cu_value(b, op->in[4]), beta = cu_value(b, op->in[5]);
    cuda_delta_args a = {.step = cu_step_address(b),
                         .state = cu_address(pool->memory),
                         .q = q.address,
                         .k = k.address,
                         .v = v.address,
                         .alpha = alpha.address,
                         .beta = beta.address,
                         .rate = cu_value(b, op->in[6]).address,
                         .offset = cu_value(b, op->in[7]).address,
                         .y = cu_value(b, op->out[0]).address,
                         .slot_bytes = l->slot_bytes,
                         .layer_bytes = l->layer_bytes,
                         .tail_bytes = l->tail_bytes,
                         .matrix_bytes = l->matrix_bytes,
                         .pending_v = pending_of(b, op) + l->pending_v,
                         .pending_k = pending_of(b, op) + l->pending_k,
                         .pending_gates = pending_of(b, op) + l->pending_gates,
                         .q_stride = {q.stride[1], q.stride[2]},
                         .k_stride = {k.stride[1], k.stride[2]},
                         .v_stride = {v.stride[1], v.stride[2]},
                         .alpha_stride = alpha.stride[1],
                         .beta_stride = beta.stride[1],
                         .layer = state_of(b, op)->layer,
                         .n_slots = pool->n_slots,
                         .heads = v.ne[1],
                         .key_heads = k.ne[1],
                         .group_key_heads = rq_state_key_heads(pool->group),
                         .dk = k.ne[0],
                         .dv = v.ne[0],
                         .tiled = op->p.delta.tiled,
                         .places = pool->group->n_pending,
                         .scale = op->p.delta.scale};
    uint32_t kernel = k.ne[0] > 128  ? CU_delta_rule_256
                      : k.ne[0] > 64 ? CU_delta_rule_128
                      : k.ne[0] > 32 ? CU_delta_rule_64
                                     : CU_delta_rule_32;
    uint32_t width = chunk_width(b, a.dk), runs = runs_of(b);
    if (width) {
        uint64_t bucket = cu_tape(b)->bucket, rows = bucket * a.key_heads * width * 8;
        a.chunks = 1;
        a.rows = cu_scratch(b, rows + bucket * a.heads * CUDA_DELTA_RECORD);
        a.records = a.rows + rows;
        if (runs > MOST_RUNS) runs = MOST_RUNS;
    }
    cu_launch(b, kernel, &a, sizeof a, runs, v.ne[1], divide_up(v.ne[0], COLUMNS), false);
    if (width) in_chunks(b, &a, width);
}
