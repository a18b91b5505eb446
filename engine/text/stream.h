/* stream.h - from the tokens of an answer to the text a client sees: whole characters, ended by stop strings. */
#ifndef RQ_STREAM_H
#define RQ_STREAM_H

#include "engine/text/stops.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct rq_stream {
    rq_detok detok;
    rq_stops stops;
    rq_buf fresh; /* text of the last token, before the stop strings see it */
} rq_stream;

enum { RQ_STREAM_MAX_BYTES = 1 << 20 }; /* most text one token may add */

/* Starts a stream that continues a prompt. `stream` is zeroed memory or was started before; on error (as of
 * rq_stops_init) it is as it was, started or not. */
rq_status rq_stream_start(rq_stream *stream, const rq_tokenizer *tok, const char *const *stop, size_t n_stop,
                          rq_error *err);
void rq_stream_free(rq_stream *stream);

/* Appends to `out` what the token makes certain. *stopped is set when a stop string is complete. */
rq_status rq_stream_add(rq_stream *stream, rq_token id, rq_buf *out, bool *stopped, rq_error *err);

/* The answer ended without a stop string: appends what was held back. *stopped is set when the last characters
 * completed one after all. */
rq_status rq_stream_end(rq_stream *stream, rq_buf *out, bool *stopped, rq_error *err);

#endif
