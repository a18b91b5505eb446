/* memory.c - everything an executor owns on its devices. First all of it is listed, then the list is
 * allocated: nothing else is, and what a device says it took must be what was listed. */
#include "backends/base/mem.h"
#include "backends/exec/internal.h"
#include "backends/ops.h"

#include <string.h>

static rq_status no_memory(rq_error *err, const char *what)
{
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %s", what);
}

/* Allocates and checks what came back against what was planned. Adds to *sum. */
static rq_status take(rq_executor *ex, uint32_t device, uint64_t bytes, const char *label, rq_memory **out,
                      uint64_t *sum, rq_error *err)
{
    rq_device *d = ex->devices[device];
    rq_status status = d->backend->alloc(d, bytes, label, out, err);
    if (status != RQ_OK) return status;
    uint64_t got = (*out)->bytes;
    if (got < bytes || got - bytes > bytes / 100 + 4096)
        return rq_fail(err, RQ_ERR_INTERNAL, "%s: planned %llu bytes, the device took %llu", label,
                       (unsigned long long)bytes, (unsigned long long)got);
    *sum += bytes;
    return RQ_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------- */

static rq_status adopt_of(rq_executor *ex, const rq_exec_program *p, rq_error *err)
{
    for (uint32_t i = 0; i < p->split.n_pieces; i++) {
        const rq_piece *piece = &p->split.pieces[i];
        rq_device *device = ex->devices[piece->device];
        for (uint32_t o = piece->first; o < piece->first + piece->count; o++) {
            const rq_op *op = &p->tape.ops[o];
            for (uint32_t a = 0; a < op->n_in; a++) {
                const rq_value *v = &p->tape.values[op->in[a]];
                if (!op->in[a] || v->space != RQ_SPACE_WEIGHT) continue;
                rq_binding *b = &ex->weight_bindings[(size_t)piece->device * ex->params.n_weights + v->index];
                if (b->memory) continue;
                const rq_weight *w = &ex->weights[v->index];
                rq_status status =
                    device->backend->adopt(device, w->host, w->bytes, w->name, &b->memory, err);
                if (status != RQ_OK) return status;
                ex->info.weight_bytes += w->bytes;
            }
        }
    }
    return RQ_OK;
}

static rq_status adopt_weights(rq_executor *ex, rq_error *err)
{
    size_t n = (size_t)ex->params.n_weights * ex->params.n_devices;
    ex->weight_bindings = rq_calloc(n, sizeof *ex->weight_bindings);
    if (!ex->weight_bindings) return no_memory(err, "the list of weights");
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < ex->n_trunk && status == RQ_OK; i++) status = adopt_of(ex, &ex->trunk[i], err);
    for (uint32_t i = 0; i < RQ_HEAD_BUCKETS && status == RQ_OK; i++)
        status = adopt_of(ex, &ex->head[i], err);
    return status; /* the encoding tape reads none */
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
        if (slabs[*n_slabs]) ++*n_slabs;
        if (status != RQ_OK) return status;
        n -= pages;
    }
    return RQ_OK;
}

/* A table without pages, here and on the device. */
static rq_status make_table(rq_executor *ex, uint32_t g, rq_page_form form, rq_memory **out, rq_error *err)
{
    uint64_t entries = (uint64_t)ex->params.caps.n_seqs * ex->params.caps.max_pages;
    uint32_t *table = ex->tables[g][form] = rq_calloc(entries, sizeof *table);
    if (!table) return no_memory(err, "a page table");
    for (uint64_t i = 0; i < entries; i++) table[i] = RQ_NO_PAGE;
    uint64_t bytes = entries * sizeof *table;
    rq_status status = take(ex, ex->group_device[g], bytes, "page table", out, &ex->info.cache_bytes, err);
    return status == RQ_OK ? (*out)->device->backend->upload(*out, 0, table, bytes, err) : status;
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
        ex->info.scratch_bytes += ex->info.cache_bytes - before;
    }
    if (status != RQ_OK || !rq_group_is_coded(pool->group)) return status;
    before = ex->info.cache_bytes;
    pool->coded_layout = rq_coded_layout_of(pool->group);
    pool->n_coded = ex->group_coded_pages[g];
    status = make_slabs(ex, g, pool->n_coded, pool->coded_layout.page_bytes, pool->coded_layout.slab_shift,
                        "coded key/value cache", pool->coded_slabs, &pool->n_coded_slabs, err);
    if (status == RQ_OK) status = make_table(ex, g, RQ_PAGE_CODED, &pool->coded_table, err);
    ex->info.coded_bytes += ex->info.cache_bytes - before;
    return status;
}

/* ---- activations and the rest -------------------------------------------------------------------------- */

static rq_status make_arenas(rq_executor *ex, rq_error *err)
{
    ex->arenas = rq_calloc(ex->params.n_devices, sizeof *ex->arenas);
    if (!ex->arenas) return no_memory(err, "the list of arenas");
    for (uint32_t d = 0; d < ex->params.n_devices; d++) {
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < ex->n_trunk; i++)
            if (ex->trunk[i].plan.arena_bytes[d] > bytes) bytes = ex->trunk[i].plan.arena_bytes[d];
        for (uint32_t i = 0; i < RQ_HEAD_BUCKETS; i++)
            if (ex->head[i].plan.arena_bytes[d] > bytes) bytes = ex->head[i].plan.arena_bytes[d];
        if (bytes == 0) continue;
        rq_status status = take(ex, d, bytes, "activations", &ex->arenas[d], &ex->info.arena_bytes, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
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
    for (uint32_t s = 0; s < RQ_STEPS && status == RQ_OK; s++) {
        rq_step_slot *slot = &ex->slots[s];
        status = take(ex, ex->persist_device, logits, "logits", &slot->logits, sum, err);
        if (status != RQ_OK || slot->logits->host) continue;
        slot->copy = rq_malloc(logits);
        if (!slot->copy) return no_memory(err, "a copy of the logits");
    }
    return status;
}

static uint32_t program_count(const rq_executor *ex)
{
    return ex->n_trunk + RQ_HEAD_BUCKETS + 1;
}

static const rq_exec_program *program_at(const rq_executor *ex, uint32_t i)
{
    if (i == ex->n_trunk + RQ_HEAD_BUCKETS) return &ex->encode;
    return i < ex->n_trunk ? &ex->trunk[i] : &ex->head[i - ex->n_trunk];
}

static rq_status make_steps(rq_executor *ex, rq_error *err)
{
    const rq_step_caps *caps = &ex->params.caps;
    uint64_t bytes = 4ull * rq_step_words(caps);
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        uint32_t *words = rq_calloc_aligned(64, bytes);
        if (!words) return no_memory(err, "a step buffer");
        rq_step_init(&ex->slots[s].step, caps, ex->groups, words);
        ex->info.step_bytes += bytes;
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
            bool direct = ex->arenas[copy->from]->host || ex->arenas[copy->to]->host;
            if (!direct && copy->bytes > bytes) bytes = copy->bytes;
        }
    }
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++) {
        const rq_cache_pool *pool = &ex->pools[g];
        if (pool->n_slabs && !pool->slabs[0]->host && pool->layout.page_bytes > bytes)
            bytes = pool->layout.page_bytes;
    }
    if (bytes == 0) return RQ_OK;
    ex->staging = rq_calloc_aligned(64, bytes);
    if (!ex->staging) return no_memory(err, "copies between devices");
    ex->staging_bytes = bytes;
    ex->info.step_bytes += bytes;
    return RQ_OK;
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
            b->caps = &ex->params.caps;
            if (d != ex->persist_device) continue;
            memcpy(b->persist, ex->persist, sizeof b->persist);
            b->persist[RQ_PERSIST_LOGITS] = ex->slots[s].logits;
        }
    return RQ_OK;
}

rq_status rq_exec_memory_make(rq_executor *ex, rq_error *err)
{
    rq_status status = adopt_weights(ex, err);
    for (uint32_t g = 0; g < ex->params.caps.n_groups && status == RQ_OK; g++) status = make_pool(ex, g, err);
    if (status == RQ_OK) status = make_arenas(ex, err);
    if (status == RQ_OK) status = make_persist(ex, err);
    if (status == RQ_OK) status = make_steps(ex, err);
    if (status == RQ_OK) status = make_staging(ex, err);
    if (status == RQ_OK) status = make_bindings(ex, err);
    return status;
}

static void give_back(rq_memory *memory)
{
    if (memory) memory->device->backend->release(memory);
}

void rq_exec_memory_free(rq_executor *ex)
{
    if (ex->weight_bindings)
        for (size_t i = 0; i < (size_t)ex->params.n_weights * ex->params.n_devices; i++)
            give_back(ex->weight_bindings[i].memory);
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
    for (uint32_t d = 0; ex->arenas && d < ex->params.n_devices; d++) give_back(ex->arenas[d]);
    rq_free(ex->arenas);
    for (uint32_t i = 0; i < RQ_PERSIST_COUNT; i++) give_back(ex->persist[i]);
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        give_back(ex->slots[s].logits);
        rq_free(ex->slots[s].copy);
        rq_free(ex->slots[s].step.words);
    }
    rq_free(ex->staging);
    rq_free(ex->op_ns);
    rq_free(ex->bindings);
}
