/* math_impl.h - exp and what is made of it, and the length of a row, over the registers of simd.h. */
#ifndef RQ_CPU_MATH_IMPL_H
#define RQ_CPU_MATH_IMPL_H

#include "backends/cpu/vec/simd.h"

/* exp(x) = 2^n exp(r), r = x - n ln 2 in [-ln2/2, ln2/2]; ln 2 in two parts and the polynomial are those of
 * Cephes' expf (S. L. Moshier, Cephes Math Library 2.2, single precision). Relative error below 2^-22.5 on
 * [-87.336, 88] (checked by tests/cpu/test_pointwise.c); 0 below that range, exp(88) above; NaN stays NaN;
 * exp(0) is exactly 1. */
RQ_INLINE vf vf_exp(vf x)
{
    const vf lowest = vf_set(-87.336544f);
    vf c = vf_max(lowest, vf_min(vf_set(88.0f), x));
    vf t =
        vf_fma(c, vf_set(1.44269504088896341f), vf_set(12582912.0f)); /* 1.5 * 2^23: rounds to an integer */
    vf n = vf_sub(t, vf_set(12582912.0f));
    vf r = vf_fma(n, vf_set(-0.693359375f), c);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set(1.0f));
    return vf_zero_where_less(vf_mul(p, vf_pow2(t)), x, lowest);
}

/* 1 / (1 + exp(-x)) */
RQ_INLINE vf vf_sigmoid(vf x)
{
    vf one = vf_set(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set(0.0f), x))));
}

RQ_INLINE vf vf_silu(vf x)
{
    return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_set(0.0f), x))));
}

/* x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
RQ_INLINE vf vf_gelu_tanh(vf x)
{
    vf cubic = vf_fma(vf_mul(vf_mul(x, x), x), vf_set(0.044715f), x);
    return vf_mul(x, vf_sigmoid(vf_mul(cubic, vf_set(2.0f * 0.797884560802865f))));
}

/* 1 - 2 / (exp(2x) + 1): absolute error of about 2^-23 */
RQ_INLINE vf vf_tanh(vf x)
{
    vf one = vf_set(1.0f);
    return vf_sub(one, vf_div(vf_set(2.0f), vf_add(vf_exp(vf_add(x, x)), one)));
}

/* Four independent sums hide the latency of the additions; their order is fixed. */
RQ_INLINE float sum_of_squares(const float *x, size_t n)
{
    vf sum[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    size_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int j = 0; j < 4; j++) {
            vf v = vf_load(x + i + (size_t)j * VL);
            sum[j] = vf_fma(v, v, sum[j]);
        }
    for (; i + VL <= n; i += VL) {
        vf v = vf_load(x + i);
        sum[0] = vf_fma(v, v, sum[0]);
    }
    if (i < n) {
        vf v = vf_load_part(x + i, n - i);
        sum[1] = vf_fma(v, v, sum[1]);
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

#endif
