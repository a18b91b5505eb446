/* rqvk-synth's files of published shapes: as many tensors, parameters, bytes of keys and values and of state as the
 * published models have. They are sparse: what takes room on the disk is the vocabulary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/models/model.h"
#include "tools/synth/file.h"

/* Tensors: counted in published files (in public logs of another engine). Parameters: what the names round, or the same
 * logs. Bytes: 2 for every number kept, from the published configurations; of state, 4, and where the comment says so
 * also in such a log. */
static const struct {
    const char *preset;
    bool mtp;
    uint64_t n_tensors;
    double params_e9, params_within;
    uint64_t token_bytes;  /* layers that see everything */
    uint64_t window_bytes; /* per token in its window */
    uint64_t state_bytes;
} PUBLISHED[] = {
    {"llama-3.1-8b", false, 292, 8.03, 0.01, 131072, 0, 0},
    {"qwen3-30b-a3b", false, 579, 30.5, 0.05, 98304, 0, 0},
    {"qwen3.6-27b", false, 851, 27, 0.3, 65536, 0, 156893184}, /* 149.62 MiB in a log */
    {"qwen3.6-27b", true, 866, 27.4, 0.3, 65536, 0, 156893184},
    {"qwen3.6-35b-a3b", false, 733, 35, 0.5, 20480, 0, 65863680}, /* 62.8125 MiB in a log */
    {"qwen3.6-35b-a3b", true, 753, 35.5, 0.5, 20480, 0, 65863680},
    {"qwen3.5-397b-a17b", false, 1098, 397, 1, 30720, 0, 195379200},
    {"gemma-4-26b-a4b", false, 658, 25.2, 0.5, 20480, 204800, 0},
    {"gemma-4-31b", false, 833, 31, 0.5, 81920, 819200, 0},
};

static char path[64];

static void remove_file(void)
{
    unlink(path);
}

static rq_model *load(const char *name, bool mtp)
{
    synth_mixture mixture;
    synth_preset preset = *synth_preset_find(name);
    rq_model *model = NULL;
    rq_error err = {0};
    preset.n_mtp = mtp;
    assert_true(synth_mixture_find("q4_k_m", false, &mixture));
    if (synth_write(path, &preset, &mixture, 1, true, NULL, NULL, &err)) fail_msg("%s", err.text);
    if (rq_model_load(path, &model, &err)) fail_msg("%s", err.text);
    return model;
}

static void shapes_are_the_published_ones(void **state)
{
    for (size_t i = 0; i < sizeof PUBLISHED / sizeof *PUBLISHED; i++) {
        rq_model *m = load(PUBLISHED[i].preset, PUBLISHED[i].mtp);
        uint64_t token = 0, window = 0, recurrent = 0;
        for (uint32_t k = 0; k < m->hp.n_layers; k++) {
            const rq_layer *l = &m->layers[k];
            if (l->mixer == RQ_MIXER_ATTENTION && l->kv_layer == k)
                *(l->window ? &window : &token) += 2ull * l->n_head_kv * (l->dim_k + l->dim_v);
        }
        for (uint32_t g = 0; g < m->n_states; g++) {
            const rq_state_group *s = &m->states[g];
            recurrent += 4ull * s->n_layers *
                         ((uint64_t)s->conv_channels * (s->conv_taps - 1) +
                          (uint64_t)s->n_heads * s->dim_k * s->dim_v);
        }
        printf("%-18s %4llu tensors, %6.2f G parameters, %llu + %llu bytes per token, %llu of state\n",
               PUBLISHED[i].preset, (unsigned long long)rq_gguf_n_tensors(m->gguf), (double)m->n_params / 1e9,
               (unsigned long long)token, (unsigned long long)window, (unsigned long long)recurrent);
        assert_int_equal(rq_gguf_n_tensors(m->gguf), PUBLISHED[i].n_tensors);
        assert_true((double)m->n_params / 1e9 > PUBLISHED[i].params_e9 - PUBLISHED[i].params_within);
        assert_true((double)m->n_params / 1e9 < PUBLISHED[i].params_e9 + PUBLISHED[i].params_within);
        assert_int_equal(token, PUBLISHED[i].token_bytes);
        assert_int_equal(window, PUBLISHED[i].window_bytes);
        assert_int_equal(recurrent, PUBLISHED[i].state_bytes);
        rq_model_free(m);
    }
}

/* A published file with the block of 27B alone has 424.7 million parameters in it. */
static void the_block_behind_the_trunk(void **state)
{
    rq_model *m = load("qwen3.6-27b", false);
    uint64_t without = m->n_params;
    rq_model_free(m);
    m = load("qwen3.6-27b", true);
    assert_true(m->n_params - without > 424600000 && m->n_params - without < 424800000);
    assert_int_equal(m->hp.n_mtp, 1);
    rq_model_free(m);
}

static void tiny_ones_load(void **state)
{
    static const char *const tiny[] = {"tiny-qwen35", "tiny-qwen35moe", "tiny-gemma4", "tiny-gemma4moe"};
    for (size_t i = 0; i < sizeof tiny / sizeof *tiny; i++)
        for (int mtp = 0; mtp < (i < 2 ? 2 : 1); mtp++) rq_model_free(load(tiny[i], mtp));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_the_published_ones),
        cmocka_unit_test(the_block_behind_the_trunk),
        cmocka_unit_test(tiny_ones_load),
    };
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%.24s/rqvk-presets-%ld.gguf", folder ? folder : P_tmpdir, (long)getpid());
    atexit(remove_file);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
