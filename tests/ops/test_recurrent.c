/* test_recurrent.c - what recurrent state remembers: draft checks that commit nothing until they are accepted, with the
 * bytes of taking the accepted tokens one by one, and prompts taken in chunks, against the reference token by token.
 * Arguments: names of implementations or backends (all of the processor); --long N: that the prompt has N tokens. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "tests/ops/stream.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SEQS = 3, LENGTH = 40, PENDING = 5, SLOTS = SEQS + 1 };

static uint32_t below(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((*state >> 40) % n);
}

/* The token of a sequence at a position, and one that is not it. */
static int32_t token_of(uint32_t seq, uint32_t position)
{
    return (int32_t)((seq * 71 + position * 37 + position * position) % (STREAM_KINDS * STREAM_OF_A_KIND));
}

static int32_t wrong_token(uint32_t seq, uint32_t position)
{
    return (token_of(seq, position) + 101) % (STREAM_KINDS * STREAM_OF_A_KIND);
}

/* Every sequence token by token: results, and the state before each position. */
typedef struct plain {
    uint64_t state_bytes;
    uint8_t *states; /* [SEQS][LENGTH + 1][state_bytes] */
    float *rows;     /* [SEQS][LENGTH][row] */
} plain;

static uint8_t *plain_state(const plain *p, uint32_t seq, uint32_t position)
{
    return p->states + ((uint64_t)seq * (LENGTH + 1) + position) * p->state_bytes;
}

static void read_state(const stream *s, uint32_t slot, uint8_t *to)
{
    rq_error err = {0};
    if (rq_executor_state_save(s->ex, slot, to, &err) != RQ_OK) fail_msg("%s", err.text);
}

static void run_plain(stream *s, plain *p)
{
    p->state_bytes = rq_executor_state_bytes(s->ex);
    p->states = rq_calloc((size_t)SEQS * (LENGTH + 1), p->state_bytes);
    p->rows = rq_calloc((size_t)SEQS * LENGTH * s->row, sizeof *p->rows);
    assert_true(p->states && p->rows);
    for (uint32_t seq = 0; seq < SEQS; seq++)
        for (uint32_t i = 0; i < LENGTH; i++) {
            int32_t id = token_of(seq, i);
            stream_run run = {.seq = seq, .start = i, .count = 1, .ids = &id};
            stream_step(s, &run, 1, p->rows + ((size_t)seq * LENGTH + i) * s->row);
            read_state(s, seq, plain_state(p, seq, i + 1));
        }
}

static void free_plain(plain *p)
{
    rq_free(p->states);
    rq_free(p->rows);
}

/* A sequence that is drafted. */
typedef struct drafted {
    uint32_t slot, position, accepted; /* tokens before `position` that are right and not committed */
    int32_t ids[PENDING];
    uint32_t n, right; /* tokens of the run in hand, and how many of them are the sequence's own */
    bool check;
} drafted;

/* What the sequence does in this step: mostly a draft check, some tokens of which may be wrong, or all. */
static void draw_run(drafted *d, uint32_t seq, uint32_t most, uint64_t *random)
{
    uint32_t left = LENGTH - d->position;
    d->check = below(random, 4) != 0;
    d->n = 1 + below(random, most < left ? most : left);
    d->right = d->check ? below(random, d->n + 1) : d->n;
    for (uint32_t i = 0; i < d->n; i++)
        d->ids[i] = i < d->right ? token_of(seq, d->position + i) : wrong_token(seq, d->position + i);
}

/* Results of the tokens that are the sequence's own, and the state: what was committed before this run, and the run
 * itself unless it is a check. */
static void compare_run(stream *s, const plain *p, uint32_t seq, const drafted *d, const float *rows,
                        uint8_t *state)
{
    assert_memory_equal(rows, p->rows + ((size_t)seq * LENGTH + d->position) * s->row,
                        sizeof *rows * d->right * s->row);
    uint32_t committed = d->position + (d->check ? 0 : d->n);
    if (committed == 0) return; /* a sequence begins with zeros whatever its slot holds */
    read_state(s, d->slot, state);
    assert_memory_equal(state, plain_state(p, seq, committed), p->state_bytes);
}

/* The sequence moves to another slot: its state, and what is pending behind it. */
static void move(stream *s, drafted *d, uint32_t to, uint8_t *state)
{
    rq_error err = {0};
    uint64_t bytes = rq_executor_pending_bytes(s->ex);
    uint8_t *pending = rq_calloc(1, bytes);
    assert_non_null(pending);
    assert_true(bytes > 0);
    read_state(s, d->slot, state);
    assert_int_equal(rq_executor_pending_save(s->ex, d->slot, pending, &err), RQ_OK);
    int32_t id = 3; /* the old slot gets another content */
    stream_run other = {.seq = d->slot, .start = 7, .count = 1, .ids = &id};
    stream_step(s, &other, 1, NULL);
    assert_int_equal(rq_executor_state_load(s->ex, to, state, &err), RQ_OK);
    assert_int_equal(rq_executor_pending_load(s->ex, to, pending, &err), RQ_OK);
    d->slot = to;
    rq_free(pending);
}

/* All sequences in every step, until each is at its end. */
static void run_drafted(stream *s, const plain *p, uint32_t n_seqs, uint64_t random)
{
    drafted all[SEQS] = {{0}};
    float *rows = rq_calloc((size_t)RQ_NARROW_BUCKET * s->row, sizeof *rows);
    uint8_t *state = rq_calloc(1, p->state_bytes);
    uint32_t free_slot = n_seqs, going = n_seqs, most = n_seqs == 1 ? PENDING : RQ_NARROW_BUCKET / SEQS;
    assert_true(rows && state);
    for (uint32_t i = 0; i < n_seqs; i++) all[i].slot = i;
    for (uint32_t round = 0; going; round++) {
        stream_run runs[SEQS];
        uint32_t n = 0, seqs[SEQS];
        for (uint32_t i = 0; i < n_seqs; i++) {
            drafted *d = &all[i];
            if (d->position == LENGTH) continue;
            draw_run(d, i, most, &random);
            seqs[n] = i;
            runs[n++] = (stream_run){.seq = d->slot,
                                     .start = d->position,
                                     .count = d->n,
                                     .ids = d->ids,
                                     .n_accepted = d->accepted,
                                     .n_pending = d->check ? d->n : 0};
        }
        stream_step(s, runs, n, rows);
        const float *at = rows;
        going = 0;
        for (uint32_t i = 0; i < n; i++) {
            drafted *d = &all[seqs[i]];
            compare_run(s, p, seqs[i], d, at, state);
            at += (size_t)d->n * s->row;
            /* of the tokens that are right some may be given up all the same */
            uint32_t taken = d->check && below(&random, 4) == 0 ? below(&random, d->right + 1) : d->right;
            d->position += taken;
            d->accepted = d->check ? taken : 0;
            going += d->position < LENGTH;
            if (round % 5 == 4 && i == round / 5 % n) {
                uint32_t old = d->slot;
                move(s, d, free_slot, state);
                free_slot = old;
            }
        }
    }
    rq_free(rows);
    rq_free(state);
}

/* RQVK_SIMT_TURN, 0 to 2, in the environment: that third of the shapes alone, as in walk.h. */
static bool is_my_turn(uint32_t shape)
{
    const char *turn = getenv("RQVK_SIMT_TURN");
    return !turn || shape % 3 == strtoul(turn, NULL, 10) % 3;
}

static const char *const *names;
static int n_names;

/* f for each device that was asked for. */
static void on_devices(void (*f)(rq_device *device), rq_delta_form form)
{
    static const char *const of_processor[] = {"scalar", "avx2", "avx512", "neon"};
    const char *const *list = n_names ? names : of_processor;
    int n = n_names ? n_names : 4, opened = 0;
    for (int i = 0; i < n; i++) {
        rq_device *device = stream_device(list[i], form);
        if (!device) continue;
        opened++;
        f(device);
        device->backend->close(device);
    }
    assert_true(opened > 0);
}

static void draft_on(rq_device *device)
{
    static const stream_shape shapes[] = {
        {.dim_k = 32, .dim_v = 40, .heads = 4, .key_heads = 2, .tiled = true},
        {.dim_k = 64, .dim_v = 64, .heads = 3, .key_heads = 3},
        {.dim_k = 128, .dim_v = 128, .heads = 2, .key_heads = 1},
        {.dim_k = 16, .dim_v = 4, .heads = 6, .key_heads = 2},
    };
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (!is_my_turn(i)) continue;
        stream_shape shape = shapes[i];
        shape.n_pending = PENDING, shape.n_seqs = SLOTS, shape.max_tokens = RQ_NARROW_BUCKET,
        shape.max_pages = 1;
        stream s;
        plain p;
        stream_open(&s, device, &shape);
        run_plain(&s, &p);
        run_drafted(&s, &p, 1, 3 + i);
        run_drafted(&s, &p, SEQS, 30 + i);
        free_plain(&p);
        stream_close(&s);
    }
}

static void accepted_drafts_are_plain_tokens(void **state)
{
    on_devices(draft_on, RQ_DELTA_CHUNKS);
}

/* Every number of accepted tokens of a check of every size, one after another. */
static void each_number_on(rq_device *device)
{
    const stream_shape shape = {.dim_k = 32,
                                .dim_v = 32,
                                .heads = 2,
                                .key_heads = 1,
                                .n_pending = RQ_MAX_PENDING,
                                .n_seqs = SLOTS,
                                .max_tokens = RQ_NARROW_BUCKET,
                                .max_pages = 1};
    stream s;
    plain p;
    stream_open(&s, device, &shape);
    run_plain(&s, &p);
    float *rows = rq_calloc((size_t)RQ_NARROW_BUCKET * s.row, sizeof *rows);
    uint8_t *got = rq_calloc(1, p.state_bytes);
    assert_true(rows && got);
    for (uint32_t start = 0; start < 2; start++)
        for (uint32_t n = 1; n <= RQ_MAX_PENDING; n++)
            for (uint32_t m = 0; m <= n; m++) {
                int32_t ids[RQ_MAX_PENDING];
                for (uint32_t i = 0; i < n; i++) ids[i] = token_of(0, start + i);
                rq_error err = {0};
                if (start)
                    assert_int_equal(rq_executor_state_load(s.ex, 2, plain_state(&p, 0, start), &err), RQ_OK);
                stream_run check = {.seq = 2, .start = start, .count = n, .ids = ids, .n_pending = n};
                stream_step(&s, &check, 1, rows);
                assert_memory_equal(rows, p.rows + (size_t)start * s.row, sizeof *rows * n * s.row);
                int32_t next = token_of(0, start + m);
                stream_run then = {.seq = 2, .start = start + m, .count = 1, .ids = &next, .n_accepted = m};
                stream_step(&s, &then, 1, rows);
                assert_memory_equal(rows, p.rows + (size_t)(start + m) * s.row, sizeof *rows * s.row);
                read_state(&s, 2, got);
                assert_memory_equal(got, plain_state(&p, 0, start + m + 1), p.state_bytes);
            }
    rq_free(rows);
    rq_free(got);
    free_plain(&p);
    stream_close(&s);
}

static void each_number_of_accepted_tokens(void **state)
{
    on_devices(each_number_on, RQ_DELTA_CHUNKS);
}

/* A model that does not draft has no places, and says so. */
static void refused_on(rq_device *device)
{
    const stream_shape shape = {
        .dim_k = 16, .dim_v = 16, .heads = 1, .key_heads = 1, .n_seqs = 1, .max_tokens = 2, .max_pages = 1};
    stream s;
    stream_open(&s, device, &shape);
    assert_int_equal(rq_executor_pending_bytes(s.ex), 0);
    rq_error err = {0};
    rq_step *step = rq_executor_begin(s.ex, &err);
    assert_non_null(step);
    int32_t ids[2] = {1, 2};
    assert_int_equal(rq_step_add_run(step, 0, ids, 2, 5, NULL), 0);
    assert_false(rq_step_set_draft(step, 6, 0));                  /* more than there are before it */
    assert_false(rq_step_set_draft(step, RQ_MAX_PENDING + 1, 0)); /* more than there can be */
    assert_false(rq_step_set_draft(step, 0, 1));                  /* a part of a run */
    assert_true(rq_step_set_draft(step, 0, 2));
    assert_int_equal(rq_executor_submit(s.ex, step, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "draft check"));
    stream_close(&s);
}

static void checks_without_places_are_refused(void **state)
{
    on_devices(refused_on, RQ_DELTA_AUTO);
}

/* ---- prompts --------------------------------------------------------------------------------------------- */

static uint32_t long_tokens = 600;

enum { WIDE = 256, MANY = 12 };

/* Stretches of one kind of token, and mixed ones. */
static int32_t prompt_token(uint32_t seq, uint32_t position)
{
    uint64_t random = seq * 7919ull + position;
    uint32_t kind = position / 89 % (STREAM_KINDS + 2);
    if (kind >= STREAM_KINDS) kind = below(&random, STREAM_KINDS);
    return (int32_t)(kind * STREAM_OF_A_KIND + below(&random, STREAM_OF_A_KIND));
}

/* Two prompts in steps of pieces of any size, chunks of which begin and end anywhere; once a draft check in front. The
 * rows of all tokens go to `rows` [2][n][row], both states to `states`. */
static void run_prompts(stream *s, uint32_t n, float *rows, uint8_t *states)
{
    static int32_t ids[2][WIDE];
    float *got = rq_calloc((size_t)WIDE * s->row, sizeof *got);
    uint32_t at[2] = {0, 0}, accepted = 0;
    uint64_t random = 77;
    assert_non_null(got);
    while (at[0] < n || at[1] < n) {
        stream_run runs[2];
        uint32_t n_runs = 0, left = WIDE;
        bool check = at[0] > n / 2 && at[0] + PENDING < n && !accepted && below(&random, 2) == 0;
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t most = i == 0 && check ? PENDING : below(&random, 3) == 0 ? 40 : left;
            if (most > n - at[i]) most = n - at[i];
            if (most > left) most = left;
            uint32_t count = most ? 1 + below(&random, most) : 0;
            if (count == 0) continue;
            for (uint32_t t = 0; t < count; t++) ids[i][t] = prompt_token(i, at[i] + t);
            runs[n_runs++] = (stream_run){.seq = i,
                                          .start = at[i],
                                          .count = count,
                                          .ids = ids[i],
                                          .n_accepted = i == 0 ? accepted : 0,
                                          .n_pending = i == 0 && check ? count : 0};
            left -= count;
        }
        stream_step(s, runs, n_runs, got);
        const float *from = got;
        for (uint32_t i = 0; i < n_runs; i++) {
            const stream_run *r = &runs[i];
            memcpy(rows + ((size_t)r->seq * n + at[r->seq]) * s->row, from, sizeof *rows * r->count * s->row);
            from += (size_t)r->count * s->row;
            at[r->seq] += r->count;
            if (r->seq == 0) accepted = r->n_pending;
        }
    }
    assert_int_equal(accepted, 0);
    for (uint32_t i = 0; i < 2; i++) read_state(s, i, states + i * rq_executor_state_bytes(s->ex));
    rq_free(got);
}

static double relative(const float *y, const float *ref, size_t n)
{
    double error = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)y[i] - (double)ref[i];
        error += d * d;
        sum += (double)ref[i] * (double)ref[i];
    }
    return sqrt(error / sum);
}

/* The bar of products in F32. Cards that multiply numbers in parts of fewer bits meet it, too. */
static double most_error(void)
{
    return rq_delta_tolerance(RQ_TYPE_F32);
}

static bool is_card(const rq_device *device)
{
    return device->backend != &rq_backend_cpu;
}

/* Rows of results and states of a device's two sequences of n tokens each, to be freed. */
typedef struct prompts {
    float *rows, *states;
    size_t n_rows, n_states;
} prompts;

static prompts prompts_of(rq_device *device, const stream_shape *shape, uint32_t n)
{
    prompts p;
    stream s;
    stream_open(&s, device, shape);
    p.n_rows = (size_t)2 * n * s.row;
    p.n_states = (size_t)(2 * rq_executor_state_bytes(s.ex) / sizeof(float));
    p.rows = rq_calloc(p.n_rows, sizeof *p.rows);
    p.states = rq_calloc(p.n_states, sizeof *p.states);
    assert_true(p.rows && p.states);
    run_prompts(&s, n, p.rows, (uint8_t *)p.states);
    stream_close(&s);
    return p;
}

static void free_prompts(prompts *p)
{
    rq_free(p->rows);
    rq_free(p->states);
}

/* The reference goes token by token, in double. */
static void prompts_on(rq_device *device)
{
    static const struct {
        stream_shape shape;
        uint32_t least;  /* tokens */
        bool card_whole; /* prompts of any length on cards, too: most of them are simulated */
    } cases[] = {
        {{.dim_k = 128, .dim_v = 128, .heads = 2, .key_heads = 1}, 0, false},
        {{.dim_k = 64, .dim_v = 48, .heads = 4, .key_heads = 2, .tiled = true}, 0, false},
        {{.dim_k = 20, .dim_v = 16, .heads = 1, .key_heads = 1}, 0, false},
        {{.dim_k = 96, .dim_v = 80, .heads = 3, .key_heads = 1}, 0, false},
        {{.dim_k = 48, .dim_v = 16, .heads = 1, .key_heads = 1}, 2048, true},
    };
    rq_device *oracle = stream_device("reference", RQ_DELTA_TOKENS);
    assert_non_null(oracle);
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        stream_shape shape = cases[i].shape;
        uint32_t n = long_tokens > cases[i].least ? long_tokens : cases[i].least;
        if (is_card(device) && !cases[i].card_whole && n > 300) n = 300;
        shape.n_pending = PENDING, shape.n_seqs = 2, shape.max_tokens = WIDE;
        shape.max_pages = n / RQ_PAGE_TOKENS + 1;
        prompts ref = prompts_of(oracle, &shape, n), got = prompts_of(device, &shape, n);
        double y = relative(got.rows, ref.rows, ref.n_rows),
               state = relative(got.states, ref.states, ref.n_states);
        printf("%u tokens of heads %u x %u: results %.2g, state %.2g off, of %.2g\n", n, shape.dim_k,
               shape.dim_v, y, state, most_error());
        assert_true(y <= most_error() && state <= most_error());
        free_prompts(&ref);
        free_prompts(&got);
    }
    oracle->backend->close(oracle);
}

static void chunks_are_tokens(void **state)
{
    on_devices(prompts_on, RQ_DELTA_CHUNKS);
}

/* Steps of many runs: long ones, which go in chunks, between short ones, which go token by token. */
static const uint32_t counts_of_many[MANY] = {16, 3, 40, 15, 1, 33, 8, 32, 20, 17, 31, 40};

static void run_many(rq_device *device, const stream_shape *shape, float **rows)
{
    int32_t ids[MANY][WIDE];
    stream s;
    stream_open(&s, device, shape);
    for (uint32_t step = 0; step < 2; step++) { /* the second goes on from the state of the first */
        stream_run runs[MANY];
        uint32_t n_tokens = 0;
        for (uint32_t i = 0; i < MANY; i++) {
            uint32_t n = counts_of_many[i];
            for (uint32_t t = 0; t < n; t++) ids[i][t] = token_of(i, step * n + t);
            runs[i] = (stream_run){.seq = i, .start = step * n, .count = n, .ids = ids[i]};
            n_tokens += n;
        }
        assert_int_equal(n_tokens, WIDE);
        rows[step] = rq_calloc((size_t)WIDE * s.row, sizeof *rows[step]);
        assert_non_null(rows[step]);
        stream_step(&s, runs, MANY, rows[step]);
    }
    stream_close(&s);
}

/* Chunks are taken where they shall be and nowhere else, which the bits tell: `device` was opened for chunks. */
static void many_runs_on(rq_device *device)
{
    const stream_shape shape = {.dim_k = 40,
                                .dim_v = 32,
                                .heads = 2,
                                .key_heads = 1,
                                .n_seqs = MANY,
                                .max_tokens = WIDE,
                                .max_pages = 2};
    const rq_device_options options = {.n_threads = 2, .delta_form = RQ_DELTA_TOKENS};
    rq_error err = {0};
    rq_device *tokens = NULL;
    if (device->backend->open(&options, &tokens, &err) != RQ_OK) fail_msg("%s", err.text);
    float *rows[2], *ref[2];
    run_many(device, &shape, rows);
    run_many(tokens, &shape, ref);
    uint32_t row = shape.heads * shape.dim_v;
    for (uint32_t step = 0; step < 2; step++) {
        assert_true(relative(rows[step], ref[step], (size_t)WIDE * row) <= most_error());
        for (uint32_t i = 0, at = 0; i < MANY; at += counts_of_many[i++] * row) {
            bool same = memcmp(rows[step] + at, ref[step] + at, sizeof(float) * counts_of_many[i] * row) == 0;
            bool in_chunks = counts_of_many[i] >= RQ_DELTA_LONG;
            /* processors of different instruction sets round token by token differently */
            if (is_card(device) || in_chunks) assert_int_equal(same, !in_chunks);
        }
        rq_free(rows[step]);
        rq_free(ref[step]);
    }
    tokens->backend->close(tokens);
}

static void long_runs_go_in_chunks(void **state)
{
    on_devices(many_runs_on, RQ_DELTA_CHUNKS);
}

/* What each kind of device does by itself. */
static void by_itself_on(rq_device *device)
{
    for (uint32_t bucket = 1; bucket <= RQ_MAX_BUCKET; bucket *= 2) {
        assert_false(rq_delta_in_chunks(RQ_DELTA_TOKENS, is_card(device), bucket));
        assert_int_equal(rq_delta_in_chunks(RQ_DELTA_AUTO, is_card(device), bucket),
                         is_card(device) && bucket >= RQ_DELTA_WIDE);
        if (bucket <= RQ_NARROW_BUCKET)
            assert_false(rq_delta_in_chunks(RQ_DELTA_CHUNKS, is_card(device), bucket));
    }
    if (is_card(device)) many_runs_on(device);
}

static void cards_take_chunks_by_themselves(void **state)
{
    on_devices(by_itself_on, RQ_DELTA_AUTO);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--long") == 0) {
        long_tokens = (uint32_t)strtoul(argv[2], NULL, 10);
        argc -= 2;
        argv += 2;
    }
    names = (const char *const *)argv + 1;
    n_names = argc - 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepted_drafts_are_plain_tokens),
        cmocka_unit_test(each_number_of_accepted_tokens),
        cmocka_unit_test(checks_without_places_are_refused),
        cmocka_unit_test(chunks_are_tokens),
        cmocka_unit_test(long_runs_go_in_chunks),
        cmocka_unit_test(cards_take_chunks_by_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
