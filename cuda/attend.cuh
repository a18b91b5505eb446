// attend.cuh - what the kernels of attention share: merging states, partial results.
#ifndef RQ_CUDA_ATTEND_CUH
#define RQ_CUDA_ATTEND_CUH

#include "cuda/pages.cuh"

CONSTANT float NOTHING = -3.402823466e38f; // the maximum of a split in which a query sees no key

// exp for x <= 0; zero far down. Error a few units in the last place, the same bits wherever it runs.
DEVICE float exp_below(float x)
{
    if (!(x >= -87.0f)) return 0;
    float k = floorf(x * 1.44269504f + 0.5f), r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float q = 1.9875691500e-4f;
    q = fmaf(q, r, 1.3981999507e-3f);
    q = fmaf(q, r, 8.3334519073e-3f);
    q = fmaf(q, r, 4.1665795894e-2f);
    q = fmaf(q, r, 1.6666665459e-1f);
    q = fmaf(q, r, 5.0000001201e-1f);
    return (fmaf(q * r, r, r) + 1.0f) * bits_float((uint32_t)((int)k + 127) << 23);
}

DEVICE float merged(float x, float a, float y, float b)
{
    return fmaf(y, b, x * a);
}

// What merging with a split of maximum m does: factors of the sums so far (a) and of the split's (b).
DEVICE void merge_factors(float &total_max, float m, float &a, float &b)
{
    float larger = fmaxf(total_max, m);
    a = total_max == NOTHING ? 0.0f : exp_below(total_max - larger);
    b = exp_below(m - larger);
    total_max = larger;
}

// The item of work of this block, and what positions say about its queries.
struct work_item {
    uint32_t first, count, page_first, page_end, split, n_splits, partial, seq;
};

DEVICE bool work_at(const cuda_attend_args &p, uint32_t i, work_item &w)
{
    const uint32_t *step = p.step;
    if (i >= step[STEP_N_WORK + p.group]) return false;
    const uint32_t *at = step + step[STEP_WORK + p.group] + WORK_WORDS * i;
    w.first = at[1];
    w.count = at[2];
    w.page_first = at[3];
    w.page_end = at[4];
    w.split = at[5];
    w.n_splits = at[6];
    w.partial = at[7];
    w.seq = step[step[STEP_RUNS] + RUN_WORDS * at[0]];
    return w.seq < p.pool->n_seqs;
}

#endif
