/* split.h - cuts a tape into single-device pieces joined by copies of fixed size. */
#ifndef RQ_SPLIT_H
#define RQ_SPLIT_H

#include "backends/tape/tape.h"

/* Operations [first, first + count) of the tape, all on one device, after the copies [copy_first, copy_first
 * + copy_count). Pieces are in tape order. */
typedef struct rq_piece {
    uint32_t device;
    uint32_t first, count;
    uint32_t copy_first, copy_count;
} rq_piece;

/* The whole memory of an activation, from the device that wrote it to one that reads it. */
typedef struct rq_border_copy {
    rq_ref value; /* the owner */
    uint32_t from, to;
    uint64_t bytes;
} rq_border_copy;

typedef struct rq_split {
    rq_piece *pieces;
    uint32_t n_pieces, cap_pieces;
    rq_border_copy *copies;
    uint32_t n_copies, cap_copies;
} rq_split;

/* Which device (below n_devices) runs the operation? */
typedef uint32_t (*rq_device_of)(void *user, const rq_tape *tape, const rq_op *op);

/* A new piece starts wherever the device changes. A value read on another device than the one that wrote it
 * is copied there once, before the first piece that reads it. Fails when an activation is read before it is
 * written or written twice, or a device does not exist. `out` is written on success only; release with
 * rq_split_free. */
rq_status rq_split_make(const rq_tape *tape, uint32_t n_devices, rq_device_of device_of, void *user,
                        rq_split *out, rq_error *err);
void rq_split_free(rq_split *split);

#endif
