/* kv_bench.h - what the tests of the compressed cache share beside real_bench.h: models alone in a folder,
 * evaluations, distances. */
#ifndef RQ_TEST_KV_BENCH_H
#define RQ_TEST_KV_BENCH_H

#include "engine/kv.h"
#include "tests/engine/real_bench.h"

enum { KB_VOCAB = 512 /* of the models in tests/data/oracle */ };

/* A model of tests/data/oracle under a name of its own in a scratch folder, so that files can be put beside it;
 * kb_remove takes the folder away. `suffix` ".kvprofile" gives the path of a file beside it. */
rq_model *kb_load_alone(const char *name);
const char *kb_beside(const char *suffix);
void kb_remove(void);

/* Ids of a text that looks random and is not. */
void kb_tokens(rq_token *ids, size_t n);

/* Logits after each of n tokens, [n][KB_VOCAB], read in pieces of `chunk` (0: whole) by a fresh session. */
void kb_logits(rq_engine *engine, const rq_token *ids, size_t n, uint32_t chunk, float *logits);
/* The same from an engine that lives for the call only. */
void kb_logits_of(const rq_model *model, const rq_engine_params *params, const rq_token *ids, size_t n,
                  uint32_t chunk, float *logits);

/* |a - b|^2 / |b|^2 after the mean of each row is taken off; fails when something is not finite. */
double kb_nmse(const float *a, const float *b, size_t n);
/* Mean Kullback-Leibler divergence of the rows' distributions, of b from a. */
double kb_divergence(const float *a, const float *b, size_t n);

#endif
