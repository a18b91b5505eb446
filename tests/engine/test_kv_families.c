/* Cache profiles on models whose layers are not all alike: hybrids with gated attention and partial rotary embedding,
 * Gemma with windows, layers that share keys and values, values that are the keys before their norm. Whatever vectors
 * and bases a profile has, attention stays what it was but for the codec's error; each part is used where it belongs.
 *
 *   test_engine_kv_families [vulkan|simt]    on that backend, beside the processor */
#include "backends/base/mem.h"
#include "engine/kv.h"
#include "engine/models/model.h"
#include "tests/engine/real_bench.h"
#include "tests/models/small_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { N = 300, MAX_LAYERS = 8 };

/* ---- models ---------------------------------------------------------------------------------------------- */

enum { HEAD = 64, WINDOW_HEAD = 32, WINDOW = 150, LAYERS = 4, PLE = 8 };

static const char *layer_name(uint32_t layer, const char *name)
{
    static char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    return full;
}

static void shape(small_model *m, uint32_t layer, const char *name, bool is_new, uint64_t a, uint64_t b)
{
    const uint64_t ne[] = {a, b};
    if (is_new)
        sm_add(m, layer_name(layer, name), b ? 2 : 1, ne);
    else
        sm_reshape(m, layer_name(layer, name), b ? 2 : 1, ne);
}

/* Gemma 4: layers 0 and 2 see a window, 1 and 3 everything, and 2 and 3 attend to the keys and values of 0 and 1; layer
 * 1 has its keys as values. A quarter of the rotary pairs of layer 1 turn. */
static rq_model *sharing(void)
{
    small_model m;
    sm_init_layers(&m, "gemma4", false, LAYERS);
    sm_u32(&m, ".attention.sliding_window", WINDOW);
    sm_list(&m, ".attention.sliding_window_pattern", (const uint32_t[]){1, 0, 1, 0}, LAYERS);
    sm_list(&m, ".attention.head_count_kv", (const uint32_t[]){SM_HEADS_KV, 1, SM_HEADS_KV, 1}, LAYERS);
    sm_u32(&m, ".attention.key_length", HEAD);
    sm_u32(&m, ".attention.value_length", HEAD);
    sm_u32(&m, ".rope.dimension_count", HEAD);
    sm_u32(&m, ".attention.key_length_swa", WINDOW_HEAD);
    sm_u32(&m, ".attention.value_length_swa", WINDOW_HEAD);
    sm_u32(&m, ".rope.dimension_count_swa", WINDOW_HEAD);
    sm_u32(&m, ".embedding_length_per_layer_input", PLE);
    sm_u32(&m, ".attention.shared_kv_layers", 2);
    sm_u32(&m, ".context_length", 4096);
    for (uint32_t i = 0; i < LAYERS; i++) {
        bool window = i % 2 == 0, own = i < 2;
        uint64_t d = window ? WINDOW_HEAD : HEAD, kv = window ? SM_HEADS_KV : 1;
        shape(&m, i, "attn_q.weight", false, SM_EMBD, SM_HEADS * d);
        shape(&m, i, "attn_output.weight", false, SM_HEADS * d, SM_EMBD);
        shape(&m, i, "attn_q_norm.weight", true, d, 0);
        shape(&m, i, "post_attention_norm.weight", true, SM_EMBD, 0);
        shape(&m, i, "post_ffw_norm.weight", true, SM_EMBD, 0);
        shape(&m, i, "layer_output_scale.weight", true, 1, 0);
        shape(&m, i, "inp_gate.weight", true, SM_EMBD, PLE);
        shape(&m, i, "proj.weight", true, PLE, SM_EMBD);
        shape(&m, i, "post_norm.weight", true, SM_EMBD, 0);
        if (own) {
            shape(&m, i, "attn_k.weight", false, SM_EMBD, kv * d);
            shape(&m, i, "attn_k_norm.weight", true, d, 0);
        } else {
            sm_no_tensor(&m, layer_name(i, "attn_k.weight"));
        }
        if (own && window)
            shape(&m, i, "attn_v.weight", false, SM_EMBD, kv * d);
        else
            sm_no_tensor(&m, layer_name(i, "attn_v.weight"));
    }
    sm_add(&m, "rope_freqs.weight", 1, (const uint64_t[]){HEAD / 2});
    for (uint32_t i = 0; i < HEAD / 2; i++)
        sm_find(&m, "rope_freqs.weight")->data[i] = i < HEAD / 8 ? 1.0f : 1e30f;
    sm_add(&m, "per_layer_token_embd.weight", 2, (const uint64_t[]){LAYERS * PLE, SM_VOCAB});
    sm_add(&m, "per_layer_model_proj.weight", 2, (const uint64_t[]){SM_EMBD, LAYERS * PLE});
    sm_add(&m, "per_layer_proj_norm.weight", 1, (const uint64_t[]){PLE});
    rq_model *model = rb_load(sm_write(&m));
    sm_free(&m);
    return model;
}

enum { N_MODELS = 4 };

static rq_model *model_of(int i, const char **name)
{
    static const char *const files[] = {"qwen35.gguf", "gemma3.gguf", "gemma4-dense.gguf"};
    *name = i < 3 ? files[i] : "sharing";
    return i < 3 ? rb_load(rb_path(files[i])) : sharing();
}

/* ---- profiles -------------------------------------------------------------------------------------------- */

static char profile_path[300];

static int make_path(void **state)
{
    const char *folder = getenv("TMPDIR");
    snprintf(profile_path, sizeof profile_path, "%.200s/rqvk-families-%ld.kvprofile",
             folder != NULL ? folder : "/tmp", (long)getpid());
    return 0;
}

static int remove_path(void **state)
{
    unlink(profile_path);
    return 0;
}

static float draw(uint64_t *x)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*x >> 32) / 2147483648.0f;
}

/* Planes turned one after another, and directions of unequal length. */
static void mix_basis(float *basis, uint32_t d, uint64_t *x)
{
    for (uint32_t i = 0; i < d; i++) {
        uint32_t j = (i * 7 + 3) % d;
        float t = draw(x), c = (1 - t * t) / (1 + t * t), s = 2 * t / (1 + t * t);
        for (uint32_t k = 0; k < d && i != j; k++) {
            float a = basis[i * d + k], b = basis[j * d + k];
            basis[i * d + k] = c * a - s * b;
            basis[j * d + k] = s * a + c * b;
        }
    }
    for (uint32_t i = 0; i < d * d; i++) basis[i] *= 0.5f + (float)(i / d % 8) / 4;
}

enum { MEANS = 1, SCALES = 2, BASES = 4, NO_WINDOWS = 8 };

static void fill_layer(rq_kv_profile *p, uint32_t i, unsigned parts)
{
    uint64_t state = 7 + i, *x = &state;
    const rq_kv_layer_profile *l = &p->layers[i];
    uint32_t n_k = l->n_heads * l->dim_k, n_v = l->n_heads * l->dim_v;
    if (parts & MEANS) {
        float *k = rq_kv_profile_add(p, i, RQ_KV_MEAN_K), *v = rq_kv_profile_add(p, i, RQ_KV_MEAN_V);
        for (uint32_t e = 0; e < n_k; e++) k[e] = draw(x);
        for (uint32_t e = 0; e < n_v; e++) v[e] = 0.2f * draw(x);
    }
    if (parts &
        SCALES) { /* 0.5 to 2.5: one for both elements of a pair that turns, one for each other element */
        float *s = rq_kv_profile_add(p, i, RQ_KV_LAMBDA_K);
        uint32_t half = l->n_rot / 2;
        for (uint32_t e = 0; e < n_k; e++) {
            uint32_t element = e % l->dim_k, pair = element;
            if (p->rot_halves && element < l->n_rot && element % half < l->n_turned) pair = element % half;
            if (!p->rot_halves && element < 2 * l->n_turned) pair = element / 2;
            s[e] = 0.5f + (float)(pair * 7 % 32) / 16;
        }
    }
    if (parts & BASES) {
        float *k = rq_kv_profile_add(p, i, RQ_KV_KLT_K), *v = rq_kv_profile_add(p, i, RQ_KV_KLT_V);
        for (uint32_t h = 0; h < l->n_heads; h++) {
            mix_basis(k + (size_t)h * l->dim_k * l->dim_k, l->dim_k, x);
            mix_basis(v + (size_t)h * l->dim_v * l->dim_v, l->dim_v, x);
        }
    }
}

static void write_profile(const rq_model *model, unsigned parts)
{
    rq_kv_profile *p = NULL;
    rq_error err = {0};
    assert_int_equal(rq_kv_profile_new(model, 1024, &p, NULL), RQ_OK);
    for (uint32_t i = 0; i < p->n_layers; i++)
        if (p->layers[i].n_heads != 0 && !(parts & NO_WINDOWS && model->layers[i].window != 0))
            fill_layer(p, i, parts);
    if (rq_kv_profile_write(p, profile_path, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_kv_profile_free(p);
}

/* ---- engines --------------------------------------------------------------------------------------------- */

static const char *backend = "cpu";

static rq_engine_params params_of(const rq_model *model, const char *format, const char *profile)
{
    bool windows = model->family->gemma && strcmp(format, "f16") != 0;
    return (rq_engine_params){.backend = backend,
                              .n_ctx = 320,
                              .n_batch = 128,
                              .n_threads = 1,
                              .type_k = format,
                              .type_v = format,
                              .kv_swa = windows ? format : NULL,
                              .kv_recent = 64,
                              .kv_profile = profile};
}

typedef struct rows {
    float *data;
    uint32_t n_vocab;
} rows;

static void take(void *user, size_t position, const float *logits)
{
    rows *r = user;
    assert_true(position < N);
    memcpy(r->data + position * r->n_vocab, logits, r->n_vocab * sizeof *logits);
}

/* Logits after each of N tokens, read in pieces of `chunk`; free `data`. */
static rows evaluate(const rq_model *model, const rq_engine_params *p, uint32_t chunk)
{
    rq_token ids[N];
    rows r = {.n_vocab = model->hp.n_vocab};
    r.data = calloc((size_t)N * r.n_vocab, sizeof *r.data);
    assert_non_null(r.data);
    rb_tokens(ids, N, 1, r.n_vocab);
    rq_engine *engine = rb_engine(model, p);
    rq_session *session = rb_session(engine);
    rq_error err = {0};
    if (rq_evaluate(session, ids, N, chunk, RQ_LOGITS_ALL, take, &r, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_session_free(session);
    rq_engine_free(engine);
    return r;
}

/* |a - b|^2 / |b|^2. */
static double distance(const rows *a, const rows *b)
{
    double error = 0, energy = 0;
    for (size_t i = 0; i < (size_t)N * a->n_vocab; i++) {
        double x = a->data[i], y = b->data[i];
        error += (x - y) * (x - y);
        energy += y * y;
    }
    assert_true(isfinite(error) && isfinite(energy) && energy > 0);
    return error / energy;
}

static bool same(const rows *a, const rows *b)
{
    return memcmp(a->data, b->data, (size_t)N * a->n_vocab * sizeof *a->data) == 0;
}

/* ---- tests ----------------------------------------------------------------------------------------------- */

static void test_vectors_change_nothing_else(void **state)
{
    for (int i = 0; i < N_MODELS; i++) {
        const char *name;
        rq_model *model = model_of(i, &name);
        rq_engine_params exact = params_of(model, "f16", "none"), plain = params_of(model, "q8_0", "none"),
                         with = params_of(model, "q8_0", profile_path);
        rows f16 = evaluate(model, &exact, 64), before = evaluate(model, &plain, 64);
        double without = distance(&before, &f16);
        for (unsigned parts = MEANS; parts <= (MEANS | SCALES); parts++) {
            write_profile(model, parts);
            rows after = evaluate(model, &with, 64);
            double error = distance(&after, &f16);
            print_message("%s, parts %u: %.2e, without %.2e\n", name, parts, error, without);
            assert_false(same(&after, &before));
            /* means of up to 1 beside keys of about that size, scales of 1 : 5: some of the eight bits are lost */
            assert_true(error < 30 * without);
            free(after.data);
        }
        free(f16.data);
        free(before.data);
        rq_model_free(model);
    }
}

/* Any basis will do, and up to 8 tokens in a piece give the same bits. */
static void test_bases(void **state)
{
    for (int i = 0; i < N_MODELS; i++) {
        const char *name;
        rq_model *model = model_of(i, &name);
        rq_engine_params exact = params_of(model, "f16", "none"), wht = params_of(model, "wht4", "none"),
                         klt = params_of(model, "klt4", profile_path);
        write_profile(model, MEANS | SCALES);
        rb_refused(model, klt, RQ_ERR_ARGUMENT, "calibrate --klt");
        write_profile(model, MEANS | SCALES | BASES);
        rows f16 = evaluate(model, &exact, 64), a = evaluate(model, &wht, 64), b = evaluate(model, &klt, 64);
        double without = distance(&a, &f16), with = distance(&b, &f16);
        print_message("%s: wht4 %.2e, klt4 %.2e\n", name, without, with);
        assert_true(with > 0 &&
                    with < 8 * without); /* as of models whose layers are alike: test_kv_formats.c */
        free(a.data);
        free(b.data);
        klt = params_of(model, "klt3", profile_path);
        a = evaluate(model, &klt, 1);
        b = evaluate(model, &klt, 7);
        assert_true(same(&a, &b));
        free(a.data);
        free(b.data);
        free(f16.data);
        if (model->family->gemma) { /* bases of windows only where windows are compressed that way */
            write_profile(model, MEANS | BASES | NO_WINDOWS);
            rb_refused(model, klt, RQ_ERR_ARGUMENT, "--swa");
            klt.kv_swa = NULL;
            rq_engine_free(rb_engine(model, &klt));
        }
        rq_model_free(model);
    }
}

/* What a profile says about windows counts where they are compressed, and nowhere else. */
static void test_exact_windows(void **state)
{
    for (int i = 1; i < N_MODELS; i++) {
        const char *name;
        rq_model *model = model_of(i, &name);
        rq_engine_params p = params_of(model, "wht3", profile_path);
        rows r[2][2];
        rb_lines log[2][2];
        for (int windows = 0; windows < 2; windows++)
            for (int coded = 0; coded < 2; coded++) {
                write_profile(model, MEANS | SCALES | (windows ? 0 : NO_WINDOWS));
                p.kv_swa = coded ? "wht3" : NULL;
                log[windows][coded].n = 0;
                p.log = rb_keep_line;
                p.log_user = &log[windows][coded];
                r[windows][coded] = evaluate(model, &p, 64);
            }
        assert_true(same(&r[0][0], &r[1][0]));
        assert_false(same(&r[0][1], &r[1][1]));
        rb_said(&log[0][1], "nothing about layer 0");
        assert_null(strstr(log[0][0].text, "nothing about"));
        assert_null(strstr(log[1][1].text, "nothing about"));
        for (int k = 0; k < 4; k++) free(r[k / 2][k % 2].data);
        p.type_k = p.type_v = "f16"; /* windows alone */
        p.kv_swa = "klt3";
        write_profile(model, BASES);
        rq_engine *engine = rb_engine(model, &p);
        rq_engine_info info;
        rq_engine_describe(engine, &info);
        assert_string_equal(info.kv_profile, profile_path);
        rq_engine_free(engine);
        rq_model_free(model);
    }
}

typedef struct seen {
    uint32_t rows[MAX_LAYERS][3], owner[MAX_LAYERS];
} seen;

static rq_status see(void *user, const rq_kv_captured *c, rq_error *err)
{
    seen *s = user;
    assert_true(c->layer < MAX_LAYERS);
    s->rows[c->layer][c->which] += c->n;
    s->owner[c->layer] = c->kv_layer;
    return RQ_OK;
}

static void test_what_is_captured(void **state)
{
    rq_model *model = sharing();
    seen s = {0};
    rq_kv_hooks hooks = {.capture = see, .capture_user = &s};
    rq_engine_params p = params_of(model, "f16", "none");
    rows plain = evaluate(model, &p, 64);
    p.kv_hooks = &hooks;
    rows with = evaluate(model, &p, 64);
    assert_true(same(&plain, &with)); /* looking changes nothing */
    for (uint32_t i = 0; i < LAYERS; i++) {
        assert_int_equal(s.owner[i], i % 2);
        assert_int_equal(rq_kv_owner(model, i), i % 2);
        assert_int_equal(s.rows[i][RQ_KV_Q], N);
        assert_int_equal(s.rows[i][RQ_KV_K], i < 2 ? N : 0);
        assert_int_equal(s.rows[i][RQ_KV_V], i < 2 ? N : 0);
    }
    assert_int_equal(rq_kv_owner(model, LAYERS), RQ_KV_NO_LAYER);
    free(plain.data);
    free(with.data);
    rq_model_free(model);
    model = rb_load(rb_path("qwen35.gguf"));
    assert_int_equal(rq_kv_owner(model, 0), RQ_KV_NO_LAYER);
    assert_int_equal(rq_kv_owner(model, 1), 1);
    rq_model_free(model);
}

/* Errors in the values of a head go through the output matrix of each layer that reads them, and the norm behind it. */
static void test_value_weights(void **state)
{
    rq_model *model = sharing();
    static double w[HEAD * HEAD];
    rq_error err = {0};
    assert_int_equal(rq_kv_value_weight(model, 1, 0, w, &err), RQ_OK);
    for (int i = 0; i < HEAD; i += 13)
        for (int j = 0; j < HEAD; j += 7) {
            double sum = 0;
            for (uint32_t layer = 1; layer < LAYERS; layer += 2) {
                const rq_layer *l = &model->layers[layer];
                const float *norm = model->weights[l->t[RQ_ROLE_POST_ATTENTION_NORM].weight].host;
                const rq_weight *o = &model->weights[l->t[RQ_ROLE_ATTN_OUTPUT].weight];
                assert_int_equal(o->type, RQ_TYPE_F32);
                const float *x = o->host;
                for (uint32_t r = 0; r < SM_EMBD; r++)
                    for (uint32_t h = 0; h < SM_HEADS; h++) {
                        const float *row = x + (size_t)r * SM_HEADS * HEAD + h * HEAD;
                        sum += (double)norm[r] * norm[r] * row[i] * row[j];
                    }
            }
            assert_true(fabs(sum - w[i * HEAD + j]) <= 1e-9 * (1 + fabs(sum)));
        }
    assert_int_equal(rq_kv_value_weight(model, 3, 0, w, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(rq_kv_value_weight(model, 1, 1, w, &err), RQ_ERR_ARGUMENT);
    rq_model_free(model);
}

/* Shapes are each layer's own: none of recurrent layers and of those that share, rotary pairs as that layer has them. */
static void test_shapes(void **state)
{
    rq_model *model = sharing();
    rq_kv_profile *p = NULL;
    rq_error err = {0};
    assert_int_equal(rq_kv_profile_new(model, 64, &p, NULL), RQ_OK);
    const rq_kv_layer_profile *l = p->layers;
    assert_true(l[0].n_heads == SM_HEADS_KV && l[0].dim_k == WINDOW_HEAD && l[0].n_rot == WINDOW_HEAD &&
                l[0].n_turned == WINDOW_HEAD / 2);
    assert_true(l[1].n_heads == 1 && l[1].dim_v == HEAD && l[1].n_rot == HEAD && l[1].n_turned == HEAD / 8);
    assert_true(l[2].n_heads == 0 && l[3].n_heads == 0);
    assert_null(rq_kv_profile_add(p, 2, RQ_KV_MEAN_K));
    float *s = rq_kv_profile_add(p, 1, RQ_KV_LAMBDA_K); /* pairs that never turn may differ */
    s[HEAD / 2 - 1] = 3;
    assert_int_equal(rq_kv_profile_check(p, &err), RQ_OK);
    s[1] = 3;
    assert_int_equal(rq_kv_profile_check(p, &err), RQ_ERR_FORMAT);
    s[1] = 1;
    p->layers[1].n_turned--;
    assert_int_equal(rq_kv_profile_fits(p, model, 64, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "rotary pairs"));
    p->layers[1].n_turned++;
    assert_int_equal(rq_kv_profile_fits(p, model, 64, &err), RQ_OK);
    rq_model *other = rb_load(rb_path("qwen35.gguf"));
    assert_int_equal(rq_kv_profile_fits(p, other, 64, &err), RQ_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "another model"));
    rq_kv_profile_free(p);
    rq_model_free(model);
    assert_int_equal(rq_kv_profile_new(other, 64, &p, NULL), RQ_OK);
    l = p->layers;
    assert_true(l[0].n_heads == 0 && l[1].n_heads == 1 && l[1].dim_k == 256 && l[1].n_rot == 64 &&
                l[1].n_turned == 32);
    s = rq_kv_profile_add(p, 1, RQ_KV_LAMBDA_K);
    for (int i = 64; i < 256; i++) s[i] = 1 + (float)i / 256;
    assert_int_equal(rq_kv_profile_check(p, &err), RQ_OK);
    s[0] = 2;
    assert_int_equal(rq_kv_profile_check(p, &err), RQ_ERR_FORMAT);
    rq_kv_profile_free(p);
    rq_model_free(other);
}

/* The block that drafts has keys and values of its own and no profile: answers are those without drafts. */
static void test_drafts(void **state)
{
    rq_model *model = rb_load(RQVK_MODELS "/builtin-qwen35.gguf");
    static rb_answer answers[2];
    static const char *const formats[] = {"wht3", "klt3"};
    enum { PROMPT = 200 };
    rq_token ids[PROMPT];
    rb_tokens(ids, PROMPT, 3, model->hp.n_vocab);
    write_profile(model, MEANS | SCALES | BASES);
    for (int f = 0; f < 2; f++) {
        for (int drafts = 0; drafts < 2; drafts++) {
            rb_lines log = {.n = 0};
            rq_engine_params p = params_of(model, formats[f], profile_path);
            p.draft = drafts ? "mtp" : "off";
            p.log = rb_keep_line;
            p.log_user = &log;
            rq_engine *engine = rb_engine(model, &p);
            /* its keys and values stay exact where the format needs a basis */
            bool without = strstr(log.text, "block that drafts goes without") != NULL;
            assert_int_equal(without, drafts && f == 0);
            rq_session *s = rb_session(engine);
            rb_submit(s, ids, PROMPT, NULL, 0, 40, true);
            rb_collect(s, &answers[drafts]);
            rq_session_free(s);
            rq_engine_free(engine);
        }
        rb_same_answer(&answers[0], &answers[1]);
    }
    rq_model_free(model);
}

static void test_memory_runs_out(void **state)
{
    rq_model *model = sharing();
    write_profile(model, MEANS | SCALES | BASES);
    rq_engine_params p = params_of(model, "klt3", profile_path);
    p.n_batch = 16;
    p.n_ctx = 128;
    assert_true(rb_failing_allocations(model, &p, 80, 40) > 60);
    rq_model_free(model);
}

/* A backend computes in another order, so that single codes fall on the other side of a border: as far off as the
 * codec's own error allows (DESIGN section 5: 0.0238 at 3 bits). */
static void test_like_the_processor(void **state)
{
    static const char *const formats[] = {"wht3", "klt3"};
    const char *card = backend;
    for (int i = 0; i < N_MODELS; i++) {
        const char *name;
        rq_model *model = model_of(i, &name);
        write_profile(model, MEANS | SCALES | BASES);
        for (int f = 0; f < 2; f++) {
            backend = "cpu";
            rq_engine_params p = params_of(model, formats[f], profile_path);
            rows want = evaluate(model, &p, 100);
            p.kv_profile = "none";
            p.type_k = p.type_v = p.kv_swa = "f16";
            rows f16 = evaluate(model, &p, 100);
            backend = card;
            p = params_of(model, formats[f], profile_path);
            rows got = evaluate(model, &p, 100);
            double apart = distance(&got, &want), loss = distance(&want, &f16);
            print_message("%s %s on %s: %.2e from the processor, which is %.2e from f16\n", name, formats[f],
                          card, apart, loss);
            assert_true(apart < 0.0238 && apart < loss);
            free(want.data);
            free(got.data);
            free(f16.data);
        }
        rq_model_free(model);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest on_the_processor[] = {
        cmocka_unit_test(test_vectors_change_nothing_else),
        cmocka_unit_test(test_bases),
        cmocka_unit_test(test_exact_windows),
        cmocka_unit_test(test_what_is_captured),
        cmocka_unit_test(test_value_weights),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_drafts),
        cmocka_unit_test(test_memory_runs_out),
    };
    const struct CMUnitTest elsewhere[] = {cmocka_unit_test(test_like_the_processor)};
    if (argc == 1) return cmocka_run_group_tests(on_the_processor, make_path, remove_path);
    backend = argv[1];
    return cmocka_run_group_tests_name(backend, elsewhere, make_path, remove_path);
}
