// attend_tile.glsl - attention of a prompt: ROWS rows (queries x the query heads of one KV head) over the pages of one
// work item. Keys, then values, of up to 64 tokens are unpacked once for all rows, as halves in shared memory, from exact
// pages (f16) or codes. Online softmax (Milakov & Gimelshein 2018) over the pages in ascending order. Reads each page
// once for 32 rows, the queries once, writes the results once.
//
// What includes this gives the two products:
//   SCORES(n)  score[row * KEYS + key] for the n keys in kv, all rows; to be multiplied by row_scale(row)
//   VALUES     the sums so far times faded[row], plus weights in `weight` times the values in kv; takes barriers itself
//   RESULT(f)  f(row, element, value) for every sum of this invocation
// and the type of a pair of halves with its conversions: PAIR, pair_of(vec2), pair_bits(uint).
layout(local_size_x_id = 6) in;
layout(constant_id = 0) const uint WIDTH = 128u; // elements of a row of keys or values, rounded up to 32
layout(constant_id = 2) const uint SUMS = 32u;   // floats of an invocation's results
layout(constant_id = 6) const uint INVOCATIONS = 128u;
const uint ROWS = 32u;
const uint KEYS = WIDTH <= 128u ? 64u : 32u;
const uint LANES = INVOCATIONS / ROWS; // invocations of a row in the softmax
const uint STRIDE = WIDTH / 2u + PADDING;
const float FULL = 32768.0; // a weight of one as a half: small ones keep their digits where subnormals are dropped
shared PAIR kv[KEYS * STRIDE];
shared PAIR weight[ROWS * KEYS / 2u];
shared float score[ROWS * KEYS];
shared float value_scale[8u * 64u];
shared float faded[ROWS];
shared float level_k[64], level_v[64]; // of two spans

// Logical word i of a row of physical words `stride` apart (backends/cache.h), n logical words in all.
uint logical_word(uint64_t words, uint stride, uint form, uint i, uint n)
{
    if (form == C4) return U32(words).d[i * stride];
    if (form == C3) {
        uint set = i / 4u, j = i % 4u;
        if (4u * set + 4u > n) return U32(words).d[(3u * set + j) * stride] & 0x77777777u;
        if (j < 3u) return U32(words).d[(3u * set + j) * stride] & 0x77777777u;
        uint a = U32(words).d[3u * set * stride], b = U32(words).d[(3u * set + 1u) * stride],
             c = U32(words).d[(3u * set + 2u) * stride];
        return a >> 3 & 0x11111111u | b >> 2 & 0x22222222u | c >> 1 & 0x44444444u;
    }
    return U32(words).d[i / 2u * stride] >> 2u * (i & 1u) & 0x33333333u;
}

float scale_of(uint64_t tables, uint64_t scales, uint form, uint at)
{
    if (form == Q8_0) return half_bits(uint(U16(scales).d[at]));
    return F32(tables + TAB_SCALES).d[(form - C2) * 256u + uint(U8(scales).d[at])];
}

float to_limits(float x)
{
    return clamp(x, -65504.0, 65504.0);
}

// Keys [k0, k0 + KEYS) of an exact block, [element][64 tokens].
void exact_keys(uint64_t k, uint dk, uint k0)
{
    for (uint i = gl_LocalInvocationID.x; i < dk / 2u * KEYS; i += INVOCATIONS) {
        uint key = i % KEYS, e = i / KEYS;
        uint a = uint(U16(k).d[2u * e * 64u + k0 + key]), b = uint(U16(k).d[(2u * e + 1u) * 64u + k0 + key]);
        kv[key * STRIDE + e] = pair_bits(a | b << 16);
    }
}

void coded_keys(uint64_t k, uint64_t scales, uint64_t tables, uint whole, uint dk, uint k0)
{
    uint group = 0u;
    for (uint s = 0u; s < spans_of(whole); s++) {
        uint form = span_form(whole, s), first = span_first(whole, dk, s), d = span_size(whole, dk, s), e = first;
        float gain = is_codec(form) ? F32(tables + TAB_CODEC).d[(form - C2) * 5u + 3u] : 1.0;
        for (uint g = 0u, n = groups_of(form, d); g < n; g++, group++) {
            uint size = group_size(form, d, g), w = form == Q8_0 ? size / 4u : size / 8u;
            for (uint i = gl_LocalInvocationID.x; i < w * KEYS; i += INVOCATIONS) {
                uint key = i % KEYS, r = i / KEYS, token = k0 + key;
                float scale = gain * scale_of(tables, scales, form, group * 64u + token);
                if (form == Q8_0) {
                    int v = int(U32(k).d[r * 64u + token]);
                    [[unroll]] for (uint c = 0u; c < 2u; c++)
                        kv[key * STRIDE + e / 2u + 2u * r + c] =
                            pair_of(vec2(to_limits(scale * float(bitfieldExtract(v, int(16u * c), 8))),
                                         to_limits(scale * float(bitfieldExtract(v, int(16u * c + 8u), 8)))));
                } else {
                    uint v = logical_word(k + 4ul * token, 64u, form, r, w);
                    uint before = logical_word(k + 4ul * token, 64u, form, r > 0u ? r - 1u : w - 1u, w);
                    if (r == 0u) before <<= 4;
                    [[unroll]] for (uint c = 0u; c < 4u; c++) {
                        uint a = (v >> 8u * c & 15u) + (before >> 8u * c & 1u) * 16u,
                             b = (v >> 8u * c + 4u & 15u) + (before >> 8u * c + 4u & 1u) * 16u;
                        kv[key * STRIDE + e / 2u + 4u * r + c] =
                            pair_of(vec2(to_limits(scale * level_k[32u * s + a]), to_limits(scale * level_k[32u * s + b])));
                    }
                }
            }
            k += form == Q8_0 ? 256ul * w : 256ul * words_of(form, w);
            e += size;
        }
    }
}

// Scales of the values of a page, with the gain.
void value_scales(uint64_t scales, uint64_t tables, uint whole, uint dv)
{
    uint group = 0u;
    for (uint s = 0u; s < spans_of(whole); s++) {
        uint form = span_form(whole, s), n = groups_of(form, span_size(whole, dv, s));
        float gain = is_codec(form) ? F32(tables + TAB_CODEC).d[(form - C2) * 5u + 4u] : 1.0;
        for (uint i = gl_LocalInvocationID.x; i < 64u * n; i += INVOCATIONS)
            value_scale[64u * group + i] = gain * scale_of(tables, scales, form, 64u * group + i);
        group += n;
    }
}

// What no row sees may be no number.
void exact_values(uint64_t v, uint dv, uint k0, uint from, uint to)
{
    for (uint i = gl_LocalInvocationID.x; i < dv / 2u * KEYS; i += INVOCATIONS) {
        uint e = i % (dv / 2u), key = i / (dv / 2u), token = k0 + key;
        kv[key * STRIDE + e] = pair_bits(token >= from && token < to ? U32(v).d[token * (dv / 2u) + e] : 0u);
    }
}

void coded_values(uint64_t v, uint whole, uint dv, uint k0)
{
    uint group = 0u;
    for (uint s = 0u; s < spans_of(whole); s++) {
        uint form = span_form(whole, s), first = span_first(whole, dv, s), d = span_size(whole, dv, s), e0 = 0u;
        for (uint g = 0u, n = groups_of(form, d); g < n; g++, group++) {
            uint size = group_size(form, d, g), w = size / 8u, per = form == Q8_0 ? 4u : 8u;
            for (uint i = gl_LocalInvocationID.x; i < size / 2u * (KEYS / per); i += INVOCATIONS) {
                uint e = 2u * (i % (size / 2u)), o = i / (size / 2u) + k0 / per; // two elements of `per` tokens
                uint64_t at = v + 4ul * (e0 + e);
                uvec2 x, y = uvec2(0u);
                if (form == Q8_0) {
                    x = uvec2(U32(at).d[o * d], U32(at + 4ul).d[o * d]);
                } else {
                    x = uvec2(logical_word(at, d, form, o, 8u), logical_word(at + 4ul, d, form, o, 8u));
                    // elements before them in trellis order; the first of the group has none
                    uint a = e >= 8u ? e - 8u : e == 0u ? 0u : 8u * (w - 1u) + e - 1u,
                         b = e >= 8u ? e - 7u : 8u * (w - 1u) + e;
                    if (e != 0u) y.x = logical_word(v + 4ul * (e0 + a), d, form, o, 8u);
                    y.y = logical_word(v + 4ul * (e0 + b), d, form, o, 8u);
                }
                for (uint t = 0u; t < per; t++) {
                    uint token = per * o + t, shift = 32u / per * t;
                    float scale = value_scale[64u * group + token];
                    vec2 l;
                    if (form == Q8_0) {
                        l = vec2(float(bitfieldExtract(int(x.x), int(shift), 8)), float(bitfieldExtract(int(x.y), int(shift), 8)));
                    } else {
                        uvec2 c = (x >> shift & 15u) + (y >> shift & 1u) * 16u;
                        l = vec2(level_v[32u * s + c.x], level_v[32u * s + c.y]);
                    }
                    kv[(token - k0) * STRIDE + (first + e0 + e) / 2u] = pair_of(vec2(to_limits(scale * l.x), to_limits(scale * l.y)));
                }
            }
            e0 += size;
        }
        v += 4ul * d * (form == Q8_0 ? 16u : words_of(form, 8u));
    }
}

void levels_fill(uint64_t tables, uint whole, bool is_v)
{
    for (uint i = gl_LocalInvocationID.x; i < 64u; i += INVOCATIONS) {
        uint s = i / 32u, form = span_form(whole, s);
        float l = 0.0;
        if (s < spans_of(whole) && is_codec(form))
            l = float(bitfieldExtract(int(U8(tables + TAB_LEVELS).d[(form - C2) * 32u + i % 32u]), 0, 8));
        if (is_v)
            level_v[i] = l;
        else
            level_k[i] = l;
    }
}

// The tile of this workgroup.
uint n_rows, row_first, heads_per, first_token, kv_head;

// Query and head of a row; rows that are none repeat the last.
uint token_of(uint row)
{
    return first_token + (row_first + min(row, n_rows - 1u)) / heads_per;
}

uint head_of(uint row)
{
    return kv_head * heads_per + (row_first + min(row, n_rows - 1u)) % heads_per;
}
