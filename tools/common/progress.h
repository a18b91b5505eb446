/* progress.h - a progress bar when a person is watching, plain lines otherwise.
 *
 *     rq_progress p = rq_progress_start(stderr, "prompt", "tokens", total);
 *     ... rq_progress_set(&p, done); ...
 *     rq_progress_end(&p);
 *
 * On a terminal one line is redrawn at most ten times a second; elsewhere a line is printed at every tenth of
 * the total, but no more than one a second. Nothing is printed for work that ends within half a second. Used
 * by one thread. */
#ifndef RQ_PROGRESS_H
#define RQ_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct rq_progress {
    FILE *out;
    const char *label, *unit; /* borrowed; unit "bytes" prints MB */
    uint64_t total, done, shown_tenth;
    uint64_t start_ns, shown_ns;
    bool terminal, drawn;
} rq_progress;

rq_progress rq_progress_start(FILE *out, const char *label, const char *unit, uint64_t total);
void rq_progress_set(rq_progress *progress, uint64_t done);
/* Clears the bar, or prints the last plain line if any line was printed. */
void rq_progress_end(rq_progress *progress);

/* Monotonic clock of the tools. */
uint64_t rq_tool_now_ns(void);

#endif
