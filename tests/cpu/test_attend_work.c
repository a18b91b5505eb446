/* test_attend_work.c - attention of generation does the same work whatever rotation stands in front of the codes:
 * what the cost model says, and what is really visited (the table of row functions is exchanged for one that
 * counts pages and their bytes), at 4,096 and 32,768 positions; and the count is the cost model's. */
#include "backends/base/mem.h"
#include "backends/cpu/device.h"
#include "backends/formats/rotation.h"
#include "backends/ops.h"
#include "tests/cpu/rig.h"

#include <math.h>
#include <string.h>

enum { DIM = 128, N_KV = 2, GROUP = 2 };

typedef struct work {
    uint64_t exact_pages, coded_pages, bytes;
} work;

/* One worker, so plain counters will do. */
static work counted;
static uint64_t head_bytes[RQ_PAGE_FORMS];
static void (*attend_page)(const rq_attend_block *block);

static void count_page(const rq_attend_block *b)
{
    bool coded = b->code_k.form != RQ_KV_SAME;
    assert_true(coded == (b->code_v.form != RQ_KV_SAME));
    *(coded ? &counted.coded_pages : &counted.exact_pages) += 1;
    counted.bytes += head_bytes[coded];
    attend_page(b);
}

/* One token at position depth - 1: rotate the query, attend, rotate back. */
static work generate(rig *r, const rq_rotation *rotation, uint32_t depth, rq_op_cost *cost)
{
    rq_tape tape;
    rq_tape_init(&tape, 1);
    const uint32_t ne[4] = {rotation->n_floats, 1, 1, 1};
    rig_weight(r, 0, rotation->data, rotation->n_floats * sizeof(float));
    rq_ref data = rq_tape_weight(&tape, 0, RQ_TYPE_F32, ne, "rotation");
    rq_ref in = rq_tape_act(&tape, RQ_TYPE_F32, DIM, N_KV * GROUP, 1, 1);
    rq_ref q = rq_op_rotate(&tape, in, data, 0, 0, rotation->blocks, rotation->n_blocks, false);
    rq_ref o = rq_op_attend(&tape, rq_tape_cache(&tape, 0, 0), q, DIM, 1.0f / sqrtf(DIM), 0);
    rq_ref heads = rq_tape_view(&tape, o, 0, DIM, N_KV * GROUP, DIM, 1, DIM * N_KV * GROUP);
    rq_ref y = rq_op_rotate(&tape, heads, data, 0, 0, rotation->blocks, rotation->n_blocks, true);
    rig_compile(r, &tape);
    assert_int_equal(tape.ops[1].kind, RQ_OP_ATTEND);
    *cost = rq_op_cost_of(&tape, &tape.ops[1], &r->group, depth);

    rq_cpu_device *device = (rq_cpu_device *)r->device;
    const rq_vec *own = device->vec;
    rq_vec counting = *own;
    attend_page = own->attend_page;
    counting.attend_page = count_page;
    device->vec = &counting;
    memset(&counted, 0, sizeof counted);
    int32_t id = 0;
    const uint32_t *table = rig_table(r, 0);
    rq_step_reset(&r->step);
    assert_int_equal(rq_step_add_run(&r->step, 0, &id, 1, depth - 1, &table), 0);
    rq_step_finish(&r->step);
    uint64_t seed = 3;
    for (uint32_t i = 0; i < DIM * N_KV * GROUP; i++) ((float *)rig_value(r, in))[i] = rig_normal(&seed);
    rig_run(r);
    device->vec = own;
    for (uint32_t i = 0; i < DIM * N_KV * GROUP; i++) assert_true(isfinite(((float *)rig_value(r, y))[i]));
    rq_tape_free(&tape);
    return counted;
}

static void test_any_rotation(void **state)
{
    (void)state;
    static const rq_rotation_kind kinds[] = {RQ_ROTATION_PLANAR, RQ_ROTATION_WHT, RQ_ROTATION_HAAR};
    static const uint32_t depths[] = {4096, 32768};
    for (int form = RQ_KV_C2; form <= RQ_KV_C4; form++)
        for (int d = 0; d < 2; d++) {
            uint32_t depth = depths[d], pages = depth / RQ_PAGE_TOKENS;
            rq_cache_group group = {.n_layers = 1,
                                    .n_heads = N_KV,
                                    .dim_k = DIM,
                                    .dim_v = DIM,
                                    .type_k = RQ_TYPE_F16,
                                    .type_v = RQ_TYPE_F16,
                                    .form_k = (rq_kv_form)form,
                                    .form_v = (rq_kv_form)form,
                                    .sink_pages = 1,
                                    .recent_pages = 2};
            rq_step_caps caps = {.max_tokens = 1, .n_groups = 1, .n_seqs = 1, .max_pages = pages};
            rig r;
            rig_open(&r, NULL, 1, &group, &caps);
            for (uint32_t i = 0; i < r.pool.n_slabs; i++)
                memset(r.pool.slabs[i]->host, 0x2c, r.pool.slabs[i]->bytes);
            for (uint32_t i = 0; i < r.pool.n_coded_slabs; i++)
                memset(r.pool.coded_slabs[i]->host, 0x5c, r.pool.coded_slabs[i]->bytes);
            head_bytes[RQ_PAGE_EXACT] = r.pool.layout.head_bytes;
            head_bytes[RQ_PAGE_CODED] = r.pool.coded_layout.head_bytes;
            work first = {0};
            rq_op_cost first_cost = {0};
            for (int k = 0; k < 3; k++) {
                rq_rotation rotation;
                rq_op_cost cost;
                assert_int_equal(rq_rotation_make(kinds[k], DIM, 7, &rotation, NULL), RQ_OK);
                work w = generate(&r, &rotation, depth, &cost);
                rq_rotation_free(&rotation);
                if (k == 0) {
                    first = w;
                    first_cost = cost;
                    /* 1 sink and 2 recent pages exact, every other one coded, each once for every KV head */
                    assert_int_equal(w.exact_pages, 3 * N_KV);
                    assert_int_equal(w.coded_pages, (pages - 3) * N_KV);
                    /* the model counts the queries, too */
                    assert_true(cost.bytes_read == (double)w.bytes + 4.0 * DIM * N_KV * GROUP);
                }
                assert_memory_equal(&w, &first, sizeof w);
                assert_true(cost.bytes_read == first_cost.bytes_read && cost.flops == first_cost.flops &&
                            cost.bytes_written == first_cost.bytes_written);
            }
            rig_close(&r);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_rotation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
