#include "tests/models/small_model.h"

#include "backends/base/mem.h"
#include "backends/formats/half.h"
#include "engine/rqvk.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- keys ------------------------------------------------------------------------------------------------ */

static void full_name(const small_model *m, const char *key, char out[96])
{
    snprintf(out, 96, "%s%s", key[0] == '.' ? m->arch : "", key);
}

static sm_key *key_for(small_model *m, const char *key)
{
    char name[96];
    full_name(m, key, name);
    for (uint32_t i = 0; i < m->n_keys; i++)
        if (!strcmp(m->keys[i].name, name)) return &m->keys[i];
    assert_true(m->n_keys < SM_KEYS);
    sm_key *k = &m->keys[m->n_keys++];
    memset(k, 0, sizeof *k);
    memcpy(k->name, name, sizeof name);
    return k;
}

void sm_u32(small_model *m, const char *key, uint32_t value)
{
    sm_key *k = key_for(m, key);
    k->type = RQ_GGUF_U32;
    k->u = value;
}

void sm_f32(small_model *m, const char *key, float value)
{
    sm_key *k = key_for(m, key);
    k->type = RQ_GGUF_F32;
    k->f = value;
}

void sm_str(small_model *m, const char *key, const char *text)
{
    sm_key *k = key_for(m, key);
    k->type = RQ_GGUF_STRING;
    k->text = text;
}

void sm_list(small_model *m, const char *key, const uint32_t *values, uint32_t n)
{
    sm_key *k = key_for(m, key);
    assert_true(n <= sizeof k->list / sizeof *k->list);
    k->type = RQ_GGUF_ARRAY;
    k->n_list = n;
    memcpy(k->list, values, n * sizeof *values);
}

void sm_no_key(small_model *m, const char *key)
{
    char name[96];
    full_name(m, key, name);
    for (uint32_t i = 0; i < m->n_keys; i++)
        if (!strcmp(m->keys[i].name, name)) {
            memmove(&m->keys[i], &m->keys[i + 1], (m->n_keys - i - 1) * sizeof *m->keys);
            m->n_keys--;
            return;
        }
    fail_msg("there is no key %s to remove", name);
}

/* ---- tensors --------------------------------------------------------------------------------------------- */

static size_t elements(const sm_tensor *t)
{
    size_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) n *= (size_t)t->ne[i];
    return n;
}

sm_tensor *sm_find(small_model *m, const char *name)
{
    for (uint32_t i = 0; i < m->n_tensors; i++)
        if (!strcmp(m->tensors[i].name, name)) return &m->tensors[i];
    fail_msg("there is no tensor %s", name);
    return NULL;
}

sm_tensor *sm_add(small_model *m, const char *name, uint32_t n_dims, const uint64_t *ne)
{
    assert_true(m->n_tensors < SM_TENSORS);
    sm_tensor *t = &m->tensors[m->n_tensors++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->type = RQ_TYPE_F32;
    sm_reshape(m, name, n_dims, ne);
    return t;
}

/* Matrices get values of about 1/sqrt(n_in), vectors values around 1. */
void sm_reshape(small_model *m, const char *name, uint32_t n_dims, const uint64_t *ne)
{
    sm_tensor *t = sm_find(m, name);
    t->n_dims = n_dims;
    for (uint32_t i = 0; i < 4; i++) t->ne[i] = i < n_dims ? ne[i] : 1;
    size_t n = elements(t);
    free(t->data);
    t->data = calloc(n ? n : 1, sizeof *t->data);
    assert_non_null(t->data);
    uint64_t x = 88172645463325252ull;
    for (const char *c = name; *c; c++) x = (x ^ (uint64_t)*c) * 1099511628211ull;
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        float u = (float)(x >> 40) / 8388608.0f - 1.0f;
        t->data[i] = n_dims < 2 ? 1.0f + 0.25f * u : u * 1.7f / sqrtf((float)ne[0]);
    }
}

void sm_no_tensor(small_model *m, const char *name)
{
    sm_tensor *t = sm_find(m, name);
    free(t->data);
    uint32_t i = (uint32_t)(t - m->tensors);
    memmove(t, t + 1, (m->n_tensors - i - 1) * sizeof *t);
    m->n_tensors--;
}

void sm_fuse(small_model *m, const char *fused, const char *const *parts, uint32_t n)
{
    uint64_t ne[4] = {1, 1, 1, 1};
    uint32_t n_dims = 0;
    for (uint32_t i = 0; i < n; i++) {
        const sm_tensor *p = sm_find(m, parts[i]);
        n_dims = p->n_dims;
        uint32_t row_dim = n_dims > 1 ? 1 : 0;
        for (uint32_t d = 0; d < n_dims; d++) ne[d] = d == row_dim && i > 0 ? ne[d] + p->ne[d] : p->ne[d];
    }
    sm_tensor *whole = sm_add(m, fused, n_dims, ne);
    uint64_t experts = n_dims == 3 ? ne[2] : 1;
    float *to = whole->data;
    for (uint64_t e = 0; e < experts; e++)
        for (uint32_t i = 0; i < n; i++) {
            const sm_tensor *p = sm_find(m, parts[i]);
            size_t each = elements(p) / experts;
            memcpy(to, p->data + e * each, each * sizeof *to);
            to += each;
        }
    for (uint32_t i = 0; i < n; i++) sm_no_tensor(m, parts[i]);
}

/* ---- a whole model --------------------------------------------------------------------------------------- */

static void layer_tensor(small_model *m, uint32_t layer, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    sm_add(m, full, c ? 3 : b ? 2 : 1, (const uint64_t[]){a, b, c});
}

void sm_init(small_model *m, const char *arch, bool experts)
{
    sm_init_layers(m, arch, experts, SM_LAYERS);
}

void sm_init_layers(small_model *m, const char *arch, bool experts, uint32_t n_layers)
{
    memset(m, 0, sizeof *m);
    snprintf(m->arch, sizeof m->arch, "%s", arch);
    m->alignment = 32;
    m->n_vocab = SM_VOCAB;
    sm_str(m, "general.architecture", m->arch);
    sm_u32(m, ".block_count", n_layers);
    sm_u32(m, ".context_length", 512);
    sm_u32(m, ".embedding_length", SM_EMBD);
    sm_u32(m, ".feed_forward_length", SM_FF);
    sm_u32(m, ".attention.head_count", SM_HEADS);
    sm_u32(m, ".attention.head_count_kv", SM_HEADS_KV);
    sm_u32(m, ".attention.key_length", SM_HEAD);
    sm_u32(m, ".attention.value_length", SM_HEAD);
    sm_u32(m, ".rope.dimension_count", SM_HEAD);
    sm_f32(m, ".rope.freq_base", 10000.0f);
    sm_f32(m, ".attention.layer_norm_rms_epsilon", 1e-5f);
    if (experts) {
        sm_u32(m, ".expert_count", SM_EXPERTS);
        sm_u32(m, ".expert_used_count", 2);
        sm_u32(m, ".expert_feed_forward_length", SM_FF_EXPERT);
    }
    sm_add(m, "token_embd.weight", 2, (const uint64_t[]){SM_EMBD, SM_VOCAB});
    sm_add(m, "output_norm.weight", 1, (const uint64_t[]){SM_EMBD});
    sm_add(m, "output.weight", 2, (const uint64_t[]){SM_EMBD, SM_VOCAB});
    uint64_t q = SM_HEADS * SM_HEAD, kv = SM_HEADS_KV * SM_HEAD;
    for (uint32_t i = 0; i < n_layers; i++) {
        layer_tensor(m, i, "attn_norm.weight", SM_EMBD, 0, 0);
        layer_tensor(m, i, "attn_q.weight", SM_EMBD, q, 0);
        layer_tensor(m, i, "attn_k.weight", SM_EMBD, kv, 0);
        layer_tensor(m, i, "attn_v.weight", SM_EMBD, kv, 0);
        layer_tensor(m, i, "attn_output.weight", q, SM_EMBD, 0);
        if (!strcmp(arch, "qwen2")) {
            layer_tensor(m, i, "attn_q.bias", q, 0, 0);
            layer_tensor(m, i, "attn_k.bias", kv, 0, 0);
            layer_tensor(m, i, "attn_v.bias", kv, 0, 0);
        }
        if (!strncmp(arch, "qwen3", 5)) {
            layer_tensor(m, i, "attn_q_norm.weight", SM_HEAD, 0, 0);
            layer_tensor(m, i, "attn_k_norm.weight", SM_HEAD, 0, 0);
        }
        layer_tensor(m, i, "ffn_norm.weight", SM_EMBD, 0, 0);
        if (experts) {
            layer_tensor(m, i, "ffn_gate_inp.weight", SM_EMBD, SM_EXPERTS, 0);
            layer_tensor(m, i, "ffn_gate_exps.weight", SM_EMBD, SM_FF_EXPERT, SM_EXPERTS);
            layer_tensor(m, i, "ffn_up_exps.weight", SM_EMBD, SM_FF_EXPERT, SM_EXPERTS);
            layer_tensor(m, i, "ffn_down_exps.weight", SM_FF_EXPERT, SM_EMBD, SM_EXPERTS);
        } else {
            layer_tensor(m, i, "ffn_gate.weight", SM_EMBD, SM_FF, 0);
            layer_tensor(m, i, "ffn_up.weight", SM_EMBD, SM_FF, 0);
            layer_tensor(m, i, "ffn_down.weight", SM_FF, SM_EMBD, 0);
        }
    }
}

void sm_free(small_model *m)
{
    for (uint32_t i = 0; i < m->n_tensors; i++) free(m->tensors[i].data);
    memset(m, 0, sizeof *m);
}

/* ---- writing --------------------------------------------------------------------------------------------- */

/* The character GPT-2's vocabulary spells byte b with: printable ones as they are, the others from U+0100 on. */
static unsigned spelled(unsigned b)
{
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255)) return b;
    unsigned n = 0;
    for (unsigned c = 0; c < b; c++)
        if (!((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))) n++;
    return 256 + n;
}

/* Bytes, "ab", an end token, then as many more tokens as asked for. */
static void put_tokenizer(rq_gguf_writer *w, uint32_t n)
{
    rq_gguf_str *texts = calloc(n ? n : 1, sizeof *texts);
    char(*bytes)[16] = calloc(n ? n : 1, sizeof *bytes);
    int32_t *types = calloc(n ? n : 1, sizeof *types);
    assert_true(texts && bytes && types);
    for (uint32_t i = 0; i < n; i++) {
        types[i] = 1; /* normal */
        if (i < 256) {
            unsigned c = spelled(i);
            if (c >= 0x80) {
                bytes[i][0] = (char)(0xc0 | c >> 6);
                bytes[i][1] = (char)(0x80 | (c & 63));
            } else {
                bytes[i][0] = (char)c;
            }
        } else if (i == 256) {
            memcpy(bytes[i], "ab", 2);
        } else {
            snprintf(bytes[i], sizeof *bytes, "<|%u|>", i);
            types[i] = 3; /* control */
        }
        texts[i] = (rq_gguf_str){bytes[i], strlen(bytes[i])};
    }
    rq_gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
    rq_gguf_put_str(w, "tokenizer.ggml.pre", "qwen2");
    rq_gguf_put_strs(w, "tokenizer.ggml.tokens", texts, n);
    rq_gguf_put_array(w, "tokenizer.ggml.token_type", RQ_GGUF_I32, types, n);
    rq_gguf_put_strs(w, "tokenizer.ggml.merges", &(rq_gguf_str){"a b", 3}, 1);
    if (n > 257) rq_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 257);
    free(texts);
    free(bytes);
    free(types);
}

static void write_values(rq_gguf_writer *w, const sm_tensor *t)
{
    rq_error err = {0};
    size_t n = elements(t);
    if (t->type == RQ_TYPE_F32) {
        assert_int_equal(rq_gguf_writer_write(w, t->data, 4 * n, &err), RQ_OK);
        return;
    }
    assert_int_equal(t->type, RQ_TYPE_F16);
    for (size_t i = 0; i < n; i++) {
        uint16_t half = rq_half_from_f32(t->data[i]);
        assert_int_equal(rq_gguf_writer_write(w, &half, 2, &err), RQ_OK);
    }
}

static char written[64];

static void remove_file(void)
{
    unlink(written);
}

const char *sm_write(small_model *m)
{
    if (!written[0]) {
        const char *folder = getenv("TMPDIR");
        snprintf(written, sizeof written, "%.24s/rqvk-models-%ld.gguf", folder ? folder : P_tmpdir,
                 (long)getpid());
        atexit(remove_file);
    }
    rq_gguf_writer *w = NULL;
    rq_error err = {0};
    assert_int_equal(rq_gguf_writer_create(written, m->alignment, &w, &err), RQ_OK);
    for (uint32_t i = 0; i < m->n_keys; i++) {
        const sm_key *k = &m->keys[i];
        if (k->type == RQ_GGUF_U32)
            rq_gguf_put_u32(w, k->name, k->u);
        else if (k->type == RQ_GGUF_F32)
            rq_gguf_put_f32(w, k->name, k->f);
        else if (k->type == RQ_GGUF_STRING)
            rq_gguf_put_str(w, k->name, k->text);
        else
            rq_gguf_put_array(w, k->name, RQ_GGUF_U32, k->list, k->n_list);
    }
    put_tokenizer(w, m->n_vocab);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        rq_gguf_declare(w, m->tensors[i].name, m->tensors[i].type, m->tensors[i].n_dims, m->tensors[i].ne);
    if (rq_gguf_writer_begin_data(w, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < m->n_tensors; i++) write_values(w, &m->tensors[i]);
    if (rq_gguf_writer_finish(w, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_gguf_writer_free(w);
    return written;
}

void sm_memory_runs_out(small_model *m)
{
    const char *path = sm_write(m);
    sm_free(m);
    rq_model *model = NULL;
    rq_mem_fail_at(0);
    assert_int_equal(rq_model_load(path, &model, NULL), RQ_OK);
    uint64_t total = rq_mem_count(), n_failed = 0;
    rq_model_free(model);
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1; n <= total; n++) {
        rq_error err = {0};
        model = NULL;
        rq_mem_fail_at(n);
        rq_status s = rq_model_load(path, &model, &err);
        rq_mem_fail_at(0);
        if (s != RQ_OK && (s != RQ_ERR_MEMORY || model || !err.text[0]))
            fail_msg("allocation %lu: status %d, \"%s\"", (unsigned long)n, (int)s, err.text);
        n_failed += s != RQ_OK;
        rq_model_free(model);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(n_failed > total / 2);
}
