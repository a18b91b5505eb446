#include "tests/engine/fake_pages.h"

#include "backends/base/mem.h"

#include <stdio.h>
#include <string.h>

typedef struct cell {
    uint64_t hash; /* of the tokens up to this one; 0: nothing was written */
    int32_t id;
} cell;

struct fake_pages {
    fake_pools pools;
    cell *cells[RQ_MAX_GROUPS][RQ_PAGE_FORMS];      /* [page][64]; exact ones with the scratch pages behind */
    uint32_t *tables[RQ_MAX_GROUPS][RQ_PAGE_FORMS]; /* [n_seqs][max_pages] */
    uint32_t violations;
};

uint64_t fake_hash(uint64_t h, int32_t id)
{
    h = (h ^ (uint64_t)(uint32_t)id) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint32_t pool_size(const fake_pages *p, uint32_t g, int form)
{
    return form == RQ_PAGE_CODED ? p->pools.coded_pages[g] : p->pools.pages[g] + p->pools.scratch_pages[g];
}

fake_pages *fake_pages_create(const fake_pools *pools)
{
    fake_pages *p = rq_calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->pools = *pools;
    bool ok = true;
    for (uint32_t g = 0; g < pools->n_groups; g++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++) {
            size_t entries = (size_t)pools->n_seqs * pools->max_pages;
            p->cells[g][form] = rq_calloc((size_t)pool_size(p, g, form) + 1, RQ_PAGE_TOKENS * sizeof(cell));
            p->tables[g][form] = rq_calloc(entries, sizeof(uint32_t));
            ok = ok && p->cells[g][form] != NULL && p->tables[g][form] != NULL;
            if (p->tables[g][form] != NULL) memset(p->tables[g][form], 0xee, entries * sizeof(uint32_t));
        }
    if (ok) return p;
    fake_pages_free(p);
    return NULL;
}

void fake_pages_free(fake_pages *p)
{
    if (p == NULL) return;
    for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++) {
            rq_free(p->cells[g][form]);
            rq_free(p->tables[g][form]);
        }
    rq_free(p);
}

uint32_t fake_pages_violations(const fake_pages *p)
{
    return p->violations;
}

static void violation(fake_pages *p, const char *what)
{
    if (p->violations++ < 20) fprintf(stderr, "fake pages: %s\n", what);
}

void fake_pages_copy(fake_pages *p, uint32_t g, uint32_t from, uint32_t to)
{
    if (from >= p->pools.pages[g] || to >= p->pools.pages[g]) {
        violation(p, "a page that is not there is copied");
        return;
    }
    memmove(p->cells[g][0] + (size_t)to * RQ_PAGE_TOKENS, p->cells[g][0] + (size_t)from * RQ_PAGE_TOKENS,
            RQ_PAGE_TOKENS * sizeof(cell));
}

void fake_pages_load(fake_pages *p, uint32_t g, uint32_t page, const int32_t *ids, uint64_t start, uint32_t n)
{
    uint64_t hash = 1;
    if (page >= p->pools.pages[g]) {
        violation(p, "a page that is not there is loaded");
        return;
    }
    for (uint64_t i = 0; i < start; i++) hash = fake_hash(hash, ids[i]);
    for (uint32_t i = 0; i < n; i++) {
        hash = fake_hash(hash, ids[start + i]);
        p->cells[g][0][(size_t)page * RQ_PAGE_TOKENS + i] = (cell){.hash = hash, .id = ids[start + i]};
    }
}

/* The cells of a page as the table has it, or NULL. */
static cell *page_of(fake_pages *p, uint32_t g, int form, uint32_t seq, uint32_t index)
{
    uint32_t page = p->tables[g][form][(size_t)seq * p->pools.max_pages + index];
    return page < pool_size(p, g, form) ? p->cells[g][form] + (size_t)page * RQ_PAGE_TOKENS : NULL;
}

/* The hash of everything before the run, from a group that holds the token before it. Those that see it must. */
static uint64_t hash_before(fake_pages *p, const rq_run *run)
{
    uint64_t hash = 1;
    uint32_t last = run->start - 1;
    for (uint32_t g = 0; run->start > 0 && g < p->pools.n_groups; g++) {
        if (rq_kv_first_page(&p->pools.groups[g], run->start) > last / RQ_PAGE_TOKENS) continue;
        const cell *page = page_of(p, g, RQ_PAGE_EXACT, run->seq, last / RQ_PAGE_TOKENS);
        if (page == NULL)
            violation(p, "the page of the token before a run is not exact");
        else
            hash = page[last % RQ_PAGE_TOKENS].hash;
    }
    return hash;
}

static void write_run(fake_pages *p, const rq_step *step, const rq_run *run)
{
    const rq_step_header *h = step->header;
    const int32_t *ids = rq_step_at(step->words, h->token_id);
    uint64_t before = hash_before(p, run);
    for (uint32_t g = 0; g < p->pools.n_groups; g++) {
        const uint32_t *slots = rq_step_at(step->words, h->token_slot[g]);
        uint64_t hash = before;
        for (uint32_t i = 0; i < run->count; i++) {
            uint32_t at = run->start + i;
            cell *page = page_of(p, g, RQ_PAGE_EXACT, run->seq, at / RQ_PAGE_TOKENS);
            if (page == NULL || page - p->cells[g][0] + at % RQ_PAGE_TOKENS != slots[run->first + i]) {
                violation(p, "a token is written elsewhere than the table says");
                continue;
            }
            hash = fake_hash(hash, ids[run->first + i]);
            page[at % RQ_PAGE_TOKENS] = (cell){.hash = hash, .id = ids[run->first + i]};
        }
    }
}

static void encode_all(fake_pages *p, const rq_step *step)
{
    const rq_step_header *h = step->header;
    for (uint32_t g = 0; g < p->pools.n_groups; g++) {
        const rq_encode *list = rq_step_at(step->words, h->encodes[g]);
        for (uint32_t i = 0; i < h->n_encodes[g]; i++) {
            if (list[i].exact >= pool_size(p, g, RQ_PAGE_EXACT) ||
                list[i].coded >= pool_size(p, g, RQ_PAGE_CODED)) {
                violation(p, "a page that is not there is encoded");
                continue;
            }
            memcpy(p->cells[g][1] + (size_t)list[i].coded * RQ_PAGE_TOKENS,
                   p->cells[g][0] + (size_t)list[i].exact * RQ_PAGE_TOKENS, RQ_PAGE_TOKENS * sizeof(cell));
        }
    }
}

/* Reads one page in one form. *hash is that of all before it, or 0: nobody in this group knows. Returns the hash of all
 * up to its n tokens. */
static uint64_t read_page(fake_pages *p, const cell *page, uint32_t n, const rq_run *run, uint32_t base,
                          uint64_t hash, uint64_t *hashes)
{
    for (uint32_t i = 0; i < n; i++) {
        hash = hash == 0 ? page[i].hash : fake_hash(hash, page[i].id);
        if (hash != page[i].hash) {
            violation(p, "a page holds what belongs to another sequence");
            break;
        }
        if (base + i >= run->start && hashes != NULL) hashes[run->first + base + i - run->start] = hash;
    }
    return hash;
}

/* Reads what a run's queries see of a group, each page in every form that one of them demands, and no page before the
 * window of the first one. */
static void read_group(fake_pages *p, uint32_t g, const rq_run *run, uint64_t *hashes)
{
    const rq_cache_group *group = &p->pools.groups[g];
    uint32_t seen = rq_kv_first_page(group, run->start);
    uint64_t hash = seen == 0 ? 1 : 0;
    for (uint32_t s = 0; s < seen; s++)
        for (int form = 0; form < RQ_PAGE_FORMS; form++)
            if (s + 1 < seen && page_of(p, g, form, run->seq, s) != NULL)
                violation(p, "a page that no window reaches is still in the table");
    for (uint32_t s = seen; s * RQ_PAGE_TOKENS < run->kv_len; s++) {
        uint32_t base = s * RQ_PAGE_TOKENS, first = run->start > base ? run->start : base;
        uint32_t n = run->kv_len - base < RQ_PAGE_TOKENS ? run->kv_len - base : RQ_PAGE_TOKENS;
        uint64_t before = hash;
        for (int form = 0; form < RQ_PAGE_FORMS; form++) {
            /* the boundary only rises: the first query that sees the page decides about exact, the last one that
             * does about coded */
            uint32_t query = first;
            if (form == RQ_PAGE_CODED) {
                query = run->kv_len - 1;
                while (query > first && rq_kv_first_page(group, query) > s) query--;
            }
            if (rq_kv_reads_exact(group, query, s) != (form == RQ_PAGE_EXACT)) continue;
            const cell *page = page_of(p, g, form, run->seq, s);
            if (page == NULL)
                violation(p, form == RQ_PAGE_EXACT ? "an exact page is read that is not there"
                                                   : "a coded page is read that is not there");
            else
                hash = read_page(p, page, n, run, base, before, hashes);
        }
    }
}

void fake_pages_run(fake_pages *p, const rq_step *step, uint64_t *hashes)
{
    const rq_step_header *h = step->header;
    const rq_edit *edits = rq_step_at(step->words, h->edits);
    const rq_run *runs = rq_step_at(step->words, h->runs);
    bool wide = h->n_tokens > 8;
    for (uint32_t i = 0; i < h->n_edits; i++)
        p->tables[edits[i].group][edits[i].form][(size_t)edits[i].seq * p->pools.max_pages + edits[i].index] =
            edits[i].page;
    for (uint32_t r = 0; r < h->n_runs; r++) write_run(p, step, &runs[r]);
    if (wide) encode_all(p, step);
    for (uint32_t r = 0; r < h->n_runs; r++)
        for (uint32_t g = 0; g < p->pools.n_groups; g++) read_group(p, g, &runs[r], hashes);
    if (!wide) encode_all(p, step);
    for (uint32_t g = 0; g < p->pools.n_groups; g++) /* what was in scratch pages is gone */
        memset(p->cells[g][0] + (size_t)p->pools.pages[g] * RQ_PAGE_TOKENS, 0,
               (size_t)p->pools.scratch_pages[g] * RQ_PAGE_TOKENS * sizeof(cell));
}
