/* heads.h - what rotations and page coders need from an instruction set: a head vector times a block diagonal
 * matrix, Hadamard butterflies, widening of cached rows. One table per instruction set, made from heads_impl.h.
 *
 * Same bits: the result for a row depends on that row alone, not on how many go together. */
#ifndef RQ_CPU_HEADS_H
#define RQ_CPU_HEADS_H

#include "backends/cpu/isa.h"
#include "backends/formats/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Floats that kernels may read and write behind the last element of a row. What lies there is zeros when they
 * read and of no value when they have written. */
enum { RQ_TURN_PAD = 16, RQ_TURN_ROWS = 4 };

/* Neighbouring pieces of n elements. A matrix piece is a table [n][lanes], lanes = n rounded up to 8: row j holds
 * what element j adds to each result. A Hadamard piece is a row of n signs (n a power of two). */
typedef struct rq_head_turn {
    uint32_t offset, count, n, lanes;
    bool hadamard;
} rq_head_turn;

/* Floats of a turn's tables. */
static inline uint64_t rq_head_turn_floats(const rq_head_turn *t)
{
    return (uint64_t)t->count * t->n * (t->hadamard ? 1 : t->lanes);
}

typedef struct rq_heads {
    /* y = table applied to x, for 1 to RQ_TURN_ROWS rows `stride` floats apart in x and in y. Turns come in
     * ascending order of offset. Inverse Hadamard: the signs come last; tables of matrices are made for it. */
    void (*turn)(const rq_head_turn *turn, const float *table, bool inverse, const float *x, float *y,
                 size_t stride, uint32_t rows);
    /* y = (x - mean) * lambda; mean and lambda may be NULL. y = x + mean. */
    void (*shift)(const float *x, const float *mean, const float *lambda, float *y, size_t n);
    void (*unshift)(const float *x, const float *mean, float *y, size_t n);
    void (*widen)(rq_type type, const void *x, float *y, size_t n); /* F32, F16 or BF16 */
} rq_heads;

/* The table that goes with an instruction set; never NULL. */
const rq_heads *rq_heads_of(const rq_cpu_isa *isa);

extern const rq_heads rq_heads_plain, rq_heads_avx2, rq_heads_avx512; /* those this build contains */

#endif
