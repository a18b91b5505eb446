/* avx2.c - the row functions and attention for AVX2, FMA and F16C. */
#define RQ_SIMD_AVX2
#include "backends/cpu/vec/attend_impl.h"
#include "backends/cpu/vec/pointwise_impl.h"
#include "backends/cpu/vec/recurrent_impl.h"

const rq_vec rq_vec_avx2 = {
    .name = "avx2",
    .rms_norm = rms_norm,
    .add = add,
    .mul = mul,
    .scale = scale,
    .glu = glu,
    .weigh_add = weigh_add,
    .exp = exp_row,
    .argmax = argmax,
    .rope = rope,
    .to_f16 = to_f16,
    .l2_norm = l2_norm,
    .conv_silu = conv_silu,
    .delta_token = delta_token,
    .attend_reduce = attend_reduce,
    .attend_page = attend_page,
    .attend_merge = attend_merge,
    .attend_finish = attend_finish,
};
