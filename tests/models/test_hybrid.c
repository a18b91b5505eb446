/* Files of the hybrid family: what is missing, of another shape or too much is refused by its name; blocks behind the
 * trunk change nothing; a sequence cut into pieces gives the same bits; running out of memory leaks nothing. */
#include "backends/base/mem.h"
#include "engine/models/model.h"
#include "tests/models/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 21, STATE = 12, KEY_HEADS = 2, VALUE_HEADS = 6, TAPS = 3 };

static void add(small_model *m, uint32_t layer, const char *name, uint64_t a, uint64_t b)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    sm_add(m, full, b ? 2 : 1, (const uint64_t[]){a, b});
}

static void drop(small_model *m, uint32_t layer, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    sm_no_tensor(m, full);
}

static void add_delta(small_model *m, uint32_t i)
{
    static const char *const attention[] = {"attn_q.weight",      "attn_k.weight",      "attn_v.weight",
                                            "attn_output.weight", "attn_q_norm.weight", "attn_k_norm.weight"};
    for (size_t k = 0; k < sizeof attention / sizeof *attention; k++) drop(m, i, attention[k]);
    uint64_t channels = (2 * KEY_HEADS + VALUE_HEADS) * STATE, values = VALUE_HEADS * STATE;
    add(m, i, "attn_qkv.weight", SM_EMBD, channels);
    add(m, i, "attn_gate.weight", SM_EMBD, values);
    add(m, i, "ssm_conv1d.weight", TAPS, channels);
    add(m, i, "ssm_alpha.weight", SM_EMBD, VALUE_HEADS);
    add(m, i, "ssm_beta.weight", SM_EMBD, VALUE_HEADS);
    add(m, i, "ssm_dt.bias", VALUE_HEADS, 0);
    add(m, i, "ssm_a", VALUE_HEADS, 0);
    add(m, i, "ssm_norm.weight", STATE, 0);
    add(m, i, "ssm_out.weight", values, SM_EMBD);
    char rate[64];
    snprintf(rate, sizeof rate, "blk.%u.ssm_a", i);
    for (uint32_t k = 0; k < VALUE_HEADS; k++) sm_find(m, rate)->data[k] *= -1;
}

/* Two layers, recurrent and attention, and a block behind them if `mtp`. */
static void hybrid(small_model *m, bool experts, bool mtp)
{
    uint32_t n = mtp ? 3 : 2;
    sm_init_layers(m, experts ? "qwen35moe" : "qwen35", experts, n);
    sm_u32(m, ".full_attention_interval", 2);
    sm_u32(m, ".ssm.conv_kernel", TAPS);
    sm_u32(m, ".ssm.state_size", STATE);
    sm_u32(m, ".ssm.group_count", KEY_HEADS);
    sm_u32(m, ".ssm.time_step_rank", VALUE_HEADS);
    sm_u32(m, ".ssm.inner_size", VALUE_HEADS * STATE);
    sm_u32(m, ".rope.dimension_count", SM_HEAD / 2);
    sm_list(m, ".rope.dimension_sections", (const uint32_t[]){2, 1, 1, 0}, 4);
    if (experts) sm_u32(m, ".expert_shared_feed_forward_length", SM_FF);
    for (uint32_t i = 0; i < n; i++) {
        char q[64];
        snprintf(q, sizeof q, "blk.%u.attn_q.weight", i);
        sm_reshape(m, q, 2, (const uint64_t[]){SM_EMBD, 2 * SM_HEADS * SM_HEAD});
        drop(m, i, "ffn_norm.weight");
        add(m, i, "post_attention_norm.weight", SM_EMBD, 0);
        if (experts) {
            add(m, i, "ffn_gate_inp_shexp.weight", SM_EMBD, 0);
            add(m, i, "ffn_gate_shexp.weight", SM_EMBD, SM_FF);
            add(m, i, "ffn_up_shexp.weight", SM_EMBD, SM_FF);
            add(m, i, "ffn_down_shexp.weight", SM_FF, SM_EMBD);
        }
        if (i == 0) add_delta(m, i);
    }
    if (!mtp) return;
    sm_u32(m, ".nextn_predict_layers", 1);
    add(m, 2, "nextn.eh_proj.weight", 2 * SM_EMBD, SM_EMBD);
    add(m, 2, "nextn.enorm.weight", SM_EMBD, 0);
    add(m, 2, "nextn.hnorm.weight", SM_EMBD, 0);
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

static bool is_optional(const char *name)
{
    return !strcmp(name, "output.weight");
}

static void test_every_tensor_counts(void **state)
{
    for (int kind = 0; kind < 2; kind++) {
        small_model m;
        hybrid(&m, kind == 1, true);
        uint32_t n = m.n_tensors;
        sm_free(&m);
        for (uint32_t i = 0; i < n; i++) {
            hybrid(&m, kind == 1, true);
            char name[64];
            snprintf(name, sizeof name, "%s", m.tensors[i].name);
            sm_no_tensor(&m, name);
            if (is_optional(name))
                sm_free(&m);
            else
                refused(&m, name, "missing");

            hybrid(&m, kind == 1, true);
            sm_tensor *t = sm_find(&m, name);
            uint64_t ne[4] = {t->ne[0], t->ne[1], t->ne[2], 1};
            ne[t->n_dims - 1]++;
            sm_reshape(&m, name, t->n_dims, ne);
            refused(&m, name, "of another shape");
        }
        static const char *const surplus[] = {
            "blk.0.attn_q.weight",      "blk.0.ffn_norm.weight",  "blk.1.ssm_a",
            "blk.1.nextn.enorm.weight", "blk.3.attn_norm.weight", "rope_freqs.weight",
            "blk.1.attn_q.bias",        "something.else"};
        for (size_t i = 0; i < sizeof surplus / sizeof *surplus; i++) {
            hybrid(&m, kind == 1, true);
            sm_add(&m, surplus[i], 1, (const uint64_t[]){SM_EMBD});
            refused(&m, surplus[i], "too much");
        }
    }
}

static void test_impossible_sizes(void **state)
{
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {".ssm.conv_kernel", 1},         {".ssm.conv_kernel", 9},      {".ssm.state_size", 0},
        {".ssm.group_count", 4},         {".ssm.group_count", 0},      {".ssm.time_step_rank", 1u << 30},
        {".ssm.inner_size", 71},         {".nextn_predict_layers", 3}, {".full_attention_interval", 0},
        {".full_attention_interval", 1}, {".rope.dimension_count", 6}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        small_model m;
        rq_model *model;
        rq_error err = {0};
        hybrid(&m, false, true);
        sm_u32(&m, keys[i].key, keys[i].value);
        rq_status s = load(&m, &model, &err);
        rq_model_free(model);
        if (s == RQ_OK || !err.text[0]) fail_msg("%s %u was accepted", keys[i].key, keys[i].value);
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

/* Logits of tokens in pieces of `chunk`, twice in sessions of one slot: a sequence begins with empty state. */
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

static void test_pieces(void **state)
{
    static const uint32_t pieces[] = {1, 2, 3, 7};
    static const char *const caches[] = {"f32", "wht3", "planar4"};
    for (int kind = 0; kind < 2; kind++)
        for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
            small_model m;
            hybrid(&m, kind == 1, false);
            run(&m, 16, caches[c], &expected);
            for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
                hybrid(&m, kind == 1, i % 2); /* with a block that has no part in it, and without */
                run(&m, pieces[i], caches[c], &got);
                /* narrow and wide steps multiply in different orders: f32 rounding */
                for (size_t t = 0; t < N_TOKENS; t++)
                    for (size_t k = 0; k < SM_VOCAB; k++) {
                        float d = got.rows[t][k] - expected.rows[t][k];
                        if (!(d < 1e-3f && d > -1e-3f))
                            fail_msg("%s in pieces of %u, token %zu: %g and %g", caches[c], pieces[i], t,
                                     (double)got.rows[t][k], (double)expected.rows[t][k]);
                    }
            }
        }
}

static void test_memory_runs_out(void **state)
{
    small_model m;
    hybrid(&m, true, true);
    sm_memory_runs_out(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tensor_counts),
        cmocka_unit_test(test_impossible_sizes),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
