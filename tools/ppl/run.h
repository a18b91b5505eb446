/* run.h - evaluates a text under many cache formats side by side.
 *
 * Every format has an engine of its own over the same model, and so has the reference, an f16 cache. A window is
 * evaluated piece by piece: first by the reference, whose logits of that piece are kept, then by every format,
 * whose logits are compared row by row as they come and not kept. So memory is one piece of logits and, for each
 * format and scored token, nine bytes of results, whatever the length of the text. Several lanes, each with engines
 * of its own, work on different windows at once. */
#ifndef RQ_PPL_RUN_H
#define RQ_PPL_RUN_H

#include "engine/rqvk.h"
#include "tools/ppl/entries.h"
#include "tools/ppl/plan.h"
#include "tools/ppl/seat.h"

typedef struct rq_ppl_job {
    const rq_model *model;
    rq_engine_params params; /* of every engine; formats, context, sessions and threads are set here */
    const rq_tokens *ids;    /* the text */
    rq_token bos;            /* used when windows.n_bos is 1 */
    rq_windows windows;
    const rq_entries *entries;
    uint32_t n_lanes, n_threads; /* threads of all lanes together; 0: the processors there are */
    bool quiet;                  /* no progress on standard error */
} rq_ppl_job;

/* What came of one format. */
typedef struct rq_ppl_column {
    rq_entry entry;
    char refused[512]; /* why there are no results, "" if there are */
    rq_seat_info info;
    float *nll, *kl; /* [windows][rows]; kl NULL for the reference */
    uint8_t *same_top;
} rq_ppl_column;

typedef struct rq_ppl_results {
    uint32_t n_rows; /* scored tokens of a window */
    size_t n_windows, n_done;
    uint8_t *done; /* [n_windows] */
    rq_ppl_column reference;
    rq_ppl_column *columns; /* [n_columns], in the order of the entries */
    size_t n_columns;
    double seconds;
    char device[512];
} rq_ppl_results;

/* Runs the job until all windows are done or rq_interrupted(). Formats the engine refuses keep its sentence and do
 * not stop the others; a failure of the reference fails the run. Free with rq_ppl_results_free, also after a
 * failure. */
rq_status rq_ppl_run(const rq_ppl_job *job, rq_ppl_results *out, rq_error *err);
void rq_ppl_results_free(rq_ppl_results *results);

#endif
