/* The tapes of the model families, from small real files: plans by brute force, operations between barriers in
 * any order, and a thousand steps without an allocation on the processor. */
#include "backends/base/mem.h"
#include "backends/exec/exec.h"
#include "backends/tape/fuse.h"
#include "engine/models/model.h"
#include "tests/ground/check.h"
#include "tests/ground/drive.h"
#include "tests/ground/host.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *const files[] = {"llama",        "qwen2",  "qwen3",        "qwen3moe",
                                    "llama-Q4_K_M", "gemma3", "gemma4-dense", "qwen35"};
enum { N_FILES = sizeof files / sizeof *files, N_SEQS = 3, MAX_PAGES = 4 };

static rq_model *load(const char *name)
{
    char path[512];
    rq_error err = {0};
    rq_model *m = NULL;
    snprintf(path, sizeof path, "%s/oracle/%s.gguf", RQVK_TEST_DATA, name);
    if (rq_model_load(path, &m, &err) != RQ_OK) fail_msg("%s", err.text);
    return m;
}

static bool yes(void *user, const rq_tape *tape, const rq_op *op)
{
    return true;
}

static uint32_t place_second_half(void *user, const rq_tape *tape, const rq_op *op)
{
    const rq_model *m = user;
    return op->layer != UINT32_MAX && op->layer >= m->hp.n_layers / 2;
}

static uint32_t place_first(void *user, const rq_tape *tape, const rq_op *op)
{
    return 0;
}

static void plans_of_families_hold(void **state)
{
    for (uint32_t f = 0; f < N_FILES; f++) {
        rq_model *m = load(files[f]);
        for (uint32_t bucket = 1; bucket <= 512; bucket *= 8)
            for (uint32_t way = 0; way < 8; way++) {
                rq_tape_kind kind = way & 1 ? RQ_TAPE_TRUNK : RQ_TAPE_HEAD;
                if (kind == RQ_TAPE_HEAD && bucket > RQ_HEAD_ROWS) continue;
                rq_tape t;
                rq_tape_init(&t, bucket);
                t.persist_rows[RQ_PERSIST_HIDDEN] = 512;
                t.persist_rows[RQ_PERSIST_LOGITS] = RQ_HEAD_ROWS;
                t.persist_rows[RQ_PERSIST_SAMPLED] = N_SEQS;
                rq_model_build(m, kind, &t);
                assert_int_equal(rq_tape_check(&t, NULL), RQ_OK);
                uint32_t n = t.n_ops;
                if (way & 2) {
                    assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
                    if (kind == RQ_TAPE_TRUNK) assert_true(t.n_ops < n);
                }
                rq_split split;
                rq_plan plan;
                assert_int_equal(
                    rq_split_make(&t, 2, way & 4 ? place_second_half : place_first, m, &split, NULL), RQ_OK);
                assert_int_equal(rq_plan_make(&t, &split, 2, &plan, NULL), RQ_OK);
                check_barriers(&t, &split, &plan);
                check_memory(&t, &split, &plan);
                rq_plan_free(&plan);
                rq_split_free(&split);
                rq_tape_free(&t);
            }
        rq_model_free(m);
    }
}

typedef struct placed {
    rq_model *m;
    uint32_t split_layer;
} placed;

static uint32_t place_layer(void *user, uint32_t layer)
{
    const placed *p = user;
    return layer != UINT32_MAX && layer >= p->split_layer;
}

static void build(void *user, rq_tape_kind kind, rq_tape *tape)
{
    rq_model_build(((placed *)user)->m, kind, tape);
}

static rq_executor_params params_of(placed *p, rq_device *const *devices, uint32_t n_devices,
                                    uint32_t max_tokens, uint32_t *pages, uint32_t *where)
{
    rq_model *m = p->m;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        pages[g] = N_SEQS * MAX_PAGES;
        where[g] = 0;
    }
    rq_executor_params params = {.devices = devices,
                                 .n_devices = n_devices,
                                 .weights = m->weights,
                                 .n_weights = m->n_weights,
                                 .groups = m->groups,
                                 .group_pages = pages,
                                 .group_device = where,
                                 .states = m->states,
                                 .n_states = m->n_states,
                                 .n_embd = m->hp.n_embd,
                                 .n_vocab = m->hp.n_vocab,
                                 .build = build,
                                 .place = place_layer,
                                 .user = p};
    params.caps = (rq_step_caps){
        .max_tokens = max_tokens, .n_groups = m->n_groups, .n_seqs = N_SEQS, .max_pages = MAX_PAGES};
    return params;
}

enum { LENGTH = 12 };

/* Logits of two sequences in one step and one more token each. */
static float *logits_on(placed *p, rq_device *const *devices, uint32_t n_devices)
{
    uint32_t pages[RQ_MAX_GROUPS], where[RQ_MAX_GROUPS];
    rq_executor_params params = params_of(p, devices, n_devices, 16, pages, where);
    rq_executor *ex = NULL;
    rq_error err = {0};
    if (rq_executor_create(&params, &ex, &err) != RQ_OK) fail_msg("%s", err.text);
    driver d;
    assert_true(driver_open(&d, ex, &params));
    float *out = rq_calloc((size_t)(LENGTH + 2) * params.n_vocab, sizeof *out);
    const drive_piece first[] = {{0, LENGTH - 3}, {1, 3}}, second[] = {{1, 1}, {0, 1}};
    assert_int_equal(driver_run(&d, first, 2, out, NULL), RQ_OK);
    assert_int_equal(driver_run(&d, second, 2, out + (size_t)LENGTH * params.n_vocab, NULL), RQ_OK);
    driver_close(&d);
    rq_executor_free(ex);
    return out;
}

static void any_order_between_barriers(void **state)
{
    for (uint32_t f = 0; f < N_FILES; f++) {
        placed p = {.m = load(files[f]), .split_layer = UINT32_MAX};
        float *expected = NULL;
        for (uint32_t way = 0; way < 4; way++) {
            host_options options = {.shuffle = way * 77};
            rq_device *devices[2] = {host_open(&options), host_open(&options)};
            p.split_layer = way == 3 ? p.m->hp.n_layers / 2 : UINT32_MAX;
            float *got = logits_on(&p, devices, 2);
            if (expected) assert_memory_equal(expected, got, (LENGTH + 2) * p.m->hp.n_vocab * sizeof *got);
            if (expected)
                rq_free(got);
            else
                expected = got;
            for (uint32_t i = 0; i < 2; i++) devices[i]->backend->close(devices[i]);
        }
        rq_free(expected);
        rq_model_free(p.m);
    }
}

static rq_device *open_processor(void)
{
    rq_device_options options = {.n_threads = 2};
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_cpu.open(&options, &device, &err) != RQ_OK) fail_msg("%s", err.text);
    return device;
}

/* One processor and two of them, between which every activation is copied: the same bits. */
static void split_processors_have_the_same_bits(void **state)
{
    for (uint32_t f = 0; f < N_FILES; f++) {
        placed p = {.m = load(files[f]), .split_layer = UINT32_MAX};
        rq_device *devices[2] = {open_processor(), open_processor()};
        float *one = logits_on(&p, devices, 1);
        p.split_layer = p.m->hp.n_layers / 2;
        float *two = logits_on(&p, devices, 2);
        assert_memory_equal(one, two, (LENGTH + 2) * p.m->hp.n_vocab * sizeof *one);
        rq_free(one);
        rq_free(two);
        for (uint32_t i = 0; i < 2; i++) devices[i]->backend->close(devices[i]);
        rq_model_free(p.m);
    }
}

static void a_thousand_steps_allocate_nothing(void **state)
{
    for (uint32_t f = 0; f < N_FILES; f++) {
        placed p = {.m = load(files[f]), .split_layer = UINT32_MAX};
        rq_device *device = open_processor();
        uint32_t pages[RQ_MAX_GROUPS], where[RQ_MAX_GROUPS];
        rq_executor_params params = params_of(&p, &device, 1, 16, pages, where);
        rq_executor *ex = NULL;
        rq_error err = {0};
        if (rq_executor_create(&params, &ex, &err) != RQ_OK) fail_msg("%s", err.text);
        driver d;
        assert_true(driver_open(&d, ex, &params));
        rq_mem_fail_at(0);
        for (uint32_t i = 0; i < 1000; i++) {
            if (i % 100 == 0) d.lengths[0] = d.lengths[1] = 0;
            rq_step *step = driver_fill(&d, (drive_piece[]){{0, 1 + i % 2}, {1, 1}}, 2, i % 4 == 0);
            assert_non_null(step);
            assert_int_equal(rq_executor_submit(ex, step, NULL), RQ_OK);
            const float *logits;
            if (i % 2) assert_int_equal(rq_executor_wait(ex, step, &logits, NULL), RQ_OK);
        }
        assert_int_equal(rq_mem_count(), 0);
        driver_close(&d);
        rq_executor_free(ex);
        device->backend->close(device);
        rq_model_free(p.m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_of_families_hold),
        cmocka_unit_test(any_order_between_barriers),
        cmocka_unit_test(split_processors_have_the_same_bits),
        cmocka_unit_test(a_thousand_steps_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
