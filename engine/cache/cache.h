/* cache.h - bookkeeping of the key/value cache: which page of which pool belongs to which sequence.
 *
 * Each cache group has a pool of pages (backends/cache.h); a sequence slot has one page table per group. Pages
 * are counted by reference: sequences that share a prefix share its full pages, and a page that is about to be
 * written while somebody else holds it is copied first. Only ids live here; the bytes are the executor's.
 *
 * Reservations make running out of pages impossible in the middle of a request: what a sequence may still need
 * is set aside when the request is admitted, and nobody else can take it.
 *
 * Not thread-safe: the scheduler calls it under its lock. */
#ifndef RQ_ENGINE_CACHE_H
#define RQ_ENGINE_CACHE_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/step.h"
#include "engine/cache/size.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct rq_cache rq_cache;

/* A page whose bytes must be copied before the next step runs (rq_executor_copy_page). */
typedef struct rq_page_copy {
    uint32_t group, from, to;
} rq_page_copy;

/* Pools of group_pages[g] pages, n_seqs empty sequences of at most max_pages pages per group. Every page number
 * fits: group_pages[g] * 64 <= UINT32_MAX. */
rq_status rq_cache_create(const uint32_t *group_pages, uint32_t n_groups, uint32_t n_seqs, uint32_t max_pages,
                          rq_cache **out, rq_error *err);
void rq_cache_free(rq_cache *cache);

/* Sets pages aside so that the sequence can grow to n_tokens. False, with nothing changed, when a pool has too
 * few that are neither held nor set aside for others. Replaces the sequence's earlier reservation. */
bool rq_cache_reserve(rq_cache *cache, uint32_t seq, uint64_t n_tokens);
/* Gives back what was set aside and not used. */
void rq_cache_unreserve(rq_cache *cache, uint32_t seq);

/* Makes the sequence ready to be written from its present end up to n_tokens: adds pages, and replaces its last
 * page if others hold it too, in which case the copies to make are stored in copies[] (room for n_groups
 * entries) and counted in *n_copies. False, with nothing changed, when pages are missing; never after a
 * reservation of as many tokens. */
bool rq_cache_extend(rq_cache *cache, uint32_t seq, uint64_t n_tokens, rq_page_copy *copies,
                     uint32_t *n_copies);

/* Forgets positions >= n_tokens; pages nobody holds any more become free. */
void rq_cache_truncate(rq_cache *cache, uint32_t seq, uint64_t n_tokens);

/* Makes the empty sequence `to` hold the first n_tokens of `from` (which has at least as many). Full pages are
 * shared, a partial last page is copied at once, so that `from` may go on being written: the copies as above.
 * False, with nothing changed, when a pool has no page for the copy. */
bool rq_cache_fork(rq_cache *cache, uint32_t from, uint32_t to, uint64_t n_tokens, rq_page_copy *copies,
                   uint32_t *n_copies);

uint64_t rq_cache_length(const rq_cache *cache, uint32_t seq);

/* The sequence's page tables by group, as rq_step_add_run takes them. */
const uint32_t *const *rq_cache_tables(const rq_cache *cache, uint32_t seq);

/* Adds the page table entries that changed since the device last heard of them to the step. False when the
 * step's edit list is full; calling again with the next step continues. */
bool rq_cache_edits(rq_cache *cache, uint32_t seq, rq_step *step);

/* The largest share of a pool in use, as whole pages' tokens; and the tokens of the smallest pool. */
uint64_t rq_cache_tokens_used(const rq_cache *cache);
uint64_t rq_cache_tokens_total(const rq_cache *cache);
/* Pages of a group that are neither held nor set aside. */
uint32_t rq_cache_available(const rq_cache *cache, uint32_t group);

/* Checks every invariant (reference counts against tables, free list, reservations); for tests. */
bool rq_cache_consistent(const rq_cache *cache);

#endif
