/* avx2.c - the row functions and attention for AVX2, FMA and F16C. */
#define RQ_SIMD_AVX2
#include "backends/cpu/vec/table_impl.h"

const rq_vec rq_vec_avx2 = RQ_VEC_TABLE("avx2");
