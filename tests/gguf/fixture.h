/* fixture.h - builds GGUF images byte by byte, valid or not, for the tests of the reader. It shares nothing
 * with the writer, so that the two can be held against each other. */
#ifndef RQ_TEST_GGUF_FIXTURE_H
#define RQ_TEST_GGUF_FIXTURE_H

#include "backends/base/buf.h"
#include "engine/gguf/gguf.h"

typedef struct fixture {
    rq_buf b;
    uint64_t mark; /* where the interesting field begins: see FX_MARK */
} fixture;

#define FX_MARK(f) ((f)->mark = (f)->b.len)

void fx_start(fixture *f, uint32_t version, uint64_t n_tensors, uint64_t n_kv);
void fx_free(fixture *f);
void fx_int(fixture *f, uint64_t value, int bytes);
void fx_bytes(fixture *f, const void *data, size_t n);
void fx_zeros(fixture *f, size_t n);
void fx_str(fixture *f, const char *text); /* length and bytes */
void fx_key(fixture *f, const char *key, uint32_t type);
void fx_kv_u32(fixture *f, const char *key, uint32_t value);
void fx_kv_str(fixture *f, const char *key, const char *text);
/* A tensor info; dims[0..n_dims). */
void fx_tensor(fixture *f, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
               uint64_t offset);
void fx_pad(fixture *f, size_t alignment);

/* Opens an exact-size heap copy of the image (so that a sanitizer sees any access outside it); fx_close
 * frees it. */
typedef struct opened {
    rq_gguf *g;
    void *copy;
    rq_status status;
    rq_error err;
} opened;
opened fx_open_bytes(const void *bytes, size_t n);
opened fx_open(const fixture *f);
void fx_close(opened *o);

/* A small valid file with values of every type, arrays, and four tensors of different types. */
void fx_sample(fixture *f, uint32_t version);

/* Folder for files of this process, made on first use and removed at exit; and paths in it. */
const char *fx_path(const char *name); /* valid until the fourth call after it */
void fx_write_file(const char *path, const void *data, size_t n);

#endif
