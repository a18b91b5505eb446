/* An engine whose device is lost under it: the request ends with RQ_ERR_DEVICE, which the server answers with 503, and
 * so do all that follow; the process goes on, and a new engine works. */
#include "backends/base/mem.h"
#include "backends/vulkan/vulkan.h"
#include "engine/rqvk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <vulkan/vulkan_core.h>

enum { N_TOKENS = 12, N_VOCAB = 512 };

static rq_model *model;
static const rq_token ids[N_TOKENS] = {1, 5, 9, 2, 7, 11, 3, 30, 8, 6, 4, 10};

static void keep(void *user, size_t position, const float *row)
{
    (void)position;
    memcpy(user, row, N_VOCAB * sizeof *row);
}

static rq_engine *open_engine(void)
{
    rq_error err = {0};
    rq_engine *engine = NULL;
    rq_engine_params p = {.backend = "vulkan", .n_ctx = 64, .n_batch = 16, .n_sessions = 2, .n_threads = 1};
    if (rq_engine_create(model, &p, &engine, &err) != RQ_OK) fail_msg("%s", err.text);
    return engine;
}

static rq_status ask(rq_engine *engine, float *out, rq_error *err)
{
    rq_session *session = NULL;
    rq_status status = rq_session_create(engine, &session, err);
    if (status != RQ_OK) return status;
    status = rq_evaluate(session, ids, N_TOKENS, 4, RQ_LOGITS_LAST, keep, out, err);
    rq_session_free(session);
    return status;
}

static void the_engine_fails_and_the_process_goes_on(void **state)
{
    float before[N_VOCAB] = {0}, after[N_VOCAB] = {0};
    rq_error err = {0};
    rq_engine_info info;
    rq_engine *engine = open_engine();
    assert_int_equal(ask(engine, before, &err), RQ_OK);
    rq_engine_describe(engine, &info);
    assert_false(info.failed);
    assert_string_equal(info.backend, "vulkan");
    rq_vulkan_fail_at(5, VK_ERROR_DEVICE_LOST);
    assert_int_equal(ask(engine, after, &err), RQ_ERR_DEVICE);
    printf("%s\n", err.text);
    assert_non_null(strstr(err.text, "lost"));
    rq_vulkan_fail_at(0, 0);
    for (int i = 0; i < 2; i++) assert_int_equal(ask(engine, after, &err), RQ_ERR_DEVICE);
    rq_engine_describe(engine, &info);
    assert_true(info.failed);
    rq_engine_free(engine);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
    engine = open_engine();
    assert_int_equal(ask(engine, after, &err), RQ_OK);
    assert_memory_equal(before, after, sizeof before);
    rq_engine_free(engine);
    assert_int_equal(rq_vulkan_messages(NULL), 0);
}

int main(void)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return getenv("RQVK_VK_REQUIRED") ? 1 : 77;
    }
    rq_backend_vulkan.close(device);
    char path[512];
    snprintf(path, sizeof path, "%s/oracle/qwen3.gguf", RQVK_TEST_DATA);
    if (rq_model_load(path, &model, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_engine_fails_and_the_process_goes_on)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rq_model_free(model);
    return failed;
}
