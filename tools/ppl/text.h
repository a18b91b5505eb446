/* text.h - a text file, read whole. */
#ifndef RQ_TEXT_H
#define RQ_TEXT_H

#include "engine/rqvk.h"

/* The bytes of a regular file of at most 256 MiB, followed by a NUL; free with rq_free. Any bytes will do. Of a file
 * from Project Gutenberg only the work itself: what is between the lines "*** START OF ..." and "*** END OF ...". */
rq_status rq_text_read(const char *path, char **text, size_t *bytes, rq_error *err);

/* Its tokens, without control tokens and without anything in front. */
rq_status rq_text_tokens(const rq_model *model, const char *path, rq_tokens *out, rq_error *err);

#endif
