/* test_heads.c - rotations: the kernels of vec/heads.h under every table against the formula in double, a row's bits
 * alone and beside others, and who owns the tables of compiled rotations. With RQ_TEST_EMULATED the AVX-512 table is
 * under test on any machine. */
#include "backends/base/mem.h"
#include "backends/cpu/vec/heads.h"
#include "backends/formats/half.h"
#include "backends/formats/rotation.h"
#include "tests/cpu/rig.h"

#include <math.h>
#include <string.h>

#ifdef RQ_TEST_EMULATED
extern const rq_heads rq_heads_avx512_emulated;
#endif

static const rq_heads *heads_at(size_t i)
{
#ifdef RQ_TEST_EMULATED
    return i == 0 ? &rq_heads_avx512_emulated : NULL;
#else
    return rq_cpu_isa_at(i) ? rq_heads_of(rq_cpu_isa_at(i)) : NULL;
#endif
}

enum { MAX_D = 256, STRIDE = MAX_D + RQ_TURN_PAD };

static void turns_are_products(void **state)
{
    (void)state;
    static const rq_head_turn turns[] = {
        {0, 16, 8, 8, false},   {6, 5, 6, 8, false},   {8, 1, 3, 8, false},     {0, 1, 80, 80, false},
        {24, 1, 21, 24, false}, {1, 2, 16, 16, false}, {0, 1, 128, 128, false}, {0, 1, 1, 8, false},
        {0, 2, 64, 64, true},   {8, 3, 8, 8, true},    {16, 1, 16, 16, true},   {5, 3, 4, 8, true},
        {0, 1, 256, 256, true}, {3, 7, 1, 8, true},    {2, 4, 2, 8, true},
    };
    uint64_t seed = 1;
    static float table[MAX_D * MAX_D], x[RQ_TURN_ROWS * STRIDE], y[RQ_TURN_ROWS * STRIDE], z[STRIDE];
    const rq_heads *heads;
    for (size_t h = 0; (heads = heads_at(h)); h++)
        for (size_t k = 0; k < sizeof turns / sizeof *turns; k++)
            for (uint32_t way = 0; way < 2 * RQ_TURN_ROWS; way++) {
                const rq_head_turn *t = &turns[k];
                uint32_t rows = 1 + way / 2, end = t->offset + t->count * t->n;
                bool inverse = way % 2;
                for (uint64_t i = 0; i < rq_head_turn_floats(t); i++)
                    table[i] = t->hadamard ? rig_uniform(&seed) < 0 ? -1.0f : 1.0f : rig_normal(&seed);
                for (uint32_t i = 0; i < rows * STRIDE; i++) x[i] = rig_normal(&seed);
                for (uint32_t i = 0; i < RQ_TURN_ROWS * STRIDE; i++) y[i] = NAN;
                heads->turn(t, table, inverse, x, y, STRIDE, rows);
                for (uint32_t r = 0; r < rows; r++) {
                    const float *from = x + r * STRIDE + t->offset, *to = y + r * STRIDE + t->offset;
                    double error = 0, sum = 0;
                    for (uint32_t c = 0; c < t->count; c++)
                        for (uint32_t l = 0; l < t->n; l++) {
                            double expected = 0;
                            for (uint32_t i = 0; i < t->n; i++) {
                                double m = t->hadamard ? __builtin_parity(i & l) ? -1 : 1
                                                       : (double)table[(c * t->n + i) * t->lanes + l];
                                if (t->hadamard)
                                    m *= (double)table[c * t->n + (inverse ? l : i)] / sqrt(t->n);
                                expected += m * (double)from[c * t->n + i];
                            }
                            double d = (double)to[c * t->n + l] - expected;
                            error += d * d;
                            sum += expected * expected;
                        }
                    /* twice the rounding of f32 sums of n terms, ops.c */
                    if (!(error <= sum * (2 + t->n) * 0x1p-48)) fail_msg("turn %zu: %g of %g", k, error, sum);
                    for (uint32_t i = 0; i < t->offset; i++) assert_true(isnan(y[r * STRIDE + i]));
                    for (uint32_t i = end + 8; i < STRIDE; i++) assert_true(isnan(y[r * STRIDE + i]));
                    heads->turn(t, table, inverse, x + r * STRIDE, z, STRIDE, 1);
                    assert_memory_equal(z + t->offset, to, t->count * t->n * sizeof *z);
                }
            }
}

static void rows_are_widened_and_shifted(void **state)
{
    (void)state;
    static uint16_t all[65536 + 3];
    static float y[65536 + 3], x[100], mean[100], lambda[100];
    uint64_t seed = 3;
    for (uint32_t i = 0; i < 65536 + 3; i++) all[i] = (uint16_t)i;
    for (uint32_t i = 0; i < 100; i++) {
        x[i] = rig_normal(&seed);
        mean[i] = rig_normal(&seed);
        lambda[i] = rig_normal(&seed);
    }
    const rq_heads *heads;
    for (size_t h = 0; (heads = heads_at(h)); h++) {
        for (int type = 0; type < 2; type++) {
            heads->widen(type ? RQ_TYPE_BF16 : RQ_TYPE_F16, all, y, 65536 + 3);
            for (uint32_t i = 0; i < 65536 + 3; i++) {
                float expected = type ? rq_bhalf_to_f32(all[i]) : rq_half_to_f32(all[i]);
                if (isnan(expected))
                    assert_true(isnan(y[i]));
                else
                    assert_int_equal(rq_f32_bits(y[i]), rq_f32_bits(expected));
            }
        }
        heads->widen(RQ_TYPE_F32, x, y, 100);
        assert_memory_equal(x, y, sizeof x);
        for (uint32_t way = 0; way < 4; way++) {
            const float *mu = way & 1 ? mean : NULL, *la = way & 2 ? lambda : NULL;
            heads->shift(x, mu, la, y, 99);
            for (uint32_t i = 0; i < 99; i++) {
                float z = mu ? x[i] - mu[i] : x[i];
                assert_true(y[i] == (la ? z * la[i] : z));
            }
            heads->unshift(x, mu, y, 99);
            for (uint32_t i = 0; i < 99; i++) assert_true(y[i] == (mu ? x[i] + mu[i] : x[i]));
        }
    }
}

/* Programs of one device share the tables of a rotation, which go with the last of them; a compilation that runs out
 * of memory leaves nothing. */
static void tables_are_shared(void **state)
{
    (void)state;
    enum { D = 128, HEADS = 4 };
    rq_rotation r;
    rq_error err = {0};
    assert_int_equal(rq_rotation_make(RQ_ROTATION_HAAR, D, 5, &r, &err), RQ_OK);
    rig bench;
    rq_step_caps caps = {.max_tokens = 4, .n_seqs = 1, .max_pages = 1};
    rig_open(&bench, NULL, 2, NULL, &caps);
    rig_weight(&bench, 0, r.data, r.n_floats * sizeof *r.data);
    rq_tape t;
    rq_tape_init(&t, 4);
    rq_ref x = rq_tape_act(&t, RQ_TYPE_F32, D, HEADS, 4, 1);
    rq_ref data = rq_tape_weight(&t, 0, RQ_TYPE_F32, (uint32_t[4]){r.n_floats, 1, 1, 1}, "r");
    rq_ref y = rq_op_rotate(&t, x, data, 0, 0, r.blocks, r.n_blocks, false);
    rq_ref z = rq_op_rotate(&t, y, data, 0, 0, r.blocks, r.n_blocks, true);
    rig_compile(&bench, &t);
    rq_segment segment = {
        .tape = &t, .count = t.n_ops, .arena_offset = bench.arena_offset, .barrier = bench.barrier};
    const rq_backend *cpu = bench.device->backend;
    int64_t alive = rq_mem_alive();
    rq_program *more[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(cpu->compile(bench.device, &segment, &bench.bindings, &more[i], &err), RQ_OK);
    cpu->destroy(more[1]);
    cpu->destroy(more[0]);
    uint64_t seed = 9;
    float *in = rig_value(&bench, x), *out = rig_value(&bench, z);
    for (int i = 0; i < D * HEADS * 4; i++) in[i] = rig_normal(&seed);
    rig_run(&bench); /* the first program still has its tables */
    assert_true(rig_nmse(out, in, D * HEADS * 4) < 1e-12);
    cpu->destroy(more[2]);
    assert_int_equal(rq_mem_alive(), alive);

    /* Without a program that holds them, tables are made anew: every allocation may fail. */
    cpu->destroy(bench.program);
    bench.program = NULL;
    alive = rq_mem_alive();
    uint64_t n = 1;
    for (;; n++) {
        rq_program *p = NULL;
        rq_mem_fail_at(n);
        rq_status status = cpu->compile(bench.device, &segment, &bench.bindings, &p, &err);
        rq_mem_fail_at(0);
        cpu->destroy(p);
        assert_int_equal(rq_mem_alive(), alive);
        if (status == RQ_OK) break;
        assert_int_equal(status, RQ_ERR_MEMORY);
    }
    assert_true(n > 6);
    rq_tape_free(&t);
    rig_close(&bench);
    rq_rotation_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_are_products),
        cmocka_unit_test(rows_are_widened_and_shifted),
        cmocka_unit_test(tables_are_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
