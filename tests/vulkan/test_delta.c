/* Prompts that go through the gated delta rule in chunks, against the same device going token by token: sequences of any
 * sizes in one step, and the logits of the built-in hybrid model.
 *
 *   test_delta [N]      N: tokens of the longest sequence, 2,048
 *   test_delta ratio H  times both forms over H value heads of 128 x 128, nothing is judged */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/vulkan/vulkan.h"
#include "engine/rqvk.h"
#include "tests/ops/stream.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t n_tokens = 2048;

/* ---- results and state ----------------------------------------------------------------------------------- */

/* One sequence goes in large pieces, one in pieces of about the size that is cut into chunks at all, one in pieces that
 * never are, one token by token. */
enum { LARGE, MIXED, SHORT, SINGLE, SEQS, WIDE = 256 };

static uint32_t below(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((*state >> 40) % n);
}

static int32_t token_of(uint32_t seq, uint32_t position)
{
    uint64_t random = seq * 7919ull + position;
    uint32_t kind = position / 89 % (STREAM_KINDS + 2);
    if (kind >= STREAM_KINDS) kind = below(&random, STREAM_KINDS);
    return (int32_t)(kind * STREAM_OF_A_KIND + below(&random, STREAM_OF_A_KIND));
}

static uint32_t piece_of(uint32_t seq, uint64_t *random)
{
    switch (seq) {
    case LARGE:
        return 1 + below(random, WIDE - 64);
    case MIXED:
        return RQ_DELTA_LONG - 2 + below(random, 32);
    case SHORT:
        return 1 + below(random, RQ_DELTA_LONG - 1);
    default:
        return 1;
    }
}

/* A step of all sequences, in an order of its own; the longest does not get beyond n. */
static uint32_t draw_step(stream_run *runs, uint32_t *at, uint32_t n, int32_t (*ids)[WIDE], uint64_t *random)
{
    uint32_t n_runs = 0, left = WIDE, turn = below(random, SEQS);
    for (uint32_t i = 0; i < SEQS; i++) {
        uint32_t seq = (i + turn) % SEQS, count = piece_of(seq, random);
        if (seq == LARGE && count > n - at[seq]) count = n - at[seq];
        if (seq != LARGE && below(random, 16) == 0) at[seq] = 0; /* begins anew where another has been */
        if (count > n - at[seq]) count = n - at[seq];
        if (count > left) count = left;
        if (count == 0) continue;
        for (uint32_t t = 0; t < count; t++) ids[seq][t] = token_of(seq, at[seq] + t);
        runs[n_runs++] = (stream_run){.seq = seq, .start = at[seq], .count = count, .ids = ids[seq]};
        left -= count;
        at[seq] += count;
    }
    return n_runs;
}

typedef struct errors {
    double wrong, all;
} errors;

static void add(errors *e, const float *y, const float *ref, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double d = (double)y[i] - (double)ref[i];
        e->wrong += d * d;
        e->all += (double)ref[i] * (double)ref[i];
    }
}

static void judge(const char *what, const errors *e)
{
    double error = sqrt(e->wrong / e->all), bar = rq_delta_tolerance(RQ_TYPE_F32);
    printf("  %s: %.2g, %.4f of the tolerance\n", what, error, error / bar);
    assert_true(e->all > 0 && error <= bar);
}

static void compare_states(stream *s, errors *e)
{
    rq_error err = {0};
    size_t bytes = (size_t)rq_executor_state_bytes(s[0].ex);
    float *states[2] = {rq_calloc(1, bytes), rq_calloc(1, bytes)};
    assert_true(states[0] && states[1]);
    for (uint32_t seq = 0; seq < SEQS; seq++) {
        for (int f = 0; f < 2; f++)
            assert_int_equal(rq_executor_state_save(s[f].ex, seq, states[f], &err), RQ_OK);
        if (seq == SHORT || seq == SINGLE)
            assert_memory_equal(states[0], states[1], bytes);
        else
            add(e, states[1], states[0], bytes / sizeof(float));
    }
    rq_free(states[0]);
    rq_free(states[1]);
}

static rq_device *open_form(rq_delta_form form)
{
    rq_device *device = stream_device("vulkan", form);
    assert_non_null(device);
    return device;
}

static void compare_shape(stream_shape shape, uint32_t n)
{
    static int32_t ids[SEQS][WIDE];
    static const rq_delta_form forms[2] = {RQ_DELTA_TOKENS, RQ_DELTA_AUTO};
    shape.n_seqs = SEQS, shape.max_tokens = WIDE, shape.max_pages = n / RQ_PAGE_TOKENS + 1;
    stream s[2];
    rq_device *devices[2];
    float *rows[2];
    for (int f = 0; f < 2; f++) {
        devices[f] = open_form(forms[f]);
        stream_open(&s[f], devices[f], &shape);
        rows[f] = rq_calloc((size_t)WIDE * s[f].row, sizeof(float));
        assert_non_null(rows[f]);
    }
    errors results = {0, 0}, states = {0, 0};
    uint32_t at[SEQS] = {0}, row = s[0].row;
    uint64_t random = 5;
    bool chunks = false;
    while (at[LARGE] < n) {
        stream_run runs[SEQS];
        uint32_t n_runs = draw_step(runs, at, n, ids, &random), tokens = 0;
        for (uint32_t i = 0; i < n_runs; i++) tokens += runs[i].count;
        for (int f = 0; f < 2; f++) stream_step(&s[f], runs, n_runs, rows[f]);
        const float *a = rows[0], *b = rows[1];
        for (uint32_t i = 0; i < n_runs; i++) {
            size_t floats = (size_t)runs[i].count * row;
            if (runs[i].seq == SHORT || runs[i].seq == SINGLE) /* of the token form whatever the others do */
                assert_memory_equal(a, b, floats * sizeof *a);
            else
                add(&results, b, a, floats);
            chunks |= tokens > WIDE / 2 && memcmp(a, b, floats * sizeof *a) != 0;
            a += floats, b += floats;
        }
    }
    compare_states(s, &states);
    printf("%u tokens, %u heads of %u x %u over %u\n", n, shape.heads, shape.dim_k, shape.dim_v,
           shape.key_heads);
    assert_true(chunks); /* another rounding somewhere: it was not the token form twice */
    judge("results", &results);
    judge("states", &states);
    for (int f = 0; f < 2; f++) {
        stream_close(&s[f]);
        rq_free(rows[f]);
        devices[f]->backend->close(devices[f]);
    }
}

static void chunks_are_tokens(void **state)
{
    (void)state;
    compare_shape((stream_shape){.dim_k = 32, .dim_v = 32, .heads = 1, .key_heads = 1}, n_tokens);
    assert_int_equal(rq_vulkan_messages(NULL), 0);
}

/* Sizes that fill no tile, keys as long as they can be, many heads. */
static void chunks_of_all_sizes(void **state)
{
    (void)state;
    static const stream_shape shapes[] = {
        {.dim_k = 128, .dim_v = 128, .heads = 1, .key_heads = 1},
        {.dim_k = 256, .dim_v = 40, .heads = 1, .key_heads = 1},
        {.dim_k = 40, .dim_v = 22, .heads = 3, .key_heads = 1},
        {.dim_k = 7, .dim_v = 5, .heads = 9, .key_heads = 3, .tiled = true},
    };
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) compare_shape(shapes[i], 120);
    assert_int_equal(rq_vulkan_messages(NULL), 0);
}

/* ---- logits ---------------------------------------------------------------------------------------------- */

enum { TEXT = 128, STEP = 128, VOCAB = 32768 };

typedef struct logits {
    uint32_t n_vocab;
    float *first; /* of the token form, [TEXT][n_vocab] */
    bool second;
    double sum, most; /* divergence */
} logits;

/* Kullback-Leibler divergence of two distributions given by their logits. */
static double divergence(const float *p, const float *q, uint32_t n)
{
    double max_p = -HUGE_VAL, max_q = -HUGE_VAL, sum_p = 0, sum_q = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        max_p = fmax(max_p, (double)p[i]);
        max_q = fmax(max_q, (double)q[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        sum_p += exp((double)p[i] - max_p);
        sum_q += exp((double)q[i] - max_q);
    }
    for (uint32_t i = 0; i < n; i++) {
        double log_p = (double)p[i] - max_p - log(sum_p), log_q = (double)q[i] - max_q - log(sum_q);
        sum += exp(log_p) * (log_p - log_q);
    }
    return sum;
}

static void take(void *user, size_t position, const float *row)
{
    logits *l = user;
    float *first = l->first + position % TEXT * l->n_vocab;
    if (!l->second) {
        memcpy(first, row, l->n_vocab * sizeof *row);
        return;
    }
    double d = divergence(first, row, l->n_vocab);
    l->sum += d;
    if (!(d <= l->most)) l->most = d;
}

static void evaluate(rq_engine *engine, const rq_tokens *text, uint32_t step, logits *l)
{
    rq_session *session = NULL;
    rq_error err = {0};
    if (rq_session_create(engine, &session, &err) != RQ_OK ||
        rq_evaluate(session, text->ids, TEXT, step, RQ_LOGITS_ALL, take, l, &err) != RQ_OK)
        fail_msg("%s", err.text);
    rq_session_free(session);
}

/* A real text through a trained model: in steps too narrow for chunks, and in wide ones. */
static void logits_stay(void **state)
{
    (void)state;
    static char bytes[8192];
    FILE *f = fopen(RQVK_TEST_DATA "/text/little-colonels-hero.txt", "rb");
    assert_non_null(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    rq_error err = {0};
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_tokens text = {0};
    rq_engine_params p = {
        .backend = "vulkan", .n_ctx = 2 * TEXT, .n_batch = STEP, .n_sessions = 1, .n_threads = 1};
    if (rq_model_load(RQVK_MODELS "/builtin-qwen35.gguf", &model, &err) != RQ_OK ||
        rq_tokenize(model, bytes, n, 0, &text, &err) != RQ_OK ||
        rq_engine_create(model, &p, &engine, &err) != RQ_OK)
        fail_msg("%s", err.text);
    rq_model_info info;
    rq_model_describe(model, &info);
    assert_true(text.n >= TEXT && info.n_vocab <= VOCAB);
    logits l = {.n_vocab = info.n_vocab, .first = rq_calloc((size_t)TEXT * info.n_vocab, sizeof(float))};
    assert_non_null(l.first);
    evaluate(engine, &text, RQ_DELTA_WIDE / 2, &l);
    l.second = true;
    evaluate(engine, &text, STEP, &l);
    printf("built-in hybrid, %d tokens: divergence %.2g in the mean, %.2g at most; the bar is %.2g\n", TEXT,
           l.sum / TEXT, l.most, RQ_DELTA_DIVERGENCE);
    assert_true(l.most > 0 && l.sum / TEXT <= RQ_DELTA_DIVERGENCE);
    rq_free(l.first);
    rq_tokens_free(&text);
    rq_engine_free(engine);
    rq_model_free(model);
    assert_int_equal(rq_vulkan_messages(NULL), 0);
}

/* ---- time ------------------------------------------------------------------------------------------------ */

enum { TIMED = 512, REPEATS = 2, MAX_OPS = 64 };

/* Nanoseconds of the step's delta rules, the least of a few times. */
static uint64_t time_form(stream *s)
{
    static int32_t ids[TIMED];
    uint64_t best = UINT64_MAX;
    for (uint32_t i = 0; i < TIMED; i++) ids[i] = token_of(0, i);
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        rq_error err = {0};
        rq_op_time times[MAX_OPS];
        uint32_t n = 0;
        rq_step *step = rq_executor_begin(s->ex, &err);
        if (!step || rq_step_add_run(step, 0, ids, TIMED, 0, NULL) < 0 ||
            rq_executor_profile(s->ex, step, times, MAX_OPS, &n, &err) != RQ_OK)
            fail_msg("%s", err.text);
        uint64_t ns = 0;
        for (uint32_t i = 0; i < n; i++)
            if (times[i].op->kind == RQ_OP_DELTA_RULE) ns += times[i].ns;
        if (ns < best) best = ns;
    }
    return best;
}

static int ratio(uint32_t wanted)
{
    uint32_t heads = wanted < 3 ? 3 : wanted / 3 * 3;
    static const rq_delta_form forms[2] = {RQ_DELTA_TOKENS, RQ_DELTA_CHUNKS};
    const stream_shape shape = {.dim_k = 128,
                                .dim_v = 128,
                                .heads = heads,
                                .key_heads = heads / 3, /* as Qwen3.5-27B: 48 over 16 */
                                .tiled = true,
                                .n_seqs = 1,
                                .max_tokens = TIMED,
                                .max_pages = TIMED / RQ_PAGE_TOKENS + 1};
    double ms[2];
    for (int f = 0; f < 2; f++) {
        rq_device *device = open_form(forms[f]);
        stream s;
        stream_open(&s, device, &shape);
        ms[f] = (double)time_form(&s) / 2e6; /* of two layers */
        stream_close(&s);
        device->backend->close(device);
    }
    printf("%u heads of %u x %u, %d tokens, a layer: token by token %.1f ms, in chunks %.1f ms: %.2f\n",
           shape.heads, shape.dim_k, shape.dim_v, TIMED, ms[0], ms[1], ms[0] / ms[1]);
    return 0;
}

int main(int argc, char **argv)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err) != RQ_OK) {
        printf("%s\n", err.text);
        return getenv("RQVK_VK_REQUIRED") ? 1 : 77;
    }
    rq_backend_vulkan.close(device);
    if (argc > 1 && strcmp(argv[1], "ratio") == 0)
        return ratio(argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 48);
    if (argc > 1) n_tokens = (uint32_t)strtoul(argv[1], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_tokens),
        cmocka_unit_test(chunks_of_all_sizes),
        cmocka_unit_test(logits_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
