/* seat.h - an engine with one session for one entry of a list of formats. */
#ifndef RQ_SEAT_H
#define RQ_SEAT_H

#include "engine/rqvk.h"
#include "tools/ppl/entries.h"
#include "tools/ppl/foreign_hook.h"

typedef struct rq_seat {
    rq_engine *engine;
    rq_session *session;
    rq_foreign_hook *hook;
} rq_seat;

/* `params` with the formats, the profile and the hook of the entry, and one session. Fails where a calibrated entry
 * finds no profile. On failure `out` is untouched. */
rq_status rq_seat_open(const rq_model *model, const rq_engine_params *params, const rq_entry *entry,
                       rq_seat *out, rq_error *err);
void rq_seat_close(rq_seat *seat);

typedef struct rq_seat_info {
    char profile[512]; /* file of the profile in use, "" for none */
    double bits_k, bits_v;
    uint32_t kv_recent, kv_sinks; /* in tokens, as the engine rounded them */
    bool coded;                   /* some of the cache is read in coded form */
    uint64_t bytes_per_token;
} rq_seat_info;
void rq_seat_describe(const rq_seat *seat, const rq_entry *entry, rq_seat_info *out);

/* Checks every foreign codec of the list against published figures (tools/kv/published.h). */
rq_status rq_entries_check_foreign(const rq_entries *entries, rq_error *err);

#endif
