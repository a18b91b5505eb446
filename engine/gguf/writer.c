#include "engine/gguf/writer.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "engine/gguf/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAX ((size_t)1 << 30)

struct rq_gguf_writer {
    char *path, *temporary;
    FILE *file;    /* NULL once finished */
    bool nameless; /* the file has no name yet, not even `temporary` */
    uint32_t version, alignment;
    rq_buf kvs, infos;
    uint64_t n_kv, n_tensors;
    uint64_t *sizes; /* of the tensors' data, [n_tensors] */
    size_t cap_sizes;
    uint64_t next_offset, data_bytes;
    bool streaming;
    uint64_t current, current_left; /* the tensor that is being written, and its missing bytes */
    rq_status failed;               /* first failure of a put or declare call */
    rq_error failure;
};

/* ---- create and free ----------------------------------------------------------------------------------- */

static rq_status open_temporary(rq_gguf_writer *w, const char *path, rq_error *err)
{
    rq_buf name = {.max = strlen(path) + 64};
    bool ok = rq_buf_printf(&name, "%s.%ld.part", path, (long)getpid());
    w->temporary = name.data;
    w->path = rq_strdup(path);
    const char *slash = strrchr(path, '/');
    char *folder = slash ? rq_strndup(path, (size_t)(slash - path) + 1) : rq_strdup(".");
    if (!ok || !w->path || !folder) {
        rq_free(folder);
        return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to write %s", path);
    }
    /* A file without a name leaves nothing behind, however the program ends; not every file system has them. */
    int fd = open(folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    rq_free(folder);
    w->nameless = fd >= 0;
    if (fd < 0) fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd >= 0 && !(w->file = fdopen(fd, "wb"))) close(fd);
    if (!w->file) return rq_fail(err, RQ_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return RQ_OK;
}

/* Gives the finished file its name; what had that name before is replaced in one step. */
static bool publish(rq_gguf_writer *w)
{
    if (w->nameless) {
        char self[64];
        snprintf(self, sizeof self, "/proc/self/fd/%d", fileno(w->file));
        unlink(w->temporary);
        if (fflush(w->file) || linkat(AT_FDCWD, self, AT_FDCWD, w->temporary, AT_SYMLINK_FOLLOW))
            return false;
        w->nameless = false;
    }
    int failed = fclose(w->file);
    w->file = NULL;
    if (!failed && !rename(w->temporary, w->path)) return true;
    unlink(w->temporary);
    return false;
}

rq_status rq_gguf_writer_create(const char *path, uint32_t alignment, rq_gguf_writer **out, rq_error *err)
{
    if (!alignment || alignment & (alignment - 1) || alignment > RQ_GGUF_MAX_ALIGNMENT)
        return rq_fail(err, RQ_ERR_ARGUMENT, "an alignment of %" PRIu32 " is not a power of two up to %u",
                       alignment, RQ_GGUF_MAX_ALIGNMENT);
    rq_gguf_writer *w = rq_calloc(1, sizeof *w);
    if (!w) return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to write %s", path);
    w->version = 3;
    w->alignment = alignment;
    w->kvs.max = w->infos.max = HEADER_MAX;
    rq_status status = open_temporary(w, path, err);
    if (status) {
        rq_gguf_writer_free(w);
        return status;
    }
    if (alignment != 32) rq_gguf_put_u32(w, "general.alignment", alignment);
    *out = w;
    return RQ_OK;
}

void rq_gguf_writer_free(rq_gguf_writer *w)
{
    if (!w) return;
    if (w->file) {
        fclose(w->file);
        if (!w->nameless) unlink(w->temporary);
    }
    rq_buf_free(&w->kvs);
    rq_buf_free(&w->infos);
    rq_free(w->sizes);
    rq_free(w->temporary);
    rq_free(w->path);
    rq_free(w);
}

void rq_gguf_writer_version(rq_gguf_writer *w, uint32_t version)
{
    w->version = version;
}

/* ---- metadata and declarations ------------------------------------------------------------------------- */

static void put_int(rq_buf *buf, uint64_t value, int bytes)
{
    uint8_t le[8];
    for (int i = 0; i < bytes; i++) le[i] = (uint8_t)(value >> (8 * i));
    rq_buf_append(buf, le, (size_t)bytes);
}

static void put_text(rq_buf *buf, const char *data, uint64_t len)
{
    put_int(buf, len, 8);
    rq_buf_append(buf, data, len);
}

static void put_key(rq_gguf_writer *w, const char *key, rq_gguf_type type)
{
    put_text(&w->kvs, key, strlen(key));
    put_int(&w->kvs, type, 4);
    w->n_kv++;
}

void rq_gguf_put_scalar(rq_gguf_writer *w, const char *key, rq_gguf_type type, const void *value)
{
    put_key(w, key, type);
    rq_buf_append(&w->kvs, value, rq_gguf_elem_bytes(type));
}

void rq_gguf_put_u32(rq_gguf_writer *w, const char *key, uint32_t value)
{
    put_key(w, key, RQ_GGUF_U32);
    put_int(&w->kvs, value, 4);
}

void rq_gguf_put_f32(rq_gguf_writer *w, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put_key(w, key, RQ_GGUF_F32);
    put_int(&w->kvs, bits, 4);
}

void rq_gguf_put_bool(rq_gguf_writer *w, const char *key, bool value)
{
    put_key(w, key, RQ_GGUF_BOOL);
    put_int(&w->kvs, value, 1);
}

void rq_gguf_put_str(rq_gguf_writer *w, const char *key, const char *text)
{
    put_key(w, key, RQ_GGUF_STRING);
    put_text(&w->kvs, text, strlen(text));
}

void rq_gguf_put_array(rq_gguf_writer *w, const char *key, rq_gguf_type type, const void *elems,
                       uint64_t count)
{
    put_key(w, key, RQ_GGUF_ARRAY);
    put_int(&w->kvs, type, 4);
    put_int(&w->kvs, count, 8);
    rq_buf_append(&w->kvs, elems, count * rq_gguf_elem_bytes(type));
}

void rq_gguf_put_strs(rq_gguf_writer *w, const char *key, const rq_gguf_str *strs, uint64_t count)
{
    put_key(w, key, RQ_GGUF_ARRAY);
    put_int(&w->kvs, RQ_GGUF_STRING, 4);
    put_int(&w->kvs, count, 8);
    for (uint64_t i = 0; i < count; i++) put_text(&w->kvs, strs[i].data, strs[i].len);
}

static uint64_t align_up(const rq_gguf_writer *w, uint64_t n)
{
    return (n + w->alignment - 1) & ~(uint64_t)(w->alignment - 1);
}

void rq_gguf_declare(rq_gguf_writer *w, const char *name, rq_type type, uint32_t n_dims, const uint64_t *ne)
{
    const rq_type_info *info = rq_type_get(type);
    uint64_t bytes = info ? info->block_bytes : 0;
    bool ok = info && n_dims <= 4 && !(n_dims && ne[0] % info->block_elems);
    for (uint32_t d = 0; ok && d < n_dims; d++)
        ok = rq_mul_u64(bytes, d ? ne[d] : ne[d] / info->block_elems, &bytes) && bytes < (uint64_t)1 << 60;
    if (ok && !rq_grow((void **)&w->sizes, &w->cap_sizes, w->n_tensors + 1, sizeof *w->sizes)) {
        if (!w->failed)
            w->failed = rq_fail(&w->failure, RQ_ERR_MEMORY, "not enough memory to write %s", w->path);
        return;
    }
    if (!ok) {
        if (!w->failed)
            w->failed = rq_fail(&w->failure, RQ_ERR_ARGUMENT,
                                "%s: a tensor %s of this type and shape is not possible", w->path, name);
        return;
    }
    put_text(&w->infos, name, strlen(name));
    put_int(&w->infos, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++) put_int(&w->infos, ne[d], 8);
    put_int(&w->infos, type, 4);
    put_int(&w->infos, w->next_offset, 8);
    w->sizes[w->n_tensors++] = bytes;
    w->data_bytes += bytes;
    w->next_offset += align_up(w, bytes);
}

uint64_t rq_gguf_writer_data_bytes(const rq_gguf_writer *w)
{
    return w->data_bytes;
}

/* ---- data ---------------------------------------------------------------------------------------------- */

static rq_status write_failed(const rq_gguf_writer *w, rq_error *err)
{
    return rq_fail(err, RQ_ERR_IO, "%s: cannot be written: %s", w->path, strerror(errno));
}

static rq_status put_bytes(rq_gguf_writer *w, const void *bytes, size_t n, rq_error *err)
{
    return n && fwrite(bytes, 1, n, w->file) != n ? write_failed(w, err) : RQ_OK;
}

static rq_status put_padding(rq_gguf_writer *w, uint64_t after, rq_error *err)
{
    static const uint8_t zeros[4096];
    uint64_t n = align_up(w, after) - after;
    rq_status status = RQ_OK;
    for (uint64_t piece; !status && n; n -= piece) {
        piece = n < sizeof zeros ? n : sizeof zeros;
        status = put_bytes(w, zeros, piece, err);
    }
    return status;
}

/* Goes on to the next tensor that wants bytes; padding was written for those before. */
static void next_tensor(rq_gguf_writer *w)
{
    while (w->current < w->n_tensors && !w->sizes[w->current]) w->current++;
    w->current_left = w->current < w->n_tensors ? w->sizes[w->current] : 0;
}

rq_status rq_gguf_writer_begin_data(rq_gguf_writer *w, rq_error *err)
{
    if (w->failed) return rq_fail(err, w->failed, "%s", w->failure.text);
    rq_buf head = {.max = 64};
    rq_buf_append(&head, "GGUF", 4);
    put_int(&head, w->version, 4);
    put_int(&head, w->n_tensors, 8);
    put_int(&head, w->n_kv, 8);
    if (head.failed || w->kvs.failed || w->infos.failed) {
        rq_buf_free(&head);
        return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to write the header of %s", w->path);
    }
    rq_status status = put_bytes(w, head.data, head.len, err);
    uint64_t header_bytes = head.len + w->kvs.len + w->infos.len;
    rq_buf_free(&head);
    if (!status) status = put_bytes(w, w->kvs.data, w->kvs.len, err);
    if (!status) status = put_bytes(w, w->infos.data, w->infos.len, err);
    if (!status) status = put_padding(w, header_bytes, err);
    if (!status) {
        w->streaming = true;
        next_tensor(w);
    }
    return status;
}

/* A hole where `bytes` is NULL. */
static rq_status append(rq_gguf_writer *w, const void *bytes, uint64_t n, rq_error *err)
{
    const uint8_t *p = bytes;
    while (n) {
        if (!w->streaming || !w->current_left)
            return rq_fail(err, RQ_ERR_ARGUMENT, "%s: more tensor data than declared", w->path);
        uint64_t piece = n < w->current_left ? n : w->current_left;
        rq_status status = RQ_OK;
        if (p)
            status = put_bytes(w, p, (size_t)piece, err);
        else if (fseeko(w->file, (off_t)piece, SEEK_CUR))
            status = write_failed(w, err);
        if (status) return status;
        if (p) p += piece;
        n -= piece;
        w->current_left -= piece;
        if (w->current_left) continue;
        if ((status = put_padding(w, w->sizes[w->current], err))) return status;
        w->current++;
        next_tensor(w);
    }
    return RQ_OK;
}

rq_status rq_gguf_writer_write(rq_gguf_writer *w, const void *bytes, size_t n, rq_error *err)
{
    return append(w, bytes, n, err);
}

rq_status rq_gguf_writer_skip(rq_gguf_writer *w, uint64_t n, rq_error *err)
{
    return append(w, NULL, n, err);
}

/* A hole at the end of the file is part of it. */
static bool extend(rq_gguf_writer *w)
{
    off_t end = ftello(w->file);
    return end >= 0 && fflush(w->file) == 0 && ftruncate(fileno(w->file), end) == 0;
}

rq_status rq_gguf_writer_finish(rq_gguf_writer *w, rq_error *err)
{
    if (!w->streaming || w->current_left)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s: less tensor data than declared", w->path);
    rq_status status = extend(w) && publish(w) ? RQ_OK : write_failed(w, err);
    w->streaming = false;
    return status;
}
