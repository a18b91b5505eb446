/* tensors.h - the part of the safetensors format that captures need: named arrays of f32, f16 or i32 in one file.
 *
 * A file is a 64-bit little-endian length, that many bytes of JSON - {"name": {"dtype", "shape", "data_offsets"}} -
 * and the arrays one after the other without gaps. Files may come from strangers: everything is checked before it
 * is used, and nothing is allocated in proportion to a number in the file. */
#ifndef RQ_KV_TENSORS_H
#define RQ_KV_TENSORS_H

#include "backends/base/file.h"
#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;
/* The tree of a JSON text with nothing but white space behind it; NULL otherwise. For cJSON_Delete. */
struct cJSON *kv_json_parse(const char *text, size_t bytes);

enum { KV_TENSOR_NAME = 64, KV_TENSOR_DIMS = 4, KV_MAX_TENSORS = 64, KV_MAX_HEADER_BYTES = 1 << 20 };

typedef enum kv_dtype { KV_F32, KV_F16, KV_I32 } kv_dtype;

typedef struct kv_tensor {
    char name[KV_TENSOR_NAME];
    kv_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[KV_TENSOR_DIMS]; /* outermost first; ones behind n_dims */
    uint64_t n;                     /* elements */
    uint64_t offset;                /* of the first byte, in the file */
} kv_tensor;

typedef struct kv_tensors {
    rq_map map;          /* zero when the bytes are somebody else's */
    const uint8_t *data; /* the whole file */
    uint64_t bytes;
    uint32_t n;
    kv_tensor items[KV_MAX_TENSORS];
} kv_tensors;

/* Maps and checks a file; release with kv_tensors_close. On failure *out is zeroed. */
rq_status kv_tensors_open(const char *path, kv_tensors *out, rq_error *err);
/* The same of bytes that outlive *out; `label` names them in errors. */
rq_status kv_tensors_parse(const uint8_t *data, uint64_t bytes, const char *label, kv_tensors *out,
                           rq_error *err);
void kv_tensors_close(kv_tensors *tensors);

/* NULL when there is none of that name. */
const kv_tensor *kv_tensors_find(const kv_tensors *tensors, const char *name);

/* n elements from index `first` on as floats (F32, F16) or numbers (I32); the range lies inside the tensor. */
void kv_tensor_floats(const kv_tensors *tensors, const kv_tensor *t, uint64_t first, uint64_t n, float *out);

/* Creates a file for the given tensors (offset is filled in) and reserves its size; rows are then written in any
 * order at t->offset + position. Returns the descriptor in *fd. */
rq_status kv_tensors_create(const char *path, kv_tensor *tensors, uint32_t n, int *fd, rq_error *err);
rq_status kv_tensor_write(int fd, const char *path, const kv_tensor *t, uint64_t first, const void *rows,
                          uint64_t n, rq_error *err);

#endif
