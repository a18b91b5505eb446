/* heads_avx2.c - rotations and widening for AVX2, FMA and F16C. */
#define RQ_SIMD_AVX2
#include "backends/cpu/vec/heads_impl.h"

const rq_heads rq_heads_avx2 = {.turn = turn, .shift = shift, .unshift = unshift, .widen = widen};
