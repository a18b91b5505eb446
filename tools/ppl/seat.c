/* seat.c - see seat.h. */
#include "tools/ppl/seat.h"

#include "tools/kv/published.h"

#include <stdio.h>
#include <string.h>

static const char *type_of(const char *name)
{
    return rq_entry_is_foreign(name) ? "trip" : name;
}

rq_status rq_seat_open(const rq_model *model, const rq_engine_params *params, const rq_entry *entry,
                       rq_seat *out, rq_error *err)
{
    rq_seat s = {0};
    rq_engine_params p = *params;
    p.n_sessions = 1;
    p.cache_tokens = 0;
    p.type_k = type_of(entry->k);
    p.type_v = type_of(entry->v);
    if (!entry->calibrated) p.kv_profile = "none";
    const char *foreign_k = rq_entry_is_foreign(entry->k) ? entry->k : NULL;
    const char *foreign_v = rq_entry_is_foreign(entry->v) ? entry->v : NULL;
    rq_status status = RQ_OK;
    if (foreign_k || foreign_v) {
        status = rq_foreign_hook_make(model, foreign_k, foreign_v, &s.hook, err);
        if (!status) p.kv_hooks = rq_foreign_hook_of(s.hook);
    }
    if (!status) status = rq_engine_create(model, &p, &s.engine, err);
    if (!status) status = rq_session_create(s.engine, &s.session, err);
    rq_engine_info info;
    if (!status) {
        rq_engine_describe(s.engine, &info);
        if (entry->calibrated && !info.kv_profile)
            status =
                rq_fail(err, RQ_ERR_ARGUMENT, "the model has no profile: make one with rqvk-kv calibrate");
    }
    if (status)
        rq_seat_close(&s);
    else
        *out = s;
    return status;
}

void rq_seat_close(rq_seat *seat)
{
    rq_session_free(seat->session);
    rq_engine_free(seat->engine);
    rq_foreign_hook_free(seat->hook);
    *seat = (rq_seat){0};
}

void rq_seat_describe(const rq_seat *seat, const rq_entry *entry, rq_seat_info *out)
{
    rq_engine_info info;
    rq_engine_describe(seat->engine, &info);
    *out = (rq_seat_info){.bits_k = info.bits_k,
                          .bits_v = info.bits_v,
                          .coded = info.exact_bytes_per_session != 0,
                          .kv_recent = info.kv_recent,
                          .kv_sinks = info.kv_sinks,
                          .bytes_per_token = info.cache_bytes_per_token};
    snprintf(out->profile, sizeof out->profile, "%s", info.kv_profile ? info.kv_profile : "");
    /* The engine keeps what a foreign codec returns; what the codec would have kept is what counts. */
    if (rq_entry_is_foreign(entry->k)) out->bits_k = rq_foreign_hook_bits(seat->hook, false);
    if (rq_entry_is_foreign(entry->v)) out->bits_v = rq_foreign_hook_bits(seat->hook, true);
}

rq_status rq_entries_check_foreign(const rq_entries *entries, rq_error *err)
{
    rq_status s = RQ_OK;
    for (size_t i = 0; i < entries->n && !s; i++) {
        const rq_entry *e = &entries->items[i];
        if (rq_entry_is_foreign(e->k)) s = kv_published_check(e->k, err);
        if (!s && rq_entry_is_foreign(e->v) && strcmp(e->k, e->v) != 0) s = kv_published_check(e->v, err);
    }
    return s;
}
