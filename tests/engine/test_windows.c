/* Layers that see a window, on the whole engine: their cache does not grow with the context, whatever it is made of;
 * what they compute has the same bits in any pieces, after reuse and beside other sessions; and long conversations of
 * every family go on from where they stand. */
#include "backends/base/mem.h"
#include "tests/engine/real_bench.h"
#include "tests/models/small_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 900, SESSIONS = 3, WINDOW = 200, HEAD = 64, LAYERS = 4 };

typedef struct format {
    const char *k, *v, *swa;
    uint32_t recent;
} format;

static const format FORMATS[] = {{"f16", "f16", NULL, 0},
                                 {"wht3", "wht3", NULL, 64},
                                 {"wht3", "planar4", "wht3", 64},
                                 {"f32", "f32", "planar4,q8_0", 64}};
enum { N_FORMATS = sizeof FORMATS / sizeof *FORMATS };

static void shape(small_model *m, uint32_t layer, const char *name, bool is_new, uint64_t a, uint64_t b)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    const uint64_t ne[] = {a, b};
    if (is_new)
        sm_add(m, full, b ? 2 : 1, ne);
    else
        sm_reshape(m, full, b ? 2 : 1, ne);
}

/* Gemma 3 with heads large enough to be coded; every second layer sees a window, or every layer. */
static rq_model *gemma(bool all)
{
    small_model m;
    sm_init_layers(&m, "gemma3", false, LAYERS);
    sm_u32(&m, ".attention.sliding_window", WINDOW);
    sm_list(&m, ".attention.sliding_window_pattern", (const uint32_t[]){1, all, 1, all}, LAYERS);
    sm_u32(&m, ".attention.key_length", HEAD);
    sm_u32(&m, ".attention.value_length", HEAD);
    sm_u32(&m, ".context_length", 1u << 17);
    for (uint32_t i = 0; i < LAYERS; i++) {
        shape(&m, i, "attn_q.weight", false, SM_EMBD, SM_HEADS * HEAD);
        shape(&m, i, "attn_k.weight", false, SM_EMBD, SM_HEADS_KV * HEAD);
        shape(&m, i, "attn_v.weight", false, SM_EMBD, SM_HEADS_KV * HEAD);
        shape(&m, i, "attn_output.weight", false, SM_HEADS * HEAD, SM_EMBD);
        shape(&m, i, "attn_q_norm.weight", true, HEAD, 0);
        shape(&m, i, "attn_k_norm.weight", true, HEAD, 0);
        shape(&m, i, "post_attention_norm.weight", true, SM_EMBD, 0);
        shape(&m, i, "post_ffw_norm.weight", true, SM_EMBD, 0);
    }
    rq_model *model = rb_load(sm_write(&m));
    sm_free(&m);
    return model;
}

static rq_engine_params params_of(const format *f)
{
    return (rq_engine_params){.n_ctx = CTX,
                              .n_sessions = SESSIONS,
                              .n_batch = 256,
                              .n_threads = 1,
                              .type_k = f->k,
                              .type_v = f->v,
                              .kv_swa = f->swa,
                              .kv_recent = f->recent};
}

typedef struct bench {
    rq_engine *engine;
    rq_session *s[SESSIONS];
    uint32_t n_vocab;
} bench;

static void open_bench(bench *b, const rq_model *model, const format *f)
{
    rq_engine_params p = params_of(f);
    rq_model_info info;
    rq_model_describe(model, &info);
    b->n_vocab = info.n_vocab;
    b->engine = rb_engine(model, &p);
    for (int i = 0; i < SESSIONS; i++) b->s[i] = rb_session(b->engine);
}

static void close_bench(bench *b)
{
    for (int i = 0; i < SESSIONS; i++) rq_session_free(b->s[i]);
    rq_engine_free(b->engine);
}

/* ---- the same bits ----------------------------------------------------------------------------------------- */

typedef struct logits {
    float (*rows)[SM_VOCAB];
    size_t n;
} logits;

static void keep(void *user, size_t position, const float *row)
{
    logits *l = user;
    assert_true(position < CTX);
    memcpy(l->rows[position], row, sizeof l->rows[position]);
    l->n++;
}

static void evaluate(rq_session *s, const rq_token *ids, size_t n, uint32_t chunk, logits *out)
{
    rq_error err = {0};
    if (rq_session_truncate(s, 0, &err) || rq_evaluate(s, ids, n, chunk, RQ_LOGITS_ALL, keep, out, &err))
        fail_msg("%s", err.text);
}

/* A text several windows long, in pieces, twice in the same pages and in two sessions by turns. */
static void test_pieces(void **state)
{
    static const uint32_t pieces[] = {1, 7, 64, 100, 256};
    static rq_token ids[CTX], other[CTX];
    logits want = {.rows = calloc(CTX, sizeof *want.rows)}, got = {.rows = calloc(CTX, sizeof *got.rows)};
    assert_true(want.rows != NULL && got.rows != NULL);
    for (int all = 0; all < 2; all++) {
        rq_model *model = gemma(all);
        for (size_t f = 0; f < N_FORMATS; f++) {
            bench b;
            open_bench(&b, model, &FORMATS[f]);
            rb_tokens(ids, CTX, 1, b.n_vocab);
            rb_tokens(other, CTX, 2, b.n_vocab);
            evaluate(b.s[0], ids, 850, 256, &want);
            for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
                evaluate(b.s[1], other, 700, 256, &got); /* what was in the pages is overwritten */
                evaluate(b.s[i % SESSIONS], ids, 850, pieces[i], &got);
                for (size_t t = 0; t < 850; t++)
                    if (memcmp(got.rows[t], want.rows[t], sizeof got.rows[t]) != 0)
                        fail_msg("format %zu in pieces of %u: token %zu differs", f, pieces[i], t);
            }
            close_bench(&b);
        }
        rq_model_free(model);
    }
    free(want.rows);
    free(got.rows);
}

/* Codes of a window change little, and something: it is they that are read. */
static void test_coded_windows(void **state)
{
    static rq_token ids[CTX];
    logits want = {.rows = calloc(CTX, sizeof *want.rows)}, got = {.rows = calloc(CTX, sizeof *got.rows)};
    static const format formats[] = {{"f16", "f16", "q8_0", 64}, {"f16", "f16", "wht4", 64}};
    /* squared error of the logits: that of q8_0 and of four bits as DESIGN section 5 has it, softened by attention's mean
     * and by the part of the window that is exact */
    static const double most[] = {1e-4, 1e-2};
    rq_model *model = gemma(true);
    bench b;
    open_bench(&b, model, &(format){"f16", "f16", NULL, 64});
    rb_tokens(ids, CTX, 1, b.n_vocab);
    evaluate(b.s[0], ids, 600, 100, &want);
    close_bench(&b);
    for (int f = 0; f < 2; f++) {
        double difference = 0, norm = 0;
        open_bench(&b, model, &formats[f]);
        evaluate(b.s[0], ids, 600, 100, &got);
        for (size_t t = 0; t < 600; t++) {
            /* up to the first position that reads a code: the recent page and the one that is being written */
            if (f == 0 && t < 127) assert_memory_equal(got.rows[t], want.rows[t], sizeof got.rows[t]);
            for (size_t k = 0; k < SM_VOCAB; k++) {
                double d = (double)got.rows[t][k] - (double)want.rows[t][k];
                difference += d * d;
                norm += (double)want.rows[t][k] * (double)want.rows[t][k];
            }
        }
        if (!(difference > 0 && difference < most[f] * norm))
            fail_msg("%s: normalised squared error %g", formats[f].swa, difference / norm);
        close_bench(&b);
    }
    rq_model_free(model);
    free(want.rows);
    free(got.rows);
}

/* ---- reuse ------------------------------------------------------------------------------------------------- */

static bench here, empty;

static uint32_t compare(int session, const rq_token *ids, size_t n, const size_t *ends, size_t n_ends,
                        uint32_t max, rb_answer *got)
{
    return rb_reuse(here.engine, here.s[session], empty.s[0], ids, n, ends, n_ends, max, got);
}

static void conversation(const rq_model *model, const format *f)
{
    static rb_answer got;
    static rq_token ids[CTX], other[CTX];
    open_bench(&here, model, f);
    open_bench(&empty, model, f);
    rb_tokens(ids, CTX, 1, here.n_vocab);
    size_t ends[3] = {150, 300, 420};
    assert_int_equal(compare(0, ids, 420, ends, 3, 60, &got), 0);
    memcpy(ids + 420, got.ids, got.n * sizeof *ids);
    assert_int_equal(compare(0, ids, 520, NULL, 0, 10, &got), 479); /* the next turn */
    assert_int_equal(compare(1, ids, 520, NULL, 0, 10, &got), 512); /* elsewhere; 7 are not worth a copy */
    /* a fork at the question's end; another conversation behind the first message, whose window is long gone */
    memcpy(other, ids, sizeof other);
    rb_tokens(other + 420, CTX - 420, 2, here.n_vocab);
    assert_in_range(compare(2, other, 600, NULL, 0, 10, &got), 384, 420);
    rb_tokens(other + 150, CTX - 150, 3, here.n_vocab);
    assert_in_range(compare(2, other, 500, NULL, 0, 10, &got), 128, 150);
    rq_session_truncate(here.s[0], 500, NULL); /* cut back by hand */
    compare(0, ids, 700, NULL, 0, 10, &got);
    close_bench(&here);
    close_bench(&empty);
}

/* A long text without an end, then one that leaves it where no window was kept: what is known and cannot be used is
 * said, and the bits are those of a fresh start. */
static void test_pages_are_gone(void **state)
{
    enum { LONG = 2000 };
    static rq_token ids[LONG];
    static rb_answer got;
    rq_model *model = gemma(false);
    for (size_t f = 0; f < N_FORMATS; f++) {
        rq_engine_params p = params_of(&FORMATS[f]);
        p.n_ctx = LONG + 100;
        p.n_sessions = 1;
        rq_engine *engine = rb_engine(model, &p), *other = rb_engine(model, &p);
        rq_session *s = rb_session(engine), *t = rb_session(other);
        rb_tokens(ids, LONG, 1, SM_VOCAB);
        assert_int_equal(rb_reuse(engine, s, t, ids, LONG, NULL, 0, 5, &got), 0);
        rb_tokens(ids + 300, 300, 2, SM_VOCAB);
        assert_true(rb_reuse(engine, s, t, ids, 600, NULL, 0, 5, &got) < 256);
        if (strstr(got.note, "tokens are known, but the pages") == NULL &&
            strstr(got.note, "given to other requests") == NULL)
            fail_msg("the note says \"%s\"", got.note);
        rq_session_free(s);
        rq_session_free(t);
        rq_engine_free(engine);
        rq_engine_free(other);
    }
    rq_model_free(model);
}

static void test_reuse(void **state)
{
    for (int all = 0; all < 2; all++) {
        rq_model *model = gemma(all);
        for (size_t f = 0; f < N_FORMATS; f++) conversation(model, &FORMATS[f]);
        rq_model_free(model);
    }
}

/* Two long chats by turns in one session, each turn going on from where that chat stood: a window or a state that
 * another text has taken the place of is found again. */
static void long_chats(const rq_model *model, const format *f, bool recurrent)
{
    enum { TURNS = 7, SAYS = 45, ANSWER = 20 };
    static rq_token chat[2][CTX];
    static rb_answer got;
    size_t n[2] = {0, 0}, ends[2][2 * TURNS + 2], n_ends[2] = {0, 0};
    open_bench(&here, model, f);
    open_bench(&empty, model, f);
    for (int turn = 0; turn < TURNS; turn++)
        for (int c = 0; c < 2; c++) {
            size_t stood = n[c];
            rb_tokens(chat[c] + n[c], SAYS, (uint32_t)(100 * c + turn), here.n_vocab);
            n[c] += SAYS;
            ends[c][n_ends[c]++] = n[c];
            if (recurrent) { /* bits of states: test_snapshots.c */
                rb_submit(here.s[0], chat[c], n[c], ends[c], n_ends[c], ANSWER, false);
                rb_collect(here.s[0], &got);
            } else {
                compare(0, chat[c], n[c], ends[c], n_ends[c], ANSWER, &got);
            }
            uint32_t reused = got.n_reused;
            size_t least = stood == 0 ? 0 : recurrent ? stood - 1 : (stood - 1) / 64 * 64;
            if (reused < least)
                fail_msg("turn %d of chat %d: %u of %zu reused: %s", turn, c, reused, stood, got.note);
            memcpy(chat[c] + n[c], got.ids, got.n * sizeof *got.ids);
            n[c] += got.n;
            ends[c][n_ends[c]++] = n[c];
        }
    close_bench(&here);
    close_bench(&empty);
}

static void test_long_chats(void **state)
{
    rq_model *model = gemma(false);
    for (size_t f = 0; f < N_FORMATS; f++) long_chats(model, &FORMATS[f], false);
    rq_model_free(model);
    static const char *const files[] = {"gemma3.gguf", "gemma4-dense.gguf", "qwen35.gguf", "llama.gguf"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        model = rb_load(rb_path(files[i]));
        for (size_t f = 0; f < 2; f++) long_chats(model, &FORMATS[f], i == 2);
        rq_model_free(model);
    }
}

/* ---- sizes and refusals --------------------------------------------------------------------------------------- */

static void test_the_context_costs_nothing(void **state)
{
    rq_model *model = gemma(true);
    for (size_t f = 0; f < N_FORMATS; f++) {
        static const uint32_t contexts[] = {8192, 65536};
        rq_engine_info info[2];
        rb_lines log = {.n = 0};
        for (int i = 0; i < 2; i++) {
            rq_engine_params p = params_of(&FORMATS[f]);
            p.n_ctx = contexts[i];
            p.log = rb_keep_line;
            p.log_user = &log;
            rq_engine *engine = rb_engine(model, &p);
            rq_engine_describe(engine, &info[i]);
            rq_engine_free(engine);
        }
        assert_int_equal(info[0].cache_bytes_per_token, 0);
        assert_int_equal(info[0].window_bytes, info[0].cache_bytes);
        /* but for the tables: an entry for each 64 tokens, group, form and session */
        uint64_t forms = FORMATS[f].swa != NULL ? 2 : 1;
        assert_int_equal(info[1].cache_bytes - info[0].cache_bytes,
                         (65536 - 8192) / 64 * 4 * SESSIONS * forms);
        rb_said(&log, "layers that see the last 200 tokens keep");
        rb_said(&log, "(planned ");
    }
    rq_model_free(model);
}

static void test_refused(void **state)
{
    rq_model *model = gemma(false);
    rq_engine_params p = params_of(&FORMATS[0]);
    p.kv_swa = "auto";
    rb_refused(model, p, RQ_ERR_ARGUMENT, "--kv-swa");
    p.kv_swa = "wht3,nonsense";
    rb_refused(model, p, RQ_ERR_ARGUMENT, "nonsense");
    p.kv_swa = "wht3,wht3,wht3";
    rb_refused(model, p, RQ_ERR_ARGUMENT, "wht3,wht3");
    p.kv_swa = "klt3";
    rb_refused(model, p, RQ_ERR_ARGUMENT, "klt3 needs a profile");
    char name[400];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    p.kv_swa = name;
    rb_refused(model, p, RQ_ERR_ARGUMENT, "xxx");
    rq_model_free(model);
    model = rb_load(rb_path("llama.gguf"));
    rb_lines log = {.n = 0};
    p.kv_swa = "wht3";
    p.log = rb_keep_line;
    p.log_user = &log;
    rq_engine_free(rb_engine(model, &p));
    rb_said(&log, "--kv-swa changes nothing");
    rq_model_free(model);
}

static void test_memory_runs_out(void **state)
{
    rq_model *model = gemma(false);
    rq_engine_params p = params_of(&FORMATS[2]);
    p.n_batch = 16;
    assert_true(rb_failing_allocations(model, &p, 30, 60) > 40);
    rq_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),     cmocka_unit_test(test_coded_windows),
        cmocka_unit_test(test_reuse),      cmocka_unit_test(test_pages_are_gone),
        cmocka_unit_test(test_long_chats), cmocka_unit_test(test_the_context_costs_nothing),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
