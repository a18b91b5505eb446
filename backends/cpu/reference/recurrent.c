/* recurrent.c - the reference of recurrent layers: their short convolution and their delta rule. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/internal.h"
#include "backends/state.h"

#include <math.h>
#include <string.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* The slot of a run: the layer's state, and its pending area (state.h) of `places` tokens. */
typedef struct slot {
    const rq_state_layout *layout;
    char *state, *pending;
    uint32_t places, heads, key_heads;
    bool begins; /* with zeros, whatever the state holds */
} slot;

static slot slot_of(const rq_ref_run *r, const rq_run *run)
{
    const rq_value *v = rq_ref_in(r, 0).v;
    const rq_state_pool *pool = &r->env->states[v->index];
    const rq_state_group *g = pool->group;
    return (slot){.layout = &pool->layout,
                  .state = (char *)rq_pool_state(pool, run->state, v->layer),
                  .pending = (char *)rq_pool_pending(pool, run->state, v->layer),
                  .places = g->n_pending,
                  .heads = g->n_heads,
                  .key_heads = rq_state_key_heads(g),
                  .begins = run->start == run->n_accepted};
}

static float *pending_x(const slot *s, uint32_t position, uint32_t channels)
{
    return (float *)(void *)(s->pending + s->layout->pending_x) + (size_t)(position % s->places) * channels;
}

static float *pending_v(const slot *s, uint32_t position, uint32_t head, uint32_t dv)
{
    return (float *)(void *)(s->pending + s->layout->pending_v) +
           ((size_t)(position % s->places) * s->heads + head) * dv;
}

static float *pending_k(const slot *s, uint32_t position, uint32_t key_head, uint32_t dk)
{
    return (float *)(void *)(s->pending + s->layout->pending_k) +
           ((size_t)(position % (2 * s->places)) * s->key_heads + key_head) * dk;
}

/* Factor of decay and share that is written. */
static float *pending_gates(const slot *s, uint32_t position, uint32_t head)
{
    return (float *)(void *)(s->pending + s->layout->pending_gates) +
           2 * ((size_t)(position % (2 * s->places)) * s->heads + head);
}

/* ---- short convolution ------------------------------------------------------------------------------------ */

static void conv_channel(const rq_ref_run *r, const rq_run *run, const slot *s, uint32_t c)
{
    rq_ref_view x = rq_ref_in(r, 1), w = rq_ref_in(r, 2), y = rq_ref_out(r, 0);
    uint32_t channels = x.v->ne[0], kept = w.v->ne[1] - 1;
    float *tail = (float *)(void *)s->state + c, in[RQ_MAX_CONV_TAPS]; /* the last ones, then this one */
    for (uint32_t j = 0; j < kept; j++) in[j] = s->begins ? 0 : tail[(size_t)j * channels];
    for (uint32_t i = 0; i < run->n_accepted; i++) {
        in[kept] = pending_x(s, run->start - run->n_accepted + i, channels)[c];
        memmove(in, in + 1, kept * sizeof *in);
    }
    for (uint32_t j = 0; j < kept && run->n_accepted; j++) tail[(size_t)j * channels] = in[j];
    for (uint32_t t = 0; t < run->count; t++) {
        double sum = 0;
        in[kept] = *rq_ref_f32(&x, c, run->first + t, 0, 0);
        if (run->n_pending) pending_x(s, run->start + t, channels)[c] = in[kept];
        for (uint32_t j = 0; j <= kept; j++) sum += (double)in[j] * *rq_ref_f32(&w, c, j, 0, 0);
        *rq_ref_f32(&y, c, run->first + t, 0, 0) = (float)(sum * sigmoid(sum));
        memmove(in, in + 1, kept * sizeof *in);
    }
    for (uint32_t j = 0; j < kept && !run->n_pending; j++) tail[(size_t)j * channels] = in[j];
}

rq_status rq_ref_short_conv(const rq_ref_run *r)
{
    const rq_step_header *h = rq_ref_step(r);
    const rq_run *runs = rq_step_at(r->env->step_words, h->runs);
    for (uint32_t i = 0; i < h->n_runs; i++) {
        slot s = slot_of(r, &runs[i]);
        for (uint32_t c = 0; c < rq_ref_in(r, 1).v->ne[0]; c++) conv_channel(r, &runs[i], &s, c);
    }
    return RQ_OK;
}

/* ---- delta rule ------------------------------------------------------------------------------------------- */

/* One head: its matrix in double [dk][dv], and a row. */
typedef struct head {
    uint32_t dk, dv;
    double *s, *d;
} head;

/* S *= decay; d = write (v - S^T k); S += k d^T */
static void write_token(const head *h, const float *k, const float *v, double decay, double write)
{
    for (uint32_t m = 0; m < h->dv; m++) h->d[m] = 0;
    for (uint32_t i = 0; i < h->dk; i++)
        for (uint32_t m = 0; m < h->dv; m++) {
            h->s[i * h->dv + m] *= decay;
            h->d[m] += h->s[i * h->dv + m] * k[i];
        }
    for (uint32_t m = 0; m < h->dv; m++) h->d[m] = write * (v[m] - h->d[m]);
    for (uint32_t i = 0; i < h->dk; i++)
        for (uint32_t m = 0; m < h->dv; m++) h->s[i * h->dv + m] += k[i] * h->d[m];
}

static void keep_matrix(const head *h, float *to)
{
    for (size_t e = 0; e < (size_t)h->dk * h->dv; e++) to[e] = (float)h->s[e];
}

/* One head of a run. */
static void delta_head(const rq_ref_run *r, const rq_run *run, uint32_t j, const head *h)
{
    rq_ref_view q = rq_ref_in(r, 1), k = rq_ref_in(r, 2), v = rq_ref_in(r, 3), alpha = rq_ref_in(r, 4),
                beta = rq_ref_in(r, 5), rate = rq_ref_in(r, 6), offset = rq_ref_in(r, 7),
                y = rq_ref_out(r, 0);
    uint32_t n_k = k.v->ne[1], n_v = v.v->ne[1];
    uint32_t from = r->op->p.delta.tiled ? j % n_k : j / (n_v / n_k);
    slot s = slot_of(r, run);
    float *matrix = (float *)(void *)(s.state + s.layout->tail_bytes + j * s.layout->matrix_bytes);
    for (size_t e = 0; e < (size_t)h->dk * h->dv; e++) h->s[e] = s.begins ? 0 : (double)matrix[e];
    for (uint32_t p = run->start - run->n_accepted; p < run->start; p++) {
        const float *gates = pending_gates(&s, p, j);
        write_token(h, pending_k(&s, p, from, h->dk), pending_v(&s, p, j, h->dv), gates[0], gates[1]);
    }
    if (run->n_accepted) keep_matrix(h, matrix);
    for (uint32_t i = 0; i < run->count; i++) {
        uint32_t t = run->first + i;
        double a = (double)*rq_ref_f32(&alpha, j, t, 0, 0) + *rq_ref_f32(&offset, j, 0, 0, 0);
        double softplus = a > 0 ? a + log1p(exp(-a)) : log1p(exp(a));
        double decay = exp(*rq_ref_f32(&rate, j, 0, 0, 0) * softplus);
        double write = sigmoid(*rq_ref_f32(&beta, j, t, 0, 0));
        const float *key = rq_ref_f32(&k, 0, from, t, 0), *value = rq_ref_f32(&v, 0, j, t, 0);
        write_token(h, key, value, decay, write);
        const float *query = rq_ref_f32(&q, 0, from, t, 0);
        memset(h->d, 0, h->dv * sizeof *h->d);
        for (uint32_t e = 0; e < h->dk; e++)
            for (uint32_t m = 0; m < h->dv; m++) h->d[m] += h->s[e * h->dv + m] * query[e];
        for (uint32_t m = 0; m < h->dv; m++)
            *rq_ref_f32(&y, m, j, t, 0) = (float)(h->d[m] * (double)r->op->p.delta.scale);
        if (!run->n_pending) continue;
        memcpy(pending_v(&s, run->start + i, j, h->dv), value, h->dv * sizeof *value);
        memcpy(pending_k(&s, run->start + i, from, h->dk), key, h->dk * sizeof *key);
        pending_gates(&s, run->start + i, j)[0] = (float)decay;
        pending_gates(&s, run->start + i, j)[1] = (float)write;
    }
    if (!run->n_pending) keep_matrix(h, matrix);
}

rq_status rq_ref_delta_rule(const rq_ref_run *r)
{
    rq_ref_view k = rq_ref_in(r, 2), v = rq_ref_in(r, 3);
    const rq_step_header *h = rq_ref_step(r);
    const rq_run *runs = rq_step_at(r->env->step_words, h->runs);
    size_t dk = k.v->ne[0], dv = v.v->ne[0];
    double *s = rq_calloc(dk * dv + dv, sizeof *s);
    if (!s) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a recurrent state");
    head one = {.dk = (uint32_t)dk, .dv = (uint32_t)dv, .s = s, .d = s + dk * dv};
    for (uint32_t i = 0; i < h->n_runs; i++)
        for (uint32_t j = 0; j < v.v->ne[1]; j++) delta_head(r, &runs[i], j, &one);
    rq_free(s);
    return RQ_OK;
}
