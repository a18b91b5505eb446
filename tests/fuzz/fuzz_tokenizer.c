/* Vocabulary and text from the same bytes; the format is in make_tokenizer_seeds.py. Beyond not crashing: ids are in
 * range, a text cannot produce control tokens unless asked to, bytes survive the round trip where the vocabulary has
 * all of them, and streamed text is valid UTF-8. */
#include "backends/base/mem.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 256 + 255, MAX_TEXT = 4096 };

static const char *const pre_names[] = {"qwen2",       "llama-bpe",    "qwen35",      "gpt-2",
                                        "starcoder",   "deepseek-llm", "default",     "deepseek-coder",
                                        "deepseek-v3", "gpt-4o",       "tekken",      "falcon",
                                        "seed-coder",  "bailingmoe",   "no such name"};
static const char *const model_names[] = {"gpt2", "llama", "gemma4", "rwkv"};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *p;
    size_t left;
} input;

static uint8_t byte(input *in)
{
    if (!in->left) return 0;
    in->left--;
    return *in->p++;
}

static rq_vocab_text text(input *in)
{
    size_t n = byte(in);
    if (n > in->left) n = in->left;
    rq_vocab_text t = {(const char *)in->p, n};
    in->p += n;
    in->left -= n;
    return t;
}

static void require(bool ok)
{
    if (!ok) abort();
}

static void check_stream(const rq_tokenizer *tok, const rq_tokens *ids, unsigned flags)
{
    rq_buf out = {.max = 1 << 24};
    rq_detok d;
    rq_detok_init(&d, tok, flags);
    for (size_t i = 0; i < ids->n; i++) require(rq_detok_add(&d, ids->ids[i], &out));
    require(rq_detok_flush(&d, &out));
    const uint8_t *p = (const uint8_t *)out.data;
    for (size_t i = 0, n; i < out.len; i += n) {
        n = p[i] < 0x80 ? 1 : p[i] >= 0xC2 && p[i] < 0xE0 ? 2 : p[i] >= 0xE0 && p[i] < 0xF0 ? 3 : 4;
        require(n < 4 || (p[i] >= 0xF0 && p[i] < 0xF5));
        for (size_t k = 1; k < n; k++) require(i + k < out.len && (p[i + k] & 0xC0) == 0x80);
    }
    rq_buf_free(&out);
}

static void check_text(const rq_tokenizer *tok, const char *words, size_t len, unsigned flags, bool strips)
{
    rq_error err = {{0}};
    rq_tokens ids = {0};
    require(rq_tokenizer_encode(tok, words, len, flags, &ids, &err) == RQ_OK);
    rq_tokenizer_notes notes = rq_tokenizer_get_notes(tok);
    bool whole =
        notes.n_missing_bytes == 0 && !(flags & ~RQ_TOKENIZE_PARSE_SPECIAL) && notes.pre[0] && !strips;
    size_t at = 0, n;
    for (size_t i = 0; i < ids.n; i++) {
        require(ids.ids[i] >= 0 && (size_t)ids.ids[i] < rq_tokenizer_n_tokens(tok));
        rq_token_type type = rq_token_type_of(tok, ids.ids[i]);
        if (!flags) require(type != RQ_TOKEN_CONTROL);
        /* these print nothing, though merging may produce them */
        if (type == RQ_TOKEN_UNUSED || type == RQ_TOKEN_UNDEFINED) whole = false;
        const char *piece = rq_token_piece(tok, ids.ids[i], &n);
        if (whole) require(n <= len - at && !memcmp(piece, words + at, n));
        if (whole) at += n;
    }
    if (whole) require(at == len);
    check_stream(tok, &ids, flags & RQ_TOKENIZE_PARSE_SPECIAL ? RQ_DETOK_SPECIAL : RQ_DETOK_START);
    rq_free(ids.ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char byte_text[2][256][8]; /* byte-level alphabet, <0xXX> */
    if (!byte_text[0][0][0]) {
        for (unsigned b = 0, other = 0x100; b < 256; b++) {
            unsigned c = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE ? b : other++;
            char *t = byte_text[0][b];
            if (c >= 0x80) *t++ = (char)(0xC0 | c >> 6);
            *t = (char)(c >= 0x80 ? 0x80 | (c & 0x3F) : c);
            memcpy(byte_text[1][b], "<0x00>", 7);
            byte_text[1][b][3] = "0123456789ABCDEF"[b >> 4];
            byte_text[1][b][4] = "0123456789ABCDEF"[b & 15];
        }
    }
    static rq_vocab_text tokens[MAX_TOKENS], merges[255];
    static int32_t types[MAX_TOKENS];
    static float scores[MAX_TOKENS];
    input in = {data, size};
    rq_vocab_source source;
    rq_vocab_source_init(&source);
    const char *model = model_names[byte(&in) % 4],
               *pre = pre_names[byte(&in) % (sizeof pre_names / sizeof *pre_names)];
    unsigned flags = byte(&in);
    source.model = (rq_vocab_text){model, strlen(model)};
    source.pre = (rq_vocab_text){pre, strlen(pre)};
    if (flags & 32) source.name = (rq_vocab_text){"Phi-3", 5};
    static const rq_special ids[3] = {RQ_SPECIAL_BOS, RQ_SPECIAL_EOS, RQ_SPECIAL_UNK};
    for (int i = 0; i < 3; i++) {
        uint8_t id = byte(&in);
        source.special[ids[i]] = id == 255 ? -1 : (flags & 1 ? 256 : 0) + id;
    }
    size_t n_tokens = byte(&in), n_merges = byte(&in), n = 0;
    if (flags & 1)
        for (; n < 256; n++) {
            const char *t = byte_text[model == model_names[0] ? 0 : 1][n];
            tokens[n] = (rq_vocab_text){t, strlen(t)};
            types[n] = model == model_names[0] ? RQ_TOKEN_NORMAL : RQ_TOKEN_BYTE;
            scores[n] = 0;
        }
    for (size_t i = 0; i < n_tokens && in.left; i++, n++) {
        types[n] = (int8_t)byte(&in);
        scores[n] = (float)(int8_t)byte(&in);
        tokens[n] = text(&in);
    }
    for (size_t i = 0; i < n_merges; i++) merges[i] = text(&in);
    source.tokens = tokens;
    source.types = flags & 2 ? NULL : types;
    source.scores = scores;
    source.merges = merges;
    source.n_tokens = n;
    source.n_types = flags & 2 ? 0 : n;
    source.n_scores = n - (n && (flags & 64));
    source.n_merges = n_merges;
    source.add_space_prefix = flags & 4 ? 0 : -1;
    source.add_bos = source.add_eos = flags & 16 ? 1 : -1;
    rq_error err = {{0}};
    rq_tokenizer *tok = NULL;
    if (rq_tokenizer_create(&source, &tok, &err)) {
        require(err.text[0] && !tok);
        return 0;
    }
    size_t len = in.left < MAX_TEXT ? in.left : MAX_TEXT;
    const char *words = in.left ? (const char *)in.p : "";
    check_text(tok, words, len, 0, flags & 32);
    check_text(tok, words, len,
               (flags & 8 ? RQ_TOKENIZE_PARSE_SPECIAL : 0) | (flags & 16 ? RQ_TOKENIZE_ADD_SPECIAL : 0),
               flags & 32);
    rq_tokenizer_free(tok);
    return 0;
}
