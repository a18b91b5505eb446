/* stats.h - the statistics of the measuring tools: means, quantiles, shares with intervals, paired comparison. */
#ifndef RQ_STATS_H
#define RQ_STATS_H

#include <stddef.h>
#include <stdint.h>

typedef struct rq_mean {
    uint64_t n;
    double mean;
    double deviation; /* sample standard deviation, divisor n - 1; 0 for n < 2 */
    double error;     /* of the mean, the values taken as independent: deviation / sqrt(n) */
} rq_mean;

/* One value at a time (Welford's recurrence); zero `m` first, call rq_mean_finish last. `deviation` holds the
 * sum of squares until then. */
void rq_mean_add(rq_mean *m, double value);
void rq_mean_finish(rq_mean *m);

/* The q-quantile, 0 <= q <= 1, of n values, with linear interpolation between order statistics (type 7 of
 * Hyndman and Fan 1996, the default of numpy). Sorts the values; n = 0 gives NaN. */
double rq_quantile(float *values, size_t n, double q);

typedef struct rq_interval {
    double low, high;
} rq_interval;

/* The two-sided 95 % point of the normal distribution. */
#define RQ_Z95 1.959963984540054

/* Wilson's 95 % score interval of a share of k among n; [0, 1] for n = 0. */
rq_interval rq_wilson95(uint64_t k, uint64_t n);

/* Paired yes/no outcomes of two treatments: gained = only the second succeeded, lost = only the first did. */
typedef struct rq_paired {
    uint64_t n, gained, lost;
} rq_paired;

/* 95 % interval of (share of the second) - (share of the first): Wald's interval after half a trial was added to
 * each of the four cells (Agresti and Min 2005), which keeps its coverage when hardly any pair differs. Within
 * [-1, 1]. */
rq_interval rq_paired_difference95(rq_paired p);

/* McNemar's test, exact and two-sided: probability of a split of the differing pairs at least as uneven as this
 * one if either side were equally likely. */
double rq_mcnemar_exact(rq_paired p);

#endif
