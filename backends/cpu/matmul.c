/* matmul.c - the call of a matrix product: checks, columns to pointers, the kernel of the instruction set. */
#include "backends/cpu/matmul.h"

#include "backends/cpu/kernels/kernel.h"

rq_act_kind rq_matmul_act_kind(rq_type type)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    if (!info || !info->is_weight) return RQ_ACT_NONE;
    if (info->block_elems == 1) return RQ_ACT_F32;
    return info->block_elems == 256 ? RQ_ACT_Q256 : RQ_ACT_Q32;
}

size_t rq_matmul_act_bytes(rq_type type, int64_t n_in)
{
    rq_act_kind kind = rq_matmul_act_kind(type);
    if (kind == RQ_ACT_NONE || n_in <= 0 || n_in % rq_type_get((uint32_t)type)->block_elems) return 0;
    if (kind == RQ_ACT_F32) return (size_t)n_in * sizeof(float);
    return (size_t)((n_in + RQ_SPAN - 1) / RQ_SPAN) * sizeof(rq_act256);
}

void rq_matmul_quantize_act(const rq_cpu_isa *isa, rq_type type, const float *x, void *dst, int64_t n_in)
{
    switch (rq_matmul_act_kind(type)) {
    case RQ_ACT_F32:
        memcpy(dst, x, (size_t)n_in * sizeof(float));
        break;
    case RQ_ACT_Q32:
        isa->matmul->quantize_q32(x, dst, n_in);
        break;
    case RQ_ACT_Q256:
        isa->matmul->quantize_q256(x, dst, n_in);
        break;
    case RQ_ACT_NONE:
        break;
    }
}

size_t rq_matmul_scratch_bytes(void)
{
    return RQ_MM_SCRATCH + 64;
}

static uint8_t *align_64(void *p)
{
    return (uint8_t *)p + (-(uintptr_t)p & 63);
}

void rq_matmul_rows(const rq_cpu_isa *isa, rq_type type, const void *w, size_t row_bytes, int64_t n_in,
                    int64_t r0, int64_t r1, const void *acts, size_t act_stride, int64_t T, float *y,
                    size_t y_stride, void *scratch)
{
    const void *act_rows[RQ_MM_COLS];
    float *y_rows[RQ_MM_COLS];
    rq_mm_call call = {type, w, row_bytes, n_in, r0, r1, 0, act_rows, y_rows, align_64(scratch)};
    for (int64_t t0 = 0; t0 < T; t0 += RQ_MM_COLS) {
        call.n_cols = (int)(T - t0 < RQ_MM_COLS ? T - t0 : RQ_MM_COLS);
        for (int t = 0; t < call.n_cols; t++) {
            act_rows[t] = (const uint8_t *)acts + (size_t)(t0 + t) * act_stride;
            y_rows[t] = y + (size_t)(t0 + t) * y_stride;
        }
        isa->matmul->matmul(&call);
    }
}

void rq_matmul_gather(const rq_cpu_isa *isa, rq_type type, const void *w, size_t row_bytes, int64_t n_in,
                      int64_t r0, int64_t r1, const void *const *act_rows, float *const *y_rows, int64_t T,
                      void *scratch)
{
    rq_mm_call call = {type, w, row_bytes, n_in, r0, r1, 0, NULL, NULL, align_64(scratch)};
    for (int64_t t0 = 0; t0 < T; t0 += RQ_MM_COLS) {
        call.n_cols = (int)(T - t0 < RQ_MM_COLS ? T - t0 : RQ_MM_COLS);
        call.acts = act_rows + t0;
        call.y = y_rows + t0;
        isa->matmul->matmul(&call);
    }
}
