/* chat.h - a conversation in rqvk-cli: what was said, and having the model say more. */
#ifndef RQ_CLI_CHAT_H
#define RQ_CLI_CHAT_H

#include "engine/rqvk.h"
#include "tools/cli/terminal.h"
#include "tools/common/args.h"

typedef struct rq_chat {
    rq_terminal *terminal;
    const rq_model *model;
    rq_engine *engine;
    rq_session *session;
    rq_sampling_args *sampling;
    int32_t n_predict;  /* -1: until the context is full */
    bool raw;           /* no chat format: the text itself is continued */
    rq_opening opening; /* of answers: with thoughts, without, or as the chat format does */
    bool special;       /* raw: text such as <|im_end|> is a control token */
    bool ignore_eos;
    rq_message *messages; /* roles are constants, contents are owned */
    size_t n_messages, cap_messages;
    rq_tokens tokens;
    size_t *boundaries;
    size_t cap_boundaries;
    rq_buf answer;
    rq_event last; /* of the last answer; zeroed when there was none */
} rq_chat;

/* Everything but the settings zeroed is a valid, empty conversation. */
void rq_chat_free(rq_chat *chat);

rq_status rq_chat_add(rq_chat *chat, const char *role, const char *text, size_t bytes, rq_error *err);
void rq_chat_drop_last(rq_chat *chat);
void rq_chat_clear(rq_chat *chat, bool keep_system);
/* Sets, replaces or (empty text) removes the system message. */
rq_status rq_chat_set_system(rq_chat *chat, const char *text, rq_error *err);

/* Has the model answer the messages, or (raw) continue `text`; shows the answer as it comes and, for
 * messages, adds it to the conversation. RQ_ERR_CANCELLED after Ctrl-C, with what was written kept. */
rq_status rq_chat_answer(rq_chat *chat, const char *text, size_t bytes, rq_error *err);

/* One line about the last answer. */
void rq_chat_print_timings(const rq_chat *chat);

/* Reads lines and answers them until the person leaves; returns the exit code. */
int rq_chat_loop(rq_chat *chat);

#endif
