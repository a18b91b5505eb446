/* Dividing an answer into thoughts and what is said (tools/common/answer.h), wherever it is cut. The expected divisions
 * are those of the templates of Qwen 3, Qwen 3.5 and Gemma 4, which put thoughts between the same marks. */
#include "backends/base/mem.h"
#include "tools/common/answer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const rq_thought_marks closed = {.open = "<think>", .close = "</think>", .label = ""};
static const rq_thought_marks opened = {.open = "<think>", .close = "</think>", .label = "", .opened = true};
static const rq_thought_marks channel = {
    .open = "<|channel>", .close = "<channel|>", .label = "thought", .anywhere = true};
static const rq_thought_marks none = {0};

static const struct {
    const rq_thought_marks *marks;
    const char *text, *thoughts, *said;
} cases[] = {
    {&closed, "Hello.", "", "Hello."},
    {&closed, "", "", ""},
    {&closed, " \n\tHello ", "", " \n\tHello "},
    {&closed, "<think>\nhm\n</think>\n\nHello.\n", "hm", "Hello.\n"},
    {&closed, "\n <think>hm</think>Hello", "hm", "Hello"},
    {&closed, "<think>\n\n</think>\n\nHello", "", "Hello"},
    {&closed, "<think>\n\n a\n\n b\n\n</think>x", " a\n\n b", "x"},
    {&closed, "<think>never ends\n", "never ends", ""},
    {&closed, "<think>ends </thin", "ends </thin", ""},
    {&closed, "<think>a<<</<</think>b", "a<<</<", "b"},
    {&closed, "<thin", "", "<thin"},
    {&closed, "<thinks>", "", "<thinks>"},
    {&closed, "  <thi nk>", "", "  <thi nk>"},
    {&closed, "<<think>no", "", "<<think>no"},
    {&closed, "It is <think>no</think>", "", "It is <think>no</think>"},
    {&closed, "<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"},
    {&closed, "</think>x", "", "</think>x"},
    {&closed, "                                        <think>a</think>b", "",
     "                                        <think>a</think>b"}, /* too much white space to be a start */
    {&opened, "hm\n</think>\n\nHello.", "hm", "Hello."},
    {&opened, "\n\n</think>\n\n\n Hello.", "", " Hello."},
    {&opened, "hm", "hm", ""},
    {&opened, "", "", ""},
    {&opened, "<think>a</think>b", "<think>a", "b"},
    {&channel, "<|channel>thought\nhm\n<channel|>Hello.", "hm", "Hello."},
    {&channel, "<|channel>thought\n<channel|>Hello.", "", "Hello."},
    {&channel, "<|channel>thoughts\n<channel|>Hello.", "s", "Hello."},
    {&channel, "<|channel>though<channel|>Hello.", "though", "Hello."},
    {&channel, "<|channel>though", "though", ""},
    {&channel, "a<|channel>thought\nb<channel|>c<|channel>d<channel|>\ne", "bd", "ac\ne"},
    {&channel, "<|chan<|channel>x<chan<channel|>y", "x<chan", "<|chany"},
    {&none, "<think>\nhm\n</think>\n\n", "", "<think>\nhm\n</think>\n\n"},
    {&closed, "<think>\xC3\xA9\xE6\x97\xA5</think>\xF0\x9F\x98\x80", "\xC3\xA9\xE6\x97\xA5",
     "\xF0\x9F\x98\x80"},
};

typedef struct parts {
    rq_buf thoughts, said;
} parts;

static void keep(void *user, bool thought, const char *text, size_t bytes)
{
    parts *p = user;
    assert_true(bytes > 0);
    rq_buf_append(thought ? &p->thoughts : &p->said, text, bytes);
}

/* Divides text cut at the given places (ascending, the last one its end). */
static void divide(const rq_thought_marks *marks, const char *text, const size_t *cuts, size_t n, parts *out)
{
    rq_answer a;
    *out = (parts){.thoughts = {.max = 1 << 20}, .said = {.max = 1 << 20}};
    rq_answer_start(&a, *marks);
    for (size_t i = 0, at = 0; i < n; at = cuts[i++])
        assert_true(rq_answer_add(&a, text + at, cuts[i] - at, keep, out));
    assert_true(rq_answer_end(&a, keep, out));
    rq_answer_free(&a);
}

static void release(parts *p)
{
    rq_buf_free(&p->thoughts);
    rq_buf_free(&p->said);
}

static void check(size_t k, const size_t *cuts, size_t n)
{
    parts p;
    divide(cases[k].marks, cases[k].text, cuts, n, &p);
    const char *thoughts = p.thoughts.data ? p.thoughts.data : "", *said = p.said.data ? p.said.data : "";
    if (strcmp(thoughts, cases[k].thoughts) != 0 || strcmp(said, cases[k].said) != 0)
        fail_msg("'%s' cut at %zu: thoughts '%s', said '%s'", cases[k].text, cuts[0], thoughts, said);
    release(&p);
}

static void test_wherever_it_is_cut(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        size_t end = strlen(cases[k].text), all[128];
        for (size_t i = 0; i <= end; i++) all[i] = i;
        check(k, all, end + 1); /* byte by byte */
        for (size_t i = 0; i <= end; i++)
            for (size_t j = i; j <= end; j++) check(k, (size_t[]){i, j, end}, 3);
    }
}

/* What a mark is must not depend on what stands before it: random texts of the bytes marks consist of, byte by byte and
 * whole, against a search in the whole text. */
static void test_random_texts(void **state)
{
    (void)state;
    uint32_t x = 7;
    size_t n_thoughts = 0;
    for (int round = 0; round < 20000; round++) {
        static const char *const pieces[] = {"<", "/", "think>", "</think>", "a", "\n", "<th", "</th"};
        char text[256] = "";
        size_t cuts[256];
        for (int i = 0; i < 12; i++) {
            x = x * 1664525u + 1013904223u;
            const char *piece = pieces[(x >> 20) % 8];
            memcpy(text + strlen(text), piece, strlen(piece) + 1);
        }
        size_t end = strlen(text);
        for (size_t i = 0; i <= end; i++) cuts[i] = i;
        parts p;
        divide(&opened, text, cuts, end + 1, &p);
        const char *close = strstr(text, "</think>");
        size_t first = 0, last = close ? (size_t)(close - text) : end;
        while (first < last && text[first] == '\n') first++;
        while (last > first && text[last - 1] == '\n') last--;
        const char *said = close ? close + strlen("</think>") : text + end;
        said += strspn(said, "\n");
        assert_int_equal(p.thoughts.len, last - first);
        if (last > first) assert_memory_equal(p.thoughts.data, text + first, last - first);
        assert_string_equal(p.said.data ? p.said.data : "", said);
        n_thoughts += p.thoughts.len > 0 && p.said.len > 0;
        release(&p);
    }
    assert_true(n_thoughts > 1000);
}

/* Where the answer stands, as a counter of thoughts asks for it. */
static void test_place(void **state)
{
    (void)state;
    rq_answer a;
    rq_answer_start(&a, closed);
    assert_true(rq_answer_add(&a, "<think", 6, NULL, NULL) && !rq_answer_thinks(&a) && a.n_mark == 6);
    assert_true(rq_answer_add(&a, ">a", 2, NULL, NULL) && rq_answer_thinks(&a));
    assert_true(rq_answer_add(&a, "</think>", 8, NULL, NULL) && !rq_answer_thinks(&a));
    assert_null(a.out.data);
    rq_answer_free(&a);
}

static void test_no_memory(void **state)
{
    (void)state;
    int64_t alive = rq_mem_alive();
    rq_answer a;
    char text[5000];
    memset(text, 'x', sizeof text);
    bool failed = false, done = false;
    for (uint64_t n = 1; !done; n++) {
        parts p = {.thoughts = {.max = 1 << 20}, .said = {.max = 1 << 20}};
        rq_answer_start(&a, opened);
        rq_mem_fail_at(n);
        bool ok = rq_answer_add(&a, text, sizeof text, keep, &p) && rq_answer_end(&a, keep, &p);
        done = rq_mem_count() < n;
        rq_mem_fail_at(0);
        failed = failed || !ok;
        if (done) assert_true(ok && p.thoughts.len == sizeof text);
        release(&p);
        rq_answer_free(&a);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(failed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wherever_it_is_cut),
        cmocka_unit_test(test_random_texts),
        cmocka_unit_test(test_place),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
