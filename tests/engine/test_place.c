/* Where layers run changes nothing: the logits of a model have the same bits on one processor device and over two and
 * three of them, whatever is placed where. Processor devices stand for cards, so that no card is needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "engine/place/decide.h"
#include "tests/engine/kv_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 200, N_CTX = 256 };

static const char *card = "cpu"; /* or "vulkan0", "simt0", from the command line */

static rq_engine_params params_of(const char *format)
{
    return (rq_engine_params){.backend = "cpu",
                              .n_ctx = N_CTX,
                              .n_batch = 64,
                              .n_threads = 2,
                              .type_k = format,
                              .type_v = format,
                              .kv_recent = 64,
                              .kv_profile = "none"};
}

static float *new_logits(void)
{
    float *logits = calloc((size_t)N * KB_VOCAB, sizeof *logits);
    assert_non_null(logits);
    return logits;
}

static bool on_a_card(void)
{
    return strcmp(card, "cpu") != 0;
}

/* On processors every bit. A card computes in another order: as far from the processor as both may be from another
 * engine (tests/oracle), and with a compressed cache as far as a code that falls on the other side of a border makes
 * it, at most the codec's own error (DESIGN section 5: 0.0238 and 0.0058 for 3 and 4 bits). */
static void assert_same(const float *a, const float *b, const char *model, const char *format,
                        const char *what)
{
    if (!on_a_card()) {
        if (memcmp(a, b, (size_t)N * KB_VOCAB * sizeof *a) != 0) fail_msg("%s: other bits", what);
        return;
    }
    double tolerance = strchr(model, 'Q') != NULL ? 5e-3 : 1e-5, distance = kb_nmse(b, a, N);
    if (strstr(format, "3")) tolerance = 0.0238;
    if (strstr(format, "4")) tolerance = 0.0058;
    printf("%s: %.1e\n", what, distance);
    if (!(distance < tolerance)) fail_msg("%s: NMSE %g, at most %g", what, distance, tolerance);
}

static void check_model(const char *name, const char *format, uint32_t chunk)
{
    rq_model *model = rb_load(rb_path(name));
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_token ids[N];
    kb_tokens(ids, N);
    rq_engine_params p = params_of(format);
    float *one = new_logits(), *other = new_logits();
    kb_logits_of(model, &p, ids, N, chunk, one);
    const uint32_t counts[] = {0, 1, info.n_layers / 2, info.n_layers};
    p.device = card;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int experts = 0; experts <= (info.n_expert != 0); experts++) {
            char number[16], what[128];
            snprintf(number, sizeof number, "%u", counts[i]);
            p.gpu_layers = number;
            p.cpu_experts = experts != 0;
            snprintf(what, sizeof what, "%s %s --gpu-layers %s%s, pieces of %u", name, format, number,
                     experts ? " --cpu-experts" : "", chunk);
            kb_logits_of(model, &p, ids, N, chunk, other);
            assert_same(one, other, name, format, what);
        }
    free(one);
    free(other);
    rq_model_free(model);
}

static void a_dense_model(void **state)
{
    check_model("llama.gguf", "f16", 0);
    if (!on_a_card()) check_model("llama-Q4_K_M.gguf", "f16", 1);
}

static void a_mixture(void **state)
{
    check_model("qwen3moe.gguf", "f16", 7);
    if (on_a_card()) return;
    check_model("qwen3moe.gguf", "f16", 0);
    check_model("qwen3moe.gguf", "f16", 1);
}

static void a_hybrid(void **state)
{
    check_model("qwen35.gguf", "f16", 0);
    check_model("qwen35.gguf", "f16", 1);
    check_model("qwen35.gguf", "wht3", 50);
}

static void compressed_caches(void **state)
{
    if (on_a_card()) {
        check_model("llama-Q4_K_M.gguf", "wht4", 33);
        return;
    }
    check_model("llama.gguf", "wht3", 0);
    check_model("qwen3moe.gguf", "wht4", 1);
    check_model("qwen3moe.gguf", "iso3", 33);
}

/* Experts of some layers, several cards with shares, and the embedding with everything. */
static void mixed_placements(void **state)
{
    rq_model *model = rb_load(rb_path("qwen3moe.gguf"));
    rq_token ids[N];
    kb_tokens(ids, N);
    rq_engine_params p = params_of("wht3");
    float *one = new_logits(), *other = new_logits();
    kb_logits_of(model, &p, ids, N, 0, one);
    const struct {
        const char *devices, *layers, *split;
        uint32_t experts;
    } ways[] = {{"cpu,cpu", "all", "1,1", 0},
                {"cpu,cpu", "1", "0,1", 0},
                {"cpu,cpu", "all", "1,0", 1},
                {"cpu,cpu", "all", NULL, 1},
                {"cpu,cpu,cpu", "all", NULL, 0}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        p.device = ways[i].devices;
        p.gpu_layers = ways[i].layers;
        p.tensor_split = ways[i].split;
        p.cpu_expert_layers = ways[i].experts;
        kb_logits_of(model, &p, ids, N, 0, other);
        if (memcmp(one, other, (size_t)N * KB_VOCAB * sizeof *one) != 0) fail_msg("way %zu: other bits", i);
    }
    free(one);
    free(other);
    rq_model_free(model);
}

/* ---- plan and fact --------------------------------------------------------------------------------------- */

/* The devices count what they hold; that must be what was listed. Weights on cards are read in place here. */
static void plan_equals_fact(void **state)
{
    static const char *const names[] = {"llama-Q4_K_M.gguf", "qwen3moe.gguf", "qwen2.gguf", "qwen35.gguf"};
    static const char *const layers[] = {"0", "1", "all"};
    static const char *const formats[] = {"f16", "wht3"};
    for (size_t m = 0; m < (on_a_card() ? 2 : 4); m++)
        for (size_t i = 0; i < 6; i++) {
            rq_model *model = rb_load(rb_path(names[m]));
            rq_engine_params p = params_of(formats[i % 2]);
            rq_error err = {0};
            p.device = card;
            p.gpu_layers = layers[i / 2];
            p.n_sessions = 3;
            rq_decision *d = rq_calloc(1, sizeof *d);
            assert_non_null(d);
            if (rq_decide(model, &p, true, d, &err) != RQ_OK) fail_msg("%s", err.text);
            rq_executor_params x = rq_place_executor(&d->place, &d->devices, &d->kv, &d->pools, &d->numbers);
            rq_executor *executor = NULL;
            uint64_t before[RQ_PLACE_DEVICES];
            rq_device_info device;
            for (uint32_t k = 0; k < d->place.n_devices; k++) {
                d->devices.open[k]->backend->describe(d->devices.open[k], &device);
                before[k] = device.taken_bytes;
            }
            if (rq_executor_create(&x, &executor, &err) != RQ_OK) fail_msg("%s", err.text);
            const rq_exec_list *list = rq_executor_list(executor);
            assert_int_equal(list->n, d->list.n);
            for (uint32_t k = 0; k < d->place.n_devices; k++) {
                d->devices.open[k]->backend->describe(d->devices.open[k], &device);
                uint64_t planned = 0, taken = device.taken_bytes - before[k];
                for (uint32_t l = 0; l < list->n; l++) {
                    const rq_exec_line *line = &list->lines[l];
                    assert_int_equal(line->planned_bytes, d->list.lines[l].planned_bytes);
                    if (strcmp(line->label, RQ_EXEC_SCRATCH) != 0)
                        assert_int_equal(line->made_bytes, line->planned_bytes);
                    if (line->device == k && !line->in_place) planned += line->planned_bytes;
                }
                if (on_a_card())
                    printf("%s on %s: %llu bytes planned, %llu taken\n", names[m], d->devices.name[k],
                           (unsigned long long)planned, (unsigned long long)taken);
                if (fabs((double)planned - (double)taken) > 0.01 * (double)planned)
                    fail_msg("%s on %s: %llu bytes were planned, %llu are taken", names[m],
                             d->devices.name[k], (unsigned long long)planned, (unsigned long long)taken);
            }
            rq_executor_free(executor);
            rq_decision_free(d);
            rq_free(d);
            rq_model_free(model);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest on_processors[] = {
        cmocka_unit_test(a_dense_model),    cmocka_unit_test(a_mixture),
        cmocka_unit_test(a_hybrid),         cmocka_unit_test(compressed_caches),
        cmocka_unit_test(plan_equals_fact), cmocka_unit_test(mixed_placements),
    };
    const struct CMUnitTest on_cards[] = {
        cmocka_unit_test(a_dense_model),
        cmocka_unit_test(a_mixture),
        cmocka_unit_test(compressed_caches),
        cmocka_unit_test(plan_equals_fact),
    };
    if (argc == 1) return cmocka_run_group_tests(on_processors, NULL, NULL);
    static char name[32];
    snprintf(name, sizeof name, "%s0", argv[1]);
    card = name;
    return cmocka_run_group_tests_name("on a card", on_cards, NULL, NULL);
}
