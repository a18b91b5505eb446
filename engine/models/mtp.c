/* mtp.c - the block that predicts a token further on ("multi-token prediction", "nextn" in the tensors' names): a whole
 * decoder block of its own behind the trunk. Row p takes the embedding of the token at position p and the trunk's row
 * after the final norm at p - 1, and predicts the token at p + 1; it keeps keys and values of its own (DeepSeek-V3
 * technical report, section 2.2; which norms and halves: Qwen3.5's checkpoints and their GGUF files). */
#include "engine/models/model.h"

#include <string.h>

static rq_ref final_norm(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref x)
{
    rq_tensor_ref norm = l->t[RQ_ROLE_MTP_HEAD_NORM];
    if (norm.weight == RQ_NO_WEIGHT) norm = m->global[RQ_ROLE_OUTPUT_NORM];
    return rq_op_rms_norm(t, x, rq_block_vector(m, t, norm), m->hp.eps);
}

/* Logits of every row, and the best of each. */
static void guess(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref x)
{
    rq_tensor_ref output = l->t[RQ_ROLE_MTP_OUTPUT];
    if (output.weight == RQ_NO_WEIGHT) output = m->global[RQ_ROLE_OUTPUT];
    rq_ref logits = rq_block_linear(m, t, output, RQ_NO_TENSOR, x);
    uint32_t rows = t->persist_rows[RQ_PERSIST_LOGITS], slots = t->persist_rows[RQ_PERSIST_SAMPLED];
    rq_op_copy(t, logits, rq_tape_persist(t, RQ_PERSIST_LOGITS, RQ_TYPE_F32, m->hp.n_vocab, rows));
    rq_op_argmax(t, logits, rq_tape_persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, slots));
}

void rq_hybrid_mtp(const rq_pass *p, rq_tape *t, bool draft)
{
    const rq_model *m = p->model;
    const rq_hparams *hp = &m->hp;
    const rq_layer *l = &m->layers[hp->n_layers];
    uint32_t rows = t->persist_rows[RQ_PERSIST_TRAIL];
    t->layer = UINT32_MAX;
    rq_tensor_ref table = l->t[RQ_ROLE_MTP_TOKEN_EMBD];
    if (table.weight == RQ_NO_WEIGHT) table = m->global[RQ_ROLE_TOKEN_EMBD];
    rq_ref e = rq_op_embed(t, rq_block_weight(m, t, table));
    t->layer = hp->n_layers;
    rq_ref before =
        t->bucket > RQ_NARROW_BUCKET
            ? rq_block_trail(m, t, 0)
            : rq_op_select_rows(t, rq_tape_persist(t, RQ_PERSIST_TRAIL, RQ_TYPE_F32, hp->n_embd, rows));
    e = rq_op_rms_norm(t, e, rq_block_vector(m, t, l->t[RQ_ROLE_MTP_EMBD_NORM]), hp->eps);
    before = rq_op_rms_norm(t, before, rq_block_vector(m, t, l->t[RQ_ROLE_MTP_HIDDEN_NORM]), hp->eps);
    rq_ref x = rq_op_add(t, rq_block_linear(m, t, l->mtp_hidden, RQ_NO_TENSOR, before),
                         rq_block_linear(m, t, l->t[RQ_ROLE_MTP_PROJECTION], RQ_NO_TENSOR, e));
    rq_ref a = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[RQ_ROLE_ATTN_NORM]), hp->eps);
    if (!draft) { /* these tokens are known: what is kept of them is all that is wanted */
        rq_ref k = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_K], RQ_NO_TENSOR, a);
        rq_ref v = rq_block_linear(m, t, l->t[RQ_ROLE_ATTN_V], RQ_NO_TENSOR, a);
        rq_block_keep(p, t, l, rq_block_heads(t, k, l->dim_k, l->n_head_kv),
                      rq_block_heads(t, v, l->dim_v, l->n_head_kv));
        return;
    }
    x = rq_op_add(t, rq_block_gated_attention(p, t, l, a), x);
    rq_ref h = rq_op_rms_norm(t, x, rq_block_vector(m, t, l->t[m->family->ffn_norm]), hp->eps);
    x = final_norm(m, t, l, rq_op_add(t, rq_block_ffn(m, t, l, h), x));
    rq_op_copy(t, x, rq_block_trail(m, t, rows - RQ_NARROW_BUCKET)); /* rq_trail_draft */
    guess(m, t, l, x);
}

/* The columns [first, first + n) of a matrix, as one of its own. */
static rq_status take_columns(rq_model *m, const rq_tensor_ref *whole, uint32_t first, uint32_t n,
                              rq_tensor_ref *out, rq_error *err)
{
    const rq_weight w = m->weights[whole->weight];
    uint64_t from = rq_row_bytes(w.type, w.ne[0]), to = rq_row_bytes(w.type, n);
    uint64_t skip = rq_row_bytes(w.type, first), bytes = to * w.ne[1];
    char *data = (char *)rq_model_own_table(m, (size_t)((bytes + 3) / 4));
    if (!data) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for half of tensor %s", w.name);
    for (uint32_t r = 0; r < w.ne[1]; r++)
        memcpy(data + r * to, (const char *)w.host + r * from + skip, (size_t)to);
    const uint32_t ne[4] = {n, w.ne[1], 1, 1};
    *out = (rq_tensor_ref){.scale = whole->scale};
    return rq_model_add_weight(m, w.name, w.type, ne, data, bytes, &out->weight, err);
}

rq_status rq_mtp_bind(rq_model *m, rq_error *err)
{
    if (m->hp.n_mtp == 0 || !m->family->build_mtp) return RQ_OK;
    rq_layer *l = &m->layers[m->hp.n_layers];
    const rq_tensor_ref whole = l->t[RQ_ROLE_MTP_PROJECTION];
    uint32_t n = m->hp.n_embd;
    /* Without room for what it keeps, or with halves that are no whole blocks, the model runs without the block. */
    if (m->n_groups == RQ_MAX_GROUPS ||
        n % rq_type_get((uint32_t)m->weights[whole.weight].type)->block_elems != 0)
        return RQ_OK;
    rq_status s = take_columns(m, &whole, n, n, &l->mtp_hidden, err);
    if (!s) s = take_columns(m, &whole, 0, n, &l->t[RQ_ROLE_MTP_PROJECTION], err);
    if (s) return s;
    l->group = m->n_groups;
    l->group_layer = 0;
    m->mtp_group = (rq_cache_group){.n_layers = 1,
                                    .n_heads = l->n_head_kv,
                                    .dim_k = l->dim_k,
                                    .dim_v = l->dim_v,
                                    .type_k = RQ_TYPE_F16,
                                    .type_v = RQ_TYPE_F16};
    return RQ_OK;
}

/* ---- options ------------------------------------------------------------------------------------------- */

enum { DEFAULT_DEPTH = 2, MOST_DEPTH = 6 };

rq_status rq_draft_read(const rq_model *m, const rq_engine_params *p, rq_draft_wishes *out, rq_error *err)
{
    const char *name = p->draft != NULL ? p->draft : "off";
    bool mtp = strcmp(name, "mtp") == 0, automatic = strcmp(name, "auto") == 0;
    *out = (rq_draft_wishes){.min_p = p->draft_min_p, .automatic = automatic};
    if (!mtp && !automatic && strcmp(name, "off") != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "--draft takes mtp, auto or off, not \"%.40s\"", name);
    if (p->draft_depth > MOST_DEPTH)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a draft can be 1 to %d tokens long, not %u", MOST_DEPTH,
                       p->draft_depth);
    if (!(p->draft_min_p >= 0 && p->draft_min_p <= 1))
        return rq_fail(err, RQ_ERR_ARGUMENT, "the least probability of a draft must be 0 to 1, not %g",
                       (double)p->draft_min_p);
    if (mtp && m->mtp_group.n_layers == 0)
        return rq_fail(
            err, RQ_ERR_UNSUPPORTED,
            "%.200s has no block that predicts tokens further on (MTP), so nothing can draft: leave "
            "--draft mtp out",
            m->name);
    if ((mtp || automatic) && m->mtp_group.n_layers != 0)
        out->depth = p->draft_depth != 0 ? p->draft_depth : DEFAULT_DEPTH;
    return RQ_OK;
}
