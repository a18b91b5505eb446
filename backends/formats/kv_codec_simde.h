/* kv_codec_simde.h - AVX-512 over SIMDe, for tests on machines without it: what version 0.7.4 lacks or gets
 * wrong. */
#ifndef RQ_KV_CODEC_SIMDE_H
#define RQ_KV_CODEC_SIMDE_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/x86/avx512.h>
#pragma GCC diagnostic pop

#include <math.h>

typedef int32_t emulated_lanes __attribute__((vector_size(64)));

static inline __m512i emulated_cvtps_epi32(__m512 v)
{
    float f[16];
    int32_t q[16];
    simde_mm512_storeu_ps(f, v);
    for (int i = 0; i < 16; i++) q[i] = (int32_t)lrintf(f[i]);
    return simde_mm512_loadu_si512(q);
}

static inline __m128i emulated_cvtepi32_epi8(__m512i v)
{
    uint8_t bytes[16];
    emulated_lanes lanes = (emulated_lanes)v;
    for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)lanes[i];
    return _mm_loadu_si128((const __m128i *)bytes);
}

#undef _mm512_madd_epi16 /* its alias wants four arguments */
#define _mm512_madd_epi16       simde_mm512_madd_epi16
#define _mm512_srai_epi32(a, n) ((__m512i)((emulated_lanes)(a) >> (n)))
#define _mm512_cvtps_epi32      emulated_cvtps_epi32
#define _mm512_cvtepi32_epi8    emulated_cvtepi32_epi8

#endif
