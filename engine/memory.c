/* memory.c - reads /proc/meminfo and the control group files (kernel documentation: cgroup-v2.rst,
 * cgroup-v1/memory.rst). Everything that cannot be read does not limit. */
#include "engine/memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number behind `key` at the start of a line of the file; an empty key: the first number of the file. */
static bool read_number(const char *path, const char *key, uint64_t *out)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, f) != NULL) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) != 0) continue;
        char *end;
        unsigned long long value = strtoull(line + n, &end, 10);
        found = end != line + n; /* "max" is no number: no limit */
        *out = value;
        if (n == 0) break;
    }
    fclose(f);
    return found;
}

static uint64_t group_leaves(const char *folder, const char *limit_file, const char *usage_file,
                             const char *stat_prefix)
{
    char path[512], key[64];
    uint64_t limit, usage, part;
    snprintf(path, sizeof path, "%s/%s", folder, limit_file);
    if (!read_number(path, "", &limit)) return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s", folder, usage_file);
    if (!read_number(path, "", &usage)) return UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    static const char *const droppable[] = {"inactive_file ", "active_file "};
    for (size_t i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "%s%s", stat_prefix, droppable[i]);
        if (read_number(path, key, &part)) usage -= part < usage ? part : usage;
    }
    return usage < limit ? limit - usage : 0;
}

/* The least that the group and its ancestors leave. `name` is the group's path from /proc/self/cgroup; in a
 * container it may lie outside of what is mounted, then only the root of the mount can be read. */
static uint64_t groups_leave(const char *mount, const char *name, bool v2)
{
    uint64_t least = UINT64_MAX;
    char folder[400];
    snprintf(folder, sizeof folder, "%s%s", mount, name);
    for (;;) {
        uint64_t left = v2 ? group_leaves(folder, "memory.max", "memory.current", "")
                           : group_leaves(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_");
        if (left < least) least = left;
        char *slash = strrchr(folder, '/');
        if (slash == NULL || (size_t)(slash - folder) < strlen(mount)) return least;
        *slash = 0;
    }
}

uint64_t rq_memory_available(void)
{
    uint64_t kib, available = UINT64_MAX;
    if (read_number("/proc/meminfo", "MemAvailable:", &kib)) available = kib * 1024;
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[320];
    while (f != NULL && fgets(line, sizeof line, f) != NULL) { /* lines: id:controllers:path */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (name == NULL) continue;
        *name++ = 0;
        uint64_t left = UINT64_MAX;
        if (controllers[1] == 0)
            left = groups_leave("/sys/fs/cgroup", name, true);
        else if (strstr(controllers + 1, "memory") != NULL)
            left = groups_leave("/sys/fs/cgroup/memory", name, false);
        if (left < available) available = left;
    }
    if (f != NULL) fclose(f);
    return available == UINT64_MAX ? 0 : available;
}
