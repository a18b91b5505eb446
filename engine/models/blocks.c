/* blocks.c - the parts that forward passes share: products, attention over what the engine keeps of keys and values,
 * feed-forward blocks, the head. */
#include "engine/models/model.h"

rq_ref rq_block_weight(const rq_model *m, rq_tape *t, rq_tensor_ref ref)
{
    const rq_weight *w = &m->weights[ref.weight];
    rq_ref v = rq_tape_weight(t, ref.weight, w->type, w->ne, w->name);
    if (v && ref.expert_stride) t->values[v].stride[2] = ref.expert_stride;
    return v;
}

rq_ref rq_block_vector(const rq_model *m, rq_tape *t, rq_tensor_ref ref)
{
    return ref.weight == RQ_NO_WEIGHT ? 0 : rq_block_weight(m, t, ref);
}

rq_ref rq_block_linear(const rq_model *m, rq_tape *t, rq_tensor_ref w, rq_tensor_ref bias, rq_ref x)
{
    rq_ref y = rq_op_matmul(t, rq_block_weight(m, t, w), x);
    if (w.scale != 1.0f) y = rq_op_scale(t, y, w.scale);
    return bias.weight == RQ_NO_WEIGHT ? y : rq_op_add(t, y, rq_block_weight(m, t, bias));
}

const rq_tensor_ref RQ_NO_TENSOR = {.weight = RQ_NO_WEIGHT, .scale = 1.0f};

rq_ref rq_block_heads(rq_tape *t, rq_ref x, uint32_t dim, uint32_t n)
{
    return rq_tape_view(t, x, 0, dim, n, dim, t->bucket, (uint64_t)dim * n);
}

/* ---- the cache ----------------------------------------------------------------------------------------- */

/* A table of the engine's; 0 where there is none. */
static rq_ref table(const rq_pass *p, rq_tape *t, uint32_t index)
{
    if (index == RQ_NO_WEIGHT) return 0;
    const rq_weight *w = &p->weights[index];
    return rq_tape_weight(t, index, w->type, w->ne, w->name);
}

static bool is_plain(const rq_pass_side *s)
{
    return s->n_blocks == 0 && s->mean == RQ_NO_WEIGHT && s->lambda == RQ_NO_WEIGHT;
}

/* R(lambda * (x - mean)) with these tables as R, mean and lambda. */
static rq_ref forward(const rq_pass *p, rq_tape *t, const rq_pass_side *s, uint32_t data, rq_ref x,
                      uint32_t mean, uint32_t lambda)
{
    return rq_op_rotate(t, x, table(p, t, data), table(p, t, mean), table(p, t, lambda), s->blocks,
                        s->n_blocks, false);
}

/* Copies rows [n, T] to where the engine reads them after the step. */
static void capture(const rq_pass *p, rq_tape *t, rq_ref x, uint32_t n, uint64_t at)
{
    uint32_t rows = t->persist_rows[RQ_PERSIST_CAPTURE];
    rq_ref all = rq_tape_persist(t, RQ_PERSIST_CAPTURE, RQ_TYPE_F32, p->capture_floats, rows);
    rq_op_copy(t, rq_tape_view(t, x, 0, n, t->bucket, n, 1, 0),
               rq_tape_view(t, all, at * rows, n, rows, n, 1, 0));
}

/* Keys after the rotary embedding and values become the cache's. */
static void keep(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref k, rq_ref v)
{
    const rq_pass_layer *own = p->layers ? &p->layers[t->layer] : NULL;
    rq_ref cache = rq_tape_cache(t, l->group, l->group_layer);
    if (own && !is_plain(&own->k)) k = forward(p, t, &own->k, own->k.data, k, own->k.mean, own->k.lambda);
    if (own && !is_plain(&own->v)) v = forward(p, t, &own->v, own->v.data, v, own->v.mean, RQ_NO_WEIGHT);
    rq_op_kv_write(t, cache, k, v);
    if (own && own->encode && t->bucket > RQ_NARROW_BUCKET) rq_op_kv_encode(t, cache);
}

/* Attention over what the cache keeps: q and k after the rotary embedding, all [dim, heads, T]. */
static rq_ref cached_attention(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref q, rq_ref k, rq_ref v)
{
    const rq_pass_layer *own = p->layers ? &p->layers[t->layer] : NULL;
    rq_ref cache = rq_tape_cache(t, l->group, l->group_layer);
    if (own && own->capture) {
        capture(p, t, q, l->dim_k * l->n_head, own->q_at);
        if (k) capture(p, t, k, l->dim_k * l->n_head_kv, own->k_at);
        if (v) capture(p, t, v, l->dim_v * l->n_head_kv, own->v_at);
    }
    if (own && !is_plain(&own->k)) {
        q = forward(p, t, &own->k, own->k.dual, q, RQ_NO_WEIGHT, own->k.lambda_inverse);
        if (k) k = forward(p, t, &own->k, own->k.data, k, own->k.mean, own->k.lambda);
    }
    if (own && v && !is_plain(&own->v)) v = forward(p, t, &own->v, own->v.data, v, own->v.mean, RQ_NO_WEIGHT);
    if (k) rq_op_kv_write(t, cache, k, v);
    if (k && own && own->encode && t->bucket > RQ_NARROW_BUCKET) rq_op_kv_encode(t, cache);
    rq_ref o = rq_op_attend(t, cache, q, l->dim_v, l->scale, 0.0f);
    if (!own || is_plain(&own->v)) return o;
    o = rq_op_rotate(t, rq_block_heads(t, o, l->dim_v, l->n_head), table(p, t, own->v.dual),
                     table(p, t, own->v.mean), 0, own->v.blocks, own->v.n_blocks, true);
    uint32_t n = l->dim_v * l->n_head;
    return rq_tape_view(t, o, 0, n, t->bucket, n, 1, 0);
}

rq_ref rq_block_attend(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref q, rq_ref k, rq_ref v)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    if (m->family->qk_norm) {
        q = rq_op_rms_norm(t, q, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_Q_NORM]), hp->eps);
        if (k) k = rq_op_rms_norm(t, k, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_K_NORM]), hp->eps);
    }
    const rq_weight *f = &m->weights[l->inv_freq];
    rq_ref freq = rq_tape_weight(t, l->inv_freq, f->type, f->ne, f->name);
    q = rq_op_rope(t, q, freq, l->n_rot, m->family->pairing, l->rope_magnitude);
    if (k) k = rq_op_rope(t, k, freq, l->n_rot, m->family->pairing, l->rope_magnitude);
    return cached_attention(p, t, l, q, k, v);
}

void rq_block_keep(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref k, rq_ref v)
{
    const rq_model *m = p->model;
    const rq_weight *f = &m->weights[l->inv_freq];
    rq_ref freq = rq_tape_weight(t, l->inv_freq, f->type, f->ne, f->name);
    if (m->family->qk_norm)
        k = rq_op_rms_norm(t, k, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_K_NORM]), m->hp.eps);
    k = rq_op_rope(t, k, freq, l->n_rot, m->family->pairing, l->rope_magnitude);
    keep(p, t, l, k, v);
}

/* ---- the rest of a block ------------------------------------------------------------------------------- */

rq_ref rq_block_dense(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h)
{
    rq_ref gate = rq_block_linear(m, t, l->t[RQ_ROLE_FFN_GATE], RQ_NO_TENSOR, h);
    rq_ref up = rq_block_linear(m, t, l->t[RQ_ROLE_FFN_UP], RQ_NO_TENSOR, h);
    return rq_block_linear(m, t, l->t[RQ_ROLE_FFN_DOWN], RQ_NO_TENSOR,
                           rq_op_glu(t, gate, up, m->family->act));
}

static rq_ref expert_linear(const rq_model *m, rq_tape *t, rq_tensor_ref w, rq_ref x, rq_ref ids,
                            rq_ref group)
{
    rq_ref y = rq_op_matmul_experts(t, rq_block_weight(m, t, w), x, ids, group);
    return w.scale == 1.0f ? y : rq_op_scale(t, y, w.scale);
}

rq_ref rq_block_experts(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h, rq_ref logits)
{
    const rq_hparams *hp = &m->hp;
    uint32_t k = hp->n_expert_used;
    rq_ref ids = 0, weights = 0;
    rq_op_route(t, logits, k, hp->expert_scale, &ids, &weights);
    rq_ref group = t->bucket > RQ_NARROW_BUCKET ? rq_op_group(t, ids, hp->n_expert) : 0;
    if (l->t[RQ_ROLE_EXPERTS_SCALE].weight !=
        RQ_NO_WEIGHT) { /* [1, 1, n_expert]: a product of 1 x 1 matrices */
        weights = rq_tape_view(t, weights, 0, 1, k, 1, t->bucket, k);
        weights =
            rq_op_matmul_experts(t, rq_block_weight(m, t, l->t[RQ_ROLE_EXPERTS_SCALE]), weights, ids, group);
        weights = rq_tape_view(t, weights, 0, k, t->bucket, k, 1, 0);
    }
    rq_ref x = rq_tape_view(t, h, 0, hp->n_embd, 1, hp->n_embd, t->bucket, hp->n_embd);
    rq_ref gate = expert_linear(m, t, l->t[RQ_ROLE_FFN_GATE_EXPS], x, ids, group);
    rq_ref up = expert_linear(m, t, l->t[RQ_ROLE_FFN_UP_EXPS], x, ids, group);
    rq_ref y =
        expert_linear(m, t, l->t[RQ_ROLE_FFN_DOWN_EXPS], rq_op_glu(t, gate, up, m->family->act), ids, group);
    return rq_op_combine(t, y, weights);
}

/* The expert every token goes through, times the sigmoid of its own gate. */
static rq_ref shared_ffn(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h)
{
    rq_ref gate = rq_block_linear(m, t, l->t[RQ_ROLE_SHARED_GATE], RQ_NO_TENSOR, h);
    rq_ref up = rq_block_linear(m, t, l->t[RQ_ROLE_SHARED_UP], RQ_NO_TENSOR, h);
    rq_ref y = rq_block_linear(m, t, l->t[RQ_ROLE_SHARED_DOWN], RQ_NO_TENSOR,
                               rq_op_glu(t, gate, up, m->family->act));
    return rq_op_glu(t, rq_block_linear(m, t, l->t[RQ_ROLE_SHARED_ROUTER], RQ_NO_TENSOR, h), y,
                     RQ_ACT_SIGMOID);
}

rq_ref rq_block_ffn(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h)
{
    if (m->hp.n_expert == 0) return rq_block_dense(m, t, l, h);
    rq_ref logits = rq_block_linear(m, t, l->t[RQ_ROLE_FFN_ROUTER], RQ_NO_TENSOR, h);
    rq_ref y = rq_block_experts(m, t, l, h, logits);
    return m->hp.n_ff_shared == 0 ? y : rq_op_add(t, y, shared_ffn(m, t, l, h));
}

static rq_ref persist(rq_tape *t, rq_persist which, rq_type type, uint32_t ne0)
{
    return rq_tape_persist(t, which, type, ne0, t->persist_rows[which]);
}

void rq_block_end_trunk(const rq_model *m, rq_tape *t, rq_ref x)
{
    t->layer = UINT32_MAX;
    x = rq_op_rms_norm(t, x, rq_block_vector(m, t, m->global[RQ_ROLE_OUTPUT_NORM]), m->hp.eps);
    rq_op_copy(t, x, persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, m->hp.n_embd));
    if (t->persist_rows[RQ_PERSIST_TRAIL] != 0) rq_op_copy(t, x, rq_block_trail(m, t, 1));
}

rq_ref rq_block_trail(const rq_model *m, rq_tape *t, uint32_t first)
{
    uint32_t n = m->hp.n_embd;
    return rq_tape_view(t, persist(t, RQ_PERSIST_TRAIL, RQ_TYPE_F32, n), (uint64_t)first * n, n, t->bucket, n,
                        1, 0);
}

void rq_block_head(const rq_pass *p, rq_tape *t)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    t->layer = UINT32_MAX;
    rq_ref x = rq_op_select_rows(t, persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, hp->n_embd));
    rq_ref logits = rq_block_linear(m, t, m->global[RQ_ROLE_OUTPUT], m->global[RQ_ROLE_OUTPUT_BIAS], x);
    if (hp->logit_cap > 0) logits = rq_op_softcap(t, logits, hp->logit_cap);
    rq_op_copy(t, logits, persist(t, RQ_PERSIST_LOGITS, RQ_TYPE_F32, hp->n_vocab));
    rq_op_argmax(t, logits, persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1));
}
