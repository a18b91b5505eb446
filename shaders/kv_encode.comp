// kv_encode.comp - one side (K or V) of one head of one page into coded form: the rule of formats/kv_codec.h in
// integers, the same bytes as every other implementation. An invocation per token; reads the exact block about
// twelve times (from the second-level cache), writes the coded one once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
layout(local_size_x = 64) in;
const uint MAX_G = 120u;
shared uint pairs[MAX_G / 2u * 64u]; // two 16-bit numbers of one token: elements 2 i and 2 i + 1 in trellis order
shared int levels[32];

const uint MULTIPLIER[16] = uint[16](32768u, 31379u, 30048u, 28774u, 27554u, 26386u, 25268u, 24196u, 23170u,
                                     22188u, 21247u, 20347u, 19484u, 18658u, 17867u, 17109u);
const uint SCORE[8] = uint[8](32768u, 35734u, 38968u, 42495u, 46341u, 50535u, 55109u, 60097u);

int log2_of(uint64_t tables, uint n)
{
    int top = findMSB(n);
    return top * 256 + int(U8(tables + TAB_LOG2).d[n << uint(31 - top) >> 24 & 127u]);
}

int multiplier_of(int n)
{
    int shift = (n + 48) >> 4;
    return shift > 17 ? 0 : (int(MULTIPLIER[n & 15]) + (1 << shift >> 1)) >> shift;
}

int pair_at(uint i)
{
    return bitfieldExtract(int(pairs[i / 2u * 64u + gl_LocalInvocationID.x]), int(i & 1u) * 16, 16);
}

void set_pair(uint i, uint value)
{
    uint at = i / 2u * 64u + gl_LocalInvocationID.x;
    pairs[at] = (i & 1u) != 0u ? pairs[at] & 0xffffu | value << 16 : value & 0xffffu;
}

// One step of the path: costs of ending with low bit 0 and 1, and how.
void advance(int y, int n_codes, inout ivec2 cost, out uvec2 how)
{
    ivec2 next = ivec2(0x7fffffff);
    how = uvec2(0u);
    for (int p = 0; p < 2; p++)
        for (int c = 0; c < n_codes; c++) {
            int l = levels[p * 16 + c], total = (p == 0 ? cost.x : cost.y) + 8 * l * l - 2 * y * l;
            if ((c & 1) == 0) {
                if (total < next.x) {
                    next.x = total;
                    how.x = uint(c | p << 4);
                }
            } else if (total < next.y) {
                next.y = total;
                how.y = uint(c | p << 4);
            }
        }
    cost = next;
}

// a / b rounded to nearest even, both positive and normal, the quotient too.
float divide(float a, float b)
{
    uint x = floatBitsToUint(a), y = floatBitsToUint(b);
    int e = int(x >> 23) - int(y >> 23) + 127;
    uint64_t n = uint64_t(x & 0x7fffffu | 0x800000u) << 26, m = uint64_t(y & 0x7fffffu | 0x800000u);
    uint64_t q = n / m;
    bool sticky = q * m != n;
    if (q < 1ul << 26) { // the quotient of the mantissas is below 1
        q <<= 1;
        e--;
    }
    uint v = uint(q >> 3), rest = uint(q & 7ul) * 2u + uint(sticky); // v: 24 bits
    v += uint(rest > 8u || rest == 8u && (v & 1u) != 0u);
    if (e <= 0) return 0.0;
    return uintBitsToFloat((uint(e) << 23) + (v - 0x800000u));
}

// a: step, pool, tables; u: group, layer
void main()
{
    U32 step = U32(push.a[0]);
    uint64_t pool = push.a[1], tables = push.a[2];
    uint tid = gl_LocalInvocationID.x, group = push.u[0], head = gl_WorkGroupID.y;
    bool is_v = gl_WorkGroupID.z == 1u;
    if (gl_WorkGroupID.x >= step.d[STEP_N_ENCODES + group]) return;
    uint job = step.d[STEP_ENCODES + group] + 2u * gl_WorkGroupID.x, from = step.d[job], to = step.d[job + 1u];
    if (!page_exists(pool, from) || to >= pool_word(pool, G_CODED_PAGES)) return;
    uint row_size = pool_word(pool, is_v ? G_DV : G_DK), whole = pool_word(pool, is_v ? G_FORM_V : G_FORM_K);
    uint type = pool_word(pool, is_v ? G_TYPE_V : G_TYPE_K);
    uint64_t x = page_block(pool, from, push.u[1], head), out_words = coded_block(pool, to, push.u[1], head);
    uint64_t out_scales = out_words + 16ul * (pool_word(pool, G_C_K_16) + pool_word(pool, G_C_V_16));
    if (is_v) {
        x += 16ul * pool_word(pool, G_K_16);
        out_words += 16ul * pool_word(pool, G_C_K_16);
        out_scales += 16ul * pool_word(pool, G_C_KS_16);
    }
    if (whole == SAME) {
        uint n = 4u * pool_word(pool, is_v ? G_V_16 : G_K_16);
        for (uint i = tid; i < n; i += 64u) U32(out_words).d[i] = U32(x).d[i];
        return;
    }
    uint base_element = 0u, base_word = 0u, group_at = 0u; // of the row, of K's words, of the scales
    for (uint span = 0u; span < spans_of(whole); span++) {
        uint form = span_form(whole, span), d = span_size(whole, row_size, span), first = base_element, bits = bits_of(form);
        if (is_codec(form)) {
            if (tid < 32u)
                levels[tid] = bitfieldExtract(int(U8(tables + TAB_LEVELS).d[(form - C2) * 32u + tid]), 0, 8);
        }
        barrier();
        for (uint g = 0u, n_groups = groups_of(form, d); g < n_groups; g++, group_at++) {
            uint size = group_size(form, d, g), w = size / 8u;
            uint largest = 0u;
            for (uint i = 0u; i < size; i++) {
                uint e = base_element + i;
                uint v = floatBitsToUint(load_exact(x, is_v ? tid * row_size + e : e * 64u + tid, type)) & 0x7fffffffu;
                if (v < 0x7f800000u) largest = max(largest, v);
            }
            if (!is_codec(form)) { // Q8_0: element order
                float extreme = uintBitsToFloat(largest);
                float scale = largest < 0x00800000u ? 0.0 : min(divide(extreme, 127.0), 65504.0);
                float inverse = floatBitsToUint(scale) > 0x00800000u ? divide(1.0, scale) : 0.0;
                U16(out_scales).d[group_at * 64u + tid] = uint16_t(to_half_bits(scale));
                for (uint i = 0u; i < size; i++) {
                    uint e = base_element + i;
                    float v = load_exact(x, is_v ? tid * row_size + e : e * 64u + tid, type);
                    if (isnan(v) || isinf(v)) v = 0.0;
                    precise float p = v * inverse;
                    set_pair(i, uint(int(roundEven(clamp(p, -127.0, 127.0)))) & 0xffffu);
                }
            } else {
                int exponent = max(int(largest >> 23) - 126, -24);
                float factor = uintBitsToFloat(uint(127 + 11 - exponent) << 23);
                uint energy = 0u;
                for (uint i = 0u; i < size; i++) {
                    uint e = base_element + 8u * (i % w) + i / w;
                    float v = load_exact(x, is_v ? tid * row_size + e : e * 64u + tid, type);
                    if (isnan(v) || isinf(v)) v = 0.0;
                    precise float p = v * factor;
                    int q = int(roundEven(p));
                    energy += uint(q * q);
                    set_pair(i, uint(q) & 0xffffu);
                }
                uint best = 0u;
                int n_codes = 1 << bits;
                if (energy != 0u) {
                    precise float p = uintBitsToFloat(largest) * factor;
                    uint peak = uint(roundEven(p));
                    uint64_t row = tables + TAB_CODEC + 20u * (form - C2);
                    int base = (log2_of(tables, energy) - log2_of(tables, size) + I32(row).d[0]) >> 5;
                    int above = ((log2_of(tables, peak) - 245) >> 4) - base;
                    int stride = above <= 10 ? 2 : above <= 18 ? 4 : 8, n_left = stride > 2 ? 4 : 3, centre = 0;
                    int candidate =
                        16 * exponent - 48 + base + ((I32(row).d[1] * above + I32(row).d[2]) >> 5) - stride;
                    int origin = clamp(candidate, 1, 255) - 16;
                    uint64_t best_score = 0ul;
                    for (uint guard = 0u; guard < 16u; guard++) {
                        int tried = clamp(candidate, 1, 255);
                        int multiplier = multiplier_of(max(tried - 96 - 16 * exponent, -47));
                        ivec2 cost = ivec2(0, 0x3fffffff);
                        uvec2 how;
                        for (uint i = 0u; i < size; i++)
                            advance((pair_at(i) * multiplier + 2048) >> 12, n_codes, cost, how);
                        int gain = -min(cost.x, cost.y);
                        uint j = uint(tried - origin);
                        uint64_t score = gain > 0 ? uint64_t(uint(gain)) * SCORE[j & 7u] << (j >> 3) : 0ul;
                        if (score > best_score) {
                            best_score = score;
                            best = uint(tried);
                        }
                        n_left--;
                        if (n_left > 0 && centre == 0) {
                            candidate += stride;
                        } else if (n_left > 0) {
                            candidate = centre + stride;
                        } else {
                            if (stride == 1) break;
                            stride /= 2;
                            n_left = 2;
                            centre = best != 0u ? int(best) : origin + 16;
                            candidate = centre - stride;
                        }
                    }
                }
                U8(out_scales).d[group_at * 64u + tid] = uint8_t(best);
                // The path: first the choices of every step, ten bits, in place of the numbers; then backwards.
                ivec2 cost = ivec2(0, 0x3fffffff);
                int multiplier = best == 0u ? 0 : multiplier_of(max(int(best) - 96 - 16 * exponent, -47));
                for (uint i = 0u; i < size && best != 0u; i++) {
                    uvec2 how;
                    advance((pair_at(i) * multiplier + 2048) >> 12, n_codes, cost, how);
                    uint at = i / 2u * 64u + tid, value = how.x | how.y << 5;
                    pairs[at] = (i & 1u) != 0u ? pairs[at] & 0xffffu | value << 16 : pairs[at] & 0xffff0000u | value;
                }
                uint state = cost.x <= cost.y ? 0u : 1u;
                for (uint i = size; i-- > 0u;) {
                    uint at = i / 2u * 64u + tid;
                    uint how = best == 0u ? 0u : (pairs[at] >> (i & 1u) * 16u) >> 5u * state & 31u;
                    state = how >> 4;
                    how &= 15u;
                    pairs[at] = (i & 1u) != 0u ? pairs[at] & 0xffffu | how << 16 : pairs[at] & 0xffff0000u | how;
                }
            }
            barrier();
            // Words. K: the token's own; V: an element's, from the tokens of the page.
            if (form == Q8_0) {
                if (!is_v)
                    for (uint r = 0u; r < size / 4u; r++) {
                        uint v = 0u;
                        [[unroll]] for (uint i = 0u; i < 4u; i++) v |= (uint(pair_at(4u * r + i)) & 255u) << 8u * i;
                        U32(out_words).d[(base_word + r) * 64u + tid] = v;
                    }
                else
                    for (uint i = tid; i < size * 16u; i += 64u) {
                        uint e = i % size, o = i / size, v = 0u;
                        [[unroll]] for (uint n = 0u; n < 4u; n++)
                            v |= (pairs[e / 2u * 64u + 4u * o + n] >> (e & 1u) * 16u & 255u) << 8u * n;
                        U32(out_words).d[o * d + base_element - first + e] = v;
                    }
                base_word += size / 4u;
            } else {
                uint n_logical = is_v ? 8u : w, rows = is_v ? size : 64u;
                for (uint e = tid; e < rows; e += 64u) {
                    uint done = 0u;
                    for (uint l = 0u; l < n_logical;) {
                        uint per = bits == 3u ? 4u : bits == 2u ? 2u : 1u, n = min(per, n_logical - l);
                        if (bits == 3u && n < 4u) n = 1u;
                        uint logical[4];
                        [[unroll]] for (uint i = 0u; i < 4u; i++) {
                            logical[i] = 0u;
                            if (i < n)
                                for (uint c = 0u; c < 8u; c++) {
                                    // trellis step of the element, and the token
                                    uint r = is_v ? e / 8u : l + i, col = is_v ? e % 8u : c, s = col * w + r;
                                    uint token = is_v ? 8u * (l + i) + c : e;
                                    logical[i] |= (pairs[s / 2u * 64u + token] >> (s & 1u) * 16u & 15u) << 4u * c;
                                }
                        }
                        uint n_out = n == 4u ? 3u : 1u;
                        for (uint p = 0u; p < n_out; p++) {
                            uint v = logical[p];
                            if (n == 4u) v |= (logical[3] >> p & 0x11111111u) << 3;
                            if (n == 2u) v |= logical[1] << 2;
                            if (is_v)
                                U32(out_words).d[(done + p) * d + base_element - first + e] = v;
                            else
                                U32(out_words).d[(base_word + done + p) * 64u + e] = v;
                        }
                        done += n_out;
                        l += n;
                    }
                }
                base_word += words_of(form, w);
            }
            base_element += size;
            barrier();
        }
        if (is_v && span + 1u < spans_of(whole)) out_words += 4ul * d * words_of(form, 8u);
    }
}
