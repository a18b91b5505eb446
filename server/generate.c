/* generate.c - /v1/chat/completions and /v1/completions, whole and streamed. */
#include "server/api.h"
#include "server/response.h"

#include "backends/base/mem.h"

#include <string.h>

enum { STEP_MS = 100, MAX_ANSWER_BYTES = 256 << 20, MAX_CHUNK_BYTES = 16 << 20 };

bool rq_parse_body(rq_exchange *exchange, rq_api api, rq_api_request *out, enum MHD_Result *result)
{
    const rq_server *server = exchange->server;
    const rq_parse_limits limits = {.max_values = 65536 + 4 * (size_t)server->ctx_limit,
                                    .n_vocab = server->model_info.n_vocab,
                                    .sampling = server->config.sampling.sampling,
                                    .max_tokens =
                                        server->config.n_predict < 0 ? 0 : (uint32_t)server->config.n_predict,
                                    .keep_thoughts = !strcmp(server->config.reasoning_format, "none")};
    rq_api_error error;
    const char *body = exchange->body.data ? exchange->body.data : "";
    bool ok = rq_api_parse(api, body, exchange->body.len, &limits, out, &error);
    rq_buf_free(&exchange->body);
    if (!ok) *result = rq_reply_error(exchange, &error);
    return ok;
}

static void note_for_log(rq_exchange *exchange)
{
    const rq_job *job = &exchange->job;
    exchange->log_prompt = exchange->log_generated = 0;
    for (size_t i = 0; i < job->n_prompts; i++) exchange->log_prompt += job->prompts[i].tokens.n;
    for (size_t i = 0; i < job->n_choices; i++) exchange->log_generated += job->choices[i].n_generated;
}

static void end_job(rq_exchange *exchange)
{
    if (!exchange->job.server) return;
    note_for_log(exchange);
    rq_job_close(&exchange->job);
    atomic_fetch_sub(&exchange->server->metrics.generating, 1);
}

/* ---- whole ---------------------------------------------------------------------------------------- */

static enum MHD_Result answer_whole(rq_exchange *exchange)
{
    rq_job *job = &exchange->job;
    rq_api_error error;
    rq_job_state state = RQ_JOB_RUNNING;
    rq_pause_timeout(exchange);
    while (state == RQ_JOB_RUNNING) {
        if (rq_client_gone(exchange)) {
            exchange->vanished = true;
            end_job(exchange);
            return MHD_NO;
        }
        state = rq_job_step(job, STEP_MS, rq_keep_event, NULL, &error);
    }
    rq_resume_timeout(exchange);
    if (state == RQ_JOB_FAILED) {
        end_job(exchange);
        return rq_reply_error(exchange, &error);
    }
    rq_buf body = {.max = MAX_ANSWER_BYTES};
    rq_write_answer(&body, job);
    exchange->out_ended = true;
    end_job(exchange);
    if (body.failed) {
        rq_buf_free(&body);
        rq_api_fail(&error, 500, NULL, "the answer needs more memory than the server may use for it");
        return rq_reply_error(exchange, &error);
    }
    return rq_reply(exchange, MHD_HTTP_OK, "application/json", &body);
}

/* ---- streamed ------------------------------------------------------------------------------------------ */

static bool stream_event(void *user, rq_job *job, rq_choice *choice, const rq_event *event)
{
    rq_exchange *exchange = user;
    rq_write_chunk(&exchange->out, job, choice, event, job->n_done == job->n_choices);
    return !exchange->out.failed;
}

static void end_stream(rq_exchange *exchange)
{
    exchange->out_ended = true;
    end_job(exchange);
}

/* Works until there is something to send, the stream has ended, or the client is gone (false). */
static bool work_on_stream(rq_exchange *exchange)
{
    uint64_t ping_ns = (uint64_t)exchange->server->config.ping_s * 1000000000u;
    rq_buf_clear(&exchange->out);
    exchange->out_at = 0;
    while (exchange->out.len == 0) {
        if (rq_client_gone(exchange)) {
            exchange->vanished = true;
            end_job(exchange);
            return false;
        }
        rq_api_error error;
        rq_job_state state = rq_job_step(&exchange->job, STEP_MS, stream_event, exchange, &error);
        if (state == RQ_JOB_FAILED) {
            rq_buf_puts(&exchange->out, "data: ");
            rq_write_error(&exchange->out, &error);
            rq_buf_puts(&exchange->out, "\n\n");
            end_stream(exchange);
        } else if (state == RQ_JOB_DONE) {
            if (exchange->job.request.include_usage) rq_write_usage_chunk(&exchange->out, &exchange->job);
            rq_buf_puts(&exchange->out, "data: [DONE]\n\n");
            end_stream(exchange);
        } else if (exchange->out.len == 0 && rq_server_now_ns() - exchange->out_ns > ping_ns) {
            rq_buf_puts(&exchange->out, ": still at work\n\n");
        }
        if (exchange->out.failed) return false;
    }
    exchange->out_ns = rq_server_now_ns();
    return true;
}

/* libmicrohttpd asks for the next bytes; only when the socket takes them, so a client that does not read
 * holds at most a burst of events here, and the engine's queue is bounded by the context. */
static ssize_t read_stream(void *user, uint64_t position, char *target, size_t capacity)
{
    rq_exchange *exchange = user;
    (void)position;
    if (exchange->out_at == exchange->out.len) {
        if (exchange->out_ended) return MHD_CONTENT_READER_END_OF_STREAM;
        rq_pause_timeout(exchange); /* it is the engine that is waited for, not the client */
        bool filled = work_on_stream(exchange);
        rq_resume_timeout(exchange);
        if (!filled) return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = exchange->out.len - exchange->out_at;
    if (n > capacity) n = capacity;
    for (size_t i = 0; i < n; i++) target[i] = exchange->out.data[exchange->out_at + i];
    exchange->out_at += n;
    return (ssize_t)n;
}

static enum MHD_Result answer_streamed(rq_exchange *exchange)
{
    /* What goes wrong at once is still an HTTP status; later it can only be an event. */
    rq_api_error error;
    exchange->out = (rq_buf){.max = MAX_CHUNK_BYTES};
    exchange->out_ns = rq_server_now_ns();
    if (rq_job_step(&exchange->job, 0, stream_event, exchange, &error) == RQ_JOB_FAILED) {
        end_job(exchange);
        return rq_reply_error(exchange, &error);
    }
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, exchange, NULL);
    if (!response) return MHD_NO;
    rq_add_headers(exchange, response, "text/event-stream; charset=utf-8");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    exchange->status = MHD_HTTP_OK;
    enum MHD_Result result = MHD_queue_response(exchange->connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result generate(rq_exchange *exchange, rq_api api)
{
    rq_api_request request;
    rq_api_error error;
    rq_error why;
    enum MHD_Result result;
    if (rq_server_failed(exchange->server, &why)) {
        rq_api_fail(&error, 503, NULL, "%s", why.text);
        return rq_reply_error(exchange, &error);
    }
    if (!rq_parse_body(exchange, api, &request, &result)) return result;
    bool stream = request.stream;
    if (!rq_job_open(&exchange->job, exchange->server, &request, &error))
        return rq_reply_error(exchange, &error);
    atomic_fetch_add(&exchange->server->metrics.generating, 1);
    if (!rq_job_enter(&exchange->job, &error)) {
        end_job(exchange);
        return rq_reply_error(exchange, &error);
    }
    return stream ? answer_streamed(exchange) : answer_whole(exchange);
}

enum MHD_Result rq_api_chat(rq_exchange *exchange)
{
    return generate(exchange, RQ_API_CHAT);
}

enum MHD_Result rq_api_completions(rq_exchange *exchange)
{
    return generate(exchange, RQ_API_COMPLETION);
}
