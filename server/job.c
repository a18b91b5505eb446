/* job.c - see job.h. */
#include "server/job.h"

#include "backends/base/mem.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* MAX_BURST: events delivered in one go, so that a stream is sent before much of it has piled up. */
enum { MAX_TEXT_BYTES = 64 << 20, MAX_BURST = 32 };

bool rq_api_fail_engine(rq_api_error *out, rq_status status, const rq_error *err)
{
    int http_status = 500;
    switch (status) {
    case RQ_ERR_ARGUMENT:
    case RQ_ERR_FORMAT:
    case RQ_ERR_UNSUPPORTED:
        http_status = 400;
        break;
    case RQ_ERR_CAPACITY:
    case RQ_ERR_MEMORY:
    case RQ_ERR_CANCELLED:
    case RQ_ERR_DEVICE:
    case RQ_ERR_IO:
        http_status = 503;
        break;
    default:
        break;
    }
    return rq_api_fail(out, http_status, NULL, "%s", err->text);
}

void rq_prepared_free(rq_prepared *prepared)
{
    rq_tokens_free(&prepared->tokens);
    rq_free(prepared->boundaries);
    *prepared = (rq_prepared){0};
}

static bool no_memory(rq_api_error *error)
{
    return rq_api_fail(error, 503, NULL, "there is not enough memory for this request");
}

/* ---- prompts ------------------------------------------------------------------------------------------- */

bool rq_prepare_messages(const rq_server *server, const rq_api_request *request, rq_prepared *out,
                         rq_api_error *error)
{
    *out = (rq_prepared){.n_boundaries = request->n_messages};
    out->boundaries = rq_calloc(request->n_messages, sizeof *out->boundaries);
    if (!out->boundaries) return no_memory(error);
    rq_error err = {0};
    rq_status status = rq_chat_tokenize(server->model, request->messages, request->n_messages,
                                        request->opening, &out->tokens, out->boundaries, &err);
    if (status == RQ_OK) return true;
    rq_prepared_free(out);
    return rq_api_fail_engine(error, status, &err);
}

static bool prepare_prompt(const rq_server *server, const rq_prompt *prompt, rq_prepared *out,
                           rq_api_error *error)
{
    *out = (rq_prepared){0};
    if (!prompt->text) {
        out->tokens.ids = rq_malloc(prompt->n_ids * sizeof *prompt->ids);
        if (!out->tokens.ids) return no_memory(error);
        memcpy(out->tokens.ids, prompt->ids, prompt->n_ids * sizeof *prompt->ids);
        out->tokens.n = out->tokens.cap = prompt->n_ids;
        return true;
    }
    rq_error err = {0};
    rq_status status = rq_tokenize(server->model, prompt->text, prompt->bytes,
                                   RQ_PARSE_SPECIAL | RQ_MODEL_BOS, &out->tokens, &err);
    if (status != RQ_OK) return rq_api_fail_engine(error, status, &err);
    if (out->tokens.n > 0) return true;
    /* An empty prompt: start from the beginning-of-sequence token where the model has one. */
    status = rq_tokenize(server->model, "", 0, RQ_ADD_BOS, &out->tokens, &err);
    if (status == RQ_OK && out->tokens.n > 0) return true;
    return rq_api_fail(error, 400, "prompt", "'prompt' is empty, and this model has no token to start from");
}

static bool check_context(const rq_server *server, const rq_prepared *prepared, rq_api_error *error)
{
    size_t n = prepared->tokens.n;
    if (n < server->ctx_limit) return true;
    rq_api_fail(
        error, 400, NULL,
        "the prompt has %zu tokens, but the context of this server holds %u and the answer needs room; "
        "shorten the prompt or restart the server with a larger --ctx-size",
        n, (unsigned)server->ctx_limit);
    error->type = "exceed_context_size_error";
    error->code = "context_length_exceeded";
    error->n_prompt_tokens = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    error->n_ctx = server->ctx_limit;
    return false;
}

static bool prepare_all(rq_job *job, rq_api_error *error)
{
    rq_api_request *request = &job->request;
    bool chat = request->api == RQ_API_CHAT;
    size_t n = chat ? 1 : request->n_prompts;
    job->prompts = rq_calloc(n, sizeof *job->prompts);
    job->choices = rq_calloc(n * request->n, sizeof *job->choices);
    if (!job->prompts || !job->choices) return no_memory(error);
    for (size_t i = 0; i < n; i++) {
        rq_prepared *out = &job->prompts[i];
        bool ok = chat ? rq_prepare_messages(job->server, request, out, error)
                       : prepare_prompt(job->server, &request->prompts[i], out, error);
        job->n_prompts++;
        if (!ok || !check_context(job->server, out, error)) return false;
    }
    job->n_choices = n * request->n;
    if (chat) job->marks = rq_chat_thoughts(job->server->model, request->opening);
    for (size_t i = 0; i < job->n_choices; i++) {
        rq_choice *choice = &job->choices[i];
        choice->index = (uint32_t)i;
        choice->prompt = (uint32_t)(i / request->n);
        choice->text.max = choice->thoughts.max = MAX_TEXT_BYTES;
        rq_answer_start(&choice->answer, request->keep_thoughts ? (rq_thought_marks){0} : job->marks);
        rq_answer_start(&choice->count, job->marks);
        for (size_t k = 0; k < 4; k++) choice->logprobs[k].max = MAX_TEXT_BYTES;
    }
    return true;
}

static void free_job(rq_job *job)
{
    for (size_t i = 0; i < job->n_choices; i++) {
        rq_buf_free(&job->choices[i].text);
        rq_buf_free(&job->choices[i].thoughts);
        rq_answer_free(&job->choices[i].answer);
        rq_answer_free(&job->choices[i].count);
        for (size_t k = 0; k < 4; k++) rq_buf_free(&job->choices[i].logprobs[k]);
    }
    for (size_t i = 0; i < job->n_prompts; i++) rq_prepared_free(&job->prompts[i]);
    rq_free(job->choices);
    rq_free(job->prompts);
    rq_api_request_free(&job->request);
    *job = (rq_job){0};
}

bool rq_job_open(rq_job *job, rq_server *server, rq_api_request *request, rq_api_error *error)
{
    *job = (rq_job){.server = server, .request = *request, .created = time(NULL)};
    *request = (rq_api_request){0};
    bool chat = job->request.api == RQ_API_CHAT;
    snprintf(job->id, sizeof job->id, "%s-%016llx%08llx", chat ? "chatcmpl" : "cmpl",
             (unsigned long long)rq_random_seed(), (unsigned long long)rq_random_seed() & 0xffffffffu);
    job->seed = job->request.seed < 0 ? rq_random_seed() : (uint64_t)job->request.seed;
    uint32_t limit_s = server->config.request_timeout_s;
    if (limit_s) job->deadline_ns = rq_server_now_ns() + (uint64_t)limit_s * 1000000000u;
    if (prepare_all(job, error)) return true;
    free_job(job);
    return false;
}

bool rq_job_enter(rq_job *job, rq_api_error *error)
{
    if (rq_pool_enter(&job->server->pool, &job->waiter, false)) return true;
    atomic_fetch_add(&job->server->metrics.queue_refused, 1);
    return rq_api_fail(error, 503, NULL,
                       "the server is busy: %u requests wait already; try again in a moment",
                       (unsigned)job->server->config.max_queue);
}

/* ---- sessions ------------------------------------------------------------------------------------------ */

/* Remembers what the session holds; without memory it remembers nothing, which costs only reuse. */
static void hold(rq_tokens *held, const rq_token *ids, size_t n)
{
    void *array = held->ids;
    if (!rq_grow(&array, &held->cap, held->n + n, sizeof *ids)) {
        held->n = 0;
        return;
    }
    held->ids = array;
    memcpy(held->ids + held->n, ids, n * sizeof *ids);
    held->n += n;
}

static bool submit(rq_job *job, rq_choice *choice, rq_api_error *error)
{
    const rq_prepared *prompt = &job->prompts[choice->prompt];
    rq_request request = job->request.generation;
    request.sampling.seed = job->seed + choice->index % job->request.n;
    uint32_t room = job->server->ctx_limit - (uint32_t)prompt->tokens.n;
    if (request.max_tokens == 0 || request.max_tokens > room) request.max_tokens = room;
    rq_error err = {0};
    request.fresh = !job->request.cache_prompt;
    rq_status status = rq_submit(choice->slot->session, prompt->tokens.ids, prompt->tokens.n,
                                 prompt->boundaries, prompt->n_boundaries, &request, &err);
    if (status != RQ_OK) {
        rq_pool_give(&job->server->pool, choice->slot);
        choice->slot = NULL;
        return rq_api_fail_engine(error, status, &err);
    }
    choice->slot->held.n = 0;
    hold(&choice->slot->held, prompt->tokens.ids, prompt->tokens.n);
    return true;
}

static size_t running(const rq_job *job)
{
    return job->n_started - job->n_done;
}

/* Starts choices in order while sessions are free; waits up to timeout_ms when none runs yet. */
static bool start_choices(rq_job *job, int timeout_ms, rq_api_error *error)
{
    rq_pool *pool = &job->server->pool;
    while (job->n_started < job->n_choices) {
        rq_choice *choice = &job->choices[job->n_started];
        const rq_tokens *tokens = &job->prompts[choice->prompt].tokens;
        if (running(job) > 0) {
            choice->slot = rq_pool_take_spare(pool, tokens);
        } else {
            if (!job->waiter.queued) rq_pool_enter(pool, &job->waiter, true);
            choice->slot = rq_pool_take(pool, &job->waiter, tokens, timeout_ms);
        }
        if (!choice->slot) return true;
        if (!submit(job, choice, error)) return false;
        job->n_started++;
    }
    return true;
}

static void give_session_back(rq_job *job, rq_choice *choice)
{
    rq_pool_give(&job->server->pool, choice->slot);
    choice->slot = NULL;
}

static void mark_done(rq_job *job, rq_choice *choice)
{
    choice->done = true;
    job->n_done++;
}

/* ---- events -------------------------------------------------------------------------------------------- */

/* Counts a token if it is one of thoughts. */
static void count_thoughts(const rq_job *job, rq_choice *choice, rq_token token)
{
    if (job->marks.open == NULL || token < 0) return;
    size_t bytes = 0;
    const char *text = rq_token_bytes(job->server->model, token, &bytes);
    bool before = rq_answer_thinks(&choice->count);
    rq_answer_add(&choice->count, text, bytes, NULL, NULL);
    if (before || rq_answer_thinks(&choice->count)) {
        choice->n_thought += choice->n_mark + 1;
        choice->n_mark = 0;
    } else {
        choice->n_mark = choice->count.n_mark > 0 ? choice->n_mark + 1 : 0;
    }
}

/* Does the prompt hold an earlier answer whose thoughts the chat format has left out? (An answer opened without any counts:
 * that nothing was thought is left out, too.) */
static bool forgets(const rq_job *job)
{
    const rq_api_request *r = &job->request;
    bool answered = false, forgotten = false;
    for (size_t i = 0; i < r->n_messages && job->marks.forgotten; i++) {
        answered = answered || !strcmp(r->messages[i].role, "assistant");
        forgotten = forgotten || (answered && !strcmp(r->messages[i].role, "user"));
    }
    return forgotten;
}

static void note_progress(const rq_job *job, rq_choice *choice, const rq_event *event)
{
    count_thoughts(job, choice, event->token);
    choice->n_prompt = event->n_prompt;
    choice->n_reused = event->n_reused;
    choice->n_generated = event->n_generated;
    choice->n_drafted = event->n_drafted;
    choice->n_accepted = event->n_accepted;
    choice->finish = event->finish;
    choice->prompt_ms = event->prompt_ms;
    choice->generate_ms = event->generate_ms;
    if (event->finish != RQ_FINISH_NONE)
        snprintf(choice->reuse_note, sizeof choice->reuse_note, "%s%s", event->reuse_note,
                 *event->reuse_note && forgets(job)
                     ? "; the chat format leaves out what earlier answers thought, so these are read again"
                     : "");
    if (event->token >= 0) hold(&choice->slot->held, &event->token, 1);
}

/* Delivers what one choice has, but no more than a burst, waiting up to timeout_ms for the first event. */
static bool drain_choice(rq_job *job, rq_choice *choice, int timeout_ms, rq_job_event *on_event, void *user,
                         rq_api_error *error)
{
    for (int i = 0; i < MAX_BURST; i++) {
        rq_event event;
        rq_error err = {0};
        rq_status status = rq_next(choice->slot->session, &event, timeout_ms, &err);
        if (status == RQ_ERR_TIMEOUT) return true;
        if (status != RQ_OK) return rq_api_fail_engine(error, status, &err);
        note_progress(job, choice, &event);
        if (event.finish != RQ_FINISH_NONE) mark_done(job, choice);
        if (event.finish == RQ_FINISH_ERROR) {
            give_session_back(job, choice);
            bool failed = rq_server_failed(job->server, NULL);
            return rq_api_fail(error, failed ? 503 : 500, NULL, "%s", event.error.text);
        }
        if (event.finish == RQ_FINISH_CANCELLED) {
            give_session_back(job, choice);
            return rq_api_fail(error, 503, NULL, "the server is shutting down");
        }
        /* The event's text belongs to the session, so the session goes back after it was read. */
        bool kept = on_event(user, job, choice, &event);
        if (choice->done) give_session_back(job, choice);
        if (!kept) {
            return rq_api_fail(error, 500, NULL,
                               "the answer needs more memory than the server may use for it");
        }
        if (choice->done) return true;
        timeout_ms = 0;
    }
    return true;
}

rq_job_state rq_job_step(rq_job *job, int timeout_ms, rq_job_event *on_event, void *user, rq_api_error *error)
{
    if (atomic_load(&job->server->phase) == RQ_CANCELLING) {
        rq_api_fail(error, 503, NULL, "the server is shutting down");
        return RQ_JOB_FAILED;
    }
    if (job->deadline_ns && rq_server_now_ns() > job->deadline_ns) {
        atomic_fetch_add(&job->server->metrics.timed_out, 1);
        rq_api_fail(error, 503, NULL, "the request took longer than the %u seconds this server allows",
                    (unsigned)job->server->config.request_timeout_s);
        return RQ_JOB_FAILED;
    }
    if (!start_choices(job, timeout_ms, error)) return RQ_JOB_FAILED;
    /* All sessions share the engine's steps, so waiting for one and then looking at the others loses nothing.
     */
    int wait_ms = timeout_ms;
    for (size_t i = 0; i < job->n_started; i++) {
        rq_choice *choice = &job->choices[i];
        if (choice->done) continue;
        if (!drain_choice(job, choice, wait_ms, on_event, user, error)) return RQ_JOB_FAILED;
        wait_ms = 0;
    }
    return job->n_done == job->n_choices ? RQ_JOB_DONE : RQ_JOB_RUNNING;
}

/* Waits for the final event of a cancelled request. */
static void wait_for_end(rq_session *session)
{
    for (;;) {
        rq_event event;
        rq_status status = rq_next(session, &event, 1000, NULL);
        if (status == RQ_ERR_TIMEOUT) continue;
        if (status != RQ_OK || event.finish != RQ_FINISH_NONE) return;
    }
}

void rq_job_close(rq_job *job)
{
    if (!job->server) return;
    rq_pool_leave(&job->server->pool, &job->waiter);
    for (size_t i = 0; i < job->n_choices; i++) {
        if (job->choices[i].slot) rq_cancel(job->choices[i].slot->session);
    }
    for (size_t i = 0; i < job->n_choices; i++) {
        rq_slot *slot = job->choices[i].slot;
        if (!slot) continue;
        wait_for_end(slot->session);
        size_t length = rq_session_length(slot->session);
        if (slot->held.n > length) slot->held.n = length;
        rq_pool_give(&job->server->pool, slot);
    }
    free_job(job);
}
