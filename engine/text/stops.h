/* stops.h - finds the first of several stop strings in a text that arrives in pieces.
 *
 * Text that might be the beginning of a stop string is held back until it is known not to be one. Time is
 * proportional to the bytes times the number of stop strings, whatever they are (Knuth, Morris and Pratt 1977,
 * one automaton per string). */
#ifndef RQ_STOPS_H
#define RQ_STOPS_H

#include "backends/base/buf.h"
#include "backends/base/status.h"
#include "engine/rqvk.h"

typedef struct rq_stops {
    size_t n;
    size_t bytes[RQ_MAX_STOPS];
    size_t matched[RQ_MAX_STOPS]; /* bytes of string i that the text seen so far ends with */
    char text[RQ_MAX_STOPS][RQ_MAX_STOP_BYTES];
    uint16_t border[RQ_MAX_STOPS][RQ_MAX_STOP_BYTES]; /* longest proper border of the first j + 1 bytes */
    char held[RQ_MAX_STOP_BYTES]; /* the end of the text so far that has not been given out */
    size_t n_held;
    bool found;
} rq_stops;

/* Copies the strings. RQ_ERR_ARGUMENT when there are too many, or one is empty, too long or not UTF-8. */
rq_status rq_stops_init(rq_stops *stops, const char *const *strings, size_t n, rq_error *err);

/* Takes `bytes` bytes of text and appends to `out` what certainly comes before any stop string. Returns true
 * when one is complete: `out` then holds the text up to where it begins (of several that end at the same byte,
 * the longest), and everything after is ignored. A text of whole characters gives whole characters. Watch
 * out->failed. */
bool rq_stops_add(rq_stops *stops, const char *text, size_t bytes, rq_buf *out);

/* The text has ended: appends what was held back. */
void rq_stops_flush(rq_stops *stops, rq_buf *out);

#endif
