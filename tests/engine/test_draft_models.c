/* Drafts of small random models, whose guesses are right by chance: each of many seeds gives the same bytes with drafts and
 * without, so whatever is drawn has the same distribution. A dense model, a mixture, and a file with several blocks. */
#include "engine/models/model.h"
#include "tests/engine/real_bench.h"
#include "tools/synth/file.h"
#include "tools/synth/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PROMPT = 12, MOST = 14, MOST_VOCAB = 4096 };

typedef struct counts {
    uint32_t n_kinds; /* different tokens at the end of the answers */
    rq_engine_stats stats;
} counts;

static counts draw(const rq_model *model, uint32_t depth, uint32_t n_seeds)
{
    static rb_answer want, got;
    static uint32_t last[MOST_VOCAB];
    uint32_t n_vocab = model->hp.n_vocab;
    rq_engine_params p = {.n_ctx = 64, .n_threads = 1, .n_batch = 16};
    rq_engine *plain = rb_engine(model, &p);
    p.draft = "mtp";
    p.draft_depth = depth;
    rq_engine *drafting = rb_engine(model, &p);
    rq_session *a = rb_session(plain), *b = rb_session(drafting);
    counts c = {0};
    assert_true(n_vocab <= MOST_VOCAB);
    memset(last, 0, sizeof last);
    for (uint32_t seed = 0; seed < n_seeds; seed++) {
        rq_token ids[PROMPT];
        rq_request r = rq_request_default();
        rb_tokens(ids, PROMPT, seed % 4, n_vocab);
        r.max_tokens = MOST;
        r.sampling = (rq_sampling){.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = seed};
        r.ignore_eos = true;
        r.n_logprobs = RQ_MAX_LOGPROBS;
        assert_int_equal(rq_submit(a, ids, PROMPT, NULL, 0, &r, NULL), RQ_OK);
        assert_int_equal(rq_submit(b, ids, PROMPT, NULL, 0, &r, NULL), RQ_OK);
        rb_collect(a, &want);
        rb_collect(b, &got);
        assert_int_equal(got.n, MOST);
        rb_same_answer(&got, &want);
        /* all alike where weights are holes: nothing could go wrong */
        const rq_token_logprob *top = want.top[MOST - 1];
        assert_true(top[0].logprob > top[RQ_MAX_LOGPROBS - 1].logprob);
        c.n_kinds += last[got.ids[MOST - 1]]++ == 0;
    }
    rq_engine_get_stats(drafting, &c.stats);
    print_message("%u of %u tokens end %u answers, %u of %u guesses were right\n", c.n_kinds, n_vocab,
                  n_seeds, (uint32_t)c.stats.accepted_tokens, (uint32_t)c.stats.drafted_tokens);
    rq_session_free(a);
    rq_session_free(b);
    rq_engine_free(plain);
    rq_engine_free(drafting);
    return c;
}

static void test_seeds(void **state)
{
    rq_model *m = rb_load(RQVK_TEST_DATA "/oracle-hf/hf-qwen35.gguf");
    counts c = draw(m, 3, 200);
    assert_true(c.n_kinds > 16 && c.stats.accepted_tokens > 20);
    rq_model_free(m);
}

static rq_model *make(const char *preset, uint32_t n_mtp)
{
    const char *base = getenv("TMPDIR");
    char path[300];
    snprintf(path, sizeof path, "%.200s/rqvk-draft-XXXXXX", base != NULL ? base : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    synth_mixture f16;
    rq_error err = {0};
    assert_true(synth_mixture_find("f16", false, &f16));
    synth_preset shape = *synth_preset_find(preset);
    shape.n_mtp = n_mtp;
    if (synth_write(path, &shape, &f16, 1, false, NULL, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_model *model = rb_load(path);
    unlink(path);
    assert_int_equal(model->hp.n_mtp, n_mtp);
    return model;
}

static void test_mixture(void **state)
{
    rq_model *m = make("tiny-qwen35moe", 1);
    assert_true(m->hp.n_expert > 1);
    counts c = draw(m, 4, 12);
    assert_true(c.stats.drafted_tokens > 100);
    rq_model_free(m);
}

/* Of several blocks the first one guesses, at any depth; the others take no cache. */
static void test_several_blocks(void **state)
{
    rq_model *one = make("tiny-qwen35", 1), *two = make("tiny-qwen35", 2);
    counts a = draw(one, 4, 12), b = draw(two, 4, 12);
    assert_true(b.stats.drafted_tokens > 100);
    rq_engine_params p = {.n_ctx = 64, .n_threads = 1, .n_batch = 16, .draft = "mtp", .draft_depth = 4};
    rq_engine_info info[2];
    const rq_model *models[2] = {one, two};
    for (uint32_t i = 0; i < 2; i++) {
        rq_engine *e = rb_engine(models[i], &p);
        rq_engine_describe(e, &info[i]);
        rq_engine_free(e);
    }
    assert_int_equal(info[0].cache_bytes, info[1].cache_bytes);
    assert_int_equal(a.stats.weight_bytes / a.stats.steps, b.stats.weight_bytes / b.stats.steps);
    rq_model_free(one);
    rq_model_free(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds), cmocka_unit_test(test_mixture),
                                       cmocka_unit_test(test_several_blocks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
