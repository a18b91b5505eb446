#include "engine/gguf/internal.h"

#include "backends/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The path as errors show it: of a long one the end, which names the file. */
static void set_label(char label[RQ_GGUF_LABEL_BYTES], const char *path)
{
    size_t len = strlen(path);
    if (len < RQ_GGUF_LABEL_BYTES) {
        memcpy(label, path, len + 1);
        return;
    }
    const char *tail = path + len - (RQ_GGUF_LABEL_BYTES - 4);
    while (((unsigned char)*tail & 0xc0) == 0x80) tail++; /* not in the middle of a character */
    snprintf(label, RQ_GGUF_LABEL_BYTES, "...%s", tail);
}

/* Adds a shard without content; NULL when memory ran out. Pointers to other shards become invalid. */
static rq_gguf_shard *add_shard(rq_gguf *g, const char *path)
{
    if (!rq_grow((void **)&g->shards, &g->cap_shards, g->n_shards + 1, sizeof *g->shards)) return NULL;
    rq_gguf_shard *shard = &g->shards[g->n_shards++];
    *shard = (rq_gguf_shard){.split_no = -1, .split_count = -1, .split_tensors = -1};
    set_label(shard->label, path);
    return shard;
}

static rq_status map_shard(rq_gguf *g, const char *path, rq_gguf_kvs *kvs, rq_error *err)
{
    rq_gguf_shard *shard = add_shard(g, path);
    if (!shard) return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to open a model");
    rq_status status = rq_map_open(path, &shard->map, err);
    if (status) return status;
    shard->bytes = shard->map.data;
    shard->n_bytes = shard->map.bytes;
    return rq_gguf_parse(g, g->n_shards - 1, kvs, err);
}

/* ---- split models -------------------------------------------------------------------------------------- */

/* A name that ends in -NNNNN-of-NNNNN.gguf. */
typedef struct split_name {
    size_t prefix_len;
    uint64_t number, count; /* number counts from 1 */
} split_name;

/* Reads the decimal digits that end before `end`; false when there are fewer than five or absurdly many. */
static bool digits_before(const char *path, size_t *end, uint64_t *out)
{
    size_t first = *end;
    while (first > 0 && path[first - 1] >= '0' && path[first - 1] <= '9') first--;
    if (*end - first < 5 || *end - first > 9) return false;
    uint64_t value = 0;
    for (size_t i = first; i < *end; i++) value = value * 10 + (uint64_t)(path[i] - '0');
    *end = first;
    *out = value;
    return true;
}

static bool ends_with(const char *path, size_t *end, const char *suffix)
{
    size_t n = strlen(suffix);
    if (*end < n || memcmp(path + *end - n, suffix, n) != 0) return false;
    *end -= n;
    return true;
}

static bool parse_split_name(const char *path, split_name *out)
{
    size_t end = strlen(path);
    bool ok = ends_with(path, &end, ".gguf") && digits_before(path, &end, &out->count) &&
              ends_with(path, &end, "-of-") && digits_before(path, &end, &out->number) &&
              ends_with(path, &end, "-");
    out->prefix_len = end;
    return ok;
}

static rq_status check_part(const rq_gguf *g, uint64_t i, rq_error *err)
{
    const rq_gguf_shard *first = &g->shards[0], *part = &g->shards[i];
    if (part->split_no != (int64_t)i)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: split.no is %" PRId64 ", but by its name it is part %" PRIu64
                       ", which has split.no %" PRIu64,
                       part->label, part->split_no, i + 1, i);
    if (part->split_count != first->split_count)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: split.count is %" PRId64 ", but the first part says %" PRId64,
                       part->label, part->split_count, first->split_count);
    if (part->split_tensors >= 0 && part->split_tensors != first->split_tensors)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: split.tensors.count is %" PRId64 ", but the first part says %" PRId64,
                       part->label, part->split_tensors, first->split_tensors);
    return RQ_OK;
}

/* Opens parts 1 .. count-1 of a model whose first file was parsed. Their names come from the path the user
 * gave, never from the file, so they cannot lead to another folder. */
static rq_status open_parts(rq_gguf *g, const char *path, rq_error *err)
{
    int64_t count = g->shards[0].split_count, number = g->shards[0].split_no;
    const char *label = g->shards[0].label;
    split_name name;
    if (count > RQ_GGUF_MAX_SHARDS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s: split.count: %" PRId64 " parts are more than the %d supported", label, count,
                       RQ_GGUF_MAX_SHARDS);
    if (number < 0)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: split.no is missing, but split.count is there", label);
    bool named = parse_split_name(path, &name);
    if (number != 0) {
        if (!named)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "%s: is part %" PRId64 " of %" PRId64
                           "; give the first part, whose name ends in -00001-of-%05" PRId64 ".gguf",
                           label, number + 1, count, count);
        int keep = (int)(name.prefix_len > 160 ? 160 : name.prefix_len);
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "%s: is part %" PRId64 " of %" PRId64
                       "; give the first part: %s%.*s-%05d-of-%05" PRIu64 ".gguf",
                       label, number + 1, count, keep < (int)name.prefix_len ? "..." : "", keep,
                       path + name.prefix_len - (size_t)keep, 1, name.count);
    }
    if (!named || name.number != 1 || name.count != (uint64_t)count)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: is part 1 of %" PRId64 ", but its name does not end in -00001-of-%05" PRId64
                       ".gguf, so the other parts cannot be found",
                       label, count, count);

    size_t cap = name.prefix_len + 64;
    char *part = rq_malloc(cap);
    rq_status status = part ? RQ_OK : rq_fail(err, RQ_ERR_MEMORY, "not enough memory to open a model");
    for (int64_t i = 1; !status && i < count; i++) {
        rq_gguf_kvs kvs = {0};
        snprintf(part, cap, "%.*s-%05" PRId64 "-of-%05" PRId64 ".gguf", (int)name.prefix_len, path, i + 1,
                 count);
        status = map_shard(g, part, &kvs, err);
        if (!status) status = check_part(g, (uint64_t)i, err);
        rq_gguf_kvs_free(&kvs); /* the other parts repeat the split keys and have no metadata of their own */
    }
    rq_free(part);
    if (!status && g->shards[0].split_tensors >= 0 && (uint64_t)g->shards[0].split_tensors != g->n_tensors)
        status = rq_fail(err, RQ_ERR_FORMAT,
                         "%s: split.tensors.count is %" PRId64 ", but the %" PRId64 " parts have %" PRIu64
                         " tensors",
                         g->shards[0].label, g->shards[0].split_tensors, count, g->n_tensors);
    return status;
}

/* ---- open and close ------------------------------------------------------------------------------------ */

rq_status rq_gguf_open(const char *path, rq_gguf **out, rq_error *err)
{
    rq_gguf *g = rq_calloc(1, sizeof *g);
    if (!g) return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to open a model");
    rq_status status = map_shard(g, path, &g->kvs, err);
    if (!status && g->shards[0].split_count > 1) status = open_parts(g, path, err);
    /* Whatever the parser found is void when a file shrank meanwhile. */
    if (g->n_shards && rq_gguf_lost(g)) status = rq_gguf_fail_lost(g, err);
    if (status)
        rq_gguf_close(g);
    else
        *out = g;
    return status;
}

rq_status rq_gguf_open_memory(const void *bytes, size_t len, const char *label, rq_gguf **out, rq_error *err)
{
    if (!len) return rq_fail(err, RQ_ERR_FORMAT, "%s: is empty (0 bytes)", label);
    rq_gguf *g = rq_calloc(1, sizeof *g);
    rq_gguf_shard *shard = g ? add_shard(g, label) : NULL;
    if (!shard) {
        rq_gguf_close(g);
        return rq_fail(err, RQ_ERR_MEMORY, "not enough memory to open a model");
    }
    shard->bytes = bytes;
    shard->n_bytes = len;
    rq_status status = rq_gguf_parse(g, 0, &g->kvs, err);
    if (!status && g->shards[0].split_count > 1)
        status = rq_fail(err, RQ_ERR_UNSUPPORTED,
                         "%s: is one of %" PRId64 " parts, which cannot be read from memory",
                         g->shards[0].label, g->shards[0].split_count);
    if (status)
        rq_gguf_close(g);
    else
        *out = g;
    return status;
}

void rq_gguf_close(rq_gguf *g)
{
    if (!g) return;
    for (uint64_t i = 0; i < g->n_shards; i++) {
        rq_map_close(&g->shards[i].map);
        rq_free(g->shards[i].names);
    }
    rq_gguf_kvs_free(&g->kvs);
    rq_gguf_index_free(&g->tensor_index);
    rq_free(g->tensors);
    rq_free(g->shards);
    rq_free(g);
}

static const rq_gguf_shard *lost_shard(const rq_gguf *g)
{
    for (uint64_t i = 0; i < g->n_shards; i++)
        if (rq_map_lost(&g->shards[i].map)) return &g->shards[i];
    return NULL;
}

bool rq_gguf_lost(const rq_gguf *g)
{
    return lost_shard(g) != NULL;
}

rq_status rq_gguf_fail_lost(const rq_gguf *g, rq_error *err)
{
    const rq_gguf_shard *shard = lost_shard(g);
    return rq_fail(err, RQ_ERR_DEVICE,
                   "%s: the file shrank or became unreadable while it was in use; load it again",
                   shard ? shard->label : rq_gguf_label(g));
}

const char *rq_gguf_label(const rq_gguf *g)
{
    return g->shards[0].label;
}

uint32_t rq_gguf_version(const rq_gguf *g)
{
    return g->shards[0].version;
}

uint32_t rq_gguf_n_shards(const rq_gguf *g)
{
    return (uint32_t)g->n_shards;
}

uint64_t rq_gguf_file_bytes(const rq_gguf *g)
{
    uint64_t total = 0;
    for (uint64_t i = 0; i < g->n_shards; i++) total += g->shards[i].n_bytes;
    return total;
}
