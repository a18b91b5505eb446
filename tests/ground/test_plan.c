/* Fusing, splitting and planning, checked by brute force on the tapes of several families. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"
#include "backends/tape/plan.h"
#include "tests/ground/check.h"
#include "tests/ground/synth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const synth_config *const configs[] = {&synth_llama, &synth_qwen2,   &synth_qwen3,
                                              &synth_moe,   &synth_windows, &synth_coded};
enum { N_CONFIGS = sizeof configs / sizeof *configs };

static bool yes(void *user, const rq_tape *tape, const rq_op *op)
{
    return true;
}

/* ---- fuser --------------------------------------------------------------------------------------------- */

static uint32_t count(const rq_tape *t, rq_op_kind kind)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_ops; i++) n += t->ops[i].kind == kind;
    return n;
}

static void fuses_what_it_should(void **state)
{
    /* per layer: products, glu_products, qkv_write, attend_rotate, combine_add, all operations; embed, norm and
     * copy come on top, and in wide buckets group and kv_encode. A mixture's norm is part of the router's product and
     * of the experts'. */
    const uint32_t expected[N_CONFIGS][6] = {{3, 1, 1, 0, 0, 6}, {3, 1, 1, 0, 0, 6}, {3, 1, 1, 0, 0, 6},
                                             {3, 1, 1, 0, 1, 9}, {3, 1, 1, 0, 0, 6}, {3, 1, 1, 1, 0, 6}};
    for (uint32_t c = 0; c < N_CONFIGS; c++)
        for (uint32_t bucket = 1; bucket <= 64; bucket *= 4) {
            synth_model m;
            synth_make(&m, configs[c], 1);
            uint32_t layers = configs[c]->n_layers;
            rq_tape t;
            rq_tape_init(&t, bucket);
            synth_build(&m, RQ_TAPE_TRUNK, &t);
            assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
            assert_int_equal(count(&t, RQ_OP_PRODUCTS), expected[c][0] * layers);
            assert_int_equal(count(&t, RQ_OP_GLU_PRODUCTS), expected[c][1] * layers);
            assert_int_equal(count(&t, RQ_OP_QKV_WRITE), expected[c][2] * layers);
            assert_int_equal(count(&t, RQ_OP_ATTEND_ROTATE), expected[c][3] * layers);
            assert_int_equal(count(&t, RQ_OP_COMBINE_ADD), expected[c][4] * layers);
            uint32_t encodes = count(&t, RQ_OP_KV_ENCODE), groups = count(&t, RQ_OP_GROUP);
            assert_int_equal(encodes, configs[c] == &synth_coded && bucket > 8 ? layers : 0);
            assert_int_equal(groups, configs[c] == &synth_moe && bucket > 8 ? layers : 0);
            assert_int_equal(t.n_ops, 3 + expected[c][5] * layers + encodes + groups);
            for (uint32_t i = 0; i < t.n_ops; i++) {
                const rq_op *op = &t.ops[i];
                const rq_op_info *info = rq_op_get(op->kind);
                assert_in_range(op->n_in, info->min_in, info->max_in);
                assert_in_range(op->n_out, info->min_out, info->max_out);
                for (uint32_t a = 0; a < op->n_in; a++)
                    if (!op->in[a]) assert_true(info->optional >> a & 1);
                if (op->kind == RQ_OP_QKV_WRITE) {
                    bool turned = configs[c] == &synth_coded;
                    assert_int_equal(op->p.fused.normed, configs[c]->qk_norm);
                    assert_int_equal(op->prim_count, (configs[c]->qk_norm ? 5 : 3) + (turned ? 3 : 0));
                    for (uint32_t which = 0; which < 3; which++) {
                        const rq_op *rotate = rq_fused_rotate(&t, op, which);
                        assert_true(turned == (rotate != NULL));
                        if (rotate)
                            assert_int_equal(rotate->in[1], op->in[which == 0 ? 7 : which == 1 ? 9 : 12]);
                    }
                }
            }
            for (uint32_t i = 0; i < t.n_prims; i++)
                for (uint32_t o = 0; o < t.prims[i].n_out; o++) {
                    bool operand = false;
                    for (uint32_t k = 0; k < t.n_ops; k++)
                        for (uint32_t j = 0; j < t.ops[k].n_out; j++)
                            operand |= t.ops[k].out[j] == t.prims[i].out[o];
                    assert_int_equal(rq_value_is_internal(&t, t.prims[i].out[o]), !operand);
                }
            rq_tape_free(&t);
            synth_free(&m);
        }
}

/* One tape per way in which a pattern must not match. */
static void leaves_what_it_must(void **state)
{
    const uint32_t square[4] = {32, 32, 1, 1}, row[4] = {32, 1, 1, 1}, freq[4] = {4, 1, 1, 1};
    for (uint32_t kase = 0; kase < 11; kase++) {
        rq_tape t;
        rq_tape_init(&t, 2);
        t.layer = 0;
        rq_ref w = rq_tape_weight(&t, 0, RQ_TYPE_F32, square, "w"),
               b = rq_tape_weight(&t, 1, RQ_TYPE_F32, row, "b");
        rq_ref f = rq_tape_weight(&t, 2, RQ_TYPE_F32, freq, "f");
        rq_ref x = rq_op_embed(&t, w), cache = rq_tape_cache(&t, 0, 0);
        if (kase == 0) { /* the norm's result is used elsewhere too */
            rq_ref n = rq_op_rms_norm(&t, x, b, 0);
            rq_op_mul(&t, rq_op_matmul(&t, w, n), n);
        } else if (kase == 1) { /* in another layer */
            rq_ref n = rq_op_rms_norm(&t, x, b, 0);
            t.layer = 1;
            rq_op_matmul(&t, w, n);
        } else if (kase == 2) { /* more products than are looked for */
            rq_ref n = rq_op_rms_norm(&t, x, b, 0);
            for (int i = 0; i < 9; i++) rq_op_matmul(&t, w, n);
        } else if (kase == 8) { /* a norm's result is joined with a row */
            rq_op_add(&t, rq_op_rms_norm(&t, x, b, 0), b);
        } else if (kase == 9) { /* half of what attention returns is turned */
            rq_ref o = rq_op_attend(&t, cache, rq_tape_view(&t, x, 0, 8, 4, 8, 2, 32), 8, 1, 0);
            rq_op_rotate(&t, rq_tape_view(&t, o, 0, 8, 2, 8, 2, 32), 0,
                         rq_tape_weight(&t, 3, RQ_TYPE_F32, (uint32_t[4]){8, 1, 1, 1}, "m"), 0, NULL, 0,
                         true);
        } else if (kase == 10) { /* a sum over experts is added to in another layer */
            rq_ref y = rq_op_combine(&t, rq_tape_act(&t, RQ_TYPE_F32, 32, 2, 2, 1),
                                     rq_tape_act(&t, RQ_TYPE_F32, 2, 2, 1, 1));
            t.layer = 1;
            rq_op_add(&t, y, x);
        } else if (kase == 3) { /* the product is added to itself */
            rq_ref y = rq_op_matmul(&t, w, x);
            rq_op_add(&t, y, y);
        } else if (kase == 4) { /* the product is used twice */
            rq_ref y = rq_op_matmul(&t, w, x);
            rq_op_mul(&t, rq_op_add(&t, y, x), y);
        } else if (kase == 5) { /* a view of the norm's result is multiplied */
            rq_ref n = rq_op_rms_norm(&t, x, b, 0);
            rq_op_matmul(&t, w, rq_tape_view(&t, n, 0, 32, 1, 32, 1, 32));
        } else if (kase == 6) { /* the rotated key is used elsewhere */
            rq_ref h = rq_tape_view(&t, x, 0, 8, 4, 8, 2, 32);
            rq_ref q = rq_op_rope(&t, h, f, 8, RQ_ROPE_NEOX, 1), k = rq_op_rope(&t, h, f, 8, RQ_ROPE_NEOX, 1);
            rq_op_kv_write(&t, cache, k, h);
            rq_op_mul(&t, rq_op_attend(&t, cache, q, 8, 1, 0), rq_tape_view(&t, k, 0, 32, 2, 32, 1, 64));
        } else { /* query and key turn differently */
            rq_ref h = rq_tape_view(&t, x, 0, 8, 4, 8, 2, 32);
            rq_ref q = rq_op_rope(&t, h, f, 8, RQ_ROPE_NEOX, 1), k = rq_op_rope(&t, h, f, 8, RQ_ROPE_NORM, 1);
            rq_op_kv_write(&t, cache, k, h);
            rq_op_attend(&t, cache, q, 8, 1, 0);
        }
        uint32_t n = t.n_ops;
        assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
        assert_int_equal(t.n_ops, n);
        assert_int_equal(t.n_prims, 0);
        rq_tape_free(&t);
    }
}

/* ---- planner ------------------------------------------------------------------------------------------- */

static uint32_t place_of(void *user, const rq_tape *tape, const rq_op *op)
{
    const uint32_t *mask = user; /* bit l: layer l runs on device 1; no split inside a layer */
    return op->layer == UINT32_MAX ? 0 : *mask >> op->layer & 1;
}

/* Every other operation elsewhere: as many borders as can be. */
static uint32_t place_alternating(void *user, const rq_tape *tape, const rq_op *op)
{
    return (uint32_t)((op - tape->ops) % 2);
}

static void plans_hold(void **state)
{
    for (uint32_t c = 0; c < N_CONFIGS; c++)
        for (uint32_t bucket = 1; bucket <= 128; bucket = bucket == 1 ? 2 : bucket * 4)
            for (uint32_t way = 0; way < 12; way++) {
                synth_model m;
                synth_make(&m, configs[c], 1);
                rq_tape t;
                rq_tape_init(&t, bucket);
                synth_build(&m, way % 2 || bucket > RQ_HEAD_ROWS ? RQ_TAPE_TRUNK : RQ_TAPE_HEAD, &t);
                if (way / 2 % 2) assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
                uint32_t mask = way / 4 == 1 ? 2 : 0;
                rq_split split;
                rq_plan plan;
                assert_int_equal(
                    rq_split_make(&t, 2, way / 4 == 2 ? place_alternating : place_of, &mask, &split, NULL),
                    RQ_OK);
                assert_int_equal(rq_plan_make(&t, &split, 2, &plan, NULL), RQ_OK);
                if (way / 4 == 0) assert_int_equal(split.n_pieces, 1);
                if (way == 5 || way == 7) assert_int_equal(split.n_pieces, 3);
                uint64_t sum = 0;
                for (uint32_t i = 0; i < t.n_ops; i++)
                    for (uint32_t o = 0; o < t.ops[i].n_out; o++)
                        sum += rq_value_span(&t.values[t.ops[i].out[o]]);
                if (way == 1) assert_true(plan.arena_bytes[0] * 2 < sum); /* memory is shared at all */
                check_barriers(&t, &split, &plan);
                check_memory(&t, &split, &plan);
                rq_plan_free(&plan);
                rq_split_free(&split);
                rq_tape_free(&t);
                synth_free(&m);
            }
}

/* A copy crosses each border once per device and value. */
static void copies_are_made_once(void **state)
{
    const uint32_t square[4] = {32, 32, 1, 1};
    rq_tape t;
    rq_tape_init(&t, 4);
    rq_ref w = rq_tape_weight(&t, 0, RQ_TYPE_F32, square, "w");
    rq_ref x = rq_op_embed(&t, w);
    for (uint32_t i = 0; i < 9; i++) {
        t.layer = i;
        rq_op_scale(&t, x, (float)i);
    }
    uint32_t mask = 0xb6; /* layers 1, 2, 4, 5, 7 */
    rq_split split;
    assert_int_equal(rq_split_make(&t, 2, place_of, &mask, &split, NULL), RQ_OK);
    assert_int_equal(split.n_pieces, 7);
    assert_int_equal(split.n_copies, 1);
    assert_int_equal(split.copies[0].bytes, 32 * 4 * 4);
    assert_int_equal(split.pieces[1].copy_count, 1);
    rq_split_free(&split);
    rq_error err = {0};
    assert_int_equal(rq_split_make(&t, 1, place_of, &mask, &split, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "device 1 of 1"));
    rq_tape_free(&t);
}

/* ---- running out of memory ----------------------------------------------------------------------------- */

static rq_status whole_way(synth_model *m)
{
    rq_tape t;
    rq_split split = {0};
    rq_plan plan = {0};
    uint32_t mask = 2;
    rq_tape_init(&t, 4);
    synth_build(m, RQ_TAPE_TRUNK, &t);
    rq_status status = rq_tape_fuse(&t, yes, NULL, NULL);
    if (status == RQ_OK) status = rq_split_make(&t, 2, place_of, &mask, &split, NULL);
    if (status == RQ_OK) status = rq_plan_make(&t, &split, 2, &plan, NULL);
    rq_plan_free(&plan);
    rq_split_free(&split);
    rq_tape_free(&t);
    return status;
}

static void failing_allocations(void **state)
{
    synth_model m;
    synth_make(&m, &synth_qwen3, 1);
    int64_t alive = rq_mem_alive();
    uint32_t failures = 0;
    for (uint64_t n = 1;; n++) {
        rq_mem_fail_at(n);
        rq_status status = whole_way(&m);
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        if (status == RQ_OK) break;
        assert_int_equal(status, RQ_ERR_MEMORY);
        failures++;
    }
    assert_true(failures > 10);
    synth_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fuses_what_it_should), cmocka_unit_test(leaves_what_it_must),
        cmocka_unit_test(plans_hold),           cmocka_unit_test(copies_are_made_once),
        cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
