/* cache.c - making a cache, reservations and numbers. */
#include "engine/cache/internal.h"

#include "backends/base/mem.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* ---- making ------------------------------------------------------------------------------------------------ */

static bool make_pool(rq_pool *p, uint32_t n_pages)
{
    p->n_pages = p->n_free = n_pages;
    p->free_ids = rq_calloc(n_pages > 0 ? n_pages : 1, sizeof *p->free_ids);
    if (p->free_ids == NULL) return false;
    /* low ids on top, so that a small load stays in few slabs */
    for (uint32_t i = 0; i < n_pages; i++) p->free_ids[i] = n_pages - 1 - i;
    return true;
}

/* What a key must not be mixed up with: how pages are made. */
static uint64_t hash_of_formats(const rq_cache *c, uint64_t seed)
{
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const rq_cache_group *group = &c->groups[g];
        uint32_t facts[] = {group->n_layers, group->n_heads,    group->dim_k,       group->dim_v,
                            group->window,   group->type_k,     group->type_v,      group->form_k,
                            group->form_v,   group->sink_pages, group->recent_pages};
        seed = XXH3_64bits_withSeed(facts, sizeof facts, seed);
    }
    return seed;
}

static bool make_tree(rq_cache *c)
{
    uint64_t n = UINT32_MAX - 1;
    bool bounded = false;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!rq_has_main(c, g)) continue;
        bounded = true;
        uint64_t pages = (uint64_t)c->pools[g][0].n_pages + c->pools[g][1].n_pages;
        if (pages < n) n = pages;
    }
    /* what sequences have, and as much again for later ones; ids of unused pages tell nothing without a page */
    if (!bounded && 2ull * c->n_seqs * c->max_pages < n) n = 2ull * c->n_seqs * c->max_pages;
    c->n_nodes = (uint32_t)n;
    c->n_buckets = 1;
    while (c->n_buckets < c->n_nodes && c->n_buckets < 1u << 31) c->n_buckets *= 2;
    c->nodes = rq_calloc(n + 1, sizeof *c->nodes);
    c->node_pages = rq_calloc(n + 1, c->n_groups * sizeof *c->node_pages);
    c->links = rq_calloc(n + 1, (1 + (uint64_t)RQ_PAGE_FORMS * c->n_groups) * sizeof *c->links);
    c->buckets = rq_calloc(c->n_buckets, sizeof *c->buckets);
    if (c->nodes == NULL || c->node_pages == NULL || c->links == NULL || c->buckets == NULL) return false;
    memset(c->buckets, 0xff, (size_t)c->n_buckets * sizeof *c->buckets); /* RQ_NO_NODE */
    for (uint32_t i = 0; i < c->n_nodes; i++) c->nodes[i].hash_next = i + 1 < c->n_nodes ? i + 1 : RQ_NO_NODE;
    c->free_node = c->n_nodes > 0 ? 0 : RQ_NO_NODE;
    c->root_child = RQ_NO_NODE;
    c->unused = (rq_list){RQ_NO_NODE, RQ_NO_NODE};
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++)
            c->loose[form][g][0] = c->loose[form][g][1] = (rq_list){RQ_NO_NODE, RQ_NO_NODE};
    return true;
}

/* Some for every sequence's ends of messages, and some that outlive their sequences. */
enum { SAVES_PER_SEQ = 8, SAVES_BESIDE = 56 };

static bool make_saves(rq_cache *c)
{
    c->n_saves = SAVES_PER_SEQ * c->n_seqs + SAVES_BESIDE;
    c->saves = rq_calloc(c->n_saves, sizeof *c->saves);
    if (c->saves == NULL) return false;
    for (uint32_t i = 0; i < c->n_saves; i++) c->saves[i].next = i + 1 < c->n_saves ? i + 1 : RQ_NO_SAVE;
    c->root_saves = RQ_NO_SAVE;
    return true;
}

static bool make_seqs(rq_cache *c)
{
    uint64_t per_seq = c->max_pages * (1 + 2 * (uint64_t)RQ_PAGE_FORMS * c->n_groups), words;
    if (!rq_mul_u64(per_seq, c->n_seqs, &words) || words > SIZE_MAX / 4) return false;
    c->seqs = rq_calloc(c->n_seqs, sizeof *c->seqs);
    c->words = rq_calloc((size_t)words, sizeof *c->words);
    c->marks = rq_calloc(c->n_seqs, c->max_pages);
    c->found = rq_calloc(c->max_pages, sizeof *c->found);
    c->copies = rq_calloc(rq_cache_most_copies(c), sizeof *c->copies);
    if (c->seqs == NULL || c->words == NULL || c->marks == NULL || c->found == NULL || c->copies == NULL)
        return false;
    memset(c->words, 0xff, (size_t)words * sizeof *c->words); /* RQ_NO_PAGE */
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        rq_seq *s = &c->seqs[i];
        uint32_t *at = c->words + per_seq * i;
        s->path = at;
        s->marks = c->marks + (size_t)i * c->max_pages;
        at += c->max_pages;
        for (int form = 0; form < RQ_PAGE_FORMS; form++)
            for (uint32_t g = 0; g < c->n_groups; g++) {
                s->pages[form][g] = at;
                s->sent[form][g] = at + c->max_pages;
                at += 2 * (size_t)c->max_pages;
            }
        rq_cache_resend(c, i);
    }
    return true;
}

static rq_status check_group(const rq_cache_params *p, uint32_t g, rq_error *err)
{
    const rq_cache_group *group = &p->groups[g];
    uint64_t scratch = p->scratch_pages != NULL ? p->scratch_pages[g] : 0;
    if (p->pages[g] + scratch > UINT32_MAX / RQ_PAGE_TOKENS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %u pages is more than page numbers can tell apart",
                       p->pages[g]);
    if (!rq_group_is_coded(group) && group->window == 0) return RQ_OK;
    if (rq_group_is_coded(group) &&
        (p->coded_pages == NULL || p->coded_pages[g] > UINT32_MAX / RQ_PAGE_TOKENS))
        return rq_fail(err, RQ_ERR_ARGUMENT, "a group with a coded form needs a pool of coded pages");
    if (group->window != 0 && group->sink_pages != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a group with a window has no sinks: they leave it");
    uint64_t held = rq_cache_held(group, RQ_PAGE_EXACT, p->n_seqs, p->max_pages, p->n_batch);
    if ((rq_group_is_coded(group) && group->recent_pages < 1) || p->pages[g] < held)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u exact pages are too few for %u sequences, which read %llu",
                       p->pages[g], p->n_seqs, (unsigned long long)held);
    held = rq_cache_held(group, RQ_PAGE_CODED, p->n_seqs, p->max_pages, p->n_batch);
    if (rq_group_is_coded(group) && p->coded_pages[g] < held)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u coded pages are too few for %u sequences, which read %llu",
                       p->coded_pages[g], p->n_seqs, (unsigned long long)held);
    return RQ_OK;
}

rq_status rq_cache_create(const rq_cache_params *p, rq_cache **out, rq_error *err)
{
    if (p->n_groups < 1 || p->n_groups > RQ_MAX_GROUPS || p->n_seqs < 1 || p->max_pages < 1 ||
        p->max_pages > UINT32_MAX / RQ_PAGE_TOKENS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %u groups, %u sequences and %u pages cannot be made",
                       p->n_groups, p->n_seqs, p->max_pages);
    for (uint32_t g = 0; g < p->n_groups; g++) {
        rq_status status = check_group(p, g, err);
        if (status != RQ_OK) return status;
    }
    rq_cache *c = rq_calloc(1, sizeof *c);
    if (c == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache's page tables");
    c->n_groups = p->n_groups;
    c->n_seqs = p->n_seqs;
    c->max_pages = p->max_pages;
    bool ok = true;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        c->groups[g] = p->groups[g];
        bool coded = rq_group_is_coded(&p->groups[g]);
        ok = ok && make_pool(&c->pools[g][RQ_PAGE_EXACT], p->pages[g]) &&
             make_pool(&c->pools[g][RQ_PAGE_CODED], coded ? p->coded_pages[g] : 0);
        if (!coded) continue;
        c->n_scratch[g] = p->scratch_pages != NULL ? p->scratch_pages[g] : 0;
        c->n_retained[g] = p->pages[g] - (uint32_t)rq_cache_held(&p->groups[g], RQ_PAGE_EXACT, p->n_seqs,
                                                                 p->max_pages, p->n_batch);
    }
    c->root_key = hash_of_formats(c, p->seed);
    c->dropped = p->dropped;
    c->dropped_user = p->dropped_user;
    c->key_mask = p->key_mask != 0 ? p->key_mask : UINT64_MAX;
    if (!ok || !make_tree(c) || !make_saves(c) || !make_seqs(c)) {
        rq_cache_free(c);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache's page tables");
    }
    *out = c;
    return RQ_OK;
}

void rq_cache_free(rq_cache *c)
{
    if (c == NULL) return;
    for (uint32_t g = 0; g < c->n_groups; g++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++) rq_free(c->pools[g][form].free_ids);
    rq_free(c->nodes);
    rq_free(c->node_pages);
    rq_free(c->links);
    rq_free(c->buckets);
    rq_free(c->saves);
    rq_free(c->seqs);
    rq_free(c->words);
    rq_free(c->marks);
    rq_free(c->found);
    rq_free(c->copies);
    rq_free(c);
}

/* ---- reservations ------------------------------------------------------------------------------------------ */

/* Pages of the main pool that the sequence still takes to hold n tokens. */
static uint32_t pages_missing(const rq_cache *c, const rq_seq *s, uint32_t g, uint64_t n)
{
    bool coded = rq_group_is_coded(&c->groups[g]);
    if (!rq_has_main(c, g)) return 0;
    uint32_t want = coded ? (uint32_t)(n / RQ_PAGE_TOKENS) : rq_cache_pages_for(n);
    uint32_t have = coded ? (uint32_t)(s->n_tokens / RQ_PAGE_TOKENS) : rq_cache_pages_for(s->n_tokens);
    return want > have ? rq_main_pages(c, g, want) - rq_main_pages(c, g, have) : 0;
}

void rq_seq_reserve(rq_cache *c, rq_seq *s)
{
    for (uint32_t g = 0; g < c->n_groups; g++) {
        uint32_t need = pages_missing(c, s, g, s->limit);
        if (!rq_has_main(c, g)) continue;
        c->pools[g][rq_main_form(c, g)].n_reserved += need - s->reserved[g];
        s->reserved[g] = need;
    }
}

bool rq_cache_reserve(rq_cache *c, uint32_t seq, uint64_t n_tokens)
{
    rq_seq *s = &c->seqs[seq];
    if (rq_cache_pages_for(n_tokens) > c->max_pages) return false;
    for (uint32_t g = 0; g < c->n_groups; g++)
        if (rq_has_main(c, g) && pages_missing(c, s, g, n_tokens) >
                                     rq_pool_left(&c->pools[g][rq_main_form(c, g)]) + s->reserved[g])
            return false;
    s->limit = n_tokens;
    rq_seq_reserve(c, s);
    return true;
}

void rq_cache_unreserve(rq_cache *c, uint32_t seq)
{
    c->seqs[seq].limit = 0;
    rq_seq_reserve(c, &c->seqs[seq]);
}

/* ---- numbers ----------------------------------------------------------------------------------------------- */

uint64_t rq_cache_length(const rq_cache *c, uint32_t seq)
{
    return c->seqs[seq].n_done;
}

uint64_t rq_cache_tokens_used(const rq_cache *c)
{
    uint64_t used = 0, held = 0, ends = 0; /* partial pages, which are not coded yet */
    bool bounded = false;
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        ends += c->seqs[i].n_tokens % RQ_PAGE_TOKENS != 0;
        held += (uint64_t)rq_cache_pages_for(c->seqs[i].n_tokens) * RQ_PAGE_TOKENS;
    }
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!rq_has_main(c, g)) continue;
        bounded = true;
        const rq_pool *p = &c->pools[g][rq_main_form(c, g)];
        uint64_t tokens = (uint64_t)(p->n_pages - p->n_free - p->n_idle) * RQ_PAGE_TOKENS;
        if (rq_group_is_coded(&c->groups[g])) tokens += ends * RQ_PAGE_TOKENS;
        if (tokens > used) used = tokens;
    }
    return bounded ? used : held;
}

uint32_t rq_cache_nodes(const rq_cache *c)
{
    return c->n_nodes_used;
}

uint32_t rq_cache_available(const rq_cache *c, uint32_t group)
{
    if (!rq_has_main(c, group)) return c->pools[group][RQ_PAGE_EXACT].n_free;
    return rq_pool_left(&c->pools[group][rq_main_form(c, group)]);
}
