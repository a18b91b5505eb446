#include "engine/tokenizer/symbols.h"

#include "backends/base/mem.h"

#define XXH_INLINE_ALL
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <xxhash.h>

static uint64_t random_seed(const void *place)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) == (ssize_t)sizeof seed) return seed;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)(uintptr_t)place;
}

void rq_symbols_init(rq_symbols *s)
{
    memset(s, 0, sizeof *s);
    s->seed = random_seed(s);
}

void rq_symbols_free(rq_symbols *s)
{
    rq_free(s->pool);
    rq_free(s->key);
    rq_free(s->slot);
    memset(s, 0, sizeof *s);
}

bool rq_symbols_store(rq_symbols *s, const void *bytes, size_t len, rq_span *out)
{
    if (len > RQ_POOL_LIMIT_BYTES - s->pool_len) return false;
    if (!rq_grow((void **)&s->pool, &s->pool_cap, s->pool_len + len + 1, 1)) return false;
    if (len) memcpy(s->pool + s->pool_len, bytes, len);
    *out = (rq_span){(uint32_t)s->pool_len, (uint32_t)len};
    s->pool_len += len;
    return true;
}

int32_t rq_symbols_number(rq_symbols *s, rq_span key)
{
    if (s->n >= INT32_MAX || !rq_grow((void **)&s->key, &s->key_cap, s->n + 1, sizeof *s->key)) return -1;
    s->key[s->n] = key;
    return (int32_t)s->n++;
}

static uint64_t hash_bytes(const rq_symbols *s, const uint8_t *bytes, size_t len)
{
    return XXH3_64bits_withSeed(bytes, len, s->seed);
}

/* The slot that holds these bytes, or the empty one where they belong. */
static struct rq_slot *probe(const rq_symbols *s, const uint8_t *bytes, size_t len, uint64_t hash)
{
    size_t mask = s->n_slots - 1;
    uint32_t tag = (uint32_t)(hash >> 32);
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        struct rq_slot *slot = &s->slot[i];
        if (!slot->id_plus_1) return slot;
        if (slot->tag != tag) continue;
        rq_span key = s->key[slot->id_plus_1 - 1];
        if (key.len == len && !memcmp(s->pool + key.offset, bytes, len)) return slot;
    }
}

bool rq_symbols_reserve(rq_symbols *s, size_t n)
{
    size_t want = 16;
    while (want < n + n / 2) want *= 2; /* at most 2/3 full */
    if (want <= s->n_slots) return true;
    struct rq_slot *old = s->slot;
    size_t n_old = s->n_slots;
    struct rq_slot *fresh = rq_calloc(want, sizeof *fresh);
    if (!fresh) return false;
    s->slot = fresh;
    s->n_slots = want;
    for (size_t i = 0; i < n_old; i++) {
        if (!old[i].id_plus_1) continue;
        rq_span key = s->key[old[i].id_plus_1 - 1];
        *probe(s, s->pool + key.offset, key.len, hash_bytes(s, s->pool + key.offset, key.len)) = old[i];
    }
    rq_free(old);
    return true;
}

bool rq_symbols_index(rq_symbols *s, int32_t id, int32_t *was)
{
    if ((s->n_used + 1) * 3 > s->n_slots * 2 && !rq_symbols_reserve(s, (s->n_used + 1) * 2)) return false;
    rq_span key = s->key[id];
    uint64_t hash = hash_bytes(s, s->pool + key.offset, key.len);
    struct rq_slot *slot = probe(s, s->pool + key.offset, key.len, hash);
    *was = (int32_t)slot->id_plus_1 - 1;
    if (slot->id_plus_1) return true;
    *slot = (struct rq_slot){(uint32_t)id + 1, (uint32_t)(hash >> 32)};
    s->n_used++;
    return true;
}

int32_t rq_symbols_find(const rq_symbols *s, const uint8_t *bytes, size_t len)
{
    if (!s->n_used) return -1;
    return (int32_t)probe(s, bytes, len, hash_bytes(s, bytes, len))->id_plus_1 - 1;
}

int32_t rq_symbols_intern(rq_symbols *s, const uint8_t *bytes, size_t len)
{
    int32_t id = rq_symbols_find(s, bytes, len), was;
    rq_span key;
    if (id >= 0) return id;
    if (!rq_symbols_store(s, bytes, len, &key)) return -1;
    id = rq_symbols_number(s, key);
    return id >= 0 && rq_symbols_index(s, id, &was) ? id : -1;
}

void rq_pairs_init(rq_pairs *p)
{
    memset(p, 0, sizeof *p);
    p->seed = random_seed(p);
}

void rq_pairs_free(rq_pairs *p)
{
    rq_free(p->slot);
    memset(p, 0, sizeof *p);
}

bool rq_pairs_reserve(rq_pairs *p, size_t n)
{
    size_t want = 16;
    while (want < n + n / 2) want *= 2;
    if (want <= p->n_slots) return true;
    rq_pair *old = p->slot, *fresh = rq_realloc_array(NULL, want, sizeof *fresh);
    if (!fresh) return false;
    for (size_t i = 0; i < want; i++) fresh[i].key = UINT64_MAX;
    for (size_t i = 0; i < p->n_slots; i++) {
        if (old[i].key == UINT64_MAX) continue;
        size_t at = rq_pair_hash(old[i].key, p->seed) & (want - 1);
        while (fresh[at].key != UINT64_MAX) at = (at + 1) & (want - 1);
        fresh[at] = old[i];
    }
    p->slot = fresh;
    p->n_slots = want;
    rq_free(old);
    return true;
}

bool rq_pairs_add(rq_pairs *p, int32_t left, int32_t right, uint32_t rank, int32_t result, bool *added)
{
    if ((p->n_used + 1) * 3 > p->n_slots * 2 && !rq_pairs_reserve(p, (p->n_used + 1) * 2)) return false;
    *added = !rq_pairs_find(p, left, right);
    if (!*added) return true;
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t at = rq_pair_hash(key, p->seed) & (p->n_slots - 1);
    while (p->slot[at].key != UINT64_MAX) at = (at + 1) & (p->n_slots - 1);
    p->slot[at] = (rq_pair){key, rank, result};
    p->n_used++;
    return true;
}
