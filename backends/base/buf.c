#include "backends/base/buf.h"

#include "backends/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool reserve(rq_buf *buf, size_t n)
{
    if (buf->failed) return false;
    if (n > buf->max || buf->len > buf->max - n ||
        !rq_grow((void **)&buf->data, &buf->cap, buf->len + n + 1, 1))
        buf->failed = true;
    return !buf->failed;
}

bool rq_buf_append(rq_buf *buf, const void *bytes, size_t n)
{
    if (!reserve(buf, n)) return false;
    if (n) memcpy(buf->data + buf->len, bytes, n);
    buf->len += n;
    buf->data[buf->len] = 0;
    return true;
}

bool rq_buf_puts(rq_buf *buf, const char *text)
{
    return rq_buf_append(buf, text, strlen(text));
}

bool rq_buf_printf(rq_buf *buf, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    bool ok = n >= 0 && reserve(buf, (size_t)n);
    if (ok) {
        vsnprintf(buf->data + buf->len, (size_t)n + 1, format, again);
        buf->len += (size_t)n;
    } else {
        buf->failed = true;
    }
    va_end(again);
    return ok;
}

void rq_buf_clear(rq_buf *buf)
{
    buf->len = 0;
    buf->failed = false;
    if (buf->data) buf->data[0] = 0;
}

void rq_buf_free(rq_buf *buf)
{
    rq_free(buf->data);
    *buf = (rq_buf){.max = buf->max};
}
