/* block_write.h - writes fields of a block: little-endian, any alignment. For the sources of this folder. */
#ifndef RQ_BLOCK_WRITE_H
#define RQ_BLOCK_WRITE_H

#include <stdint.h>

#include "backends/formats/half.h"

static inline void rq_write_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static inline void rq_write_u32(uint8_t *p, uint32_t v)
{
    rq_write_u16(p, (uint16_t)v);
    rq_write_u16(p + 2, (uint16_t)(v >> 16));
}

static inline void rq_write_f16(uint8_t *p, float v)
{
    rq_write_u16(p, rq_half_from_f32(v));
}

static inline void rq_write_f32(uint8_t *p, float v)
{
    rq_write_u32(p, rq_f32_bits(v));
}

/* An already rounded value as a code in lo..hi; NaN gives 0. */
static inline int rq_clamp_code(float v, int lo, int hi)
{
    if (!(v > (float)lo)) return v <= (float)lo ? lo : 0;
    return v < (float)hi ? (int)v : hi;
}

#endif
