/* plan.c - see plan.h. */
#include "tools/ppl/plan.h"

#include "backends/cache.h"

rq_status rq_windows_plan(size_t n_tokens, uint32_t n_ctx, uint32_t stride, uint32_t n_bos, bool all,
                          size_t most, rq_windows *out, rq_error *err)
{
    rq_windows w = {.n_ctx = n_ctx, .stride = stride, .n_bos = n_bos, .first = all ? 0 : n_ctx / 2};
    if (n_ctx < 4) return rq_fail(err, RQ_ERR_ARGUMENT, "a window of %u tokens is too short to score", n_ctx);
    uint32_t text = n_ctx - n_bos;
    if (w.stride == 0) w.stride = text;
    if (w.stride > text)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a stride of %u tokens would leave out text between windows of %u", stride, text);
    if (n_tokens < text)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "the text has %zu tokens, fewer than one window of %u: choose a smaller --ctx-size",
                       n_tokens, text);
    w.n = (n_tokens - text) / w.stride + 1;
    if (most && w.n > most) w.n = most;
    *out = w;
    return RQ_OK;
}

/* Of the keys a query at p reads, how many come from coded pages. */
static uint64_t coded_reads(const rq_cache_group *g, uint32_t p)
{
    uint64_t coded = 0;
    for (uint32_t page = 0; page <= p / RQ_PAGE_TOKENS; page++) {
        uint32_t start = page * RQ_PAGE_TOKENS, seen = p + 1 - start;
        if (!rq_kv_reads_exact(g, p, page)) coded += seen < RQ_PAGE_TOKENS ? seen : RQ_PAGE_TOKENS;
    }
    return coded;
}

double rq_coded_share(const rq_windows *w, uint32_t kv_recent, uint32_t kv_sinks, uint32_t window)
{
    if (window) return 0;
    const rq_cache_group g = {
        .form_k = RQ_KV_C4,
        .form_v = RQ_KV_C4,
        .sink_pages = (kv_sinks + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS,
        .recent_pages = kv_recent < RQ_PAGE_TOKENS ? 1 : (kv_recent + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS};
    uint64_t coded = 0, all = 0;
    for (uint32_t p = w->first; p + 1 < w->n_ctx; p++) {
        coded += coded_reads(&g, p);
        all += p + 1;
    }
    return all ? (double)coded / (double)all : 0;
}

void rq_coded_share_advice(const rq_windows *w, bool all, uint32_t kv_recent, uint32_t kv_sinks,
                           uint32_t *n_ctx, uint32_t *recent)
{
    enum { LONGEST = 1 << 16 };
    *n_ctx = *recent = 0;
    /* The share grows with the context, apart from steps within a page: doubling, then the gap in 64s. */
    rq_windows wider = *w;
    for (uint32_t c = 128; c <= LONGEST && !*n_ctx; c += c < 4096 ? 64 : c / 16) {
        wider.n_ctx = c;
        wider.first = all ? 0 : c / 2;
        if (rq_coded_share(&wider, kv_recent, kv_sinks, 0) >= RQ_LEAST_CODED_SHARE) *n_ctx = c;
    }
    for (uint32_t r = kv_recent; r >= RQ_PAGE_TOKENS && !*recent; r -= RQ_PAGE_TOKENS)
        if (rq_coded_share(w, r, kv_sinks, 0) >= RQ_LEAST_CODED_SHARE) *recent = r;
}
