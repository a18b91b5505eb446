/* say.h - one line of the log of decisions. */
#ifndef RQ_SAY_H
#define RQ_SAY_H

#include "engine/rqvk.h"

#include <stdarg.h>
#include <stdio.h>

static inline void rq_say(const rq_engine_params *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static inline void rq_say(const rq_engine_params *p, const char *format, ...)
{
    if (p->log == NULL) return;
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    p->log(p->log_user, line);
}

#endif
