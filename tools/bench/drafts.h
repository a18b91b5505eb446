/* drafts.h - rqvk-bench --drafts: what drafts of each depth save on a text. */
#ifndef RQ_BENCH_DRAFTS_H
#define RQ_BENCH_DRAFTS_H

#include "engine/rqvk.h"

enum { RQ_BENCH_SESSIONS = 8 }; /* with more, steps have no room for guesses */

/* Continues pieces of the text file, of 256 tokens each and evenly spread, greedily by n_gen tokens: n_rounds of as many
 * as there are sessions; without drafts and with each depth up to 6. Prints a line for each, a table, or with `json`
 * objects: what was guessed and was right, tokens of all sessions a step, bytes of weights that were read for a token
 * and time, both beside what no drafts take. */
rq_status rq_bench_drafts(const rq_model *model, const rq_engine_params *params, const char *path,
                          uint32_t n_sessions, uint32_t n_rounds, uint32_t n_gen, bool json, rq_error *err);

#endif
