/* run.c - see run.h. */
#include "tools/ppl/run.h"

#include "backends/base/mem.h"
#include "tools/common/progress.h"
#include "tools/ppl/compare.h"
#include "tools/ppl/interrupt.h"
#include "tools/ppl/lanes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_PIECE = 512, PIECE_BYTES = 256 << 20 };

typedef struct run {
    const rq_ppl_job *job;
    rq_ppl_results *results;
    uint32_t n_vocab, piece; /* rows of logits kept at once in a lane */
    uint32_t lane_threads;
    atomic_size_t next_window;
    atomic_bool stop;
    pthread_mutex_t lock; /* columns' descriptions, n_done, progress */
    rq_progress progress;
    uint64_t done_tokens;
} run;

typedef struct lane {
    run *r;
    rq_seat reference, *seats; /* [n_columns] */
    rq_token *tokens;          /* [n_ctx] */
    float *logits, *probabilities;
    rq_reference_row *rows; /* [piece] */
    /* the evaluation in progress */
    size_t window;
    uint32_t piece_start;
    rq_ppl_column *column;
    bool not_finite;
} lane;

static size_t row_index(const lane *l, size_t position)
{
    return l->window * l->r->results->n_rows + (position - l->r->job->windows.first);
}

/* Both run on the thread of an engine while this lane waits for it. */
static void keep_reference(void *user, size_t position, const float *logits)
{
    lane *l = user;
    uint32_t n = l->r->n_vocab;
    size_t i = position - l->piece_start;
    memcpy(l->logits + i * n, logits, n * sizeof *logits);
    rq_reference_of(logits, n, l->probabilities + i * n, &l->rows[i]);
    if (!l->rows[i].finite) l->not_finite = true;
    l->column->nll[row_index(l, position)] = (float)(l->rows[i].log_sum - logits[l->tokens[position + 1]]);
}

static void compare(void *user, size_t position, const float *logits)
{
    lane *l = user;
    uint32_t n = l->r->n_vocab;
    size_t i = position - l->piece_start, at = row_index(l, position);
    rq_row_score s = rq_compare_row(logits, n, (uint32_t)l->tokens[position + 1], l->logits + i * n,
                                    l->probabilities + i * n, &l->rows[i]);
    if (!s.finite) l->not_finite = true;
    l->column->nll[at] = s.nll;
    l->column->kl[at] = s.kl;
    l->column->same_top[at] = s.same_top;
}

/* ---- engines ----------------------------------------------------------------------------------------------- */

static void refuse(run *r, rq_ppl_column *c, const char *why)
{
    pthread_mutex_lock(&r->lock);
    if (!c->refused[0]) snprintf(c->refused, sizeof c->refused, "%s", why);
    pthread_mutex_unlock(&r->lock);
}

static bool is_refused(run *r, const rq_ppl_column *c)
{
    pthread_mutex_lock(&r->lock);
    bool refused = c->refused[0] != 0;
    pthread_mutex_unlock(&r->lock);
    return refused;
}

static rq_status open_seats(lane *l, uint32_t index, rq_error *err)
{
    run *r = l->r;
    rq_engine_params p = r->job->params;
    p.n_ctx = r->job->windows.n_ctx;
    p.n_threads = r->lane_threads;
    rq_status s = rq_seat_open(r->job->model, &p, &r->results->reference.entry, &l->reference, err);
    if (s) return s;
    if (index == 0) {
        rq_engine_info info;
        rq_engine_describe(l->reference.engine, &info);
        snprintf(r->results->device, sizeof r->results->device, "%s", info.device);
        rq_seat_describe(&l->reference, &r->results->reference.entry, &r->results->reference.info);
    }
    for (size_t i = 0; i < r->results->n_columns; i++) {
        rq_ppl_column *c = &r->results->columns[i];
        rq_error why = {0};
        if (is_refused(r, c)) continue;
        if (rq_seat_open(r->job->model, &p, &c->entry, &l->seats[i], &why))
            refuse(r, c, why.text);
        else if (index == 0)
            rq_seat_describe(&l->seats[i], &c->entry, &c->info);
    }
    return RQ_OK;
}

/* ---- windows ----------------------------------------------------------------------------------------------- */

static void count(run *r, uint64_t tokens)
{
    pthread_mutex_lock(&r->lock);
    r->done_tokens += tokens;
    if (!r->job->quiet) rq_progress_set(&r->progress, r->done_tokens);
    pthread_mutex_unlock(&r->lock);
}

static rq_status evaluate(lane *l, rq_seat *s, rq_ppl_column *column, uint32_t start, uint32_t n, bool scored,
                          rq_error *err)
{
    l->column = column;
    l->piece_start = start;
    l->not_finite = false;
    bool is_reference = s == &l->reference;
    rq_status status =
        rq_evaluate(s->session, l->tokens + start, n, 0, scored ? RQ_LOGITS_ALL : RQ_LOGITS_NONE,
                    is_reference ? keep_reference : compare, l, err);
    if (!status && l->not_finite)
        status =
            rq_fail(err, RQ_ERR_FORMAT,
                    "the logits of the %s cache are not finite numbers in the piece of text at token %zu",
                    column->entry.label, l->window * l->r->job->windows.stride + start);
    count(l->r, n);
    return status;
}

/* Leaves early, with *complete false, when the run is to stop. */
static rq_status do_window(lane *l, size_t window, bool *complete, rq_error *err)
{
    run *r = l->r;
    const rq_windows *w = &r->job->windows;
    rq_ppl_results *results = r->results;
    l->window = window;
    if (w->n_bos) l->tokens[0] = r->job->bos;
    memcpy(l->tokens + w->n_bos, r->job->ids->ids + window * w->stride,
           (w->n_ctx - w->n_bos) * sizeof *l->tokens);
    rq_status s = rq_session_truncate(l->reference.session, 0, err);
    for (size_t i = 0; i < results->n_columns && !s; i++)
        if (l->seats[i].session) s = rq_session_truncate(l->seats[i].session, 0, err);
    uint32_t end = w->n_ctx - 1, n;
    for (uint32_t start = 0; start < end && !s; start += n) {
        bool scored = start >= w->first;
        uint32_t most = scored ? r->piece : LARGEST_PIECE, until = scored ? end : w->first;
        n = until - start < most ? until - start : most;
        if (atomic_load(&r->stop) || rq_interrupted()) return RQ_OK;
        s = evaluate(l, &l->reference, &results->reference, start, n, scored, err);
        for (size_t i = 0; i < results->n_columns && !s; i++) {
            rq_ppl_column *c = &results->columns[i];
            if (!l->seats[i].session || is_refused(r, c)) continue;
            rq_error why = {0};
            if (evaluate(l, &l->seats[i], c, start, n, scored, &why)) refuse(r, c, why.text);
        }
    }
    *complete = !s;
    return s;
}

static rq_status do_lane(void *user, uint32_t index, rq_error *err)
{
    run *r = user;
    rq_ppl_results *results = r->results;
    lane l = {.r = r};
    uint64_t cells = (uint64_t)r->piece * r->n_vocab;
    l.seats = rq_calloc(results->n_columns, sizeof *l.seats);
    l.tokens = rq_calloc(r->job->windows.n_ctx, sizeof *l.tokens);
    l.logits = rq_malloc(cells * sizeof *l.logits);
    l.probabilities = rq_malloc(cells * sizeof *l.probabilities);
    l.rows = rq_calloc(r->piece, sizeof *l.rows);
    rq_status s = RQ_ERR_MEMORY;
    if (l.seats && l.tokens && l.logits && l.probabilities && l.rows)
        s = open_seats(&l, index, err);
    else
        rq_fail(err, s, "out of memory for %u rows of logits", r->piece);
    size_t window;
    while (!s && !atomic_load(&r->stop) &&
           (window = atomic_fetch_add(&r->next_window, 1)) < results->n_windows) {
        bool complete = false;
        s = do_window(&l, window, &complete, err);
        if (!complete) break;
        pthread_mutex_lock(&r->lock);
        results->done[window] = 1;
        results->n_done++;
        pthread_mutex_unlock(&r->lock);
    }
    if (s) atomic_store(&r->stop, true);
    for (size_t i = 0; l.seats && i < results->n_columns; i++) rq_seat_close(&l.seats[i]);
    rq_seat_close(&l.reference);
    rq_free(l.seats);
    rq_free(l.tokens);
    rq_free(l.logits);
    rq_free(l.probabilities);
    rq_free(l.rows);
    return s;
}

/* ---- results ----------------------------------------------------------------------------------------------- */

static bool make_column(rq_ppl_column *c, size_t cells, bool reference)
{
    c->nll = rq_calloc(cells, sizeof *c->nll);
    if (reference) return c->nll != NULL;
    c->kl = rq_calloc(cells, sizeof *c->kl);
    c->same_top = rq_calloc(cells, 1);
    return c->nll && c->kl && c->same_top;
}

static rq_status make_results(const rq_ppl_job *job, rq_ppl_results *out, rq_error *err)
{
    *out = (rq_ppl_results){.n_rows = rq_windows_rows(&job->windows), .n_windows = job->windows.n};
    size_t cells = out->n_windows * out->n_rows;
    out->done = rq_calloc(out->n_windows, 1);
    out->columns = rq_calloc(job->entries->n, sizeof *out->columns);
    bool fine = out->done && out->columns && make_column(&out->reference, cells, true);
    snprintf(out->reference.entry.label, sizeof out->reference.entry.label, "f16");
    snprintf(out->reference.entry.k, sizeof out->reference.entry.k, "f16");
    snprintf(out->reference.entry.v, sizeof out->reference.entry.v, "f16");
    for (size_t i = 0; i < job->entries->n && fine; i++) {
        out->n_columns++;
        out->columns[i].entry = job->entries->items[i];
        fine = make_column(&out->columns[i], cells, false);
    }
    return fine ? RQ_OK
                : rq_fail(
                      err, RQ_ERR_MEMORY,
                      "out of memory for the results of %zu tokens and %zu formats: choose fewer --windows",
                      cells, job->entries->n);
}

static void free_column(rq_ppl_column *c)
{
    rq_free(c->nll);
    rq_free(c->kl);
    rq_free(c->same_top);
}

void rq_ppl_results_free(rq_ppl_results *results)
{
    for (size_t i = 0; i < results->n_columns; i++) free_column(&results->columns[i]);
    free_column(&results->reference);
    rq_free(results->columns);
    rq_free(results->done);
    *results = (rq_ppl_results){0};
}

rq_status rq_ppl_run(const rq_ppl_job *job, rq_ppl_results *out, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(job->model, &info);
    run r = {.job = job, .results = out, .n_vocab = info.n_vocab};
    rq_status s = make_results(job, out, err);
    if (s) return s;
    uint32_t lanes = job->n_lanes ? job->n_lanes : 1,
             threads = job->n_threads ? job->n_threads : rq_processors();
    if (lanes > out->n_windows) lanes = out->n_windows ? (uint32_t)out->n_windows : 1;
    r.lane_threads = threads / lanes ? threads / lanes : 1;
    uint64_t rows = PIECE_BYTES / lanes / (2 * sizeof(float) * (uint64_t)info.n_vocab);
    r.piece = rows < 1 ? 1 : rows > LARGEST_PIECE ? LARGEST_PIECE : (uint32_t)rows;
    if (r.piece > out->n_rows) r.piece = out->n_rows;
    pthread_mutex_init(&r.lock, NULL);
    uint64_t start = rq_tool_now_ns();
    r.progress =
        rq_progress_start(stderr, "evaluate", "tokens",
                          (uint64_t)(out->n_columns + 1) * out->n_windows * (job->windows.n_ctx - 1));
    s = rq_lanes_run(lanes, do_lane, &r, err);
    if (!job->quiet) rq_progress_end(&r.progress);
    out->seconds = (double)(rq_tool_now_ns() - start) / 1e9;
    pthread_mutex_destroy(&r.lock);
    return s;
}
