/* metrics.h - what a lossy cache does to the attention of one head.
 *
 *   exact: logits l = q k, weights p = softmax(l), output o = p v; with a hat: from decoded keys and values.
 *   k_nmse, v_nmse    sum |x - x^|^2 / sum |x|^2
 *   k_cosine, v_cosine   mean over rows of the cosine between x and x^
 *   logit_rmse        sqrt(mean over queries of the variance over keys of l^ - l): what softmax sees
 *   kl                mean over queries of sum p log(p / p^), natural logarithm
 *   top1              share of queries whose heaviest key is the same
 *   out_k, out_v, out |o - o^| / |o| over all queries: keys lossy, values lossy, both
 *   out_unbiased      as out, decoded values times 1 / (1 - v_nmse)
 *   best_gain_k       factor on decoded keys that fits the centred logits best in least squares
 *   best_gain_v       factor on decoded values that fits the output best (keys lossy too) */
#ifndef RQ_KV_METRICS_H
#define RQ_KV_METRICS_H

#include "backends/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct kv_case {
    uint32_t n, n_queries, dim_k, dim_v;
    const float *k, *v;        /* [n][dim_k], [n][dim_v] */
    const float *q;            /* [n_queries][dim_k], the attention's scale included */
    const uint32_t *from, *to; /* query t sees keys from[t] <= j < to[t] <= n, at least one; both NULL: all */
    double softcap;            /* logits become cap * tanh(l / cap); 0: not */
} kv_case;

typedef struct kv_quality {
    double k_nmse, k_cosine, v_nmse, v_cosine, logit_rmse, kl, top1, out_k, out_v, out, out_unbiased;
    double best_gain_k, best_gain_v;
    uint64_t count; /* measurements summed; 1 from kv_measure */
} kv_quality;

/* Logits, weights and outputs of the exact case, kept for many formats. Borrows the case's arrays. */
typedef struct kv_exact {
    kv_case c;
    float *logits, *weights, *out; /* [n_queries][n] twice, [n_queries][dim_v] */
} kv_exact;

rq_status kv_exact_make(const kv_case *c, kv_exact *out, rq_error *err);
void kv_exact_free(kv_exact *exact);

rq_status kv_measure(const kv_exact *exact, const float *k_hat, const float *v_hat, kv_quality *out,
                     rq_error *err);

/* Adds b to a; divides sums by the count. Means over heads are means of each head's figures. */
void kv_quality_add(kv_quality *a, const kv_quality *b);
kv_quality kv_quality_mean(const kv_quality *sum);

/* Sum of products in sixteen lanes, so that the compiler can vectorise it. */
float kv_dot(const float *a, const float *b, uint32_t n);

#endif
