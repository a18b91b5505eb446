/* rqvk-cli.c - talk to a model in a terminal, or have it answer once. */
#include "backends/base/buf.h"
#include "tools/cli/chat.h"
#include "tools/common/args.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef struct cli_config {
    rq_engine_args engine;
    rq_sampling_args sampling;
    const char *prompt, *prompt_file, *system;
    const char *think;  /* "on", "off" or NULL */
    rq_opening opening; /* what it says */
    int32_t n_predict;
    bool chat, special, interactive, ignore_eos, verbose;
} cli_config;

static void add_options(rq_options *options, cli_config *c)
{
    const rq_option list[] = {
        {.names = "-p,--prompt",
         .kind = RQ_OPT_STRING,
         .target = &c->prompt,
         .help = "answer this once and leave; without it the prompt comes from standard input, or from a "
                 "conversation "
                 "when that is a terminal"},
        {.names = "-f,--file",
         .kind = RQ_OPT_STRING,
         .target = &c->prompt_file,
         .value = "FILE",
         .help = "read the prompt from a file"},
        {.names = "-sys,--system,--system-prompt",
         .kind = RQ_OPT_STRING,
         .target = &c->system,
         .help = "the system message"},
        rq_option_predict(&c->n_predict, "-1, until the model ends or the context is full",
                          "most tokens of an answer"),
        {.names = "--chat",
         .kind = RQ_OPT_FLAG,
         .target = &c->chat,
         .help = "use the model's chat format; --no-chat continues the text itself"},
        {.names = "--think",
         .kind = RQ_OPT_STRING,
         .target = &c->think,
         .value = "HOW",
         .shown = "as its template does",
         .help = "on or off: whether a model that can think first does"},
        {.names = "--special",
         .kind = RQ_OPT_FLAG,
         .target = &c->special,
         .help = "with --no-chat: text such as <|im_end|> stands for the control token"},
        {.names = "-i,--interactive",
         .kind = RQ_OPT_FLAG,
         .target = &c->interactive,
         .help = "go on with a conversation after -p, or although standard input is no terminal"},
        {.names = "--ignore-eos",
         .kind = RQ_OPT_FLAG,
         .target = &c->ignore_eos,
         .help = "never let the model end its answer"},
        {.names = "-v,--verbose",
         .kind = RQ_OPT_FLAG,
         .target = &c->verbose,
         .help = "say what the engine decided at its start"},
    };
    rq_options_heading(options, "Conversation");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
}

static void log_line(void *user, const char *line)
{
    (void)user;
    fprintf(stderr, "%s\n", line);
}

static rq_status read_all(FILE *file, const char *name, rq_buf *out, rq_error *err)
{
    char piece[16384];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) rq_buf_append(out, piece, n);
    if (ferror(file)) return rq_fail(err, RQ_ERR_IO, "%s: cannot be read: %s", name, strerror(errno));
    if (out->failed) return rq_fail(err, RQ_ERR_MEMORY, "%s: the prompt is too long", name);
    return RQ_OK;
}

/* Puts the prompt together; *given tells whether there is one. */
static rq_status find_prompt(const cli_config *c, const rq_terminal *terminal, rq_buf *out, bool *given,
                             rq_error *err)
{
    *given = true;
    if (c->prompt) {
        rq_buf_puts(out, c->prompt);
        return out->failed ? rq_fail(err, RQ_ERR_MEMORY, "the prompt is too long") : RQ_OK;
    }
    if (c->prompt_file) {
        FILE *file = fopen(c->prompt_file, "rbe");
        if (!file)
            return rq_fail(err, RQ_ERR_IO, "%s: cannot be opened: %s", c->prompt_file, strerror(errno));
        rq_status status = read_all(file, c->prompt_file, out, err);
        fclose(file);
        return status;
    }
    *given = !rq_terminal_reads_person(terminal) && !c->interactive;
    if (!*given) return RQ_OK;
    rq_status status = read_all(stdin, "standard input", out, err);
    if (status == RQ_OK && !out->len)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no prompt: standard input is empty");
    return status;
}

static void greet(const rq_chat *chat)
{
    rq_model_info model;
    rq_engine_info engine;
    rq_model_describe(chat->model, &model);
    rq_engine_describe(chat->engine, &engine);
    fprintf(stderr, "%s (%s), %s, %u tokens of context. /help lists the commands, Ctrl-D leaves.\n",
            model.name, model.description, engine.device, (unsigned)engine.n_ctx);
}

static int answer_once(rq_chat *chat, const rq_buf *prompt)
{
    rq_error err = {0};
    rq_status status = RQ_OK;
    const char *text = prompt->data ? prompt->data : "";
    if (!chat->raw) status = rq_chat_add(chat, "user", text, prompt->len, &err);
    if (status == RQ_OK) status = rq_chat_answer(chat, text, prompt->len, &err);
    if (rq_terminal_is_watched(chat->terminal)) rq_chat_print_timings(chat);
    if (status == RQ_ERR_CANCELLED) return 130; /* as a shell reports an interrupted program */
    return status == RQ_OK ? 0 : rq_complain("rqvk-cli", &err);
}

static rq_status check_format(const cli_config *c, const rq_model *model, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    if (!c->chat || strcmp(info.chat_format, "none") != 0) return RQ_OK;
    return rq_fail(err, RQ_ERR_UNSUPPORTED,
                   "%s: the file has no chat format this build knows; --no-chat continues plain text",
                   info.path);
}

static rq_status read_think(cli_config *c, rq_error *err)
{
    c->opening = RQ_OPEN;
    if (c->think && strcmp(c->think, "on") != 0 && strcmp(c->think, "off") != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "--think is '%s', but can be on or off", c->think);
    if (c->think) c->opening = strcmp(c->think, "on") == 0 ? RQ_OPEN_THINKING : RQ_OPEN_PLAIN;
    return RQ_OK;
}

static int converse(cli_config *c, rq_terminal *terminal, const rq_buf *prompt, bool given)
{
    rq_error err = {0};
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_chat chat = {.terminal = terminal,
                    .sampling = &c->sampling,
                    .n_predict = c->n_predict,
                    .raw = !c->chat,
                    .opening = c->opening,
                    .special = c->special,
                    .ignore_eos = c->ignore_eos};
    rq_terminal_guard(terminal);
    rq_status status = rq_engine_args_open(&c->engine, &model, &engine, &err);
    rq_terminal_unguard(terminal);
    if (status == RQ_OK) status = check_format(c, model, &err);
    if (status == RQ_OK) status = rq_session_create(engine, &chat.session, &err);
    chat.model = model;
    chat.engine = engine;
    if (status == RQ_OK && c->system && *c->system) status = rq_chat_set_system(&chat, c->system, &err);
    int code = status == RQ_OK ? 0 : rq_complain("rqvk-cli", &err);
    bool loop = status == RQ_OK && (!given || c->interactive);
    if (loop && rq_terminal_reads_person(terminal)) greet(&chat);
    if (status == RQ_OK && given) code = answer_once(&chat, prompt);
    if (loop && code != 1) code = rq_chat_loop(&chat);
    rq_chat_free(&chat);
    rq_session_free(chat.session);
    rq_engine_free(engine);
    rq_model_free(model);
    return code;
}

int main(int argc, char **argv)
{
    static const rq_program_text text = {
        .program = "rqvk-cli",
        .usage = "[-m MODEL] [-p TEXT] [options]",
        .about = "Talks to a model in the terminal, or has it answer once.",
    };
    cli_config config = {.engine = rq_engine_args_default(),
                         .sampling = rq_sampling_args_default(),
                         .n_predict = -1,
                         .chat = true};
    rq_options options = {0};
    add_options(&options, &config);
    rq_options_engine(&options, &config.engine);
    rq_options_drafts(&options, &config.engine);
    rq_options_sampling(&options, &config.sampling);
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (config.engine.list_devices) return rq_print_devices();
    config.engine.params.n_sessions = 1;
    if (rq_engine_args_plan(&config.engine, text.program, &code)) return code;
    if (config.verbose) config.engine.params.log = log_line;

    rq_error err = {0};
    bool given = false;
    rq_buf prompt = {.max = 64 << 20};
    rq_terminal *terminal = NULL;
    if (rq_predict_check(config.n_predict, &err) != RQ_OK || read_think(&config, &err) != RQ_OK) {
        code = rq_complain(text.program, &err) + 1;
    } else if (rq_engine_args_check(&config.engine, &err) != RQ_OK || !(terminal = rq_terminal_open(&err)) ||
               find_prompt(&config, terminal, &prompt, &given, &err) != RQ_OK) {
        code = rq_complain(text.program, &err);
    } else {
        code = converse(&config, terminal, &prompt, given);
    }
    rq_terminal_close(terminal);
    rq_buf_free(&prompt);
    return code;
}
