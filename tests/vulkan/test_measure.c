/* Measuring the arithmetic of products: every kind of the device is timed and its results compared with those of f32;
 * the choice is kept on disk and read again. */
#include "backends/base/mem.h"
#include "backends/vulkan/vk.h"
#include "tests/vulkan/rig.h"

#include <math.h>
#include <unistd.h>

static void every_kind_is_measured(void **state)
{
    int64_t alive = rq_mem_alive();
    rq_error err = {0};
    rq_device *device = NULL;
    /* by name, so that the kind is there although llvmpipe does it one product after another */
    rq_status status =
        rq_backend_vulkan.open(&(rq_device_options){.implementation = "integer-dot"}, &device, &err);
    if (status == RQ_ERR_UNSUPPORTED) skip();
    assert_int_equal(status, RQ_OK);
    vk_device *d = (vk_device *)device;
    char text[512];
    assert_int_equal(rq_vulkan_measure(device, 192, text, sizeof text, &err), RQ_OK);
    print_message("%s", text);
    const char *prompt = strchr(text, '\n');
    assert_non_null(prompt);
    const char *in_text[] = {strstr(text, " float32 "), strstr(text, " integer-dot ")},
               *in_prompt[] = {strstr(prompt, " float32 "), strstr(prompt, " integer-dot ")};
    for (int i = 0; i < 2; i++) {
        assert_true(in_text[i] && in_text[i] < prompt);
        assert_non_null(in_prompt[i]);
    }
    assert_null(strstr(text, "wrong"));
    assert_true(vk_math_serves(d, d->matvec, 1));
    assert_true(vk_math_serves(d, d->matmul, 256));
    assert_int_equal(rq_vulkan_messages(device), 0);
    rq_backend_vulkan.close(device);
    assert_int_equal(rq_mem_alive(), alive);
}

/* The attention of prompts: the kernel of cooperative matrices with plain arithmetic in their place stands for itself. */
static void attention_is_measured(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    rq_status status =
        rq_backend_vulkan.open(&(rq_device_options){.implementation = "coopmat-emulated"}, &device, &err);
    if (status == RQ_ERR_UNSUPPORTED) skip();
    assert_int_equal(status, RQ_OK);
    vk_device *d = (vk_device *)device;
    char text[768];
    assert_int_equal(rq_vulkan_measure(device, 64, text, sizeof text, &err), RQ_OK);
    print_message("%s", text);
    const char *line = strstr(text, "attention");
    assert_non_null(line);
    assert_non_null(strstr(line, " float32 "));
    if (vk_attend_serves(d, VK_MATH_EMULATED)) assert_non_null(strstr(line, " coopmat-emulated "));
    assert_null(strstr(text, "wrong"));
    assert_int_equal(rq_vulkan_messages(device), 0);
    rq_backend_vulkan.close(device);
}

static void wrong_results_do_not_agree(void **state)
{
    float right[64], y[64];
    for (int i = 0; i < 64; i++) y[i] = right[i] = (float)(i - 20);
    assert_true(vk_agrees(y, right, 64, 1e-12));
    y[40] += 0.5f; /* 0.25 of 20 x 20 + 12 x 12 + ... */
    assert_true(vk_agrees(y, right, 64, 1e-4));
    assert_false(vk_agrees(y, right, 64, 1e-6));
    y[40] = NAN;
    assert_false(vk_agrees(y, right, 64, 1e6));
    memset(right, 0, sizeof right);
    assert_false(vk_agrees(right, right, 64, 1)); /* a kernel that writes nothing says nothing */
}

static void a_choice_is_kept(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    char folder[] = "/tmp/rqvk-measure-XXXXXX", path[200];
    assert_non_null(mkdtemp(folder));
    char *before = getenv("XDG_CACHE_HOME") ? rq_strdup(getenv("XDG_CACHE_HOME")) : NULL;
    setenv("XDG_CACHE_HOME", folder, 1);
    assert_int_equal(rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err), RQ_OK);
    vk_device *d = (vk_device *)device;
    vk_choice choice = {.used = 5}, kept = {.used = 5};
    assert_false(vk_choice_load(d, &choice));
    choice.matvec = VK_MATH_DOT;
    choice.matmul = VK_MATH_F16;
    assert_true(vk_choice_can_be_kept(d));
    vk_choice_save(d, &choice);
    assert_true(vk_choice_load(d, &kept));
    assert_memory_equal(&choice, &kept, sizeof kept);
    kept.used = 4; /* with other abilities the choice is another one */
    assert_false(vk_choice_load(d, &kept));
    snprintf(path, sizeof path, "%s/rqvk/vulkan-%08x-%08x.products", folder, d->properties.vendorID,
             d->properties.deviceID);
    assert_int_equal(truncate(path, 60), 0);
    kept.used = 5;
    assert_false(vk_choice_load(d, &kept));
    unlink(path);
    rq_backend_vulkan.close(device); /* it has made no kernel, and keeps none */
    if (before)
        setenv("XDG_CACHE_HOME", before, 1);
    else
        unsetenv("XDG_CACHE_HOME");
    rq_free(before);
    snprintf(path, sizeof path, "%s/rqvk", folder);
    rmdir(path);
    rmdir(folder);
}

int main(void)
{
    int absent = vulkan_absent();
    if (absent) return absent;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_is_measured), cmocka_unit_test(attention_is_measured),
        cmocka_unit_test(wrong_results_do_not_agree), cmocka_unit_test(a_choice_is_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
