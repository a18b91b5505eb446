/* Rotary frequencies against transformers' (rope_expected.h, written by make_rope_expected.py), and what a file's
 * own factor on cos and sin does. */
#include "engine/models/model.h"
#include "tests/models/small_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

typedef struct rope_case {
    const char *name, *type; /* type "none": nothing about scaling is written */
    uint32_t dim, context, original;
    float base, factor, beta_fast, beta_slow; /* betas 0: not written */
    double magnitude;
    bool has_factors;
    float factors[64], inv_freq[64];
} rope_case;

#include "tests/models/rope_expected.h"

/* A llama model with one layer of one head of c->dim. */
static void describe(small_model *m, const rope_case *c)
{
    sm_init_layers(m, "llama", false, 1);
    sm_u32(m, ".context_length", c->context);
    sm_u32(m, ".attention.head_count", 1);
    sm_u32(m, ".attention.head_count_kv", 1);
    sm_u32(m, ".attention.key_length", c->dim);
    sm_u32(m, ".attention.value_length", c->dim);
    sm_u32(m, ".rope.dimension_count", c->dim);
    sm_f32(m, ".rope.freq_base", c->base);
    sm_reshape(m, "blk.0.attn_q.weight", 2, (const uint64_t[]){SM_EMBD, c->dim});
    sm_reshape(m, "blk.0.attn_k.weight", 2, (const uint64_t[]){SM_EMBD, c->dim});
    sm_reshape(m, "blk.0.attn_v.weight", 2, (const uint64_t[]){SM_EMBD, c->dim});
    sm_reshape(m, "blk.0.attn_output.weight", 2, (const uint64_t[]){c->dim, SM_EMBD});
    if (strcmp(c->type, "none")) {
        sm_str(m, ".rope.scaling.type", c->type);
        sm_f32(m, ".rope.scaling.factor", c->factor);
    }
    if (c->original) sm_u32(m, ".rope.scaling.original_context_length", c->original);
    if (c->beta_fast != 0) sm_f32(m, ".rope.scaling.yarn_beta_fast", c->beta_fast);
    if (c->beta_slow != 0) sm_f32(m, ".rope.scaling.yarn_beta_slow", c->beta_slow);
    if (c->has_factors) {
        sm_tensor *t = sm_add(m, "rope_freqs.weight", 1, (const uint64_t[]){c->dim / 2});
        memcpy(t->data, c->factors, c->dim / 2 * sizeof(float));
    }
}

static rq_model *load(small_model *m)
{
    rq_model *model = NULL;
    rq_error err = {0};
    if (rq_model_load(sm_write(m), &model, &err) != RQ_OK) fail_msg("%s", err.text);
    sm_free(m);
    return model;
}

/* Both sides round to float32; theirs computes in it, through a power, a reciprocal and a mixture: a few units in
 * the last place each, 8 of them together. */
static const double TOLERANCE = 8 * 0x1p-23;

static bool near(double a, double b)
{
    return fabs(a - b) <= TOLERANCE * fabs(b);
}

static void test_against_transformers(void **state)
{
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const rope_case *c = &CASES[i];
        small_model m;
        describe(&m, c);
        rq_model *model = load(&m);
        if (!near(model->hp.rope_magnitude, c->magnitude))
            fail_msg("%s: magnitude %.9g, expected %.9g", c->name, model->hp.rope_magnitude, c->magnitude);
        for (uint32_t k = 0; k < c->dim / 2; k++)
            if (!near(model->inv_freq_data[k], c->inv_freq[k]))
                fail_msg("%s: frequency %u is %.9g, expected %.9g", c->name, k, model->inv_freq_data[k],
                         c->inv_freq[k]);
        rq_model_free(model);
    }
}

static const rope_case *case_of(const char *name)
{
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        if (!strcmp(CASES[i].name, name)) return &CASES[i];
    fail_msg("there is no case %s", name);
    return NULL;
}

/* The trained context stands in for the original one where a file gives none. */
static void test_original_context_falls_back(void **state)
{
    rope_case c = *case_of("yarn_qwen25");
    c.context = c.original;
    c.original = 0;
    small_model m;
    describe(&m, &c);
    rq_model *model = load(&m);
    for (uint32_t k = 0; k < c.dim / 2; k++) assert_true(near(model->inv_freq_data[k], c.inv_freq[k]));
    rq_model_free(model);
}

/* rope.scaling.attn_factor multiplies cos and sin under every scaling (llama.cpp, llama-context.cpp: the model's
 * factor is applied after, and apart from, what YaRN asks for). */
static void test_factor_of_the_file(void **state)
{
    static const char *const names[] = {"linear_llama2", "yarn_qwen25", "llama31"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const rope_case *c = case_of(names[i]);
        small_model m;
        describe(&m, c);
        sm_f32(&m, ".rope.scaling.attn_factor", 1.25f);
        rq_model *model = load(&m);
        assert_true(near(model->hp.rope_magnitude, 1.25 * c->magnitude));
        rq_model_free(model);
    }
}

/* YaRN without extrapolation (ext 0) is linear scaling: the same frequencies, and no magnitude of its own. */
static void test_yarn_without_extrapolation(void **state)
{
    const rope_case *linear = case_of("linear_llama2");
    rope_case c = *linear;
    c.type = "yarn";
    c.original = 4096;
    small_model m;
    describe(&m, &c);
    sm_f32(&m, ".rope.scaling.yarn_ext_factor", 0.0f);
    rq_model *model = load(&m);
    assert_true(near(model->hp.rope_magnitude, 1));
    for (uint32_t k = 0; k < c.dim / 2; k++) assert_true(near(model->inv_freq_data[k], linear->inv_freq[k]));
    rq_model_free(model);
}

/* "none" switches a factor off, 0 means 1, and files of 2023 call it rope.scale_linear. */
static void test_ways_to_say_it(void **state)
{
    rope_case c = *case_of("linear_llama2");
    small_model m;
    rq_model *model;

    describe(&m, &c);
    sm_str(&m, ".rope.scaling.type", "none");
    model = load(&m);
    assert_true(near(model->inv_freq_data[0], 1));
    rq_model_free(model);

    describe(&m, &c);
    sm_f32(&m, ".rope.scaling.factor", 0.0f);
    model = load(&m);
    assert_true(near(model->inv_freq_data[0], 1));
    rq_model_free(model);

    describe(&m, &c);
    sm_no_key(&m, ".rope.scaling.type");
    sm_no_key(&m, ".rope.scaling.factor");
    sm_f32(&m, ".rope.scale_linear", 4.0f);
    model = load(&m);
    for (uint32_t k = 0; k < c.dim / 2; k++) assert_true(near(model->inv_freq_data[k], c.inv_freq[k]));
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_transformers), cmocka_unit_test(test_original_context_falls_back),
        cmocka_unit_test(test_factor_of_the_file),   cmocka_unit_test(test_yarn_without_extrapolation),
        cmocka_unit_test(test_ways_to_say_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
