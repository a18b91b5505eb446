/* memory.h - what a model will occupy, from its metadata alone. */
#ifndef RQ_INSPECT_MEMORY_H
#define RQ_INSPECT_MEMORY_H

#include "engine/gguf/gguf.h"

typedef struct inspect_memory {
    uint64_t weight_bytes, parameters;
    /* The rest is 0 unless kv_known. */
    bool kv_known;
    uint64_t kv_elems_per_token;     /* of layers that keep every token, K and V together */
    uint64_t window_elems_per_token; /* of layers that keep the last `window` tokens */
    uint32_t window, context;
} inspect_memory;

/* Fills *out. When the family is known but its keys are missing or absurd, kv_known is false and *why
 * says so; for an unknown family likewise. */
void inspect_memory_of(const rq_gguf *g, inspect_memory *out, rq_error *why);

#endif
