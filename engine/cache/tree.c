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

/* Is the node's page one that could be let go now? */
static bool is_loose(const rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    const rq_node_pages *p = rq_pages_of(c, node, g);
    return !rq_is_bound(c, g, form, c->nodes[node].index) && p->page[form] != RQ_NO_PAGE &&
           p->refs[form] == 0;
}

static rq_list *loose_list(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    return &c->loose[form][g][rq_pages_of(c, node, g)->kept[form] > 0];
}

static void loose_append(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    list_append(c, loose_list(c, node, g, form), rq_chain(g, form), node);
}

static void loose_remove(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    list_remove(c, loose_list(c, node, g, form), rq_chain(g, form), node);
}

/* ---- pages ------------------------------------------------------------------------------------------------ */

void rq_give_page(rq_cache *c, uint32_t g, rq_page_form form, uint32_t page)
{
    rq_pool *p = &c->pools[g][form];
    if (page < p->n_pages) p->free_ids[p->n_free++] = page;
}

static bool let_go(rq_cache *c, uint32_t g, rq_page_form form)
{
    uint32_t node = c->loose[form][g][0].first;
    if (node == RQ_NO_NODE) {
        node = c->loose[form][g][1].first;
        if (node == RQ_NO_NODE) return false;
        rq_save_give_up(c, node, g, form);
    }
    loose_remove(c, node, g, form);
    rq_node_pages *p = rq_pages_of(c, node, g);
    rq_give_page(c, g, form, p->page[form]);
    p->page[form] = RQ_NO_PAGE;
    return true;
}

uint32_t rq_take_page(rq_cache *c, uint32_t g, rq_page_form form)
{
    rq_pool *p = &c->pools[g][form];
    while (p->n_free == 0) {
        if (rq_form_is_loose(c, g, form) && let_go(c, g, form)) continue;
        if (c->unused.first == RQ_NO_NODE || c->groups[g].window != 0) return RQ_NO_PAGE;
        rq_node_remove(c, c->unused.first);
    }
    return p->free_ids[--p->n_free];
}

void rq_page_hold(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    if (rq_pages_of(c, node, g)->refs[form]++ == 0) loose_remove(c, node, g, form);
}

void rq_page_drop(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    if (--rq_pages_of(c, node, g)->refs[form] == 0) loose_append(c, node, g, form);
}

void rq_page_put(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form, uint32_t page)
{
    rq_node_pages *p = rq_pages_of(c, node, g);
    p->page[form] = page;
    if (is_loose(c, node, g, form)) loose_append(c, node, g, form);
}

void rq_page_keep(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    bool loose = is_loose(c, node, g, form);
    if (loose) loose_remove(c, node, g, form);
    rq_pages_of(c, node, g)->kept[form]++;
    if (loose) loose_append(c, node, g, form);
}

void rq_page_unkeep(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    bool loose = is_loose(c, node, g, form);
    if (loose) loose_remove(c, node, g, form);
    rq_pages_of(c, node, g)->kept[form]--;
    if (loose) loose_append(c, node, g, form);
}

void rq_page_touch(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    if (!is_loose(c, node, g, form)) return;
    loose_remove(c, node, g, form);
    loose_append(c, node, g, form);
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
     * the smallest group has pages; without main pools, more than sequences have pages */
    if (c->free_node == RQ_NO_NODE) rq_node_remove(c, c->unused.first);
    uint32_t n = c->free_node;
    rq_node *node = &c->nodes[n];
    c->free_node = node->hash_next;
    c->n_nodes_used++;
    *node = (rq_node){.key = key_of(c, parent, ids),
                      .index = parent == RQ_NO_NODE ? 0 : c->nodes[parent].index + 1,
                      .refs = 1,
                      .saves = RQ_NO_SAVE,
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
    rq_save_leave(c, n);
    unlink_node(c, n);
    if (node->refs == 0) list_remove(c, &c->unused, 0, n);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_node_pages *p = rq_pages_of(c, n, g);
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (is_loose(c, n, g, form)) loose_remove(c, n, g, form);
            if (node->refs == 0 && form == rq_main_form(c, g) && p->page[form] != RQ_NO_PAGE)
                c->pools[g][form].n_idle--;
            rq_give_page(c, g, form, p->page[form]);
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
        if (!rq_has_main(c, g)) continue;
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
