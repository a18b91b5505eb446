/* pool.c - see pool.h. */
#include "server/pool.h"

#include "backends/base/mem.h"

#include <time.h>

rq_status rq_pool_open(rq_pool *pool, rq_engine *engine, size_t n, size_t max_waiting, rq_error *err)
{
    *pool = (rq_pool){.max_waiting = max_waiting};
    pool->slots = rq_calloc(n, sizeof *pool->slots);
    if (!pool->slots) return rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory for %zu sessions", n);
    for (size_t i = 0; i < n; i++) {
        rq_status status = rq_session_create(engine, &pool->slots[i].session, err);
        if (status != RQ_OK) {
            while (i-- > 0) rq_session_free(pool->slots[i].session);
            rq_free(pool->slots);
            *pool = (rq_pool){0};
            return status;
        }
    }
    pool->n_slots = pool->n_free = n;
    pool->tail = &pool->first;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&pool->lock, NULL);
    return RQ_OK;
}

void rq_pool_close(rq_pool *pool)
{
    if (!pool->slots) return;
    for (size_t i = 0; i < pool->n_slots; i++) {
        rq_session_free(pool->slots[i].session);
        rq_tokens_free(&pool->slots[i].held);
    }
    rq_free(pool->slots);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    *pool = (rq_pool){0};
}

bool rq_pool_enter(rq_pool *pool, rq_waiter *waiter, bool always)
{
    pthread_mutex_lock(&pool->lock);
    bool room = always || pool->n_waiting < pool->max_waiting + pool->n_free;
    if (room) {
        *waiter = (rq_waiter){.queued = true};
        *pool->tail = waiter;
        pool->tail = &waiter->next;
        pool->n_waiting++;
    }
    pthread_mutex_unlock(&pool->lock);
    return room;
}

static void remove_waiter(rq_pool *pool, rq_waiter *waiter)
{
    rq_waiter **link = &pool->first;
    while (*link && *link != waiter) link = &(*link)->next;
    if (!*link) return;
    *link = waiter->next;
    if (pool->tail == &waiter->next) pool->tail = link;
    waiter->queued = false;
    pool->n_waiting--;
    pthread_cond_broadcast(&pool->changed); /* somebody else is first now */
}

static size_t shared_beginning(const rq_tokens *a, const rq_tokens *b)
{
    size_t n = a->n < b->n ? a->n : b->n, i = 0;
    while (i < n && a->ids[i] == b->ids[i]) i++;
    return i;
}

/* The best free slot, or NULL when all are lent. A slot is worth taking for what it holds when that saves at least as
 * much as it destroys: otherwise a few words that all conversations begin with would make a new
 * conversation overwrite an old one while other slots are empty. */
static rq_slot *choose_slot(rq_pool *pool, const rq_tokens *tokens)
{
    rq_slot *best = NULL, *oldest = NULL;
    size_t best_gain = 0;
    for (size_t i = 0; i < pool->n_slots; i++) {
        rq_slot *slot = &pool->slots[i];
        if (slot->busy) continue;
        if (!oldest || slot->last_used < oldest->last_used) oldest = slot;
        size_t shared = shared_beginning(&slot->held, tokens), lost = slot->held.n - shared;
        if (shared > lost && shared - lost > best_gain) best = slot, best_gain = shared - lost;
    }
    if (!best) best = oldest;
    if (!best) return NULL;
    best->busy = true;
    pool->n_free--;
    return best;
}

rq_slot *rq_pool_take(rq_pool *pool, rq_waiter *waiter, const rq_tokens *tokens, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    until.tv_sec += timeout_ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    rq_slot *slot = NULL;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        slot = pool->first == waiter ? choose_slot(pool, tokens) : NULL;
        if (slot) {
            remove_waiter(pool, waiter);
            break;
        }
        if (timeout_ms <= 0 || pthread_cond_timedwait(&pool->changed, &pool->lock, &until) != 0) break;
    }
    pthread_mutex_unlock(&pool->lock);
    return slot;
}

rq_slot *rq_pool_take_spare(rq_pool *pool, const rq_tokens *tokens)
{
    pthread_mutex_lock(&pool->lock);
    rq_slot *slot = !pool->first ? choose_slot(pool, tokens) : NULL;
    pthread_mutex_unlock(&pool->lock);
    return slot;
}

void rq_pool_leave(rq_pool *pool, rq_waiter *waiter)
{
    if (!waiter->queued) return;
    pthread_mutex_lock(&pool->lock);
    remove_waiter(pool, waiter);
    pthread_mutex_unlock(&pool->lock);
}

void rq_pool_give(rq_pool *pool, rq_slot *slot)
{
    pthread_mutex_lock(&pool->lock);
    slot->busy = false;
    slot->last_used = ++pool->clock;
    pool->n_free++;
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
}

size_t rq_pool_waiting(rq_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    size_t n = pool->n_waiting;
    pthread_mutex_unlock(&pool->lock);
    return n;
}
