/* The executor over the reference: the same bits however a pass is fused, ordered, split and cut into steps.
 */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "tests/ground/drive.h"
#include "tests/ground/host.h"
#include "tests/ground/synth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TOKENS = 128, N_SEQS = 3, MAX_PAGES = 4, LENGTH = 100 };

static const synth_config *const configs[] = {&synth_llama, &synth_qwen2, &synth_qwen3, &synth_moe,
                                              &synth_windows};
enum { N_CONFIGS = sizeof configs / sizeof *configs };

/* How a run is made; the zero value is one plain device, fused. */
typedef struct variant {
    host_options device[2];
    uint32_t n_devices;
    uint32_t split_layer; /* 0: none */
    bool cache_elsewhere; /* the last group's pool on device 1 */
    bool ends_elsewhere;  /* the embedding and the experts on device 1 */
    bool no_fusion;
} variant;

/* An executor with its devices and a driver. */
typedef struct rig {
    rq_device *devices[2];
    rq_executor *ex;
    rq_executor_params params;
    driver drive;
} rig;

static uint32_t experts_on_second(void *user, uint32_t layer)
{
    return 1;
}

static uint32_t input_on_second(void *user)
{
    return 1;
}

static rq_status rig_open(rig *r, synth_model *m, const variant *v, rq_error *err)
{
    memset(r, 0, sizeof *r);
    uint32_t n = v->n_devices ? v->n_devices : 1;
    for (uint32_t d = 0; d < n; d++) {
        r->devices[d] = host_open(&v->device[d]);
        assert_non_null(r->devices[d]);
    }
    m->c.split_layer = v->split_layer ? v->split_layer : UINT32_MAX;
    m->group_device[m->n_groups - 1] = v->cache_elsewhere;
    r->params = synth_params(m, r->devices, n, MAX_TOKENS, N_SEQS, MAX_PAGES);
    r->params.no_fusion = v->no_fusion;
    r->params.place_experts = v->ends_elsewhere ? experts_on_second : NULL;
    r->params.place_input = v->ends_elsewhere ? input_on_second : NULL;
    rq_status status = rq_executor_create(&r->params, &r->ex, err);
    if (status == RQ_OK) assert_true(driver_open(&r->drive, r->ex, &r->params));
    return status;
}

static void rig_close(rig *r)
{
    driver_close(&r->drive);
    rq_executor_free(r->ex);
    for (uint32_t d = 0; d < 2; d++) {
        if (!r->devices[d]) continue;
        assert_int_equal(host_allocated(r->devices[d]), 0);
        r->devices[d]->backend->close(r->devices[d]);
    }
}

/* Logits of LENGTH tokens of sequence `seq`, fed in pieces of `piece`. */
static float *logits_of(rig *r, uint32_t seq, uint32_t piece)
{
    uint32_t n_vocab = r->drive.n_vocab;
    float *out = rq_calloc((size_t)LENGTH * n_vocab, sizeof *out);
    r->drive.lengths[seq] = 0;
    for (uint32_t at = 0; at < LENGTH;) {
        uint32_t n = LENGTH - at < piece ? LENGTH - at : piece;
        rq_error err = {0};
        rq_status status = driver_run(&r->drive, &(drive_piece){seq, n}, 1, out + (size_t)at * n_vocab, &err);
        if (status != RQ_OK) fail_msg("%s", err.text);
        at += n;
    }
    return out;
}

static void same(const float *a, const float *b, uint32_t n_vocab, uint32_t rows)
{
    assert_memory_equal(a, b, (size_t)rows * n_vocab * sizeof *a);
}

static const variant plain;

static void every_way_has_the_same_bits(void **state)
{
    const variant variants[] = {
        {.no_fusion = true},
        {.device = {{.no_fused = true}}},
        {.device = {{.shuffle = 1}}},
        {.device = {{.shuffle = 2}}, .no_fusion = true},
        {.device = {{.hidden = true}}},
        {.n_devices = 2, .split_layer = 1},
        {.n_devices = 2, .split_layer = 1, .cache_elsewhere = true, .device = {{0}, {.hidden = true}}},
        {.n_devices = 2, .split_layer = 1, .device = {{.hidden = true}, {.hidden = true, .shuffle = 3}}},
        {.n_devices = 2, .cache_elsewhere = true, .device = {{.shuffle = 4}, {.no_fused = true}}},
        {.n_devices = 2, .split_layer = 1, .ends_elsewhere = true},
        {.n_devices = 2,
         .ends_elsewhere = true,
         .device = {{.hidden = true}, {.hidden = true, .shuffle = 5}}},
    };
    for (uint32_t c = 0; c < N_CONFIGS; c++) {
        synth_model m;
        synth_make(&m, configs[c], 5);
        rig base;
        assert_int_equal(rig_open(&base, &m, &plain, NULL), RQ_OK);
        const uint32_t pieces[] = {1, 7};
        for (uint32_t seq = 0; seq < 2; seq++) { /* other tokens, other pages */
            float *whole = logits_of(&base, seq, 128);
            for (uint32_t i = 0; i < LENGTH * m.c.n_vocab; i++) assert_true(whole[i] == whole[i]);
            for (uint32_t p = 0; p < 2; p++) {
                float *got = logits_of(&base, seq, pieces[p]);
                same(whole, got, m.c.n_vocab, LENGTH);
                rq_free(got);
            }
            for (uint32_t v = 0; v < sizeof variants / sizeof *variants; v++) {
                rig r;
                rq_error err = {0};
                if (rig_open(&r, &m, &variants[v], &err) != RQ_OK) fail_msg("variant %u: %s", v, err.text);
                rq_executor_info info;
                rq_executor_describe(r.ex, &info);
                if (variants[v].n_devices == 2) assert_true(info.n_segments > 2 && info.n_copies > 0);
                if (variants[v].ends_elsewhere && configs[c] == &synth_moe && !variants[v].split_layer)
                    assert_true(info.n_round_trips >= m.c.n_layers); /* of the experts */
                float *got = logits_of(&r, seq, seq ? 128 : 50);
                same(whole, got, m.c.n_vocab, LENGTH);
                rq_free(got);
                rig_close(&r);
            }
            rq_free(whole);
        }
        rig_close(&base);
        synth_free(&m);
    }
}

/* Several sequences in one step: each has the logits it has alone. */
static void sequences_do_not_touch(void **state)
{
    for (uint32_t c = 0; c < N_CONFIGS; c++) {
        synth_model m;
        synth_make(&m, configs[c], 6);
        uint32_t n_vocab = m.c.n_vocab;
        rig r;
        assert_int_equal(rig_open(&r, &m, &plain, NULL), RQ_OK);
        float *alone[N_SEQS], *out = rq_calloc(MAX_TOKENS * n_vocab, sizeof *out);
        for (uint32_t s = 0; s < N_SEQS; s++) {
            alone[s] = logits_of(&r, s, 128);
            r.drive.lengths[s] = 0;
        }
        synth_rng rng = {c + 1};
        for (uint32_t round = 0; round < 12; round++) {
            drive_piece pieces[N_SEQS];
            uint32_t start[N_SEQS], n = 0, row = 0;
            for (uint32_t s = 0; s < N_SEQS; s++) {
                uint32_t left = LENGTH - r.drive.lengths[s], max = round % 2 ? 3 : 30;
                uint32_t count = synth_below(&rng, (left < max ? left : max) + 1);
                if (!count) continue;
                start[n] = r.drive.lengths[s];
                pieces[n++] = (drive_piece){s, count};
            }
            if (!n) continue;
            assert_int_equal(driver_run(&r.drive, pieces, n, out, NULL), RQ_OK);
            for (uint32_t i = 0; i < n; i++) {
                same(alone[pieces[i].seq] + start[i] * n_vocab, out + row * n_vocab, n_vocab,
                     pieces[i].count);
                row += pieces[i].count;
            }
        }
        for (uint32_t s = 0; s < N_SEQS; s++) rq_free(alone[s]);
        rq_free(out);
        rig_close(&r);
        synth_free(&m);
    }
}

/* ---- random passes ------------------------------------------------------------------------------------- */

enum { WIDTH = 32, RANDOM_OPS = 60 };

typedef struct random_pass {
    synth_model m; /* its callbacks are replaced */
    uint64_t seed;
    uint32_t split_mask;
} random_pass;

/* Operations at random, many of them in the order of a pattern that may or may not fuse, read by anybody. */
static void random_build(void *user, rq_tape_kind kind, rq_tape *t)
{
    const random_pass *p = user;
    if (kind == RQ_TAPE_HEAD) {
        synth_build((void *)&p->m, kind, t);
        return;
    }
    synth_rng rng = {p->seed};
    const uint32_t square[4] = {WIDTH, WIDTH, 1, 1}, row[4] = {WIDTH, 1, 1, 1}, freq[4] = {4, 1, 1, 1};
    rq_ref w[3], b = rq_tape_weight(t, 3, RQ_TYPE_F32, row, "b"),
                 f = rq_tape_weight(t, 4, RQ_TYPE_F32, freq, "f");
    for (uint32_t i = 0; i < 3; i++) w[i] = rq_tape_weight(t, i, RQ_TYPE_F32, square, "w");
    rq_ref pool[RANDOM_OPS + 8];
    uint32_t n = 0;
    t->layer = UINT32_MAX;
    pool[n++] = rq_op_embed(t, w[0]);
    t->layer = 0;
#define ANY (pool[n < 6 || synth_below(&rng, 4) == 0 ? synth_below(&rng, n) : n - 1 - synth_below(&rng, 5)])
    for (uint32_t i = 0; i < RANDOM_OPS; i++) {
        if (synth_below(&rng, 12) == 0) t->layer++;
        rq_ref x = ANY, y = ANY;
        switch (synth_below(&rng, 10)) {
        case 0:
        case 1:
            pool[n++] = rq_op_rms_norm(t, x, synth_below(&rng, 2) ? b : 0, 1e-3f);
            break;
        case 2:
        case 3:
            y = pool[n - 1];
            pool[n++] = rq_op_matmul(t, w[synth_below(&rng, 3)], y);
            break;
        case 4:
            pool[n++] = rq_op_add(t, x, y);
            break;
        case 5:
            pool[n++] = rq_op_glu(t, x, y, RQ_ACT_GELU_TANH);
            break;
        case 6:
            pool[n++] = rq_op_add(t, rq_op_matmul(t, w[0], x), synth_below(&rng, 2) ? b : y);
            break;
        case 7: {
            rq_ref h = rq_op_rms_norm(t, x, b, 1e-3f);
            rq_ref gate = rq_op_matmul(t, w[0], h), up = rq_op_matmul(t, w[1], synth_below(&rng, 5) ? h : y);
            bool turned = synth_below(&rng, 2);
            pool[n++] = rq_op_glu(t, turned ? up : gate, turned ? gate : up, RQ_ACT_SILU);
            break;
        }
        case 8: {
            const rq_rotation_block blocks[] = {{0, 1, 2, false}, {2, 2, 1, false}, {4, 1, 4, true}};
            rq_ref h = rq_tape_view(t, x, 0, 8, 4, 8, t->bucket, WIDTH);
            rq_ref data = rq_tape_weight(t, 0, RQ_TYPE_F32, (uint32_t[4]){10, 2, 1, 1}, "w");
            rq_ref mean = rq_tape_weight(t, 3, RQ_TYPE_F32, (uint32_t[4]){8, 4, 1, 1}, "b");
            rq_ref lambda = synth_below(&rng, 2) ? mean : 0;
            h = rq_op_rotate(t, h, data, mean, lambda, blocks, 3, synth_below(&rng, 2));
            pool[n++] = rq_tape_view(t, h, 0, WIDTH, t->bucket, WIDTH, 1, 0);
            break;
        }
        default: {
            rq_ref q = rq_tape_view(t, x, 0, 8, 4, 8, t->bucket, WIDTH);
            rq_ref k = rq_tape_view(t, y, 0, 8, 2, 8, t->bucket, WIDTH);
            rq_ref v = rq_tape_view(t, x, 16, 8, 2, 8, t->bucket, WIDTH);
            rq_pairing pairing = synth_below(&rng, 2) ? RQ_ROPE_NEOX : RQ_ROPE_NORM;
            if (synth_below(&rng, 2)) q = rq_op_rms_norm(t, q, 0, 1e-3f);
            if (synth_below(&rng, 2)) k = rq_op_rms_norm(t, k, 0, 1e-3f);
            q = rq_op_rope(t, q, f, 8, pairing, 1);
            k = rq_op_rope(t, k, f, 8, pairing, 1);
            rq_ref cache = rq_tape_cache(t, 0, synth_below(&rng, 2));
            rq_op_kv_write(t, cache, k, v);
            bool coded = rq_group_is_coded(&p->m.groups[0]) && t->bucket > RQ_NARROW_BUCKET;
            if (coded) rq_op_kv_encode(t, cache);
            pool[n++] = rq_op_attend(t, cache, q, 8, 0.3f, 0);
        }
        }
    }
    rq_ref sum = pool[n - 1];
    for (uint32_t i = 0; i < n; i += 3) sum = rq_op_add(t, sum, rq_op_rms_norm(t, pool[i], 0, 1e-3f));
    t->layer = UINT32_MAX;
    rq_op_copy(t, sum, rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, WIDTH, RQ_MAX_BUCKET));
#undef ANY
}

static uint32_t random_place(void *user, uint32_t layer)
{
    const random_pass *p = user;
    return layer == UINT32_MAX ? 0 : p->split_mask >> (layer % 32) & 1;
}

static void random_passes_have_the_same_bits(void **state)
{
    uint32_t fused = 0, plain_ops = 0, copies = 0;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        random_pass p = {.seed = seed * 7919};
        synth_config c = synth_llama;
        c.n_embd = WIDTH;
        c.dim = 8;
        c.n_vocab = WIDTH;
        if (seed % 2) c.form_k = RQ_KV_C2, c.recent_pages = 1;
        synth_make(&p.m, &c, seed);
        /* weights 0 and 1 are square; 2 and 3 become a square and a row, 4 the frequencies */
        rq_weight list[5] = {p.m.weights[0], p.m.weights[1], p.m.weights[1], p.m.weights[2], p.m.weights[3]};
        float *expected = NULL;
        for (uint32_t way = 0; way < 5; way++) {
            host_options options = {.shuffle = way > 1 ? seed + way : 0, .hidden = way == 4};
            rq_device *devices[2] = {host_open(&options), host_open(&options)};
            p.split_mask = way > 2 ? (uint32_t)(seed * 2654435761u) : 0;
            rq_executor_params params = synth_params(&p.m, devices, 2, 16, N_SEQS, MAX_PAGES);
            params.weights = list;
            params.n_weights = 5;
            params.build = random_build;
            params.place = random_place;
            params.user = &p;
            params.no_fusion = way == 0;
            rq_error err = {0};
            rq_executor *ex;
            if (rq_executor_create(&params, &ex, &err) != RQ_OK) fail_msg("seed %d: %s", (int)seed, err.text);
            rq_executor_info info;
            rq_executor_describe(ex, &info);
            if (way == 0) plain_ops = info.n_ops_trunk;
            if (way == 1) fused += plain_ops - info.n_ops_trunk;
            copies += info.n_copies;
            driver d;
            assert_true(driver_open(&d, ex, &params));
            float *out = rq_calloc(22 * WIDTH, sizeof *out);
            assert_int_equal(driver_run(&d, &(drive_piece){0, 11}, 1, out, NULL), RQ_OK);
            assert_int_equal(driver_run(&d, (drive_piece[]){{1, 3}, {0, 8}}, 2, out + 11 * WIDTH, NULL),
                             RQ_OK);
            if (!expected)
                expected = out;
            else {
                assert_memory_equal(expected, out, 22 * WIDTH * sizeof *out);
                rq_free(out);
            }
            driver_close(&d);
            rq_executor_free(ex);
            for (uint32_t i = 0; i < 2; i++) devices[i]->backend->close(devices[i]);
        }
        rq_free(expected);
        synth_free(&p.m);
    }
    assert_true(copies > 100 && fused > 150);
}

/* ---- stepping ------------------------------------------------------------------------------------------ */

static void run_a_thousand(const variant *idle)
{
    synth_model m;
    synth_make(&m, &synth_moe, 1);
    rig r;
    assert_int_equal(rig_open(&r, &m, idle, NULL), RQ_OK);
    rq_mem_fail_at(0);
    for (uint32_t i = 0; i < 1000; i++) {
        if (i % 100 == 0) r.drive.lengths[0] = r.drive.lengths[1] = 0;
        rq_step *step = driver_fill(&r.drive, (drive_piece[]){{0, 1 + i % 2}, {1, 1}}, 2, true);
        assert_non_null(step);
        assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_OK);
        const float *logits;
        if (i % 3) assert_int_equal(rq_executor_wait(r.ex, step, &logits, NULL), RQ_OK);
        if (i % 64 == 5) assert_int_equal(rq_executor_copy_page(r.ex, 0, 1, 2, NULL), RQ_OK);
        if (i % 64 == 6)
            assert_int_equal(rq_executor_head(r.ex, step, &(rq_row){1, 1}, 1, &logits, NULL), RQ_OK);
    }
    assert_int_equal(rq_mem_count(), 0);
    rig_close(&r);
    synth_free(&m);
}

static void a_thousand_steps_allocate_nothing(void **state)
{
    const variant idle = {.device = {{.idle = true}}},
                  two = {.n_devices = 2,
                         .split_layer = 1,
                         .ends_elsewhere = true,
                         .device = {{.idle = true, .hidden = true}, {.idle = true, .hidden = true}}};
    run_a_thousand(&idle);
    run_a_thousand(&two);
}

/* A step whose tokens are what the step before it sampled, both in flight at once. */
static void two_steps_in_flight(void **state)
{
    synth_model m;
    synth_make(&m, &synth_qwen3, 9);
    const uint32_t n = m.c.n_vocab;
    for (uint32_t hidden = 0; hidden < 3;
         hidden++) { /* the last: what is sampled on one device is read on another */
        const variant v = {.device = {{.hidden = hidden == 1}, {.hidden = true}},
                           .n_devices = 1 + (hidden == 2),
                           .ends_elsewhere = hidden == 2};
        rig r;
        assert_int_equal(rig_open(&r, &m, &v, NULL), RQ_OK);
        const uint32_t *table[1] = {r.drive.pages};
        rq_step *a = rq_executor_begin(r.ex, NULL);
        assert_true(rq_step_add_edit(a, 0, RQ_PAGE_EXACT, 0, 0, table[0][0]));
        assert_int_equal(rq_step_add_run(a, 0, (int32_t[]){3, 5}, 2, 0, table), 0);
        assert_true(rq_step_add_row(a, 1, 2));
        assert_int_equal(rq_executor_submit(r.ex, a, NULL), RQ_OK);
        rq_step *b = rq_executor_begin(r.ex, NULL);
        assert_ptr_not_equal(a, b);
        assert_int_equal(rq_step_add_run(b, 0, (int32_t[]){-1 - 2}, 1, 2, table), 0);
        assert_true(rq_step_add_row(b, 0, 2));
        assert_int_equal(rq_executor_submit(r.ex, b, NULL), RQ_OK);
        const float *la, *lb;
        assert_int_equal(rq_executor_wait(r.ex, a, &la, NULL), RQ_OK);
        assert_int_equal(rq_executor_wait(r.ex, b, &lb, NULL), RQ_OK);
        float keep_a[64], keep_b[64];
        memcpy(keep_a, la, n * 4);
        memcpy(keep_b, lb, n * 4);
        int32_t best = 0;
        for (uint32_t i = 0; i < n; i++) best = la[i] > la[best] ? (int32_t)i : best;

        /* the same token by token, in another sequence, with the id given */
        const uint32_t *other[1] = {r.drive.pages + MAX_PAGES};
        const int32_t ids[3] = {3, 5, best};
        for (uint32_t i = 0; i < 3; i++) {
            rq_step *s = rq_executor_begin(r.ex, NULL);
            if (i == 0) assert_true(rq_step_add_edit(s, 0, RQ_PAGE_EXACT, 1, 0, other[0][0]));
            assert_int_equal(rq_step_add_run(s, 1, &ids[i], 1, i, other), 0);
            assert_true(rq_step_add_row(s, 0, 1));
            assert_int_equal(rq_executor_submit(r.ex, s, NULL), RQ_OK);
            const float *l;
            assert_int_equal(rq_executor_wait(r.ex, s, &l, NULL), RQ_OK);
            if (i == 1) assert_memory_equal(l, keep_a, n * 4);
            if (i == 2) assert_memory_equal(l, keep_b, n * 4);
        }
        rig_close(&r);
    }
    synth_free(&m);
}

/* A page is copied and the sequence goes on in the copy. */
static void copied_pages_hold_the_same(void **state)
{
    for (uint32_t hidden = 0; hidden < 2; hidden++) {
        synth_model m;
        synth_make(&m, &synth_llama, 3);
        const variant v = {.device = {{.hidden = hidden}}};
        rig r;
        assert_int_equal(rig_open(&r, &m, &v, NULL), RQ_OK);
        uint32_t n = m.c.n_vocab;
        float *expected = logits_of(&r, 0, 50), *out = rq_calloc(LENGTH * n, sizeof *out);
        r.drive.lengths[0] = 0;
        assert_int_equal(driver_run(&r.drive, &(drive_piece){0, 70}, 1, out, NULL), RQ_OK);
        uint32_t from = r.drive.pages[1], to = r.drive.pages[2 * MAX_PAGES + 3];
        assert_int_equal(rq_executor_copy_page(r.ex, 0, from, to, NULL), RQ_OK);
        r.drive.pages[1] = to;
        rq_step *step = rq_executor_begin(r.ex, NULL); /* a step of edits only */
        assert_true(rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, 1, to));
        assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_OK);
        assert_int_equal(driver_run(&r.drive, &(drive_piece){0, 30}, 1, out + 70 * n, NULL), RQ_OK);
        same(expected, out, n, LENGTH);
        assert_int_equal(rq_executor_copy_page(r.ex, 0, 0, N_SEQS * MAX_PAGES, NULL), RQ_ERR_ARGUMENT);
        rq_free(expected);
        rq_free(out);
        rig_close(&r);
        synth_free(&m);
    }
}

static void profile_names_every_operation(void **state)
{
    synth_model m;
    synth_make(&m, &synth_moe, 3);
    rig r;
    const variant v = {.n_devices = 2, .split_layer = 1};
    assert_int_equal(rig_open(&r, &m, &v, NULL), RQ_OK);
    rq_executor_info info;
    rq_executor_describe(r.ex, &info);
    rq_op_time times[200];
    uint32_t n;
    rq_step *step = driver_fill(&r.drive, &(drive_piece){0, 1}, 1, true);
    assert_int_equal(rq_executor_profile(r.ex, step, times, 200, &n, NULL), RQ_OK);
    assert_int_equal(n, info.n_ops_trunk + info.n_ops_head);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(times[i].ns > 0);
        rq_op_cost cost = rq_op_cost_of(times[i].tape, times[i].op, m.groups, 64);
        assert_true(cost.bytes_read > 0 && cost.bytes_written > 0);
    }
    step = driver_fill(&r.drive, &(drive_piece){0, 1}, 1, true);
    assert_int_equal(rq_executor_profile(r.ex, step, times, 7, &n, NULL), RQ_OK);
    assert_int_equal(n, 7);
    rig_close(&r);
    synth_free(&m);
}

/* ---- memory and errors --------------------------------------------------------------------------------- */

static void plan_equals_fact(void **state)
{
    for (uint32_t c = 0; c < N_CONFIGS; c++) {
        synth_model m;
        synth_make(&m, configs[c], 3);
        const variant v = {.n_devices = 2, .split_layer = 1};
        rig r;
        assert_int_equal(rig_open(&r, &m, &v, NULL), RQ_OK);
        rq_executor_info info;
        rq_executor_describe(r.ex, &info);
        assert_int_equal(host_allocated(r.devices[0]) + host_allocated(r.devices[1]),
                         info.arena_bytes + info.cache_bytes + info.persist_bytes);
        uint64_t pages = 0;
        for (uint32_t g = 0; g < m.n_groups; g++)
            pages += N_SEQS * MAX_PAGES * (rq_page_layout_of(&m.groups[g]).page_bytes + 4);
        assert_int_equal(info.cache_bytes, pages);
        rig_close(&r);
        synth_free(&m);
    }
}

static void failures_leave_nothing(void **state)
{
    synth_model m;
    synth_make(&m, &synth_llama, 3);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint64_t n = 1;; n += kind ? 1 : 1 + n / 20) {
            host_options options = {.hidden = true};
            rq_device *devices[2] = {host_open(&options), host_open(&options)};
            m.c.split_layer = 1;
            rq_executor_params params = synth_params(&m, devices, 2, 8, N_SEQS, MAX_PAGES);
            int64_t alive = rq_mem_alive();
            rq_executor *ex = NULL;
            rq_error err = {0};
            if (kind) {
                host_fail_at(devices[0], n);
                host_fail_at(devices[1], n);
            } else
                rq_mem_fail_at(n);
            rq_status status = rq_executor_create(&params, &ex, &err);
            rq_mem_fail_at(0);
            if (status == RQ_OK)
                rq_executor_free(ex);
            else {
                assert_int_equal(status, RQ_ERR_MEMORY);
                assert_null(ex);
                assert_true(err.text[0]);
            }
            assert_int_equal(rq_mem_alive(), alive);
            for (uint32_t d = 0; d < 2; d++) {
                assert_int_equal(host_allocated(devices[d]), 0);
                devices[d]->backend->close(devices[d]);
            }
            if (status == RQ_OK) {
                assert_true(n > 20);
                break;
            }
        }
    synth_free(&m);
}

/* What is wrong with a description of a model is said, whatever it is. */
static void bad_descriptions(void **state)
{
    for (uint32_t kase = 0; kase < 13; kase++) {
        synth_model m;
        synth_make(&m, &synth_llama, 3);
        host_options options = {.refuse = kase == 0 ? RQ_OP_ATTEND : 0};
        rq_device *device = host_open(&options);
        rq_executor_params p = synth_params(&m, &device, 1, 8, N_SEQS, MAX_PAGES);
        rq_executor *ex = NULL;
        rq_status expected = RQ_ERR_ARGUMENT;
        if (kase == 0) expected = RQ_ERR_UNSUPPORTED;
        if (kase == 1) p.caps.max_tokens = 12;
        if (kase == 2) p.caps.max_tokens = 4096;
        if (kase == 3) p.n_devices = 0;
        if (kase == 4) m.group_device[0] = 1;
        if (kase == 5) m.c.split_layer = 1; /* device 1 of 1 */
        if (kase == 6) m.weights[13].bytes -= 4, expected = RQ_ERR_FORMAT;
        if (kase == 7) p.n_weights = 5, expected = RQ_ERR_INTERNAL;
        if (kase == 8) p.n_embd = 63, expected = RQ_ERR_INTERNAL;
        if (kase == 9) m.groups[0].dim_k = 8, expected = RQ_ERR_INTERNAL;
        if (kase == 10) m.groups[0].n_layers = 1, expected = RQ_ERR_INTERNAL;
        if (kase == 11) m.groups[0].type_k = RQ_TYPE_Q4_0, expected = RQ_ERR_UNSUPPORTED;
        if (kase == 12)
            m.weights[13].ne[0] = 7, expected = RQ_ERR_FORMAT; /* does not go with what is multiplied */
        int64_t alive = rq_mem_alive();
        rq_error err = {0};
        assert_int_equal(rq_executor_create(&p, &ex, &err), expected);
        assert_true(err.text[0]);
        assert_int_equal(rq_mem_alive(), alive);
        device->backend->close(device);
        synth_free(&m);
    }
}

static void misuse_is_refused(void **state)
{
    synth_model m;
    synth_make(&m, &synth_llama, 3);
    rig r;
    assert_int_equal(rig_open(&r, &m, &plain, NULL), RQ_OK);
    rq_step *step = rq_executor_begin(r.ex, NULL);
    const float *l;
    rq_row row = {0, 0};
    assert_int_equal(rq_executor_wait(r.ex, step, &l, NULL), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_executor_head(r.ex, step, &row, 1, &l, NULL), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_executor_submit(r.ex, NULL, NULL), RQ_ERR_ARGUMENT);
    assert_true(rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, 0, 1 << 20)); /* no such page */
    assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_ERR_INTERNAL);
    step = driver_fill(&r.drive, &(drive_piece){0, 2}, 1, true);
    assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_OK);
    assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_executor_head(r.ex, step, &row, 0, &l, NULL), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_executor_head(r.ex, step, &(rq_row){2, 0}, 1, &l, NULL), RQ_ERR_ARGUMENT);
    rig_close(&r);
    synth_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_has_the_same_bits),
        cmocka_unit_test(sequences_do_not_touch),
        cmocka_unit_test(random_passes_have_the_same_bits),
        cmocka_unit_test(a_thousand_steps_allocate_nothing),
        cmocka_unit_test(two_steps_in_flight),
        cmocka_unit_test(copied_pages_hold_the_same),
        cmocka_unit_test(profile_names_every_operation),
        cmocka_unit_test(plan_equals_fact),
        cmocka_unit_test(failures_leave_nothing),
        cmocka_unit_test(bad_descriptions),
        cmocka_unit_test(misuse_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
