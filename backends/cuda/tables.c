/* tables.c - constant tables and descriptions of cache pools for the kernels. */
#include "backends/cuda/cu.h"

#include "backends/base/mem.h"
#include "backends/formats/kv_codec.h"
#include "backends/formats/tables.h"

#include <string.h>

rq_status cu_tables_make(cu_device *d, rq_memory **out, rq_error *err)
{
    cuda_tables *t = rq_calloc(1, sizeof *t);
    if (!t) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the tables of quantised types");
#define COPY(member, from)                                                                                   \
    _Static_assert(sizeof t->member == sizeof from, "the size of " #from);                                   \
    memcpy(t->member, from, sizeof from)
    COPY(iq2xxs, rq_iq2xxs_grid);
    COPY(iq2xs, rq_iq2xs_grid);
    COPY(iq2s, rq_iq2s_grid);
    COPY(iq1s, rq_iq1s_grid);
    COPY(iq3xxs, rq_iq3xxs_grid);
    COPY(iq3s, rq_iq3s_grid);
    COPY(ksigns, rq_ksigns);
    COPY(iq4nl, rq_iq4nl_values);
    COPY(mxfp4, rq_mxfp4_values);
    COPY(e8m0, rq_e8m0_half);
    COPY(ue4m3, rq_ue4m3_half);
#undef COPY
    for (uint32_t i = 0; i < 3; i++) {
        const rq_kv_codec *row = rq_kv_codec_of((rq_kv_form)(RQ_KV_C2 + i));
        memcpy(t->levels[i], row->level, sizeof t->levels[i]);
        for (uint32_t e = 0; e < 256; e++) t->scales[i][e] = rq_kv_scale(row, (uint8_t)e);
        t->gain_k[i] = row->gain_k;
        t->gain_v[i] = row->gain_v;
        t->base[i] = row->base;
        t->slope[i] = row->slope;
        t->offset[i] = row->offset;
    }
    for (uint32_t i = 0; i < 128; i++) t->log2[i] = (uint8_t)(rq_kv_log2(128 + i) - 7 * 256);
    rq_status status = cu_adopt(&d->base, t, sizeof *t, "tables of quantised types", out, err);
    rq_free(t);
    return status;
}

_Static_assert(offsetof(cuda_tables, iq4nl) % 16 == 0 && offsetof(cuda_tables, levels) % 16 == 0,
               "words of 16 bytes");
/* Words of the step that kernels know by number (cuda/step.cuh). */
_Static_assert(offsetof(rq_step_header, n_tokens) == 1 * 4, "STEP_N_TOKENS");
_Static_assert(offsetof(rq_step_header, n_rows) == 3 * 4, "STEP_N_ROWS");
_Static_assert(offsetof(rq_step_header, token_id) == 6 * 4, "STEP_TOKEN_ID");
_Static_assert(offsetof(rq_step_header, token_pos) == 7 * 4, "STEP_TOKEN_POS");
_Static_assert(offsetof(rq_step_header, token_run) == 8 * 4, "STEP_TOKEN_RUN");
_Static_assert(offsetof(rq_step_header, token_slot) == 9 * 4, "STEP_TOKEN_SLOT");
_Static_assert(offsetof(rq_step_header, runs) == 17 * 4, "STEP_RUNS");
_Static_assert(offsetof(rq_step_header, work) == 18 * 4, "STEP_WORK");
_Static_assert(offsetof(rq_step_header, n_work) == 26 * 4, "STEP_N_WORK");
_Static_assert(offsetof(rq_step_header, encodes) == 34 * 4, "STEP_ENCODES");
_Static_assert(offsetof(rq_step_header, n_encodes) == 42 * 4, "STEP_N_ENCODES");
_Static_assert(offsetof(rq_step_header, rows) == 50 * 4, "STEP_ROWS");
_Static_assert(sizeof(rq_run) == 8 * 4 && sizeof(rq_work) == 8 * 4 && sizeof(rq_row) == 2 * 4, "*_WORDS");
_Static_assert((int)CUDA_SLABS == (int)RQ_MAX_SLABS, "slabs of a pool");

rq_status cu_pool_make(cu_device *d, const rq_cache_pool *pool, const rq_step_caps *caps, rq_memory **out,
                       rq_error *err)
{
    const rq_cache_group *g = pool->group;
    const rq_page_layout *l = &pool->layout;
    const rq_coded_layout *c = &pool->coded_layout;
    cuda_pool *b = rq_calloc(1, sizeof *b);
    if (!b) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the description of a cache");
    *b = (cuda_pool){
        .table = cu_address(pool->table),
        .coded_table = cu_address(pool->coded_table),
        .scratch = cu_address(pool->scratch),
        .page_bytes = l->page_bytes,
        .layer_bytes = l->layer_bytes,
        .head_bytes = l->head_bytes,
        .k_bytes = l->k_bytes,
        .v_bytes = l->v_bytes,
        .coded_page_bytes = c->page_bytes,
        .coded_layer_bytes = c->layer_bytes,
        .coded_head_bytes = c->head_bytes,
        .coded_k_bytes = c->k_bytes,
        .coded_v_bytes = c->v_bytes,
        .coded_k_scale_bytes = c->k_scale_bytes,
        .shift = l->slab_shift,
        .coded_shift = c->slab_shift,
        .n_pages = pool->n_pages,
        .n_scratch = pool->n_scratch,
        .n_coded = pool->n_coded,
        .dim_k = g->dim_k,
        .dim_v = g->dim_v,
        .n_heads = g->n_heads,
        .type_k = (uint32_t)g->type_k,
        .type_v = (uint32_t)g->type_v,
        .form_k = (uint32_t)g->form_k,
        .form_v = (uint32_t)g->form_v,
        .window = g->window,
        .max_pages = caps->max_pages,
        .n_seqs = caps->n_seqs,
        .sinks = g->sink_pages,
        .recent = g->recent_pages,
        .is_coded = rq_group_is_coded(g),
    };
    for (uint32_t i = 0; i < pool->n_slabs; i++) b->slabs[i] = cu_address(pool->slabs[i]);
    for (uint32_t i = 0; i < pool->n_coded_slabs; i++) b->coded_slabs[i] = cu_address(pool->coded_slabs[i]);
    rq_status status = cu_adopt(&d->base, b, sizeof *b, "the description of a cache", out, err);
    rq_free(b);
    return status;
}
