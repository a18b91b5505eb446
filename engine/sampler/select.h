/* select.h - the largest logits without sorting a vocabulary. Everything is O(n) whatever the values are, uses
 * no memory of its own and breaks ties by the lower id, so that results depend on the logits alone. */
#ifndef RQ_SELECT_H
#define RQ_SELECT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct rq_cand {
    uint32_t key; /* of the logit: greater key, greater logit */
    int32_t id;
} rq_cand;

/* Order-preserving map of finite floats and infinities to integers; -0 and 0 are the same. */
static inline uint32_t rq_key_of(float x)
{
    uint32_t u;
    x += 0.0f;
    memcpy(&u, &x, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static inline float rq_key_value(uint32_t key)
{
    uint32_t u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Index of the largest of n floats, the first of equal ones; -1 when all are -infinity (or n is 0). */
int64_t rq_argmax(const float *x, size_t n);

/* Keeps the k largest of n candidates (which come in ascending order of ids), in that order; returns how many
 * were kept, min(n, k). */
size_t rq_keep_top_k(rq_cand *cands, size_t n, size_t k);

/* Sum of exp(logit - max_logit) over the candidates. */
double rq_exp_sum(const rq_cand *cands, size_t n, float max_logit);
/* Stores the same sum, and keeps a subset that contains every candidate of the smallest set of largest logits
 * with at least `share` of it, and is not much larger; order stays. */
size_t rq_keep_mass(rq_cand *cands, size_t n, float max_logit, double share, double *sum);

/* Sorts candidates that come in ascending order of ids by descending logit, equal ones by ascending id.
 * `scratch` has room for n. */
void rq_sort_cands(rq_cand *cands, size_t n, rq_cand *scratch);

#endif
