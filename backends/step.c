#include "backends/step.h"

#include <string.h>

static uint32_t at_least(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t at_most(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void rq_step_caps_complete(rq_step_caps *caps)
{
    uint32_t runs = at_most(caps->max_tokens, RQ_MAX_RUNS);
    /* A run of c tokens touches at most c / 64 + 2 tiles (its ends may lie inside one), and not more than c.
     */
    uint32_t tiles = at_most(caps->max_tokens / RQ_TILE_TOKENS + 2 * runs, caps->max_tokens);
    uint32_t splits = (caps->max_pages + RQ_SPLIT_PAGES - 1) / RQ_SPLIT_PAGES;
    uint32_t split_tokens = at_most(caps->max_tokens, RQ_NARROW_BUCKET);
    caps->max_partials = split_tokens * at_least(splits, 1);
    caps->max_work = at_least(tiles, caps->max_partials);
    /* All pages of one sequence (a reused prefix) and the pages a full step fills, in both forms. */
    caps->max_edits =
        at_most(RQ_PAGE_FORMS * caps->n_groups * (caps->max_pages + tiles + caps->n_seqs), 1u << 20);
    caps->max_encodes = tiles;
}

/* Offsets in words; the header's members are filled from these. */
typedef struct layout {
    uint32_t token_id, token_pos, token_run, token_slot[RQ_MAX_GROUPS], runs, work[RQ_MAX_GROUPS],
        encodes[RQ_MAX_GROUPS], rows, edits, words;
} layout;

static uint32_t take(uint32_t *at, uint32_t words)
{
    uint32_t here = *at;
    *at = (here + words + 15) & ~15u; /* arrays start on cache lines */
    return here;
}

static layout layout_of(const rq_step_caps *caps)
{
    layout l = {0};
    uint32_t at = 0;
    take(&at, sizeof(rq_step_header) / 4);
    l.token_id = take(&at, caps->max_tokens);
    l.token_pos = take(&at, caps->max_tokens);
    l.token_run = take(&at, caps->max_tokens);
    for (uint32_t g = 0; g < caps->n_groups; g++) l.token_slot[g] = take(&at, caps->max_tokens);
    l.runs = take(&at, RQ_MAX_RUNS * (sizeof(rq_run) / 4));
    for (uint32_t g = 0; g < caps->n_groups; g++)
        l.work[g] = take(&at, caps->max_work * (sizeof(rq_work) / 4));
    for (uint32_t g = 0; g < caps->n_groups; g++)
        l.encodes[g] = take(&at, caps->max_encodes * (sizeof(rq_encode) / 4));
    l.rows = take(&at, RQ_HEAD_ROWS * (sizeof(rq_row) / 4));
    l.edits = take(&at, caps->max_edits * (sizeof(rq_edit) / 4));
    l.words = at;
    return l;
}

uint32_t rq_step_words(const rq_step_caps *caps)
{
    return layout_of(caps).words;
}

void rq_step_init(rq_step *step, const rq_step_caps *caps, const rq_cache_group *groups, uint32_t *words)
{
    step->caps = *caps;
    step->groups = groups;
    step->words = words;
    step->header = (rq_step_header *)words;
    layout l = layout_of(caps);
    memset(words, 0, (size_t)l.words * 4);
    rq_step_header *h = step->header;
    h->magic = RQ_STEP_MAGIC;
    h->n_groups = caps->n_groups;
    h->token_id = l.token_id;
    h->token_pos = l.token_pos;
    h->token_run = l.token_run;
    h->runs = l.runs;
    h->rows = l.rows;
    h->edits = l.edits;
    h->words = l.words;
    memcpy(h->token_slot, l.token_slot, sizeof h->token_slot);
    memcpy(h->work, l.work, sizeof h->work);
    memcpy(h->encodes, l.encodes, sizeof h->encodes);
    rq_step_reset(step);
}

void rq_step_reset(rq_step *step)
{
    rq_step_header *h = step->header;
    h->n_tokens = h->n_runs = h->n_rows = h->n_edits = 0;
    memset(h->n_work, 0, sizeof h->n_work);
    memset(h->n_encodes, 0, sizeof h->n_encodes);
}

static void *at(const rq_step *step, uint32_t offset)
{
    return step->words + offset;
}

int32_t rq_step_add_run(rq_step *step, uint32_t seq, const int32_t *ids, uint32_t count, uint32_t start,
                        const uint32_t *const *table)
{
    rq_step_header *h = step->header;
    const rq_step_caps *caps = &step->caps;
    uint64_t end = (uint64_t)start + count;
    if (count == 0 || count > caps->max_tokens - h->n_tokens || h->n_runs == RQ_MAX_RUNS ||
        seq >= caps->n_seqs || end > (uint64_t)caps->max_pages * RQ_PAGE_TOKENS)
        return -1;
    for (uint32_t g = 0; g < caps->n_groups; g++)
        for (uint32_t p = start / RQ_PAGE_TOKENS; p <= (end - 1) / RQ_PAGE_TOKENS; p++)
            if (table[g][p] == RQ_NO_PAGE) return -1;

    uint32_t first = h->n_tokens;
    int32_t *id = at(step, h->token_id), *run = at(step, h->token_run);
    uint32_t *pos = at(step, h->token_pos);
    for (uint32_t i = 0; i < count; i++) {
        id[first + i] = ids[i];
        pos[first + i] = start + i;
        run[first + i] = (int32_t)h->n_runs;
    }
    for (uint32_t g = 0; g < caps->n_groups; g++) {
        uint32_t *slot = at(step, h->token_slot[g]);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t p = start + i;
            slot[first + i] = table[g][p / RQ_PAGE_TOKENS] * RQ_PAGE_TOKENS + p % RQ_PAGE_TOKENS;
        }
    }
    rq_run *runs = at(step, h->runs);
    runs[h->n_runs++] = (rq_run){
        .seq = seq, .first = first, .count = count, .start = start, .kv_len = (uint32_t)end, .state = seq};
    h->n_tokens += count;
    return (int32_t)first;
}

bool rq_step_set_draft(rq_step *step, uint32_t n_accepted, uint32_t n_pending)
{
    rq_step_header *h = step->header;
    if (h->n_runs == 0) return false;
    rq_run *run = (rq_run *)at(step, h->runs) + h->n_runs - 1;
    if (n_accepted > RQ_MAX_PENDING || n_accepted > run->start || n_pending > RQ_MAX_PENDING ||
        (n_pending != 0 && n_pending != run->count))
        return false;
    run->n_accepted = n_accepted;
    run->n_pending = n_pending;
    return true;
}

bool rq_step_add_edit(rq_step *step, uint32_t group, rq_page_form form, uint32_t seq, uint32_t index,
                      uint32_t page)
{
    rq_step_header *h = step->header;
    const rq_step_caps *caps = &step->caps;
    if (h->n_edits == caps->max_edits || group >= caps->n_groups || form >= RQ_PAGE_FORMS ||
        seq >= caps->n_seqs || index >= caps->max_pages)
        return false;
    rq_edit *edits = at(step, h->edits);
    edits[h->n_edits++] = (rq_edit){.group = group, .form = form, .seq = seq, .index = index, .page = page};
    return true;
}

bool rq_step_add_encode(rq_step *step, uint32_t group, uint32_t exact, uint32_t coded)
{
    rq_step_header *h = step->header;
    if (group >= step->caps.n_groups || h->n_encodes[group] == step->caps.max_encodes) return false;
    rq_encode *encodes = at(step, h->encodes[group]);
    encodes[h->n_encodes[group]++] = (rq_encode){.exact = exact, .coded = coded};
    return true;
}

bool rq_step_add_row(rq_step *step, uint32_t token, uint32_t slot)
{
    rq_step_header *h = step->header;
    if (h->n_rows == RQ_HEAD_ROWS || token >= h->n_tokens || slot >= step->caps.n_seqs) return false;
    rq_row *rows = at(step, h->rows);
    rows[h->n_rows++] = (rq_row){.token = token, .slot = slot};
    return true;
}

/* Appends the items of one tile: queries [first, first + count) of the step at positions [pos, pos + count).
 * `partials` counts the partial slots in use. The capacities of rq_step_caps_complete hold every legal step:
 * work that would not fit is a caller's error and left out. */
static void add_tile(rq_step *step, uint32_t group, uint32_t run, uint32_t first, uint32_t count,
                     uint32_t pos, bool may_split, uint32_t *partials)
{
    rq_step_header *h = step->header;
    const rq_step_caps *caps = &step->caps;
    rq_work *work = at(step, h->work[group]);
    uint32_t window = step->groups[group].window;
    uint32_t lowest = window && pos + 1 > window ? pos + 1 - window : 0; /* seen by the first query */
    uint32_t page_first = lowest / RQ_PAGE_TOKENS, page_end = (pos + count - 1) / RQ_PAGE_TOKENS + 1;
    uint32_t split_first = page_first / RQ_SPLIT_PAGES, split_end = (page_end - 1) / RQ_SPLIT_PAGES + 1;
    uint32_t n_splits = may_split ? split_end - split_first : 1;
    if (n_splits > caps->max_work - h->n_work[group]) return;
    if (n_splits == 1) {
        work[h->n_work[group]++] = (rq_work){.run = run,
                                             .first = first,
                                             .count = count,
                                             .page_first = page_first,
                                             .page_end = page_end,
                                             .n_splits = 1};
        return;
    }
    if (n_splits * count > caps->max_partials - *partials) return;
    for (uint32_t s = 0; s < n_splits; s++) {
        uint32_t cut = (split_first + s) * RQ_SPLIT_PAGES;
        work[h->n_work[group]++] = (rq_work){.run = run,
                                             .first = first,
                                             .count = count,
                                             .page_first = at_least(cut, page_first),
                                             .page_end = at_most(cut + RQ_SPLIT_PAGES, page_end),
                                             .split = s,
                                             .n_splits = n_splits,
                                             .partial = *partials};
        *partials += count;
    }
}

uint32_t rq_step_finish(rq_step *step)
{
    rq_step_header *h = step->header;
    uint32_t bucket = 1;
    while (bucket < h->n_tokens) bucket *= 2;

    int32_t *id = at(step, h->token_id), *run = at(step, h->token_run);
    uint32_t *pos = at(step, h->token_pos);
    for (uint32_t i = h->n_tokens; i < bucket; i++) {
        id[i] = 0;
        pos[i] = 0;
        run[i] = -1;
    }
    for (uint32_t g = 0; g < h->n_groups; g++) {
        uint32_t *slot = at(step, h->token_slot[g]);
        for (uint32_t i = h->n_tokens; i < bucket; i++) slot[i] = 0;
    }

    const rq_run *runs = at(step, h->runs);
    for (uint32_t g = 0; g < h->n_groups; g++) {
        uint32_t partials = 0;
        h->n_work[g] = 0;
        for (uint32_t r = 0; r < h->n_runs; r++)
            for (uint32_t done = 0; done < runs[r].count;) {
                uint32_t p = runs[r].start + done;
                uint32_t n = at_most(RQ_TILE_TOKENS - p % RQ_TILE_TOKENS, runs[r].count - done);
                add_tile(step, g, r, runs[r].first + done, n, p, bucket <= RQ_NARROW_BUCKET, &partials);
                done += n;
            }
    }
    return bucket;
}
