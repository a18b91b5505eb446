#include "engine/gguf/internal.h"

#include "backends/base/mem.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotl(v[1], 13) ^ v[0], v[0] = rotl(v[0], 32);
    v[2] += v[3], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotl(v[1], 17) ^ v[2], v[2] = rotl(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", with 1 and 3 rounds). */
static uint64_t sip_hash(const uint64_t key[2], const char *data, uint64_t len)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
                     key[1] ^ 0x7465646279746573u};
    uint64_t word, i = 0;
    for (; len - i >= 8; i += 8) {
        memcpy(&word, data + i, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = len << 56;
    for (uint64_t k = 0; i + k < len; k++) word |= (uint64_t)(unsigned char)data[i + k] << (8 * k);
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    for (int k = 0; k < 3; k++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static void random_key(uint64_t key[2])
{
    if (getrandom(key, 16, GRND_NONBLOCK) == 16) return;
    /* Before the kernel's generator is ready: worse, but not known to who wrote the file. */
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    key[0] = (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15u ^ (uint64_t)now.tv_sec;
    key[1] = (uint64_t)(uintptr_t)key;
}

/* The slot of `name`, or the free slot where it belongs. */
static struct rq_gguf_index_slot *locate(const rq_gguf_index *ix, rq_gguf_str name, const void *items,
                                         rq_gguf_name_of name_of, uint32_t *tag)
{
    uint64_t hash = sip_hash(ix->key, name.data, name.len);
    *tag = (uint32_t)(hash >> 32);
    for (uint64_t at = hash & (ix->n_slots - 1);; at = (at + 1) & (ix->n_slots - 1)) {
        struct rq_gguf_index_slot *slot = &ix->slots[at];
        if (!slot->item) return slot;
        if (slot->tag != *tag) continue;
        rq_gguf_str other = name_of(items, slot->item - 1);
        if (other.len == name.len && !memcmp(other.data, name.data, name.len)) return slot;
    }
}

bool rq_gguf_index_reserve(rq_gguf_index *ix, uint64_t n, const void *items, rq_gguf_name_of name_of)
{
    uint64_t want = 8;
    while (want < 2 * n) want *= 2; /* at most half full */
    if (want <= ix->n_slots) return true;
    rq_gguf_index grown = {.n_slots = want, .key = {ix->key[0], ix->key[1]}};
    grown.slots = rq_calloc(want, sizeof *grown.slots);
    if (!grown.slots) return false;
    if (!ix->slots) random_key(grown.key);
    for (uint64_t at = 0; ix->slots && at < ix->n_slots; at++)
        if (ix->slots[at].item) rq_gguf_index_add(&grown, ix->slots[at].item - 1, items, name_of);
    rq_free(ix->slots);
    *ix = grown;
    return true;
}

uint64_t rq_gguf_index_add(rq_gguf_index *ix, uint64_t i, const void *items, rq_gguf_name_of name_of)
{
    uint32_t tag;
    struct rq_gguf_index_slot *slot = locate(ix, name_of(items, i), items, name_of, &tag);
    if (slot->item) return slot->item - 1;
    *slot = (struct rq_gguf_index_slot){.tag = tag, .item = (uint32_t)i + 1};
    ix->n_items++;
    return UINT64_MAX;
}

uint64_t rq_gguf_index_find(const rq_gguf_index *ix, rq_gguf_str name, const void *items,
                            rq_gguf_name_of name_of)
{
    uint32_t tag;
    if (!ix->n_items) return UINT64_MAX;
    const struct rq_gguf_index_slot *slot = locate(ix, name, items, name_of, &tag);
    return slot->item ? slot->item - 1 : UINT64_MAX;
}

void rq_gguf_index_free(rq_gguf_index *ix)
{
    rq_free(ix->slots);
    *ix = (rq_gguf_index){0};
}

rq_gguf_str rq_gguf_kv_name(const void *items, uint64_t i)
{
    return ((const rq_gguf_kv *)items)[i].key;
}

rq_gguf_str rq_gguf_tensor_name(const void *items, uint64_t i)
{
    const char *name = ((const rq_gguf_tensor *)items)[i].name;
    return (rq_gguf_str){.data = name, .len = strlen(name)};
}
