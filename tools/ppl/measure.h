/* measure.h - how rqvk-ppl and rqvk-needle start: the options they share, the checks before hours of work, the model. */
#ifndef RQ_MEASURE_H
#define RQ_MEASURE_H

#include "tools/common/args.h"

typedef struct rq_measure_args {
    rq_engine_args engine;
    const char *text, *formats, *csv, *json, *svg; /* files of results: NULL: none */
    uint32_t lanes;                                /* 0: not said */
} rq_measure_args;

/* The options of the engine but the cache's formats and its size, which follow from the measurement; then the
 * heading, the text and the list of formats with this help. */
void rq_options_measure(rq_options *options, rq_measure_args *args, const char *formats_help);

typedef struct rq_results_help {
    const char *lanes, *csv, *svg;
} rq_results_help;
/* The lanes and the files of results. */
void rq_options_results(rq_options *options, rq_measure_args *args, rq_results_help help);

/* The whole program after its options are listed: reads the command line, checks that there is a text and that the
 * files of results can be written, loads the model and calls run(user, model, err). Returns the exit code. */
int rq_measure_main(const rq_program_text *text, const rq_options *options, rq_measure_args *args, int argc,
                    char **argv, rq_status (*run)(void *user, const rq_model *model, rq_error *err),
                    void *user);

#endif
