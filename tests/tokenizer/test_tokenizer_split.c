/* The table of patterns: every row compiles, machine code and interpretation cut alike, nothing is lost, and words
 * fall where the patterns' authors wanted them. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"
#include "engine/tokenizer/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* The words of a text with '|' between them. */
static rq_status collect(void *user, const uint8_t *word, size_t len, rq_error *err)
{
    rq_buf *out = user;
    assert_true(len > 0);
    if (out->len) assert_true(rq_buf_append(out, "|", 1));
    assert_true(rq_buf_append(out, word, len));
    return RQ_OK;
}

static void cut(const rq_pattern *pattern, bool jit, const char *text, size_t len, rq_buf *out)
{
    rq_error err = {{0}};
    rq_splitter *s = NULL;
    bool have = jit;
    if (rq_splitter_create(pattern, &have, &s, &err)) fail_msg("%s: %s", pattern->name, err.text);
    if (!jit) assert_false(have);
    rq_split_state *state = rq_split_state_create(s);
    assert_non_null(state);
    rq_buf_clear(out);
    if (rq_split(s, state, (const uint8_t *)text, len, collect, out, &err)) fail_msg("%s", err.text);
    rq_split_state_free(state);
    rq_splitter_free(s);
}

static void test_rows(void **state)
{
    static const char text[] =
        "Hello there, it's 1234567 o'clock!\r\n\r\n  I'LL  go\t\tnow...   \n x\xC3\xA9y e\xCC\x81 "
        "\xE4\xB8\xAD\xE6\x96\x87\xE3\x81\x82 \xED\x95\x9C\xF0\x9F\x91\xA9\xE2\x80\x8D"
        "\xF0\x9F\x91\xA7 \xC2\xA0\xE2\x80\x83z {\"a\": [1.5e-3, null]}  ";
    rq_buf fast = {.max = 1 << 24}, slow = {.max = 1 << 24};
    size_t n_rows = 0;
    for (const rq_pre *pre; (pre = rq_pre_at(n_rows)); n_rows++) {
        assert_ptr_equal(rq_pre_find((rq_vocab_text){pre->name, strlen(pre->name)}), pre);
        cut(pre->pattern, true, text, sizeof text - 1, &fast);
        cut(pre->pattern, false, text, sizeof text - 1, &slow);
        assert_string_equal(fast.data, slow.data);
        size_t at = 0; /* without the bars it is the text again (which has none) */
        for (size_t i = 0; i < fast.len; i++)
            if (fast.data[i] != '|') assert_int_equal(fast.data[i], text[at++]);
        assert_int_equal(at, sizeof text - 1);
    }
    assert_true(n_rows > 40);
    assert_null(rq_pre_find((rq_vocab_text){"qwen", 4}));
    rq_buf_free(&fast);
    rq_buf_free(&slow);
}

/* Long runs must not exhaust the interpreter either: its match limit is where a pattern that backtracks would show. */
static void test_long_runs(void **state)
{
    static const char *const units[] = {"a", " ", "\n", ".", "7", "\xCC\x81", "\xE4\xB8\xAD", "A"};
    size_t len = 240000;
    char *text = rq_malloc(len);
    assert_non_null(text);
    rq_buf fast = {.max = 1 << 24}, slow = {.max = 1 << 24};
    const rq_pattern *last = NULL;
    for (size_t row = 0; rq_pre_at(row); row++) {
        const rq_pattern *pattern = rq_pre_at(row)->pattern;
        if (pattern == last) continue;
        last = pattern;
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t n = strlen(units[u]), some = row % 4 ? len / 100 : len;
            for (size_t i = 0; i < some; i++) text[i] = units[u][i % n];
            memcpy(text + some - 6, "x 1 .\n", 6);
            cut(pattern, true, text, some, &fast);
            cut(pattern, false, text, some, &slow);
            assert_int_equal(fast.len, slow.len);
            assert_memory_equal(fast.data, slow.data, fast.len);
        }
    }
    rq_buf_free(&fast);
    rq_buf_free(&slow);
    rq_free(text);
}

static void expect_words(const char *pre, const char *text, const char *words)
{
    rq_buf out = {.max = 1 << 16};
    const rq_pre *row = rq_pre_find((rq_vocab_text){pre, strlen(pre)});
    assert_non_null(row);
    cut(row->pattern, true, text, strlen(text), &out);
    assert_string_equal(out.data, words);
    rq_buf_free(&out);
}

/* Cut by hand from the patterns. */
static void test_words(void **state)
{
    expect_words("qwen2", "It's 2024!\n\n  ok", "It|'s| |2|0|2|4|!\n\n| | ok");
    expect_words("llama-bpe", "It'S 20245\t\tx", "It|'S| |202|45|\t|\tx");
    expect_words("gpt-2", "It's 20245\t\tx I'M", "It|'s| 20245|\t|\t|x| I|'|M");
    expect_words("starcoder", "ab 12 c", "ab| |1|2| c");
    expect_words("qwen35", "e\xCC\x81t\xCC\x81 .\xCC\x81", "e\xCC\x81t\xCC\x81| .|\xCC\x81");
    expect_words("qwen2", "e\xCC\x81t", "e|\xCC\x81t");
    /* the long s folds to s, as in the engine the models were trained with */
    expect_words("qwen2", "x'\xC5\xBFy", "x|'\xC5\xBF|y");
    /* U+180E is no white space any more since Unicode 6.3 */
    expect_words("qwen2", "a \xE1\xA0\x8E b", "a| \xE1\xA0\x8E| b");
    expect_words("deepseek-v3", "a+b 1234\xE4\xB8\xAD\xE6\x96\x87 x",
                 "a|+b| |123|4|\xE4\xB8\xAD\xE6\x96\x87| x");
    expect_words("deepseek-coder", "f(x)\n  y12", "f|(|x|)|\n| | y|1|2");
    expect_words("deepseek-llm", "ab  1234 x  ", "ab|  |1234| x|  ");
    expect_words("gpt-4o", "camelCase'll HTTPServer 1234", "camel|Case'll| HTTPServer| |123|4");
    expect_words("tekken", "it's 12", "it|'s| |1|2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
