/* sched.h - the scheduler: one thread that owns the executor and runs steps for all sessions.
 *
 * The functions of the public face that take a session (rq_submit, rq_next, rq_cancel, rq_evaluate, ...) are
 * defined here; engine/rqvk.c makes the executor and the scheduler and keeps them together.
 *
 * How a step is composed. A token's bits must not depend on who else is running (DESIGN 2.3). Kernels promise
 * that for buckets of up to 8 tokens, whatever their runs are, and attention is cut into splits in these buckets
 * only. So a step is either
 *   narrow: at most 8 tokens, of any sessions: decoding sessions and prompt pieces of up to 8 tokens; or
 *   wide:   one piece of one session's prompt, cut at absolute positions that are multiples of n_piece.
 * Both depend on the session alone. The last token of a prompt is never part of a wide step, so that a request
 * has the same bits when it is repeated and its prompt is found in the cache. Narrow and wide steps alternate: between two wide steps every session that
 * is decoding gets a token, and prompts take turns, so nobody starves. */
#ifndef RQ_SCHED_H
#define RQ_SCHED_H

#include "backends/exec/exec.h"
#include "engine/rqvk.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct rq_sched rq_sched;

enum { RQ_NARROW_TOKENS = 8, RQ_MAX_SESSIONS = RQ_MAX_RUNS };

typedef struct rq_sched_params {
    rq_executor *executor;   /* borrowed; used by the scheduler's thread only */
    const rq_tokenizer *tok; /* borrowed */
    /* The cache groups, their exact pools and, where a group has a coded form, their coded pools and scratch
     * pages, as rq_cache_pool_sizes gives them; the arrays are copied. `groups` NULL: no group has a coded
     * form, and the last two are not read. */
    const rq_cache_group *groups;
    const uint32_t *group_pages, *group_coded_pages, *group_scratch_pages;
    uint32_t n_groups;
    /* The model has recurrent state: what a session holds can be gone on from, but not cut back. */
    bool recurrent;
    uint64_t snapshot_bytes; /* most for copies of state that later requests may go on from */
    uint64_t cache_seed;     /* a hash of what else the pages depend on (the profile); 0: nothing */
    uint32_t n_vocab, n_ctx, n_sessions, n_batch, n_queue; /* as rq_engine_params, resolved */
    uint32_t n_piece; /* most tokens of a request's prompt in a step, <= n_batch: how long others may wait */
    /* Drafts, of an executor that makes them: most tokens guessed ahead (0: none), the least probability of a guess, and
     * whether they end for good where they measure slower than none. */
    uint32_t draft_depth;
    float draft_min_p;
    bool draft_auto;
    void (*say)(void *user, const char *line); /* what was measured; may be NULL */
    /* Asked after every step: anything but RQ_OK fails the engine with that sentence. May be NULL. */
    rq_status (*check)(void *user, rq_error *err);
    void *user;
} rq_sched_params;

/* Every pool must hold at least n_ctx tokens, or every session's window, so that any one request can run. */
rq_status rq_sched_create(const rq_sched_params *params, rq_sched **out, rq_error *err);
/* Ends everything with RQ_FINISH_CANCELLED and waits for the thread. Its sessions are freed already. */
void rq_sched_free(rq_sched *sched);

rq_status rq_sched_open(rq_sched *sched, rq_session **out, rq_error *err);
void rq_sched_get_stats(rq_sched *sched, rq_engine_stats *out);
/* True when the engine has failed; the sentence is copied then. */
bool rq_sched_failed(rq_sched *sched, rq_error *why);

#endif
