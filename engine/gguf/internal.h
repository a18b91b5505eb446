/* internal.h - what the files of the GGUF room share; nobody else includes it. */
#ifndef RQ_GGUF_INTERNAL_H
#define RQ_GGUF_INTERNAL_H

#include "backends/base/file.h"
#include "engine/gguf/gguf.h"

#define RQ_GGUF_LABEL_BYTES   208 /* leaves room for the sentence in an rq_error */
#define RQ_GGUF_MAX_SHARDS    1000
#define RQ_GGUF_MAX_TENSORS   (1u << 20) /* of all shards; the largest published models have some 100,000 */
#define RQ_GGUF_MAX_KV        (1u << 20)
#define RQ_GGUF_MAX_ALIGNMENT (1u << 20)
#define RQ_GGUF_MAX_NAME      64
#define RQ_GGUF_MAX_KEY       65535

/* ---- index.c: names to positions ----------------------------------------------------------------------- */

/* An open-addressing hash table of 32-bit item numbers. The hash (SipHash-1-3) is keyed with random bytes, so
 * that a file cannot be built whose names all collide. */
typedef struct rq_gguf_index {
    struct rq_gguf_index_slot {
        uint32_t tag;  /* upper half of the hash */
        uint32_t item; /* number + 1, 0 = free */
    } * slots;
    uint64_t n_slots, n_items;
    uint64_t key[2];
} rq_gguf_index;

/* Name of item i, for comparisons. */
typedef rq_gguf_str (*rq_gguf_name_of)(const void *items, uint64_t i);

/* Makes room for n items in all; false when memory runs out (nothing changes then). */
bool rq_gguf_index_reserve(rq_gguf_index *ix, uint64_t n, const void *items, rq_gguf_name_of name_of);
/* Adds item i, for which there must be room. Returns the item of the same name when there is one already (and
 * adds nothing), else UINT64_MAX. */
uint64_t rq_gguf_index_add(rq_gguf_index *ix, uint64_t i, const void *items, rq_gguf_name_of name_of);
/* The item called `name`, or UINT64_MAX. */
uint64_t rq_gguf_index_find(const rq_gguf_index *ix, rq_gguf_str name, const void *items,
                            rq_gguf_name_of name_of);
void rq_gguf_index_free(rq_gguf_index *ix);

rq_gguf_str rq_gguf_kv_name(const void *items, uint64_t i);     /* of an array of rq_gguf_kv */
rq_gguf_str rq_gguf_tensor_name(const void *items, uint64_t i); /* of an array of rq_gguf_tensor */

/* ---- parse.c: one file --------------------------------------------------------------------------------- */

typedef struct rq_gguf_shard {
    char label[RQ_GGUF_LABEL_BYTES];
    rq_map map; /* zeroed for a file in memory */
    const uint8_t *bytes;
    uint64_t n_bytes;
    uint32_t version;
    char *names;                                  /* the tensor names, each with its NUL */
    int64_t split_no, split_count, split_tensors; /* -1 when the key is absent */
} rq_gguf_shard;

typedef struct rq_gguf_kvs {
    rq_gguf_kv *items;
    uint64_t n;
    rq_gguf_index index;
} rq_gguf_kvs;

struct rq_gguf {
    rq_gguf_shard *shards;
    uint64_t n_shards;
    size_t cap_shards;
    rq_gguf_kvs kvs; /* of shard 0 */
    rq_gguf_tensor *tensors;
    uint64_t n_tensors;
    size_t cap_tensors;
    rq_gguf_index tensor_index;
};

/* Parses g->shards[shard], whose label, bytes and n_bytes are set: stores its metadata in *kvs (zeroed
 * before) and appends its tensors to g. On failure what was stored so far is released with the owners. */
rq_status rq_gguf_parse(rq_gguf *g, uint64_t shard, rq_gguf_kvs *kvs, rq_error *err);
void rq_gguf_kvs_free(rq_gguf_kvs *kvs);

/* Printable ASCII form of file bytes for a sentence: other bytes become '?', long text is cut with "...". */
#define RQ_GGUF_SHOWN_BYTES 84
const char *rq_gguf_show(rq_gguf_str s, char out[RQ_GGUF_SHOWN_BYTES]);

uint32_t rq_gguf_elem_bytes(uint32_t type); /* 0 for strings, arrays and unknown types */

#endif
