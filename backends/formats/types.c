/* types.c - the table of tensor element types, half precision, row sizes. */
#include "backends/formats/types.h"

#include <stddef.h>
#include <strings.h>

#include "backends/formats/dequantize.h"
#include "backends/formats/half.h"

#define WEIGHT(id, label, elems, bytes, fn)                                                                  \
    [RQ_TYPE_##id] = {label, elems, bytes, true, (elems) > 1, rq_dequantize_##fn}
#define ACTIVATION(id, label, elems, bytes, fn)                                                              \
    [RQ_TYPE_##id] = {label, elems, bytes, false, true, rq_dequantize_##fn}
#define INTEGER(id, label, bytes) [RQ_TYPE_##id] = {label, 1, bytes, false, false, NULL}

/* Ids without an entry (4, 5, 31-33, 36-38) were removed from the format. */
static const rq_type_info types[RQ_TYPE_LIMIT] = {
    WEIGHT(F32, "F32", 1, 4, f32),
    WEIGHT(F16, "F16", 1, 2, f16),
    WEIGHT(BF16, "BF16", 1, 2, bf16),
    WEIGHT(F64, "F64", 1, 8, f64),
    WEIGHT(Q4_0, "Q4_0", 32, 18, q4_0),
    WEIGHT(Q4_1, "Q4_1", 32, 20, q4_1),
    WEIGHT(Q5_0, "Q5_0", 32, 22, q5_0),
    WEIGHT(Q5_1, "Q5_1", 32, 24, q5_1),
    WEIGHT(Q8_0, "Q8_0", 32, 34, q8_0),
    ACTIVATION(Q8_1, "Q8_1", 32, 36, q8_1),
    WEIGHT(Q2_K, "Q2_K", 256, 84, q2_k),
    WEIGHT(Q3_K, "Q3_K", 256, 110, q3_k),
    WEIGHT(Q4_K, "Q4_K", 256, 144, q4_k),
    WEIGHT(Q5_K, "Q5_K", 256, 176, q5_k),
    WEIGHT(Q6_K, "Q6_K", 256, 210, q6_k),
    ACTIVATION(Q8_K, "Q8_K", 256, 292, q8_k),
    WEIGHT(IQ2_XXS, "IQ2_XXS", 256, 66, iq2_xxs),
    WEIGHT(IQ2_XS, "IQ2_XS", 256, 74, iq2_xs),
    WEIGHT(IQ2_S, "IQ2_S", 256, 82, iq2_s),
    WEIGHT(IQ3_XXS, "IQ3_XXS", 256, 98, iq3_xxs),
    WEIGHT(IQ3_S, "IQ3_S", 256, 110, iq3_s),
    WEIGHT(IQ1_S, "IQ1_S", 256, 50, iq1_s),
    WEIGHT(IQ1_M, "IQ1_M", 256, 56, iq1_m),
    WEIGHT(IQ4_NL, "IQ4_NL", 32, 18, iq4_nl),
    WEIGHT(IQ4_XS, "IQ4_XS", 256, 136, iq4_xs),
    WEIGHT(TQ1_0, "TQ1_0", 256, 54, tq1_0),
    WEIGHT(TQ2_0, "TQ2_0", 256, 66, tq2_0),
    WEIGHT(MXFP4, "MXFP4", 32, 17, mxfp4),
    WEIGHT(NVFP4, "NVFP4", 64, 36, nvfp4),
    WEIGHT(Q1_0, "Q1_0", 128, 18, q1_0),
    WEIGHT(Q2_0, "Q2_0", 64, 18, q2_0),
    INTEGER(I8, "I8", 1),
    INTEGER(I16, "I16", 2),
    INTEGER(I32, "I32", 4),
    INTEGER(I64, "I64", 8),
};

const rq_type_info *rq_type_get(uint32_t id)
{
    return id < RQ_TYPE_LIMIT && types[id].name ? &types[id] : NULL;
}

bool rq_type_from_name(const char *name, rq_type *out)
{
    for (uint32_t id = 0; name && id < RQ_TYPE_LIMIT; id++) {
        if (types[id].name && strcasecmp(types[id].name, name) == 0) {
            *out = (rq_type)id;
            return true;
        }
    }
    return false;
}

uint64_t rq_row_bytes(rq_type type, uint64_t n)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    return info ? n / info->block_elems * info->block_bytes : 0;
}

float rq_f16_to_f32(uint16_t h)
{
    return rq_half_to_f32(h);
}

uint16_t rq_f32_to_f16(float f)
{
    return rq_half_from_f32(f);
}

float rq_bf16_to_f32(uint16_t h)
{
    return rq_bhalf_to_f32(h);
}

uint16_t rq_f32_to_bf16(float f)
{
    return rq_bhalf_from_f32(f);
}

void rq_f16_to_f32_row(const void *src, float *dst, int64_t n)
{
    const uint8_t *s = src;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, sizeof h);
        dst[i] = rq_half_to_f32(h);
    }
}

void rq_f32_to_f16_row(const float *src, void *dst, int64_t n)
{
    uint8_t *d = dst;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = rq_half_from_f32(src[i]);
        memcpy(d + 2 * i, &h, sizeof h);
    }
}

void rq_bf16_to_f32_row(const void *src, float *dst, int64_t n)
{
    const uint8_t *s = src;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, sizeof h);
        dst[i] = rq_bhalf_to_f32(h);
    }
}

void rq_f32_to_bf16_row(const float *src, void *dst, int64_t n)
{
    uint8_t *d = dst;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = rq_bhalf_from_f32(src[i]);
        memcpy(d + 2 * i, &h, sizeof h);
    }
}
