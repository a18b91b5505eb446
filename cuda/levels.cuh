// levels.cuh - coded words to signed bytes, eight at a time, in the order matrix units take them: the four lanes of a
// quad hold neighbouring pairs of octets (eight elements of a token of K, eight tokens of an element of V).
#ifndef RQ_CUDA_LEVELS_CUH
#define RQ_CUDA_LEVELS_CUH

#include "cuda/pages.cuh"

// Codes of octets 2 P and 2 P + 1, a nibble each (Q8_0: bytes, two words an octet).
struct octets {
    uint32_t a, b, a2, b2;
};

// The words that hold octets 2 P and 2 P + 1 of a row of W, `stride` apart; what octets past the end have is zero.
struct raw_words {
    uint32_t w[4];
};

template <int FORM>
DEVICE raw_words fetch_words(const uint32_t *words, uint32_t stride, uint32_t P, uint32_t W)
{
    raw_words o = {{0, 0, 0, 0}};
    bool first = W == 8 || 2 * P < W, second = W == 8 || 2 * P + 1 < W; // eight: the usual, and all of V
    if (FORM == (int)Q8_0) {
        if (first) o.w[0] = words[4 * P * stride], o.w[1] = words[(4 * P + 1) * stride];
        if (second) o.w[2] = words[(4 * P + 2) * stride], o.w[3] = words[(4 * P + 3) * stride];
    }
    if (FORM == (int)C4) {
        if (first) o.w[0] = words[2 * P * stride];
        if (second) o.w[1] = words[(2 * P + 1) * stride];
    }
    if (FORM == (int)C2 && first) o.w[0] = words[P * stride];
    if (FORM == (int)C3) {
        uint32_t set = P / 2, odd = P & 1;
        const uint32_t *w = words + 3 * set * stride;
        if (W == 8 || 4 * set + 4 <= W) {
            // the octet is in the first or the third word, which changes places with it
            uint64_t turned = 2 * odd * stride;
            o.w[0] = w[turned], o.w[1] = w[stride], o.w[2] = w[2 * stride - turned];
        } else {
            if (first) o.w[0] = w[2 * odd * stride];
            if (second) o.w[1] = w[(2 * odd + 1) * stride];
        }
    }
    return o;
}

// The octets of these words.
template <int FORM> DEVICE octets split_words(const raw_words &r, uint32_t P, uint32_t W)
{
    octets o = {0, 0, 0, 0};
    if (FORM == (int)Q8_0) o = {r.w[0], r.w[2], r.w[1], r.w[3]};
    if (FORM == (int)C4) o = {r.w[0], r.w[1], 0, 0};
    if (FORM == (int)C2) {
        o.a = r.w[0] & 0x33333333u;
        o.b = W == 8 || 2 * P + 1 < W ? r.w[0] >> 2 & 0x33333333u : 0;
    }
    if (FORM == (int)C3) {
        uint32_t set = P / 2, odd = P & 1, x = r.w[0], y = r.w[1], z = r.w[2];
        if (W == 8 || 4 * set + 4 <= W) {
            uint32_t fourth = (z >> 3 & 0x11111111u) | (y >> 2 & 0x22222222u) | (x >> 1 & 0x44444444u);
            o.a = x & 0x77777777u;
            o.b = odd ? fourth : y & 0x77777777u;
        } else {
            o.a = x & 0x77777777u;
            o.b = y & 0x77777777u;
        }
    }
    return o;
}

template <int FORM> DEVICE octets load_octets(const uint32_t *words, uint32_t stride, uint32_t P, uint32_t W)
{
    return split_words<FORM>(fetch_words<FORM>(words, stride, P, W), P, W);
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

// Levels of four codes of three bits.
DEVICE uint32_t four_levels3(const uint32_t t[4], uint32_t codes)
{
    return prmt(t[0], t[1], codes);
}
// Codes of four bits; `high` chooses between the table's halves by their highest bit.
DEVICE uint32_t four_levels4(const uint32_t t[4], uint32_t codes, uint32_t high)
{
    return prmt(prmt(t[0], t[1], codes), prmt(t[2], t[3], codes), high);
}

// An octet's levels: elements 0..3 and 4..7. `before`: the codes of which the low bits choose the tables. Levels of both
// tables are looked up; a selector that is 3210 but 4 more in the nibbles of the second table takes what is wanted.
template <int FORM>
DEVICE void octet_levels(const level_table &l, uint32_t codes, uint32_t second, uint32_t before, uint32_t &lo,
                         uint32_t &hi)
{
    uint32_t table = before << 2 & 0x44444444u;
    if (FORM == (int)Q8_0) {
        lo = codes;
        hi = second;
    }
    if (FORM == (int)C2) {
        uint32_t at = table | codes;
        lo = prmt(l.t[0][0], l.t[1][0], at);
        hi = prmt(l.t[0][0], l.t[1][0], at >> 16);
    }
    if (FORM == (int)C3) {
        uint32_t choice = table | 0x32103210u;
        lo = prmt(four_levels3(l.t[0], codes), four_levels3(l.t[1], codes), choice);
        hi = prmt(four_levels3(l.t[0], codes >> 16), four_levels3(l.t[1], codes >> 16), choice >> 16);
    }
    if (FORM == (int)C4) {
        uint32_t choice = table | 0x32103210u, high = (codes >> 1 & 0x44444444u) | 0x32103210u;
        uint32_t c = codes & 0x77777777u;
        lo = prmt(four_levels4(l.t[0], c, high), four_levels4(l.t[1], c, high), choice);
        c >>= 16, high >>= 16;
        hi = prmt(four_levels4(l.t[0], c, high), four_levels4(l.t[1], c, high), choice >> 16);
    }
}

#endif
