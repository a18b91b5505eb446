/* ops_rotate.c - rotations of heads.
 *
 * The blocks of a rotation are brought into the tables of vec/heads.h when a program is compiled: neighbouring
 * small blocks together make pieces of up to eight elements, and rows and columns change places where that is
 * needed, so that one kernel serves every rotation and both directions. The tables of a rotation are kept by the
 * device for all its programs. */
#include "backends/base/mem.h"
#include "backends/cpu/program.h"

#include <string.h>

/* Elements of a unit of work, at least one row. */
enum { UNIT_ELEMENTS = 4096 };

struct rq_cpu_rotation {
    rq_cpu_rotation *next;
    uint32_t n_programs;
    /* what it was made of */
    const uint8_t *data;
    uint64_t column_bytes;
    uint32_t columns, n_blocks;
    rq_rotation_block blocks[RQ_ROTATION_BLOCKS];
    bool inverse;
    /* what it is: as many turns as there are blocks */
    rq_head_turn turns[RQ_ROTATION_BLOCKS];
    uint64_t column_floats;
    float *tables; /* [columns][column_floats] */
};

/* ---- tables ---------------------------------------------------------------------------------------------- */

static rq_head_turn turn_of(const rq_rotation_block *b)
{
    uint32_t together = b->hadamard || b->size > 4 ? 1 : 8 / b->size;
    return (rq_head_turn){.offset = b->offset,
                          .count = (b->count + together - 1) / together,
                          .n = together * b->size,
                          .lanes = (together * b->size + 7) & ~7u,
                          .hadamard = b->hadamard};
}

/* Fills the tables of one column; a last piece that is not full stays zero where it has no block. */
static void fill(const rq_cpu_rotation *r, const float *m, float *table)
{
    for (uint32_t i = 0; i < r->n_blocks; i++) {
        const rq_rotation_block *b = &r->blocks[i];
        const rq_head_turn *t = &r->turns[i];
        uint32_t n = b->size, together = t->n / n;
        if (b->hadamard) {
            memcpy(table, m, (size_t)b->count * n * sizeof *m);
            m += (size_t)b->count * n;
        }
        for (uint32_t k = 0; k < b->count && !b->hadamard; k++, m += (size_t)n * n) {
            uint32_t first = k % together * n; /* of the block's rows and lanes in its piece */
            float *to = table + (size_t)(k / together) * t->n * t->lanes;
            for (uint32_t x = 0; x < n; x++)
                for (uint32_t y = 0; y < n; y++)
                    to[(first + x) * t->lanes + first + y] = m[r->inverse ? x * n + y : y * n + x];
        }
        table += rq_head_turn_floats(t);
    }
}

static bool is_same(const rq_cpu_rotation *r, const rq_tensor *data, const rq_op *op)
{
    if (r->data != data->p || r->column_bytes != data->nb[1] || r->columns != data->ne[1] ||
        r->n_blocks != op->p.rotate.n_blocks || r->inverse != op->p.rotate.inverse)
        return false;
    for (uint32_t i = 0; i < r->n_blocks; i++) {
        const rq_rotation_block *a = &r->blocks[i], *b = &op->p.rotate.blocks[i];
        if (a->offset != b->offset || a->count != b->count || a->size != b->size ||
            a->hadamard != b->hadamard)
            return false;
    }
    return true;
}

void rq_cpu_rotation_release(rq_cpu_device *device, rq_cpu_rotation *r)
{
    if (!r || --r->n_programs) return;
    rq_cpu_rotation **at = &device->rotations;
    while (*at != r) at = &(*at)->next;
    *at = r->next;
    rq_free(r->tables);
    rq_free(r);
}

/* The device's tables for the operation, made if they are not there; NULL when memory ran out. */
static rq_cpu_rotation *acquire(rq_cpu_device *device, const rq_tensor *data, const rq_op *op)
{
    for (rq_cpu_rotation *r = device->rotations; r; r = r->next)
        if (is_same(r, data, op)) {
            r->n_programs++;
            return r;
        }
    rq_cpu_rotation *r = rq_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->n_programs = 1;
    r->data = data->p;
    r->column_bytes = data->nb[1];
    r->columns = data->ne[1];
    r->n_blocks = op->p.rotate.n_blocks;
    r->inverse = op->p.rotate.inverse;
    for (uint32_t i = 0; i < r->n_blocks; i++) {
        r->blocks[i] = op->p.rotate.blocks[i];
        r->turns[i] = turn_of(&r->blocks[i]);
        r->column_floats += rq_head_turn_floats(&r->turns[i]);
    }
    r->tables = rq_calloc_aligned(64, r->column_floats * r->columns * sizeof(float));
    if (!r->tables) {
        rq_free(r);
        return NULL;
    }
    for (uint32_t c = 0; c < r->columns; c++)
        fill(r, (const float *)(const void *)(r->data + c * r->column_bytes),
             r->tables + c * r->column_floats);
    r->next = device->rotations;
    device->rotations = r;
    return r;
}

/* ---- running --------------------------------------------------------------------------------------------- */

typedef struct rotate_args {
    rq_tensor x, y, mean, lambda;
    const rq_heads *heads;
    const rq_cpu_rotation *rotation; /* NULL: there are no blocks */
    bool inverse;
    uint32_t unit_rows;
} rotate_args;

/* Column of a table for a head, NULL where there is no table. */
static const float *column(const rq_tensor *t, uint32_t head, uint32_t heads)
{
    return t->p ? (const float *)(const void *)(t->p + head / (heads / t->ne[1]) * t->nb[1]) : NULL;
}

/* Row `i` of [d, heads, tokens]. */
static float *head_row(const rq_tensor *t, uint32_t i)
{
    return (float *)(void *)(t->p + i % t->ne[1] * t->nb[1] + i / t->ne[1] * t->nb[2]);
}

/* Rows [first, first + n) of the step, which take the same tables. */
static void rotate_rows(const rq_cpu_worker *w, const rotate_args *a, uint32_t first, uint32_t n)
{
    uint32_t d = a->x.ne[0], heads = a->x.ne[1], stride = d + RQ_TURN_PAD;
    float *x = (float *)w->own, *y = x + (size_t)RQ_TURN_ROWS * stride;
    const rq_cpu_rotation *rotation = a->rotation;
    for (uint32_t r = 0; r < n; r++) {
        const float *mean = NULL, *lambda = NULL;
        if (!a->inverse) {
            mean = column(&a->mean, (first + r) % heads, heads);
            lambda = column(&a->lambda, (first + r) % heads, heads);
        }
        a->heads->shift(head_row(&a->x, first + r), mean, lambda, (rotation ? x : y) + (size_t)r * stride, d);
    }
    if (rotation) {
        const float *table =
            rotation->tables + first % heads / (heads / rotation->columns) * rotation->column_floats;
        for (uint32_t i = 0; i < rotation->n_blocks; i++) {
            a->heads->turn(&rotation->turns[i], table, a->inverse, x, y, stride, n);
            table += rq_head_turn_floats(&rotation->turns[i]);
        }
    }
    for (uint32_t r = 0; r < n; r++)
        a->heads->unshift(y + (size_t)r * stride,
                          a->inverse ? column(&a->mean, (first + r) % heads, heads) : NULL,
                          head_row(&a->y, first + r), d);
}

static void run_rotate(rq_cpu_worker *w, const void *args)
{
    const rotate_args *a = args;
    uint32_t d = a->x.ne[0], heads = a->x.ne[1], rows = heads * w->active, unit;
    uint32_t share = a->rotation ? heads / a->rotation->columns : heads; /* neighbours with one table */
    bool alone = share == heads;                                         /* one table for everything */
    while (rq_cpu_take(w, (rows + a->unit_rows - 1) / a->unit_rows, &unit)) {
        uint32_t first = unit * a->unit_rows, end = first + a->unit_rows < rows ? first + a->unit_rows : rows;
        for (uint32_t r = 0; r < RQ_TURN_ROWS; r++)
            memset((float *)w->own + r * (size_t)(d + RQ_TURN_PAD) + d, 0, RQ_TURN_PAD * sizeof(float));
        for (uint32_t n; first < end; first += n) {
            n = end - first < RQ_TURN_ROWS ? end - first : RQ_TURN_ROWS;
            if (!alone && n > share - first % share) n = share - first % share;
            rotate_rows(w, a, first, n);
        }
    }
}

void rq_cpu_rotate(rq_cpu_builder *b, const rq_op *op)
{
    rotate_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->mean = rq_cpu_tensor(b, op->in[2]);
    a->lambda = rq_cpu_tensor(b, op->in[3]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->heads = rq_heads_of(rq_cpu_device_of(b)->isa);
    a->inverse = op->p.rotate.inverse;
    rq_tensor data = rq_cpu_tensor(b, op->in[1]);
    if (data.p) {
        rq_cpu_rotation *r = acquire(rq_cpu_device_of(b), &data, op);
        rq_cpu_hold_rotation(b, r);
        a->rotation = r;
    }
    a->unit_rows = a->x.ne[0] < UNIT_ELEMENTS ? UNIT_ELEMENTS / a->x.ne[0] : 1;
    rq_cpu_own(b, 2ull * RQ_TURN_ROWS * (a->x.ne[0] + RQ_TURN_PAD) * sizeof(float));
    rq_cpu_emit(b, run_rotate, a, false);
}
