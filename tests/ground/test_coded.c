/* The executor over groups with a coded form, on the reference: which pages are encoded when, read in which form, and
 * what all of it takes. */
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

enum { MAX_TOKENS = 256, N_SEQS = 2, MAX_PAGES = 17, LENGTH = 1000 };

typedef struct variant {
    host_options device[2];
    uint32_t n_devices, split_layer;
    bool no_fusion, no_scratch;
} variant;

typedef struct rig {
    rq_device *devices[2];
    rq_executor *ex;
    rq_executor_params params;
    driver drive;
} rig;

static void rig_open(rig *r, synth_model *m, const variant *v)
{
    memset(r, 0, sizeof *r);
    uint32_t n = v->n_devices ? v->n_devices : 1;
    for (uint32_t d = 0; d < n; d++) r->devices[d] = host_open(&v->device[d]);
    m->c.split_layer = v->split_layer ? v->split_layer : UINT32_MAX;
    m->group_device[0] = n - 1;
    r->params = synth_params(m, r->devices, n, MAX_TOKENS, N_SEQS, MAX_PAGES);
    r->params.no_fusion = v->no_fusion;
    if (v->no_scratch) m->group_scratch_pages[0] = 0;
    rq_error err = {0};
    if (rq_executor_create(&r->params, &r->ex, &err) != RQ_OK) fail_msg("%s", err.text);
    assert_true(driver_open(&r->drive, r->ex, &r->params));
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

/* Logits of every `EVERY`-th token of LENGTH, fed in pieces of `piece`, or of random lengths up to -piece. */
enum { EVERY = 50 };

static float *logits_of(rig *r, int32_t piece)
{
    uint32_t n_vocab = r->drive.n_vocab, at = 0;
    float *out = rq_calloc((size_t)LENGTH / EVERY * n_vocab, sizeof *out);
    synth_rng rng = {7};
    r->drive.lengths[0] = 0;
    while (at < LENGTH) {
        uint32_t n = piece > 0 ? (uint32_t)piece : 1 + synth_below(&rng, (uint32_t)-piece);
        if (n > LENGTH - at) n = LENGTH - at;
        rq_step *step = driver_fill(&r->drive, &(drive_piece){0, n}, 1, false);
        assert_non_null(step);
        uint32_t first = (at + EVERY - 1) / EVERY, end = (at + n + EVERY - 1) / EVERY;
        for (uint32_t k = first; k < end; k++) assert_true(rq_step_add_row(step, k * EVERY - at, 0));
        rq_error err = {0};
        const float *logits = NULL;
        if (rq_executor_submit(r->ex, step, &err) != RQ_OK ||
            rq_executor_wait(r->ex, step, &logits, &err) != RQ_OK)
            fail_msg("%s", err.text);
        if (end > first)
            memcpy(out + (size_t)first * n_vocab, logits, (size_t)(end - first) * n_vocab * sizeof *out);
        at += n;
    }
    return out;
}

/* The bits of a thousand tokens do not depend on how they are cut into steps, on the order of operations between
 * barriers, on fusion, on where the pages of a wide step lie, or on devices. */
static void narrow_and_wide_have_the_same_bits(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 4);
    uint32_t n = LENGTH / EVERY * m.c.n_vocab;
    const variant plain = {0};
    rig r;
    rig_open(&r, &m, &plain);
    float *narrow = logits_of(&r, 1);
    for (uint32_t i = 0; i < n; i++) assert_true(narrow[i] == narrow[i]);
    const int32_t pieces[] = {100, -20};
    for (uint32_t p = 0; p < 2; p++) {
        float *got = logits_of(&r, pieces[p]);
        assert_memory_equal(narrow, got, n * sizeof *got);
        rq_free(got);
    }
    rig_close(&r);
    const variant variants[] = {
        {.no_scratch = true},
        {.no_fusion = true, .device = {{.shuffle = 5}}},
        {.device = {{.hidden = true}}},
        {.n_devices = 2, .split_layer = 1, .device = {{.hidden = true}, {.shuffle = 6, .hidden = true}}},
    };
    for (uint32_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        rig_open(&r, &m, &variants[v]);
        float *got = logits_of(&r, v % 2 ? -200 : 256);
        assert_memory_equal(narrow, got, n * sizeof *got);
        rq_free(got);
        rig_close(&r);
    }
    /* Everything exact: the same until the first page is read in coded form, by position 191, then not. */
    synth_model exact;
    synth_make(&exact, &synth_coded, 4);
    exact.groups[0].sink_pages = MAX_PAGES;
    rig_open(&r, &exact, &plain);
    float *got = logits_of(&r, 256);
    uint32_t same = (191 / EVERY + 1) * m.c.n_vocab;
    assert_memory_equal(narrow, got, same * sizeof *got);
    assert_memory_not_equal(narrow + same, got + same, m.c.n_vocab * sizeof *got);
    rq_free(got);
    rig_close(&r);
    synth_free(&exact);
    rq_free(narrow);
    synth_free(&m);
}

/* Encoding happens behind the trunk of a narrow step, and in it of a wide one: never twice, always all layers. */
static void every_layer_is_encoded_once(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 3);
    const variant plain = {0};
    rig r;
    rig_open(&r, &m, &plain);
    rq_op_time *times = rq_calloc(1000, sizeof *times);
    const uint32_t pieces[] = {60, 3, 1, 8, 120, 6};
    const uint32_t full[] = {0, 0, 1, 0, 2, 0};
    for (uint32_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        rq_step *step = driver_fill(&r.drive, &(drive_piece){0, pieces[i]}, 1, false);
        assert_non_null(step);
        assert_int_equal(step->header->n_encodes[0], full[i]);
        uint32_t n, encodes = 0;
        assert_int_equal(rq_executor_profile(r.ex, step, times, 1000, &n, NULL), RQ_OK);
        for (uint32_t k = 0; k < n; k++) {
            if (times[k].op->kind != RQ_OP_KV_ENCODE) continue;
            const rq_value *cache = &times[k].tape->values[times[k].op->in[0]];
            assert_int_equal(cache->layer, encodes++);
            rq_op_cost cost = rq_op_cost_of(times[k].tape, times[k].op, m.groups, 64);
            assert_true(cost.bytes_read > cost.bytes_written && cost.bytes_written > 0);
        }
        assert_int_equal(encodes, pieces[i] > RQ_NARROW_BUCKET || full[i] ? m.c.n_layers : 0);
    }
    rq_free(times);
    rig_close(&r);
    synth_free(&m);
}

static void a_thousand_steps_allocate_nothing(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 1);
    const variant idle = {.device = {{.idle = true}}};
    rig r;
    rig_open(&r, &m, &idle);
    rq_mem_fail_at(0);
    uint32_t encodes = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        if (i % 70 == 0) r.drive.lengths[0] = r.drive.lengths[1] = 0;
        rq_step *step = driver_fill(&r.drive, (drive_piece[]){{0, i % 7 ? 1 : 90}, {1, 2}}, 2, i % 2);
        assert_non_null(step);
        encodes += step->header->n_encodes[0];
        assert_int_equal(rq_executor_submit(r.ex, step, NULL), RQ_OK);
        const float *logits;
        if (i % 3) assert_int_equal(rq_executor_wait(r.ex, step, &logits, NULL), RQ_OK);
    }
    assert_true(encodes > 200);
    assert_int_equal(rq_mem_count(), 0);
    rig_close(&r);
    synth_free(&m);
}

/* ---- memory and errors --------------------------------------------------------------------------------- */

static void plan_equals_fact(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 3);
    const variant v = {.n_devices = 2, .split_layer = 1};
    rig r;
    rig_open(&r, &m, &v);
    rq_executor_info info;
    rq_executor_describe(r.ex, &info);
    assert_int_equal(host_allocated(r.devices[0]) + host_allocated(r.devices[1]),
                     info.arena_bytes + info.cache_bytes + info.persist_bytes);
    uint64_t pages = N_SEQS * MAX_PAGES;
    rq_page_layout exact = rq_page_layout_of(&m.groups[0]);
    rq_coded_layout coded = rq_coded_layout_of(&m.groups[0]);
    assert_int_equal(info.coded_bytes, pages * (coded.page_bytes + 4));
    assert_int_equal(info.scratch_bytes, MAX_TOKENS / RQ_PAGE_TOKENS * exact.layer_bytes);
    assert_int_equal(info.cache_bytes,
                     pages * (exact.page_bytes + 4) + info.coded_bytes + info.scratch_bytes);
    /* a head of 16: three bits a code and a byte for 16 of K, four bits and a byte for 16 of V */
    assert_int_equal(coded.head_bytes, 64 * (16 * 4 + 8) / 8 + 64 * (16 * 4 + 8) / 8);
    rig_close(&r);
    synth_free(&m);
}

static void failures_leave_nothing(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 3);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint64_t n = 1;; n += kind ? 1 : 1 + n / 10) {
            host_options options = {.hidden = true};
            rq_device *device = host_open(&options);
            rq_executor_params params = synth_params(&m, &device, 1, 16, N_SEQS, MAX_PAGES);
            m.group_scratch_pages[0] = 2;
            int64_t alive = rq_mem_alive();
            rq_executor *ex = NULL;
            rq_error err = {0};
            if (kind)
                host_fail_at(device, n);
            else
                rq_mem_fail_at(n);
            rq_status status = rq_executor_create(&params, &ex, &err);
            rq_mem_fail_at(0);
            if (status == RQ_OK)
                rq_executor_free(ex);
            else {
                assert_int_equal(status, RQ_ERR_MEMORY);
                assert_true(err.text[0]);
            }
            assert_int_equal(rq_mem_alive(), alive);
            assert_int_equal(host_allocated(device), 0);
            device->backend->close(device);
            if (status == RQ_OK) {
                assert_true(n > 20);
                break;
            }
        }
    synth_free(&m);
}

/* Trunks that encode where they must not, and do not where they must. */
static void build_wrong(void *user, rq_tape_kind kind, rq_tape *t)
{
    uint32_t bucket = t->bucket;
    if (kind == RQ_TAPE_TRUNK) t->bucket = bucket > RQ_NARROW_BUCKET ? 1 : RQ_NARROW_BUCKET + 1;
    synth_build(user, kind, t);
    t->bucket = bucket;
}

static void bad_descriptions(void **state)
{
    for (uint32_t kase = 0; kase < 12; kase++) {
        synth_model m;
        synth_make(&m, &synth_coded, 3);
        host_options options = {.refuse = kase == 0 ? RQ_OP_KV_ENCODE : 0};
        rq_device *device = host_open(&options);
        rq_executor_params p = synth_params(&m, &device, 1, 16, N_SEQS, MAX_PAGES);
        rq_cache_group *g = &m.groups[0];
        rq_status expected = RQ_ERR_ARGUMENT;
        const char *says = "";
        if (kase == 0) expected = RQ_ERR_UNSUPPORTED, says = "kv_encode";
        if (kase == 1) p.group_coded_pages = NULL, says = "needs coded pages";
        if (kase == 2) m.group_coded_pages[0] = 0, says = "needs coded pages";
        if (kase == 3) g->recent_pages = 0, says = "recent page";
        if (kase == 4) g->form_v = (rq_kv_form)(RQ_KV_TRIP + 9), says = "form";
        if (kase == 5) g->form_v = RQ_KV_TRIP, says = "round trip";
        if (kase == 6) g->form_k = (rq_kv_form)(RQ_KV_TRIP + 1), says = "form";
        if (kase == 7) g->dim_k = 20, expected = RQ_ERR_UNSUPPORTED, says = "multiples of 8";
        if (kase == 8) g->dim_v = 1024, expected = RQ_ERR_UNSUPPORTED, says = "multiples of 8";
        if (kase == 9) g->form_k = g->form_v = RQ_KV_SAME, says = "no coded form";
        if (kase == 10) m.group_scratch_pages[0] = 1u << 30, expected = RQ_ERR_CAPACITY, says = "too large";
        if (kase == 11) p.build = build_wrong, expected = RQ_ERR_INTERNAL, says = "encodes pages itself";
        int64_t alive = rq_mem_alive();
        rq_executor *ex = NULL;
        rq_error err = {0};
        rq_status status = rq_executor_create(&p, &ex, &err);
        if (status != expected || !strstr(err.text, says)) fail_msg("%u: %d %s", kase, status, err.text);
        assert_null(ex);
        assert_int_equal(rq_mem_alive(), alive);
        device->backend->close(device);
        synth_free(&m);
    }
}

static void bad_steps(void **state)
{
    synth_model m;
    synth_make(&m, &synth_coded, 3);
    const variant plain = {0};
    rig r;
    rig_open(&r, &m, &plain);
    uint32_t pages = N_SEQS * MAX_PAGES, scratch = MAX_TOKENS / RQ_PAGE_TOKENS;
    for (uint32_t kase = 0; kase < 6; kase++) {
        rq_step *step = rq_executor_begin(r.ex, NULL);
        bool good = kase < 2;
        if (kase == 0) assert_true(rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, 0, pages + scratch - 1));
        if (kase == 1) assert_true(rq_step_add_encode(step, 0, pages + scratch - 1, pages - 1));
        if (kase == 2) assert_true(rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, 0, pages + scratch));
        if (kase == 3) assert_true(rq_step_add_edit(step, 0, RQ_PAGE_CODED, 0, 0, pages));
        if (kase == 4) assert_true(rq_step_add_encode(step, 0, pages + scratch, 0));
        if (kase == 5) assert_true(rq_step_add_encode(step, 0, 0, pages));
        rq_error err = {0};
        rq_status status = rq_executor_submit(r.ex, step, &err);
        assert_int_equal(status, good ? RQ_OK : RQ_ERR_INTERNAL);
        if (good) assert_int_equal(rq_executor_wait(r.ex, step, NULL, NULL), RQ_OK);
    }
    rig_close(&r);
    synth_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrow_and_wide_have_the_same_bits),
        cmocka_unit_test(every_layer_is_encoded_once),
        cmocka_unit_test(a_thousand_steps_allocate_nothing),
        cmocka_unit_test(plan_equals_fact),
        cmocka_unit_test(failures_leave_nothing),
        cmocka_unit_test(bad_descriptions),
        cmocka_unit_test(bad_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
