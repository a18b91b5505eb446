/* pool.h - the worker threads of a processor device.
 *
 * A pool of N workers is the thread that calls rq_pool_run (worker 0) and N - 1 threads of its own, the helpers.
 * One call wakes the helpers once. Nobody waits for a helper that has not come yet: work is taken in units from
 * counters, whoever comes takes some, and worker 0 can do all of it alone. So a helper that the system keeps
 * from running (other programs are busy too) costs its share of the speed and not a time slice per operation.
 * Waiting spins for some microseconds and then sleeps in the kernel: an idle pool uses no processor time. */
#ifndef RQ_CPU_POOL_H
#define RQ_CPU_POOL_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct rq_pool rq_pool;

enum { RQ_POOL_MAX = 256 };

/* Processors this process may run on, at least 1. */
uint32_t rq_pool_processors(void);

/* n_workers 0 means rq_pool_processors(); at most RQ_POOL_MAX. */
rq_status rq_pool_create(uint32_t n_workers, rq_pool **out, rq_error *err);
/* Ends and joins the threads; nothing may be running. NULL is left alone. */
void rq_pool_destroy(rq_pool *pool);
uint32_t rq_pool_size(const rq_pool *pool);

/* Calls fn(arg, 0) on the calling thread and fn(arg, worker) on every helper that wakes up before that call is
 * over; returns when all who came have returned. One thread at a time may call it; what the caller wrote before
 * is visible to all workers, and what they wrote to the caller after. */
void rq_pool_run(rq_pool *pool, void (*fn)(void *arg, uint32_t worker), void *arg);

/* For waiting inside fn. Whoever completes something others may wait for calls rq_pool_progress afterwards;
 * rq_pool_wait returns when done(arg) is true (it must become so by what other workers are already doing). */
void rq_pool_progress(rq_pool *pool);
void rq_pool_wait(rq_pool *pool, bool (*done)(const void *arg), const void *arg);

#endif
