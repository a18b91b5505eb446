#include "engine/tokenizer/tokenizer.h"

#include "backends/base/mem.h"
#include "engine/gguf/gguf.h"

#include <string.h>

static const char *const special_keys[][2] = {
    {"tokenizer.ggml.bos_token_id", NULL},
    {"tokenizer.ggml.eos_token_id", NULL},
    {"tokenizer.ggml.eot_token_id", NULL},
    {"tokenizer.ggml.eom_token_id", NULL},
    {"tokenizer.ggml.unknown_token_id", NULL},
    {"tokenizer.ggml.padding_token_id", NULL},
    {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"}, /* the second names are older */
    {"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
    {"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
    {"tokenizer.ggml.fim_pad_token_id", NULL},
    {"tokenizer.ggml.fim_rep_token_id", NULL},
    {"tokenizer.ggml.fim_sep_token_id", NULL},
};
_Static_assert(sizeof special_keys / sizeof *special_keys == RQ_SPECIAL_COUNT, "one row per special id");

static rq_status get_text(const rq_gguf *g, const char *key, rq_vocab_text *out, rq_error *err)
{
    rq_gguf_str value;
    if (!rq_gguf_find(g, key)) return RQ_OK;
    rq_status status = rq_gguf_get_str(g, key, &value, err);
    if (!status) *out = (rq_vocab_text){value.data, value.len};
    return status;
}

static rq_status get_flag(const rq_gguf *g, const char *key, int *out, rq_error *err)
{
    bool value;
    if (!rq_gguf_find(g, key)) return RQ_OK;
    rq_status status = rq_gguf_get_bool(g, key, &value, err);
    if (!status) *out = value;
    return status;
}

static rq_status get_special(const rq_gguf *g, const char *const keys[2], int64_t *out, rq_error *err)
{
    for (int i = 0; i < 2 && keys[i]; i++) {
        if (!rq_gguf_find(g, keys[i])) continue;
        rq_status status = rq_gguf_get_i64(g, keys[i], -1, UINT32_MAX, out, err);
        if (*out == UINT32_MAX) *out = -1; /* how some writers say "none" */
        return status;
    }
    return RQ_OK;
}

static rq_status get_texts(const rq_gguf *g, const char *key, rq_vocab_text **out, size_t *n, rq_error *err)
{
    const rq_gguf_kv *kv;
    if (!rq_gguf_find(g, key)) return RQ_OK;
    rq_status status = rq_gguf_get_strs(g, key, &kv, err);
    if (status) return status;
    rq_vocab_text *texts = rq_calloc(kv->count, sizeof *texts);
    if (!texts)
        return rq_fail(err, RQ_ERR_MEMORY, "no memory for the %llu strings of %s",
                       (unsigned long long)kv->count, key);
    for (uint64_t i = 0; i < kv->count; i++) {
        rq_gguf_str s = {"", 0};
        (void)rq_gguf_elem_str(kv, i, &s);
        texts[i] = (rq_vocab_text){s.data, s.len};
    }
    *out = texts;
    *n = kv->count;
    return RQ_OK;
}

/* Any integer width; what no 32-bit integer can hold is an unknown type anyway. */
static rq_status get_types(const rq_gguf *g, int32_t **out, size_t *n, rq_error *err)
{
    const char *key = "tokenizer.ggml.token_type";
    const rq_gguf_kv *kv;
    if (!rq_gguf_find(g, key)) return RQ_OK;
    rq_status status = rq_gguf_get_ints(g, key, &kv, err);
    if (status) return status;
    int32_t *types = rq_calloc(kv->count, sizeof *types);
    if (!types) return rq_fail(err, RQ_ERR_MEMORY, "no memory for the token types");
    for (uint64_t i = 0; i < kv->count; i++) {
        int64_t value = 0;
        (void)rq_gguf_elem_i64(kv, i, &value);
        types[i] = value >= 0 && value <= INT32_MAX ? (int32_t)value : 0;
    }
    *out = types;
    *n = kv->count;
    return RQ_OK;
}

/* Floats, or integers where all scores are integral. */
static rq_status get_scores(const rq_gguf *g, float **out, size_t *n, rq_error *err)
{
    const char *key = "tokenizer.ggml.scores";
    const rq_gguf_kv *kv;
    if (!rq_gguf_find(g, key)) return RQ_OK;
    rq_status status = rq_gguf_get_reals(g, key, &kv, err);
    if (status) return status;
    float *scores = rq_calloc(kv->count, sizeof *scores);
    if (!scores) return rq_fail(err, RQ_ERR_MEMORY, "no memory for the token scores");
    for (uint64_t i = 0; i < kv->count; i++) {
        double value = 0;
        (void)rq_gguf_elem_f64(kv, i, &value);
        scores[i] = (float)value;
    }
    *out = scores;
    *n = kv->count;
    return RQ_OK;
}

rq_status rq_tokenizer_from_gguf(const struct rq_gguf *g, rq_tokenizer **out, rq_error *err)
{
    rq_vocab_source source;
    rq_vocab_text *tokens = NULL, *merges = NULL;
    int32_t *types = NULL;
    float *scores = NULL;
    rq_vocab_source_init(&source);
    rq_status status = get_text(g, "tokenizer.ggml.model", &source.model, err);
    if (!status) status = get_text(g, "tokenizer.ggml.pre", &source.pre, err);
    if (!status) status = get_text(g, "general.name", &source.name, err);
    if (!status) status = get_flag(g, "tokenizer.ggml.add_bos_token", &source.add_bos, err);
    if (!status) status = get_flag(g, "tokenizer.ggml.add_eos_token", &source.add_eos, err);
    if (!status) status = get_flag(g, "tokenizer.ggml.add_space_prefix", &source.add_space_prefix, err);
    for (int i = 0; !status && i < RQ_SPECIAL_COUNT; i++)
        status = get_special(g, special_keys[i], &source.special[i], err);
    if (!status) status = get_texts(g, "tokenizer.ggml.tokens", &tokens, &source.n_tokens, err);
    if (!status) status = get_texts(g, "tokenizer.ggml.merges", &merges, &source.n_merges, err);
    if (!status) status = get_types(g, &types, &source.n_types, err);
    if (!status) status = get_scores(g, &scores, &source.n_scores, err);
    source.tokens = tokens;
    source.merges = merges;
    source.types = types;
    source.scores = scores;
    if (!status) {
        rq_error inner = {{0}};
        status = rq_tokenizer_create(&source, out, &inner);
        if (status) rq_fail(err, status, "%s: %s", rq_gguf_label(g), inner.text);
    }
    rq_free(tokens);
    rq_free(merges);
    rq_free(types);
    rq_free(scores);
    return status;
}
