/* stream.c - detokeniser and stop strings in a row. */
#include "engine/text/stream.h"

rq_status rq_stream_start(rq_stream *s, const rq_tokenizer *tok, const char *const *stop, size_t n_stop,
                          rq_error *err)
{
    rq_stops stops;
    rq_status status = rq_stops_init(&stops, stop, n_stop, err);
    if (status != RQ_OK) return status;
    s->stops = stops;
    s->fresh.max = RQ_STREAM_MAX_BYTES;
    rq_buf_clear(&s->fresh);
    rq_detok_init(&s->detok, tok, 0);
    return RQ_OK;
}

void rq_stream_free(rq_stream *s)
{
    rq_buf_free(&s->fresh);
}

static rq_status through_stops(rq_stream *s, rq_buf *out, bool *stopped, rq_error *err)
{
    *stopped = rq_stops_add(&s->stops, s->fresh.data != NULL ? s->fresh.data : "", s->fresh.len, out);
    if (s->fresh.failed || out->failed)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the text of an answer");
    return RQ_OK;
}

rq_status rq_stream_add(rq_stream *s, rq_token id, rq_buf *out, bool *stopped, rq_error *err)
{
    rq_buf_clear(&s->fresh);
    rq_detok_add(&s->detok, id, &s->fresh);
    return through_stops(s, out, stopped, err);
}

rq_status rq_stream_end(rq_stream *s, rq_buf *out, bool *stopped, rq_error *err)
{
    rq_buf_clear(&s->fresh);
    rq_detok_flush(&s->detok, &s->fresh);
    rq_status status = through_stops(s, out, stopped, err);
    if (status != RQ_OK) return status;
    rq_stops_flush(&s->stops, out);
    return out->failed ? rq_fail(err, RQ_ERR_MEMORY, "out of memory for the text of an answer") : RQ_OK;
}
