/* response.h - the JSON a client receives. Everything appends to a rq_buf, whose `failed` tells whether it
 * fitted. */
#ifndef RQ_RESPONSE_H
#define RQ_RESPONSE_H

#include "backends/base/buf.h"
#include "server/job.h"

/* A JSON string with quotes. Bytes that are not UTF-8 become U+FFFD. */
void rq_json_string(rq_buf *out, const char *text, size_t bytes);
/* A number; infinities are cut to +-9999, which is what OpenAI sends for "impossible". */
void rq_json_number(rq_buf *out, double value);

/* {"error":{"message":...,"type":...,"param":...,"code":...}} */
void rq_write_error(rq_buf *out, const rq_api_error *error);

/* Keeps an event's text and log-probabilities in its choice; a rq_job_event for answers sent at the end. */
bool rq_keep_event(void *user, rq_job *job, rq_choice *choice, const rq_event *event);

/* The whole answer of a finished job. */
void rq_write_answer(rq_buf *out, const rq_job *job);

/* One "data: {...}\n\n" of a stream: what the event adds. `last_of_job`: no chunk with usage follows, so
 * that the timings belong here. */
void rq_write_chunk(rq_buf *out, rq_job *job, rq_choice *choice, const rq_event *event, bool last_of_job);
/* The chunk with usage, without choices. */
void rq_write_usage_chunk(rq_buf *out, const rq_job *job);

#endif
