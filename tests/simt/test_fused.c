/* Models over rotated and coded caches, with everything fused that a card fuses: the logits of the processor, which fuses
 * less, and the same bits for a token alone and in a draft check of several. */
#include "engine/rqvk.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_VOCAB = 512, N_TOKENS = 140, N_TAIL = 12 };

typedef struct logits {
    float rows[N_TOKENS][N_VOCAB];
} logits;

static void keep(void *user, size_t position, const float *row)
{
    logits *l = user;
    assert_true(position < N_TOKENS);
    memcpy(l->rows[position], row, sizeof l->rows[position]);
}

/* A prompt, then N_TAIL tokens, `chunk` at a time. */
static void evaluate(const char *name, const char *backend, const char *cache, uint32_t chunk, logits *out)
{
    char path[512];
    snprintf(path, sizeof path, "%s/oracle/%s.gguf", RQVK_TEST_DATA, name);
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_session *session = NULL;
    rq_error err = {0};
    const rq_engine_params p = {.backend = backend,
                                .n_ctx = 192,
                                .n_batch = 64,
                                .n_threads = 2,
                                .kv_recent = 64,
                                .type_k = cache,
                                .type_v = cache};
    rq_token ids[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++) ids[i] = (rq_token)(1 + (i * 37 + i / 5) % 500);
    if (rq_model_load(path, &model, &err) || rq_engine_create(model, &p, &engine, &err) ||
        rq_session_create(engine, &session, &err) ||
        rq_evaluate(session, ids, N_TOKENS - N_TAIL, 64, RQ_LOGITS_NONE, keep, out, &err) ||
        rq_evaluate(session, ids + N_TOKENS - N_TAIL, N_TAIL, chunk, RQ_LOGITS_ALL, keep, out, &err))
        fail_msg("%s %s %s: %s", name, backend, cache, err.text);
    rq_session_free(session);
    rq_engine_free(engine);
    rq_model_free(model);
}

static double nmse(const logits *a, const logits *b)
{
    double difference = 0, norm = 0;
    for (uint32_t t = N_TOKENS - N_TAIL; t < N_TOKENS; t++)
        for (uint32_t i = 0; i < N_VOCAB; i++) {
            double d = (double)a->rows[t][i] - b->rows[t][i];
            difference += d * d;
            norm += (double)b->rows[t][i] * b->rows[t][i];
        }
    return difference / norm;
}

/* A rounding that falls the other way, in a half or in a code, spreads through a model of random weights. It is judged by
 * what the format itself does to the logits, which is as many roundings as there are elements: the processor and the card
 * differ by a quarter of that at most, where a rotation forgotten or taken twice leaves nothing of the logits. */
static const double SHARE = 0.25;

static void coded_caches(void **state)
{
    static const char *const names[] = {"llama", "qwen3moe", "qwen35"};
    static const char *const caches[] = {"wht3", "iso3"};
    logits *host = calloc(4, sizeof *host), *card = host + 1, *checked = host + 2, *exact = host + 3;
    assert_non_null(host);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t c = 0; c < (i == 0 ? 2 : 1); c++) {
            evaluate(names[i], "cpu", "f16", 1, exact);
            evaluate(names[i], "cpu", caches[c], 1, host);
            evaluate(names[i], "simt", caches[c], 1, card);
            evaluate(names[i], "simt", caches[c], 6, checked);
            double error = nmse(card, host), format = nmse(host, exact);
            printf("%-14s %-5s card and processor differ by %.2e, the format makes %.2e\n", names[i],
                   caches[c], error, format);
            assert_true(error < SHARE * format);
            assert_memory_equal(card->rows[N_TOKENS - N_TAIL], checked->rows[N_TOKENS - N_TAIL],
                                N_TAIL * sizeof card->rows[0]);
        }
    free(host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(coded_caches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
