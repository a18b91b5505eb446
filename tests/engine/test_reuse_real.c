/* Reuse on the whole engine: what is taken from the cache has the bits of what would have been computed, in every
 * format; and only what is new is computed. Small random models (tests/data/oracle). */
#include "tests/engine/real_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 900, SESSIONS = 4 };

typedef struct format {
    const char *k, *v;
    uint32_t recent, sinks;
} format;

static const format formats[] = {
    {"f16", "f16", 0, 0}, {"planar3", "planar3", 64, 0}, {"iso4", "q8_0", 128, 4}, {"q4_0", "f16", 64, 0}};

typedef struct bench {
    rq_model *model;
    rq_engine *engine;
    rq_session *s[SESSIONS];
    uint32_t n_vocab;
} bench;

static void open_bench(bench *b, const char *file, const format *f)
{
    rq_model_info info;
    b->model = rb_load(rb_path(file));
    rq_model_describe(b->model, &info);
    b->n_vocab = info.n_vocab;
    rq_engine_params p = {.n_ctx = CTX,
                          .n_sessions = SESSIONS,
                          .n_batch = 256,
                          .n_threads = 1,
                          .type_k = f->k,
                          .type_v = f->v,
                          .kv_recent = f->recent,
                          .kv_sinks = f->sinks};
    b->engine = rb_engine(b->model, &p);
    for (int i = 0; i < SESSIONS; i++) b->s[i] = rb_session(b->engine);
}

static void close_bench(bench *b)
{
    for (int i = 0; i < SESSIONS; i++) rq_session_free(b->s[i]);
    rq_engine_free(b->engine);
    rq_model_free(b->model);
}

/* A request that reuses what it finds; then the same from scratch, on another engine with nothing in it. */
static uint32_t compare(bench *b, bench *empty, int session, const rq_token *ids, size_t n,
                        const size_t *ends, size_t n_ends, uint32_t max, rb_answer *got)
{
    return rb_reuse(b->engine, b->s[session], empty->s[0], ids, n, ends, n_ends, max, got);
}

static void conversation(const char *file, const format *f)
{
    bench b, empty;
    static rb_answer got;
    static rq_token ids[CTX], other[CTX];
    open_bench(&b, file, f);
    open_bench(&empty, file, f);
    rb_tokens(ids, CTX, 1, b.n_vocab);
    size_t ends[3] = {150, 300, 420};
    assert_int_equal(compare(&b, &empty, 0, ids, 420, ends, 3, 60, &got), 0);
    /* the next turn: the whole answer is known, but its last token */
    memcpy(ids + 420, got.ids, got.n * sizeof *ids);
    assert_int_equal(compare(&b, &empty, 0, ids, 520, NULL, 0, 10, &got), 479);
    /* the same in another session */
    assert_int_equal(compare(&b, &empty, 1, ids, 520, NULL, 0, 10, &got), 512); /* 7 are not worth a copy */
    /* the answer left out: from the question's end */
    memcpy(other, ids, sizeof other);
    rb_tokens(other + 420, 200, 2, b.n_vocab);
    assert_in_range(compare(&b, &empty, 2, other, 600, NULL, 0, 10, &got), 384, 420);
    /* another conversation behind the same system prompt */
    rb_tokens(other + 150, 600, 3, b.n_vocab);
    assert_in_range(compare(&b, &empty, 3, other, 500, NULL, 0, 10, &got), 128, 150);
    /* cut back by hand */
    assert_int_equal(rq_session_truncate(b.s[0], 500, NULL), RQ_OK);
    compare(&b, &empty, 0, ids, 700, NULL, 0, 10, &got);
    close_bench(&b);
    close_bench(&empty);
}

static void test_same_bits(void **state)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        conversation("llama.gguf", &formats[i]);
        conversation("qwen3.gguf", &formats[i]);
    }
}

/* Choices of one prompt at once: each has the bits it has alone, and the prompt is read about once. */
static void test_choices(void **state)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        bench b, empty;
        static rb_answer want, got;
        static rq_token ids[CTX];
        open_bench(&b, "llama.gguf", &formats[i]);
        open_bench(&empty, "llama.gguf", &formats[i]);
        rb_tokens(ids, CTX, 1, b.n_vocab);
        rb_submit(empty.s[0], ids, 600, NULL, 0, 20, true);
        rb_collect(empty.s[0], &want);
        for (int k = 0; k < SESSIONS; k++) rb_submit(b.s[k], ids, 600, NULL, 0, 20, false);
        for (int k = 0; k < SESSIONS; k++) {
            rb_collect(b.s[k], &got);
            rb_same_answer(&got, &want);
        }
        assert_true(rb_step_tokens(b.engine) <= 600 + SESSIONS * (16 + 19));
        close_bench(&b);
        close_bench(&empty);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_choices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
