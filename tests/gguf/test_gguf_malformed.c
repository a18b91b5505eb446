/* Every class of malformed file that is on record for readers of this format (advisories and reports of
 * 2023-2026) is refused with a sentence that names the file, the field and the byte offset. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/gguf/fixture.h"

typedef struct bad_file {
    const char *name;
    void (*build)(fixture *f); /* marks the offending field */
    const char *field;         /* must occur in the sentence, as must "at byte <mark>" */
} bad_file;

/* One tensor with the given fields in an otherwise valid file with 256 bytes of data. */
static void one_tensor(fixture *f, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t offset)
{
    fx_start(f, 3, 1, 0);
    f->mark = 24 + 8 + strlen(name) + 4; /* the dims; others re-mark */
    fx_tensor(f, name, n_dims, dims, type, offset);
    fx_pad(f, 32);
    fx_zeros(f, 256);
}

static void mark_type(fixture *f, const char *name, uint32_t n_dims)
{
    f->mark = 24 + 8 + strlen(name) + 4 + 8 * (uint64_t)n_dims;
}

/* ---- header -------------------------------------------------------------------------------------------- */

static void version_of(fixture *f, uint32_t version)
{
    fx_start(f, version, 0, 0);
    f->mark = 4;
}
static void version_0(fixture *f)
{
    version_of(f, 0);
}
static void version_1(fixture *f)
{
    version_of(f, 1);
}
static void version_4(fixture *f)
{
    version_of(f, 4);
}
static void version_999(fixture *f)
{
    version_of(f, 999);
}
static void version_big_endian(fixture *f)
{
    version_of(f, 0x03000000);
}

static void counts(fixture *f, uint64_t n_tensors, uint64_t n_kv, uint64_t mark)
{
    fx_start(f, 3, n_tensors, n_kv);
    fx_zeros(f, 100);
    f->mark = mark;
}
static void tensor_count_2_63(fixture *f)
{
    counts(f, (uint64_t)1 << 63, 0, 8);
}
static void tensor_count_negative(fixture *f)
{
    counts(f, UINT64_MAX, 0, 8);
}
static void tensor_count_wraps(fixture *f)
{
    counts(f, UINT64_MAX / 64 + 2, 0, 8);
}
static void tensor_count_5_of_4(fixture *f)
{
    counts(f, 5, 0, 8);
} /* 100 bytes hold 4 infos of 24 */
static void kv_count_2_63(fixture *f)
{
    counts(f, 0, (uint64_t)1 << 63, 16);
}
static void kv_count_negative(fixture *f)
{
    counts(f, 0, UINT64_MAX, 16);
}
static void kv_count_wraps(fixture *f)
{
    counts(f, 0, UINT64_MAX / 32 + 2, 16);
}
static void kv_count_8_of_7(fixture *f)
{
    counts(f, 0, 8, 16);
} /* 100 bytes hold 7 pairs of 13 */
static void kv_count_a_million(fixture *f)
{
    fx_start(f, 3, 0, (1 << 20) + 1);
    fx_zeros(f, 14 << 20);
    f->mark = 16;
}

/* ---- keys and values ----------------------------------------------------------------------------------- */

static void key_length(fixture *f, uint64_t len)
{
    fx_start(f, 3, 0, 1);
    FX_MARK(f);
    fx_int(f, len, 8);
    fx_zeros(f, 64);
}
static void key_past_end(fixture *f)
{
    key_length(f, 65);
}
static void key_2_32(fixture *f)
{
    key_length(f, (uint64_t)1 << 32);
}
static void key_max(fixture *f)
{
    key_length(f, UINT64_MAX);
}
static void key_empty(fixture *f)
{
    key_length(f, 0);
}
static void key_too_long(fixture *f)
{
    fx_start(f, 3, 0, 1);
    FX_MARK(f);
    fx_int(f, 65536, 8);
    for (int i = 0; i < 65536; i++) fx_bytes(f, "k", 1);
    fx_int(f, RQ_GGUF_U8, 4), fx_int(f, 0, 1);
}
static void key_with_nul(fixture *f)
{
    fx_start(f, 3, 0, 1);
    FX_MARK(f);
    fx_int(f, 3, 8), fx_bytes(f, "a\0b", 3);
    fx_int(f, RQ_GGUF_U8, 4), fx_int(f, 0, 1);
}
static void key_twice(fixture *f)
{
    fx_start(f, 3, 0, 3);
    fx_kv_u32(f, "a", 1), fx_kv_u32(f, "b", 2);
    FX_MARK(f);
    fx_kv_str(f, "a", "other type, same key");
}

static void value_type(fixture *f, uint32_t type)
{
    fx_start(f, 3, 0, 1);
    fx_str(f, "k");
    FX_MARK(f);
    fx_int(f, type, 4);
    fx_zeros(f, 64);
}
static void value_type_13(fixture *f)
{
    value_type(f, 13);
}
static void value_type_minus_1(fixture *f)
{
    value_type(f, UINT32_MAX);
}

static void string_length(fixture *f, uint64_t len)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "k", RQ_GGUF_STRING);
    FX_MARK(f);
    fx_int(f, len, 8);
    fx_zeros(f, 64);
}
static void string_past_end(fixture *f)
{
    string_length(f, 65);
}
static void string_2_32(fixture *f)
{
    string_length(f, (uint64_t)1 << 32);
}
static void string_max(fixture *f)
{
    string_length(f, UINT64_MAX);
}
static void string_wraps_pos(fixture *f)
{
    string_length(f, UINT64_MAX - 32);
}

static void scalar_cut(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "long key to have enough", RQ_GGUF_F64);
    FX_MARK(f);
    fx_zeros(f, 7);
}

static void array_of(fixture *f, uint32_t type, uint64_t count, uint64_t mark)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "k", RQ_GGUF_ARRAY);
    f->mark = f->b.len + mark;
    fx_int(f, type, 4);
    fx_int(f, count, 8);
    fx_zeros(f, 64);
}
static void array_type_13(fixture *f)
{
    array_of(f, 13, 0, 0);
}
static void array_type_minus_1(fixture *f)
{
    array_of(f, UINT32_MAX, 0, 0);
}
static void array_nested(fixture *f)
{
    array_of(f, RQ_GGUF_ARRAY, 1, 0);
}
static void array_nested_empty(fixture *f)
{
    array_of(f, RQ_GGUF_ARRAY, 0, 0);
}
static void array_u8_65(fixture *f)
{
    array_of(f, RQ_GGUF_U8, 65, 4);
}
static void array_u64_wraps(fixture *f)
{
    array_of(f, RQ_GGUF_U64, (uint64_t)1 << 61, 4);
}
static void array_u32_wraps(fixture *f)
{
    array_of(f, RQ_GGUF_U32, ((uint64_t)1 << 62) + 1, 4);
}
static void array_max(fixture *f)
{
    array_of(f, RQ_GGUF_BOOL, UINT64_MAX, 4);
}
static void array_2_40_strings(fixture *f)
{
    array_of(f, RQ_GGUF_STRING, (uint64_t)1 << 40, 4);
}
static void array_9_strings(fixture *f)
{
    array_of(f, RQ_GGUF_STRING, 9, 4);
} /* 64 bytes hold 8 empty ones */
static void array_string_past_end(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "k", RQ_GGUF_ARRAY);
    fx_int(f, RQ_GGUF_STRING, 4), fx_int(f, 2, 8);
    fx_str(f, "good");
    FX_MARK(f);
    fx_int(f, 1000, 8);
    fx_zeros(f, 20);
}

/* ---- special keys -------------------------------------------------------------------------------------- */

static void alignment_as(fixture *f, uint32_t type, uint64_t value, int bytes)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "general.alignment", type);
    FX_MARK(f);
    fx_int(f, value, bytes);
}
static void alignment_0(fixture *f)
{
    alignment_as(f, RQ_GGUF_U32, 0, 4);
}
static void alignment_3(fixture *f)
{
    alignment_as(f, RQ_GGUF_U32, 3, 4);
}
static void alignment_24(fixture *f)
{
    alignment_as(f, RQ_GGUF_U32, 24, 4);
}
static void alignment_2_21(fixture *f)
{
    alignment_as(f, RQ_GGUF_U32, 1 << 21, 4);
}
static void alignment_2_31(fixture *f)
{
    alignment_as(f, RQ_GGUF_U32, (uint64_t)1 << 31, 4);
}
static void alignment_u64(fixture *f)
{
    alignment_as(f, RQ_GGUF_U64, 32, 8);
}
static void alignment_i32(fixture *f)
{
    alignment_as(f, RQ_GGUF_I32, 32, 4);
}
static void alignment_string(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "general.alignment", RQ_GGUF_STRING);
    FX_MARK(f);
    fx_str(f, "32");
}
static void alignment_array(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "general.alignment", RQ_GGUF_ARRAY);
    fx_int(f, RQ_GGUF_U32, 4), fx_int(f, 1, 8);
    FX_MARK(f);
    fx_int(f, 32, 4);
}
static void split_count_string(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "split.count", RQ_GGUF_STRING);
    FX_MARK(f);
    fx_str(f, "2");
}
static void split_no_negative(fixture *f)
{
    fx_start(f, 3, 0, 1);
    fx_key(f, "split.no", RQ_GGUF_I32);
    FX_MARK(f);
    fx_int(f, UINT32_MAX, 4);
}

/* ---- tensor names and shapes --------------------------------------------------------------------------- */

static void tensor_name(fixture *f, uint64_t len, const char *bytes, size_t n)
{
    fx_start(f, 3, 1, 0);
    FX_MARK(f);
    fx_int(f, len, 8), fx_bytes(f, bytes, n);
    fx_int(f, 0, 4), fx_int(f, 0, 4), fx_int(f, 0, 8);
    fx_pad(f, 32);
    fx_zeros(f, 32);
}
static void name_empty(fixture *f)
{
    tensor_name(f, 0, "", 0);
}
static void name_nul(fixture *f)
{
    tensor_name(f, 3, "a\0b", 3);
}
static void name_max(fixture *f)
{
    tensor_name(f, UINT64_MAX, "abc", 3);
}
static void name_65(fixture *f)
{
    tensor_name(f, 65, "01234567890123456789012345678901234567890123456789012345678901234", 65);
}

static void n_dims_of(fixture *f, uint32_t n)
{
    fx_start(f, 3, 1, 0);
    fx_str(f, "t");
    FX_MARK(f);
    fx_int(f, n, 4);
    fx_zeros(f, 256);
}
static void n_dims_5(fixture *f)
{
    n_dims_of(f, 5);
}
static void n_dims_max(fixture *f)
{
    n_dims_of(f, UINT32_MAX);
}

#define DIMS(...)                                                                                            \
    (sizeof((uint64_t[]){__VA_ARGS__}) / 8), (uint64_t[])                                                    \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }
static void dim_2_63(fixture *f)
{
    one_tensor(f, "t", DIMS((uint64_t)1 << 63), 0, 0);
}
static void dim_negative(fixture *f)
{
    one_tensor(f, "t", DIMS(4, UINT64_MAX), 0, 0);
    f->mark += 8; /* the second one */
}
static void dims_product_2_64(fixture *f)
{
    one_tensor(f, "t", DIMS((uint64_t)1 << 31, (uint64_t)1 << 31, 4), 24, 0);
}
static void dims_product_negative(fixture *f)
{
    one_tensor(f, "t", DIMS(INT64_MAX, 2), 24, 0);
}
static void dims_f32_padded_wraps(fixture *f)
{
    one_tensor(f, "t", DIMS(((uint64_t)1 << 62) - 1), 0, 0);
}
static void dims_f32_bytes_wrap(fixture *f)
{
    one_tensor(f, "t", DIMS(4, ((uint64_t)1 << 30) - 1, ((uint64_t)1 << 30) + 1), 0, 0);
}
static void dims_q4_row_wraps(fixture *f) /* 18 * dims[0] = 2^64 + something small */
{
    uint64_t row = (UINT64_MAX / 18 / 32 + 1) * 32;
    one_tensor(f, "t", DIMS(row), RQ_TYPE_Q4_0, 0);
}
static void dims_zero_hides_overflow(fixture *f)
{
    one_tensor(f, "t", DIMS(0, (uint64_t)1 << 62, (uint64_t)1 << 62, 16), 0, 0);
}
static void row_not_blocks(fixture *f)
{
    one_tensor(f, "t", DIMS(33), RQ_TYPE_Q4_0, 0);
}
static void row_not_superblocks(fixture *f)
{
    one_tensor(f, "t", DIMS(128, 2), RQ_TYPE_Q4_K, 0);
}
static void scalar_of_blocks(fixture *f)
{
    one_tensor(f, "t", 0, NULL, RQ_TYPE_Q8_0, 0);
}

static void type_of(fixture *f, uint32_t type)
{
    one_tensor(f, "t", DIMS(256), type, 0);
    mark_type(f, "t", 1);
}
static void type_4(fixture *f)
{
    type_of(f, 4);
}
static void type_5(fixture *f)
{
    type_of(f, 5);
}
static void type_31(fixture *f)
{
    type_of(f, 31);
}
static void type_33(fixture *f)
{
    type_of(f, 33);
}
static void type_36(fixture *f)
{
    type_of(f, 36);
}
static void type_38(fixture *f)
{
    type_of(f, 38);
}
static void type_255(fixture *f)
{
    type_of(f, 255);
}
static void type_minus_1(fixture *f)
{
    type_of(f, UINT32_MAX);
}

/* ---- where data lies ----------------------------------------------------------------------------------- */

static void offset_of(fixture *f, uint64_t offset, bool of_info)
{
    one_tensor(f, "t", DIMS(16), RQ_TYPE_F32, offset);
    mark_type(f, "t", 1);
    f->mark = of_info ? 24 : f->mark + 4;
}
static void offset_misaligned(fixture *f)
{
    offset_of(f, 33, false);
}
static void offset_past_data(fixture *f)
{
    offset_of(f, 288, true);
}
static void offset_at_end(fixture *f)
{
    offset_of(f, 256, true);
}
static void offset_plus_size_past(fixture *f)
{
    offset_of(f, 224, true);
} /* 64 bytes at 224 of 256 */
static void offset_wraps(fixture *f)
{
    offset_of(f, UINT64_MAX - 31, true);
}
static void offset_2_63(fixture *f)
{
    offset_of(f, (uint64_t)1 << 63, true);
}

static void two_tensors(fixture *f, const char *second, uint64_t size1, uint64_t offset1, uint64_t size2,
                        uint64_t offset2, bool mark_second)
{
    fx_start(f, 3, 2, 0);
    if (!mark_second) FX_MARK(f);
    fx_tensor(f, "first", 1, &size1, RQ_TYPE_I8, offset1);
    if (mark_second) FX_MARK(f);
    fx_tensor(f, second, 1, &size2, RQ_TYPE_I8, offset2);
    fx_pad(f, 32);
    fx_zeros(f, 256);
}
static void overlap_same(fixture *f)
{
    two_tensors(f, "second", 32, 0, 32, 0, true);
}
static void overlap_partly(fixture *f)
{
    two_tensors(f, "second", 33, 0, 32, 32, true);
}
static void overlap_inside(fixture *f)
{
    two_tensors(f, "second", 256, 0, 1, 96, true);
}
static void overlap_unordered(fixture *f)
{
    two_tensors(f, "second", 32, 32, 40, 0, false);
}
static void same_tensor_name(fixture *f)
{
    two_tensors(f, "first", 32, 0, 32, 32, true);
}

static void ends_in_padding(fixture *f)
{
    fx_start(f, 3, 1, 0);
    fx_tensor(f, "t", 1, (uint64_t[]){0}, RQ_TYPE_F32, 0);
    FX_MARK(f);
    while ((f->b.len + 1) % 32) fx_zeros(f, 1);
}
static void ends_in_data(fixture *f)
{
    fx_start(f, 3, 1, 0);
    FX_MARK(f);
    fx_tensor(f, "t", 1, (uint64_t[]){64}, RQ_TYPE_I8, 0);
    fx_pad(f, 32);
    fx_zeros(f, 63);
}

#define CASE(build, field)                                                                                   \
    {                                                                                                        \
#build, build, field                                                                                 \
    }
static const bad_file bad_files[] = {
    CASE(version_0, "version"),
    CASE(version_1, "version"),
    CASE(version_4, "version"),
    CASE(version_999, "version"),
    CASE(version_big_endian, "big-endian"),
    CASE(tensor_count_2_63, "tensor_count"),
    CASE(tensor_count_negative, "tensor_count"),
    CASE(tensor_count_wraps, "tensor_count"),
    CASE(tensor_count_5_of_4, "tensor_count"),
    CASE(kv_count_2_63, "kv_count"),
    CASE(kv_count_negative, "kv_count"),
    CASE(kv_count_wraps, "kv_count"),
    CASE(kv_count_8_of_7, "kv_count"),
    CASE(kv_count_a_million, "kv_count"),
    CASE(key_past_end, "key"),
    CASE(key_2_32, "key"),
    CASE(key_max, "key"),
    CASE(key_empty, "empty"),
    CASE(key_too_long, "65536"),
    CASE(key_with_nul, "NUL"),
    CASE(key_twice, "twice"),
    CASE(value_type_13, "13 is not a value type"),
    CASE(value_type_minus_1, "4294967295 is not a value type"),
    CASE(string_past_end, "value"),
    CASE(string_2_32, "value"),
    CASE(string_max, "value"),
    CASE(string_wraps_pos, "value"),
    CASE(scalar_cut, "value"),
    CASE(array_type_13, "element type"),
    CASE(array_type_minus_1, "element type"),
    CASE(array_nested, "arrays of arrays"),
    CASE(array_nested_empty, "arrays of arrays"),
    CASE(array_u8_65, "array length"),
    CASE(array_u64_wraps, "array length"),
    CASE(array_u32_wraps, "array length"),
    CASE(array_max, "array length"),
    CASE(array_2_40_strings, "array length"),
    CASE(array_9_strings, "array length"),
    CASE(array_string_past_end, "string in the array"),
    CASE(alignment_0, "general.alignment"),
    CASE(alignment_3, "general.alignment"),
    CASE(alignment_24, "general.alignment"),
    CASE(alignment_2_21, "general.alignment"),
    CASE(alignment_2_31, "general.alignment"),
    CASE(alignment_u64, "general.alignment"),
    CASE(alignment_i32, "general.alignment"),
    CASE(alignment_string, "general.alignment"),
    CASE(alignment_array, "general.alignment"),
    CASE(split_count_string, "split.count"),
    CASE(split_no_negative, "split.no"),
    CASE(name_empty, "name"),
    CASE(name_nul, "NUL"),
    CASE(name_max, "name"),
    CASE(name_65, "name"),
    CASE(n_dims_5, "n_dims"),
    CASE(n_dims_max, "n_dims"),
    CASE(dim_2_63, "dims[0]"),
    CASE(dim_negative, "dims[1]"),
    CASE(dims_product_2_64, "too many"),
    CASE(dims_product_negative, "too many"),
    CASE(dims_f32_padded_wraps, "too many"),
    CASE(dims_f32_bytes_wrap, "too many"),
    CASE(dims_q4_row_wraps, "lie outside"),
    CASE(dims_zero_hides_overflow, "too many"),
    CASE(row_not_blocks, "multiple of the 32"),
    CASE(row_not_superblocks, "multiple of the 256"),
    CASE(scalar_of_blocks, "multiple of the 32"),
    CASE(type_4, "type"),
    CASE(type_5, "type"),
    CASE(type_31, "type"),
    CASE(type_33, "type"),
    CASE(type_36, "type"),
    CASE(type_38, "type"),
    CASE(type_255, "type"),
    CASE(type_minus_1, "type"),
    CASE(offset_misaligned, "multiple of the alignment"),
    CASE(offset_past_data, "lie outside"),
    CASE(offset_at_end, "lie outside"),
    CASE(offset_plus_size_past, "lie outside"),
    CASE(offset_wraps, "lie outside"),
    CASE(offset_2_63, "lie outside"),
    CASE(overlap_same, "overlaps"),
    CASE(overlap_partly, "overlaps"),
    CASE(overlap_inside, "overlaps"),
    CASE(overlap_unordered, "overlaps"),
    CASE(same_tensor_name, "same name"),
    CASE(ends_in_padding, "padding"),
    CASE(ends_in_data, "lie outside"),
};

static void each_is_refused_with_a_sentence(void **state)
{
    int wrong = 0;
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        const bad_file *bad = &bad_files[i];
        fixture f;
        char place[40];
        bad->build(&f);
        /* The wrapped row of dims_q4_row_wraps is measured correctly and found too large for the file. */
        if (bad->build == dims_q4_row_wraps) f.mark = 24;
        snprintf(place, sizeof place, "at byte %llu:", (unsigned long long)f.mark);
        opened o = fx_open(&f);
        bool ok = o.status == RQ_ERR_FORMAT && strstr(o.err.text, "fixture.gguf: ") == o.err.text &&
                  strstr(o.err.text, bad->field) && strstr(o.err.text, place);
        if (!ok) print_error("%s: wanted '%s' %s, got: %s\n", bad->name, bad->field, place, o.err.text);
        wrong += !ok;
        fx_close(&o);
        fx_free(&f);
    }
    assert_int_equal(wrong, 0);
}

static void other_files_are_named(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *what;
    } files[] = {
        {"\x89PNG\r\n\x1a\n", 8, "a PNG picture"},
        {"\xff\xd8\xff\xe0", 4, "a JPEG picture"},
        {"PK\3\4", 4, "ZIP"},
        {"tjgg\3\0\0\0", 8, "older than GGUF"},
        {"\x40\0\0\0\0\0\0\0{\"__metadata__\"", 23, "safetensors"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull"},
        {"<!DOCTYPE html>", 15, "failed download"},
        {"GGU", 3, "magic"},
        {"hello", 5, "not a GGUF file"},
        {"x", 1, "not a GGUF file"},
        {"", 0, "is empty"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        opened o = fx_open_bytes(files[i].bytes, files[i].n);
        assert_int_equal(o.status, RQ_ERR_FORMAT);
        if (!strstr(o.err.text, files[i].what)) fail_msg("wanted '%s': %s", files[i].what, o.err.text);
        fx_close(&o);
    }
}

/* Text from the file reaches the sentence, but not its control characters. */
static void sentences_are_harmless(void **state)
{
    fixture f;
    fx_start(&f, 3, 0, 2);
    fx_kv_u32(&f, "\x1b[2J\x07\xc2\x9b", 1);
    fx_kv_u32(&f, "\x1b[2J\x07\xc2\x9b", 1);
    opened o = fx_open(&f);
    assert_int_equal(o.status, RQ_ERR_FORMAT);
    for (const char *c = o.err.text; *c; c++) assert_true(*c >= 0x20 && *c < 0x7f);
    fx_close(&o);
    fx_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_is_refused_with_a_sentence),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(sentences_are_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
