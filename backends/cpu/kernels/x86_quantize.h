/* x86_quantize.h - activation rows with AVX2; the same bits as scalar.c. */
#ifndef RQ_X86_QUANTIZE_H
#define RQ_X86_QUANTIZE_H

#include "backends/cpu/kernels/x86_common.h"

#include <math.h>

/* Largest magnitude of n floats (a multiple of 32) as bits: integer order is magnitude order, and everything
 * that is not finite is at least 0x7f800000. */
RQ_INLINE uint32_t rq_top_bits(const float *x, int n)
{
    __m256i mask = _mm256_set1_epi32(0x7fffffff), top = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 8) top = _mm256_max_epi32(top, _mm256_and_si256(rq_loadu(x + i), mask));
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(t);
}

/* The scale, and 127 / largest; false when all codes are zero (and the scale 0 or NaN). */
RQ_INLINE bool rq_act_scale(uint32_t top_bits, float *d, float *inverse)
{
    float top;
    memcpy(&top, &top_bits, sizeof top);
    if (top_bits >= 0x7f800000u || top < 0x1p-120f) {
        *d = top_bits >= 0x7f800000u ? NAN : 0.0f;
        *inverse = 0.0f;
        return false;
    }
    *d = top / 127.0f;
    *inverse = 127.0f / top;
    return true;
}

RQ_INLINE __m256i rq_codes32(const float *x, __m256 inverse)
{
    __m256i v0 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
    __m256i v1 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
    __m256i v2 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), inverse));
    __m256i v3 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), inverse));
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(v0, v1), _mm256_packs_epi32(v2, v3));
    return _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Sums of the bytes of each half. */
RQ_INLINE void rq_half_sums(__m256i codes, int *low, int *high)
{
    __m256i s =
        _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)), _mm256_setzero_si256());
    __m128i l = _mm256_castsi256_si128(s), h = _mm256_extracti128_si256(s, 1);
    *low = _mm_cvtsi128_si32(_mm_add_epi32(l, _mm_unpackhi_epi64(l, l))) - 16 * 128;
    *high = _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_unpackhi_epi64(h, h))) - 16 * 128;
}

static void rq_quantize_q256(const float *x, void *dst, int64_t n_in)
{
    rq_act256 *a = dst;
    for (; n_in > 0; n_in -= 256, x += 256, a++) {
        float inverse;
        if (!rq_act_scale(rq_top_bits(x, 256), &a->d, &inverse)) {
            float d = a->d;
            memset(a, 0, sizeof *a);
            a->d = d;
            continue;
        }
        memset(a->pad, 0, sizeof a->pad);
        for (int g = 0; g < 8; g++) {
            int low, high;
            __m256i q = rq_codes32(x + 32 * g, _mm256_set1_ps(inverse));
            _mm256_storeu_si256((__m256i *)(a->q + 32 * g), q);
            rq_half_sums(q, &low, &high);
            a->bsx[g] = (int16_t)low;
            a->bsx[8 + g] = (int16_t)high;
            a->bs32[g] = (int16_t)(low + high);
        }
    }
}

static void rq_quantize_q32(const float *x, void *dst, int64_t n_in)
{
    rq_act32 *a = dst;
    for (; n_in > 0; n_in -= 256, x += 256, a++) {
        int n32 = n_in < 256 ? (int)(n_in / 32) : 8;
        if (n32 < 8) memset(a, 0, sizeof *a);
        for (int j = 0; j < n32; j++) {
            float inverse;
            int low = 0, high = 0;
            __m256i q = _mm256_setzero_si256();
            if (rq_act_scale(rq_top_bits(x + 32 * j, 32), &a->d[j], &inverse)) {
                q = rq_codes32(x + 32 * j, _mm256_set1_ps(inverse));
                rq_half_sums(q, &low, &high);
            }
            _mm256_storeu_si256((__m256i *)(a->q + 32 * j), q);
            a->bs[j] = low + high;
        }
    }
}

#endif
