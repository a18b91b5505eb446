/* numbers.c - see numbers.h. */
#include "tools/common/numbers.h"

#include <errno.h>
#include <stdlib.h>

rq_status rq_numbers_parse(void *target, const char *value, rq_error *err)
{
    rq_numbers *l = target;
    const uint32_t most = l->most && l->most < RQ_MAX_NUMBERS ? l->most : RQ_MAX_NUMBERS;
    l->n = 0;
    for (const char *p = value;; p++) {
        char *end;
        errno = 0;
        unsigned long x = strtoul(p, &end, 10);
        if (end == p || *p == '-' || errno || x < l->min || x > l->max || (*end && *end != ','))
            return rq_fail(err, RQ_ERR_ARGUMENT, "\"%s\" is not a list of numbers between %u and %u", value,
                           l->min, l->max);
        if (l->n == most) return rq_fail(err, RQ_ERR_ARGUMENT, "more than %u numbers in \"%s\"", most, value);
        l->values[l->n++] = (uint32_t)x;
        if (!*end) return RQ_OK;
        p = end;
    }
}
