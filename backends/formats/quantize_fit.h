/* quantize_fit.h - scale searches shared by the encoders of this folder. All are plain least squares over a
 * fixed list of candidates: deterministic, and free of weights for importance. Inputs are finite. */
#ifndef RQ_QUANTIZE_FIT_H
#define RQ_QUANTIZE_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "backends/formats/half.h"

enum { RQ_FIT_MAX = 256 }; /* elements one fit takes */

/* Nearest integer, ties to even, limited to lo..hi (|lo|, |hi| < 2^21). NaN gives lo. */
static inline int rq_round_code(float v, int lo, int hi)
{
    v = v > (float)lo ? v : (float)lo;
    v = v < (float)hi ? v : (float)hi;
    return (int)((v + 12582912.0f) - 12582912.0f);
}

/* A scale as an f16 field can hold it: nearest, but the largest finite value instead of infinity. */
static inline float rq_f16_scale(float d)
{
    d = d < 65504.0f ? d : 65504.0f;
    d = d > -65504.0f ? d : -65504.0f;
    return rq_half_to_f32(rq_half_from_f32(d));
}

/* 1 / d, or 0 where d is 0 or so small that the quotient is no number to work with. */
static inline float rq_inverse(float d)
{
    return d > 0x1p-120f || d < -0x1p-120f ? 1.0f / d : 0.0f;
}

float rq_max_abs(const float *x, int n);

/* The scale d, of either sign, of x ~ d q with integer q in lo..hi, lo < 0 < hi. 0 for zeros. */
float rq_fit_symmetric(const float *x, int n, int lo, int hi);

/* x ~ scale q + min with integer q in 0..hi and scale >= 0; min <= 0 when `min_not_positive`. */
void rq_fit_affine(const float *x, int n, int hi, bool min_not_positive, float *scale, float *min);

/* The scale of either sign of x ~ d level over the sixteen IQ4_NL levels, and the code nearest to v. */
float rq_fit_iq4nl(const float *x, int n);
int rq_nearest_iq4nl(float v);

/* The code of the E2M1 level nearest to v (levels doubled, as in rq_mxfp4_values). */
int rq_nearest_e2m1(float v);

#endif
