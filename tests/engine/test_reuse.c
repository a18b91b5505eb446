/* Reuse of what the cache holds: only what is new goes through a step, counted where steps are run, and what is
 * reused is what would have been computed. */
#include "tests/engine/sched_bench.h"

static uint64_t steps_of(bench *b)
{
    rq_engine_stats st;
    rq_sched_get_stats(b->sched, &st);
    return st.step_tokens;
}

/* Runs a request to its end, checks its answer and returns how many tokens went through steps. */
static uint64_t run_one(bench *b, rq_session *s, const rq_token *ids, size_t n, const size_t *ends,
                        size_t n_ends, const rq_request *r, answer *got)
{
    static answer want;
    uint64_t before = steps_of(b);
    expect(b, ids, n, r, 1u << 20, &want);
    rq_error err = {0};
    if (rq_submit(s, ids, n, ends, n_ends, r, &err) != RQ_OK) fail_msg("%s", err.text);
    collect(s, got);
    check_same(got, &want);
    uint64_t went = steps_of(b) - before;
    /* the last token of an answer is not evaluated */
    assert_int_equal(went, n - got->last.n_reused + got->n - 1);
    return went;
}

static void test_next_turn(void **state)
{
    bench b;
    static answer got;
    static rq_token ids[1200];
    open_ok(&b, (setup){.n_ctx = 1200, .n_sessions = 2, .n_batch = 128});
    rq_session *s = session_of(&b);
    rq_request r = request(21, 5);
    make_prompt(ids, 1200, 3);
    size_t n = 0;
    for (int turn = 0; turn < 8; turn++) { /* 90 new tokens and an answer of 21, of which 20 are evaluated */
        uint64_t went = run_one(&b, s, ids, n + 90, NULL, 0, &r, &got);
        assert_int_equal(went, turn == 0 ? 90 + 20 : 1 + 90 + 20);
        assert_int_equal(got.last.n_reused, turn == 0 ? 0 : n - 1);
        if (turn > 0) assert_string_equal(got.last.reuse_note, "");
        memcpy(ids + n + 90, got.ids, 21 * sizeof *ids);
        n += 90 + 21;
    }
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_other_session(void **state)
{
    bench b;
    static answer got;
    static rq_token ids[900];
    open_ok(&b, (setup){.n_ctx = 900, .n_sessions = 3, .n_batch = 64});
    rq_session *s[3];
    for (int i = 0; i < 3; i++) s[i] = session_of(&b);
    rq_request r = request(4, 5);
    make_prompt(ids, 900, 3);
    const size_t system_end = 300;
    run_one(&b, s[0], ids, 500, &system_end, 1, &r, &got);
    /* the same prompt: its last token */
    assert_int_equal(run_one(&b, s[1], ids, 500, NULL, 0, &r, &got), 1 + 3);
    /* the same system prompt, another question: from where the message ends, or from its page */
    make_prompt(ids + 300, 600, 4);
    run_one(&b, s[2], ids, 700, NULL, 0, &r, &got);
    assert_in_range(got.last.n_reused, 256, 300);
    assert_non_null(strstr(got.last.reuse_note, "no earlier prompt goes on like this one"));
    /* nobody's any more, and still there */
    for (int i = 0; i < 3; i++) rq_session_free(s[i]);
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.cache_tokens_used, 0);
    s[0] = session_of(&b);
    run_one(&b, s[0], ids, 700, NULL, 0, &r, &got);
    assert_in_range(got.last.n_reused, 640, 699);
    /* unless it is not wanted */
    r.fresh = true;
    assert_int_equal(run_one(&b, s[0], ids, 700, NULL, 0, &r, &got), 703);
    assert_non_null(strstr(got.last.reuse_note, "fresh"));
    rq_session_free(s[0]);
    assert_int_equal(bench_close(&b), 0);
}

/* Choices of one prompt, all asked for at once: the prompt is read once, by whoever has a turn. Then questions
 * behind a common system prompt. */
static void test_at_the_same_time(void **state)
{
    enum { N = 6, PROMPT = 700, OWN = 50 };
    bench b;
    static answer got, want[N];
    static rq_token ids[N][PROMPT + OWN];
    open_ok(&b, (setup){.n_ctx = 1000, .n_sessions = N, .n_batch = 128, .step_us = 500});
    rq_session *s[N];
    for (uint32_t i = 0; i < N; i++) s[i] = session_of(&b);
    for (uint32_t round = 0; round < 2; round++) {
        uint32_t n = round == 0 ? PROMPT : PROMPT + OWN;
        rq_request r[N];
        rq_engine_stats before, after;
        for (uint32_t i = 0; i < N; i++) {
            make_prompt(ids[i], PROMPT, round);
            make_prompt(ids[i] + PROMPT, OWN, round * 100 + i);
            r[i] = request(20, i);
            expect(&b, ids[i], n, &r[i], 1000, &want[i]);
        }
        rq_sched_get_stats(b.sched, &before);
        for (uint32_t i = 0; i < N; i++) submit_ok(s[i], ids[i], n, &r[i]);
        for (uint32_t i = 0; i < N; i++) {
            collect(s[i], &got);
            check_same(&got, &want[i]);
        }
        rq_sched_get_stats(b.sched, &after);
        uint64_t read = after.prompt_tokens - before.prompt_tokens;
        /* each evaluates its last token; less than 16 tokens are not worth a copy; and where the questions begin, a
         * piece of one prompt holds the end of what is common */
        uint64_t most = round == 0 ? PROMPT + N * 16 : PROMPT + N * (OWN + 128);
        assert_in_range(read, n, most);
        assert_int_equal(read + (after.reused_tokens - before.reused_tokens), N * n);
        for (uint32_t i = 0; i < N; i++) { /* two pages of the prompt are the same ones */
            rq_session_free(s[i]);
            s[i] = session_of(&b);
        }
    }
    for (uint32_t i = 0; i < N; i++) rq_session_free(s[i]);
    assert_int_equal(bench_close(&b), 0);
}

/* A long answer whose thinking the client leaves out of the next prompt: it goes on where the question ended,
 * also when others have used the engine in between. */
static void test_left_out_thinking(void **state)
{
    bench b;
    static answer got;
    static rq_token ids[1500], other[600];
    open_ok(&b, (setup){.n_ctx = 1500, .n_sessions = 3, .n_batch = 64});
    rq_session *s = session_of(&b), *second = session_of(&b);
    rq_request r = request(400, 5), little = request(5, 6);
    make_prompt(ids, 1500, 3);
    size_t ends[3] = {100, 250, 330};
    for (int turn = 0; turn < 3; turn++) {
        run_one(&b, s, ids, ends[2], ends, 3, &r, &got);
        if (turn > 0) assert_in_range(got.last.n_reused, ends[1] - 64, ends[1]);
        make_prompt(other, 600, 50 + (uint32_t)turn);
        run_one(&b, second, other, 600, NULL, 0, &little, &got);
        /* the answer comes back shortened (20 new tokens), and a question of 60 follows */
        ends[0] = ends[1];
        ends[1] = ends[2];
        ends[2] += 80;
    }
    rq_session_free(s);
    rq_session_free(second);
    assert_int_equal(bench_close(&b), 0);
}

/* Many prompts through a small cache: what is found is right, whatever was thrown away. */
static void test_pressure(void **state)
{
    bench b;
    static answer got;
    static rq_token ids[5][400];
    open_ok(&b, (setup){.n_ctx = 448, .n_sessions = 2, .n_batch = 64, .cache_tokens = 768});
    rq_session *s[2] = {session_of(&b), session_of(&b)};
    uint64_t x = 1, n_reused = 0, n_less = 0;
    for (uint32_t i = 0; i < 5; i++) {
        make_prompt(ids[i], 400, 1);
        make_prompt(ids[i] + 40 + 50 * i, 360 - 50 * i, 10 + i); /* they part at 40, 90, 140, ... */
    }
    for (int i = 0; i < 120; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        uint32_t which = (uint32_t)(x >> 40) % 5;
        size_t n = 20 + (size_t)(x >> 45) % 380;
        rq_request r = request(1 + (uint32_t)(x >> 54) % 40, which);
        run_one(&b, s[(x >> 35) % 2], ids[which], n, NULL, 0, &r, &got);
        n_reused += got.last.n_reused;
        n_less += got.last.n_reused + 1 < n;
        assert_int_equal(got.last.reuse_note[0] == 0 && got.last.n_reused == 0 && n > 1, 0); /* it says why */
    }
    assert_true(n_reused > 2000 && n_less > 10);
    rq_session_free(s[0]);
    rq_session_free(s[1]);
    assert_int_equal(bench_close(&b), 0);
}

/* What a device made nonsense of is not found by others. */
static void test_nonsense_is_not_kept(void **state)
{
    bench b;
    static answer got;
    rq_token ids[300];
    open_ok(&b, (setup){.n_ctx = 400, .n_sessions = 2, .n_batch = 64});
    rq_session *s[2] = {session_of(&b), session_of(&b)};
    make_prompt(ids, 300, 1);
    ids[299] = 1;
    fake_poison(b.ex, 1);
    rq_request r = request(4, 1);
    submit_ok(s[0], ids, 300, &r);
    collect(s[0], &got);
    assert_int_equal(got.last.finish, RQ_FINISH_ERROR);
    settle(&b);
    fake_poison(b.ex, -1);
    assert_int_equal(run_one(&b, s[1], ids, 300, NULL, 0, &r, &got), 303);
    rq_session_free(s[0]);
    rq_session_free(s[1]);
    assert_int_equal(bench_close(&b), 0);
}

/* A piece that no step takes: its request ends, the others go on. */
static void test_what_fits_no_step_ends_alone(void **state)
{
    bench b;
    static answer want, got;
    static rq_token ids[600];
    open_ok(&b, (setup){.n_ctx = 600, .n_sessions = 3, .n_batch = 256, .step_tokens = 64});
    rq_session *s[3];
    for (int i = 0; i < 3; i++) s[i] = session_of(&b);
    make_prompt(ids, 600, 1);
    rq_request r = request(40, 1);
    expect(&b, ids, 20, &r, 600, &want);
    for (int round = 0; round < 3; round++) {
        submit_ok(s[0], ids, 20, &r);
        submit_ok(s[1], ids + 7, 500, &r);
        submit_ok(s[2], ids, 20, &r);
        collect(s[1], &got);
        assert_int_equal(got.last.finish, RQ_FINISH_ERROR);
        assert_non_null(strstr(got.last.error.text, "no step has room"));
        for (int i = 0; i < 3; i += 2) {
            collect(s[i], &got);
            check_same(&got, &want);
        }
    }
    rq_error err;
    assert_false(rq_sched_failed(b.sched, &err));
    for (int i = 0; i < 3; i++) rq_session_free(s[i]);
    assert_int_equal(bench_close(&b), 0);
}

/* No memory for a session's work, while another one generates: that one gets what it would have got. */
static void test_failing_allocations_beside_others(void **state)
{
    static answer want, got, scrap;
    rq_token ids[2][200];
    make_prompt(ids[0], 200, 1);
    make_prompt(ids[1], 200, 2);
    bool complete = false;
    for (uint64_t n = 1; !complete; n++) {
        bench b;
        open_ok(&b, (setup){.n_ctx = 300, .n_sessions = 2, .n_batch = 64, .step_us = 300});
        rq_session *s[2] = {session_of(&b), session_of(&b)};
        rq_request r = request(30, 1);
        expect(&b, ids[0], 150, &r, 300, &want);
        submit_ok(s[0], ids[0], 150, &r);
        rq_event e;
        assert_int_equal(rq_next(s[0], &e, 20000, NULL), RQ_OK); /* from here on it allocates nothing */
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = rq_submit(s[1], ids[1], 180, NULL, 0, &r, &err);
        complete = rq_mem_count() < n;
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            collect(s[1], &scrap);
        } else {
            assert_int_equal(status, RQ_ERR_MEMORY);
            assert_true(err.text[0] != 0);
        }
        collect(s[0], &got);
        assert_int_equal(got.n, want.n - 1);
        assert_memory_equal(got.ids, want.ids + 1, got.n * sizeof *got.ids);
        rq_session_free(s[0]);
        rq_session_free(s[1]);
        assert_int_equal(bench_close(&b), 0);
    }
}

static int run(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_turn),
        cmocka_unit_test(test_other_session),
        cmocka_unit_test(test_at_the_same_time),
        cmocka_unit_test(test_left_out_thinking),
        cmocka_unit_test(test_pressure),
        cmocka_unit_test(test_nonsense_is_not_kept),
        cmocka_unit_test(test_what_fits_no_step_ends_alone),
        cmocka_unit_test(test_failing_allocations_beside_others),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
    return run_with_every_kv(run);
}
