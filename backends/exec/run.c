/* run.c - steps through a created executor. Nothing here allocates. */
#include "backends/exec/internal.h"

#include <string.h>
#include <time.h>

static rq_step_slot *slot_of(rq_executor *ex, const rq_step *step)
{
    for (uint32_t s = 0; s < RQ_STEPS; s++)
        if (&ex->slots[s].step == step) return &ex->slots[s];
    return NULL;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t rq_executor_device_ns(const rq_executor *ex)
{
    return ex->device_ns;
}

static rq_status wait_for(rq_executor *ex, uint32_t device, rq_error *err)
{
    uint64_t start = now_ns();
    rq_status status = ex->devices[device]->backend->wait(ex->devices[device], err);
    ex->device_ns += now_ns() - start;
    return status;
}

/* Waits for everything in flight. */
rq_status rq_exec_wait_all(rq_executor *ex, rq_error *err)
{
    rq_status status = RQ_OK;
    for (uint32_t d = 0; d < ex->params.n_devices && status == RQ_OK; d++) status = wait_for(ex, d, err);
    if (status != RQ_OK) return status;
    for (uint32_t s = 0; s < RQ_STEPS; s++)
        if (ex->slots[s].state == RQ_STEP_FLYING) ex->slots[s].state = RQ_STEP_DONE;
    return RQ_OK;
}

/* Waits for one step; what was started after it goes on where devices can tell the two apart. */
static rq_status wait_step(rq_executor *ex, rq_step_slot *slot, rq_error *err)
{
    rq_status status = RQ_OK;
    uint64_t start = now_ns();
    for (uint32_t d = 0; d < ex->params.n_devices && status == RQ_OK; d++) {
        rq_device *device = ex->devices[d];
        status = device->backend->wait_mark ? device->backend->wait_mark(device, slot->marks[d], err)
                                            : device->backend->wait(device, err);
    }
    ex->device_ns += now_ns() - start;
    if (status == RQ_OK) slot->state = RQ_STEP_DONE;
    return status;
}

/* Remembers where the step ends on every device. */
static void mark_step(rq_executor *ex, rq_step_slot *slot)
{
    for (uint32_t d = 0; d < ex->params.n_devices; d++)
        if (ex->devices[d]->backend->mark) slot->marks[d] = ex->devices[d]->backend->mark(ex->devices[d]);
}

bool rq_exec_any_flying(const rq_executor *ex)
{
    for (uint32_t s = 0; s < RQ_STEPS; s++)
        if (ex->slots[s].state == RQ_STEP_FLYING) return true;
    return false;
}

rq_step *rq_executor_begin(rq_executor *ex, rq_error *err)
{
    /* The slot used longest ago; one that is being filled only when it was begun and dropped. */
    rq_step_slot *slot = NULL;
    for (uint32_t s = 0; s < RQ_STEPS; s++) {
        rq_step_slot *other = &ex->slots[s];
        bool dropped = other->state == RQ_STEP_FILLING, slot_dropped = slot && slot->state == RQ_STEP_FILLING;
        if (!slot || (slot_dropped && !dropped) ||
            (dropped == slot_dropped && other->started < slot->started))
            slot = other;
    }
    if (slot->state == RQ_STEP_FLYING && wait_step(ex, slot, err) != RQ_OK) return NULL;
    slot->state = RQ_STEP_FILLING;
    rq_step_reset(&slot->step);
    return &slot->step;
}

/* ---- page tables --------------------------------------------------------------------------------------- */

static rq_status upload(rq_memory *memory, uint64_t offset, const void *src, uint64_t bytes, rq_error *err)
{
    return memory->device->backend->upload(memory, offset, src, bytes, err);
}

rq_status rq_exec_apply_edits(rq_executor *ex, const rq_step *step, rq_error *err)
{
    const rq_step_header *h = step->header;
    const rq_step_caps *caps = &ex->params.caps;
    const rq_edit *edits = rq_step_at(step->words, h->edits);
    if (h->n_edits == 0) return RQ_OK;
    if (rq_exec_any_flying(ex)) { /* a step in flight reads the tables */
        rq_status status = rq_exec_wait_all(ex, err);
        if (status != RQ_OK) return status;
    }
    for (uint32_t i = 0; i < h->n_edits; i++) {
        const rq_edit *e = &edits[i];
        const rq_cache_pool *pool = &ex->pools[e->group];
        uint32_t n_pages = e->form == RQ_PAGE_CODED ? pool->n_coded : pool->n_pages + pool->n_scratch;
        if (!ex->tables[e->group][e->form] || (e->page >= n_pages && e->page != RQ_NO_PAGE))
            return rq_fail(err, RQ_ERR_INTERNAL, "%s page %u of cache group %u does not exist",
                           e->form == RQ_PAGE_CODED ? "coded" : "exact", e->page, e->group);
    }
    for (uint32_t i = 0, n; i < h->n_edits; i += n) { /* neighbours go together */
        const rq_edit *e = &edits[i];
        const rq_cache_pool *pool = &ex->pools[e->group];
        uint64_t at = (uint64_t)e->seq * caps->max_pages + e->index;
        uint32_t *table = ex->tables[e->group][e->form] + at;
        for (n = 0; i + n < h->n_edits; n++) {
            if (e[n].group != e->group || e[n].form != e->form || e[n].seq != e->seq ||
                e[n].index != e->index + n)
                break;
            table[n] = e[n].page;
        }
        rq_status status =
            upload(e->form == RQ_PAGE_CODED ? pool->coded_table : pool->table, 4 * at, table, 4ull * n, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

/* The pages a step wants to encode must be there; *any: there are some. */
static rq_status check_encodes(const rq_executor *ex, const rq_step *step, bool *any, rq_error *err)
{
    *any = false;
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++) {
        const rq_cache_pool *pool = &ex->pools[g];
        const rq_encode *e = rq_step_at(step->words, step->header->encodes[g]);
        for (uint32_t i = 0; i < step->header->n_encodes[g]; i++)
            if (e[i].exact >= pool->n_pages + pool->n_scratch || e[i].coded >= pool->n_coded)
                return rq_fail(err, RQ_ERR_INTERNAL,
                               "page %u of cache group %u cannot be encoded as %u: there are %u and %u",
                               e[i].exact, g, e[i].coded, pool->n_pages + pool->n_scratch, pool->n_coded);
        *any |= step->header->n_encodes[g] > 0;
    }
    return RQ_OK;
}

/* ---- programs ------------------------------------------------------------------------------------------ */

/* dst and src may be the same memory; both devices must be idle. */
rq_status rq_exec_copy_memory(rq_executor *ex, rq_memory *dst, uint64_t dst_at, rq_memory *src,
                              uint64_t src_at, uint64_t bytes, rq_error *err)
{
    if (src->host) return upload(dst, dst_at, (const char *)src->host + src_at, bytes, err);
    void *to = dst->host ? (char *)dst->host + dst_at : ex->staging;
    if (!dst->host && bytes > ex->staging_bytes)
        return rq_fail(err, RQ_ERR_INTERNAL, "a copy of %llu bytes was not planned",
                       (unsigned long long)bytes);
    rq_status status = src->device->backend->download(src, src_at, to, bytes, err);
    return status != RQ_OK || dst->host ? status : upload(dst, dst_at, to, bytes, err);
}

static rq_status copy_borders(rq_executor *ex, const rq_exec_program *p, const rq_piece *piece, rq_error *err)
{
    if (piece->copy_count == 0) return RQ_OK;
    rq_status status = wait_for(ex, piece->device, err); /* it may still read what is overwritten */
    for (uint32_t c = 0; c < piece->copy_count && status == RQ_OK; c++) {
        const rq_border_copy *copy = &p->split.copies[piece->copy_first + c];
        status = wait_for(ex, copy->from, err);
        if (status != RQ_OK) break;
        status = rq_exec_copy_memory(ex, ex->arenas[copy->to],
                                     rq_plan_offsets(&p->plan, copy->to)[copy->value], ex->arenas[copy->from],
                                     rq_plan_offsets(&p->plan, copy->from)[copy->value], copy->bytes, err);
    }
    return status;
}

rq_status rq_exec_run_program(rq_executor *ex, const rq_exec_program *p, uint32_t slot, const uint32_t *words,
                              rq_error *err)
{
    ex->counts.weight_bytes += p->weight_bytes;
    for (uint32_t i = 0; i < p->split.n_pieces; i++) {
        rq_status status = copy_borders(ex, p, &p->split.pieces[i], err);
        if (status != RQ_OK) return status;
        rq_program *program = p->programs[slot][i];
        /* The processor computes here and now; other devices are only told to. */
        bool computes = ex->device_info[p->split.pieces[i].device].host_memory;
        uint64_t start = computes ? now_ns() : 0;
        status = program->device->backend->run(program, words, err);
        if (computes) ex->device_ns += now_ns() - start;
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

uint32_t rq_exec_bucket_index(uint32_t n)
{
    uint32_t i = 0;
    while (1u << i < n) i++;
    return i;
}

static const rq_exec_program *trunk_of(const rq_executor *ex, const rq_step *step)
{
    return &ex->trunk[rq_exec_bucket_index(step->header->n_tokens)];
}

static const rq_exec_program *head_of(const rq_executor *ex, const rq_step *step)
{
    return &ex->head[rq_exec_bucket_index(step->header->n_rows)];
}

/* The input device has a copy of the sampled ids of its own, which is brought up to date for steps that take some. */
static rq_status bring_sampled(rq_executor *ex, const rq_step *step, rq_error *err)
{
    if (!ex->sampled) return RQ_OK;
    const int32_t *ids = rq_step_at(step->words, step->header->token_id);
    bool any = false;
    for (uint32_t i = 0; i < step->header->n_tokens; i++) any |= ids[i] < 0;
    if (!any) return RQ_OK;
    rq_status status = rq_exec_wait_all(ex, err);
    if (status != RQ_OK) return status;
    return rq_exec_copy_memory(ex, ex->sampled, 0, ex->persist[RQ_PERSIST_SAMPLED], 0, ex->sampled->bytes,
                               err);
}

/* Rows of the head, and their logits on the way to the processor. */
static rq_status run_head(rq_executor *ex, rq_step_slot *slot, rq_error *err)
{
    const rq_step *step = &slot->step;
    ex->counts.heads++;
    rq_status status =
        rq_exec_run_program(ex, head_of(ex, step), (uint32_t)(slot - ex->slots), step->words, err);
    if (status != RQ_OK || !slot->fetched) return status;
    uint64_t bytes = 4ull * step->header->n_rows * ex->params.n_vocab;
    return slot->logits->device->backend->fetch(slot->logits, 0, slot->fetched, bytes, err);
}

/* No run may keep or commit more tokens than a state group has places for. */
static rq_status check_drafts(const rq_executor *ex, const rq_step *step, rq_error *err)
{
    const rq_run *runs = rq_step_at(step->words, step->header->runs);
    for (uint32_t r = 0; r < step->header->n_runs; r++)
        for (uint32_t i = 0; i < ex->params.n_states; i++) {
            uint32_t most = ex->state_groups[i].n_pending;
            if (runs[r].n_pending > most || runs[r].n_accepted > most)
                return rq_fail(
                    err, RQ_ERR_ARGUMENT,
                    "a draft check of %u tokens after one of which %u were accepted does not fit: the "
                    "recurrent state keeps %u",
                    runs[r].n_pending, runs[r].n_accepted, most);
        }
    return RQ_OK;
}

rq_status rq_executor_submit(rq_executor *ex, rq_step *step, rq_error *err)
{
    rq_step_slot *slot = slot_of(ex, step);
    if (!slot || slot->state != RQ_STEP_FILLING)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a step must be begun before it is submitted");
    bool encodes;
    uint32_t bucket = rq_step_finish(step);
    rq_status status = check_encodes(ex, step, &encodes, err);
    if (status == RQ_OK) status = check_drafts(ex, step, err);
    if (status == RQ_OK) status = rq_exec_apply_edits(ex, step, err);
    if (status == RQ_OK) status = bring_sampled(ex, step, err);
    if (status != RQ_OK) return status;
    slot->started = ++ex->n_started;
    slot->state = RQ_STEP_FLYING;
    if (step->header->n_tokens) {
        ex->last = slot;
        ex->counts.trunks++;
        status = rq_exec_run_program(ex, trunk_of(ex, step), 0, step->words, err);
        if (status == RQ_OK && step->header->n_rows) status = run_head(ex, slot, err);
        if (status == RQ_OK && ex->follows) status = rq_exec_follow(ex, step, bucket, err);
        slot->state = RQ_STEP_FLYING;
    }
    if (status == RQ_OK && encodes && bucket <= RQ_NARROW_BUCKET)
        status = rq_exec_run_program(ex, &ex->encode, 0, step->words, err);
    mark_step(ex, slot);
    return status;
}

static rq_status read_logits(rq_executor *ex, rq_step_slot *slot, const float **logits, rq_error *err)
{
    if (!logits) return RQ_OK;
    *logits = NULL;
    uint32_t rows = slot->step.header->n_rows;
    if (rows == 0) return RQ_OK;
    if (!slot->copy) {
        *logits = slot->fetched ? slot->fetched->host : slot->logits->host;
        return RQ_OK;
    }
    uint64_t start = now_ns();
    rq_status status = slot->logits->device->backend->download(slot->logits, 0, slot->copy,
                                                               4ull * rows * ex->params.n_vocab, err);
    ex->device_ns += now_ns() - start;
    if (status == RQ_OK) *logits = slot->copy;
    return status;
}

rq_status rq_executor_wait(rq_executor *ex, rq_step *step, const float **logits, rq_error *err)
{
    rq_step_slot *slot = slot_of(ex, step);
    if (!slot || (slot->state != RQ_STEP_FLYING && slot->state != RQ_STEP_DONE))
        return rq_fail(err, RQ_ERR_ARGUMENT, "the step was not submitted");
    rq_status status = slot->state == RQ_STEP_FLYING ? wait_step(ex, slot, err) : RQ_OK;
    return status == RQ_OK ? read_logits(ex, slot, logits, err) : status;
}

rq_status rq_executor_captured(rq_executor *ex, const float **rows, const rq_step **step, uint64_t *run,
                               rq_error *err)
{
    const rq_memory *memory = ex->persist[RQ_PERSIST_CAPTURE];
    *rows = NULL;
    if (!ex->last) return RQ_OK;
    if (!memory || ex->last->state != RQ_STEP_DONE)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no step that left anything behind");
    if (!memory->host)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "this device keeps its intermediate results to itself");
    *rows = memory->host;
    *step = &ex->last->step;
    *run = ex->last->started;
    return RQ_OK;
}

rq_status rq_executor_head(rq_executor *ex, rq_step *step, const rq_row *rows, uint32_t n_rows,
                           const float **logits, rq_error *err)
{
    rq_step_slot *slot = slot_of(ex, step);
    if (!slot || slot != ex->last || (slot->state != RQ_STEP_FLYING && slot->state != RQ_STEP_DONE))
        return rq_fail(err, RQ_ERR_ARGUMENT, "more rows can be had of the step that ran last only");
    if (n_rows == 0 || n_rows > RQ_HEAD_ROWS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u rows at a time are not possible (1 to %d are)", n_rows,
                       RQ_HEAD_ROWS);
    for (uint32_t i = 0; i < n_rows; i++)
        if (rows[i].token >= step->header->n_tokens || rows[i].slot >= ex->params.caps.n_seqs)
            return rq_fail(err, RQ_ERR_ARGUMENT, "row %u names token %u of %u", i, rows[i].token,
                           step->header->n_tokens);
    rq_status status = rq_exec_wait_all(ex, err); /* a program in flight reads the row list */
    if (status != RQ_OK) return status;
    memcpy(step->words + step->header->rows, rows, n_rows * sizeof *rows);
    step->header->n_rows = n_rows;
    status = run_head(ex, slot, err);
    slot->state = RQ_STEP_FLYING;
    mark_step(ex, slot);
    if (status == RQ_OK) status = rq_exec_wait_all(ex, err);
    return status == RQ_OK ? read_logits(ex, slot, logits, err) : status;
}

rq_status rq_executor_copy_page(rq_executor *ex, uint32_t group, uint32_t from, uint32_t to, rq_error *err)
{
    if (group >= ex->params.caps.n_groups || from >= ex->pools[group].n_pages ||
        to >= ex->pools[group].n_pages)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no page %u or %u in cache group %u", from, to, group);
    rq_status status = rq_exec_any_flying(ex) ? rq_exec_wait_all(ex, err) : RQ_OK;
    if (status != RQ_OK) return status;
    const rq_cache_pool *pool = &ex->pools[group];
    uint32_t shift = pool->layout.slab_shift, mask = (1u << shift) - 1;
    uint64_t bytes = pool->layout.page_bytes;
    return rq_exec_copy_memory(ex, pool->slabs[to >> shift], (to & mask) * bytes, pool->slabs[from >> shift],
                               (from & mask) * bytes, bytes, err);
}

/* ---- recurrent state -------------------------------------------------------------------------------------- */

uint64_t rq_executor_state_bytes(const rq_executor *ex)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < ex->params.n_states; i++)
        bytes += rq_state_layout_of(&ex->state_groups[i]).state_bytes;
    return bytes + rq_executor_last_bytes(ex);
}

uint64_t rq_executor_pending_bytes(const rq_executor *ex)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < ex->params.n_states; i++) {
        rq_state_layout l = rq_state_layout_of(&ex->state_groups[i]);
        bytes += l.slot_bytes - l.state_bytes;
    }
    return bytes;
}

static rq_status state_ready(rq_executor *ex, uint32_t seq, rq_error *err)
{
    if (seq >= ex->params.caps.n_seqs)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no state of sequence %u", seq);
    return rq_exec_any_flying(ex) ? rq_exec_wait_all(ex, err) : RQ_OK;
}

/* The state of a sequence, or what is pending behind it, group after group: one of `to` and `from` is NULL. */
static rq_status move_state(rq_executor *ex, uint32_t seq, bool pending, char *to, const char *from,
                            rq_error *err)
{
    rq_status status = state_ready(ex, seq, err);
    for (uint32_t i = 0; i < ex->params.n_states && status == RQ_OK; i++) {
        const rq_state_layout *l = &ex->states[i].layout;
        uint64_t n = pending ? l->slot_bytes - l->state_bytes : l->state_bytes;
        uint64_t at = seq * l->slot_bytes + (pending ? l->state_bytes : 0);
        rq_memory *memory = ex->states[i].memory;
        if (n == 0) continue;
        status =
            to ? memory->device->backend->download(memory, at, to, n, err) : upload(memory, at, from, n, err);
        if (to) to += n;
        if (from) from += n;
    }
    return status;
}

rq_status rq_executor_state_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err)
{
    rq_status status = move_state(ex, seq, false, bytes, NULL, err);
    char *last = (char *)bytes + rq_executor_state_bytes(ex) - rq_executor_last_bytes(ex);
    return status == RQ_OK && ex->params.drafts ? rq_executor_last_save(ex, seq, last, err) : status;
}

rq_status rq_executor_state_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err)
{
    rq_status status = move_state(ex, seq, false, NULL, bytes, err);
    const char *last = (const char *)bytes + rq_executor_state_bytes(ex) - rq_executor_last_bytes(ex);
    return status == RQ_OK && ex->params.drafts ? rq_executor_last_load(ex, seq, last, err) : status;
}

rq_status rq_executor_pending_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err)
{
    return move_state(ex, seq, true, bytes, NULL, err);
}

rq_status rq_executor_pending_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err)
{
    return move_state(ex, seq, true, NULL, bytes, err);
}

uint64_t rq_executor_page_bytes(const rq_executor *ex, uint32_t group)
{
    return rq_page_layout_of(&ex->groups[group]).page_bytes;
}

/* Where an exact page lies; NULL, and a sentence, where there is none. Steps in flight are waited for. */
static rq_memory *page_at(rq_executor *ex, uint32_t group, uint32_t page, uint64_t *offset, rq_error *err)
{
    if (group >= ex->params.caps.n_groups || page >= ex->pools[group].n_pages) {
        rq_fail(err, RQ_ERR_ARGUMENT, "there is no page %u in cache group %u", page, group);
        return NULL;
    }
    if (rq_exec_any_flying(ex) && rq_exec_wait_all(ex, err) != RQ_OK) return NULL;
    const rq_cache_pool *pool = &ex->pools[group];
    uint32_t shift = pool->layout.slab_shift;
    *offset = (page & ((1u << shift) - 1)) * pool->layout.page_bytes;
    return pool->slabs[page >> shift];
}

rq_status rq_executor_page_save(rq_executor *ex, uint32_t group, uint32_t page, void *bytes, rq_error *err)
{
    uint64_t offset;
    rq_memory *memory = page_at(ex, group, page, &offset, err);
    if (!memory) return RQ_ERR_ARGUMENT;
    return memory->device->backend->download(memory, offset, bytes, ex->pools[group].layout.page_bytes, err);
}

rq_status rq_executor_page_load(rq_executor *ex, uint32_t group, uint32_t page, const void *bytes,
                                rq_error *err)
{
    uint64_t offset;
    rq_memory *memory = page_at(ex, group, page, &offset, err);
    if (!memory) return RQ_ERR_ARGUMENT;
    return upload(memory, offset, bytes, ex->pools[group].layout.page_bytes, err);
}

/* ---- times --------------------------------------------------------------------------------------------- */

static rq_status profile_program(rq_executor *ex, const rq_exec_program *p, uint32_t slot,
                                 const uint32_t *words, rq_op_time *times, uint32_t max, uint32_t *n,
                                 rq_error *err)
{
    for (uint32_t i = 0; i < p->split.n_pieces; i++) {
        const rq_piece *piece = &p->split.pieces[i];
        rq_status status = copy_borders(ex, p, piece, err);
        if (status != RQ_OK) return status;
        rq_program *program = p->programs[slot][i];
        status = program->device->backend->profile(program, words, ex->op_ns, err);
        if (status != RQ_OK) return status;
        for (uint32_t o = 0; o < piece->count && *n < max; o++)
            times[(*n)++] =
                (rq_op_time){.tape = &p->tape, .op = &p->tape.ops[piece->first + o], .ns = ex->op_ns[o]};
    }
    return RQ_OK;
}

rq_status rq_executor_profile(rq_executor *ex, rq_step *step, rq_op_time *times, uint32_t max, uint32_t *n,
                              rq_error *err)
{
    rq_step_slot *slot = slot_of(ex, step);
    *n = 0;
    if (!slot || slot->state != RQ_STEP_FILLING || step->header->n_tokens == 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a step must be begun and have tokens to be timed");
    bool encodes;
    uint32_t bucket = rq_step_finish(step);
    rq_status status = check_encodes(ex, step, &encodes, err);
    if (status == RQ_OK) status = rq_exec_wait_all(ex, err);
    if (status == RQ_OK) status = rq_exec_apply_edits(ex, step, err);
    if (status == RQ_OK) status = bring_sampled(ex, step, err);
    if (status != RQ_OK) return status;
    slot->started = ++ex->n_started;
    slot->state = RQ_STEP_FLYING;
    ex->last = slot;
    status = profile_program(ex, trunk_of(ex, step), 0, step->words, times, max, n, err);
    if (status == RQ_OK && step->header->n_rows)
        status = profile_program(ex, head_of(ex, step), (uint32_t)(slot - ex->slots), step->words, times, max,
                                 n, err);
    if (status == RQ_OK && encodes && bucket <= RQ_NARROW_BUCKET)
        status = profile_program(ex, &ex->encode, 0, step->words, times, max, n, err);
    return status == RQ_OK ? rq_exec_wait_all(ex, err) : status;
}
