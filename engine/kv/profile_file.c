/* profile_file.c - profiles as files. Little-endian, without gaps:
 *
 *     "RQKVPROF", u32 version (2), u32 layers, u64 model, u64 rope, u32 positions, u32 0, u32 flags (1: pairs
 *     are halves), u32 bytes of the note, the note
 *     per layer: u32 KV heads, u32 dim_k, u32 dim_v, u32 n_rot, u32 n_turned, u32 parts (bit i: rq_kv_part i), f32
 *     each part in order
 *     u64 XXH3 of all bytes before
 *
 * Version 1, which is read too, knew models of equal layers: n_rot is where version 2 has the 0, and layers have
 * neither n_rot nor n_turned. No part of a layer is larger than the rest of the file, so that reading allocates no
 * more than the file has. */
#include "backends/base/buf.h"
#include "backends/base/file.h"
#include "backends/base/mem.h"
#include "engine/kv/profile.h"
#include "engine/models/model.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static const char MAGIC[8] = {'R', 'Q', 'K', 'V', 'P', 'R', 'O', 'F'};
enum { VERSION = 2, OLDEST_VERSION = 1, FLAG_HALVES = 1 };

/* ---- writing ------------------------------------------------------------------------------------------- */

static void put_u32(rq_buf *b, uint32_t x)
{
    rq_buf_append(b, &x, sizeof x);
}

static void put_u64(rq_buf *b, uint64_t x)
{
    rq_buf_append(b, &x, sizeof x);
}

static void put_profile(rq_buf *b, const rq_kv_profile *p)
{
    size_t note = strnlen(p->note, sizeof p->note - 1);
    rq_buf_append(b, MAGIC, sizeof MAGIC);
    put_u32(b, VERSION);
    put_u32(b, p->n_layers);
    put_u64(b, p->identity.model);
    put_u64(b, p->identity.rope);
    put_u32(b, p->n_positions);
    put_u32(b, 0);
    put_u32(b, p->rot_halves ? FLAG_HALVES : 0);
    put_u32(b, (uint32_t)note);
    rq_buf_append(b, p->note, note);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        rq_kv_layer_profile *l = &p->layers[i];
        uint32_t parts = 0;
        for (int part = 0; part < RQ_KV_PARTS; part++)
            if (*rq_kv_part_slot(l, part) != NULL) parts |= 1u << part;
        put_u32(b, l->n_heads);
        put_u32(b, l->dim_k);
        put_u32(b, l->dim_v);
        put_u32(b, l->n_rot);
        put_u32(b, l->n_turned);
        put_u32(b, parts);
        for (int part = 0; part < RQ_KV_PARTS; part++)
            if (parts >> part & 1)
                rq_buf_append(b, *rq_kv_part_slot(l, part), rq_kv_part_floats(l, part) * sizeof(float));
    }
    if (!b->failed) put_u64(b, XXH3_64bits(b->data, b->len));
}

rq_status rq_kv_profile_write(const rq_kv_profile *p, const char *path, rq_error *err)
{
    rq_status status = rq_kv_profile_check(p, err);
    if (status != RQ_OK) return status;
    rq_buf bytes = {.max = SIZE_MAX / 4};
    put_profile(&bytes, p);
    status = bytes.failed ? rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache profile %s", path)
                          : rq_file_replace(path, bytes.data, bytes.len, err);
    rq_buf_free(&bytes);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *data;
    size_t n, at;
    uint32_t version, n_rot; /* n_rot: version 1's, of all layers */
    bool failed;             /* something was past the end; what was read since is 0 */
} reader;

static void take(reader *r, void *out, size_t n)
{
    if (r->failed || n > r->n - r->at) {
        r->failed = true;
        memset(out, 0, n);
        return;
    }
    memcpy(out, r->data + r->at, n);
    r->at += n;
}

static uint32_t take_u32(reader *r)
{
    uint32_t x;
    take(r, &x, sizeof x);
    return x;
}

static uint64_t take_u64(reader *r)
{
    uint64_t x;
    take(r, &x, sizeof x);
    return x;
}

static rq_status cut_off(const char *label, rq_error *err)
{
    return rq_fail(err, RQ_ERR_FORMAT, "%s: the cache profile ends too early", label);
}

static rq_status take_layer(reader *r, rq_kv_profile *p, uint32_t i, const char *label, rq_error *err)
{
    rq_kv_layer_profile *l = &p->layers[i];
    l->n_heads = take_u32(r);
    l->dim_k = take_u32(r);
    l->dim_v = take_u32(r);
    l->n_rot = r->version == 1 ? r->n_rot : take_u32(r);
    l->n_turned = r->version == 1 ? l->n_rot / 2 : take_u32(r);
    uint32_t parts = take_u32(r);
    if (r->failed) return cut_off(label, err);
    if (!rq_kv_shape_exists(l) || parts >> RQ_KV_PARTS)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: layer %u of the cache profile has a shape that does not exist", label, i);
    for (int part = 0; part < RQ_KV_PARTS; part++) {
        if (!(parts >> part & 1)) continue;
        size_t n = rq_kv_part_floats(l, part);
        if (n == 0)
            return rq_fail(err, RQ_ERR_FORMAT,
                           "%s: layer %u of the cache profile has a part its heads cannot have", label, i);
        if (n * sizeof(float) > r->n - r->at) return cut_off(label, err); /* before anything is allocated */
        float *x = rq_kv_profile_add(p, i, part);
        if (x == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache profile %s", label);
        take(r, x, n * sizeof(float));
    }
    return RQ_OK;
}

static rq_status take_profile(reader *r, const char *label, rq_kv_profile **out, rq_error *err)
{
    char magic[sizeof MAGIC];
    take(r, magic, sizeof magic);
    if (r->failed || memcmp(magic, MAGIC, sizeof MAGIC) != 0)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: not a cache profile", label);
    uint32_t version = take_u32(r), n_layers = take_u32(r);
    if (!r->failed && (version < OLDEST_VERSION || version > VERSION))
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s: a cache profile of version %u, this build reads versions %d to %d", label,
                       version, OLDEST_VERSION, VERSION);
    r->version = version;
    uint64_t sum;
    if (r->failed || r->n < 8) return cut_off(label, err);
    memcpy(&sum, r->data + r->n - 8, 8);
    if (sum != XXH3_64bits(r->data, r->n - 8))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: the cache profile is damaged: its checksum does not match",
                       label);
    r->n -= 8;
    if (n_layers == 0 || n_layers > RQ_MAX_LAYERS)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: a cache profile has 1 to %d layers, not %u", label,
                       RQ_MAX_LAYERS, n_layers);
    rq_status status = RQ_OK;
    rq_kv_profile *p = rq_kv_profile_make(n_layers);
    if (p == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the cache profile %s", label);
    *out = p;
    p->identity.model = take_u64(r);
    p->identity.rope = take_u64(r);
    p->n_positions = take_u32(r);
    r->n_rot = take_u32(r);
    uint32_t flags = take_u32(r), note = take_u32(r);
    p->rot_halves = flags & FLAG_HALVES;
    if (r->failed) return cut_off(label, err);
    if (flags & ~(uint32_t)FLAG_HALVES || note >= sizeof p->note || (version > 1 && r->n_rot != 0))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: the head of the cache profile makes no sense", label);
    take(r, p->note, note);
    for (uint32_t i = 0; i < n_layers && status == RQ_OK; i++) status = take_layer(r, p, i, label, err);
    if (status == RQ_OK && r->at != r->n)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: %zu bytes too many in the cache profile", label,
                       r->n - r->at);
    return status;
}

rq_status rq_kv_profile_parse(const void *bytes, size_t n, const char *label, rq_kv_profile **out,
                              rq_error *err)
{
    reader r = {.data = bytes, .n = n};
    rq_kv_profile *p = NULL;
    rq_status status = take_profile(&r, label, &p, err);
    if (status == RQ_OK) status = rq_kv_profile_check(p, err);
    if (status != RQ_OK) {
        rq_kv_profile_free(p);
        return status;
    }
    *out = p;
    return RQ_OK;
}

rq_status rq_kv_profile_read(const char *path, rq_kv_profile **out, rq_error *err)
{
    rq_map map;
    rq_status status = rq_map_open(path, &map, err);
    if (status != RQ_OK) return status;
    rq_kv_profile *p = NULL;
    status = rq_kv_profile_parse(map.data, map.bytes, path, &p, err);
    if (status == RQ_OK && rq_map_lost(&map)) {
        status = rq_fail(err, RQ_ERR_IO, "%s: the file became shorter while it was read", path);
        rq_kv_profile_free(p);
    }
    rq_map_close(&map);
    if (status == RQ_OK) *out = p;
    return status;
}
