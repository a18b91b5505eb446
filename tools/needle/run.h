/* run.h - asks the same trials under many cache formats. */
#ifndef RQ_NEEDLE_RUN_H
#define RQ_NEEDLE_RUN_H

#include "tools/needle/trial.h"
#include "tools/ppl/seat.h"

enum { RQ_NEEDLE_MAX_LENGTHS = 16, RQ_NEEDLE_MAX_DEPTHS = 21 };

typedef struct rq_needle_job {
    const rq_model *model;
    rq_engine_params params; /* formats, context, sessions and threads are set here */
    const rq_needle_haystack *haystack;
    rq_needle_form form;
    const rq_entries *entries; /* the first one is what the others are compared with */
    uint32_t lengths[RQ_NEEDLE_MAX_LENGTHS], n_lengths;
    uint32_t depths[RQ_NEEDLE_MAX_DEPTHS], n_depths; /* in percent */
    uint32_t n_each;                                 /* trials of a length and depth */
    uint64_t seed;
    uint32_t n_lanes, n_threads;
    bool quiet;
} rq_needle_job;

/* Trial i has the cell i % (lengths * depths), cells counted length by length, so that a run cut short has them all
 * in equal numbers. */
static inline uint64_t rq_needle_n_cells(const rq_needle_job *job)
{
    return (uint64_t)job->n_lengths * job->n_depths;
}
static inline uint64_t rq_needle_n_trials(const rq_needle_job *job)
{
    return job->n_each * rq_needle_n_cells(job);
}

typedef struct rq_needle_results {
    uint64_t n_trials, n_done;
    uint8_t *outcomes; /* [n_trials][entries->n], rq_needle_outcome */
    struct rq_needle_column {
        char refused[512]; /* why there are no results, "" if there are */
        rq_seat_info info;
    } * columns; /* [entries->n] */
    double seconds;
    char device[512];
} rq_needle_results;

/* Every lane has an engine for each format and gives them its trials one by one, so that what is there after an
 * interrupt is paired. The first format must run; others may be refused by the engine. Free the results also after
 * a failure. */
rq_status rq_needle_run(const rq_needle_job *job, rq_needle_results *out, rq_error *err);
void rq_needle_results_free(rq_needle_results *results);

#endif
