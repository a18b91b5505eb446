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

/* The search of steps 2 and 5 for one group of one token. */
typedef struct rq_kv_search {
    int32_t next, stride; /* candidate to try, not clamped; distance to the following */
    int32_t centre;       /* of the pair below and above the best so far */
    int32_t exponent, origin;
    uint32_t n_tried;
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
    int32_t base = (rq_kv_log2(energy) - log_g + row->base) >> 5,
            above = ((rq_kv_log2(peak) - 245) >> 4) - base;
    int32_t first = 16 * exponent - 48 + base - 5;
    int32_t stride = above <= 6 ? 2 : above <= 12 ? 4 : above <= 28 ? 8 : 16;
    return (rq_kv_search){
        .next = first,
        .stride = stride,
        .exponent = exponent,
        .origin = rq_kv_clamp(first) - 16,
    };
}

/* The multiplier of the candidate to try now; it is `tried` from here on. */
static inline int32_t rq_kv_search_multiplier(rq_kv_search *s)
{
    s->tried = (uint8_t)rq_kv_clamp(s->next);
    int32_t n = s->tried - 96 - 16 * s->exponent;
    return rq_kv_multiplier(n < -47 ? -47 : n);
}

/* Takes the gain of the candidate tried; false when the search is over. */
static inline bool rq_kv_search_step(rq_kv_search *s, int32_t gain)
{
    uint64_t score = rq_kv_score(gain, (uint32_t)(s->tried - s->origin));
    if (score > s->best_score) {
        s->best_score = score;
        s->best = s->tried;
    }
    s->n_tried++;
    if (s->n_tried < 5) {
        s->next += s->stride;
    } else if (s->n_tried & 1) {
        if (s->stride == 1) return false;
        s->stride /= 2;
        s->centre = s->best ? s->best : s->origin + 16;
        s->next = s->centre - s->stride;
    } else {
        s->next = s->centre + s->stride;
    }
    return true;
}

#endif
