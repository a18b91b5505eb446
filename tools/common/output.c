/* output.c - see output.h. */
#include "tools/common/output.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

rq_status rq_output_check(const char *path, rq_error *err)
{
    if (!path || strcmp(path, "-") == 0) return RQ_OK;
    FILE *f = fopen(path, "a");
    if (!f) return rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    fclose(f);
    return RQ_OK;
}

rq_status rq_output_write(const char *path, rq_status (*write)(void *user, FILE *out, rq_error *err),
                          void *user, rq_error *err)
{
    if (!path) return RQ_OK;
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (!f) return rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    rq_status s = write(user, f, err);
    bool failed = fflush(f) != 0 || ferror(f);
    if (f != stdout && fclose(f) != 0) failed = true;
    if (!s && failed) s = rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return s;
}
