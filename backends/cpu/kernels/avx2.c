/* avx2.c - matrix kernels for AVX2 + FMA + F16C.
 *
 * Few columns: x86_gemv.h. More: tiles of 16 rows x 256 elements (about 6 KB, in the first-level cache) against
 * four columns at a time; per 4 elements two registers of codes meet four broadcast activations. Sums of
 * products stay in 16 bits as long as they fit (x86_types.h: chain), then meet the scales in 32 bits. */
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/x86_quantize.h"
#include "backends/cpu/kernels/x86_tile.h"

#define RQ_CORE_COLS 4

RQ_INLINE __m256i four_bytes(const void *p)
{
    return _mm256_set1_epi32((int)rq_ld32(p));
}

/* Products of 4 * steps elements, at most `chain` steps between widenings; each widening multiplies by `scale`
 * and adds into sum. w0, w1: the codes of 16 rows; q[t]: the activation codes of column t. */
RQ_INLINE void add_group(const __m256i *w0, const __m256i *w1, const int steps, const int8_t *const q[4],
                         const __m256i scale[2], __m256i sum[2][4], const int cols, const int chain,
                         const int sign)
{
    __m256i s[2][4];
    RQ_UNROLL
    for (int k = 0; k < steps; k++) {
        __m256i c0 = w0[k], c1 = w1[k];
        __m256i m0 = sign ? _mm256_abs_epi8(c0) : c0, m1 = sign ? _mm256_abs_epi8(c1) : c1;
        RQ_UNROLL
        for (int t = 0; t < cols; t++) {
            __m256i x = four_bytes(q[t] + 4 * k);
            __m256i p0 = _mm256_maddubs_epi16(m0, sign ? _mm256_sign_epi8(x, c0) : x);
            __m256i p1 = _mm256_maddubs_epi16(m1, sign ? _mm256_sign_epi8(x, c1) : x);
            s[0][t] = k % chain ? _mm256_add_epi16(s[0][t], p0) : p0;
            s[1][t] = k % chain ? _mm256_add_epi16(s[1][t], p1) : p1;
            RQ_KEEP(s[0][t]);
            RQ_KEEP(s[1][t]);
            if (k % chain == chain - 1 || k == steps - 1) {
                sum[0][t] = _mm256_add_epi32(sum[0][t], _mm256_madd_epi16(s[0][t], scale[0]));
                sum[1][t] = _mm256_add_epi32(sum[1][t], _mm256_madd_epi16(s[1][t], scale[1]));
                RQ_KEEP(sum[0][t]);
                RQ_KEEP(sum[1][t]);
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
RQ_INLINE void rq_core256(const rq_tile tile[2], const rq_act256 *const *a, float *const *acc, int n32,
                          const int cols, const int group, const int chain, const int offset,
                          const int has_min, const int sign)
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
RQ_INLINE void rq_core32(const rq_tile tile[2], const rq_act32 *const *a, float *const *acc, int n32,
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

#include "backends/cpu/kernels/x86_gemm.h"

const rq_matmul_kernels rq_kernels_avx2 = {rq_quantize_q256, rq_quantize_q32, rq_matmul_any};
