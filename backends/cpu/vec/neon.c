/* neon.c - the row functions and attention for aarch64 NEON. */
#define RQ_SIMD_NEON
#include "backends/cpu/vec/table_impl.h"

const rq_vec rq_vec_neon = RQ_VEC_TABLE("neon");
