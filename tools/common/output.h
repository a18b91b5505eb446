/* output.h - results into files. */
#ifndef RQ_OUTPUT_H
#define RQ_OUTPUT_H

#include "backends/base/status.h"

#include <stdio.h>

/* Whether `path` can be written, asked before hours of work; NULL is fine. Leaves an existing file as it is. */
rq_status rq_output_check(const char *path, rq_error *err);

/* Calls write(user, file, err) on the file `path`, "-" for standard output; NULL: does nothing. */
rq_status rq_output_write(const char *path, rq_status (*write)(void *user, FILE *out, rq_error *err),
                          void *user, rq_error *err);

#endif
