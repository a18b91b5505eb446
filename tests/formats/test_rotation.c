/* test_rotation.c - rotations: orthogonal, inverse, the algebra each is named after, the same for the same
 * seed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "backends/formats/rotation.h"
#include "tests/formats/random.h"

/* The rotation as one matrix, by rotating unit vectors: column k = R e_k. */
static double *full_matrix(const rq_rotation *r, bool inverse)
{
    uint32_t d = r->dim;
    double *m = calloc((size_t)d * d, sizeof *m), *x = calloc(d, sizeof *x), *y = calloc(d, sizeof *y);
    assert_true(m && x && y);
    for (uint32_t k = 0; k < d; k++) {
        x[k] = 1;
        rq_rotate_f64(r, inverse, x, y);
        x[k] = 0;
        for (uint32_t i = 0; i < d; i++) m[(size_t)i * d + k] = y[i];
    }
    free(x);
    free(y);
    return m;
}

/* R R^T = 1 and the inverse is R^T. Entries are floats, so that rows of n terms are orthonormal up to about
 * 2^-24 sqrt(n); four standard deviations of that are far below 1e-6. Haar is cubic and taken at fewer
 * sizes. */
static void test_orthogonal(void **state)
{
    for (int kind = 0; kind < RQ_ROTATION_KINDS; kind++)
        for (uint32_t d = 32; d <= 512; d += 8) {
            bool large = d > 128 && d % 64 != 0 && d % 56 != 0;
            if (large || (kind == RQ_ROTATION_HAAR && d > 160)) continue;
            rq_rotation r;
            assert_int_equal(rq_rotation_make((rq_rotation_kind)kind, d, d, &r, NULL), RQ_OK);
            double *m = full_matrix(&r, false), *t = full_matrix(&r, true);
            for (uint32_t i = 0; i < d; i++)
                for (uint32_t j = 0; j <= i; j++) {
                    double dot = 0;
                    for (uint32_t k = 0; k < d; k++) dot += m[(size_t)i * d + k] * m[(size_t)j * d + k];
                    assert_true(fabs(dot - (i == j)) < 1e-6);
                    assert_true(fabs(m[(size_t)i * d + j] - t[(size_t)j * d + i]) < 1e-15);
                    assert_true(fabs(m[(size_t)j * d + i] - t[(size_t)i * d + j]) < 1e-15);
                }
            free(m);
            free(t);
            rq_rotation_free(&r);
        }
}

/* Every size: there and back, and q . k = (R q) . (R k), in both precisions. 1e-5 of |q| |k|: research
 * measured at most 1e-6 in float. */
static void test_identity(void **state)
{
    static float q[512], k[512], rq_[512], rk[512], back[512];
    static double x[512], y[512], z[512];
    uint64_t seed = 3;
    for (int kind = 0; kind < RQ_ROTATION_KINDS; kind++)
        for (uint32_t d = 32; d <= 512; d += kind == RQ_ROTATION_HAAR ? 80 : 8) {
            rq_rotation r;
            assert_int_equal(rq_rotation_make((rq_rotation_kind)kind, d, 77, &r, NULL), RQ_OK);
            double before = 0, after = 0, qq = 0, kk = 0;
            for (uint32_t i = 0; i < d; i++) q[i] = random_gauss(&seed), k[i] = random_gauss(&seed);
            rq_rotate_f32(&r, false, q, rq_);
            rq_rotate_f32(&r, false, k, rk);
            rq_rotate_f32(&r, true, rk, back);
            for (uint32_t i = 0; i < d; i++) {
                before += (double)q[i] * (double)k[i];
                after += (double)rq_[i] * (double)rk[i];
                qq += (double)q[i] * (double)q[i];
                kk += (double)k[i] * (double)k[i];
                x[i] = (double)k[i];
            }
            assert_true(fabs(before - after) <= 1e-5 * sqrt(qq * kk));
            rq_rotate_f64(&r, false, x, y);
            rq_rotate_f64(&r, true, y, z);
            for (uint32_t i = 0; i < d; i++) {
                assert_true(fabs((double)back[i] - x[i]) < 1e-5);
                assert_true(fabs(y[i] - (double)rk[i]) < 1e-5);
                assert_true(fabs(z[i] - x[i]) < 1e-5);
            }
            rq_rotation_free(&r);
        }
}

/* ---- what the names promise
 * ------------------------------------------------------------------------------ */

/* Product in Cl(3,0), basis blades as bit sets of {1, 2, 3}: reordering gives a sign for each swap, equal
 * vectors square to one. */
static void clifford(const double a[8], const double b[8], double out[8])
{
    double product[8] = {0};
    for (unsigned i = 0; i < 8; i++)
        for (unsigned j = 0; j < 8; j++) {
            int swaps = 0;
            for (unsigned k = i >> 1; k; k >>= 1) swaps += __builtin_popcount(k & j);
            product[i ^ j] += (swaps & 1 ? -1 : 1) * a[i] * b[j];
        }
    memcpy(out, product, sizeof product);
}

/* From a 3 x 3 matrix back to its rotor (as from a rotation matrix to a quaternion), then the sandwich R v
 * R~ of each basis vector: it must be the matrix, and have no trivector. */
static void is_rotor(const float *m)
{
    double trace = (double)m[0] + (double)m[4] + (double)m[8], v[4];
    /* With s: R = s + b12 e12 + b13 e13 + b23 e23. Where s is small the other way to solve for it is worse
     * than 1e-3 by rounding, and the block is left to the test of orthogonality and determinant. */
    double s = sqrt(fmax(0, 1 + trace)) / 2;
    double det = (double)m[0] * ((double)m[4] * (double)m[8] - (double)m[5] * (double)m[7]) -
                 (double)m[1] * ((double)m[3] * (double)m[8] - (double)m[5] * (double)m[6]) +
                 (double)m[2] * ((double)m[3] * (double)m[7] - (double)m[4] * (double)m[6]);
    assert_true(fabs(det - 1) < 1e-6);
    if (s < 0.05) return;
    v[0] = s;
    v[1] = ((double)m[1] - (double)m[3]) / (4 * s);
    v[2] = ((double)m[2] - (double)m[6]) / (4 * s);
    v[3] = ((double)m[5] - (double)m[7]) / (4 * s);
    double rotor[8] = {v[0], 0, 0, v[1], 0, v[2], v[3], 0},
           reverse[8] = {v[0], 0, 0, -v[1], 0, -v[2], -v[3], 0};
    for (int k = 0; k < 3; k++) {
        double e[8] = {0}, out[8];
        e[1 << k] = 1;
        clifford(rotor, e, out);
        clifford(out, reverse, out);
        for (int i = 0; i < 3; i++) assert_true(fabs(out[1 << i] - (double)m[3 * i + k]) < 1e-5);
        assert_true(fabs(out[7]) < 1e-6 && fabs(out[0]) < 1e-6);
    }
}

static void test_rotor(void **state)
{
    static const struct {
        uint32_t dim, triples, pairs;
    } cases[] = {{96, 32, 0}, {128, 42, 1}, {64, 20, 2}, {40, 12, 2}, {80, 26, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rq_rotation r;
        assert_int_equal(rq_rotation_make(RQ_ROTATION_ROTOR, cases[i].dim, i, &r, NULL), RQ_OK);
        assert_int_equal(r.blocks[0].count, cases[i].triples);
        assert_int_equal(r.blocks[0].size, 3);
        assert_int_equal(r.n_blocks, cases[i].pairs ? 2 : 1);
        if (cases[i].pairs) {
            assert_int_equal(r.blocks[1].size, 2);
            assert_int_equal(r.blocks[1].count, cases[i].pairs);
            assert_int_equal(r.blocks[1].offset, 3 * cases[i].triples);
        }
        for (uint32_t b = 0; b < cases[i].triples; b++) is_rotor(r.data + (size_t)b * 9);
        rq_rotation_free(&r);
    }
}

/* A quaternion product is the matrix with one column's entries in Hamilton's pattern; a Givens rotation has
 * equal diagonal and opposite rest; so8 and the others have determinant one (checked through the pattern or
 * by elimination). */
static void test_blocks(void **state)
{
    rq_rotation r;
    assert_int_equal(rq_rotation_make(RQ_ROTATION_ISO, 64, 9, &r, NULL), RQ_OK);
    for (int b = 0; b < 16; b++) {
        const float *m = r.data + (size_t)b * 16;
        float w = m[0], x = m[4], y = m[8], z = m[12]; /* q 1 = q */
        const float want[16] = {w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w};
        assert_memory_equal(m, want, sizeof want);
    }
    rq_rotation_free(&r);
    assert_int_equal(rq_rotation_make(RQ_ROTATION_PLANAR, 64, 9, &r, NULL), RQ_OK);
    for (int b = 0; b < 32; b++) {
        const float *m = r.data + (size_t)b * 4;
        assert_true(m[0] == m[3] && m[1] == -m[2]);
    }
    rq_rotation_free(&r);
    assert_int_equal(rq_rotation_make(RQ_ROTATION_SO8, 512, 9, &r, NULL), RQ_OK);
    for (int b = 0; b < 64; b++) {
        double a[8][8], det = 1;
        for (int i = 0; i < 64; i++) a[i / 8][i % 8] = (double)r.data[b * 64 + i];
        for (int i = 0; i < 8; i++) { /* elimination without pivots: exact zeros do not happen here */
            det *= a[i][i];
            for (int j = i + 1; j < 8; j++)
                for (int k = 7; k >= i; k--) a[j][k] -= a[j][i] / a[i][i] * a[i][k];
        }
        assert_true(fabs(det - 1) < 1e-3);
    }
    rq_rotation_free(&r);
}

/* y = H (s x) / sqrt n with H[i][j] = (-1)^popcount(i & j) (Sylvester), over the powers of two of d. */
static void test_hadamard(void **state)
{
    static const struct {
        uint32_t dim, n, size[6];
    } cases[] = {{64, 1, {64}},
                 {80, 2, {64, 16}},
                 {112, 3, {64, 32, 16}},
                 {120, 4, {64, 32, 16, 8}},
                 {192, 2, {128, 64}}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rq_rotation r;
        assert_int_equal(rq_rotation_make(RQ_ROTATION_WHT, cases[i].dim, i, &r, NULL), RQ_OK);
        assert_int_equal(r.n_blocks, cases[i].n);
        assert_int_equal(r.n_floats, cases[i].dim);
        double *m = full_matrix(&r, false);
        uint32_t at = 0, negative = 0;
        for (uint32_t b = 0; b < r.n_blocks; b++) {
            uint32_t size = cases[i].size[b];
            assert_true(r.blocks[b].hadamard && r.blocks[b].size == size && r.blocks[b].offset == at);
            for (uint32_t row = 0; row < size; row++)
                for (uint32_t k = 0; k < size; k++) {
                    double h = __builtin_popcount(row & k) & 1 ? -1 : 1, sign = (double)r.data[at + k];
                    assert_true(fabs(sign) == 1);
                    double got = m[(size_t)(at + row) * r.dim + at + k];
                    assert_true(fabs(got - h * sign / sqrt(size)) < 1e-14);
                }
            at += size;
        }
        for (uint32_t k = 0; k < r.dim; k++) negative += r.data[k] < 0;
        assert_true(negative > 0 && negative < r.dim);
        assert_int_equal(at, r.dim);
        free(m);
        rq_rotation_free(&r);
    }
}

/* Entries of Haar matrices: mean 0, variance 1 / d, fourth moment 3 / (d (d + 2)); and over seeds no
 * preference for a sign, which is what fixing the signs of R is for. */
static void test_haar(void **state)
{
    enum { D = 32, SEEDS = 200 };
    double corner = 0, second = 0, fourth = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        rq_rotation r;
        assert_int_equal(rq_rotation_make(RQ_ROTATION_HAAR, D, seed, &r, NULL), RQ_OK);
        corner += (double)r.data[0];
        for (int i = 0; i < D * D; i++) {
            double v = (double)r.data[i];
            second += v * v;
            fourth += v * v * v * v;
        }
        rq_rotation_free(&r);
    }
    assert_true(fabs(corner / SEEDS) < 4 / sqrt(32.0 * SEEDS)); /* four standard errors */
    assert_true(fabs(second / (D * SEEDS) - 1) < 1e-5);
    assert_true(fabs(fourth / (D * D * SEEDS) / (3.0 / (D * (D + 2))) - 1) < 0.02);
}

/* ---- seeds, learned matrices, errors
 * --------------------------------------------------------------------- */

static void test_seed(void **state)
{
    for (int kind = 1; kind < RQ_ROTATION_KINDS; kind++) {
        rq_rotation a, b, c;
        assert_int_equal(rq_rotation_make((rq_rotation_kind)kind, 128, 1234, &a, NULL), RQ_OK);
        assert_int_equal(rq_rotation_make((rq_rotation_kind)kind, 128, 1234, &b, NULL), RQ_OK);
        assert_int_equal(rq_rotation_make((rq_rotation_kind)kind, 128, 1235, &c, NULL), RQ_OK);
        assert_memory_equal(a.data, b.data, a.n_floats * sizeof *a.data);
        assert_memory_not_equal(a.data, c.data, a.n_floats * sizeof *a.data);
        rq_rotation_free(&a);
        rq_rotation_free(&b);
        rq_rotation_free(&c);
    }
}

static void test_learned(void **state)
{
    rq_rotation random, learned;
    rq_error err = {0};
    assert_int_equal(rq_rotation_make(RQ_ROTATION_SO8, 64, 1, &random, NULL), RQ_OK);
    assert_int_equal(rq_rotation_from_so8(64, random.data, &learned, &err), RQ_OK);
    assert_int_equal(learned.n_floats, 512);
    assert_memory_equal(learned.data, random.data, 512 * sizeof(float));
    rq_rotation_free(&learned);
    random.data[200] += 0.01f;
    assert_int_equal(rq_rotation_from_so8(64, random.data, &learned, &err), RQ_ERR_FORMAT);
    assert_non_null(strstr(err.text, "matrix 3"));
    assert_null(learned.data);
    random.data[200] = NAN;
    assert_int_equal(rq_rotation_from_so8(64, random.data, &learned, &err), RQ_ERR_FORMAT);
    rq_rotation_free(&random);
}

static void test_errors(void **state)
{
    rq_rotation r;
    rq_error err = {0};
    assert_int_equal(rq_rotation_make(RQ_ROTATION_WHT, 1016, 1, &r, &err), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_rotation_make(RQ_ROTATION_ISO, 60, 1, &r, &err), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_rotation_make(RQ_ROTATION_ISO, 0, 1, &r, &err), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_rotation_make(RQ_ROTATION_HAAR, 4096, 1, &r, &err), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_rotation_make((rq_rotation_kind)99, 64, 1, &r, &err), RQ_ERR_ARGUMENT);
    assert_null(rq_rotation_name((rq_rotation_kind)99));
    assert_null(r.data);
    int64_t alive = rq_mem_alive();
    for (int kind = 0; kind < RQ_ROTATION_KINDS; kind++)
        for (uint64_t n = 1;; n++) {
            rq_mem_fail_at(n);
            rq_status status = rq_rotation_make((rq_rotation_kind)kind, 64, 1, &r, &err);
            bool reached = rq_mem_count() >= n;
            rq_mem_fail_at(0);
            assert_int_equal(status, reached ? RQ_ERR_MEMORY : RQ_OK);
            rq_rotation_free(&r);
            assert_int_equal(rq_mem_alive(), alive);
            if (!reached) break;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orthogonal), cmocka_unit_test(test_identity), cmocka_unit_test(test_rotor),
        cmocka_unit_test(test_blocks),     cmocka_unit_test(test_hadamard), cmocka_unit_test(test_haar),
        cmocka_unit_test(test_seed),       cmocka_unit_test(test_learned),  cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
