/* kernels.h - the implementations a build may contain; isa.c chooses among them. */
#ifndef RQ_CPU_KERNELS_H
#define RQ_CPU_KERNELS_H

#include "backends/cpu/kernels/kernel.h"

extern const rq_matmul_kernels rq_kernels_scalar;
#if defined(__x86_64__)
extern const rq_matmul_kernels rq_kernels_avx2;
extern const rq_matmul_kernels rq_kernels_avx512;
#elif defined(__aarch64__)
extern const rq_matmul_kernels rq_kernels_neon;
extern const rq_matmul_kernels rq_kernels_neon_dot;
#endif
/* The AVX-512 sources over SIMDe's emulation: in test programs only. */
extern const rq_matmul_kernels rq_kernels_avx512_emulated;

#endif
