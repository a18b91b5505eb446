/* Answers that end in the middle of guesses that were right: by a stop string, the most tokens asked for, the model's own
 * end of turn, or because they are cancelled. Nothing behind the end comes out, what is counted and kept is as without
 * drafts, and the next turn goes on alike. Every sampler that looks back sees what it would have seen. */
#include "tests/engine/real_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 64, TOP = 5, ROOM = 512 };

/* A sequence of tokens that grows turn by turn. */
typedef struct line {
    rq_token ids[ROOM];
    size_t n;
} line;

typedef struct turn {
    rq_token ids[MOST];
    rq_token_logprob chosen[MOST], top[MOST][TOP];
    uint32_t drafted[MOST], accepted[MOST]; /* guesses so far, with those of the token's own step */
    size_t end[MOST];                       /* of the text, behind each token */
    char text[4096];
    size_t bytes, length; /* of the session, afterwards */
    uint32_t n;
    rq_event last;
} turn;

static rq_model *hybrid;
static rq_engine *plain, *drafting;

static int load(void **state)
{
    hybrid = rb_load(RQVK_MODELS "/builtin-qwen35.gguf");
    rq_engine_params p = {.n_ctx = ROOM, .n_threads = 1, .n_batch = 128};
    plain = rb_engine(hybrid, &p);
    p.draft = "mtp";
    p.draft_depth = 6;
    drafting = rb_engine(hybrid, &p);
    return 0;
}

static int unload(void **state)
{
    rq_engine_free(plain);
    rq_engine_free(drafting);
    rq_model_free(hybrid);
    return 0;
}

static void append(line *l, const char *text)
{
    rq_tokens ids = {0};
    assert_int_equal(rq_tokenize(hybrid, text, strlen(text), RQ_PARSE_SPECIAL, &ids, NULL), RQ_OK);
    assert_true(l->n + ids.n <= ROOM);
    memcpy(l->ids + l->n, ids.ids, ids.n * sizeof *ids.ids);
    l->n += ids.n;
    rq_tokens_free(&ids);
}

static void append_answer(line *l, const turn *t)
{
    assert_true(l->n + t->n <= ROOM);
    memcpy(l->ids + l->n, t->ids, t->n * sizeof *t->ids);
    l->n += t->n;
}

static rq_request greedy(uint32_t max)
{
    rq_request r = rq_request_default();
    r.sampling.temperature = 0;
    r.max_tokens = max;
    r.n_logprobs = TOP;
    return r;
}

/* Reads the request to its end; cancels it behind its `cancel`-th token unless that is 0. */
static void take(rq_session *s, uint32_t cancel, turn *t)
{
    memset(t, 0, sizeof *t);
    do {
        assert_int_equal(rq_next(s, &t->last, -1, NULL), RQ_OK);
        assert_true(t->bytes + t->last.text_bytes < sizeof t->text);
        memcpy(t->text + t->bytes, t->last.text, t->last.text_bytes);
        t->bytes += t->last.text_bytes;
        if (t->last.token < 0) continue;
        assert_true(t->n < MOST);
        assert_int_equal(t->last.finish, RQ_FINISH_NONE);
        t->ids[t->n] = t->last.token;
        t->chosen[t->n] = t->last.chosen;
        memcpy(t->top[t->n], t->last.top, t->last.n_top * sizeof *t->last.top);
        t->drafted[t->n] = t->last.n_drafted;
        t->accepted[t->n] = t->last.n_accepted;
        t->end[t->n++] = t->bytes;
        if (t->n == cancel) rq_cancel(s);
    } while (t->last.finish == RQ_FINISH_NONE);
    t->length = rq_session_length(s);
    rq_event more;
    assert_int_equal(rq_next(s, &more, 0, NULL), RQ_ERR_ARGUMENT); /* nothing comes behind the end */
}

static void ask(rq_session *s, const line *l, const rq_request *r, turn *t)
{
    rq_error err = {0};
    if (rq_submit(s, l->ids, l->n, NULL, 0, r, &err) != RQ_OK) fail_msg("%s", err.text);
    take(s, 0, t);
}

static void same(const turn *a, const turn *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->chosen, b->chosen, a->n * sizeof *a->chosen);
    assert_memory_equal(a->top, b->top, a->n * sizeof *a->top);
    assert_memory_equal(a->end, b->end, a->n * sizeof *a->end);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->text, b->text, a->bytes);
    assert_int_equal(a->last.finish, b->last.finish);
    assert_int_equal(a->last.n_prompt, b->last.n_prompt);
    assert_int_equal(a->last.n_generated, b->last.n_generated);
    assert_int_equal(a->last.n_reused, b->last.n_reused);
    assert_int_equal(a->length, b->length);
}

/* Did the answer end behind guesses that were right, in the same step? Tokens of a step have the same counts, and so have
 * those of steps without guesses behind it: then there are more of them than guesses that were right, and one. */
static bool ended_inside(const turn *t)
{
    uint32_t n = t->last.finish == RQ_FINISH_EOS, i = t->n;
    for (; i > 0 && t->drafted[i - 1] == t->last.n_drafted; i--) n++;
    uint32_t right = t->last.n_accepted - (i > 0 ? t->accepted[i - 1] : 0);
    assert_true(n > right);
    return right > 0 && n == right + 1;
}

/* The same in a session without drafts and in one with them, then another turn. Returns whether the first ended inside a
 * draft. */
static bool two_turns(const line *start, const rq_request *r, turn *first)
{
    static turn got, want;
    line l = *start;
    rq_session *a = rb_session(plain), *b = rb_session(drafting);
    ask(a, &l, r, first);
    ask(b, &l, r, &got);
    same(&got, first);
    bool inside = ended_inside(&got);
    assert_true(got.last.n_accepted <= got.last.n_drafted && got.last.n_accepted < got.last.n_generated);
    append_answer(&l, &got);
    append(&l, "<|im_end|>\n<|im_start|>user\nWhat comes after Monday?<|im_end|>\n<|im_start|>assistant\n");
    rq_request next = greedy(10);
    ask(a, &l, &next, &want);
    ask(b, &l, &next, &got);
    same(&got, &want);
    assert_true(got.last.n_reused + 1 >= start->n + first->n); /* all that was computed */
    rq_session_free(a);
    rq_session_free(b);
    return inside;
}

static line opening(const char *text)
{
    line l = {.n = 0};
    append(&l, text);
    return l;
}

static const char KING[] =
    "And it came to pass in those days, that the king said unto all the people of the land, Hear ye";

/* Behind every token of an answer: as many tokens as were asked for. */
static void test_most_tokens(void **state)
{
    static turn got;
    line l = opening(KING);
    uint32_t inside = 0;
    for (uint32_t max = 1; max <= 24; max++) {
        rq_request r = greedy(max);
        inside += two_turns(&l, &r, &got);
        assert_int_equal(got.n, max);
        assert_int_equal(got.last.finish, RQ_FINISH_LENGTH);
    }
    print_message("%u of 24 answers ended behind guesses that were right\n", inside);
    assert_true(inside >= 5);
}

/* The text's shortest end that is not found earlier in it: an answer that stops there has come that far. */
static bool unique_end(const turn *whole, uint32_t token, char *stop)
{
    size_t end = whole->end[token];
    char before[sizeof whole->text];
    memcpy(before, whole->text, end);
    before[end] = 0;
    for (size_t n = 1; n <= end && n < 64; n++) {
        memcpy(stop, before + end - n, n);
        stop[n] = 0;
        if (strlen(stop) == n && strstr(before, stop) == before + end - n) return true;
    }
    return false;
}

/* Behind every token: a stop string that ends there. */
static void test_stop_strings(void **state)
{
    static turn whole, got;
    line l = opening(KING);
    rq_request r = greedy(40);
    rq_session *s = rb_session(drafting);
    ask(s, &l, &r, &whole);
    rq_session_free(s);
    uint32_t inside = 0, middle = 0, n = 0;
    for (uint32_t i = 0; i + 8 < whole.n; i++) {
        char stop[64];
        if (!unique_end(&whole, i, stop)) continue;
        const char *stops[] = {"never said", stop};
        r = greedy(40);
        r.stop = stops;
        r.n_stop = 2;
        inside += two_turns(&l, &r, &got);
        assert_int_equal(got.last.finish, RQ_FINISH_STOP);
        assert_int_equal(got.n, i + 1);
        assert_int_equal(got.bytes, whole.end[i] - strlen(stop));
        assert_memory_equal(got.text, whole.text, got.bytes);
        middle += whole.drafted[i] == whole.drafted[i + 1]; /* the next token was computed, and right */
        n++;
    }
    print_message("%u stops: %u behind guesses that were right, %u before some that were\n", n, inside,
                  middle);
    assert_true(n >= 16 && inside >= 5 && middle >= 5);
}

/* The model's own end, made likely enough to come anywhere. */
static void test_end_of_turn(void **state)
{
    static turn got;
    line l = opening("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n");
    rq_tokens end = {0};
    assert_int_equal(rq_tokenize(hybrid, "<|im_end|>", 10, RQ_PARSE_SPECIAL, &end, NULL), RQ_OK);
    assert_int_equal(end.n, 1);
    uint32_t inside = 0, ended = 0;
    for (uint32_t i = 0; i < 24; i++) {
        rq_logit_bias bias = {end.ids[0], i < 2 ? 0 : i % 3 == 2 ? 10 : 5};
        rq_request r = greedy(48);
        if (i > 0) r.sampling.temperature = 0.9f;
        r.sampling.seed = i;
        r.sampling.bias = &bias;
        r.sampling.n_bias = 1;
        line start = i % 3 == 2 ? opening(KING) : l;
        bool in_check = two_turns(&start, &r, &got);
        if (got.last.finish != RQ_FINISH_EOS) continue;
        assert_int_equal(got.last.n_generated, got.n + 1);
        ended++;
        inside += in_check;
    }
    print_message("%u answers ended by themselves, %u of them behind guesses that were right\n", ended,
                  inside);
    assert_true(ended >= 12 && inside >= 3);
    rq_tokens_free(&end);
}

/* Everything a request may ask of the sampler, with log-probabilities. */
static void test_samplers(void **state)
{
    static turn got;
    rq_logit_bias bias[] = {{300, -INFINITY}, {46, 2.5f}, {13, -3}};
    const rq_sampling base = rq_sampling_default();
    rq_sampling all[8];
    for (uint32_t i = 0; i < 8; i++) {
        all[i] = base;
        all[i].seed = 1000 + i;
    }
    all[0].top_k = 0, all[0].top_p = 0.8f, all[0].temperature = 1.2f;
    all[1].top_k = 0, all[1].top_p = 1, all[1].min_p = 0.1f, all[1].temperature = 1.5f;
    all[2].repeat_penalty = 1.4f, all[2].repeat_last_n = 16, all[2].temperature = 0;
    all[3].repeat_penalty = 1.2f, all[3].repeat_last_n = -1;
    all[4].presence_penalty = 0.8f, all[4].frequency_penalty = 0.6f, all[4].temperature = 0;
    all[5].presence_penalty = 1.5f, all[5].frequency_penalty = -0.5f;
    all[6].bias = bias, all[6].n_bias = 3;
    all[7] = (rq_sampling){.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = UINT64_MAX};
    line l = opening(KING);
    rq_engine_stats before, after;
    rq_engine_get_stats(drafting, &before);
    for (uint32_t i = 0; i < 16; i++) {
        rq_request r = greedy(40);
        r.sampling = all[i % 8];
        r.sampling.seed += i;
        r.ignore_eos = i >= 8;
        two_turns(&l, &r, &got);
    }
    rq_engine_get_stats(drafting, &after);
    assert_true(after.accepted_tokens - before.accepted_tokens > 16 * 5);
}

/* Cancelled behind every token: what was delivered is what the session goes on from. */
static void test_cancelled(void **state)
{
    static turn cut, want, got;
    uint32_t cancelled = 0;
    for (uint32_t k = 1; k <= 16; k++) {
        line l = opening(KING);
        rq_session *a = rb_session(plain), *b = rb_session(drafting);
        rq_request r = greedy(MOST);
        assert_int_equal(rq_submit(b, l.ids, l.n, NULL, 0, &r, NULL), RQ_OK);
        take(b, k, &cut);
        cancelled += cut.last.finish == RQ_FINISH_CANCELLED;
        r = greedy(cut.n);
        ask(a, &l, &r, &want);
        assert_int_equal(want.n, cut.n);
        assert_memory_equal(want.ids, cut.ids, cut.n * sizeof *cut.ids);
        assert_int_equal(want.length, cut.length);
        assert_int_equal(want.last.n_generated, cut.last.n_generated);
        append_answer(&l, &cut);
        r = greedy(20);
        ask(a, &l, &r, &want);
        ask(b, &l, &r, &got);
        same(&got, &want);
        rq_session_free(a);
        rq_session_free(b);
    }
    assert_true(cancelled > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_most_tokens), cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_end_of_turn), cmocka_unit_test(test_samplers),
        cmocka_unit_test(test_cancelled),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
