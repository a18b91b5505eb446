/* Launches that begin before those that they depend on have ended: the simulator finds kernels that do not wait as they
 * must, compiled programs have such edges where the card and the driver know them, and none else. */
#include "backends/base/mem.h"
#include "backends/cuda/cu.h"
#include "backends/ops.h"
#include "tests/simt/backend.h"
#include "tests/simt/overlap.h"
#include "tests/simt/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCKS = 4, N = 64 * BLOCKS, CONTEXT_BROKEN = 700, NOT_SUPPORTED = 801 };

/* ---- kernels --------------------------------------------------------------------------------------------- */

typedef struct chain {
    uint64_t constant, between, out;
    void *graph, *exec;
    int made; /* what adding the edge said */
} chain;

static void *node_of(chain *c, const char *kernel, uint64_t in, uint64_t out)
{
    overlap_args args;
    memcpy(&args.constant, &c->constant, sizeof args.constant);
    memcpy(&args.in, &in, sizeof args.in);
    memcpy(&args.out, &out, sizeof args.out);
    void *params[1] = {&args}, *function = NULL, *node = NULL;
    assert_int_equal(simt_api.module_function(&function, NULL, kernel), 0);
    cuda_kernel_node k = {
        .function = function, .grid = {BLOCKS, 1, 1}, .block = {64, 1, 1}, .params = params};
    assert_int_equal(simt_api.graph_add_kernel(&node, c->graph, NULL, 0, &k), 0);
    return node;
}

/* overlap_first and `kernel` behind it, by such an edge. */
static chain make_chain(const char *kernel, cuda_edge edge)
{
    chain c = {0};
    float numbers[N];
    for (int i = 0; i < N; i++) numbers[i] = (float)(i * 7 % 101) + 0.5f;
    assert_int_equal(simt_api.memory_alloc(&c.constant, sizeof numbers), 0);
    assert_int_equal(simt_api.memory_alloc(&c.between, sizeof numbers), 0);
    assert_int_equal(simt_api.memory_alloc(&c.out, sizeof numbers), 0);
    assert_int_equal(simt_api.copy_to_device(c.constant, numbers, sizeof numbers, NULL), 0);
    assert_int_equal(simt_api.graph_create(&c.graph, 0), 0);
    void *from = node_of(&c, "overlap_first", 0, c.between), *to = node_of(&c, kernel, c.between, c.out);
    c.made = simt_api.graph_add_edges(c.graph, &from, &to, &edge, 1);
    assert_int_equal(simt_api.graph_instantiate(&c.exec, c.graph, 0), 0);
    return c;
}

static void drop_chain(chain *c)
{
    simt_api.graph_exec_destroy(c->exec);
    simt_api.graph_destroy(c->graph);
    simt_api.memory_free(c->constant);
    simt_api.memory_free(c->between);
    simt_api.memory_free(c->out);
    assert_int_equal(simt_alive(), 0);
}

static const cuda_edge programmatic = {.from_port = CUDA_EDGE_PROGRAMMATIC, .type = CUDA_EDGE_PROGRAMMATIC};

static void one_that_waits(void **state)
{
    chain c = make_chain("overlap_right", programmatic);
    assert_int_equal(c.made, 0);
    for (int run = 0; run < 5; run++) {
        float y[N];
        simt_overlaps();
        assert_int_equal(simt_api.graph_launch(c.exec, NULL), 0);
        assert_int_equal(simt_overlaps(), 1);
        assert_int_equal(simt_api.copy_to_host(y, c.out, sizeof y, NULL), 0);
        for (int i = 0; i < N; i++) {
            int mirrored = i / 64 * 64 + 63 - i % 64;
            float want = 2 * ((float)(i * 7 % 101) + 0.5f) + (float)(mirrored * 7 % 101) + 0.5f;
            assert_true(y[i] == want);
        }
    }
    drop_chain(&c);
}

static void those_that_do_not(void **state)
{
    static const struct {
        const char *kernel, *says;
    } cases[] = {{"overlap_reads", "before it has waited"},
                 {"overlap_writes", "before it has waited"},
                 {"overlap_never", "without having waited"},
                 {"overlap_thread", "without having waited"},
                 {"overlap_block", "without having waited"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        chain c = make_chain(cases[i].kernel, programmatic);
        simt_message();
        assert_int_not_equal(simt_api.graph_launch(c.exec, NULL), 0);
        const char *said = simt_message();
        if (!strstr(said, cases[i].says)) fail_msg("%s: %s", cases[i].kernel, said);
        drop_chain(&c);
    }
}

static void edges_that_are_none(void **state)
{
    static const cuda_edge wrong[] = {
        {0}, {.from_port = 1}, {.type = 1}, {.from_port = 1, .to_port = 1, .type = 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        chain c = make_chain("overlap_right", wrong[i]);
        assert_int_not_equal(c.made, 0);
        drop_chain(&c);
    }
}

/* ---- programs -------------------------------------------------------------------------------------------- */

enum { WIDTH = 96, TOKENS = 4 };

/* ((x + x) * 3 + x) and its sum with another, which nothing orders: groups of 1, 1 and 2 launches, then 1. Runs it on a
 * device over `api`; how many launches of a run could begin early. */
static rq_status run_program(const cuda_api *api, uint32_t *overlaps, float *y, rq_error *err)
{
    static const cu_image one = {""};
    rq_device *device = NULL;
    rq_status status = cu_open_with(&rq_backend_simt, api, &one, 1, NULL, &device, err);
    if (status != RQ_OK) return status;
    float x[WIDTH * TOKENS];
    for (int i = 0; i < WIDTH * TOKENS; i++) x[i] = (float)(i % 89) - 40;
    rq_tape tape;
    rq_tape_init(&tape, TOKENS);
    rq_ref a = rq_tape_act(&tape, RQ_TYPE_F32, WIDTH, TOKENS, 1, 1), b = rq_op_add(&tape, a, a),
           c = rq_op_scale(&tape, b, 3), d = rq_op_add(&tape, c, a), e = rq_op_scale(&tape, c, 0.5f),
           f = rq_op_add(&tape, d, e);
    status = rq_tape_check(&tape, err);
    uint64_t offsets[16] = {0};
    for (uint32_t v = 1; v < tape.n_values && v < 16; v++) offsets[v] = sizeof x * (v - 1);
    const uint8_t barrier[] = {0, 1, 1, 0, 1};
    rq_step_caps caps = {.max_tokens = TOKENS, .n_seqs = 1, .max_pages = 1};
    rq_step_caps_complete(&caps);
    const rq_backend *be = device->backend;
    rq_memory *arena = NULL;
    rq_program *program = NULL;
    if (status == RQ_OK) status = be->alloc(device, sizeof x * 8, "arena", &arena, err);
    if (status == RQ_OK) status = be->upload(arena, offsets[a], x, sizeof x, err);
    rq_bindings bindings = {.arena = arena, .caps = &caps};
    rq_segment segment = {.tape = &tape, .count = tape.n_ops, .arena_offset = offsets, .barrier = barrier};
    if (status == RQ_OK) status = be->compile(device, &segment, &bindings, &program, err);
    simt_overlaps();
    if (status == RQ_OK) status = be->run(program, NULL, err);
    if (status == RQ_OK) status = be->wait(device, err);
    *overlaps = (uint32_t)simt_overlaps();
    if (status == RQ_OK) status = be->download(arena, offsets[f], y, sizeof x, err);
    if (program) be->destroy(program);
    be->release(arena);
    rq_tape_free(&tape);
    be->close(device);
    return status;
}

static int old_attribute(int *v, int attribute, int device)
{
    int result = simt_api.device_attribute(v, attribute, device);
    if (attribute == CUDA_ATTRIBUTE_MAJOR) *v = 8;
    if (attribute == CUDA_ATTRIBUTE_MINOR) *v = 9;
    return result;
}

static int refuses(void *graph, void *const *from, void *const *to, const cuda_edge *edges, size_t n)
{
    return NOT_SUPPORTED;
}

static int breaks(void *graph, void *const *from, void *const *to, const cuda_edge *edges, size_t n)
{
    return CONTEXT_BROKEN;
}

static void programs_overlap_where_it_is_known(void **state)
{
    rq_error err = {0};
    float want[WIDTH * TOKENS], y[WIDTH * TOKENS];
    for (int i = 0; i < WIDTH * TOKENS; i++) want[i] = 10 * ((float)(i % 89) - 40);
    cuda_api tables[4];
    for (int i = 0; i < 4; i++) tables[i] = simt_api;
    tables[1].graph_add_edges = NULL;                 /* a driver before 12.3 */
    tables[2].device_attribute = old_attribute;       /* a card before Hopper */
    tables[3].graph_add_edges = refuses;              /* a driver that will not */
    static const uint32_t overlaps[4] = {4, 0, 0, 0}; /* all but the first */
    for (int i = 0; i < 4; i++) {
        uint32_t n = 99;
        memset(y, 0, sizeof y);
        if (run_program(&tables[i], &n, y, &err) != RQ_OK) fail_msg("%d: %s", i, err.text);
        assert_int_equal(n, overlaps[i]);
        assert_memory_equal(y, want, sizeof y);
        assert_int_equal(simt_alive(), 0);
    }
}

static void a_broken_context_is_said(void **state)
{
    rq_error err = {0};
    cuda_api table = simt_api;
    table.graph_add_edges = breaks;
    float y[WIDTH * TOKENS];
    uint32_t n;
    assert_int_equal(run_program(&table, &n, y, &err), RQ_ERR_DEVICE);
    assert_non_null(strstr(err.text, "700"));
    assert_int_equal(simt_alive(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_waits),           cmocka_unit_test(those_that_do_not),
        cmocka_unit_test(edges_that_are_none),      cmocka_unit_test(programs_overlap_where_it_is_known),
        cmocka_unit_test(a_broken_context_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
