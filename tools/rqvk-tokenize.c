/* rqvk-tokenize - text on standard input, a JSON array of token ids on standard output. It reads the
 * vocabulary alone, so it also takes files without weights. */
#include "backends/base/mem.h"
#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"
#include "tools/common/args.h"

#include <errno.h>
#include <string.h>

static rq_status read_all(FILE *in, rq_buf *text, rq_error *err)
{
    char block[1 << 16];
    size_t n;
    while ((n = fread(block, 1, sizeof block, in)) > 0)
        if (!rq_buf_append(text, block, n))
            return rq_fail(err, RQ_ERR_CAPACITY, "standard input holds more than %zu bytes", text->max);
    if (ferror(in)) return rq_fail(err, RQ_ERR_IO, "cannot read standard input: %s", strerror(errno));
    return RQ_OK;
}

static rq_status print_ids(const rq_tokens *ids, rq_error *err)
{
    putchar('[');
    for (size_t i = 0; i < ids->n; i++) printf("%s%d", i ? ", " : "", (int)ids->ids[i]);
    puts("]");
    if (fflush(stdout) || ferror(stdout))
        return rq_fail(err, RQ_ERR_IO, "cannot write standard output: %s", strerror(errno));
    return RQ_OK;
}

int main(int argc, char **argv)
{
    const char *model = NULL;
    bool parse_special = true, add_bos = false;
    rq_options options = {0};
    rq_options_add(&options, (rq_option){.names = "-m,--model",
                                         .kind = RQ_OPT_STRING,
                                         .target = &model,
                                         .value = "FILE",
                                         .help = "GGUF file whose vocabulary to use (required)"});
    rq_options_add(&options, (rq_option){.names = "--parse-special",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &parse_special,
                                         .help = "turn the texts of control tokens into those tokens"});
    rq_options_add(&options, (rq_option){.names = "--add-bos",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &add_bos,
                                         .help = "put the model's beginning-of-sequence token in front"});
    const rq_program_text about = {.program = "rqvk-tokenize",
                                   .usage = "-m MODEL [--no-parse-special] [--add-bos] < TEXT",
                                   .about =
                                       "Prints the token ids of the text on standard input as a JSON array."};
    int code = rq_args_run(&about, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;

    rq_error err = {{0}};
    rq_gguf *file = NULL;
    rq_tokenizer *tok = NULL;
    rq_tokens ids = {0};
    rq_buf text = {.max = RQ_TOKENIZE_MAX_BYTES};
    unsigned flags = (parse_special ? RQ_TOKENIZE_PARSE_SPECIAL : 0) | (add_bos ? RQ_TOKENIZE_FORCE_BOS : 0);
    rq_status status = model ? RQ_OK : rq_fail(&err, RQ_ERR_ARGUMENT, "no model given: use -m FILE");
    if (!status) status = rq_gguf_open(model, &file, &err);
    if (!status) status = rq_tokenizer_from_gguf(file, &tok, &err);
    if (!status) status = read_all(stdin, &text, &err);
    if (!status) status = rq_tokenizer_encode(tok, text.data ? text.data : "", text.len, flags, &ids, &err);
    if (!status) status = print_ids(&ids, &err);
    rq_free(ids.ids);
    rq_buf_free(&text);
    rq_tokenizer_free(tok);
    rq_gguf_close(file);
    return status ? rq_complain("rqvk-tokenize", &err) : 0;
}
