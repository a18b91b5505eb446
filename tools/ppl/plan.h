/* plan.h - which tokens of a text are scored, and how much of what they read was compressed. */
#ifndef RQ_PLAN_H
#define RQ_PLAN_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A text cut into windows of n_ctx tokens. Inside a window the tokens at first + 1 .. n_ctx - 1 are scored: each
 * from the logits of the token before it. */
typedef struct rq_windows {
    uint32_t n_ctx;  /* tokens of a window, the beginning-of-sequence token included */
    uint32_t stride; /* tokens of text from one window's start to the next one's */
    uint32_t n_bos;  /* 1: every window begins with that token */
    uint32_t first;  /* position of the first scored logits */
    size_t n;        /* windows */
} rq_windows;

/* Scores the second half of each window, or with `all` everything but its first token. stride 0: windows side by
 * side; most 0: as many windows as the text has. Fails when the text is shorter than a window. */
rq_status rq_windows_plan(size_t n_tokens, uint32_t n_ctx, uint32_t stride, uint32_t n_bos, bool all,
                          size_t most, rq_windows *out, rq_error *err);

/* Rows of logits scored in a window: those of the positions first .. n_ctx - 2. */
static inline uint32_t rq_windows_rows(const rq_windows *w)
{
    return w->n_ctx - 1 - w->first;
}

/* Share of the keys read by attention at the scored positions that were read from coded pages, by the rule of the
 * cache (rq_kv_reads_exact). kv_recent and kv_sinks in tokens, as the engine rounded them. window: of a layer, 0
 * for none; layers with a window are never coded. */
double rq_coded_share(const rq_windows *w, uint32_t kv_recent, uint32_t kv_sinks, uint32_t window);

/* Below this share a comparison with the exact cache says little about the code. */
#define RQ_LEAST_CODED_SHARE 0.8

/* The shortest context, in steps of 64, and the longest kv_recent that reach that share while everything else stays
 * as it is; 0 where none does. */
void rq_coded_share_advice(const rq_windows *w, bool all, uint32_t kv_recent, uint32_t kv_sinks,
                           uint32_t *n_ctx, uint32_t *recent);

#endif
