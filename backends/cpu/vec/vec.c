/* vec.c - which table of row functions goes with which instruction set. */
#include "backends/cpu/vec/vec.h"

const rq_vec *rq_vec_of(const rq_cpu_isa *isa)
{
    switch (isa->id) {
#if defined(__x86_64__)
    case RQ_ISA_AVX2:
        return &rq_vec_avx2;
    case RQ_ISA_AVX512:
        return &rq_vec_avx512;
#elif defined(__aarch64__)
    case RQ_ISA_NEON:
        return &rq_vec_neon;
#endif
    default:
        return &rq_vec_scalar;
    }
}
