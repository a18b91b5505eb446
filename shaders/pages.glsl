// pages.glsl - where a page of the cache lies (backends/cache.h). The pool's block in device memory is written by
// backends/vulkan/pool.c: addresses of the slabs and tables, then the geometry in words.
const uint POOL_SLABS = 0u, POOL_TABLE = 512u; // u64
const uint POOL_WORDS = 1032u;                 // u32: the first of the geometry
const uint G_DK = 0u, G_DV = 1u, G_HEADS = 2u, G_PAGES = 3u, G_SHIFT = 4u, G_PAGE_16 = 5u, G_LAYER_16 = 6u,
           G_HEAD_16 = 7u, G_K_16 = 8u, G_TYPE_K = 9u, G_TYPE_V = 10u, G_WINDOW = 11u, G_MAX_PAGES = 12u,
           G_SEQS = 13u;

uint pool_word(uint64_t pool, uint i)
{
    return U32(pool).d[POOL_WORDS + i];
}

// Start of the block of one layer and KV head in a page.
uint64_t page_block(uint64_t pool, uint page, uint layer, uint head)
{
    uint shift = pool_word(pool, G_SHIFT);
    return U64(pool).d[POOL_SLABS + (page >> shift)] +
           16ul * (uint64_t(page & (1u << shift) - 1u) * pool_word(pool, G_PAGE_16) +
                   layer * pool_word(pool, G_LAYER_16) + head * pool_word(pool, G_HEAD_16));
}
