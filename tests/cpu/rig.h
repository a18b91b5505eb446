/* rig.h - a processor device with a cache, an arena and a step, for tests that run short tapes on it. */
#ifndef RQ_TEST_RIG_H
#define RQ_TEST_RIG_H

#include "backends/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { RIG_MAX_WEIGHTS = 8 };

typedef struct rig {
    rq_device *device;
    rq_cache_group group;
    rq_step_caps caps;
    rq_cache_pool pool;
    rq_memory *persist[RQ_PERSIST_COUNT];
    rq_step step;
    rq_memory *weights[RIG_MAX_WEIGHTS];
    rq_binding weight_bindings[RIG_MAX_WEIGHTS];
    /* of the tape that was compiled last */
    rq_memory *arena;
    uint64_t *arena_offset;
    uint8_t *barrier;
    rq_bindings bindings;
    rq_program *program;
    const rq_tape *tape;
} rig;

/* Asserts on every failure. `implementation` as in rq_device_options. group NULL: no cache. */
void rig_open(rig *r, const char *implementation, uint32_t threads, const rq_cache_group *group,
              const rq_step_caps *caps);
void rig_close(rig *r);

/* Every page full of NaN, the table of sequence s: pages in a scattered order. */
void rig_fresh_cache(rig *r);
const uint32_t *rig_table(const rig *r, uint32_t seq);
/* Writes key and value of a position of all heads of `layer` straight into the page. */
void rig_put(rig *r, uint32_t layer, uint32_t seq, uint32_t pos, const float *k, const float *v);
/* The element of the cache as a float: K's d of (head, pos), and V's. */
float rig_k(const rig *r, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t d);
float rig_v(const rig *r, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t d);

/* Brings page `index` of a sequence into coded form (the group has one), in one layer. */
void rig_encode(rig *r, uint32_t layer, uint32_t seq, uint32_t index);
/* Fills the exact page with NaN, in every layer. */
void rig_forget(rig *r, uint32_t seq, uint32_t index);

/* A weight the next tape may use by index; copied. */
void rig_weight(rig *r, uint32_t index, const void *bytes, uint64_t n);

/* Compiles all operations of a tape: values one after another in the arena, a barrier before each. */
void rig_compile(rig *r, const rq_tape *tape);
void *rig_value(const rig *r, rq_ref ref); /* its memory */
void rig_run(rig *r);                      /* on r->step, which must be finished */

/* Deterministic data: uniform in [-1, 1), and roughly normal with deviation 1. */
float rig_uniform(uint64_t *seed);
float rig_normal(uint64_t *seed);

/* sum (y - ref)^2 / sum ref^2 */
double rig_nmse(const float *y, const float *ref, size_t n);

#endif
