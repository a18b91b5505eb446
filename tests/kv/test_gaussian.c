/* Our formats on independent N(0, 1), heads of 128, 2^20 samples: what the codec has to reach, and that no
 * rotation makes a difference there (any orthogonal matrix turns independent normals into independent normals). The
 * standard error of these figures is 0.1 % of them at eight heads and 0.2 % at two (k_nmse_error). */
#include "tools/kv/experiment.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

/* 131,072 samples of keys and of values for each head, few queries: only the error of rows is looked at. */
static void measure(const char *formats, uint32_t n_heads, kv_result *results, size_t *n)
{
    kv_format_list list = {0};
    rq_error err = {0};
    kv_experiment e = kv_experiment_default();
    e.set = KV_SET_GAUSSIAN;
    e.n_queries = 2;
    e.n_heads = n_heads;
    assert_int_equal(kv_format_list_add(&list, formats, &err), RQ_OK);
    if (kv_experiment_run(&e, &list, results, NULL, NULL, &err)) fail_msg("%s", err.text);
    *n = list.n;
}

static void test_bounds(void **state)
{
    static const struct {
        double bits, bound;
    } want[] = {{4.125, 0.0060}, {3.125, 0.0241}, {2.125, 0.0970}};
    kv_result r[3];
    size_t n;
    measure("wht4,wht3,wht2", 8, r, &n);
    for (size_t i = 0; i < n; i++) {
        print_message("%s: %.4f bits, K NMSE %.5f, V NMSE %.5f\n", r[i].name, r[i].bits_k,
                      r[i].quality.k_nmse, r[i].quality.v_nmse);
        assert_true(r[i].bits_k == want[i].bits && r[i].bits_v == want[i].bits);
        assert_true(r[i].quality.k_nmse <= want[i].bound);
        assert_true(r[i].quality.v_nmse <= want[i].bound);
    }
}

static void test_rotations_are_equal(void **state)
{
    kv_result r[7];
    size_t n;
    measure("none3,planar3,rotor3,iso3,so83,wht3,haar3", 2, r, &n);
    for (size_t i = 1; i < n; i++) assert_true(fabs(r[i].quality.k_nmse / r[0].quality.k_nmse - 1) < 0.01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_rotations_are_equal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
