/* Bad vocabularies, bad text, no memory, long words. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_refusals(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "qwen2");
    vocab_refused(&v, RQ_ERR_FORMAT, "no vocabulary");
    vocab_bytes(&v);
    vocab_refused(&v, RQ_ERR_FORMAT, "tokenizer.ggml.merges");
    vocab_merge(&v, "a b");
    v.source.n_types--;
    vocab_refused(&v, RQ_ERR_FORMAT, "token_type has 255 entries for 256 tokens");
    v.source.n_types++;
    v.source.n_scores++;
    vocab_refused(&v, RQ_ERR_FORMAT, "scores has 257 entries for 256 tokens");
    v.source.n_scores--;
    v.source.special[RQ_SPECIAL_EOS] = 256;
    vocab_refused(&v, RQ_ERR_FORMAT, "tokenizer.ggml.eos_token_id is 256");
    v.source.special[RQ_SPECIAL_EOS] = -2;
    vocab_refused(&v, RQ_ERR_FORMAT, "eos_token_id is -2");
    v.source.special[RQ_SPECIAL_EOS] = -1;
    v.source.pre = (rq_vocab_text){"qwen99", 6};
    vocab_refused(&v, RQ_ERR_UNSUPPORTED, "pre-tokenizer \"qwen99\" is not known; known are default, gpt-2");
    v.source.pre = (rq_vocab_text){"qwen2x", 5};
    v.source.model = (rq_vocab_text){"bert", 4};
    vocab_refused(&v, RQ_ERR_UNSUPPORTED, "\"bert\"");
    v.source.model = (rq_vocab_text){NULL, 0};
    vocab_refused(&v, RQ_ERR_FORMAT, "tokenizer.ggml.model");
    v.source.model = (rq_vocab_text){"llama", 5};
    v.source.scores = NULL;
    vocab_refused(&v, RQ_ERR_FORMAT, "tokenizer.ggml.scores");
    v.source.scores = v.scores;
    v.source.n_merges = (size_t)1 << 40;
    vocab_refused(&v, RQ_ERR_FORMAT, "tokenizer.ggml.merges has");
    v.source.n_merges = 1;
    v.source.model = (rq_vocab_text){"gpt2", 4};
    rq_tokenizer_free(vocab_build(&v));
    vocab_end(&v);
}

/* A vocabulary that is odd but not refused: duplicates, holes, bytes that nothing stands for, no types, bad scores. */
static void test_oddities(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", NULL); /* no name of a pattern: "default" */
    int32_t a = vocab_token(&v, "a", RQ_TOKEN_NORMAL, 0), again = vocab_token(&v, "a", RQ_TOKEN_NORMAL, 0);
    vocab_token(&v, "", RQ_TOKEN_NORMAL, 0);
    int32_t other = vocab_token(&v, "\xE4\xB8\xAD", RQ_TOKEN_NORMAL, 0); /* not of the byte alphabet */
    int32_t end = vocab_token(&v, "<|im_end|>", RQ_TOKEN_NORMAL, 0);
    vocab_token(&v, "\xFF\xFE", 77, 0);
    rq_tokenizer *tok = vocab_build(&v);
    rq_tokenizer_notes notes = rq_tokenizer_get_notes(tok);
    size_t n;
    assert_string_equal(notes.pre, "default");
    assert_int_equal(notes.n_duplicate_tokens, 1);
    assert_int_equal(notes.n_empty_tokens, 1);
    assert_int_equal(notes.n_missing_bytes, 255);
    EXPECT_IDS(tok, "abA", 0, a); /* not even U+FFFD can be said: they vanish */
    assert_memory_equal(rq_token_piece(tok, again, &n), "a", 1);
    assert_memory_equal(rq_token_piece(tok, other, &n), "\xE4\xB8\xAD", 3);
    assert_false(rq_token_is_eog(tok, end)); /* typed as an ordinary token */
    rq_tokenizer_free(tok);
    v.source.types = NULL;
    v.source.n_types = 0;
    tok = vocab_build(&v);
    assert_true(rq_token_is_eog(tok, end)); /* no types at all: the text is all there is */
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_EOT), end);
    rq_tokenizer_free(tok);
    vocab_end(&v);

    vocab_start(&v, "llama", NULL);
    int32_t unk = vocab_token(&v, "<unk>", RQ_TOKEN_UNKNOWN, NAN);
    int32_t x = vocab_token(&v, "x", RQ_TOKEN_NORMAL, NAN),
            xx = vocab_token(&v, "xx", RQ_TOKEN_NORMAL, -INFINITY);
    v.source.add_space_prefix = 0;
    tok = vocab_build(&v);
    EXPECT_IDS(tok, "xxxy", 0, xx, x, unk); /* no byte tokens: the unknown token */
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

static void test_hostile_text(void **state)
{
    static const char *const vocabs[] = {"oracle-llama.gguf", "oracle-qwen2.gguf", "oracle-qwen35.gguf",
                                         "ggml-vocab-gpt-2.gguf"};
    uint64_t seed = 4;
    for (size_t k = 0; k < sizeof vocabs / sizeof *vocabs; k++) {
        rq_tokenizer *tok = load_vocab(vocabs[k]);
        assert_int_equal(rq_tokenizer_get_notes(tok).n_missing_bytes, 0);
        /* lone surrogates as UTF-8, overlong forms, NUL, bytes beyond U+10FFFF, a character cut short */
        static const char broken[] =
            "a\xED\xA0\x80 \xED\xB0\x80\0\0b\xC0\x80\xF8\x88\x80\x80\x80 \xFF\xFE\xF4\x90\x80\x80\xE4\xB8";
        expect_round_trip(tok, broken, sizeof broken - 1);
        for (int round = 0; round < 300; round++) {
            char text[256];
            size_t len = next_random(&seed) % sizeof text;
            for (size_t i = 0; i < len; i++) {
                uint32_t r = next_random(&seed);
                static const char awkward[] = "\xE2\x96\x81\xF0\x9F\x98 \n\r'sS1";
                text[i] = r % 3 == 0 ? (char)(r >> 8) : r % 3 == 1 ? awkward[(r >> 8) % 13] : 'a';
            }
            expect_round_trip(tok, text, len);
        }
        /* a million combining marks, alone and on one letter */
        size_t n = 1000000;
        char *marks = rq_malloc(2 * n + 1);
        assert_non_null(marks);
        marks[0] = 'e';
        for (size_t i = 0; i < n; i++) memcpy(marks + 1 + 2 * i, "\xCC\x81", 2);
        expect_round_trip(tok, marks + 1, 2 * n);
        expect_round_trip(tok, marks, 2 * n + 1);
        rq_free(marks);
        rq_tokenizer_free(tok);
    }
}

static void test_too_long(void **state)
{
    rq_tokenizer *tok = load_vocab("oracle-qwen2.gguf");
    rq_error err = {{0}};
    rq_tokens ids = {0};
    assert_true(rq_tokens_push(&ids, 7));
    /* refused by its length, before a byte is read */
    assert_int_equal(rq_tokenizer_encode(tok, "x", (size_t)1 << 31, 0, &ids, &err), RQ_ERR_CAPACITY);
    assert_non_null(strstr(err.text, "2147483648 bytes"));
    assert_int_equal(ids.n, 1);
    rq_free(ids.ids);
    rq_tokenizer_free(tok);
}

/* DeepSeek Coder has added tokens for the characters that would spell the bytes UTF-8 never uses, so it cannot say
 * those bytes; the characters themselves and everything else survive. */
static void test_missing_bytes(void **state)
{
    rq_tokenizer *tok = load_vocab("ggml-vocab-deepseek-coder.gguf");
    size_t n;
    assert_int_equal(rq_tokenizer_get_notes(tok).n_missing_bytes, 13); /* C0, C1, F5 .. FF */
    static const char text[] = "\xC3\x80 \xC3\xB5 \xF0\x9F\x98\x80\xE4\xB8";
    expect_round_trip(tok, text, sizeof text - 1);
    rq_tokens ids = encode(tok, "a\xFF", 2, 0);
    assert_int_equal(ids.n, 4);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(rq_token_piece(tok, ids.ids[i + 1], &n), &"\xEF\xBF\xBD"[i], 1);
    rq_free(ids.ids);
    rq_tokenizer_free(tok);
}

/* Every allocation fails once: a clean error, nothing leaks, the list of ids is as before. */
static void test_no_memory(void **state)
{
    static const char *const models[] = {"gpt2", "llama", "gemma4"};
    char text[600];
    memset(text, 'a', sizeof text);
    memcpy(text + 200, " <c> \n\xFF <u> ", 13);
    for (int m = 0; m < 3; m++) {
        vocab v;
        vocab_start(&v, models[m], "qwen2");
        vocab_bytes(&v);
        vocab_token(&v, "aa", RQ_TOKEN_NORMAL, 1);
        vocab_token(&v, "<c>", RQ_TOKEN_CONTROL, 0);
        vocab_token(&v, "<u>", RQ_TOKEN_USER_DEFINED, 0);
        vocab_merge(&v, "a a");
        vocab_merge(&v, "aa aa");
        int64_t before = rq_mem_alive();
        for (uint64_t n = 1;; n++) {
            rq_error err = {{0}};
            rq_tokenizer *tok = NULL;
            rq_mem_fail_at(n);
            rq_status status = rq_tokenizer_create(&v.source, &tok, &err);
            bool reached = rq_mem_count() >= n;
            rq_mem_fail_at(0);
            /* PCRE2 may do without: then the pattern is only slower */
            if (status) {
                assert_int_equal(status, RQ_ERR_MEMORY);
                assert_true(err.text[0]);
            }
            rq_tokenizer_free(tok);
            assert_int_equal(rq_mem_alive(), before);
            if (!reached) break;
            assert_true(n < 10000);
        }
        rq_tokenizer *tok = vocab_build(&v);
        rq_tokens all = encode(tok, text, sizeof text, RQ_TOKENIZE_PARSE_SPECIAL);
        before = rq_mem_alive();
        for (uint64_t n = 1;; n++) {
            rq_error err = {{0}};
            rq_tokens ids = {0};
            rq_mem_fail_at(n);
            rq_status status =
                rq_tokenizer_encode(tok, text, sizeof text, RQ_TOKENIZE_PARSE_SPECIAL, &ids, &err);
            bool reached = rq_mem_count() >= n;
            rq_mem_fail_at(0);
            if (status) {
                assert_int_equal(status, RQ_ERR_MEMORY);
                assert_int_equal(ids.n, 0);
            } else {
                assert_int_equal(ids.n, all.n);
                assert_memory_equal(ids.ids, all.ids, all.n * sizeof *all.ids);
            }
            rq_free(ids.ids);
            assert_int_equal(rq_mem_alive(), before);
            if (!reached) break;
            assert_true(status != RQ_OK || n > 1);
            assert_true(n < 10000);
        }
        rq_free(all.ids);
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_oddities),
        cmocka_unit_test(test_hostile_text), cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_no_memory),    cmocka_unit_test(test_missing_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
