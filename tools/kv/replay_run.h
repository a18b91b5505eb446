/* replay_run.h - formats on a capture: what `rqvk-kv replay` prints. */
#ifndef RQ_KV_REPLAY_RUN_H
#define RQ_KV_REPLAY_RUN_H

#include "engine/kv.h"
#include "tools/kv/capture_dir.h"
#include "tools/kv/format.h"
#include "tools/kv/metrics.h"

typedef struct kv_replay {
    const char *folder;
    const kv_manifest *manifest;
    const kv_format_list *formats;
    const rq_kv_profile *profile; /* NULL: none. Foreign and exact formats never use it. */
    uint32_t
        n_positions; /* whose queries are looked at, for each head; spread over the last 3/4 of the text */
    double gain_k, gain_v; /* on decoded rows of our own codes, between the mean and the rotation; 1: none */
} kv_replay;

typedef struct kv_replay_row {
    const char *format;
    uint32_t layer, head; /* KV head; the queries are those of all its query heads */
    double bits_k, bits_v;
    kv_quality quality;
} kv_replay_row;

/* Rotations are the engine's: those of its fixed seeds, and learned ones where the profile has them. Calls `row` for
 * every layer, KV head and format, in this order. RQ_ERR_ARGUMENT when the profile was made for another model or
 * other rotary settings. */
rq_status kv_replay_run(const kv_replay *r,
                        rq_status (*row)(void *user, const kv_replay_row *row, rq_error *err), void *user,
                        rq_error *err);

#endif
