/* test_pool.c - work is shared and done once, waiting separates, results are visible, nobody waits for a helper
 * that does not come, an idle pool sleeps. Meant to be run under the thread sanitizer too. */
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

enum { ROUNDS = 100, UNITS = 16 };

typedef struct job {
    rq_pool *pool;
    _Atomic uint32_t next[ROUNDS], done[ROUNDS];
    uint32_t plain[ROUNDS][UNITS]; /* not atomic: the sanitizer sees a missing wait */
    _Atomic uint32_t wrong, came;
} job;

typedef struct round_of {
    const job *job;
    uint32_t round;
} round_of;

static bool round_done(const void *arg)
{
    const round_of *r = arg;
    return atomic_load(&r->job->done[r->round]) == UNITS;
}

/* Rounds of units; each unit reads all results of the round before. */
static void work(void *arg, uint32_t worker)
{
    job *j = arg;
    atomic_fetch_or(&j->came, 1u << worker);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t unit; (unit = atomic_fetch_add(&j->next[round], 1)) < UNITS;) {
            for (uint32_t i = 0; round && i < UNITS; i++)
                if (j->plain[round - 1][i] != round * 100 + i) atomic_fetch_add(&j->wrong, 1);
            j->plain[round][unit] += (round + 1) * 100 + unit;
            if (atomic_fetch_add(&j->done[round], 1) + 1 == UNITS) rq_pool_progress(j->pool);
        }
        round_of r = {j, round};
        rq_pool_wait(j->pool, round_done, &r);
    }
}

static void test_rounds(void **state)
{
    (void)state;
    static job j;
    for (uint32_t n = 1; n <= 5; n++) {
        rq_pool *pool;
        assert_int_equal(rq_pool_create(n, &pool, NULL), RQ_OK);
        assert_int_equal(rq_pool_size(pool), n);
        for (int again = 0; again < 5; again++) {
            memset(&j, 0, sizeof j);
            j.pool = pool;
            rq_pool_run(pool, work, &j);
            assert_int_equal(atomic_load(&j.wrong), 0);
            assert_true(atomic_load(&j.came) & 1);
            assert_true(atomic_load(&j.came) < 1u << n);
            for (uint32_t i = 0; i < UNITS; i++) assert_int_equal(j.plain[ROUNDS - 1][i], ROUNDS * 100 + i);
            if (again == 2) usleep(2000); /* long enough for the helpers to fall asleep */
        }
        rq_pool_destroy(pool);
    }
}

/* Until every worker has come: helpers do help. */
static void come(void *arg, uint32_t worker)
{
    job *j = arg;
    atomic_fetch_or(&j->came, 1u << worker);
    for (int i = 0; i < 20000 && atomic_load(&j->came) != 7; i++) usleep(1000);
}

static void count(void *arg, uint32_t worker)
{
    (void)worker;
    atomic_fetch_add((_Atomic uint32_t *)arg, 1);
}

static void test_helpers(void **state)
{
    (void)state;
    job j = {.came = 0};
    assert_int_equal(rq_pool_create(3, &j.pool, NULL), RQ_OK);
    rq_pool_run(j.pool, come, &j);
    assert_int_equal(atomic_load(&j.came), 7);
    /* short runs, most of them over before a helper wakes: at most one call for each worker and run */
    for (int i = 0; i < 2000; i++) {
        _Atomic uint32_t calls = 0;
        rq_pool_run(j.pool, count, &calls);
        assert_in_range(atomic_load(&calls), 1, 3);
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
            assert_true(n > 1); /* the pool is one allocation */
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
        cmocka_unit_test(test_rounds),
        cmocka_unit_test(test_helpers),
        cmocka_unit_test(test_idle_sleeps),
        cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
