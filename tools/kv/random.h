/* random.h - the generator behind every synthetic set and every opponent's rotation: splitmix64 (Steele, Lea and
 * Flood 2014) and the Box-Muller pair. The order of draws is part of a set's definition: published numbers of the
 * sets can be reproduced draw by draw. */
#ifndef RQ_KV_RANDOM_H
#define RQ_KV_RANDOM_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct kv_random {
    uint64_t state;
    bool has_spare;
    double spare; /* second half of the last normal pair */
} kv_random;

static inline kv_random kv_random_start(uint64_t seed)
{
    return (kv_random){.state = seed};
}

static inline uint64_t kv_random_u64(kv_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in (0, 1), never 0 or 1. */
static inline double kv_random_uniform(kv_random *r)
{
    return ((double)(kv_random_u64(r) >> 11) + 0.5) * 0x1p-53;
}

static inline double kv_random_normal(kv_random *r)
{
    if (r->has_spare) {
        r->has_spare = false;
        return r->spare;
    }
    double radius = sqrt(-2 * log(kv_random_uniform(r)));
    double angle = 2 * M_PI * kv_random_uniform(r);
    r->spare = radius * sin(angle);
    r->has_spare = true;
    return radius * cos(angle);
}

#endif
