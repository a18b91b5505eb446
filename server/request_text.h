/* request_text.h - readers of the structured parameters: messages, prompts, token arrays, stop strings,
 * biases. Each returns true, or false with reader->error filled; memory taken belongs to reader->out either
 * way. */
#ifndef RQ_REQUEST_TEXT_H
#define RQ_REQUEST_TEXT_H

#include "server/request.h"

#include <cjson/cJSON.h>

typedef struct rq_text_reader {
    rq_api_request *out;
    const rq_parse_limits *limits;
    rq_api_error *error;
} rq_text_reader;

bool rq_read_messages(rq_text_reader *reader, const char *name, const cJSON *value);
bool rq_read_prompt(rq_text_reader *reader, const char *name, const cJSON *value);
bool rq_read_content(rq_text_reader *reader, const char *name, const cJSON *value);
bool rq_read_tokens(rq_text_reader *reader, const char *name, const cJSON *value);
bool rq_read_stop(rq_text_reader *reader, const char *name, const cJSON *value);
bool rq_read_logit_bias(rq_text_reader *reader, const char *name, const cJSON *value);

#endif
