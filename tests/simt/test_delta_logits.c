/* A real text through the built-in hybrid model on the simulated card: in steps too narrow for chunks of the delta rule, and
 * in wide ones. */
#include "backends/ops.h"
#include "backends/state.h"
#include "engine/rqvk.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TEXT = 128, NARROW = RQ_DELTA_WIDE / 2 };

typedef struct logits {
    uint32_t n_vocab;
    float *rows; /* [TEXT][n_vocab] */
} logits;

static void keep(void *user, size_t position, const float *row)
{
    logits *l = user;
    assert_true(position < TEXT);
    memcpy(l->rows + position * l->n_vocab, row, l->n_vocab * sizeof *row);
}

/* Logarithms of probabilities, from logits. */
static void to_logs(const float *row, double *logs, uint32_t n)
{
    double most = -HUGE_VAL, sum = 0;
    for (uint32_t i = 0; i < n; i++) most = fmax(most, (double)row[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)row[i] - most);
    for (uint32_t i = 0; i < n; i++) logs[i] = (double)row[i] - most - log(sum);
}

/* Kullback and Leibler 1951. */
static double divergence(const double *p, const double *q, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += exp(p[i]) * (p[i] - q[i]);
    return sum;
}

static void evaluate(rq_engine *engine, const rq_tokens *text, uint32_t step, logits *l)
{
    rq_session *session = NULL;
    rq_error err = {0};
    if (rq_session_create(engine, &session, &err) != RQ_OK ||
        rq_evaluate(session, text->ids, TEXT, step, RQ_LOGITS_ALL, keep, l, &err) != RQ_OK)
        fail_msg("%s", err.text);
    rq_session_free(session);
}

static void logits_stay(void **state)
{
    static char bytes[8192];
    FILE *f = fopen(RQVK_TEST_DATA "/text/little-colonels-hero.txt", "rb");
    assert_non_null(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    rq_error err = {0};
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_tokens text = {0};
    rq_engine_params p = {
        .backend = "simt", .n_ctx = 2 * TEXT, .n_batch = TEXT, .n_sessions = 1, .n_threads = 1};
    if (rq_model_load(RQVK_MODELS "/builtin-qwen35.gguf", &model, &err) != RQ_OK ||
        rq_tokenize(model, bytes, n, 0, &text, &err) != RQ_OK ||
        rq_engine_create(model, &p, &engine, &err) != RQ_OK)
        fail_msg("%s", err.text);
    rq_model_info info;
    rq_model_describe(model, &info);
    assert_true(text.n >= TEXT);
    logits l[2];
    double *logs = calloc(2 * (size_t)info.n_vocab, sizeof *logs), mean = 0, most = 0;
    assert_non_null(logs);
    for (int i = 0; i < 2; i++) {
        l[i] = (logits){.n_vocab = info.n_vocab, .rows = calloc((size_t)TEXT * info.n_vocab, sizeof(float))};
        assert_non_null(l[i].rows);
        evaluate(engine, &text, i ? TEXT : NARROW, &l[i]);
    }
    for (uint32_t t = 0; t < TEXT; t++) {
        for (int i = 0; i < 2; i++)
            to_logs(l[i].rows + (size_t)t * info.n_vocab, logs + (size_t)i * info.n_vocab, info.n_vocab);
        double d = divergence(logs, logs + info.n_vocab, info.n_vocab);
        mean += d / TEXT;
        most = fmax(most, d);
    }
    printf("built-in hybrid, %d tokens: divergence %.2g in the mean, %.2g at most; the bar is %.2g\n", TEXT,
           mean, most, RQ_DELTA_DIVERGENCE);
    assert_true(fabs(mean) <= RQ_DELTA_DIVERGENCE);
    /* it was not the token form twice */
    assert_memory_not_equal(l[0].rows, l[1].rows, sizeof(float) * TEXT * info.n_vocab);
    for (int i = 0; i < 2; i++) free(l[i].rows);
    free(logs);
    rq_tokens_free(&text);
    rq_engine_free(engine);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(logits_stay)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
