/* half.h - binary16 and bfloat16 conversions to inline in kernels; types.h has the same ones as functions.
 *
 * Both directions are selects on integer masks without branches, so a loop over them vectorises. They are
 * exact, including subnormals, whatever the flush-to-zero setting: no operand or result of a float operation
 * here is a subnormal f32. */
#ifndef RQ_HALF_H
#define RQ_HALF_H

#include <stdint.h>
#include <string.h>

static inline float rq_bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t rq_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* a where the condition holds, else b; by masks: the compiler vectorises no loop with a jump in it. */
static inline uint32_t rq_select_u32(uint32_t condition, uint32_t a, uint32_t b)
{
    return b ^ ((a ^ b) & (0u - condition));
}

/* NaN keeps its payload and becomes quiet, as the processors' own conversion does. */
static inline float rq_half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h & 0x7c00, mantissa = h & 0x3ff;
    uint32_t normal = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23);
    /* 0.5 + m 2^-24 has m in its low bits; taking 0.5 away leaves the subnormal's value, exactly. */
    uint32_t small = rq_f32_bits(rq_bits_f32(0x3f000000u | mantissa) - 0.5f);
    uint32_t special = 0x7f800000u | mantissa << 13 | (uint32_t)(mantissa != 0) << 22;
    uint32_t bits = rq_select_u32(exponent == 0, small, normal);
    bits = rq_select_u32(exponent == 0x7c00, special, bits);
    return rq_bits_f32(sign | bits);
}

/* Round to nearest even, overflow to infinity, NaN to 0x7e00 | sign. */
static inline uint16_t rq_half_from_f32(float f)
{
    uint32_t bits = rq_f32_bits(f), sign = bits >> 16 & 0x8000, a = bits & 0x7fffffffu;
    uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
    /* Below 2^-14 the steps are 2^-24, those of floats in [0.5, 1): the addition rounds. Larger a are
     * replaced so that the unused sum stays harmless, and so are subnormal ones, which all round to zero. */
    uint32_t tame = rq_select_u32((a < 0x38800000u) & (a >= 0x00800000u), a, 0);
    uint32_t small = rq_f32_bits(rq_bits_f32(tame) + 0.5f) - 0x3f000000u;
    uint32_t h = rq_select_u32(a < 0x38800000u, small, normal);
    h = rq_select_u32(a >= 0x477ff000u, 0x7c00, h); /* 65520, half a step above the largest value, and up */
    h = rq_select_u32(a > 0x7f800000u, 0x7e00, h);
    return (uint16_t)(sign | h);
}

static inline float rq_bhalf_to_f32(uint16_t h)
{
    return rq_bits_f32((uint32_t)h << 16);
}

/* Round to nearest even; NaN keeps its upper half, made quiet. */
static inline uint16_t rq_bhalf_from_f32(float f)
{
    uint32_t bits = rq_f32_bits(f);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40) : rounded);
}

#endif
