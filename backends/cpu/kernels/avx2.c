/* avx2.c - matrix kernels for AVX2 + FMA + F16C.
 *
 * One column: x86_gemv.h. More: tiles of 16 rows x 256 elements (about 6 KB, in the first-level cache) against
 * four columns at a time; per 4 elements two registers of codes meet four broadcast activations. Sums of
 * products stay in 16 bits as long as they fit (x86_types.h: chain), then meet the scales in 32 bits. */
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/x86_float.h"
#include "backends/cpu/kernels/x86_quantize.h"
#include "backends/cpu/kernels/x86_tile.h"

RQ_INLINE __m256i four_bytes(const void *p)
{
    return _mm256_set1_epi32((int)rq_ld32(p));
}

/* Keeps a running sum in its register: without it GCC turns the chain of additions into a tree and stores every
 * product on the stack (twice as slow). */
#define KEEP(v) __asm__("" : "+x"(v))

/* Products of 4 * steps elements, at most `chain` steps between widenings; each widening multiplies by `scale`
 * and adds into sum. w0, w1: the codes of 16 rows; q[t]: the activation codes of column t. */
RQ_INLINE void add_group(const __m256i *w0, const __m256i *w1, const int steps, const int8_t *const q[4],
                         const __m256i scale[2], __m256i sum[2][4], const int cols, const int chain,
                         const int sign)
{
    __m256i s[2][4];
#pragma GCC unroll 8
    for (int k = 0; k < steps; k++) {
        __m256i c0 = w0[k], c1 = w1[k];
        __m256i m0 = sign ? _mm256_abs_epi8(c0) : c0, m1 = sign ? _mm256_abs_epi8(c1) : c1;
#pragma GCC unroll 4
        for (int t = 0; t < cols; t++) {
            __m256i x = four_bytes(q[t] + 4 * k);
            __m256i p0 = _mm256_maddubs_epi16(m0, sign ? _mm256_sign_epi8(x, c0) : x);
            __m256i p1 = _mm256_maddubs_epi16(m1, sign ? _mm256_sign_epi8(x, c1) : x);
            s[0][t] = k % chain ? _mm256_add_epi16(s[0][t], p0) : p0;
            s[1][t] = k % chain ? _mm256_add_epi16(s[1][t], p1) : p1;
            KEEP(s[0][t]);
            KEEP(s[1][t]);
            if (k % chain == chain - 1 || k == steps - 1) {
                sum[0][t] = _mm256_add_epi32(sum[0][t], _mm256_madd_epi16(s[0][t], scale[0]));
                sum[1][t] = _mm256_add_epi32(sum[1][t], _mm256_madd_epi16(s[1][t], scale[1]));
            }
        }
    }
}

/* Sum over groups of mn * (sum of activation codes). */
RQ_INLINE __m256i min_sum(const rq_tile *tile, const rq_act256 *a, const int group)
{
    const int16_t *bs = group == 32 ? a->bs32 : a->bsx;
    __m256i s = _mm256_madd_epi16(tile->t256.mn[0], four_bytes(bs));
    for (int p = 1; p < (group == 32 ? 4 : 8); p++)
        s = _mm256_add_epi32(s, _mm256_madd_epi16(tile->t256.mn[p], four_bytes(bs + 2 * p)));
    return s;
}

/* One span of 16 rows x cols columns; acc[t]: the 16 floats of column t so far. */
RQ_INLINE void core256(const rq_tile tile[2], const rq_act256 *const a[4], float *const acc[4],
                       const int cols, const int group, const int chain, const int offset, const int has_min,
                       const int sign)
{
    __m256i sum[2][4];
    for (int t = 0; t < cols; t++)
        for (int h = 0; h < 2; h++)
            sum[h][t] = offset ? min_sum(&tile[h], a[t], group) : _mm256_setzero_si256();
    for (int g = 0; g < 256 / group; g++) {
        __m256i scale[2] = {tile[0].t256.sc[g], tile[1].t256.sc[g]};
        const int8_t *q[4];
        for (int t = 0; t < cols; t++) q[t] = a[t]->q + g * group;
        add_group(tile[0].t256.q + g * group / 4, tile[1].t256.q + g * group / 4, group / 4, q, scale, sum,
                  cols, chain, sign);
    }
    for (int t = 0; t < cols; t++) {
        __m256 da = _mm256_set1_ps(a[t]->d);
        for (int h = 0; h < 2; h++) {
            __m256 y = _mm256_loadu_ps(acc[t] + 8 * h);
            y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h][t]), _mm256_mul_ps(tile[h].t256.d, da), y);
            if (has_min)
                y = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(min_sum(&tile[h], a[t], group)),
                                     _mm256_mul_ps(tile[h].t256.dm, da), y);
            _mm256_storeu_ps(acc[t] + 8 * h, y);
        }
    }
}

/* The same for the types with a float scale per 32 elements; halves: one per 16 (NVFP4). */
RQ_INLINE void core32(const rq_tile tile[2], const rq_act32 *const a[4], float *const acc[4], int n32,
                      const int cols, const int chain, const int offset, const int has_min, const int sign,
                      const int halves)
{
    const __m256i one[2] = {_mm256_set1_epi16(1), _mm256_set1_epi16(1)};
    for (int j = 0; j < n32; j++) {
        for (int half = 0; half < (halves ? 2 : 1); half++) {
            const int8_t *q[4];
            __m256i sum[2][4];
            for (int t = 0; t < cols; t++) {
                q[t] = a[t]->q + 32 * j + 16 * half;
                sum[0][t] = sum[1][t] =
                    offset ? _mm256_set1_epi32(-offset * a[t]->bs[j]) : _mm256_setzero_si256();
            }
            add_group(tile[0].t32.q + 8 * j + 4 * half, tile[1].t32.q + 8 * j + 4 * half, halves ? 4 : 8, q,
                      one, sum, cols, chain, sign);
            for (int t = 0; t < cols; t++) {
                __m256 da = _mm256_set1_ps(a[t]->d[j]);
                for (int h = 0; h < 2; h++) {
                    __m256 y = _mm256_loadu_ps(acc[t] + 8 * h);
                    y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h][t]),
                                        _mm256_mul_ps(tile[h].t32.d[2 * j + half], da), y);
                    if (has_min)
                        y = _mm256_fmadd_ps(_mm256_set1_ps((float)a[t]->bs[j]),
                                            _mm256_mul_ps(tile[h].t32.dm[j], da), y);
                    _mm256_storeu_ps(acc[t] + 8 * h, y);
                }
            }
        }
    }
}

typedef void (*pack_fn)(const uint8_t *const rows[8], size_t span, int n32, rq_tile *tile);
typedef void (*core_fn)(const rq_tile tile[2], const void *const a[4], float *const acc[4], int n32,
                        int cols);

#define CORE_256(suffix, group, chain, offset, has_min, sign)                                                \
    static void core_##suffix(const rq_tile tile[2], const void *const a[4], float *const acc[4], int n32,   \
                              int cols)                                                                      \
    {                                                                                                        \
        const rq_act256 *const *q = (const rq_act256 *const *)a;                                             \
        switch (cols) {                                                                                      \
        case 1:                                                                                              \
            core256(tile, q, acc, 1, group, chain, offset, has_min, sign);                                   \
            break;                                                                                           \
        case 2:                                                                                              \
            core256(tile, q, acc, 2, group, chain, offset, has_min, sign);                                   \
            break;                                                                                           \
        case 3:                                                                                              \
            core256(tile, q, acc, 3, group, chain, offset, has_min, sign);                                   \
            break;                                                                                           \
        default:                                                                                             \
            core256(tile, q, acc, 4, group, chain, offset, has_min, sign);                                   \
            break;                                                                                           \
        }                                                                                                    \
    }
/* One per distinct row of x86_types.h; `offset` only says whether there is one, mn already holds it. */
CORE_256(g16c8_min, 16, 8, 0, 1, 0)
CORE_256(g16c8_off, 16, 8, 1, 0, 0)
CORE_256(g16c4_off, 16, 4, 1, 0, 0)
CORE_256(g16c2_off, 16, 2, 1, 0, 0)
CORE_256(g16c1_off, 16, 1, 1, 0, 0)
CORE_256(g32c8_min, 32, 8, 0, 1, 0)
CORE_256(g32c4_min, 32, 4, 0, 1, 0)
CORE_256(g32c8_off, 32, 8, 1, 0, 0)
CORE_256(g32c4_off, 32, 4, 1, 0, 0)
CORE_256(g32c1_off, 32, 1, 1, 0, 0)
CORE_256(g32_sign, 32, 1, 0, 0, 1)

#define CORE_32(name, span_bytes, offset, has_min, chain, sign, halves)                                      \
    static void core_##name(const rq_tile tile[2], const void *const a[4], float *const acc[4], int n32,     \
                            int cols)                                                                        \
    {                                                                                                        \
        const rq_act32 *const *q = (const rq_act32 *const *)a;                                               \
        switch (cols) {                                                                                      \
        case 1:                                                                                              \
            core32(tile, q, acc, n32, 1, chain, offset, has_min, sign, halves);                              \
            break;                                                                                           \
        case 2:                                                                                              \
            core32(tile, q, acc, n32, 2, chain, offset, has_min, sign, halves);                              \
            break;                                                                                           \
        case 3:                                                                                              \
            core32(tile, q, acc, n32, 3, chain, offset, has_min, sign, halves);                              \
            break;                                                                                           \
        default:                                                                                             \
            core32(tile, q, acc, n32, 4, chain, offset, has_min, sign, halves);                              \
            break;                                                                                           \
        }                                                                                                    \
    }
#define CORE_32_WHOLE(name, span_bytes, offset, has_min, chain, sign)                                        \
    CORE_32(name, span_bytes, offset, has_min, chain, sign, 0)
RQ_TYPES_32(CORE_32_WHOLE)
CORE_32(nvfp4, 144, 0, 0, 1, 1, 1)

/* All columns of the call: the accumulators of a tile's 16 rows live in scratch between spans. */
static void gemm(const rq_mm_call *c, pack_fn pack, core_fn core)
{
    rq_tile *tile = (rq_tile *)c->scratch; /* two */
    float *acc = (float *)(c->scratch + (2 * sizeof(rq_tile) + 63) / 64 * 64);
    const rq_type_info *info = rq_type_get(c->type);
    size_t span_bytes = (size_t)(RQ_SPAN / info->block_elems) * info->block_bytes;
    int64_t spans = (c->n_in + RQ_SPAN - 1) / RQ_SPAN;
    for (int64_t r = c->r0; r < c->r1; r += 16) {
        const uint8_t *rows[2][8];
        rq_rows8(c, r, rows[0]);
        rq_rows8(c, r + 8, rows[1]);
        size_t ahead = rq_ahead(c, r, 16);
        memset(acc, 0, (size_t)c->n_cols * 16 * sizeof(float));
        for (int64_t s = 0; s < spans; s++) {
            int n32 = rq_groups_left(c->n_in - s * RQ_SPAN);
            for (int i = 0; i < 16; i++)
                rq_prefetch(rows[i / 8][i % 8] + (size_t)s * span_bytes, ahead, (int)span_bytes);
            pack(rows[0], (size_t)s, n32, &tile[0]);
            pack(rows[1], (size_t)s, n32, &tile[1]);
            for (int t = 0; t < c->n_cols; t += 4) {
                int cols = c->n_cols - t < 4 ? c->n_cols - t : 4;
                const void *a[4];
                float *y[4];
                for (int i = 0; i < cols; i++) {
                    a[i] = (const rq_act256 *)c->acts[t + i] + s;
                    y[i] = acc + 16 * (t + i);
                }
                core(tile, a, y, n32, cols);
            }
        }
        for (int t = 0; t < c->n_cols; t++) {
            int64_t n = c->r1 - r < 16 ? c->r1 - r : 16;
            memcpy(c->y[t] + r, acc + 16 * t, (size_t)n * sizeof(float));
        }
    }
}

_Static_assert(2 * sizeof(rq_tile) + 64 + RQ_MM_COLS * 16 * sizeof(float) <= RQ_MM_SCRATCH, "scratch");
_Static_assert(RQ_FT_COLS *RQ_FT_ROWS * 32 + RQ_FT_ROWS * RQ_FT_K * 4 <= RQ_MM_SCRATCH, "scratch");

typedef struct kernel {
    void (*one)(const rq_mm_call *c);
    pack_fn pack;
    core_fn core;
} kernel;

static const kernel quantized[RQ_TYPE_LIMIT] = {
    [RQ_TYPE_Q2_K] = {rq_gemv_q2_k, rq_pack_q2_k, core_g16c8_min},
    [RQ_TYPE_Q3_K] = {rq_gemv_q3_k, rq_pack_q3_k, core_g16c8_off},
    [RQ_TYPE_Q4_K] = {rq_gemv_q4_k, rq_pack_q4_k, core_g32c8_min},
    [RQ_TYPE_Q5_K] = {rq_gemv_q5_k, rq_pack_q5_k, core_g32c4_min},
    [RQ_TYPE_Q6_K] = {rq_gemv_q6_k, rq_pack_q6_k, core_g16c2_off},
    [RQ_TYPE_IQ2_XXS] = {rq_gemv_iq2_xxs, rq_pack_iq2_xxs, core_g32c1_off},
    [RQ_TYPE_IQ2_XS] = {rq_gemv_iq2_xs, rq_pack_iq2_xs, core_g16c1_off},
    [RQ_TYPE_IQ2_S] = {rq_gemv_iq2_s, rq_pack_iq2_s, core_g16c1_off},
    [RQ_TYPE_IQ3_XXS] = {rq_gemv_iq3_xxs, rq_pack_iq3_xxs, core_g32c1_off},
    [RQ_TYPE_IQ3_S] = {rq_gemv_iq3_s, rq_pack_iq3_s, core_g32c4_off},
    [RQ_TYPE_IQ1_S] = {rq_gemv_iq1_s, rq_pack_iq1_s, core_g32c4_off},
    [RQ_TYPE_IQ1_M] = {rq_gemv_iq1_m, rq_pack_iq1_m, core_g16c4_off},
    [RQ_TYPE_IQ4_XS] = {rq_gemv_iq4_xs, rq_pack_iq4_xs, core_g32_sign},
    [RQ_TYPE_TQ1_0] = {rq_gemv_tq1_0, rq_pack_tq1_0, core_g32c8_off},
    [RQ_TYPE_TQ2_0] = {rq_gemv_tq2_0, rq_pack_tq2_0, core_g32c8_off},
    [RQ_TYPE_Q4_0] = {rq_gemv_q4_0, rq_pack_q4_0, core_q4_0},
    [RQ_TYPE_Q4_1] = {rq_gemv_q4_1, rq_pack_q4_1, core_q4_1},
    [RQ_TYPE_Q5_0] = {rq_gemv_q5_0, rq_pack_q5_0, core_q5_0},
    [RQ_TYPE_Q5_1] = {rq_gemv_q5_1, rq_pack_q5_1, core_q5_1},
    [RQ_TYPE_Q8_0] = {rq_gemv_q8_0, rq_pack_q8_0, core_q8_0},
    [RQ_TYPE_IQ4_NL] = {rq_gemv_iq4_nl, rq_pack_iq4_nl, core_iq4_nl},
    [RQ_TYPE_MXFP4] = {rq_gemv_mxfp4, rq_pack_mxfp4, core_mxfp4},
    [RQ_TYPE_NVFP4] = {rq_gemv_nvfp4, rq_pack_nvfp4, core_nvfp4},
    [RQ_TYPE_Q1_0] = {rq_gemv_q1_0, rq_pack_q1_0, core_q1_0},
    [RQ_TYPE_Q2_0] = {rq_gemv_q2_0, rq_pack_q2_0, core_q2_0},
};

static void matmul(const rq_mm_call *c)
{
    switch (c->type) {
    case RQ_TYPE_F32:
        rq_matmul_f32(c);
        return;
    case RQ_TYPE_F16:
        rq_matmul_f16(c);
        return;
    case RQ_TYPE_BF16:
        rq_matmul_bf16(c);
        return;
    case RQ_TYPE_F64:
        rq_matmul_f64(c);
        return;
    default:
        break;
    }
    const kernel *k = &quantized[c->type];
    if (c->n_cols == 1)
        k->one(c);
    else
        gemm(c, k->pack, k->core);
}

const rq_matmul_kernels rq_kernels_avx2 = {rq_quantize_q256, rq_quantize_q32, matmul};
