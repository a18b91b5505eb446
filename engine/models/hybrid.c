/* hybrid.c - models of recurrent layers with an attention layer now and then: qwen35 (Qwen3.5, Qwen3.6) and its
 * mixture. A recurrent layer is a gated delta net (Yang, Kautz & Hatamizadeh 2024), an attention layer has a gate for
 * every element of its result (Qwen3-Next's description; layout of the tensors: GGUF's qwen35). */
#include "engine/models/model.h"

#include <math.h>

/* The rows of attn_q are, head after head, the query and the gate. */
rq_ref rq_block_gated_attention(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref a)
{
    const rq_model *m = p->model;
    uint32_t d = l->dim_k, n = l->n_head;
    rq_ref both = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_Q], RQ_NO_TENSOR, a);
    rq_ref k = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_K], RQ_NO_TENSOR, a);
    rq_ref v = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_V], RQ_NO_TENSOR, a);
    rq_ref q = rq_tape_view(t, both, 0, d, n, 2ull * d, t->bucket, 2ull * d * n);
    rq_ref gate = rq_tape_view(t, both, d, d, n, 2ull * d, t->bucket, 2ull * d * n);
    rq_ref o = rq_block_attend(p, t, l, q, rq_block_heads(t, k, d, l->n_head_kv),
                               rq_block_heads(t, v, d, l->n_head_kv));
    o = rq_op_glu(t, gate, rq_block_heads(t, o, d, n), RQ_ACT_SIGMOID);
    o = rq_tape_view(t, o, 0, d * n, t->bucket, (uint64_t)d * n, 1, 0);
    return rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_OUTPUT], RQ_NO_TENSOR, o);
}

static rq_ref delta_net(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref a)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    uint32_t d = hp->state_dim, n_k = hp->n_key_heads, n_v = hp->n_value_heads, width = d * (2 * n_k + n_v);
    rq_ref state = rq_tape_state(t, l->group, l->group_layer);
    rq_ref u = rq_block_linear(m, t, l->t[RQ_ROLE_DELTA_QKV], RQ_NO_TENSOR, a);
    rq_ref z = rq_block_linear(m, t, l->t[RQ_ROLE_DELTA_GATE], RQ_NO_TENSOR, a);
    rq_ref c = rq_op_short_conv(t, state, u, rq_block_vector(m, t, l->t[RQ_ROLE_DELTA_CONV]));
    rq_ref q = rq_tape_view(t, c, 0, d, n_k, d, t->bucket, width);
    rq_ref k = rq_tape_view(t, c, (uint64_t)d * n_k, d, n_k, d, t->bucket, width);
    const rq_delta_in in = {
        .state = state,
        .q = rq_op_l2_norm(t, q, hp->eps),
        .k = rq_op_l2_norm(t, k, hp->eps),
        .v = rq_tape_view(t, c, 2ull * d * n_k, d, n_v, d, t->bucket, width),
        .alpha = rq_block_linear(m, t, l->t[RQ_ROLE_DELTA_ALPHA], RQ_NO_TENSOR, a),
        .beta = rq_block_linear(m, t, l->t[RQ_ROLE_DELTA_BETA], RQ_NO_TENSOR, a),
        .rate = rq_block_vector(m, t, l->t[RQ_ROLE_DELTA_RATE]),
        .offset = rq_block_vector(m, t, l->t[RQ_ROLE_DELTA_OFFSET]),
        .scale = 1.0f / sqrtf((float)d),
        .tiled = m->family->tiled,
    };
    rq_ref o = rq_op_delta_rule(t, &in);
    o = rq_op_rms_norm(t, o, rq_block_vector(m, t, l->t[RQ_ROLE_DELTA_NORM]), hp->eps);
    o = rq_op_glu(t, rq_block_heads(t, z, d, n_v), o, RQ_ACT_SILU);
    o = rq_tape_view(t, o, 0, d * n_v, t->bucket, (uint64_t)d * n_v, 1, 0);
    return rq_block_linear(m, t, l->t[RQ_ROLE_DELTA_OUTPUT], RQ_NO_TENSOR, o);
}

void rq_hybrid_trunk(const rq_pass *p, rq_tape *t)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    t->layer = UINT32_MAX;
    rq_ref x = rq_op_embed(t, rq_block_weight(m, t, m->global[RQ_ROLE_TOKEN_EMBD]));
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        t->layer = i;
        rq_ref a = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_NORM]), hp->eps);
        rq_ref y = l->mixer == RQ_MIXER_DELTA ? delta_net(p, t, l, a) : rq_block_gated_attention(p, t, l, a);
        x = rq_op_add(t, y, x);
        rq_ref h = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[m->family->ffn_norm]), hp->eps);
        x = rq_op_add(t, rq_block_ffn(m, t, l, h), x);
    }
    rq_block_end_trunk(m, t, x);
}
