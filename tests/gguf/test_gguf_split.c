/* Models that come in several files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "tests/gguf/fixture.h"

typedef struct part {
    int64_t no, count, tensors; /* -1: key absent */
    const char *names[3];       /* of its tensors */
    uint32_t alignment;         /* 0: no key */
} part;

static const part good[3] = {
    {0, 3, 3, {0}, 64}, /* no tensors in the first, and an alignment that only holds there */
    {1, 3, 3, {"a", "b"}, 0},
    {2, 3, 3, {"c"}, 128},
};

static void write_part(const char *path, const part *p)
{
    fixture f;
    uint64_t n = 0, n_kv = 1 + (p->alignment != 0);
    while (n < 3 && p->names[n]) n++;
    n_kv += (p->no >= 0) + (p->count >= 0) + (p->tensors >= 0);
    uint32_t alignment = p->alignment ? p->alignment : 32;
    fx_start(&f, 3, n, n_kv);
    fx_kv_u32(&f, "marker", (uint32_t)p->no);
    if (p->alignment) fx_kv_u32(&f, "general.alignment", alignment);
    if (p->no >= 0) fx_key(&f, "split.no", RQ_GGUF_U16), fx_int(&f, (uint64_t)p->no, 2);
    if (p->count >= 0) fx_key(&f, "split.count", RQ_GGUF_U16), fx_int(&f, (uint64_t)p->count, 2);
    if (p->tensors >= 0) fx_key(&f, "split.tensors.count", RQ_GGUF_I32), fx_int(&f, (uint64_t)p->tensors, 4);
    for (uint64_t i = 0; i < n; i++)
        fx_tensor(&f, p->names[i], 1, (uint64_t[]){8}, RQ_TYPE_I8, i * alignment);
    if (n) fx_pad(&f, alignment);
    for (uint64_t i = 0; i < n; i++) {
        fx_bytes(&f, p->names[i], 1), fx_zeros(&f, 7);
        fx_pad(&f, alignment);
    }
    fx_write_file(path, f.b.data, f.b.len);
    fx_free(&f);
}

static const char *part_path(unsigned no, unsigned of)
{
    char name[64];
    snprintf(name, sizeof name, "set-%05u-of-%05u.gguf", no, of);
    return fx_path(name);
}

static void write_set(const part *parts)
{
    for (unsigned i = 0; i < 3; i++) write_part(part_path(i + 1, 3), &parts[i]);
}

static void a_set_is_one_model(void **state)
{
    rq_gguf *g = NULL;
    rq_error err;
    write_set(good);
    assert_int_equal(rq_gguf_open(part_path(1, 3), &g, &err), RQ_OK);
    assert_int_equal(rq_gguf_n_shards(g), 3);
    assert_int_equal(rq_gguf_n_tensors(g), 3);
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        const rq_gguf_tensor *t = rq_gguf_find_tensor(g, names[i]);
        assert_ptr_equal(t, rq_gguf_tensor_at(g, (uint64_t)i));
        assert_int_equal(t->data[0], names[i][0]);
        assert_int_equal(t->shard, i < 2 ? 1 : 2);
    }
    uint32_t marker = 9; /* metadata is that of the first part alone */
    assert_int_equal(rq_gguf_get_u32(g, "marker", 0, 9, &marker, &err), RQ_OK);
    assert_int_equal(marker, 0);
    rq_gguf_close(g);
}

static void one_of_one_is_not_split(void **state)
{
    rq_gguf *g = NULL;
    rq_error err;
    const char *path = fx_path("any-name.gguf");
    write_part(path, &(part){.no = 0, .count = 1, .tensors = 1, .names = {"a"}});
    assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
    assert_int_equal(rq_gguf_n_shards(g), 1);
    rq_gguf_close(g);
}

static void refuse(const char *path, rq_status status, const char *first, const char *second)
{
    rq_gguf *g = NULL;
    rq_error err = {0};
    int64_t alive = rq_mem_alive();
    rq_status got = rq_gguf_open(path, &g, &err);
    if (got != status || !strstr(err.text, first) || !strstr(err.text, second))
        fail_msg("wanted %s with '%s' and '%s', got %s: %s", rq_status_name(status), first, second,
                 rq_status_name(got), err.text);
    assert_null(g);
    assert_int_equal(rq_mem_alive(), alive);
}

static void broken_sets_are_refused(void **state)
{
    part p[3];
#define FRESH()                   memcpy(p, good, sizeof p)
#define REFUSE_SET(first, second) write_set(p), refuse(part_path(1, 3), RQ_ERR_FORMAT, first, second)
    FRESH(), p[1].no = 2, REFUSE_SET("00002-of-00003", "split.no is 2");
    FRESH(), p[1].no = -1, REFUSE_SET("00002-of-00003", "split.no");
    FRESH(), p[2].count = 4, REFUSE_SET("00003-of-00003", "split.count is 4");
    FRESH(), p[2].count = -1, REFUSE_SET("00003-of-00003", "split.count");
    FRESH(), p[2].tensors = 4, REFUSE_SET("00003-of-00003", "split.tensors.count is 4");
    FRESH(), p[2].names[0] = "a", REFUSE_SET("00003-of-00003", "same name");
    FRESH(), p[2].names[1] = "d", REFUSE_SET("split.tensors.count is 3", "4 tensors");
    FRESH(), p[1].names[1] = NULL, REFUSE_SET("split.tensors.count is 3", "2 tensors");
    FRESH(), p[0].no = -1, REFUSE_SET("00001-of-00003", "split.no is missing");
    FRESH(), p[0].count = 2, REFUSE_SET("00001-of-00003", "-00001-of-00002.gguf");
    FRESH();
    write_set(p);
    unlink(part_path(2, 3));
    refuse(part_path(1, 3), RQ_ERR_IO, "set-00002-of-00003.gguf", "No such file");
    write_set(p);
    fx_write_file(part_path(3, 3), "GGUF", 4);
    refuse(part_path(1, 3), RQ_ERR_FORMAT, "set-00003-of-00003.gguf", "version");
}

static void a_later_part_names_the_first(void **state)
{
    write_set(good);
    refuse(part_path(2, 3), RQ_ERR_ARGUMENT, "part 2 of 3", "set-00001-of-00003.gguf");
    const char *renamed = fx_path("renamed.gguf");
    write_part(renamed, &good[1]);
    refuse(renamed, RQ_ERR_ARGUMENT, "part 2 of 3", "-00001-of-00003.gguf");
    write_part(renamed, &good[0]);
    refuse(renamed, RQ_ERR_FORMAT, "part 1 of 3", "-00001-of-00003.gguf");
}

static void absurd_counts_and_memory(void **state)
{
    const char *path = fx_path("big-00001-of-65535.gguf");
    write_part(path, &(part){.no = 0, .count = 65535, .tensors = 1, .names = {"a"}});
    refuse(path, RQ_ERR_UNSUPPORTED, "split.count", "65535");
    fixture f;
    fx_start(&f, 3, 0, 2);
    fx_key(&f, "split.no", RQ_GGUF_U16), fx_int(&f, 0, 2);
    fx_key(&f, "split.count", RQ_GGUF_U16), fx_int(&f, 2, 2);
    opened o = fx_open(&f);
    assert_int_equal(o.status, RQ_ERR_UNSUPPORTED);
    fx_close(&o);
    fx_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_set_is_one_model),       cmocka_unit_test(one_of_one_is_not_split),
        cmocka_unit_test(broken_sets_are_refused),  cmocka_unit_test(a_later_part_names_the_first),
        cmocka_unit_test(absurd_counts_and_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
