/* The parts of the instruments: opponents' tables and rotations, metrics against plain formulas, tables, drawings,
 * lists, and what happens when memory runs out. */
#include "backends/base/mem.h"
#include "tools/kv/experiment.h"
#include "tools/kv/foreign.h"
#include "tools/kv/random.h"
#include "tools/kv/svg.h"
#include "tools/kv/table.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double density(double x)
{
    return exp(-x * x / 2) / sqrt(2 * M_PI);
}

static double below(double x)
{
    return 0.5 * erfc(-x / sqrt(2));
}

static double quantile(double p)
{
    double low = -10, high = 10;
    for (int i = 0; i < 100; i++) {
        double mid = 0.5 * (low + high);
        if (below(mid) < p)
            low = mid;
        else
            high = mid;
    }
    return 0.5 * (low + high);
}

/* Mean of N(0, 1) between a and b. */
static double cell_mean(double a, double b)
{
    return (density(a) - (isinf(b) ? 0 : density(b))) / ((isinf(b) ? 1 : below(b)) - below(a));
}

/* Lloyd-Max: every level is the mean of its cell, cells end half way between levels. The defective table: means
 * of equally probable cells. */
static void test_tables(void **state)
{
    for (int which = KV_LEVELS_2; which <= KV_LEVELS_4_EQUAL; which++) {
        uint32_t n;
        const float *levels = kv_foreign_levels((kv_levels)which, &n);
        for (uint32_t i = 0; i < n; i++) {
            double a = i ? (levels[i - 1] + levels[i]) / 2.0 : 0;
            double b = i + 1 < n ? (levels[i] + levels[i + 1]) / 2.0 : INFINITY;
            if (which == KV_LEVELS_4_EQUAL) {
                a = quantile(0.5 + i / 16.0);
                b = i + 1 < n ? quantile(0.5 + (i + 1) / 16.0) : INFINITY;
            }
            assert_true(fabs(cell_mean(a, b) - levels[i]) < 2e-6);
        }
    }
}

/* Rows so fine that only the rotation is left: with q8_0 of a rotated row the length and, for dims of every shape,
 * the direction stay within the code's error. */
static void test_foreign_shapes(void **state)
{
    static const uint32_t dims[] = {8, 32, 64, 80, 96, 112, 128, 192, 256, 576};
    rq_error err = {0};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t f = 0; kv_foreign_name(f); f++) {
            kv_foreign *foreign = NULL;
            uint32_t d = dims[i];
            assert_int_equal(kv_foreign_make(kv_foreign_name(f), d, 7, &foreign, &err), RQ_OK);
            float rows[2][576];
            kv_random r = kv_random_start(d);
            double error = 0, energy = 0;
            for (uint32_t c = 0; c < d; c++) rows[0][c] = rows[1][c] = (float)kv_random_normal(&r);
            kv_foreign_trip(foreign, rows[1], 1);
            for (uint32_t c = 0; c < d; c++) {
                double delta = (double)rows[1][c] - rows[0][c];
                error += delta * delta;
                energy += (double)rows[0][c] * rows[0][c];
            }
            /* The worst code here has two bits: 0.12 in the mean, of few elements sometimes more. */
            assert_true(error <= 0.3 * energy);
            assert_true(kv_foreign_bits(foreign) >= 2 && kv_foreign_bits(foreign) <= 12);
            memset(rows[1], 0, sizeof rows[1]);
            kv_foreign_trip(foreign, rows[1], 1);
            for (uint32_t c = 0; c < d; c++) assert_true(rows[1][c] == 0);
            kv_foreign_free(foreign);
        }
    kv_foreign *none = NULL;
    assert_int_equal(kv_foreign_make("ref-none", 128, 0, &none, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(kv_foreign_make("ref-q8_0", 12, 0, &none, &err), RQ_ERR_ARGUMENT);
    assert_null(none);
}

/* kv_measure against the definitions, written down plainly, with a causal mask, a cap and unequal head sizes. */
static void test_metrics(void **state)
{
    enum { N = 9, Q = 4, DK = 24, DV = 16 };
    float k[N * DK], kh[N * DK], v[N * DV], vh[N * DV], q[Q * DK];
    uint32_t from[Q] = {0, 0, 2, 5}, to[Q] = {1, 9, 8, 6};
    kv_random r = kv_random_start(3);
    for (int i = 0; i < N * DK; i++)
        kh[i] = (k[i] = (float)kv_random_normal(&r)) + (float)(0.1 * kv_random_normal(&r));
    for (int i = 0; i < N * DV; i++)
        vh[i] = (v[i] = (float)kv_random_normal(&r)) + (float)(0.1 * kv_random_normal(&r));
    for (int i = 0; i < Q * DK; i++) q[i] = (float)(0.5 * kv_random_normal(&r));
    kv_case c = {.n = N,
                 .n_queries = Q,
                 .dim_k = DK,
                 .dim_v = DV,
                 .k = k,
                 .v = v,
                 .q = q,
                 .from = from,
                 .to = to,
                 .softcap = 3};
    kv_exact exact;
    kv_quality m;
    rq_error err = {0};
    assert_int_equal(kv_exact_make(&c, &exact, &err), RQ_OK);
    assert_int_equal(kv_measure(&exact, kh, vh, &m, &err), RQ_OK);
    double logit = 0, kl = 0, top1 = 0, error = 0, energy = 0, key_error = 0, key_energy = 0;
    for (int t = 0; t < Q; t++) {
        double l[2][N], p[2][N], o[2][DV] = {{0}}, mean = 0, square = 0;
        int best[2] = {(int)from[t], (int)from[t]};
        for (int h = 0; h < 2; h++) {
            double sum = 0;
            for (uint32_t j = from[t]; j < to[t]; j++) {
                double dot = 0;
                for (int i = 0; i < DK; i++)
                    dot += (double)q[t * DK + i] * (h ? kh : k)[j * DK + (uint32_t)i];
                l[h][j] = 3 * tanh(dot / 3);
                sum += p[h][j] = exp(l[h][j]);
                if (l[h][j] > l[h][best[h]]) best[h] = (int)j;
            }
            for (uint32_t j = from[t]; j < to[t]; j++) {
                p[h][j] /= sum;
                for (int i = 0; i < DV; i++) o[h][i] += p[h][j] * (h ? vh : v)[j * DV + (uint32_t)i];
            }
        }
        double n = to[t] - from[t];
        for (uint32_t j = from[t]; j < to[t]; j++) {
            mean += (l[1][j] - l[0][j]) / n;
            square += (l[1][j] - l[0][j]) * (l[1][j] - l[0][j]) / n;
            kl += p[0][j] * log(p[0][j] / p[1][j]);
        }
        logit += square - mean * mean;
        top1 += best[0] == best[1];
        for (int i = 0; i < DV; i++) {
            error += (o[0][i] - o[1][i]) * (o[0][i] - o[1][i]);
            energy += o[0][i] * o[0][i];
        }
    }
    for (int i = 0; i < N * DK; i++) {
        key_error += ((double)k[i] - kh[i]) * ((double)k[i] - kh[i]);
        key_energy += (double)k[i] * k[i];
    }
    assert_true(fabs(m.logit_rmse - sqrt(logit / Q)) < 1e-5);
    assert_true(fabs(m.kl - kl / Q) < 1e-5);
    assert_true(fabs(m.top1 - top1 / Q) < 1e-12);
    assert_true(fabs(m.out - sqrt(error / energy)) < 1e-5);
    assert_true(fabs(m.k_nmse - key_error / key_energy) < 1e-9);
    assert_int_equal(kv_measure(&exact, k, v, &m, &err), RQ_OK); /* nothing lost: nothing measured */
    assert_true(m.k_nmse == 0 && m.kl == 0 && m.out == 0 && m.top1 == 1 && fabs(m.k_cosine - 1) < 1e-12);
    assert_true(fabs(m.best_gain_k - 1) < 1e-12 && fabs(m.best_gain_v - 1) < 1e-12);
    kv_exact_free(&exact);
    to[0] = 0;
    assert_int_equal(kv_exact_make(&c, &exact, &err), RQ_ERR_ARGUMENT);
}

/* Values that shrink by 1 - D: the gain of 1 / (1 - D) takes the bias of many averaged tokens away. */
static void test_unbiased_gain(void **state)
{
    enum { N = 512, D = 32 };
    static float k[N * D], v[N * D], vh[N * D], q[2 * D];
    kv_random r = kv_random_start(4);
    for (int i = 0; i < N * D;
         i++) { /* v^ = (1 - D) v + noise of variance D (1 - D), as least squares leaves it */
        v[i] = (float)(kv_random_normal(&r) + 1);
        vh[i] = (float)(0.8 * v[i] + sqrt(0.16 * 2) * kv_random_normal(&r));
    }
    kv_case c = {.n = N, .n_queries = 2, .dim_k = D, .dim_v = D, .k = k, .v = v, .q = q};
    kv_exact exact;
    kv_quality m;
    rq_error err = {0};
    assert_int_equal(kv_exact_make(&c, &exact, &err), RQ_OK);
    assert_int_equal(kv_measure(&exact, k, vh, &m, &err), RQ_OK);
    assert_true(fabs(m.v_nmse - 0.2) < 0.01);
    assert_true(m.out > 0.18 && m.out_unbiased < 0.06 && fabs(m.best_gain_v - 1.25) < 0.03);
    kv_exact_free(&exact);
}

static char *written(rq_status (*write)(void *what, FILE *out, rq_error *err), void *what)
{
    char *text = NULL;
    size_t bytes;
    rq_error err = {0};
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    assert_int_equal(write(what, out, &err), RQ_OK);
    fclose(out);
    return text;
}

typedef struct table_writing {
    kv_table table;
    kv_table_format format;
} table_writing;

static rq_status write_table(void *what, FILE *out, rq_error *err)
{
    table_writing *w = what;
    const kv_note notes[] = {{"model", "a\"b\x01\xff"}};
    return kv_table_write(&w->table, w->format, "tool", notes, 1, out, err);
}

static void test_table(void **state)
{
    static const kv_column columns[] = {{"name", 0}, {"x", 2}};
    table_writing w;
    kv_table_start(&w.table, columns, 2);
    kv_table_text(&w.table, "a,\"b|");
    kv_table_number(&w.table, 1.0 / 3);
    kv_table_text(&w.table, "c");
    kv_table_number(&w.table, NAN);
    w.format = KV_TABLE_CSV;
    char *text = written(write_table, &w);
    assert_string_equal(text, "name,x\n\"a,\"\"b|\",0.333333333\nc,\n");
    free(text);
    w.format = KV_TABLE_JSON;
    text = written(write_table, &w);
    assert_non_null(strstr(text, "\"model\": \"a\\u0022b\\u0001\\ufffd\""));
    assert_non_null(strstr(text, "\"rows\": [\n  {\"name\": \"a,\\u0022b|\", \"x\": 0.333333333},\n"
                                 "  {\"name\": \"c\", \"x\": null}]}\n"));
    free(text);
    w.format = KV_TABLE_MD;
    text = written(write_table, &w);
    assert_string_equal(text, "| name  | x    |\n|-------|-----:|\n| a,\"b/ | 0.33 |\n| c     |      |\n");
    free(text);
    rq_error err = {0};
    assert_int_equal(kv_table_show(&w.table, "x", &err), RQ_OK);
    w.format = KV_TABLE_CSV;
    text = written(write_table, &w);
    assert_string_equal(text, "x\n0.333333333\n\n");
    free(text);
    w.format = KV_TABLE_MD;
    text = written(write_table, &w);
    assert_string_equal(text, "| x    |\n|-----:|\n| 0.33 |\n|      |\n");
    free(text);
    assert_int_equal(kv_table_show(&w.table, "x,y", &err), RQ_ERR_ARGUMENT);
    assert_int_equal(kv_table_show(&w.table, "", &err), RQ_ERR_ARGUMENT);
    kv_table_text(&w.table, "half a row");
    assert_int_equal(kv_table_write(&w.table, KV_TABLE_MD, "tool", NULL, 0, stdout, &err), RQ_ERR_INTERNAL);
    kv_table_free(&w.table);
}

static rq_status write_plot(void *what, FILE *out, rq_error *err)
{
    return kv_svg_plot(what, out, err);
}

static rq_status write_heat(void *what, FILE *out, rq_error *err)
{
    return kv_svg_heat(what, out, err);
}

static void test_drawings(void **state)
{
    const kv_point points[] = {
        {3.125, 0.02, 0.005, "a<b", 0}, {4.125, 0.006, 0, "c&d", 1}, {1, -1, 0, "lost", 0}};
    const char *names[] = {"one", "two"};
    kv_plot plot = {"title", "x", "y", true, names, 2, points, 3};
    char *text = written(write_plot, &plot);
    assert_non_null(strstr(text, "a&lt;b"));
    assert_non_null(strstr(text, "c&amp;d"));
    assert_null(strstr(text, "lost"));
    assert_non_null(strstr(text, "</svg>"));
    assert_null(strstr(text, "nan"));
    free(text);
    plot.n_points = 1; /* one point: ranges of no width */
    text = written(write_plot, &plot);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    free(text);
    rq_error err = {0};
    plot.points = points + 2;
    assert_int_equal(kv_svg_plot(&plot, stdout, &err), RQ_ERR_ARGUMENT);
    const double values[] = {0, 0.5, 1, NAN};
    kv_heat heat = {"heat", "x", "y", names, names, 2, 2, values};
    text = written(write_heat, &heat);
    assert_non_null(strstr(text, "hsl(60,"));
    assert_null(strstr(text, "nan"));
    free(text);
}

static void test_lists(void **state)
{
    kv_format_list list = {0};
    rq_error err = {0};
    assert_int_equal(kv_format_list_add(&list, "wht3,iso4,wht3", &err), RQ_OK);
    assert_int_equal(list.n, 2);
    assert_int_equal(kv_format_list_add(&list, kv_format_all, &err), RQ_OK);
    assert_int_equal(kv_format_list_add_foreign(&list, &err), RQ_OK);
    for (size_t i = 0; i < list.n; i++) { /* every name makes a format */
        kv_format *f = NULL;
        if (kv_format_make(list.names[i], 128, 1, &f, &err)) fail_msg("%s", err.text);
        assert_string_equal(kv_format_name(f), list.names[i]);
        assert_int_equal(kv_format_is_foreign(f), strncmp(list.names[i], "ref-", 4) == 0);
        kv_format_free(f);
    }
    assert_int_equal(kv_format_list_add(&list, "a,,b", &err), RQ_ERR_ARGUMENT);
    assert_int_equal(kv_format_list_add(&list, "a-name-that-is-longer-than-any-format", &err),
                     RQ_ERR_ARGUMENT);
    kv_format *f = NULL;
    assert_int_equal(kv_format_make("wht9", 128, 1, &f, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(kv_format_make("ref-wht9", 128, 1, &f, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(kv_format_make("wht3", 20, 1, &f, &err), RQ_ERR_UNSUPPORTED);
}

/* Elements that are not finite are zeros to every format, and rows beside them are not touched by that. */
static void test_not_finite(void **state)
{
    static const char *const names[] = {"f16", "wht3", "q4_0", "ref-turbo3", "ref-q4_0"};
    rq_error err = {0};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        kv_format *f = NULL;
        float rows[2][3 * 128];
        kv_random r = kv_random_start(5);
        for (int i = 0; i < 3 * 128; i++) rows[0][i] = rows[1][i] = (float)kv_random_normal(&r);
        rows[0][128 + 5] = 0;
        rows[1][128 + 5] = n & 1 ? NAN : INFINITY;
        assert_int_equal(kv_format_make(names[n], 128, 1, &f, &err), RQ_OK);
        assert_int_equal(kv_format_trip(f, n & 1, rows[0], 3, &err), RQ_OK);
        assert_int_equal(kv_format_trip(f, n & 1, rows[1], 3, &err), RQ_OK);
        assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
        kv_format_free(f);
    }
}

static void test_memory(void **state)
{
    kv_experiment e = kv_experiment_default();
    e.set = KV_SET_ROPE;
    e.n_keys = 70;
    e.n_queries = 3;
    e.n_heads = 2;
    e.dim = 32;
    kv_format_list list = {0};
    rq_error err = {0};
    assert_int_equal(kv_format_list_add(&list, "haar3,ref-planar3", &err), RQ_OK);
    kv_result results[2];
    int64_t alive = rq_mem_alive();
    for (uint64_t at = 1;; at++) {
        assert_true(at < 1000);
        rq_mem_fail_at(at);
        rq_status s = kv_experiment_run(&e, &list, results, NULL, NULL, &err);
        bool reached = rq_mem_count() >= at;
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        if (!reached) {
            assert_int_equal(s, RQ_OK);
            break;
        }
        assert_int_equal(s, RQ_ERR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tables),  cmocka_unit_test(test_foreign_shapes),
                                       cmocka_unit_test(test_metrics), cmocka_unit_test(test_unbiased_gain),
                                       cmocka_unit_test(test_table),   cmocka_unit_test(test_drawings),
                                       cmocka_unit_test(test_lists),   cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
