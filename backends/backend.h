/* backend.h - what a backend is to the rest of the program: devices that hold memory and replay segments. */
#ifndef RQ_BACKEND_H
#define RQ_BACKEND_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/state.h"
#include "backends/step.h"
#include "backends/tape/tape.h"

#include <stddef.h>

typedef struct rq_backend rq_backend;
typedef struct rq_device rq_device;   /* first member of every backend's own device struct */
typedef struct rq_memory rq_memory;   /* first member of every backend's own memory struct */
typedef struct rq_program rq_program; /* first member of every backend's own program struct */

typedef struct rq_device_info {
    char name[128];        /* "AMD EPYC" */
    char features[256];    /* "2 threads, avx2 fma f16c" */
    uint64_t memory_bytes; /* total, and free when asked */
    uint64_t free_bytes;
    uint64_t taken_bytes; /* of it by this device handle now, everything counted */
    bool host_memory;     /* its memory has host addresses, and adopt reads the bytes where they are */
    bool on_processor;    /* it computes on the processor, whatever its backend */
} rq_device_info;

typedef struct rq_device_options {
    uint32_t index;             /* which device of the backend */
    const char *name;           /* its number, or part of its name (any case); NULL: by index */
    uint32_t n_threads;         /* cpu: workers, 0 = processors this process may run on */
    const char *implementation; /* force one: "scalar", "avx2", "reference"; NULL: the best */
    const char *disable;        /* vulkan: abilities not to use, "float16,coopmat"; NULL: none */
    rq_delta_form
        delta_form; /* how prompts go through delta rules; 0: as the kind of device does by itself */
} rq_device_options;

struct rq_device {
    const rq_backend *backend;
};

struct rq_memory {
    rq_device *device;
    void *host; /* address when the processor may touch it, else NULL */
    uint64_t bytes;
};

struct rq_program {
    rq_device *device;
};

/* Where the operands of a segment live on its device. */
typedef struct rq_binding {
    rq_memory *memory;
    uint64_t offset;
} rq_binding;

enum { RQ_MAX_SLABS = 256 };

/* The pages of a group. Tables are u32 [n_seqs][max_pages] of page ids, RQ_NO_PAGE where there is none. What
 * belongs to coded pages is absent (NULL, 0) where the group has none, and so is what belongs to scratch. */
typedef struct rq_cache_pool {
    const rq_cache_group *group;
    rq_page_layout layout;
    rq_memory *slabs[RQ_MAX_SLABS];
    uint32_t n_slabs, n_pages;
    rq_memory *table; /* of exact pages */
    rq_memory *
        scratch; /* exact pages n_pages .. n_pages + n_scratch - 1, layer_bytes each, for one layer at a time */
    uint32_t n_scratch;
    rq_coded_layout coded_layout;
    rq_memory *coded_slabs[RQ_MAX_SLABS];
    uint32_t n_coded_slabs, n_coded;
    rq_memory *coded_table;
} rq_cache_pool;

/* Host address of the block of (layer, KV head) of an exact page, which may be a scratch page: K, then V at
 * layout.k_bytes. NULL for a page id that is none. The pool's memory has host addresses. */
static inline uint8_t *rq_pool_exact_block(const rq_cache_pool *pool, uint32_t page, uint32_t layer,
                                           uint32_t head)
{
    const rq_page_layout *l = &pool->layout;
    if (page >= pool->n_pages) {
        uint32_t scratch = page - pool->n_pages;
        if (scratch >= pool->n_scratch) return NULL;
        return (uint8_t *)pool->scratch->host + scratch * l->layer_bytes + head * l->head_bytes;
    }
    uint8_t *slab = (uint8_t *)pool->slabs[page >> l->slab_shift]->host;
    return slab + (page & ((1u << l->slab_shift) - 1)) * l->page_bytes + layer * l->layer_bytes +
           head * l->head_bytes;
}

/* The same of a coded page: K words, then V words, K scales and V scales at the distances of coded_layout. */
static inline uint8_t *rq_pool_coded_block(const rq_cache_pool *pool, uint32_t page, uint32_t layer,
                                           uint32_t head)
{
    const rq_coded_layout *l = &pool->coded_layout;
    if (page >= pool->n_coded) return NULL;
    uint8_t *slab = (uint8_t *)pool->coded_slabs[page >> l->slab_shift]->host;
    return slab + (page & ((1u << l->slab_shift) - 1)) * l->page_bytes + layer * l->layer_bytes +
           head * l->head_bytes;
}

/* The slots of a state group: slot i starts at i * layout.slot_bytes. */
typedef struct rq_state_pool {
    const rq_state_group *group;
    rq_state_layout layout;
    rq_memory *memory;
    uint32_t n_slots;
} rq_state_pool;

/* Host address of a layer's part of a slot: the tail, then the matrices. The memory has host addresses. */
static inline uint8_t *rq_pool_state(const rq_state_pool *pool, uint32_t slot, uint32_t layer)
{
    return (uint8_t *)pool->memory->host + slot * pool->layout.slot_bytes + layer * pool->layout.layer_bytes;
}

/* The layer's part of a slot's pending area; of a pool whose group has one. */
static inline uint8_t *rq_pool_pending(const rq_state_pool *pool, uint32_t slot, uint32_t layer)
{
    const rq_state_layout *l = &pool->layout;
    return (uint8_t *)pool->memory->host + slot * l->slot_bytes + l->state_bytes + layer * l->pending_bytes;
}

typedef struct rq_bindings {
    const rq_binding *weights; /* by weight index */
    rq_memory *arena;
    rq_memory *persist[RQ_PERSIST_COUNT];
    const rq_cache_pool *pools;  /* by group */
    const rq_state_pool *states; /* by state group; NULL: no operation reads any */
    const rq_step_caps *caps;
    /* KV_ENCODE adds how many of its inputs were not finite (they are kept as 0), from any thread. NULL: nobody asks. */
    _Atomic uint64_t *not_finite;
} rq_bindings;

/* Memory that programs take beside what the executor allocates; grows from segment to segment. */
typedef struct rq_scratch {
    uint64_t largest; /* of what one program uses at a time and all of a device share */
    uint64_t sum;     /* of what every program has for itself */
    uint64_t once;    /* of what the device makes once for all programs */
} rq_scratch;

/* A single-device piece of a planned tape: the operations [first, first + count), in order. `arena_offset[v]`
 * is the arena byte of ACT value v's owner; `barrier[i]` says that operation first + i must see the writes of
 * all earlier ones (computed from ranges in the ground floor; between two barriers operations may run in any
 * order). */
typedef struct rq_segment {
    const rq_tape *tape;
    uint32_t first, count;
    const uint64_t *arena_offset;
    const uint8_t *barrier;
} rq_segment;

struct rq_backend {
    const char *name;

    uint32_t (*count)(void);
    rq_status (*open)(const rq_device_options *options, rq_device **out, rq_error *err);
    void (*close)(rq_device *device);
    void (*describe)(rq_device *device, rq_device_info *out);

    /* Zero-filled memory. `label` names it in the memory report. */
    rq_status (*alloc)(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err);
    /* Makes host bytes (weights in a mapped file) usable by the device: wraps them where it can read them in
     * place, else copies. The bytes must outlive the memory. */
    rq_status (*adopt)(rq_device *device, const void *host, uint64_t bytes, const char *label,
                       rq_memory **out, rq_error *err);
    void (*release)(rq_memory *memory);
    rq_status (*upload)(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err);
    rq_status (*download)(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err);

    /* Can this device run the operation as it stands on the tape? Answered at load; `why` gets a sentence. */
    bool (*supports)(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why);
    /* Name of the implementation that serves the operation ("avx2", "reference"). */
    const char *(*implementation)(rq_device *device, const rq_tape *tape, const rq_op *op);

    rq_status (*compile)(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_program **out, rq_error *err);
    /* What compiling the segment would take beside `bindings`; called before anything is allocated: weights are
     * bound to host memory whatever the device, and there is no arena, no persistent memory and no slab. NULL:
     * programs take nothing. */
    rq_status (*scratch)(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_scratch *sum, rq_error *err);
    void (*destroy)(rq_program *program);
    /* Starts the program on a finished step; the words stay valid until wait. No allocation. */
    rq_status (*run)(rq_program *program, const uint32_t *step_words, rq_error *err);
    /* Waits for everything started on the device. */
    rq_status (*wait)(rq_device *device, rq_error *err);
    /* For steps that overlap; all NULL where run has finished when it returns. `mark` names everything started so far;
     * wait_mark waits for that and not for what came after. alloc_host makes memory of the processor, with a host
     * address, that the device can write: fetch copies there behind everything started so far, without waiting. */
    uint64_t (*mark)(rq_device *device);
    rq_status (*wait_mark)(rq_device *device, uint64_t mark, rq_error *err);
    rq_status (*alloc_host)(rq_device *device, uint64_t bytes, const char *label, rq_memory **out,
                            rq_error *err);
    rq_status (*fetch)(rq_memory *src, uint64_t offset, rq_memory *host, uint64_t bytes, rq_error *err);
    /* As run and wait, with the nanoseconds of each operation of the segment in ns[count]. */
    rq_status (*profile)(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err);
    /* How many kernels each operation of the tape would launch, per_op[n_ops]. No card is needed; such a backend's `supports` takes NULL as device. groups, states: by
     * index;
     * `caps` complete. NULL: the backend launches nothing. */
    rq_status (*launches)(const rq_tape *tape, const rq_cache_group *groups, uint32_t n_groups,
                          const rq_state_group *states, uint32_t n_states, const rq_step_caps *caps,
                          uint32_t *per_op, rq_error *err);
};

extern const rq_backend rq_backend_cpu;

/* The registry: NULL-terminated list of backends in this build, and look-up by name (NULL when absent). */
const rq_backend *const *rq_backends(void);
const rq_backend *rq_backend_find(const char *name);

#endif
