/* x86_unpack32.h - groups of 32 elements to a register, for the types with blocks of 32, 64 and 128.
 *
 * RQ_G_x(p, j): the codes of group j of the span that starts at block p; RQ_D_x(rows, j): the float scales of
 * eight rows, RQ_M_x(rows, j) their minima. Unsigned codes where x86_types.h lists an offset. */
#ifndef RQ_X86_UNPACK32_H
#define RQ_X86_UNPACK32_H

#include "backends/cpu/kernels/x86_common.h"

/* Low nibbles of 16 bytes, then high ones. */
RQ_INLINE __m256i rq_nibbles(const uint8_t *p)
{
    __m128i v = rq_loadu128(p);
    return _mm256_and_si256(rq_pair(v, _mm_srli_epi16(v, 4)), _mm256_set1_epi8(15));
}

RQ_INLINE __m256i rq_g_q4_0(const uint8_t *p, int j)
{
    return rq_nibbles(p + 18 * j + 2);
}

RQ_INLINE __m256i rq_g_q4_1(const uint8_t *p, int j)
{
    return rq_nibbles(p + 20 * j + 4);
}

/* 16 in every byte whose bit is set. */
RQ_INLINE __m256i rq_fifth_bits(uint32_t bits)
{
    __m256i each = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                    3, 3, 3, 3, 3, 3, 3);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), each), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8(16));
}

RQ_INLINE __m256i rq_g_q5_0(const uint8_t *p, int j)
{
    p += 22 * j;
    return _mm256_or_si256(rq_nibbles(p + 6), rq_fifth_bits(rq_ld32(p + 2)));
}

RQ_INLINE __m256i rq_g_q5_1(const uint8_t *p, int j)
{
    p += 24 * j;
    return _mm256_or_si256(rq_nibbles(p + 8), rq_fifth_bits(rq_ld32(p + 4)));
}

RQ_INLINE __m256i rq_g_q8_0(const uint8_t *p, int j)
{
    return rq_loadu(p + 34 * j + 2);
}

RQ_INLINE __m256i rq_g_iq4_nl(const uint8_t *p, int j)
{
    return _mm256_shuffle_epi8(rq_twice(rq_loadu128(rq_iq4nl_values)), rq_nibbles(p + 18 * j + 2));
}

/* Levels + 12. */
RQ_INLINE __m256i rq_mxfp4_codes(__m256i nibbles)
{
    __m128i levels = _mm_add_epi8(rq_loadu128(rq_mxfp4_values), _mm_set1_epi8(12));
    return _mm256_shuffle_epi8(rq_twice(levels), nibbles);
}

RQ_INLINE __m256i rq_g_mxfp4(const uint8_t *p, int j)
{
    return rq_mxfp4_codes(rq_nibbles(p + 17 * j + 1));
}

/* Halves of 8 bytes per 16 elements. */
RQ_INLINE __m256i rq_g_nvfp4(const uint8_t *p, int j)
{
    __m128i v = rq_loadu128(p + j / 2 * 36 + 4 + j % 2 * 16), low = _mm_set1_epi8(15);
    __m128i l = _mm_and_si128(v, low), h = _mm_and_si128(_mm_srli_epi16(v, 4), low);
    return rq_mxfp4_codes(rq_pair(_mm_unpacklo_epi64(l, h), _mm_unpackhi_epi64(l, h)));
}

/* 0 or 2. */
RQ_INLINE __m256i rq_g_q1_0(const uint8_t *p, int j)
{
    return _mm256_srli_epi16(rq_fifth_bits(rq_ld32(p + j / 4 * 18 + 2 + j % 4 * 4)), 3);
}

/* Four codes per byte, in order: every byte four times, its high nibble moved down for the last two codes, the
 * odd codes moved down by two more bits. */
RQ_INLINE __m256i rq_g_q2_0(const uint8_t *p, int j)
{
    __m256i each = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6,
                                    6, 6, 6, 7, 7, 7, 7);
    __m256i v = _mm256_set1_epi64x((long long)rq_ld64(p + j / 2 * 18 + 2 + j % 2 * 8));
    v = _mm256_shuffle_epi8(v, each);
    v = _mm256_blend_epi16(v, _mm256_srli_epi16(v, 4), 0xaa);
    v = _mm256_blendv_epi8(v, _mm256_srli_epi16(v, 2), _mm256_set1_epi16((short)0xff00));
    return _mm256_and_si256(v, _mm256_set1_epi8(3));
}

/* Eight binary16 values at the same offset of eight rows. */
RQ_INLINE __m256 rq_f16_rows(const uint8_t *const rows[8], size_t at)
{
    __m128i h = _mm_cvtsi32_si128(rq_ld16(rows[0] + at));
    h = _mm_insert_epi16(h, rq_ld16(rows[1] + at), 1);
    h = _mm_insert_epi16(h, rq_ld16(rows[2] + at), 2);
    h = _mm_insert_epi16(h, rq_ld16(rows[3] + at), 3);
    h = _mm_insert_epi16(h, rq_ld16(rows[4] + at), 4);
    h = _mm_insert_epi16(h, rq_ld16(rows[5] + at), 5);
    h = _mm_insert_epi16(h, rq_ld16(rows[6] + at), 6);
    h = _mm_insert_epi16(h, rq_ld16(rows[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

RQ_INLINE __m256 rq_table_rows(const float table[256], const uint8_t *const rows[8], size_t at)
{
    return _mm256_setr_ps(table[rows[0][at]], table[rows[1][at]], table[rows[2][at]], table[rows[3][at]],
                          table[rows[4][at]], table[rows[5][at]], table[rows[6][at]], table[rows[7][at]]);
}

#define RQ_D_q4_0(rows, j)   rq_f16_rows(rows, (size_t)(j)*18)
#define RQ_D_q4_1(rows, j)   rq_f16_rows(rows, (size_t)(j)*20)
#define RQ_M_q4_1(rows, j)   rq_f16_rows(rows, (size_t)(j)*20 + 2)
#define RQ_D_q5_0(rows, j)   rq_f16_rows(rows, (size_t)(j)*22)
#define RQ_D_q5_1(rows, j)   rq_f16_rows(rows, (size_t)(j)*24)
#define RQ_M_q5_1(rows, j)   rq_f16_rows(rows, (size_t)(j)*24 + 2)
#define RQ_D_q8_0(rows, j)   rq_f16_rows(rows, (size_t)(j)*34)
#define RQ_D_iq4_nl(rows, j) rq_f16_rows(rows, (size_t)(j)*18)
#define RQ_D_mxfp4(rows, j)  rq_table_rows(rq_e8m0_half, rows, (size_t)(j)*17)
#define RQ_D_q1_0(rows, j)   rq_f16_rows(rows, (size_t)((j) / 4) * 18)
#define RQ_D_q2_0(rows, j)   rq_f16_rows(rows, (size_t)((j) / 2) * 18)
/* NVFP4: one per 16 elements, h = 0 or 1. */
#define RQ_DH_nvfp4(rows, j, h) rq_table_rows(rq_ue4m3_half, rows, (size_t)((j) / 2 * 36 + (j) % 2 * 2 + (h)))

#endif
