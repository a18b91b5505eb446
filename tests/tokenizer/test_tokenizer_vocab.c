/* Foreign expectations: every text of tests/data/vocab (llama.cpp's own test vectors, and a llama.cpp of May 2026 on
 * three small vocabularies), and what those vocabularies' special tokens are. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

static bool equal(const rq_tokens *ids, const rq_token *expected, size_t n)
{
    return ids->n == n && (!n || !memcmp(ids->ids, expected, n * sizeof *expected));
}

static void check_vocab(const char *name)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char file[128];
    size_t in_len, out_len;
    rq_tokenizer *tok = load_vocab(name);
    snprintf(file, sizeof file, "%s.inp", name);
    char *in = read_data(file, &in_len), *text = in;
    snprintf(file, sizeof file, "%s.out", name);
    char *out = read_data(file, &out_len), *row = out;
    int n_texts = 0;
    for (;; n_texts++) {
        char *end = strstr(text, separator), *row_end = strchr(row, '\n');
        size_t len = end ? (size_t)(end - text) : strlen(text);
        rq_token expected[512];
        size_t n = 0;
        if (row_end) *row_end = 0;
        for (char *p = row, *next; n < 512; p = next) {
            long id = strtol(p, &next, 10);
            if (next == p) break;
            expected[n++] = (rq_token)id;
        }
        rq_tokens ids = encode(tok, text, len, 0);
        if (!equal(&ids, expected, n)) fail_msg("%s: text %d (\"%.60s\") differs", name, n_texts, text);
        rq_free(ids.ids);
        if (!end) break;
        assert_non_null(row_end);
        text = end + strlen(separator);
        row = row_end + 1;
    }
    assert_int_equal(n_texts + 1, 47);
    rq_free(in);
    rq_free(out);
    rq_tokenizer_free(tok);
}

static void test_gpt_2(void **state)
{
    check_vocab("ggml-vocab-gpt-2.gguf");
}
static void test_starcoder(void **state)
{
    check_vocab("ggml-vocab-starcoder.gguf");
}
static void test_deepseek_coder(void **state)
{
    check_vocab("ggml-vocab-deepseek-coder.gguf");
}
static void test_llama_spm(void **state)
{
    check_vocab("ggml-vocab-llama-spm.gguf");
}
static void test_phi_3(void **state)
{
    check_vocab("ggml-vocab-phi-3.gguf");
}

static void test_oracle(void **state)
{
    size_t len, n_cases = 0;
    char *text = read_data("tokenize.json", &len);
    cJSON *all = cJSON_ParseWithLength(text, len), *cases, *one;
    assert_non_null(all);
    cJSON_ArrayForEach(cases, all)
    {
        char file[64];
        snprintf(file, sizeof file, "oracle-%s.gguf", cases->string);
        rq_tokenizer *tok = load_vocab(file);
        cJSON_ArrayForEach(one, cases)
        {
            const char *words = cJSON_GetObjectItem(one, "text")->valuestring;
            bool special = cJSON_IsTrue(cJSON_GetObjectItem(one, "parse_special"));
            cJSON *expected = cJSON_GetObjectItem(one, "ids"), *id;
            rq_tokens ids = encode(tok, words, strlen(words), special ? RQ_TOKENIZE_PARSE_SPECIAL : 0);
            bool same = ids.n == (size_t)cJSON_GetArraySize(expected);
            size_t i = 0;
            cJSON_ArrayForEach(id, expected) same = same && ids.ids[i++] == id->valueint;
            if (!same) fail_msg("%s, parse_special %d: \"%.80s\" differs", cases->string, special, words);
            rq_free(ids.ids);
            n_cases++;
        }
        rq_tokenizer_free(tok);
    }
    assert_int_equal(n_cases, 3 * 114);
    cJSON_Delete(all);
    rq_free(text);
}

/* The facts of the files' metadata, and what follows from token texts. */
static void test_special_ids(void **state)
{
    rq_tokenizer *tok = load_vocab("ggml-vocab-starcoder.gguf");
    assert_int_equal(rq_tokenizer_n_tokens(tok), 49152);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_BOS), 0);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_FIM_PRE), 1); /* <fim_prefix>, by text */
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_FIM_MID), 2);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_FIM_SUF), 3);
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_FIM_PAD), 4);
    assert_true(rq_token_is_eog(tok, 0));
    assert_true(rq_token_is_eog(tok, 4));
    assert_false(rq_token_is_eog(tok, 1));
    assert_false(rq_tokenizer_add_bos(tok));
    assert_int_equal(rq_token_by_text(tok, "<fim_middle>", 12), 2);
    assert_int_equal(rq_token_by_text(tok, "no such token", 13), -1);
    rq_tokenizer_free(tok);

    tok = load_vocab("ggml-vocab-llama-spm.gguf");
    size_t n;
    assert_true(rq_tokenizer_add_bos(tok));
    assert_false(rq_tokenizer_add_eos(tok));
    assert_int_equal(rq_tokenizer_eog(tok, &n)[0], 2);
    assert_int_equal(n, 1);
    assert_int_equal(rq_token_type_of(tok, 0), RQ_TOKEN_UNKNOWN);
    assert_int_equal(rq_token_type_of(tok, 13), RQ_TOKEN_BYTE);
    assert_memory_equal(rq_token_piece(tok, 13, &n), "\n", 1);
    assert_int_equal(n, 1);
    assert_memory_equal(rq_token_piece(tok, 15043, &n), " Hello", 6);
    assert_memory_equal(rq_token_text(tok, 15043, &n), "\xE2\x96\x81Hello", 8);
    assert_int_equal(rq_token_type_of(tok, 32000), RQ_TOKEN_UNDEFINED);
    assert_int_equal(rq_token_type_of(tok, -1), RQ_TOKEN_UNDEFINED);
    rq_token_piece(tok, 1 << 30, &n);
    assert_int_equal(n, 0);
    EXPECT_IDS(tok, "Hello", RQ_TOKENIZE_ADD_SPECIAL, 1, 15043);
    EXPECT_IDS(tok, "<s>Hello</s>", RQ_TOKENIZE_PARSE_SPECIAL, 1, 15043, 2);
    rq_tokenizer_free(tok);

    tok = load_vocab("oracle-llama.gguf");
    assert_true(rq_tokenizer_add_bos(tok));
    assert_int_equal(rq_tokenizer_special(tok, RQ_SPECIAL_BOS), 504);
    assert_true(rq_token_is_eog(tok, 505));
    EXPECT_IDS(tok, "", RQ_TOKENIZE_ADD_SPECIAL, 504);
    rq_tokenizer_free(tok);

    tok = load_vocab("oracle-qwen2.gguf");
    assert_false(rq_tokenizer_add_bos(tok));
    EXPECT_IDS(tok, "", RQ_TOKENIZE_FORCE_BOS, 501);
    assert_true(rq_token_is_eog(tok, rq_token_by_text(tok, "<|im_end|>", 10)));
    assert_true(rq_token_is_eog(tok, rq_token_by_text(tok, "<|endoftext|>", 13)));
    assert_false(rq_token_is_eog(tok, rq_token_by_text(tok, "<|im_start|>", 12)));
    rq_tokenizer_free(tok);
}

/* Phi-3: special tokens swallow the white space behind them; <s> and <|endoftext|> do not. The ids of the words are
 * those of the .out file. */
static void test_phi_3_strips(void **state)
{
    rq_tokenizer *tok = load_vocab("ggml-vocab-phi-3.gguf");
    rq_token user = rq_token_by_text(tok, "<|user|>", 8), end = rq_token_by_text(tok, "<|end|>", 7);
    assert_true(user > 0 && end > 0);
    EXPECT_IDS(tok, "<|user|>\n \tHello<|end|> \n", RQ_TOKENIZE_PARSE_SPECIAL, user, 15043, end);
    EXPECT_IDS(tok, "<s> Hello", RQ_TOKENIZE_PARSE_SPECIAL, 1, 29871, 15043);
    assert_true(rq_token_is_eog(tok, end));
    assert_true(rq_token_is_eog(tok, 32000));
    rq_tokenizer_free(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt_2),          cmocka_unit_test(test_starcoder),
        cmocka_unit_test(test_deepseek_coder), cmocka_unit_test(test_llama_spm),
        cmocka_unit_test(test_phi_3),          cmocka_unit_test(test_oracle),
        cmocka_unit_test(test_special_ids),    cmocka_unit_test(test_phi_3_strips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
