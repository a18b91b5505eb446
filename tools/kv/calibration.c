#include "tools/kv/calibration.h"

#include "backends/base/mem.h"
#include "tools/kv/flatten.h"
#include "tools/kv/klt.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SAMPLES = 2048, MAX_LAYERS = 512 };

/* Sums over the tokens of one layer; all heads side by side. */
typedef struct sums {
    kv_calibration_layer shape;
    double *k, *k_square, *q_square, *v; /* [n_heads_kv][dim] */
    double *bucket_k, *bucket_energy;    /* [KV_BUCKETS][n_heads_kv][dim_k], [KV_BUCKETS][n_heads_kv] */
    uint64_t bucket_n[KV_BUCKETS];
    uint64_t n_k, n_v;            /* tokens */
    uint64_t n_q;                 /* queries that met each KV head */
    float *samples_k, *samples_v; /* [n_samples][n_heads_kv][dim]; NULL: none are kept */
    uint32_t n_samples_k, n_samples_v;
    double *moment_k, *moment_q,
        *moment_v;           /* [n_heads_kv][dim][dim], below the diagonal; NULL: none are kept */
    double *weight_v;        /* likewise, whole: how errors in values count */
    double *half_k, *half_v; /* [n_heads_kv]: the share of a basis's first half */
} sums;

struct kv_calibration {
    uint32_t n_layers, window, stride; /* stride: tokens from one sample to the next */
    bool so8;
    sums *layers;
};

void kv_calibration_free(kv_calibration *c)
{
    if (!c) return;
    for (uint32_t i = 0; c->layers && i < c->n_layers; i++) {
        sums *s = &c->layers[i];
        rq_free(s->k);
        rq_free(s->k_square);
        rq_free(s->q_square);
        rq_free(s->v);
        rq_free(s->bucket_k);
        rq_free(s->bucket_energy);
        rq_free(s->samples_k);
        rq_free(s->samples_v);
        rq_free(s->moment_k);
        rq_free(s->moment_q);
        rq_free(s->moment_v);
        rq_free(s->weight_v);
        rq_free(s->half_k);
        rq_free(s->half_v);
    }
    rq_free(c->layers);
    rq_free(c);
}

static bool make_sums(sums *s, const kv_calibration_layer *shape, bool so8, bool klt)
{
    size_t k = (size_t)shape->n_heads_kv * shape->dim_k, v = (size_t)shape->n_heads_kv * shape->dim_v;
    s->shape = *shape;
    if (shape->n_heads_kv == 0) return true;
    s->k = rq_calloc(k, sizeof(double));
    s->k_square = rq_calloc(k, sizeof(double));
    s->q_square = rq_calloc(k, sizeof(double));
    s->v = rq_calloc(v, sizeof(double));
    s->bucket_k = rq_calloc(KV_BUCKETS * k, sizeof(double));
    s->bucket_energy = rq_calloc((size_t)KV_BUCKETS * shape->n_heads_kv, sizeof(double));
    if (so8) {
        s->samples_k = rq_malloc(MAX_SAMPLES * k * sizeof(float));
        s->samples_v = rq_malloc(MAX_SAMPLES * v * sizeof(float));
    }
    if (klt) {
        s->moment_k = rq_calloc(k * shape->dim_k, sizeof(double));
        s->moment_q = rq_calloc(k * shape->dim_k, sizeof(double));
        s->moment_v = rq_calloc(v * shape->dim_v, sizeof(double));
        s->weight_v = rq_calloc(v * shape->dim_v, sizeof(double));
        for (size_t i = 0; s->weight_v && i < v; i++) s->weight_v[i * shape->dim_v + i % shape->dim_v] = 1;
        s->half_k = rq_calloc(shape->n_heads_kv, sizeof(double));
        s->half_v = rq_calloc(shape->n_heads_kv, sizeof(double));
    }
    return s->k && s->k_square && s->q_square && s->v && s->bucket_k && s->bucket_energy &&
           (!so8 || (s->samples_k && s->samples_v)) &&
           (!klt || (s->moment_k && s->moment_q && s->moment_v && s->weight_v && s->half_k && s->half_v));
}

rq_status kv_calibration_make(const kv_calibration_layer *layers, uint32_t n_layers, uint32_t window,
                              uint32_t n_tokens, bool so8, bool klt, kv_calibration **out, rq_error *err)
{
    if (n_layers < 1 || n_layers > MAX_LAYERS || window < 1)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a calibration needs 1 to %d layers and positions", MAX_LAYERS);
    kv_calibration *c = rq_calloc(1, sizeof *c);
    if (c) c->layers = rq_calloc(n_layers, sizeof *c->layers);
    bool good = c && c->layers;
    if (good) {
        c->n_layers = n_layers;
        c->window = window;
        c->so8 = so8;
        c->stride = n_tokens / MAX_SAMPLES + 1;
    }
    for (uint32_t i = 0; good && i < n_layers; i++) good = make_sums(&c->layers[i], &layers[i], so8, klt);
    if (!good) {
        kv_calibration_free(c);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a calibration of %u layers", n_layers);
    }
    *out = c;
    return RQ_OK;
}

/* ---- listening ------------------------------------------------------------------------------------------ */

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* Adds x x^T below the diagonal. */
static void add_moment(double *moment, const float *x, uint32_t d)
{
    if (!moment) return;
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j <= i; j++) moment[(size_t)i * d + j] += (double)x[i] * (double)x[j];
}

static double *moment_of(double *moments, uint32_t head, uint32_t d)
{
    return moments ? moments + (size_t)head * d * d : NULL;
}

double *kv_calibration_value_weight(kv_calibration *c, uint32_t layer, uint32_t head)
{
    sums *s = layer < c->n_layers ? &c->layers[layer] : NULL;
    return s && head < s->shape.n_heads_kv ? moment_of(s->weight_v, head, s->shape.dim_v) : NULL;
}

static void add_key(sums *s, const float *k, uint32_t bucket)
{
    uint32_t d = s->shape.dim_k, heads = s->shape.n_heads_kv;
    for (uint32_t h = 0; h < heads; h++) {
        add_moment(moment_of(s->moment_k, h, d), k + (size_t)h * d, d);
        for (uint32_t i = 0; i < d; i++) {
            size_t at = (size_t)h * d + i;
            double x = k[at];
            s->k[at] += x;
            s->k_square[at] += x * x;
            s->bucket_k[(size_t)bucket * heads * d + at] += x;
            s->bucket_energy[bucket * heads + h] += x * x;
        }
    }
    s->bucket_n[bucket]++;
    s->n_k++;
}

/* Query heads h * group .. h * group + group - 1 read KV head h. */
static void add_query(sums *s, const float *q, uint32_t n_heads)
{
    uint32_t d = s->shape.dim_k, group = n_heads / s->shape.n_heads_kv;
    for (uint32_t h = 0; h < n_heads; h++) {
        add_moment(moment_of(s->moment_q, h / group, d), q + (size_t)h * d, d);
        for (uint32_t i = 0; i < d; i++) {
            double x = q[(size_t)h * d + i];
            s->q_square[(size_t)(h / group) * d + i] += x * x;
        }
    }
    s->n_q += group;
}

static void keep(float *samples, uint32_t *n, const float *row, size_t width)
{
    if (!samples || *n == MAX_SAMPLES) return;
    memcpy(samples + *n * width, row, width * sizeof *row);
    ++*n;
}

rq_status kv_calibration_add(kv_calibration *c, const rq_kv_captured *rows, rq_error *err)
{
    sums *s = rows->kv_layer < c->n_layers ? &c->layers[rows->kv_layer] : NULL;
    if (!s || s->shape.n_heads_kv == 0 || rows->n_heads % s->shape.n_heads_kv != 0 ||
        rows->dim != (rows->which == RQ_KV_V ? s->shape.dim_v : s->shape.dim_k))
        return rq_fail(err, RQ_ERR_INTERNAL, "layer %u was not asked for", rows->kv_layer);
    size_t width = (size_t)rows->n_heads * rows->dim;
    for (uint32_t t = 0; t < rows->n; t++) {
        const float *row = rows->rows + t * width;
        uint64_t position = (uint64_t)rows->position + t;
        if (!all_finite(row, width)) continue;
        if (rows->which == RQ_KV_K) {
            uint64_t bucket = position * KV_BUCKETS / c->window;
            if (s->n_k % c->stride == 0) keep(s->samples_k, &s->n_samples_k, row, width);
            add_key(s, row, (uint32_t)(bucket < KV_BUCKETS ? bucket : KV_BUCKETS - 1));
        } else if (rows->which == RQ_KV_V) {
            if (s->n_v % c->stride == 0) keep(s->samples_v, &s->n_samples_v, row, width);
            for (size_t i = 0; i < width; i++) s->v[i] += row[i];
            for (uint32_t h = 0; h < rows->n_heads; h++)
                add_moment(moment_of(s->moment_v, h, rows->dim), row + (size_t)h * rows->dim, rows->dim);
            s->n_v++;
        } else {
            add_query(s, row, rows->n_heads);
        }
    }
    return RQ_OK;
}

/* ---- learning ------------------------------------------------------------------------------------------- */

/* The element that element i shares a turned rotary pair with; itself when it has none. */
static uint32_t partner(const rq_kv_layer_profile *l, bool halves, uint32_t i)
{
    uint32_t half = l->n_rot / 2, pair = halves ? i % (half ? half : 1) : i / 2;
    if (i >= l->n_rot || pair >= l->n_turned) return i;
    if (!halves) return i ^ 1;
    return i < half ? i + half : i - half;
}

static void learn_lambda(const sums *s, const rq_kv_layer_profile *l, bool halves, uint32_t head,
                         const float *mean, float *lambda)
{
    uint32_t d = s->shape.dim_k;
    double sum = 0, n_q = (double)s->n_q;
    for (uint32_t i = 0; i < d; i++) {
        double k = 0, q = 0;
        const uint32_t pair[2] = {i, partner(l, halves, i)};
        for (int e = 0; e < 2; e++) {
            size_t at = (size_t)head * d + pair[e];
            k += fmax(0, s->k_square[at] / (double)s->n_k - (double)mean[pair[e]] * mean[pair[e]]);
            q += s->q_square[at] / n_q;
        }
        /* An element that never moves, or that no query looks at, may have any scale. */
        double log_scale = k > 1e-12 && q > 1e-12 ? 0.25 * log(q / k) : 0;
        lambda[i] = (float)log_scale;
        sum += log_scale;
    }
    for (uint32_t i = 0; i < d; i++)
        lambda[i] = (float)fmin(fmax(exp((double)lambda[i] - sum / d), 1.0 / 16), 16);
}

/* Matrices for one head from its samples: rows are shifted and scaled as the codec will see them, and divided by
 * their length so that every token counts the same. */
static void learn_so8(const float *samples, uint32_t n, uint32_t heads, uint32_t head, uint32_t d,
                      const float *mean, const float *lambda, float *room, float *matrices)
{
    for (uint32_t block = 0; block < d / 8; block++) {
        for (uint32_t t = 0; t < n; t++) {
            const float *row = samples + ((size_t)t * heads + head) * d;
            double energy = 1e-30;
            for (uint32_t i = 0; i < d; i++) {
                double x = (double)(row[i] - mean[i]) * (lambda ? lambda[i] : 1);
                energy += x * x;
            }
            double scale = sqrt(d / energy);
            for (uint32_t i = 0; i < 8; i++) {
                uint32_t e = 8 * block + i;
                room[8 * t + i] = (float)((row[e] - mean[e]) * (lambda ? lambda[e] : 1) * scale);
            }
        }
        kv_flatten(room, n, matrices + 64 * (size_t)block);
    }
}

static rq_status learn_layer(const sums *s, rq_kv_profile *p, uint32_t layer, float *room, rq_error *err)
{
    uint32_t heads = s->shape.n_heads_kv, dim_k = s->shape.dim_k, dim_v = s->shape.dim_v;
    float *mean_k = rq_kv_profile_add(p, layer, RQ_KV_MEAN_K),
          *mean_v = rq_kv_profile_add(p, layer, RQ_KV_MEAN_V);
    float *lambda = rq_kv_profile_add(p, layer, RQ_KV_LAMBDA_K), *so8_k = NULL, *so8_v = NULL;
    bool rotations_k = room && dim_k % 8 == 0, rotations_v = room && dim_v % 8 == 0;
    if (rotations_k) so8_k = rq_kv_profile_add(p, layer, RQ_KV_SO8_K);
    if (rotations_v) so8_v = rq_kv_profile_add(p, layer, RQ_KV_SO8_V);
    if (!mean_k || !mean_v || !lambda || (rotations_k && !so8_k) || (rotations_v && !so8_v))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a cache profile");
    for (size_t i = 0; i < (size_t)heads * dim_k; i++) mean_k[i] = (float)(s->k[i] / (double)s->n_k);
    for (size_t i = 0; i < (size_t)heads * dim_v; i++) mean_v[i] = (float)(s->v[i] / (double)s->n_v);
    for (uint32_t h = 0; h < heads; h++) {
        const float *mean = mean_k + (size_t)h * dim_k;
        learn_lambda(s, &p->layers[layer], p->rot_halves, h, mean, lambda + (size_t)h * dim_k);
        if (so8_k)
            learn_so8(s->samples_k, s->n_samples_k, heads, h, dim_k, mean, lambda + (size_t)h * dim_k, room,
                      so8_k + (size_t)h * dim_k * 8);
        if (so8_v)
            learn_so8(s->samples_v, s->n_samples_v, heads, h, dim_v, mean_v + (size_t)h * dim_v, NULL, room,
                      so8_v + (size_t)h * dim_v * 8);
    }
    return RQ_OK;
}

/* The whole of a sum's mean, less the product of the means of its factors (NULL: of nothing). */
static void settle_moment(double *moment, uint32_t d, double n, const float *mean)
{
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double x = moment[(size_t)i * d + j] / n - (mean ? (double)mean[i] * (double)mean[j] : 0);
            moment[(size_t)i * d + j] = moment[(size_t)j * d + i] = x;
        }
}

static rq_status learn_bases(sums *s, rq_kv_profile *p, uint32_t layer, rq_error *err)
{
    if (!s->moment_k) return RQ_OK;
    uint32_t heads = s->shape.n_heads_kv, dk = s->shape.dim_k, dv = s->shape.dim_v;
    float *klt_k = rq_kv_profile_add(p, layer, RQ_KV_KLT_K),
          *klt_v = rq_kv_profile_add(p, layer, RQ_KV_KLT_V);
    if (!klt_k || !klt_v) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a cache profile");
    rq_status status = RQ_OK;
    for (uint32_t h = 0; !status && h < heads; h++) {
        double *k = moment_of(s->moment_k, h, dk), *q = moment_of(s->moment_q, h, dk),
               *v = moment_of(s->moment_v, h, dv);
        settle_moment(k, dk, (double)s->n_k, p->layers[layer].mean_k + (size_t)h * dk);
        settle_moment(q, dk, (double)s->n_q, NULL);
        settle_moment(v, dv, (double)s->n_v, p->layers[layer].mean_v + (size_t)h * dv);
        status = kv_klt(dk, k, q, klt_k + (size_t)h * dk * dk, &s->half_k[h], err);
        if (!status)
            status =
                kv_klt(dv, v, moment_of(s->weight_v, h, dv), klt_v + (size_t)h * dv * dv, &s->half_v[h], err);
    }
    return status;
}

rq_status kv_calibration_finish(kv_calibration *c, rq_kv_profile *profile, rq_error *err)
{
    float *room = NULL;
    if (c->so8) {
        room = rq_malloc(sizeof(float) * 8 * MAX_SAMPLES);
        if (!room) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for learning rotations");
    }
    rq_status s = RQ_OK;
    for (uint32_t i = 0; !s && i < c->n_layers; i++) {
        sums *l = &c->layers[i];
        if (l->shape.n_heads_kv == 0) continue;
        if (i >= profile->n_layers || !l->n_k || !l->n_q || !l->n_v)
            s = rq_fail(err, RQ_ERR_ARGUMENT, "nothing was seen of layer %u", i);
        else
            s = learn_layer(l, profile, i, room, err);
        if (!s) s = learn_bases(l, profile, i, err);
    }
    rq_free(room);
    return s;
}

/* ---- report --------------------------------------------------------------------------------------------- */

void kv_calibration_report(const kv_calibration *c, const rq_kv_profile *profile, kv_table *t)
{
    static const kv_column columns[] = {{"layer", 0},        {"head", 0},        {"from", 0},
                                        {"to", 0},           {"tokens", 0},      {"energy_around_mean", 4},
                                        {"share", 4},        {"lambda_min", 3},  {"lambda_max", 3},
                                        {"first_half_k", 4}, {"first_half_v", 4}};
    kv_table_start(t, columns, sizeof columns / sizeof *columns);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const sums *s = &c->layers[l];
        uint32_t heads = s->shape.n_heads_kv, d = s->shape.dim_k; /* no heads: no rows */
        for (uint32_t h = 0; h < heads; h++) {
            const float *mean = profile->layers[l].mean_k + (size_t)h * d;
            const float *lambda = profile->layers[l].lambda_k + (size_t)h * d;
            double low = INFINITY, high = 0;
            for (uint32_t i = 0; i < d; i++) {
                low = fmin(low, (double)lambda[i]);
                high = fmax(high, (double)lambda[i]);
            }
            for (uint32_t b = 0; b < KV_BUCKETS; b++) {
                double n = (double)s->bucket_n[b], energy = s->bucket_energy[b * heads + h], around = energy;
                if (s->bucket_n[b] == 0) continue;
                const double *sum = s->bucket_k + ((size_t)b * heads + h) * d;
                for (uint32_t i = 0; i < d; i++) around += mean[i] * (n * mean[i] - 2 * sum[i]);
                const double numbers[] = {l,
                                          h,
                                          floor((double)c->window * b / KV_BUCKETS),
                                          floor((double)c->window * (b + 1) / KV_BUCKETS),
                                          n,
                                          around / n,
                                          energy > 0 ? around / energy : 0,
                                          low,
                                          high,
                                          s->half_k ? s->half_k[h] : NAN,
                                          s->half_v ? s->half_v[h] : NAN};
                for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) kv_table_number(t, numbers[i]);
            }
        }
    }
}
