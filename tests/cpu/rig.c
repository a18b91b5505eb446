#include "tests/cpu/rig.h"

#include "backends/base/mem.h"
#include "backends/formats/kv_codec.h"

#include <math.h>
#include <string.h>

float rig_uniform(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*seed >> 32) * 0x1p-31f;
}

float rig_normal(uint64_t *seed)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += rig_uniform(seed);
    return sum * 0.70710678f; /* six uniforms have variance 2 */
}

double rig_nmse(const float *y, const float *ref, size_t n)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)y[i] - (double)ref[i];
        error += d * d;
        power += (double)ref[i] * (double)ref[i];
    }
    return power > 0 ? error / power : error;
}

static rq_memory *memory(rig *r, uint64_t bytes)
{
    rq_memory *m = NULL;
    rq_error err = {0};
    if (rq_backend_cpu.alloc(r->device, bytes, "test", &m, &err) != RQ_OK) fail_msg("%s", err.text);
    return m;
}

/* A table of all sequences, neighbours far apart. */
static rq_memory *scattered(rig *r)
{
    rq_memory *m = memory(r, r->pool.n_pages * sizeof(uint32_t));
    uint32_t *table = m->host;
    for (uint32_t s = 0; s < r->caps.n_seqs; s++)
        for (uint32_t p = 0; p < r->caps.max_pages; p++)
            table[s * r->caps.max_pages + p] =
                (p % 2 ? p / 2 : r->caps.max_pages - 1 - p / 2) * r->caps.n_seqs + s;
    return m;
}

void rig_open(rig *r, const char *implementation, uint32_t threads, const rq_cache_group *group,
              const rq_step_caps *caps)
{
    memset(r, 0, sizeof *r);
    rq_error err = {0};
    rq_device_options options = {.n_threads = threads, .implementation = implementation};
    if (rq_backend_cpu.open(&options, &r->device, &err) != RQ_OK) fail_msg("%s", err.text);
    if (caps) r->caps = *caps;
    if (group) r->group = *group;
    rq_step_caps_complete(&r->caps);
    uint32_t words = rq_step_words(&r->caps);
    rq_step_init(&r->step, &r->caps, &r->group, rq_calloc_aligned(64, words * 4ull));
    r->persist[RQ_PERSIST_SAMPLED] = memory(r, r->caps.n_seqs * sizeof(int32_t));
    if (!group) return;
    r->pool.group = &r->group;
    r->pool.layout = rq_page_layout_of(group);
    r->pool.layout.slab_shift = 2; /* several slabs */
    r->pool.n_pages = r->caps.max_pages * r->caps.n_seqs;
    r->pool.n_slabs = (r->pool.n_pages + 3) / 4;
    for (uint32_t i = 0; i < r->pool.n_slabs; i++)
        r->pool.slabs[i] = memory(r, 4 * r->pool.layout.page_bytes);
    r->pool.table = scattered(r);
    if (!rq_group_is_coded(group)) return;
    r->pool.coded_layout = rq_coded_layout_of(group);
    r->pool.coded_layout.slab_shift = 2;
    r->pool.n_coded = r->pool.n_pages;
    r->pool.n_coded_slabs = r->pool.n_slabs;
    for (uint32_t i = 0; i < r->pool.n_coded_slabs; i++)
        r->pool.coded_slabs[i] = memory(r, 4 * r->pool.coded_layout.page_bytes);
    r->pool.coded_table = scattered(r);
}

void rig_close(rig *r)
{
    const rq_backend *b = &rq_backend_cpu;
    b->destroy(r->program);
    rq_free(r->arena_offset);
    rq_free(r->barrier);
    b->release(r->arena);
    for (int i = 0; i < RIG_MAX_WEIGHTS; i++) b->release(r->weights[i]);
    for (int i = 0; i < RQ_PERSIST_COUNT; i++) b->release(r->persist[i]);
    for (uint32_t i = 0; i < r->pool.n_slabs; i++) b->release(r->pool.slabs[i]);
    b->release(r->pool.table);
    for (uint32_t i = 0; i < r->pool.n_coded_slabs; i++) b->release(r->pool.coded_slabs[i]);
    b->release(r->pool.coded_table);
    rq_free(r->step.words);
    b->close(r->device);
}

void rig_fresh_cache(rig *r)
{
    /* 0xff.. is a NaN as f16 and as f32 */
    for (uint32_t i = 0; i < r->pool.n_slabs; i++)
        memset(r->pool.slabs[i]->host, 0xff, r->pool.slabs[i]->bytes);
    for (uint32_t i = 0; i < r->pool.n_coded_slabs; i++)
        memset(r->pool.coded_slabs[i]->host, 0xff, r->pool.coded_slabs[i]->bytes);
}

const uint32_t *rig_table(const rig *r, uint32_t seq)
{
    return (const uint32_t *)r->pool.table->host + seq * r->caps.max_pages;
}

static uint8_t *block(const rig *r, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos)
{
    uint32_t page = rig_table(r, seq)[pos / RQ_PAGE_TOKENS];
    return (uint8_t *)r->pool.slabs[page / 4]->host + page % 4 * r->pool.layout.page_bytes +
           layer * r->pool.layout.layer_bytes + head * r->pool.layout.head_bytes;
}

static void put(uint8_t *base, rq_type type, size_t i, float x)
{
    uint16_t h = rq_f32_to_f16(x);
    if (type == RQ_TYPE_BF16) h = rq_f32_to_bf16(x);
    if (type != RQ_TYPE_F32)
        memcpy(base + 2 * i, &h, 2);
    else
        memcpy(base + 4 * i, &x, 4);
}

static float get(const uint8_t *base, rq_type type, size_t i)
{
    uint16_t h;
    float x;
    memcpy(&x, base + 4 * (type == RQ_TYPE_F32 ? i : 0), 4);
    memcpy(&h, base + 2 * (type == RQ_TYPE_F32 ? 0 : i), 2);
    return type == RQ_TYPE_F32 ? x : type == RQ_TYPE_BF16 ? rq_bf16_to_f32(h) : rq_f16_to_f32(h);
}

void rig_put(rig *r, uint32_t layer, uint32_t seq, uint32_t pos, const float *k, const float *v)
{
    const rq_cache_group *g = &r->group;
    for (uint32_t h = 0; h < g->n_heads; h++) {
        uint8_t *b = block(r, layer, seq, h, pos);
        for (uint32_t d = 0; d < g->dim_k; d++) put(b, g->type_k, d * 64 + pos % 64, k[h * g->dim_k + d]);
        for (uint32_t d = 0; d < g->dim_v; d++)
            put(b + r->pool.layout.k_bytes, g->type_v, pos % 64 * g->dim_v + d, v[h * g->dim_v + d]);
    }
}

float rig_k(const rig *r, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t d)
{
    return get(block(r, layer, seq, head, pos), r->group.type_k, d * 64 + pos % 64);
}

float rig_v(const rig *r, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t d)
{
    return get(block(r, layer, seq, head, pos) + r->pool.layout.k_bytes, r->group.type_v,
               pos % 64 * r->group.dim_v + d);
}

/* One side of all heads. x holds a block as rq_kv_encode_block takes it. */
static void encode_side(rig *r, uint32_t layer, uint32_t seq, uint32_t index, bool is_v, float *x)
{
    const rq_cache_group *g = &r->group;
    const rq_coded_layout *l = &r->pool.coded_layout;
    rq_kv_form form = is_v ? g->form_v : g->form_k;
    uint32_t d = is_v ? g->dim_v : g->dim_k, page = rig_table(r, seq)[index],
             coded = ((const uint32_t *)r->pool.coded_table->host)[seq * r->caps.max_pages + index];
    for (uint32_t h = 0; h < g->n_heads; h++) {
        const uint8_t *from = rq_pool_exact_block(&r->pool, page, layer, h);
        uint8_t *to = rq_pool_coded_block(&r->pool, coded, layer, h);
        uint8_t *words = to + (is_v ? l->k_bytes : 0);
        uint8_t *scales = to + l->k_bytes + l->v_bytes + (is_v ? l->k_scale_bytes : 0);
        if (rq_kv_bits(form) == 0) {
            memcpy(words, from + (is_v ? r->pool.layout.k_bytes : 0), is_v ? l->v_bytes : l->k_bytes);
            continue;
        }
        for (uint32_t i = 0; i < d; i++)
            for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t++)
                x[i * RQ_PAGE_TOKENS + t] = is_v ? rig_v(r, layer, seq, h, index * RQ_PAGE_TOKENS + t, i)
                                                 : rig_k(r, layer, seq, h, index * RQ_PAGE_TOKENS + t, i);
        rq_kv_encode_block(NULL, form, is_v, d, x, (uint32_t *)(void *)words, scales);
    }
}

void rig_encode(rig *r, uint32_t layer, uint32_t seq, uint32_t index)
{
    uint32_t d = r->group.dim_k > r->group.dim_v ? r->group.dim_k : r->group.dim_v;
    float *x = rq_calloc((size_t)d * RQ_PAGE_TOKENS, sizeof *x);
    encode_side(r, layer, seq, index, false, x);
    encode_side(r, layer, seq, index, true, x);
    rq_free(x);
}

void rig_forget(rig *r, uint32_t seq, uint32_t index)
{
    uint32_t page = rig_table(r, seq)[index];
    memset((uint8_t *)r->pool.slabs[page / 4]->host + page % 4 * r->pool.layout.page_bytes, 0xff,
           r->pool.layout.page_bytes);
}

void rig_weight(rig *r, uint32_t index, const void *bytes, uint64_t n)
{
    rq_backend_cpu.release(r->weights[index]);
    r->weights[index] = memory(r, n);
    assert_int_equal(rq_backend_cpu.upload(r->weights[index], 0, bytes, n, NULL), RQ_OK);
    r->weight_bindings[index] = (rq_binding){r->weights[index], 0};
}

void rig_compile(rig *r, const rq_tape *tape)
{
    rq_error err = {0};
    if (rq_tape_check(tape, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_backend_cpu.destroy(r->program);
    r->program = NULL;
    rq_backend_cpu.release(r->arena);
    rq_free(r->arena_offset);
    rq_free(r->barrier);
    r->arena_offset = rq_calloc(tape->n_values, sizeof *r->arena_offset);
    r->barrier = rq_calloc(tape->n_ops, 1);
    memset(r->barrier, 1, tape->n_ops);
    uint64_t at = 0;
    for (uint32_t i = 1; i < tape->n_values; i++) {
        const rq_value *v = &tape->values[i];
        if (v->space != RQ_SPACE_ACT || v->index != i) continue;
        r->arena_offset[i] = at;
        at += (v->stride[3] * v->ne[3] + 63) & ~63ull;
    }
    for (uint32_t i = 1; i < tape->n_values; i++)
        if (tape->values[i].space == RQ_SPACE_ACT)
            r->arena_offset[i] = r->arena_offset[tape->values[i].index];
    r->arena = memory(r, at);
    r->bindings =
        (rq_bindings){.weights = r->weight_bindings, .arena = r->arena, .pools = &r->pool, .caps = &r->caps};
    memcpy(r->bindings.persist, r->persist, sizeof r->persist);
    rq_segment segment = {tape, 0, tape->n_ops, r->arena_offset, r->barrier};
    for (uint32_t i = 0; i < tape->n_ops; i++)
        if (!rq_backend_cpu.supports(r->device, tape, &tape->ops[i], &err)) fail_msg("%s", err.text);
    if (rq_backend_cpu.compile(r->device, &segment, &r->bindings, &r->program, &err) != RQ_OK)
        fail_msg("%s", err.text);
    r->tape = tape;
}

void *rig_value(const rig *r, rq_ref ref)
{
    return (uint8_t *)r->arena->host + r->arena_offset[ref] + r->tape->values[ref].offset;
}

void rig_run(rig *r)
{
    rq_error err = {0};
    if (rq_backend_cpu.run(r->program, r->step.words, &err) != RQ_OK) fail_msg("%s", err.text);
    assert_int_equal(rq_backend_cpu.wait(r->device, &err), RQ_OK);
}
