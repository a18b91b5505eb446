/* Captures on disk, replay and calibration: what is written comes back, hostile files are refused with a sentence,
 * and what is learned is what the formulas say. */
#include "backends/base/mem.h"
#include "backends/formats/kv_format.h"
#include "tools/kv/calibration.h"
#include "tools/kv/flatten.h"
#include "tools/kv/klt.h"
#include "tools/kv/random.h"
#include "tools/kv/replay_run.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 96, HEADS = 4, KV_HEADS = 2, DIM = 64, LAYER = 3 };

/* A folder of its own for each test, removed at the end. */
static int make_folder(void **state)
{
    char *folder = strdup("rqvk-kv-test-XXXXXX");
    *state = folder;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {"manifest.json", "layer-003.safetensors"};
    char path[256];
    for (int i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", (char *)*state, names[i]);
        unlink(path);
    }
    rmdir(*state);
    free(*state);
    return 0;
}

static float rows[3][N * HEADS * DIM]; /* q, k, v */

static kv_manifest small_manifest(kv_capture_layer *layer)
{
    *layer = (kv_capture_layer){LAYER, HEADS, KV_HEADS, DIM, DIM, 0, 0.125, 0};
    return (kv_manifest){.model = "model \"x\".gguf",
                         .architecture = "qwen3",
                         .text = "text",
                         .created = "now",
                         .commit = "none",
                         .model_hash = 0x0123456789abcdef,
                         .rope_hash = 0xfedcba9876543210,
                         .n_tokens = N,
                         .n_rot = DIM,
                         .rot_halves = true,
                         .n_layers = 1,
                         .layers = layer};
}

/* A capture with one layer, made through the writing functions, rows in two pieces and not in order. */
static void write_capture(const char *folder, const kv_manifest *m)
{
    rq_error err = {0};
    kv_random r = kv_random_start(9);
    kv_tensor t[3] = {{"q", KV_F32, 3, {N, HEADS, DIM, 1}, 0, 0},
                      {"k", KV_F32, 3, {N, KV_HEADS, DIM, 1}, 0, 0},
                      {"v", KV_F32, 3, {N, KV_HEADS, DIM, 1}, 0, 0}};
    char *path = kv_capture_path(folder, LAYER);
    int fd;
    assert_int_equal(kv_tensors_create(path, t, 3, &fd, &err), RQ_OK);
    for (int i = 0; i < 3; i++) {
        uint64_t n = t[i].n, half = n / 2;
        for (uint64_t j = 0; j < n; j++) rows[i][j] = (float)kv_random_normal(&r);
        assert_int_equal(kv_tensor_write(fd, path, &t[i], half, rows[i] + half, n - half, &err), RQ_OK);
        assert_int_equal(kv_tensor_write(fd, path, &t[i], 0, rows[i], half, &err), RQ_OK);
        assert_int_equal(kv_tensor_write(fd, path, &t[i], n, rows[i], 1, &err), RQ_ERR_INTERNAL);
    }
    close(fd);
    rq_free(path);
    assert_int_equal(kv_manifest_write(m, folder, &err), RQ_OK);
}

static void test_round_trip(void **state)
{
    kv_capture_layer layer;
    kv_manifest m = small_manifest(&layer), back;
    kv_tensors t;
    rq_error err = {0};
    static float got[N * DIM];
    write_capture(*state, &m);
    if (kv_manifest_read(*state, &back, &err)) fail_msg("%s", err.text);
    assert_string_equal(back.model, m.model);
    assert_true(back.model_hash == m.model_hash && back.rope_hash == m.rope_hash);
    assert_true(back.n_tokens == N && back.n_rot == DIM && back.rot_halves && back.n_layers == 1);
    assert_memory_equal(back.layers, &layer, sizeof layer);
    if (kv_capture_open(*state, &back, back.layers, &t, &err)) fail_msg("%s", err.text);
    for (uint32_t h = 0; h < KV_HEADS; h++) {
        kv_capture_head(&t, "v", h, 5, N - 5, got);
        for (uint32_t i = 0; i < N - 5; i++)
            assert_memory_equal(got + (size_t)i * DIM, rows[2] + ((size_t)(i + 5) * KV_HEADS + h) * DIM,
                                DIM * sizeof(float));
    }
    kv_tensors_close(&t);
    back.layers[0].dim_v = 32; /* the file is another one than the manifest says */
    assert_int_equal(kv_capture_open(*state, &back, back.layers, &t, &err), RQ_ERR_FORMAT);
    back.layers[0].layer = 4;
    assert_int_equal(kv_capture_open(*state, &back, back.layers, &t, &err), RQ_ERR_IO);
    kv_manifest_free(&back);
}

/* A file from pieces of text: header length, header, n bytes of zeros. */
static size_t build(uint8_t *out, const char *header, size_t zeros)
{
    uint64_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)(n >> 8 * i);
    memcpy(out + 8, header, n);
    memset(out + 8 + n, 0, zeros);
    return 8 + n + zeros;
}

static void test_bad_tensors(void **state)
{
    static const struct {
        const char *header;
        rq_status want;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]}}", RQ_OK},
        {"{\"__metadata__\":{\"x\":\"y\"},\"a\":{\"dtype\":\"F16\",\"shape\":[16],\"data_offsets\":[0,32]}}",
         RQ_OK},
        {"{}", RQ_OK},
        {"[1]", RQ_ERR_FORMAT},
        {"{", RQ_ERR_FORMAT},
        {"{\"a\":3}", RQ_ERR_UNSUPPORTED},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[4],\"data_offsets\":[0,32]}}", RQ_ERR_UNSUPPORTED},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9],\"data_offsets\":[0,32]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9],\"data_offsets\":[0,36]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[32,24]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,10]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
         RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", RQ_ERR_FORMAT},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         RQ_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", RQ_ERR_FORMAT},
    };
    uint8_t bytes[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_tensors t;
        rq_error err = {0};
        size_t n = build(bytes, cases[i].header, 32);
        rq_status s = kv_tensors_parse(bytes, n, "file", &t, &err);
        if (s != cases[i].want) fail_msg("%s: %s (%s)", cases[i].header, rq_status_name(s), err.text);
        assert_true(s == RQ_OK || (err.text[0] && t.n == 0));
    }
    kv_tensors t;
    rq_error err;
    memset(bytes, 0xff, sizeof bytes);
    for (size_t n = 0; n < 20; n++)
        assert_int_equal(kv_tensors_parse(bytes, n, "file", &t, &err), RQ_ERR_FORMAT);
}

/* Any byte, or one that means something in JSON. */
static uint8_t damage(kv_random *r)
{
    static const uint8_t marks[] = "0123456789,[]{}\"-e.F";
    uint64_t x = kv_random_u64(r);
    return x & 1 ? (uint8_t)(x >> 8) : marks[(x >> 8) % (sizeof marks - 1)];
}

/* Thousands of damaged copies: none may read outside its bytes (checked by the address sanitizer), and what is
 * accepted must lie inside. */
static void test_damaged_tensors(void **state)
{
    static const char header[] = "{\"q\":{\"dtype\":\"F32\",\"shape\":[4,2,8],\"data_offsets\":[0,256]},"
                                 "\"k\":{\"dtype\":\"F16\",\"shape\":[4,1,8],\"data_offsets\":[256,320]}}";
    uint8_t whole[512];
    size_t n = build(whole, header, 320);
    kv_random r = kv_random_start(1);
    int accepted = 0;
    for (int round = 0; round < 20000; round++) {
        size_t bytes = round % 3 ? n : kv_random_u64(&r) % (n + 1);
        uint8_t *copy = malloc(bytes + 1);
        assert_non_null(copy);
        memcpy(copy, whole, bytes);
        for (uint64_t i = 0, edits = kv_random_u64(&r) % 4; i < edits && bytes; i++)
            copy[kv_random_u64(&r) % (bytes < 160 ? bytes : 160)] = damage(&r);
        kv_tensors t;
        rq_error err = {0};
        if (kv_tensors_parse(copy, bytes, "file", &t, &err) == RQ_OK) {
            for (uint32_t i = 0; i < t.n; i++) {
                float room[64];
                uint64_t some = t.items[i].n < 64 ? t.items[i].n : 64;
                kv_tensor_floats(&t, &t.items[i], t.items[i].n - some, some, room);
            }
            accepted++;
        } else {
            assert_true(err.text[0]);
        }
        free(copy);
    }
    assert_true(accepted > 100);
}

static char *manifest_text(const char *folder, size_t *bytes)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/manifest.json", folder);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    char *text = calloc(1, 4096);
    *bytes = fread(text, 1, 4095, in);
    fclose(in);
    return text;
}

static void test_damaged_manifest(void **state)
{
    kv_capture_layer layer;
    kv_manifest m = small_manifest(&layer), back;
    rq_error err = {0};
    assert_int_equal(kv_manifest_write(&m, *state, &err), RQ_OK);
    size_t n;
    char *text = manifest_text(*state, &n);
    kv_random r = kv_random_start(2);
    for (int round = 0; round < 20000; round++) {
        char *copy = malloc(n + 1);
        assert_non_null(copy);
        memcpy(copy, text, n);
        for (int i = 0; i < 1 + round % 3; i++) copy[kv_random_u64(&r) % n] = (char)damage(&r);
        size_t bytes = round % 5 ? n : kv_random_u64(&r) % n;
        if (kv_manifest_parse(copy, bytes, "file", &back, &err) == RQ_OK) {
            assert_true(back.n_layers >= 1 && back.layers[0].n_heads % back.layers[0].n_heads_kv == 0);
            kv_manifest_free(&back);
        }
        free(copy);
    }
    static const char *const changes[][2] = {{"rqvk-kv-capture", "something-other"},
                                             {"\"version\": 1", "\"version\": 2"},
                                             {"\"tokens\": 96", "\"tokens\": 0 "},
                                             {"\"n_heads_kv\": 2", "\"n_heads_kv\": 3"},
                                             {"0123456789abcdef", "0123456789ABCDEF"}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char *copy = strdup(text), *at = strstr(copy, changes[i][0]);
        assert_non_null(at);
        memcpy(at, changes[i][1], strlen(changes[i][1]));
        assert_int_not_equal(kv_manifest_parse(copy, n, "file", &back, &err), RQ_OK);
        free(copy);
    }
    free(text);
}

/* ---- replay --------------------------------------------------------------------------------------------- */

typedef struct gathered {
    kv_replay_row rows[16];
    size_t n;
} gathered;

static rq_status gather(void *user, const kv_replay_row *row, rq_error *err)
{
    gathered *g = user;
    assert_true(g->n < 16);
    g->rows[g->n++] = *row;
    return RQ_OK;
}

static rq_kv_profile *profile_of(const kv_manifest *m, rq_kv_layer_profile *layers)
{
    static rq_kv_profile p;
    memset(layers, 0, sizeof *layers * (LAYER + 1));
    for (uint32_t i = 0; i <= LAYER; i++)
        layers[i] = (rq_kv_layer_profile){
            .n_heads = KV_HEADS, .dim_k = DIM, .dim_v = DIM, .n_rot = DIM, .n_turned = DIM / 2};
    p = (rq_kv_profile){.identity = {m->model_hash, m->rope_hash},
                        .n_positions = N,
                        .rot_halves = true,
                        .n_layers = LAYER + 1,
                        .layers = layers};
    return &p;
}

/* Queries see the past only: changing keys behind the last query's position changes nothing, the number of rows is
 * right, and exact f32 loses nothing. */
static void test_replay(void **state)
{
    kv_capture_layer layer;
    kv_manifest m = small_manifest(&layer);
    kv_format_list list = {0};
    gathered g = {.n = 0};
    rq_error err = {0};
    write_capture(*state, &m);
    assert_int_equal(kv_format_list_add(&list, "f32,wht3,ref-turbo3", &err), RQ_OK);
    kv_replay r = {
        .folder = *state, .manifest = &m, .formats = &list, .n_positions = 7, .gain_k = 1, .gain_v = 1};
    if (kv_replay_run(&r, gather, &g, &err)) fail_msg("%s", err.text);
    assert_int_equal(g.n, 3 * KV_HEADS);
    for (size_t i = 0; i < g.n; i++) {
        const kv_replay_row *row = &g.rows[i];
        assert_true(row->layer == LAYER && row->head == i / 3);
        assert_string_equal(row->format, list.names[i % 3]);
        if (i % 3 == 0)
            assert_true(row->quality.out == 0 && row->quality.kl == 0 && row->quality.k_nmse == 0);
        if (i % 3 == 1)
            assert_true(row->quality.k_nmse > 0.015 && row->quality.k_nmse < 0.035 && row->bits_k == 3.125);
        if (i % 3 == 2) assert_true(row->bits_k == 3.25); /* one f16 for a head of 64 */
    }
    /* Decoded values twice as large: the output is, too; other systems' formats have no gain. */
    gathered loud = {.n = 0};
    r.gain_v = 2;
    assert_int_equal(kv_replay_run(&r, gather, &loud, &err), RQ_OK);
    for (size_t i = 0; i < g.n; i++) {
        if (i % 3 == 1)
            assert_true(fabs(loud.rows[i].quality.best_gain_v / g.rows[i].quality.best_gain_v - 0.5) < 1e-6);
        else
            assert_true(loud.rows[i].quality.best_gain_v == g.rows[i].quality.best_gain_v);
        assert_true(loud.rows[i].quality.kl == g.rows[i].quality.kl);
    }
}

/* A mean that is there in every key costs nothing once the profile knows it; a profile of something else is refused. */
static void test_replay_profile(void **state)
{
    kv_capture_layer layer;
    kv_manifest m = small_manifest(&layer);
    kv_format_list list = {0};
    gathered plain = {.n = 0}, with = {.n = 0};
    rq_error err = {0};
    static float mean[KV_HEADS * DIM], lambda[KV_HEADS * DIM];
    static rq_kv_layer_profile layers[LAYER + 1];
    write_capture(*state, &m);
    kv_random r = kv_random_start(3);
    for (int i = 0; i < KV_HEADS * DIM; i++) {
        mean[i] = (float)(20 * kv_random_normal(&r));
        lambda[i] = 1;
    }
    char *path = kv_capture_path(*state, LAYER);
    kv_tensor t[3] = {{"q", KV_F32, 3, {N, HEADS, DIM, 1}, 0, 0},
                      {"k", KV_F32, 3, {N, KV_HEADS, DIM, 1}, 0, 0},
                      {"v", KV_F32, 3, {N, KV_HEADS, DIM, 1}, 0, 0}};
    for (size_t i = 0; i < (size_t)N * KV_HEADS * DIM; i++) rows[1][i] += mean[i % (KV_HEADS * DIM)];
    int fd;
    assert_int_equal(kv_tensors_create(path, t, 3, &fd, &err), RQ_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(kv_tensor_write(fd, path, &t[i], 0, rows[i], t[i].n, &err), RQ_OK);
    close(fd);
    rq_free(path);
    assert_int_equal(kv_format_list_add(&list, "wht3,ref-turbo3", &err), RQ_OK);
    kv_replay replay = {
        .folder = *state, .manifest = &m, .formats = &list, .n_positions = 8, .gain_k = 1, .gain_v = 1};
    assert_int_equal(kv_replay_run(&replay, gather, &plain, &err), RQ_OK);
    rq_kv_profile *p = profile_of(&m, layers);
    layers[LAYER].mean_k = mean;
    layers[LAYER].lambda_k = lambda;
    replay.profile = p;
    if (kv_replay_run(&replay, gather, &with, &err)) fail_msg("%s", err.text);
    /* Energy 401 against 1: the error of keys falls by about that, those of other systems do not change. */
    assert_true(with.rows[0].quality.k_nmse < plain.rows[0].quality.k_nmse / 100);
    assert_true(with.rows[0].quality.kl < plain.rows[0].quality.kl / 10);
    assert_true(with.rows[1].quality.k_nmse == plain.rows[1].quality.k_nmse);
    p->identity.model++;
    assert_int_equal(kv_replay_run(&replay, gather, &with, &err), RQ_ERR_ARGUMENT);
    p->identity.model--;
    layers[LAYER].n_heads = 1;
    assert_int_equal(kv_replay_run(&replay, gather, &with, &err), RQ_ERR_ARGUMENT);
}

static void test_replay_memory(void **state)
{
    kv_capture_layer layer;
    kv_manifest m = small_manifest(&layer);
    kv_format_list list = {0};
    rq_error err = {0};
    write_capture(*state, &m);
    assert_int_equal(kv_format_list_add(&list, "so83,ref-iso3", &err), RQ_OK);
    kv_replay r = {
        .folder = *state, .manifest = &m, .formats = &list, .n_positions = 3, .gain_k = 1, .gain_v = 1};
    int64_t alive = rq_mem_alive();
    for (uint64_t at = 1;; at++) {
        gathered g = {.n = 0};
        assert_true(at < 1000);
        rq_mem_fail_at(at);
        rq_status s = kv_replay_run(&r, gather, &g, &err);
        bool reached = rq_mem_count() >= at;
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        assert_int_equal(s, reached ? RQ_ERR_MEMORY : RQ_OK);
        if (!reached) break;
    }
}

/* ---- calibration ---------------------------------------------------------------------------------------- */

/* Keys with known means and variances, queries with known energies: the profile is what the formula gives. */
static void test_calibration(void **state)
{
    enum { TOKENS = 4096, D = 16, PIECE = 64 };
    const kv_calibration_layer shape = {2, D, D};
    kv_calibration *c = NULL;
    rq_error err = {0};
    rq_kv_layer_profile layer = {.n_heads = 2, .dim_k = D, .dim_v = D, .n_rot = D, .n_turned = D / 2};
    rq_kv_profile *profile = NULL;
    static float q[PIECE * 4 * D], k[PIECE * 2 * D], v[PIECE * 2 * D];
    double spread[2 * D], look[4 * D], mean[2 * D];
    kv_random r = kv_random_start(6);
    for (int i = 0; i < 2 * D; i++) spread[i] = exp(kv_random_normal(&r));
    for (int i = 0; i < 2 * D; i++) mean[i] = 3 * kv_random_normal(&r);
    for (int i = 0; i < 4 * D; i++) look[i] = exp(kv_random_normal(&r));
    assert_int_equal(kv_calibration_make(&shape, 1, TOKENS, TOKENS, true, true, &c, &err), RQ_OK);
    for (uint32_t at = 0; at < TOKENS; at += PIECE) {
        for (int i = 0; i < PIECE * 2 * D; i++)
            k[i] = (float)(mean[i % (2 * D)] + spread[i % (2 * D)] * kv_random_normal(&r));
        for (int i = 0; i < PIECE * 2 * D; i++) v[i] = (float)(i % (2 * D) + kv_random_normal(&r));
        for (int i = 0; i < PIECE * 4 * D; i++) q[i] = (float)(look[i % (4 * D)] * kv_random_normal(&r));
        if (at == 640) k[7] = NAN; /* that row does not count */
        const rq_kv_captured pieces[3] = {{0, 0, RQ_KV_Q, 0, at, PIECE, 4, D, q},
                                          {0, 0, RQ_KV_K, 0, at, PIECE, 2, D, k},
                                          {0, 0, RQ_KV_V, 0, at, PIECE, 2, D, v}};
        for (int i = 0; i < 3; i++) assert_int_equal(kv_calibration_add(c, &pieces[i], &err), RQ_OK);
    }
    rq_kv_profile made = {.rot_halves = true, .n_layers = 1, .layers = &layer};
    profile = &made;
    if (kv_calibration_finish(c, profile, &err)) fail_msg("%s", err.text);
    for (int h = 0; h < 2; h++) {
        double want[D], sum = 0;
        for (int i = 0; i < D; i++) {
            int pair[2] = {i, (i + D / 2) % D};
            double e_k = 0, e_q = 0;
            for (int e = 0; e < 2; e++) {
                e_k += pow(spread[h * D + pair[e]], 2);
                for (int g = 0; g < 2; g++) e_q += pow(look[(2 * h + g) * D + pair[e]], 2) / 2;
            }
            sum += want[i] = 0.25 * log(e_q / e_k);
        }
        for (int i = 0; i < D; i++) {
            double expected = fmin(fmax(exp(want[i] - sum / D), 1.0 / 16), 16);
            /* Energies from 4,096 samples: 2 % of standard error, a quarter of it in lambda. */
            assert_true(fabs(layer.lambda_k[h * D + i] / expected - 1) < 0.03);
            assert_true(layer.lambda_k[h * D + i] == layer.lambda_k[h * D + (i + D / 2) % D]);
            assert_true(fabs(layer.mean_k[h * D + i] - mean[h * D + i]) <
                        5 * spread[h * D + i] / sqrt(TOKENS));
            assert_true(fabs(layer.mean_v[h * D + i] - (h * D + i)) < 0.1);
        }
    }
    assert_int_equal(rq_kv_profile_check(profile, &err), RQ_OK);
    kv_table report;
    kv_calibration_report(c, profile, &report);
    assert_int_equal(report.n_cells, 2 * KV_BUCKETS * report.n_columns);
    for (int h = 0; h < 2; h++)
        for (int b = 0; b < KV_BUCKETS; b++) {
            double energy = 0;
            for (int i = 0; i < D; i++) energy += spread[h * D + i] * spread[h * D + i];
            assert_true(
                fabs(report.cells[(size_t)(h * KV_BUCKETS + b) * report.n_columns + 5].number / energy - 1) <
                0.25);
        }
    kv_table_free(&report);
    kv_calibration_free(c);
    rq_free(layer.mean_k);
    rq_free(layer.lambda_k);
    rq_free(layer.mean_v);
    for (int h = 0; h < 2; h++) /* a key and a query meet as before: dual^T forward = 1 */
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) {
                float forward[D * D], dual[D * D];
                rq_kv_format klt;
                double dot = 0;
                assert_int_equal(rq_kv_format_parse("klt3", &klt, &err), RQ_OK);
                assert_int_equal(
                    rq_kv_format_basis(&klt, D, 1, layer.klt_k + (size_t)h * D * D, forward, dual, &err),
                    RQ_OK);
                for (int r2 = 0; r2 < D; r2++) dot += (double)forward[r2 * D + i] * (double)dual[r2 * D + j];
                assert_true(fabs(dot - (i == j)) < 1e-5);
            }
    rq_free(layer.so8_k);
    rq_free(layer.so8_v);
    rq_free(layer.klt_k);
    rq_free(layer.klt_v);
}

/* Two layers with keys of their own, of other shapes, and between them a recurrent one; the fourth attends to the first
 * one's keys, with queries that look elsewhere. 8 of 16 elements of the first layer are in rotary pairs, and 3 of the 4
 * pairs turn; the third layer has none. */
static void test_calibration_of_few_layers(void **state)
{
    enum { TOKENS = 2048, D = 16, E = 32, PIECE = 64 };
    const kv_calibration_layer shapes[4] = {{1, D, D}, {0, 0, 0}, {2, E, D}, {0, 0, 0}};
    rq_kv_layer_profile layers[4] = {{.n_heads = 1, .dim_k = D, .dim_v = D, .n_rot = 8, .n_turned = 3},
                                     {0},
                                     {.n_heads = 2, .dim_k = E, .dim_v = D}};
    static float q[PIECE * 4 * E], k[PIECE * 2 * E], v[PIECE * 2 * D];
    kv_calibration *c = NULL;
    rq_error err = {0};
    kv_random r = kv_random_start(16);
    assert_int_equal(kv_calibration_make(shapes, 4, TOKENS, TOKENS, true, true, &c, &err), RQ_OK);
    for (uint32_t at = 0; at < TOKENS; at += PIECE) {
        for (int i = 0; i < PIECE * 2 * E; i++) k[i] = (float)((1 + i % 16) * kv_random_normal(&r));
        for (int i = 0; i < PIECE * 2 * D; i++) v[i] = (float)kv_random_normal(&r);
        /* layer 0: two heads that look at element 5 alone; layer 3: six that look at all alike */
        for (int i = 0; i < PIECE * 4 * E; i++) q[i] = (float)(i % 16 == 5 ? 4 * kv_random_normal(&r) : 0);
        rq_kv_captured piece = {0, 0, RQ_KV_Q, 0, at, PIECE, 2, D, q};
        assert_int_equal(kv_calibration_add(c, &piece, &err), RQ_OK);
        for (int i = 0; i < PIECE * 4 * E; i++) q[i] = (float)kv_random_normal(&r);
        const rq_kv_captured pieces[] = {
            {3, 0, RQ_KV_Q, 0, at, PIECE, 6, D, q}, {0, 0, RQ_KV_K, 0, at, PIECE, 1, D, k},
            {0, 0, RQ_KV_V, 0, at, PIECE, 1, D, v}, {2, 2, RQ_KV_Q, 0, at, PIECE, 4, E, q},
            {2, 2, RQ_KV_K, 0, at, PIECE, 2, E, k}, {2, 2, RQ_KV_V, 0, at, PIECE, 2, D, v}};
        for (int i = 0; i < 6; i++) assert_int_equal(kv_calibration_add(c, &pieces[i], &err), RQ_OK);
    }
    const rq_kv_captured wrong[] = {{1, 1, RQ_KV_K, 0, 0, 1, 1, D, k},
                                    {3, 3, RQ_KV_K, 0, 0, 1, 1, D, k},
                                    {4, 4, RQ_KV_K, 0, 0, 1, 1, D, k},
                                    {2, 2, RQ_KV_Q, 0, 0, 1, 3, E, q},
                                    {0, 0, RQ_KV_K, 0, 0, 1, 1, E, k}};
    for (int i = 0; i < 5; i++) assert_int_equal(kv_calibration_add(c, &wrong[i], &err), RQ_ERR_INTERNAL);
    rq_kv_profile profile = {.rot_halves = true, .n_layers = 4, .layers = layers};
    if (kv_calibration_finish(c, &profile, &err)) fail_msg("%s", err.text);
    assert_int_equal(rq_kv_profile_check(&profile, &err), RQ_OK);
    assert_true(!layers[1].mean_k && !layers[3].mean_k && layers[2].klt_k && layers[2].so8_k);
    double want[D], sum = 0;
    for (int i = 0; i < D; i++) { /* turned pairs are (0, 4), (1, 5) and (2, 6) */
        int pair[2] = {i, i < 8 && i % 4 < 3 ? (i + 4) % 8 : i};
        double e_k = 0, e_q = 0;
        for (int e = 0; e < 2; e++) {
            e_k += pow(1 + pair[e], 2);
            e_q += (6 + 2 * (pair[e] == 5 ? 16 : 0)) / 8.0;
        }
        sum += want[i] = 0.25 * log(e_q / e_k);
    }
    for (int i = 0; i < D;
         i++) /* energies of 2,048 keys: 3 % of standard error, a quarter of it in the scales */
        assert_true(fabs(layers[0].lambda_k[i] / exp(want[i] - sum / D) - 1) < 0.04);
    kv_table report;
    kv_calibration_report(c, &profile, &report);
    assert_int_equal(report.n_cells, 3 * KV_BUCKETS * report.n_columns);
    kv_table_free(&report);
    kv_calibration_free(c);
    for (int i = 0; i < 4; i++) {
        float *parts[] = {layers[i].mean_k, layers[i].lambda_k, layers[i].mean_v, layers[i].so8_k,
                          layers[i].so8_v,  layers[i].klt_k,    layers[i].klt_v};
        for (int p = 0; p < 7; p++) rq_free(parts[p]);
    }
}

/* y = a x b^T of d x d matrices. */
static void around(const double *a, const double *x, const double *b, double *y, int d)
{
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) {
            y[i * d + j] = 0;
            for (int k = 0; k < d; k++)
                for (int l = 0; l < d; l++) y[i * d + j] += a[i * d + k] * x[k * d + l] * b[j * d + l];
        }
}

/* In the basis B of keys A and queries C both become the same diagonal S: B A B^T = S and B A C A^T B^T = S^3, S
 * descending. A and C are given as the rule fills them up: less 2 % of the mean energy 1. */
static void test_klt(void **state)
{
    (void)state;
    enum { D = 24 };
    static double factor[2][D * D], moment[2][D * D], given[2][D * D], b[D * D], y[D * D], z[D * D];
    static float basis[D * D];
    kv_random r = kv_random_start(8);
    rq_error err = {0};
    for (int m = 0; m < 2; m++) {
        double mean = 0;
        for (int i = 0; i < D * D; i++) {
            factor[m][i] = kv_random_normal(&r) * exp(-0.2 * (i % D));
            y[i] = i % (D + 1) == 0;
        }
        around(factor[m], y, factor[m], moment[m], D);
        for (int i = 0; i < D; i++) mean += moment[m][i * (D + 1)] / D;
        for (int i = 0; i < D * D; i++) {
            given[m][i] = 7 * moment[m][i] / mean;
            moment[m][i] = moment[m][i] / mean + (i % (D + 1) == 0 ? 0.02 : 0);
        }
    }
    double half = 0, sum = 0, first = 0;
    assert_int_equal(kv_klt(D, given[0], given[1], basis, &half, &err), RQ_OK);
    for (int i = 0; i < D * D; i++) b[i] = (double)basis[i];
    around(b, moment[0], b, y, D);
    around(moment[0], moment[1], moment[0], given[0], D);
    around(b, given[0], b, z, D);
    for (int i = 0; i < D; i++) {
        sum += y[i * (D + 1)];
        if (i < D / 2) first += y[i * (D + 1)];
        assert_true(i == 0 || y[i * (D + 1)] <= y[(i - 1) * (D + 1)] * (1 + 1e-5));
        for (int j = 0; j < D; j++) {
            double s = sqrt(y[i * (D + 1)] * y[j * (D + 1)]);
            assert_true(i == j || fabs(y[i * D + j]) < 1e-5 * s);
            assert_true(fabs(z[i * D + j] - (i == j ? s * s * s : 0)) < 1e-4 * s * s * s);
        }
    }
    assert_true(fabs(first / sum - half) < 1e-5 && half > 0.6);

    memset(given, 0, sizeof given); /* nothing at all was seen: any basis, but one with an inverse */
    float forward[D * D], dual[D * D];
    rq_kv_format klt;
    assert_int_equal(rq_kv_format_parse("klt3", &klt, &err), RQ_OK);
    assert_int_equal(kv_klt(D, given[0], given[1], basis, &half, &err), RQ_OK);
    assert_int_equal(rq_kv_format_basis(&klt, D, 1, basis, forward, dual, &err), RQ_OK);
    for (int i = 0; i < D; i++) basis[D + i] = basis[i]; /* two equal directions have none */
    assert_int_equal(rq_kv_format_basis(&klt, D, 1, basis, forward, dual, &err), RQ_ERR_FORMAT);
}

static void test_calibration_of_nothing(void **state)
{
    const kv_calibration_layer shape = {2, 16, 16};
    kv_calibration *c = NULL;
    rq_error err = {0};
    rq_kv_layer_profile layer = {.n_heads = 2, .dim_k = 16, .dim_v = 16};
    rq_kv_profile profile = {.n_layers = 1, .layers = &layer};
    for (uint64_t at = 1; at < 20; at++) {
        int64_t alive = rq_mem_alive();
        rq_mem_fail_at(at);
        rq_status s = kv_calibration_make(&shape, 1, 8, 8, true, true, &c, &err);
        rq_mem_fail_at(0);
        if (!s) {
            assert_int_equal(kv_calibration_finish(c, &profile, &err), RQ_ERR_ARGUMENT);
            kv_calibration_free(c);
        }
        assert_int_equal(rq_mem_alive(), alive);
    }
}

/* One loud channel: the learned rotation spreads it over all eight as evenly as a rotation can, and is orthogonal. */
static void test_flatten(void **state)
{
    enum { SAMPLES = 2000 };
    static float x[SAMPLES * 8], y[SAMPLES * 8];
    kv_random r = kv_random_start(8);
    for (int i = 0; i < SAMPLES * 8; i++) x[i] = y[i] = (float)(kv_random_normal(&r) * (i % 8 == 3 ? 10 : 1));
    float m[64];
    double left = kv_flatten(x, SAMPLES, m), before = 0, after = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            double dot = 0;
            for (int k = 0; k < 8; k++) dot += (double)m[8 * i + k] * m[8 * j + k];
            assert_true(fabs(dot - (i == j)) < 1e-5);
        }
    for (int t = 0; t < SAMPLES; t++)
        for (int i = 0; i < 8; i++) {
            double turned = 0;
            for (int k = 0; k < 8; k++) turned += (double)m[8 * i + k] * y[8 * t + k];
            before += pow(y[8 * t + i], 4) / SAMPLES;
            after += pow(turned, 4) / SAMPLES;
        }
    assert_true(fabs(after / left - 1) < 1e-3);
    /* Fourth power of a spread unit of energy: 8 (1 / 8)^2 = 1 / 8 of that of a single element. */
    assert_true(after < before / 5);
    assert_true(fabs(fabs(m[3]) - sqrt(1.0 / 8)) < 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, make_folder, remove_folder),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_damaged_tensors),
        cmocka_unit_test_setup_teardown(test_damaged_manifest, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_replay, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_replay_profile, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_replay_memory, make_folder, remove_folder),
        cmocka_unit_test(test_calibration),
        cmocka_unit_test(test_calibration_of_few_layers),
        cmocka_unit_test(test_klt),
        cmocka_unit_test(test_calibration_of_nothing),
        cmocka_unit_test(test_flatten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
