/* kv_basis.c - from a profile's basis to the matrices of a klt format. */
#include "backends/base/mem.h"
#include "backends/formats/kv_format.h"

#include <math.h>
#include <string.h>

/* Inverts a [d][d] into out by elimination with the largest pivot of each column; false when a pivot is lost in
 * the rounding of f32. Destroys a. */
static bool invert(double *a, uint32_t d, double *out)
{
    for (size_t i = 0; i < (size_t)d * d; i++) out[i] = i % (d + 1) == 0;
    for (uint32_t c = 0; c < d; c++) {
        uint32_t best = c;
        double largest = 0;
        for (uint32_t r = 0; r < d; r++) largest = fmax(largest, fabs(a[(size_t)r * d + c]));
        for (uint32_t r = c + 1; r < d; r++)
            if (fabs(a[(size_t)r * d + c]) > fabs(a[(size_t)best * d + c])) best = r;
        double pivot = a[(size_t)best * d + c];
        if (!(fabs(pivot) > 1e-7 * largest) || !isfinite(pivot)) return false;
        for (uint32_t k = 0; k < d; k++) {
            double x = a[(size_t)best * d + k], y = out[(size_t)best * d + k];
            a[(size_t)best * d + k] = a[(size_t)c * d + k];
            out[(size_t)best * d + k] = out[(size_t)c * d + k];
            a[(size_t)c * d + k] = x / pivot;
            out[(size_t)c * d + k] = y / pivot;
        }
        for (uint32_t r = 0; r < d; r++) {
            double f = a[(size_t)r * d + c];
            if (r == c || f == 0) continue;
            for (uint32_t k = 0; k < d; k++) {
                a[(size_t)r * d + k] -= f * a[(size_t)c * d + k];
                out[(size_t)r * d + k] -= f * out[(size_t)c * d + k];
            }
        }
    }
    return true;
}

/* Column by column: y = W x, x a column of `matrix` (or of its transpose). */
static rq_status through_spans(const rq_kv_format *format, uint32_t d, uint64_t seed, const double *matrix,
                               bool transposed, float *out, double *column, rq_error *err)
{
    for (uint32_t i = 0; i < rq_kv_spans(format->form); i++) {
        rq_kv_span span = rq_kv_span_of(format->form, d, i);
        rq_rotation w;
        rq_status status = rq_rotation_make(RQ_ROTATION_WHT, span.size, seed + i, &w, err);
        if (status != RQ_OK) return status;
        for (uint32_t c = 0; c < d; c++) {
            for (uint32_t r = 0; r < span.size; r++) {
                size_t row = span.first + r;
                column[r] = transposed ? matrix[(size_t)c * d + row] : matrix[row * d + c];
            }
            rq_rotate_f64(&w, false, column, column + d);
            for (uint32_t r = 0; r < span.size; r++)
                out[(size_t)(span.first + r) * d + c] = (float)column[d + r];
        }
        rq_rotation_free(&w);
    }
    return RQ_OK;
}

rq_status rq_kv_format_basis(const rq_kv_format *format, uint32_t d, uint64_t seed, const float *basis,
                             float *forward, float *dual, rq_error *err)
{
    size_t n = (size_t)d * d;
    double *b = rq_calloc(3 * n + 2 * (size_t)d, sizeof *b), *work = b ? b + n : NULL,
           *inverse = b ? work + n : NULL, *column = b ? inverse + n : NULL;
    if (!b) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a basis of %u directions", d);
    for (size_t i = 0; i < n; i++) b[i] = (double)basis[i];
    memcpy(work, b, n * sizeof *b);
    rq_status status = RQ_OK;
    bool good = invert(work, d, inverse);
    for (size_t i = 0; good && i < n; i++) good = fabs(b[i]) < 65504.0 && fabs(inverse[i]) < 65504.0;
    if (!good) status = rq_fail(err, RQ_ERR_FORMAT, "a basis of %u directions has no usable inverse", d);
    if (status == RQ_OK) status = through_spans(format, d, seed, b, false, forward, column, err);
    if (status == RQ_OK) status = through_spans(format, d, seed, inverse, true, dual, column, err);
    rq_free(b);
    return status;
}
