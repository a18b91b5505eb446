/* Every cache format through the whole engine, on the small random models of tests/data/oracle: the same logits in
 * whatever pieces a text is read, more bits closer to f16, profiles that change nothing but rounding. */
#include "tests/engine/kv_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LONG = 600, MIDDLE = 400, SHORT = 330 };

static const char *const rotations[] = {"none", "planar", "rotor", "iso", "so8", "wht", "haar"};
enum { ROTATIONS = sizeof rotations / sizeof *rotations };

static rq_engine_params params_of(const char *type_k, const char *type_v, uint32_t n_ctx)
{
    return (rq_engine_params){.n_ctx = n_ctx,
                              .n_batch = n_ctx > 512 ? 1024 : 512,
                              .n_threads =
                                  n_ctx > 512 ? 2 : 1, /* few: on a busy machine they wait for each other */
                              .type_k = type_k,
                              .type_v = type_v,
                              .kv_recent = 64,
                              .kv_profile = "none"};
}

static float *rows_of(size_t n)
{
    float *rows = calloc(n * KB_VOCAB, sizeof *rows);
    assert_non_null(rows);
    return rows;
}

/* ---- pieces ---------------------------------------------------------------------------------------------- */

/* Largest distance between readings in pieces. Up to 8 tokens: the same bits (DESIGN 2.3). Wider steps multiply in
 * another order; a rounding error may then fall on the other side of a code's border, so that single codes differ.
 * The limit is far below the error of any code (2 bits: about 0.1, 4 bits: 0.006 of the energy of a vector). */
static void check_pieces(const rq_model *model, const char *type_k, const char *type_v, size_t n,
                         const uint32_t *chunks, size_t n_chunks, double limit)
{
    static rq_token ids[LONG];
    kb_tokens(ids, n);
    float *one = rows_of(n), *other = rows_of(n);
    rq_engine_params params = params_of(type_k, type_v, (uint32_t)n);
    rq_engine *engine = rb_engine(model, &params);
    kb_logits(engine, ids, n, chunks[0], one);
    for (size_t i = 1; i < n_chunks; i++) {
        kb_logits(engine, ids, n, chunks[i], other);
        if (chunks[i] != 0 && chunks[i] <= 8 && chunks[0] <= 8) {
            assert_memory_equal(one, other, n * KB_VOCAB * sizeof *one);
            continue;
        }
        double nmse = kb_nmse(other, one, n);
        print_message("%s/%s in pieces of %u: %.2e\n", type_k, type_v, chunks[i], nmse);
        assert_true(nmse <= limit);
    }
    rq_engine_free(engine);
    free(one);
    free(other);
}

static void test_pieces_long(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    const uint32_t chunks[] = {1, 7, 64, 500, 0};
    check_pieces(model, "f16", "f16", LONG, chunks, 5, 1e-4);
    check_pieces(model, "wht3", "wht3", LONG, chunks, 5, 1e-4);
    check_pieces(model, "q8_0", "planar4", LONG, chunks, 5, 1e-4);
    rq_model_free(model);
}

static void test_pieces_every_format(void **state)
{
    rq_model *model =
        rb_load(rb_path("qwen3.gguf")); /* heads of 80: no power of two, two pieces of a Hadamard rotation */
    const uint32_t chunks[] = {8, 64, 0};
    static const char *const others[] = {"f32", "bf16", "q8_0", "q4_0"};
    for (int i = 0; i < 4; i++) check_pieces(model, others[i], others[i], SHORT, chunks, 3, 1e-4);
    for (int r = 0; r < ROTATIONS; r++)
        for (int bits = 2; bits <= 4; bits++) {
            char name[16];
            snprintf(name, sizeof name, "%s%d", rotations[r], bits);
            check_pieces(model, name, name, SHORT, chunks, 3, 1e-4);
        }
    rq_model_free(model);
}

static void test_sinks_in_pieces(void **state)
{
    rq_model *model = rb_load(rb_path("qwen2.gguf"));
    static rq_token ids[SHORT];
    kb_tokens(ids, SHORT);
    float *all = rows_of(SHORT), *f16 = rows_of(SHORT), *sinks = rows_of(SHORT), *pieces = rows_of(SHORT);
    rq_engine_params params = params_of("wht2", "wht2", SHORT);
    kb_logits_of(model, &params, ids, SHORT, 0, all);
    params.kv_sinks = 128;
    kb_logits_of(model, &params, ids, SHORT, 0, sinks);
    kb_logits_of(model, &params, ids, SHORT, 5, pieces);
    assert_true(kb_nmse(pieces, sinks, SHORT) <= 1e-4);
    params = params_of("f16", "f16", SHORT);
    kb_logits_of(model, &params, ids, SHORT, 0, f16);
    /* with two sink pages the first one that is read coded is page 2, by the token 255 (B = 3) */
    assert_true(kb_nmse(sinks, f16, 255) < 1e-6);
    assert_true(kb_nmse(all + 127 * KB_VOCAB, f16 + 127 * KB_VOCAB, 128) > 1e-5);
    assert_true(kb_nmse(sinks + 255 * KB_VOCAB, f16 + 255 * KB_VOCAB, SHORT - 255) > 1e-5);
    free(all);
    free(f16);
    free(sinks);
    free(pieces);
    rq_model_free(model);
}

/* ---- every pair ------------------------------------------------------------------------------------------ */

static void test_every_pair(void **state)
{
    static const char *const formats[] = {"f32",  "f16",   "bf16",    "q8_0", "q4_0", "wht2",
                                          "wht3", "haar4", "planar3", "iso4", "so82", "rotor3"};
    enum { FORMATS = sizeof formats / sizeof *formats, N = 140 };
    rq_model *model = rb_load(rb_path("qwen2.gguf"));
    static rq_token ids[N];
    kb_tokens(ids, N);
    float *f16 = rows_of(N), *rows = rows_of(N);
    rq_engine_params params = params_of("f16", "f16", N);
    kb_logits_of(model, &params, ids, N, 0, f16);
    for (int k = 0; k < FORMATS; k++)
        for (int v = 0; v < FORMATS; v++) {
            params = params_of(formats[k], formats[v], N);
            params.n_threads = 1;
            kb_logits_of(model, &params, ids, N, 0, rows);
            double nmse = kb_nmse(rows, f16, N); /* which fails when something is not finite */
            if (nmse > 0.2) fail_msg("%s/%s: %g from f16", formats[k], formats[v], nmse);
        }
    free(f16);
    free(rows);
    rq_model_free(model);
}

/* ---- how far from f16 ------------------------------------------------------------------------------------ */

typedef struct distance {
    double nmse, divergence;
} distance;

static distance distance_of(const rq_model *model, const char *type_k, const char *type_v, const float *f16,
                            float *rows)
{
    static rq_token ids[MIDDLE];
    kb_tokens(ids, MIDDLE);
    rq_engine_params params = params_of(type_k, type_v, MIDDLE);
    kb_logits_of(model, &params, ids, MIDDLE, 0, rows);
    distance d = {kb_nmse(rows, f16, MIDDLE), kb_divergence(f16, rows, MIDDLE)};
    print_message("%s/%s: squared error %.3e, KL %.3e\n", type_k, type_v, d.nmse, d.divergence);
    assert_true(d.divergence >= -1e-9);
    return d;
}

/* A code's error falls about fourfold with each bit (DESIGN section 5); here it goes through two layers. */
static void test_more_bits_are_closer(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    static rq_token ids[MIDDLE];
    kb_tokens(ids, MIDDLE);
    float *f16 = rows_of(MIDDLE), *rows = rows_of(MIDDLE);
    rq_engine_params params = params_of("f16", "f16", MIDDLE);
    kb_logits_of(model, &params, ids, MIDDLE, 0, f16);
    distance f32 = distance_of(model, "f32", "f32", f16, rows);
    distance q8 = distance_of(model, "q8_0", "q8_0", f16, rows);
    distance q4 = distance_of(model, "q4_0", "q4_0", f16, rows);
    assert_true(f32.nmse < q8.nmse && q8.nmse < q4.nmse / 20);
    for (int r = 0; r < ROTATIONS; r++) {
        distance d[5];
        for (int bits = 2; bits <= 4; bits++) {
            char name[16];
            snprintf(name, sizeof name, "%s%d", rotations[r], bits);
            d[bits] = distance_of(model, name, name, f16, rows);
        }
        assert_true(d[4].nmse * 2 < d[3].nmse && d[3].nmse * 2 < d[2].nmse);
        assert_true(d[4].divergence * 2 < d[3].divergence && d[3].divergence * 2 < d[2].divergence);
        assert_true(q8.nmse < d[4].nmse);
        /* one side only costs less than both */
        if (r == 0) continue;
        char name[16];
        snprintf(name, sizeof name, "%s3", rotations[r]);
        assert_true(distance_of(model, name, "f16", f16, rows).nmse < d[3].nmse * 1.05);
        assert_true(distance_of(model, "f16", name, f16, rows).nmse < d[3].nmse * 1.05);
    }
    free(f16);
    free(rows);
    rq_model_free(model);
}

/* ---- profiles -------------------------------------------------------------------------------------------- */

static float draw(uint64_t *x)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*x >> 32) / 2147483648.0f;
}

/* Turns in one plane after another: orthogonal, and far from the identity. */
static void mix(float *matrix, uint64_t *x)
{
    for (int i = 0; i < 8; i++)
        for (int j = i + 1; j < 8; j++) {
            float t = draw(x), c = (1 - t * t) / (1 + t * t), s = 2 * t / (1 + t * t);
            for (int k = 0; k < 8; k++) {
                float a = matrix[8 * i + k], b = matrix[8 * j + k];
                matrix[8 * i + k] = c * a - s * b;
                matrix[8 * j + k] = s * a + c * b;
            }
        }
}

/* A basis that is not orthogonal: planes turned as above over the whole head, directions of unequal length. */
static void mix_basis(float *basis, uint32_t d, uint64_t *x)
{
    for (uint32_t i = 0; i < d; i++) {
        uint32_t j = (i * 7 + 3) % d;
        float t = draw(x), c = (1 - t * t) / (1 + t * t), s = 2 * t / (1 + t * t);
        for (uint32_t k = 0; k < d && i != j; k++) {
            float a = basis[i * d + k], b = basis[j * d + k];
            basis[i * d + k] = c * a - s * b;
            basis[j * d + k] = s * a + c * b;
        }
    }
    for (uint32_t i = 0; i < d * d; i++) basis[i] *= 0.5f + (float)(i / d % 8) / 4;
}

static void write_profile(const rq_model *model, bool means, bool scales, bool matrices)
{
    rq_kv_profile *p = NULL;
    uint64_t x = 7;
    assert_int_equal(rq_kv_profile_new(model, 1024, &p, NULL), RQ_OK);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const rq_kv_layer_profile *l = &p->layers[i];
        uint32_t n_k = l->n_heads * l->dim_k, n_v = l->n_heads * l->dim_v;
        if (means) {
            float *k = rq_kv_profile_add(p, i, RQ_KV_MEAN_K), *v = rq_kv_profile_add(p, i, RQ_KV_MEAN_V);
            for (uint32_t e = 0; e < n_k; e++) k[e] = draw(&x);
            for (uint32_t e = 0; e < n_v; e++) v[e] = 0.2f * draw(&x);
        }
        if (scales) {
            float *s = rq_kv_profile_add(p, i, RQ_KV_LAMBDA_K);
            for (uint32_t e = 0; e < n_k; e++) { /* pairs are halves of a head, or neighbours */
                uint32_t pair = p->rot_halves ? e % l->dim_k % (l->n_rot / 2) : e % l->dim_k / 2;
                s[e] = 0.5f + (float)(pair * 7 % 32) / 16;
            }
        }
        if (matrices) {
            float *k = rq_kv_profile_add(p, i, RQ_KV_SO8_K), *v = rq_kv_profile_add(p, i, RQ_KV_SO8_V);
            for (uint32_t e = 0; e < n_k * 8; e += 64) mix(k + e, &x);
            for (uint32_t e = 0; e < n_v * 8; e += 64) mix(v + e, &x);
            k = rq_kv_profile_add(p, i, RQ_KV_KLT_K), v = rq_kv_profile_add(p, i, RQ_KV_KLT_V);
            for (uint32_t h = 0; h < l->n_heads; h++) {
                mix_basis(k + (size_t)h * l->dim_k * l->dim_k, l->dim_k, &x);
                mix_basis(v + (size_t)h * l->dim_v * l->dim_v, l->dim_v, &x);
            }
        }
    }
    rq_error err = {0};
    if (rq_kv_profile_write(p, kb_beside(".kvprofile"), &err) != RQ_OK) fail_msg("%s", err.text);
    rq_kv_profile_free(p);
}

/* Whatever vectors a profile has, attention stays what it was: only rounding differs, here that of eight bits. */
static void test_profiles_change_nothing_else(void **state)
{
    static const char *const files[] = {"llama.gguf", "qwen3.gguf"};
    for (int f = 0; f < 2; f++) {
        rq_model *model = kb_load_alone(files[f]);
        static rq_token ids[LONG];
        kb_tokens(ids, LONG);
        float *f16 = rows_of(LONG), *plain = rows_of(LONG), *rows = rows_of(LONG);
        rq_engine_params params = params_of("f16", "f16", LONG);
        kb_logits_of(model, &params, ids, LONG, 0, f16);
        params = params_of("q8_0", "q8_0", LONG);
        params.kv_profile = NULL;
        kb_logits_of(model, &params, ids, LONG, 0, plain);
        double without = kb_nmse(plain, f16, LONG);
        for (int which = 0; which < 3; which++) {
            write_profile(model, which != 1, which != 0, false);
            kb_logits_of(model, &params, ids, LONG, 0, rows);
            double with = kb_nmse(rows, f16, LONG);
            print_message("%s, profile %d: %.2e, without %.2e\n", files[f], which, with, without);
            assert_true(memcmp(rows, plain, LONG * KB_VOCAB * sizeof *rows) != 0);
            /* means of up to 1 beside keys of about that size, scales of 1 : 5: some of the eight bits are lost */
            assert_true(with < 30 * without);
            kb_logits_of(model, &params, ids, LONG, 7, rows);
            assert_true(kb_nmse(rows, f16, LONG) < 30 * without);
        }
        free(f16);
        free(plain);
        free(rows);
        rq_model_free(model);
        kb_remove();
    }
}

/* Matrices of a profile take the place of the seeded ones, in each layer and head its own, for so8 formats only. */
static void test_learned_rotations(void **state)
{
    rq_model *model = kb_load_alone("llama.gguf");
    static rq_token ids[LONG];
    kb_tokens(ids, LONG);
    float *f16 = rows_of(LONG), *seeded = rows_of(LONG), *rows = rows_of(LONG);
    rq_engine_params params = params_of("f16", "f16", LONG);
    kb_logits_of(model, &params, ids, LONG, 0, f16);
    params = params_of("so84", "so84", LONG);
    params.kv_profile = NULL;
    kb_logits_of(model, &params, ids, LONG, 0, seeded);
    write_profile(model, false, false, true);
    kb_logits_of(model, &params, ids, LONG, 0, rows);
    assert_true(memcmp(rows, seeded, LONG * KB_VOCAB * sizeof *rows) != 0);
    double a = kb_nmse(seeded, f16, LONG), b = kb_nmse(rows, f16, LONG);
    print_message("so84 seeded %.2e, with matrices of a profile %.2e\n", a, b);
    assert_true(b < 3 * a && a < 3 * b); /* one rotation is as good as another on random data */
    params.type_k = params.type_v = "wht4";
    kb_logits_of(model, &params, ids, LONG, 0, rows);
    params.kv_profile = "none";
    kb_logits_of(model, &params, ids, LONG, 0, seeded);
    assert_memory_equal(rows, seeded, LONG * KB_VOCAB * sizeof *rows);
    free(f16);
    free(seeded);
    free(rows);
    rq_model_free(model);
    kb_remove();
}

/* klt formats: any basis will do, in any pieces, and not without one. On random data no direction matters more than
 * another, so that a basis of unequal lengths loses something and halves of four and two bits more. */
static void test_bases(void **state)
{
    rq_model *model = kb_load_alone("llama.gguf");
    static rq_token ids[LONG];
    kb_tokens(ids, LONG);
    float *f16 = rows_of(LONG), *wht = rows_of(LONG), *rows = rows_of(LONG), *pieces = rows_of(LONG);
    rq_engine_params params = params_of("klt3", "wht3", LONG);
    rq_engine *engine = NULL;
    rq_error err = {0};
    for (int named = 0; named < 2; named++) { /* no profile at all, and one without bases */
        if (named) write_profile(model, true, true, false);
        params.kv_profile = named ? NULL : "none";
        assert_int_equal(rq_engine_create(model, &params, &engine, &err), RQ_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "klt3"));
        assert_non_null(strstr(err.text, "calibrate --klt"));
    }
    write_profile(model, true, true, true);
    params = params_of("f16", "f16", LONG);
    kb_logits_of(model, &params, ids, LONG, 0, f16);
    for (int bits = 2; bits <= 4; bits++) {
        char klt[8], same[8];
        snprintf(klt, sizeof klt, "klt%d", bits);
        snprintf(same, sizeof same, "wht%d", bits);
        params = params_of(same, same, LONG);
        kb_logits_of(model, &params, ids, LONG, 0, wht);
        params = params_of(klt, klt, LONG);
        params.kv_profile = NULL;
        kb_logits_of(model, &params, ids, LONG, 0, rows);
        double a = kb_nmse(wht, f16, LONG), b = kb_nmse(rows, f16, LONG);
        print_message("%s %.2e, %s %.2e\n", same, a, klt, b);
        assert_true(b < 8 * a && b > 0);
        kb_logits_of(model, &params, ids, LONG, 7, pieces);
        assert_true(kb_nmse(pieces, rows, LONG) <= 1e-4);
    }
    free(f16);
    free(wht);
    free(rows);
    free(pieces);
    rq_model_free(model);
    kb_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_long),          cmocka_unit_test(test_pieces_every_format),
        cmocka_unit_test(test_sinks_in_pieces),      cmocka_unit_test(test_every_pair),
        cmocka_unit_test(test_more_bits_are_closer), cmocka_unit_test(test_profiles_change_nothing_else),
        cmocka_unit_test(test_learned_rotations),    cmocka_unit_test(test_bases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
