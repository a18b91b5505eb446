// attend_coded.cuh - attention of up to eight rows (queries x the query heads of one KV head) on matrix units. Keys and
// values are read once for all rows, straight into the operands of products. Coded ones become 8-bit levels; queries are
// integers of 15 bits, weights times scales of 14, in two planes (hi * 128 + lo), so sums are exact. Exact ones are
// halves; queries are sums of two halves. A row's bits do not depend on the others.
#ifndef RQ_CUDA_ATTEND_CODED_CUH
#define RQ_CUDA_ATTEND_CODED_CUH

#include "cuda/attend.cuh"
#include "cuda/levels.cuh"

CONSTANT uint32_t AC_ROWS = 8, AC_D = 256, AC_TILES = AC_D / 64 /* of 16 elements, of a warp */,
                  AC_GROUPS = 8;

struct coded_state {                                  // in shared memory
    alignas(16) uint16_t q[2][AC_ROWS][AC_D + 8];     // queries: a half, and what it lacks
    alignas(16) int8_t planes[2][AC_ROWS][AC_D + 64]; // of queries
    float s[AC_ROWS][64];
    alignas(16) int8_t weights[AC_GROUPS][2][AC_ROWS][64]; // of an exact page: halves_of
    float weight_scale[AC_GROUPS][AC_ROWS];
    float q_scale[AC_ROWS], shift[AC_ROWS], old[AC_ROWS], split_max[AC_ROWS], split_sum[AC_ROWS];
    float total_max[AC_ROWS], total_sum[AC_ROWS], a[AC_ROWS], b[AC_ROWS];
    uint32_t pos[AC_ROWS], lowest[AC_ROWS], boundary[AC_ROWS];
};

// A row's weights for an exact page. (Four blocks fit into 100 KB of shared memory.)
DEVICE uint16_t *halves_of(coded_state &sh, uint32_t row)
{
    return (uint16_t *)&sh.weights[0][0][0][0] + row * (64 + 8);
}

// v = scale * (128 hi + lo), |128 hi + lo| <= 16256
DEVICE void split_planes(float v, float inverse, int8_t &hi, int8_t &lo)
{
    int i = (int)rintf(v * inverse), h = (i + 64) >> 7;
    hi = (int8_t)h;
    lo = (int8_t)(i - 128 * h);
}

// The nearest integer of v, at most 16256, as 128 hi + lo: each is the lowest byte of a float's bits, to which adding 1.5 *
// 2^23 has brought it.
DEVICE void split_low_bytes(float v, uint32_t &hi, uint32_t &lo)
{
    const float MAGIC = 12582912.0f;
    float h = fmaf(v, 1.0f / 128, MAGIC);
    hi = float_bits(h);
    lo = float_bits(fmaf(h - MAGIC, -128.0f, v) + MAGIC);
}

DEVICE uint32_t low_bytes(const uint32_t v[4])
{
    return prmt(prmt(v[0], v[1], 0x0040), prmt(v[2], v[3], 0x0040), 0x5410);
}

// Scales of four neighbouring tokens, of which `at` is the first.
DEVICE void four_scales(const cuda_tables *tables, const uint8_t *scales, uint32_t form, uint32_t at,
                        float x[4])
{
    if (form == Q8_0) {
        u32x2 v = load8(scales + 2 * at);
        x[0] = half_float(v.x & 0xffffu), x[1] = half_float(v.x >> 16);
        x[2] = half_float(v.y & 0xffffu), x[3] = half_float(v.y >> 16);
        return;
    }
    uint32_t codes = load4(scales + at);
    const float *table = tables->scales[form - C2];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) x[i] = table[codes >> 8 * i & 255u];
}

// The octets of two rows, `apart` words from one another, `stride` between the words of a row of eight octets. Of codes
// of three bits the second octet of an odd lane is made of bits of three words, which its neighbour in the quad reads too:
// each of the two makes it for one of the rows.
template <int FORM>
DEVICE void two_octets(const uint32_t *words, uint32_t stride, uint32_t apart, octets o[2])
{
    uint32_t t = thread_x() % 4;
    if (FORM != (int)C3) {
        o[0] = load_octets<FORM>(words, stride, t, 8);
        o[1] = load_octets<FORM>(words + apart, stride, t, 8);
        return;
    }
    bool odd = (t & 1) != 0;
    const uint32_t *set = words + t / 2 * 3 * stride, *own = set + (odd ? 2 * stride : 0),
                   *shared = set + (odd ? apart : 0);
    uint32_t made = (shared[0] >> 3 & 0x11111111u) | (shared[stride] >> 2 & 0x22222222u) |
                    (shared[2 * stride] >> 1 & 0x44444444u);
    uint32_t given = shfl_xor(made, 1);
    o[0] = {own[0] & 0x77777777u, odd ? given : set[stride] & 0x77777777u, 0, 0};
    o[1] = {own[apart] & 0x77777777u, odd ? made : set[stride + apart] & 0x77777777u, 0, 0};
}

// Adds to sum the scores of this warp's 16 keys in a span of a coded page: tiles of 16 keys x 8 rows.
// SIZE: the span's elements where they are known, a multiple of 64; here and below.
template <int FORM, uint32_t SIZE>
DEVICE void span_scores(coded_state &sh, const uint8_t *k, const uint8_t *scales, const cuda_tables *tables,
                        span part, float sum[4])
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, g = lane / 4, t = lane % 4,
             token = 16 * warp + g;
    level_table levels = load_levels<FORM>(tables);
    const uint32_t *words = (const uint32_t *)k + part.words + token;
    float gain = is_codec(FORM) ? tables->gain_k[FORM - (int)C2] : 1.0f;
#pragma unroll 1
    for (uint32_t group = 0, e = part.first, n = groups_of(FORM, part.size); group < n; group++) {
        uint32_t size = group_size(FORM, part.size, group), W = size / 8, last[2] = {0, 0};
        int32_t hi[4] = {0, 0, 0, 0}, lo[4] = {0, 0, 0, 0};
        if (FORM != (int)Q8_0 && W != 8)
            for (uint32_t r = 0; r < 2; r++) last[r] = logical_word(words + 8 * r, 64, FORM, W - 1, W);
        for (uint32_t unit = 0; 8 * unit < W; unit++) {
            uint32_t P = 4 * unit + t, a0[4], a1[4];
            octets both[2];
            if (SIZE) two_octets<FORM>(words, 64, 8, both);
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                octets o = both[r];
                if (!SIZE) o = load_octets<FORM>(words + 8 * r, 64, P, W);
                uint32_t before = 0;
                if (FORM != (int)Q8_0) {
                    uint32_t from = shfl(o.b, (lane & ~3u) | ((t + 3) & 3));
                    before = from;
                    if (t == 0) before = unit > 0 ? last[r] : (W == 8 ? from : last[r]) << 4;
                    last[r] = from; // lane 0 of the quad needs lane 3's in the next unit
                }
                octet_levels<FORM>(levels, o.a, o.a2, before, a0[r], a0[2 + r]);
                octet_levels<FORM>(levels, o.b, o.b2, o.a, a1[r], a1[2 + r]);
                if (2 * P >= W) a0[r] = a0[2 + r] = 0;
                if (2 * P + 1 >= W) a1[r] = a1[2 + r] = 0;
            }
            const int8_t *q = &sh.planes[0][g][e + 16 * P];
#pragma unroll
            for (uint32_t plane = 0; plane < 2; plane++) {
                u32x2 q0 = load8(q + plane * AC_ROWS * (AC_D + 64)),
                      q1 = load8(q + plane * AC_ROWS * (AC_D + 64) + 8);
                const uint32_t b0[2] = {q0.x, q0.y}, b1[2] = {q1.x, q1.y};
                mma_s8(plane == 0 ? hi : lo, a0, b0);
                mma_s8(plane == 0 ? hi : lo, a1, b1);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            float scale =
                group_scale(tables, scales, FORM, (part.groups + group) * 64 + token + i / 2 * 8) * gain;
            sum[i] = fmaf((float)(128 * hi[i] + lo[i]), scale, sum[i]);
        }
        words += 64 * (FORM == (int)Q8_0 ? size / 4 : words_of(FORM, W));
        e += size;
    }
}

// SIZE: of a row that is one span.
template <uint32_t SIZE>
DEVICE void coded_scores(coded_state &sh, const uint8_t *k, const uint8_t *scales, const cuda_tables *tables,
                         uint32_t form, uint32_t dk)
{
    uint32_t lane = thread_x() % 32, token = 16 * (thread_x() / 32) + lane / 4;
    span first = span_at(form, false, dk, 0);
    float sum[4] = {0, 0, 0, 0};
    if (first.form == Q8_0) span_scores<(int)Q8_0, SIZE>(sh, k, scales, tables, first, sum);
    if (first.form == C3) span_scores<(int)C3, SIZE>(sh, k, scales, tables, first, sum);
    if (first.form == C4) span_scores<(int)C4, SIZE>(sh, k, scales, tables, first, sum);
    if (form == C2 || form == C42)
        span_scores<(int)C2, SIZE>(sh, k, scales, tables, span_at(form, false, dk, 1), sum);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = 2 * (lane % 4) + i % 2;
        sh.s[row][token + i / 2 * 8] = sum[i] * sh.q_scale[row];
    }
}

// Adds to `out` what the keys of a coded page give to this warp's elements in a span: tiles of 16 elements x 8 rows.
template <int FORM, uint32_t TILES, uint32_t SIZE>
DEVICE void span_values(coded_state &sh, const uint8_t *values, const cuda_tables *tables, span part,
                        float out[TILES][4])
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, g = lane / 4, t = lane % 4;
    level_table levels = load_levels<FORM>(tables);
    const uint32_t *words = (const uint32_t *)values + part.words;
    uint32_t dv = part.size;
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++) {
        uint32_t d = 16 * (warp + 4 * i) - part.first; // below the span: very large
        if (!SIZE && d >= dv) continue;
        uint32_t group = SIZE ? i : 0, start = SIZE ? 64 * i : 0, size = SIZE ? 64 : group_size(FORM, dv, 0);
        while (!SIZE && d >= start + size) {
            start += size;
            size = group_size(FORM, dv, ++group);
        }
        uint32_t e = d - start + g, W = size / 8; // this lane's elements are e and e + 8 of the group
        octets before = {0, 0, 0, 0};
        if (FORM != (int)Q8_0 && (SIZE || e != 0)) {
            uint32_t at = e >= 8 ? e - 8 : 8 * (W - 1) + e - (uint32_t)(e != 0);
            before = load_octets<FORM>(words + start + at, dv, t, 8);
            if (e == 0) before.a = before.b = 0;
        }
        uint32_t a0[4], a1[4];
        octets both[2];
        if (SIZE) two_octets<FORM>(words + start + e, dv, 8, both);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            octets o = both[r];
            if (!SIZE) o = load_octets<FORM>(words + start + e + 8 * r, dv, t, 8);
            octet_levels<FORM>(levels, o.a, o.a2, before.a, a0[r], a0[2 + r]);
            octet_levels<FORM>(levels, o.b, o.b2, before.b, a1[r], a1[2 + r]);
            before = o;
        }
        int32_t hi[4] = {0, 0, 0, 0}, lo[4] = {0, 0, 0, 0};
        group += part.groups;
#pragma unroll
        for (uint32_t plane = 0; plane < 2; plane++) {
            const int8_t *w = &sh.weights[group][plane][g][16 * t];
            u32x4 v = load16(w);
            const uint32_t b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
            mma_s8(plane == 0 ? hi : lo, a0, b0);
            mma_s8(plane == 0 ? hi : lo, a1, b1);
        }
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t row = 2 * t + k % 2;
            out[i][k] = fmaf((float)(128 * hi[k] + lo[k]), sh.weight_scale[group][row], out[i][k]);
        }
    }
}

template <uint32_t TILES, uint32_t SIZE>
DEVICE void coded_values(coded_state &sh, const uint8_t *values, const cuda_tables *tables, uint32_t form,
                         uint32_t dv, float out[TILES][4])
{
    span first = span_at(form, true, dv, 0);
    if (first.form == Q8_0) span_values<(int)Q8_0, TILES, SIZE>(sh, values, tables, first, out);
    if (first.form == C3) span_values<(int)C3, TILES, SIZE>(sh, values, tables, first, out);
    if (first.form == C4) span_values<(int)C4, TILES, SIZE>(sh, values, tables, first, out);
    if (form == C2 || form == C42)
        span_values<(int)C2, TILES, SIZE>(sh, values, tables, span_at(form, true, dv, 1), out);
}

// ---- exact pages of halves: words of two neighbours, of which two make operands that neighbour the other way

// Scores of this warp's 16 keys. The tile's rows g and g + 8 are the keys 2 g and 2 g + 1.
DEVICE void exact_scores(coded_state &sh, const uint8_t *k, uint32_t dk)
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, g = lane / 4, t = lane % 4;
    const uint32_t *words = (const uint32_t *)k + 8 * warp + g; // 32 words for an element
    float sum[4] = {0, 0, 0, 0};
#pragma unroll 4
    for (uint32_t d = 2 * t; d < dk; d += 16) {
        uint32_t x = words[32 * d], y = words[32 * d + 32], z = words[32 * d + 256], u = words[32 * d + 288];
        const uint32_t a[4] = {prmt(x, y, 0x5410), prmt(x, y, 0x7632), prmt(z, u, 0x5410),
                               prmt(z, u, 0x7632)};
#pragma unroll
        for (uint32_t part = 0; part < 2; part++) {
            const uint32_t b[2] = {load4(&sh.q[part][g][d]), load4(&sh.q[part][g][d + 8])};
            mma_f16(sum, a, b);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) sh.s[2 * t + i % 2][16 * warp + 2 * g + i / 2] = sum[i];
}

// Adds what the keys below `end` give to this warp's elements. PAIRED: the tile's rows g and g + 8 are the elements
// 2 g and 2 g + 1; else g and g + 8, as coded pages have them.
template <bool PAIRED, uint32_t TILES>
DEVICE void exact_values(coded_state &sh, const uint8_t *v, uint32_t dv, uint32_t end, float out[TILES][4])
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++) {
        uint32_t first = 16 * (warp + 4 * i);
        if (first >= dv) continue;
#pragma unroll
        for (uint32_t kk = 0; kk < 4; kk++) {
            uint32_t token = 16 * kk + 2 * t, a[4];
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) { // what nobody has written may be no number
                bool there = token + 8 * h < end, both = token + 8 * h + 1 < end;
                if (PAIRED) {
                    const uint32_t *at = (const uint32_t *)v + ((token + 8 * h) * dv + first) / 2 + g;
                    uint32_t x = there ? at[0] : 0, y = both ? at[dv / 2] : 0;
                    a[2 * h] = prmt(x, y, 0x5410);
                    a[2 * h + 1] = prmt(x, y, 0x7632);
                } else {
                    const uint16_t *at = (const uint16_t *)v + (token + 8 * h) * dv + first + g;
                    a[2 * h] = (there ? at[0] : 0u) | (both ? (uint32_t)at[dv] << 16 : 0u);
                    a[2 * h + 1] = (there ? at[8] : 0u) | (both ? (uint32_t)at[dv + 8] << 16 : 0u);
                }
            }
            const uint32_t b[2] = {load4(halves_of(sh, g) + token), load4(halves_of(sh, g) + token + 8)};
            mma_f16(out[i], a, b);
        }
    }
}

// Largest and sum over the 16 threads that share a row of scores.
DEVICE float row_max(float v)
{
    for (uint32_t m = 8; m > 0; m >>= 1) v = fmaxf(v, shfl_xor(v, m));
    return v;
}
DEVICE float row_sum(float v)
{
    for (uint32_t m = 8; m > 0; m >>= 1) v += shfl_xor(v, m);
    return v;
}

// Weights of a page, from scores: a row's 16 threads have four keys each. Coded pages (scales: of values) want, for each
// group of values, weights times scales in integers of 14 bits; exact ones halves.
DEVICE void weigh(coded_state &sh, const cuda_attend_args &p, uint32_t page_index, uint32_t seen,
                  const uint8_t *scales, uint32_t value_groups, const span &last_span)
{
    const float LOG2_E = 1.44269504088896341f;
    uint32_t row = thread_x() / 16, part = thread_x() % 16;
    float s[4], largest = NOTHING, sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t j = page_index * 64 + 4 * part + i;
        s[i] = sh.s[row][4 * part + i];
        if (p.softcap > 0) s[i] = p.softcap * tanhf((s[i] + sh.shift[row]) / p.softcap);
        if ((seen >> row & 1u) == 0 || j > sh.pos[row] || j < sh.lowest[row]) s[i] = NOTHING;
        largest = fmaxf(largest, s[i]);
    }
    largest = row_max(largest);
    float before = sh.split_max[row], new_max = fmaxf(before, largest);
    float old = largest == NOTHING ? 1.0f : before == NOTHING ? 0.0f : exp2_fast((before - new_max) * LOG2_E);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        s[i] = s[i] == NOTHING ? 0.0f : exp2_fast((s[i] - new_max) * LOG2_E);
        sum += s[i];
    }
    sum = row_sum(sum);
    warp_sync();
    if (part == 0) {
        sh.old[row] = old;
        sh.split_max[row] = new_max;
        sh.split_sum[row] = fmaf(sh.split_sum[row], old, sum);
    }
    if (!scales) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) sh.s[row][4 * part + i] = s[i];
        store8(halves_of(sh, row) + 4 * part, {half2_bits(s[0], s[1]), half2_bits(s[2], s[3])});
        return;
    }
    for (uint32_t group = 0; group < value_groups; group++) {
        uint32_t form = group < last_span.groups ? C4 : last_span.form, hi[4], lo[4];
        float x[4], most = 0;
        four_scales(p.tables, scales, form, group * 64 + 4 * part, x);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            x[i] *= s[i];
            most = fmaxf(most, x[i]);
        }
        most = row_max(most);
        // by the power of two that brings the largest between 4096 and 8192
        uint32_t exponent = float_bits(most) & 0x7f800000u;
        bool any = most > 1e-30f;
        float inverse = any ? bits_float(((127u + 12 + 127) << 23) - exponent) : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) split_low_bytes(x[i] * inverse, hi[i], lo[i]);
        store4(&sh.weights[group][0][row][4 * part], low_bytes(hi));
        store4(&sh.weights[group][1][row][4 * part], low_bytes(lo));
        if (part == 0) {
            float gain = form == Q8_0 ? 1.0f : p.tables->gain_v[form - C2];
            sh.weight_scale[group][row] = any ? bits_float(exponent - (12u << 23)) * gain : 0.0f;
        }
    }
}

#endif
