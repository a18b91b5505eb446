/* quantize_k.c - encoders of the K types and IQ4_XS: super-blocks of 256 whose sub-block scales are integers.
 * Each sub-block is fitted alone, the super-block's scale follows from the largest, and codes are taken for
 * the scales as they will be read. Layouts: above the decoders. */
#include <math.h>
#include <string.h>

#include "backends/formats/block_write.h"
#include "backends/formats/quantize.h"
#include "backends/formats/quantize_fit.h"
#include "backends/formats/tables.h"

/* Integer scales in lo .. -lo - 1 for `count` real ones; returns the super-block's scale, rounded to f16. */
static float integer_scales(const float *real, int count, int lo, int *scales)
{
    float peak = 0;
    for (int k = 0; k < count; k++)
        if (fabsf(real[k]) > fabsf(peak)) peak = real[k];
    float d = rq_f16_scale(peak / (float)lo), inverse = rq_inverse(d);
    for (int k = 0; k < count; k++) scales[k] = rq_round_code(real[k] * inverse, lo, -lo - 1);
    return d;
}

/* The same for scales that are not negative, in 0 .. hi. */
static float integer_magnitudes(const float *real, int count, int hi, int *scales)
{
    float d = rq_f16_scale(rq_max_abs(real, count) / (float)hi), inverse = rq_inverse(d);
    for (int k = 0; k < count; k++) scales[k] = rq_round_code(real[k] * inverse, 0, hi);
    return d;
}

typedef struct affine_block {
    float d, dmin;
    int scales[16], mins[16];
    uint8_t codes[256];
} affine_block;

/* x ~ d scale code - dmin min in 256 / width sub-blocks; codes 0..hi, scales and mins 0..scale_hi. */
static void fit_affine_block(const float *x, int width, int hi, int scale_hi, affine_block *out)
{
    int count = 256 / width;
    float scales[16], mins[16];
    for (int k = 0; k < count; k++) {
        rq_fit_affine(x + width * k, width, hi, true, &scales[k], &mins[k]);
        mins[k] = -mins[k];
    }
    out->d = integer_magnitudes(scales, count, scale_hi, out->scales);
    out->dmin = integer_magnitudes(mins, count, scale_hi, out->mins);
    for (int i = 0; i < 256; i++) {
        int k = i / width;
        float inverse = rq_inverse(out->d * (float)out->scales[k]), min = out->dmin * (float)out->mins[k];
        out->codes[i] = (uint8_t)rq_round_code((x[i] + min) * inverse, 0, hi);
    }
}

void rq_encode_q2_k(const float *x, uint8_t *b)
{
    affine_block a;
    fit_affine_block(x, 16, 3, 15, &a);
    memset(b, 0, 84);
    for (int k = 0; k < 16; k++) b[k] = (uint8_t)(a.scales[k] | a.mins[k] << 4);
    for (int i = 0; i < 256; i++)
        b[16 + 32 * (i / 128) + i % 32] |= (uint8_t)(a.codes[i] << 2 * (i % 128 / 32));
    rq_write_f16(b + 80, a.d);
    rq_write_f16(b + 82, a.dmin);
}

/* Six-bit scales and minima in twelve bytes, as rq_read_k4_scale takes them apart. */
static void put_k4_scales(uint8_t *s, const int *scales, const int *mins)
{
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(mins[j] | mins[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

void rq_encode_q4_k(const float *x, uint8_t *b)
{
    affine_block a;
    fit_affine_block(x, 32, 15, 63, &a);
    memset(b, 0, 144);
    rq_write_f16(b, a.d);
    rq_write_f16(b + 2, a.dmin);
    put_k4_scales(b + 4, a.scales, a.mins);
    for (int i = 0; i < 256; i++) b[16 + 32 * (i / 64) + i % 32] |= (uint8_t)(a.codes[i] << 4 * (i / 32 % 2));
}

void rq_encode_q5_k(const float *x, uint8_t *b)
{
    affine_block a;
    fit_affine_block(x, 32, 31, 63, &a);
    memset(b, 0, 176);
    rq_write_f16(b, a.d);
    rq_write_f16(b + 2, a.dmin);
    put_k4_scales(b + 4, a.scales, a.mins);
    for (int i = 0; i < 256; i++) {
        b[16 + i % 32] |= (uint8_t)((a.codes[i] >> 4) << i / 32);
        b[48 + 32 * (i / 64) + i % 32] |= (uint8_t)((a.codes[i] & 15) << 4 * (i / 32 % 2));
    }
}

/* x ~ d scale q in sixteen sub-blocks; q in lo .. -lo - 1, stored with -lo added; returns d. */
static float fit_symmetric_block(const float *x, int lo, int scale_lo, int scales[16], uint8_t codes[256])
{
    float real[16];
    for (int k = 0; k < 16; k++) real[k] = rq_fit_symmetric(x + 16 * k, 16, lo, -lo - 1);
    float d = integer_scales(real, 16, scale_lo, scales);
    for (int i = 0; i < 256; i++) {
        int block = i / 16;
        float inverse = rq_inverse(d * (float)scales[block]);
        codes[i] = (uint8_t)(rq_round_code(x[i] * inverse, lo, -lo - 1) - lo);
    }
    return d;
}

void rq_encode_q3_k(const float *x, uint8_t *b)
{
    int scales[16];
    uint8_t codes[256];
    memset(b, 0, 110);
    rq_write_f16(b + 108, fit_symmetric_block(x, -4, -32, scales, codes));
    for (int k = 0; k < 16; k++) {
        int s = scales[k] + 32;
        b[96 + k % 8] |= (uint8_t)((s & 15) << 4 * (k / 8));
        b[104 + k % 4] |= (uint8_t)((s >> 4) << 2 * (k / 4));
    }
    for (int i = 0; i < 256; i++) {
        b[i % 32] |= (uint8_t)((codes[i] >> 2) << i / 32);
        b[32 + 32 * (i / 128) + i % 32] |= (uint8_t)((codes[i] & 3) << 2 * (i % 128 / 32));
    }
}

void rq_encode_q6_k(const float *x, uint8_t *b)
{
    int scales[16];
    uint8_t codes[256];
    memset(b, 0, 210);
    rq_write_f16(b + 208, fit_symmetric_block(x, -32, -128, scales, codes));
    for (int k = 0; k < 16; k++) b[192 + k] = (uint8_t)(int8_t)scales[k];
    for (int i = 0; i < 256; i++) {
        int h = i / 128, g = i % 128 / 32, l = i % 32;
        b[64 * h + 32 * (g % 2) + l] |= (uint8_t)((codes[i] & 15) << 4 * (g / 2));
        b[128 + 32 * h + l] |= (uint8_t)((codes[i] >> 4) << 2 * g);
    }
}

void rq_encode_iq4_xs(const float *x, uint8_t *b)
{
    float real[8];
    int scales[8];
    for (int g = 0; g < 8; g++) real[g] = rq_fit_iq4nl(x + 32 * g, 32);
    float d = integer_scales(real, 8, -32, scales);
    unsigned high = 0;
    memset(b, 0, 136);
    rq_write_f16(b, d);
    for (int g = 0; g < 8; g++) {
        int s = scales[g] + 32;
        high |= (unsigned)(s >> 4) << 2 * g;
        b[4 + g / 2] |= (uint8_t)((s & 15) << 4 * (g % 2));
        float inverse = rq_inverse(d * (float)scales[g]);
        for (int j = 0; j < 16; j++) {
            int low = rq_nearest_iq4nl(x[32 * g + j] * inverse),
                top = rq_nearest_iq4nl(x[32 * g + 16 + j] * inverse);
            b[8 + 16 * g + j] = (uint8_t)(low | top << 4);
        }
    }
    rq_write_u16(b + 2, (uint16_t)high);
}
