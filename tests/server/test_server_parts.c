/* The parts of the server that need no network: JSON checks, request parsing, access rules, JSON out, the
 * pool of sessions, and parsing while memory runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "server/access.h"
#include "server/job.h"
#include "server/json_check.h"
#include "server/options.h"
#include "server/response.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>

/* ---- JSON in ------------------------------------------------------------------------------------------- */

static bool json_ok(const char *text, size_t bytes)
{
    const rq_json_limits limits = {.max_depth = 8, .max_values = 100};
    rq_error err = {0};
    /* In a block of its own size, so that a sanitizer sees a read past the end. */
    char *copy = rq_malloc(bytes);
    memcpy(copy, text, bytes);
    bool ok = rq_json_check(copy, bytes, &limits, &err) == RQ_OK;
    assert_int_equal(ok, err.text[0] == '\0');
    rq_free(copy);
    return ok;
}

static void test_json_grammar(void **state)
{
    (void)state;
    static const char *const good[] = {"0",
                                       "-0",
                                       "1.5e-3",
                                       "\"\"",
                                       "[]",
                                       "{}",
                                       " [ 1 , {\"a\" : null} ] ",
                                       "true",
                                       "false",
                                       "\"\\u00e9\\ud83d\\ude00\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
                                       "9007199254740992",
                                       "-9007199254740992",
                                       "1e308",
                                       "1e-999"};
    static const char *const bad[] = {"",
                                      " ",
                                      "[",
                                      "{",
                                      "\"",
                                      "01",
                                      "-",
                                      "+1",
                                      "1.",
                                      ".5",
                                      "1e",
                                      "1e+",
                                      "tru",
                                      "nul",
                                      "[1,]",
                                      "[,1]",
                                      "{\"a\"}",
                                      "{\"a\":}",
                                      "{a:1}",
                                      "{\"a\":1,}",
                                      "[1 2]",
                                      "[1]]",
                                      "\"\\x\"",
                                      "\"\\u12\"",
                                      "\"\\u12g4\"",
                                      "\"\\ud800\"",
                                      "\"\\ud800\\u0041\"",
                                      "\"\\udc00\"",
                                      "\"\\u0000\"",
                                      "\"\n\"",
                                      "9007199254740993",
                                      "-9007199254740993",
                                      "99999999999999999999",
                                      "1e309",
                                      "-1e309",
                                      "NaN",
                                      "Infinity",
                                      "'a'",
                                      "//",
                                      "\\"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (!json_ok(good[i], strlen(good[i]))) fail_msg("refused: %s", good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (json_ok(bad[i], strlen(bad[i]))) fail_msg("accepted: %s", bad[i]);
    }
    assert_false(json_ok("1\0", 2));
    assert_true(json_ok("[[[[[[[[]]]]]]]]", 16));
    assert_false(json_ok("[[[[[[[[[]]]]]]]]]", 18));
    char many[2 * 101 + 1];
    for (int i = 0; i < 101; i++) memcpy(many + (size_t)i * 2, i ? ",1" : "[1", 2);
    many[2 * 99] = ']';
    assert_true(json_ok(many, 2 * 99 + 1)); /* 99 numbers and the array */
    many[2 * 99] = ',';
    many[2 * 100] = ']';
    assert_false(json_ok(many, 2 * 100 + 1));
}

/* Every prefix of a valid text is refused, and no byte changed to any other value is read past the end. */
static void test_json_cut_and_changed(void **state)
{
    (void)state;
    static const char text[] = "{\"a\":[1.5e3,\"\\ud83d\\ude00\xC3\xA9\",true,false,null,{}],\"b\":-0}";
    for (size_t n = 0; n < sizeof text - 1; n++) assert_false(json_ok(text, n));
    for (size_t i = 0; i < sizeof text - 1; i++) {
        char copy[sizeof text];
        memcpy(copy, text, sizeof text);
        for (int c = 0; c < 256; c++) {
            copy[i] = (char)c;
            json_ok(copy, sizeof text - 1);
        }
    }
}

static void test_utf8(void **state)
{
    (void)state;
    /* All code points in their only valid form, after Unicode's table 3-7; surrogates have none. */
    for (uint32_t c = 0; c <= 0x110000; c++) {
        char b[4];
        size_t n;
        if (c < 0x80)
            n = 1, b[0] = (char)c;
        else if (c < 0x800)
            n = 2, b[0] = (char)(0xC0 | c >> 6), b[1] = (char)(0x80 | (c & 63));
        else if (c < 0x10000) {
            n = 3, b[0] = (char)(0xE0 | c >> 12), b[1] = (char)(0x80 | (c >> 6 & 63)),
            b[2] = (char)(0x80 | (c & 63));
        } else {
            n = 4, b[0] = (char)(0xF0 | c >> 18), b[1] = (char)(0x80 | (c >> 12 & 63));
            b[2] = (char)(0x80 | (c >> 6 & 63)), b[3] = (char)(0x80 | (c & 63));
        }
        bool valid = c < 0x110000 && (c < 0xD800 || c > 0xDFFF);
        assert_int_equal(rq_json_utf8_length(b, n), valid ? n : 0);
        for (size_t k = 0; k < n && c % 97 == 0; k++) assert_int_equal(rq_json_utf8_length(b, k), 0);
    }
    assert_false(rq_json_utf8_valid("\xC0\xAF", 2)); /* over-long */
    assert_false(rq_json_utf8_valid("\xE0\x80\x80", 3));
    assert_false(rq_json_utf8_valid("\x80", 1));
}

static void test_repeated_keys(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {
        {"{\"a\":1,\"b\":2}", true},     {"{\"a\":1,\"a\":2}", false}, {"[{\"x\":{\"a\":1,\"a\":2}}]", false},
        {"[{\"a\":1},{\"a\":2}]", true}, {"{\"\":1,\"\":2}", false},   {"{\"a\":{\"a\":1}}", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *root = cJSON_Parse(cases[i].text);
        rq_error err = {0};
        assert_int_equal(rq_json_unique_keys(root, &err) == RQ_OK, cases[i].ok);
        cJSON_Delete(root);
    }
}

/* ---- requests ------------------------------------------------------------------------------------------ */

static const rq_parse_limits *test_limits(void)
{
    static const rq_parse_limits limits = {
        .max_values = 10000,
        .n_vocab = 1000,
        .max_tokens = 77,
        .sampling = {.temperature = 0.25f, .top_k = 7, .repeat_penalty = 1}};
    return &limits;
}

static bool parse(rq_api api, const char *body, rq_api_request *out, rq_api_error *error)
{
    return rq_api_parse(api, body, strlen(body), test_limits(), out, error);
}

static void test_request_thinking(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        rq_opening opening;
    } cases[] = {{"", RQ_OPEN},
                 {",\"chat_template_kwargs\":{}", RQ_OPEN},
                 {",\"chat_template_kwargs\":{\"enable_thinking\":true}", RQ_OPEN_THINKING},
                 {",\"chat_template_kwargs\":{\"enable_thinking\":false}", RQ_OPEN_PLAIN},
                 {",\"reasoning_effort\":\"none\"", RQ_OPEN_PLAIN},
                 {",\"reasoning_effort\":\"low\"", RQ_OPEN_THINKING}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[200];
        rq_api_request r;
        rq_api_error error;
        snprintf(body, sizeof body, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]%s}",
                 cases[i].more);
        assert_true(parse(RQ_API_CHAT, body, &r, &error));
        assert_int_equal(r.opening, cases[i].opening);
        rq_api_request_free(&r);
    }
}

static void test_request_values(void **state)
{
    (void)state;
    rq_api_request r;
    rq_api_error error;
    assert_true(
        parse(RQ_API_CHAT,
              "{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
              "{\"type\":\"text\",\"text\":\"\\u00e9\"}]}],\"stop\":[\"x\",\"yz\"],\"seed\":5,"
              "\"max_tokens\":9,\"max_completion_tokens\":8,\"logprobs\":true,\"n\":3,"
              "\"logit_bias\":{\"12\":-1.5},\"temperature\":null,\"top_p\":0.5}",
              &r, &error));
    assert_int_equal(r.n_messages, 1);
    assert_string_equal(r.messages[0].role, "system");
    assert_string_equal(r.messages[0].content, "a\xC3\xA9");
    assert_int_equal(r.messages[0].content_bytes, 3);
    assert_int_equal(r.generation.n_stop, 2);
    assert_string_equal(r.generation.stop[1], "yz");
    assert_int_equal(r.generation.max_tokens, 8); /* the newer name has the last word */
    assert_int_equal(r.generation.n_logprobs, 0);
    assert_int_equal(r.n, 3);
    assert_int_equal(r.seed, 5);
    assert_int_equal(r.generation.sampling.n_bias, 1);
    assert_int_equal(r.generation.sampling.bias[0].token, 12);
    assert_float_equal(r.generation.sampling.bias[0].bias, -1.5, 0);
    assert_float_equal(r.generation.sampling.temperature, 0.25, 0); /* null: the server's default */
    assert_float_equal(r.generation.sampling.top_p, 0.5, 0);
    rq_api_request_free(&r);

    assert_true(parse(RQ_API_COMPLETION, "{\"prompt\":[[1,2],[3]]}", &r, &error));
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[0].n_ids, 2);
    assert_int_equal(r.prompts[1].ids[0], 3);
    assert_int_equal(r.generation.max_tokens, 77);
    assert_int_equal(r.generation.n_logprobs, -1);
    assert_int_equal(r.seed, -1);
    assert_true(r.cache_prompt && !r.stream);
    rq_api_request_free(&r);

    assert_false(parse(RQ_API_COMPLETION, "{\"prompt\":[1000]}", &r, &error));
    assert_string_equal(error.param, "prompt");
    assert_null(r.root);
}

/* Failing every allocation in turn: 503 or (nothing failed) success, and nothing leaks. */
static void test_request_memory(void **state)
{
    (void)state;
    static const char *const bodies[] = {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
                                         "\"text\":\"a\"}]},{\"role\":\"user\",\"content\":"
                                         "\"b\"}],\"stop\":[\"x\"],\"logit_bias\":{\"1\":2,\"3\":4}}",
                                         "{\"prompt\":[[1,2],\"x\"],\"logit_bias\":[[1,2]],\"stop\":\"y\"}"};
    for (size_t k = 0; k < 2; k++) {
        bool ok = false;
        for (uint64_t n = 1; !ok; n++) {
            assert_true(n < 1000);
            int64_t alive = rq_mem_alive();
            rq_api_request r;
            rq_api_error error = {0};
            rq_mem_fail_at(n);
            ok = parse(k ? RQ_API_COMPLETION : RQ_API_CHAT, bodies[k], &r, &error);
            rq_mem_fail_at(0);
            if (ok)
                rq_api_request_free(&r);
            else
                assert_int_equal(error.http_status, 503);
            assert_int_equal(rq_mem_alive(), alive);
        }
    }
}

/* The fuzzer's seeds must get through to the end, or it would only ever see refusals. */
static void test_fuzz_seeds(void **state)
{
    (void)state;
    DIR *folder = opendir(RQVK_FUZZ_SEEDS);
    assert_non_null(folder);
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        char path[1024], body[8192];
        snprintf(path, sizeof path, "%s/%s", RQVK_FUZZ_SEEDS, entry->d_name);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        size_t n = fread(body, 1, sizeof body, file);
        fclose(file);
        rq_api_request r;
        rq_api_error error = {0};
        if (!rq_api_parse((rq_api)(body[0] - '0'), body + 1, n - 1, test_limits(), &r, &error)) {
            fail_msg("%s: %s", entry->d_name, error.error.text);
        }
        rq_api_request_free(&r);
        seen++;
    }
    closedir(folder);
    assert_true(seen >= 10);
}

/* ---- JSON out ------------------------------------------------------------------------------------------ */

static void test_json_strings(void **state)
{
    (void)state;
    /* All bytes, alone and in pairs, come back through an independent parser; what is no UTF-8 as U+FFFD. */
    for (int a = 0; a < 256; a++) {
        for (int b = 1; b < 256; b += a < 128 ? 51 : 1) {
            char text[2] = {(char)a, (char)b};
            rq_buf out = {.max = 100};
            rq_json_string(&out, text, 2);
            assert_false(out.failed);
            const rq_json_limits limits = {.max_depth = 1, .max_values = 1};
            if (a != 0) { /* \u0000 is valid JSON that we write but do not read */
                assert_int_equal(rq_json_check(out.data, out.len, &limits, NULL), RQ_OK);
                cJSON *back = cJSON_Parse(out.data);
                assert_non_null(back);
                if (rq_json_utf8_valid(text, 2))
                    assert_memory_equal(back->valuestring, text, 2);
                else
                    assert_non_null(strstr(back->valuestring, "\xEF\xBF\xBD"));
                cJSON_Delete(back);
            }
            rq_buf_free(&out);
        }
    }
}

static void test_json_numbers(void **state)
{
    (void)state;
    static const double values[] = {0, -0.5, 1e-30, -1e30, 1.0 / 0.0, -1.0 / 0.0, 0.0 / 0.0};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        rq_buf out = {.max = 100};
        const rq_json_limits limits = {.max_depth = 1, .max_values = 1};
        rq_json_number(&out, values[i]);
        assert_int_equal(rq_json_check(out.data, out.len, &limits, NULL), RQ_OK);
        rq_buf_free(&out);
    }
}

/* ---- access -------------------------------------------------------------------------------------------- */

static void test_access(void **state)
{
    (void)state;
    char one[] = "abc", two[] = "";
    char *keys[] = {one, two};
    assert_true(rq_key_matches("abc", keys, 1));
    assert_false(rq_key_matches("", keys, 1));
    assert_false(rq_key_matches("ab", keys, 1));
    assert_false(rq_key_matches("abcabc", keys, 1));
    assert_false(rq_key_matches("abd", keys, 2));
    assert_false(rq_key_matches("abc", keys, 0));
    assert_null(rq_bearer_key(NULL));
    assert_null(rq_bearer_key("Basic abc"));
    assert_string_equal(rq_bearer_key("BEARER abc"), "abc");

    assert_true(rq_is_loopback("localhost") && rq_is_loopback("127.0.0.1") && rq_is_loopback("::1"));
    assert_true(rq_is_loopback("[::1]:8080") && rq_is_loopback("LOCALHOST:80"));
    assert_false(rq_is_loopback("0.0.0.0") || rq_is_loopback("::") || rq_is_loopback("127.evil") ||
                 rq_is_loopback(""));
    assert_true(rq_host_allowed("box:1", "box", NULL) && rq_host_allowed("b.lan", "x", "a.lan, b.lan"));
    assert_false(rq_host_allowed("b.lan", "x", "bb.lan,b.la") || rq_host_allowed("", "x", ""));
    assert_true(rq_origin_allowed("http://a", "*") && rq_origin_allowed("http://a", "http://b,http://a"));
    assert_false(rq_origin_allowed("http://a", NULL) || rq_origin_allowed("http://a", "http://ab"));
    assert_true(rq_origin_is_own("http://localhost:1", "localhost:1"));
    assert_false(rq_origin_is_own("http://localhost:1", "localhost:2") || rq_origin_is_own("null", "null"));
}

/* ---- pool ---------------------------------------------------------------------------------------------- */

typedef struct pool_fixture {
    rq_model *model;
    rq_engine *engine;
    rq_pool pool;
} pool_fixture;

static int open_pool(void **state)
{
    static pool_fixture f;
    f = (pool_fixture){0};
    const rq_engine_params params = {.n_sessions = 2};
    assert_int_equal(rq_model_load("x", &f.model, NULL), RQ_OK);
    assert_int_equal(rq_engine_create(f.model, &params, &f.engine, NULL), RQ_OK);
    assert_int_equal(rq_pool_open(&f.pool, f.engine, 2, 1, NULL), RQ_OK);
    *state = &f;
    return 0;
}

static int close_pool(void **state)
{
    pool_fixture *f = *state;
    rq_pool_close(&f->pool);
    rq_engine_free(f->engine);
    rq_model_free(f->model);
    return 0;
}

static rq_slot *take_now(rq_pool *pool, const rq_tokens *tokens)
{
    rq_waiter waiter;
    assert_true(rq_pool_enter(pool, &waiter, false));
    rq_slot *slot = rq_pool_take(pool, &waiter, tokens, 0);
    if (!slot) rq_pool_leave(pool, &waiter);
    assert_false(waiter.queued);
    return slot;
}

static void test_pool_order_and_limit(void **state)
{
    rq_pool *pool = &((pool_fixture *)*state)->pool;
    const rq_tokens none = {0};
    rq_waiter a, b, c, d;
    assert_true(rq_pool_enter(pool, &a, false) && rq_pool_enter(pool, &b, false) &&
                rq_pool_enter(pool, &c, false));
    assert_false(rq_pool_enter(pool, &d, false));  /* two sessions and one place to wait */
    assert_null(rq_pool_take(pool, &b, &none, 0)); /* not its turn */
    rq_slot *first = rq_pool_take(pool, &a, &none, 0), *second = rq_pool_take(pool, &b, &none, 0);
    assert_true(first && second && first != second);
    assert_null(rq_pool_take(pool, &c, &none, 10));
    assert_int_equal(rq_pool_waiting(pool), 1);
    rq_pool_give(pool, first);
    assert_null(rq_pool_take_spare(pool, &none)); /* c comes first */
    assert_ptr_equal(rq_pool_take(pool, &c, &none, 0), first);
    assert_true(rq_pool_enter(pool, &c, true) && rq_pool_enter(pool, &d, true)); /* at work already: always */
    rq_pool_leave(pool, &c);
    rq_pool_give(pool, second);
    assert_ptr_equal(rq_pool_take(pool, &d, &none, 0), second);
    rq_pool_give(pool, first);
    rq_pool_give(pool, second);
    assert_int_equal(rq_pool_waiting(pool), 0);
}

static void set_held(rq_slot *slot, rq_token *ids, size_t n)
{
    void *array = slot->held.ids;
    assert_true(rq_grow(&array, &slot->held.cap, n, sizeof *ids));
    slot->held.ids = array;
    memcpy(slot->held.ids, ids, n * sizeof *ids);
    slot->held.n = n;
}

static void test_pool_prefers_what_helps(void **state)
{
    rq_pool *pool = &((pool_fixture *)*state)->pool;
    rq_token one[] = {1, 2, 3, 4, 5, 6}, other[] = {1, 9, 9, 9}, longer[] = {1, 2, 3, 4, 5, 6, 7};
    const rq_tokens first = {.ids = one, .n = 6}, second = {.ids = other, .n = 4},
                    again = {.ids = longer, .n = 7};
    rq_slot *a = take_now(pool, &first);
    set_held(a, one, 6);
    rq_pool_give(pool, a);
    rq_slot *b = take_now(pool, &second); /* one common token is no reason to destroy six */
    assert_ptr_not_equal(b, a);
    set_held(b, other, 4);
    rq_pool_give(pool, b);
    assert_ptr_equal(take_now(pool, &again), a);
    rq_pool_give(pool, a);
    const rq_tokens stranger = {.ids = other + 1, .n = 3};
    assert_ptr_equal(take_now(pool, &stranger), b); /* idle the longest */
    rq_pool_give(pool, b);
}

/* ---- options ------------------------------------------------------------------------------------------- */

static void test_options_fit(void **state)
{
    (void)state;
    rq_server_config config = rq_server_config_default();
    rq_options options = {0};
    rq_server_options(&options, &config);
    assert_true(options.n < RQ_MAX_OPTIONS);
    for (size_t i = 0; i < options.n; i++) {
        if (options.items[i].kind == RQ_OPT_HEADING) continue;
        assert_non_null(options.items[i].target);
        for (size_t k = 0; k < i; k++) {
            if (options.items[k].kind != RQ_OPT_HEADING) {
                assert_string_not_equal(options.items[i].names, options.items[k].names);
                assert_ptr_not_equal(options.items[i].target, options.items[k].target);
            }
        }
    }
}

static rq_args_result parse_args(rq_server_config *config, char *a, char *b, rq_error *err)
{
    rq_options options = {0};
    *config = rq_server_config_default();
    rq_server_options(&options, config);
    char program[] = "x";
    char *argv[] = {program, a, b, NULL};
    return rq_args_parse(&options, b ? 3 : 2, argv, NULL, NULL, err);
}

static void test_options_parse(void **state)
{
    (void)state;
    rq_server_config c;
    rq_error err;
    char ctk[] = "-ctk", f32[] = "f32", np[] = "-np", four[] = "4", temp[] = "--temp=0.5",
         no_log[] = "--no-log-requests";
    char seed[] = "-s", minus[] = "-1", bad[] = "--no-port", port[] = "--port",
         huge[] = "99999999999999999999";
    assert_int_equal(parse_args(&c, ctk, f32, &err), RQ_ARGS_GO);
    assert_string_equal(c.engine.params.type_k, "f32");
    assert_int_equal(parse_args(&c, np, four, &err), RQ_ARGS_GO);
    assert_int_equal(c.n_parallel, 4);
    assert_int_equal(parse_args(&c, temp, NULL, &err), RQ_ARGS_GO);
    assert_float_equal(c.sampling.sampling.temperature, 0.5, 0);
    assert_int_equal(parse_args(&c, no_log, NULL, &err), RQ_ARGS_GO);
    assert_false(c.log_requests);
    assert_int_equal(parse_args(&c, seed, minus, &err), RQ_ARGS_GO);
    assert_int_equal(c.sampling.seed, -1);
    assert_int_equal(parse_args(&c, bad, NULL, &err), RQ_ARGS_ERROR);
    assert_int_equal(parse_args(&c, port, huge, &err), RQ_ARGS_ERROR);
    assert_non_null(strstr(err.text, "--port"));
    assert_int_equal(parse_args(&c, port, NULL, &err), RQ_ARGS_ERROR);
}

static int use_rq_memory(void **state)
{
    (void)state;
    rq_json_use_rq_memory();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_grammar),
        cmocka_unit_test(test_json_cut_and_changed),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_repeated_keys),
        cmocka_unit_test(test_request_thinking),
        cmocka_unit_test(test_request_values),
        cmocka_unit_test(test_request_memory),
        cmocka_unit_test(test_fuzz_seeds),
        cmocka_unit_test(test_json_strings),
        cmocka_unit_test(test_json_numbers),
        cmocka_unit_test(test_access),
        cmocka_unit_test_setup_teardown(test_pool_order_and_limit, open_pool, close_pool),
        cmocka_unit_test_setup_teardown(test_pool_prefers_what_helps, open_pool, close_pool),
        cmocka_unit_test(test_options_fit),
        cmocka_unit_test(test_options_parse),
    };
    return cmocka_run_group_tests(tests, use_rq_memory, NULL);
}
