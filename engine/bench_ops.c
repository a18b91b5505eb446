/* bench_ops.c - times single operations: each row is a tape with the operation and what feeds it, run by the same
 * executor that runs models. */
#include "backends/base/mem.h"
#include "backends/exec/exec.h"
#include "backends/ops.h"
#include "engine/rqvk.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef enum row_kind {
    ROW_MATMUL,  /* w [n, m] */
    ROW_FFN,     /* norm, gate and up [n, m], glu, down [m, n], add: the fused forms of a dense block */
    ROW_ATTEND,  /* h heads over g KV heads of size n at depth m, with norms, rotation and write before it */
    ROW_EXPERTS, /* h experts, g used, [n, m] each, with routing, grouping and combination */
    ROW_EMBED,   /* table [n, m] */
    ROW_DELTA,   /* h value heads over g key heads of size n: convolution of four taps, norms, delta rule */
    ROW_HEAD     /* select rows, norm-free product with [n, m], copy, arg-max */
} row_kind;

typedef struct row_spec {
    const char *name;
    row_kind kind;
    rq_type type; /* of the weight or the cache; F32 with `every_type`: once for each weight type */
    bool every_type;
    uint32_t n, m, h, g, tokens;
    rq_kv_form
        form; /* of attention's coded pages, SAME: exact pages only; the last two are exact in any case */
} row_spec;

#define EXACT RQ_KV_SAME

/* Sizes of the 8B and 30B-A3B shapes, of the 27B hybrid for its recurrent layers; weights larger than the last-level caches of desktop processors, so that
 * products of one token read memory. */
static const row_spec ROWS[] = {
    {"generation", ROW_MATMUL, RQ_TYPE_F32, true, 4096, 14336, 0, 0, 1, EXACT},
    {"draft check", ROW_MATMUL, RQ_TYPE_Q4_K, false, 4096, 14336, 0, 0, 4, EXACT},
    {"prompt", ROW_MATMUL, RQ_TYPE_F32, true, 4096, 4096, 0, 0, 128, EXACT},
    {"generation", ROW_FFN, RQ_TYPE_Q4_K, false, 4096, 14336, 0, 0, 1, EXACT},
    {"prompt", ROW_FFN, RQ_TYPE_Q4_K, false, 1024, 3072, 0, 0, 512, EXACT},
    {"generation", ROW_ATTEND, RQ_TYPE_F16, false, 128, 512, 32, 8, 1, EXACT},
    {"generation", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, EXACT},
    {"generation", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, EXACT},
    {"generation", ROW_ATTEND, RQ_TYPE_F32, false, 128, 4096, 32, 8, 1, EXACT},
    {"generation c2", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, RQ_KV_C2},
    {"generation c3", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, RQ_KV_C3},
    {"generation c4", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, RQ_KV_C4},
    {"generation q8_0", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, RQ_KV_Q8_0},
    {"generation q4_0", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 1, RQ_KV_Q4_0},
    {"generation c2", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_C2},
    {"generation c3", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_C3},
    {"generation c4", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_C4},
    {"generation c42", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_C42},
    {"generation q8_0", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_Q8_0},
    {"generation q4_0", ROW_ATTEND, RQ_TYPE_F16, false, 128, 32768, 32, 8, 1, RQ_KV_Q4_0},
    {"prompt", ROW_ATTEND, RQ_TYPE_F16, false, 128, 0, 32, 8, 512, EXACT},
    {"prompt", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 512, EXACT},
    {"prompt c3", ROW_ATTEND, RQ_TYPE_F16, false, 128, 4096, 32, 8, 512, RQ_KV_C3},
    {"generation", ROW_EXPERTS, RQ_TYPE_Q4_K, false, 2048, 768, 128, 8, 1, EXACT},
    {"prompt", ROW_EXPERTS, RQ_TYPE_Q4_K, false, 2048, 768, 128, 8, 128, EXACT},
    {"generation", ROW_DELTA, RQ_TYPE_F32, false, 128, 0, 48, 16, 1, EXACT},
    {"draft check", ROW_DELTA, RQ_TYPE_F32, false, 128, 0, 48, 16, 4, EXACT},
    {"prompt", ROW_DELTA, RQ_TYPE_F32, false, 128, 0, 48, 16, 512, EXACT},
    {"generation", ROW_EMBED, RQ_TYPE_Q4_K, false, 4096, 8192, 0, 0, 1, EXACT},
    {"generation", ROW_HEAD, RQ_TYPE_Q6_K, false, 4096, 32768, 0, 0, 1, EXACT},
};

enum {
    FILL_TOKENS = 512,
    MAX_WEIGHTS = 8,
    MAX_OPS = 64,
    LEAST_NS = 200000000,
    MAX_REPEATS = 200,
    CONV_TAPS = 4
};

typedef struct bench {
    const row_spec *spec;
    rq_type type;
    rq_device *device;
    rq_weight weights[MAX_WEIGHTS];
    uint32_t n_weights;
    rq_status status;
    rq_error err;
} bench;

static rq_cache_group group_of(const bench *b)
{
    const row_spec *s = b->spec;
    return (rq_cache_group){.n_layers = 1,
                            .n_heads = s->g,
                            .dim_k = s->n,
                            .dim_v = s->n,
                            .type_k = b->type,
                            .type_v = b->type,
                            .form_k = s->form,
                            .form_v = s->form,
                            .recent_pages = 2};
}

static rq_state_group state_of(const bench *b)
{
    const row_spec *s = b->spec;
    return (rq_state_group){.n_layers = 1,
                            .conv_channels = s->n * (2 * s->g + s->h),
                            .conv_taps = CONV_TAPS,
                            .n_heads = s->h,
                            .dim_k = s->n,
                            .dim_v = s->n};
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- weights --------------------------------------------------------------------------------------------- */

/* A tensor whose rows all hold one encoded row of a sine: kernels' times do not depend on values, and encoders
 * of some types are slow. */
static void add_weight(bench *b, const char *name, rq_type type, uint32_t n, uint32_t m, uint32_t experts,
                       float amplitude)
{
    if (b->status) return;
    uint64_t row = rq_row_bytes(type, n), rows = (uint64_t)m * experts;
    float *values = rq_malloc(n * sizeof *values);
    uint8_t *data = rq_malloc(row * rows);
    if (!values || !data) {
        rq_free(values);
        rq_free(data);
        b->status =
            rq_fail(&b->err, RQ_ERR_MEMORY, "out of memory for a tensor of %" PRIu64 " bytes", row * rows);
        return;
    }
    for (uint32_t i = 0; i < n; i++) values[i] = amplitude * sinf(0.7f * (float)i + 0.3f);
    if (!rq_quantize(type, values, data, n))
        b->status =
            rq_fail(&b->err, RQ_ERR_UNSUPPORTED, "there is no encoder for %s", rq_type_get(type)->name);
    for (uint64_t r = 1; r < rows && !b->status; r++) memcpy(data + r * row, data, row);
    rq_free(values);
    b->weights[b->n_weights++] =
        (rq_weight){.name = name, .type = type, .ne = {n, m, experts, 1}, .host = data, .bytes = row * rows};
}

static void make_weights(bench *b)
{
    const row_spec *s = b->spec;
    float amplitude = 1.0f / sqrtf((float)s->n);
    switch (s->kind) {
    case ROW_ATTEND:
        add_weight(b, "embd", RQ_TYPE_F32, s->n * (s->h + 2 * s->g), 64, 1, 1.0f);
        add_weight(b, "freq", RQ_TYPE_F32, s->n / 2, 1, 1, 1.0f);
        break;
    case ROW_DELTA: /* q, k and v, then the two numbers of each value head */
        add_weight(b, "embd", RQ_TYPE_F32, s->n * (2 * s->g + s->h) + 2 * s->h, 64, 1, 1.0f);
        add_weight(b, "conv", RQ_TYPE_F32, s->n * (2 * s->g + s->h), CONV_TAPS, 1, 0.5f);
        add_weight(b, "rate", RQ_TYPE_F32, s->h, 1, 1, 0.1f);
        for (uint32_t i = 0; !b->status && i < s->h; i++) {
            float *rate = (float *)b->weights[2].host;
            rate[i] = -fabsf(rate[i]);
        }
        break;
    case ROW_EMBED:
        add_weight(b, "embd", b->type, s->n, s->m, 1, 1.0f);
        break;
    default:
        add_weight(b, "embd", RQ_TYPE_F32, s->n, 64, 1, 1.0f);
        break;
    }
    if (s->kind == ROW_MATMUL || s->kind == ROW_HEAD) add_weight(b, "w", b->type, s->n, s->m, 1, amplitude);
    if (s->kind == ROW_FFN) {
        add_weight(b, "gate", b->type, s->n, s->m, 1, amplitude);
        add_weight(b, "up", b->type, s->n, s->m, 1, amplitude);
        add_weight(b, "down", b->type, s->m, s->n, 1, amplitude);
    }
    if (s->kind == ROW_EXPERTS) {
        add_weight(b, "router", RQ_TYPE_F32, s->n, s->h, 1, amplitude);
        add_weight(b, "gate", b->type, s->n, s->m, s->h, amplitude);
        add_weight(b, "down", b->type, s->m, s->n, s->h, amplitude);
        /* Different rows for different experts, else the router would send all tokens to the first ones. */
        float *router = (float *)b->weights[1].host;
        uint32_t x = 1;
        for (uint64_t i = 0; !b->status && i < (uint64_t)s->n * s->h; i++) {
            x = x * 1664525u + 1013904223u;
            router[i] = ((float)(x >> 8) / 8388608.0f - 1.0f) * amplitude;
        }
    }
}

static void free_weights(bench *b)
{
    for (uint32_t i = 0; i < b->n_weights; i++) rq_free((void *)b->weights[i].host);
    b->n_weights = 0;
}

/* ---- tapes ----------------------------------------------------------------------------------------------- */

static rq_ref weight(const bench *b, rq_tape *t, uint32_t i)
{
    return rq_tape_weight(t, i, b->weights[i].type, b->weights[i].ne, b->weights[i].name);
}

static rq_ref persist(rq_tape *t, rq_persist which, rq_type type, uint32_t ne0)
{
    return rq_tape_persist(t, which, type, ne0, t->persist_rows[which]);
}

/* Width of the embedding rows that feed the operation. */
static uint32_t width(const row_spec *s)
{
    if (s->kind == ROW_DELTA) return s->n * (2 * s->g + s->h) + 2 * s->h;
    return s->kind == ROW_ATTEND ? s->n * (s->h + 2 * s->g) : s->n;
}

static void build_attention(const bench *b, rq_tape *t, rq_ref x)
{
    const row_spec *s = b->spec;
    uint64_t stride = (uint64_t)s->n * (s->h + 2 * s->g);
    rq_ref q = rq_tape_view(t, x, 0, s->n, s->h, s->n, t->bucket, stride);
    rq_ref k = rq_tape_view(t, x, (uint64_t)s->n * s->h, s->n, s->g, s->n, t->bucket, stride);
    rq_ref v = rq_tape_view(t, x, (uint64_t)s->n * (s->h + s->g), s->n, s->g, s->n, t->bucket, stride);
    rq_ref freq = weight(b, t, 1);
    q = rq_op_rope(t, q, freq, s->n, RQ_ROPE_NEOX, 1.0f);
    k = rq_op_rope(t, k, freq, s->n, RQ_ROPE_NEOX, 1.0f);
    rq_ref cache = rq_tape_cache(t, 0, 0);
    rq_op_kv_write(t, cache, k, v);
    if (s->form != RQ_KV_SAME && t->bucket > RQ_NARROW_BUCKET) rq_op_kv_encode(t, cache);
    rq_op_attend(t, cache, q, s->n, 1.0f / sqrtf((float)s->n), 0.0f);
}

static void build_experts(const bench *b, rq_tape *t, rq_ref x)
{
    const row_spec *s = b->spec;
    rq_ref ids = 0, weights = 0;
    rq_op_route(t, rq_op_matmul(t, weight(b, t, 1), x), s->g, 1.0f, &ids, &weights);
    rq_ref group = rq_op_group(t, ids, s->h);
    rq_ref one = rq_tape_view(t, x, 0, s->n, 1, s->n, t->bucket, s->n);
    rq_ref h = rq_op_matmul_experts(t, weight(b, t, 2), one, ids, group);
    rq_op_combine(t, rq_op_matmul_experts(t, weight(b, t, 3), h, ids, group), weights);
}

static void build_delta(const bench *b, rq_tape *t, rq_ref x)
{
    const row_spec *s = b->spec;
    uint32_t d = s->n, channels = d * (2 * s->g + s->h), row = channels + 2 * s->h;
    rq_ref state = rq_tape_state(t, 0, 0);
    rq_ref u = rq_tape_view(t, x, 0, channels, t->bucket, row, 1, 0);
    rq_ref c = rq_op_short_conv(t, state, u, weight(b, t, 1));
    const rq_delta_in in = {
        .state = state,
        .q = rq_op_l2_norm(t, rq_tape_view(t, c, 0, d, s->g, d, t->bucket, channels), 1e-6f),
        .k = rq_op_l2_norm(t, rq_tape_view(t, c, (uint64_t)d * s->g, d, s->g, d, t->bucket, channels), 1e-6f),
        .v = rq_tape_view(t, c, 2ull * d * s->g, d, s->h, d, t->bucket, channels),
        .alpha = rq_tape_view(t, x, channels, s->h, t->bucket, row, 1, 0),
        .beta = rq_tape_view(t, x, (uint64_t)channels + s->h, s->h, t->bucket, row, 1, 0),
        .rate = weight(b, t, 2),
        .offset = weight(b, t, 2),
        .scale = 1.0f / sqrtf((float)d),
        .tiled = true};
    rq_op_delta_rule(t, &in);
}

static void build(void *user, rq_tape_kind kind, rq_tape *t)
{
    const bench *b = user;
    const row_spec *s = b->spec;
    if (kind == RQ_TAPE_HEAD) {
        rq_ref x = rq_op_select_rows(t, persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, width(s)));
        if (s->kind != ROW_HEAD) return;
        rq_ref logits = rq_op_matmul(t, weight(b, t, 1), x);
        rq_op_copy(t, logits, persist(t, RQ_PERSIST_LOGITS, RQ_TYPE_F32, s->m));
        rq_op_argmax(t, logits, persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1));
        return;
    }
    rq_ref x = rq_op_embed(t, weight(b, t, 0));
    switch (s->kind) {
    case ROW_MATMUL:
        rq_op_matmul(t, weight(b, t, 1), x);
        break;
    case ROW_FFN: {
        rq_ref h = rq_op_rms_norm(t, x, 0, 1e-6f);
        rq_ref m = rq_op_glu(t, rq_op_matmul(t, weight(b, t, 1), h), rq_op_matmul(t, weight(b, t, 2), h),
                             RQ_ACT_SILU);
        rq_op_add(t, rq_op_matmul(t, weight(b, t, 3), m), x);
        break;
    }
    case ROW_ATTEND:
        build_attention(b, t, x);
        break;
    case ROW_EXPERTS:
        build_experts(b, t, x);
        break;
    case ROW_DELTA:
        build_delta(b, t, x);
        break;
    case ROW_EMBED:
        break;
    case ROW_HEAD:
        rq_op_copy(t, x, persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, width(s)));
        break;
    }
}

/* ---- measuring ------------------------------------------------------------------------------------------- */

typedef struct copy_job {
    char *dst;
    const char *src;
    size_t bytes;
} copy_job;

static void *copy_some(void *user)
{
    const copy_job *j = user;
    memcpy(j->dst, j->src, j->bytes);
    return NULL;
}

/* Bytes read plus written per second by n_threads copying together; the best of five. */
static double copy_bandwidth(uint32_t n_threads)
{
    enum { MAX_THREADS = 64 };
    size_t bytes = 256u << 20;
    if (n_threads == 0) n_threads = 1;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    char *src = rq_malloc(bytes), *dst = rq_malloc(bytes);
    double best = 0;
    if (src && dst) {
        memset(src, 1, bytes);
        memset(dst, 2, bytes);
        for (int r = 0; r < 5; r++) {
            pthread_t threads[MAX_THREADS];
            copy_job jobs[MAX_THREADS];
            uint32_t started = 0;
            uint64_t start = now_ns();
            for (uint32_t i = 0; i < n_threads; i++) {
                size_t each = bytes / n_threads;
                jobs[i] = (copy_job){dst + i * each, src + i * each, each};
                if (i + 1 < n_threads && pthread_create(&threads[started], NULL, copy_some, &jobs[i]) == 0)
                    started++;
                else
                    copy_some(&jobs[i]);
            }
            for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
            double rate = 2.0 * (double)bytes * 1e9 / (double)(now_ns() - start);
            if (rate > best) best = rate;
        }
    }
    rq_free(src);
    rq_free(dst);
    return best;
}

/* Writes all pages in every form they have, FILL_TOKENS at a time as if at the sequence's start: memory that was
 * never written would be read from one page of zeros, which stays in a cache. */
static rq_status prefill(const bench *b, rq_executor *ex, const uint32_t *pages, uint32_t n_pages,
                         rq_error *err)
{
    int32_t ids[FILL_TOKENS];
    for (uint32_t i = 0; i < FILL_TOKENS; i++) ids[i] = (int32_t)(i % 64);
    for (uint32_t first = 0; first < n_pages; first += FILL_TOKENS / RQ_PAGE_TOKENS) {
        rq_step *step = rq_executor_begin(ex, err);
        if (!step) return RQ_ERR_INTERNAL;
        uint32_t n =
            n_pages - first < FILL_TOKENS / RQ_PAGE_TOKENS ? n_pages - first : FILL_TOKENS / RQ_PAGE_TOKENS;
        const uint32_t *table = pages + first;
        bool fits = true;
        for (uint32_t p = 0; p < n; p++) {
            fits &= rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, p, table[p]);
            if (b->spec->form != RQ_KV_SAME)
                fits &= rq_step_add_edit(step, 0, RQ_PAGE_CODED, 0, p, table[p]) &&
                        rq_step_add_encode(step, 0, table[p], table[p]);
        }
        if (!fits || rq_step_add_run(step, 0, ids, n * RQ_PAGE_TOKENS, 0, &table) < 0)
            return rq_fail(err, RQ_ERR_INTERNAL, "%u pages do not fit into a step", n);
        rq_status status = rq_executor_submit(ex, step, err);
        if (!status) status = rq_executor_wait(ex, step, NULL, err);
        if (status) return status;
    }
    return RQ_OK;
}

/* Fills a step: `tokens` tokens of sequence 0 starting at `depth`. */
static rq_status fill(rq_executor *ex, const bench *b, uint32_t depth, const uint32_t *pages, bool edits,
                      rq_step **out, rq_error *err)
{
    uint32_t tokens = b->spec->tokens;
    bool row = b->spec->kind == ROW_HEAD, coded = b->spec->form != RQ_KV_SAME;
    rq_step *step = rq_executor_begin(ex, err);
    if (!step) return RQ_ERR_INTERNAL;
    int32_t ids[RQ_MAX_BUCKET];
    for (uint32_t i = 0; i < tokens; i++) ids[i] = (int32_t)(i % 64);
    for (uint32_t p = 0; edits && p <= (depth + tokens - 1) / RQ_PAGE_TOKENS; p++)
        if (!rq_step_add_edit(step, 0, RQ_PAGE_EXACT, 0, p, p) ||
            (coded && !rq_step_add_edit(step, 0, RQ_PAGE_CODED, 0, p, p)))
            return rq_fail(err, RQ_ERR_INTERNAL, "the step's edit list is too short");
    if (rq_step_add_run(step, 0, ids, tokens, depth, &pages) < 0)
        return rq_fail(err, RQ_ERR_INTERNAL, "%u tokens do not fit into a step", tokens);
    if (row) rq_step_add_row(step, 0, 0);
    *out = step;
    return RQ_OK;
}

typedef struct sums {
    uint64_t ns[MAX_OPS];
    rq_op_time last[MAX_OPS];
    uint32_t n, repeats;
} sums;

static rq_status measure(const bench *b, rq_executor *ex, const uint32_t *pages, sums *out, rq_error *err)
{
    const row_spec *s = b->spec;
    uint32_t depth = s->kind == ROW_ATTEND ? s->m : 0;
    memset(out, 0, sizeof *out);
    uint64_t spent = 0;
    for (uint32_t r = 0; r <= MAX_REPEATS && (r < 4 || spent < LEAST_NS); r++) {
        rq_step *step = NULL;
        rq_status status = fill(ex, b, depth, pages, r == 0 && s->kind == ROW_ATTEND, &step, err);
        if (status) return status;
        uint64_t start = now_ns();
        status = rq_executor_profile(ex, step, out->last, MAX_OPS, &out->n, err);
        if (status) return status;
        if (r == 0) continue; /* first touch of memory */
        spent += now_ns() - start;
        for (uint32_t i = 0; i < out->n; i++) out->ns[i] += out->last[i].ns;
        out->repeats++;
    }
    return RQ_OK;
}

static void report(const bench *b, const sums *m, double bandwidth, void (*row)(void *, const rq_op_row *),
                   void *user)
{
    const row_spec *s = b->spec;
    static const char *const coded[] = {
        [RQ_KV_Q8_0] = "q8_0", [RQ_KV_Q4_0] = "q4_0", [RQ_KV_C2] = "c2",  [RQ_KV_C3] = "c3",
        [RQ_KV_C4] = "c4",     [RQ_KV_C42] = "c42",   [RQ_KV_TRIP] = NULL};
    uint32_t depth = s->kind == ROW_ATTEND ? s->m : 0;
    rq_cache_group group = group_of(b);
    uint32_t launches[MAX_OPS] = {0};
    rq_step_caps caps = {.max_tokens = s->tokens,
                         .n_groups = s->kind == ROW_ATTEND,
                         .n_seqs = 1,
                         .max_pages = (depth + s->tokens) / RQ_PAGE_TOKENS + 1};
    rq_step_caps_complete(&caps);
    const rq_tape *whole = m->n ? m->last[0].tape : NULL;
    const rq_state_group state = state_of(b);
    if (whole && whole->n_ops <= MAX_OPS && b->device->backend->launches &&
        b->device->backend->launches(whole, &group, 1, &state, 1, &caps, launches, NULL) != RQ_OK)
        memset(launches, 0, sizeof launches);
    for (uint32_t i = 0; i < m->n; i++) {
        const rq_tape *tape = m->last[i].tape;
        const rq_op *op = m->last[i].op;
        /* What only feeds the operation of interest is left out. */
        if (op->kind == RQ_OP_EMBED && s->kind != ROW_EMBED) continue;
        if (op->kind == RQ_OP_COPY && s->kind != ROW_HEAD) continue;
        if (op->kind == RQ_OP_KV_ENCODE) continue; /* has nothing to do in the steps that are timed */
        rq_op_cost cost = rq_op_cost_of(tape, op, s->kind == ROW_ATTEND ? &group : NULL, depth + s->tokens);
        char shape[64];
        if (s->kind == ROW_ATTEND)
            snprintf(shape, sizeof shape, "%u/%u x %u, depth %u, T %u", s->h, s->g, s->n, depth, s->tokens);
        else if (s->kind == ROW_DELTA)
            snprintf(shape, sizeof shape, "%u/%u x %u, T %u", s->h, s->g, s->n, s->tokens);
        else if (s->kind == ROW_EXPERTS)
            snprintf(shape, sizeof shape, "%u of %u x [%u, %u], T %u", s->g, s->h, s->n, s->m, s->tokens);
        else
            snprintf(shape, sizeof shape, "[%u, %u], T %u", s->n, s->m, s->tokens);
        double ns = (double)m->ns[i] / m->repeats, bytes = cost.bytes_read + cost.bytes_written;
        rq_op_row line = {
            .op = rq_op_get(op->kind)->name,
            .type = coded[s->form] && op->kind == RQ_OP_ATTEND
                        ? coded[s->form]
                        : rq_type_get(s->kind == ROW_ATTEND ? b->type : rq_op_weight_type(tape, op))->name,
            .shape = shape,
            .backend = b->device->backend->name,
            .implementation = b->device->backend->implementation(b->device, tape, op),
            .ns = ns,
            .bytes = bytes,
            .bandwidth_share = bandwidth > 0 && ns > 0 ? bytes * 1e9 / ns / bandwidth : 0,
            .launches = op >= whole->ops && op < whole->ops + whole->n_ops ? launches[op - whole->ops] : 0};
        row(user, &line);
    }
}

static rq_status bench_row(bench *b, double bandwidth, void (*row)(void *, const rq_op_row *), void *user,
                           rq_error *err)
{
    const row_spec *s = b->spec;
    bool attention = s->kind == ROW_ATTEND;
    uint32_t n_pages = ((attention ? s->m : 0) + s->tokens + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS;
    rq_cache_group group = group_of(b);
    const rq_state_group state = state_of(b);
    uint32_t bucket = 1, on_first = 0;
    while (bucket < s->tokens || (attention && bucket < FILL_TOKENS)) bucket *= 2;
    make_weights(b);
    uint32_t *pages = rq_calloc(n_pages, sizeof *pages);
    if (!pages && !b->status) b->status = rq_fail(&b->err, RQ_ERR_MEMORY, "out of memory for a page table");
    for (uint32_t p = 0; pages && p < n_pages; p++) pages[p] = p;
    rq_executor_params params = {
        .devices = &b->device,
        .n_devices = 1,
        .weights = b->weights,
        .n_weights = b->n_weights,
        .groups = &group,
        .group_pages = &n_pages,
        .group_coded_pages = s->form != RQ_KV_SAME ? &n_pages : NULL,
        .group_device = &on_first,
        .states = &state,
        .n_states = s->kind == ROW_DELTA,
        .caps = {.max_tokens = bucket, .n_groups = attention, .n_seqs = 1, .max_pages = n_pages},
        .n_embd = width(s),
        .n_vocab = s->kind == ROW_HEAD ? s->m : 64,
        .build = build,
        .user = b};
    rq_executor *ex = NULL;
    sums measured;
    if (!b->status) b->status = rq_executor_create(&params, &ex, &b->err);
    if (!b->status && attention) b->status = prefill(b, ex, pages, n_pages, &b->err);
    if (!b->status) b->status = measure(b, ex, pages, &measured, &b->err);
    if (!b->status) report(b, &measured, bandwidth, row, user);
    rq_executor_free(ex);
    free_weights(b);
    rq_free(pages);
    if (b->status && err) *err = b->err;
    return b->status;
}

rq_status rq_bench_ops(const char *backend_name, uint32_t n_threads, const char *filter,
                       void (*row)(void *user, const rq_op_row *row), void *user, rq_error *err)
{
    const rq_backend *backend = rq_backend_find(backend_name);
    if (!backend)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no backend called \"%s\" in this build", backend_name);
    rq_device *device = NULL;
    const rq_device_options options = {.n_threads = n_threads};
    rq_status s = backend->open(&options, &device, err);
    if (s) return s;
    cpu_set_t usable; /* as many as the device uses by itself */
    if (n_threads == 0)
        n_threads = sched_getaffinity(0, sizeof usable, &usable) ? 1 : (uint32_t)CPU_COUNT(&usable);
    double bandwidth = copy_bandwidth(n_threads);
    if (bandwidth == 0) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for measuring the copy bandwidth");
    for (size_t r = 0; r < sizeof ROWS / sizeof *ROWS && !s; r++)
        for (uint32_t type = 0; type < RQ_TYPE_LIMIT && !s; type++) {
            const rq_type_info *info = rq_type_get(type);
            bool wanted = ROWS[r].every_type ? info && info->is_weight && type != RQ_TYPE_F64
                                             : type == (uint32_t)ROWS[r].type;
            static const char *const kinds[] = {"matmul", "ffn",   "attend", "experts",
                                                "embed",  "delta", "head"};
            char name[128];
            snprintf(name, sizeof name, "%s %s %s", kinds[ROWS[r].kind], ROWS[r].name,
                     info ? info->name : "");
            if (!wanted || (filter && !strcasestr(name, filter))) continue;
            bench b = {.spec = &ROWS[r], .type = (rq_type)type, .device = device};
            s = bench_row(&b, bandwidth, row, user, err);
        }
    backend->close(device);
    return s;
}
