/* pointwise_impl.h - the row functions of rq_vec over the registers of simd.h. Included once per table. */
#include "backends/cpu/vec/math_impl.h"
#include "backends/cpu/vec/vec.h"

#include <math.h>

static void rms_norm(const float *x, const float *weight, float *y, size_t n, float eps)
{
    float factor = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    vf f = vf_set(factor);
    size_t i = 0;
    if (weight) {
        for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), f), vf_load(weight + i)));
        for (; i < n; i++) y[i] = x[i] * factor * weight[i];
    } else {
        for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_load(x + i), f));
        for (; i < n; i++) y[i] = x[i] * factor;
    }
}

static void add(const float *a, const float *b, float *y, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_add(vf_load(a + i), vf_load(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

static void mul(const float *a, const float *b, float *y, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_load(a + i), vf_load(b + i)));
    for (; i < n; i++) y[i] = a[i] * b[i];
}

static void scale(const float *x, float factor, float *y, size_t n)
{
    vf f = vf_set(factor);
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_load(x + i), f));
    for (; i < n; i++) y[i] = x[i] * factor;
}

static void glu(const float *gate, const float *up, float *y, size_t n, rq_act act)
{
    size_t i = 0;
    if (act == RQ_ACT_SILU) {
        for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_silu(vf_load(gate + i)), vf_load(up + i)));
        if (i < n)
            vf_store_part(y + i, vf_mul(vf_silu(vf_load_part(gate + i, n - i)), vf_load_part(up + i, n - i)),
                          n - i);
    } else if (act == RQ_ACT_SIGMOID) {
        for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_sigmoid(vf_load(gate + i)), vf_load(up + i)));
        if (i < n)
            vf_store_part(
                y + i, vf_mul(vf_sigmoid(vf_load_part(gate + i, n - i)), vf_load_part(up + i, n - i)), n - i);
    } else {
        for (; i + VL <= n; i += VL)
            vf_store(y + i, vf_mul(vf_gelu_tanh(vf_load(gate + i)), vf_load(up + i)));
        if (i < n)
            vf_store_part(y + i,
                          vf_mul(vf_gelu_tanh(vf_load_part(gate + i, n - i)), vf_load_part(up + i, n - i)),
                          n - i);
    }
}

static void weigh_add(const float *x, float w, float *y, size_t n)
{
    vf f = vf_set(w);
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_fma(vf_load(x + i), f, vf_load(y + i)));
    if (i < n) vf_store_part(y + i, vf_fma(vf_load_part(x + i, n - i), f, vf_load_part(y + i, n - i)), n - i);
}

static void exp_row(const float *x, float *y, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_exp(vf_load(x + i)));
    if (i < n) vf_store_part(y + i, vf_exp(vf_load_part(x + i, n - i)), n - i);
}

static size_t argmax(const float *x, size_t n, float *max)
{
    float m = -INFINITY;
    size_t i = 0;
    if (n >= 4 * VL) {
        vf best[4] = {vf_set(m), vf_set(m), vf_set(m), vf_set(m)};
        for (; i + 4 * VL <= n; i += 4 * VL)
            for (int j = 0; j < 4; j++) best[j] = vf_max(vf_load(x + i + (size_t)j * VL), best[j]);
        m = vf_largest(vf_max(vf_max(best[0], best[1]), vf_max(best[2], best[3])));
    }
    for (; i < n; i++) m = x[i] > m ? x[i] : m;
    *max = m;
    for (i = 0; i < n; i++)
        if (x[i] == m) return i;
    return 0;
}

static void rope(const float *x, const float *cosines, const float *sines, float *y, uint32_t d,
                 uint32_t n_rot, rq_pairing pairing)
{
    uint32_t half = n_rot / 2, i = 0;
    if (pairing == RQ_ROPE_NEOX) {
        for (; i + VL <= half; i += VL) {
            vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cosines + i),
               s = vf_load(sines + i);
            vf_store(y + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
            vf_store(y + half + i, vf_add(vf_mul(a, s), vf_mul(b, c)));
        }
        for (; i < half; i++) {
            float a = x[i], b = x[half + i], c = cosines[i], s = sines[i];
            y[i] = a * c - b * s;
            y[half + i] = a * s + b * c;
        }
    } else {
        for (; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1], c = cosines[i], s = sines[i];
            y[2 * i] = a * c - b * s;
            y[2 * i + 1] = a * s + b * c;
        }
    }
    if (y != x && d > n_rot) memcpy(y + n_rot, x + n_rot, (d - n_rot) * sizeof *y);
}

static void to_f16(const float *x, uint16_t *y, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) vf_store_f16(y + i, vf_load(x + i));
    for (; i < n; i++) y[i] = rq_half_from_f32(x[i]);
}
