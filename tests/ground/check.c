#include "tests/ground/check.h"

#include "backends/base/mem.h"
#include "backends/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

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
        bool write = result || ((op->kind == RQ_OP_KV_WRITE || op->kind == RQ_OP_KV_ENCODE) && i == 0) ||
                     (op->kind == RQ_OP_COPY && i == 1) || (op->kind == RQ_OP_ARGMAX && i == 1) ||
                     (op->kind == RQ_OP_QKV_WRITE && i == 6);
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
        if (v->space != RQ_SPACE_CACHE || t->bucket <= 8) continue;
        /* pages of a wide step that all layers use one after another: written, then coded and read */
        x.layer = UINT32_MAX;
        x.write = op->kind == RQ_OP_KV_WRITE || op->kind == RQ_OP_QKV_WRITE;
        out[n++] = x;
    }
    if (op->kind == RQ_OP_EMBED)
        out[n++] = (touched){.space = RQ_SPACE_PERSIST, .index = RQ_PERSIST_SAMPLED, .end = UINT64_MAX};
    return n;
}

static bool conflict(const rq_tape *t, const rq_op *a, const rq_op *b, const uint64_t *offsets)
{
    touched x[20], y[20];
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

void check_barriers(const rq_tape *t, const rq_split *split, const rq_plan *plan)
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
void check_memory(const rq_tape *t, const rq_split *split, const rq_plan *plan)
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
