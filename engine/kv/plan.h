/* plan.h - what an engine does with the keys and values of its model: formats, rotations, profile, capture. */
#ifndef RQ_KV_PLAN_H
#define RQ_KV_PLAN_H

#include "backends/formats/kv_format.h"
#include "engine/kv.h"
#include "engine/models/model.h"

/* Keys or values. */
typedef struct rq_kv_side {
    rq_kv_format format;
    char name[RQ_KV_NAME_BYTES];
    double bits; /* per element of what is kept for long, scales included */
    rq_rotation rotation;
    uint32_t data; /* the rotation that layers without one of their own share: index of its weight */
} rq_kv_side;

/* Does a profile change what is kept? */
static inline bool rq_kv_side_takes_profile(const rq_kv_side *side)
{
    return side->format.form != RQ_KV_SAME && side->format.form != RQ_KV_TRIP;
}

typedef struct rq_kv_plan {
    rq_kv_side k, v;
    rq_kv_side window_k, window_v;       /* of layers that see a window */
    uint32_t window_dim_k, window_dim_v; /* their heads, where they are coded */
    uint32_t recent_pages, sink_pages;   /* 0 where nothing is coded */
    rq_cache_group groups[RQ_MAX_GROUPS];
    uint32_t n_groups;  /* the model's, and the MTP block's where it drafts */
    char *profile_path; /* NULL: none is used */
    rq_kv_profile *profile;
    bool profile_named;  /* the caller named it */
    uint64_t cache_seed; /* of the profile and the formats: what pages depend on beside tokens */

    rq_weight *weights; /* the model's, then the tables of this plan */
    uint32_t n_weights;
    size_t cap_weights;
    float **tables; /* owned floats behind them */
    size_t n_tables, cap_tables;
    rq_pass pass;
    rq_pass_layer *layers;

    rq_kv_hooks hooks; /* `layers` points to an own copy */
    uint32_t *capture_layers;
    uint64_t capture_run; /* the step that was handed out last */
} rq_kv_plan;

/* Chooses formats, finds and reads the profile, fills the groups. Says what was decided through params->log.
 * *plan is zeroed before; free it in any case. */
rq_status rq_kv_plan_choose(rq_kv_plan *plan, const rq_model *model, const rq_engine_params *params,
                            rq_error *err);

/* Once the context is known: refuses or drops a profile that does not reach so far, makes tables and the pass.
 * The plan must not move from now on. */
rq_status rq_kv_plan_finish(rq_kv_plan *plan, const rq_model *model, const rq_engine_params *params,
                            uint32_t n_ctx, rq_error *err);
void rq_kv_plan_free(rq_kv_plan *plan);

/* Hands out what the step that ran last left for a capture; nothing without one, and every step once. */
rq_status rq_kv_plan_capture(rq_kv_plan *plan, rq_executor *executor, rq_error *err);

#endif
