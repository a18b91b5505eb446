/* Vocabularies as files bring them: any integer width, scores as integers, ids that mean "none", and what is refused. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

typedef struct image {
    rq_buf body;
    uint64_t n_kv;
} image;

static void put(image *m, const void *bytes, size_t n)
{
    assert_true(rq_buf_append(&m->body, bytes, n));
}

static void put_text(image *m, const char *text)
{
    uint64_t n = strlen(text);
    put(m, &n, 8);
    put(m, text, n);
}

static void key(image *m, const char *name, uint32_t type)
{
    put_text(m, name);
    put(m, &type, 4);
    m->n_kv++;
}

static void put_string(image *m, const char *name, const char *value)
{
    key(m, name, RQ_GGUF_STRING);
    put_text(m, value);
}

static void put_strings(image *m, const char *name, const char *const *values, uint64_t n)
{
    uint32_t type = RQ_GGUF_STRING;
    key(m, name, RQ_GGUF_ARRAY);
    put(m, &type, 4);
    put(m, &n, 8);
    for (uint64_t i = 0; i < n; i++) put_text(m, values[i]);
}

static void put_array(image *m, const char *name, uint32_t type, const void *values, uint64_t n, size_t bytes)
{
    key(m, name, RQ_GGUF_ARRAY);
    put(m, &type, 4);
    put(m, &n, 8);
    put(m, values, n * bytes);
}

static void put_value(image *m, const char *name, uint32_t type, const void *value, size_t bytes)
{
    key(m, name, type);
    put(m, value, bytes);
}

static const char *const words[] = {"<unk>", "<s>", "</s>", "a", "b", "ab", "<x>"};
static const char *const merges[] = {"a b"};

/* Opens what was put and frees it. */
static rq_status open_image(image *m, rq_tokenizer **tok, rq_error *err)
{
    rq_buf file = {.max = 1 << 20};
    uint32_t version = 3;
    uint64_t n_tensors = 0;
    rq_gguf *g = NULL;
    assert_true(rq_buf_append(&file, "GGUF", 4) && rq_buf_append(&file, &version, 4) &&
                rq_buf_append(&file, &n_tensors, 8) && rq_buf_append(&file, &m->n_kv, 8) &&
                rq_buf_append(&file, m->body.data, m->body.len));
    assert_int_equal(rq_gguf_open_memory(file.data, file.len, "memory.gguf", &g, err), RQ_OK);
    rq_status status = rq_tokenizer_from_gguf(g, tok, err);
    rq_gguf_close(g);
    rq_buf_free(&file);
    rq_buf_free(&m->body);
    return status;
}

static image start(const char *model)
{
    image m = {.body = {.max = 1 << 20}};
    put_string(&m, "general.architecture", "llama");
    put_string(&m, "tokenizer.ggml.model", model);
    return m;
}

static void test_widths(void **state)
{
    static const int64_t types64[] = {2, 3, 3, 1, 1, 1, 4};
    static const uint8_t types8[] = {2, 3, 3, 1, 1, 1, 4};
    static const int32_t scores32[] = {0, 0, 0, -1, -2, -3, 0};
    static const double scores64[] = {0, 0, 0, -1, -2, -3, 0};
    for (int wide = 0; wide < 2; wide++) {
        image m = start("llama");
        rq_error err = {{0}};
        rq_tokenizer *tok = NULL;
        uint64_t eos = 2;
        uint16_t bos = 1;
        uint32_t none = UINT32_MAX, off = 0;
        put_strings(&m, "tokenizer.ggml.tokens", words, 7);
        if (wide)
            put_array(&m, "tokenizer.ggml.token_type", RQ_GGUF_I64, types64, 7, 8);
        else
            put_array(&m, "tokenizer.ggml.token_type", RQ_GGUF_U8, types8, 7, 1);
        if (wide)
            put_array(&m, "tokenizer.ggml.scores", RQ_GGUF_F64, scores64, 7, 8);
        else
            put_array(&m, "tokenizer.ggml.scores", RQ_GGUF_I32, scores32, 7, 4);
        put_value(&m, "tokenizer.ggml.eos_token_id", RQ_GGUF_U64, &eos, 8);
        put_value(&m, "tokenizer.ggml.bos_token_id", RQ_GGUF_U16, &bos, 2);
        put_value(&m, "tokenizer.ggml.padding_token_id", RQ_GGUF_U32, &none, 4);
        put_value(&m, "tokenizer.ggml.add_space_prefix", RQ_GGUF_U32, &off, 4);
        if (open_image(&m, &tok, &err)) fail_msg("%s", err.text);
        assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_PAD), -1);
        assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_UNK), 0); /* SentencePiece's custom */
        EXPECT_IDS(tok, "ab<x>", RQ_TOKENIZE_ADD_SPECIAL, 1, 5, 6);
        EXPECT_IDS(tok, "z", 0, 0);
        assert_true(rq_token_is_eog(tok, 2));
        rq_tokenizer_free(tok);
    }
}

static void test_older_names(void **state)
{
    image m = start("gpt2");
    rq_error err = {{0}};
    rq_tokenizer *tok = NULL;
    uint32_t fim = 3;
    put_string(&m, "tokenizer.ggml.pre", "gpt-2");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    put_strings(&m, "tokenizer.ggml.merges", merges, 1);
    put_value(&m, "tokenizer.ggml.suffix_token_id", RQ_GGUF_U32, &fim, 4);
    if (open_image(&m, &tok, &err)) fail_msg("%s", err.text);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_FIM_SUF), 3);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_BOS),
                     -1); /* no guess for byte-level vocabularies */
    EXPECT_IDS(tok, "ab", 0, 5);
    rq_tokenizer_free(tok);
}

static void expect_refusal(image *m, rq_status status, const char *part)
{
    rq_error err = {{0}};
    rq_tokenizer *tok = NULL;
    assert_int_equal(open_image(m, &tok, &err), status);
    assert_null(tok);
    if (!strstr(err.text, part) || !strstr(err.text, "memory.gguf"))
        fail_msg("\"%s\" does not name the file and \"%s\"", err.text, part);
}

static void test_refusals(void **state)
{
    static const int32_t numbers[] = {1, 2, 3, 4, 5, 6, 7};
    uint32_t id = 7;
    image m = {.body = {.max = 1 << 20}};
    put_string(&m, "general.architecture", "llama");
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml");

    m = start("gpt2");
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml.tokens");

    m = start("gpt2");
    put_array(&m, "tokenizer.ggml.tokens", RQ_GGUF_I32, numbers, 7, 4);
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml.tokens");

    m = start("gpt2");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    put_strings(&m, "tokenizer.ggml.token_type", words, 7);
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml.token_type");

    m = start("llama");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    put_array(&m, "tokenizer.ggml.scores", RQ_GGUF_I32, numbers, 6, 4);
    expect_refusal(&m, RQ_ERR_FORMAT, "scores has 6 entries for 7 tokens");

    m = start("gpt2");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    put_strings(&m, "tokenizer.ggml.merges", merges, 1);
    put_value(&m, "tokenizer.ggml.eos_token_id", RQ_GGUF_U32, &id, 4);
    expect_refusal(&m, RQ_ERR_FORMAT, "eos_token_id is 7, but there are 7 tokens");

    m = start("gpt2");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    put_strings(&m, "tokenizer.ggml.merges", merges, 1);
    put_string(&m, "tokenizer.ggml.add_bos_token", "yes");
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml.add_bos_token");

    m = start("gpt2");
    put_value(&m, "tokenizer.ggml.pre", RQ_GGUF_U32, &id, 4);
    expect_refusal(&m, RQ_ERR_FORMAT, "tokenizer.ggml.pre");

    m = start("t5");
    put_strings(&m, "tokenizer.ggml.tokens", words, 7);
    expect_refusal(&m, RQ_ERR_UNSUPPORTED, "\"t5\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths),
        cmocka_unit_test(test_older_names),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
