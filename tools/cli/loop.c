/* loop.c - rqvk-cli's interactive part: lines and commands. */
#include "tools/cli/chat.h"

#include <stdio.h>
#include <string.h>

typedef enum outcome { GO_ON, LEAVE, BROKEN } outcome;

static void say(const char *text)
{
    fprintf(stderr, "%s\n", text);
}

/* ---- commands ------------------------------------------------------------------------------------------ */

typedef outcome command(rq_chat *chat, const char *argument);

static command run_help, run_exit, run_clear, run_system, run_regen, run_stats;

static const struct {
    const char *name, *argument, *help;
    command *run;
} commands[] = {
    {"/help", "", "this list", run_help},
    {"/clear", "", "start a new conversation (the system message stays)", run_clear},
    {"/system", "TEXT", "set the system message, or remove it, and start a new conversation", run_system},
    {"/regen", "", "have the last answer written again", run_regen},
    {"/stats", "", "what the last answer took, and how full the context is", run_stats},
    {"/exit", "", "leave; Ctrl-D and Ctrl-C at an empty prompt do the same", run_exit},
    {"/quit", "", "the same", run_exit},
};

static outcome run_help(rq_chat *chat, const char *argument)
{
    (void)chat;
    (void)argument;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        fprintf(stderr, "  %-8s %-5s %s\n", commands[i].name, commands[i].argument, commands[i].help);
    }
    say("  A line that ends with a backslash goes on in the next. Ctrl-C stops an answer.");
    return GO_ON;
}

static outcome run_exit(rq_chat *chat, const char *argument)
{
    (void)chat;
    (void)argument;
    return LEAVE;
}

static outcome run_clear(rq_chat *chat, const char *argument)
{
    (void)argument;
    rq_chat_clear(chat, true);
    chat->last = (rq_event){0};
    say("new conversation");
    return GO_ON;
}

static outcome run_system(rq_chat *chat, const char *argument)
{
    rq_error err = {0};
    rq_chat_clear(chat, false);
    if (rq_chat_set_system(chat, argument, &err) != RQ_OK) {
        say(err.text);
        return GO_ON;
    }
    say(*argument ? "system message set, new conversation" : "no system message, new conversation");
    return GO_ON;
}

/* Reports how an answer ended; BROKEN when there can be no further one. */
static outcome after_answer(rq_chat *chat, rq_status status, const rq_error *err)
{
    if (status == RQ_OK || status == RQ_ERR_CANCELLED) {
        if (status == RQ_ERR_CANCELLED) say("(stopped)");
        if (rq_terminal_is_watched(chat->terminal)) rq_chat_print_timings(chat);
        return GO_ON;
    }
    if (!chat->raw) rq_chat_drop_last(chat); /* the question, so that it can be asked again */
    say(err->text);
    if (status == RQ_ERR_CAPACITY) say("/clear starts a new conversation");
    return status == RQ_ERR_DEVICE || status == RQ_ERR_IO ? BROKEN : GO_ON;
}

static outcome run_regen(rq_chat *chat, const char *argument)
{
    (void)argument;
    size_t n = chat->n_messages;
    if (chat->raw || n < 2 || strcmp(chat->messages[n - 1].role, "assistant") != 0) {
        say("there is no answer to write again");
        return GO_ON;
    }
    rq_chat_drop_last(chat);
    rq_error err = {0};
    return after_answer(chat, rq_chat_answer(chat, NULL, 0, &err), &err);
}

static outcome run_stats(rq_chat *chat, const char *argument)
{
    (void)argument;
    rq_engine_info info;
    rq_engine_describe(chat->engine, &info);
    rq_chat_print_timings(chat);
    if (chat->last.n_prompt && chat->last.reuse_note && *chat->last.reuse_note) {
        fprintf(stderr, "not all was reused: %s\n", chat->last.reuse_note);
    }
    fprintf(stderr, "context: %zu of %u tokens; %s, %u threads; cache %s/%s, %.0f MB\n",
            rq_session_length(chat->session), (unsigned)info.n_ctx, info.device, (unsigned)info.n_threads,
            info.type_k, info.type_v, (double)info.cache_bytes / 1e6);
    return GO_ON;
}

static outcome run_command(rq_chat *chat, const char *line)
{
    size_t name = strcspn(line, " \t");
    const char *argument = line + name + strspn(line + name, " \t");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strlen(commands[i].name) == name && !memcmp(commands[i].name, line, name)) {
            return commands[i].run(chat, argument);
        }
    }
    say("there is no such command; /help lists them");
    return GO_ON;
}

/* ---- lines --------------------------------------------------------------------------------------------- */

/* Reads a message, which backslashes at line ends continue. */
static rq_line read_message(rq_chat *chat, rq_buf *message)
{
    const char *prompt = "> ";
    rq_buf_clear(message);
    for (;;) {
        const char *text = NULL;
        rq_line line = rq_terminal_read(chat->terminal, prompt, &text);
        if (line != RQ_LINE_TEXT) return line;
        size_t n = strlen(text);
        bool more = n > 0 && text[n - 1] == '\\';
        rq_buf_append(message, text, n - more);
        if (message->failed) return RQ_LINE_END;
        if (!more) return RQ_LINE_TEXT;
        rq_buf_puts(message, "\n");
        prompt = "  ";
    }
}

static outcome answer_message(rq_chat *chat, const rq_buf *message)
{
    rq_error err = {0};
    rq_status status = RQ_OK;
    if (!chat->raw) status = rq_chat_add(chat, "user", message->data, message->len, &err);
    if (status != RQ_OK) {
        say(err.text);
        return GO_ON;
    }
    status = rq_chat_answer(chat, message->data, message->len, &err);
    return after_answer(chat, status, &err);
}

int rq_chat_loop(rq_chat *chat)
{
    rq_buf message = {.max = 64 << 20};
    outcome next = GO_ON;
    bool warned = false;
    while (next == GO_ON) {
        rq_line line = read_message(chat, &message);
        if (line == RQ_LINE_END) break;
        if (line == RQ_LINE_INTERRUPTED) {
            if (warned) break;
            warned = true;
            say("(Ctrl-C again leaves)");
            continue;
        }
        warned = false;
        if (!message.len) continue;
        next = message.data[0] == '/' ? run_command(chat, message.data) : answer_message(chat, &message);
    }
    rq_buf_free(&message);
    return next == BROKEN ? 1 : 0;
}
