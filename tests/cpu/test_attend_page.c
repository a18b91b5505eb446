/* test_attend_page.c - the inner part of attention (vec/attend_impl.h) of every table of row functions, alone:
 * one page against the formula in double, and a row's bits in any block. With RQ_TEST_EMULATED the AVX-512
 * table is the one under test, on a machine that has no AVX-512. */
#include "backends/base/mem.h"
#include "backends/cpu/vec/vec.h"
#include "backends/formats/half.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
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

enum { ROWS = 26, DIM = 128, PAD = 128, PAGES = 2 };

typedef struct data {
    float q[ROWS * DIM], k[PAGES][DIM * 64], v[PAGES][64 * DIM];
    uint16_t k16[PAGES][DIM * 64], v16[PAGES][64 * DIM];
    float max[ROWS], sum[ROWS], out[ROWS * PAD];
    float panel[DIM * 16], scores[ROWS * 64];
} data;

static float noise(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*seed >> 32) * 0x1p-31f;
}

/* Values that f16 holds exactly, so that both cache types have the same answer. */
static void fill(data *d)
{
    uint64_t seed = 11;
    for (int i = 0; i < ROWS * DIM; i++) d->q[i] = noise(&seed);
    for (int p = 0; p < PAGES; p++)
        for (int i = 0; i < 64 * DIM; i++) {
            d->k16[p][i] = rq_half_from_f32(noise(&seed));
            d->v16[p][i] = rq_half_from_f32(noise(&seed));
            d->k[p][i] = rq_half_to_f32(d->k16[p][i]);
            d->v[p][i] = rq_half_to_f32(d->v16[p][i]);
        }
}

/* Rows [r0, r0 + n * group) over two pages, the second one visible in part. */
static void attend(const rq_vec *v, data *d, uint32_t r0, uint32_t n, uint32_t group, uint32_t dk,
                   uint32_t dv, bool half, float softcap, const uint8_t *lo, const uint8_t *hi)
{
    uint8_t none[ROWS] = {0}, all[ROWS];
    memset(all, 64, sizeof all);
    rq_attend_block b = {.n_queries = n,
                         .group = group,
                         .dim_k = dk,
                         .dim_v = dv,
                         .pad_v = (dv + 15) / 16 * 16,
                         .type_k = half ? RQ_TYPE_F16 : RQ_TYPE_F32,
                         .type_v = half ? RQ_TYPE_F16 : RQ_TYPE_F32,
                         .softcap = softcap,
                         .q = d->q + (size_t)r0 * dk,
                         .max = d->max,
                         .sum = d->sum,
                         .out = d->out,
                         .panel = d->panel,
                         .scores = d->scores};
    for (uint32_t r = 0; r < n * group; r++) {
        d->max[r] = -INFINITY;
        d->sum[r] = 0;
    }
    memset(d->out, 0, sizeof d->out);
    for (int p = 0; p < PAGES; p++) {
        b.k = half ? (const void *)d->k16[p] : d->k[p];
        b.v = half ? (const void *)d->v16[p] : d->v[p];
        b.lo = p == 0 ? none : lo;
        b.hi = p == 0 ? all : hi;
        v->attend_page(&b);
    }
}

static void check_row(const data *d, const char *name, uint32_t row, uint32_t at, uint32_t dk, uint32_t dv,
                      float softcap, uint32_t lo, uint32_t hi, const float *y)
{
    double s[128], max = -INFINITY, sum = 0, power = 0, error = 0;
    for (uint32_t j = 0; j < 128; j++) {
        s[j] = 0;
        for (uint32_t i = 0; i < dk; i++)
            s[j] += (double)d->q[(size_t)row * dk + i] * (double)d->k[j / 64][i * 64 + j % 64];
        if (softcap > 0) s[j] = (double)softcap * tanh(s[j] / (double)softcap);
        if (j >= 64 && (j - 64 < lo || j - 64 >= hi)) s[j] = -INFINITY;
        max = s[j] > max ? s[j] : max;
    }
    for (uint32_t j = 0; j < 128; j++) sum += s[j] = exp(s[j] - max);
    for (uint32_t i = 0; i < dv; i++) {
        double e = 0;
        for (uint32_t j = 0; j < 128; j++) e += s[j] / sum * (double)d->v[j / 64][(size_t)(j % 64) * dv + i];
        error += (e - (double)y[i]) * (e - (double)y[i]);
        power += e * e;
    }
    if (!(error <= 1e-10 * power)) fail_msg("%s: row %u (%u): error %g", name, row, at, error / power);
}

static void test_page(void **state)
{
    (void)state;
    static const struct {
        uint32_t dk, dv;
        float softcap;
    } sizes[] = {{128, 128, 0}, {64, 64, 3}, {32, 72, 0}, {8, 8, 0}, {80, 40, 2}, {24, 16, 0}};
    data *d = rq_calloc_aligned(64, sizeof *d);
    float *alone = rq_calloc(ROWS * PAD, sizeof *alone);
    fill(d);
    uint8_t lo[ROWS], hi[ROWS];
    for (int i = 0; i < ROWS; i++) {
        lo[i] = (uint8_t)(i % 5 == 4 ? i * 2 : i % 3);
        hi[i] = (uint8_t)(i == 7 ? 0 : i == 9 ? 64 : 5 + i * 2);
    }
    for (size_t a = 0; vec_at(a); a++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int half = 0; half < 2; half++) {
                uint32_t dk = sizes[s].dk, dv = sizes[s].dv, pad = (dv + 15) / 16 * 16;
                float finished[PAD];
                for (uint32_t i = 0; i < ROWS; i++) {
                    attend(vec_at(a), d, i, 1, 1, dk, dv, half, sizes[s].softcap, lo + i, hi + i);
                    vec_at(a)->attend_finish(d->out, d->sum[0], finished, dv);
                    check_row(d, vec_at(a)->name, i, 0, dk, dv, sizes[s].softcap, lo[i], hi[i], finished);
                    memcpy(alone + i * PAD, d->out, dv * sizeof *alone);
                }
                for (uint32_t n = 2; n <= ROWS; n++) {
                    attend(vec_at(a), d, 0, n, 1, dk, dv, half, sizes[s].softcap, lo, hi);
                    for (uint32_t i = 0; i < n; i++)
                        assert_memory_equal(d->out + i * pad, alone + i * PAD, dv * sizeof *alone);
                }
            }
    rq_free(alone);
    rq_free(d);
}

/* Groups of query heads share what their query sees. */
static void test_groups(void **state)
{
    (void)state;
    data *d = rq_calloc_aligned(64, sizeof *d);
    fill(d);
    const uint8_t lo[8] = {0, 3, 0, 60, 0, 0, 1, 0}, hi[8] = {64, 9, 1, 64, 0, 33, 2, 64};
    for (size_t a = 0; vec_at(a); a++)
        for (uint32_t group = 1; group <= 8; group++)
            for (uint32_t n = 1; n * group <= ROWS && n <= 8; n++) {
                float finished[PAD];
                attend(vec_at(a), d, 0, n, group, 64, 64, true, 0, lo, hi);
                for (uint32_t r = 0; r < n * group; r++) {
                    vec_at(a)->attend_finish(d->out + r * 64, d->sum[r], finished, 64);
                    check_row(d, vec_at(a)->name, r, group, 64, 64, 0, lo[r / group], hi[r / group],
                              finished);
                }
            }
    rq_free(d);
}

static void test_merge(void **state)
{
    (void)state;
    for (size_t a = 0; vec_at(a); a++) {
        float max[2] = {1, -INFINITY}, sum[2] = {2, 0}, out[2 * 24];
        const float other_max[2] = {3, 0.5f}, other_sum[2] = {4, 7};
        float other[2 * 24], before[2 * 24];
        for (int i = 0; i < 48; i++) {
            out[i] = before[i] = (float)i;
            other[i] = (float)(100 - i);
        }
        vec_at(a)->attend_merge(max, sum, out, 24, other_max, other_sum, other, 24, 2, 24);
        double f = exp(-2);
        assert_true(max[0] == 3 && max[1] == 0.5f && sum[1] == 7);
        assert_true(fabs((double)sum[0] - (2 * f + 4)) < 1e-6);
        for (int i = 0; i < 24; i++)
            assert_true(fabs((double)out[i] - ((double)before[i] * f + (double)other[i])) < 2e-5);
        assert_memory_equal(out + 24, other + 24, 24 * sizeof *out);
        /* a part that saw nothing changes no bit */
        const float nothing[2] = {-INFINITY, -INFINITY}, zero[2] = {0, 0};
        memcpy(before, out, sizeof out);
        vec_at(a)->attend_merge(max, sum, out, 24, nothing, zero, other, 24, 2, 24);
        assert_memory_equal(out, before, sizeof out);
        float y[24];
        vec_at(a)->attend_finish(out, 0, y, 24);
        for (int i = 0; i < 24; i++) assert_true(y[i] == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_merge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
