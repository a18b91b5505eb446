/* tree.c - pools, the tree of full pages and the order in which they are given up. */
#include "engine/cache/internal.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* ---- lists ------------------------------------------------------------------------------------------------ */

static rq_link *link_of(rq_cache *c, uint32_t chain, uint32_t node)
{
    return &c->links[(size_t)chain * c->n_nodes + node];
}

static void list_append(rq_cache *c, rq_list *l, uint32_t chain, uint32_t node)
{
    *link_of(c, chain, node) = (rq_link){.before = l->last, .behind = RQ_NO_NODE};
    if (l->last != RQ_NO_NODE)
        link_of(c, chain, l->last)->behind = node;
    else
        l->first = node;
    l->last = node;
}

static void list_remove(rq_cache *c, rq_list *l, uint32_t chain, uint32_t node)
{
    rq_link k = *link_of(c, chain, node);
    if (k.before != RQ_NO_NODE)
        link_of(c, chain, k.before)->behind = k.behind;
    else
        l->first = k.behind;
    if (k.behind != RQ_NO_NODE)
        link_of(c, chain, k.behind)->before = k.before;
    else
        l->last = k.before;
}

static rq_list *loose_list(rq_cache *c, uint32_t node, uint32_t g)
{
    return &c->loose[g][c->nodes[node].marked];
}

/* Is the node's exact page one that could be let go now? */
static bool is_loose(const rq_cache *c, uint32_t node, uint32_t g)
{
    const rq_node_pages *p = rq_pages_of(c, node, g);
    return !rq_exact_is_bound(c, g, c->nodes[node].index) && p->page[RQ_PAGE_EXACT] != RQ_NO_PAGE &&
           p->exact_refs == 0;
}

/* ---- pages ------------------------------------------------------------------------------------------------ */

void rq_give_page(rq_cache *c, uint32_t g, rq_page_form form, uint32_t page)
{
    rq_pool *p = &c->pools[g][form];
    if (page < p->n_pages) p->free_ids[p->n_free++] = page;
}

static bool let_go_exact(rq_cache *c, uint32_t g)
{
    uint32_t node = c->loose[g][0].first;
    if (node == RQ_NO_NODE) node = c->loose[g][1].first;
    if (node == RQ_NO_NODE) return false;
    list_remove(c, loose_list(c, node, g), 1 + g, node);
    rq_node_pages *p = rq_pages_of(c, node, g);
    rq_give_page(c, g, RQ_PAGE_EXACT, p->page[RQ_PAGE_EXACT]);
    p->page[RQ_PAGE_EXACT] = RQ_NO_PAGE;
    return true;
}

uint32_t rq_take_page(rq_cache *c, uint32_t g, rq_page_form form)
{
    rq_pool *p = &c->pools[g][form];
    bool by_itself = form == RQ_PAGE_EXACT && rq_group_is_coded(&c->groups[g]);
    while (p->n_free == 0) {
        if (by_itself && let_go_exact(c, g)) continue;
        if (c->unused.first == RQ_NO_NODE) return RQ_NO_PAGE;
        rq_node_remove(c, c->unused.first);
    }
    return p->free_ids[--p->n_free];
}

void rq_exact_hold(rq_cache *c, uint32_t node, uint32_t g)
{
    rq_node_pages *p = rq_pages_of(c, node, g);
    if (p->exact_refs++ == 0) list_remove(c, loose_list(c, node, g), 1 + g, node);
}

void rq_exact_drop(rq_cache *c, uint32_t node, uint32_t g)
{
    rq_node_pages *p = rq_pages_of(c, node, g);
    if (--p->exact_refs == 0) list_append(c, loose_list(c, node, g), 1 + g, node);
}

void rq_exact_put(rq_cache *c, uint32_t node, uint32_t g, uint32_t page)
{
    rq_node_pages *p = rq_pages_of(c, node, g);
    p->page[RQ_PAGE_EXACT] = page;
    p->exact_refs = 0;
    if (is_loose(c, node, g)) list_append(c, loose_list(c, node, g), 1 + g, node);
}

/* ---- nodes ------------------------------------------------------------------------------------------------ */

static uint64_t key_of(const rq_cache *c, uint32_t parent, const int32_t *ids)
{
    uint64_t before = parent == RQ_NO_NODE ? c->root_key : c->nodes[parent].key;
    return XXH3_64bits_withSeed(ids, RQ_PAGE_TOKENS * sizeof *ids, before) & c->key_mask;
}

uint32_t rq_node_find(const rq_cache *c, uint32_t parent, const int32_t *ids)
{
    uint64_t key = key_of(c, parent, ids);
    for (uint32_t n = c->buckets[key & (c->n_buckets - 1)]; n != RQ_NO_NODE; n = c->nodes[n].hash_next) {
        const rq_node *node = &c->nodes[n];
        if (node->key == key && node->parent == parent && memcmp(node->ids, ids, sizeof node->ids) == 0)
            return n;
    }
    return RQ_NO_NODE;
}

static uint32_t *first_child(rq_cache *c, uint32_t parent)
{
    return parent == RQ_NO_NODE ? &c->root_child : &c->nodes[parent].child;
}

uint32_t rq_node_add(rq_cache *c, uint32_t parent, const int32_t *ids)
{
    /* there is one: a node has a page in every group's main pool (or is a sink), and there are as many nodes as
     * the smallest group has pages */
    uint32_t n = c->free_node;
    rq_node *node = &c->nodes[n];
    c->free_node = node->hash_next;
    c->n_nodes_used++;
    *node = (rq_node){.key = key_of(c, parent, ids),
                      .index = parent == RQ_NO_NODE ? 0 : c->nodes[parent].index + 1,
                      .refs = 1,
                      .parent = parent,
                      .child = RQ_NO_NODE,
                      .elder = RQ_NO_NODE};
    memcpy(node->ids, ids, sizeof node->ids);
    uint32_t *first = first_child(c, parent);
    node->younger = *first;
    if (*first != RQ_NO_NODE) c->nodes[*first].elder = n;
    *first = n;
    uint32_t *bucket = &c->buckets[node->key & (c->n_buckets - 1)];
    node->hash_next = *bucket;
    *bucket = n;
    for (uint32_t g = 0; g < c->n_groups; g++)
        *rq_pages_of(c, n, g) = (rq_node_pages){.page = {RQ_NO_PAGE, RQ_NO_PAGE}};
    return n;
}

static void unlink_node(rq_cache *c, uint32_t n)
{
    rq_node *node = &c->nodes[n];
    uint32_t *at = &c->buckets[node->key & (c->n_buckets - 1)];
    while (*at != n) at = &c->nodes[*at].hash_next;
    *at = node->hash_next;
    if (node->elder != RQ_NO_NODE)
        c->nodes[node->elder].younger = node->younger;
    else
        *first_child(c, node->parent) = node->younger;
    if (node->younger != RQ_NO_NODE) c->nodes[node->younger].elder = node->elder;
}

static void remove_leaf(rq_cache *c, uint32_t n)
{
    rq_node *node = &c->nodes[n];
    unlink_node(c, n);
    if (node->refs == 0) list_remove(c, &c->unused, 0, n);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_node_pages *p = rq_pages_of(c, n, g);
        if (is_loose(c, n, g)) list_remove(c, loose_list(c, n, g), 1 + g, n);
        if (node->refs == 0 && p->page[rq_main_form(c, g)] != RQ_NO_PAGE)
            c->pools[g][rq_main_form(c, g)].n_idle--;
        for (int form = 0; form < RQ_PAGE_FORMS; form++) {
            rq_give_page(c, g, (rq_page_form)form, p->page[form]);
            p->page[form] = RQ_NO_PAGE;
        }
    }
    node->hash_next = c->free_node;
    c->free_node = n;
    c->n_nodes_used--;
}

void rq_node_remove(rq_cache *c, uint32_t top)
{
    for (;;) {
        uint32_t n = top;
        while (c->nodes[n].child != RQ_NO_NODE) n = c->nodes[n].child;
        remove_leaf(c, n);
        if (n == top) return;
    }
}

static void count_idle(rq_cache *c, uint32_t n, uint32_t change)
{
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_page_form form = rq_main_form(c, g);
        if (rq_pages_of(c, n, g)->page[form] != RQ_NO_PAGE) c->pools[g][form].n_idle += change;
    }
}

void rq_node_ref(rq_cache *c, uint32_t n)
{
    if (c->nodes[n].refs++ > 0) return;
    list_remove(c, &c->unused, 0, n);
    count_idle(c, n, UINT32_MAX); /* - 1 */
}

void rq_node_unref(rq_cache *c, uint32_t n)
{
    if (--c->nodes[n].refs > 0) return;
    list_append(c, &c->unused, 0, n);
    count_idle(c, n, 1);
}

void rq_node_mark(rq_cache *c, uint32_t n)
{
    for (uint32_t g = 0; g < c->n_groups; g++)
        if (is_loose(c, n, g)) list_remove(c, loose_list(c, n, g), 1 + g, n);
    c->nodes[n].marked = true;
    for (uint32_t g = 0; g < c->n_groups; g++)
        if (is_loose(c, n, g)) list_append(c, &c->loose[g][1], 1 + g, n);
}
