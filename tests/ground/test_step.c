/* The step buffer: work lists cover what they must exactly once, splits depend on positions only. */
#include "backends/base/mem.h"
#include "backends/step.h"
#include "tests/ground/synth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_SEQS = 40, MAX_PAGES = 64 };

typedef struct fixture {
    rq_cache_group groups[3];
    rq_step_caps caps;
    rq_step step;
    uint32_t *words;
    uint32_t pages[3][MAX_SEQS][MAX_PAGES];
    const uint32_t *table[MAX_SEQS][3];
} fixture;

static fixture *open_fixture(uint32_t max_tokens)
{
    fixture *f = rq_calloc(1, sizeof *f);
    f->groups[1].window = 100;
    f->groups[2].window = 1;
    f->caps =
        (rq_step_caps){.max_tokens = max_tokens, .n_groups = 3, .n_seqs = MAX_SEQS, .max_pages = MAX_PAGES};
    rq_step_caps_complete(&f->caps);
    f->words = rq_calloc(rq_step_words(&f->caps) + 1, sizeof(uint32_t));
    f->words[rq_step_words(&f->caps)] = 0xabad1dea; /* nothing is written behind the block */
    rq_step_init(&f->step, &f->caps, f->groups, f->words);
    for (uint32_t g = 0; g < 3; g++)
        for (uint32_t s = 0; s < MAX_SEQS; s++) {
            for (uint32_t p = 0; p < MAX_PAGES; p++) f->pages[g][s][p] = (g * MAX_SEQS + s) * MAX_PAGES + p;
            f->table[s][g] = f->pages[g][s];
        }
    return f;
}

static void close_fixture(fixture *f)
{
    assert_int_equal(f->words[rq_step_words(&f->caps)], 0xabad1dea);
    rq_free(f->words);
    rq_free(f);
}

static bool sees(uint32_t window, uint32_t p, uint32_t j)
{
    return j <= p && (window == 0 || p - j < window);
}

static void check_tokens(const fixture *f, uint32_t bucket)
{
    const rq_step_header *h = f->step.header;
    const int32_t *run = rq_step_at(f->words, h->token_run);
    const uint32_t *pos = rq_step_at(f->words, h->token_pos);
    const rq_run *runs = rq_step_at(f->words, h->runs);
    uint32_t t = 0;
    for (uint32_t r = 0; r < h->n_runs; r++) {
        assert_int_equal(runs[r].first, t);
        assert_int_equal(runs[r].kv_len, runs[r].start + runs[r].count);
        for (uint32_t i = 0; i < runs[r].count; i++, t++) {
            assert_int_equal(run[t], r);
            assert_int_equal(pos[t], runs[r].start + i);
            for (uint32_t g = 0; g < 3; g++) {
                const uint32_t *slot = rq_step_at(f->words, h->token_slot[g]);
                assert_int_equal(slot[t], f->pages[g][runs[r].seq][pos[t] / 64] * 64 + pos[t] % 64);
            }
        }
    }
    assert_int_equal(t, h->n_tokens);
    assert_true(bucket >= h->n_tokens && (bucket == 1 || bucket / 2 < h->n_tokens));
    for (; t < bucket; t++) assert_int_equal(run[t], -1);
}

/* Every (query, page it sees) lies in exactly one item, partial slots are used once, items are in order. */
static void check_work(const fixture *f, uint32_t g, uint32_t bucket)
{
    const rq_step_header *h = f->step.header;
    const rq_work *work = rq_step_at(f->words, h->work[g]);
    const rq_run *runs = rq_step_at(f->words, h->runs);
    const uint32_t *pos = rq_step_at(f->words, h->token_pos);
    uint8_t *covered = rq_calloc((size_t)bucket * MAX_PAGES, 1);
    uint8_t *partials = rq_calloc(f->caps.max_partials + 1, 1);
    assert_true(h->n_work[g] <= f->caps.max_work);
    for (uint32_t w = 0; w < h->n_work[g]; w++) {
        const rq_work *k = &work[w];
        const rq_run *r = &runs[k->run];
        assert_true(k->run < h->n_runs && k->count > 0 && k->page_first < k->page_end);
        assert_true(k->first >= r->first && k->first + k->count <= r->first + r->count);
        assert_true(k->count <= RQ_TILE_TOKENS);
        assert_int_equal(pos[k->first] / RQ_TILE_TOKENS, pos[k->first + k->count - 1] / RQ_TILE_TOKENS);
        assert_true(k->n_splits == 1 || bucket <= 8);
        if (k->n_splits > 1) {
            /* cut at absolute positions, consecutive, ascending */
            assert_int_equal(k->page_first / RQ_SPLIT_PAGES, (k->page_end - 1) / RQ_SPLIT_PAGES);
            if (k->split) {
                assert_int_equal(work[w - 1].page_end, k->page_first);
                assert_int_equal(work[w - 1].split + 1, k->split);
                assert_int_equal(work[w - 1].first, k->first);
            }
            if (k->split + 1 < k->n_splits) assert_int_equal(work[w + 1].split, k->split + 1);
            for (uint32_t i = 0; i < k->count; i++) {
                assert_true(k->partial + i < f->caps.max_partials);
                assert_int_equal(partials[k->partial + i], 0);
                partials[k->partial + i] = 1;
            }
        }
        for (uint32_t i = 0; i < k->count; i++)
            for (uint32_t p = k->page_first; p < k->page_end; p++) covered[(k->first + i) * MAX_PAGES + p]++;
    }
    for (uint32_t t = 0; t < h->n_tokens; t++)
        for (uint32_t p = 0; p < MAX_PAGES; p++) {
            bool visible = false;
            for (uint32_t j = p * 64; j < p * 64 + 64; j++) visible |= sees(f->groups[g].window, pos[t], j);
            assert_true(covered[t * MAX_PAGES + p] <= 1);
            if (visible) assert_int_equal(covered[t * MAX_PAGES + p], 1);
        }
    rq_free(covered);
    rq_free(partials);
}

static void fill(fixture *f, uint32_t seq, uint32_t count, uint32_t start, bool must_fit)
{
    int32_t ids[RQ_MAX_BUCKET];
    for (uint32_t i = 0; i < count; i++) ids[i] = (int32_t)(start + i);
    int32_t at = rq_step_add_run(&f->step, seq, ids, count, start, f->table[seq]);
    if (must_fit) assert_true(at >= 0);
}

static void random_steps(void **state)
{
    synth_rng rng = {7};
    const uint32_t sizes[] = {1, 2, 8, 64, 256, 2048};
    for (uint32_t s = 0; s < 6; s++) {
        fixture *f = open_fixture(sizes[s]);
        for (uint32_t trial = 0; trial < (sizes[s] > 64 ? 20 : 150); trial++) {
            rq_step_reset(&f->step);
            uint32_t budget = 1 + synth_below(&rng, sizes[s]), used = 0;
            for (uint32_t seq = 0; seq < MAX_SEQS && used < budget; seq++) {
                uint32_t kind = synth_below(&rng, 3), left = budget - used;
                uint32_t count = kind == 0   ? 1
                                 : kind == 1 ? 1 + synth_below(&rng, 5)
                                             : 1 + synth_below(&rng, 900);
                if (count > left) count = left;
                fill(f, seq, count, synth_below(&rng, MAX_PAGES * 64 - count + 1), true);
                used += count;
            }
            uint32_t bucket = rq_step_finish(&f->step);
            check_tokens(f, bucket);
            for (uint32_t g = 0; g < 3; g++) check_work(f, g, bucket);
        }
        close_fixture(f);
    }
}

/* As many tokens, runs and splits as the capacities allow: nothing may be left out. */
static void fullest_steps(void **state)
{
    fixture *f = open_fixture(8);
    for (uint32_t seq = 0; seq < 8; seq++) fill(f, seq, 1, MAX_PAGES * 64 - 1, true);
    assert_int_equal(rq_step_finish(&f->step), 8);
    check_work(f, 0, 8);
    assert_int_equal(f->step.header->n_work[0], 8 * MAX_PAGES / RQ_SPLIT_PAGES);
    close_fixture(f);

    f = open_fixture(2048); /* short runs across a tile's edge make the most tiles */
    for (uint32_t i = 0; i < 36; i++) fill(f, i, 2, 63 + 64 * (i % 9), true);
    fill(f, 36, 1974, 1, true);
    fill(f, 37, 2, 63, true);
    fill(f, 38, 1, 0, false);
    uint32_t bucket = rq_step_finish(&f->step);
    check_tokens(f, bucket);
    for (uint32_t g = 0; g < 3; g++) check_work(f, g, bucket);
    close_fixture(f);
}

/* The splits of a query with others beside it, before and behind, are those it has alone. */
static void splits_depend_on_position_only(void **state)
{
    synth_rng rng = {11};
    for (uint32_t trial = 0; trial < 200; trial++) {
        fixture *alone = open_fixture(8), *beside = open_fixture(8);
        uint32_t p = synth_below(&rng, MAX_PAGES * 64 - 8), n = 1 + synth_below(&rng, 3);
        fill(alone, 0, n, p, true);
        fill(beside, 1, 1 + synth_below(&rng, 3), synth_below(&rng, 3000), true);
        fill(beside, 0, n, p, true);
        fill(beside, 2, 1, synth_below(&rng, 3000), true);
        rq_step_finish(&alone->step);
        rq_step_finish(&beside->step);
        for (uint32_t g = 0; g < 3; g++) {
            const rq_work *a = rq_step_at(alone->words, alone->step.header->work[g]);
            const rq_work *b = rq_step_at(beside->words, beside->step.header->work[g]);
            uint32_t i = 0;
            for (uint32_t w = 0; w < beside->step.header->n_work[g]; w++) {
                if (b[w].run != 1) continue;
                assert_true(i < alone->step.header->n_work[g]);
                assert_int_equal(a[i].page_first, b[w].page_first);
                assert_int_equal(a[i].page_end, b[w].page_end);
                assert_int_equal(a[i].n_splits, b[w].n_splits);
                assert_int_equal(a[i].count, b[w].count);
                i++;
            }
            assert_int_equal(i, alone->step.header->n_work[g]);
        }
        close_fixture(alone);
        close_fixture(beside);
    }
}

static void refusals(void **state)
{
    fixture *f = open_fixture(4);
    const int32_t ids[8] = {0};
    const uint32_t *const *table = f->table[0];
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 0, 0, table), -1);
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 5, 0, table), -1);
    assert_int_equal(rq_step_add_run(&f->step, MAX_SEQS, ids, 1, 0, table), -1);
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 2, MAX_PAGES * 64 - 1, table), -1);
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 1, UINT32_MAX, table), -1);
    f->pages[1][0][1] = RQ_NO_PAGE;
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 2, 63, table), -1);
    assert_int_equal(f->step.header->n_tokens, 0);
    assert_int_equal(rq_step_add_run(&f->step, 0, ids, 1, 63, table), 0);
    assert_int_equal(rq_step_add_run(&f->step, 1, ids, 2, 0, f->table[1]), 1);
    assert_int_equal(rq_step_add_run(&f->step, 2, ids, 2, 0, f->table[2]), -1);
    assert_false(rq_step_add_row(&f->step, 3, 0));
    assert_false(rq_step_add_row(&f->step, 0, MAX_SEQS));
    for (uint32_t i = 0; i < RQ_HEAD_ROWS; i++) assert_true(rq_step_add_row(&f->step, i % 3, 0));
    assert_false(rq_step_add_row(&f->step, 0, 0));
    assert_false(rq_step_add_edit(&f->step, 3, RQ_PAGE_EXACT, 0, 0, 0));
    assert_false(rq_step_add_edit(&f->step, 0, RQ_PAGE_EXACT, MAX_SEQS, 0, 0));
    assert_false(rq_step_add_edit(&f->step, 0, RQ_PAGE_EXACT, 0, MAX_PAGES, 0));
    for (uint32_t i = 0; i < f->caps.max_edits; i++)
        assert_true(rq_step_add_edit(&f->step, 0, RQ_PAGE_EXACT, 0, 0, i));
    assert_false(rq_step_add_edit(&f->step, 0, RQ_PAGE_EXACT, 0, 0, 0));
    assert_true(f->caps.max_edits >= 3 * MAX_PAGES);
    assert_int_equal(rq_step_finish(&f->step), 4);
    close_fixture(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_steps),
        cmocka_unit_test(fullest_steps),
        cmocka_unit_test(splits_depend_on_position_only),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
