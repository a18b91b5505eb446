/* size.h - how many pages the pools of a cache group need.
 *
 * A group without a coded form needs an exact page for every 64 tokens the cache is to hold. A group with one
 * needs a coded page for them, and exact pages only for what its sequences still read exact. A group with a window
 * needs pages for the windows of its sequences, whatever their length, of the coded form where it has one. What
 * sequences read of a form is so little in these pools that every sequence can have its own at any time, and nothing
 * has to be reserved. */
#ifndef RQ_ENGINE_CACHE_SIZE_H
#define RQ_ENGINE_CACHE_SIZE_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/step.h"

/* Pages that hold n tokens. */
static inline uint32_t rq_cache_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS);
}

/* Pages of a sequence that stay below the first one that is read, so that an end that is cut off a little (a
 * message rendered again) does not cost more than itself. */
enum { RQ_CACHE_SLACK_PAGES = 1 };

/* Pages of a form of a coded group or a window that one sequence holds between steps and in narrow ones, at most. */
uint32_t rq_cache_share(const rq_cache_group *group, rq_page_form form, uint32_t max_pages);
/* Those that the one sequence of a wide step of up to n_batch tokens holds beyond its share, at most. */
uint32_t rq_cache_wide_share(const rq_cache_group *group, rq_page_form form, uint32_t max_pages,
                             uint32_t n_batch);
/* All that sequences hold at once: what the pool has at least. 0 for pools whose pages are reserved, or that the group
 * does not have. */
uint64_t rq_cache_held(const rq_cache_group *group, rq_page_form form, uint32_t n_seqs, uint32_t max_pages,
                       uint32_t n_batch);

typedef struct rq_pool_sizes {
    uint32_t exact;    /* pages of the exact pool */
    uint32_t coded;    /* pages of the coded pool; 0 without a coded form */
    uint32_t scratch;  /* scratch pages (one layer's bytes each); 0 without a coded form */
    uint32_t retained; /* exact pages beyond what sequences hold at once, kept for reuse: part of `exact` */
} rq_pool_sizes;

/* Sizes for n_sessions sequences of at most n_ctx tokens, cache_tokens tokens in all (0: n_ctx * n_sessions) and
 * steps of at most n_batch tokens. RQ_ERR_ARGUMENT when pages could not be numbered. */
rq_status rq_cache_pool_sizes(const rq_cache_group *group, uint32_t n_sessions, uint32_t n_ctx,
                              uint64_t cache_tokens, uint32_t n_batch, rq_pool_sizes *out, rq_error *err);

#endif
