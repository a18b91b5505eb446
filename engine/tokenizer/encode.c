#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#include <string.h>

static const uint8_t block[3] = {0xE2, 0x96, 0x81}; /* U+2581, how SentencePiece spells a space */

/* Copies a fragment to e->text with every space as U+2581, behind one more if `prefix`. */
static bool escape_spaces(rq_encoder *e, const uint8_t *text, size_t len, bool prefix, size_t *out_len)
{
    size_t spaces = prefix, n = 0;
    for (size_t i = 0; i < len; i++) spaces += text[i] == ' ';
    if (!rq_grow((void **)&e->text, &e->text_cap, len + 3 * spaces, 1)) return false;
    uint8_t *out = e->text;
    if (prefix) {
        memcpy(out, block, 3);
        n = 3;
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ') {
            memcpy(out + n, block, 3);
            n += 3;
        } else {
            out[n++] = text[i];
        }
    }
    *out_len = n;
    return true;
}

/* No merge crosses a place where no symbol of the vocabulary could lie across it, so text may be cut there without
 * changing anything: in front of a space, behind a byte that no symbol has in front of a space. Cut text is merged
 * with small heaps. Returns the end of the first part. */
static size_t first_part(const rq_tokenizer *tok, const uint8_t *text, size_t len)
{
    for (size_t i = 1; i + 3 <= len; i++)
        if (text[i] == 0xE2 && text[i + 1] == 0x96 && text[i + 2] == 0x81 && !tok->joins_space[text[i - 1]])
            return i;
    return len;
}

static rq_status encode_parts(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    rq_status status = RQ_OK;
    for (size_t i = 0, part; !status && i < len; i += part) {
        part = first_part(e->tok, text + i, len - i);
        status = e->tok->algorithm == RQ_ALGO_SPM ? rq_spm_text(e, text + i, part, err)
                                                  : rq_bpe_characters(e, text + i, part, err);
    }
    return status;
}

static rq_status word_of_split(void *user, const uint8_t *word, size_t len, rq_error *err)
{
    return rq_bpe_word(user, word, len, err);
}

static rq_status encode_byte_level(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    rq_status status = RQ_OK;
    for (size_t i = 0; !status && i < len;) {
        size_t valid = rq_utf8_valid(text + i, len - i);
        if (valid) {
            if (!e->split && !(e->split = rq_split_state_create(e->tok->splitter))) return rq_no_memory(err);
            status = rq_split(e->tok->splitter, e->split, text + i, valid, word_of_split, e, err);
            i += valid;
            continue;
        }
        size_t bad = 1;
        while (i + bad < len && !rq_utf8_length(text + i + bad, len - i - bad)) bad++;
        status = rq_bpe_word(e, text + i, bad, err);
        i += bad;
    }
    return status;
}

/* Gemma 4: lines and runs of newlines; such a run is one token where the vocabulary has it. */
static rq_status encode_gemma4(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    size_t n;
    if (!escape_spaces(e, text, len, false, &n)) return rq_no_memory(err);
    rq_status status = RQ_OK;
    for (size_t i = 0, end; !status && i < n; i = end) {
        bool newline = e->text[i] == '\n';
        for (end = i + 1; end < n && (e->text[end] == '\n') == newline;) end++;
        rq_token id = newline ? rq_symbols_find(&e->tok->symbols, e->text + i, end - i) : -1;
        status = id >= 0 && (size_t)id < e->tok->n_tokens ? rq_emit(e, id, err)
                                                          : encode_parts(e, e->text + i, end - i, err);
    }
    return status;
}

/* Text between special tokens, or between one and an end of the text: SentencePiece puts its space in front
 * of each such fragment. */
static rq_status encode_fragment(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    if (!len) return RQ_OK;
    if (e->tok->algorithm == RQ_ALGO_BYTE_BPE) return encode_byte_level(e, text, len, err);
    if (e->tok->algorithm == RQ_ALGO_GEMMA4) return encode_gemma4(e, text, len, err);
    size_t n;
    if (!escape_spaces(e, text, len, e->tok->add_space_prefix, &n)) return rq_no_memory(err);
    return encode_parts(e, e->text, n, err);
}

rq_status rq_tokenizer_encode(const rq_tokenizer *tok, const char *chars, size_t len, unsigned flags,
                              rq_tokens *out, rq_error *err)
{
    const uint8_t *text = (const uint8_t *)chars;
    if (len > RQ_TOKENIZE_MAX_BYTES)
        return rq_fail(err, RQ_ERR_CAPACITY,
                       "a text of %zu bytes is too long to tokenize at once; the limit is %zu", len,
                       RQ_TOKENIZE_MAX_BYTES);
    rq_encoder e = {.tok = tok, .out = out};
    size_t before = out->n, n_hits = 0, at = 0;
    rq_hit *hits = NULL;
    rq_status status = RQ_OK;
    rq_token bos = tok->special[RQ_SPECIAL_BOS], eos = tok->special[RQ_SPECIAL_EOS];
    bool want_bos = (flags & RQ_TOKENIZE_FORCE_BOS) || ((flags & RQ_TOKENIZE_ADD_SPECIAL) && tok->add_bos);
    if (want_bos && bos >= 0) status = rq_emit(&e, bos, err);
    if (!status && len)
        status = rq_matcher_find(flags & RQ_TOKENIZE_PARSE_SPECIAL ? tok->all_special : tok->user_only,
                                 tok->mark, text, len, &hits, &n_hits, err);
    for (size_t i = 0; !status && i < n_hits; i++) {
        status = encode_fragment(&e, text + at, hits[i].begin - at, err);
        if (!status) status = rq_emit(&e, hits[i].id, err);
        at = hits[i].end;
    }
    if (!status && at < len) status = encode_fragment(&e, text + at, len - at, err);
    if (!status && (flags & RQ_TOKENIZE_ADD_SPECIAL) && tok->add_eos && eos >= 0)
        status = rq_emit(&e, eos, err);
    rq_free(hits);
    rq_free(e.nodes);
    rq_free(e.spm_nodes);
    rq_free(e.text);
    rq_queue_free(&e.queue);
    rq_split_state_free(e.split);
    if (status) out->n = before;
    return status;
}
