/* block_read.h - fields of a block: little-endian, at any alignment. For the sources of this folder. */
#ifndef RQ_BLOCK_READ_H
#define RQ_BLOCK_READ_H

#include <stdint.h>

#include "backends/formats/half.h"

static inline uint16_t rq_read_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t rq_read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline float rq_read_f16(const uint8_t *p)
{
    return rq_half_to_f32(rq_read_u16(p));
}

static inline float rq_read_f32(const uint8_t *p)
{
    return rq_bits_f32(rq_read_u32(p));
}

/* Q4_K and Q5_K: scale and minimum of sub-block j (0..7), six bits each, from the 12 packed bytes. */
static inline void rq_read_k4_scale(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* Q3_K: scale of sub-block k (0..15), -32..31, from the 12 packed bytes. */
static inline int rq_read_k3_scale(const uint8_t *s, int k)
{
    int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4;
    return (low | (s[8 + k % 4] >> 2 * (k / 4) & 3) << 4) - 32;
}

/* IQ1_M has no scale field: the four high nibbles of its four scale words are one f16. */
static inline float rq_read_iq1m_d(const uint8_t *scales)
{
    unsigned bits = 0;
    for (int k = 0; k < 4; k++) bits |= (unsigned)(rq_read_u16(scales + 2 * k) >> 12) << 4 * k;
    return rq_half_to_f32((uint16_t)bits);
}

/* TQ1_0: digit n (0..4) of a byte that holds base-3 digits as a fraction of 256; 0, 1 or 2 for every byte. */
static inline int rq_read_tq1_digit(uint8_t byte, int n)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (byte * power[n] & 255) * 3 >> 8;
}

#endif
