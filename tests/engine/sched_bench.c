#include "tests/engine/sched_bench.h"

kv_kind bench_kv;

int run_with_every_kv(int (*run)(const char *name))
{
    static const char *const names[] = {"no coded form", "both groups coded", "one group coded"};
    int failed = 0;
    for (int kv = KV_PLAIN; kv <= KV_MIXED; kv++) {
        bench_kv = (kv_kind)kv;
        failed += run(names[kv]);
    }
    return failed;
}

static rq_status file_is_there(void *user, rq_error *err)
{
    bench *b = user;
    return atomic_load(&b->lost) ? rq_fail(err, RQ_ERR_DEVICE, "the file is gone") : RQ_OK;
}

rq_status bench_open(bench *b, setup s, rq_error *err)
{
    memset(b, 0, sizeof *b);
    rq_status status = tiny_tokenizer_create(RQ_TOKEN_CONTROL, &b->tok, err);
    if (status != RQ_OK) return status;
    uint32_t tokens = s.cache_tokens != 0 ? s.cache_tokens : s.n_ctx * s.n_sessions;
    if (s.cache_tokens == 0) tokens = (s.n_ctx + 63) / 64 * 64 * s.n_sessions;
    uint32_t max_pages = (s.n_ctx + 63) / 64;
    fake_params p = {.caps = {.max_tokens = s.step_tokens != 0 ? s.step_tokens : s.n_batch,
                              .n_groups = 2,
                              .n_seqs = s.n_sessions,
                              .max_pages = max_pages},
                     .pools = {.n_groups = 2, .n_seqs = s.n_sessions, .max_pages = max_pages},
                     .n_vocab = VOCAB,
                     .step_us = s.step_us};
    for (uint32_t g = 0; g < 2; g++) {
        rq_cache_group *group = &p.pools.groups[g];
        *group = (rq_cache_group){.n_layers = 1, .n_heads = 1, .dim_k = 64, .dim_v = 64};
        if (bench_kv == KV_CODED || (bench_kv == KV_MIXED && g == 1)) {
            group->form_k = RQ_KV_C3;
            group->form_v = RQ_KV_C4;
            group->recent_pages = 1 + g;
            group->sink_pages = g;
        }
        rq_pool_sizes size;
        status =
            rq_cache_pool_sizes(group, s.n_sessions, s.n_ctx, tokens + 64 * 3 * g, s.n_batch, &size, err);
        if (status != RQ_OK) return status;
        p.pools.pages[g] = size.exact;
        p.pools.coded_pages[g] = size.coded;
        p.pools.scratch_pages[g] = size.scratch;
    }
    rq_step_caps_complete(&p.caps);
    b->ex = fake_create(&p);
    if (b->ex == NULL) return rq_fail(err, RQ_ERR_MEMORY, "no memory for the fake");
    rq_sched_params sp = {.executor = b->ex,
                          .tok = b->tok,
                          .groups = p.pools.groups,
                          .group_pages = p.pools.pages,
                          .group_coded_pages = p.pools.coded_pages,
                          .group_scratch_pages = p.pools.scratch_pages,
                          .n_groups = 2,
                          .n_vocab = VOCAB,
                          .n_ctx = s.n_ctx,
                          .n_sessions = s.n_sessions,
                          .n_batch = s.n_batch,
                          .n_piece = s.n_piece != 0 ? s.n_piece : s.n_batch,
                          .n_queue = s.n_queue != 0 ? s.n_queue : 4 * s.n_sessions,
                          .check = file_is_there,
                          .user = b};
    return rq_sched_create(&sp, &b->sched, err);
}

uint32_t bench_close(bench *b)
{
    rq_sched_free(b->sched);
    uint32_t violations = fake_free(b->ex);
    rq_tokenizer_free(b->tok);
    return violations;
}

void open_ok(bench *b, setup s)
{
    rq_error err = {0};
    if (bench_open(b, s, &err) != RQ_OK) {
        print_error("%s\n", err.text);
        fail();
    }
}

rq_session *session_of(bench *b)
{
    rq_session *s = NULL;
    assert_int_equal(rq_sched_open(b->sched, &s, NULL), RQ_OK);
    return s;
}

void make_prompt(rq_token *ids, size_t n, uint32_t number)
{
    uint64_t x = number * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = 32 + (rq_token)((x >> 33) % 95);
    }
}

void expect(bench *b, const rq_token *prompt, size_t n, const rq_request *r, uint32_t n_ctx, answer *a)
{
    static rq_token ids[4 * MAX_TOKENS];
    static float logits[VOCAB];
    memset(a, 0, sizeof *a);
    memcpy(ids, prompt, n * sizeof *ids);
    rq_sampler_scratch scratch;
    rq_sampler sampler = {0};
    assert_int_equal(rq_sampler_scratch_init(&scratch, VOCAB, NULL), RQ_OK);
    size_t n_eog = 0;
    const rq_token *eog = rq_tokenizer_eog(b->tok, &n_eog);
    assert_int_equal(
        rq_sampler_start(&sampler, &r->sampling, VOCAB, ids, n, eog, r->ignore_eos ? n_eog : 0, NULL), RQ_OK);
    rq_buf text = {.max = sizeof a->text};
    rq_detok detok;
    rq_detok_init(&detok, b->tok, 0);
    a->last.finish = RQ_FINISH_NONE;
    while (a->last.finish == RQ_FINISH_NONE) {
        rq_token token;
        fake_logits(ids, n, VOCAB, logits);
        assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, NULL), RQ_OK);
        a->last.n_generated++;
        if (!r->ignore_eos && rq_token_is_eog(b->tok, token)) {
            a->last.finish = RQ_FINISH_EOS;
            break;
        }
        ids[n++] = token;
        rq_sampler_accept(&sampler, ids, n);
        a->ids[a->n++] = token;
        rq_detok_add(&detok, token, &text);
        for (size_t i = 0; i < r->n_stop; i++) {
            char *hit = text.len > 0 ? memmem(text.data, text.len, r->stop[i], strlen(r->stop[i])) : NULL;
            if (hit == NULL) continue;
            a->last.finish = RQ_FINISH_STOP;
            text.len = (size_t)(hit - text.data);
        }
        if (a->last.finish == RQ_FINISH_NONE && (a->n == r->max_tokens || n == n_ctx))
            a->last.finish = RQ_FINISH_LENGTH;
    }
    if (a->last.finish != RQ_FINISH_STOP) rq_detok_flush(&detok, &text);
    a->bytes = text.len;
    if (text.len > 0) memcpy(a->text, text.data, text.len);
    rq_buf_free(&text);
    rq_sampler_free(&sampler);
    rq_sampler_scratch_free(&scratch);
}

void collect(rq_session *s, answer *a)
{
    rq_event e;
    uint32_t n_before = 0; /* tokens somebody else has read */
    memset(a, 0, sizeof *a);
    do {
        rq_error err = {0};
        rq_status status = rq_next(s, &e, 20000, &err);
        if (status != RQ_OK) {
            print_error("%s\n", err.text);
            fail();
        }
        if (e.token >= 0) {
            assert_int_equal(e.finish, RQ_FINISH_NONE);
            if (a->n == 0) n_before = e.n_generated - 1;
            a->ids[a->n++] = e.token;
            assert_int_equal(e.n_generated, n_before + a->n);
        }
        assert_true(a->bytes + e.text_bytes < sizeof a->text);
        memcpy(a->text + a->bytes, e.text, e.text_bytes);
        a->bytes += e.text_bytes;
        a->n_events++;
    } while (e.finish == RQ_FINISH_NONE);
    a->last = e;
    assert_int_equal(rq_next(s, &e, 0, NULL), RQ_ERR_ARGUMENT); /* nothing runs any more */
}

void check_same(const answer *got, const answer *want)
{
    assert_int_equal(got->n, want->n);
    assert_memory_equal(got->ids, want->ids, want->n * sizeof *want->ids);
    assert_int_equal(got->bytes, want->bytes);
    assert_memory_equal(got->text, want->text, want->bytes);
    assert_int_equal(got->last.finish, want->last.finish);
    assert_int_equal(got->last.n_generated, want->last.n_generated);
}

rq_request request(uint32_t max_tokens, uint64_t seed)
{
    rq_request r = rq_request_default();
    r.max_tokens = max_tokens;
    r.sampling.seed = seed;
    r.ignore_eos = true;
    return r;
}

void submit_ok(rq_session *s, const rq_token *ids, size_t n, const rq_request *r)
{
    rq_error err = {0};
    if (rq_submit(s, ids, n, NULL, 0, r, &err) != RQ_OK) {
        print_error("%s\n", err.text);
        fail();
    }
}

void pause_ms(int ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

void settle(bench *b)
{
    for (uint32_t before = fake_steps(b->ex), same = 0; same < 5; same++) {
        pause_ms(10);
        uint32_t now = fake_steps(b->ex);
        if (now != before) same = 0;
        before = now;
    }
}
