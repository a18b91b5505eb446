/* kv_codec_page.c - blocks of a coded page: packing codes into the words of cache.h, Q8_0 and Q4_0 rows, and the
 * plain decoder that everything faster is compared with. */
#include <math.h>
#include <string.h>

#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

enum { TOKENS = RQ_PAGE_TOKENS, MAX_LOGICAL = RQ_KV_MAX_GROUP / 8 };

/* ---- words ----------------------------------------------------------------------------------------------- */

/* n logical words to rq_kv_words(n) physical ones, and back. */
static void merge_words(uint32_t bits, const uint32_t *w, uint32_t n, uint32_t *p)
{
    uint32_t whole = bits == 3 ? n / 4 * 4 : bits == 2 ? n / 2 * 2 : 0, out = 0;
    for (uint32_t i = 0; i < whole && bits == 3; i += 4)
        for (uint32_t b = 0; b < 3; b++) p[out++] = w[i + b] | (w[i + 3] >> b & 0x11111111u) << 3;
    for (uint32_t i = 0; i < whole && bits == 2; i += 2) p[out++] = w[i] | w[i + 1] << 2;
    for (uint32_t i = whole; i < n; i++) p[out++] = w[i];
}

static void split_words(uint32_t bits, const uint32_t *p, uint32_t n, uint32_t *w)
{
    uint32_t whole = bits == 3 ? n / 4 * 4 : bits == 2 ? n / 2 * 2 : 0, in = 0;
    for (uint32_t i = 0; i < whole && bits == 3; i += 4) {
        w[i + 3] = 0;
        for (uint32_t b = 0; b < 3; b++, in++) {
            w[i + b] = p[in] & 0x77777777u;
            w[i + 3] |= (p[in] >> 3 & 0x11111111u) << b;
        }
    }
    for (uint32_t i = 0; i < whole && bits == 2; i += 2, in++) {
        w[i] = p[in] & 0x33333333u;
        w[i + 1] = p[in] >> 2 & 0x33333333u;
    }
    for (uint32_t i = whole; i < n; i++) w[i] = p[in++];
}

/* Codes in a word: eight nibbles or four bytes. codes[c * stride] goes to place c. */
static uint32_t gather_word(const uint8_t *codes, uint32_t stride, uint32_t n)
{
    uint32_t word = 0;
    for (uint32_t c = 0; c < n; c++) word |= (uint32_t)codes[c * stride] << (c * (32 / n));
    return word;
}

static void scatter_word(uint32_t word, uint8_t *codes, uint32_t stride, uint32_t n)
{
    for (uint32_t c = 0; c < n; c++)
        codes[c * stride] = (uint8_t)(word >> (c * (32 / n)) & ((1u << (32 / n)) - 1));
}

/* Either direction over a whole block. K: the words of a group and token lie TOKENS apart; V: dim apart. */
static void move_words(rq_kv_form form, bool is_v, uint32_t d, uint8_t *codes, uint32_t *words, bool pack)
{
    uint32_t bits = rq_kv_bits(form), per_word = bits == 8 ? 4 : 8;
    uint32_t n_runs = is_v ? 1 : rq_kv_groups(form, d), lanes = is_v ? d : TOKENS, element = 0;
    for (uint32_t run = 0; run < n_runs; run++) {
        uint32_t length = is_v ? TOKENS : rq_kv_group_size(form, d, run);
        uint32_t n = length / per_word, n_physical = rq_kv_words(form, n);
        for (uint32_t lane = 0; lane < lanes; lane++) {
            uint32_t logical[TOKENS], physical[TOKENS];
            uint8_t *first = is_v ? codes + (size_t)lane * TOKENS : codes + (size_t)element * TOKENS + lane;
            uint32_t stride = is_v ? 1 : TOKENS;
            if (pack) {
                for (uint32_t i = 0; i < n; i++)
                    logical[i] = gather_word(first + (size_t)i * per_word * stride, stride, per_word);
                merge_words(bits, logical, n, physical);
                for (uint32_t i = 0; i < n_physical; i++) words[(size_t)i * lanes + lane] = physical[i];
            } else {
                for (uint32_t i = 0; i < n_physical; i++) physical[i] = words[(size_t)i * lanes + lane];
                split_words(bits, physical, n, logical);
                for (uint32_t i = 0; i < n; i++)
                    scatter_word(logical[i], first + (size_t)i * per_word * stride, stride, per_word);
            }
        }
        words += (size_t)n_physical * lanes;
        element += length;
    }
}

void rq_kv_pack(rq_kv_form form, bool is_v, uint32_t d, const uint8_t *codes, uint32_t *words)
{
    move_words(form, is_v, d, (uint8_t *)codes, words, true);
}

void rq_kv_unpack(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, uint8_t *codes)
{
    move_words(form, is_v, d, codes, (uint32_t *)words, false);
}

/* ---- q8_0, q4_0 ------------------------------------------------------------------------------------------ */

/* The layouts are GGML's; so are the rules of their encoders (scale from the largest magnitude, q4_0's from the
 * element itself, so that code 0 = -8 is used). A scale that f16 cannot hold becomes the largest f16. */
static uint64_t encode_q(const float *x, uint32_t n, bool four, uint8_t *codes, uint16_t *scale)
{
    uint64_t n_bad = 0;
    for (uint32_t t = 0; t < TOKENS; t++) {
        float extreme = 0.0f;
        for (uint32_t i = 0; i < n; i++) {
            float v = x[i * TOKENS + t];
            if (!isfinite(v))
                n_bad++;
            else if (fabsf(v) > fabsf(extreme))
                extreme = v;
        }
        float d = four ? extreme / -8.0f : fabsf(extreme) / 127.0f;
        float inverse = d != 0.0f ? 1.0f / d : 0.0f;
        if (!isfinite(inverse)) inverse = 0.0f; /* d is subnormal and 0 as f16 */
        scale[t] = rq_f32_to_f16(d > 65504.0f ? 65504.0f : d < -65504.0f ? -65504.0f : d);
        for (uint32_t i = 0; i < n; i++) {
            float v = x[i * TOKENS + t], q = isfinite(v) ? roundf(v * inverse) : 0.0f;
            int code = four ? (int)fminf(q, 7.0f) + 8 : (int)q;
            codes[i * TOKENS + t] = (uint8_t)code;
        }
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

/* ---- blocks ---------------------------------------------------------------------------------------------- */

uint64_t rq_kv_encode_block(const rq_kv_encoder *encoder, rq_kv_form form, bool is_v, uint32_t d,
                            const float *x, uint32_t *words, void *scales)
{
    uint8_t codes[RQ_KV_MAX_DIM * TOKENS];
    const rq_kv_codec *row = rq_kv_codec_of(form);
    uint32_t n_groups = rq_kv_groups(form, d), element = 0;
    uint64_t n_bad = 0;
    if (!encoder) encoder = rq_kv_encoder_best();
    for (uint32_t g = 0; g < n_groups; g++) {
        uint32_t size = rq_kv_group_size(form, d, g);
        const float *in = x + (size_t)element * TOKENS;
        uint8_t *out = codes + (size_t)element * TOKENS;
        if (row)
            n_bad += encoder->encode(row, in, size, out, (uint8_t *)scales + (size_t)g * TOKENS);
        else if (form == RQ_KV_Q8_0)
            n_bad += rq_kv_encode_q8_0(in, size, out, (uint16_t *)scales + (size_t)g * TOKENS);
        else
            n_bad += rq_kv_encode_q4_0(in, size, out, (uint16_t *)scales + (size_t)g * TOKENS);
        element += size;
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

void rq_kv_unpack_levels(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, int8_t *levels)
{
    uint8_t codes[RQ_KV_MAX_DIM * TOKENS];
    const rq_kv_codec *row = rq_kv_codec_of(form);
    rq_kv_unpack(form, is_v, d, words, codes);
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

float rq_kv_block_scale(rq_kv_form form, const void *scales, uint32_t group, uint32_t token)
{
    size_t at = (size_t)group * TOKENS + token;
    const rq_kv_codec *row = rq_kv_codec_of(form);
    return row ? rq_kv_scale(row, ((const uint8_t *)scales)[at])
               : rq_half_to_f32(((const uint16_t *)scales)[at]);
}

void rq_kv_decode_block(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, const void *scales,
                        float *x)
{
    int8_t levels[RQ_KV_MAX_DIM * TOKENS];
    rq_kv_unpack_levels(form, is_v, d, words, levels);
    uint32_t n_groups = rq_kv_groups(form, d);
    for (uint32_t g = 0, element = 0; g < n_groups; g++)
        for (uint32_t end = element + rq_kv_group_size(form, d, g); element < end; element++)
            for (uint32_t t = 0; t < TOKENS; t++) {
                size_t at = (size_t)element * TOKENS + t;
                x[at] = rq_kv_block_scale(form, scales, g, t) * (float)levels[at];
            }
}
