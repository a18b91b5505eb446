/* test_pool.c - every worker runs, barriers separate, work is visible, an idle pool sleeps. Meant to be run
 * under the thread sanitizer too. */
#include "backends/base/mem.h"
#include "backends/cpu/pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 8, ROUNDS = 200 };

typedef struct job {
    rq_pool *pool;
    uint32_t n;
    uint32_t plain[MAX]; /* not atomic: the sanitizer sees a missing barrier */
    uint32_t seen[MAX];
    _Atomic uint32_t next, taken;
} job;

/* Each worker writes its place, all meet, each reads everybody's place, all meet. */
static void exchange(void *arg, uint32_t worker)
{
    job *j = arg;
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        j->plain[worker] = round * 100 + worker;
        rq_pool_barrier(j->pool);
        for (uint32_t i = 0; i < j->n; i++)
            if (j->plain[i] == round * 100 + i) j->seen[worker]++;
        rq_pool_barrier(j->pool);
    }
}

static void test_barrier(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        job j = {.n = n};
        assert_int_equal(rq_pool_create(n, &j.pool, NULL), RQ_OK);
        assert_int_equal(rq_pool_size(j.pool), n);
        for (int again = 1; again <= 3; again++) {
            rq_pool_run(j.pool, exchange, &j);
            for (uint32_t i = 0; i < n; i++) assert_int_equal(j.seen[i], (uint32_t)again * ROUNDS * n);
        }
        rq_pool_destroy(j.pool);
    }
}

static void take(void *arg, uint32_t worker)
{
    (void)worker;
    job *j = arg;
    while (atomic_fetch_add(&j->next, 1) < 1000) atomic_fetch_add(&j->taken, 1);
}

static void test_many_runs(void **state)
{
    (void)state;
    job j = {.n = 3};
    assert_int_equal(rq_pool_create(3, &j.pool, NULL), RQ_OK);
    for (int i = 0; i < 300; i++) {
        atomic_store(&j.next, 0);
        atomic_store(&j.taken, 0);
        rq_pool_run(j.pool, take, &j);
        assert_int_equal(atomic_load(&j.taken), 1000);
        if (i % 100 == 0) usleep(2000); /* long enough for the workers to fall asleep */
    }
    rq_pool_destroy(j.pool);
}

static void test_idle_sleeps(void **state)
{
    (void)state;
    rq_pool *pool;
    assert_int_equal(rq_pool_create(4, &pool, NULL), RQ_OK);
    usleep(20000);
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    usleep(200000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    int64_t used_us = (b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000;
    assert_true(used_us < 20000);
    rq_pool_destroy(pool);
}

static void test_failures(void **state)
{
    (void)state;
    rq_error err = {0};
    rq_pool *pool = NULL;
    assert_int_equal(rq_pool_create(RQ_POOL_MAX + 1, &pool, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "256"));
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1;; n++) {
        rq_mem_fail_at(n);
        rq_status status = rq_pool_create(3, &pool, &err);
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            assert_true(n > 3); /* the pool and one argument for each thread */
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_int_equal(rq_mem_alive(), alive);
    }
    rq_pool_destroy(pool);
    rq_pool_destroy(NULL);
    assert_int_equal(rq_mem_alive(), alive);
    assert_int_equal(rq_pool_create(0, &pool, NULL), RQ_OK);
    assert_int_equal(rq_pool_size(pool), rq_pool_processors());
    rq_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_many_runs),
        cmocka_unit_test(test_idle_sleeps),
        cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
