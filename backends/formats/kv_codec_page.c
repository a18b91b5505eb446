/* kv_codec_page.c - blocks of a coded page: packing codes into the words of cache.h, Q8_0 and Q4_0 rows,
 * and the plain decoder that everything faster is compared with. */
#include <math.h>
#include <string.h>

#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

enum { TOKENS = RQ_PAGE_TOKENS };

/* ---- words ----------------------------------------------------------------------------------------------
 *
 * Both directions work on columns: 64 tokens of K side by side, or the elements of V side by side in the
 * words but one after the other in the codes. */

/* The physical words from `n` logical ones, for `lanes` columns: word i of column c at [i * lanes + c]. */
static void merge_words(uint32_t bits, const uint32_t *w, uint32_t n, uint32_t lanes, uint32_t *p)
{
    uint32_t whole = bits == 3 ? n / 4 * 4 : bits == 2 ? n / 2 * 2 : 0;
    for (uint32_t i = 0; i < whole && bits == 3; i += 4)
        for (uint32_t b = 0; b < 3; b++, p += lanes)
            for (uint32_t c = 0; c < lanes; c++)
                p[c] = w[(size_t)(i + b) * lanes + c] | (w[(size_t)(i + 3) * lanes + c] >> b & 0x11111111u)
                                                            << 3;
    for (uint32_t i = 0; i < whole && bits == 2; i += 2, p += lanes)
        for (uint32_t c = 0; c < lanes; c++)
            p[c] = w[(size_t)i * lanes + c] | w[(size_t)(i + 1) * lanes + c] << 2;
    memcpy(p, w + (size_t)whole * lanes, (size_t)(n - whole) * lanes * sizeof *p);
}

static void split_words(uint32_t bits, const uint32_t *p, uint32_t n, uint32_t lanes, uint32_t *w)
{
    uint32_t whole = bits == 3 ? n / 4 * 4 : bits == 2 ? n / 2 * 2 : 0;
    for (uint32_t i = 0; i < whole && bits == 3; i += 4) {
        uint32_t *last = w + (size_t)(i + 3) * lanes;
        memset(last, 0, lanes * sizeof *last);
        for (uint32_t b = 0; b < 3; b++, p += lanes)
            for (uint32_t c = 0; c < lanes; c++) {
                w[(size_t)(i + b) * lanes + c] = p[c] & 0x77777777u;
                last[c] |= (p[c] >> 3 & 0x11111111u) << b;
            }
    }
    for (uint32_t i = 0; i < whole && bits == 2; i += 2, p += lanes)
        for (uint32_t c = 0; c < lanes; c++) {
            w[(size_t)i * lanes + c] = p[c] & 0x33333333u;
            w[(size_t)(i + 1) * lanes + c] = p[c] >> 2 & 0x33333333u;
        }
    memcpy(w + (size_t)whole * lanes, p, (size_t)(n - whole) * lanes * sizeof *w);
}

/* Logical words of 64 columns of K: n words of `per_word` codes (8 nibbles or 4 bytes), codes [.][64]. */
static void k_words(const uint8_t *codes, uint32_t n, uint32_t per_word, uint32_t *w)
{
    for (uint32_t i = 0; i < n; i++, w += TOKENS) {
        memset(w, 0, TOKENS * sizeof *w);
        for (uint32_t c = 0; c < per_word; c++, codes += TOKENS)
            for (uint32_t t = 0; t < TOKENS; t++) w[t] |= (uint32_t)codes[t] << (c * (32 / per_word));
    }
}

static void k_codes(const uint32_t *w, uint32_t n, uint32_t per_word, uint8_t *codes)
{
    uint32_t mask = per_word == 8 ? 15 : 255;
    for (uint32_t i = 0; i < n; i++, w += TOKENS)
        for (uint32_t c = 0; c < per_word; c++, codes += TOKENS)
            for (uint32_t t = 0; t < TOKENS; t++) codes[t] = (uint8_t)(w[t] >> (c * (32 / per_word)) & mask);
}

/* Eight bytes below 16 to eight nibbles, and back. */
static uint32_t bytes_to_nibbles(uint64_t b)
{
    b = (b | b >> 4) & 0x00ff00ff00ff00ffu;
    b = (b | b >> 8) & 0x0000ffff0000ffffu;
    return (uint32_t)(b | b >> 16);
}

static uint64_t nibbles_to_bytes(uint32_t n)
{
    uint64_t b = (n | (uint64_t)n << 16) & 0x0000ffff0000ffffu;
    b = (b | b << 8) & 0x00ff00ff00ff00ffu;
    return (b | b << 4) & 0x0f0f0f0f0f0f0f0fu;
}

static uint64_t load_bytes(const uint8_t *p, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static void store_bytes(uint8_t *p, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> (8 * i));
}

/* Elements of V at a time: their logical words fit the nearest cache. */
enum { V_COLUMNS = 64 };

static void pack_v(rq_kv_form form, uint32_t d, const uint8_t *codes, uint32_t *words)
{
    uint32_t bits = rq_kv_bits(form), per_word = bits == 8 ? 4 : 8, n = TOKENS / per_word;
    uint32_t n_physical = rq_kv_words(form, n);
    for (uint32_t from = 0; from < d; from += V_COLUMNS) {
        uint32_t lanes = d - from < V_COLUMNS ? d - from : V_COLUMNS;
        uint32_t logical[V_COLUMNS * TOKENS / 4], physical[V_COLUMNS * TOKENS / 4];
        for (uint32_t c = 0; c < lanes; c++)
            for (uint32_t i = 0; i < n; i++) {
                const uint8_t *p = codes + (size_t)(from + c) * TOKENS + (size_t)i * per_word;
                logical[i * lanes + c] =
                    bits == 8 ? (uint32_t)load_bytes(p, 4) : bytes_to_nibbles(load_bytes(p, 8));
            }
        merge_words(bits, logical, n, lanes, physical);
        for (uint32_t i = 0; i < n_physical; i++)
            memcpy(words + (size_t)i * d + from, physical + (size_t)i * lanes, lanes * sizeof *words);
    }
}

static void unpack_v(rq_kv_form form, uint32_t d, const uint32_t *words, uint8_t *codes)
{
    uint32_t bits = rq_kv_bits(form), per_word = bits == 8 ? 4 : 8, n = TOKENS / per_word;
    uint32_t n_physical = rq_kv_words(form, n);
    for (uint32_t from = 0; from < d; from += V_COLUMNS) {
        uint32_t lanes = d - from < V_COLUMNS ? d - from : V_COLUMNS;
        uint32_t logical[V_COLUMNS * TOKENS / 4], physical[V_COLUMNS * TOKENS / 4];
        for (uint32_t i = 0; i < n_physical; i++)
            memcpy(physical + (size_t)i * lanes, words + (size_t)i * d + from, lanes * sizeof *words);
        split_words(bits, physical, n, lanes, logical);
        for (uint32_t c = 0; c < lanes; c++)
            for (uint32_t i = 0; i < n; i++) {
                uint32_t w = logical[i * lanes + c];
                store_bytes(codes + (size_t)(from + c) * TOKENS + (size_t)i * per_word,
                            bits == 8 ? w : nibbles_to_bytes(w), (int)per_word);
            }
    }
}

static void pack_span(rq_kv_form form, bool is_v, uint32_t d, const uint8_t *codes, uint32_t *words)
{
    if (is_v) {
        pack_v(form, d, codes, words);
        return;
    }
    uint32_t bits = rq_kv_bits(form), per_word = bits == 8 ? 4 : 8,
             logical[RQ_KV_MAX_GROUP / 4 * TOKENS] = {0};
    for (uint32_t g = 0, n_groups = rq_kv_groups(form, d); g < n_groups; g++) {
        uint32_t size = rq_kv_group_size(form, d, g), n = size / per_word;
        k_words(codes, n, per_word, logical);
        merge_words(bits, logical, n, TOKENS, words);
        codes += (size_t)size * TOKENS;
        words += (size_t)rq_kv_words(form, n) * TOKENS;
    }
}

static void unpack_span(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, uint8_t *codes)
{
    if (is_v) {
        unpack_v(form, d, words, codes);
        return;
    }
    uint32_t bits = rq_kv_bits(form), per_word = bits == 8 ? 4 : 8,
             logical[RQ_KV_MAX_GROUP / 4 * TOKENS] = {0};
    for (uint32_t g = 0, n_groups = rq_kv_groups(form, d); g < n_groups; g++) {
        uint32_t size = rq_kv_group_size(form, d, g), n = size / per_word;
        split_words(bits, words, n, TOKENS, logical);
        k_codes(logical, n, per_word, codes);
        codes += (size_t)size * TOKENS;
        words += (size_t)rq_kv_words(form, n) * TOKENS;
    }
}

void rq_kv_pack(rq_kv_form form, bool is_v, uint32_t d, const uint8_t *codes, uint32_t *words)
{
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        rq_kv_span s = rq_kv_span_of(form, d, i);
        pack_span(s.form, is_v, s.size, codes + (size_t)s.first * TOKENS,
                  words + rq_kv_span_words(form, is_v, d, i));
    }
}

void rq_kv_unpack(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, uint8_t *codes)
{
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        rq_kv_span s = rq_kv_span_of(form, d, i);
        unpack_span(s.form, is_v, s.size, words + rq_kv_span_words(form, is_v, d, i),
                    codes + (size_t)s.first * TOKENS);
    }
}

/* ---- q8_0, q4_0
 * ------------------------------------------------------------------------------------------ */

/* Nearest integer, ties to even, for |v| < 2^22: what the addition leaves. */
static inline float nearest(float v)
{
    return v + 12582912.0f - 12582912.0f;
}

/* The layouts are GGML's, and so are the rules (q8_0: scale from the largest magnitude; q4_0: from the
 * element itself, so that code 0 = -8 is used) up to how ties are rounded. A scale that f16 cannot hold
 * becomes the largest f16, and codes stop at the end of their range; one that f32 cannot invert becomes 0. */
static uint64_t encode_q(const float *x, uint32_t n, bool four, uint8_t *codes, uint16_t *scale)
{
    const float lowest = four ? -8.0f : -127.0f, highest = four ? 7.0f : 127.0f;
    float extreme[TOKENS] = {0}, inverse[TOKENS];
    uint32_t bad[TOKENS] = {0};
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < TOKENS; t++) {
            uint32_t bits = rq_f32_bits(x[i * TOKENS + t]), finite = (bits & 0x7fffffffu) < 0x7f800000u;
            uint32_t most = rq_f32_bits(extreme[t]);
            uint32_t larger = (bits & 0x7fffffffu) > (most & 0x7fffffffu);
            extreme[t] = rq_bits_f32(rq_select_u32(finite & larger, bits, most));
            bad[t] += !finite;
        }
    uint64_t n_bad = 0;
    for (uint32_t t = 0; t < TOKENS; t++) {
        float d = four ? extreme[t] / -8.0f : fabsf(extreme[t]) / 127.0f;
        d = fmaxf(-65504.0f, fminf(65504.0f, d));
        inverse[t] = fabsf(d) > 0x1p-126f ? 1.0f / d : 0.0f;
        scale[t] = rq_f32_to_f16(d);
        n_bad += bad[t];
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < TOKENS; t++) {
            float v = x[i * TOKENS + t];
            uint32_t finite = (rq_f32_bits(v) & 0x7fffffffu) < 0x7f800000u;
            float q = rq_bits_f32(rq_select_u32(finite, rq_f32_bits(v), 0)) * inverse[t];
            q = q < lowest ? lowest : q;
            int32_t code = (int32_t)nearest(q > highest ? highest : q);
            codes[i * TOKENS + t] = (uint8_t)(four ? code + 8 : code);
        }
    return n_bad;
}

uint64_t rq_kv_encode_q8_0(const float *x, uint32_t n, uint8_t *codes, uint16_t *scale)
{
    return encode_q(x, n, false, codes, scale);
}

uint64_t rq_kv_encode_q4_0(const float *x, uint32_t n, uint8_t *codes, uint16_t *scale)
{
    return encode_q(x, n, true, codes, scale);
}

/* ---- blocks
 * ---------------------------------------------------------------------------------------------- */

/* x and codes of one span, scales of its groups; returns how many inputs were not finite. */
static uint64_t encode_span(const rq_kv_encoder *encoder, rq_kv_form form, uint32_t d, const float *x,
                            uint8_t *codes, void *scales)
{
    const rq_kv_codec *row = rq_kv_codec_of(form);
    uint32_t n_groups = rq_kv_groups(form, d);
    uint64_t n_bad = 0;
    for (uint32_t g = 0; g < n_groups; g++) {
        uint32_t size = rq_kv_group_size(form, d, g);
        if (row)
            n_bad += encoder->encode(row, x, size, codes, (uint8_t *)scales + (size_t)g * TOKENS);
        else if (form == RQ_KV_Q8_0)
            n_bad += rq_kv_encode_q8_0(x, size, codes, (uint16_t *)scales + (size_t)g * TOKENS);
        else
            n_bad += rq_kv_encode_q4_0(x, size, codes, (uint16_t *)scales + (size_t)g * TOKENS);
        x += (size_t)size * TOKENS;
        codes += (size_t)size * TOKENS;
    }
    return n_bad;
}

/* Where span i's scales start: those of spans after the first are bytes. */
static void *scales_of(rq_kv_form form, uint32_t d, uint32_t i, const void *scales)
{
    return (uint8_t *)scales + (size_t)rq_kv_span_groups(form, d, i) * TOKENS;
}

uint64_t rq_kv_encode_block(const rq_kv_encoder *encoder, rq_kv_form form, bool is_v, uint32_t d,
                            const float *x, uint32_t *words, void *scales)
{
    uint8_t codes[RQ_KV_MAX_DIM * TOKENS];
    memset(codes, 0, (size_t)d * TOKENS);
    uint64_t n_bad = 0;
    if (!encoder) encoder = rq_kv_encoder_best();
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        rq_kv_span s = rq_kv_span_of(form, d, i);
        size_t at = (size_t)s.first * TOKENS;
        n_bad += encode_span(encoder, s.form, s.size, x + at, codes + at, scales_of(form, d, i, scales));
    }
    rq_kv_pack(form, is_v, d, codes, words);
    return n_bad;
}

void rq_kv_levels(const rq_kv_codec *row, uint32_t G, const uint8_t *codes, int8_t *levels)
{
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0, before = 0; i < G; i++) {
            uint32_t at = rq_kv_step_element(G, i) * TOKENS + t;
            levels[at] = row->level[before & 1][codes[at] & ((1u << row->bits) - 1)];
            before = codes[at];
        }
}

static void levels_of_span(rq_kv_form form, uint32_t d, const uint8_t *codes, int8_t *levels)
{
    const rq_kv_codec *row = rq_kv_codec_of(form);
    if (!row) {
        int offset = form == RQ_KV_Q4_0 ? 8 : 0;
        for (size_t i = 0; i < (size_t)d * TOKENS; i++) levels[i] = (int8_t)((int8_t)codes[i] - offset);
        return;
    }
    uint32_t n_groups = rq_kv_groups(form, d);
    for (uint32_t g = 0, element = 0; g < n_groups; g++) {
        uint32_t size = rq_kv_group_size(form, d, g);
        rq_kv_levels(row, size, codes + (size_t)element * TOKENS, levels + (size_t)element * TOKENS);
        element += size;
    }
}

void rq_kv_unpack_levels(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, int8_t *levels)
{
    uint8_t codes[RQ_KV_MAX_DIM * TOKENS];
    memset(codes, 0, (size_t)d * TOKENS);
    rq_kv_unpack(form, is_v, d, words, codes);
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        rq_kv_span s = rq_kv_span_of(form, d, i);
        levels_of_span(s.form, s.size, codes + (size_t)s.first * TOKENS, levels + (size_t)s.first * TOKENS);
    }
}

float rq_kv_block_scale(rq_kv_form form, const void *scales, uint32_t group, uint32_t token)
{
    size_t at = (size_t)group * TOKENS + token;
    const rq_kv_codec *row = rq_kv_codec_of(form);
    return row ? rq_kv_scale(row, ((const uint8_t *)scales)[at])
               : rq_half_to_f32(((const uint16_t *)scales)[at]);
}

static void decode_span(rq_kv_form form, uint32_t d, const int8_t *levels, const void *scales, float *x)
{
    uint32_t n_groups = rq_kv_groups(form, d);
    for (uint32_t g = 0, element = 0; g < n_groups; g++)
        for (uint32_t end = element + rq_kv_group_size(form, d, g); element < end; element++)
            for (uint32_t t = 0; t < TOKENS; t++) {
                size_t at = (size_t)element * TOKENS + t;
                x[at] = rq_kv_block_scale(form, scales, g, t) * (float)levels[at];
            }
}

void rq_kv_decode_block(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, const void *scales,
                        float *x)
{
    int8_t levels[RQ_KV_MAX_DIM * TOKENS];
    memset(levels, 0, (size_t)d * TOKENS);
    rq_kv_unpack_levels(form, is_v, d, words, levels);
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        rq_kv_span s = rq_kv_span_of(form, d, i);
        size_t at = (size_t)s.first * TOKENS;
        decode_span(s.form, s.size, levels + at, scales_of(form, d, i, scales), x + at);
    }
}
