/* small_model.h - a small random model of any family, described as lists of metadata and tensors that a test may
 * change before they are written as a file (by engine/gguf/writer.h). */
#ifndef RQ_TEST_SMALL_MODEL_H
#define RQ_TEST_SMALL_MODEL_H

#include "engine/gguf/writer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SM_KEYS = 64,
    SM_TENSORS = 96,
    SM_VOCAB = 258,
    SM_EMBD = 32,
    SM_HEADS = 4,
    SM_HEADS_KV = 2,
    SM_HEAD = 16,
    SM_FF = 64,
    SM_LAYERS = 2,
    SM_EXPERTS = 4,
    SM_FF_EXPERT = 32
};

typedef struct sm_key {
    char name[96];
    rq_gguf_type type; /* U32, F32, STRING or ARRAY (of u32) */
    uint32_t u;
    float f;
    const char *text;
    uint32_t list[16];
    uint32_t n_list;
} sm_key;

typedef struct sm_tensor {
    char name[64];
    rq_type type; /* F32 or F16 */
    uint64_t ne[4];
    uint32_t n_dims;
    float *data; /* [elements], the values to write; owned */
} sm_tensor;

typedef struct small_model {
    char arch[32];
    uint32_t alignment;
    sm_key keys[SM_KEYS];
    uint32_t n_keys;
    sm_tensor tensors[SM_TENSORS];
    uint32_t n_tensors;
    uint32_t n_vocab; /* entries of tokenizer.ggml.tokens */
} small_model;

/* A valid model of SM_LAYERS layers: dense, or with experts for "qwen3moe" (and for "llama" when asked). Values
 * depend on the tensor's name only. Free with sm_free. */
void sm_init(small_model *m, const char *arch, bool experts);
void sm_init_layers(small_model *m, const char *arch, bool experts, uint32_t n_layers);
void sm_free(small_model *m);

/* The key ".x" stands for "<arch>.x". Setting replaces. */
void sm_u32(small_model *m, const char *key, uint32_t value);
void sm_f32(small_model *m, const char *key, float value);
void sm_str(small_model *m, const char *key, const char *text);
void sm_list(small_model *m, const char *key, const uint32_t *values, uint32_t n);
void sm_no_key(small_model *m, const char *key);

sm_tensor *sm_find(small_model *m, const char *name); /* fails the test when absent */
sm_tensor *sm_add(small_model *m, const char *name, uint32_t n_dims, const uint64_t *ne);
void sm_no_tensor(small_model *m, const char *name);
void sm_reshape(small_model *m, const char *name, uint32_t n_dims, const uint64_t *ne);
/* Replaces tensors by one that holds their rows one after another (per expert for 3-D ones). */
void sm_fuse(small_model *m, const char *fused, const char *const *parts, uint32_t n);

/* Writes the file to a path of this process (removed at exit) and returns it; the same path every time. */
const char *sm_write(small_model *m);

/* Writes and frees the model, then loads it with each allocation failing in turn: a failure has its sentence and
 * leaves nothing. Fails the test otherwise, and when fewer than half of the allocations were needed. */
void sm_memory_runs_out(small_model *m);

#endif
