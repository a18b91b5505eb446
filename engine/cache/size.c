#include "engine/cache/size.h"

/* Of the bytes of the coded pool, this part is added in exact pages that are kept for reuse; at least so many
 * ends (a prompt's, a message's) per session. */
enum { RETAINED_PART = 8, RETAINED_ENDS = 2 };

static uint64_t at_most(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* A query at position n, in page k = n / 64, reads the pages from k - R on; one more is slack; and while a narrow
 * step is under way its last tokens may lie in page k + 1. */
uint32_t rq_cache_exact_share(const rq_cache_group *g, uint32_t max_pages)
{
    return (uint32_t)at_most(max_pages, (uint64_t)g->sink_pages + g->recent_pages + 2 + RQ_CACHE_SLACK_PAGES);
}

/* A wide step reads from B(first) to the page of its first token (R + 1 pages, no slack) and leaves behind what
 * its last token reads (R + 1 pages and the slack). */
uint32_t rq_cache_wide_share(const rq_cache_group *g, uint32_t max_pages)
{
    return (uint32_t)at_most(max_pages - rq_cache_exact_share(g, max_pages), g->recent_pages);
}

rq_status rq_cache_pool_sizes(const rq_cache_group *g, uint32_t n_sessions, uint32_t n_ctx,
                              uint64_t cache_tokens, uint32_t n_batch, rq_pool_sizes *out, rq_error *err)
{
    uint32_t max_pages = rq_cache_pages_for(n_ctx);
    uint64_t pages = (uint64_t)max_pages * n_sessions;
    if (cache_tokens != 0) pages = (cache_tokens - 1) / RQ_PAGE_TOKENS + 1;
    const uint64_t limit = UINT32_MAX / RQ_PAGE_TOKENS / 2; /* page * 64 + token is a 32-bit number */
    if (pages > limit)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%llu tokens are more than a cache can address",
                       (unsigned long long)pages * RQ_PAGE_TOKENS);
    if (!rq_group_is_coded(g)) {
        *out = (rq_pool_sizes){.exact = (uint32_t)pages};
        return RQ_OK;
    }
    uint64_t held =
        (uint64_t)n_sessions * rq_cache_exact_share(g, max_pages) + rq_cache_wide_share(g, max_pages);
    uint64_t end = (uint64_t)g->recent_pages + 1 + RQ_CACHE_SLACK_PAGES;
    uint64_t retained = at_most(end, max_pages) * RETAINED_ENDS * n_sessions;
    uint64_t part = (uint64_t)((double)pages * (double)rq_coded_layout_of(g).page_bytes / RETAINED_PART /
                               (double)rq_page_layout_of(g).page_bytes);
    if (retained < part) retained = part;
    /* more than every page and every end of a sequence once is of no use */
    uint64_t all = pages + n_sessions;
    retained = at_most(retained, all > held ? all - held : 0);
    if (held + retained > limit)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u sessions are more than a cache can address", n_sessions);
    uint32_t piece = n_batch / RQ_PAGE_TOKENS;
    *out = (rq_pool_sizes){.exact = (uint32_t)(held + retained),
                           .coded = (uint32_t)pages,
                           .scratch = piece > g->recent_pages ? piece - g->recent_pages : 0,
                           .retained = (uint32_t)retained};
    return RQ_OK;
}
