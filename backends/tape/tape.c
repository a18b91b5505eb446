#include "backends/tape/tape.h"

#include "backends/base/mem.h"
#include "backends/state.h"
#include "backends/tape/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void rq_tape_init(rq_tape *tape, uint32_t bucket)
{
    memset(tape, 0, sizeof *tape);
    tape->bucket = bucket;
    tape->layer = UINT32_MAX;
    if (bucket == 0 || bucket > RQ_MAX_BUCKET_TOKENS)
        rq_tape_fail(tape, RQ_ERR_ARGUMENT, "a tape of %u tokens is not possible (1 to %u are)", bucket,
                     RQ_MAX_BUCKET_TOKENS);
}

void rq_tape_free(rq_tape *tape)
{
    rq_free(tape->values);
    rq_free(tape->ops);
    rq_free(tape->prims);
    memset(tape, 0, sizeof *tape);
}

rq_status rq_tape_check(const rq_tape *tape, rq_error *err)
{
    if (tape->status == RQ_OK) return RQ_OK;
    return rq_fail(err, tape->status, "%s", tape->error.text);
}

rq_ref rq_tape_fail(rq_tape *tape, rq_status status, const char *format, ...)
{
    if (tape->status != RQ_OK) return 0;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (tape->layer == UINT32_MAX)
        tape->status = rq_fail(&tape->error, status, "forward pass: %s", text);
    else
        tape->status = rq_fail(&tape->error, status, "forward pass, layer %u: %s", tape->layer, text);
    return 0;
}

bool rq_tape_grow(void **array, uint32_t *cap, uint32_t need, size_t item_bytes)
{
    size_t wide = *cap;
    if (need == UINT32_MAX || !rq_grow(array, &wide, need, item_bytes)) return false;
    *cap = wide > UINT32_MAX ? UINT32_MAX : (uint32_t)wide;
    return true;
}

rq_ref rq_tape_value(rq_tape *tape, const rq_value *value)
{
    if (tape->status != RQ_OK) return 0;
    uint32_t need = (tape->n_values ? tape->n_values : 1) + 1;
    if (!rq_tape_grow((void **)&tape->values, &tape->cap_values, need, sizeof *tape->values))
        return rq_tape_fail(tape, RQ_ERR_MEMORY, "out of memory for %u values", need);
    if (tape->n_values == 0) { /* reference 0 is "none" */
        memset(tape->values, 0, sizeof *tape->values);
        tape->n_values = 1;
    }
    tape->values[tape->n_values] = *value;
    return tape->n_values++;
}

/* Fills type, extents and strides of a contiguous value. False when the type is none, a row is not a whole
 * number of blocks, an extent is zero or the size does not fit. */
static bool contiguous(rq_value *v, rq_type type, const uint32_t ne[4])
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    if (!info || ne[0] == 0 || ne[0] % info->block_elems) return false;
    v->type = type;
    uint64_t bytes = rq_row_bytes(type, ne[0]);
    v->stride[0] = info->block_bytes;
    for (int i = 0; i < 4; i++) {
        v->ne[i] = ne[i];
        if (ne[i] == 0) return false;
        if (i == 0) continue;
        v->stride[i] = bytes;
        if (!rq_mul_u64(bytes, ne[i], &bytes) || bytes > INT64_MAX) return false;
    }
    return true;
}

rq_ref rq_tape_weight(rq_tape *tape, uint32_t index, rq_type type, const uint32_t ne[4], const char *name)
{
    rq_value v = {.space = RQ_SPACE_WEIGHT, .index = index, .name = name};
    if (!contiguous(&v, type, ne))
        return rq_tape_fail(tape, RQ_ERR_FORMAT,
                            "weight %s has an impossible shape [%u, %u, %u, %u] for its type",
                            name ? name : "?", ne[0], ne[1], ne[2], ne[3]);
    return rq_tape_value(tape, &v);
}

rq_ref rq_tape_cache(rq_tape *tape, uint32_t group, uint32_t layer)
{
    if (group >= RQ_MAX_GROUPS)
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "cache group %u does not exist (there are at most %d)",
                            group, RQ_MAX_GROUPS);
    rq_value v = {.space = RQ_SPACE_CACHE, .index = group, .layer = layer, .ne = {1, 1, 1, 1}};
    return rq_tape_value(tape, &v);
}

rq_ref rq_tape_state(rq_tape *tape, uint32_t group, uint32_t layer)
{
    if (group >= RQ_MAX_STATE_GROUPS)
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "state group %u does not exist (there are at most %d)",
                            group, RQ_MAX_STATE_GROUPS);
    rq_value v = {.space = RQ_SPACE_STATE, .index = group, .layer = layer, .ne = {1, 1, 1, 1}};
    return rq_tape_value(tape, &v);
}

rq_ref rq_tape_persist(rq_tape *tape, rq_persist which, rq_type type, uint32_t ne0, uint32_t ne1)
{
    rq_value v = {.space = RQ_SPACE_PERSIST, .index = (uint32_t)which};
    if ((uint32_t)which >= RQ_PERSIST_COUNT || !contiguous(&v, type, (uint32_t[4]){ne0, ne1, 1, 1}))
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "persistent memory %u has an impossible shape [%u, %u]",
                            (uint32_t)which, ne0, ne1);
    return rq_tape_value(tape, &v);
}

rq_ref rq_tape_act(rq_tape *tape, rq_type type, uint32_t ne0, uint32_t ne1, uint32_t ne2, uint32_t ne3)
{
    rq_value v = {.space = RQ_SPACE_ACT, .index = tape->n_values ? tape->n_values : 1};
    if (!contiguous(&v, type, (uint32_t[4]){ne0, ne1, ne2, ne3}))
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "an activation cannot have the shape [%u, %u, %u, %u]",
                            ne0, ne1, ne2, ne3);
    return rq_tape_value(tape, &v);
}

/* Bytes of a value's owner, from its start. */
static uint64_t owner_bytes(const rq_tape *tape, const rq_value *v)
{
    if (v->space == RQ_SPACE_ACT) {
        const rq_value *o = &tape->values[v->index];
        return rq_value_end(o);
    }
    return rq_value_end(v); /* a view of a weight or of PERSIST stays inside the value it was made of */
}

uint64_t rq_value_end(const rq_value *v)
{
    uint64_t end = v->offset + rq_row_bytes(v->type, v->ne[0]);
    for (int i = 1; i < 4; i++) end += (v->ne[i] - 1) * v->stride[i];
    return end;
}

rq_ref rq_tape_view(rq_tape *tape, rq_ref x, uint64_t first, uint32_t ne0, uint32_t ne1, uint64_t stride1,
                    uint32_t ne2, uint64_t stride2)
{
    if (tape->status != RQ_OK) return 0;
    if (x == 0 || x >= tape->n_values) return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "a view of nothing");
    rq_value v = tape->values[x];
    if (v.space != RQ_SPACE_ACT && v.space != RQ_SPACE_WEIGHT && v.space != RQ_SPACE_PERSIST)
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT,
                            "only activations, weights and persistent memory have views");
    const rq_type_info *info = rq_type_get((uint32_t)v.type);
    uint64_t block = info->block_elems;
    if (ne0 == 0 || ne1 == 0 || ne2 == 0 || ne0 % block || first % block || stride1 % block ||
        stride2 % block)
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT,
                            "a view [%u, %u, %u] from element %llu does not fall on blocks of %s", ne0, ne1,
                            ne2, (unsigned long long)first, info->name);
    uint64_t limit = owner_bytes(tape, &tape->values[x]), at, row1, row2, end, add;
    bool fits = rq_mul_u64(first / block, info->block_bytes, &at) && rq_add_u64(at, v.offset, &at) &&
                rq_mul_u64(stride1 / block, info->block_bytes, &row1) &&
                rq_mul_u64(stride2 / block, info->block_bytes, &row2) &&
                rq_add_u64(at, rq_row_bytes(v.type, ne0), &end) && rq_mul_u64(row1, ne1 - 1, &add) &&
                rq_add_u64(end, add, &end) && rq_mul_u64(row2, ne2 - 1, &add) && rq_add_u64(end, add, &end) &&
                end <= limit;
    if (!fits)
        return rq_tape_fail(tape, RQ_ERR_ARGUMENT, "a view [%u, %u, %u] from element %llu leaves its memory",
                            ne0, ne1, ne2, (unsigned long long)first);
    v.offset = at;
    v.ne[0] = ne0;
    v.ne[1] = ne1;
    v.ne[2] = ne2;
    v.ne[3] = 1;
    v.stride[1] = row1;
    v.stride[2] = row2;
    v.stride[3] = row2 * ne2;
    return rq_tape_value(tape, &v);
}
