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

/* Row i of what a run's channels [c, ..) see: the tail, the accepted rows of the last draft check, the run's own. */
typedef struct conv_rows {
    const float *tail, *x; /* tail NULL: the sequence begins */
    float *pending;        /* channel c of the slot's pending rows, of `places` */
    uint64_t channels, x_stride;
    uint32_t kept, accepted, places, start;
} conv_rows;

static float *conv_pending(const conv_rows *r, uint32_t position)
{
    return r->pending + position % r->places * r->channels;
}

static const float *conv_row(const conv_rows *r, uint32_t i)
{
    static const float zeros[CONV_CHANNELS];
    if (i < r->kept) return r->tail ? r->tail + i * r->channels : zeros;
    i -= r->kept;
    if (i < r->accepted) return conv_pending(r, r->start - r->accepted + i);
    return r->x + (i - r->accepted) * r->x_stride;
}

/* n channels of one run: a row of the result sees `taps` rows. */
static void conv_run(const rq_cpu_worker *w, const conv_args *a, const rq_run *run, uint32_t c, uint32_t n)
{
    uint32_t channels = a->x.ne[0], taps = a->w.ne[1], kept = taps - 1, m = run->n_accepted;
    float *tail = (float *)(void *)rq_pool_state(a->pool, run->state, a->layer) + c;
    const float *weights = (const float *)(const void *)a->w.p + c;
    conv_rows rows = {.tail = run->start == m ? NULL : tail,
                      .x = (const float *)(const void *)(a->x.p + run->first * a->x.nb[1]) + c,
                      .pending = (float *)(void *)rq_pool_pending(a->pool, run->state, a->layer) + c,
                      .channels = channels,
                      .x_stride = a->x.nb[1] / sizeof *weights,
                      .kept = kept,
                      .accepted = m,
                      .places = a->pool->group->n_pending,
                      .start = run->start};
    for (uint32_t i = 0; i < run->count; i++) {
        const float *seen[RQ_MAX_CONV_TAPS];
        for (uint32_t j = 0; j < taps; j++) seen[j] = conv_row(&rows, m + i + j);
        w->vec->conv_silu(seen, weights, a->w.nb[1] / sizeof *weights, taps,
                          (float *)(void *)(a->y.p + (run->first + i) * a->y.nb[1]) + c, n);
    }
    uint32_t done = m + (run->n_pending ? 0 : run->count);
    for (uint32_t j = 0; j < kept && done; j++) /* ascending: a row is read before it is overwritten */
        memcpy(tail + (size_t)j * channels, conv_row(&rows, done + j), n * sizeof *tail);
    for (uint32_t i = 0; i < run->n_pending; i++)
        memcpy(conv_pending(&rows, run->start + i), rows.x + i * rows.x_stride, n * sizeof *tail);
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
    bool tiled, chunks; /* of a wide bucket whose shapes can be taken in chunks */
} delta_args;

static float element(const rq_tensor *x, uint32_t i, uint32_t t)
{
    return ((const float *)(const void *)(x->p + t * x->nb[1]))[i];
}

/* The logarithm of the decay, rate * softplus(x), in double: a few numbers for each token, and the state's length depends
 * on them. */
static double log_decay_of(float rate, double x)
{
    double softplus = x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    return (double)rate * softplus;
}

/* One head of one run. */
typedef struct delta_head {
    const delta_args *a;
    const rq_run *run;
    uint32_t head, from; /* value head, its key head */
    bool keeps_k;        /* the first head of those that share a key keeps it for all */
    uint8_t *pending;    /* the layer's part of the slot's pending area */
    rq_delta_token t;
} delta_head;

static float *pending_row(const delta_head *h, uint64_t part, uint64_t position, uint64_t places,
                          uint64_t row, uint64_t rows, uint64_t n)
{
    return (float *)(void *)(h->pending + part) + (position % places * rows + row) * n;
}

static float *pending_k(const delta_head *h, uint32_t position)
{
    const rq_state_pool *pool = h->a->pool;
    return pending_row(h, pool->layout.pending_k, position, 2 * pool->group->n_pending, h->from,
                       rq_state_key_heads(pool->group), h->a->k.ne[0]);
}

static float *pending_v(const delta_head *h, uint32_t position)
{
    const rq_state_pool *pool = h->a->pool;
    return pending_row(h, pool->layout.pending_v, position, pool->group->n_pending, h->head, h->a->v.ne[1],
                       h->a->v.ne[0]);
}

static float *pending_gates(const delta_head *h, uint32_t position)
{
    const rq_state_pool *pool = h->a->pool;
    return pending_row(h, pool->layout.pending_gates, position, 2 * pool->group->n_pending, h->head,
                       h->a->v.ne[1], 2);
}

/* Applies the tokens of the last draft check that were accepted; nobody wants their results. */
static void commit(const rq_cpu_worker *w, delta_head *h, float *nowhere)
{
    h->t.y = nowhere;
    for (uint32_t p = h->run->start - h->run->n_accepted; p < h->run->start; p++) {
        h->t.q = h->t.k = pending_k(h, p);
        h->t.v = pending_v(h, p);
        h->t.decay = pending_gates(h, p)[0];
        h->t.write = pending_gates(h, p)[1];
        w->vec->delta_token(&h->t);
    }
}

static void keep(const delta_head *h, uint32_t position)
{
    memcpy(pending_v(h, position), h->t.v, h->t.dim_v * sizeof(float));
    if (h->keeps_k) memcpy(pending_k(h, position), h->t.k, h->t.dim_k * sizeof(float));
    pending_gates(h, position)[0] = h->t.decay;
    pending_gates(h, position)[1] = h->t.write;
}

static double log_decay(const delta_head *h, uint32_t token)
{
    const delta_args *a = h->a;
    return log_decay_of(element(&a->rate, h->head, 0),
                        (double)element(&a->alpha, h->head, token) + (double)element(&a->offset, h->head, 0));
}

/* Of the difference between a value and what the state says, how much is written. */
static float share(const delta_head *h, uint32_t token)
{
    return (float)(1 / (1 + exp(-(double)element(&h->a->beta, h->head, token))));
}

static void delta_tokens(const rq_cpu_worker *w, delta_head *h)
{
    const delta_args *a = h->a;
    const rq_run *run = h->run;
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        h->t.q = (const float *)(const void *)(a->q.p + h->from * a->q.nb[1] + i * a->q.nb[2]);
        h->t.k = (const float *)(const void *)(a->k.p + h->from * a->k.nb[1] + i * a->k.nb[2]);
        h->t.v = (const float *)(const void *)(a->v.p + h->head * a->v.nb[1] + i * a->v.nb[2]);
        h->t.y = (float *)(void *)(a->y.p + h->head * a->y.nb[1] + i * a->y.nb[2]);
        h->t.decay = (float)exp(log_decay(h, i));
        h->t.write = share(h, i);
        w->vec->delta_token(&h->t);
        if (run->n_pending) keep(h, run->start + i - run->first);
    }
}

/* The same in chunks. */
static void delta_chunks(const rq_cpu_worker *w, const delta_head *h, float *scratch)
{
    /* A sum of logarithms far below that of the smallest float; differences of such sums stay numbers. */
    static const double nothing = -1e6;
    const delta_args *a = h->a;
    const rq_run *run = h->run;
    double sums[RQ_DELTA_CHUNK];
    float shares[RQ_DELTA_CHUNK];
    rq_delta_chunk c = {.s = h->t.s,
                        .q_stride = a->q.nb[2] / sizeof(float),
                        .k_stride = a->k.nb[2] / sizeof(float),
                        .v_stride = a->v.nb[2] / sizeof(float),
                        .y_stride = a->y.nb[2] / sizeof(float),
                        .dim_k = h->t.dim_k,
                        .dim_v = h->t.dim_v,
                        .log_decay = sums,
                        .write = shares,
                        .scale = a->scale,
                        .scratch = scratch};
    for (uint32_t i = run->first, end = run->first + run->count; i < end; i += c.n) {
        c.n = end - i < RQ_DELTA_CHUNK ? end - i : RQ_DELTA_CHUNK;
        c.q = (const float *)(const void *)(a->q.p + h->from * a->q.nb[1] + i * a->q.nb[2]);
        c.k = (const float *)(const void *)(a->k.p + h->from * a->k.nb[1] + i * a->k.nb[2]);
        c.v = (const float *)(const void *)(a->v.p + h->head * a->v.nb[1] + i * a->v.nb[2]);
        c.y = (float *)(void *)(a->y.p + h->head * a->y.nb[1] + i * a->y.nb[2]);
        double sum = 0;
        for (uint32_t t = 0; t < c.n; t++) {
            double one = log_decay(h, i + t);
            sum += one < nothing ? nothing : one;
            sums[t] = sum;
            shares[t] = share(h, i + t);
        }
        w->vec->delta_chunk(&c);
    }
}

/* Where chunks are asked for, runs in wide buckets go in them, unless they are short. They are not the default: the rule
 * is a small part of a prompt's time on a processor, and token by token a prompt has the same bits however it is cut. */
static bool in_chunks(const delta_args *a, const rq_run *run)
{
    return a->chunks && run->n_pending == 0 && run->count >= RQ_DELTA_LONG;
}

/* A unit is a head of one run: the matrix stays with one worker. */
static void run_delta(rq_cpu_worker *w, const void *args)
{
    const delta_args *a = args;
    uint32_t n_k = a->k.ne[1], n_v = a->v.ne[1], unit;
    size_t bytes = (size_t)a->pool->layout.matrix_bytes;
    while (rq_cpu_take(w, w->header->n_runs * n_v, &unit)) {
        const rq_run *run = &runs_of(w)[unit / n_v];
        uint32_t head = unit % n_v, shared = n_v / n_k;
        delta_head h = {.a = a,
                        .run = run,
                        .head = head,
                        .from = a->tiled ? head % n_k : head / shared,
                        .keeps_k = a->tiled ? head < n_k : head % shared == 0,
                        .pending = rq_pool_pending(a->pool, run->state, a->layer),
                        .t = {.dim_k = a->k.ne[0], .dim_v = a->v.ne[0], .scale = a->scale}};
        uint8_t *state =
            rq_pool_state(a->pool, run->state, a->layer) + a->pool->layout.tail_bytes + head * bytes;
        bool begins = run->start == run->n_accepted;
        if (begins && (run->n_accepted || !run->n_pending)) memset(state, 0, bytes);
        h.t.s = (float *)(void *)state;
        if (run->n_accepted) commit(w, &h, (float *)(void *)(w->own + bytes));
        if (run->n_pending) { /* on a copy */
            h.t.s = (float *)(void *)w->own;
            if (begins && !run->n_accepted)
                memset(w->own, 0, bytes);
            else
                memcpy(w->own, state, bytes);
        }
        if (in_chunks(a, run))
            delta_chunks(w, &h, (float *)(void *)w->own);
        else
            delta_tokens(w, &h);
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
    a->chunks = rq_delta_in_chunks(rq_cpu_device_of(b)->delta_form, false, rq_cpu_tape(b)->bucket) &&
                a->v.ne[0] % RQ_PANEL == 0;
    uint64_t chunk = a->chunks ? rq_delta_scratch(a->k.ne[0]) : 0, copy = 0;
    if (a->pool && a->pool->group->n_pending)
        copy = a->pool->layout.matrix_bytes + a->v.ne[0] * sizeof(float);
    rq_cpu_own(b, chunk > copy ? chunk : copy);
    rq_cpu_emit(b, run_delta, a, false);
}
