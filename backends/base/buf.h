/* buf.h - a growing byte buffer with a ceiling. */
#ifndef RQ_BUF_H
#define RQ_BUF_H

#include <stdbool.h>
#include <stddef.h>

/* A zeroed rq_buf with `max` set is ready. `data` is NUL-terminated whenever it is not NULL; `len` excludes
 * the NUL. Appending past `max` bytes or out of memory sets `failed`, changes nothing else, and makes every
 * later append fail too, so that a caller may check once at the end. */
typedef struct rq_buf {
    char *data;
    size_t len, cap, max;
    bool failed;
} rq_buf;

bool rq_buf_append(rq_buf *buf, const void *bytes, size_t n);
bool rq_buf_puts(rq_buf *buf, const char *text);
bool rq_buf_printf(rq_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void rq_buf_clear(rq_buf *buf); /* length 0, memory kept, failed reset */
void rq_buf_free(rq_buf *buf);

#endif
