/* plan.h - where activations live, and where a device has to wait.
 *
 * Memory. Each device has an arena. A value takes room in the arena of every device that has it, from the
 * moment it is written or copied there until its last use; values that are never alive together share bytes
 * (first fit). Barriers. An operation needs one when it touches bytes that an operation since the last
 * barrier wrote, or writes bytes that one touched: a pure function of the ranges of ops.h, and minimal,
 * because a barrier is set only where a pair would otherwise be unordered. */
#ifndef RQ_PLAN_H
#define RQ_PLAN_H

#include "backends/tape/split.h"

enum { RQ_ARENA_ALIGN = 64 };

typedef struct rq_plan {
    uint32_t n_devices, n_values;
    uint64_t *arena_offset; /* [device][owner value]; RQ_NO_ARENA: has no memory there */
    uint64_t *arena_bytes;  /* by device */
    uint8_t *barrier;       /* by operation of the tape; the first of a piece never has one */
} rq_plan;

/* `out` is written on success only; release with rq_plan_free. */
rq_status rq_plan_make(const rq_tape *tape, const rq_split *split, uint32_t n_devices, rq_plan *out,
                       rq_error *err);
void rq_plan_free(rq_plan *plan);

static inline const uint64_t *rq_plan_offsets(const rq_plan *plan, uint32_t device)
{
    return plan->arena_offset + (uint64_t)device * plan->n_values;
}

#endif
