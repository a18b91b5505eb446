/* recurrent.c - recurrent layers: which kernels they become. The numbers in `u` are named in the shader's own comment. */
#include "backends/vulkan/vk.h"

#include <string.h>

enum { PIECE_TOKENS = 64, COLUMNS = 32, QUARTERS = 4 }; /* as in short_conv.comp and delta_rule.comp */
/* As in delta_chunk.glsl; columns of a workgroup of delta_chunk.comp, and of one whose keys are longer than FULL_KEY. */
enum {
    CHUNK = 32,
    CHUNK_FLOATS = 2 * CHUNK * CHUNK + 2 * CHUNK,
    CHUNK_COLUMNS = 32,
    FEW_COLUMNS = 16,
    FULL_KEY = 128
};
_Static_assert(CHUNK <= 2 * RQ_DELTA_LONG, "a step has at most a chunk for every RQ_DELTA_LONG tokens");

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static uint32_t runs_of(const vk_builder *b)
{
    uint32_t bucket = vk_tape(b)->bucket;
    return bucket < RQ_MAX_RUNS ? bucket : RQ_MAX_RUNS;
}

/* Addresses in the first slot of the operation's layer. */
typedef struct vk_state {
    const rq_state_pool *pool;
    uint64_t layer, pending;
} vk_state;

static vk_state state_of(vk_builder *b, const rq_op *op)
{
    const rq_value *state = &vk_tape(b)->values[op->in[0]];
    const rq_state_pool *pool = &vk_bindings(b)->states[state->index];
    uint64_t memory = vk_address(pool->memory);
    return (vk_state){.pool = pool,
                      .layer = memory + state->layer * pool->layout.layer_bytes,
                      .pending =
                          memory + pool->layout.state_bytes + state->layer * pool->layout.pending_bytes};
}

void vk_short_conv(vk_builder *b, const rq_op *op)
{
    static const uint32_t no_constants[VK_CONSTANTS];
    vk_state s = state_of(b, op);
    vk_view x = vk_value(b, op->in[1]), w = vk_value(b, op->in[2]), y = vk_value(b, op->out[0]);
    vk_push push = {.a = {vk_step_address(b), s.layer, x.address, w.address, y.address,
                          s.pending + s.pool->layout.pending_x},
                    .u = {x.ne[0], w.ne[1], x.stride[1], w.stride[1],
                          (uint32_t)(s.pool->layout.slot_bytes / 64), s.pool->n_slots,
                          s.pool->group->n_pending}};
    uint32_t pieces = runs_of(b) + vk_tape(b)->bucket / PIECE_TOKENS;
    vk_dispatch(b, VK_SHORT_CONV, no_constants, &push, divide_up(x.ne[0], 64), pieces, 1, false);
}

/* Floats from one operand to another; they are parts of one arena. */
static uint32_t distance(vk_builder *b, uint64_t from, uint64_t to)
{
    int64_t floats = (int64_t)(to - from) / 4;
    if (floats != (int32_t)floats) vk_op_fail(b, "its operands are more than 8 GiB apart");
    return (uint32_t)(int32_t)floats;
}

/* Do long runs go in chunks? Only where both kernels have room: 32 KiB of shared memory and 128 invocations. */
static bool in_chunks(const vk_builder *b)
{
    const vk_device *d = vk_device_of(b);
    const VkPhysicalDeviceLimits *limits = &d->properties.limits;
    return rq_delta_in_chunks(d->delta_form, true, vk_tape(b)->bucket) &&
           limits->maxComputeSharedMemorySize >= 32768 && limits->maxComputeWorkGroupInvocations >= 128;
}

static uint32_t chunks_of(const vk_builder *b)
{
    return divide_up(vk_tape(b)->bucket, RQ_DELTA_LONG);
}

uint64_t vk_delta_scratch(const vk_builder *b, const rq_op *op)
{
    if (!in_chunks(b)) return 0;
    return 4ull * CHUNK_FLOATS * chunks_of(b) * vk_tape(b)->values[op->in[3]].ne[1];
}

/* What delta_rule.comp leaves of the step: its long runs. */
static void delta_chunks(vk_builder *b, vk_push push, uint64_t scratch, const vk_view *k, const vk_view *v)
{
    uint64_t y = push.a[5];
    push.a[5] = scratch;
    vk_dispatch(b, VK_DELTA_PAIRS, (uint32_t[VK_CONSTANTS]){[1] = RQ_DELTA_LONG}, &push, chunks_of(b),
                v->ne[1], 1, false);
    push.a[3] = scratch;
    push.a[5] = y;
    uint32_t columns = k->ne[0] > FULL_KEY || v->ne[0] <= FEW_COLUMNS ? FEW_COLUMNS : CHUNK_COLUMNS;
    const uint32_t constants[VK_CONSTANTS] = {divide_up(k->ne[0], 64) * 64, RQ_DELTA_LONG,
                                              columns / 4, [6] = 4 * columns};
    vk_dispatch(b, VK_DELTA_CHUNK, constants, &push, runs_of(b), v->ne[1], divide_up(v->ne[0], columns),
                true);
}

void vk_delta_rule(vk_builder *b, const rq_op *op)
{
    vk_state s = state_of(b, op);
    vk_view q = vk_value(b, op->in[1]), k = vk_value(b, op->in[2]), v = vk_value(b, op->in[3]),
            alpha = vk_value(b, op->in[4]), beta = vk_value(b, op->in[5]), rate = vk_value(b, op->in[6]),
            offset = vk_value(b, op->in[7]), y = vk_value(b, op->out[0]);
    uint64_t matrices = s.layer + s.pool->layout.tail_bytes;
    uint32_t scale;
    memcpy(&scale, &op->p.delta.scale, sizeof scale);
    vk_push push = {.a = {vk_step_address(b), matrices, q.address, rate.address, offset.address, y.address},
                    .u = {distance(b, q.address, k.address),
                          distance(b, q.address, v.address),
                          distance(b, q.address, alpha.address),
                          distance(b, q.address, beta.address),
                          q.stride[1],
                          q.stride[2],
                          k.stride[1],
                          k.stride[2],
                          v.stride[1],
                          v.stride[2],
                          alpha.stride[1],
                          beta.stride[1],
                          (uint32_t)(s.pool->layout.slot_bytes / 64),
                          s.pool->n_slots,
                          k.ne[0] | v.ne[0] << 16,
                          v.ne[1] | k.ne[1] << 16,
                          scale,
                          op->p.delta.tiled | s.pool->group->n_pending << 1,
                          (uint32_t)((s.pending + s.pool->layout.pending_v - matrices) / 64),
                          rq_state_key_heads(s.pool->group)}};
    bool chunks = in_chunks(b);
    uint64_t scratch = chunks ? vk_shared_scratch(b) : 0;
    uint32_t constants[VK_CONSTANTS] = {divide_up(k.ne[0], QUARTERS), chunks ? RQ_DELTA_LONG : 0};
    vk_dispatch(b, VK_DELTA_RULE, constants, &push, runs_of(b), v.ne[1], divide_up(v.ne[0], COLUMNS), chunks);
    if (chunks) delta_chunks(b, push, scratch, &k, &v);
}
