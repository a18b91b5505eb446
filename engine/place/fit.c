/* fit.c - chooses a placement and a context that fit, before anything is loaded.
 *
 * Placements are tried from the best to the worst: everything on the cards; the embedding on the processor (a token's
 * row is copied); of a mixture the experts of the first 1, 2, ... layers on the processor; fewer and fewer layers on
 * the cards. What a placement takes is not estimated: the executor plans it and lists its allocations. A later one in
 * this order never takes more of the cards, so the first one that fits is found by halving. */
#include "engine/place/place.h"

#include "backends/base/mem.h"

#include <string.h>

enum { MAX_CANDIDATES = 3 * RQ_MAX_LAYERS + 8 };

typedef struct fitter {
    const rq_model *model;
    const rq_engine_params *params;
    const rq_place_devices *devices;
    const rq_place_wishes *wishes;
    rq_place_numbers numbers;
    rq_kv_plan kv; /* with the longest tables there may be */
    rq_place_choice candidates[MAX_CANDIDATES];
    uint32_t n_candidates;
    double shares[RQ_MAX_CARDS]; /* of the placement planned last */
    rq_place place;
    rq_place_pools pools;
    rq_exec_list list;
    rq_executor_info info;
    rq_place_need need;
} fitter;

/* ---- what is needed, what is there ----------------------------------------------------------------------- */

static bool is(const rq_exec_line *line, const char *label)
{
    return strcmp(line->label, label) == 0;
}

void rq_place_sum(const rq_exec_list *list, const rq_place_devices *devices, uint64_t heap,
                  rq_place_need *out)
{
    memset(out, 0, sizeof *out);
    out->device[devices->n_cards] = out->other[devices->n_cards] = heap;
    for (uint32_t i = 0; i < list->n; i++) {
        const rq_exec_line *line = &list->lines[i];
        uint32_t d = line->device == RQ_EXEC_HOST ? devices->n_cards : line->device;
        uint64_t bytes = line->planned_bytes;
        if (line->in_place && d >= devices->n_cards) {
            out->file_bytes += bytes;
            continue;
        }
        out->device[d] += bytes;
        if (is(line, "weights") || line->in_place)
            out->weights[d] += bytes;
        else if (is(line, "key/value cache") || is(line, "coded key/value cache") ||
                 is(line, "key/value scratch") || (is(line, "page tables") && line->device != RQ_EXEC_HOST))
            out->cache[d] += bytes;
        else if (is(line, "recurrent state"))
            out->state[d] += bytes;
        else if (is(line, "activations"))
            out->activations[d] += bytes;
        else if (is(line, RQ_EXEC_SCRATCH))
            out->scratch[d] += bytes;
        else
            out->other[d] += bytes;
    }
}

/* A part is left alone: drivers, other programs and fragments need it. */
static uint64_t usable(uint64_t budget)
{
    return budget - budget / 32;
}

/* The first device that has too little, or RQ_PLACE_DEVICES. */
static uint32_t too_small(const rq_place_devices *d, const rq_place_need *need)
{
    uint64_t shared = 0;
    for (uint32_t i = 0; i <= d->n_cards; i++) {
        uint64_t bytes = need->device[i] + (i == d->n_cards ? shared : 0);
        if (d->shares[i]) shared += need->device[i];
        if (need->device[i] != 0 && d->budget[i] != 0 && bytes > usable(d->budget[i])) return i;
    }
    return RQ_PLACE_DEVICES;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

rq_status rq_fit_check(const rq_place_devices *d, const rq_place_need *need, uint32_t n_ctx, rq_error *err)
{
    uint32_t i = too_small(d, need);
    if (i == RQ_PLACE_DEVICES) return RQ_OK;
    uint64_t there = usable(d->budget[i]), shared = 0, bytes = need->device[i];
    for (uint32_t k = 0; i == d->n_cards && k < i; k++) shared += d->shares[k] ? need->device[k] : 0;
    bytes += shared; /* that cards take of the same memory */
    return rq_fail(
        err, RQ_ERR_MEMORY,
        "%s (%.100s) is %.0f MiB short: weights %.0f, cache of %u tokens %.0f, steps and the rest %.0f MiB "
        "are more than the %.0f MiB that can be used of %.0f free: %s",
        d->name[i], d->info[i].name, mib(bytes - there), mib(need->weights[i]), n_ctx, mib(need->cache[i]),
        mib(bytes - need->weights[i] - need->cache[i]), mib(there), mib(d->budget[i]),
        i < d->n_cards ? "ask for fewer layers on it (--gpu-layers), a shorter context (-c), a compressed "
                         "cache (-ctk, -ctv), smaller steps (-b) or fewer sessions"
                       : "ask for a shorter context (-c), a compressed cache (-ctk, -ctv), smaller steps "
                         "(-b) or fewer sessions");
}

/* ---- one placement --------------------------------------------------------------------------------------- */

static rq_status plan_with(fitter *f, const rq_place_choice *choice, uint32_t n_ctx, rq_error *err)
{
    rq_place_numbers numbers = f->numbers;
    numbers.n_ctx = n_ctx;
    rq_status status =
        rq_place_make(f->model, f->kv.groups, f->devices->n_cards, choice, f->shares, &f->place, err);
    if (status == RQ_OK)
        status = rq_place_size(f->place.groups, f->place.group_device, f->place.n_groups, &numbers, &f->pools,
                               err);
    if (status != RQ_OK) return status;
    f->place.pass = &f->kv.pass;
    rq_executor_params x = rq_place_executor(&f->place, f->devices, &f->kv, &f->pools, &numbers);
    status = rq_executor_plan(&x, true, &f->list, &f->info, err);
    if (status == RQ_OK) rq_place_sum(&f->list, f->devices, f->numbers.snapshot_bytes, &f->need);
    return status;
}

/* Plans a placement, with layers shared by what the cards have left for them; *fits says whether it does. */
static rq_status try_with(fitter *f, const rq_place_choice *choice, uint32_t n_ctx, bool *fits, rq_error *err)
{
    const rq_place_devices *d = f->devices;
    for (uint32_t c = 0; c < d->n_cards; c++)
        f->shares[c] = f->wishes->has_shares ? f->wishes->shares[c]
                       : d->budget[c] != 0   ? (double)d->budget[c]
                                             : 1;
    rq_status status = plan_with(f, choice, n_ctx, err);
    if (status != RQ_OK) return status;
    *fits = too_small(d, &f->need) == RQ_PLACE_DEVICES;
    if (*fits || d->n_cards < 2 || f->wishes->has_shares || choice->gpu_layers == 0) return RQ_OK;
    /* What a card has for itself is not for layers; the last one holds the output besides. */
    uint32_t out = f->model->global[RQ_ROLE_OUTPUT].weight;
    for (uint32_t c = 0; c < d->n_cards; c++) {
        double own = (double)(f->need.activations[c] + f->need.scratch[c] + f->need.other[c]);
        if (c == f->place.output && out != RQ_NO_WEIGHT) own += (double)f->model->weights[out].bytes;
        double left = (double)usable(d->budget[c]) - own;
        f->shares[c] = left > 0 ? left : 0;
    }
    status = plan_with(f, choice, n_ctx, err);
    *fits = status == RQ_OK && too_small(d, &f->need) == RQ_PLACE_DEVICES;
    return status;
}

/* ---- the order of placements ----------------------------------------------------------------------------- */

static void add(fitter *f, uint32_t gpu_layers, uint32_t cpu_experts, bool input_on_card)
{
    if (f->n_candidates < MAX_CANDIDATES)
        f->candidates[f->n_candidates++] = (rq_place_choice){gpu_layers, cpu_experts, input_on_card};
}

static void list_candidates(fitter *f)
{
    const rq_model *m = f->model;
    const rq_place_wishes *w = f->wishes;
    uint32_t n = m->hp.n_layers, most = f->devices->n_cards == 0 ? 0 : n, least = 0;
    bool mixture = m->hp.n_expert != 0,
         tied = m->global[RQ_ROLE_OUTPUT].weight == m->global[RQ_ROLE_TOKEN_EMBD].weight;
    if (w->gpu_layers != RQ_PLACE_AUTO) most = least = w->gpu_layers;
    uint32_t fixed = w->cpu_experts != RQ_PLACE_AUTO ? w->cpu_experts : 0;
    if (most == n && most != 0 && fixed == 0) add(f, n, 0, true);
    if (most != n || !tied || fixed != 0) add(f, most, fixed, false);
    if (mixture && w->cpu_experts == RQ_PLACE_AUTO && most != 0)
        for (uint32_t k = n - most + 1; k <= n; k++) add(f, most, k, false);
    for (uint32_t layers = most; layers-- > least;)
        add(f, layers, w->cpu_experts != RQ_PLACE_AUTO ? fixed : mixture ? n : 0, false);
}

/* The first candidate that fits a context of n_ctx tokens; *found false: none does, and f->need is of the last. */
static rq_status first_that_fits(fitter *f, uint32_t n_ctx, rq_place_choice *out, bool *found, rq_error *err)
{
    uint32_t low = 0, high = f->n_candidates - 1;
    bool fits = false;
    rq_status status = try_with(f, &f->candidates[0], n_ctx, &fits, err);
    if (status == RQ_OK && fits) high = 0;
    if (status == RQ_OK && !fits) status = try_with(f, &f->candidates[high], n_ctx, &fits, err);
    *found = fits;
    if (status != RQ_OK || !fits) return status;
    while (low < high) { /* `high` fits, what is below `low` does not */
        uint32_t middle = low + (high - low) / 2;
        status = try_with(f, &f->candidates[middle], n_ctx, &fits, err);
        if (status != RQ_OK) return status;
        if (fits)
            high = middle;
        else
            low = middle + 1;
    }
    *out = f->candidates[high];
    return try_with(f, out, n_ctx, &fits, err); /* its shares, and what it needs */
}

/* ---- the context ----------------------------------------------------------------------------------------- */

/* Does a context fit when everything but the cache takes `rest`? The processor also reads weights in the file, which
 * should stay in memory. */
static bool cache_fits(const fitter *f, uint32_t n_ctx, const rq_place_need *rest)
{
    const rq_place_devices *d = f->devices;
    rq_place_numbers numbers = f->numbers;
    rq_place_pools pools;
    numbers.n_ctx = n_ctx;
    if (rq_place_size(f->place.groups, f->place.group_device, f->place.n_groups, &numbers, &pools, NULL) !=
        RQ_OK)
        return false;
    for (uint32_t i = 0; i <= d->n_cards; i++) {
        uint64_t need = pools.device_bytes[i] + rest->device[i] - rest->cache[i];
        if (i == d->n_cards && pools.device_bytes[i] != 0) need += rest->file_bytes;
        if (d->budget[i] != 0 && need > usable(d->budget[i])) return false;
    }
    return true;
}

/* The longest context up to `most` that fits this placement, at least `n_ctx`, which does. */
static rq_status grow_context(fitter *f, const rq_place_choice *choice, uint32_t n_ctx, uint32_t most,
                              uint32_t *out, rq_error *err)
{
    const rq_place_need rest = f->need;
    uint32_t fits = n_ctx / RQ_PAGE_TOKENS, too_many = most / RQ_PAGE_TOKENS + 1;
    *out = n_ctx;
    if (cache_fits(f, most, &rest)) {
        fits = too_many;
    } else {
        while (too_many > fits + 1) {
            uint32_t middle = fits + (too_many - fits) / 2;
            if (cache_fits(f, middle * RQ_PAGE_TOKENS, &rest))
                fits = middle;
            else
                too_many = middle;
        }
    }
    for (uint32_t c = fits * RQ_PAGE_TOKENS < most ? fits * RQ_PAGE_TOKENS : most; c > n_ctx;
         c = (c - c / 16) / RQ_PAGE_TOKENS * RQ_PAGE_TOKENS) {
        bool good = false; /* steps and scratch grow a little with the context */
        rq_status status = try_with(f, choice, c, &good, err);
        if (status != RQ_OK) return status;
        if (!good) continue;
        *out = c;
        return RQ_OK;
    }
    return RQ_OK;
}

static rq_status choose(fitter *f, rq_fit *out, rq_error *err)
{
    uint32_t asked = f->numbers.n_ctx, most = asked != 0 ? asked : f->model->hp.n_ctx_train;
    uint32_t start = asked != 0 || most < RQ_FIT_COMFORT ? most : RQ_FIT_COMFORT;
    bool found = false;
    rq_status status = RQ_OK;
    for (uint32_t n_ctx = start;; n_ctx /= 2) {
        if (n_ctx < RQ_FIT_LEAST && n_ctx < start) n_ctx = RQ_FIT_LEAST;
        status = first_that_fits(f, n_ctx, &out->choice, &found, err);
        out->n_ctx = n_ctx;
        if (status != RQ_OK || found || asked != 0 || n_ctx <= RQ_FIT_LEAST) break;
    }
    if (status != RQ_OK) return status;
    if (!found) {
        status = rq_fit_check(f->devices, &f->need, out->n_ctx, err);
        return status != RQ_OK ? status
                               : rq_fail(err, RQ_ERR_MEMORY, "no placement fits into the memory there is");
    }
    if (asked == 0) status = grow_context(f, &out->choice, out->n_ctx, most, &out->n_ctx, err);
    memcpy(out->shares, f->shares, sizeof out->shares);
    return status;
}

rq_status rq_fit_choose(const rq_model *model, const rq_engine_params *params,
                        const rq_place_devices *devices, const rq_place_wishes *wishes,
                        const rq_place_numbers *numbers, rq_fit *out, rq_error *err)
{
    memset(out, 0, sizeof *out);
    fitter *f = rq_calloc(1, sizeof *f);
    if (f == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for planning");
    f->model = model;
    f->params = params;
    f->devices = devices;
    f->wishes = wishes;
    f->numbers = *numbers;
    for (uint32_t c = 0; c < devices->n_cards; c++)
        f->shares[c] = wishes->has_shares        ? wishes->shares[c]
                       : devices->budget[c] != 0 ? (double)devices->budget[c]
                                                 : 1;
    list_candidates(f);
    rq_status status = RQ_OK;
    if (params->no_fit || devices->n_cards == 0) {
        out->choice = f->candidates[0];
        out->n_ctx = numbers->n_ctx != 0 ? numbers->n_ctx : model->hp.n_ctx_train;
        memcpy(out->shares, f->shares, sizeof out->shares);
    } else {
        rq_engine_params quiet = *params; /* the decisions are said once, when they are made */
        quiet.log = NULL;
        status = rq_kv_plan_choose(&f->kv, model, &quiet, err);
        if (status == RQ_OK) status = rq_kv_plan_finish(&f->kv, model, &quiet, 2, err);
        if (status == RQ_OK) status = choose(f, out, err);
    }
    rq_kv_plan_free(&f->kv);
    rq_free(f);
    return status;
}
