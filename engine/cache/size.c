#include "engine/cache/size.h"

/* Of the bytes of the coded pool, this part is added in exact pages that are kept for reuse; at least so many
 * ends (a prompt's, a message's) per session. Of a window one: it costs as much as a session. */
enum { RETAINED_PART = 8, RETAINED_ENDS = 2, RETAINED_WINDOWS = 1 };

static uint64_t at_most(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Pages that n positions in a row touch at most. */
static uint64_t pages_touched(uint64_t n)
{
    return (n + RQ_PAGE_TOKENS - 2) / RQ_PAGE_TOKENS + 1;
}

/* Is this the form that holds a window's tokens for as long as it sees them? */
static bool holds_window(const rq_cache_group *g, rq_page_form form)
{
    return g->window != 0 && form == (rq_group_is_coded(g) ? RQ_PAGE_CODED : RQ_PAGE_EXACT);
}

/* Of a code: a query at position n, in page k = n / 64, reads the exact pages from k - R on. Of a window: the pages
 * that it touches. One more is slack; and while a narrow step is under way its last tokens may lie in the next page. */
uint32_t rq_cache_share(const rq_cache_group *g, rq_page_form form, uint32_t max_pages)
{
    uint64_t read =
        holds_window(g, form) ? pages_touched(g->window) : (uint64_t)g->sink_pages + g->recent_pages + 1;
    return (uint32_t)at_most(max_pages, read + 1 + RQ_CACHE_SLACK_PAGES);
}

/* Of a code: a wide step reads from B(first) to the page of its first token (R + 1 exact pages, no slack) and leaves
 * behind what its last token reads (R + 1 pages and the slack). Of a window: it reads what its first token's window
 * touches, and all it writes. */
uint32_t rq_cache_wide_share(const rq_cache_group *g, rq_page_form form, uint32_t max_pages, uint32_t n_batch)
{
    uint32_t share = rq_cache_share(g, form, max_pages);
    if (!holds_window(g, form)) return (uint32_t)at_most(max_pages - share, g->recent_pages);
    uint64_t all = at_most(max_pages, pages_touched((uint64_t)g->window - 1 + n_batch));
    return all > share ? (uint32_t)(all - share) : 0;
}

uint64_t rq_cache_held(const rq_cache_group *g, rq_page_form form, uint32_t n_seqs, uint32_t max_pages,
                       uint32_t n_batch)
{
    bool coded = rq_group_is_coded(g);
    if (form == RQ_PAGE_CODED ? !coded || g->window == 0 : !coded && g->window == 0) return 0;
    return (uint64_t)n_seqs * rq_cache_share(g, form, max_pages) +
           rq_cache_wide_share(g, form, max_pages, n_batch);
}

/* Pages of a window for reuse. */
static uint64_t retained_windows(const rq_cache_group *g, uint32_t n_sessions, uint32_t max_pages)
{
    return at_most(pages_touched(g->window) + RQ_CACHE_SLACK_PAGES, max_pages) * RETAINED_WINDOWS *
           n_sessions;
}

/* Exact pages for reuse where there is a code and a coded pool of so many pages. */
static uint64_t retained_exact(const rq_cache_group *g, uint32_t n_sessions, uint32_t max_pages,
                               uint64_t coded)
{
    uint64_t end = (uint64_t)g->recent_pages + 1 + RQ_CACHE_SLACK_PAGES;
    uint64_t least =
        at_most(end, max_pages) * (g->window != 0 ? RETAINED_WINDOWS : RETAINED_ENDS) * n_sessions;
    uint64_t part = (uint64_t)((double)coded * (double)rq_coded_layout_of(g).page_bytes / RETAINED_PART /
                               (double)rq_page_layout_of(g).page_bytes);
    return least > part ? least : part;
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
    bool coded = rq_group_is_coded(g);
    if (!coded && g->window == 0) {
        *out = (rq_pool_sizes){.exact = (uint32_t)pages};
        return RQ_OK;
    }
    /* more than every page and every end of a sequence once is of no use */
    uint64_t all = pages + n_sessions, kept = pages;
    if (g->window != 0) {
        rq_page_form form = coded ? RQ_PAGE_CODED : RQ_PAGE_EXACT;
        uint64_t held = rq_cache_held(g, form, n_sessions, max_pages, n_batch);
        kept = held + at_most(retained_windows(g, n_sessions, max_pages), all > held ? all - held : 0);
    }
    uint64_t held = rq_cache_held(g, RQ_PAGE_EXACT, n_sessions, max_pages, n_batch), exact = kept;
    if (coded)
        exact = held + at_most(retained_exact(g, n_sessions, max_pages, kept), all > held ? all - held : 0);
    if (exact > limit || kept > limit)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u sessions are more than a cache can address", n_sessions);
    uint32_t piece = n_batch / RQ_PAGE_TOKENS;
    *out = (rq_pool_sizes){.exact = (uint32_t)exact,
                           .coded = coded ? (uint32_t)kept : 0,
                           .scratch = coded && piece > g->recent_pages ? piece - g->recent_pages : 0,
                           .retained = (uint32_t)(exact - held)};
    return RQ_OK;
}
