/* chat.c - see chat.h. */
#include "tools/cli/chat.h"

#include "backends/base/mem.h"
#include "tools/common/progress.h"

#include <stdio.h>
#include <string.h>

void rq_chat_drop_last(rq_chat *chat)
{
    if (chat->n_messages) rq_free((char *)chat->messages[--chat->n_messages].content);
}

void rq_chat_clear(rq_chat *chat, bool keep_system)
{
    size_t keep = keep_system && chat->n_messages && !strcmp(chat->messages[0].role, "system");
    while (chat->n_messages > keep) rq_chat_drop_last(chat);
}

void rq_chat_free(rq_chat *chat)
{
    rq_chat_clear(chat, false);
    rq_free(chat->messages);
    rq_free(chat->boundaries);
    rq_tokens_free(&chat->tokens);
    rq_buf_free(&chat->answer);
    chat->messages = NULL;
    chat->boundaries = NULL;
    chat->cap_messages = chat->cap_boundaries = 0;
}

static rq_status no_memory(rq_error *err)
{
    return rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory for this conversation");
}

rq_status rq_chat_add(rq_chat *chat, const char *role, const char *text, size_t bytes, rq_error *err)
{
    void *array = chat->messages;
    if (!rq_grow(&array, &chat->cap_messages, chat->n_messages + 1, sizeof *chat->messages))
        return no_memory(err);
    chat->messages = array;
    char *copy = rq_strndup(text, bytes);
    if (!copy) return no_memory(err);
    chat->messages[chat->n_messages++] = (rq_message){.role = role, .content = copy, .content_bytes = bytes};
    return RQ_OK;
}

rq_status rq_chat_set_system(rq_chat *chat, const char *text, rq_error *err)
{
    bool has = chat->n_messages && !strcmp(chat->messages[0].role, "system");
    if (!*text) {
        if (!has) return RQ_OK;
        rq_free((char *)chat->messages[0].content);
        memmove(chat->messages, chat->messages + 1, --chat->n_messages * sizeof *chat->messages);
        return RQ_OK;
    }
    rq_status status = rq_chat_add(chat, "system", text, strlen(text), err);
    if (status != RQ_OK) return status;
    rq_message added = chat->messages[chat->n_messages - 1];
    if (has) {
        chat->n_messages--;
        rq_free((char *)chat->messages[0].content);
    } else {
        memmove(chat->messages + 1, chat->messages, (chat->n_messages - 1) * sizeof *chat->messages);
    }
    chat->messages[0] = added;
    return RQ_OK;
}

/* ---- answering ----------------------------------------------------------------------------------------- */

static rq_status tokenize(rq_chat *chat, const char *text, size_t bytes, size_t *n_boundaries, rq_error *err)
{
    chat->tokens.n = 0;
    *n_boundaries = 0;
    if (chat->raw) {
        unsigned flags = RQ_MODEL_BOS | (chat->special ? RQ_PARSE_SPECIAL : 0);
        rq_status status = rq_tokenize(chat->model, text, bytes, flags, &chat->tokens, err);
        if (status == RQ_OK && chat->tokens.n == 0) {
            status = rq_tokenize(chat->model, "", 0, RQ_ADD_BOS, &chat->tokens, err);
        }
        if (status == RQ_OK && chat->tokens.n == 0)
            status = rq_fail(err, RQ_ERR_ARGUMENT, "the prompt is empty");
        return status;
    }
    void *array = chat->boundaries;
    if (!rq_grow(&array, &chat->cap_boundaries, chat->n_messages, sizeof *chat->boundaries))
        return no_memory(err);
    chat->boundaries = array;
    *n_boundaries = chat->n_messages;
    return rq_chat_tokenize(chat->model, chat->messages, chat->n_messages, chat->opening, &chat->tokens,
                            chat->boundaries, err);
}

static uint64_t step_tokens(const rq_chat *chat)
{
    rq_engine_stats stats;
    rq_engine_get_stats(chat->engine, &stats);
    return stats.step_tokens;
}

static rq_status submit(rq_chat *chat, size_t n_boundaries, rq_error *err)
{
    rq_request request = rq_request_default();
    rq_sampling_args_finish(chat->sampling);
    request.sampling = chat->sampling->sampling;
    request.max_tokens = chat->n_predict < 0 ? 0 : (uint32_t)chat->n_predict;
    request.ignore_eos = chat->ignore_eos;
    return rq_submit(chat->session, chat->tokens.ids, chat->tokens.n, chat->boundaries, n_boundaries,
                     &request, err);
}

/* Shows events until the last one. While the prompt is worked on, a bar shows how far. */
static rq_status follow(rq_chat *chat, rq_error *err)
{
    uint64_t base = step_tokens(chat);
    rq_progress bar = rq_progress_start(stderr, "prompt", "tokens", chat->tokens.n);
    bool watched = rq_terminal_is_watched(chat->terminal), answering = false, interrupted = false,
         shown = true;
    for (;;) {
        rq_event event;
        rq_status status = rq_next(chat->session, &event, 50, err);
        if (!interrupted && rq_terminal_interrupted(chat->terminal)) {
            interrupted = true;
            rq_cancel(chat->session);
        }
        if (status == RQ_ERR_TIMEOUT) {
            uint64_t done = step_tokens(chat) - base;
            if (watched && !answering) rq_progress_set(&bar, done < bar.total ? done : bar.total);
            continue;
        }
        if (!answering) rq_progress_end(&bar);
        answering = true;
        if (status != RQ_OK) return status;
        rq_buf_append(&chat->answer, event.text, event.text_bytes);
        if (shown) shown = rq_terminal_write(chat->terminal, event.text, event.text_bytes);
        if (!shown && !interrupted) {
            interrupted = true;
            rq_cancel(chat->session);
        }
        if (event.finish == RQ_FINISH_NONE) continue;
        chat->last = event;
        chat->last.text = "";
        rq_terminal_end_line(chat->terminal);
        if (event.finish == RQ_FINISH_ERROR) return rq_fail(err, RQ_ERR_DEVICE, "%s", event.error.text);
        if (!shown) return rq_fail(err, RQ_ERR_IO, "the output could not be written");
        return interrupted ? rq_fail(err, RQ_ERR_CANCELLED, "stopped") : RQ_OK;
    }
}

rq_status rq_chat_answer(rq_chat *chat, const char *text, size_t bytes, rq_error *err)
{
    size_t n_boundaries;
    chat->last = (rq_event){0};
    chat->answer.max = 64 << 20;
    rq_buf_clear(&chat->answer);
    rq_status status = tokenize(chat, text, bytes, &n_boundaries, err);
    if (status == RQ_OK) status = submit(chat, n_boundaries, err);
    if (status != RQ_OK) return status;
    status = follow(chat, err);
    if (chat->raw || (status != RQ_OK && status != RQ_ERR_CANCELLED)) return status;
    rq_status added =
        rq_chat_add(chat, "assistant", chat->answer.data ? chat->answer.data : "", chat->answer.len, err);
    return added == RQ_OK ? status : added;
}

void rq_chat_print_timings(const rq_chat *chat)
{
    const rq_event *e = &chat->last;
    if (!e->n_prompt) return;
    uint32_t evaluated = e->n_prompt - e->n_reused;
    double prompt_rate = e->prompt_ms > 0 ? evaluated * 1e3 / e->prompt_ms : 0;
    double rate = e->generate_ms > 0 && e->n_generated > 1 ? (e->n_generated - 1) * 1e3 / e->generate_ms : 0;
    char drafts[64] = "";
    if (e->n_drafted)
        snprintf(drafts, sizeof drafts, " (%u of %u guesses right)", (unsigned)e->n_accepted,
                 (unsigned)e->n_drafted);
    fprintf(stderr, "prompt %u tokens (%u reused), %.1f tokens/s; answer %u tokens%s, %.2f tokens/s%s\n",
            (unsigned)e->n_prompt, (unsigned)e->n_reused, prompt_rate, (unsigned)e->n_generated, drafts, rate,
            e->finish == RQ_FINISH_LENGTH ? "; cut off at the limit" : "");
}
