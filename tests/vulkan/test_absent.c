/* What a user is told where Vulkan is missing, and what "auto" does then. The test's environment hides the driver or
 * the loader, or puts an old one in front (CMakeLists.txt).
 *
 *   test_absent driver|loader|old */
#include "engine/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char *what;

static void collect(void *user, const char *line)
{
    char *log = user;
    strncat(log, line, 3000 - strlen(log));
}

static void it_is_said(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    rq_status status = rq_engine_device(&(rq_engine_params){.backend = "vulkan"}, &device, &err);
    assert_int_equal(status, RQ_ERR_DEVICE);
    assert_null(device);
    printf("%s\n", err.text);
    const char *expected = strcmp(what, "driver") == 0   ? "there is no Vulkan driver on this machine"
                           : strcmp(what, "loader") == 0 ? "libvulkan.so.1 was not found"
                                                         : "older than 1.2";
    assert_non_null(strstr(err.text, expected));
    assert_non_null(strstr(err.text, "--backend cpu"));
}

static void auto_takes_the_processor(void **state)
{
    rq_error err = {0};
    rq_device *device = NULL;
    char log[4000] = "";
    assert_int_equal(
        rq_engine_device(&(rq_engine_params){.log = collect, .log_user = log, .n_threads = 1}, &device, &err),
        RQ_OK);
    assert_string_equal(device->backend->name, "cpu");
    device->backend->close(device);
    printf("%s\n", log);
    assert_non_null(strstr(log, "not vulkan: "));
}

int main(int argc, char **argv)
{
    what = argc > 1 ? argv[1] : "driver";
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_is_said),
                                       cmocka_unit_test(auto_takes_the_processor)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
