/* What a well-formed file yields: every value type, arrays, tensors, alignments, versions, split sets. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "engine/gguf/writer.h"
#include "tests/gguf/fixture.h"

static void must(opened *o)
{
    if (o->status) print_error("%s\n", o->err.text);
    assert_int_equal(o->status, RQ_OK);
}

static void check_sample(const rq_gguf *g)
{
    rq_error err;
    int64_t i;
    uint32_t u;
    float f;
    bool b;
    rq_gguf_str s;
    assert_int_equal(rq_gguf_n_kv(g), 16);
    assert_int_equal(rq_gguf_get_str(g, "general.architecture", &s, &err), RQ_OK);
    assert_true(rq_gguf_str_eq(s, "llama"));
    static const struct {
        const char *key;
        int64_t value;
    } integers[] = {{"k.u8", 200},         {"k.i8", -100},         {"k.u16", 60000},    {"k.i16", -30000},
                    {"k.u32", 4000000000}, {"k.i32", -2000000000}, {"k.i64", INT64_MIN}};
    for (size_t k = 0; k < sizeof integers / sizeof *integers; k++) {
        assert_int_equal(rq_gguf_get_i64(g, integers[k].key, INT64_MIN, INT64_MAX, &i, &err), RQ_OK);
        assert_true(i == integers[k].value);
    }
    assert_int_equal(rq_gguf_get_u32(g, "k.u32", 0, UINT32_MAX, &u, &err), RQ_OK);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(rq_gguf_get_f32(g, "k.f32", &f, &err), RQ_OK);
    assert_true(f == 1.5f);
    assert_int_equal(rq_gguf_get_f32(g, "k.f64", &f, &err), RQ_OK);
    assert_true(f == -0.25f);
    assert_int_equal(rq_gguf_get_f32(g, "k.u8", &f, &err), RQ_OK);
    assert_true(f == 200.0f);
    assert_int_equal(rq_gguf_get_bool(g, "k.bool", &b, &err), RQ_OK);
    assert_true(b);

    const rq_gguf_kv *kv;
    assert_int_equal(rq_gguf_get_strs(g, "a.strings", &kv, &err), RQ_OK);
    static const char *const strings[] = {"one", "", "drei"};
    assert_int_equal(kv->count, 3);
    for (uint64_t k = 0; k < 3; k++)
        assert_true(rq_gguf_elem_str(kv, k, &s) && rq_gguf_str_eq(s, strings[k]));
    assert_false(rq_gguf_elem_str(kv, 3, &s));
    assert_false(rq_gguf_elem_i64(kv, 0, &i));
    assert_int_equal(rq_gguf_get_ints(g, "a.i16", &kv, &err), RQ_OK);
    static const int64_t shorts[] = {1, -2, 3};
    for (uint64_t k = 0; k < 3; k++) assert_true(rq_gguf_elem_i64(kv, k, &i) && i == shorts[k]);
    assert_false(rq_gguf_elem_i64(kv, 3, &i));
    assert_int_equal(rq_gguf_get_reals(g, "a.empty", &kv, &err), RQ_OK);
    assert_int_equal(kv->count, 0);
    assert_int_equal(rq_gguf_get_ints(g, "a.bool", &kv, &err), RQ_OK);
    assert_true(rq_gguf_elem_i64(kv, 0, &i) && i == 1);

    assert_int_equal(rq_gguf_n_tensors(g), 4);
    const rq_gguf_tensor *t = rq_gguf_find_tensor(g, "token_embd.weight");
    assert_ptr_equal(t, rq_gguf_tensor_at(g, 0));
    assert_int_equal(t->type, RQ_TYPE_Q4_0);
    assert_int_equal(t->nbytes, 54);
    assert_int_equal(t->n_elems, 96);
    assert_int_equal(t->data[53], 53);
    t = rq_gguf_find_tensor(g, "scalar");
    assert_int_equal(t->n_dims, 0);
    assert_int_equal(t->n_elems, 1);
    assert_int_equal(t->nbytes, 4);
    assert_int_equal(t->data[0], 96);
    t = rq_gguf_find_tensor(g, "experts");
    assert_int_equal(t->n_dims, 3);
    assert_true(t->ne[0] == 2 && t->ne[1] == 3 && t->ne[2] == 4 && t->ne[3] == 1);
    assert_int_equal(t->data[47], 128 + 47);
    assert_null(rq_gguf_find_tensor(g, "absent"));
    assert_null(rq_gguf_find_tensor(g, ""));
    assert_null(rq_gguf_find(g, "absent"));
}

static void versions_2_and_3_read_alike(void **state)
{
    for (uint32_t version = 2; version <= 3; version++) {
        fixture f;
        fx_sample(&f, version);
        opened o = fx_open(&f);
        must(&o);
        assert_int_equal(rq_gguf_version(o.g), version);
        assert_int_equal(rq_gguf_n_shards(o.g), 1);
        check_sample(o.g);
        fx_close(&o);
        fx_free(&f);
    }
}

static void a_file_reads_like_its_bytes(void **state)
{
    fixture f;
    rq_gguf *g = NULL;
    rq_error err;
    fx_sample(&f, 3);
    const char *path = fx_path("sample.gguf");
    fx_write_file(path, f.b.data, f.b.len);
    const char *link = fx_path("link.gguf");
    unlink(link);
    assert_int_equal(symlink("sample.gguf", link), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rq_gguf_open(i ? link : path, &g, &err), RQ_OK);
        assert_int_equal(rq_gguf_file_bytes(g), f.b.len);
        check_sample(g);
        assert_false(rq_gguf_lost(g));
        rq_gguf_close(g);
    }
    fx_free(&f);
}

/* Getters say no, and leave the output alone, when type or range do not fit. */
static void getters_refuse(void **state)
{
    fixture f;
    fx_sample(&f, 3);
    opened o = fx_open(&f);
    must(&o);
    rq_error err;
    int64_t i = 77;
    uint32_t u = 77, us[3] = {7, 7, 7};
    float r = 77;
    bool b = true;
    rq_gguf_str s = {0};
    const rq_gguf_kv *kv = NULL;
#define REFUSED(call, why)                                                                                   \
    do {                                                                                                     \
        assert_int_equal(call, RQ_ERR_FORMAT);                                                               \
        assert_non_null(strstr(err.text, "fixture.gguf"));                                                   \
        assert_non_null(strstr(err.text, why));                                                              \
    } while (0)
    REFUSED(rq_gguf_get_i64(o.g, "absent", 0, 9, &i, &err), "'absent' is missing");
    REFUSED(rq_gguf_get_i64(o.g, "k.u64", INT64_MIN, INT64_MAX, &i, &err),
            "18446744073709551615 is too large");
    REFUSED(rq_gguf_get_i64(o.g, "k.f32", INT64_MIN, INT64_MAX, &i, &err), "an integer is wanted");
    REFUSED(rq_gguf_get_i64(o.g, "a.i16", INT64_MIN, INT64_MAX, &i, &err), "an array of i16");
    REFUSED(rq_gguf_get_u32(o.g, "k.i8", 0, 9, &u, &err), "-100 is not between 0 and 9");
    REFUSED(rq_gguf_get_u32(o.g, "k.u8", 0, 199, &u, &err), "200 is not between 0 and 199");
    REFUSED(rq_gguf_opt_u32(o.g, "k.u8", 201, 255, 5, &u, &err), "200 is not between 201 and 255");
    REFUSED(rq_gguf_get_f32(o.g, "general.architecture", &r, &err), "a number is wanted");
    REFUSED(rq_gguf_get_f32(o.g, "a.empty", &r, &err), "an array of f32");
    REFUSED(rq_gguf_get_bool(o.g, "k.u8", &b, &err), "200 is not between 0 and 1");
    REFUSED(rq_gguf_get_bool(o.g, "k.f32", &b, &err), "true or false");
    REFUSED(rq_gguf_get_str(o.g, "k.u8", &s, &err), "a string is wanted");
    REFUSED(rq_gguf_get_str(o.g, "a.strings", &s, &err), "an array of string");
    REFUSED(rq_gguf_get_strs(o.g, "a.i16", &kv, &err), "an array of strings is wanted");
    REFUSED(rq_gguf_get_strs(o.g, "general.architecture", &kv, &err), "an array of strings is wanted");
    REFUSED(rq_gguf_get_ints(o.g, "a.strings", &kv, &err), "an array of integers is wanted");
    REFUSED(rq_gguf_get_ints(o.g, "a.empty", &kv, &err), "an array of integers is wanted");
    REFUSED(rq_gguf_get_reals(o.g, "a.strings", &kv, &err), "an array of numbers is wanted");
    REFUSED(rq_gguf_get_u32s(o.g, "a.i16", 2, 0, 9, us, &err), "3 elements where 2 are wanted");
    REFUSED(rq_gguf_get_u32s(o.g, "a.i16", 3, 0, 9, us, &err), "-2 is not between 0 and 9");
    REFUSED(rq_gguf_get_u32s(o.g, "k.f32", 3, 0, 9, us, &err), "an array of integers is wanted");
    assert_true(i == 77 && u == 77 && r == 77 && b && !s.data && !kv);
    assert_true(us[0] == 7 && us[1] == 7 && us[2] == 7);

    assert_int_equal(rq_gguf_opt_u32(o.g, "absent", 0, 1, 5, &u, &err), RQ_OK);
    assert_int_equal(u, 5);
    assert_int_equal(rq_gguf_opt_f32(o.g, "absent", 2.5f, &r, &err), RQ_OK);
    assert_true(r == 2.5f);
    assert_int_equal(rq_gguf_opt_bool(o.g, "absent", false, &b, &err), RQ_OK);
    assert_false(b);
    assert_int_equal(rq_gguf_opt_str(o.g, "absent", "none", &s, &err), RQ_OK);
    assert_true(rq_gguf_str_eq(s, "none"));
    assert_int_equal(rq_gguf_get_u32s(o.g, "k.u8", 3, 0, 255, us, &err), RQ_OK); /* one value for all */
    assert_true(us[0] == 200 && us[1] == 200 && us[2] == 200);
    fx_close(&o);
    fx_free(&f);
}

static void reals_must_be_finite(void **state)
{
    fixture f;
    float r = 3;
    fx_start(&f, 3, 0, 4);
    fx_key(&f, "nan", RQ_GGUF_F32), fx_int(&f, 0x7fc00000, 4);
    fx_key(&f, "inf", RQ_GGUF_F32), fx_int(&f, 0xff800000, 4);
    fx_key(&f, "big", RQ_GGUF_F64), fx_int(&f, 0x7fe0000000000000, 8); /* 9e307: no f32 */
    fx_key(&f, "ok", RQ_GGUF_F32), fx_int(&f, 0x7f7fffff, 4);
    opened o = fx_open(&f);
    must(&o);
    static const char *const keys[] = {"nan", "inf", "big"};
    for (int k = 0; k < 3; k++) {
        assert_int_equal(rq_gguf_get_f32(o.g, keys[k], &r, &o.err), RQ_ERR_FORMAT);
        assert_non_null(strstr(o.err.text, "finite"));
    }
    assert_true(r == 3);
    assert_int_equal(rq_gguf_get_f32(o.g, "ok", &r, &o.err), RQ_OK);
    fx_close(&o);
    fx_free(&f);
}

/* Things the format permits although hardly anybody writes them. */
static void unusual_files_are_accepted(void **state)
{
    char long_name[65];
    memset(long_name, 'n', 64);
    long_name[64] = 0;

    fixture f; /* gaps, any order, zero-sized tensors, a 64-byte name, bytes after the data */
    fx_start(&f, 3, 4, 1);
    fx_key(&f, "k\xff\x1b", RQ_GGUF_BOOL), fx_int(&f, 7, 1); /* keys need not be UTF-8, any byte is a bool */
    fx_tensor(&f, "late", 1, (uint64_t[]){8}, RQ_TYPE_F32, 128);
    fx_tensor(&f, long_name, 1, (uint64_t[]){8}, RQ_TYPE_I32, 0);
    fx_tensor(&f, "empty", 2, (uint64_t[]){32, 0}, RQ_TYPE_Q4_0, 0);
    fx_tensor(&f, "empty too", 4, (uint64_t[]){0, 5, 1, 7}, RQ_TYPE_Q4_K, 160);
    fx_pad(&f, 32);
    fx_zeros(&f, 160 + 100);
    opened o = fx_open(&f);
    must(&o);
    assert_int_equal(rq_gguf_find_tensor(o.g, "empty")->nbytes, 0);
    assert_int_equal(rq_gguf_find_tensor(o.g, "empty too")->n_elems, 0);
    assert_int_equal(rq_gguf_find_tensor(o.g, "late")->data - rq_gguf_find_tensor(o.g, long_name)->data, 128);
    int64_t truth;
    assert_true(rq_gguf_elem_i64(rq_gguf_kv_at(o.g, 0), 0, &truth) && truth == 1);
    fx_close(&o);
    fx_free(&f);

    fx_start(&f, 3, 0, 0); /* nothing at all */
    o = fx_open(&f);
    must(&o);
    assert_int_equal(rq_gguf_n_kv(o.g) + rq_gguf_n_tensors(o.g), 0);
    assert_null(rq_gguf_find(o.g, "x"));
    assert_null(rq_gguf_find_tensor(o.g, "x"));
    fx_close(&o);
    fx_free(&f);

    fx_start(&f, 3, 0, 1); /* no tensors: no padding needed */
    fx_kv_u32(&f, "a", 1);
    o = fx_open(&f);
    must(&o);
    fx_close(&o);
    fx_free(&f);
}

static void alignment_moves_the_data(void **state)
{
    static const uint32_t alignments[] = {1, 8, 32, 64, 4096};
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        uint32_t a = alignments[i];
        fixture f;
        fx_start(&f, 3, 2, 1);
        fx_kv_u32(&f, "general.alignment",
                  a); /* at the end of the list or not: it is read before it is used */
        fx_tensor(&f, "a", 1, (uint64_t[]){3}, RQ_TYPE_I8, 0);
        fx_tensor(&f, "b", 1, (uint64_t[]){3}, RQ_TYPE_I8, a < 3 ? 3 : a);
        fx_pad(&f, a);
        size_t start = f.b.len;
        fx_bytes(&f, "abc", 3);
        fx_pad(&f, a);
        fx_bytes(&f, "def", 3); /* the padding behind the last tensor may be missing */
        opened o = fx_open(&f);
        must(&o);
        assert_ptr_equal(rq_gguf_find_tensor(o.g, "a")->data, (uint8_t *)o.copy + start);
        assert_memory_equal(rq_gguf_find_tensor(o.g, "b")->data, "def", 3);
        fx_close(&o);
        fx_free(&f);
    }
}

/* Enough keys and tensors to make a quadratic search hang. */
static void many_names(void **state)
{
    enum { N = 60000 };
    fixture f;
    char name[32];
    fx_start(&f, 3, N, N);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "key.%d", i);
        fx_kv_u32(&f, name, (uint32_t)i);
    }
    for (int i = 0; i < N; i++) { /* last tensor first */
        snprintf(name, sizeof name, "tensor.%d", i);
        fx_tensor(&f, name, 1, (uint64_t[]){32}, RQ_TYPE_I8, (uint64_t)(N - 1 - i) * 32);
    }
    fx_pad(&f, 32);
    fx_zeros(&f, (size_t)N * 32);
    opened o = fx_open(&f);
    must(&o);
    for (int i = 0; i < N; i += 7) {
        uint32_t value = 0;
        snprintf(name, sizeof name, "key.%d", i);
        assert_int_equal(rq_gguf_get_u32(o.g, name, 0, N, &value, &o.err), RQ_OK);
        assert_int_equal(value, i);
        snprintf(name, sizeof name, "tensor.%d", i);
        assert_ptr_equal(rq_gguf_find_tensor(o.g, name), rq_gguf_tensor_at(o.g, (uint64_t)i));
    }
    fx_close(&o);
    fx_free(&f);
}

/* The writer's file says what was put, for every alignment and tensor type. */
static void writer_and_reader_agree(void **state)
{
    static const uint32_t alignments[] = {1, 32, 256};
    for (size_t a = 0; a < 3; a++) {
        const char *path = fx_path("written.gguf");
        rq_gguf_writer *w = NULL;
        rq_error err;
        assert_int_equal(rq_gguf_writer_create(path, alignments[a], &w, &err), RQ_OK);
        if (a == 1) rq_gguf_writer_version(w, 2);
        rq_gguf_put_u32(w, "u", 7);
        rq_gguf_put_f32(w, "f", 0.5f);
        rq_gguf_put_bool(w, "b", true);
        rq_gguf_put_str(w, "s", "text");
        rq_gguf_put_scalar(w, "i64", RQ_GGUF_I64, &(int64_t){-5});
        rq_gguf_put_array(w, "array", RQ_GGUF_I32, (int32_t[]){4, 5, 6}, 3);
        rq_gguf_put_strs(w, "strs", (rq_gguf_str[]){{"x", 1}, {"", 0}, {"yz", 2}}, 3);
        uint64_t total = 0, n = 0;
        for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
            if (!rq_type_get(id)) continue;
            uint64_t ne[2] = {rq_type_get(id)->block_elems, 3};
            rq_gguf_declare(w, rq_type_get(id)->name, (rq_type)id, 2, ne);
            total += rq_type_get(id)->block_bytes * 3u;
            n++;
        }
        rq_gguf_declare(w, "nothing", RQ_TYPE_F32, 1, (uint64_t[]){0});
        assert_int_equal(rq_gguf_writer_data_bytes(w), total);
        assert_int_equal(rq_gguf_writer_begin_data(w, &err), RQ_OK);
        for (uint64_t i = 0; i < total; i++) { /* pieces need not coincide with tensors */
            uint8_t byte = (uint8_t)(i * 31 >> 3);
            assert_int_equal(rq_gguf_writer_write(w, &byte, 1, &err), RQ_OK);
        }
        assert_int_equal(access(path, F_OK), -1); /* not yet */
        assert_int_equal(rq_gguf_writer_write(w, "x", 1, &err), RQ_ERR_ARGUMENT);
        assert_int_equal(rq_gguf_writer_finish(w, &err), RQ_OK);
        rq_gguf_writer_free(w);

        rq_gguf *g = NULL;
        assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
        assert_int_equal(rq_gguf_version(g), a == 1 ? 2 : 3);
        assert_int_equal(rq_gguf_n_tensors(g), n + 1);
        uint64_t at = 0;
        for (uint64_t i = 0; i < n; i++) {
            const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
            assert_string_equal(t->name, rq_type_get(t->type)->name);
            assert_int_equal((uintptr_t)t->data % alignments[a], 0);
            for (uint64_t k = 0; k < t->nbytes; k++, at++)
                assert_int_equal(t->data[k], (uint8_t)(at * 31 >> 3));
        }
        assert_int_equal(at, total);
        int64_t i64 = 0;
        assert_int_equal(rq_gguf_get_i64(g, "i64", -9, 9, &i64, &err), RQ_OK);
        assert_int_equal(i64, -5);
        const rq_gguf_kv *kv = NULL;
        rq_gguf_str s;
        assert_int_equal(rq_gguf_get_strs(g, "strs", &kv, &err), RQ_OK);
        assert_true(rq_gguf_elem_str(kv, 2, &s) && rq_gguf_str_eq(s, "yz"));
        assert_int_equal(rq_gguf_get_ints(g, "array", &kv, &err), RQ_OK);
        assert_true(rq_gguf_elem_i64(kv, 2, &i64) && i64 == 6);
        rq_gguf_close(g);
        unlink(path);
    }
}

static void writer_refuses(void **state)
{
    rq_gguf_writer *w = NULL;
    rq_error err;
    const char *path = fx_path("refused.gguf");
    assert_int_equal(rq_gguf_writer_create(path, 24, &w, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_gguf_writer_create(fx_path("no/such/folder.gguf"), 32, &w, &err), RQ_ERR_IO);
    assert_null(w);
    assert_int_equal(rq_gguf_writer_create(path, 32, &w, &err), RQ_OK);
    rq_gguf_declare(w, "odd", RQ_TYPE_Q4_0, 1, (uint64_t[]){33});
    assert_int_equal(rq_gguf_writer_begin_data(w, &err), RQ_ERR_ARGUMENT);
    rq_gguf_writer_free(w);
    assert_int_equal(rq_gguf_writer_create(path, 32, &w, &err), RQ_OK);
    rq_gguf_declare(w, "a", RQ_TYPE_F32, 1, (uint64_t[]){2});
    assert_int_equal(rq_gguf_writer_begin_data(w, &err), RQ_OK);
    assert_int_equal(rq_gguf_writer_write(w, "1234", 4, &err), RQ_OK);
    assert_int_equal(rq_gguf_writer_finish(w, &err), RQ_ERR_ARGUMENT);
    rq_gguf_writer_free(w);
    assert_int_equal(access(path, F_OK), -1);
}

/* A write that the system refuses (here: over the process's limit of file size) leaves no file. */
static void a_full_disk_is_reported(void **state)
{
    const char *path = fx_path("full.gguf");
    static char zeros[1 << 20];
    rq_gguf_writer *w = NULL;
    rq_error err;
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    rq_status created = rq_gguf_writer_create(path, 32, &w, &err), status = created;
    if (!created) {
        rq_gguf_declare(w, "a", RQ_TYPE_I8, 1, (uint64_t[]){sizeof zeros});
        status = rq_gguf_writer_begin_data(w, &err);
        if (!status) status = rq_gguf_writer_write(w, zeros, sizeof zeros, &err);
        if (!status) status = rq_gguf_writer_finish(w, &err);
        rq_gguf_writer_free(w);
    }
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(created, RQ_OK);
    assert_int_equal(status, RQ_ERR_IO);
    assert_non_null(strstr(err.text, "full.gguf: cannot be written"));
    assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_2_and_3_read_alike),
        cmocka_unit_test(a_file_reads_like_its_bytes),
        cmocka_unit_test(getters_refuse),
        cmocka_unit_test(reals_must_be_finite),
        cmocka_unit_test(unusual_files_are_accepted),
        cmocka_unit_test(alignment_moves_the_data),
        cmocka_unit_test(many_names),
        cmocka_unit_test(writer_and_reader_agree),
        cmocka_unit_test(writer_refuses),
        cmocka_unit_test(a_full_disk_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
