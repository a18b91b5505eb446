/* step.c - one step: who takes part, what it computes, what everybody gets. */
#include "engine/sched/internal.h"

#include <string.h>

/* ---- composing ------------------------------------------------------------------------------------------- */

static bool can_run(const rq_session *s)
{
    if (s == NULL || (s->phase != RQ_PHASE_PROMPT && s->phase != RQ_PHASE_DECODE)) return false;
    return s->evaluating || rq_events_room(&s->queue);
}

enum { SMALLEST_SNAPSHOT = 16 }; /* tokens */

/* Is the state at this position of a request worth keeping? Before a prompt's last token, so that the same prompt
 * finds it, and where a message ends. */
static bool is_stop(const rq_session *s, size_t n)
{
    if (n < SMALLEST_SNAPSHOT || n >= s->n_prompt) return false;
    for (uint32_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] == n) return true;
    return n == s->n_prompt - 1;
}

/* A piece that ends at `end` ends at the first position before it whose state is kept. */
static size_t next_stop(const rq_session *s, size_t end)
{
    for (uint32_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] > s->n_cached && s->ends[i] < end && is_stop(s, s->ends[i])) end = s->ends[i];
    if (s->n_prompt - 1 > s->n_cached && s->n_prompt - 1 < end && is_stop(s, s->n_prompt - 1))
        end = s->n_prompt - 1;
    return end;
}

/* Tokens of the session's next piece, a function of the session alone. */
static uint32_t next_piece(const rq_sched *sc, const rq_session *s)
{
    size_t n_piece = sc->params.n_piece, end = s->n_tokens;
    if (s->evaluating && s->n_cached >= s->evaluation.first) {
        if (end - s->n_cached > s->evaluation.chunk) end = s->n_cached + s->evaluation.chunk;
    } else {
        size_t cut = (s->n_cached / n_piece + 1) * n_piece;
        if (s->evaluating && end > s->evaluation.first) end = s->evaluation.first;
        if (end > cut) end = cut;
        /* the last token goes by itself, as it does when the same prompt comes again and all before is reused */
        if (!s->evaluating && end == s->n_tokens && end - s->n_cached > RQ_NARROW_TOKENS) end--;
    }
    if (sc->params.recurrent && !s->evaluating) end = next_stop(s, end);
    return (uint32_t)(end - s->n_cached);
}

/* Which of the tokens [n_cached, n_cached + count) need a row of the head: the last `rows` of them. */
static uint32_t rows_wanted(const rq_session *s, uint32_t count)
{
    size_t end = s->n_cached + count;
    if (!s->evaluating) return end == s->n_tokens;
    switch (s->evaluation.rows) {
    case RQ_LOGITS_ALL:
        return s->n_cached >= s->evaluation.first ? count : 0;
    case RQ_LOGITS_LAST:
        return end == s->n_tokens;
    default:
        return 0;
    }
}

/* While a prompt is being read, another session may have read what comes next in it. */
static void catch_up(rq_sched *sc, rq_session *s)
{
    if (s->phase != RQ_PHASE_PROMPT || s->evaluating || s->fresh || s->n_cached + 1 >= s->n_prompt) return;
    size_t before = s->n_cached;
    rq_sched_reuse(s, false);
    s->n_reused += s->n_cached - before;
    sc->stats.reused_tokens += s->n_cached - before;
}

/* Puts the next `count` tokens of the session into the step, and makes room for as many guesses behind them as are
 * wanted; then the run is added when they are known. False, and the step as good as before, when they do not fit. */
static bool add_part(rq_sched *sc, rq_step *step, rq_session *s, uint32_t count, uint32_t n_guesses)
{
    if (!rq_cache_extend(sc->cache, s->slot, s->n_cached + count + n_guesses, count > RQ_NARROW_TOKENS))
        return false;
    if (!rq_cache_edits(sc->cache, s->slot, step)) return false;
    rq_part *part = &sc->parts[sc->n_parts];
    part->session = s;
    part->count = count;
    part->n_guesses = n_guesses;
    part->n_rows = 0;
    if (n_guesses == 0) {
        int32_t first = rq_step_add_run(step, s->slot, s->tokens + s->n_cached, count, (uint32_t)s->n_cached,
                                        rq_cache_tables(sc->cache, s->slot));
        if (first < 0) return false;
        part->first = (uint32_t)first;
        rq_step_set_draft(step, rq_draft_unapplied(s), 0);
        part->row = step->header->n_rows;
        for (uint32_t rows = rows_wanted(s, count), i = 0; i < rows; i++) {
            if (!rq_step_add_row(step, part->first + count - rows + i, s->slot)) break;
            part->n_rows++;
        }
    }
    rq_cache_encodes(sc->cache, s->slot, step); /* the lists hold what any step can fill */
    sc->n_parts++;
    return true;
}

static uint32_t narrow_limit(const rq_sched *sc)
{
    return sc->params.n_batch < RQ_NARROW_TOKENS ? sc->params.n_batch : RQ_NARROW_TOKENS;
}

static void add_narrow_parts(rq_sched *sc, rq_step *step)
{
    uint32_t n = sc->params.n_sessions, left = narrow_limit(sc), from = sc->narrow_turn, n_due = 0;
    for (uint32_t i = 0; i < n; i++) n_due += can_run(sc->sessions[i]) && sc->sessions[i]->due;
    sc->n_sharing = n_due;
    for (uint32_t i = 0; i < n && left > 0; i++) {
        uint32_t slot = (from + i) % n;
        rq_session *s = sc->sessions[slot];
        if (!can_run(s) || !s->due) continue;
        catch_up(sc, s);
        uint32_t count = next_piece(sc, s), guesses = 0;
        if (count > narrow_limit(sc)) continue;
        if (count > left) count = left; /* narrow steps may cut anywhere: the bits are the same */
        if (n_due > 0 && left > n_due)
            guesses = rq_draft_length(sc, s, (left - n_due) / n_due); /* shared by all who are due */
        if (!add_part(sc, step, s, count, guesses)) continue;
        s->due = false;
        n_due--;
        left -= count + guesses;
        sc->narrow_turn = (slot + 1) % n;
    }
}

static void add_wide_part(rq_sched *sc, rq_step *step)
{
    uint32_t n = sc->params.n_sessions, from = sc->wide_turn;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (from + i) % n;
        rq_session *s = sc->sessions[slot];
        if (!can_run(s)) continue;
        catch_up(sc, s);
        uint32_t count = next_piece(sc, s);
        if (count <= narrow_limit(sc) || !add_part(sc, step, s, count, 0)) continue;
        sc->wide_turn = (slot + 1) % n;
        return;
    }
}

static rq_session *first_that_can_run(const rq_sched *sc)
{
    for (uint32_t i = 0; i < sc->params.n_sessions; i++)
        if (can_run(sc->sessions[i])) return sc->sessions[i];
    return NULL;
}

static bool fill_step(rq_sched *sc, rq_step *step)
{
    add_narrow_parts(sc, step);
    if (sc->n_parts == 0) { /* the round is over: a prompt's turn, then everybody is due again */
        add_wide_part(sc, step);
        for (uint32_t i = 0; i < sc->params.n_sessions; i++)
            if (sc->sessions[i] != NULL) sc->sessions[i]->due = true;
        if (sc->n_parts == 0) add_narrow_parts(sc, step);
    }
    return sc->n_parts > 0;
}

/* Nobody fits into an empty step: ends the request that was tried first, and empties the step. */
static void give_one_up(rq_sched *sc, rq_step *step)
{
    rq_error err;
    rq_session *s = first_that_can_run(sc);
    rq_fail(&err, RQ_ERR_INTERNAL, "no step has room for the tokens from position %zu on", s->n_cached);
    rq_sched_finish(s, RQ_FINISH_ERROR, &err, NULL);
    rq_step_reset(step);
    for (uint32_t i = 0; i < sc->params.n_sessions; i++) rq_cache_resend(sc->cache, i);
}

bool rq_sched_compose(rq_sched *sc, rq_step **out, rq_status *status, rq_error *err)
{
    sc->n_parts = 0;
    *status = RQ_OK;
    if (first_that_can_run(sc) == NULL) return false;
    rq_step *step = rq_executor_begin(sc->params.executor, err);
    if (step == NULL) {
        *status = RQ_ERR_DEVICE;
        return false;
    }
    while (!fill_step(sc, step)) {
        give_one_up(sc, step);
        if (first_that_can_run(sc) == NULL) return false;
    }
    sc->n_copies = rq_cache_take_copies(sc->cache, sc->copies);
    *out = step;
    return true;
}

/* ---- executing ------------------------------------------------------------------------------------------- */

static void part_failed(rq_part *part, const rq_error *err)
{
    part->finish = RQ_FINISH_ERROR;
    part->error = *err;
}

/* Chooses the next token of a request, whose sequence has n tokens now, and turns it into text. */
static void choose(rq_sched *sc, rq_part *part, const float *logits, size_t n)
{
    rq_session *s = part->session;
    rq_result *r = &part->results[part->n_results];
    rq_error err = {0};
    rq_buf_clear(&r->text);
    r->has_token = false;
    r->n_top = 0;
    if (rq_sampler_choose(&s->sampler, &sc->scratch, logits, &r->token, &err) != RQ_OK) {
        part_failed(part, &err);
        return;
    }
    part->n_results++;
    if (s->n_logprobs >= 0)
        r->n_top =
            rq_logprobs(logits, sc->params.n_vocab, r->token, (uint32_t)s->n_logprobs, &r->chosen, r->top);
    bool stopped = false;
    rq_status status = RQ_OK;
    if (!s->ignore_eos && rq_token_is_eog(sc->params.tok, r->token)) {
        part->finish = RQ_FINISH_EOS;
    } else {
        r->has_token = true;
        status = rq_stream_add(&s->stream, r->token, &r->text, &stopped, &err);
        if (stopped)
            part->finish = RQ_FINISH_STOP;
        else if (n + 1 >= s->n_limit)
            part->finish = RQ_FINISH_LENGTH;
    }
    if (status == RQ_OK && (part->finish == RQ_FINISH_EOS || part->finish == RQ_FINISH_LENGTH)) {
        status = rq_stream_end(&s->stream, &part->tail, &stopped, &err);
        if (stopped) part->finish = RQ_FINISH_STOP;
    }
    if (status == RQ_OK) return;
    r->has_token = false;
    part_failed(part, &err);
}

/* The request's next tokens: one for each row, as long as it is what was guessed. What is chosen is the same as without
 * guesses, because the rows before are. */
static void sample(rq_sched *sc, rq_part *part, const float *logits)
{
    rq_session *s = part->session;
    for (uint32_t i = 0; i < part->n_rows; i++) {
        size_t n = s->n_tokens + i;
        choose(sc, part, logits + (size_t)(part->row + i) * sc->params.n_vocab, n);
        const rq_result *r = &part->results[i];
        if (part->finish == RQ_FINISH_ERROR || !r->has_token) return;
        s->tokens[n] = r->token; /* counted when it is published */
        rq_sampler_accept(&s->sampler, s->tokens, n + 1);
        if (part->finish != RQ_FINISH_NONE || i == part->n_guesses || r->token != part->guesses[i]) return;
    }
}

/* Hands out the logits of an evaluation; more than the step's head could take are made now. */
static rq_status give_logits(rq_sched *sc, rq_step *step, const rq_part *part, const float *logits,
                             rq_error *err)
{
    const rq_session *s = part->session;
    const rq_evaluation *ev = &s->evaluation;
    uint32_t wanted = rows_wanted(s, part->count), done = 0;
    size_t position = s->n_cached + part->count - wanted;
    const float *row = logits + (size_t)part->row * sc->params.n_vocab;
    for (uint32_t n = part->n_rows; done < wanted;) {
        for (uint32_t i = 0; i < n; i++)
            ev->on_logits(ev->user, position + done + i, row + (size_t)i * sc->params.n_vocab);
        done += n;
        if (done == wanted) break;
        rq_row rows[RQ_HEAD_ROWS];
        n = wanted - done < RQ_HEAD_ROWS ? wanted - done : RQ_HEAD_ROWS;
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (rq_row){.token = part->first + part->count - wanted + done + i, .slot = s->slot};
        rq_status status = rq_executor_head(sc->params.executor, step, rows, n, &row, err);
        if (status != RQ_OK) return status;
        if (sc->params.check != NULL && (status = sc->params.check(sc->params.user, err)) != RQ_OK)
            return status;
    }
    return RQ_OK;
}

/* What was kept goes into the slots of sessions that go on from it. */
static rq_status put_states(rq_sched *sc, rq_error *err)
{
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < sc->n_parts && status == RQ_OK; i++) {
        const rq_session *s = sc->parts[i].session;
        if (s->restore != NULL)
            status = rq_snapshot_put(sc->params.executor, sc->params.n_groups, s->restore, s->slot,
                                     rq_cache_tables(sc->cache, s->slot), err);
    }
    return status;
}

/* Copies the states behind this step that are worth keeping: at stops, and where an answer ends; what ends with a draft
 * check is kept as it was before. */
static rq_status take_states(rq_sched *sc, rq_error *err)
{
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < sc->n_parts && sc->params.recurrent && status == RQ_OK; i++) {
        rq_part *part = &sc->parts[i];
        const rq_session *s = part->session;
        size_t n = s->n_cached + (part->n_guesses != 0 ? 0 : part->count);
        bool ends =
            part->finish != RQ_FINISH_NONE && part->finish != RQ_FINISH_ERROR && n >= SMALLEST_SNAPSHOT;
        if (s->evaluating || (!ends && !is_stop(s, n)) || rq_snapshots_has(&sc->snapshots, s->tokens, n))
            continue;
        status =
            rq_snapshot_take(sc->params.executor, sc->params.n_groups, s->slot, n,
                             rq_cache_tables(sc->cache, s->slot), sc->snapshots.limit, &part->snapshot, err);
    }
    return status;
}

rq_status rq_sched_execute(rq_sched *sc, rq_step *step, rq_error *err)
{
    rq_executor *ex = sc->params.executor;
    rq_status status = RQ_OK;
    const float *logits = NULL;
    for (uint32_t i = 0; i < sc->n_copies && status == RQ_OK; i++)
        status = rq_executor_copy_page(ex, sc->copies[i].group, sc->copies[i].from, sc->copies[i].to, err);
    if (status == RQ_OK) status = put_states(sc, err);
    if (status == RQ_OK) status = rq_draft_guess(sc, step, err);
    if (status == RQ_OK) status = rq_executor_submit(ex, step, err);
    if (status == RQ_OK) status = rq_executor_wait(ex, step, &logits, err);
    if (status == RQ_OK && sc->params.check != NULL) status = sc->params.check(sc->params.user, err);
    if (status != RQ_OK) return status;
    /* requests first: an evaluation may run the head again, which overwrites the logits; it is then the only
     * part of its step, but nothing here has to know that */
    rq_result *results = sc->results;
    for (uint32_t i = 0; i < sc->n_parts; i++) {
        rq_part *part = &sc->parts[i];
        rq_buf_clear(&part->tail);
        part->finish = RQ_FINISH_NONE;
        part->n_results = 0;
        part->results = results;
        if (part->session->evaluating || part->n_rows == 0) continue;
        results += part->n_rows; /* rows of narrow steps, or the one of a wide step */
        sample(sc, part, logits);
    }
    for (uint32_t i = 0; i < sc->n_parts && status == RQ_OK; i++)
        if (sc->parts[i].session->evaluating && sc->parts[i].n_rows > 0)
            status = give_logits(sc, step, &sc->parts[i], logits, err);
    if (status == RQ_OK) status = rq_draft_remember(sc, false, err);
    if (status == RQ_OK) status = take_states(sc, err);
    return status == RQ_OK ? rq_draft_remember(sc, true, err) : status;
}

/* ---- publishing ------------------------------------------------------------------------------------------ */

static void publish_token(rq_sched *sc, rq_part *part, rq_result *r, int64_t now_ns)
{
    rq_session *s = part->session;
    s->phase = RQ_PHASE_DECODE;
    s->n_generated++;
    sc->stats.generated_tokens++;
    s->last_ns = now_ns;
    if (s->first_ns == 0) s->first_ns = now_ns;
    if (!r->has_token) return;
    s->n_tokens++; /* the token is there */
    rq_event e;
    rq_sched_fill_event(s, &e);
    e.token = r->token;
    if (s->n_logprobs >= 0) {
        e.chosen = r->chosen;
        e.n_top = r->n_top;
        memcpy(e.top, r->top, r->n_top * sizeof *r->top);
    }
    rq_events_push(&s->queue, &e, &r->text);
}

static void publish_part(rq_sched *sc, rq_part *part, int64_t now_ns)
{
    rq_session *s = part->session;
    rq_sched_restored(s);
    sc->stats.step_tokens += part->count;
    if (s->phase == RQ_PHASE_PROMPT) sc->stats.prompt_tokens += part->count;
    bool check = part->n_guesses != 0;
    if (check) { /* of the run those tokens count whose row was used */
        uint32_t n_right = part->n_results != 0 ? part->n_results - 1 : 0;
        s->n_drafted += part->n_guesses;
        s->n_accepted += n_right;
        sc->stats.drafted_tokens += part->n_guesses;
        sc->stats.accepted_tokens += n_right;
        s->n_cached += n_right + 1;
    } else {
        s->n_cached += part->count;
    }
    s->n_unapplied = check ? part->n_results : 0;
    s->check_end = s->n_cached;
    rq_cache_keep(sc->cache, s->slot, s->n_cached);
    rq_cache_commit(sc->cache, s->slot, s->tokens);
    if (part->snapshot != NULL) rq_snapshots_add(&sc->snapshots, s->slot, part->snapshot);
    part->snapshot = NULL;
    if (s->evaluating) {
        if (s->n_cached == s->n_tokens) rq_sched_finish(s, RQ_FINISH_NONE, NULL, NULL);
        return;
    }
    for (uint32_t i = 0; i < part->n_results; i++) publish_token(sc, part, &part->results[i], now_ns);
    if (part->n_results != 0) pthread_cond_broadcast(&s->wake);
    if (part->finish != RQ_FINISH_NONE) {
        bool failed = part->finish == RQ_FINISH_ERROR;
        if (failed) { /* keys of a sequence with senseless logits are not worth keeping */
            rq_cache_discard(sc->cache, s->slot);
            s->n_cached = 0;
        }
        rq_sched_finish(s, part->finish, failed ? &part->error : NULL, failed ? NULL : &part->tail);
    }
}

void rq_sched_publish(rq_sched *sc, int64_t ns)
{
    int64_t now_ns = rq_now_ns();
    sc->stats.steps++;
    sc->stats.step_ns += (uint64_t)ns;
    sc->stats.device_ns = rq_executor_device_ns(sc->params.executor);
    sc->stats.weight_bytes = rq_executor_count(sc->params.executor).weight_bytes;
    rq_draft_count(sc, ns);
    for (uint32_t i = 0; i < sc->n_parts; i++) publish_part(sc, &sc->parts[i], now_ns);
}
