/* rotation.h - the orthogonal matrices in front of the codecs.
 *
 * A rotation of d elements is data: up to RQ_ROTATION_BLOCKS runs of equal diagonal blocks and the floats
 * these are made of. A run (offset, count, size) is either `count` matrices of size x size, row-major, row
 * = output element, or (hadamard) count vectors of `size` signs s with y = H(s * x) / sqrt(size), H the
 * Hadamard matrix in natural order. The runs lie one after the other and cover all d elements; their data
 * likewise.
 *
 *   planar  Givens rotations of adjacent pairs
 *   rotor   R v R~ in Cl(3,0) on triples; one or two elements left over: two pairs or one pair, as planar
 *   iso     v -> q v, q a unit quaternion, on fours
 *   so8     SO(8) on eights, random or learned
 *   wht     signs, then Hadamard, over the powers of two that make up d, the largest first (80 = 64 + 16)
 *   haar    one d x d matrix from the Haar measure
 *   none    no run at all
 *
 * The generator is seeded and uses only additions, multiplications, divisions and square roots of doubles:
 * the same seed gives the same bits on every machine. */
#ifndef RQ_ROTATION_H
#define RQ_ROTATION_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum rq_rotation_kind {
    RQ_ROTATION_NONE,
    RQ_ROTATION_PLANAR,
    RQ_ROTATION_ROTOR,
    RQ_ROTATION_ISO,
    RQ_ROTATION_SO8,
    RQ_ROTATION_WHT,
    RQ_ROTATION_HAAR,
    RQ_ROTATION_KINDS
} rq_rotation_kind;

enum { RQ_ROTATION_BLOCKS = 6, RQ_ROTATION_MAX_DIM = 1024 };

typedef struct rq_rotation_block {
    uint16_t offset, count, size;
    bool hadamard;
} rq_rotation_block;

typedef struct rq_rotation {
    rq_rotation_kind kind;
    uint32_t dim;
    uint32_t n_blocks;
    rq_rotation_block blocks[RQ_ROTATION_BLOCKS];
    uint32_t n_floats;
    float *data; /* n_floats, owned */
} rq_rotation;

/* "planar", "wht", ...; NULL for a kind that is none. */
const char *rq_rotation_name(rq_rotation_kind kind);

/* RQ_ERR_UNSUPPORTED with a sentence unless there is a rotation of this kind for `dim` elements: multiples
 * of 8 up to RQ_ROTATION_MAX_DIM; for wht at most RQ_ROTATION_BLOCKS powers of two. */
rq_status rq_rotation_allowed(rq_rotation_kind kind, uint32_t dim, rq_error *err);

/* The shape alone: blocks, n_blocks and n_floats, with data NULL. Needs rq_rotation_allowed. */
void rq_rotation_shape(rq_rotation_kind kind, uint32_t dim, rq_rotation *out);

/* A random rotation. *out is zeroed on failure; release with rq_rotation_free. */
rq_status rq_rotation_make(rq_rotation_kind kind, uint32_t dim, uint64_t seed, rq_rotation *out,
                           rq_error *err);

/* A so8 rotation from dim / 8 given matrices, row-major (learned ones, from a file). RQ_ERR_FORMAT unless
 * each is orthogonal (the largest deviation of M M^T from the unit matrix is at most 1e-4). */
rq_status rq_rotation_from_so8(uint32_t dim, const float *matrices, rq_rotation *out, rq_error *err);

void rq_rotation_free(rq_rotation *r);

/* y = R x, or R^T x when `inverse`; x and y hold dim elements and do not overlap. A row of a matrix is
 * summed in ascending order; Hadamard butterflies go in ascending stride order, the division by sqrt(size)
 * comes last (a multiplication with the rounded reciprocal). The double form is the reference. */
void rq_rotate_f32(const rq_rotation *r, bool inverse, const float *x, float *y);
void rq_rotate_f64(const rq_rotation *r, bool inverse, const double *x, double *y);

#endif
