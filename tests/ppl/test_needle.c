/* The trials of rqvk-needle: what is planted, where, and what counts as right. Arguments: a model file, any, and
 * the Python file whose test side the wordings are. */
#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "tools/needle/report.h"
#include "tools/ppl/text.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static rq_model *model;
static const char *recall_py;

static char *haystack_text(void)
{
    rq_buf text = {.max = 1 << 20};
    for (int i = 0; i < 400; i++)
        rq_buf_printf(&text, "This is sentence number %d of a\n text  without any sense%s ", i,
                      i % 3 ? "." : "?");
    return text.data;
}

/* Every wording stands in the second list of its pair, and the second lists hold no others. */
static void check_list(const char *source, const char *start, const char *const *list)
{
    const char *begin = strstr(source, start), *second = begin ? strstr(begin, "    [\n") : NULL;
    assert_non_null(second);
    if (!second) return;
    second = strstr(second + 5, "    [\n");
    assert_non_null(second);
    const char *end = strstr(second, "\n    ],");
    assert_non_null(end);
    size_t n = 0, lines = 0;
    for (; list[n]; n++) {
        char quoted[128];
        snprintf(quoted, sizeof quoted, "        \"%s\",\n", list[n]);
        const char *at = strstr(second, quoted);
        if (!at || at >= end) fail_msg("%s is no wording of the test side", list[n]);
    }
    for (const char *c = second + 6; c <= end; c++) lines += *c == '\n';
    assert_int_equal(n, lines);
}

static void test_wordings(void **state)
{
    char *source = NULL;
    size_t bytes = 0;
    rq_error err = {0};
    assert_int_equal(rq_text_read(recall_py, &source, &bytes, &err), RQ_OK);
    check_list(source, "FACTS = (", rq_needle_facts);
    check_list(source, "ASKS = (", rq_needle_asks);
    char answer[64];
    snprintf(answer, sizeof answer, "ANSWER = \"%s\"\n", rq_needle_answer);
    assert_non_null(strstr(source, answer));
    for (size_t i = 0; rq_needle_things[i]; i++) assert_non_null(strstr(source, rq_needle_things[i]));
    rq_free(source);
}

static void test_names(void **state)
{
    /* The checksum of zlib: the check value of CRC-32 is published with its definition. */
    assert_int_equal(rq_needle_crc32("123456789"), 0xCBF43926);
    rq_needle_random r = rq_needle_random_start(1, 0);
    char first[RQ_NEEDLE_NAME_BYTES] = "";
    unsigned different = 0;
    for (int i = 0; i < 500; i++) {
        char name[RQ_NEEDLE_NAME_BYTES];
        rq_needle_name(&r, name);
        assert_true(strlen(name) >= 3 && name[0] >= 'A' && name[0] <= 'Z');
        assert_int_equal(rq_needle_crc32(name) % 8, 0);
        different += strcmp(name, first) != 0;
        memcpy(first, name, sizeof first);
    }
    assert_true(different > 490);
    uint64_t counts[10] = {0};
    for (int i = 0; i < 100000; i++) counts[rq_needle_below(&r, 10)]++;
    for (int i = 0; i < 10; i++) assert_in_range(counts[i], 9600, 10400); /* 4.2 standard deviations */
}

static void test_trials(void **state)
{
    rq_error err = {0};
    char *text = haystack_text();
    rq_needle_haystack h;
    rq_needle_form form;
    assert_int_equal(rq_needle_haystack_make(model, text, strlen(text), &h, &err), RQ_OK);
    assert_int_equal(h.n, 400);
    assert_int_equal(rq_needle_form_of(model, &form, &err), RQ_OK);
    static const uint32_t lengths[] = {512, 1500};
    uint32_t depths_sum[3] = {0};
    for (uint64_t i = 0; i < 60; i++) {
        uint32_t length = lengths[i % 2];
        rq_needle_trial t, again;
        assert_int_equal(rq_needle_trial_make(model, &h, &form, 7, i, length, (double)(i % 3) / 2, &t, &err),
                         RQ_OK);
        assert_true(t.prompt.n <= length && t.prompt.n + 150 > length);
        if (form.chat && h.n_pad == 1) assert_int_equal(t.fact_position % 8, 5);
        assert_true(t.fact_position < t.prompt.n);
        depths_sum[i % 3] += t.fact_position * 1000 / length;
        /* The text holds the fact and asks for it. */
        char *shown = NULL;
        assert_int_equal(rq_detokenize(model, t.prompt.ids, t.prompt.n, true, &shown, &err), RQ_OK);
        const char *value = strstr(shown, t.value);
        assert_non_null(value);
        assert_null(strstr(value + 1, t.value));
        const char *question = strstr(shown, "\n\n");
        assert_non_null(question);
        assert_non_null(strstr(question, t.name));
        assert_non_null(strstr(question, t.thing));
        assert_non_null(strstr(t.answer, t.value));
        rq_string_free(shown);
        /* The fact begins where it is said to. */
        assert_int_equal(rq_detokenize(model, t.prompt.ids + t.fact_position, 60, false, &shown, &err),
                         RQ_OK);
        value = strstr(shown, t.value);
        assert_non_null(value);
        assert_true(memmem(shown, (size_t)(value - shown), ". ", 2) == NULL ||
                    memmem(shown, (size_t)(value - shown), "letter", 6) != NULL);
        rq_string_free(shown);
        assert_int_equal(
            rq_needle_trial_make(model, &h, &form, 7, i, length, (double)(i % 3) / 2, &again, &err), RQ_OK);
        assert_int_equal(again.prompt.n, t.prompt.n);
        assert_memory_equal(again.prompt.ids, t.prompt.ids, t.prompt.n * sizeof *t.prompt.ids);
        rq_tokens_free(&again.prompt);
        rq_tokens_free(&t.prompt);
    }
    assert_true(depths_sum[0] < 20 * 250 && depths_sum[2] > 20 * 500 && depths_sum[1] > depths_sum[0] &&
                depths_sum[1] < depths_sum[2]);
    rq_needle_trial t;
    assert_int_equal(rq_needle_trial_make(model, &h, &form, 7, 0, 20, 0.5, &t, &err), RQ_ERR_ARGUMENT);
    rq_needle_haystack_free(&h);
    rq_free(text);
    assert_int_equal(rq_needle_haystack_make(model, "Too short.", 10, &h, &err), RQ_ERR_FORMAT);
    assert_int_equal(rq_needle_haystack_make(model, "\0\xff\xfe. \0", 7, &h, &err), RQ_ERR_FORMAT);
}

static void test_judge(void **state)
{
    rq_needle_trial t = {.value = "40713", .answer = "The code of Brea is 40713."};
    assert_int_equal(rq_needle_judge(&t, "The code of Brea is 40713."), RQ_NEEDLE_SENTENCE);
    assert_int_equal(rq_needle_judge(&t, " The code of Brea is 40713. \n"), RQ_NEEDLE_SENTENCE);
    assert_int_equal(rq_needle_judge(&t, "It is 40713"), RQ_NEEDLE_VALUE);
    assert_int_equal(rq_needle_judge(&t, "140713 or 40713."), RQ_NEEDLE_VALUE);
    assert_int_equal(rq_needle_judge(&t, "140713"), RQ_NEEDLE_WRONG);
    assert_int_equal(rq_needle_judge(&t, "407134"), RQ_NEEDLE_WRONG);
    assert_int_equal(rq_needle_judge(&t, "4071"), RQ_NEEDLE_WRONG);
    assert_int_equal(rq_needle_judge(&t, ""), RQ_NEEDLE_WRONG);
}

/* Counting: two cells, two formats, outcomes written by hand. */
static void test_figures(void **state)
{
    rq_entries entries = {.n = 2};
    rq_needle_job job = {.entries = &entries,
                         .lengths = {256, 512},
                         .n_lengths = 2,
                         .depths = {50},
                         .n_depths = 1,
                         .n_each = 3};
    enum { N = RQ_NEEDLE_NOT_RUN, W = RQ_NEEDLE_WRONG, V = RQ_NEEDLE_VALUE, S = RQ_NEEDLE_SENTENCE };
    uint8_t outcomes[6][2] = {{S, V}, {V, W}, {W, S}, {W, W}, {S, S}, {S, N}};
    rq_needle_results results = {.n_trials = 6, .n_done = 6, .outcomes = outcomes[0]};
    rq_needle_figures f = rq_needle_figures_of(&job, &results, 1, RQ_NEEDLE_ANY, RQ_NEEDLE_ANY);
    assert_true(f.n == 5 && f.values == 3 && f.sentences == 2 && f.paired.gained == 1 && f.paired.lost == 1);
    f = rq_needle_figures_of(&job, &results, 0, RQ_NEEDLE_ANY, RQ_NEEDLE_ANY);
    assert_true(f.n == 6 && f.values == 4 && f.sentences == 3 && f.paired.gained == 0 && f.paired.lost == 0);
    f = rq_needle_figures_of(&job, &results, 1, 1, 0); /* trials 1, 3, 5 */
    assert_true(f.n == 2 && f.values == 0 && f.paired.lost == 1);
}

int main(int argc, char **argv)
{
    if (argc != 3) return 1;
    rq_error err = {0};
    if (rq_model_load(argv[1], &model, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    recall_py = argv[2];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_wordings), cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_trials), cmocka_unit_test(test_judge),
                                       cmocka_unit_test(test_figures)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rq_model_free(model);
    return failed;
}
