/* Statistics of the measuring tools. Expected figures: scipy 1.17.1 (stats.sem, stats.entropy, special.softmax),
 * statsmodels 0.15.0 (proportion_confint "wilson", contingency_tables.mcnemar exact) and numpy 2.4.6 (std, quantile). */
#include "tools/ppl/compare.h"
#include "tools/ppl/stats.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>

static void near(double got, double want, double relative)
{
    if (fabs(got - want) > relative * fmax(1e-300, fabs(want)) + 1e-15)
        fail_msg("%.15g is not %.15g", got, want);
}

static void test_mean(void **state)
{
    static const double values[] = {3.5, -1.25, 7, 0.5, 2, 2, 9.75};
    rq_mean m = {0};
    for (int i = 0; i < 7; i++) rq_mean_add(&m, values[i]);
    rq_mean_finish(&m);
    assert_int_equal(m.n, 7);
    near(m.mean, 3.357142857142857, 1e-14);
    near(m.deviation, 3.81296347690225, 1e-13);
    near(m.error, 1.44116473115079, 1e-13);
    rq_mean one = {0};
    rq_mean_add(&one, 5);
    rq_mean_finish(&one);
    assert_true(one.mean == 5 && one.error == 0);
    /* A large offset must not eat the spread: 1e9 + {0, 1, 2}. */
    rq_mean far = {0};
    for (int i = 0; i < 3; i++) rq_mean_add(&far, 1e9 + i);
    rq_mean_finish(&far);
    near(far.deviation, 1, 1e-9);
}

static void test_quantile(void **state)
{
    static const double at[] = {0, 0.1, 0.5, 0.99, 1}, want[] = {-1.25, -0.2, 2, 9.585, 9.75};
    for (int i = 0; i < 5; i++) {
        float v[] = {3.5f, -1.25f, 7, 0.5f, 2, 2, 9.75f};
        near(rq_quantile(v, 7, at[i]), want[i], 1e-6);
    }
    float one[] = {4};
    near(rq_quantile(one, 1, 0.99), 4, 0);
    assert_true(isnan(rq_quantile(one, 0, 0.5)));
}

static void test_wilson(void **state)
{
    static const struct {
        uint64_t k, n;
        double low, high;
    } rows[] = {{0, 10, 0, 0.277532799862889},
                {10, 10, 0.722467200137111, 1},
                {3, 10, 0.107791267406301, 0.603221852538855},
                {81, 263, 0.255288519878274, 0.3662095769828},
                {1999, 2000, 0.997173137496734, 0.999911732269294},
                {1, 1, 0.206549314377237, 1},
                {0, 0, 0, 1}};
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        rq_interval w = rq_wilson95(rows[i].k, rows[i].n);
        near(w.low, rows[i].low, 1e-12);
        near(w.high, rows[i].high, 1e-12);
    }
}

static void test_mcnemar(void **state)
{
    static const struct {
        uint64_t gained, lost;
        double p;
    } rows[] = {{0, 0, 1},
                {0, 1, 1},
                {6, 0, 0.03125},
                {5, 12, 0.143463134765625},
                {121, 59, 4.43444926375516e-06},
                {30, 30, 1},
                {1000, 1100, 0.0307207078642425},
                {2, 15, 0.002349853515625}};
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        near(rq_mcnemar_exact((rq_paired){5000, rows[i].gained, rows[i].lost}), rows[i].p, 1e-10);
        near(rq_mcnemar_exact((rq_paired){5000, rows[i].lost, rows[i].gained}), rows[i].p, 1e-10);
    }
}

/* The interval must hold the true difference about 95 times in 100: counted over draws. With 4,000 draws the share
 * counted has a standard error of 0.35 points; three of them beside the 94 to 98 of such intervals. */
static void test_paired_coverage(void **state)
{
    static const struct {
        unsigned n;
        double gain, loss;
    } rows[] = {{200, 0.06, 0.03}, {200, 0.01, 0.02}, {60, 0.2, 0.1}, {2000, 0.004, 0.004}};
    uint64_t random = 1;
    for (unsigned r = 0; r < sizeof rows / sizeof *rows; r++) {
        unsigned held = 0, draws = 4000;
        for (unsigned d = 0; d < draws; d++) {
            rq_paired p = {.n = rows[r].n};
            for (unsigned i = 0; i < rows[r].n; i++) {
                random = random * 6364136223846793005u + 1442695040888963407u;
                double u = (double)(random >> 11) / 9007199254740992.0;
                p.gained += u < rows[r].gain;
                p.lost += u >= rows[r].gain && u < rows[r].gain + rows[r].loss;
            }
            rq_interval c = rq_paired_difference95(p);
            double truth = rows[r].gain - rows[r].loss;
            held += c.low <= truth && truth <= c.high;
        }
        double share = (double)held / draws;
        if (share < 0.93 || share > 0.99) fail_msg("row %u: %.3f of the intervals hold the truth", r, share);
    }
    rq_interval none = rq_paired_difference95((rq_paired){.n = 2000});
    assert_true(none.low < 0 && none.high > 0 && none.high < 0.002);
    rq_interval all = rq_paired_difference95((rq_paired){.n = 3, .gained = 3});
    assert_true(all.high <= 1);
}

static void test_rows(void **state)
{
    static const float z[] = {1.5f, -2, 0.25f, 3, 0}, y[] = {1.25f, -1, 0.5f, 2, 0.75f};
    float p[5];
    rq_reference_row reference;
    rq_reference_of(z, 5, p, &reference);
    assert_true(reference.finite && reference.likeliest == 3);
    rq_row_score s = rq_compare_row(y, 5, 3, z, p, &reference);
    assert_true(s.finite && s.same_top);
    near(s.kl, 0.154671268533442, 2e-7);
    near(s.nll, 0.708916478101035, 1e-7);
    /* Adding a constant to all logits changes nothing. */
    float shifted[5];
    for (int i = 0; i < 5; i++) shifted[i] = y[i] + 64;
    near(rq_compare_row(shifted, 5, 3, z, p, &reference).kl, 0.154671268533442, 1e-6);
    assert_true(fabs((double)rq_compare_row(z, 5, 0, z, p, &reference).kl) < 1e-15);
    /* What is far out stays finite; what is not finite is said. */
    static const float wide[] = {1e30f, -1e30f, 0, 0, 0}, bad[] = {1, NAN, 0, 0, 0},
                       worse[] = {1, INFINITY, 0, 0, 0};
    rq_reference_of(wide, 5, p, &reference);
    assert_true(reference.finite && reference.likeliest == 0 && fabs((double)p[0] - 1) < 1e-6);
    assert_false(rq_compare_row(bad, 5, 0, wide, p, &reference).finite);
    assert_false(rq_compare_row(worse, 5, 0, wide, p, &reference).finite);
    rq_reference_of(bad, 5, p, &reference);
    assert_false(reference.finite);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mean),    cmocka_unit_test(test_quantile),        cmocka_unit_test(test_wilson),
        cmocka_unit_test(test_mcnemar), cmocka_unit_test(test_paired_coverage), cmocka_unit_test(test_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
