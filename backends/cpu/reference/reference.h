/* reference.h - every operation of the catalogue, plainly, in double: the oracle that kernels are compared
 * with.
 *
 * It follows the text of ops.h and nothing else: no work lists, no tiles, no page splits. Sums and functions
 * are in double, results are rounded to f32 once. A fused operation runs its list of primitives, with
 * internal values in memory of its own. It allocates; it is slow; it is not part of a step that is timed. */
#ifndef RQ_REFERENCE_H
#define RQ_REFERENCE_H

#include "backends/backend.h"

typedef struct rq_reference_env {
    /* Host address of the first element of an ACT, WEIGHT or PERSIST value (its view offset included). */
    void *(*address)(void *user, const rq_tape *tape, rq_ref value);
    void *user;
    const rq_cache_pool
        *pools; /* by group; slabs and tables in host memory. NULL: no cache operation comes */
    const rq_state_pool *states; /* by state group, in host memory. NULL: no recurrent operation comes */
    const rq_step_caps *caps;    /* may be NULL where `pools` is */
    const uint32_t *step_words;  /* a finished step; NULL: no operation that reads STEP comes */
    const int32_t *sampled;      /* PERSIST sampled; NULL: no token takes its id from there */
} rq_reference_env;

/* Runs one operation, primitive or fused. RQ_ERR_MEMORY, or RQ_ERR_UNSUPPORTED for a kind that is none. */
rq_status rq_reference_run(const rq_tape *tape, const rq_op *op, const rq_reference_env *env, rq_error *err);

/* The address of an arena value given where its owner lies; for tests and simple backends. */
static inline void *rq_reference_act(const rq_tape *tape, rq_ref value, void *arena,
                                     const uint64_t *arena_offset)
{
    const rq_value *v = &tape->values[value];
    return (char *)arena + arena_offset[v->index] + v->offset;
}

#endif
