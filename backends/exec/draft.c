/* draft.c - the block that predicts a token further on: behind the trunk of every step, and by itself to guess. Nothing
 * here allocates. */
#include "backends/exec/internal.h"

#include <string.h>

static rq_memory *trail(const rq_executor *ex)
{
    return ex->persist[RQ_PERSIST_TRAIL];
}

static uint64_t row_bytes(const rq_executor *ex)
{
    return 4ull * ex->params.n_embd;
}

static rq_status copy_row(rq_executor *ex, uint32_t to, uint32_t from, rq_error *err)
{
    uint64_t n = row_bytes(ex);
    return rq_exec_copy_memory(ex, trail(ex), to * n, trail(ex), from * n, n, err);
}

/* Before the first token of a sequence there is nothing. */
static rq_status begin_sequences(rq_executor *ex, const rq_step *step, rq_error *err)
{
    const rq_run *runs = rq_step_at(step->words, step->header->runs);
    rq_status status = RQ_OK;
    for (uint32_t r = 0; r < step->header->n_runs && status == RQ_OK; r++)
        if (runs[r].start == 0) status = rq_executor_last_load(ex, runs[r].seq, ex->zeros, err);
    return status;
}

/* A copy of a narrow step whose row list names the row before each token. */
static void write_aside(rq_executor *ex, const rq_step *step)
{
    rq_step *aside = &ex->aside;
    memcpy(aside->words, step->words,
           4ull * step->header->rows); /* everything the trunk reads lies before the rows */
    rq_row *rows = (rq_row *)(aside->words + aside->header->rows);
    const rq_run *runs = rq_step_at(aside->words, aside->header->runs);
    uint32_t last = rq_trail_last(&ex->params.caps);
    aside->header->n_rows = aside->header->n_tokens;
    aside->header->n_edits = 0;
    for (uint32_t r = 0; r < aside->header->n_runs; r++)
        for (uint32_t i = 0; i < runs[r].count; i++) {
            uint32_t t = runs[r].first + i;
            rows[t] = (rq_row){.token = i == 0 ? last + runs[r].seq : t, .slot = runs[r].seq};
        }
}

rq_status rq_exec_follow(rq_executor *ex, const rq_step *step, uint32_t bucket, rq_error *err)
{
    /* rows are copied, and words written, that something in flight may still read */
    rq_status status = rq_exec_wait_all(ex, err);
    if (status == RQ_OK) status = begin_sequences(ex, step, err);
    if (status != RQ_OK) return status;
    const uint32_t *words = step->words;
    if (bucket <= RQ_NARROW_BUCKET) {
        write_aside(ex, step);
        words = ex->aside.words;
    } else { /* one sequence, by the contract of wide steps: row t comes before token t */
        const rq_run *run = rq_step_at(step->words, step->header->runs);
        status = copy_row(ex, 0, rq_trail_last(&ex->params.caps) + run->seq, err);
    }
    ex->counts.follows++;
    if (status == RQ_OK)
        status = rq_exec_run_program(ex, &ex->follow[rq_exec_bucket_index(bucket)], 0, words, err);
    return status;
}

void rq_executor_follow(rq_executor *ex, bool on)
{
    ex->follows = on && ex->params.drafts;
}

rq_status rq_executor_edit(rq_executor *ex, rq_step *step, rq_error *err)
{
    rq_status status = rq_exec_apply_edits(ex, step, err);
    if (status == RQ_OK) step->header->n_edits = 0;
    return status;
}

rq_step *rq_executor_draft_begin(rq_executor *ex)
{
    rq_step_reset(&ex->aside);
    return &ex->aside;
}

static rq_status read_guesses(rq_executor *ex, const rq_step *step, int32_t *ids, const float **logits,
                              rq_error *err)
{
    rq_step_slot *slot = &ex->slots[0]; /* whose logits the program writes */
    const rq_run *runs = rq_step_at(step->words, step->header->runs);
    rq_memory *sampled = ex->persist[RQ_PERSIST_SAMPLED];
    const rq_backend *backend = sampled->device->backend;
    rq_status status = RQ_OK;
    for (uint32_t r = 0; r < step->header->n_runs && status == RQ_OK; r++) {
        status = backend->download(sampled, 4ull * runs[r].seq, &ids[runs[r].first], sizeof *ids, err);
        if (status == RQ_OK && (ids[runs[r].first] < 0 || (uint32_t)ids[runs[r].first] >= ex->params.n_vocab))
            status = rq_fail(err, RQ_ERR_INTERNAL, "a draft guessed token %d, which does not exist",
                             ids[runs[r].first]);
    }
    if (status != RQ_OK || !logits) return status;
    float *copy = slot->fetched ? slot->fetched->host : slot->copy;
    *logits = copy ? copy : slot->logits->host;
    uint64_t bytes = 4ull * step->header->n_rows * ex->params.n_vocab;
    return copy ? backend->download(slot->logits, 0, copy, bytes, err) : RQ_OK;
}

rq_status rq_executor_draft(rq_executor *ex, rq_step *step, const int32_t *after, int32_t *ids,
                            const float **logits, rq_error *err)
{
    rq_step_header *h = step->header;
    if (step != &ex->aside || ex->n_draft == 0 || h->n_tokens == 0 || h->n_tokens != h->n_runs ||
        h->n_tokens > 1u << (ex->n_draft - 1))
        return rq_fail(err, RQ_ERR_ARGUMENT, "a draft takes a token of each of up to %u sequences",
                       ex->n_draft ? 1u << (ex->n_draft - 1) : 0);
    const rq_step_caps *caps = &ex->params.caps;
    rq_status status = rq_exec_wait_all(ex, err);
    if (status != RQ_OK) return status;
    uint32_t bucket = rq_step_finish(step);
    const rq_run *runs = rq_step_at(step->words, h->runs);
    rq_row *rows = (rq_row *)(step->words + h->rows);
    for (uint32_t t = 0; t < h->n_tokens; t++) {
        uint32_t from =
            after[t] < 0 ? rq_trail_last(caps) + runs[t].seq : rq_trail_draft(caps) + (uint32_t)after[t];
        rows[t] = (rq_row){.token = from, .slot = runs[t].seq};
    }
    h->n_rows = h->n_tokens;
    ex->counts.drafts++;
    status = rq_exec_run_program(ex, &ex->draft[rq_exec_bucket_index(bucket)], 0, step->words, err);
    for (uint32_t d = 0; d < ex->params.n_devices && status == RQ_OK; d++)
        status = ex->devices[d]->backend->wait(ex->devices[d], err);
    return status == RQ_OK ? read_guesses(ex, step, ids, logits, err) : status;
}

rq_status rq_executor_last(rq_executor *ex, uint32_t seq, uint32_t token, rq_error *err)
{
    if (!trail(ex) || seq >= ex->params.caps.n_seqs || token >= ex->params.caps.max_tokens)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no hidden row of token %u", token);
    rq_status status = rq_exec_wait_all(ex, err);
    return status == RQ_OK ? copy_row(ex, rq_trail_last(&ex->params.caps) + seq, 1 + token, err) : status;
}

uint64_t rq_executor_last_bytes(const rq_executor *ex)
{
    return ex->params.drafts ? row_bytes(ex) : 0;
}

static rq_status move_last(rq_executor *ex, uint32_t seq, void *to, const void *from, rq_error *err)
{
    if (!trail(ex) || seq >= ex->params.caps.n_seqs)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no hidden row of sequence %u", seq);
    rq_status status = rq_exec_wait_all(ex, err);
    uint64_t n = row_bytes(ex), at = (rq_trail_last(&ex->params.caps) + seq) * n;
    const rq_backend *backend = trail(ex)->device->backend;
    if (status != RQ_OK) return status;
    return to ? backend->download(trail(ex), at, to, n, err) : backend->upload(trail(ex), at, from, n, err);
}

rq_status rq_executor_last_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err)
{
    return move_last(ex, seq, bytes, NULL, err);
}

rq_status rq_executor_last_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err)
{
    return move_last(ex, seq, NULL, bytes, err);
}

rq_executor_counts rq_executor_count(const rq_executor *ex)
{
    return ex->counts;
}
