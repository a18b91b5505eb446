/* test_formats_types.c - the type table, and half precision against rounding done in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "backends/formats/half.h"
#include "backends/formats/types.h"
#include "tests/formats/random.h"

static void only_known_ids_are_types(void **state)
{
    static const uint32_t removed[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 97, 255, 0x7fffffff, 0xffffffff};
    int known = 0;
    for (size_t i = 0; i < sizeof removed / sizeof *removed; i++) assert_null(rq_type_get(removed[i]));
    for (uint32_t id = 0; id < 300; id++) {
        const rq_type_info *info = rq_type_get(id);
        if (!info) continue;
        rq_type back;
        known++;
        assert_true(info->block_elems > 0 && info->block_bytes > 0);
        assert_int_equal(info->is_quantized, info->block_elems > 1);
        assert_true(info->dequantize || !info->is_weight);
        assert_true(rq_type_from_name(info->name, &back));
        assert_int_equal(back, id);
    }
    assert_int_equal(known, 35); /* ids 0..42 without the eight removed ones */
}

static void names_ignore_case(void **state)
{
    rq_type type = RQ_TYPE_F64;
    assert_true(rq_type_from_name("q4_k", &type));
    assert_int_equal(type, RQ_TYPE_Q4_K);
    assert_true(rq_type_from_name("Iq2_xXs", &type));
    assert_int_equal(type, RQ_TYPE_IQ2_XXS);
    assert_false(rq_type_from_name("q4_k_m", &type)); /* a mixture of types, not a type */
    assert_false(rq_type_from_name("", &type));
    assert_false(rq_type_from_name(NULL, &type));
    assert_int_equal(type, RQ_TYPE_IQ2_XXS);
}

static void row_bytes_do_not_wrap_early(void **state)
{
    assert_int_equal(rq_row_bytes(RQ_TYPE_Q4_K, 4096), 4096 / 256 * 144);
    assert_int_equal(rq_row_bytes(RQ_TYPE_F32, 3), 12);
    assert_int_equal(rq_row_bytes(RQ_TYPE_Q8_0, 0), 0);
    /* 18 n wraps here; n / 32 * 18 does not. */
    uint64_t n = UINT64_MAX / 18 / 32 * 32 + 32;
    assert_int_equal(rq_row_bytes(RQ_TYPE_Q4_0, n), n / 32 * 18);
}

/* |x| in units of `step` rounded to nearest, ties to even; the quotient is exact. */
static uint32_t round_even(double magnitude, double step)
{
    double q = magnitude / step, low = floor(q), rest = q - low;
    uint32_t r = (uint32_t)low;
    return r + (rest > 0.5 || (rest == 0.5 && (r & 1)));
}

/* A finite or infinite x in a binary format of `mantissa` bits, smallest normal exponent `e_min`, bits of
 * infinity `inf`. */
static uint32_t narrow(float x, int mantissa, int e_min, uint32_t inf)
{
    double a = fabs((double)x);
    if (a == 0) return 0;
    if (isinf(x)) return inf;
    int e = ilogb(a);
    if (e < e_min) e = e_min;
    uint32_t r = round_even(a, ldexp(1, e - mantissa));
    uint32_t bits = ((uint32_t)(e - e_min) << mantissa) + r; /* the hidden bit carries into the exponent */
    return bits < inf ? bits : inf;
}

static void check_narrowing(float x)
{
    uint32_t sign = signbit(x) ? 0x8000 : 0;
    uint32_t half = sign | narrow(x, 10, -14, 0x7c00), bhalf = sign | narrow(x, 7, -126, 0x7f80);
    if (rq_f32_to_f16(x) != half) fail_msg("%a to f16: %04x, not %04x", (double)x, rq_f32_to_f16(x), half);
    if (rq_f32_to_bf16(x) != bhalf)
        fail_msg("%a to bf16: %04x, not %04x", (double)x, rq_f32_to_bf16(x), bhalf);
}

static void narrowing_rounds_to_nearest_even(void **state)
{
    uint64_t seed = 3;
    for (int i = 0; i < 400000; i++) {
        float x = rq_bits_f32(random_u32(&seed));
        if (!isnan(x)) check_narrowing(x);
        /* the same mantissa near the range of f16, subnormals and overflow included */
        check_narrowing(rq_bits_f32((rq_f32_bits(x) & 0x807fffff) | (100 + random_u32(&seed) % 45) << 23));
    }
    /* every value of f16, the middle to the next one, and the neighbours of that middle */
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float low = rq_f16_to_f32((uint16_t)h);
        float high = h + 1 < 0x7c00 ? rq_f16_to_f32((uint16_t)(h + 1)) : 65536.0f;
        uint32_t middle = rq_f32_bits(low + (high - low) / 2);
        for (uint32_t bits = middle - 1; bits != middle + 2; bits++) {
            check_narrowing(rq_bits_f32(bits));
            check_narrowing(-rq_bits_f32(bits));
        }
    }
    check_narrowing(0.0f);
    check_narrowing(-0.0f);
    check_narrowing(INFINITY);
    check_narrowing(-INFINITY);
    check_narrowing(rq_bits_f32(0x7f7fffff));
    check_narrowing(rq_bits_f32(1));
}

static void every_half_survives_the_way_to_f32_and_back(void **state)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = rq_f16_to_f32((uint16_t)h);
        bool is_nan = (h & 0x7fff) > 0x7c00;
        assert_int_equal(isnan(f) != 0, is_nan);
        assert_int_equal(rq_f32_to_f16(f), is_nan ? (h & 0x8000) | 0x7e00 : h);
        /* the value, from the definition */
        int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        double value = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
        if (e != 31) assert_true((double)f == (h & 0x8000 ? -value : value));

        f = rq_bf16_to_f32((uint16_t)h);
        is_nan = (h & 0x7fff) > 0x7f80;
        assert_int_equal(isnan(f) != 0, is_nan);
        assert_int_equal(rq_f32_to_bf16(f), is_nan ? h | 0x40 : h);
    }
    assert_int_equal(rq_f32_to_f16(rq_bits_f32(0x7f800001)), 0x7e00);
    assert_int_equal(rq_f32_to_f16(rq_bits_f32(0xffffffff)), 0xfe00);
    assert_int_equal(rq_f32_to_bf16(rq_bits_f32(0x7f800001)), 0x7fc0); /* would be infinity if cut */
    assert_int_equal(rq_f32_to_bf16(rq_bits_f32(0xffffffff)), 0xffff);
}

/* The row functions are the same conversions, at any alignment and length. */
static void rows_equal_single_values(void **state)
{
    enum { N = 1021 };
    float in[N], back[N];
    uint8_t halves[2 * N + 1], bhalves[2 * N + 1];
    uint64_t seed = 5;
    for (int i = 0; i < N; i++)
        in[i] = rq_bits_f32(random_u32(&seed) >> (i % 3)); /* some subnormal, some NaN */
    rq_f32_to_f16_row(in, halves + 1, N);
    rq_f32_to_bf16_row(in, bhalves + 1, N);
    for (int i = 0; i < N; i++) {
        uint16_t h;
        memcpy(&h, halves + 1 + 2 * i, 2);
        assert_int_equal(h, rq_f32_to_f16(in[i]));
        memcpy(&h, bhalves + 1 + 2 * i, 2);
        assert_int_equal(h, rq_f32_to_bf16(in[i]));
    }
    rq_f16_to_f32_row(halves + 1, back, N);
    for (int i = 0; i < N; i++)
        assert_int_equal(rq_f32_bits(back[i]), rq_f32_bits(rq_f16_to_f32(rq_f32_to_f16(in[i]))));
    rq_bf16_to_f32_row(bhalves + 1, back, N);
    for (int i = 0; i < N; i++)
        assert_int_equal(rq_f32_bits(back[i]), rq_f32_bits(rq_bf16_to_f32(rq_f32_to_bf16(in[i]))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_known_ids_are_types),
        cmocka_unit_test(names_ignore_case),
        cmocka_unit_test(row_bytes_do_not_wrap_early),
        cmocka_unit_test(narrowing_rounds_to_nearest_even),
        cmocka_unit_test(every_half_survives_the_way_to_f32_and_back),
        cmocka_unit_test(rows_equal_single_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
