/* The block behind the trunk of hf-qwen35.gguf: its logits are those of transformers' own layer and norms
 * (tests/data/oracle-hf/README.md), behind a prompt and from the first token on.
 *
 *   test_oracle_hf_draft [BACKEND] */
#include "engine/models/model.h"
#include "engine/place/decide.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N_VOCAB = 64, N_TOKENS = 100, ROWS = 32, PAGES = 2 };

/* Keys and values are rounded to f16 in two layers: as for the trunk. The wrong norm, half or row gives more than 0.1. */
static const double TOLERANCE = 1e-5;

typedef struct rig {
    rq_token ids[N_TOKENS];
    float want[ROWS][N_VOCAB]; /* of the last positions */
    rq_model *model;
    rq_decision d;
    rq_executor *ex;
    uint32_t pages[PAGES];
    const uint32_t *tables[RQ_MAX_GROUPS];
} rig;

static const char *backend = "cpu";

static FILE *data(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/oracle-hf/%s", RQVK_TEST_DATA, name);
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s is missing", path);
    return f;
}

static void open_rig(rig *r)
{
    rq_error err = {0};
    memset(r, 0, sizeof *r);
    FILE *f = data("tokens.txt");
    for (size_t i = 0; i < N_TOKENS; i++) assert_int_equal(fscanf(f, "%d", &r->ids[i]), 1);
    fclose(f);
    f = data("hf-qwen35.draft.f32");
    assert_int_equal(fread(r->want, sizeof(float), ROWS * N_VOCAB, f), ROWS * N_VOCAB);
    fclose(f);
    if (rq_model_load(RQVK_TEST_DATA "/oracle-hf/hf-qwen35.gguf", &r->model, &err)) fail_msg("%s", err.text);
    const rq_engine_params p = {
        .backend = backend, .n_ctx = PAGES * 64, .n_batch = 128, .n_threads = 1, .draft = "mtp"};
    if (rq_decide(r->model, &p, false, &r->d, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_executor_params x =
        rq_place_executor(&r->d.place, &r->d.devices, &r->d.kv, &r->d.pools, &r->d.numbers);
    assert_true(x.drafts);
    if (rq_executor_create(&x, &r->ex, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < PAGES; i++) r->pages[i] = i;
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) r->tables[g] = r->pages;
}

static void trunk(rig *r, uint32_t first, uint32_t n)
{
    rq_error err = {0};
    rq_step *step = rq_executor_begin(r->ex, &err);
    assert_non_null(step);
    for (uint32_t k = 0; k < r->d.place.n_groups; k++)
        for (uint32_t i = 0; i < PAGES && first == 0; i++)
            assert_true(rq_step_add_edit(step, k, RQ_PAGE_EXACT, 0, i, i));
    assert_int_equal(rq_step_add_run(step, 0, r->ids + first, n, first, r->tables), 0);
    if (rq_executor_submit(r->ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_wait(r->ex, step, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_last(r->ex, 0, n - 1, &err) != RQ_OK) fail_msg("%s", err.text);
}

static void run(uint32_t prompt)
{
    static rig r;
    double worst = 0;
    open_rig(&r);
    trunk(&r, 0, prompt);
    for (uint32_t p = prompt; p < N_TOKENS; p++) {
        rq_error err = {0};
        const float *logits = NULL;
        int32_t after = -1, guess = -1;
        rq_step *step = rq_executor_draft_begin(r.ex);
        assert_int_equal(rq_step_add_run(step, 0, r.ids + p, 1, p, r.tables), 0);
        if (rq_executor_draft(r.ex, step, &after, &guess, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
        double difference = 0, norm = 0;
        for (uint32_t c = 0; c < N_VOCAB && p >= N_TOKENS - ROWS; c++) {
            double want = r.want[p - (N_TOKENS - ROWS)][c], d = (double)logits[c] - want;
            difference += d * d;
            norm += want * want;
        }
        if (p >= N_TOKENS - ROWS && !(difference / norm <= worst)) worst = difference / norm;
        trunk(&r, p, 1);
    }
    printf("behind a prompt of %u tokens: worst squared error of a position %.1e, %.3f of %.0e\n", prompt,
           worst, worst / TOLERANCE, TOLERANCE);
    assert_true(worst < TOLERANCE);
    rq_executor_free(r.ex);
    rq_decision_free(&r.d);
    rq_model_free(r.model);
}

static void behind_a_prompt(void **state)
{
    run(N_TOKENS - ROWS);
}

static void token_by_token(void **state)
{
    run(1);
}

int main(int argc, char **argv)
{
    if (argc > 1) backend = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(behind_a_prompt), cmocka_unit_test(token_by_token)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
