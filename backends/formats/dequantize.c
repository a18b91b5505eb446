/* dequantize.c - decoders of the plain, classic, K, ternary and 4-bit float types; dequantize_iq.c has the
 * rest.
 *
 * The layout of a block stands above its decoder; b[k] is byte k, fields are little-endian. Layouts are facts
 * of the ggml library's format (ggml-org/ggml, src/ggml-common.h).
 *
 * Bit-exactness: without a minimum the product of f16 scale, integer scale and code is exactly a float, so
 * the order of multiplication shows only in the sign of a zero; with one, the final subtraction or addition
 * is the single rounding. The expressions keep the reference's order so that zeros get the same sign. */
#include "backends/formats/dequantize.h"

#include <string.h>

#include "backends/formats/block_read.h"
#include "backends/formats/tables.h"
#include "backends/formats/types.h"

void rq_dequantize_f32(const void *src, float *dst, int64_t n)
{
    if (n > 0) memcpy(dst, src, (size_t)n * sizeof *dst);
}

void rq_dequantize_f16(const void *src, float *dst, int64_t n)
{
    rq_f16_to_f32_row(src, dst, n);
}

void rq_dequantize_bf16(const void *src, float *dst, int64_t n)
{
    rq_bf16_to_f32_row(src, dst, n);
}

/* Narrowed with one rounding. */
void rq_dequantize_f64(const void *src, float *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double v;
        memcpy(&v, (const uint8_t *)src + 8 * i, sizeof v);
        dst[i] = (float)v;
    }
}

/* ---- classic types: 32 elements; byte j of qs holds elements j (low nibble) and j + 16 (high)
 * ---------------- */

/* d f16 @0, qs @2. w = (code - 8) d */
void rq_dequantize_q4_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 18, dst += 32) {
        float d = rq_read_f16(b);
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)((b[2 + j] & 15) - 8) * d;
            dst[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
        }
    }
}

/* d f16 @0, m f16 @2, qs @4. w = code d + m */
void rq_dequantize_q4_1(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 20, dst += 32) {
        float d = rq_read_f16(b), m = rq_read_f16(b + 2);
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)(b[4 + j] & 15) * d + m;
            dst[j + 16] = (float)(b[4 + j] >> 4) * d + m;
        }
    }
}

/* d f16 @0, qh u32 @2 (bit i: fifth bit of element i), qs @6. w = (code - 16) d */
void rq_dequantize_q5_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 22, dst += 32) {
        float d = rq_read_f16(b);
        uint32_t qh = rq_read_u32(b + 2);
        for (int j = 0; j < 16; j++) {
            int lo = (b[6 + j] & 15) | (int)(qh >> j & 1) << 4;
            int hi = b[6 + j] >> 4 | (int)(qh >> (j + 16) & 1) << 4;
            dst[j] = (float)(lo - 16) * d;
            dst[j + 16] = (float)(hi - 16) * d;
        }
    }
}

/* d f16 @0, m f16 @2, qh u32 @4, qs @8. w = code d + m */
void rq_dequantize_q5_1(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 24, dst += 32) {
        float d = rq_read_f16(b), m = rq_read_f16(b + 2);
        uint32_t qh = rq_read_u32(b + 4);
        for (int j = 0; j < 16; j++) {
            int lo = (b[8 + j] & 15) | (int)(qh >> j & 1) << 4;
            int hi = b[8 + j] >> 4 | (int)(qh >> (j + 16) & 1) << 4;
            dst[j] = (float)lo * d + m;
            dst[j + 16] = (float)hi * d + m;
        }
    }
}

/* d f16 @0, qs i8 @2. w = q d */
void rq_dequantize_q8_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 34, dst += 32) {
        float d = rq_read_f16(b);
        for (int j = 0; j < 32; j++) dst[j] = (float)(int8_t)b[2 + j] * d;
    }
}

/* d f16 @0, s f16 @2 (d times the sum of the codes), qs i8 @4. w = q d. Activations only. */
void rq_dequantize_q8_1(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 36, dst += 32) {
        float d = rq_read_f16(b);
        for (int j = 0; j < 32; j++) dst[j] = (float)(int8_t)b[4 + j] * d;
    }
}

/* ---- K types: 256 elements
 * --------------------------------------------------------------------------------- */

/* scales @0 (16: scale low nibble, minimum high), qs @16 (64), d f16 @80, dmin f16 @82.
 * Element i: 2 bits at shift 2 ((i % 128) / 32) of qs[32 (i / 128) + i % 32]; sub-block i / 16.
 * w = d scale code - dmin min */
void rq_dequantize_q2_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 84, dst += 256) {
        float d = rq_read_f16(b + 80), dmin = rq_read_f16(b + 82);
        for (int k = 0; k < 16; k++) {
            float scale = d * (float)(b[k] & 15), min = dmin * (float)(b[k] >> 4);
            const uint8_t *q = b + 16 + 32 * (k / 8) + 16 * (k % 2);
            int shift = 2 * (k % 8 / 2);
            for (int l = 0; l < 16; l++) dst[16 * k + l] = scale * (float)(q[l] >> shift & 3) - min;
        }
    }
}

/* hmask @0 (32), qs @32 (64), scales @96 (12), d f16 @108. Low two bits as Q2_K; the third is bit i / 32 of
 * hmask[i % 32], and where it is clear 4 is taken away. w = d scale code */
void rq_dequantize_q3_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 110, dst += 256) {
        float d = rq_read_f16(b + 108);
        for (int k = 0; k < 16; k++) {
            float scale = d * (float)rq_read_k3_scale(b + 96, k);
            const uint8_t *q = b + 32 + 32 * (k / 8) + 16 * (k % 2), *h = b + 16 * (k % 2);
            int shift = 2 * (k % 8 / 2), bit = k / 2;
            for (int l = 0; l < 16; l++) {
                int code = ((q[l] >> shift & 3) | (h[l] >> bit & 1) << 2) - 4;
                dst[16 * k + l] = scale * (float)code;
            }
        }
    }
}

/* d f16 @0, dmin f16 @2, scales @4 (12), qs @16 (128). Byte 32 (j / 2) + i % 32 holds sub-block j = i / 32:
 * low nibble where j is even. w = d scale code - dmin min */
void rq_dequantize_q4_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 144, dst += 256) {
        float d = rq_read_f16(b), dmin = rq_read_f16(b + 2);
        for (int j = 0; j < 8; j++) {
            int sc, m;
            rq_read_k4_scale(b + 4, j, &sc, &m);
            float scale = d * (float)sc, min = dmin * (float)m;
            const uint8_t *q = b + 16 + 32 * (j / 2);
            int shift = 4 * (j % 2);
            for (int l = 0; l < 32; l++) dst[32 * j + l] = scale * (float)(q[l] >> shift & 15) - min;
        }
    }
}

/* d f16 @0, dmin f16 @2, scales @4 (12), qh @16 (32), qs @48 (128). As Q4_K; the fifth bit of an element of
 * sub-block j is bit j of qh[i % 32]. */
void rq_dequantize_q5_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 176, dst += 256) {
        float d = rq_read_f16(b), dmin = rq_read_f16(b + 2);
        for (int j = 0; j < 8; j++) {
            int sc, m;
            rq_read_k4_scale(b + 4, j, &sc, &m);
            float scale = d * (float)sc, min = dmin * (float)m;
            const uint8_t *q = b + 48 + 32 * (j / 2), *h = b + 16;
            int shift = 4 * (j % 2);
            for (int l = 0; l < 32; l++) {
                int code = (q[l] >> shift & 15) | (h[l] >> j & 1) << 4;
                dst[32 * j + l] = scale * (float)code - min;
            }
        }
    }
}

/* ql @0 (128), qh @128 (64), scales i8 @192 (16), d f16 @208. With half h = i / 128 and g = (i % 128) / 32:
 * low four bits in ql[64 h + 32 (g % 2) + i % 32] (high nibble for g >= 2), upper two at shift 2 g of
 * qh[32 h + i % 32]. w = d scale (code - 32) */
void rq_dequantize_q6_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 210, dst += 256) {
        float d = rq_read_f16(b + 208);
        for (int k = 0; k < 16; k++) {
            int h = k / 8, g = k % 8 / 2, first = 16 * (k % 2);
            const uint8_t *ql = b + 64 * h + 32 * (g % 2) + first, *qh = b + 128 + 32 * h + first;
            float scale = d * (float)(int8_t)b[192 + k];
            for (int l = 0; l < 16; l++) {
                int code = (ql[l] >> 4 * (g / 2) & 15) | (qh[l] >> 2 * g & 3) << 4;
                dst[16 * k + l] = scale * (float)(code - 32);
            }
        }
    }
}

/* d f32 @0, qs i8 @4 (256), sums of sixteen codes i16 @260 (16). w = d q, rounded once. Activations only. */
void rq_dequantize_q8_k(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 292, dst += 256) {
        float d = rq_read_f32(b);
        for (int l = 0; l < 256; l++) dst[l] = d * (float)(int8_t)b[4 + l];
    }
}

/* ---- ternary and few-bit types
 * ------------------------------------------------------------------------------- */

/* qs @0 (48), qh @48 (4), d f16 @52. Elements 0..159: digit i / 32 of byte i % 32; 160..239: digit r / 16 of
 * byte 32 + r % 16, r = i - 160; 240..255: digit r / 4 of byte 48 + r % 4, r = i - 240. w = (digit - 1) d */
void rq_dequantize_tq1_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 54, dst += 256) {
        float d = rq_read_f16(b + 52);
        for (int i = 0; i < 160; i++) dst[i] = (float)(rq_read_tq1_digit(b[i % 32], i / 32) - 1) * d;
        for (int r = 0; r < 80; r++)
            dst[160 + r] = (float)(rq_read_tq1_digit(b[32 + r % 16], r / 16) - 1) * d;
        for (int r = 0; r < 16; r++) dst[240 + r] = (float)(rq_read_tq1_digit(b[48 + r % 4], r / 4) - 1) * d;
    }
}

/* qs @0 (64), d f16 @64. Two bits at the places of Q2_K. w = (code - 1) d; code 3 gives 2 d. */
void rq_dequantize_tq2_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 66, dst += 256) {
        float d = rq_read_f16(b + 64);
        for (int g = 0; g < 8; g++) {
            const uint8_t *q = b + 32 * (g / 4);
            int shift = 2 * (g % 4);
            for (int l = 0; l < 32; l++) dst[32 * g + l] = (float)((q[l] >> shift & 3) - 1) * d;
        }
    }
}

/* d f16 @0, one bit per element @2, first element in the lowest bit. w = d where it is set, else -d */
void rq_dequantize_q1_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 128; n -= 128, b += 18, dst += 128) {
        float d = rq_read_f16(b);
        for (int i = 0; i < 128; i++) dst[i] = b[2 + i / 8] >> i % 8 & 1 ? d : -d;
    }
}

/* d f16 @0, two bits per element @2, in order. w = (code - 1) d */
void rq_dequantize_q2_0(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 64; n -= 64, b += 18, dst += 64) {
        float d = rq_read_f16(b);
        for (int i = 0; i < 64; i++) dst[i] = (float)((b[2 + i / 4] >> 2 * (i % 4) & 3) - 1) * d;
    }
}

/* ---- 4-bit floats
 * -------------------------------------------------------------------------------------------- */

/* e u8 @0, qs @1 as Q4_0. w = level 2^(e - 128): the levels are twice E2M1's, and every e is a number. */
void rq_dequantize_mxfp4(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 17, dst += 32) {
        float d = rq_e8m0_half[b[0]];
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)rq_mxfp4_values[b[1 + j] & 15] * d;
            dst[j + 16] = (float)rq_mxfp4_values[b[1 + j] >> 4] * d;
        }
    }
}

/* Four UE4M3 scales @0, qs @4: eight bytes for each sixteen elements, low nibbles first. The tensor's own
 * scale (a sibling tensor) multiplies the layer's output, not here. */
void rq_dequantize_nvfp4(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 64; n -= 64, b += 36, dst += 64) {
        for (int s = 0; s < 4; s++) {
            float d = rq_ue4m3_half[b[s]];
            for (int j = 0; j < 8; j++) {
                uint8_t q = b[4 + 8 * s + j];
                dst[16 * s + j] = (float)rq_mxfp4_values[q & 15] * d;
                dst[16 * s + 8 + j] = (float)rq_mxfp4_values[q >> 4] * d;
            }
        }
    }
}
