/* neon.c - matrix kernels for aarch64; compiled twice, the second time (RQ_NEON_DOT) for machines with the
 * dot-product instruction.
 *
 * A span of a row is decoded once (decode.h: loops a compiler vectorises) into bytes that stay in the first-level
 * cache and is multiplied by every column, four columns at a time. The order of operations is that of scalar.c. */
#include <arm_neon.h>
#include <math.h>

#include "backends/cpu/kernels/decode.h"
#include "backends/cpu/kernels/kernels.h"

#define NEON_INLINE static inline __attribute__((always_inline))

/* ---- activation rows ----------------------------------------------------------------------------------- */

/* Codes of n floats (a multiple of 16); returns the scale. The same bits as scalar.c. */
static float quantize_group(const float *x, int8_t *q, int n)
{
    uint32x4_t mask = vdupq_n_u32(0x7fffffff), top4 = vdupq_n_u32(0);
    for (int i = 0; i < n; i += 4)
        top4 = vmaxq_u32(top4, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), mask));
    uint32_t bits = vmaxvq_u32(top4);
    float top = rq_bits_f32(bits);
    if (bits >= 0x7f800000u || top < 0x1p-120f) {
        memset(q, 0, (size_t)n);
        return bits >= 0x7f800000u ? NAN : 0.0f;
    }
    float32x4_t inverse = vdupq_n_f32(127.0f / top);
    for (int i = 0; i < n; i += 16) {
        int32x4_t v[4];
        for (int j = 0; j < 4; j++) v[j] = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4 * j), inverse));
        int16x8_t low = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
        int16x8_t high = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
        vst1q_s8(q + i, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    }
    return top / 127.0f;
}

static void quantize_q256(const float *x, void *dst, int64_t n_in)
{
    rq_act256 *a = dst;
    for (; n_in > 0; n_in -= 256, x += 256, a++) {
        a->d = quantize_group(x, a->q, 256);
        memset(a->pad, 0, sizeof a->pad);
        for (int g = 0; g < 8; g++) {
            a->bsx[g] = vaddlvq_s8(vld1q_s8(a->q + 32 * g));
            a->bsx[8 + g] = vaddlvq_s8(vld1q_s8(a->q + 32 * g + 16));
            a->bs32[g] = (int16_t)(a->bsx[g] + a->bsx[8 + g]);
        }
    }
}

static void quantize_q32(const float *x, void *dst, int64_t n_in)
{
    rq_act32 *a = dst;
    for (; n_in > 0; n_in -= 256, x += 256, a++) {
        int n32 = n_in < 256 ? (int)(n_in / 32) : 8;
        if (n32 < 8) memset(a, 0, sizeof *a);
        for (int j = 0; j < n32; j++) {
            a->d[j] = quantize_group(x + 32 * j, a->q + 32 * j, 32);
            a->bs[j] = vaddlvq_s8(vld1q_s8(a->q + 32 * j)) + vaddlvq_s8(vld1q_s8(a->q + 32 * j + 16));
        }
    }
}

/* ---- products ------------------------------------------------------------------------------------------- */

/* acc + products of 16 codes, in four parts. */
NEON_INLINE int32x4_t dot16(int32x4_t acc, int8x16_t w, int8x16_t a)
{
#ifdef RQ_NEON_DOT
    return vdotq_s32(acc, w, a);
#else
    /* Two products of a code down to -128 and an activation down to -127 stay within 16 bits, and so does their sum. */
    int16x8_t p = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    int16x8_t q = vmull_high_s8(w, a);
    return vpadalq_s16(vpadalq_s16(acc, p), q);
#endif
}

/* One decoded span against `cols` columns: the sums of sc * codes * activations. */
NEON_INLINE void sums256(const rq_mm_dec *w, const rq_act256 *const *a, int32_t *sum, const int cols)
{
    int32x4_t acc[4];
    for (int t = 0; t < cols; t++) acc[t] = vdupq_n_s32(0);
    for (int g = 0; g < 16; g++) {
        int8x16_t v = vld1q_s8(w->q + 16 * g);
        int32x4_t scale = vdupq_n_s32(w->sc[g]);
        for (int t = 0; t < cols; t++)
            acc[t] = vmlaq_s32(acc[t], dot16(vdupq_n_s32(0), v, vld1q_s8(a[t]->q + 16 * g)), scale);
    }
    for (int t = 0; t < cols; t++) sum[t] = vaddvq_s32(acc[t]);
}

/* Sum of mn * (sums of 16 activation codes); bsx has the even groups first. */
NEON_INLINE int32_t minsum256(const int16_t mn[16], const rq_act256 *a)
{
    int16x8x2_t m = vld2q_s16(mn); /* even, odd */
    int16x8_t even = vld1q_s16(a->bsx), odd = vld1q_s16(a->bsx + 8);
    int32x4_t s = vmull_s16(vget_low_s16(m.val[0]), vget_low_s16(even));
    s = vmlal_high_s16(s, m.val[0], even);
    s = vmlal_s16(s, vget_low_s16(m.val[1]), vget_low_s16(odd));
    return vaddvq_s32(vmlal_high_s16(s, m.val[1], odd));
}

NEON_INLINE void columns256(const rq_mm_dec *w, const rq_act256 *const *a, float *acc, const int cols,
                            bool has_min)
{
    int32_t sum[4];
    sums256(w, a, sum, cols);
    for (int t = 0; t < cols; t++) {
        acc[t] = fmaf((float)sum[t], w->d[0] * a[t]->d, acc[t]);
        if (has_min) acc[t] = fmaf(-(float)minsum256(w->mn, a[t]), w->dm[0] * a[t]->d, acc[t]);
    }
}

NEON_INLINE void columns32(const rq_mm_dec *w, const rq_act32 *const *a, float *acc, const int cols, int n32,
                           bool has_min, bool halves)
{
    for (int j = 0; j < n32; j++) {
        int8x16_t low = vld1q_s8(w->q + 32 * j), high = vld1q_s8(w->q + 32 * j + 16);
        for (int t = 0; t < cols; t++) {
            int32x4_t s = dot16(vdupq_n_s32(0), low, vld1q_s8(a[t]->q + 32 * j));
            if (halves) {
                acc[t] = fmaf((float)vaddvq_s32(s), w->d[2 * j] * a[t]->d[j], acc[t]);
                s = vdupq_n_s32(0);
            }
            s = dot16(s, high, vld1q_s8(a[t]->q + 32 * j + 16));
            acc[t] = fmaf((float)vaddvq_s32(s), w->d[2 * j + 1] * a[t]->d[j], acc[t]);
            if (has_min) acc[t] = fmaf((float)a[t]->bs[j], w->dm[j] * a[t]->d[j], acc[t]);
        }
    }
}

static void matmul_quantized(const rq_mm_call *c, bool is256)
{
    const rq_type_info *info = rq_type_get((uint32_t)c->type);
    bool has_min = rq_has_min(c->type), halves = c->type == RQ_TYPE_NVFP4;
    size_t span_bytes = (size_t)(RQ_SPAN / info->block_elems) * info->block_bytes;
    float *acc = (float *)c->scratch;
    rq_mm_dec dec;
    for (int64_t r = c->r0; r < c->r1; r++) {
        const uint8_t *b = c->w + (size_t)r * c->row_bytes;
        memset(acc, 0, (size_t)c->n_cols * sizeof(float));
        for (int64_t k = 0, s = 0; k < c->n_in; k += RQ_SPAN, s++, b += span_bytes) {
            int n32 = c->n_in - k < RQ_SPAN ? (int)(c->n_in - k) / 32 : 8;
            if (is256)
                rq_decode256(c->type, b, &dec);
            else
                rq_decode32(c->type, b, n32, &dec);
            for (int t = 0; t < c->n_cols; t += 4) {
                const void *a[4];
                int cols = c->n_cols - t < 4 ? c->n_cols - t : 4;
                for (int i = 0; i < cols; i++) a[i] = (const rq_act256 *)c->acts[t + i] + s;
                if (is256 && cols == 4)
                    columns256(&dec, (const rq_act256 *const *)a, acc + t, 4, has_min);
                else if (is256)
                    for (int i = 0; i < cols; i++)
                        columns256(&dec, (const rq_act256 *const *)a + i, acc + t + i, 1, has_min);
                else if (cols == 4)
                    columns32(&dec, (const rq_act32 *const *)a, acc + t, 4, n32, has_min, halves);
                else
                    for (int i = 0; i < cols; i++)
                        columns32(&dec, (const rq_act32 *const *)a + i, acc + t + i, 1, n32, has_min, halves);
            }
        }
        for (int t = 0; t < c->n_cols; t++) c->y[t][r] = acc[t];
    }
}

/* Eight partial sums per output, element k in sum k % 8, fma chains in order of k, added as in scalar.c. */
static void matmul_float(const rq_mm_call *c)
{
    const rq_type_info *info = rq_type_get((uint32_t)c->type);
    float32x4_t *part = (float32x4_t *)c->scratch; /* [columns][2] */
    float w[256];
    for (int64_t r = c->r0; r < c->r1; r++) {
        const uint8_t *row = c->w + (size_t)r * c->row_bytes;
        for (int t = 0; t < 2 * c->n_cols; t++) part[t] = vdupq_n_f32(0.0f);
        for (int64_t k = 0; k < c->n_in; k += 256) {
            int n = c->n_in - k < 256 ? (int)(c->n_in - k) : 256, full = n & ~7;
            info->dequantize(row + (size_t)k * info->block_bytes, w, n);
            for (int t = 0; t < c->n_cols; t++) {
                const float *x = (const float *)c->acts[t] + k;
                float32x4_t p = part[2 * t], q = part[2 * t + 1];
                for (int i = 0; i < full; i += 8) {
                    p = vfmaq_f32(p, vld1q_f32(w + i), vld1q_f32(x + i));
                    q = vfmaq_f32(q, vld1q_f32(w + i + 4), vld1q_f32(x + i + 4));
                }
                if (full < n) {
                    float wt[8] = {0}, xt[8] = {0};
                    memcpy(wt, w + full, (size_t)(n - full) * sizeof(float));
                    memcpy(xt, x + full, (size_t)(n - full) * sizeof(float));
                    p = vfmaq_f32(p, vld1q_f32(wt), vld1q_f32(xt));
                    q = vfmaq_f32(q, vld1q_f32(wt + 4), vld1q_f32(xt + 4));
                }
                part[2 * t] = p;
                part[2 * t + 1] = q;
            }
        }
        for (int t = 0; t < c->n_cols; t++) {
            float32x4_t s = vaddq_f32(part[2 * t], part[2 * t + 1]);
            c->y[t][r] =
                (vgetq_lane_f32(s, 0) + vgetq_lane_f32(s, 2)) + (vgetq_lane_f32(s, 1) + vgetq_lane_f32(s, 3));
        }
    }
}

_Static_assert(RQ_MM_COLS * 2 * sizeof(float32x4_t) <= RQ_MM_SCRATCH, "scratch");

static void matmul(const rq_mm_call *c)
{
    const rq_type_info *info = rq_type_get((uint32_t)c->type);
    if (info->block_elems == 1)
        matmul_float(c);
    else
        matmul_quantized(c, info->block_elems == 256);
}

#ifdef RQ_NEON_DOT
const rq_matmul_kernels rq_kernels_neon_dot = {quantize_q256, quantize_q32, matmul};
#else
const rq_matmul_kernels rq_kernels_neon = {quantize_q256, quantize_q32, matmul};
#endif
