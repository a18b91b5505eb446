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

/* n floats at byte `first` of the layer's part of the run's slot, zeroed where a sequence begins. */
static float *state_of(const rq_ref_run *r, const rq_run *run, uint64_t first, size_t n)
{
    const rq_value *v = rq_ref_in(r, 0).v;
    char *state = (char *)rq_pool_state(&r->env->states[v->index], run->state, v->layer) + first;
    if (run->start == 0) memset(state, 0, n * sizeof(float));
    return (float *)(void *)state;
}

static const rq_state_layout *layout_of(const rq_ref_run *r)
{
    return &r->env->states[rq_ref_in(r, 0).v->index].layout;
}

rq_status rq_ref_short_conv(const rq_ref_run *r)
{
    rq_ref_view x = rq_ref_in(r, 1), w = rq_ref_in(r, 2), y = rq_ref_out(r, 0);
    const rq_step_header *h = rq_ref_step(r);
    const rq_run *runs = rq_step_at(r->env->step_words, h->runs);
    uint32_t channels = x.v->ne[0], kept = w.v->ne[1] - 1;
    for (uint32_t i = 0; i < h->n_runs; i++) {
        const rq_run *run = &runs[i];
        float *tail = state_of(r, run, 0, (size_t)channels * kept);
        for (uint32_t c = 0; c < channels; c++) {
            float in[RQ_MAX_CONV_TAPS]; /* the last ones, then this one */
            for (uint32_t j = 0; j < kept; j++) in[j] = tail[(size_t)j * channels + c];
            for (uint32_t t = run->first; t < run->first + run->count; t++) {
                double sum = 0;
                in[kept] = *rq_ref_f32(&x, c, t, 0, 0);
                for (uint32_t j = 0; j <= kept; j++) sum += (double)in[j] * *rq_ref_f32(&w, c, j, 0, 0);
                *rq_ref_f32(&y, c, t, 0, 0) = (float)(sum * sigmoid(sum));
                memmove(in, in + 1, kept * sizeof *in);
            }
            for (uint32_t j = 0; j < kept; j++) tail[(size_t)j * channels + c] = in[j];
        }
    }
    return RQ_OK;
}

/* One head over the tokens of a run; s: its matrix in double [dk][dv]. */
static void delta_head(const rq_ref_run *r, const rq_run *run, uint32_t head, double *s, double *d)
{
    rq_ref_view q = rq_ref_in(r, 1), k = rq_ref_in(r, 2), v = rq_ref_in(r, 3), alpha = rq_ref_in(r, 4),
                beta = rq_ref_in(r, 5), rate = rq_ref_in(r, 6), offset = rq_ref_in(r, 7),
                y = rq_ref_out(r, 0);
    uint32_t dk = k.v->ne[0], dv = v.v->ne[0], n_k = k.v->ne[1], n_v = v.v->ne[1];
    uint32_t from = r->op->p.delta.tiled ? head % n_k : head / (n_v / n_k);
    for (uint32_t t = run->first; t < run->first + run->count; t++) {
        double a = (double)*rq_ref_f32(&alpha, head, t, 0, 0) + *rq_ref_f32(&offset, head, 0, 0, 0);
        double softplus = a > 0 ? a + log1p(exp(-a)) : log1p(exp(a));
        double decay = exp(*rq_ref_f32(&rate, head, 0, 0, 0) * softplus);
        double write = sigmoid(*rq_ref_f32(&beta, head, t, 0, 0));
        for (uint32_t m = 0; m < dv; m++) {
            double read = 0;
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + m] *= decay;
                read += s[i * dv + m] * *rq_ref_f32(&k, i, from, t, 0);
            }
            d[m] = write * (*rq_ref_f32(&v, m, head, t, 0) - read);
        }
        for (uint32_t m = 0; m < dv; m++) {
            double sum = 0;
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + m] += *rq_ref_f32(&k, i, from, t, 0) * d[m];
                sum += s[i * dv + m] * *rq_ref_f32(&q, i, from, t, 0);
            }
            *rq_ref_f32(&y, m, head, t, 0) = (float)(sum * (double)r->op->p.delta.scale);
        }
    }
}

rq_status rq_ref_delta_rule(const rq_ref_run *r)
{
    rq_ref_view k = rq_ref_in(r, 2), v = rq_ref_in(r, 3);
    const rq_step_header *h = rq_ref_step(r);
    const rq_run *runs = rq_step_at(r->env->step_words, h->runs);
    size_t dk = k.v->ne[0], dv = v.v->ne[0];
    double *s = rq_calloc(dk * dv + dv, sizeof *s);
    if (!s) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a recurrent state");
    for (uint32_t i = 0; i < h->n_runs; i++) {
        const rq_state_layout *l = layout_of(r);
        for (uint32_t head = 0; head < v.v->ne[1]; head++) {
            float *matrix = state_of(r, &runs[i], l->tail_bytes + head * l->matrix_bytes, dk * dv);
            for (size_t e = 0; e < dk * dv; e++) s[e] = matrix[e];
            delta_head(r, &runs[i], head, s, s + dk * dv);
            for (size_t e = 0; e < dk * dv; e++) matrix[e] = (float)s[e];
        }
    }
    rq_free(s);
    return RQ_OK;
}
