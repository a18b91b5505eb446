/* The logits of the MTP block of the built-in hybrid model against those of the script that trained it
 * (tests/data/mtp): behind prompts and token by token. */
#include "engine/place/decide.h"
#include "tests/engine/real_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 160, COLUMNS = 256, STEP = 16, PAGES = 4 };

/* Q8_0 products take their activations in blocks of int8: about 5e-5 of the square for each of the 20 or so products a
 * token goes through. The wrong norm, half or row gives more than 0.5. */
static const double TOLERANCE = 2e-3;

typedef struct golden {
    int32_t ids[MOST], draft[MOST], trunk[MOST];
    float logits[MOST][COLUMNS];
    uint32_t n;
} golden;

typedef struct rig {
    rq_model *model;
    rq_decision d;
    rq_executor *ex;
    uint32_t pages[RQ_MAX_GROUPS][PAGES];
    const uint32_t *tables[RQ_MAX_GROUPS];
} rig;

static FILE *data(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/mtp/%s", RQVK_TEST_DATA, name);
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s is missing", path);
    return f;
}

static float from_half(uint16_t h)
{
    const rq_type_info *info = rq_type_get(RQ_TYPE_F16);
    float x;
    info->dequantize(&h, &x, 1);
    return x;
}

static void read_golden(golden *g)
{
    FILE *f = data("ids.txt");
    char line[256];
    while (g->n < MOST && fscanf(f, "%15s", line) == 1) g->ids[g->n++] = (int32_t)strtol(line, NULL, 10);
    fclose(f);
    assert_int_equal(g->n, MOST);
    f = data("builtin-qwen35.best");
    assert_non_null(fgets(line, sizeof line, f));
    for (uint32_t i = 0; i < MOST; i++) {
        char *end;
        assert_non_null(fgets(line, sizeof line, f));
        g->draft[i] = (int32_t)strtol(line, &end, 10);
        g->trunk[i] = (int32_t)strtol(end, NULL, 10);
    }
    fclose(f);
    f = data("builtin-qwen35.f16");
    for (uint32_t i = 0; i < MOST; i++) {
        uint16_t row[COLUMNS];
        assert_int_equal(fread(row, sizeof *row, COLUMNS, f), COLUMNS);
        for (uint32_t c = 0; c < COLUMNS; c++) g->logits[i][c] = from_half(row[c]);
    }
    fclose(f);
}

static void open_rig(rig *r)
{
    rq_error err = {0};
    memset(r, 0, sizeof *r);
    r->model = rb_load(RQVK_MODELS "/builtin-qwen35.gguf");
    const rq_engine_params p = {.n_ctx = PAGES * 64, .n_batch = 128, .n_threads = 1, .draft = "mtp"};
    if (rq_decide(r->model, &p, false, &r->d, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_executor_params x =
        rq_place_executor(&r->d.place, &r->d.devices, &r->d.kv, &r->d.pools, &r->d.numbers);
    assert_true(x.drafts);
    if (rq_executor_create(&x, &r->ex, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) {
        for (uint32_t i = 0; i < PAGES; i++) r->pages[g][i] = i;
        r->tables[g] = r->pages[g];
    }
}

static void close_rig(rig *r)
{
    rq_executor_free(r->ex);
    rq_decision_free(&r->d);
    rq_model_free(r->model);
}

static void trunk(rig *r, const golden *g, uint32_t first, uint32_t n)
{
    rq_error err = {0};
    rq_step *step = rq_executor_begin(r->ex, &err);
    assert_non_null(step);
    for (uint32_t k = 0; k < r->d.place.n_groups; k++)
        for (uint32_t i = 0; i < PAGES && first == 0; i++)
            assert_true(rq_step_add_edit(step, k, RQ_PAGE_EXACT, 0, i, i));
    assert_int_equal(rq_step_add_run(step, 0, g->ids + first, n, first, r->tables), 0);
    if (rq_executor_submit(r->ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_wait(r->ex, step, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_last(r->ex, 0, n - 1, &err) != RQ_OK) fail_msg("%s", err.text);
}

/* The row of token p, whose predecessors the trunk has seen. Returns the guess. */
static int32_t compare(rig *r, const golden *g, uint32_t p, double *sum, double *square)
{
    rq_error err = {0};
    const float *logits = NULL;
    int32_t after = -1, guess = -1;
    rq_step *step = rq_executor_draft_begin(r->ex);
    assert_int_equal(rq_step_add_run(step, 0, g->ids + p, 1, p, r->tables), 0);
    if (rq_executor_draft(r->ex, step, &after, &guess, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t c = 0; c < COLUMNS; c++) {
        double want = g->logits[p][c], d = (double)logits[(size_t)c * STEP] - want;
        *sum += d * d;
        *square += want * want;
    }
    for (uint32_t c = 0; c < r->model->hp.n_vocab; c++) assert_true(logits[c] <= logits[guess]);
    return guess;
}

static void run(uint32_t first_wide)
{
    static golden g;
    static rig r;
    memset(&g, 0, sizeof g);
    read_golden(&g);
    open_rig(&r);
    double sum = 0, square = 0;
    uint32_t same = 0, right = 0;
    if (first_wide != 0) trunk(&r, &g, 0, first_wide);
    for (uint32_t p = first_wide != 0 ? first_wide : 1; p < MOST; p++) {
        if (first_wide == 0 && p == 1) trunk(&r, &g, 0, 1);
        int32_t guess = compare(&r, &g, p, &sum, &square);
        same += guess == g.draft[p];
        right += guess == g.trunk[p];
        trunk(&r, &g, p, 1);
    }
    uint32_t n = MOST - (first_wide != 0 ? first_wide : 1);
    print_message("normalised squared error %.2g; first choices: %u of %u the same, %u the trunk's\n",
                  sum / square, same, n, right);
    assert_true(sum < TOLERANCE * square);
    assert_true(same >= n - n / 20); /* near ties may turn */
    close_rig(&r);
}

static void test_token_by_token(void **state)
{
    run(0);
}

static void test_behind_a_prompt(void **state)
{
    run(100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_token_by_token),
                                       cmocka_unit_test(test_behind_a_prompt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
