/* place.c - from "so many layers on the cards" to the device of every layer, and to the groups of the cache. */
#include "engine/place/place.h"

#include "backends/base/mem.h"
#include "engine/cache/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- wishes ---------------------------------------------------------------------------------------------- */

static rq_status read_layers(const rq_model *m, const rq_engine_params *p, uint32_t n_cards,
                             rq_place_wishes *out, rq_error *err)
{
    const char *text = p->gpu_layers;
    out->gpu_layers = RQ_PLACE_AUTO;
    if (text == NULL || strcmp(text, "auto") == 0) return RQ_OK;
    if (strcmp(text, "all") == 0 || strcmp(text, "-1") == 0) {
        out->gpu_layers = m->hp.n_layers;
    } else {
        char *end;
        errno = 0;
        unsigned long n = strtoul(text, &end, 10);
        if (end == text || *end != 0 || *text == '-' || errno != 0 || n > 1000000)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "--gpu-layers takes a number of layers, auto or all, not \"%.40s\"", text);
        out->gpu_layers = n < m->hp.n_layers ? (uint32_t)n : m->hp.n_layers;
    }
    if (out->gpu_layers != 0 && n_cards == 0)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "--gpu-layers %.40s needs a card, and this engine computes on the processor: leave it out, or "
            "name a card with --device or --backend",
            text);
    return RQ_OK;
}

static rq_status read_experts(const rq_model *m, const rq_engine_params *p, rq_place_wishes *out,
                              rq_error *err)
{
    out->cpu_experts = RQ_PLACE_AUTO;
    if (!p->cpu_experts && p->cpu_expert_layers == 0) return RQ_OK;
    if (m->hp.n_expert == 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%.200s has no experts that could stay on the processor",
                       m->name);
    out->cpu_experts = m->hp.n_layers;
    if (p->cpu_expert_layers != 0 && p->cpu_expert_layers < m->hp.n_layers)
        out->cpu_experts = p->cpu_expert_layers;
    return RQ_OK;
}

static rq_status read_shares(const rq_engine_params *p, uint32_t n_cards, rq_place_wishes *out, rq_error *err)
{
    if (p->tensor_split == NULL || *p->tensor_split == 0) return RQ_OK;
    uint32_t n = 0;
    double sum = 0;
    for (const char *at = p->tensor_split;; at++) {
        char *end;
        double share = strtod(at, &end);
        if (end == at || (*end != 0 && *end != ',') || !(share >= 0 && share <= 1e9) || n == n_cards)
            return rq_fail(
                err, RQ_ERR_ARGUMENT,
                "--tensor-split takes a share for each of the %u devices, as in 3,1, not \"%.60s\"", n_cards,
                p->tensor_split);
        out->shares[n++] = share;
        sum += share;
        at = end;
        if (*at == 0) break;
    }
    out->has_shares = true;
    if (n == n_cards && sum > 0) return RQ_OK;
    return rq_fail(err, RQ_ERR_ARGUMENT,
                   "--tensor-split takes a share for each of the %u devices, as in 3,1, not \"%.60s\"",
                   n_cards, p->tensor_split);
}

rq_status rq_place_read(const rq_model *m, const rq_engine_params *p, uint32_t n_cards, rq_place_wishes *out,
                        rq_error *err)
{
    memset(out, 0, sizeof *out);
    rq_status status = read_layers(m, p, n_cards, out, err);
    if (status == RQ_OK) status = read_experts(m, p, out, err);
    return status == RQ_OK ? read_shares(p, n_cards, out, err) : status;
}

/* ---- layers ---------------------------------------------------------------------------------------------- */

/* Layer `at` of the `n` on cards: the card whose part of the shares it falls into. */
static uint32_t card_of(uint32_t at, uint32_t n, const double *shares, uint32_t n_cards)
{
    double sum = 0, upto = 0;
    for (uint32_t c = 0; c < n_cards; c++) sum += shares[c];
    double where = ((double)at + 0.5) / (double)n * sum;
    for (uint32_t c = 0; c + 1 < n_cards; c++) {
        upto += shares[c];
        if (where < upto) return c;
    }
    for (uint32_t c = n_cards; c-- > 1;)
        if (shares[c] > 0) return c;
    return 0;
}

static void place_layers(rq_place *p, const double *shares)
{
    uint32_t n = p->model->hp.n_layers, on_cards = p->choice.gpu_layers, processor = p->n_cards;
    for (uint32_t i = 0; i < n; i++) {
        bool card = i >= n - on_cards;
        p->layer[i] =
            (uint16_t)(card ? card_of(i - (n - on_cards), on_cards, shares, p->n_cards) : processor);
        bool stays = p->model->hp.n_expert != 0 && i < p->choice.cpu_experts;
        p->experts[i] = stays ? (uint16_t)processor : p->layer[i];
        p->uses_processor |= !card || stays;
    }
    p->output = n > 0 ? p->layer[n - 1] : (uint16_t)processor;
    p->input = p->choice.input_on_card && n > 0 && on_cards == n ? p->layer[0] : (uint16_t)processor;
    p->uses_processor |= p->input == processor;
}

/* ---- groups ---------------------------------------------------------------------------------------------- */

static rq_status too_many_groups(const char *what, int most, rq_error *err)
{
    return rq_fail(err, RQ_ERR_UNSUPPORTED,
                   "the %s of this model over so many devices make more than %d groups: use fewer devices",
                   what, most);
}

/* A group of the model becomes one for each device its layers are on. */
static rq_status place_caches(rq_place *p, const rq_cache_group *groups, rq_error *err)
{
    const rq_model *m = p->model;
    uint8_t at[RQ_MAX_GROUPS][RQ_PLACE_DEVICES]; /* our group, counted from 1 */
    memset(at, 0, sizeof at);
    memset(p->of, 0xff, sizeof p->of);
    for (uint32_t i = 0; i < m->hp.n_layers + p->drafts; i++) {
        uint32_t g = m->layers[i].group, l = m->layers[i].group_layer;
        uint32_t d = m->layers[i].mtp ? p->output : p->layer[i];
        if (m->layers[i].mixer != RQ_MIXER_ATTENTION || g >= m->n_groups + p->drafts || l >= RQ_MAX_LAYERS ||
            p->of[g][l].group != UINT16_MAX)
            continue; /* layers may share what one of them keeps */
        if (at[g][d] == 0) {
            if (p->n_groups == RQ_MAX_GROUPS) return too_many_groups("caches", RQ_MAX_GROUPS, err);
            p->groups[p->n_groups] = groups[g];
            p->groups[p->n_groups].n_layers = 0;
            p->group_device[p->n_groups] = d;
            at[g][d] = (uint8_t)++p->n_groups;
        }
        uint32_t ours = at[g][d] - 1u;
        p->of[g][l] = (rq_place_slot){(uint16_t)ours, (uint16_t)p->groups[ours].n_layers++};
    }
    return RQ_OK;
}

/* The same of recurrent state. */
static rq_status place_states(rq_place *p, rq_error *err)
{
    const rq_model *m = p->model;
    uint8_t at[RQ_MAX_STATE_GROUPS][RQ_PLACE_DEVICES];
    memset(at, 0, sizeof at);
    memset(p->state_of, 0xff, sizeof p->state_of);
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        uint32_t g = m->layers[i].group, l = m->layers[i].group_layer, d = p->layer[i];
        if (m->layers[i].mixer != RQ_MIXER_DELTA || g >= m->n_states || l >= RQ_MAX_LAYERS) continue;
        if (at[g][d] == 0) {
            if (p->n_states == RQ_MAX_STATE_GROUPS)
                return too_many_groups("recurrent states", RQ_MAX_STATE_GROUPS, err);
            p->states[p->n_states] = m->states[g];
            p->states[p->n_states].n_layers = 0;
            p->states[p->n_states].n_pending = p->drafts ? RQ_MAX_PENDING : 0;
            p->state_device[p->n_states] = d;
            at[g][d] = (uint8_t)++p->n_states;
        }
        uint32_t ours = at[g][d] - 1u;
        p->state_of[g][l] = (rq_place_slot){(uint16_t)ours, (uint16_t)p->states[ours].n_layers++};
    }
    return RQ_OK;
}

rq_status rq_place_make(const rq_model *m, const rq_cache_group *groups, uint32_t n_cards,
                        const rq_place_choice *choice, const double *shares, rq_place *out, rq_error *err)
{
    memset(out, 0, sizeof *out);
    out->model = m;
    out->choice = *choice;
    out->n_cards = n_cards;
    if (n_cards == 0) out->choice.gpu_layers = 0;
    static const double even[RQ_MAX_CARDS] = {1, 1, 1, 1, 1, 1, 1, 1};
    /* who wants drafts brings the block's cache along, behind the groups of the trunk */
    out->drafts =
        m->mtp_group.n_layers != 0 && m->n_groups < RQ_MAX_GROUPS && groups[m->n_groups].n_layers != 0;
    place_layers(out, shares != NULL ? shares : even);
    out->n_devices = n_cards + out->uses_processor;
    rq_status status = place_caches(out, groups, err);
    return status == RQ_OK ? place_states(out, err) : status;
}

/* Appends "WORD 0-3,5" for the layers whose entry is `device`. */
static void describe_layers(const uint16_t *of, uint32_t n, uint32_t device, const char *word, char *text,
                            size_t bytes)
{
    bool first = true;
    for (uint32_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && (of[end] == device) == (of[i] == device); end++) {
        }
        if (of[i] != device) continue;
        size_t at = strlen(text);
        const char *between = first ? (at != 0 ? ", " : "") : ",";
        if (end - i > 1)
            snprintf(text + at, bytes - at, "%s%s%s%u-%u", between, first ? word : "", first ? " " : "", i,
                     end - 1);
        else
            snprintf(text + at, bytes - at, "%s%s%s%u", between, first ? word : "", first ? " " : "", i);
        first = false;
    }
}

void rq_place_describe(const rq_place *p, uint32_t device, char *text, size_t bytes)
{
    uint32_t n = p->model->hp.n_layers;
    text[0] = 0;
    if (p->input == device) snprintf(text, bytes, "embedding");
    describe_layers(p->layer, n, device, "layers", text, bytes);
    bool apart = memcmp(p->layer, p->experts, n * sizeof *p->layer) != 0;
    if (apart) describe_layers(p->experts, n, device, "experts of layers", text, bytes);
    size_t at = strlen(text);
    if (p->output == device) snprintf(text + at, bytes - at, "%soutput", at != 0 ? ", " : "");
    if (text[0] == 0) snprintf(text, bytes, "nothing");
}

/* ---- sizes ----------------------------------------------------------------------------------------------- */

/* Adds a * b to *sum. */
static bool add_product(uint64_t a, uint64_t b, uint64_t *sum)
{
    uint64_t product;
    return rq_mul_u64(a, b, &product) && rq_add_u64(*sum, product, sum);
}

rq_status rq_place_size(const rq_cache_group *groups, const uint32_t *group_device, uint32_t n_groups,
                        const rq_place_numbers *n, rq_place_pools *out, rq_error *err)
{
    memset(out, 0, sizeof *out);
    bool grows = false; /* with the tokens it holds */
    out->cache_tokens = UINT64_MAX;
    for (uint32_t g = 0; g < n_groups; g++) {
        const rq_cache_group *group = &groups[g];
        rq_pool_sizes size;
        rq_status status =
            rq_cache_pool_sizes(group, n->n_sessions, n->n_ctx, n->cache_tokens, n->n_batch, &size, err);
        if (status != RQ_OK) return status;
        out->exact_pages[g] = size.exact;
        out->coded_pages[g] = size.coded;
        out->scratch_pages[g] = size.scratch;
        bool coded = rq_group_is_coded(group);
        rq_page_layout layout = rq_page_layout_of(group);
        uint64_t table = 4ull * rq_cache_pages_for(n->n_ctx) * n->n_sessions, tokens;
        uint64_t coded_page = coded ? rq_coded_layout_of(group).page_bytes : 0, sum = 0;
        uint64_t exact_bytes = table, coded_bytes = coded ? table : 0, scratch_bytes = 0;
        if (!add_product(size.exact, layout.page_bytes, &exact_bytes) ||
            !add_product(size.coded, coded_page, &coded_bytes) ||
            !add_product(size.scratch, layout.layer_bytes, &scratch_bytes) ||
            !rq_add_u64(exact_bytes, coded_bytes, &sum) || !rq_add_u64(sum, scratch_bytes, &sum) ||
            !rq_add_u64(out->cache_bytes, sum, &out->cache_bytes))
            return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %u pages has more bytes than can be counted",
                           coded ? size.coded : size.exact);
        if (group_device != NULL) out->device_bytes[group_device[g]] += sum;
        if (group->window != 0) out->window_bytes += sum;
        tokens = (uint64_t)(coded ? size.coded : size.exact) * RQ_PAGE_TOKENS;
        grows |= group->window == 0;
        if (group->window == 0 && tokens < out->cache_tokens) out->cache_tokens = tokens;
        if (!coded) continue;
        out->exact_bytes += exact_bytes;
        out->coded_bytes += coded_bytes;
        out->scratch_bytes += scratch_bytes;
    }
    if (!grows) out->cache_tokens = (uint64_t)rq_cache_pages_for(n->n_ctx) * RQ_PAGE_TOKENS * n->n_sessions;
    return RQ_OK;
}

/* ---- the executor ---------------------------------------------------------------------------------------- */

/* The family's tape, with the model's groups of caches and states replaced by ours. */
static void build(void *user, rq_tape_kind kind, rq_tape *tape)
{
    const rq_place *p = user;
    rq_pass_build(p->pass, kind, tape);
    for (uint32_t i = 1; i < tape->n_values; i++) {
        rq_value *v = &tape->values[i];
        rq_place_slot slot = {UINT16_MAX, 0};
        if (v->space == RQ_SPACE_CACHE && v->index < RQ_MAX_GROUPS && v->layer < RQ_MAX_LAYERS)
            slot = p->of[v->index][v->layer];
        else if (v->space == RQ_SPACE_STATE && v->index < RQ_MAX_STATE_GROUPS && v->layer < RQ_MAX_LAYERS)
            slot = p->state_of[v->index][v->layer];
        else if (v->space != RQ_SPACE_CACHE && v->space != RQ_SPACE_STATE)
            continue;
        v->index = slot.group != UINT16_MAX ? slot.group : UINT32_MAX; /* the executor refuses what is none */
        v->layer = slot.layer;
    }
}

static uint32_t layer_device(void *user, uint32_t layer)
{
    const rq_place *p = user;
    return layer < p->model->hp.n_layers ? p->layer[layer] : p->output;
}

static uint32_t expert_device(void *user, uint32_t layer)
{
    const rq_place *p = user;
    return layer < p->model->hp.n_layers ? p->experts[layer] : p->output;
}

static uint32_t input_device(void *user)
{
    return ((const rq_place *)user)->input;
}

rq_executor_params rq_place_executor(rq_place *place, const rq_place_devices *devices, const rq_kv_plan *kv,
                                     const rq_place_pools *pools, const rq_place_numbers *numbers)
{
    const rq_model *m = place->model;
    rq_executor_params x = {
        .devices = devices->open,
        .n_devices = place->n_devices,
        .weights = kv->weights,
        .n_weights = kv->n_weights,
        .groups = place->groups,
        .group_pages = pools->exact_pages,
        .group_coded_pages = pools->coded_pages,
        .group_scratch_pages = pools->scratch_pages,
        .group_device = place->group_device,
        .states = place->states,
        .n_states = place->n_states,
        .state_device = place->state_device,
        .caps = {.max_tokens = numbers->n_batch,
                 .n_groups = place->n_groups,
                 .n_seqs = numbers->n_sessions,
                 .max_pages = rq_cache_pages_for(numbers->n_ctx)},
        .n_embd = m->hp.n_embd,
        .n_vocab = m->hp.n_vocab,
        .capture_floats = kv->pass.capture_floats,
        .drafts = place->drafts,
        .build = build,
        .place = layer_device,
        .place_experts = expert_device,
        .place_input = input_device,
        .user = place,
    };
    rq_step_caps_complete(&x.caps);
    return x;
}
