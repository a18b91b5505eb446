/* test_pointwise.c - the elementary functions behind gates and softmax, for every table of row functions this
 * machine runs: error of exp over its whole range, special values, lengths that are no multiple of a register. */
#include "backends/cpu/vec/vec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#ifdef RQ_TEST_EMULATED
extern const rq_vec rq_vec_avx512_emulated;
#endif

static const rq_vec *vec_at(size_t i)
{
#ifdef RQ_TEST_EMULATED
    return i == 0 ? &rq_vec_avx512_emulated : NULL;
#else
    return rq_cpu_isa_at(i) ? rq_vec_of(rq_cpu_isa_at(i)) : NULL;
#endif
}

/* 2^-22.5 relative on [-87.336, 88]: what math_impl.h promises. */
static void test_exp(void **state)
{
    (void)state;
    enum { N = 4096 };
    for (size_t a = 0; vec_at(a); a++) {
        double worst = 0;
        float x[N], y[N];
        for (int block = 0; block < 200; block++) {
            for (int i = 0; i < N; i++)
                x[i] = -87.336f + 175.336f * ((float)(block * N + i) / (200.0f * N)) + 1e-5f * (float)(i % 7);
            vec_at(a)->exp(x, y, N);
            for (int i = 0; i < N; i++) {
                if (x[i] > 88) continue;
                double e = exp((double)x[i]), d = fabs((double)y[i] / e - 1);
                worst = d > worst ? d : worst;
            }
        }
        if (worst > pow(2, -22.5)) fail_msg("%s: relative error %g", vec_at(a)->name, worst);
        const float special[] = {0, -0.0f, -87.337f, -200, -INFINITY, 88, 1000, INFINITY, NAN};
        vec_at(a)->exp(special, y, 9);
        assert_true(y[0] == 1 && y[1] == 1 && y[2] == 0 && y[3] == 0 && y[4] == 0);
        assert_true(y[6] == y[5] && y[7] == y[5] && isfinite(y[5]) && isnan(y[8]));
    }
}

static void test_gates(void **state)
{
    (void)state;
    for (size_t a = 0; vec_at(a); a++)
        for (size_t n = 1; n < 40; n++) {
            float g[48], u[48], y[48];
            for (size_t i = 0; i < 48; i++) {
                g[i] = ((float)i - 20) * (i % 3 ? 0.37f : 9.0f);
                u[i] = 1.5f;
                y[i] = -77;
            }
            vec_at(a)->glu(g, u, y, n, RQ_ACT_SILU);
            for (size_t i = 0; i < n; i++) {
                double e = 1.5 * (double)g[i] / (1 + exp(-(double)g[i]));
                assert_true(fabs((double)y[i] - e) <= 1e-6 * fabs(e) + 1e-30);
            }
            for (size_t i = n; i < 48; i++) assert_true(y[i] == -77);
            vec_at(a)->glu(g, u, y, n, RQ_ACT_GELU_TANH);
            for (size_t i = 0; i < n; i++) {
                double x = (double)g[i],
                       e = 1.5 * x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
                assert_true(fabs((double)y[i] - e) <= 5e-6 * fabs(e) + 1e-30);
            }
            for (size_t i = n; i < 48; i++) assert_true(y[i] == -77);
        }
}

/* Every row function at every short length: neighbours untouched, and against the formula. */
static void test_rows(void **state)
{
    (void)state;
    for (size_t a = 0; vec_at(a); a++) {
        const rq_vec *v = vec_at(a);
        for (size_t n = 1; n < 70; n++) {
            float x[80], w[80], y[80], z[80];
            uint16_t h[80];
            for (size_t i = 0; i < 80; i++) {
                x[i] = sinf((float)(i * 37 % 101)) * 3;
                w[i] = cosf((float)(i * 11 % 53));
                y[i] = z[i] = -77;
                h[i] = 0x1234;
            }
            double square = 0;
            for (size_t i = 0; i < n; i++) square += (double)x[i] * (double)x[i];
            double factor = 1 / sqrt(square / (double)n + 1e-6);
            v->rms_norm(x, w, y, n, 1e-6f);
            v->rms_norm(x, NULL, z, n, 1e-6f);
            for (size_t i = 0; i < n; i++) {
                assert_true(fabs((double)y[i] - (double)x[i] * factor * (double)w[i]) < 2e-6);
                assert_true(fabs((double)z[i] - (double)x[i] * factor) < 2e-6);
            }
            assert_true(y[n] == -77 && z[n] == -77);
            v->add(x, w, y, n);
            v->mul(x, w, z, n);
            for (size_t i = 0; i < n; i++) assert_true(y[i] == x[i] + w[i] && z[i] == x[i] * w[i]);
            assert_true(y[n] == -77 && z[n] == -77);
            v->scale(x, 0.3f, y, n);
            memcpy(z, y, sizeof z);
            v->weigh_add(w, 1.7f, z, n);
            for (size_t i = 0; i < n; i++) {
                assert_true(y[i] == x[i] * 0.3f);
                assert_true(fabs((double)z[i] - ((double)y[i] + (double)w[i] * (double)1.7f)) < 1e-6);
            }
            assert_true(y[n] == -77 && z[n] == -77);
            v->to_f16(x, h, n);
            for (size_t i = 0; i < n; i++) assert_int_equal(h[i], rq_f32_to_f16(x[i]));
            assert_int_equal(h[n], 0x1234);
            float max = 0;
            size_t best = v->argmax(x, n, &max), expected = 0;
            for (size_t i = 0; i < n; i++)
                if (x[i] > x[expected]) expected = i;
            assert_int_equal(best, expected);
            assert_true(max == x[expected]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
