/* hparams.c - reads and checks the hyper-parameters of a file (metadata keys: GGUF's `<arch>.*`). Everything
 * later code divides by, indexes with or multiplies into a size is bounded here. */
#include "backends/base/mem.h"
#include "engine/models/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DIM = 1 << 20, MAX_HEAD_DIM = 1024, MAX_HEADS = 4096 };

typedef struct key {
    char text[128];
} key;

static key key_of(const rq_model *m, const char *suffix)
{
    key k;
    snprintf(k.text, sizeof k.text, "%s.%s", m->arch, suffix);
    return k;
}

static rq_status get_u32(const rq_model *m, const char *suffix, uint32_t min, uint32_t max, uint32_t *out,
                         rq_error *err)
{
    return rq_gguf_get_u32(m->gguf, key_of(m, suffix).text, min, max, out, err);
}

static rq_status opt_u32(const rq_model *m, const char *suffix, uint32_t min, uint32_t max, uint32_t fallback,
                         uint32_t *out, rq_error *err)
{
    return rq_gguf_opt_u32(m->gguf, key_of(m, suffix).text, min, max, fallback, out, err);
}

static rq_status opt_f32(const rq_model *m, const char *suffix, float fallback, float *out, rq_error *err)
{
    return rq_gguf_opt_f32(m->gguf, key_of(m, suffix).text, fallback, out, err);
}

static rq_status read_heads(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    uint32_t n = hp->n_layers + hp->n_mtp, *values = rq_calloc(n, 3 * sizeof *values);
    if (!values) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u layers", n);
    uint32_t *head = values, *kv = values + n, *ff = kv + n;

    rq_status s =
        rq_gguf_get_u32s(m->gguf, key_of(m, "attention.head_count").text, n, 1, MAX_HEADS, head, err);
    key kv_key = key_of(m, "attention.head_count_kv"), ff_key = key_of(m, "feed_forward_length");
    if (!s && rq_gguf_find(m->gguf, kv_key.text))
        s = rq_gguf_get_u32s(m->gguf, kv_key.text, n, 1, MAX_HEADS, kv, err);
    else if (!s)
        memcpy(kv, head, n * sizeof *kv);
    bool dense = hp->n_expert == 0 || m->family->gemma4;
    if (!s && (dense || rq_gguf_find(m->gguf, ff_key.text)))
        s = rq_gguf_get_u32s(m->gguf, ff_key.text, n, dense ? 1 : 0, MAX_DIM, ff, err);

    for (uint32_t i = 0; !s && i < n; i++) {
        if (head[i] % kv[i])
            s = rq_fail(err, RQ_ERR_FORMAT,
                        "%s: layer %u has %u query heads, not a multiple of its %u key/value heads",
                        rq_gguf_label(m->gguf), i, head[i], kv[i]);
        m->layers[i].n_head = head[i];
        m->layers[i].n_head_kv = kv[i];
        m->layers[i].n_ff = ff[i];
    }
    rq_free(values);
    return s;
}

static rq_status read_head_dims(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    const char *label = rq_gguf_label(m->gguf);
    uint32_t n_head = m->layers[0].n_head;
    uint32_t fallback = hp->n_embd / n_head;
    rq_status s = opt_u32(m, "attention.key_length", 1, MAX_HEAD_DIM, fallback, &hp->dim_k, err);
    if (!s) s = opt_u32(m, "attention.value_length", 1, MAX_HEAD_DIM, fallback, &hp->dim_v, err);
    if (!s) s = opt_u32(m, "rope.dimension_count", 2, MAX_HEAD_DIM, hp->dim_k, &hp->n_rot, err);
    if (s) return s;
    if (hp->dim_k == 0 || hp->dim_k > MAX_HEAD_DIM || hp->dim_k % 8 || hp->dim_v % 8)
        return rq_fail(
            err, RQ_ERR_UNSUPPORTED,
            "%s: head sizes %u and %u (%s.attention.key_length and value_length, or the width by the "
            "heads): only multiples of 8 up to %d can be run",
            label, hp->dim_k, hp->dim_v, m->arch, MAX_HEAD_DIM);
    if (hp->n_rot % 2 || hp->n_rot > hp->dim_k)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.rope.dimension_count is %u with a head size of %u", label,
                       m->arch, hp->n_rot, hp->dim_k);
    if (m->family->gated && hp->dim_k != hp->dim_v)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: head sizes %u and %u: a gated family has the same for both",
                       label, hp->dim_k, hp->dim_v);
    if (m->family->full_rotary && hp->n_rot != hp->dim_k)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: %s.rope.dimension_count is %u, but this family rotates whole heads of %u", label,
                       m->arch, hp->n_rot, hp->dim_k);
    for (uint32_t i = 0; i < hp->n_layers + hp->n_mtp; i++) {
        rq_layer *l = &m->layers[i];
        l->dim_k = hp->dim_k;
        l->dim_v = hp->dim_v;
        l->n_rot = hp->n_rot;
        l->scale = 1.0f / sqrtf((float)hp->dim_k);
        l->result_scale = 1.0f;
        l->kv_layer = i;
    }
    return RQ_OK;
}

static rq_status read_rope(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    const char *label = rq_gguf_label(m->gguf);
    float base, factor, ext, fast, slow, attn;
    rq_gguf_str type;
    rq_status s = opt_f32(m, "rope.freq_base", 10000.0f, &base, err);
    if (!s) s = opt_f32(m, "rope.scale_linear", 1.0f, &factor, err); /* its name in files of 2023 */
    if (!s) s = opt_f32(m, "rope.scaling.factor", factor, &factor, err);
    if (!s) s = rq_gguf_opt_str(m->gguf, key_of(m, "rope.scaling.type").text, "linear", &type, err);
    if (!s) s = opt_f32(m, "rope.scaling.yarn_ext_factor", 1.0f, &ext, err);
    if (!s) s = opt_f32(m, "rope.scaling.yarn_beta_fast", 32.0f, &fast, err);
    if (!s) s = opt_f32(m, "rope.scaling.yarn_beta_slow", 1.0f, &slow, err);
    if (!s) s = opt_f32(m, "rope.scaling.attn_factor", 1.0f, &attn, err);
    if (!s)
        s = opt_u32(m, "rope.scaling.original_context_length", 1, INT32_MAX, hp->n_ctx_train,
                    &hp->rope_ctx_orig, err);
    if (s) return s;
    if (factor == 0.0f) factor = 1.0f; /* some writers put 0 for "none" */
    const struct {
        const char *name;
        float value, min, max;
    } ranges[] = {{"freq_base", base, 1.001f, 1e12f},
                  {"scaling.factor", factor, 1e-3f, 1e6f},
                  {"scaling.attn_factor", attn, 1e-3f, 1e3f},
                  {"scaling.yarn_ext_factor", ext, 0, 1},
                  {"scaling.yarn_beta_fast", fast, 1e-6f, 1e6f},
                  {"scaling.yarn_beta_slow", slow, 1e-6f, 1e6f}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (!(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.rope.%s is %g, expected %g to %g", label, m->arch,
                           ranges[i].name, ranges[i].value, ranges[i].min, ranges[i].max);
    bool none = rq_gguf_str_eq(type, "none");
    hp->rope_yarn = rq_gguf_str_eq(type, "yarn");
    if (!none && !hp->rope_yarn && !rq_gguf_str_eq(type, "linear"))
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s: rope scaling type \"%.*s\" is not known (none, linear, yarn are)", label,
                       (int)(type.len < 40 ? type.len : 40), type.data);
    hp->rope_base = base;
    hp->rope_factor = none ? 1.0 : factor;
    hp->yarn_ext = ext;
    hp->yarn_beta_fast = fast;
    hp->yarn_beta_slow = slow;
    hp->rope_attn_factor = attn;
    return RQ_OK;
}

static rq_status read_experts(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    const char *label = rq_gguf_label(m->gguf);
    rq_status s = opt_u32(m, "expert_count", 0, RQ_MAX_EXPERTS, 0, &hp->n_expert, err);
    if (!s) s = opt_u32(m, "expert_used_count", 0, RQ_MAX_EXPERTS_USED, 0, &hp->n_expert_used, err);
    if (!s) s = opt_f32(m, "expert_weights_scale", 0.0f, &hp->expert_scale, err);
    if (s) return s;
    if (hp->expert_scale == 0.0f) hp->expert_scale = 1.0f;
    if (hp->n_expert == 0) {
        if (!m->family->dense)
            return rq_fail(err, RQ_ERR_FORMAT,
                           "%s: %s.expert_count is missing or 0 in a mixture-of-experts file", label,
                           m->arch);
        return RQ_OK;
    }
    if (!m->family->experts)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: %s.expert_count is %u, but %s files have no experts",
                       label, m->arch, hp->n_expert, m->arch);
    if (hp->n_expert_used == 0 || hp->n_expert_used > hp->n_expert)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.expert_used_count is %u of %u experts", label, m->arch,
                       hp->n_expert_used, hp->n_expert);
    return RQ_OK;
}

/* Which layers are recurrent: a list in the file, or all but every n-th. */
static rq_status read_mixers(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    uint32_t interval, n = hp->n_layers + hp->n_mtp;
    rq_status s = opt_u32(m, "full_attention_interval", 1, RQ_MAX_LAYERS, 4, &interval, err);
    key list = key_of(m, "attention.recurrent_layers");
    uint32_t *recurrent = NULL;
    if (!s && rq_gguf_find(m->gguf, list.text)) {
        recurrent = rq_calloc(n, sizeof *recurrent);
        if (!recurrent) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u layers", n);
        s = rq_gguf_get_u32s(m->gguf, list.text, n, 0, 1, recurrent, err);
    }
    uint32_t n_delta = 0;
    for (uint32_t i = 0; i < n && !s; i++) {
        bool delta = recurrent ? recurrent[i] != 0 : (i + 1) % interval != 0;
        m->layers[i].mtp = i >= hp->n_layers;
        m->layers[i].mixer = delta && !m->layers[i].mtp ? RQ_MIXER_DELTA : RQ_MIXER_ATTENTION;
        n_delta += m->layers[i].mixer == RQ_MIXER_DELTA;
    }
    rq_free(recurrent);
    if (!s && (n_delta == 0 || n_delta == hp->n_layers))
        s = rq_fail(err, RQ_ERR_FORMAT, "%s: %u of %u layers are recurrent, where some of both are needed",
                    rq_gguf_label(m->gguf), n_delta, hp->n_layers);
    return s;
}

/* The delta rule's sizes; their keys are named after another kind of recurrence. */
static rq_status read_delta(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    const char *label = rq_gguf_label(m->gguf);
    uint32_t inner, sections[4];
    rq_status s = get_u32(m, "ssm.conv_kernel", 2, RQ_MAX_CONV_TAPS, &hp->conv_taps, err);
    if (!s) s = get_u32(m, "ssm.state_size", 4, MAX_HEAD_DIM, &hp->state_dim, err);
    if (!s) s = get_u32(m, "ssm.group_count", 1, MAX_HEADS, &hp->n_key_heads, err);
    if (!s) s = get_u32(m, "ssm.time_step_rank", 1, MAX_HEADS, &hp->n_value_heads, err);
    if (!s) s = get_u32(m, "ssm.inner_size", 1, MAX_HEADS * MAX_HEAD_DIM, &inner, err);
    if (!s)
        s = rq_gguf_get_u32s(m->gguf, key_of(m, "rope.dimension_sections").text, 4, 0, MAX_HEAD_DIM, sections,
                             err);
    if (s) return s;
    if (hp->n_value_heads % hp->n_key_heads)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: %s.ssm.time_step_rank is %u, not a multiple of %s.ssm.group_count, which is %u",
                       label, m->arch, hp->n_value_heads, m->arch, hp->n_key_heads);
    if (inner != hp->n_value_heads * hp->state_dim)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.ssm.inner_size is %u with %u heads of %u", label, m->arch,
                       inner, hp->n_value_heads, hp->state_dim);
    if (sections[0] + sections[1] + sections[2] + sections[3] != hp->n_rot / 2)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: %s.rope.dimension_sections add up to %u pairs, where %u elements are rotated",
                       label, m->arch, sections[0] + sections[1] + sections[2] + sections[3], hp->n_rot);
    return read_mixers(m, err);
}

/* Blocks behind the trunk are counted in block_count. */
static rq_status read_mtp(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    rq_status s = opt_u32(m, "nextn_predict_layers", 0, RQ_MAX_LAYERS, 0, &hp->n_mtp, err);
    if (s) return s;
    if (hp->n_mtp >= hp->n_layers)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.nextn_predict_layers is %u of %u blocks",
                       rq_gguf_label(m->gguf), m->arch, hp->n_mtp, hp->n_layers);
    hp->n_layers -= hp->n_mtp;
    return RQ_OK;
}

/* ---- gemma ---------------------------------------------------------------------------------------------- */

/* Which layers see a window: a list in the file, or (Gemma 3) all but every n-th. */
static rq_status read_windows(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    key pattern = key_of(m, "attention.sliding_window_pattern");
    const rq_gguf_kv *kv = rq_gguf_find(m->gguf, pattern.text);
    bool list = m->family->gemma4 || (kv && kv->is_array);
    uint32_t window, period = 6, windowed[RQ_MAX_LAYERS] = {0};
    rq_status s = m->family->gemma4 ? get_u32(m, "attention.sliding_window", 1, INT32_MAX, &window, err)
                                    : opt_u32(m, "attention.sliding_window", 0, INT32_MAX, 0, &window, err);
    if (!s && list) s = rq_gguf_get_u32s(m->gguf, pattern.text, hp->n_layers, 0, 1, windowed, err);
    if (!s && !list) s = opt_u32(m, "attention.sliding_window_pattern", 1, RQ_MAX_LAYERS, 6, &period, err);
    for (uint32_t i = 0; i < hp->n_layers && !s; i++)
        if (list ? windowed[i] != 0 : i % period < period - 1) m->layers[i].window = window;
    return s;
}

/* Head sizes and rotary embedding of the layers with a window. */
static rq_status read_window_shapes(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    const char *label = rq_gguf_label(m->gguf);
    uint32_t dim_k = hp->dim_k, dim_v = hp->dim_v, n_rot = hp->n_rot;
    float base;
    rq_status s = opt_f32(m, "rope.freq_base_swa", 10000.0f, &base, err);
    if (!s && m->family->gemma4) {
        s = opt_u32(m, "attention.key_length_swa", 8, MAX_HEAD_DIM, hp->dim_k, &dim_k, err);
        if (!s) s = opt_u32(m, "attention.value_length_swa", 8, MAX_HEAD_DIM, hp->dim_v, &dim_v, err);
        if (!s) s = opt_u32(m, "rope.dimension_count_swa", 2, MAX_HEAD_DIM, hp->n_rot, &n_rot, err);
    }
    if (s) return s;
    if (!(base >= 1.001f && base <= 1e12f))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.rope.freq_base_swa is %g, expected 1.001 to 1e12", label,
                       m->arch, base);
    if (dim_k % 8 || dim_v % 8)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s: head sizes %u and %u of layers with a window: only multiples of 8 can be run",
                       label, dim_k, dim_v);
    if (n_rot % 2 || n_rot > dim_k)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.rope.dimension_count_swa is %u with a head size of %u",
                       label, m->arch, n_rot, dim_k);
    hp->window_rope_base = base;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        rq_layer *l = &m->layers[i];
        if (l->window == 0) continue;
        l->dim_k = dim_k;
        l->dim_v = dim_v;
        l->n_rot = n_rot;
    }
    return RQ_OK;
}

/* The last layers attend to the keys and values of the last layer of their kind before them. */
static rq_status read_shared(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    uint32_t n_shared;
    rq_status s = opt_u32(m, "attention.shared_kv_layers", 0, hp->n_layers - 1, 0, &n_shared, err);
    for (uint32_t i = hp->n_layers - n_shared; i < hp->n_layers && !s; i++) {
        rq_layer *l = &m->layers[i];
        uint32_t own = hp->n_layers - n_shared;
        while (own > 0 && (m->layers[own - 1].window != 0) != (l->window != 0)) own--;
        if (own == 0 || m->layers[own - 1].n_head_kv != l->n_head_kv)
            s = rq_fail(
                err, RQ_ERR_FORMAT,
                "%s: layer %u shares the keys and values of an earlier layer (%s.attention.shared_kv_layers "
                "is %u), but none before has its shape",
                rq_gguf_label(m->gguf), i, m->arch, n_shared);
        else
            l->kv_layer = own - 1;
    }
    return s;
}

static rq_status read_gemma(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    bool four = m->family->gemma4;
    rq_status s = read_windows(m, err);
    if (!s) s = read_window_shapes(m, err);
    if (!s && four) s = read_shared(m, err);
    if (!s) s = opt_f32(m, "final_logit_softcapping", four ? 30.0f : 0.0f, &hp->logit_cap, err);
    if (!s && !(hp->logit_cap >= 0 && hp->logit_cap <= 1e6f))
        s = rq_fail(err, RQ_ERR_FORMAT, "%s: %s.final_logit_softcapping is %g", rq_gguf_label(m->gguf),
                    m->arch, hp->logit_cap);
    if (!s && four) s = get_u32(m, "embedding_length_per_layer_input", 0, MAX_DIM, &hp->n_ple, err);
    for (uint32_t i = 0; i < hp->n_layers && !s; i++) {
        rq_layer *l = &m->layers[i];
        if (four) l->scale = 1.0f; /* the norm of q has taken it in */
        /* the one of 27B, known by its depth: query_pre_attn_scalar is n_embd / n_head there */
        else if (hp->n_layers == 62)
            l->scale = 1.0f / sqrtf((float)hp->n_embd / (float)l->n_head);
    }
    return s;
}

rq_status rq_hparams_read(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    rq_status s = get_u32(m, "block_count", 1, RQ_MAX_LAYERS, &hp->n_layers, err);
    if (!s) s = get_u32(m, "embedding_length", 8, MAX_DIM, &hp->n_embd, err);
    if (!s) s = get_u32(m, "context_length", 1, INT32_MAX, &hp->n_ctx_train, err);
    if (!s) s = rq_gguf_get_f32(m->gguf, key_of(m, "attention.layer_norm_rms_epsilon").text, &hp->eps, err);
    if (s) return s;
    if (!(hp->eps >= 0 && hp->eps < 1))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %s.attention.layer_norm_rms_epsilon is %g",
                       rq_gguf_label(m->gguf), m->arch, hp->eps);
    hp->n_vocab = (uint32_t)rq_tokenizer_n_tokens(m->tok);
    if (m->family->hybrid) s = read_mtp(m, err);
    if (s) return s;
    m->layers = rq_calloc((size_t)hp->n_layers + hp->n_mtp, sizeof *m->layers);
    if (!m->layers) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u layers", hp->n_layers);
    s = read_experts(m, err);
    if (!s) s = read_heads(m, err);
    if (!s) s = read_head_dims(m, err);
    if (!s) s = read_rope(m, err);
    if (!s && m->family->hybrid) s = read_delta(m, err);
    if (!s && m->family->gemma) s = read_gemma(m, err);
    if (!s && hp->n_expert) {
        uint32_t fallback = m->layers[0].n_ff / hp->n_expert_used;
        s = m->family->gemma4
                ? get_u32(m, "expert_feed_forward_length", 1, MAX_DIM, &hp->n_ff_expert, err)
                : opt_u32(m, "expert_feed_forward_length", 1, MAX_DIM, fallback, &hp->n_ff_expert, err);
        /* Files of the llama family give the experts' size as feed_forward_length. */
        if (!s && m->family->dense && !rq_gguf_find(m->gguf, key_of(m, "expert_feed_forward_length").text))
            hp->n_ff_expert = m->layers[0].n_ff;
        if (!s && hp->n_ff_expert == 0)
            s = rq_fail(err, RQ_ERR_FORMAT, "%s: %s.expert_feed_forward_length is missing",
                        rq_gguf_label(m->gguf), m->arch);
    }
    if (!s && m->family->shared)
        s = get_u32(m, "expert_shared_feed_forward_length", 1, MAX_DIM, &hp->n_ff_shared, err);
    return s;
}
