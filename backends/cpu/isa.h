/* isa.h - which instruction set the processor's kernels use; chosen once, at run time.
 *
 * Every implementation the build contains can be asked for by name, so that tests compare them on one
 * machine. */
#ifndef RQ_CPU_ISA_H
#define RQ_CPU_ISA_H

#include <stdbool.h>
#include <stddef.h>

typedef enum rq_isa_id {
    RQ_ISA_SCALAR = 0, /* plain C, always there */
    RQ_ISA_AVX2,       /* AVX2 + FMA + F16C */
    RQ_ISA_AVX512,     /* AVX-512 F/BW/VL/DQ + VNNI */
    RQ_ISA_NEON        /* aarch64 */
} rq_isa_id;

struct rq_matmul_kernels; /* backends/cpu/kernels/kernel.h */

typedef struct rq_cpu_isa {
    const char *name; /* "scalar", "avx2", "avx512", "neon", "neon_dot" */
    rq_isa_id id;
    const struct rq_matmul_kernels *matmul;
} rq_cpu_isa;

/* The fastest implementation this machine runs; never NULL. */
const rq_cpu_isa *rq_cpu_isa_best(void);

/* NULL when the build does not contain `name`, the machine cannot run it, or there is no such name. */
const rq_cpu_isa *rq_cpu_isa_by_name(const char *name);

/* The i-th implementation that this machine runs, slowest first; NULL past the last. */
const rq_cpu_isa *rq_cpu_isa_at(size_t i);

/* True when the machine (not the build) has what the implementation of that name needs. Lets a test fail when
 * a build silently lacks an implementation that the machine could run. */
bool rq_cpu_machine_runs(const char *name);

#endif
