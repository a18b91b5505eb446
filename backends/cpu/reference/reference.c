#include "backends/cpu/reference/reference.h"

#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"
#include "backends/ops.h"

#include <math.h>
#include <string.h>

static rq_ref_view view_of(const rq_ref_run *r, rq_ref ref)
{
    rq_ref_view view = {.v = &r->tape->values[ref]};
    if (ref && view.v->space != RQ_SPACE_CACHE && view.v->space != RQ_SPACE_STATE)
        view.data = r->env->address(r->env->user, r->tape, ref);
    return view;
}

rq_ref_view rq_ref_in(const rq_ref_run *r, uint32_t i)
{
    return view_of(r, r->op->in[i]);
}

rq_ref_view rq_ref_out(const rq_ref_run *r, uint32_t i)
{
    return view_of(r, r->op->out[i]);
}

const rq_step_header *rq_ref_step(const rq_ref_run *r)
{
    return (const rq_step_header *)(const void *)r->env->step_words;
}

const rq_run *rq_ref_run_of(const rq_ref_run *r, uint32_t t)
{
    const rq_step_header *h = rq_ref_step(r);
    const int32_t *runs = rq_step_at(r->env->step_words, h->token_run);
    if (t >= h->n_tokens || runs[t] < 0) return NULL;
    return (const rq_run *)rq_step_at(r->env->step_words, h->runs) + runs[t];
}

uint32_t rq_ref_position(const rq_ref_run *r, uint32_t t)
{
    return ((const uint32_t *)rq_step_at(r->env->step_words, rq_ref_step(r)->token_pos))[t];
}

void rq_ref_decode(const rq_ref_view *w, uint64_t i1, uint64_t i2, float *row)
{
    rq_type_get((uint32_t)w->v->type)->dequantize(rq_ref_at(w, 0, i1, i2, 0), row, w->v->ne[0]);
}

/* ---- rows of weights ----------------------------------------------------------------------------------- */

static rq_status embed(const rq_ref_run *r)
{
    rq_ref_view w = rq_ref_in(r, 0), y = rq_ref_out(r, 0);
    const int32_t *ids = rq_step_at(r->env->step_words, rq_ref_step(r)->token_id);
    for (uint32_t t = 0; t < r->tape->bucket; t++) {
        float *row = rq_ref_f32(&y, 0, t, 0, 0);
        int64_t id = -1;
        if (rq_ref_run_of(r, t)) id = ids[t] >= 0 ? ids[t] : r->env->sampled[-1 - (int64_t)ids[t]];
        if (id >= 0 && id < w.v->ne[1])
            rq_ref_decode(&w, (uint64_t)id, 0, row);
        else
            memset(row, 0, w.v->ne[0] * sizeof *row);
    }
    return RQ_OK;
}

static rq_status matmul(const rq_ref_run *r)
{
    rq_ref_view w = rq_ref_in(r, 0), x = rq_ref_in(r, 1), y = rq_ref_out(r, 0);
    float *row = rq_calloc(w.v->ne[0], sizeof *row);
    if (!row) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a row of weights");
    for (uint32_t o = 0; o < w.v->ne[1]; o++) {
        rq_ref_decode(&w, o, 0, row);
        for (uint32_t t = 0; t < x.v->ne[1]; t++) {
            double sum = 0;
            for (uint32_t i = 0; i < w.v->ne[0]; i++) sum += (double)row[i] * *rq_ref_f32(&x, i, t, 0, 0);
            *rq_ref_f32(&y, o, t, 0, 0) = (float)sum;
        }
    }
    rq_free(row);
    return RQ_OK;
}

/* ---- pointwise ----------------------------------------------------------------------------------------- */

static double activate(rq_act act, double g)
{
    if (act == RQ_ACT_SILU) return g / (1 + exp(-g));
    if (act == RQ_ACT_SIGMOID) return 1 / (1 + exp(-g));
    return 0.5 * g * (1 + tanh(0.79788456080286535588 /* sqrt(2/pi) */ * (g + 0.044715 * g * g * g)));
}

/* One element of add, mul, scale, softcap and glu. */
static double combine_two(const rq_op *op, double a, double b)
{
    switch (op->kind) {
    case RQ_OP_ADD:
        return a + b;
    case RQ_OP_MUL:
        return a * b;
    case RQ_OP_SCALE:
        return a * (double)op->p.scale.factor;
    case RQ_OP_SOFTCAP:
        return (double)op->p.softcap.cap * tanh(a / (double)op->p.softcap.cap);
    default:
        return activate(op->p.glu.act, a) * b;
    }
}

static rq_status pointwise(const rq_ref_run *r)
{
    rq_ref_view a = rq_ref_in(r, 0), b = r->op->n_in > 1 ? rq_ref_in(r, 1) : a, y = rq_ref_out(r, 0);
    const uint32_t *ne = y.v->ne;
    bool one = a.v->ne[0] == 1; /* a gate for the whole row */
    bool spread[4];             /* b is one row for all rows of a */
    for (int d = 0; d < 4; d++) spread[d] = b.v->ne[d] == 1;
    for (uint32_t i3 = 0; i3 < ne[3]; i3++)
        for (uint32_t i2 = 0; i2 < ne[2]; i2++)
            for (uint32_t i1 = 0; i1 < ne[1]; i1++)
                for (uint32_t i0 = 0; i0 < ne[0]; i0++) {
                    double vb = *rq_ref_f32(&b, spread[0] ? 0 : i0, spread[1] ? 0 : i1, spread[2] ? 0 : i2,
                                            spread[3] ? 0 : i3);
                    *rq_ref_f32(&y, i0, i1, i2, i3) =
                        (float)combine_two(r->op, *rq_ref_f32(&a, one ? 0 : i0, i1, i2, i3), vb);
                }
    return RQ_OK;
}

static rq_status rms_norm(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), w = rq_ref_in(r, 1), y = rq_ref_out(r, 0);
    const uint32_t *ne = x.v->ne;
    for (uint32_t i3 = 0; i3 < ne[3]; i3++)
        for (uint32_t i2 = 0; i2 < ne[2]; i2++)
            for (uint32_t i1 = 0; i1 < ne[1]; i1++) {
                double sum = 0;
                for (uint32_t i = 0; i < ne[0]; i++) {
                    double e = *rq_ref_f32(&x, i, i1, i2, i3);
                    sum += e * e;
                }
                double factor = 1 / sqrt(sum / ne[0] + (double)r->op->p.norm.eps);
                for (uint32_t i = 0; i < ne[0]; i++)
                    *rq_ref_f32(&y, i, i1, i2, i3) =
                        (float)(*rq_ref_f32(&x, i, i1, i2, i3) * factor *
                                (w.data ? (double)*rq_ref_f32(&w, i, 0, 0, 0) : 1.0));
            }
    return RQ_OK;
}

static rq_status l2_norm(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), y = rq_ref_out(r, 0);
    const uint32_t *ne = x.v->ne;
    for (uint32_t i3 = 0; i3 < ne[3]; i3++)
        for (uint32_t i2 = 0; i2 < ne[2]; i2++)
            for (uint32_t i1 = 0; i1 < ne[1]; i1++) {
                double sum = 0;
                for (uint32_t i = 0; i < ne[0]; i++) {
                    double e = *rq_ref_f32(&x, i, i1, i2, i3);
                    sum += e * e;
                }
                double length = fmax(sqrt(sum), (double)r->op->p.norm.eps);
                for (uint32_t i = 0; i < ne[0]; i++)
                    *rq_ref_f32(&y, i, i1, i2, i3) = (float)(*rq_ref_f32(&x, i, i1, i2, i3) / length);
            }
    return RQ_OK;
}

static rq_status rope(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), f = rq_ref_in(r, 1), y = rq_ref_out(r, 0);
    uint32_t n_rot = r->op->p.rope.n_rot;
    double magnitude = r->op->p.rope.magnitude;
    for (uint32_t t = 0; t < r->tape->bucket; t++) {
        float p = (float)rq_ref_position(r, t);
        for (uint32_t head = 0; head < x.v->ne[1]; head++) {
            for (uint32_t i = 0; i < x.v->ne[0]; i++)
                *rq_ref_f32(&y, i, head, t, 0) = *rq_ref_f32(&x, i, head, t, 0);
            for (uint32_t i = 0; i < n_rot / 2; i++) {
                bool norm = r->op->p.rope.pairing == RQ_ROPE_NORM;
                uint32_t at = norm ? 2 * i : i, other = norm ? 2 * i + 1 : i + n_rot / 2;
                float angle = p * *rq_ref_f32(&f, i, 0, 0, 0); /* in f32: ops.h */
                double a = *rq_ref_f32(&x, at, head, t, 0), c = *rq_ref_f32(&x, other, head, t, 0);
                double cosine = cos((double)angle) * magnitude, sine = sin((double)angle) * magnitude;
                *rq_ref_f32(&y, at, head, t, 0) = (float)(a * cosine - c * sine);
                *rq_ref_f32(&y, other, head, t, 0) = (float)(a * sine + c * cosine);
            }
        }
    }
    return RQ_OK;
}

/* ---- rows and output ----------------------------------------------------------------------------------- */

static rq_status copy(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), y = rq_ref_in(r, 1);
    for (uint32_t t = 0; t < x.v->ne[1]; t++)
        memcpy(rq_ref_at(&y, 0, t, 0, 0), rq_ref_at(&x, 0, t, 0, 0), x.v->ne[0] * sizeof(float));
    return RQ_OK;
}

static rq_status select_rows(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), y = rq_ref_out(r, 0);
    const rq_step_header *h = rq_ref_step(r);
    const rq_row *rows = rq_step_at(r->env->step_words, h->rows);
    for (uint32_t i = 0; i < r->tape->bucket; i++) {
        if (i < h->n_rows)
            memcpy(rq_ref_at(&y, 0, i, 0, 0), rq_ref_at(&x, 0, rows[i].token, 0, 0),
                   x.v->ne[0] * sizeof(float));
        else
            memset(rq_ref_at(&y, 0, i, 0, 0), 0, x.v->ne[0] * sizeof(float));
    }
    return RQ_OK;
}

static rq_status argmax(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), sampled = rq_ref_in(r, 1);
    const rq_step_header *h = rq_ref_step(r);
    const rq_row *rows = rq_step_at(r->env->step_words, h->rows);
    int32_t *ids = (int32_t *)(void *)sampled.data;
    if (!ids) return RQ_ERR_INTERNAL;
    for (uint32_t i = 0; i < r->tape->bucket && i < h->n_rows; i++) {
        uint32_t best = 0;
        float largest = -INFINITY;
        for (uint32_t j = 0; j < x.v->ne[0]; j++) {
            float l = *rq_ref_f32(&x, j, i, 0, 0);
            if (!(l > largest)) continue;
            largest = l;
            best = j;
        }
        ids[rows[i].slot] = (int32_t)best;
    }
    return RQ_OK;
}

/* ---- fused operations ---------------------------------------------------------------------------------- */

enum { MAX_INTERNAL = 12 };

/* An environment in which the internal values of a fused operation have memory of their own. */
typedef struct internal_env {
    const rq_reference_env *outer;
    uint32_t n;
    uint32_t owner[MAX_INTERNAL];
    void *memory[MAX_INTERNAL];
} internal_env;

static void *internal_address(void *user, const rq_tape *tape, rq_ref ref)
{
    const internal_env *e = user;
    const rq_value *v = &tape->values[ref];
    if (v->space == RQ_SPACE_ACT)
        for (uint32_t i = 0; i < e->n; i++)
            if (e->owner[i] == v->index) return (char *)e->memory[i] + v->offset;
    return e->outer->address(e->outer->user, tape, ref);
}

static bool is_result(const rq_op *op, rq_ref r)
{
    for (uint32_t o = 0; o < op->n_out; o++)
        if (op->out[o] == r) return true;
    return false;
}

static rq_status run_list(const rq_tape *tape, const rq_op *op, const rq_reference_env *env, rq_error *err)
{
    internal_env inner = {.outer = env};
    rq_reference_env inner_env = *env;
    inner_env.address = internal_address;
    inner_env.user = &inner;
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < op->prim_count && status == RQ_OK; i++) {
        const rq_op *prim = &tape->prims[op->prim_first + i];
        for (uint32_t o = 0; o < prim->n_out && status == RQ_OK; o++) {
            if (is_result(op, prim->out[o])) continue;
            void *memory =
                inner.n < MAX_INTERNAL ? rq_calloc(1, rq_value_span(&tape->values[prim->out[o]])) : NULL;
            if (!memory) {
                status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a fused operation");
                break;
            }
            inner.owner[inner.n] = tape->values[prim->out[o]].index;
            inner.memory[inner.n++] = memory;
        }
        if (status == RQ_OK) status = rq_reference_run(tape, prim, &inner_env, err);
    }
    for (uint32_t i = 0; i < inner.n; i++) rq_free(inner.memory[i]);
    return status;
}

rq_status rq_reference_run(const rq_tape *tape, const rq_op *op, const rq_reference_env *env, rq_error *err)
{
    const rq_ref_run r = {.tape = tape, .op = op, .env = env, .err = err};
    switch (op->kind) {
    case RQ_OP_EMBED:
        return embed(&r);
    case RQ_OP_RMS_NORM:
        return rms_norm(&r);
    case RQ_OP_L2_NORM:
        return l2_norm(&r);
    case RQ_OP_MATMUL:
        return matmul(&r);
    case RQ_OP_ADD:
    case RQ_OP_MUL:
    case RQ_OP_SCALE:
    case RQ_OP_SOFTCAP:
    case RQ_OP_GLU:
        return pointwise(&r);
    case RQ_OP_ROPE:
        return rope(&r);
    case RQ_OP_ROTATE:
        return rq_ref_rotate(&r);
    case RQ_OP_KV_WRITE:
        return rq_ref_kv_write(&r);
    case RQ_OP_KV_ENCODE:
        return rq_ref_kv_encode(&r);
    case RQ_OP_ATTEND:
        return rq_ref_attend(&r);
    case RQ_OP_SHORT_CONV:
        return rq_ref_short_conv(&r);
    case RQ_OP_DELTA_RULE:
        return rq_ref_delta_rule(&r);
    case RQ_OP_ROUTE:
        return rq_ref_route(&r);
    case RQ_OP_GROUP:
        return rq_ref_group(&r);
    case RQ_OP_MATMUL_EXPERTS:
        return rq_ref_matmul_experts(&r);
    case RQ_OP_COMBINE:
        return rq_ref_combine(&r);
    case RQ_OP_COPY:
        return copy(&r);
    case RQ_OP_SELECT_ROWS:
        return select_rows(&r);
    case RQ_OP_ARGMAX:
        return argmax(&r);
    case RQ_OP_PRODUCTS:
    case RQ_OP_GLU_PRODUCTS:
    case RQ_OP_QKV_WRITE:
    case RQ_OP_ATTEND_ROTATE:
    case RQ_OP_COMBINE_ADD:
    case RQ_OP_NORM_JOIN:
        return run_list(tape, op, env, err);
    case RQ_OP_NONE:
    case RQ_OP_COUNT:
        break;
    }
    return rq_fail(err, RQ_ERR_UNSUPPORTED, "operation %d is not in the catalogue", (int)op->kind);
}
