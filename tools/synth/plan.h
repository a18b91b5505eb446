/* plan.h - the tensors of a synthetic model: what a file of the given shape contains. */
#ifndef RQ_SYNTH_PLAN_H
#define RQ_SYNTH_PLAN_H

#include "backends/base/status.h"
#include "tools/synth/mixture.h"
#include "tools/synth/preset.h"

typedef struct synth_tensor {
    char name[65];
    rq_type type;
    uint32_t n_dims;
    uint64_t ne[4];
    double mean, std; /* of the values; std < 0: the Llama 3 frequency factors instead of noise */
} synth_tensor;

typedef struct synth_plan {
    synth_tensor *tensors; /* owned; rq_free */
    size_t n, cap;
} synth_plan;

/* Lists the tensors of `preset` (whose fields may have been changed) in the order of published files. On
 * failure the plan is empty. */
rq_status synth_plan_build(const synth_preset *preset, const synth_mixture *mixture, synth_plan *out,
                           rq_error *err);

/* Factor i (of head_dim / 2) by which Llama 3.1 divides the angle of rotated pair i: wavelengths above 8192
 * positions are stretched eightfold, those below 2048 kept, with a ramp between. */
float synth_llama3_factor(uint32_t i, uint32_t head_dim, double rope_base);

#endif
