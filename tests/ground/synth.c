#include "tests/ground/synth.h"

#include "backends/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t synth_u32(synth_rng *rng)
{
    uint64_t x = rng->state ? rng->state : 88172645463325252ull;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    rng->state = x;
    return (uint32_t)((x * 2685821657736338717ull) >> 32);
}

uint32_t synth_below(synth_rng *rng, uint32_t n)
{
    return (uint32_t)(((uint64_t)synth_u32(rng) * n) >> 32);
}

float synth_normal(synth_rng *rng)
{
    double sum = 0; /* twelve uniforms */
    for (int i = 0; i < 12; i++) sum += synth_u32(rng) / 4294967296.0;
    return (float)(sum - 6);
}

const synth_config synth_llama = {.n_layers = 2,
                                  .n_embd = 64,
                                  .n_head = 4,
                                  .n_head_kv = 2,
                                  .dim = 16,
                                  .n_ff = 96,
                                  .n_vocab = 80,
                                  .type = RQ_TYPE_F32,
                                  .cache_type = RQ_TYPE_F16,
                                  .split_layer = UINT32_MAX};
const synth_config synth_qwen2 = {.n_layers = 3,
                                  .n_embd = 64,
                                  .n_head = 7,
                                  .n_head_kv = 1,
                                  .dim = 16,
                                  .n_ff = 64,
                                  .n_vocab = 50,
                                  .bias = true,
                                  .type = RQ_TYPE_F16,
                                  .cache_type = RQ_TYPE_F16,
                                  .split_layer = UINT32_MAX};
const synth_config synth_qwen3 = {.n_layers = 3,
                                  .n_embd = 64,
                                  .n_head = 4,
                                  .n_head_kv = 4,
                                  .dim = 24,
                                  .n_ff = 128,
                                  .n_vocab = 64,
                                  .qk_norm = true,
                                  .type = RQ_TYPE_Q8_0,
                                  .cache_type = RQ_TYPE_F32,
                                  .split_layer = UINT32_MAX};
const synth_config synth_moe = {.n_layers = 2,
                                .n_embd = 64,
                                .n_head = 4,
                                .n_head_kv = 2,
                                .dim = 16,
                                .n_ff = 32,
                                .n_vocab = 64,
                                .n_expert = 6,
                                .n_used = 2,
                                .qk_norm = true,
                                .type = RQ_TYPE_F32,
                                .cache_type = RQ_TYPE_F16,
                                .split_layer = UINT32_MAX};
const synth_config synth_windows = {.n_layers = 4,
                                    .n_embd = 32,
                                    .n_head = 2,
                                    .n_head_kv = 1,
                                    .dim = 16,
                                    .n_ff = 32,
                                    .n_vocab = 40,
                                    .window = 70,
                                    .type = RQ_TYPE_F32,
                                    .cache_type = RQ_TYPE_F16,
                                    .split_layer = UINT32_MAX};

/* Keys and values rotated and shifted, pages in a coded form. */
const synth_config synth_coded = {.n_layers = 2,
                                  .n_embd = 64,
                                  .n_head = 4,
                                  .n_head_kv = 2,
                                  .dim = 16,
                                  .n_ff = 64,
                                  .n_vocab = 48,
                                  .qk_norm = true,
                                  .type = RQ_TYPE_F32,
                                  .cache_type = RQ_TYPE_F16,
                                  .form_k = RQ_KV_C3,
                                  .form_v = RQ_KV_C4,
                                  .sink_pages = 1,
                                  .recent_pages = 1,
                                  .softcap = 30,
                                  .split_layer = UINT32_MAX};

/* ---- weights ------------------------------------------------------------------------------------------- */

/* TURN and TURN_MEAN: of K and of V; STORED_MEAN: K's as it is kept, turned and scaled. */
enum {
    EMBED,
    OUTPUT,
    OUTPUT_NORM,
    INV_FREQ,
    TURN,
    TURN_MEAN = TURN + 2,
    LAMBDA = TURN_MEAN + 2,
    INV_LAMBDA,
    STORED_MEAN,
    N_GLOBAL
};
enum {
    ATTN_NORM,
    Q,
    K,
    V,
    Q_BIAS,
    K_BIAS,
    V_BIAS,
    Q_NORM,
    K_NORM,
    O,
    FFN_NORM,
    GATE,
    UP,
    DOWN,
    ROUTER,
    N_LAYER
};

static uint32_t global_index(uint32_t role)
{
    return role;
}

static uint32_t layer_index(uint32_t layer, uint32_t role)
{
    return N_GLOBAL + layer * N_LAYER + role;
}

static void fill(synth_model *m, uint32_t index, rq_type type, uint32_t ne0, uint32_t ne1, uint32_t ne2,
                 float scale, float mean, synth_rng *rng)
{
    rq_weight *w = &m->weights[index];
    if (index >= SYNTH_MAX_WEIGHTS) abort();
    const rq_type_info *info = rq_type_get((uint32_t)type);
    if (ne0 % info->block_elems) type = RQ_TYPE_F32;
    uint64_t n = (uint64_t)ne0 * ne1 * ne2;
    float *values = rq_calloc(n, sizeof *values);
    w->type = type;
    w->ne[0] = ne0;
    w->ne[1] = ne1;
    w->ne[2] = ne2;
    w->ne[3] = 1;
    w->bytes = rq_row_bytes(type, ne0) * ne1 * ne2;
    w->name = "synthetic";
    void *bytes = rq_calloc_aligned(64, w->bytes);
    for (uint64_t i = 0; i < n; i++) values[i] = mean + scale * synth_normal(rng);
    if (type == RQ_TYPE_F32)
        memcpy(bytes, values, w->bytes);
    else if (type == RQ_TYPE_F16)
        rq_f32_to_f16_row(values, bytes, (int64_t)n);
    else if (!rq_quantize(type, values, bytes, (int64_t)n))
        abort();
    rq_free(values);
    w->host = bytes;
    if (index >= m->n_weights) m->n_weights = index + 1;
}

/* One rotation of each side for all layers and heads, means by head. */
static void fill_turns(synth_model *m, synth_rng *rng)
{
    const synth_config *c = &m->c;
    rq_rotation r[2];
    for (uint32_t v = 0; v < 2; v++) {
        if (rq_rotation_make(v ? RQ_ROTATION_WHT : RQ_ROTATION_ROTOR, c->dim, 3, &r[v], NULL) != RQ_OK)
            abort();
        fill(m, TURN + v, RQ_TYPE_F32, r[v].n_floats, 1, 1, 0, 0, rng);
        memcpy((void *)m->weights[TURN + v].host, r[v].data, m->weights[TURN + v].bytes);
        fill(m, TURN_MEAN + v, RQ_TYPE_F32, c->dim, c->n_head_kv, 1, 0.5f, 0, rng);
    }
    fill(m, LAMBDA, RQ_TYPE_F32, c->dim, 1, 1, 0, 0, rng);
    fill(m, INV_LAMBDA, RQ_TYPE_F32, c->dim, 1, 1, 0, 0, rng);
    fill(m, STORED_MEAN, RQ_TYPE_F32, c->dim, c->n_head_kv, 1, 0, 0, rng);
    float *lambda = (float *)m->weights[LAMBDA].host, *inverse = (float *)m->weights[INV_LAMBDA].host;
    for (uint32_t i = 0; i < c->dim; i++) { /* equal inside a pair */
        lambda[i] = i % 4 < 2 ? 2.0f : 0.5f;
        inverse[i] = 1 / lambda[i];
    }
    for (uint32_t h = 0; h < c->n_head_kv; h++) {
        float scaled[64];
        const float *mean = (const float *)m->weights[TURN_MEAN].host + h * c->dim;
        for (uint32_t i = 0; i < c->dim; i++) scaled[i] = lambda[i] * mean[i];
        rq_rotate_f32(&r[0], false, scaled, (float *)m->weights[STORED_MEAN].host + h * c->dim);
    }
    rq_rotation_free(&r[0]);
    rq_rotation_free(&r[1]);
}

void synth_make(synth_model *m, const synth_config *c, uint64_t seed)
{
    synth_rng rng = {seed * 2654435761u + 12345};
    memset(m, 0, sizeof *m);
    m->c = *c;
    m->n_groups = c->window ? 2 : 1;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        uint32_t layers = c->window ? (c->n_layers + 1 - g) / 2 : c->n_layers;
        m->groups[g] = (rq_cache_group){.n_layers = layers,
                                        .n_heads = c->n_head_kv,
                                        .dim_k = c->dim,
                                        .dim_v = c->dim,
                                        .window = g ? c->window : 0,
                                        .type_k = c->cache_type,
                                        .type_v = c->cache_type,
                                        .form_k = c->form_k,
                                        .form_v = c->form_v,
                                        .sink_pages = c->sink_pages,
                                        .recent_pages = c->recent_pages};
    }
    uint32_t e = c->n_expert ? c->n_expert : 1;
    float in = 1 / sqrtf((float)c->n_embd), ff = 1 / sqrtf((float)c->n_ff);
    fill(m, global_index(EMBED), c->type, c->n_embd, c->n_vocab, 1, 1, 0, &rng);
    fill(m, global_index(OUTPUT), c->type, c->n_embd, c->n_vocab, 1, in, 0, &rng);
    fill(m, global_index(OUTPUT_NORM), RQ_TYPE_F32, c->n_embd, 1, 1, 0.1f, 1, &rng);
    fill(m, global_index(INV_FREQ), RQ_TYPE_F32, c->dim / 2, 1, 1, 0, 0, &rng);
    float *freq = (float *)m->weights[INV_FREQ].host;
    for (uint32_t i = 0; i < c->dim / 2; i++) freq[i] = (float)pow(10000, -2.0 * i / c->dim);
    if (rq_group_is_coded(&m->groups[0])) fill_turns(m, &rng);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        fill(m, layer_index(l, ATTN_NORM), RQ_TYPE_F32, c->n_embd, 1, 1, 0.1f, 1, &rng);
        fill(m, layer_index(l, Q), c->type, c->n_embd, c->n_head * c->dim, 1, in, 0, &rng);
        fill(m, layer_index(l, K), c->type, c->n_embd, c->n_head_kv * c->dim, 1, in, 0, &rng);
        fill(m, layer_index(l, V), c->type, c->n_embd, c->n_head_kv * c->dim, 1, in, 0, &rng);
        fill(m, layer_index(l, Q_BIAS), RQ_TYPE_F32, c->n_head * c->dim, 1, 1, 0.3f, 0, &rng);
        fill(m, layer_index(l, K_BIAS), RQ_TYPE_F32, c->n_head_kv * c->dim, 1, 1, 0.3f, 0, &rng);
        fill(m, layer_index(l, V_BIAS), RQ_TYPE_F32, c->n_head_kv * c->dim, 1, 1, 0.3f, 0, &rng);
        fill(m, layer_index(l, Q_NORM), RQ_TYPE_F32, c->dim, 1, 1, 0.1f, 1, &rng);
        fill(m, layer_index(l, K_NORM), RQ_TYPE_F32, c->dim, 1, 1, 0.1f, 1, &rng);
        fill(m, layer_index(l, O), c->type, c->n_head * c->dim, c->n_embd, 1, in, 0, &rng);
        fill(m, layer_index(l, FFN_NORM), RQ_TYPE_F32, c->n_embd, 1, 1, 0.1f, 1, &rng);
        fill(m, layer_index(l, GATE), c->type, c->n_embd, c->n_ff, e, in, 0, &rng);
        fill(m, layer_index(l, UP), c->type, c->n_embd, c->n_ff, e, in, 0, &rng);
        fill(m, layer_index(l, DOWN), c->type, c->n_ff, c->n_embd, e, ff, 0, &rng);
        fill(m, layer_index(l, ROUTER), RQ_TYPE_F32, c->n_embd, e, 1, in, 0, &rng);
    }
}

void synth_free(synth_model *m)
{
    for (uint32_t i = 0; i < m->n_weights; i++) rq_free((void *)m->weights[i].host);
    memset(m, 0, sizeof *m);
}

/* ---- tapes --------------------------------------------------------------------------------------------- */

static rq_ref weight(const synth_model *m, rq_tape *t, uint32_t index)
{
    const rq_weight *w = &m->weights[index];
    return rq_tape_weight(t, index, w->type, w->ne, w->name);
}

static rq_ref heads(rq_tape *t, rq_ref x, uint32_t dim, uint32_t n)
{
    return rq_tape_view(t, x, 0, dim, n, dim, t->bucket, (uint64_t)dim * n);
}

/* Heads x through the rotation of K (side 0) or V; mean and lambda: weights, 0: none. */
static rq_ref turned(const synth_model *m, rq_tape *t, rq_ref x, uint32_t side, uint32_t mean,
                     uint32_t lambda, bool inverse)
{
    rq_rotation shape;
    rq_rotation_shape(side ? RQ_ROTATION_WHT : RQ_ROTATION_ROTOR, m->c.dim, &shape);
    return rq_op_rotate(t, x, weight(m, t, TURN + side), mean ? weight(m, t, mean) : 0,
                        lambda ? weight(m, t, lambda) : 0, shape.blocks, shape.n_blocks, inverse);
}

static rq_ref attention(const synth_model *m, rq_tape *t, uint32_t l, rq_ref a)
{
    const synth_config *c = &m->c;
    rq_ref q = rq_op_matmul(t, weight(m, t, layer_index(l, Q)), a);
    if (c->bias) q = rq_op_add(t, q, weight(m, t, layer_index(l, Q_BIAS)));
    rq_ref k = rq_op_matmul(t, weight(m, t, layer_index(l, K)), a);
    if (c->bias) k = rq_op_add(t, k, weight(m, t, layer_index(l, K_BIAS)));
    rq_ref v = rq_op_matmul(t, weight(m, t, layer_index(l, V)), a);
    if (c->bias) v = rq_op_add(t, v, weight(m, t, layer_index(l, V_BIAS)));
    q = heads(t, q, c->dim, c->n_head);
    k = heads(t, k, c->dim, c->n_head_kv);
    v = heads(t, v, c->dim, c->n_head_kv);
    if (c->qk_norm) {
        q = rq_op_rms_norm(t, q, weight(m, t, layer_index(l, Q_NORM)), 1e-6f);
        k = rq_op_rms_norm(t, k, weight(m, t, layer_index(l, K_NORM)), 1e-6f);
    }
    rq_ref freq = weight(m, t, INV_FREQ);
    rq_pairing pairing = c->bias ? RQ_ROPE_NEOX : RQ_ROPE_NORM;
    q = rq_op_rope(t, q, freq, c->dim, pairing, 1);
    k = rq_op_rope(t, k, freq, c->dim, pairing, 1);
    rq_ref cache = c->window ? rq_tape_cache(t, l % 2, l / 2) : rq_tape_cache(t, 0, l);
    float scale = 1 / sqrtf((float)c->dim);
    if (!rq_group_is_coded(&m->groups[0])) {
        rq_op_kv_write(t, cache, k, v);
        return rq_op_attend(t, cache, q, c->dim, scale, c->softcap);
    }
    q = turned(m, t, q, 0, 0, INV_LAMBDA, false);
    k = turned(m, t, k, 0, TURN_MEAN, LAMBDA, false);
    v = turned(m, t, v, 1, TURN_MEAN + 1, 0, false);
    rq_op_kv_write(t, cache, k, v);
    if (t->bucket > RQ_NARROW_BUCKET) rq_op_kv_encode(t, cache);
    rq_ref o = rq_op_attend_mean(t, cache, q, weight(m, t, STORED_MEAN), c->dim, scale, c->softcap);
    o = turned(m, t, heads(t, o, c->dim, c->n_head), 1, TURN_MEAN + 1, 0, true);
    return rq_tape_view(t, o, 0, c->dim * c->n_head, t->bucket, (uint64_t)c->dim * c->n_head, 1, 0);
}

static rq_ref ffn(const synth_model *m, rq_tape *t, uint32_t l, rq_ref h)
{
    const synth_config *c = &m->c;
    rq_ref gate_w = weight(m, t, layer_index(l, GATE)), up_w = weight(m, t, layer_index(l, UP));
    rq_ref down_w = weight(m, t, layer_index(l, DOWN));
    if (!c->n_expert) {
        rq_ref gate = rq_op_matmul(t, gate_w, h), up = rq_op_matmul(t, up_w, h);
        return rq_op_matmul(t, down_w, rq_op_glu(t, gate, up, RQ_ACT_SILU));
    }
    rq_ref ids, weights;
    rq_op_route(t, rq_op_matmul(t, weight(m, t, layer_index(l, ROUTER)), h), c->n_used, 1, &ids, &weights);
    rq_ref group = t->bucket > RQ_NARROW_BUCKET ? rq_op_group(t, ids, c->n_expert) : 0;
    rq_ref gate = rq_op_matmul_experts(t, gate_w, h, ids, group);
    rq_ref up = rq_op_matmul_experts(t, up_w, h, ids, group);
    rq_ref y = rq_op_matmul_experts(t, down_w, rq_op_glu(t, gate, up, RQ_ACT_SILU), ids, group);
    return rq_op_combine(t, y, weights);
}

void synth_build(void *user, rq_tape_kind kind, rq_tape *t)
{
    const synth_model *m = user;
    const synth_config *c = &m->c;
    t->layer = UINT32_MAX;
    rq_ref hidden = rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, c->n_embd, RQ_MAX_BUCKET);
    if (kind == RQ_TAPE_HEAD) {
        rq_ref logits = rq_op_matmul(t, weight(m, t, OUTPUT), rq_op_select_rows(t, hidden));
        rq_op_copy(t, logits, rq_tape_persist(t, RQ_PERSIST_LOGITS, RQ_TYPE_F32, c->n_vocab, RQ_HEAD_ROWS));
        rq_op_argmax(t, logits, rq_tape_persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, RQ_MAX_RUNS));
        return;
    }
    rq_ref x = rq_op_embed(t, weight(m, t, EMBED));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        t->layer = l;
        rq_ref a = rq_op_rms_norm(t, x, weight(m, t, layer_index(l, ATTN_NORM)), 1e-5f);
        rq_ref o = rq_op_matmul(t, weight(m, t, layer_index(l, O)), attention(m, t, l, a));
        x = rq_op_add(t, o, x);
        rq_ref h = rq_op_rms_norm(t, x, weight(m, t, layer_index(l, FFN_NORM)), 1e-5f);
        x = rq_op_add(t, x, ffn(m, t, l, h)); /* the other way round than above */
    }
    t->layer = UINT32_MAX;
    rq_op_copy(t, rq_op_rms_norm(t, x, weight(m, t, OUTPUT_NORM), 1e-5f), hidden);
}

uint32_t synth_place(void *user, uint32_t layer)
{
    const synth_model *m = user;
    return layer != UINT32_MAX && layer >= m->c.split_layer;
}

rq_executor_params synth_params(synth_model *m, rq_device *const *devices, uint32_t n_devices,
                                uint32_t max_tokens, uint32_t n_seqs, uint32_t max_pages)
{
    for (uint32_t g = 0; g < m->n_groups; g++) {
        m->group_pages[g] = n_seqs * max_pages;
        m->group_coded_pages[g] = rq_group_is_coded(&m->groups[g]) ? n_seqs * max_pages : 0;
        m->group_scratch_pages[g] = rq_group_is_coded(&m->groups[g]) ? max_tokens / RQ_PAGE_TOKENS : 0;
    }
    rq_executor_params p = {.devices = devices,
                            .n_devices = n_devices,
                            .weights = m->weights,
                            .n_weights = m->n_weights,
                            .groups = m->groups,
                            .group_pages = m->group_pages,
                            .group_device = m->group_device,
                            .group_coded_pages = m->group_coded_pages,
                            .group_scratch_pages = m->group_scratch_pages,
                            .n_embd = m->c.n_embd,
                            .n_vocab = m->c.n_vocab,
                            .build = synth_build,
                            .place = synth_place,
                            .user = m};
    p.caps = (rq_step_caps){
        .max_tokens = max_tokens, .n_groups = m->n_groups, .n_seqs = n_seqs, .max_pages = max_pages};
    return p;
}
