/* ops.c - which kernels an operation becomes, and with which arguments. The numbers in `u` are named in the
 * shader's own comment. */
#include "backends/vulkan/vk.h"

#include "backends/ops.h"

#include <string.h>

static uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static const uint32_t no_constants[VK_CONSTANTS];

/* Row numbers that may pass the device's limit of workgroups go over x and y; shaders put them together. */
enum { ROWS_X = 32768 };

static void dispatch_rows(vk_builder *b, vk_shader shader, const uint32_t *constants, const vk_push *push,
                          uint32_t rows, uint32_t z, bool after)
{
    vk_dispatch(b, shader, constants, push, rows < ROWS_X ? rows : ROWS_X, divide_up(rows, ROWS_X), z, after);
}

static uint64_t tables_of(const vk_builder *b)
{
    return vk_device_of(b)->tables->address;
}

/* What divides the address of every block: 16, 4, or less (ALIGN of shaders/weights.glsl). */
static uint32_t alignment(uint64_t address, const rq_value *w)
{
    const rq_type_info *info = rq_type_get((uint32_t)w->type);
    uint64_t bits = address | w->stride[1] | (w->ne[2] > 1 ? w->stride[2] : 0);
    if (info->block_elems > 1) bits |= info->block_bytes;
    return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

static void embed(vk_builder *b, const rq_op *op)
{
    const rq_value *w = &vk_tape(b)->values[op->in[0]];
    vk_view table = vk_value(b, op->in[0]), y = vk_value(b, op->out[0]);
    const rq_memory *sampled = vk_bindings(b)->persist[RQ_PERSIST_SAMPLED];
    vk_push push = {
        .a = {vk_step_address(b), table.address, tables_of(b), y.address, vk_address(sampled)},
        .u = {w->ne[0], w->ne[1], (uint32_t)w->stride[1], sampled ? (uint32_t)(sampled->bytes / 4) : 0}};
    vk_dispatch(b, VK_EMBED, (uint32_t[VK_CONSTANTS]){(uint32_t)w->type, [7] = alignment(table.address, w)},
                &push, divide_up(w->ne[0], 1024), vk_tape(b)->bucket, 1, false);
}

static uint32_t rows_of(const vk_view *v)
{
    return v->ne[1] * v->ne[2] * v->ne[3];
}

static void norm(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), w = {0}, y = vk_value(b, op->out[0]);
    if (op->kind == RQ_OP_RMS_NORM) w = vk_value(b, op->in[1]);
    vk_push push = {.a = {x.address, w.address, y.address},
                    .u = {x.ne[0], x.ne[1], x.ne[2], x.stride[1], x.stride[2], x.stride[3],
                          float_bits(op->p.norm.eps), rows_of(&x)}};
    dispatch_rows(b, VK_NORM, (uint32_t[VK_CONSTANTS]){op->kind == RQ_OP_L2_NORM}, &push, rows_of(&x), 1,
                  false);
}

enum { OP_ADD, OP_MUL, OP_SCALE, OP_SILU, OP_GELU, OP_COPY, OP_SIGMOID, OP_SOFTCAP };

static void pointwise(vk_builder *b, uint32_t kind, vk_view x, vk_view second, vk_view y, float factor)
{
    bool row = second.address && rows_of(&second) == 1 && rows_of(&x) > 1;
    bool scalar = x.ne[0] == 1 && y.ne[0] > 1; /* a gate of one element for each row */
    x.ne[0] = scalar ? y.ne[0] : x.ne[0];
    vk_push push = {.a = {x.address, second.address, y.address},
                    .u = {x.ne[0], x.ne[1], x.ne[2], rows_of(&x), x.stride[1], x.stride[2], x.stride[3]}};
    for (uint32_t i = 0; i < 3; i++) push.u[7 + i] = row ? 0 : second.stride[1 + i];
    push.u[10] = float_bits(factor);
    push.u[11] = scalar;
    uint32_t rows = rows_of(&x);
    vk_dispatch(b, VK_POINTWISE, (uint32_t[VK_CONSTANTS]){kind}, &push, divide_up(x.ne[0], 64),
                rows < ROWS_X ? rows : ROWS_X, divide_up(rows, ROWS_X), false);
}

static void rope(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), f = vk_value(b, op->in[1]), y = vk_value(b, op->out[0]);
    uint32_t n_rot = op->p.rope.n_rot,
             most = n_rot / 2 > x.ne[0] - n_rot / 2 ? n_rot / 2 : x.ne[0] - n_rot / 2;
    vk_push push = {.a = {vk_step_address(b), x.address, f.address, y.address},
                    .u = {x.ne[0], x.ne[1], n_rot, x.stride[1], x.stride[2],
                          op->p.rope.pairing == RQ_ROPE_NEOX, float_bits(op->p.rope.magnitude)}};
    vk_dispatch(b, VK_ROPE, no_constants, &push, divide_up(most, 64), x.ne[1], x.ne[2], false);
}

/* ---- products -------------------------------------------------------------------------------------------- */

enum { OUTPUTS = 2, TILE_OUTPUTS = 64, SCRATCH_ALIGN = 256 };
/* Of attention in tiles: its rows, the longest row of keys or values, and invocations of the plain kernel. */
enum { TILE_ROWS = 32, TILE_WIDTH = 256, TILE_INVOCATIONS = 128, ATTEND_SCRATCH_BYTES = 64 << 20 };

static uint64_t align_up(uint64_t x, uint64_t to)
{
    return (x + to - 1) / to * to;
}

static uint32_t attend_floats(uint32_t dim_v)
{
    return (dim_v + 2 + 15) / 16 * 16; /* of a partial result: its maximum and sum, and the values */
}

static bool is_product(const rq_op *op)
{
    return op->kind == RQ_OP_MATMUL || op->kind == RQ_OP_MATMUL_EXPERTS;
}

static const rq_cache_group *group_of(const vk_builder *b, const rq_op *op)
{
    return vk_bindings(b)->pools[vk_tape(b)->values[op->in[0]].index].group;
}

static uint32_t row_width(const rq_cache_group *g)
{
    return ((g->dim_k > g->dim_v ? g->dim_k : g->dim_v) + 31) & ~31u;
}

/* Is the attention of this bucket one in tiles (attend_tile.glsl)? Others go through attend.comp. */
static bool in_tiles(const vk_builder *b, const rq_op *op)
{
    const VkPhysicalDeviceLimits *limits = &vk_device_of(b)->properties.limits;
    const rq_cache_group *g = group_of(b, op);
    return vk_tape(b)->bucket > RQ_NARROW_BUCKET && op->p.attend.softcap <= 0 && g->type_k == RQ_TYPE_F16 &&
           g->type_v == RQ_TYPE_F16 && row_width(g) <= TILE_WIDTH &&
           limits->maxComputeSharedMemorySize >= 32768 &&
           limits->maxComputeWorkGroupInvocations >= TILE_INVOCATIONS;
}

/* The kernel of a prompt's attention: the device's own choice, unless its queries in another form would take more
 * scratch memory than attention may. */
static vk_product tile_kernel(const vk_builder *b, const rq_op *op)
{
    const rq_value *q = &vk_tape(b)->values[op->in[1]];
    vk_product p = vk_attend_of(vk_device_of(b));
    if (vk_form_bytes(p.form, q->ne[0], (uint64_t)q->ne[1] * q->ne[2]) > ATTEND_SCRATCH_BYTES)
        p = (vk_product){VK_ATTEND_TILE, VK_FORM_F32};
    return p;
}

static uint64_t query_bytes(const vk_builder *b, const rq_op *op)
{
    const rq_value *q = &vk_tape(b)->values[op->in[1]];
    if (!in_tiles(b, op)) return 0;
    return vk_form_bytes(tile_kernel(b, op).form, q->ne[0], (uint64_t)q->ne[1] * q->ne[2]);
}

/* Scratch memory of a program: attention's partial results, then activations in the form products want. The largest
 * of each in the tape, so that every operation asks for the same. Returns the address of the first. */
static uint64_t scratch(vk_builder *b, uint64_t *activations)
{
    const rq_tape *tape = vk_tape(b);
    const rq_step_caps *caps = vk_bindings(b)->caps;
    uint64_t partials = 0, bytes = 0;
    for (uint32_t i = 0; i < tape->n_ops; i++) {
        const rq_op *op = &tape->ops[i];
        const rq_value *w = &tape->values[op->in[0]], *x = &tape->values[op->in[1]];
        uint64_t n = 0;
        if (op->kind == RQ_OP_ATTEND && tape->bucket <= 8) {
            n = 4ull * caps->max_partials * x->ne[1] *
                attend_floats(tape->values[op->out[0]].ne[0] / x->ne[1]);
            if (n > partials) partials = n;
        } else if (op->kind == RQ_OP_ATTEND) {
            n = query_bytes(b, op);
            if (n > bytes) bytes = n;
        } else if (op->kind == RQ_OP_DELTA_RULE) {
            n = vk_delta_scratch(b, op);
            if (n > bytes) bytes = n;
        } else if (is_product(op)) {
            n = vk_form_bytes(vk_product_of(vk_device_of(b), w->type, tape->bucket).form, w->ne[0],
                              op->kind == RQ_OP_MATMUL ? x->ne[1] : x->ne[1] * x->ne[2]);
            if (n > bytes) bytes = n;
        }
    }
    partials = align_up(partials, SCRATCH_ALIGN);
    uint64_t address = vk_scratch(b, partials + bytes);
    if (activations) *activations = address ? address + partials : 0;
    return address;
}

uint64_t vk_shared_scratch(vk_builder *b)
{
    uint64_t to = 0;
    scratch(b, &to);
    *vk_memo(b) = 0;
    return to;
}

/* Activations `ref`, `rows` of them of `slots` to a token, in another form in scratch memory. The last ones made stay
 * there, so that several products of the same activations share them. Returns their address; *after: the product
 * must wait for them. */
static uint64_t in_form(vk_builder *b, vk_form form, rq_ref ref, const vk_view *x, uint32_t slots,
                        uint32_t rows, uint32_t token_stride, uint32_t slot_stride, bool *after)
{
    uint64_t to = 0, *last = vk_memo(b), key = (uint64_t)ref << 8 | form;
    scratch(b, &to);
    *after = *last != key;
    if (!*after) return to;
    *last = key;
    vk_push push = {.a = {x->address, to}, .u = {x->ne[0], rows, slots, token_stride, slot_stride}};
    bool halves = form == VK_FORM_HALVES;
    if (halves)
        dispatch_rows(b, VK_HALVE, no_constants, &push, rows, 1, true);
    else
        vk_dispatch(b, VK_QUANTIZE, no_constants, &push, divide_up(x->ne[0], 32 * 64), rows, 1, true);
    return to;
}

/* Invocations that share an output: enough for the chunks of a row, whatever the bucket is. */
static uint32_t lanes_of(const rq_value *w)
{
    uint32_t chunks = w->ne[0] / (rq_type_get((uint32_t)w->type)->block_elems > 1 ? 32 : 8);
    return chunks >= 64 ? 64 : chunks >= 32 ? 32 : 16;
}

/* Columns of a tile of matmul.comp and matmul_coopmat.comp. */
static uint32_t tile_columns(uint32_t columns)
{
    return columns <= 16 ? 16 : columns <= 32 ? 32 : 64;
}

/* Invocations of a workgroup of matmul_coopmat.comp; the other kernels do not look at it. */
static uint32_t four_subgroups(const vk_builder *b)
{
    return 4 * vk_device_of(b)->features.subgroup_size;
}

/* What divides the address of every row of activations: 16 or 4; activations in another form are where they want. */
static uint32_t row_alignment(const vk_view *x, vk_form form)
{
    bool all = x->address % 16 == 0 && x->stride[1] % 4 == 0 && x->stride[2] % 4 == 0;
    return all || form != VK_FORM_F32 ? 16 : 4;
}

/* Buckets up to 8 take matvec, whose sums do not depend on the bucket (DESIGN 2.3). */
static void matmul(vk_builder *b, const rq_op *op)
{
    const rq_value *w = &vk_tape(b)->values[op->in[0]];
    vk_view weight = vk_value(b, op->in[0]), x = vk_value(b, op->in[1]), y = vk_value(b, op->out[0]);
    uint32_t columns = x.ne[1], type = (uint32_t)w->type, align = alignment(weight.address, w);
    vk_push push = {.a = {weight.address, tables_of(b), x.address, y.address},
                    .u = {w->ne[0], w->ne[1], (uint32_t)w->stride[1], x.stride[1], y.stride[1]}};
    vk_product product = vk_product_of(vk_device_of(b), w->type, columns);
    bool after = false;
    if (product.form != VK_FORM_F32) {
        push.a[2] = in_form(b, product.form, op->in[1], &x, 1, columns, x.stride[1], 0, &after);
        push.u[3] = columns;
    }
    if (columns <= 8) {
        uint32_t x_align = row_alignment(&x, product.form);
        push.u[11] = lanes_of(w);
        dispatch_rows(b, product.shader,
                      (uint32_t[VK_CONSTANTS]){type, columns, 0, OUTPUTS, x_align, [7] = align}, &push,
                      divide_up(w->ne[1], OUTPUTS * 64 / push.u[11]), 1, after);
        return;
    }
    uint32_t word = vk_extent_word(b), tile = tile_columns(columns);
    push.a[4] = word == UINT32_MAX ? 0 : vk_step_address(b);
    push.u[5] = columns;
    push.u[6] = word;
    vk_dispatch(b, product.shader, (uint32_t[VK_CONSTANTS]){type, 0, tile, [6] = four_subgroups(b), align},
                &push, divide_up(w->ne[1], TILE_OUTPUTS), divide_up(columns, tile), 1, after);
}

static void matmul_experts(vk_builder *b, const rq_op *op)
{
    const rq_value *w = &vk_tape(b)->values[op->in[0]];
    vk_view weight = vk_value(b, op->in[0]), x = vk_value(b, op->in[1]), ids = vk_value(b, op->in[2]),
            group = vk_value(b, op->in[3]), y = vk_value(b, op->out[0]);
    uint32_t k = ids.ne[0], bucket = vk_tape(b)->bucket, type = (uint32_t)w->type,
             align = alignment(weight.address, w);
    vk_push push = {.a = {weight.address, tables_of(b), x.address, y.address, vk_step_address(b)},
                    .u = {w->ne[0], w->ne[1], (uint32_t)w->stride[1], x.stride[2], 0, k, w->ne[2],
                          (uint32_t)w->stride[2], (uint32_t)(w->stride[2] >> 32), x.ne[1] > 1, x.stride[1]}};
    vk_product product = vk_product_of(vk_device_of(b), w->type, bucket);
    bool after = false;
    if (product.form != VK_FORM_F32) {
        uint32_t rows = x.ne[1] * bucket;
        push.a[2] = in_form(b, product.form, op->in[1], &x, x.ne[1], rows, x.stride[2], x.stride[1], &after);
        push.u[3] = rows;
    }
    if (bucket <= 8) {
        uint32_t x_align = row_alignment(&x, product.form);
        push.a[5] = ids.address;
        push.u[11] = lanes_of(w);
        dispatch_rows(b, product.shader, (uint32_t[VK_CONSTANTS]){type, 1, 1, OUTPUTS, x_align, [7] = align},
                      &push, divide_up(w->ne[1], OUTPUTS * 64 / push.u[11]), k * bucket, after);
        return;
    }
    rq_group_layout l = rq_group_layout_of(w->ne[2], k, bucket);
    push.a[5] = group.address;
    push.u[12] = l.order;
    push.u[13] = l.tiles;
    vk_dispatch(b, product.shader,
                (uint32_t[VK_CONSTANTS]){type, 1, RQ_GROUP_TILE, [6] = four_subgroups(b), align}, &push,
                divide_up(w->ne[1], TILE_OUTPUTS), l.max_tiles, 1, after);
}

static void kv_write(vk_builder *b, const rq_op *op)
{
    const rq_value *cache = &vk_tape(b)->values[op->in[0]];
    vk_view k = vk_value(b, op->in[1]), v = vk_value(b, op->in[2]);
    vk_push push = {.a = {vk_step_address(b), vk_pool_address(b, cache->index), k.address, v.address},
                    .u = {cache->index, cache->layer, k.stride[1], k.stride[2], v.stride[1], v.stride[2]}};
    vk_dispatch(b, VK_KV_WRITE, no_constants, &push, divide_up(k.ne[0] > v.ne[0] ? k.ne[0] : v.ne[0], 64),
                k.ne[1], vk_tape(b)->bucket, false);
}

static void kv_encode(vk_builder *b, const rq_op *op)
{
    const rq_value *cache = &vk_tape(b)->values[op->in[0]];
    const rq_cache_group *g = vk_bindings(b)->pools[cache->index].group;
    vk_push push = {.a = {vk_step_address(b), vk_pool_address(b, cache->index), tables_of(b)},
                    .u = {cache->index, cache->layer}};
    vk_dispatch(b, VK_KV_ENCODE, no_constants, &push, vk_bindings(b)->caps->max_encodes, g->n_heads, 2,
                false);
}

static void rotate(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), data = vk_value(b, op->in[1]), mean = vk_value(b, op->in[2]),
            lambda = vk_value(b, op->in[3]), y = vk_value(b, op->out[0]);
    uint32_t n_blocks = op->p.rotate.n_blocks, heads = x.ne[1];
    vk_push push = {.a = {x.address, data.address, mean.address, lambda.address, y.address},
                    .u = {x.ne[0], heads, x.stride[1], x.stride[2],
                          (data.address ? data.ne[1] : 1) | (mean.address ? mean.ne[1] : 1) << 10 |
                              (lambda.address ? lambda.ne[1] : 1) << 20,
                          n_blocks | (uint32_t)op->p.rotate.inverse << 8, data.stride[1]}};
    for (uint32_t i = 0; i < n_blocks; i++) {
        const rq_rotation_block *block = &op->p.rotate.blocks[i];
        push.u[7 + 2 * i] = block->offset | (uint32_t)block->count << 16;
        push.u[8 + 2 * i] = block->size | (uint32_t)block->hadamard << 16;
    }
    vk_dispatch(b, VK_ROTATE, no_constants, &push, heads, x.ne[2], 1, false);
}

/* A prompt: a workgroup for each TILE_ROWS of the `rows` rows of a work item and KV head. */
static void attend_tiles(vk_builder *b, const rq_op *op, vk_push *push, const vk_view *q, uint32_t work,
                         uint32_t rows)
{
    const rq_cache_group *g = group_of(b, op);
    vk_product kernel = tile_kernel(b, op);
    uint32_t invocations = TILE_INVOCATIONS, sums = 8 * divide_up(TILE_ROWS / 8 * g->dim_v, invocations);
    bool after = false;
    if (kernel.form == VK_FORM_HALVES) {
        uint32_t n = q->ne[1] * q->ne[2];
        invocations = four_subgroups(b);
        sums = 32 * TILE_ROWS / invocations * divide_up(g->dim_v, 32);
        push->a[4] = in_form(b, kernel.form, op->in[1], q, q->ne[1], n, q->stride[2], q->stride[1], &after);
        push->u[12] = n;
    }
    vk_dispatch(b, kernel.shader, (uint32_t[VK_CONSTANTS]){row_width(g), [2] = sums, [6] = invocations}, push,
                work, g->n_heads, divide_up(rows, TILE_ROWS), after);
}

static void attend(vk_builder *b, const rq_op *op)
{
    const rq_value *cache = &vk_tape(b)->values[op->in[0]];
    const rq_cache_group *g = vk_bindings(b)->pools[cache->index].group;
    const rq_step_caps *caps = vk_bindings(b)->caps;
    vk_view q = vk_value(b, op->in[1]), mean = {0}, y = vk_value(b, op->out[0]);
    if (op->n_in > 2) mean = vk_value(b, op->in[2]);
    uint32_t bucket = vk_tape(b)->bucket, heads = q.ne[1], floats = attend_floats(g->dim_v);
    bool splits = bucket <= 8;
    uint64_t partials = 0;
    if (splits) partials = scratch(b, NULL);
    vk_push push = {.a = {vk_step_address(b), vk_pool_address(b, cache->index), q.address, y.address,
                          partials, mean.address},
                    .u = {cache->index, cache->layer, heads, heads / g->n_heads, q.stride[1], q.stride[2],
                          float_bits(op->p.attend.scale), float_bits(op->p.attend.softcap), floats,
                          (uint32_t)tables_of(b), (uint32_t)(tables_of(b) >> 32), mean.ne[1] > 1}};
    uint32_t queries = bucket < RQ_TILE_TOKENS ? bucket : RQ_TILE_TOKENS;
    uint32_t split_pages = divide_up(caps->max_pages, RQ_SPLIT_PAGES);
    uint32_t tiles = bucket / RQ_TILE_TOKENS + 2 * (bucket < RQ_MAX_RUNS ? bucket : RQ_MAX_RUNS);
    uint32_t work = splits ? bucket * split_pages : tiles < bucket ? tiles : bucket;
    if (work > caps->max_work) work = caps->max_work;
    uint32_t group = heads / g->n_heads, rows = 1, per_invocation = 1;
    if (in_tiles(b, op)) {
        attend_tiles(b, op, &push, &q, work, queries * group);
        return;
    }
    /* rows of a workgroup: one page is unpacked for all of them; shared memory and registers hold eight, and sixteen
     * where there are so many query heads to a KV head and they are small */
    while (64 * per_invocation < g->dim_v) per_invocation *= 2;
    uint32_t most = group > 8 && per_invocation <= 2 && g->dim_k <= 128 ? 16 : 8;
    while (rows < most && rows < queries * group) rows *= 2;
    vk_dispatch(b, VK_ATTEND, (uint32_t[VK_CONSTANTS]){rows, per_invocation, (g->dim_k + 63) & ~63u}, &push,
                work, g->n_heads, divide_up(queries * group, rows), splits);
    if (splits) vk_dispatch(b, VK_ATTEND_MERGE, no_constants, &push, work, heads, queries, true);
}

static void route(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), ids = vk_value(b, op->out[0]), weights = vk_value(b, op->out[1]);
    vk_push push = {.a = {x.address, ids.address, weights.address},
                    .u = {x.ne[0], op->p.route.n_used, x.stride[1], float_bits(op->p.route.scale)}};
    vk_dispatch(b, VK_ROUTE, no_constants, &push, vk_tape(b)->bucket, 1, 1, false);
}

static void group(vk_builder *b, const rq_op *op)
{
    vk_view ids = vk_value(b, op->in[0]), block = vk_value(b, op->out[0]);
    rq_group_layout l = rq_group_layout_of(op->p.group.n_expert, ids.ne[0], vk_tape(b)->bucket);
    vk_push push = {
        .a = {vk_step_address(b), ids.address, block.address},
        .u = {op->p.group.n_expert, ids.ne[0], vk_tape(b)->bucket, l.counts, l.starts, l.order, l.tiles}};
    vk_dispatch(b, VK_GROUP, no_constants, &push, 1, 1, 1, false);
}

static void combine(vk_builder *b, const rq_op *op)
{
    vk_view y = vk_value(b, op->in[0]), w = vk_value(b, op->in[1]), out = vk_value(b, op->out[0]);
    vk_push push = {.a = {y.address, w.address, out.address},
                    .u = {y.ne[0], y.ne[1], y.stride[1], y.stride[2], w.stride[1]}};
    vk_dispatch(b, VK_COMBINE, no_constants, &push, divide_up(y.ne[0], 64), vk_tape(b)->bucket, 1, false);
}

static void select_rows(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), y = vk_value(b, op->out[0]);
    vk_push push = {.a = {vk_step_address(b), x.address, y.address}, .u = {x.ne[0], x.ne[1]}};
    vk_dispatch(b, VK_SELECT, no_constants, &push, divide_up(x.ne[0], 64), vk_tape(b)->bucket, 1, false);
}

static void argmax(vk_builder *b, const rq_op *op)
{
    vk_view x = vk_value(b, op->in[0]), sampled = vk_value(b, op->in[1]);
    vk_push push = {.a = {vk_step_address(b), x.address, sampled.address},
                    .u = {x.ne[0], x.stride[1], sampled.ne[1], vk_tape(b)->bucket}};
    vk_dispatch(b, VK_ARGMAX, no_constants, &push, 1, 1, 1, false);
}

void vk_compile_op(vk_builder *b, const rq_op *op)
{
    static const uint32_t of_act[] = {
        [RQ_ACT_SILU] = OP_SILU, [RQ_ACT_GELU_TANH] = OP_GELU, [RQ_ACT_SIGMOID] = OP_SIGMOID};
    vk_view in0, in1 = {0}, out;
    switch (op->kind) {
    case RQ_OP_EMBED:
        embed(b, op);
        return;
    case RQ_OP_RMS_NORM:
    case RQ_OP_L2_NORM:
        norm(b, op);
        return;
    case RQ_OP_SHORT_CONV:
        vk_short_conv(b, op);
        return;
    case RQ_OP_DELTA_RULE:
        vk_delta_rule(b, op);
        return;
    case RQ_OP_MATMUL:
        matmul(b, op);
        return;
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_GLU:
        in0 = vk_value(b, op->in[0]), in1 = vk_value(b, op->in[1]), out = vk_value(b, op->out[0]);
        pointwise(b,
                  op->kind == RQ_OP_ADD   ? OP_ADD
                  : op->kind == RQ_OP_MUL ? OP_MUL
                                          : of_act[op->p.glu.act],
                  in0, in1, out, 0);
        return;
    case RQ_OP_SCALE:
        in0 = vk_value(b, op->in[0]), out = vk_value(b, op->out[0]);
        pointwise(b, OP_SCALE, in0, in1, out, op->p.scale.factor);
        return;
    case RQ_OP_SOFTCAP:
        in0 = vk_value(b, op->in[0]), out = vk_value(b, op->out[0]);
        pointwise(b, OP_SOFTCAP, in0, in1, out, op->p.softcap.cap);
        return;
    case RQ_OP_COPY:
        in0 = vk_value(b, op->in[0]), out = vk_value(b, op->in[1]);
        pointwise(b, OP_COPY, in0, in1, out, 0);
        return;
    case RQ_OP_ROPE:
        rope(b, op);
        return;
    case RQ_OP_ROTATE:
        rotate(b, op);
        return;
    case RQ_OP_KV_WRITE:
        kv_write(b, op);
        return;
    case RQ_OP_KV_ENCODE:
        kv_encode(b, op);
        return;
    case RQ_OP_ATTEND:
        attend(b, op);
        return;
    case RQ_OP_ROUTE:
        route(b, op);
        return;
    case RQ_OP_GROUP:
        group(b, op);
        return;
    case RQ_OP_MATMUL_EXPERTS:
        matmul_experts(b, op);
        return;
    case RQ_OP_COMBINE:
        combine(b, op);
        return;
    case RQ_OP_SELECT_ROWS:
        select_rows(b, op);
        return;
    case RQ_OP_ARGMAX:
        argmax(b, op);
        return;
    default:
        vk_op_fail(b, "there is no kernel for it");
    }
}

/* The caches there are kernels for: f16, f32 and bf16, q8_0 and the codec rows. A tape that does not know its groups is
 * asked about when it does. */
static bool cache_supported(const rq_tape *tape, const rq_op *op, rq_error *why)
{
    uint32_t index = tape->values[op->in[0]].index;
    if (tape->groups == NULL || index >= tape->n_groups) return true;
    const rq_cache_group *g = &tape->groups[index];
    for (uint32_t v = 0; v < 2; v++) {
        rq_kv_form form = v ? g->form_v : g->form_k;
        if (form != RQ_KV_Q4_0 && form != RQ_KV_TRIP) continue;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan keeps no caches in %s, which are for the processor alone",
                form == RQ_KV_Q4_0 ? "q4_0" : "codecs under measurement");
        return false;
    }
    return true;
}

/* Fused kinds are run as their primitives. */
bool vk_op_supported(const vk_device *d, const rq_tape *tape, const rq_op *op, rq_error *why)
{
    (void)d;
    const char *name = rq_op_get(op->kind)->name;
    switch (op->kind) {
    case RQ_OP_EMBED:
    case RQ_OP_MATMUL:
    case RQ_OP_MATMUL_EXPERTS: {
        const rq_type_info *info = rq_type_get((uint32_t)tape->values[op->in[0]].type);
        if (info && info->is_weight) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan cannot read weights of type %s",
                info && info->name ? info->name : "unknown");
        return false;
    }
    case RQ_OP_KV_WRITE:
    case RQ_OP_KV_ENCODE:
        return cache_supported(tape, op, why);
    case RQ_OP_ATTEND:
        if (!cache_supported(tape, op, why)) return false;
        if (tape->values[op->in[1]].ne[0] <= 512 &&
            tape->values[op->out[0]].ne[0] / tape->values[op->in[1]].ne[1] <= 512)
            return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan has attention for heads of up to 512 elements");
        return false;
    case RQ_OP_ROUTE:
        if (tape->values[op->in[0]].ne[0] <= 64 * 256) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan routes to at most %d experts", 64 * 256);
        return false;
    case RQ_OP_GLU:
        if (op->p.glu.act <= RQ_ACT_SIGMOID &&
            (tape->values[op->in[0]].ne[0] == tape->values[op->in[1]].ne[0] ||
             tape->values[op->in[0]].ne[0] == 1))
            return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan has no kernel for this %s", name);
        return false;
    case RQ_OP_SHORT_CONV:
        if (tape->values[op->in[2]].ne[1] <= RQ_MAX_CONV_TAPS) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan has short convolutions of up to %d taps", RQ_MAX_CONV_TAPS);
        return false;
    case RQ_OP_DELTA_RULE: {
        const rq_value *k = &tape->values[op->in[2]], *v = &tape->values[op->in[3]];
        if (k->ne[0] <= 256 && v->ne[0] < 1 << 16 && k->ne[1] < 1 << 16 && v->ne[1] < 1 << 16) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED,
                "Vulkan has recurrent layers of up to 65,535 heads with keys of up to 256 elements");
        return false;
    }
    case RQ_OP_RMS_NORM:
    case RQ_OP_L2_NORM:
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_SCALE:
    case RQ_OP_SOFTCAP:
    case RQ_OP_ROPE:
    case RQ_OP_ROTATE:
    case RQ_OP_GROUP:
    case RQ_OP_COMBINE:
    case RQ_OP_COPY:
    case RQ_OP_SELECT_ROWS:
    case RQ_OP_ARGMAX:
        return true;
    default:
        rq_fail(why, RQ_ERR_UNSUPPORTED, "Vulkan has no kernel for %s", name);
        return false;
    }
}
