/* matmul.h - the processor's matrix products: y[t, r] = sum over k of W[r, k] * x[t, k].
 *
 * W is read in its GGUF layout, wherever it lies (any alignment). x is converted once per product into an
 * *activation row* per column t; products whose weights share an rq_act_kind (q, k and v; gate and up) share
 * the converted rows. The functions know nothing of threads: give each thread a range of rows and a scratch.
 *
 * Same bits: y[t, r] depends on row r of W and activation row t alone, bit for bit - not on how many columns
 * there are, how rows are split between calls, or whether columns are gathered. For quantised weights it is
 * also the same on every ISA: a block's sum is an exact integer, and the blocks of a row are added in order,
 *     acc = fma((float)sum, d_w * d_x, acc)   and, where the type has a minimum,
 *     acc = fma((float)minsum, m_w * d_x, acc).
 * For F32, F16 and BF16 weights the order is fixed per ISA. */
#ifndef RQ_CPU_MATMUL_H
#define RQ_CPU_MATMUL_H

#include "backends/cpu/isa.h"
#include "backends/formats/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum rq_act_kind {
    RQ_ACT_NONE = 0, /* the type is not a weight of a matrix product */
    RQ_ACT_F32,      /* floats as they are: the caller may pass x itself, stride n_in * 4 */
    RQ_ACT_Q32,      /* int8, one f32 scale per 32 elements; for types with blocks of 32, 64, 128 */
    RQ_ACT_Q256      /* int8, one f32 scale per 256 elements; for types with blocks of 256 */
} rq_act_kind;

rq_act_kind rq_matmul_act_kind(rq_type type);

/* Bytes of one activation row for weights of this type, a multiple of 64 for the quantised kinds (rows should
 * start at a multiple of 64 for speed); 0 for RQ_ACT_NONE or when n_in is not a multiple of the block. */
size_t rq_matmul_act_bytes(rq_type type, int64_t n_in);

/* Converts n_in floats into an activation row. A block with a non-finite value gets the scale NaN, so every
 * output of that column becomes NaN. Writes all rq_matmul_act_bytes bytes. */
void rq_matmul_quantize_act(const rq_cpu_isa *isa, rq_type type, const float *x, void *dst, int64_t n_in);

/* Bytes of scratch one call needs, for any ISA (an upper bound; one scratch per thread, any alignment). */
size_t rq_matmul_scratch_bytes(void);

/* y[t * y_stride + r] for t in [0, T), r in [r0, r1). Row r of W starts at w + r * row_bytes; activation row
 * t at acts + t * act_stride bytes; y_stride is in floats. */
void rq_matmul_rows(const rq_cpu_isa *isa, rq_type type, const void *w, size_t row_bytes, int64_t n_in,
                    int64_t r0, int64_t r1, const void *acts, size_t act_stride, int64_t T, float *y,
                    size_t y_stride, void *scratch);

/* The same with columns anywhere (experts): column t reads act_rows[t] and writes y_rows[t][r]. */
void rq_matmul_gather(const rq_cpu_isa *isa, rq_type type, const void *w, size_t row_bytes, int64_t n_in,
                      int64_t r0, int64_t r1, const void *const *act_rows, float *const *y_rows, int64_t T,
                      void *scratch);

#endif
