/* numbers.h - options that are lists of numbers: "512", "0,4096". */
#ifndef RQ_NUMBERS_H
#define RQ_NUMBERS_H

#include "backends/base/status.h"

#include <stdint.h>

enum { RQ_MAX_NUMBERS = 32 };

typedef struct rq_numbers {
    uint32_t values[RQ_MAX_NUMBERS], n;
    uint32_t min, max; /* of each */
    uint32_t most;     /* how many there may be; 0: RQ_MAX_NUMBERS */
} rq_numbers;

/* For RQ_OPT_CALL: replaces the list in `target`, an rq_numbers. */
rq_status rq_numbers_parse(void *target, const char *value, rq_error *err);

#endif
