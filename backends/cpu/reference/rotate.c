/* rotate.c - rotations of heads, forward, inverse and affine, from the text of ops.h. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"

#include <math.h>

/* Column of a per-head table (one for all heads, or one for several neighbours); NULL where it is absent. */
static const float *column(const rq_ref_view *table, uint32_t head, uint32_t heads)
{
    return table->data ? rq_ref_f32(table, 0, head / (heads / table->v->ne[1]), 0, 0) : NULL;
}

/* H x, without the factor. */
static void hadamard(double *x, uint32_t n)
{
    for (uint32_t stride = 1; stride < n; stride *= 2)
        for (uint32_t i = 0; i < n; i++) {
            if (i & stride) continue;
            double a = x[i], b = x[i + stride];
            x[i] = a + b;
            x[i + stride] = a - b;
        }
}

/* y = R x or R^T x for one block of n elements. */
static void turn(const float *m, uint32_t n, bool is_hadamard, bool inverse, const double *x, double *y)
{
    if (is_hadamard) {
        for (uint32_t i = 0; i < n; i++) y[i] = inverse ? x[i] : x[i] * (double)m[i];
        hadamard(y, n);
        for (uint32_t i = 0; i < n; i++) y[i] = y[i] * (inverse ? (double)m[i] : 1.0) / sqrt((double)n);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        y[i] = 0;
        for (uint32_t j = 0; j < n; j++) y[i] += (double)m[inverse ? j * n + i : i * n + j] * x[j];
    }
}

rq_status rq_ref_rotate(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 0), data = rq_ref_in(r, 1), mean = rq_ref_in(r, 2), lambda = rq_ref_in(r, 3),
                y = rq_ref_out(r, 0);
    uint32_t d = x.v->ne[0], heads = x.v->ne[1];
    bool inverse = r->op->p.rotate.inverse;
    double *in = rq_calloc(2 * (size_t)d, sizeof *in), *out = in + d;
    if (!in) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a rotation");
    for (uint32_t t = 0; t < r->tape->bucket; t++)
        for (uint32_t head = 0; head < heads; head++) {
            const float *mu = column(&mean, head, heads), *la = column(&lambda, head, heads);
            for (uint32_t i = 0; i < d; i++) {
                in[i] = *rq_ref_f32(&x, i, head, t, 0);
                if (!inverse && mu) in[i] -= (double)mu[i];
                if (!inverse && la) in[i] *= (double)la[i];
                out[i] = in[i];
            }
            const float *m = column(&data, head, heads);
            for (uint32_t b = 0; b < r->op->p.rotate.n_blocks; b++) {
                const rq_rotation_block *block = &r->op->p.rotate.blocks[b];
                for (uint32_t k = 0; k < block->count; k++) {
                    uint32_t at = block->offset + k * block->size;
                    turn(m, block->size, block->hadamard, inverse, in + at, out + at);
                    m += (uint64_t)block->size * (block->hadamard ? 1 : block->size);
                }
            }
            for (uint32_t i = 0; i < d; i++)
                *rq_ref_f32(&y, i, head, t, 0) = (float)(inverse && mu ? out[i] + (double)mu[i] : out[i]);
        }
    rq_free(in);
    return RQ_OK;
}
