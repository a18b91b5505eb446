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
