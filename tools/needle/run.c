/* run.c - see run.h. */
#include "tools/needle/run.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "tools/common/progress.h"
#include "tools/ppl/interrupt.h"
#include "tools/ppl/lanes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef struct run {
    const rq_needle_job *job;
    rq_needle_results *results;
    uint32_t lane_threads;
    atomic_uint_fast64_t next;
    atomic_bool stop;
    pthread_mutex_t lock; /* columns, n_done, progress */
    rq_progress progress;
} run;

static bool is_refused(run *r, size_t column)
{
    pthread_mutex_lock(&r->lock);
    bool refused = r->results->columns[column].refused[0] != 0;
    pthread_mutex_unlock(&r->lock);
    return refused;
}

static void refuse(run *r, size_t column, const char *why)
{
    struct rq_needle_column *c = &r->results->columns[column];
    pthread_mutex_lock(&r->lock);
    if (!c->refused[0]) snprintf(c->refused, sizeof c->refused, "%s", why);
    pthread_mutex_unlock(&r->lock);
}

static rq_status open_seats(run *r, uint32_t lane, rq_seat *seats, rq_error *err)
{
    const rq_needle_job *job = r->job;
    rq_engine_params p = job->params;
    p.n_threads = r->lane_threads;
    for (uint32_t i = 0; i < job->n_lengths; i++)
        if (p.n_ctx < job->lengths[i] + RQ_NEEDLE_ANSWER_TOKENS)
            p.n_ctx = job->lengths[i] + RQ_NEEDLE_ANSWER_TOKENS;
    for (size_t i = 0; i < job->entries->n; i++) {
        const rq_entry *e = &job->entries->items[i];
        rq_error why = {0};
        if (is_refused(r, i)) continue;
        rq_status s = rq_seat_open(job->model, &p, e, &seats[i], &why);
        if (s && i == 0) {
            if (err) *err = why;
            return s;
        }
        if (s) refuse(r, i, why.text);
        if (s || lane != 0) continue;
        rq_seat_describe(&seats[i], e, &r->results->columns[i].info);
        if (i == 0) {
            rq_engine_info info;
            rq_engine_describe(seats[i].engine, &info);
            snprintf(r->results->device, sizeof r->results->device, "%s", info.device);
        }
    }
    return RQ_OK;
}

/* The greedy answer, up to its first line end. */
static rq_status answer(rq_session *session, const rq_tokens *prompt, rq_buf *out, rq_error *err)
{
    static const char *const stop[] = {"\n"};
    rq_request request = rq_request_default();
    request.max_tokens = RQ_NEEDLE_ANSWER_TOKENS;
    request.sampling = (rq_sampling){.temperature = 0, .top_p = 1, .repeat_penalty = 1};
    request.stop = stop;
    request.n_stop = 1;
    rq_buf_clear(out);
    rq_status s = rq_submit(session, prompt->ids, prompt->n, NULL, 0, &request, err);
    rq_event event = {0};
    while (!s && event.finish == RQ_FINISH_NONE) {
        s = rq_next(session, &event, -1, err);
        if (!s) rq_buf_append(out, event.text, event.text_bytes);
    }
    if (!s && event.finish == RQ_FINISH_ERROR) {
        if (err) *err = event.error;
        s = RQ_ERR_INTERNAL;
    }
    if (!s && out->failed) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for an answer");
    return s;
}

static rq_status do_trial(run *r, uint64_t index, rq_seat *seats, rq_buf *text, bool *complete, rq_error *err)
{
    const rq_needle_job *job = r->job;
    uint64_t cell = index % rq_needle_n_cells(job);
    rq_needle_trial t;
    rq_status s = rq_needle_trial_make(job->model, job->haystack, &job->form, job->seed, index,
                                       job->lengths[cell / job->n_depths],
                                       job->depths[cell % job->n_depths] / 100.0, &t, err);
    if (s) return s;
    uint8_t *outcomes = r->results->outcomes + index * job->entries->n;
    bool stopped = false;
    for (size_t i = 0; i < job->entries->n && !s && !stopped; i++) {
        rq_error why = {0};
        if (!seats[i].session || is_refused(r, i)) continue;
        stopped = atomic_load(&r->stop) || rq_interrupted();
        if (stopped) break;
        rq_status failed = answer(seats[i].session, &t.prompt, text, &why);
        if (!failed) outcomes[i] = (uint8_t)rq_needle_judge(&t, text->data ? text->data : "");
        if (failed && i == 0) {
            if (err) *err = why;
            s = failed;
        } else if (failed)
            refuse(r, i, why.text);
    }
    if (stopped) memset(outcomes, RQ_NEEDLE_NOT_RUN, job->entries->n);
    *complete = !stopped && !s;
    rq_tokens_free(&t.prompt);
    return s;
}

static rq_status do_lane(void *user, uint32_t lane, rq_error *err)
{
    run *r = user;
    rq_needle_results *results = r->results;
    rq_buf text = {.max = 1 << 16};
    rq_seat *seats = rq_calloc(r->job->entries->n, sizeof *seats);
    rq_status s = RQ_ERR_MEMORY;
    if (seats)
        s = open_seats(r, lane, seats, err);
    else
        rq_fail(err, s, "out of memory for the engines");
    uint64_t index;
    while (!s && !atomic_load(&r->stop) && (index = atomic_fetch_add(&r->next, 1)) < results->n_trials) {
        bool complete = false;
        s = do_trial(r, index, seats, &text, &complete, err);
        if (!complete) break;
        pthread_mutex_lock(&r->lock);
        results->n_done++;
        if (!r->job->quiet) rq_progress_set(&r->progress, results->n_done);
        pthread_mutex_unlock(&r->lock);
    }
    if (s) atomic_store(&r->stop, true);
    for (size_t i = 0; seats && i < r->job->entries->n; i++) rq_seat_close(&seats[i]);
    rq_free(seats);
    rq_buf_free(&text);
    return s;
}

rq_status rq_needle_run(const rq_needle_job *job, rq_needle_results *out, rq_error *err)
{
    *out = (rq_needle_results){.n_trials = rq_needle_n_trials(job)};
    out->outcomes = rq_calloc(out->n_trials, job->entries->n);
    out->columns = rq_calloc(job->entries->n, sizeof *out->columns);
    if (!out->outcomes || !out->columns)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the outcomes of %llu trials",
                       (unsigned long long)out->n_trials);
    run r = {.job = job, .results = out};
    uint32_t lanes = job->n_lanes ? job->n_lanes : 1,
             threads = job->n_threads ? job->n_threads : rq_processors();
    r.lane_threads = threads / lanes ? threads / lanes : 1;
    pthread_mutex_init(&r.lock, NULL);
    uint64_t start = rq_tool_now_ns();
    r.progress = rq_progress_start(stderr, "recall", "trials", out->n_trials);
    rq_status s = rq_lanes_run(lanes, do_lane, &r, err);
    if (!job->quiet) rq_progress_end(&r.progress);
    out->seconds = (double)(rq_tool_now_ns() - start) / 1e9;
    pthread_mutex_destroy(&r.lock);
    return s;
}

void rq_needle_results_free(rq_needle_results *results)
{
    rq_free(results->outcomes);
    rq_free(results->columns);
    *results = (rq_needle_results){0};
}
