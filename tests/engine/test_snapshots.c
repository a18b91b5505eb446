/* Recurrent models on the whole engine: their state cannot be cut back, so it is copied where a later request may go
 * on. What goes on from a copy has the bits of what is computed from the beginning, in every cache format; how much
 * was reused and why not more is said; and the copies stay inside the memory they were given. */
#include "tests/engine/real_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 640, SESSIONS = 3 };

typedef struct bench {
    rq_model *model;
    rq_engine *engine;
    rq_session *s[SESSIONS];
    uint32_t n_vocab;
} bench;

static void open_bench(bench *b, const char *file, const char *format, uint64_t ram_mib)
{
    rq_model_info info;
    b->model = rb_load(rb_path(file));
    rq_model_describe(b->model, &info);
    b->n_vocab = info.n_vocab;
    rq_engine_params p = {.n_ctx = CTX,
                          .n_sessions = SESSIONS,
                          .n_batch = 256,
                          .n_threads = 1,
                          .type_k = format,
                          .type_v = format,
                          .cache_ram_mib = ram_mib};
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

static void conversation(const char *file, const char *format)
{
    bench b, empty;
    static rb_answer got;
    static rq_token ids[CTX], other[CTX];
    open_bench(&b, file, format, 0);
    open_bench(&empty, file, format, 0);
    rb_tokens(ids, CTX, 1, b.n_vocab);
    size_t ends[3] = {150, 256, 330};
    assert_int_equal(compare(&b, &empty, 0, ids, 330, ends, 3, 40, &got), 0);
    /* the same prompt: all but its last token */
    assert_int_equal(compare(&b, &empty, 0, ids, 330, ends, 3, 40, &got), 329);
    /* the next turn goes on where the session stands */
    memcpy(ids + 330, got.ids, got.n * sizeof *ids);
    assert_int_equal(compare(&b, &empty, 0, ids, 420, NULL, 0, 10, &got), 369);
    /* the same turn in another session, which was busy with something else: from the end of the answer */
    rb_tokens(other, CTX, 5, b.n_vocab);
    compare(&b, &empty, 1, other, 100, NULL, 0, 5, &got);
    assert_int_equal(compare(&b, &empty, 1, ids, 400, NULL, 0, 10, &got), 369);
    /* the answer left out: from the end of the prompt; what differs before, from the message before */
    memcpy(other, ids, sizeof other);
    rb_tokens(other + 330, CTX - 330, 2, b.n_vocab);
    assert_int_equal(compare(&b, &empty, 2, other, 500, NULL, 0, 10, &got), 329);
    rb_tokens(other + 256, CTX - 256, 3, b.n_vocab);
    assert_int_equal(compare(&b, &empty, 2, other, 300, NULL, 0, 10, &got), 256);
    rb_tokens(other + 200, CTX - 200, 4, b.n_vocab);
    assert_int_equal(compare(&b, &empty, 0, other, 300, NULL, 0, 10, &got), 150);
    assert_non_null(strstr(got.note, "200 tokens are known"));
    assert_non_null(strstr(got.note, "150 of them"));
    rb_tokens(other + 149, CTX - 149, 6, b.n_vocab);
    assert_int_equal(compare(&b, &empty, 0, other, 300, NULL, 0, 10, &got), 0);
    /* cut back by hand */
    assert_int_equal(rq_session_truncate(b.s[0], 200, NULL), RQ_OK);
    compare(&b, &empty, 0, ids, 420, NULL, 0, 10, &got);
    close_bench(&b);
    close_bench(&empty);
}

static void test_same_bits(void **state)
{
    conversation("qwen35.gguf", "f16");
    conversation("qwen35.gguf", "wht3");
    conversation("qwen35.gguf", "planar4");
}

/* From every position of a page: the copy's own, partial page and the tree's whole ones fit together. */
static void test_every_position(void **state)
{
    bench b, empty;
    static rb_answer got;
    static rq_token ids[CTX], other[CTX];
    open_bench(&b, "qwen35.gguf", "q8_0", 0);
    open_bench(&empty, "qwen35.gguf", "q8_0", 0);
    rb_tokens(ids, CTX, 1, b.n_vocab);
    for (size_t n = 120; n < 194; n += n % 64 < 2 ? 1 : 9) {
        compare(&b, &empty, 0, ids, n + 1, NULL, 0, 1, &got); /* leaves a copy at n */
        memcpy(other, ids, n * sizeof *ids);
        rb_tokens(other + n, 40, (uint32_t)n, b.n_vocab);
        assert_int_equal(compare(&b, &empty, 1, other, n + 40, NULL, 0, 3, &got), n);
    }
    close_bench(&b);
    close_bench(&empty);
}

/* A copy of this model's state is 0.6 MiB, with its page 0.7: two of them are 1.3 MiB. */
static void test_memory_is_bounded(void **state)
{
    bench b, empty;
    static rb_answer got;
    static rq_token ids[4][CTX];
    open_bench(&b, "qwen35.gguf", "f16", 2);
    open_bench(&empty, "qwen35.gguf", "f16", 2);
    uint32_t reused[4];
    for (uint32_t k = 0; k < 4; k++) {
        rb_tokens(ids[k], CTX, k + 1, b.n_vocab);
        compare(&b, &empty, 0, ids[k], 100, NULL, 0, 2, &got);
    }
    for (uint32_t k = 4; k-- > 0;) reused[k] = compare(&b, &empty, 0, ids[k], 100, NULL, 0, 2, &got);
    assert_int_equal(reused[3], 99); /* the latest one */
    assert_int_equal(reused[0], 0);  /* the oldest one made room */
    close_bench(&b);
    close_bench(&empty);
}

/* Choices of one prompt at once, requests that are cancelled before their state comes. */
static void test_many_sessions(void **state)
{
    bench b, empty;
    static rb_answer want, got;
    static rq_token ids[CTX];
    open_bench(&b, "qwen35.gguf", "f16", 0);
    open_bench(&empty, "qwen35.gguf", "f16", 0);
    rb_tokens(ids, CTX, 1, b.n_vocab);
    rb_submit(empty.s[0], ids, 300, NULL, 0, 20, true);
    rb_collect(empty.s[0], &want);
    for (int turn = 0; turn < 3; turn++) {
        for (int k = 0; k < SESSIONS; k++) rb_submit(b.s[k], ids, 300, NULL, 0, 20, false);
        for (int k = 0; k < SESSIONS; k++) {
            if (turn == 1 && k == 1) {
                rq_event e;
                rq_cancel(b.s[k]);
                do assert_int_equal(rq_next(b.s[k], &e, -1, NULL), RQ_OK);
                while (e.finish == RQ_FINISH_NONE);
                continue;
            }
            rb_collect(b.s[k], &got);
            assert_int_equal(got.n, want.n);
            assert_memory_equal(got.top, want.top, sizeof got.top);
            if (turn > 0) assert_int_equal(got.n_reused, 299);
        }
    }
    close_bench(&b);
    close_bench(&empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_every_position),
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_many_sessions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
