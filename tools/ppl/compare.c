/* compare.c - see compare.h. */
#include "tools/ppl/compare.h"

#include <math.h>

typedef struct summary {
    double log_sum;
    uint32_t likeliest;
    bool finite;
} summary;

static summary summarise(const float *logits, uint32_t n)
{
    summary s = {.finite = true};
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(logits[i])) s.finite = false;
        if (logits[i] > logits[s.likeliest]) s.likeliest = i;
    }
    if (!s.finite) return s;
    double most = logits[s.likeliest], sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += exp(logits[i] - most);
    s.log_sum = most + log(sum);
    return s;
}

void rq_reference_of(const float *logits, uint32_t n, float *probabilities, rq_reference_row *row)
{
    summary s = summarise(logits, n);
    *row = (rq_reference_row){.log_sum = s.log_sum, .likeliest = s.likeliest, .finite = s.finite};
    for (uint32_t i = 0; i < n; i++) probabilities[i] = s.finite ? (float)exp(logits[i] - s.log_sum) : 0;
}

rq_row_score rq_compare_row(const float *logits, uint32_t n, uint32_t target, const float *reference_logits,
                            const float *reference_probabilities, const rq_reference_row *reference)
{
    summary s = summarise(logits, n);
    if (!s.finite || !reference->finite) return (rq_row_score){.nll = NAN, .kl = NAN};
    /* sum p (ln p - ln q) with ln p = reference - its log sum, ln q = logit - our log sum */
    double kl = 0, shift = s.log_sum - reference->log_sum;
    for (uint32_t i = 0; i < n; i++)
        kl += reference_probabilities[i] * ((double)reference_logits[i] - logits[i] + shift);
    return (rq_row_score){.nll = (float)(s.log_sum - logits[target]),
                          .kl = (float)kl,
                          .same_top = s.likeliest == reference->likeliest,
                          .finite = true};
}
