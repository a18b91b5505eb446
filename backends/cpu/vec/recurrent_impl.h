/* recurrent_impl.h - what recurrent layers do to rows, over the registers of simd.h. Included once per table. */
#include "backends/cpu/vec/math_impl.h"
#include "backends/cpu/vec/vec.h"

#include <math.h>

static void l2_norm(const float *x, float *y, size_t n, float eps)
{
    float length = sqrtf(sum_of_squares(x, n));
    vf f = vf_set(1.0f / (length > eps ? length : eps));
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_load(x + i), f));
    if (i < n) vf_store_part(y + i, vf_mul(vf_load_part(x + i, n - i), f), n - i);
}

static void conv_silu(const float *const *x, const float *w, size_t stride, uint32_t taps, float *y, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf sum = vf_mul(vf_load(x[0] + i), vf_load(w + i));
        for (uint32_t j = 1; j < taps; j++) sum = vf_fma(vf_load(x[j] + i), vf_load(w + j * stride + i), sum);
        vf_store(y + i, vf_silu(sum));
    }
    if (i == n) return;
    vf sum = vf_mul(vf_load_part(x[0] + i, n - i), vf_load_part(w + i, n - i));
    for (uint32_t j = 1; j < taps; j++)
        sum = vf_fma(vf_load_part(x[j] + i, n - i), vf_load_part(w + j * stride + i, n - i), sum);
    vf_store_part(y + i, vf_silu(sum), n - i);
}

/* Columns [m, m + regs * VL) of the matrix: read, then written and read again while they are in the first cache.
 * regs is a constant where this is expanded. */
RQ_INLINE void delta_columns(const rq_delta_token *t, size_t m, int regs)
{
    vf read[8], sum[8];
    for (int r = 0; r < regs; r++) read[r] = sum[r] = vf_set(0);
    for (uint32_t i = 0; i < t->dim_k; i++) {
        const float *s = t->s + (size_t)i * t->dim_v + m;
        vf k = vf_set(t->k[i]);
        for (int r = 0; r < regs; r++) read[r] = vf_fma(vf_load(s + (size_t)r * VL), k, read[r]);
    }
    vf decay = vf_set(t->decay), write = vf_set(t->write);
    for (int r = 0; r < regs; r++)
        read[r] = vf_mul(write, vf_sub(vf_load(t->v + m + (size_t)r * VL), vf_mul(decay, read[r])));
    for (uint32_t i = 0; i < t->dim_k; i++) {
        float *s = t->s + (size_t)i * t->dim_v + m;
        vf k = vf_set(t->k[i]), q = vf_set(t->q[i]);
        for (int r = 0; r < regs; r++) {
            vf e = vf_fma(k, read[r], vf_mul(decay, vf_load(s + (size_t)r * VL)));
            vf_store(s + (size_t)r * VL, e);
            sum[r] = vf_fma(e, q, sum[r]);
        }
    }
    vf scale = vf_set(t->scale);
    for (int r = 0; r < regs; r++) vf_store(t->y + m + (size_t)r * VL, vf_mul(scale, sum[r]));
}

/* The last n < VL columns. */
static void delta_rest(const rq_delta_token *t, size_t m, size_t n)
{
    vf read = vf_set(0), sum = vf_set(0), decay = vf_set(t->decay);
    for (uint32_t i = 0; i < t->dim_k; i++)
        read = vf_fma(vf_load_part(t->s + (size_t)i * t->dim_v + m, n), vf_set(t->k[i]), read);
    vf d = vf_mul(vf_set(t->write), vf_sub(vf_load_part(t->v + m, n), vf_mul(decay, read)));
    for (uint32_t i = 0; i < t->dim_k; i++) {
        float *s = t->s + (size_t)i * t->dim_v + m;
        vf e = vf_fma(vf_set(t->k[i]), d, vf_mul(decay, vf_load_part(s, n)));
        vf_store_part(s, e, n);
        sum = vf_fma(e, vf_set(t->q[i]), sum);
    }
    vf_store_part(t->y + m, vf_mul(vf_set(t->scale), sum), n);
}

static void delta_token(const rq_delta_token *t)
{
    size_t m = 0;
    for (; m + 4 * VL <= t->dim_v; m += 4 * VL) delta_columns(t, m, 4);
    for (; m + VL <= t->dim_v; m += VL) delta_columns(t, m, 1);
    if (m < t->dim_v) delta_rest(t, m, t->dim_v - m);
}
