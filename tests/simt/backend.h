/* backend.h - the CUDA backend over the simulator's table of driver functions. */
#ifndef RQ_SIMT_BACKEND_H
#define RQ_SIMT_BACKEND_H

#include "backends/backend.h"

/* Its name is "simt". */
extern const rq_backend rq_backend_simt;

#endif
