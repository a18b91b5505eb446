/* random.h - the generator of the tests in this folder: 64-bit linear congruential (Knuth's MMIX constants),
 * upper half used. */
#ifndef RQ_TEST_RANDOM_H
#define RQ_TEST_RANDOM_H

#include <stdint.h>

static inline uint32_t random_u32(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* Nearly Gaussian, mean 0, variance 1: a sum of twelve uniform values. */
static inline float random_gauss(uint64_t *state)
{
    double sum = -6;
    for (int k = 0; k < 12; k++) sum += (random_u32(state) + 0.5) / 4294967296.0;
    return (float)sum;
}

#endif
