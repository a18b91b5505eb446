/* test_formats_quantize.c - encoders: their error, against another library's and against theory; edges; that
 * they write their own bytes only and the same ones every time. Also decoders and dot products on random
 * bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/formats/dot_ref.h"
#include "backends/formats/half.h"
#include "backends/formats/quantize_act.h"
#include "tests/formats/golden.h"
#include "tests/formats/random.h"

/* Encodes n floats at an odd address inside guard bytes, decodes them again. */
static void round_trip(rq_type type, const float *x, float *out, int64_t n)
{
    uint64_t bytes = rq_row_bytes(type, (uint64_t)n);
    uint8_t *b = malloc(bytes + 2);
    assert_non_null(b);
    memset(b, 0xa5, bytes + 2);
    assert_true(rq_quantize(type, x, b + 1, n));
    assert_int_equal(b[0], 0xa5);
    assert_int_equal(b[bytes + 1], 0xa5);
    rq_type_get(type)->dequantize(b + 1, out, n);
    free(b);
}

/* Squared error over squared signal. */
static double nmse(const float *x, const float *y, int64_t n)
{
    double error = 0, power = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = (double)y[i] - (double)x[i];
        error += e * e;
        power += (double)x[i] * (double)x[i];
    }
    return error / power;
}

/* The golden "quantised" blocks are the other library's encoding of the same rows; ours may be at most a
 * tenth worse (worst measured: Q4_K, 1.035; the grid types 0.54 to 0.69, where the other one weighs by
 * importance). */
static void errors_match_the_other_library(void **state)
{
    cJSON *index = golden_index();
    const cJSON *entry, *input = cJSON_GetObjectItem(index, "input");
    golden_file rows = golden_open(golden_text(input, "file"));
    size_t len, f32_len;
    const float *x = (const float *)(const void *)golden_slice(&rows, input, "rows_off", "rows_len", &len);
    float *out = malloc(len), *theirs = malloc(len);
    assert_non_null(out);
    assert_non_null(theirs);
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(index, "types"))
    {
        rq_type type = golden_type(entry);
        golden_file file = golden_open(golden_text(entry, "file"));
        const cJSON *set = cJSON_GetObjectItem(entry, "quantised");
        memcpy(theirs, golden_slice(&file, set, "f32_off", "f32_len", &f32_len), len);
        assert_int_equal(f32_len, len);
        round_trip(type, x, out, (int64_t)(len / 4));
        double our_error = nmse(x, out, (int64_t)(len / 4)),
               their_error = nmse(x, theirs, (int64_t)(len / 4));
        if (!(our_error <= 1.1 * their_error))
            fail_msg("%s: error %g, the other library's %g", rq_type_get(type)->name, our_error, their_error);
        golden_free(&file);
    }
    free(out);
    free(theirs);
    golden_free(&rows);
    cJSON_Delete(index);
}

/* Shannon: no code of R bits per element brings the error of a Gaussian source under 2^(-2R). A scalar
 * quantiser with a scale per block stays within a small factor of that: 6 covers all weight types (measured:
 * 1.7 for IQ1_S to 4.9 for Q4_1). The activation types spend bits on sums and share a scale among many
 * elements: 20 (measured: Q8_1 7.3, Q8_K 14.6). */
static void gaussian_errors_lie_near_shannons_bound(void **state)
{
    enum { N = 16384 };
    static float x[N], out[N];
    uint64_t seed = 11;
    for (int i = 0; i < N; i++) x[i] = 0.02f * random_gauss(&seed);
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        if (!info || !info->is_quantized) continue;
        double bits = 8.0 * info->block_bytes / info->block_elems, least = exp2(-2 * bits);
        round_trip((rq_type)id, x, out, N);
        double error = nmse(x, out, N);
        if (!(error > least && error < (info->is_weight ? 6 : 20) * least))
            fail_msg("%s: error %g, Shannon's bound %g", info->name, error, least);
    }
}

static void unquantised_types_only_round(void **state)
{
    enum { N = 333 };
    float x[N], out[N];
    uint64_t seed = 12;
    for (int i = 0; i < N; i++) x[i] = random_gauss(&seed);
    round_trip(RQ_TYPE_F32, x, out, N);
    assert_memory_equal(x, out, sizeof x);
    round_trip(RQ_TYPE_F64, x, out, N);
    assert_memory_equal(x, out, sizeof x);
    round_trip(RQ_TYPE_F16, x, out, N);
    for (int i = 0; i < N; i++) assert_true(fabsf(out[i] - x[i]) <= ldexpf(fabsf(x[i]), -11) + 0x1p-25f);
    round_trip(RQ_TYPE_BF16, x, out, N);
    for (int i = 0; i < N; i++) assert_true(fabsf(out[i] - x[i]) <= ldexpf(fabsf(x[i]), -8));
}

static void types_without_encoder_are_refused(void **state)
{
    float x[256] = {0};
    uint8_t b[4096] = {0}, before[4096] = {0};
    assert_false(rq_quantize(RQ_TYPE_I32, x, b, 256));
    assert_false(rq_quantize(RQ_TYPE_LIMIT, x, b, 256));
    assert_false(rq_quantize((rq_type)5, x, b, 256));
    assert_memory_equal(b, before, sizeof b);
    assert_false(rq_quantize_act(RQ_TYPE_Q4_K, x, b, 256));
    assert_int_equal(rq_dot_act_type(RQ_TYPE_I32), RQ_TYPE_LIMIT);
    assert_true(isnan(rq_dot_ref(RQ_TYPE_Q8_K, b, b, 256)));
}

static void same_bytes_every_time(void **state)
{
    enum { N = 8448 }; /* more than two pieces of rq_quantize's own buffer, the last one short */
    static float x[N];
    uint8_t *one = malloc(N * 8), *two = malloc(N * 8 + 1);
    uint64_t seed = 13;
    assert_non_null(one);
    assert_non_null(two);
    for (int i = 0; i < N; i++) x[i] = random_gauss(&seed) * (i % 200 == 7 ? 8.0f : 1.0f);
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        if (!info || !info->dequantize) continue;
        bool slow = id == RQ_TYPE_IQ1_S || id == RQ_TYPE_IQ1_M;
        int64_t n = slow ? 4352 : N, block = info->block_elems;
        uint64_t bytes = rq_row_bytes((rq_type)id, (uint64_t)n);
        memset(one, 0, bytes);
        memset(two, 0xff, bytes + 1);
        assert_true(rq_quantize((rq_type)id, x, one, n));
        /* block by block: no block depends on its neighbours, nor on what was in memory before */
        int64_t step = block > 1 ? block * 2 : 128;
        if (slow) step = 2048;
        for (int64_t i = 0; i < n; i += step) {
            int64_t count = n - i < step ? n - i : step;
            assert_true(
                rq_quantize((rq_type)id, x + i, two + 1 + rq_row_bytes((rq_type)id, (uint64_t)i), count));
        }
        assert_memory_equal(one, two + 1, bytes);
    }
    free(one);
    free(two);
}

/* Fills x with one of the hard rows; false when there is no such row. */
static bool hard_row(int which, float *x, int n)
{
    uint64_t seed = 14;
    for (int i = 0; i < n; i++) {
        float g = random_gauss(&seed);
        switch (which) {
        case 0:
            x[i] = 0;
            break;
        case 1:
            x[i] = -0.0f;
            break;
        case 2:
            x[i] = 0.75f;
            break;
        case 3:
            x[i] = -0.75f;
            break;
        case 4:
            x[i] = fabsf(g);
            break;
        case 5:
            x[i] = -fabsf(g) - 3.0f;
            break;
        case 6:
            x[i] = i == 77 ? 1000.0f : 1e-4f * g;
            break;
        case 7:
            x[i] = 1e-30f * g;
            break;
        case 8:
            x[i] = rq_bits_f32(random_u32(&seed) % 0x00800000u); /* subnormal */
            break;
        case 9:
            x[i] = 3e38f * (i % 2 ? 1.0f : -1.0f);
            break;
        case 10:
            x[i] = i % 5 == 0 ? NAN : i % 7 == 0 ? INFINITY : i % 11 == 0 ? -INFINITY : g;
            break;
        case 11:
            x[i] = rq_bits_f32(random_u32(&seed));
            break;
        default:
            return false;
        }
    }
    return true;
}

/* Whatever goes in, quantised blocks decode to numbers, and zeros to zeros. */
static void hard_rows_give_finite_blocks(void **state)
{
    enum { N = 512 };
    float x[N], out[N];
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        if (!info || !info->is_quantized) continue;
        for (int which = 0; hard_row(which, x, N); which++) {
            round_trip((rq_type)id, x, out, N);
            for (int i = 0; i < N; i++) {
                if (!isfinite(out[i]) || (which < 2 && out[i] != 0))
                    fail_msg("%s: row %d, element %d decodes to %g", info->name, which, i, (double)out[i]);
            }
        }
    }
}

/* Activations are not cleaned: a NaN or infinity must not break anything, what it becomes is not promised. */
static void activation_quantisers_take_anything(void **state)
{
    enum { N = 512 };
    float x[N], out[N];
    uint8_t b[N * 4];
    static const rq_type acts[] = {RQ_TYPE_Q8_0, RQ_TYPE_Q8_1, RQ_TYPE_Q8_K};
    for (int which = 0; hard_row(which, x, N); which++) {
        for (size_t t = 0; t < 3; t++) {
            assert_true(rq_quantize_act(acts[t], x, b, N));
            rq_type_get(acts[t])->dequantize(b, out, N);
            for (int i = 0; i < N && which < 8; i++)
                assert_true(fabsf(out[i] - x[i]) <= (which == 6 ? 4.0f : 0.05f));
        }
    }
}

/* Random bytes in buffers of exactly the right size, at every alignment: decoders and dot products read their
 * bytes only (the address sanitizer watches), and where all is finite the dot product is the sum over decoded
 * values, within 1e-6 of the sum of magnitudes (tests/data/quant/README.md), or within 1e-3 where the
 * activation's sum is an f16, of relative error 2^-11, times a minimum that is twice the largest product.
 * This also covers Q2_0, for which no foreign dot product exists. */
static void random_bytes_are_harmless(void **state)
{
    enum { N = 512 };
    float x[N], w[N], act[N];
    uint64_t seed = 15;
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        rq_type act_type = rq_dot_act_type((rq_type)id);
        int compared = 0;
        if (!info || !info->dequantize) continue;
        for (int trial = 0; trial < 64; trial++) {
            size_t bytes = (size_t)rq_row_bytes((rq_type)id, N), shift = (size_t)trial % 8;
            uint8_t *b = malloc(bytes + shift), y[4 * N + 1];
            assert_non_null(b);
            for (size_t i = 0; i < bytes; i++) b[shift + i] = (uint8_t)(random_u32(&seed) >> 24);
            info->dequantize(b + shift, w, N);
            if (act_type != RQ_TYPE_LIMIT) {
                for (int i = 0; i < N; i++) x[i] = random_gauss(&seed);
                assert_true(rq_quantize_act(act_type, x, y + 1, N));
                rq_type_get(act_type)->dequantize(y + 1, act, N);
                float got = rq_dot_ref((rq_type)id, b + shift, y + 1, N);
                double sum = 0, magnitude = 0;
                for (int i = 0; i < N; i++) {
                    sum += (double)w[i] * (double)act[i];
                    magnitude += fabs((double)w[i] * (double)act[i]);
                }
                /* far from overflow, so that no intermediate float overflows either */
                if (magnitude < 1e30) {
                    double slack = (act_type == RQ_TYPE_Q8_1 ? 1e-3 : 1e-6) * magnitude;
                    if (!(fabs((double)got - sum) <= slack))
                        fail_msg("%s: dot %g, sum %g", info->name, (double)got, sum);
                    compared++;
                }
            }
            free(b);
        }
        /* f32 and f64 from random bytes are rarely all small */
        bool wide = id == RQ_TYPE_F32 || id == RQ_TYPE_F64 || id == RQ_TYPE_BF16 || id == RQ_TYPE_F16;
        assert_true(act_type == RQ_TYPE_LIMIT || wide || compared > 0);
    }
}

/* The unquantised types with sensible values, which random bytes hardly ever are. */
static void plain_dots_are_sums(void **state)
{
    enum { N = 300 };
    static const rq_type types[] = {RQ_TYPE_F32, RQ_TYPE_F16, RQ_TYPE_BF16, RQ_TYPE_F64};
    float x[N], w[N], xr[N], wr[N];
    uint8_t bw[8 * N], bx[8 * N];
    uint64_t seed = 16;
    for (int i = 0; i < N; i++) {
        x[i] = random_gauss(&seed);
        w[i] = random_gauss(&seed);
    }
    for (size_t t = 0; t < 4; t++) {
        rq_type act = rq_dot_act_type(types[t]);
        double sum = 0;
        assert_true(rq_quantize(types[t], w, bw, N));
        assert_true(rq_quantize_act(act, x, bx, N));
        rq_type_get(types[t])->dequantize(bw, wr, N);
        rq_type_get(act)->dequantize(bx, xr, N);
        for (int i = 0; i < N; i++) sum += (double)wr[i] * (double)xr[i];
        assert_int_equal(rq_f32_bits(rq_dot_ref(types[t], bw, bx, N)), rq_f32_bits((float)sum));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_match_the_other_library),
        cmocka_unit_test(gaussian_errors_lie_near_shannons_bound),
        cmocka_unit_test(unquantised_types_only_round),
        cmocka_unit_test(types_without_encoder_are_refused),
        cmocka_unit_test(same_bytes_every_time),
        cmocka_unit_test(hard_rows_give_finite_blocks),
        cmocka_unit_test(activation_quantisers_take_anything),
        cmocka_unit_test(random_bytes_are_harmless),
        cmocka_unit_test(plain_dots_are_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
