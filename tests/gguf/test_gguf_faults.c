/* The reader under stress: files cut at every byte, allocations that fail, and how much it allocates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "engine/gguf/writer.h"
#include "tests/gguf/fixture.h"

/* ---- allocated bytes, by wrapping the functions that the reader calls (see CMakeLists.txt) ------------- */

static uint64_t allocated_bytes;

void *__real_rq_malloc(size_t bytes);
void *__real_rq_calloc(size_t count, size_t bytes);
bool __real_rq_grow(void **array, size_t *cap, size_t need, size_t item_bytes);
void *__wrap_rq_malloc(size_t bytes);
void *__wrap_rq_calloc(size_t count, size_t bytes);
bool __wrap_rq_grow(void **array, size_t *cap, size_t need, size_t item_bytes);

void *__wrap_rq_malloc(size_t bytes)
{
    allocated_bytes += bytes;
    return __real_rq_malloc(bytes);
}

void *__wrap_rq_calloc(size_t count, size_t bytes)
{
    allocated_bytes += count * bytes;
    return __real_rq_calloc(count, bytes);
}

bool __wrap_rq_grow(void **array, size_t *cap, size_t need, size_t item_bytes)
{
    size_t before = *cap;
    bool ok = __real_rq_grow(array, cap, need, item_bytes);
    if (*cap != before) allocated_bytes += *cap * item_bytes;
    return ok;
}

/* The largest structures the smallest possible items (a pair of 14 bytes, a tensor of 25) can stand for, with
 * tables half full and arrays doubled, plus the fixed part. */
#define BYTES_PER_FILE_BYTE 16
#define FIXED_BYTES         4096

static opened open_counting(const void *bytes, size_t n)
{
    allocated_bytes = 0;
    opened o = fx_open_bytes(bytes, n);
    if (allocated_bytes > FIXED_BYTES + BYTES_PER_FILE_BYTE * (uint64_t)n)
        fail_msg("%llu bytes allocated for a file of %zu: %s", (unsigned long long)allocated_bytes, n,
                 o.err.text);
    return o;
}

/* ---- tests --------------------------------------------------------------------------------------------- */

/* Cut anywhere, the sample is refused, except within the padding behind the last tensor (it has none). */
static void truncation_at_every_byte(void **state)
{
    for (uint32_t version = 2; version <= 3; version++) {
        fixture f;
        fx_sample(&f, version);
        int64_t alive = rq_mem_alive();
        for (size_t n = 0; n < f.b.len; n++) {
            opened o = open_counting(f.b.data, n);
            if (o.status != RQ_ERR_FORMAT || !o.err.text[0]) fail_msg("cut at byte %zu of %zu", n, f.b.len);
            fx_close(&o);
            assert_int_equal(rq_mem_alive(), alive);
        }
        opened o = open_counting(f.b.data, f.b.len);
        assert_int_equal(o.status, RQ_OK);
        fx_close(&o);
        fx_free(&f);
    }
}

/* Whatever a single changed byte does, it does not crash, leak or inflate. */
static void every_byte_changed(void **state)
{
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    fixture f;
    fx_sample(&f, 3);
    int64_t alive = rq_mem_alive();
    for (size_t i = 0; i < f.b.len; i++)
        for (size_t c = 0; c < sizeof changes; c++) {
            f.b.data[i] ^= (char)changes[c];
            opened o = open_counting(f.b.data, f.b.len);
            for (uint64_t t = 0; o.g && t < rq_gguf_n_tensors(o.g); t++) {
                const rq_gguf_tensor *tensor = rq_gguf_tensor_at(o.g, t);
                const uint8_t *start = o.copy;
                assert_true(tensor->data >= start && tensor->data <= start + f.b.len);
                assert_true(tensor->nbytes <= (uint64_t)(start + f.b.len - tensor->data));
            }
            fx_close(&o);
            f.b.data[i] ^= (char)changes[c];
        }
    assert_int_equal(rq_mem_alive(), alive);
    fx_free(&f);
}

/* Files of nothing but the smallest items: the worst ratio of memory to file. */
static void dense_files_stay_in_proportion(void **state)
{
    fixture f;
    char name[16];
    enum { N = 20000 };
    fx_start(&f, 3, 0, N);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%x", i);
        fx_key(&f, name, RQ_GGUF_U8), fx_int(&f, 1, 1);
    }
    opened o = open_counting(f.b.data, f.b.len);
    assert_int_equal(o.status, RQ_OK);
    fx_close(&o);
    fx_free(&f);

    fx_start(&f, 3, N, 0);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%x", i);
        fx_tensor(&f, name, 0, NULL, RQ_TYPE_I8, (uint64_t)i * 32);
    }
    fx_pad(&f, 32);
    fx_zeros(&f, N * 32);
    o = open_counting(f.b.data, f.b.len);
    assert_int_equal(o.status, RQ_OK);
    fx_close(&o);
    fx_free(&f);

    fx_start(&f, 3, 0, 1);
    fx_key(&f, "k", RQ_GGUF_ARRAY), fx_int(&f, RQ_GGUF_STRING, 4), fx_int(&f, N, 8);
    fx_zeros(&f, N * 8);
    o = open_counting(f.b.data, f.b.len);
    assert_int_equal(o.status, RQ_OK);
    fx_close(&o);
    fx_free(&f);
}

static void each_allocation_fails_once_when_opening(void **state)
{
    fixture f;
    fx_sample(&f, 3);
    const char *path = fx_path("faults.gguf");
    fx_write_file(path, f.b.data, f.b.len);
    fx_free(&f);
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1;; n++) {
        rq_gguf *g = NULL;
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = rq_gguf_open(path, &g, &err);
        uint64_t made = rq_mem_count();
        rq_mem_fail_at(0);
        if (made < n) { /* there was no n-th allocation */
            assert_int_equal(status, RQ_OK);
            rq_gguf_close(g);
            assert_true(n > 5);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_null(g);
        assert_true(err.text[0]);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_int_equal(rq_mem_alive(), alive);
}

static rq_status write_something(const char *path, rq_error *err)
{
    rq_gguf_writer *w = NULL;
    rq_status status = rq_gguf_writer_create(path, 64, &w, err);
    if (status) return status;
    rq_gguf_put_str(w, "s", "text");
    rq_gguf_put_strs(w, "strs", (rq_gguf_str[]){{"x", 1}, {"yz", 2}}, 2);
    rq_gguf_declare(w, "a", RQ_TYPE_I8, 1, (uint64_t[]){4});
    rq_gguf_declare(w, "b", RQ_TYPE_I8, 1, (uint64_t[]){4});
    status = rq_gguf_writer_begin_data(w, err);
    if (!status) status = rq_gguf_writer_write(w, "abcdefgh", 8, err);
    if (!status) status = rq_gguf_writer_finish(w, err);
    rq_gguf_writer_free(w);
    return status;
}

static void each_allocation_fails_once_when_writing(void **state)
{
    const char *path = fx_path("faults-written.gguf");
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1;; n++) {
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = write_something(path, &err);
        uint64_t made = rq_mem_count();
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        if (made < n) {
            assert_int_equal(status, RQ_OK);
            assert_int_equal(access(path, F_OK), 0);
            assert_true(n > 5);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_int_equal(access(path, F_OK), -1);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(truncation_at_every_byte),
        cmocka_unit_test(every_byte_changed),
        cmocka_unit_test(dense_files_stay_in_proportion),
        cmocka_unit_test(each_allocation_fails_once_when_opening),
        cmocka_unit_test(each_allocation_fails_once_when_writing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
