/* A compiled step runs again and again: without allocating, with the same few calls of the driver whatever the model,
 * to the same bits, and with a second step behind it. */
#include "backends/base/mem.h"
#include "tests/vulkan/rig.h"

enum { N_STEPS = 1000, LENGTH = 24 };

static synth_config layers(const synth_config *c, uint32_t n)
{
    synth_config out = *c;
    out.n_layers = n;
    return out;
}

static void open_rig(vulkan_rig *r, synth_model *m, const synth_config *c, uint32_t max_tokens)
{
    rq_error err = {0};
    synth_make(m, c, 1);
    if (vulkan_rig_open(r, m, max_tokens, 2, &err) != RQ_OK) fail_msg("%s", err.text);
}

/* A step of one token at `position` of sequence 0, whose page is in the table. */
static rq_step *one_token(vulkan_rig *r, uint32_t position)
{
    rq_error err = {0};
    rq_step *step = rq_executor_begin(r->ex, &err);
    if (!step) fail_msg("%s", err.text);
    const uint32_t *table[RQ_MAX_GROUPS];
    for (uint32_t g = 0; g < r->drive.n_groups; g++)
        table[g] = r->drive.pages + g * r->drive.n_seqs * r->drive.max_pages;
    int32_t id = drive_token(0, position, r->drive.n_vocab);
    int32_t first = rq_step_add_run(step, 0, &id, 1, position, table);
    assert_true(first >= 0);
    assert_true(rq_step_add_row(step, (uint32_t)first, 0));
    return step;
}

static const float *run_one(vulkan_rig *r, uint32_t position)
{
    rq_error err = {0};
    const float *logits = NULL;
    rq_step *step = one_token(r, position);
    if (rq_executor_submit(r->ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_wait(r->ex, step, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
    return logits;
}

/* Calls of the driver per step, which must be the same in every one of N_STEPS. */
static uint64_t calls_per_step(const synth_config *c, uint32_t n_steps)
{
    vulkan_rig r;
    synth_model m;
    open_rig(&r, &m, c, 1);
    rq_error err = {0};
    float *out = calloc(r.drive.n_vocab, sizeof *out);
    if (driver_run(&r.drive, &(drive_piece){0, 1}, 1, out, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < 8; i++) run_one(&r, 0); /* every place of the ring was used */
    uint64_t calls = rq_vulkan_calls(), first = 0;
    int64_t alive = rq_mem_alive(), objects = rq_vulkan_objects_alive();
    rq_mem_fail_at(0);
    for (uint32_t i = 0; i < n_steps; i++) {
        const float *logits = run_one(&r, 0);
        if (memcmp(logits, out, r.drive.n_vocab * sizeof *out) != 0) fail_msg("step %u has other bits", i);
        uint64_t now = rq_vulkan_calls();
        if (i == 0) first = now - calls;
        assert_int_equal(now - calls, first);
        calls = now;
    }
    assert_int_equal(rq_mem_count(), 0);
    assert_int_equal(rq_mem_alive(), alive);
    assert_int_equal(rq_vulkan_objects_alive(), objects);
    free(out);
    vulkan_rig_close(&r);
    synth_free(&m);
    return first;
}

static void a_step_costs_no_call_per_operation(void **state)
{
    synth_config one = layers(&synth_coded, 1), many = layers(&synth_coded, 3);
    uint64_t few = calls_per_step(&one, 50), more = calls_per_step(&many, N_STEPS);
    printf("calls of the driver per step: %llu with 1 layer, %llu with 3\n", (unsigned long long)few,
           (unsigned long long)more);
    assert_int_equal(few, more);
}

/* Logits of LENGTH tokens in pieces; a whole engine's life each time. */
static float *logits_of(const synth_config *c, uint32_t piece)
{
    vulkan_rig r;
    synth_model m;
    open_rig(&r, &m, c, 16);
    float *out = calloc((size_t)LENGTH * r.drive.n_vocab, sizeof *out);
    for (uint32_t at = 0; at < LENGTH; at += piece) {
        rq_error err = {0};
        uint32_t n = LENGTH - at < piece ? LENGTH - at : piece;
        if (driver_run(&r.drive, &(drive_piece){0, n}, 1, out + (size_t)at * r.drive.n_vocab, &err) != RQ_OK)
            fail_msg("%s", err.text);
    }
    vulkan_rig_close(&r);
    synth_free(&m);
    return out;
}

static void two_runs_have_the_same_bytes(void **state)
{
    const synth_config *c = &synth_coded;
    size_t bytes = (size_t)LENGTH * c->n_vocab * sizeof(float);
    float *a = logits_of(c, 16), *b = logits_of(c, 16);
    assert_memory_equal(a, b, bytes);
    free(a), free(b);
    a = logits_of(c, 8), b = logits_of(c, 1); /* narrow steps: whatever the cut */
    assert_memory_equal(a, b, bytes);
    free(a), free(b);
}

/* The second step starts while the first runs; both have the bits they have alone. */
static void two_steps_fly(void **state)
{
    vulkan_rig r;
    synth_model m;
    open_rig(&r, &m, &synth_coded, 8);
    rq_error err = {0};
    uint32_t n_vocab = r.drive.n_vocab;
    float *alone = calloc((size_t)2 * LENGTH * n_vocab, sizeof *alone),
          *both = alone + (size_t)LENGTH * n_vocab;
    for (uint32_t i = 0; i < LENGTH; i++)
        if (driver_run(&r.drive, &(drive_piece){0, 1}, 1, alone + (size_t)i * n_vocab, &err) != RQ_OK)
            fail_msg("%s", err.text);
    rq_step *before = NULL;
    for (uint32_t i = 0; i <= LENGTH; i++) {
        const float *logits = NULL;
        rq_step *step = i < LENGTH ? one_token(&r, i) : NULL;
        if (step && rq_executor_submit(r.ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
        if (before) {
            if (rq_executor_wait(r.ex, before, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
            memcpy(both + (size_t)(i - 1) * n_vocab, logits, n_vocab * sizeof *logits);
        }
        before = step;
    }
    assert_memory_equal(alone, both, (size_t)LENGTH * n_vocab * sizeof *alone);
    free(alone);
    vulkan_rig_close(&r);
    synth_free(&m);
}

static void nobody_complained(void **state)
{
    assert_int_equal(rq_vulkan_messages(NULL), 0);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
}

int main(void)
{
    int absent = vulkan_absent();
    if (absent) return absent;
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_step_costs_no_call_per_operation),
                                       cmocka_unit_test(two_runs_have_the_same_bytes),
                                       cmocka_unit_test(two_steps_fly), cmocka_unit_test(nobody_complained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
