/* ops_pointwise.c - operations on rows: embedding, norm, add, multiply, scale, soft cap, gates, rotary positions. */
#include "backends/cpu/program.h"

#include <math.h>
#include <string.h>

/* Units of about this many elements: some microseconds of work, small enough to share well. */
enum { UNIT_ELEMS = 16 * 1024 };

static uint32_t rows_per_unit(uint32_t n)
{
    return n >= UNIT_ELEMS ? 1 : UNIT_ELEMS / n;
}

/* The next range of rows of the instruction, false when all are taken. */
static bool take_rows(rq_cpu_worker *w, uint32_t n_rows, uint32_t n, uint32_t *first, uint32_t *end)
{
    uint32_t per_unit = rows_per_unit(n), unit;
    if (!rq_cpu_take(w, (n_rows + per_unit - 1) / per_unit, &unit)) return false;
    *first = unit * per_unit;
    *end = *first + per_unit < n_rows ? *first + per_unit : n_rows;
    return true;
}

/* ---- embed ----------------------------------------------------------------------------------------------- */

typedef struct embed_args {
    rq_tensor table, y;
    void (*dequantize)(const void *src, float *dst, int64_t n);
    const int32_t *sampled; /* NULL: none */
    uint32_t n_sampled;
} embed_args;

static void run_embed(rq_cpu_worker *w, const void *args)
{
    const embed_args *a = args;
    const int32_t *ids = rq_step_at(w->words, w->header->token_id);
    uint32_t first, end;
    while (take_rows(w, w->active, a->y.ne[0], &first, &end))
        for (uint32_t t = first; t < end; t++) {
            int64_t id = ids[t];
            if (id < 0) id = a->sampled && -1 - id < a->n_sampled ? a->sampled[-1 - id] : -1;
            float *y = (float *)(a->y.p + t * a->y.nb[1]);
            if (id < 0 || id >= a->table.ne[1])
                memset(y, 0, a->y.ne[0] * sizeof *y);
            else
                a->dequantize(a->table.p + (uint64_t)id * a->table.nb[1], y, a->y.ne[0]);
        }
}

void rq_cpu_embed(rq_cpu_builder *b, const rq_op *op)
{
    embed_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->table = rq_cpu_tensor(b, op->in[0]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->dequantize = rq_type_get((uint32_t)a->table.type)->dequantize;
    const rq_memory *sampled = rq_cpu_bindings(b)->persist[RQ_PERSIST_SAMPLED];
    if (sampled) {
        a->sampled = sampled->host;
        a->n_sampled = (uint32_t)(sampled->bytes / sizeof(int32_t));
    }
    rq_cpu_emit(b, run_embed, a, false);
}

/* ---- one operand a row, another the same row or one for all ---------------------------------------------- */

typedef struct row_args {
    rq_tensor a, b, y;
    rq_rows rows;
    float f;
    rq_act act;
    bool b_is_row;
} row_args;

static const float *row_b(const row_args *a, uint32_t r)
{
    return (const float *)(a->b_is_row ? (void *)a->b.p : rq_row_of(&a->b, &a->rows, r));
}

static row_args *row_op(rq_cpu_builder *b, rq_ref x, rq_ref second, rq_ref y)
{
    row_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return NULL;
    a->a = rq_cpu_tensor(b, x);
    a->b = rq_cpu_tensor(b, second);
    a->y = rq_cpu_tensor(b, y);
    a->rows = rq_cpu_rows(b, &a->a);
    a->b_is_row = (uint64_t)a->b.ne[1] * a->b.ne[2] * a->b.ne[3] == 1;
    return a;
}

#define RQ_ROW_LOOP(a)                                                                                       \
    for (uint32_t first, end; take_rows(w, rq_rows_active(&(a)->rows, w), (a)->rows.ne[0], &first, &end);)   \
        for (uint32_t r = first; r < end; r++)

static void run_rms_norm(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    w->vec->rms_norm(rq_row_of(&a->a, &a->rows, r), (const float *)(const void *)a->b.p,
                     rq_row_of(&a->y, &a->rows, r), a->rows.ne[0], a->f);
}

void rq_cpu_rms_norm(rq_cpu_builder *b, const rq_op *op)
{
    row_args *a = row_op(b, op->in[0], op->in[1], op->out[0]);
    if (!a) return;
    a->f = op->p.norm.eps;
    rq_cpu_emit(b, run_rms_norm, a, false);
}

static void run_add(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    w->vec->add(rq_row_of(&a->a, &a->rows, r), row_b(a, r), rq_row_of(&a->y, &a->rows, r), a->rows.ne[0]);
}

static void run_mul(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    w->vec->mul(rq_row_of(&a->a, &a->rows, r), row_b(a, r), rq_row_of(&a->y, &a->rows, r), a->rows.ne[0]);
}

void rq_cpu_add_mul(rq_cpu_builder *b, const rq_op *op)
{
    row_args *a = row_op(b, op->in[0], op->in[1], op->out[0]);
    rq_cpu_emit(b, op->kind == RQ_OP_ADD ? run_add : run_mul, a, false);
}

static void run_scale(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    w->vec->scale(rq_row_of(&a->a, &a->rows, r), a->f, rq_row_of(&a->y, &a->rows, r), a->rows.ne[0]);
}

void rq_cpu_scale(rq_cpu_builder *b, const rq_op *op)
{
    row_args *a = row_op(b, op->in[0], 0, op->out[0]);
    if (!a) return;
    a->f = op->p.scale.factor;
    rq_cpu_emit(b, run_scale, a, false);
}

/* tanh |z| = (1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where that loses digits, its series up to |z|^7, whose
 * next term is 62/2835 |z|^9. */
static void run_softcap(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    uint32_t n = a->rows.ne[0];
    float cap = a->f, inverse = 1.0f / cap;
    RQ_ROW_LOOP(a)
    {
        const float *x = rq_row_of(&a->a, &a->rows, r);
        float *y = rq_row_of(&a->y, &a->rows, r);
        for (uint32_t i = 0; i < n; i++) y[i] = -2.0f * fabsf(x[i] * inverse);
        w->vec->exp(y, y, n);
        for (uint32_t i = 0; i < n; i++) {
            float z = fabsf(x[i] * inverse), zz = z * z;
            float near = z * (1.0f - zz * (1.0f / 3 - zz * (2.0f / 15 - zz * (17.0f / 315))));
            float far = (1.0f - y[i]) / (1.0f + y[i]);
            y[i] = copysignf(cap * (z < 0.2f ? near : far), x[i]);
        }
    }
}

void rq_cpu_softcap(rq_cpu_builder *b, const rq_op *op)
{
    row_args *a = row_op(b, op->in[0], 0, op->out[0]);
    if (!a) return;
    a->f = op->p.softcap.cap;
    rq_cpu_emit(b, run_softcap, a, false);
}

static void run_glu_one(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    {
        float one = 1.0f, gate;
        w->vec->glu(rq_row_of(&a->a, &a->rows, r), &one, &gate, 1, a->act);
        w->vec->scale(rq_row_of(&a->b, &a->rows, r), gate, rq_row_of(&a->y, &a->rows, r), a->rows.ne[0]);
    }
}

static void run_glu(rq_cpu_worker *w, const void *args)
{
    const row_args *a = args;
    RQ_ROW_LOOP(a)
    w->vec->glu(rq_row_of(&a->a, &a->rows, r), rq_row_of(&a->b, &a->rows, r), rq_row_of(&a->y, &a->rows, r),
                a->rows.ne[0], a->act);
}

void rq_cpu_glu(rq_cpu_builder *b, const rq_op *op)
{
    row_args *a = row_op(b, op->in[0], op->in[1], op->out[0]);
    if (!a) return;
    a->act = op->p.glu.act;
    a->rows = rq_cpu_rows(b, &a->b);
    rq_cpu_emit(b, a->a.ne[0] < a->b.ne[0] ? run_glu_one : run_glu, a, false);
}

/* ---- rotary positions ------------------------------------------------------------------------------------ */

/* The angle is the f32 product that the catalogue defines; its cos and sin are taken in double. */
void rq_cpu_run_rope_table(rq_cpu_worker *w, const void *args)
{
    const rq_rope_table *a = args;
    const uint32_t *pos = rq_cpu_token_pos(w);
    uint32_t half = a->n_rot / 2, t;
    while (rq_cpu_take(w, w->active, &t)) {
        float *table = (float *)(w->fixed + a->offset) + (size_t)t * a->n_rot;
        for (uint32_t i = 0; i < half; i++) {
            double angle = (float)pos[t] * a->inv_freq[i], c, s;
            sincos(angle, &s, &c);
            table[i] = (float)(c * (double)a->magnitude);
            table[half + i] = (float)(s * (double)a->magnitude);
        }
    }
}

typedef struct rope_args {
    rq_tensor x, y;
    uint64_t table;
    uint32_t n_rot;
    rq_pairing pairing;
} rope_args;

static void run_rope(rq_cpu_worker *w, const void *args)
{
    const rope_args *a = args;
    const float *table = (const float *)(w->fixed + a->table);
    uint32_t d = a->x.ne[0], heads = a->x.ne[1], first, end;
    while (take_rows(w, w->active, d * heads, &first, &end))
        for (uint32_t t = first; t < end; t++)
            for (uint32_t h = 0; h < heads; h++)
                w->vec->rope((const float *)(a->x.p + h * a->x.nb[1] + t * a->x.nb[2]),
                             table + (size_t)t * a->n_rot, table + (size_t)t * a->n_rot + a->n_rot / 2,
                             (float *)(a->y.p + h * a->y.nb[1] + t * a->y.nb[2]), d, a->n_rot, a->pairing);
}

void rq_cpu_rope(rq_cpu_builder *b, const rq_op *op)
{
    rope_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->n_rot = op->p.rope.n_rot;
    a->pairing = op->p.rope.pairing;
    a->table = rq_cpu_rope_table(b, (const float *)(void *)rq_cpu_tensor(b, op->in[1]).p, a->n_rot,
                                 op->p.rope.magnitude);
    rq_cpu_emit(b, run_rope, a, false);
}
