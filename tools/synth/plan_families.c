/* plan_families.c - layers of Qwen 3.5's hybrids and of Gemma 4: names and shapes as in published files. */
#include "tools/synth/builder.h"

#include <math.h>

static void delta_net(synth_builder *b)
{
    const synth_preset *p = b->p;
    uint64_t n_value = (uint64_t)p->n_value_heads * p->state_dim;
    uint64_t n_all = n_value + 2ull * p->n_key_heads * p->state_dim;
    synth_matrix(b, SYNTH_ROLE_QKV, "attn_qkv", p->n_embd, n_all, 0, 1);
    synth_matrix(b, SYNTH_ROLE_OTHER, "attn_gate", p->n_embd, n_value, 0, 1);
    synth_vector(b, "ssm_conv1d.weight", 4, 0, 0.5);
    if (!b->failed) { /* [taps, channels], F32 whatever the mixture */
        b->plan.tensors[b->plan.n - 1].n_dims = 2;
        b->plan.tensors[b->plan.n - 1].ne[1] = n_all;
    }
    synth_matrix(b, SYNTH_ROLE_OTHER, "ssm_alpha", p->n_embd, p->n_value_heads, 0, 1);
    synth_matrix(b, SYNTH_ROLE_OTHER, "ssm_beta", p->n_embd, p->n_value_heads, 0, 1);
    synth_vector(b, "ssm_dt.bias", p->n_value_heads, 0, 0.5);
    synth_vector(b, "ssm_a", p->n_value_heads, -1, 0.1); /* decays: below 0 */
    synth_vector(b, "ssm_norm.weight", p->state_dim, 1, 0.1);
    synth_matrix(b, SYNTH_ROLE_OTHER, "ssm_out", n_value, p->n_embd, 0, 1);
}

static void gated_attention(synth_builder *b)
{
    const synth_preset *p = b->p;
    uint64_t n_q = (uint64_t)p->n_head * p->head_dim, n_kv = (uint64_t)p->n_head_kv * p->head_dim;
    synth_matrix(b, SYNTH_ROLE_Q, "attn_q", p->n_embd, 2 * n_q, 0, 1); /* each head's gate behind its query */
    synth_matrix(b, SYNTH_ROLE_K, "attn_k", p->n_embd, n_kv, 0, 1);
    synth_matrix(b, SYNTH_ROLE_V, "attn_v", p->n_embd, n_kv, 0, 1);
    synth_matrix(b, SYNTH_ROLE_ATTN_OUTPUT, "attn_output", n_q, p->n_embd, 0, 1);
    synth_vector(b, "attn_q_norm.weight", p->head_dim, 1.2, 0.2);
    synth_vector(b, "attn_k_norm.weight", p->head_dim, 1.2, 0.2);
}

void synth_hybrid_layer(synth_builder *b)
{
    const synth_preset *p = b->p;
    synth_vector(b, "attn_norm.weight", p->n_embd, 1, 0.1);
    if (synth_layer_is_full(p, b->layer))
        gated_attention(b);
    else
        delta_net(b);
    synth_vector(b, "post_attention_norm.weight", p->n_embd, 1, 0.1);
    if (p->n_expert) {
        synth_router(b);
        synth_experts(b);
        synth_vector(b, "ffn_gate_inp_shexp.weight", p->n_embd, 0, 1 / sqrt((double)p->n_embd));
        synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_gate_shexp", p->n_embd, p->n_ff_shared, 0, 1);
        synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_up_shexp", p->n_embd, p->n_ff_shared, 0, 1);
        synth_matrix(b, SYNTH_ROLE_DOWN, "ffn_down_shexp", p->n_ff_shared, p->n_embd, 0, 1);
    } else {
        synth_dense(b);
    }
    if (b->layer < p->n_layer) return;
    synth_matrix(b, SYNTH_ROLE_OTHER, "nextn.eh_proj", 2ull * p->n_embd, p->n_embd, 0, 1);
    synth_vector(b, "nextn.enorm.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "nextn.hnorm.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "nextn.shared_head_norm.weight", p->n_embd, 1, 0.1);
}

void synth_gemma_layer(synth_builder *b)
{
    const synth_preset *p = b->p;
    bool full = synth_layer_is_full(p, b->layer);
    uint64_t head_dim = full ? p->head_dim_full : p->head_dim;
    uint64_t n_q = p->n_head * head_dim, n_kv = (full ? p->n_head_kv_full : p->n_head_kv) * head_dim;
    synth_vector(b, "attn_norm.weight", p->n_embd, 1, 0.1);
    synth_matrix(b, SYNTH_ROLE_Q, "attn_q", p->n_embd, n_q, 0, 1);
    synth_matrix(b, SYNTH_ROLE_K, "attn_k", p->n_embd, n_kv, 0, 1);
    if (!full)
        synth_matrix(b, SYNTH_ROLE_V, "attn_v", p->n_embd, n_kv, 0, 1); /* else the keys serve as values */
    synth_matrix(b, SYNTH_ROLE_ATTN_OUTPUT, "attn_output", n_q, p->n_embd, 0, 1);
    synth_vector(b, "attn_q_norm.weight", head_dim, 0.3, 0.05); /* scores are not divided by anything */
    synth_vector(b, "attn_k_norm.weight", head_dim, 0.3, 0.05);
    synth_vector(b, "post_attention_norm.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "ffn_norm.weight", p->n_embd, 1, 0.1);
    synth_dense(b);
    synth_vector(b, "post_ffw_norm.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "layer_output_scale.weight", 1, 1, 0);
    if (!p->n_expert) return;
    synth_router(b);
    synth_vector(b, "ffn_gate_inp.scale", p->n_embd, 1, 0.1);
    synth_vector(b, "pre_ffw_norm_2.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "post_ffw_norm_1.weight", p->n_embd, 1, 0.1);
    synth_vector(b, "post_ffw_norm_2.weight", p->n_embd, 1, 0.1);
    synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_gate_up_exps", p->n_embd, 2ull * p->n_ff_exp, p->n_expert, 1);
    synth_matrix(b, SYNTH_ROLE_DOWN, "ffn_down_exps", p->n_ff_exp, p->n_embd, p->n_expert, 1);
    synth_vector(b, "ffn_down_exps.scale", p->n_expert, 1, 0.1);
}
