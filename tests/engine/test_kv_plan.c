/* What the compressed cache adds to a forward pass: nothing where nothing is compressed, and otherwise the operations
 * that cache.h and step.h promise, in their order. */
#include "backends/ops.h"
#include "engine/kv/plan.h"
#include "tests/engine/kv_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void plan_of(rq_kv_plan *plan, const rq_model *model, const char *type_k, const char *type_v,
                    const rq_kv_hooks *hooks)
{
    rq_engine_params params = {.type_k = type_k, .type_v = type_v, .kv_hooks = hooks};
    rq_error err = {0};
    *plan = (rq_kv_plan){0};
    rq_status status = rq_kv_plan_choose(plan, model, &params, &err);
    if (status == RQ_OK) status = rq_kv_plan_finish(plan, model, &params, 1024, &err);
    if (status != RQ_OK) fail_msg("%s", err.text);
}

static void build(const rq_kv_plan *plan, uint32_t bucket, rq_tape *tape)
{
    rq_tape_init(tape, bucket);
    tape->persist_rows[RQ_PERSIST_HIDDEN] = 64;
    tape->persist_rows[RQ_PERSIST_CAPTURE] = 64;
    rq_pass pass = plan->pass;
    rq_pass_build(&pass, RQ_TAPE_TRUNK, tape);
    rq_error err = {0};
    if (rq_tape_check(tape, &err) != RQ_OK) fail_msg("%s", err.text);
}

static uint32_t count(const rq_tape *tape, rq_op_kind kind)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < tape->n_ops; i++) n += tape->ops[i].kind == kind;
    return n;
}

static void test_exact_formats_add_nothing(void **state)
{
    static const char *const types[] = {NULL, "f16", "f32", "bf16"};
    rq_model *model = rb_load(rb_path("qwen3.gguf"));
    for (int t = 0; t < 4; t++)
        for (uint32_t bucket = 1; bucket <= 64; bucket *= 4) {
            rq_kv_plan plan;
            plan_of(&plan, model, types[t], types[t], NULL);
            rq_tape with, without;
            build(&plan, bucket, &with);
            rq_tape_init(&without, bucket);
            without.persist_rows[RQ_PERSIST_HIDDEN] = 64;
            rq_model_build(model, RQ_TAPE_TRUNK, &without);
            assert_int_equal(with.n_ops, without.n_ops);
            assert_int_equal(with.n_values, without.n_values);
            for (uint32_t i = 0; i < with.n_ops; i++) {
                assert_int_equal(with.ops[i].kind, without.ops[i].kind);
                assert_memory_equal(with.ops[i].in, without.ops[i].in, sizeof with.ops[i].in);
            }
            rq_tape_free(&with);
            rq_tape_free(&without);
            rq_kv_plan_free(&plan);
        }
    rq_model_free(model);
}

/* q and k turned before they are written, v too; pages encoded between writing and attending, in wide steps only; the
 * result turned back. */
static void test_compressed(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    enum { LAYERS = 2 };
    static const struct {
        const char *k, *v;
        uint32_t rotations; /* per layer */
    } cases[] = {{"wht3", "wht3", 4}, {"planar2", "f16", 2}, {"f16", "so84", 2}, {"none3", "q8_0", 0}};
    for (int c = 0; c < 4; c++) {
        rq_kv_plan plan;
        plan_of(&plan, model, cases[c].k, cases[c].v, NULL);
        for (uint32_t bucket = 8; bucket <= 16; bucket *= 2) {
            rq_tape tape;
            build(&plan, bucket, &tape);
            assert_int_equal(count(&tape, RQ_OP_ROTATE), LAYERS * cases[c].rotations);
            assert_int_equal(count(&tape, RQ_OP_KV_ENCODE), bucket > RQ_NARROW_BUCKET ? LAYERS : 0);
            for (uint32_t i = 0; i < tape.n_ops; i++) {
                if (tape.ops[i].kind == RQ_OP_KV_ENCODE) {
                    assert_int_equal(tape.ops[i - 1].kind, RQ_OP_KV_WRITE);
                    assert_int_equal(tape.ops[i + 1].kind, RQ_OP_ATTEND);
                }
                if (tape.ops[i].kind == RQ_OP_ROTATE && tape.ops[i].p.rotate.inverse)
                    assert_int_equal(tape.ops[i - 1].kind, RQ_OP_ATTEND);
            }
            rq_tape_free(&tape);
        }
        rq_kv_plan_free(&plan);
    }
    rq_model_free(model);
}

static rq_status ignore(void *user, const rq_kv_captured *rows, rq_error *err)
{
    return RQ_OK;
}

static void test_capture_copies_what_is_asked_for(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    const uint32_t layer = 1;
    const rq_kv_hooks hooks = {.capture = ignore, .layers = &layer, .n_layers = 1};
    rq_kv_plan plan;
    plan_of(&plan, model, "wht3", "wht3", &hooks);
    assert_int_equal(plan.pass.capture_floats, 128 * (4 + 2 + 2));
    rq_tape tape;
    build(&plan, 32, &tape);
    assert_int_equal(count(&tape, RQ_OP_COPY), 3 + 1); /* and the hidden rows */
    rq_tape_free(&tape);
    rq_kv_plan_free(&plan);
    rq_model_free(model);
}

/* What pages hold depends on formats and profile, and so must the seed of their keys. */
static void test_cache_seed(void **state)
{
    rq_model *model = rb_load(rb_path("llama.gguf"));
    static const char *const types[] = {"wht3", "wht4", "so83"};
    uint64_t seeds[3];
    for (int t = 0; t < 3; t++) {
        rq_kv_plan plan;
        plan_of(&plan, model, types[t], "wht3", NULL);
        seeds[t] = plan.cache_seed;
        rq_kv_plan_free(&plan);
    }
    assert_true(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2]);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_formats_add_nothing),
        cmocka_unit_test(test_compressed),
        cmocka_unit_test(test_capture_copies_what_is_asked_for),
        cmocka_unit_test(test_cache_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
