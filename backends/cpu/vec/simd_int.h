/* simd_int.h - the register of simd.h as integers: what attention over codes is made of.
 *
 *   vi   VL lanes of 32 bits; where a lane holds a "pair" it is two int16, the first in the low half
 *
 * Everything here is exact, so every instruction set makes the same integers. */
#ifndef RQ_CPU_SIMD_INT_H
#define RQ_CPU_SIMD_INT_H

#include "backends/cpu/vec/simd.h"

#include <math.h>
#include <stdbool.h>

/* 2^(i / 16) */
static const float rq_sixteenths[16] = {1.0f,          1.0442737824f, 1.0905077327f, 1.1387886348f,
                                        1.1892071150f, 1.2418578121f, 1.2968395547f, 1.3542555469f,
                                        1.4142135624f, 1.4768261459f, 1.5422108254f, 1.6104903319f,
                                        1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f};

#if defined(RQ_SIMD_AVX2) || defined(RQ_SIMD_AVX512)

/* Eight floats times a factor, rounded to nearest even, as four pairs: in the order in which the nibbles of a
 * word come apart, 0 4, 1 5, 2 6, 3 7, or as the bytes of two words do, 0 2, 1 3, 4 6, 5 7. The results fit
 * into int16. */
RQ_INLINE void pack_eight(const float *x, float factor, bool bytes, int16_t *to)
{
    __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(factor)));
    __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    const __m128i order = bytes ? _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)
                                : _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_shuffle_epi8(packed, order));
}

#endif

#if defined(RQ_SIMD_AVX2)

#define RQ_CODE_DIRECT 1 /* for a few rows levels stay in registers; 0: that is not compiled */
enum { CODE_ROWS = 4 };  /* rows of the micro-kernel: sums of 4 rows by 2 registers, and room for products */
typedef __m256i vi;
/* Keeps a value in one register: gcc 12 takes two for a sum in unrolled loops, spills them, and loads an operand
 * again for every product it is in. */
#define RQ_PIN(a) __asm__("" : "+x"(a))

RQ_INLINE vi vi_load(const void *p)
{
    return _mm256_loadu_si256(p);
}
RQ_INLINE void vi_store(void *p, vi a)
{
    _mm256_storeu_si256(p, a);
}
RQ_INLINE vi vi_set(uint32_t a)
{
    return _mm256_set1_epi32((int)a);
}
RQ_INLINE vi vi_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
RQ_INLINE vi vi_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
#define vi_shl(a, n) _mm256_slli_epi32((a), (n))
#define vi_shr(a, n) _mm256_srli_epi32((a), (n))
/* The larger, as signed numbers. */
RQ_INLINE vi vi_max(vi a, vi b)
{
    return _mm256_max_epi32(a, b);
}
/* A table of sixteen bytes, and its bytes [index], each byte of `index` below 16. */
RQ_INLINE vi vi_table(const int8_t *t)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)t));
}
RQ_INLINE vi vi_lookup(vi table, vi index)
{
    return _mm256_shuffle_epi8(table, index);
}
/* Byte by byte: b where bit 7 of `which` is set, else a. */
RQ_INLINE vi vi_pick(vi a, vi b, vi which)
{
    return _mm256_blendv_epi8(a, b, which);
}
/* Bytes 0 and 2 (1 and 3) of each lane as a pair. */
RQ_INLINE vi vi_even(vi a)
{
    return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8);
}
RQ_INLINE vi vi_odd(vi a)
{
    return _mm256_srai_epi16(a, 8);
}
/* sum + a.first * b.first + a.second * b.second */
RQ_INLINE vi vi_dot(vi sum, vi a, vi b)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    RQ_PIN(sum);
    return sum;
}
RQ_INLINE vf vi_float(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
/* The scales of VL codes: 2^((e - 128) / 16), 0 for e = 0. */
RQ_INLINE vf vf_code_scales(const uint8_t *e)
{
    __m256i n = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)e));
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(rq_sixteenths), n);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(rq_sixteenths + 8), n);
    __m256i m =
        _mm256_castps_si256(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(n, 28))));
    __m256i power = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_srli_epi32(n, 4), _mm256_set1_epi32(8)), 23);
    __m256i zero = _mm256_cmpeq_epi32(n, _mm256_setzero_si256());
    return _mm256_castsi256_ps(_mm256_andnot_si256(zero, _mm256_add_epi32(m, power)));
}

#elif defined(RQ_SIMD_AVX512)

#define RQ_CODE_DIRECT 1
enum { CODE_ROWS = 12 };
typedef __m512i vi;
#define RQ_PIN(a)      ((void)0)

RQ_INLINE vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
RQ_INLINE void vi_store(void *p, vi a)
{
    _mm512_storeu_si512(p, a);
}
RQ_INLINE vi vi_set(uint32_t a)
{
    return _mm512_set1_epi32((int)a);
}
RQ_INLINE vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
RQ_INLINE vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
#define vi_shl(a, n)   _mm512_slli_epi32((a), (n))
#define vi_shr(a, n)   _mm512_srli_epi32((a), (n))
RQ_INLINE vi vi_max(vi a, vi b)
{
    return _mm512_max_epi32(a, b);
}
RQ_INLINE vi vi_table(const int8_t *t)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)t));
}
RQ_INLINE vi vi_lookup(vi table, vi index)
{
    return _mm512_shuffle_epi8(table, index);
}
RQ_INLINE vi vi_pick(vi a, vi b, vi which)
{
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(which), a, b);
}
RQ_INLINE vi vi_even(vi a)
{
    return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8);
}
RQ_INLINE vi vi_odd(vi a)
{
    return _mm512_srai_epi16(a, 8);
}
RQ_INLINE vi vi_dot(vi sum, vi a, vi b)
{
    return _mm512_dpwssd_epi32(sum, a, b);
}
RQ_INLINE vf vi_float(vi a)
{
#ifdef RQ_SIMDE
    int32_t n[16];
    float f[16];
    _mm512_storeu_si512(n, a);
    for (int i = 0; i < 16; i++) f[i] = (float)n[i];
    return _mm512_loadu_ps(f);
#else
    return _mm512_cvtepi32_ps(a);
#endif
}
RQ_INLINE vf vf_code_scales(const uint8_t *e)
{
#ifdef RQ_SIMDE
    uint32_t wide[16];
    for (int i = 0; i < 16; i++) wide[i] = e[i];
    __m512i n = _mm512_loadu_si512(wide);
#else
    __m512i n = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)e));
#endif
    __m512i m = _mm512_castps_si512(_mm512_permutexvar_ps(n, _mm512_loadu_ps(rq_sixteenths)));
    __m512i power = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_srli_epi32(n, 4), _mm512_set1_epi32(8)), 23);
    return _mm512_mask_mov_ps(_mm512_setzero_ps(), _mm512_test_epi32_mask(n, n),
                              _mm512_castsi512_ps(_mm512_add_epi32(m, power)));
}

#elif defined(RQ_SIMD_NEON)

#define RQ_CODE_DIRECT 1
enum { CODE_ROWS = 4 };
typedef uint32x4_t vi;
#define RQ_PIN(a)      ((void)0)

RQ_INLINE vi vi_load(const void *p)
{
    return vreinterpretq_u32_u8(vld1q_u8(p));
}
RQ_INLINE void vi_store(void *p, vi a)
{
    vst1q_u8(p, vreinterpretq_u8_u32(a));
}
RQ_INLINE vi vi_set(uint32_t a)
{
    return vdupq_n_u32(a);
}
RQ_INLINE vi vi_and(vi a, vi b)
{
    return vandq_u32(a, b);
}
RQ_INLINE vi vi_or(vi a, vi b)
{
    return vorrq_u32(a, b);
}
#define vi_shl(a, n)   vshlq_n_u32((a), (n))
#define vi_shr(a, n)   vshrq_n_u32((a), (n))
RQ_INLINE vi vi_max(vi a, vi b)
{
    return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
RQ_INLINE vi vi_table(const int8_t *t)
{
    return vreinterpretq_u32_s8(vld1q_s8(t));
}
RQ_INLINE vi vi_lookup(vi table, vi index)
{
    return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(table), vreinterpretq_u8_u32(index)));
}
RQ_INLINE vi vi_pick(vi a, vi b, vi which)
{
    uint8x16_t mask = vreinterpretq_u8_s8(vshrq_n_s8(vreinterpretq_s8_u32(which), 7));
    return vreinterpretq_u32_u8(vbslq_u8(mask, vreinterpretq_u8_u32(b), vreinterpretq_u8_u32(a)));
}
RQ_INLINE vi vi_even(vi a)
{
    return vreinterpretq_u32_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_u32(a), 8), 8));
}
RQ_INLINE vi vi_odd(vi a)
{
    return vreinterpretq_u32_s16(vshrq_n_s16(vreinterpretq_s16_u32(a), 8));
}
RQ_INLINE vi vi_dot(vi sum, vi a, vi b)
{
    int16x8_t x = vreinterpretq_s16_u32(a), y = vreinterpretq_s16_u32(b);
    int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(low, high)));
}
RQ_INLINE vf vi_float(vi a)
{
    return vcvtq_f32_s32(vreinterpretq_s32_u32(a));
}
RQ_INLINE void pack_eight(const float *x, float factor, bool bytes, int16_t *to)
{
    int32x4_t low = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x), vdupq_n_f32(factor)));
    int32x4_t high = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + 4), vdupq_n_f32(factor)));
    static const uint8_t orders[2][16] = {{0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15},
                                          {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15}};
    uint8x16_t n = vreinterpretq_u8_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
    vst1q_s16(to, vreinterpretq_s16_u8(vqtbl1q_u8(n, vld1q_u8(orders[bytes]))));
}

#else

#define RQ_CODE_DIRECT 0
enum { CODE_ROWS = 2 };
typedef uint32_t vi __attribute__((vector_size(16)));
#define RQ_PIN(a)      ((void)0)
typedef union rq_lanes {
    vi all;
    uint8_t u8[16];
    int8_t s8[16];
    int16_t s16[8];
    int32_t s32[4];
} rq_lanes;

RQ_INLINE vi vi_load(const void *p)
{
    vi a;
    memcpy(&a, p, sizeof a);
    return a;
}
RQ_INLINE void vi_store(void *p, vi a)
{
    memcpy(p, &a, sizeof a);
}
RQ_INLINE vi vi_set(uint32_t a)
{
    return (vi){a, a, a, a};
}
RQ_INLINE vi vi_and(vi a, vi b)
{
    return a & b;
}
RQ_INLINE vi vi_or(vi a, vi b)
{
    return a | b;
}
#define vi_shl(a, n)   ((a) << (n))
#define vi_shr(a, n)   ((a) >> (n))
RQ_INLINE vi vi_max(vi a, vi b)
{
    rq_lanes x = {a}, y = {b};
    for (int i = 0; i < 4; i++) x.s32[i] = x.s32[i] > y.s32[i] ? x.s32[i] : y.s32[i];
    return x.all;
}
RQ_INLINE vi vi_table(const int8_t *t)
{
    return vi_load(t);
}
RQ_INLINE vi vi_lookup(vi table, vi index)
{
    rq_lanes t = {table}, x = {index};
    for (int i = 0; i < 16; i++) x.u8[i] = t.u8[x.u8[i]];
    return x.all;
}
RQ_INLINE vi vi_pick(vi a, vi b, vi which)
{
    rq_lanes x = {a}, y = {b}, w = {which};
    for (int i = 0; i < 16; i++) x.u8[i] = w.u8[i] & 0x80 ? y.u8[i] : x.u8[i];
    return x.all;
}
RQ_INLINE vi vi_even(vi a)
{
    rq_lanes x = {a};
    for (int i = 0; i < 8; i++) x.s16[i] = x.s8[2 * i];
    return x.all;
}
RQ_INLINE vi vi_odd(vi a)
{
    rq_lanes x = {a};
    for (int i = 0; i < 8; i++) x.s16[i] = x.s8[2 * i + 1];
    return x.all;
}
RQ_INLINE vi vi_dot(vi sum, vi a, vi b)
{
    rq_lanes x = {a}, y = {b}, s = {sum};
    for (int i = 0; i < 4; i++) { /* wraps as the instructions do: columns of padding may hold anything */
        uint32_t even = (uint32_t)(x.s16[2 * i] * y.s16[2 * i]);
        uint32_t odd = (uint32_t)(x.s16[2 * i + 1] * y.s16[2 * i + 1]);
        s.s32[i] = (int32_t)((uint32_t)s.s32[i] + even + odd);
    }
    return s.all;
}
RQ_INLINE vf vi_float(vi a)
{
    rq_lanes x = {a};
    return (vf){(float)x.s32[0], (float)x.s32[1], (float)x.s32[2], (float)x.s32[3]};
}
RQ_INLINE void pack_eight(const float *x, float factor, bool bytes, int16_t *to)
{
    static const uint8_t orders[2][8] = {{0, 4, 1, 5, 2, 6, 3, 7}, {0, 2, 1, 3, 4, 6, 5, 7}};
    for (int i = 0; i < 8; i++) to[i] = (int16_t)lrintf(x[orders[bytes][i]] * factor);
}

#endif

#if !defined(RQ_SIMD_AVX2) && !defined(RQ_SIMD_AVX512)
RQ_INLINE vf vf_code_scales(const uint8_t *e)
{
    float scales[VL];
    for (int i = 0; i < VL; i++) {
        uint32_t bits;
        memcpy(&bits, &rq_sixteenths[e[i] % 16], sizeof bits);
        bits += ((e[i] / 16u) - 8u) << 23;
        if (e[i] == 0) bits = 0;
        memcpy(&scales[i], &bits, sizeof bits);
    }
    return vf_load(scales);
}
#endif

#endif
