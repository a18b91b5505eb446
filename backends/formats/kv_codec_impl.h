/* kv_codec_impl.h - what the implementations of the encoder share. */
#ifndef RQ_KV_CODEC_IMPL_H
#define RQ_KV_CODEC_IMPL_H

#include <math.h>

#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"

uint64_t rq_kv_encode_scalar(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                             uint8_t *scale);
uint64_t rq_kv_encode_avx2(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                           uint8_t *scale);
uint64_t rq_kv_encode_avx512(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                             uint8_t *scale);
uint64_t rq_kv_encode_neon(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                           uint8_t *scale);

enum { RQ_KV_MIN_EXPONENT = -24 };

/* Step 1: E from the bits of the largest magnitude, the factor 2^(11 - E), max |x_i|. */
static inline int32_t rq_kv_exponent(uint32_t largest)
{
    int32_t exponent = (int32_t)(largest >> 23) - 126;
    return exponent < RQ_KV_MIN_EXPONENT ? RQ_KV_MIN_EXPONENT : exponent;
}

static inline float rq_kv_factor(int32_t exponent)
{
    return rq_bits_f32((uint32_t)(127 + 11 - exponent) << 23);
}

static inline uint32_t rq_kv_peak(uint32_t largest, float factor)
{
    return (uint32_t)lrintf(rq_bits_f32(largest) * factor);
}

/* Bodies of the functions of kv_codec.h, to inline. */
static inline int32_t rq_kv_log2_of(uint32_t n)
{
    /* 256 log2(1 + (i + 1/2) / 128) */
    static const uint8_t fraction[128] = {
        1,   4,   7,   10,  13,  16,  18,  21,  24,  26,  29,  32,  34,  37,  40,  42,  45,  47,  50,
        52,  55,  57,  60,  62,  65,  67,  69,  72,  74,  77,  79,  81,  84,  86,  88,  90,  93,  95,
        97,  99,  102, 104, 106, 108, 110, 112, 114, 117, 119, 121, 123, 125, 127, 129, 131, 133, 135,
        137, 139, 141, 143, 145, 147, 149, 151, 153, 155, 156, 158, 160, 162, 164, 166, 168, 169, 171,
        173, 175, 177, 178, 180, 182, 184, 185, 187, 189, 191, 192, 194, 196, 198, 199, 201, 203, 204,
        206, 208, 209, 211, 212, 214, 216, 217, 219, 220, 222, 224, 225, 227, 228, 230, 231, 233, 234,
        236, 238, 239, 241, 242, 244, 245, 247, 248, 249, 251, 252, 254, 255,
    };
    int top = 31 - __builtin_clz(n);
    return top * 256 + fraction[n << (31 - top) >> 24 & 127];
}

static inline int32_t rq_kv_multiplier_of(int32_t n)
{
    /* 2^(15 - m / 16) */
    static const uint16_t mantissa[16] = {32768, 31379, 30048, 28774, 27554, 26386, 25268, 24196,
                                          23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109};
    int32_t shift = (n + 48) / 16; /* n >= -47: the quotient is floor(n / 16) + 3 */
    return shift > 17 ? 0 : (mantissa[n & 15] + (1 << shift >> 1)) >> shift;
}

static inline uint64_t rq_kv_score_of(int32_t gain, uint32_t j)
{
    static const uint16_t mantissa[8] = {32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097};
    return gain > 0 ? (uint64_t)gain * mantissa[j & 7] << (j >> 3) : 0;
}

/* The search of steps 2 and 5 for one group of one token. */
typedef struct rq_kv_search {
    int32_t next, stride; /* candidate to try, not clamped; distance to the following */
    int32_t centre;       /* of the pair below and above the best so far */
    int32_t exponent, origin;
    uint32_t n_left;     /* candidates of the first row, then of the pair */
    uint8_t best, tried; /* 0: none yet */
    uint64_t best_score;
} rq_kv_search;

static inline int32_t rq_kv_clamp(int32_t e)
{
    return e < 1 ? 1 : e > 255 ? 255 : e;
}

/* energy = sum x_i^2 > 0, peak = max |x_i|, log_g = rq_kv_log2(G). */
static inline rq_kv_search rq_kv_search_start(const rq_kv_codec *row, int32_t exponent, uint32_t energy,
                                              uint32_t peak, int32_t log_g)
{
    int32_t base = (rq_kv_log2_of(energy) - log_g + row->base) >> 5;
    int32_t above = ((rq_kv_log2_of(peak) - 245) >> 4) - base;
    int32_t stride = above <= 10 ? 2 : above <= 18 ? 4 : 8;
    int32_t first = 16 * exponent - 48 + base + ((row->slope * above + row->offset) >> 5) - stride;
    return (rq_kv_search){
        .next = first,
        .stride = stride,
        .n_left = stride > 2 ? 4 : 3,
        .exponent = exponent,
        .origin = rq_kv_clamp(first) - 16,
    };
}

/* The multiplier of the candidate to try now; it is `tried` from here on. */
static inline int32_t rq_kv_search_multiplier(rq_kv_search *s)
{
    s->tried = (uint8_t)rq_kv_clamp(s->next);
    int32_t n = s->tried - 96 - 16 * s->exponent;
    return rq_kv_multiplier_of(n < -47 ? -47 : n);
}

/* Takes the gain of the candidate tried; false when the search is over. */
static inline bool rq_kv_search_step(rq_kv_search *s, int32_t gain)
{
    uint64_t score = rq_kv_score_of(gain, (uint32_t)(s->tried - s->origin));
    if (score > s->best_score) {
        s->best_score = score;
        s->best = s->tried;
    }
    s->n_left--;
    if (s->n_left > 0 && s->centre == 0) {
        s->next += s->stride;
    } else if (s->n_left > 0) {
        s->next = s->centre + s->stride;
    } else {
        if (s->stride == 1) return false;
        s->stride /= 2;
        s->n_left = 2;
        s->centre = s->best ? s->best : s->origin + 16;
        s->next = s->centre - s->stride;
    }
    return true;
}

#endif
