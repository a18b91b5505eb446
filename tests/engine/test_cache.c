/* Page bookkeeping: every sequence of operations leaves pools, tables and reference counts in agreement, and a
 * reservation is a promise that holds. */
#include "backends/base/mem.h"
#include "engine/cache/cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static rq_cache *make(const uint32_t *pages, uint32_t n_groups, uint32_t n_seqs, uint32_t max_pages)
{
    rq_cache *c = NULL;
    rq_error err;
    assert_int_equal(rq_cache_create(pages, n_groups, n_seqs, max_pages, &c, &err), RQ_OK);
    assert_true(rq_cache_consistent(c));
    return c;
}

static void test_grows_by_pages(void **state)
{
    uint32_t pages[2] = {4, 6}, n_copies;
    rq_page_copy copies[2];
    rq_cache *c = make(pages, 2, 2, 8);
    assert_true(rq_cache_extend(c, 0, 1, copies, &n_copies));
    assert_int_equal(rq_cache_available(c, 0), 3);
    assert_true(rq_cache_extend(c, 0, 64, copies, &n_copies));
    assert_int_equal(rq_cache_available(c, 0), 3);
    assert_true(rq_cache_extend(c, 0, 65, copies, &n_copies));
    assert_int_equal(rq_cache_available(c, 0), 2);
    assert_int_equal(rq_cache_tokens_used(c), 128);
    assert_int_equal(n_copies, 0);
    assert_true(rq_cache_extend(c, 1, 128, copies, &n_copies));
    /* group 0 is full: nothing changes in group 1 either */
    assert_false(rq_cache_extend(c, 1, 129, copies, &n_copies));
    assert_int_equal(rq_cache_available(c, 1), 2);
    assert_int_equal(rq_cache_length(c, 1), 128);
    rq_cache_truncate(c, 0, 64);
    assert_true(rq_cache_extend(c, 1, 129, copies, &n_copies));
    assert_true(rq_cache_consistent(c));
    rq_cache_truncate(c, 0, 0);
    rq_cache_truncate(c, 1, 0);
    assert_int_equal(rq_cache_available(c, 0), 4);
    assert_int_equal(rq_cache_available(c, 1), 6);
    assert_true(rq_cache_consistent(c));
    rq_cache_free(c);
}

static void test_reservation_is_a_promise(void **state)
{
    uint32_t pages[1] = {10}, n_copies;
    rq_page_copy copies[1];
    rq_cache *c = make(pages, 1, 3, 10);
    assert_true(rq_cache_reserve(c, 0, 6 * 64));
    assert_false(rq_cache_reserve(c, 1, 5 * 64));
    assert_true(rq_cache_reserve(c, 1, 4 * 64));
    assert_int_equal(rq_cache_available(c, 0), 0);
    assert_false(rq_cache_extend(c, 2, 1, copies, &n_copies)); /* free pages, but all promised */
    for (uint32_t n = 1; n <= 6 * 64; n += 7) assert_true(rq_cache_extend(c, 0, n, copies, &n_copies));
    for (uint32_t n = 1; n <= 4 * 64; n++) assert_true(rq_cache_extend(c, 1, n, copies, &n_copies));
    assert_true(rq_cache_consistent(c));
    assert_true(rq_cache_reserve(c, 0, 6 * 64)); /* counts what it holds */
    rq_cache_truncate(c, 0, 65);
    assert_int_equal(rq_cache_available(c, 0), 4);
    rq_cache_unreserve(c, 0);
    rq_cache_unreserve(c, 1);
    assert_true(rq_cache_reserve(c, 2, 4 * 64));
    assert_false(rq_cache_reserve(c, 2, 5 * 64));
    assert_int_equal(rq_cache_available(c, 0), 0); /* the earlier one still stands */
    assert_false(rq_cache_reserve(c, 2, 11 * 64)); /* more than a table holds */
    assert_true(rq_cache_consistent(c));
    rq_cache_free(c);
}

static void test_fork_and_copy_on_write(void **state)
{
    uint32_t pages[2] = {8, 8}, n_copies;
    rq_page_copy copies[2];
    rq_cache *c = make(pages, 2, 3, 8);
    assert_true(rq_cache_extend(c, 0, 200, copies, &n_copies)); /* three full pages and 8 tokens */
    uint32_t held[4];
    memcpy(held, rq_cache_tables(c, 0)[1], sizeof held);
    assert_true(rq_cache_fork(c, 0, 1, 200, copies, &n_copies));
    assert_int_equal(n_copies, 2); /* the partial page of each group */
    assert_int_equal(copies[1].group, 1);
    assert_int_equal(copies[1].from, held[3]);
    assert_int_equal(copies[1].to, rq_cache_tables(c, 1)[1][3]);
    assert_memory_equal(rq_cache_tables(c, 1)[1], held, 3 * sizeof *held);
    assert_int_equal(rq_cache_available(c, 0), 8 - 5);
    assert_true(rq_cache_consistent(c));
    /* both go on without touching the other's pages */
    assert_true(rq_cache_extend(c, 0, 201, copies, &n_copies));
    assert_int_equal(n_copies, 0);
    assert_true(rq_cache_extend(c, 1, 201, copies, &n_copies));
    assert_int_equal(n_copies, 0);
    /* cut back into a shared page: it is copied when it is written, and the reservation counts the copy */
    rq_cache_truncate(c, 1, 100);
    assert_int_equal(rq_cache_available(c, 0), 4);
    assert_true(rq_cache_reserve(c, 1, 101));
    assert_int_equal(rq_cache_available(c, 0), 3);
    assert_true(rq_cache_extend(c, 1, 101, copies, &n_copies));
    assert_int_equal(n_copies, 2);
    assert_int_equal(copies[0].from, rq_cache_tables(c, 0)[0][1]);
    assert_int_equal(copies[0].to, rq_cache_tables(c, 1)[0][1]);
    assert_int_equal(rq_cache_tables(c, 1)[0][0], rq_cache_tables(c, 0)[0][0]);
    assert_int_equal(rq_cache_available(c, 0), 3);
    assert_true(rq_cache_consistent(c));
    /* a fork at a page border shares everything and needs no page */
    assert_true(rq_cache_fork(c, 0, 2, 192, copies, &n_copies));
    assert_int_equal(n_copies, 0);
    assert_int_equal(rq_cache_available(c, 0), 3);
    rq_cache_truncate(c, 0, 0);
    assert_true(rq_cache_consistent(c));
    assert_memory_equal(rq_cache_tables(c, 2)[1], held, 3 * sizeof *held);
    rq_cache_free(c);
}

static void test_fork_is_refused_without_a_page(void **state)
{
    uint32_t pages[1] = {2}, n_copies;
    rq_page_copy copies[1];
    rq_cache *c = make(pages, 1, 2, 4);
    assert_true(rq_cache_extend(c, 0, 70, copies, &n_copies));
    assert_false(rq_cache_fork(c, 0, 1, 70, copies, &n_copies));
    assert_false(rq_cache_fork(c, 0, 1, 71, copies, &n_copies)); /* more than there is */
    assert_int_equal(rq_cache_length(c, 1), 0);
    assert_true(rq_cache_fork(c, 0, 1, 64, copies, &n_copies));
    assert_false(rq_cache_fork(c, 0, 1, 64, copies, &n_copies)); /* not empty */
    assert_true(rq_cache_consistent(c));
    rq_cache_free(c);
}

enum { SEQS = 5, GROUPS = 2, MAX_PAGES = 6 };

/* A device that believes nothing but edits. */
typedef struct device {
    uint32_t table[SEQS][GROUPS][MAX_PAGES];
} device;

static void send_edits(rq_cache *c, uint32_t seq, rq_step *step, device *d)
{
    for (;;) {
        rq_step_reset(step);
        bool all = rq_cache_edits(c, seq, step);
        const rq_edit *edits = rq_step_at(step->words, step->header->edits);
        for (uint32_t i = 0; i < step->header->n_edits; i++)
            d->table[edits[i].seq][edits[i].group][edits[i].index] = edits[i].page;
        if (all) return;
    }
}

static void test_random_walk(void **state)
{
    uint32_t pages[GROUPS] = {17, 19}, n_copies;
    rq_page_copy copies[GROUPS];
    rq_cache *c = make(pages, GROUPS, SEQS, MAX_PAGES);
    rq_cache_group groups[GROUPS] = {{.n_layers = 1, .n_heads = 1, .dim_k = 8, .dim_v = 8}};
    groups[1] = groups[0];
    rq_step_caps caps = {.max_tokens = 8, .n_groups = GROUPS, .n_seqs = SEQS, .max_pages = MAX_PAGES};
    rq_step_caps_complete(&caps);
    caps.max_edits = 3; /* so that one step is often not enough */
    uint32_t *words = rq_calloc(rq_step_words(&caps), sizeof *words);
    rq_step step;
    rq_step_init(&step, &caps, groups, words);
    static device d;
    uint64_t promised[SEQS] = {0};
    uint32_t n_refused = 0, n_copied = 0;
    for (int i = 0; i < 20000; i++) {
        uint32_t seq = random_below(SEQS), n = random_below(MAX_PAGES * 64 + 1);
        switch (random_below(6)) {
        case 0:
            if (rq_cache_reserve(c, seq, n)) promised[seq] = n;
            break;
        case 1:
            rq_cache_unreserve(c, seq);
            promised[seq] = 0;
            break;
        case 2:
            rq_cache_truncate(c, seq, n);
            promised[seq] = 0; /* a shared page may end the sequence now: reserve again */
            rq_cache_unreserve(c, seq);
            break;
        case 3: {
            uint32_t to = random_below(SEQS);
            if (to != seq && promised[to] == 0) rq_cache_truncate(c, to, 0);
            n = random_below((uint32_t)rq_cache_length(c, seq) + 1);
            if (to != seq && rq_cache_length(c, to) == 0) rq_cache_fork(c, seq, to, n, copies, &n_copies);
            break;
        }
        default: {
            bool must = n <= promised[seq];
            bool done = rq_cache_extend(c, seq, n, copies, &n_copies);
            if (must) assert_true(done);
            n_refused += !done;
            n_copied += n_copies;
            for (uint32_t k = 0; k < n_copies; k++) assert_int_not_equal(copies[k].from, copies[k].to);
            if (!done) break;
            send_edits(c, seq, &step, &d);
            for (uint32_t g = 0; g < GROUPS; g++)
                assert_memory_equal(d.table[seq][g], rq_cache_tables(c, seq)[g],
                                    rq_cache_pages_for(rq_cache_length(c, seq)) * sizeof(uint32_t));
        }
        }
        if (i % 16 == 0) assert_true(rq_cache_consistent(c));
    }
    assert_true(n_refused > 20 && n_copied > 20); /* both happened */
    for (uint32_t s = 0; s < SEQS; s++) {
        rq_cache_unreserve(c, s);
        rq_cache_truncate(c, s, 0);
    }
    for (uint32_t g = 0; g < GROUPS; g++) assert_int_equal(rq_cache_available(c, g), pages[g]);
    rq_cache_free(c);
    rq_free(words);
}

static void test_failing_allocations(void **state)
{
    uint32_t pages[2] = {5, 5};
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1;; n++) {
        rq_cache *c = NULL;
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = rq_cache_create(pages, 2, 3, 4, &c, &err);
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            rq_cache_free(c);
            assert_int_equal(n, 8);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_null(c);
        assert_true(err.text[0] != 0);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_int_equal(rq_mem_alive(), alive);
    uint32_t huge[1] = {UINT32_MAX};
    rq_cache *c = NULL;
    assert_int_equal(rq_cache_create(huge, 1, 1, 1, &c, NULL), RQ_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grows_by_pages),
        cmocka_unit_test(test_reservation_is_a_promise),
        cmocka_unit_test(test_fork_and_copy_on_write),
        cmocka_unit_test(test_fork_is_refused_without_a_page),
        cmocka_unit_test(test_random_walk),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
