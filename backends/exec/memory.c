/* memory.c - everything an executor owns on its devices. First all of it is listed, then the list is
 * allocated: nothing else is, and what a device says it took must be what was listed. */
#include "backends/base/mem.h"
#include "backends/exec/internal.h"
#include "backends/ops.h"

#include <stdlib.h>
#include <string.h>

static rq_status no_memory(rq_error *err, const char *what)
{
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %s", what);
}

/* ---- the list ------------------------------------------------------------------------------------------ */

/* Making memory is run twice: first `dry`, which writes the list, then for real, which may not take more than is
 * on it. */
static rq_status note(rq_executor *ex, uint32_t device, const char *label, bool in_place, uint64_t bytes,
                      rq_error *err)
{
    rq_exec_list *list = &ex->list;
    uint32_t i = 0;
    while (i < list->n && (list->lines[i].device != device || strcmp(list->lines[i].label, label) != 0)) i++;
    rq_exec_line *line = &list->lines[i];
    if (ex->dry) {
        if (i == RQ_EXEC_MAX_LINES)
            return rq_fail(err, RQ_ERR_INTERNAL, "more kinds of memory than can be listed");
        if (i == list->n)
            list->lines[list->n++] = (rq_exec_line){.device = device, .label = label, .in_place = in_place};
        line->planned_bytes += bytes;
        return RQ_OK;
    }
    if (i == list->n || bytes > line->planned_bytes - line->made_bytes)
        return rq_fail(err, RQ_ERR_INTERNAL, "%llu bytes of memory for %s were not planned",
                       (unsigned long long)bytes, label);
    line->made_bytes += bytes;
    return RQ_OK;
}

/* Zeroed memory of this process; NULL in a dry run. */
static rq_status take_host(rq_executor *ex, uint64_t bytes, const char *label, void **out, rq_error *err)
{
    rq_status status = note(ex, RQ_EXEC_HOST, label, false, bytes, err);
    if (status != RQ_OK || ex->dry) return status;
    *out = rq_calloc_aligned(64, bytes);
    return *out ? RQ_OK : no_memory(err, label);
}

/* Allocates and checks what came back against what was planned. Adds to *sum. A dry run leaves *out alone. */
static rq_status take(rq_executor *ex, uint32_t device, uint64_t bytes, const char *label, rq_memory **out,
                      uint64_t *sum, rq_error *err)
{
    rq_device *d = ex->devices[device];
    rq_status status = note(ex, device, label, false, bytes, err);
    if (ex->dry) *sum += bytes;
    if (status != RQ_OK || ex->dry) return status;
    status = d->backend->alloc(d, bytes, label, out, err);
    if (status != RQ_OK) return status;
    uint64_t got = (*out)->bytes;
    if (got < bytes || got - bytes > bytes / 100 + 4096)
        return rq_fail(err, RQ_ERR_INTERNAL, "%s: planned %llu bytes, the device took %llu", label,
                       (unsigned long long)bytes, (unsigned long long)got);
    return RQ_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------- */

/* Marks the weights that the program reads on each device. */
static void mark_weights(const rq_executor *ex, const rq_exec_program *p, uint8_t *used)
{
    for (uint32_t i = 0; i < p->split.n_pieces; i++) {
        const rq_piece *piece = &p->split.pieces[i];
        for (uint32_t o = piece->first; o < piece->first + piece->count; o++) {
            const rq_op *op = &p->tape.ops[o];
            for (uint32_t a = 0; a < op->n_in; a++) {
                const rq_value *v = &p->tape.values[op->in[a]];
                if (op->in[a] && v->space == RQ_SPACE_WEIGHT)
                    used[(size_t)piece->device * ex->params.n_weights + v->index] = 1;
            }
        }
    }
}

/* Weights by the place of their bytes. */
static int by_place(const void *a, const void *b, void *user)
{
    const rq_weight *weights = user;
    const char *x = weights[*(const uint32_t *)a].host, *y = weights[*(const uint32_t *)b].host;
    return (x > y) - (x < y);
}

/* Bytes that several weights share (the halves of a fused tensor lie in each other) are brought to a device once:
 * the weights order[0 .. n) overlap in a chain. */
static rq_status adopt_chain(rq_executor *ex, uint32_t device, const uint32_t *order, uint32_t n,
                             const char *end, rq_error *err)
{
    const rq_weight *first = &ex->weights[order[0]];
    const char *start = first->host;
    bool in_place = ex->device_info[device].host_memory;
    rq_status status = note(ex, device, in_place ? "weights, read in the mapped file" : "weights", in_place,
                            (uint64_t)(end - start), err);
    if (ex->dry) ex->info.weight_bytes += (uint64_t)(end - start);
    if (status != RQ_OK || ex->dry) return status;
    rq_binding *bindings = ex->weight_bindings + (size_t)device * ex->params.n_weights;
    rq_device *d = ex->devices[device];
    rq_memory *memory = NULL;
    status = d->backend->adopt(d, start, (uint64_t)(end - start), first->name, &memory, err);
    if (memory) ex->weight_memory[ex->n_weight_memory++] = memory;
    for (uint32_t i = 0; i < n && status == RQ_OK; i++)
        bindings[order[i]] = (rq_binding){
            .memory = memory, .offset = (uint64_t)((const char *)ex->weights[order[i]].host - start)};
    return status;
}

static rq_status adopt_on(rq_executor *ex, uint32_t device, const uint8_t *used, uint32_t *order,
                          rq_error *err)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < ex->params.n_weights; w++)
        if (used[w]) order[n++] = w;
    qsort_r(order, n, sizeof *order, by_place, ex->weights);
    rq_status status = RQ_OK;
    for (uint32_t i = 0, end = 0; i < n && status == RQ_OK; i = end) {
        const char *to = (const char *)ex->weights[order[i]].host + ex->weights[order[i]].bytes;
        for (end = i + 1; end < n && (const char *)ex->weights[order[end]].host < to; end++) {
            const rq_weight *w = &ex->weights[order[end]];
            if ((const char *)w->host + w->bytes > to) to = (const char *)w->host + w->bytes;
        }
        status = adopt_chain(ex, device, order + i, end - i, to, err);
    }
    return status;
}

static rq_status adopt_weights(rq_executor *ex, rq_error *err)
{
    size_t n = (size_t)ex->params.n_weights * ex->params.n_devices;
    if (!ex->dry) {
        ex->weight_bindings = rq_calloc(n ? n : 1, sizeof *ex->weight_bindings);
        ex->weight_memory = rq_calloc(n ? n : 1, sizeof(rq_memory *));
        if (!ex->weight_bindings || !ex->weight_memory) return no_memory(err, "the list of weights");
    }
    uint8_t *used = rq_calloc(n ? n : 1, 1);
    uint32_t *order = rq_calloc((size_t)ex->params.n_weights + 1, sizeof *order);
    rq_status status = used && order ? RQ_OK : no_memory(err, "the list of weights");
    if (status == RQ_OK) {
        for (uint32_t i = 0; i < ex->n_trunk; i++) mark_weights(ex, &ex->trunk[i], used);
        for (uint32_t i = 0; i < RQ_HEAD_BUCKETS; i++) mark_weights(ex, &ex->head[i], used);
        for (uint32_t i = 0; i < ex->n_follow; i++) mark_weights(ex, &ex->follow[i], used);
        for (uint32_t i = 0; i < ex->n_draft; i++) mark_weights(ex, &ex->draft[i], used);
        /* the encoding tape reads none */
    }
    for (uint32_t d = 0; d < ex->params.n_devices && status == RQ_OK; d++)
        status = adopt_on(ex, d, used + (size_t)d * ex->params.n_weights, order, err);
    rq_free(used);
    rq_free(order);
    return status;
}

/* ---- cache --------------------------------------------------------------------------------------------- */

/* Slabs of n pages. *n_slabs counts those to be given back. */
static rq_status make_slabs(rq_executor *ex, uint32_t g, uint32_t n, uint64_t page_bytes, uint32_t shift,
                            const char *label, rq_memory **slabs, uint32_t *n_slabs, rq_error *err)
{
    uint32_t per_slab = 1u << shift;
    if (((uint64_t)n + per_slab - 1) / per_slab > RQ_MAX_SLABS)
        return rq_fail(err, RQ_ERR_CAPACITY, "a cache of %u pages of %llu bytes is too large", n,
                       (unsigned long long)page_bytes);
    while (n) {
        uint32_t pages = n < per_slab ? n : per_slab;
        rq_status status = take(ex, ex->group_device[g], pages * page_bytes, label, &slabs[*n_slabs],
                                &ex->info.cache_bytes, err);
        if (!ex->dry && slabs[*n_slabs]) ++*n_slabs;
        if (status != RQ_OK) return status;
        n -= pages;
    }
    return RQ_OK;
}

/* A table without pages, here and on the device. */
static rq_status make_table(rq_executor *ex, uint32_t g, rq_page_form form, rq_memory **out, rq_error *err)
{
    uint64_t entries = (uint64_t)ex->params.caps.n_seqs * ex->params.caps.max_pages;
    void *memory = NULL;
    uint64_t bytes = entries * sizeof(uint32_t);
    rq_status status = take_host(ex, bytes, "page tables", &memory, err);
    uint32_t *table = ex->tables[g][form] = memory;
    for (uint64_t i = 0; table && i < entries; i++) table[i] = RQ_NO_PAGE;
    if (status == RQ_OK)
        status = take(ex, ex->group_device[g], bytes, "page tables", out, &ex->info.cache_bytes, err);
    if (status != RQ_OK || ex->dry) return status;
    return (*out)->device->backend->upload(*out, 0, table, bytes, err);
}

static rq_status make_pool(rq_executor *ex, uint32_t g, rq_error *err)
{
    rq_cache_pool *pool = &ex->pools[g];
    pool->group = &ex->groups[g];
    pool->layout = rq_page_layout_of(pool->group);
    pool->n_pages = ex->group_pages[g];
    rq_status status = make_slabs(ex, g, pool->n_pages, pool->layout.page_bytes, pool->layout.slab_shift,
                                  "key/value cache", pool->slabs, &pool->n_slabs, err);
    if (status == RQ_OK) status = make_table(ex, g, RQ_PAGE_EXACT, &pool->table, err);
    uint64_t before = ex->info.cache_bytes, scratch = ex->group_scratch_pages[g] * pool->layout.layer_bytes;
    if (status == RQ_OK && scratch) {
        if (ex->group_scratch_pages[g] >= RQ_NO_PAGE / RQ_PAGE_TOKENS - pool->n_pages)
            return rq_fail(err, RQ_ERR_CAPACITY, "a cache of %u pages and %u for a step is too large",
                           pool->n_pages, ex->group_scratch_pages[g]);
        status = take(ex, ex->group_device[g], scratch, "key/value scratch", &pool->scratch,
                      &ex->info.cache_bytes, err);
        if (pool->scratch) pool->n_scratch = ex->group_scratch_pages[g];
        if (ex->dry) ex->info.scratch_bytes += ex->info.cache_bytes - before;
    }
    if (status != RQ_OK || !rq_group_is_coded(pool->group)) return status;
    before = ex->info.cache_bytes;
    pool->coded_layout = rq_coded_layout_of(pool->group);
    pool->n_coded = ex->group_coded_pages[g];
    status = make_slabs(ex, g, pool->n_coded, pool->coded_layout.page_bytes, pool->coded_layout.slab_shift,
                        "coded key/value cache", pool->coded_slabs, &pool->n_coded_slabs, err);
    if (status == RQ_OK) status = make_table(ex, g, RQ_PAGE_CODED, &pool->coded_table, err);
    if (ex->dry) ex->info.coded_bytes += ex->info.cache_bytes - before;
    return status;
}

static rq_status make_states(rq_executor *ex, rq_error *err)
{
    for (uint32_t i = 0; i < ex->params.n_states; i++) {
        rq_state_pool *pool = &ex->states[i];
        pool->group = &ex->state_groups[i];
        pool->layout = rq_state_layout_of(pool->group);
        pool->n_slots = ex->params.caps.n_seqs;
        uint64_t bytes;
        if (!rq_mul_u64(pool->layout.slot_bytes, pool->n_slots, &bytes))
            return rq_fail(err, RQ_ERR_CAPACITY, "the recurrent state of %u sequences is too large",
                           pool->n_slots);
        rq_status status = take(ex, ex->state_device[i], bytes, "recurrent state", &pool->memory,
                                &ex->info.state_bytes, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

/* ---- activations and the rest -------------------------------------------------------------------------- */

static uint32_t program_count(const rq_executor *ex)
{
    return ex->n_trunk + RQ_HEAD_BUCKETS + 1 + ex->n_follow + ex->n_draft;
}

static const rq_exec_program *program_at(const rq_executor *ex, uint32_t i)
{
    if (i < ex->n_trunk) return &ex->trunk[i];
    i -= ex->n_trunk;
    if (i < RQ_HEAD_BUCKETS) return &ex->head[i];
    i -= RQ_HEAD_BUCKETS;
    if (i == 0) return &ex->encode;
    return i - 1 < ex->n_follow ? &ex->follow[i - 1] : &ex->draft[i - 1 - ex->n_follow];
}

static rq_status make_arenas(rq_executor *ex, rq_error *err)
{
    rq_memory *none = NULL;
    if (!ex->dry) ex->arenas = rq_calloc(ex->params.n_devices, sizeof *ex->arenas);
    if (!ex->dry && !ex->arenas) return no_memory(err, "the list of arenas");
    for (uint32_t d = 0; d < ex->params.n_devices; d++) {
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < program_count(ex); i++) {
            const rq_exec_program *p = program_at(ex, i);
            if (rq_exec_program_exists(p) && p->plan.arena_bytes[d] > bytes) bytes = p->plan.arena_bytes[d];
        }
        if (bytes == 0) continue;
        rq_status status =
            take(ex, d, bytes, "activations", ex->dry ? &none : &ex->arenas[d], &ex->info.arena_bytes, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

/* Where the processor reads the logits of a device whose memory it cannot. */
static rq_status take_copy(rq_executor *ex, rq_step_slot *slot, uint64_t bytes, rq_error *err)
{
    static const char label[] = "copies of logits";
    rq_device *device = ex->devices[ex->persist_device];
    if (!device->backend->alloc_host) {
        void *copy = NULL;
        rq_status status = take_host(ex, bytes, label, &copy, err);
        slot->copy = copy;
        return status;
    }
    rq_status status = note(ex, RQ_EXEC_HOST, label, false, bytes, err);
    if (status != RQ_OK || ex->dry) return status;
    return device->backend->alloc_host(device, bytes, label, &slot->fetched, err);
}

static rq_status make_persist(rq_executor *ex, rq_error *err)
{
    const rq_executor_params *p = &ex->params;
    uint32_t sampled = p->caps.n_seqs > RQ_MAX_RUNS ? p->caps.n_seqs : RQ_MAX_RUNS;
    uint64_t *sum = &ex->info.persist_bytes, logits = 4ull * p->n_vocab * RQ_HEAD_ROWS;
    rq_status status = take(ex, ex->persist_device, 4ull * p->n_embd * p->caps.max_tokens, "hidden rows",
                            &ex->persist[RQ_PERSIST_HIDDEN], sum, err);
    if (status == RQ_OK)
        status = take(ex, ex->persist_device, 4ull * sampled, "sampled ids", &ex->persist[RQ_PERSIST_SAMPLED],
                      sum, err);
    if (status == RQ_OK && p->capture_floats)
        status = take(ex, ex->persist_device, 4ull * p->capture_floats * p->caps.max_tokens, "captured rows",
                      &ex->persist[RQ_PERSIST_CAPTURE], sum, err);
    if (status == RQ_OK && p->drafts)
        status = take(ex, ex->persist_device, 4ull * p->n_embd * rq_trail_rows(&p->caps), "hidden rows",
                      &ex->persist[RQ_PERSIST_TRAIL], sum, err);
    if (status == RQ_OK && ex->input_device != ex->persist_device)
        status = take(ex, ex->input_device, 4ull * sampled, "sampled ids", &ex->sampled, sum, err);
    for (uint32_t s = 0; s < RQ_STEPS && status == RQ_OK; s++) {
        rq_step_slot *slot = &ex->slots[s];
        status = take(ex, ex->persist_device, logits, "logits", &slot->logits, sum, err);
        if (status != RQ_OK || ex->device_info[ex->persist_device].host_memory) continue;
        status = take_copy(ex, slot, logits, err);
    }
    return status;
}

static rq_status make_steps(rq_executor *ex, rq_error *err)
{
    const rq_step_caps *caps = &ex->params.caps;
    uint64_t bytes = 4ull * rq_step_words(caps);
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        void *words = NULL;
        rq_status status = take_host(ex, bytes, "step buffers", &words, err);
        if (status != RQ_OK) return status;
        if (words) rq_step_init(&ex->slots[s].step, caps, ex->groups, words);
        if (ex->dry) ex->info.step_bytes += bytes;
    }
    if (ex->params.drafts) {
        void *words = NULL, *zeros = NULL;
        rq_status status = take_host(ex, bytes, "step buffers", &words, err);
        if (words) rq_step_init(&ex->aside, caps, ex->groups, words);
        if (status == RQ_OK) status = take_host(ex, 4ull * ex->params.n_embd, "step buffers", &zeros, err);
        ex->zeros = zeros;
        if (status != RQ_OK) return status;
        if (ex->dry) ex->info.step_bytes += bytes + 4ull * ex->params.n_embd;
    }
    if (ex->dry) return RQ_OK;
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        ex->slots[s].marks = rq_calloc(ex->params.n_devices, sizeof *ex->slots[s].marks);
        if (!ex->slots[s].marks) return no_memory(err, "marks of steps");
    }
    uint32_t longest = 1;
    for (uint32_t i = 0; i < program_count(ex); i++) {
        const rq_split *split = &program_at(ex, i)->split;
        for (uint32_t k = 0; k < split->n_pieces; k++)
            if (split->pieces[k].count > longest) longest = split->pieces[k].count;
    }
    ex->op_ns = rq_calloc(longest, sizeof *ex->op_ns);
    return ex->op_ns ? RQ_OK : no_memory(err, "times of operations");
}

/* Copies between devices and of pages go through the host when neither memory can be touched by it. */
static rq_status make_staging(rq_executor *ex, rq_error *err)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < program_count(ex); i++) {
        const rq_exec_program *p = program_at(ex, i);
        for (uint32_t c = 0; c < p->split.n_copies; c++) {
            const rq_border_copy *copy = &p->split.copies[c];
            bool direct = ex->device_info[copy->from].host_memory || ex->device_info[copy->to].host_memory;
            if (!direct && copy->bytes > bytes) bytes = copy->bytes;
        }
    }
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++) {
        const rq_cache_pool *pool = &ex->pools[g];
        if (!ex->device_info[ex->group_device[g]].host_memory && pool->layout.page_bytes > bytes)
            bytes = pool->layout.page_bytes;
    }
    if (ex->params.drafts && !ex->device_info[ex->persist_device].host_memory &&
        4ull * ex->params.n_embd > bytes)
        bytes = 4ull * ex->params.n_embd;
    if (bytes == 0) return RQ_OK;
    rq_status status = take_host(ex, bytes, "staging between devices", &ex->staging, err);
    if (ex->dry)
        ex->info.step_bytes += bytes;
    else if (status == RQ_OK)
        ex->staging_bytes = bytes;
    return status;
}

static rq_status make_bindings(rq_executor *ex, rq_error *err)
{
    uint32_t n = ex->params.n_devices;
    ex->bindings = rq_calloc((size_t)n * RQ_STEPS, sizeof *ex->bindings);
    if (!ex->bindings) return no_memory(err, "the bindings of programs");
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t s = 0; s < RQ_STEPS; s++) {
            rq_bindings *b = &ex->bindings[d * RQ_STEPS + s];
            b->weights = ex->weight_bindings + (size_t)d * ex->params.n_weights;
            b->arena = ex->arenas[d];
            b->pools = ex->pools;
            b->states = ex->states;
            b->caps = &ex->params.caps;
            b->not_finite = &ex->not_finite;
            if (d == ex->input_device) b->persist[RQ_PERSIST_SAMPLED] = ex->sampled;
            if (d != ex->persist_device) continue;
            memcpy(b->persist, ex->persist, sizeof b->persist);
            b->persist[RQ_PERSIST_LOGITS] = ex->slots[s].logits;
        }
    return RQ_OK;
}

/* ---- what programs take --------------------------------------------------------------------------------- */

/* Weights as host memory, so that backends can look at them before anything is loaded. */
static rq_status weights_as_they_are(const rq_executor *ex, rq_memory **memory, rq_binding **bindings,
                                     rq_error *err)
{
    uint32_t n = ex->params.n_weights;
    *memory = rq_calloc((size_t)n + 1, sizeof **memory);
    *bindings = rq_calloc((size_t)n + 1, sizeof **bindings);
    if (!*memory || !*bindings) return no_memory(err, "the list of weights");
    for (uint32_t w = 0; w < n; w++) {
        (*memory)[w] =
            (rq_memory){.host = (void *)(uintptr_t)ex->weights[w].host, .bytes = ex->weights[w].bytes};
        (*bindings)[w].memory = &(*memory)[w];
    }
    return RQ_OK;
}

static rq_status scratch_of(const rq_executor *ex, uint32_t device, const rq_bindings *bindings,
                            rq_scratch *sum, rq_error *err)
{
    rq_device *d = ex->devices[device];
    for (uint32_t i = 0; i < program_count(ex); i++) {
        const rq_exec_program *p = program_at(ex, i);
        bool head = i >= ex->n_trunk && i < ex->n_trunk + RQ_HEAD_BUCKETS;
        for (uint32_t k = 0; k < p->split.n_pieces; k++) {
            const rq_piece *piece = &p->split.pieces[k];
            if (piece->device != device) continue;
            rq_segment segment = {.tape = &p->tape,
                                  .first = piece->first,
                                  .count = piece->count,
                                  .arena_offset = rq_plan_offsets(&p->plan, device),
                                  .barrier = p->plan.barrier + piece->first};
            for (int s = 0; s < (head ? RQ_STEPS : 1); s++) {
                rq_status status = d->backend->scratch(d, &segment, bindings, sum, err);
                if (status != RQ_OK) return status;
            }
        }
    }
    return RQ_OK;
}

static rq_status list_scratch(rq_executor *ex, rq_error *err)
{
    rq_memory *memory = NULL;
    rq_binding *weights = NULL;
    rq_status status = weights_as_they_are(ex, &memory, &weights, err);
    rq_memory table = {0}; /* of no bytes: there is none yet */
    rq_cache_pool pools[RQ_MAX_GROUPS];
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++) {
        pools[g] = ex->pools[g];
        pools[g].table = pools[g].scratch = pools[g].coded_table = &table;
    }
    rq_bindings bindings = {
        .weights = weights, .pools = pools, .states = ex->states, .caps = &ex->params.caps};
    for (uint32_t d = 0; d < ex->params.n_devices && status == RQ_OK; d++) {
        if (!ex->devices[d]->backend->scratch) continue;
        rq_scratch sum = {0};
        status = scratch_of(ex, d, &bindings, &sum, err);
        uint64_t bytes = sum.largest + sum.sum + sum.once;
        if (status == RQ_OK && bytes) status = note(ex, d, RQ_EXEC_SCRATCH, false, bytes, err);
        ex->info.program_bytes += bytes;
    }
    rq_free(memory);
    rq_free(weights);
    return status;
}

/* Run twice; see "the list". */
static rq_status everything(rq_executor *ex, rq_error *err)
{
    rq_status status = adopt_weights(ex, err);
    for (uint32_t g = 0; g < ex->params.caps.n_groups && status == RQ_OK; g++) status = make_pool(ex, g, err);
    if (status == RQ_OK) status = make_states(ex, err);
    if (status == RQ_OK) status = make_arenas(ex, err);
    if (status == RQ_OK) status = make_persist(ex, err);
    if (status == RQ_OK) status = make_steps(ex, err);
    if (status == RQ_OK) status = make_staging(ex, err);
    return status;
}

rq_status rq_exec_memory_list(rq_executor *ex, rq_error *err)
{
    ex->dry = true;
    rq_status status = everything(ex, err);
    if (status == RQ_OK) status = list_scratch(ex, err);
    ex->dry = false;
    return status;
}

rq_status rq_exec_memory_make(rq_executor *ex, rq_error *err)
{
    rq_status status = everything(ex, err);
    return status == RQ_OK ? make_bindings(ex, err) : status;
}

static void give_back(rq_memory *memory)
{
    if (memory) memory->device->backend->release(memory);
}

void rq_exec_memory_free(rq_executor *ex)
{
    for (size_t i = 0; i < ex->n_weight_memory; i++) give_back(ex->weight_memory[i]);
    rq_free(ex->weight_memory);
    rq_free(ex->weight_bindings);
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) {
        rq_cache_pool *pool = &ex->pools[g];
        for (uint32_t s = 0; s < pool->n_slabs; s++) give_back(pool->slabs[s]);
        for (uint32_t s = 0; s < pool->n_coded_slabs; s++) give_back(pool->coded_slabs[s]);
        give_back(pool->table);
        give_back(pool->scratch);
        give_back(pool->coded_table);
        for (uint32_t form = 0; form < RQ_PAGE_FORMS; form++) rq_free(ex->tables[g][form]);
    }
    for (uint32_t i = 0; i < RQ_MAX_STATE_GROUPS; i++) give_back(ex->states[i].memory);
    for (uint32_t d = 0; ex->arenas && d < ex->params.n_devices; d++) give_back(ex->arenas[d]);
    rq_free(ex->arenas);
    for (uint32_t i = 0; i < RQ_PERSIST_COUNT; i++) give_back(ex->persist[i]);
    give_back(ex->sampled);
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        give_back(ex->slots[s].logits);
        give_back(ex->slots[s].fetched);
        rq_free(ex->slots[s].copy);
        rq_free(ex->slots[s].marks);
        rq_free(ex->slots[s].step.words);
    }
    rq_free(ex->aside.words);
    rq_free(ex->zeros);
    rq_free(ex->staging);
    rq_free(ex->op_ns);
    rq_free(ex->bindings);
}
