/* Special tokens in text: which are recognised when, and which one wins. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_kinds(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "qwen2");
    vocab_bytes(&v);
    int32_t control = vocab_token(&v, "<c>", RQ_TOKEN_CONTROL, 0);
    int32_t user = vocab_token(&v, "<u>", RQ_TOKEN_USER_DEFINED, 0);
    int32_t unknown = vocab_token(&v, "<k>", RQ_TOKEN_UNKNOWN, 0);
    int32_t unused = vocab_token(&v, "<n>", RQ_TOKEN_UNUSED, 0);
    int32_t normal = vocab_token(&v, "<m>", RQ_TOKEN_NORMAL, 0);
    vocab_token(&v, "", RQ_TOKEN_CONTROL, 0); /* an empty one is never found */
    rq_tokenizer *tok = vocab_build(&v);
    size_t n;
    EXPECT_IDS(tok, "a<c><u>b<k>", RQ_TOKENIZE_PARSE_SPECIAL, 'a', control, user, 'b', unknown);
    EXPECT_IDS(tok, "a<c><u>b<k>", 0, 'a', '<', 'c', '>', user, 'b', '<', 'k', '>');
    EXPECT_IDS(tok, "<n><m>", RQ_TOKENIZE_PARSE_SPECIAL, '<', 'n', '>', '<', 'm', '>');
    EXPECT_IDS(tok, "<c><c", RQ_TOKENIZE_PARSE_SPECIAL, control, '<', 'c');
    assert_memory_equal(rq_token_piece(tok, control, &n), "<c>", 3);
    assert_memory_equal(rq_token_piece(tok, normal, &n), "<m>", 3);
    rq_token_piece(tok, unused, &n);
    assert_int_equal(n, 0);
    assert_int_equal(rq_tokenizer_get_notes(tok).n_empty_tokens, 1);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

/* Text from users must not turn into control tokens by any way: not by merges that happen to spell one, not as a
 * whole word, not as the unknown token, not as a SentencePiece concatenation. */
static void test_no_injection(void **state)
{
    static const char *const models[] = {"gpt2", "gemma4", "llama"};
    for (int m = 0; m < 3; m++) {
        vocab v;
        vocab_start(&v, models[m], m ? NULL : "llama-bpe");
        v.source.add_space_prefix = 0;
        vocab_bytes(&v);
        vocab_token(&v, "<", RQ_TOKEN_NORMAL, 0);
        vocab_token(&v, "c", RQ_TOKEN_NORMAL, 0);
        vocab_token(&v, ">", RQ_TOKEN_NORMAL, 0);
        vocab_token(&v, "<c", RQ_TOKEN_NORMAL, 5);
        int32_t control = vocab_token(&v, "<c>", RQ_TOKEN_CONTROL, 9);
        vocab_token(&v, "<0x41>", RQ_TOKEN_CONTROL, 9);
        vocab_merge(&v, "< c");
        vocab_merge(&v, "<c >");
        v.source.special[RQ_SPECIAL_UNK] = control;
        rq_tokenizer *tok = vocab_build(&v);
        static const char text[] = "<c> <c>\x80\xff\n<0x41>c>";
        rq_tokens ids = encode(tok, text, sizeof text, 0);
        assert_true(ids.n > 0);
        for (size_t i = 0; i < ids.n; i++)
            assert_int_not_equal(rq_token_type_of(tok, ids.ids[i]), RQ_TOKEN_CONTROL);
        rq_free(ids.ids);
        EXPECT_IDS(tok, "<c>", RQ_TOKENIZE_PARSE_SPECIAL, control);
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

/* StarCoder's file names <|endoftext|> as its unknown token: bytes nothing stands for must not become it. */
static void test_unknown_is_control(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "starcoder");
    int32_t end = vocab_token(&v, "<|endoftext|>", RQ_TOKEN_CONTROL, 0);
    int32_t a = vocab_token(&v, "a", RQ_TOKEN_NORMAL, 0), unk = vocab_token(&v, "?", RQ_TOKEN_UNKNOWN, 0);
    v.source.special[RQ_SPECIAL_UNK] = end;
    rq_tokenizer *tok = vocab_build(&v);
    EXPECT_IDS(tok, "aza", 0, a, a);
    rq_tokenizer_free(tok);
    v.source.special[RQ_SPECIAL_UNK] = unk;
    tok = vocab_build(&v);
    EXPECT_IDS(tok, "aza", 0, a, unk, a);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

/* The definition (llama.cpp's): for each special token, longest first, scan every remaining fragment of the text from
 * the left and cut its occurrences out. Fragments here are marks in `owner`. */
static size_t plain_partition(const vocab *v, const char *text, size_t len, int32_t *owner)
{
    size_t taken = 0;
    for (size_t i = 0; i < len; i++) owner[i] = -1;
    for (size_t length = 64; length > 0; length--)
        for (size_t id = 0; id < v->source.n_tokens; id++) {
            if (v->types[id] != RQ_TOKEN_CONTROL || v->tokens[id].len != length) continue;
            for (size_t at = 0; at + length <= len;) {
                bool here = !memcmp(text + at, v->tokens[id].data, length);
                for (size_t k = 0; here && k < length; k++) here = owner[at + k] < 0;
                if (!here) {
                    at++;
                    continue;
                }
                for (size_t k = 0; k < length; k++) owner[at + k] = (int32_t)id;
                owner[at] = (int32_t)id | 1 << 20; /* first byte */
                taken++;
                at += length;
            }
        }
    return taken;
}

static void test_against_definition(void **state)
{
    uint64_t seed = 5;
    size_t total = 0;
    for (int round = 0; round < 400; round++) {
        vocab v;
        vocab_start(&v, "gpt2", "qwen2");
        vocab_bytes(&v);
        unsigned letters = 1 + next_random(&seed) % 3;
        for (unsigned i = 0, n = 1 + next_random(&seed) % 12; i < n; i++) {
            char text[16];
            unsigned len = 1 + next_random(&seed) % 7;
            for (unsigned k = 0; k < len; k++) text[k] = (char)('a' + next_random(&seed) % letters);
            text[len] = 0;
            vocab_token(&v, text, RQ_TOKEN_CONTROL, 0);
        }
        rq_tokenizer *tok = vocab_build(&v);
        char text[120];
        int32_t owner[120];
        for (int k = 0; k < 10; k++) {
            size_t len = next_random(&seed) % 100, out = 0;
            for (size_t i = 0; i < len; i++) text[i] = (char)('a' + next_random(&seed) % (letters + 1));
            total += plain_partition(&v, text, len, owner);
            rq_tokens ids = encode(tok, text, len, RQ_TOKENIZE_PARSE_SPECIAL);
            for (size_t i = 0; i < len; i++) {
                if (owner[i] >= 0 && !(owner[i] >> 20)) continue;
                assert_true(out < ids.n);
                assert_int_equal(ids.ids[out++], owner[i] < 0 ? (uint8_t)text[i] : owner[i] & 0xFFFFF);
            }
            assert_int_equal(out, ids.n);
            rq_free(ids.ids);
        }
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
    assert_true(total > 10000);
}

/* Thousands of special tokens with common beginnings and a long text: one pass, not one per token. Would take
 * minutes if every token scanned the text. */
static void test_many(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "qwen2");
    vocab_bytes(&v);
    char text[64];
    int32_t first = 0;
    for (int i = 0; i < 20000; i++) {
        snprintf(text, sizeof text, "<|reserved_special_token_%d|>", i);
        int32_t id = vocab_token(&v, text, RQ_TOKEN_CONTROL, 0);
        if (!i) first = id;
    }
    rq_tokenizer *tok = vocab_build(&v);
    size_t len = 4 << 20;
    char *big = rq_malloc(len);
    assert_non_null(big);
    for (size_t i = 0; i < len; i++) big[i] = "<|reserved_special_token_"[i % 25];
    memcpy(big + len / 2, "<|reserved_special_token_777|>", 30);
    double start_s = now_s();
    rq_tokens ids = encode(tok, big, len, RQ_TOKENIZE_PARSE_SPECIAL);
    double took_s = now_s() - start_s;
    size_t hits = 0;
    for (size_t i = 0; i < ids.n; i++) hits += ids.ids[i] >= first;
    assert_int_equal(hits, 1);
    assert_true(took_s < 60);
    rq_free(ids.ids);
    rq_free(big);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

static int32_t id_of(const rq_tokenizer *tok, const char *text)
{
    return rq_token_by_text(tok, text, strlen(text));
}

static void test_end_of_generation(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "gpt-4o");
    vocab_bytes(&v);
    static const char *const special[] = {"<|end|>",       "<|return|>",   "<|call|>",
                                          "<|start|>",     "<|channel|>",  "<|message|>",
                                          "<|endoftext|>", "<|file_sep|>", "<|fim_pad|>"};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        vocab_token(&v, special[i], RQ_TOKEN_CONTROL, 0);
    int32_t html = vocab_token(&v, "</s>", RQ_TOKEN_NORMAL, 0); /* ordinary here: no end */
    int32_t eos = vocab_token(&v, "<mine>", RQ_TOKEN_CONTROL, 0);
    v.source.special[RQ_SPECIAL_EOS] = eos;
    rq_tokenizer *tok = vocab_build(&v);
    assert_true(rq_token_is_eog(tok, eos));
    assert_false(rq_token_is_eog(tok, html));
    assert_int_equal(rq_token_type_of(tok, html), RQ_TOKEN_NORMAL);
    assert_false(rq_token_is_eog(tok, id_of(tok, "<|end|>"))); /* gpt-oss: ends a channel */
    assert_int_equal(rq_token_type_of(tok, id_of(tok, "<|end|>")), RQ_TOKEN_USER_DEFINED);
    assert_int_equal(rq_token_type_of(tok, id_of(tok, "<|channel|>")), RQ_TOKEN_USER_DEFINED);
    static const char *const ends[] = {"<|return|>", "<|call|>", "<|endoftext|>", "<|file_sep|>",
                                       "<|fim_pad|>"};
    for (size_t i = 0; i < 5; i++) assert_true(rq_token_is_eog(tok, id_of(tok, ends[i])));
    size_t n;
    const rq_token *eog = rq_tokenizer_eog(tok, &n);
    assert_int_equal(n, 6);
    for (size_t i = 1; i < n; i++) assert_true(eog[i - 1] < eog[i]);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_no_injection),
        cmocka_unit_test(test_unknown_is_control),
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_end_of_generation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
