/* internal.h - what the files of the cache share. */
#ifndef RQ_ENGINE_CACHE_INTERNAL_H
#define RQ_ENGINE_CACHE_INTERNAL_H

#include "engine/cache/cache.h"

#include <stddef.h>

#define RQ_NO_NODE UINT32_MAX

/* A pool of pages of one form of one group. n_idle pages belong to nodes nobody uses, and can be had by evicting
 * them; counted and reserved in main pools (rq_main_form). n_reserved <= n_free + n_idle always. */
typedef struct rq_pool {
    uint32_t n_pages, n_free, n_idle, n_reserved;
    uint32_t *free_ids; /* a stack of n_free ids */
} rq_pool;

/* A full page in the tree. */
typedef struct rq_node {
    uint64_t key;
    uint32_t index;                         /* page index */
    uint32_t refs;                          /* sequences whose path goes through it */
    uint32_t parent, child, elder, younger; /* elder, younger: among its parent's children */
    uint32_t hash_next;                     /* also the list of unused nodes */
    uint32_t saves;                         /* save points whose last whole page it is */
    int32_t ids[RQ_PAGE_TOKENS];
} rq_node;

/* A node's pages of one group. */
typedef struct rq_node_pages {
    uint32_t page[RQ_PAGE_FORMS];
    /* Counted where the page can be let go by itself: sequences that may read it, and save points that hold it. */
    uint32_t refs[RQ_PAGE_FORMS], kept[RQ_PAGE_FORMS];
} rq_node_pages;

/* A position from which a later sequence may go on. It holds the pages that are read there and can be let go: [low, end)
 * of the path to its node, and those of the page its last tokens begin. These are references, counted in `kept`, that
 * protect nothing: a page that is needed elsewhere is taken, and the save points that hold it are given up as wholes. */
typedef struct rq_save {
    uint64_t n;    /* tokens; 0: the slot is free */
    uint64_t used; /* order of last use */
    uint32_t node; /* its last whole page; RQ_NO_NODE: none */
    uint32_t part; /* the page that its last n % 64 tokens begin, if there is one; it can do without */
    uint32_t next; /* of the same node; of the free ones */
    uint32_t low[RQ_PAGE_FORMS][RQ_MAX_GROUPS];
    bool tagged; /* the caller wants to hear of its end */
    int32_t tail[RQ_PAGE_TOKENS];
} rq_save;

/* Positions of a sequence that are to become save points. */
enum { RQ_CACHE_ENDS = 8 };

typedef struct rq_list {
    uint32_t first, last;
} rq_list;

typedef struct rq_link {
    uint32_t before, behind;
} rq_link;

typedef struct rq_seq {
    uint64_t n_done;   /* tokens it holds */
    uint64_t n_tokens; /* what it is extended to, >= n_done */
    uint64_t limit;    /* tokens its reservation is for; 0: none */
    uint32_t n_nodes;  /* n_done / 64 */
    uint32_t *path;
    uint64_t ends[RQ_CACHE_ENDS]; /* to become save points when they are reached */
    uint32_t n_ends;
    uint8_t *marks; /* by page index, a bit for each group: pages that these will hold */
    int32_t tail[RQ_PAGE_TOKENS];
    /* pages of path nodes that can be let go are held from this index on */
    uint32_t low[RQ_PAGE_FORMS][RQ_MAX_GROUPS];
    uint32_t reserved[RQ_MAX_GROUPS];
    uint32_t *pages[RQ_PAGE_FORMS][RQ_MAX_GROUPS]; /* the tables */
    uint32_t *sent[RQ_PAGE_FORMS][RQ_MAX_GROUPS];  /* what the device knows */
    uint32_t dirty_first[RQ_PAGE_FORMS][RQ_MAX_GROUPS], dirty_end[RQ_PAGE_FORMS][RQ_MAX_GROUPS];
} rq_seq;

struct rq_cache {
    rq_cache_group groups[RQ_MAX_GROUPS];
    uint32_t n_groups, n_seqs, max_pages;
    rq_pool pools[RQ_MAX_GROUPS][RQ_PAGE_FORMS];
    uint32_t n_scratch[RQ_MAX_GROUPS];
    uint32_t n_retained[RQ_MAX_GROUPS]; /* exact pages beyond the sequences' shares */

    uint64_t root_key, key_mask;
    uint32_t root_child;
    uint32_t n_nodes, n_nodes_used, free_node;
    rq_node *nodes;
    rq_node_pages *node_pages; /* [n_nodes][n_groups] */
    uint32_t *buckets;
    uint32_t n_buckets; /* a power of two */
    /* Lists by last use. Chain 0: nodes nobody uses, children before their parents. Others (rq_chain): pages that
     * can be let go and that no sequence holds; plain ones, and ones that save points hold. */
    rq_link *links; /* [1 + 2 n_groups][n_nodes] */
    rq_list unused, loose[RQ_PAGE_FORMS][RQ_MAX_GROUPS][2];

    rq_save *saves;
    uint32_t n_saves, free_save, root_saves; /* root_saves: of less than a page */
    uint64_t save_tick;
    void (*dropped)(void *user, uint32_t save);
    void *dropped_user;

    rq_seq *seqs;
    uint32_t *words; /* behind the sequences' arrays */
    uint8_t *marks;
    uint32_t *found; /* max_pages nodes of a match */
    rq_page_copy *copies;
    uint32_t n_copies;
};

/* Can pages of this form be let go while their node stays? Those of a window, which ends somewhere, and the exact
 * ones where there is a code; but sinks cannot. */
static inline bool rq_form_is_loose(const rq_cache *c, uint32_t g, rq_page_form form)
{
    bool coded = rq_group_is_coded(&c->groups[g]);
    return c->groups[g].window != 0 ? form == RQ_PAGE_EXACT || coded : form == RQ_PAGE_EXACT && coded;
}

/* Does the group's page of this form and index live and die with its node? */
static inline bool rq_is_bound(const rq_cache *c, uint32_t g, rq_page_form form, uint32_t index)
{
    return !rq_form_is_loose(c, g, form) || index < c->groups[g].sink_pages;
}

/* The first page index, beside the sinks, that a token at position m or a later one reads in this form. */
static inline uint32_t rq_first_read(const rq_cache *c, uint32_t g, rq_page_form form, uint64_t m)
{
    uint32_t seen = rq_kv_first_page(&c->groups[g], (uint32_t)m);
    uint32_t b = form == RQ_PAGE_EXACT ? rq_kv_boundary(&c->groups[g], (uint32_t)m) : 0;
    return b > seen ? b : seen;
}

static inline uint32_t rq_chain(uint32_t g, rq_page_form form)
{
    return 1 + RQ_PAGE_FORMS * g + form;
}

/* Has the group a coded page of this index? */
static inline bool rq_has_coded(const rq_cache *c, uint32_t g, uint32_t index)
{
    return rq_group_is_coded(&c->groups[g]) && index >= c->groups[g].sink_pages;
}

/* The pool of the group that holds what it was made for, and whose pages are reserved. RQ_PAGE_FORMS where there is
 * none: pools of windows hold every sequence's share. */
static inline rq_page_form rq_main_form(const rq_cache *c, uint32_t g)
{
    if (c->groups[g].window != 0) return RQ_PAGE_FORMS;
    return rq_group_is_coded(&c->groups[g]) ? RQ_PAGE_CODED : RQ_PAGE_EXACT;
}

static inline bool rq_has_main(const rq_cache *c, uint32_t g)
{
    return rq_main_form(c, g) != RQ_PAGE_FORMS;
}

/* Pages of the main pool that indices [0, n_pages) take. */
static inline uint32_t rq_main_pages(const rq_cache *c, uint32_t g, uint32_t n_pages)
{
    uint32_t sinks = c->groups[g].sink_pages;
    if (!rq_group_is_coded(&c->groups[g])) return n_pages;
    return n_pages > sinks ? n_pages - sinks : 0;
}

static inline uint32_t rq_pool_left(const rq_pool *p)
{
    return p->n_free + p->n_idle - p->n_reserved;
}

static inline rq_node_pages *rq_pages_of(const rq_cache *c, uint32_t node, uint32_t g)
{
    return &c->node_pages[(size_t)node * c->n_groups + g];
}

/* ---- tree.c ----------------------------------------------------------------------------------------------- */

/* A page of the pool, evicting what is least useful. RQ_NO_PAGE when everything is in use. */
uint32_t rq_take_page(rq_cache *c, uint32_t g, rq_page_form form);
/* Gives a page back; RQ_NO_PAGE and scratch pages are ignored. */
void rq_give_page(rq_cache *c, uint32_t g, rq_page_form form, uint32_t page);

/* The child of `parent` (RQ_NO_NODE: of the root) with these 64 tokens, or RQ_NO_NODE. */
uint32_t rq_node_find(const rq_cache *c, uint32_t parent, const int32_t *ids);
/* A new child without pages, used by one sequence. */
uint32_t rq_node_add(rq_cache *c, uint32_t parent, const int32_t *ids);
/* Removes a node, with everything below it, and frees its pages. Nobody uses those below; the node itself nobody,
 * or the caller alone, who holds its exact pages. */
void rq_node_remove(rq_cache *c, uint32_t node);
void rq_node_ref(rq_cache *c, uint32_t node);
void rq_node_unref(rq_cache *c, uint32_t node);
/* A sequence begins, or ends, to hold a page that can be let go. */
void rq_page_hold(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);
void rq_page_drop(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);
/* Puts a page that nobody holds into the node, which has none. */
void rq_page_put(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form, uint32_t page);
/* A save point begins, or ends, to hold a page that can be let go, or is used again. */
void rq_page_keep(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);
void rq_page_unkeep(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);
void rq_page_touch(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);

/* ---- save.c ----------------------------------------------------------------------------------------------- */

/* A save point at position n of the sequence, a new one or the one there is, used just now; RQ_NO_SAVE where pages
 * that are read there are gone. */
uint32_t rq_save_make(rq_cache *c, const rq_seq *s, uint64_t n);
void rq_save_drop(rq_cache *c, uint32_t save);
/* The sequence got longer: marked positions that it has reached become save points. */
void rq_save_reached(rq_cache *c, rq_seq *s);
/* A node came: save points whose last tokens it begins with hold its pages. */
void rq_save_join(rq_cache *c, uint32_t node);
/* A node, which has no children, is about to go: with it go its save points. */
void rq_save_leave(rq_cache *c, uint32_t node);
/* A page is needed elsewhere: save points that hold it are given up. */
void rq_save_give_up(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);
/* Does it hold this page on its path? */
bool rq_save_holds(const rq_cache *c, const rq_save *s, uint32_t node, uint32_t g, rq_page_form form);

/* ---- seq.c ------------------------------------------------------------------------------------------------ */

void rq_table_set(rq_seq *s, rq_page_form form, uint32_t g, uint32_t index, uint32_t page);
/* Writes the tables' entries of path node `index`: pages it holds, by low[]. */
void rq_table_show(rq_cache *c, rq_seq *s, uint32_t index);
/* The first index to hold at position m: what is read, and the slack below it where that is still there. */
uint32_t rq_low_for(const rq_cache *c, const uint32_t *path, uint32_t g, rq_page_form form, uint32_t n_nodes,
                    uint64_t m);
/* Undoes an extension that was not committed. */
void rq_seq_undo(rq_cache *c, rq_seq *s);
/* The path ends after n_nodes nodes from now on (path[] is filled), and pages are held as position m, the next to be
 * written, demands; they are there. */
void rq_seq_hold(rq_cache *c, rq_seq *s, uint32_t n_nodes, uint64_t m);
/* Are the pages there that the token at position m and later ones read, in these n_nodes nodes? */
bool rq_path_serves(const rq_cache *c, const uint32_t *path, uint32_t n_nodes, uint64_t m);
/* Gives the sequence a partial last page, a copy of pages from[g] (NULL: of nothing). False, with nothing changed, when there is
 * no page for it. */
bool rq_seq_copy_tail(rq_cache *c, rq_seq *s, const uint32_t *from);
/* Frees the partial last page. */
void rq_seq_drop_tail(rq_cache *c, rq_seq *s);
/* Brings the reservation in line with what the sequence has. */
void rq_seq_reserve(rq_cache *c, rq_seq *s);

#endif
