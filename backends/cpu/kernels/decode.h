/* decode.h - plain decoders of one span (256 elements of a row): integer codes, integer scales, float scales.
 *
 * They state for every quantised type how the matrix kernels see it,
 *     256-element types:  w[k] = d[0] * sc[k / 16] * q[k] - dm[0] * mn[k / 16]
 *     32-element types:   w[k] = d[k / 16] * q[k] + dm[k / 32]
 * with sc, q, mn integers. The scalar kernels run on them, the vector kernels decode in registers to the same
 * integers. Layouts: backends/formats/dequantize.c. */
#ifndef RQ_CPU_DECODE_H
#define RQ_CPU_DECODE_H

#include "backends/cpu/kernels/kernel.h"
#include "backends/formats/block_read.h"
#include "backends/formats/tables.h"

typedef struct rq_mm_dec {
    int8_t q[256];
    int16_t sc[16], mn[16];
    float d[16], dm[8];
} rq_mm_dec;

/* Loops over 16 and 32 bytes at a time, so that compilers turn them into vector code. */

/* 64 bytes of two-bit codes: element 128 n + 32 j + l in bits 2 j of byte 32 n + l. */
static inline void rq_dec_two_bits(const uint8_t *b, int8_t *q)
{
    for (int n = 0; n < 2; n++, b += 32, q += 128) {
        for (int l = 0; l < 32; l++) {
            q[l] = (int8_t)(b[l] & 3);
            q[l + 32] = (int8_t)(b[l] >> 2 & 3);
            q[l + 64] = (int8_t)(b[l] >> 4 & 3);
            q[l + 96] = (int8_t)(b[l] >> 6);
        }
    }
}

/* n bytes: low nibbles, then high ones. */
static inline void rq_dec_nibbles(const uint8_t *b, int8_t *q, int n)
{
    for (int l = 0; l < n; l++) {
        q[l] = (int8_t)(b[l] & 15);
        q[n + l] = (int8_t)(b[l] >> 4);
    }
}

/* The same through a table of 16 levels. */
static inline void rq_dec_levels(const uint8_t *b, int8_t *q, const int8_t levels[16], int n)
{
    for (int l = 0; l < n; l++) {
        q[l] = levels[b[l] & 15];
        q[n + l] = levels[b[l] >> 4];
    }
}

static inline void rq_dec_add(int8_t *q, int n, int value)
{
    for (int l = 0; l < n; l++) q[l] = (int8_t)(q[l] + value);
}

/* ---- types with blocks of 256: `b` is the block ------------------------------------------------------- */

static inline void rq_dec_q2_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 80);
    o->dm[0] = rq_read_f16(b + 82);
    for (int k = 0; k < 16; k++) {
        o->sc[k] = b[k] & 15;
        o->mn[k] = b[k] >> 4;
    }
    rq_dec_two_bits(b + 16, o->q);
}

static inline void rq_dec_q3_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 108);
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)rq_read_k3_scale(b + 96, k);
    rq_dec_two_bits(b + 32, o->q);
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 32; l++) o->q[32 * j + l] = (int8_t)(o->q[32 * j + l] + (b[l] >> j & 1) * 4 - 4);
}

static inline void rq_dec_k45_scales(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b);
    o->dm[0] = rq_read_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        int sc, mn;
        rq_read_k4_scale(b + 4, j, &sc, &mn);
        o->sc[2 * j] = o->sc[2 * j + 1] = (int16_t)sc;
        o->mn[2 * j] = o->mn[2 * j + 1] = (int16_t)mn;
    }
}

static inline void rq_dec_q4_k(const uint8_t *b, rq_mm_dec *o)
{
    rq_dec_k45_scales(b, o);
    for (int n = 0; n < 4; n++) rq_dec_nibbles(b + 16 + 32 * n, o->q + 64 * n, 32);
}

static inline void rq_dec_q5_k(const uint8_t *b, rq_mm_dec *o)
{
    rq_dec_k45_scales(b, o);
    for (int n = 0; n < 4; n++) rq_dec_nibbles(b + 48 + 32 * n, o->q + 64 * n, 32);
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 32; l++)
            o->q[32 * j + l] = (int8_t)(o->q[32 * j + l] + (b[16 + l] >> j & 1) * 16);
}

static inline void rq_dec_q6_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 208);
    for (int k = 0; k < 16; k++) o->sc[k] = (int8_t)b[192 + k];
    for (int n = 0; n < 2; n++) {
        const uint8_t *low = b + 64 * n, *high = b + 128 + 32 * n;
        int8_t *q = o->q + 128 * n;
        for (int l = 0; l < 32; l++) {
            q[l] = (int8_t)((low[l] & 15) + (high[l] & 3) * 16 - 32);
            q[l + 32] = (int8_t)((low[l + 32] & 15) + (high[l] >> 2 & 3) * 16 - 32);
            q[l + 64] = (int8_t)((low[l] >> 4) + (high[l] >> 4 & 3) * 16 - 32);
            q[l + 96] = (int8_t)((low[l + 32] >> 4) + (high[l] >> 6) * 16 - 32);
        }
    }
}

/* Magnitudes of a grid entry with the signs of `mask` (bit j: element j is negative). */
static inline void rq_dec_signed(int8_t *q, uint64_t entry, unsigned mask)
{
    int8_t value[8], sign[8];
    memcpy(value, &entry, 8);
    memcpy(sign, &rq_sign_bytes[mask], 8);
    for (int j = 0; j < 8; j++) q[j] = (int8_t)((value[j] ^ sign[j]) - sign[j]);
}

static inline void rq_dec_iq2_xxs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        uint32_t a = rq_ld32(p + 4);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (a >> 28) + 1);
        for (int l = 0; l < 4; l++)
            rq_dec_signed(o->q + 32 * g + 8 * l, rq_iq2xxs_grid[p[l]], rq_ksigns[a >> 7 * l & 127]);
    }
}

static inline void rq_dec_iq2_xs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)(2 * (b[66 + k / 2] >> (k & 1 ? 4 : 0) & 15) + 1);
    for (int t = 0; t < 32; t++) {
        unsigned v = rq_ld16(b + 2 + 2 * t);
        rq_dec_signed(o->q + 8 * t, rq_iq2xs_grid[v & 511], rq_ksigns[v >> 9]);
    }
}

static inline void rq_dec_iq2_s(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)(2 * (b[74 + k / 2] >> (k & 1 ? 4 : 0) & 15) + 1);
    for (int t = 0; t < 32; t++) {
        unsigned index = b[2 + t] | (b[66 + t / 4] >> 2 * (t % 4) & 3u) << 8;
        rq_dec_signed(o->q + 8 * t, rq_iq2s_grid[index], b[34 + t]);
    }
}

static inline void rq_dec_iq3_xxs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.25f;
    for (int g = 0; g < 8; g++) {
        uint32_t a = rq_ld32(b + 66 + 4 * g);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (a >> 28) + 1);
        for (int l = 0; l < 4; l++) {
            const uint8_t *p = b + 2 + 8 * g + 2 * l;
            rq_dec_signed(o->q + 32 * g + 8 * l, rq_iq3xxs_grid[p[0]] | (uint64_t)rq_iq3xxs_grid[p[1]] << 32,
                          rq_ksigns[a >> 7 * l & 127]);
        }
    }
}

static inline void rq_dec_iq3_s(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b);
    for (int g = 0; g < 8; g++) {
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (b[106 + g / 2] >> (g & 1 ? 4 : 0) & 15) + 1);
        for (int l = 0; l < 4; l++) {
            const uint8_t *p = b + 2 + 8 * g + 2 * l;
            unsigned high = b[66 + g] >> 2 * l;
            uint64_t first = rq_iq3s_grid[p[0] | (high & 1) << 8],
                     second = rq_iq3s_grid[p[1] | (high & 2) << 7];
            rq_dec_signed(o->q + 32 * g + 8 * l, first | second << 32, b[74 + 4 * g + l]);
        }
    }
}

/* 8 * (grid + delta) with delta = +-1/8. */
static inline void rq_dec_iq1_group(int8_t *q, uint64_t entry, int delta8)
{
    for (int j = 0; j < 8; j++) q[j] = (int8_t)(8 * (int8_t)(entry >> 8 * j & 255) + delta8);
}

static inline void rq_dec_iq1_s(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int g = 0; g < 8; g++) {
        unsigned h = rq_ld16(b + 34 + 2 * g);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (h >> 12 & 7) + 1);
        for (int l = 0; l < 4; l++)
            rq_dec_iq1_group(o->q + 32 * g + 8 * l, rq_iq1s_grid[b[2 + 4 * g + l] | (h >> 3 * l & 7) << 8],
                             h & 0x8000 ? -1 : 1);
    }
}

static inline void rq_dec_iq1_m(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_iq1m_d(b + 48) * 0.125f;
    for (int k = 0; k < 16; k++)
        o->sc[k] = (int16_t)(2 * (rq_ld16(b + 48 + 2 * (k / 4)) >> 3 * (k % 4) & 7) + 1);
    for (int t = 0; t < 32; t++) {
        unsigned nib = b[32 + t / 2] >> (t & 1 ? 4 : 0) & 15;
        rq_dec_iq1_group(o->q + 8 * t, rq_iq1s_grid[b[t] | (nib & 7) << 8], nib & 8 ? -1 : 1);
    }
}

static inline void rq_dec_iq4_xs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b);
    unsigned high = rq_ld16(b + 2);
    for (int g = 0; g < 8; g++) {
        int ls = (b[4 + g / 2] >> (g & 1 ? 4 : 0) & 15) | (int)(high >> 2 * g & 3) << 4;
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(ls - 32);
        rq_dec_levels(b + 8 + 16 * g, o->q + 32 * g, rq_iq4nl_values, 16);
    }
}

static inline void rq_dec_tq1_0(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 52);
    for (int k = 0; k < 16; k++) o->sc[k] = 1;
    for (int i = 0; i < 160; i++) o->q[i] = (int8_t)(rq_read_tq1_digit(b[i % 32], i / 32) - 1);
    for (int r = 0; r < 80; r++) o->q[160 + r] = (int8_t)(rq_read_tq1_digit(b[32 + r % 16], r / 16) - 1);
    for (int r = 0; r < 16; r++) o->q[240 + r] = (int8_t)(rq_read_tq1_digit(b[48 + r % 4], r / 4) - 1);
}

static inline void rq_dec_tq2_0(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 64);
    for (int k = 0; k < 16; k++) o->sc[k] = 1;
    rq_dec_two_bits(b, o->q);
    rq_dec_add(o->q, 256, -1);
}

/* ---- types with blocks of 32, 64, 128: `b` is the span's first block, n32 its groups of 32 ------------- */

/* d is one value per 16 elements so that NVFP4 fits; the others write it twice. */
static inline void rq_dec_set_d(rq_mm_dec *o, int j, float d)
{
    o->d[2 * j] = o->d[2 * j + 1] = d;
}

static inline void rq_dec_q4_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 18) {
        rq_dec_set_d(o, j, rq_read_f16(b));
        rq_dec_nibbles(b + 2, o->q + 32 * j, 16);
        rq_dec_add(o->q + 32 * j, 32, -8);
    }
}

static inline void rq_dec_q4_1(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 20) {
        rq_dec_set_d(o, j, rq_read_f16(b));
        o->dm[j] = rq_read_f16(b + 2);
        rq_dec_nibbles(b + 4, o->q + 32 * j, 16);
    }
}

static inline void rq_dec_q5_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 22) {
        uint32_t high = rq_ld32(b + 2);
        rq_dec_set_d(o, j, rq_read_f16(b));
        rq_dec_nibbles(b + 6, o->q + 32 * j, 16);
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = (int8_t)(o->q[32 * j + i] + (int)(high >> i & 1) * 16 - 16);
    }
}

static inline void rq_dec_q5_1(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 24) {
        uint32_t high = rq_ld32(b + 4);
        rq_dec_set_d(o, j, rq_read_f16(b));
        o->dm[j] = rq_read_f16(b + 2);
        rq_dec_nibbles(b + 8, o->q + 32 * j, 16);
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = (int8_t)(o->q[32 * j + i] + (int)(high >> i & 1) * 16);
    }
}

static inline void rq_dec_q8_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 34) {
        rq_dec_set_d(o, j, rq_read_f16(b));
        memcpy(o->q + 32 * j, b + 2, 32);
    }
}

static inline void rq_dec_iq4_nl(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 18) {
        rq_dec_set_d(o, j, rq_read_f16(b));
        rq_dec_levels(b + 2, o->q + 32 * j, rq_iq4nl_values, 16);
    }
}

static inline void rq_dec_mxfp4(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 17) {
        rq_dec_set_d(o, j, rq_e8m0_half[b[0]]);
        rq_dec_levels(b + 1, o->q + 32 * j, rq_mxfp4_values, 16);
    }
}

static inline void rq_dec_nvfp4(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j += 2, b += 36) {
        for (int s = 0; s < 4; s++) {
            o->d[2 * j + s] = rq_ue4m3_half[b[s]];
            rq_dec_levels(b + 4 + 8 * s, o->q + 32 * j + 16 * s, rq_mxfp4_values, 8);
        }
    }
}

static inline void rq_dec_q1_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j += 4, b += 18) {
        for (int s = 0; s < 4; s++) rq_dec_set_d(o, j + s, rq_read_f16(b));
        for (int i = 0; i < 128; i++) o->q[32 * j + i] = b[2 + i / 8] >> i % 8 & 1 ? 1 : -1;
    }
}

static inline void rq_dec_q2_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j += 2, b += 18) {
        for (int s = 0; s < 2; s++) rq_dec_set_d(o, j + s, rq_read_f16(b));
        for (int i = 0; i < 64; i++) o->q[32 * j + i] = (int8_t)((b[2 + i / 4] >> 2 * (i % 4) & 3) - 1);
    }
}

/* ---- the choice by type ------------------------------------------------------------------------------- */

static inline void rq_decode256(rq_type type, const uint8_t *b, rq_mm_dec *o)
{
    switch (type) {
    case RQ_TYPE_Q2_K:
        rq_dec_q2_k(b, o);
        break;
    case RQ_TYPE_Q3_K:
        rq_dec_q3_k(b, o);
        break;
    case RQ_TYPE_Q4_K:
        rq_dec_q4_k(b, o);
        break;
    case RQ_TYPE_Q5_K:
        rq_dec_q5_k(b, o);
        break;
    case RQ_TYPE_Q6_K:
        rq_dec_q6_k(b, o);
        break;
    case RQ_TYPE_IQ2_XXS:
        rq_dec_iq2_xxs(b, o);
        break;
    case RQ_TYPE_IQ2_XS:
        rq_dec_iq2_xs(b, o);
        break;
    case RQ_TYPE_IQ2_S:
        rq_dec_iq2_s(b, o);
        break;
    case RQ_TYPE_IQ3_XXS:
        rq_dec_iq3_xxs(b, o);
        break;
    case RQ_TYPE_IQ3_S:
        rq_dec_iq3_s(b, o);
        break;
    case RQ_TYPE_IQ1_S:
        rq_dec_iq1_s(b, o);
        break;
    case RQ_TYPE_IQ1_M:
        rq_dec_iq1_m(b, o);
        break;
    case RQ_TYPE_IQ4_XS:
        rq_dec_iq4_xs(b, o);
        break;
    case RQ_TYPE_TQ1_0:
        rq_dec_tq1_0(b, o);
        break;
    default:
        rq_dec_tq2_0(b, o);
        break;
    }
}

static inline void rq_decode32(rq_type type, const uint8_t *b, int n32, rq_mm_dec *o)
{
    switch (type) {
    case RQ_TYPE_Q4_0:
        rq_dec_q4_0(b, n32, o);
        break;
    case RQ_TYPE_Q4_1:
        rq_dec_q4_1(b, n32, o);
        break;
    case RQ_TYPE_Q5_0:
        rq_dec_q5_0(b, n32, o);
        break;
    case RQ_TYPE_Q5_1:
        rq_dec_q5_1(b, n32, o);
        break;
    case RQ_TYPE_Q8_0:
        rq_dec_q8_0(b, n32, o);
        break;
    case RQ_TYPE_IQ4_NL:
        rq_dec_iq4_nl(b, n32, o);
        break;
    case RQ_TYPE_MXFP4:
        rq_dec_mxfp4(b, n32, o);
        break;
    case RQ_TYPE_NVFP4:
        rq_dec_nvfp4(b, n32, o);
        break;
    case RQ_TYPE_Q1_0:
        rq_dec_q1_0(b, n32, o);
        break;
    default:
        rq_dec_q2_0(b, n32, o);
        break;
    }
}

/* Types with a minimum: dm is meant. */
static inline bool rq_has_min(rq_type type)
{
    return type == RQ_TYPE_Q2_K || type == RQ_TYPE_Q4_K || type == RQ_TYPE_Q5_K || type == RQ_TYPE_Q4_1 ||
           type == RQ_TYPE_Q5_1;
}

#endif
