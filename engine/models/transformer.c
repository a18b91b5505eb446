/* transformer.c - models of plain pre-norm attention blocks: llama, qwen2, qwen3 and their mixtures. Equations:
 * Llama 2 and 3, Qwen2, Qwen3 technical reports; what differs between them is in the family table or follows from
 * which tensors a file has. */
#include "engine/models/model.h"

static rq_ref attention(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref a)
{
    const rq_model *m = p->model;
    rq_ref q = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_Q], l->t[RQ_ROLE_ATTN_Q_BIAS], a);
    rq_ref k = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_K], l->t[RQ_ROLE_ATTN_K_BIAS], a);
    rq_ref v = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_V], l->t[RQ_ROLE_ATTN_V_BIAS], a);
    q = rq_block_heads(t, q, l->dim_k, l->n_head);
    k = rq_block_heads(t, k, l->dim_k, l->n_head_kv);
    v = rq_block_heads(t, v, l->dim_v, l->n_head_kv);
    return rq_block_attend(p, t, l, q, k, v);
}

void rq_transformer_trunk(const rq_pass *p, rq_tape *t)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    t->layer = UINT32_MAX;
    rq_ref x = rq_op_embed(t, rq_block_weight(m, t, m->global[RQ_ROLE_TOKEN_EMBD]));
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        t->layer = i;
        rq_ref a = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_NORM]), hp->eps);
        rq_ref o = attention(p, t, l, a);
        x = rq_op_add(t, rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_OUTPUT], l->t[RQ_ROLE_ATTN_OUTPUT_BIAS], o),
                      x);
        rq_ref h = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[m->family->ffn_norm]), hp->eps);
        x = rq_op_add(t, rq_block_ffn(m, t, l, h), x);
    }
    rq_block_end_trunk(m, t, x);
}
