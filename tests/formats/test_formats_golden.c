/* test_formats_golden.c - decoders, activation quantisers and dot products against the blocks and results of
 * another library, bit for bit. tests/data/quant/index.json names program and version and describes all. */
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

static void sha256_is_sha256(void **state)
{
    char hex[65]; /* examples of FIPS 180-4's companion document */
    golden_sha256("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    golden_sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

/* The golden file was copied whole and is the one that was generated. */
static void check_sha256(const golden_file *file, const cJSON *entry)
{
    char hex[65];
    golden_sha256(file->bytes, file->size, hex);
    assert_string_equal(hex, golden_text(entry, "sha256"));
}

/* Decodes the blocks of one set and compares each float's bits. */
static void check_decode(rq_type type, const golden_file *file, const cJSON *set, const char *what)
{
    const rq_type_info *info = rq_type_get(type);
    size_t block_len, f32_len;
    const uint8_t *blocks = golden_slice(file, set, "blocks_off", "blocks_len", &block_len);
    const uint8_t *expected = golden_slice(file, set, "f32_off", "f32_len", &f32_len);
    size_t n = f32_len / 4;
    assert_int_equal(n % info->block_elems, 0);
    assert_int_equal(rq_row_bytes(type, n), block_len);

    /* An own allocation of exactly the right size, at an odd address: an over-read shows under ASan. */
    uint8_t *copy = malloc(block_len + 1);
    float *got = malloc(f32_len);
    assert_non_null(copy);
    assert_non_null(got);
    memcpy(copy + 1, blocks, block_len);
    info->dequantize(copy + 1, got, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        uint32_t want;
        memcpy(&want, expected + 4 * i, 4);
        if (rq_f32_bits(got[i]) != want)
            fail_msg("%s %s: element %zu is %08x, not %08x", info->name, what, i, rq_f32_bits(got[i]), want);
    }
    free(copy);
    free(got);
}

static void decoders_match(void **state)
{
    cJSON *index = golden_index();
    const cJSON *entry;
    int types = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(index, "types"))
    {
        rq_type type = golden_type(entry);
        const rq_type_info *info = rq_type_get(type);
        golden_file file = golden_open(golden_text(entry, "file"));
        check_sha256(&file, entry);
        assert_int_equal(golden_number(entry, "enum_id"), type);
        assert_int_equal(golden_number(entry, "block_elems"), info->block_elems);
        assert_int_equal(golden_number(entry, "block_bytes"), info->block_bytes);
        check_decode(type, &file, cJSON_GetObjectItem(entry, "quantised"), "quantised");
        check_decode(type, &file, cJSON_GetObjectItem(entry, "random"), "random");
        golden_free(&file);
        types++;
    }
    assert_int_equal(types, 29);
    cJSON_Delete(index);
}

static void edge_blocks_match(void **state)
{
    cJSON *index = golden_index();
    const cJSON *entry;
    int sets = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(index, "edge"))
    {
        golden_file file = golden_open(golden_text(entry, "file"));
        check_sha256(&file, entry);
        check_decode(golden_type(entry), &file, entry, "edge");
        golden_free(&file);
        sets++;
    }
    assert_int_equal(sets, 10);
    cJSON_Delete(index);
}

static void all_finite_halves_match(void **state)
{
    cJSON *index = golden_index();
    const cJSON *entry = cJSON_GetObjectItem(index, "f16_exhaustive");
    size_t count = (size_t)golden_number(entry, "count"), n = 0;
    float *values = malloc(count * sizeof *values), row[1];
    assert_non_null(values);
    for (uint32_t h = 0; h < 65536; h++) {
        if ((h & 0x7c00) == 0x7c00) continue;
        assert_true(n < count);
        uint16_t half = (uint16_t)h;
        values[n++] = rq_f16_to_f32(half);
        rq_f16_to_f32_row(&half, row, 1);
        assert_memory_equal(row, &values[n - 1], 4);
    }
    char hex[65];
    assert_int_equal(n, count);
    golden_sha256(values, count * sizeof *values, hex);
    assert_string_equal(hex, golden_text(entry, "sha256"));
    free(values);
    cJSON_Delete(index);
}

static const float *activation_row(const cJSON *index, golden_file *file, size_t *n)
{
    const cJSON *input = cJSON_GetObjectItem(index, "input");
    size_t len;
    *file = golden_open(golden_text(input, "file"));
    const uint8_t *row = golden_slice(file, input, "activation_off", "activation_len", &len);
    *n = len / 4;
    return (const float *)(const void *)row;
}

static void activation_quantisers_match(void **state)
{
    cJSON *index = golden_index();
    golden_file input, blocks = golden_open(golden_text(index, "activation_file"));
    size_t n;
    const float *x = activation_row(index, &input, &n);
    const cJSON *entry;
    int types = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(index, "activation"))
    {
        rq_type type;
        size_t len;
        assert_true(rq_type_from_name(entry->string, &type));
        const uint8_t *want = golden_slice(&blocks, entry, "ref_off", "len", &len);
        assert_int_equal(rq_row_bytes(type, n), len);
        uint8_t *got = malloc(len + 1);
        assert_non_null(got);
        assert_true(rq_quantize_act(type, x, got + 1, (int64_t)n));
        assert_memory_equal(got + 1, want, len);
        free(got);
        types++;
    }
    assert_int_equal(types, 3);
    golden_free(&input);
    golden_free(&blocks);
    cJSON_Delete(index);
}

/* The golden row holds no value halfway between two codes, nor two of equal magnitude: here the scales are 1
 * and -1, so the codes show the rounding. Q8_0 and Q8_1 round halves away from zero, Q8_K to even; the first
 * of several largest elements gives Q8_K its sign. */
static void activation_quantisers_break_ties_by_their_rules(void **state)
{
    static const float head[8] = {127.0f, -127.0f, 0.5f, -0.5f, 1.5f, 2.5f, -2.5f, -126.5f};
    static const int away[8] = {127, -127, 1, -1, 2, 3, -3, -127},
                     even[8] = {-127, 127, 0, 0, -2, -2, 2, 126};
    float x[256] = {0};
    uint8_t b[292];
    memcpy(x, head, sizeof head);
    rq_quantize_act_q8_0(x, b, 32);
    for (int i = 0; i < 8; i++) assert_int_equal((int8_t)b[2 + i], away[i]);
    rq_quantize_act_q8_1(x, b, 32);
    for (int i = 0; i < 8; i++) assert_int_equal((int8_t)b[4 + i], away[i]);
    rq_quantize_act_q8_k(x, b, 256);
    for (int i = 0; i < 8; i++) assert_int_equal((int8_t)b[4 + i], even[i]);
    x[0] = -127.0f;
    rq_quantize_act_q8_k(x, b, 256);
    assert_int_equal((int8_t)b[4], -127);
}

static void check_dots(const cJSON *entry, const golden_file *file, const char *set, const uint8_t *act,
                       size_t n, int *checked)
{
    rq_type type = golden_type(entry);
    const cJSON *result, *dot = cJSON_GetObjectItem(entry, "dot");
    size_t len, row = 0;
    const uint8_t *blocks =
        golden_slice(file, cJSON_GetObjectItem(entry, set), "blocks_off", "blocks_len", &len);
    uint64_t row_bytes = rq_row_bytes(type, n);
    uint8_t *copy = malloc(row_bytes + 1);
    assert_non_null(copy);
    cJSON_ArrayForEach(result, cJSON_GetObjectItem(dot, set))
    {
        uint32_t want = (uint32_t)strtoul(golden_text(result, "scalar_strict"), NULL, 16);
        memcpy(copy + 1, blocks + row * row_bytes, row_bytes);
        float got = rq_dot_ref(type, copy + 1, act, (int64_t)n);
        if (rq_f32_bits(got) != want)
            fail_msg("%s %s row %zu: %08x, not %08x", rq_type_get(type)->name, set, row, rq_f32_bits(got),
                     want);
        /* 1e-6 of the sum of magnitudes (what data/quant/README.md derives), but for the types whose
         * activation sums are rounded to f16. */
        bool rounded_sum = rq_dot_act_type(type) == RQ_TYPE_Q8_1;
        double slack = (rounded_sum ? 4.2e-5 : 1e-6) * golden_number(result, "abs_sum");
        double off = (double)got - golden_number(result, "f64");
        assert_true(off <= slack && -off <= slack);
        row++;
        ++*checked;
    }
    assert_int_equal(row, len / row_bytes);
    free(copy);
}

static void scalar_dots_match(void **state)
{
    cJSON *index = golden_index();
    golden_file input;
    size_t n;
    const float *x = activation_row(index, &input, &n);
    uint8_t act[1168 + 1];
    const cJSON *entry;
    int checked = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(index, "types"))
    {
        const cJSON *dot = cJSON_GetObjectItem(entry, "dot");
        if (!dot) continue;
        rq_type type = golden_type(entry), act_type;
        assert_true(rq_type_from_name(golden_text(dot, "act"), &act_type));
        assert_int_equal(rq_dot_act_type(type), act_type);
        assert_true(rq_row_bytes(act_type, n) < sizeof act);
        assert_true(rq_quantize_act(act_type, x, act + 1, (int64_t)n));
        golden_file file = golden_open(golden_text(entry, "file"));
        check_dots(entry, &file, "quantised", act + 1, n, &checked);
        check_dots(entry, &file, "random", act + 1, n, &checked);
        golden_free(&file);
    }
    assert_int_equal(checked, 192);
    golden_free(&input);
    cJSON_Delete(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_is_sha256),
        cmocka_unit_test(decoders_match),
        cmocka_unit_test(edge_blocks_match),
        cmocka_unit_test(all_finite_halves_match),
        cmocka_unit_test(activation_quantisers_match),
        cmocka_unit_test(activation_quantisers_break_ties_by_their_rules),
        cmocka_unit_test(scalar_dots_match),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
