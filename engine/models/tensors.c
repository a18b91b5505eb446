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
    D_FF_EXPERT_2
} extent;

typedef enum need { OPTIONAL, REQUIRED, DENSE, EXPERTS, QK_NORM } need;

enum { VECTOR = 1 }; /* read as f32 by the kernels: F32 only */

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
    [RQ_ROLE_ATTN_QKV] = {"attn_qkv.weight", {D_EMBD, D_QKV}, OPTIONAL, 0},
    [RQ_ROLE_ATTN_QKV_BIAS] = {"attn_qkv.bias", {D_QKV}, OPTIONAL, VECTOR},
    [RQ_ROLE_ATTN_Q] = {"attn_q.weight", {D_EMBD, D_Q}, REQUIRED, 0},
    [RQ_ROLE_ATTN_K] = {"attn_k.weight", {D_EMBD, D_K}, REQUIRED, 0},
    [RQ_ROLE_ATTN_V] = {"attn_v.weight", {D_EMBD, D_V}, REQUIRED, 0},
    [RQ_ROLE_ATTN_Q_BIAS] = {"attn_q.bias", {D_Q}, OPTIONAL, VECTOR},
    [RQ_ROLE_ATTN_K_BIAS] = {"attn_k.bias", {D_K}, OPTIONAL, VECTOR},
    [RQ_ROLE_ATTN_V_BIAS] = {"attn_v.bias", {D_V}, OPTIONAL, VECTOR},
    [RQ_ROLE_ATTN_Q_NORM] = {"attn_q_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR},
    [RQ_ROLE_ATTN_K_NORM] = {"attn_k_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR},
    [RQ_ROLE_ATTN_OUTPUT] = {"attn_output.weight", {D_O, D_EMBD}, REQUIRED, 0},
    [RQ_ROLE_ATTN_OUTPUT_BIAS] = {"attn_output.bias", {D_EMBD}, OPTIONAL, VECTOR},
    [RQ_ROLE_FFN_NORM] = {"ffn_norm.weight", {D_EMBD}, REQUIRED, VECTOR},
    [RQ_ROLE_FFN_GATE] = {"ffn_gate.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_UP] = {"ffn_up.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_DOWN] = {"ffn_down.weight", {D_FF, D_EMBD}, DENSE, 0},
    [RQ_ROLE_FFN_ROUTER] = {"ffn_gate_inp.weight", {D_EMBD, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_EXPS] = {"ffn_gate_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_UP_EXPS] = {"ffn_up_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_UP_EXPS] = {"ffn_gate_up_exps.weight", {D_EMBD, D_FF_EXPERT_2, D_EXPERTS}, OPTIONAL, 0},
    [RQ_ROLE_FFN_DOWN_EXPS] = {"ffn_down_exps.weight", {D_FF_EXPERT, D_EMBD, D_EXPERTS}, EXPERTS, 0},
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
        return (uint64_t)l->n_head * hp->dim_k;
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
    case REQUIRED:
        return !((role == RQ_ROLE_ATTN_Q || role == RQ_ROLE_ATTN_K || role == RQ_ROLE_ATTN_V) &&
                 l->t[RQ_ROLE_ATTN_QKV].weight != RQ_NO_WEIGHT);
    }
    return false;
}

/* Roles that this model could not use are not looked for, so a stray tensor changes nothing. */
static bool role_possible(const rq_model *m, rq_role role)
{
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
    if (!role_possible(m, role)) return RQ_OK;

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

rq_status rq_tensors_bind(rq_model *m, rq_error *err)
{
    const rq_layer none = m->layers[0];
    rq_status s = RQ_OK;
    for (int r = 0; r < RQ_ROLE_GLOBAL_COUNT && !s; r++)
        s = bind_role(m, &none, -1, (rq_role)r, &m->global[r], err);
    if (!s && m->global[RQ_ROLE_OUTPUT].weight == RQ_NO_WEIGHT) /* tied */
        m->global[RQ_ROLE_OUTPUT] = m->global[RQ_ROLE_TOKEN_EMBD];
    for (uint32_t i = 0; i < m->hp.n_layers && !s; i++) {
        rq_layer *l = &m->layers[i];
        /* Fused roles precede the parts in the enumeration or are optional, so needs are known in order. */
        s = bind_role(m, l, (int)i, RQ_ROLE_FFN_GATE_UP_EXPS, &l->t[RQ_ROLE_FFN_GATE_UP_EXPS], err);
        for (int r = RQ_ROLE_GLOBAL_COUNT; r < RQ_ROLE_COUNT && !s; r++)
            if (r != RQ_ROLE_FFN_GATE_UP_EXPS) s = bind_role(m, l, (int)i, (rq_role)r, &l->t[r], err);
        if (!s) s = split_fused(m, l, err);
        if (!s) s = assign_group(m, l, err);
    }
    return s;
}
