/* cmocka.h - the few names of cmocka that test_matmul.c uses, for the cross-compiled build that runs under
 * qemu-aarch64, where there is no cmocka. Stops at the first failure. */
#ifndef RQ_PLAIN_CMOCKA_H
#define RQ_PLAIN_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(f)                                                                                  \
    {                                                                                                        \
#f, f                                                                                                \
    }
#define print_message(...)           printf(__VA_ARGS__)
#define fail_msg(...)                (printf(__VA_ARGS__), printf(" (%s:%d)\n", __FILE__, __LINE__), exit(1))
#define assert_true(c)               ((c) ? (void)0 : (void)fail_msg("%s", #c))
#define assert_null(p)               assert_true(!(p))
#define assert_non_null(p)           assert_true((p) != NULL)
#define assert_int_equal(a, b)       assert_true((long long)(a) == (long long)(b))
#define assert_string_equal(a, b)    assert_true(strcmp(a, b) == 0)
#define assert_memory_equal(a, b, n) assert_true(memcmp(a, b, n) == 0)

#define cmocka_run_group_tests(tests, setup, teardown) rq_run_plain(tests, sizeof(tests) / sizeof((tests)[0]))

static inline int rq_run_plain(const struct CMUnitTest *tests, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        tests[i].run(NULL);
        printf("ok %s\n", tests[i].name);
    }
    return 0;
}

#endif
