/* tensors.c - finds the tensors of a file by role, checks their shapes against the hyper-parameters, and
 * forms the weight table and the cache groups. */
#include "backends/base/mem.h"
#include "engine/models/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Extents that shapes are made of. */
typedef enum extent {
    D_ONE,
    D_EMBD,
    D_VOCAB,
    D_ROT_PAIRS,
    D_HEAD_K, /* size of a key head */
    D_Q,      /* all query heads */
    D_K,      /* all key heads */
    D_V,      /* all value heads */
    D_QKV,    /* D_Q + D_K + D_V */
    D_O,      /* query heads x value head size */
    D_FF,
    D_EXPERTS,
    D_FF_EXPERT,
    D_FF_EXPERT_2,
    D_FF_SHARED,
    D_TAPS,
    D_STATE, /* size of a delta rule's head */
    D_STATE_HEADS,
    D_STATE_V, /* all its value heads */
    D_STATE_QKV,
    D_EMBD_2
} extent;

typedef enum need { OPTIONAL, REQUIRED, DENSE, EXPERTS, QK_NORM, SHARED, HYBRID, PLAIN } need;

enum {
    VECTOR = 1, /* read as f32 by the kernels: F32 only */
    ATTENTION = 2,
    DELTA = 4, /* attention or recurrent layers only */
    MTP = 8    /* blocks behind the trunk only */
};

typedef struct role_row {
    const char *name; /* after "blk.N." for layers */
    extent dims[3];
    need need;
    unsigned flags;
} role_row;

/* Names as in GGUF files; shapes [contiguous, rows, experts]. */
static const role_row ROLES[RQ_ROLE_COUNT] = {
    [RQ_ROLE_TOKEN_EMBD] = {"token_embd.weight", {D_EMBD, D_VOCAB}, REQUIRED, 0},
    [RQ_ROLE_OUTPUT_NORM] = {"output_norm.weight", {D_EMBD}, REQUIRED, VECTOR},
    [RQ_ROLE_OUTPUT] = {"output.weight", {D_EMBD, D_VOCAB}, OPTIONAL, 0},
    [RQ_ROLE_OUTPUT_BIAS] = {"output.bias", {D_VOCAB}, OPTIONAL, VECTOR},
    [RQ_ROLE_ROPE_FREQS] = {"rope_freqs.weight", {D_ROT_PAIRS}, OPTIONAL, VECTOR},
    [RQ_ROLE_ATTN_NORM] = {"attn_norm.weight", {D_EMBD}, REQUIRED, VECTOR},
    [RQ_ROLE_ATTN_QKV] = {"attn_qkv.weight", {D_EMBD, D_QKV}, OPTIONAL, ATTENTION},
    [RQ_ROLE_ATTN_QKV_BIAS] = {"attn_qkv.bias", {D_QKV}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_Q] = {"attn_q.weight", {D_EMBD, D_Q}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_K] = {"attn_k.weight", {D_EMBD, D_K}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_V] = {"attn_v.weight", {D_EMBD, D_V}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_Q_BIAS] = {"attn_q.bias", {D_Q}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_K_BIAS] = {"attn_k.bias", {D_K}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_V_BIAS] = {"attn_v.bias", {D_V}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_Q_NORM] = {"attn_q_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_K_NORM] = {"attn_k_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_OUTPUT] = {"attn_output.weight", {D_O, D_EMBD}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_OUTPUT_BIAS] = {"attn_output.bias", {D_EMBD}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_FFN_NORM] = {"ffn_norm.weight", {D_EMBD}, PLAIN, VECTOR},
    [RQ_ROLE_POST_ATTENTION_NORM] = {"post_attention_norm.weight", {D_EMBD}, HYBRID, VECTOR},
    [RQ_ROLE_FFN_GATE] = {"ffn_gate.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_UP] = {"ffn_up.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_DOWN] = {"ffn_down.weight", {D_FF, D_EMBD}, DENSE, 0},
    [RQ_ROLE_FFN_ROUTER] = {"ffn_gate_inp.weight", {D_EMBD, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_EXPS] = {"ffn_gate_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_UP_EXPS] = {"ffn_up_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_UP_EXPS] = {"ffn_gate_up_exps.weight", {D_EMBD, D_FF_EXPERT_2, D_EXPERTS}, OPTIONAL, 0},
    [RQ_ROLE_FFN_DOWN_EXPS] = {"ffn_down_exps.weight", {D_FF_EXPERT, D_EMBD, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_SHARED_ROUTER] = {"ffn_gate_inp_shexp.weight", {D_EMBD}, SHARED, 0},
    [RQ_ROLE_SHARED_GATE] = {"ffn_gate_shexp.weight", {D_EMBD, D_FF_SHARED}, SHARED, 0},
    [RQ_ROLE_SHARED_UP] = {"ffn_up_shexp.weight", {D_EMBD, D_FF_SHARED}, SHARED, 0},
    [RQ_ROLE_SHARED_DOWN] = {"ffn_down_shexp.weight", {D_FF_SHARED, D_EMBD}, SHARED, 0},
    [RQ_ROLE_DELTA_QKV] = {"attn_qkv.weight", {D_EMBD, D_STATE_QKV}, HYBRID, DELTA},
    [RQ_ROLE_DELTA_GATE] = {"attn_gate.weight", {D_EMBD, D_STATE_V}, HYBRID, DELTA},
    [RQ_ROLE_DELTA_CONV] = {"ssm_conv1d.weight", {D_TAPS, D_STATE_QKV}, HYBRID, VECTOR | DELTA},
    [RQ_ROLE_DELTA_ALPHA] = {"ssm_alpha.weight", {D_EMBD, D_STATE_HEADS}, HYBRID, DELTA},
    [RQ_ROLE_DELTA_BETA] = {"ssm_beta.weight", {D_EMBD, D_STATE_HEADS}, HYBRID, DELTA},
    [RQ_ROLE_DELTA_OFFSET] = {"ssm_dt.bias", {D_STATE_HEADS}, HYBRID, VECTOR | DELTA},
    [RQ_ROLE_DELTA_RATE] = {"ssm_a", {D_STATE_HEADS}, HYBRID, VECTOR | DELTA},
    [RQ_ROLE_DELTA_NORM] = {"ssm_norm.weight", {D_STATE}, HYBRID, VECTOR | DELTA},
    [RQ_ROLE_DELTA_OUTPUT] = {"ssm_out.weight", {D_STATE_V, D_EMBD}, HYBRID, DELTA},
    [RQ_ROLE_MTP_PROJECTION] = {"nextn.eh_proj.weight", {D_EMBD_2, D_EMBD}, HYBRID, MTP},
    [RQ_ROLE_MTP_EMBD_NORM] = {"nextn.enorm.weight", {D_EMBD}, HYBRID, VECTOR | MTP},
    [RQ_ROLE_MTP_HIDDEN_NORM] = {"nextn.hnorm.weight", {D_EMBD}, HYBRID, VECTOR | MTP},
    [RQ_ROLE_MTP_HEAD_NORM] = {"nextn.shared_head_norm.weight", {D_EMBD}, OPTIONAL, VECTOR | MTP},
    [RQ_ROLE_MTP_TOKEN_EMBD] = {"nextn.embed_tokens.weight", {D_EMBD, D_VOCAB}, OPTIONAL, MTP},
    [RQ_ROLE_MTP_OUTPUT] = {"nextn.shared_head_head.weight", {D_EMBD, D_VOCAB}, OPTIONAL, MTP},
};

static uint64_t extent_of(const rq_model *m, const rq_layer *l, extent e)
{
    const rq_hparams *hp = &m->hp;
    switch (e) {
    case D_ONE:
        return 1;
    case D_EMBD:
        return hp->n_embd;
    case D_VOCAB:
        return hp->n_vocab;
    case D_ROT_PAIRS:
        return hp->n_rot / 2;
    case D_HEAD_K:
        return hp->dim_k;
    case D_Q:
        return (uint64_t)l->n_head * hp->dim_k * (m->family->gated ? 2 : 1);
    case D_K:
        return (uint64_t)l->n_head_kv * hp->dim_k;
    case D_V:
        return (uint64_t)l->n_head_kv * hp->dim_v;
    case D_QKV:
        return extent_of(m, l, D_Q) + extent_of(m, l, D_K) + extent_of(m, l, D_V);
    case D_O:
        return (uint64_t)l->n_head * hp->dim_v;
    case D_FF:
        return l->n_ff;
    case D_EXPERTS:
        return hp->n_expert;
    case D_FF_EXPERT:
        return hp->n_ff_expert;
    case D_FF_EXPERT_2:
        return 2 * (uint64_t)hp->n_ff_expert;
    case D_FF_SHARED:
        return hp->n_ff_shared;
    case D_TAPS:
        return hp->conv_taps;
    case D_STATE:
        return hp->state_dim;
    case D_STATE_HEADS:
        return hp->n_value_heads;
    case D_STATE_V:
        return (uint64_t)hp->n_value_heads * hp->state_dim;
    case D_STATE_QKV:
        return (2ull * hp->n_key_heads + hp->n_value_heads) * hp->state_dim;
    case D_EMBD_2:
        return 2ull * hp->n_embd;
    }
    return 0;
}

rq_status rq_model_add_weight(rq_model *m, const char *name, rq_type type, const uint32_t ne[4],
                              const void *host, uint64_t bytes, uint32_t *index, rq_error *err)
{
    size_t cap = m->cap_weights;
    if (!rq_grow((void **)&m->weights, &cap, (size_t)m->n_weights + 1, sizeof *m->weights))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the weight table");
    m->cap_weights = (uint32_t)cap;
    *index = m->n_weights++;
    m->weights[*index] = (rq_weight){
        .name = name, .type = type, .host = host, .bytes = bytes, .ne = {ne[0], ne[1], ne[2], ne[3]}};
    return RQ_OK;
}

/* "X.weight" may come with "X.scale", which multiplies the product (NVFP4 files). */
static rq_status read_scale(const rq_model *m, const char *name, rq_tensor_ref *ref, rq_error *err)
{
    ref->scale = 1.0f;
    size_t n = strlen(name);
    if (n < 7 || strcmp(name + n - 7, ".weight") != 0) return RQ_OK;
    char sibling[96];
    snprintf(sibling, sizeof sibling, "%.*s.scale", (int)(n - 7), name);
    const rq_gguf_tensor *t = rq_gguf_find_tensor(m->gguf, sibling);
    if (!t) return RQ_OK;
    if (t->type != RQ_TYPE_F32 || t->n_elems == 0)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is not a list of F32 numbers",
                       rq_gguf_label(m->gguf), sibling);
    float first;
    memcpy(&first, t->data, sizeof first);
    for (uint64_t i = 0; i < t->n_elems; i++) {
        float x;
        memcpy(&x, t->data + i * sizeof x, sizeof x);
        if (!isfinite(x))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s holds a number that is not finite",
                           rq_gguf_label(m->gguf), sibling);
        if (x != first)
            return rq_fail(err, RQ_ERR_UNSUPPORTED,
                           "%s: tensor %s scales experts differently, which cannot be run",
                           rq_gguf_label(m->gguf), sibling);
    }
    ref->scale = first;
    return RQ_OK;
}

static bool role_needed(const rq_model *m, const rq_layer *l, rq_role role)
{
    switch (ROLES[role].need) {
    case OPTIONAL:
        return false;
    case DENSE:
        return m->hp.n_expert == 0;
    case EXPERTS:
        if ((role == RQ_ROLE_FFN_GATE_EXPS || role == RQ_ROLE_FFN_UP_EXPS) &&
            l->t[RQ_ROLE_FFN_GATE_UP_EXPS].weight != RQ_NO_WEIGHT)
            return false;
        return m->hp.n_expert != 0;
    case QK_NORM:
        return m->family->qk_norm;
    case SHARED:
        return m->family->shared;
    case HYBRID:
        return m->family->hybrid;
    case PLAIN:
        return !m->family->hybrid;
    case REQUIRED:
        return !((role == RQ_ROLE_ATTN_Q || role == RQ_ROLE_ATTN_K || role == RQ_ROLE_ATTN_V) &&
                 l->t[RQ_ROLE_ATTN_QKV].weight != RQ_NO_WEIGHT);
    }
    return false;
}

/* Roles that this model could not use are not looked for, so a stray tensor changes nothing. */
static bool role_possible(const rq_model *m, const rq_layer *l, rq_role role)
{
    unsigned flags = ROLES[role].flags;
    if ((flags & ATTENTION) && l->mixer != RQ_MIXER_ATTENTION) return false;
    if ((flags & DELTA) && l->mixer != RQ_MIXER_DELTA) return false;
    if ((flags & MTP) && !l->mtp) return false;
    if (ROLES[role].need == SHARED) return m->family->shared;
    if (ROLES[role].need == HYBRID) return m->family->hybrid;
    if (ROLES[role].need == PLAIN) return !m->family->hybrid;
    /* a fused product cannot hold gates, and hybrids give the name to another tensor */
    if (m->family->hybrid && (role == RQ_ROLE_ATTN_QKV || ROLES[role].need == OPTIONAL) && !(flags & MTP) &&
        role != RQ_ROLE_OUTPUT && role != RQ_ROLE_FFN_GATE_UP_EXPS)
        return false;
    bool experts = role >= RQ_ROLE_FFN_ROUTER && role <= RQ_ROLE_FFN_DOWN_EXPS;
    if (experts) return m->hp.n_expert != 0;
    if (ROLES[role].need == DENSE) return m->hp.n_expert == 0;
    if (ROLES[role].need == QK_NORM) return m->family->qk_norm;
    return true;
}

static rq_status bind_role(rq_model *m, const rq_layer *l, int layer, rq_role role, rq_tensor_ref *ref,
                           rq_error *err)
{
    const role_row *row = &ROLES[role];
    const char *label = rq_gguf_label(m->gguf);
    *ref = (rq_tensor_ref){.weight = RQ_NO_WEIGHT, .scale = 1.0f};
    if (!role_possible(m, l, role)) return RQ_OK;

    char name[80];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", row->name);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, row->name);
    const rq_gguf_tensor *t = rq_gguf_find_tensor(m->gguf, name);
    if (!t) {
        if (role_needed(m, l, role))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is missing", label, name);
        return RQ_OK;
    }
    uint64_t want[4] = {1, 1, 1, 1};
    for (int i = 0; i < 3; i++) want[i] = extent_of(m, l, row->dims[i]);
    for (int i = 0; i < 4; i++)
        if (t->ne[i] != want[i])
            return rq_fail(err, RQ_ERR_FORMAT,
                           "%s: tensor %s has shape [%llu, %llu, %llu], the metadata says [%llu, %llu, %llu]",
                           label, name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                           (unsigned long long)t->ne[2], (unsigned long long)want[0],
                           (unsigned long long)want[1], (unsigned long long)want[2]);
    const rq_type_info *info = rq_type_get(t->type);
    if (row->flags & VECTOR ? t->type != RQ_TYPE_F32 : !info->is_weight)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: tensor %s has type %s, which cannot be used there",
                       label, t->name, info->name);
    if ((row->flags & VECTOR) && (uintptr_t)t->data % sizeof(float))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: tensor %s is not aligned to 4 bytes", label, t->name);
    rq_status s = read_scale(m, t->name, ref, err);
    if (s) return s;
    m->n_params += t->n_elems;
    const uint32_t ne[4] = {(uint32_t)t->ne[0], (uint32_t)t->ne[1], (uint32_t)t->ne[2], (uint32_t)t->ne[3]};
    return rq_model_add_weight(m, t->name, t->type, ne, t->data, t->nbytes, &ref->weight, err);
}

/* Makes `ref` the rows [first, first + count) of every matrix in `whole`. */
static rq_status take_rows(rq_model *m, const rq_tensor_ref *whole, uint32_t first, uint32_t count,
                           rq_tensor_ref *ref, rq_error *err)
{
    rq_weight w = m->weights[whole->weight];
    uint32_t ne[4] = {w.ne[0], count, w.ne[2], w.ne[3]};
    uint64_t row = rq_row_bytes(w.type, w.ne[0]), stride = row * w.ne[1];
    if (w.ne[1] == 1) { /* a vector: its elements are the rows */
        row = rq_row_bytes(w.type, 1);
        ne[0] = count;
        ne[1] = 1;
        stride = 0;
    }
    uint64_t bytes = w.ne[2] > 1 ? w.bytes - first * row : row * count;
    *ref = (rq_tensor_ref){.scale = whole->scale, .expert_stride = w.ne[2] > 1 ? stride : 0};
    return rq_model_add_weight(m, w.name, w.type, ne, (const char *)w.host + first * row, bytes, &ref->weight,
                               err);
}

static rq_status split_fused(rq_model *m, rq_layer *l, rq_error *err)
{
    uint32_t nq = l->n_head * m->hp.dim_k, nk = l->n_head_kv * m->hp.dim_k, nv = l->n_head_kv * m->hp.dim_v;
    rq_status s = RQ_OK;
    for (int bias = 0; bias < 2 && !s; bias++) {
        const rq_tensor_ref whole = l->t[bias ? RQ_ROLE_ATTN_QKV_BIAS : RQ_ROLE_ATTN_QKV];
        if (whole.weight == RQ_NO_WEIGHT) continue;
        s = take_rows(m, &whole, 0, nq, &l->t[bias ? RQ_ROLE_ATTN_Q_BIAS : RQ_ROLE_ATTN_Q], err);
        if (!s) s = take_rows(m, &whole, nq, nk, &l->t[bias ? RQ_ROLE_ATTN_K_BIAS : RQ_ROLE_ATTN_K], err);
        if (!s)
            s = take_rows(m, &whole, nq + nk, nv, &l->t[bias ? RQ_ROLE_ATTN_V_BIAS : RQ_ROLE_ATTN_V], err);
    }
    const rq_tensor_ref gate_up = l->t[RQ_ROLE_FFN_GATE_UP_EXPS];
    if (!s && gate_up.weight != RQ_NO_WEIGHT) {
        s = take_rows(m, &gate_up, 0, m->hp.n_ff_expert, &l->t[RQ_ROLE_FFN_GATE_EXPS], err);
        if (!s)
            s = take_rows(m, &gate_up, m->hp.n_ff_expert, m->hp.n_ff_expert, &l->t[RQ_ROLE_FFN_UP_EXPS], err);
    }
    return s;
}

/* Layers with equal KV shape share a group. */
static rq_status assign_group(rq_model *m, rq_layer *l, rq_error *err)
{
    for (uint32_t g = 0; g < m->n_groups; g++)
        if (m->groups[g].n_heads == l->n_head_kv) {
            l->group = g;
            l->group_layer = m->groups[g].n_layers++;
            return RQ_OK;
        }
    if (m->n_groups == RQ_MAX_GROUPS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: more than %d different key/value shapes",
                       rq_gguf_label(m->gguf), RQ_MAX_GROUPS);
    l->group = m->n_groups++;
    l->group_layer = 0;
    m->groups[l->group] = (rq_cache_group){.n_layers = 1,
                                           .n_heads = l->n_head_kv,
                                           .dim_k = m->hp.dim_k,
                                           .dim_v = m->hp.dim_v,
                                           .type_k = RQ_TYPE_F16,
                                           .type_v = RQ_TYPE_F16};
    return RQ_OK;
}

/* The convolution's weights [taps, channels] with a row for each tap. */
static rq_status turn_conv(rq_model *m, rq_layer *l, rq_error *err)
{
    rq_tensor_ref *ref = &l->t[RQ_ROLE_DELTA_CONV];
    const rq_weight w = m->weights[ref->weight];
    uint32_t taps = w.ne[0], channels = w.ne[1];
    if (!rq_grow((void **)&m->tables, &m->cap_tables, m->n_tables + 1, sizeof *m->tables))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the convolution of a layer");
    float *to = rq_malloc((size_t)taps * channels * sizeof *to);
    if (!to) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the convolution of a layer");
    m->tables[m->n_tables++] = to;
    const float *from = w.host;
    for (uint32_t c = 0; c < channels; c++)
        for (uint32_t j = 0; j < taps; j++) to[(size_t)j * channels + c] = from[(size_t)c * taps + j];
    const uint32_t ne[4] = {channels, taps, 1, 1};
    return rq_model_add_weight(m, w.name, RQ_TYPE_F32, ne, to, w.bytes, &ref->weight, err);
}

/* All recurrent layers have the same shapes. */
static void assign_state(rq_model *m, rq_layer *l)
{
    const rq_hparams *hp = &m->hp;
    m->n_states = 1;
    l->group = 0;
    l->group_layer = m->states[0].n_layers;
    m->states[0] =
        (rq_state_group){.n_layers = l->group_layer + 1,
                         .conv_channels = (2 * hp->n_key_heads + hp->n_value_heads) * hp->state_dim,
                         .conv_taps = hp->conv_taps,
                         .n_heads = hp->n_value_heads,
                         .dim_k = hp->state_dim,
                         .dim_v = hp->state_dim};
}

/* "X.scale" beside "X.weight" is known with it; "X.input_scale" is for others. */
static bool is_known(const rq_model *m, const char *name)
{
    const char *dot = strrchr(name, '.');
    char weight[96];
    if (dot && (strcmp(dot, ".scale") == 0 || strcmp(dot, ".input_scale") == 0)) {
        snprintf(weight, sizeof weight, "%.*s.weight", (int)(dot - name), name);
        name = weight;
    }
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (strcmp(m->weights[i].name, name) == 0) return true;
    return false;
}

static rq_status refuse_surplus(const rq_model *m, rq_error *err)
{
    for (uint64_t i = 0; i < rq_gguf_n_tensors(m->gguf); i++) {
        const char *name = rq_gguf_tensor_at(m->gguf, i)->name;
        if (!is_known(m, name))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is not part of a %s model of these sizes",
                           rq_gguf_label(m->gguf), name, m->arch);
    }
    return RQ_OK;
}

rq_status rq_tensors_bind(rq_model *m, rq_error *err)
{
    const rq_layer none = m->layers[0];
    rq_status s = RQ_OK;
    for (int r = 0; r < RQ_ROLE_GLOBAL_COUNT && !s; r++)
        s = bind_role(m, &none, -1, (rq_role)r, &m->global[r], err);
    if (!s && m->global[RQ_ROLE_OUTPUT].weight == RQ_NO_WEIGHT) /* tied */
        m->global[RQ_ROLE_OUTPUT] = m->global[RQ_ROLE_TOKEN_EMBD];
    for (uint32_t i = 0; i < m->hp.n_layers + m->hp.n_mtp && !s; i++) {
        rq_layer *l = &m->layers[i];
        /* Fused roles precede the parts in the enumeration or are optional, so needs are known in order. */
        s = bind_role(m, l, (int)i, RQ_ROLE_FFN_GATE_UP_EXPS, &l->t[RQ_ROLE_FFN_GATE_UP_EXPS], err);
        for (int r = RQ_ROLE_GLOBAL_COUNT; r < RQ_ROLE_COUNT && !s; r++)
            if (r != RQ_ROLE_FFN_GATE_UP_EXPS) s = bind_role(m, l, (int)i, (rq_role)r, &l->t[r], err);
        if (!s) s = split_fused(m, l, err);
        if (!s && l->mixer == RQ_MIXER_DELTA) {
            assign_state(m, l);
            s = turn_conv(m, l, err);
        } else if (!s && !l->mtp) {
            s = assign_group(m, l, err);
        }
    }
    return !s && m->family->strict ? refuse_surplus(m, err) : s;
}
