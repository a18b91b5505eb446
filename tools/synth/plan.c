/* plan.c - the tensors of the files: those of transformers, and what the families of plan_families.c share with them.
 */
#include "backends/base/mem.h"
#include "tools/synth/builder.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

float synth_llama3_factor(uint32_t i, uint32_t head_dim, double rope_base)
{
    const double factor = 8, low = 1, high = 4, old_context = 8192;
    double wavelength = 2 * 3.14159265358979323846 * pow(rope_base, 2.0 * i / head_dim);
    if (wavelength < old_context / high) return 1;
    if (wavelength > old_context / low) return (float)factor;
    double smooth = (old_context / wavelength - low) / (high - low);
    return (float)(1 / ((1 - smooth) / factor + smooth));
}

__attribute__((format(printf, 6, 7))) static synth_tensor *
add(synth_builder *b, rq_type type, uint64_t ne0, uint64_t ne1, uint64_t ne2, const char *name, ...)
{
    if (b->failed || !rq_grow((void **)&b->plan.tensors, &b->plan.cap, b->plan.n + 1, sizeof(synth_tensor))) {
        b->failed = true;
        return NULL;
    }
    synth_tensor *t = &b->plan.tensors[b->plan.n++];
    *t = (synth_tensor){.type = type,
                        .n_dims = ne2   ? 3
                                  : ne1 ? 2
                                        : 1,
                        .ne = {ne0, ne1 ? ne1 : 1, ne2 ? ne2 : 1, 1}};
    va_list args;
    va_start(args, name);
    vsnprintf(t->name, sizeof t->name, name, args);
    va_end(args);
    return t;
}

/* Layers with values of their own; in Gemma 4's that see everything the keys serve as values. */
static uint32_t n_values(const synth_preset *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_layer + p->n_mtp; i++)
        n += p->family != SYNTH_GEMMA4 || !synth_layer_is_full(p, i);
    return n;
}

void synth_matrix(synth_builder *b, synth_role role, const char *name, uint64_t n_in, uint64_t n_out,
                  uint64_t n, double gain)
{
    synth_site site = {.role = role,
                       .layer = b->layer,
                       .n_layer = b->p->n_layer + b->p->n_mtp,
                       .n_head = b->p->n_head,
                       .n_head_kv = b->p->n_head_kv,
                       .n_expert = b->p->n_expert,
                       .row = n_in};
    if (role == SYNTH_ROLE_V || role == SYNTH_ROLE_QKV) {
        site.layer = b->n_values++;
        site.n_layer = n_values(b->p);
    }
    rq_type type = synth_mixture_type(b->mixture, &site);
    bool global = role == SYNTH_ROLE_OUTPUT || role == SYNTH_ROLE_EMBEDDING;
    synth_tensor *t = global ? add(b, type, n_in, n_out, n, "%s.weight", name)
                             : add(b, type, n_in, n_out, n, "blk.%u.%s.weight", b->layer, name);
    if (t) t->std = gain / sqrt((double)n_in);
}

void synth_vector(synth_builder *b, const char *name, uint64_t n, double mean, double std)
{
    synth_tensor *t = add(b, RQ_TYPE_F32, n, 0, 0, "blk.%u.%s", b->layer, name);
    if (!t) return;
    t->mean = mean;
    t->std = std;
}

static void global_tensors(synth_builder *b)
{
    const synth_preset *p = b->p;
    /* The head yields logits of standard deviation 2.5: neither flat nor certain. As the first thing after an
     * embedding is a norm, its size only matters relative to what the layers add. */
    synth_matrix(b, p->tied ? SYNTH_ROLE_OUTPUT : SYNTH_ROLE_EMBEDDING, "token_embd", p->n_embd, p->n_vocab,
                 0, p->tied ? 2.5 : 0.5 * sqrt(p->n_embd));
    synth_tensor *norm = add(b, RQ_TYPE_F32, p->n_embd, 0, 0, "output_norm.weight");
    if (norm) norm->mean = 1, norm->std = 0.1;
    if (!p->tied) synth_matrix(b, SYNTH_ROLE_OUTPUT, "output", p->n_embd, p->n_vocab, 0, 2.5);
    bool llama = p->family == SYNTH_LLAMA, gemma = p->family == SYNTH_GEMMA4;
    if (!llama && !gemma) return;
    synth_tensor *factors =
        add(b, RQ_TYPE_F32, (llama ? p->head_dim : p->head_dim_full) / 2, 0, 0, "rope_freqs.weight");
    if (factors) factors->std = -1;
}

static void attention(synth_builder *b)
{
    const synth_preset *p = b->p;
    uint64_t n_q = (uint64_t)p->n_head * p->head_dim, n_kv = (uint64_t)p->n_head_kv * p->head_dim;
    synth_vector(b, "attn_norm.weight", p->n_embd, 1, 0.1);
    synth_matrix(b, SYNTH_ROLE_Q, "attn_q", p->n_embd, n_q, 0, 1);
    synth_matrix(b, SYNTH_ROLE_K, "attn_k", p->n_embd, n_kv, 0, 1);
    synth_matrix(b, SYNTH_ROLE_V, "attn_v", p->n_embd, n_kv, 0, 1);
    synth_matrix(b, SYNTH_ROLE_ATTN_OUTPUT, "attn_output", n_q, p->n_embd, 0, 1);
    if (p->family == SYNTH_QWEN2) {
        synth_vector(b, "attn_q.bias", n_q, 0, 0.3);
        synth_vector(b, "attn_k.bias", n_kv, 0, 0.3);
        synth_vector(b, "attn_v.bias", n_kv, 0, 0.3);
    }
    if (p->family == SYNTH_QWEN3 || p->family == SYNTH_QWEN3MOE) {
        synth_vector(b, "attn_q_norm.weight", p->head_dim, 1.2, 0.2);
        synth_vector(b, "attn_k_norm.weight", p->head_dim, 1.2, 0.2);
    }
}

void synth_dense(synth_builder *b)
{
    const synth_preset *p = b->p;
    synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_gate", p->n_embd, p->n_ff, 0, 1);
    synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_up", p->n_embd, p->n_ff, 0, 1);
    synth_matrix(b, SYNTH_ROLE_DOWN, "ffn_down", p->n_ff, p->n_embd, 0, 1);
}

/* Logits of standard deviation 2: some experts are clearly preferred, as in trained models. */
void synth_router(synth_builder *b)
{
    const synth_preset *p = b->p;
    synth_tensor *router =
        add(b, RQ_TYPE_F32, p->n_embd, p->n_expert, 0, "blk.%u.ffn_gate_inp.weight", b->layer);
    if (router) router->std = 2 / sqrt((double)p->n_embd);
}

void synth_experts(synth_builder *b)
{
    const synth_preset *p = b->p;
    synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_gate_exps", p->n_embd, p->n_ff_exp, p->n_expert, 1);
    synth_matrix(b, SYNTH_ROLE_GATE_UP, "ffn_up_exps", p->n_embd, p->n_ff_exp, p->n_expert, 1);
    synth_matrix(b, SYNTH_ROLE_DOWN, "ffn_down_exps", p->n_ff_exp, p->n_embd, p->n_expert, 1);
}

static void feed_forward(synth_builder *b)
{
    const synth_preset *p = b->p;
    synth_vector(b, "ffn_norm.weight", p->n_embd, 1, 0.1);
    if (!p->n_expert) {
        synth_dense(b);
        return;
    }
    synth_router(b);
    synth_experts(b);
}

rq_status synth_plan_build(const synth_preset *preset, const synth_mixture *mixture, synth_plan *out,
                           rq_error *err)
{
    synth_builder b = {.p = preset, .mixture = mixture};
    global_tensors(&b);
    for (b.layer = 0; b.layer < preset->n_layer + preset->n_mtp; b.layer++) {
        if (preset->family == SYNTH_QWEN35) {
            synth_hybrid_layer(&b);
        } else if (preset->family == SYNTH_GEMMA4) {
            synth_gemma_layer(&b);
        } else {
            attention(&b);
            feed_forward(&b);
        }
    }
    if (b.failed) {
        rq_free(b.plan.tensors);
        return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to plan the file");
    }
    *out = b.plan;
    return RQ_OK;
}
