/* What rqvk-inspect prints: harmless text, valid JSON strings, the right number of bytes per token; and the
 * program itself on things that are not models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "engine/gguf/writer.h"
#include "tests/gguf/fixture.h"
#include "tools/inspect/escape.h"
#include "tools/inspect/memory.h"

static void printed(char out[512], const char *text, size_t n, int limit)
{
    memset(out, 0, 512);
    FILE *file = fmemopen(out, 511, "w");
    assert_non_null(file);
    if (limit < 0)
        inspect_print_json(file, text, n);
    else
        inspect_print_text(file, text, n, (uint64_t)limit);
    fclose(file);
}

static void text_cannot_steer_the_terminal(void **state)
{
    static const struct {
        const char *in;
        size_t n;
        const char *text, *json;
    } cases[] = {
#define IN(s) s, sizeof s - 1
        {IN("plain"), "plain", "plain"},
        {IN("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"), "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80",
         "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {IN("a\nb\tc\\\"d"), "a\\nb\\tc\\\\\"d", "a\\u000ab\\u0009c\\\\\\\"d"},
        {IN("\x1b[31m\0\x7f"), "\\u{1b}[31m\\u{0}\\u{7f}", "\\u001b[31m\\u0000\\u007f"},
        {IN("\xc2\x9b"
            "31m"),
         "\\u{9b}31m", "\\u009b31m"}, /* C1: an escape in itself */
        {IN("\xe2\x80\xae"
            "abc\xef\xbb\xbf"),
         "\\u{202e}abc\\u{feff}", "\\u202eabc\\ufeff"},           /* direction override */
        {IN("\xf3\xa0\x80\x81"), "\\u{e0001}", "\\udb40\\udc01"}, /* an invisible tag character */
        {IN("\xff"
            "a\xc3"),
         "\\xffa\\xc3",
         "\xef\xbf\xbd"
         "a\xef\xbf\xbd"},
        {IN("\xc0\xaf"), "\\xc0\\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                      /* overlong */
        {IN("\xed\xa0\x80"), "\\xed\\xa0\\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* a surrogate */
        {IN("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[512];
        printed(out, cases[i].in, cases[i].n, 100);
        assert_string_equal(out, cases[i].text);
        printed(out, cases[i].in, cases[i].n, -1);
        assert_string_equal(out, cases[i].json);
    }
    char out[512];
    printed(out, "\xc3\xa4\xc3\xa4\xc3\xa4", 6, 2);
    assert_string_equal(out, "\xc3\xa4\xc3\xa4...");
}

/* F16 bytes per token of published models (elements per token x 2). */
static void cache_sizes(void **state)
{
    static const struct {
        const char *arch;
        uint32_t layers, embd, heads, kv_heads, key_length, interval, nextn;
        uint64_t elems;
    } models[] = {
        {"llama", 32, 4096, 32, 8, 0, 0, 0, 65536},       {"qwen3", 36, 4096, 32, 8, 128, 0, 0, 73728},
        {"qwen3", 64, 5120, 64, 8, 128, 0, 0, 131072},    {"qwen3moe", 48, 2048, 32, 4, 128, 0, 0, 49152},
        {"qwen35", 64, 5120, 24, 4, 256, 4, 0, 32768},    {"qwen35", 65, 5120, 24, 4, 256, 4, 1, 34816},
        {"qwen35moe", 40, 2048, 16, 2, 256, 0, 0, 10240}, {"qwen35moe", 41, 2048, 16, 2, 256, 4, 1, 11264},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        fixture f;
        char key[64];
        const char *a = models[i].arch;
        fx_start(&f, 3, 0, 8);
        fx_kv_str(&f, "general.architecture", a);
#define KEY(rest) (snprintf(key, sizeof key, "%s.%s", a, rest), key)
        fx_kv_u32(&f, KEY("block_count"), models[i].layers);
        fx_kv_u32(&f, KEY("embedding_length"), models[i].embd);
        fx_kv_u32(&f, KEY("attention.head_count"), models[i].heads);
        fx_kv_u32(&f, KEY("attention.head_count_kv"), models[i].kv_heads);
        uint32_t key_length = models[i].key_length ? models[i].key_length : models[i].embd / models[i].heads;
        fx_kv_u32(&f, KEY("attention.key_length"), key_length);
        fx_kv_u32(&f, models[i].key_length ? KEY("attention.value_length") : "unrelated", key_length);
        if (models[i].nextn)
            fx_kv_u32(&f, KEY("nextn_predict_layers"), models[i].nextn);
        else
            fx_kv_u32(&f, models[i].interval ? KEY("full_attention_interval") : "other", models[i].interval);
        opened o = fx_open(&f);
        assert_int_equal(o.status, RQ_OK);
        inspect_memory m;
        inspect_memory_of(o.g, &m, &o.err);
        assert_true(m.kv_known);
        assert_int_equal(m.kv_elems_per_token, models[i].elems);
        assert_int_equal(m.window_elems_per_token, 0);
        fx_close(&o);
        fx_free(&f);
    }
}

/* Gemma 4 26B: 25 window layers with 8 heads of 256, 5 global ones with 2 heads of 512. */
static void cache_sizes_with_windows(void **state)
{
    fixture f;
    fx_start(&f, 3, 0, 13);
    fx_kv_str(&f, "general.architecture", "gemma4");
    fx_kv_u32(&f, "gemma4.block_count", 30);
    fx_kv_u32(&f, "gemma4.context_length", 262144);
    fx_kv_u32(&f, "gemma4.embedding_length", 2816);
    fx_kv_u32(&f, "gemma4.attention.head_count", 16);
    fx_kv_u32(&f, "gemma4.attention.key_length", 512);
    fx_kv_u32(&f, "gemma4.attention.value_length", 512);
    fx_kv_u32(&f, "gemma4.attention.key_length_swa", 256);
    fx_kv_u32(&f, "gemma4.attention.value_length_swa", 256);
    fx_kv_u32(&f, "gemma4.attention.sliding_window", 1024);
    fx_kv_u32(&f, "gemma4.attention.shared_kv_layers", 0);
    fx_key(&f, "gemma4.attention.head_count_kv", RQ_GGUF_ARRAY), fx_int(&f, RQ_GGUF_I32, 4),
        fx_int(&f, 30, 8);
    for (int l = 0; l < 30; l++) fx_int(&f, l % 6 == 5 ? 2 : 8, 4);
    fx_key(&f, "gemma4.attention.sliding_window_pattern", RQ_GGUF_ARRAY), fx_int(&f, RQ_GGUF_BOOL, 4);
    fx_int(&f, 30, 8);
    for (int l = 0; l < 30; l++) fx_int(&f, l % 6 != 5, 1);
    opened o = fx_open(&f);
    assert_int_equal(o.status, RQ_OK);
    inspect_memory m;
    inspect_memory_of(o.g, &m, &o.err);
    assert_true(m.kv_known);
    assert_int_equal(m.kv_elems_per_token, 10240);
    assert_int_equal(m.window_elems_per_token, 102400);
    assert_int_equal(m.window, 1024);
    fx_close(&o);
    fx_free(&f);
}

static void absurd_keys_are_said_to_be(void **state)
{
    static const char *const keys[] = {"llama.block_count", "llama.embedding_length",
                                       "llama.attention.head_count", "llama.attention.head_count_kv"};
    for (size_t wrong = 0; wrong <= 4; wrong++) {
        fixture f;
        fx_start(&f, 3, 0, 5);
        fx_kv_str(&f, "general.architecture", wrong == 4 ? "unheard-of" : "llama");
        for (size_t k = 0; k < 4; k++) fx_kv_u32(&f, keys[k], k == wrong ? (k == 3 ? UINT32_MAX : 0) : 8);
        opened o = fx_open(&f);
        assert_int_equal(o.status, RQ_OK);
        inspect_memory m;
        inspect_memory_of(o.g, &m, &o.err);
        assert_false(m.kv_known);
        assert_true(o.err.text[0]);
        fx_close(&o);
        fx_free(&f);
    }
}

/* ---- the program --------------------------------------------------------------------------------------- */

/* Runs rqvk-inspect; returns its exit code and what it printed on one of the two streams. */
static int run(const char *arguments, bool errors, char *out, size_t cap)
{
    char command[800];
    snprintf(command, sizeof command, "'%s' %s %s", RQVK_INSPECT, arguments,
             errors ? "2>&1 >/dev/null" : "2>/dev/null");
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(out, 1, cap - 1, pipe);
    out[n] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void not_models_get_one_sentence(void **state)
{
    char out[4000], arguments[400];
    fixture f;
    fx_sample(&f, 3);
    fx_write_file(fx_path("cut.gguf"), f.b.data, f.b.len - 1);
    fx_write_file(fx_path("picture.png"), "\x89PNG\r\n\x1a\n----", 12);
    fx_free(&f);
    static const char *const files[] = {".", "cut.gguf", "picture.png", "absent.gguf", "/dev/null"};
    for (int i = 0; i < 5; i++) {
        const char *path = i == 1 || i == 2 ? fx_path(files[i]) : files[i];
        snprintf(arguments, sizeof arguments, "'%s'", path);
        assert_int_equal(run(arguments, true, out, sizeof out), 1);
        assert_non_null(strstr(out, path));
        assert_true(strchr(out, '\n') == out + strlen(out) - 1); /* one line */
        run(arguments, false, out, sizeof out);
        assert_string_equal(out, "");
    }
    assert_int_equal(run("", true, out, sizeof out), 2);
}

static void models_are_described(void **state)
{
    static char out[1 << 16];
    assert_int_equal(run("'" RQVK_TEST_DATA "/oracle/llama-Q4_K_M.gguf'", false, out, sizeof out), 0);
    assert_non_null(strstr(out, "llama.attention.head_count_kv  (u32)  2"));
    assert_non_null(strstr(out, "blk.1.ffn_down.weight"));
    assert_non_null(strstr(out, "per token"));
    assert_int_equal(run("--json '" RQVK_TEST_DATA "/oracle/llama-Q4_K_M.gguf'", false, out, sizeof out), 0);
    /* 2 layers x 2 heads x (128 + 128) elements x 2 bytes */
    assert_non_null(strstr(out, "\"kv_f16_bytes_per_token\": 2048"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_cannot_steer_the_terminal), cmocka_unit_test(cache_sizes),
        cmocka_unit_test(cache_sizes_with_windows),       cmocka_unit_test(absurd_keys_are_said_to_be),
        cmocka_unit_test(not_models_get_one_sentence),    cmocka_unit_test(models_are_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
