/* match.c - finding what the cache holds of a sequence's tokens. */
#include "engine/cache/internal.h"

#include <string.h>

/* A part of a page is copied only when it saves at least so many tokens; and no more than so many children of a
 * node are looked at for one. */
enum { SMALLEST_COPY = 16, MOST_CHILDREN = 256 };

typedef struct part {
    uint32_t n; /* tokens in common */
    uint32_t from[RQ_MAX_GROUPS];
} part;

static uint32_t in_common(const int32_t *a, const int32_t *b, uint64_t n)
{
    uint32_t i = 0;
    while (i < n && i < RQ_PAGE_TOKENS && a[i] == b[i]) i++;
    return i;
}

static bool has_exact(const rq_cache *c, uint32_t node)
{
    for (uint32_t g = 0; g < c->n_groups; g++)
        if (rq_pages_of(c, node, g)->page[RQ_PAGE_EXACT] == RQ_NO_PAGE) return false;
    return true;
}

/* The page that begins most like ids, among the children of the found path's end and the partial pages of
 * sequences that have got as far. */
static part best_part(const rq_cache *c, const rq_seq *self, uint32_t n_nodes, const int32_t *ids, uint64_t n)
{
    part best = {0};
    uint32_t parent = n_nodes > 0 ? c->found[n_nodes - 1] : RQ_NO_NODE;
    uint32_t child = n_nodes > 0 ? c->nodes[parent].child : c->root_child;
    for (uint32_t i = 0; child != RQ_NO_NODE && i < MOST_CHILDREN; i++, child = c->nodes[child].younger) {
        uint32_t same = in_common(c->nodes[child].ids, ids, n);
        if (same <= best.n || !has_exact(c, child)) continue;
        best.n = same;
        for (uint32_t g = 0; g < c->n_groups; g++)
            best.from[g] = rq_pages_of(c, child, g)->page[RQ_PAGE_EXACT];
    }
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        const rq_seq *s = &c->seqs[i];
        uint32_t len = s->n_done % RQ_PAGE_TOKENS;
        if (s == self || len <= best.n || s->n_nodes != n_nodes) continue;
        if (n_nodes > 0 && s->path[n_nodes - 1] != parent) continue;
        uint32_t same = in_common(s->tail, ids, n < len ? n : len);
        if (same <= best.n) continue;
        best.n = same;
        for (uint32_t g = 0; g < c->n_groups; g++) best.from[g] = s->pages[RQ_PAGE_EXACT][g][n_nodes];
    }
    return best;
}

/* Can the path become found[0 .. n_nodes), with a partial page behind it if `tail`, without taking what is set
 * aside for others? */
static bool affordable(const rq_cache *c, const rq_seq *s, uint32_t n_nodes, bool tail)
{
    if (tail && c->n_copies + c->n_groups > rq_cache_most_copies(c)) return false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_page_form form = rq_main_form(c, g);
        if (!rq_has_main(c, g)) continue;
        uint64_t cost = 0, room = rq_pool_left(&c->pools[g][form]) + s->reserved[g];
        for (uint32_t i = s->n_nodes; i < n_nodes; i++)
            cost +=
                c->nodes[c->found[i]].refs == 0 && rq_pages_of(c, c->found[i], g)->page[form] != RQ_NO_PAGE;
        if (form == RQ_PAGE_EXACT) {
            cost += tail;
            room += s->n_done % RQ_PAGE_TOKENS != 0; /* the present partial page goes */
        }
        if (cost > room) return false;
    }
    return true;
}

/* Makes the path found[0 .. n_nodes) and, with more tokens, a partial page out of `p`. */
static bool attach(rq_cache *c, rq_seq *s, uint32_t n_nodes, uint64_t n_tokens, const part *p,
                   const int32_t *ids)
{
    uint32_t rest = n_tokens % RQ_PAGE_TOKENS, had_nodes = s->n_nodes;
    if (!affordable(c, s, n_nodes, rest > 0)) return false;
    rq_seq_drop_tail(c, s);
    for (uint32_t i = had_nodes; i < n_nodes; i++) {
        s->path[i] = c->found[i];
        rq_node_ref(c, s->path[i]);
    }
    rq_seq_hold(c, s, n_nodes, n_tokens);
    s->n_done = s->n_tokens = (uint64_t)n_nodes * RQ_PAGE_TOKENS;
    rq_seq_reserve(c, s); /* before a page is taken: what the nodes cover is not set aside any more */
    if (rest > 0 && rq_seq_copy_tail(c, s, p != NULL ? p->from : NULL)) {
        memcpy(s->tail, ids + s->n_done, rest * sizeof *ids);
        s->n_done = s->n_tokens = n_tokens;
        rq_seq_reserve(c, s);
    }
    return true;
}

bool rq_cache_resume(rq_cache *c, uint32_t seq, const int32_t *ids, uint64_t n)
{
    rq_seq *s = &c->seqs[seq];
    rq_seq_undo(c, s);
    uint32_t k = s->n_nodes, n_nodes = (uint32_t)(n / RQ_PAGE_TOKENS);
    if (n <= s->n_done || rq_cache_pages_for(n) > c->max_pages) return false;
    memcpy(c->found, s->path, k * sizeof *c->found);
    for (; k < n_nodes; k++) {
        c->found[k] = rq_node_find(c, k > 0 ? c->found[k - 1] : RQ_NO_NODE, ids + (size_t)k * RQ_PAGE_TOKENS);
        if (c->found[k] == RQ_NO_NODE) return false;
    }
    return rq_path_serves(c, c->found, n_nodes, n) && attach(c, s, n_nodes, n, NULL, ids) && s->n_done == n;
}

rq_cache_match rq_cache_advance(rq_cache *c, uint32_t seq, const int32_t *ids, uint64_t n)
{
    rq_seq *s = &c->seqs[seq];
    rq_seq_undo(c, s);
    rq_cache_match m = {.n_known = s->n_done, .n_tokens = s->n_done};
    if (n <= s->n_done) return m;
    uint32_t k = s->n_nodes;
    memcpy(c->found, s->path, k * sizeof *c->found);
    for (; (uint64_t)(k + 1) * RQ_PAGE_TOKENS <= n && k < c->max_pages; k++) {
        uint32_t child =
            rq_node_find(c, k > 0 ? c->found[k - 1] : RQ_NO_NODE, ids + (size_t)k * RQ_PAGE_TOKENS);
        if (child == RQ_NO_NODE) break;
        c->found[k] = child;
    }
    uint64_t whole = (uint64_t)k * RQ_PAGE_TOKENS, before = whole > s->n_done ? whole : s->n_done;
    part p = {0};
    if (k < c->max_pages && n - whole >= SMALLEST_COPY) p = best_part(c, s, k, ids + whole, n - whole);
    bool copy = whole + p.n >= before + SMALLEST_COPY;
    m.n_known = copy ? whole + p.n : before;
    if (copy && rq_path_serves(c, c->found, k, m.n_known) && attach(c, s, k, m.n_known, &p, ids)) {
        m.n_tokens = s->n_done;
        return m;
    }
    for (; k > s->n_nodes; k--) {
        uint64_t end = (uint64_t)k * RQ_PAGE_TOKENS;
        if (!rq_path_serves(c, c->found, k, end)) continue;
        if (attach(c, s, k, end, NULL, ids)) break;
    }
    m.n_tokens = s->n_done;
    return m;
}
