/* Builders: shapes and types are checked, the first failure sticks and is said; ranges and costs of operations. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/tape.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* Operands to build wrong things from, in a tape of 4 tokens. */
typedef struct parts {
    rq_tape t;
    rq_ref w, wq, row, x, y, heads, ids, cache, hidden, sampled, freq;
} parts;

static void open_parts(parts *p)
{
    rq_tape_init(&p->t, 4);
    p->w = rq_tape_weight(&p->t, 0, RQ_TYPE_F32, (uint32_t[4]){64, 32, 1, 1}, "w");
    p->wq = rq_tape_weight(&p->t, 1, RQ_TYPE_Q4_0, (uint32_t[4]){64, 32, 8, 1}, "wq");
    p->row = rq_tape_weight(&p->t, 2, RQ_TYPE_F32, (uint32_t[4]){64, 1, 1, 1}, "row");
    p->freq = rq_tape_weight(&p->t, 3, RQ_TYPE_F32, (uint32_t[4]){8, 1, 1, 1}, "freq");
    p->x = rq_tape_act(&p->t, RQ_TYPE_F32, 64, 4, 1, 1);
    p->y = rq_tape_act(&p->t, RQ_TYPE_F32, 32, 4, 1, 1);
    p->heads = rq_tape_act(&p->t, RQ_TYPE_F32, 16, 4, 4, 1);
    p->ids = rq_tape_act(&p->t, RQ_TYPE_I32, 2, 4, 1, 1);
    p->cache = rq_tape_cache(&p->t, 0, 0);
    p->hidden = rq_tape_persist(&p->t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, 64, 16);
    p->sampled = rq_tape_persist(&p->t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, 16);
    assert_int_equal(rq_tape_check(&p->t, NULL), RQ_OK);
}

static rq_ref rotate(parts *p, rq_ref x, rq_ref data, rq_rotation_block block)
{
    return rq_op_rotate(&p->t, x, data, 0, 0, &block, 1, false);
}

static rq_ref weight(rq_tape *t, uint32_t ne0, uint32_t ne1)
{
    return rq_tape_weight(t, 8, RQ_TYPE_F32, (uint32_t[4]){ne0, ne1, 1, 1}, "table");
}

/* Builds wrong thing number k; false when there is none. `says` is part of the sentence. */
static bool wrong(parts *p, uint32_t k, const char **says)
{
    rq_tape *t = &p->t;
    rq_ref a, b;
    *says = "";
#define WRONG(n, text, call)                                                                                 \
    case n:                                                                                                  \
        *says = text;                                                                                        \
        (void)(call);                                                                                        \
        return true
#define WRONG_VOID(n, text, call)                                                                            \
    case n:                                                                                                  \
        *says = text;                                                                                        \
        call;                                                                                                \
        return true
    switch (k) {
        WRONG(0, "w F32 [64, 32, 1] does not go with F32 [32, 4, 1]", rq_op_matmul(t, p->w, p->y));
        WRONG(1, "first operand must be a weight", rq_op_matmul(t, p->x, p->x));
        WRONG(2, "x is missing", rq_op_matmul(t, p->w, 0));
        WRONG(3, "does not go with", rq_op_matmul(t, p->wq, p->x)); /* three extents */
        WRONG(4, "does not go with", rq_op_add(t, p->x, p->y));
        WRONG(5, "must be f32", rq_op_add(t, p->ids, p->ids));
        WRONG(6, "does not go with", rq_op_rms_norm(t, p->y, p->row, 1e-6f));
        WRONG(7, "eps", rq_op_rms_norm(t, p->x, p->row, -1.0f));
        WRONG(8, "finite", rq_op_scale(t, p->x, 1.0f / 0.0f));
        WRONG(9, "does not go with", rq_op_glu(t, p->x, p->y, RQ_ACT_SILU));
        WRONG(10, "rotated", rq_op_rope(t, p->heads, p->freq, 18, RQ_ROPE_NORM, 1));
        WRONG(11, "rotated", rq_op_rope(t, p->heads, p->freq, 7, RQ_ROPE_NORM, 1));
        WRONG(12, "does not go with", rq_op_rope(t, p->heads, p->freq, 8, RQ_ROPE_NORM, 1));
        WRONG(13, "does not go with", rq_op_rope(t, p->x, p->freq, 16, RQ_ROPE_NORM, 1));
        WRONG_VOID(14, "cache", rq_op_kv_write(t, p->x, p->heads, p->heads));
        WRONG_VOID(15, "does not go with", rq_op_kv_write(t, p->cache, p->heads, p->x));
        WRONG(16, "cache", rq_op_attend(t, p->w, p->heads, 16, 1, 0));
        WRONG(17, "attention", rq_op_attend(t, p->cache, p->x, 16, 1, 0));
        WRONG(18, "makes no sense", rq_op_attend(t, p->cache, p->heads, 16, 1, -1));
        WRONG_VOID(19, "65 experts", rq_op_route(t, p->x, 65, 1, &a, &b));
        WRONG_VOID(20, "missing", rq_op_route(t, 0, 1, 1, &a, &b));
        WRONG(21, "choices", rq_op_group(t, p->ids, 1));
        WRONG(22, "i32", rq_op_group(t, p->x, 8));
        WRONG(23, "does not go with",
              rq_op_matmul_experts(t, p->wq, p->x, p->ids, rq_op_group(t, p->ids, 7))); /* 8 experts */
        WRONG(24, "does not go with",
              rq_op_matmul_experts(t, p->wq, p->y, p->ids, rq_op_group(t, p->ids, 8)));
        WRONG(25, "does not go with", rq_op_combine(t, p->heads, p->y));
        WRONG_VOID(26, "does not go with", rq_op_copy(t, p->y, p->hidden));
        WRONG_VOID(27, "persist", rq_op_copy(t, p->x, p->y));
        WRONG(28, "rows must be f32", rq_op_select_rows(t, p->sampled));
        WRONG_VOID(29, "does not go with", rq_op_argmax(t, p->x, p->hidden));
        WRONG(30, "type", rq_op_embed(t, rq_tape_weight(t, 9, RQ_TYPE_I32, (uint32_t[4]){8, 8, 1, 1}, "i")));
        WRONG(31, "blocks", rq_tape_view(t, p->wq, 16, 32, 1, 64, 1, 64));
        WRONG(32, "leaves its memory", rq_tape_view(t, p->x, 1, 64, 4, 64, 1, 256));
        WRONG(33, "leaves its memory", rq_tape_view(t, p->x, UINT64_MAX - 3, 64, 4, 64, 1, 256));
        WRONG(34, "leaves its memory", rq_tape_view(t, p->x, 0, 64, 4, UINT64_MAX / 4, 1, 0));
        WRONG(35, "view", rq_tape_view(t, p->cache, 0, 1, 1, 1, 1, 1));
        WRONG(36, "impossible shape", rq_tape_weight(t, 9, RQ_TYPE_Q4_K, (uint32_t[4]){100, 1, 1, 1}, "q"));
        WRONG(37, "impossible shape", rq_tape_weight(t, 9, (rq_type)200, (uint32_t[4]){100, 1, 1, 1}, "q"));
        WRONG(38, "shape", rq_tape_act(t, RQ_TYPE_F32, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX));
        WRONG(39, "shape", rq_tape_act(t, RQ_TYPE_F32, 8, 0, 1, 1));
        WRONG(40, "cache group", rq_tape_cache(t, RQ_MAX_GROUPS, 0));
        WRONG(41, "missing", rq_op_add(t, p->x, 12345));
        WRONG(42, "cover", rotate(p, p->heads, p->row, (rq_rotation_block){0, 3, 4, false})); /* 12 of 16 */
        WRONG(43, "cover", rotate(p, p->heads, p->row, (rq_rotation_block){0, 5, 4, false})); /* 20 of 16 */
        WRONG(44, "cover", rotate(p, p->heads, p->row, (rq_rotation_block){4, 3, 4, false})); /* from 4 on */
        WRONG(45, "cover",
              rotate(p, p->heads, p->row, (rq_rotation_block){0, 16, 0, false}));         /* of nothing */
        WRONG(46, "cover", rotate(p, p->y, p->row, (rq_rotation_block){0, 8, 4, false})); /* no heads */
        WRONG(47, "go together", rotate(p, p->heads, 0, (rq_rotation_block){0, 4, 4, false}));
        WRONG(48, "go together", rq_op_rotate(t, p->heads, p->row, 0, 0, NULL, 0, false));
        WRONG(49, "does not go with", rotate(p, p->heads, p->row, (rq_rotation_block){0, 8, 2, false}));
        WRONG(50, "does not go with", rotate(p, p->heads, p->x, (rq_rotation_block){0, 4, 4, false}));
        WRONG(51, "does not go with", rq_op_rotate(t, p->heads, 0, p->row, 0, NULL, 0, false));
        WRONG(52, "must be f32", rq_op_rotate(t, p->heads, 0, 0, p->wq, NULL, 0, false));
        WRONG(53, "cover",
              rotate(p, rq_tape_act(t, RQ_TYPE_F32, 12, 4, 4, 1), p->row,
                     (rq_rotation_block){0, 1, 12, true})); /* no power of two */
        WRONG_VOID(54, "cache", rq_op_kv_encode(t, p->x));
        WRONG(55, "does not go with", rq_op_attend_mean(t, p->cache, p->heads, p->row, 16, 1, 1));
        WRONG(56, "does not go with", /* three means for four heads */
              rq_op_attend_mean(t, p->cache, p->heads, weight(t, 16, 3), 16, 1, 1));
    default:
        return false;
    }
}

static void wrong_things_are_refused(void **state)
{
    for (uint32_t k = 0;; k++) {
        parts p;
        const char *says;
        open_parts(&p);
        p.t.layer = 7;
        bool any = wrong(&p, k, &says);
        if (any) {
            rq_error err = {0};
            assert_int_not_equal(rq_tape_check(&p.t, &err), RQ_OK);
            if (!strstr(err.text, says) || !strstr(err.text, "layer 7"))
                fail_msg("%u: \"%s\" lacks \"%s\"", k, err.text, says);
            uint32_t n_ops = p.t.n_ops, n_values = p.t.n_values;
            char first[512];
            memcpy(first, err.text, sizeof first);
            assert_int_equal(rq_op_add(&p.t, p.x, p.x), 0); /* nothing is appended any more */
            assert_int_equal(rq_op_matmul(&p.t, p.w, p.y), 0);
            assert_int_equal(p.t.n_ops, n_ops);
            assert_int_equal(p.t.n_values, n_values);
            rq_tape_check(&p.t, &err);
            assert_string_equal(err.text, first);
        } else
            assert_int_equal(k, 57);
        rq_tape_free(&p.t);
        if (!any) break;
    }
    rq_tape t;
    rq_tape_init(&t, 0);
    assert_int_not_equal(rq_tape_check(&t, NULL), RQ_OK);
    rq_tape_init(&t, 4096);
    assert_int_not_equal(rq_tape_check(&t, NULL), RQ_OK);
    rq_tape_free(&t);
}

static void views_lie_where_they_should(void **state)
{
    parts p;
    open_parts(&p);
    rq_ref v = rq_tape_view(&p.t, p.x, 16, 8, 3, 16, 4, 64); /* three pieces of 8 from each row */
    const rq_value *a = &p.t.values[v];
    assert_int_equal(a->index, p.x);
    assert_int_equal(a->offset, 64);
    assert_int_equal(a->stride[1], 64);
    assert_int_equal(a->stride[2], 256);
    assert_int_equal(rq_value_span(a), 3 * 256 + 2 * 64 + 32);
    rq_ref inner = rq_tape_view(&p.t, v, 4, 4, 4, 64, 1, 256); /* a view of a view starts at the view */
    assert_int_equal(p.t.values[inner].offset, 80);
    assert_int_equal(p.t.values[inner].index, p.x);
    rq_ref half =
        rq_tape_view(&p.t, p.wq, 64 * 16, 64, 16, 64, 8, 64 * 32); /* the upper rows of every expert */
    assert_int_equal(p.t.values[half].offset, 16 * 36);
    assert_int_equal(p.t.values[half].stride[1], 36);
    assert_int_equal(p.t.values[half].stride[2], 32 * 36);
    assert_int_equal(rq_tape_check(&p.t, NULL), RQ_OK);
    rq_tape_free(&p.t);
}

static void ranges_say_who_waits(void **state)
{
    parts p;
    open_parts(&p);
    rq_tape *t = &p.t;
    rq_ref left = rq_tape_view(t, p.x, 0, 64, 2, 64, 1, 128),
           right = rq_tape_view(t, p.x, 128, 64, 2, 64, 1, 128);
    rq_ref s = rq_op_scale(t, left, 2);
    rq_op_scale(t, right, 2);
    rq_op_mul(t, s, s);
    rq_op_kv_write(t, p.cache, p.heads, p.heads);
    rq_op_attend(t, p.cache, p.heads, 16, 1, 0);
    rq_op_attend(t, rq_tape_cache(t, 0, 1), p.heads, 16, 1, 0);
    rq_op_argmax(t, p.x, p.sampled);
    rq_op_embed(t, p.w);
    assert_int_equal(rq_tape_check(t, NULL), RQ_OK);
    const bool expected[8][8] = {{0},               /* scale, scale: halves of x, which nobody writes */
                                 {0}, {1, 0},       /* mul reads the first scale */
                                 {0}, {0, 0, 0, 1}, /* attend after kv_write */
                                 {0},               /* of another layer */
                                 {0}, {0, 0, 0, 0, 0, 0, 1}}; /* embed after arg-max */
    for (uint32_t j = 0; j < 8; j++)
        for (uint32_t i = 0; i < j; i++) {
            rq_range a[RQ_OP_MAX_RANGES], b[RQ_OP_MAX_RANGES];
            uint32_t n = rq_op_ranges(t, &t->ops[i], NULL, a), m = rq_op_ranges(t, &t->ops[j], NULL, b);
            assert_int_equal(rq_ranges_conflict(a, n, b, m), expected[j][i]);
        }
    rq_tape_free(t);
}

/* The orders of the compressed cache: written, encoded, read; layers apart, but in wide buckets they share scratch. */
static void ranges_of_the_cache(void **state)
{
    for (uint32_t bucket = 4; bucket <= 16; bucket *= 4) {
        rq_tape t;
        rq_tape_init(&t, bucket);
        rq_ref x = rq_tape_act(&t, RQ_TYPE_F32, 16, 4, bucket, 1),
               cache[2] = {rq_tape_cache(&t, 0, 0), rq_tape_cache(&t, 0, 1)};
        for (int l = 0; l < 2; l++) {
            rq_op_kv_write(&t, cache[l], x, x);
            rq_op_kv_encode(&t, cache[l]);
            rq_op_attend(&t, cache[l], x, 16, 1, 0);
        }
        assert_int_equal(rq_tape_check(&t, NULL), RQ_OK);
        bool wide = bucket > RQ_NARROW_BUCKET;
        for (uint32_t j = 0; j < 6; j++)
            for (uint32_t i = 0; i < j; i++) {
                rq_range a[RQ_OP_MAX_RANGES], b[RQ_OP_MAX_RANGES];
                uint32_t n = rq_op_ranges(&t, &t.ops[i], NULL, a), m = rq_op_ranges(&t, &t.ops[j], NULL, b);
                bool same_layer = i / 3 == j / 3, shared = wide && (i % 3 == 0 || j % 3 == 0);
                assert_int_equal(rq_ranges_conflict(a, n, b, m), same_layer || shared);
            }
        rq_tape_free(&t);
    }
}

/* Bytes and flops by hand. */
static void costs_are_counted(void **state)
{
    parts p;
    open_parts(&p);
    rq_tape *t = &p.t;
    rq_op_matmul(t, p.w, p.x);
    rq_ref group = rq_op_group(t, p.ids, 8);
    rq_op_matmul_experts(t, p.wq, p.x, p.ids, group);
    rq_op_attend(t, p.cache, p.heads, 16, 1, 0);
    rq_op_embed(t, p.w);
    rq_op_copy(t, p.x, p.hidden);
    rq_op_kv_encode(t, p.cache);
    rotate(&p, p.heads, p.row, (rq_rotation_block){0, 4, 4, false});
    assert_int_equal(rq_tape_check(t, NULL), RQ_OK);
    const rq_cache_group g = {
        .n_layers = 1, .n_heads = 2, .dim_k = 16, .dim_v = 16, .type_k = RQ_TYPE_F16, .type_v = RQ_TYPE_F16};
    rq_op_cost c = rq_op_cost_of(t, &t->ops[0], NULL, 0);
    assert_true(c.flops == 2.0 * 64 * 32 * 4);
    assert_true(c.bytes_read == (64 * 32 + 64 * 4) * 4 && c.bytes_written == 32 * 4 * 4);
    c = rq_op_cost_of(t, &t->ops[2], NULL, 0);
    double used = 1 - 0.75 * 0.75 * 0.75 * 0.75; /* an expert of 8 missed by four choices of 2 */
    uint32_t words = rq_group_layout_of(8, 2, 4).words;
    double read = used * 8 * 32 * 36 + 64 * 4 * 4 + 2 * 4 * 4 + 4.0 * words;
    assert_true(c.flops == 2.0 * 64 * 32 * 2 * 4);
    assert_true(c.bytes_read > read - 1e-6 && c.bytes_read < read + 1e-6);
    c = rq_op_cost_of(t, &t->ops[3], &g, 100);
    assert_true(c.flops == 2.0 * (16 + 16) * 4 * 4 * 100);
    assert_true(c.bytes_read == 2 * (16 + 16) * 2 * 100 + 16 * 4 * 4 * 4);
    const rq_cache_group coded = {.n_layers = 1,
                                  .n_heads = 2,
                                  .dim_k = 16,
                                  .dim_v = 16,
                                  .type_k = RQ_TYPE_F16,
                                  .type_v = RQ_TYPE_F16,
                                  .form_k = RQ_KV_C3,
                                  .form_v = RQ_KV_Q8_0,
                                  .sink_pages = 1,
                                  .recent_pages = 1};
    /* of 400 positions page 0 is a sink, and from page 400 / 64 - 1 on all are exact: 256 are coded. A row of C3 is
     * two words left over (64 bits) and a scale, one of Q8_0 16 bytes and a scale. */
    c = rq_op_cost_of(t, &t->ops[3], &coded, 400);
    assert_true(c.bytes_read == 2 * (16 + 16) * 2 * 144 + 2 * (8 + 1 + 16 + 2) * 256 + 16 * 4 * 4 * 4);
    c = rq_op_cost_of(t, &t->ops[3], &coded, 130);
    assert_true(c.bytes_read == 2 * (16 + 16) * 2 * 130 + 16 * 4 * 4 * 4);
    c = rq_op_cost_of(t, &t->ops[6], &coded, 400); /* in the long run one page for 64 tokens */
    assert_true(c.bytes_read == 2 * (16 + 16) * 2 * 4 && c.bytes_written == 2 * (8 + 1 + 16 + 2) * 4);
    c = rq_op_cost_of(t, &t->ops[7], NULL, 0); /* 16 heads' rows: (2 + 2 * 4) flops for each element */
    assert_true(c.flops == 10.0 * 16 * 4 * 4 && c.bytes_read == (16 * 16 + 64) * 4);
    c = rq_op_cost_of(t, &t->ops[4], NULL, 0);
    assert_true(c.bytes_read == 64 * 4 * 4 && c.bytes_written == 64 * 4 * 4);
    c = rq_op_cost_of(t, &t->ops[5], NULL, 0);
    assert_true(c.bytes_read == 64 * 4 * 4 && c.bytes_written == 64 * 4 * 4);
    rq_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_things_are_refused), cmocka_unit_test(views_lie_where_they_should),
        cmocka_unit_test(ranges_say_who_waits),     cmocka_unit_test(ranges_of_the_cache),
        cmocka_unit_test(costs_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
