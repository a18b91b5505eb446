/* device.h - the processor as a device: worker threads, an instruction set, memory and scratch. */
#ifndef RQ_CPU_DEVICE_H
#define RQ_CPU_DEVICE_H

#include "backends/backend.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/pool.h"
#include "backends/cpu/vec/vec.h"

#include <stdbool.h>

typedef struct rq_cpu_rotation rq_cpu_rotation; /* ops_rotate.c: tables of a rotation */

typedef struct rq_cpu_device {
    rq_device base;
    rq_pool *pool; /* one worker when `reference` */
    const rq_cpu_isa *isa;
    const rq_vec *vec;
    bool reference; /* everything runs through the oracle in double */
    rq_delta_form delta_form;
    /* Scratch of the running program: programs of a device never run at the same time, so one serves all. */
    uint8_t *scratch;
    uint64_t scratch_bytes;
    uint64_t taken_bytes;       /* allocated, scratch included, adopted bytes not */
    rq_cpu_rotation *rotations; /* of the compiled programs */
} rq_cpu_device;

/* Makes the scratch at least `bytes` large; contents are lost. Programs must read device->scratch when they
 * run, not when they are compiled. */
rq_status rq_cpu_reserve_scratch(rq_cpu_device *device, uint64_t bytes, rq_error *err);

/* program.c */
bool rq_cpu_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why);
const char *rq_cpu_implementation(rq_device *device, const rq_tape *tape, const rq_op *op);
rq_status rq_cpu_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_program **out, rq_error *err);
rq_status rq_cpu_scratch(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                         rq_scratch *sum, rq_error *err);
void rq_cpu_destroy(rq_program *program);
rq_status rq_cpu_run(rq_program *program, const uint32_t *step_words, rq_error *err);
rq_status rq_cpu_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err);

#endif
