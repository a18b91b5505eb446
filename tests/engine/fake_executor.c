#include "tests/engine/fake_executor.h"

#include "backends/base/mem.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct rq_executor {
    fake_params p;
    rq_step steps[2];
    uint32_t next;
    bool filling, flying;
    fake_pages *pages;
    uint64_t *hidden; /* [max_tokens] */
    bool *poisoned;
    float *logits; /* [RQ_HEAD_ROWS][n_vocab] */
    rq_step *last;
    fake_place fail_place;
    uint32_t fail_in;
    int32_t poison;
    uint32_t violations;
    atomic_uint n_logged;
    fake_step *log;
};

static void logits_of(uint64_t h, uint32_t n_vocab, float *logits)
{
    for (uint32_t i = 0; i < n_vocab; i++) logits[i] = (float)(fake_hash(h, (int32_t)i) >> 40) * 0x1p-21f - 4;
}

void fake_logits(const int32_t *ids, size_t n, uint32_t n_vocab, float *logits)
{
    uint64_t h = 1;
    for (size_t i = 0; i < n; i++) h = fake_hash(h, ids[i]);
    logits_of(h, n_vocab, logits);
}

rq_executor *fake_create(const fake_params *params)
{
    rq_executor *ex = rq_calloc(1, sizeof *ex);
    if (ex == NULL) return NULL;
    ex->p = *params;
    ex->poison = -1;
    const rq_step_caps *caps = &params->caps;
    ex->pages = fake_pages_create(&params->pools);
    ex->hidden = rq_calloc(caps->max_tokens, sizeof *ex->hidden);
    ex->poisoned = rq_calloc(caps->max_tokens, sizeof *ex->poisoned);
    ex->logits = rq_calloc((size_t)RQ_HEAD_ROWS * params->n_vocab, sizeof *ex->logits);
    ex->log = rq_calloc(FAKE_LOG_STEPS, sizeof *ex->log);
    bool ok = ex->pages != NULL && ex->hidden != NULL && ex->poisoned != NULL && ex->logits != NULL &&
              ex->log != NULL;
    for (int i = 0; i < 2; i++) {
        uint32_t *words = rq_calloc(rq_step_words(caps), sizeof *words);
        ok = ok && words != NULL;
        if (words != NULL) rq_step_init(&ex->steps[i], caps, ex->p.pools.groups, words);
    }
    if (!ok) {
        fake_free(ex);
        return NULL;
    }
    return ex;
}

uint32_t fake_free(rq_executor *ex)
{
    if (ex == NULL) return 0;
    uint32_t violations = ex->violations + (ex->pages != NULL ? fake_pages_violations(ex->pages) : 0);
    fake_pages_free(ex->pages);
    rq_free(ex->hidden);
    rq_free(ex->poisoned);
    rq_free(ex->logits);
    rq_free(ex->log);
    rq_free(ex->steps[0].words);
    rq_free(ex->steps[1].words);
    rq_free(ex);
    return violations;
}

void fake_fail_at(rq_executor *ex, fake_place place, uint32_t n)
{
    ex->fail_place = place;
    ex->fail_in = n;
}

void fake_poison(rq_executor *ex, int32_t token)
{
    ex->poison = token;
}

uint32_t fake_steps(const rq_executor *ex)
{
    return atomic_load(&((rq_executor *)ex)->n_logged);
}

const fake_step *fake_step_at(const rq_executor *ex, uint32_t i)
{
    return &ex->log[i];
}

static bool fails_here(rq_executor *ex, fake_place place, rq_error *err)
{
    if (ex->fail_in == 0 || ex->fail_place != place || --ex->fail_in != 0) return false;
    rq_fail(err, RQ_ERR_DEVICE, "the device was unplugged");
    return true;
}

static void violation(rq_executor *ex, const char *what)
{
    fprintf(stderr, "fake executor: %s\n", what);
    ex->violations++;
}

/* ---- the functions of exec.h ----------------------------------------------------------------------------- */

rq_step *rq_executor_begin(rq_executor *ex, rq_error *err)
{
    if (fails_here(ex, FAKE_BEGIN, err)) return NULL;
    if (ex->flying) violation(ex, "a step was begun before the last one was waited for");
    ex->filling = true;
    rq_step *step = &ex->steps[ex->next++ % 2];
    rq_step_reset(step);
    return step;
}

static void run_trunk(rq_executor *ex, rq_step *step)
{
    const rq_step_header *h = step->header;
    const rq_run *runs = rq_step_at(step->words, h->runs);
    const int32_t *ids = rq_step_at(step->words, h->token_id);
    /* a token's bits depend on its neighbours in wide steps, so those must have one run */
    if (h->n_tokens == 0) violation(ex, "an empty step");
    if (h->n_tokens > 8 && h->n_runs > 1) violation(ex, "a wide step with several runs");
    for (uint32_t r = 0; r < h->n_runs; r++)
        for (uint32_t q = 0; q < r; q++)
            if (runs[q].seq == runs[r].seq) violation(ex, "a sequence twice in a step");
    fake_pages_run(ex->pages, step, ex->hidden);
    for (uint32_t i = 0; i < h->n_tokens; i++) ex->poisoned[i] = ids[i] == ex->poison;
    uint32_t n = atomic_load(&ex->n_logged);
    if (n < FAKE_LOG_STEPS) {
        fake_step *f = &ex->log[n];
        *f = (fake_step){.n_tokens = h->n_tokens, .n_runs = h->n_runs};
        for (uint32_t r = 0; r < h->n_runs && r < FAKE_LOG_RUNS; r++) {
            f->seq[r] = runs[r].seq;
            f->start[r] = runs[r].start;
            f->count[r] = runs[r].count;
        }
        atomic_store(&ex->n_logged, n + 1);
    }
}

static void run_head(rq_executor *ex, const rq_row *rows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float *row = ex->logits + (size_t)i * ex->p.n_vocab;
        logits_of(ex->hidden[rows[i].token], ex->p.n_vocab, row);
        if (ex->poisoned[rows[i].token]) row[ex->p.n_vocab / 2] = NAN;
    }
}

rq_status rq_executor_submit(rq_executor *ex, rq_step *step, rq_error *err)
{
    if (fails_here(ex, FAKE_SUBMIT, err)) return RQ_ERR_DEVICE;
    if (!ex->filling) violation(ex, "a step was submitted that was not begun");
    rq_step_finish(step);
    ex->filling = false;
    ex->flying = true;
    run_trunk(ex, step);
    run_head(ex, rq_step_at(step->words, step->header->rows), step->header->n_rows);
    ex->last = step;
    return RQ_OK;
}

rq_status rq_executor_wait(rq_executor *ex, rq_step *step, const float **logits, rq_error *err)
{
    if (ex->p.step_us > 0) {
        struct timespec t = {.tv_nsec = (long)ex->p.step_us * 1000};
        nanosleep(&t, NULL);
    }
    if (fails_here(ex, FAKE_WAIT, err)) return RQ_ERR_DEVICE;
    if (!ex->flying || step != ex->last) violation(ex, "waiting for a step that is not in flight");
    ex->flying = false;
    *logits = ex->logits;
    return RQ_OK;
}

rq_status rq_executor_head(rq_executor *ex, rq_step *step, const rq_row *rows, uint32_t n_rows,
                           const float **logits, rq_error *err)
{
    if (fails_here(ex, FAKE_HEAD, err)) return RQ_ERR_DEVICE;
    if (step != ex->last || ex->filling || n_rows > RQ_HEAD_ROWS) violation(ex, "a head run out of place");
    run_head(ex, rows, n_rows);
    *logits = ex->logits;
    return RQ_OK;
}

rq_status rq_executor_copy_page(rq_executor *ex, uint32_t group, uint32_t from, uint32_t to, rq_error *err)
{
    if (ex->flying) violation(ex, "a page is copied while a step runs");
    fake_pages_copy(ex->pages, group, from, to);
    return RQ_OK;
}

/* Models with state are tested on the whole engine (test_snapshots.c). */
uint64_t rq_executor_state_bytes(const rq_executor *ex)
{
    return 0;
}

uint64_t rq_executor_page_bytes(const rq_executor *ex, uint32_t group)
{
    return 0;
}

rq_status rq_executor_state_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "there is no state of sequence %u", seq);
}

rq_status rq_executor_state_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "there is no state of sequence %u", seq);
}

rq_status rq_executor_page_save(rq_executor *ex, uint32_t group, uint32_t page, void *bytes, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "page %u cannot be read", page);
}

rq_status rq_executor_page_load(rq_executor *ex, uint32_t group, uint32_t page, const void *bytes,
                                rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "page %u cannot be written", page);
}

uint64_t rq_executor_device_ns(const rq_executor *ex)
{
    return 0;
}

rq_executor_counts rq_executor_count(const rq_executor *ex)
{
    return (rq_executor_counts){0};
}

/* Nothing here drafts: tests of that take the whole engine (test_draft.c). */
void rq_executor_follow(rq_executor *ex, bool on)
{
    if (on) violation(ex, "something is to be followed");
}

rq_status rq_executor_edit(rq_executor *ex, rq_step *step, rq_error *err)
{
    violation(ex, "tables are to be changed before a step");
    return RQ_OK;
}

rq_step *rq_executor_draft_begin(rq_executor *ex)
{
    violation(ex, "a draft is begun");
    return &ex->steps[0];
}

rq_status rq_executor_draft(rq_executor *ex, rq_step *step, const int32_t *after, int32_t *ids,
                            const float **logits, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "nothing can guess here");
}

rq_status rq_executor_last(rq_executor *ex, uint32_t seq, uint32_t token, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "there is no hidden row of token %u", token);
}
