#include "backends/vulkan/pool.h"

#include "backends/base/mem.h"

/* As POOL_* and G_* of shaders/pages.glsl. */
typedef struct pool_block {
    uint64_t slabs[512];
    uint64_t table, coded_table, scratch, unused;
    uint32_t words[32];
} pool_block;

_Static_assert(offsetof(pool_block, table) == 512 * 8, "POOL_TABLE");
_Static_assert(offsetof(pool_block, words) == 1032 * 4, "POOL_WORDS");
/* Words of the step that shaders know by number (shaders/common.glsl). */
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

uint64_t vk_pool_block_bytes(void)
{
    return sizeof(pool_block);
}

rq_status vk_pool_block(vk_device *d, const rq_cache_pool *pool, const rq_step_caps *caps, rq_memory **out,
                        rq_error *err)
{
    pool_block *b = rq_calloc(1, sizeof *b);
    if (!b) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the description of a cache");
    for (uint32_t i = 0; i < pool->n_slabs; i++) b->slabs[i] = vk_address(pool->slabs[i]);
    for (uint32_t i = 0; i < pool->n_coded_slabs; i++)
        b->slabs[RQ_MAX_SLABS + i] = vk_address(pool->coded_slabs[i]);
    b->table = vk_address(pool->table);
    b->coded_table = vk_address(pool->coded_table);
    b->scratch = vk_address(pool->scratch);
    const rq_cache_group *g = pool->group;
    const rq_page_layout *l = &pool->layout;
    const rq_coded_layout *c = &pool->coded_layout;
    const uint32_t words[] = {g->dim_k,
                              g->dim_v,
                              g->n_heads,
                              pool->n_pages,
                              l->slab_shift,
                              (uint32_t)(l->page_bytes / 16),
                              (uint32_t)(l->layer_bytes / 16),
                              (uint32_t)(l->head_bytes / 16),
                              (uint32_t)(l->k_bytes / 16),
                              (uint32_t)g->type_k,
                              (uint32_t)g->type_v,
                              g->window,
                              caps->max_pages,
                              caps->n_seqs,
                              g->sink_pages,
                              g->recent_pages,
                              rq_group_is_coded(g),
                              (uint32_t)g->form_k,
                              (uint32_t)g->form_v,
                              c->slab_shift,
                              (uint32_t)(c->page_bytes / 16),
                              (uint32_t)(c->layer_bytes / 16),
                              (uint32_t)(c->head_bytes / 16),
                              (uint32_t)(c->k_bytes / 16),
                              (uint32_t)(c->v_bytes / 16),
                              (uint32_t)(c->k_scale_bytes / 16),
                              pool->n_scratch,
                              pool->n_coded,
                              (uint32_t)(l->v_bytes / 16)};
    for (uint32_t i = 0; i < sizeof words / sizeof *words; i++) b->words[i] = words[i];
    rq_status status = vk_adopt(&d->base, b, sizeof *b, "the description of a cache", out, err);
    rq_free(b);
    return status;
}
