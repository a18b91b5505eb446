/* Merging against its definition. The definitions are written down as slowly and plainly as they read: "merge the
 * adjacent pair with the lowest rank (highest score), the leftmost of equals, until there is none", on strings. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"
#include "engine/tokenizer/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_PARTS = 4000, NONE = 1 << 30 };

static int find_token(const vocab *v, const char *text, size_t len)
{
    for (size_t i = 0; i < v->source.n_tokens; i++)
        if (v->tokens[i].len == len && !memcmp(v->tokens[i].data, text, len)) return (int)i;
    return -1;
}

static int find_merge(const vocab *v, const char *text, size_t left, size_t right)
{
    for (size_t i = 0; i < v->source.n_merges; i++) {
        const rq_vocab_text *m = &v->merges[i];
        if (m->len == left + right + 1 && m->data[left] == ' ' && !memcmp(m->data, text, left) &&
            !memcmp(m->data + left + 1, text + left, right))
            return (int)i;
    }
    return -1;
}

static int cost_of(const vocab *v, bool by_score, const char *text, size_t left, size_t right)
{
    int found = by_score ? find_token(v, text, left + right) : find_merge(v, text, left, right);
    return found < 0 ? NONE : by_score ? -(int)v->scores[found] : found; /* the tests' scores are integers */
}

/* Cuts `text` (in vocabulary spelling) into parts; sizes[] holds the bytes of the parts, first the characters. */
static size_t merge_plainly(const vocab *v, bool by_score, const char *text, size_t *sizes, size_t n)
{
    static size_t at[MAX_PARTS];
    static int cost[MAX_PARTS]; /* of the pair i, i + 1 */
    for (size_t i = 0; i < n; i++) at[i] = i ? at[i - 1] + sizes[i - 1] : 0;
    for (size_t i = 0; i + 1 < n; i++) cost[i] = cost_of(v, by_score, text + at[i], sizes[i], sizes[i + 1]);
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (cost[i] < cost[best]) best = i;
        if (n < 2 || cost[best] == NONE) return n;
        sizes[best] += sizes[best + 1];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            sizes[i] = sizes[i + 1];
            at[i] = at[i + 1];
            cost[i] = cost[i + 1];
        }
        if (best) cost[best - 1] = cost_of(v, by_score, text + at[best - 1], sizes[best - 1], sizes[best]);
        if (best + 1 < n) cost[best] = cost_of(v, by_score, text + at[best], sizes[best], sizes[best + 1]);
    }
}

static void compare(const vocab *v, const rq_tokenizer *tok, bool by_score, const char *input,
                    size_t input_len, const char *spelled)
{
    static size_t sizes[MAX_PARTS];
    size_t n = 0, at = 0, out = 0;
    for (const char *p = spelled; *p;) {
        size_t len = 1;
        while ((p[len] & 0xC0) == 0x80) len++;
        assert_true(n < MAX_PARTS);
        sizes[n++] = len;
        p += len;
    }
    n = merge_plainly(v, by_score, spelled, sizes, n);
    rq_tokens ids = encode(tok, input, input_len, 0);
    for (size_t i = 0; i < n; at += sizes[i++]) {
        int id = find_token(v, spelled + at, sizes[i]);
        if (id >= 0) {
            assert_true(out < ids.n);
            assert_int_equal(ids.ids[out++], id);
            continue;
        }
        for (size_t k = 0; k < sizes[i]; k++) { /* byte fallback: <0x00> is token 0 */
            assert_true(out < ids.n);
            assert_int_equal(ids.ids[out++], (uint8_t)spelled[at + k]);
        }
    }
    assert_int_equal(out, ids.n);
    rq_free(ids.ids);
}

static void append(char *text, size_t *len, const char *more)
{
    size_t n = strlen(more);
    memcpy(text + *len, more, n + 1);
    *len += n;
}

/* Letters only, so that the pattern cuts nothing. */
static void random_letters(uint64_t *seed, char *out, size_t n, unsigned letters)
{
    for (size_t i = 0; i < n; i++) out[i] = (char)('a' + next_random(seed) % letters);
    out[n] = 0;
}

static void test_byte_level(void **state)
{
    uint64_t seed = 1;
    for (int round = 0; round < 60; round++) {
        vocab v;
        char a[8], b[8], text[MAX_PARTS];
        vocab_start(&v, "gpt2", "qwen2");
        vocab_bytes(&v);
        unsigned letters = 2 + next_random(&seed) % 3;
        for (int i = 0; i < 40; i++) {
            random_letters(&seed, a, 1 + next_random(&seed) % 3, letters);
            random_letters(&seed, b, 1 + next_random(&seed) % 3, letters);
            snprintf(text, sizeof text, "%s %s", a, b);
            size_t n = strlen(a);
            char joined[16];
            snprintf(joined, sizeof joined, "%s%s", a, b);
            if (find_merge(&v, joined, n, strlen(b)) >= 0) continue;
            vocab_merge(&v, text);
            /* every result a token: otherwise its bytes would be emitted, tested below */
            if (find_token(&v, joined, strlen(joined)) < 0) vocab_token(&v, joined, RQ_TOKEN_NORMAL, 0);
        }
        rq_tokenizer *tok = vocab_build(&v);
        for (size_t len = 1; len < MAX_PARTS;
             len += 1 + len / (round % 8 ? 4 : 2)) { /* all three ways to merge */
            if (len > 200 && round % 8) break;
            random_letters(&seed, text, len, letters);
            compare(&v, tok, false, text, len, text);
        }
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

/* Scores with many ties; tokens with spaces inside and without, so that texts may be cut at spaces and may not. */
static void test_scores(void **state)
{
    uint64_t seed = 2;
    static const char *const units[] = {"a", "b", "c", "\xE2\x96\x81", "\xC3\xA9", "\xE4\xB8\xAD"};
    for (int round = 0; round < 80; round++) {
        vocab v;
        char text[64];
        vocab_start(&v, "llama", NULL);
        v.source.add_space_prefix = 0;
        vocab_bytes(&v);
        vocab_token(&v, "a", RQ_TOKEN_NORMAL, 0);
        vocab_token(&v, "\xE2\x96\x81", RQ_TOKEN_NORMAL, 0);
        bool inner_spaces = round % 2;
        for (int i = 0; i < 60; i++) {
            text[0] = 0;
            for (unsigned k = 0, n = 2 + next_random(&seed) % 4; k < n; k++) {
                const char *unit = units[next_random(&seed) % 6];
                if (!inner_spaces && k && unit[0] == '\xE2' && text[strlen(text) - 1] != '\x81') unit = "b";
                snprintf(text + strlen(text), sizeof text - strlen(text), "%s", unit);
            }
            if (find_token(&v, text, strlen(text)) < 0)
                vocab_token(&v, text, RQ_TOKEN_NORMAL, (float)(next_random(&seed) % 12));
        }
        rq_tokenizer *tok = vocab_build(&v);
        for (int k = 0; k < 30; k++) {
            static char input[3 * MAX_PARTS], spelled[3 * MAX_PARTS];
            size_t input_len = 0, spelled_len = 0;
            input[0] = spelled[0] = 0;
            for (unsigned i = 0, n = k ? 1 + next_random(&seed) % 90 : round % 8 ? 0 : 3900; i < n; i++) {
                unsigned unit = next_random(&seed) % 6;
                append(spelled, &spelled_len, units[unit]);
                append(input, &input_len, unit == 3 ? " " : units[unit]);
            }
            compare(&v, tok, true, input, strlen(input), spelled);
        }
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

static void test_gemma4_random(void **state)
{
    uint64_t seed = 3;
    static const char *const units[] = {"a", "b", "\xE2\x96\x81", "\xC3\xA9", "x"};
    for (int round = 0; round < 80; round++) {
        vocab v;
        vocab_start(&v, "gemma4", NULL);
        vocab_bytes(&v);
        vocab_token(&v, "a", RQ_TOKEN_NORMAL, 0);
        vocab_token(&v, "\xE2\x96\x81", RQ_TOKEN_NORMAL, 0);
        for (int i = 0; i < 50; i++) {
            char part[2][32] = {"", ""}, joined[80], merge[80];
            for (int side = 0; side < 2; side++)
                for (unsigned k = 0, n = 1 + next_random(&seed) % 2; k < n; k++) {
                    unsigned unit = next_random(&seed) % 4;
                    if (round % 2 && unit == 2 && (side || k)) unit = 1; /* no spaces inside */
                    snprintf(part[side] + strlen(part[side]), 32 - strlen(part[side]), "%s", units[unit]);
                }
            snprintf(joined, sizeof joined, "%s%s", part[0], part[1]);
            snprintf(merge, sizeof merge, "%s %s", part[0], part[1]);
            if (find_merge(&v, joined, strlen(part[0]), strlen(part[1])) >= 0) continue;
            vocab_merge(&v, merge);
            /* some results are no tokens: they are spelled with bytes, but still take part in merging */
            if (next_random(&seed) % 4 && find_token(&v, joined, strlen(joined)) < 0)
                vocab_token(&v, joined, RQ_TOKEN_NORMAL, 0);
        }
        rq_tokenizer *tok = vocab_build(&v);
        for (int k = 0; k < 30; k++) {
            static char input[3 * MAX_PARTS], spelled[3 * MAX_PARTS];
            size_t input_len = 0, spelled_len = 0;
            input[0] = spelled[0] = 0;
            for (unsigned i = 0, n = k ? 1 + next_random(&seed) % 90 : round % 8 ? 0 : 3900; i < n; i++) {
                unsigned unit = next_random(&seed) % 5;
                append(spelled, &spelled_len, units[unit]);
                append(input, &input_len, unit == 2 ? " " : units[unit]);
            }
            compare(&v, tok, false, input, strlen(input), spelled);
        }
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

/* Gemma 4's rules, by hand: no space in front, runs of newlines whole, BOS whatever the file says. */
static void test_gemma4_rules(void **state)
{
    vocab v;
    vocab_start(&v, "gemma4", "default");
    vocab_bytes(&v);
    int32_t bos = vocab_token(&v, "<bos>", RQ_TOKEN_CONTROL, 0),
            eos = vocab_token(&v, "<eos>", RQ_TOKEN_CONTROL, 0);
    int32_t turn = vocab_token(&v, "<turn|>", RQ_TOKEN_CONTROL, 0);
    int32_t tool = vocab_token(&v, "<|tool_response>", RQ_TOKEN_USER_DEFINED, 0);
    int32_t html = vocab_token(&v, "</s>", RQ_TOKEN_USER_DEFINED, 0);
    int32_t n1 = vocab_token(&v, "\n", RQ_TOKEN_NORMAL, 0),
            n3 = vocab_token(&v, "\n\n\n", RQ_TOKEN_NORMAL, 0);
    int32_t h = vocab_token(&v, "h", RQ_TOKEN_NORMAL, 0),
            sp = vocab_token(&v, "\xE2\x96\x81", RQ_TOKEN_NORMAL, 0);
    int32_t hi = vocab_token(&v, "hi", RQ_TOKEN_NORMAL, 0),
            shi = vocab_token(&v, "\xE2\x96\x81hi", RQ_TOKEN_NORMAL, 0);
    vocab_merge(&v, "h i");
    vocab_merge(&v, "\xE2\x96\x81 hi");
    v.source.special[RQ_SPECIAL_BOS] = bos;
    v.source.special[RQ_SPECIAL_EOS] = eos;
    v.source.add_bos = 0;
    rq_tokenizer *tok = vocab_build(&v);
    size_t n;
    EXPECT_IDS(tok, "hi hi", RQ_TOKENIZE_ADD_SPECIAL, bos, hi, shi);
    EXPECT_IDS(tok, "hi\n\n\nhi", 0, hi, n3, hi);
    EXPECT_IDS(tok, "hi\n\nh  ", 0, hi, n1, n1, h, sp, sp);
    EXPECT_IDS(tok, "\xC3\xA9", 0, 0xC3, 0xA9);
    EXPECT_IDS(tok, "i", 0, 'i'); /* only a part of merges */
    EXPECT_IDS(tok, "<turn|>", RQ_TOKENIZE_PARSE_SPECIAL, turn);
    assert_string_equal(rq_tokenizer_get_notes(tok).algorithm, "Gemma 4 BPE");
    assert_true(rq_token_is_eog(tok, eos) && rq_token_is_eog(tok, turn) && rq_token_is_eog(tok, tool));
    assert_false(rq_token_is_eog(tok, html));
    rq_tokenizer_eog(tok, &n);
    assert_int_equal(n, 3);
    assert_memory_equal(rq_token_piece(tok, shi, &n), " hi", 3);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

/* A merge whose result is no token is made all the same, and then spelled in bytes; a merge of unknown parts too. */
static void test_merges_without_tokens(void **state)
{
    vocab v;
    vocab_start(&v, "gpt2", "gpt-2");
    vocab_bytes(&v);
    int32_t bc = vocab_token(&v, "bc", RQ_TOKEN_NORMAL, 0), abc = vocab_token(&v, "abcd", RQ_TOKEN_NORMAL, 0);
    vocab_merge(&v, "a b"); /* "ab" is no token */
    vocab_merge(&v, "b c");
    vocab_merge(&v, "ab cd"); /* reachable only through "ab" and "cd" */
    vocab_merge(&v, "c d");
    vocab_merge(&v, "nospace");
    vocab_merge(&v, " b");  /* the space at index 0 belongs to the left part: no right part */
    vocab_merge(&v, "b c"); /* again */
    vocab_merge(&v, "x ");
    vocab_merge(&v, "");
    rq_tokenizer *tok = vocab_build(&v);
    rq_tokenizer_notes notes = rq_tokenizer_get_notes(tok);
    assert_int_equal(notes.n_merges, 4);
    assert_int_equal(notes.n_bad_merges, 5);
    assert_int_equal(notes.n_unknown_merges, 2);
    rq_token a = 'a', b = 'b', c = 'c'; /* vocab_bytes: token number = byte */
    EXPECT_IDS(tok, "abc", 0, a, b, c);
    EXPECT_IDS(tok, "bc", 0, bc);
    EXPECT_IDS(tok, "abcd", 0, abc);
    rq_tokenizer_free(tok);
    vocab_end(&v);
}

/* Llama 3: a word that is a token is not merged; others are. */
static void test_whole_words_first(void **state)
{
    for (int llama = 0; llama < 2; llama++) {
        vocab v;
        vocab_start(&v, "gpt2", llama ? "llama-bpe" : "qwen2");
        vocab_bytes(&v);
        int32_t word = vocab_token(&v, "\xC4\xA0word", RQ_TOKEN_NORMAL, 0),
                wo = vocab_token(&v, "wo", RQ_TOKEN_NORMAL, 0);
        vocab_merge(&v, "w o");
        rq_tokenizer *tok = vocab_build(&v);
        if (llama)
            EXPECT_IDS(tok, " word words", 0, word, ' ', wo, 'r', 'd', 's');
        else
            EXPECT_IDS(tok, " word", 0, ' ', wo, 'r', 'd');
        assert_false(rq_tokenizer_add_bos(tok)); /* wanted by Llama 3, but there is none */
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

/* The queue against a list that is searched; in both its ways, and with ranks that come too late. */
static void test_queue(void **state)
{
    uint64_t seed = 6;
    static rq_queue_item list[20000];
    for (int round = 0; round < 40; round++) {
        rq_queue q = {0};
        for (int word = 0; word < 2; word++) { /* the same queue again */
            size_t n = 0, n_popped = 0;
            uint32_t n_ranks = round % 2 ? 100 : 5000;
            assert_true(rq_queue_start(&q, round % 4 < 2 ? 100 : 5000, n_ranks));
            uint32_t low = 0;
            for (;;) {
                uint32_t r = next_random(&seed);
                if (n_popped < 3000 && n < 4000 && (r % 3 || !n)) {
                    /* mostly above what was popped last, as in merging; sometimes anywhere */
                    uint32_t rank =
                        r % 7 ? low + next_random(&seed) % (n_ranks - low) : next_random(&seed) % n_ranks;
                    list[n++] = (rq_queue_item){rank, next_random(&seed) % 5000};
                    assert_true(rq_queue_push(&q, list[n - 1].rank, list[n - 1].left));
                    continue;
                }
                rq_queue_item got;
                rq_queue_result result = rq_queue_pop(&q, &got);
                if (!n) {
                    assert_int_equal(result, RQ_QUEUE_EMPTY);
                    break;
                }
                assert_int_equal(result, RQ_QUEUE_ITEM);
                size_t best = 0;
                for (size_t i = 1; i < n; i++)
                    if (list[i].rank < list[best].rank ||
                        (list[i].rank == list[best].rank && list[i].left < list[best].left))
                        best = i;
                assert_int_equal(got.rank, list[best].rank);
                assert_int_equal(got.left, list[best].left);
                low = got.rank;
                list[best] = list[--n];
                n_popped++;
            }
        }
        rq_queue_free(&q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_gemma4_random),
        cmocka_unit_test(test_gemma4_rules),
        cmocka_unit_test(test_merges_without_tokens),
        cmocka_unit_test(test_whole_words_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
