#include "tools/kv/metrics.h"

#include "backends/base/mem.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

float kv_dot(const float *a, const float *b, uint32_t n)
{
    float lane[LANES] = {0}, sum = 0;
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t l = 0; l < LANES; l++) lane[l] += a[i + l] * b[i + l];
    for (; i < n; i++) sum += a[i] * b[i];
    for (uint32_t half = LANES / 2; half; half /= 2)
        for (uint32_t l = 0; l < half; l++) lane[l] += lane[l + half];
    return sum + lane[0];
}

static uint32_t first_of(const kv_case *c, uint32_t t)
{
    return c->from ? c->from[t] : 0;
}

static uint32_t end_of(const kv_case *c, uint32_t t)
{
    return c->to ? c->to[t] : c->n;
}

/* Logits of query t against the keys it sees, written at their index. */
static void logits_of(const kv_case *c, const float *k, uint32_t t, float *out)
{
    const float *q = c->q + (size_t)t * c->dim_k;
    for (uint32_t j = first_of(c, t); j < end_of(c, t); j++) {
        double l = kv_dot(q, k + (size_t)j * c->dim_k, c->dim_k);
        out[j] = (float)(c->softcap > 0 ? c->softcap * tanh(l / c->softcap) : l);
    }
}

static void softmax(const float *logits, float *weights, uint32_t from, uint32_t to)
{
    float most = logits[from];
    double sum = 0;
    for (uint32_t j = from; j < to; j++) most = fmaxf(most, logits[j]);
    for (uint32_t j = from; j < to; j++) sum += weights[j] = expf(logits[j] - most);
    for (uint32_t j = from; j < to; j++) weights[j] = (float)(weights[j] / sum);
}

static void output_of(const kv_case *c, const float *weights, const float *v, uint32_t t, float *out)
{
    memset(out, 0, sizeof *out * c->dim_v);
    for (uint32_t j = first_of(c, t); j < end_of(c, t); j++) {
        const float *row = v + (size_t)j * c->dim_v;
        for (uint32_t i = 0; i < c->dim_v; i++) out[i] += weights[j] * row[i];
    }
}

rq_status kv_exact_make(const kv_case *c, kv_exact *out, rq_error *err)
{
    for (uint32_t t = 0; t < c->n_queries; t++)
        if (first_of(c, t) >= end_of(c, t) || end_of(c, t) > c->n)
            return rq_fail(err, RQ_ERR_ARGUMENT, "query %u sees no key", t);
    kv_exact e = {.c = *c};
    size_t cells = (size_t)c->n_queries * c->n;
    e.logits = rq_calloc(cells, sizeof(float));
    e.weights = rq_calloc(cells, sizeof(float));
    e.out = rq_calloc((size_t)c->n_queries * c->dim_v, sizeof(float));
    if (!e.logits || !e.weights || !e.out) {
        kv_exact_free(&e);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the attention of %u queries over %u keys",
                       c->n_queries, c->n);
    }
    for (uint32_t t = 0; t < c->n_queries; t++) {
        size_t row = (size_t)t * c->n;
        logits_of(c, c->k, t, e.logits + row);
        softmax(e.logits + row, e.weights + row, first_of(c, t), end_of(c, t));
        output_of(c, e.weights + row, c->v, t, e.out + (size_t)t * c->dim_v);
    }
    *out = e;
    return RQ_OK;
}

void kv_exact_free(kv_exact *exact)
{
    rq_free(exact->logits);
    rq_free(exact->weights);
    rq_free(exact->out);
    exact->logits = exact->weights = exact->out = NULL;
}

static void compare_rows(const float *x, const float *y, uint32_t n, uint32_t dim, double *nmse,
                         double *cosine)
{
    double error = 0, energy = 0, cosines = 0;
    for (uint32_t j = 0; j < n; j++) {
        double xy = 0, xx = 0, yy = 0;
        for (uint32_t i = 0; i < dim; i++) {
            double a = x[(size_t)j * dim + i], b = y[(size_t)j * dim + i];
            error += (a - b) * (a - b);
            xy += a * b;
            xx += a * a;
            yy += b * b;
        }
        energy += xx;
        cosines += xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : xx == yy;
    }
    *nmse = energy > 0 ? error / energy : error > 0;
    *cosine = cosines / n;
}

/* Sums over the queries of one measurement. */
typedef struct sums {
    double logit_variance, kl, top1;
    double fit_xy, fit_yy;                        /* centred logits: exact times decoded, decoded squared */
    double energy, out_k, out_v, out, o_xy, o_yy; /* squared errors of outputs; o: exact times decoded */
} sums;

/* Softmax does not see a constant shift, so everything about logits is about their deviation from the mean. */
static void compare_logits(const kv_exact *e, uint32_t t, const float *decoded, const float *weights, sums *s)
{
    size_t row = (size_t)t * e->c.n;
    const float *exact = e->logits + row, *p = e->weights + row;
    uint32_t from = first_of(&e->c, t), to = end_of(&e->c, t), best = from, best_decoded = from;
    double n = to - from, mean = 0, mean_decoded = 0;
    for (uint32_t j = from; j < to; j++) {
        mean += exact[j];
        mean_decoded += decoded[j];
    }
    mean /= n;
    mean_decoded /= n;
    double variance = 0;
    for (uint32_t j = from; j < to; j++) {
        double x = exact[j] - mean, y = decoded[j] - mean_decoded;
        variance += (y - x) * (y - x);
        s->fit_xy += x * y;
        s->fit_yy += y * y;
        if (p[j] > 0) s->kl += p[j] * log(p[j] / (weights[j] + 1e-30));
        if (exact[j] > exact[best]) best = j;
        if (decoded[j] > decoded[best_decoded]) best_decoded = j;
    }
    s->logit_variance += variance / n;
    s->top1 += best == best_decoded;
}

static double squared_error(const float *a, const float *b, uint32_t n, double gain)
{
    double error = 0;
    for (uint32_t i = 0; i < n; i++) {
        double d = a[i] - gain * b[i];
        error += d * d;
    }
    return error;
}

rq_status kv_measure(const kv_exact *exact, const float *k_hat, const float *v_hat, kv_quality *out,
                     rq_error *err)
{
    const kv_case *c = &exact->c;
    float *logits = rq_malloc(sizeof(float) * (2 * (size_t)c->n + c->dim_v));
    if (!logits) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the attention over %u keys", c->n);
    float *weights = logits + c->n, *o = weights + c->n;
    kv_quality m = {.count = 1};
    compare_rows(c->k, k_hat, c->n, c->dim_k, &m.k_nmse, &m.k_cosine);
    compare_rows(c->v, v_hat, c->n, c->dim_v, &m.v_nmse, &m.v_cosine);
    double unbiased = m.v_nmse < 1 ? 1 / (1 - m.v_nmse) : 1, out_unbiased = 0;
    sums s = {0};
    for (uint32_t t = 0; t < c->n_queries; t++) {
        const float *p = exact->weights + (size_t)t * c->n, *want = exact->out + (size_t)t * c->dim_v;
        uint32_t from = first_of(c, t), to = end_of(c, t);
        logits_of(c, k_hat, t, logits);
        softmax(logits, weights, from, to);
        compare_logits(exact, t, logits, weights, &s);
        output_of(c, weights, c->v, t, o);
        s.out_k += squared_error(want, o, c->dim_v, 1);
        output_of(c, p, v_hat, t, o);
        s.out_v += squared_error(want, o, c->dim_v, 1);
        output_of(c, weights, v_hat, t, o);
        s.out += squared_error(want, o, c->dim_v, 1);
        out_unbiased += squared_error(want, o, c->dim_v, unbiased);
        for (uint32_t i = 0; i < c->dim_v; i++) {
            s.energy += (double)want[i] * want[i];
            s.o_xy += (double)want[i] * o[i];
            s.o_yy += (double)o[i] * o[i];
        }
    }
    double energy = s.energy > 0 ? s.energy : 1;
    m.logit_rmse = sqrt(s.logit_variance / c->n_queries);
    m.kl = s.kl / c->n_queries;
    m.top1 = s.top1 / c->n_queries;
    m.out_k = sqrt(s.out_k / energy);
    m.out_v = sqrt(s.out_v / energy);
    m.out = sqrt(s.out / energy);
    m.out_unbiased = sqrt(out_unbiased / energy);
    m.best_gain_k = s.fit_yy > 0 ? s.fit_xy / s.fit_yy : 1;
    m.best_gain_v = s.o_yy > 0 ? s.o_xy / s.o_yy : 1;
    rq_free(logits);
    *out = m;
    return RQ_OK;
}

void kv_quality_add(kv_quality *a, const kv_quality *b)
{
    a->k_nmse += b->k_nmse;
    a->k_cosine += b->k_cosine;
    a->v_nmse += b->v_nmse;
    a->v_cosine += b->v_cosine;
    a->logit_rmse += b->logit_rmse;
    a->kl += b->kl;
    a->top1 += b->top1;
    a->out_k += b->out_k;
    a->out_v += b->out_v;
    a->out += b->out;
    a->out_unbiased += b->out_unbiased;
    a->best_gain_k += b->best_gain_k;
    a->best_gain_v += b->best_gain_v;
    a->count += b->count;
}

kv_quality kv_quality_mean(const kv_quality *sum)
{
    kv_quality m = *sum;
    double n = sum->count ? (double)sum->count : 1;
    m.k_nmse /= n;
    m.k_cosine /= n;
    m.v_nmse /= n;
    m.v_cosine /= n;
    m.logit_rmse /= n;
    m.kl /= n;
    m.top1 /= n;
    m.out_k /= n;
    m.out_v /= n;
    m.out /= n;
    m.out_unbiased /= n;
    m.best_gain_k /= n;
    m.best_gain_v /= n;
    return m;
}
