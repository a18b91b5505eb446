/* pool.h - the worker threads of a processor device.
 *
 * A pool of N workers is the thread that calls rq_pool_run (worker 0) and N - 1 threads of its own. One call
 * wakes them once; inside it they meet at barriers. Waiting spins for some microseconds and then sleeps in the
 * kernel, so an idle pool uses no processor time and a preempted worker does not make the others burn theirs. */
#ifndef RQ_CPU_POOL_H
#define RQ_CPU_POOL_H

#include "backends/base/status.h"

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

/* Calls fn(arg, worker) once on every worker and returns when all have returned. One thread at a time may call
 * it; what the caller wrote before is visible to all workers, and what they wrote to the caller after. */
void rq_pool_run(rq_pool *pool, void (*fn)(void *arg, uint32_t worker), void *arg);

/* Called by all workers from inside fn, the same number of times: nobody passes before everybody came. */
void rq_pool_barrier(rq_pool *pool);

#endif
