/* How often the MTP block of the built-in hybrid model guesses what the model chooses, over the held-out book: the rate
 * that the training script's own evaluation finds in the same windows.
 *
 *   test_engine_draft_rate [TEXT N RATE]    over the first N tokens of another text, which must come to RATE percent */
#include "backends/base/file.h"
#include "backends/base/mem.h"
#include "engine/place/decide.h"
#include "tests/engine/real_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* As the evaluation does it: windows of 512 tokens that begin without context; 16 of those of the chapters in
 * tests/data/text, with the lines of a paragraph joined. tools/train/draft_golden.py --rate, PyTorch 2.13.0, of the same
 * file: 59.4 %; over all windows of the whole book evaluate.py found 57.3 % (docs/builtin-models.md). */
enum { WINDOW = 512, AT_ONCE = 8, ROUNDS = 2, PAGES = WINDOW / 64 };

static const double WITHIN = 2.0;

/* What is asked for: windows evenly spread over the text, or all of its first tokens, in full rounds. */
static const char *text_path = RQVK_TEST_DATA "/text/little-colonels-hero.txt";
static size_t first_tokens;
static double evaluated = 59.4;

typedef struct rig {
    rq_decision d;
    rq_executor *ex;
    uint32_t pages[AT_ONCE][RQ_MAX_GROUPS][PAGES];
    const uint32_t *tables[AT_ONCE][RQ_MAX_GROUPS];
    uint32_t n_vocab;
    uint32_t same, n;
} rig;

static uint32_t best_of(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* The token at position p of each window: what the block guesses behind it, then what the model chooses. */
static void position(rig *r, const rq_token *const *windows, uint32_t p, bool begin)
{
    rq_error err = {0};
    int32_t after[AT_ONCE], guess[AT_ONCE];
    rq_step *step;
    if (p > 0) {
        step = rq_executor_draft_begin(r->ex);
        for (uint32_t s = 0; s < AT_ONCE; s++) {
            after[s] = -1;
            assert_int_equal(rq_step_add_run(step, s, windows[s] + p, 1, p, r->tables[s]), s);
        }
        if (rq_executor_draft(r->ex, step, after, guess, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    }
    step = rq_executor_begin(r->ex, &err);
    assert_non_null(step);
    for (uint32_t s = 0; s < AT_ONCE; s++) {
        uint32_t page =
            p == 0 ? 0 : p / 64 + 1; /* a step's list of edits is short: well before it is needed */
        for (uint32_t g = 0; g < r->d.place.n_groups && begin && (p == 0 || p % 64 == 32) && page < PAGES;
             g++)
            assert_true(rq_step_add_edit(step, g, RQ_PAGE_EXACT, s, page, r->pages[s][g][page]));
        assert_int_equal(rq_step_add_run(step, s, windows[s] + p, 1, p, r->tables[s]), s);
        assert_true(rq_step_add_row(step, s, s));
    }
    const float *logits = NULL;
    if (rq_executor_submit(r->ex, step, &err) != RQ_OK) fail_msg("%s", err.text);
    if (rq_executor_wait(r->ex, step, &logits, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t s = 0; s < AT_ONCE; s++) {
        if (rq_executor_last(r->ex, s, s, &err) != RQ_OK) fail_msg("%s", err.text);
        if (p == 0) continue;
        r->n++;
        r->same += guess[s] == (int32_t)best_of(logits + (size_t)s * r->n_vocab, r->n_vocab);
    }
}

/* A line's end between two characters that are neither line ends nor, behind it, a space: a space. */
static void join_lines(char *to, const char *from, size_t n)
{
    memcpy(to, from, n);
    for (size_t i = 1; i + 1 < n; i++)
        if (from[i] == '\n' && from[i - 1] != '\n' && from[i + 1] != '\n' && from[i + 1] != ' ') to[i] = ' ';
}

static void test_rate(void **state)
{
    static rig r;
    rq_error err = {0};
    rq_map map = {0};
    rq_tokens text = {0};
    rq_model *model = rb_load(RQVK_MODELS "/builtin-qwen35.gguf");
    if (rq_map_open(text_path, &map, &err) != RQ_OK) fail_msg("%s", err.text);
    char *flat = rq_malloc((size_t)map.bytes);
    assert_non_null(flat);
    join_lines(flat, (const char *)map.data, (size_t)map.bytes);
    assert_int_equal(rq_tokenize(model, flat, (size_t)map.bytes, 0, &text, &err), RQ_OK);
    rq_free(flat);
    rq_map_close(&map);
    const rq_engine_params p = {
        .n_ctx = WINDOW, .n_sessions = AT_ONCE, .n_batch = 8, .n_threads = 1, .draft = "mtp"};
    if (rq_decide(model, &p, false, &r.d, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_executor_params x = rq_place_executor(&r.d.place, &r.d.devices, &r.d.kv, &r.d.pools, &r.d.numbers);
    if (rq_executor_create(&x, &r.ex, &err) != RQ_OK) fail_msg("%s", err.text);
    r.n_vocab = model->hp.n_vocab;
    for (uint32_t s = 0; s < AT_ONCE; s++)
        for (uint32_t g = 0; g < RQ_MAX_GROUPS; g++) {
            for (uint32_t i = 0; i < PAGES; i++) r.pages[s][g][i] = s * PAGES + i;
            r.tables[s][g] = r.pages[s][g];
        }
    if (first_tokens != 0 && first_tokens < text.n) text.n = first_tokens;
    size_t n_windows = text.n / WINDOW, rounds = first_tokens != 0 ? n_windows / AT_ONCE : ROUNDS;
    assert_true(rounds > 0 && n_windows >= rounds * AT_ONCE);
    for (size_t round = 0; round < rounds; round++) {
        const rq_token *windows[AT_ONCE];
        for (uint32_t s = 0; s < AT_ONCE; s++)
            windows[s] = text.ids + (round * AT_ONCE + s) * n_windows / (rounds * AT_ONCE) * WINDOW;
        for (uint32_t i = 0; i < WINDOW; i++) position(&r, windows, i, round == 0);
    }
    double share = 100.0 * r.same / r.n;
    print_message("%u of %u guesses are the model's choice: %.1f %%\n", r.same, r.n, share);
    assert_true(fabs(share - evaluated) < WITHIN);
    rq_executor_free(r.ex);
    rq_decision_free(&r.d);
    rq_tokens_free(&text);
    rq_model_free(model);
}

int main(int argc, char **argv)
{
    if (argc == 4) {
        text_path = argv[1];
        first_tokens = (size_t)strtoull(argv[2], NULL, 10);
        evaluated = strtod(argv[3], NULL);
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rate)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
