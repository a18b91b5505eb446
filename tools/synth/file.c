#include "tools/synth/file.h"

#include "backends/base/mem.h"
#include "engine/gguf/writer.h"
#include "tools/synth/plan.h"
#include "tools/synth/vocab.h"
#include "tools/synth/weights.h"

#include <stdio.h>

#define PIECE_BYTES ((size_t)1 << 20)
enum { SYNTH_MAX_LAYERS = 1024 }; /* of --layers */

/* A key of the family: "<arch>.<rest>". */
static const char *key_of(const synth_preset *p, const char *rest, char out[96])
{
    snprintf(out, 96, "%s.%s", synth_arch(p), rest);
    return out;
}

static void put_flags(rq_gguf_writer *w, const char *key, const uint32_t *values, uint32_t n)
{
    uint8_t flags[SYNTH_MAX_LAYERS];
    for (uint32_t i = 0; i < n; i++) flags[i] = values[i] != 0;
    rq_gguf_put_array(w, key, RQ_GGUF_BOOL, flags, n);
}

static void put_hybrid_keys(rq_gguf_writer *w, const synth_preset *p)
{
    char key[96];
    /* a text's positions turn all pairs alike, however they are divided among three streams */
    uint32_t third = p->n_rot / 2 / 3, pairs = p->n_rot / 2;
    const int32_t sections[4] = {(int32_t)(pairs - third - (pairs - third) / 2),
                                 (int32_t)((pairs - third) / 2), (int32_t)third, 0};
    rq_gguf_put_array(w, key_of(p, "rope.dimension_sections", key), RQ_GGUF_I32, sections, 4);
    rq_gguf_put_u32(w, key_of(p, "ssm.conv_kernel", key), 4);
    rq_gguf_put_u32(w, key_of(p, "ssm.state_size", key), p->state_dim);
    rq_gguf_put_u32(w, key_of(p, "ssm.group_count", key), p->n_key_heads);
    rq_gguf_put_u32(w, key_of(p, "ssm.time_step_rank", key), p->n_value_heads);
    rq_gguf_put_u32(w, key_of(p, "ssm.inner_size", key), p->n_value_heads * p->state_dim);
    rq_gguf_put_u32(w, key_of(p, "full_attention_interval", key), p->period);
    if (p->n_ff_shared)
        rq_gguf_put_u32(w, key_of(p, "expert_shared_feed_forward_length", key), p->n_ff_shared);
    if (p->n_mtp) rq_gguf_put_u32(w, key_of(p, "nextn_predict_layers", key), p->n_mtp);
}

static void put_gemma_keys(rq_gguf_writer *w, const synth_preset *p)
{
    char key[96];
    uint32_t windowed[SYNTH_MAX_LAYERS], n_head_kv[SYNTH_MAX_LAYERS];
    for (uint32_t i = 0; i < p->n_layer; i++) {
        windowed[i] = !synth_layer_is_full(p, i);
        n_head_kv[i] = windowed[i] ? p->n_head_kv : p->n_head_kv_full;
    }
    rq_gguf_put_array(w, key_of(p, "attention.head_count_kv", key), RQ_GGUF_U32, n_head_kv, p->n_layer);
    put_flags(w, key_of(p, "attention.sliding_window_pattern", key), windowed, p->n_layer);
    rq_gguf_put_u32(w, key_of(p, "attention.sliding_window", key), p->window);
    rq_gguf_put_u32(w, key_of(p, "attention.shared_kv_layers", key), 0);
    rq_gguf_put_u32(w, key_of(p, "attention.key_length_swa", key), p->head_dim);
    rq_gguf_put_u32(w, key_of(p, "attention.value_length_swa", key), p->head_dim);
    rq_gguf_put_u32(w, key_of(p, "rope.dimension_count_swa", key), p->head_dim);
    rq_gguf_put_f32(w, key_of(p, "rope.freq_base_swa", key), 10000.0f);
    rq_gguf_put_f32(w, key_of(p, "final_logit_softcapping", key), 30.0f);
    rq_gguf_put_u32(w, key_of(p, "embedding_length_per_layer_input", key), 0);
}

static void put_keys(rq_gguf_writer *w, const synth_preset *p, const synth_mixture *mixture)
{
    char key[96], name[96];
    bool hybrid = p->family == SYNTH_QWEN35, gemma = p->family == SYNTH_GEMMA4;
    uint32_t head_dim = gemma ? p->head_dim_full : p->head_dim;
    snprintf(name, sizeof name, "synthetic %s (random weights)", p->name);
    rq_gguf_put_str(w, "general.architecture", synth_arch(p));
    rq_gguf_put_str(w, "general.type", "model");
    rq_gguf_put_str(w, "general.name", name);
    rq_gguf_put_u32(w, "general.file_type", mixture->file_type);
    rq_gguf_put_u32(w, "general.quantization_version", 2);
    rq_gguf_put_u32(w, key_of(p, "block_count", key), p->n_layer + p->n_mtp);
    rq_gguf_put_u32(w, key_of(p, "context_length", key), p->n_ctx);
    rq_gguf_put_u32(w, key_of(p, "embedding_length", key), p->n_embd);
    if (p->n_ff) rq_gguf_put_u32(w, key_of(p, "feed_forward_length", key), p->n_ff);
    rq_gguf_put_u32(w, key_of(p, "attention.head_count", key), p->n_head);
    if (!gemma) rq_gguf_put_u32(w, key_of(p, "attention.head_count_kv", key), p->n_head_kv);
    if (head_dim * p->n_head != p->n_embd || (p->family != SYNTH_LLAMA && p->family != SYNTH_QWEN2)) {
        rq_gguf_put_u32(w, key_of(p, "attention.key_length", key), head_dim);
        rq_gguf_put_u32(w, key_of(p, "attention.value_length", key), head_dim);
    }
    if (p->family == SYNTH_LLAMA || hybrid || gemma)
        rq_gguf_put_u32(w, key_of(p, "rope.dimension_count", key), hybrid ? p->n_rot : head_dim);
    if (p->family == SYNTH_LLAMA) rq_gguf_put_u32(w, key_of(p, "vocab_size", key), p->n_vocab);
    rq_gguf_put_f32(w, key_of(p, "rope.freq_base", key), p->rope_base);
    rq_gguf_put_f32(w, key_of(p, "attention.layer_norm_rms_epsilon", key), p->norm_eps);
    if (p->n_expert) {
        rq_gguf_put_u32(w, key_of(p, "expert_count", key), p->n_expert);
        rq_gguf_put_u32(w, key_of(p, "expert_used_count", key), p->n_used);
        rq_gguf_put_u32(w, key_of(p, "expert_feed_forward_length", key), p->n_ff_exp);
    }
    if (hybrid) put_hybrid_keys(w, p);
    if (gemma) put_gemma_keys(w, p);
}

static rq_status write_tensor(rq_gguf_writer *w, const synth_preset *p, const synth_tensor *t, uint64_t seed,
                              bool sparse, uint8_t *piece, synth_progress progress, void *context,
                              uint64_t *done, rq_error *err)
{
    synth_source source;
    uint64_t total = rq_gguf_writer_data_bytes(w), n_rows = t->ne[1] * t->ne[2] * t->ne[3];
    rq_status status = RQ_OK;
    if (t->std < 0) {
        float factors[1024];
        for (uint32_t i = 0; i < t->ne[0]; i++)
            factors[i] = p->family == SYNTH_LLAMA ? synth_llama3_factor(i, p->head_dim, (double)p->rope_base)
                         : i < t->ne[0] / 4       ? 1.0f
                                                  : 1e30f; /* Gemma 4: a quarter of the pairs turns */
        *done += t->ne[0] * 4;
        return rq_gguf_writer_write(w, factors, t->ne[0] * 4, err);
    }
    if (sparse && t->n_dims > 1) {
        uint64_t bytes = rq_row_bytes(t->type, t->ne[0]) * n_rows;
        *done += bytes;
        return rq_gguf_writer_skip(w, bytes, err);
    }
    if (!synth_source_init(&source, t, seed))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "weights of type %s cannot be made",
                       rq_type_get(t->type)->name);
    uint64_t per_piece = PIECE_BYTES / source.row_bytes;
    for (uint64_t row = 0; !status && row < n_rows;) {
        uint64_t n = n_rows - row < per_piece ? n_rows - row : per_piece;
        for (uint64_t i = 0; i < n; i++) synth_source_row(&source, row + i, piece + i * source.row_bytes);
        status = rq_gguf_writer_write(w, piece, (size_t)(n * source.row_bytes), err);
        row += n;
        *done += n * source.row_bytes;
        if (progress) progress(context, *done, total);
    }
    return status;
}

static rq_status write_all(rq_gguf_writer *w, const synth_preset *p, const synth_mixture *mixture,
                           const synth_plan *plan, uint64_t seed, bool sparse, uint8_t *piece,
                           synth_progress progress, void *context, rq_error *err)
{
    put_keys(w, p, mixture);
    rq_status status = synth_vocab_put(w, p->family, p->n_vocab, err);
    for (size_t i = 0; i < plan->n; i++)
        rq_gguf_declare(w, plan->tensors[i].name, plan->tensors[i].type, plan->tensors[i].n_dims,
                        plan->tensors[i].ne);
    if (!status) status = rq_gguf_writer_begin_data(w, err);
    uint64_t done = 0;
    for (size_t i = 0; !status && i < plan->n; i++)
        status = write_tensor(w, p, &plan->tensors[i], seed, sparse, piece, progress, context, &done, err);
    return status ? status : rq_gguf_writer_finish(w, err);
}

rq_status synth_write(const char *path, const synth_preset *preset, const synth_mixture *mixture,
                      uint64_t seed, bool sparse, synth_progress progress, void *context, rq_error *err)
{
    synth_plan plan = {0};
    rq_gguf_writer *w = NULL;
    rq_status status = synth_plan_build(preset, mixture, &plan, err);
    if (status) return status;
    uint8_t *piece = rq_malloc(PIECE_BYTES);
    if (!piece) status = rq_fail(err, RQ_ERR_MEMORY, "not enough memory to write %s", path);
    if (!status) status = rq_gguf_writer_create(path, 32, &w, err);
    if (!status) status = write_all(w, preset, mixture, &plan, seed, sparse, piece, progress, context, err);
    rq_gguf_writer_free(w);
    rq_free(piece);
    rq_free(plan.tensors);
    return status;
}
