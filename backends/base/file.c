#include "backends/base/file.h"

#include "backends/base/guard.h"
#include "backends/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What stands at the path instead of a regular file, or NULL. */
static const char *other_kind(mode_t mode)
{
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

rq_status rq_map_open(const char *path, rq_map *map, rq_error *err)
{
    struct stat st;
    /* Asked before opening too: opening a device can have effects, opening a pipe can block. */
    if (stat(path, &st)) return rq_fail(err, RQ_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    const char *kind = other_kind(st.st_mode);
    if (kind) return rq_fail(err, RQ_ERR_IO, "%s: is %s, not a file", path, kind);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return rq_fail(err, RQ_ERR_IO, "%s: cannot open: %s", path, strerror(errno));

    rq_status status = RQ_OK;
    void *data = MAP_FAILED;
    int slot = -1;
    if (fstat(fd, &st)) {
        status = rq_fail(err, RQ_ERR_IO, "%s: cannot read its size: %s", path, strerror(errno));
    } else if ((kind = other_kind(st.st_mode))) {
        status = rq_fail(err, RQ_ERR_IO, "%s: is %s, not a file", path, kind);
    } else if (st.st_size <= 0) {
        status = rq_fail(err, RQ_ERR_FORMAT, "%s: is empty (0 bytes)", path);
    } else if ((uint64_t)st.st_size > SIZE_MAX / 2) {
        status = rq_fail(err, RQ_ERR_IO, "%s: is too large to map", path);
    } else {
        data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) status = rq_fail(err, RQ_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    }
    close(fd);
    if (!status) status = rq_guard_add(data, (size_t)st.st_size, &slot, err);
    if (status) {
        if (data != MAP_FAILED) munmap(data, (size_t)st.st_size);
        return status;
    }
    *map = (rq_map){.data = data, .bytes = (uint64_t)st.st_size, .guard_slot = slot};
    return RQ_OK;
}

void rq_map_close(rq_map *map)
{
    if (!map->data) return;
    rq_guard_remove(map->guard_slot);
    munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    *map = (rq_map){0};
}

bool rq_map_lost(const rq_map *map)
{
    return map->data && rq_guard_lost(map->guard_slot);
}

void rq_map_will_need(const rq_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (!map->data || offset >= map->bytes) return;
    if (bytes > map->bytes - offset) bytes = map->bytes - offset;
    uint64_t from = offset / page * page; /* the whole of every touched page */
    madvise((void *)(uintptr_t)(map->data + from), (size_t)(offset + bytes - from), MADV_WILLNEED);
}

void rq_map_release(const rq_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (!map->data || offset >= map->bytes) return;
    if (bytes > map->bytes - offset) bytes = map->bytes - offset;
    uint64_t from = (offset + page - 1) / page * page,
             end = (offset + bytes) / page * page; /* whole pages only */
    /* Once lost, part of the range may be zero pages of ours: harmless, they read as zeros again. */
    if (end > from) madvise((void *)(uintptr_t)(map->data + from), (size_t)(end - from), MADV_DONTNEED);
}

rq_status rq_file_replace(const char *path, const void *data, size_t n, rq_error *err)
{
    size_t room = strlen(path) + 32;
    char *temporary = rq_malloc(room);
    if (temporary == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the name of a file");
    (void)snprintf(temporary, room, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(temporary, "wbe");
    bool good = f != NULL && fwrite(data, 1, n, f) == n;
    int why = errno;
    if (f != NULL && fclose(f) != 0 && good) {
        good = false;
        why = errno;
    }
    if (good && rename(temporary, path) != 0) {
        good = false;
        why = errno;
    }
    if (f != NULL && !good) unlink(temporary);
    rq_free(temporary);
    return good ? RQ_OK : rq_fail(err, RQ_ERR_IO, "%s: cannot be written: %s", path, strerror(why));
}
