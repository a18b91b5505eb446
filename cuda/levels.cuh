// levels.cuh - coded words to signed bytes, eight at a time, in the order matrix units take them: the four lanes of a
// quad hold neighbouring pairs of octets (eight elements of a token of K, eight tokens of an element of V).
#ifndef RQ_CUDA_LEVELS_CUH
#define RQ_CUDA_LEVELS_CUH

#include "cuda/pages.cuh"

// Codes of octets 2 P and 2 P + 1, a nibble each (Q8_0: bytes, two words an octet).
struct octets {
    uint32_t a, b, a2, b2;
};

// The octets of pair P of a row of W; words `stride` apart. Past the end: zeros.
template <int FORM> DEVICE octets load_octets(const uint32_t *words, uint32_t stride, uint32_t P, uint32_t W)
{
    octets o = {0, 0, 0, 0};
    bool first = W == 8 || 2 * P < W, second = W == 8 || 2 * P + 1 < W; // eight: the usual, and all of V
    if (FORM == (int)Q8_0) {
        if (first) o.a = words[4 * P * stride], o.a2 = words[(4 * P + 1) * stride];
        if (second) o.b = words[(4 * P + 2) * stride], o.b2 = words[(4 * P + 3) * stride];
    }
    if (FORM == (int)C4) {
        if (first) o.a = words[2 * P * stride];
        if (second) o.b = words[(2 * P + 1) * stride];
    }
    if (FORM == (int)C2 && first) {
        uint32_t v = words[P * stride];
        o.a = v & 0x33333333u;
        o.b = second ? v >> 2 & 0x33333333u : 0;
    }
    if (FORM == (int)C3) {
        uint32_t set = P / 2, odd = P & 1;
        const uint32_t *w = words + 3 * set * stride;
        if (W == 8 || 4 * set + 4 <= W) {
            uint32_t x = w[0], y = w[stride], z = w[2 * stride];
            uint32_t fourth = (x >> 3 & 0x11111111u) | (y >> 2 & 0x22222222u) | (z >> 1 & 0x44444444u);
            o.a = (odd ? z : x) & 0x77777777u;
            o.b = odd ? fourth : y & 0x77777777u;
        } else {
            if (first) o.a = w[2 * odd * stride] & 0x77777777u;
            if (second) o.b = w[(2 * odd + 1) * stride] & 0x77777777u;
        }
    }
    return o;
}

// The level tables of a form in registers: t[b][i], four levels each.
struct level_table {
    uint32_t t[2][4];
};

template <int FORM> DEVICE level_table load_levels(const cuda_tables *tables)
{
    level_table l = {{{0, 0, 0, 0}, {0, 0, 0, 0}}};
    if (FORM != (int)Q8_0)
        for (uint32_t b = 0; b < 2; b++) {
            u32x4 v = load16(&tables->levels[FORM - (int)C2][b][0]);
            l.t[b][0] = v.x, l.t[b][1] = v.y, l.t[b][2] = v.z, l.t[b][3] = v.w;
        }
    return l;
}

// Four levels of the low four nibbles of `codes`; nibbles of `bits` hold the low bits of the codes before.
template <int FORM> DEVICE uint32_t four_levels(const level_table &l, uint32_t codes, uint32_t bits)
{
    if (FORM == (int)C2) return prmt(l.t[0][0], l.t[1][0], codes | bits << 2);
    uint32_t mask = prmt(0x0000ff00u, 0, bits);
    uint32_t zero, one;
    if (FORM == (int)C3) {
        zero = prmt(l.t[0][0], l.t[0][1], codes);
        one = prmt(l.t[1][0], l.t[1][1], codes);
    } else {
        uint32_t high = prmt(0x0000ff00u, 0, codes >> 3 & 0x1111u), c = codes & 0x7777u;
        zero = (prmt(l.t[0][0], l.t[0][1], c) & ~high) | (prmt(l.t[0][2], l.t[0][3], c) & high);
        one = (prmt(l.t[1][0], l.t[1][1], c) & ~high) | (prmt(l.t[1][2], l.t[1][3], c) & high);
    }
    return (zero & ~mask) | (one & mask);
}

// An octet's levels: elements 0..3 and 4..7. `before`: the codes of which the low bits choose the tables.
template <int FORM>
DEVICE void octet_levels(const level_table &l, uint32_t codes, uint32_t second, uint32_t before, uint32_t &lo,
                         uint32_t &hi)
{
    if (FORM == (int)Q8_0) {
        lo = codes;
        hi = second;
        return;
    }
    uint32_t bits = before & 0x11111111u;
    lo = four_levels<FORM>(l, codes, bits);
    hi = four_levels<FORM>(l, codes >> 16, bits >> 16);
}

#endif
