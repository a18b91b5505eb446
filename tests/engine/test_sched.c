/* The scheduler over an executor that notices every mistake: each session must see exactly its own sequence, whoever
 * runs beside it, whatever is cancelled, full or unread. */
#include "tests/engine/sched_bench.h"

/* ---- one request ----------------------------------------------------------------------------------------- */

static void test_single(void **state)
{
    bench b;
    static answer want, got;
    rq_token prompt[300];
    open_ok(&b, (setup){.n_ctx = 400, .n_sessions = 1, .n_batch = 32});
    rq_session *s = session_of(&b);
    /* greedy and not, prompts around the sizes that matter, with the context as the limit too */
    static const size_t sizes[] = {1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 200};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rq_request r = request(i % 4 == 3 ? 0 : 20, i);
        if (i % 2) r.sampling.temperature = 0;
        make_prompt(prompt, sizes[i], (uint32_t)i);
        expect(&b, prompt, sizes[i], &r, 400, &want);
        submit_ok(s, prompt, sizes[i], &r);
        collect(s, &got);
        check_same(&got, &want);
        assert_int_equal(got.last.finish, RQ_FINISH_LENGTH);
        assert_int_equal(got.last.n_prompt, sizes[i]);
        assert_true(got.last.prompt_ms >= 0 && got.last.generate_ms >= 0);
        /* all but the last token, which was never evaluated */
        assert_int_equal(rq_session_length(s), sizes[i] + got.n - 1);
    }
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_chunks(void **state)
{
    bench b;
    static answer got;
    rq_token prompt[200];
    make_prompt(prompt, 200, 1);
    open_ok(&b, (setup){.n_ctx = 300, .n_sessions = 1, .n_batch = 64});
    rq_session *s = session_of(&b);
    rq_request r = request(3, 1);
    submit_ok(s, prompt, 197, &r);
    collect(s, &got);
    static const uint32_t counts[] = {64, 64, 64, 5, 1, 1}; /* cut at multiples of the batch size */
    assert_int_equal(fake_steps(b.ex), 6);
    for (uint32_t i = 0, at = 0; i < 6; at += counts[i++]) {
        assert_int_equal(fake_step_at(b.ex, i)->n_tokens, counts[i]);
        assert_int_equal(fake_step_at(b.ex, i)->start[0], at);
    }
    /* a reused prefix ends anywhere; the next cut is where it always is */
    prompt[100] ^= 1;
    submit_ok(s, prompt, 180, &r);
    collect(s, &got);
    assert_int_equal(got.last.n_reused, 100);
    assert_int_equal(fake_step_at(b.ex, 6)->start[0], 100);
    assert_int_equal(fake_step_at(b.ex, 6)->n_tokens, 28);
    assert_int_equal(fake_step_at(b.ex, 7)->n_tokens, 51); /* 180 ends here, its last token goes alone */
    assert_int_equal(fake_step_at(b.ex, 8)->n_tokens, 1);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
    /* pieces of requests may be smaller than a step; an evaluation asks for what it wants */
    open_ok(&b, (setup){.n_ctx = 300, .n_sessions = 1, .n_batch = 64, .n_piece = 16});
    s = session_of(&b);
    submit_ok(s, prompt, 40, &r);
    collect(s, &got);
    static const uint32_t pieces[] = {16, 16, 8, 1, 1};
    for (uint32_t i = 0; i < 5; i++) assert_int_equal(fake_step_at(b.ex, i)->n_tokens, pieces[i]);
    assert_int_equal(rq_session_truncate(s, 0, NULL), RQ_OK);
    assert_int_equal(rq_evaluate(s, prompt, 100, 0, RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_OK);
    assert_int_equal(fake_step_at(b.ex, 5)->n_tokens, 64);
    assert_int_equal(fake_step_at(b.ex, 6)->n_tokens, 36);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_reuse(void **state)
{
    bench b;
    static answer want, got;
    rq_token ids[300];
    open_ok(&b, (setup){.n_ctx = 300, .n_sessions = 1, .n_batch = 32});
    rq_session *s = session_of(&b);
    rq_request r = request(10, 5);
    make_prompt(ids, 300, 3);
    submit_ok(s, ids, 50, &r);
    collect(s, &got);
    assert_int_equal(got.last.n_reused, 0);
    assert_true(got.last.reuse_note[0] != 0);
    /* the next turn: prompt, answer, and something new */
    memcpy(ids + 50, got.ids, 10 * sizeof *ids);
    expect(&b, ids, 90, &r, 300, &want);
    submit_ok(s, ids, 90, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, 59); /* the answer's last token was not evaluated */
    assert_string_equal(got.last.reuse_note, "");
    /* the same again: everything but the last token */
    submit_ok(s, ids, 90, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, 89);
    assert_string_equal(got.last.reuse_note, "");
    /* another beginning */
    ids[20] ^= 1;
    expect(&b, ids, 90, &r, 300, &want);
    submit_ok(s, ids, 90, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, 20);
    assert_non_null(strstr(got.last.reuse_note, "token 20"));
    /* a prefix of what is held */
    submit_ok(s, ids, 40, &r);
    collect(s, &got);
    assert_int_equal(got.last.n_reused, 39);
    assert_string_equal(got.last.reuse_note, "");
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.cache_tokens_used, 64); /* what was cut off is free again */
    /* cut by hand */
    assert_int_equal(rq_session_truncate(s, 30, NULL), RQ_OK);
    assert_int_equal(rq_session_length(s), 30);
    assert_int_equal(rq_session_truncate(s, 31, NULL), RQ_ERR_ARGUMENT);
    submit_ok(s, ids, 90, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, 64); /* the session forgot the rest of the page, the cache did not */
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.generated_tokens, 60);
    assert_int_equal(st.reused_tokens, 59 + 89 + 20 + 39 + 64);
    assert_int_equal(st.prompt_tokens, 50 + 31 + 1 + 70 + 1 + 26);
    assert_int_equal(st.steps, fake_steps(b.ex));
    assert_int_equal(st.step_tokens, st.prompt_tokens + 6 * 9);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_stops_and_eos(void **state)
{
    bench b;
    static answer want, got;
    rq_token prompt[16];
    open_ok(&b, (setup){.n_ctx = 600, .n_sessions = 1, .n_batch = 32});
    rq_session *s = session_of(&b);
    int seen[6] = {0};
    static const char *const stops[] = {"a", "\n", "zz", " t", "\xc3\xa9"};
    for (uint32_t i = 0; i < 120; i++) {
        make_prompt(prompt, 10, i);
        rq_request r = request(i % 3 == 0 ? 300 : 40, i);
        r.ignore_eos = i % 2;
        r.sampling.top_k = 0;
        r.sampling.top_p = 1;
        r.sampling.min_p = 0;
        r.stop = stops;
        r.n_stop = i % 6;
        expect(&b, prompt, 10, &r, 600, &want);
        submit_ok(s, prompt, 10, &r);
        collect(s, &got);
        check_same(&got, &want);
        seen[got.last.finish]++;
    }
    assert_true(seen[RQ_FINISH_EOS] > 5 && seen[RQ_FINISH_STOP] > 5 && seen[RQ_FINISH_LENGTH] > 5);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_logprobs(void **state)
{
    bench b;
    rq_token ids[40];
    static float logits[VOCAB];
    open_ok(&b, (setup){.n_ctx = 100, .n_sessions = 1, .n_batch = 32});
    rq_session *s = session_of(&b);
    for (int32_t n_top = -1; n_top <= RQ_MAX_LOGPROBS; n_top += 7) {
        make_prompt(ids, 10, 1);
        rq_request r = request(20, 3);
        r.n_logprobs = n_top;
        submit_ok(s, ids, 10, &r);
        for (size_t n = 10;; n++) {
            rq_event e;
            assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
            if (e.finish != RQ_FINISH_NONE) break;
            if (n_top < 0) {
                assert_int_equal(e.chosen.token, -1);
                assert_int_equal(e.n_top, 0);
            } else {
                rq_token_logprob chosen, top[RQ_MAX_LOGPROBS];
                fake_logits(ids, n, VOCAB, logits);
                assert_int_equal(e.n_top, rq_logprobs(logits, VOCAB, e.token, (uint32_t)n_top, &chosen, top));
                assert_int_equal(e.chosen.token, e.token);
                assert_true(e.chosen.logprob == chosen.logprob);
                for (uint32_t i = 0; i < e.n_top; i++) {
                    assert_int_equal(e.top[i].token, top[i].token);
                    assert_true(e.top[i].logprob == top[i].logprob);
                }
            }
            ids[n] = e.token;
        }
    }
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

/* ---- several --------------------------------------------------------------------------------------------- */

static void test_beside_others(void **state)
{
    enum { N = 12 };
    bench b;
    static answer want[N], got;
    static rq_token prompt[N][200];
    open_ok(&b, (setup){.n_ctx = 300, .n_sessions = N, .n_batch = 64, .step_us = 1000});
    rq_session *s[N];
    rq_request r[N];
    for (uint32_t i = 0; i < N; i++) {
        size_t n = 1 + i * 17;
        make_prompt(prompt[i], n, i);
        r[i] = request(30 + i, i);
        r[i].sampling.repeat_penalty = i % 3 ? 1 : 1.2f;
        r[i].sampling.frequency_penalty = i % 4 ? 0 : 0.5f;
        expect(&b, prompt[i], n, &r[i], 300, &want[i]);
        s[i] = session_of(&b);
    }
    rq_session *more;
    rq_error err = {0};
    assert_int_equal(rq_sched_open(b.sched, &more, &err), RQ_ERR_CAPACITY);
    for (uint32_t i = 0; i < N; i++) submit_ok(s[i], prompt[i], 1 + i * 17, &r[i]);
    for (uint32_t i = 0; i < N; i++) {
        collect(s[i], &got);
        check_same(&got, &want[i]);
    }
    uint32_t shared = 0;
    for (uint32_t i = 0; i < fake_steps(b.ex); i++) shared += fake_step_at(b.ex, i)->n_runs > 1;
    assert_true(shared > 10); /* they did share steps */
    for (uint32_t i = 0; i < N; i++) rq_session_free(s[i]);
    assert_int_equal(bench_close(&b), 0);
}

/* Between two wide steps of prompts, everybody who is decoding gets a token, and prompts take turns. Steps are slow
 * (10 ms), so that requests made one after the other meet even where this program gets little time. */
static void test_nobody_starves(void **state)
{
    if (bench_kv != KV_PLAIN) return; /* turns do not depend on it, and it takes its time */
    bench b;
    static answer got;
    static rq_token prompt[3000];
    open_ok(&b, (setup){.n_ctx = 3000, .n_sessions = 13, .n_batch = 32, .step_us = 10000});
    rq_session *decoding[10], *long_prompt[2], *short_prompt = session_of(&b);
    for (uint32_t i = 0; i < 10; i++) {
        rq_token own[5];
        make_prompt(own, 5, i);
        rq_request r = request(0, i);
        decoding[i] = session_of(&b);
        submit_ok(decoding[i], own, 5, &r);
        rq_event e;
        assert_int_equal(rq_next(decoding[i], &e, 20000, NULL), RQ_OK);
    }
    rq_request r = request(1, 1);
    make_prompt(prompt, 3000, 99);
    uint32_t before = fake_steps(b.ex);
    for (uint32_t i = 0; i < 2; i++) {
        long_prompt[i] = session_of(&b);
        submit_ok(long_prompt[i], prompt + 500 * i, 640, &r);
    }
    submit_ok(short_prompt, prompt, 3, &r);
    /* read the ten so that none is left out for not being read */
    bool open = true;
    for (uint32_t waited = 0; open && waited < 400000; waited++) {
        rq_event e;
        for (uint32_t i = 0; i < 10; i++) rq_next(decoding[i], &e, 0, NULL);
        rq_status one = rq_next(long_prompt[0], &e, 0, NULL);
        rq_status two = rq_next(long_prompt[1], &e, 0, NULL);
        open = one != RQ_ERR_ARGUMENT || two != RQ_ERR_ARGUMENT;
        if (open) usleep(50);
    }
    assert_false(open);
    uint32_t since[16] = {0}, n_wide = 0, last_wide = UINT32_MAX, turns = 0, short_done = 0;
    for (uint32_t i = before; i < fake_steps(b.ex); i++) {
        const fake_step *f = fake_step_at(b.ex, i);
        if (f->n_tokens > 8) {
            if (n_wide > 1)
                for (uint32_t d = 1; d < 11; d++) assert_int_equal(since[d], 1);
            memset(since, 0, sizeof since);
            turns += last_wide != f->seq[0];
            last_wide = f->seq[0];
            n_wide++;
        } else {
            for (uint32_t k = 0; k < f->n_runs; k++) {
                since[f->seq[k]]++;
                if (f->seq[k] == 0 && short_done == 0) short_done = n_wide;
            }
        }
    }
    assert_in_range(n_wide, 40, 40);
    assert_true(turns >= 36);     /* the two alternate */
    assert_true(short_done <= 3); /* and three tokens do not wait for 1280 */
    for (uint32_t i = 0; i < 10; i++) {
        rq_cancel(decoding[i]);
        collect(decoding[i], &got);
        assert_int_equal(got.last.finish, RQ_FINISH_CANCELLED);
        rq_session_free(decoding[i]);
    }
    rq_session_free(long_prompt[0]);
    rq_session_free(long_prompt[1]);
    rq_session_free(short_prompt);
    assert_int_equal(bench_close(&b), 0);
}

/* ---- room ------------------------------------------------------------------------------------------------ */

static void test_queue_is_fair(void **state)
{
    enum { N = 4 };
    bench b;
    static answer want[N], got;
    static rq_token prompt[N][128];
    /* the cache holds one full context: requests for all of it run one after the other */
    open_ok(&b, (setup){.n_ctx = 256, .n_sessions = N, .n_batch = 32, .cache_tokens = 256, .step_us = 100});
    rq_session *s[N];
    rq_request whole = request(0, 1);
    for (uint32_t i = 0; i < N; i++) {
        make_prompt(prompt[i], 100, i);
        expect(&b, prompt[i], 100, &whole, 256, &want[i]);
        s[i] = session_of(&b);
    }
    for (int round = 0; round < 2; round++) {
        uint32_t before = fake_steps(b.ex);
        for (uint32_t i = 0; i < N; i++) submit_ok(s[i], prompt[i], 100, &whole);
        rq_engine_stats st;
        rq_sched_get_stats(b.sched, &st);
        assert_true(st.waiting >= 2 && st.running <= 1);
        for (uint32_t i = 0; i < N; i++) {
            collect(s[i], &got);
            check_same(&got, &want[i]);
            assert_int_equal(got.last.n_reused, 0);
            if (round == 1) assert_non_null(strstr(got.last.reuse_note, "given to other requests"));
        }
        /* first come, first served: the sequences follow each other */
        for (uint32_t i = before, seq = 0; i < fake_steps(b.ex); i++) {
            assert_true(fake_step_at(b.ex, i)->seq[0] >= seq);
            seq = fake_step_at(b.ex, i)->seq[0];
        }
    }
    /* what an idle session holds stays while nobody needs it, and is reused */
    rq_request little = request(5, 1);
    submit_ok(s[3], prompt[3], 100, &little);
    collect(s[3], &got);
    assert_int_equal(got.last.n_reused, 99);
    for (uint32_t i = 0; i < N; i++) rq_session_free(s[i]);
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.cache_tokens_used, 0);
    assert_int_equal(bench_close(&b), 0);
}

static void test_unread_sessions_pause(void **state)
{
    bench b;
    static answer want[2], got;
    rq_token prompt[2][20];
    open_ok(&b, (setup){.n_ctx = 500, .n_sessions = 3, .n_batch = 32, .cache_tokens = 1024, .n_queue = 1});
    rq_session *s[3];
    rq_request r = request(300, 1);
    for (uint32_t i = 0; i < 2; i++) {
        make_prompt(prompt[i], 20, i);
        expect(&b, prompt[i], 20, &r, 500, &want[i]);
        s[i] = session_of(&b);
    }
    s[2] = session_of(&b);
    submit_ok(s[0], prompt[0], 20, &r); /* nobody reads it */
    submit_ok(s[1], prompt[1], 20, &r);
    collect(s[1], &got);
    check_same(&got, &want[1]);
    settle(&b);
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.running, 1);
    assert_true(rq_session_length(s[0]) < 20 + 40); /* it stands still */
    /* its pages are its own: a request for a whole context waits, a further one is refused */
    rq_request whole = request(0, 1);
    submit_ok(s[1], prompt[1], 20, &whole);
    collect(s[1], &got);
    submit_ok(s[1], prompt[0], 20, &whole); /* runs, unread as well */
    settle(&b);
    submit_ok(s[2], prompt[0], 20, &whole); /* waits */
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.waiting, 1);
    rq_session *s3 = NULL;
    assert_int_equal(rq_sched_open(b.sched, &s3, NULL), RQ_ERR_CAPACITY);
    rq_event e;
    assert_int_equal(rq_next(s[2], &e, 30, NULL), RQ_ERR_TIMEOUT);
    rq_cancel(s[2]);
    assert_int_equal(rq_next(s[2], &e, 0, NULL), RQ_OK);
    assert_int_equal(e.finish, RQ_FINISH_CANCELLED);
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.waiting, 0);
    /* read at last: nothing is missing */
    collect(s[0], &got);
    check_same(&got, &want[0]);
    for (uint32_t i = 0; i < 3; i++) rq_session_free(s[i]);
    assert_int_equal(bench_close(&b), 0);
}

static void test_queue_limit(void **state)
{
    bench b;
    rq_token prompt[20];
    make_prompt(prompt, 20, 1);
    open_ok(&b, (setup){.n_ctx = 500, .n_sessions = 4, .n_batch = 32, .cache_tokens = 512, .n_queue = 2});
    rq_session *s[4];
    rq_request whole = request(0, 1);
    for (uint32_t i = 0; i < 4; i++) s[i] = session_of(&b);
    submit_ok(s[0], prompt, 20, &whole); /* holds everything and is not read */
    submit_ok(s[1], prompt, 20, &whole);
    submit_ok(s[2], prompt, 20, &whole);
    rq_error err = {0};
    assert_int_equal(rq_submit(s[3], prompt, 20, NULL, 0, &whole, &err), RQ_ERR_CAPACITY);
    assert_true(err.text[0] != 0);
    assert_int_equal(rq_evaluate(s[3], prompt, 20, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_ERR_CAPACITY);
    rq_session_free(s[1]); /* leaves the queue */
    submit_ok(s[3], prompt, 20, &whole);
    rq_session_free(s[0]); /* makes room for the next */
    rq_event e;
    assert_int_equal(rq_next(s[2], &e, 20000, NULL), RQ_OK);
    rq_session_free(s[2]);
    assert_int_equal(rq_next(s[3], &e, 20000, NULL), RQ_OK);
    rq_session_free(s[3]);
    assert_int_equal(bench_close(&b), 0);
}

/* ---- refusals and ends ----------------------------------------------------------------------------------- */

static void test_refusals(void **state)
{
    bench b;
    rq_token ids[200];
    make_prompt(ids, 200, 1);
    open_ok(&b, (setup){.n_ctx = 100, .n_sessions = 1, .n_batch = 32});
    rq_session *s = session_of(&b);
    rq_request r = request(5, 1);
    rq_error err = {0};
    rq_event e;
    assert_int_equal(rq_next(s, &e, 0, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_submit(s, ids, 0, NULL, 0, &r, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_submit(s, ids, 100, NULL, 0, &r, &err), RQ_ERR_CAPACITY);
    assert_non_null(strstr(err.text, "100 tokens")); /* both numbers */
    assert_int_equal(rq_submit(s, ids, 150, NULL, 0, &r, &err), RQ_ERR_CAPACITY);
    assert_non_null(strstr(err.text, "150"));
    assert_non_null(strstr(err.text, "100"));
    static const rq_token bad[] = {-1, VOCAB, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        rq_token with_bad[3] = {65, bad[i], 66};
        assert_int_equal(rq_submit(s, with_bad, 3, NULL, 0, &r, &err), RQ_ERR_ARGUMENT);
        assert_int_equal(rq_evaluate(s, with_bad, 3, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_ERR_ARGUMENT);
    }
    size_t boundaries[2] = {5, 4};
    assert_int_equal(rq_submit(s, ids, 10, boundaries, 2, &r, &err), RQ_ERR_ARGUMENT);
    boundaries[1] = 11;
    assert_int_equal(rq_submit(s, ids, 10, boundaries, 2, &r, &err), RQ_ERR_ARGUMENT);
    rq_request broken = r;
    broken.n_logprobs = RQ_MAX_LOGPROBS + 1;
    assert_int_equal(rq_submit(s, ids, 10, NULL, 0, &broken, &err), RQ_ERR_ARGUMENT);
    broken = r;
    broken.sampling.top_p = NAN;
    assert_int_equal(rq_submit(s, ids, 10, NULL, 0, &broken, &err), RQ_ERR_ARGUMENT);
    const char *stop = "";
    broken = r;
    broken.stop = &stop;
    broken.n_stop = 1;
    assert_int_equal(rq_submit(s, ids, 10, NULL, 0, &broken, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_evaluate(s, ids, 101, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_ERR_CAPACITY);
    assert_int_equal(rq_evaluate(s, ids, 5, 0, RQ_LOGITS_ALL, NULL, NULL, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(fake_steps(b.ex), 0);
    /* room for exactly one token */
    static answer got;
    boundaries[1] = 10;
    assert_int_equal(rq_submit(s, ids, 99, boundaries, 2, &r, &err), RQ_OK);
    collect(s, &got);
    assert_int_equal(got.n, 1);
    assert_int_equal(got.last.finish, RQ_FINISH_LENGTH);
    /* while one runs, which it does until it is read */
    r.max_tokens = 60;
    submit_ok(s, ids, 10, &r);
    assert_int_equal(rq_submit(s, ids, 10, NULL, 0, &r, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_evaluate(s, ids, 10, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_session_truncate(s, 0, &err), RQ_ERR_ARGUMENT);
    collect(s, &got);
    assert_int_equal(got.n, 60);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
    /* a pool smaller than a context could never run one */
    assert_int_equal(
        bench_open(&b, (setup){.n_ctx = 500, .n_sessions = 4, .n_batch = 32, .cache_tokens = 384}, &err),
        RQ_ERR_ARGUMENT);
    bench_close(&b);
    assert_int_equal(bench_open(&b, (setup){.n_ctx = 100, .n_sessions = 300, .n_batch = 32}, &err),
                     RQ_ERR_ARGUMENT);
    bench_close(&b);
}

static void test_cancel(void **state)
{
    bench b;
    static answer want, got;
    static rq_token ids[2000];
    make_prompt(ids, 2000, 1);
    open_ok(&b, (setup){.n_ctx = 2000, .n_sessions = 2, .n_batch = 32, .step_us = 3000});
    rq_session *s = session_of(&b);
    rq_request r = request(0, 1);
    rq_event e;
    /* while it generates: the step in flight is the last */
    submit_ok(s, ids, 10, &r);
    for (int i = 0; i < 3; i++) assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    uint32_t steps = fake_steps(b.ex);
    rq_cancel(s);
    collect(s, &got);
    assert_int_equal(got.last.finish, RQ_FINISH_CANCELLED);
    settle(&b);
    assert_true(fake_steps(b.ex) <= steps + 1);
    /* while its prompt is read: 60 pieces of 3 ms */
    submit_ok(s, ids, 1999, &r);
    pause_ms(15);
    rq_cancel(s);
    collect(s, &got);
    assert_int_equal(got.last.finish, RQ_FINISH_CANCELLED);
    assert_int_equal(got.n, 0);
    assert_true(rq_session_length(s) < 1500);
    rq_cancel(s); /* nothing runs: nothing happens */
    /* what was evaluated before is good for the next request */
    size_t held = rq_session_length(s);
    r.max_tokens = 4;
    expect(&b, ids, 1200, &r, 2000, &want);
    submit_ok(s, ids, 1200, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, held < 1199 ? held : 1199);
    /* a session may be freed in the middle of its work */
    r.max_tokens = 0;
    submit_ok(s, ids, 10, &r);
    assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    rq_session_free(s);
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.sessions, 0);
    assert_int_equal(st.cache_tokens_used, 0);
    assert_int_equal(bench_close(&b), 0);
}

static void *free_engine(void *user)
{
    pause_ms(20);
    rq_sched_free(user);
    return NULL;
}

static void test_engine_freed_first(void **state)
{
    /* not allowed for idle sessions to outlive it, but requests in progress end properly */
    bench b;
    rq_token ids[10];
    make_prompt(ids, 10, 1);
    open_ok(&b, (setup){.n_ctx = 20000, .n_sessions = 1, .n_batch = 32, .step_us = 100});
    rq_session *s = session_of(&b);
    rq_request r = request(0, 1);
    submit_ok(s, ids, 10, &r);
    rq_event e;
    assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    rq_cancel(s);
    do assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    while (e.finish == RQ_FINISH_NONE);
    rq_session_free(s);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, free_engine, b.sched), 0);
    pthread_join(thread, NULL);
    b.sched = NULL;
    assert_int_equal(bench_close(&b), 0);
}

static int run(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_stops_and_eos),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_beside_others),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_queue_is_fair),
        cmocka_unit_test(test_unread_sessions_pause),
        cmocka_unit_test(test_queue_limit),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_engine_freed_first),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
    return run_with_every_kv(run);
}
