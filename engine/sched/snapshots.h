/* snapshots.h - states of sequences kept for later requests, for models whose state cannot be cut back (DESIGN
 * section 5).
 *
 * A snapshot of position n is what a sequence needs to go on from there beside whole pages of its tokens, which the
 * cache's tree keeps: the recurrent state of all layers, and the exact bytes of the last, partial page of each cache
 * group. It belongs to the tokens, not to a session. Snapshots live in the process's memory, up to a number of bytes;
 * the one unused for longest goes first.
 *
 * The list is changed by the scheduler's thread under its lock; others look up and pin under the lock. */
#ifndef RQ_SCHED_SNAPSHOTS_H
#define RQ_SCHED_SNAPSHOTS_H

#include "backends/exec/exec.h"
#include "engine/rqvk.h"

typedef struct rq_snapshot {
    size_t n; /* tokens */
    rq_token *ids;
    uint8_t *bytes; /* the state, then a page of each group where n is not at the end of one */
    uint64_t n_bytes;
    uint64_t used; /* order of last use */
    uint32_t pins; /* sessions that will still read it */
} rq_snapshot;

typedef struct rq_snapshots {
    rq_snapshot **items;
    size_t n, cap;
    uint64_t bytes, limit; /* of the items, ids included; and their most */
    uint64_t tick;
} rq_snapshots;

void rq_snapshots_free(rq_snapshots *all);

/* Copies the state of sequence slot `seq`, which holds the n tokens `ids`, and its partial page: pages[g] is its table
 * of exact pages. *out stays NULL when memory runs out or it would be larger than `limit`: it is only not kept then. */
rq_status rq_snapshot_take(rq_executor *ex, uint32_t n_groups, uint32_t seq, const rq_token *ids, size_t n,
                           const uint32_t *const *pages, uint64_t limit, rq_snapshot **out, rq_error *err);
/* Puts it into the slot, and the partial page where the table says. */
rq_status rq_snapshot_put(rq_executor *ex, uint32_t n_groups, const rq_snapshot *s, uint32_t seq,
                          const uint32_t *const *pages, rq_error *err);
void rq_snapshot_free(rq_snapshot *s); /* NULL: nothing */

/* Is there one of exactly these tokens? */
bool rq_snapshots_has(const rq_snapshots *all, const rq_token *ids, size_t n);
/* The longest one of fewer than `below` tokens, all of which `ids` begins with; NULL: none. */
rq_snapshot *rq_snapshots_find(const rq_snapshots *all, const rq_token *ids, size_t below);
/* Takes it over; others go to make room, and it goes itself where those that are pinned leave none. */
void rq_snapshots_add(rq_snapshots *all, rq_snapshot *s);
void rq_snapshots_pin(rq_snapshots *all, rq_snapshot *s);
void rq_snapshots_unpin(rq_snapshot *s);

#endif
