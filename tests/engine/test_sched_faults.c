/* The scheduler when something breaks: devices, files, logits, allocations; and evaluations and many threads. */
#include "tests/engine/sched_bench.h"

/* ---- failures -------------------------------------------------------------------------------------------- */

static void test_device_failures(void **state)
{
    static answer got;
    for (uint32_t place = FAKE_BEGIN; place <= FAKE_WAIT; place++)
        for (uint32_t n = 1; n < 8; n++) {
            bench b;
            rq_token ids[50];
            make_prompt(ids, 50, 1);
            open_ok(&b, (setup){.n_ctx = 200, .n_sessions = 3, .n_batch = 16, .cache_tokens = 448});
            rq_session *s[3];
            rq_request r = request(100, 1);
            fake_fail_at(b.ex, (fake_place)place, n);
            rq_status status[3];
            for (int i = 0; i < 3; i++) s[i] = session_of(&b);
            for (int i = 0; i < 3; i++) { /* the third waits for room */
                rq_error err = {0};
                status[i] = rq_submit(s[i], ids, 50, NULL, 0, &r, &err);
                if (status[i] != RQ_OK) assert_int_equal(status[i], RQ_ERR_DEVICE);
            }
            for (int i = 0; i < 3; i++) {
                if (status[i] != RQ_OK) continue;
                collect(s[i], &got);
                assert_int_equal(got.last.finish, RQ_FINISH_ERROR);
                assert_string_equal(got.last.error.text, "the device was unplugged");
            }
            rq_error err = {0};
            assert_int_equal(rq_submit(s[0], ids, 50, NULL, 0, &r, &err), RQ_ERR_DEVICE);
            assert_non_null(strstr(err.text, "the device was unplugged"));
            assert_int_equal(rq_evaluate(s[0], ids, 50, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_ERR_DEVICE);
            assert_true(rq_sched_failed(b.sched, &err));
            for (int i = 0; i < 3; i++) rq_session_free(s[i]);
            bench_close(&b);
        }
}

static void test_lost_file(void **state)
{
    bench b;
    static answer got;
    rq_token ids[10];
    make_prompt(ids, 10, 1);
    open_ok(&b, (setup){.n_ctx = 20000, .n_sessions = 1, .n_batch = 16, .step_us = 100});
    rq_session *s = session_of(&b);
    rq_request r = request(0, 1);
    submit_ok(s, ids, 10, &r);
    rq_event e;
    for (int i = 0; i < 5; i++) assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    atomic_store(&b.lost, true);
    do assert_int_equal(rq_next(s, &e, 20000, NULL), RQ_OK);
    while (e.finish == RQ_FINISH_NONE);
    assert_int_equal(e.finish, RQ_FINISH_ERROR);
    assert_string_equal(e.error.text, "the file is gone");
    rq_error err = {0};
    assert_int_equal(rq_submit(s, ids, 10, NULL, 0, &r, &err), RQ_ERR_DEVICE);
    (void)got;
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

static void test_senseless_logits(void **state)
{
    bench b;
    static answer want, got;
    rq_token ids[2][20];
    make_prompt(ids[0], 20, 1);
    make_prompt(ids[1], 20, 2);
    open_ok(&b, (setup){.n_ctx = 200, .n_sessions = 2, .n_batch = 16});
    rq_session *s[2] = {session_of(&b), session_of(&b)};
    rq_request r = request(50, 1);
    r.sampling.temperature = 0;
    expect(&b, ids[1], 20, &r, 200, &want);
    rq_token poison = 1; /* the first one that the other sequence never has */
    for (size_t i = 0; i < 20 + want.n; i++) {
        if ((i < 20 ? ids[1][i] : want.ids[i - 20]) != poison) continue;
        poison++;
        i = (size_t)-1;
    }
    ids[0][19] = poison;
    fake_poison(b.ex, poison);
    submit_ok(s[0], ids[0], 20, &r);
    submit_ok(s[1], ids[1], 20, &r);
    collect(s[0], &got);
    assert_int_equal(got.last.finish, RQ_FINISH_ERROR);
    assert_non_null(strstr(got.last.error.text, "non-finite"));
    assert_int_equal(rq_session_length(s[0]), 0); /* nothing of it is kept */
    collect(s[1], &got);
    check_same(&got, &want);
    /* the engine lives */
    submit_ok(s[0], ids[1], 20, &r);
    collect(s[0], &got);
    check_same(&got, &want);
    rq_session_free(s[0]);
    rq_session_free(s[1]);
    assert_int_equal(bench_close(&b), 0);
}

static void test_failing_allocations(void **state)
{
    rq_token ids[40];
    make_prompt(ids, 40, 1);
    int64_t alive = rq_mem_alive();
    const char *stop = "never";
    rq_logit_bias bias = {5, 1};
    bool complete = false;
    uint64_t n = 1;
    for (; !complete; n++) {
        bench b;
        rq_error err = {0};
        rq_session *s = NULL;
        rq_event e = {0};
        rq_request r = request(6, 1);
        r.stop = &stop;
        r.n_stop = 1;
        r.sampling.bias = &bias;
        r.sampling.n_bias = 1;
        r.sampling.repeat_penalty = 1.1f;
        rq_mem_fail_at(n);
        rq_status status = bench_open(&b, (setup){.n_ctx = 100, .n_sessions = 2, .n_batch = 16}, &err);
        if (status == RQ_OK) status = rq_sched_open(b.sched, &s, &err);
        if (status == RQ_OK) status = rq_submit(s, ids, 40, NULL, 0, &r, &err);
        while (status == RQ_OK && e.finish == RQ_FINISH_NONE) status = rq_next(s, &e, 20000, &err);
        if (status == RQ_OK && e.finish == RQ_FINISH_ERROR) {
            status = RQ_ERR_MEMORY;
            err = e.error;
        }
        complete = rq_mem_count() < n;
        rq_mem_fail_at(0);
        if (complete) {
            assert_int_equal(status, RQ_OK);
            assert_int_equal(e.finish, RQ_FINISH_LENGTH);
        } else if (status != RQ_OK) {
            assert_true(err.text[0] != 0);
        }
        rq_session_free(s);
        bench_close(&b);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(n > 30);
}

/* A stream in full flow allocates nothing. */
static void test_steady_state_allocates_nothing(void **state)
{
    bench b;
    rq_token ids[10];
    make_prompt(ids, 10, 1);
    open_ok(&b, (setup){.n_ctx = 3000, .n_sessions = 2, .n_batch = 16});
    rq_session *s[2];
    rq_request r = request(0, 1);
    r.n_logprobs = 5;
    r.sampling.repeat_penalty = 1.1f;
    for (int i = 0; i < 2; i++) {
        s[i] = session_of(&b);
        submit_ok(s[i], ids, 10, &r);
    }
    rq_event e;
    for (int i = 0; i < 400; i++) assert_int_equal(rq_next(s[i % 2], &e, 20000, NULL), RQ_OK);
    uint64_t before = rq_mem_count();
    for (int i = 0; i < 3000; i++) assert_int_equal(rq_next(s[i % 2], &e, 20000, NULL), RQ_OK);
    assert_int_equal(rq_mem_count(), before);
    rq_session_free(s[0]);
    rq_session_free(s[1]);
    assert_int_equal(bench_close(&b), 0);
}

/* ---- evaluation ------------------------------------------------------------------------------------------ */

typedef struct seen_logits {
    const rq_token *ids; /* the whole sequence */
    size_t next, count;
    bool wrong;
} seen_logits;

static void check_logits(void *user, size_t position, const float *logits)
{
    seen_logits *seen = user;
    static _Thread_local float want[VOCAB];
    fake_logits(seen->ids, position + 1, VOCAB, want);
    if (position != seen->next || memcmp(want, logits, sizeof want) != 0) seen->wrong = true;
    seen->next = position + 1;
    seen->count++;
}

static void test_evaluate(void **state)
{
    bench b;
    rq_token ids[500];
    make_prompt(ids, 500, 1);
    open_ok(&b, (setup){.n_ctx = 500, .n_sessions = 2, .n_batch = 256});
    rq_session *s = session_of(&b);
    static const uint32_t chunks[] = {0, 1, 7, 8, 9, 64, 100, 1000};
    for (size_t c = 0; c < 8; c++) {
        seen_logits seen = {.ids = ids};
        uint32_t before = fake_steps(b.ex);
        assert_int_equal(rq_evaluate(s, ids, 200, chunks[c], RQ_LOGITS_ALL, check_logits, &seen, NULL),
                         RQ_OK);
        assert_false(seen.wrong);
        assert_int_equal(seen.count, 200);
        uint32_t piece = chunks[c] == 0 || chunks[c] > 256 ? 256 : chunks[c];
        assert_int_equal(fake_steps(b.ex) - before, (200 + piece - 1) / piece);
        assert_int_equal(rq_session_length(s), 200);
        /* append */
        seen = (seen_logits){.ids = ids, .next = 299};
        assert_int_equal(rq_evaluate(s, ids + 200, 100, chunks[c], RQ_LOGITS_LAST, check_logits, &seen, NULL),
                         RQ_OK);
        assert_false(seen.wrong);
        assert_int_equal(seen.count, 1);
        assert_int_equal(rq_evaluate(s, ids + 300, 200, chunks[c], RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_OK);
        assert_int_equal(rq_session_length(s), 500);
        assert_int_equal(rq_evaluate(s, ids, 1, 0, RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_ERR_CAPACITY);
        assert_int_equal(rq_session_truncate(s, 450, NULL), RQ_OK);
        seen = (seen_logits){.ids = ids, .next = 450};
        assert_int_equal(rq_evaluate(s, ids + 450, 50, chunks[c], RQ_LOGITS_ALL, check_logits, &seen, NULL),
                         RQ_OK);
        assert_false(seen.wrong);
        assert_int_equal(rq_session_truncate(s, 0, NULL), RQ_OK);
    }
    /* a request goes on from what was evaluated */
    static answer want, got;
    rq_request r = request(10, 1);
    assert_int_equal(rq_evaluate(s, ids, 100, 0, RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_OK);
    expect(&b, ids, 120, &r, 500, &want);
    submit_ok(s, ids, 120, &r);
    collect(s, &got);
    check_same(&got, &want);
    assert_int_equal(got.last.n_reused, 119); /* the page behind it is kept from the evaluations before */
    /* a failing head fails the engine */
    fake_fail_at(b.ex, FAKE_HEAD, 2);
    seen_logits seen = {.ids = ids};
    assert_int_equal(rq_session_truncate(s, 0, NULL), RQ_OK);
    assert_int_equal(rq_evaluate(s, ids, 250, 0, RQ_LOGITS_ALL, check_logits, &seen, NULL), RQ_ERR_DEVICE);
    rq_session_free(s);
    assert_int_equal(bench_close(&b), 0);
}

/* A session whose pages were taken still knows its tokens and evaluates them again. */
static void test_evaluate_after_eviction(void **state)
{
    bench b;
    static answer got;
    rq_token ids[256];
    make_prompt(ids, 256, 1);
    open_ok(&b, (setup){.n_ctx = 256, .n_sessions = 2, .n_batch = 32, .cache_tokens = 256});
    rq_session *s = session_of(&b), *other = session_of(&b);
    assert_int_equal(rq_evaluate(s, ids, 100, 0, RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_OK);
    rq_request r = request(0, 1);
    submit_ok(other, ids + 50, 100, &r);
    collect(other, &got);
    assert_int_equal(rq_session_length(s), 100);
    seen_logits seen = {.ids = ids, .next = 100};
    assert_int_equal(rq_evaluate(s, ids + 100, 50, 16, RQ_LOGITS_ALL, check_logits, &seen, NULL), RQ_OK);
    assert_false(seen.wrong);
    assert_int_equal(seen.count, 50);
    assert_int_equal(rq_session_length(s), 150);
    rq_session_free(s);
    rq_session_free(other);
    assert_int_equal(bench_close(&b), 0);
}

/* ---- everything at once ---------------------------------------------------------------------------------- */

enum { CLIENTS = 6, ROUNDS = 25 };

typedef struct client {
    bench *b;
    uint32_t number;
    answer want[4];
    rq_token prompt[4][150];
    rq_request r[4];
    atomic_bool failed;
} client;

static size_t prompt_size(uint32_t client_number, uint32_t k)
{
    return 1 + (client_number * 37 + k * 53) % 149;
}

static void *client_main(void *user)
{
    client *c = user;
    uint64_t x = c->number + 1;
    rq_session *s = NULL;
    answer *got = malloc(sizeof *got);
    for (uint32_t round = 0; round < ROUNDS && !c->failed; round++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        uint32_t k = (uint32_t)(x >> 40) % 4, what = (uint32_t)(x >> 50) % 8;
        if (s == NULL && rq_sched_open(c->b->sched, &s, NULL) != RQ_OK) {
            usleep(100);
            continue;
        }
        size_t n = prompt_size(c->number, k);
        rq_status status = rq_submit(s, c->prompt[k], n, NULL, 0, &c->r[k], NULL);
        if (status != RQ_OK) {
            c->failed = true;
            break;
        }
        if (what == 0) { /* gone without a word */
            usleep((unsigned)(x >> 45) % 500);
            rq_session_free(s);
            s = NULL;
            continue;
        }
        if (what == 1) usleep((unsigned)(x >> 45) % 3000); /* slow reader */
        memset(got, 0, sizeof *got);
        rq_event e;
        do {
            if (rq_next(s, &e, 20000, NULL) != RQ_OK) {
                c->failed = true;
                break;
            }
            if (e.token >= 0) got->ids[got->n++] = e.token;
            if (what == 2 && got->n == 3) rq_cancel(s);
            rq_session_length(s);
        } while (e.finish == RQ_FINISH_NONE);
        const answer *want = &c->want[k];
        bool same = e.finish == want->last.finish && got->n == want->n;
        if (e.finish == RQ_FINISH_CANCELLED) same = what == 2 && got->n <= want->n;
        if (!same || memcmp(got->ids, want->ids, got->n * sizeof *want->ids) != 0) c->failed = true;
    }
    rq_session_free(s);
    free(got);
    return NULL;
}

static void test_many_threads(void **state)
{
    bench b;
    static client c[CLIENTS];
    open_ok(&b, (setup){.n_ctx = 256, .n_sessions = CLIENTS, .n_batch = 32, .cache_tokens = 640});
    pthread_t threads[CLIENTS];
    for (uint32_t i = 0; i < CLIENTS; i++) {
        c[i].b = &b;
        c[i].number = i;
        for (uint32_t k = 0; k < 4; k++) {
            c[i].r[k] = request(k == 0 ? 0 : 10 * k, i + k);
            make_prompt(c[i].prompt[k], prompt_size(i, k), k); /* beginnings are shared between clients */
            expect(&b, c[i].prompt[k], prompt_size(i, k), &c[i].r[k], 256, &c[i].want[k]);
        }
    }
    for (uint32_t i = 0; i < CLIENTS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &c[i]), 0);
    for (int i = 0; i < 50; i++) { /* a server's metrics */
        rq_engine_stats st;
        rq_error err;
        rq_sched_get_stats(b.sched, &st);
        assert_false(rq_sched_failed(b.sched, &err));
        usleep(200);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < CLIENTS; i++) assert_false(c[i].failed);
    rq_engine_stats st;
    rq_sched_get_stats(b.sched, &st);
    assert_int_equal(st.cache_tokens_used, 0);
    assert_int_equal(st.sessions + st.running + st.waiting, 0);
    assert_int_equal(bench_close(&b), 0);
}

static int run(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_failures),
        cmocka_unit_test(test_lost_file),
        cmocka_unit_test(test_senseless_logits),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_steady_state_allocates_nothing),
        cmocka_unit_test(test_evaluate),
        cmocka_unit_test(test_evaluate_after_eviction),
        cmocka_unit_test(test_many_threads),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
    return run_with_every_kv(run);
}
