/* gemma.c - Gemma 3 and Gemma 4: norms before and behind both blocks of a layer, layers that see a window between
 * layers that see everything, embeddings times sqrt(n_embd). Gemma 4 adds values that may be the keys before their
 * norm, layers that attend to the keys and values of an earlier one, experts beside a dense block, and embeddings for
 * every layer. Equations: Gemma 3 technical report (2025); Gemma 4 as in transformers' gemma4 and llama.cpp. */
#include "engine/models/model.h"

#include <math.h>

static rq_ref norm(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref x, rq_role role)
{
    return rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[role]), m->hp.eps);
}

static rq_ref attention(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref a)
{
    const rq_model *m = p->model;
    rq_ref q = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_Q], RQ_NO_TENSOR, a), k = 0, v = 0;
    q = rq_block_heads(t, q, l->dim_k, l->n_head);
    if (l->kv_layer == t->layer) {
        k = v = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_K], RQ_NO_TENSOR, a);
        if (l->t[RQ_ROLE_ATTN_V].weight != RQ_NO_WEIGHT)
            v = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_V], RQ_NO_TENSOR, a);
        k = rq_block_heads(t, k, l->dim_k, l->n_head_kv);
        v = rq_block_heads(t, v, l->dim_v, l->n_head_kv);
        if (m->family->gemma4) v = rq_op_rms_norm(t, v, 0, m->hp.eps);
    }
    rq_ref o = rq_block_attend(p, t, l, q, k, v);
    return rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_OUTPUT], RQ_NO_TENSOR, o);
}

/* Gemma 4's mixtures: a dense block, and beside it experts with norms of their own. The router sees the residual
 * stream, scaled by a vector and by n_embd^-1/2 (which goes to its logits here). */
static rq_ref feed_forward(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref x)
{
    rq_ref y = rq_block_dense(m, t, l, norm(m, t, l, x, RQ_ROLE_FFN_NORM));
    if (m->hp.n_expert == 0) return y;
    y = norm(m, t, l, y, RQ_ROLE_POST_DENSE_NORM);
    rq_ref r = norm(m, t, l, x, RQ_ROLE_ROUTER_SCALE);
    rq_ref logits = rq_block_linear(m, t, l->t[RQ_ROLE_FFN_ROUTER], RQ_NO_TENSOR, r);
    logits = rq_op_scale(t, logits, 1.0f / sqrtf((float)m->hp.n_embd));
    rq_ref e = rq_block_experts(m, t, l, norm(m, t, l, x, RQ_ROLE_EXPERTS_NORM), logits);
    return rq_op_add(t, y, norm(m, t, l, e, RQ_ROLE_POST_EXPERTS_NORM));
}

/* What every layer adds to its input: from the token, and from its embedding x. [n_ple, n_layers, T] */
static rq_ref layer_inputs(const rq_model *m, rq_tape *t, rq_ref x)
{
    uint32_t n = m->hp.n_ple, n_layers = m->hp.n_layers;
    rq_ref own = rq_op_embed(t, rq_block_weight(m, t, m->global[RQ_ROLE_PLE_TOKEN_EMBD]));
    own = rq_block_heads(t, rq_op_scale(t, own, sqrtf((float)n)), n, n_layers);
    rq_ref c = rq_block_linear(m, t, m->global[RQ_ROLE_PLE_PROJECTION], RQ_NO_TENSOR, x);
    c = rq_block_heads(t, rq_op_scale(t, c, 1.0f / sqrtf((float)m->hp.n_embd)), n, n_layers);
    c = rq_op_rms_norm(t, c, rq_block_vector(m, t, m->global[RQ_ROLE_PLE_NORM]), m->hp.eps);
    return rq_op_scale(t, rq_op_add(t, c, own), sqrtf(0.5f));
}

static rq_ref add_layer_input(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref x, rq_ref inputs)
{
    uint32_t n = m->hp.n_ple;
    rq_ref own =
        rq_tape_view(t, inputs, (uint64_t)n * t->layer, n, t->bucket, (uint64_t)n * m->hp.n_layers, 1, 0);
    rq_ref gate = rq_block_linear(m, t, l->t[RQ_ROLE_PLE_GATE], RQ_NO_TENSOR, x);
    rq_ref y = rq_block_linear(m, t, l->t[RQ_ROLE_PLE_OUTPUT], RQ_NO_TENSOR,
                               rq_op_glu(t, gate, own, m->family->act));
    return rq_op_add(t, norm(m, t, l, y, RQ_ROLE_PLE_POST_NORM), x);
}

void rq_gemma_trunk(const rq_pass *p, rq_tape *t)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    t->layer = UINT32_MAX;
    rq_ref x = rq_op_embed(t, rq_block_weight(m, t, m->global[RQ_ROLE_TOKEN_EMBD]));
    x = rq_op_scale(t, x, sqrtf((float)hp->n_embd));
    rq_ref inputs = hp->n_ple ? layer_inputs(m, t, x) : 0;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        t->layer = i;
        rq_ref o = attention(p, t, l, norm(m, t, l, x, RQ_ROLE_ATTN_NORM));
        x = rq_op_add(t, norm(m, t, l, o, RQ_ROLE_POST_ATTENTION_NORM), x);
        rq_ref y = feed_forward(m, t, l, x);
        x = rq_op_add(t, norm(m, t, l, y, RQ_ROLE_POST_FFN_NORM), x);
        if (inputs) x = add_layer_input(m, t, l, x, inputs);
        if (l->result_scale != 1.0f) x = rq_op_scale(t, x, l->result_scale);
    }
    rq_block_end_trunk(m, t, x);
}
