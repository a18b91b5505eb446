/* builtin.c - finds the files of the built-in models. */
#include "tools/common/builtin.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Cuts the last part of a path off; false when there is none to cut. */
static bool cut_last(char *path)
{
    char *slash = strrchr(path, '/');
    if (!slash) return false;
    *slash = '\0';
    return true;
}

rq_status rq_builtin_path(const char *name, char path[RQ_BUILTIN_PATH_BYTES], rq_error *err)
{
    if (!name || !*name) name = "qwen3";
    if (strcmp(name, "hybrid") == 0)
        name = "qwen35";
    else if (strcmp(name, "qwen3") != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "--builtin %s: there are qwen3 and hybrid", name);
    char folder[RQ_BUILTIN_PATH_BYTES / 2];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder);
    if (n <= 0 || (size_t)n >= sizeof folder) {
        return rq_fail(
            err, RQ_ERR_IO,
            "no model given (-m FILE names a GGUF file), and where this program lies, and with it the "
            "built-in model, cannot be found out");
    }
    folder[n] = '\0';
    bool inside = cut_last(folder); /* the program's name, then its folder's */
    if (inside) inside = cut_last(folder);
    if (!inside) folder[0] = '\0';
    snprintf(path, RQ_BUILTIN_PATH_BYTES, "%s/share/rqvk/builtin-%s.gguf", folder, name);
    if (access(path, R_OK) == 0) return RQ_OK;
    return rq_fail(err, RQ_ERR_IO,
                   "no model given (-m FILE names a GGUF file), and the built-in one cannot be read at %s",
                   path);
}
