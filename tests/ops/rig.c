#include "tests/ops/rig.h"

#include "backends/base/mem.h"
#include "backends/cpu/reference/reference.h"
#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"
#include "backends/tape/fuse.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- data ---------------------------------------------------------------------------------------------- */

/* splitmix64; a stream of its own for every seed. */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint32_t below(uint64_t *state, uint32_t n)
{
    return (uint32_t)((next(state) >> 32) * n >> 32);
}

/* About normal: twelve uniforms. */
static float normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += (double)(next(state) >> 11) * 0x1p-53;
    return (float)sum;
}

/* About normal and cheap: 4096 draws, walked through in an order that depends on the seed. */
static float draw(const case_data *d, uint64_t *state)
{
    return d->draws[next(state) >> 52];
}

void case_data_init(case_data *data)
{
    uint64_t seed = 1;
    memset(data, 0, sizeof *data);
    for (uint32_t i = 0; i < 4096; i++) {
        data->draws[i] = normal(&seed);
        data->half_draws[i] = rq_f32_to_f16(data->draws[i]);
    }
    data->page = rq_calloc((size_t)RQ_KV_MAX_DIM * RQ_PAGE_TOKENS, sizeof *data->page);
    assert_non_null(data->page);
    for (uint32_t i = 0; i < RQ_KV_MAX_DIM * RQ_PAGE_TOKENS; i++) data->page[i] = draw(data, &seed);
}

void case_data_free(case_data *data)
{
    case_data_clear(data);
    rq_free(data->store);
    rq_free(data->page);
    data->store = NULL;
    data->page = NULL;
}

void case_data_clear(case_data *data)
{
    for (uint32_t i = 0; i < CASE_MAX_WEIGHTS; i++) {
        rq_free(data->weights[i]);
        data->weights[i] = NULL;
    }
}

rq_ref case_weight(rq_tape *t, uint32_t index, rq_type type, uint32_t ne0, uint32_t ne1, uint32_t ne2)
{
    return rq_tape_weight(t, index, type, (uint32_t[4]){ne0, ne1, ne2, 1}, "w");
}

rq_ref case_rows(rq_tape *t, uint32_t n)
{
    return rq_tape_act(t, RQ_TYPE_F32, n, t->bucket, 1, 1);
}

rq_ref case_heads(rq_tape *t, uint32_t d, uint32_t heads)
{
    return rq_tape_act(t, RQ_TYPE_F32, d, heads, t->bucket, 1);
}

/* ---- memory that exists twice -------------------------------------------------------------------------- */

typedef struct twin {
    rq_memory *device;
    rq_memory host;  /* what the reference sees; host.host is owned */
    uint8_t *before; /* its content when the run starts */
} twin;

static void twin_make(twin *m, rq_device *device, uint64_t bytes)
{
    rq_error err = {0};
    m->host.host = rq_calloc_aligned(64, bytes);
    m->before = rq_calloc_aligned(64, bytes);
    m->host.bytes = bytes;
    assert_non_null(m->host.host);
    assert_non_null(m->before);
    if (device->backend->alloc(device, bytes, "test", &m->device, &err) != RQ_OK) fail_msg("%s", err.text);
}

/* Both sides start with what host.host holds. */
static void twin_start(twin *m)
{
    rq_error err = {0};
    memcpy(m->before, m->host.host, m->host.bytes);
    if (m->device->device->backend->upload(m->device, 0, m->host.host, m->host.bytes, &err) != RQ_OK)
        fail_msg("%s", err.text);
}

/* The device's content, to be freed. */
static uint8_t *twin_result(const twin *m)
{
    rq_error err = {0};
    uint8_t *bytes = rq_calloc_aligned(64, m->host.bytes);
    assert_non_null(bytes);
    if (m->device->device->backend->download(m->device, 0, bytes, m->host.bytes, &err) != RQ_OK)
        fail_msg("%s", err.text);
    return bytes;
}

static void twin_free(twin *m)
{
    if (m->device) m->device->device->backend->release(m->device);
    rq_free(m->host.host);
    rq_free(m->before);
}

/* ---- one run ------------------------------------------------------------------------------------------- */

/* Two sequences have pages; the others are slots for sampled ids, which two rows share. */
enum { N_SEQS = 64, EXTRA_RUN_START = 60, MOST_TOKENS = 256 };

typedef struct run {
    rq_device *device;
    const op_case *c;
    rq_tape tape;
    uint64_t *offsets;
    uint8_t *barrier;
    void *weights[CASE_MAX_WEIGHTS];
    rq_memory *adopted[CASE_MAX_WEIGHTS];
    rq_binding bindings[CASE_MAX_WEIGHTS];
    twin arena, persist[RQ_PERSIST_COUNT], slab, table, scratch, coded, coded_table, state;
    rq_state_group state_group;
    rq_state_pool device_state, host_state;
    rq_cache_group group;
    rq_cache_pool device_pool, host_pool;
    rq_step_caps caps;
    rq_step step;
    uint32_t n_tokens;
    case_data *data;
} run;

static bool always(void *user, const rq_tape *tape, const rq_op *op)
{
    return true;
}

static const rq_op *subject(const rq_tape *t, const op_case *c)
{
    for (uint32_t i = 0; i < t->n_ops; i++)
        if (t->ops[i].kind == c->kind) return &t->ops[i];
    return NULL;
}

static void build(rq_tape *t, const op_case *c, uint32_t bucket)
{
    rq_error err = {0};
    rq_tape_init(t, bucket);
    t->layer = 0;
    t->persist_rows[RQ_PERSIST_HIDDEN] = bucket;
    t->persist_rows[RQ_PERSIST_LOGITS] = bucket;
    t->persist_rows[RQ_PERSIST_SAMPLED] = N_SEQS;
    c->build(t, c);
    if (rq_tape_check(t, &err) != RQ_OK) fail_msg("%s: %s", c->what, err.text);
    if (c->kind >= RQ_OP_FUSED_FIRST) assert_int_equal(rq_tape_fuse(t, always, NULL, NULL), RQ_OK);
    assert_true(t->n_ops > 0);
    if (!subject(t, c)) fail_msg("%s lacks the operation it is about", c->what);
}

static bool is_written(const rq_tape *t, uint32_t owner)
{
    for (uint32_t list = 0; list < 2; list++)
        for (uint32_t i = 0; i < (list ? t->n_prims : t->n_ops); i++) {
            const rq_op *op = list ? &t->prims[i] : &t->ops[i];
            for (uint32_t o = 0; o < op->n_out; o++)
                if (t->values[op->out[o]].index == owner) return true;
        }
    return false;
}

/* Distinct experts for every token. skew 0: at random; 1: the same for all tokens; 2: from the last ones
 * only. */
static void fill_ids(const op_case *c, int32_t *ids, uint32_t bucket)
{
    for (uint32_t t = 0; t < bucket; t++) {
        uint64_t seed = t + 5;
        for (uint32_t s = 0; s < c->n_used; s++) {
            int32_t *id = &ids[t * c->n_used + s];
            bool again = true;
            while (again) {
                if (c->skew == 1)
                    *id = (int32_t)s;
                else if (c->skew == 2)
                    *id = (int32_t)(c->n_expert - 1 - (s + t) % (c->n_used + 1) % c->n_expert);
                else
                    *id = (int32_t)below(&seed, c->n_expert);
                again = false;
                for (uint32_t k = 0; k < s; k++) again |= ids[t * c->n_used + k] == *id;
                if (c->skew) again = false;
            }
        }
    }
}

/* Arena: values one after another. A row's content depends on its number only, so that a token has the same
 * operands in every bucket. Results start as NaN. */
static void make_arena(run *r)
{
    const rq_tape *t = &r->tape;
    uint64_t bytes = 0;
    r->offsets = rq_calloc(t->n_values, sizeof *r->offsets);
    r->barrier = rq_calloc(t->n_ops, 1);
    for (uint32_t i = 0; i < t->n_ops; i++) r->barrier[i] = i > 0;
    for (uint32_t v = 1; v < t->n_values; v++) {
        if (t->values[v].space != RQ_SPACE_ACT || t->values[v].index != v) continue;
        r->offsets[v] = bytes;
        bytes += (rq_value_span(&t->values[v]) + 63) & ~63ull;
    }
    twin_make(&r->arena, r->device, bytes + 64);
    memset(r->arena.host.host, 0xff, bytes + 64);
    for (uint32_t v = 1; v < t->n_values; v++) {
        const rq_value *x = &t->values[v];
        if (x->space != RQ_SPACE_ACT || x->index != v || is_written(t, v)) continue;
        char *base = (char *)r->arena.host.host + r->offsets[v];
        if (x->type == RQ_TYPE_I32) {
            fill_ids(r->c, (int32_t *)(void *)base, t->bucket);
            continue;
        }
        uint64_t per_token = (uint64_t)x->ne[0] * x->ne[1] * x->ne[2] * x->ne[3] / t->bucket;
        for (uint32_t token = 0; token < t->bucket; token++) {
            uint64_t seed = v * 1000003ull + token * 7919ull;
            float *row = (float *)(void *)base + token * per_token;
            for (uint64_t i = 0; i < per_token; i++) row[i] = draw(r->data, &seed);
        }
    }
    twin_start(&r->arena);
}

static void adopt(run *r, uint32_t index, uint64_t bytes)
{
    rq_error err = {0};
    r->weights[index] = r->data->weights[index];
    if (r->device->backend->adopt(r->device, r->weights[index], bytes, "w", &r->adopted[index], &err) !=
        RQ_OK)
        fail_msg("%s", err.text);
    r->bindings[index].memory = r->adopted[index];
}

/* Encodes n normal numbers (1 + 0.1 of them with `norm`: as norm weights in models are). */
static void encode(const case_data *d, rq_type type, void *dst, uint64_t n, uint64_t seed, bool norm)
{
    float *values = rq_calloc(n, sizeof *values);
    assert_non_null(values);
    for (uint64_t i = 0; i < n; i++) {
        values[i] = draw(d, &seed);
        if (norm) values[i] = 1 + 0.1f * values[i];
    }
    assert_true(rq_quantize(type, values, dst, (int64_t)n));
    rq_free(values);
}

/* Fills a matrix. The encoders search long for some types: their blocks are drawn from a store of encoded ones. */
static void fill_matrix(run *r, const rq_value *w, char *dst, uint64_t n)
{
    const rq_type_info *info = rq_type_get((uint32_t)w->type);
    uint64_t seed = w->index * 31ull + 17;
    bool norm = w->ne[1] == 1 && r->c->kind >= RQ_OP_FUSED_FIRST;
    if (info->block_elems == 1) {
        encode(r->data, w->type, dst, n, seed, norm);
        return;
    }
    case_data *d = r->data;
    if (d->store_type != w->type || !d->store) {
        rq_free(d->store);
        d->store_type = w->type;
        d->store = rq_calloc_aligned(64, (uint64_t)CASE_STORED_BLOCKS * info->block_bytes);
        assert_non_null(d->store);
        encode(d, w->type, d->store, (uint64_t)CASE_STORED_BLOCKS * info->block_elems, 5, false);
    }
    for (uint64_t b = 0; b < n / info->block_elems; b++)
        memcpy(dst + b * info->block_bytes, d->store + below(&seed, CASE_STORED_BLOCKS) * info->block_bytes,
               info->block_bytes);
}

/* A rotation in each column. */
static void fill_rotations(const op_case *c, float *to, uint32_t n_floats, uint32_t columns)
{
    for (uint32_t i = 0; i < columns; i++) {
        rq_rotation rotation;
        rq_error err = {0};
        if (rq_rotation_make(c->rotation, c->dim, 7 + i, &rotation, &err) != RQ_OK) fail_msg("%s", err.text);
        assert_int_equal(rotation.n_floats, n_floats);
        memcpy(to + (size_t)i * n_floats, rotation.data, n_floats * sizeof *to);
        rq_rotation_free(&rotation);
    }
}

static bool is_rotation(const op_case *c, const rq_value *w)
{
    rq_rotation shape;
    if (c->kind != RQ_OP_ROTATE && c->kind != RQ_OP_QKV_WRITE && c->kind != RQ_OP_ATTEND_ROTATE) return false;
    rq_rotation_shape(c->rotation, c->dim, &shape);
    return shape.n_blocks > 0 && w->ne[0] == shape.n_floats;
}

static void make_weights(run *r)
{
    const rq_op_kind kind = r->c->kind;
    bool turns = kind == RQ_OP_ROPE || kind == RQ_OP_QKV_WRITE;
    for (uint32_t v = 1; v < r->tape.n_values; v++) {
        const rq_value *w = &r->tape.values[v];
        if (w->space != RQ_SPACE_WEIGHT || r->weights[w->index]) continue;
        uint64_t n = (uint64_t)w->ne[0] * w->ne[1] * w->ne[2], bytes = rq_row_bytes(w->type, n);
        void **kept = &r->data->weights[w->index];
        if (!*kept) {
            *kept = rq_calloc_aligned(64, bytes + 64);
            assert_non_null(*kept);
            if (w->index == (kind == RQ_OP_ROTATE ? 0u : 3u) && is_rotation(r->c, w))
                fill_rotations(r->c, *kept, w->ne[0], w->ne[1]);
            else
                fill_matrix(r, w, *kept, n);
            if (kind == RQ_OP_DELTA_RULE && w->index == 0) /* rates are negative: state decays */
                for (uint64_t i = 0; i < n; i++) ((float *)*kept)[i] = -fabsf(((float *)*kept)[i]);
            if (turns && w->ne[1] == 1 && w->ne[0] == r->c->n_rot / 2)
                for (uint64_t i = 0; i < n; i++) /* radians per position */
                    ((float *)*kept)[i] = (float)pow(10000.0, -(double)i / (double)n);
        }
        adopt(r, w->index, bytes);
    }
}

/* ---- state ---------------------------------------------------------------------------------------------- */

/* Of two layers, the second one of which is used, with slots for the two sequences and one that nobody uses. */
static void make_state(run *r)
{
    const op_case *c = r->c;
    if (c->kind != RQ_OP_SHORT_CONV && c->kind != RQ_OP_DELTA_RULE) return;
    bool conv = c->kind == RQ_OP_SHORT_CONV;
    r->state_group = (rq_state_group){.n_layers = 2,
                                      .conv_channels = conv ? c->n : 8,
                                      .conv_taps = conv ? c->m : 2,
                                      .n_heads = conv ? 1 : c->heads,
                                      .dim_k = conv ? 8 : c->dim,
                                      .dim_v = conv ? 8 : c->m};
    r->host_state = (rq_state_pool){
        .group = &r->state_group, .layout = rq_state_layout_of(&r->state_group), .n_slots = 3};
    twin_make(&r->state, r->device, 3 * r->host_state.layout.slot_bytes);
    uint64_t seed = 41;
    float *x = r->state.host.host;
    for (uint64_t i = 0; i < r->state.host.bytes / sizeof *x; i++) x[i] = draw(r->data, &seed);
    twin_start(&r->state);
    r->device_state = r->host_state;
    r->host_state.memory = &r->state.host;
    r->device_state.memory = r->state.device;
}

/* ---- cache ---------------------------------------------------------------------------------------------- */

static uint32_t second_start(const op_case *c)
{
    return c->start ? c->start : EXTRA_RUN_START;
}

/* A round trip whose result depends on side, token and element. */
static void trip(void *user, bool is_v, float *rows, uint32_t n, uint32_t d)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < d; i++)
            rows[(size_t)t * d + i] = rows[(size_t)t * d + i] * 0.5f + (float)(3 * t + i + is_v) * 0x1p-10f;
}

/* n elements of an exact block. */
static void fill_exact(const case_data *d, rq_type type, void *to, uint64_t n, uint64_t seed)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t at = (uint32_t)(next(&seed) >> 52);
        if (type == RQ_TYPE_F32)
            ((float *)to)[i] = d->draws[at];
        else
            ((uint16_t *)to)[i] = type == RQ_TYPE_F16 ? d->half_draws[at] : rq_bhalf_from_f32(d->draws[at]);
    }
}

/* One side of a coded block: normal numbers in its form. `which` of a few contents. */
static void fill_coded_side(const case_data *d, const rq_cache_group *g, bool is_v, uint32_t which,
                            uint8_t *words, uint8_t *scales)
{
    rq_kv_form form = is_v ? g->form_v : g->form_k;
    uint32_t dim = is_v ? g->dim_v : g->dim_k;
    if (form == RQ_KV_SAME || form == RQ_KV_TRIP)
        fill_exact(d, is_v ? g->type_v : g->type_k, words, (uint64_t)dim * RQ_PAGE_TOKENS, 77 + which);
    else
        rq_kv_encode_block(NULL, form, is_v, dim, d->page + (size_t)(which + is_v) * 64,
                           (uint32_t *)(void *)words, scales);
}

/* Every block of the coded pool gets one of three contents. */
static void fill_coded(run *r)
{
    enum { CONTENTS = 3 };
    const rq_coded_layout *l = &r->host_pool.coded_layout;
    uint8_t *first = r->coded.host.host;
    uint64_t n_blocks = r->coded.host.bytes / l->head_bytes;
    for (uint64_t i = 0; i < n_blocks; i++) {
        uint8_t *block = first + i * l->head_bytes;
        if (i >= CONTENTS) {
            memcpy(block, first + i * 7 % CONTENTS * l->head_bytes, l->head_bytes);
            continue;
        }
        fill_coded_side(r->data, &r->group, false, (uint32_t)i, block, block + l->k_bytes + l->v_bytes);
        fill_coded_side(r->data, &r->group, true, (uint32_t)i, block + l->k_bytes,
                        block + l->k_bytes + l->v_bytes + l->k_scale_bytes);
    }
}

/* Table entries of one sequence whose tokens of the step are [start, start + n): an exact page where one is read or
 * written, a coded page where one is read, nothing elsewhere. Ids are given out backwards from *exact, *scratch and
 * *coded, which count what is left. */
static void give_pages(run *r, uint32_t seq, uint32_t start, uint32_t n, uint32_t *exact, uint32_t *scratch,
                       uint32_t *coded)
{
    const rq_cache_group *g = &r->group;
    uint32_t last = start + n - 1, n_pages = last / RQ_PAGE_TOKENS + 1;
    uint32_t *table = (uint32_t *)r->table.host.host + seq * r->caps.max_pages;
    uint32_t *codes = (uint32_t *)r->coded_table.host.host + seq * r->caps.max_pages;
    for (uint32_t i = rq_kv_first_page(g, start); i < n_pages;
         i++) { /* what no window reaches is not there */
        bool is_exact = rq_kv_reads_exact(g, start, i), is_coded = !rq_kv_reads_exact(g, last, i);
        if (is_coded) codes[i] = --*coded;
        if (is_exact && is_coded && r->c->scratch)
            table[i] = r->host_pool.n_pages + --*scratch;
        else if (is_exact)
            table[i] = --*exact;
    }
}

static rq_cache_group case_group(const op_case *c)
{
    return (rq_cache_group){.n_layers = 2,
                            .n_heads = c->kv_heads,
                            .dim_k = c->dim,
                            .dim_v = c->m ? c->m : c->dim,
                            .window = c->window,
                            .type_k = c->type,
                            .type_v = c->type,
                            .form_k = c->form_k,
                            .form_v = c->form_v,
                            .sink_pages = c->sinks,
                            .recent_pages = c->recent,
                            .trip = trip};
}

static void make_cache(run *r, uint32_t n_tokens)
{
    const op_case *c = r->c;
    uint32_t start = second_start(c), rest = n_tokens > 1 ? n_tokens - 1 : 1;
    /* ids do not depend on the number of tokens, so that the first one sees the same pages every time */
    uint32_t far = c->position / RQ_PAGE_TOKENS + 1, near = (start + MOST_TOKENS) / RQ_PAGE_TOKENS + 1;
    assert_true(rest <= MOST_TOKENS);
    r->caps = (rq_step_caps){.max_tokens = r->tape.bucket,
                             .n_groups = c->kv_heads ? 1 : 0,
                             .n_seqs = N_SEQS,
                             .max_pages = (far > near ? far : near) + 3};
    rq_step_caps_complete(&r->caps);
    if (c->kv_heads == 0) return;
    r->group = case_group(c);
    rq_page_layout layout = rq_page_layout_of(&r->group);
    uint32_t n_pages = far + near;
    r->host_pool = (rq_cache_pool){.group = &r->group, .layout = layout, .n_slabs = 1, .n_pages = n_pages};
    r->host_pool.layout.slab_shift = 20; /* all pages in one slab */
    twin_make(&r->slab, r->device, layout.page_bytes * n_pages);
    fill_exact(r->data, c->type, r->slab.host.host, r->slab.host.bytes / (c->type == RQ_TYPE_F32 ? 4 : 2),
               99);
    uint64_t table_bytes = 4ull * N_SEQS * r->caps.max_pages;
    twin_make(&r->table, r->device, table_bytes);
    memset(r->table.host.host, 0xff, table_bytes); /* RQ_NO_PAGE */
    uint32_t scratch = c->scratch ? n_pages : 0, coded = n_pages;
    if (scratch) {
        twin_make(&r->scratch, r->device, layout.layer_bytes * scratch);
        fill_exact(r->data, c->type, r->scratch.host.host,
                   r->scratch.host.bytes / (c->type == RQ_TYPE_F32 ? 4 : 2), 98);
        r->host_pool.n_scratch = scratch;
    }
    twin_make(&r->coded_table, r->device, table_bytes);
    memset(r->coded_table.host.host, 0xff, table_bytes);
    if (case_is_coded(c)) {
        r->host_pool.coded_layout = rq_coded_layout_of(&r->group);
        r->host_pool.coded_layout.slab_shift = 20;
        r->host_pool.n_coded = coded;
        r->host_pool.n_coded_slabs = 1;
        twin_make(&r->coded, r->device, r->host_pool.coded_layout.page_bytes * coded);
        fill_coded(r);
    }
    give_pages(r, 0, c->position, 1, &n_pages, &scratch, &coded);
    give_pages(r, 1, start, rest, &n_pages, &scratch, &coded);
    twin *all[] = {&r->slab, &r->table, &r->scratch, &r->coded, &r->coded_table};
    for (int i = 0; i < 5; i++)
        if (all[i]->device) twin_start(all[i]);
    r->device_pool = r->host_pool;
    r->host_pool.slabs[0] = &r->slab.host;
    r->host_pool.table = &r->table.host;
    r->device_pool.slabs[0] = r->slab.device;
    r->device_pool.table = r->table.device;
    if (r->scratch.device) {
        r->host_pool.scratch = &r->scratch.host;
        r->device_pool.scratch = r->scratch.device;
    }
    if (!r->coded.device) return;
    r->host_pool.coded_slabs[0] = &r->coded.host;
    r->host_pool.coded_table = &r->coded_table.host;
    r->device_pool.coded_slabs[0] = r->coded.device;
    r->device_pool.coded_table = r->coded_table.device;
}

static void make_persist(run *r)
{
    const rq_tape *t = &r->tape;
    uint64_t bytes[RQ_PERSIST_COUNT] = {64, 64, 4 * N_SEQS}, seed = 3;
    for (uint32_t v = 1; v < t->n_values; v++)
        if (t->values[v].space == RQ_SPACE_PERSIST &&
            rq_value_span(&t->values[v]) > bytes[t->values[v].index])
            bytes[t->values[v].index] = rq_value_span(&t->values[v]);
    for (uint32_t i = 0; i < RQ_PERSIST_COUNT; i++) {
        twin_make(&r->persist[i], r->device, bytes[i]);
        for (uint64_t k = 0; k < bytes[i] / 4; k++) {
            if (i == RQ_PERSIST_SAMPLED)
                ((int32_t *)r->persist[i].host.host)[k] = (int32_t)k;
            else
                ((float *)r->persist[i].host.host)[k] = draw(r->data, &seed);
        }
        twin_start(&r->persist[i]);
    }
}

enum { ENCODES = 3 };

/* The first token is a run of its own; the rest is one run of another sequence, across the end of a page. */
static void make_step(run *r, uint32_t n_tokens)
{
    const op_case *c = r->c;
    uint32_t *words = rq_calloc_aligned(64, 4ull * rq_step_words(&r->caps));
    rq_step_init(&r->step, &r->caps, &r->group, words);
    const uint32_t *pages = r->table.host.host;
    const uint32_t *first[1] = {pages}, *second[1] = {pages ? pages + r->caps.max_pages : NULL};
    int32_t ids[RQ_MAX_BUCKET];
    uint32_t vocab = c->kind == RQ_OP_EMBED ? c->m : 1;
    for (uint32_t i = 0; i < n_tokens; i++) ids[i] = (int32_t)(i * 7919u % vocab);
    if (c->kind == RQ_OP_EMBED && n_tokens > 1) ids[1] = -1 - 2;        /* what was sampled for slot 2 */
    if (c->kind == RQ_OP_EMBED && n_tokens > 2) ids[2] = (int32_t)c->m; /* outside */
    assert_int_equal(rq_step_add_run(&r->step, 0, ids, 1, c->position, first), 0);
    if (n_tokens > 1)
        assert_int_equal(rq_step_add_run(&r->step, 1, ids + 1, n_tokens - 1, second_start(c), second), 1);
    for (uint32_t i = 0; c->kind == RQ_OP_KV_ENCODE && i < ENCODES; i++) /* exact pages, and one of scratch */
        assert_true(rq_step_add_encode(&r->step, 0, i ? i - 1 : r->host_pool.n_pages, 2 * i));
    for (uint32_t i = 0; c->rows && i < n_tokens; i++)
        assert_true(rq_step_add_row(&r->step, n_tokens - 1 - i, N_SEQS - 1 - i / 2));
    assert_int_equal(rq_step_finish(&r->step), r->tape.bucket);
    r->n_tokens = n_tokens;
}

static void *host_address(void *user, const rq_tape *tape, rq_ref ref)
{
    const run *r = user;
    const rq_value *v = &tape->values[ref];
    if (v->space == RQ_SPACE_ACT) return rq_reference_act(tape, ref, r->arena.host.host, r->offsets);
    if (v->space == RQ_SPACE_PERSIST) return (char *)r->persist[v->index].host.host + v->offset;
    return (char *)r->weights[v->index] + v->offset;
}

static void run_both(run *r)
{
    rq_error err = {0};
    rq_bindings bindings = {.weights = r->bindings,
                            .arena = r->arena.device,
                            .pools = &r->device_pool,
                            .states = &r->device_state,
                            .caps = &r->caps};
    for (uint32_t i = 0; i < RQ_PERSIST_COUNT; i++) bindings.persist[i] = r->persist[i].device;
    rq_segment segment = {
        .tape = &r->tape, .count = r->tape.n_ops, .arena_offset = r->offsets, .barrier = r->barrier};
    const rq_backend *b = r->device->backend;
    rq_program *program = NULL;
    if (b->compile(r->device, &segment, &bindings, &program, &err) != RQ_OK ||
        b->run(program, r->step.words, &err) != RQ_OK || b->wait(r->device, &err) != RQ_OK)
        fail_msg("%s: %s", r->c->what, err.text);
    b->destroy(program);
    rq_reference_env env = {.address = host_address,
                            .user = r,
                            .pools = &r->host_pool,
                            .states = &r->host_state,
                            .caps = &r->caps,
                            .step_words = r->step.words,
                            .sampled = r->persist[RQ_PERSIST_SAMPLED].host.host};
    for (uint32_t i = 0; i < r->tape.n_ops; i++)
        if (rq_reference_run(&r->tape, &r->tape.ops[i], &env, &err) != RQ_OK) fail_msg("%s", err.text);
}

/* ---- comparing ----------------------------------------------------------------------------------------- */

static void add(op_error *e, double y, double ref)
{
    double d = fabs(y - ref);
    if (!(d <= 1e30)) d = 1e30; /* not a number */
    e->error += d * d;
    e->reference += ref * ref;
    e->n++;
    if (d > e->largest) e->largest = d;
    if (y != ref) e->bits = false;
}

/* The extent that counts tokens: the last one that equals the bucket. */
static uint32_t token_dim(const rq_value *v, uint32_t bucket)
{
    for (uint32_t d = 3; d > 0; d--)
        if (v->ne[d] == bucket && bucket > 1) return d;
    return 3;
}

static void compare_value(const run *r, const rq_op *op, rq_ref ref, const uint8_t *got, op_error *e,
                          uint8_t **row, uint64_t *left)
{
    const rq_value *v = &r->tape.values[ref];
    const char *y = (const char *)got + r->offsets[v->index], *x = host_address((void *)r, &r->tape, ref);
    if (op->kind == RQ_OP_GROUP) { /* what the layout promises */
        const int32_t *a = (const int32_t *)(const void *)y, *b = (const int32_t *)(const void *)x;
        rq_group_layout l = rq_group_layout_of(r->c->n_expert, r->c->n_used, r->tape.bucket);
        assert_memory_equal(a, b, 3 * sizeof *a);
        assert_memory_equal(a + l.counts, b + l.counts, (2 * r->c->n_expert + 1) * sizeof *a);
        assert_memory_equal(a + l.order, b + l.order, (uint32_t)b[0] * sizeof *a);
        assert_memory_equal(a + l.tiles, b + l.tiles, 3 * (uint32_t)b[1] * sizeof *a);
        return;
    }
    uint32_t dim = token_dim(v, r->tape.bucket), n[4];
    for (int d = 0; d < 4; d++) n[d] = v->ne[d];
    if (r->tape.bucket > 1) n[dim] = r->n_tokens;
    for (uint32_t i3 = 0; i3 < n[3]; i3++)
        for (uint32_t i2 = 0; i2 < n[2]; i2++)
            for (uint32_t i1 = 0; i1 < n[1]; i1++) {
                uint64_t at = i1 * v->stride[1] + i2 * v->stride[2] + i3 * v->stride[3];
                uint32_t token = dim == 1 ? i1 : dim == 2 ? i2 : i3;
                if (v->type == RQ_TYPE_I32) {
                    assert_memory_equal(y + at, x + at, 4ull * n[0]);
                    continue;
                }
                for (uint32_t i = 0; i < n[0]; i++)
                    add(e, ((const float *)(const void *)(y + at))[i],
                        ((const float *)(const void *)(x + at))[i]);
                if (token == 0 && *left >= 4ull * n[0]) {
                    memcpy(*row, y + at, 4ull * n[0]);
                    *row += 4ull * n[0];
                    *left -= 4ull * n[0];
                }
            }
}

static double half_value(rq_type type, uint16_t h)
{
    return type == RQ_TYPE_F16 ? rq_half_to_f32(h) : rq_bhalf_to_f32(h);
}

/* What the reference left alone must be untouched; what it wrote is compared. */
static void compare_cache(const run *r, const twin *m, op_error *e)
{
    if (!m->device) return;
    uint8_t *got = twin_result(m);
    uint64_t size = r->group.type_k == RQ_TYPE_F32 ? 4 : 2;
    for (uint64_t at = 0; at < m->host.bytes; at += size) {
        const uint8_t *ref = (const uint8_t *)m->host.host + at;
        if (memcmp(ref, m->before + at, size) == 0) {
            /* a token may be given the bits that were there: then the reference cannot tell */
            if (memcmp(got + at, ref, size) != 0) {
                e->bits = false;
                add(e, 1e30, 0);
            }
            continue;
        }
        uint16_t h[2];
        float f[2];
        memcpy(h, got + at, 2);
        memcpy(h + 1, ref, 2);
        memcpy(f, got + at, size);
        memcpy(f + 1, ref, size);
        if (size == 2)
            add(e, half_value(r->group.type_k, h[0]), half_value(r->group.type_k, h[1]));
        else
            add(e, f[0], f[1]);
    }
    rq_free(got);
}

/* All bytes, and exact pages as they were. */
static void compare_coded(const run *r, op_error *e)
{
    uint8_t *got = twin_result(&r->coded);
    for (uint64_t at = 0; at < r->coded.host.bytes; at++)
        add(e, got[at], ((const uint8_t *)r->coded.host.host)[at]);
    rq_free(got);
    const twin *exact[] = {&r->slab, &r->scratch};
    for (int i = 0; i < 2; i++) {
        got = twin_result(exact[i]);
        assert_memory_equal(got, exact[i]->before, exact[i]->host.bytes);
        rq_free(got);
    }
}

/* What the reference left alone must be untouched; what it wrote is compared. */
static void compare_state(const run *r, op_error *e)
{
    uint8_t *got = twin_result(&r->state);
    const float *y = (const float *)(const void *)got, *ref = r->state.host.host;
    const uint8_t *before = r->state.before;
    for (uint64_t i = 0; i < r->state.host.bytes / sizeof *y; i++) {
        bool kept = memcmp(&ref[i], before + i * sizeof *y, sizeof *y) == 0;
        if (!kept)
            add(e, y[i], ref[i]);
        else if (memcmp(&y[i], &ref[i], sizeof *y) != 0 && fabsf(y[i] - ref[i]) > 1e-6f * fabsf(ref[i]))
            add(e, 1e30, 0);
    }
    rq_free(got);
}

static void compare_persist(const run *r, uint32_t which, op_error *e)
{
    uint8_t *got = twin_result(&r->persist[which]);
    const uint8_t *ref = r->persist[which].host.host;
    if (which == RQ_PERSIST_SAMPLED)
        assert_memory_equal(got, ref, r->persist[which].host.bytes);
    else /* rows of padding may hold anything */
        for (uint64_t i = 0; i < (uint64_t)r->n_tokens * r->c->n; i++)
            add(e, ((const float *)(const void *)got)[i], ((const float *)(const void *)ref)[i]);
    rq_free(got);
}

static void run_free(run *r)
{
    for (uint32_t i = 0; i < CASE_MAX_WEIGHTS; i++)
        if (r->adopted[i]) r->device->backend->release(r->adopted[i]);
    twin_free(&r->arena);
    twin_free(&r->slab);
    twin_free(&r->table);
    twin_free(&r->scratch);
    twin_free(&r->coded);
    twin_free(&r->coded_table);
    twin_free(&r->state);
    for (uint32_t i = 0; i < RQ_PERSIST_COUNT; i++) twin_free(&r->persist[i]);
    rq_free(r->step.words);
    rq_free(r->offsets);
    rq_free(r->barrier);
    rq_tape_free(&r->tape);
}

op_error case_run(rq_device *device, const op_case *c, uint32_t bucket, uint32_t n_tokens, case_data *data,
                  void *first_row, uint64_t first_row_bytes)
{
    run r = {.device = device, .c = c, .data = data};
    build(&r.tape, c, bucket);
    make_arena(&r);
    make_weights(&r);
    make_cache(&r, n_tokens);
    make_state(&r);
    make_persist(&r);
    make_step(&r, n_tokens);
    run_both(&r);

    op_error e = {.bits = true};
    uint8_t *got = twin_result(&r.arena), *row = first_row;
    uint64_t left = first_row ? first_row_bytes : 0;
    for (uint32_t i = 0; i < r.tape.n_ops; i++) {
        const rq_op *op = &r.tape.ops[i];
        if (op->kind != c->kind && op->kind != RQ_OP_GROUP) continue;
        for (uint32_t o = 0; o < op->n_out; o++) compare_value(&r, op, op->out[o], got, &e, &row, &left);
        for (uint32_t a = 0; a < op->n_in; a++) {
            if (!(rq_op_get(op->kind)->written >> a & 1)) continue;
            const rq_value *v = &r.tape.values[op->in[a]];
            if (op->kind == RQ_OP_KV_ENCODE)
                compare_coded(&r, &e);
            else if (v->space == RQ_SPACE_STATE)
                compare_state(&r, &e);
            else if (v->space == RQ_SPACE_CACHE) {
                compare_cache(&r, &r.slab, &e);
                compare_cache(&r, &r.scratch, &e);
            } else
                compare_persist(&r, v->index, &e);
        }
    }
    rq_free(got);
    run_free(&r);
    return e;
}

const char *case_served_by(rq_device *device, const op_case *c, uint32_t bucket, rq_error *why)
{
    rq_tape t;
    build(&t, c, bucket);
    rq_cache_group group = case_group(c);
    t.groups = &group;
    t.n_groups = c->kv_heads ? 1 : 0;
    const rq_op *op = subject(&t, c);
    const char *name = device->backend->supports(device, &t, op, why)
                           ? device->backend->implementation(device, &t, op)
                           : NULL;
    rq_tape_free(&t);
    return name;
}
