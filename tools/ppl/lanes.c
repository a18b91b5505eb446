/* lanes.c - see lanes.h. */
#include "tools/ppl/lanes.h"

#include <pthread.h>
#include <sched.h>
#include <stddef.h>

typedef struct lane {
    rq_status (*run)(void *user, uint32_t lane, rq_error *err);
    void *user;
    uint32_t index;
    rq_status status;
    rq_error err;
} lane;

static void *run_lane(void *user)
{
    lane *l = user;
    l->status = l->run(l->user, l->index, &l->err);
    return NULL;
}

rq_status rq_lanes_run(uint32_t n, rq_status (*run)(void *user, uint32_t lane, rq_error *err), void *user,
                       rq_error *err)
{
    lane lanes[RQ_MAX_LANES];
    pthread_t threads[RQ_MAX_LANES];
    if (n > RQ_MAX_LANES) n = RQ_MAX_LANES;
    for (uint32_t i = 0; i < n; i++) lanes[i] = (lane){.run = run, .user = user, .index = i};
    /* A lane whose thread cannot be had is run here, after the others. */
    uint32_t started = 0;
    while (started < n && !pthread_create(&threads[started], NULL, run_lane, &lanes[started])) started++;
    for (uint32_t i = started; i < n; i++) run_lane(&lanes[i]);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < n; i++)
        if (lanes[i].status) {
            if (err) *err = lanes[i].err;
            return lanes[i].status;
        }
    return RQ_OK;
}

uint32_t rq_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

uint32_t rq_lanes_for(uint64_t model_bytes, uint32_t n_threads, uint32_t asked)
{
    enum { SMALL_MODEL_BYTES = 64 << 20 };
    uint32_t threads = n_threads ? n_threads : rq_processors();
    uint32_t n = asked ? asked : model_bytes <= SMALL_MODEL_BYTES ? threads : 1;
    if (n > threads) n = threads;
    return n > RQ_MAX_LANES ? RQ_MAX_LANES : n;
}
