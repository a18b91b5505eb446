#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 1 << 24, MAX_MERGES = 1 << 26 };

static const char *const special_key[RQ_SPECIAL_COUNT] = {"bos",     "eos",     "eot",     "eom",
                                                          "unknown", "padding", "fim_pre", "fim_suf",
                                                          "fim_mid", "fim_pad", "fim_rep", "fim_sep"};

void rq_vocab_source_init(rq_vocab_source *source)
{
    *source = (rq_vocab_source){.add_bos = -1, .add_eos = -1, .add_space_prefix = -1};
    for (int i = 0; i < RQ_SPECIAL_COUNT; i++) source->special[i] = -1;
}

static bool is(rq_vocab_text a, const char *b)
{
    return a.data && a.len == strlen(b) && !memcmp(a.data, b, a.len);
}

void rq_tokenizer_free(rq_tokenizer *tok)
{
    if (!tok) return;
    rq_symbols_free(&tok->symbols);
    rq_pairs_free(&tok->merges);
    rq_free(tok->text);
    rq_free(tok->piece);
    rq_free(tok->type);
    rq_free(tok->mark);
    rq_free(tok->score_rank);
    rq_free(tok->eog);
    rq_splitter_free(tok->splitter);
    rq_matcher_free(tok->all_special);
    rq_matcher_free(tok->user_only);
    rq_free(tok);
}

static rq_status check_source(const rq_vocab_source *s, rq_error *err)
{
    if (!s->tokens || !s->n_tokens)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "the file has no vocabulary (tokenizer.ggml.tokens is missing or empty)");
    if (s->n_tokens > MAX_TOKENS)
        return rq_fail(err, RQ_ERR_FORMAT, "tokenizer.ggml.tokens has %zu entries, more than %d", s->n_tokens,
                       MAX_TOKENS);
    if (s->n_merges > MAX_MERGES)
        return rq_fail(err, RQ_ERR_FORMAT, "tokenizer.ggml.merges has %zu entries, more than %d", s->n_merges,
                       MAX_MERGES);
    if (s->types && s->n_types != s->n_tokens)
        return rq_fail(err, RQ_ERR_FORMAT, "tokenizer.ggml.token_type has %zu entries for %zu tokens",
                       s->n_types, s->n_tokens);
    if (s->scores && s->n_scores != s->n_tokens)
        return rq_fail(err, RQ_ERR_FORMAT, "tokenizer.ggml.scores has %zu entries for %zu tokens",
                       s->n_scores, s->n_tokens);
    for (int i = 0; i < RQ_SPECIAL_COUNT; i++)
        if (s->special[i] < -1 || s->special[i] >= (int64_t)s->n_tokens)
            return rq_fail(err, RQ_ERR_FORMAT, "tokenizer.ggml.%s_token_id is %lld, but there are %zu tokens",
                           special_key[i], (long long)s->special[i], s->n_tokens);
    return RQ_OK;
}

static rq_status choose_algorithm(rq_tokenizer *tok, const rq_vocab_source *s, rq_error *err)
{
    if (!s->model.data)
        return rq_fail(err, RQ_ERR_FORMAT, "the file has no tokenizer (tokenizer.ggml.model is missing)");
    if (is(s->model, "gpt2")) {
        tok->algorithm = RQ_ALGO_BYTE_BPE;
        tok->notes.algorithm = "byte-level BPE";
    } else if (is(s->model, "llama")) {
        tok->algorithm = RQ_ALGO_SPM;
        tok->notes.algorithm = "SentencePiece BPE";
    } else if (is(s->model, "gemma4")) {
        tok->algorithm = RQ_ALGO_GEMMA4;
        tok->notes.algorithm = "Gemma 4 BPE";
    } else {
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "tokenizer model \"%.*s\" is not supported; supported are gpt2, llama and gemma4",
                       s->model.len < 64 ? (int)s->model.len : 64, s->model.data);
    }
    if (tok->algorithm != RQ_ALGO_SPM && !s->merges)
        return rq_fail(err, RQ_ERR_FORMAT, "the tokenizer has no merges (tokenizer.ggml.merges is missing)");
    if (tok->algorithm == RQ_ALGO_SPM && !s->scores)
        return rq_fail(err, RQ_ERR_FORMAT, "the tokenizer has no scores (tokenizer.ggml.scores is missing)");

    tok->notes.pre = "";
    tok->add_bos = tok->algorithm != RQ_ALGO_BYTE_BPE;
    tok->add_space_prefix = tok->algorithm == RQ_ALGO_SPM && s->add_space_prefix != 0;
    if (tok->algorithm == RQ_ALGO_BYTE_BPE) {
        const rq_pre *pre = rq_pre_find(s->pre);
        if (!pre) {
            char list[400];
            rq_pre_list(list, sizeof list);
            return rq_fail(err, RQ_ERR_UNSUPPORTED, "pre-tokenizer \"%.*s\" is not known; known are %s",
                           s->pre.len < 64 ? (int)s->pre.len : 64, s->pre.data, list);
        }
        tok->notes.pre = pre->pattern->name;
        tok->whole_words_first = pre->whole_words_first;
        tok->add_bos = pre->add_bos;
        tok->notes.jit = true;
        rq_status status = rq_splitter_create(pre->pattern, &tok->notes.jit, &tok->splitter, err);
        if (status) return status;
    }
    /* Gemma 4 needs its BOS, and early files say otherwise (llama.cpp pull request 21500). */
    if (s->add_bos >= 0 && tok->algorithm != RQ_ALGO_GEMMA4) tok->add_bos = s->add_bos;
    tok->add_eos = s->add_eos > 0;
    return RQ_OK;
}

/* "<0x0A>" -> 10, else -1 */
static int byte_of_text(const uint8_t *p, size_t n)
{
    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        int c = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : p[i] >= 'A' && p[i] <= 'F' ? p[i] - 'A' + 10 : -1;
        if (c < 0) return -1;
        value = value * 16 + c;
    }
    return value;
}

static rq_status no_pool(const rq_tokenizer *tok, size_t more, rq_error *err)
{
    if (more > RQ_POOL_LIMIT_BYTES - tok->symbols.pool_len)
        return rq_fail(err, RQ_ERR_FORMAT, "the vocabulary's texts are longer than %d bytes",
                       RQ_POOL_LIMIT_BYTES);
    return rq_no_memory(err);
}

typedef struct rq_scored {
    float score;
    uint32_t id;
} rq_scored;

static int by_falling_score(const void *a, const void *b)
{
    float x = ((const rq_scored *)a)->score, y = ((const rq_scored *)b)->score;
    return x > y ? -1 : x < y;
}

static rq_status rank_scores(rq_tokenizer *tok, const float *scores, rq_error *err)
{
    size_t n = tok->n_tokens;
    rq_scored *sorted = rq_calloc(n, sizeof *sorted);
    tok->score_rank = rq_calloc(n, sizeof *tok->score_rank);
    if (!sorted || !tok->score_rank) {
        rq_free(sorted);
        return rq_no_memory(err);
    }
    for (size_t i = 0; i < n; i++)
        sorted[i] = (rq_scored){isnan(scores[i]) ? -FLT_MAX : scores[i], (uint32_t)i};
    qsort(sorted, n, sizeof *sorted, by_falling_score);
    for (size_t i = 0; i < n; i++) {
        if (i && sorted[i].score < sorted[i - 1].score) tok->n_ranks++;
        tok->score_rank[sorted[i].id] = tok->n_ranks;
    }
    tok->n_ranks++;
    rq_free(sorted);
    return RQ_OK;
}

/* Copies texts and types, and orders the scores. */
static rq_status copy_tokens(rq_tokenizer *tok, const rq_vocab_source *s, rq_error *err)
{
    size_t n = tok->n_tokens = s->n_tokens;
    tok->text = rq_calloc(n, sizeof *tok->text);
    tok->piece = rq_calloc(n, sizeof *tok->piece);
    tok->type = rq_calloc(n, 1);
    tok->mark = rq_calloc(n, 1);
    if (!tok->text || !tok->piece || !tok->type || !tok->mark) return rq_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        rq_vocab_text text = s->tokens[i];
        if (!rq_symbols_store(&tok->symbols, text.data, text.len, &tok->text[i]))
            return no_pool(tok, text.len, err);
        int32_t type = s->types ? s->types[i] : RQ_TOKEN_NORMAL;
        if (type < 0 || type > RQ_TOKEN_BYTE) type = RQ_TOKEN_UNDEFINED;
        /* Byte tokens of a byte-level vocabulary are spelled like any other token. */
        if (type == RQ_TOKEN_BYTE && byte_of_text((const uint8_t *)text.data, text.len) < 0)
            type = RQ_TOKEN_NORMAL;
        tok->type[i] = (uint8_t)type;
        tok->notes.n_empty_tokens += !text.len;
    }
    tok->n_ranks = (uint32_t)s->n_merges;
    if (tok->algorithm == RQ_ALGO_SPM) {
        tok->n_ranks = 0;
        rq_status status = rank_scores(tok, s->scores, err);
        if (status) return status;
    }
    for (int i = 0; i < RQ_SPECIAL_COUNT; i++) tok->special[i] = (rq_token)s->special[i];
    /* SentencePiece's own numbering, where the file is silent. Byte-level vocabularies have no such custom.
     */
    static const rq_special spm_default[3] = {RQ_SPECIAL_UNK, RQ_SPECIAL_BOS, RQ_SPECIAL_EOS};
    for (size_t id = 0; tok->algorithm == RQ_ALGO_SPM && id < 3 && id < n; id++) {
        bool special = !s->types || tok->type[id] == RQ_TOKEN_CONTROL || tok->type[id] == RQ_TOKEN_UNKNOWN;
        if (special && tok->special[spm_default[id]] < 0) tok->special[spm_default[id]] = (rq_token)id;
    }
    return RQ_OK;
}

static bool append(rq_buf *b, const void *bytes, size_t n)
{
    return rq_buf_append(b, bytes, n);
}

/* Text -> bytes in the byte-level alphabet; false (b->failed: no memory) when a character is not of it. */
static bool decode_alphabet(const uint8_t *p, size_t n, rq_buf *b)
{
    for (size_t i = 0; i < n;) {
        uint8_t byte;
        unsigned len = rq_byte_level_decode(p + i, n - i, &byte);
        if (!len || !append(b, &byte, 1)) return false;
        i += len;
    }
    return true;
}

static void unescape_spaces(const uint8_t *p, size_t n, rq_buf *b)
{
    for (size_t i = 0; i < n;) {
        if (n - i >= 3 && !memcmp(p + i, "\xE2\x96\x81", 3)) {
            append(b, " ", 1);
            i += 3;
        } else {
            append(b, p + i, 1);
            i++;
        }
    }
}

/* Stores what a token prints and, for tokens that merging may produce, the bytes it stands for. */
static rq_status prepare_token(rq_tokenizer *tok, size_t id, rq_buf *b, rq_error *err)
{
    rq_symbols *symbols = &tok->symbols;
    const uint8_t *text = symbols->pool + tok->text[id].offset;
    size_t len = tok->text[id].len;
    uint8_t type = tok->type[id];
    rq_span key = tok->text[id];
    bool producible = len && type != RQ_TOKEN_CONTROL && type != RQ_TOKEN_UNKNOWN && type != RQ_TOKEN_BYTE;
    rq_buf_clear(b);
    if (tok->algorithm == RQ_ALGO_BYTE_BPE) {
        if (!decode_alphabet(text, len, b)) {
            if (b->failed) return rq_no_memory(err);
            producible = false;
            rq_buf_clear(b);
            append(b, text, len);
        }
        /* A user-defined token prints its text as it stands. DeepSeek Coder has U+00F5 as one: it must not pass for
         * the byte 0xF5, which the same character spells. */
        if (type == RQ_TOKEN_USER_DEFINED && (b->len != len || (len && memcmp(b->data, text, len) != 0)))
            producible = false;
    } else if (type == RQ_TOKEN_BYTE) {
        uint8_t byte = (uint8_t)byte_of_text(text, len);
        append(b, &byte, 1);
    } else {
        unescape_spaces(text, len, b);
    }
    if (b->failed) return rq_no_memory(err);
    rq_span decoded = tok->text[id];
    if (b->len != len || (len && memcmp(b->data, symbols->pool + tok->text[id].offset, len) != 0))
        if (!rq_symbols_store(symbols, b->data, b->len, &decoded)) return no_pool(tok, b->len, err);
    if (tok->algorithm == RQ_ALGO_BYTE_BPE) key = decoded;
    if (type == RQ_TOKEN_NORMAL || type == RQ_TOKEN_BYTE)
        tok->piece[id] = decoded;
    else if (type != RQ_TOKEN_UNUSED && type != RQ_TOKEN_UNDEFINED)
        tok->piece[id] = tok->text[id];

    if (rq_symbols_number(symbols, key) < 0) return rq_no_memory(err);
    if (!producible) return RQ_OK;
    int32_t was;
    if (!rq_symbols_index(symbols, (int32_t)id, &was)) return rq_no_memory(err);
    tok->notes.n_duplicate_tokens += was >= 0;
    if (key.len > tok->max_key_bytes) tok->max_key_bytes = key.len;
    return RQ_OK;
}

static rq_status add_merge(rq_tokenizer *tok, rq_vocab_text merge, uint32_t rank, rq_buf *b, rq_error *err)
{
    const uint8_t *p = (const uint8_t *)merge.data;
    const uint8_t *space = merge.len > 1 ? memchr(p + 1, ' ', merge.len - 1) : NULL;
    size_t n_left = space ? (size_t)(space - p) : 0, n_right = space ? merge.len - n_left - 1 : 0;
    bool good = n_left && n_right;
    rq_buf_clear(b);
    if (good && tok->algorithm == RQ_ALGO_BYTE_BPE) {
        good = decode_alphabet(p, n_left, b);
        n_left = b->len;
        good = good && decode_alphabet(space + 1, n_right, b);
        n_right = b->len - n_left;
    } else if (good) {
        append(b, p, n_left);
        append(b, space + 1, n_right);
    }
    if (b->failed) return rq_no_memory(err);
    if (!good) {
        tok->notes.n_bad_merges++;
        return RQ_OK;
    }
    const uint8_t *bytes = (const uint8_t *)b->data;
    int32_t left = rq_symbols_intern(&tok->symbols, bytes, n_left);
    int32_t right = left < 0 ? -1 : rq_symbols_intern(&tok->symbols, bytes + n_left, n_right);
    int32_t result = right < 0 ? -1 : rq_symbols_intern(&tok->symbols, bytes, n_left + n_right);
    bool added;
    if (result < 0) return no_pool(tok, 3 * (n_left + n_right), err);
    if (!rq_pairs_add(&tok->merges, left, right, rank, result, &added)) return rq_no_memory(err);
    tok->notes.n_merges += added;
    tok->notes.n_bad_merges += !added;
    tok->notes.n_unknown_merges += added && (size_t)result >= tok->n_tokens;
    return RQ_OK;
}

/* Where single bytes and characters begin, and how bytes are spelled that ended up in no token. */
static void fill_byte_tables(rq_tokenizer *tok)
{
    bool byte_level = tok->algorithm == RQ_ALGO_BYTE_BPE;
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        int32_t id = byte_level || i < 128 ? rq_symbols_find(&tok->symbols, &byte, 1) : -1;
        tok->symbol_of_byte[i] = id;
        tok->token_of_byte[i] = -1;
        if (byte_level && (size_t)id < tok->n_tokens) tok->token_of_byte[i] = id;
    }
    for (size_t id = 0; !byte_level && id < tok->n_tokens; id++) {
        int byte = byte_of_text(tok->symbols.pool + tok->text[id].offset, tok->text[id].len);
        if (byte < 0) continue;
        rq_token *slot = &tok->token_of_byte[byte];
        if (*slot < 0 || (tok->type[*slot] != RQ_TOKEN_BYTE && tok->type[id] == RQ_TOKEN_BYTE))
            *slot = (rq_token)id;
    }
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        int32_t id = tok->token_of_byte[i] < 0 ? rq_symbols_find(&tok->symbols, &byte, 1) : -1;
        if (!byte_level && id >= 0 && (size_t)id < tok->n_tokens) tok->token_of_byte[i] = id;
        tok->notes.n_missing_bytes += tok->token_of_byte[i] < 0;
    }
}

/* For the cuts of encode.c. Symbols merging cannot produce are looked at too; they only cost cuts. */
static void note_inner_spaces(rq_tokenizer *tok)
{
    for (size_t id = 0; id < tok->symbols.n; id++) {
        const uint8_t *p = tok->symbols.pool + tok->symbols.key[id].offset;
        for (size_t i = 1; i + 3 <= tok->symbols.key[id].len; i++)
            if (p[i] == 0xE2 && p[i + 1] == 0x96 && p[i + 2] == 0x81) tok->joins_space[p[i - 1]] = true;
    }
}

static rq_status create_matchers(rq_tokenizer *tok, rq_error *err)
{
    rq_token *ids = rq_calloc(tok->n_tokens, sizeof *ids);
    if (!ids) return rq_no_memory(err);
    rq_status status = RQ_OK;
    for (int user_only = 0; !status && user_only < 2; user_only++) {
        size_t n = 0;
        for (size_t id = 0; id < tok->n_tokens; id++) {
            uint8_t type = tok->type[id];
            bool in = type == RQ_TOKEN_USER_DEFINED ||
                      (!user_only && (type == RQ_TOKEN_CONTROL || type == RQ_TOKEN_UNKNOWN));
            if (in && tok->text[id].len) ids[n++] = (rq_token)id;
        }
        status = rq_matcher_create(&tok->symbols, tok->text, ids, n,
                                   user_only ? &tok->user_only : &tok->all_special, err);
    }
    rq_free(ids);
    return status;
}

static rq_status build(rq_tokenizer *tok, const rq_vocab_source *s, rq_error *err)
{
    rq_status status = check_source(s, err);
    if (!status) status = choose_algorithm(tok, s, err);
    if (!status) status = copy_tokens(tok, s, err);
    if (!status) status = rq_wellknown_apply(tok, s->types != NULL, err);
    if (status) return status;
    rq_wellknown_strip(tok, s->name);
    rq_buf scratch = {.max = RQ_POOL_LIMIT_BYTES};
    if (!rq_symbols_reserve(&tok->symbols, tok->n_tokens) ||
        (tok->algorithm != RQ_ALGO_SPM && !rq_pairs_reserve(&tok->merges, s->n_merges)))
        status = rq_no_memory(err);
    for (size_t id = 0; !status && id < tok->n_tokens; id++) status = prepare_token(tok, id, &scratch, err);
    for (size_t i = 0; !status && tok->algorithm != RQ_ALGO_SPM && i < s->n_merges; i++)
        status = add_merge(tok, s->merges[i], (uint32_t)i, &scratch, err);
    rq_buf_free(&scratch);
    if (status) return status;
    fill_byte_tables(tok);
    if (tok->algorithm != RQ_ALGO_BYTE_BPE) note_inner_spaces(tok);
    return create_matchers(tok, err);
}

rq_status rq_tokenizer_create(const rq_vocab_source *source, rq_tokenizer **out, rq_error *err)
{
    rq_tokenizer *tok = rq_calloc(1, sizeof *tok);
    if (!tok) return rq_no_memory(err);
    rq_symbols_init(&tok->symbols);
    rq_pairs_init(&tok->merges);
    rq_status status = build(tok, source, err);
    if (status) {
        rq_tokenizer_free(tok);
        return status;
    }
    *out = tok;
    return RQ_OK;
}
