/* test_device.c - opening, memory, errors of the processor device; programs that fail to compile; profiles. */
#include "backends/base/mem.h"
#include "backends/cpu/isa.h"
#include "tests/cpu/rig.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const rq_backend *const cpu = &rq_backend_cpu;

static void test_open(void **state)
{
    (void)state;
    assert_int_equal(cpu->count(), 1);
    rq_error err = {0};
    rq_device *d = NULL;
    rq_device_options options = {.implementation = "mmx"};
    assert_int_equal(cpu->open(&options, &d, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "mmx"));
    options = (rq_device_options){.index = 1};
    assert_int_equal(cpu->open(&options, &d, &err), RQ_ERR_ARGUMENT);
    options = (rq_device_options){.n_threads = 100000};
    assert_int_equal(cpu->open(&options, &d, &err), RQ_ERR_ARGUMENT);
    assert_null(d);
    for (size_t i = 0; rq_cpu_isa_at(i); i++) {
        options = (rq_device_options){.n_threads = 3, .implementation = rq_cpu_isa_at(i)->name};
        assert_int_equal(cpu->open(&options, &d, &err), RQ_OK);
        rq_device_info info;
        cpu->describe(d, &info);
        assert_non_null(strstr(info.features, "3 threads"));
        assert_non_null(strstr(info.features, rq_cpu_isa_at(i)->name));
        assert_true(info.name[0] && info.memory_bytes > 0 && info.free_bytes > 0 &&
                    info.free_bytes <= info.memory_bytes);
        assert_string_equal(cpu->implementation(d, NULL, NULL), rq_cpu_isa_at(i)->name);
        cpu->close(d);
    }
    options = (rq_device_options){.n_threads = 3, .implementation = "reference"};
    assert_int_equal(cpu->open(&options, &d, &err), RQ_OK);
    assert_string_equal(cpu->implementation(d, NULL, NULL), "reference");
    cpu->close(d);
    cpu->close(NULL);
}

/* Resident bytes of this process. */
static uint64_t resident(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    unsigned long long total = 0, pages = 0;
    assert_int_equal(fscanf(f, "%llu %llu", &total, &pages), 2);
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void test_memory(void **state)
{
    (void)state;
    rq_error err = {0};
    rq_device *d;
    rq_memory *m, *w;
    assert_int_equal(cpu->open(NULL, &d, &err), RQ_OK);
    uint64_t before = resident();
    assert_int_equal(cpu->alloc(d, 1ull << 30, "cache", &m, &err), RQ_OK);
    assert_true(resident() < before + (64ull << 20)); /* what nobody touches takes nothing */
    assert_int_equal(((const uint8_t *)m->host)[12345678], 0);
    assert_ptr_equal(m->device, d);
    assert_int_equal(m->bytes, 1u << 30);
    char text[8] = {0};
    assert_int_equal(cpu->upload(m, (1u << 30) - 6, "rotor", 6, &err), RQ_OK);
    assert_int_equal(cpu->upload(m, (1u << 30) - 5, "rotor", 6, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(cpu->upload(m, UINT64_MAX, "rotor", 6, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(cpu->download(m, (1u << 30) - 6, text, 6, &err), RQ_OK);
    assert_string_equal(text, "rotor");
    assert_int_equal(cpu->download(m, 1, text, UINT64_MAX, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(cpu->adopt(d, "weights", 8, "weights", &w, &err), RQ_OK);
    assert_string_equal(w->host, "weights");
    assert_int_equal(cpu->upload(w, 0, "x", 1, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(cpu->alloc(d, UINT64_MAX - 4096, "everything", &w, &err), RQ_ERR_MEMORY);
    assert_non_null(strstr(err.text, "everything"));
    cpu->release(w);
    cpu->release(m);
    cpu->release(NULL);
    assert_int_equal(cpu->alloc(d, 0, "nothing", &m, &err), RQ_OK);
    cpu->release(m);
    cpu->close(d);
}

/* A tape with operations of several instructions, an arena, a cache and a table of angles. */
static void make_tape(rq_tape *t, rq_ref *in)
{
    rq_tape_init(t, 4);
    rq_ref q = rq_tape_act(t, RQ_TYPE_F32, 32, 2, 4, 1), k = rq_tape_act(t, RQ_TYPE_F32, 32, 2, 4, 1);
    rq_ref freq = rq_tape_weight(t, 0, RQ_TYPE_F32, (uint32_t[4]){16, 1, 1, 1}, "freq");
    rq_ref w = rq_tape_weight(t, 1, RQ_TYPE_F16, (uint32_t[4]){64, 40, 1, 1}, "w");
    rq_ref cache = rq_tape_cache(t, 0, 0);
    rq_ref turned = rq_op_rope(t, q, freq, 32, RQ_ROPE_NEOX, 1);
    rq_op_kv_write(t, cache, k, k);
    rq_ref y = rq_op_attend(t, cache, turned, 32, 0.2f, 0);
    rq_op_matmul(t, w, rq_op_rms_norm(t, y, 0, 1e-6f));
    if (in) *in = q;
}

static void open_rig(rig *r)
{
    rq_cache_group group = {
        .n_layers = 1, .n_heads = 2, .dim_k = 32, .dim_v = 32, .type_k = RQ_TYPE_F16, .type_v = RQ_TYPE_F16};
    rq_step_caps caps = {.max_tokens = 8, .n_groups = 1, .n_seqs = 1, .max_pages = 4};
    rig_open(r, NULL, 2, &group, &caps);
    float freq[16];
    uint16_t w[64 * 40];
    for (int i = 0; i < 16; i++) freq[i] = 1.0f / (float)(i + 1);
    for (int i = 0; i < 64 * 40; i++) w[i] = rq_f32_to_f16((float)(i % 17) - 8);
    rig_weight(r, 0, freq, sizeof freq);
    rig_weight(r, 1, w, sizeof w);
}

static void test_compile_out_of_memory(void **state)
{
    (void)state;
    rig r;
    rq_tape t;
    rq_error err = {0};
    open_rig(&r);
    make_tape(&t, NULL);
    rig_compile(&r, &t);
    rq_segment segment = {&t, 0, t.n_ops, r.arena_offset, r.barrier};
    int64_t alive = rq_mem_alive();
    uint64_t n = 1;
    for (;; n++) {
        rq_program *p = NULL;
        rq_mem_fail_at(n);
        rq_status status = cpu->compile(r.device, &segment, &r.bindings, &p, &err);
        rq_mem_fail_at(0);
        if (status == RQ_OK) {
            cpu->destroy(p);
            break;
        }
        assert_int_equal(status, RQ_ERR_MEMORY);
        assert_null(p);
        assert_int_equal(rq_mem_alive(), alive);
    }
    assert_true(n > 3);
    assert_int_equal(rq_mem_alive(), alive);
    cpu->destroy(NULL);
    rq_tape_free(&t);
    rig_close(&r);
}

static void test_misfits(void **state)
{
    (void)state;
    rig r;
    rq_tape t;
    rq_error err = {0};
    rq_program *p = NULL;
    open_rig(&r);
    make_tape(&t, NULL);
    rig_compile(&r, &t);
    rq_segment segment = {&t, 0, t.n_ops, r.arena_offset, r.barrier};
    /* a weight that is smaller than the tape says */
    rq_memory *whole = r.weight_bindings[1].memory;
    r.weight_bindings[1].offset = 1;
    assert_int_equal(cpu->compile(r.device, &segment, &r.bindings, &p, &err), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "outside"));
    r.weight_bindings[1] = (rq_binding){whole, 0};
    /* a cache of another shape */
    r.group.dim_k = 64;
    assert_int_equal(cpu->compile(r.device, &segment, &r.bindings, &p, &err), RQ_ERR_UNSUPPORTED);
    r.group.dim_k = 32;
    assert_int_equal(cpu->compile(r.device, &segment, &r.bindings, &p, &err), RQ_OK);
    /* no step, or something else in its place */
    uint32_t nonsense[64] = {0};
    assert_int_equal(cpu->run(p, NULL, &err), RQ_ERR_INTERNAL);
    assert_int_equal(cpu->run(p, nonsense, &err), RQ_ERR_INTERNAL);
    cpu->destroy(p);
    /* an operation of another build */
    rq_op unknown = {.kind = RQ_OP_COUNT};
    assert_false(cpu->supports(r.device, &t, &unknown, &err));
    assert_true(strlen(err.text) > 10);
    rq_tape_free(&t);
    rig_close(&r);
}

static void test_profile_and_replay(void **state)
{
    (void)state;
    rig r;
    rq_tape t;
    rq_ref q;
    rq_error err = {0};
    open_rig(&r);
    make_tape(&t, &q);
    rig_compile(&r, &t);
    const uint32_t *table = rig_table(&r, 0);
    int32_t ids[3] = {0};
    rq_step_add_run(&r.step, 0, ids, 3, 0, &table);
    assert_int_equal(rq_step_finish(&r.step), 4);
    uint64_t seed = 5;
    float *x = rig_value(&r, q);
    for (int i = 0; i < 4 * 128; i++) x[i] = rig_normal(&seed); /* q and, behind it, k */
    rig_run(&r);
    rq_ref y = t.ops[t.n_ops - 1].out[0];
    float first[3 * 40];
    memcpy(first, rig_value(&r, y), sizeof first);
    uint64_t ns[8] = {0};
    assert_int_equal(cpu->profile(r.program, r.step.words, ns, &err), RQ_OK);
    assert_memory_equal(first, rig_value(&r, y), sizeof first);
    for (uint32_t i = 0; i < t.n_ops; i++) assert_true(ns[i] > 0 && ns[i] < 10000000000u);
    uint64_t allocations = rq_mem_count();
    for (int i = 0; i < 1000; i++) rig_run(&r);
    assert_int_equal(rq_mem_count(), allocations); /* replaying allocates nothing */
    assert_memory_equal(first, rig_value(&r, y), sizeof first);
    rq_tape_free(&t);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_compile_out_of_memory),
        cmocka_unit_test(test_misfits),
        cmocka_unit_test(test_profile_and_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
