/* sched.c - the scheduler's thread, admission and the end of work. */
#include "engine/sched/internal.h"

#include "backends/base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t rq_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- admission and the end of work ----------------------------------------------------------------------- */

static rq_session *first_waiting(const rq_sched *sc)
{
    rq_session *first = NULL;
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        rq_session *s = sc->sessions[i];
        if (s != NULL && s->phase == RQ_PHASE_WAITING && (first == NULL || s->ticket < first->ticket))
            first = s;
    }
    return first;
}

/* Takes the pages of the session that can best do without: idle ones first, the longest unused; then those that
 * wait, the last to come first. False when there is none. */
static bool evict_one(rq_sched *sc, const rq_session *except)
{
    rq_session *idle = NULL, *waiting = NULL;
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        rq_session *s = sc->sessions[i];
        if (s == NULL || s == except || s->n_cached == 0) continue;
        if (s->phase == RQ_PHASE_IDLE && (idle == NULL || s->ticket < idle->ticket)) idle = s;
        if (s->phase == RQ_PHASE_WAITING && (waiting == NULL || s->ticket > waiting->ticket)) waiting = s;
    }
    rq_session *victim = idle != NULL ? idle : waiting;
    if (victim == NULL) return false;
    rq_cache_truncate(sc->cache, victim->slot, 0);
    victim->n_cached = 0;
    return true;
}

/* Why not more was reused, in words. */
static void note_reuse(rq_session *s, uint64_t n_known)
{
    size_t n = s->n_cached;
    s->reuse_note[0] = 0;
    if (n + 1 >= s->n_prompt) return;
    if (s->fresh)
        snprintf(s->reuse_note, sizeof s->reuse_note, "the request asked for a fresh start");
    else if (s->sched->params.recurrent && s->n_same > n)
        snprintf(s->reuse_note, sizeof s->reuse_note,
                 "%zu tokens are known, but the model's state was kept at %zu of them", s->n_same, n);
    else if (n_known > n)
        snprintf(s->reuse_note, sizeof s->reuse_note,
                 "%llu tokens are known, but the pages a next token reads were kept at %zu of them",
                 (unsigned long long)n_known, n);
    else if (n < s->n_same)
        snprintf(s->reuse_note, sizeof s->reuse_note, "its cache was given to other requests");
    else if (n == s->n_same && s->n_same < s->n_held)
        snprintf(s->reuse_note, sizeof s->reuse_note, "the prompt differs from the earlier one at token %zu",
                 n);
    else if (s->n_held == 0 && n == 0)
        snprintf(s->reuse_note, sizeof s->reuse_note, "the session was empty");
    else if (s->n_same < s->n_held || s->n_held == 0)
        snprintf(s->reuse_note, sizeof s->reuse_note,
                 "no earlier prompt goes on like this one from token %zu", n);
}

/* Goes on from the longest snapshot of the prompt's beginning whose pages are still there. */
static void resume(rq_sched *sc, rq_session *s)
{
    rq_snapshot *snap = rq_snapshots_find(&sc->snapshots, s->tokens, s->n_prompt);
    for (; snap != NULL && snap->n > s->n_cached;
         snap = rq_snapshots_find(&sc->snapshots, s->tokens, snap->n)) {
        if (!rq_cache_resume(sc->cache, s->slot, s->tokens, snap->n)) continue;
        rq_snapshots_pin(&sc->snapshots, snap);
        rq_cache_save(sc->cache, s->slot, snap->n); /* used just now */
        s->restore = snap;
        s->n_cached = snap->n;
        return;
    }
}

void rq_sched_restored(rq_session *s)
{
    if (s->restore != NULL) rq_snapshots_unpin(s->restore);
    s->restore = NULL;
}

void rq_sched_reuse(rq_session *s, bool starts)
{
    rq_sched *sc = s->sched;
    if (sc->params.recurrent) {
        if (!starts) return;
        if (!s->fresh) resume(sc, s);
        note_reuse(s, s->n_cached);
        return;
    }
    rq_cache_match m = {.n_known = s->n_cached, .n_tokens = s->n_cached};
    if (!s->fresh) m = rq_cache_advance(sc->cache, s->slot, s->tokens, s->n_prompt - 1);
    bool more = m.n_tokens > s->n_cached;
    s->n_cached = m.n_tokens;
    if (starts || more) note_reuse(s, m.n_known);
}

void rq_sched_admit(rq_sched *sc)
{
    if (sc->failed || sc->stopping) return;
    for (rq_session *s; (s = first_waiting(sc)) != NULL;) {
        while (!rq_cache_reserve(sc->cache, s->slot, s->n_limit))
            if (!evict_one(sc, s)) return;
        s->phase = RQ_PHASE_PROMPT;
        s->due = true;
        if (!s->evaluating) {
            rq_sched_reuse(s, true);
            rq_cache_unmark(sc->cache, s->slot);
            for (uint32_t i = 0; i < s->n_ends; i++) rq_cache_mark(sc->cache, s->slot, s->ends[i]);
        }
        s->n_reused = s->evaluating ? 0 : s->n_cached;
        s->start_ns = rq_now_ns();
        sc->n_waiting--;
        sc->stats.reused_tokens += s->n_reused;
        pthread_cond_signal(&sc->work);
    }
}

void rq_sched_fill_event(const rq_session *s, rq_event *e)
{
    memset(e, 0, sizeof *e);
    e->token = -1;
    e->chosen.token = -1;
    e->n_prompt = (uint32_t)s->n_prompt;
    e->n_reused = (uint32_t)s->n_reused;
    e->n_generated = (uint32_t)s->n_generated;
    e->n_drafted = (uint32_t)s->n_drafted;
    e->n_accepted = (uint32_t)s->n_accepted;
    if (s->first_ns != 0) {
        e->prompt_ms = (double)(s->first_ns - s->start_ns) * 1e-6;
        e->generate_ms = (double)(s->last_ns - s->first_ns) * 1e-6;
    }
    e->reuse_note = s->reuse_note;
}

void rq_sched_finish(rq_session *s, rq_finish finish, const rq_error *error, rq_buf *text)
{
    rq_sched *sc = s->sched;
    if (s->phase == RQ_PHASE_WAITING) sc->n_waiting--;
    if (s->evaluating) {
        rq_evaluation *ev = &s->evaluation;
        ev->status = finish == RQ_FINISH_CANCELLED ? RQ_ERR_CANCELLED
                     : finish == RQ_FINISH_ERROR   ? (sc->failed ? RQ_ERR_DEVICE : RQ_ERR_INTERNAL)
                                                   : RQ_OK;
        if (finish == RQ_FINISH_CANCELLED)
            rq_fail(&ev->error, RQ_ERR_CANCELLED, "the evaluation was cancelled");
        if (error != NULL) ev->error = *error;
    } else {
        rq_event e;
        rq_sched_fill_event(s, &e);
        e.finish = finish;
        if (error != NULL) e.error = *error;
        rq_events_push(&s->queue, &e, text);
    }
    if (s->restore != NULL) s->n_cached = 0; /* its state never came */
    rq_sched_restored(s);
    rq_cache_unreserve(sc->cache, s->slot);
    rq_cache_truncate(sc->cache, s->slot, s->n_cached);
    s->n_tokens = s->n_cached = rq_cache_length(sc->cache, s->slot);
    rq_cache_mark(sc->cache, s->slot, s->n_cached);
    s->phase = RQ_PHASE_IDLE;
    s->ticket = sc->next_ticket++;
    pthread_cond_broadcast(&s->wake);
    rq_sched_admit(sc);
}

static void end_all(rq_sched *sc, rq_finish finish, const rq_error *error)
{
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        rq_session *s = sc->sessions[i];
        if (s != NULL && s->phase != RQ_PHASE_IDLE) rq_sched_finish(s, finish, error, NULL);
    }
}

void rq_sched_fail(rq_sched *sc, const rq_error *why)
{
    if (sc->failed) return;
    sc->failed = true;
    sc->failure = *why;
    end_all(sc, RQ_FINISH_ERROR, why);
    /* what the caches hold was made by a device or a file that is gone */
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        if (sc->sessions[i] == NULL) continue;
        rq_cache_truncate(sc->cache, i, 0);
        sc->sessions[i]->n_cached = 0;
    }
    rq_cache_clear(sc->cache);
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void handle_cancels(rq_sched *sc)
{
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        rq_session *s = sc->sessions[i];
        if (s != NULL && s->cancel && s->phase != RQ_PHASE_IDLE)
            rq_sched_finish(s, RQ_FINISH_CANCELLED, NULL, NULL);
    }
}

static void *scheduler_main(void *user)
{
    rq_sched *sc = user;
    pthread_mutex_lock(&sc->lock);
    while (!sc->stopping) {
        handle_cancels(sc);
        rq_step *step = NULL;
        rq_error err = {0};
        rq_status status = RQ_OK;
        if (sc->failed || !rq_sched_compose(sc, &step, &status, &err)) {
            if (status != RQ_OK)
                rq_sched_fail(sc, &err);
            else
                pthread_cond_wait(&sc->work, &sc->lock);
            continue;
        }
        pthread_mutex_unlock(&sc->lock);
        int64_t start_ns = rq_now_ns();
        status = rq_sched_execute(sc, step, &err);
        int64_t ns = rq_now_ns() - start_ns;
        pthread_mutex_lock(&sc->lock);
        if (status == RQ_OK)
            rq_sched_publish(sc, ns);
        else
            rq_sched_fail(sc, &err);
    }
    end_all(sc, RQ_FINISH_CANCELLED, NULL);
    pthread_mutex_unlock(&sc->lock);
    return NULL;
}

/* Signals sent to the process are for the program's own threads; those a fault raises must stay deliverable
 * (guard.h lives on SIGBUS). */
static int start_thread(rq_sched *sc)
{
    sigset_t block, old;
    sigfillset(&block);
    sigdelset(&block, SIGBUS);
    sigdelset(&block, SIGSEGV);
    sigdelset(&block, SIGFPE);
    sigdelset(&block, SIGILL);
    sigdelset(&block, SIGTRAP);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    int failed = pthread_create(&sc->thread, NULL, scheduler_main, sc);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

rq_status rq_sched_create(const rq_sched_params *p, rq_sched **out, rq_error *err)
{
    if (p->n_sessions < 1 || p->n_sessions > RQ_MAX_SESSIONS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the number of sessions must be 1 to %d, not %u",
                       RQ_MAX_SESSIONS, p->n_sessions);
    if (p->n_groups > RQ_MAX_GROUPS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u cache groups are more than the %d a step can name",
                       p->n_groups, RQ_MAX_GROUPS);
    static const rq_cache_group plain[RQ_MAX_GROUPS]; /* no coded form */
    const rq_cache_group *groups = p->groups != NULL ? p->groups : plain;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        uint32_t pages = rq_group_is_coded(&groups[g]) ? p->group_coded_pages[g] : p->group_pages[g];
        if (groups[g].window == 0 && pages < rq_cache_pages_for(p->n_ctx))
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "a cache of %llu tokens is smaller than the context of %u tokens",
                           (unsigned long long)pages * RQ_PAGE_TOKENS, p->n_ctx);
    }
    rq_sched *sc = rq_calloc(1, sizeof *sc);
    if (sc == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the scheduler");
    sc->params = *p;
    sc->params.groups = NULL; /* the caller's, not needed any more */
    sc->params.group_pages = sc->params.group_coded_pages = sc->params.group_scratch_pages = NULL;
    sc->next_ticket = 1;
    rq_draft_start(sc);
    pthread_mutex_init(&sc->lock, NULL);
    pthread_cond_init(&sc->work, NULL);
    for (uint32_t i = 0; i < RQ_NARROW_TOKENS; i++)
        sc->results[i].text.max = sc->parts[i].tail.max = 2 * RQ_STREAM_MAX_BYTES;
    const rq_cache_params cache = {.groups = groups,
                                   .n_groups = p->n_groups,
                                   .pages = p->group_pages,
                                   .coded_pages = p->groups != NULL ? p->group_coded_pages : NULL,
                                   .scratch_pages = p->groups != NULL ? p->group_scratch_pages : NULL,
                                   .n_seqs = p->n_sessions,
                                   .max_pages = rq_cache_pages_for(p->n_ctx),
                                   .n_batch = p->n_batch,
                                   .seed = p->cache_seed,
                                   .dropped = rq_snapshots_dropped,
                                   .dropped_user = &sc->snapshots};
    rq_status status = rq_cache_create(&cache, &sc->cache, err);
    if (status == RQ_OK)
        status = rq_snapshots_init(&sc->snapshots, sc->cache, &sc->lock, p->snapshot_bytes, err);
    if (status == RQ_OK) {
        sc->copies = rq_calloc(rq_cache_most_copies(sc->cache), sizeof *sc->copies);
        if (sc->copies == NULL) status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for the scheduler");
    }
    if (status == RQ_OK) status = rq_sampler_scratch_init(&sc->scratch, p->n_vocab, err);
    if (status == RQ_OK) {
        if (start_thread(sc) == 0)
            sc->started = true;
        else
            status = rq_fail(err, RQ_ERR_MEMORY, "the system refused to start the scheduler's thread");
    }
    if (status != RQ_OK) {
        rq_sched_free(sc);
        return status;
    }
    *out = sc;
    return RQ_OK;
}

void rq_sched_free(rq_sched *sc)
{
    if (sc == NULL) return;
    if (sc->started) {
        pthread_mutex_lock(&sc->lock);
        sc->stopping = true;
        pthread_cond_signal(&sc->work);
        pthread_mutex_unlock(&sc->lock);
        pthread_join(sc->thread, NULL);
    }
    for (uint32_t i = 0; i < RQ_NARROW_TOKENS; i++) {
        rq_buf_free(&sc->results[i].text);
        rq_buf_free(&sc->parts[i].tail);
        rq_snapshot_free(sc->parts[i].snapshot);
    }
    rq_sampler_scratch_free(&sc->scratch);
    rq_snapshots_free(&sc->snapshots);
    rq_cache_free(sc->cache);
    rq_free(sc->copies);
    pthread_cond_destroy(&sc->work);
    pthread_mutex_destroy(&sc->lock);
    rq_free(sc);
}

void rq_sched_get_stats(rq_sched *sc, rq_engine_stats *out)
{
    pthread_mutex_lock(&sc->lock);
    *out = sc->stats;
    out->sessions = out->running = 0;
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) {
        const rq_session *s = sc->sessions[i];
        if (s == NULL) continue;
        out->sessions++;
        out->running += s->phase == RQ_PHASE_PROMPT || s->phase == RQ_PHASE_DECODE;
    }
    out->waiting = sc->n_waiting;
    out->cache_tokens_used = rq_cache_tokens_used(sc->cache);
    out->states_kept = sc->snapshots.n_kept;
    out->states_resumed = sc->snapshots.n_resumed;
    out->states_dropped = sc->snapshots.n_dropped;
    out->state_bytes = sc->snapshots.bytes;
    pthread_mutex_unlock(&sc->lock);
}

bool rq_sched_failed(rq_sched *sc, rq_error *why)
{
    pthread_mutex_lock(&sc->lock);
    bool failed = sc->failed;
    if (failed) *why = sc->failure;
    pthread_mutex_unlock(&sc->lock);
    return failed;
}
