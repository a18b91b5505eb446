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

#define DRAFTS "../oracle-hf/hf-qwen35" /* has a block that drafts */

static const char *const files[] = {"llama",  "qwen2",        "qwen3",  "qwen3moe", "llama-Q4_K_M",
                                    "gemma3", "gemma4-dense", "qwen35", DRAFTS};
enum { N_FILES = sizeof files / sizeof *files, N_SEQS = 3, MAX_PAGES = 4, MOST_BUCKET = 512 };

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

/* A tape of the family, fused or not, on one device or two. Returns how many barriers its plan has. */
static uint32_t plan_holds(rq_model *m, rq_tape_kind kind, uint32_t bucket, bool fused, bool apart)
{
    const rq_step_caps caps = {.max_tokens = MOST_BUCKET, .n_seqs = N_SEQS};
    rq_tape t;
    rq_tape_init(&t, bucket);
    t.persist_rows[RQ_PERSIST_HIDDEN] = MOST_BUCKET;
    t.persist_rows[RQ_PERSIST_LOGITS] = RQ_HEAD_ROWS;
    t.persist_rows[RQ_PERSIST_SAMPLED] = N_SEQS;
    t.persist_rows[RQ_PERSIST_TRAIL] = m->mtp_group.n_layers != 0 ? rq_trail_rows(&caps) : 0;
    rq_model_build(m, kind, &t);
    assert_int_equal(rq_tape_check(&t, NULL), RQ_OK);
    uint32_t n = t.n_ops, n_barriers = 0;
    if (fused) assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
    if (fused && kind != RQ_TAPE_HEAD) assert_true(t.n_ops < n);
    rq_split split;
    rq_plan plan;
    assert_int_equal(rq_split_make(&t, 2, apart ? place_second_half : place_first, m, &split, NULL), RQ_OK);
    assert_int_equal(rq_plan_make(&t, &split, 2, &plan, NULL), RQ_OK);
    check_barriers(&t, &split, &plan);
    check_memory(&t, &split, &plan);
    for (uint32_t i = 0; i < t.n_ops; i++) n_barriers += plan.barrier[i];
    rq_plan_free(&plan);
    rq_split_free(&split);
    rq_tape_free(&t);
    return n_barriers;
}

static void plans_of_families_hold(void **state)
{
    static const rq_tape_kind kinds[] = {RQ_TAPE_TRUNK, RQ_TAPE_HEAD, RQ_TAPE_FOLLOW, RQ_TAPE_DRAFT};
    for (uint32_t f = 0; f < N_FILES; f++) {
        rq_model *m = load(files[f]);
        bool drafts = m->mtp_group.n_layers != 0;
        assert_int_equal(drafts, strcmp(files[f], DRAFTS) == 0);
        for (uint32_t k = 0; k < (drafts ? 4 : 2); k++) {
            uint32_t most = kinds[k] == RQ_TAPE_HEAD    ? RQ_HEAD_ROWS
                            : kinds[k] == RQ_TAPE_DRAFT ? RQ_NARROW_BUCKET
                                                        : MOST_BUCKET;
            for (uint32_t bucket = 1; bucket <= most; bucket *= 8)
                for (uint32_t way = 0; way < 4; way++) {
                    uint32_t n = plan_holds(m, kinds[k], bucket, way & 1, way & 2);
                    if (kinds[k] != RQ_TAPE_HEAD && !(way & 2)) assert_true(n > 4);
                }
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

/* ---- a block that drafts --------------------------------------------------------------------------------- */

typedef struct drafting {
    rq_executor *ex;
    driver d;
    float *out; /* every row of logits so far */
    uint32_t n_vocab, n;
} drafting;

static void keep_rows(drafting *x, const float *logits, uint32_t rows)
{
    size_t n = (size_t)rows * x->n_vocab;
    memcpy(x->out + x->n, logits, n * sizeof *logits);
    x->n += (uint32_t)n;
}

static void prompt(drafting *x, uint32_t seq, uint32_t n)
{
    assert_int_equal(driver_run(&x->d, &(drive_piece){seq, n}, 1, x->out + x->n, NULL), RQ_OK);
    x->n += n * x->n_vocab;
    assert_int_equal(rq_executor_last(x->ex, seq, n - 1, NULL), RQ_OK);
}

static bool add_run(const drafting *x, rq_step *step, uint32_t seq, const int32_t *ids, uint32_t n,
                    uint32_t start)
{
    const driver *d = &x->d;
    const uint32_t *tables[RQ_MAX_GROUPS];
    for (uint32_t g = 0; g < d->n_groups; g++) tables[g] = d->pages + (g * d->n_seqs + seq) * d->max_pages;
    return rq_step_add_run(step, seq, ids, n, start, tables) >= 0;
}

enum { PASSES = 3 };

/* Both sequences guess, then what they guessed is checked; two tokens of the one and all of the other count. */
static void guess_and_check(drafting *x, uint32_t round)
{
    int32_t ids[2][1 + PASSES], after[2] = {-1, -1};
    rq_error err = {0};
    for (uint32_t s = 0; s < 2; s++) ids[s][0] = drive_token(s, x->d.lengths[s], x->n_vocab);
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const float *logits = NULL;
        int32_t guesses[2];
        rq_step *step = rq_executor_draft_begin(x->ex);
        for (uint32_t s = 0; s < 2; s++)
            assert_true(add_run(x, step, s, &ids[s][pass], 1, x->d.lengths[s] + pass));
        if (rq_executor_draft(x->ex, step, after, guesses, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
        keep_rows(x, logits, 2);
        for (uint32_t s = 0; s < 2; s++) {
            ids[s][pass + 1] = guesses[s];
            after[s] = (int32_t)s;
        }
    }
    static const uint32_t counted[2] = {2, PASSES + 1};
    rq_step *step = rq_executor_begin(x->ex, NULL);
    assert_non_null(step);
    for (uint32_t s = 0; s < 2; s++) {
        assert_true(add_run(x, step, s, ids[s], PASSES + 1, x->d.lengths[s]));
        assert_true(rq_step_set_draft(step, round == 0 ? 0 : counted[s], PASSES + 1));
        for (uint32_t i = 0; i <= PASSES; i++) rq_step_add_row(step, s * (PASSES + 1) + i, s);
    }
    const float *logits = NULL;
    if (rq_executor_submit(x->ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_wait(x->ex, step, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
    keep_rows(x, logits, 2 * (PASSES + 1));
    for (uint32_t s = 0; s < 2; s++) {
        assert_int_equal(rq_executor_last(x->ex, s, s * (PASSES + 1) + counted[s] - 1, NULL), RQ_OK);
        x->d.lengths[s] += counted[s];
    }
}

enum { DRAFT_ROWS = LENGTH + 3 + 3 * 2 * (PASSES + PASSES + 1) };

/* Prompts through a wide and a narrow bucket, then three rounds of drafts: every row of logits. */
static float *drafts_on(placed *p, rq_device *const *devices, uint32_t n_devices)
{
    uint32_t pages[RQ_MAX_GROUPS], where[RQ_MAX_GROUPS];
    rq_cache_group groups[RQ_MAX_GROUPS];
    rq_state_group states[RQ_MAX_STATE_GROUPS];
    rq_executor_params params = params_of(p, devices, n_devices, 16, pages, where);
    uint32_t n = p->m->n_groups;
    memcpy(groups, p->m->groups, n * sizeof *groups);
    groups[n] = p->m->mtp_group; /* the block's cache is the group behind those of the trunk */
    pages[n] = N_SEQS * MAX_PAGES;
    where[n] = 0;
    params.groups = groups;
    params.caps.n_groups = n + 1;
    for (uint32_t i = 0; i < params.n_states; i++) {
        states[i] = params.states[i];
        states[i].n_pending = PASSES + 1;
    }
    params.states = states;
    params.drafts = true;
    rq_error err = {0};
    drafting x = {.n_vocab = params.n_vocab};
    if (rq_executor_create(&params, &x.ex, &err) != RQ_OK) fail_msg("%s", err.text);
    assert_true(driver_open(&x.d, x.ex, &params));
    x.out = rq_calloc((size_t)DRAFT_ROWS * x.n_vocab, sizeof *x.out);
    prompt(&x, 0, LENGTH);
    prompt(&x, 1, 3);
    for (uint32_t round = 0; round < 3; round++) guess_and_check(&x, round);
    assert_int_equal(x.n, DRAFT_ROWS * x.n_vocab);
    driver_close(&x.d);
    rq_executor_free(x.ex);
    return x.out;
}

/* As above for everything that drafts run: trunk, head, FOLLOW wide and narrow, DRAFT, checks. */
static void drafts_in_any_order(void **state)
{
    placed p = {.m = load(DRAFTS), .split_layer = UINT32_MAX};
    float *expected = NULL;
    for (uint32_t way = 0; way < 8; way++) {
        host_options options = {.shuffle = way * 77, .no_fused = way & 1};
        rq_device *devices[2] = {host_open(&options), host_open(&options)};
        p.split_layer = way == 7 ? p.m->hp.n_layers / 2 : UINT32_MAX;
        float *got = drafts_on(&p, devices, 2);
        if (expected) assert_memory_equal(expected, got, DRAFT_ROWS * p.m->hp.n_vocab * sizeof *got);
        if (expected)
            rq_free(got);
        else
            expected = got;
        for (uint32_t i = 0; i < 2; i++) devices[i]->backend->close(devices[i]);
    }
    rq_free(expected);
    rq_model_free(p.m);
}

/* Of the file's tensors those that a step of T tokens with a row reads, each once; of experts as many as T tokens can
 * name. The table of embeddings is read where it makes the logits too. */
static double bytes_of_file(const rq_model *m, uint32_t bucket)
{
    double sum = 0;
    bool own_output = rq_gguf_find_tensor(m->gguf, "output.weight") != NULL;
    double named = (double)bucket * m->hp.n_expert_used / (m->hp.n_expert ? m->hp.n_expert : 1);
    for (uint64_t i = 0; i < rq_gguf_n_tensors(m->gguf); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(m->gguf, i);
        if (own_output && strcmp(t->name, "token_embd.weight") == 0) continue;
        bool experts = strstr(t->name, "_exps.") != NULL;
        sum += (double)t->nbytes * (experts && named < 1 ? named : 1);
    }
    return sum;
}

static void weights_read_are_counted(void **state)
{
    for (uint32_t f = 0; f < N_FILES; f++) {
        if (strcmp(files[f], DRAFTS) == 0) continue; /* not all of its tensors are the trunk's */
        placed p = {.m = load(files[f]), .split_layer = UINT32_MAX};
        host_options options = {.idle = true};
        rq_device *device = host_open(&options);
        uint32_t pages[RQ_MAX_GROUPS], where[RQ_MAX_GROUPS];
        rq_executor_params params = params_of(&p, &device, 1, 8, pages, where);
        for (uint32_t way = 0; way < 2; way++) {
            params.no_fusion = way;
            rq_executor *ex = NULL;
            rq_error err = {0};
            if (rq_executor_create(&params, &ex, &err) != RQ_OK) fail_msg("%s", err.text);
            driver d;
            assert_true(driver_open(&d, ex, &params));
            uint64_t before = 0;
            for (uint32_t bucket = 1; bucket <= 8; bucket *= 8) {
                rq_step *step = driver_fill(&d, &(drive_piece){0, bucket}, 1, true);
                assert_int_equal(rq_executor_submit(ex, step, NULL), RQ_OK);
                uint64_t now = rq_executor_count(ex).weight_bytes;
                double want = bytes_of_file(p.m, bucket), got = (double)(now - before);
                /* tables that the file does not have, of rotary frequencies, make the rest */
                if (!(got >= want && got < 1.01 * want))
                    fail_msg("%s, %u tokens: %.0f bytes are counted, the file has %.0f", files[f], bucket,
                             got, want);
                before = now;
            }
            driver_close(&d);
            rq_executor_free(ex);
        }
        device->backend->close(device);
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
        cmocka_unit_test(drafts_in_any_order),
        cmocka_unit_test(weights_read_are_counted),
        cmocka_unit_test(split_processors_have_the_same_bits),
        cmocka_unit_test(a_thousand_steps_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
