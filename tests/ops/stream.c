#include "tests/ops/stream.h"

#include "backends/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { TAPS = 4, LAYERS = 2 };

static uint32_t channels_of(const stream_shape *p)
{
    return 2 * p->key_heads * p->dim_k + p->heads * p->dim_v;
}

/* About normal, of a stream of numbers of its own. */
static float normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) {
        *state = *state * 6364136223846793005ull + 1442695040888963407ull;
        sum += (double)(*state >> 11) * 0x1p-53;
    }
    return (float)sum;
}

/* Rows of the embedding: what the convolution gets, then alpha and beta of each head. */
static void fill_tokens(const stream_shape *p, float *to)
{
    static const float alpha[] = {0, 6, -30, -30}, beta[] = {0, 0, 12, -12};
    uint32_t channels = channels_of(p);
    uint64_t seed = 5;
    for (uint32_t id = 0; id < STREAM_KINDS * STREAM_OF_A_KIND; id++) {
        uint32_t kind = id / STREAM_OF_A_KIND;
        for (uint32_t c = 0; c < channels; c++) *to++ = normal(&seed);
        for (uint32_t h = 0; h < p->heads; h++) *to++ = alpha[kind] + normal(&seed);
        for (uint32_t h = 0; h < p->heads; h++) *to++ = beta[kind] + normal(&seed);
    }
}

static float *add_weight(stream *s, uint32_t i, const char *name, uint32_t n, uint32_t m)
{
    float *values = rq_calloc_aligned(64, 4ull * n * m);
    assert_non_null(values);
    s->weights[i] = (rq_weight){
        .name = name, .type = RQ_TYPE_F32, .ne = {n, m, 1, 1}, .host = values, .bytes = 4ull * n * m};
    return values;
}

static void make_weights(stream *s)
{
    const stream_shape *p = &s->shape;
    uint32_t channels = channels_of(p);
    uint64_t seed = 11;
    fill_tokens(p, add_weight(s, 0, "tokens", channels + 2 * p->heads, STREAM_KINDS * STREAM_OF_A_KIND));
    float *taps = add_weight(s, 1, "taps", channels, TAPS), *rate = add_weight(s, 2, "rate", p->heads, 1),
          *offset = add_weight(s, 3, "offset", p->heads, 1);
    for (uint32_t i = 0; i < channels * TAPS; i++) taps[i] = normal(&seed);
    for (uint32_t h = 0; h < p->heads; h++) {
        rate[h] = -0.02f - 0.3f * (float)h / (float)p->heads;
        offset[h] = 0.1f * normal(&seed);
    }
}

static rq_ref weight(const stream *s, rq_tape *t, uint32_t i)
{
    return rq_tape_weight(t, i, s->weights[i].type, s->weights[i].ne, s->weights[i].name);
}

static rq_ref layer(const stream *s, rq_tape *t, rq_ref x, uint32_t index)
{
    const stream_shape *p = &s->shape;
    uint32_t keys = p->dim_k * p->key_heads, channels = channels_of(p), row = channels + 2 * p->heads;
    rq_ref state = rq_tape_state(t, 0, index), u = rq_tape_view(t, x, 0, channels, t->bucket, row, 1, 0);
    rq_ref c = rq_op_short_conv(t, state, u, weight(s, t, 1));
    rq_ref q = rq_tape_view(t, c, 0, p->dim_k, p->key_heads, p->dim_k, t->bucket, channels);
    rq_ref k = rq_tape_view(t, c, keys, p->dim_k, p->key_heads, p->dim_k, t->bucket, channels);
    const rq_delta_in in = {
        .state = state,
        .q = rq_op_l2_norm(t, index ? k : q, 1e-6f),
        .k = rq_op_l2_norm(t, index ? q : k, 1e-6f),
        .v = rq_tape_view(t, c, 2ull * keys, p->dim_v, p->heads, p->dim_v, t->bucket, channels),
        .alpha = rq_tape_view(t, x, channels, p->heads, t->bucket, row, 1, 0),
        .beta = rq_tape_view(t, x, (uint64_t)channels + p->heads, p->heads, t->bucket, row, 1, 0),
        .rate = weight(s, t, 2),
        .offset = weight(s, t, 3),
        .scale = 1.0f / sqrtf((float)p->dim_k),
        .tiled = p->tiled};
    return rq_op_delta_rule(t, &in);
}

static rq_ref persist(rq_tape *t, rq_persist which, uint32_t n)
{
    return rq_tape_persist(t, which, RQ_TYPE_F32, n, t->persist_rows[which]);
}

/* The results of both layers beside one another would need a copy of their own: they are added. */
static void build(void *user, rq_tape_kind kind, rq_tape *t)
{
    const stream *s = user;
    if (kind == RQ_TAPE_HEAD) {
        rq_ref rows = rq_op_select_rows(t, persist(t, RQ_PERSIST_HIDDEN, s->row));
        rq_op_copy(t, rows, persist(t, RQ_PERSIST_LOGITS, s->row));
        return;
    }
    rq_ref x = rq_op_embed(t, weight(s, t, 0));
    rq_ref y = rq_op_add(t, layer(s, t, x, 0), rq_op_scale(t, layer(s, t, x, 1), -0.5f));
    y = rq_tape_view(t, y, 0, s->row, t->bucket, s->row, 1, 0);
    rq_op_copy(t, y, persist(t, RQ_PERSIST_HIDDEN, s->row));
}

static uint32_t first_device(void *user, uint32_t model_layer)
{
    return 0;
}

void stream_open(stream *s, rq_device *device, const stream_shape *shape)
{
    *s = (stream){.shape = *shape, .row = shape->heads * shape->dim_v};
    make_weights(s);
    s->group = (rq_state_group){.n_layers = LAYERS,
                                .conv_channels = channels_of(shape),
                                .conv_taps = TAPS,
                                .n_heads = shape->heads,
                                .dim_k = shape->dim_k,
                                .dim_v = shape->dim_v,
                                .n_key_heads = shape->key_heads,
                                .n_pending = shape->n_pending};
    rq_error err = {0};
    rq_executor_params params = {
        .devices = &device,
        .n_devices = 1,
        .weights = s->weights,
        .n_weights = STREAM_WEIGHTS,
        .states = &s->group,
        .n_states = 1,
        .caps = {.max_tokens = shape->max_tokens, .n_seqs = shape->n_seqs, .max_pages = shape->max_pages},
        .n_embd = s->row,
        .n_vocab = s->row,
        .build = build,
        .place = first_device,
        .user = s};
    if (rq_executor_create(&params, &s->ex, &err) != RQ_OK) fail_msg("%s", err.text);
}

void stream_close(stream *s)
{
    rq_executor_free(s->ex);
    for (uint32_t i = 0; i < STREAM_WEIGHTS; i++) rq_free((void *)s->weights[i].host);
}

void stream_step(stream *s, const stream_run *runs, uint32_t n, float *rows)
{
    rq_error err = {0};
    rq_step *step = rq_executor_begin(s->ex, &err);
    if (!step) fail_msg("%s", err.text);
    uint32_t n_tokens = 0;
    for (uint32_t i = 0; i < n; i++) {
        const stream_run *r = &runs[i];
        assert_int_equal(rq_step_add_run(step, r->seq, r->ids, r->count, r->start, NULL), n_tokens);
        assert_true(rq_step_set_draft(step, r->n_accepted, r->n_pending));
        n_tokens += r->count;
    }
    for (uint32_t t = 0; rows && t < n_tokens && t < RQ_HEAD_ROWS; t++)
        assert_true(rq_step_add_row(step, t, 0));
    const float *got = NULL;
    if (rq_executor_submit(s->ex, step, &err) != RQ_OK ||
        rq_executor_wait(s->ex, step, rows ? &got : NULL, &err) != RQ_OK)
        fail_msg("%s", err.text);
    for (uint32_t first = 0; rows && first < n_tokens; first += RQ_HEAD_ROWS) {
        rq_row list[RQ_HEAD_ROWS];
        uint32_t some = n_tokens - first < RQ_HEAD_ROWS ? n_tokens - first : RQ_HEAD_ROWS;
        for (uint32_t i = 0; i < some; i++) list[i] = (rq_row){.token = first + i};
        if (first && rq_executor_head(s->ex, step, list, some, &got, &err) != RQ_OK) fail_msg("%s", err.text);
        memcpy(rows + (size_t)first * s->row, got, sizeof *rows * some * s->row);
    }
}

rq_device *stream_device(const char *name, rq_delta_form form)
{
    rq_device *device = NULL;
    for (const rq_backend *const *b = rq_backends(); *b; b++) {
        bool card = strcmp((*b)->name, name) == 0;
        if (!card && *b != &rq_backend_cpu) continue;
        rq_error err = {0};
        rq_device_options options = {
            .n_threads = 2, .implementation = card ? NULL : name, .delta_form = form};
        if ((*b)->open(&options, &device, &err) == RQ_OK) return device;
        printf("%s %s is not on this machine: %s\n", (*b)->name, name, err.text);
    }
    return NULL;
}
