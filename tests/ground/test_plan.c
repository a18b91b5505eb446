/* Fusing, splitting and planning, checked by brute force on the tapes of several families. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"
#include "backends/tape/plan.h"
#include "tests/ground/synth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const synth_config *const configs[] = {&synth_llama, &synth_qwen2, &synth_qwen3, &synth_moe,
                                              &synth_windows};
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
    /* per layer: norm_matmuls, norm_glu_matmuls, matmul_add, qk, all operations of a layer; embed, norm and
     * copy come on top. The second product of a mixture's layer ends in an add of its own. */
    const uint32_t expected[N_CONFIGS][5] = {
        {1, 1, 2, 1, 6}, {1, 1, 2, 1, 9}, {1, 1, 2, 1, 6}, {1, 0, 1, 1, 14}, {1, 1, 2, 1, 6}};
    for (uint32_t c = 0; c < N_CONFIGS; c++)
        for (uint32_t bucket = 1; bucket <= 64; bucket *= 4) {
            synth_model m;
            synth_make(&m, configs[c], 1);
            uint32_t layers = configs[c]->n_layers;
            rq_tape t;
            rq_tape_init(&t, bucket);
            synth_build(&m, RQ_TAPE_TRUNK, &t);
            assert_int_equal(rq_tape_fuse(&t, yes, NULL, NULL), RQ_OK);
            assert_int_equal(count(&t, RQ_OP_NORM_MATMULS), expected[c][0] * layers);
            assert_int_equal(count(&t, RQ_OP_NORM_GLU_MATMULS), expected[c][1] * layers);
            assert_int_equal(count(&t, RQ_OP_MATMUL_ADD), expected[c][2] * layers);
            assert_int_equal(count(&t, RQ_OP_QK_NORM_ROPE_WRITE), expected[c][3] * layers);
            assert_int_equal(t.n_ops, 3 + expected[c][4] * layers);
            for (uint32_t i = 0; i < t.n_ops; i++) {
                const rq_op *op = &t.ops[i];
                const rq_op_info *info = rq_op_get(op->kind);
                assert_in_range(op->n_in, info->min_in, info->max_in);
                assert_in_range(op->n_out, info->min_out, info->max_out);
                for (uint32_t a = 0; a < op->n_in; a++)
                    if (!op->in[a]) assert_true(info->optional >> a & 1);
                if (op->kind == RQ_OP_QK_NORM_ROPE_WRITE) {
                    assert_int_equal(op->p.fused.normed, configs[c]->qk_norm);
                    assert_int_equal(op->prim_count, configs[c]->qk_norm ? 5 : 3);
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
    for (uint32_t kase = 0; kase < 8; kase++) {
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
        } else if (kase == 2) { /* four products */
            rq_ref n = rq_op_rms_norm(&t, x, b, 0);
            for (int i = 0; i < 4; i++) rq_op_matmul(&t, w, n);
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

typedef struct touched {
    rq_space space;
    uint32_t index, layer;
    uint64_t begin, end;
    bool write;
} touched;

/* Written independently of rq_op_ranges: every byte an operation touches, by the words of ops.h and fuse.h.
 */
static uint32_t touches(const rq_tape *t, const rq_op *op, const uint64_t *offsets, touched *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_in + op->n_out; i++) {
        bool result = i >= op->n_in;
        rq_ref r = result ? op->out[i - op->n_in] : op->in[i];
        const rq_value *v = &t->values[r];
        if (!r || v->space == RQ_SPACE_WEIGHT) continue;
        bool write = result || (op->kind == RQ_OP_KV_WRITE && i == 0) || (op->kind == RQ_OP_COPY && i == 1) ||
                     (op->kind == RQ_OP_ARGMAX && i == 1) || (op->kind == RQ_OP_QK_NORM_ROPE_WRITE && i == 6);
        touched x = {
            .space = v->space, .index = v->index, .layer = v->layer, .end = UINT64_MAX, .write = write};
        if (v->space == RQ_SPACE_ACT) {
            uint64_t last = 0;
            for (int d = 0; d < 4; d++) last += (v->ne[d] - 1) * v->stride[d];
            assert_true(offsets[v->index] != RQ_NO_ARENA);
            x.index = 0;
            x.begin = offsets[v->index] + v->offset;
            x.end = x.begin + last + 4;
        }
        out[n++] = x;
    }
    if (op->kind == RQ_OP_EMBED)
        out[n++] = (touched){.space = RQ_SPACE_PERSIST, .index = RQ_PERSIST_SAMPLED, .end = UINT64_MAX};
    return n;
}

static bool conflict(const rq_tape *t, const rq_op *a, const rq_op *b, const uint64_t *offsets)
{
    touched x[16], y[16];
    uint32_t n = touches(t, a, offsets, x), m = touches(t, b, offsets, y);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < m; j++)
            if ((x[i].write || y[j].write) && x[i].space == y[j].space && x[i].index == y[j].index &&
                x[i].layer == y[j].layer && x[i].begin < y[j].end && y[j].begin < x[i].end)
                return true;
    return false;
}

/* Is every conflicting pair of the piece separated? `skip` is a barrier to overlook. */
static bool separated(const rq_tape *t, const rq_piece *p, const rq_plan *plan, uint32_t skip)
{
    const uint64_t *offsets = rq_plan_offsets(plan, p->device);
    for (uint32_t j = p->first; j < p->first + p->count; j++) {
        bool barrier = false; /* between i and j */
        for (uint32_t i = j; i-- > p->first && !barrier;) {
            barrier = plan->barrier[i + 1] && i + 1 != skip;
            if (!barrier && conflict(t, &t->ops[i], &t->ops[j], offsets)) return false;
        }
    }
    return true;
}

static void check_barriers(const rq_tape *t, const rq_split *split, const rq_plan *plan)
{
    for (uint32_t k = 0; k < split->n_pieces; k++) {
        const rq_piece *p = &split->pieces[k];
        assert_int_equal(plan->barrier[p->first], 0);
        assert_true(separated(t, p, plan, UINT32_MAX));
        for (uint32_t i = p->first; i < p->first + p->count; i++)
            if (plan->barrier[i]) assert_false(separated(t, p, plan, i));
    }
}

/* Plays the program with a stamp of its owner on every 64 bytes of each arena: what is read must still be
 * there. */
static void check_memory(const rq_tape *t, const rq_split *split, const rq_plan *plan)
{
    uint32_t *stamps[2];
    for (uint32_t d = 0; d < 2; d++) {
        assert_int_equal(plan->arena_bytes[d] % RQ_ARENA_ALIGN, 0);
        stamps[d] = rq_calloc(plan->arena_bytes[d] / RQ_ARENA_ALIGN + 1, sizeof(uint32_t));
    }
#define EACH(device, owner, statement)                                                                       \
    do {                                                                                                     \
        uint64_t at_ = rq_plan_offsets(plan, device)[owner];                                                 \
        uint64_t bytes_ = rq_value_span(&t->values[owner]);                                                  \
        assert_true(at_ != RQ_NO_ARENA && at_ % RQ_ARENA_ALIGN == 0 &&                                       \
                    at_ + bytes_ <= plan->arena_bytes[device]);                                              \
        for (uint64_t g = at_ / 64; g < (at_ + bytes_ + 63) / 64; g++) {                                     \
            uint32_t *stamp = &stamps[device][g];                                                            \
            statement;                                                                                       \
        }                                                                                                    \
    } while (0)
    for (uint32_t k = 0; k < split->n_pieces; k++) {
        const rq_piece *p = &split->pieces[k];
        for (uint32_t c = p->copy_first; c < p->copy_first + p->copy_count; c++) {
            const rq_border_copy *copy = &split->copies[c];
            assert_int_equal(copy->bytes, rq_value_span(&t->values[copy->value]));
            EACH(copy->from, copy->value, assert_int_equal(*stamp, copy->value));
            EACH(copy->to, copy->value, *stamp = copy->value);
        }
        for (uint32_t i = p->first; i < p->first + p->count; i++) {
            const rq_op *op = &t->ops[i];
            for (uint32_t a = 0; a < op->n_in; a++)
                if (op->in[a] && t->values[op->in[a]].space == RQ_SPACE_ACT)
                    EACH(p->device, t->values[op->in[a]].index,
                         assert_int_equal(*stamp, t->values[op->in[a]].index));
            for (uint32_t o = 0; o < op->n_out; o++)
                EACH(p->device, t->values[op->out[o]].index, {
                    for (uint32_t a = 0; a < op->n_in; a++) /* results and operands share nothing */
                        assert_false(op->in[a] && t->values[op->in[a]].space == RQ_SPACE_ACT &&
                                     *stamp == t->values[op->in[a]].index);
                    *stamp = t->values[op->out[o]].index;
                });
        }
    }
#undef EACH
    for (uint32_t d = 0; d < 2; d++) rq_free(stamps[d]);
}

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
