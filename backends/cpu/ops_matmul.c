/* ops_matmul.c - matrix products, alone and fused with the norm before or the addition after them.
 *
 * A product is one or two instructions. First the columns become activation rows (normed, then quantised as the
 * weights want it); products of the same x share them. Then all rows of all weights are cut into units of
 * about UNIT_BYTES weight bytes. With a single column every worker makes the activation row for itself: a
 * microsecond of repeated work costs less than meeting at a barrier. */
#include "backends/cpu/program.h"

#include <string.h>

enum {
    MAX_WEIGHTS = 3,
    UNIT_BYTES = 128 * 1024, /* weights: 10 us at 13 GB/s */
    ROW_MULTIPLE = 16        /* units begin at multiples of this many rows: whole tiles of every kernel */
};

typedef struct weight_args {
    rq_tensor w;
    float *y;
    uint64_t y_stride; /* floats between columns */
    uint32_t set;      /* which activation rows */
    uint32_t unit_rows, first_unit, n_units;
} weight_args;

/* Activation rows of one kind. `in_place`: the floats of x themselves. */
typedef struct act_set {
    rq_type type; /* of one of the weights that read them */
    bool in_place;
    uint64_t offset, stride; /* in the scratch the mode says */
} act_set;

typedef struct matmul_args {
    rq_tensor x;
    const float *norm;
    float eps;
    bool normed, own; /* own: activation rows in each worker's scratch */
    uint32_t n_in, n_columns;
    act_set sets[MAX_WEIGHTS];
    uint32_t n_sets;
    weight_args w[MAX_WEIGHTS];
    uint32_t n_w, n_units;
    uint64_t own_norm, own_gate, own_mm; /* offsets in the worker's scratch */
    /* after the product */
    bool glu;
    rq_act act;
    rq_tensor addend;
    bool add, add_row;
} matmul_args;

static uint32_t columns_of(const rq_cpu_worker *w, const matmul_args *a)
{
    return w->active < a->n_columns ? w->active : a->n_columns;
}

/* Column t to its activation rows. */
static void convert_column(const rq_cpu_worker *w, const matmul_args *a, uint32_t t)
{
    const float *x = (const float *)(a->x.p + t * a->x.nb[1]);
    if (a->normed) {
        float *y = (float *)(w->own + a->own_norm);
        w->vec->rms_norm(x, a->norm, y, a->n_in, a->eps);
        x = y;
    }
    uint8_t *base = a->own ? w->own : w->shared;
    for (uint32_t i = 0; i < a->n_sets; i++)
        if (!a->sets[i].in_place)
            rq_matmul_quantize_act(w->isa, a->sets[i].type, x,
                                   base + a->sets[i].offset + t * a->sets[i].stride, a->n_in);
}

static void run_convert(rq_cpu_worker *w, const void *args)
{
    const matmul_args *a = args;
    uint32_t t, n = columns_of(w, a);
    while (rq_cpu_take(w, n, &t)) convert_column(w, a, t);
}

static void multiply(const rq_cpu_worker *w, const matmul_args *a, const weight_args *m, uint32_t r0,
                     uint32_t r1, uint32_t n, float *y, size_t y_stride)
{
    const act_set *set = &a->sets[m->set];
    const uint8_t *acts = set->in_place ? a->x.p : (a->own ? w->own : w->shared) + set->offset;
    /* y is written from row r0 on, the kernel counts from row 0 of the weights it is given */
    rq_matmul_rows(w->isa, m->w.type, m->w.p + r0 * m->w.nb[1], m->w.nb[1], a->n_in, 0, r1 - r0, acts,
                   set->in_place ? a->x.nb[1] : set->stride, n, y, y_stride, w->own + a->own_mm);
}

static void run_products(rq_cpu_worker *w, const void *args)
{
    const matmul_args *a = args;
    uint32_t n = columns_of(w, a), unit;
    bool converted = !a->own;
    while (rq_cpu_take(w, a->n_units, &unit)) {
        if (!converted) {
            for (uint32_t t = 0; t < n; t++) convert_column(w, a, t);
            converted = true;
        }
        uint32_t i = 0;
        while (i + 1 < a->n_w && unit >= a->w[i + 1].first_unit) i++;
        const weight_args *m = &a->w[i];
        uint32_t rows = m->w.ne[1], r0 = (unit - m->first_unit) * m->unit_rows,
                 r1 = r0 + m->unit_rows < rows ? r0 + m->unit_rows : rows;
        multiply(w, a, m, r0, r1, n, m->y + r0, m->y_stride);
        if (!a->add) continue;
        for (uint32_t t = 0; t < n; t++) {
            const float *addend = (const float *)(a->addend.p + (a->add_row ? 0 : t * a->addend.nb[1]));
            float *y = m->y + t * m->y_stride + r0;
            w->vec->add(y, addend + r0, y, r1 - r0);
        }
    }
}

/* Both products of a unit of rows, then the gate; columns in pieces so that gate and up stay in the cache. */
enum { GLU_FLOATS = 8192 };

static void run_glu_products(rq_cpu_worker *w, const void *args)
{
    const matmul_args *a = args;
    uint32_t n = columns_of(w, a), unit;
    bool converted = !a->own;
    float *gate = (float *)(w->own + a->own_gate);
    while (rq_cpu_take(w, a->n_units, &unit)) {
        if (!converted) {
            for (uint32_t t = 0; t < n; t++) convert_column(w, a, t);
            converted = true;
        }
        const weight_args *g = &a->w[0], *u = &a->w[1];
        uint32_t rows = g->w.ne[1], r0 = unit * g->unit_rows,
                 r1 = r0 + g->unit_rows < rows ? r0 + g->unit_rows : rows, n_rows = r1 - r0;
        multiply(w, a, g, r0, r1, n, gate, n_rows);
        multiply(w, a, u, r0, r1, n, u->y + r0, u->y_stride);
        for (uint32_t t = 0; t < n; t++) {
            float *y = u->y + t * u->y_stride + r0;
            w->vec->glu(gate + (size_t)t * n_rows, y, y, n_rows, a->act);
        }
    }
}

/* ---- compiling ------------------------------------------------------------------------------------------- */

static uint32_t unit_rows_of(const weight_args *m, uint32_t n_workers)
{
    uint64_t rows = UNIT_BYTES / (m->w.nb[1] ? m->w.nb[1] : 1);
    uint64_t fair = m->w.ne[1] / (4ull * n_workers); /* at least four units for each worker */
    if (rows > fair) rows = fair;
    rows -= rows % ROW_MULTIPLE;
    return rows < ROW_MULTIPLE ? ROW_MULTIPLE : (uint32_t)rows;
}

static void add_weight(rq_cpu_builder *b, matmul_args *a, rq_ref ref, rq_ref out)
{
    weight_args *m = &a->w[a->n_w++];
    m->w = rq_cpu_tensor(b, ref);
    rq_tensor y = rq_cpu_tensor(b, out);
    m->y = (float *)(void *)y.p;
    m->y_stride = y.nb[1] / sizeof(float);
    size_t bytes = rq_matmul_act_bytes(m->w.type, a->n_in);
    if (bytes == 0 || m->w.ne[0] != a->n_in || y.ne[0] != m->w.ne[1]) {
        rq_cpu_fail(b, "its weight has an unsuitable type or shape");
        return;
    }
    rq_act_kind kind = rq_matmul_act_kind(m->w.type);
    for (m->set = 0; m->set < a->n_sets; m->set++)
        if (rq_matmul_act_kind(a->sets[m->set].type) == kind) return;
    act_set *set = &a->sets[a->n_sets++];
    set->type = m->w.type;
    set->in_place = kind == RQ_ACT_F32 && !a->normed;
    set->stride = (bytes + 63) & ~(uint64_t)63;
}

static uint64_t round_64(uint64_t bytes)
{
    return (bytes + 63) & ~63ull;
}

/* Places scratch, cuts units and emits the instructions. */
static void finish(rq_cpu_builder *b, matmul_args *a)
{
    uint32_t n_workers = rq_pool_size(rq_cpu_device_of(b)->pool);
    uint64_t own = 0;
    bool convert = false;
    a->own = a->n_columns == 1;
    for (uint32_t i = 0; i < a->n_sets; i++) {
        if (a->sets[i].in_place) continue;
        uint64_t bytes = a->sets[i].stride * a->n_columns;
        convert = true;
        if (a->own) {
            a->sets[i].offset = own;
            own += bytes;
        } else {
            a->sets[i].offset = rq_cpu_shared(b, bytes);
        }
    }
    a->own_norm = own;
    if (a->normed) own += round_64(a->n_in * sizeof(float));
    for (uint32_t i = 0; i < a->n_w; i++) {
        weight_args *m = &a->w[i];
        m->unit_rows = unit_rows_of(m, n_workers);
        if (a->glu) {
            uint32_t most = GLU_FLOATS / a->n_columns / ROW_MULTIPLE * ROW_MULTIPLE;
            if (most < ROW_MULTIPLE) most = ROW_MULTIPLE;
            if (m->unit_rows > most) m->unit_rows = most;
            if (i == 1) m->unit_rows = a->w[0].unit_rows;
        }
        m->n_units = (m->w.ne[1] + m->unit_rows - 1) / m->unit_rows;
        m->first_unit = a->n_units;
        a->n_units += m->n_units;
    }
    if (a->glu) {
        a->n_units = a->w[0].n_units;
        a->own_gate = own;
        own += round_64((uint64_t)a->w[0].unit_rows * a->n_columns * sizeof(float));
    }
    a->own_mm = own;
    own += rq_matmul_scratch_bytes();
    rq_cpu_own(b, own);
    if (convert && !a->own) rq_cpu_emit(b, run_convert, a, false);
    rq_cpu_emit(b, a->glu ? run_glu_products : run_products, a, convert && !a->own);
}

static matmul_args *begin(rq_cpu_builder *b, rq_ref x)
{
    matmul_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return NULL;
    a->x = rq_cpu_tensor(b, x);
    a->n_in = a->x.ne[0];
    a->n_columns = a->x.ne[1];
    if ((uint64_t)a->x.ne[2] * a->x.ne[3] != 1) rq_cpu_fail(b, "its activations have more than two extents");
    return a;
}

void rq_cpu_matmul(rq_cpu_builder *b, const rq_op *op)
{
    matmul_args *a = begin(b, op->in[1]);
    if (!a) return;
    add_weight(b, a, op->in[0], op->out[0]);
    finish(b, a);
}

void rq_cpu_products(rq_cpu_builder *b, const rq_op *op)
{
    matmul_args *a = begin(b, op->in[0]);
    if (!a) return;
    a->norm = (const float *)(void *)rq_cpu_tensor(b, op->in[1]).p;
    a->normed = op->p.fused.normed;
    a->eps = op->p.fused.eps;
    if (op->kind == RQ_OP_GLU_PRODUCTS) {
        a->glu = true;
        a->act = op->p.fused.act;
        add_weight(b, a, op->in[2], op->out[0]);
        add_weight(b, a, op->in[3], op->out[0]);
        if (a->w[0].w.ne[1] != a->w[1].w.ne[1]) rq_cpu_fail(b, "gate and up differ in shape");
    } else {
        for (uint32_t i = 0; i < op->n_out && i < MAX_WEIGHTS; i++)
            add_weight(b, a, op->in[2 + i], op->out[i]);
        if (op->in[2 + RQ_PRODUCTS_MAX]) {
            a->addend = rq_cpu_tensor(b, op->in[2 + RQ_PRODUCTS_MAX]);
            a->add = true;
            a->add_row = a->addend.ne[1] == 1;
        }
    }
    finish(b, a);
}
