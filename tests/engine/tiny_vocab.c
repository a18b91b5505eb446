#include "tests/engine/tiny_vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* The character GPT-2's vocabulary spells byte b with: printable ones as they are, the others from U+0100 on. */
static unsigned spelled(unsigned b)
{
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255)) return b;
    unsigned n = 0;
    for (unsigned c = 0; c < b; c++)
        if (!((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))) n++;
    return 256 + n;
}

static size_t put(char *out, unsigned c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    return 2;
}

rq_status tiny_tokenizer_create(rq_token_type type, rq_tokenizer **out, rq_error *err)
{
    char bytes[256][3], ab[] = "ab", nl[8], merge_nl[12];
    rq_vocab_text tokens[TINY_COUNT];
    int32_t types[TINY_COUNT];
    for (unsigned b = 0; b < 256; b++) {
        tokens[b] = (rq_vocab_text){bytes[b], put(bytes[b], spelled(b))};
        types[b] = RQ_TOKEN_NORMAL;
    }
    size_t n = put(nl, spelled('\n'));
    n += put(nl + n, spelled('\n'));
    size_t m = put(merge_nl, spelled('\n'));
    merge_nl[m++] = ' ';
    m += put(merge_nl + m, spelled('\n'));
    static const char *const controls[] = {
        "<|begin_of_text|>", "<|im_start|>", "<|im_end|>",      "<|start_header_id|>",
        "<|end_header_id|>", "<|eot_id|>",   "<start_of_turn>", "<end_of_turn>",
        "<|turn>",           "<turn|>",      "<|channel>",      "<channel|>",
        "<think>",           "</think>",     "<|think|>"};
    tokens[TINY_AB] = (rq_vocab_text){ab, 2};
    tokens[TINY_NL_NL] = (rq_vocab_text){nl, n};
    types[TINY_AB] = types[TINY_NL_NL] = RQ_TOKEN_NORMAL;
    for (int i = 0; i < TINY_COUNT - TINY_BOS; i++) {
        tokens[TINY_BOS + i] = (rq_vocab_text){controls[i], strlen(controls[i])};
        types[TINY_BOS + i] = i == 0 ? RQ_TOKEN_CONTROL : type;
    }
    rq_vocab_text merges[] = {{"a b", 3}, {merge_nl, m}};
    rq_vocab_source source;
    rq_vocab_source_init(&source);
    source.model = (rq_vocab_text){"gpt2", 4};
    source.pre = (rq_vocab_text){"qwen2", 5};
    source.tokens = tokens;
    source.n_tokens = TINY_COUNT;
    source.types = types;
    source.n_types = TINY_COUNT;
    source.merges = merges;
    source.n_merges = 2;
    source.special[RQ_SPECIAL_BOS] = TINY_BOS;
    source.special[RQ_SPECIAL_EOS] = TINY_IM_END;
    source.special[RQ_SPECIAL_EOT] = TINY_EOT;
    return rq_tokenizer_create(&source, out, err);
}

rq_tokenizer *tiny_tokenizer(rq_token_type type)
{
    rq_tokenizer *tok = NULL;
    rq_error err = {0};
    if (tiny_tokenizer_create(type, &tok, &err) != RQ_OK) {
        print_error("%s\n", err.text);
        fail();
    }
    return tok;
}
