/* The reader against the format's own library: data/gguf/census.tsv lists what gguf-py found in files that
 * other programs wrote (the oracle models by llama.cpp, the fuzzing seeds by gguf-py). */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/gguf/gguf.h"

/* CRC-32 of ISO 3309, bit by bit (the one of zlib). */
static uint32_t crc32(uint32_t crc, const void *data, uint64_t n)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (uint64_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

typedef struct census {
    rq_gguf *g;
    char file[64];
    uint64_t n_kv, n_tensors; /* seen so far in this file */
} census;

static void finish_file(census *c)
{
    if (!c->g) return;
    assert_int_equal(c->n_kv, rq_gguf_n_kv(c->g));
    assert_int_equal(c->n_tensors, rq_gguf_n_tensors(c->g));
    rq_gguf_close(c->g);
    *c = (census){0};
}

static void begin_file(census *c, const char *file)
{
    if (c->g && !strcmp(c->file, file)) return;
    finish_file(c);
    char path[400];
    rq_error err = {0};
    snprintf(path, sizeof path, "%s/oracle/%s", RQVK_TEST_DATA, file);
    if (rq_gguf_open(path, &c->g, &err)) {
        snprintf(path, sizeof path, "%s/../fuzz/seeds/fuzz_gguf/%s", RQVK_TEST_DATA, file);
        if (rq_gguf_open(path, &c->g, &err)) fail_msg("%s", err.text);
    }
    snprintf(c->file, sizeof c->file, "%s", file);
}

static void check_pair(census *c, char **f)
{
    const rq_gguf_kv *kv = rq_gguf_find(c->g, f[2]);
    assert_non_null(kv);
    assert_string_equal(rq_gguf_type_name(kv->type), f[3]);
    assert_int_equal(kv->is_array, strtoull(f[4], NULL, 10));
    assert_int_equal(kv->count, strtoull(f[5], NULL, 10));
    uint32_t crc = 0;
    for (uint64_t i = 0; i < kv->count; i++) {
        rq_gguf_str s;
        double real = 0;
        if (rq_gguf_elem_str(kv, i, &s)) {
            crc = crc32(crc, s.data, s.len);
        } else {
            assert_true(rq_gguf_elem_f64(kv, i, &real));
            crc = crc32(crc, &real, sizeof real);
        }
    }
    assert_int_equal(crc, strtoul(f[6], NULL, 10));
    c->n_kv++;
}

static void check_tensor(census *c, char **f)
{
    const rq_gguf_tensor *t = rq_gguf_find_tensor(c->g, f[2]);
    /* The first key's text begins behind the header and its own length. */
    const uint8_t *file = (const uint8_t *)rq_gguf_kv_at(c->g, 0)->key.data - 32;
    char dims[100] = "";
    assert_non_null(t);
    assert_string_equal(rq_type_get(t->type)->name, f[3]);
    assert_int_equal(t->data - file, strtoll(f[4], NULL, 10));
    assert_int_equal(t->nbytes, strtoull(f[5], NULL, 10));
    for (int d = 0; d < t->n_dims; d++)
        snprintf(dims + strlen(dims), sizeof dims - strlen(dims), d ? "x%" PRIu64 : "%" PRIu64, t->ne[d]);
    assert_string_equal(dims, f[6]);
    assert_int_equal(crc32(0, t->data, t->nbytes), strtoul(f[7], NULL, 10));
    c->n_tensors++;
}

static void gguf_py_finds_the_same(void **state)
{
    FILE *file = fopen(RQVK_TEST_DATA "/gguf/census.tsv", "r");
    assert_non_null(file);
    char line[1024];
    census c = {0};
    int lines = 0;
    while (fgets(line, sizeof line, file)) {
        char *f[8] = {0}, *rest = line;
        if (line[0] == '#') continue;
        line[strcspn(line, "\n")] = 0;
        for (int i = 0; i < 8 && rest; i++) f[i] = strsep(&rest, "\t");
        begin_file(&c, f[1]);
        if (line[0] == 'K')
            check_pair(&c, f);
        else
            check_tensor(&c, f);
        lines++;
    }
    finish_file(&c);
    fclose(file);
    assert_true(lines > 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gguf_py_finds_the_same)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
