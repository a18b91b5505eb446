/* The other systems' formats, measured on the synthetic sets, against what was measured of them before with
 * programs of another author (tools/kv/published.c). The sets are drawn number by number in the same order, so that
 * sampling does not matter and every figure must agree within 2 % and half a unit of the last digit printed there. */
#include "tools/kv/published.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <string.h>

static void test_published(void **state)
{
    kv_format_list list = {0};
    rq_error err = {0};
    for (size_t i = 0; kv_published_name(i); i++)
        assert_int_equal(kv_format_list_add(&list, kv_published_name(i), &err), RQ_OK);
    assert_true(list.n > 0);
    int bad = 0, measured = 0;
    const char *const *chosen = *state;
    for (size_t s = 0; s < KV_PUBLISHED_SETS; s++) {
        bool wanted = false;
        for (int i = 0; chosen[i]; i++) wanted |= strcmp(chosen[i], kv_set_name(kv_published_sets[s])) == 0;
        if (!wanted) continue;
        kv_experiment e = kv_experiment_default();
        kv_result results[KV_MAX_FORMATS];
        e.set = kv_published_sets[s];
        assert_int_equal(kv_experiment_run(&e, &list, results, NULL, NULL, &err), RQ_OK);
        for (size_t i = 0; i < list.n; i++) {
            assert_string_equal(results[i].name, kv_published_name(i));
            measured++;
            if (kv_published_agrees(&results[i], s, &err) == RQ_OK) continue;
            print_message("%s\n", err.text);
            bad++;
        }
    }
    assert_int_equal(bad, 0);
    assert_true(measured >= (int)list.n);
}

/* Figures that are a little off are noticed, each of them. */
static void test_disagreement(void **state)
{
    rq_error err = {0};
    kv_result got = {.name = "ref-turbo3",
                     .bits_k = 3.125,
                     .bits_v = 3.125,
                     .quality = {.k_nmse = 0.03382, .kl = 0.06641, .out = 0.3680}};
    assert_int_equal(kv_published_agrees(&got, 0, &err), RQ_OK);
    for (int what = 0; what < 5; what++) {
        kv_result off = got;
        double *figures[] = {&off.quality.k_nmse, &off.quality.kl, &off.quality.out, &off.bits_k,
                             &off.bits_v};
        *figures[what] *= 1.03;
        assert_int_equal(kv_published_agrees(&off, 0, &err), RQ_ERR_INTERNAL);
    }
    assert_int_equal(kv_published_agrees(&got, KV_PUBLISHED_SETS, &err), RQ_ERR_ARGUMENT);
    assert_false(kv_published_has("wht3"));
    assert_int_equal(kv_published_check("wht3", &err), RQ_ERR_ARGUMENT);
}

/* Arguments: the sets. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_published, argv + 1),
                                       cmocka_unit_test(test_disagreement)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
