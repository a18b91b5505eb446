/* builder.h - what the makers of a plan share: plan.c, and plan_families.c for layers of other kinds. */
#ifndef RQ_SYNTH_BUILDER_H
#define RQ_SYNTH_BUILDER_H

#include "tools/synth/plan.h"

typedef struct synth_builder {
    const synth_preset *p;
    const synth_mixture *mixture;
    synth_plan plan;
    uint32_t layer;    /* the one that tensors are added to */
    uint32_t n_values; /* layers with values of their own so far */
    bool failed;
} synth_builder;

/* A matrix (or n matrices, for experts) whose output has the variance of its input times gain squared; ".weight" is
 * added to its name. */
void synth_matrix(synth_builder *b, synth_role role, const char *name, uint64_t n_in, uint64_t n_out,
                  uint64_t n, double gain);
/* F32, with its whole name. */
void synth_vector(synth_builder *b, const char *name, uint64_t n, double mean, double std);

void synth_dense(synth_builder *b); /* gate, up, down */
void synth_router(synth_builder *b);
void synth_experts(synth_builder *b); /* gate, up, down of all */

/* All tensors of layer b->layer: plan_families.c. */
void synth_hybrid_layer(synth_builder *b);
void synth_gemma_layer(synth_builder *b);

#endif
