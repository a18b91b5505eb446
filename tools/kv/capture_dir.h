/* capture_dir.h - a folder with what attention saw of a text: queries, keys and values of chosen layers after the
 * rotary embedding, as rqvk-kv capture leaves it and rqvk-kv replay reads it.
 *
 *   manifest.json            version, model, rotary settings, layers (kv_manifest)
 *   tokens.safetensors       "tokens" [n] I32
 *   layer-007.safetensors    "q" [n][n_heads][dim_k], "k" [n][n_heads_kv][dim_k], "v" [n][n_heads_kv][dim_v], F32
 * Row i of a tensor belongs to position i. Names of files follow from the layer, never from the manifest. */
#ifndef RQ_KV_CAPTURE_DIR_H
#define RQ_KV_CAPTURE_DIR_H

#include "tools/kv/tensors.h"

enum { KV_CAPTURE_VERSION = 1, KV_MAX_CAPTURE_LAYERS = 512, KV_MAX_CAPTURE_TOKENS = 1 << 20 };

typedef struct kv_capture_layer {
    uint32_t layer, n_heads, n_heads_kv, dim_k, dim_v, window;
    double scale, softcap;
} kv_capture_layer;

typedef struct kv_manifest {
    char model[256], architecture[64], text[256], created[32], commit[32]; /* for people */
    uint64_t model_hash, rope_hash;
    uint32_t n_tokens, n_rot;
    bool rot_halves; /* pairs are (i, i + n_rot / 2), else (2 i, 2 i + 1) */
    uint32_t n_layers;
    kv_capture_layer *layers; /* owned */
} kv_manifest;

rq_status kv_manifest_write(const kv_manifest *m, const char *folder, rq_error *err);
/* On failure *out is zeroed; release with kv_manifest_free. */
rq_status kv_manifest_read(const char *folder, kv_manifest *out, rq_error *err);
rq_status kv_manifest_parse(const char *text, size_t bytes, const char *label, kv_manifest *out,
                            rq_error *err);
void kv_manifest_free(kv_manifest *m);

/* "folder/layer-007.safetensors"; free with rq_free, NULL when memory runs out. */
char *kv_capture_path(const char *folder, uint32_t layer);

/* Opens the file of a layer and checks that its tensors have the shapes the manifest says. */
rq_status kv_capture_open(const char *folder, const kv_manifest *m, const kv_capture_layer *layer,
                          kv_tensors *out, rq_error *err);

/* Rows [first, first + n) of one head of tensor "q", "k" or "v" of an opened layer, as [n][dim]. */
void kv_capture_head(const kv_tensors *tensors, const char *name, uint32_t head, uint64_t first, uint64_t n,
                     float *out);

#endif
