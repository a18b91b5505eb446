/* x86_float.h - F32, F16, BF16 (and F64) weights against float activations.
 *
 * Every output has eight partial sums, element k in sum k % 8, each an fma chain in order of k, added by a fixed
 * tree at the end. Up to 24 columns convert weights in registers (rows read again for further columns come from the cache);
 * more columns convert a tile of 16 rows x 256 elements once and carry the partial sums of all columns in scratch
 * between tiles. */
#ifndef RQ_X86_FLOAT_H
#define RQ_X86_FLOAT_H

#include "backends/cpu/kernels/x86_common.h"

enum { RQ_FT_ROWS = 16, RQ_FT_K = 256, RQ_FT_COLS = 128, RQ_FT_FEW = 24 };

RQ_INLINE __m256 rq_load_f32(const uint8_t *p)
{
    return _mm256_castsi256_ps(rq_loadu(p));
}

RQ_INLINE __m256 rq_load_f16(const uint8_t *p)
{
    return _mm256_cvtph_ps(rq_loadu128(p));
}

RQ_INLINE __m256 rq_load_bf16(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(rq_loadu128(p)), 16));
}

RQ_INLINE __m256 rq_load_f64(const uint8_t *p)
{
    __m128 low = _mm256_cvtpd_ps(_mm256_castsi256_pd(rq_loadu(p)));
    __m128 high = _mm256_cvtpd_ps(_mm256_castsi256_pd(rq_loadu(p + 32)));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

RQ_INLINE float rq_add_parts(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* The last n_in % 8 elements of a row, filled up with zeros. */
RQ_INLINE const uint8_t *rq_tail(const uint8_t *p, int n, int bytes, uint8_t buffer[64])
{
    memset(buffer, 0, 64);
    memcpy(buffer, p, (size_t)n * (size_t)bytes);
    return buffer;
}

#define RQ_FLOAT_ONE(name, bytes)                                                                            \
    static void rq_gemv_##name(const rq_mm_call *c)                                                          \
    {                                                                                                        \
        const float *x = c->acts[0];                                                                         \
        int tail = (int)(c->n_in % 8);                                                                       \
        int64_t n = c->n_in - tail;                                                                          \
        for (int64_t r = c->r0; r < c->r1; r += 8) {                                                         \
            const uint8_t *rows[8];                                                                          \
            __m256 acc[8];                                                                                   \
            rq_rows8(c, r, rows);                                                                            \
            for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_ps();                                        \
            for (int64_t k = 0; k < n; k += 8) {                                                             \
                __m256 v = _mm256_loadu_ps(x + k);                                                           \
                for (int i = 0; i < 8; i++)                                                                  \
                    acc[i] = _mm256_fmadd_ps(rq_load_##name(rows[i] + k * (bytes)), v, acc[i]);              \
            }                                                                                                \
            if (tail) {                                                                                      \
                uint8_t buffer[64];                                                                          \
                __m256 v = rq_load_f32(rq_tail((const uint8_t *)(x + n), tail, 4, buffer));                  \
                for (int i = 0; i < 8; i++) {                                                                \
                    __m256 w = rq_load_##name(rq_tail(rows[i] + n * (bytes), tail, bytes, buffer));          \
                    acc[i] = _mm256_fmadd_ps(w, v, acc[i]);                                                  \
                }                                                                                            \
            }                                                                                                \
            for (int i = 0; i < 8 && r + i < c->r1; i++) c->y[0][r + i] = rq_add_parts(acc[i]);              \
        }                                                                                                    \
    }                                                                                                        \
    /* 4 rows x cols columns, all of n_in, straight from the weights. */                                     \
    RQ_INLINE void rq_few_core_##name(const rq_mm_call *c, int64_t r, int t, const int cols)                 \
    {                                                                                                        \
        __m256 acc[4][3];                                                                                    \
        const uint8_t *rows[4];                                                                              \
        int tail = (int)(c->n_in % 8);                                                                       \
        int64_t n = c->n_in - tail;                                                                          \
        for (int i = 0; i < 4; i++) {                                                                        \
            rows[i] = c->w + (size_t)(r + i < c->r1 ? r + i : c->r1 - 1) * c->row_bytes;                     \
            for (int j = 0; j < cols; j++) acc[i][j] = _mm256_setzero_ps();                                  \
        }                                                                                                    \
        for (int64_t k = 0; k < n; k += 8) {                                                                 \
            __m256 v[3];                                                                                     \
            for (int j = 0; j < cols; j++) v[j] = _mm256_loadu_ps((const float *)c->acts[t + j] + k);        \
            for (int i = 0; i < 4; i++) {                                                                    \
                __m256 m = rq_load_##name(rows[i] + k * (bytes));                                            \
                for (int j = 0; j < cols; j++) acc[i][j] = _mm256_fmadd_ps(m, v[j], acc[i][j]);              \
            }                                                                                                \
        }                                                                                                    \
        for (int i = 0; i < 4 && tail; i++) {                                                                \
            uint8_t buffer[64];                                                                              \
            __m256 m = rq_load_##name(rq_tail(rows[i] + n * (bytes), tail, bytes, buffer));                  \
            for (int j = 0; j < cols; j++) {                                                                 \
                const float *x = (const float *)c->acts[t + j] + n;                                          \
                __m256 v = rq_load_f32(rq_tail((const uint8_t *)x, tail, 4, buffer));                        \
                acc[i][j] = _mm256_fmadd_ps(m, v, acc[i][j]);                                                \
            }                                                                                                \
        }                                                                                                    \
        for (int j = 0; j < cols; j++)                                                                       \
            for (int i = 0; i < 4 && r + i < c->r1; i++) c->y[t + j][r + i] = rq_add_parts(acc[i][j]);       \
    }                                                                                                        \
    static void rq_few_##name(const rq_mm_call *c)                                                           \
    {                                                                                                        \
        for (int64_t r = c->r0; r < c->r1; r += 4) {                                                         \
            for (int t = 0; t < c->n_cols; t += 3) {                                                         \
                switch (c->n_cols - t) {                                                                     \
                case 1:                                                                                      \
                    rq_few_core_##name(c, r, t, 1);                                                          \
                    break;                                                                                   \
                case 2:                                                                                      \
                    rq_few_core_##name(c, r, t, 2);                                                          \
                    break;                                                                                   \
                default:                                                                                     \
                    rq_few_core_##name(c, r, t, 3);                                                          \
                    break;                                                                                   \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* Elements k .. k + n of a row to floats, n up to RQ_FT_K, filled up to a multiple of 8. */             \
    static void rq_widen_##name(const uint8_t *row, int64_t k, int n, float *out)                            \
    {                                                                                                        \
        const uint8_t *p = row + k * (bytes);                                                                \
        int i = 0;                                                                                           \
        for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, rq_load_##name(p + (size_t)i * (bytes)));       \
        if (i < n) {                                                                                         \
            uint8_t buffer[64];                                                                              \
            _mm256_storeu_ps(out + i,                                                                        \
                             rq_load_##name(rq_tail(p + (size_t)i * (bytes), n - i, bytes, buffer)));        \
        }                                                                                                    \
    }
RQ_FLOAT_ONE(f32, 4)
RQ_FLOAT_ONE(f16, 2)
RQ_FLOAT_ONE(bf16, 2)
RQ_FLOAT_ONE(f64, 8)

/* Partial sums of 4 rows x COLS columns over n elements (a multiple of 8); sums[col][row of the tile]. */
RQ_INLINE void rq_float_core(const float *w, const float *const x[4], int n, __m256 *const sums[4],
                             const int cols)
{
    __m256 acc[4][3];
    for (int t = 0; t < cols; t++)
        for (int i = 0; i < 4; i++) acc[i][t] = sums[t][i];
    for (int k = 0; k < n; k += 8) {
        __m256 v[3];
        for (int t = 0; t < cols; t++) v[t] = _mm256_loadu_ps(x[t] + k);
        for (int i = 0; i < 4; i++) {
            __m256 m = _mm256_loadu_ps(w + RQ_FT_K * i + k);
            for (int t = 0; t < cols; t++) acc[i][t] = _mm256_fmadd_ps(m, v[t], acc[i][t]);
        }
    }
    for (int t = 0; t < cols; t++)
        for (int i = 0; i < 4; i++) sums[t][i] = acc[i][t];
}

static void rq_float_cols(const float *w, const float *const x[4], int n, __m256 *const sums[4], int cols)
{
    switch (cols) {
    case 1:
        rq_float_core(w, x, n, sums, 1);
        break;
    case 2:
        rq_float_core(w, x, n, sums, 2);
        break;
    default:
        rq_float_core(w, x, n, sums, 3);
        break;
    }
}

static void rq_gemm_float(const rq_mm_call *c, int t0, int t1, int bytes,
                          void (*widen)(const uint8_t *row, int64_t k, int n, float *out))
{
    __m256 *sums = (__m256 *)c->scratch; /* [columns][RQ_FT_ROWS] */
    float *tile = (float *)(c->scratch + RQ_FT_COLS * RQ_FT_ROWS * sizeof(__m256));
    for (int64_t r = c->r0; r < c->r1; r += RQ_FT_ROWS) {
        for (int i = 0; i < (t1 - t0) * RQ_FT_ROWS; i++) sums[i] = _mm256_setzero_ps();
        for (int64_t k = 0; k < c->n_in; k += RQ_FT_K) {
            int n = c->n_in - k < RQ_FT_K ? (int)(c->n_in - k) : RQ_FT_K, full = n & ~7;
            for (int i = 0; i < RQ_FT_ROWS; i++) {
                int64_t row = r + i < c->r1 ? r + i : c->r1 - 1;
                widen(c->w + (size_t)row * c->row_bytes, k, n, tile + i * RQ_FT_K);
            }
            for (int t = t0; t < t1; t += 3) {
                int cols = t1 - t < 3 ? t1 - t : 3;
                const float *x[4];
                uint8_t tails[3][64];
                for (int j = 0; j < cols; j++) x[j] = (const float *)c->acts[t + j] + k;
                for (int i = 0; i < RQ_FT_ROWS; i += 4) {
                    __m256 *s[4];
                    for (int j = 0; j < cols; j++) s[j] = sums + (t - t0 + j) * RQ_FT_ROWS + i;
                    rq_float_cols(tile + i * RQ_FT_K, x, full, s, cols);
                }
                if (full == n) continue;
                for (int j = 0; j < cols; j++)
                    x[j] = (const float *)(const void *)rq_tail((const uint8_t *)(x[j] + full), n - full, 4,
                                                                tails[j]);
                for (int i = 0; i < RQ_FT_ROWS; i += 4) {
                    __m256 *s[4];
                    for (int j = 0; j < cols; j++) s[j] = sums + (t - t0 + j) * RQ_FT_ROWS + i;
                    rq_float_cols(tile + i * RQ_FT_K + full, x, 8, s, cols);
                }
            }
        }
        for (int t = t0; t < t1; t++)
            for (int i = 0; i < RQ_FT_ROWS && r + i < c->r1; i++)
                c->y[t][r + i] = rq_add_parts(sums[(t - t0) * RQ_FT_ROWS + i]);
    }
}

#define RQ_FLOAT_MATMUL(name, bytes)                                                                         \
    static void rq_matmul_##name(const rq_mm_call *c)                                                        \
    {                                                                                                        \
        if (c->n_cols == 1) {                                                                                \
            rq_gemv_##name(c);                                                                               \
            return;                                                                                          \
        }                                                                                                    \
        if (c->n_cols <= RQ_FT_FEW) {                                                                        \
            rq_few_##name(c);                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int t = 0; t < c->n_cols; t += RQ_FT_COLS)                                                      \
            rq_gemm_float(c, t, t + RQ_FT_COLS < c->n_cols ? t + RQ_FT_COLS : c->n_cols, bytes,              \
                          rq_widen_##name);                                                                  \
    }
RQ_FLOAT_MATMUL(f32, 4)
RQ_FLOAT_MATMUL(f16, 2)
RQ_FLOAT_MATMUL(bf16, 2)
RQ_FLOAT_MATMUL(f64, 8)

#endif
