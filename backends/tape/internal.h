/* internal.h - shared by the files that build and rewrite tapes. */
#ifndef RQ_TAPE_INTERNAL_H
#define RQ_TAPE_INTERNAL_H

#include "backends/tape/tape.h"

#include <stddef.h>

enum { RQ_MAX_BUCKET_TOKENS = 2048 }; /* step.h: RQ_MAX_BUCKET */

/* Records the first failure; returns reference 0. */
rq_ref rq_tape_fail(rq_tape *tape, rq_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Appends a value; 0 when the tape failed or memory runs out. */
rq_ref rq_tape_value(rq_tape *tape, const rq_value *value);

/* rq_grow for the tape's 32-bit capacities. */
bool rq_tape_grow(void **array, uint32_t *cap, uint32_t need, size_t item_bytes);

/* Byte behind the value's last element, from its owner's start. */
uint64_t rq_value_end(const rq_value *v);

#endif
