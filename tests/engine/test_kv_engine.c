/* The compressed cache from outside, but for the quality of its formats (test_kv_formats.c): captures, codecs under
 * measurement, profiles and tables beside a model, sizes, what is refused, memory that runs out. */
#include "tests/engine/kv_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- capture --------------------------------------------------------------------------------------------- */

enum { TOKENS = 150, MAX_WIDTH = 512 };

typedef struct captured {
    float rows[2][3][TOKENS][MAX_WIDTH]; /* [layer][which][position] */
    uint8_t seen[2][3][TOKENS];
    uint32_t heads[3], dim[3];
    bool fails;
} captured;

static rq_status keep_rows(void *user, const rq_kv_captured *c, rq_error *err)
{
    captured *k = user;
    if (k->fails) return rq_fail(err, RQ_ERR_IO, "the disk is full of keys");
    assert_true(c->layer < 2 && c->position + c->n <= TOKENS && c->n_heads * c->dim <= MAX_WIDTH);
    assert_int_equal(c->session, 0);
    k->heads[c->which] = c->n_heads;
    k->dim[c->which] = c->dim;
    for (uint32_t i = 0; i < c->n; i++) {
        memcpy(k->rows[c->layer][c->which][c->position + i], c->rows + (size_t)i * c->n_heads * c->dim,
               sizeof(float) * c->n_heads * c->dim);
        k->seen[c->layer][c->which][c->position + i]++;
    }
    return RQ_OK;
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static void test_capture(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    rq_token ids[TOKENS];
    kb_tokens(ids, TOKENS);
    for (size_t i = 100; i < TOKENS; i++) ids[i] = ids[i - 100]; /* the same tokens elsewhere */
    static captured whole, pieces, one;
    static float logits[TOKENS * KB_VOCAB], plain[TOKENS * KB_VOCAB];
    rq_kv_hooks hooks = {.capture = keep_rows, .capture_user = &whole};
    rq_engine_params params = {.n_ctx = 256, .n_threads = 2, .type_k = "f32", .type_v = "f32"};
    kb_logits_of(model, &params, ids, TOKENS, 0, plain);
    params.kv_hooks = &hooks;
    kb_logits_of(model, &params, ids, TOKENS, 0, logits);
    assert_memory_equal(logits, plain, sizeof plain); /* looking changes nothing */
    hooks.capture_user = &pieces;
    kb_logits_of(model, &params, ids, TOKENS, 7, logits);
    const uint32_t second = 1;
    hooks = (rq_kv_hooks){.capture = keep_rows, .capture_user = &one, .layers = &second, .n_layers = 1};
    params.type_k = params.type_v = "f16";
    kb_logits_of(model, &params, ids, TOKENS, 64, logits);

    for (int which = 0; which < 3; which++) {
        rq_kv_layer shape;
        assert_int_equal(rq_kv_layer_of(model, 1, &shape, NULL), RQ_OK);
        assert_int_equal(whole.heads[which], which == RQ_KV_Q ? shape.n_heads : shape.n_heads_kv);
        assert_int_equal(whole.dim[which], which == RQ_KV_V ? shape.dim_v : shape.dim_k);
        size_t n = (size_t)whole.heads[which] * whole.dim[which];
        for (int p = 0; p < TOKENS; p++) {
            for (int layer = 0; layer < 2; layer++) {
                assert_int_equal(whole.seen[layer][which][p], 1);
                assert_int_equal(pieces.seen[layer][which][p], 1);
                const float *a = whole.rows[layer][which][p], *b = pieces.rows[layer][which][p];
                assert_true(norm(a, n) > 0);
                for (size_t i = 0; i < n; i++) assert_true(fabs(a[i] - b[i]) < 1e-3 * norm(a, n));
            }
            assert_int_equal(one.seen[0][which][p], 0);
            assert_int_equal(one.seen[1][which][p], 1);
        }
        /* in the first layer the rotary embedding is all that tells positions apart: it turns q and k, of the same
         * length, and leaves v alone */
        for (int p = 100; p < TOKENS; p++) {
            const float *a = whole.rows[0][which][p], *b = whole.rows[0][which][p - 100];
            double apart = 0, length = norm(a, n);
            for (size_t i = 0; i < n; i++) apart = fmax(apart, fabs(a[i] - b[i]));
            assert_true(fabs(length - norm(b, n)) < 1e-4 * length);
            if (which == RQ_KV_V)
                assert_true(apart < 1e-5 * length);
            else
                assert_true(apart > 1e-2 * length);
        }
    }
    rq_model_free(model);
}

/* What attention computes from captured rows is what the engine computed: values of a head averaged with softmax of
 * the scores, through the output matrix, are the difference that the attention of the first layer makes. Here: the
 * second layer's capture changes when the first layer's cache is compressed, the first one's does not. */
static void test_capture_is_before_the_cache(void **state)
{
    rq_model *model = rb_load(rb_path("qwen3.gguf"));
    rq_token ids[TOKENS];
    kb_tokens(ids, TOKENS);
    static captured exact, coded;
    static float logits[TOKENS * KB_VOCAB];
    rq_kv_hooks hooks = {.capture = keep_rows, .capture_user = &exact};
    rq_engine_params params = {.n_ctx = 256, .n_threads = 1, .kv_recent = 64, .kv_hooks = &hooks};
    kb_logits_of(model, &params, ids, TOKENS, 0, logits);
    hooks.capture_user = &coded;
    params.type_k = params.type_v = "wht2";
    kb_logits_of(model, &params, ids, TOKENS, 0, logits);
    size_t bytes = sizeof exact.rows[0][0];
    for (int which = 0; which < 3; which++)
        assert_memory_equal(exact.rows[0][which], coded.rows[0][which], bytes);
    assert_true(memcmp(exact.rows[1][RQ_KV_K], coded.rows[1][RQ_KV_K], bytes) != 0);
    rq_model_free(model);
}

static void test_capture_fails(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    static captured k;
    k.fails = true;
    rq_kv_hooks hooks = {.capture = keep_rows, .capture_user = &k};
    rq_engine *engine =
        rb_engine(model, &(rq_engine_params){.n_ctx = 64, .n_threads = 1, .kv_hooks = &hooks});
    rq_session *s = rb_session(engine);
    rq_token ids[4] = {1, 2, 3, 4};
    rq_error err = {0};
    assert_int_not_equal(rq_evaluate(s, ids, 4, 0, RQ_LOGITS_NONE, NULL, NULL, &err), RQ_OK);
    assert_non_null(strstr(err.text, "full of keys"));
    rq_session_free(s);
    rq_engine_free(engine);
    const uint32_t wrong = 2;
    hooks.layers = &wrong;
    hooks.n_layers = 1;
    rb_refused(model, (rq_engine_params){.n_ctx = 64, .kv_hooks = &hooks}, RQ_ERR_ARGUMENT, "layers 0 to 1");
    rq_model_free(model);
}

/* ---- codecs under measurement ---------------------------------------------------------------------------- */

typedef struct tripper {
    atomic_uint calls[2], rows[2];
    uint32_t d;
    float factor;
} tripper;

static void trip(void *user, bool is_v, float *rows, uint32_t n, uint32_t d)
{
    tripper *t = user;
    atomic_fetch_add(&t->calls[is_v], 1);
    atomic_fetch_add(&t->rows[is_v], n);
    assert_int_equal(d, t->d);
    for (size_t i = 0; i < (size_t)n * d; i++) rows[i] *= t->factor;
}

static void test_trip(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    enum { N = 300 };
    rq_token ids[N];
    kb_tokens(ids, N);
    static float exact[N * KB_VOCAB], logits[N * KB_VOCAB];
    static tripper t;
    t = (tripper){.d = 128, .factor = 1};
    rq_kv_hooks hooks = {.trip = trip, .trip_user = &t};
    rq_engine_params params = {.n_ctx = 320, .n_threads = 2, .kv_recent = 64};
    kb_logits_of(model, &params, ids, N, 0, exact);
    params.kv_hooks = &hooks;
    params.type_k = params.type_v = "trip";
    kb_logits_of(model, &params, ids, N, 0, logits);
    print_message("after a trip that changes nothing: %.2e\n", kb_nmse(logits, exact, N));
    assert_true(kb_nmse(logits, exact, N) < 1e-9); /* f16 after the trip as before it */
    /* four full pages of 64 tokens, two layers, two heads */
    assert_int_equal(t.rows[0], 4 * 64 * 2 * 2);
    assert_int_equal(t.rows[1], 4 * 64 * 2 * 2);
    t = (tripper){.d = 128, .factor = 0.5f};
    params.type_k = "f16";
    kb_logits_of(model, &params, ids, N, 7, logits);
    assert_int_equal(t.rows[0], 0);
    assert_int_equal(t.rows[1], 4 * 64 * 2 * 2);
    /* values of coded pages count half: nothing changes before the first token that reads one (B(127) = 1) */
    assert_true(kb_nmse(logits, exact, 127) < 1e-7);
    assert_true(kb_nmse(logits + 127 * KB_VOCAB, exact + 127 * KB_VOCAB, N - 127) > 1e-4);
    params.kv_hooks = NULL;
    params.type_v = "trip";
    rb_refused(model, params, RQ_ERR_ARGUMENT, "bring a codec");
    rq_model_free(model);
}

/* ---- numbers that are none ------------------------------------------------------------------------------- */

/* A profile whose means are far from the keys makes them larger than f16 holds. */
static void test_not_finite_is_counted(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    enum { N = 200 };
    rq_token ids[N];
    kb_tokens(ids, N);
    char path[] = "rqvk-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int far = 0; far < 2; far++) {
        rq_kv_profile *p = NULL;
        assert_int_equal(rq_kv_profile_new(model, 256, &p, NULL), RQ_OK);
        float *mean = rq_kv_profile_add(p, 1, RQ_KV_MEAN_K),
              *lambda = rq_kv_profile_add(p, 1, RQ_KV_LAMBDA_K);
        for (uint32_t i = 0; i < p->layers[1].n_heads * p->layers[1].dim_k; i++) {
            mean[i] = far ? 60000.0f : 1.0f;
            lambda[i] = far ? 16.0f : 1.0f;
        }
        assert_int_equal(rq_kv_profile_write(p, path, NULL), RQ_OK);
        uint64_t page = 64ull * p->layers[1].n_heads * p->layers[1].dim_k;
        rq_kv_profile_free(p);
        rb_lines log = {.n = 0};
        rq_engine *engine = rb_engine(model, &(rq_engine_params){.n_ctx = 256,
                                                                 .n_threads = 2,
                                                                 .type_k = "none3",
                                                                 .type_v = "none3",
                                                                 .kv_recent = 64,
                                                                 .kv_profile = path,
                                                                 .log = rb_keep_line,
                                                                 .log_user = &log});
        rq_session *s = rb_session(engine);
        assert_int_equal(rq_evaluate(s, ids, N, 0, RQ_LOGITS_NONE, NULL, NULL, NULL), RQ_OK);
        rq_engine_stats stats;
        rq_engine_get_stats(engine, &stats);
        /* the keys of three full pages in the second layer; its values are those of finite activations */
        assert_int_equal(stats.cache_not_finite, far ? 3 * page : 0);
        if (far)
            rb_said(&log, "not finite");
        else
            assert_null(strstr(log.text, "not finite"));
        rq_session_free(s);
        rq_engine_free(engine);
    }
    unlink(path);
    rq_model_free(model);
}

/* ---- formats, sizes, the log ----------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf")); /* 2 layers, 2 KV heads, 128 elements */
    static rb_lines log;
    rq_engine_params params = {.n_ctx = 4096,
                               .n_sessions = 3,
                               .n_threads = 1,
                               .type_k = "turbo3",
                               .type_v = "PLANAR4",
                               .kv_recent = 65,
                               .kv_sinks = 1,
                               .log = rb_keep_line,
                               .log_user = &log};
    rq_engine *engine = rb_engine(model, &params);
    rq_engine_info i;
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "wht3");
    assert_string_equal(i.type_v, "planar4");
    assert_true(i.bits_k == 3.125 && i.bits_v == 4.125);
    assert_int_equal(i.kv_recent, 128);
    assert_int_equal(i.kv_sinks, 64);
    assert_null(i.kv_profile);
    /* DESIGN section 5: bits = k + 8 groups / d */
    assert_int_equal(i.cache_bytes_per_token * 8, 2 * 2 * 128 * (3.125 + 4.125));
    assert_int_equal(i.exact_bytes_per_token, 2 * 2 * 2 * 128 * 2);
    assert_int_equal(i.cache_tokens, 3 * 4096);
    assert_true(i.cache_bytes < 3 * 4096 * i.exact_bytes_per_token);
    assert_true(i.exact_bytes_per_session >= 3 * 64 * i.exact_bytes_per_token);
    assert_true(i.cache_bytes >= i.cache_tokens * i.cache_bytes_per_token + 3 * i.exact_bytes_per_session);
    rb_said(&log, "wht3/planar4, 3.125/4.125 bits");
    rb_said(&log, "coded pages");
    rb_said(&log, "the first 64 tokens and the last 128 tokens");
    rb_said(&log, "cache profile: none");
    rq_engine_free(engine);
    rq_model_free(model);
}

/* By itself the context is what the coded cache leaves room for: at least what f16 would. */
static void test_default_context(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    rq_engine_info plain, coded;
    rq_engine *engine = rb_engine(model, NULL);
    rq_engine_describe(engine, &plain);
    rq_engine_free(engine);
    engine = rb_engine(model, &(rq_engine_params){.type_k = "wht2", .type_v = "wht2"});
    rq_engine_describe(engine, &coded);
    rq_engine_free(engine);
    assert_true(coded.n_ctx >= plain.n_ctx);
    rq_model_free(model);
}

static void test_refusals(void **state)
{
    rq_model *model = rb_load(rb_path("llama-Q8_0.gguf"));
    rb_refused(model, (rq_engine_params){.type_k = "wht5"}, RQ_ERR_ARGUMENT, "wht5");
    rb_refused(model, (rq_engine_params){.type_v = ""}, RQ_ERR_ARGUMENT, "cache format");
    rb_refused(model, (rq_engine_params){.type_v = "wht3", .kv_recent = 1 << 25}, RQ_ERR_ARGUMENT,
               "33554432");
    rb_refused(model, (rq_engine_params){.type_v = "wht3", .kv_sinks = 1 << 25}, RQ_ERR_ARGUMENT, "33554432");
    rb_refused(model, (rq_engine_params){.type_v = "wht3", .kv_profile = "/nonexistent/p"}, RQ_ERR_IO,
               "/nonexistent/p");
    rq_model_free(model);
}

/* ---- profiles and tables beside the model ---------------------------------------------------------------- */

static void write_profile(const rq_model *model, uint32_t n_positions, bool foreign)
{
    rq_kv_profile *p = NULL;
    assert_int_equal(rq_kv_profile_new(model, n_positions, &p, NULL), RQ_OK);
    float *mean = rq_kv_profile_add(p, 0, RQ_KV_MEAN_K);
    for (uint32_t i = 0; i < p->layers[0].n_heads * p->layers[0].dim_k; i++) mean[i] = 0.01f * (float)(i % 7);
    if (foreign) p->identity.model ^= 1;
    snprintf(p->note, sizeof p->note, "from nothing");
    assert_int_equal(rq_kv_profile_write(p, kb_beside(".kvprofile"), NULL), RQ_OK);
    rq_kv_profile_free(p);
}

static bool uses_profile(const rq_model *model, rq_engine_params params, rb_lines *log)
{
    log->n = 0;
    params.log = rb_keep_line;
    params.log_user = log;
    params.n_threads = 1;
    rq_engine *engine = rb_engine(model, &params);
    rq_engine_info i;
    rq_engine_describe(engine, &i);
    bool uses = i.kv_profile != NULL;
    if (uses) assert_string_equal(i.kv_profile, kb_beside(".kvprofile"));
    rq_engine_free(engine);
    return uses;
}

static void test_profile_choice(void **state)
{
    rq_model *model = kb_load_alone("llama-Q8_0.gguf");
    static rb_lines log;
    rq_engine_params params = {.n_ctx = 128, .type_k = "wht3", .type_v = "wht3"};
    assert_false(uses_profile(model, params, &log));
    write_profile(model, 128, false);
    assert_true(uses_profile(model, params, &log));
    rb_said(&log, "from nothing");
    params.kv_profile = "none";
    assert_false(uses_profile(model, params, &log));
    params = (rq_engine_params){.n_ctx = 129, .type_k = "wht3"};
    assert_false(uses_profile(model, params, &log)); /* found by itself: left out where it does not reach */
    rb_said(&log, "calibrated for 128 tokens");
    char path[300];
    snprintf(path, sizeof path, "%s", kb_beside(".kvprofile"));
    params.kv_profile = path;
    rb_refused(model, params, RQ_ERR_ARGUMENT, "up to 128 tokens");
    params.n_ctx = 0; /* named: the context follows */
    assert_true(uses_profile(model, params, &log));
    rb_said(&log, "up to 128 tokens");
    params.type_k = "f32"; /* nothing is compressed */
    assert_false(uses_profile(model, params, &log));
    rb_said(&log, "is not used");
    write_profile(model, 128, true);
    params = (rq_engine_params){.n_ctx = 128, .type_v = "wht3"};
    rb_refused(model, params, RQ_ERR_ARGUMENT, "--kv-profile none");
    rq_model_free(model);
    kb_remove();
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_auto(void **state)
{
    rq_model *model = kb_load_alone("llama-Q8_0.gguf");
    static rb_lines log;
    rq_engine_params params = {.n_ctx = 64,
                               .n_threads = 1,
                               .type_k = "auto",
                               .type_v = "auto",
                               .log = rb_keep_line,
                               .log_user = &log};
    rq_engine *engine = rb_engine(model, &params);
    rq_engine_info i;
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "f16");
    assert_string_equal(i.type_v, "f16");
    rb_said(&log, "no table of measurements");
    rb_said(&log, ".kvtable");
    rq_engine_free(engine);

    rq_kv_identity id;
    rq_kv_identify(model, &id);
    rq_kv_table_row rows[] = {{"wht2", "wht2", 2.125, 0.5},
                              {"wht4", "iso3", 3.625, 0.01},
                              {"wht4", "wht3", 3.627, 0.01},
                              {"f16", "f16", 16, 0}};
    rq_kv_table table = {.model = id.model, .bound = 0.02, .n = 4, .rows = rows};
    assert_int_equal(rq_kv_table_write(&table, kb_beside(".kvtable"), NULL), RQ_OK);
    log.n = 0;
    engine = rb_engine(model, &params);
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "wht4");
    assert_string_equal(i.type_v, "iso3");
    rb_said(&log, "model.gguf.kvtable has wht4/iso3");
    rq_engine_free(engine);
    params.type_v = "Turbo3"; /* wht3 by another name */
    log.n = 0;
    engine = rb_engine(model, &params);
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "wht4");
    assert_string_equal(i.type_v, "wht3");
    rb_said(&log, "has wht4/wht3");
    rq_engine_free(engine);
    params.type_v = "haar2"; /* not in the table */
    log.n = 0;
    engine = rb_engine(model, &params);
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "f16");
    assert_string_equal(i.type_v, "haar2");
    rb_said(&log, "nothing with an error");
    rq_engine_free(engine);
    table.model ^= 1;
    assert_int_equal(rq_kv_table_write(&table, kb_beside(".kvtable"), NULL), RQ_OK);
    rb_refused(model, params, RQ_ERR_ARGUMENT, "another model");
    write_text(kb_beside(".kvtable"), "rqvk-kvtable 1\npair x\n");
    rb_refused(model, params, RQ_ERR_FORMAT, "line 2");
    rq_model_free(model);
    kb_remove();
}

/* ---- memory that runs out -------------------------------------------------------------------------------- */

static void test_failing_allocations(void **state)
{
    rq_model *model = kb_load_alone("llama-IQ4_XS.gguf");
    rq_kv_profile *p = NULL;
    assert_int_equal(rq_kv_profile_new(model, 256, &p, NULL), RQ_OK);
    for (int part = RQ_KV_MEAN_K; part <= RQ_KV_SO8_V; part++) assert_non_null(rq_kv_profile_add(p, 1, part));
    assert_int_equal(rq_kv_profile_write(p, kb_beside(".kvprofile"), NULL), RQ_OK);
    rq_kv_profile_free(p);
    rq_kv_identity id;
    rq_kv_identify(model, &id);
    rq_kv_table_row row = {"so83", "wht2", 2.6, 0};
    rq_kv_table table = {.model = id.model, .bound = 0.02, .n = 1, .rows = &row};
    assert_int_equal(rq_kv_table_write(&table, kb_beside(".kvtable"), NULL), RQ_OK);
    static captured k;
    const uint32_t layers[] = {0};
    rq_kv_hooks hooks = {.capture = keep_rows, .capture_user = &k, .layers = layers, .n_layers = 1};
    rq_engine_params params = {
        .n_ctx = 128, .n_threads = 2, .n_batch = 16, .type_k = "auto", .type_v = "auto", .kv_hooks = &hooks};
    rq_engine *engine = rb_engine(model, &params);
    rq_engine_info i;
    rq_engine_describe(engine, &i);
    assert_string_equal(i.type_k, "so83");
    assert_non_null(i.kv_profile);
    rq_engine_free(engine);
    /* the cache's own allocations come first */
    assert_true(rb_failing_allocations(model, &params, 64, 100) > 60);
    rq_model_free(model);
    kb_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_capture),
        cmocka_unit_test(test_capture_is_before_the_cache),
        cmocka_unit_test(test_capture_fails),
        cmocka_unit_test(test_trip),
        cmocka_unit_test(test_not_finite_is_counted),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_default_context),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_profile_choice),
        cmocka_unit_test(test_auto),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
