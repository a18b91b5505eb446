/* Time grows with the text, not with its square: ratios of processor time, never absolute times. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Processor time of encoding a part and the whole of a text: the best of several tries, because other programs' work
 * shows in ours through caches and memory. Stops as soon as the whole takes no more than three times the half; what
 * is quadratic takes four times, however often one tries. */
static bool grows_linearly(const rq_tokenizer *tok, const char *text, size_t len, double *half_s,
                           double *whole_s)
{
    *half_s = *whole_s = 1e9;
    for (int i = 0; i < 6; i++) {
        double time_s[2];
        for (int k = 0; k < 2; k++) {
            double start_s = now_s();
            rq_tokens ids = encode(tok, text, k ? len : len / 2, 0);
            time_s[k] = now_s() - start_s;
            rq_free(ids.ids);
        }
        if (time_s[0] < *half_s) *half_s = time_s[0];
        if (time_s[1] < *whole_s) *whole_s = time_s[1];
        if (*whole_s <= 3 * *half_s || *whole_s < 0.01) return true;
    }
    return false;
}

/* Runs of one kind of character are where patterns go quadratic. */
static void expect_linear(const char *name, const rq_tokenizer *tok, const char *unit, size_t len, char last)
{
    size_t n = strlen(unit);
    double half_s, whole_s;
    char *text = rq_malloc(len);
    assert_non_null(text);
    for (size_t i = 0; i < len; i++) text[i] = unit[i % n];
    if (last) text[len / 2 - 1] = text[len - 1] = last;
    /* A quadratic pattern takes most of a second for this; below a twentieth the clock says little. */
    if (!grows_linearly(tok, text, len, &half_s, &whole_s) && whole_s > 0.05)
        fail_msg("%s: %zu bytes of \"%s\" take %.4f s, half of them %.4f s", name, len, unit, whole_s,
                 half_s);
    rq_free(text);
}

static void test_linear(void **state)
{
    static const char *const patterns[] = {
        "default",        "gpt-2",       "llama-bpe", "qwen2",  "qwen35", "starcoder",  "deepseek-llm",
        "deepseek-coder", "deepseek-v3", "gpt-4o",    "tekken", "falcon", "seed-coder", "bailingmoe"};
    static const char *const units[] = {
        "a",    "A",        " ",        "\n",           "\r\n", "\t", "1",
        ".",    "'",        "\xCC\x81", "\xE4\xB8\xAD", " \n",  "aA", "\xE2\x80\x8B",
        "\xFF", "\xC2\xA0", "\x01"};
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
        vocab v;
        vocab_start(&v, "gpt2", patterns[p]);
        vocab_bytes(&v);
        rq_tokenizer *tok = vocab_build(&v);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            expect_linear(patterns[p], tok, units[u], 40000, 0);
            expect_linear(patterns[p], tok, units[u], 40000, '~'); /* runs that end */
            expect_linear(patterns[p], tok, units[u], 40000, '7');
        }
        rq_tokenizer_free(tok);
        vocab_end(&v);
    }
}

/* 10 MB that no pattern cuts. */
static void test_long_words(void **state)
{
    static const char *const vocabs[] = {"ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-spm.gguf"};
    static const size_t lens[] = {10000000, 4000000};
    char *text = rq_malloc(lens[0]);
    assert_non_null(text);
    uint64_t seed = 8;
    for (size_t k = 0; k < sizeof vocabs / sizeof *vocabs; k++) {
        rq_tokenizer *tok = load_vocab(vocabs[k]);
        size_t len = lens[k];
        for (int same = 0; same < 2; same++) {
            for (size_t i = 0; i < len; i++) text[i] = same ? 'a' : "etaoinshrdlu"[next_random(&seed) % 12];
            double half_s, whole_s;
            if (!grows_linearly(tok, text, len, &half_s, &whole_s))
                fail_msg("%s: %zu bytes %.2f s, half of them %.2f s", vocabs[k], len, whole_s, half_s);
        }
        if (k < 1) expect_round_trip(tok, text, len);
        rq_tokenizer_free(tok);
    }
    rq_free(text);
}

/* A million merges, most of them of parts that are no tokens. */
static double build_s(size_t n_merges)
{
    vocab v;
    char text[64];
    uint64_t seed = 12;
    vocab_start(&v, "gpt2", "qwen2");
    vocab_bytes(&v);
    for (size_t i = 0; i < n_merges; i++) {
        size_t n = 3 + next_random(&seed) % 12, space = 1 + next_random(&seed) % (n - 2);
        for (size_t k = 0; k < n; k++) text[k] = k == space ? ' ' : (char)('a' + next_random(&seed) % 26);
        text[n] = 0;
        vocab_merge(&v, text);
    }
    double start_s = now_s();
    rq_tokenizer *tok = vocab_build(&v);
    double took_s = now_s() - start_s;
    assert_true(rq_tokenizer_get_notes(tok).n_merges > n_merges / 2);
    rq_tokenizer_free(tok);
    vocab_end(&v);
    return took_s;
}

static void test_million_merges(void **state)
{
    /* four times the merges; the tables outgrow the caches on the way, which costs something once */
    double quarter_s = 1e9, whole_s = 1e9;
    for (int i = 0; i < 4 && (!i || whole_s > 9 * quarter_s); i++) {
        double a = build_s(250000), b = build_s(1000000);
        if (a < quarter_s) quarter_s = a;
        if (b < whole_s) whole_s = b;
    }
    if (whole_s > 9 * quarter_s)
        fail_msg("250,000 merges take %.2f s, 1,000,000 take %.2f s", quarter_s, whole_s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_million_merges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
