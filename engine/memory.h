/* memory.h - how much memory this process may still use. */
#ifndef RQ_MEMORY_H
#define RQ_MEMORY_H

#include <stdint.h>

/* Bytes that can be had without swapping: the smaller of what the machine has (MemAvailable) and what the
 * control groups of this process leave it, file pages that can be dropped counted as free. 0: unknown. */
uint64_t rq_memory_available(void);

#endif
