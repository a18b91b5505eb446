#include "backends/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

rq_status(rq_fail)(rq_error *err, rq_status status, const char *format, ...)
{
    if (!err) return status;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (n < 0) err->text[0] = 0;
    if (n >= (int)sizeof err->text) memcpy(err->text + sizeof err->text - 4, "...", 4);
    for (unsigned char *c = (unsigned char *)err->text; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = '?';
    return status;
}

const char *rq_status_name(rq_status status)
{
    switch (status) {
    case RQ_OK:
        return "ok";
    case RQ_ERR_ARGUMENT:
        return "argument";
    case RQ_ERR_IO:
        return "io";
    case RQ_ERR_FORMAT:
        return "format";
    case RQ_ERR_UNSUPPORTED:
        return "unsupported";
    case RQ_ERR_MEMORY:
        return "memory";
    case RQ_ERR_CAPACITY:
        return "capacity";
    case RQ_ERR_CANCELLED:
        return "cancelled";
    case RQ_ERR_TIMEOUT:
        return "timeout";
    case RQ_ERR_DEVICE:
        return "device";
    case RQ_ERR_INTERNAL:
        return "internal";
    }
    return "unknown";
}
