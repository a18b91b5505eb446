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
    D_EMBD_2,
    D_PLE, /* embeddings of a layer */
    D_PLE_ALL
} extent;

typedef enum role_need {
    OPTIONAL,
    REQUIRED,
    DENSE,
    EXPERTS,
    QK_NORM,
    SHARED,
    HYBRID,
    PLAIN,     /* not hybrid */
    POST_NORM, /* hybrid or gemma */
    GEMMA,
    ONE_SCALE,  /* gemma4: in all layers or in none */
    BESIDE,     /* gemma4: experts beside a dense block */
    PER_LAYER,  /* gemma4: embeddings per layer */
    FREQUENCIES /* gemma4, and optional in others */
} role_need;

enum {
    VECTOR = 1, /* read as f32 by the kernels: F32 only */
    ATTENTION = 2,
    DELTA = 4,   /* attention or recurrent layers only */
    MTP = 8,     /* blocks behind the trunk only */
    STRICT = 16, /* optional even in families that refuse what they do not know */
    KEPT = 32    /* only in layers that keep keys and values of their own */
};

typedef struct role_row {
    const char *name; /* after "blk.N." for layers */
    extent dims[3];
    role_need need;
    unsigned flags;
} role_row;

/* Names as in GGUF files; shapes [contiguous, rows, experts]. */
static const role_row ROLES[RQ_ROLE_COUNT] = {
    [RQ_ROLE_TOKEN_EMBD] = {"token_embd.weight", {D_EMBD, D_VOCAB}, REQUIRED, 0},
    [RQ_ROLE_OUTPUT_NORM] = {"output_norm.weight", {D_EMBD}, REQUIRED, VECTOR},
    [RQ_ROLE_OUTPUT] = {"output.weight", {D_EMBD, D_VOCAB}, OPTIONAL, STRICT},
    [RQ_ROLE_OUTPUT_BIAS] = {"output.bias", {D_VOCAB}, OPTIONAL, VECTOR},
    [RQ_ROLE_ROPE_FREQS] = {"rope_freqs.weight", {D_ROT_PAIRS}, FREQUENCIES, VECTOR},
    [RQ_ROLE_PLE_TOKEN_EMBD] = {"per_layer_token_embd.weight", {D_PLE_ALL, D_VOCAB}, PER_LAYER, 0},
    [RQ_ROLE_PLE_PROJECTION] = {"per_layer_model_proj.weight", {D_EMBD, D_PLE_ALL}, PER_LAYER, 0},
    [RQ_ROLE_PLE_NORM] = {"per_layer_proj_norm.weight", {D_PLE}, PER_LAYER, VECTOR},
    [RQ_ROLE_ATTN_NORM] = {"attn_norm.weight", {D_EMBD}, REQUIRED, VECTOR},
    [RQ_ROLE_ATTN_QKV] = {"attn_qkv.weight", {D_EMBD, D_QKV}, OPTIONAL, ATTENTION},
    [RQ_ROLE_ATTN_QKV_BIAS] = {"attn_qkv.bias", {D_QKV}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_Q] = {"attn_q.weight", {D_EMBD, D_Q}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_K] = {"attn_k.weight", {D_EMBD, D_K}, REQUIRED, ATTENTION | KEPT},
    [RQ_ROLE_ATTN_V] = {"attn_v.weight", {D_EMBD, D_V}, REQUIRED, ATTENTION | KEPT},
    [RQ_ROLE_ATTN_Q_BIAS] = {"attn_q.bias", {D_Q}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_K_BIAS] = {"attn_k.bias", {D_K}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_V_BIAS] = {"attn_v.bias", {D_V}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_Q_NORM] = {"attn_q_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR | ATTENTION},
    [RQ_ROLE_ATTN_K_NORM] = {"attn_k_norm.weight", {D_HEAD_K}, QK_NORM, VECTOR | ATTENTION | KEPT},
    [RQ_ROLE_ATTN_OUTPUT] = {"attn_output.weight", {D_O, D_EMBD}, REQUIRED, ATTENTION},
    [RQ_ROLE_ATTN_OUTPUT_BIAS] = {"attn_output.bias", {D_EMBD}, OPTIONAL, VECTOR | ATTENTION},
    [RQ_ROLE_FFN_NORM] = {"ffn_norm.weight", {D_EMBD}, PLAIN, VECTOR},
    [RQ_ROLE_POST_ATTENTION_NORM] = {"post_attention_norm.weight", {D_EMBD}, POST_NORM, VECTOR},
    [RQ_ROLE_POST_FFN_NORM] = {"post_ffw_norm.weight", {D_EMBD}, GEMMA, VECTOR},
    [RQ_ROLE_LAYER_SCALE] = {"layer_output_scale.weight", {D_ONE}, ONE_SCALE, VECTOR},
    [RQ_ROLE_FFN_GATE] = {"ffn_gate.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_UP] = {"ffn_up.weight", {D_EMBD, D_FF}, DENSE, 0},
    [RQ_ROLE_FFN_DOWN] = {"ffn_down.weight", {D_FF, D_EMBD}, DENSE, 0},
    [RQ_ROLE_FFN_ROUTER] = {"ffn_gate_inp.weight", {D_EMBD, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_EXPS] = {"ffn_gate_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_UP_EXPS] = {"ffn_up_exps.weight", {D_EMBD, D_FF_EXPERT, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_FFN_GATE_UP_EXPS] = {"ffn_gate_up_exps.weight",
                                  {D_EMBD, D_FF_EXPERT_2, D_EXPERTS},
                                  OPTIONAL,
                                  STRICT},
    [RQ_ROLE_FFN_DOWN_EXPS] = {"ffn_down_exps.weight", {D_FF_EXPERT, D_EMBD, D_EXPERTS}, EXPERTS, 0},
    [RQ_ROLE_ROUTER_SCALE] = {"ffn_gate_inp.scale", {D_EMBD}, BESIDE, VECTOR},
    [RQ_ROLE_EXPERTS_SCALE] = {"ffn_down_exps.scale", {D_EXPERTS}, BESIDE, VECTOR},
    [RQ_ROLE_EXPERTS_NORM] = {"pre_ffw_norm_2.weight", {D_EMBD}, BESIDE, VECTOR},
    [RQ_ROLE_POST_EXPERTS_NORM] = {"post_ffw_norm_2.weight", {D_EMBD}, BESIDE, VECTOR},
    [RQ_ROLE_POST_DENSE_NORM] = {"post_ffw_norm_1.weight", {D_EMBD}, BESIDE, VECTOR},
    [RQ_ROLE_PLE_GATE] = {"inp_gate.weight", {D_EMBD, D_PLE}, PER_LAYER, 0},
    [RQ_ROLE_PLE_OUTPUT] = {"proj.weight", {D_PLE, D_EMBD}, PER_LAYER, 0},
    [RQ_ROLE_PLE_POST_NORM] = {"post_norm.weight", {D_EMBD}, PER_LAYER, VECTOR},
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
    [RQ_ROLE_MTP_HEAD_NORM] = {"nextn.shared_head_norm.weight", {D_EMBD}, OPTIONAL, VECTOR | MTP | STRICT},
    [RQ_ROLE_MTP_TOKEN_EMBD] = {"nextn.embed_tokens.weight", {D_EMBD, D_VOCAB}, OPTIONAL, MTP | STRICT},
    [RQ_ROLE_MTP_OUTPUT] = {"nextn.shared_head_head.weight", {D_EMBD, D_VOCAB}, OPTIONAL, MTP | STRICT},
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
        return l->dim_k;
    case D_Q:
        return (uint64_t)l->n_head * l->dim_k * (m->family->gated ? 2 : 1);
    case D_K:
        return (uint64_t)l->n_head_kv * l->dim_k;
    case D_V:
        return (uint64_t)l->n_head_kv * l->dim_v;
    case D_QKV:
        return extent_of(m, l, D_Q) + extent_of(m, l, D_K) + extent_of(m, l, D_V);
    case D_O:
        return (uint64_t)l->n_head * l->dim_v;
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
    case D_PLE:
        return hp->n_ple;
    case D_PLE_ALL:
        return (uint64_t)hp->n_ple * hp->n_layers;
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

/* Has this model tensors of this kind? */
static bool need_applies(const rq_model *m, role_need need)
{
    const rq_family *f = m->family;
    switch (need) {
    case OPTIONAL:
    case REQUIRED:
        return true;
    case DENSE:
        return m->hp.n_expert == 0 || f->gemma4;
    case EXPERTS:
        return m->hp.n_expert != 0;
    case QK_NORM:
        return f->qk_norm;
    case SHARED:
        return f->shared;
    case HYBRID:
        return f->hybrid;
    case PLAIN:
        return !f->hybrid;
    case POST_NORM:
        return f->hybrid || f->gemma;
    case GEMMA:
        return f->gemma;
    case ONE_SCALE:
        return f->gemma4;
    case BESIDE:
        return f->gemma4 && m->hp.n_expert != 0;
    case PER_LAYER:
        return m->hp.n_ple != 0;
    case FREQUENCIES:
        return f->gemma4 || !f->strict;
    }
    return false;
}

static bool role_needed(const rq_model *m, const rq_layer *l, rq_role role)
{
    switch (ROLES[role].need) {
    case OPTIONAL:
    case ONE_SCALE:
        return false;
    case FREQUENCIES:
        return m->family->gemma4;
    case EXPERTS:
        return !((role == RQ_ROLE_FFN_GATE_EXPS || role == RQ_ROLE_FFN_UP_EXPS) &&
                 l->t[RQ_ROLE_FFN_GATE_UP_EXPS].weight != RQ_NO_WEIGHT);
    case REQUIRED:
        /* Gemma 4's layers that see everything may have no values of their own: check_choices */
        if (role == RQ_ROLE_ATTN_V && m->family->gemma4 && l->window == 0) return false;
        return !((role == RQ_ROLE_ATTN_Q || role == RQ_ROLE_ATTN_K || role == RQ_ROLE_ATTN_V) &&
                 l->t[RQ_ROLE_ATTN_QKV].weight != RQ_NO_WEIGHT);
    default:
        return true;
    }
}

/* Roles that this model could not use are not looked for: their tensors are strangers, which refuse_surplus names. */
static bool role_possible(const rq_model *m, const rq_layer *l, rq_role role)
{
    unsigned flags = ROLES[role].flags;
    if ((flags & ATTENTION) && l->mixer != RQ_MIXER_ATTENTION) return false;
    if ((flags & DELTA) && l->mixer != RQ_MIXER_DELTA) return false;
    if ((flags & MTP) && !l->mtp) return false;
    if (!need_applies(m, ROLES[role].need)) return false;
    if (m->family->strict && ROLES[role].need == OPTIONAL && !(flags & STRICT)) return false;
    return role < RQ_ROLE_FFN_ROUTER || role > RQ_ROLE_FFN_DOWN_EXPS || m->hp.n_expert != 0;
}

/* A tensor that files have and nobody uses: keys and values of a layer that attends to another's. */
static bool role_unused(const rq_model *m, const rq_layer *l, rq_role role)
{
    return (ROLES[role].flags & KEPT) && &m->layers[l->kv_layer] != l;
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
        if (role_needed(m, l, role) && !role_unused(m, l, role))
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
    if (role_unused(m, l, role)) return RQ_OK;
    /* gemma4 means something else by the scales beside these */
    bool scaled = !(m->family->gemma4 && (role == RQ_ROLE_FFN_ROUTER || role == RQ_ROLE_FFN_DOWN_EXPS));
    rq_status s = scaled ? read_scale(m, t->name, ref, err) : RQ_OK;
    if (s) return s;
    m->n_params += t->n_elems;
    const uint32_t ne[4] = {(uint32_t)t->ne[0], (uint32_t)t->ne[1], (uint32_t)t->ne[2], (uint32_t)t->ne[3]};
    return rq_model_add_weight(m, t->name, t->type, ne, t->data, t->nbytes, &ref->weight, err);
}

float *rq_model_own_table(rq_model *m, size_t n)
{
    if (!rq_grow((void **)&m->tables, &m->cap_tables, m->n_tables + 1, sizeof *m->tables)) return NULL;
    float *x = rq_malloc(n * sizeof *x);
    if (x) m->tables[m->n_tables++] = x;
    return x;
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
    uint32_t nq = l->n_head * l->dim_k, nk = l->n_head_kv * l->dim_k, nv = l->n_head_kv * l->dim_v;
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
    for (uint32_t g = 0; g < m->n_groups; g++) {
        rq_cache_group *own = &m->groups[g];
        if (own->n_heads != l->n_head_kv || own->dim_k != l->dim_k || own->dim_v != l->dim_v ||
            own->window != l->window)
            continue;
        l->group = g;
        l->group_layer = own->n_layers++;
        return RQ_OK;
    }
    if (m->n_groups == RQ_MAX_GROUPS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: more than %d different key/value shapes",
                       rq_gguf_label(m->gguf), RQ_MAX_GROUPS);
    l->group = m->n_groups++;
    l->group_layer = 0;
    m->groups[l->group] = (rq_cache_group){.n_layers = 1,
                                           .n_heads = l->n_head_kv,
                                           .dim_k = l->dim_k,
                                           .dim_v = l->dim_v,
                                           .window = l->window,
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
    float *to = rq_model_own_table(m, (size_t)taps * channels);
    if (!to) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the convolution of a layer");
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
                         .dim_v = hp->state_dim,
                         .n_key_heads = hp->n_key_heads};
}

/* What gemma4 keeps as a number of one layer or of one expert. */
static rq_status take_scales(rq_model *m, rq_layer *l, rq_error *err)
{
    rq_tensor_ref *experts = &l->t[RQ_ROLE_EXPERTS_SCALE];
    if (l->t[RQ_ROLE_LAYER_SCALE].weight != RQ_NO_WEIGHT) {
        const rq_weight *w = &m->weights[l->t[RQ_ROLE_LAYER_SCALE].weight];
        memcpy(&l->result_scale, w->host, sizeof l->result_scale);
        if (!isfinite(l->result_scale))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is not a finite number", rq_gguf_label(m->gguf),
                           w->name);
    }
    if (experts->weight == RQ_NO_WEIGHT) return RQ_OK;
    const rq_weight w = m->weights[experts->weight];
    const uint32_t ne[4] = {1, 1, w.ne[0], 1}; /* a matrix for each expert */
    return rq_model_add_weight(m, w.name, w.type, ne, w.host, w.bytes, &experts->weight, err);
}

/* What the layers of a file have all of them or none. */
static rq_status check_choices(const rq_model *m, rq_error *err)
{
    static const rq_role choices[] = {RQ_ROLE_LAYER_SCALE, RQ_ROLE_ATTN_V};
    for (size_t c = 0; c < sizeof choices / sizeof *choices; c++) {
        uint32_t with = UINT32_MAX, without = UINT32_MAX;
        for (uint32_t i = 0; i < m->hp.n_layers; i++) {
            const rq_layer *l = &m->layers[i];
            if (choices[c] == RQ_ROLE_ATTN_V && (l->window != 0 || l->kv_layer != i)) continue;
            *(l->t[choices[c]].weight == RQ_NO_WEIGHT ? &without : &with) = i;
        }
        if (with != UINT32_MAX && without != UINT32_MAX)
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor blk.%u.%s is missing, which layer %u has",
                           rq_gguf_label(m->gguf), without, ROLES[choices[c]].name, with);
    }
    return RQ_OK;
}

/* "X.scale" beside "X.weight" is known with it; "X.input_scale" is for others. */
static bool is_known(const rq_model *m, const char *name)
{
    const char *dot = strrchr(name, '.');
    char weight[96], unused[96];
    if (dot && (strcmp(dot, ".scale") == 0 || strcmp(dot, ".input_scale") == 0)) {
        snprintf(weight, sizeof weight, "%.*s.weight", (int)(dot - name), name);
        name = weight;
    }
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (strcmp(m->weights[i].name, name) == 0) return true;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        if (m->layers[i].kv_layer == i) continue;
        for (int r = RQ_ROLE_GLOBAL_COUNT; r < RQ_ROLE_COUNT; r++) {
            snprintf(unused, sizeof unused, "blk.%u.%s", i, ROLES[r].name);
            if (role_unused(m, &m->layers[i], (rq_role)r) && strcmp(unused, name) == 0) return true;
        }
    }
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
        if (!s && m->family->gemma4) s = take_scales(m, l, err);
        if (!s && l->mixer == RQ_MIXER_DELTA) {
            assign_state(m, l);
            s = turn_conv(m, l, err);
        } else if (!s && l->kv_layer != i) {
            l->group = m->layers[l->kv_layer].group;
            l->group_layer = m->layers[l->kv_layer].group_layer;
        } else if (!s && !l->mtp) {
            s = assign_group(m, l, err);
        }
    }
    if (!s) s = rq_mtp_bind(m, err);
    if (!s && m->family->gemma4) s = check_choices(m, err);
    return s ? s : refuse_surplus(m, err);
}
