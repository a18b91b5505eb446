/* kv_codec_avx512.c - the encoder of codec rows, sixteen tokens per register (AVX-512 F and BW). */
#ifdef RQ_SIMDE
#include "backends/formats/kv_codec_simde.h"
#else
#include <immintrin.h>
#endif

#include "backends/formats/kv_codec_impl.h"

/* Halves of a lane as in kv_codec_avx2.c. */
enum { LANES = 16 };
typedef __m512i vi;
typedef __m512i vlevel;

#define UPPER_HALVES       0xaaaaaaaau
#define vi_set(a)          _mm512_set1_epi32(a)
#define vi_store(p, a)     _mm512_storeu_si512((void *)(p), a)
#define vi_add(a, b)       _mm512_add_epi32(a, b)
#define vi_or(a, b)        _mm512_or_si512(a, b)
#define vi_min(a, b)       _mm512_min_epi32(a, b)
#define vi_shift_left4(a)  _mm512_slli_epi32(a, 4)
#define vi_shift_right4(a) _mm512_srai_epi32(a, 4)
#define vi_low4(a)         _mm512_and_si512(a, _mm512_set1_epi32(15))
#define vi_cost(y, l)      _mm512_madd_epi16(y, l)
#define vi_pick(from, a, b)                                                                                  \
    _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(from, _mm512_setzero_si512()), a, b)
#define vi_from(a, b)         _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(a, b), _mm512_set1_epi32(16))
#define vi_trace(word, state) _mm512_srlv_epi32(word, _mm512_slli_epi32(state, 3))
#define vi_state(w)           _mm512_and_si512(_mm512_srli_epi32(w, 4), _mm512_set1_epi32(1))

static inline vi vi_clean(const float *p, uint64_t *n_bad)
{
    __m512i v = _mm512_loadu_si512((const void *)p);
    __m512i magnitude = _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff));
    __mmask16 good = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(0x7f800000), magnitude);
    *n_bad += 16u - (unsigned)__builtin_popcount(good);
    return _mm512_maskz_mov_epi32(good, v);
}

static inline vi vi_max_magnitude(vi m, vi v)
{
    return _mm512_max_epi32(m, _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff)));
}

static inline vi vi_sample(vi v, const float *factor)
{
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(v), _mm512_loadu_ps(factor)));
    return _mm512_mask_blend_epi16(UPPER_HALVES, q, _mm512_set1_epi32(1 << 16));
}

static inline vi vi_add_square(vi sum, vi x)
{
    __m512i q = _mm512_mask_blend_epi16(UPPER_HALVES, x, _mm512_setzero_si512());
    return _mm512_add_epi32(sum, _mm512_madd_epi16(q, q));
}

static inline vi vi_multipliers(const int32_t *p)
{
    return _mm512_or_si512(_mm512_loadu_si512((const void *)p), _mm512_set1_epi32(2048 << 16));
}

static inline vi vi_scaled(vi x, vi m)
{
    return _mm512_mask_blend_epi16(UPPER_HALVES, _mm512_srai_epi32(_mm512_madd_epi16(x, m), 12),
                                   _mm512_set1_epi32(4 << 16));
}

static inline vlevel vlevel_of(int l)
{
    return _mm512_set1_epi32((int)((uint32_t)(2 * l * l) << 16 | (uint16_t)(-2 * l)));
}

static inline void vi_store_codes(uint8_t *p, vi w)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_and_si512(w, _mm512_set1_epi32(15))));
}

#ifndef RQ_KV_ENCODE
#define RQ_KV_ENCODE rq_kv_encode_avx512
#endif
#include "backends/formats/kv_codec_simd.h"
