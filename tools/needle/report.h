/* report.h - the results of rqvk-needle in figures, and in the forms they are written in. */
#ifndef RQ_NEEDLE_REPORT_H
#define RQ_NEEDLE_REPORT_H

#include "tools/needle/run.h"
#include "tools/ppl/stats.h"

#include <stdio.h>

typedef struct rq_needle_figures {
    uint64_t n, values, sentences; /* trials, answers that hold the value, answers that are the sentence */
    rq_interval value_95, sentence_95;
    rq_paired paired;          /* with the first format, values */
    rq_interval difference_95; /* share of this format - share of the first, values */
    double mcnemar;            /* p */
} rq_needle_figures;

enum { RQ_NEEDLE_ANY = -1 };

/* Of one format, over the trials that were run, of one length and depth (indices) or RQ_NEEDLE_ANY. */
rq_needle_figures rq_needle_figures_of(const rq_needle_job *job, const rq_needle_results *results,
                                       size_t format, int length, int depth);

typedef struct rq_needle_report {
    const rq_needle_job *job;
    const rq_needle_results *results;
    rq_model_info model;
    const char *text_path;
} rq_needle_report;

void rq_needle_print_table(const rq_needle_report *report, FILE *out);
void rq_needle_print_json(const rq_needle_report *report, FILE *out);
/* One line for each trial: number, length, depth, and the outcome under each format: 2 the whole sentence, 1 the
 * value, 0 neither. */
void rq_needle_print_csv(const rq_needle_report *report, FILE *out);
/* Formats down, lengths and depths across. */
rq_status rq_needle_print_svg(const rq_needle_report *report, FILE *out, rq_error *err);

#endif
