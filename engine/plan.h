/* plan.h - what an engine would do with a model, without doing it: for --plan and --launches. Nothing is loaded, so that
 * files whose weights are holes (rqvk-synth --sparse) can be planned on any machine. */
#ifndef RQ_PLAN_TEXT_H
#define RQ_PLAN_TEXT_H

#include "engine/rqvk.h"

/* The decisions of rq_engine_create for these parameters as a table, or as JSON; free with rq_string_free. Fails with
 * the sentence rq_engine_create would fail with when nothing fits. */
rq_status rq_plan_text(const rq_model *model, const rq_engine_params *params, bool json, char **text,
                       rq_error *err);

/* Kernels that one operation of a model's forward pass launches for a generated token. */
typedef struct rq_launch_row {
    uint32_t layer; /* UINT32_MAX: before the first layer or behind the last */
    const char *op;
    uint32_t launches;
} rq_launch_row;
/* Tells them in order, without a device: params give the backend ("cuda") and the formats of the cache. */
rq_status rq_count_launches(const rq_model *model, const rq_engine_params *params,
                            void (*row)(void *user, const rq_launch_row *row), void *user, rq_error *err);

#endif
