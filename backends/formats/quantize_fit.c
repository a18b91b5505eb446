/* quantize_fit.c - see quantize_fit.h. */
#include "backends/formats/quantize_fit.h"

#include <math.h>

#include "backends/formats/tables.h"

float rq_max_abs(const float *x, int n)
{
    float amax = 0;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        amax = a > amax ? a : amax;
    }
    return amax;
}

/* The element of largest magnitude, with its sign. */
static float peak(const float *x, int n)
{
    float amax = 0, m = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > amax) {
            amax = fabsf(x[i]);
            m = x[i];
        }
    }
    return m;
}

/* Candidates put the peak at code `lo`, which reaches as far as `hi` or one farther, and around it; with few
 * codes also far outside, since clipping the tail then pays. For fixed codes the best scale is sum(x q) /
 * sum(q q), and it takes sum(x q)^2 / sum(q q) off the error. */
float rq_fit_symmetric(const float *x, int n, int lo, int hi)
{
    float m = peak(x, n), best = 0, best_d = 0;
    float first = lo <= -4 ? (float)-lo - 1.0f : 0.5f, step = lo <= -4 ? 0.125f : 0.25f;
    for (int k = 0; k <= 16; k++) {
        float inverse = rq_inverse(m / -(first + step * (float)k)), sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < n; i++) {
            float q = (float)rq_round_code(x[i] * inverse, lo, hi);
            sum_xq += x[i] * q;
            sum_qq += q * q;
        }
        if (sum_qq > 0 && sum_xq * (sum_xq / sum_qq) > best) {
            best_d = sum_xq / sum_qq;
            best = sum_xq * best_d;
        }
    }
    return best_d;
}

void rq_fit_affine(const float *x, int n, int hi, bool min_not_positive, float *scale, float *min)
{
    float low = x[0], high = x[0], sum_x = 0;
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_x += x[i];
    }
    if (min_not_positive && low > 0) low = 0;
    *scale = 0;
    *min = low;
    float range = high - low, best = INFINITY;
    if (rq_inverse(range) == 0) return;
    for (int k = -8; k <= 12; k++) {
        float inverse = ((float)hi + 0.125f * (float)k) / range;
        float sum_q = 0, sum_qq = 0, sum_xq = 0, q[RQ_FIT_MAX];
        for (int i = 0; i < n; i++) {
            q[i] = (float)rq_round_code((x[i] - low) * inverse, 0, hi);
            sum_q += q[i];
            sum_qq += q[i] * q[i];
            sum_xq += x[i] * q[i];
        }
        float det = (float)n * sum_qq - sum_q * sum_q;
        if (!(det > 0)) continue;
        float s = ((float)n * sum_xq - sum_q * sum_x) / det, m = (sum_qq * sum_x - sum_q * sum_xq) / det;
        if (min_not_positive && m > 0) {
            m = 0;
            s = sum_xq / sum_qq;
        }
        if (!(s > 0)) continue;
        float error = 0;
        for (int i = 0; i < n; i++) {
            float e = s * q[i] + m - x[i];
            error += e * e;
        }
        if (error < best) {
            best = error;
            *scale = s;
            *min = m;
        }
    }
}

int rq_nearest_iq4nl(float v)
{
    int code = 0;
    for (int c = 0; c < 15; c++) code += 2.0f * v > (float)(rq_iq4nl_values[c] + rq_iq4nl_values[c + 1]);
    return code;
}

float rq_fit_iq4nl(const float *x, int n)
{
    float m = peak(x, n), best = 0, best_d = 0;
    for (int k = 0; k <= 14; k++) {
        float inverse = rq_inverse(m / ((float)rq_iq4nl_values[0] + (float)(k - 7) * 2.0f)), sum_xq = 0,
              sum_qq = 0;
        for (int i = 0; i < n; i++) {
            float q = (float)rq_iq4nl_values[rq_nearest_iq4nl(x[i] * inverse)];
            sum_xq += x[i] * q;
            sum_qq += q * q;
        }
        if (sum_qq > 0 && sum_xq * (sum_xq / sum_qq) > best) {
            best_d = sum_xq / sum_qq;
            best = sum_xq * best_d;
        }
    }
    return best_d;
}

int rq_nearest_e2m1(float v)
{
    float a = fabsf(v);
    int code = 0;
    for (int c = 0; c < 7; c++) code += 2.0f * a > (float)(rq_mxfp4_values[c] + rq_mxfp4_values[c + 1]);
    return v < 0 && code > 0 ? code + 8 : code;
}
