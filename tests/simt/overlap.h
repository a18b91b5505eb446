/* overlap.h - arguments of the kernels of overlap.cu. */
#ifndef RQ_SIMT_OVERLAP_H
#define RQ_SIMT_OVERLAP_H

/* How a kernel that may begin early goes wrong. */
enum { OVERLAP_RIGHT, READS_EARLY, WRITES_EARLY, NEVER_WAITS, ONE_THREAD_LEAVES, ONE_BLOCK_LEAVES };

typedef struct overlap_args {
    const float *constant; /* no launch writes it */
    const float *in;       /* of the launch before */
    float *out;
} overlap_args;

#endif
