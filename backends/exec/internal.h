/* internal.h - the executor's own structures. */
#ifndef RQ_EXEC_INTERNAL_H
#define RQ_EXEC_INTERNAL_H

#include "backends/exec/exec.h"
#include "backends/tape/plan.h"
#include "backends/tape/split.h"

enum {
    RQ_TRUNK_BUCKETS = 12 /* 1 .. 2048 */,
    RQ_HEAD_BUCKETS = 7 /* 1 .. 64 */,
    RQ_DRAFT_BUCKETS = 4 /* 1 .. 8 */,
    RQ_STEPS = 2
};

/* A tape made ready for one bucket. The head is compiled once per step buffer, because the logits of two
 * steps in flight live in two places; the trunk once. */
typedef struct rq_exec_program {
    rq_tape tape;
    rq_split split;
    rq_plan plan;
    uint64_t weight_bytes;           /* that a run reads, each operand once; see rq_executor_counts */
    rq_segment *segments;            /* by piece */
    rq_program **programs[RQ_STEPS]; /* by piece */
} rq_exec_program;

typedef enum rq_step_state { RQ_STEP_FREE, RQ_STEP_FILLING, RQ_STEP_FLYING, RQ_STEP_DONE } rq_step_state;

typedef struct rq_step_slot {
    rq_step step;
    rq_step_state state;
    uint64_t started;  /* order of submission */
    rq_memory *logits; /* PERSIST logits of this slot */
    float *copy;       /* host copy when the device's memory cannot be read in place, else NULL */
    rq_memory
        *fetched;    /* the same where the device writes it by itself, behind the step; then `copy` is NULL */
    uint64_t *marks; /* by device: the end of the step, where the device has marks */
} rq_step_slot;

struct rq_executor {
    rq_executor_params params; /* with the copies below */
    rq_device **devices;
    rq_weight *weights;
    rq_cache_group *groups;
    uint32_t *group_pages, *group_device, *group_coded_pages, *group_scratch_pages;
    uint32_t persist_device, input_device;
    rq_device_info *device_info;
    bool quick; /* only a few of the trunks and heads are planned */

    rq_state_group *state_groups;
    uint32_t *state_device;

    rq_exec_program trunk[RQ_TRUNK_BUCKETS], head[RQ_HEAD_BUCKETS];
    rq_exec_program encode; /* no operations: no group has a coded form */
    rq_exec_program follow[RQ_TRUNK_BUCKETS], draft[RQ_DRAFT_BUCKETS];
    uint32_t n_follow, n_draft; /* 0: nothing drafts */
    bool follows;
    rq_step aside; /* its words are of this process: the steps of `draft` and of narrow `follow` */
    float *zeros;  /* n_embd: the row before a sequence's first token */
    rq_executor_counts counts;
    uint32_t n_trunk;

    rq_binding *weight_bindings; /* [device][weight]; memory NULL: not used there */
    rq_memory **weight_memory;   /* behind them */
    size_t n_weight_memory;
    rq_memory **arenas;                   /* by device; NULL: nothing runs there */
    rq_memory *persist[RQ_PERSIST_COUNT]; /* all but logits */
    rq_memory *sampled; /* copy of the sampled ids on the input device, where it is another */
    bool dry;           /* nothing is allocated: the list is being made */
    rq_exec_list list;
    rq_cache_pool pools[RQ_MAX_GROUPS];
    rq_state_pool states[RQ_MAX_STATE_GROUPS];
    rq_bindings *bindings; /* [device][step slot] */

    rq_step_slot slots[RQ_STEPS];
    uint64_t n_started;
    uint64_t device_ns; /* spent computing on the processor, or waiting for a device */
    rq_step_slot *last; /* whose rows PERSIST hidden holds */
    uint32_t *tables[RQ_MAX_GROUPS][RQ_PAGE_FORMS]; /* host copies of the page tables; NULL: no such pages */
    void *staging; /* for copies between memories the processor cannot touch; may be NULL */
    uint64_t staging_bytes;
    _Atomic uint64_t not_finite;
    uint64_t *op_ns; /* room for the times of the longest piece */
    rq_executor_info info;
};

/* ---- program.c ----------------------------------------------------------------------------------------- */

/* Builds, fuses, checks, splits and plans a tape. On failure `p` holds what rq_exec_program_free frees. */
rq_status rq_exec_program_plan(rq_executor *ex, rq_exec_program *p, rq_tape_kind kind, uint32_t bucket,
                               rq_error *err);
/* Compiles its pieces for step buffer `slot`. The memory must be there. */
rq_status rq_exec_program_compile(rq_executor *ex, rq_exec_program *p, uint32_t slot, rq_error *err);
void rq_exec_program_free(rq_executor *ex, rq_exec_program *p);

/* Is there anything to do: in a quick plan most programs are left out. */
static inline bool rq_exec_program_exists(const rq_exec_program *p)
{
    return p->tape.n_ops > 0;
}

/* ---- run.c --------------------------------------------------------------------------------------------- */

/* Is a step in flight? Waits for all that are. */
bool rq_exec_any_flying(const rq_executor *ex);
rq_status rq_exec_wait_all(rq_executor *ex, rq_error *err);
/* dst and src may be the same memory; both devices must be idle. */
rq_status rq_exec_copy_memory(rq_executor *ex, rq_memory *dst, uint64_t dst_at, rq_memory *src,
                              uint64_t src_at, uint64_t bytes, rq_error *err);
rq_status rq_exec_apply_edits(rq_executor *ex, const rq_step *step, rq_error *err);
rq_status rq_exec_run_program(rq_executor *ex, const rq_exec_program *p, uint32_t slot, const uint32_t *words,
                              rq_error *err);
uint32_t rq_exec_bucket_index(uint32_t n); /* of the smallest power of two >= n */

/* ---- draft.c ------------------------------------------------------------------------------------------- */

/* The block behind the trunk of a step that is finished. */
rq_status rq_exec_follow(rq_executor *ex, const rq_step *step, uint32_t bucket, rq_error *err);

/* ---- memory.c ------------------------------------------------------------------------------------------ */

/* Lists everything the planned programs need; allocates nothing that outlives the call. */
rq_status rq_exec_memory_list(rq_executor *ex, rq_error *err);

/* Adopts the weights the programs read and allocates everything else; `ex` owns all of it. */
rq_status rq_exec_memory_make(rq_executor *ex, rq_error *err);
void rq_exec_memory_free(rq_executor *ex);

#endif
