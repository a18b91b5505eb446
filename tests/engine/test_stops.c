/* Stop strings against the definition: look at the whole text after every byte. */
#include "backends/base/mem.h"
#include "engine/text/stops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static uint64_t random_state = 3;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* Where the text ends: at the first byte where some stop string is complete, before the longest of them.
 * *seen is the number of bytes needed to know. */
static size_t plain_end(const char *text, size_t n, const char *const *stop, size_t n_stop, size_t *seen)
{
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_stop; i++) {
            size_t len = strlen(stop[i]);
            if (len <= end && memcmp(text + end - len, stop[i], len) == 0 && len > longest) longest = len;
        }
        *seen = end;
        if (longest > 0) return end - longest;
    }
    return SIZE_MAX;
}

/* How much of n bytes without a stop string may be given out: all but the longest end that begins one. */
static size_t plain_safe(const char *text, size_t n, const char *const *stop, size_t n_stop)
{
    size_t hold = 0;
    for (size_t i = 0; i < n_stop; i++)
        for (size_t len = strlen(stop[i]) - 1; len > hold; len--)
            if (len <= n && memcmp(text + n - len, stop[i], len) == 0) hold = len;
    return n - hold;
}

static void test_against_definition(void **state)
{
    size_t found = 0, held = 0;
    for (int round = 0; round < 20000; round++) {
        char text[65], stops[4][9];
        const char *stop[4];
        size_t n = below(65), n_stop = below(5);
        uint32_t letters = 1 + below(3);
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + below(letters));
        for (size_t i = 0; i < n_stop; i++) {
            size_t len = 1 + below(8);
            for (size_t j = 0; j < len; j++) stops[i][j] = (char)('a' + below(letters + (round & 1)));
            stops[i][len] = 0;
            stop[i] = stops[i];
        }
        rq_stops st;
        assert_int_equal(rq_stops_init(&st, stop, n_stop, NULL), RQ_OK);
        rq_buf out = {.max = 1000};
        size_t seen = 0, end = plain_end(text, n, stop, n_stop, &seen), at = 0;
        bool stopped = false;
        while (at < n && !stopped) {
            size_t piece = 1 + below(7);
            if (piece > n - at) piece = n - at;
            stopped = rq_stops_add(&st, text + at, piece, &out);
            at += piece;
            if (!stopped) {
                assert_int_equal(out.len, plain_safe(text, at, stop, n_stop));
                held += out.len < at;
            }
        }
        assert_int_equal(stopped, end != SIZE_MAX);
        if (stopped) {
            found++;
            assert_true(at >= seen);
            assert_true(rq_stops_add(&st, "zzz", 3, &out)); /* ignored */
        }
        rq_stops_flush(&st, &out);
        assert_int_equal(out.len, stopped ? end : n);
        if (out.len > 0) assert_memory_equal(out.data, text, out.len);
        rq_buf_free(&out);
    }
    assert_true(found > 3000 && held > 3000);
}

static void test_whole_characters(void **state)
{
    /* the first byte of the stop string is the first byte of other characters too */
    const char *stop[] = {"\xc3\xa9nd"}; /* "énd" */
    rq_stops st;
    assert_int_equal(rq_stops_init(&st, stop, 1, NULL), RQ_OK);
    rq_buf out = {.max = 100};
    assert_false(rq_stops_add(&st, "a\xc3\xa8", 3, &out));
    assert_string_equal(out.data, "a\xc3\xa8");
    assert_false(rq_stops_add(&st, "\xc3\xa9n", 3, &out));
    assert_string_equal(out.data, "a\xc3\xa8");
    assert_false(rq_stops_add(&st, "x", 1, &out));
    assert_string_equal(out.data, "a\xc3\xa8\xc3\xa9nx");
    assert_true(rq_stops_add(&st, "\xc3\xa9nd", 4, &out));
    assert_string_equal(out.data, "a\xc3\xa8\xc3\xa9nx");
    rq_buf_free(&out);
}

static void test_bad_strings(void **state)
{
    rq_stops st;
    char longest[RQ_MAX_STOP_BYTES + 2];
    memset(longest, 'x', sizeof longest);
    longest[RQ_MAX_STOP_BYTES] = 0;
    const char *ok[] = {longest};
    assert_int_equal(rq_stops_init(&st, ok, 1, NULL), RQ_OK);
    longest[RQ_MAX_STOP_BYTES] = 'x';
    longest[RQ_MAX_STOP_BYTES + 1] = 0;
    static const char *const bad[] = {"",
                                      "\x80",
                                      "a\xc3",
                                      "\xc0\x80",
                                      "\xed\xa0\x80",
                                      "\xe0\x9f",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xe2\x82"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        rq_error err = {0};
        assert_int_equal(rq_stops_init(&st, &bad[i], 1, &err), RQ_ERR_ARGUMENT);
        assert_true(err.text[0] != 0);
    }
    const char *too_long[] = {longest}, *null[] = {NULL};
    assert_int_equal(rq_stops_init(&st, too_long, 1, NULL), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_stops_init(&st, null, 1, NULL), RQ_ERR_ARGUMENT);
    const char *many[RQ_MAX_STOPS + 1];
    for (size_t i = 0; i <= RQ_MAX_STOPS; i++) many[i] = "s";
    assert_int_equal(rq_stops_init(&st, many, RQ_MAX_STOPS, NULL), RQ_OK);
    assert_int_equal(rq_stops_init(&st, many, RQ_MAX_STOPS + 1, NULL), RQ_ERR_ARGUMENT);
}

/* The worst case of naive matching: 4 MB of "a" against sixteen "aaa...ab". Naively that is 1.7e10 comparisons;
 * the time limit is that of the test program. */
static void test_linear_time(void **state)
{
    char text[RQ_MAX_STOPS][RQ_MAX_STOP_BYTES + 1];
    const char *stop[RQ_MAX_STOPS];
    for (int i = 0; i < RQ_MAX_STOPS; i++) {
        memset(text[i], 'a', RQ_MAX_STOP_BYTES);
        text[i][RQ_MAX_STOP_BYTES - 1 - i] = 'b';
        text[i][RQ_MAX_STOP_BYTES - i] = 0;
        stop[i] = text[i];
    }
    rq_stops st;
    assert_int_equal(rq_stops_init(&st, stop, RQ_MAX_STOPS, NULL), RQ_OK);
    char piece[4096];
    memset(piece, 'a', sizeof piece);
    rq_buf out = {.max = 1 << 23};
    for (int i = 0; i < 1024; i++) assert_false(rq_stops_add(&st, piece, sizeof piece, &out));
    rq_stops_flush(&st, &out);
    assert_int_equal(out.len, 1024 * sizeof piece);
    rq_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_whole_characters),
        cmocka_unit_test(test_bad_strings),
        cmocka_unit_test(test_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
