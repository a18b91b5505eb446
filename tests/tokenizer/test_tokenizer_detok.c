/* Streaming: whatever ids come, the text is valid UTF-8 at every moment and complete at the end. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* A strict decoder of its own: the number of bytes of the character at p, 0 when broken. */
static size_t character(const uint8_t *p, size_t n)
{
    uint32_t c;
    size_t len;
    if (p[0] < 0x80)
        return 1;
    else if ((p[0] & 0xE0) == 0xC0)
        len = 2, c = p[0] & 0x1F;
    else if ((p[0] & 0xF0) == 0xE0)
        len = 3, c = p[0] & 0x0F;
    else if ((p[0] & 0xF8) == 0xF0)
        len = 4, c = p[0] & 0x07;
    else
        return 0;
    if (n < len) return 0;
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3F);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    return c >= least[len] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF) ? len : 0;
}

static bool valid(const char *text, size_t len)
{
    for (size_t i = 0, n; i < len; i += n)
        if (!(n = character((const uint8_t *)text + i, len - i))) return false;
    return true;
}

/* Feeds bytes as single-byte tokens (token number = byte) and expects this text. */
static void expect_text(const rq_tokenizer *tok, const char *bytes, size_t len, const char *expected)
{
    rq_detok d;
    rq_buf out = {.max = 1 << 20};
    rq_detok_init(&d, tok, 0);
    for (size_t i = 0; i < len; i++) {
        assert_true(rq_detok_add(&d, (uint8_t)bytes[i], &out));
        assert_true(valid(out.data ? out.data : "", out.len));
    }
    assert_true(rq_detok_flush(&d, &out));
    assert_string_equal(out.data ? out.data : "", expected);
    rq_buf_free(&out);
}
#define EXPECT_TEXT(tok, bytes, expected) expect_text(tok, bytes, sizeof(bytes) - 1, expected)

static rq_tokenizer *byte_vocab(vocab *v)
{
    vocab_start(v, "gpt2", "qwen2");
    vocab_bytes(v);
    return vocab_build(v);
}

#define FFFD "\xEF\xBF\xBD"

/* The examples of the Unicode Standard, tables 3-8 to 3-11. */
static void test_broken_bytes(void **state)
{
    vocab v;
    rq_tokenizer *tok = byte_vocab(&v);
    EXPECT_TEXT(tok, "h\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80", "h\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80");
    EXPECT_TEXT(tok, "\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    EXPECT_TEXT(tok, "\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    EXPECT_TEXT(tok, "\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B");
    EXPECT_TEXT(tok, "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", FFFD FFFD FFFD FFFD "A");
    EXPECT_TEXT(tok, "\xE4\xB8", FFFD);
    EXPECT_TEXT(tok, "\xF0\x9F\x98", FFFD);
    EXPECT_TEXT(tok, "\xF0\x9F\xC3\xA9", FFFD "\xC3\xA9");
    EXPECT_TEXT(tok, "", "");
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

/* Nothing is held back longer than needed, and pieces of any cut of a text give the text. */
static void test_cuts(void **state)
{
    static const char text[] = "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80z";
    size_t len = sizeof text - 1;
    vocab v;
    vocab_start(&v, "gpt2", "qwen2");
    vocab_bytes(&v);
    int32_t id[16][16];
    for (size_t from = 0; from < len; from++)
        for (size_t to = from + 1; to <= len; to++) {
            char name[40];
            spell((const uint8_t *)text + from, to - from, name);
            id[from][to] = vocab_token(&v, name, RQ_TOKEN_NORMAL, 0);
        }
    rq_tokenizer *tok = vocab_build(&v);
    for (unsigned cut = 0; cut < 1u << (len - 1); cut++) {
        rq_detok d;
        rq_buf out = {.max = 1 << 10};
        rq_detok_init(&d, tok, 0);
        for (size_t from = 0, to; from < len; from = to) {
            for (to = from + 1; to < len && !(cut >> (to - 1) & 1);) to++;
            assert_true(rq_detok_add(&d, id[from][to], &out));
            size_t complete = 0; /* the longest prefix of the bytes so far that ends at a character */
            while (complete < to) {
                size_t n = character((const uint8_t *)text + complete, len);
                if (complete + n > to) break;
                complete += n;
            }
            assert_int_equal(out.len, complete);
        }
        assert_true(rq_detok_flush(&d, &out));
        assert_string_equal(out.data, text);
        rq_buf_free(&out);
    }
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

static void test_random_streams(void **state)
{
    uint64_t seed = 9;
    static const uint8_t likely[] = {0xE2, 0x96, 0x81, 0xF0, 0x9F, 0x98, 0x80,
                                     0xC3, 0xA9, 0xED, 0xA0, 0xF4, 0x8F, 'a'};
    vocab v;
    rq_tokenizer *tok = byte_vocab(&v);
    rq_buf out = {.max = 1 << 20};
    rq_detok d;
    rq_detok_init(&d, tok, 0);
    for (int i = 0; i < 20000; i++) {
        uint32_t r = next_random(&seed);
        assert_true(rq_detok_add(&d, r % 4 ? likely[r / 4 % sizeof likely] : (rq_token)(r / 4 % 300), &out));
        if (r % 97 == 0) assert_true(rq_detok_flush(&d, &out));
    }
    assert_true(valid(out.data, out.len));
    rq_buf_free(&out);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

static void expect_stream(const rq_tokenizer *tok, unsigned flags, const rq_token *ids, size_t n,
                          const char *expected)
{
    rq_detok d;
    rq_buf out = {.max = 1 << 10};
    rq_detok_init(&d, tok, flags);
    for (size_t i = 0; i < n; i++) assert_true(rq_detok_add(&d, ids[i], &out));
    assert_true(rq_detok_flush(&d, &out));
    assert_string_equal(out.data ? out.data : "", expected);
    rq_buf_free(&out);
}

static void test_spaces_and_special(void **state)
{
    rq_tokenizer *tok = load_vocab("ggml-vocab-llama-spm.gguf");
    static const rq_token hello[] = {1, 15043, 3186, 13, 2};
    expect_stream(tok, 0, hello, 5, " Hello world\n");
    expect_stream(tok, RQ_DETOK_START, hello, 5, "Hello world\n");
    expect_stream(tok, RQ_DETOK_SPECIAL, hello, 5, "<s> Hello world\n</s>");
    expect_stream(tok, RQ_DETOK_SPECIAL | RQ_DETOK_START, hello, 5, "<s>Hello world\n</s>");
    static const rq_token spaces[] = {259, 3186}; /* two spaces, " world" */
    expect_stream(tok, RQ_DETOK_START, spaces, 2, "  world");
    rq_tokenizer_free(tok);

    tok = load_vocab("oracle-qwen2.gguf"); /* byte-level: spaces belong to the text */
    rq_tokens ids = encode(tok, " a<|im_end|><think>", 19, RQ_TOKENIZE_PARSE_SPECIAL);
    expect_stream(tok, RQ_DETOK_START, ids.ids, ids.n, " a<think>");
    expect_stream(tok, RQ_DETOK_SPECIAL, ids.ids, ids.n, " a<|im_end|><think>");
    rq_free(ids.ids);
    rq_tokenizer_free(tok);
}

static void test_full_buffer(void **state)
{
    vocab v;
    rq_tokenizer *tok = byte_vocab(&v);
    rq_buf out = {.max = 2};
    rq_detok d;
    rq_detok_init(&d, tok, 0);
    assert_true(rq_detok_add(&d, 'a', &out));
    assert_true(rq_detok_add(&d, 'b', &out));
    assert_false(rq_detok_add(&d, 'c', &out));
    assert_true(out.failed);
    assert_false(rq_detok_add(&d, 'c', &out));
    rq_buf_free(&out);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken_bytes),   cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_random_streams), cmocka_unit_test(test_spaces_and_special),
        cmocka_unit_test(test_full_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
