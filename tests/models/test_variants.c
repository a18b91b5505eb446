/* Different files of the same model: fused and separate tensors, a tied head, tensors at odd addresses, scales,
 * layers of different shapes. They give the same logits, bit for bit where only the layout differs. And loading
 * when memory runs out. */
#include "backends/base/mem.h"
#include "engine/models/model.h"
#include "tests/models/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 21 };

typedef struct logits {
    float rows[N_TOKENS][SM_VOCAB];
    size_t n;
} logits;

static void keep(void *user, size_t position, const float *row)
{
    logits *l = user;
    assert_true(position < N_TOKENS);
    memcpy(l->rows[position], row, sizeof l->rows[position]);
    l->n++;
}

/* Logits after every token: 16 tokens in pieces of `chunk`, then the rest one by one. Frees `m`. */
static void run_in(small_model *m, uint32_t chunk, logits *out)
{
    memset(out, 0, sizeof *out);
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_session *session = NULL;
    rq_error err = {0};
    if (rq_model_load(sm_write(m), &model, &err)) fail_msg("%s", err.text);
    const rq_engine_params params = {
        .n_ctx = 64, .n_batch = 16, .n_threads = 1, .type_k = "f32", .type_v = "f32"};
    if (rq_engine_create(model, &params, &engine, &err)) fail_msg("%s", err.text);
    if (rq_session_create(engine, &session, &err)) fail_msg("%s", err.text);
    rq_token ids[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++) ids[i] = (rq_token)(i * 97 % SM_VOCAB);
    if (rq_evaluate(session, ids, 16, chunk, RQ_LOGITS_ALL, keep, out, &err) ||
        rq_evaluate(session, ids + 16, N_TOKENS - 16, 1, RQ_LOGITS_ALL, keep, out, &err))
        fail_msg("%s", err.text);
    assert_int_equal(out->n, N_TOKENS);
    rq_session_free(session);
    rq_engine_free(engine);
    rq_model_free(model);
    sm_free(m);
}

static void run(small_model *m, logits *out)
{
    run_in(m, 16, out);
}

static logits expected, got; /* large: not on the stack */

static void same_bits(const char *what)
{
    for (size_t i = 0; i < N_TOKENS; i++)
        if (memcmp(expected.rows[i], got.rows[i], sizeof got.rows[i]))
            fail_msg("%s: the logits of token %zu differ", what, i);
}

static void different(const char *what)
{
    if (!memcmp(expected.rows, got.rows, sizeof got.rows)) fail_msg("%s: nothing changed", what);
}

static void test_fused_attention(void **state)
{
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        small_model m;
        sm_init(&m, archs[a], false);
        run(&m, &expected);
        sm_init(&m, archs[a], false);
        for (uint32_t i = 0; i < SM_LAYERS; i++) {
            for (int bias = 0; bias < (a == 1 ? 2 : 1); bias++) {
                char names[4][64];
                for (int k = 0; k < 4; k++)
                    snprintf(names[k], sizeof names[k], "blk.%u.attn_%s.%s", i,
                             k == 3 ? "qkv" : (const char *[]){"q", "k", "v"}[k], bias ? "bias" : "weight");
                sm_fuse(&m, names[3], (const char *[]){names[0], names[1], names[2]}, 3);
            }
        }
        run(&m, &got);
        same_bits(archs[a]);
    }
}

static void test_fused_experts(void **state)
{
    small_model m;
    sm_init(&m, "qwen3moe", true);
    run(&m, &expected);
    sm_init(&m, "qwen3moe", true);
    for (uint32_t i = 0; i < SM_LAYERS; i++) {
        char gate[64], up[64], both[64];
        snprintf(gate, sizeof gate, "blk.%u.ffn_gate_exps.weight", i);
        snprintf(up, sizeof up, "blk.%u.ffn_up_exps.weight", i);
        snprintf(both, sizeof both, "blk.%u.ffn_gate_up_exps.weight", i);
        sm_fuse(&m, both, (const char *[]){gate, up}, 2);
    }
    run(&m, &got);
    same_bits("gate and up in one tensor");
    /* the order is gate, then up */
    sm_init(&m, "qwen3moe", true);
    sm_fuse(&m, "blk.0.ffn_gate_up_exps.weight",
            (const char *[]){"blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight"}, 2);
    run(&m, &got);
    different("up and gate swapped");
}

static void test_tied_head(void **state)
{
    small_model m;
    sm_init(&m, "llama", false);
    sm_tensor *head = sm_find(&m, "output.weight"), *rows = sm_find(&m, "token_embd.weight");
    memcpy(head->data, rows->data, (size_t)SM_EMBD * SM_VOCAB * sizeof(float));
    run(&m, &expected);
    sm_init(&m, "llama", false);
    sm_no_tensor(&m, "output.weight");
    run(&m, &got);
    same_bits("tied head");
    sm_init(&m, "llama", false);
    run(&m, &got);
    different("another head");
}

/* Tensor data may begin at any byte: with general.alignment 1 and a metadata string of a length that shifts it,
 * every weight is read from an odd address. Vectors of F32 are refused there, because kernels read them in place. */
static void test_odd_addresses(void **state)
{
    static const char *const names[] = {"", "a", "bc", "def"};
    uint32_t n_loaded = 0, n_refused = 0;
    for (rq_type type = RQ_TYPE_F32; type <= RQ_TYPE_F16; type++) {
        small_model m;
        sm_init(&m, "llama", false);
        for (uint32_t i = 0; i < m.n_tensors; i++)
            if (m.tensors[i].n_dims == 2) m.tensors[i].type = type;
        run(&m, &expected);
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            sm_init(&m, "llama", false);
            for (uint32_t i = 0; i < m.n_tensors; i++)
                if (m.tensors[i].n_dims == 2) m.tensors[i].type = type;
            m.alignment = 1;
            sm_str(&m, "general.name", names[k]);
            rq_model *model = NULL;
            rq_error err = {0};
            if (rq_model_load(sm_write(&m), &model, &err)) {
                assert_non_null(strstr(err.text, "not aligned"));
                n_refused++;
                sm_free(&m);
                continue;
            }
            n_loaded++;
            rq_model_free(model);
            run(&m, &got);
            same_bits("odd addresses");
        }
    }
    assert_true(n_loaded > 0);
    assert_true(n_refused > 0);
}

/* "X.scale" multiplies what X.weight gives: a scale of 2 with halved weights changes nothing (powers of two are
 * exact). */
static void test_scales(void **state)
{
    static const struct {
        const char *arch, *name;
    } cases[] = {{"llama", "blk.0.attn_q"},           {"qwen2", "blk.1.attn_k"},
                 {"llama", "blk.1.ffn_down"},         {"qwen3moe", "blk.0.ffn_up_exps"},
                 {"qwen3moe", "blk.1.ffn_down_exps"}, {"llama", "output"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool experts = !strcmp(cases[i].arch, "qwen3moe");
        char weight[64], scale[64];
        snprintf(weight, sizeof weight, "%s.weight", cases[i].name);
        snprintf(scale, sizeof scale, "%s.scale", cases[i].name);
        small_model m;
        sm_init(&m, cases[i].arch, experts);
        run(&m, &expected);
        sm_init(&m, cases[i].arch, experts);
        sm_tensor *t = sm_find(&m, weight);
        for (uint64_t k = 0; k < t->ne[0] * t->ne[1] * t->ne[2]; k++) t->data[k] *= 0.5f;
        sm_tensor *s = sm_add(&m, scale, 1, (const uint64_t[]){strstr(weight, "exps") ? SM_EXPERTS : 1});
        for (uint64_t k = 0; k < s->ne[0]; k++) s->data[k] = 2.0f;
        run(&m, &got);
        same_bits(scale);
    }
}

/* Layers with different numbers of heads, in two cache groups. Grouped heads mean that the key/value head j
 * serves the query heads j*n .. j*n + n - 1: with every key and value head written out as often as it is used, the
 * same bits come out of a layer without grouping. */
static void test_layers_of_different_shapes(void **state)
{
    small_model m;
    sm_init(&m, "llama", false);
    run(&m, &expected);
    sm_init(&m, "llama", false);
    sm_list(&m, ".attention.head_count_kv", (const uint32_t[]){SM_HEADS, SM_HEADS_KV}, 2);
    for (int k = 0; k < 2; k++) {
        const char *name = k ? "blk.0.attn_v.weight" : "blk.0.attn_k.weight";
        sm_tensor *t = sm_find(&m, name);
        size_t head = SM_EMBD * SM_HEAD, each = SM_HEADS / SM_HEADS_KV;
        float *old = malloc(SM_HEADS_KV * head * sizeof *old);
        assert_non_null(old);
        memcpy(old, t->data, SM_HEADS_KV * head * sizeof *old);
        sm_reshape(&m, name, 2, (const uint64_t[]){SM_EMBD, SM_HEADS * SM_HEAD});
        for (size_t h = 0; h < SM_HEADS; h++)
            memcpy(t->data + h * head, old + h / each * head, head * sizeof *old);
        free(old);
    }
    run(&m, &got);
    for (size_t i = 0; i < N_TOKENS; i++)
        for (size_t k = 0; k < SM_VOCAB; k++) {
            /* kernels may take the heads of a group together, in another order of summation: f32 rounding */
            float d = got.rows[i][k] - expected.rows[i][k];
            if (!(d < 1e-4f && d > -1e-4f))
                fail_msg("token %zu: %g and %g", i, got.rows[i][k], expected.rows[i][k]);
        }
}

/* ---- shapes at the edges of what is accepted --------------------------------------------------------------- */

typedef struct shape {
    const char *arch;
    uint32_t embd, heads, heads_kv, dim_k, dim_v, n_rot, ff, experts, used;
} shape;

static void reshape(small_model *m, uint32_t layer, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
    sm_reshape(m, full, c ? 3 : b ? 2 : 1, (const uint64_t[]){a, b, c});
}

static void describe(small_model *m, const shape *s)
{
    sm_init_layers(m, s->arch, s->experts > 0, 1);
    sm_u32(m, ".embedding_length", s->embd);
    sm_u32(m, ".attention.head_count", s->heads);
    sm_u32(m, ".attention.head_count_kv", s->heads_kv);
    sm_u32(m, ".attention.key_length", s->dim_k);
    sm_u32(m, ".attention.value_length", s->dim_v);
    sm_u32(m, ".rope.dimension_count", s->n_rot);
    sm_u32(m, ".feed_forward_length", s->ff);
    sm_reshape(m, "token_embd.weight", 2, (const uint64_t[]){s->embd, SM_VOCAB});
    sm_reshape(m, "output.weight", 2, (const uint64_t[]){s->embd, SM_VOCAB});
    sm_reshape(m, "output_norm.weight", 1, (const uint64_t[]){s->embd});
    reshape(m, 0, "attn_norm", s->embd, 0, 0);
    reshape(m, 0, "ffn_norm", s->embd, 0, 0);
    reshape(m, 0, "attn_q", s->embd, s->heads * s->dim_k, 0);
    reshape(m, 0, "attn_k", s->embd, s->heads_kv * s->dim_k, 0);
    reshape(m, 0, "attn_v", s->embd, s->heads_kv * s->dim_v, 0);
    reshape(m, 0, "attn_output", s->heads * s->dim_v, s->embd, 0);
    if (!strcmp(s->arch, "qwen2")) { /* biases are optional */
        sm_no_tensor(m, "blk.0.attn_q.bias");
        sm_no_tensor(m, "blk.0.attn_k.bias");
        sm_no_tensor(m, "blk.0.attn_v.bias");
    }
    if (!strncmp(s->arch, "qwen3", 5)) {
        reshape(m, 0, "attn_q_norm", s->dim_k, 0, 0);
        reshape(m, 0, "attn_k_norm", s->dim_k, 0, 0);
    }
    if (!s->experts) {
        reshape(m, 0, "ffn_gate", s->embd, s->ff, 0);
        reshape(m, 0, "ffn_up", s->embd, s->ff, 0);
        reshape(m, 0, "ffn_down", s->ff, s->embd, 0);
        return;
    }
    sm_u32(m, ".expert_count", s->experts);
    sm_u32(m, ".expert_used_count", s->used);
    sm_u32(m, ".expert_feed_forward_length", s->ff);
    reshape(m, 0, "ffn_gate_inp", s->embd, s->experts, 0);
    reshape(m, 0, "ffn_gate_exps", s->embd, s->ff, s->experts);
    reshape(m, 0, "ffn_up_exps", s->embd, s->ff, s->experts);
    reshape(m, 0, "ffn_down_exps", s->ff, s->embd, s->experts);
}

/* Whatever the loader accepts runs, and a batch says what single tokens say. */
static void test_edge_shapes(void **state)
{
    static const shape shapes[] = {
        {"llama", 8, 1, 1, 8, 8, 8, 1, 0, 0},         /* the least */
        {"qwen2", 9, 3, 1, 8, 8, 2, 7, 0, 0},         /* odd lengths of rows, a single rotated pair */
        {"llama", 40, 5, 5, 24, 40, 24, 33, 0, 0},    /* keys and values of different sizes */
        {"qwen3", 24, 2, 1, 1024, 8, 1022, 16, 0, 0}, /* the largest heads */
        {"qwen2", 16, 1, 1, 8, 1024, 8, 16, 0, 0},
        {"llama", 8, 256, 2, 8, 8, 8, 16, 0, 0},     /* many heads for one key */
        {"qwen3moe", 8, 1, 1, 8, 8, 8, 3, 1024, 64}, /* the most experts */
        {"qwen3moe", 17, 1, 1, 8, 8, 8, 5, 1, 1},    /* one expert */
        {"llama", 16, 2, 1, 8, 8, 8, 9, 64, 64},     /* all of them */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        small_model m;
        describe(&m, &shapes[i]);
        run_in(&m, 16, &expected);
        describe(&m, &shapes[i]);
        run_in(&m, 1, &got);
        for (size_t t = 0; t < N_TOKENS; t++)
            for (size_t k = 0; k < SM_VOCAB; k++) {
                /* sums of up to a few thousand f32 terms of size 1, in another order */
                float d = got.rows[t][k] - expected.rows[t][k];
                if (!(d < 1e-3f && d > -1e-3f))
                    fail_msg("shape %zu, token %zu: %g and %g", i, t, got.rows[t][k], expected.rows[t][k]);
            }
    }
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

/* The ids of a text with every byte of ASCII, the merged token and the control token in it. */
static void ids_of(const rq_model *model, rq_tokens *out)
{
    char text[160];
    size_t n = 0;
    for (int c = 1; c < 127; c++) text[n++] = (char)c;
    n += (size_t)snprintf(text + n, sizeof text - n, " ab abab <|257|>");
    assert_int_equal(rq_tokenize(model, text, n, RQ_PARSE_SPECIAL, out, NULL), RQ_OK);
}

/* Without the n-th allocation a load fails with a sentence and leaks nothing, or does without it: the compiler of
 * patterns may (PCRE2 interprets them then), and the model must be none the worse. */
static void test_memory_runs_out(void **state)
{
    small_model m;
    sm_init(&m, "qwen3moe", true);
    sm_fuse(&m, "blk.0.attn_qkv.weight",
            (const char *[]){"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}, 3);
    sm_str(&m, "tokenizer.chat_template", "{{ '<|im_start|>' }}");
    const char *path = sm_write(&m);
    sm_free(&m);
    rq_model *model = NULL;
    rq_tokens want = {0}, ids = {0};
    rq_mem_fail_at(0);
    assert_int_equal(rq_model_load(path, &model, NULL), RQ_OK);
    uint64_t total = rq_mem_count(), n_failed = 0;
    ids_of(model, &want);
    rq_model_free(model);
    int64_t alive = rq_mem_alive();
    for (uint64_t n = 1; n <= total; n++) {
        rq_error err = {0};
        model = NULL;
        rq_mem_fail_at(n);
        rq_status s = rq_model_load(path, &model, &err);
        rq_mem_fail_at(0);
        if (s == RQ_OK) {
            ids_of(model, &ids);
            if (ids.n != want.n || memcmp(ids.ids, want.ids, ids.n * sizeof *ids.ids))
                fail_msg("without allocation %lu text becomes other tokens", (unsigned long)n);
            rq_tokens_free(&ids);
            rq_model_free(model);
        } else {
            if (s != RQ_ERR_MEMORY || model || !err.text[0])
                fail_msg("allocation %lu: status %d, \"%s\"", (unsigned long)n, (int)s, err.text);
            n_failed++;
        }
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(n_failed > total / 2);
    rq_tokens_free(&want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fused_attention), cmocka_unit_test(test_fused_experts),
        cmocka_unit_test(test_tied_head),       cmocka_unit_test(test_odd_addresses),
        cmocka_unit_test(test_scales),          cmocka_unit_test(test_layers_of_different_shapes),
        cmocka_unit_test(test_edge_shapes),     cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
