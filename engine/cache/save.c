/* save.c - save points: positions from which a later sequence may go on, and the pages that it will read there. */
#include "engine/cache/internal.h"

#include <string.h>

/* ---- the pages of a save point ------------------------------------------------------------------------------ */

typedef void page_change(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form);

static void each_of_part(rq_cache *c, const rq_save *s, page_change *change)
{
    if (s->part == RQ_NO_NODE) return;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++)
            if (!rq_is_bound(c, g, form, c->nodes[s->part].index)) change(c, s->part, g, form);
}

/* Pages that can be let go, from the last one to the first that is read, and of the page that the last tokens begin. */
static void each_page(rq_cache *c, const rq_save *s, page_change *change)
{
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (!rq_form_is_loose(c, g, form)) continue;
            for (uint32_t node = s->node; node != RQ_NO_NODE; node = c->nodes[node].parent) {
                uint32_t index = c->nodes[node].index;
                if (index < s->low[form][g] || rq_is_bound(c, g, form, index)) break;
                change(c, node, g, form);
            }
        }
    each_of_part(c, s, change);
}

bool rq_save_holds(const rq_cache *c, const rq_save *s, uint32_t node, uint32_t g, rq_page_form form)
{
    uint32_t index = c->nodes[node].index, at = s->node;
    if (s->n / RQ_PAGE_TOKENS <= index || index < s->low[form][g]) return false;
    while (at != RQ_NO_NODE && c->nodes[at].index > index) at = c->nodes[at].parent;
    return at == node;
}

static void set_part(rq_cache *c, rq_save *s, uint32_t node)
{
    each_of_part(c, s, rq_page_unkeep);
    s->part = node;
    each_of_part(c, s, rq_page_keep);
}

/* ---- making and giving up ----------------------------------------------------------------------------------- */

static uint32_t *saves_of(rq_cache *c, uint32_t node)
{
    return node == RQ_NO_NODE ? &c->root_saves : &c->nodes[node].saves;
}

void rq_save_drop(rq_cache *c, uint32_t id)
{
    rq_save *s = &c->saves[id];
    each_page(c, s, rq_page_unkeep);
    uint32_t *at = saves_of(c, s->node);
    while (*at != id) at = &c->saves[*at].next;
    *at = s->next;
    bool tagged = s->tagged;
    s->n = 0;
    s->next = c->free_save;
    c->free_save = id;
    if (tagged && c->dropped != NULL) c->dropped(c->dropped_user, id);
}

static void drop_oldest(rq_cache *c)
{
    uint32_t oldest = RQ_NO_SAVE;
    for (uint32_t i = 0; i < c->n_saves; i++)
        if (c->saves[i].n != 0 && (oldest == RQ_NO_SAVE || c->saves[i].used < c->saves[oldest].used))
            oldest = i;
    if (oldest != RQ_NO_SAVE) rq_save_drop(c, oldest);
}

static uint32_t find_at(rq_cache *c, uint32_t node, uint64_t n, const int32_t *tail)
{
    for (uint32_t i = *saves_of(c, node); i != RQ_NO_SAVE; i = c->saves[i].next)
        if (c->saves[i].n == n && memcmp(c->saves[i].tail, tail, n % RQ_PAGE_TOKENS * sizeof *tail) == 0)
            return i;
    return RQ_NO_SAVE;
}

uint32_t rq_save_make(rq_cache *c, const rq_seq *seq, uint64_t n)
{
    uint32_t k = (uint32_t)(n / RQ_PAGE_TOKENS), rest = n % RQ_PAGE_TOKENS;
    if (n == 0 || n > seq->n_done || !rq_path_serves(c, seq->path, k, n)) return RQ_NO_SAVE;
    uint32_t node = k > 0 ? seq->path[k - 1] : RQ_NO_NODE;
    uint32_t part = rest > 0 && k < seq->n_nodes ? seq->path[k] : RQ_NO_NODE;
    const int32_t *tail = part != RQ_NO_NODE ? c->nodes[part].ids : seq->tail;
    uint32_t id = find_at(c, node, n, tail);
    if (id == RQ_NO_SAVE) {
        if (c->free_save == RQ_NO_SAVE) drop_oldest(c);
        id = c->free_save;
        rq_save *s = &c->saves[id];
        c->free_save = s->next;
        *s = (rq_save){.n = n, .node = node, .part = RQ_NO_NODE, .next = *saves_of(c, node)};
        memcpy(s->tail, tail, rest * sizeof *tail);
        *saves_of(c, node) = id;
        for (uint32_t g = 0; g < c->n_groups; g++)
            for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++)
                s->low[form][g] = rq_form_is_loose(c, g, form) ? rq_low_for(c, seq->path, g, form, k, n) : 0;
        each_page(c, s, rq_page_keep);
    } else {
        each_page(c, &c->saves[id], rq_page_touch);
    }
    if (part != RQ_NO_NODE && c->saves[id].part == RQ_NO_NODE) set_part(c, &c->saves[id], part);
    c->saves[id].used = ++c->save_tick;
    return id;
}

void rq_save_join(rq_cache *c, uint32_t node)
{
    const rq_node *n = &c->nodes[node];
    for (uint32_t i = *saves_of(c, n->parent); i != RQ_NO_SAVE; i = c->saves[i].next) {
        rq_save *s = &c->saves[i];
        uint32_t rest = s->n % RQ_PAGE_TOKENS;
        if (rest > 0 && s->part == RQ_NO_NODE && memcmp(s->tail, n->ids, rest * sizeof *s->tail) == 0)
            set_part(c, s, node);
    }
}

void rq_save_leave(rq_cache *c, uint32_t node)
{
    while (c->nodes[node].saves != RQ_NO_SAVE) rq_save_drop(c, c->nodes[node].saves);
    for (uint32_t i = *saves_of(c, c->nodes[node].parent); i != RQ_NO_SAVE; i = c->saves[i].next)
        if (c->saves[i].part == node) set_part(c, &c->saves[i], RQ_NO_NODE);
}

void rq_save_give_up(rq_cache *c, uint32_t node, uint32_t g, rq_page_form form)
{
    for (uint32_t i = 0; i < c->n_saves; i++) {
        rq_save *s = &c->saves[i];
        if (s->n == 0) continue;
        if (s->part == node)
            set_part(c, s, RQ_NO_NODE);
        else if (rq_save_holds(c, s, node, g, form))
            rq_save_drop(c, i);
    }
}

/* ---- the caller's side -------------------------------------------------------------------------------------- */

uint32_t rq_cache_save(rq_cache *c, uint32_t seq, uint64_t n)
{
    uint32_t id = rq_save_make(c, &c->seqs[seq], n);
    if (id != RQ_NO_SAVE) c->saves[id].tagged = true;
    return id;
}

void rq_cache_forget(rq_cache *c, uint32_t save)
{
    if (save < c->n_saves && c->saves[save].n != 0) rq_save_drop(c, save);
}

uint32_t rq_cache_find_save(const rq_cache *c, const int32_t *ids, uint64_t below)
{
    uint32_t best = RQ_NO_SAVE, node = RQ_NO_NODE;
    for (uint64_t k = 0; k * RQ_PAGE_TOKENS < below; k++) {
        uint32_t i = node == RQ_NO_NODE ? c->root_saves : c->nodes[node].saves;
        for (; i != RQ_NO_SAVE; i = c->saves[i].next) {
            const rq_save *s = &c->saves[i];
            if (!s->tagged || s->n >= below || (best != RQ_NO_SAVE && c->saves[best].n >= s->n)) continue;
            if (memcmp(s->tail, ids + k * RQ_PAGE_TOKENS, s->n % RQ_PAGE_TOKENS * sizeof *ids) == 0) best = i;
        }
        if ((k + 1) * RQ_PAGE_TOKENS > below) break;
        node = rq_node_find(c, node, ids + k * RQ_PAGE_TOKENS);
        if (node == RQ_NO_NODE) break;
    }
    return best;
}

uint32_t rq_cache_most_saves(const rq_cache *c)
{
    return c->n_saves;
}

/* ---- positions that are still to be reached ------------------------------------------------------------------ */

void rq_cache_mark(rq_cache *c, uint32_t seq, uint64_t n)
{
    rq_seq *s = &c->seqs[seq];
    if (n <= s->n_done) {
        rq_save_make(c, s, n);
        return;
    }
    if (s->n_ends == RQ_CACHE_ENDS) return;
    s->ends[s->n_ends++] = n;
    uint32_t end = rq_cache_pages_for(n);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!rq_form_is_loose(c, g, RQ_PAGE_EXACT)) continue;
        uint32_t first = rq_first_read(c, g, RQ_PAGE_EXACT, n);
        first = first > RQ_CACHE_SLACK_PAGES ? first - RQ_CACHE_SLACK_PAGES : 0;
        for (uint32_t i = first; i < end && i < c->max_pages; i++) s->marks[i] |= (uint8_t)(1u << g);
    }
}

void rq_cache_unmark(rq_cache *c, uint32_t seq)
{
    c->seqs[seq].n_ends = 0;
    memset(c->seqs[seq].marks, 0, c->max_pages);
}

void rq_save_reached(rq_cache *c, rq_seq *s)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] > s->n_done)
            s->ends[left++] = s->ends[i];
        else
            rq_save_make(c, s, s->ends[i]);
    s->n_ends = left;
}
