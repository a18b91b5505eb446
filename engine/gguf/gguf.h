/* gguf.h - reads GGUF v2 and v3 files, split ones included.
 *
 * The file is mapped, not read: strings, arrays and tensor data are pointers into the mapping and live until
 * rq_gguf_close. Nothing of the file is trusted; every count, length, shape and offset is checked before use
 * and whatever is wrong is refused with one sentence naming file, field and byte offset. Bounds are taken
 * from the file once, when it is opened: a file that is changed or truncated later can yield wrong bytes but
 * never an access outside the mapping (see rq_gguf_lost). All functions besides open and close only read, so
 * any number of threads may call them. */
#ifndef RQ_GGUF_H
#define RQ_GGUF_H

#include "backends/base/status.h"
#include "backends/formats/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rq_gguf rq_gguf;

/* Bytes of the file, NOT terminated; may contain anything, also NUL and invalid UTF-8. */
typedef struct rq_gguf_str {
    const char *data;
    uint64_t len;
} rq_gguf_str;

typedef enum rq_gguf_type {
    RQ_GGUF_U8 = 0,
    RQ_GGUF_I8 = 1,
    RQ_GGUF_U16 = 2,
    RQ_GGUF_I16 = 3,
    RQ_GGUF_U32 = 4,
    RQ_GGUF_I32 = 5,
    RQ_GGUF_F32 = 6,
    RQ_GGUF_BOOL = 7,
    RQ_GGUF_STRING = 8,
    RQ_GGUF_ARRAY = 9,
    RQ_GGUF_U64 = 10,
    RQ_GGUF_I64 = 11,
    RQ_GGUF_F64 = 12,
    RQ_GGUF_TYPE_LIMIT = 13
} rq_gguf_type;

/* One metadata pair. A scalar is a value with count 1 and is_array false, so one set of element accessors
 * serves both. `data` is packed and unaligned: use the accessors. */
typedef struct rq_gguf_kv {
    rq_gguf_str key;   /* 1..65535 bytes, no NUL */
    rq_gguf_type type; /* of the elements; never RQ_GGUF_ARRAY */
    bool is_array;
    uint64_t count;          /* elements; 0 is possible for arrays */
    const uint8_t *data;     /* first element */
    const uint64_t *strings; /* strings: count + 1 byte offsets from `data`, else NULL */
} rq_gguf_kv;

typedef struct rq_gguf_tensor {
    const char *name;    /* NUL-terminated, 1..64 bytes, unique over all shards */
    const uint8_t *data; /* aligned to the shard's general.alignment, which may be 1 */
    uint64_t nbytes;     /* may be 0: zero-sized dimensions are legal */
    uint64_t n_elems;    /* fits int64_t */
    uint64_t ne[4];      /* ne[0] is contiguous; dimensions beyond n_dims are 1 */
    rq_type type;
    uint8_t n_dims; /* 0..4 */
    uint16_t shard; /* 0 .. rq_gguf_n_shards - 1 */
} rq_gguf_tensor;

/* ---- opening ------------------------------------------------------------------------------------------- */

/* Opens `path`; for a split model this is the first part, the others are found beside it by name. On success
 * *out is owned by the caller (rq_gguf_close); on failure it is untouched. */
rq_status rq_gguf_open(const char *path, rq_gguf **out, rq_error *err);

/* The same for a file image in memory, which must outlive *out. `label` names it in errors. Split models are
 * refused, because there is no place to look for the other parts. */
rq_status rq_gguf_open_memory(const void *bytes, size_t len, const char *label, rq_gguf **out, rq_error *err);

void rq_gguf_close(rq_gguf *g); /* NULL is allowed */

/* True when a mapped file shrank under us. An engine asks after every step; the answer is cheap. When true,
 * fail with rq_gguf_fail_lost and discard the engine. */
bool rq_gguf_lost(const rq_gguf *g);
rq_status rq_gguf_fail_lost(const rq_gguf *g, rq_error *err); /* always returns RQ_ERR_DEVICE */

const char *rq_gguf_label(const rq_gguf *g);   /* path as used in errors (long ones shortened), never NULL */
uint32_t rq_gguf_version(const rq_gguf *g);    /* 2 or 3 */
uint32_t rq_gguf_n_shards(const rq_gguf *g);   /* 1 unless split */
uint64_t rq_gguf_file_bytes(const rq_gguf *g); /* of all shards */

/* ---- metadata (of the first shard) --------------------------------------------------------------------- */

uint64_t rq_gguf_n_kv(const rq_gguf *g);
const rq_gguf_kv *rq_gguf_kv_at(const rq_gguf *g, uint64_t i);     /* in file order; i < n_kv */
const rq_gguf_kv *rq_gguf_find(const rq_gguf *g, const char *key); /* NULL when absent */

/* Element i of a pair; false when i is out of range or the element does not fit the wanted type. Integers
 * come from any integer type (bool as 0/1), reals from f32, f64 and integers. */
bool rq_gguf_elem_i64(const rq_gguf_kv *kv, uint64_t i, int64_t *out);
bool rq_gguf_elem_f64(const rq_gguf_kv *kv, uint64_t i, double *out);
bool rq_gguf_elem_str(const rq_gguf_kv *kv, uint64_t i, rq_gguf_str *out);

/* Typed getters. A missing key, a wrong type, an array where a scalar is wanted, a value out of range or a
 * real that is not finite is RQ_ERR_FORMAT with a sentence, and *out stays as it was. */
rq_status rq_gguf_get_i64(const rq_gguf *g, const char *key, int64_t min, int64_t max, int64_t *out,
                          rq_error *err);
rq_status rq_gguf_get_u32(const rq_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                          rq_error *err);
rq_status rq_gguf_get_f32(const rq_gguf *g, const char *key, float *out, rq_error *err);
rq_status rq_gguf_get_bool(const rq_gguf *g, const char *key, bool *out, rq_error *err); /* bool, or 0/1 */
rq_status rq_gguf_get_str(const rq_gguf *g, const char *key, rq_gguf_str *out, rq_error *err);

/* The same for keys that may be absent: RQ_OK with *out = fallback then (not checked against min and max). */
rq_status rq_gguf_opt_u32(const rq_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t fallback,
                          uint32_t *out, rq_error *err);
rq_status rq_gguf_opt_f32(const rq_gguf *g, const char *key, float fallback, float *out, rq_error *err);
rq_status rq_gguf_opt_bool(const rq_gguf *g, const char *key, bool fallback, bool *out, rq_error *err);
rq_status rq_gguf_opt_str(const rq_gguf *g, const char *key, const char *fallback, rq_gguf_str *out,
                          rq_error *err);

/* A per-layer key: a scalar (used for all) or an array of exactly n integers, each within min..max. Writes
 * out[0..n-1] on success only. */
rq_status rq_gguf_get_u32s(const rq_gguf *g, const char *key, uint64_t n, uint32_t min, uint32_t max,
                           uint32_t *out, rq_error *err);

/* An array whose elements all are strings / integers of any width / reals or integers. For integers and reals
 * every element is checked to be readable by rq_gguf_elem_i64 / rq_gguf_elem_f64. */
rq_status rq_gguf_get_strs(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err);
rq_status rq_gguf_get_ints(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err);
rq_status rq_gguf_get_reals(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err);

bool rq_gguf_str_eq(rq_gguf_str s, const char *text);
const char *rq_gguf_type_name(rq_gguf_type type); /* "u8", "string", ...; never NULL */

/* ---- tensors (of all shards) --------------------------------------------------------------------------- */

uint64_t rq_gguf_n_tensors(const rq_gguf *g);
const rq_gguf_tensor *rq_gguf_tensor_at(const rq_gguf *g, uint64_t i); /* shard by shard, in file order */
const rq_gguf_tensor *rq_gguf_find_tensor(const rq_gguf *g, const char *name); /* NULL when absent */

#endif
