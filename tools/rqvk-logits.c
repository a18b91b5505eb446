/* rqvk-logits - evaluates given token ids and writes the logits after every one, to compare engines. */
#include "backends/base/mem.h"
#include "tools/common/args.h"
#include "tools/common/progress.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_IDS = 1 << 24 };

typedef struct writer {
    FILE *out;
    size_t n_vocab;
    int error; /* errno of the first failed write */
    rq_progress progress;
} writer;

/* Runs on the engine's thread, one row at a time. */
static void write_row(void *user, size_t position, const float *logits)
{
    writer *w = user;
    if (!w->error && fwrite(logits, sizeof *logits, w->n_vocab, w->out) != w->n_vocab)
        w->error = errno ? errno : EIO;
    rq_progress_set(&w->progress, position + 1);
}

/* The next white-space separated word of at most 15 bytes; 0 at the end of the file, -1 when it is longer. */
static int read_word(FILE *in, char word[16])
{
    int c, n = 0;
    while ((c = fgetc(in)) != EOF && isspace(c)) {
    }
    for (; c != EOF && !isspace(c); c = fgetc(in)) {
        if (n == 15) return -1;
        word[n++] = (char)c;
    }
    word[n] = 0;
    return n;
}

/* Token ids in decimal, separated by white space. */
static rq_status read_ids(const char *path, rq_tokens *ids, rq_error *err)
{
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (!in) return rq_fail(err, RQ_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    rq_status s = RQ_OK;
    char word[16];
    int n;
    while (!s && (n = read_word(in, word)) != 0) {
        char *end = word;
        long id = n > 0 ? strtol(word, &end, 10) : 0;
        if (n < 0 || *end || id < INT32_MIN || id > INT32_MAX)
            s = rq_fail(err, RQ_ERR_FORMAT, "%s: entry %zu is not a token id", path, ids->n + 1);
        else if (ids->n == MAX_IDS)
            s = rq_fail(err, RQ_ERR_FORMAT, "%s holds more than %d token ids", path, MAX_IDS);
        else if (!rq_grow((void **)&ids->ids, &ids->cap, ids->n + 1, sizeof *ids->ids))
            s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for token ids");
        else
            ids->ids[ids->n++] = (rq_token)id;
    }
    if (!s && ferror(in)) s = rq_fail(err, RQ_ERR_IO, "cannot read %s", path);
    if (!s && ids->n == 0) s = rq_fail(err, RQ_ERR_FORMAT, "%s holds no token ids", path);
    if (in != stdin) fclose(in);
    return s;
}

static rq_status evaluate(rq_engine *engine, const rq_tokens *ids, uint32_t batch, writer *w, rq_error *err)
{
    rq_session *session = NULL;
    rq_status s = rq_session_create(engine, &session, err);
    size_t first = batch < ids->n ? batch : ids->n;
    if (!s && first) s = rq_evaluate(session, ids->ids, first, batch, RQ_LOGITS_ALL, write_row, w, err);
    if (!s && first < ids->n)
        s = rq_evaluate(session, ids->ids + first, ids->n - first, 1, RQ_LOGITS_ALL, write_row, w, err);
    rq_session_free(session);
    return s;
}

int main(int argc, char **argv)
{
    rq_engine_args engine_args = rq_engine_args_default();
    const char *tokens_path = NULL, *out_path = NULL;
    uint32_t batch = 512;
    rq_options options = {0};
    rq_options_engine(&options, &engine_args);
    rq_options_add(
        &options,
        (rq_option){.names = "--tokens",
                    .kind = RQ_OPT_STRING,
                    .target = &tokens_path,
                    .value = "FILE",
                    .help = "token ids in decimal, separated by white space (- for standard input)"});
    rq_options_add(&options,
                   (rq_option){.names = "--batch",
                               .kind = RQ_OPT_U32,
                               .target = &batch,
                               .min = 0,
                               .max = 1 << 24,
                               .help = "evaluate the first N tokens as one batch, the rest one at a time"});
    rq_options_add(&options, (rq_option){.names = "-o,--output",
                                         .kind = RQ_OPT_STRING,
                                         .target = &out_path,
                                         .value = "FILE",
                                         .help = "little-endian float32 [tokens, vocabulary] goes here"});
    const rq_program_text text = {
        .program = "rqvk-logits",
        .usage = "[-m MODEL] --tokens FILE --batch N -o OUT [options]",
        .about = "Writes the logits after every token, so that engines can be compared.",
        .footer = "A batch larger than one step takes (at most 2048 tokens) is evaluated in pieces."};
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (engine_args.list_devices) return rq_print_devices();

    rq_error err = {0};
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_tokens ids = {0};
    writer w = {0};
    rq_status s = RQ_OK;
    if (!tokens_path || !out_path)
        s = rq_fail(&err, RQ_ERR_ARGUMENT, "--tokens FILE and -o FILE are needed (see --help)");
    if (!s && tokens_path) s = read_ids(tokens_path, &ids, &err);
    if (!s) {
        /* One session as long as the list; steps as large as the batch asks for. */
        if (!engine_args.params.n_ctx) engine_args.params.n_ctx = ids.n < 2 ? 2 : (uint32_t)ids.n;
        uint32_t step = 1;
        while (step < batch && step < 2048) step *= 2;
        if (engine_args.params.n_batch < step) engine_args.params.n_batch = step;
        s = rq_engine_args_open(&engine_args, &model, &engine, &err);
    }
    if (!s) {
        rq_model_info info;
        rq_model_describe(model, &info);
        w.n_vocab = info.n_vocab;
        w.out = out_path ? fopen(out_path, "wb") : NULL;
        if (!w.out) s = rq_fail(&err, RQ_ERR_IO, "cannot write %s: %s", out_path, strerror(errno));
    }
    if (!s) {
        w.progress = rq_progress_start(stderr, "evaluate", "tokens", ids.n);
        s = evaluate(engine, &ids, batch, &w, &err);
        rq_progress_end(&w.progress);
    }
    if (w.out && fclose(w.out) && !w.error) w.error = errno;
    if (!s && w.error) s = rq_fail(&err, RQ_ERR_IO, "cannot write %s: %s", out_path, strerror(w.error));
    if (s && w.out && out_path) unlink(out_path);
    rq_engine_free(engine);
    rq_model_free(model);
    rq_tokens_free(&ids);
    return s ? rq_complain("rqvk-logits", &err) : 0;
}
