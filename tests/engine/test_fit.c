/* The fit: of models of true shapes (their weights are holes in sparse files), over cards of any size. A processor
 * device stands for a card; its memory is what --device-memory says. Nothing large is ever allocated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "engine/place/decide.h"
#include "engine/plan.h"
#include "tests/engine/real_bench.h"
#include "tools/synth/file.h"
#include "tools/synth/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB (1ull << 30)

static rq_model *dense, *mixture;

static rq_model *make_model(const char *preset, uint32_t n_layers, const char *type)
{
    const char *base = getenv("TMPDIR");
    char path[300];
    snprintf(path, sizeof path, "%.200s/rqvk-fit-XXXXXX", base != NULL ? base : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    synth_mixture m;
    rq_error err = {0};
    assert_true(synth_mixture_find(type, false, &m));
    synth_preset shape = *synth_preset_find(preset);
    if (n_layers != 0) shape.n_layer = n_layers;
    shape.n_vocab = 32000; /* quick to write; the shapes of the layers are what matters */
    if (shape.n_vocab < synth_vocab_least(shape.family)) shape.n_vocab = synth_vocab_least(shape.family);
    if (synth_write(path, &shape, &m, 1, true, NULL, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_model *model = rb_load(path);
    unlink(path);
    return model;
}

static int make_models(void **state)
{
    dense = make_model("llama-3.1-8b", 0, "q4_k_m");
    mixture = make_model("qwen3-30b-a3b", 12, "q4_k_m");
    return 0;
}

static int free_models(void **state)
{
    rq_model_free(dense);
    rq_model_free(mixture);
    return 0;
}

static rq_engine_params params_of(uint64_t card_bytes)
{
    return (rq_engine_params){.backend = "cpu",
                              .device = "cpu",
                              .n_threads = 1,
                              .n_batch = 256,
                              .device_memory = card_bytes,
                              .host_memory = 256 * GIB,
                              .kv_profile = "none"};
}

static rq_decision *decide(const rq_model *model, const rq_engine_params *p)
{
    rq_decision *d = rq_calloc(1, sizeof *d);
    rq_error err = {0};
    assert_non_null(d);
    if (rq_decide(model, p, true, d, &err) != RQ_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < d->devices.n_cards; i++) /* a card is never promised more than it has */
        assert_true(d->need.device[i] <= d->devices.budget[i] - d->devices.budget[i] / 32);
    return d;
}

static void done(rq_decision *d)
{
    rq_decision_free(d);
    rq_free(d);
}

static void refused(const rq_model *model, rq_engine_params p, const char *part)
{
    rq_decision *d = rq_calloc(1, sizeof *d);
    rq_error err = {0};
    assert_non_null(d);
    assert_int_not_equal(rq_decide(model, &p, true, d, &err), RQ_OK);
    if (strstr(err.text, part) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.text, part);
    done(d);
}

/* The smaller the card, the fewer layers, and never a shorter context for more layers than the comfortable one. */
static void smaller_and_smaller_cards(void **state)
{
    uint32_t layers = dense->hp.n_layers, context = dense->hp.n_ctx_train;
    const double sizes[] = {40, 12, 8, 6, 5, 4, 2, 0.5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rq_engine_params p = params_of((uint64_t)(sizes[i] * (double)GIB));
        rq_decision *d = decide(dense, &p);
        uint32_t n = d->place.choice.gpu_layers;
        if (n == dense->hp.n_layers) {
            assert_true(d->numbers.n_ctx <= context);
            context = d->numbers.n_ctx;
        }
        assert_true(n <= layers);
        assert_true(d->numbers.n_ctx >= RQ_FIT_COMFORT || d->numbers.n_ctx >= d->model->hp.n_ctx_train);
        if (n != 0) assert_int_equal(d->place.output, 0);
        if (i == 0) {
            assert_int_equal(n, dense->hp.n_layers);
            assert_int_equal(d->numbers.n_ctx, dense->hp.n_ctx_train);
            assert_false(d->place.uses_processor);
        }
        layers = n;
        done(d);
    }
    assert_true(layers < dense->hp.n_layers / 4);
}

/* Nearly all of the card is used: a context one sixteenth longer, or one layer more, would not fit. */
static void no_room_is_wasted(void **state)
{
    rq_engine_params p = params_of(8 * GIB);
    rq_decision *d = decide(dense, &p);
    assert_int_equal(d->place.choice.gpu_layers, dense->hp.n_layers);
    assert_true(d->need.device[0] > d->devices.budget[0] / 16 * 14);
    uint32_t n_ctx = d->numbers.n_ctx;
    done(d);
    p.n_ctx = n_ctx + n_ctx / 8;
    p.gpu_layers = "all";
    refused(dense, p, "short");
    p = params_of(3 * GIB);
    p.n_ctx = 8192;
    d = decide(dense, &p);
    uint32_t layers = d->place.choice.gpu_layers;
    assert_true(layers > 0 && layers < dense->hp.n_layers);
    done(d);
    char more[16];
    snprintf(more, sizeof more, "%u", layers + 1);
    p.gpu_layers = more;
    refused(dense, p, "--gpu-layers");
}

/* Of a mixture experts go to the processor before layers do. */
static void experts_first(void **state)
{
    uint32_t n = mixture->hp.n_layers, least = 0;
    bool some = false;
    const double sizes[] = {24, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rq_engine_params p = params_of((uint64_t)(sizes[i] * (double)GIB));
        p.n_ctx = 16384;
        rq_decision *d = decide(mixture, &p);
        assert_int_equal(d->numbers.n_ctx, 16384);
        assert_int_equal(d->place.choice.gpu_layers, n);
        assert_true(d->place.choice.cpu_experts >= least);
        least = d->place.choice.cpu_experts;
        some |= least > 0 && least < n;
        /* out and back for each of them, and the embedding */
        if (least != 0) assert_int_equal(d->info.n_segments, 1 + 2 * least + 1 + 1);
        done(d);
    }
    assert_true(some);
    rq_engine_params p = params_of(GIB / 2);
    p.n_ctx = 16384;
    rq_decision *d = decide(mixture, &p);
    assert_true(d->place.choice.gpu_layers < n);
    done(d);
}

/* Compressed caches leave room. */
static void compressed_caches_reach_further(void **state)
{
    rq_engine_params p = params_of(7 * GIB);
    rq_decision *d = decide(dense, &p);
    uint32_t f16 = d->numbers.n_ctx;
    done(d);
    p.type_k = p.type_v = "wht3";
    d = decide(dense, &p);
    assert_true(d->numbers.n_ctx > 3 * (uint64_t)f16);
    done(d);
}

/* What was asked for is kept to or refused. */
static void wishes(void **state)
{
    rq_engine_params p = params_of(24 * GIB);
    p.n_ctx = 4096;
    p.gpu_layers = "7";
    rq_decision *d = decide(dense, &p);
    assert_int_equal(d->place.choice.gpu_layers, 7);
    assert_int_equal(d->numbers.n_ctx, 4096);
    char text[200];
    rq_place_describe(&d->place, 0, text, sizeof text);
    assert_string_equal(text, "layers 25-31, output");
    rq_place_describe(&d->place, 1, text, sizeof text);
    assert_string_equal(text, "embedding, layers 0-24");
    done(d);
    p.gpu_layers = "99"; /* as people write who mean all */
    d = decide(dense, &p);
    assert_int_equal(d->place.choice.gpu_layers, dense->hp.n_layers);
    done(d);
    p.gpu_layers = "0";
    d = decide(dense, &p);
    assert_int_equal(d->need.device[0], 0);
    done(d);
    p.gpu_layers = "seven";
    refused(dense, p, "not \"seven\"");
    p.gpu_layers = NULL;
    p.cpu_experts = true;
    refused(dense, p, "no experts");
    p.cpu_expert_layers = 5;
    d = decide(mixture, &p);
    assert_int_equal(d->place.choice.cpu_experts, 5);
    rq_place_describe(&d->place, d->devices.n_cards, text, sizeof text);
    assert_string_equal(text, "embedding, experts of layers 0-4");
    done(d);
    p = params_of(24 * GIB);
    p.tensor_split = "1,2";
    refused(dense, p, "1 devices");
    p.tensor_split = NULL;
    p.device = "cpu,";
    refused(dense, p, "--device");
    p.device = NULL;
    p.gpu_layers = "3";
    refused(dense, p, "needs a card");
}

/* Several cards share by what they have. */
static void several_cards(void **state)
{
    rq_engine_params p = params_of(4 * GIB);
    p.device = "cpu,cpu";
    p.n_ctx = 8192;
    rq_decision *d = decide(dense, &p);
    assert_int_equal(d->place.choice.gpu_layers, dense->hp.n_layers);
    assert_int_equal(d->place.n_groups, 2);
    uint32_t first = 0;
    for (uint32_t i = 0; i < dense->hp.n_layers; i++) {
        assert_true(i == 0 || d->place.layer[i] >= d->place.layer[i - 1]);
        first += d->place.layer[i] == 0;
    }
    assert_in_range(first, 8, 24);
    done(d);
    p.tensor_split = "1,0";
    p.gpu_layers = "all";
    refused(dense, p, "cpu0");
    p.device_memory = 24 * GIB;
    p.tensor_split = "1,3";
    d = decide(dense, &p);
    assert_int_equal(d->place.layer[7], 0);
    assert_int_equal(d->place.layer[8], 1);
    done(d);
}

static void nothing_fits(void **state)
{
    rq_engine_params p = params_of(GIB);
    p.host_memory = 1 << 20;
    refused(dense, p, "processor");
    p.no_fit = true; /* then it is tried, whatever happens */
    rq_decision *d = rq_calloc(1, sizeof *d);
    rq_error err = {0};
    assert_non_null(d);
    assert_int_equal(rq_decide(dense, &p, true, d, &err), RQ_OK);
    assert_int_equal(d->place.choice.gpu_layers, dense->hp.n_layers);
    assert_int_equal(d->numbers.n_ctx, dense->hp.n_ctx_train);
    done(d);
}

static void texts(void **state)
{
    rq_engine_params p = params_of(2 * GIB);
    char *text = NULL;
    rq_error err = {0};
    assert_int_equal(rq_plan_text(mixture, &p, false, &text, &err), RQ_OK);
    assert_non_null(strstr(text, "experts of layers"));
    assert_non_null(strstr(text, "round trips between devices"));
    rq_string_free(text);
    assert_int_equal(rq_plan_text(mixture, &p, true, &text, &err), RQ_OK);
    assert_int_equal(text[0], '{');
    assert_non_null(strstr(text, "\"copies_per_token\": "));
    rq_string_free(text);
}

/* Every allocation of a plan fails once; nothing stays. */
static void failing_allocations(void **state)
{
    rq_model *model = rb_load(rb_path("qwen3moe.gguf"));
    rq_engine_params p = params_of(GIB);
    p.gpu_layers = "1";
    uint64_t failures = rb_failing_allocations(model, &p, 300, 60);
    assert_true(failures > 300);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smaller_and_smaller_cards),
        cmocka_unit_test(no_room_is_wasted),
        cmocka_unit_test(experts_first),
        cmocka_unit_test(compressed_caches_reach_further),
        cmocka_unit_test(wishes),
        cmocka_unit_test(several_cards),
        cmocka_unit_test(nothing_fits),
        cmocka_unit_test(texts),
        cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, make_models, free_models);
}
