/* table_impl.h - the row functions and attention of one instruction set, as a table. Included by the file of each set,
 * which chooses the registers of simd.h by RQ_SIMD_<NAME>. */
#include "backends/cpu/vec/attend_impl.h"
#include "backends/cpu/vec/chunk_impl.h"
#include "backends/cpu/vec/pointwise_impl.h"
#include "backends/cpu/vec/recurrent_impl.h"

#define RQ_VEC_TABLE(set)                                                                                    \
    {                                                                                                        \
        .name = (set), .rms_norm = rms_norm, .add = add, .mul = mul, .scale = scale, .glu = glu,             \
        .weigh_add = weigh_add, .exp = exp_row, .argmax = argmax, .rope = rope, .to_f16 = to_f16,            \
        .l2_norm = l2_norm, .conv_silu = conv_silu, .delta_token = delta_token, .delta_chunk = delta_chunk,  \
        .attend_reduce = attend_reduce, .attend_page = attend_page, .attend_merge = attend_merge,            \
        .attend_finish = attend_finish,                                                                      \
    }
