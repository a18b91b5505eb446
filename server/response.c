/* response.c - see response.h. The shapes are those of OpenAI's API reference for chat completions and
 * completions; `timings` has llama.cpp's field names. */
#include "server/response.h"

#include "server/json_check.h"

#include <math.h>
#include <string.h>

/* ---- values -------------------------------------------------------------------------------------------- */

void rq_json_string(rq_buf *out, const char *text, size_t bytes)
{
    rq_buf_append(out, "\"", 1);
    for (size_t i = 0; i < bytes;) {
        size_t run = i;
        while (run < bytes && (unsigned char)text[run] >= 0x20 && (unsigned char)text[run] < 0x7F &&
               text[run] != '"' && text[run] != '\\') {
            run++;
        }
        if (run > i) {
            rq_buf_append(out, text + i, run - i);
            i = run;
            continue;
        }
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            rq_buf_printf(out, "\\%c", c);
        } else if (c == '\n') {
            rq_buf_puts(out, "\\n");
        } else if (c < 0x80) {
            rq_buf_printf(out, "\\u%04x", c);
        } else {
            size_t length = rq_json_utf8_length(text + i, bytes - i);
            if (length) {
                rq_buf_append(out, text + i, length);
            } else {
                rq_buf_puts(out, "\xEF\xBF\xBD");
                length = 1;
            }
            i += length;
            continue;
        }
        i++;
    }
    rq_buf_append(out, "\"", 1);
}

void rq_json_number(rq_buf *out, double value)
{
    if (isnan(value)) value = 0;
    if (value > 9999 && isinf(value)) value = 9999;
    if (value < -9999) value = -9999;
    rq_buf_printf(out, "%.7g", value);
}

static void json_text(rq_buf *out, const char *text)
{
    rq_json_string(out, text, strlen(text));
}

void rq_write_error(rq_buf *out, const rq_api_error *error)
{
    rq_buf_puts(out, "{\"error\":{\"message\":");
    json_text(out, error->error.text);
    rq_buf_printf(out, ",\"type\":\"%s\",\"param\":", error->type);
    if (error->param[0])
        json_text(out, error->param);
    else
        rq_buf_puts(out, "null");
    rq_buf_puts(out, ",\"code\":");
    if (error->code)
        json_text(out, error->code);
    else
        rq_buf_puts(out, "null");
    if (error->n_ctx) {
        rq_buf_printf(out, ",\"n_prompt_tokens\":%u,\"n_ctx\":%u", (unsigned)error->n_prompt_tokens,
                      (unsigned)error->n_ctx);
    }
    rq_buf_puts(out, "}}");
}

/* ---- log-probabilities --------------------------------------------------------------------------------- */

static void chat_token(rq_buf *out, const rq_model *model, rq_token_logprob lp)
{
    size_t bytes = 0;
    const char *text = rq_token_bytes(model, lp.token, &bytes);
    rq_buf_puts(out, "{\"token\":");
    rq_json_string(out, text, bytes);
    rq_buf_puts(out, ",\"logprob\":");
    rq_json_number(out, lp.logprob);
    rq_buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < bytes; i++) rq_buf_printf(out, "%s%u", i ? "," : "", (unsigned char)text[i]);
    rq_buf_puts(out, "]");
}

static void chat_logprobs(rq_buf *out, const rq_model *model, const rq_event *event)
{
    if (out->len) rq_buf_puts(out, ",");
    chat_token(out, model, event->chosen);
    rq_buf_puts(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < event->n_top; i++) {
        if (i) rq_buf_puts(out, ",");
        chat_token(out, model, event->top[i]);
        rq_buf_puts(out, "}");
    }
    rq_buf_puts(out, "]}");
}

/* A token as a key or string: OpenAI writes bytes that are no text as "bytes:\xNN". */
static void completion_token(rq_buf *out, const char *text, size_t bytes)
{
    if (rq_json_utf8_valid(text, bytes)) {
        rq_json_string(out, text, bytes);
        return;
    }
    rq_buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < bytes; i++) rq_buf_printf(out, "\\\\x%02x", (unsigned char)text[i]);
    rq_buf_puts(out, "\"");
}

enum { LP_TOKENS, LP_VALUES, LP_TOP, LP_OFFSETS };

static void completion_logprobs(rq_choice *choice, const rq_model *model, const rq_event *event)
{
    rq_buf *out = choice->logprobs;
    size_t bytes = 0;
    const char *text = rq_token_bytes(model, event->chosen.token, &bytes);
    for (size_t k = 0; k < 4 && out[LP_TOKENS].len; k++) rq_buf_puts(&out[k], ",");
    completion_token(&out[LP_TOKENS], text, bytes);
    rq_json_number(&out[LP_VALUES], event->chosen.logprob);
    rq_buf_printf(&out[LP_OFFSETS], "%zu", choice->characters);
    rq_buf_puts(&out[LP_TOP], "{");
    for (uint32_t i = 0; i < event->n_top; i++) {
        size_t top_bytes = 0;
        const char *top = rq_token_bytes(model, event->top[i].token, &top_bytes);
        if (i) rq_buf_puts(&out[LP_TOP], ",");
        completion_token(&out[LP_TOP], top, top_bytes);
        rq_buf_puts(&out[LP_TOP], ":");
        rq_json_number(&out[LP_TOP], event->top[i].logprob);
    }
    rq_buf_puts(&out[LP_TOP], "}");
    for (size_t i = 0; i < bytes; i++) choice->characters += ((unsigned char)text[i] & 0xC0) != 0x80;
}

static void keep_logprobs(const rq_job *job, rq_choice *choice, const rq_event *event)
{
    if (job->request.generation.n_logprobs < 0 || event->token < 0) return;
    if (job->request.api == RQ_API_CHAT) {
        chat_logprobs(&choice->logprobs[0], job->server->model, event);
    } else {
        completion_logprobs(choice, job->server->model, event);
    }
}

static void write_logprobs(rq_buf *out, const rq_job *job, const rq_choice *choice)
{
    const rq_buf *lp = choice->logprobs;
    rq_buf_puts(out, "\"logprobs\":");
    if (job->request.generation.n_logprobs < 0) {
        rq_buf_puts(out, "null");
    } else if (job->request.api == RQ_API_CHAT) {
        rq_buf_puts(out, "{\"content\":[");
        rq_buf_append(out, lp[0].data, lp[0].len);
        rq_buf_puts(out, "],\"refusal\":null}");
    } else {
        static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                            "],\"text_offset\":["};
        for (size_t k = 0; k < 4; k++) {
            rq_buf_puts(out, names[k]);
            rq_buf_append(out, lp[k].data, lp[k].len);
        }
        rq_buf_puts(out, "]}");
    }
}

/* ---- what both shapes share ---------------------------------------------------------------------------- */

static const char *finish_name(rq_finish finish)
{
    switch (finish) {
    case RQ_FINISH_EOS:
    case RQ_FINISH_STOP:
        return "\"stop\"";
    case RQ_FINISH_LENGTH:
        return "\"length\"";
    default:
        return "null";
    }
}

static void write_head(rq_buf *out, const rq_job *job, const char *object)
{
    rq_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", job->id, object,
                  (long long)job->created);
    json_text(out, job->server->model_id);
    rq_buf_printf(out, ",\"system_fingerprint\":\"b-rqvk-%s-%s\"", RQVK_VERSION,
                  job->server->engine_info.backend);
}

/* Tokens of a prompt that none of its choices evaluated. Choices share the work; each evaluates the last token, which
 * counts once. */
static uint64_t cached_tokens(const rq_job *job, size_t prompt)
{
    uint64_t n = job->prompts[prompt].tokens.n, evaluated = 0, repeated = 0;
    for (size_t i = 0; i < job->request.n; i++) {
        const rq_choice *c = &job->choices[prompt * job->request.n + i];
        evaluated += c->n_prompt - c->n_reused;
        repeated += evaluated > 0 && c->n_prompt > 0 && i > 0;
    }
    if (evaluated == 0) return 0; /* nothing has started */
    evaluated -= repeated;
    return evaluated < n ? n - evaluated : 0;
}

static void write_usage(rq_buf *out, const rq_job *job)
{
    uint64_t prompt = 0, cached = 0, completion = 0, thought = 0;
    for (size_t i = 0; i < job->n_prompts; i++) {
        prompt += job->prompts[i].tokens.n;
        cached += cached_tokens(job, i);
    }
    for (size_t i = 0; i < job->n_choices; i++) {
        completion += job->choices[i].n_generated;
        thought += job->choices[i].n_thought;
    }
    uint64_t total = prompt + completion;
    rq_buf_printf(out,
                  "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%llu}",
                  (unsigned long long)prompt, (unsigned long long)completion, (unsigned long long)total,
                  (unsigned long long)cached);
    if (job->marks.open)
        rq_buf_printf(out, ",\"completion_tokens_details\":{\"reasoning_tokens\":%llu}",
                      (unsigned long long)thought);
    rq_buf_puts(out, "}");
}

/* Sums over the choices; rates over the time in which they were made, which for several choices at once
 * is the rate of one of them. */
static void write_timings(rq_buf *out, const rq_job *job)
{
    double prompt_ms = 0, generate_ms = 0;
    uint64_t cached = 0, prompt = 0, generated = 0, drafted = 0, accepted = 0;
    for (size_t i = 0; i < job->n_choices; i++) {
        const rq_choice *c = &job->choices[i];
        cached += c->n_reused;
        prompt += c->n_prompt - c->n_reused;
        generated += c->n_generated;
        drafted += c->n_drafted;
        accepted += c->n_accepted;
        prompt_ms += c->prompt_ms;
        generate_ms += c->generate_ms;
    }
    /* generate_ms runs from the first token of a choice to its last: n tokens are n - 1 intervals. */
    uint64_t intervals = generated > job->n_choices ? generated - job->n_choices : 0;
    rq_buf_printf(
        out,
        "\"timings\":{\"cache_n\":%llu,\"prompt_n\":%llu,\"prompt_ms\":%.3f,\"prompt_per_token_ms\":%.3f,"
        "\"prompt_per_second\":%.3f,\"predicted_n\":%llu,\"predicted_ms\":%.3f,"
        "\"predicted_per_token_ms\":%.3f,\"predicted_per_second\":%.3f",
        (unsigned long long)cached, (unsigned long long)prompt, prompt_ms,
        prompt ? prompt_ms / (double)prompt : 0, prompt_ms > 0 ? (double)prompt * 1e3 / prompt_ms : 0,
        (unsigned long long)generated, generate_ms, intervals ? generate_ms / (double)intervals : 0,
        generate_ms > 0 ? (double)intervals * 1e3 / generate_ms : 0);
    if (drafted)
        rq_buf_printf(out, ",\"draft_n\":%llu,\"draft_n_accepted\":%llu", (unsigned long long)drafted,
                      (unsigned long long)accepted);
    rq_buf_puts(out, ",\"cache_note\":"); /* why not more of the first prompt was in the cache */
    json_text(out, job->choices[0].reuse_note);
    rq_buf_puts(out, "}");
}

/* ---- whole answers ------------------------------------------------------------------------------------- */

/* Divides what the event brings. */
static bool divide(rq_choice *choice, const rq_event *event, rq_answer_part *part, void *user)
{
    bool ok = rq_answer_add(&choice->answer, event->text, event->text_bytes, part, user);
    if (event->finish != RQ_FINISH_NONE) ok = rq_answer_end(&choice->answer, part, user) && ok;
    return ok;
}

static void keep_part(void *user, bool thought, const char *text, size_t bytes)
{
    rq_choice *choice = user;
    rq_buf_append(thought ? &choice->thoughts : &choice->text, text, bytes);
}

bool rq_keep_event(void *user, rq_job *job, rq_choice *choice, const rq_event *event)
{
    (void)user;
    bool ok = divide(choice, event, keep_part, choice);
    keep_logprobs(job, choice, event);
    ok = ok && !choice->text.failed && !choice->thoughts.failed;
    for (size_t k = 0; k < 4; k++) ok = ok && !choice->logprobs[k].failed;
    return ok;
}

/* The text of a prompt as `echo` repeats it. */
static void echo_prompt(rq_buf *out, const rq_job *job, const rq_choice *choice)
{
    if (!job->request.echo) return;
    const rq_prompt *prompt = &job->request.prompts[choice->prompt];
    if (prompt->text) {
        rq_buf_append(out, prompt->text, prompt->bytes);
        return;
    }
    char *text = NULL;
    if (rq_detokenize(job->server->model, prompt->ids, prompt->n_ids, true, &text, NULL) != RQ_OK) {
        out->failed = true;
        return;
    }
    rq_buf_puts(out, text);
    rq_string_free(text);
}

static void write_text(rq_buf *out, const rq_job *job, const rq_choice *choice)
{
    if (!job->request.echo) {
        rq_json_string(out, choice->text.data ? choice->text.data : "", choice->text.len);
        return;
    }
    rq_buf joined = {.max = out->max};
    echo_prompt(&joined, job, choice);
    rq_buf_append(&joined, choice->text.data, choice->text.len);
    if (joined.failed) out->failed = true;
    rq_json_string(out, joined.data ? joined.data : "", joined.len);
    rq_buf_free(&joined);
}

void rq_write_answer(rq_buf *out, const rq_job *job)
{
    bool chat = job->request.api == RQ_API_CHAT;
    write_head(out, job, chat ? "chat.completion" : "text_completion");
    rq_buf_puts(out, ",\"choices\":[");
    for (size_t i = 0; i < job->n_choices; i++) {
        const rq_choice *choice = &job->choices[i];
        rq_buf_printf(out, "%s{\"index\":%zu,", i ? "," : "", i);
        rq_buf_puts(out, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
        write_text(out, job, choice);
        if (choice->thoughts.len) {
            rq_buf_puts(out, ",\"reasoning_content\":");
            rq_json_string(out, choice->thoughts.data, choice->thoughts.len);
        }
        rq_buf_puts(out, chat ? ",\"refusal\":null}," : ",");
        write_logprobs(out, job, choice);
        rq_buf_printf(out, ",\"finish_reason\":%s}", finish_name(choice->finish));
    }
    rq_buf_puts(out, "],");
    write_usage(out, job);
    rq_buf_puts(out, ",");
    write_timings(out, job);
    rq_buf_puts(out, "}");
}

/* ---- streams ------------------------------------------------------------------------------------------- */

static void open_chunk(rq_buf *out, const rq_job *job, const rq_choice *choice)
{
    bool chat = job->request.api == RQ_API_CHAT;
    rq_buf_puts(out, "data: ");
    write_head(out, job, chat ? "chat.completion.chunk" : "text_completion");
    rq_buf_printf(out, ",\"choices\":[{\"index\":%u,%s", (unsigned)choice->index,
                  chat ? "\"delta\":{" : "\"text\":");
}

static void close_chunk(rq_buf *out, const rq_job *job, const rq_choice *choice, rq_finish finish,
                        bool timings)
{
    bool chat = job->request.api == RQ_API_CHAT;
    rq_buf_puts(out, chat ? "}," : ",");
    write_logprobs(out, job, choice);
    rq_buf_printf(out, ",\"finish_reason\":%s}]%s", finish_name(finish),
                  job->request.include_usage ? ",\"usage\":null" : "");
    if (timings) {
        rq_buf_puts(out, ",");
        write_timings(out, job);
    }
    rq_buf_puts(out, "}\n\n");
}

/* The first chunk of a choice: the role of a chat, the repeated prompt of a completion with `echo`. */
static void announce(rq_buf *out, rq_job *job, rq_choice *choice)
{
    if (choice->announced) return;
    choice->announced = true;
    if (job->request.api == RQ_API_CHAT) {
        open_chunk(out, job, choice);
        rq_buf_puts(out, "\"role\":\"assistant\",\"content\":\"\"");
        close_chunk(out, job, choice, RQ_FINISH_NONE, false);
    } else if (job->request.echo) {
        open_chunk(out, job, choice);
        rq_buf echoed = {.max = out->max};
        echo_prompt(&echoed, job, choice);
        rq_json_string(out, echoed.data ? echoed.data : "", echoed.len);
        if (echoed.failed) out->failed = true;
        rq_buf_free(&echoed);
        close_chunk(out, job, choice, RQ_FINISH_NONE, false);
    }
}

typedef struct chunk_writer {
    rq_buf *out;
    const rq_job *job;
    rq_choice *choice;
} chunk_writer;

/* A chunk of its own for each part; the first takes the log-probabilities. */
static void write_part(void *user, bool thought, const char *text, size_t bytes)
{
    const chunk_writer *w = user;
    open_chunk(w->out, w->job, w->choice);
    if (w->job->request.api == RQ_API_CHAT)
        rq_buf_puts(w->out, thought ? "\"reasoning_content\":" : "\"content\":");
    rq_json_string(w->out, text, bytes);
    close_chunk(w->out, w->job, w->choice, RQ_FINISH_NONE, false);
    for (size_t k = 0; k < 4; k++) rq_buf_clear(&w->choice->logprobs[k]);
}

void rq_write_chunk(rq_buf *out, rq_job *job, rq_choice *choice, const rq_event *event, bool last_of_job)
{
    bool chat = job->request.api == RQ_API_CHAT;
    chunk_writer w = {out, job, choice};
    announce(out, job, choice);
    keep_logprobs(job, choice, event);
    if (!divide(choice, event, write_part, &w)) out->failed = true;
    if (choice->logprobs[0].len) write_part(&w, rq_answer_thinks(&choice->answer), "", 0);
    if (event->finish != RQ_FINISH_NONE) {
        open_chunk(out, job, choice);
        if (!chat) rq_buf_puts(out, "\"\"");
        close_chunk(out, job, choice, event->finish, last_of_job && !job->request.include_usage);
    }
}

void rq_write_usage_chunk(rq_buf *out, const rq_job *job)
{
    bool chat = job->request.api == RQ_API_CHAT;
    rq_buf_puts(out, "data: ");
    write_head(out, job, chat ? "chat.completion.chunk" : "text_completion");
    rq_buf_puts(out, ",\"choices\":[],");
    write_usage(out, job);
    rq_buf_puts(out, ",");
    write_timings(out, job);
    rq_buf_puts(out, "}\n\n");
}
