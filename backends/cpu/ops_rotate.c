/* ops_rotate.c - rotations of heads. A unit is one head and up to PIECE tokens of the step. */
#include "backends/cpu/program.h"

#include <math.h>

enum { PIECE = 32 };

typedef struct rotate_args {
    rq_tensor x, y, data, mean, lambda;
    bool inverse;
    uint32_t n_blocks;
    rq_rotate_block blocks[RQ_ROTATE_BLOCKS];
} rotate_args;

static const float *column(const rq_tensor *t, uint32_t head, uint32_t heads)
{
    return t->p ? (const float *)(const void *)(t->p + head / (heads / t->ne[1]) * t->nb[1]) : NULL;
}

static void hadamard(float *x, uint32_t n)
{
    for (uint32_t stride = 1; stride < n; stride *= 2)
        for (uint32_t i = 0; i < n; i += 2 * stride)
            for (uint32_t j = i; j < i + stride; j++) {
                float a = x[j], b = x[j + stride];
                x[j] = a + b;
                x[j + stride] = a - b;
            }
}

static void turn(const float *m, const rq_rotate_block *b, bool inverse, const float *x, float *y)
{
    uint32_t n = b->size;
    if (b->hadamard) {
        float norm = 1.0f / sqrtf((float)n);
        for (uint32_t i = 0; i < n; i++) y[i] = inverse ? x[i] : x[i] * m[i];
        hadamard(y, n);
        for (uint32_t i = 0; i < n; i++) y[i] *= inverse ? m[i] * norm : norm;
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t j = 0; j < n; j++) sum += m[inverse ? j * n + i : i * n + j] * x[j];
        y[i] = sum;
    }
}

static void rotate_row(const rotate_args *a, uint32_t head, const float *x, float *z, float *y)
{
    uint32_t d = a->x.ne[0], heads = a->x.ne[1];
    const float *mean = column(&a->mean, head, heads), *lambda = column(&a->lambda, head, heads),
                *m = column(&a->data, head, heads);
    for (uint32_t i = 0; i < d; i++) {
        z[i] = x[i];
        if (!a->inverse && mean) z[i] -= mean[i];
        if (!a->inverse && lambda) z[i] *= lambda[i];
        y[i] = z[i];
    }
    for (uint32_t b = 0; b < a->n_blocks; b++)
        for (uint32_t k = 0, at = a->blocks[b].offset; k < a->blocks[b].count; k++, at += a->blocks[b].size) {
            turn(m, &a->blocks[b], a->inverse, z + at, y + at);
            m += (uint32_t)a->blocks[b].size * (a->blocks[b].hadamard ? 1 : a->blocks[b].size);
        }
    if (a->inverse && mean)
        for (uint32_t i = 0; i < d; i++) y[i] += mean[i];
}

static void run_rotate(rq_cpu_worker *w, const void *args)
{
    const rotate_args *a = args;
    uint32_t heads = a->x.ne[1], pieces = (w->active + PIECE - 1) / PIECE, unit;
    while (rq_cpu_take(w, heads * pieces, &unit)) {
        uint32_t head = unit % heads, first = unit / heads * PIECE,
                 end = first + PIECE < w->active ? first + PIECE : w->active;
        for (uint32_t t = first; t < end; t++)
            rotate_row(a, head, (const float *)(const void *)(a->x.p + head * a->x.nb[1] + t * a->x.nb[2]),
                       (float *)w->own, (float *)(void *)(a->y.p + head * a->y.nb[1] + t * a->y.nb[2]));
    }
}

void rq_cpu_rotate(rq_cpu_builder *b, const rq_op *op)
{
    rotate_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->data = rq_cpu_tensor(b, op->in[1]);
    a->mean = rq_cpu_tensor(b, op->in[2]);
    a->lambda = rq_cpu_tensor(b, op->in[3]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->inverse = op->p.rotate.inverse;
    a->n_blocks = op->p.rotate.n_blocks;
    for (uint32_t i = 0; i < a->n_blocks; i++) a->blocks[i] = op->p.rotate.blocks[i];
    rq_cpu_own(b, a->x.ne[0] * sizeof(float));
    rq_cpu_emit(b, run_rotate, a, false);
}
