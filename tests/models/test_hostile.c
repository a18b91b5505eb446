/* Files that are well-formed GGUF and nonsense as models: each is refused with a sentence that names the field or
 * tensor, leaves *out alone and leaks nothing. */
#include "backends/base/mem.h"
#include "engine/models/model.h"
#include "tests/models/small_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Loads what `m` describes; it must be refused with all of `words` in the sentence. Frees `m`. */
static void refused(small_model *m, const char *what, const char *const *words)
{
    const char *path = sm_write(m);
    int64_t before = rq_mem_alive();
    rq_model *model = (rq_model *)m;
    rq_error err = {0};
    rq_status s = rq_model_load(path, &model, &err);
    if (s == RQ_OK) fail_msg("%s: loaded", what);
    assert_ptr_equal(model, m);
    if (s != RQ_ERR_FORMAT && s != RQ_ERR_UNSUPPORTED) fail_msg("%s: status %d, %s", what, (int)s, err.text);
    for (; *words; words++)
        if (!strstr(err.text, *words)) fail_msg("%s: \"%s\" does not say \"%s\"", what, err.text, *words);
    assert_int_equal(rq_mem_alive(), before);
    sm_free(m);
}

static void test_the_base_models_load(void **state)
{
    static const struct {
        const char *arch;
        bool experts;
    } all[] = {{"llama", false}, {"llama", true}, {"qwen2", false}, {"qwen3", false}, {"qwen3moe", true}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        small_model m;
        sm_init(&m, all[i].arch, all[i].experts);
        rq_model *model = NULL;
        rq_error err = {0};
        if (rq_model_load(sm_write(&m), &model, &err) != RQ_OK) fail_msg("%s: %s", all[i].arch, err.text);
        rq_model_info info;
        rq_model_describe(model, &info);
        assert_string_equal(info.architecture, all[i].arch);
        assert_int_equal(info.n_layers, SM_LAYERS);
        assert_int_equal(info.n_vocab, SM_VOCAB);
        assert_int_equal(info.n_expert, all[i].experts ? SM_EXPERTS : 0);
        rq_model_free(model);
        sm_free(&m);
    }
}

/* ---- integers of the metadata ---------------------------------------------------------------------------- */

static void test_integers(void **state)
{
    static const struct {
        const char *arch, *key;
        uint32_t value;
    } cases[] = {
        {"llama", ".block_count", 0},
        {"llama", ".block_count", 513},
        {"llama", ".block_count", UINT32_MAX},
        {"llama", ".context_length", 0},
        {"llama", ".context_length", UINT32_MAX},
        {"llama", ".embedding_length", 0},
        {"llama", ".embedding_length", (1 << 20) + 1},
        {"llama", ".embedding_length", UINT32_MAX},
        {"llama", ".feed_forward_length", 0},
        {"llama", ".feed_forward_length", UINT32_MAX},
        {"llama", ".attention.head_count", 0},
        {"llama", ".attention.head_count", 4097},
        {"llama", ".attention.head_count_kv", 0},
        {"llama", ".attention.head_count_kv", UINT32_MAX},
        {"llama", ".attention.key_length", 0},
        {"llama", ".attention.key_length", 1032},
        {"llama", ".attention.value_length", 0},
        {"llama", ".attention.value_length", UINT32_MAX},
        {"llama", ".rope.dimension_count", 0},
        {"llama", ".rope.dimension_count", 2048},
        {"llama", ".rope.scaling.original_context_length", 0},
        {"qwen3moe", ".expert_count", 1025},
        {"qwen3moe", ".expert_used_count", 65},
        {"qwen3moe", ".expert_feed_forward_length", 0},
        {"qwen3moe", ".expert_feed_forward_length", UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_model m;
        sm_init(&m, cases[i].arch, !strcmp(cases[i].arch, "qwen3moe"));
        sm_u32(&m, cases[i].key, cases[i].value);
        refused(&m, cases[i].key, (const char *[]){cases[i].key, NULL});
    }
}

static void test_missing_keys(void **state)
{
    static const char *const keys[] = {"general.architecture",
                                       ".block_count",
                                       ".context_length",
                                       ".embedding_length",
                                       ".feed_forward_length",
                                       ".attention.head_count",
                                       ".attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        small_model m;
        sm_init(&m, "llama", false);
        sm_no_key(&m, keys[i]);
        refused(&m, keys[i], (const char *[]){keys[i], NULL});
    }
}

static void test_wrong_types(void **state)
{
    static const char *const keys[] = {".block_count", ".attention.head_count", ".rope.freq_base",
                                       ".rope.dimension_count", ".attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        small_model m;
        sm_init(&m, "llama", false);
        sm_str(&m, keys[i], "4");
        refused(&m, keys[i], (const char *[]){keys[i], NULL});
    }
    small_model m;
    sm_init(&m, "llama", false);
    sm_u32(&m, ".rope.scaling.type", 2);
    refused(&m, "rope.scaling.type", (const char *[]){".rope.scaling.type", NULL});
}

static void test_reals(void **state)
{
    static const struct {
        const char *key;
        float value;
        const char *word;
    } cases[] = {
        {".attention.layer_norm_rms_epsilon", -1, ".attention.layer_norm_rms_epsilon"},
        {".attention.layer_norm_rms_epsilon", 1, ".attention.layer_norm_rms_epsilon"},
        {".attention.layer_norm_rms_epsilon", NAN, ".attention.layer_norm_rms_epsilon"},
        {".rope.freq_base", 0, ".rope.freq_base"},
        {".rope.freq_base", 1, ".rope.freq_base"},
        {".rope.freq_base", -10000, ".rope.freq_base"},
        {".rope.freq_base", INFINITY, ".rope.freq_base"},
        {".rope.scaling.factor", -1, ".rope.scaling.factor"},
        {".rope.scaling.factor", 1e-30f, ".rope.scaling.factor"},
        {".rope.scaling.factor", NAN, ".rope.scaling.factor"},
        {".rope.scaling.attn_factor", 0, ".rope.scaling.attn_factor"},
        {".rope.scaling.attn_factor", 1e30f, ".rope.scaling.attn_factor"},
        {".rope.scaling.yarn_ext_factor", -1, ".rope.scaling.yarn_ext_factor"},
        {".rope.scaling.yarn_ext_factor", 2, ".rope.scaling.yarn_ext_factor"},
        {".rope.scaling.yarn_beta_fast", 0, ".rope.scaling.yarn_beta_fast"},
        {".rope.scaling.yarn_beta_slow", -3, ".rope.scaling.yarn_beta_slow"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_model m;
        sm_init(&m, "llama", false);
        sm_f32(&m, cases[i].key, cases[i].value);
        refused(&m, cases[i].key, (const char *[]){cases[i].word, NULL});
    }
}

static void test_combinations(void **state)
{
    small_model m;
    sm_init(&m, "mamba", false);
    refused(&m, "architecture", (const char *[]){"architecture", "\"mamba\"", "llama", NULL});

    sm_init(&m, "llama", false);
    sm_u32(&m, ".attention.head_count_kv", 3);
    refused(&m, "4 heads over 3", (const char *[]){"layer 0", "4 query heads", "3 key/value heads", NULL});

    sm_init(&m, "llama", false); /* one entry per layer, or a scalar */
    sm_list(&m, ".attention.head_count_kv", (const uint32_t[]){2, 2, 2}, 3);
    refused(&m, "too many entries", (const char *[]){".attention.head_count_kv", "3", NULL});

    sm_init(&m, "llama", false);
    sm_list(&m, ".attention.head_count", (const uint32_t[]){4, 0}, 2);
    refused(&m, "no heads in layer 1", (const char *[]){".attention.head_count", NULL});

    sm_init(&m, "llama", false);
    sm_u32(&m, ".attention.key_length", 12);
    refused(&m, "key heads of 12", (const char *[]){"head size", "12", "multiples of 8", NULL});

    sm_init(&m, "llama", false); /* head size from 32 / 4096: zero */
    sm_no_key(&m, ".attention.key_length");
    sm_no_key(&m, ".attention.value_length");
    sm_u32(&m, ".attention.head_count", 4096);
    refused(&m, "more heads than numbers", (const char *[]){"head size", NULL});

    sm_init(&m, "qwen3", false);
    sm_u32(&m, ".rope.dimension_count", 7);
    refused(&m, "odd rotation", (const char *[]){".rope.dimension_count is 7", NULL});

    sm_init(&m, "qwen3", false);
    sm_u32(&m, ".rope.dimension_count", 18);
    refused(&m, "rotation past the head", (const char *[]){".rope.dimension_count is 18", "16", NULL});

    sm_init(&m, "llama", false);
    sm_u32(&m, ".rope.dimension_count", 8);
    refused(&m, "partial rotation", (const char *[]){".rope.dimension_count is 8", "16", NULL});

    sm_init(&m, "llama", false);
    sm_str(&m, ".rope.scaling.type", "longrope");
    refused(&m, "unknown scaling", (const char *[]){"\"longrope\"", "yarn", NULL});

    sm_init(&m, "qwen2", false);
    sm_u32(&m, ".expert_count", 4);
    refused(&m, "experts in qwen2", (const char *[]){".expert_count is 4", "qwen2", NULL});

    sm_init(&m, "qwen3moe", true);
    sm_u32(&m, ".expert_count", 0);
    refused(&m, "no experts", (const char *[]){".expert_count", NULL});

    sm_init(&m, "qwen3moe", true);
    sm_u32(&m, ".expert_used_count", 0);
    refused(&m, "none used", (const char *[]){".expert_used_count is 0", NULL});

    sm_init(&m, "qwen3moe", true);
    sm_u32(&m, ".expert_used_count", 5);
    refused(&m, "5 of 4 used", (const char *[]){".expert_used_count is 5 of 4", NULL});

    sm_init(&m, "qwen3moe", true);
    sm_no_key(&m, ".expert_feed_forward_length");
    sm_no_key(&m, ".feed_forward_length");
    refused(&m, "no size", (const char *[]){".expert_feed_forward_length", NULL});
}

/* ---- tensors --------------------------------------------------------------------------------------------- */

static void test_missing_tensors(void **state)
{
    static const struct {
        const char *arch, *name;
    } cases[] = {
        {"llama", "token_embd.weight"},
        {"llama", "output_norm.weight"},
        {"llama", "blk.0.attn_norm.weight"},
        {"llama", "blk.1.attn_q.weight"},
        {"llama", "blk.1.attn_k.weight"},
        {"llama", "blk.1.attn_v.weight"},
        {"llama", "blk.0.attn_output.weight"},
        {"llama", "blk.1.ffn_norm.weight"},
        {"llama", "blk.1.ffn_gate.weight"},
        {"llama", "blk.1.ffn_up.weight"},
        {"llama", "blk.1.ffn_down.weight"},
        {"qwen3", "blk.1.attn_q_norm.weight"},
        {"qwen3", "blk.1.attn_k_norm.weight"},
        {"qwen3moe", "blk.1.ffn_gate_inp.weight"},
        {"qwen3moe", "blk.0.ffn_gate_exps.weight"},
        {"qwen3moe", "blk.1.ffn_up_exps.weight"},
        {"qwen3moe", "blk.1.ffn_down_exps.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_model m;
        sm_init(&m, cases[i].arch, !strcmp(cases[i].arch, "qwen3moe"));
        sm_no_tensor(&m, cases[i].name);
        refused(&m, cases[i].name, (const char *[]){cases[i].name, "missing", NULL});
    }
}

static void test_shapes(void **state)
{
    static const struct {
        const char *arch, *name;
        uint32_t n_dims;
        uint64_t ne[4];
    } cases[] = {
        {"llama", "token_embd.weight", 2, {SM_EMBD, SM_VOCAB - 1}},
        {"llama", "token_embd.weight", 2, {SM_EMBD, 0}},
        {"llama", "token_embd.weight", 2, {SM_VOCAB, SM_EMBD}},
        {"llama", "token_embd.weight", 1, {SM_EMBD}},
        {"llama", "output.weight", 2, {SM_EMBD, SM_VOCAB + 1}},
        {"llama", "output_norm.weight", 1, {SM_EMBD - 1}},
        {"llama", "output_norm.weight", 1, {0}},
        {"llama", "blk.1.attn_norm.weight", 2, {SM_EMBD, 2}},
        {"llama", "blk.1.attn_q.weight", 2, {SM_EMBD, SM_HEADS * SM_HEAD - 8}},
        {"llama", "blk.1.attn_k.weight", 2, {SM_EMBD, SM_HEADS * SM_HEAD}},
        {"llama", "blk.1.attn_v.weight", 3, {SM_EMBD, SM_HEADS_KV * SM_HEAD, 2}},
        {"llama", "blk.1.attn_v.weight", 4, {SM_EMBD, SM_HEADS_KV * SM_HEAD, 1, 2}},
        {"llama", "blk.1.attn_output.weight", 2, {SM_EMBD, SM_HEADS * SM_HEAD}},
        {"llama", "blk.1.ffn_down.weight", 2, {SM_EMBD, SM_FF}},
        {"qwen2", "blk.1.attn_k.bias", 1, {SM_HEADS_KV * SM_HEAD - 1}},
        {"qwen3", "blk.1.attn_q_norm.weight", 1, {SM_HEADS * SM_HEAD}},
        {"qwen3moe", "blk.1.ffn_gate_inp.weight", 2, {SM_EMBD, SM_EXPERTS - 1}},
        {"qwen3moe", "blk.1.ffn_up_exps.weight", 3, {SM_EMBD, SM_FF_EXPERT, SM_EXPERTS - 1}},
        {"qwen3moe", "blk.1.ffn_down_exps.weight", 2, {SM_FF_EXPERT, SM_EMBD}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_model m;
        sm_init(&m, cases[i].arch, !strcmp(cases[i].arch, "qwen3moe"));
        sm_reshape(&m, cases[i].name, cases[i].n_dims, cases[i].ne);
        refused(&m, cases[i].name, (const char *[]){cases[i].name, "shape", NULL});
    }
    small_model m; /* a fused tensor of another size */
    sm_init(&m, "llama", false);
    sm_fuse(&m, "blk.1.attn_qkv.weight", (const char *[]){"blk.1.attn_q.weight", "blk.1.attn_k.weight"}, 2);
    refused(&m, "q and k without v", (const char *[]){"blk.1.attn_qkv.weight", "shape", NULL});
}

/* Vocabularies: the embedding must have one row per token. */
static void test_vocabulary(void **state)
{
    small_model m;
    sm_init(&m, "llama", false);
    m.n_vocab = 0;
    refused(&m, "no tokens", (const char *[]){"tokenizer.ggml.tokens", NULL});
    sm_init(&m, "llama", false);
    m.n_vocab = SM_VOCAB + 3;
    refused(&m, "more tokens than rows", (const char *[]){"token_embd.weight", "shape", NULL});
}

static void test_types(void **state)
{
    small_model m;
    sm_init(&m, "llama", false);
    sm_find(&m, "blk.0.attn_norm.weight")->type = RQ_TYPE_F16;
    refused(&m, "norm in f16", (const char *[]){"blk.0.attn_norm.weight", "F16", NULL});
}

static void test_frequency_factors(void **state)
{
    static const float bad[] = {0, -1, NAN, INFINITY, 1e-40f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        small_model m;
        sm_init(&m, "llama", false);
        sm_add(&m, "rope_freqs.weight", 1, (const uint64_t[]){SM_HEAD / 2})->data[3] = bad[i];
        refused(&m, "rope_freqs value", (const char *[]){"rope_freqs.weight", "index 3", NULL});
    }
    static const uint64_t sizes[] = {0, SM_HEAD / 2 - 1, SM_HEAD / 2 + 1, SM_HEAD};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        small_model m;
        sm_init(&m, "llama", false);
        sm_add(&m, "rope_freqs.weight", 1, &sizes[i]);
        refused(&m, "rope_freqs size", (const char *[]){"rope_freqs.weight", "shape", NULL});
    }
}

static void test_scales(void **state)
{
    small_model m;
    sm_init(&m, "llama", false);
    sm_add(&m, "blk.0.attn_q.scale", 1, (const uint64_t[]){1})->data[0] = INFINITY;
    refused(&m, "infinite scale", (const char *[]){"blk.0.attn_q.scale", "finite", NULL});
    sm_init(&m, "llama", false);
    sm_add(&m, "blk.0.attn_q.scale", 1, (const uint64_t[]){0});
    refused(&m, "empty scale", (const char *[]){"blk.0.attn_q.scale", NULL});
    sm_init(&m, "llama", false);
    sm_add(&m, "blk.0.attn_q.scale", 1, (const uint64_t[]){1})->type = RQ_TYPE_F16;
    refused(&m, "scale in f16", (const char *[]){"blk.0.attn_q.scale", "F32", NULL});
}

/* More layers of different key/value shapes than there are cache groups. */
static void test_too_many_groups(void **state)
{
    enum { N = RQ_MAX_GROUPS + 1 };
    small_model m;
    sm_init_layers(&m, "llama", false, N);
    uint32_t heads[N];
    for (uint32_t i = 0; i < N; i++) {
        char name[64];
        heads[i] = i + 1;
        const uint64_t rows = heads[i] * SM_HEAD;
        for (const char *c = "qkv"; *c; c++) {
            snprintf(name, sizeof name, "blk.%u.attn_%c.weight", i, *c);
            sm_reshape(&m, name, 2, (const uint64_t[]){SM_EMBD, rows});
        }
        snprintf(name, sizeof name, "blk.%u.attn_output.weight", i);
        sm_reshape(&m, name, 2, (const uint64_t[]){rows, SM_EMBD});
    }
    sm_list(&m, ".attention.head_count", heads, N);
    sm_list(&m, ".attention.head_count_kv", heads, N);
    refused(&m, "nine shapes", (const char *[]){"more than 8", "shapes", NULL});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_base_models_load),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_missing_keys),
        cmocka_unit_test(test_wrong_types),
        cmocka_unit_test(test_reals),
        cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_missing_tensors),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_frequency_factors),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_too_many_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
