/* json_check.h - a strict reader of JSON text that keeps nothing: it only says whether the text is safe to
 * hand to a tree parser. RFC 8259, and beyond it: nesting and number of values are limited, text must be
 * valid UTF-8 with paired surrogates and no NUL, integers must be exact in a double (at most 2^53), other
 * numbers finite, and no object may repeat a key. */
#ifndef RQ_JSON_CHECK_H
#define RQ_JSON_CHECK_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct rq_json_limits {
    unsigned max_depth; /* arrays and objects inside each other */
    size_t max_values;  /* numbers, strings, arrays, ... in all */
} rq_json_limits;

/* RQ_OK when `text` is one JSON value and nothing else; the sentence names the byte offset otherwise. */
rq_status rq_json_check(const char *text, size_t bytes, const rq_json_limits *limits, rq_error *err);

/* Length of the valid UTF-8 character at text[0..bytes), 0 when there is none (bad, cut off, or bytes == 0).
 */
size_t rq_json_utf8_length(const char *text, size_t bytes);
bool rq_json_utf8_valid(const char *text, size_t bytes);

struct cJSON;
/* RQ_ERR_FORMAT when an object anywhere in the tree has a key twice, RQ_ERR_MEMORY when memory ran out. The
 * tree's depth must have been limited by rq_json_check. */
rq_status rq_json_unique_keys(const struct cJSON *root, rq_error *err);

#endif
