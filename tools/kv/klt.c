#include "tools/kv/klt.h"

#include "backends/base/mem.h"

#include <math.h>
#include <string.h>

/* ---- symmetric matrices ---------------------------------------------------------------------------------- */

/* Turns rows and columns p and q of the symmetric matrix a, and rows p and q of v (one eigenvector each in the end),
 * so that a[p][q] becomes 0. */
static void turn(double *a, double *v, uint32_t d, uint32_t p, uint32_t q)
{
    double apq = a[(size_t)p * d + q];
    double theta = (a[(size_t)q * d + q] - a[(size_t)p * d + p]) / (2 * apq);
    double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    double *ap = a + (size_t)p * d, *aq = a + (size_t)q * d, *vp = v + (size_t)p * d, *vq = v + (size_t)q * d;
    for (uint32_t k = 0; k < d; k++) {
        double x = ap[k], y = aq[k];
        ap[k] = c * x - s * y;
        aq[k] = s * x + c * y;
        x = vp[k], y = vq[k];
        vp[k] = c * x - s * y;
        vq[k] = s * x + c * y;
    }
    for (uint32_t k = 0; k < d; k++) {
        double x = a[(size_t)k * d + p], y = a[(size_t)k * d + q];
        a[(size_t)k * d + p] = c * x - s * y;
        a[(size_t)k * d + q] = s * x + c * y;
    }
}

/* Jacobi's method, cyclic: a becomes diagonal, rows of v its eigenvectors. */
static void diagonalise(double *a, double *v, uint32_t d)
{
    enum { SWEEPS = 30 };
    double all = 0;
    for (size_t i = 0; i < (size_t)d * d; i++) {
        v[i] = i % (d + 1) == 0;
        all += a[i] * a[i];
    }
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double off = 0;
        for (uint32_t p = 0; p < d; p++)
            for (uint32_t q = p + 1; q < d; q++) off += a[(size_t)p * d + q] * a[(size_t)p * d + q];
        if (!(off > 1e-22 * all)) return;
        for (uint32_t p = 0; p < d; p++)
            for (uint32_t q = p + 1; q < d; q++)
                if (fabs(a[(size_t)p * d + q]) > 1e-300) turn(a, v, d, p, q);
    }
}

/* The lower factor of a positive matrix, in place (above the diagonal it becomes 0). */
static void cholesky(double *a, uint32_t d)
{
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++) {
            if (j > i) {
                a[(size_t)i * d + j] = 0;
                continue;
            }
            double sum = a[(size_t)i * d + j];
            for (uint32_t k = 0; k < j; k++) sum -= a[(size_t)i * d + k] * a[(size_t)j * d + k];
            a[(size_t)i * d + j] = i == j ? sqrt(fmax(sum, 1e-300)) : sum / a[(size_t)j * d + j];
        }
}

/* Largest first. */
static void order(const double *a, uint32_t d, uint32_t *index)
{
    for (uint32_t i = 0; i < d; i++) {
        uint32_t at = i;
        for (; at > 0 && a[(size_t)i * (d + 1)] > a[(size_t)index[at - 1] * (d + 1)]; at--)
            index[at] = index[at - 1];
        index[at] = i;
    }
}

/* a / mean energy, plus 2 %; the unit matrix where there is no energy at all. */
static void fill_up(const double *a, uint32_t d, double *out)
{
    double mean = 0;
    for (uint32_t i = 0; i < d; i++) mean += a[(size_t)i * (d + 1)] / d;
    for (size_t i = 0; i < (size_t)d * d; i++)
        out[i] = (mean > 1e-30 ? a[i] / mean : 0) + (i % (d + 1) == 0 ? mean > 1e-30 ? 0.02 : 1 : 0);
}

typedef struct room {
    double *a, *b, *c; /* [d][d] */
    uint32_t *index;   /* [d] */
} room;

static rq_status room_make(uint32_t d, room *r, rq_error *err)
{
    r->a = rq_calloc(3 * (size_t)d * d, sizeof *r->a);
    r->index = rq_calloc(d, sizeof *r->index);
    if (r->a == NULL || r->index == NULL) {
        rq_free(r->a);
        rq_free(r->index);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a basis of %u directions", d);
    }
    r->b = r->a + (size_t)d * d;
    r->c = r->b + (size_t)d * d;
    return RQ_OK;
}

/* ---- bases ----------------------------------------------------------------------------------------------- */

rq_status kv_klt(uint32_t d, const double *rows, const double *weights, float *basis, double *first_half,
                 rq_error *err)
{
    room r = {0};
    rq_status status = room_make(d, &r, err);
    if (status != RQ_OK) return status;
    double *l = r.a, *m = r.b, *v = r.c, sum = 0, half = 0;
    fill_up(rows, d, l);
    cholesky(l, d);
    /* m = L^T W L: first v = W L, then L^T v */
    fill_up(weights, d, m);
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++) {
            double x = 0;
            for (uint32_t k = j; k < d; k++) x += m[(size_t)i * d + k] * l[(size_t)k * d + j];
            v[(size_t)i * d + j] = x;
        }
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++) {
            double x = 0;
            for (uint32_t k = i; k < d; k++) x += l[(size_t)k * d + i] * v[(size_t)k * d + j];
            m[(size_t)i * d + j] = x;
        }
    diagonalise(m, v, d);
    order(m, d, r.index);
    for (uint32_t row = 0; row < d; row++) {
        /* eigenvalue w: the direction carries sqrt(w) of both; b = w^(1/4) u^T L^-1, from the end */
        uint32_t at = r.index[row];
        double w = fmax(m[(size_t)at * (d + 1)], 1e-12), *u = v + (size_t)at * d;
        sum += sqrt(w);
        if (row < d / 2) half += sqrt(w);
        for (uint32_t k = d; k-- > 0;) {
            double x = u[k];
            for (uint32_t j = k + 1; j < d; j++) x -= u[j] * l[(size_t)j * d + k];
            u[k] = x / l[(size_t)k * d + k];
        }
        for (uint32_t k = 0; k < d; k++) basis[(size_t)row * d + k] = (float)(sqrt(sqrt(w)) * u[k]);
    }
    *first_half = half / sum;
    rq_free(r.a);
    rq_free(r.index);
    return RQ_OK;
}
