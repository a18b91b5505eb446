/* context.h - rqvk-bench --context-table: how much context fits on cards of several sizes, by cache format. */
#ifndef RQ_BENCH_CONTEXT_H
#define RQ_BENCH_CONTEXT_H

#include "tools/bench/results.h"
#include "tools/common/args.h"
#include "tools/common/numbers.h"

/* Plans (engine/plan.h) the models of `names` on each card: "all" presets of published shapes, or some of their names
 * separated by commas, or "model" for the one that `args` say. Presets are written as sparse files in the folder for
 * temporary ones, with Q4_K_M weights. `cards`: their memory in GB (of 2^30 bytes), of which half a GB is left to the
 * driver and a desktop; with the backend "cpu" the memory of the machine. Prints tables, or a line for each plan, CSV or JSON. */
rq_status rq_bench_contexts(const rq_engine_args *args, const char *names, const rq_numbers *cards,
                            bench_format format, rq_error *err);

#endif
