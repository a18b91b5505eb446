/* select.c - selection by counting digits of the keys (radix selection) and sorting the same way. */
#include "engine/sampler/select.h"

#include <math.h>

/* A key is cut into digits of 11, 11 and 10 bits, the most significant first. */
enum { N_DIGITS = 3, MAX_BINS = 2048 };
static const uint8_t digit_shift[N_DIGITS] = {21, 10, 0};
static const uint32_t digit_bins[N_DIGITS] = {2048, 2048, 1024};

static inline uint32_t digit(uint32_t key, int d)
{
    return key >> digit_shift[d] & (digit_bins[d] - 1);
}

int64_t rq_argmax(const float *x, size_t n)
{
    int64_t best = -1;
    float max = -INFINITY;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) { /* most blocks hold no new maximum: one test for all of a block */
        int any = 0;
        for (size_t j = 0; j < 16; j++) any |= x[i + j] > max;
        if (!any) continue;
        for (size_t j = 0; j < 16; j++)
            if (x[i + j] > max) {
                max = x[i + j];
                best = (int64_t)(i + j);
            }
    }
    for (; i < n; i++)
        if (x[i] > max) {
            max = x[i];
            best = (int64_t)i;
        }
    return best;
}

size_t rq_keep_top_k(rq_cand *cands, size_t n, size_t k)
{
    if (k >= n) return n;
    if (k == 0) return 0;
    uint32_t count[MAX_BINS];
    uint32_t prefix = 0, mask = 0; /* digits known of the k-th largest key */
    size_t want = k;               /* rank of that key among the candidates that share the prefix */
    for (int d = 0; d < N_DIGITS; d++) {
        memset(count, 0, sizeof count);
        for (size_t i = 0; i < n; i++)
            if ((cands[i].key & mask) == prefix) count[digit(cands[i].key, d)]++;
        uint32_t bin = digit_bins[d];
        while (bin-- > 0 && count[bin] < want) want -= count[bin];
        prefix |= bin << digit_shift[d];
        mask |= (digit_bins[d] - 1) << digit_shift[d];
    }
    /* `prefix` is the k-th largest key now, and `want` of the candidates that have it belong to the k */
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (cands[i].key < prefix) continue;
        if (cands[i].key == prefix) {
            if (want == 0) continue;
            want--;
        }
        cands[kept++] = cands[i];
    }
    return kept;
}

double rq_exp_sum(const rq_cand *cands, size_t n, float max_logit)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += expf(rq_key_value(cands[i].key) - max_logit);
    return sum;
}

size_t rq_keep_mass(rq_cand *cands, size_t n, float max_logit, double share, double *sum)
{
    double mass[MAX_BINS];
    memset(mass, 0, sizeof mass);
    for (size_t i = 0; i < n; i++)
        mass[digit(cands[i].key, 0)] += expf(rq_key_value(cands[i].key) - max_logit);
    *sum = 0;
    for (uint32_t bin = 0; bin < MAX_BINS; bin++) *sum += mass[bin];
    double run = 0;
    uint32_t bin = MAX_BINS;
    /* the margin keeps the bin where another order of summation would have crossed */
    while (bin-- > 1 && (run += mass[bin]) < share * *sum * (1 + 1e-9)) {
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (digit(cands[i].key, 0) >= bin) cands[kept++] = cands[i];
    return kept;
}

void rq_sort_cands(rq_cand *cands, size_t n, rq_cand *scratch)
{
    if (n <= 64) {
        for (size_t i = 1; i < n; i++) {
            rq_cand c = cands[i];
            size_t j = i;
            for (; j > 0 && cands[j - 1].key < c.key; j--) cands[j] = cands[j - 1];
            cands[j] = c;
        }
        return;
    }
    rq_cand *from = cands, *to = scratch;
    size_t start[MAX_BINS];
    for (int d = N_DIGITS; d-- > 0;) {
        memset(start, 0, sizeof start);
        for (size_t i = 0; i < n; i++) start[digit(from[i].key, d)]++;
        size_t next = 0;
        for (uint32_t bin = digit_bins[d]; bin-- > 0;) {
            size_t here = start[bin];
            start[bin] = next;
            next += here;
        }
        for (size_t i = 0; i < n; i++) to[start[digit(from[i].key, d)]++] = from[i];
        rq_cand *swap = from;
        from = to;
        to = swap;
    }
    if (from != cands) memcpy(cands, from, n * sizeof *cands);
}
