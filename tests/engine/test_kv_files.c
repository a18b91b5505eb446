/* Profiles and tables of the cache as files: what is written is read back, what does not fit or is damaged is
 * refused with a sentence, and memory that runs out leaves nothing behind. */
#include "backends/base/mem.h"
#include "engine/kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static const char *data_file(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/oracle/%s", RQVK_TEST_DATA, name);
    return path;
}

static rq_model *load(const char *name)
{
    rq_model *model = NULL;
    rq_error err = {0};
    if (rq_model_load(data_file(name), &model, &err) != RQ_OK) fail_msg("%s", err.text);
    return model;
}

static const char *scratch_path(void)
{
    static char path[128];
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%.80s/rqvk-kv-%ld", folder != NULL ? folder : "/tmp", (long)getpid());
    return path;
}

/* Numbers that differ from place to place. */
static void fill(float *x, size_t n, float base, float step)
{
    for (size_t i = 0; i < n; i++) x[i] = base + step * (float)(i % 97);
}

static rq_kv_profile *example(const rq_model *model)
{
    rq_kv_profile *p = NULL;
    assert_int_equal(rq_kv_profile_new(model, 4096, &p, NULL), RQ_OK);
    snprintf(p->note, sizeof p->note, "made up");
    const rq_kv_layer_profile *l = &p->layers[0];
    fill(rq_kv_profile_add(p, 0, RQ_KV_MEAN_K), (size_t)l->n_heads * l->dim_k, -3, 0.125f);
    fill(rq_kv_profile_add(p, 0, RQ_KV_MEAN_V), (size_t)l->n_heads * l->dim_v, 1, -0.25f);
    fill(rq_kv_profile_add(p, 1, RQ_KV_LAMBDA_K), (size_t)l->n_heads * l->dim_k, 2, 0);
    float *m = rq_kv_profile_add(p, 1, RQ_KV_SO8_V); /* a turn of the first two elements, beside identities */
    assert_non_null(m);
    m[0] = m[9] = 0.6f;
    m[1] = -0.8f;
    m[8] = 0.8f;
    return p;
}

static char *bytes_of(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *bytes = malloc(1 << 20);
    assert_non_null(bytes);
    *n = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

static void test_profile_round_trip(void **state)
{
    rq_model *model = load("qwen3.gguf");
    rq_kv_profile *p = example(model), *q = NULL;
    rq_error err = {0};
    assert_int_equal(rq_kv_profile_write(p, scratch_path(), &err), RQ_OK);
    if (rq_kv_profile_read(scratch_path(), &q, &err) != RQ_OK) fail_msg("%s", err.text);
    assert_int_equal(q->identity.model, p->identity.model);
    assert_int_equal(q->identity.rope, p->identity.rope);
    assert_int_equal(q->n_positions, 4096);
    assert_int_equal(q->n_layers, p->n_layers);
    assert_string_equal(q->note, "made up");
    const rq_kv_layer_profile *a = &p->layers[0], *b = &q->layers[0];
    assert_memory_equal(a->mean_k, b->mean_k, 4ull * a->n_heads * a->dim_k);
    assert_memory_equal(a->mean_v, b->mean_v, 4ull * a->n_heads * a->dim_v);
    assert_null(b->lambda_k);
    assert_null(b->so8_k);
    assert_memory_equal(p->layers[1].lambda_k, q->layers[1].lambda_k, 4ull * a->n_heads * a->dim_k);
    assert_memory_equal(p->layers[1].so8_v, q->layers[1].so8_v, 4ull * a->n_heads * a->dim_v * 8);

    assert_int_equal(rq_kv_profile_fits(q, model, 4096, &err), RQ_OK);
    assert_int_equal(rq_kv_profile_fits(q, model, 4097, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "4097"));
    q->layers[1].n_turned = 0; /* scales could differ inside a pair and nobody would see it */
    assert_int_equal(rq_kv_profile_fits(q, model, 64, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "rotary pairs"));
    q->layers[1].n_turned = p->layers[1].n_turned;
    q->identity.rope++;
    assert_int_equal(rq_kv_profile_fits(q, model, 64, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "rotary"));
    rq_model *other = load("llama-Q8_0.gguf");
    assert_int_equal(rq_kv_profile_fits(p, other, 64, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "another model"));
    rq_kv_profile_free(p);
    rq_kv_profile_free(q);
    rq_model_free(other);
    rq_model_free(model);
    unlink(scratch_path());
}

/* The same architecture and shapes with other weights is another model. */
static void test_identity(void **state)
{
    rq_model *a = load("llama-Q4_K_M.gguf"), *b = load("llama-Q8_0.gguf"), *again = load("llama-Q4_K_M.gguf");
    rq_kv_identity ia, ib, ic;
    rq_kv_identify(a, &ia);
    rq_kv_identify(b, &ib);
    rq_kv_identify(again, &ic);
    assert_true(ia.model != ib.model);
    assert_true(ia.rope == ib.rope);
    assert_memory_equal(&ia, &ic, sizeof ia);
    rq_model_free(a);
    rq_model_free(b);
    rq_model_free(again);
}

static void refuse_profile(rq_kv_profile *p, const char *part)
{
    rq_error err = {0};
    assert_int_equal(rq_kv_profile_check(p, &err), RQ_ERR_FORMAT);
    if (strstr(err.text, part) == NULL) fail_msg("\"%s\" does not mention \"%s\"", err.text, part);
    assert_int_equal(rq_kv_profile_write(p, scratch_path(), NULL), RQ_ERR_FORMAT);
    assert_int_not_equal(access(scratch_path(), F_OK), 0);
}

static void test_profile_values(void **state)
{
    rq_model *model = load("qwen3.gguf");
    rq_kv_profile *p = example(model);
    p->layers[0].mean_v[5] = 1e30f;
    refuse_profile(p, "layer 0: a mean");
    p->layers[0].mean_v[5] = 0;
    p->layers[1].lambda_k[3] = 0.01f;
    refuse_profile(p, "layer 1: a scale");
    p->layers[1].lambda_k[3] = 2.5f; /* its partner is half the rotary elements away in this family */
    refuse_profile(p, "pair");
    p->layers[1].lambda_k[3 + p->layers[1].n_rot / 2] = 2.5f;
    p->layers[1].so8_v[0] = 0.7f;
    refuse_profile(p, "orthogonal");
    p->layers[1].so8_v[0] = 0.6f;
    assert_int_equal(rq_kv_profile_check(p, NULL), RQ_OK);
    assert_null(rq_kv_profile_add(p, p->n_layers, RQ_KV_MEAN_K));
    rq_kv_profile_free(p);
    rq_model_free(model);
}

static void test_profile_damage(void **state)
{
    rq_model *model = load("qwen3.gguf");
    rq_kv_profile *p = example(model), *q = NULL;
    assert_int_equal(rq_kv_profile_write(p, scratch_path(), NULL), RQ_OK);
    size_t n;
    char *bytes = bytes_of(scratch_path(), &n);
    rq_error err = {0};
    assert_int_equal(rq_kv_profile_parse(bytes, n, "x", &q, &err), RQ_OK);
    rq_kv_profile_free(q);
    for (size_t cut = 0; cut < n; cut += cut < 200 ? 1 : 97)
        assert_int_not_equal(rq_kv_profile_parse(bytes, cut, "x", &q, &err), RQ_OK);
    for (size_t at = 0; at < n; at += at < 200 ? 1 : 97) {
        bytes[at] ^= 0x20;
        assert_int_not_equal(rq_kv_profile_parse(bytes, n, "x", &q, &err), RQ_OK);
        bytes[at] ^= 0x20;
    }
    bytes[8] = 3;
    assert_int_equal(rq_kv_profile_parse(bytes, n, "x", &q, &err), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "version 3"));
    assert_int_equal(rq_kv_profile_read("/nonexistent.kvprofile", &q, &err), RQ_ERR_IO);
    free(bytes);
    rq_kv_profile_free(p);
    rq_model_free(model);
    unlink(scratch_path());
}

/* The file as builds before version 2 wrote it: one n_rot in the head, none in the layers. */
static size_t as_version_1(const char *bytes, size_t n, const rq_kv_profile *p, char *out)
{
    enum { HEAD = 48, LAYER = 24 };
    uint32_t note, at = 0;
    memcpy(&note, bytes + HEAD - 4, sizeof note);
    memcpy(out, bytes, HEAD + note);
    out[8] = 1;
    memcpy(out + HEAD - 12, &p->layers[0].n_rot, 4);
    size_t from = HEAD + note, to = from;
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const rq_kv_layer_profile *l = &p->layers[i];
        size_t k = (size_t)l->n_heads * l->dim_k, v = (size_t)l->n_heads * l->dim_v;
        size_t floats =
            (l->mean_k ? k : 0) + (l->lambda_k ? k : 0) + (l->mean_v ? v : 0) + (l->so8_v ? 8 * v : 0);
        memcpy(out + to, bytes + from, 12);
        memcpy(out + to + 12, bytes + from + 20, 4 + 4 * floats);
        from += LAYER + 4 * floats;
        to += LAYER - 8 + 4 * floats;
    }
    at = (uint32_t)to;
    assert_int_equal(from + 8, n);
    uint64_t sum = XXH3_64bits(out, at);
    memcpy(out + at, &sum, sizeof sum);
    return at + sizeof sum;
}

static void test_profile_of_version_1(void **state)
{
    rq_model *model = load("qwen3.gguf");
    rq_kv_profile *p = example(model), *q = NULL;
    assert_int_equal(rq_kv_profile_write(p, scratch_path(), NULL), RQ_OK);
    size_t n;
    char *bytes = bytes_of(scratch_path(), &n), *old = malloc(n);
    assert_non_null(old);
    n = as_version_1(bytes, n, p, old);
    rq_error err = {0};
    if (rq_kv_profile_parse(old, n, "x", &q, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_kv_profile_fits(q, model, 64, &err) != RQ_OK) fail_msg("%s", err.text);
    const rq_kv_layer_profile *a = &p->layers[1], *b = &q->layers[1];
    assert_true(b->n_rot == a->n_rot && b->n_turned == a->n_turned);
    assert_memory_equal(a->lambda_k, b->lambda_k, 4ull * a->n_heads * a->dim_k);
    assert_memory_equal(a->so8_v, b->so8_v, 4ull * a->n_heads * a->dim_v * 8);
    rq_kv_profile_free(q);
    rq_kv_profile_free(p);
    free(bytes);
    free(old);
    rq_model_free(model);
    unlink(scratch_path());
}

/* Shapes that no model has, and parts larger than the file: refused before anything is allocated for them. */
static void test_profile_shapes(void **state)
{
    static const uint32_t bad[][6] = {
        {4097, 64, 64, 64, 32, 0},        /* heads */
        {1, 1032, 64, 64, 32, 0},         /* larger than any head */
        {1, 64, 64, 63, 31, 0},           /* half a pair */
        {1, 64, 64, 72, 32, 0},           /* more pairs than elements */
        {1, 64, 64, 32, 17, 0},           /* more turned than there are */
        {0, 0, 0, 2, 0, 0},               /* pairs of nothing */
        {1, 64, 64, 64, 32, 1u << 7},     /* no such part */
        {0, 0, 0, 0, 0, 1},               /* a mean of a layer that keeps nothing */
        {1, 1024, 64, 64, 32, 1u << 5},   /* a basis of heads that no code takes */
        {1, 12, 12, 0, 0, 1u << 3},       /* eights of twelve */
        {4096, 512, 512, 64, 32, 1u << 5} /* 4 GiB in a file of 100 bytes */
    };
    char bytes[128] = "RQKVPROF";
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const uint32_t head[] = {2, 1}, rest[] = {64, 0, 1, 0};
        memcpy(bytes + 8, head, sizeof head);
        memset(bytes + 16, 0, 16);
        memcpy(bytes + 32, rest, sizeof rest);
        memcpy(bytes + 48, bad[i], sizeof bad[i]);
        uint64_t sum = XXH3_64bits(bytes, 72);
        memcpy(bytes + 72, &sum, sizeof sum);
        rq_kv_profile *p = NULL;
        rq_error err = {0};
        if (rq_kv_profile_parse(bytes, 80, "x", &p, &err) != RQ_ERR_FORMAT)
            fail_msg("shape %zu was taken", i);
        assert_null(p);
        assert_non_null(strstr(err.text, "cache profile"));
    }
}

static void test_profile_memory(void **state)
{
    rq_model *model = load("qwen3.gguf");
    rq_kv_profile *p = example(model), *q = NULL;
    assert_int_equal(rq_kv_profile_write(p, scratch_path(), NULL), RQ_OK);
    rq_mem_fail_at(0);
    int64_t alive = rq_mem_alive();
    rq_error err = {0};
    for (uint64_t i = 1;; i++) {
        rq_mem_fail_at(i);
        rq_status status = rq_kv_profile_read(scratch_path(), &q, &err);
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            assert_true(i > 4);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_int_equal(rq_mem_alive(), alive);
    }
    rq_kv_profile_free(q);
    for (uint64_t i = 1;; i++) {
        rq_mem_fail_at(i);
        rq_status status = rq_kv_profile_write(p, scratch_path(), &err);
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        if (status == RQ_OK) break;
        assert_int_equal(status, RQ_ERR_MEMORY);
    }
    rq_kv_profile_free(p);
    rq_model_free(model);
    unlink(scratch_path());
}

/* ---- tables -------------------------------------------------------------------------------------------- */

static rq_status parse(const char *text, rq_kv_table *out, rq_error *err)
{
    return rq_kv_table_parse(text, strlen(text), "a table", out, err);
}

#define HEAD "rqvk-kvtable 1\nmodel 00000000000000ff\nbound 0.02\n"

static void test_table_choice(void **state)
{
    rq_kv_table t = {0};
    rq_error err = {0};
    rq_status status = parse(HEAD "note attention error, 3 texts\n# a remark\n\n"
                                  "pair wht3 wht3 3.125 0.03\npair wht4 wht3 3.625 0.019\n"
                                  "pair planar4 wht3 3.625 0.018\npair wht4 wht4 4.125 0.01\r\n"
                                  "pair q8_0 f16 12.25 0.0001",
                             &t, &err);
    if (status != RQ_OK) fail_msg("%s", err.text);
    assert_int_equal(t.model, 255);
    assert_int_equal(t.n, 5);
    assert_string_equal(t.note, "attention error, 3 texts");
    const rq_kv_table_row *r = rq_kv_table_choose(&t, "auto", "auto");
    assert_string_equal(r->type_k, "planar4"); /* as few bits as wht4/wht3 and a smaller error */
    assert_string_equal(rq_kv_table_choose(&t, "auto", "WHT4")->type_k, "wht4");
    assert_string_equal(rq_kv_table_choose(&t, "auto", NULL)->type_k, "q8_0");
    assert_null(rq_kv_table_choose(&t, "wht3", "auto")); /* beyond the bound */
    assert_int_equal(rq_kv_table_write(&t, scratch_path(), &err), RQ_OK);
    rq_kv_table u = {0};
    assert_int_equal(rq_kv_table_read(scratch_path(), &u, &err), RQ_OK);
    assert_int_equal(u.n, 5);
    assert_int_equal(u.model, 255);
    assert_string_equal(u.rows[4].type_k, "q8_0");
    assert_true(u.rows[1].error == 0.019 && u.bound == 0.02);
    rq_kv_table_free(&u);
    rq_kv_table_free(&t);
    unlink(scratch_path());
}

static void test_table_refusals(void **state)
{
    static const char *const bad[] = {
        "",
        "rqvk-kvtable 2\n",
        HEAD "pair wht3 wht3 3.1\n",
        HEAD "pair wht3 wht3 3.1 0.1 more\n",
        HEAD "pair wht3 ../x 3.1 0.1\n",
        HEAD "pair wht3 wht3 nan 0.1\n",
        HEAD "pair wht3 wht3 3.1 -1\n",
        HEAD "pair averyveryverylongname wht3 3.1 1\n",
        "rqvk-kvtable 1\nmodel 12\n",
        HEAD "bound inf\n",
        HEAD "something else\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        rq_kv_table t = {0};
        rq_error err = {0};
        if (parse(bad[i], &t, &err) != RQ_ERR_FORMAT) fail_msg("table %zu was taken", i);
        assert_non_null(strstr(err.text, "line"));
        assert_null(t.rows);
    }
    char large[2000] = HEAD "note ";
    memset(large + strlen(large), 'x', 1000);
    rq_kv_table t = {0};
    assert_int_equal(parse(large, &t, NULL), RQ_ERR_FORMAT);
    assert_int_equal(rq_kv_table_parse(HEAD "\0", sizeof HEAD, "x", &t, NULL), RQ_ERR_FORMAT);
    rq_mem_fail_at(1);
    assert_int_equal(parse(HEAD "pair f16 f16 16 0\n", &t, NULL), RQ_ERR_MEMORY);
    rq_mem_fail_at(0);
}

static void test_paths(void **state)
{
    rq_model *model = load("qwen3.gguf");
    char *a = rq_kv_profile_path(model), *b = rq_kv_table_path(model);
    assert_non_null(strstr(a, "qwen3.gguf.kvprofile"));
    assert_non_null(strstr(b, "qwen3.gguf.kvtable"));
    rq_string_free(a);
    rq_string_free(b);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_profile_round_trip), cmocka_unit_test(test_identity),
        cmocka_unit_test(test_profile_values),     cmocka_unit_test(test_profile_damage),
        cmocka_unit_test(test_profile_memory),     cmocka_unit_test(test_profile_of_version_1),
        cmocka_unit_test(test_profile_shapes),     cmocka_unit_test(test_table_choice),
        cmocka_unit_test(test_table_refusals),     cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
