#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static void must(rq_status status, const rq_error *err)
{
    if (status) fail_msg("%s: %s", rq_status_name(status), err->text);
}

rq_tokenizer *load_vocab(const char *name)
{
    char path[512];
    rq_error err = {{0}};
    rq_gguf *file = NULL;
    rq_tokenizer *tok = NULL;
    snprintf(path, sizeof path, "%s/vocab/%s", RQVK_TEST_DATA, name);
    must(rq_gguf_open(path, &file, &err), &err);
    must(rq_tokenizer_from_gguf(file, &tok, &err), &err);
    rq_gguf_close(file); /* nothing of the file is needed any more */
    return tok;
}

char *read_data(const char *name, size_t *len)
{
    char path[512];
    snprintf(path, sizeof path, "%s/vocab/%s", RQVK_TEST_DATA, name);
    FILE *in = fopen(path, "rb");
    if (!in) fail_msg("cannot open %s", path);
    assert_int_equal(fseek(in, 0, SEEK_END), 0);
    long size = ftell(in);
    assert_true(size >= 0);
    rewind(in);
    char *text = rq_malloc((size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, in), (size_t)size);
    fclose(in);
    text[size] = 0;
    *len = (size_t)size;
    return text;
}

void vocab_start(vocab *v, const char *model, const char *pre)
{
    memset(v, 0, sizeof *v);
    rq_vocab_source_init(&v->source);
    v->source.model = (rq_vocab_text){model, strlen(model)};
    if (pre) v->source.pre = (rq_vocab_text){pre, strlen(pre)};
}

static rq_vocab_text copy(const char *text)
{
    char *own = rq_strdup(text);
    assert_non_null(own);
    return (rq_vocab_text){own, strlen(own)};
}

int32_t vocab_token(vocab *v, const char *text, int32_t type, float score)
{
    size_t n = v->source.n_tokens;
    assert_true(rq_grow((void **)&v->tokens, &v->tokens_cap, n + 1, sizeof *v->tokens));
    assert_true(rq_grow((void **)&v->types, &v->types_cap, n + 1, sizeof *v->types));
    assert_true(rq_grow((void **)&v->scores, &v->scores_cap, n + 1, sizeof *v->scores));
    v->tokens[n] = copy(text);
    v->types[n] = type;
    v->scores[n] = score;
    v->source.n_tokens = v->source.n_types = v->source.n_scores = n + 1;
    v->source.tokens = v->tokens;
    v->source.types = v->types;
    v->source.scores = v->scores;
    return (int32_t)n;
}

void vocab_merge(vocab *v, const char *text)
{
    assert_true(rq_grow((void **)&v->merges, &v->merges_cap, v->source.n_merges + 1, sizeof *v->merges));
    v->merges[v->source.n_merges++] = copy(text);
    v->source.merges = v->merges;
}

void spell(const uint8_t *bytes, size_t len, char *out)
{
    unsigned other = 0, code[256];
    for (unsigned b = 0; b < 256; b++)
        code[b] = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE ? b : 256 + other++;
    for (size_t i = 0; i < len; i++) {
        unsigned c = code[bytes[i]];
        if (c >= 0x80) {
            *out++ = (char)(0xC0 | c >> 6);
            *out++ = (char)(0x80 | (c & 0x3F));
        } else {
            *out++ = (char)c;
        }
    }
    *out = 0;
}

void vocab_bytes(vocab *v)
{
    bool byte_level = !strncmp(v->source.model.data, "gpt2", 4);
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        char text[16];
        if (byte_level)
            spell(&byte, 1, text);
        else
            snprintf(text, sizeof text, "<0x%02X>", b);
        vocab_token(v, text, byte_level ? RQ_TOKEN_NORMAL : RQ_TOKEN_BYTE, 0);
    }
}

rq_tokenizer *vocab_build(vocab *v)
{
    rq_error err = {{0}};
    rq_tokenizer *tok = NULL;
    static const rq_vocab_text none;
    if (!v->source.merges) v->source.merges = &none;
    must(rq_tokenizer_create(&v->source, &tok, &err), &err);
    return tok;
}

void vocab_refused(vocab *v, rq_status status, const char *part)
{
    rq_error err = {{0}};
    rq_tokenizer *tok = NULL;
    assert_int_equal(rq_tokenizer_create(&v->source, &tok, &err), status);
    assert_null(tok);
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not contain \"%s\"", err.text, part);
}

void vocab_end(vocab *v)
{
    for (size_t i = 0; i < v->source.n_tokens; i++)
        if (v->tokens) rq_free((void *)v->tokens[i].data);
    for (size_t i = 0; i < v->source.n_merges; i++)
        if (v->merges) rq_free((void *)v->merges[i].data);
    rq_free(v->tokens);
    rq_free(v->types);
    rq_free(v->scores);
    rq_free(v->merges);
}

rq_tokens encode(const rq_tokenizer *tok, const char *text, size_t len, unsigned flags)
{
    rq_error err = {{0}};
    rq_tokens ids = {0};
    must(rq_tokenizer_encode(tok, text, len, flags, &ids, &err), &err);
    return ids;
}

void expect_ids(const rq_tokenizer *tok, const char *text, unsigned flags, const rq_token *ids, size_t n)
{
    rq_tokens got = encode(tok, text, strlen(text), flags);
    bool same = got.n == n && (!n || !memcmp(got.ids, ids, n * sizeof *ids));
    if (!same) {
        print_error("\"%s\" gave", text);
        for (size_t i = 0; i < got.n; i++) print_error(" %d", got.ids[i]);
        print_error(", expected");
        for (size_t i = 0; i < n; i++) print_error(" %d", ids[i]);
        print_error("\n");
    }
    rq_free(got.ids);
    assert_true(same);
}

void expect_round_trip(const rq_tokenizer *tok, const char *text, size_t len)
{
    rq_tokens ids = encode(tok, text, len, 0);
    size_t at = 0, n;
    for (size_t i = 0; i < ids.n; i++) {
        const char *piece = rq_token_piece(tok, ids.ids[i], &n);
        assert_true(n && n <= len - at);
        assert_memory_equal(piece, text + at, n);
        at += n;
    }
    assert_int_equal(at, len);
    rq_free(ids.ids);
}

uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
