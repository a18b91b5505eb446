/* Drafts on the whole engine, with the built-in hybrid model: the same bytes as without, whatever the temperature, the
 * depth and who else runs; one pass of the model for everything that is accepted; state that is right afterwards. */
#include "backends/base/mem.h"
#include "engine/models/model.h"
#include "tests/engine/real_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { ANSWER = 90 };

typedef struct reply {
    rq_token ids[ANSWER];
    float logprob[ANSWER];
    char text[4 * 1024];
    size_t bytes;
    uint32_t n, n_drafted, n_accepted, n_reused;
    rq_finish finish;
} reply;

static rq_model *hybrid;

static int load(void **state)
{
    hybrid = rb_load(RQVK_MODELS "/builtin-qwen35.gguf");
    return 0;
}

static int unload(void **state)
{
    rq_model_free(hybrid);
    return 0;
}

static rq_engine *engine_of(const char *draft, uint32_t depth, uint32_t n_sessions, const char *type)
{
    rq_engine_params p = {.n_ctx = 512,
                          .n_sessions = n_sessions,
                          .n_threads = 1,
                          .n_batch = 128,
                          .draft = draft,
                          .draft_depth = depth,
                          .type_k = type,
                          .type_v = type};
    return rb_engine(hybrid, &p);
}

static void ask(rq_session *s, const char *text, float temperature, uint64_t seed, uint32_t max)
{
    rq_tokens ids = {0};
    rq_request r = rq_request_default();
    rq_error err = {0};
    r.sampling.temperature = temperature;
    r.sampling.seed = seed;
    r.sampling.top_k = 40;
    r.sampling.repeat_penalty = 1.05f;
    r.sampling.repeat_last_n = 64;
    r.max_tokens = max;
    r.n_logprobs = 0;
    assert_int_equal(rq_tokenize(hybrid, text, strlen(text), RQ_PARSE_SPECIAL, &ids, &err), RQ_OK);
    if (rq_submit(s, ids.ids, ids.n, NULL, 0, &r, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_tokens_free(&ids);
}

/* Adds the next event; false when it was the last. */
static bool take_next(rq_session *s, reply *out)
{
    rq_event e;
    assert_int_equal(rq_next(s, &e, -1, NULL), RQ_OK);
    assert_true(out->bytes + e.text_bytes < sizeof out->text);
    memcpy(out->text + out->bytes, e.text, e.text_bytes);
    out->bytes += e.text_bytes;
    if (e.token >= 0) {
        assert_true(out->n < ANSWER);
        out->logprob[out->n] = e.chosen.logprob;
        out->ids[out->n++] = e.token;
    }
    if (e.finish == RQ_FINISH_NONE) return true;
    assert_true(e.n_accepted <= e.n_drafted && e.n_accepted <= e.n_generated);
    out->finish = e.finish;
    out->n_drafted = e.n_drafted;
    out->n_accepted = e.n_accepted;
    out->n_reused = e.n_reused;
    return false;
}

static void take(rq_session *s, reply *out)
{
    memset(out, 0, sizeof *out);
    while (take_next(s, out)) {
    }
}

/* Of two sessions at the same time: neither has to wait for its reader. */
static void take_both(rq_session *const s[2], reply out[2])
{
    bool more[2] = {true, true};
    memset(out, 0, 2 * sizeof *out);
    while (more[0] || more[1])
        for (uint32_t i = 0; i < 2; i++)
            if (more[i]) more[i] = take_next(s[i], &out[i]);
}

static void same(const reply *a, const reply *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof *a->logprob);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->text, b->text, a->bytes);
    assert_int_equal(a->finish, b->finish);
}

static const char *const PROMPTS[] = {
    "The old man went down to the river, and there he saw",
    "And it came to pass in those days, that the king said unto all the people of the land, Hear ye",
    "The game was released in Japan on November 18 , 2010 , and",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"};

/* Every temperature, seed and depth; the drafts are good enough to be accepted, and bad enough to be refused. */
static void test_same_bytes(void **state)
{
    static reply want[4][3], got;
    rq_engine *plain = engine_of(NULL, 0, 1, NULL);
    rq_session *s = rb_session(plain);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t t = 0; t < 3; t++) {
            ask(s, PROMPTS[i], t == 0 ? 0 : t == 1 ? 0.7f : 1.0f, 11 * i + t, 72);
            take(s, &want[i][t]);
            assert_int_equal(want[i][t].n_drafted, 0);
        }
    rq_session_free(s);
    rq_engine_free(plain);
    static const uint32_t depths[] = {1, 3, 6};
    for (uint32_t d = 0; d < 3; d++) {
        rq_engine *drafting = engine_of("mtp", depths[d], 1, NULL);
        s = rb_session(drafting);
        uint32_t drafted = 0, accepted = 0;
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t t = 0; t < 3; t++) {
                ask(s, PROMPTS[i], t == 0 ? 0 : t == 1 ? 0.7f : 1.0f, 11 * i + t, 72);
                take(s, &got);
                same(&got, &want[i][t]);
                drafted += got.n_drafted;
                accepted += got.n_accepted;
            }
        print_message("depth %u: %u of %u guesses were right\n", depths[d], accepted, drafted);
        assert_true(accepted > drafted / 20 && accepted < drafted);
        rq_session_free(s);
        rq_engine_free(drafting);
    }
}

/* What of the file's tensors is read by the layers, by what makes logits, by the block behind a step, and by a guess. */
typedef struct parts {
    double trunk, head, follow, guess;
} parts;

static parts parts_of_file(void)
{
    static const char *const kept[] = {"nextn.eh_proj.weight", "nextn.enorm.weight", "nextn.hnorm.weight",
                                       "attn_norm.weight",     "attn_k.weight",      "attn_v.weight",
                                       "attn_k_norm.weight"};
    parts p = {0};
    for (uint64_t i = 0; i < rq_gguf_n_tensors(hybrid->gguf); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(hybrid->gguf, i);
        double bytes = (double)t->nbytes;
        if (strcmp(t->name, "token_embd.weight") == 0) {
            p.head = bytes; /* the file has no other output matrix */
            p.guess += bytes;
        } else if (strncmp(t->name, "blk.4.", 6) == 0) {
            p.guess += bytes;
            for (uint32_t k = 0; k < sizeof kept / sizeof *kept; k++)
                if (strcmp(t->name + 6, kept[k]) == 0) p.follow += bytes;
        } else {
            p.trunk += bytes;
        }
    }
    return p;
}

/* The model runs once for each step, and a step gives one token more than guesses it accepts: nothing is ever computed
 * twice, which the bytes of weights that were read show as well. */
static void test_one_pass(void **state)
{
    static reply got;
    parts p = parts_of_file();
    rq_engine *e = engine_of("mtp", 3, 1, NULL);
    rq_session *s = rb_session(e);
    rq_engine_stats before, after;
    rq_engine_get_stats(e, &before);
    ask(s, PROMPTS[1], 0, 1, 80);
    take(s, &got);
    rq_engine_get_stats(e, &after);
    assert_int_equal(got.n, 80);
    assert_true(got.n_accepted >= 8);
    assert_int_equal(after.drafted_tokens - before.drafted_tokens, got.n_drafted);
    assert_int_equal(after.accepted_tokens - before.accepted_tokens, got.n_accepted);
    /* the prompt: all but its last token, then that one, which gives the first token */
    assert_int_equal(after.steps - before.steps, 2 + 79 - got.n_accepted);
    assert_int_equal(after.step_tokens - before.step_tokens,
                     after.prompt_tokens - before.prompt_tokens + 79 - got.n_accepted + got.n_drafted);
    double checks = 79 - got.n_accepted, read = (double)(after.weight_bytes - before.weight_bytes);
    double prompt = 2 * (p.trunk + p.follow) + p.head;
    double want = prompt + checks * (p.trunk + p.head + p.follow) + got.n_drafted * p.guess;
    print_message(
        "%.0f kB of weights for each token of the answer, %.0f without drafts; the file lets expect %.0f\n",
        (read - prompt) / 79e3, (p.trunk + p.head) / 1e3, (want - prompt) / 79e3);
    /* tables of rotary frequencies are no tensors of the file; a second pass behind one rejected guess of them all
     * would be more than 0.5 % */
    assert_true(got.n_drafted > got.n_accepted && p.trunk > 0.005 * want);
    assert_true(read >= want && read < 1.001 * want);
    rq_session_free(s);
    rq_engine_free(e);
}

/* A conversation in one session: what an answer left unapplied is applied by the next request; another session goes on
 * from what was kept. */
static void test_turns(void **state)
{
    static reply want, got;
    static char text[8192];
    rq_engine *plain = engine_of(NULL, 0, 2, NULL), *drafting = engine_of("mtp", 4, 2, NULL);
    rq_session *a = rb_session(plain), *b = rb_session(drafting), *c = rb_session(drafting);
    text[0] = 0;
    for (uint32_t turn = 0; turn < 4; turn++) {
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n",
                 turn % 2 ? "What comes after Monday?"
                          : "The code of Marlo is 48213. What is the code of Marlo?");
        ask(a, text, 0.6f, turn, 30);
        take(a, &want);
        ask(b, text, 0.6f, turn, 30);
        take(b, &got);
        same(&got, &want);
        if (turn > 0) assert_true(got.n_reused > 16);
        ask(c, text, 0.6f, turn, 30); /* finds what b kept */
        take(c, &got);
        same(&got, &want);
        assert_true(got.n_reused > 16);
        snprintf(text + strlen(text), sizeof text - strlen(text), "%.*s<|im_end|>\n", (int)want.bytes,
                 want.text);
    }
    rq_session_free(a);
    rq_session_free(b);
    rq_session_free(c);
    rq_engine_free(plain);
    rq_engine_free(drafting);
}

/* Several sessions share steps: fewer guesses for each, the same answers; one is cancelled in the middle, and goes on
 * afterwards with its slot as good as new. */
static void test_many(void **state)
{
    static reply want[4], got;
    rq_engine *plain = engine_of(NULL, 0, 1, "wht3");
    rq_session *s = rb_session(plain), *all[4];
    for (uint32_t i = 0; i < 4; i++) {
        ask(s, PROMPTS[i], 0.8f, i, 60);
        take(s, &want[i]);
    }
    rq_session_free(s);
    rq_engine_free(plain);
    rq_engine *e = engine_of("mtp", 6, 4, "wht3");
    uint32_t drafted = 0;
    for (uint32_t i = 0; i < 4; i++) all[i] = rb_session(e);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < 4; i++) ask(all[i], PROMPTS[(i + round) % 4], 0.8f, (i + round) % 4, 60);
        if (round == 0) {
            rq_event event;
            for (uint32_t i = 0; i < 5; i++) assert_int_equal(rq_next(all[3], &event, -1, NULL), RQ_OK);
            rq_cancel(all[3]);
        }
        for (uint32_t i = 0; i < 4; i++) {
            take(all[i], &got);
            if (got.finish == RQ_FINISH_CANCELLED) continue;
            if (round == 0 && i == 3) continue; /* the answer was shorter than it took to cancel */
            same(&got, &want[(i + round) % 4]);
            drafted += got.n_drafted;
        }
    }
    assert_true(drafted > 0);
    for (uint32_t i = 0; i < 4; i++) rq_session_free(all[i]);
    rq_engine_free(e);
}

/* To the very end of the context, over the ends of pages, with a cache that encodes them. */
static void test_context_end(void **state)
{
    static reply want, got;
    rq_engine_params p = {.n_ctx = 96, .n_threads = 1, .type_k = "wht4", .type_v = "wht3", .kv_recent = 64};
    rq_engine *plain = rb_engine(hybrid, &p);
    p.draft = "mtp";
    p.draft_depth = 5;
    rq_engine *drafting = rb_engine(hybrid, &p);
    rq_session *a = rb_session(plain), *b = rb_session(drafting);
    for (uint32_t i = 0; i < 3; i++) {
        ask(a, PROMPTS[i], 0, 0, 0);
        take(a, &want);
        ask(b, PROMPTS[i], 0, 0, 0);
        take(b, &got);
        assert_int_equal(want.finish, RQ_FINISH_LENGTH);
        same(&got, &want);
    }
    rq_session_free(a);
    rq_session_free(b);
    rq_engine_free(plain);
    rq_engine_free(drafting);
}

/* A least probability: fewer guesses, of which more are right. */
static void test_least_probability(void **state)
{
    static reply all, sure;
    rq_engine_params p = {.n_ctx = 256, .n_threads = 1, .draft = "mtp", .draft_depth = 3};
    rq_engine *e = rb_engine(hybrid, &p);
    p.draft_min_p = 0.6f;
    rq_engine *f = rb_engine(hybrid, &p);
    rq_session *a = rb_session(e), *b = rb_session(f);
    ask(a, PROMPTS[1], 0, 0, 80);
    take(a, &all);
    ask(b, PROMPTS[1], 0, 0, 80);
    take(b, &sure);
    same(&all, &sure);
    assert_true(sure.n_drafted < all.n_drafted && sure.n_drafted > 0);
    assert_true((double)sure.n_accepted / sure.n_drafted > (double)all.n_accepted / all.n_drafted);
    rq_session_free(a);
    rq_session_free(b);
    rq_engine_free(e);
    rq_engine_free(f);
}

/* Auto decides and says so, for two sessions at a time and for one; what is answered does not change. */
static void test_auto(void **state)
{
    static reply want, got[2];
    static rb_lines log;
    rq_engine_params p = {.n_ctx = 512, .n_threads = 1, .n_sessions = 2};
    rq_engine *plain = rb_engine(hybrid, &p);
    p.draft = "auto";
    p.log = rb_keep_line;
    p.log_user = &log;
    rq_engine *e = rb_engine(hybrid, &p);
    rb_said(&log, "the first answers show");
    rq_session *a = rb_session(plain), *b[2] = {rb_session(e), rb_session(e)};
    for (uint32_t i = 0; i < 12; i++) {
        uint32_t n = i < 6 ? 2 : 1;
        ask(a, PROMPTS[i % 3], 0.9f, i, 80);
        take(a, &want);
        for (uint32_t k = 0; k < n; k++) ask(b[k], PROMPTS[i % 3], 0.9f, i, 80);
        if (n == 2)
            take_both(b, got);
        else
            take(b[0], &got[0]);
        for (uint32_t k = 0; k < n; k++) same(&got[k], &want);
    }
    rq_session_free(b[0]);
    rq_session_free(b[1]);
    rq_engine_free(e);
    rb_said(&log, "drafts, 2 sessions at a time: ");
    rb_said(&log, "drafts, 1 session at a time: ");
    rb_said(&log, "times as fast as without");
    rq_session_free(a);
    rq_engine_free(plain);
}

static void test_refused(void **state)
{
    rq_model *llama = rb_load(rb_path("llama.gguf"));
    rb_refused(llama, (rq_engine_params){.draft = "mtp"}, RQ_ERR_UNSUPPORTED, "has no block that predicts");
    rb_refused(hybrid, (rq_engine_params){.draft = "maybe"}, RQ_ERR_ARGUMENT, "takes mtp, auto or off");
    rb_refused(hybrid, (rq_engine_params){.draft = "mtp", .draft_depth = 7}, RQ_ERR_ARGUMENT,
               "1 to 6 tokens");
    rb_refused(hybrid, (rq_engine_params){.draft = "mtp", .draft_min_p = 2}, RQ_ERR_ARGUMENT, "probability");
    rq_engine_params p = {.draft = "auto", .n_ctx = 64, .n_threads = 1};
    rq_engine *e = rb_engine(llama, &p); /* without a block: off */
    rq_engine_info info;
    rq_engine_describe(e, &info);
    assert_int_equal(info.draft_depth, 0);
    rq_engine_free(e);
    rq_model_free(llama);
}

static void test_memory(void **state)
{
    rq_engine_params p = {.n_ctx = 64, .n_batch = 8, .n_threads = 1, .draft = "mtp"};
    assert_true(rb_failing_allocations(hybrid, &p, 40, 60) > 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),  cmocka_unit_test(test_one_pass),
        cmocka_unit_test(test_turns),       cmocka_unit_test(test_many),
        cmocka_unit_test(test_context_end), cmocka_unit_test(test_least_probability),
        cmocka_unit_test(test_auto),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
