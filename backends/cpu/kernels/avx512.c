/* avx512.c - matrix kernels for AVX-512 with VNNI.
 *
 * Few columns: the AVX2 code (memory sets the pace). More: a 512-bit register holds four codes of 16 rows; VNNI adds
 * the four products to a 32-bit sum, so nothing saturates and signed codes enter as code + 128. Eight columns at a
 * time, their activations broadcast by the instruction itself. Over SIMDe's emulation in tests (RQ_SIMDE). */
#define RQ_VNNI
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/x86_quantize.h"
#include "backends/cpu/kernels/x86_tile.h"

#define RQ_CORE_COLS 8

/* A register of 16 rows from the two tiles of eight. */
RQ_INLINE __m512i both(const __m256i *low, const __m256i *high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(*low), *high, 1);
}

RQ_INLINE __m512 both_ps(const __m256 *low, const __m256 *high)
{
    return _mm512_castsi512_ps(
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_castps_si256(*low)), _mm256_castps_si256(*high), 1));
}

/* Two operations that this SIMDe has no 512-bit form of. */
RQ_INLINE __m512i madd_16(__m512i a, __m512i b)
{
#ifdef RQ_SIMDE
    __m256i low = _mm256_madd_epi16(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b));
    __m256i high = _mm256_madd_epi16(_mm512_extracti64x4_epi64(a, 1), _mm512_extracti64x4_epi64(b, 1));
    return both(&low, &high);
#else
    return _mm512_madd_epi16(a, b);
#endif
}

RQ_INLINE __m512 to_float(__m512i v)
{
#ifdef RQ_SIMDE
    __m256 low = _mm256_cvtepi32_ps(_mm512_castsi512_si256(v));
    __m256 high = _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(v, 1));
    return both_ps(&low, &high);
#else
    return _mm512_cvtepi32_ps(v);
#endif
}

RQ_INLINE __m512i four_bytes(const void *p)
{
    return _mm512_set1_epi32((int)rq_ld32(p));
}

/* Adds the products of 4 * steps elements to sum[t]; flip: codes are signed and enter as code + 128. */
RQ_INLINE void add_group(const __m256i *w0, const __m256i *w1, const int steps, const int8_t *const *q,
                         __m512i *sum, const int cols, const int flip)
{
    RQ_UNROLL
    for (int k = 0; k < steps; k++) {
        __m512i w = both(w0 + k, w1 + k);
        if (flip) w = _mm512_xor_si512(w, _mm512_set1_epi32((int)0x80808080));
        RQ_UNROLL
        for (int t = 0; t < cols; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], w, four_bytes(q[t] + 4 * k));
    }
}

/* Sum over groups of mn * (sum of activation codes). */
RQ_INLINE __m512i min_sum(const rq_tile tile[2], const rq_act256 *a, const int group)
{
    const int16_t *bs = group == 32 ? a->bs32 : a->bsx;
    __m512i s = _mm512_setzero_si512();
    for (int p = 0; p < (group == 32 ? 4 : 8); p++)
        s = _mm512_add_epi32(s,
                             madd_16(both(&tile[0].t256.mn[p], &tile[1].t256.mn[p]), four_bytes(bs + 2 * p)));
    return s;
}

/* One span of 16 rows x cols columns; acc[t]: the 16 floats of column t so far. */
RQ_INLINE void rq_core256(const rq_tile tile[2], const rq_act256 *const *a, float *const *acc, int n32,
                          const int cols, const int group, const int chain, const int offset,
                          const int has_min, const int sign)
{
    __m512i sum[8];
    for (int t = 0; t < cols; t++) sum[t] = offset ? min_sum(tile, a[t], group) : _mm512_setzero_si512();
    for (int g = 0; g < 256 / group; g++) {
        const int8_t *q[8];
        __m512i part[8], scale = both(&tile[0].t256.sc[g], &tile[1].t256.sc[g]);
        scale = madd_16(scale, _mm512_set1_epi32(1)); /* both words of a lane hold it */
        for (int t = 0; t < cols; t++) {
            q[t] = a[t]->q + g * group;
            part[t] = _mm512_setzero_si512();
        }
        add_group(tile[0].t256.q + g * group / 4, tile[1].t256.q + g * group / 4, group / 4, q, part, cols,
                  0);
        for (int t = 0; t < cols; t++) sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(part[t], scale));
    }
    __m512 d = both_ps(&tile[0].t256.d, &tile[1].t256.d), dm = both_ps(&tile[0].t256.dm, &tile[1].t256.dm);
    for (int t = 0; t < cols; t++) {
        __m512 da = _mm512_set1_ps(a[t]->d), y = _mm512_loadu_ps(acc[t]);
        y = _mm512_fmadd_ps(to_float(sum[t]), _mm512_mul_ps(d, da), y);
        if (has_min) y = _mm512_fnmadd_ps(to_float(min_sum(tile, a[t], group)), _mm512_mul_ps(dm, da), y);
        _mm512_storeu_ps(acc[t], y);
    }
}

/* The same for the types with a float scale per 32 elements; halves: one per 16 (NVFP4). */
RQ_INLINE void rq_core32(const rq_tile tile[2], const rq_act32 *const *a, float *const *acc, int n32,
                         const int cols, const int chain, const int offset, const int has_min, const int sign,
                         const int halves)
{
    const int off = sign ? 128 : offset, per = halves ? 2 : 1;
    for (int j = 0; j < n32 * per; j++) {
        const int steps = 8 / per;
        const int8_t *q[8];
        __m512i sum[8];
        for (int t = 0; t < cols; t++) {
            q[t] = a[t]->q + 4 * steps * j;
            sum[t] = _mm512_setzero_si512();
            if (halves) /* there are no sums of 16: -128 times their four parts */
                for (int k = 0; k < steps; k++)
                    sum[t] = _mm512_dpbusd_epi32(sum[t], _mm512_set1_epi32((int)0x80808080),
                                                 four_bytes(q[t] + 4 * k));
            sum[t] = halves ? _mm512_sub_epi32(_mm512_setzero_si512(), sum[t])
                            : _mm512_set1_epi32(-off * a[t]->bs[j / per]);
        }
        add_group(tile[0].t32.q + steps * j, tile[1].t32.q + steps * j, steps, q, sum, cols, sign);
        int at = halves ? j : 2 * j;
        __m512 d = both_ps(&tile[0].t32.d[at], &tile[1].t32.d[at]);
        for (int t = 0; t < cols; t++) {
            __m512 da = _mm512_set1_ps(a[t]->d[j / per]), y = _mm512_loadu_ps(acc[t]);
            y = _mm512_fmadd_ps(to_float(sum[t]), _mm512_mul_ps(d, da), y);
            if (has_min) {
                __m512 dm = both_ps(&tile[0].t32.dm[j], &tile[1].t32.dm[j]);
                y = _mm512_fmadd_ps(_mm512_set1_ps((float)a[t]->bs[j]), _mm512_mul_ps(dm, da), y);
            }
            _mm512_storeu_ps(acc[t], y);
        }
    }
}

#include "backends/cpu/kernels/x86_gemm.h"

#ifdef RQ_SIMDE
const rq_matmul_kernels rq_kernels_avx512_emulated = {rq_quantize_q256, rq_quantize_q32, rq_matmul_any};
#else
const rq_matmul_kernels rq_kernels_avx512 = {rq_quantize_q256, rq_quantize_q32, rq_matmul_any};
#endif
