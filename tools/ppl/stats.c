/* stats.c - see stats.h. */
#include "tools/ppl/stats.h"

#include <math.h>
#include <stdlib.h>

void rq_mean_add(rq_mean *m, double value)
{
    m->n++;
    double step = value - m->mean;
    m->mean += step / (double)m->n;
    m->deviation += step * (value - m->mean);
}

void rq_mean_finish(rq_mean *m)
{
    m->deviation = m->n > 1 ? sqrt(fmax(0, m->deviation / (double)(m->n - 1))) : 0;
    m->error = m->n > 1 ? m->deviation / sqrt((double)m->n) : 0;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double rq_quantile(float *values, size_t n, double q)
{
    if (n == 0) return NAN;
    qsort(values, n, sizeof *values, ascending);
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n) return values[n - 1];
    return values[i] + (at - (double)i) * ((double)values[i + 1] - values[i]);
}

rq_interval rq_wilson95(uint64_t k, uint64_t n)
{
    if (n == 0) return (rq_interval){0, 1};
    double z2 = RQ_Z95 * RQ_Z95, trials = (double)n, p = (double)k / trials;
    double middle = (p + z2 / (2 * trials)) / (1 + z2 / trials);
    double half = RQ_Z95 * sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials);
    /* at the ends the interval touches them exactly; rounding must not leave it beside them */
    return (rq_interval){k == 0 ? 0 : fmax(0, middle - half), k == n ? 1 : fmin(1, middle + half)};
}

rq_interval rq_paired_difference95(rq_paired p)
{
    double n = (double)p.n + 2, gained = (double)p.gained + 0.5, lost = (double)p.lost + 0.5;
    double difference = (gained - lost) / n;
    double half = RQ_Z95 * sqrt(fmax(0, gained + lost - n * difference * difference)) / n;
    return (rq_interval){fmax(-1, difference - half), fmin(1, difference + half)};
}

double rq_mcnemar_exact(rq_paired p)
{
    uint64_t n = p.gained + p.lost, less = p.gained < p.lost ? p.gained : p.lost;
    if (n == 0 || 2 * less == n) return 1;
    /* the tail of the binomial with share 1/2, each term from its logarithm; 32 bits of n lose no digits that
     * matter in lgamma's relative precision */
    double sum = 0, all = lgamma((double)n + 1) - (double)n * log(2);
    for (uint64_t k = less + 1; k-- > 0;) {
        double term = exp(all - lgamma((double)k + 1) - lgamma((double)(n - k) + 1));
        sum += term;
        if (term < sum * 1e-18) break; /* terms fall from here on */
    }
    return fmin(1, 2 * sum);
}
