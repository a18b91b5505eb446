/* Page bookkeeping: every sequence of operations leaves pools, tree, tables and reference counts in agreement, a
 * reservation is a promise that holds, and what a step reads is there in the form its position demands. */
#include "backends/base/mem.h"
#include "engine/cache/cache.h"
#include "tests/engine/fake_pages.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_TOKENS = 2048, MOST_SEQS = 8, MOST_SAVES = 256 };

/* A save point the caller keeps something for. */
typedef struct saved {
    uint64_t n, hash; /* n 0: none */
} saved;

/* A cache, the device it keeps books for, and what its sequences hold by the plain definition. */
typedef struct rig {
    fake_pools pools;
    rq_cache *cache;
    fake_pages *device;
    rq_step step;
    int32_t ids[MOST_SEQS][MOST_TOKENS];
    uint64_t n[MOST_SEQS];
    uint32_t n_copied, n_steps, n_refused, n_dropped;
    saved saves[MOST_SAVES];
    uint64_t last_dropped; /* tokens of it */
    bool few_keys;         /* set before it is opened: keys of 2 bits */
} rig;

static rq_cache_group plain(void)
{
    return (rq_cache_group){.n_layers = 1, .n_heads = 1, .dim_k = 64, .dim_v = 64};
}

static rq_cache_group coded(uint32_t sinks, uint32_t recent)
{
    rq_cache_group g = plain();
    g.form_k = RQ_KV_C3;
    g.form_v = RQ_KV_Q4_0;
    g.sink_pages = sinks;
    g.recent_pages = recent;
    return g;
}

static rq_cache_group windowed(uint32_t window)
{
    rq_cache_group g = plain();
    g.window = window;
    return g;
}

static rq_cache_group coded_window(uint32_t window, uint32_t recent)
{
    rq_cache_group g = coded(0, recent);
    g.window = window;
    return g;
}

static void on_dropped(void *user, uint32_t save)
{
    rig *r = user;
    assert_true(save < MOST_SAVES && r->saves[save].n != 0);
    r->last_dropped = r->saves[save].n;
    r->saves[save].n = 0;
    r->n_dropped++;
}

static void rig_open(rig *r, const rq_cache_group *groups, uint32_t n_groups, uint32_t n_seqs,
                     uint32_t max_pages, uint32_t pages)
{
    bool few_keys = r->few_keys;
    memset(r, 0, sizeof *r);
    r->few_keys = few_keys;
    r->pools = (fake_pools){.n_groups = n_groups, .n_seqs = n_seqs, .max_pages = max_pages};
    for (uint32_t g = 0; g < n_groups; g++) {
        rq_pool_sizes size;
        r->pools.groups[g] = groups[g];
        assert_int_equal(
            rq_cache_pool_sizes(&groups[g], n_seqs, max_pages * 64, pages * 64, 256, &size, NULL), RQ_OK);
        /* little is kept for reuse, so that it runs out */
        r->pools.pages[g] = size.exact - size.retained + (size.retained < 8 ? size.retained : 8);
        r->pools.coded_pages[g] = size.coded;
        r->pools.scratch_pages[g] = size.scratch;
    }
    const rq_cache_params p = {.groups = r->pools.groups,
                               .n_groups = n_groups,
                               .pages = r->pools.pages,
                               .coded_pages = r->pools.coded_pages,
                               .scratch_pages = r->pools.scratch_pages,
                               .n_seqs = n_seqs,
                               .max_pages = max_pages,
                               .n_batch = 256,
                               .dropped = on_dropped,
                               .dropped_user = r,
                               .key_mask = r->few_keys ? 3 : 0};
    rq_error err = {0};
    if (rq_cache_create(&p, &r->cache, &err) != RQ_OK) fail_msg("%s", err.text);
    r->device = fake_pages_create(&r->pools);
    assert_non_null(r->device);
    rq_step_caps caps = {.max_tokens = 256, .n_groups = n_groups, .n_seqs = n_seqs, .max_pages = max_pages};
    rq_step_caps_complete(&caps);
    uint32_t *words = rq_calloc(rq_step_words(&caps), sizeof *words);
    rq_step_init(&r->step, &caps, r->pools.groups, words);
    assert_true(rq_cache_consistent(r->cache));
}

static void rig_close(rig *r)
{
    assert_true(rq_cache_consistent(r->cache));
    assert_int_equal(fake_pages_violations(r->device), 0);
    for (uint32_t s = 0; s < r->pools.n_seqs; s++) rq_cache_truncate(r->cache, s, 0);
    rq_cache_clear(r->cache);
    assert_true(rq_cache_consistent(r->cache));
    assert_int_equal(rq_cache_nodes(r->cache), 0);
    assert_int_equal(rq_cache_tokens_used(r->cache), 0);
    for (uint32_t i = 0; i < MOST_SAVES; i++) assert_int_equal(r->saves[i].n, 0);
    for (uint32_t g = 0; g < r->pools.n_groups; g++) {
        bool by_code = rq_group_is_coded(&r->pools.groups[g]) && r->pools.groups[g].window == 0;
        assert_int_equal(rq_cache_available(r->cache, g),
                         by_code ? r->pools.coded_pages[g] : r->pools.pages[g]);
    }
    rq_cache_free(r->cache);
    fake_pages_free(r->device);
    rq_free(r->step.words);
}

static void make_copies(rig *r)
{
    rq_page_copy copies[2 * MOST_SEQS * RQ_MAX_GROUPS];
    uint32_t n = rq_cache_take_copies(r->cache, copies);
    for (uint32_t i = 0; i < n; i++)
        fake_pages_copy(r->device, copies[i].group, copies[i].from, copies[i].to);
    r->n_copied += n;
}

/* Evaluates the sequence's ids up to `end` in one step. False when there is no room. */
static bool evaluate(rig *r, uint32_t seq, uint64_t end)
{
    uint64_t start = rq_cache_length(r->cache, seq);
    assert_int_equal(start, r->n[seq]);
    if (end <= start) return true;
    uint32_t count = (uint32_t)(end - start);
    if (!rq_cache_extend(r->cache, seq, end, count > 8)) {
        r->n_refused++;
        return false;
    }
    rq_step_reset(&r->step);
    assert_true(rq_cache_edits(r->cache, seq, &r->step));
    assert_int_equal(rq_step_add_run(&r->step, seq, r->ids[seq] + start, count, (uint32_t)start,
                                     rq_cache_tables(r->cache, seq)),
                     0);
    assert_true(rq_cache_encodes(r->cache, seq, &r->step));
    rq_step_finish(&r->step);
    make_copies(r);
    static uint64_t hashes[256];
    fake_pages_run(r->device, &r->step, hashes);
    uint64_t hash = 1;
    for (uint64_t i = 0; i < end; i++) hash = fake_hash(hash, r->ids[seq][i]);
    assert_true(hashes[count - 1] == hash); /* it saw what it should */
    rq_cache_commit(r->cache, seq, r->ids[seq]);
    r->n[seq] = end;
    r->n_steps++;
    assert_int_equal(rq_cache_length(r->cache, seq), end);
    return true;
}

/* Evaluates up to `end` in steps of at most n_piece tokens. */
static void evaluate_all(rig *r, uint32_t seq, uint64_t end, uint32_t n_piece)
{
    while (r->n[seq] < end) {
        uint64_t to = r->n[seq] + n_piece < end ? r->n[seq] + n_piece : end;
        assert_true(evaluate(r, seq, to));
    }
    assert_true(rq_cache_consistent(r->cache));
}

static uint64_t truncate_to(rig *r, uint32_t seq, uint64_t n)
{
    r->n[seq] = rq_cache_truncate(r->cache, seq, n);
    assert_true(rq_cache_consistent(r->cache));
    return r->n[seq];
}

static uint64_t advance_to(rig *r, uint32_t seq, uint64_t n)
{
    rq_cache_match m = rq_cache_advance(r->cache, seq, r->ids[seq], n);
    assert_true(m.n_known >= m.n_tokens && (m.n_known <= n || m.n_known == r->n[seq]));
    assert_int_equal(m.n_tokens, rq_cache_length(r->cache, seq));
    r->n[seq] = m.n_tokens;
    assert_true(rq_cache_consistent(r->cache));
    return m.n_tokens;
}

static uint64_t hash_of(const int32_t *ids, uint64_t n)
{
    uint64_t hash = 1;
    for (uint64_t i = 0; i < n; i++) hash = fake_hash(hash, ids[i]);
    return hash;
}

static uint32_t save_at(rig *r, uint32_t seq, uint64_t n)
{
    uint32_t id = rq_cache_save(r->cache, seq, n);
    if (id == RQ_NO_SAVE) return id;
    assert_true(id < rq_cache_most_saves(r->cache) && id < MOST_SAVES);
    uint64_t hash = hash_of(r->ids[seq], n);
    if (r->saves[id].n != 0) assert_true(r->saves[id].n == n && r->saves[id].hash == hash);
    r->saves[id] = (saved){n, hash};
    assert_true(rq_cache_consistent(r->cache));
    return id;
}

/* The longest save point that the sequence's ids begin with, below `below`; checked against all of them. */
static uint32_t find_save(rig *r, uint32_t seq, uint64_t below)
{
    uint32_t id = rq_cache_find_save(r->cache, r->ids[seq], below);
    uint64_t longest = 0;
    for (uint32_t i = 0; i < MOST_SAVES; i++)
        if (r->saves[i].n > longest && r->saves[i].n < below &&
            hash_of(r->ids[seq], r->saves[i].n) == r->saves[i].hash)
            longest = r->saves[i].n;
    assert_int_equal(id != RQ_NO_SAVE ? r->saves[id].n : 0, longest);
    return id;
}

/* Goes on from n tokens, with the partial page's content brought along. */
static bool resume_at(rig *r, uint32_t seq, uint64_t n)
{
    bool resumed = rq_cache_resume(r->cache, seq, r->ids[seq], n);
    assert_true(rq_cache_consistent(r->cache));
    if (!resumed) return false;
    r->n[seq] = n;
    make_copies(r);
    for (uint32_t g = 0; n % 64 != 0 && g < r->pools.n_groups; g++)
        fake_pages_load(r->device, g, rq_cache_tables(r->cache, seq)[g][n / 64], r->ids[seq], n - n % 64,
                        n % 64);
    return true;
}

static void fill(rig *r, uint32_t seq, uint32_t first, uint32_t n, uint32_t number)
{
    for (uint32_t i = first; i < first + n; i++) r->ids[seq][i] = (int32_t)(number * 10007 + i);
}

/* ---- one thing at a time ----------------------------------------------------------------------------------- */

static void test_grows_by_pages(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {plain(), plain()};
    rig_open(&r, groups, 2, 2, 4, 4);
    fill(&r, 0, 0, 256, 1);
    fill(&r, 1, 0, 256, 2);
    assert_true(evaluate(&r, 0, 1));
    assert_int_equal(rq_cache_available(r.cache, 0), 3);
    assert_true(evaluate(&r, 0, 64));
    assert_int_equal(rq_cache_available(r.cache, 0), 3);
    assert_true(evaluate(&r, 0, 65));
    assert_int_equal(rq_cache_available(r.cache, 0), 2);
    assert_int_equal(rq_cache_tokens_used(r.cache), 128);
    assert_true(evaluate(&r, 1, 128));
    assert_false(rq_cache_extend(r.cache, 1, 129, false));
    assert_int_equal(rq_cache_length(r.cache, 1), 128);
    assert_int_equal(truncate_to(&r, 0, 64), 64);
    assert_true(evaluate(&r, 1, 129));
    /* nobody's pages are kept until they are needed */
    truncate_to(&r, 0, 0);
    assert_int_equal(rq_cache_nodes(r.cache), 3);
    assert_int_equal(rq_cache_available(r.cache, 0), 1);
    assert_int_equal(rq_cache_tokens_used(r.cache), 192);
    assert_int_equal(advance_to(&r, 0, 200), 64); /* still there */
    truncate_to(&r, 0, 0);
    evaluate_all(&r, 1, 256, 64);
    assert_int_equal(advance_to(&r, 0, 200), 0); /* given to the other */
    rig_close(&r);
}

static void test_reservation_is_a_promise(void **state)
{
    for (int kind = 0; kind < 2; kind++) {
        rig r = {.few_keys = false};
        rq_cache_group group = kind ? coded(0, 1) : plain();
        rig_open(&r, &group, 1, 3, 10, 10);
        for (uint32_t s = 0; s < 3; s++) fill(&r, s, 0, 640, s);
        assert_true(rq_cache_reserve(r.cache, 0, 6 * 64));
        assert_false(rq_cache_reserve(r.cache, 1, 5 * 64));
        assert_true(rq_cache_reserve(r.cache, 1, 4 * 64));
        assert_int_equal(rq_cache_available(r.cache, 0), 0);
        assert_false(rq_cache_extend(r.cache, 2, 64, true)); /* free pages, but all promised */
        for (uint64_t n = 1; n <= 6 * 64; n += 7) assert_true(evaluate(&r, 0, n));
        for (uint64_t n = 1; n <= 4 * 64; n++) assert_true(evaluate(&r, 1, n));
        assert_true(rq_cache_reserve(r.cache, 0, 6 * 64)); /* counts what it holds */
        assert_true(rq_cache_consistent(r.cache));
        truncate_to(&r, 0, 65);
        rq_cache_unreserve(r.cache, 0);
        rq_cache_unreserve(r.cache, 1);
        assert_true(rq_cache_reserve(r.cache, 2, 4 * 64));
        uint32_t left = rq_cache_available(r.cache, 0);
        assert_false(rq_cache_reserve(r.cache, 2, 7 * 64));
        assert_int_equal(rq_cache_available(r.cache, 0), left); /* the earlier one still stands */
        assert_false(rq_cache_reserve(r.cache, 2, 11 * 64));    /* more than a table holds */
        evaluate_all(&r, 2, 256, 100);
        rig_close(&r);
    }
}

static void test_sharing_and_copies(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {plain(), plain()};
    rig_open(&r, groups, 2, 3, 8, 8);
    for (uint32_t s = 0; s < 3; s++) fill(&r, s, 0, 512, 1);
    evaluate_all(&r, 0, 200, 128); /* three full pages and 8 tokens */
    assert_int_equal(advance_to(&r, 1, 199), 192);
    assert_int_equal(r.n_copied, 0); /* 7 tokens are not worth a copy */
    assert_int_equal(rq_cache_available(r.cache, 0), 8 - 4);
    evaluate_all(&r, 0, 230, 30);
    assert_int_equal(advance_to(&r, 1, 220), 220);
    make_copies(&r);
    assert_int_equal(r.n_copied, 2); /* the partial page of each group */
    assert_memory_equal(rq_cache_tables(r.cache, 1)[1], rq_cache_tables(r.cache, 0)[1], 3 * sizeof(uint32_t));
    assert_int_equal(rq_cache_available(r.cache, 0), 8 - 5);
    /* both go on their own ways without touching the other's pages */
    fill(&r, 1, 220, 200, 7);
    evaluate_all(&r, 0, 231, 1);
    evaluate_all(&r, 1, 221, 1);
    /* cut back into a shared page: a copy of it */
    assert_int_equal(truncate_to(&r, 1, 100), 100);
    fill(&r, 1, 100, 200, 8);
    assert_int_equal(rq_cache_available(r.cache, 0), 3);
    evaluate_all(&r, 1, 140, 8);
    evaluate_all(&r, 0, 256, 8);
    /* a page somebody holds whole is a source for a part, too */
    fill(&r, 2, 160, 200, 9);
    assert_int_equal(advance_to(&r, 2, 300), 160);
    evaluate_all(&r, 2, 192, 40);
    rig_close(&r);
}

/* Where there is no page for a copy, a page nobody else uses is opened itself; a shared one is not. */
static void test_cutting_without_a_page(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {plain(), coded(0, 1)};
    rig_open(&r, groups, 2, 2, 4, 4);
    fill(&r, 0, 0, 256, 1);
    fill(&r, 1, 0, 256, 1);
    evaluate_all(&r, 0, 128, 128);
    assert_true(rq_cache_reserve(r.cache, 1, 2 * 64)); /* all that is left */
    assert_int_equal(rq_cache_available(r.cache, 0), 0);
    assert_int_equal(truncate_to(&r, 0, 100), 100);
    assert_int_equal(r.n_copied, 0);
    make_copies(&r);
    assert_int_equal(r.n_copied, 0);
    assert_int_equal(rq_cache_nodes(r.cache), 1); /* the opened one is none any more */
    evaluate_all(&r, 0, 128, 8);
    rq_cache_unreserve(r.cache, 1);
    assert_int_equal(advance_to(&r, 1, 256), 128);
    assert_true(rq_cache_reserve(r.cache, 1, 256));
    assert_int_equal(truncate_to(&r, 0, 100), 64); /* the other one reads it */
    evaluate_all(&r, 1, 256, 64);
    rig_close(&r);
}

static void test_two_sequences_make_the_same_page(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {plain(), coded(1, 1)};
    rig_open(&r, groups, 2, 2, 8, 16);
    fill(&r, 0, 0, 512, 1);
    fill(&r, 1, 0, 512, 1);
    for (uint64_t n = 30; n <= 300; n += 30) {
        assert_true(evaluate(&r, 0, n));
        assert_true(evaluate(&r, 1, n));
        assert_true(rq_cache_consistent(r.cache));
    }
    assert_int_equal(rq_cache_nodes(r.cache), 4);
    assert_int_equal(rq_cache_available(r.cache, 0), 16 - 4 - 2); /* four shared, and an end each */
    rig_close(&r);
}

/* ---- exact and coded --------------------------------------------------------------------------------------- */

static void test_exact_pages_are_few(void **state)
{
    for (uint32_t sinks = 0; sinks < 3; sinks++)
        for (uint32_t recent = 1; recent < 4; recent++) {
            rig r = {.few_keys = false};
            rq_cache_group group = coded(sinks, recent);
            rig_open(&r, &group, 1, 2, 32, 64);
            assert_true(r.pools.pages[0] < 64);
            static const uint32_t pieces[] = {1, 7, 8, 9, 64, 100, 192, 256};
            for (uint32_t k = 0; k < 8; k++)
                for (uint32_t s = 0; s < 2; s++) {
                    fill(&r, s, 0, 2048, s + 2 * k);
                    truncate_to(&r, s, 0);
                    evaluate_all(&r, s, 2048, pieces[k]);
                    const uint32_t *exact = rq_cache_tables(r.cache, s)[0];
                    for (uint32_t i = 0; i < 32; i++) /* what the rule says, and a page of slack */
                        assert_int_equal(exact[i] != RQ_NO_PAGE, i < sinks || i + recent + 1 >= 32);
                }
            rig_close(&r);
        }
}

/* Pages that no later token sees are given back, of every form, whatever the pieces. */
static void test_windows_move_on(void **state)
{
    static const uint32_t windows[] = {1, 2, 63, 64, 65, 66, 128, 200, 1000};
    for (uint32_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
        rig r = {.few_keys = false};
        rq_cache_group groups[3] = {plain(), windowed(windows[w]), coded_window(windows[w], 1)};
        rig_open(&r, groups, 3, 2, 32, 64);
        if (windows[w] < 1000) assert_true(r.pools.pages[1] < 64);
        static const uint32_t pieces[] = {1, 7, 8, 9, 64, 100, 192, 256};
        for (uint32_t k = 0; k < 8; k++)
            for (uint32_t s = 0; s < 2; s++) {
                fill(&r, s, 0, 2048, s + 2 * k);
                truncate_to(&r, s, 0);
                evaluate_all(&r, s, 2000, pieces[k]);
                const uint32_t *all = rq_cache_tables(r.cache, s)[0], *seen = rq_cache_tables(r.cache, s)[1];
                uint32_t first = (2001 - windows[w]) / 64; /* position 2000 sees so far back */
                for (uint32_t i = 0; i < 32; i++) {
                    assert_true(all[i] != RQ_NO_PAGE);
                    if (i != first - 1) assert_int_equal(seen[i] != RQ_NO_PAGE, i >= first);
                }
            }
        rig_close(&r);
    }
}

/* Where every layer has a window there is nothing to reserve, and what sequences hold is what is in use. */
static void test_windows_alone(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group group = windowed(100);
    rig_open(&r, &group, 1, 2, 16, 32);
    fill(&r, 0, 0, 1024, 1);
    fill(&r, 1, 0, 1024, 2);
    assert_true(rq_cache_reserve(r.cache, 0, 1024) && rq_cache_reserve(r.cache, 1, 1024));
    evaluate_all(&r, 0, 1000, 256);
    assert_int_equal(rq_cache_tokens_used(r.cache), 1024);
    evaluate_all(&r, 1, 10, 8);
    assert_int_equal(rq_cache_tokens_used(r.cache), 1024 + 64);
    rig_close(&r);
}

/* A prompt whose messages end at 300 and 700; then a conversation that differs from it behind 700. */
static void test_marked_ends_are_kept(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {coded(0, 2), coded(1, 1)};
    rig_open(&r, groups, 2, 2, 32, 64);
    for (uint32_t s = 0; s < 2; s++) fill(&r, s, 0, 2048, 1);
    rq_cache_mark(r.cache, 0, 300);
    rq_cache_mark(r.cache, 0, 700);
    evaluate_all(&r, 0, 2000, 256);
    assert_int_equal(advance_to(&r, 1, 700), 700);
    fill(&r, 1, 700, 1000, 2);
    evaluate_all(&r, 1, 900, 200);
    /* a little less: the slack (B(640) of the first group is one page below what 700 needs) */
    truncate_to(&r, 1, 0);
    fill(&r, 1, 640, 1000, 3);
    assert_int_equal(advance_to(&r, 1, 1500), 640);
    /* between the ends there is nothing to go on from: back to the first */
    truncate_to(&r, 1, 0);
    fill(&r, 1, 500, 1000, 4);
    rq_cache_match m = rq_cache_advance(r.cache, 1, r.ids[1], 1500);
    assert_in_range(m.n_known, 448, 500); /* a part of a page is known if its exact page is there */
    assert_int_equal(m.n_tokens, 320);    /* what 300 needs serves the end of its page, too */
    r.n[1] = m.n_tokens;
    evaluate_all(&r, 1, 1000, 256);
    rig_close(&r);
}

/* A conversation of many turns with one session: the first end (what others begin with, too) is marked again in
 * every turn, and so outlives the ends of turns that are over. */
static void test_first_end_outlives_old_turns(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group group = coded(0, 2);
    rig_open(&r, &group, 1, 2, 32, 64);
    for (uint32_t s = 0; s < 2; s++) fill(&r, s, 0, 2048, 1);
    for (uint32_t turn = 1; turn < 10; turn++) {
        rq_cache_unmark(r.cache, 0);
        rq_cache_mark(r.cache, 0, 220);
        rq_cache_mark(r.cache, 0, 200 * turn); /* the prompt's end */
        evaluate_all(&r, 0, 200 * turn + 150, 64);
    }
    fill(&r, 1, 220, 1828, 2);
    assert_int_equal(advance_to(&r, 1, 1000), 220);
    evaluate_all(&r, 1, 500, 64);
    rig_close(&r);
}

/* Save points of windows and codes: whole or not at all, the one unused for longest goes first; two sequences go on from
 * one, each its own way; and what runs is never in want of a page because of them. */
static void test_save_points(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[4] = {plain(), windowed(200), coded_window(150, 1), coded(0, 1)};
    rig_open(&r, groups, 4, 2, 24, 96);
    for (uint32_t s = 0; s < 2; s++) fill(&r, s, 0, 1536, 1);
    evaluate_all(&r, 0, 300, 64);
    uint32_t first = save_at(&r, 0, 300);
    evaluate_all(&r, 0, 640, 64);
    uint32_t second = save_at(&r, 0, 640);
    assert_true(first != RQ_NO_SAVE && second != RQ_NO_SAVE && first != second);
    assert_int_equal(save_at(&r, 0, 640), second);
    assert_int_equal(save_at(&r, 0, 700), RQ_NO_SAVE); /* not reached */
    assert_int_equal(save_at(&r, 0, 0), RQ_NO_SAVE);
    truncate_to(&r, 0, 0);
    assert_int_equal(find_save(&r, 0, 640), first);
    assert_int_equal(find_save(&r, 0, 641), second);
    /* two sequences from one */
    assert_true(resume_at(&r, 0, 300));
    assert_true(resume_at(&r, 1, 300));
    fill(&r, 0, 300, 1000, 2);
    fill(&r, 1, 300, 1000, 3);
    evaluate_all(&r, 0, 400, 64);
    evaluate_all(&r, 1, 400, 8);
    assert_int_equal(r.n_dropped, 0);
    /* used again, the first outlives the second */
    fill(&r, 0, 0, 1536, 1);
    truncate_to(&r, 0, 0);
    assert_true(resume_at(&r, 0, 300));
    assert_int_equal(save_at(&r, 0, 300), first);
    for (uint32_t turn = 0; r.n_dropped == 0; turn++) {
        assert_true(turn < 10);
        truncate_to(&r, 0, 0);
        fill(&r, 0, 0, 1536, 10 + turn);
        evaluate_all(&r, 0, 1536, 256);
        save_at(&r, 0, 1536);
    }
    assert_int_equal(r.last_dropped, 640);
    /* given up by hand; and with the tokens, when these are worth nothing */
    fill(&r, 0, 0, 1536, 1);
    if (find_save(&r, 0, 1000) == first) rq_cache_forget(r.cache, first);
    assert_int_equal(find_save(&r, 0, 1000), RQ_NO_SAVE);
    truncate_to(&r, 0, 0);
    fill(&r, 0, 0, 1536, 50);
    evaluate_all(&r, 0, 100, 64);
    save_at(&r, 0, 100);
    save_at(&r, 0, 64);
    uint32_t before = r.n_dropped;
    rq_cache_discard(r.cache, 0);
    r.n[0] = 0;
    assert_int_equal(r.n_dropped, before + 2);
    rig_close(&r);
}

/* More than there is room for: the oldest go. */
static void test_many_save_points(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group group = plain();
    rig_open(&r, &group, 1, 1, 16, 16);
    fill(&r, 0, 0, 1024, 1);
    for (uint64_t n = 1; n <= 1024; n++) {
        assert_true(evaluate(&r, 0, n));
        assert_true(rq_cache_save(r.cache, 0, n) != RQ_NO_SAVE);
        r.saves[rq_cache_find_save(r.cache, r.ids[0], n + 1)] = (saved){n, hash_of(r.ids[0], n)};
    }
    uint32_t most = rq_cache_most_saves(r.cache);
    assert_int_equal(r.n_dropped, 1024 - most);
    assert_int_equal(r.last_dropped, 1024 - most);
    assert_true(rq_cache_consistent(r.cache));
    rig_close(&r);
}

static void test_cutting_back_to_what_serves(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group group = coded(0, 1);
    rig_open(&r, &group, 1, 1, 32, 32);
    fill(&r, 0, 0, 2048, 1);
    evaluate_all(&r, 0, 2048, 8);
    /* within the slack: to the token */
    assert_int_equal(truncate_to(&r, 0, 2000), 2000);
    assert_int_equal(truncate_to(&r, 0, 1930), 1930);
    evaluate_all(&r, 0, 2040, 8);
    /* far back: the exact pages there are gone (the pool is small); the beginning needs none */
    uint64_t n = truncate_to(&r, 0, 700);
    assert_true(n < 700);
    fill(&r, 0, (uint32_t)n, 1000, 2);
    evaluate_all(&r, 0, 1000, 64);
    rig_close(&r);
}

static void test_undone_extension(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {coded(0, 1), plain()};
    rig_open(&r, groups, 2, 2, 16, 16);
    fill(&r, 0, 0, 1024, 1);
    evaluate_all(&r, 0, 100, 100);
    assert_true(rq_cache_reserve(r.cache, 0, 1024));
    for (int i = 0; i < 4; i++) {
        assert_true(rq_cache_extend(r.cache, 0, i % 2 ? 104 : 340, i % 2 == 0));
        assert_true(rq_cache_consistent(r.cache));
        assert_int_equal(rq_cache_length(r.cache, 0), 100);
    }
    evaluate_all(&r, 0, 400, 200);
    assert_true(rq_cache_extend(r.cache, 0, 600, true));
    rq_cache_discard(r.cache, 0);
    assert_true(rq_cache_consistent(r.cache));
    assert_int_equal(rq_cache_nodes(r.cache), 0);
    rig_close(&r);
}

/* ---- everything -------------------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* Texts that share beginnings: each goes on like an earlier one up to a place, then its own way; some come back to
 * the earlier one's, so that pages with the same tokens have different ones before them. */
enum { TEXTS = 12 };

static void make_texts(int32_t (*texts)[MOST_TOKENS], uint32_t n_tokens)
{
    for (uint32_t t = 0; t < TEXTS; t++) {
        uint32_t like = t > 0 ? random_below(t) : 0, up_to = t > 0 ? random_below(n_tokens) : 0;
        uint32_t back = 1 + random_below(100);
        for (uint32_t i = 0; i < n_tokens; i++)
            texts[t][i] =
                i < up_to || (t % 2 && i >= up_to + back) ? texts[like][i] : (int32_t)(t * 100000 + i);
    }
}

static void random_walk(const rq_cache_group *groups, uint32_t n_groups, uint32_t n_seqs, uint32_t max_pages,
                        uint32_t pages, uint32_t n_operations, bool few_keys)
{
    static rig r;
    r.few_keys = few_keys;
    static int32_t texts[TEXTS][MOST_TOKENS];
    rig_open(&r, groups, n_groups, n_seqs, max_pages, pages);
    uint32_t most = max_pages * 64;
    uint64_t promised[MOST_SEQS] = {0}, n_reused = 0;
    uint32_t n_failed_promises = 0, n_less = 0, n_resumed = 0;
    make_texts(texts, most);
    for (uint32_t s = 0; s < n_seqs; s++) memcpy(r.ids[s], texts[0], most * sizeof(int32_t));
    for (uint32_t i = 0; i < n_operations; i++) {
        uint32_t s = random_below(n_seqs), what = random_below(100);
        if (what < 55) {
            static const uint32_t counts[] = {1, 1, 5, 8, 9, 60, 64, 128, 200, 256};
            uint64_t end = r.n[s] + counts[random_below(10)];
            if (end > most) end = most;
            bool must = end <= promised[s];
            bool done = evaluate(&r, s, end);
            n_failed_promises += must && !done;
        } else if (what < 65) {
            uint64_t n = random_below(most + 1);
            if (rq_cache_reserve(r.cache, s, n)) promised[s] = n;
        } else if (what < 70) {
            rq_cache_unreserve(r.cache, s);
            promised[s] = 0;
        } else if (what < 80) {
            uint64_t n = random_below(4) ? random_below((uint32_t)r.n[s] + 1)
                                         : r.n[s] - random_below(64) % (r.n[s] + 1);
            uint64_t before = r.n[s];
            uint64_t got = truncate_to(&r, s, n);
            assert_true(got <= n && got <= before);
            n_less += got < n;
            promised[s] = 0;
        } else if (what < 90) { /* another text, as a new prompt: keep what is the same, then take over */
            uint32_t t = random_below(TEXTS);
            uint64_t same = 0;
            while (same < r.n[s] && texts[t][same] == r.ids[s][same]) same++;
            truncate_to(&r, s, same);
            memcpy(r.ids[s], texts[t], most * sizeof(int32_t));
            promised[s] = 0;
            uint64_t n = 1 + random_below(most);
            if (random_below(2) && rq_cache_reserve(r.cache, s, n)) promised[s] = n;
            uint64_t before = r.n[s];
            n_reused += advance_to(&r, s, n) - before;
        } else if (what < 93) {
            uint64_t before = r.n[s];
            n_reused += advance_to(&r, s, r.n[s] + random_below(most - (uint32_t)r.n[s] + 1)) - before;
        } else if (what < 94) {
            uint32_t id = save_at(&r, s, random_below((uint32_t)r.n[s] + 1));
            if (id != RQ_NO_SAVE && random_below(8) == 0) {
                rq_cache_forget(r.cache, id);
                assert_int_equal(r.saves[id].n, 0);
            }
        } else if (what < 95) { /* another text, from a save point */
            uint32_t t = random_below(TEXTS);
            uint64_t same = 0;
            while (same < r.n[s] && texts[t][same] == r.ids[s][same]) same++;
            truncate_to(&r, s, random_below(2) ? same : 0);
            promised[s] = 0;
            memcpy(r.ids[s], texts[t], most * sizeof(int32_t));
            uint32_t id = find_save(&r, s, 1 + random_below(most));
            if (id != RQ_NO_SAVE && r.saves[id].n > r.n[s]) n_resumed += resume_at(&r, s, r.saves[id].n);
        } else if (what < 97) {
            rq_cache_mark(r.cache, s, random_below(most + 1));
            if (random_below(4) == 0) rq_cache_unmark(r.cache, s);
        } else if (what < 98) { /* an extension that comes to nothing */
            uint64_t end = r.n[s] + 1 + random_below(256);
            if (end <= most) rq_cache_extend(r.cache, s, end, end - r.n[s] > 8);
        } else if (what < 99) {
            rq_cache_discard(r.cache, s);
            r.n[s] = promised[s] = 0;
        } else {
            rq_cache_resend(r.cache, s);
        }
        if (i % 8 == 0) assert_true(rq_cache_consistent(r.cache));
        if (i % 1000 == 999 && random_below(3) == 0) rq_cache_clear(r.cache);
        assert_int_equal(fake_pages_violations(r.device), 0);
    }
    assert_int_equal(n_failed_promises, 0);
    assert_true(n_reused > 1000 && r.n_copied > 20); /* all of it happened */
    bool any_loose = false, any_reserved = false;
    for (uint32_t g = 0; g < n_groups; g++) {
        any_loose |= rq_group_is_coded(&groups[g]) || groups[g].window != 0;
        any_reserved |= groups[g].window == 0;
    }
    if (n_seqs > 1) assert_true(n_resumed > 5 && r.n_dropped > 5);
    if (any_reserved && n_seqs > 1) assert_true(r.n_refused > 20);
    if (!any_reserved) assert_int_equal(r.n_refused, 0); /* every sequence has its share */
    if (any_loose && n_seqs > 1) assert_true(n_less > 0);

    rig_close(&r);
}

static void test_random_walk(void **state)
{
    rq_cache_group both[2] = {plain(), coded(0, 1)};
    rq_cache_group plains[2] = {plain(), plain()};
    rq_cache_group codeds[3] = {coded(1, 2), coded(0, 3), plain()};
    rq_cache_group one[1] = {coded(2, 1)};
    random_state = 1;
    random_walk(both, 2, 5, 12, 26, 6000, false);
    random_walk(both, 2, 5, 12, 26, 3000, true);
    random_walk(plains, 2, 5, 6, 17, 6000, false);
    random_walk(codeds, 3, 4, 20, 40, 6000, false);
    random_walk(one, 1, 6, 16, 30, 6000, false);
    random_walk(both, 2, 1, 8, 8, 3000, false);
    rq_cache_group gemma[3] = {windowed(130), coded(0, 1), plain()};
    rq_cache_group windows[3] = {windowed(64), windowed(500), coded_window(300, 2)};
    rq_cache_group all[4] = {coded_window(100, 3), coded(1, 2), windowed(65), coded_window(257, 1)};
    random_walk(gemma, 2, 5, 12, 22, 6000, false);
    random_walk(gemma, 3, 4, 20, 36, 6000, true);
    random_walk(windows, 3, 5, 16, 30, 6000, false);
    random_walk(all, 4, 4, 20, 36, 6000, false);
    random_walk(gemma, 1, 1, 16, 16, 2000, false);
}

static void test_failing_allocations(void **state)
{
    rq_cache_group groups[2] = {plain(), coded(0, 1)};
    uint32_t pages[2] = {8, 30}, coded_pages[2] = {0, 8}, scratch[2] = {0, 4};
    const rq_cache_params p = {.groups = groups,
                               .n_groups = 2,
                               .pages = pages,
                               .coded_pages = coded_pages,
                               .scratch_pages = scratch,
                               .n_seqs = 3,
                               .max_pages = 4,
                               .n_batch = 256};
    int64_t alive = rq_mem_alive();
    uint64_t n = 1;
    for (;; n++) {
        rq_cache *c = NULL;
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = rq_cache_create(&p, &c, &err);
        uint64_t created = rq_mem_count();
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            assert_true(created < n);
            rq_cache_free(c);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_null(c);
        assert_true(err.text[0] != 0);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(n > 8);
    assert_int_equal(rq_mem_alive(), alive);
}

/* After creation nothing is allocated, whatever happens. */
static void test_growing_allocates_nothing(void **state)
{
    rig r = {.few_keys = false};
    rq_cache_group groups[2] = {plain(), coded(0, 1)};
    rig_open(&r, groups, 2, 2, 8, 8);
    fill(&r, 0, 0, 512, 1);
    memcpy(r.ids[1], r.ids[0], sizeof r.ids[0]);
    uint64_t before = rq_mem_count();
    assert_true(rq_cache_reserve(r.cache, 0, 400));
    while (r.n[0] < 400) assert_true(evaluate(&r, 0, r.n[0] + 10));
    rq_cache_advance(r.cache, 1, r.ids[1], 390);
    rq_cache_truncate(r.cache, 1, 300);
    rq_cache_truncate(r.cache, 0, 0);
    rq_cache_truncate(r.cache, 1, 0);
    assert_int_equal(rq_mem_count(), before);
    r.n[0] = r.n[1] = 0;
    rig_close(&r);
}

static void test_refused_sizes(void **state)
{
    rq_cache_group groups[1] = {plain()};
    uint32_t pages[1] = {UINT32_MAX}, coded_pages[1] = {8};
    rq_cache_params p = {.groups = groups, .n_groups = 1, .pages = pages, .n_seqs = 1, .max_pages = 1};
    rq_cache *c = NULL;
    rq_error err;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_ERR_ARGUMENT);
    /* too few exact pages for what the sequences read at once, or no coded ones */
    groups[0] = coded(0, 2);
    p.n_seqs = 2;
    p.max_pages = 8;
    p.coded_pages = coded_pages;
    pages[0] = (uint32_t)rq_cache_held(groups, RQ_PAGE_EXACT, 2, 8, 256) - 1;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_ERR_ARGUMENT);
    pages[0]++;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_OK);
    rq_cache_free(c);
    p.coded_pages = NULL;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_ERR_ARGUMENT);
    /* sizes that cannot be numbered */
    rq_pool_sizes size;
    assert_int_equal(rq_cache_pool_sizes(groups, 256, 1u << 24, 0, 512, &size, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_cache_pool_sizes(groups, 1, 4096, UINT64_MAX, 512, &size, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_cache_pool_sizes(groups, 1, 32768, 0, 512, &size, &err), RQ_OK);
    assert_int_equal(size.coded, 512);
    assert_true(size.exact < 512 / 8);
    assert_int_equal(size.exact, rq_cache_held(groups, RQ_PAGE_EXACT, 1, 512, 512) + size.retained);
    /* a window: what it touches and a step, not the context */
    groups[0] = windowed(1024);
    assert_int_equal(rq_cache_pool_sizes(groups, 1, 32768, 0, 512, &size, &err), RQ_OK);
    uint32_t touched = 17; /* 1,024 positions in a row */
    assert_int_equal(size.exact, (touched + 8) + (touched + 1));
    assert_int_equal(size.coded + size.scratch, 0);
    assert_int_equal(rq_cache_pool_sizes(groups, 1, 1u << 24, 0, 512, &size, &err), RQ_OK);
    assert_int_equal(size.exact, (touched + 8) + (touched + 1));
    assert_int_equal(rq_cache_pool_sizes(groups, 3, 640, 0, 512, &size, &err), RQ_OK);
    assert_int_equal(size.exact, 30 + 3); /* never more than everything */
    groups[0] = coded_window(1024, 2);
    assert_int_equal(rq_cache_pool_sizes(groups, 1, 32768, 0, 512, &size, &err), RQ_OK);
    assert_int_equal(size.coded, (touched + 8) + (touched + 1));
    assert_true(size.exact < 20);
    /* too small a pool for a window, sinks that leave it */
    groups[0] = windowed(100);
    p.coded_pages = NULL;
    p.n_batch = 256;
    pages[0] = (uint32_t)rq_cache_held(groups, RQ_PAGE_EXACT, 2, 8, 256) - 1;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_ERR_ARGUMENT);
    pages[0]++;
    groups[0].sink_pages = 1;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_ERR_ARGUMENT);
    groups[0].sink_pages = 0;
    assert_int_equal(rq_cache_create(&p, &c, &err), RQ_OK);
    rq_cache_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grows_by_pages),
        cmocka_unit_test(test_reservation_is_a_promise),
        cmocka_unit_test(test_sharing_and_copies),
        cmocka_unit_test(test_cutting_without_a_page),
        cmocka_unit_test(test_two_sequences_make_the_same_page),
        cmocka_unit_test(test_exact_pages_are_few),
        cmocka_unit_test(test_windows_move_on),
        cmocka_unit_test(test_windows_alone),
        cmocka_unit_test(test_marked_ends_are_kept),
        cmocka_unit_test(test_first_end_outlives_old_turns),
        cmocka_unit_test(test_save_points),
        cmocka_unit_test(test_many_save_points),
        cmocka_unit_test(test_cutting_back_to_what_serves),
        cmocka_unit_test(test_undone_extension),
        cmocka_unit_test(test_random_walk),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_growing_allocates_nothing),
        cmocka_unit_test(test_refused_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
