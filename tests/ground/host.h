/* host.h - a small backend for tests: runs segments through the reference. */
#ifndef TEST_HOST_H
#define TEST_HOST_H

#include "backends/backend.h"

typedef struct host_options {
    bool hidden;      /* memory has no host address: everything goes through upload and download */
    bool idle;        /* run does nothing */
    bool no_fused;    /* supports primitives only */
    uint64_t shuffle; /* not 0: operations between two barriers run in an order drawn with this seed */
    uint32_t refuse;  /* an rq_op_kind that supports() says no to; 0: none */
} host_options;

/* A device of its own; close with device->backend->close. NULL when memory runs out. */
rq_device *host_open(const host_options *options);

/* Bytes allocated on the device now, weights not counted. */
uint64_t host_allocated(rq_device *device);
/* Uploads and downloads so far. */
uint64_t host_transfers(rq_device *device);
/* The k-th alloc, adopt or compile from now fails (0: never). */
void host_fail_at(rq_device *device, uint64_t k);

#endif
