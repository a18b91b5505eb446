/* profile.c - vectors and rotations of a model's cache: making, checking, matching with a model. */
#include "engine/kv/profile.h"
#include "backends/base/mem.h"
#include "backends/formats/kv_codec.h"
#include "engine/kv.h"
#include "engine/models/model.h"

#include <math.h>
#include <string.h>

/* Matrices of whole heads are for formats with codes, which have a largest head. */
static size_t basis_floats(size_t heads, uint32_t dim)
{
    return dim > RQ_KV_MAX_DIM ? 0 : heads * dim * dim;
}

size_t rq_kv_part_floats(const rq_kv_layer_profile *l, rq_kv_part part)
{
    size_t heads = l->n_heads;
    switch (part) {
    case RQ_KV_MEAN_K:
    case RQ_KV_LAMBDA_K:
        return heads * l->dim_k;
    case RQ_KV_MEAN_V:
        return heads * l->dim_v;
    case RQ_KV_SO8_K:
        return l->dim_k % 8 ? 0 : heads * l->dim_k * 8;
    case RQ_KV_SO8_V:
        return l->dim_v % 8 ? 0 : heads * l->dim_v * 8;
    case RQ_KV_KLT_K:
        return basis_floats(heads, l->dim_k);
    case RQ_KV_KLT_V:
        return basis_floats(heads, l->dim_v);
    }
    return 0;
}

float **rq_kv_part_slot(rq_kv_layer_profile *l, rq_kv_part part)
{
    switch (part) {
    case RQ_KV_MEAN_K:
        return &l->mean_k;
    case RQ_KV_LAMBDA_K:
        return &l->lambda_k;
    case RQ_KV_MEAN_V:
        return &l->mean_v;
    case RQ_KV_SO8_K:
        return &l->so8_k;
    case RQ_KV_SO8_V:
        return &l->so8_v;
    case RQ_KV_KLT_K:
        return &l->klt_k;
    case RQ_KV_KLT_V:
        return &l->klt_v;
    }
    return NULL;
}

bool rq_kv_shape_exists(const rq_kv_layer_profile *l)
{
    return l->n_heads <= 4096 && l->dim_k <= 1024 && l->dim_v <= 1024 && l->n_rot % 2 == 0 &&
           l->n_rot <= l->dim_k && l->n_turned <= l->n_rot / 2;
}

rq_kv_profile *rq_kv_profile_make(uint32_t n_layers)
{
    rq_kv_profile *p = rq_calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->layers = rq_calloc(n_layers, sizeof *p->layers);
    if (p->layers == NULL) {
        rq_free(p);
        return NULL;
    }
    p->n_layers = n_layers;
    return p;
}

/* The pairs of a layer's rotary embedding that turn within any context: Gemma 4 divides the frequencies of the others
 * by 1e30 (rope.c), the slowest of a model that means them has some 1e-18 radians per position. */
static uint32_t turned_pairs(const rq_model *m, const rq_layer *l)
{
    const float *radians = m->weights[l->inv_freq].host;
    uint32_t n = l->n_rot / 2;
    while (n > 0 && !(radians[n - 1] >= 1e-20f)) n--;
    return n;
}

/* What a profile of this model says about layer i before it has any parts. */
static rq_kv_layer_profile shape_of(const rq_model *m, uint32_t i)
{
    const rq_layer *l = &m->layers[i];
    if (l->mixer != RQ_MIXER_ATTENTION || l->kv_layer != i) return (rq_kv_layer_profile){0};
    return (rq_kv_layer_profile){.n_heads = l->n_head_kv,
                                 .dim_k = l->dim_k,
                                 .dim_v = l->dim_v,
                                 .n_rot = l->n_rot,
                                 .n_turned = turned_pairs(m, l)};
}

rq_status rq_kv_profile_new(const rq_model *m, uint32_t n_positions, rq_kv_profile **out, rq_error *err)
{
    rq_kv_profile *p = rq_kv_profile_make(m->hp.n_layers);
    if (p == NULL)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a cache profile of %u layers", m->hp.n_layers);
    rq_kv_identify(m, &p->identity);
    p->n_positions = n_positions;
    p->rot_halves = m->family->pairing == RQ_ROPE_NEOX;
    for (uint32_t i = 0; i < p->n_layers; i++) p->layers[i] = shape_of(m, i);
    *out = p;
    return RQ_OK;
}

float *rq_kv_profile_add(rq_kv_profile *p, uint32_t layer, rq_kv_part part)
{
    if (layer >= p->n_layers) return NULL;
    rq_kv_layer_profile *l = &p->layers[layer];
    float **slot = rq_kv_part_slot(l, part);
    if (slot == NULL) return NULL;
    if (*slot != NULL) return *slot;
    size_t n = rq_kv_part_floats(l, part);
    if (n == 0) return NULL;
    *slot = rq_calloc(n, sizeof **slot);
    if (*slot == NULL) return NULL;
    if (part == RQ_KV_LAMBDA_K)
        for (size_t i = 0; i < n; i++) (*slot)[i] = 1.0f;
    if (part == RQ_KV_SO8_K || part == RQ_KV_SO8_V)
        for (size_t i = 0; i < n / 8; i++) (*slot)[8 * i + i % 8] = 1.0f;
    uint32_t d = part == RQ_KV_KLT_K ? l->dim_k : part == RQ_KV_KLT_V ? l->dim_v : 0;
    for (size_t i = 0; d && i < n / d; i++) (*slot)[i * d + i % d] = 1.0f;
    return *slot;
}

void rq_kv_profile_free(rq_kv_profile *p)
{
    if (p == NULL) return;
    for (uint32_t i = 0; i < p->n_layers; i++)
        for (int part = 0; part < RQ_KV_PARTS; part++) rq_free(*rq_kv_part_slot(&p->layers[i], part));
    rq_free(p->layers);
    rq_free(p);
}

/* ---- checking ------------------------------------------------------------------------------------------ */

/* Means are taken from keys and values that f16 has to hold. */
static bool all_within(const float *x, size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++)
        if (!(x[i] >= low && x[i] <= high)) return false; /* NaN too */
    return true;
}

static bool pairs_equal(const rq_kv_layer_profile *l, bool halves, const float *x)
{
    for (size_t head = 0; head < (size_t)l->n_heads * l->dim_k; head += l->dim_k)
        for (uint32_t i = 0; i < l->n_turned; i++) {
            size_t a = head + (halves ? i : 2 * i), b = head + (halves ? i + l->n_rot / 2 : 2 * i + 1);
            if (x[a] != x[b]) return false;
        }
    return true;
}

static bool orthogonal(const float *m, size_t n)
{
    for (size_t at = 0; at < n; at += 64)
        for (int i = 0; i < 8; i++)
            for (int j = i; j < 8; j++) {
                double sum = 0;
                for (int k = 0; k < 8; k++) sum += (double)m[at + 8 * i + k] * m[at + 8 * j + k];
                if (!(fabs(sum - (i == j)) <= 1e-4)) return false;
            }
    return true;
}

static rq_status check_part(const rq_kv_profile *p, uint32_t layer, rq_kv_part part, rq_error *err)
{
    rq_kv_layer_profile *l = &p->layers[layer];
    const float *x = *rq_kv_part_slot(l, part);
    size_t n = rq_kv_part_floats(l, part);
    if (x == NULL) return RQ_OK;
    if (part == RQ_KV_SO8_K || part == RQ_KV_SO8_V)
        return orthogonal(x, n)
                   ? RQ_OK
                   : rq_fail(err, RQ_ERR_FORMAT,
                             "cache profile, layer %u: a matrix of its rotations is not orthogonal", layer);
    if (part == RQ_KV_KLT_K || part == RQ_KV_KLT_V)
        return all_within(x, n, -65504.0f, 65504.0f)
                   ? RQ_OK
                   : rq_fail(err, RQ_ERR_FORMAT, "cache profile, layer %u: a basis holds no sensible number",
                             layer);
    if (part != RQ_KV_LAMBDA_K)
        return all_within(x, n, -65504.0f, 65504.0f)
                   ? RQ_OK
                   : rq_fail(err, RQ_ERR_FORMAT, "cache profile, layer %u: a mean is no sensible number",
                             layer);
    if (!all_within(x, n, 1.0f / 16, 16.0f))
        return rq_fail(err, RQ_ERR_FORMAT, "cache profile, layer %u: a scale is not between 1/16 and 16",
                       layer);
    if (!pairs_equal(l, p->rot_halves, x))
        return rq_fail(err, RQ_ERR_FORMAT,
                       "cache profile, layer %u: the two elements of a rotary pair are scaled differently",
                       layer);
    return RQ_OK;
}

rq_status rq_kv_profile_check(const rq_kv_profile *p, rq_error *err)
{
    if (p->n_layers == 0 || p->n_layers > RQ_MAX_LAYERS)
        return rq_fail(err, RQ_ERR_FORMAT, "a cache profile has 1 to %d layers, not %u", RQ_MAX_LAYERS,
                       p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const rq_kv_layer_profile *l = &p->layers[i];
        if (!rq_kv_shape_exists(l))
            return rq_fail(err, RQ_ERR_FORMAT,
                           "cache profile, layer %u: %u heads of %u and %u elements, %u of them in %u turned "
                           "pairs, do not exist",
                           i, l->n_heads, l->dim_k, l->dim_v, l->n_rot, l->n_turned);
        for (int part = 0; part < RQ_KV_PARTS; part++) {
            rq_status status = check_part(p, i, part, err);
            if (status != RQ_OK) return status;
        }
    }
    return RQ_OK;
}

rq_status rq_kv_profile_fits(const rq_kv_profile *p, const rq_model *m, uint32_t n_ctx, rq_error *err)
{
    rq_kv_identity own;
    rq_kv_identify(m, &own);
    if (own.model != p->identity.model)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the cache profile was made from another model file than %.200s",
                       m->path);
    if (own.rope != p->identity.rope)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "the cache profile was made with other rotary settings than those of %.200s", m->path);
    bool same = p->n_layers == m->hp.n_layers && p->rot_halves == (m->family->pairing == RQ_ROPE_NEOX);
    for (uint32_t i = 0; same && i < p->n_layers; i++) {
        rq_kv_layer_profile own_shape = shape_of(m, i);
        const rq_kv_layer_profile *l = &p->layers[i];
        same = l->n_heads == own_shape.n_heads && l->dim_k == own_shape.dim_k &&
               l->dim_v == own_shape.dim_v && l->n_rot == own_shape.n_rot &&
               l->n_turned == own_shape.n_turned;
    }
    if (!same)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "the cache profile has other layers, heads or rotary pairs than %.200s", m->path);
    if (n_ctx > p->n_positions)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "the cache profile was calibrated for contexts of up to %u tokens, and %u are asked for: ask "
            "for a smaller context, or calibrate with longer texts",
            p->n_positions, n_ctx);
    return RQ_OK;
}
