/* parse.c - one GGUF file, from header to tensor table. Every read goes through take(), which compares with
 * the bytes that are left; every product and sum of numbers from the file is a checked one. */
#include "engine/gguf/internal.h"

#include "backends/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct cursor {
    const rq_gguf_shard *shard;
    uint64_t pos;
    rq_error *err;
    const char *subject; /* what the current item is: "metadata key", "tensor" or NULL for the header */
    uint64_t number;     /* of the item, from 0 */
    rq_gguf_str name;    /* of the item; empty until read */
} cursor;

/* A tensor while its file is being parsed. */
typedef struct pending {
    uint64_t where;  /* of its info */
    uint64_t offset; /* of its data, relative to the data section */
    uint64_t nbytes;
} pending;

const char *rq_gguf_show(rq_gguf_str s, char out[RQ_GGUF_SHOWN_BYTES])
{
    uint64_t n = s.len < RQ_GGUF_SHOWN_BYTES - 4 ? s.len : RQ_GGUF_SHOWN_BYTES - 4;
    for (uint64_t i = 0; i < n; i++) {
        char c = s.data[i];
        out[i] = c >= 0x20 && c < 0x7f ? c : '?';
    }
    memcpy(out + n, n < s.len ? "..." : "", n < s.len ? 4 : 1);
    return out;
}

uint32_t rq_gguf_elem_bytes(uint32_t type)
{
    static const uint8_t bytes[RQ_GGUF_TYPE_LIMIT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < RQ_GGUF_TYPE_LIMIT ? bytes[type] : 0;
}

/* "FILE: tensor 3 'NAME', FIELD, at byte N: REASON" */
__attribute__((format(printf, 4, 5), cold)) static rq_status bad(const cursor *c, uint64_t at,
                                                                 const char *field, const char *format, ...)
{
    char reason[256], shown[RQ_GGUF_SHOWN_BYTES], item[RQ_GGUF_SHOWN_BYTES + 48] = "header";
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    if (c->subject && c->name.len)
        snprintf(item, sizeof item, "%s %" PRIu64 " '%s'", c->subject, c->number,
                 rq_gguf_show(c->name, shown));
    else if (c->subject)
        snprintf(item, sizeof item, "%s %" PRIu64, c->subject, c->number);
    rq_fail(c->err, RQ_ERR_FORMAT, "%s: %s, %s, at byte %" PRIu64 ": %s", c->shard->label, item, field, at,
            reason);
    return RQ_ERR_FORMAT; /* said here so that analysers know it is no success */
}

static rq_status no_memory(const cursor *c)
{
    rq_fail(c->err, RQ_ERR_MEMORY, "%s: not enough memory to read its header", c->shard->label);
    return RQ_ERR_MEMORY;
}

static uint64_t remaining(const cursor *c)
{
    return c->shard->n_bytes - c->pos;
}

/* The next n bytes, or NULL (and the sentence) when the file ends before. */
static const uint8_t *take(cursor *c, uint64_t n, const char *field)
{
    if (n > remaining(c)) {
        bad(c, c->pos, field, "it needs %" PRIu64 " bytes, but the file ends after %" PRIu64 " (truncated?)",
            n, remaining(c));
        return NULL;
    }
    c->pos += n;
    return c->shard->bytes + c->pos - n;
}

static rq_status take_u32(cursor *c, const char *field, uint32_t *out)
{
    const uint8_t *p = take(c, 4, field);
    if (!p) return RQ_ERR_FORMAT;
    *out = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    return RQ_OK;
}

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static rq_status take_u64(cursor *c, const char *field, uint64_t *out)
{
    const uint8_t *p = take(c, 8, field);
    if (!p) return RQ_ERR_FORMAT;
    *out = load_u64(p);
    return RQ_OK;
}

static rq_status take_str(cursor *c, const char *field, rq_gguf_str *out)
{
    uint64_t at = c->pos, len;
    rq_status status = take_u64(c, field, &len);
    if (status) return status;
    if (len > remaining(c)) {
        bad(c, at, field, "its length of %" PRIu64 " bytes exceeds the %" PRIu64 " bytes left in the file",
            len, remaining(c));
        return RQ_ERR_FORMAT;
    }
    *out = (rq_gguf_str){.data = (const char *)c->shard->bytes + c->pos, .len = len};
    c->pos += len;
    return RQ_OK;
}

/* ---- header -------------------------------------------------------------------------------------------- */

/* What a file that is not GGUF seems to be, or NULL: people do give pictures, failed downloads and weights in
 * other formats. */
static const char *looks_like(const uint8_t *p, uint64_t n)
{
    static const struct {
        uint8_t at, len;
        const char *bytes, *what;
    } known[] = {
        {0, 4, "\x89PNG", "a PNG picture"},
        {0, 3, "\xff\xd8\xff", "a JPEG picture"},
        {0, 4, "GIF8", "a GIF picture"},
        {8, 4, "WEBP", "a WebP picture"},
        {0, 4, "%PDF", "a PDF document"},
        {0, 4, "PK\3\4", "a ZIP archive or a PyTorch file"},
        {0, 2, "\x1f\x8b", "a gzip archive"},
        {0, 4, "\x28\xb5\x2f\xfd", "a zstd archive"},
        {0, 4, "lmgg", "a GGML file older than GGUF, which has to be converted again"},
        {0, 4, "fmgg", "a GGML file older than GGUF, which has to be converted again"},
        {0, 4, "tjgg", "a GGML file older than GGUF, which has to be converted again"},
        {8, 2, "{\"", "a safetensors file, which has to be converted"},
        {0, 4, "vers", "a Git LFS pointer, not the file itself: run git lfs pull"},
        {0, 2, "<!", "a web page, probably a failed download"},
        {0, 5, "<html", "a web page, probably a failed download"},
        {0, 1, "{", "a JSON text"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n >= (uint64_t)known[i].at + known[i].len &&
            !memcmp(p + known[i].at, known[i].bytes, known[i].len))
            return known[i].what;
    return NULL;
}

static rq_status parse_header(cursor *c, rq_gguf_shard *shard, uint64_t *n_tensors, uint64_t *n_kv)
{
    uint64_t head = remaining(c) < 4 ? remaining(c) : 4;
    if (memcmp(c->shard->bytes, "GGUF", head) != 0) {
        const char *what = looks_like(c->shard->bytes, c->shard->n_bytes);
        return rq_fail(c->err, RQ_ERR_FORMAT,
                       "%s: is not a GGUF file: it does not begin with GGUF (byte 0)%s%s", c->shard->label,
                       what ? "; it looks like " : "", what ? what : "");
    }
    if (!take(c, 4, "magic")) return RQ_ERR_FORMAT;
    rq_status status = take_u32(c, "version", &shard->version);
    if (status) return status;
    if (shard->version && !(shard->version & 0xffff))
        return bad(c, 4, "version",
                   "the file is big-endian, which is not supported; convert it to little-endian");
    if (shard->version != 2 && shard->version != 3)
        return bad(c, 4, "version", "version %" PRIu32 " is not 2 or 3%s", shard->version,
                   shard->version == 1 ? " (1 is obsolete: convert the model again)" : "");
    if ((status = take_u64(c, "tensor_count", n_tensors))) return status;
    if ((status = take_u64(c, "kv_count", n_kv))) return status;
    /* The smallest pair is an empty key's 8 + 4 + 1 bytes, the smallest tensor info 8 + 0 + 4 + 0 + 4 + 8. */
    if (*n_tensors > remaining(c) / 24)
        return bad(c, 8, "tensor_count",
                   "%" PRIu64 " tensors cannot fit into the %" PRIu64 " bytes that follow", *n_tensors,
                   remaining(c));
    if (*n_kv > remaining(c) / 13)
        return bad(c, 16, "kv_count", "%" PRIu64 " pairs cannot fit into the %" PRIu64 " bytes that follow",
                   *n_kv, remaining(c));
    if (*n_tensors > RQ_GGUF_MAX_TENSORS)
        return bad(c, 8, "tensor_count", "%" PRIu64 " tensors are more than the %u supported", *n_tensors,
                   RQ_GGUF_MAX_TENSORS);
    if (*n_kv > RQ_GGUF_MAX_KV)
        return bad(c, 16, "kv_count", "%" PRIu64 " pairs are more than the %u supported", *n_kv,
                   RQ_GGUF_MAX_KV);
    return RQ_OK;
}

/* ---- metadata ------------------------------------------------------------------------------------------ */

/* Strings are walked once, here; later accesses use the offsets, so that lengths that change in the file
 * afterwards are of no consequence. */
static rq_status parse_strings(cursor *c, rq_gguf_kv *kv)
{
    uint64_t first = c->pos;
    uint64_t *offsets = rq_malloc((kv->count + 1) * sizeof *offsets); /* count <= file size / 8 */
    if (!offsets) return no_memory(c);
    kv->strings = offsets;
    for (uint64_t i = 0; i < kv->count; i++) {
        rq_gguf_str s;
        offsets[i] = c->pos - first;
        rq_status status = take_str(c, kv->is_array ? "string in the array" : "value", &s);
        if (status) return status;
    }
    offsets[kv->count] = c->pos - first;
    return RQ_OK;
}

static rq_status parse_value(cursor *c, rq_gguf_kv *kv)
{
    uint64_t at = c->pos;
    uint32_t type;
    rq_status status = take_u32(c, "type", &type);
    if (status) return status;
    if (type >= RQ_GGUF_TYPE_LIMIT) return bad(c, at, "type", "%" PRIu32 " is not a value type", type);
    kv->count = 1;
    if (type == RQ_GGUF_ARRAY) {
        at = c->pos;
        if ((status = take_u32(c, "element type", &type))) return status;
        if (type == RQ_GGUF_ARRAY) return bad(c, at, "element type", "arrays of arrays are not supported");
        if (type >= RQ_GGUF_TYPE_LIMIT)
            return bad(c, at, "element type", "%" PRIu32 " is not a value type", type);
        at = c->pos;
        if ((status = take_u64(c, "array length", &kv->count))) return status;
        uint64_t least = type == RQ_GGUF_STRING ? 8 : rq_gguf_elem_bytes(type);
        if (kv->count > remaining(c) / least)
            return bad(c, at, "array length",
                       "%" PRIu64 " elements of type %s cannot fit into the %" PRIu64 " bytes that follow",
                       kv->count, rq_gguf_type_name(type), remaining(c));
        if (kv->count > 1u << 30)
            return bad(c, at, "array length", "%" PRIu64 " elements are more than the 2^30 supported",
                       kv->count);
        kv->is_array = true;
    }
    kv->type = type;
    kv->data = c->shard->bytes + c->pos;
    if (type == RQ_GGUF_STRING) return parse_strings(c, kv);
    return take(c, kv->count * rq_gguf_elem_bytes(type), "value") ? RQ_OK : RQ_ERR_FORMAT;
}

static rq_status parse_kvs(cursor *c, uint64_t n, rq_gguf_kvs *kvs)
{
    kvs->items = rq_calloc(n, sizeof *kvs->items);
    if (!kvs->items || !rq_gguf_index_reserve(&kvs->index, n, kvs->items, rq_gguf_kv_name))
        return no_memory(c);
    c->subject = "metadata pair";
    for (uint64_t i = 0; i < n; i++) {
        rq_gguf_kv *kv = &kvs->items[i];
        uint64_t at = c->pos;
        c->number = i;
        c->name = (rq_gguf_str){0};
        rq_status status = take_str(c, "key", &kv->key);
        if (status) return status;
        if (!kv->key.len) return bad(c, at, "key", "it is empty");
        c->name = kv->key;
        if (kv->key.len > RQ_GGUF_MAX_KEY)
            return bad(c, at, "key", "its %" PRIu64 " bytes are more than the %d allowed", kv->key.len,
                       RQ_GGUF_MAX_KEY);
        if (memchr(kv->key.data, 0, kv->key.len)) return bad(c, at, "key", "it contains a NUL byte");
        if (rq_gguf_index_add(&kvs->index, i, kvs->items, rq_gguf_kv_name) != UINT64_MAX)
            return bad(c, at, "key", "the same key occurs twice");
        kvs->n = i + 1; /* from here on kvs_free knows about its strings */
        if ((status = parse_value(c, kv))) return status;
    }
    c->subject = NULL;
    return RQ_OK;
}

void rq_gguf_kvs_free(rq_gguf_kvs *kvs)
{
    for (uint64_t i = 0; i < kvs->n; i++) rq_free((void *)(uintptr_t)kvs->items[i].strings);
    rq_free(kvs->items);
    rq_gguf_index_free(&kvs->index);
    *kvs = (rq_gguf_kvs){0};
}

static const rq_gguf_kv *find(const rq_gguf_kvs *kvs, const char *key)
{
    rq_gguf_str name = {.data = key, .len = strlen(key)};
    uint64_t i = rq_gguf_index_find(&kvs->index, name, kvs->items, rq_gguf_kv_name);
    return i == UINT64_MAX ? NULL : &kvs->items[i];
}

/* Points the cursor's error context at a pair that was read earlier; returns where its value lies. */
static uint64_t about(cursor *c, const rq_gguf_kvs *kvs, const rq_gguf_kv *kv)
{
    c->subject = "metadata pair";
    c->number = (uint64_t)(kv - kvs->items);
    c->name = kv->key;
    return (uint64_t)(kv->data - c->shard->bytes);
}

static rq_status read_alignment(cursor *c, const rq_gguf_kvs *kvs, uint64_t *alignment)
{
    const rq_gguf_kv *kv = find(kvs, "general.alignment");
    int64_t value = 32;
    if (kv) {
        uint64_t at = about(c, kvs, kv);
        if (kv->is_array || kv->type != RQ_GGUF_U32)
            return bad(c, at, "type", "it is %s%s instead of a u32", kv->is_array ? "an array of " : "a ",
                       rq_gguf_type_name(kv->type));
        rq_gguf_elem_i64(kv, 0, &value);
        if (value <= 0 || value & (value - 1) || value > RQ_GGUF_MAX_ALIGNMENT)
            return bad(c, at, "value", "%" PRId64 " is not a power of two between 1 and %u", value,
                       RQ_GGUF_MAX_ALIGNMENT);
        c->subject = NULL;
    }
    *alignment = (uint64_t)value;
    return RQ_OK;
}

static rq_status read_split_key(cursor *c, const rq_gguf_kvs *kvs, const char *key, int64_t *out)
{
    const rq_gguf_kv *kv = find(kvs, key);
    int64_t value = -1;
    if (kv) {
        uint64_t at = about(c, kvs, kv);
        if (kv->is_array || !rq_gguf_elem_i64(kv, 0, &value))
            return bad(c, at, "type", "it is not an integer");
        if (value < 0 || value > INT32_MAX) return bad(c, at, "value", "%" PRId64 " is out of range", value);
        c->subject = NULL;
    }
    *out = value;
    return RQ_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------- */

/* Element and byte count of a shape whose type is known. A zero dimension makes the tensor empty but must not
 * hide that the other dimensions overflow, hence the products of the non-zero ones. */
static rq_status measure(const cursor *c, uint64_t at, const rq_type_info *type, rq_gguf_tensor *t)
{
    uint64_t elems = 1, bytes;
    bool empty = false, fits = true;
    if (t->ne[0] % type->block_elems)
        return bad(c, at, "dims[0]", "%" PRIu64 " is not a multiple of the %u elements in a block of %s",
                   t->ne[0], type->block_elems, type->name);
    /* Divided before it is multiplied: rows of a wrapped product would look small. */
    fits = rq_mul_u64(t->ne[0] ? t->ne[0] / type->block_elems : 1, type->block_bytes, &bytes);
    for (int d = 0; d < 4; d++) {
        if (!t->ne[d]) empty = true;
        if (!t->ne[d]) continue;
        fits = fits && rq_mul_u64(elems, t->ne[d], &elems);
        if (d > 0) fits = fits && rq_mul_u64(bytes, t->ne[d], &bytes);
    }
    if (!fits || elems > INT64_MAX || bytes > INT64_MAX)
        return bad(c, at, "dims",
                   "%" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64 " elements are too many", t->ne[0],
                   t->ne[1], t->ne[2], t->ne[3]);
    t->n_elems = empty ? 0 : elems;
    t->nbytes = empty ? 0 : bytes;
    return RQ_OK;
}

static rq_status parse_tensor(cursor *c, rq_gguf_tensor *t, rq_gguf_str *name, uint64_t *offset,
                              uint64_t alignment)
{
    uint64_t at = c->pos;
    uint32_t n_dims = 0, type_id = 0;
    rq_status status = take_str(c, "name", name);
    if (status) return status;
    c->name = *name;
    if (!name->len) return bad(c, at, "name", "it is empty");
    if (name->len > RQ_GGUF_MAX_NAME)
        return bad(c, at, "name", "its %" PRIu64 " bytes are more than the %d allowed", name->len,
                   RQ_GGUF_MAX_NAME);
    if (memchr(name->data, 0, name->len)) return bad(c, at, "name", "it contains a NUL byte");

    at = c->pos;
    if ((status = take_u32(c, "n_dims", &n_dims))) return status;
    if (n_dims > 4) return bad(c, at, "n_dims", "%" PRIu32 " dimensions are more than 4", n_dims);
    uint64_t dims_at = c->pos;
    for (uint32_t d = 0; d < 4; d++) t->ne[d] = 1;
    for (uint32_t d = 0; d < n_dims; d++) {
        static const char *const fields[4] = {"dims[0]", "dims[1]", "dims[2]", "dims[3]"};
        if ((status = take_u64(c, fields[d], &t->ne[d]))) return status;
        if (t->ne[d] > INT64_MAX)
            return bad(c, c->pos - 8, fields[d], "%" PRIu64 " is too large (negative?)", t->ne[d]);
    }
    at = c->pos;
    if ((status = take_u32(c, "type", &type_id))) return status;
    const rq_type_info *type = rq_type_get(type_id);
    if (!type || !type->block_elems || !type->block_bytes)
        return bad(c, at, "type", "%" PRIu32 " is not a tensor type this program knows", type_id);
    t->type = (rq_type)type_id;
    t->n_dims = (uint8_t)n_dims;
    if ((status = measure(c, dims_at, type, t))) return status;
    at = c->pos;
    if ((status = take_u64(c, "offset", offset))) return status;
    if (*offset & (alignment - 1))
        return bad(c, at, "offset", "%" PRIu64 " is not a multiple of the alignment %" PRIu64, *offset,
                   alignment);
    return RQ_OK;
}

/* In-place heap sort of tensor numbers by data offset; the C library's qsort may allocate. */
static bool comes_before(const pending *p, uint32_t a, uint32_t b)
{
    return p[a].offset < p[b].offset || (p[a].offset == p[b].offset && a < b);
}

static void sift(uint32_t *order, const pending *p, uint64_t root, uint64_t n)
{
    for (uint64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && comes_before(p, order[child], order[child + 1])) child++;
        if (!comes_before(p, order[root], order[child])) return;
        uint32_t swapped = order[root];
        order[root] = order[child], order[child] = swapped;
    }
}

static void sort_by_offset(uint32_t *order, const pending *p, uint64_t n)
{
    for (uint64_t root = n / 2; root-- > 0;) sift(order, p, root, n);
    for (uint64_t end = n; end-- > 1;) {
        uint32_t swapped = order[0];
        order[0] = order[end], order[end] = swapped;
        sift(order, p, 0, end);
    }
}

static void about_tensor(cursor *c, const rq_gguf_tensor *t, uint64_t number)
{
    c->subject = "tensor";
    c->number = number;
    c->name = (rq_gguf_str){.data = t->name, .len = strlen(t->name)};
}

/* The data of a file's tensors lies inside it and no two overlap; gaps and any order are fine. Sets the data
 * pointers. `order` is scratch for n numbers. */
static rq_status place_data(cursor *c, rq_gguf_tensor *tensors, const pending *p, uint32_t *order, uint64_t n,
                            uint64_t alignment)
{
    uint64_t start = c->pos, padding = (alignment - start % alignment) % alignment, kept = 0;
    c->subject = NULL;
    if (padding > remaining(c))
        return bad(c, start, "padding", "the file ends before the tensor data begins (truncated?)");
    start += padding;
    uint64_t data_bytes = c->shard->n_bytes - start;
    for (uint64_t i = 0; i < n; i++) {
        about_tensor(c, &tensors[i], i);
        if (p[i].offset > data_bytes || p[i].nbytes > data_bytes - p[i].offset)
            return bad(c, p[i].where, "offset",
                       "its %" PRIu64 " bytes at offset %" PRIu64 " lie outside the file's %" PRIu64
                       " bytes of tensor data (truncated?)",
                       p[i].nbytes, p[i].offset, data_bytes);
        tensors[i].data = c->shard->bytes + start + p[i].offset;
        if (p[i].nbytes) order[kept++] = (uint32_t)i;
    }
    sort_by_offset(order, p, kept);
    for (uint64_t i = 1; i < kept; i++) {
        const pending *before = &p[order[i - 1]], *after = &p[order[i]];
        if (after->offset - before->offset >= before->nbytes) continue;
        about_tensor(c, &tensors[order[i]], order[i]);
        return bad(c, after->where, "offset", "its data overlaps that of tensor %" PRIu32, order[i - 1]);
    }
    return RQ_OK;
}

/* The infos of one file, into tensors[0..n-1] and p[0..n-1]; all names go into one block. */
static rq_status parse_infos(cursor *c, rq_gguf_shard *shard, uint64_t shard_number, rq_gguf_tensor *tensors,
                             pending *p, uint64_t n, uint64_t alignment)
{
    size_t names_len = 0, names_cap = 0;
    c->subject = "tensor";
    for (uint64_t i = 0; i < n; i++) {
        rq_gguf_str name;
        rq_gguf_tensor *t = &tensors[i];
        c->number = i;
        c->name = (rq_gguf_str){0};
        *t = (rq_gguf_tensor){.shard = (uint16_t)shard_number};
        p[i].where = c->pos;
        rq_status status = parse_tensor(c, t, &name, &p[i].offset, alignment);
        if (status) return status;
        p[i].nbytes = t->nbytes;
        if (!rq_grow((void **)&shard->names, &names_cap, names_len + name.len + 1, 1)) return no_memory(c);
        memcpy(shard->names + names_len, name.data, name.len);
        shard->names[names_len + name.len] = 0;
        names_len += name.len + 1;
    }
    const char *name = shard->names; /* only now: the block moved while it grew */
    for (uint64_t i = 0; i < n; i++) {
        tensors[i].name = name;
        name += strlen(name) + 1;
    }
    return RQ_OK;
}

static rq_status parse_tensors(cursor *c, rq_gguf *g, uint64_t shard_number, uint64_t n, uint64_t alignment)
{
    if (!n) return RQ_OK; /* metadata only: neither padding nor data need to follow */
    if (n > RQ_GGUF_MAX_TENSORS - g->n_tensors)
        return bad(c, 8, "tensor_count", "the parts have more than the %u tensors supported",
                   RQ_GGUF_MAX_TENSORS);
    uint64_t first = g->n_tensors;
    if (!rq_grow((void **)&g->tensors, &g->cap_tensors, first + n, sizeof *g->tensors)) return no_memory(c);
    if (!rq_gguf_index_reserve(&g->tensor_index, first + n, g->tensors, rq_gguf_tensor_name))
        return no_memory(c);
    pending *p = rq_malloc(n * sizeof *p);
    uint32_t *order = rq_malloc(n * sizeof *order);
    rq_status status = p && order ? RQ_OK : no_memory(c);
    rq_gguf_tensor *tensors = g->tensors + first;
    if (!status) status = parse_infos(c, &g->shards[shard_number], shard_number, tensors, p, n, alignment);
    if (!status) status = place_data(c, tensors, p, order, n, alignment);
    for (uint64_t i = 0; !status && i < n; i++) {
        about_tensor(c, &tensors[i], i);
        uint64_t other = rq_gguf_index_add(&g->tensor_index, first + i, g->tensors, rq_gguf_tensor_name);
        if (other == UINT64_MAX) continue;
        if (other >= first)
            status = bad(c, p[i].where, "name", "tensor %" PRIu64 " has the same name", other - first);
        else
            status = bad(c, p[i].where, "name", "part %d of the split model has a tensor of the same name",
                         g->tensors[other].shard + 1);
    }
    if (!status) g->n_tensors = first + n;
    rq_free(order);
    rq_free(p);
    return status;
}

rq_status rq_gguf_parse(rq_gguf *g, uint64_t shard_number, rq_gguf_kvs *kvs, rq_error *err)
{
    rq_gguf_shard *shard = &g->shards[shard_number];
    cursor c = {.shard = shard, .err = err};
    uint64_t n_tensors = 0, n_kv = 0, alignment = 32;
    rq_status status = parse_header(&c, shard, &n_tensors, &n_kv);
    if (!status) status = parse_kvs(&c, n_kv, kvs);
    if (!status) status = read_alignment(&c, kvs, &alignment);
    if (!status) status = read_split_key(&c, kvs, "split.no", &shard->split_no);
    if (!status) status = read_split_key(&c, kvs, "split.count", &shard->split_count);
    if (!status) status = read_split_key(&c, kvs, "split.tensors.count", &shard->split_tensors);
    if (!status) status = parse_tensors(&c, g, shard_number, n_tensors, alignment);
    return status;
}
