/* fake_executor.h - stands in for the executor when the scheduler is tested.
 *
 * It keeps real page tables and pages in both forms (fake_pages.h) and checks that every page a token reads is
 * there in the form its position demands. A row's logits are a pseudo-random function of the whole sequence as
 * it is found through the tables: whoever sees a wrong page, a stale table, a lost copy, a page that was not
 * encoded or somebody else's token gets other logits. fake_logits gives the same numbers from a plain array of
 * ids, so a test knows what every session must see. */
#ifndef FAKE_EXECUTOR_H
#define FAKE_EXECUTOR_H

#include "backends/exec/exec.h"
#include "tests/engine/fake_pages.h"

#include <stddef.h>

enum { FAKE_LOG_RUNS = 8, FAKE_LOG_STEPS = 20000 };

typedef struct fake_step {
    uint32_t n_tokens, n_runs;
    uint32_t seq[FAKE_LOG_RUNS], start[FAKE_LOG_RUNS], count[FAKE_LOG_RUNS]; /* of the first runs */
} fake_step;

typedef struct fake_params {
    rq_step_caps caps; /* completed */
    fake_pools pools;
    uint32_t n_vocab;
    uint32_t step_us; /* how long a step takes */
} fake_params;

/* NULL when memory runs out. */
rq_executor *fake_create(const fake_params *params);
/* Besides freeing: the number of contract violations seen, 0 when all was well. */
uint32_t fake_free(rq_executor *ex);

/* The n-th step (1 = the next) fails, at the given place. */
typedef enum fake_place { FAKE_BEGIN, FAKE_SUBMIT, FAKE_WAIT, FAKE_HEAD } fake_place;
void fake_fail_at(rq_executor *ex, fake_place place, uint32_t n);
/* Sequences that end with this token get NaN as logits. */
void fake_poison(rq_executor *ex, int32_t token);

/* Steps run so far (any thread), and the record of step i < that. */
uint32_t fake_steps(const rq_executor *ex);
const fake_step *fake_step_at(const rq_executor *ex, uint32_t i);

/* The logits after ids[0 .. n). */
void fake_logits(const int32_t *ids, size_t n, uint32_t n_vocab, float *logits);

#endif
