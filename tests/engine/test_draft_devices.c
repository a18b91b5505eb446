/* Drafts on any backend: the same bytes as without them there.
 *
 *   test_engine_draft_devices [BACKEND]     cpu, simt, vulkan or cuda */
#include "tests/engine/real_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 32, ANSWER = 24, NEXT = 8, ROOM = 192 };

typedef struct line {
    rq_token ids[ROOM];
    size_t n;
} line;

typedef struct reply {
    rq_token ids[MOST];
    float logprob[MOST];
    uint32_t n;
    rq_event last;
} reply;

static const char *backend;
static rq_model *hybrid;

static rq_engine *engine_of(uint32_t depth, uint32_t n_sessions, const char *type)
{
    const rq_engine_params p = {.backend = backend,
                                .n_ctx = 128,
                                .n_sessions = n_sessions,
                                .n_threads = 2,
                                .n_batch = 32,
                                .type_k = type,
                                .type_v = type,
                                .draft = depth ? "mtp" : "off",
                                .draft_depth = depth};
    return rb_engine(hybrid, &p);
}

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

static void append(line *l, const char *text)
{
    rq_tokens ids = {0};
    assert_int_equal(rq_tokenize(hybrid, text, strlen(text), RQ_PARSE_SPECIAL, &ids, NULL), RQ_OK);
    assert_true(l->n + ids.n <= ROOM);
    memcpy(l->ids + l->n, ids.ids, ids.n * sizeof *ids.ids);
    l->n += ids.n;
    rq_tokens_free(&ids);
}

static void ask(rq_session *s, const line *l, float temperature, uint32_t max)
{
    rq_request r = rq_request_default();
    rq_error err = {0};
    r.sampling.temperature = temperature;
    r.sampling.seed = 5;
    r.max_tokens = max;
    r.n_logprobs = 0;
    if (rq_submit(s, l->ids, l->n, NULL, 0, &r, &err) != RQ_OK) fail_msg("%s", err.text);
}

static void take(rq_session *s, reply *out)
{
    memset(out, 0, sizeof *out);
    do {
        assert_int_equal(rq_next(s, &out->last, -1, NULL), RQ_OK);
        if (out->last.finish == RQ_FINISH_ERROR) fail_msg("%s", out->last.error.text);
        if (out->last.token < 0) continue;
        assert_true(out->n < MOST);
        out->logprob[out->n] = out->last.chosen.logprob;
        out->ids[out->n++] = out->last.token;
    } while (out->last.finish == RQ_FINISH_NONE);
}

static void same(const reply *a, const reply *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof *a->logprob);
    assert_int_equal(a->last.finish, b->last.finish);
    assert_int_equal(a->last.n_reused, b->last.n_reused);
}

static const char *const STARTS[] = {
    "And it came to pass in those days, that the king said unto all the people of the land,",
    "The old man went down to the river, and there he saw"};

/* A line for each start, in two turns: without drafts one session after the other; with them all at the same time. */
static void run(uint32_t depth, const char *type, float temperature)
{
    static reply want[2][2], got;
    line l[2][2];
    memset(l, 0, sizeof l);
    rq_engine *e = engine_of(0, 1, type);
    for (uint32_t i = 0; i < 2; i++) {
        rq_session *s = rb_session(e);
        append(&l[i][0], STARTS[i]);
        ask(s, &l[i][0], temperature, ANSWER);
        take(s, &want[i][0]);
        l[i][1] = l[i][0];
        memcpy(l[i][1].ids + l[i][1].n, want[i][0].ids, want[i][0].n * sizeof *want[i][0].ids);
        l[i][1].n += want[i][0].n;
        append(&l[i][1], ". And");
        ask(s, &l[i][1], temperature, NEXT);
        take(s, &want[i][1]);
        rq_session_free(s);
    }
    rq_engine_free(e);
    e = engine_of(depth, 2, type);
    rq_session *s[2] = {rb_session(e), rb_session(e)};
    uint32_t drafted = 0, accepted = 0;
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < 2; i++) ask(s[i], &l[i][turn], temperature, turn ? NEXT : ANSWER);
        for (uint32_t i = 0; i < 2; i++) {
            take(s[i], &got);
            same(&got, &want[i][turn]);
            drafted += got.last.n_drafted;
            accepted += got.last.n_accepted;
        }
    }
    print_message("%s, depth %u, cache %s, temperature %.1f: %u of %u guesses were right\n", backend, depth,
                  type, temperature, accepted, drafted);
    /* what is drawn is another text on every backend, and may be hard to guess */
    assert_true(accepted > (temperature > 0 ? drafted / 20 : drafted / 4) && accepted < drafted);
    rq_session_free(s[0]);
    rq_session_free(s[1]);
    rq_engine_free(e);
}

static void test_greedy(void **state)
{
    run(3, "f16", 0);
}

static void test_drawn(void **state)
{
    run(6, "wht4", 0.8f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy), cmocka_unit_test(test_drawn)};
    backend = argc > 1 ? argv[1] : "cpu";
    return cmocka_run_group_tests(tests, load, unload);
}
