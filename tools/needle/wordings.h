/* wordings.h - what planted facts and questions are made of.
 *
 * These are the test side of tools/train/recall.py: the models were trained on facts with other wordings and other
 * names (names are split by a checksum), at other token positions. A test compares this file with that one. */
#ifndef RQ_NEEDLE_WORDINGS_H
#define RQ_NEEDLE_WORDINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* {t} thing, {n} name, {v} value; lists end with NULL. */
extern const char *const rq_needle_things[], *const rq_needle_facts[], *const rq_needle_asks[];
extern const char rq_needle_answer[];

/* A generator of its own for every trial, so that a trial is the same whatever came before it. */
typedef struct rq_needle_random {
    uint64_t state;
} rq_needle_random;
rq_needle_random rq_needle_random_start(uint64_t seed, uint64_t stream);
/* 0 <= result < n; n >= 1. */
uint32_t rq_needle_below(rq_needle_random *r, uint32_t n);

enum { RQ_NEEDLE_NAME_BYTES = 48 };

/* A made-up name of the test side, never longer than the buffer. */
void rq_needle_name(rq_needle_random *r, char out[RQ_NEEDLE_NAME_BYTES]);

/* CRC-32 as zlib computes it; names belong to the test side where it is divisible by 8. */
uint32_t rq_needle_crc32(const char *text);

#endif
