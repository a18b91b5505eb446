/* avx512.c - the row functions and attention for AVX-512 (F, BW, VL, DQ, VNNI). */
#define RQ_SIMD_AVX512
#include "backends/cpu/vec/table_impl.h"

const rq_vec rq_vec_avx512 = RQ_VEC_TABLE("avx512");
