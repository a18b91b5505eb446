/* A recurrent model, token after token on the whole engine: every step makes the same few calls of the driver, whatever
 * the number of operations; only steps at the border of a page, which change tables, may make others. Nothing is made
 * for a step, and two engines give the same bytes.
 *
 *   test_hybrid [every]    every: 1,000 steps, not 130 */
#include "backends/vulkan/vulkan.h"
#include "engine/rqvk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 1000, N_VOCAB = 512, PAGE = 64 };

static rq_model *model;
static uint32_t n_steps = 130;

typedef struct steps {
    uint64_t calls[MOST];
    int64_t objects[MOST];
    float *rows;
} steps;

static void keep(void *user, size_t position, const float *row)
{
    steps *s = user;
    s->calls[position] = rq_vulkan_calls();
    s->objects[position] = rq_vulkan_objects_alive();
    memcpy(s->rows + position * N_VOCAB, row, N_VOCAB * sizeof *row);
}

static void run(steps *s)
{
    static rq_token ids[MOST];
    for (uint32_t i = 0; i < MOST; i++) ids[i] = (rq_token)(i * 2654435761u >> 8) % N_VOCAB;
    rq_error err = {0};
    rq_engine *engine = NULL;
    rq_session *session = NULL;
    rq_engine_params p = {.backend = "vulkan",
                          .n_ctx = MOST + 24,
                          .n_batch = 16,
                          .n_sessions = 1,
                          .n_threads = 1,
                          .cache_ram_mib = 1};
    if (rq_engine_create(model, &p, &engine, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_session_create(engine, &session, &err) != RQ_OK) fail_msg("%s", err.text);
    s->rows = calloc((size_t)n_steps * N_VOCAB, sizeof *s->rows);
    assert_non_null(s->rows);
    if (rq_evaluate(session, ids, n_steps, 1, RQ_LOGITS_ALL, keep, s, &err) != RQ_OK)
        fail_msg("%s", err.text);
    rq_session_free(session);
    rq_engine_free(engine);
}

static void a_step_costs_the_same(void **state)
{
    static steps a, b;
    run(&a);
    uint64_t calls = a.calls[20] - a.calls[19];
    for (uint32_t i = 10; i < n_steps; i++) { /* every place of the ring was used */
        if (i % PAGE <= 1 || i % PAGE == PAGE - 1) continue;
        if (a.calls[i] - a.calls[i - 1] != calls)
            fail_msg("step %u: %llu calls, others %llu", i, (unsigned long long)(a.calls[i] - a.calls[i - 1]),
                     (unsigned long long)calls);
        assert_int_equal(a.objects[i], a.objects[i - 1]);
    }
    printf("%u steps, %llu calls of the driver each\n", n_steps, (unsigned long long)calls);
    assert_true(calls < 40); /* its layers are more than 60 operations */
    run(&b);
    assert_memory_equal(a.rows, b.rows, (size_t)n_steps * N_VOCAB * sizeof *a.rows);
    free(a.rows);
    free(b.rows);
    assert_int_equal(rq_vulkan_messages(NULL), 0);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
}

int main(int argc, char **argv)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return getenv("RQVK_VK_REQUIRED") ? 1 : 77;
    }
    rq_backend_vulkan.close(device);
    if (argc > 1 && strcmp(argv[1], "every") == 0) n_steps = MOST;
    char path[512];
    snprintf(path, sizeof path, "%s/oracle/qwen35.gguf", RQVK_TEST_DATA);
    if (rq_model_load(path, &model, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_step_costs_the_same)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rq_model_free(model);
    return failed;
}
