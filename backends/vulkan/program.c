/* program.c - a compiled segment: a list of dispatches, recorded once into command buffers. A run copies the
 * step's words to the device and submits them; no call is made per operation and nothing is allocated. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/vulkan/pool.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct dispatch {
    VkPipeline pipeline;
    vk_push push;
    uint32_t x, y, z;
    uint32_t op;  /* in the segment */
    bool barrier; /* before it */
} dispatch;

typedef struct vk_program {
    rq_program base;
    dispatch *list;
    size_t n, cap;
    uint32_t n_ops;
    bool reads_step;
    vk_step *step;             /* NULL: reads none */
    VkCommandBuffer *commands; /* pieces of at most LONGEST_SUBMIT, as far as costs can tell */
    size_t commands_cap;
    uint32_t n_commands;
    rq_memory *pools[RQ_MAX_GROUPS];
} vk_program;

struct vk_builder {
    vk_device *device;
    vk_program *program;
    const rq_segment *segment;
    const rq_bindings *bindings;
    uint32_t op;
    bool first; /* the next dispatch is the operation's first */
    bool dry;   /* only to know what memory it takes: there are no addresses, and nothing is dispatched */
    uint64_t scratch_bytes, pool_bytes; /* of a dry run */
    bool pool_seen[RQ_MAX_GROUPS];
    uint64_t memo;
    rq_status status;
    rq_error error;
};

const rq_tape *vk_tape(const vk_builder *b)
{
    return b->segment->tape;
}

const rq_bindings *vk_bindings(const vk_builder *b)
{
    return b->bindings;
}

vk_device *vk_device_of(const vk_builder *b)
{
    return b->device;
}

void vk_op_fail(vk_builder *b, const char *format, ...)
{
    if (b->status != RQ_OK) return;
    const rq_op *op = &b->segment->tape->ops[b->segment->first + b->op];
    char text[200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->status =
        rq_fail(&b->error, RQ_ERR_INTERNAL, "Vulkan cannot run %s: %s", rq_op_get(op->kind)->name, text);
}

vk_view vk_value(vk_builder *b, rq_ref ref)
{
    vk_view out = {0};
    if (ref == 0) return out;
    const rq_value *v = &b->segment->tape->values[ref];
    out.type = v->type;
    for (int i = 0; i < 4; i++) {
        out.ne[i] = v->ne[i];
        out.stride[i] = (uint32_t)(v->stride[i] / 4);
    }
    if (b->dry) {
        out.address =
            1ull << 40 | v->offset; /* somewhere; weights and activations start at multiples of 16 */
        return out;
    }
    switch (v->space) {
    case RQ_SPACE_WEIGHT: {
        const rq_binding *w = &b->bindings->weights[v->index];
        out.address = w->memory ? vk_address(w->memory) + w->offset + v->offset : 0;
        break;
    }
    case RQ_SPACE_ACT:
        out.address = vk_address(b->bindings->arena) + b->segment->arena_offset[v->index] + v->offset;
        break;
    case RQ_SPACE_PERSIST:
        out.address = vk_address(b->bindings->persist[v->index]) + v->offset;
        break;
    default:
        return out;
    }
    if (out.address == 0 || out.address == v->offset) vk_op_fail(b, "an operand has no memory");
    return out;
}

uint64_t vk_step_address(const vk_builder *b)
{
    return b->program->step ? b->program->step->memory->address : 0;
}

uint64_t vk_pool_address(vk_builder *b, uint32_t group)
{
    if (group >= RQ_MAX_GROUPS) {
        vk_op_fail(b, "there is no cache group %u", group);
        return 0;
    }
    if (b->dry) {
        if (!b->pool_seen[group]) b->pool_bytes += vk_pool_block_bytes();
        b->pool_seen[group] = true;
        return 1ull << 40;
    }
    rq_memory **pool = &b->program->pools[group];
    if (!*pool && b->status == RQ_OK)
        b->status = vk_pool_block(b->device, &b->bindings->pools[group], b->bindings->caps, pool, &b->error);
    return vk_address(*pool);
}

/* One memory serves all programs of a device: they run one after another, and each begins with a barrier. It is made
 * as large as was seen to be needed when the programs were planned; a larger one is added where that was too little,
 * and kept until the device is closed, because recorded commands have the address. */
uint64_t vk_scratch(vk_builder *b, uint64_t bytes)
{
    vk_device *d = b->device;
    if (b->status != RQ_OK) return 0;
    if (b->dry) {
        if (bytes > b->scratch_bytes) b->scratch_bytes = bytes;
        return 1ull << 40;
    }
    for (vk_scratch_memory *s = d->scratch; s; s = s->next)
        if (s->memory->bytes >= bytes) return vk_address(s->memory);
    vk_scratch_memory *s = rq_calloc(1, sizeof *s);
    if (!s) {
        b->status = rq_fail(&b->error, RQ_ERR_MEMORY, "out of memory while compiling a tape");
        return 0;
    }
    uint64_t wanted = bytes > d->scratch_wanted ? bytes : d->scratch_wanted;
    b->status = vk_alloc(&d->base, wanted, "scratch of steps", &s->memory, &b->error);
    if (b->status != RQ_OK) {
        rq_free(s);
        return 0;
    }
    s->next = d->scratch;
    d->scratch = s;
    return vk_address(s->memory);
}

uint64_t *vk_memo(vk_builder *b)
{
    return &b->memo;
}

static bool reads_rows(const rq_tape *tape)
{
    for (uint32_t i = 0; i < tape->n_ops; i++)
        if (tape->ops[i].kind == RQ_OP_SELECT_ROWS || tape->ops[i].kind == RQ_OP_ARGMAX) return true;
    return false;
}

static bool reads_step(const rq_tape *tape)
{
    for (uint32_t i = 0; i < tape->n_ops; i++)
        if (rq_op_get(tape->ops[i].kind)->flags & RQ_OP_READS_STEP) return true;
    return false;
}

uint32_t vk_extent_word(const vk_builder *b)
{
    if (!b->program->reads_step) return UINT32_MAX;
    return reads_rows(b->segment->tape) ? offsetof(rq_step_header, n_rows) / 4
                                        : offsetof(rq_step_header, n_tokens) / 4;
}

void vk_dispatch(vk_builder *b, vk_shader shader, const uint32_t constants[VK_CONSTANTS], const vk_push *push,
                 uint32_t x, uint32_t y, uint32_t z, bool after)
{
    vk_program *p = b->program;
    if (b->status != RQ_OK) return;
    if (x == 0 || y == 0 || z == 0) return;
    const uint32_t *most = b->device->properties.limits.maxComputeWorkGroupCount;
    if (x > most[0] || y > most[1] || z > most[2]) {
        vk_op_fail(b, "it needs %u x %u x %u workgroups, and the device has at most %u x %u x %u", x, y, z,
                   most[0], most[1], most[2]);
        return;
    }
    if (b->dry || b->device->pretends) return;
    VkPipeline pipeline;
    b->status = vk_pipeline_get(b->device, shader, constants, &pipeline, &b->error);
    if (b->status != RQ_OK) return;
    void *list = p->list;
    if (!rq_grow(&list, &p->cap, p->n + 1, sizeof *p->list)) {
        b->status = rq_fail(&b->error, RQ_ERR_MEMORY, "out of memory while compiling a tape");
        return;
    }
    p->list = list;
    bool barrier = after || (b->first && b->segment->barrier[b->op]);
    b->first = false;
    p->list[p->n++] = (dispatch){
        .pipeline = pipeline, .push = *push, .x = x, .y = y, .z = z, .op = b->op, .barrier = barrier};
}

/* ---- recording ------------------------------------------------------------------------------------------- */

static void barrier_between(vk_device *d, VkCommandBuffer c)
{
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                           .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                     VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &all, 0, NULL, 0, NULL));
}

static void record(vk_device *d, VkCommandBuffer c, const vk_program *p, const dispatch *at,
                   VkPipeline *bound)
{
    if (at->pipeline != *bound)
        VK_DO(d->vk.vkCmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, at->pipeline));
    *bound = at->pipeline;
    VK_DO(d->vk.vkCmdPushConstants(c, d->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof at->push, &at->push));
    VK_DO(d->vk.vkCmdDispatch(c, at->x, at->y, at->z));
}

/* Longest submit, in seconds: systems reset a device that is busy for some seconds, and what else the card shows
 * waits that long. */
#define LONGEST_SUBMIT 0.05

/* Time of an operation by its cost: memory at a quarter of what a copy reaches, and four operations for each byte of
 * that copy, which a plain kernel exceeds on every card whose data sheet we know. */
static double seconds_of(const vk_device *d, const rq_segment *s, uint32_t op, const rq_cache_group *groups,
                         uint32_t max_pages)
{
    rq_op_cost c = rq_op_cost_of(s->tape, &s->tape->ops[s->first + op], groups, max_pages * RQ_PAGE_TOKENS);
    double bytes = (c.bytes_read + c.bytes_written) / (d->bytes_per_second / 4),
           flops = c.flops / (4 * d->bytes_per_second);
    return bytes > flops ? bytes : flops;
}

static VkResult begin_piece(vk_program *p, VkCommandBuffer *out)
{
    vk_device *d = (vk_device *)p->base.device;
    void *list = p->commands;
    if (!rq_grow(&list, &p->commands_cap, p->n_commands + 1, sizeof *p->commands))
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    p->commands = list;
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = d->commands,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT};
    VkResult r = VK_TRY(d->vk.vkAllocateCommandBuffers(d->device, &info, out));
    if (r != VK_SUCCESS) return r;
    p->commands[p->n_commands++] = *out;
    r = VK_TRY(d->vk.vkBeginCommandBuffer(*out, &begin));
    if (r == VK_SUCCESS) barrier_between(d, *out); /* with what was submitted before */
    return r;
}

static VkResult record_all(vk_program *p, const rq_segment *segment, const rq_bindings *bindings)
{
    vk_device *d = (vk_device *)p->base.device;
    rq_cache_group groups[RQ_MAX_GROUPS];
    uint32_t n_groups = bindings->pools && bindings->caps ? bindings->caps->n_groups : 0;
    for (uint32_t g = 0; g < n_groups; g++)
        if (bindings->pools[g].group) groups[g] = *bindings->pools[g].group;
    double sum = 0;
    VkPipeline bound = VK_NULL_HANDLE;
    VkCommandBuffer c = VK_NULL_HANDLE;
    VkResult r = VK_SUCCESS;
    for (size_t i = 0; i < p->n && r == VK_SUCCESS; i++) {
        bool new_op = i == 0 || p->list[i].op != p->list[i - 1].op;
        double cost = new_op ? seconds_of(d, segment, p->list[i].op, groups,
                                          bindings->caps ? bindings->caps->max_pages : 0)
                             : 0;
        if (c == VK_NULL_HANDLE || (new_op && sum + cost > LONGEST_SUBMIT)) {
            if (c != VK_NULL_HANDLE) r = VK_TRY(d->vk.vkEndCommandBuffer(c));
            if (r == VK_SUCCESS) r = begin_piece(p, &c);
            if (r != VK_SUCCESS) return r;
            bound = VK_NULL_HANDLE;
            sum = 0;
        } else if (p->list[i].barrier) {
            barrier_between(d, c);
        }
        sum += cost;
        record(d, c, p, &p->list[i], &bound);
    }
    return c == VK_NULL_HANDLE || r != VK_SUCCESS ? r : VK_TRY(d->vk.vkEndCommandBuffer(c));
}

/* ---- the step on the device ------------------------------------------------------------------------------ */

/* Words of a step in front of its table edits, which kernels do not read. */
static rq_status words_of(const rq_step_caps *caps, uint32_t *out, rq_error *err)
{
    uint32_t *words = rq_calloc(rq_step_words(caps), 4);
    if (!words) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a step");
    rq_step step;
    rq_step_init(&step, caps, NULL, words);
    *out = step.header->edits;
    rq_free(words);
    return RQ_OK;
}

static rq_status step_for(vk_device *d, const rq_step_caps *caps, vk_step **out, rq_error *err)
{
    uint32_t words = 0;
    rq_status status = words_of(caps, &words, err);
    if (status != RQ_OK) return status;
    for (vk_step *s = d->steps; s; s = s->next)
        if (s->words == words) {
            *out = s;
            return RQ_OK;
        }
    vk_step *s = rq_calloc(1, sizeof *s);
    if (!s) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a step");
    rq_memory *memory = NULL;
    status = vk_alloc(&d->base, 4ull * words, "the step", &memory, err);
    if (status != RQ_OK) {
        rq_free(s);
        return status;
    }
    *s = (vk_step){.memory = (vk_memory *)memory, .words = words, .next = d->steps};
    *out = d->steps = s;
    return RQ_OK;
}

static rq_status wait_slot(vk_device *d, vk_slot *slot, rq_error *err)
{
    if (d->lost) return vk_is_lost(d, err);
    if (!slot->flying) return RQ_OK;
    VkResult r = VK_TRY(d->vk.vkWaitForFences(d->device, 1, &slot->fence, VK_TRUE, UINT64_MAX));
    if (r != VK_SUCCESS) return vk_fail(d, r, "running a step", err);
    slot->flying = false;
    return RQ_OK;
}

/* Makes the slot's words ready for the device. */
static rq_status stage_words(vk_device *d, vk_slot *slot, const vk_step *step, const uint32_t *words,
                             rq_error *err)
{
    uint64_t bytes = 4ull * step->words;
    if (slot->words.bytes < bytes) {
        vk_staging_free(d, &slot->words);
        slot->copied_to = NULL;
        rq_status status = vk_staging_make(d, bytes, &slot->words, err);
        if (status != RQ_OK) return status;
    }
    memcpy(slot->words.host, words, (size_t)bytes);
    if (slot->copied_to == step) return RQ_OK;
    slot->copied_to = NULL;
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult r = VK_TRY(d->vk.vkBeginCommandBuffer(slot->copy, &begin));
    if (r != VK_SUCCESS) return vk_fail(d, r, "recording a step", err);
    VkMemoryBarrier before = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                              .srcAccessMask = VK_ACCESS_SHADER_READ_BIT,
                              .dstAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(slot->copy, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                     VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &before, 0, NULL, 0, NULL));
    VkBufferCopy copy = {.size = bytes};
    VK_DO(d->vk.vkCmdCopyBuffer(slot->copy, slot->words.buffer, step->memory->buffer, 1, &copy));
    VkMemoryBarrier after = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_SHADER_READ_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(slot->copy, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                     VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &after, 0, NULL, 0, NULL));
    r = VK_TRY(d->vk.vkEndCommandBuffer(slot->copy));
    if (r != VK_SUCCESS) return vk_fail(d, r, "recording a step", err);
    slot->copied_to = step;
    return RQ_OK;
}

/* ---- compiling ------------------------------------------------------------------------------------------- */

void vk_destroy(rq_program *program)
{
    if (!program) return;
    vk_program *p = (vk_program *)program;
    vk_device *d = (vk_device *)program->device;
    VK_DO(d->vk.vkDeviceWaitIdle(d->device));
    if (p->n_commands) VK_DO(d->vk.vkFreeCommandBuffers(d->device, d->commands, p->n_commands, p->commands));
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) vk_release(p->pools[g]);
    rq_free(p->commands);
    rq_free(p->list);
    rq_free(p);
}

rq_status vk_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                     rq_program **out, rq_error *err)
{
    vk_program *p = rq_calloc(1, sizeof *p);
    if (!p) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while compiling a tape");
    p->base.device = device;
    p->n_ops = segment->count;
    vk_builder b = {.device = (vk_device *)device, .program = p, .segment = segment, .bindings = bindings};
    p->reads_step = reads_step(segment->tape);
    if (p->reads_step) b.status = step_for(b.device, bindings->caps, &p->step, &b.error);
    for (; b.op < segment->count && b.status == RQ_OK; b.op++) {
        b.first = true;
        vk_compile_op(&b, &segment->tape->ops[segment->first + b.op]);
    }
    if (b.status == RQ_OK && !b.device->pretends) {
        VkResult r = record_all(p, segment, bindings);
        if (r != VK_SUCCESS) b.status = vk_fail(b.device, r, "recording commands", &b.error);
    }
    if (b.status != RQ_OK) {
        vk_destroy(&p->base);
        return rq_fail(err, b.status, "%s", b.error.text);
    }
    *out = &p->base;
    return RQ_OK;
}

rq_status vk_scratch_of(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                        rq_scratch *sum, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    vk_program program = {.base.device = device, .reads_step = reads_step(segment->tape)};
    vk_builder b = {.device = d, .program = &program, .segment = segment, .bindings = bindings, .dry = true};
    uint32_t words = 0;
    if (program.reads_step) b.status = words_of(bindings->caps, &words, &b.error);
    for (; b.op < segment->count && b.status == RQ_OK; b.op++)
        vk_compile_op(&b, &segment->tape->ops[segment->first + b.op]);
    if (b.status != RQ_OK) return rq_fail(err, b.status, "%s", b.error.text);
    if (sum->largest == 0 && sum->once == 0) d->scratch_wanted = 0; /* another plan begins */
    if (b.scratch_bytes > sum->largest) sum->largest = b.scratch_bytes;
    if (sum->largest > d->scratch_wanted) d->scratch_wanted = sum->largest;
    if (4ull * words > sum->once) sum->once = 4ull * words;
    sum->sum += b.pool_bytes;
    return RQ_OK;
}

bool vk_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why)
{
    return vk_op_supported((const vk_device *)device, tape, op, why);
}

const char *vk_implementation(rq_device *device, const rq_tape *tape, const rq_op *op)
{
    (void)device;
    (void)tape;
    (void)op;
    return "vulkan";
}

/* ---- running --------------------------------------------------------------------------------------------- */

static rq_status submit(vk_device *d, const VkCommandBuffer *c, uint32_t n, VkFence fence, rq_error *err)
{
    VkSubmitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = n, .pCommandBuffers = c};
    VkResult r = VK_TRY(d->vk.vkQueueSubmit(d->queue, 1, &info, fence));
    return r == VK_SUCCESS ? RQ_OK : vk_fail(d, r, "running a step", err);
}

/* The next place of the ring, with nothing in flight. */
static rq_status next_slot(vk_device *d, vk_slot **out, rq_error *err)
{
    vk_slot *slot = &d->ring[d->next_slot];
    rq_status status = wait_slot(d, slot, err);
    if (status != RQ_OK) return status;
    d->next_slot = (d->next_slot + 1) % VK_RING;
    slot->serial = ++d->n_runs;
    *out = slot;
    return RQ_OK;
}

rq_status vk_run(rq_program *program, const uint32_t *step_words, rq_error *err)
{
    vk_program *p = (vk_program *)program;
    vk_device *d = (vk_device *)program->device;
    if (d->lost) return vk_is_lost(d, err);
    if (d->pretends)
        return rq_fail(err, RQ_ERR_INTERNAL, "a device whose memory is only counted runs nothing");
    if (p->step && (!step_words || step_words[0] != RQ_STEP_MAGIC))
        return rq_fail(err, RQ_ERR_INTERNAL, "the step buffer is not one");
    vk_slot *slot = NULL;
    rq_status status = next_slot(d, &slot, err);
    if (status == RQ_OK && p->step) status = stage_words(d, slot, p->step, step_words, err);
    if (status != RQ_OK || p->n_commands == 0) return status;
    VkResult r = VK_TRY(d->vk.vkResetFences(d->device, 1, &slot->fence));
    if (r != VK_SUCCESS) return vk_fail(d, r, "running a step", err);
    for (uint32_t i = 0; i < p->n_commands && status == RQ_OK; i++) {
        const VkCommandBuffer both[2] = {slot->copy, p->commands[i]}; /* the words go with the first */
        bool alone = i > 0 || !p->step;
        status =
            submit(d, both + alone, 2 - alone, i + 1 == p->n_commands ? slot->fence : VK_NULL_HANDLE, err);
    }
    slot->flying = status == RQ_OK;
    return status;
}

rq_status vk_wait(rq_device *device, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < VK_RING && status == RQ_OK; i++) status = wait_slot(d, &d->ring[i], err);
    return status;
}

uint64_t vk_mark(rq_device *device)
{
    return ((const vk_device *)device)->n_runs;
}

rq_status vk_wait_mark(rq_device *device, uint64_t mark, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < VK_RING && status == RQ_OK; i++)
        if (d->ring[i].serial <= mark) status = wait_slot(d, &d->ring[i], err);
    return status;
}

static VkResult record_fetch(vk_device *d, VkCommandBuffer c, const vk_memory *from, uint64_t offset,
                             const vk_memory *to, uint64_t bytes)
{
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult r = VK_TRY(d->vk.vkBeginCommandBuffer(c, &begin));
    if (r != VK_SUCCESS) return r;
    VkMemoryBarrier before = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                              .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                              .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                     0, 1, &before, 0, NULL, 0, NULL));
    VkBufferCopy copy = {.srcOffset = offset, .size = bytes};
    VK_DO(d->vk.vkCmdCopyBuffer(c, from->buffer, to->buffer, 1, &copy));
    /* what runs next may overwrite what was read, and the processor reads what was written */
    VkMemoryBarrier after = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                             .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                             .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(c, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                     VK_PIPELINE_STAGE_HOST_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1,
                                     &after, 0, NULL, 0, NULL));
    return VK_TRY(d->vk.vkEndCommandBuffer(c));
}

rq_status vk_fetch(rq_memory *src, uint64_t offset, rq_memory *host, uint64_t bytes, rq_error *err)
{
    vk_device *d = (vk_device *)src->device;
    if (offset > src->bytes || bytes > src->bytes - offset || bytes > host->bytes)
        return rq_fail(err, RQ_ERR_INTERNAL, "a copy of %llu bytes does not fit", (unsigned long long)bytes);
    vk_slot *slot = NULL;
    rq_status status = next_slot(d, &slot, err);
    if (status != RQ_OK) return status;
    slot->copied_to = NULL;
    VkResult r = record_fetch(d, slot->copy, (const vk_memory *)src, offset, (const vk_memory *)host, bytes);
    if (r == VK_SUCCESS) r = VK_TRY(d->vk.vkResetFences(d->device, 1, &slot->fence));
    if (r != VK_SUCCESS) return vk_fail(d, r, "copying results", err);
    status = submit(d, &slot->copy, 1, slot->fence, err);
    slot->flying = status == RQ_OK;
    return status;
}

/* Each operation between two timestamps, everything in order. */
static rq_status run_timed(vk_program *p, VkCommandBuffer c, VkQueryPool times, uint64_t *ns, rq_error *err)
{
    vk_device *d = (vk_device *)p->base.device;
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult r = VK_TRY(d->vk.vkBeginCommandBuffer(c, &begin));
    if (r != VK_SUCCESS) return vk_fail(d, r, "measuring", err);
    VK_DO(d->vk.vkCmdResetQueryPool(c, times, 0, p->n_ops + 1));
    VkPipeline bound = VK_NULL_HANDLE;
    size_t at = 0;
    barrier_between(d, c);
    VK_DO(d->vk.vkCmdWriteTimestamp(c, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, times, 0));
    for (uint32_t op = 0; op < p->n_ops; op++) {
        for (; at < p->n && p->list[at].op == op; at++) {
            barrier_between(d, c);
            record(d, c, p, &p->list[at], &bound);
        }
        VK_DO(d->vk.vkCmdWriteTimestamp(c, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, times, op + 1));
    }
    r = VK_TRY(d->vk.vkEndCommandBuffer(c));
    if (r != VK_SUCCESS) return vk_fail(d, r, "measuring", err);
    rq_status status = submit(d, &c, 1, VK_NULL_HANDLE, err);
    if (status != RQ_OK) return status;
    r = VK_TRY(d->vk.vkQueueWaitIdle(d->queue));
    uint64_t *ticks = rq_calloc(p->n_ops + 1, sizeof *ticks);
    if (!ticks) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for times");
    if (r == VK_SUCCESS)
        r = VK_TRY(d->vk.vkGetQueryPoolResults(d->device, times, 0, p->n_ops + 1,
                                               (p->n_ops + 1) * sizeof *ticks, ticks, sizeof *ticks,
                                               VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT));
    for (uint32_t op = 0; op < p->n_ops; op++)
        ns[op] =
            (uint64_t)((double)(ticks[op + 1] - ticks[op]) * (double)d->properties.limits.timestampPeriod);
    rq_free(ticks);
    return r == VK_SUCCESS ? RQ_OK : vk_fail(d, r, "measuring", err);
}

rq_status vk_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err)
{
    vk_program *p = (vk_program *)program;
    vk_device *d = (vk_device *)program->device;
    rq_status status = vk_wait(program->device, err);
    vk_slot *slot = &d->ring[0];
    if (status == RQ_OK && p->step) {
        status = stage_words(d, slot, p->step, step_words, err);
        if (status == RQ_OK) status = submit(d, &slot->copy, 1, VK_NULL_HANDLE, err);
    }
    if (status != RQ_OK) return status;
    VkQueryPoolCreateInfo query = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                   .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                   .queryCount = p->n_ops + 1};
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = d->commands,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VkQueryPool times;
    VkResult r = VK_MAKE(d->vk.vkCreateQueryPool(d->device, &query, NULL, &times));
    if (r != VK_SUCCESS) return vk_fail(d, r, "measuring", err);
    VkCommandBuffer c;
    r = VK_TRY(d->vk.vkAllocateCommandBuffers(d->device, &info, &c));
    if (r == VK_SUCCESS) {
        status = run_timed(p, c, times, ns, err);
        VK_DO(d->vk.vkFreeCommandBuffers(d->device, d->commands, 1, &c));
    } else {
        status = vk_fail(d, r, "measuring", err);
    }
    VK_DROP(d->vk.vkDestroyQueryPool(d->device, times, NULL));
    return status;
}
