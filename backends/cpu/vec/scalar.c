/* scalar.c - the row functions and attention for plain C: the compiler's own four-lane vectors. */
#define RQ_SIMD_SCALAR
#include "backends/cpu/vec/table_impl.h"

const rq_vec rq_vec_scalar = RQ_VEC_TABLE("scalar");
