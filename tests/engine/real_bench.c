#include "tests/engine/real_bench.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

const char *rb_path(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/oracle/%s", RQVK_TEST_DATA, name);
    return path;
}

rq_model *rb_load(const char *path)
{
    rq_model *model = NULL;
    rq_error err = {0};
    if (rq_model_load(path, &model, &err) != RQ_OK) fail_msg("%s", err.text);
    return model;
}

rq_engine *rb_engine(const rq_model *model, const rq_engine_params *params)
{
    rq_engine *engine = NULL;
    rq_error err = {0};
    if (rq_engine_create(model, params, &engine, &err) != RQ_OK) fail_msg("%s", err.text);
    return engine;
}

rq_session *rb_session(rq_engine *engine)
{
    rq_session *s = NULL;
    assert_int_equal(rq_session_create(engine, &s, NULL), RQ_OK);
    return s;
}

void rb_refused(const rq_model *model, rq_engine_params params, rq_status status, const char *part)
{
    rq_engine *engine = NULL;
    rq_error err = {0};
    assert_int_equal(rq_engine_create(model, &params, &engine, &err), status);
    assert_null(engine);
    if (strstr(err.text, part) == NULL) fail_msg("\"%s\" does not mention \"%s\"", err.text, part);
}

void rb_tokens(rq_token *ids, size_t n, uint32_t number, uint32_t n_vocab)
{
    uint64_t x = number * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (rq_token)((x >> 33) % n_vocab);
    }
}

void rb_keep_line(void *user, const char *line)
{
    rb_lines *l = user;
    l->n += (size_t)snprintf(l->text + l->n, sizeof l->text - l->n, "%s\n", line);
    assert_true(l->n < sizeof l->text);
}

void rb_said(const rb_lines *log, const char *part)
{
    if (strstr(log->text, part) == NULL) fail_msg("the log does not say \"%s\":\n%s", part, log->text);
}

uint64_t rb_failing_allocations(const rq_model *model, const rq_engine_params *params, uint64_t dense,
                                uint64_t others)
{
    int64_t alive = rq_mem_alive();
    rq_mem_fail_at(0);
    rq_engine *engine = rb_engine(model, params);
    uint64_t total = rq_mem_count(), failures = 0;
    rq_engine_free(engine);
    assert_int_equal(rq_mem_alive(), alive);
    for (uint64_t n = 1; n <= total; n += n < dense ? 1 : total / others + 1) {
        rq_error err = {0};
        engine = NULL;
        rq_mem_fail_at(n);
        rq_status status = rq_engine_create(model, params, &engine, &err);
        rq_mem_fail_at(0);
        if (status != RQ_OK) {
            assert_null(engine);
            assert_true(err.text[0] != 0);
            failures++;
        }
        rq_engine_free(engine);
        assert_int_equal(rq_mem_alive(), alive);
    }
    return failures;
}

void rb_submit(rq_session *s, const rq_token *ids, size_t n, const size_t *ends, size_t n_ends, uint32_t max,
               bool fresh)
{
    rq_request r = rq_request_default();
    rq_error err = {0};
    r.max_tokens = max;
    r.sampling.seed = n;
    r.sampling.temperature = 1;
    r.ignore_eos = true;
    r.n_logprobs = RQ_MAX_LOGPROBS;
    r.fresh = fresh;
    if (rq_submit(s, ids, n, ends, n_ends, &r, &err) != RQ_OK) fail_msg("%s", err.text);
}

void rb_collect(rq_session *s, rb_answer *a)
{
    rq_event e;
    memset(a, 0, sizeof *a);
    for (;;) {
        assert_int_equal(rq_next(s, &e, -1, NULL), RQ_OK);
        if (e.finish != RQ_FINISH_NONE) break;
        assert_true(a->n < RB_MOST);
        memcpy(a->top[a->n], e.top, e.n_top * sizeof *e.top);
        a->ids[a->n++] = e.token;
    }
    assert_int_equal(e.finish, RQ_FINISH_LENGTH);
    a->n_reused = e.n_reused;
    snprintf(a->note, sizeof a->note, "%s", e.reuse_note);
}

void rb_same_answer(const rb_answer *a, const rb_answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->top, b->top, sizeof a->top);
}

uint64_t rb_step_tokens(const rq_engine *engine)
{
    rq_engine_stats st;
    rq_engine_get_stats(engine, &st);
    return st.step_tokens;
}

uint32_t rb_reuse(const rq_engine *engine, rq_session *s, rq_session *other, const rq_token *ids, size_t n,
                  const size_t *ends, size_t n_ends, uint32_t max, rb_answer *got)
{
    static rb_answer want;
    uint64_t before = rb_step_tokens(engine);
    rb_submit(s, ids, n, ends, n_ends, max, false);
    rb_collect(s, got);
    assert_int_equal(rb_step_tokens(engine) - before, n - got->n_reused + got->n - 1);
    rb_submit(other, ids, n, NULL, 0, max, true);
    rb_collect(other, &want);
    assert_int_equal(want.n_reused, 0);
    rb_same_answer(got, &want);
    return got->n_reused;
}
