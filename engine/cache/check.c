/* check.c - every invariant of the cache, from scratch. */
#include "engine/cache/internal.h"

#include "backends/base/mem.h"

#include <string.h>

/* What the check counts itself. */
typedef struct tally {
    const rq_cache *c;
    uint32_t *node_refs; /* [n_nodes] */
    uint32_t *page_refs; /* [n_nodes][n_groups][forms] */
    uint32_t *kept;      /* the same, of save points */
    uint8_t *in_tree;    /* [n_nodes] */
    uint32_t n_in_tree;
} tally;

static uint32_t *page_refs(const tally *t, uint32_t node, uint32_t g, rq_page_form form)
{
    return &t->page_refs[((size_t)node * t->c->n_groups + g) * RQ_PAGE_FORMS + form];
}

static uint32_t *kept_of(const tally *t, uint32_t node, uint32_t g, rq_page_form form)
{
    return &t->kept[((size_t)node * t->c->n_groups + g) * RQ_PAGE_FORMS + form];
}

/* Marks a page as seen; false if it was, or is not one of the pool. */
static bool see(uint8_t *seen, const rq_pool *p, uint32_t page)
{
    if (page >= p->n_pages || seen[page]) return false;
    seen[page] = 1;
    return true;
}

static bool count_seq(tally *t, const rq_seq *s)
{
    const rq_cache *c = t->c;
    uint32_t parent = RQ_NO_NODE;
    if (s->n_nodes != s->n_done / RQ_PAGE_TOKENS || s->n_tokens < s->n_done) return false;
    for (uint32_t i = 0; i < s->n_nodes; i++) {
        uint32_t n = s->path[i];
        if (n >= c->n_nodes || !t->in_tree[n] || c->nodes[n].parent != parent || c->nodes[n].index != i)
            return false;
        parent = n;
        t->node_refs[n]++;
        for (uint32_t g = 0; g < c->n_groups; g++) {
            const rq_node_pages *p = rq_pages_of(c, n, g);
            for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
                bool has = form == RQ_PAGE_EXACT || rq_has_coded(c, g, i);
                bool bound = rq_is_bound(c, g, form, i), held = has && (bound || i >= s->low[form][g]);
                if (!bound && held) ++*page_refs(t, n, g, form);
                uint32_t page = held ? p->page[form] : RQ_NO_PAGE;
                if (held && page == RQ_NO_PAGE) return false;
                if (s->pages[form][g][i] != page) return false;
            }
        }
    }
    for (uint32_t g = 0; g < c->n_groups; g++) /* what the next token reads is there, and not much more */
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (!rq_form_is_loose(c, g, form)) continue;
            uint32_t first = rq_first_read(c, g, form, s->n_done), low = s->low[form][g];
            if (low > first) return false;
            if (low < c->groups[g].sink_pages) low = c->groups[g].sink_pages;
            if (low + RQ_CACHE_SLACK_PAGES < first && low < s->n_nodes) return false;
        }
    return true;
}

/* Save points are whole, and attached to their nodes. */
static bool count_save(tally *t, uint32_t id)
{
    const rq_cache *c = t->c;
    const rq_save *s = &c->saves[id];
    if (s->n == 0) return true;
    uint32_t k = (uint32_t)(s->n / RQ_PAGE_TOKENS);
    if (k == 0 ? s->node != RQ_NO_NODE : s->node >= c->n_nodes || !t->in_tree[s->node]) return false;
    if (k != 0 && c->nodes[s->node].index + 1 != k) return false;
    uint32_t at = k == 0 ? c->root_saves : c->nodes[s->node].saves;
    while (at != RQ_NO_SAVE && at != id) at = c->saves[at].next;
    if (at != id) return false;
    bool has_part = s->part != RQ_NO_NODE;
    if (has_part && (!t->in_tree[s->part] || c->nodes[s->part].parent != s->node)) return false;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (has_part && !rq_is_bound(c, g, form, k)) ++*kept_of(t, s->part, g, form);
            if (!rq_form_is_loose(c, g, form)) continue;
            if (s->low[form][g] > rq_first_read(c, g, form, s->n)) return false;
            for (uint32_t node = s->node; node != RQ_NO_NODE; node = c->nodes[node].parent) {
                uint32_t index = c->nodes[node].index;
                if (index < s->low[form][g] || rq_is_bound(c, g, form, index)) break;
                if (!rq_save_holds(c, s, node, g, form)) return false;
                if (rq_pages_of(c, node, g)->page[form] == RQ_NO_PAGE) return false;
                ++*kept_of(t, node, g, form);
            }
        }
    return true;
}

static bool check_node(const tally *t, uint32_t n)
{
    const rq_cache *c = t->c;
    const rq_node *node = &c->nodes[n];
    if (node->refs != t->node_refs[n]) return false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_node_pages *p = rq_pages_of(c, n, g);
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            bool has = form == RQ_PAGE_EXACT || rq_has_coded(c, g, node->index),
                 there = p->page[form] != RQ_NO_PAGE;
            if (p->refs[form] != *page_refs(t, n, g, form) || p->kept[form] != *kept_of(t, n, g, form))
                return false;
            if (rq_is_bound(c, g, form, node->index) ? there != has : there && !has) return false;
        }
    }
    return true;
}

/* The tree below `first`, iteratively: children know their parent. */
static bool walk_tree(tally *t)
{
    const rq_cache *c = t->c;
    uint32_t n = c->root_child, parent = RQ_NO_NODE, elder = RQ_NO_NODE;
    while (n != RQ_NO_NODE) {
        const rq_node *node = &c->nodes[n];
        if (n >= c->n_nodes || t->in_tree[n] || node->parent != parent || node->elder != elder) return false;
        if (node->index != (parent == RQ_NO_NODE ? 0 : c->nodes[parent].index + 1)) return false;
        if (parent != RQ_NO_NODE && node->refs > c->nodes[parent].refs) return false;
        if (rq_node_find(c, parent, node->ids) != n) return false; /* and nobody has the same tokens */
        t->in_tree[n] = 1;
        t->n_in_tree++;
        parent = n;
        elder = RQ_NO_NODE;
        uint32_t next = node->child;
        while (next == RQ_NO_NODE && parent != RQ_NO_NODE) {
            elder = parent;
            next = c->nodes[parent].younger;
            parent = c->nodes[parent].parent;
        }
        n = next;
    }
    return t->n_in_tree == c->n_nodes_used;
}

/* Counts a list; -1 when its links disagree or it is longer than there are nodes. */
static int64_t list_length(const rq_cache *c, const rq_list *l, uint32_t chain, uint8_t *member)
{
    uint32_t before = RQ_NO_NODE;
    int64_t n = 0;
    for (uint32_t at = l->first; at != RQ_NO_NODE; n++) {
        const rq_link *k = &c->links[(size_t)chain * c->n_nodes + at];
        if (n > c->n_nodes || k->before != before || member[at]) return -1;
        member[at] = 1;
        before = at;
        at = k->behind;
    }
    return before == l->last ? n : -1;
}

static bool check_lists(const tally *t, uint8_t *member)
{
    const rq_cache *c = t->c;
    memset(member, 0, c->n_nodes + 1);
    if (list_length(c, &c->unused, 0, member) < 0) return false;
    for (uint32_t n = 0; n < c->n_nodes; n++)
        if (member[n] != (t->in_tree[n] && c->nodes[n].refs == 0)) return false;
    /* children before their parents */
    memset(member, 0, c->n_nodes + 1);
    for (uint32_t at = c->unused.first; at != RQ_NO_NODE; at = c->links[at].behind) {
        for (uint32_t child = c->nodes[at].child; child != RQ_NO_NODE; child = c->nodes[child].younger)
            if (!member[child]) return false;
        member[at] = 1;
    }
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++)
            for (int held = 0; held < 2; held++) {
                memset(member, 0, c->n_nodes + 1);
                if (list_length(c, &c->loose[form][g][held], rq_chain(g, form), member) < 0) return false;
                for (uint32_t n = 0; n < c->n_nodes; n++) {
                    const rq_node_pages *p = rq_pages_of(c, n, g);
                    bool loose = t->in_tree[n] && !rq_is_bound(c, g, form, c->nodes[n].index) &&
                                 p->page[form] != RQ_NO_PAGE && p->refs[form] == 0 &&
                                 (p->kept[form] > 0) == held;
                    if (member[n] != loose) return false;
                }
            }
    return true;
}

/* Every page is in exactly one place: a node, a sequence's own end, or free. */
static bool check_pool(const tally *t, uint32_t g, rq_page_form form, uint8_t *seen)
{
    const rq_cache *c = t->c;
    const rq_pool *p = &c->pools[g][form];
    uint32_t idle = 0, reserved = 0, count = 0;
    memset(seen, 0, p->n_pages);
    if (p->n_free > p->n_pages || (uint64_t)p->n_free + p->n_idle < p->n_reserved) return false;
    for (uint32_t i = 0; i < p->n_free; i++, count++)
        if (!see(seen, p, p->free_ids[i])) return false;
    for (uint32_t n = 0; n < c->n_nodes; n++) {
        uint32_t page = t->in_tree[n] ? rq_pages_of(c, n, g)->page[form] : RQ_NO_PAGE;
        if (page == RQ_NO_PAGE) continue;
        if (!see(seen, p, page)) return false;
        count++;
        idle += c->nodes[n].refs == 0;
    }
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        const rq_seq *s = &c->seqs[i];
        uint32_t n_pages = rq_cache_pages_for(s->n_tokens);
        for (uint32_t k = s->n_nodes; k < c->max_pages; k++) {
            uint32_t page = s->pages[form][g][k];
            bool full = k < s->n_tokens / RQ_PAGE_TOKENS;
            bool want = form == RQ_PAGE_EXACT ? k < n_pages : full && rq_has_coded(c, g, k);
            if ((page != RQ_NO_PAGE) != want) return false;
            if (page == RQ_NO_PAGE) continue;
            if (page >= p->n_pages && form == RQ_PAGE_EXACT) {
                bool legal =
                    page - p->n_pages < c->n_scratch[g] && full && k >= rq_cache_pages_for(s->n_done);
                if (!legal) return false;
                continue;
            }
            if (!see(seen, p, page)) return false;
            count++;
        }
        reserved += form == rq_main_form(c, g) ? s->reserved[g] : 0;
    }
    if (form == rq_main_form(c, g) && idle != p->n_idle) return false;
    return count == p->n_pages && reserved == p->n_reserved;
}

bool rq_cache_consistent(const rq_cache *c)
{
    uint32_t most = c->n_nodes + 1;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++)
            if (c->pools[g][form].n_pages > most) most = c->pools[g][form].n_pages;
    tally t = {.c = c,
               .node_refs = rq_calloc(most, sizeof *t.node_refs),
               .page_refs = rq_calloc(most, c->n_groups * RQ_PAGE_FORMS * sizeof *t.page_refs),
               .kept = rq_calloc(most, c->n_groups * RQ_PAGE_FORMS * sizeof *t.kept),
               .in_tree = rq_calloc(most, 1)};
    uint8_t *seen = rq_calloc(most, 1);
    bool ok = t.node_refs != NULL && t.page_refs != NULL && t.kept != NULL && t.in_tree != NULL &&
              seen != NULL && walk_tree(&t);
    for (uint32_t i = 0; i < c->n_seqs && ok; i++) ok = count_seq(&t, &c->seqs[i]);
    for (uint32_t i = 0; i < c->n_saves && ok; i++) ok = count_save(&t, i);
    for (uint32_t n = 0; n < c->n_nodes && ok; n++) ok = !t.in_tree[n] || check_node(&t, n);
    ok = ok && check_lists(&t, seen);
    for (uint32_t g = 0; g < c->n_groups && ok; g++)
        ok = check_pool(&t, g, RQ_PAGE_EXACT, seen) && check_pool(&t, g, RQ_PAGE_CODED, seen);
    rq_free(t.node_refs);
    rq_free(t.page_refs);
    rq_free(t.kept);
    rq_free(t.in_tree);
    rq_free(seen);
    return ok;
}
