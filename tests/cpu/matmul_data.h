/* matmul_data.h - weights for kernel tests: random bytes in every field, with scales that stay moderate. */
#ifndef RQ_TEST_MATMUL_DATA_H
#define RQ_TEST_MATMUL_DATA_H

#include "backends/formats/half.h"
#include "backends/formats/types.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct rq_test_rng {
    uint64_t state;
} rq_test_rng;

/* splitmix64. */
static inline uint64_t rq_test_next(rq_test_rng *g)
{
    uint64_t z = g->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Uniform in [-1, 1). */
static inline float rq_test_uniform(rq_test_rng *g)
{
    return (float)(int32_t)(uint32_t)(rq_test_next(g) >> 32) * 0x1p-31f;
}

/* Sum of four uniforms: bell-shaped, variance 4/3. */
static inline float rq_test_normal(rq_test_rng *g)
{
    return rq_test_uniform(g) + rq_test_uniform(g) + rq_test_uniform(g) + rq_test_uniform(g);
}

static inline void rq_test_put_f16(uint8_t *p, float v)
{
    uint16_t h = rq_half_from_f32(v);
    memcpy(p, &h, sizeof h);
}

/* Offsets of the binary16 fields of a block; -1 ends. */
static inline const int *rq_test_f16_fields(rq_type type)
{
    static const int none[] = {-1}, at0[] = {0, -1}, at0_2[] = {0, 2, -1};
    static const int q2k[] = {80, 82, -1}, q3k[] = {108, -1}, q6k[] = {208, -1}, tq1[] = {52, -1},
                     tq2[] = {64, -1};
    switch (type) {
    case RQ_TYPE_Q4_1:
    case RQ_TYPE_Q5_1:
    case RQ_TYPE_Q4_K:
    case RQ_TYPE_Q5_K:
        return at0_2;
    case RQ_TYPE_Q2_K:
        return q2k;
    case RQ_TYPE_Q3_K:
        return q3k;
    case RQ_TYPE_Q6_K:
        return q6k;
    case RQ_TYPE_TQ1_0:
        return tq1;
    case RQ_TYPE_TQ2_0:
        return tq2;
    case RQ_TYPE_IQ1_M:
    case RQ_TYPE_MXFP4:
    case RQ_TYPE_NVFP4:
        return none;
    default:
        return at0;
    }
}

static inline void rq_test_weights(rq_type type, uint8_t *dst, int64_t n, rq_test_rng *g)
{
    const rq_type_info *info = rq_type_get(type);
    int64_t blocks = n / info->block_elems;
    for (int64_t b = 0; b < blocks; b++, dst += info->block_bytes) {
        float f = rq_test_uniform(g);
        double wide = f;
        uint16_t h;
        switch (type) {
        case RQ_TYPE_F32:
            memcpy(dst, &f, 4);
            continue;
        case RQ_TYPE_F64:
            memcpy(dst, &wide, 8);
            continue;
        case RQ_TYPE_F16:
            rq_test_put_f16(dst, f);
            continue;
        case RQ_TYPE_BF16:
            h = rq_bhalf_from_f32(f);
            memcpy(dst, &h, 2);
            continue;
        default:
            break;
        }
        for (int i = 0; i < info->block_bytes; i++) dst[i] = (uint8_t)(rq_test_next(g) >> 40);
        for (const int *at = rq_test_f16_fields(type); *at >= 0; at++)
            rq_test_put_f16(dst + *at, 0.01f * rq_test_uniform(g));
        if (type == RQ_TYPE_MXFP4) dst[0] = (uint8_t)(118 + dst[0] % 12);
        if (type == RQ_TYPE_NVFP4)
            for (int i = 0; i < 4; i++) dst[i] = dst[i] % 127;
        if (type == RQ_TYPE_IQ1_M) { /* the top nibbles of four words: exponent bits that stay finite */
            h = rq_half_from_f32(0.01f * f);
            for (int i = 0; i < 4; i++)
                dst[49 + 2 * i] = (uint8_t)((dst[49 + 2 * i] & 15) | (h >> 4 * i & 15) << 4);
        }
    }
}

#endif
