/* engine.c - makes an engine: resolves the parameters, plans memory, opens the device, builds the executor and
 * starts the scheduler; and says what it decided. */
#include "backends/backend.h"
#include "backends/base/mem.h"
#include "engine/cache/cache.h"
#include "engine/device.h"
#include "engine/kv/plan.h"
#include "engine/memory.h"
#include "engine/models/model.h"
#include "engine/say.h"
#include "engine/sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rq_engine {
    const rq_model *model;
    rq_kv_plan kv;
    rq_device *device;
    rq_executor *executor;
    rq_sched *sched;
    rq_engine_info info; /* device points to `device_text`, formats and profile into `kv` */
    char device_text[420];
    rq_engine_params voice; /* the log alone */
    bool said_not_finite;
};

enum { RQ_DEFAULT_BATCH = 512, RQ_SMALLEST_DEFAULT_CONTEXT = 256 };

/* Where several sessions share the engine, a prompt is read in pieces of so many tokens at most: the others get
 * a token between two pieces. It costs nothing: 512 tokens of a Qwen3-0.6B Q4_K_M file took no more processor
 * time in pieces of 128 than in one (AVX2, one thread). */
enum { RQ_SHARED_PIECE = 128 };

/* What rq_engine_create works out before it makes anything. */
typedef struct engine_plan {
    uint32_t n_groups;
    const rq_cache_group *groups; /* of rq_engine.kv */
    uint32_t exact_pages[RQ_MAX_GROUPS], coded_pages[RQ_MAX_GROUPS], scratch_pages[RQ_MAX_GROUPS];
    uint32_t group_device[RQ_MAX_GROUPS];
    uint32_t n_ctx, n_sessions, n_batch, n_piece, n_queue;
    uint64_t available_bytes; /* 0: unknown */
    uint64_t weight_bytes;    /* mapped from the file */
    uint64_t cache_tokens;    /* that the smallest group holds */
    uint64_t cache_bytes;
    uint64_t coded_bytes, exact_bytes, scratch_bytes; /* of groups with a coded form */
} engine_plan;

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

/* ---- planning -------------------------------------------------------------------------------------------- */

static uint32_t power_of_two_from(uint32_t n)
{
    uint32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

/* Adds a * b to *sum. */
static bool add_product(uint64_t a, uint64_t b, uint64_t *sum)
{
    uint64_t product;
    return rq_mul_u64(a, b, &product) && rq_add_u64(*sum, product, sum);
}

/* Pools for contexts of n_ctx tokens: their pages and bytes, as the executor will allocate them. */
static rq_status plan_pools(engine_plan *plan, uint32_t n_ctx, uint64_t cache_tokens, rq_error *err)
{
    plan->cache_bytes = plan->coded_bytes = plan->exact_bytes = plan->scratch_bytes = 0;
    plan->cache_tokens = UINT64_MAX;
    for (uint32_t g = 0; g < plan->n_groups; g++) {
        const rq_cache_group *group = &plan->groups[g];
        rq_pool_sizes size;
        rq_status status =
            rq_cache_pool_sizes(group, plan->n_sessions, n_ctx, cache_tokens, plan->n_batch, &size, err);
        if (status != RQ_OK) return status;
        plan->exact_pages[g] = size.exact;
        plan->coded_pages[g] = size.coded;
        plan->scratch_pages[g] = size.scratch;
        bool coded = rq_group_is_coded(group);
        rq_page_layout layout = rq_page_layout_of(group);
        uint64_t table = 4ull * rq_cache_pages_for(n_ctx) * plan->n_sessions, tokens;
        uint64_t coded_page = coded ? rq_coded_layout_of(group).page_bytes : 0;
        uint64_t exact_bytes = table, coded_bytes = coded ? table : 0, scratch_bytes = 0;
        if (!add_product(size.exact, layout.page_bytes, &exact_bytes) ||
            !add_product(size.coded, coded_page, &coded_bytes) ||
            !add_product(size.scratch, layout.layer_bytes, &scratch_bytes) ||
            !rq_add_u64(plan->cache_bytes, exact_bytes, &plan->cache_bytes) ||
            !rq_add_u64(plan->cache_bytes, coded_bytes, &plan->cache_bytes) ||
            !rq_add_u64(plan->cache_bytes, scratch_bytes, &plan->cache_bytes))
            return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %u pages has more bytes than can be counted",
                           coded ? size.coded : size.exact);
        tokens = (uint64_t)(coded ? size.coded : size.exact) * RQ_PAGE_TOKENS;
        if (tokens < plan->cache_tokens) plan->cache_tokens = tokens;
        if (!coded) continue;
        plan->exact_bytes += exact_bytes;
        plan->coded_bytes += coded_bytes;
        plan->scratch_bytes += scratch_bytes;
    }
    return RQ_OK;
}

/* The trained context, or as many whole pages of it as fit into three quarters of the memory that the weights
 * leave. */
static uint32_t default_context(const rq_model *m, engine_plan *plan)
{
    uint64_t rest = 0;
    if (plan->available_bytes == 0) return m->hp.n_ctx_train;
    if (plan->available_bytes > plan->weight_bytes)
        rest = (plan->available_bytes - plan->weight_bytes) / 4 * 3;
    if (plan_pools(plan, m->hp.n_ctx_train, 0, NULL) == RQ_OK && plan->cache_bytes <= rest)
        return m->hp.n_ctx_train;
    uint32_t fits = 0, too_many = m->hp.n_ctx_train / RQ_PAGE_TOKENS + 1; /* pages */
    while (too_many - fits > 1) {
        uint32_t middle = fits + (too_many - fits) / 2;
        if (plan_pools(plan, middle * RQ_PAGE_TOKENS, 0, NULL) == RQ_OK && plan->cache_bytes <= rest)
            fits = middle;
        else
            too_many = middle;
    }
    uint32_t n_ctx = fits * RQ_PAGE_TOKENS;
    if (n_ctx < RQ_SMALLEST_DEFAULT_CONTEXT) n_ctx = RQ_SMALLEST_DEFAULT_CONTEXT;
    return n_ctx < m->hp.n_ctx_train ? n_ctx : m->hp.n_ctx_train;
}

static rq_status plan_numbers(const rq_model *m, const rq_engine_params *p, const rq_kv_plan *kv,
                              engine_plan *plan, rq_error *err)
{
    plan->n_sessions = p->n_sessions != 0 ? p->n_sessions : 1;
    if (plan->n_sessions > RQ_MAX_SESSIONS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%u sessions are more than the %d an engine can run",
                       plan->n_sessions, RQ_MAX_SESSIONS);
    plan->n_queue = p->n_queue != 0 ? p->n_queue : 4 * plan->n_sessions;
    plan->n_batch = p->n_batch != 0 ? p->n_batch : RQ_DEFAULT_BATCH;
    if (plan->n_batch > RQ_MAX_BUCKET || (plan->n_batch & (plan->n_batch - 1)) != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the batch size must be a power of two of at most %d, not %u",
                       RQ_MAX_BUCKET, plan->n_batch);
    if (m->n_groups == 0)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "the model has no attention layers, and this build runs no others");
    plan->groups = kv->groups;
    plan->n_groups = m->n_groups;
    for (uint32_t i = 0; i < m->n_weights; i++) plan->weight_bytes += m->weights[i].bytes;
    plan->available_bytes = rq_memory_available();

    plan->n_ctx = p->n_ctx;
    if (plan->n_ctx == 0) {
        plan->n_ctx = default_context(m, plan);
        if (kv->profile_named && kv->profile != NULL && plan->n_ctx > kv->profile->n_positions)
            plan->n_ctx = kv->profile->n_positions;
    }
    if (plan->n_ctx < 2 || plan->n_ctx > 1u << 24)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a context of %u tokens is not between 2 and %u", plan->n_ctx,
                       1u << 24);
    if (plan->n_batch > power_of_two_from(plan->n_ctx)) plan->n_batch = power_of_two_from(plan->n_ctx);

    plan->n_piece = plan->n_batch;
    if (plan->n_sessions > 1 && plan->n_piece > RQ_SHARED_PIECE) plan->n_piece = RQ_SHARED_PIECE;

    if (p->cache_tokens != 0 && p->cache_tokens < plan->n_ctx)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a cache of %llu tokens is smaller than the context of %u tokens",
                       (unsigned long long)p->cache_tokens, plan->n_ctx);
    if (p->cache_tokens > UINT32_MAX)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a cache of %llu tokens is more than can be addressed",
                       (unsigned long long)p->cache_tokens);
    return plan_pools(plan, plan->n_ctx, p->cache_tokens, err);
}

/* The cache must fit into memory; the weights only should, because the system can read them again. */
static rq_status plan_memory(const rq_engine_params *p, const engine_plan *plan, rq_error *err)
{
    uint64_t available = plan->available_bytes;
    if (available == 0) return RQ_OK;
    if (plan->cache_bytes > available)
        return rq_fail(
            err, RQ_ERR_MEMORY,
            "a cache of %llu tokens needs %.0f MiB, but only %.0f MiB of memory are available: ask for a "
            "smaller context, fewer sessions or a smaller cache",
            (unsigned long long)plan->cache_tokens, mib(plan->cache_bytes), mib(available));
    if (plan->weight_bytes + plan->cache_bytes > available)
        rq_say(
            p,
            "memory: weights and cache need %.0f MiB, %.0f MiB are available: parts of the file will be read "
            "from disk again and again",
            mib(plan->weight_bytes + plan->cache_bytes), mib(available));
    return RQ_OK;
}

/* ---- making ---------------------------------------------------------------------------------------------- */

static rq_status check_file(const rq_engine *e, rq_error *err)
{
    return rq_gguf_lost(e->model->gguf) ? rq_gguf_fail_lost(e->model->gguf, err) : RQ_OK;
}

static void watch_numbers(rq_engine *e)
{
    uint64_t n = e->said_not_finite ? 0 : rq_executor_not_finite(e->executor);
    if (n == 0) return;
    e->said_not_finite = true;
    rq_say(&e->voice,
           "cache: %llu keys or values of a page were not finite numbers and are kept as 0: what the model "
           "says of "
           "that text is worthless (a damaged file, or numbers larger than a cache of %s/%s holds)",
           (unsigned long long)n, e->info.type_k, e->info.type_v);
}

static rq_status after_step(void *user, rq_error *err)
{
    rq_engine *e = user;
    watch_numbers(e);
    rq_status status = check_file(e, err);
    return status == RQ_OK ? rq_kv_plan_capture(&e->kv, e->executor, err) : status;
}

static uint32_t place_on_first(void *user, uint32_t layer)
{
    return 0;
}

static rq_status make_executor(rq_engine *e, const engine_plan *plan, rq_error *err)
{
    const rq_model *m = e->model;
    rq_executor_params x = {
        .devices = &e->device,
        .n_devices = 1,
        .weights = e->kv.weights,
        .n_weights = e->kv.n_weights,
        .groups = plan->groups,
        .group_pages = plan->exact_pages,
        .group_coded_pages = plan->coded_pages,
        .group_scratch_pages = plan->scratch_pages,
        .group_device = plan->group_device,
        .states = m->states,
        .n_states = m->n_states,
        .caps = {.max_tokens = plan->n_batch,
                 .n_groups = m->n_groups,
                 .n_seqs = plan->n_sessions,
                 .max_pages = rq_cache_pages_for(plan->n_ctx)},
        .n_embd = m->hp.n_embd,
        .n_vocab = m->hp.n_vocab,
        .capture_floats = e->kv.pass.capture_floats,
        .build = rq_pass_build,
        .place = place_on_first,
        .user = &e->kv.pass,
    };
    rq_step_caps_complete(&x.caps);
    return rq_executor_create(&x, &e->executor, err);
}

/* What steps need is known once the forward passes are planned; none of it has been touched yet, and the system
 * would end the process when it is. */
static rq_status check_scratch(const rq_engine *e, const engine_plan *plan, rq_error *err)
{
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    uint64_t scratch = x.arena_bytes + x.persist_bytes + x.step_bytes;
    if (plan->available_bytes == 0 || plan->cache_bytes + scratch <= plan->available_bytes) return RQ_OK;
    return rq_fail(
        err, RQ_ERR_MEMORY,
        "steps of %u tokens need %.0f MiB beside a cache of %.0f MiB, but only %.0f MiB of memory are "
        "available: ask for a smaller batch or a smaller context",
        plan->n_batch, mib(scratch), mib(plan->cache_bytes), mib(plan->available_bytes));
}

static rq_status make_scheduler(rq_engine *e, const engine_plan *plan, rq_error *err)
{
    rq_sched_params s = {
        .executor = e->executor,
        .tok = e->model->tok,
        .groups = plan->groups,
        .group_pages = plan->exact_pages,
        .group_coded_pages = plan->coded_pages,
        .group_scratch_pages = plan->scratch_pages,
        .n_groups = plan->n_groups,
        .recurrent = e->model->n_states > 0,
        .cache_seed = e->kv.cache_seed,
        .n_vocab = e->model->hp.n_vocab,
        .n_ctx = plan->n_ctx,
        .n_sessions = plan->n_sessions,
        .n_batch = plan->n_batch,
        .n_piece = plan->n_piece,
        .n_queue = plan->n_queue,
        .check = after_step,
        .user = e,
    };
    return rq_sched_create(&s, &e->sched, err);
}

static void fill_info(rq_engine *e, const rq_engine_params *p, const engine_plan *plan,
                      const rq_device_info *device)
{
    e->voice = (rq_engine_params){.log = p->log, .log_user = p->log_user};
    snprintf(e->device_text, sizeof e->device_text, "%s, %s", device->name, device->features);
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    uint32_t n_threads =
        (uint32_t)strtoul(device->features, NULL, 10); /* "2 threads, ..."; 0 if it says none */
    e->info = (rq_engine_info){
        .backend = e->device->backend->name,
        .device = e->device_text,
        .type_k = e->kv.k.name,
        .type_v = e->kv.v.name,
        .bits_k = e->kv.k.bits,
        .bits_v = e->kv.v.bits,
        .kv_profile = e->kv.profile_path,
        .kv_recent = e->kv.recent_pages * RQ_PAGE_TOKENS,
        .kv_sinks = e->kv.sink_pages * RQ_PAGE_TOKENS,
        .n_ctx = plan->n_ctx,
        .n_sessions = plan->n_sessions,
        .n_batch = plan->n_batch,
        .n_threads = n_threads != 0 ? n_threads : p->n_threads,
        .cache_tokens = plan->cache_tokens,
        .cache_bytes = x.cache_bytes,
        .exact_bytes_per_session = plan->exact_bytes / plan->n_sessions,
        .scratch_bytes = x.arena_bytes + x.persist_bytes + x.step_bytes,
    };
    for (uint32_t g = 0; g < plan->n_groups; g++) {
        const rq_cache_group *group = &plan->groups[g];
        uint64_t exact = rq_page_layout_of(group).page_bytes;
        uint64_t kept = rq_group_is_coded(group) ? rq_coded_layout_of(group).page_bytes : exact;
        e->info.exact_bytes_per_token += exact / RQ_PAGE_TOKENS;
        e->info.cache_bytes_per_token += kept / RQ_PAGE_TOKENS;
    }
}

/* Where the cache goes. */
static void say_cache(const rq_engine *e, const rq_engine_params *p, const engine_plan *plan)
{
    const rq_engine_info *i = &e->info;
    rq_say(p, "cache: %s/%s, %.6g/%.6g bits, %llu bytes per token, %llu tokens, %.1f MiB (planned %.1f MiB)",
           i->type_k, i->type_v, i->bits_k, i->bits_v, (unsigned long long)i->cache_bytes_per_token,
           (unsigned long long)i->cache_tokens, mib(i->cache_bytes), mib(plan->cache_bytes));
    if (plan->coded_bytes == 0) return;
    char sinks[64] = "";
    if (i->kv_sinks != 0) snprintf(sinks, sizeof sinks, "the first %u tokens and ", i->kv_sinks);
    rq_say(p,
           "cache: coded pages %.1f MiB; %sthe last %u tokens of a sequence are read as they were written "
           "(%llu bytes "
           "per token), pages for them %.1f MiB, %.1f MiB for each of %u sessions; scratch of wide steps "
           "%.1f MiB",
           mib(plan->coded_bytes), sinks, i->kv_recent, (unsigned long long)i->exact_bytes_per_token,
           mib(plan->exact_bytes), mib(i->exact_bytes_per_session), i->n_sessions, mib(plan->scratch_bytes));
    const rq_kv_profile *profile = e->kv.profile;
    if (profile != NULL)
        rq_say(p, "cache profile: %.300s, for contexts of up to %u tokens%s%.120s", i->kv_profile,
               profile->n_positions, profile->note[0] != 0 ? ": " : "", profile->note);
    else
        rq_say(p, "cache profile: none");
}

static void say_decisions(const rq_engine *e, const rq_engine_params *p, const engine_plan *plan)
{
    const rq_model *m = e->model;
    const rq_engine_info *i = &e->info;
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    rq_say(p, "model: %s, %u layers, %u tokens of vocabulary, trained for %u tokens of context",
           m->description, m->hp.n_layers, m->hp.n_vocab, m->hp.n_ctx_train);
    rq_say(p, "device: %s (%s), all %u layers", i->device, i->backend, m->hp.n_layers);
    rq_say(p, "weights: %.1f MiB in use, read in place from the mapped file", mib(x.weight_bytes));
    say_cache(e, p, plan);
    rq_say(p, "sessions: %u of up to %u tokens, at most %u requests waiting", i->n_sessions, i->n_ctx,
           plan->n_queue);
    if (i->n_ctx > m->hp.n_ctx_train)
        rq_say(
            p,
            "context: %u tokens are more than the %u the model was trained for; answers may get worse there",
            i->n_ctx, m->hp.n_ctx_train);
    rq_say(
        p,
        "steps: up to %u tokens, prompts in pieces of %u, scratch %.1f MiB, %u operations per token, %u for "
        "its logits",
        i->n_batch, plan->n_piece, mib(i->scratch_bytes), x.n_ops_trunk, x.n_ops_head);
}

/* Everything that can be refused before anything large is made. */
static rq_status make_plan(rq_engine *e, const rq_engine_params *p, engine_plan *plan, rq_error *err)
{
    rq_status status = rq_kv_plan_choose(&e->kv, e->model, p, err);
    if (status == RQ_OK) status = plan_numbers(e->model, p, &e->kv, plan, err);
    if (status == RQ_OK) status = plan_memory(p, plan, err);
    return status == RQ_OK ? rq_kv_plan_finish(&e->kv, e->model, p, plan->n_ctx, err) : status;
}

rq_status rq_engine_create(const rq_model *model, const rq_engine_params *params, rq_engine **out,
                           rq_error *err)
{
    static const rq_engine_params defaults;
    const rq_engine_params *p = params != NULL ? params : &defaults;
    rq_engine *e = rq_calloc(1, sizeof *e);
    if (e == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for an engine");
    e->model = model;
    engine_plan plan = {0};
    rq_status status = rq_engine_device(p, &e->device, err);
    if (status == RQ_OK) status = make_plan(e, p, &plan, err);
    if (status == RQ_OK) status = make_executor(e, &plan, err);
    if (status == RQ_OK) status = check_scratch(e, &plan, err);
    if (status == RQ_OK) status = check_file(e, err);
    if (status == RQ_OK) status = make_scheduler(e, &plan, err);
    if (status != RQ_OK) {
        rq_engine_free(e);
        return status;
    }
    rq_device_info device;
    memset(&device, 0, sizeof device);
    e->device->backend->describe(e->device, &device);
    fill_info(e, p, &plan, &device);
    say_decisions(e, p, &plan);
    *out = e;
    return RQ_OK;
}

void rq_engine_free(rq_engine *e)
{
    if (e == NULL) return;
    rq_sched_free(e->sched);
    rq_executor_free(e->executor);
    rq_kv_plan_free(&e->kv);
    if (e->device != NULL) e->device->backend->close(e->device);
    rq_free(e);
}

void rq_engine_describe(const rq_engine *e, rq_engine_info *out)
{
    *out = e->info;
    rq_error why;
    out->failed = rq_sched_failed(e->sched, &why);
    if (out->failed) snprintf(out->failure, sizeof out->failure, "%s", why.text);
}

void rq_engine_get_stats(const rq_engine *e, rq_engine_stats *out)
{
    rq_sched_get_stats(e->sched, out);
    out->cache_not_finite = rq_executor_not_finite(e->executor);
}

rq_status rq_session_create(rq_engine *e, rq_session **out, rq_error *err)
{
    return rq_sched_open(e->sched, out, err);
}

void rq_list_devices(void (*line)(void *user, const char *text), void *user)
{
    for (const rq_backend *const *b = rq_backends(); *b != NULL; b++) {
        uint32_t n = (*b)->count();
        for (uint32_t i = 0; i < (n ? n : 1); i++) { /* where there is none, the attempt says why */
            rq_device_options options = {.index = i};
            rq_device *device = NULL;
            rq_error err = {0};
            char text[700];
            if ((*b)->open(&options, &device, &err) == RQ_OK) {
                rq_device_info info;
                memset(&info, 0, sizeof info);
                (*b)->describe(device, &info);
                (*b)->close(device);
                snprintf(text, sizeof text, "%s%u: %s, %s, %.0f MiB", (*b)->name, i, info.name, info.features,
                         mib(info.memory_bytes));
            } else {
                snprintf(text, sizeof text, "%s: %.500s", (*b)->name, err.text);
            }
            line(user, text);
        }
    }
}
