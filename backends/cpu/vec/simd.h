/* simd.h - one register of floats under one set of names, for the instruction set that RQ_SIMD_<NAME> chooses.
 *
 *   vf        a register of VL floats, VL in {4, 8, 16}
 *   ROWS, COLS  registers of the matrix micro-kernel: ROWS rows by COLS registers (COLS * VL = RQ_PANEL)
 *
 * vf_fma rounds once where the machine has a fused multiply-add; the plain version rounds twice. Whatever it
 * does it does the same in every kernel of the instruction set. */
#ifndef RQ_CPU_SIMD_H
#define RQ_CPU_SIMD_H

#include "backends/formats/half.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RQ_INLINE static inline __attribute__((always_inline))

#if defined(RQ_SIMD_AVX2)

#include <immintrin.h>

enum { VL = 8, ROWS = 6 };
typedef __m256 vf;

RQ_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
RQ_INLINE void vf_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}
RQ_INLINE vf vf_set(float a)
{
    return _mm256_set1_ps(a);
}
RQ_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
RQ_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
RQ_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
RQ_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
RQ_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* The larger (smaller); b where either is NaN. */
RQ_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
RQ_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
RQ_INLINE vf vf_zero_where_less(vf a, vf x, vf limit)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), a);
}
/* 2^n, n an integer in [-126, 127] kept in the low bits of t = n + 1.5 * 2^23. */
RQ_INLINE vf vf_pow2(vf t)
{
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f800000)));
}
RQ_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
RQ_INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
RQ_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m256i n = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 16));
}
#define vf_prefetch(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

#elif defined(RQ_SIMD_AVX512)

#ifdef RQ_SIMDE /* emulation, so that a machine without the instructions can test the kernels */
#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

enum { VL = 16, ROWS = 12 };
typedef __m512 vf;

RQ_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
RQ_INLINE void vf_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}
RQ_INLINE vf vf_set(float a)
{
    return _mm512_set1_ps(a);
}
RQ_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
RQ_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
RQ_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
RQ_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
RQ_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
RQ_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
RQ_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
RQ_INLINE vf vf_zero_where_less(vf a, vf x, vf limit)
{
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), _mm512_setzero_ps());
}
RQ_INLINE vf vf_pow2(vf t)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f800000)));
}
#ifdef RQ_SIMDE
RQ_INLINE vf vf_load_f16(const uint16_t *p)
{
    float f[16];
    for (int i = 0; i < 16; i++) f[i] = rq_half_to_f32(p[i]);
    return _mm512_loadu_ps(f);
}
RQ_INLINE void vf_store_f16(uint16_t *p, vf a)
{
    float f[16];
    _mm512_storeu_ps(f, a);
    for (int i = 0; i < 16; i++) p[i] = rq_half_from_f32(f[i]);
}
RQ_INLINE vf vf_load_bf16(const uint16_t *p)
{
    uint32_t bits[16];
    for (int i = 0; i < 16; i++) bits[i] = (uint32_t)p[i] << 16;
    return _mm512_castsi512_ps(_mm512_loadu_si512(bits));
}
#else
RQ_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
RQ_INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
RQ_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m512i n = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 16));
}
#endif
#define vf_prefetch(p) __builtin_prefetch((p), 0, 2)

#elif defined(RQ_SIMD_NEON)

#include <arm_neon.h>

enum { VL = 4, ROWS = 6 };
typedef float32x4_t vf;

RQ_INLINE vf vf_load(const float *p)
{
    return vld1q_f32(p);
}
RQ_INLINE void vf_store(float *p, vf a)
{
    vst1q_f32(p, a);
}
RQ_INLINE vf vf_set(float a)
{
    return vdupq_n_f32(a);
}
RQ_INLINE vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}
RQ_INLINE vf vf_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}
RQ_INLINE vf vf_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}
RQ_INLINE vf vf_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}
RQ_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
RQ_INLINE vf vf_max(vf a, vf b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
RQ_INLINE vf vf_min(vf a, vf b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
RQ_INLINE vf vf_zero_where_less(vf a, vf x, vf limit)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltq_f32(x, limit)));
}
RQ_INLINE vf vf_pow2(vf t)
{
    int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(t), 23);
    return vreinterpretq_f32_s32(vaddq_s32(n, vdupq_n_s32(0x3f800000)));
}
RQ_INLINE vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
RQ_INLINE void vf_store_f16(uint16_t *p, vf a)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
RQ_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
#define vf_prefetch(p) __builtin_prefetch((p), 0, 2)

#else /* plain C: four floats that the compiler may keep in one register */

enum { VL = 4, ROWS = 2 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vmask __attribute__((vector_size(16)));

RQ_INLINE vf vf_load(const float *p)
{
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
RQ_INLINE void vf_store(float *p, vf a)
{
    memcpy(p, &a, sizeof a);
}
RQ_INLINE vf vf_set(float a)
{
    return (vf){a, a, a, a};
}
RQ_INLINE vf vf_add(vf a, vf b)
{
    return a + b;
}
RQ_INLINE vf vf_sub(vf a, vf b)
{
    return a - b;
}
RQ_INLINE vf vf_mul(vf a, vf b)
{
    return a * b;
}
RQ_INLINE vf vf_div(vf a, vf b)
{
    return a / b;
}
RQ_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
RQ_INLINE vf vf_select(vmask m, vf a, vf b)
{
    return (vf)(((vmask)a & m) | ((vmask)b & ~m));
}
RQ_INLINE vf vf_max(vf a, vf b)
{
    return vf_select((vmask)(a > b), a, b);
}
RQ_INLINE vf vf_min(vf a, vf b)
{
    return vf_select((vmask)(a < b), a, b);
}
RQ_INLINE vf vf_zero_where_less(vf a, vf x, vf limit)
{
    return (vf)((vmask)a & ~(vmask)(x < limit));
}
RQ_INLINE vf vf_pow2(vf t)
{
    typedef uint32_t vu __attribute__((vector_size(16)));
    return (vf)(((vu)t << 23) + 0x3f800000u);
}
RQ_INLINE vf vf_load_f16(const uint16_t *p)
{
    vf a;
    for (int i = 0; i < 4; i++) a[i] = rq_half_to_f32(p[i]);
    return a;
}
RQ_INLINE void vf_store_f16(uint16_t *p, vf a)
{
    for (int i = 0; i < 4; i++) p[i] = rq_half_from_f32(a[i]);
}
RQ_INLINE vf vf_load_bf16(const uint16_t *p)
{
    typedef uint32_t vu __attribute__((vector_size(16)));
    return (vf)((vu){p[0], p[1], p[2], p[3]} << 16);
}
#define vf_prefetch(p) __builtin_prefetch((p), 0, 2)

#endif

enum { COLS = 16 / VL }; /* registers across a panel */

/* bf16: the upper half of an f32. */
RQ_INLINE float rq_bf16_one(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Sum of the lanes, halves first: a fixed order. */
RQ_INLINE float vf_sum(vf a)
{
    float f[VL];
    vf_store(f, a);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) f[i] += f[i + n];
    return f[0];
}

RQ_INLINE float vf_largest(vf a)
{
    float f[VL];
    vf_store(f, a);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) f[i] = f[i] > f[i + n] ? f[i] : f[i + n];
    return f[0];
}

/* Loads and stores of the first n < VL lanes; the others are zero. */
RQ_INLINE vf vf_load_part(const float *p, size_t n)
{
    float f[VL] = {0};
    memcpy(f, p, n * sizeof *f);
    return vf_load(f);
}
RQ_INLINE void vf_store_part(float *p, vf a, size_t n)
{
    float f[VL];
    vf_store(f, a);
    memcpy(p, f, n * sizeof *f);
}

#endif
