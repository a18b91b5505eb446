/* rng.c - MT19937, from the paper's recurrence: x[k+n] = x[k+m] ^ (upper(x[k]) | lower(x[k+1])) A. */
#include "engine/sampler/rng.h"

enum { N = 624, M = 397 };

static void init_by_seed(rq_rng *r, uint32_t seed)
{
    r->state[0] = seed;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->next = N;
}

static void init_by_array(rq_rng *r, const uint32_t *key, uint32_t n_key)
{
    init_by_seed(r, 19650218u);
    uint32_t *x = r->state, i = 1, j = 0;
    for (uint32_t k = N > n_key ? N : n_key; k > 0; k--) {
        x[i] = (x[i] ^ ((x[i - 1] ^ (x[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        if (++i == N) {
            x[0] = x[N - 1];
            i = 1;
        }
        if (++j == n_key) j = 0;
    }
    for (uint32_t k = N - 1; k > 0; k--) {
        x[i] = (x[i] ^ ((x[i - 1] ^ (x[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i == N) {
            x[0] = x[N - 1];
            i = 1;
        }
    }
    x[0] = 0x80000000u;
}

void rq_rng_init(rq_rng *r, uint64_t seed)
{
    if (seed <= UINT32_MAX) {
        init_by_seed(r, (uint32_t)seed);
    } else {
        uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        init_by_array(r, key, 2);
    }
}

static void refill(rq_rng *r)
{
    uint32_t *x = r->state;
    for (uint32_t k = 0; k < N; k++) {
        uint32_t y = (x[k] & 0x80000000u) | (x[(k + 1) % N] & 0x7fffffffu);
        x[k] = x[(k + M) % N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->next = 0;
}

uint32_t rq_rng_u32(rq_rng *r)
{
    if (r->next == N) refill(r);
    uint32_t y = r->state[r->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

double rq_rng_uniform(rq_rng *r)
{
    double low = rq_rng_u32(r), high = rq_rng_u32(r);
    double u = (low + high * 4294967296.0) * 0x1p-64;
    return u < 1.0 ? u : 0x1.fffffffffffffp-1; /* rounding up to 1 is possible */
}
