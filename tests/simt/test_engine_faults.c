/* Any call of the driver may fail while an engine is made, answers or ends: whoever asked gets a sentence, the engine
 * answers on or refuses everything from then on, and nothing is left behind.
 *
 *   test_engine_faults [every | N]    every: each call in turn; N: a sample of about so many (10) */
#include "backends/base/mem.h"
#include "tests/engine/real_bench.h"
#include "tests/simt/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 12, ANSWER = 3 };

static uint32_t sample = 10;

/* A request of a few tokens: RQ_OK after its last one, else what it ended with and its sentence. */
static rq_status ask(rq_engine *engine, uint32_t number, rq_error *err)
{
    rq_session *session = NULL;
    rq_status status = rq_session_create(engine, &session, err);
    if (status != RQ_OK) return status;
    rq_token ids[N];
    rb_tokens(ids, N, number, 512);
    rq_request request = rq_request_default();
    request.max_tokens = ANSWER;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    status = rq_submit(session, ids, N, NULL, 0, &request, err);
    rq_event event = {.finish = RQ_FINISH_NONE};
    while (status == RQ_OK && event.finish == RQ_FINISH_NONE) status = rq_next(session, &event, 60000, err);
    if (status == RQ_OK && event.finish == RQ_FINISH_ERROR) {
        *err = event.error;
        status = RQ_ERR_DEVICE;
    }
    if (status == RQ_OK) assert_int_equal(event.n_generated, ANSWER);
    rq_session_free(session);
    return status;
}

static void must_say(rq_status status, const rq_error *err, uint32_t call, const char *when)
{
    if (status == RQ_OK) return;
    if (strlen(err->text) < 20 || !strchr(err->text, ' '))
        fail_msg("call %u, %s: no sentence but \"%s\"", call, when, err->text);
}

/* An engine's life, in which call `at` fails. Returns how many calls there were. */
static uint32_t live(const rq_model *model, uint32_t at, uint32_t *refused, uint32_t *failed)
{
    rq_engine_params p = {
        .backend = "simt", .n_ctx = 64, .n_batch = 16, .n_threads = 1, .type_k = "f16", .type_v = "f16"};
    rq_engine *engine = NULL;
    rq_error err = {0};
    simt_fail_at(at);
    rq_status status = rq_engine_create(model, &p, &engine, &err);
    must_say(status, &err, at, "making the engine");
    if (status != RQ_OK) (*refused)++;
    for (uint32_t i = 0; i < 3 && engine != NULL; i++) { /* the one that fails, and two behind it */
        rq_engine_info before, after;
        rq_engine_describe(engine, &before);
        memset(&err, 0, sizeof err);
        status = ask(engine, i, &err);
        must_say(status, &err, at, "answering");
        rq_engine_describe(engine, &after);
        *failed += status != RQ_OK;
        if (before.failed) assert_true(status != RQ_OK && after.failed);
        if (after.failed) assert_true(strlen(after.failure) >= 20);
        if (status == RQ_OK) assert_false(after.failed);
    }
    rq_engine_free(engine);
    return simt_fail_at(0);
}

static void any_call_may_fail(void **state)
{
    rq_model *model = rb_load(rb_path("qwen3.gguf"));
    uint32_t refused = 0, failed = 0, n_failed = 0;
    simt_fail_at(0);
    uint32_t calls = live(model, 0, &refused, &failed);
    assert_int_equal(refused + failed, 0);
    assert_true(calls > 200);
    assert_int_equal(simt_alive(), 0);
    int64_t alive = rq_mem_alive();
    uint32_t step = calls / sample + 1;
    for (uint32_t at = 1; at <= calls; at += step) {
        uint32_t bad = refused + failed;
        live(model, at, &refused, &failed);
        n_failed += refused + failed > bad;
        if (simt_alive() != 0 || rq_mem_alive() != alive)
            fail_msg("call %u: %u objects and %lld allocations are left", at, simt_alive(),
                     (long long)(rq_mem_alive() - alive));
    }
    printf("%u calls; of those that failed %u refused the engine, %u requests ended with a sentence\n", calls,
           refused, failed);
    assert_true(refused > 3 && failed > 3 && n_failed > calls / step / 2);
    rq_model_free(model);
}

int main(int argc, char **argv)
{
    if (argc > 1) sample = strcmp(argv[1], "every") == 0 ? UINT32_MAX : (uint32_t)strtoul(argv[1], NULL, 10);
    if (sample == 0) return 2;
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_call_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
