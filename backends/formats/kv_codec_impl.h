/* kv_codec_impl.h - what the implementations of the encoder share. */
#ifndef RQ_KV_CODEC_IMPL_H
#define RQ_KV_CODEC_IMPL_H

#include "backends/formats/kv_codec.h"

uint64_t rq_kv_encode_scalar(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                             uint8_t *scale);

enum { RQ_KV_MIN_EXPONENT = -24 };

/* The first candidate of step 2, for an energy of at least 1; log_g = rq_kv_log2(G). */
static inline int32_t rq_kv_first(const rq_kv_codec *row, int32_t exponent, uint32_t energy, int32_t log_g)
{
    int32_t base = 16 * exponent - 48 + ((rq_kv_log2(energy) - log_g + row->base) >> 5);
    int32_t first = base - 5;
    return first < 1 ? 1 : first > 256 - RQ_KV_CANDIDATES ? 256 - RQ_KV_CANDIDATES : first;
}

/* The multiplier of candidate e. */
static inline int32_t rq_kv_candidate_multiplier(int32_t e, int32_t exponent)
{
    int32_t n = e - 96 - 16 * exponent;
    return rq_kv_multiplier(n < -47 ? -47 : n);
}

#endif
