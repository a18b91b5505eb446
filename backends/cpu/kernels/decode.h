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

/* ---- types with blocks of 256: `b` is the block ------------------------------------------------------- */

static inline void rq_dec_q2_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 80);
    o->dm[0] = rq_read_f16(b + 82);
    for (int k = 0; k < 16; k++) {
        o->sc[k] = b[k] & 15;
        o->mn[k] = b[k] >> 4;
    }
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)(b[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3);
}

static inline void rq_dec_q3_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 108);
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)rq_read_k3_scale(b + 96, k);
    for (int i = 0; i < 256; i++) {
        int low = b[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        o->q[i] = (int8_t)((low | (b[i % 32] >> i / 32 & 1) << 2) - 4);
    }
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
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)(b[16 + i / 64 * 32 + i % 32] >> (i & 32 ? 4 : 0) & 15);
}

static inline void rq_dec_q5_k(const uint8_t *b, rq_mm_dec *o)
{
    rq_dec_k45_scales(b, o);
    for (int i = 0; i < 256; i++) {
        int low = b[48 + i / 64 * 32 + i % 32] >> (i & 32 ? 4 : 0) & 15;
        o->q[i] = (int8_t)(low | (b[16 + i % 32] >> i / 32 & 1) << 4);
    }
}

static inline void rq_dec_q6_k(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b + 208);
    for (int k = 0; k < 16; k++) o->sc[k] = (int8_t)b[192 + k];
    for (int i = 0; i < 256; i++) {
        int n = i / 128, g = i % 128 / 32, l = i % 32;
        int low = b[64 * n + 32 * (g & 1) + l] >> (g & 2 ? 4 : 0) & 15;
        o->q[i] = (int8_t)((low | (b[128 + 32 * n + l] >> 2 * g & 3) << 4) - 32);
    }
}

/* Eight (four) magnitudes of a grid entry with the signs of `mask` (bit j: element j is negative). */
static inline void rq_dec_signed(int8_t *q, uint64_t entry, unsigned mask, int n)
{
    for (int j = 0; j < n; j++) {
        int v = (int)(entry >> 8 * j & 255);
        q[j] = (int8_t)(mask >> j & 1 ? -v : v);
    }
}

static inline void rq_dec_iq2_xxs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        uint32_t a = rq_ld32(p + 4);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (a >> 28) + 1);
        for (int l = 0; l < 4; l++)
            rq_dec_signed(o->q + 32 * g + 8 * l, rq_iq2xxs_grid[p[l]], rq_ksigns[a >> 7 * l & 127], 8);
    }
}

static inline void rq_dec_iq2_xs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)(2 * (b[66 + k / 2] >> (k & 1 ? 4 : 0) & 15) + 1);
    for (int t = 0; t < 32; t++) {
        unsigned v = rq_ld16(b + 2 + 2 * t);
        rq_dec_signed(o->q + 8 * t, rq_iq2xs_grid[v & 511], rq_ksigns[v >> 9], 8);
    }
}

static inline void rq_dec_iq2_s(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.125f;
    for (int k = 0; k < 16; k++) o->sc[k] = (int16_t)(2 * (b[74 + k / 2] >> (k & 1 ? 4 : 0) & 15) + 1);
    for (int t = 0; t < 32; t++) {
        unsigned index = b[2 + t] | (b[66 + t / 4] >> 2 * (t % 4) & 3u) << 8;
        rq_dec_signed(o->q + 8 * t, rq_iq2s_grid[index], b[34 + t], 8);
    }
}

static inline void rq_dec_iq3_xxs(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b) * 0.25f;
    for (int g = 0; g < 8; g++) {
        uint32_t a = rq_ld32(b + 66 + 4 * g);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (a >> 28) + 1);
        for (int t = 0; t < 8; t++) {
            unsigned mask = rq_ksigns[a >> 7 * (t / 2) & 127] >> (t & 1 ? 4 : 0);
            rq_dec_signed(o->q + 32 * g + 4 * t, rq_iq3xxs_grid[b[2 + 8 * g + t]], mask, 4);
        }
    }
}

static inline void rq_dec_iq3_s(const uint8_t *b, rq_mm_dec *o)
{
    o->d[0] = rq_read_f16(b);
    for (int g = 0; g < 8; g++) {
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (b[106 + g / 2] >> (g & 1 ? 4 : 0) & 15) + 1);
        for (int t = 0; t < 8; t++) {
            unsigned index = b[2 + 8 * g + t] | (b[66 + g] >> t & 1u) << 8;
            unsigned mask = b[74 + 4 * g + t / 2] >> (t & 1 ? 4 : 0);
            rq_dec_signed(o->q + 32 * g + 4 * t, rq_iq3s_grid[index], mask, 4);
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
        for (int r = 0; r < 32; r++)
            o->q[32 * g + r] = rq_iq4nl_values[b[8 + 16 * g + r % 16] >> (r & 16 ? 4 : 0) & 15];
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
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)((b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
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
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = (int8_t)((b[2 + i % 16] >> (i & 16 ? 4 : 0) & 15) - 8);
    }
}

static inline void rq_dec_q4_1(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 20) {
        rq_dec_set_d(o, j, rq_read_f16(b));
        o->dm[j] = rq_read_f16(b + 2);
        for (int i = 0; i < 32; i++) o->q[32 * j + i] = (int8_t)(b[4 + i % 16] >> (i & 16 ? 4 : 0) & 15);
    }
}

static inline void rq_dec_q5_0(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 22) {
        uint32_t high = rq_ld32(b + 2);
        rq_dec_set_d(o, j, rq_read_f16(b));
        for (int i = 0; i < 32; i++) {
            unsigned code = (b[6 + i % 16] >> (i & 16 ? 4 : 0) & 15u) | (high >> i & 1) << 4;
            o->q[32 * j + i] = (int8_t)((int)code - 16);
        }
    }
}

static inline void rq_dec_q5_1(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 24) {
        uint32_t high = rq_ld32(b + 4);
        rq_dec_set_d(o, j, rq_read_f16(b));
        o->dm[j] = rq_read_f16(b + 2);
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = (int8_t)((b[8 + i % 16] >> (i & 16 ? 4 : 0) & 15u) | (high >> i & 1) << 4);
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
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = rq_iq4nl_values[b[2 + i % 16] >> (i & 16 ? 4 : 0) & 15];
    }
}

static inline void rq_dec_mxfp4(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j++, b += 17) {
        rq_dec_set_d(o, j, rq_e8m0_half[b[0]]);
        for (int i = 0; i < 32; i++)
            o->q[32 * j + i] = rq_mxfp4_values[b[1 + i % 16] >> (i & 16 ? 4 : 0) & 15];
    }
}

static inline void rq_dec_nvfp4(const uint8_t *b, int n32, rq_mm_dec *o)
{
    for (int j = 0; j < n32; j += 2, b += 36) {
        for (int s = 0; s < 4; s++) {
            o->d[2 * j + s] = rq_ue4m3_half[b[s]];
            for (int r = 0; r < 16; r++)
                o->q[32 * j + 16 * s + r] = rq_mxfp4_values[b[4 + 8 * s + r % 8] >> (r & 8 ? 4 : 0) & 15];
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

#endif
