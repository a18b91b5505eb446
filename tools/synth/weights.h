/* weights.h - deterministic random weights, made directly in their encoded form. */
#ifndef RQ_SYNTH_WEIGHTS_H
#define RQ_SYNTH_WEIGHTS_H

#include "tools/synth/plan.h"

/* Encoding by quantising noise would take minutes per gigabyte. Instead codes are drawn at random and the
 * block scales are set such that the decoded values have mean zero and the wanted standard deviation. */
typedef struct synth_source {
    rq_type type;
    uint64_t key; /* of seed and tensor name */
    uint64_t row_bytes;
    uint64_t row_elems;
    float mean, std;     /* plain types */
    uint16_t scales[64]; /* block types: f16 scales of both signs around the wanted size, or byte codes */
} synth_source;

/* True for the types that can be synthesised. */
bool synth_can_make(rq_type type);

/* Prepares the rows of one tensor; false when its type cannot be synthesised. Allocates nothing. */
bool synth_source_init(synth_source *source, const synth_tensor *tensor, uint64_t seed);

/* Writes row `row` (row_bytes bytes) to `out`. A function of (seed, tensor name, type, row) alone, so rows
 * can be made in any order. */
void synth_source_row(const synth_source *source, uint64_t row, void *out);

#endif
