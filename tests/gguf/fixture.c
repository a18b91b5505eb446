#include "tests/gguf/fixture.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

void fx_int(fixture *f, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        fx_bytes(f, &byte, 1);
    }
}

void fx_bytes(fixture *f, const void *data, size_t n)
{
    assert_true(rq_buf_append(&f->b, data, n));
}

void fx_zeros(fixture *f, size_t n)
{
    static const uint8_t zeros[4096];
    for (; n > sizeof zeros; n -= sizeof zeros) fx_bytes(f, zeros, sizeof zeros);
    fx_bytes(f, zeros, n);
}

void fx_start(fixture *f, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    *f = (fixture){.b = {.max = (size_t)1 << 28}};
    fx_bytes(f, "GGUF", 4);
    fx_int(f, version, 4);
    fx_int(f, n_tensors, 8);
    fx_int(f, n_kv, 8);
}

void fx_free(fixture *f)
{
    rq_buf_free(&f->b);
}

void fx_str(fixture *f, const char *text)
{
    fx_int(f, strlen(text), 8);
    fx_bytes(f, text, strlen(text));
}

void fx_key(fixture *f, const char *key, uint32_t type)
{
    fx_str(f, key);
    fx_int(f, type, 4);
}

void fx_kv_u32(fixture *f, const char *key, uint32_t value)
{
    fx_key(f, key, RQ_GGUF_U32);
    fx_int(f, value, 4);
}

void fx_kv_str(fixture *f, const char *key, const char *text)
{
    fx_key(f, key, RQ_GGUF_STRING);
    fx_str(f, text);
}

void fx_tensor(fixture *f, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
               uint64_t offset)
{
    fx_str(f, name);
    fx_int(f, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++) fx_int(f, dims[d], 8);
    fx_int(f, type, 4);
    fx_int(f, offset, 8);
}

void fx_pad(fixture *f, size_t alignment)
{
    fx_zeros(f, (alignment - f->b.len % alignment) % alignment);
}

opened fx_open_bytes(const void *bytes, size_t n)
{
    opened o = {0};
    o.copy = malloc(n ? n : 1);
    assert_non_null(o.copy);
    if (n) memcpy(o.copy, bytes, n);
    o.status = rq_gguf_open_memory(o.copy, n, "fixture.gguf", &o.g, &o.err);
    if (o.status) assert_null(o.g);
    return o;
}

opened fx_open(const fixture *f)
{
    return fx_open_bytes(f->b.data, f->b.len);
}

void fx_close(opened *o)
{
    rq_gguf_close(o->g);
    free(o->copy);
    *o = (opened){0};
}

void fx_sample(fixture *f, uint32_t version)
{
    fx_start(f, version, 4, 16);
    fx_kv_str(f, "general.architecture", "llama");
    fx_key(f, "k.u8", RQ_GGUF_U8), fx_int(f, 200, 1);
    fx_key(f, "k.i8", RQ_GGUF_I8), fx_int(f, (uint64_t)-100, 1);
    fx_key(f, "k.u16", RQ_GGUF_U16), fx_int(f, 60000, 2);
    fx_key(f, "k.i16", RQ_GGUF_I16), fx_int(f, (uint64_t)-30000, 2);
    fx_key(f, "k.u32", RQ_GGUF_U32), fx_int(f, 4000000000u, 4);
    fx_key(f, "k.i32", RQ_GGUF_I32), fx_int(f, (uint64_t)-2000000000, 4);
    fx_key(f, "k.u64", RQ_GGUF_U64), fx_int(f, UINT64_MAX, 8);
    fx_key(f, "k.i64", RQ_GGUF_I64), fx_int(f, (uint64_t)INT64_MIN, 8);
    fx_key(f, "k.f32", RQ_GGUF_F32), fx_int(f, 0x3fc00000, 4);          /* 1.5 */
    fx_key(f, "k.f64", RQ_GGUF_F64), fx_int(f, 0xbfd0000000000000u, 8); /* -0.25 */
    fx_key(f, "k.bool", RQ_GGUF_BOOL), fx_int(f, 1, 1);
    fx_key(f, "a.strings", RQ_GGUF_ARRAY), fx_int(f, RQ_GGUF_STRING, 4), fx_int(f, 3, 8);
    fx_str(f, "one"), fx_str(f, ""), fx_str(f, "drei");
    fx_key(f, "a.i16", RQ_GGUF_ARRAY), fx_int(f, RQ_GGUF_I16, 4), fx_int(f, 3, 8);
    fx_int(f, 1, 2), fx_int(f, (uint64_t)-2, 2), fx_int(f, 3, 2);
    fx_key(f, "a.empty", RQ_GGUF_ARRAY), fx_int(f, RQ_GGUF_F32, 4), fx_int(f, 0, 8);
    fx_key(f, "a.bool", RQ_GGUF_ARRAY), fx_int(f, RQ_GGUF_BOOL, 4), fx_int(f, 2, 8), fx_int(f, 1, 1),
        fx_int(f, 0, 1);
    fx_tensor(f, "token_embd.weight", 2, (uint64_t[]){32, 3}, RQ_TYPE_Q4_0, 0);  /* 54 bytes */
    fx_tensor(f, "blk.0.attn_norm.weight", 1, (uint64_t[]){4}, RQ_TYPE_F32, 64); /* 16 bytes */
    fx_tensor(f, "scalar", 0, NULL, RQ_TYPE_F32, 96);                            /* 4 bytes */
    fx_tensor(f, "experts", 3, (uint64_t[]){2, 3, 4}, RQ_TYPE_F16, 128);         /* 48 bytes */
    fx_pad(f, 32);
    for (int i = 0; i < 128 + 48; i++) fx_int(f, (uint64_t)i, 1);
}

/* ---- files --------------------------------------------------------------------------------------------- */

static char folder[64];

static void remove_folder(void)
{
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (dir) closedir(dir);
    rmdir(folder);
}

const char *fx_path(const char *name)
{
    static char paths[4][320];
    static unsigned next;
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "rqvk-test-XXXXXX"); /* in the build folder, where ctest runs */
        assert_non_null(mkdtemp(folder));
        atexit(remove_folder);
    }
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

void fx_write_file(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}
