/* compare.h - next-token distributions beside those of a reference. */
#ifndef RQ_COMPARE_H
#define RQ_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A reference row: logits as they came, and what every comparison with them needs. */
typedef struct rq_reference_row {
    double log_sum;     /* logarithm of the sum of exponentials of the logits */
    uint32_t likeliest; /* the first of the largest logits */
    bool finite;
} rq_reference_row;

/* Fills `row` and the probabilities [n] of n logits. */
void rq_reference_of(const float *logits, uint32_t n, float *probabilities, rq_reference_row *row);

typedef struct rq_row_score {
    float nll;     /* - ln of the probability of the token that came */
    float kl;      /* sum over tokens of p ln(p / q), p the reference */
    bool same_top; /* both hold the same token for the likeliest */
    bool finite;   /* all logits were; else nothing above means anything */
} rq_row_score;

/* Scores n logits beside a reference row; `target` < n is the token that came. Sums are kept in double. The sum of
 * kl may come out a little below 0 (rounding of the logits themselves) where both are equal in all but name. */
rq_row_score rq_compare_row(const float *logits, uint32_t n, uint32_t target, const float *reference_logits,
                            const float *reference_probabilities, const rq_reference_row *reference);

#endif
