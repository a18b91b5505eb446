/* kernel.h - what the matrix kernels of all instruction sets share: the activation row and the call.
 *
 * A row of either quantised kind is cut into *spans* of 256 elements (the last one padded with zeros). */
#ifndef RQ_CPU_KERNEL_H
#define RQ_CPU_KERNEL_H

#include "backends/formats/types.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { RQ_SPAN = 256, RQ_MM_SCRATCH = 128 * 1024, RQ_MM_COLS = 256 };

/* RQ_ACT_Q256. bsx holds the sums of 16 codes, first those of the even groups (0, 2, .., 14), then those of
 * the odd ones: the order in which a 256-bit register meets the scales of 16-element groups. */
typedef struct rq_act256 {
    int8_t q[256];
    float d;
    int32_t pad[3];
    int16_t bs32[8];
    int16_t bsx[16];
} rq_act256;

/* RQ_ACT_Q32. bs holds the sums of 32 codes. */
typedef struct rq_act32 {
    int8_t q[256];
    float d[8];
    int32_t bs[8];
} rq_act32;

_Static_assert(sizeof(rq_act256) == 320 && sizeof(rq_act32) == 320, "an activation span is five cache lines");

/* One call. Columns are pointers (matmul.c fills them from strides), at most RQ_MM_COLS of them. */
typedef struct rq_mm_call {
    rq_type type;
    const uint8_t *w;
    size_t row_bytes;
    int64_t n_in;
    int64_t r0, r1;
    int n_cols;
    const void *const *acts;
    float *const *y;  /* y[t][r] */
    uint8_t *scratch; /* RQ_MM_SCRATCH bytes, aligned to 64 */
} rq_mm_call;

typedef struct rq_matmul_kernels {
    void (*quantize_q256)(const float *x, void *dst, int64_t n_in);
    void (*quantize_q32)(const float *x, void *dst, int64_t n_in);
    void (*matmul)(const rq_mm_call *call);
} rq_matmul_kernels;

static inline uint16_t rq_ld16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t rq_ld32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t rq_ld64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
