/* snapshots.c - taking, finding and giving up states of sequences. */
#include "engine/sched/snapshots.h"

#include "backends/base/mem.h"

#include <string.h>

void rq_snapshot_free(rq_snapshot *s)
{
    if (s == NULL) return;
    rq_free(s->bytes);
    rq_free(s);
}

rq_status rq_snapshots_init(rq_snapshots *all, rq_cache *cache, pthread_mutex_t *lock, uint64_t limit,
                            rq_error *err)
{
    all->of_save = rq_calloc(rq_cache_most_saves(cache), sizeof *all->of_save);
    if (all->of_save == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a list of snapshots");
    all->n_saves = rq_cache_most_saves(cache);
    all->cache = cache;
    all->lock = lock;
    all->limit = limit;
    return RQ_OK;
}

void rq_snapshots_free(rq_snapshots *all)
{
    for (uint32_t i = 0; i < all->n_saves; i++) rq_snapshot_free(all->of_save[i]);
    rq_free(all->of_save);
    *all = (rq_snapshots){0};
}

static uint64_t size_of(const rq_snapshot *s)
{
    return s->n_bytes + sizeof *s;
}

void rq_snapshots_dropped(void *user, uint32_t save)
{
    rq_snapshots *all = user;
    rq_snapshot *s = save < all->n_saves ? all->of_save[save] : NULL;
    if (s == NULL) return;
    all->of_save[save] = NULL;
    all->bytes -= size_of(s);
    all->n_dropped++;
    s->gone = true;
    if (s->pins == 0) rq_snapshot_free(s);
}

/* Bytes of a snapshot at position n. */
static uint64_t bytes_at(const rq_executor *ex, uint32_t n_groups, size_t n)
{
    uint64_t bytes = rq_executor_state_bytes(ex);
    for (uint32_t g = 0; g < n_groups && n % RQ_PAGE_TOKENS != 0; g++) bytes += rq_executor_page_bytes(ex, g);
    return bytes;
}

rq_status rq_snapshot_take(rq_executor *ex, uint32_t n_groups, uint32_t seq, size_t n,
                           const uint32_t *const *pages, uint64_t limit, rq_snapshot **out, rq_error *err)
{
    rq_snapshot *s = rq_calloc(1, sizeof *s);
    *out = NULL;
    if (s == NULL) return RQ_OK;
    s->n = n;
    s->n_bytes = bytes_at(ex, n_groups, n);
    s->bytes = size_of(s) <= limit ? rq_malloc(s->n_bytes) : NULL;
    if (s->bytes == NULL) {
        rq_snapshot_free(s);
        return RQ_OK;
    }
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

rq_snapshot *rq_snapshots_find(const rq_snapshots *all, const rq_token *ids, size_t below)
{
    uint32_t save = rq_cache_find_save(all->cache, ids, below);
    return save != RQ_NO_SAVE ? all->of_save[save] : NULL;
}

bool rq_snapshots_has(const rq_snapshots *all, const rq_token *ids, size_t n)
{
    pthread_mutex_lock(all->lock);
    const rq_snapshot *s = rq_snapshots_find(all, ids, n + 1);
    bool has = s != NULL && s->n == n;
    pthread_mutex_unlock(all->lock);
    return has;
}

/* Gives up the one unused for longest, with its save point; false when all are pinned. */
static bool drop_one(rq_snapshots *all)
{
    uint32_t oldest = RQ_NO_SAVE;
    for (uint32_t i = 0; i < all->n_saves; i++) {
        const rq_snapshot *s = all->of_save[i];
        if (s == NULL || s->pins != 0) continue;
        if (oldest == RQ_NO_SAVE || s->used < all->of_save[oldest]->used) oldest = i;
    }
    if (oldest == RQ_NO_SAVE) return false;
    rq_cache_forget(all->cache, oldest);
    return true;
}

void rq_snapshots_add(rq_snapshots *all, uint32_t seq, rq_snapshot *s)
{
    uint64_t size = size_of(s);
    uint32_t save = rq_cache_save(all->cache, seq, s->n);
    if (save == RQ_NO_SAVE || all->of_save[save] != NULL) {
        if (save != RQ_NO_SAVE) all->of_save[save]->used = ++all->tick;
        rq_snapshot_free(s);
        return;
    }
    bool fits = true;
    while (fits && (size > all->limit || all->bytes > all->limit - size)) fits = drop_one(all);
    if (!fits) {
        rq_cache_forget(all->cache, save);
        rq_snapshot_free(s);
        return;
    }
    s->used = ++all->tick;
    all->bytes += size;
    all->n_kept++;
    all->of_save[save] = s;
}

void rq_snapshots_pin(rq_snapshots *all, rq_snapshot *s)
{
    s->pins++;
    all->n_resumed++;
    s->used = ++all->tick;
}

void rq_snapshots_unpin(rq_snapshot *s)
{
    if (--s->pins == 0 && s->gone) rq_snapshot_free(s);
}
