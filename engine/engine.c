/* engine.c - makes an engine: resolves the parameters, plans memory, opens the device, builds the executor and
 * starts the scheduler; and says what it decided. */
#include "backends/backend.h"
#include "backends/base/mem.h"
#include "engine/cache/cache.h"
#include "engine/place/decide.h"
#include "engine/say.h"
#include "engine/sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rq_engine {
    const rq_model *model;
    rq_decision decision;
    rq_executor *executor;
    rq_sched *sched;
    rq_engine_info info; /* device points to `device_text`, formats and profile into the decision */
    char device_text[420];
    rq_engine_params voice; /* the log alone */
    bool said_not_finite;
};

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
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
    return status == RQ_OK ? rq_kv_plan_capture(&e->decision.kv, e->executor, err) : status;
}

static void say_line(void *user, const char *line)
{
    const rq_engine *e = user;
    if (e->voice.log != NULL) e->voice.log(e->voice.log_user, line);
}

static rq_status make_executor(rq_engine *e, rq_error *err)
{
    rq_decision *d = &e->decision;
    rq_executor_params x = rq_place_executor(&d->place, &d->devices, &d->kv, &d->pools, &d->numbers);
    return rq_executor_create(&x, &e->executor, err);
}

/* What steps need is known once the forward passes are planned; none of it has been touched yet, and the system
 * would end the process when it is. */
static rq_status check_scratch(const rq_engine *e, rq_error *err)
{
    const rq_decision *d = &e->decision;
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    uint64_t scratch = x.arena_bytes + x.persist_bytes + x.step_bytes + x.program_bytes;
    if (d->devices.n_cards != 0 || d->available_bytes == 0 ||
        d->pools.cache_bytes + scratch <= d->available_bytes)
        return RQ_OK;
    return rq_fail(
        err, RQ_ERR_MEMORY,
        "steps of %u tokens need %.0f MiB beside a cache of %.0f MiB, but only %.0f MiB of memory are "
        "available: ask for a smaller batch or a smaller context",
        d->numbers.n_batch, mib(scratch), mib(d->pools.cache_bytes), mib(d->available_bytes));
}

static rq_status make_scheduler(rq_engine *e, rq_error *err)
{
    const rq_decision *d = &e->decision;
    rq_sched_params s = {
        .executor = e->executor,
        .tok = e->model->tok,
        .groups = d->place.groups,
        .group_pages = d->pools.exact_pages,
        .group_coded_pages = d->pools.coded_pages,
        .group_scratch_pages = d->pools.scratch_pages,
        .n_groups = d->place.n_groups,
        .recurrent = d->place.n_states > 0,
        .snapshot_bytes = d->numbers.snapshot_bytes,
        .cache_seed = e->decision.kv.cache_seed,
        .n_vocab = e->model->hp.n_vocab,
        .n_ctx = d->numbers.n_ctx,
        .n_sessions = d->numbers.n_sessions,
        .n_batch = d->numbers.n_batch,
        .n_piece = d->n_piece,
        .n_queue = d->n_queue,
        .draft_depth = d->place.drafts ? d->draft.depth : 0,
        .draft_min_p = d->draft.min_p,
        .draft_auto = d->draft.automatic,
        .say = say_line,
        .check = after_step,
        .user = e,
    };
    return rq_sched_create(&s, &e->sched, err);
}

static void fill_info(rq_engine *e, const rq_engine_params *p, const rq_device_info *device)
{
    const rq_decision *d = &e->decision;
    e->voice = (rq_engine_params){.log = p->log, .log_user = p->log_user};
    snprintf(e->device_text, sizeof e->device_text, "%s, %s", device->name, device->features);
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    uint32_t n_threads =
        (uint32_t)strtoul(device->features, NULL, 10); /* "2 threads, ..."; 0 if it says none */
    e->info = (rq_engine_info){
        .backend = d->devices.open[0]->backend->name,
        .device = e->device_text,
        .type_k = e->decision.kv.k.name,
        .type_v = e->decision.kv.v.name,
        .bits_k = e->decision.kv.k.bits,
        .bits_v = e->decision.kv.v.bits,
        .kv_profile = e->decision.kv.profile_path,
        .kv_recent = e->decision.kv.recent_pages * RQ_PAGE_TOKENS,
        .kv_sinks = e->decision.kv.sink_pages * RQ_PAGE_TOKENS,
        .n_ctx = d->numbers.n_ctx,
        .n_sessions = d->numbers.n_sessions,
        .n_batch = d->numbers.n_batch,
        .n_threads = n_threads != 0 ? n_threads : p->n_threads,
        .cache_tokens = d->pools.cache_tokens,
        .cache_bytes = x.cache_bytes,
        .exact_bytes_per_session = d->pools.exact_bytes / d->numbers.n_sessions,
        .draft_depth = d->place.drafts ? d->draft.depth : 0,
        .window_bytes = d->pools.window_bytes,
        .scratch_bytes = x.arena_bytes + x.persist_bytes + x.step_bytes + x.program_bytes,
    };
    for (uint32_t g = 0; g < d->place.n_groups; g++) {
        const rq_cache_group *group = &d->place.groups[g];
        if (group->window != 0) continue;
        uint64_t exact = rq_page_layout_of(group).page_bytes;
        uint64_t kept = rq_group_is_coded(group) ? rq_coded_layout_of(group).page_bytes : exact;
        e->info.exact_bytes_per_token += exact / RQ_PAGE_TOKENS;
        e->info.cache_bytes_per_token += kept / RQ_PAGE_TOKENS;
    }
}

/* The groups whose layers see a window. */
static void say_windows(const rq_engine *e, const rq_engine_params *p)
{
    const rq_decision *d = &e->decision;
    for (uint32_t g = 0; g < d->place.n_groups; g++) {
        const rq_cache_group *group = &d->place.groups[g];
        if (group->window == 0) continue;
        bool coded = rq_group_is_coded(group);
        uint32_t max_pages = rq_cache_pages_for(e->info.n_ctx);
        rq_say(p,
               "cache: %u layers that see the last %u tokens keep %u pages of 64 for each session, %u of "
               "%.1f KiB in "
               "all, whatever the context: %s/%s",
               group->n_layers, group->window,
               rq_cache_share(group, coded ? RQ_PAGE_CODED : RQ_PAGE_EXACT, max_pages),
               coded ? d->pools.coded_pages[g] : d->pools.exact_pages[g],
               (double)(coded ? rq_coded_layout_of(group).page_bytes : rq_page_layout_of(group).page_bytes) /
                   1024,
               d->kv.window_k.name, d->kv.window_v.name);
    }
}

/* Where the cache goes. */
static void say_cache(const rq_engine *e, const rq_engine_params *p)
{
    const rq_decision *d = &e->decision;
    const rq_engine_info *i = &e->info;
    rq_say(p, "cache: %s/%s, %.6g/%.6g bits, %llu bytes per token, %llu tokens, %.1f MiB (planned %.1f MiB)",
           i->type_k, i->type_v, i->bits_k, i->bits_v, (unsigned long long)i->cache_bytes_per_token,
           (unsigned long long)i->cache_tokens, mib(i->cache_bytes), mib(d->pools.cache_bytes));
    say_windows(e, p);
    if (d->pools.coded_bytes == 0) return;
    char sinks[64] = "";
    if (i->kv_sinks != 0) snprintf(sinks, sizeof sinks, "the first %u tokens and ", i->kv_sinks);
    rq_say(p,
           "cache: coded pages %.1f MiB; %sthe last %u tokens of a sequence are read as they were written "
           "(%llu bytes "
           "per token), pages for them %.1f MiB, %.1f MiB for each of %u sessions; scratch of wide steps "
           "%.1f MiB",
           mib(d->pools.coded_bytes), sinks, i->kv_recent, (unsigned long long)i->exact_bytes_per_token,
           mib(d->pools.exact_bytes), mib(i->exact_bytes_per_session), i->n_sessions,
           mib(d->pools.scratch_bytes));
    const rq_kv_profile *profile = e->decision.kv.profile;
    if (profile != NULL)
        rq_say(p, "cache profile: %.300s, for contexts of up to %u tokens%s%.120s", i->kv_profile,
               profile->n_positions, profile->note[0] != 0 ? ": " : "", profile->note);
    else
        rq_say(p, "cache profile: none");
}

/* What goes where, a line for each device. */
static void say_place(const rq_engine *e, const rq_engine_params *p, const rq_executor_info *x)
{
    const rq_decision *d = &e->decision;
    for (uint32_t i = 0; i < d->place.n_devices; i++) {
        char layers[160];
        rq_place_describe(&d->place, i, layers, sizeof layers);
        rq_say(p,
               "device: %s (%s): %s; weights %.1f MiB, cache %.1f, activations %.1f, scratch and the rest "
               "%.1f MiB",
               d->devices.name[i], d->devices.info[i].name, layers,
               mib(d->need.weights[i] + (i == d->devices.n_cards ? d->need.file_bytes : 0)),
               mib(d->need.cache[i]), mib(d->need.activations[i]),
               mib(d->need.scratch[i] + d->need.other[i]));
    }
    if (x->n_copies != 0)
        rq_say(p, "between devices: %u copies and %llu bytes for every token", x->n_copies,
               (unsigned long long)x->copy_bytes);
}

static void say_decisions(const rq_engine *e, const rq_engine_params *p)
{
    const rq_decision *d = &e->decision;
    const rq_model *m = e->model;
    const rq_engine_info *i = &e->info;
    rq_executor_info x;
    rq_executor_describe(e->executor, &x);
    rq_say(p, "model: %s, %u layers, %u tokens of vocabulary, trained for %u tokens of context",
           m->description, m->hp.n_layers, m->hp.n_vocab, m->hp.n_ctx_train);
    if (d->devices.n_cards == 0) {
        rq_say(p, "device: %s (%s), all %u layers", i->device, i->backend, m->hp.n_layers);
        rq_say(p, "weights: %.1f MiB in use, read in place from the mapped file", mib(x.weight_bytes));
    } else {
        say_place(e, p, &x);
    }
    say_cache(e, p);
    rq_say(p, "reuse: save points at the ends of messages and answers; where room is needed, what no save "
              "point holds goes "
              "first, then the save points unused for longest");
    if (d->place.n_states != 0)
        rq_say(p,
               "state: %.1f MiB for each session; up to %.0f MiB of memory for copies at the ends of "
               "messages and "
               "answers (--cache-ram), the one unused for longest goes first",
               mib(rq_executor_state_bytes(e->executor)), mib(d->numbers.snapshot_bytes));
    if (i->draft_depth != 0) {
        char least[48] = "";
        if (d->draft.min_p > 0)
            snprintf(least, sizeof least, " of probability %g or more", (double)d->draft.min_p);
        rq_say(p, "drafts: up to %u guesses a step%s by the model's MTP block, with a cache of its own%s",
               i->draft_depth, least,
               d->draft.automatic ? "; the first answers show whether they stay on" : "");
    }
    rq_say(p, "sessions: %u of up to %u tokens, at most %u requests waiting", i->n_sessions, i->n_ctx,
           d->n_queue);
    if (i->n_ctx > m->hp.n_ctx_train)
        rq_say(
            p,
            "context: %u tokens are more than the %u the model was trained for; answers may get worse there",
            i->n_ctx, m->hp.n_ctx_train);
    rq_say(
        p,
        "steps: up to %u tokens, prompts in pieces of %u, scratch %.1f MiB, %u operations per token, %u for "
        "its logits",
        i->n_batch, d->n_piece, mib(i->scratch_bytes), x.n_ops_trunk, x.n_ops_head);
}

rq_status rq_engine_create(const rq_model *model, const rq_engine_params *params, rq_engine **out,
                           rq_error *err)
{
    static const rq_engine_params defaults;
    const rq_engine_params *p = params != NULL ? params : &defaults;
    rq_engine *e = rq_calloc(1, sizeof *e);
    if (e == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for an engine");
    e->model = model;
    rq_status status = rq_decide(model, p, false, &e->decision, err);
    if (status == RQ_OK) status = make_executor(e, err);
    if (status == RQ_OK) status = check_scratch(e, err);
    if (status == RQ_OK) status = check_file(e, err);
    if (status == RQ_OK) status = make_scheduler(e, err);
    if (status != RQ_OK) {
        rq_engine_free(e);
        return status;
    }
    fill_info(e, p, &e->decision.devices.info[0]);
    say_decisions(e, p);
    *out = e;
    return RQ_OK;
}

void rq_engine_free(rq_engine *e)
{
    if (e == NULL) return;
    rq_sched_free(e->sched);
    rq_executor_free(e->executor);
    rq_decision_free(&e->decision);
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
