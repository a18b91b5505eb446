/* guard.h - survival of a mapped file that shrinks.
 *
 * Reading a page of a mapping that lies past the end of its (truncated) file raises SIGBUS. For registered
 * ranges the handler puts zero pages in place of what is gone, marks the range lost and lets the program run
 * on; the owner asks rq_guard_lost() after each unit of work and discards what was computed. A SIGBUS outside
 * every registered range goes to whatever handler was installed before. */
#ifndef RQ_GUARD_H
#define RQ_GUARD_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>

/* Ranges that can be registered at one time, in the whole process. */
#define RQ_GUARD_MAX 2048

/* Registers [start, start + bytes), a read-only mapping beginning at a page boundary, and stores its handle
 * (>= 0) in *slot. Installs the handler if it is not (or no longer) in place. RQ_ERR_CAPACITY when all
 * RQ_GUARD_MAX slots are taken. Any thread. */
rq_status rq_guard_add(const void *start, size_t bytes, int *slot, rq_error *err);

/* Forgets the range; call it before munmap, when no thread reads the mapping any more. */
void rq_guard_remove(int slot);

/* True from the first access that met a missing page on. Cheap (one relaxed load); any thread. */
bool rq_guard_lost(int slot);

#endif
