/* file.h - read-only memory maps of regular files. */
#ifndef RQ_FILE_H
#define RQ_FILE_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rq_map {
    const uint8_t *data; /* page-aligned */
    uint64_t bytes;      /* > 0; the size when it was opened */
    int guard_slot;      /* see guard.h */
} rq_map;

/* Maps the whole file. Directories, FIFOs, sockets, devices and empty files are refused, each with its own
 * sentence, and without blocking on a FIFO; symbolic links are followed. On success *map must be given to
 * rq_map_close exactly once; on failure it is untouched. No heap memory is used. */
rq_status rq_map_open(const char *path, rq_map *map, rq_error *err);

/* Unmaps; nobody may read map->data any more. A zeroed rq_map is left alone. */
void rq_map_close(rq_map *map);

/* True when the file became shorter (or unreadable) while it was mapped and a missing page was read: some of the bytes read so far were
 * zeros instead of the file's. Whatever was computed from them must be discarded with RQ_ERR_DEVICE.
 * (A cut inside the last page that remains reads as zeros without a fault and goes unnoticed.) */
bool rq_map_lost(const rq_map *map);

/* Hints to the kernel about how [offset, offset + bytes) will be used; failure is of no consequence. */
void rq_map_will_need(const rq_map *map, uint64_t offset, uint64_t bytes);
void rq_map_release(const rq_map *map, uint64_t offset,
                    uint64_t bytes); /* drop its pages from this process */

/* Writes n bytes to `path` in one piece: under another name in the same folder first, so that a reader sees the old
 * file or the new one, and a failure leaves the old one. */
rq_status rq_file_replace(const char *path, const void *data, size_t n, rq_error *err);

#endif
