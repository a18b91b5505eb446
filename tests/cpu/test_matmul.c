/* test_matmul.c - the processor's matrix kernels, every weight type on every instruction set this machine runs
 * (and AVX-512 by emulation). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/matmul.h"
#include "tests/cpu/matmul_data.h"

enum { MAX_ROWS = 35, MAX_COLS = 70 };

#ifdef RQ_TEST_EMULATED
static const rq_cpu_isa emulated = {"avx512 (emulated)", RQ_ISA_AVX512, &rq_kernels_avx512_emulated};
#endif

static const rq_cpu_isa *implementation(size_t i)
{
    const rq_cpu_isa *isa = rq_cpu_isa_at(i);
#ifdef RQ_TEST_EMULATED
    if (!isa && i > 0 && rq_cpu_isa_at(i - 1) && rq_cpu_machine_runs("avx2")) return &emulated;
#endif
    return isa;
}

static bool is_weight(uint32_t id)
{
    const rq_type_info *info = rq_type_get(id);
    return info && info->is_weight;
}

/* One product with everything around it. */
typedef struct product {
    rq_type type;
    int64_t n_in;
    size_t row_bytes, act_bytes;
    uint8_t *w_base, *w; /* w is odd: blocks lie anywhere in a file */
    float *x;            /* [MAX_COLS, n_in] */
    uint8_t *acts;
    float *y;
    void *scratch;
} product;

static product make(rq_type type, int64_t n_in)
{
    product p = {.type = type, .n_in = n_in};
    rq_test_rng g = {(uint64_t)type * 1000003u + (uint64_t)n_in};
    p.row_bytes = rq_row_bytes(type, (uint64_t)n_in);
    p.act_bytes = rq_matmul_act_bytes(type, n_in);
    p.w_base = rq_malloc(p.row_bytes * MAX_ROWS + 1);
    p.w = p.w_base + 1;
    p.x = rq_malloc((size_t)n_in * MAX_COLS * sizeof(float));
    p.acts = rq_calloc_aligned(64, p.act_bytes * MAX_COLS);
    p.y = rq_malloc(MAX_ROWS * MAX_COLS * sizeof(float));
    p.scratch = rq_malloc(rq_matmul_scratch_bytes());
    assert_true(p.w_base && p.x && p.acts && p.y && p.scratch);
    rq_test_weights(type, p.w, n_in * MAX_ROWS, &g);
    for (int64_t i = 0; i < n_in * MAX_COLS; i++) p.x[i] = rq_test_normal(&g);
    return p;
}

static void quantize(const product *p, const rq_cpu_isa *isa)
{
    for (int t = 0; t < MAX_COLS; t++)
        rq_matmul_quantize_act(isa, p->type, p->x + t * p->n_in, p->acts + (size_t)t * p->act_bytes, p->n_in);
}

static void release(product *p)
{
    rq_free(p->w_base);
    rq_free(p->x);
    rq_free(p->acts);
    rq_free(p->y);
    rq_free(p->scratch);
}

/* y[t * MAX_ROWS + r] for t < T and r in [r0, r1). */
static void run(const product *p, const rq_cpu_isa *isa, int64_t r0, int64_t r1, int64_t T, float *y)
{
    rq_matmul_rows(isa, p->type, p->w, p->row_bytes, p->n_in, r0, r1, p->acts, p->act_bytes, T, y, MAX_ROWS,
                   p->scratch);
}

/* Lengths of a row: one block, three, and both sides of whole spans of 256. */
static int lengths(rq_type type, int64_t out[5])
{
    int block = rq_type_get(type)->block_elems;
    if (block == 256) {
        out[0] = 256, out[1] = 768, out[2] = 1280;
        return 3;
    }
    out[0] = block, out[1] = 3 * block, out[2] = 256, out[3] = 256 + block, out[4] = 1024 + 3 * block;
    return 5;
}

/* The activation row as floats. */
static void widen_act(const product *p, int t, float *out)
{
    const uint8_t *row = p->acts + (size_t)t * p->act_bytes;
    for (int64_t k = 0; k < p->n_in; k++) {
        if (rq_matmul_act_kind(p->type) == RQ_ACT_F32) {
            memcpy(out, row, (size_t)p->n_in * sizeof(float));
            return;
        }
        const rq_act256 *a = (const rq_act256 *)(const void *)row + k / 256;
        const rq_act32 *b = (const rq_act32 *)(const void *)row + k / 256;
        bool by_32 = rq_matmul_act_kind(p->type) == RQ_ACT_Q32;
        out[k] = by_32 ? b->d[k % 256 / 32] * b->q[k % 256] : a->d * a->q[k % 256];
    }
}

/* Against double sums over decoded weights: (1) with the decoded activations, only float accumulation is left:
 * within 1e-6 of the sum of magnitudes; facts: all variants of the reference library stay within 9e-8, ours has
 * one rounding per block of 32 or 256. (2) with the activations themselves, the squared error is at most 1e-4 of
 * the signal: a step of max/127, at most 4/127 sigma here, gives step^2 / 12 = 8e-5; exact activations leave
 * float accumulation, 1e-12. */
static void against_double(void **state)
{
    (void)state;
    const rq_cpu_isa *isa;
    for (size_t i = 0; (isa = implementation(i)); i++) {
        double worst = 0, worst_nmse = 0;
        rq_type worst_type = RQ_TYPE_F32;
        for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
            int64_t n_ins[5];
            if (!is_weight(id)) continue;
            int n = lengths((rq_type)id, n_ins);
            for (int s = 0; s < n; s++) {
                product p = make((rq_type)id, n_ins[s]);
                float *w = rq_malloc((size_t)p.n_in * sizeof(float)),
                      *a = rq_malloc((size_t)p.n_in * sizeof(float));
                double error = 0, signal = 0;
                assert_true(w && a);
                quantize(&p, isa);
                run(&p, isa, 0, MAX_ROWS, MAX_COLS, p.y);
                for (int t = 0; t < MAX_COLS; t += 3) {
                    widen_act(&p, t, a);
                    for (int r = 0; r < MAX_ROWS; r++) {
                        double exact = 0, magnitude = 0, plain = 0;
                        rq_type_get(id)->dequantize(p.w + (size_t)r * p.row_bytes, w, p.n_in);
                        for (int64_t k = 0; k < p.n_in; k++) {
                            exact += (double)w[k] * a[k];
                            magnitude += fabs((double)w[k] * a[k]);
                            plain += (double)w[k] * p.x[t * p.n_in + k];
                        }
                        double y = p.y[t * MAX_ROWS + r],
                               ratio = fabs(y - exact) / (1e-6 * magnitude + 1e-30);
                        if (!(ratio <= worst)) worst = ratio, worst_type = (rq_type)id;
                        error += (y - plain) * (y - plain);
                        signal += plain * plain;
                        if (!(ratio <= 1))
                            fail_msg("%s %s n_in %d row %d column %d: %g, expected %g, magnitude %g",
                                     isa->name, rq_type_get(id)->name, (int)p.n_in, r, t, y, exact,
                                     magnitude);
                    }
                }
                double limit = rq_matmul_act_kind((rq_type)id) == RQ_ACT_F32 ? 1e-12 : 1e-4;
                if (!(error <= limit * signal))
                    fail_msg("%s %s n_in %d: squared error %g of the signal", isa->name,
                             rq_type_get(id)->name, (int)p.n_in, error / signal);
                if (limit == 1e-4 && error / signal > worst_nmse) worst_nmse = error / signal;
                rq_free(w);
                rq_free(a);
                release(&p);
            }
        }
        print_message(
            "%s: worst error / tolerance %.3f (%s); worst squared error against f32 activations %.2e\n",
            isa->name, worst, rq_type_get(worst_type)->name, worst_nmse);
    }
}

/* A column's bytes do not depend on the number of columns, the rows of the call, or gathering. */
static void same_bytes(void **state)
{
    (void)state;
    static const int widths[] = {1, 2, 3, 4, 5, 8, 9, 16, 24, 25, 33, 64, 70};
    static const int cuts[][5] = {{0, 1, 2, 17, 35}, {0, 3, 11, 16, 35}, {0, 17, 24, 34, 35}};
    const rq_cpu_isa *isa;
    for (size_t i = 0; (isa = implementation(i)); i++) {
        for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
            int64_t n_ins[5];
            float y[MAX_ROWS * MAX_COLS];
            if (!is_weight(id)) continue;
            int n = lengths((rq_type)id, n_ins);
            for (int s = 1; s < n; s += n == 3 ? 1 : 3) {
                product p = make((rq_type)id, n_ins[s]);
                quantize(&p, isa);
                run(&p, isa, 0, MAX_ROWS, MAX_COLS, p.y);
                for (size_t j = 0; j < sizeof widths / sizeof widths[0]; j++) {
                    memset(y, 0xff, sizeof y);
                    for (int c = 0; c < 4; c++)
                        run(&p, isa, cuts[j % 3][c], cuts[j % 3][c + 1], widths[j], y);
                    if (memcmp(y, p.y, (size_t)widths[j] * MAX_ROWS * sizeof(float)))
                        fail_msg("%s %s n_in %d: %d columns differ from %d", isa->name, rq_type_get(id)->name,
                                 (int)p.n_in, widths[j], MAX_COLS);
                }
                const void *acts[MAX_COLS];
                float *outs[MAX_COLS];
                memset(y, 0xff, sizeof y);
                for (int t = 0; t < MAX_COLS; t++) {
                    acts[t] = p.acts + (size_t)(MAX_COLS - 1 - t) * p.act_bytes;
                    outs[t] = y + (MAX_COLS - 1 - t) * MAX_ROWS;
                }
                rq_matmul_gather(isa, p.type, p.w, p.row_bytes, p.n_in, 0, MAX_ROWS, acts, outs, MAX_COLS,
                                 p.scratch);
                assert_memory_equal(y, p.y, sizeof y);
                release(&p);
            }
        }
    }
}

/* More columns than the kernels take at once, rows with a stride of their own. */
static void many_columns(void **state)
{
    (void)state;
    enum { COLS = 2 * RQ_MM_COLS + 3, ROWS = 5, N = 256 };
    static const rq_type types[] = {RQ_TYPE_Q4_K, RQ_TYPE_Q8_0, RQ_TYPE_F16};
    float *y = rq_malloc(COLS * ROWS * sizeof(float));
    assert_non_null(y);
    const rq_cpu_isa *isa;
    for (size_t i = 0; (isa = implementation(i)); i++) {
        for (size_t j = 0; j < 3; j++) {
            product p = make(types[j], N);
            const void *acts[COLS];
            quantize(&p, isa);
            run(&p, isa, 0, ROWS, MAX_COLS, p.y);
            /* A stride of zero: every column is the first one. */
            rq_matmul_rows(isa, p.type, p.w, p.row_bytes, N, 0, ROWS, p.acts, 0, COLS, y, ROWS, p.scratch);
            for (int t = 0; t < COLS; t++) assert_memory_equal(y + t * ROWS, p.y, ROWS * sizeof(float));
            float *outs[COLS];
            for (int t = 0; t < COLS; t++) {
                acts[t] = p.acts + (size_t)(t % MAX_COLS) * p.act_bytes;
                outs[t] = y + t * ROWS;
            }
            rq_matmul_gather(isa, p.type, p.w, p.row_bytes, N, 0, ROWS, acts, outs, COLS, p.scratch);
            for (int t = 0; t < COLS; t++)
                assert_memory_equal(y + t * ROWS, p.y + t % MAX_COLS * MAX_ROWS, ROWS * sizeof(float));
            release(&p);
        }
    }
    rq_free(y);
}

/* For quantised weights every implementation yields the bytes of the plain one: activation rows and products. */
static void same_bytes_as_scalar(void **state)
{
    (void)state;
    const rq_cpu_isa *scalar = rq_cpu_isa_by_name("scalar"), *isa;
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        int64_t n_ins[5];
        float y[MAX_ROWS * MAX_COLS];
        if (!is_weight(id) || rq_matmul_act_kind((rq_type)id) == RQ_ACT_F32) continue;
        int n = lengths((rq_type)id, n_ins);
        for (int s = 0; s < n; s++) {
            product p = make((rq_type)id, n_ins[s]);
            uint8_t *acts = rq_malloc(p.act_bytes * MAX_COLS);
            assert_non_null(acts);
            memset(p.x, 0, 64 * sizeof(float));
            quantize(&p, scalar);
            run(&p, scalar, 0, MAX_ROWS, MAX_COLS, p.y);
            memcpy(acts, p.acts, p.act_bytes * MAX_COLS);
            for (size_t i = 1; (isa = implementation(i)); i++) {
                memset(p.acts, 0xff, p.act_bytes * MAX_COLS);
                quantize(&p, isa);
                if (memcmp(acts, p.acts, p.act_bytes * MAX_COLS))
                    fail_msg("%s %s: activation rows differ", isa->name, rq_type_get(id)->name);
                run(&p, isa, 0, MAX_ROWS, MAX_COLS, y);
                if (memcmp(y, p.y, sizeof y))
                    fail_msg("%s %s n_in %d: other bytes than scalar", isa->name, rq_type_get(id)->name,
                             (int)p.n_in);
                for (int t = 0; t < 5; t++) { /* the one-column kernels */
                    rq_matmul_rows(isa, p.type, p.w, p.row_bytes, p.n_in, 0, MAX_ROWS,
                                   p.acts + (size_t)t * p.act_bytes, 0, 1, y, 0, p.scratch);
                    if (memcmp(y, p.y + t * MAX_ROWS, MAX_ROWS * sizeof(float)))
                        fail_msg("%s %s n_in %d: other bytes than scalar in one column", isa->name,
                                 rq_type_get(id)->name, (int)p.n_in);
                }
            }
            rq_free(acts);
            release(&p);
        }
    }
}

/* The largest codes, scales and activations of a type reach the largest integer sums; nothing may saturate. */
static void extremes(void **state)
{
    (void)state;
    const rq_cpu_isa *scalar = rq_cpu_isa_by_name("scalar"), *isa;
    static const uint8_t fills[] = {0x00, 0xff, 0x77, 0x88, 0x80, 0x7f, 0x0f, 0xf0};
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        if (!is_weight(id) || rq_matmul_act_kind((rq_type)id) == RQ_ACT_F32) continue;
        product p = make((rq_type)id, 256);
        const rq_type_info *info = rq_type_get(id);
        for (int r = 0; r < 8; r++) {
            uint8_t *row = p.w + (size_t)r * p.row_bytes;
            memset(row, fills[r], p.row_bytes);
            for (size_t b = 0; b < p.row_bytes; b += info->block_bytes) {
                for (const int *at = rq_test_f16_fields(p.type); *at >= 0; at++)
                    rq_test_put_f16(row + b + *at, 0.5f);
                if (id == RQ_TYPE_MXFP4) row[b] = 127;
            }
        }
        /* The largest grid entries and levels are wherever the table has them: any byte, over the rows. */
        for (int r = 8; r < MAX_ROWS; r++)
            for (size_t k = 0; k + 4 < p.row_bytes; k++)
                if (k % info->block_bytes >= 2 && k % info->block_bytes + 6 < info->block_bytes)
                    p.w[(size_t)r * p.row_bytes + k] = (uint8_t)(k * 37 + (size_t)r * 7);
        for (int t = 0; t < MAX_COLS; t++)
            for (int k = 0; k < 256; k++)
                p.x[t * 256 + k] = t == 0 ? 1.0f : t == 1 ? -1.0f : (k >> (t % 8) & 1 ? 1.0f : -1.0f);
        float y[MAX_ROWS * MAX_COLS];
        quantize(&p, scalar);
        run(&p, scalar, 0, MAX_ROWS, MAX_COLS, p.y);
        for (size_t i = 1; (isa = implementation(i)); i++) {
            run(&p, isa, 0, MAX_ROWS, MAX_COLS, y);
            for (int k = 0; k < MAX_ROWS * MAX_COLS; k++)
                if (memcmp(&y[k], &p.y[k], 4) && !(isnan(y[k]) && isnan(p.y[k])))
                    fail_msg("%s %s row %d column %d: %g, plain C %g", isa->name, info->name, k % MAX_ROWS,
                             k / MAX_ROWS, y[k], p.y[k]);
            run(&p, isa, 0, MAX_ROWS, 1, y);
            for (int k = 0; k < MAX_ROWS; k++)
                if (memcmp(&y[k], &p.y[k], 4) && !(isnan(y[k]) && isnan(p.y[k])))
                    fail_msg("%s %s row %d, one column: %g, plain C %g", isa->name, info->name, k, y[k],
                             p.y[k]);
        }
        release(&p);
    }
}

/* Values that are not finite, and enormous or tiny ones: no trap, and a column with a NaN or an infinity is NaN
 * while its neighbours are not. */
static void not_finite(void **state)
{
    (void)state;
    const rq_cpu_isa *isa;
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-38f, 1e-45f};
    for (size_t i = 0; (isa = implementation(i)); i++) {
        for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
            if (!is_weight(id)) continue;
            product p = make((rq_type)id, 256);
            for (int t = 0; t < 7; t++) p.x[t * 256 + 37] = values[t];
            for (int k = 0; k < 256; k++) p.x[7 * 256 + k] = 1e-45f, p.x[8 * 256 + k] = 1e-39f;
            quantize(&p, isa);
            for (int T = 1; T <= 16; T += 15) {
                run(&p, isa, 0, MAX_ROWS, T, p.y);
                for (int t = 0; t < T; t++)
                    for (int r = 0; r < MAX_ROWS; r++)
                        if (rq_matmul_act_kind(p.type) == RQ_ACT_F32 ? t > 4 : t != 3 && t != 4)
                            assert_int_equal(!!isnan(p.y[t * MAX_ROWS + r]), t < 3);
            }
            /* Scales that are not finite. */
            memset(p.w, 0xff, p.row_bytes * MAX_ROWS);
            run(&p, isa, 0, MAX_ROWS, 16, p.y);
            run(&p, isa, 0, MAX_ROWS, 1, p.y);
            release(&p);
        }
    }
}

static void sizes(void **state)
{
    (void)state;
    assert_int_equal(rq_matmul_act_kind(RQ_TYPE_I32), RQ_ACT_NONE);
    assert_int_equal(rq_matmul_act_kind((rq_type)4), RQ_ACT_NONE);
    assert_int_equal(rq_matmul_act_kind(RQ_TYPE_Q4_K), RQ_ACT_Q256);
    assert_int_equal(rq_matmul_act_kind(RQ_TYPE_Q6_K), RQ_ACT_Q256);
    assert_int_equal(rq_matmul_act_kind(RQ_TYPE_Q8_0), RQ_ACT_Q32);
    assert_int_equal(rq_matmul_act_kind(RQ_TYPE_BF16), RQ_ACT_F32);
    assert_int_equal(rq_matmul_act_bytes(RQ_TYPE_Q4_K, 4096), 16 * 320);
    assert_int_equal(rq_matmul_act_bytes(RQ_TYPE_Q4_K, 4097), 0);
    assert_int_equal(rq_matmul_act_bytes(RQ_TYPE_Q8_0, 288), 2 * 320);
    assert_int_equal(rq_matmul_act_bytes(RQ_TYPE_F16, 7), 28);
    assert_int_equal(rq_matmul_act_bytes(RQ_TYPE_I32, 32), 0);
}

/* What the machine can run must be what the build offers. */
static void nothing_missing(void **state)
{
    (void)state;
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon", "neon_dot"};
    for (size_t i = 0; i < 5; i++) {
        const rq_cpu_isa *isa = rq_cpu_isa_by_name(names[i]);
        if (rq_cpu_machine_runs(names[i]) != (isa != NULL))
            fail_msg("%s: built or run, but not both", names[i]);
        if (isa) {
            assert_string_equal(isa->name, names[i]);
            print_message("ran %s\n", names[i]);
        }
    }
    assert_null(rq_cpu_isa_by_name("sse9"));
    assert_null(rq_cpu_isa_by_name(NULL));
    assert_non_null(rq_cpu_isa_best());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_missing), cmocka_unit_test(sizes),
        cmocka_unit_test(against_double),  cmocka_unit_test(same_bytes),
        cmocka_unit_test(many_columns),    cmocka_unit_test(same_bytes_as_scalar),
        cmocka_unit_test(extremes),        cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
