/* place.h - where everything goes: layers, experts, embedding, output and caches over devices.
 *
 * The devices of an engine are its cards, in the order in which they were named, and behind them the processor where
 * anything runs on it. A card is whatever the user listed; nothing here knows a backend by name but the processor's.
 * Layers are counted from the end: with --gpu-layers N the last N are on cards, and the output with them. */
#ifndef RQ_PLACE_H
#define RQ_PLACE_H

#include "backends/exec/exec.h"
#include "engine/kv/plan.h"
#include "engine/models/model.h"

enum { RQ_MAX_CARDS = 8, RQ_PLACE_DEVICES = RQ_MAX_CARDS + 1 };

/* ---- devices (devices.c) --------------------------------------------------------------------------------- */

typedef struct rq_place_devices {
    rq_device *open[RQ_PLACE_DEVICES]; /* the cards, then the processor; NULL: the processor is not wanted */
    rq_device_info info[RQ_PLACE_DEVICES];
    char name[RQ_PLACE_DEVICES][24];   /* "vulkan0", "cpu" */
    uint64_t budget[RQ_PLACE_DEVICES]; /* bytes that may be planned with; 0: unknown */
    bool shares[RQ_PLACE_DEVICES];     /* a card whose memory is the processor's: both have one budget */
    uint32_t n_cards, n;
} rq_place_devices;

/* Opens the devices that `params` names, or the one that is chosen for it, as cards, and the processor behind them;
 * the processor alone where that is what was chosen. rq_place_close takes what is there, also after a failure. */
rq_status rq_place_open(const rq_engine_params *params, rq_place_devices *out, rq_error *err);
void rq_place_close(rq_place_devices *devices);
/* Closes the processor: nothing runs on it. */
void rq_place_drop_processor(rq_place_devices *devices);

/* ---- wishes (place.c) ------------------------------------------------------------------------------------ */

#define RQ_PLACE_AUTO UINT32_MAX

typedef struct rq_place_wishes {
    uint32_t gpu_layers;  /* RQ_PLACE_AUTO, or at most all */
    uint32_t cpu_experts; /* so many first layers keep their experts on the processor; RQ_PLACE_AUTO */
    double shares[RQ_MAX_CARDS];
    bool has_shares;
} rq_place_wishes;

/* Reads the placement options. They are refused where they make no sense: layers for cards that are not there,
 * experts of a model that has none. */
rq_status rq_place_read(const rq_model *model, const rq_engine_params *params, uint32_t n_cards,
                        rq_place_wishes *out, rq_error *err);

/* ---- a placement (place.c) ------------------------------------------------------------------------------- */

typedef struct rq_place_choice {
    uint32_t gpu_layers, cpu_experts;
    bool input_on_card;
} rq_place_choice;

typedef struct rq_place_slot {
    uint16_t group, layer; /* group UINT16_MAX: none */
} rq_place_slot;

typedef struct rq_place {
    const rq_model *model;
    rq_pass *pass; /* borrowed; may be set later */
    rq_place_choice choice;
    uint32_t n_cards, n_devices;
    uint16_t layer[RQ_MAX_LAYERS], experts[RQ_MAX_LAYERS]; /* device */
    uint16_t input, output;
    bool uses_processor;
    bool drafts; /* the first MTP block is part of it, with the output */
    rq_cache_group groups[RQ_MAX_GROUPS];
    uint32_t group_device[RQ_MAX_GROUPS];
    uint32_t n_groups;
    rq_state_group states[RQ_MAX_STATE_GROUPS];
    uint32_t state_device[RQ_MAX_STATE_GROUPS];
    uint32_t n_states;
    /* the model's group, and layer in it -> ours */
    rq_place_slot of[RQ_MAX_GROUPS][RQ_MAX_LAYERS], state_of[RQ_MAX_STATE_GROUPS][RQ_MAX_LAYERS];
} rq_place;

/* weights[i]: how much of the layers card i shall take, any scale. `groups` are the model's in the formats of the
 * engine. Fails when the groups would be more than there can be. */
rq_status rq_place_make(const rq_model *model, const rq_cache_group *groups, uint32_t n_cards,
                        const rq_place_choice *choice, const double *shares, rq_place *out, rq_error *err);

/* "layers 4-7, experts 6-7, output" of a device, or "nothing". */
void rq_place_describe(const rq_place *place, uint32_t device, char *text, size_t bytes);

/* ---- sizes (place.c) ------------------------------------------------------------------------------------- */

typedef struct rq_place_numbers {
    uint32_t n_ctx, n_sessions, n_batch;
    uint64_t cache_tokens;   /* 0: as the sessions need */
    uint64_t snapshot_bytes; /* of the heap, for copies of recurrent state; 0: the model has none */
} rq_place_numbers;

typedef struct rq_place_pools {
    uint32_t exact_pages[RQ_MAX_GROUPS], coded_pages[RQ_MAX_GROUPS], scratch_pages[RQ_MAX_GROUPS];
    uint64_t cache_tokens; /* that the smallest group holds; windows hold any number */
    uint64_t cache_bytes;  /* of everything below, tables included */
    uint64_t coded_bytes, exact_bytes, scratch_bytes; /* of groups with a coded form */
    uint64_t window_bytes;                            /* of groups with a window, coded or not */
    uint64_t device_bytes[RQ_PLACE_DEVICES];
} rq_place_pools;

/* Pools for these groups: their pages and bytes, as the executor will allocate them. group_device may be NULL. */
rq_status rq_place_size(const rq_cache_group *groups, const uint32_t *group_device, uint32_t n_groups,
                        const rq_place_numbers *numbers, rq_place_pools *out, rq_error *err);

/* What the executor is made of; pointers go into the arguments, which must live as long. */
rq_executor_params rq_place_executor(rq_place *place, const rq_place_devices *devices, const rq_kv_plan *kv,
                                     const rq_place_pools *pools, const rq_place_numbers *numbers);

/* ---- fitting (fit.c) ------------------------------------------------------------------------------------- */

/* Contexts nobody asked for are not made shorter than COMFORT tokens for the sake of a better placement, nor than
 * LEAST at all. */
enum { RQ_FIT_COMFORT = 8192, RQ_FIT_LEAST = 256 };

typedef struct rq_place_need {
    uint64_t device[RQ_PLACE_DEVICES]; /* bytes; of the processor with the heap of this process */
    uint64_t weights[RQ_PLACE_DEVICES], cache[RQ_PLACE_DEVICES], state[RQ_PLACE_DEVICES];
    uint64_t activations[RQ_PLACE_DEVICES], scratch[RQ_PLACE_DEVICES], other[RQ_PLACE_DEVICES];
    uint64_t file_bytes; /* weights the processor reads in the mapped file: not in the above */
} rq_place_need;

/* Sums a list by device; `heap` bytes are the processor's besides. On cards weights count even if they are read in
 * place. */
void rq_place_sum(const rq_exec_list *list, const rq_place_devices *devices, uint64_t heap,
                  rq_place_need *out);

typedef struct rq_fit {
    rq_place_choice choice;
    double shares[RQ_MAX_CARDS];
    uint32_t n_ctx;
} rq_fit;

/* Chooses where the layers go and, when numbers->n_ctx is 0, the context. Refuses with a sentence when nothing
 * fits; with params->no_fit nothing is looked at and everything goes on the cards. */
rq_status rq_fit_choose(const rq_model *model, const rq_engine_params *params,
                        const rq_place_devices *devices, const rq_place_wishes *wishes,
                        const rq_place_numbers *numbers, rq_fit *out, rq_error *err);

/* Whether the whole list fits into the budgets; the sentence names the device, what is missing and what can be
 * changed. */
rq_status rq_fit_check(const rq_place_devices *devices, const rq_place_need *need, uint32_t n_ctx,
                       rq_error *err);

#endif
