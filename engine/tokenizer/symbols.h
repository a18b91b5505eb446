/* symbols.h - byte strings with numbers, and pairs of numbers: the two tables merging looks things up in. */
#ifndef RQ_SYMBOLS_H
#define RQ_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A piece of a pool. */
typedef struct rq_span {
    uint32_t offset, len;
} rq_span;

/* Byte strings numbered from 0. All hashing is seeded at random per table, so that a file cannot be made to
 * collide; no result depends on the seed. */
typedef struct rq_symbols {
    uint8_t *pool;
    size_t pool_len, pool_cap;
    rq_span *key; /* [n] */
    size_t n, key_cap;
    struct rq_slot {
        uint32_t id_plus_1, tag;
    } * slot; /* open addressing, n_slots a power of two */
    size_t n_slots, n_used;
    uint64_t seed;
} rq_symbols;

enum { RQ_POOL_LIMIT_BYTES = 1 << 30 };

/* A zeroed table becomes usable. */
void rq_symbols_init(rq_symbols *s);
void rq_symbols_free(rq_symbols *s);
/* Appends bytes to the pool without numbering them; false: out of memory or over the limit. */
bool rq_symbols_store(rq_symbols *s, const void *bytes, size_t len, rq_span *out);
/* Numbers a span of the pool, whether or not it can be looked up; -1: out of memory. */
int32_t rq_symbols_number(rq_symbols *s, rq_span key);
/* Makes number `id` findable by its bytes. *was is the number that already had these bytes (then nothing
 * changes), else -1. False: out of memory. */
bool rq_symbols_index(rq_symbols *s, int32_t id, int32_t *was);
/* Room for so many findable keys, so that indexing them does not rehash. */
bool rq_symbols_reserve(rq_symbols *s, size_t n);
int32_t rq_symbols_find(const rq_symbols *s, const uint8_t *bytes, size_t len); /* -1: absent */
/* The number of these bytes; a new one when they had none. -1: out of memory. */
int32_t rq_symbols_intern(rq_symbols *s, const uint8_t *bytes, size_t len);

/* (left, right) -> rank and result */
typedef struct rq_pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t result;
} rq_pair;

typedef struct rq_pairs {
    rq_pair *slot;
    size_t n_slots, n_used;
    uint64_t seed;
} rq_pairs;

void rq_pairs_init(rq_pairs *p);
void rq_pairs_free(rq_pairs *p);
bool rq_pairs_reserve(rq_pairs *p, size_t n);
/* Adds a pair unless it is there already (*added tells). False: out of memory. */
bool rq_pairs_add(rq_pairs *p, int32_t left, int32_t right, uint32_t rank, int32_t result, bool *added);

static inline size_t rq_pair_hash(uint64_t key, uint64_t seed)
{
    /* the finalizer of splitmix64 */
    key ^= seed;
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9u;
    key = (key ^ key >> 27) * 0x94D049BB133111EBu;
    return (size_t)(key ^ key >> 31);
}

/* NULL when there is no such pair; negative numbers never form one. */
static inline const rq_pair *rq_pairs_find(const rq_pairs *p, int32_t left, int32_t right)
{
    if ((left | right) < 0 || !p->n_used) return NULL;
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = p->n_slots - 1;
    for (size_t i = rq_pair_hash(key, p->seed) & mask;; i = (i + 1) & mask) {
        if (p->slot[i].key == key) return &p->slot[i];
        if (p->slot[i].key == UINT64_MAX) return NULL;
    }
}

#endif
