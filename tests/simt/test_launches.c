/* How many kernels a generated token launches in each layer: the bars of dense layers and of mixtures, and what the other
 * families come to. Counted from the tape, as rqvk-bench --launches does. */
#include "engine/plan.h"
#include "tests/simt/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct tally {
    uint32_t layer, now, most, total;
    char ops[1024], worst[1024];
} tally;

static void end_layer(tally *t)
{
    if (t->layer != UINT32_MAX && t->now > t->most) {
        t->most = t->now;
        memcpy(t->worst, t->ops, sizeof t->worst);
    }
    t->now = 0;
    t->ops[0] = 0;
}

static void add(void *user, const rq_launch_row *row)
{
    tally *t = user;
    if (row->layer != t->layer) end_layer(t);
    t->layer = row->layer;
    t->now += row->launches;
    t->total += row->launches;
    size_t at = strlen(t->ops);
    snprintf(t->ops + at, sizeof t->ops - at, " %s:%u", row->op, row->launches);
}

/* limit 0: told, not judged */
static const struct {
    const char *name;
    uint32_t limit;
} MODELS[] = {{"llama", 8},        {"qwen2", 8},      {"qwen3", 8},         {"llama-Q4_K_M", 8},
              {"llama-Q3_K_M", 8}, {"llama-Q8_0", 8}, {"qwen3moe", 11},     {"gemma3", 0},
              {"gemma4-dense", 0}, {"qwen35", 0},     {"qwen35-Q4_K_M", 0}, {"qwen35moe", 0},
              {"gemma4-moe", 0},   {"gemma4-ple", 0}};

static void layers_keep_to_their_launches(void **state)
{
    static const char *const formats[] = {"f16", "wht3", "iso3", "planar3", "wht4"};
    uint32_t n_judged = 0;
    for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS; i++) {
        char path[512];
        const char *elsewhere = getenv("RQVK_ORACLE");
        snprintf(path, sizeof path, "%s/oracle/%s.gguf", RQVK_TEST_DATA, MODELS[i].name);
        if (access(path, R_OK) && elsewhere)
            snprintf(path, sizeof path, "%s/%s.gguf", elsewhere, MODELS[i].name);
        if (access(path, R_OK)) continue;
        rq_model *model = NULL;
        rq_error err = {0};
        if (rq_model_load(path, &model, &err)) fail_msg("%s", err.text);
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
            const rq_engine_params p = {.backend = "simt", .type_k = formats[f], .type_v = formats[f]};
            tally t = {.layer = UINT32_MAX};
            if (rq_count_launches(model, &p, add, &t, &err))
                fail_msg("%s %s: %s", MODELS[i].name, formats[f], err.text);
            end_layer(&t);
            printf("%-14s %-8s %2u launches a layer at most, %3u a token:%s\n", MODELS[i].name, formats[f],
                   t.most, t.total, f < 2 ? t.worst : "");
            assert_true(t.most > 0);
            if (MODELS[i].limit) {
                assert_true(t.most <= MODELS[i].limit);
                n_judged++;
            }
        }
        rq_model_free(model);
    }
    assert_true(n_judged >= 5 * 5);
}

static void ignore(void *user, size_t position, const float *row) {}

/* What is counted is what the card is given. */
static void the_count_is_what_runs(void **state)
{
    static const char *const names[] = {"llama", "qwen3moe"};
    for (size_t i = 0; i < 2; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/oracle/%s.gguf", RQVK_TEST_DATA, names[i]);
        rq_model *model = NULL;
        rq_engine *engine = NULL;
        rq_session *session = NULL;
        rq_error err = {0};
        const rq_engine_params p = {
            .backend = "simt", .n_ctx = 64, .n_batch = 16, .type_k = "wht3", .type_v = "wht3"};
        tally t = {.layer = UINT32_MAX};
        if (rq_model_load(path, &model, &err) || rq_count_launches(model, &p, add, &t, &err) ||
            rq_engine_create(model, &p, &engine, &err) || rq_session_create(engine, &session, &err))
            fail_msg("%s", err.text);
        const rq_token ids[] = {1, 2, 3, 4, 5};
        if (rq_evaluate(session, ids, 1, 1, RQ_LOGITS_NONE, ignore, NULL, &err)) fail_msg("%s", err.text);
        simt_launches();
        if (rq_evaluate(session, ids + 1, 4, 1, RQ_LOGITS_NONE, ignore, NULL, &err)) fail_msg("%s", err.text);
        assert_int_equal(simt_launches(), 4 * t.total);
        rq_session_free(session);
        rq_engine_free(engine);
        rq_model_free(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(layers_keep_to_their_launches),
                                       cmocka_unit_test(the_count_is_what_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
