/* Any call of the driver may fail, and a device may be lost: a sentence comes back, everything is released, and a lost
 * device refuses what comes after.
 *
 *   test_faults [every]    every: each call in turn, not a sample of them */
#include "backends/base/mem.h"
#include "tests/vulkan/rig.h"

#include <vulkan/vulkan_core.h>

static bool every;

static synth_config small(void)
{
    synth_config c = synth_coded;
    c.n_layers = 1;
    return c;
}

/* A device's life: opened, an executor made, three steps run. */
static rq_status live(synth_model *m, rq_error *err)
{
    vulkan_rig r;
    rq_status status = vulkan_rig_open(&r, m, 1, 1, err);
    float *out = calloc(1, (size_t)m->c.n_vocab * sizeof *out);
    for (int i = 0; i < 3 && status == RQ_OK; i++)
        status = driver_run(&r.drive, &(drive_piece){0, 1}, 1, out, err);
    free(out);
    vulkan_rig_close(&r);
    return status;
}

static void any_call_may_fail(void **state)
{
    static const int32_t failures[] = {VK_ERROR_OUT_OF_DEVICE_MEMORY, VK_ERROR_DEVICE_LOST, VK_ERROR_UNKNOWN};
    synth_model m;
    synth_config c = small();
    synth_make(&m, &c, 1);
    rq_error err = {0};
    int64_t alive = rq_mem_alive();
    rq_vulkan_fail_at(0, 0);
    assert_int_equal(live(&m, &err), RQ_OK);
    uint64_t n = rq_vulkan_fallible_calls();
    assert_true(n > 100);
    uint64_t stride = every ? 1 : n / 14 + 1, n_failed = 0;
    for (uint64_t at = 1; at <= n; at += stride) {
        memset(&err, 0, sizeof err);
        rq_vulkan_fail_at(at, failures[at % 3]);
        rq_status status = live(&m, &err);
        rq_vulkan_fail_at(0, 0);
        if (status != RQ_OK) {
            n_failed++;
            if (err.text[0] == 0) fail_msg("call %llu fails without a sentence", (unsigned long long)at);
        }
        if (rq_vulkan_objects_alive() != 0 || rq_mem_alive() != alive)
            fail_msg("call %llu: %lld objects and %lld allocations are left (%s)", (unsigned long long)at,
                     (long long)rq_vulkan_objects_alive(), (long long)(rq_mem_alive() - alive), err.text);
    }
    printf("%llu calls can fail; %llu failures were reported\n", (unsigned long long)n,
           (unsigned long long)n_failed);
    assert_true(n_failed > 5);
    assert_int_equal(live(&m, &err), RQ_OK);
    synth_free(&m);
}

/* Not one call but every n-th, for as long as it goes on: also what cleans up after a failure then fails. */
static void every_nth_call_fails(void **state)
{
    static const int32_t failures[] = {VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_DEVICE_LOST, VK_ERROR_UNKNOWN};
    static const uint64_t sample[] = {1, 2, 7, 29, 64, 151, 400};
    synth_model m;
    synth_config c = small();
    synth_make(&m, &c, 1);
    rq_error err = {0};
    int64_t alive = rq_mem_alive();
    rq_vulkan_fail_at(0, 0);
    assert_int_equal(live(&m, &err), RQ_OK);
    uint64_t n = rq_vulkan_fallible_calls(), n_failed = 0,
             n_lives = every ? n : sizeof sample / sizeof *sample;
    for (uint64_t i = 0; i < n_lives; i++) {
        uint64_t nth = every ? i + 1 : sample[i];
        memset(&err, 0, sizeof err);
        rq_vulkan_fail_every(nth, failures[i % 3]);
        rq_status status = live(&m, &err);
        rq_vulkan_fail_at(0, 0);
        n_failed += status != RQ_OK;
        if (status != RQ_OK && err.text[0] == 0)
            fail_msg("every %llu-th call: no sentence", (unsigned long long)nth);
        if (rq_vulkan_objects_alive() != 0 || rq_mem_alive() != alive)
            fail_msg("every %llu-th call: %lld objects and %lld allocations are left (%s)",
                     (unsigned long long)nth, (long long)rq_vulkan_objects_alive(),
                     (long long)(rq_mem_alive() - alive), err.text);
    }
    printf("%llu of %llu lives ended early\n", (unsigned long long)n_failed, (unsigned long long)n_lives);
    assert_true(n_failed >= (every ? n / 2 : 4));
    assert_int_equal(live(&m, &err), RQ_OK);
    synth_free(&m);
}

/* Lost in the middle of a run. */
static void a_lost_device_refuses(void **state)
{
    synth_model m;
    synth_config c = small();
    vulkan_rig r;
    rq_error err = {0};
    synth_make(&m, &c, 1);
    if (vulkan_rig_open(&r, &m, 1, 1, &err) != RQ_OK) fail_msg("%s", err.text);
    float *out = calloc(1, (size_t)m.c.n_vocab * sizeof *out);
    assert_int_equal(driver_run(&r.drive, &(drive_piece){0, 1}, 1, out, &err), RQ_OK);
    rq_vulkan_fail_at(2, VK_ERROR_DEVICE_LOST);
    assert_int_equal(driver_run(&r.drive, &(drive_piece){0, 1}, 1, out, &err), RQ_ERR_DEVICE);
    assert_non_null(strstr(err.text, "lost"));
    rq_vulkan_fail_at(0, 0);
    for (int i = 0; i < 3; i++) { /* and goes on doing so, whatever is asked */
        memset(&err, 0, sizeof err);
        rq_step *step = rq_executor_begin(r.ex, &err);
        if (step) {
            int32_t id = 1;
            const uint32_t *table[RQ_MAX_GROUPS];
            for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) table[g] = r.drive.pages;
            assert_true(rq_step_add_run(step, 0, &id, 1, 0, table) >= 0);
            assert_int_equal(rq_executor_submit(r.ex, step, &err), RQ_ERR_DEVICE);
        }
        assert_non_null(strstr(err.text, "lost"));
    }
    assert_int_equal(r.device->backend->wait(r.device, &err), RQ_ERR_DEVICE);
    rq_memory *memory = NULL;
    assert_int_equal(r.device->backend->alloc(r.device, 64, "test", &memory, &err), RQ_ERR_DEVICE);
    free(out);
    vulkan_rig_close(&r);
    synth_free(&m);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
}

/* The N-th allocation of the program fails, the same. */
static void any_allocation_may_fail(void **state)
{
    synth_model m;
    synth_config c = small();
    synth_make(&m, &c, 1);
    rq_error err = {0};
    int64_t alive = rq_mem_alive();
    rq_mem_fail_at(0);
    assert_int_equal(live(&m, &err), RQ_OK);
    uint64_t n = rq_mem_count(), stride = every ? 1 : n / 8 + 1;
    for (uint64_t at = 1; at <= n; at += stride) {
        rq_mem_fail_at(at);
        live(&m, &err); /* what can do without goes on */
        rq_mem_fail_at(0);
        if (rq_vulkan_objects_alive() != 0 || rq_mem_alive() != alive)
            fail_msg("allocation %llu: %lld objects and %lld allocations are left", (unsigned long long)at,
                     (long long)rq_vulkan_objects_alive(), (long long)(rq_mem_alive() - alive));
    }
    synth_free(&m);
}

static void nobody_complained(void **state)
{
    assert_int_equal(rq_vulkan_messages(NULL), 0);
}

int main(int argc, char **argv)
{
    int absent = vulkan_absent();
    if (absent) return absent;
    every = argc > 1 && strcmp(argv[1], "every") == 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_call_may_fail), cmocka_unit_test(every_nth_call_fails),
        cmocka_unit_test(a_lost_device_refuses), cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(nobody_complained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
