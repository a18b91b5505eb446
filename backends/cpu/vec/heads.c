/* heads.c - rotations and widening in what every processor of the architecture has (on aarch64 that is NEON),
 * and which table goes with which instruction set. */
#if defined(__aarch64__)
#define RQ_SIMD_NEON
#endif
#include "backends/cpu/vec/heads_impl.h"

const rq_heads rq_heads_plain = {.turn = turn, .shift = shift, .unshift = unshift, .widen = widen};

const rq_heads *rq_heads_of(const rq_cpu_isa *isa)
{
#if defined(__x86_64__)
    if (isa->id == RQ_ISA_AVX2) return &rq_heads_avx2;
    if (isa->id == RQ_ISA_AVX512) return &rq_heads_avx512;
#endif
    (void)isa;
    return &rq_heads_plain;
}
