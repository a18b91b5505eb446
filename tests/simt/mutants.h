/* mutants.h - arguments of the kernels of mutants.cu. */
#ifndef RQ_SIMT_MUTANTS_H
#define RQ_SIMT_MUTANTS_H

enum { RIGHT, MISSING_BARRIER, PAST_THE_END, MISSING_WAIT, MISSING_FENCE, WRONG_FRAGMENT };

typedef struct mutant_args {
    const float *in;
    float *out;
} mutant_args;

#endif
