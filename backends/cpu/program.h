/* program.h - what a compiled segment is made of, for the files ops_*.c that compile and execute operations.
 *
 * A program is a flat list of instructions. Every worker walks the whole list; an instruction's work is cut into
 * units that the workers take one by one from a counter, so that unequally loaded processors share it well.
 * Which worker does a unit never changes a bit of its result. Before an instruction whose `barrier` is set all
 * units of the earlier ones must be done, and nowhere else is waited. What counts is units, not workers: one that
 * comes late finds the first instructions done and walks past them, and until then the others do the work.
 * Therefore the number of units an instruction has may depend on arguments and step alone, never on memory that
 * later instructions write. Pointers are resolved when the program is compiled; running it allocates
 * nothing and looks nothing up but the step. */
#ifndef RQ_CPU_PROGRAM_H
#define RQ_CPU_PROGRAM_H

#include "backends/cpu/device.h"
#include "backends/cpu/matmul.h"
#include "backends/cpu/vec/heads.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"

#include <stdatomic.h>

/* ---- running --------------------------------------------------------------------------------------------- */

typedef struct rq_cpu_worker {
    const rq_cpu_device *device;
    const rq_cpu_isa *isa;
    const rq_vec *vec;
    uint32_t index, count; /* this worker, and how many there are */
    uint32_t active;       /* real tokens (head: rows) of the step; the rest of the bucket is padding */
    const uint32_t *words; /* the step, NULL when the tape reads none */
    const rq_step_header *header;   /* its start */
    uint8_t *fixed;                 /* scratch that lives through the program (rq_cpu_fixed) */
    uint8_t *shared;                /* scratch of one instruction and what follows without a barrier */
    uint8_t *own;                   /* this worker's scratch */
    struct rq_cpu_counter *counter; /* of the instruction in hand */
    bool held;                      /* a unit of it was taken and is not done */
} rq_cpu_worker;

/* Units of one instruction; on a cache line of its own, because the workers hammer it. */
typedef struct rq_cpu_counter {
    _Alignas(64) _Atomic uint32_t next; /* taken so far, or more */
    _Atomic uint32_t done;
    _Atomic uint32_t total; /* written by everybody who asks for a unit, always the same */
} rq_cpu_counter;

/* Gives back the unit in hand, if any, as done. */
static inline void rq_cpu_finish(rq_cpu_worker *w)
{
    if (!w->held) return;
    w->held = false;
    uint32_t done = atomic_fetch_add_explicit(&w->counter->done, 1, memory_order_acq_rel) + 1;
    if (done == atomic_load_explicit(&w->counter->total, memory_order_relaxed))
        rq_pool_progress(w->device->pool);
}

/* The next unit of the instruction, false when all `n` are taken. The one before it is done. */
static inline bool rq_cpu_take(rq_cpu_worker *w, uint32_t n, uint32_t *unit)
{
    rq_cpu_counter *c = w->counter;
    if (w->count == 1) { /* no need for locked instructions */
        *unit = atomic_load_explicit(&c->next, memory_order_relaxed);
        if (*unit >= n) return false;
        atomic_store_explicit(&c->next, *unit + 1, memory_order_relaxed);
        return true;
    }
    rq_cpu_finish(w);
    atomic_store_explicit(&c->total, n, memory_order_relaxed);
    if (atomic_load_explicit(&c->next, memory_order_relaxed) >= n) return false;
    *unit = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
    w->held = *unit < n;
    return w->held;
}

/* Contents of the step. */
static inline const int32_t *rq_cpu_token_run(const rq_cpu_worker *w)
{
    return rq_step_at(w->words, w->header->token_run);
}
static inline const uint32_t *rq_cpu_token_pos(const rq_cpu_worker *w)
{
    return rq_step_at(w->words, w->header->token_pos);
}

typedef void (*rq_cpu_fn)(rq_cpu_worker *w, const void *args);

/* ---- compiling ------------------------------------------------------------------------------------------- */

typedef struct rq_tensor {
    uint8_t *p; /* the first element, NULL for values that are not memory */
    rq_type type;
    uint32_t ne[4];
    uint64_t nb[4]; /* bytes between neighbours */
} rq_tensor;

/* A loop over the rows (ne[0] elements) of a value, of which only those of real tokens matter. */
typedef struct rq_rows {
    uint32_t ne[4];
    uint32_t token_dim; /* the extent that is cut to the active tokens, 4: none */
} rq_rows;

typedef struct rq_cpu_builder rq_cpu_builder;

/* Of the operation being compiled. */
const rq_tape *rq_cpu_tape(const rq_cpu_builder *b);
const rq_bindings *rq_cpu_bindings(const rq_cpu_builder *b);
rq_cpu_device *rq_cpu_device_of(const rq_cpu_builder *b);

/* The value's memory; a reference of 0 gives p = NULL. */
rq_tensor rq_cpu_tensor(rq_cpu_builder *b, rq_ref ref);
rq_rows rq_cpu_rows(const rq_cpu_builder *b, const rq_tensor *t);

/* `bytes` of zeroed memory for arguments, owned by the program; NULL when out of memory (the builder remembers
 * and compiling fails). */
void *rq_cpu_args(rq_cpu_builder *b, size_t bytes);
/* Appends an instruction. The first one of an operation also waits if the segment says so. */
void rq_cpu_emit(rq_cpu_builder *b, rq_cpu_fn fn, const void *args, bool barrier);
/* Scratch: offsets into w->fixed and w->shared, 64-byte aligned, and a least size of w->own. */
uint64_t rq_cpu_fixed(rq_cpu_builder *b, uint64_t bytes);
uint64_t rq_cpu_shared(rq_cpu_builder *b, uint64_t bytes);
void rq_cpu_own(rq_cpu_builder *b, uint64_t bytes);
/* Offset (in w->fixed) of tables of cos and sin, f32 [bucket][2][n_rot / 2], multiplied by magnitude, for the
 * positions of the step; filled before anything else runs and shared by all operations that ask for the same. */
uint64_t rq_cpu_rope_table(rq_cpu_builder *b, const float *inv_freq, uint32_t n_rot, float magnitude);
void rq_cpu_run_rope_table(rq_cpu_worker *w, const void *args); /* ops_pointwise.c */
typedef struct rq_rope_table {
    const float *inv_freq;
    uint32_t n_rot;
    float magnitude;
    uint64_t offset;
} rq_rope_table;

/* The program keeps the rotation until it is destroyed; NULL: memory ran out. */
void rq_cpu_hold_rotation(rq_cpu_builder *b, rq_cpu_rotation *rotation);

/* Remembers a failure; the first one counts. */
void rq_cpu_fail(rq_cpu_builder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- rows ------------------------------------------------------------------------------------------------ */

/* Number of rows that matter in this step. */
static inline uint32_t rq_rows_active(const rq_rows *r, const rq_cpu_worker *w)
{
    uint32_t n = 1;
    for (uint32_t i = 1; i < 4; i++) n *= i == r->token_dim && w->active < r->ne[i] ? w->active : r->ne[i];
    return n;
}

/* Address of row `i` of a tensor that has these rows. */
static inline void *rq_row_of(const rq_tensor *t, const rq_rows *r, uint32_t i)
{
    uint32_t i1 = i % r->ne[1], rest = i / r->ne[1];
    return t->p + i1 * t->nb[1] + rest % r->ne[2] * t->nb[2] + rest / r->ne[2] * t->nb[3];
}

/* ---- the operations (compile functions; each appends its instructions) ----------------------------------- */

/* ops_pointwise.c */
void rq_cpu_embed(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_rms_norm(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_add_mul(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_scale(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_softcap(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_glu(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_rope(rq_cpu_builder *b, const rq_op *op);
/* ops_rows.c */
void rq_cpu_copy(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_select_rows(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_argmax(rq_cpu_builder *b, const rq_op *op);
/* ops_matmul.c */
void rq_cpu_matmul(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_products(rq_cpu_builder *b, const rq_op *op); /* PRODUCTS, GLU_PRODUCTS */
/* ops_experts.c */
void rq_cpu_route(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_group(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_matmul_experts(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_combine(rq_cpu_builder *b, const rq_op *op);
/* ops_cache.c */
void rq_cpu_kv_write(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_qkv_write(rq_cpu_builder *b, const rq_op *op);
/* ops_recurrent.c */
void rq_cpu_l2_norm(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_short_conv(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_delta_rule(rq_cpu_builder *b, const rq_op *op);
/* ops_rotate.c */
void rq_cpu_rotate(rq_cpu_builder *b, const rq_op *op);
void rq_cpu_rotation_release(rq_cpu_device *device, rq_cpu_rotation *rotation); /* one program's share */
/* ops_encode.c */
void rq_cpu_kv_encode(rq_cpu_builder *b, const rq_op *op);
/* attend.c */
void rq_cpu_attend(rq_cpu_builder *b, const rq_op *op);

#endif
