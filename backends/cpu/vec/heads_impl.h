/* heads_impl.h - the kernels of heads.h, in registers of eight floats that the compiler maps to what the machine
 * has. Included once per table, with RQ_SIMD_<NAME> chosen for simd.h. */
#include "backends/cpu/vec/heads.h"
#include "backends/cpu/vec/simd.h"

#include <math.h>

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));
typedef v8 v8_loose __attribute__((aligned(4), may_alias)); /* anywhere in an array of floats */

#define V8(p)  (*(v8_loose *)(void *)(p))
#define V8C(p) (*(const v8_loose *)(const void *)(p))

/* ---- matrices -------------------------------------------------------------------------------------------- */

/* One piece: y[l] = sum over i ascending of table[i][l] * x[i]. n, lanes and rows are constants where it counts;
 * 16 results of each row are in registers at a time. */
RQ_INLINE void piece(const float *table, uint32_t n, uint32_t lanes, const float *x, float *y, size_t stride,
                     uint32_t rows)
{
    uint32_t l = 0;
    for (; l + 16 <= lanes; l += 16) {
        v8 sum[RQ_TURN_ROWS][2] = {{{0}}};
        for (uint32_t i = 0; i < n; i++) {
            v8 a = V8C(table + (size_t)i * lanes + l), b = V8C(table + (size_t)i * lanes + l + 8);
            for (uint32_t r = 0; r < rows; r++) {
                sum[r][0] += a * x[r * stride + i];
                sum[r][1] += b * x[r * stride + i];
            }
        }
        for (uint32_t r = 0; r < rows; r++) {
            V8(y + r * stride + l) = sum[r][0];
            V8(y + r * stride + l + 8) = sum[r][1];
        }
    }
    if (l == lanes) return;
    v8 sum[RQ_TURN_ROWS] = {{0}};
    for (uint32_t i = 0; i < n; i++) {
        v8 a = V8C(table + (size_t)i * lanes + l);
        for (uint32_t r = 0; r < rows; r++) sum[r] += a * x[r * stride + i];
    }
    for (uint32_t r = 0; r < rows; r++) V8(y + r * stride + l) = sum[r];
}

RQ_INLINE void matrices(const rq_head_turn *t, const float *table, const float *x, float *y, size_t stride,
                        uint32_t rows)
{
    x += t->offset;
    y += t->offset;
    if (t->n == 8) { /* two, four and eight at a time all end here */
        for (uint32_t k = 0; k < t->count; k++)
            piece(table + (size_t)k * 64, 8, 8, x + (size_t)k * 8, y + (size_t)k * 8, stride, rows);
        return;
    }
    if (t->n == 6) { /* threes */
        for (uint32_t k = 0; k < t->count; k++)
            piece(table + (size_t)k * 48, 6, 8, x + (size_t)k * 6, y + (size_t)k * 6, stride, rows);
        return;
    }
    for (uint32_t k = 0; k < t->count; k++)
        piece(table + (size_t)k * t->n * t->lanes, t->n, t->lanes, x + (size_t)k * t->n, y + (size_t)k * t->n,
              stride, rows);
}

/* ---- Hadamard -------------------------------------------------------------------------------------------- */

#ifdef __clang__
#define SHUFFLE(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#else
#define SHUFFLE(a, ...) __builtin_shuffle(a, (i8x){__VA_ARGS__})
#endif

/* Butterflies of strides 1, 2 and 4 inside a register: partner plus or minus itself. */
#define BUTTERFLIES_8(v)                                                                                     \
    do {                                                                                                     \
        v = SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6) + v * (v8){1, -1, 1, -1, 1, -1, 1, -1};                       \
        v = SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5) + v * (v8){1, 1, -1, -1, 1, 1, -1, -1};                       \
        v = SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3) + v * (v8){1, 1, 1, 1, -1, -1, -1, -1};                       \
    } while (0)

static void butterflies(float *y, uint32_t n)
{
    uint32_t stride = 1;
    if (n >= 8) {
        for (uint32_t i = 0; i < n; i += 8) {
            v8 v = V8C(y + i);
            BUTTERFLIES_8(v);
            V8(y + i) = v;
        }
        for (stride = 8; stride < n; stride *= 2)
            for (uint32_t i = 0; i < n; i += 2 * stride)
                for (uint32_t j = i; j < i + stride; j += 8) {
                    v8 a = V8C(y + j), b = V8C(y + j + stride);
                    V8(y + j) = a + b;
                    V8(y + j + stride) = a - b;
                }
    }
    for (; stride < n; stride *= 2)
        for (uint32_t i = 0; i < n; i++) {
            if (i & stride) continue;
            float a = y[i], b = y[i + stride];
            y[i] = a + b;
            y[i + stride] = a - b;
        }
}

static void hadamards(const rq_head_turn *t, const float *signs, bool inverse, const float *x, float *y,
                      size_t stride, uint32_t rows)
{
    uint32_t n = t->n;
    float norm = 1.0f / sqrtf((float)n);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < t->count; k++) {
            const float *s = signs + (size_t)k * n;
            const float *from = x + r * stride + t->offset + (size_t)k * n;
            float *to = y + r * stride + t->offset + (size_t)k * n;
            for (uint32_t i = 0; i < n; i++) to[i] = inverse ? from[i] : from[i] * s[i];
            butterflies(to, n);
            for (uint32_t i = 0; i < n; i++) to[i] = inverse ? to[i] * norm * s[i] : to[i] * norm;
        }
}

static void turn(const rq_head_turn *t, const float *table, bool inverse, const float *x, float *y,
                 size_t stride, uint32_t rows)
{
    if (t->hadamard)
        hadamards(t, table, inverse, x, y, stride, rows);
    else if (rows == RQ_TURN_ROWS)
        matrices(t, table, x, y, stride, RQ_TURN_ROWS);
    else
        for (uint32_t r = 0; r < rows; r++) matrices(t, table, x + r * stride, y + r * stride, stride, 1);
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

static void shift(const float *x, const float *mean, const float *lambda, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = mean ? x[i] - mean[i] : x[i];
    for (size_t i = 0; i < n && lambda; i++) y[i] *= lambda[i];
}

static void unshift(const float *x, const float *mean, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = mean ? x[i] + mean[i] : x[i];
}

static void widen(rq_type type, const void *x, float *y, size_t n)
{
    const uint16_t *h = x;
    size_t i = 0;
    if (type == RQ_TYPE_F16) {
        for (; i + VL <= n; i += VL) vf_store(y + i, vf_load_f16(h + i));
        for (; i < n; i++) y[i] = rq_half_to_f32(h[i]);
    } else if (type == RQ_TYPE_BF16)
        for (; i < n; i++) y[i] = rq_bhalf_to_f32(h[i]);
    else
        memcpy(y, x, n * sizeof *y);
}
