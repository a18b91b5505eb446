/* quantize.c - rq_quantize, and encoders of the classic, ternary, few-bit and 4-bit float types. Layouts:
 * above the decoders in dequantize.c. Every encoder picks a scale by least squares, rounds it as the block
 * will keep it, and takes the nearest codes for the rounded one. */
#include "backends/formats/quantize.h"

#include <math.h>
#include <string.h>

#include "backends/formats/block_write.h"
#include "backends/formats/quantize_act.h"
#include "backends/formats/quantize_fit.h"
#include "backends/formats/tables.h"
#include "backends/formats/types.h"

/* ---- classic types
 * --------------------------------------------------------------------------------------------- */

static void put_nibbles(uint8_t *qs, const uint8_t codes[32])
{
    for (int j = 0; j < 16; j++) qs[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

static void put_fifth_bits(uint8_t *qh, const uint8_t codes[32])
{
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++) bits |= (uint32_t)(codes[j] >> 4 & 1) << j;
    rq_write_u32(qh, bits);
}

/* Codes q + offset, q in -offset .. offset - 1; returns the scale. */
static float symmetric_32(const float *x, int offset, uint8_t codes[32])
{
    float d = rq_f16_scale(rq_fit_symmetric(x, 32, -offset, offset - 1)), inverse = rq_inverse(d);
    for (int j = 0; j < 32; j++)
        codes[j] = (uint8_t)(rq_round_code(x[j] * inverse, -offset, offset - 1) + offset);
    return d;
}

static void affine_32(const float *x, int hi, uint8_t codes[32], float *scale, float *min)
{
    rq_fit_affine(x, 32, hi, false, scale, min);
    *scale = rq_f16_scale(*scale);
    *min = rq_f16_scale(*min);
    float inverse = rq_inverse(*scale);
    for (int j = 0; j < 32; j++) codes[j] = (uint8_t)rq_round_code((x[j] - *min) * inverse, 0, hi);
}

void rq_encode_q4_0(const float *x, uint8_t *b)
{
    uint8_t codes[32];
    rq_write_f16(b, symmetric_32(x, 8, codes));
    put_nibbles(b + 2, codes);
}

void rq_encode_q5_0(const float *x, uint8_t *b)
{
    uint8_t codes[32];
    rq_write_f16(b, symmetric_32(x, 16, codes));
    put_fifth_bits(b + 2, codes);
    put_nibbles(b + 6, codes);
}

void rq_encode_q4_1(const float *x, uint8_t *b)
{
    uint8_t codes[32];
    float scale, min;
    affine_32(x, 15, codes, &scale, &min);
    rq_write_f16(b, scale);
    rq_write_f16(b + 2, min);
    put_nibbles(b + 4, codes);
}

void rq_encode_q5_1(const float *x, uint8_t *b)
{
    uint8_t codes[32];
    float scale, min;
    affine_32(x, 31, codes, &scale, &min);
    rq_write_f16(b, scale);
    rq_write_f16(b + 2, min);
    put_fifth_bits(b + 4, codes);
    put_nibbles(b + 8, codes);
}

void rq_encode_q8_0(const float *x, uint8_t *b)
{
    rq_quantize_act_q8_0(x, b, 32);
}

void rq_encode_q8_1(const float *x, uint8_t *b)
{
    rq_quantize_act_q8_1(x, b, 32);
}

void rq_encode_q8_k(const float *x, uint8_t *b)
{
    rq_quantize_act_q8_k(x, b, 256);
}

void rq_encode_iq4_nl(const float *x, uint8_t *b)
{
    float d = rq_f16_scale(rq_fit_iq4nl(x, 32)), inverse = rq_inverse(d);
    uint8_t codes[32];
    for (int j = 0; j < 32; j++) codes[j] = (uint8_t)rq_nearest_iq4nl(x[j] * inverse);
    rq_write_f16(b, d);
    put_nibbles(b + 2, codes);
}

/* ---- ternary and few-bit types
 * --------------------------------------------------------------------------------- */

/* Digits 0, 1, 2 for -d, 0, d; d >= 0. */
static float ternary_256(const float *x, uint8_t digits[256])
{
    float d = rq_f16_scale(fabsf(rq_fit_symmetric(x, 256, -1, 1))), inverse = rq_inverse(d);
    for (int i = 0; i < 256; i++) digits[i] = (uint8_t)(rq_round_code(x[i] * inverse, -1, 1) + 1);
    return d;
}

/* `count` base-3 digits, `stride` apart, as a fraction of 256: the smallest byte that decodes to them. */
static uint8_t pack_digits(const uint8_t *digits, int count, int stride)
{
    int v = 0;
    for (int n = 0; n < 5; n++) v = 3 * v + (n < count ? digits[n * stride] : 0);
    return (uint8_t)((v * 256 + 242) / 243);
}

void rq_encode_tq1_0(const float *x, uint8_t *b)
{
    uint8_t digits[256];
    rq_write_f16(b + 52, ternary_256(x, digits));
    for (int j = 0; j < 32; j++) b[j] = pack_digits(digits + j, 5, 32);
    for (int j = 0; j < 16; j++) b[32 + j] = pack_digits(digits + 160 + j, 5, 16);
    for (int j = 0; j < 4; j++) b[48 + j] = pack_digits(digits + 240 + j, 4, 4);
}

void rq_encode_tq2_0(const float *x, uint8_t *b)
{
    uint8_t codes[256];
    rq_write_f16(b + 64, ternary_256(x, codes));
    for (int j = 0; j < 64; j++) {
        const uint8_t *c = codes + 128 * (j / 32) + j % 32;
        b[j] = (uint8_t)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
    }
}

/* The mean magnitude is the least-squares scale of a sign. */
void rq_encode_q1_0(const float *x, uint8_t *b)
{
    float sum = 0;
    memset(b, 0, 18);
    for (int i = 0; i < 128; i++) {
        sum += fabsf(x[i]);
        if (x[i] >= 0) b[2 + i / 8] |= (uint8_t)(1 << i % 8);
    }
    rq_write_f16(b, rq_f16_scale(sum / 128.0f));
}

/* The fit has the wide end below zero, the codes (-1 .. 2) above: scale and codes both change sign. */
void rq_encode_q2_0(const float *x, uint8_t *b)
{
    float d = rq_f16_scale(-rq_fit_symmetric(x, 64, -2, 1)), inverse = rq_inverse(d);
    memset(b, 0, 18);
    rq_write_f16(b, d);
    for (int i = 0; i < 64; i++)
        b[2 + i / 4] |= (uint8_t)((rq_round_code(x[i] * inverse, -1, 2) + 1) << 2 * (i % 4));
}

/* ---- 4-bit floats
 * ---------------------------------------------------------------------------------------------- */

/* Codes of n elements at scale d; returns the squared error. */
static float e2m1_codes(const float *x, int n, float d, uint8_t *codes)
{
    float inverse = rq_inverse(d), error = 0;
    for (int j = 0; j < n; j++) {
        codes[j] = (uint8_t)rq_nearest_e2m1(x[j] * inverse);
        float e = (float)rq_mxfp4_values[codes[j]] * d - x[j];
        error += e * e;
    }
    return error;
}

/* The largest level, 12 halves, meets max|x| at the exponent of max|x| or one above: the best of three. */
void rq_encode_mxfp4(const float *x, uint8_t *b)
{
    float amax = rq_max_abs(x, 32), best = INFINITY;
    int exponent = 0;
    memset(b, 0, 17);
    if (amax == 0) return;
    frexpf(amax, &exponent); /* amax < 2^exponent */
    for (int e = exponent + 123; e <= exponent + 125; e++) {
        int byte = e < 0 ? 0 : e > 254 ? 254 : e;
        uint8_t codes[32];
        float error = e2m1_codes(x, 32, rq_e8m0_half[byte], codes);
        if (error < best) {
            best = error;
            b[0] = (uint8_t)byte;
            put_nibbles(b + 1, codes);
        }
    }
}

void rq_encode_nvfp4(const float *x, uint8_t *b)
{
    memset(b, 0, 36);
    for (int s = 0; s < 4; s++, x += 16) {
        float target = rq_max_abs(x, 16) / 12.0f, best = INFINITY;
        int near = 0;
        while (near < 0x7e && rq_ue4m3_half[near] < target) near++;
        for (int c = near - 4; c <= near + 3; c++) {
            uint8_t codes[16];
            if (c < 0 || c > 0x7e) continue;
            float error = e2m1_codes(x, 16, rq_ue4m3_half[c], codes);
            if (error >= best) continue;
            best = error;
            b[s] = (uint8_t)c;
            for (int j = 0; j < 8; j++) b[4 + 8 * s + j] = (uint8_t)(codes[j] | codes[j + 8] << 4);
        }
    }
}

/* ---- rq_quantize
 * ----------------------------------------------------------------------------------------------- */

typedef struct encoder {
    void (*block)(const float *x, uint8_t *b);
    void (*row)(const float *x, uint8_t *b, int64_t n);
} encoder;

static const encoder encoders[RQ_TYPE_LIMIT] = {
    [RQ_TYPE_Q4_0] = {rq_encode_q4_0, NULL},       [RQ_TYPE_Q4_1] = {rq_encode_q4_1, NULL},
    [RQ_TYPE_Q5_0] = {rq_encode_q5_0, NULL},       [RQ_TYPE_Q5_1] = {rq_encode_q5_1, NULL},
    [RQ_TYPE_Q8_0] = {rq_encode_q8_0, NULL},       [RQ_TYPE_Q8_1] = {rq_encode_q8_1, NULL},
    [RQ_TYPE_Q2_K] = {rq_encode_q2_k, NULL},       [RQ_TYPE_Q3_K] = {rq_encode_q3_k, NULL},
    [RQ_TYPE_Q4_K] = {rq_encode_q4_k, NULL},       [RQ_TYPE_Q5_K] = {rq_encode_q5_k, NULL},
    [RQ_TYPE_Q6_K] = {rq_encode_q6_k, NULL},       [RQ_TYPE_Q8_K] = {rq_encode_q8_k, NULL},
    [RQ_TYPE_IQ2_XXS] = {NULL, rq_encode_iq2_xxs}, [RQ_TYPE_IQ2_XS] = {NULL, rq_encode_iq2_xs},
    [RQ_TYPE_IQ2_S] = {NULL, rq_encode_iq2_s},     [RQ_TYPE_IQ3_XXS] = {NULL, rq_encode_iq3_xxs},
    [RQ_TYPE_IQ3_S] = {NULL, rq_encode_iq3_s},     [RQ_TYPE_IQ1_S] = {NULL, rq_encode_iq1_s},
    [RQ_TYPE_IQ1_M] = {NULL, rq_encode_iq1_m},     [RQ_TYPE_IQ4_NL] = {rq_encode_iq4_nl, NULL},
    [RQ_TYPE_IQ4_XS] = {rq_encode_iq4_xs, NULL},   [RQ_TYPE_TQ1_0] = {rq_encode_tq1_0, NULL},
    [RQ_TYPE_TQ2_0] = {rq_encode_tq2_0, NULL},     [RQ_TYPE_MXFP4] = {rq_encode_mxfp4, NULL},
    [RQ_TYPE_NVFP4] = {rq_encode_nvfp4, NULL},     [RQ_TYPE_Q1_0] = {rq_encode_q1_0, NULL},
    [RQ_TYPE_Q2_0] = {rq_encode_q2_0, NULL},
};

enum { CHUNK = 4096 }; /* elements cleaned at a time; a multiple of every block */

/* Copies with what no scale field can hold taken out: non-finite becomes 0, magnitudes stop at 2^22. */
static void clean(const float *src, float *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float v = isfinite(src[i]) ? src[i] : 0;
        v = v < 0x1p22f ? v : 0x1p22f;
        dst[i] = v > -0x1p22f ? v : -0x1p22f;
    }
}

static bool encode_plain(rq_type type, const float *src, uint8_t *dst, int64_t n)
{
    switch (type) {
    case RQ_TYPE_F32:
    case RQ_TYPE_F16:
    case RQ_TYPE_BF16:
        return rq_quantize_act(type, src, dst, n);
    case RQ_TYPE_F64:
        for (int64_t i = 0; i < n; i++) {
            double v = (double)src[i];
            memcpy(dst + 8 * i, &v, sizeof v);
        }
        return true;
    default:
        return false;
    }
}

bool rq_quantize(rq_type type, const float *src, void *dst, int64_t n)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    uint8_t *b = dst;
    if (!info) return false;
    if (!info->is_quantized) return encode_plain(type, src, b, n);
    const encoder *e = &encoders[type];
    for (int64_t done = 0; done < n; done += CHUNK) {
        float x[CHUNK];
        int64_t count = n - done < CHUNK ? n - done : CHUNK;
        count -= count % info->block_elems;
        clean(src + done, x, count);
        if (e->row) {
            e->row(x, b, count);
            b += rq_row_bytes(type, (uint64_t)count);
            continue;
        }
        for (int64_t i = 0; i < count; i += info->block_elems, b += info->block_bytes) e->block(x + i, b);
    }
    return true;
}
