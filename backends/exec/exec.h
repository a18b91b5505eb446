/* exec.h - the executor: owns devices' memory and compiled programs of one model and runs steps.
 *
 * The engine describes what there is (weights, cache groups, capacities), gives a function that writes the
 * tapes and one that places operations on devices; the executor plans, fuses, splits, compiles every token
 * bucket up front and replays. After creation nothing is allocated. */
#ifndef RQ_EXEC_H
#define RQ_EXEC_H

#include "backends/backend.h"

typedef struct rq_executor rq_executor;

typedef struct rq_weight {
    const char *name;
    rq_type type;
    uint32_t ne[4];
    const void *host; /* bytes in GGUF layout, valid as long as the executor */
    uint64_t bytes;
} rq_weight;

/* RQ_TAPE_ENCODE is the executor's own: KV_ENCODE of every layer of the groups with a coded form, run behind
 * the trunk of a step of at most RQ_NARROW_BUCKET tokens that names pages to encode. In wider trunks the family
 * places the operation itself, in every layer between KV_WRITE and ATTEND; in narrow ones it has no place. */
/* RQ_TAPE_FOLLOW and RQ_TAPE_DRAFT belong to a block that predicts a token further on (`drafts` below). FOLLOW runs
 * the block behind a trunk, for the same tokens: what it keeps of them is what its cache groups hold. DRAFT runs it for
 * a token of each of a few sequences, with logits, to guess what comes next. Both take, for every token, the hidden row
 * that came before it from PERSIST trail: FOLLOW in buckets above RQ_NARROW_BUCKET row t for token t, all others the
 * row that the step's row list names (SELECT_ROWS). The trunk copies its hidden rows to the trail from row 1 on; DRAFT
 * leaves its own from row rq_trail_draft on. */
typedef enum rq_tape_kind {
    RQ_TAPE_TRUNK,
    RQ_TAPE_HEAD,
    RQ_TAPE_ENCODE,
    RQ_TAPE_FOLLOW,
    RQ_TAPE_DRAFT
} rq_tape_kind;

/* Rows of PERSIST trail: one row before a wide step's, those of a step, the last one of every sequence, and those of
 * DRAFT. */
static inline uint32_t rq_trail_last(const rq_step_caps *caps)
{
    return 1 + caps->max_tokens;
}
static inline uint32_t rq_trail_draft(const rq_step_caps *caps)
{
    return rq_trail_last(caps) + caps->n_seqs;
}
static inline uint32_t rq_trail_rows(const rq_step_caps *caps)
{
    return rq_trail_draft(caps) + RQ_NARROW_BUCKET;
}

typedef struct rq_executor_params {
    rq_device *const *devices; /* borrowed; the first one runs what nobody placed */
    uint32_t n_devices;
    const rq_weight *weights; /* copied */
    uint32_t n_weights;
    const rq_cache_group *groups; /* copied */
    const uint32_t *group_pages;  /* exact pages of each group's pool */
    const uint32_t *group_device; /* device index of each group's pool */
    /* Coded pages, for the groups with a coded form, and scratch pages (cache.h); NULL: none anywhere. */
    const uint32_t *group_coded_pages, *group_scratch_pages;
    /* Recurrent state: a slot of each group for every sequence. state_device NULL: all on the first device. */
    const rq_state_group *states; /* copied */
    uint32_t n_states;
    const uint32_t *state_device;
    rq_step_caps caps; /* completed by rq_step_caps_complete */
    uint32_t n_embd, n_vocab;
    uint32_t capture_floats; /* of PERSIST capture, for each token of a step; 0: there is none */
    bool drafts;             /* there are FOLLOW and DRAFT */
    /* Appends the forward pass of `kind` (all but ENCODE) for tape->bucket tokens or rows. */
    void (*build)(void *user, rq_tape_kind kind, rq_tape *tape);
    /* Device index of an operation of model layer `layer` (UINT32_MAX: embedding, final norm, head). */
    uint32_t (*place)(void *user, uint32_t layer);
    /* The same for what a layer's routed experts compute: GROUP, MATMUL_EXPERTS, what lies between them, COMBINE.
     * NULL: where the layer is. */
    uint32_t (*place_experts)(void *user, uint32_t layer);
    uint32_t (*place_input)(void *user); /* the embedding; NULL: where place puts what belongs to no layer */
    void *user;
    bool no_fusion; /* for tests: run the primitives */
} rq_executor_params;

#define RQ_EXEC_HOST    UINT32_MAX
#define RQ_EXEC_SCRATCH "scratch of programs" /* what backends take for themselves; not counted as made */

/* Memory of one kind on one device. */
typedef struct rq_exec_line {
    uint32_t device; /* index, or RQ_EXEC_HOST: the heap of this process */
    bool in_place;   /* weights that are read in the mapped file: nothing is allocated */
    const char *label;
    uint64_t planned_bytes;
    uint64_t made_bytes; /* 0 in a plan */
} rq_exec_line;

enum { RQ_EXEC_MAX_LINES = 256 };
typedef struct rq_exec_list {
    rq_exec_line lines[RQ_EXEC_MAX_LINES];
    uint32_t n;
} rq_exec_list;

rq_status rq_executor_create(const rq_executor_params *params, rq_executor **out, rq_error *err);
void rq_executor_free(rq_executor *ex);

/* An empty step to fill (there are two; waits for the older one if both are in flight). */
rq_step *rq_executor_begin(rq_executor *ex, rq_error *err);
/* Finishes the step, applies its table edits and starts it: trunk, head if the step has rows, and the encoding
 * tape if it has to. A step without tokens only edits tables and encodes. */
rq_status rq_executor_submit(rq_executor *ex, rq_step *step, rq_error *err);
/* Waits for the step and makes its logits readable: f32 [n_rows][n_vocab], valid until the next submit. */
rq_status rq_executor_wait(rq_executor *ex, rq_step *step, const float **logits, rq_error *err);
/* More rows of the step that was run last: replaces its row list (at most RQ_HEAD_ROWS) and runs the head
 * only. */
rq_status rq_executor_head(rq_executor *ex, rq_step *step, const rq_row *rows, uint32_t n_rows,
                           const float **logits, rq_error *err);

/* ---- drafts: of an executor with `drafts` ---- */

/* Should steps be followed (they are, at first)? Else nothing of them comes into the block's cache. */
void rq_executor_follow(rq_executor *ex, bool on);
/* Applies the page table edits of a step that was begun, and takes them off its list: drafts come before the step. */
rq_status rq_executor_edit(rq_executor *ex, rq_step *step, rq_error *err);
/* An empty step for rq_executor_draft, to fill with runs of one token each, at most RQ_NARROW_BUCKET. */
rq_step *rq_executor_draft_begin(rq_executor *ex);
/* Guesses the token behind each of the step's. after[t]: which token of the draft before it came before token t, or -1:
 * the row of the sequence's last step does. ids[t] receives the guess; logits, unless NULL, f32 [n_tokens][n_vocab],
 * valid until the next submit or draft. */
rq_status rq_executor_draft(rq_executor *ex, rq_step *step, const int32_t *after, int32_t *ids,
                            const float **logits, rq_error *err);
/* Of the step that ran last: token t is the last one of sequence `seq` that counts. To be said after every step of
 * every sequence that may go on. */
rq_status rq_executor_last(rq_executor *ex, uint32_t seq, uint32_t token, rq_error *err);
/* That row, 4 * n_embd bytes: kept, and put back. It is part of what rq_executor_state_save keeps. */
uint64_t rq_executor_last_bytes(const rq_executor *ex); /* 0: there are no drafts */
rq_status rq_executor_last_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err);
rq_status rq_executor_last_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err);
/* Trunks run so far, and programs of the block; and the bytes of weights that all of them read: every operand of every
 * operation once for each run of its program, of experts as many as its bucket's tokens can name at most, and no rows of
 * embedding tables, which are few. */
typedef struct rq_executor_counts {
    uint64_t trunks, heads, follows, drafts;
    uint64_t weight_bytes;
} rq_executor_counts;
rq_executor_counts rq_executor_count(const rq_executor *ex);

/* What the step that ran last left in PERSIST capture, and that step; both valid until the next submit. The step
 * was waited for; *run counts steps. *rows NULL: no step with tokens ran yet. RQ_ERR_UNSUPPORTED where the
 * processor cannot read the device's memory. */
rq_status rq_executor_captured(rq_executor *ex, const float **rows, const rq_step **step, uint64_t *run,
                               rq_error *err);

typedef struct rq_executor_info {
    uint64_t weight_bytes, cache_bytes, arena_bytes, persist_bytes, step_bytes;
    uint64_t state_bytes;                                   /* of all sequences */
    uint64_t coded_bytes, scratch_bytes;                    /* of cache_bytes */
    uint32_t n_segments, n_copies, n_ops_trunk, n_ops_head; /* of the bucket-1 programs, after fusion */
    uint32_t n_round_trips;                                 /* of the same: away to another device and back */
    uint64_t copy_bytes;                                    /* between devices, of the same programs */
    uint64_t program_bytes;                                 /* scratch that backends take for programs */
} rq_executor_info;
void rq_executor_describe(const rq_executor *ex, rq_executor_info *out);
/* Keys and values so far that were not finite numbers when their page was encoded, where the backend counts them. From
 * any thread. */
uint64_t rq_executor_not_finite(const rq_executor *ex);

/* What an executor of these parameters would take, without taking it: no byte of a weight is read. `quick`: of the
 * narrow and the widest steps only, which decide almost always. */
rq_status rq_executor_plan(const rq_executor_params *params, bool quick, rq_exec_list *list,
                           rq_executor_info *info, rq_error *err);
/* Time spent so far in computing on the processor and in waiting for other devices; what steps take beside it is the
 * host's own work. To be asked for between steps. */
uint64_t rq_executor_device_ns(const rq_executor *ex);

/* What it was created with: planned, and made. */
const rq_exec_list *rq_executor_list(const rq_executor *ex);

/* Copies the content of one exact page to another of the same group (copy-on-write of a partial page). */
rq_status rq_executor_copy_page(rq_executor *ex, uint32_t group, uint32_t from, uint32_t to, rq_error *err);

/* The recurrent state of one sequence, where there are drafts with its last hidden row: its bytes (0: the model has none), a copy of it, and the copy put into the
 * slot of any sequence. Steps in flight are waited for. What a draft check left pending is no part of it: where tokens
 * of one were accepted and no run has applied them yet (rq_run.n_accepted), their inputs are kept and restored beside
 * it, with the functions that follow, for a run that starts at the same position with the same n_accepted. */
uint64_t rq_executor_state_bytes(const rq_executor *ex);
rq_status rq_executor_state_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err);
rq_status rq_executor_state_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err);
uint64_t rq_executor_pending_bytes(const rq_executor *ex); /* 0: no state group has n_pending */
rq_status rq_executor_pending_save(rq_executor *ex, uint32_t seq, void *bytes, rq_error *err);
rq_status rq_executor_pending_load(rq_executor *ex, uint32_t seq, const void *bytes, rq_error *err);

/* The bytes of an exact page (all layers of its group), and the same for one page. */
uint64_t rq_executor_page_bytes(const rq_executor *ex, uint32_t group);
rq_status rq_executor_page_save(rq_executor *ex, uint32_t group, uint32_t page, void *bytes, rq_error *err);
rq_status rq_executor_page_load(rq_executor *ex, uint32_t group, uint32_t page, const void *bytes,
                                rq_error *err);

/* Runs the bucket's trunk (and head) once on `step` and gives per-operation times; for rqvk-bench. */
typedef struct rq_op_time {
    const rq_tape *tape;
    const rq_op *op;
    uint64_t ns;
} rq_op_time;
rq_status rq_executor_profile(rq_executor *ex, rq_step *step, rq_op_time *times, uint32_t max, uint32_t *n,
                              rq_error *err);

#endif
