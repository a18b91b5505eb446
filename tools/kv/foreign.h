/* foreign.h - the cache formats of other systems, written anew from their descriptions, to measure ours against.
 *
 * All take the rotation, the code and the scale of the original; what is stored is the original's, bit for bit in
 * size, and what comes back has the original's error. Blocks of 128 elements share one f16 scale. A head that is
 * no multiple of 128 ends in a shorter block of its own (the originals pad with zeros and pay for them). */
#ifndef RQ_KV_FOREIGN_H
#define RQ_KV_FOREIGN_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_foreign kv_foreign;

/* Names of all foreign formats, "ref-planar3" and so on; NULL past the end. */
const char *kv_foreign_name(size_t i);

/* RQ_ERR_ARGUMENT for an unknown name or a dimension that is not a multiple of 8 in 8 .. 1024. `seed` makes the
 * rotation where the format has one. */
rq_status kv_foreign_make(const char *name, uint32_t dim, uint64_t seed, kv_foreign **out, rq_error *err);
void kv_foreign_free(kv_foreign *f);

/* Exact bits per element, scales and padding inside a block included. */
double kv_foreign_bits(const kv_foreign *f);

/* Rotates, encodes, decodes and rotates back n rows of dim finite floats, in place. Thread-safe. */
void kv_foreign_trip(const kv_foreign *f, float *rows, size_t n);

/* The levels of a code, ascending by magnitude: positive half of a symmetric table. For tests. */
typedef enum kv_levels { KV_LEVELS_2, KV_LEVELS_3, KV_LEVELS_4, KV_LEVELS_4_EQUAL } kv_levels;
const float *kv_foreign_levels(kv_levels which, uint32_t *n_half);

#endif
