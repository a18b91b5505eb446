/* fake_pages.h - a cache without numbers: pools of exact, scratch and coded pages and page tables, in which a
 * position's content is its token and a hash of all tokens up to it.
 *
 * A step is checked against the rules of backends/cache.h and step.h: every page a query reads must be there in
 * the form its position demands, and hold the content of this very sequence. */
#ifndef FAKE_PAGES_H
#define FAKE_PAGES_H

#include "backends/step.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct fake_pages fake_pages;

typedef struct fake_pools {
    rq_cache_group groups[RQ_MAX_GROUPS];
    uint32_t pages[RQ_MAX_GROUPS], coded_pages[RQ_MAX_GROUPS], scratch_pages[RQ_MAX_GROUPS];
    uint32_t n_groups, n_seqs, max_pages;
} fake_pools;

/* NULL when memory runs out. */
fake_pages *fake_pages_create(const fake_pools *pools);
void fake_pages_free(fake_pages *p);
/* Broken rules so far; each was printed. */
uint32_t fake_pages_violations(const fake_pages *p);

void fake_pages_copy(fake_pages *p, uint32_t group, uint32_t from, uint32_t to);
/* Puts n tokens from position `start` of ids, at the start of a page, into a page: as a copy that somebody kept. */
void fake_pages_load(fake_pages *p, uint32_t group, uint32_t page, const int32_t *ids, uint64_t start,
                     uint32_t n);
/* Applies the step's edits, writes its tokens, encodes, and reads what every token reads. hashes[i], if not NULL,
 * is the hash of everything token i sees. */
void fake_pages_run(fake_pages *p, const rq_step *step, uint64_t *hashes);

/* The hash of one token more. Begin with 1. */
uint64_t fake_hash(uint64_t h, int32_t id);

#endif
