/* rope.c - rotary frequencies as one table of radians per position, so that no kernel knows about scaling. */
#include "backends/base/mem.h"
#include "engine/models/model.h"

#include <math.h>

/* Pair index (real-valued) whose wavelength makes `rotations` turns in the original context.
 * Source: YaRN (Peng et al., 2023), equation for d(r). */
static double yarn_dim(const rq_hparams *hp, double rotations)
{
    return hp->n_rot * log(hp->rope_ctx_orig / (rotations * 2 * M_PI)) / (2 * log(hp->rope_base));
}

/* Layers with a window: a base of their own, no scaling. */
static rq_status prepare_windows(rq_model *m, rq_error *err)
{
    const rq_hparams *hp = &m->hp;
    uint32_t weight = RQ_NO_WEIGHT;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        rq_layer *l = &m->layers[i];
        if (l->window == 0) continue;
        if (weight == RQ_NO_WEIGHT) {
            const uint32_t ne[4] = {l->n_rot / 2, 1, 1, 1};
            float *table = rq_model_own_table(m, ne[0]);
            if (!table) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u rotary frequencies", ne[0]);
            for (uint32_t k = 0; k < ne[0]; k++)
                table[k] = (float)pow(hp->window_rope_base, -2.0 * k / l->n_rot);
            rq_status s = rq_model_add_weight(m, "rope.inv_freq of windows", RQ_TYPE_F32, ne, table,
                                              ne[0] * sizeof(float), &weight, err);
            if (s) return s;
        }
        l->inv_freq = weight;
        l->rope_magnitude = (float)hp->rope_attn_factor;
    }
    return RQ_OK;
}

rq_status rq_rope_prepare(rq_model *m, rq_error *err)
{
    rq_hparams *hp = &m->hp;
    uint32_t n = hp->n_rot / 2;
    m->inv_freq_data = rq_calloc(n, sizeof *m->inv_freq_data);
    if (!m->inv_freq_data) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u rotary frequencies", n);

    const float *factors = NULL; /* "llama3" scaling: the file's own divisors, one per pair */
    uint32_t freqs = m->global[RQ_ROLE_ROPE_FREQS].weight;
    if (freqs != RQ_NO_WEIGHT) factors = m->weights[freqs].host;

    double low = 0, high = 0;
    hp->rope_magnitude = (float)hp->rope_attn_factor;
    if (hp->rope_yarn && hp->yarn_ext > 0) {
        low = fmax(0, floor(yarn_dim(hp, hp->yarn_beta_fast)));
        high = fmin(hp->n_rot - 1, ceil(yarn_dim(hp, hp->yarn_beta_slow)));
        /* YaRN's equation for sqrt(1/t), which lengthens queries and keys alike; a context that is not
         * stretched needs none */
        if (hp->rope_factor > 1)
            hp->rope_magnitude = (float)(hp->rope_attn_factor * (1 + 0.1 * log(hp->rope_factor)));
    }
    for (uint32_t i = 0; i < n; i++) {
        double f = pow(hp->rope_base, -2.0 * i / hp->n_rot);
        if (factors) {
            if (!(factors[i] >= 1e-9f && factors[i] <= 1e31f)) /* NaN too; Gemma 4 writes 1e30 for "never" */
                return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor rope_freqs.weight holds %g at index %u",
                               rq_gguf_label(m->gguf), factors[i], i);
            f /= factors[i];
        }
        double interpolated = f / hp->rope_factor, mix = 0;
        if (hp->rope_yarn) { /* near 1 for pairs that turn often in the original context */
            double ramp = (i - low) / fmax(0.001, high - low);
            mix = hp->yarn_ext * (1 - fmin(1, fmax(0, ramp)));
        }
        m->inv_freq_data[i] = (float)(interpolated * (1 - mix) + f * mix);
    }
    const uint32_t ne[4] = {n, 1, 1, 1};
    uint32_t weight;
    rq_status s = rq_model_add_weight(m, "rope.inv_freq", RQ_TYPE_F32, ne, m->inv_freq_data,
                                      n * sizeof(float), &weight, err);
    for (uint32_t i = 0; i < hp->n_layers + hp->n_mtp && !s; i++) {
        m->layers[i].inv_freq = weight;
        m->layers[i].rope_magnitude = hp->rope_magnitude;
    }
    return s ? s : prepare_windows(m, err);
}
