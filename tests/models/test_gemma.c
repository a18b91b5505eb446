/* Files of the Gemma families: what is missing, of another shape or too much is refused by its name; layers that see a
 * window, layers that attend to the keys and values of another, experts beside a dense block and embeddings per layer
 * give the same logits however a sequence is cut and whatever its cache is made of; running out of memory leaks
 * nothing. */
#include "backends/base/mem.h"
#include "engine/models/model.h"
#include "tests/models/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 21, WINDOW = 5, PLE = 8, WINDOW_HEAD = 8 };

typedef enum kind { GEMMA3, DENSE4, MIXTURE, PER_LAYER } kind;
static const kind KINDS[] = {GEMMA3, DENSE4, MIXTURE, PER_LAYER};
enum { N_KINDS = sizeof KINDS / sizeof *KINDS };

static const char *layer_name(uint32_t layer, const char *name)
{
    static char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    return full;
}

static void add(small_model *m, uint32_t layer, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    sm_add(m, layer_name(layer, name), c ? 3 : b ? 2 : 1, (const uint64_t[]){a, b, c});
}

static void shape(small_model *m, uint32_t layer, const char *name, uint64_t a, uint64_t b)
{
    sm_reshape(m, layer_name(layer, name), b ? 2 : 1, (const uint64_t[]){a, b});
}

/* Layers 0 and 2 see a window, layers 1 and 3 everything; 2 and 3 are there where embeddings per layer are, and attend
 * to the keys and values of 0 and 1. */
static bool sees_window(uint32_t i)
{
    return i % 2 == 0;
}

static void gemma4_layer(small_model *m, kind k, uint32_t i)
{
    bool window = sees_window(i);
    uint64_t d = window ? WINDOW_HEAD : SM_HEAD;
    add(m, i, "layer_output_scale.weight", 1, 0, 0);
    shape(m, i, "attn_q.weight", SM_EMBD, SM_HEADS * d);
    shape(m, i, "attn_output.weight", SM_HEADS * d, SM_EMBD);
    shape(m, i, "attn_q_norm.weight", d, 0);
    uint64_t kv = window ? SM_HEADS_KV : 1;
    if (i < 2) {
        shape(m, i, "attn_k.weight", SM_EMBD, kv * d);
        shape(m, i, "attn_k_norm.weight", d, 0);
        if (window)
            shape(m, i, "attn_v.weight", SM_EMBD, kv * d);
        else
            sm_no_tensor(m, layer_name(i, "attn_v.weight"));
    } else {
        sm_no_tensor(m, layer_name(i, "attn_k.weight"));
        sm_no_tensor(m, layer_name(i, "attn_v.weight"));
        sm_no_tensor(m, layer_name(i, "attn_k_norm.weight"));
    }
    if (k == MIXTURE) {
        add(m, i, "ffn_gate.weight", SM_EMBD, SM_FF, 0);
        add(m, i, "ffn_up.weight", SM_EMBD, SM_FF, 0);
        add(m, i, "ffn_down.weight", SM_FF, SM_EMBD, 0);
        add(m, i, "ffn_gate_inp.scale", SM_EMBD, 0, 0);
        add(m, i, "ffn_down_exps.scale", SM_EXPERTS, 0, 0);
        add(m, i, "pre_ffw_norm_2.weight", SM_EMBD, 0, 0);
        add(m, i, "post_ffw_norm_1.weight", SM_EMBD, 0, 0);
        add(m, i, "post_ffw_norm_2.weight", SM_EMBD, 0, 0);
    }
    if (k == PER_LAYER) {
        add(m, i, "inp_gate.weight", SM_EMBD, PLE, 0);
        add(m, i, "proj.weight", PLE, SM_EMBD, 0);
        add(m, i, "post_norm.weight", SM_EMBD, 0, 0);
    }
}

static void gemma(small_model *m, kind k)
{
    uint32_t n = k == PER_LAYER ? 4 : 2;
    sm_init_layers(m, k == GEMMA3 ? "gemma3" : "gemma4", k == MIXTURE, n);
    sm_u32(m, ".attention.sliding_window", WINDOW);
    for (uint32_t i = 0; i < n; i++) {
        add(m, i, "attn_q_norm.weight", SM_HEAD, 0, 0);
        add(m, i, "attn_k_norm.weight", SM_HEAD, 0, 0);
        add(m, i, "post_attention_norm.weight", SM_EMBD, 0, 0);
        add(m, i, "post_ffw_norm.weight", SM_EMBD, 0, 0);
        if (k != GEMMA3) gemma4_layer(m, k, i);
    }
    if (k == GEMMA3) {
        sm_u32(m, ".attention.sliding_window_pattern", 2);
        return;
    }
    sm_list(m, ".attention.sliding_window_pattern", (const uint32_t[]){1, 0, 1, 0}, n);
    sm_list(m, ".attention.head_count_kv", (const uint32_t[]){SM_HEADS_KV, 1, SM_HEADS_KV, 1}, n);
    sm_u32(m, ".attention.key_length_swa", WINDOW_HEAD);
    sm_u32(m, ".attention.value_length_swa", WINDOW_HEAD);
    sm_u32(m, ".rope.dimension_count_swa", WINDOW_HEAD);
    sm_u32(m, ".embedding_length_per_layer_input", k == PER_LAYER ? PLE : 0);
    sm_add(m, "rope_freqs.weight", 1, (const uint64_t[]){SM_HEAD / 2});
    sm_find(m, "rope_freqs.weight")->data[SM_HEAD / 2 - 1] = 1e30f;
    if (k != PER_LAYER) return;
    sm_u32(m, ".attention.shared_kv_layers", 2);
    sm_add(m, "per_layer_token_embd.weight", 2, (const uint64_t[]){4 * PLE, SM_VOCAB});
    sm_add(m, "per_layer_model_proj.weight", 2, (const uint64_t[]){SM_EMBD, 4 * PLE});
    sm_add(m, "per_layer_proj_norm.weight", 1, (const uint64_t[]){PLE});
}

/* Writes and loads; frees `m`. */
static rq_status load(small_model *m, rq_model **model, rq_error *err)
{
    *model = NULL;
    rq_status s = rq_model_load(sm_write(m), model, err);
    sm_free(m);
    return s;
}

static void refused(small_model *m, const char *name, const char *what)
{
    rq_model *model;
    rq_error err = {0};
    rq_status s = load(m, &model, &err);
    rq_model_free(model);
    if (s == RQ_OK || !strstr(err.text, name))
        fail_msg("%s %s: status %d, \"%s\"", name, what, (int)s, err.text);
}

static void test_every_tensor_counts(void **state)
{
    static const char *const surplus[] = {"blk.0.attn_qkv.weight",  "blk.1.ssm_a",
                                          "blk.4.attn_norm.weight", "output.bias",
                                          "blk.1.attn_q.bias",      "blk.1.ffn_gate.scales",
                                          "blk.0.inp_gate.x",       "blk.0.ffn_gate_shexp.weight",
                                          "something.else"};
    for (int k = 0; k < N_KINDS; k++) {
        small_model m;
        gemma(&m, KINDS[k]);
        uint32_t n = m.n_tensors;
        sm_free(&m);
        for (uint32_t i = 0; i < n; i++) {
            gemma(&m, KINDS[k]);
            char name[64];
            snprintf(name, sizeof name, "%s", m.tensors[i].name);
            sm_no_tensor(&m, name);
            if (!strcmp(name, "output.weight"))
                sm_free(&m);
            else
                refused(&m, name, "missing");

            gemma(&m, KINDS[k]);
            sm_tensor *t = sm_find(&m, name);
            uint64_t ne[4] = {t->ne[0], t->ne[1], t->ne[2], 1};
            ne[t->n_dims - 1]++;
            sm_reshape(&m, name, t->n_dims, ne);
            refused(&m, name, "of another shape");
        }
        for (size_t i = 0; i < sizeof surplus / sizeof *surplus; i++) {
            gemma(&m, KINDS[k]);
            sm_add(&m, surplus[i], 1, (const uint64_t[]){SM_EMBD});
            refused(&m, surplus[i], "too much");
        }
    }
    small_model m;
    gemma(&m, GEMMA3);
    sm_add(&m, "rope_freqs.weight", 1, (const uint64_t[]){SM_HEAD / 2});
    refused(&m, "rope_freqs.weight", "too much");
    gemma(&m, DENSE4);
    sm_add(&m, "blk.0.inp_gate.weight", 2, (const uint64_t[]){SM_EMBD, PLE});
    refused(&m, "blk.0.inp_gate.weight", "too much");
}

/* Files hold keys and values of layers that do not use them: let in, if of the right shape. */
static void test_unused_keys(void **state)
{
    small_model m;
    rq_model *model;
    rq_error err = {0};
    gemma(&m, PER_LAYER);
    add(&m, 2, "attn_k.weight", SM_EMBD, SM_HEADS_KV * WINDOW_HEAD, 0);
    add(&m, 2, "attn_k_norm.weight", WINDOW_HEAD, 0, 0);
    if (load(&m, &model, &err)) fail_msg("%s", err.text);
    rq_model_free(model);
    gemma(&m, PER_LAYER);
    add(&m, 2, "attn_k.weight", SM_EMBD, SM_HEADS_KV * SM_HEAD, 0);
    refused(&m, "blk.2.attn_k.weight", "of another shape");
}

static void test_impossible_sizes(void **state)
{
    static const struct {
        kind k;
        const char *key;
        uint32_t value;
    } keys[] = {{GEMMA3, ".attention.sliding_window_pattern", 0},
                {DENSE4, ".attention.sliding_window", 0},
                {DENSE4, ".attention.sliding_window_pattern", 2},
                {DENSE4, ".attention.key_length_swa", 4096},
                {DENSE4, ".attention.key_length_swa", 12},
                {DENSE4, ".attention.value_length_swa", 0},
                {DENSE4, ".rope.dimension_count_swa", SM_HEAD},
                {DENSE4, ".rope.dimension_count_swa", 3},
                {PER_LAYER, ".attention.shared_kv_layers", 3},
                {PER_LAYER, ".attention.shared_kv_layers", 4},
                {PER_LAYER, ".embedding_length_per_layer_input", 0},
                {PER_LAYER, ".embedding_length_per_layer_input", 1u << 30},
                {MIXTURE, ".expert_feed_forward_length", 0}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        small_model m;
        rq_model *model;
        rq_error err = {0};
        gemma(&m, keys[i].k);
        sm_u32(&m, keys[i].key, keys[i].value);
        rq_status s = load(&m, &model, &err);
        rq_model_free(model);
        if (s == RQ_OK || !err.text[0]) fail_msg("%s %u was accepted", keys[i].key, keys[i].value);
    }
    static const struct {
        const char *key;
        float value;
    } reals[] = {{".final_logit_softcapping", -1}, {".rope.freq_base_swa", 0.5f}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        small_model m;
        rq_model *model;
        rq_error err = {0};
        gemma(&m, DENSE4);
        sm_f32(&m, reals[i].key, reals[i].value);
        rq_status s = load(&m, &model, &err);
        rq_model_free(model);
        if (s == RQ_OK || !err.text[0]) fail_msg("%s %g was accepted", reals[i].key, (double)reals[i].value);
    }
}

/* ---- logits ---------------------------------------------------------------------------------------------- */

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

static rq_token first_token;

/* Logits of tokens in pieces of `chunk`, twice in sessions of one slot. */
static void run(small_model *m, uint32_t chunk, const char *cache, logits *out)
{
    rq_model *model;
    rq_engine *engine = NULL;
    rq_error err = {0};
    if (load(m, &model, &err)) fail_msg("%s", err.text);
    const rq_engine_params params = {
        .n_ctx = 64, .n_batch = 16, .n_threads = 1, .type_k = cache, .type_v = cache};
    if (rq_engine_create(model, &params, &engine, &err)) fail_msg("%s", err.text);
    rq_token ids[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++) ids[i] = (rq_token)(i * 97 % SM_VOCAB);
    ids[0] = first_token;
    for (int turn = 0; turn < 2; turn++) {
        rq_session *session = NULL;
        memset(out, 0, sizeof *out);
        if (rq_session_create(engine, &session, &err) ||
            rq_evaluate(session, ids, N_TOKENS, chunk, RQ_LOGITS_ALL, keep, out, &err))
            fail_msg("%s", err.text);
        assert_int_equal(out->n, N_TOKENS);
        rq_session_free(session);
    }
    rq_engine_free(engine);
    rq_model_free(model);
}

static logits expected, got; /* large: not on the stack */

/* Layers with a window keep f16 beside caches that are turned or coded, and f32 beside f32. */
static void test_pieces(void **state)
{
    static const uint32_t pieces[] = {1, 2, 3, 7};
    static const char *const caches[] = {"f32", "wht3", "planar4"};
    for (int which = 0; which < N_KINDS; which++) {
        small_model m;
        gemma(&m, KINDS[which]);
        run(&m, 16, "f32", &expected);
        for (size_t c = 0; c < sizeof caches / sizeof *caches; c++)
            for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
                gemma(&m, KINDS[which]);
                run(&m, pieces[i], caches[c], &got);
                /* narrow and wide steps multiply in different orders: f32 rounding; f16 keys and values: 2^-11 of
                 * numbers of about 1 that several layers make and soften */
                float most = c == 0 ? 1e-3f : 5e-2f;
                for (size_t t = 0; t < N_TOKENS; t++)
                    for (size_t k = 0; k < SM_VOCAB; k++) {
                        float d = got.rows[t][k] - expected.rows[t][k];
                        if (!(d < most && d > -most))
                            fail_msg("kind %d, %s in pieces of %u, token %zu: %g and %g", which, caches[c],
                                     pieces[i], t, (double)got.rows[t][k], (double)expected.rows[t][k]);
                    }
            }
    }
}

/* A token that no window reaches back to, in a model where every layer has one, changes nothing. */
static void test_window_ends(void **state)
{
    small_model m;
    for (int far = 0; far < 2; far++) {
        gemma(&m, GEMMA3);
        sm_u32(&m, ".attention.sliding_window_pattern", 2);
        sm_list(&m, ".attention.sliding_window_pattern", (const uint32_t[]){1, 1}, 2);
        first_token = far ? 17 : 5;
        run(&m, 16, "f32", far ? &got : &expected);
    }
    first_token = 0;
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        bool same = memcmp(got.rows[t], expected.rows[t], sizeof got.rows[t]) == 0;
        assert_int_equal(same, t >= 2 * (WINDOW - 1) + 1); /* two layers look WINDOW - 1 tokens back each */
    }
}

static void memory_runs_out(kind k)
{
    small_model m;
    gemma(&m, k);
    sm_memory_runs_out(&m);
}

static void test_memory_runs_out(void **state)
{
    memory_runs_out(MIXTURE);
    memory_runs_out(PER_LAYER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tensor_counts), cmocka_unit_test(test_unused_keys),
        cmocka_unit_test(test_impossible_sizes),    cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_window_ends),         cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
