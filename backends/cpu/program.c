/* program.c - compiling a segment into a list of instructions, and running it. See program.h. */
#include "backends/cpu/program.h"

#include "backends/base/mem.h"
#include "backends/cpu/reference/reference.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef struct rq_instr {
    rq_cpu_fn fn;
    const void *args;
    uint32_t op; /* index in the segment */
    bool barrier;
} rq_instr;

typedef enum rq_extent { RQ_EXTENT_BUCKET, RQ_EXTENT_TOKENS, RQ_EXTENT_ROWS } rq_extent;

enum { ARGS_CHUNK = 16 * 1024 };

typedef struct rq_args_chunk {
    struct rq_args_chunk *next;
    size_t used;
    _Alignas(16) uint8_t bytes[ARGS_CHUNK];
} rq_args_chunk;

typedef struct rq_cpu_program {
    rq_program base;
    rq_instr *instrs;
    size_t n_instrs, cap_instrs;
    rq_cpu_counter *counters;
    rq_args_chunk *args;
    uint32_t bucket;
    rq_extent extent; /* what `active` counts */
    uint64_t fixed_bytes, shared_bytes, own_bytes;
    uint32_t n_ops;
    rq_cpu_rotation **rotations; /* held */
    size_t n_rotations, cap_rotations;
    /* reference device: the segment itself */
    rq_segment segment;
    rq_bindings bindings;
} rq_cpu_program;

enum { MAX_ROPE_TABLES = 16 };

struct rq_cpu_builder {
    rq_cpu_device *device;
    rq_cpu_program *program;
    const rq_segment *segment;
    const rq_bindings *bindings;
    uint32_t op;
    bool first; /* the next instruction is the first of its operation */
    bool barrier_seen;
    bool dry;            /* only to know the scratch: activations and persistent memory have no addresses */
    uint64_t shared_now; /* scratch given out since the last barrier of the segment */
    rq_rope_table ropes[MAX_ROPE_TABLES];
    uint32_t n_ropes;
    rq_status status;
    rq_error error;
};

/* ---- building -------------------------------------------------------------------------------------------- */

const rq_tape *rq_cpu_tape(const rq_cpu_builder *b)
{
    return b->segment->tape;
}

const rq_bindings *rq_cpu_bindings(const rq_cpu_builder *b)
{
    return b->bindings;
}

rq_cpu_device *rq_cpu_device_of(const rq_cpu_builder *b)
{
    return b->device;
}

void rq_cpu_fail(rq_cpu_builder *b, const char *format, ...)
{
    if (b->status != RQ_OK) return;
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->status =
        rq_fail(&b->error, RQ_ERR_UNSUPPORTED, "the processor backend cannot compile operation %u (%s): %s",
                b->segment->first + b->op,
                rq_op_get(b->segment->tape->ops[b->segment->first + b->op].kind)->name, text);
}

static void out_of_memory(rq_cpu_builder *b)
{
    if (b->status == RQ_OK)
        b->status = rq_fail(&b->error, RQ_ERR_MEMORY, "out of memory while compiling a tape");
}

rq_tensor rq_cpu_tensor(rq_cpu_builder *b, rq_ref ref)
{
    rq_tensor t = {0};
    const rq_tape *tape = b->segment->tape;
    if (ref == 0) return t;
    if (ref >= tape->n_values) {
        rq_cpu_fail(b, "operand %u does not exist", ref);
        return t;
    }
    const rq_value *v = &tape->values[ref];
    t.type = v->type;
    memcpy(t.ne, v->ne, sizeof t.ne);
    memcpy(t.nb, v->stride, sizeof t.nb);
    const rq_memory *memory = NULL;
    uint64_t offset = v->offset;
    if (b->dry && (v->space == RQ_SPACE_ACT || v->space == RQ_SPACE_PERSIST)) {
        t.p = (uint8_t *)b->program; /* some address; nobody looks there */
        return t;
    }
    switch (v->space) {
    case RQ_SPACE_WEIGHT:
        memory = b->bindings->weights[v->index].memory;
        offset += b->bindings->weights[v->index].offset;
        break;
    case RQ_SPACE_ACT:
        memory = b->bindings->arena;
        if (b->segment->arena_offset[v->index] == RQ_NO_ARENA) {
            rq_cpu_fail(b, "operand %u has no memory", ref);
            return t;
        }
        offset += b->segment->arena_offset[v->index];
        break;
    case RQ_SPACE_PERSIST:
        memory = b->bindings->persist[v->index];
        break;
    default:
        return t;
    }
    uint64_t span = rq_value_span(v);
    if (!memory || !memory->host || offset > memory->bytes || span > memory->bytes - offset) {
        rq_cpu_fail(b, "operand %u (%s) lies outside its memory", ref, v->name ? v->name : "unnamed");
        return t;
    }
    t.p = (uint8_t *)memory->host + offset;
    return t;
}

rq_rows rq_cpu_rows(const rq_cpu_builder *b, const rq_tensor *t)
{
    rq_rows r = {.token_dim = 4};
    memcpy(r.ne, t->ne, sizeof r.ne);
    uint32_t bucket = b->segment->tape->bucket;
    for (uint32_t i = 3; i >= 1; i--)
        if (r.ne[i] > 1) {
            if (r.ne[i] == bucket) r.token_dim = i;
            break;
        }
    return r;
}

void *rq_cpu_args(rq_cpu_builder *b, size_t bytes)
{
    rq_cpu_program *p = b->program;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!p->args || p->args->used + bytes > ARGS_CHUNK) {
        rq_args_chunk *chunk = bytes <= ARGS_CHUNK ? rq_calloc_aligned(64, sizeof *chunk) : NULL;
        if (!chunk) {
            out_of_memory(b);
            return NULL;
        }
        chunk->next = p->args;
        p->args = chunk;
    }
    void *args = p->args->bytes + p->args->used;
    p->args->used += bytes;
    return args;
}

void rq_cpu_hold_rotation(rq_cpu_builder *b, rq_cpu_rotation *rotation)
{
    rq_cpu_program *p = b->program;
    bool ok = rotation &&
              rq_grow((void **)&p->rotations, &p->cap_rotations, p->n_rotations + 1, sizeof *p->rotations);
    if (ok)
        p->rotations[p->n_rotations++] = rotation;
    else {
        rq_cpu_rotation_release(b->device, rotation);
        out_of_memory(b);
    }
}

static void append(rq_cpu_builder *b, rq_cpu_fn fn, const void *args, bool barrier)
{
    rq_cpu_program *p = b->program;
    if (b->status != RQ_OK || !args) return;
    if (!rq_grow((void **)&p->instrs, &p->cap_instrs, p->n_instrs + 1, sizeof *p->instrs)) {
        out_of_memory(b);
        return;
    }
    p->instrs[p->n_instrs++] = (rq_instr){fn, args, b->op, barrier};
    if (barrier) b->barrier_seen = true;
}

void rq_cpu_emit(rq_cpu_builder *b, rq_cpu_fn fn, const void *args, bool barrier)
{
    if (b->first) barrier = barrier || b->segment->barrier[b->op];
    b->first = false;
    append(b, fn, args, barrier);
}

static uint64_t round_64(uint64_t bytes)
{
    return (bytes + 63) & ~63ull;
}

uint64_t rq_cpu_fixed(rq_cpu_builder *b, uint64_t bytes)
{
    uint64_t at = b->program->fixed_bytes;
    b->program->fixed_bytes += round_64(bytes);
    return at;
}

/* Between two barriers of the segment nothing is reused: a slow worker may still be reading. A barrier inside
 * an operation does not count, because what comes before it in the operation is still wanted after it. */
uint64_t rq_cpu_shared(rq_cpu_builder *b, uint64_t bytes)
{
    uint64_t at = b->shared_now;
    b->shared_now += round_64(bytes);
    if (b->shared_now > b->program->shared_bytes) b->program->shared_bytes = b->shared_now;
    return at;
}

void rq_cpu_own(rq_cpu_builder *b, uint64_t bytes)
{
    if (round_64(bytes) > b->program->own_bytes) b->program->own_bytes = round_64(bytes);
}

uint64_t rq_cpu_rope_table(rq_cpu_builder *b, const float *inv_freq, uint32_t n_rot, float magnitude)
{
    for (uint32_t i = 0; i < b->n_ropes; i++)
        if (b->ropes[i].inv_freq == inv_freq && b->ropes[i].n_rot == n_rot &&
            b->ropes[i].magnitude == magnitude)
            return b->ropes[i].offset;
    rq_cpu_fail(b, "its rotary frequencies are unknown");
    return 0;
}

/* ---- operations ------------------------------------------------------------------------------------------ */

/* Tables of cos and sin, before everything else. */
static void collect_ropes(rq_cpu_builder *b)
{
    const rq_tape *tape = b->segment->tape;
    for (b->op = 0; b->op < b->segment->count && b->status == RQ_OK; b->op++) {
        const rq_op *op = &tape->ops[b->segment->first + b->op];
        bool fused = op->kind == RQ_OP_QKV_WRITE;
        if (op->kind != RQ_OP_ROPE && !fused) continue;
        rq_rope_table r = {
            .inv_freq = (const float *)(const void *)rq_cpu_tensor(b, op->in[fused ? 3 : 1]).p,
            .n_rot = fused ? op->p.fused.n_rot : op->p.rope.n_rot,
            .magnitude = fused ? op->p.fused.magnitude : op->p.rope.magnitude,
        };
        uint32_t i = 0;
        while (i < b->n_ropes && (b->ropes[i].inv_freq != r.inv_freq || b->ropes[i].n_rot != r.n_rot ||
                                  b->ropes[i].magnitude != r.magnitude))
            i++;
        if (i < b->n_ropes) continue;
        if (b->n_ropes == MAX_ROPE_TABLES) {
            rq_cpu_fail(b, "there are more than %d sets of rotary frequencies", MAX_ROPE_TABLES);
            return;
        }
        r.offset = rq_cpu_fixed(b, (uint64_t)tape->bucket * r.n_rot * sizeof(float));
        b->ropes[b->n_ropes++] = r;
        rq_rope_table *args = rq_cpu_args(b, sizeof *args);
        if (!args) return;
        *args = r;
        b->op = 0;
        append(b, rq_cpu_run_rope_table, args, false);
        b->op = (uint32_t)(op - tape->ops) - b->segment->first;
    }
    b->op = 0;
}

static void compile_op(rq_cpu_builder *b, const rq_op *op)
{
    switch (op->kind) {
    case RQ_OP_EMBED:
        rq_cpu_embed(b, op);
        return;
    case RQ_OP_RMS_NORM:
        rq_cpu_rms_norm(b, op);
        return;
    case RQ_OP_L2_NORM:
        rq_cpu_l2_norm(b, op);
        return;
    case RQ_OP_MATMUL:
        rq_cpu_matmul(b, op);
        return;
    case RQ_OP_ADD:
    case RQ_OP_MUL:
        rq_cpu_add_mul(b, op);
        return;
    case RQ_OP_SCALE:
        rq_cpu_scale(b, op);
        return;
    case RQ_OP_SOFTCAP:
        rq_cpu_softcap(b, op);
        return;
    case RQ_OP_GLU:
        rq_cpu_glu(b, op);
        return;
    case RQ_OP_ROPE:
        rq_cpu_rope(b, op);
        return;
    case RQ_OP_ROTATE:
        rq_cpu_rotate(b, op);
        return;
    case RQ_OP_KV_WRITE:
        rq_cpu_kv_write(b, op);
        return;
    case RQ_OP_KV_ENCODE:
        rq_cpu_kv_encode(b, op);
        return;
    case RQ_OP_ATTEND:
        rq_cpu_attend(b, op);
        return;
    case RQ_OP_SHORT_CONV:
        rq_cpu_short_conv(b, op);
        return;
    case RQ_OP_DELTA_RULE:
        rq_cpu_delta_rule(b, op);
        return;
    case RQ_OP_ROUTE:
        rq_cpu_route(b, op);
        return;
    case RQ_OP_GROUP:
        rq_cpu_group(b, op);
        return;
    case RQ_OP_MATMUL_EXPERTS:
        rq_cpu_matmul_experts(b, op);
        return;
    case RQ_OP_COMBINE:
        rq_cpu_combine(b, op);
        return;
    case RQ_OP_COPY:
        rq_cpu_copy(b, op);
        return;
    case RQ_OP_SELECT_ROWS:
        rq_cpu_select_rows(b, op);
        return;
    case RQ_OP_ARGMAX:
        rq_cpu_argmax(b, op);
        return;
    case RQ_OP_PRODUCTS:
    case RQ_OP_GLU_PRODUCTS:
        rq_cpu_products(b, op);
        return;
    case RQ_OP_QKV_WRITE:
        rq_cpu_qkv_write(b, op);
        return;
    case RQ_OP_ATTEND_ROTATE:
    case RQ_OP_COMBINE_ADD:
    case RQ_OP_NORM_JOIN:
    case RQ_OP_NONE:
    case RQ_OP_COUNT:
        break;
    }
    rq_cpu_fail(b, "it is not an operation of this build");
}

static bool is_f32(const rq_tape *tape, rq_ref ref)
{
    return ref == 0 || (ref < tape->n_values && tape->values[ref].type == RQ_TYPE_F32);
}

static bool good_weight(const rq_tape *tape, rq_ref ref, rq_error *why)
{
    const rq_value *v = &tape->values[ref];
    if (rq_matmul_act_bytes(v->type, v->ne[0]) > 0) return true;
    const rq_type_info *info = rq_type_get((uint32_t)v->type);
    rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor has no matrix product for rows of %u elements of type %s",
            v->ne[0], info && info->name ? info->name : "unknown");
    return false;
}

static bool good_products(const rq_tape *tape, const rq_op *op, rq_error *why)
{
    bool glu = op->kind == RQ_OP_GLU_PRODUCTS, normed = op->p.fused.normed;
    uint32_t n = glu ? 2 : op->n_out, n_added = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!good_weight(tape, op->in[2 + i], why)) return false;
        rq_ref added = glu ? 0 : op->in[2 + RQ_PRODUCTS_MAX + i];
        if (added && !is_f32(tape, added)) return false;
        n_added += added != 0;
    }
    if (glu ? normed && !op->in[4] : normed ? n <= 3 && n_added == 0 : n == 1 && n_added == 1) return true;
    rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor runs these products one by one");
    return false;
}

bool rq_cpu_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why)
{
    (void)device;
    if (op->kind <= RQ_OP_NONE || op->kind >= RQ_OP_COUNT) {
        rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor does not know operation %d", (int)op->kind);
        return false;
    }
    switch (op->kind) {
    case RQ_OP_EMBED: {
        const rq_type_info *info = rq_type_get((uint32_t)tape->values[op->in[0]].type);
        if (info && info->dequantize) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor cannot read embedding rows of this type");
        return false;
    }
    case RQ_OP_MATMUL:
    case RQ_OP_MATMUL_EXPERTS:
        return good_weight(tape, op->in[0], why);
    case RQ_OP_PRODUCTS: /* up to three with a norm, or one with something added */
    case RQ_OP_GLU_PRODUCTS:
        return good_products(tape, op, why);
    case RQ_OP_QKV_WRITE:
        if (!op->in[7] && !op->in[12] && !op->in[8] && !op->in[10] && !op->in[11] && !op->in[13] &&
            !op->p.fused.v_normed)
            return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor rotates queries, keys and values by themselves");
        return false;
    case RQ_OP_ATTEND_ROTATE:
    case RQ_OP_COMBINE_ADD:
    case RQ_OP_NORM_JOIN:
        rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor runs %s one by one", rq_op_get(op->kind)->name);
        return false;
    case RQ_OP_RMS_NORM:
        if (is_f32(tape, op->in[1])) return true;
        rq_fail(why, RQ_ERR_UNSUPPORTED, "the processor wants norm weights in f32");
        return false;
    default:
        return true;
    }
}

const char *rq_cpu_implementation(rq_device *device, const rq_tape *tape, const rq_op *op)
{
    (void)tape;
    (void)op;
    const rq_cpu_device *d = (const rq_cpu_device *)device;
    return d->reference ? "reference" : d->isa->name;
}

static rq_extent extent_of(const rq_tape *tape)
{
    rq_extent extent = RQ_EXTENT_BUCKET;
    for (uint32_t i = 0; i < tape->n_ops; i++) {
        rq_op_kind kind = tape->ops[i].kind;
        if (kind == RQ_OP_SELECT_ROWS || kind == RQ_OP_ARGMAX) return RQ_EXTENT_ROWS;
        if (rq_op_get(kind)->flags & RQ_OP_READS_STEP) extent = RQ_EXTENT_TOKENS;
    }
    return extent;
}

static uint64_t scratch_bytes(const rq_cpu_program *p, uint32_t n_workers)
{
    return p->fixed_bytes + p->shared_bytes + p->own_bytes * n_workers;
}

void rq_cpu_destroy(rq_program *program)
{
    if (!program) return;
    rq_cpu_program *p = (rq_cpu_program *)program;
    for (rq_args_chunk *c = p->args, *next; c; c = next) {
        next = c->next;
        rq_free(c);
    }
    for (size_t i = 0; i < p->n_rotations; i++)
        rq_cpu_rotation_release((rq_cpu_device *)p->base.device, p->rotations[i]);
    rq_free(p->rotations);
    rq_free(p->instrs);
    rq_free(p->counters);
    rq_free(p);
}

static rq_status build(rq_device *device, const rq_segment *segment, const rq_bindings *bindings, bool dry,
                       rq_cpu_program **out, rq_error *err)
{
    rq_cpu_program *p = rq_calloc(1, sizeof *p);
    if (!p) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while compiling a tape");
    p->base.device = device;
    p->bucket = segment->tape->bucket;
    p->extent = extent_of(segment->tape);
    p->n_ops = segment->count;
    p->segment = *segment;
    p->bindings = *bindings;
    rq_cpu_builder b = {.device = (rq_cpu_device *)device,
                        .program = p,
                        .segment = segment,
                        .bindings = bindings,
                        .dry = dry};
    if (!b.device->reference) {
        collect_ropes(&b);
        for (; b.op < segment->count && b.status == RQ_OK; b.op++) {
            const rq_op *op = &segment->tape->ops[segment->first + b.op];
            size_t before = p->n_instrs;
            b.first = true;
            if (segment->barrier[b.op]) b.shared_now = 0;
            compile_op(&b, op);
            bool wants_table = op->kind == RQ_OP_ROPE || op->kind == RQ_OP_QKV_WRITE;
            if (wants_table && !b.barrier_seen && before < p->n_instrs)
                p->instrs[before].barrier = b.barrier_seen = true;
        }
    }
    if (b.status == RQ_OK) {
        p->counters = rq_calloc_aligned(64, (p->n_instrs + 1) * sizeof *p->counters);
        if (!p->counters) out_of_memory(&b);
    }
    if (b.status != RQ_OK) {
        rq_cpu_destroy(&p->base);
        return rq_fail(err, b.status, "%s", b.error.text);
    }
    *out = p;
    return RQ_OK;
}

rq_status rq_cpu_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_program **out, rq_error *err)
{
    rq_cpu_device *d = (rq_cpu_device *)device;
    rq_cpu_program *p = NULL;
    rq_status status = build(device, segment, bindings, false, &p, err);
    if (status != RQ_OK || !p) return status;
    status = rq_cpu_reserve_scratch(d, scratch_bytes(p, rq_pool_size(d->pool)), err);
    if (status == RQ_OK)
        *out = &p->base;
    else
        rq_cpu_destroy(&p->base);
    return status;
}

rq_status rq_cpu_scratch(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_scratch *sum, rq_error *err)
{
    rq_cpu_program *p = NULL;
    rq_status status = build(device, segment, bindings, true, &p, err);
    if (status != RQ_OK || !p) return status;
    uint64_t bytes = scratch_bytes(p, rq_pool_size(((rq_cpu_device *)device)->pool));
    if (bytes > sum->largest) sum->largest = bytes;
    rq_cpu_destroy(&p->base);
    return RQ_OK;
}

/* ---- running --------------------------------------------------------------------------------------------- */

typedef struct rq_cpu_launch {
    rq_cpu_program *program;
    const uint32_t *words;
    uint64_t *ns; /* per operation, or NULL */
} rq_cpu_launch;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t active_of(const rq_cpu_program *p, const rq_step_header *h)
{
    uint32_t n = p->bucket;
    if (h && p->extent == RQ_EXTENT_TOKENS) n = h->n_tokens;
    if (h && p->extent == RQ_EXTENT_ROWS) n = h->n_rows;
    return n < p->bucket ? n : p->bucket;
}

/* Instructions whose units must be done before the next barrier lets anybody on. */
typedef struct interval {
    const rq_cpu_counter *first, *end;
} interval;

static bool interval_done(const void *arg)
{
    const interval *now = arg;
    for (const rq_cpu_counter *c = now->first; c < now->end; c++)
        if (atomic_load_explicit(&c->done, memory_order_acquire) <
            atomic_load_explicit(&c->total, memory_order_relaxed))
            return false;
    return true;
}

/* Waits for the interval and begins the next one. */
static void meet(rq_pool *pool, const rq_cpu_worker *w, interval *now)
{
    if (w->count > 1) rq_pool_wait(pool, interval_done, now);
    now->first = now->end;
}

static void run_worker(void *arg, uint32_t worker)
{
    const rq_cpu_launch *launch = arg;
    rq_cpu_program *p = launch->program;
    rq_cpu_device *d = (rq_cpu_device *)p->base.device;
    const rq_step_header *h = (const rq_step_header *)(const void *)launch->words;
    rq_cpu_worker w = {
        .device = d,
        .isa = d->isa,
        .vec = d->vec,
        .index = worker,
        .count = rq_pool_size(d->pool),
        .active = active_of(p, h),
        .words = launch->words,
        .header = h,
        .fixed = d->scratch,
        .shared = d->scratch + p->fixed_bytes,
        .own = d->scratch + p->fixed_bytes + p->shared_bytes + p->own_bytes * worker,
    };
    uint64_t *ns = worker == 0 ? launch->ns : NULL;
    uint64_t before = ns ? now_ns() : 0;
    interval now = {p->counters, p->counters};
    for (size_t i = 0; i < p->n_instrs; i++) {
        const rq_instr *in = &p->instrs[i];
        if (launch->ns ? i > 0 : in->barrier) meet(d->pool, &w, &now);
        if (ns) {
            uint64_t time = now_ns();
            if (i > 0) ns[p->instrs[i - 1].op] += time - before;
            before = time;
        }
        w.counter = &p->counters[i];
        now.end = w.counter + 1;
        in->fn(&w, in->args);
        rq_cpu_finish(&w);
    }
    if (worker == 0) meet(d->pool, &w, &now);
    if (ns && p->n_instrs) ns[p->instrs[p->n_instrs - 1].op] += now_ns() - before;
}

/* Where a value lies, for the reference. */
static void *reference_address(void *user, const rq_tape *tape, rq_ref ref)
{
    const rq_cpu_program *p = user;
    const rq_value *v = &tape->values[ref];
    char *base = NULL;
    switch (v->space) {
    case RQ_SPACE_WEIGHT:
        base = p->bindings.weights[v->index].memory->host;
        return base + p->bindings.weights[v->index].offset + v->offset;
    case RQ_SPACE_ACT:
        return rq_reference_act(tape, ref, p->bindings.arena->host, p->segment.arena_offset);
    case RQ_SPACE_PERSIST:
        base = p->bindings.persist[v->index]->host;
        return base + v->offset;
    default:
        return NULL;
    }
}

static rq_status run_reference(rq_cpu_program *p, const uint32_t *words, uint64_t *ns, rq_error *err)
{
    const rq_memory *sampled = p->bindings.persist[RQ_PERSIST_SAMPLED];
    const rq_reference_env env = {
        .address = reference_address,
        .user = p,
        .pools = p->bindings.pools,
        .states = p->bindings.states,
        .caps = p->bindings.caps,
        .step_words = words,
        .sampled = sampled ? sampled->host : NULL,
    };
    for (uint32_t i = 0; i < p->segment.count; i++) {
        uint64_t before = ns ? now_ns() : 0;
        rq_status status =
            rq_reference_run(p->segment.tape, &p->segment.tape->ops[p->segment.first + i], &env, err);
        if (status != RQ_OK) return status;
        if (ns) ns[i] = now_ns() - before;
    }
    return RQ_OK;
}

static rq_status launch_program(rq_cpu_program *p, const uint32_t *words, uint64_t *ns, rq_error *err)
{
    rq_cpu_device *d = (rq_cpu_device *)p->base.device;
    if (words && words[0] != RQ_STEP_MAGIC)
        return rq_fail(err, RQ_ERR_INTERNAL, "the step buffer is not one");
    if (!words && p->extent != RQ_EXTENT_BUCKET)
        return rq_fail(err, RQ_ERR_INTERNAL, "the program reads a step and was given none");
    if (ns) memset(ns, 0, p->n_ops * sizeof *ns);
    if (d->reference) return run_reference(p, words, ns, err);
    for (size_t i = 0; i < p->n_instrs; i++) {
        atomic_store_explicit(&p->counters[i].next, 0, memory_order_relaxed);
        atomic_store_explicit(&p->counters[i].done, 0, memory_order_relaxed);
        atomic_store_explicit(&p->counters[i].total, 0, memory_order_relaxed);
    }
    rq_cpu_launch launch = {p, words, ns};
    rq_pool_run(d->pool, run_worker, &launch);
    return RQ_OK;
}

rq_status rq_cpu_run(rq_program *program, const uint32_t *step_words, rq_error *err)
{
    return launch_program((rq_cpu_program *)program, step_words, NULL, err);
}

rq_status rq_cpu_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err)
{
    return launch_program((rq_cpu_program *)program, step_words, ns, err);
}
