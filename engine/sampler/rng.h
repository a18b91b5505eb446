/* rng.h - the random numbers of sampling: the Mersenne Twister MT19937 (M. Matsumoto and T. Nishimura, ACM
 * Transactions on Modeling and Computer Simulation 8, 1998; initialisation of 2002), so that a seed means the
 * same here as in programs that use C++'s std::mt19937 with std::uniform_real_distribution<double>. */
#ifndef RQ_RNG_H
#define RQ_RNG_H

#include <stdint.h>

typedef struct rq_rng {
    uint32_t state[624];
    uint32_t next; /* index of the next word to hand out */
} rq_rng;

/* Seeds below 2^32 initialise as std::mt19937(seed); larger ones by the published array initialisation with
 * the words {low, high}. */
void rq_rng_init(rq_rng *rng, uint64_t seed);
uint32_t rq_rng_u32(rq_rng *rng);
/* Uniform in [0, 1): (a + b * 2^32) / 2^64 of two draws a, b, which is what libstdc++'s generate_canonical
 * computes for 53 bits and a 32-bit generator. */
double rq_rng_uniform(rq_rng *rng);

#endif
