/* dot_ref.h - the dot product of a weight row with a quantised activation row, in plain C: the oracle of the
 * vector kernels. */
#ifndef RQ_DOT_REF_H
#define RQ_DOT_REF_H

#include <stdint.h>

#include "backends/formats/types.h"

/* The type an activation row takes to meet a weight of `type`: Q8_0, Q8_1 or Q8_K, or the weight's own type
 * for F32, F16 and BF16 (F64 meets F32). RQ_TYPE_LIMIT when `type` is no weight type. */
rq_type rq_dot_act_type(rq_type type);

/* Dot product of n elements (n a multiple of the blocks of both) of a weight row and of an activation row in
 * rq_dot_act_type's form, both at any alignment. Integer sums are exact; every float product and sum is
 * rounded on its own, in the order of the ggml library's scalar code, so the result is one known bit pattern
 * (formulas in dot_ref.c). For F32, F16, BF16, F64: products and sum in double, rounded once. NaN when `type`
 * is no weight type. */
float rq_dot_ref(rq_type type, const void *wrow, const void *xrow, int64_t n);

#endif
