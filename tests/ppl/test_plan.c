/* The list of formats, lists of numbers, options taken over and left out, the windows of a text, and how much of what
 * they read was coded. */
#include "tools/common/numbers.h"
#include "tools/ppl/entries.h"
#include "tools/ppl/measure.h"
#include "tools/ppl/plan.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static void test_entries(void **state)
{
    rq_entries e = {0};
    rq_error err = {0};
    assert_int_equal(rq_entries_parse("q8_0,wht4/wht3,wht3:cal,wht3,q8_0", &e, &err), RQ_OK);
    assert_int_equal(e.n, 4);
    assert_string_equal(e.items[0].label, "q8_0");
    assert_string_equal(e.items[1].k, "wht4");
    assert_string_equal(e.items[1].v, "wht3");
    assert_string_equal(e.items[1].label, "wht4/wht3");
    assert_true(e.items[2].calibrated && !e.items[3].calibrated);
    assert_string_equal(e.items[2].label, "wht3:cal");
    assert_int_equal(rq_entries_find(&e, "wht3"), 3);
    assert_int_equal(rq_entries_find(&e, "none"), 4);
    assert_int_equal(rq_entries_parse("all", &e, &err), RQ_OK);
    assert_int_equal(rq_entries_find(&e, "haar2") < e.n, 1);
    assert_int_equal(rq_entries_parse("ref-turbo3", &e, &err), RQ_OK);
    assert_true(rq_entry_is_foreign(e.items[e.n - 1].k) && !rq_entry_is_foreign(e.items[0].k));
    static const char *const bad[] = {"",         ",",
                                      "wht3,",    "wht3/",
                                      "/wht3",    "wht3/wht3/wht3",
                                      ":cal",     "wht 3",
                                      "wht3:col", "a-name-that-is-longer-than-any-format-may-be",
                                      "\xff"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        rq_entries before = e;
        assert_int_equal(rq_entries_parse(bad[i], &e, &err), RQ_ERR_ARGUMENT);
        assert_true(strlen(err.text) > 10);
        assert_memory_equal(&before, &e, sizeof e);
    }
    /* Too many are refused, and nothing of the list is taken. */
    char list[1200] = "";
    size_t at = 0;
    for (int i = 0; i < RQ_MAX_ENTRIES + 1; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%sx%d", i ? "," : "", i);
    rq_entries many = {0};
    assert_int_equal(rq_entries_parse(list, &many, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(many.n, 0);
}

static void test_windows(void **state)
{
    rq_windows w;
    rq_error err = {0};
    assert_int_equal(rq_windows_plan(1000, 100, 0, 0, false, 0, &w, &err), RQ_OK);
    assert_true(w.n == 10 && w.stride == 100 && w.first == 50 && rq_windows_rows(&w) == 49);
    assert_int_equal(rq_windows_plan(1000, 100, 0, 1, true, 0, &w, &err), RQ_OK);
    assert_true(w.n == 10 && w.stride == 99 && w.first == 0 && rq_windows_rows(&w) == 99);
    assert_int_equal(rq_windows_plan(1000, 100, 50, 0, false, 7, &w, &err), RQ_OK);
    assert_int_equal(w.n, 7);
    assert_int_equal(rq_windows_plan(1000, 100, 50, 0, false, 0, &w, &err), RQ_OK);
    assert_true(w.n == 19 && (w.n - 1) * w.stride + w.n_ctx <= 1000);
    assert_int_equal(rq_windows_plan(99, 100, 0, 0, false, 0, &w, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_windows_plan(99, 100, 0, 1, false, 0, &w, &err), RQ_OK);
    assert_int_equal(rq_windows_plan(1000, 100, 101, 0, false, 0, &w, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_windows_plan(1000, 3, 0, 0, false, 0, &w, &err), RQ_ERR_ARGUMENT);
}

/* Key by key, from the sentence in the design: a query at p reads page s exact if s < S or s >= B(p), with
 * B(p) = max(S, floor((p + 1 - R) / 64)). */
static double by_hand(const rq_windows *w, int recent, int sinks)
{
    double coded = 0, all = 0;
    int first_pages = (sinks + 63) / 64;
    for (int p = (int)w->first; p < (int)w->n_ctx - 1; p++)
        for (int key = 0; key <= p; key++) {
            int page = key / 64, boundary = (int)floor((p + 1 - recent) / 64.0);
            if (boundary < first_pages) boundary = first_pages;
            coded += page >= first_pages && page < boundary;
            all++;
        }
    return coded / all;
}

static void test_share(void **state)
{
    static const uint32_t contexts[] = {130, 256, 700, 1024, 2048}, recents[] = {64, 128, 256},
                          sinks[] = {0, 64, 128};
    for (unsigned c = 0; c < 5; c++)
        for (unsigned r = 0; r < 3; r++)
            for (unsigned s = 0; s < 3; s++) {
                rq_windows w = {.n_ctx = contexts[c], .first = contexts[c] / 2, .n = 1};
                double got = rq_coded_share(&w, recents[r], sinks[s], 0);
                assert_true(fabs(got - by_hand(&w, (int)recents[r], (int)sinks[s])) < 1e-12);
                assert_true(rq_coded_share(&w, recents[r], sinks[s], 512) == 0);
            }
}

/* What the advice names does what it promises, and nothing less does. */
static void test_advice(void **state)
{
    rq_windows w = {.n_ctx = 512, .first = 256, .n = 1};
    uint32_t n_ctx, recent;
    rq_coded_share_advice(&w, false, 128, 0, &n_ctx, &recent);
    rq_windows wide = {.n_ctx = n_ctx, .first = n_ctx / 2, .n = 1},
               less = {.n_ctx = n_ctx - 64, .first = n_ctx / 2 - 32};
    assert_true(by_hand(&wide, 128, 0) >= 0.8 && by_hand(&less, 128, 0) < 0.8);
    assert_int_equal(recent, 0); /* half of 512 is too short even for 64 */
    w = (rq_windows){.n_ctx = 1024, .first = 512, .n = 1};
    rq_coded_share_advice(&w, false, 128, 0, &n_ctx, &recent);
    assert_int_equal(recent, 64);
    assert_true(by_hand(&w, 128, 0) < 0.8 && by_hand(&w, 64, 0) >= 0.8);
}

static void test_numbers(void **state)
{
    rq_numbers l = {.min = 1, .max = 4096, .most = 3};
    rq_error err = {0};
    assert_int_equal(rq_numbers_parse(&l, "512", &err), RQ_OK);
    assert_true(l.n == 1 && l.values[0] == 512);
    assert_int_equal(rq_numbers_parse(&l, "1,4096,7", &err), RQ_OK); /* replaces the list */
    assert_true(l.n == 3 && l.values[0] == 1 && l.values[1] == 4096 && l.values[2] == 7);
    static const char *const wrong[] = {"",    ",",    "1,",  ",1",  "1,,2", "0", "4097",
                                        "-1",  "1,-2", "1 2", "1;2", "12x",  "x", "18446744073709551617",
                                        "1.5", "0x10", "1,a", "1e3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (rq_numbers_parse(&l, wrong[i], &err) != RQ_ERR_ARGUMENT) fail_msg("\"%s\" is taken", wrong[i]);
    assert_int_equal(rq_numbers_parse(&l, "1,2,3,4", &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "more than 3"));
    l.most = 0; /* as many as there is room for */
    char many[4 * RQ_MAX_NUMBERS + 4] = "1";
    for (int i = 1; i < RQ_MAX_NUMBERS; i++) memcpy(many + 2 * i - 1, ",1", 3);
    assert_int_equal(rq_numbers_parse(&l, many, &err), RQ_OK);
    assert_int_equal(l.n, RQ_MAX_NUMBERS);
    memcpy(many + 2 * RQ_MAX_NUMBERS - 1, ",1", 3);
    assert_int_equal(rq_numbers_parse(&l, many, &err), RQ_ERR_ARGUMENT);
}

static void test_options(void **state)
{
    static rq_options engine, measure;
    rq_measure_args args = {.engine = rq_engine_args_default(), .formats = "f16"};
    const rq_engine_params *p = &args.engine.params;
    rq_options_engine(&engine, &args.engine);
    rq_options_measure(&measure, &args, "formats");
    assert_int_equal(measure.n,
                     engine.n - 3 + 3); /* heading, text and formats instead of the cache's three */
    assert_null(rq_options_find(&measure, &p->type_k));
    assert_null(rq_options_find(&measure, &p->type_v));
    assert_null(rq_options_find(&measure, &p->cache_tokens));
    assert_string_equal(rq_options_find(&measure, &args.formats)->names, "--formats");
    assert_string_equal(rq_options_find(&measure, &p->n_ctx)->names,
                        rq_options_find(&engine, &p->n_ctx)->names);
    size_t n = measure.n;
    rq_options_drop(&measure, &p->n_ctx);
    rq_options_drop(&measure, &p->n_ctx); /* is gone: nothing happens */
    assert_int_equal(measure.n, n - 1);
    assert_string_equal(measure.items[n - 2].names, "--formats");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_entries), cmocka_unit_test(test_windows),
                                       cmocka_unit_test(test_share),   cmocka_unit_test(test_advice),
                                       cmocka_unit_test(test_numbers), cmocka_unit_test(test_options)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
