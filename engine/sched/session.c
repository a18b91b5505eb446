/* session.c - the public functions of a session: what its owner's thread does. */
#include "engine/sched/internal.h"

#include "backends/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

rq_request rq_request_default(void)
{
    return (rq_request){.sampling = rq_sampling_default(), .n_logprobs = -1};
}

rq_status rq_sched_open(rq_sched *sc, rq_session **out, rq_error *err)
{
    rq_session *s = rq_calloc(1, sizeof *s);
    if (s == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a session");
    s->sched = sc;
    rq_events_init(&s->queue);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);

    pthread_mutex_lock(&sc->lock);
    uint32_t slot = 0;
    while (slot < sc->params.n_sessions && sc->sessions[slot] != NULL) slot++;
    if (slot < sc->params.n_sessions) {
        s->slot = slot;
        sc->sessions[slot] = s;
    }
    pthread_mutex_unlock(&sc->lock);
    if (slot == sc->params.n_sessions) {
        pthread_cond_destroy(&s->wake);
        rq_free(s);
        return rq_fail(err, RQ_ERR_CAPACITY, "all %u sessions of the engine are in use",
                       sc->params.n_sessions);
    }
    *out = s;
    return RQ_OK;
}

void rq_session_free(rq_session *s)
{
    if (s == NULL) return;
    rq_sched *sc = s->sched;
    pthread_mutex_lock(&sc->lock);
    s->cancel = true;
    pthread_cond_signal(&sc->work);
    while (s->phase != RQ_PHASE_IDLE) pthread_cond_wait(&s->wake, &sc->lock);
    rq_cache_truncate(sc->cache, s->slot, 0);
    sc->sessions[s->slot] = NULL;
    rq_sched_admit(sc);
    pthread_mutex_unlock(&sc->lock);
    rq_events_free(&s->queue);
    rq_stream_free(&s->stream);
    rq_sampler_free(&s->sampler);
    pthread_cond_destroy(&s->wake);
    rq_free(s->tokens);
    rq_free(s);
}

/* Can the session take work of n_tokens tokens in all now? Under the lock. */
static rq_status check_ready(const rq_session *s, rq_error *err)
{
    const rq_sched *sc = s->sched;
    if (sc->failed) return rq_fail(err, RQ_ERR_DEVICE, "the engine has failed: %.400s", sc->failure.text);
    if (sc->stopping) return rq_fail(err, RQ_ERR_CANCELLED, "the engine is being shut down");
    if (s->phase != RQ_PHASE_IDLE)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the session's previous request is still running");
    if (sc->n_waiting >= sc->params.n_queue)
        return rq_fail(err, RQ_ERR_CAPACITY, "%u requests are waiting already; try again later",
                       sc->n_waiting);
    return RQ_OK;
}

static rq_status check_tokens(const rq_sched *sc, const rq_token *tokens, size_t n, rq_error *err)
{
    if (n < 1) return rq_fail(err, RQ_ERR_ARGUMENT, "a request needs at least one token");
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= sc->params.n_vocab)
            return rq_fail(err, RQ_ERR_ARGUMENT, "token %d at position %zu is outside the vocabulary of %u",
                           tokens[i], i, sc->params.n_vocab);
    return RQ_OK;
}

static bool room_for_tokens(rq_session *s, size_t n)
{
    void *tokens = s->tokens;
    if (!rq_grow(&tokens, &s->cap_tokens, n, sizeof *s->tokens)) return false;
    s->tokens = tokens;
    return true;
}

/* Puts the session into the queue; it starts at once when nobody is before it and the cache has room. */
static void enqueue(rq_session *s)
{
    rq_sched *sc = s->sched;
    s->cancel = false;
    s->phase = RQ_PHASE_WAITING;
    s->ticket = sc->next_ticket++;
    sc->n_waiting++;
    rq_sched_admit(sc);
}

/* Would the recurrent state have to be cut back for the session to hold n tokens? */
static bool cannot_cut(const rq_session *s, size_t n)
{
    return s->sched->params.recurrent && n != rq_cache_length(s->sched->cache, s->slot);
}

/* Makes `tokens` the session's sequence, keeping what the cache holds of its own; what others have is added when
 * the request starts. At least one token is left to evaluate, for its logits. Under the lock. */
static void keep_prefix(rq_session *s, const rq_token *tokens, size_t n)
{
    size_t held = s->n_tokens, same = 0;
    while (same < held && same < n && s->tokens[same] == tokens[same]) same++;
    s->n_held = held;
    s->n_same = same;
    if (s->n_cached > same) s->n_cached = same;
    if (s->n_cached > n - 1) s->n_cached = n - 1;
    if (s->fresh || cannot_cut(s, s->n_cached)) s->n_cached = 0;
    s->n_cached = rq_cache_truncate(s->sched->cache, s->slot, s->n_cached);
    memcpy(s->tokens, tokens, n * sizeof *tokens);
    s->n_tokens = n;
}

/* Chooses the ends of messages that are worth keeping. */
static void keep_ends(rq_session *s, const size_t *boundaries, size_t n_boundaries)
{
    s->n_ends = 0;
    for (size_t i = 0; i < n_boundaries; i++)
        if (i == 0 || i + RQ_KEPT_ENDS - 2 >= n_boundaries) s->ends[s->n_ends++] = boundaries[i];
    s->ends[s->n_ends++] = s->n_prompt;
}

rq_status rq_submit(rq_session *s, const rq_token *tokens, size_t n, const size_t *boundaries,
                    size_t n_boundaries, const rq_request *request, rq_error *err)
{
    rq_sched *sc = s->sched;
    rq_status status = check_tokens(sc, tokens, n, err);
    if (status != RQ_OK) return status;
    for (size_t i = 0; i < n_boundaries; i++)
        if (boundaries[i] > n || (i > 0 && boundaries[i] < boundaries[i - 1]))
            return rq_fail(err, RQ_ERR_ARGUMENT, "message boundary %zu is not in order or past the prompt",
                           i);
    if (request->n_logprobs < -1 || request->n_logprobs > RQ_MAX_LOGPROBS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "n_logprobs must be -1 to %d, not %d", RQ_MAX_LOGPROBS,
                       request->n_logprobs);
    if (n >= sc->params.n_ctx)
        return rq_fail(err, RQ_ERR_CAPACITY,
                       "the prompt has %zu tokens, and a context of %u tokens leaves no room for an answer",
                       n, sc->params.n_ctx);

    pthread_mutex_lock(&sc->lock);
    status = check_ready(s, err);
    pthread_mutex_unlock(&sc->lock);
    if (status != RQ_OK) return status;

    /* the session is idle, so these are ours */
    size_t n_limit = sc->params.n_ctx;
    if (request->max_tokens != 0 && request->max_tokens < n_limit - n) n_limit = n + request->max_tokens;
    size_t n_eog = 0;
    const rq_token *eog = request->ignore_eos ? rq_tokenizer_eog(sc->params.tok, &n_eog) : NULL;
    status =
        rq_sampler_start(&s->sampler, &request->sampling, sc->params.n_vocab, tokens, n, eog, n_eog, err);
    if (status == RQ_OK)
        status = rq_stream_start(&s->stream, sc->params.tok, request->stop, request->n_stop, err);
    if (status != RQ_OK) return status;
    if (!room_for_tokens(s, n_limit))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a sequence of %zu tokens", n_limit);

    pthread_mutex_lock(&sc->lock);
    status = check_ready(s, err);
    if (status == RQ_OK) {
        s->fresh = request->fresh;
        s->reuse_note[0] = 0;
        keep_prefix(s, tokens, n);
        rq_events_clear(&s->queue);
        s->evaluating = false;
        s->open_request = true;
        s->n_logprobs = request->n_logprobs;
        s->ignore_eos = request->ignore_eos;
        s->n_limit = n_limit;
        s->n_prompt = n;
        s->n_reused = s->n_generated = s->n_drafted = s->n_accepted = 0;
        keep_ends(s, boundaries, n_boundaries);
        s->start_ns = s->first_ns = s->last_ns = 0;
        enqueue(s);
    }
    pthread_mutex_unlock(&sc->lock);
    return status;
}

/* Waits on the session's condition, until the time if it is not negative. False when that has come. */
static bool wait_until(rq_session *s, int64_t until_ns)
{
    if (until_ns < 0) {
        pthread_cond_wait(&s->wake, &s->sched->lock);
        return true;
    }
    struct timespec t = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    return pthread_cond_timedwait(&s->wake, &s->sched->lock, &t) != ETIMEDOUT;
}

rq_status rq_next(rq_session *s, rq_event *event, int timeout_ms, rq_error *err)
{
    rq_sched *sc = s->sched;
    rq_status status = RQ_OK;
    int64_t until_ns = timeout_ms < 0 ? -1 : rq_now_ns() + (int64_t)timeout_ms * 1000000;
    pthread_mutex_lock(&sc->lock);
    bool in_time = true;
    while (s->open_request && s->queue.count == 0 && in_time) in_time = wait_until(s, until_ns);
    if (!s->open_request) {
        status = rq_fail(err, RQ_ERR_ARGUMENT, "no request is running in this session");
    } else if (s->queue.count == 0) {
        status = rq_fail(err, RQ_ERR_TIMEOUT, "nothing came within %d ms", timeout_ms);
    } else {
        bool was_full = !rq_events_room(&s->queue);
        rq_events_pop(&s->queue, event);
        if (event->finish != RQ_FINISH_NONE) s->open_request = false;
        if (was_full) pthread_cond_signal(&sc->work);
    }
    pthread_mutex_unlock(&sc->lock);
    return status;
}

void rq_cancel(rq_session *s)
{
    rq_sched *sc = s->sched;
    pthread_mutex_lock(&sc->lock);
    if (s->phase == RQ_PHASE_WAITING) {
        rq_sched_finish(s, RQ_FINISH_CANCELLED, NULL, NULL);
    } else if (s->phase != RQ_PHASE_IDLE) {
        s->cancel = true; /* the thread ends it before it composes the next step */
        pthread_cond_signal(&sc->work);
    }
    pthread_mutex_unlock(&sc->lock);
}

rq_status rq_evaluate(rq_session *s, const rq_token *tokens, size_t n, uint32_t chunk, rq_logits_rows rows,
                      void (*on_logits)(void *user, size_t position, const float *logits), void *user,
                      rq_error *err)
{
    rq_sched *sc = s->sched;
    rq_status status = check_tokens(sc, tokens, n, err);
    if (status != RQ_OK) return status;
    if (rows != RQ_LOGITS_NONE && on_logits == NULL)
        return rq_fail(err, RQ_ERR_ARGUMENT, "logits were asked for, but there is nobody to take them");

    pthread_mutex_lock(&sc->lock);
    status = check_ready(s, err);
    size_t n_before = s->n_tokens;
    pthread_mutex_unlock(&sc->lock);
    if (status != RQ_OK) return status;
    if (n > sc->params.n_ctx - n_before)
        return rq_fail(err, RQ_ERR_CAPACITY,
                       "%zu tokens do not fit behind the %zu the session holds: the context has %u", n,
                       n_before, sc->params.n_ctx);
    if (!room_for_tokens(s, n_before + n))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a sequence of %zu tokens", n_before + n);

    pthread_mutex_lock(&sc->lock);
    status = check_ready(s, err);
    if (status == RQ_OK) {
        memcpy(s->tokens + n_before, tokens, n * sizeof *tokens);
        s->n_tokens = s->n_limit = n_before + n;
        rq_events_clear(&s->queue);
        s->open_request = false;
        s->evaluating = true;
        s->evaluation =
            (rq_evaluation){.chunk = chunk == 0 || chunk > sc->params.n_batch ? sc->params.n_batch : chunk,
                            .rows = rows,
                            .first = n_before,
                            .on_logits = on_logits,
                            .user = user};
        enqueue(s);
        while (s->phase != RQ_PHASE_IDLE) pthread_cond_wait(&s->wake, &sc->lock);
        status = s->evaluation.status;
        if (status != RQ_OK && err != NULL) *err = s->evaluation.error;
    }
    pthread_mutex_unlock(&sc->lock);
    return status;
}

rq_status rq_session_truncate(rq_session *s, size_t n, rq_error *err)
{
    rq_sched *sc = s->sched;
    rq_status status = RQ_OK;
    pthread_mutex_lock(&sc->lock);
    if (s->phase != RQ_PHASE_IDLE) {
        status = rq_fail(err, RQ_ERR_ARGUMENT, "the session's request is still running");
    } else if (n > s->n_tokens) {
        status = rq_fail(err, RQ_ERR_ARGUMENT, "the session holds %zu tokens and cannot be cut to %zu",
                         s->n_tokens, n);
    } else {
        s->n_tokens = n;
        if (s->n_cached > n) s->n_cached = n;
        if (cannot_cut(s, s->n_cached)) s->n_cached = 0;
        s->n_cached = rq_cache_truncate(sc->cache, s->slot, s->n_cached);
        rq_sched_admit(sc);
    }
    pthread_mutex_unlock(&sc->lock);
    return status;
}

size_t rq_session_length(const rq_session *s)
{
    rq_sched *sc = s->sched;
    pthread_mutex_lock(&sc->lock);
    size_t n = s->phase == RQ_PHASE_IDLE ? s->n_tokens : s->n_cached;
    pthread_mutex_unlock(&sc->lock);
    return n;
}
