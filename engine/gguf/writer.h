/* writer.h - writes a GGUF v3 file: metadata first, then tensor data as a stream.
 *
 * Order of calls: create, any put and declare calls, begin_data, write until every declared byte is there,
 * finish. The file appears under its name only when finish succeeds; until then it has no name or, where the
 * file system cannot do that, the suffix .PID.part. The put and declare calls return nothing: a failure
 * (memory, a bad shape) is kept and reported by begin_data. Keys and tensor names must be unique. */
#ifndef RQ_GGUF_WRITER_H
#define RQ_GGUF_WRITER_H

#include "engine/gguf/gguf.h"

typedef struct rq_gguf_writer rq_gguf_writer;

/* `alignment` is a power of two; one other than 32 is also written as general.alignment. */
rq_status rq_gguf_writer_create(const char *path, uint32_t alignment, rq_gguf_writer **out, rq_error *err);

/* Removes the temporary file unless finish succeeded, and frees the writer. NULL is allowed. */
void rq_gguf_writer_free(rq_gguf_writer *w);

void rq_gguf_writer_version(rq_gguf_writer *w, uint32_t version); /* 2 or 3; 3 unless called */

void rq_gguf_put_u32(rq_gguf_writer *w, const char *key, uint32_t value);
void rq_gguf_put_f32(rq_gguf_writer *w, const char *key, float value);
void rq_gguf_put_bool(rq_gguf_writer *w, const char *key, bool value);
void rq_gguf_put_str(rq_gguf_writer *w, const char *key, const char *text);
/* A scalar or array of any type but string, from `count` packed little-endian elements. */
void rq_gguf_put_scalar(rq_gguf_writer *w, const char *key, rq_gguf_type type, const void *value);
void rq_gguf_put_array(rq_gguf_writer *w, const char *key, rq_gguf_type type, const void *elems,
                       uint64_t count);
void rq_gguf_put_strs(rq_gguf_writer *w, const char *key, const rq_gguf_str *strs, uint64_t count);

/* Declares the next tensor; its data follows that of the tensor declared before. */
void rq_gguf_declare(rq_gguf_writer *w, const char *name, rq_type type, uint32_t n_dims, const uint64_t *ne);
/* Data bytes declared so far, without padding. */
uint64_t rq_gguf_writer_data_bytes(const rq_gguf_writer *w);

rq_status rq_gguf_writer_begin_data(rq_gguf_writer *w, rq_error *err);
/* Appends tensor data, in the order of declaration; padding between tensors is inserted here. The pieces need
 * not coincide with tensors. More bytes than declared are refused. */
rq_status rq_gguf_writer_write(rq_gguf_writer *w, const void *bytes, size_t n, rq_error *err);
/* The same with n zero bytes that take no room on the disk where the file system can leave holes. */
rq_status rq_gguf_writer_skip(rq_gguf_writer *w, uint64_t n, rq_error *err);
rq_status rq_gguf_writer_finish(rq_gguf_writer *w, rq_error *err);

#endif
