/* rotation.c - shapes of rotations, the seeded generator, and rotating. */
#include "backends/formats/rotation.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "backends/base/mem.h"

/* ---- shapes
 * ---------------------------------------------------------------------------------------------- */

const char *rq_rotation_name(rq_rotation_kind kind)
{
    static const char *const names[RQ_ROTATION_KINDS] = {"none", "planar", "rotor", "iso",
                                                         "so8",  "wht",    "haar"};
    return (unsigned)kind < RQ_ROTATION_KINDS ? names[kind] : NULL;
}

rq_status rq_rotation_allowed(rq_rotation_kind kind, uint32_t dim, rq_error *err)
{
    if ((unsigned)kind >= RQ_ROTATION_KINDS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no rotation number %d", (int)kind);
    if (dim == 0 || dim % 8 != 0 || dim > RQ_ROTATION_MAX_DIM)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "rotation %s: vectors of %u elements cannot be rotated, only multiples of 8 up to %d",
                       rq_rotation_name(kind), dim, RQ_ROTATION_MAX_DIM);
    if (kind == RQ_ROTATION_WHT && __builtin_popcount(dim) > RQ_ROTATION_BLOCKS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "rotation wht: %u elements would need %d Hadamard blocks, more than %d", dim,
                       __builtin_popcount(dim), RQ_ROTATION_BLOCKS);
    return RQ_OK;
}

/* Appends a run of `count` blocks of `size` behind the ones there are. */
static void add_block(rq_rotation *r, uint32_t count, uint32_t size, bool hadamard)
{
    if (count == 0) return;
    uint32_t offset = 0;
    for (uint32_t i = 0; i < r->n_blocks; i++) offset += (uint32_t)r->blocks[i].count * r->blocks[i].size;
    r->blocks[r->n_blocks++] =
        (rq_rotation_block){(uint16_t)offset, (uint16_t)count, (uint16_t)size, hadamard};
    r->n_floats += count * size * (hadamard ? 1 : size);
}

void rq_rotation_shape(rq_rotation_kind kind, uint32_t dim, rq_rotation *out)
{
    *out = (rq_rotation){.kind = kind, .dim = dim};
    switch (kind) {
    case RQ_ROTATION_PLANAR:
        add_block(out, dim / 2, 2, false);
        break;
    case RQ_ROTATION_ROTOR: { /* the rest of the division by 3 goes in pairs: 2 = one, 1 + 3 = two */
        uint32_t pairs = dim % 3 == 0 ? 0 : dim % 3 == 2 ? 1 : 2;
        add_block(out, (dim - 2 * pairs) / 3, 3, false);
        add_block(out, pairs, 2, false);
        break;
    }
    case RQ_ROTATION_ISO:
        add_block(out, dim / 4, 4, false);
        break;
    case RQ_ROTATION_SO8:
        add_block(out, dim / 8, 8, false);
        break;
    case RQ_ROTATION_WHT:
        for (uint32_t size = RQ_ROTATION_MAX_DIM; size >= 8; size /= 2)
            if (dim & size) add_block(out, 1, size, true);
        break;
    case RQ_ROTATION_HAAR:
        add_block(out, 1, dim, false);
        break;
    default:
        break;
    }
}

/* ---- the generator
 * --------------------------------------------------------------------------------------- */

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
typedef struct generator {
    uint64_t state;
} generator;

static uint64_t next_u64(generator *g)
{
    uint64_t z = g->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in (-1, 1), never 0. */
static double next_symmetric(generator *g)
{
    return ((double)(next_u64(g) >> 12) + 0.5) * 0x1p-51 - 1.0;
}

/* A uniform unit vector of 2 or 4 elements: a point of the ball by rejection, pushed to its surface. The ball
 * fills at least 30 % of the cube, so the loop is short. */
static void unit_vector(generator *g, double *v, int n)
{
    double norm;
    do {
        norm = 0;
        for (int i = 0; i < n; i++) {
            v[i] = next_symmetric(g);
            norm += v[i] * v[i];
        }
    } while (norm > 1.0 || norm < 1e-6);
    double factor = 1.0 / sqrt(norm);
    for (int i = 0; i < n; i++) v[i] *= factor;
}

/* ln x for 0 < x < 1 in plain arithmetic, because libraries differ in last bits: x = m 2^e, m in [1/sqrt 2,
 * sqrt 2), ln m = 2 atanh((m - 1) / (m + 1)). */
static double natural_log(double x)
{
    int e;
    double m = frexp(x, &e);
    if (m < 0.70710678118654752) {
        m *= 2;
        e--;
    }
    double t = (m - 1) / (m + 1), t2 = t * t, sum = 0;
    for (int k = 25; k >= 1; k -= 2) sum = sum * t2 + 1.0 / k;
    return 2 * t * sum + e * 0.69314718055994531;
}

/* A pair of independent normal values: Marsaglia's polar method. */
static void normal_pair(generator *g, double v[2])
{
    double s;
    do {
        v[0] = next_symmetric(g);
        v[1] = next_symmetric(g);
        s = v[0] * v[0] + v[1] * v[1];
    } while (s >= 1.0 || s < 1e-300);
    double factor = sqrt(-2 * natural_log(s) / s);
    v[0] *= factor;
    v[1] *= factor;
}

/* Haar: the rows of a Gaussian matrix made orthonormal in order (modified Gram-Schmidt, each row twice).
 * That is the QR decomposition with a positive diagonal of R, the form that makes Q Haar-distributed
 * (Mezzadri, 2007). q has n * n doubles. */
static void haar(generator *g, double *q, uint32_t n)
{
    for (uint32_t i = 0; i < n * n; i += 2) normal_pair(g, q + i); /* n is even */
    for (uint32_t i = 0; i < n; i++) {
        double *row = q + (size_t)i * n;
        for (int pass = 0; pass < 2; pass++)
            for (uint32_t j = 0; j < i; j++) {
                const double *other = q + (size_t)j * n;
                double dot = 0;
                for (uint32_t k = 0; k < n; k++) dot += row[k] * other[k];
                for (uint32_t k = 0; k < n; k++) row[k] -= dot * other[k];
            }
        double norm = 0;
        for (uint32_t k = 0; k < n; k++) norm += row[k] * row[k];
        norm = 1.0 / sqrt(norm);
        for (uint32_t k = 0; k < n; k++) row[k] *= norm;
    }
}

/* Sign of the determinant of an orthogonal 8 x 8 matrix, by elimination with pivots. */
static bool determinant_is_negative(const double *matrix)
{
    double a[8][8];
    memcpy(a, matrix, sizeof a);
    bool negative = false;
    for (int i = 0; i < 8; i++) {
        int pivot = i;
        for (int j = i + 1; j < 8; j++)
            if (fabs(a[j][i]) > fabs(a[pivot][i])) pivot = j;
        if (pivot != i) {
            negative = !negative;
            for (int k = 0; k < 8; k++) {
                double swap = a[i][k];
                a[i][k] = a[pivot][k];
                a[pivot][k] = swap;
            }
        }
        if (a[i][i] < 0) negative = !negative;
        for (int j = i + 1; j < 8; j++) {
            double factor = a[j][i] / a[i][i];
            for (int k = i; k < 8; k++) a[j][k] -= factor * a[i][k];
        }
    }
    return negative;
}

/* y = q v for quaternions (w, x, y, z): Hamilton's product as a matrix. */
static void quaternion_matrix(const double q[4], double *m)
{
    const double w = q[0], x = q[1], y = q[2], z = q[3];
    const double left[16] = {w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w};
    memcpy(m, left, sizeof left);
}

/* v -> R v R~ for the rotor R = s + b12 e12 + b13 e13 + b23 e23 of Cl(3,0), s^2 + |b|^2 = 1. Multiplying
 * out the sandwich on e1, e2, e3 with e_i e_i = 1, e_i e_j = -e_j e_i gives these nine entries; nothing
 * remains in the trivector. */
static void rotor_matrix(const double r[4], double *m)
{
    const double s = r[0], a = r[1], b = r[2], c = r[3]; /* b12, b13, b23 */
    const double matrix[9] = {
        s * s - a * a - b * b + c * c, 2 * (s * a - b * c),           2 * (s * b + a * c),
        -2 * (s * a + b * c),          s * s - a * a + b * b - c * c, 2 * (s * c - a * b),
        2 * (a * c - s * b),           -2 * (s * c + a * b),          s * s + a * a - b * b - c * c};
    memcpy(m, matrix, sizeof matrix);
}

static void random_block(generator *g, const rq_rotation_block *block, double *m)
{
    double v[4];
    switch (block->size) {
    case 2:
        unit_vector(g, v, 2);
        m[0] = v[0], m[1] = -v[1], m[2] = v[1], m[3] = v[0];
        break;
    case 3:
        unit_vector(g, v, 4);
        rotor_matrix(v, m);
        break;
    case 4:
        unit_vector(g, v, 4);
        quaternion_matrix(v, m);
        break;
    default:
        haar(g, m, block->size);
        break;
    }
}

rq_status rq_rotation_make(rq_rotation_kind kind, uint32_t dim, uint64_t seed, rq_rotation *out,
                           rq_error *err)
{
    *out = (rq_rotation){.kind = RQ_ROTATION_NONE};
    rq_status status = rq_rotation_allowed(kind, dim, err);
    if (status != RQ_OK) return status;
    rq_rotation r;
    rq_rotation_shape(kind, dim, &r);
    uint32_t widest = 0;
    for (uint32_t b = 0; b < r.n_blocks; b++)
        if (!r.blocks[b].hadamard && r.blocks[b].size > widest) widest = r.blocks[b].size;
    double *matrix = rq_malloc((size_t)widest * widest * sizeof *matrix);
    r.data = rq_malloc((size_t)r.n_floats * sizeof *r.data);
    if (!matrix || !r.data) {
        rq_free(matrix);
        rq_free(r.data);
        return rq_fail(err, RQ_ERR_MEMORY, "rotation %s: no memory for %u numbers", rq_rotation_name(kind),
                       r.n_floats);
    }
    generator g = {seed ^ (uint64_t)kind << 56};
    float *data = r.data;
    for (uint32_t b = 0; b < r.n_blocks; b++) {
        const rq_rotation_block *block = &r.blocks[b];
        uint32_t n = block->hadamard ? block->size : (uint32_t)block->size * block->size;
        for (uint32_t i = 0; i < block->count; i++, data += n) {
            if (block->hadamard) {
                for (uint32_t k = 0; k < n; k++) data[k] = next_u64(&g) >> 63 ? -1.0f : 1.0f;
                continue;
            }
            random_block(&g, block, matrix);
            if (kind == RQ_ROTATION_SO8 && determinant_is_negative(matrix))
                for (int k = 0; k < 8; k++) matrix[k] = -matrix[k];
            for (uint32_t k = 0; k < n; k++) data[k] = (float)matrix[k];
        }
    }
    rq_free(matrix);
    *out = r;
    return RQ_OK;
}

rq_status rq_rotation_from_so8(uint32_t dim, const float *matrices, rq_rotation *out, rq_error *err)
{
    *out = (rq_rotation){.kind = RQ_ROTATION_NONE};
    rq_status status = rq_rotation_allowed(RQ_ROTATION_SO8, dim, err);
    if (status != RQ_OK) return status;
    for (uint32_t b = 0; b < dim / 8; b++) {
        const float *m = matrices + (size_t)b * 64;
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++) {
                double dot = i == j ? -1.0 : 0.0;
                for (int k = 0; k < 8; k++) dot += (double)m[8 * i + k] * (double)m[8 * j + k];
                if (!(fabs(dot) <= 1e-4))
                    return rq_fail(err, RQ_ERR_FORMAT, "matrix %u of a learned rotation is not orthogonal",
                                   b);
            }
    }
    rq_rotation r;
    rq_rotation_shape(RQ_ROTATION_SO8, dim, &r);
    r.data = rq_malloc((size_t)r.n_floats * sizeof *r.data);
    if (!r.data) return rq_fail(err, RQ_ERR_MEMORY, "learned rotation: no memory for %u numbers", r.n_floats);
    memcpy(r.data, matrices, (size_t)r.n_floats * sizeof *r.data);
    *out = r;
    return RQ_OK;
}

void rq_rotation_free(rq_rotation *r)
{
    rq_free(r->data);
    *r = (rq_rotation){.kind = RQ_ROTATION_NONE};
}

/* ---- rotating, in both precisions from one text
 * ----------------------------------------------------------- */

#define ROTATE(name, real, inverse_sqrt)                                                                     \
    static void name##_hadamard(const float *sign, uint32_t n, bool inverse, const real *x, real *y)         \
    {                                                                                                        \
        for (uint32_t i = 0; i < n; i++) y[i] = inverse ? x[i] : (real)sign[i] * x[i];                       \
        for (uint32_t stride = 1; stride < n; stride *= 2)                                                   \
            for (uint32_t i = 0; i < n; i += 2 * stride)                                                     \
                for (uint32_t k = i; k < i + stride; k++) {                                                  \
                    real a = y[k], b = y[k + stride];                                                        \
                    y[k] = a + b;                                                                            \
                    y[k + stride] = a - b;                                                                   \
                }                                                                                            \
        const real factor = inverse_sqrt(n);                                                                 \
        for (uint32_t i = 0; i < n; i++) y[i] = (inverse ? (real)sign[i] * y[i] : y[i]) * factor;            \
    }                                                                                                        \
                                                                                                             \
    static void name##_matrix(const float *m, uint32_t n, bool inverse, const real *x, real *y)              \
    {                                                                                                        \
        for (uint32_t i = 0; i < n; i++) {                                                                   \
            real sum = 0;                                                                                    \
            for (uint32_t k = 0; k < n; k++)                                                                 \
                sum += (real)m[inverse ? (size_t)k * n + i : (size_t)i * n + k] * x[k];                      \
            y[i] = sum;                                                                                      \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    void name(const rq_rotation *r, bool inverse, const real *x, real *y)                                    \
    {                                                                                                        \
        const float *data = r->data;                                                                         \
        if (r->n_blocks == 0) memcpy(y, x, r->dim * sizeof *y);                                              \
        for (uint32_t b = 0; b < r->n_blocks; b++) {                                                         \
            uint32_t size = r->blocks[b].size, at = r->blocks[b].offset;                                     \
            for (uint32_t i = 0; i < r->blocks[b].count; i++, at += size) {                                  \
                (r->blocks[b].hadamard ? name##_hadamard : name##_matrix)(data, size, inverse, x + at,       \
                                                                          y + at);                           \
                data += r->blocks[b].hadamard ? size : (size_t)size * size;                                  \
            }                                                                                                \
        }                                                                                                    \
    }

#define INVERSE_SQRT_F64(n) (1.0 / sqrt((double)(n)))
#define INVERSE_SQRT_F32(n) ((float)(1.0 / sqrt((double)(n))))
ROTATE(rq_rotate_f32, float, INVERSE_SQRT_F32)
ROTATE(rq_rotate_f64, double, INVERSE_SQRT_F64)
