/* dequantize_iq.c - decoders of the types whose elements are entries of a grid or of a level table.
 *
 * Conventions as in dequantize.c. A scale nibble s means (s + 1/2) / 4 in IQ2, (s + 1/2) / 2 in IQ3_XXS and
 * 2 s + 1 in IQ3_S and IQ1; the products are exact floats. */
#include "backends/formats/block_read.h"
#include "backends/formats/dequantize.h"
#include "backends/formats/tables.h"

/* dst[j] = scale * entry[j], negated where bit j of `signs` is set; entry: 8 unsigned bytes. */
static inline void put_8(float *dst, float scale, uint64_t entry, unsigned signs)
{
    for (int j = 0; j < 8; j++) {
        float w = scale * (float)(entry >> 8 * j & 255);
        dst[j] = signs >> j & 1 ? -w : w;
    }
}

/* The same for the four bytes of an IQ3 entry. */
static inline void put_4(float *dst, float scale, uint32_t entry, unsigned signs)
{
    for (int j = 0; j < 4; j++) {
        float w = scale * (float)(entry >> 8 * j & 255);
        dst[j] = signs >> j & 1 ? -w : w;
    }
}

/* dst[j] = scale * (entry[j] + delta); entry: 8 signed bytes. */
static inline void put_delta(float *dst, float scale, uint64_t entry, float delta)
{
    for (int j = 0; j < 8; j++) dst[j] = scale * ((float)(int8_t)(entry >> 8 * j & 255) + delta);
}

/* d f16 @0; eight groups of 32 elements @2, eight bytes each: four grid indices, then a u32 with four 7-bit
 * sign codes and, in its top nibble, the scale. */
void rq_dequantize_iq2_xxs(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 66, dst += 256) {
        float d = rq_read_f16(b);
        for (int g = 0; g < 8; g++) {
            const uint8_t *p = b + 2 + 8 * g;
            uint32_t a = rq_read_u32(p + 4);
            float scale = d * (0.5f + (float)(a >> 28)) * 0.25f;
            for (int l = 0; l < 4; l++)
                put_8(dst + 32 * g + 8 * l, scale, rq_iq2xxs_grid[p[l]], rq_ksigns[a >> 7 * l & 127]);
        }
    }
}

/* d f16 @0; per eight elements a u16 @2: 9-bit grid index, 7-bit sign code; scale nibbles @66, one per
 * sixteen. */
void rq_dequantize_iq2_xs(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 74, dst += 256) {
        float d = rq_read_f16(b);
        for (int q = 0; q < 32; q++) {
            unsigned v = rq_read_u16(b + 2 + 2 * q);
            float scale = d * (0.5f + (float)(b[66 + q / 4] >> 4 * (q % 4 / 2) & 15)) * 0.25f;
            put_8(dst + 8 * q, scale, rq_iq2xs_grid[v & 511], rq_ksigns[v >> 9]);
        }
    }
}

/* d f16 @0; low index bytes @2 (32), sign bytes @34 (32), two upper index bits per eight elements @66 (8),
 * scale nibbles @74 (8). */
void rq_dequantize_iq2_s(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 82, dst += 256) {
        float d = rq_read_f16(b);
        for (int q = 0; q < 32; q++) {
            unsigned index = b[2 + q] | (b[66 + q / 4] >> 2 * (q % 4) & 3u) << 8;
            float scale = d * (0.5f + (float)(b[74 + q / 4] >> 4 * (q % 4 / 2) & 15)) * 0.25f;
            put_8(dst + 8 * q, scale, rq_iq2s_grid[index], b[34 + q]);
        }
    }
}

/* d f16 @0; a grid index per four elements @2 (64); per 32 elements a u32 @66 with four 7-bit sign codes and
 * the scale in its top nibble. */
void rq_dequantize_iq3_xxs(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 98, dst += 256) {
        float d = rq_read_f16(b);
        for (int g = 0; g < 8; g++) {
            uint32_t a = rq_read_u32(b + 66 + 4 * g);
            float scale = d * (0.5f + (float)(a >> 28)) * 0.5f;
            for (int t = 0; t < 8; t++) {
                unsigned signs = rq_ksigns[a >> 7 * (t / 2) & 127] >> 4 * (t % 2);
                put_4(dst + 32 * g + 4 * t, scale, rq_iq3xxs_grid[b[2 + 8 * g + t]], signs);
            }
        }
    }
}

/* d f16 @0; low index bytes @2 (64), ninth bits @66 (8), sign bytes @74 (32), scale nibbles @106 (4), one
 * per 32. */
void rq_dequantize_iq3_s(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 110, dst += 256) {
        float d = rq_read_f16(b);
        for (int g = 0; g < 8; g++) {
            float scale = d * (float)(2 * (b[106 + g / 2] >> 4 * (g % 2) & 15) + 1);
            for (int t = 0; t < 8; t++) {
                unsigned index = b[2 + 8 * g + t] | (b[66 + g] >> t & 1u) << 8;
                unsigned signs = (unsigned)b[74 + 4 * g + t / 2] >> 4 * (t % 2);
                put_4(dst + 32 * g + 4 * t, scale, rq_iq3s_grid[index], signs);
            }
        }
    }
}

/* d f16 @0; low index bytes @2 (32); per 32 elements a u16 @34: four times three upper index bits, a 3-bit
 * scale, and the sign of delta = 1/8 in bit 15. */
void rq_dequantize_iq1_s(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 50, dst += 256) {
        float d = rq_read_f16(b);
        for (int g = 0; g < 8; g++) {
            unsigned h = rq_read_u16(b + 34 + 2 * g);
            float scale = d * (float)(2 * (h >> 12 & 7) + 1), delta = h & 0x8000 ? -0.125f : 0.125f;
            for (int l = 0; l < 4; l++) {
                unsigned index = b[2 + 4 * g + l] | (h >> 3 * l & 7) << 8;
                put_delta(dst + 32 * g + 8 * l, scale, rq_iq1s_grid[index], delta);
            }
        }
    }
}

/* Low index bytes @0 (32); per eight elements a nibble @32 (16): three upper index bits and the sign of
 * delta; four u16 @48: four 3-bit scales each, one per sixteen elements, and a quarter of d's bits. */
void rq_dequantize_iq1_m(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 56, dst += 256) {
        float d = rq_read_iq1m_d(b + 48);
        for (int q = 0; q < 32; q++) {
            unsigned nibble = b[32 + q / 2] >> 4 * (q % 2) & 15u;
            int k = q / 2;
            float scale = d * (float)(2 * (rq_read_u16(b + 48 + 2 * (k / 4)) >> 3 * (k % 4) & 7) + 1);
            put_delta(dst + 8 * q, scale, rq_iq1s_grid[b[q] | (nibble & 7) << 8],
                      nibble & 8 ? -0.125f : 0.125f);
        }
    }
}

/* d f16 @0, qs @2 as Q4_0. w = d level[code] */
void rq_dequantize_iq4_nl(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 32; n -= 32, b += 18, dst += 32) {
        float d = rq_read_f16(b);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)rq_iq4nl_values[b[2 + j] & 15];
            dst[j + 16] = d * (float)rq_iq4nl_values[b[2 + j] >> 4];
        }
    }
}

/* d f16 @0, upper two bits of the eight scales u16 @2, low four @4 (4), qs @8: sixteen bytes for each 32
 * elements, low nibbles first. w = d (scale - 32) level[code] */
void rq_dequantize_iq4_xs(const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    for (; n >= 256; n -= 256, b += 136, dst += 256) {
        float d = rq_read_f16(b);
        unsigned high = rq_read_u16(b + 2);
        for (int g = 0; g < 8; g++) {
            int ls = (b[4 + g / 2] >> 4 * (g % 2) & 15) | (int)(high >> 2 * g & 3) << 4;
            float scale = d * (float)(ls - 32);
            const uint8_t *q = b + 8 + 16 * g;
            for (int j = 0; j < 16; j++) {
                dst[32 * g + j] = scale * (float)rq_iq4nl_values[q[j] & 15];
                dst[32 * g + 16 + j] = scale * (float)rq_iq4nl_values[q[j] >> 4];
            }
        }
    }
}
