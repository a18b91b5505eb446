#include "tools/inspect/memory.h"

#include <stdio.h>
#include <string.h>

/* Which layers keep keys and values. */
typedef enum kv_rule {
    KV_EVERY_LAYER,
    KV_EVERY_NTH, /* full_attention_interval; the others are recurrent */
    KV_WINDOWS    /* all, but most only a sliding window */
} kv_rule;

static const struct {
    const char *arch;
    kv_rule rule;
    uint32_t period; /* default of the interval or window pattern */
} families[] = {
    {"llama", KV_EVERY_LAYER, 1},    {"qwen2", KV_EVERY_LAYER, 1}, {"qwen3", KV_EVERY_LAYER, 1},
    {"qwen3moe", KV_EVERY_LAYER, 1}, {"qwen35", KV_EVERY_NTH, 4},  {"qwen35moe", KV_EVERY_NTH, 4},
    {"gemma3", KV_WINDOWS, 6},       {"gemma4", KV_WINDOWS, 6},
};

/* Keys are read through this: the first failure sticks. */
typedef struct reader {
    const rq_gguf *g;
    rq_gguf_str arch;
    rq_status status;
    rq_error *err;
} reader;

static const char *key(const reader *r, const char *rest, char out[160])
{
    snprintf(out, 160, "%.*s.%s", (int)(r->arch.len > 64 ? 64 : r->arch.len), r->arch.data, rest);
    return out;
}

static uint32_t read_u32(reader *r, const char *rest, uint32_t max, uint32_t fallback)
{
    char name[160];
    uint32_t value = fallback;
    if (!r->status) r->status = rq_gguf_opt_u32(r->g, key(r, rest, name), 0, max, fallback, &value, r->err);
    return value;
}

/* Element `layer` of a key that is one number or an array of them. */
static uint32_t read_layer(reader *r, const char *rest, uint32_t layer, uint32_t fallback)
{
    char name[160];
    const rq_gguf_kv *kv = rq_gguf_find(r->g, key(r, rest, name));
    int64_t value = fallback;
    if (kv && !rq_gguf_elem_i64(kv, kv->is_array ? layer : 0, &value)) value = -1;
    if (value < 0 || value > 1 << 20) {
        if (!r->status) r->status = rq_fail(r->err, RQ_ERR_FORMAT, "the key %s makes no sense", name);
        return 0;
    }
    return (uint32_t)value;
}

static bool is_window_layer(reader *r, uint32_t layer, uint32_t period)
{
    char name[160];
    const rq_gguf_kv *kv = rq_gguf_find(r->g, key(r, "attention.sliding_window_pattern", name));
    if (kv && kv->is_array) return read_layer(r, "attention.sliding_window_pattern", layer, 0) != 0;
    if (kv) period = read_layer(r, "attention.sliding_window_pattern", 0, period);
    return period < 2 || layer % period != period - 1;
}

static void count_kv(reader *r, kv_rule rule, uint32_t period, inspect_memory *m)
{
    uint32_t n_layer = read_u32(r, "block_count", 1 << 16, 0);
    uint32_t n_embd = read_u32(r, "embedding_length", 1 << 24, 0);
    uint32_t n_own =
        n_layer - read_u32(r, "attention.shared_kv_layers", n_layer, 0); /* the rest borrow theirs */
    uint32_t n_trunk = n_layer - read_u32(r, "nextn_predict_layers", n_layer, 0);
    uint32_t n_head = read_layer(r, "attention.head_count", 0, 0);
    if (r->status) return;
    if (!n_layer || !n_embd || !n_head) {
        r->status = rq_fail(r->err, RQ_ERR_FORMAT,
                            "block_count, embedding_length or attention.head_count is missing");
        return;
    }
    uint32_t k = read_u32(r, "attention.key_length", 1 << 16, n_embd / n_head);
    uint32_t v = read_u32(r, "attention.value_length", 1 << 16, n_embd / n_head);
    uint32_t k_window = read_u32(r, "attention.key_length_swa", 1 << 16, k);
    uint32_t v_window = read_u32(r, "attention.value_length_swa", 1 << 16, v);
    m->context = read_u32(r, "context_length", 1u << 30, 0);
    if (rule == KV_WINDOWS) m->window = read_u32(r, "attention.sliding_window", 1u << 30, 0);
    if (rule == KV_EVERY_NTH) period = read_u32(r, "full_attention_interval", 1 << 16, period);
    for (uint32_t l = 0; l < n_own && !r->status; l++) {
        uint64_t heads =
            read_layer(r, "attention.head_count_kv", l, read_layer(r, "attention.head_count", l, 0));
        if (rule == KV_WINDOWS && is_window_layer(r, l, period))
            m->window_elems_per_token += heads * (k_window + v_window);
        else if (rule != KV_EVERY_NTH || l >= n_trunk || (period && (l + 1) % period == 0))
            m->kv_elems_per_token += heads * (k + v);
    }
}

void inspect_memory_of(const rq_gguf *g, inspect_memory *out, rq_error *why)
{
    *out = (inspect_memory){0};
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        out->weight_bytes +=
            rq_gguf_tensor_at(g, i)->nbytes; /* no overflow: they lie in files side by side */
        if (__builtin_add_overflow(out->parameters, rq_gguf_tensor_at(g, i)->n_elems, &out->parameters))
            out->parameters = UINT64_MAX;
    }
    reader r = {.g = g, .err = why};
    r.status = rq_gguf_get_str(g, "general.architecture", &r.arch, why);
    size_t f = 0, n_families = sizeof families / sizeof *families;
    while (!r.status && f < n_families && !rq_gguf_str_eq(r.arch, families[f].arch)) f++;
    if (!r.status && f == n_families)
        r.status = rq_fail(why, RQ_ERR_UNSUPPORTED, "this program does not know the family");
    inspect_memory counted = *out;
    if (!r.status) count_kv(&r, families[f].rule, families[f].period, &counted);
    if (r.status) return;
    *out = counted;
    out->kv_known = true;
}
