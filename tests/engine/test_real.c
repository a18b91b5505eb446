/* The whole engine on small random models (tests/data/oracle): the same seed gives the same text whoever runs
 * beside, files that shrink, parameters that make no sense, memory that runs out. */
#include "tests/engine/real_bench.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the same bits --------------------------------------------------------------------------------------- */

enum { ANSWER = 24 };

typedef struct answer {
    rq_token ids[ANSWER];
    float logprobs[ANSWER]; /* of the raw logits: they differ when a bit that matters does */
    char text[4096];
    size_t n, bytes;
} answer;

static void start(rq_session *s, const rq_token *prompt, size_t n, uint64_t seed)
{
    rq_request r = rq_request_default();
    r.max_tokens = ANSWER;
    r.sampling.seed = seed;
    r.sampling.top_k = 0;
    r.sampling.top_p = 0.99f;
    r.sampling.repeat_penalty = 1.1f;
    r.n_logprobs = 0;
    r.ignore_eos = true;
    rq_error err = {0};
    if (rq_submit(s, prompt, n, NULL, 0, &r, &err) != RQ_OK) {
        print_error("%s\n", err.text);
        fail();
    }
}

static void collect(rq_session *s, answer *a)
{
    memset(a, 0, sizeof *a);
    rq_event e;
    do {
        assert_int_equal(rq_next(s, &e, -1, NULL), RQ_OK);
        if (e.token >= 0) {
            a->ids[a->n] = e.token;
            a->logprobs[a->n++] = e.chosen.logprob;
        }
        assert_true(a->bytes + e.text_bytes <= sizeof a->text);
        memcpy(a->text + a->bytes, e.text, e.text_bytes);
        a->bytes += e.text_bytes;
    } while (e.finish == RQ_FINISH_NONE);
    assert_int_equal(e.finish, RQ_FINISH_LENGTH);
    assert_int_equal(a->n, ANSWER);
}

static void test_same_text_beside_others(void **state)
{
    static const struct {
        const char *file, *type_k, *type_v;
    } runs[] = {{"llama-Q4_K_M.gguf", "f16", "f16"},
                {"qwen3.gguf", "f16", "f16"},
                {"qwen3moe.gguf", "f16", "f16"},
                {"llama-Q4_K_M.gguf", "wht3", "wht3"},
                {"qwen3.gguf", "q8_0", "planar4"}};
    enum { SESSIONS = 4, RUNS = sizeof runs / sizeof *runs };
    /* one prompt of each kind: a token, less than a narrow step, several pieces, more than 512 positions (from
     * where attention is computed in splits) */
    static const size_t sizes[SESSIONS] = {1, 7, 150, 600};
    static rq_token prompt[SESSIONS][600];
    static answer alone[SESSIONS], beside;
    for (size_t f = 0; f < RUNS; f++) {
        rq_model *model = rb_load(rb_path(runs[f].file));
        rq_model_info info;
        rq_model_describe(model, &info);
        for (uint32_t round = 0; round < 2; round++) {
            rq_engine *engine = rb_engine(model, &(rq_engine_params){.n_ctx = 640,
                                                                     .n_sessions = round == 0 ? 1 : SESSIONS,
                                                                     .n_batch = 64,
                                                                     .type_k = runs[f].type_k,
                                                                     .type_v = runs[f].type_v});
            rq_session *s[SESSIONS];
            if (round == 0) {
                s[0] = rb_session(engine);
                for (uint32_t i = 0; i < SESSIONS; i++) {
                    rb_tokens(prompt[i], sizes[i], i, info.n_vocab);
                    start(s[0], prompt[i], sizes[i], i);
                    collect(s[0], &alone[i]);
                    /* once more, with all but the last token found in the cache */
                    start(s[0], prompt[i], sizes[i], i);
                    collect(s[0], &beside);
                    assert_memory_equal(&beside, &alone[i], sizeof beside);
                    assert_int_equal(rq_session_truncate(s[0], 0, NULL), RQ_OK);
                }
                rq_session_free(s[0]);
            } else {
                for (uint32_t i = 0; i < SESSIONS; i++) s[i] = rb_session(engine);
                for (uint32_t again = 0; again < 2; again++) {
                    for (uint32_t i = SESSIONS; i-- > 0;) {
                        assert_int_equal(rq_session_truncate(s[i], 0, NULL), RQ_OK);
                        start(s[i], prompt[i], sizes[i], i);
                    }
                    for (uint32_t i = 0; i < SESSIONS; i++) {
                        collect(s[i], &beside);
                        assert_memory_equal(&beside, &alone[i], sizeof beside);
                    }
                }
                for (uint32_t i = 0; i < SESSIONS; i++) rq_session_free(s[i]);
            }
            rq_engine_free(engine);
        }
        rq_model_free(model);
    }
}

typedef struct rows {
    float *at;
    size_t n_vocab;
} rows;

static void keep_row(void *user, size_t position, const float *logits)
{
    rows *r = user;
    memcpy(r->at + position * r->n_vocab, logits, r->n_vocab * sizeof *logits);
}

/* Pieces of up to 8 tokens have the bits of single ones, whatever they are and whoever evaluates beside. */
static void test_pieces(void **state)
{
    enum { N = 560 };
    static rq_token ids[N];
    rq_model *model = rb_load(rb_path("llama.gguf"));
    rq_model_info info;
    rq_model_describe(model, &info);
    rb_tokens(ids, N, 5, info.n_vocab);
    rq_engine *engine = rb_engine(model, &(rq_engine_params){.n_ctx = N, .n_sessions = 2, .n_batch = 64});
    rq_session *s = rb_session(engine);
    rows one = {calloc(N * info.n_vocab, sizeof(float)), info.n_vocab};
    rows other = {calloc(N * info.n_vocab, sizeof(float)), info.n_vocab};
    assert_int_equal(rq_evaluate(s, ids, N, 1, RQ_LOGITS_ALL, keep_row, &one, NULL), RQ_OK);
    static const uint32_t chunks[] = {2, 3, 5, 8};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(rq_session_truncate(s, 0, NULL), RQ_OK);
        memset(other.at, 0, N * info.n_vocab * sizeof(float));
        assert_int_equal(rq_evaluate(s, ids, N, chunks[i], RQ_LOGITS_ALL, keep_row, &other, NULL), RQ_OK);
        assert_memory_equal(one.at, other.at, N * info.n_vocab * sizeof(float));
    }
    free(one.at);
    free(other.at);
    rq_session_free(s);
    rq_engine_free(engine);
    rq_model_free(model);
}

/* ---- a file that goes away ------------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *to)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_non_null(in);
    assert_non_null(out);
    static char buffer[65536];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, in)) > 0) assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void test_file_truncated_during_generation(void **state)
{
    char path[] = "rqvk-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    copy_file(rb_path("llama.gguf"), path);
    rq_model *model = rb_load(path);
    rq_engine *engine = rb_engine(model, &(rq_engine_params){.n_ctx = 8192, .n_sessions = 2});
    rq_session *s = rb_session(engine), *idle = rb_session(engine);
    rq_token prompt[10];
    rb_tokens(prompt, 10, 1, 512);
    rq_request r = rq_request_default();
    r.ignore_eos = true;
    assert_int_equal(rq_submit(s, prompt, 10, NULL, 0, &r, NULL), RQ_OK);
    rq_event e;
    for (int i = 0; i < 5; i++) assert_int_equal(rq_next(s, &e, -1, NULL), RQ_OK);
    assert_int_equal(truncate(path, 4096), 0);
    do assert_int_equal(rq_next(s, &e, -1, NULL), RQ_OK);
    while (e.finish == RQ_FINISH_NONE);
    assert_int_equal(e.finish, RQ_FINISH_ERROR);
    assert_true(strlen(e.error.text) > 20);
    rq_engine_info info;
    rq_engine_describe(engine, &info);
    assert_true(info.failed);
    assert_string_equal(info.failure, e.error.text);
    rq_error err = {0};
    assert_int_equal(rq_submit(idle, prompt, 10, NULL, 0, &r, &err), RQ_ERR_DEVICE);
    assert_non_null(strstr(err.text, info.failure));
    rq_session_free(s);
    rq_session_free(idle);
    rq_engine_free(engine);
    /* the process and other models live */
    rq_model *fine = rb_load(rb_path("llama-Q8_0.gguf"));
    rq_model_free(fine);
    rq_model_free(model);
    unlink(path);
}

/* ---- parameters, the log, the plan ----------------------------------------------------------------------- */

static void test_bad_parameters(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    rb_refused(model, (rq_engine_params){.n_batch = 500}, RQ_ERR_ARGUMENT, "power of two");
    rb_refused(model, (rq_engine_params){.n_batch = 4096}, RQ_ERR_ARGUMENT, "2048");
    rb_refused(model, (rq_engine_params){.backend = "abacus"}, RQ_ERR_ARGUMENT, "abacus");
    rb_refused(model, (rq_engine_params){.type_k = "q9_9"}, RQ_ERR_ARGUMENT, "q9_9");
    rb_refused(model, (rq_engine_params){.type_v = "c3"}, RQ_ERR_ARGUMENT, "c3");
    rb_refused(model, (rq_engine_params){.n_sessions = 257}, RQ_ERR_ARGUMENT, "257");
    rb_refused(model, (rq_engine_params){.n_ctx = 1}, RQ_ERR_ARGUMENT, "context");
    rb_refused(model, (rq_engine_params){.n_ctx = UINT32_MAX}, RQ_ERR_ARGUMENT, "context");
    rb_refused(model, (rq_engine_params){.n_ctx = 1 << 24, .n_sessions = 256}, RQ_ERR_ARGUMENT, "address");
    rb_refused(model, (rq_engine_params){.n_ctx = 2000, .cache_tokens = 1000}, RQ_ERR_ARGUMENT, "smaller");
    rb_refused(model, (rq_engine_params){.n_ctx = 1 << 24, .n_sessions = 16}, RQ_ERR_MEMORY, "MiB");
    rq_model_free(model);
}

static void test_plan_and_log(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    rq_model_info m;
    rq_model_describe(model, &m);
    assert_string_equal(m.architecture, "llama");
    assert_int_equal(m.n_vocab, 512);
    static rb_lines log;
    static const char *const types[] = {"f16", "f32"};
    uint64_t per_token[2];
    for (int t = 0; t < 2; t++) {
        rq_engine *engine = rb_engine(model, &(rq_engine_params){.n_ctx = 300,
                                                                 .n_sessions = 3,
                                                                 .n_threads = 1,
                                                                 .type_k = types[t],
                                                                 .type_v = types[t],
                                                                 .log = rb_keep_line,
                                                                 .log_user = &log});
        rq_engine_info i;
        rq_engine_describe(engine, &i);
        assert_string_equal(i.backend, "cpu");
        assert_string_equal(i.type_k, types[t]);
        assert_int_equal(i.n_ctx, 300);
        assert_int_equal(i.n_sessions, 3);
        assert_int_equal(i.n_threads, 1);
        assert_int_equal(i.n_batch, 512);
        assert_int_equal(i.cache_tokens, 3 * 320); /* whole pages of 64 for each session */
        /* pages, and a table of five entries for each session */
        assert_int_equal(i.cache_bytes, i.cache_tokens * i.cache_bytes_per_token + 3 * 5 * 4);
        assert_false(i.failed);
        per_token[t] = i.cache_bytes_per_token;
        rq_engine_free(engine);
    }
    assert_int_equal(per_token[1], 2 * per_token[0]);
    static const char *const said[] = {"weights:", "bytes per token", "sessions: 3 of up to 300", "f32/f32"};
    for (int i = 0; i < 4; i++) rb_said(&log, said[i]);
    /* by itself: the trained context, or less where memory is short */
    rq_engine *engine = rb_engine(model, NULL);
    rq_engine_info i;
    rq_engine_describe(engine, &i);
    assert_in_range(i.n_ctx, 2, m.n_ctx_train);
    assert_int_equal(i.n_sessions, 1);
    rq_engine_free(engine);
    rq_model_free(model);
    log.n = 0;
    rq_list_devices(rb_keep_line, &log);
    rb_said(&log, "cpu0");
}

/* ---- text ------------------------------------------------------------------------------------------------ */

static void test_text_functions(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    static const char text[] = "Hello, world! \xc3\xa9\xe2\x82\xac <|im_start|>";
    rq_tokens ids = {0};
    assert_int_equal(rq_tokenize(model, text, sizeof text - 1, 0, &ids, NULL), RQ_OK);
    assert_true(ids.n > 0);
    char *back = NULL;
    assert_int_equal(rq_detokenize(model, ids.ids, ids.n, false, &back, NULL), RQ_OK);
    assert_string_equal(back, text);
    rq_string_free(back);
    size_t bytes = 0, sum = 0;
    for (size_t i = 0; i < ids.n; i++) {
        assert_non_null(rq_token_bytes(model, ids.ids[i], &bytes));
        sum += bytes;
    }
    assert_int_equal(sum, sizeof text - 1);
    assert_string_equal(rq_token_bytes(model, -5, &bytes), "");
    assert_int_equal(bytes, 0);
    assert_int_equal(rq_detokenize(model, NULL, 0, true, &back, NULL), RQ_OK);
    assert_string_equal(back, "");
    rq_string_free(back);
    rq_string_free(NULL);
    rq_tokens_free(&ids);
    assert_int_equal(ids.n, 0);
    rq_tokens_free(&ids);
    rq_model_free(model);
}

/* ---- memory that runs out -------------------------------------------------------------------------------- */

static void test_failing_allocations(void **state)
{
    rq_model *model = rb_load(rb_path("llama-IQ4_XS.gguf"));
    rq_engine_params params = {.n_ctx = 128, .n_threads = 2, .n_batch = 4};
    assert_true(rb_failing_allocations(model, &params, 1, 150) > 20);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_text_beside_others),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_file_truncated_during_generation),
        cmocka_unit_test(test_bad_parameters),
        cmocka_unit_test(test_plan_and_log),
        cmocka_unit_test(test_text_functions),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
