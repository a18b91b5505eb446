/* What rqvk-cli lets through to a terminal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tools/cli/terminal.h"

#include <string.h>

static void check(const char *text, size_t bytes, const char *expected)
{
    rq_buf out = {.max = 4096};
    rq_visible_text(&out, text, bytes);
    assert_false(out.failed);
    assert_string_equal(out.data ? out.data : "", expected);
    rq_buf_free(&out);
}

static void test_visible(void **state)
{
    (void)state;
    check("", 0, "");
    check("a\tb\nc", 5, "a\tb\nc");
    check("\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80", 9, "\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80");
    check("\x1b]0;x\x07", 6, "\xE2\x90\x9B]0;x\xE2\x90\x87"); /* U+241B, U+2407 */
    check("\r\x7f\0", 3, "\xE2\x90\x8D\xE2\x90\xA1\xE2\x90\x80");
    check("\xC2\x9B[2J", 5, "\xEF\xBF\xBD[2J"); /* CSI as one character */
    check("\x9B", 1, "\xEF\xBF\xBD");           /* and as one byte */
    check("\xE2\x80\xAE", 3, "\xEF\xBF\xBD");   /* right-to-left override */
    check("\xE2\x81\xA6x", 4, "\xEF\xBF\xBDx"); /* isolate */
    check("\xC3", 1, "\xEF\xBF\xBD");
    check("\xED\xA0\x80", 3, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

/* No byte sequence of two produces a control character. */
static void test_no_controls(void **state)
{
    (void)state;
    for (int a = 0; a < 256; a++) {
        for (int b = 0; b < 256; b++) {
            const char text[2] = {(char)a, (char)b};
            rq_buf out = {.max = 64};
            rq_visible_text(&out, text, 2);
            for (size_t i = 0; i < out.len; i++) {
                unsigned char c = (unsigned char)out.data[i];
                assert_true((c >= 0x20 && c != 0x7F) || c == '\n' || c == '\t');
                assert_false(c == 0xC2 && (unsigned char)out.data[i + 1] < 0xA0);
            }
            rq_buf_free(&out);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_visible), cmocka_unit_test(test_no_controls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
