/* x86_common.h - small pieces of the AVX2 kernels. Included by the AVX2 sources and, compiled with wider flags,
 * by the AVX-512 ones; over SIMDe's emulation when RQ_SIMDE is defined (tests on machines without AVX-512). */
#ifndef RQ_X86_COMMON_H
#define RQ_X86_COMMON_H

#ifdef RQ_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#else
#include <immintrin.h>
#endif

#include "backends/cpu/kernels/kernel.h"
#include "backends/formats/tables.h"

/* In line and unrolled, the instances take seconds to compile; emulated or under sanitizers it would be many
 * minutes, so those builds (RQ_COMPACT, set by CMake) leave the choice to the compiler. */
#ifdef RQ_COMPACT
#define RQ_INLINE static inline
#define RQ_UNROLL
#else
#define RQ_INLINE static inline __attribute__((always_inline))
#define RQ_UNROLL _Pragma("GCC unroll 8")
#endif

RQ_INLINE __m256i rq_loadu(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

RQ_INLINE __m128i rq_loadu128(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

RQ_INLINE __m128i rq_loadu64(const void *p)
{
    return _mm_cvtsi64_si128((long long)rq_ld64(p));
}

/* Both halves the same. */
RQ_INLINE __m256i rq_twice(__m128i x)
{
    return _mm256_broadcastsi128_si256(x);
}

RQ_INLINE __m256i rq_pair(__m128i low, __m128i high)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

RQ_INLINE float rq_f16_at(const uint8_t *p)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(rq_ld16(p))));
}

/* Asks for the lines of [p + ahead, p + ahead + bytes). The rows that follow the ones being read are asked for as
 * these are read, line by line: eight rows side by side are too many short streams for the hardware to guess.
 * Measured on Zen 3, Q6_K from memory, one thread: 6 GB/s without, 17 GB/s with. */
RQ_INLINE void rq_prefetch(const uint8_t *p, size_t ahead, int bytes)
{
    for (int i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)((uintptr_t)p + ahead + (uintptr_t)i), _MM_HINT_T0);
}

/* How far that is, for n rows at a time from r on; 0 for the last ones of the call. */
RQ_INLINE size_t rq_ahead(const rq_mm_call *c, int64_t r, int n)
{
    return r + n < c->r1 ? (size_t)n * c->row_bytes : 0;
}

/* Lane i of the result: the sum of the eight lanes of v[i]. */
RQ_INLINE __m256i rq_sum8(const __m256i v[8])
{
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* out[i] lane j = in[j] lane i, 32-bit lanes. */
RQ_INLINE void rq_transpose8(const __m256i in[8], __m256i out[8])
{
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i + 0] = _mm256_unpacklo_epi64(a[4 * i + 0], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i + 0], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        out[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

/* Pointers to eight rows from r on; rows past the range repeat its last one and are dropped on output. */
RQ_INLINE void rq_rows8(const rq_mm_call *c, int64_t r, const uint8_t *rows[8])
{
    for (int i = 0; i < 8; i++) {
        int64_t row = r + i < c->r1 ? r + i : c->r1 - 1;
        rows[i] = c->w + (size_t)row * c->row_bytes;
    }
}

RQ_INLINE void rq_store_rows(float *y, int64_t n, __m256 v)
{
    float lanes[8];
    if (n >= 8) {
        _mm256_storeu_ps(y, v);
        return;
    }
    _mm256_storeu_ps(lanes, v);
    memcpy(y, lanes, (size_t)n * sizeof(float));
}

#endif
