/* cache.c - page pools and page tables. */
#include "engine/cache/cache.h"

#include "backends/base/mem.h"

#include <string.h>

typedef struct rq_pool {
    uint32_t n_pages;
    uint32_t n_free, n_reserved; /* n_reserved <= n_free always: a promise is backed by a free page */
    uint32_t *refs;              /* by page id */
    uint32_t *free_ids;          /* a stack of n_free ids */
} rq_pool;

typedef struct rq_seq {
    uint64_t n_tokens;
    uint32_t *pages[RQ_MAX_GROUPS]; /* by page index, max_pages entries */
    uint32_t n_pages;               /* equal for all groups */
    uint32_t reserved[RQ_MAX_GROUPS];
    uint32_t n_known[RQ_MAX_GROUPS]; /* leading entries the device has */
} rq_seq;

struct rq_cache {
    uint32_t n_groups, n_seqs, max_pages;
    rq_pool pools[RQ_MAX_GROUPS];
    rq_seq *seqs;
    uint32_t *tables; /* n_seqs * n_groups * max_pages entries behind seqs[].pages */
};

rq_status rq_cache_create(const uint32_t *group_pages, uint32_t n_groups, uint32_t n_seqs, uint32_t max_pages,
                          rq_cache **out, rq_error *err)
{
    if (n_groups < 1 || n_groups > RQ_MAX_GROUPS || n_seqs < 1 || max_pages < 1)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %u groups, %u sequences and %u pages cannot be made",
                       n_groups, n_seqs, max_pages);
    rq_cache *c = rq_calloc(1, sizeof *c);
    if (c == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache's page tables");
    c->n_groups = n_groups;
    c->n_seqs = n_seqs;
    c->max_pages = max_pages;
    for (uint32_t g = 0; g < n_groups; g++) {
        rq_pool *p = &c->pools[g];
        if (group_pages[g] > UINT32_MAX / RQ_PAGE_TOKENS) {
            rq_cache_free(c);
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "a cache of %u pages is more than page numbers can tell apart", group_pages[g]);
        }
        p->n_pages = p->n_free = group_pages[g];
        p->refs = rq_calloc(group_pages[g], sizeof *p->refs);
        p->free_ids = rq_calloc(group_pages[g], sizeof *p->free_ids);
        if (p->refs == NULL || p->free_ids == NULL) goto no_memory;
        /* low ids on top, so that a small load stays in few slabs */
        for (uint32_t i = 0; i < p->n_pages; i++) p->free_ids[i] = p->n_pages - 1 - i;
    }
    uint64_t entries;
    if (!rq_mul_u64((uint64_t)n_seqs * n_groups, max_pages, &entries) || entries > SIZE_MAX / 4)
        goto no_memory;
    c->seqs = rq_calloc(n_seqs, sizeof *c->seqs);
    c->tables = rq_calloc((size_t)entries, sizeof *c->tables);
    if (c->seqs == NULL || c->tables == NULL) goto no_memory;
    memset(c->tables, 0xff, (size_t)entries * sizeof *c->tables); /* RQ_NO_PAGE */
    for (uint32_t s = 0; s < n_seqs; s++)
        for (uint32_t g = 0; g < n_groups; g++)
            c->seqs[s].pages[g] = c->tables + ((size_t)s * n_groups + g) * max_pages;
    *out = c;
    return RQ_OK;
no_memory:
    rq_cache_free(c);
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache's page tables");
}

void rq_cache_free(rq_cache *c)
{
    if (c == NULL) return;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_free(c->pools[g].refs);
        rq_free(c->pools[g].free_ids);
    }
    rq_free(c->seqs);
    rq_free(c->tables);
    rq_free(c);
}

/* Is the page that position seq->n_tokens falls into begun, and held by others too? Then writing it costs one
 * page more. */
static bool tail_is_shared(const rq_cache *c, const rq_seq *s, uint32_t g)
{
    if (s->n_tokens % RQ_PAGE_TOKENS == 0) return false;
    return c->pools[g].refs[s->pages[g][s->n_tokens / RQ_PAGE_TOKENS]] > 1;
}

static uint32_t pages_missing(const rq_cache *c, const rq_seq *s, uint32_t g, uint64_t n_tokens)
{
    if (n_tokens <= s->n_tokens) return 0;
    return rq_cache_pages_for(n_tokens) - s->n_pages + (tail_is_shared(c, s, g) ? 1 : 0);
}

bool rq_cache_reserve(rq_cache *c, uint32_t seq, uint64_t n_tokens)
{
    rq_seq *s = &c->seqs[seq];
    if (rq_cache_pages_for(n_tokens) > c->max_pages) return false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_pool *p = &c->pools[g];
        if (pages_missing(c, s, g, n_tokens) > p->n_free - p->n_reserved + s->reserved[g]) return false;
    }
    for (uint32_t g = 0; g < c->n_groups; g++) {
        uint32_t need = pages_missing(c, s, g, n_tokens);
        c->pools[g].n_reserved += need - s->reserved[g];
        s->reserved[g] = need;
    }
    return true;
}

void rq_cache_unreserve(rq_cache *c, uint32_t seq)
{
    rq_seq *s = &c->seqs[seq];
    for (uint32_t g = 0; g < c->n_groups; g++) {
        c->pools[g].n_reserved -= s->reserved[g];
        s->reserved[g] = 0;
    }
}

/* A free page for the sequence, from its reservation first. The caller has checked that there is one. */
static uint32_t take_page(rq_cache *c, rq_seq *s, uint32_t g)
{
    rq_pool *p = &c->pools[g];
    if (s->reserved[g] > 0) {
        s->reserved[g]--;
        p->n_reserved--;
    }
    uint32_t id = p->free_ids[--p->n_free];
    p->refs[id] = 1;
    return id;
}

static void drop_page(rq_cache *c, uint32_t g, uint32_t id)
{
    rq_pool *p = &c->pools[g];
    if (--p->refs[id] == 0) p->free_ids[p->n_free++] = id;
}

static void set_entry(rq_seq *s, uint32_t g, uint32_t index, uint32_t id)
{
    s->pages[g][index] = id;
    if (s->n_known[g] > index) s->n_known[g] = index;
}

bool rq_cache_extend(rq_cache *c, uint32_t seq, uint64_t n_tokens, rq_page_copy *copies, uint32_t *n_copies)
{
    rq_seq *s = &c->seqs[seq];
    *n_copies = 0;
    if (n_tokens <= s->n_tokens) return true;
    uint32_t n_pages = rq_cache_pages_for(n_tokens);
    if (n_pages > c->max_pages) return false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_pool *p = &c->pools[g];
        if (pages_missing(c, s, g, n_tokens) > p->n_free - p->n_reserved + s->reserved[g]) return false;
    }
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (tail_is_shared(c, s, g)) {
            uint32_t index = (uint32_t)(s->n_tokens / RQ_PAGE_TOKENS), from = s->pages[g][index];
            uint32_t to = take_page(c, s, g);
            drop_page(c, g, from);
            set_entry(s, g, index, to);
            copies[(*n_copies)++] = (rq_page_copy){.group = g, .from = from, .to = to};
        }
        for (uint32_t i = s->n_pages; i < n_pages; i++) set_entry(s, g, i, take_page(c, s, g));
    }
    s->n_pages = n_pages;
    s->n_tokens = n_tokens;
    return true;
}

void rq_cache_truncate(rq_cache *c, uint32_t seq, uint64_t n_tokens)
{
    rq_seq *s = &c->seqs[seq];
    if (n_tokens >= s->n_tokens) return;
    uint32_t keep = rq_cache_pages_for(n_tokens);
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (uint32_t i = s->n_pages; i-- > keep;) {
            drop_page(c, g, s->pages[g][i]);
            set_entry(s, g, i, RQ_NO_PAGE);
        }
    s->n_pages = keep;
    s->n_tokens = n_tokens;
}

bool rq_cache_fork(rq_cache *c, uint32_t from, uint32_t to, uint64_t n_tokens, rq_page_copy *copies,
                   uint32_t *n_copies)
{
    const rq_seq *a = &c->seqs[from];
    rq_seq *b = &c->seqs[to];
    *n_copies = 0;
    if (from == to || b->n_tokens != 0 || n_tokens > a->n_tokens) return false;
    uint32_t full = (uint32_t)(n_tokens / RQ_PAGE_TOKENS);
    bool partial = n_tokens % RQ_PAGE_TOKENS != 0;
    for (uint32_t g = 0; partial && g < c->n_groups; g++)
        if (c->pools[g].n_free - c->pools[g].n_reserved + b->reserved[g] == 0) return false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        for (uint32_t i = 0; i < full; i++) {
            c->pools[g].refs[a->pages[g][i]]++;
            set_entry(b, g, i, a->pages[g][i]);
        }
        if (partial) {
            uint32_t id = take_page(c, b, g);
            set_entry(b, g, full, id);
            copies[(*n_copies)++] = (rq_page_copy){.group = g, .from = a->pages[g][full], .to = id};
        }
    }
    b->n_pages = rq_cache_pages_for(n_tokens);
    b->n_tokens = n_tokens;
    return true;
}

uint64_t rq_cache_length(const rq_cache *c, uint32_t seq)
{
    return c->seqs[seq].n_tokens;
}

const uint32_t *const *rq_cache_tables(const rq_cache *c, uint32_t seq)
{
    return (const uint32_t *const *)c->seqs[seq].pages;
}

bool rq_cache_edits(rq_cache *c, uint32_t seq, rq_step *step)
{
    rq_seq *s = &c->seqs[seq];
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (; s->n_known[g] < s->n_pages; s->n_known[g]++)
            if (!rq_step_add_edit(step, g, RQ_PAGE_EXACT, seq, s->n_known[g], s->pages[g][s->n_known[g]]))
                return false;
    return true;
}

uint64_t rq_cache_tokens_used(const rq_cache *c)
{
    uint64_t used = 0;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        uint64_t tokens = (uint64_t)(c->pools[g].n_pages - c->pools[g].n_free) * RQ_PAGE_TOKENS;
        if (tokens > used) used = tokens;
    }
    return used;
}

uint64_t rq_cache_tokens_total(const rq_cache *c)
{
    uint64_t total = UINT64_MAX;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        uint64_t tokens = (uint64_t)c->pools[g].n_pages * RQ_PAGE_TOKENS;
        if (tokens < total) total = tokens;
    }
    return total;
}

uint32_t rq_cache_available(const rq_cache *c, uint32_t group)
{
    return c->pools[group].n_free - c->pools[group].n_reserved;
}

bool rq_cache_consistent(const rq_cache *c)
{
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_pool *p = &c->pools[g];
        uint32_t reserved = 0, held = 0;
        if (p->n_free > p->n_pages || p->n_reserved > p->n_free) return false;
        for (uint32_t id = 0; id < p->n_pages; id++) {
            uint32_t refs = 0;
            for (uint32_t s = 0; s < c->n_seqs; s++)
                for (uint32_t i = 0; i < c->seqs[s].n_pages; i++) refs += c->seqs[s].pages[g][i] == id;
            if (refs != p->refs[id]) return false;
            held += refs > 0;
        }
        for (uint32_t i = 0; i < p->n_free; i++) {
            if (p->free_ids[i] >= p->n_pages || p->refs[p->free_ids[i]] != 0) return false;
            for (uint32_t j = 0; j < i; j++)
                if (p->free_ids[j] == p->free_ids[i]) return false;
        }
        if (held + p->n_free != p->n_pages) return false;
        for (uint32_t s = 0; s < c->n_seqs; s++) {
            const rq_seq *q = &c->seqs[s];
            reserved += q->reserved[g];
            if (q->n_pages != rq_cache_pages_for(q->n_tokens) || q->n_known[g] > q->n_pages) return false;
            for (uint32_t i = 0; i < c->max_pages; i++)
                if ((q->pages[g][i] == RQ_NO_PAGE) != (i >= q->n_pages)) return false;
        }
        if (reserved != p->n_reserved) return false;
    }
    return true;
}
