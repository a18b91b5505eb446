/* internal.h - what the files of the scheduler share.
 *
 * One mutex guards everything that is not marked otherwise. While a session runs (phase PROMPT or DECODE) its
 * `tokens`, sampler and stream belong to the scheduler's thread, else to the session's owner. */
#ifndef RQ_SCHED_INTERNAL_H
#define RQ_SCHED_INTERNAL_H

#include "backends/base/buf.h"
#include "engine/cache/cache.h"
#include "engine/sampler/sampler.h"
#include "engine/sched/sched.h"
#include "engine/sched/snapshots.h"
#include "engine/text/stream.h"

#include <pthread.h>

/* Events a session holds for a reader that is behind. The last two places are for the token of the step in
 * flight and the final event: a session without room for both is left out of steps until it is read. */
enum { RQ_EVENT_SLOTS = 32 };

typedef struct rq_event_queue {
    rq_event events[RQ_EVENT_SLOTS]; /* `text` is set when an event is taken out */
    rq_buf texts[RQ_EVENT_SLOTS];
    uint32_t first, count;
    rq_buf current; /* text of the event taken last */
} rq_event_queue;

/* The ends of messages whose exact pages are kept: the first one (what many conversations begin with), the last
 * ones and the prompt's. */
enum { RQ_KEPT_ENDS = 5 };

typedef enum rq_phase { RQ_PHASE_IDLE, RQ_PHASE_WAITING, RQ_PHASE_PROMPT, RQ_PHASE_DECODE } rq_phase;

typedef struct rq_evaluation {
    uint32_t chunk;
    rq_logits_rows rows;
    size_t first; /* position of the first token asked for */
    void (*on_logits)(void *user, size_t position, const float *logits);
    void *user;
    rq_status status;
    rq_error error;
} rq_evaluation;

struct rq_session {
    rq_sched *sched;
    uint32_t slot;       /* sequence slot of the cache and the executor */
    pthread_cond_t wake; /* an event came, or the session became idle */

    /* The sequence: n_tokens ids are known, the keys and values of the first n_cached are in the cache. An idle
     * session keeps both for reuse; its pages may be taken away (n_cached = 0), its ids stay. */
    rq_token *tokens;
    size_t cap_tokens, n_tokens, n_cached;

    rq_phase phase;
    bool evaluating; /* the work is an rq_evaluate, else a request */
    bool cancel;
    bool due;          /* has not had its turn in this round of narrow steps */
    bool open_request; /* the final event has not been read */
    uint64_t ticket;   /* order of arrival while waiting, of last use while idle */
    size_t n_limit;    /* tokens the sequence may grow to; set aside in the cache when it starts */

    /* the request */
    int32_t n_logprobs;
    bool ignore_eos;
    bool fresh; /* reuses nothing */
    size_t n_prompt, n_reused, n_generated, n_drafted, n_accepted;
    size_t n_held, n_same; /* tokens of the sequence before, and how many of them the prompt begins with */
    size_t ends[RQ_KEPT_ENDS]; /* where a later request may well go on */
    uint32_t n_ends;
    int64_t start_ns, first_ns, last_ns;
    char reuse_note[120];
    /* The last run was a draft check that ended at position check_end: the state lacks its n_unapplied tokens. */
    size_t check_end;
    uint32_t n_unapplied;
    rq_snapshot *restore; /* pinned: to be put into the slot before the session's next step */
    rq_sampler sampler;
    rq_stream stream;

    rq_evaluation evaluation;
    rq_event_queue queue;
};

/* Are drafts worth their time? Measured in turns with and without, for each number of sessions that share steps. */
typedef struct rq_draft_trial {
    bool on;      /* steps may draft */
    bool running; /* not decided yet */
    uint32_t n_steps;
    uint64_t ns[2], tokens[2]; /* without, with */
} rq_draft_trial;

/* A token that was chosen. */
typedef struct rq_result {
    bool has_token; /* it becomes part of the sequence, and an event; else the answer ends with it */
    rq_token token;
    rq_token_logprob chosen, top[RQ_MAX_LOGPROBS];
    uint32_t n_top;
    rq_buf text;
} rq_result;

/* A session's part of a step, and what came of it. */
typedef struct rq_part {
    rq_session *session;
    uint32_t first, count; /* tokens of the step */
    uint32_t row, n_rows;  /* its rows of the head in this step; evaluations may want more than fit */
    uint32_t n_guesses;    /* tokens to guess; then those that were: the run is the next token and they */
    rq_token guesses[RQ_NARROW_TOKENS];
    /* filled outside the lock */
    rq_result *results; /* the scheduler's, as many as rows of a request */
    uint32_t n_results; /* tokens chosen: that many of the run count */
    rq_finish finish;
    rq_buf tail;           /* text of the final event */
    rq_snapshot *snapshot; /* of the state behind the step, to be kept; or NULL */
    rq_error error;
} rq_part;

struct rq_sched {
    rq_sched_params params;
    pthread_mutex_t lock;
    pthread_cond_t work; /* something for the thread to do */
    pthread_t thread;
    bool started, stopping, failed;
    rq_error failure;

    rq_cache *cache;
    rq_snapshots snapshots;
    rq_session *sessions[RQ_MAX_SESSIONS]; /* by slot */
    uint32_t n_waiting;
    uint64_t next_ticket;
    uint32_t narrow_turn, wide_turn; /* slots where the next search starts */
    rq_engine_stats stats;

    /* of the scheduler's thread */
    rq_sampler_scratch scratch;
    rq_part parts[RQ_NARROW_TOKENS];
    uint32_t n_parts;
    rq_result results[RQ_NARROW_TOKENS];
    rq_draft_trial
        trials[RQ_NARROW_TOKENS]; /* of steps shared by 1, 2, ... sessions; off for one: off for all */
    uint32_t n_sharing;           /* sessions that were due when the step was composed */
    rq_page_copy *copies;         /* to make before the step */
    uint32_t n_copies;
};

int64_t rq_now_ns(void);

/* ---- events.c -------------------------------------------------------------------------------------------- */

void rq_events_init(rq_event_queue *queue);
void rq_events_free(rq_event_queue *queue);
void rq_events_clear(rq_event_queue *queue);
/* Is there room for a token and the final event? */
bool rq_events_room(const rq_event_queue *queue);
/* Appends an event; its text is swapped out of `text` (may be NULL). Room is the caller's duty. */
void rq_events_push(rq_event_queue *queue, const rq_event *event, rq_buf *text);
/* Takes the first event out; its text stays until the next call. */
void rq_events_pop(rq_event_queue *queue, rq_event *event);

/* ---- sched.c, under the lock ----------------------------------------------------------------------------- */

/* Starts waiting work for which the cache has room, in order of arrival; takes pages from idle sessions, the
 * one unused for longest first. Called after everything that may make room. */
void rq_sched_admit(rq_sched *sched);
/* Takes over what the cache holds of a prompt: when it starts, and while it is being read what another session
 * has computed meanwhile. */
void rq_sched_reuse(rq_session *session, bool starts);
/* Nobody waits for the session's state any more: it was put into the slot, or will not be. */
void rq_sched_restored(rq_session *session);
/* Ends the work of a session that is not idle; `error` for RQ_FINISH_ERROR, `text` is the last text or NULL. */
void rq_sched_finish(rq_session *session, rq_finish finish, const rq_error *error, rq_buf *text);
/* Ends everything with this sentence and refuses new work from now on. */
void rq_sched_fail(rq_sched *sched, const rq_error *why);
/* The event fields that every event carries. */
void rq_sched_fill_event(const rq_session *session, rq_event *event);

/* ---- draft.c --------------------------------------------------------------------------------------------- */

void rq_draft_start(rq_sched *sched);
/* Under the lock: how many tokens to guess for the session, which is in turn for one token, where the step has room for
 * `room` more. */
uint32_t rq_draft_length(const rq_sched *sched, const rq_session *session, uint32_t room);
/* How many tokens before the session's next one wait to be applied to its state. */
uint32_t rq_draft_unapplied(const rq_session *session);
/* Outside the lock: guesses for the parts that want guesses, and adds their runs to the step. */
rq_status rq_draft_guess(rq_sched *sched, rq_step *step, rq_error *err);
/* Which token of each part is its last is known: the next guesses start there. Checks or all others. */
rq_status rq_draft_remember(rq_sched *sched, bool checks, rq_error *err);
/* Under the lock: counts a step that took ns and ends the trial when enough was seen. */
void rq_draft_count(rq_sched *sched, int64_t ns);

/* ---- step.c ---------------------------------------------------------------------------------------------- */

/* Under the lock: chooses who takes part in the next step and writes it; a request that fits into no step ends
 * with an error. False when nobody can run; a failure is in *status then. */
bool rq_sched_compose(rq_sched *sched, rq_step **step, rq_status *status, rq_error *err);
/* Outside the lock: runs the step and works out what every part gets. Fails when the engine has failed. */
rq_status rq_sched_execute(rq_sched *sched, rq_step *step, rq_error *err);
/* Under the lock: makes the results known. */
void rq_sched_publish(rq_sched *sched, int64_t ns);

#endif
