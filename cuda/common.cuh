// common.cuh - what kernels share: the step, exact types, sums over warps and blocks.
#ifndef RQ_CUDA_COMMON_CUH
#define RQ_CUDA_COMMON_CUH

#include "cuda/simt.cuh"

// ---- the step (backends/step.h): offsets in words from its start (held to it in backends/cuda/tables.c)
CONSTANT uint32_t STEP_N_TOKENS = 1, STEP_N_RUNS = 2, STEP_N_ROWS = 3, STEP_TOKEN_ID = 6, STEP_TOKEN_POS = 7,
                  STEP_TOKEN_RUN = 8, STEP_TOKEN_SLOT = 9, STEP_RUNS = 17, STEP_WORK = 18, STEP_N_WORK = 26,
                  STEP_ENCODES = 34, STEP_N_ENCODES = 42, STEP_ROWS = 50;
CONSTANT uint32_t RUN_WORDS = 8, WORK_WORDS = 8, ROW_WORDS = 2;

DEVICE uint32_t min_u(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
DEVICE uint32_t max_u(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
DEVICE int min_i(int a, int b)
{
    return a < b ? a : b;
}
DEVICE int max_i(int a, int b)
{
    return a > b ? a : b;
}

DEVICE bool is_finite(float v)
{
    return (float_bits(v) & 0x7f800000u) != 0x7f800000u;
}

// ---- exact types: GGUF's numbers
CONSTANT uint32_t T_F32 = 0, T_F16 = 1, T_BF16 = 30;

DEVICE uint32_t bf16_bits(float v)
{
    uint32_t b = float_bits(v);
    if ((b & 0x7fffffffu) > 0x7f800000u) return b >> 16 | 0x40u;
    return (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}

DEVICE float load_exact(const uint8_t *p, uint32_t i, uint32_t type)
{
    if (type == T_F32) return ((const float *)p)[i];
    uint32_t h = ((const uint16_t *)p)[i];
    return type == T_F16 ? half_float(h) : bits_float(h << 16);
}

DEVICE void store_exact(uint8_t *p, uint32_t i, uint32_t type, float v)
{
    if (type == T_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = (uint16_t)(type == T_F16 ? half_bits(v) : bf16_bits(v));
}

// ---- reductions in a fixed order
DEVICE float warp_sum(float v)
{
    for (uint32_t m = 16; m > 0; m >>= 1) v += shfl_xor(v, m);
    return v;
}
DEVICE float warp_max(float v)
{
    for (uint32_t m = 16; m > 0; m >>= 1) v = fmaxf(v, shfl_xor(v, m));
    return v;
}

// Sum over a block of up to 256 threads; sums is shared, of 8 floats. Ends without a barrier behind the last read.
DEVICE float block_sum(float v, float *sums)
{
    v = warp_sum(v);
    if (thread_x() % 32 == 0) sums[thread_x() / 32] = v;
    block_sync();
    float s = 0;
    for (uint32_t i = 0; i < threads_x() / 32; i++) s += sums[i];
    return s;
}

// cos and sin of a >= 0 up to 2^20 and beyond. Whole turns are taken away with constants short enough that the
// products are exact (Cody & Waite 1980): k below 2^18 is cut into parts of 9 bits, 2 pi into pieces of 15; then
// polynomials on [-pi/4, pi/4] (minimax coefficients of S. Moshier's Cephes sinf, cosf).
DEVICE void cos_sin(float a, float &c, float &s)
{
    float k = floorf(a * 0.15915494309189535f + 0.5f), k1 = floorf(k / 512.0f) * 512.0f, k0 = k - k1;
    const float P1 = 6.282958984375f, P2 = 2.263188362121582e-4f, P3 = 3.968374073792802e-9f;
    float r = a - k1 * P1;
    r = r - k0 * P1;
    r = r - k1 * P2;
    r = r - k0 * P2;
    r = r - k * P3;
    float q = floorf(r * 0.6366197723675814f + 0.5f), z = r - q * 1.5703125f;
    z = z - q * 4.838267923332751e-4f;
    float w = z * z;
    float sn = ((-1.9515295891e-4f * w + 8.3321608736e-3f) * w - 1.6666654611e-1f) * w * z + z;
    float cs = ((2.443315711809948e-5f * w - 1.388731625493765e-3f) * w + 4.166664568298827e-2f) * w * w -
               0.5f * w + 1.0f;
    int m = (int)q & 3;
    c = m == 0 ? cs : m == 1 ? -sn : m == 2 ? -cs : sn;
    s = m == 0 ? sn : m == 1 ? cs : m == 2 ? -sn : -cs;
}

// act: 0 silu, 1 gelu by tanh, 2 sigmoid
DEVICE float gated(uint32_t act, float g, float up)
{
    // (1 + tanh z) / 2 = 1 / (1 + exp(-2 z))
    float z = act == 1 ? 2.0f * 0.7978845608028654f * (g + 0.044715f * g * g * g) : g;
    return (act == 2 ? 1.0f : g) / (1.0f + expf(-z)) * up;
}

#endif
