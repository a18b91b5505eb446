/* cuda.h - what the rest of the program may know about the CUDA backend beside its table. */
#ifndef RQ_CUDA_H
#define RQ_CUDA_H

#include "backends/backend.h"

/* Loads the driver when a device is asked for; without one, opening says so in a sentence. */
extern const rq_backend rq_backend_cuda;

#endif
