/* snapshots.h - recurrent states kept for later requests (DESIGN section 5).
 *
 * A snapshot of position n is what a sequence needs to go on from there: a save point of the cache, which refers to the
 * pages of all families alike (engine/cache/cache.h), and, where the model has recurrent state, a copy of it with the
 * exact bytes of the last, partial page of each cache group. It belongs to the tokens, not to a session. This file keeps
 * the copies. They live in the process's memory, up to a number of bytes; the one unused for longest goes first. A copy
 * goes with its save point and a save point with its copy.
 *
 * The list is changed under the scheduler's lock; what a session has pinned may be read outside of it. */
#ifndef RQ_SCHED_SNAPSHOTS_H
#define RQ_SCHED_SNAPSHOTS_H

#include "backends/exec/exec.h"
#include "engine/cache/cache.h"
#include "engine/rqvk.h"

#include <pthread.h>

typedef struct rq_snapshot {
    size_t n;       /* tokens */
    uint8_t *bytes; /* the state, then a page of each group where n is not at the end of one */
    uint64_t n_bytes;
    uint64_t used; /* order of last use */
    uint32_t pins; /* sessions that will still read it */
    bool gone;     /* its save point is no more: freed with the last pin */
} rq_snapshot;

typedef struct rq_snapshots {
    rq_cache *cache;
    pthread_mutex_t *lock;
    rq_snapshot **of_save; /* by save point; NULL: none */
    uint32_t n_saves;
    uint64_t bytes, limit; /* of all that have a save point; and their most */
    uint64_t tick;
    uint64_t n_kept, n_resumed, n_dropped; /* since the start, for counters */
} rq_snapshots;

/* `all` is zeroed before, and free has to be called in any case. The cache's params.dropped is rq_snapshots_dropped with
 * `all`. */
rq_status rq_snapshots_init(rq_snapshots *all, rq_cache *cache, pthread_mutex_t *lock, uint64_t limit,
                            rq_error *err);
void rq_snapshots_free(rq_snapshots *all);
void rq_snapshots_dropped(void *all, uint32_t save);

/* Copies the state of sequence slot `seq`, which holds n tokens, and its partial page: pages[g] is its table of exact
 * pages. *out stays NULL when memory runs out or it would be larger than `limit`: it is only not kept then. */
rq_status rq_snapshot_take(rq_executor *ex, uint32_t n_groups, uint32_t seq, size_t n,
                           const uint32_t *const *pages, uint64_t limit, rq_snapshot **out, rq_error *err);
/* Puts it into the slot, and the partial page where the table says. */
rq_status rq_snapshot_put(rq_executor *ex, uint32_t n_groups, const rq_snapshot *s, uint32_t seq,
                          const uint32_t *const *pages, rq_error *err);
void rq_snapshot_free(rq_snapshot *s); /* NULL: nothing */

/* Is there one of exactly these tokens? Takes the lock. */
bool rq_snapshots_has(const rq_snapshots *all, const rq_token *ids, size_t n);
/* The longest one of fewer than `below` tokens, all of which `ids` begins with; NULL: none. */
rq_snapshot *rq_snapshots_find(const rq_snapshots *all, const rq_token *ids, size_t below);
/* Takes it over for the sequence, which holds its tokens (committed); others go to make room, and it goes itself where
 * those that are pinned leave none, where there is one already, or where the cache has let pages go. */
void rq_snapshots_add(rq_snapshots *all, uint32_t seq, rq_snapshot *s);
void rq_snapshots_pin(rq_snapshots *all, rq_snapshot *s);
void rq_snapshots_unpin(rq_snapshot *s);

#endif
