/* identity.c - what a profile or a table of measurements is bound to. */
#include "backends/base/mem.h"
#include "engine/kv.h"
#include "engine/models/model.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { SAMPLE_BYTES = 256 };

/* Two files with the same hash compute the same keys and values: what the forward pass is made of, and both ends
 * of every tensor. Reading all of a large file would take longer than loading it. */
static uint64_t hash_model(const rq_model *m)
{
    const rq_hparams *hp = &m->hp;
    uint64_t h = XXH3_64bits_withSeed(m->arch, strlen(m->arch), 1);
    const uint32_t numbers[] = {hp->n_layers, hp->n_embd,   hp->n_vocab,       hp->dim_k,
                                hp->dim_v,    hp->n_expert, hp->n_expert_used, hp->n_ff_expert};
    const float reals[] = {hp->eps, hp->expert_scale};
    h = XXH3_64bits_withSeed(numbers, sizeof numbers, h);
    h = XXH3_64bits_withSeed(reals, sizeof reals, h);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        const uint32_t heads[] = {l->n_head, l->n_head_kv, l->n_ff};
        h = XXH3_64bits_withSeed(heads, sizeof heads, h);
        if (l->kv_layer != i) h = XXH3_64bits_withSeed(&l->kv_layer, sizeof l->kv_layer, h);
        if (l->window == 0) continue;
        const uint32_t window[] = {l->window, l->dim_k, l->dim_v};
        h = XXH3_64bits_withSeed(window, sizeof window, h);
    }
    for (uint64_t i = 0; i < rq_gguf_n_tensors(m->gguf); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(m->gguf, i);
        const uint64_t shape[] = {t->ne[0], t->ne[1], t->ne[2], t->ne[3], (uint64_t)t->type};
        h = XXH3_64bits_withSeed(t->name, strlen(t->name), h);
        h = XXH3_64bits_withSeed(shape, sizeof shape, h);
        size_t n = t->nbytes < SAMPLE_BYTES ? (size_t)t->nbytes : SAMPLE_BYTES;
        h = XXH3_64bits_withSeed(t->data, n, h);
        h = XXH3_64bits_withSeed(t->data + (t->nbytes - n), n, h);
    }
    return h;
}

static uint64_t hash_rope(const rq_model *m)
{
    const rq_hparams *hp = &m->hp;
    const uint32_t numbers[] = {hp->n_rot, (uint32_t)m->family->pairing};
    uint64_t h = XXH3_64bits_withSeed(numbers, sizeof numbers, 2);
    h = XXH3_64bits_withSeed(&hp->rope_magnitude, sizeof hp->rope_magnitude, h);
    h = XXH3_64bits_withSeed(m->inv_freq_data, hp->n_rot / 2 * sizeof *m->inv_freq_data, h);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        if (l->window == 0) continue; /* they all have the same frequencies */
        return XXH3_64bits_withSeed(m->weights[l->inv_freq].host, m->weights[l->inv_freq].bytes, h);
    }
    return h;
}

void rq_kv_identify(const rq_model *model, rq_kv_identity *out)
{
    *out = (rq_kv_identity){.model = hash_model(model), .rope = hash_rope(model)};
}

uint32_t rq_kv_owner(const rq_model *m, uint32_t layer)
{
    bool attends = layer < m->hp.n_layers && m->layers[layer].mixer == RQ_MIXER_ATTENTION;
    return attends ? m->layers[layer].kv_layer : RQ_KV_NO_LAYER;
}

rq_status rq_kv_layer_of(const rq_model *m, uint32_t layer, rq_kv_layer *out, rq_error *err)
{
    if (layer >= m->hp.n_layers)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the model has the layers 0 to %u, not %u", m->hp.n_layers - 1,
                       layer);
    const rq_layer *l = &m->layers[layer];
    if (l->mixer != RQ_MIXER_ATTENTION)
        return rq_fail(err, RQ_ERR_ARGUMENT, "layer %u is recurrent and keeps no keys and values", layer);
    if (l->kv_layer != layer)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "layer %u attends to the keys and values of layer %u and keeps none of its own", layer,
                       l->kv_layer);
    *out = (rq_kv_layer){.n_heads = l->n_head,
                         .n_heads_kv = l->n_head_kv,
                         .dim_k = l->dim_k,
                         .dim_v = l->dim_v,
                         .window = l->window,
                         .scale = l->scale,
                         .softcap = 0.0f};
    return RQ_OK;
}

/* Adds W_h^T W_h of one layer's query heads that read this KV head to out [d][d], up to the diagonal; `row` has room for
 * a row of W. */
static void add_value_weight(const rq_model *m, const rq_layer *l, uint32_t head, float *row, double *out)
{
    const rq_weight *w = &m->weights[l->t[RQ_ROLE_ATTN_OUTPUT].weight];
    const rq_type_info *type = rq_type_get((uint32_t)w->type);
    uint32_t d = l->dim_v, group = l->n_head / l->n_head_kv, n = w->ne[0];
    uint64_t row_bytes = (uint64_t)n / type->block_elems * type->block_bytes;
    rq_tensor_ref norm = m->family->gemma ? l->t[RQ_ROLE_POST_ATTENTION_NORM] : RQ_NO_TENSOR;
    const float *after = norm.weight != RQ_NO_WEIGHT && m->weights[norm.weight].type == RQ_TYPE_F32
                             ? m->weights[norm.weight].host
                             : NULL;
    for (uint32_t r = 0; r < w->ne[1]; r++) {
        type->dequantize((const uint8_t *)w->host + r * row_bytes, row, n);
        double square = after ? (double)after[r] * (double)after[r] : 1;
        for (uint32_t q = head * group; q < (head + 1) * group; q++) {
            const float *x = row + (size_t)q * d;
            for (uint32_t i = 0; i < d; i++)
                for (uint32_t j = 0; j <= i; j++)
                    out[(size_t)i * d + j] += square * (double)x[i] * (double)x[j];
        }
    }
}

rq_status rq_kv_value_weight(const rq_model *m, uint32_t layer, uint32_t head, double *out, rq_error *err)
{
    const rq_layer *l = rq_kv_owner(m, layer) == layer ? &m->layers[layer] : NULL;
    if (l == NULL || head >= l->n_head_kv)
        return rq_fail(err, RQ_ERR_ARGUMENT, "layer %u has no key/value head %u", layer, head);
    uint32_t widest = 0;
    for (uint32_t i = layer; i < m->hp.n_layers; i++) {
        if (rq_kv_owner(m, i) != layer) continue;
        uint32_t n = m->weights[m->layers[i].t[RQ_ROLE_ATTN_OUTPUT].weight].ne[0];
        if (n > widest) widest = n;
    }
    float *row = rq_calloc(widest, sizeof *row);
    if (row == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a row of weights");
    memset(out, 0, (size_t)l->dim_v * l->dim_v * sizeof *out);
    for (uint32_t i = layer; i < m->hp.n_layers; i++)
        if (rq_kv_owner(m, i) == layer) add_value_weight(m, &m->layers[i], head, row, out);
    for (uint32_t i = 0; i < l->dim_v; i++)
        for (uint32_t j = 0; j < i; j++) out[(size_t)j * l->dim_v + i] = out[(size_t)i * l->dim_v + j];
    rq_free(row);
    return RQ_OK;
}

/* The model's path with something behind it. */
static char *beside(const rq_model *m, const char *suffix)
{
    size_t n = strlen(m->path), k = strlen(suffix);
    char *path = rq_malloc(n + k + 1);
    if (path == NULL) return NULL;
    memcpy(path, m->path, n);
    memcpy(path + n, suffix, k + 1);
    return path;
}

char *rq_kv_profile_path(const rq_model *model)
{
    return beside(model, ".kvprofile");
}

char *rq_kv_table_path(const rq_model *model)
{
    return beside(model, ".kvtable");
}
