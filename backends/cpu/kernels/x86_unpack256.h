/* x86_unpack256.h - blocks of 256 elements to registers: codes, 16-bit scales, float scales.
 *
 * q[j] holds the codes of elements 32 j .. 32 j + 31: unsigned ones for the types that leave the offset to the
 * caller (see the lists in x86_types.h), signed ones for the rest. sc and mn hold one 16-bit word per 16
 * elements, even groups in the low half, odd groups in the high half; types with a scale per 32 repeat it.
 * Layouts: backends/formats/dequantize.c; the same integers as in decode.h. */
#ifndef RQ_X86_UNPACK256_H
#define RQ_X86_UNPACK256_H

#include "backends/cpu/kernels/x86_common.h"

typedef struct rq_u256 {
    __m256i q[8], sc, mn;
    float d, dm;
} rq_u256;

/* 16 bytes in element order to 16 words, even ones low. */
RQ_INLINE __m128i rq_even_odd(__m128i bytes)
{
    return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

/* Two bits of every byte, at a constant position. */
#define RQ_BITS2(v, at) _mm256_and_si256(_mm256_srli_epi16(v, at), _mm256_set1_epi8(3))

RQ_INLINE void rq_u_q2_k(const uint8_t *b, rq_u256 *u)
{
    __m128i s = rq_even_odd(rq_loadu128(b)), low = _mm_set1_epi8(15);
    u->sc = _mm256_cvtepu8_epi16(_mm_and_si128(s, low));
    u->mn = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(s, 4), low));
    u->d = rq_f16_at(b + 80);
    u->dm = rq_f16_at(b + 82);
    for (int n = 0; n < 2; n++) {
        __m256i v = rq_loadu(b + 16 + 32 * n);
        u->q[4 * n + 0] = RQ_BITS2(v, 0);
        u->q[4 * n + 1] = RQ_BITS2(v, 2);
        u->q[4 * n + 2] = RQ_BITS2(v, 4);
        u->q[4 * n + 3] = RQ_BITS2(v, 6);
    }
}

/* Bit `at` of every byte of h, moved to bit 2. */
#define RQ_BIT_TO_2(h, at)                                                                                   \
    _mm256_and_si256((at) >= 2 ? _mm256_srli_epi16(h, (at) >= 2 ? (at)-2 : 0)                                \
                               : _mm256_slli_epi16(h, (at) < 2 ? 2 - (at) : 0),                              \
                     _mm256_set1_epi8(4))

/* Codes 0..7, offset 4. */
RQ_INLINE void rq_u_q3_k(const uint8_t *b, rq_u256 *u)
{
    uint32_t s0 = rq_ld32(b + 96), s1 = rq_ld32(b + 100), s2 = rq_ld32(b + 104);
    uint32_t low = 0x0f0f0f0f, two = 0x03030303;
    __m128i s = _mm_setr_epi32((int)((s0 & low) | (s2 & two) << 4), (int)((s1 & low) | (s2 >> 2 & two) << 4),
                               (int)((s0 >> 4 & low) | (s2 >> 4 & two) << 4),
                               (int)((s1 >> 4 & low) | (s2 >> 6 & two) << 4));
    u->sc = _mm256_cvtepi8_epi16(rq_even_odd(_mm_sub_epi8(s, _mm_set1_epi8(32))));
    u->d = rq_f16_at(b + 108);
    __m256i h = rq_loadu(b), v = rq_loadu(b + 32);
    u->q[0] = _mm256_or_si256(RQ_BITS2(v, 0), RQ_BIT_TO_2(h, 0));
    u->q[1] = _mm256_or_si256(RQ_BITS2(v, 2), RQ_BIT_TO_2(h, 1));
    u->q[2] = _mm256_or_si256(RQ_BITS2(v, 4), RQ_BIT_TO_2(h, 2));
    u->q[3] = _mm256_or_si256(RQ_BITS2(v, 6), RQ_BIT_TO_2(h, 3));
    v = rq_loadu(b + 64);
    u->q[4] = _mm256_or_si256(RQ_BITS2(v, 0), RQ_BIT_TO_2(h, 4));
    u->q[5] = _mm256_or_si256(RQ_BITS2(v, 2), RQ_BIT_TO_2(h, 5));
    u->q[6] = _mm256_or_si256(RQ_BITS2(v, 4), RQ_BIT_TO_2(h, 6));
    u->q[7] = _mm256_or_si256(RQ_BITS2(v, 6), RQ_BIT_TO_2(h, 7));
}

/* Six-bit scales and minima of Q4_K and Q5_K: twelve bytes, four at a time. */
RQ_INLINE void rq_u_k45_scales(const uint8_t *b, rq_u256 *u)
{
    uint32_t s0 = rq_ld32(b + 4), s1 = rq_ld32(b + 8), s2 = rq_ld32(b + 12);
    uint32_t low = 0x0f0f0f0f, six = 0x3f3f3f3f, top = 0x30303030;
    uint64_t sc = (s0 & six) | (uint64_t)((s2 & low) | (s0 >> 2 & top)) << 32;
    uint64_t mn = (s1 & six) | (uint64_t)((s2 >> 4 & low) | (s1 >> 2 & top)) << 32;
    u->sc = rq_twice(_mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)sc)));
    u->mn = rq_twice(_mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)mn)));
    u->d = rq_f16_at(b);
    u->dm = rq_f16_at(b + 2);
}

RQ_INLINE void rq_u_q4_k(const uint8_t *b, rq_u256 *u)
{
    __m256i low = _mm256_set1_epi8(15);
    rq_u_k45_scales(b, u);
    for (int n = 0; n < 4; n++) {
        __m256i v = rq_loadu(b + 16 + 32 * n);
        u->q[2 * n] = _mm256_and_si256(v, low);
        u->q[2 * n + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    }
}

/* Bit `at` of every byte of h, moved to bit 4. */
#define RQ_BIT_TO_4(h, at)                                                                                   \
    _mm256_and_si256((at) >= 4 ? _mm256_srli_epi16(h, (at) >= 4 ? (at)-4 : 0)                                \
                               : _mm256_slli_epi16(h, (at) < 4 ? 4 - (at) : 0),                              \
                     _mm256_set1_epi8(16))

RQ_INLINE void rq_u_q5_k(const uint8_t *b, rq_u256 *u)
{
    __m256i low = _mm256_set1_epi8(15), h = rq_loadu(b + 16), v;
    rq_u_k45_scales(b, u);
#define RQ_Q5_PAIR(n)                                                                                        \
    v = rq_loadu(b + 48 + 32 * (n));                                                                         \
    u->q[2 * (n)] = _mm256_or_si256(_mm256_and_si256(v, low), RQ_BIT_TO_4(h, 2 * (n)));                      \
    u->q[2 * (n) + 1] =                                                                                      \
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, 4), low), RQ_BIT_TO_4(h, 2 * (n) + 1))
    RQ_Q5_PAIR(0);
    RQ_Q5_PAIR(1);
    RQ_Q5_PAIR(2);
    RQ_Q5_PAIR(3);
#undef RQ_Q5_PAIR
}

/* Codes 0..63, offset 32. */
RQ_INLINE void rq_u_q6_k(const uint8_t *b, rq_u256 *u)
{
    __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(0x30);
    u->sc = _mm256_cvtepi8_epi16(rq_even_odd(rq_loadu128(b + 192)));
    u->d = rq_f16_at(b + 208);
    for (int n = 0; n < 2; n++) {
        __m256i l0 = rq_loadu(b + 64 * n), l1 = rq_loadu(b + 64 * n + 32), h = rq_loadu(b + 128 + 32 * n);
        __m256i *q = u->q + 4 * n;
        q[0] = _mm256_or_si256(_mm256_and_si256(l0, low), _mm256_and_si256(_mm256_slli_epi16(h, 4), high));
        q[1] = _mm256_or_si256(_mm256_and_si256(l1, low), _mm256_and_si256(_mm256_slli_epi16(h, 2), high));
        q[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(l0, 4), low), _mm256_and_si256(h, high));
        q[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(l1, 4), low),
                               _mm256_and_si256(_mm256_srli_epi16(h, 2), high));
    }
}

/* ---- grids ----------------------------------------------------------------------------------------------
 *
 * Looking a grid entry up is a scalar load; everything around it - indices, sign bits - is computed for the whole
 * block in registers first and read back from a small buffer. */

typedef struct rq_indices {
    uint16_t at[32];
} rq_indices;

RQ_INLINE void rq_put_indices(rq_indices *x, __m256i low, __m256i high)
{
    _mm256_storeu_si256((__m256i *)x->at, low);
    _mm256_storeu_si256((__m256i *)(x->at + 16), high);
}

/* Four 8-byte entries. */
RQ_INLINE __m256i rq_four(const uint64_t *grid, const uint16_t *at)
{
    return _mm256_set_epi64x((long long)grid[at[3]], (long long)grid[at[2]], (long long)grid[at[1]],
                             (long long)grid[at[0]]);
}

/* v with the sign of every byte whose mask byte is 0xff changed. */
RQ_INLINE __m256i rq_flip(__m256i v, __m256i mask)
{
    return _mm256_sub_epi8(_mm256_xor_si256(v, mask), mask);
}

/* Byte masks from the 32 sign bits at p. */
RQ_INLINE __m256i rq_sign_mask(const uint8_t *p)
{
    __m256i each = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                    3, 3, 3, 3, 3, 3, 3);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)rq_ld32(p)), each), bit);
    return _mm256_cmpeq_epi8(v, bit);
}

/* 32 sign codes of seven bits to sign bytes: bit 7 is the parity of the other seven. */
RQ_INLINE void rq_put_signs(uint8_t out[32], __m256i codes)
{
    __m256i odd =
        rq_twice(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    __m256i low = _mm256_set1_epi8(15);
    __m256i p = _mm256_shuffle_epi8(odd, _mm256_and_si256(codes, low));
    __m256i q = _mm256_shuffle_epi8(odd, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));
    _mm256_storeu_si256((__m256i *)out, _mm256_xor_si256(codes, _mm256_xor_si256(p, q)));
}

/* Four sign codes per 32-bit word, seven bits apart, to bytes. */
RQ_INLINE __m256i rq_split_codes(__m256i a)
{
    __m256i v0 = _mm256_and_si256(a, _mm256_set1_epi32(0x7f));
    __m256i v1 = _mm256_and_si256(_mm256_slli_epi32(a, 1), _mm256_set1_epi32(0x7f00));
    __m256i v2 = _mm256_and_si256(_mm256_slli_epi32(a, 2), _mm256_set1_epi32(0x7f0000));
    __m256i v3 = _mm256_and_si256(_mm256_slli_epi32(a, 3), _mm256_set1_epi32(0x7f000000));
    return _mm256_or_si256(_mm256_or_si256(v0, v1), _mm256_or_si256(v2, v3));
}

/* 2 s + 1 for eight words s, one per 32 elements. */
RQ_INLINE __m256i rq_odd_scales(__m128i s)
{
    return rq_twice(_mm_add_epi16(_mm_add_epi16(s, s), _mm_set1_epi16(1)));
}

/* 2 s + 1 for sixteen nibbles s, one per 16 elements, low nibble first. */
RQ_INLINE __m256i rq_odd_nibbles(const uint8_t *p)
{
    __m128i v = rq_loadu64(p), low = _mm_set1_epi8(15);
    v = _mm_unpacklo_epi64(_mm_and_si128(v, low), _mm_and_si128(_mm_srli_epi16(v, 4), low));
    __m256i s = _mm256_cvtepu8_epi16(v);
    return _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
}

/* The top nibbles of eight 32-bit words. */
RQ_INLINE __m128i rq_top_nibbles(__m256i a)
{
    a = _mm256_srli_epi32(a, 28);
    return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}

RQ_INLINE void rq_u_iq2_xxs(const uint8_t *b, rq_u256 *u)
{
    __m256 g0 = _mm256_castsi256_ps(rq_loadu(b + 2)), g1 = _mm256_castsi256_ps(rq_loadu(b + 34));
    __m256i a = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(g0, g1, 0xdd)), 0xd8);
    uint8_t signs[32];
    rq_put_signs(signs, rq_split_codes(a));
    u->sc = rq_odd_scales(rq_top_nibbles(a));
    u->d = rq_f16_at(b) * 0.125f;
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        __m256i v = _mm256_set_epi64x((long long)rq_iq2xxs_grid[p[3]], (long long)rq_iq2xxs_grid[p[2]],
                                      (long long)rq_iq2xxs_grid[p[1]], (long long)rq_iq2xxs_grid[p[0]]);
        u->q[g] = rq_flip(v, rq_sign_mask(signs + 4 * g));
    }
}

RQ_INLINE void rq_u_iq2_xs(const uint8_t *b, rq_u256 *u)
{
    __m256i v0 = rq_loadu(b + 2), v1 = rq_loadu(b + 34), nine = _mm256_set1_epi16(511);
    rq_indices x;
    uint8_t signs[32];
    rq_put_indices(&x, _mm256_and_si256(v0, nine), _mm256_and_si256(v1, nine));
    __m256i codes = _mm256_packus_epi16(_mm256_srli_epi16(v0, 9), _mm256_srli_epi16(v1, 9));
    rq_put_signs(signs, _mm256_permute4x64_epi64(codes, 0xd8));
    u->sc = rq_odd_nibbles(b + 66);
    u->d = rq_f16_at(b) * 0.125f;
    for (int g = 0; g < 8; g++)
        u->q[g] = rq_flip(rq_four(rq_iq2xs_grid, x.at + 4 * g), rq_sign_mask(signs + 4 * g));
}

/* Byte j of the 8 at p in words 4 j .. 4 j + 3 of 32 words. */
RQ_INLINE void rq_spread_bytes(const uint8_t *p, __m256i *low, __m256i *high)
{
    __m256i v = _mm256_set1_epi64x((long long)rq_ld64(p));
    *low = _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 2,
                                                   -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1));
    *high = _mm256_shuffle_epi8(v, _mm256_setr_epi8(4, -1, 4, -1, 4, -1, 4, -1, 5, -1, 5, -1, 5, -1, 5, -1, 6,
                                                    -1, 6, -1, 6, -1, 6, -1, 7, -1, 7, -1, 7, -1, 7, -1));
}

RQ_INLINE void rq_u_iq2_s(const uint8_t *b, rq_u256 *u)
{
    __m256i h0, h1, top = _mm256_set1_epi16(0x300);
    /* The two bits of entry l at bit 2 l of its group's byte, moved to bits 8 and 9. */
    __m256i to8 = _mm256_set1_epi64x((long long)(4ull << 48 | 16ull << 32 | 64ull << 16 | 256ull));
    rq_indices x;
    rq_spread_bytes(b + 66, &h0, &h1);
    h0 = _mm256_and_si256(_mm256_mullo_epi16(h0, to8), top);
    h1 = _mm256_and_si256(_mm256_mullo_epi16(h1, to8), top);
    rq_put_indices(&x, _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b + 2)), h0),
                   _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b + 18)), h1));
    u->sc = rq_odd_nibbles(b + 74);
    u->d = rq_f16_at(b) * 0.125f;
    for (int g = 0; g < 8; g++)
        u->q[g] = rq_flip(rq_four(rq_iq2s_grid, x.at + 4 * g), rq_sign_mask(b + 34 + 4 * g));
}

RQ_INLINE void rq_u_iq3_xxs(const uint8_t *b, rq_u256 *u)
{
    __m256i a = rq_loadu(b + 66);
    const uint32_t *grid = rq_iq3xxs_grid;
    uint8_t signs[32];
    rq_put_signs(signs, rq_split_codes(a));
    u->sc = rq_odd_scales(rq_top_nibbles(a));
    u->d = rq_f16_at(b) * 0.25f;
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        __m256i v = _mm256_setr_epi32((int)grid[p[0]], (int)grid[p[1]], (int)grid[p[2]], (int)grid[p[3]],
                                      (int)grid[p[4]], (int)grid[p[5]], (int)grid[p[6]], (int)grid[p[7]]);
        u->q[g] = rq_flip(v, rq_sign_mask(signs + 4 * g));
    }
}

RQ_INLINE void rq_u_iq3_s(const uint8_t *b, rq_u256 *u)
{
    uint32_t s = rq_ld32(b + 106);
    __m128i low = _mm_cvtsi32_si128((int)(s & 0x0f0f0f0f)),
            high = _mm_cvtsi32_si128((int)(s >> 4 & 0x0f0f0f0f));
    __m128i bit = _mm_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2), top = _mm_set1_epi16(256);
    const uint32_t *grid = rq_iq3s_grid;
    u->sc = rq_odd_scales(_mm_cvtepu8_epi16(_mm_unpacklo_epi8(low, high)));
    u->d = rq_f16_at(b);
    for (int g = 0; g < 8; g++) {
        /* Bit t of the group's byte is bit 8 of index t. */
        __m128i h = _mm_and_si128(_mm_mullo_epi16(_mm_set1_epi16(b[66 + g]), bit), top);
        uint16_t p[8];
        _mm_storeu_si128((__m128i *)p, _mm_or_si128(_mm_cvtepu8_epi16(rq_loadu64(b + 2 + 8 * g)), h));
        __m256i v = _mm256_setr_epi32((int)grid[p[0]], (int)grid[p[1]], (int)grid[p[2]], (int)grid[p[3]],
                                      (int)grid[p[4]], (int)grid[p[5]], (int)grid[p[6]], (int)grid[p[7]]);
        u->q[g] = rq_flip(v, rq_sign_mask(b + 74 + 4 * g));
    }
}

/* 8 * grid + delta, delta one byte of +-1 each. */
RQ_INLINE __m256i rq_iq1_codes(__m256i grid, __m256i delta)
{
    __m256i two = _mm256_add_epi8(grid, grid), four = _mm256_add_epi8(two, two);
    return _mm256_add_epi8(_mm256_add_epi8(four, four), delta);
}

RQ_INLINE void rq_u_iq1_s(const uint8_t *b, rq_u256 *u)
{
    __m128i h8 = rq_loadu128(b + 34);
    u->sc = rq_odd_scales(_mm_and_si128(_mm_srli_epi16(h8, 12), _mm_set1_epi16(7)));
    u->d = rq_f16_at(b) * 0.125f;
    /* Three index bits of entry l at bit 3 l of its group's word, moved to bits 8..10; the fourth moves down. */
    __m256i to8 = _mm256_set1_epi64x((long long)(0ull << 48 | 4ull << 32 | 32ull << 16 | 256ull));
    __m256i top = _mm256_set1_epi16(0x700), w = rq_twice(h8), h0, h1;
    h0 = _mm256_shuffle_epi8(w, _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5,
                                                 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7));
    h1 = _mm256_shuffle_epi8(w, _mm256_setr_epi8(8, 9, 8, 9, 8, 9, 8, 9, 10, 11, 10, 11, 10, 11, 10, 11, 12,
                                                 13, 12, 13, 12, 13, 12, 13, 14, 15, 14, 15, 14, 15, 14, 15));
    h0 = _mm256_blend_epi16(_mm256_mullo_epi16(h0, to8), _mm256_srli_epi16(h0, 1), 0x88);
    h1 = _mm256_blend_epi16(_mm256_mullo_epi16(h1, to8), _mm256_srli_epi16(h1, 1), 0x88);
    rq_indices x;
    rq_put_indices(&x, _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b + 2)), _mm256_and_si256(h0, top)),
                   _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b + 18)), _mm256_and_si256(h1, top)));
    for (int g = 0; g < 8; g++) {
        __m256i delta = _mm256_set1_epi8(b[35 + 2 * g] & 0x80 ? -1 : 1);
        u->q[g] = rq_iq1_codes(rq_four(rq_iq1s_grid, x.at + 4 * g), delta);
    }
}

RQ_INLINE void rq_u_iq1_m(const uint8_t *b, rq_u256 *u)
{
    uint64_t c = rq_ld64(b + 48);
    uint16_t bits = (uint16_t)((c >> 12 & 0xf) | (c >> 24 & 0xf0) | (c >> 36 & 0xf00) | (c >> 48 & 0xf000));
    u->d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))) * 0.125f;
    /* Three-bit fields of word k / 4 at bit 3 (k % 4): moved to the top by a product, then down. */
    __m128i w = _mm_shuffle_epi8(_mm_cvtsi64_si128((long long)c),
                                 _mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7));
    __m128i even = _mm_mullo_epi16(w, _mm_set1_epi32(1 << 13 | 1 << 7 << 16));
    __m128i odd = _mm_mullo_epi16(w, _mm_set1_epi32(1 << 10 | 1 << 4 << 16));
    __m256i s = _mm256_srli_epi16(rq_pair(even, odd), 13);
    u->sc = _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
    /* A nibble per entry: three index bits, moved to bits 8..10, and the sign of delta, to bit 11. */
    __m128i h = rq_loadu128(b + 32);
    __m256i to8 = _mm256_set1_epi32(256 | 16 << 16), top = _mm256_set1_epi16(0x700),
            sign = _mm256_set1_epi16(0x800);
    __m256i h0 = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(h, h)),
            h1 = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(h, h));
    h0 = _mm256_mullo_epi16(h0, to8);
    h1 = _mm256_mullo_epi16(h1, to8);
    rq_indices x, minus;
    rq_put_indices(&x, _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b)), _mm256_and_si256(h0, top)),
                   _mm256_or_si256(_mm256_cvtepu8_epi16(rq_loadu128(b + 16)), _mm256_and_si256(h1, top)));
    rq_put_indices(&minus, _mm256_cmpeq_epi16(_mm256_and_si256(h0, sign), sign),
                   _mm256_cmpeq_epi16(_mm256_and_si256(h1, sign), sign));
    __m256i each = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 6,
                                    6, 6, 6, 6, 6, 6, 6);
    for (int g = 0; g < 8; g++) {
        __m256i m = _mm256_set1_epi64x((long long)rq_ld64((const uint8_t *)(minus.at + 4 * g)));
        __m256i delta = _mm256_or_si256(_mm256_shuffle_epi8(m, each), _mm256_set1_epi8(1));
        u->q[g] = rq_iq1_codes(rq_four(rq_iq1s_grid, x.at + 4 * g), delta);
    }
}

/* ---- level tables --------------------------------------------------------------------------------------- */

RQ_INLINE void rq_u_iq4_xs(const uint8_t *b, rq_u256 *u)
{
    __m256i levels = rq_twice(rq_loadu128(rq_iq4nl_values));
    __m128i low = _mm_set1_epi8(15);
    uint32_t s = rq_ld32(b + 4);
    __m128i l = _mm_unpacklo_epi8(_mm_cvtsi32_si128((int)(s & 0x0f0f0f0f)),
                                  _mm_cvtsi32_si128((int)(s >> 4 & 0x0f0f0f0f)));
    /* Two-bit fields at bit 2 g of one word: to the top by a product, then to bits 4 and 5. */
    __m128i h = _mm_mullo_epi16(_mm_set1_epi16((short)rq_ld16(b + 2)),
                                _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1));
    h = _mm_slli_epi16(_mm_srli_epi16(h, 14), 4);
    u->sc = rq_twice(_mm_sub_epi16(_mm_or_si128(_mm_cvtepu8_epi16(l), h), _mm_set1_epi16(32)));
    u->d = rq_f16_at(b);
    for (int g = 0; g < 8; g++) {
        __m128i v = rq_loadu128(b + 8 + 16 * g);
        __m256i codes = rq_pair(_mm_and_si128(v, low), _mm_and_si128(_mm_srli_epi16(v, 4), low));
        u->q[g] = _mm256_shuffle_epi8(levels, codes);
    }
}

/* Base-3 digit n of every byte: ((x * 3^n) mod 256) * 3 >> 8, the product split so that 16 bits hold it. */
RQ_INLINE __m256i rq_tq1_digit(__m256i x, int power)
{
    __m256i y = x;
    for (int p = 1; p < power; p *= 3) y = _mm256_add_epi8(y, _mm256_add_epi8(y, y));
    /* 3 y >> 8 for a byte y is (y >= 86) + (y >= 171). */
    __m256i a = _mm256_cmpeq_epi8(_mm256_max_epu8(y, _mm256_set1_epi8(86)), y);
    __m256i b = _mm256_cmpeq_epi8(_mm256_max_epu8(y, _mm256_set1_epi8((char)171)), y);
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(a, b));
}

/* Codes 0..2, offset 1. */
RQ_INLINE void rq_u_tq1_0(const uint8_t *b, rq_u256 *u)
{
    static const int powers[5] = {1, 3, 9, 27, 81};
    __m256i first = rq_loadu(b), second = rq_twice(rq_loadu128(b + 32));
    u->sc = _mm256_set1_epi16(1);
    u->d = rq_f16_at(b + 52);
    for (int n = 0; n < 5; n++) u->q[n] = rq_tq1_digit(first, powers[n]);
    u->q[5] = _mm256_permute2x128_si256(rq_tq1_digit(second, 1), rq_tq1_digit(second, 3), 0x20);
    u->q[6] = _mm256_permute2x128_si256(rq_tq1_digit(second, 9), rq_tq1_digit(second, 27), 0x20);
    /* The last 16 elements: four bytes, digit n of all four, then the next digit. */
    __m256i last = _mm256_set1_epi32((int)rq_ld32(b + 48));
    __m256i d01 = _mm256_blend_epi32(rq_tq1_digit(last, 1), rq_tq1_digit(last, 3), 0x20);
    __m256i d23 = _mm256_blend_epi32(rq_tq1_digit(last, 9), rq_tq1_digit(last, 27), 0x80);
    __m256i tail = _mm256_blend_epi32(d01, d23, 0xc0);
    u->q[7] = _mm256_blend_epi32(rq_tq1_digit(second, 81), tail, 0xf0);
}

/* Codes 0..3, offset 1. */
RQ_INLINE void rq_u_tq2_0(const uint8_t *b, rq_u256 *u)
{
    u->sc = _mm256_set1_epi16(1);
    u->d = rq_f16_at(b + 64);
    for (int n = 0; n < 2; n++) {
        __m256i v = rq_loadu(b + 32 * n);
        u->q[4 * n + 0] = RQ_BITS2(v, 0);
        u->q[4 * n + 1] = RQ_BITS2(v, 2);
        u->q[4 * n + 2] = RQ_BITS2(v, 4);
        u->q[4 * n + 3] = RQ_BITS2(v, 6);
    }
}

#endif
