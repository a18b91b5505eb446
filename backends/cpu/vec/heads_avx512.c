/* heads_avx512.c - rotations and widening for AVX-512. */
#define RQ_SIMD_AVX512
#include "backends/cpu/vec/heads_impl.h"

const rq_heads rq_heads_avx512 = {.turn = turn, .shift = shift, .unshift = unshift, .widen = widen};
