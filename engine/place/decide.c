/* decide.c - resolves the parameters of an engine. */
#include "engine/place/decide.h"

#include "backends/base/mem.h"
#include "engine/cache/cache.h"
#include "engine/memory.h"
#include "engine/say.h"
#include "engine/sched/sched.h"

#include <string.h>

enum { RQ_DEFAULT_BATCH = 512, RQ_SMALLEST_DEFAULT_CONTEXT = 256 };

/* Where several sessions share the engine, a prompt is read in pieces of so many tokens at most: the others get
 * a token between two pieces. It costs nothing: 512 tokens of a Qwen3-0.6B Q4_K_M file took no more processor
 * time in pieces of 128 than in one (AVX2, one thread). */
enum { RQ_SHARED_PIECE = 128 };

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static uint32_t power_of_two_from(uint32_t n)
{
    uint32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

/* Bytes of the caches of contexts of n_ctx tokens; false: too many to be counted. */
static bool cache_bytes_of(const rq_decision *d, uint32_t n_ctx, uint64_t *out)
{
    rq_place_numbers numbers = d->numbers;
    rq_place_pools pools;
    numbers.n_ctx = n_ctx;
    numbers.cache_tokens = 0;
    if (rq_place_size(d->kv.groups, NULL, d->kv.n_groups, &numbers, &pools, NULL) != RQ_OK) return false;
    *out = pools.cache_bytes;
    return true;
}

/* On the processor: the trained context, or as many whole pages of it as fit into three quarters of the memory that
 * the weights leave. */
static uint32_t default_context(const rq_decision *d)
{
    uint32_t trained = d->model->hp.n_ctx_train;
    uint64_t rest = 0, bytes = 0;
    if (d->available_bytes == 0) return trained;
    if (d->available_bytes > d->weight_bytes) rest = (d->available_bytes - d->weight_bytes) / 4 * 3;
    if (cache_bytes_of(d, trained, &bytes) && bytes <= rest) return trained;
    uint32_t fits = 0, too_many = trained / RQ_PAGE_TOKENS + 1; /* pages */
    while (too_many - fits > 1) {
        uint32_t middle = fits + (too_many - fits) / 2;
        if (cache_bytes_of(d, middle * RQ_PAGE_TOKENS, &bytes) && bytes <= rest)
            fits = middle;
        else
            too_many = middle;
    }
    uint32_t n_ctx = fits * RQ_PAGE_TOKENS;
    if (n_ctx < RQ_SMALLEST_DEFAULT_CONTEXT) n_ctx = RQ_SMALLEST_DEFAULT_CONTEXT;
    return n_ctx < trained ? n_ctx : trained;
}

/* Copies of state: what was asked for, but never more than can be counted. */
static uint64_t snapshot_bytes(const rq_engine_params *p)
{
    enum { DEFAULT_MIB = 1024 };
    uint64_t asked = p->cache_ram_mib != 0 ? p->cache_ram_mib : DEFAULT_MIB;
    return (asked < UINT64_MAX >> 20 ? asked : UINT64_MAX >> 20) << 20;
}

/* What does not depend on where things go. */
static rq_status decide_numbers(rq_decision *d, const rq_engine_params *p, rq_error *err)
{
    const rq_model *m = d->model;
    rq_place_numbers *n = &d->numbers;
    n->n_sessions = p->n_sessions != 0 ? p->n_sessions : 1;
    if (n->n_sessions > RQ_MAX_SESSIONS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u sessions are more than the %d an engine can run",
                       n->n_sessions, RQ_MAX_SESSIONS);
    d->n_queue = p->n_queue != 0 ? p->n_queue : 4 * n->n_sessions;
    n->n_batch = p->n_batch != 0 ? p->n_batch : RQ_DEFAULT_BATCH;
    if (n->n_batch > RQ_MAX_BUCKET || (n->n_batch & (n->n_batch - 1)) != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the batch size must be a power of two of at most %d, not %u",
                       RQ_MAX_BUCKET, n->n_batch);
    if (m->n_groups == 0)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "the model has no attention layers, and this build runs no others");
    for (uint32_t i = 0; i < m->n_weights; i++) d->weight_bytes += m->weights[i].bytes;
    d->available_bytes = p->host_memory != 0 ? p->host_memory : rq_memory_available();
    n->n_ctx = p->n_ctx;
    n->cache_tokens = p->cache_tokens;
    n->snapshot_bytes = m->n_states != 0 ? snapshot_bytes(p) : 0;
    return RQ_OK;
}

static rq_status check_context(rq_decision *d, const rq_engine_params *p, rq_error *err)
{
    rq_place_numbers *n = &d->numbers;
    if (n->n_ctx < 2 || n->n_ctx > 1u << 24)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a context of %u tokens is not between 2 and %u", n->n_ctx,
                       1u << 24);
    if (n->n_batch > power_of_two_from(n->n_ctx)) n->n_batch = power_of_two_from(n->n_ctx);
    d->n_piece = n->n_batch;
    if (n->n_sessions > 1 && d->n_piece > RQ_SHARED_PIECE) d->n_piece = RQ_SHARED_PIECE;
    if (p->cache_tokens != 0 && p->cache_tokens < n->n_ctx)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a cache of %llu tokens is smaller than the context of %u tokens",
                       (unsigned long long)p->cache_tokens, n->n_ctx);
    if (p->cache_tokens > UINT32_MAX)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %llu tokens is more than can be addressed",
                       (unsigned long long)p->cache_tokens);
    return RQ_OK;
}

/* Placement and context. */
static rq_status decide_place(rq_decision *d, const rq_engine_params *p, rq_fit *fit, rq_error *err)
{
    rq_place_numbers *n = &d->numbers;
    uint32_t asked = n->n_ctx;
    rq_status status = rq_place_read(d->model, p, d->devices.n_cards, &d->wishes, err);
    if (status != RQ_OK) return status;
    if (asked != 0 || d->devices.n_cards == 0) {
        if (asked == 0) n->n_ctx = default_context(d);
        if (asked == 0 && d->kv.profile_named && d->kv.profile != NULL &&
            n->n_ctx > d->kv.profile->n_positions)
            n->n_ctx = d->kv.profile->n_positions;
        status = check_context(d, p, err);
        if (status == RQ_OK) status = rq_fit_choose(d->model, p, &d->devices, &d->wishes, n, fit, err);
        return status;
    }
    status = rq_fit_choose(d->model, p, &d->devices, &d->wishes, n, fit, err);
    if (status != RQ_OK) return status;
    n->n_ctx = fit->n_ctx;
    if (d->kv.profile_named && d->kv.profile != NULL && n->n_ctx > d->kv.profile->n_positions)
        n->n_ctx = d->kv.profile->n_positions;
    return check_context(d, p, err);
}

/* The cache must fit into memory; the weights only should, because the system can read them again. */
static rq_status check_processor(const rq_decision *d, const rq_engine_params *p, rq_error *err)
{
    uint64_t available = d->available_bytes, cache = d->pools.cache_bytes;
    if (available == 0 || d->devices.n_cards != 0) return RQ_OK;
    if (cache > available)
        return rq_fail(
            err, RQ_ERR_MEMORY,
            "a cache of %llu tokens needs %.0f MiB, but only %.0f MiB of memory are available: ask for a "
            "smaller context, fewer sessions or a smaller cache",
            (unsigned long long)d->pools.cache_tokens, mib(cache), mib(available));
    if (d->weight_bytes + cache > available)
        rq_say(
            p,
            "memory: weights and cache need %.0f MiB, %.0f MiB are available: parts of the file will be read "
            "from disk again and again",
            mib(d->weight_bytes + cache), mib(available));
    return RQ_OK;
}

static rq_status list_memory(rq_decision *d, const rq_engine_params *p, rq_error *err)
{
    rq_executor_params x = rq_place_executor(&d->place, &d->devices, &d->kv, &d->pools, &d->numbers);
    rq_status status = rq_executor_plan(&x, false, &d->list, &d->info, err);
    if (status != RQ_OK) return status;
    rq_place_sum(&d->list, &d->devices, d->numbers.snapshot_bytes, &d->need);
    d->listed = true;
    if (p->no_fit || d->devices.n_cards == 0) return RQ_OK;
    return rq_fit_check(&d->devices, &d->need, d->numbers.n_ctx, err);
}

rq_status rq_decide(const rq_model *model, const rq_engine_params *p, bool list, rq_decision *d,
                    rq_error *err)
{
    rq_fit fit;
    memset(d, 0, sizeof *d);
    d->model = model;
    rq_status status = rq_place_open(p, &d->devices, err);
    if (status == RQ_OK) status = rq_draft_read(model, p, &d->draft, err);
    if (status == RQ_OK) status = rq_kv_plan_choose(&d->kv, model, p, err);
    if (status == RQ_OK) status = decide_numbers(d, p, err);
    if (status == RQ_OK) status = decide_place(d, p, &fit, err);
    if (status == RQ_OK)
        status =
            rq_place_make(model, d->kv.groups, d->devices.n_cards, &fit.choice, fit.shares, &d->place, err);
    if (status == RQ_OK)
        status = rq_place_size(d->place.groups, d->place.group_device, d->place.n_groups, &d->numbers,
                               &d->pools, err);
    if (status == RQ_OK) status = check_processor(d, p, err);
    if (status == RQ_OK) status = rq_kv_plan_finish(&d->kv, model, p, d->numbers.n_ctx, err);
    d->place.pass = &d->kv.pass;
    if (status == RQ_OK && (list || d->devices.n_cards != 0)) status = list_memory(d, p, err);
    if (status == RQ_OK && !d->place.uses_processor) rq_place_drop_processor(&d->devices);
    return status;
}

void rq_decision_free(rq_decision *d)
{
    rq_kv_plan_free(&d->kv);
    rq_place_close(&d->devices);
}
