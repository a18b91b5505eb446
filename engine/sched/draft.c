/* draft.c - guesses of what comes next, by a block of the model that is much cheaper than the model (rq_tape_kind
 * RQ_TAPE_DRAFT), checked by the model in one step.
 *
 * A session that is decoding has one token whose row is not computed yet. Where the step has room, a few tokens behind
 * it are guessed and take part in the step: the run is the token and the guesses, with a row of the head for each. Then
 * the session's own sampler chooses a token from row after row, as it would have without guesses, and as long as it
 * chooses what was guessed the next row is right as well. What comes out are the same bytes for every seed and
 * temperature, whoever guessed and whatever. */
#include "engine/sched/internal.h"

#include <math.h>
#include <stdio.h>

void rq_draft_start(rq_sched *sc)
{
    for (uint32_t i = 0; i < RQ_NARROW_TOKENS; i++)
        sc->trials[i] = (rq_draft_trial){.on = sc->params.draft_depth != 0, .running = sc->params.draft_auto};
}

/* ---- is it worth it? ------------------------------------------------------------------------------------- */

/* A trial is blocks of steps that as many sessions share, without and with guesses in turns; the first two warm up.
 * Guesses must save this part of the time: what is measured varies. */
enum {
    BLOCK_STEPS = 8,
    TRIAL_BLOCKS = 10,
    WARM_BLOCKS = 2,
    COUNTED_STEPS = (TRIAL_BLOCKS - WARM_BLOCKS) / 2 * BLOCK_STEPS /* of each kind */
};
static const double LEAST_GAIN = 1.05;

static bool turn_to_draft(const rq_draft_trial *t)
{
    return t->on && (!t->running || t->n_steps / BLOCK_STEPS % 2 == 1);
}

static void say_decision(const rq_sched *sc, uint32_t n_sessions, bool on, double gain, double per_step)
{
    char line[240];
    snprintf(
        line, sizeof line,
        "drafts, %u session%s at a time: %.2f tokens a step with up to %u guesses, %.2f times as fast as "
        "without: %s%s",
        n_sessions, n_sessions == 1 ? "" : "s", per_step, sc->params.draft_depth, gain,
        on ? "they stay on" : "off from now on",
        on || n_sessions == 1 ? "" : " when as many or more share steps");
    if (sc->params.say != NULL) sc->params.say(sc->params.user, line);
}

/* Guesses cost more the more sessions share a step, and fewer of them fit: what does not pay for n does not for more. */
static void switch_off(rq_sched *sc, uint32_t n_sessions)
{
    for (uint32_t i = n_sessions - 1; i < RQ_NARROW_TOKENS; i++)
        sc->trials[i].on = sc->trials[i].running = false;
    if (n_sessions == 1) /* for good: nothing is kept for guesses any more */
        rq_executor_follow(sc->params.executor, false);
}

static bool all_decode(const rq_sched *sc)
{
    for (uint32_t i = 0; i < sc->n_parts; i++)
        if (sc->parts[i].session->phase != RQ_PHASE_DECODE || sc->parts[i].n_results == 0) return false;
    return true;
}

void rq_draft_count(rq_sched *sc, int64_t ns)
{
    uint32_t n = sc->n_parts;
    if (n == 0 || n > RQ_NARROW_TOKENS) return;
    rq_draft_trial *t = &sc->trials[n - 1];
    if (!t->running || n != sc->n_sharing || !all_decode(sc)) return;
    bool with = turn_to_draft(t);
    if (t->n_steps >= WARM_BLOCKS * BLOCK_STEPS) {
        t->ns[with] += (uint64_t)ns;
        for (uint32_t i = 0; i < n; i++) t->tokens[with] += sc->parts[i].n_results;
    }
    if (++t->n_steps < TRIAL_BLOCKS * BLOCK_STEPS) return;
    double without_ns = (double)t->ns[0] / (double)t->tokens[0],
           with_ns = (double)t->ns[1] / (double)t->tokens[1];
    bool on = without_ns > LEAST_GAIN * with_ns;
    t->running = false;
    if (!on) switch_off(sc, n);
    say_decision(sc, n, on, without_ns / with_ns, (double)t->tokens[1] / COUNTED_STEPS);
}

/* ---- guessing -------------------------------------------------------------------------------------------- */

uint32_t rq_draft_unapplied(const rq_session *s)
{
    return s->restore == NULL && s->n_cached == s->check_end ? s->n_unapplied : 0;
}

static uint32_t at_most(uint32_t a, size_t b)
{
    return a < b ? a : (uint32_t)b;
}

uint32_t rq_draft_length(const rq_sched *sc, const rq_session *s, uint32_t room)
{
    if (sc->n_sharing == 0 || sc->n_sharing > RQ_NARROW_TOKENS) return 0;
    if (!turn_to_draft(&sc->trials[sc->n_sharing - 1]) || s->evaluating || s->phase != RQ_PHASE_DECODE)
        return 0;
    /* Guesses fill no page: full pages are shared and encoded, and guesses may be wrong. */
    uint32_t in_page = (uint32_t)(s->n_cached % RQ_PAGE_TOKENS) + 1;
    uint32_t n = at_most(sc->params.draft_depth, room);
    n = at_most(n, in_page + 1 < RQ_PAGE_TOKENS ? RQ_PAGE_TOKENS - 1 - in_page : 0);
    n = at_most(n, s->n_limit > s->n_tokens ? s->n_limit - s->n_tokens - 1 : 0);
    return at_most(n, RQ_EVENT_SLOTS - 2 - s->queue.count); /* an event for each token, and the final one */
}

static float probability(const float *logits, uint32_t n, rq_token token)
{
    float sum = 0, best = logits[token];
    for (uint32_t i = 0; i < n; i++) sum += expf(logits[i] - best);
    return 1 / sum;
}

/* A guess more for each part that wants one; at[i] is part i's token in the pass before, -1: there was none. False when
 * nobody wanted one. */
static bool guess_once(rq_sched *sc, uint32_t pass, int32_t *at, rq_status *status, rq_error *err)
{
    rq_executor *ex = sc->params.executor;
    rq_step *step = rq_executor_draft_begin(ex);
    int32_t after[RQ_NARROW_TOKENS], ids[RQ_NARROW_TOKENS];
    rq_part *parts[RQ_NARROW_TOKENS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < sc->n_parts; i++) {
        rq_part *part = &sc->parts[i];
        rq_session *s = part->session;
        if (pass >= part->n_guesses) continue;
        rq_token id = pass == 0 ? s->tokens[s->n_cached] : part->guesses[pass - 1];
        int32_t t = rq_step_add_run(step, s->slot, &id, 1, (uint32_t)s->n_cached + pass,
                                    rq_cache_tables(sc->cache, s->slot));
        if (t < 0) {
            part->n_guesses = pass;
            continue;
        }
        after[n] = at[i];
        at[i] = t;
        parts[n++] = part;
    }
    if (n == 0) return false;
    const float *logits = NULL;
    bool ask = sc->params.draft_min_p > 0;
    *status = rq_executor_draft(ex, step, after, ids, ask ? &logits : NULL, err);
    for (uint32_t t = 0; t < n && *status == RQ_OK; t++) {
        parts[t]->guesses[pass] = ids[t];
        if (ask && !(probability(logits + (size_t)t * sc->params.n_vocab, sc->params.n_vocab, ids[t]) >=
                     sc->params.draft_min_p))
            parts[t]->n_guesses = pass;
    }
    return *status == RQ_OK;
}

static rq_status add_run(rq_sched *sc, rq_step *step, rq_part *part, rq_error *err)
{
    rq_session *s = part->session;
    rq_token ids[RQ_NARROW_TOKENS];
    ids[0] = s->tokens[s->n_cached];
    for (uint32_t i = 0; i < part->n_guesses; i++) ids[i + 1] = part->guesses[i];
    part->count = part->n_guesses + 1;
    int32_t first = rq_step_add_run(step, s->slot, ids, part->count, (uint32_t)s->n_cached,
                                    rq_cache_tables(sc->cache, s->slot));
    bool ok =
        first >= 0 && rq_step_set_draft(step, rq_draft_unapplied(s), part->n_guesses != 0 ? part->count : 0);
    part->first = (uint32_t)first;
    part->row = step->header->n_rows;
    for (uint32_t i = 0; i < part->count && ok; i++) ok = rq_step_add_row(step, part->first + i, s->slot);
    part->n_rows = part->count;
    if (ok) return RQ_OK;
    return rq_fail(err, RQ_ERR_INTERNAL, "no step has room for %u guesses at position %zu", part->n_guesses,
                   s->n_cached);
}

rq_status rq_draft_guess(rq_sched *sc, rq_step *step, rq_error *err)
{
    bool wanted[RQ_NARROW_TOKENS] = {0}, any = false;
    int32_t at[RQ_NARROW_TOKENS];
    for (uint32_t i = 0; i < sc->n_parts; i++) {
        wanted[i] = sc->parts[i].n_guesses != 0;
        any |= wanted[i];
        at[i] = -1;
    }
    if (!any) return RQ_OK;
    rq_status status = rq_executor_edit(sc->params.executor, step, err);
    for (uint32_t pass = 0; status == RQ_OK && guess_once(sc, pass, at, &status, err);) pass++;
    for (uint32_t i = 0; i < sc->n_parts && status == RQ_OK; i++)
        if (wanted[i]) status = add_run(sc, step, &sc->parts[i], err);
    return status;
}

rq_status rq_draft_remember(rq_sched *sc, bool checks, rq_error *err)
{
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < sc->n_parts && sc->trials[0].on && status == RQ_OK; i++) {
        const rq_part *part = &sc->parts[i];
        bool check = part->n_guesses != 0;
        uint32_t n = check ? part->n_results : part->count;
        if (check == checks && n != 0)
            status = rq_executor_last(sc->params.executor, part->session->slot, part->first + n - 1, err);
    }
    return status;
}
