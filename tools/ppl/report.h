/* report.h - the results of rqvk-ppl in figures, and in the forms they are written in. */
#ifndef RQ_PPL_REPORT_H
#define RQ_PPL_REPORT_H

#include "tools/ppl/run.h"
#include "tools/ppl/stats.h"

#include <stdio.h>

/* One format over all finished windows. Errors "by_window" take whole windows for the independent draws, which
 * tokens of one text are not; they need at least two windows. */
typedef struct rq_ppl_figures {
    uint64_t n;                                 /* tokens scored */
    double ppl, ppl_error, ppl_error_by_window; /* exp of the mean of -ln p; error by the delta method */
    double ratio, ratio_error,
        ratio_error_by_window; /* mean of -ln p minus that of the reference: ln(ppl/ppl) */
    double kl, kl_error, kl_error_by_window, kl_99, kl_most;
    double same_top; /* share of tokens */
    rq_interval same_top_95;
    double coded_share; /* of the keys read, mean over the layers */
    bool kl_refused;    /* too little of what was read was coded to say anything */
} rq_ppl_figures;

/* Figures of a column that was not refused. RQ_ERR_MEMORY only. */
rq_status rq_ppl_figures_of(const rq_ppl_job *job, const rq_ppl_results *results, const rq_ppl_column *column,
                            rq_ppl_figures *out, rq_error *err);

typedef struct rq_ppl_report {
    const rq_ppl_job *job;
    const rq_ppl_results *results;
    rq_ppl_figures reference, *columns; /* [n_columns] */
    const char *text_path;
    rq_model_info model;
    bool all;         /* the first half of the windows was scored too */
    bool interrupted; /* only part of the windows is there */
} rq_ppl_report;

/* A table for people, with a sentence for each format that was refused and for what was not said. */
void rq_ppl_print_table(const rq_ppl_report *report, FILE *out);
void rq_ppl_print_csv(const rq_ppl_report *report, FILE *out);
void rq_ppl_print_json(const rq_ppl_report *report, FILE *out);
/* Mean KL against bits per element; fails when no format was compared with f16. */
rq_status rq_ppl_print_svg(const rq_ppl_report *report, FILE *out, rq_error *err);

#endif
