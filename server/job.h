/* job.h - one generation request at work: its prompts as tokens, its answers (choices), the sessions it
 * holds.
 *
 * Life: rq_job_open (tokenizes, checks the context), rq_job_enter (queue), rq_job_step until it is over,
 * rq_job_close. All by one thread. */
#ifndef RQ_JOB_H
#define RQ_JOB_H

#include "backends/base/buf.h"
#include "server/request.h"
#include "server/server.h"
#include "tools/common/answer.h"

typedef struct rq_choice {
    uint32_t index, prompt;
    rq_slot *slot;        /* NULL before it starts and after it ended */
    bool done, announced; /* announced: a stream has sent its first chunk */
    rq_answer answer;     /* divides what comes into thoughts and text */
    rq_answer count;      /* the same, token by token, whatever stop strings hold back */
    uint32_t n_thought;   /* tokens of thoughts, marks included */
    uint32_t n_mark;      /* tokens that may be the beginning of a mark */
    rq_buf text, thoughts;
    rq_buf logprobs[4]; /* JSON fragments, see response.c */
    size_t characters;  /* of the tokens so far, for text_offset */
    rq_finish finish;
    uint32_t n_prompt, n_reused, n_generated, n_drafted, n_accepted;
    double prompt_ms, generate_ms;
    char reuse_note[240]; /* why not more was reused; "" if all was */
} rq_choice;

typedef struct rq_prepared {
    rq_tokens tokens;
    size_t *boundaries;
    size_t n_boundaries;
} rq_prepared;

typedef struct rq_job {
    rq_server *server;
    rq_api_request request; /* taken over from the caller */
    rq_thought_marks marks; /* of answers */
    rq_prepared *prompts;
    size_t n_prompts;
    rq_choice *choices;
    size_t n_choices, n_started, n_done;
    rq_waiter waiter;
    uint64_t seed, deadline_ns; /* deadline 0: none */
    char id[48];
    int64_t created;
} rq_job;

typedef enum rq_job_state { RQ_JOB_RUNNING, RQ_JOB_DONE, RQ_JOB_FAILED } rq_job_state;

/* Called for every event of a choice, also the last one. Returns false when the answer cannot be kept (out of
 * memory or over a limit), which fails the job. */
typedef bool rq_job_event(void *user, rq_job *job, rq_choice *choice, const rq_event *event);

/* Takes over `request` (zeroing it) and prepares its prompts. On failure the job needs no close. */
bool rq_job_open(rq_job *job, rq_server *server, rq_api_request *request, rq_api_error *error);
/* Joins the queue; 503 when it is full. */
bool rq_job_enter(rq_job *job, rq_api_error *error);
/* Works for about timeout_ms: starts choices as sessions come free and delivers events. FAILED fills `error`.
 */
rq_job_state rq_job_step(rq_job *job, int timeout_ms, rq_job_event *on_event, void *user,
                         rq_api_error *error);
/* Stops what still runs, waits for it to stop, gives the sessions back and frees everything. */
void rq_job_close(rq_job *job);

/* The model's tokens for one prompt or message list, as generation would see them. */
bool rq_prepare_messages(const rq_server *server, const rq_api_request *request, rq_prepared *out,
                         rq_api_error *error);
void rq_prepared_free(rq_prepared *prepared);

/* Turns an engine error into what a client is told. */
bool rq_api_fail_engine(rq_api_error *out, rq_status status, const rq_error *err);

#endif
