/* test_attend_coded.c - one page in code (vec/coded_impl.h) under every table of row functions: against plain
 * decoding and the formula in double; a row's bits in any block; the same bits from every instruction set where
 * the arithmetic promises them. With RQ_TEST_EMULATED the AVX-512 table is under test on any machine. */
#include "backends/base/mem.h"
#include "backends/cpu/vec/vec.h"
#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#ifdef RQ_TEST_EMULATED
extern const rq_vec rq_vec_avx512_emulated;
#endif

/* The plain table first: the others are compared with it. */
static const rq_vec *vec_at(size_t i)
{
#ifdef RQ_TEST_EMULATED
    return i == 0 ? &rq_vec_scalar : i == 1 ? &rq_vec_avx512_emulated : NULL;
#else
    return rq_cpu_isa_at(i) ? rq_vec_of(rq_cpu_isa_at(i)) : NULL;
#endif
}

enum { ROWS = 26, MAX_DIM = 256, PAGES = 2 };

/* K and V of a page in code and what they decode to. */
typedef struct page {
    _Alignas(64) uint8_t block[MAX_DIM * 64 * 2 * 2 + MAX_DIM * 64]; /* as in a coded page of one head */
    float k[MAX_DIM * 64], v[MAX_DIM * 64];                          /* [dim][64], gains included */
} page;

typedef struct shape {
    rq_kv_form form_k, form_v;
    uint32_t dk, dv;
    float softcap;
} shape;

typedef struct data {
    float q[ROWS * MAX_DIM], bias[ROWS];
    int16_t codes[ROWS * MAX_DIM];
    float q_scales[ROWS * MAX_DIM / 8];
    page pages[PAGES];
    float max[ROWS], sum[ROWS], out[ROWS * MAX_DIM];
    float panel[MAX_DIM * 16], scores[ROWS * 64];
    rq_coded_layout layout;
    rq_attend_code code_k, code_v;
} data;

static const shape shapes[] = {
    {RQ_KV_C3, RQ_KV_C3, 128, 128, 0},    {RQ_KV_C2, RQ_KV_C4, 64, 64, 0},
    {RQ_KV_C4, RQ_KV_C2, 128, 128, 0},    {RQ_KV_Q8_0, RQ_KV_Q8_0, 128, 128, 0},
    {RQ_KV_Q4_0, RQ_KV_Q4_0, 128, 64, 0}, {RQ_KV_C3, RQ_KV_SAME, 128, 128, 0},
    {RQ_KV_SAME, RQ_KV_C3, 128, 128, 0},  {RQ_KV_SAME, RQ_KV_Q8_0, 40, 40, 3},
    {RQ_KV_C3, RQ_KV_C3, 256, 256, 0},    {RQ_KV_C3, RQ_KV_C2, 80, 72, 2},
    {RQ_KV_C2, RQ_KV_C3, 40, 136, 0},     {RQ_KV_C4, RQ_KV_C4, 8, 8, 0},
    {RQ_KV_C3, RQ_KV_C2, 24, 16, 0},      {RQ_KV_C2, RQ_KV_C3, 192, 96, 0},
    {RQ_KV_Q8_0, RQ_KV_C4, 72, 120, 0},   {RQ_KV_Q4_0, RQ_KV_Q8_0, 40, 88, 5},
    {RQ_KV_C2, RQ_KV_C3, 120, 104, 0},    {RQ_KV_C42, RQ_KV_C42, 128, 128, 0},
    {RQ_KV_C42, RQ_KV_C3, 72, 64, 0},     {RQ_KV_Q8_0, RQ_KV_C42, 64, 200, 3},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static uint64_t seed;

static float uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

/* Roughly normal, deviation 1. */
static float normal(void)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += uniform();
    return sum * 0.70710678f;
}

static void make_side(rq_kv_form form, bool is_v, uint32_t d, uint8_t *words, uint8_t *scales, float *decoded)
{
    float *x = rq_calloc((size_t)d * 64, sizeof *x);
    for (uint32_t t = 0; t < 64; t++) {
        float size = 0.05f + 2 * fabsf(uniform());
        for (uint32_t i = 0; i < d; i++) x[i * 64 + t] = t == 17 && i < 64 ? 0 : normal() * size;
    }
    if (form == RQ_KV_SAME) {
        for (uint32_t i = 0; i < d; i++)
            for (uint32_t t = 0; t < 64; t++) {
                uint16_t h = rq_half_from_f32(x[i * 64 + t]);
                memcpy(words + 2 * (size_t)(is_v ? t * d + i : i * 64 + t), &h, 2);
                decoded[i * 64 + t] = rq_half_to_f32(h);
            }
    } else {
        rq_kv_encode_block(NULL, form, is_v, d, x, (uint32_t *)(void *)words, scales);
        rq_kv_decode_block(form, is_v, d, (const uint32_t *)(const void *)words, scales, decoded);
        for (uint32_t n = 0; n < rq_kv_spans(form); n++) {
            rq_kv_span span = rq_kv_span_of(form, d, n);
            const rq_kv_codec *row = rq_kv_codec_of(span.form);
            float gain = row ? is_v ? row->gain_v : row->gain_k : 1;
            for (uint32_t i = span.first * 64; i < (span.first + span.size) * 64; i++) decoded[i] *= gain;
        }
    }
    rq_free(x);
}

static void fill(data *d, const shape *s)
{
    seed = 11;
    rq_cache_group group = {.n_layers = 1,
                            .n_heads = 1,
                            .dim_k = s->dk,
                            .dim_v = s->dv,
                            .type_k = RQ_TYPE_F16,
                            .type_v = RQ_TYPE_F16,
                            .form_k = s->form_k,
                            .form_v = s->form_v,
                            .recent_pages = 1};
    d->layout = rq_coded_layout_of(&group);
    assert_true(d->layout.head_bytes <= sizeof d->pages[0].block);
    d->code_k = rq_attend_code_of(s->form_k, false);
    d->code_v = rq_attend_code_of(s->form_v, true);
    for (uint32_t i = 0; i < ROWS * s->dk; i++) d->q[i] = normal() * 2 / sqrtf((float)s->dk);
    for (uint32_t i = 0; i < ROWS; i++) d->bias[i] = normal();
    for (int p = 0; p < PAGES; p++) {
        uint8_t *v = d->pages[p].block + d->layout.k_bytes, *ks = v + d->layout.v_bytes;
        make_side(s->form_k, false, s->dk, d->pages[p].block, ks, d->pages[p].k);
        make_side(s->form_v, true, s->dv, v, ks + d->layout.k_scale_bytes, d->pages[p].v);
    }
}

/* Rows [r0, r0 + n * group) over the pages, the second one visible in part. */
static void attend(const rq_vec *v, data *d, const shape *s, uint32_t r0, uint32_t n, uint32_t group,
                   const uint8_t *lo, const uint8_t *hi)
{
    uint8_t none[ROWS] = {0}, all[ROWS];
    memset(all, 64, sizeof all);
    uint32_t rows = n * group, pad = (s->dv + 15) / 16 * 16, groups = rq_kv_groups(s->form_k, s->dk);
    void *codes = rq_calloc_aligned(64, rq_attend_code_scratch(rows));
    rq_attend_block b = {.n_queries = n,
                         .group = group,
                         .dim_k = s->dk,
                         .dim_v = s->dv,
                         .pad_v = pad,
                         .type_k = RQ_TYPE_F16,
                         .type_v = RQ_TYPE_F16,
                         .softcap = s->softcap,
                         .bias = d->bias + r0,
                         .q = d->q + (size_t)r0 * s->dk,
                         .code_k = d->code_k,
                         .code_v = d->code_v,
                         .q_codes = d->codes,
                         .q_scales = d->q_scales,
                         .max = d->max,
                         .sum = d->sum,
                         .out = d->out,
                         .panel = d->panel,
                         .scores = d->scores,
                         .codes = codes};
    for (uint32_t r = 0; r < rows; r++) {
        if (s->form_k != RQ_KV_SAME)
            v->attend_reduce(b.q + (size_t)r * s->dk, s->dk, &d->code_k, d->codes + (size_t)r * s->dk,
                             d->q_scales + (size_t)r * groups);
        d->max[r] = -INFINITY;
        d->sum[r] = 0;
    }
    memset(d->out, 0, sizeof d->out);
    for (int p = 0; p < PAGES; p++) {
        const uint8_t *k = d->pages[p].block, *values = k + d->layout.k_bytes;
        b.k = b.code_k.words = k;
        b.v = b.code_v.words = values;
        b.code_k.scales = values + d->layout.v_bytes;
        b.code_v.scales = (const uint8_t *)b.code_k.scales + d->layout.k_scale_bytes;
        b.lo = p == 0 ? none : lo;
        b.hi = p == 0 ? all : hi;
        v->attend_page(&b);
    }
    rq_free(codes);
}

/* What a row may lose to int16 (and nothing else: the sums are exact; exp and the float operations add less than
 * 1e-10, test_attend_page.c). Rounding to steps of D has an error of variance D^2 / 12. A query's D is its largest
 * element / 32767, so its scores are off with variance D^2 / 12 |k|^2, and that is the relative error of the
 * weights; 64 weights off by the largest / 32767 have 64 / 12 / 32767^2 of the power of the largest. One row is
 * one draw: five deviations are allowed. */
static double limit_of(const data *d, const shape *s, uint32_t row)
{
    double largest = 0, longest = 0;
    for (uint32_t i = 0; i < s->dk; i++) largest = fmax(largest, fabs((double)d->q[row * s->dk + i]));
    for (uint32_t j = 0; j < 128; j++) {
        double length = 0;
        for (uint32_t i = 0; i < s->dk; i++) length += pow((double)d->pages[j / 64].k[i * 64 + j % 64], 2);
        longest = fmax(longest, length);
    }
    return 25 * (largest * largest * longest + 64) / (12 * 32767.0 * 32767.0) + 1e-10;
}

static void check_row(const data *d, const char *name, size_t at, const shape *s, uint32_t row, uint32_t lo,
                      uint32_t hi, const float *y)
{
    double w[128], max = -INFINITY, sum = 0, power = 0, error = 0;
    for (uint32_t j = 0; j < 128; j++) {
        w[j] = 0;
        for (uint32_t i = 0; i < s->dk; i++)
            w[j] += (double)d->q[(size_t)row * s->dk + i] * (double)d->pages[j / 64].k[i * 64 + j % 64];
        if (s->softcap > 0)
            w[j] = (double)s->softcap * tanh((w[j] + (double)d->bias[row]) / (double)s->softcap);
        if (j >= 64 && (j - 64 < lo || j - 64 >= hi)) w[j] = -INFINITY;
        max = w[j] > max ? w[j] : max;
    }
    for (uint32_t j = 0; j < 128; j++) sum += w[j] = exp(w[j] - max);
    for (uint32_t i = 0; i < s->dv; i++) {
        double e = 0;
        for (uint32_t j = 0; j < 128; j++) e += w[j] / sum * (double)d->pages[j / 64].v[i * 64 + j % 64];
        error += (e - (double)y[i]) * (e - (double)y[i]);
        power += e * e;
    }
    if (!(error <= limit_of(d, s, row) * power))
        fail_msg("%s: shape %zu, row %u: error %g", name, at, row, error / power);
}

static void test_page(void **state)
{
    (void)state;
    data *d = rq_calloc_aligned(64, sizeof *d);
    float *alone = rq_calloc((size_t)ROWS * MAX_DIM, sizeof *alone), alone_max[ROWS], finished[MAX_DIM];
    uint8_t lo[ROWS], hi[ROWS];
    for (int i = 0; i < ROWS; i++) {
        lo[i] = (uint8_t)(i % 5 == 4 ? i * 2 : i % 3);
        hi[i] = (uint8_t)(i == 7 || i == 8 || i == 20 ? 0 : i == 9 ? 64 : 5 + i * 2);
    }
    for (size_t s = 0; s < N_SHAPES; s++) {
        const shape *sh = &shapes[s];
        uint32_t pad = (sh->dv + 15) / 16 * 16;
        fill(d, sh);
        for (size_t a = 0; vec_at(a); a++) {
            const rq_vec *v = vec_at(a);
            for (uint32_t i = 0; i < ROWS; i++) {
                attend(v, d, sh, i, 1, 1, lo + i, hi + i);
                v->attend_finish(d->out, d->sum[0], finished, sh->dv);
                check_row(d, v->name, s, sh, i, lo[i], hi[i], finished);
                memcpy(alone + (size_t)i * MAX_DIM, d->out, sh->dv * sizeof *alone);
                alone_max[i] = d->max[0];
            }
            for (uint32_t n = 2; n <= ROWS; n++) {
                attend(v, d, sh, 0, n, 1, lo, hi);
                for (uint32_t i = 0; i < n; i++) {
                    assert_memory_equal(d->out + (size_t)i * pad, alone + (size_t)i * MAX_DIM,
                                        sh->dv * sizeof *alone);
                    assert_true(d->max[i] == alone_max[i]);
                }
            }
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
    const shape s = {RQ_KV_C3, RQ_KV_C3, 64, 64, 0};
    fill(d, &s);
    const uint8_t lo[8] = {0, 3, 0, 60, 0, 0, 1, 0}, hi[8] = {64, 9, 0, 64, 0, 33, 2, 64};
    for (size_t a = 0; vec_at(a); a++)
        for (uint32_t group = 1; group <= 8; group++)
            for (uint32_t n = 1; n * group <= ROWS && n <= 8; n++) {
                float finished[64];
                attend(vec_at(a), d, &s, 0, n, group, lo, hi);
                for (uint32_t r = 0; r < n * group; r++) {
                    vec_at(a)->attend_finish(d->out + (size_t)r * 64, d->sum[r], finished, 64);
                    check_row(d, vec_at(a)->name, group, &s, r, lo[r / group], hi[r / group], finished);
                }
            }
    rq_free(d);
}

/* With one visible key the maximum is its score and the values are its row, weight 1: no exp is involved, so all
 * instruction sets must agree to the bit; and the row is what plain decoding gives. */
static void test_same_everywhere(void **state)
{
    (void)state;
    data *d = rq_calloc_aligned(64, sizeof *d);
    for (size_t s = 0; s < N_SHAPES; s++) {
        const shape *sh = &shapes[s];
        if (sh->form_k == RQ_KV_SAME || sh->form_v == RQ_KV_SAME || sh->softcap > 0) continue;
        fill(d, sh);
        for (uint32_t t = 0; t < 64; t++) {
            float out[MAX_DIM], max = 0;
            for (size_t a = 0; vec_at(a); a++) {
                rq_attend_block b = {.n_queries = 1, .group = 1, .dim_k = sh->dk, .dim_v = sh->dv};
                uint8_t lo = (uint8_t)t, hi = (uint8_t)(t + 1);
                _Alignas(64) uint8_t codes[64 * 144 * 2 + 64 * 4 + 64 * 4];
                assert_true(sizeof codes >= rq_attend_code_scratch(1));
                b.pad_v = (sh->dv + 15) / 16 * 16;
                b.code_k = d->code_k;
                b.code_v = d->code_v;
                b.code_k.words = d->pages[0].block;
                b.code_v.words = d->pages[0].block + d->layout.k_bytes;
                b.code_k.scales = (const uint8_t *)b.code_v.words + d->layout.v_bytes;
                b.code_v.scales = (const uint8_t *)b.code_k.scales + d->layout.k_scale_bytes;
                b.q = d->q;
                b.q_codes = d->codes;
                b.q_scales = d->q_scales;
                b.lo = &lo;
                b.hi = &hi;
                b.max = d->max;
                b.sum = d->sum;
                b.out = d->out;
                b.scores = d->scores;
                b.codes = codes;
                d->max[0] = -INFINITY;
                d->sum[0] = 0;
                memset(d->out, 0, sizeof d->out);
                vec_at(a)->attend_reduce(d->q, sh->dk, &d->code_k, d->codes, d->q_scales);
                vec_at(a)->attend_page(&b);
                assert_true(d->sum[0] == 1);
                if (a == 0) {
                    max = d->max[0];
                    memcpy(out, d->out, sh->dv * sizeof *out);
                }
                if (d->max[0] != max || memcmp(out, d->out, sh->dv * sizeof *out) != 0)
                    fail_msg("%s: shape %zu, token %u: not the bits of %s", vec_at(a)->name, s, t,
                             vec_at(0)->name);
                for (uint32_t i = 0; i < sh->dv; i++) { /* a handful of roundings */
                    double x = d->pages[0].v[i * 64 + t];
                    if (!(fabs((double)d->out[i] - x) <= 1e-6 * fabs(x)))
                        fail_msg("%s: shape %zu: value %u of token %u: %g, not %g", vec_at(a)->name, s, i, t,
                                 (double)d->out[i], x);
                }
            }
        }
    }
    rq_free(d);
}

/* int16 codes of queries: exact at both ends of the range, zeros and numbers that are none. */
static void test_reduce(void **state)
{
    (void)state;
    for (size_t a = 0; vec_at(a); a++) {
        const rq_attend_code bytes = {.form = RQ_KV_Q8_0, .span[0].unit = 2};
        const rq_attend_code threes = {.form = RQ_KV_C3, .span[0].unit = 1};
        float q[40], scales[2];
        int16_t codes[40];
        for (int i = 0; i < 40; i++) q[i] = (float)(i - 20) / 20;
        vec_at(a)->attend_reduce(q, 40, &bytes, codes, scales); /* groups of 32 and 8 */
        static const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
        assert_true(codes[0] == -32767 && fabsf(scales[0] * 32767 - 2) < 1e-6f);
        for (int i = 0; i < 40; i++) {
            float largest = i < 32 ? 1 : 0.95f;
            int element = i / 8 * 8 + order[i % 8];
            assert_true(codes[i] == (int16_t)lrintf(q[element] * (32767.0f / largest)));
        }
        vec_at(a)->attend_reduce(q, 40, &threes, codes, scales); /* one group */
        assert_true(codes[0] == -32767 && codes[1] == (int16_t)lrintf(q[4] * 32767.0f));
        q[3] = INFINITY;
        vec_at(a)->attend_reduce(q, 40, &threes, codes, scales);
        assert_true(isnan(scales[0]) && codes[0] == 0);
        q[3] = NAN;
        vec_at(a)->attend_reduce(q, 40, &threes, codes, scales);
        assert_true(isnan(scales[0]) && codes[39] == 0);
        for (int i = 0; i < 40; i++) q[i] = 1e-40f;
        vec_at(a)->attend_reduce(q, 40, &threes, codes, scales);
        assert_true(scales[0] == 0 && codes[5] == 0);
    }
}

int main(void)
{
    for (size_t a = 0; vec_at(a); a++) printf("ran %s\n", vec_at(a)->name);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_reduce),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
