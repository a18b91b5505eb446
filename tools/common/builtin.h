/* builtin.h - the models that come with the program, for when no file is named.
 *
 * They lie in ../share/rqvk beside the folder of the running program: in an installation, and in a build folder,
 * where CMake links them from the source tree. */
#ifndef RQ_BUILTIN_H
#define RQ_BUILTIN_H

#include "backends/base/status.h"

#include <stddef.h>

enum { RQ_BUILTIN_PATH_BYTES = 4096 };

/* The file of the built-in model `name` ("qwen3" or "hybrid"; NULL: "qwen3"), into path. Fails with a sentence
 * when there is no such model, when this build cannot run it, or when its file is not there. */
rq_status rq_builtin_path(const char *name, char path[RQ_BUILTIN_PATH_BYTES], rq_error *err);

#endif
