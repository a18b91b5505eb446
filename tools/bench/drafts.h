/* drafts.h - rqvk-bench --drafts: what drafts of each depth save on a text. */
#ifndef RQ_BENCH_DRAFTS_H
#define RQ_BENCH_DRAFTS_H

#include "engine/rqvk.h"

/* Continues n_prompts pieces of the text file, of 256 tokens each and evenly spread, greedily by n_gen tokens; without
 * drafts and with each depth up to 6. Prints a line for each: a table, or with `json` objects. */
rq_status rq_bench_drafts(const rq_model *model, const rq_engine_params *params, const char *path,
                          uint32_t n_prompts, uint32_t n_gen, bool json, rq_error *err);

#endif
