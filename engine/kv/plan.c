/* plan.c - the tables that turn keys, values, queries and results, and the forward pass that uses them. */
#include "engine/kv/plan.h"

#include "backends/base/mem.h"
#include "engine/kv/profile.h"
#include "engine/say.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* Rotations are the same in every engine: a cache may outlive one. */
enum { SEED_K = 1, SEED_V = 2 };

/* ---- tables as weights --------------------------------------------------------------------------------- */

/* Adds f32 [ne0, ne1] to the weights; the floats must live as long as the plan. */
static rq_status add_weight(rq_kv_plan *plan, const char *name, const float *data, uint32_t ne0, uint32_t ne1,
                            uint32_t *index, rq_error *err)
{
    if (!rq_grow((void **)&plan->weights, &plan->cap_weights, plan->n_weights + 1, sizeof *plan->weights))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the tables of the cache");
    *index = plan->n_weights;
    plan->weights[plan->n_weights++] = (rq_weight){.name = name,
                                                   .type = RQ_TYPE_F32,
                                                   .ne = {ne0, ne1, 1, 1},
                                                   .host = data,
                                                   .bytes = (uint64_t)ne0 * ne1 * sizeof(float)};
    return RQ_OK;
}

/* Room for n floats that the plan owns. */
static float *own_floats(rq_kv_plan *plan, size_t n)
{
    if (!rq_grow((void **)&plan->tables, &plan->cap_tables, plan->n_tables + 1, sizeof *plan->tables))
        return NULL;
    float *x = rq_calloc(n, sizeof *x);
    if (x != NULL) plan->tables[plan->n_tables++] = x;
    return x;
}

static rq_status make_rotation(rq_kv_plan *plan, rq_kv_side *side, uint32_t dim, uint64_t seed,
                               const char *name, rq_error *err)
{
    side->data = RQ_NO_WEIGHT;
    if (side->format.klt) { /* each layer brings its own matrices of a whole head */
        rq_rotation_shape(RQ_ROTATION_HAAR, dim, &side->rotation);
        return RQ_OK;
    }
    if (side->format.rotation == RQ_ROTATION_NONE) return RQ_OK;
    rq_status status = rq_rotation_make(side->format.rotation, dim, seed, &side->rotation, err);
    if (status != RQ_OK) return status;
    return add_weight(plan, name, side->rotation.data, side->rotation.n_floats, 1, &side->data, err);
}

static rq_status make_window_rotations(rq_kv_plan *plan, const rq_model *m, rq_error *err)
{
    plan->window_k.data = plan->window_v.data = RQ_NO_WEIGHT;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        const rq_cache_group *group = &plan->groups[g];
        if (group->window == 0 || !rq_group_is_coded(group)) continue;
        if (plan->window_k.rotation.n_blocks != 0 || plan->window_v.rotation.n_blocks != 0) {
            if (group->dim_k == plan->window_dim_k && group->dim_v == plan->window_dim_v) continue;
            return rq_fail(
                err, RQ_ERR_UNSUPPORTED,
                "layers with windows have heads of different sizes: they cannot be compressed (--kv-swa)");
        }
        plan->window_dim_k = group->dim_k;
        plan->window_dim_v = group->dim_v;
        rq_status status =
            make_rotation(plan, &plan->window_k, group->dim_k, SEED_K, "kv.rotation_k of windows", err);
        if (status == RQ_OK)
            status =
                make_rotation(plan, &plan->window_v, group->dim_v, SEED_V, "kv.rotation_v of windows", err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

/* ---- a layer ------------------------------------------------------------------------------------------- */

static const rq_pass_side NOTHING = {.data = RQ_NO_WEIGHT,
                                     .dual = RQ_NO_WEIGHT,
                                     .mean = RQ_NO_WEIGHT,
                                     .lambda = RQ_NO_WEIGHT,
                                     .lambda_inverse = RQ_NO_WEIGHT};

static void use_rotation(rq_pass_side *out, const rq_kv_side *side)
{
    out->blocks = side->rotation.blocks;
    out->n_blocks = side->rotation.n_blocks;
    out->data = out->dual = side->data;
}

static rq_status use_lambda(rq_kv_plan *plan, rq_pass_side *out, const rq_kv_layer_profile *l, rq_error *err)
{
    size_t n = (size_t)l->n_heads * l->dim_k;
    float *inverse = own_floats(plan, n);
    if (inverse == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the tables of the cache");
    for (size_t i = 0; i < n; i++) inverse[i] = 1.0f / l->lambda_k[i];
    rq_status status = add_weight(plan, "kv.lambda_k", l->lambda_k, l->dim_k, l->n_heads, &out->lambda, err);
    if (status != RQ_OK) return status;
    return add_weight(plan, "kv.lambda_k inverse", inverse, l->dim_k, l->n_heads, &out->lambda_inverse, err);
}

/* Learned matrices take the place of the seeded ones where the format asks for eights. */
static rq_status use_so8(rq_kv_plan *plan, rq_pass_side *out, const rq_kv_side *side, const float *matrices,
                         const char *name, uint32_t dim, uint32_t n_heads, rq_error *err)
{
    if (matrices == NULL || side->format.rotation != RQ_ROTATION_SO8) return RQ_OK;
    rq_status status = add_weight(plan, name, matrices, 8 * dim, n_heads, &out->data, err);
    out->dual = out->data;
    return status;
}

/* The layer's basis for klt formats, as matrices of a whole head. */
static rq_status use_klt(rq_kv_plan *plan, rq_pass_side *out, const rq_kv_side *side, const float *basis,
                         uint64_t seed, const char *name, uint32_t dim, uint32_t n_heads, rq_error *err)
{
    if (!side->format.klt) return RQ_OK;
    bool window = side == &plan->window_k || side == &plan->window_v;
    if (basis == NULL)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "the cache format %s needs a basis, and %.300s has none%s: rqvk-kv calibrate --klt%s makes one",
            side->name, plan->profile_path, window ? " for layers that see a window" : "",
            window ? " --swa" : "");
    size_t n = (size_t)dim * dim;
    float *forward = own_floats(plan, n * n_heads), *dual = own_floats(plan, n * n_heads);
    if (forward == NULL || dual == NULL)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the tables of the cache");
    rq_status status = RQ_OK;
    for (uint32_t h = 0; h < n_heads && status == RQ_OK; h++)
        status =
            rq_kv_format_basis(&side->format, dim, seed, basis + h * n, forward + h * n, dual + h * n, err);
    if (status == RQ_OK) status = add_weight(plan, name, forward, (uint32_t)n, n_heads, &out->data, err);
    if (status == RQ_OK) status = add_weight(plan, name, dual, (uint32_t)n, n_heads, &out->dual, err);
    return status;
}

static rq_status plan_layer(rq_kv_plan *plan, const rq_model *m, uint32_t i, rq_error *err)
{
    rq_pass_layer *out = &plan->layers[i];
    out->k = out->v = NOTHING;
    if (m->layers[i].mixer != RQ_MIXER_ATTENTION) return RQ_OK;
    if (m->layers[i].kv_layer != i) { /* what it attends to was kept by another */
        *out = plan->layers[m->layers[i].kv_layer];
        return RQ_OK;
    }
    const rq_cache_group *group = &plan->groups[m->layers[i].group];
    out->encode = rq_group_is_coded(group);
    if (!out->encode) return RQ_OK;
    const rq_kv_side *k = group->window != 0 ? &plan->window_k : &plan->k;
    const rq_kv_side *v = group->window != 0 ? &plan->window_v : &plan->v;
    use_rotation(&out->k, k);
    use_rotation(&out->v, v);
    if (plan->profile == NULL || m->layers[i].mtp) return RQ_OK; /* nothing was measured of an MTP block */
    const rq_kv_layer_profile *l = &plan->profile->layers[i];
    rq_status status = RQ_OK;
    if (rq_kv_side_takes_profile(k)) {
        if (l->mean_k)
            status = add_weight(plan, "kv.mean_k", l->mean_k, l->dim_k, l->n_heads, &out->k.mean, err);
        if (status == RQ_OK && l->lambda_k && !k->format.klt) status = use_lambda(plan, &out->k, l, err);
        if (status == RQ_OK)
            status = use_klt(plan, &out->k, k, l->klt_k, SEED_K, "kv.klt_k", l->dim_k, l->n_heads, err);
        if (status == RQ_OK)
            status = use_so8(plan, &out->k, k, l->so8_k, "kv.so8_k", l->dim_k, l->n_heads, err);
    }
    if (status == RQ_OK && rq_kv_side_takes_profile(v)) {
        if (l->mean_v)
            status = add_weight(plan, "kv.mean_v", l->mean_v, l->dim_v, l->n_heads, &out->v.mean, err);
        if (status == RQ_OK)
            status = use_klt(plan, &out->v, v, l->klt_v, SEED_V, "kv.klt_v", l->dim_v, l->n_heads, err);
        if (status == RQ_OK)
            status = use_so8(plan, &out->v, v, l->so8_v, "kv.so8_v", l->dim_v, l->n_heads, err);
    }
    return status;
}

/* ---- capture ------------------------------------------------------------------------------------------- */

static bool is_captured(const rq_kv_plan *plan, uint32_t layer)
{
    if (plan->hooks.capture == NULL) return false;
    for (uint32_t i = 0; i < plan->hooks.n_layers; i++)
        if (plan->hooks.layers[i] == layer) return true;
    return plan->hooks.n_layers == 0;
}

static rq_status plan_capture(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    if (p->kv_hooks == NULL || p->kv_hooks->capture == NULL) return RQ_OK;
    plan->hooks = *p->kv_hooks;
    if (plan->hooks.n_layers > RQ_MAX_LAYERS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a capture can list up to %d layers", RQ_MAX_LAYERS);
    plan->capture_layers = rq_calloc(plan->hooks.n_layers + 1, sizeof *plan->capture_layers);
    if (plan->capture_layers == NULL)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a list of layers");
    for (uint32_t i = 0; i < plan->hooks.n_layers; i++) {
        plan->capture_layers[i] = plan->hooks.layers[i];
        if (plan->hooks.layers[i] >= m->hp.n_layers)
            return rq_fail(err, RQ_ERR_ARGUMENT, "the model has the layers 0 to %u, not %u",
                           m->hp.n_layers - 1, plan->hooks.layers[i]);
    }
    plan->hooks.layers = plan->capture_layers;
    uint64_t at = 0;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        rq_pass_layer *l = &plan->layers[i];
        l->capture = is_captured(plan, i) && m->layers[i].mixer == RQ_MIXER_ATTENTION;
        if (!l->capture) continue;
        l->q_at = at;
        l->k_at = l->v_at = at = l->q_at + (uint64_t)m->layers[i].dim_k * m->layers[i].n_head;
        if (m->layers[i].kv_layer != i) continue; /* its keys and values are another's */
        l->v_at = l->k_at + (uint64_t)m->layers[i].dim_k * m->layers[i].n_head_kv;
        at = l->v_at + (uint64_t)m->layers[i].dim_v * m->layers[i].n_head_kv;
    }
    if (at > UINT32_MAX / 8)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a capture of %llu numbers for each token is too large: list fewer layers",
                       (unsigned long long)at);
    plan->pass.capture_floats = (uint32_t)at;
    return RQ_OK;
}

static rq_status hand_out(const rq_kv_plan *plan, uint32_t layer, rq_kv_which which, const float *rows,
                          const rq_step *step, rq_error *err)
{
    const rq_model *m = plan->pass.model;
    const rq_layer *l = &m->layers[layer];
    rq_kv_captured c = {.layer = layer,
                        .kv_layer = l->kv_layer,
                        .which = which,
                        .n_heads = which == RQ_KV_Q ? l->n_head : l->n_head_kv,
                        .dim = which == RQ_KV_V ? l->dim_v : l->dim_k};
    const rq_run *runs = rq_step_at(step->words, step->header->runs);
    rq_status status = RQ_OK;
    for (uint32_t r = 0; r < step->header->n_runs && status == RQ_OK; r++) {
        c.session = runs[r].seq;
        c.position = runs[r].start;
        c.n = runs[r].count;
        c.rows = rows + (size_t)runs[r].first * c.n_heads * c.dim;
        status = plan->hooks.capture(plan->hooks.capture_user, &c, err);
    }
    return status;
}

rq_status rq_kv_plan_capture(rq_kv_plan *plan, rq_executor *executor, rq_error *err)
{
    if (plan->hooks.capture == NULL) return RQ_OK;
    const float *rows = NULL;
    const rq_step *step = NULL;
    uint64_t run = 0;
    rq_status status = rq_executor_captured(executor, &rows, &step, &run, err);
    if (status != RQ_OK || rows == NULL || run == plan->capture_run) return status;
    plan->capture_run = run;
    size_t n_rows = step->caps.max_tokens;
    for (uint32_t i = 0; i < plan->pass.model->hp.n_layers && status == RQ_OK; i++) {
        const rq_pass_layer *l = &plan->layers[i];
        if (!l->capture) continue;
        status = hand_out(plan, i, RQ_KV_Q, rows + l->q_at * n_rows, step, err);
        if (plan->pass.model->layers[i].kv_layer != i) continue;
        if (status == RQ_OK) status = hand_out(plan, i, RQ_KV_K, rows + l->k_at * n_rows, step, err);
        if (status == RQ_OK) status = hand_out(plan, i, RQ_KV_V, rows + l->v_at * n_rows, step, err);
    }
    return status;
}

/* ---- finishing ----------------------------------------------------------------------------------------- */

static void drop_profile(rq_kv_plan *plan)
{
    rq_kv_profile_free(plan->profile);
    rq_free(plan->profile_path);
    plan->profile = NULL;
    plan->profile_path = NULL;
}

/* The context may be longer than the profile reaches. */
static rq_status settle_profile(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p,
                                uint32_t n_ctx, rq_error *err)
{
    if (plan->profile == NULL || n_ctx <= plan->profile->n_positions) return RQ_OK;
    if (plan->profile_named) return rq_kv_profile_fits(plan->profile, m, n_ctx, err);
    rq_say(p, "cache profile: %.300s is not used: it was calibrated for %u tokens of context, and this is %u",
           plan->profile_path, plan->profile->n_positions, n_ctx);
    drop_profile(plan);
    return RQ_OK;
}

static rq_status check_klt(const rq_kv_plan *plan, const rq_model *m, rq_error *err)
{
    const rq_kv_side *const sides[] = {&plan->k, &plan->v, &plan->window_k, &plan->window_v}, *side = NULL;
    for (size_t i = 0; i < sizeof sides / sizeof *sides && side == NULL; i++)
        if (sides[i]->format.klt) side = sides[i];
    if (side == NULL || plan->profile != NULL) return RQ_OK;
    return rq_fail(
        err, RQ_ERR_ARGUMENT,
        "the cache format %s needs a profile of %.200s that reaches this context: make one with rqvk-kv "
        "calibrate --klt, or name another format",
        side->name, m->path);
}

/* What is coded and a profile in use says nothing about. */
static void say_what_goes_without(const rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p)
{
    if (plan->profile == NULL) return;
    if (plan->n_groups > m->n_groups && rq_group_is_coded(&plan->groups[m->n_groups]))
        rq_say(p, "cache profile: the block that drafts goes without it");
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const rq_layer *l = &m->layers[i];
        if (l->mixer != RQ_MIXER_ATTENTION || l->kv_layer != i || !rq_group_is_coded(&plan->groups[l->group]))
            continue;
        const rq_kv_layer_profile *own = &plan->profile->layers[i];
        if (own->mean_k != NULL || own->lambda_k != NULL || own->mean_v != NULL) continue;
        rq_say(p, "cache profile: it says nothing about layer %u%s", i,
               l->window != 0 ? ", which sees a window (rqvk-kv calibrate --swa)" : "");
        return;
    }
}

static uint64_t hash_plan(const rq_kv_plan *plan)
{
    uint64_t h = XXH3_64bits_withSeed(plan->k.name, sizeof plan->k.name, 3);
    h = XXH3_64bits_withSeed(plan->window_k.name, sizeof plan->window_k.name, h);
    h = XXH3_64bits_withSeed(plan->window_v.name, sizeof plan->window_v.name, h);
    h = XXH3_64bits_withSeed(plan->v.name, sizeof plan->v.name, h);
    for (uint32_t i = 0; plan->profile != NULL && i < plan->profile->n_layers; i++) {
        rq_kv_layer_profile *l = &plan->profile->layers[i];
        for (int part = 0; part < RQ_KV_PARTS; part++) {
            const float *x = *rq_kv_part_slot(l, part);
            size_t n = x != NULL ? rq_kv_part_floats(l, part) : 0;
            h = XXH3_64bits_withSeed(x, n * sizeof *x, h + 1);
        }
    }
    return h;
}

rq_status rq_kv_plan_finish(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, uint32_t n_ctx,
                            rq_error *err)
{
    rq_status status = settle_profile(plan, m, p, n_ctx, err);
    if (status == RQ_OK) status = check_klt(plan, m, err);
    if (status != RQ_OK) return status;
    say_what_goes_without(plan, m, p);
    plan->cache_seed = hash_plan(plan);
    uint32_t n_layers = m->hp.n_layers + (plan->n_groups > m->n_groups);
    plan->layers = rq_calloc(n_layers, sizeof *plan->layers);
    if (plan->layers == NULL ||
        !rq_grow((void **)&plan->weights, &plan->cap_weights, m->n_weights, sizeof *plan->weights))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u layers", m->hp.n_layers);
    memcpy(plan->weights, m->weights, m->n_weights * sizeof *plan->weights);
    plan->n_weights = m->n_weights;
    status = make_rotation(plan, &plan->k, m->hp.dim_k, SEED_K, "kv.rotation_k", err);
    if (status == RQ_OK) status = make_rotation(plan, &plan->v, m->hp.dim_v, SEED_V, "kv.rotation_v", err);
    if (status == RQ_OK) status = make_window_rotations(plan, m, err);
    for (uint32_t i = 0; i < n_layers && status == RQ_OK; i++) status = plan_layer(plan, m, i, err);
    plan->pass = (rq_pass){.model = m, .layers = plan->layers};
    if (status == RQ_OK) status = plan_capture(plan, m, p, err);
    plan->pass.weights = plan->weights;
    return status;
}

void rq_kv_plan_free(rq_kv_plan *plan)
{
    drop_profile(plan);
    rq_rotation_free(&plan->k.rotation);
    rq_rotation_free(&plan->v.rotation);
    rq_rotation_free(&plan->window_k.rotation);
    rq_rotation_free(&plan->window_v.rotation);
    for (size_t i = 0; i < plan->n_tables; i++) rq_free(plan->tables[i]);
    rq_free(plan->tables);
    rq_free(plan->weights);
    rq_free(plan->layers);
    rq_free(plan->capture_layers);
    *plan = (rq_kv_plan){0};
}
