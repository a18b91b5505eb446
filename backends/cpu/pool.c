/* pool.c - worker threads, wake-up and waiting. See pool.h.
 *
 * Both waits are the same pattern: a 32-bit word changes when the wait is over. A waiter reads the word, spins,
 * then announces itself in `sleepers`, looks again and sleeps on the word (futex). Whoever changes the word
 * looks at `sleepers` afterwards and wakes them. Both sides use sequentially consistent operations: either the
 * waiter's second look sees the change, or the changer sees the sleeper. */
#include "backends/cpu/pool.h"

#include "backends/base/mem.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Looks at the word before sleeping. One look takes about 20-50 ns (a pause instruction), so this is some tens
 * of microseconds: longer than most waits for another worker's last unit, shorter than a turn of another process. */
enum { SPINS = 1000 };

typedef struct rq_event {
    _Atomic uint32_t word;
    _Atomic uint32_t sleepers;
} rq_event;

/* `gate`: bit 31: a run is on and helpers may enter; bits 9 to 30: which run (modulo 2^22), so that no helper
 * enters one twice; bits 0 to 8: helpers inside. */
#define GATE_OPEN   0x80000000u
#define GATE_RUN    0x7ffffe00u
#define GATE_INSIDE 0x1ffu

_Static_assert(RQ_POOL_MAX <= GATE_INSIDE, "the gate counts all helpers");

typedef struct rq_pool_thread {
    rq_pool *pool;
    pthread_t thread;
    uint32_t worker;
} rq_pool_thread;

struct rq_pool {
    _Alignas(64) rq_event start; /* word: number of runs begun */
    void (*fn)(void *arg, uint32_t worker);
    void *arg;
    uint32_t n_workers, n_started;
    _Atomic bool stop;
    _Alignas(64) rq_event progress; /* word: number of completions */
    _Alignas(64) _Atomic uint32_t gate;
    _Alignas(64) rq_pool_thread threads[RQ_POOL_MAX];
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void event_wait(rq_event *event, uint32_t old)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&event->word, memory_order_acquire) != old) return;
        pause_cpu();
    }
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->word) == old)
        syscall(SYS_futex, &event->word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&event->sleepers, 1);
}

static void event_signal(rq_event *event)
{
    atomic_fetch_add(&event->word, 1);
    if (atomic_load(&event->sleepers))
        syscall(SYS_futex, &event->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

uint32_t rq_pool_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0) return (uint32_t)n;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

void rq_pool_progress(rq_pool *pool)
{
    event_signal(&pool->progress);
}

void rq_pool_wait(rq_pool *pool, bool (*done)(const void *arg), const void *arg)
{
    for (;;) {
        uint32_t old = atomic_load(&pool->progress.word); /* before looking: a later completion changes it */
        if (done(arg)) return;
        event_wait(&pool->progress, old);
    }
}

/* Enters the run that is on, unless it is *last; false when there is none. */
static bool enter(rq_pool *pool, uint32_t *last)
{
    uint32_t gate = atomic_load(&pool->gate);
    while ((gate & GATE_OPEN) && (gate & GATE_RUN) != *last)
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) {
            *last = gate & GATE_RUN;
            return true;
        }
    return false;
}

static void *worker_main(void *arg)
{
    rq_pool *pool = ((const rq_pool_thread *)arg)->pool;
    uint32_t worker = ((const rq_pool_thread *)arg)->worker;
    for (uint32_t seen = 0, last = GATE_RUN;;) {
        event_wait(&pool->start, seen);
        seen = atomic_load(&pool->start.word); /* runs that were missed are over */
        if (atomic_load(&pool->stop)) return NULL;
        if (!enter(pool, &last)) continue;
        pool->fn(pool->arg, worker);
        atomic_fetch_sub(&pool->gate, 1);
        event_signal(&pool->progress);
    }
}

static bool all_left(const void *pool)
{
    return (atomic_load(&((const rq_pool *)pool)->gate) & GATE_INSIDE) == 0;
}

void rq_pool_run(rq_pool *pool, void (*fn)(void *arg, uint32_t worker), void *arg)
{
    if (pool->n_workers == 1) {
        fn(arg, 0);
        return;
    }
    pool->fn = fn; /* nobody is inside: the gate is closed and the last run saw everybody leave */
    pool->arg = arg;
    uint32_t run = (atomic_load(&pool->gate) + GATE_INSIDE + 1) & GATE_RUN;
    atomic_store(&pool->gate, GATE_OPEN | run);
    event_signal(&pool->start);
    fn(arg, 0);
    atomic_fetch_and(&pool->gate, ~GATE_OPEN);
    rq_pool_wait(pool, all_left, pool);
}

uint32_t rq_pool_size(const rq_pool *pool)
{
    return pool->n_workers;
}

void rq_pool_destroy(rq_pool *pool)
{
    if (!pool) return;
    atomic_store(&pool->stop, true);
    if (pool->n_started) event_signal(&pool->start);
    for (uint32_t i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i].thread, NULL);
    rq_free(pool);
}

static rq_status start_thread(rq_pool *pool, uint32_t worker, rq_error *err)
{
    rq_pool_thread *thread = &pool->threads[pool->n_started];
    thread->pool = pool;
    thread->worker = worker;
    int rc = pthread_create(&thread->thread, NULL, worker_main, thread);
    if (rc)
        return rq_fail(err, RQ_ERR_IO, "cannot start worker thread %u of %u: %s", worker + 1, pool->n_workers,
                       strerror(rc));
    pool->n_started++;
    return RQ_OK;
}

rq_status rq_pool_create(uint32_t n_workers, rq_pool **out, rq_error *err)
{
    if (n_workers == 0) {
        n_workers = rq_pool_processors();
        if (n_workers > RQ_POOL_MAX) n_workers = RQ_POOL_MAX;
    }
    if (n_workers > RQ_POOL_MAX)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u threads are more than the limit of %d", n_workers,
                       RQ_POOL_MAX);
    rq_pool *pool = rq_calloc_aligned(64, sizeof *pool);
    if (!pool) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while starting worker threads");
    pool->n_workers = n_workers;

    /* Signals meant for the program (Ctrl-C) go to its own threads; faults stay with who caused them. */
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rq_status status = RQ_OK;
    for (uint32_t i = 1; i < n_workers && status == RQ_OK; i++) status = start_thread(pool, i, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != RQ_OK) {
        rq_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return RQ_OK;
}
