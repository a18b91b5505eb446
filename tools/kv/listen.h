/* listen.h - runs a text through a model and hands what attention sees to a callback. */
#ifndef RQ_KV_LISTEN_H
#define RQ_KV_LISTEN_H

#include "engine/kv.h"
#include "tools/common/args.h"

typedef struct kv_listen {
    const rq_engine_args *engine; /* formats, profile and hooks in it are not used: everything is exact */
    const char *text_path;
    uint32_t window;        /* tokens of one sequence; 0: the model's trained context */
    uint32_t n_tokens;      /* in all; 0: the whole text */
    bool one_window;        /* the first one only */
    bool repeat;            /* a text shorter than n_tokens, or than a window, starts again */
    const uint32_t *layers; /* n_layers 0: all */
    uint32_t n_layers;
} kv_listen;

/* What the text became, before anything runs. */
typedef struct kv_listen_plan {
    const rq_model *model;
    uint32_t window, n_tokens; /* tokens of the longest sequence, of all */
    const rq_token *tokens;    /* of the first window */
} kv_listen_plan;

/* Loads the model, calls `ready` once - which may still choose `layers` -, then `rows` as rq_kv_hooks.capture says: positions count from 0 in every
 * window, and every window begins as the model wants texts to begin. RQ_ERR_ARGUMENT when the text is too short for
 * two tokens or the window is longer than the trained context. */
rq_status kv_listen_run(const kv_listen *l,
                        rq_status (*ready)(void *user, const kv_listen_plan *plan, rq_error *err),
                        rq_status (*rows)(void *user, const rq_kv_captured *rows, rq_error *err), void *user,
                        rq_error *err);

#endif
