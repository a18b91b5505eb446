/* sets.h - synthetic keys, values and queries of one head: models of what caches hold, for theory and for tests.
 *
 *   gaussian       (a)   independent N(0, 1)
 *   outliers       (b)   as (a), four random channels times 20 in K, four others in V
 *   outliers-q     (b')  as (b), queries divided by 20 on K's four channels
 *   rope-adjacent  (c)   keys = rotary(mean + correlated noise), pairs on adjacent channels
 *   rope           (c')  the same with pairs (i, i + dim / 2)
 *   offset         (d)   as (a), a constant of +-20 on four channels of K
 *   student        (e)   Student's t with three degrees of freedom, unit variance
 *
 * Queries are independent of keys, scaled so that logits have a standard deviation of `spread` over the keys. */
#ifndef RQ_KV_SETS_H
#define RQ_KV_SETS_H

#include "backends/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef enum kv_set_kind {
    KV_SET_GAUSSIAN,
    KV_SET_OUTLIERS,
    KV_SET_OUTLIERS_Q,
    KV_SET_ROPE_ADJACENT,
    KV_SET_ROPE,
    KV_SET_OFFSET,
    KV_SET_STUDENT,
    KV_SET_COUNT
} kv_set_kind;

typedef struct kv_set {
    uint32_t n, n_queries, dim;
    float *k, *v; /* [n][dim] */
    float *q;     /* [n_queries][dim] */
} kv_set;

const char *kv_set_name(kv_set_kind kind); /* NULL out of range */
/* RQ_ERR_ARGUMENT, with the list of names, when there is none of that name. */
rq_status kv_set_of_name(const char *name, kv_set_kind *out, rq_error *err);

/* dim even, 8 .. 1024; n and n_queries in 2 .. 2^20. On success *out is to be given to kv_set_free. */
rq_status kv_set_make(kv_set_kind kind, uint32_t dim, uint32_t n, uint32_t n_queries, double spread,
                      uint64_t seed, kv_set *out, rq_error *err);
void kv_set_free(kv_set *set);

#endif
