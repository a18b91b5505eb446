/* kv_data.h - inputs for tests of the cache's codecs: 64 rows side by side, of many kinds. */
#ifndef RQ_TEST_KV_DATA_H
#define RQ_TEST_KV_DATA_H

#include <math.h>
#include <string.h>

#include "backends/formats/half.h"
#include "tests/formats/random.h"

enum kv_input {
    KV_GAUSS,
    KV_HEAVY,    /* few large elements: a Gaussian to the fifth power */
    KV_SPIKE,    /* one element, and next to nothing */
    KV_CONSTANT, /* a different one for each token */
    KV_STEPS,    /* small integers: many equal costs */
    KV_RANGE,    /* every token its own power of two, most of them beyond what scales can hold */
    KV_TINY,     /* subnormal and nearly so */
    KV_HUGE,
    KV_ZERO,   /* of both signs */
    KV_BROKEN, /* NaN and infinities among others */
    KV_BITS,   /* any bits at all */
    KV_INPUTS
};

/* Normal (Box, Muller 1958). */
static inline float kv_normal(uint64_t *state)
{
    double u = (random_u32(state) + 0.5) / 4294967296.0, v = (random_u32(state) + 0.5) / 4294967296.0;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static inline void kv_fill(enum kv_input kind, uint64_t seed, uint32_t n_elements, float *x)
{
    for (uint32_t i = 0; i < n_elements; i++)
        for (uint32_t t = 0; t < 64; t++) {
            float g = kv_normal(&seed), v = g;
            uint32_t r = random_u32(&seed);
            switch (kind) {
            case KV_HEAVY:
                v = g * g * g * g * g;
                break;
            case KV_SPIKE:
                v = i == t % n_elements ? 3.0f * g : t & 1 ? 0.0f : 1e-3f * g;
                break;
            case KV_CONSTANT:
                v = (float)((int)t - 32) * 0.37f;
                break;
            case KV_STEPS:
                v = (float)(int)(r % 7) - 3.0f;
                break;
            case KV_RANGE:
                v = ldexpf(g, ((int)t - 32) * 2);
                break;
            case KV_TINY:
                v = ldexpf(g, -150 + (int)t);
                break;
            case KV_HUGE:
                v = (r & 1 ? 3.4e38f : 1e37f * g);
                break;
            case KV_ZERO:
                v = r & 1 ? 0.0f : -0.0f;
                break;
            case KV_BROKEN:
                v = r % 5 == 0 ? NAN : r % 7 == 0 ? INFINITY : r % 11 == 0 ? -INFINITY : g;
                if (t == 63) v = NAN;
                break;
            case KV_BITS:
                v = rq_bits_f32(r);
                break;
            default:
                break;
            }
            x[i * 64 + t] = v;
        }
}

#endif
