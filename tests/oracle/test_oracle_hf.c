/* Whole models against Hugging Face transformers' own classes (tests/data/oracle-hf/README.md): an origin that has
 * no code in common with the other oracle's. In one batch, token by token, and in pieces of several sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/rqvk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 64, N_TOKENS = 100 };

static const char *backend_name; /* from the command line; NULL: the processor */

static void path_of(const char *name, const char *suffix, char path[512])
{
    snprintf(path, 512, "%s/oracle-hf/%s%s", RQVK_TEST_DATA, name, suffix);
}

static void read_file(const char *name, const char *suffix, void *out, size_t bytes)
{
    char path[512];
    path_of(name, suffix, path);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    assert_int_equal(fread(out, 1, bytes, in), bytes);
    assert_int_equal(fgetc(in), EOF);
    fclose(in);
}

static void read_tokens(rq_token ids[N_TOKENS])
{
    char path[512];
    path_of("tokens", ".txt", path);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    for (size_t i = 0; i < N_TOKENS; i++) assert_int_equal(fscanf(in, "%d", &ids[i]), 1);
    fclose(in);
}

typedef struct logits {
    float rows[N_TOKENS][N_VOCAB];
    size_t n;
} logits;

static void keep(void *user, size_t position, const float *row)
{
    logits *l = user;
    assert_true(position < N_TOKENS);
    memcpy(l->rows[position], row, sizeof l->rows[position]);
    l->n++;
}

static void evaluate(rq_engine *engine, const rq_token *ids, uint32_t piece, logits *out)
{
    rq_session *session;
    rq_error err = {0};
    out->n = 0;
    if (rq_session_create(engine, &session, &err)) fail_msg("%s", err.text);
    if (rq_evaluate(session, ids, N_TOKENS, piece, RQ_LOGITS_ALL, keep, out, &err)) fail_msg("%s", err.text);
    assert_int_equal(out->n, N_TOKENS);
    rq_session_free(session);
}

/* |a-b|^2 / |b|^2 of one position's logits, the largest over all of them */
static double worst_error(const logits *got, const logits *want)
{
    double worst = 0;
    for (size_t i = 0; i < N_TOKENS; i++) {
        double difference = 0, norm = 0;
        for (size_t k = 0; k < N_VOCAB; k++) {
            double d = (double)got->rows[i][k] - want->rows[i][k];
            difference += d * d;
            norm += (double)want->rows[i][k] * want->rows[i][k];
        }
        if (!(difference / norm <= worst)) worst = difference / norm;
    }
    return worst;
}

/* Tolerances, with the classes in double: f32 arithmetic is 2^-24 relative, squared, times some hundred roundings one
 * after another, 1e-12; where the delta rule's keys are short, the two ways to keep a norm from being 0 (the root of a
 * sum with eps in it, and the larger of norm and eps) differ by eps / 2|x|^2, which squared is up to 1e-10 for the
 * shortest. Keys and values rounded to f16, 2^-11 relative: as for the other oracle, and ten times that where scores
 * are not divided by the root of the head's size (gemma4: they reach 32, of which the rounding shows). */
static const struct {
    const char *name, *cache;
    double tolerance;
} CACHES[] = {{"f32", "f32", 1e-9}, {"f16", "f16", 1e-5}};
static const double UNSCALED = 10;

static const char *const MODELS[] = {"hf-qwen35",       "hf-qwen35moe",  "hf-gemma3",
                                     "hf-gemma4-dense", "hf-gemma4-moe", "hf-gemma4-ple"};

static void matches_transformers(void **state)
{
    static const uint32_t pieces[] = {N_TOKENS, 1, 7, 33, 64};
    static logits want, got;
    rq_token ids[N_TOKENS];
    read_tokens(ids);
    uint32_t n_compared = 0;
    for (size_t m = 0; m < sizeof MODELS / sizeof *MODELS; m++) {
        char path[512];
        rq_model *model;
        rq_error err = {0};
        path_of(MODELS[m], ".gguf", path);
        read_file(MODELS[m], ".logits.f32", want.rows, sizeof want.rows);
        if (rq_model_load(path, &model, &err)) fail_msg("%s", err.text);
        for (size_t c = backend_name ? 1 : 0; c < sizeof CACHES / sizeof *CACHES; c++) {
            rq_engine *engine;
            rq_engine_params p = {.backend = backend_name,
                                  .n_ctx = 128,
                                  .n_batch = 128,
                                  .n_threads = 2,
                                  .type_k = CACHES[c].cache,
                                  .type_v = CACHES[c].cache};
            rq_status s = rq_engine_create(model, &p, &engine, &err);
            if (s == RQ_ERR_UNSUPPORTED && backend_name) {
                printf("%-16s refused: %s\n", MODELS[m], err.text);
                continue;
            }
            if (s) fail_msg("%s", err.text);
            for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
                bool unscaled = c == 1 && strncmp(MODELS[m], "hf-gemma4", 9) == 0;
                double tolerance = CACHES[c].tolerance * (unscaled ? UNSCALED : 1);
                evaluate(engine, ids, pieces[k], &got);
                double error = worst_error(&got, &want);
                printf(
                    "%-16s %s cache, pieces of %-3u: worst squared error of a position %.1e, %.3f of %.0e\n",
                    MODELS[m], CACHES[c].name, pieces[k], error, error / tolerance, tolerance);
                assert_true(error < tolerance);
                n_compared++;
            }
            rq_engine_free(engine);
        }
        rq_model_free(model);
    }
    assert_true(n_compared >= (backend_name ? 10 : 60));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_transformers)};
    if (argc > 1) backend_name = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
