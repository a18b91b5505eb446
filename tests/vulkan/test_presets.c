/* Plan and fact for models of every shape rqvk-synth knows: what the plan lists is what making the executor takes of the
 * driver, counted by the driver's own requirements and not allocated (rq_vulkan_pretend), so that the large ones need
 * no card. Their weights are holes in sparse files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "backends/vulkan/vulkan.h"
#include "engine/place/decide.h"
#include "tests/engine/real_bench.h"
#include "tools/synth/file.h"
#include "tools/synth/vocab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static rq_model *make_model(const synth_preset *preset)
{
    const char *base = getenv("TMPDIR");
    char path[300];
    snprintf(path, sizeof path, "%.200s/rqvk-presets-XXXXXX", base != NULL ? base : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    synth_mixture m;
    rq_error err = {0};
    assert_true(synth_mixture_find("q4_k_m", false, &m));
    synth_preset shape = *preset;
    if (shape.n_vocab < synth_vocab_least(shape.family)) shape.n_vocab = synth_vocab_least(shape.family);
    if (synth_write(path, &shape, &m, 1, true, NULL, NULL, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_model *model = rb_load(path);
    unlink(path);
    return model;
}

static void check(const rq_model *model, const char *name, const rq_engine_params *p)
{
    rq_error err = {0};
    rq_decision *d = rq_calloc(1, sizeof *d);
    assert_non_null(d);
    if (rq_decide(model, p, true, d, &err) != RQ_OK) fail_msg("%s: %s", name, err.text);
    rq_device *card = d->devices.open[0];
    assert_string_equal(card->backend->name, "vulkan");
    rq_vulkan_pretend(card);
    uint64_t before = rq_vulkan_most_bytes(card), planned = 0;
    rq_executor_params x = rq_place_executor(&d->place, &d->devices, &d->kv, &d->pools, &d->numbers);
    rq_executor *executor = NULL;
    if (rq_executor_create(&x, &executor, &err) != RQ_OK) fail_msg("%s: %s", name, err.text);
    for (uint32_t i = 0; i < d->list.n; i++)
        if (d->list.lines[i].device == 0 && !d->list.lines[i].in_place)
            planned += d->list.lines[i].planned_bytes;
    uint64_t taken = rq_vulkan_most_bytes(card) - before;
    const rq_exec_list *list = rq_executor_list(executor);
    for (uint32_t i = 0; i < list->n; i++) /* which line it is, when one is off */
        if (list->lines[i].device == 0 && !list->lines[i].in_place &&
            strcmp(list->lines[i].label, RQ_EXEC_SCRATCH) != 0 &&
            list->lines[i].made_bytes != d->list.lines[i].planned_bytes)
            printf("  %s: %llu planned, %llu made\n", list->lines[i].label,
                   (unsigned long long)d->list.lines[i].planned_bytes,
                   (unsigned long long)list->lines[i].made_bytes);
    printf("%-18s %s, %s layers: %llu bytes planned, %llu at most taken, %u round trips a token\n", name,
           p->type_k, p->gpu_layers, (unsigned long long)planned, (unsigned long long)taken,
           d->info.n_round_trips);
    if (fabs((double)planned - (double)taken) > 0.01 * (double)planned)
        fail_msg("%s: %llu bytes were planned, %llu are taken", name, (unsigned long long)planned,
                 (unsigned long long)taken);
    rq_executor_free(executor);
    rq_decision_free(d);
    rq_free(d);
}

static void plan_equals_fact(void **state)
{
    size_t n = 0;
    const synth_preset *presets = synth_presets(&n);
    for (size_t i = 0; i < n; i++) {
        rq_model *model = make_model(&presets[i]);
        rq_engine_params p = {.backend = "vulkan",
                              .device = "vulkan0",
                              .n_ctx = 4096,
                              .n_batch = 2048,
                              .n_sessions = 2,
                              .n_threads = 1,
                              .type_k = i % 2 ? "wht3" : "f16",
                              .type_v = i % 2 ? "wht3" : "f16",
                              .kv_profile = "none",
                              .gpu_layers = "all",
                              .device_memory = 1ull << 40,
                              .host_memory = 1ull << 40};
        check(model, presets[i].name, &p);
        p.gpu_layers = "3";
        check(model, presets[i].name, &p);
        rq_model_free(model);
    }
    assert_true(n >= 10);
    assert_int_equal(rq_vulkan_objects_alive(), 0);
}

int main(void)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return getenv("RQVK_VK_REQUIRED") ? 1 : 77;
    }
    rq_backend_vulkan.close(device);
    const struct CMUnitTest tests[] = {cmocka_unit_test(plan_equals_fact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
