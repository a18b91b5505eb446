/* pool.h - the engine's sessions, lent to requests in order of arrival.
 *
 * A session remembers the sequence it last held, so a request is given the free one whose memory helps it
 * most, or, where none helps, the one that has been idle longest. */
#ifndef RQ_POOL_H
#define RQ_POOL_H

#include "engine/rqvk.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct rq_slot {
    rq_session *session;
    rq_tokens held; /* what the session holds, as far as the server knows; owned by the borrower while lent */
    bool busy;
    uint64_t last_used;
} rq_slot;

typedef struct rq_waiter {
    struct rq_waiter *next;
    bool queued;
} rq_waiter;

typedef struct rq_pool {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    rq_slot *slots;
    size_t n_slots, n_free;
    rq_waiter *first, **tail;
    size_t n_waiting, max_waiting;
    uint64_t clock;
} rq_pool;

/* Creates `n` sessions. On failure the pool is as if never opened. */
rq_status rq_pool_open(rq_pool *pool, rq_engine *engine, size_t n, size_t max_waiting, rq_error *err);
void rq_pool_close(rq_pool *pool); /* all slots must have been given back */

/* Joins the queue; false when it is full. With `always` the limit does not count (a request already at work).
 */
bool rq_pool_enter(rq_pool *pool, rq_waiter *waiter, bool always);
/* Waits up to timeout_ms for this waiter's turn and a free slot; NULL when there was none. With a slot the
 * waiter has left the queue. `tokens` is the sequence the slot will be used for. */
rq_slot *rq_pool_take(rq_pool *pool, rq_waiter *waiter, const rq_tokens *tokens, int timeout_ms);
/* A slot that nobody in the queue could use, or NULL at once. */
rq_slot *rq_pool_take_spare(rq_pool *pool, const rq_tokens *tokens);
void rq_pool_leave(rq_pool *pool, rq_waiter *waiter); /* gives up waiting; also when not queued */
void rq_pool_give(rq_pool *pool, rq_slot *slot);

/* How many requests wait now. */
size_t rq_pool_waiting(rq_pool *pool);

#endif
