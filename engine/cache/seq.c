/* seq.c - a sequence: its tables, its growth by steps, and its end cut off. */
#include "engine/cache/internal.h"

#include <string.h>

static uint32_t at_least(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

void rq_table_set(rq_seq *s, rq_page_form form, uint32_t g, uint32_t index, uint32_t page)
{
    s->pages[form][g][index] = page;
    if (index < s->dirty_first[form][g]) s->dirty_first[form][g] = index;
    if (index >= s->dirty_end[form][g]) s->dirty_end[form][g] = index + 1;
}

void rq_table_show(rq_cache *c, rq_seq *s, uint32_t index)
{
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_node_pages *p = rq_pages_of(c, s->path[index], g);
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            bool held = rq_is_bound(c, g, form, index) || index >= s->low[form][g];
            if (form == RQ_PAGE_EXACT || rq_group_is_coded(&c->groups[g]))
                rq_table_set(s, form, g, index, held ? p->page[form] : RQ_NO_PAGE);
        }
    }
}

const uint32_t *const *rq_cache_tables(const rq_cache *c, uint32_t seq)
{
    return (const uint32_t *const *)c->seqs[seq].pages[RQ_PAGE_EXACT];
}

/* Sends what differs in one table; entries behind the end wait until they mean something. */
static bool send_table(const rq_cache *c, rq_seq *s, uint32_t seq, rq_page_form form, uint32_t g,
                       rq_step *step)
{
    uint32_t n_pages = rq_cache_pages_for(s->n_tokens), *first = &s->dirty_first[form][g];
    uint32_t end = s->dirty_end[form][g] < n_pages ? s->dirty_end[form][g] : n_pages;
    for (; *first < end; ++*first) {
        uint32_t page = s->pages[form][g][*first];
        if (s->sent[form][g][*first] == page) continue;
        if (!rq_step_add_edit(step, g, form, seq, *first, page)) return false;
        s->sent[form][g][*first] = page;
    }
    if (*first >= s->dirty_end[form][g]) {
        *first = c->max_pages;
        s->dirty_end[form][g] = 0;
    }
    return true;
}

bool rq_cache_edits(rq_cache *c, uint32_t seq, rq_step *step)
{
    rq_seq *s = &c->seqs[seq];
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!send_table(c, s, seq, RQ_PAGE_EXACT, g, step)) return false;
        if (rq_group_is_coded(&c->groups[g]) && !send_table(c, s, seq, RQ_PAGE_CODED, g, step)) return false;
    }
    return true;
}

void rq_cache_resend(rq_cache *c, uint32_t seq)
{
    rq_seq *s = &c->seqs[seq];
    for (int form = 0; form < RQ_PAGE_FORMS; form++)
        for (uint32_t g = 0; g < c->n_groups; g++) {
            for (uint32_t i = 0; i < c->max_pages; i++)
                s->sent[form][g][i] = RQ_NO_PAGE - 1; /* no page's id */
            s->dirty_first[form][g] = 0;
            s->dirty_end[form][g] = c->max_pages;
        }
}

/* ---- which exact pages are held ---------------------------------------------------------------------------- */

bool rq_path_serves(const rq_cache *c, const uint32_t *path, uint32_t n_nodes, uint64_t m)
{
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (!rq_form_is_loose(c, g, form)) continue;
            for (uint32_t i = rq_first_read(c, g, form, m); i < n_nodes; i++)
                if (rq_pages_of(c, path[i], g)->page[form] == RQ_NO_PAGE &&
                    (form == RQ_PAGE_EXACT || rq_has_coded(c, g, i)))
                    return false;
        }
    return true;
}

uint32_t rq_low_for(const rq_cache *c, const uint32_t *path, uint32_t g, rq_page_form form, uint32_t n_nodes,
                    uint64_t m)
{
    uint32_t low = rq_first_read(c, g, form, m);
    for (uint32_t i = 0; i < RQ_CACHE_SLACK_PAGES; i++) {
        if (low == 0 || low > n_nodes || rq_is_bound(c, g, form, low - 1)) break;
        if (rq_pages_of(c, path[low - 1], g)->page[form] == RQ_NO_PAGE) break;
        low--;
    }
    return low;
}

/* Holds the pages of one form from `low` on in n_nodes nodes instead of what it held. Returns the first index whose
 * entry in the table may change. */
static uint32_t hold_form(rq_cache *c, rq_seq *s, uint32_t g, rq_page_form form, uint32_t n_nodes, uint64_t m)
{
    uint32_t old_nodes = s->n_nodes, old_low = s->low[form][g],
             low = rq_low_for(c, s->path, g, form, n_nodes, m);
    uint32_t sinks = c->groups[g].sink_pages;
    for (uint32_t i = at_least(low, sinks); i < n_nodes; i++)
        if (i < old_low || i >= old_nodes) rq_page_hold(c, s->path[i], g, form);
    for (uint32_t i = at_least(old_low, sinks); i < old_nodes; i++)
        if (i < low || i >= n_nodes) rq_page_drop(c, s->path[i], g, form);
    s->low[form][g] = low;
    return low < old_low ? low : old_low;
}

void rq_seq_hold(rq_cache *c, rq_seq *s, uint32_t n_nodes, uint64_t m)
{
    uint32_t old_nodes = s->n_nodes, first = n_nodes < old_nodes ? n_nodes : old_nodes;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (!rq_form_is_loose(c, g, form)) continue;
            uint32_t low = hold_form(c, s, g, form, n_nodes, m);
            if (low < first) first = low;
        }
    for (uint32_t i = first; i < n_nodes; i++) rq_table_show(c, s, i);
    s->n_nodes = n_nodes;
}

/* ---- growing ----------------------------------------------------------------------------------------------- */

void rq_seq_undo(rq_cache *c, rq_seq *s)
{
    if (s->n_tokens == s->n_done) return;
    uint32_t kept = rq_cache_pages_for(s->n_done), end = rq_cache_pages_for(s->n_tokens);
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (uint32_t i = s->n_nodes; i < end; i++) {
            rq_give_page(c, g, RQ_PAGE_CODED, s->pages[RQ_PAGE_CODED][g][i]);
            rq_table_set(s, RQ_PAGE_CODED, g, i, RQ_NO_PAGE);
            if (i < kept) continue;
            rq_give_page(c, g, RQ_PAGE_EXACT, s->pages[RQ_PAGE_EXACT][g][i]);
            rq_table_set(s, RQ_PAGE_EXACT, g, i, RQ_NO_PAGE);
        }
    s->n_tokens = s->n_done;
    rq_seq_reserve(c, s);
}

/* Takes the exact pages of indices [first, end). In a wide step those below B(last position), less the slack, are
 * scratch where there is a code, unless they are marked: the last of these get pages of their own, as many as are kept for reuse. */
static bool take_exact(rq_cache *c, rq_seq *s, uint32_t g, uint32_t first, uint32_t end,
                       uint32_t last_position, bool wide)
{
    uint32_t n_scratch = 0, n_marked = 0, keep = 0;
    if (wide && rq_group_is_coded(&c->groups[g])) {
        uint32_t b = rq_kv_boundary(&c->groups[g], last_position);
        keep = b > c->groups[g].sink_pages + RQ_CACHE_SLACK_PAGES ? b - RQ_CACHE_SLACK_PAGES
                                                                  : c->groups[g].sink_pages;
    }
    for (uint32_t i = end; i-- > first;) {
        bool scratch = i < keep && i >= c->groups[g].sink_pages && n_scratch < c->n_scratch[g];
        if (scratch && s->marks[i] >> g & 1 && n_marked < c->n_retained[g]) {
            scratch = false;
            n_marked++;
        }
        uint32_t page = c->pools[g][RQ_PAGE_EXACT].n_pages + n_scratch;
        if (scratch)
            n_scratch++;
        else if ((page = rq_take_page(c, g, RQ_PAGE_EXACT)) == RQ_NO_PAGE)
            return false;
        rq_table_set(s, RQ_PAGE_EXACT, g, i, page);
    }
    return true;
}

bool rq_cache_extend(rq_cache *c, uint32_t seq, uint64_t n_tokens, bool wide)
{
    rq_seq *s = &c->seqs[seq];
    rq_seq_undo(c, s);
    if (n_tokens <= s->n_done) return true;
    uint32_t had = rq_cache_pages_for(s->n_done), n_pages = rq_cache_pages_for(n_tokens);
    if (n_pages > c->max_pages) return false;
    uint32_t full = (uint32_t)(n_tokens / RQ_PAGE_TOKENS);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        bool coded = rq_group_is_coded(&c->groups[g]);
        if (!rq_has_main(c, g)) continue;
        uint32_t need = coded ? rq_main_pages(c, g, full) - rq_main_pages(c, g, s->n_nodes) : n_pages - had;
        if (need > rq_pool_left(&c->pools[g][rq_main_form(c, g)]) + s->reserved[g]) return false;
    }
    /* what nobody reads any more goes first: a wide step has no use for the slack */
    for (uint32_t g = 0; wide && g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            if (!rq_form_is_loose(c, g, form)) continue;
            uint32_t b = rq_first_read(c, g, form, s->n_done), low = s->low[form][g];
            for (; low < b && low < s->n_nodes; low++) {
                if (!rq_is_bound(c, g, form, low)) rq_page_drop(c, s->path[low], g, form);
                s->low[form][g] = low + 1;
                rq_table_show(c, s, low);
            }
        }
    s->n_tokens = n_tokens;
    bool ok = true;
    for (uint32_t g = 0; g < c->n_groups && ok; g++) {
        ok = take_exact(c, s, g, had, n_pages, (uint32_t)(n_tokens - 1), wide);
        for (uint32_t i = s->n_nodes; i < full && ok; i++) {
            if (!rq_has_coded(c, g, i)) continue;
            uint32_t page = rq_take_page(c, g, RQ_PAGE_CODED);
            ok = page != RQ_NO_PAGE;
            rq_table_set(s, RQ_PAGE_CODED, g, i, page);
        }
    }
    if (!ok) {
        rq_seq_undo(c, s);
        return false;
    }
    rq_seq_reserve(c, s);
    return true;
}

bool rq_cache_encodes(rq_cache *c, uint32_t seq, rq_step *step)
{
    const rq_seq *s = &c->seqs[seq];
    uint32_t full = (uint32_t)(s->n_tokens / RQ_PAGE_TOKENS);
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (uint32_t i = s->n_nodes; i < full; i++)
            if (rq_has_coded(c, g, i) &&
                !rq_step_add_encode(step, g, s->pages[RQ_PAGE_EXACT][g][i], s->pages[RQ_PAGE_CODED][g][i]))
                return false;
    return true;
}

/* The sequence's own pages of index i become a node, or go back because there is one. */
static void make_node(rq_cache *c, rq_seq *s, uint32_t i, const int32_t *ids)
{
    uint32_t parent = i > 0 ? s->path[i - 1] : RQ_NO_NODE, node = rq_node_find(c, parent, ids);
    bool known = node != RQ_NO_NODE;
    if (known)
        rq_node_ref(c, node);
    else
        node = rq_node_add(c, parent, ids);
    s->path[i] = node;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (rq_page_form form = 0; form < RQ_PAGE_FORMS; form++) {
            uint32_t page = s->pages[form][g][i];
            if (page >= c->pools[g][form].n_pages) continue; /* none, or scratch */
            if (rq_pages_of(c, node, g)->page[form] != RQ_NO_PAGE)
                rq_give_page(c, g, form, page);
            else
                rq_page_put(c, node, g, form, page);
        }
    rq_save_join(c, node);
}

void rq_cache_keep(rq_cache *c, uint32_t seq, uint64_t n_tokens)
{
    rq_seq *s = &c->seqs[seq];
    bool same = rq_cache_pages_for(n_tokens) == rq_cache_pages_for(s->n_tokens);
    if (n_tokens >= s->n_done && n_tokens < s->n_tokens && same) s->n_tokens = n_tokens;
}

void rq_cache_commit(rq_cache *c, uint32_t seq, const int32_t *ids)
{
    rq_seq *s = &c->seqs[seq];
    uint32_t full = (uint32_t)(s->n_tokens / RQ_PAGE_TOKENS);
    for (uint32_t i = s->n_nodes; i < full; i++) make_node(c, s, i, ids + (size_t)i * RQ_PAGE_TOKENS);
    memcpy(s->tail, ids + (size_t)full * RQ_PAGE_TOKENS, s->n_tokens % RQ_PAGE_TOKENS * sizeof *ids);
    s->n_done = s->n_tokens;
    rq_seq_hold(c, s, full, s->n_done);
    rq_save_reached(c, s);
}

/* ---- cutting off ------------------------------------------------------------------------------------------- */

bool rq_seq_copy_tail(rq_cache *c, rq_seq *s, const uint32_t *from)
{
    uint32_t pages[RQ_MAX_GROUPS] = {0}, n = 0;
    if (from != NULL && c->n_copies + c->n_groups > rq_cache_most_copies(c)) return false;
    for (; n < c->n_groups; n++) {
        const rq_pool *p = &c->pools[n][RQ_PAGE_EXACT];
        bool counted = rq_main_form(c, n) == RQ_PAGE_EXACT;
        if (counted && rq_pool_left(p) + s->reserved[n] == 0) break;
        pages[n] = rq_take_page(c, n, RQ_PAGE_EXACT);
        if (pages[n] == RQ_NO_PAGE) break;
    }
    if (n < c->n_groups) {
        while (n-- > 0) rq_give_page(c, n, RQ_PAGE_EXACT, pages[n]);
        return false;
    }
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_table_set(s, RQ_PAGE_EXACT, g, s->n_nodes, pages[g]);
        rq_table_set(s, RQ_PAGE_CODED, g, s->n_nodes, RQ_NO_PAGE);
        /* the same page: its node was given up for this one */
        if (from == NULL || from[g] == pages[g]) continue;
        c->copies[c->n_copies++] = (rq_page_copy){.group = g, .from = from[g], .to = pages[g]};
    }
    return true;
}

void rq_seq_drop_tail(rq_cache *c, rq_seq *s)
{
    if (s->n_done % RQ_PAGE_TOKENS == 0) return;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        /* a copy to it that was not made yet does no harm: whoever gets the page writes it later */
        rq_give_page(c, g, RQ_PAGE_EXACT, s->pages[RQ_PAGE_EXACT][g][s->n_nodes]);
        rq_table_set(s, RQ_PAGE_EXACT, g, s->n_nodes, RQ_NO_PAGE);
    }
    s->n_done = s->n_tokens = (uint64_t)s->n_nodes * RQ_PAGE_TOKENS;
}

uint32_t rq_cache_most_copies(const rq_cache *c)
{
    return 2 * c->n_seqs * c->n_groups;
}

uint32_t rq_cache_take_copies(rq_cache *c, rq_page_copy *copies)
{
    uint32_t n = c->n_copies;
    memcpy(copies, c->copies, n * sizeof *copies);
    c->n_copies = 0;
    return n;
}

/* Cuts the path to n nodes, where that serves. */
static void cut_path(rq_cache *c, rq_seq *s, uint32_t n)
{
    rq_seq_drop_tail(c, s);
    uint32_t end = s->n_nodes;
    rq_seq_hold(c, s, n, (uint64_t)n * RQ_PAGE_TOKENS);
    while (end-- > n) {
        for (uint32_t g = 0; g < c->n_groups; g++)
            for (int form = 0; form < RQ_PAGE_FORMS; form++)
                rq_table_set(s, (rq_page_form)form, g, end, RQ_NO_PAGE);
        rq_node_unref(c, s->path[end]);
    }
    s->n_done = s->n_tokens = (uint64_t)n * RQ_PAGE_TOKENS;
}

/* The path's last node becomes the sequence's own partial page: by a copy, or, where there is no page for one and
 * nobody else uses the node, by taking its pages. */
static bool open_last(rq_cache *c, rq_seq *s, uint64_t n_tokens)
{
    uint32_t last = s->n_nodes - 1, node = s->path[last], from[RQ_MAX_GROUPS] = {0};
    for (uint32_t g = 0; g < c->n_groups; g++) from[g] = rq_pages_of(c, node, g)->page[RQ_PAGE_EXACT];
    memcpy(s->tail, c->nodes[node].ids, sizeof s->tail);
    /* the copy is taken while the node is held, so that it is not evicted for it */
    s->n_nodes = last;
    bool copied = rq_seq_copy_tail(c, s, from);
    s->n_nodes = last + 1;
    if (!copied && c->nodes[node].refs > 1) return false;
    uint32_t own[RQ_MAX_GROUPS] = {0};
    for (uint32_t g = 0; g < c->n_groups; g++) own[g] = s->pages[RQ_PAGE_EXACT][g][last];
    rq_seq_hold(c, s, last, n_tokens);
    if (copied) {
        rq_node_unref(c, node);
    } else {
        for (uint32_t g = 0; g < c->n_groups; g++) {
            own[g] = from[g];
            /* let go of by seq_hold: out of its list and out of the node */
            if (!rq_is_bound(c, g, RQ_PAGE_EXACT, last)) rq_page_hold(c, node, g, RQ_PAGE_EXACT);
            rq_pages_of(c, node, g)->page[RQ_PAGE_EXACT] = RQ_NO_PAGE;
        }
        rq_node_remove(c, node);
    }
    for (uint32_t g = 0; g < c->n_groups; g++) {
        rq_table_set(s, RQ_PAGE_EXACT, g, last, own[g]);
        rq_table_set(s, RQ_PAGE_CODED, g, last, RQ_NO_PAGE);
    }
    s->n_done = s->n_tokens = n_tokens;
    return true;
}

uint64_t rq_cache_truncate(rq_cache *c, uint32_t seq, uint64_t n)
{
    rq_seq *s = &c->seqs[seq];
    rq_seq_undo(c, s);
    rq_cache_unreserve(c, seq);
    if (n >= s->n_done) return s->n_done;
    uint32_t k = (uint32_t)(n / RQ_PAGE_TOKENS), rest = n % RQ_PAGE_TOKENS;
    if (k == s->n_nodes && rest > 0 && rq_path_serves(c, s->path, k, n)) {
        rq_seq_hold(c, s, k, n);
        s->n_done = s->n_tokens = n;
        return n;
    }
    if (k < s->n_nodes && rest > 0 && rq_path_serves(c, s->path, k + 1, n)) {
        /* B(n) <= k, so the exact page of node k is among those asked for */
        rq_seq_drop_tail(c, s);
        uint32_t end = s->n_nodes;
        rq_seq_hold(c, s, k + 1, n);
        while (end-- > k + 1) {
            for (uint32_t g = 0; g < c->n_groups; g++)
                for (int form = 0; form < RQ_PAGE_FORMS; form++)
                    rq_table_set(s, (rq_page_form)form, g, end, RQ_NO_PAGE);
            rq_node_unref(c, s->path[end]);
        }
        s->n_done = s->n_tokens = (uint64_t)(k + 1) * RQ_PAGE_TOKENS;
        if (open_last(c, s, n)) return n;
    }
    while (!rq_path_serves(c, s->path, k, (uint64_t)k * RQ_PAGE_TOKENS)) k--;
    cut_path(c, s, k);
    return s->n_done;
}

void rq_cache_discard(rq_cache *c, uint32_t seq)
{
    rq_seq *s = &c->seqs[seq];
    rq_seq_undo(c, s);
    rq_cache_unreserve(c, seq);
    uint32_t n = s->n_nodes;
    cut_path(c, s, 0);
    while (n-- > 0)
        if (c->nodes[s->path[n]].refs == 0) rq_node_remove(c, s->path[n]);
}

void rq_cache_clear(rq_cache *c)
{
    while (c->unused.first != RQ_NO_NODE) rq_node_remove(c, c->unused.first);
    while (c->root_saves != RQ_NO_SAVE) rq_save_drop(c, c->root_saves);
}
