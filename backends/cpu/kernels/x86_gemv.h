/* x86_gemv.h - one column: eight rows at a time, each row's bytes read once, front to back. */
#ifndef RQ_X86_GEMV_H
#define RQ_X86_GEMV_H

#include "backends/cpu/kernels/x86_types.h"
#include "backends/cpu/kernels/x86_unpack256.h"
#include "backends/cpu/kernels/x86_unpack32.h"

/* Byte pairs of word j of each half, eight times over: spreads a scale over its group. */
static const uint8_t rq_spread[8][32] __attribute__((aligned(32))) = {
#define RQ_S(a)                                                                                              \
    {                                                                                                        \
        a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1,  \
            a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1, a, a + 1                                       \
    }
    RQ_S(0),  RQ_S(2),  RQ_S(4), RQ_S(6), RQ_S(8),
    RQ_S(10), RQ_S(12), RQ_S(14)
#undef RQ_S
};

/* Sum of sc * code * a over a span, in eight parts. */
RQ_INLINE __m256i rq_dot256(const rq_u256 *u, const rq_act256 *a, const int is_signed, const int offset)
{
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
        __m256i x = rq_loadu(a->q + 32 * j), p;
        if (is_signed)
            p = _mm256_maddubs_epi16(_mm256_abs_epi8(u->q[j]), _mm256_sign_epi8(x, u->q[j]));
        else
            p = _mm256_maddubs_epi16(u->q[j], x);
        __m256i s = _mm256_shuffle_epi8(u->sc, rq_loadu(rq_spread[j]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(p, s));
    }
    if (!is_signed && offset) {
        __m256i t = _mm256_madd_epi16(u->sc, rq_loadu(a->bsx));
        sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(t, _mm256_set1_epi32(offset)));
    }
    return sum;
}

#define RQ_GEMV_256(id, name, block_bytes, is_signed, offset, has_min, group, chain, sign)                   \
    static void rq_gemv_##name(const rq_mm_call *c)                                                          \
    {                                                                                                        \
        for (int64_t r = c->r0; r < c->r1; r += 8) {                                                         \
            const uint8_t *rows[8];                                                                          \
            const rq_act256 *a = c->acts[0];                                                                 \
            size_t ahead = rq_ahead(c, r, 8);                                                                \
            __m256 acc = _mm256_setzero_ps();                                                                \
            rq_rows8(c, r, rows);                                                                            \
            for (int64_t k = 0, at = 0; k < c->n_in; k += 256, at += (block_bytes), a++) {                   \
                __m256i v[8], mv[8];                                                                         \
                float d[8], dm[8];                                                                           \
                for (int i = 0; i < 8; i++) {                                                                \
                    rq_u256 u;                                                                               \
                    rq_prefetch(rows[i] + at, ahead, block_bytes);                                           \
                    rq_u_##name(rows[i] + at, &u);                                                           \
                    v[i] = rq_dot256(&u, a, is_signed, offset);                                              \
                    d[i] = u.d;                                                                              \
                    if (has_min) {                                                                           \
                        mv[i] = _mm256_madd_epi16(u.mn, rq_loadu(a->bsx));                                   \
                        dm[i] = u.dm;                                                                        \
                    }                                                                                        \
                }                                                                                            \
                __m256 da = _mm256_set1_ps(a->d);                                                            \
                acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(rq_sum8(v)), _mm256_mul_ps(_mm256_loadu_ps(d), da), \
                                      acc);                                                                  \
                if (has_min)                                                                                 \
                    acc = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(rq_sum8(mv)),                                  \
                                           _mm256_mul_ps(_mm256_loadu_ps(dm), da), acc);                     \
            }                                                                                                \
            rq_store_rows(c->y[0] + r, c->r1 - r, acc);                                                      \
        }                                                                                                    \
    }
RQ_TYPES_256(RQ_GEMV_256)

/* Products of 32 codes, in eight parts of 32 bits (16 products make one 128-bit half). */
RQ_INLINE __m256i rq_dot32(__m256i codes, __m256i x, const int sign)
{
    __m256i p = sign ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
                     : _mm256_maddubs_epi16(codes, x);
    return _mm256_madd_epi16(p, _mm256_set1_epi16(1));
}

RQ_INLINE int rq_groups_left(int64_t n)
{
    return n < 256 ? (int)n / 32 : 8;
}

#define RQ_NO_MIN(rows, j) _mm256_setzero_ps()
#define RQ_M_q4_0          RQ_NO_MIN
#define RQ_M_q5_0          RQ_NO_MIN
#define RQ_M_q8_0          RQ_NO_MIN
#define RQ_M_iq4_nl        RQ_NO_MIN
#define RQ_M_mxfp4         RQ_NO_MIN
#define RQ_M_q1_0          RQ_NO_MIN
#define RQ_M_q2_0          RQ_NO_MIN

#define RQ_GEMV_32(id, name, span_bytes, offset, has_min, chain, sign)                                       \
    static void rq_gemv_##name(const rq_mm_call *c)                                                          \
    {                                                                                                        \
        for (int64_t r = c->r0; r < c->r1; r += 8) {                                                         \
            const uint8_t *rows[8];                                                                          \
            const rq_act32 *a = c->acts[0];                                                                  \
            size_t ahead = rq_ahead(c, r, 8);                                                                \
            __m256 acc = _mm256_setzero_ps();                                                                \
            rq_rows8(c, r, rows);                                                                            \
            for (int64_t k = 0; k < c->n_in; k += 256, a++) {                                                \
                int n32 = rq_groups_left(c->n_in - k);                                                       \
                for (int i = 0; i < 8; i++) rq_prefetch(rows[i], ahead, span_bytes);                         \
                for (int j = 0; j < n32; j++) {                                                              \
                    __m256i v[8], x = rq_loadu(a->q + 32 * j);                                               \
                    for (int i = 0; i < 8; i++) v[i] = rq_dot32(rq_g_##name(rows[i], j), x, sign);           \
                    __m256i sum = rq_sum8(v);                                                                \
                    __m256 da = _mm256_set1_ps(a->d[j]);                                                     \
                    if (offset) sum = _mm256_sub_epi32(sum, _mm256_set1_epi32((offset)*a->bs[j]));           \
                    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(RQ_D_##name(rows, j), da),  \
                                          acc);                                                              \
                    if (has_min)                                                                             \
                        acc = _mm256_fmadd_ps(_mm256_set1_ps((float)a->bs[j]),                               \
                                              _mm256_mul_ps(RQ_M_##name(rows, j), da), acc);                 \
                }                                                                                            \
                for (int i = 0; i < 8; i++) rows[i] += (span_bytes);                                         \
            }                                                                                                \
            rq_store_rows(c->y[0] + r, c->r1 - r, acc);                                                      \
        }                                                                                                    \
    }
RQ_TYPES_32(RQ_GEMV_32)

/* NVFP4: a scale per 16 elements, so the halves of a group are added one after the other. */
static void rq_gemv_nvfp4(const rq_mm_call *c)
{
    for (int64_t r = c->r0; r < c->r1; r += 8) {
        const uint8_t *rows[8];
        const rq_act32 *a = c->acts[0];
        size_t ahead = rq_ahead(c, r, 8);
        __m256 acc = _mm256_setzero_ps();
        rq_rows8(c, r, rows);
        for (int64_t k = 0; k < c->n_in; k += 256, a++) {
            int n32 = rq_groups_left(c->n_in - k);
            for (int i = 0; i < 8; i++) rq_prefetch(rows[i], ahead, 144);
            for (int j = 0; j < n32; j++) {
                __m256i v[8], x = rq_loadu(a->q + 32 * j), ones = _mm256_set1_epi8(12);
                for (int i = 0; i < 8; i++) {
                    /* Levels again without the offset: the correction would need sums of 16. */
                    __m256i w = _mm256_sub_epi8(rq_g_nvfp4(rows[i], j), ones);
                    v[i] = rq_dot32(w, x, 1);
                }
                __m256i p = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
                __m256i q = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
                __m256 low = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(p, q, 0x20));
                __m256 high = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(p, q, 0x31));
                __m256 da = _mm256_set1_ps(a->d[j]);
                acc = _mm256_fmadd_ps(low, _mm256_mul_ps(RQ_DH_nvfp4(rows, j, 0), da), acc);
                acc = _mm256_fmadd_ps(high, _mm256_mul_ps(RQ_DH_nvfp4(rows, j, 1), da), acc);
            }
            for (int i = 0; i < 8; i++) rows[i] += 144;
        }
        rq_store_rows(c->y[0] + r, c->r1 - r, acc);
    }
}

#endif
