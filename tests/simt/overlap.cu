// overlap.cu - kernels that may begin before the launch that they depend on has ended, and those that do it wrong.
#include "cuda/simt.cuh"

#include "tests/simt/overlap.h"

KERNEL(overlap_first, overlap_args, 64)
{
    uint32_t i = block_x() * 64 + thread_x();
    p.out[i] = 2 * p.constant[i];
}

template <int MUTANT> DEVICE void second(const overlap_args &p)
{
    SHARED(float, kept, 64);
    uint32_t tid = thread_x(), i = block_x() * 64 + tid;
    prefetch(&p.constant[i]);
    kept[tid] = p.constant[i];
    block_sync();
    float early = 0;
    if (MUTANT == READS_EARLY && block_x() == 1 && tid == 17) early = p.in[i] - p.in[i];
    if (MUTANT == WRITES_EARLY && block_x() == 1 && tid == 17) p.out[i] = 0;
    if (MUTANT == ONE_THREAD_LEAVES && i == 70) return;
    if (MUTANT == ONE_BLOCK_LEAVES && block_x() == 2) return;
    launch_next();
    if (MUTANT != NEVER_WAITS) launch_wait();
    p.out[i] = p.in[i] + kept[63 - tid] + early;
}
#define SECOND(name, mutant)                                                                                 \
    KERNEL_AHEAD(name, overlap_args, 64)                                                                     \
    {                                                                                                        \
        second<mutant>(p);                                                                                   \
    }
SECOND(overlap_right, OVERLAP_RIGHT)
SECOND(overlap_reads, READS_EARLY)
SECOND(overlap_writes, WRITES_EARLY)
SECOND(overlap_never, NEVER_WAITS)
SECOND(overlap_thread, ONE_THREAD_LEAVES)
SECOND(overlap_block, ONE_BLOCK_LEAVES)
