/* encode_many - helper of compare_real.py: tokenizes many texts with one load of a vocabulary.
 *
 *     encode_many MODEL [--round-trip]
 *
 * Standard input: for each text its length in decimal, a newline, its bytes. Standard output: for each text a line
 * of ids. With --round-trip the pieces of the ids must join to the text again; else the exit code is 3. Speed (of
 * processor time) goes to standard error. */
#include "backends/base/mem.h"
#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool joins_to(const rq_tokenizer *tok, const rq_tokens *ids, const char *text, size_t len)
{
    size_t at = 0, n;
    for (size_t i = 0; i < ids->n; i++) {
        const char *piece = rq_token_piece(tok, ids->ids[i], &n);
        if (n > len - at || memcmp(piece, text + at, n) != 0) return false;
        at += n;
    }
    return at == len;
}

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    bool round_trip = argc > 2 && !strcmp(argv[2], "--round-trip");
    rq_error err = {{0}};
    rq_gguf *file = NULL;
    rq_tokenizer *tok = NULL;
    double start_s = cpu_s();
    if (rq_gguf_open(argv[1], &file, &err) || rq_tokenizer_from_gguf(file, &tok, &err)) {
        fprintf(stderr, "%s\n", err.text);
        rq_gguf_close(file);
        return 1;
    }
    rq_tokenizer_notes notes = rq_tokenizer_get_notes(tok);
    fprintf(
        stderr,
        "load %.0f ms; %s, pattern %s%s, %zu tokens, %zu merges, %zu bad, %zu without token, %zu duplicate "
        "tokens\n",
        1e3 * (cpu_s() - start_s), notes.algorithm, notes.pre, notes.jit ? " (JIT)" : "",
        rq_tokenizer_n_tokens(tok), notes.n_merges, notes.n_bad_merges, notes.n_unknown_merges,
        notes.n_duplicate_tokens);
    size_t len, n_texts = 0, n_bytes = 0, n_ids = 0;
    double encode_s = 0;
    int code = 0;
    while (!code && scanf("%zu", &len) == 1 && getchar() == '\n') {
        char *text = rq_malloc(len + 1);
        rq_tokens ids = {0};
        if (!text || fread(text, 1, len, stdin) != len) {
            code = 1;
        } else {
            start_s = cpu_s();
            code = rq_tokenizer_encode(tok, text, len, 0, &ids, &err) ? 1 : 0;
            encode_s += cpu_s() - start_s;
            if (code) fprintf(stderr, "%s\n", err.text);
        }
        if (!code && round_trip && !joins_to(tok, &ids, text, len)) {
            fprintf(stderr, "text %zu does not survive the round trip\n", n_texts);
            code = 3;
        }
        for (size_t i = 0; i < ids.n; i++) printf("%s%d", i ? " " : "", (int)ids.ids[i]);
        putchar('\n');
        n_texts++;
        n_bytes += len;
        n_ids += ids.n;
        rq_free(ids.ids);
        rq_free(text);
    }
    fprintf(stderr, "%zu texts, %zu bytes, %zu ids, %.2f MB/s\n", n_texts, n_bytes, n_ids,
            encode_s > 0 ? 1e-6 * (double)n_bytes / encode_s : 0.0);
    rq_tokenizer_free(tok);
    rq_gguf_close(file);
    return code;
}
