/* real_bench.h - what the tests of the whole engine share: the small random models of tests/data/oracle, engines, the
 * log, refusals, memory that runs out. All fail the test when something is not as it should be. */
#ifndef RQ_TEST_REAL_BENCH_H
#define RQ_TEST_REAL_BENCH_H

#include "engine/rqvk.h"

/* The path of a file of tests/data/oracle; the text lasts until the next call. */
const char *rb_path(const char *name);
rq_model *rb_load(const char *path);
rq_engine *rb_engine(const rq_model *model, const rq_engine_params *params);
rq_session *rb_session(rq_engine *engine);
/* An engine with these parameters is refused, in a sentence that has this part. */
void rb_refused(const rq_model *model, rq_engine_params params, rq_status status, const char *part);

/* Token ids that look random, a function of the number. */
void rb_tokens(rq_token *ids, size_t n, uint32_t number, uint32_t n_vocab);

/* An answer, with the log-probabilities that show every bit of the logits that matter. */
enum { RB_MOST = 64 };
typedef struct rb_answer {
    rq_token ids[RB_MOST];
    rq_token_logprob top[RB_MOST][RQ_MAX_LOGPROBS];
    uint32_t n, n_reused;
    char note[200]; /* why not more was reused */
} rb_answer;

/* Asks for `max` tokens (at most RB_MOST), drawn by a seed that depends on n alone; and takes them all. */
void rb_submit(rq_session *s, const rq_token *ids, size_t n, const size_t *ends, size_t n_ends, uint32_t max,
               bool fresh);
void rb_collect(rq_session *s, rb_answer *answer);
void rb_same_answer(const rb_answer *a, const rb_answer *b);
uint64_t rb_step_tokens(const rq_engine *engine);
/* A request that reuses what it finds, through a session of `engine`; then the same from scratch through `other`, of
 * another engine with nothing in it: the same answer, and only what is new was computed. Returns what was reused. */
uint32_t rb_reuse(const rq_engine *engine, rq_session *s, rq_session *other, const rq_token *ids, size_t n,
                  const size_t *ends, size_t n_ends, uint32_t max, rb_answer *got);

/* What an engine wrote into its log: .log = rb_keep_line, .log_user = &lines. */
typedef struct rb_lines {
    char text[8192];
    size_t n;
} rb_lines;
void rb_keep_line(void *user, const char *line);
void rb_said(const rb_lines *log, const char *part);

/* Makes engines of which an allocation fails: each of the first `dense` ones, then about `others` more. Whatever
 * happens, nothing is left behind and a failure has its sentence. Returns how many engines could not be made. */
uint64_t rb_failing_allocations(const rq_model *model, const rq_engine_params *params, uint64_t dense,
                                uint64_t others);

#endif
