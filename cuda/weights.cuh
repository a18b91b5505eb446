// weights.cuh - de-quantisation, once per weight type: eight neighbouring elements of a block as integers of eight
// bits, a factor and an offset: value = d * q + m. Layouts and formulas: backends/formats/dequantize.c and
// dequantize_iq.c; products keep their order, so that the values have the bits of those.
#ifndef RQ_CUDA_WEIGHTS_CUH
#define RQ_CUDA_WEIGHTS_CUH

#include "cuda/common.cuh"

struct eight {
    uint32_t lo, hi; // elements 0..3, 4..7 as signed bytes
    float d, m;
};

template <int TYPE> struct weight_type { // types of one element a block
    static constexpr uint32_t bytes = TYPE == 0 ? 4 : TYPE == 28 ? 8 : 2, elements = 1;
    static constexpr bool offset = false, block = false;
};
#define BLOCK_TYPE(type, bytes_, elements_, offset_)                                                         \
    template <> struct weight_type<type> {                                                                   \
        static constexpr uint32_t bytes = bytes_, elements = elements_;                                      \
        static constexpr bool offset = offset_, block = true;                                                \
    }
BLOCK_TYPE(2, 18, 32, false);
BLOCK_TYPE(3, 20, 32, true);
BLOCK_TYPE(6, 22, 32, false);
BLOCK_TYPE(7, 24, 32, true);
BLOCK_TYPE(8, 34, 32, false);
BLOCK_TYPE(10, 84, 256, true);
BLOCK_TYPE(11, 110, 256, false);
BLOCK_TYPE(12, 144, 256, true);
BLOCK_TYPE(13, 176, 256, true);
BLOCK_TYPE(14, 210, 256, false);
BLOCK_TYPE(16, 66, 256, false);
BLOCK_TYPE(17, 74, 256, false);
BLOCK_TYPE(18, 98, 256, false);
BLOCK_TYPE(19, 50, 256, false);
BLOCK_TYPE(20, 18, 32, false);
BLOCK_TYPE(21, 110, 256, false);
BLOCK_TYPE(22, 82, 256, false);
BLOCK_TYPE(23, 136, 256, false);
BLOCK_TYPE(29, 56, 256, false);
BLOCK_TYPE(34, 54, 256, false);
BLOCK_TYPE(35, 66, 256, false);
BLOCK_TYPE(39, 17, 32, false);
BLOCK_TYPE(40, 36, 64, false);
BLOCK_TYPE(41, 18, 128, false);
BLOCK_TYPE(42, 18, 64, false);

DEVICE uint32_t u16_at(const uint8_t *p)
{
    return *(const uint16_t *)p;
}
// 32 bits at a place of which only an even address is known (MXFP4: not even that).
DEVICE uint32_t u32_even(const uint8_t *p)
{
    return u16_at(p) | u16_at(p + 2) << 16;
}
DEVICE uint32_t u32_any(const uint8_t *p)
{
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}
DEVICE float f16_at(const uint8_t *p)
{
    return half_float(u16_at(p));
}

// a - b for four bytes whose differences fit a signed byte.
DEVICE uint32_t sub4(uint32_t a, uint32_t b)
{
    return ((a | 0x80808080u) - (b & 0x7f7f7f7fu)) ^ ((a ^ ~b) & 0x80808080u);
}
// Negates the bytes whose sign bit (bit i of `signs` for byte i) is set.
DEVICE uint32_t negate4(uint32_t v, uint32_t signs)
{
    uint32_t spread = (signs & 15u) * 0x00204081u & 0x01010101u; // bit i to byte i
    return sub4(v ^ spread * 255u, spread * 255u);
}
// Levels of four nibbles (those of bits 0-3 of each byte) in a table of 16 signed bytes.
DEVICE uint32_t table4(const int8_t *table, uint32_t nibbles)
{
    u32x4 t = load16(table);
    // the four nibbles as one selector; bit 3 chooses the half of the table
    uint32_t s =
        (nibbles & 15u) | (nibbles >> 4 & 0xf0u) | (nibbles >> 8 & 0xf00u) | (nibbles >> 12 & 0xf000u);
    uint32_t lo = prmt(t.x, t.y, s & 0x7777u), hi = prmt(t.z, t.w, s & 0x7777u);
    uint32_t mask = (nibbles >> 3 & 0x01010101u) * 255u;
    return (hi & mask) | (lo & ~mask);
}

DEVICE void k4_scale(const uint8_t *s, uint32_t j, uint32_t &scale, uint32_t &min)
{
    if (j < 4) {
        scale = s[j] & 63u;
        min = s[j + 4] & 63u;
    } else {
        scale = (s[j + 4] & 15u) | s[j - 4] >> 6 << 4;
        min = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

// Elements 8 o .. 8 o + 7 of the block at b.
template <int TYPE> DEVICE eight weights8(const uint8_t *b, const cuda_tables *tables, uint32_t o)
{
    eight v = {0, 0, 0, 0};
    if (TYPE == 2 || TYPE == 3 || TYPE == 6 || TYPE == 7 || TYPE == 20 ||
        TYPE == 39) { // nibbles i and i + 16
        const uint32_t at = TYPE == 3 ? 4 : TYPE == 6 ? 6 : TYPE == 7 ? 8 : TYPE == 39 ? 1 : 2;
        const uint8_t *q = b + at + 8 * (o & 1);
        uint32_t a = TYPE == 39 ? u32_any(q) : u32_even(q), c = TYPE == 39 ? u32_any(q + 4) : u32_even(q + 4);
        v.lo = a >> 4 * (o >> 1) & 0x0f0f0f0fu;
        v.hi = c >> 4 * (o >> 1) & 0x0f0f0f0fu;
        if (TYPE == 6 || TYPE == 7) { // a fifth bit each
            uint32_t h = u32_even(b + (TYPE == 6 ? 2 : 4)) >> 8 * o;
            v.lo |= (h & 15u) * 0x00204081u << 4 & 0x10101010u;
            v.hi |= (h >> 4 & 15u) * 0x00204081u << 4 & 0x10101010u;
        }
        if (TYPE == 2) v.lo = sub4(v.lo, 0x08080808u), v.hi = sub4(v.hi, 0x08080808u);
        if (TYPE == 6) v.lo = sub4(v.lo, 0x10101010u), v.hi = sub4(v.hi, 0x10101010u);
        if (TYPE == 20) v.lo = table4(tables->iq4nl, v.lo), v.hi = table4(tables->iq4nl, v.hi);
        if (TYPE == 39) v.lo = table4(tables->mxfp4, v.lo), v.hi = table4(tables->mxfp4, v.hi);
        v.d = TYPE == 39 ? tables->e8m0[b[0]] : f16_at(b);
        if (TYPE == 3 || TYPE == 7) v.m = f16_at(b + 2);
    }
    if (TYPE == 8) {
        v.lo = u32_even(b + 2 + 8 * o);
        v.hi = u32_even(b + 6 + 8 * o);
        v.d = f16_at(b);
    }
    if (TYPE == 10) {
        uint32_t k = o / 2, sc = b[k], shift = 2 * (k % 8 / 2);
        const uint8_t *q = b + 16 + 32 * (k / 8) + 16 * (k % 2) + 8 * (o % 2);
        v.lo = u32_even(q) >> shift & 0x03030303u;
        v.hi = u32_even(q + 4) >> shift & 0x03030303u;
        v.d = f16_at(b + 80) * (float)(sc & 15u);
        v.m = -(f16_at(b + 82) * (float)(sc >> 4));
    }
    if (TYPE == 11) {
        uint32_t k = o / 2, shift = 2 * (k % 8 / 2), bit = k / 2;
        uint32_t low = k < 8 ? b[96 + k] & 15u : b[88 + k] >> 4;
        int sc = (int)(low | (b[104 + k % 4] >> 2 * (k / 4) & 3u) << 4) - 32;
        const uint8_t *h = b + 16 * (k % 2) + 8 * (o % 2), *q = h + 32 + 32 * (k / 8);
        v.lo =
            sub4((u32_even(q) >> shift & 0x03030303u) | (u32_even(h) >> bit & 0x01010101u) << 2, 0x04040404u);
        v.hi = sub4((u32_even(q + 4) >> shift & 0x03030303u) | (u32_even(h + 4) >> bit & 0x01010101u) << 2,
                    0x04040404u);
        v.d = f16_at(b + 108) * (float)sc;
    }
    if (TYPE == 12 || TYPE == 13) {
        uint32_t s = o / 4, sc, m;
        k4_scale(b + 4, s, sc, m);
        const uint8_t *q = b + (TYPE == 12 ? 16 : 48) + 32 * (s / 2) + 8 * (o % 4);
        v.lo = u32_even(q) >> 4 * (s & 1) & 0x0f0f0f0fu;
        v.hi = u32_even(q + 4) >> 4 * (s & 1) & 0x0f0f0f0fu;
        if (TYPE == 13) {
            const uint8_t *h = b + 16 + 8 * (o % 4);
            v.lo |= (u32_even(h) >> s & 0x01010101u) << 4;
            v.hi |= (u32_even(h + 4) >> s & 0x01010101u) << 4;
        }
        v.d = f16_at(b) * (float)sc;
        v.m = -(f16_at(b + 2) * (float)m);
    }
    if (TYPE == 14) {
        uint32_t k = o / 2, h = k / 8, g = k % 8 / 2, first = 16 * (k % 2) + 8 * (o % 2);
        const uint8_t *ql = b + 64 * h + 32 * (g % 2) + first, *qh = b + 128 + 32 * h + first;
        uint32_t low = 4 * (g / 2), high = 2 * g;
        v.lo = sub4((u32_even(ql) >> low & 0x0f0f0f0fu) | (u32_even(qh) >> high & 0x03030303u) << 4,
                    0x20202020u);
        v.hi = sub4((u32_even(ql + 4) >> low & 0x0f0f0f0fu) | (u32_even(qh + 4) >> high & 0x03030303u) << 4,
                    0x20202020u);
        v.d = f16_at(b + 208) * (float)(int8_t)b[192 + k];
    }
    if (TYPE == 16 || TYPE == 17 || TYPE == 22) { // magnitudes by table, signs apart
        uint32_t signs;
        uint64_t e;
        float s;
        if (TYPE == 16) {
            const uint8_t *p = b + 2 + 8 * (o / 4);
            uint32_t a = u32_even(p + 4);
            e = tables->iq2xxs[p[o % 4]];
            signs = tables->ksigns[a >> 7 * (o % 4) & 127u];
            s = 0.5f + (float)(a >> 28);
        } else if (TYPE == 17) {
            uint32_t x = u16_at(b + 2 + 2 * o);
            e = tables->iq2xs[x & 511u];
            signs = tables->ksigns[x >> 9];
            s = 0.5f + (float)(b[66 + o / 4] >> 4 * (o % 4 / 2) & 15u);
        } else {
            e = tables->iq2s[b[2 + o] | (b[66 + o / 4] >> 2 * (o % 4) & 3u) << 8];
            signs = b[34 + o];
            s = 0.5f + (float)(b[74 + o / 4] >> 4 * (o % 4 / 2) & 15u);
        }
        v.lo = negate4((uint32_t)e, signs);
        v.hi = negate4((uint32_t)(e >> 32), signs >> 4);
        v.d = f16_at(b) * s * 0.25f;
    }
    if (TYPE == 18) {
        uint32_t g = o / 4, t = 2 * (o % 4), a = u32_even(b + 66 + 4 * g);
        uint32_t signs = tables->ksigns[a >> 7 * (t / 2) & 127u];
        v.lo = negate4(tables->iq3xxs[b[2 + 8 * g + t]], signs);
        v.hi = negate4(tables->iq3xxs[b[3 + 8 * g + t]], signs >> 4);
        v.d = f16_at(b) * (0.5f + (float)(a >> 28)) * 0.5f;
    }
    if (TYPE == 21) {
        uint32_t g = o / 4, t = 2 * (o % 4), high = b[66 + g] >> t, signs = b[74 + 4 * g + t / 2];
        v.lo = negate4(tables->iq3s[b[2 + 8 * g + t] | (high & 1u) << 8], signs);
        v.hi = negate4(tables->iq3s[b[3 + 8 * g + t] | (high >> 1 & 1u) << 8], signs >> 4);
        v.d = f16_at(b) * (float)(2u * (b[106 + g / 2] >> 4 * (g % 2) & 15u) + 1u);
    }
    if (TYPE == 19 || TYPE == 29) { // scale * (g +- 1/8) = scale / 8 * (8 g +- 1)
        uint64_t e;
        bool minus;
        float s;
        if (TYPE == 19) {
            uint32_t g = o / 4, l = o % 4, h = u16_at(b + 34 + 2 * g);
            e = tables->iq1s[b[2 + 4 * g + l] | (h >> 3 * l & 7u) << 8];
            minus = (h & 0x8000u) != 0;
            s = f16_at(b) * (float)(2u * (h >> 12 & 7u) + 1u);
        } else {
            uint32_t nibble = b[32 + o / 2] >> 4 * (o % 2) & 15u, k = o / 2, bits = 0;
            for (uint32_t i = 0; i < 4; i++) bits |= u16_at(b + 48 + 2 * i) >> 12 << 4 * i;
            e = tables->iq1s[b[o] | (nibble & 7u) << 8];
            minus = (nibble & 8u) != 0;
            s = half_float(bits) * (float)(2u * (u16_at(b + 48 + 2 * (k / 4)) >> 3 * (k % 4) & 7u) + 1u);
        }
        uint32_t delta = minus ? 0x01010101u : 0xffffffffu; // subtracted
        v.lo = sub4((uint32_t)e << 3 & 0xf8f8f8f8u, delta);
        v.hi = sub4((uint32_t)(e >> 32) << 3 & 0xf8f8f8f8u, delta);
        v.d = s * 0.125f;
    }
    if (TYPE == 23) {
        uint32_t g = o / 4;
        int ls = (int)((b[4 + g / 2] >> 4 * (g % 2) & 15u) | (u16_at(b + 2) >> 2 * g & 3u) << 4);
        const uint8_t *q = b + 8 + 16 * g + 8 * (o & 1);
        uint32_t shift = 4 * (o % 4 / 2);
        v.lo = table4(tables->iq4nl, u32_even(q) >> shift & 0x0f0f0f0fu);
        v.hi = table4(tables->iq4nl, u32_even(q + 4) >> shift & 0x0f0f0f0fu);
        v.d = f16_at(b) * (float)(ls - 32);
    }
    if (TYPE == 34) {
        uint32_t word[2] = {0, 0};
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t e = 8 * o + i, at, digit;
            if (e < 160) {
                at = e % 32;
                digit = e / 32;
            } else if (e < 240) {
                at = 32 + (e - 160) % 16;
                digit = (e - 160) / 16;
            } else {
                at = 48 + (e - 240) % 4;
                digit = (e - 240) / 4;
            }
            uint32_t power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81;
            word[i / 4] |= ((b[at] * power & 255u) * 3u >> 8) << 8 * (i % 4);
        }
        v.lo = sub4(word[0], 0x01010101u);
        v.hi = sub4(word[1], 0x01010101u);
        v.d = f16_at(b + 52);
    }
    if (TYPE == 35) {
        uint32_t g = o / 4, shift = 2 * (g % 4);
        const uint8_t *q = b + 32 * (g / 4) + 8 * (o % 4);
        v.lo = sub4(u32_even(q) >> shift & 0x03030303u, 0x01010101u);
        v.hi = sub4(u32_even(q + 4) >> shift & 0x03030303u, 0x01010101u);
        v.d = f16_at(b + 64);
    }
    if (TYPE == 41) {
        uint32_t q = ~(uint32_t)b[2 + o];
        v.lo = negate4(0x01010101u, q);
        v.hi = negate4(0x01010101u, q >> 4);
        v.d = f16_at(b);
    }
    if (TYPE == 42) { // four codes of two bits in a byte, one byte after the other
        uint32_t q = u16_at(b + 2 + 2 * o);
        uint32_t a = q & 255u, c = q >> 8;
        v.lo =
            sub4((a & 3u) | (a << 6 & 0x300u) | (a << 12 & 0x30000u) | (a << 18 & 0x3000000u), 0x01010101u);
        v.hi =
            sub4((c & 3u) | (c << 6 & 0x300u) | (c << 12 & 0x30000u) | (c << 18 & 0x3000000u), 0x01010101u);
        v.d = f16_at(b);
    }
    if (TYPE == 40) {
        const uint8_t *q = b + 4 + 8 * (o / 2);
        uint32_t shift = 4 * (o % 2);
        v.lo = table4(tables->mxfp4, u32_even(q) >> shift & 0x0f0f0f0fu);
        v.hi = table4(tables->mxfp4, u32_even(q + 4) >> shift & 0x0f0f0f0fu);
        v.d = tables->ue4m3[b[o / 2]];
    }
    return v;
}

DEVICE float byte_float(uint32_t v, uint32_t i)
{
    return (float)(int8_t)(v >> 8 * i);
}

// A double narrowed with one rounding to nearest even, in integers: cards for games are slow at doubles.
DEVICE float narrow(uint32_t lo, uint32_t hi)
{
    uint32_t sign = hi & 0x80000000u, a = hi & 0x7fffffffu;
    if (a >= 0x7ff00000u)
        return bits_float(sign | 0x7f800000u | (((a & 0xfffffu) | lo) != 0 ? 0x400000u : 0u));
    int e = (int)(a >> 20) - 1023 + 127; // the float's exponent field
    if (e >= 255) return bits_float(sign | 0x7f800000u);
    if (e < -24) return bits_float(sign);
    uint32_t m = (a << 3 & 0x7ffff8u) | lo >> 29 | 0x800000u,
             rest = lo << 3; // 24 bits, and what is below them
    if (e <= 0) {            // subnormal
        uint32_t shift = (uint32_t)(1 - e);
        rest = m << (32 - shift) | (uint32_t)(rest != 0);
        m >>= shift;
        e = 0;
    } else {
        m &= 0x7fffffu;
    }
    m += (uint32_t)(rest > 0x80000000u || (rest == 0x80000000u && (m & 1u) != 0));
    return bits_float(sign | (((uint32_t)e << 23) + m));
}

// Element i of a row of a type with one element a block.
template <int TYPE> DEVICE float weight_float(const uint8_t *row, uint32_t i)
{
    if (TYPE == 0) return ((const float *)row)[i];
    if (TYPE == 1) return half_float(((const uint16_t *)row)[i]);
    if (TYPE == 30) return bits_float((uint32_t)((const uint16_t *)row)[i] << 16);
    return narrow(((const uint32_t *)row)[2 * i], ((const uint32_t *)row)[2 * i + 1]);
}

// Elements 8 j .. 8 j + 7 of the row of n elements at `row` as floats; those past its end are zero.
template <int TYPE>
DEVICE void weights8_float(const uint8_t *row, const cuda_tables *tables, uint32_t j, uint32_t n, float v[8])
{
    if (!weight_type<TYPE>::block) {
        for (uint32_t i = 0; i < 8; i++) v[i] = 8 * j + i < n ? weight_float<TYPE>(row, 8 * j + i) : 0.0f;
        return;
    }
    const uint32_t per = weight_type<TYPE>::elements / 8;
    eight e = weights8<TYPE>(row + (uint64_t)(j / (per ? per : 1)) * weight_type<TYPE>::bytes, tables,
                             j % (per ? per : 1));
    for (uint32_t i = 0; i < 4; i++) v[i] = byte_float(e.lo, i) * e.d, v[4 + i] = byte_float(e.hi, i) * e.d;
    if (weight_type<TYPE>::offset)
        for (uint32_t i = 0; i < 8; i++) v[i] = v[i] + e.m;
}

#endif
