#include "tools/kv/sets.h"

#include "backends/base/mem.h"
#include "tools/kv/metrics.h"
#include "tools/kv/random.h"

#include <math.h>
#include <string.h>

enum { MAX_DIM = 1024, MAX_ROWS = 1 << 20, N_LOUD = 4, FIRST_POSITION = 1000 };

static const char *const names[] = {"gaussian", "outliers", "outliers-q", "rope-adjacent",
                                    "rope",     "offset",   "student"};

/* What a set draws before its rows: four loud channels of K and of V, and signs. */
typedef struct loud {
    uint32_t k[N_LOUD], v[N_LOUD];
    double sign[N_LOUD];
} loud;

const char *kv_set_name(kv_set_kind kind)
{
    return (unsigned)kind < KV_SET_COUNT ? names[kind] : NULL;
}

rq_status kv_set_of_name(const char *name, kv_set_kind *out, rq_error *err)
{
    for (int i = 0; i < KV_SET_COUNT; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (kv_set_kind)i;
            return RQ_OK;
        }
    return rq_fail(
        err, RQ_ERR_ARGUMENT,
        "there is no set %s; there are gaussian, outliers, outliers-q, rope-adjacent, rope, offset, student",
        name);
}

void kv_set_free(kv_set *set)
{
    rq_free(set->k);
    rq_free(set->v);
    rq_free(set->q);
    memset(set, 0, sizeof *set);
}

static void draw_channels(kv_random *r, uint32_t dim, uint32_t out[N_LOUD])
{
    for (int i = 0; i < N_LOUD; i++) {
        bool again = true;
        while (again) {
            out[i] = (uint32_t)(kv_random_u64(r) % dim);
            again = false;
            for (int j = 0; j < i; j++) again |= out[j] == out[i];
        }
    }
}

/* Student's t, three degrees of freedom, divided by its standard deviation of sqrt(3). */
static double student(kv_random *r)
{
    double z = kv_random_normal(r), chi = 0;
    for (int i = 0; i < 3; i++) {
        double g = kv_random_normal(r);
        chi += g * g;
    }
    return z / sqrt(chi / 3) / sqrt(3.0);
}

static void fill_independent(kv_set_kind kind, kv_random *r, const loud *l, kv_set *s)
{
    size_t cells = (size_t)s->n * s->dim;
    for (size_t i = 0; i < cells; i++) {
        s->k[i] = (float)(kind == KV_SET_STUDENT ? student(r) : kv_random_normal(r));
        s->v[i] = (float)(kind == KV_SET_STUDENT ? student(r) : kv_random_normal(r));
    }
    for (size_t i = 0; i < (size_t)s->n_queries * s->dim; i++) s->q[i] = (float)kv_random_normal(r);
    for (int c = 0; c < N_LOUD; c++) {
        for (uint32_t t = 0; t < s->n; t++) {
            float *k = s->k + (size_t)t * s->dim, *v = s->v + (size_t)t * s->dim;
            if (kind == KV_SET_OUTLIERS || kind == KV_SET_OUTLIERS_Q) {
                k[l->k[c]] *= 20;
                v[l->v[c]] *= 20;
            }
            if (kind == KV_SET_OFFSET) k[l->k[c]] += (float)(20 * l->sign[c]);
        }
        if (kind == KV_SET_OUTLIERS_Q)
            for (uint32_t t = 0; t < s->n_queries; t++) s->q[(size_t)t * s->dim + l->k[c]] /= 20;
    }
}

/* One rotary pair's statistics: the means of key and query, and the key's noise along its two axes. */
typedef struct pair {
    double key_mean[2], query_mean[2], noise[2];
} pair;

static void draw_pairs(kv_random *r, uint32_t n_pairs, pair *pairs)
{
    for (uint32_t i = 0; i < n_pairs; i++) {
        double size = exp(0.8 * kv_random_normal(r)) * (i > n_pairs / 2 ? 2.0 : 1.0);
        double angle = 2 * M_PI * kv_random_uniform(r), query_angle = angle + 0.6 * kv_random_normal(r);
        pairs[i] = (pair){{2 * size * cos(angle), 2 * size * sin(angle)},
                          {cos(query_angle), sin(query_angle)},
                          {size, 0.5 * size}};
    }
}

static void rope_row(kv_random *r, const pair *pairs, uint32_t dim, double position, bool is_query,
                     bool adjacent, float *out)
{
    uint32_t n_pairs = dim / 2;
    for (uint32_t i = 0; i < n_pairs; i++) {
        const pair *p = &pairs[i];
        double a, b;
        if (is_query) {
            a = p->query_mean[0] + kv_random_normal(r);
            b = p->query_mean[1] + kv_random_normal(r);
        } else { /* the noise's axes lie at an angle that differs from pair to pair */
            double u = p->noise[0] * kv_random_normal(r), w = p->noise[1] * kv_random_normal(r);
            a = p->key_mean[0] + cos(0.7 * i) * u - sin(0.7 * i) * w;
            b = p->key_mean[1] + sin(0.7 * i) * u + cos(0.7 * i) * w;
        }
        double angle = position * pow(1e6, -2.0 * i / dim);
        out[adjacent ? 2 * i : i] = (float)(cos(angle) * a - sin(angle) * b);
        out[adjacent ? 2 * i + 1 : i + n_pairs] = (float)(sin(angle) * a + cos(angle) * b);
    }
}

/* Values of half the rank of the head, plus noise. */
static void fill_low_rank(kv_random *r, kv_set *s, float *basis)
{
    uint32_t rank = s->dim / 2;
    for (uint32_t j = 0; j < rank; j++)
        for (uint32_t c = 0; c < s->dim; c++)
            basis[(size_t)j * s->dim + c] =
                (float)(kv_random_normal(r) / sqrt(rank) * exp(-2.0 * j / rank) * 2);
    for (uint32_t t = 0; t < s->n; t++) {
        float *out = s->v + (size_t)t * s->dim;
        for (uint32_t c = 0; c < s->dim; c++) out[c] = (float)(0.3 * kv_random_normal(r));
        for (uint32_t j = 0; j < rank; j++) {
            double z = kv_random_normal(r);
            for (uint32_t c = 0; c < s->dim; c++)
                out[c] = (float)(out[c] + z * basis[(size_t)j * s->dim + c]);
        }
    }
}

static rq_status fill_rope(kv_set_kind kind, kv_random *r, kv_set *s, rq_error *err)
{
    pair *pairs = rq_malloc(sizeof *pairs * (s->dim / 2));
    float *basis = rq_malloc(sizeof *basis * s->dim * (s->dim / 2));
    rq_status status = RQ_OK;
    if (pairs && basis) {
        bool adjacent = kind == KV_SET_ROPE_ADJACENT;
        draw_pairs(r, s->dim / 2, pairs);
        for (uint32_t t = 0; t < s->n; t++)
            rope_row(r, pairs, s->dim, (double)FIRST_POSITION + t, false, adjacent,
                     s->k + (size_t)t * s->dim);
        for (uint32_t t = 0; t < s->n_queries; t++)
            rope_row(r, pairs, s->dim, (double)FIRST_POSITION + s->n + 3.0 * t, true, adjacent,
                     s->q + (size_t)t * s->dim);
        fill_low_rank(r, s, basis);
    } else {
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a synthetic set");
    }
    rq_free(pairs);
    rq_free(basis);
    return status;
}

/* Scales the queries so that the logits' variance over the keys is spread^2 in the mean over the queries. */
static void scale_queries(kv_set *s, double spread)
{
    double total = 0;
    for (uint32_t t = 0; t < s->n_queries; t++) {
        double sum = 0, squares = 0;
        for (uint32_t j = 0; j < s->n; j++) {
            double logit = kv_dot(s->q + (size_t)t * s->dim, s->k + (size_t)j * s->dim, s->dim);
            sum += logit;
            squares += logit * logit;
        }
        double mean = sum / s->n;
        total += squares / s->n - mean * mean;
    }
    double scale = total > 0 ? spread / sqrt(total / s->n_queries) : 1;
    for (size_t i = 0; i < (size_t)s->n_queries * s->dim; i++) s->q[i] = (float)(s->q[i] * scale);
}

rq_status kv_set_make(kv_set_kind kind, uint32_t dim, uint32_t n, uint32_t n_queries, double spread,
                      uint64_t seed, kv_set *out, rq_error *err)
{
    if (dim < 8 || dim > MAX_DIM || dim % 2 || n < 2 || n > MAX_ROWS || n_queries < 2 || n_queries > MAX_ROWS)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a synthetic set needs an even head of 8 to %d elements and 2 to %d keys and queries",
                       MAX_DIM, MAX_ROWS);
    kv_set s = {.n = n, .n_queries = n_queries, .dim = dim};
    s.k = rq_malloc(sizeof(float) * n * dim);
    s.v = rq_malloc(sizeof(float) * n * dim);
    s.q = rq_malloc(sizeof(float) * n_queries * dim);
    if (!s.k || !s.v || !s.q) {
        kv_set_free(&s);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a synthetic set");
    }
    kv_random r = kv_random_start(seed * 104729 + (uint64_t)kind * 31 + dim);
    loud l;
    draw_channels(&r, dim, l.k);
    draw_channels(&r, dim, l.v);
    for (int i = 0; i < N_LOUD; i++) l.sign[i] = kv_random_u64(&r) & 1 ? -1 : 1;
    rq_status status = RQ_OK;
    if (kind == KV_SET_ROPE || kind == KV_SET_ROPE_ADJACENT)
        status = fill_rope(kind, &r, &s, err);
    else
        fill_independent(kind, &r, &l, &s);
    if (status) {
        kv_set_free(&s);
        return status;
    }
    scale_queries(&s, spread);
    *out = s;
    return RQ_OK;
}
