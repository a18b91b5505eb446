/* scalar.c - the matrix kernels in plain C: what machines without a vector unit we know run, and the statement
 * of the order of operations that the vector kernels reproduce bit for bit. */
#include <math.h>

#include "backends/cpu/kernels/decode.h"
#include "backends/cpu/kernels/kernels.h"

/* Codes of n floats with the scale d = max|x| / 127; NaN when a value is not finite, 0 when all are (almost)
 * zero: below 2^-120 the inverse would overflow. Rounds to nearest even. */
static float quantize_group(const float *x, int8_t *q, int n)
{
    float top = 0.0f;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (!(a <= 3.402823466e38f)) finite = false;
        if (a > top) top = a;
    }
    if (!finite || top < 0x1p-120f) {
        memset(q, 0, (size_t)n);
        return finite ? 0.0f : NAN;
    }
    float inverse = 127.0f / top;
    for (int i = 0; i < n; i++) q[i] = (int8_t)lrintf(x[i] * inverse);
    return top / 127.0f;
}

static int sum_of(const int8_t *q, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += q[i];
    return s;
}

static void quantize_q256(const float *x, void *dst, int64_t n_in)
{
    rq_act256 *a = dst;
    for (; n_in > 0; n_in -= 256, x += 256, a++) {
        a->d = quantize_group(x, a->q, 256);
        memset(a->pad, 0, sizeof a->pad);
        for (int g = 0; g < 8; g++) {
            a->bsx[g] = (int16_t)sum_of(a->q + 32 * g, 16);
            a->bsx[8 + g] = (int16_t)sum_of(a->q + 32 * g + 16, 16);
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
            a->bs[j] = sum_of(a->q + 32 * j, 32);
        }
    }
}

static int dot_int8(const int8_t *a, const int8_t *b, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static float add_span256(const rq_mm_dec *w, const rq_act256 *a, bool has_min, float acc)
{
    int sum = 0, minsum = 0;
    for (int g = 0; g < 16; g++) sum += w->sc[g] * dot_int8(w->q + 16 * g, a->q + 16 * g, 16);
    acc = fmaf((float)sum, w->d[0] * a->d, acc);
    if (!has_min) return acc;
    for (int g = 0; g < 16; g++) minsum += w->mn[g] * a->bsx[g % 2 * 8 + g / 2];
    return fmaf(-(float)minsum, w->dm[0] * a->d, acc);
}

static float add_span32(const rq_mm_dec *w, const rq_act32 *a, int n32, bool has_min, bool halves, float acc)
{
    for (int j = 0; j < n32; j++) {
        int low = dot_int8(w->q + 32 * j, a->q + 32 * j, 16);
        int high = dot_int8(w->q + 32 * j + 16, a->q + 32 * j + 16, 16);
        if (halves) {
            acc = fmaf((float)low, w->d[2 * j] * a->d[j], acc);
            acc = fmaf((float)high, w->d[2 * j + 1] * a->d[j], acc);
        } else {
            acc = fmaf((float)(low + high), w->d[2 * j] * a->d[j], acc);
        }
        if (has_min) acc = fmaf((float)a->bs[j], w->dm[j] * a->d[j], acc);
    }
    return acc;
}

static void matmul_quantized(const rq_mm_call *c, bool is256)
{
    const rq_type_info *info = rq_type_get(c->type);
    bool has_min = rq_has_min(c->type);
    size_t span_bytes = (size_t)(RQ_SPAN / info->block_elems) * info->block_bytes;
    rq_mm_dec dec;
    for (int64_t r = c->r0; r < c->r1; r++) {
        const uint8_t *b = c->w + (size_t)r * c->row_bytes;
        for (int t = 0; t < c->n_cols; t++) c->y[t][r] = 0.0f;
        for (int64_t k = 0, s = 0; k < c->n_in; k += RQ_SPAN, s++, b += span_bytes) {
            int n32 = c->n_in - k < RQ_SPAN ? (int)(c->n_in - k) / 32 : 8;
            if (is256)
                rq_decode256(c->type, b, &dec);
            else
                rq_decode32(c->type, b, n32, &dec);
            for (int t = 0; t < c->n_cols; t++) {
                float *y = &c->y[t][r];
                *y = is256 ? add_span256(&dec, (const rq_act256 *)c->acts[t] + s, has_min, *y)
                           : add_span32(&dec, (const rq_act32 *)c->acts[t] + s, n32, has_min,
                                        c->type == RQ_TYPE_NVFP4, *y);
            }
        }
    }
}

/* Eight partial sums per output, element k in sum k % 8, added in order at the end: a compiler can keep them
 * in vector registers. */
static void matmul_float(const rq_mm_call *c)
{
    const rq_type_info *info = rq_type_get(c->type);
    float w[256], part[8];
    for (int64_t r = c->r0; r < c->r1; r++) {
        const uint8_t *row = c->w + (size_t)r * c->row_bytes;
        for (int t = 0; t < c->n_cols; t++) {
            const float *x = c->acts[t];
            for (int j = 0; j < 8; j++) part[j] = 0.0f;
            for (int64_t k = 0; k < c->n_in; k += 256) {
                int n = c->n_in - k < 256 ? (int)(c->n_in - k) : 256;
                info->dequantize(row + (size_t)k * info->block_bytes, w, n);
                for (int i = 0; i < n; i++) part[i % 8] += w[i] * x[k + i];
            }
            c->y[t][r] =
                ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
        }
    }
}

static void matmul(const rq_mm_call *c)
{
    const rq_type_info *info = rq_type_get(c->type);
    if (info->block_elems == 1)
        matmul_float(c);
    else
        matmul_quantized(c, info->block_elems == 256);
}

const rq_matmul_kernels rq_kernels_scalar = {quantize_q256, quantize_q32, matmul};
