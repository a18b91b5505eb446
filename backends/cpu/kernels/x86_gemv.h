/* x86_gemv.h - few columns: eight rows at a time, each row's bytes read once, front to back. */
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

/* Keeps a running sum in its register: without it GCC turns chains of integer additions into trees and stores every
 * term on the stack (measured: half the speed). */
#ifdef RQ_COMPACT
#define RQ_KEEP(v) (void)(v)
#else
#define RQ_KEEP(v) __asm__("" : "+x"(v))
#endif

/* sum[t]: sum of sc * code * a over a span for `cols` columns, in eight parts. */
RQ_INLINE void rq_dot256(const rq_u256 *u, const rq_act256 *const *a, __m256i *sum, const int cols,
                         const int is_signed, const int offset)
{
    RQ_UNROLL
    for (int j = 0; j < 8; j++) {
        __m256i w = u->q[j], m = is_signed ? _mm256_abs_epi8(w) : w;
        __m256i s = _mm256_shuffle_epi8(u->sc, rq_loadu(rq_spread[j]));
        RQ_UNROLL
        for (int t = 0; t < cols; t++) {
            __m256i x = rq_loadu(a[t]->q + 32 * j);
            __m256i p = _mm256_madd_epi16(_mm256_maddubs_epi16(m, is_signed ? _mm256_sign_epi8(x, w) : x), s);
            sum[t] = j ? _mm256_add_epi32(sum[t], p) : p;
            if (cols > 1) RQ_KEEP(sum[t]);
        }
    }
    if (is_signed || !offset) return;
    for (int t = 0; t < cols; t++) {
        __m256i s = _mm256_madd_epi16(u->sc, rq_loadu(a[t]->bsx));
        sum[t] = _mm256_sub_epi32(sum[t], _mm256_mullo_epi32(s, _mm256_set1_epi32(offset)));
    }
}

/* How many columns at most come this way; more are faster through tiles (x86_tile.h). Measured on Zen 3. */
enum { RQ_FEW_256 = 4, RQ_FEW_32 = 2 };

/* A type's core is instantiated for 1, 2 and 4 columns; a missing fourth one repeats the third and is dropped. */
#define RQ_GEMV(name, most)                                                                                  \
    static void rq_gemv_##name(const rq_mm_call *c)                                                          \
    {                                                                                                        \
        for (int64_t r = c->r0; r < c->r1; r += 8) {                                                         \
            const uint8_t *rows[8];                                                                          \
            rq_rows8(c, r, rows);                                                                            \
            if (c->n_cols == 1)                                                                              \
                rq_few_##name(c, r, rows, 1);                                                                \
            else if (c->n_cols == 2)                                                                         \
                rq_few_##name(c, r, rows, 2);                                                                \
            else                                                                                             \
                rq_few_##name(c, r, rows, most);                                                             \
        }                                                                                                    \
    }

RQ_INLINE int rq_column(const rq_mm_call *c, int t)
{
    return t < c->n_cols ? t : c->n_cols - 1;
}

#define RQ_GEMV_256(id, name, block_bytes, is_signed, offset, has_min, group, chain, sign)                   \
    RQ_INLINE void rq_few_##name(const rq_mm_call *c, int64_t r, const uint8_t *const rows[8],               \
                                 const int cols)                                                             \
    {                                                                                                        \
        const rq_act256 *a[4];                                                                               \
        __m256 acc[4];                                                                                       \
        size_t ahead = rq_ahead(c, r, 8);                                                                    \
        for (int t = 0; t < cols; t++) {                                                                     \
            a[t] = c->acts[rq_column(c, t)];                                                                 \
            acc[t] = _mm256_setzero_ps();                                                                    \
        }                                                                                                    \
        for (int64_t k = 0, at = 0; k < c->n_in; k += 256, at += (block_bytes)) {                            \
            __m256i v[4][8], mv[4][8];                                                                       \
            float d[8], dm[8];                                                                               \
            for (int i = 0; i < 8; i++) {                                                                    \
                rq_u256 u;                                                                                   \
                __m256i sum[4];                                                                              \
                rq_prefetch(rows[i] + at, ahead, block_bytes);                                               \
                rq_u_##name(rows[i] + at, &u);                                                               \
                rq_dot256(&u, a, sum, cols, is_signed, offset);                                              \
                d[i] = u.d;                                                                                  \
                dm[i] = has_min ? u.dm : 0.0f;                                                               \
                for (int t = 0; t < cols; t++) {                                                             \
                    v[t][i] = sum[t];                                                                        \
                    if (has_min) mv[t][i] = _mm256_madd_epi16(u.mn, rq_loadu(a[t]->bsx));                    \
                }                                                                                            \
            }                                                                                                \
            for (int t = 0; t < cols; t++) {                                                                 \
                __m256 da = _mm256_set1_ps(a[t]->d);                                                         \
                acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(rq_sum8(v[t])),                                  \
                                         _mm256_mul_ps(_mm256_loadu_ps(d), da), acc[t]);                     \
                if (has_min)                                                                                 \
                    acc[t] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(rq_sum8(mv[t])),                            \
                                              _mm256_mul_ps(_mm256_loadu_ps(dm), da), acc[t]);               \
                a[t]++;                                                                                      \
            }                                                                                                \
        }                                                                                                    \
        for (int t = 0; t < cols && t < c->n_cols; t++) rq_store_rows(c->y[t] + r, c->r1 - r, acc[t]);       \
    }                                                                                                        \
    RQ_GEMV(name, RQ_FEW_256)
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
    RQ_INLINE void rq_few_##name(const rq_mm_call *c, int64_t r, const uint8_t *const rows0[8],              \
                                 const int cols)                                                             \
    {                                                                                                        \
        const rq_act32 *a[4];                                                                                \
        const uint8_t *rows[8];                                                                              \
        __m256 acc[4];                                                                                       \
        size_t ahead = rq_ahead(c, r, 8);                                                                    \
        for (int t = 0; t < cols; t++) {                                                                     \
            a[t] = c->acts[rq_column(c, t)];                                                                 \
            acc[t] = _mm256_setzero_ps();                                                                    \
        }                                                                                                    \
        for (int i = 0; i < 8; i++) rows[i] = rows0[i];                                                      \
        for (int64_t k = 0; k < c->n_in; k += 256) {                                                         \
            int n32 = rq_groups_left(c->n_in - k);                                                           \
            for (int i = 0; i < 8; i++) rq_prefetch(rows[i], ahead, span_bytes);                             \
            for (int j = 0; j < n32; j++) {                                                                  \
                __m256i codes[8];                                                                            \
                for (int i = 0; i < 8; i++) codes[i] = rq_g_##name(rows[i], j);                              \
                __m256 d = RQ_D_##name(rows, j), dm = RQ_M_##name(rows, j);                                  \
                for (int t = 0; t < cols; t++) {                                                             \
                    __m256i v[8], x = rq_loadu(a[t]->q + 32 * j);                                            \
                    for (int i = 0; i < 8; i++) v[i] = rq_dot32(codes[i], x, sign);                          \
                    __m256i sum = rq_sum8(v);                                                                \
                    __m256 da = _mm256_set1_ps(a[t]->d[j]);                                                  \
                    if (offset) sum = _mm256_sub_epi32(sum, _mm256_set1_epi32((offset)*a[t]->bs[j]));        \
                    acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(d, da), acc[t]);         \
                    if (has_min)                                                                             \
                        acc[t] = _mm256_fmadd_ps(_mm256_set1_ps((float)a[t]->bs[j]), _mm256_mul_ps(dm, da),  \
                                                 acc[t]);                                                    \
                }                                                                                            \
            }                                                                                                \
            for (int i = 0; i < 8; i++) rows[i] += (span_bytes);                                             \
            for (int t = 0; t < cols; t++) a[t]++;                                                           \
        }                                                                                                    \
        for (int t = 0; t < cols && t < c->n_cols; t++) rq_store_rows(c->y[t] + r, c->r1 - r, acc[t]);       \
    }                                                                                                        \
    RQ_GEMV(name, RQ_FEW_32)
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
