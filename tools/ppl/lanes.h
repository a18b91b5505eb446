/* lanes.h - the same work on several threads, each with engines of its own. */
#ifndef RQ_LANES_H
#define RQ_LANES_H

#include "backends/base/status.h"

#include <stdint.h>

enum { RQ_MAX_LANES = 64 };

/* Calls run(user, lane, err) for lane = 0 .. n - 1, each on a thread, and waits for all. The first lane that
 * fails gives status and error. run itself must see to it that the others stop. */
rq_status rq_lanes_run(uint32_t n, rq_status (*run)(void *user, uint32_t lane, rq_error *err), void *user,
                       rq_error *err);

/* Processors this process may use. */
uint32_t rq_processors(void);

/* How many lanes suit a model file: a small model gains nothing from several threads inside a layer, so each
 * processor gets a lane; a large one is computed once, by all. `asked` (0: not said) wins; never more than the
 * threads, at most RQ_MAX_LANES. */
uint32_t rq_lanes_for(uint64_t model_bytes, uint32_t n_threads, uint32_t asked);

#endif
