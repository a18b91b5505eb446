/* kv_codec_avx2.c - the encoder of codec rows, eight tokens per register. */
#include <immintrin.h>

#include "backends/formats/kv_codec_impl.h"

/* A sample or scaled value sits in the lower half of a lane; the upper half holds the constant that makes one
 * multiply-add of 16-bit pairs out of x m + 2048 and of -2 l y + 8 l^2. */
enum { LANES = 8 };
typedef __m256i vi;
typedef __m256i vlevel;

#define vi_set(a)             _mm256_set1_epi32(a)
#define vi_store(p, a)        _mm256_storeu_si256((__m256i *)(p), a)
#define vi_add(a, b)          _mm256_add_epi32(a, b)
#define vi_or(a, b)           _mm256_or_si256(a, b)
#define vi_min(a, b)          _mm256_min_epi32(a, b)
#define vi_shift_left4(a)     _mm256_slli_epi32(a, 4)
#define vi_shift_right4(a)    _mm256_srai_epi32(a, 4)
#define vi_low4(a)            _mm256_and_si256(a, _mm256_set1_epi32(15))
#define vi_cost(y, l)         _mm256_madd_epi16(y, l)
#define vi_pick(from, a, b)   _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi32(from, _mm256_setzero_si256()))
#define vi_from(a, b)         _mm256_and_si256(_mm256_cmpgt_epi32(a, b), _mm256_set1_epi32(16))
#define vi_trace(word, state) _mm256_srlv_epi32(word, _mm256_slli_epi32(state, 3))
#define vi_state(w)           _mm256_and_si256(_mm256_srli_epi32(w, 4), _mm256_set1_epi32(1))

static inline vi vi_clean(const float *p, uint64_t *n_bad)
{
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    __m256i magnitude = _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff));
    __m256i good = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), magnitude);
    *n_bad += 8u - (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(good)));
    return _mm256_and_si256(v, good);
}

static inline vi vi_max_magnitude(vi m, vi v)
{
    return _mm256_max_epi32(m, _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff)));
}

static inline vi vi_sample(vi v, const float *factor)
{
    __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_loadu_ps(factor)));
    return _mm256_blend_epi16(q, _mm256_set1_epi32(1 << 16), 0xaa);
}

static inline vi vi_add_square(vi sum, vi x)
{
    __m256i q = _mm256_blend_epi16(x, _mm256_setzero_si256(), 0xaa);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(q, q));
}

static inline vi vi_multipliers(const int32_t *p)
{
    return _mm256_or_si256(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi32(2048 << 16));
}

static inline vi vi_scaled(vi x, vi m)
{
    return _mm256_blend_epi16(_mm256_srai_epi32(_mm256_madd_epi16(x, m), 12), _mm256_set1_epi32(4 << 16),
                              0xaa);
}

static inline vlevel vlevel_of(int l)
{
    return _mm256_set1_epi32((int)((uint32_t)(2 * l * l) << 16 | (uint16_t)(-2 * l)));
}

static inline void vi_store_codes(uint8_t *p, vi w)
{
    __m256i packed = _mm256_packus_epi32(_mm256_and_si256(w, _mm256_set1_epi32(15)), _mm256_setzero_si256());
    packed = _mm256_packus_epi16(packed, packed); /* four bytes in the low lane of each half */
    uint32_t low = (uint32_t)_mm256_extract_epi32(packed, 0),
             high = (uint32_t)_mm256_extract_epi32(packed, 4);
    uint64_t both = low | (uint64_t)high << 32;
    __builtin_memcpy(p, &both, 8);
}

#define RQ_KV_ENCODE rq_kv_encode_avx2
#include "backends/formats/kv_codec_simd.h"
