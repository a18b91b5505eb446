/* dot_ref.c - scalar dot products, see dot_ref.h.
 *
 * Notation: dx, dy the scales of weight and activation block, S an exact integer sum of weight code times
 * activation code. The float expression above each function is evaluated exactly as bracketed (no
 * contraction: the build sets -ffp-contract=off). The order is that of ggml's scalar code (ggml-org/ggml,
 * ggml-cpu/quants.c).
 *
 * Where codes carry an offset k the sum is written S(code q) - k S(q): GCC 12 miscompiles the loop over
 * (code - k) q when it may use VNNI instructions. */
#include "backends/formats/dot_ref.h"

#include <math.h>

#include "backends/formats/block_read.h"
#include "backends/formats/tables.h"

enum { Q8_0_BYTES = 34, Q8_1_BYTES = 36, Q8_K_BYTES = 292, Q8_K_QS = 4, Q8_K_SUMS = 260 };

static int code_q(const uint8_t *codes, const uint8_t *q, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) sum += codes[i] * (int8_t)q[i];
    return sum;
}

static int level_q(const int8_t *levels, const uint8_t *q, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) sum += levels[i] * (int8_t)q[i];
    return sum;
}

static int sum_q(const uint8_t *q, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) sum += (int8_t)q[i];
    return sum;
}

/* Sum of entry[j] q[j] over `n` unsigned bytes, negated where bit j of `signs` is set. */
static int grid_q(uint64_t entry, unsigned signs, const uint8_t *q, int n)
{
    int sum = 0;
    for (int j = 0; j < n; j++) {
        int p = (int)(entry >> 8 * j & 255) * (int8_t)q[j];
        sum += signs >> j & 1 ? -p : p;
    }
    return sum;
}

static int bsum(const uint8_t *y, int k)
{
    return (int16_t)rq_read_u16(y + Q8_K_SUMS + 2 * k);
}

static void nibbles_32(const uint8_t *qs, uint8_t codes[32])
{
    for (int j = 0; j < 16; j++) {
        codes[j] = qs[j] & 15;
        codes[j + 16] = qs[j] >> 4;
    }
}

static void five_bits_32(const uint8_t *qs, uint32_t qh, uint8_t codes[32])
{
    nibbles_32(qs, codes);
    for (int j = 0; j < 32; j++) codes[j] |= (uint8_t)((qh >> j & 1) << 4);
}

static void levels_32(const uint8_t *qs, const int8_t *table, int8_t levels[32])
{
    for (int j = 0; j < 16; j++) {
        levels[j] = table[qs[j] & 15];
        levels[j + 16] = table[qs[j] >> 4];
    }
}

/* ---- types that meet Q8_0 or Q8_1 ---------------------------------------------------------------------- */

/* acc += (S dx) dy */
static float dot_q4_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 18, y += Q8_0_BYTES) {
        uint8_t codes[32];
        nibbles_32(x + 2, codes);
        int sum = code_q(codes, y + 2, 32) - 8 * sum_q(y + 2, 32);
        acc += ((float)sum * rq_read_f16(x)) * rq_read_f16(y);
    }
    return acc;
}

/* acc += (dx dy) S */
static float dot_q5_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 22, y += Q8_0_BYTES) {
        uint8_t codes[32];
        five_bits_32(x + 6, rq_read_u32(x + 2), codes);
        int sum = code_q(codes, y + 2, 32) - 16 * sum_q(y + 2, 32);
        acc += (rq_read_f16(x) * rq_read_f16(y)) * (float)sum;
    }
    return acc;
}

/* acc += (dx dy) S */
static float dot_q8_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 34, y += Q8_0_BYTES) {
        int sum = 0;
        for (int j = 0; j < 32; j++) sum += (int8_t)x[2 + j] * (int8_t)y[2 + j];
        acc += (rq_read_f16(x) * rq_read_f16(y)) * (float)sum;
    }
    return acc;
}

/* acc += (dx dy) S */
static float dot_iq4_nl(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 18, y += Q8_0_BYTES) {
        int8_t levels[32];
        levels_32(x + 2, rq_iq4nl_values, levels);
        acc += (rq_read_f16(x) * rq_read_f16(y)) * (float)level_q(levels, y + 2, 32);
    }
    return acc;
}

/* acc += (dx dy) S */
static float dot_mxfp4(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 17, y += Q8_0_BYTES) {
        int8_t levels[32];
        levels_32(x + 1, rq_mxfp4_values, levels);
        acc += (rq_e8m0_half[x[0]] * rq_read_f16(y)) * (float)level_q(levels, y + 2, 32);
    }
    return acc;
}

/* acc += ((dx dy) S) + (m s) */
static float dot_q4_1(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 20, y += Q8_1_BYTES) {
        uint8_t codes[32];
        nibbles_32(x + 4, codes);
        float product = (rq_read_f16(x) * rq_read_f16(y)) * (float)code_q(codes, y + 4, 32);
        acc += product + rq_read_f16(x + 2) * rq_read_f16(y + 2);
    }
    return acc;
}

/* acc += ((dx dy) S) + (m s) */
static float dot_q5_1(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 32; n -= 32, x += 24, y += Q8_1_BYTES) {
        uint8_t codes[32];
        five_bits_32(x + 8, rq_read_u32(x + 4), codes);
        float product = (rq_read_f16(x) * rq_read_f16(y)) * (float)code_q(codes, y + 4, 32);
        acc += product + rq_read_f16(x + 2) * rq_read_f16(y + 2);
    }
    return acc;
}

/* for each 16: acc += (dy dx) S */
static float dot_nvfp4(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 64; n -= 64, x += 36, y += 2 * Q8_0_BYTES) {
        for (int s = 0; s < 4; s++) {
            const uint8_t *act = y + Q8_0_BYTES * (s / 2), *q = act + 2 + 16 * (s % 2);
            int sum = 0;
            for (int j = 0; j < 8; j++) {
                uint8_t byte = x[4 + 8 * s + j];
                sum +=
                    rq_mxfp4_values[byte & 15] * (int8_t)q[j] + rq_mxfp4_values[byte >> 4] * (int8_t)q[8 + j];
            }
            acc += (rq_read_f16(act) * rq_ue4m3_half[x[s]]) * (float)sum;
        }
    }
    return acc;
}

/* t = 0; for each 32: t += dy S; acc += dx t */
static float dot_q1_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 128; n -= 128, x += 18) {
        float t = 0;
        for (int k = 0; k < 4; k++, y += Q8_0_BYTES) {
            uint8_t codes[32];
            for (int j = 0; j < 32; j++) codes[j] = x[2 + 4 * k + j / 8] >> j % 8 & 1;
            t += rq_read_f16(y) * (float)(2 * code_q(codes, y + 2, 32) - sum_q(y + 2, 32));
        }
        acc += rq_read_f16(x) * t;
    }
    return acc;
}

/* As Q1_0. No foreign scalar result exists for this type; the order is ours. */
static float dot_q2_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 64; n -= 64, x += 18) {
        float t = 0;
        for (int k = 0; k < 2; k++, y += Q8_0_BYTES) {
            uint8_t codes[32];
            for (int j = 0; j < 32; j++) codes[j] = x[2 + 8 * k + j / 4] >> 2 * (j % 4) & 3;
            t += rq_read_f16(y) * (float)(code_q(codes, y + 2, 32) - sum_q(y + 2, 32));
        }
        acc += rq_read_f16(x) * t;
    }
    return acc;
}

/* ---- K types, which meet Q8_K
 * --------------------------------------------------------------------------------- */

/* acc += ((dy dx) S) - ((dy dmin) M), S with the sub-block scales, M = sum of min times the sum of its
 * sixteen q */
static float dot_q2_k(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 84, y += Q8_K_BYTES) {
        int sum = 0, mins = 0;
        for (int k = 0; k < 16; k++) {
            const uint8_t *q = x + 16 + 32 * (k / 8) + 16 * (k % 2);
            uint8_t codes[16];
            for (int l = 0; l < 16; l++) codes[l] = q[l] >> 2 * (k % 8 / 2) & 3;
            sum += (x[k] & 15) * code_q(codes, y + Q8_K_QS + 16 * k, 16);
            mins += (x[k] >> 4) * bsum(y, k);
        }
        float dy = rq_read_f32(y);
        acc += (dy * rq_read_f16(x + 80)) * (float)sum - (dy * rq_read_f16(x + 82)) * (float)mins;
    }
    return acc;
}

/* Adds scale (code - offset) q of the 8 m elements at `codes` to eight sums by element index modulo eight. */
static void lanes_add(int lanes[8], const uint8_t *codes, const uint8_t *q, int m, int scale, int offset)
{
    for (int l = 0; l < 8; l++) {
        int sum = 0, plain = 0;
        for (int j = l; j < 8 * m; j += 8) {
            sum += codes[j] * (int8_t)q[j];
            plain += (int8_t)q[j];
        }
        lanes[l] += scale * (sum - offset * plain);
    }
}

/* Eight lanes L by element index modulo eight: L += (dx dy) S; acc = L0 + L1 + ... at the end */
static float dot_q3_k(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float lanes[8] = {0}, acc = 0;
    for (; n >= 256; n -= 256, x += 110, y += Q8_K_BYTES) {
        int sums[8] = {0};
        for (int k = 0; k < 16; k++) {
            const uint8_t *q = x + 32 + 32 * (k / 8) + 16 * (k % 2), *h = x + 16 * (k % 2);
            uint8_t codes[16];
            for (int l = 0; l < 16; l++)
                codes[l] = (uint8_t)((q[l] >> 2 * (k % 8 / 2) & 3) | (h[l] >> k / 2 & 1) << 2);
            lanes_add(sums, codes, y + Q8_K_QS + 16 * k, 2, rq_read_k3_scale(x + 96, k), 4);
        }
        float d = rq_read_f16(x + 108) * rq_read_f32(y);
        for (int l = 0; l < 8; l++) lanes[l] += d * (float)sums[l];
    }
    for (int l = 0; l < 8; l++) acc += lanes[l];
    return acc;
}

/* As Q3_K. */
static float dot_q6_k(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float lanes[8] = {0}, acc = 0;
    for (; n >= 256; n -= 256, x += 210, y += Q8_K_BYTES) {
        int sums[8] = {0};
        for (int k = 0; k < 16; k++) {
            int h = k / 8, g = k % 8 / 2, first = 16 * (k % 2);
            const uint8_t *ql = x + 64 * h + 32 * (g % 2) + first, *qh = x + 128 + 32 * h + first;
            uint8_t codes[16];
            for (int l = 0; l < 16; l++)
                codes[l] = (uint8_t)((ql[l] >> 4 * (g / 2) & 15) | (qh[l] >> 2 * g & 3) << 4);
            lanes_add(sums, codes, y + Q8_K_QS + 16 * k, 2, (int8_t)x[192 + k], 32);
        }
        float d = rq_read_f16(x + 208) * rq_read_f32(y);
        for (int l = 0; l < 8; l++) lanes[l] += d * (float)sums[l];
    }
    for (int l = 0; l < 8; l++) acc += lanes[l];
    return acc;
}

/* Q4_K, or Q5_K with its fifth bits. Lanes as Q3_K; per block acc -= (dmin dy) M; at
 * the end acc += L0, += L1, ... */
static float dot_q45_k(const uint8_t *x, const uint8_t *y, int64_t n, bool is_q5)
{
    float lanes[8] = {0}, acc = 0;
    for (; n >= 256; n -= 256, x += is_q5 ? 176 : 144, y += Q8_K_BYTES) {
        int sums[8] = {0}, mins = 0;
        for (int j = 0; j < 8; j++) {
            int scale, min;
            rq_read_k4_scale(x + 4, j, &scale, &min);
            const uint8_t *q = x + (is_q5 ? 48 : 16) + 32 * (j / 2);
            uint8_t codes[32];
            for (int l = 0; l < 32; l++) {
                codes[l] = q[l] >> 4 * (j % 2) & 15;
                if (is_q5) codes[l] |= (uint8_t)((x[16 + l] >> j & 1) << 4);
            }
            lanes_add(sums, codes, y + Q8_K_QS + 32 * j, 4, scale, 0);
            mins += min * (bsum(y, 2 * j) + bsum(y, 2 * j + 1));
        }
        float dy = rq_read_f32(y), d = rq_read_f16(x) * dy;
        for (int l = 0; l < 8; l++) lanes[l] += d * (float)sums[l];
        acc -= (rq_read_f16(x + 2) * dy) * (float)mins;
    }
    for (int l = 0; l < 8; l++) acc += lanes[l];
    return acc;
}

/* ---- grid and ternary types, which meet Q8_K
 * ------------------------------------------------------------------ */

/* acc += (dx dy) S, S with 2 s + 1 for the scale nibble s; the end result times 1/8 */
static float dot_iq2_xxs(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 66, y += Q8_K_BYTES) {
        int sum = 0;
        for (int g = 0; g < 8; g++) {
            const uint8_t *p = x + 2 + 8 * g, *q = y + Q8_K_QS + 32 * g;
            uint32_t a = rq_read_u32(p + 4);
            int part = 0;
            for (int l = 0; l < 4; l++)
                part += grid_q(rq_iq2xxs_grid[p[l]], rq_ksigns[a >> 7 * l & 127], q + 8 * l, 8);
            sum += (int)(2 * (a >> 28) + 1) * part;
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * (float)sum;
    }
    return 0.125f * acc;
}

/* As IQ2_XXS. */
static float dot_iq2_xs(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 74, y += Q8_K_BYTES) {
        int sum = 0;
        for (int q = 0; q < 32; q++) {
            unsigned v = rq_read_u16(x + 2 + 2 * q);
            int scale = 2 * (x[66 + q / 4] >> 4 * (q % 4 / 2) & 15) + 1;
            sum += scale * grid_q(rq_iq2xs_grid[v & 511], rq_ksigns[v >> 9], y + Q8_K_QS + 8 * q, 8);
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * (float)sum;
    }
    return 0.125f * acc;
}

/* As IQ2_XXS. */
static float dot_iq2_s(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 82, y += Q8_K_BYTES) {
        int sum = 0;
        for (int q = 0; q < 32; q++) {
            unsigned index = x[2 + q] | (x[66 + q / 4] >> 2 * (q % 4) & 3u) << 8;
            int scale = 2 * (x[74 + q / 4] >> 4 * (q % 4 / 2) & 15) + 1;
            sum += scale * grid_q(rq_iq2s_grid[index], x[34 + q], y + Q8_K_QS + 8 * q, 8);
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * (float)sum;
    }
    return 0.125f * acc;
}

/* acc += (dx dy) S, the end result times 1/4 */
static float dot_iq3_xxs(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 98, y += Q8_K_BYTES) {
        int sum = 0;
        for (int g = 0; g < 8; g++) {
            uint32_t a = rq_read_u32(x + 66 + 4 * g);
            int part = 0;
            for (int t = 0; t < 8; t++) {
                unsigned signs = rq_ksigns[a >> 7 * (t / 2) & 127] >> 4 * (t % 2);
                part += grid_q(rq_iq3xxs_grid[x[2 + 8 * g + t]], signs, y + Q8_K_QS + 32 * g + 4 * t, 4);
            }
            sum += (int)(2 * (a >> 28) + 1) * part;
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * (float)sum;
    }
    return 0.25f * acc;
}

/* acc += (dx dy) S */
static float dot_iq3_s(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 110, y += Q8_K_BYTES) {
        int sum = 0;
        for (int g = 0; g < 8; g++) {
            int part = 0;
            for (int t = 0; t < 8; t++) {
                unsigned index = x[2 + 8 * g + t] | (x[66 + g] >> t & 1u) << 8;
                unsigned signs = (unsigned)x[74 + 4 * g + t / 2] >> 4 * (t % 2);
                part += grid_q(rq_iq3s_grid[index], signs, y + Q8_K_QS + 32 * g + 4 * t, 4);
            }
            sum += (2 * (x[106 + g / 2] >> 4 * (g % 2) & 15) + 1) * part;
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * (float)sum;
    }
    return acc;
}

/* Eight signed grid values times q. */
static int grid1_q(uint64_t entry, const uint8_t *q)
{
    int sum = 0;
    for (int j = 0; j < 8; j++) sum += (int8_t)(entry >> 8 * j & 255) * (int8_t)q[j];
    return sum;
}

/* acc += (dx dy) (S + 1/8 D), D = sum of scale times the sign of delta times q */
static float dot_iq1_s(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 50, y += Q8_K_BYTES) {
        int sum = 0, deltas = 0;
        for (int g = 0; g < 8; g++) {
            unsigned h = rq_read_u16(x + 34 + 2 * g);
            int scale = (int)(2 * (h >> 12 & 7) + 1), part = 0;
            for (int l = 0; l < 4; l++)
                part += grid1_q(rq_iq1s_grid[x[2 + 4 * g + l] | (h >> 3 * l & 7) << 8],
                                y + Q8_K_QS + 32 * g + 8 * l);
            sum += scale * part;
            deltas += (h & 0x8000 ? -scale : scale) * (bsum(y, 2 * g) + bsum(y, 2 * g + 1));
        }
        acc += (rq_read_f16(x) * rq_read_f32(y)) * ((float)sum + 0.125f * (float)deltas);
    }
    return acc;
}

/* As IQ1_S. */
static float dot_iq1_m(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 56, y += Q8_K_BYTES) {
        int sum = 0, deltas = 0;
        for (int q = 0; q < 32; q++) {
            const uint8_t *act = y + Q8_K_QS + 8 * q;
            unsigned nibble = x[32 + q / 2] >> 4 * (q % 2) & 15u;
            int k = q / 2, scale = 2 * (rq_read_u16(x + 48 + 2 * (k / 4)) >> 3 * (k % 4) & 7) + 1;
            sum += scale * grid1_q(rq_iq1s_grid[x[q] | (nibble & 7) << 8], act);
            deltas += (nibble & 8 ? -scale : scale) * sum_q(act, 8);
        }
        acc += (rq_read_iq1m_d(x + 48) * rq_read_f32(y)) * ((float)sum + 0.125f * (float)deltas);
    }
    return acc;
}

/* for each 32: acc += ((dx dy) scale) S */
static float dot_iq4_xs(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 136, y += Q8_K_BYTES) {
        float d = rq_read_f16(x) * rq_read_f32(y);
        unsigned high = rq_read_u16(x + 2);
        for (int g = 0; g < 8; g++) {
            int ls = (x[4 + g / 2] >> 4 * (g % 2) & 15) | (int)(high >> 2 * g & 3) << 4;
            int8_t levels[32];
            levels_32(x + 8 + 16 * g, rq_iq4nl_values, levels);
            acc += (d * (float)(ls - 32)) * (float)level_q(levels, y + Q8_K_QS + 32 * g, 32);
        }
    }
    return acc;
}

/* acc += S (dx dy) */
static float dot_tq1_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 54, y += Q8_K_BYTES) {
        const uint8_t *q = y + Q8_K_QS;
        int sum = 0;
        for (int i = 0; i < 160; i++) sum += rq_read_tq1_digit(x[i % 32], i / 32) * (int8_t)q[i];
        for (int r = 0; r < 80; r++) sum += rq_read_tq1_digit(x[32 + r % 16], r / 16) * (int8_t)q[160 + r];
        for (int r = 0; r < 16; r++) sum += rq_read_tq1_digit(x[48 + r % 4], r / 4) * (int8_t)q[240 + r];
        sum -= sum_q(q, 256);
        acc += (float)sum * (rq_read_f16(x + 52) * rq_read_f32(y));
    }
    return acc;
}

/* acc += S (dx dy) */
static float dot_tq2_0(const uint8_t *x, const uint8_t *y, int64_t n)
{
    float acc = 0;
    for (; n >= 256; n -= 256, x += 66, y += Q8_K_BYTES) {
        const uint8_t *q = y + Q8_K_QS;
        int sum = 0;
        for (int i = 0; i < 256; i++)
            sum += (x[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3) * (int8_t)q[i];
        sum -= sum_q(q, 256);
        acc += (float)sum * (rq_read_f16(x + 64) * rq_read_f32(y));
    }
    return acc;
}

/* ---- unquantised types
 * ---------------------------------------------------------------------------------------- */

static float dot_f32(const uint8_t *x, const uint8_t *y, int64_t n)
{
    double acc = 0;
    for (int64_t i = 0; i < n; i++) acc += (double)rq_read_f32(x + 4 * i) * (double)rq_read_f32(y + 4 * i);
    return (float)acc;
}

static float dot_f16(const uint8_t *x, const uint8_t *y, int64_t n)
{
    double acc = 0;
    for (int64_t i = 0; i < n; i++) acc += (double)rq_read_f16(x + 2 * i) * (double)rq_read_f16(y + 2 * i);
    return (float)acc;
}

static float dot_bf16(const uint8_t *x, const uint8_t *y, int64_t n)
{
    double acc = 0;
    for (int64_t i = 0; i < n; i++)
        acc +=
            (double)rq_bhalf_to_f32(rq_read_u16(x + 2 * i)) * (double)rq_bhalf_to_f32(rq_read_u16(y + 2 * i));
    return (float)acc;
}

static float dot_f64(const uint8_t *x, const uint8_t *y, int64_t n)
{
    double acc = 0;
    for (int64_t i = 0; i < n; i++) {
        double w;
        memcpy(&w, x + 8 * i, sizeof w);
        acc += w * (double)rq_read_f32(y + 4 * i);
    }
    return (float)acc;
}

rq_type rq_dot_act_type(rq_type type)
{
    switch (type) {
    case RQ_TYPE_F32:
    case RQ_TYPE_F64:
        return RQ_TYPE_F32;
    case RQ_TYPE_F16:
    case RQ_TYPE_BF16:
        return type;
    case RQ_TYPE_Q4_0:
    case RQ_TYPE_Q5_0:
    case RQ_TYPE_Q8_0:
    case RQ_TYPE_IQ4_NL:
    case RQ_TYPE_MXFP4:
    case RQ_TYPE_NVFP4:
    case RQ_TYPE_Q1_0:
    case RQ_TYPE_Q2_0:
        return RQ_TYPE_Q8_0;
    case RQ_TYPE_Q4_1:
    case RQ_TYPE_Q5_1:
        return RQ_TYPE_Q8_1;
    default: {
        const rq_type_info *info = rq_type_get((uint32_t)type);
        return info && info->is_weight ? RQ_TYPE_Q8_K : RQ_TYPE_LIMIT;
    }
    }
}

float rq_dot_ref(rq_type type, const void *wrow, const void *xrow, int64_t n)
{
    const uint8_t *x = wrow, *y = xrow;
    switch (type) {
    case RQ_TYPE_F32:
        return dot_f32(x, y, n);
    case RQ_TYPE_F16:
        return dot_f16(x, y, n);
    case RQ_TYPE_BF16:
        return dot_bf16(x, y, n);
    case RQ_TYPE_F64:
        return dot_f64(x, y, n);
    case RQ_TYPE_Q4_0:
        return dot_q4_0(x, y, n);
    case RQ_TYPE_Q4_1:
        return dot_q4_1(x, y, n);
    case RQ_TYPE_Q5_0:
        return dot_q5_0(x, y, n);
    case RQ_TYPE_Q5_1:
        return dot_q5_1(x, y, n);
    case RQ_TYPE_Q8_0:
        return dot_q8_0(x, y, n);
    case RQ_TYPE_Q2_K:
        return dot_q2_k(x, y, n);
    case RQ_TYPE_Q3_K:
        return dot_q3_k(x, y, n);
    case RQ_TYPE_Q4_K:
        return dot_q45_k(x, y, n, false);
    case RQ_TYPE_Q5_K:
        return dot_q45_k(x, y, n, true);
    case RQ_TYPE_Q6_K:
        return dot_q6_k(x, y, n);
    case RQ_TYPE_IQ2_XXS:
        return dot_iq2_xxs(x, y, n);
    case RQ_TYPE_IQ2_XS:
        return dot_iq2_xs(x, y, n);
    case RQ_TYPE_IQ2_S:
        return dot_iq2_s(x, y, n);
    case RQ_TYPE_IQ3_XXS:
        return dot_iq3_xxs(x, y, n);
    case RQ_TYPE_IQ3_S:
        return dot_iq3_s(x, y, n);
    case RQ_TYPE_IQ1_S:
        return dot_iq1_s(x, y, n);
    case RQ_TYPE_IQ1_M:
        return dot_iq1_m(x, y, n);
    case RQ_TYPE_IQ4_NL:
        return dot_iq4_nl(x, y, n);
    case RQ_TYPE_IQ4_XS:
        return dot_iq4_xs(x, y, n);
    case RQ_TYPE_TQ1_0:
        return dot_tq1_0(x, y, n);
    case RQ_TYPE_TQ2_0:
        return dot_tq2_0(x, y, n);
    case RQ_TYPE_MXFP4:
        return dot_mxfp4(x, y, n);
    case RQ_TYPE_NVFP4:
        return dot_nvfp4(x, y, n);
    case RQ_TYPE_Q1_0:
        return dot_q1_0(x, y, n);
    case RQ_TYPE_Q2_0:
        return dot_q2_0(x, y, n);
    default:
        return NAN;
    }
}
