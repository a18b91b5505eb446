/* ops_recurrent.c - recurrent layers: norm of heads, short convolution, delta rule in its token form. */
#include "backends/cpu/program.h"

#include <math.h>
#include <string.h>

static const rq_run *runs_of(const rq_cpu_worker *w)
{
    return rq_step_at(w->words, w->header->runs);
}

/* ---- l2 norm --------------------------------------------------------------------------------------------- */

typedef struct l2_args {
    rq_tensor x, y;
    rq_rows rows;
    float eps;
} l2_args;

enum { NORM_ROWS = 32 }; /* of a unit */

static void run_l2_norm(rq_cpu_worker *w, const void *args)
{
    const l2_args *a = args;
    uint32_t n = rq_rows_active(&a->rows, w), unit;
    while (rq_cpu_take(w, (n + NORM_ROWS - 1) / NORM_ROWS, &unit))
        for (uint32_t r = unit * NORM_ROWS; r < n && r < (unit + 1) * NORM_ROWS; r++)
            w->vec->l2_norm(rq_row_of(&a->x, &a->rows, r), rq_row_of(&a->y, &a->rows, r), a->rows.ne[0],
                            a->eps);
}

void rq_cpu_l2_norm(rq_cpu_builder *b, const rq_op *op)
{
    l2_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->rows = rq_cpu_rows(b, &a->x);
    a->eps = op->p.norm.eps;
    rq_cpu_emit(b, run_l2_norm, a, false);
}

/* ---- short convolution ----------------------------------------------------------------------------------- */

typedef struct conv_args {
    const rq_state_pool *pool;
    uint32_t layer;
    rq_tensor x, w, y;
} conv_args;

enum { CONV_CHANNELS = 256 }; /* of a unit, which is these channels of one run */

/* One run: tail and inputs are rows of a sequence, of which a row of the result sees `taps`. */
static void conv_run(const rq_cpu_worker *w, const conv_args *a, const rq_run *run, uint32_t c, uint32_t n)
{
    uint32_t channels = a->x.ne[0], taps = a->w.ne[1], kept = taps - 1;
    float *tail = (float *)(void *)rq_pool_state(a->pool, run->state, a->layer) + c;
    const float *weights = (const float *)(const void *)a->w.p + c;
    if (run->start == 0)
        for (uint32_t j = 0; j < kept; j++) memset(tail + (size_t)j * channels, 0, n * sizeof *tail);
    for (uint32_t i = 0; i < run->count; i++) {
        const float *rows[RQ_MAX_CONV_TAPS];
        for (uint32_t j = 0; j < taps; j++)
            rows[j] =
                i + j < kept
                    ? tail + (size_t)(i + j) * channels
                    : (const float *)(const void *)(a->x.p + (run->first + i + j - kept) * a->x.nb[1]) + c;
        w->vec->conv_silu(rows, weights, a->w.nb[1] / sizeof *weights, taps,
                          (float *)(void *)(a->y.p + (run->first + i) * a->y.nb[1]) + c, n);
    }
    for (uint32_t j = 0; j < kept; j++) { /* ascending: a row is read before it is overwritten */
        uint32_t from = run->count + j;
        const float *row =
            from < kept ? tail + (size_t)from * channels
                        : (const float *)(const void *)(a->x.p + (run->first + from - kept) * a->x.nb[1]) + c;
        memcpy(tail + (size_t)j * channels, row, n * sizeof *row);
    }
}

static void run_conv(rq_cpu_worker *w, const void *args)
{
    const conv_args *a = args;
    uint32_t channels = a->x.ne[0], blocks = (channels + CONV_CHANNELS - 1) / CONV_CHANNELS, unit;
    while (rq_cpu_take(w, w->header->n_runs * blocks, &unit)) {
        uint32_t c = unit % blocks * CONV_CHANNELS,
                 n = channels - c < CONV_CHANNELS ? channels - c : CONV_CHANNELS;
        conv_run(w, a, &runs_of(w)[unit / blocks], c, n);
    }
}

/* The operation's state; NULL, and a failure, where there is none. */
static const rq_state_pool *state_pool(rq_cpu_builder *b, const rq_op *op, uint32_t *layer)
{
    const rq_value *v = &rq_cpu_tape(b)->values[op->in[0]];
    const rq_state_pool *pools = rq_cpu_bindings(b)->states;
    *layer = v->layer;
    if (pools) return &pools[v->index];
    rq_cpu_fail(b, "there is no state");
    return NULL;
}

void rq_cpu_short_conv(rq_cpu_builder *b, const rq_op *op)
{
    conv_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->pool = state_pool(b, op, &a->layer);
    a->x = rq_cpu_tensor(b, op->in[1]);
    a->w = rq_cpu_tensor(b, op->in[2]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    rq_cpu_emit(b, run_conv, a, false);
}

/* ---- delta rule ------------------------------------------------------------------------------------------ */

typedef struct delta_args {
    const rq_state_pool *pool;
    uint32_t layer;
    rq_tensor q, k, v, alpha, beta, rate, offset, y;
    float scale;
    bool tiled;
} delta_args;

static float element(const rq_tensor *x, uint32_t i, uint32_t t)
{
    return ((const float *)(const void *)(x->p + t * x->nb[1]))[i];
}

/* exp(rate * softplus(x)), in double: a few numbers for each token, and the state's length depends on them. */
static float decay_of(float rate, double x)
{
    double softplus = x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    return (float)exp((double)rate * softplus);
}

/* A unit is a head of one run: the matrix stays with one worker. */
static void run_delta(rq_cpu_worker *w, const void *args)
{
    const delta_args *a = args;
    uint32_t n_k = a->k.ne[1], n_v = a->v.ne[1], unit;
    while (rq_cpu_take(w, w->header->n_runs * n_v, &unit)) {
        const rq_run *run = &runs_of(w)[unit / n_v];
        uint32_t head = unit % n_v, from = a->tiled ? head % n_k : head / (n_v / n_k);
        uint8_t *state = rq_pool_state(a->pool, run->state, a->layer) + a->pool->layout.tail_bytes +
                         head * a->pool->layout.matrix_bytes;
        if (run->start == 0) memset(state, 0, (size_t)a->pool->layout.matrix_bytes);
        rq_delta_token t = {
            .s = (float *)(void *)state, .dim_k = a->k.ne[0], .dim_v = a->v.ne[0], .scale = a->scale};
        for (uint32_t i = run->first; i < run->first + run->count; i++) {
            t.q = (const float *)(const void *)(a->q.p + from * a->q.nb[1] + i * a->q.nb[2]);
            t.k = (const float *)(const void *)(a->k.p + from * a->k.nb[1] + i * a->k.nb[2]);
            t.v = (const float *)(const void *)(a->v.p + head * a->v.nb[1] + i * a->v.nb[2]);
            t.y = (float *)(void *)(a->y.p + head * a->y.nb[1] + i * a->y.nb[2]);
            t.decay = decay_of(element(&a->rate, head, 0),
                               (double)element(&a->alpha, head, i) + (double)element(&a->offset, head, 0));
            t.write = (float)(1 / (1 + exp(-(double)element(&a->beta, head, i))));
            w->vec->delta_token(&t);
        }
    }
}

void rq_cpu_delta_rule(rq_cpu_builder *b, const rq_op *op)
{
    delta_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->pool = state_pool(b, op, &a->layer);
    rq_tensor *in[] = {&a->q, &a->k, &a->v, &a->alpha, &a->beta, &a->rate, &a->offset};
    for (int i = 0; i < 7; i++) *in[i] = rq_cpu_tensor(b, op->in[1 + i]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->scale = op->p.delta.scale;
    a->tiled = op->p.delta.tiled;
    rq_cpu_emit(b, run_delta, a, false);
}
