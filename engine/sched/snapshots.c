/* snapshots.c - taking, finding and giving up states of sequences. */
#include "engine/sched/snapshots.h"

#include "backends/base/mem.h"

#include <string.h>

void rq_snapshot_free(rq_snapshot *s)
{
    if (s == NULL) return;
    rq_free(s->ids);
    rq_free(s->bytes);
    rq_free(s);
}

void rq_snapshots_free(rq_snapshots *all)
{
    for (size_t i = 0; i < all->n; i++) rq_snapshot_free(all->items[i]);
    rq_free(all->items);
    *all = (rq_snapshots){0};
}

static uint64_t size_of(const rq_snapshot *s)
{
    return s->n_bytes + s->n * sizeof *s->ids + sizeof *s;
}

/* Bytes of a snapshot at position n. */
static uint64_t bytes_at(const rq_executor *ex, uint32_t n_groups, size_t n)
{
    uint64_t bytes = rq_executor_state_bytes(ex);
    for (uint32_t g = 0; g < n_groups && n % RQ_PAGE_TOKENS != 0; g++) bytes += rq_executor_page_bytes(ex, g);
    return bytes;
}

rq_status rq_snapshot_take(rq_executor *ex, uint32_t n_groups, uint32_t seq, const rq_token *ids, size_t n,
                           const uint32_t *const *pages, uint64_t limit, rq_snapshot **out, rq_error *err)
{
    rq_snapshot *s = rq_calloc(1, sizeof *s);
    *out = NULL;
    if (s == NULL) return RQ_OK;
    s->n = n;
    s->n_bytes = bytes_at(ex, n_groups, n);
    bool fits = size_of(s) <= limit;
    s->ids = fits ? rq_malloc(n * sizeof *ids) : NULL;
    s->bytes = s->ids != NULL ? rq_malloc(s->n_bytes) : NULL;
    if (s->bytes == NULL) {
        rq_snapshot_free(s);
        return RQ_OK;
    }
    memcpy(s->ids, ids, n * sizeof *ids);
    rq_status status = rq_executor_state_save(ex, seq, s->bytes, err);
    uint8_t *at = s->bytes + rq_executor_state_bytes(ex);
    for (uint32_t g = 0; g < n_groups && n % RQ_PAGE_TOKENS != 0 && status == RQ_OK; g++) {
        status = rq_executor_page_save(ex, g, pages[g][n / RQ_PAGE_TOKENS], at, err);
        at += rq_executor_page_bytes(ex, g);
    }
    if (status == RQ_OK)
        *out = s;
    else
        rq_snapshot_free(s);
    return status;
}

rq_status rq_snapshot_put(rq_executor *ex, uint32_t n_groups, const rq_snapshot *s, uint32_t seq,
                          const uint32_t *const *pages, rq_error *err)
{
    rq_status status = rq_executor_state_load(ex, seq, s->bytes, err);
    const uint8_t *at = s->bytes + rq_executor_state_bytes(ex);
    for (uint32_t g = 0; g < n_groups && s->n % RQ_PAGE_TOKENS != 0 && status == RQ_OK; g++) {
        status = rq_executor_page_load(ex, g, pages[g][s->n / RQ_PAGE_TOKENS], at, err);
        at += rq_executor_page_bytes(ex, g);
    }
    return status;
}

static bool begins_with(const rq_token *ids, const rq_snapshot *s)
{
    return memcmp(ids, s->ids, s->n * sizeof *ids) == 0;
}

bool rq_snapshots_has(const rq_snapshots *all, const rq_token *ids, size_t n)
{
    for (size_t i = 0; i < all->n; i++)
        if (all->items[i]->n == n && begins_with(ids, all->items[i])) return true;
    return false;
}

rq_snapshot *rq_snapshots_find(const rq_snapshots *all, const rq_token *ids, size_t below)
{
    rq_snapshot *best = NULL;
    for (size_t i = 0; i < all->n; i++) {
        rq_snapshot *s = all->items[i];
        if (s->n < below && (best == NULL || s->n > best->n) && begins_with(ids, s)) best = s;
    }
    return best;
}

/* Gives up the one unused for longest; false when all are pinned. */
static bool drop_one(rq_snapshots *all)
{
    size_t oldest = all->n;
    for (size_t i = 0; i < all->n; i++)
        if (all->items[i]->pins == 0 && (oldest == all->n || all->items[i]->used < all->items[oldest]->used))
            oldest = i;
    if (oldest == all->n) return false;
    all->bytes -= size_of(all->items[oldest]);
    rq_snapshot_free(all->items[oldest]);
    all->items[oldest] = all->items[--all->n];
    return true;
}

void rq_snapshots_add(rq_snapshots *all, rq_snapshot *s)
{
    uint64_t size = size_of(s);
    bool fits = true;
    while (fits && (size > all->limit || all->bytes > all->limit - size)) fits = drop_one(all);
    if (!fits || !rq_grow((void **)&all->items, &all->cap, all->n + 1, sizeof *all->items)) {
        rq_snapshot_free(s);
        return;
    }
    s->used = ++all->tick;
    all->bytes += size;
    all->items[all->n++] = s;
}

void rq_snapshots_pin(rq_snapshots *all, rq_snapshot *s)
{
    s->pins++;
    s->used = ++all->tick;
}

void rq_snapshots_unpin(rq_snapshot *s)
{
    s->pins--;
}
