/* quantize_act.c - reference activation quantisers. The rounding rules are those of the ggml library's scalar
 * code (ggml-org/ggml, src/ggml-quants.c): the golden blocks in tests/data/quant hold them to the bit. */
#include "backends/formats/quantize_act.h"

#include <math.h>
#include <string.h>

#include "backends/formats/block_write.h"

/* Codes of 32 elements: d = max|x| / 127, q = round-half-away(x (1/d)). Returns d; *sum: the sum of q. */
static float codes_32(const float *x, uint8_t *q, int *sum)
{
    float amax = 0;
    for (int j = 0; j < 32; j++) {
        float a = fabsf(x[j]);
        if (a > amax) amax = a;
    }
    float d = amax / 127.0f, id = d != 0 ? 1.0f / d : 0.0f;
    *sum = 0;
    for (int j = 0; j < 32; j++) {
        int code = rq_clamp_code(roundf(x[j] * id), -127, 127);
        q[j] = (uint8_t)(int8_t)code;
        *sum += code;
    }
    return d;
}

/* The codes come from the f32 scale, the block keeps it as f16. */
void rq_quantize_act_q8_0(const float *x, void *dst, int64_t n)
{
    uint8_t *b = dst;
    for (; n >= 32; n -= 32, b += 34, x += 32) {
        int sum;
        rq_write_f16(b, codes_32(x, b + 2, &sum));
    }
}

/* s = f16(sum of codes times the f32 scale) */
void rq_quantize_act_q8_1(const float *x, void *dst, int64_t n)
{
    uint8_t *b = dst;
    for (; n >= 32; n -= 32, b += 36, x += 32) {
        int sum;
        float d = codes_32(x, b + 4, &sum);
        rq_write_f16(b, d);
        rq_write_f16(b + 2, (float)sum * d);
    }
}

/* m = the element of largest magnitude with its sign (the first on ties), i = -127 / m,
 * q = min(127, round-half-even(i x)), d = 1 / i, and the sums of each sixteen codes. */
void rq_quantize_act_q8_k(const float *x, void *dst, int64_t n)
{
    uint8_t *b = dst;
    for (; n >= 256; n -= 256, b += 292, x += 256) {
        float m = 0, amax = 0;
        for (int j = 0; j < 256; j++) {
            float a = fabsf(x[j]);
            if (a > amax) {
                amax = a;
                m = x[j];
            }
        }
        memset(b, 0, 292);
        if (amax == 0) continue;
        float iscale = -127.0f / m;
        for (int k = 0; k < 16; k++) {
            int sum = 0;
            for (int j = 16 * k; j < 16 * k + 16; j++) {
                int code = rq_clamp_code(rintf(iscale * x[j]), -128, 127);
                b[4 + j] = (uint8_t)(int8_t)code;
                sum += code;
            }
            rq_write_u16(b + 260 + 2 * k, (uint16_t)sum);
        }
        rq_write_f32(b, 1.0f / iscale);
    }
}

bool rq_quantize_act(rq_type act, const float *x, void *dst, int64_t n)
{
    switch (act) {
    case RQ_TYPE_Q8_0:
        rq_quantize_act_q8_0(x, dst, n);
        return true;
    case RQ_TYPE_Q8_1:
        rq_quantize_act_q8_1(x, dst, n);
        return true;
    case RQ_TYPE_Q8_K:
        rq_quantize_act_q8_k(x, dst, n);
        return true;
    case RQ_TYPE_F16:
        rq_f32_to_f16_row(x, dst, n);
        return true;
    case RQ_TYPE_BF16:
        rq_f32_to_bf16_row(x, dst, n);
        return true;
    case RQ_TYPE_F32:
        if (n > 0) memcpy(dst, x, (size_t)n * sizeof *x);
        return true;
    default:
        return false;
    }
}
