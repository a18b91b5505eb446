/* program.c - a compiled segment: a list of launches, made once into a graph. A run copies the step's words to the
 * device and launches the graph; no call is made per operation and nothing is allocated. */
#include "backends/cuda/cu.h"

#include "backends/base/mem.h"
#include "backends/ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct launch {
    void *function, *node;
    uint32_t kernel, grid[3];
    uint32_t op;  /* in the segment */
    bool barrier; /* it waits for all launches before it */
    uint8_t args[CU_ARGS_BYTES];
} launch;

/* Between two groups of launches more edges than that are ordinary ones. */
enum { CU_MOST_OVERLAPS = 4 };

typedef struct cu_program {
    rq_program base;
    launch *list;
    size_t n, cap;
    uint32_t n_ops;
    cu_step *step; /* NULL: reads none */
    void *graph, *exec;
    rq_memory *pools[RQ_MAX_GROUPS];
} cu_program;

struct cu_builder {
    cu_device *device;
    cu_program *program;
    const rq_segment *segment;
    const rq_bindings *bindings;
    uint32_t op;
    bool first, scratch_used; /* the next launch is the operation's first; the tape used scratch before it */
    bool shares_scratch;      /* this operation uses scratch */
    uint32_t
        *per_op; /* launches are counted and not made: memory has no addresses, and there may be no device */
    uint64_t scratch;         /* then: the bytes that would have been shared */
    bool pool[RQ_MAX_GROUPS]; /* and the pools that would have been described */
    rq_status status;
    rq_error error;
};

const rq_tape *cu_tape(const cu_builder *b)
{
    return b->segment->tape;
}

const rq_bindings *cu_bindings(const cu_builder *b)
{
    return b->bindings;
}

cu_device *cu_device_of(const cu_builder *b)
{
    return b->device;
}

void cu_op_fail(cu_builder *b, const char *format, ...)
{
    if (b->status != RQ_OK) return;
    const rq_op *op = &b->segment->tape->ops[b->segment->first + b->op];
    char text[200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->status =
        rq_fail(&b->error, RQ_ERR_INTERNAL, "CUDA cannot run %s: %s", rq_op_get(op->kind)->name, text);
}

cu_view cu_value(cu_builder *b, rq_ref ref)
{
    cu_view out = {0};
    if (ref == 0) return out;
    const rq_value *v = &b->segment->tape->values[ref];
    out.address = 1;
    out.type = v->type;
    for (int i = 0; i < 4; i++) {
        out.ne[i] = v->ne[i];
        out.stride[i] = v->stride[i] / 4;
    }
    if (b->per_op) return out;
    out.address = 0;
    uint64_t base = 0, offset = v->offset;
    switch (v->space) {
    case RQ_SPACE_WEIGHT:
        base = cu_address(b->bindings->weights[v->index].memory);
        offset += b->bindings->weights[v->index].offset;
        break;
    case RQ_SPACE_ACT:
        base = cu_address(b->bindings->arena);
        offset += b->segment->arena_offset[v->index];
        break;
    case RQ_SPACE_PERSIST:
        base = cu_address(b->bindings->persist[v->index]);
        break;
    default:
        return out;
    }
    if (base == 0) cu_op_fail(b, "an operand has no memory");
    out.address = base + offset;
    return out;
}

uint64_t cu_step_address(const cu_builder *b)
{
    return b->program && b->program->step ? cu_address(b->program->step->memory) : 0;
}

uint64_t cu_pool_address(cu_builder *b, uint32_t group)
{
    if (group >= RQ_MAX_GROUPS) {
        cu_op_fail(b, "there is no cache group %u", group);
        return 0;
    }
    if (b->per_op) {
        b->pool[group] = true;
        return 1;
    }
    rq_memory **pool = &b->program->pools[group];
    if (!*pool && b->status == RQ_OK)
        b->status = cu_pool_make(b->device, &b->bindings->pools[group], b->bindings->caps, pool, &b->error);
    return cu_address(*pool);
}

uint64_t cu_scratch(cu_builder *b, uint64_t bytes)
{
    cu_device *d = b->device;
    if (b->per_op) {
        if (bytes > b->scratch) b->scratch = bytes;
        return 1;
    }
    b->shares_scratch = true;
    if (b->status != RQ_OK) return 0;
    if (d->scratch && d->scratch->memory->bytes >= bytes) return cu_address(d->scratch->memory);
    /* Launches already made know smaller ones, which stay: without a plan, or where it said less. */
    cu_shared_scratch *s = rq_calloc(1, sizeof *s);
    if (!s) {
        b->status = rq_fail(&b->error, RQ_ERR_MEMORY, "out of memory while compiling a tape");
        return 0;
    }
    uint64_t wanted = bytes > d->scratch_wanted ? bytes : d->scratch_wanted;
    b->status = cu_alloc(&d->base, wanted, "scratch of programs", &s->memory, &b->error);
    if (b->status != RQ_OK) {
        rq_free(s);
        return 0;
    }
    s->next = d->scratch;
    d->scratch = s;
    return cu_address(s->memory);
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

uint32_t cu_extent_word(const cu_builder *b)
{
    if (!b->program || !b->program->step) return UINT32_MAX;
    return reads_rows(b->segment->tape) ? offsetof(rq_step_header, n_rows) / 4
                                        : offsetof(rq_step_header, n_tokens) / 4;
}

void cu_launch(cu_builder *b, uint32_t kernel, const void *args, size_t args_bytes, uint32_t x, uint32_t y,
               uint32_t z, bool after)
{
    cu_program *p = b->program;
    if (b->status != RQ_OK || x == 0 || y == 0 || z == 0) return;
    if (y > 65535 || z > 65535 || args_bytes > CU_ARGS_BYTES) {
        cu_op_fail(b, "it needs %u x %u x %u blocks, and the limit is 65535 in y and z", x, y, z);
        return;
    }
    if (b->per_op) {
        b->per_op[b->op]++;
        return;
    }
    void *function;
    b->status = cu_function(b->device, kernel, &function, &b->error);
    if (b->status != RQ_OK) return;
    void *list = p->list;
    if (!rq_grow(&list, &p->cap, p->n + 1, sizeof *p->list)) {
        b->status = rq_fail(&b->error, RQ_ERR_MEMORY, "out of memory while compiling a tape");
        return;
    }
    p->list = list;
    bool barrier = after || (b->first && b->segment->barrier[b->op]);
    if (b->first && b->shares_scratch && b->scratch_used) barrier = true; /* scratch is one for all */
    b->scratch_used |= b->shares_scratch;
    b->first = false;
    launch *l = &p->list[p->n++];
    *l = (launch){.function = function, .kernel = kernel, .grid = {x, y, z}, .op = b->op, .barrier = barrier};
    memcpy(l->args, args, args_bytes);
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

static rq_status step_for(cu_device *d, const rq_step_caps *caps, cu_step **out, rq_error *err)
{
    uint32_t words = 0;
    rq_status status = words_of(caps, &words, err);
    if (status != RQ_OK) return status;
    for (cu_step *s = d->steps; s; s = s->next)
        if (s->words == words) {
            *out = s;
            return RQ_OK;
        }
    for (uint32_t i = 0; i < CU_RING;
         i++) { /* words of the largest step there is, so that a run allocates nothing */
        cu_slot *slot = &d->ring[i];
        if (slot->bytes >= 4ull * words) continue;
        void *host = NULL;
        int result = d->api.context_set(d->context);
        if (result == 0 && slot->flying) result = d->api.event_wait(slot->copied);
        if (result == 0) result = d->api.host_alloc(&host, 4ull * words, 0);
        if (result) return cu_fail(d, result, "allocating memory for a step", err);
        if (slot->words) d->api.host_free(slot->words);
        slot->words = host;
        slot->bytes = 4ull * words;
        slot->flying = false;
    }
    cu_step *s = rq_calloc(1, sizeof *s);
    if (!s) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a step");
    status = cu_alloc(&d->base, 4ull * words, "the step", &s->memory, err);
    if (status != RQ_OK) {
        rq_free(s);
        return status;
    }
    s->words = words;
    s->next = d->steps;
    *out = d->steps = s;
    return RQ_OK;
}

/* The step's words on their way to the device, in the order of the stream. */
static rq_status send_words(cu_device *d, const cu_step *step, const uint32_t *words, rq_error *err)
{
    cu_slot *slot = &d->ring[d->next_slot];
    d->next_slot = (d->next_slot + 1) % CU_RING;
    int result = 0;
    if (slot->flying) result = d->api.event_wait(slot->copied);
    slot->flying = false;
    if (result == 0) {
        memcpy(slot->words, words, 4ull * step->words);
        result = d->api.copy_to_device(cu_address(step->memory), slot->words, 4ull * step->words, d->stream);
    }
    if (result == 0) result = d->api.event_record(slot->copied, d->stream);
    slot->flying = result == 0;
    return result ? cu_fail(d, result, "running a step", err) : RQ_OK;
}

/* ---- compiling ------------------------------------------------------------------------------------------- */

void cu_destroy(rq_program *program)
{
    if (!program) return;
    cu_program *p = (cu_program *)program;
    cu_device *d = (cu_device *)program->device;
    d->api.context_set(d->context);
    d->api.stream_wait(d->stream);
    if (p->exec) d->api.graph_exec_destroy(p->exec);
    if (p->graph) d->api.graph_destroy(p->graph);
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) cu_release(p->pools[g]);
    rq_free(p->list);
    rq_free(p);
}

/* How many launches from `first` on there are up to the next barrier. */
static size_t group_size(const cu_program *p, size_t first)
{
    size_t n = 1;
    while (first + n < p->n && !p->list[first + n].barrier) n++;
    return n;
}

/* Edges by which a launch may begin as soon as those before it let it (docs/cuda.md): each from the launches of one group
 * to one of the next. And room for the launches of a group. */
typedef struct recording {
    void **before, **from, **to;
    cuda_edge *edges;
    size_t n;
} recording;

static void drop_recording(recording *r)
{
    rq_free(r->before);
    rq_free(r->from);
    rq_free(r->to);
    rq_free(r->edges);
}

static bool make_recording(const cu_program *p, recording *r)
{
    size_t most = p->n * CU_MOST_OVERLAPS;
    *r = (recording){.before = rq_calloc(p->n, sizeof *r->before),
                     .from = rq_calloc(most, sizeof *r->from),
                     .to = rq_calloc(most, sizeof *r->to),
                     .edges = rq_calloc(most, sizeof *r->edges)};
    if (r->before && r->from && r->to && r->edges) return true;
    drop_recording(r);
    return false;
}

/* Launches between two barriers depend on those between the barrier before and the first of the two. */
static int record(cu_program *p, recording *r)
{
    void **before = r->before;
    r->n = 0;
    cu_device *d = (cu_device *)p->base.device;
    int result = d->api.graph_create(&p->graph, 0);
    if (result) p->graph = NULL;
    size_t first = 0, n_before = 0; /* of this group of launches; nodes of the one before */
    bool overlaps = false;
    for (size_t i = 0; i < p->n && result == 0; i++) {
        launch *l = &p->list[i];
        if (l->barrier && i > first) {
            n_before = i - first;
            for (size_t k = 0; k < n_before; k++) before[k] = p->list[first + k].node;
            first = i;
            overlaps = d->overlaps && n_before * group_size(p, first) <= CU_MOST_OVERLAPS;
        }
        void *params[1] = {l->args};
        cuda_kernel_node node = {.function = l->function,
                                 .grid = {l->grid[0], l->grid[1], l->grid[2]},
                                 .block = {cu_kernel_threads(l->kernel), 1, 1},
                                 .shared_bytes = cu_kernel_shared_bytes(l->kernel),
                                 .params = params};
        result = d->api.graph_add_kernel(&l->node, p->graph, before, overlaps ? 0 : n_before, &node);
        for (size_t k = 0; overlaps && k < n_before; k++, r->n++) {
            r->from[r->n] = before[k];
            r->to[r->n] = l->node;
            r->edges[r->n] = (cuda_edge){.from_port = CUDA_EDGE_PROGRAMMATIC, .type = CUDA_EDGE_PROGRAMMATIC};
        }
    }
    if (result == 0 && r->n) result = d->api.graph_add_edges(p->graph, r->from, r->to, r->edges, r->n);
    if (result == 0) {
        result = d->api.graph_instantiate(&p->exec, p->graph, 0);
        if (result) p->exec = NULL;
    }
    return result;
}

static rq_status make_graph(cu_program *p, rq_error *err)
{
    cu_device *d = (cu_device *)p->base.device;
    if (p->n == 0) return RQ_OK;
    recording r;
    if (!make_recording(p, &r)) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while compiling a tape");
    int result = d->api.context_set(d->context);
    if (result == 0) result = record(p, &r);
    bool broken = result >= CUDA_CONTEXT_BROKEN_FIRST && result <= CUDA_CONTEXT_BROKEN_LAST;
    if (result && d->overlaps && result != CUDA_OUT_OF_MEMORY && !broken) {
        /* a driver that has the call and will not have such edges gets ordinary ones, now and later */
        d->overlaps = false;
        if (p->graph) d->api.graph_destroy(p->graph);
        p->graph = NULL;
        result = record(p, &r);
    }
    drop_recording(&r);
    return result ? cu_fail(d, result, "recording launches", err) : RQ_OK;
}

rq_status cu_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                     rq_program **out, rq_error *err)
{
    cu_program *p = rq_calloc(1, sizeof *p);
    if (!p) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while compiling a tape");
    p->base.device = device;
    p->n_ops = segment->count;
    cu_builder b = {.device = (cu_device *)device, .program = p, .segment = segment, .bindings = bindings};
    if (reads_step(segment->tape)) b.status = step_for(b.device, bindings->caps, &p->step, &b.error);
    for (; b.op < segment->count && b.status == RQ_OK; b.op++) {
        b.first = true;
        b.shares_scratch = false;
        cu_compile_op(&b, &segment->tape->ops[segment->first + b.op]);
    }
    if (b.status == RQ_OK) b.status = make_graph(p, &b.error);
    if (b.status != RQ_OK) {
        cu_destroy(&p->base);
        return rq_fail(err, b.status, "%s", b.error.text);
    }
    *out = &p->base;
    return RQ_OK;
}

rq_status cu_scratch_of(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                        rq_scratch *sum, rq_error *err)
{
    uint32_t *per_op = rq_calloc(segment->count, sizeof *per_op), words = 0;
    if (!per_op) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while planning a tape");
    cu_builder b = {
        .device = (cu_device *)device, .segment = segment, .bindings = bindings, .per_op = per_op};
    if (reads_step(segment->tape)) b.status = words_of(bindings->caps, &words, &b.error);
    for (; b.op < segment->count && b.status == RQ_OK; b.op++)
        cu_compile_op(&b, &segment->tape->ops[segment->first + b.op]);
    rq_free(per_op);
    if (b.status != RQ_OK) return rq_fail(err, b.status, "%s", b.error.text);
    cu_device *d = b.device;
    if (sum->largest == 0 && sum->sum == 0 && sum->once == 0) d->scratch_wanted = 0; /* another plan begins */
    if (b.scratch > d->scratch_wanted) d->scratch_wanted = b.scratch;
    if (b.scratch && cu_taken(b.scratch) > sum->largest) sum->largest = cu_taken(b.scratch);
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) sum->sum += b.pool[g] ? cu_taken(sizeof(cuda_pool)) : 0;
    if (words && cu_taken(4ull * words) > sum->once) sum->once = cu_taken(4ull * words);
    return RQ_OK;
}

rq_status cu_count_launches(const rq_tape *tape, const rq_cache_group *groups, uint32_t n_groups,
                            const rq_state_group *states, uint32_t n_states, const rq_step_caps *caps,
                            uint32_t *per_op, rq_error *err)
{
    if (n_groups > RQ_MAX_GROUPS || n_states > RQ_MAX_STATE_GROUPS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u groups of caches and %u of states are too many", n_groups,
                       n_states);
    rq_cache_pool *pools = rq_calloc(RQ_MAX_GROUPS, sizeof *pools);
    rq_state_pool *state_pools = rq_calloc(RQ_MAX_STATE_GROUPS, sizeof *state_pools);
    /* Its number of processors is looked at; its compute capability, 0, keeps to what generation takes anyway. */
    cu_device *device = rq_calloc(1, sizeof *device);
    rq_status status = RQ_OK;
    if (!pools || !state_pools || !device)
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for counting launches");
    for (uint32_t g = 0; status == RQ_OK && g < n_groups; g++) pools[g].group = &groups[g];
    for (uint32_t g = 0; status == RQ_OK && g < n_states; g++)
        state_pools[g] = (rq_state_pool){
            .group = &states[g], .layout = rq_state_layout_of(&states[g]), .n_slots = caps->n_seqs};
    if (device) device->n_processors = 1;
    memset(per_op, 0, tape->n_ops * sizeof *per_op);
    const rq_bindings bindings = {.pools = pools, .states = state_pools, .caps = caps};
    const rq_segment segment = {.tape = tape, .count = tape->n_ops};
    cu_builder b = {.device = device, .segment = &segment, .bindings = &bindings, .per_op = per_op};
    for (; status == RQ_OK && b.op < tape->n_ops && b.status == RQ_OK; b.op++)
        cu_compile_op(&b, &tape->ops[b.op]);
    if (status == RQ_OK && b.status != RQ_OK) status = rq_fail(err, b.status, "%s", b.error.text);
    rq_free(pools);
    rq_free(state_pools);
    rq_free(device);
    return status;
}

uint32_t cu_program_launches(const rq_program *program)
{
    return (uint32_t)((const cu_program *)program)->n;
}

/* ---- running --------------------------------------------------------------------------------------------- */

static rq_status begin(cu_program *p, const uint32_t *step_words, rq_error *err)
{
    cu_device *d = (cu_device *)p->base.device;
    if (d->lost) return rq_fail(err, RQ_ERR_DEVICE, "%s was lost", d->name);
    if (p->step && (!step_words || step_words[0] != RQ_STEP_MAGIC))
        return rq_fail(err, RQ_ERR_INTERNAL, "the step buffer is not one");
    int result = d->api.context_set(d->context);
    if (result) return cu_fail(d, result, "running a step", err);
    return p->step ? send_words(d, p->step, step_words, err) : RQ_OK;
}

rq_status cu_run(rq_program *program, const uint32_t *step_words, rq_error *err)
{
    cu_program *p = (cu_program *)program;
    cu_device *d = (cu_device *)program->device;
    rq_status status = begin(p, step_words, err);
    if (status != RQ_OK || !p->exec) return status;
    int result = d->api.graph_launch(p->exec, d->stream);
    return result ? cu_fail(d, result, "running a step", err) : RQ_OK;
}

rq_status cu_wait(rq_device *device, rq_error *err)
{
    cu_device *d = (cu_device *)device;
    int result = d->api.context_set(d->context);
    if (result == 0) result = d->api.stream_wait(d->stream);
    return result ? cu_fail(d, result, "running a step", err) : RQ_OK;
}

/* Each operation between two events, everything in order. */
static int run_timed(cu_program *p, void **events, uint64_t *ns)
{
    cu_device *d = (cu_device *)p->base.device;
    size_t at = 0;
    int result = d->api.event_record(events[0], d->stream);
    for (uint32_t op = 0; op < p->n_ops && result == 0; op++) {
        for (; at < p->n && p->list[at].op == op && result == 0; at++) {
            launch *l = &p->list[at];
            void *params[1] = {l->args};
            result =
                d->api.launch(l->function, l->grid[0], l->grid[1], l->grid[2], cu_kernel_threads(l->kernel),
                              1, 1, cu_kernel_shared_bytes(l->kernel), d->stream, params, NULL);
        }
        if (result == 0) result = d->api.event_record(events[op + 1], d->stream);
    }
    if (result == 0) result = d->api.stream_wait(d->stream);
    for (uint32_t op = 0; op < p->n_ops && result == 0; op++) {
        float ms = 0;
        result = d->api.event_elapsed(&ms, events[op], events[op + 1]);
        ns[op] = (uint64_t)((double)ms * 1e6);
    }
    return result;
}

rq_status cu_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err)
{
    cu_program *p = (cu_program *)program;
    cu_device *d = (cu_device *)program->device;
    rq_status status = begin(p, step_words, err);
    if (status != RQ_OK) return status;
    void **events = rq_calloc(p->n_ops + 1, sizeof *events);
    if (!events) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for times");
    int result = 0;
    for (uint32_t i = 0; i <= p->n_ops && result == 0; i++) {
        result = d->api.event_create(&events[i], 0);
        if (result) events[i] = NULL;
    }
    if (result == 0) result = run_timed(p, events, ns);
    for (uint32_t i = 0; i <= p->n_ops; i++)
        if (events[i]) d->api.event_destroy(events[i]);
    rq_free(events);
    return result ? cu_fail(d, result, "measuring", err) : RQ_OK;
}
