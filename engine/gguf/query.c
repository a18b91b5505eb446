/* query.c - typed access to metadata and tensors of an open file. A stored type is never assumed. */
#include "engine/gguf/internal.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

uint64_t rq_gguf_n_kv(const rq_gguf *g)
{
    return g->kvs.n;
}

const rq_gguf_kv *rq_gguf_kv_at(const rq_gguf *g, uint64_t i)
{
    return &g->kvs.items[i];
}

const rq_gguf_kv *rq_gguf_find(const rq_gguf *g, const char *key)
{
    rq_gguf_str name = {.data = key, .len = strlen(key)};
    uint64_t i = rq_gguf_index_find(&g->kvs.index, name, g->kvs.items, rq_gguf_kv_name);
    return i == UINT64_MAX ? NULL : &g->kvs.items[i];
}

uint64_t rq_gguf_n_tensors(const rq_gguf *g)
{
    return g->n_tensors;
}

const rq_gguf_tensor *rq_gguf_tensor_at(const rq_gguf *g, uint64_t i)
{
    return &g->tensors[i];
}

const rq_gguf_tensor *rq_gguf_find_tensor(const rq_gguf *g, const char *name)
{
    rq_gguf_str wanted = {.data = name, .len = strlen(name)};
    uint64_t i = rq_gguf_index_find(&g->tensor_index, wanted, g->tensors, rq_gguf_tensor_name);
    return i == UINT64_MAX ? NULL : &g->tensors[i];
}

bool rq_gguf_str_eq(rq_gguf_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.data, text, s.len);
}

const char *rq_gguf_type_name(rq_gguf_type type)
{
    static const char *const names[RQ_GGUF_TYPE_LIMIT] = {
        "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return (unsigned)type < RQ_GGUF_TYPE_LIMIT ? names[type] : "unknown";
}

/* ---- elements ------------------------------------------------------------------------------------------ */

static uint64_t load(const rq_gguf_kv *kv, uint64_t i)
{
    uint32_t n = rq_gguf_elem_bytes(kv->type);
    const uint8_t *p = kv->data + i * n;
    uint64_t v = 0;
    for (uint32_t k = n; k-- > 0;) v = v << 8 | p[k];
    return v;
}

bool rq_gguf_elem_i64(const rq_gguf_kv *kv, uint64_t i, int64_t *out)
{
    if (i >= kv->count) return false;
    uint64_t v;
    switch (kv->type) {
    case RQ_GGUF_U8:
    case RQ_GGUF_U16:
    case RQ_GGUF_U32:
        *out = (int64_t)load(kv, i);
        return true;
    case RQ_GGUF_I8:
        *out = (int64_t)(load(kv, i) ^ 0x80) - 0x80;
        return true;
    case RQ_GGUF_I16:
        *out = (int16_t)load(kv, i);
        return true;
    case RQ_GGUF_I32:
        *out = (int32_t)load(kv, i);
        return true;
    case RQ_GGUF_I64:
        *out = (int64_t)load(kv, i);
        return true;
    case RQ_GGUF_BOOL:
        *out = load(kv, i) != 0;
        return true;
    case RQ_GGUF_U64:
        v = load(kv, i);
        if (v > INT64_MAX) return false;
        *out = (int64_t)v;
        return true;
    default:
        return false;
    }
}

bool rq_gguf_elem_f64(const rq_gguf_kv *kv, uint64_t i, double *out)
{
    if (i >= kv->count) return false;
    if (kv->type == RQ_GGUF_F32) {
        uint32_t bits = (uint32_t)load(kv, i);
        float value;
        memcpy(&value, &bits, 4);
        *out = (double)value;
        return true;
    }
    if (kv->type == RQ_GGUF_F64) {
        uint64_t bits = load(kv, i);
        memcpy(out, &bits, 8);
        return true;
    }
    if (kv->type == RQ_GGUF_U64) {
        *out = (double)load(kv, i);
        return true;
    }
    int64_t integer;
    if (!rq_gguf_elem_i64(kv, i, &integer)) return false;
    *out = (double)integer;
    return true;
}

bool rq_gguf_elem_str(const rq_gguf_kv *kv, uint64_t i, rq_gguf_str *out)
{
    if (kv->type != RQ_GGUF_STRING || i >= kv->count) return false;
    uint64_t from = kv->strings[i] + 8; /* behind its length */
    *out = (rq_gguf_str){.data = (const char *)kv->data + from, .len = kv->strings[i + 1] - from};
    return true;
}

/* ---- getters ------------------------------------------------------------------------------------------- */

static rq_status missing(const rq_gguf *g, const char *key, rq_error *err)
{
    return rq_fail(err, RQ_ERR_FORMAT, "%s: the metadata key '%s' is missing", rq_gguf_label(g), key);
}

static uint64_t where(const rq_gguf *g, const rq_gguf_kv *kv)
{
    return (uint64_t)(kv->data - g->shards[0].bytes);
}

static rq_status wrong_type(const rq_gguf *g, const char *key, const rq_gguf_kv *kv, const char *wanted,
                            rq_error *err)
{
    return rq_fail(err, RQ_ERR_FORMAT,
                   "%s: metadata key '%s', at byte %" PRIu64 ": it is %s%s where %s is wanted",
                   rq_gguf_label(g), key, where(g, kv), kv->is_array ? "an array of " : "of type ",
                   rq_gguf_type_name(kv->type), wanted);
}

static rq_status out_of_range(const rq_gguf *g, const char *key, const rq_gguf_kv *kv, uint64_t i,
                              int64_t min, int64_t max, rq_error *err)
{
    int64_t value = 0;
    if (!rq_gguf_elem_i64(kv, i, &value)) /* only a u64 beyond int64 */
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: metadata key '%s', at byte %" PRIu64 ": %" PRIu64 " is too large",
                       rq_gguf_label(g), key, where(g, kv), load(kv, i));
    return rq_fail(err, RQ_ERR_FORMAT,
                   "%s: metadata key '%s', at byte %" PRIu64 ": %" PRId64 " is not between %" PRId64
                   " and %" PRId64,
                   rq_gguf_label(g), key, where(g, kv), value, min, max);
}

static bool is_integer(rq_gguf_type type)
{
    return type != RQ_GGUF_F32 && type != RQ_GGUF_F64 && type != RQ_GGUF_STRING && type != RQ_GGUF_BOOL;
}

rq_status rq_gguf_get_i64(const rq_gguf *g, const char *key, int64_t min, int64_t max, int64_t *out,
                          rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    int64_t value = 0;
    if (!kv) return missing(g, key, err);
    if (kv->is_array || !is_integer(kv->type)) return wrong_type(g, key, kv, "an integer", err);
    if (!rq_gguf_elem_i64(kv, 0, &value) || value < min || value > max)
        return out_of_range(g, key, kv, 0, min, max, err);
    *out = value;
    return RQ_OK;
}

rq_status rq_gguf_get_u32(const rq_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                          rq_error *err)
{
    int64_t value = 0;
    rq_status status = rq_gguf_get_i64(g, key, min, max, &value, err);
    if (!status) *out = (uint32_t)value;
    return status;
}

rq_status rq_gguf_get_f32(const rq_gguf *g, const char *key, float *out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    double value = 0;
    if (!kv) return missing(g, key, err);
    if (kv->is_array || kv->type == RQ_GGUF_STRING || kv->type == RQ_GGUF_BOOL ||
        !rq_gguf_elem_f64(kv, 0, &value))
        return wrong_type(g, key, kv, "a number", err);
    if (!(fabs(value) <= (double)FLT_MAX))
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: metadata key '%s', at byte %" PRIu64 ": %g is not a finite number",
                       rq_gguf_label(g), key, where(g, kv), value);
    *out = (float)value;
    return RQ_OK;
}

rq_status rq_gguf_get_bool(const rq_gguf *g, const char *key, bool *out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    int64_t value = 0;
    if (!kv) return missing(g, key, err);
    if (kv->is_array || (kv->type != RQ_GGUF_BOOL && !is_integer(kv->type)))
        return wrong_type(g, key, kv, "true or false", err);
    if (!rq_gguf_elem_i64(kv, 0, &value) || value < 0 || value > 1)
        return out_of_range(g, key, kv, 0, 0, 1, err);
    *out = value != 0;
    return RQ_OK;
}

rq_status rq_gguf_get_str(const rq_gguf *g, const char *key, rq_gguf_str *out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    if (!kv) return missing(g, key, err);
    if (kv->is_array || !rq_gguf_elem_str(kv, 0, out)) return wrong_type(g, key, kv, "a string", err);
    return RQ_OK;
}

rq_status rq_gguf_opt_u32(const rq_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t fallback,
                          uint32_t *out, rq_error *err)
{
    if (rq_gguf_find(g, key)) return rq_gguf_get_u32(g, key, min, max, out, err);
    *out = fallback;
    return RQ_OK;
}

rq_status rq_gguf_opt_f32(const rq_gguf *g, const char *key, float fallback, float *out, rq_error *err)
{
    if (rq_gguf_find(g, key)) return rq_gguf_get_f32(g, key, out, err);
    *out = fallback;
    return RQ_OK;
}

rq_status rq_gguf_opt_bool(const rq_gguf *g, const char *key, bool fallback, bool *out, rq_error *err)
{
    if (rq_gguf_find(g, key)) return rq_gguf_get_bool(g, key, out, err);
    *out = fallback;
    return RQ_OK;
}

rq_status rq_gguf_opt_str(const rq_gguf *g, const char *key, const char *fallback, rq_gguf_str *out,
                          rq_error *err)
{
    if (rq_gguf_find(g, key)) return rq_gguf_get_str(g, key, out, err);
    *out = (rq_gguf_str){.data = fallback, .len = strlen(fallback)};
    return RQ_OK;
}

rq_status rq_gguf_get_u32s(const rq_gguf *g, const char *key, uint64_t n, uint32_t min, uint32_t max,
                           uint32_t *out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    int64_t value = 0;
    if (!kv) return missing(g, key, err);
    if (!is_integer(kv->type) && kv->type != RQ_GGUF_BOOL)
        return wrong_type(g, key, kv, "an integer or an array of integers", err);
    if (kv->is_array && kv->count != n)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "%s: metadata key '%s', at byte %" PRIu64 ": it has %" PRIu64
                       " elements where %" PRIu64 " are wanted",
                       rq_gguf_label(g), key, where(g, kv), kv->count, n);
    for (uint64_t i = 0; i < kv->count; i++)
        if (!rq_gguf_elem_i64(kv, i, &value) || value < min || value > max)
            return out_of_range(g, key, kv, i, min, max, err);
    for (uint64_t i = 0; i < n; i++) {
        /* Read again and held to the range again: the file may have changed meanwhile. */
        rq_gguf_elem_i64(kv, kv->is_array ? i : 0, &value);
        out[i] = value < min ? min : value > max ? max : (uint32_t)value;
    }
    return RQ_OK;
}

rq_status rq_gguf_get_strs(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    if (!kv) return missing(g, key, err);
    if (!kv->is_array || kv->type != RQ_GGUF_STRING)
        return wrong_type(g, key, kv, "an array of strings", err);
    *out = kv;
    return RQ_OK;
}

rq_status rq_gguf_get_ints(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    int64_t value = 0;
    if (!kv) return missing(g, key, err);
    if (!kv->is_array || (!is_integer(kv->type) && kv->type != RQ_GGUF_BOOL))
        return wrong_type(g, key, kv, "an array of integers", err);
    for (uint64_t i = 0; kv->type == RQ_GGUF_U64 && i < kv->count; i++)
        if (!rq_gguf_elem_i64(kv, i, &value)) return out_of_range(g, key, kv, i, INT64_MIN, INT64_MAX, err);
    *out = kv;
    return RQ_OK;
}

rq_status rq_gguf_get_reals(const rq_gguf *g, const char *key, const rq_gguf_kv **out, rq_error *err)
{
    const rq_gguf_kv *kv = rq_gguf_find(g, key);
    if (!kv) return missing(g, key, err);
    if (!kv->is_array || kv->type == RQ_GGUF_STRING || kv->type == RQ_GGUF_BOOL)
        return wrong_type(g, key, kv, "an array of numbers", err);
    *out = kv;
    return RQ_OK;
}
