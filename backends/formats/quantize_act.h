/* quantize_act.h - activation rows as the matrix products read them: plain C, the bits every faster version
 * must reproduce. */
#ifndef RQ_QUANTIZE_ACT_H
#define RQ_QUANTIZE_ACT_H

#include <stdbool.h>
#include <stdint.h>

#include "backends/formats/types.h"

/* Each writes n floats (n a multiple of 32, 32, 256) as blocks at `dst` (any alignment). The rules are the
 * scalar ones of the ggml library (formulas in quantize_act.c). A NaN becomes code 0 and takes no part in the
 * maximum; an infinity makes the block's scale infinite or, in Q8_K, all its codes 0 with scale -infinity or
 * infinity. */
void rq_quantize_act_q8_0(const float *x, void *dst, int64_t n);
void rq_quantize_act_q8_1(const float *x, void *dst, int64_t n);
void rq_quantize_act_q8_k(const float *x, void *dst, int64_t n);

/* Any activation type: Q8_0, Q8_1, Q8_K, F16, BF16, F32; false for another. */
bool rq_quantize_act(rq_type act, const float *x, void *dst, int64_t n);

#endif
