#include "tools/kv/tensors.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "backends/formats/half.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {[KV_F32] = {"F32", 4}, [KV_F16] = {"F16", 2}, [KV_I32] = {"I32", 4}};

/* ---- reading -------------------------------------------------------------------------------------------- */

struct cJSON *kv_json_parse(const char *text, size_t bytes)
{
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, bytes, &end, false);
    while (root && end < text + bytes && strchr(" \t\r\n", *end) && *end) end++;
    if (root && end == text + bytes) return root;
    cJSON_Delete(root);
    return NULL;
}

/* A number that is a whole one from 0 to 2^53. */
static bool whole(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 0x1p53)) return false;
    *out = (uint64_t)item->valuedouble;
    return (double)*out == item->valuedouble;
}

static bool read_dtype(const cJSON *item, kv_dtype *out)
{
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(item->valuestring, dtypes[i].name) == 0) {
            *out = (kv_dtype)i;
            return true;
        }
    return false;
}

static bool read_shape(const cJSON *item, kv_tensor *t)
{
    if (!cJSON_IsArray(item)) return false;
    t->n = 1;
    for (const cJSON *size = item->child; size; size = size->next) {
        if (t->n_dims == KV_TENSOR_DIMS || !whole(size, &t->shape[t->n_dims])) return false;
        if (!rq_mul_u64(t->n, t->shape[t->n_dims++], &t->n)) return false;
    }
    for (uint32_t i = t->n_dims; i < KV_TENSOR_DIMS; i++) t->shape[i] = 1;
    return true;
}

/* Fills in one tensor from its entry; offsets count from `start` and must stay below `bytes`. */
static rq_status read_entry(const cJSON *entry, uint64_t start, uint64_t bytes, const char *label,
                            kv_tensor *t, rq_error *err)
{
    const char *name = entry->string ? entry->string : "";
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    uint64_t from = 0, to = 0, size = 0;
    if (strlen(name) == 0 || strlen(name) >= KV_TENSOR_NAME)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: a tensor's name has no or too many bytes", label);
    (void)snprintf(t->name, sizeof t->name, "%s", name);
    if (!read_dtype(cJSON_GetObjectItemCaseSensitive(entry, "dtype"), &t->dtype))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s: tensor %s is neither F32 nor F16 nor I32", label, name);
    if (!read_shape(cJSON_GetObjectItemCaseSensitive(entry, "shape"), t))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s has no shape of up to %d sizes", label, name,
                       KV_TENSOR_DIMS);
    if (cJSON_GetArraySize(offsets) != 2 || !whole(cJSON_GetArrayItem(offsets, 0), &from) ||
        !whole(cJSON_GetArrayItem(offsets, 1), &to) || from > to || to > bytes - start ||
        !rq_mul_u64(t->n, dtypes[t->dtype].bytes, &size) || size != to - from)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s does not lie in the file as its shape says", label,
                       name);
    t->offset = start + from;
    return RQ_OK;
}

static rq_status read_header(const cJSON *root, uint64_t start, uint64_t bytes, const char *label,
                             kv_tensors *out, rq_error *err)
{
    if (!cJSON_IsObject(root)) return rq_fail(err, RQ_ERR_FORMAT, "%s: its header is no JSON object", label);
    for (const cJSON *entry = root->child; entry; entry = entry->next) {
        if (entry->string && strcmp(entry->string, "__metadata__") == 0) continue;
        if (out->n == KV_MAX_TENSORS)
            return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s holds more than %d tensors", label, KV_MAX_TENSORS);
        if (entry->string && kv_tensors_find(out, entry->string))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is there twice", label, entry->string);
        rq_status s = read_entry(entry, start, bytes, label, &out->items[out->n], err);
        if (s) return s;
        out->n++;
    }
    return RQ_OK;
}

rq_status kv_tensors_parse(const uint8_t *data, uint64_t bytes, const char *label, kv_tensors *out,
                           rq_error *err)
{
    memset(out, 0, sizeof *out);
    uint64_t header = 0;
    if (bytes < 8) return rq_fail(err, RQ_ERR_FORMAT, "%s is too short for a safetensors file", label);
    for (int i = 7; i >= 0; i--) header = header << 8 | data[i];
    if (header < 2 || header > KV_MAX_HEADER_BYTES || header > bytes - 8 || data[8] != '{')
        return rq_fail(err, RQ_ERR_FORMAT, "%s is no safetensors file: its header's length is not right",
                       label);
    cJSON *root = kv_json_parse((const char *)data + 8, header);
    if (!root) return rq_fail(err, RQ_ERR_FORMAT, "%s: its header is no JSON text", label);
    kv_tensors result = {.data = data, .bytes = bytes};
    rq_status s = read_header(root, 8 + header, bytes, label, &result, err);
    cJSON_Delete(root);
    if (!s) *out = result;
    return s;
}

rq_status kv_tensors_open(const char *path, kv_tensors *out, rq_error *err)
{
    rq_map map;
    memset(out, 0, sizeof *out);
    rq_status s = rq_map_open(path, &map, err);
    if (s) return s;
    s = kv_tensors_parse(map.data, map.bytes, path, out, err);
    if (!s && rq_map_lost(&map)) s = rq_fail(err, RQ_ERR_IO, "%s became shorter while it was read", path);
    if (s) {
        rq_map_close(&map);
        memset(out, 0, sizeof *out);
        return s;
    }
    out->map = map;
    return RQ_OK;
}

void kv_tensors_close(kv_tensors *tensors)
{
    rq_map_close(&tensors->map);
    memset(tensors, 0, sizeof *tensors);
}

const kv_tensor *kv_tensors_find(const kv_tensors *tensors, const char *name)
{
    for (uint32_t i = 0; i < tensors->n; i++)
        if (strcmp(tensors->items[i].name, name) == 0) return &tensors->items[i];
    return NULL;
}

void kv_tensor_floats(const kv_tensors *tensors, const kv_tensor *t, uint64_t first, uint64_t n, float *out)
{
    const uint8_t *from = tensors->data + t->offset + first * dtypes[t->dtype].bytes;
    if (t->dtype == KV_F32) {
        memcpy(out, from, n * sizeof *out);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint16_t half;
        int32_t number;
        if (t->dtype == KV_F16) {
            memcpy(&half, from + 2 * i, sizeof half);
            out[i] = rq_half_to_f32(half);
        } else {
            memcpy(&number, from + 4 * i, sizeof number);
            out[i] = (float)number;
        }
    }
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static rq_status write_all(int fd, const char *path, const void *bytes, uint64_t n, uint64_t at,
                           rq_error *err)
{
    const uint8_t *p = bytes;
    while (n > 0) {
        ssize_t done = pwrite(fd, p, n, (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
        p += done;
        at += (uint64_t)done;
        n -= (uint64_t)done;
    }
    return RQ_OK;
}

/* The header, padded with spaces so that the arrays begin at a multiple of 64 bytes. */
static rq_status make_header(kv_tensor *tensors, uint32_t n, rq_buf *text, uint64_t *total, rq_error *err)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        kv_tensor *t = &tensors[i];
        t->n = 1;
        for (uint32_t d = 0; d < t->n_dims; d++) t->n *= t->shape[d];
        rq_buf_printf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", t->name,
                      dtypes[t->dtype].name);
        for (uint32_t d = 0; d < t->n_dims; d++)
            rq_buf_printf(text, "%s%llu", d ? "," : "", (unsigned long long)t->shape[d]);
        t->offset = at;
        at += t->n * dtypes[t->dtype].bytes;
        rq_buf_printf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->offset,
                      (unsigned long long)at);
    }
    rq_buf_puts(text, "}");
    while (!text->failed && (8 + text->len) % 64) rq_buf_puts(text, " ");
    if (text->failed) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the header of a capture");
    for (uint32_t i = 0; i < n; i++) tensors[i].offset += 8 + text->len;
    *total = 8 + text->len + at;
    return RQ_OK;
}

rq_status kv_tensors_create(const char *path, kv_tensor *tensors, uint32_t n, int *fd, rq_error *err)
{
    rq_buf text = {.max = KV_MAX_HEADER_BYTES};
    uint64_t total = 0;
    rq_status s = make_header(tensors, n, &text, &total, err);
    int file = -1;
    if (!s) {
        uint8_t length[8];
        for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)text.len >> 8 * i);
        file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (file < 0 || ftruncate(file, (off_t)total))
            s = rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
        if (!s) s = write_all(file, path, length, 8, 0, err);
        if (!s) s = write_all(file, path, text.data, text.len, 8, err);
    }
    rq_buf_free(&text);
    if (s && file >= 0) {
        close(file);
        unlink(path);
    }
    if (!s) *fd = file;
    return s;
}

rq_status kv_tensor_write(int fd, const char *path, const kv_tensor *t, uint64_t first, const void *rows,
                          uint64_t n, rq_error *err)
{
    if (first > t->n || n > t->n - first)
        return rq_fail(err, RQ_ERR_INTERNAL, "%s: more rows than tensor %s has", path, t->name);
    return write_all(fd, path, rows, n * dtypes[t->dtype].bytes, t->offset + first * dtypes[t->dtype].bytes,
                     err);
}
