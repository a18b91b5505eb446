// pages.glsl - where a page of the cache lies (backends/cache.h). The pool's block in device memory is written by
// backends/vulkan/pool.c: addresses of the slabs and tables, then the geometry in words.
const uint POOL_SLABS = 0u, POOL_CODED_SLABS = 256u, POOL_TABLE = 512u, POOL_CODED_TABLE = 513u, POOL_SCRATCH = 514u;
const uint POOL_WORDS = 1032u; // u32: the first of the geometry
const uint G_DK = 0u, G_DV = 1u, G_HEADS = 2u, G_PAGES = 3u, G_SHIFT = 4u, G_PAGE_16 = 5u, G_LAYER_16 = 6u,
           G_HEAD_16 = 7u, G_K_16 = 8u, G_TYPE_K = 9u, G_TYPE_V = 10u, G_WINDOW = 11u, G_MAX_PAGES = 12u,
           G_SEQS = 13u, G_SINK = 14u, G_RECENT = 15u, G_IS_CODED = 16u, G_FORM_K = 17u, G_FORM_V = 18u,
           G_C_SHIFT = 19u, G_C_PAGE_16 = 20u, G_C_LAYER_16 = 21u, G_C_HEAD_16 = 22u, G_C_K_16 = 23u,
           G_C_V_16 = 24u, G_C_KS_16 = 25u, G_SCRATCH_PAGES = 26u, G_CODED_PAGES = 27u, G_V_16 = 28u;

uint pool_word(uint64_t pool, uint i)
{
    return U32(pool).d[POOL_WORDS + i];
}

bool page_exists(uint64_t pool, uint page)
{
    return page < pool_word(pool, G_PAGES) + pool_word(pool, G_SCRATCH_PAGES);
}

// Start of the block of one layer and KV head in an exact page, which may be a scratch page.
uint64_t page_block(uint64_t pool, uint page, uint layer, uint head)
{
    uint shift = pool_word(pool, G_SHIFT), n = pool_word(pool, G_PAGES), at = head * pool_word(pool, G_HEAD_16);
    if (page >= n)
        return U64(pool).d[POOL_SCRATCH] + 16ul * (uint64_t(page - n) * pool_word(pool, G_LAYER_16) + at);
    return U64(pool).d[POOL_SLABS + (page >> shift)] +
           16ul * (uint64_t(page & (1u << shift) - 1u) * pool_word(pool, G_PAGE_16) +
                   layer * pool_word(pool, G_LAYER_16) + at);
}

uint64_t coded_block(uint64_t pool, uint page, uint layer, uint head)
{
    uint shift = pool_word(pool, G_C_SHIFT);
    return U64(pool).d[POOL_CODED_SLABS + (page >> shift)] +
           16ul * (uint64_t(page & (1u << shift) - 1u) * pool_word(pool, G_C_PAGE_16) +
                   layer * pool_word(pool, G_C_LAYER_16) + head * pool_word(pool, G_C_HEAD_16));
}

float load_exact(uint64_t p, uint i, uint type)
{
    if (type == 0u) return F32(p).d[i];
    uint h = uint(U16(p).d[i]);
    return type == 1u ? half_bits(h) : uintBitsToFloat(h << 16);
}

// ---- coded forms (backends/cache.h) -------------------------------------------------------------------------
const uint SAME = 0u, Q8_0 = 1u, C2 = 3u, C3 = 4u, C4 = 5u, C42 = 6u;

// Tables of the codec rows, behind those of the weights (backends/vulkan/tables.c).
const uint TAB_LEVELS = 36032u; // int8 [3 rows][2][16]
const uint TAB_SCALES = 36128u; // f32 [3 rows][256]
const uint TAB_CODEC = 39200u;  // i32, per row: base, slope and offset of the search, gains of K and V (f32)
const uint TAB_LOG2 = 39260u;   // u8 [128]

bool is_codec(uint form)
{
    return form >= C2 && form <= C4;
}

uint bits_of(uint form)
{
    return form == Q8_0 ? 8u : form - 1u;
}

uint groups_of(uint form, uint d)
{
    return !is_codec(form) ? (d + 31u) / 32u : d < 64u ? 1u : d / 64u;
}

uint group_size(uint form, uint d, uint i)
{
    if (!is_codec(form)) return min(d - 32u * i, 32u);
    uint n = groups_of(form, d), units = d / 8u;
    return 8u * (units / n + uint(i < units % n));
}

// Physical words made from n logical ones.
uint words_of(uint form, uint n)
{
    uint bits = bits_of(form);
    return bits == 3u ? n / 4u * 3u + n % 4u : bits == 2u ? (n + 1u) / 2u : n;
}

// Spans of a row, each coded in a form of its own: one, and two of C42.
uint spans_of(uint form)
{
    return form == C42 ? 2u : 1u;
}

uint span_form(uint form, uint i)
{
    return form != C42 ? form : i == 0u ? C4 : C2;
}

uint span_first(uint form, uint d, uint i)
{
    return i == 0u ? 0u : (d / 8u + 1u) / 2u * 8u;
}

uint span_size(uint form, uint d, uint i)
{
    uint half_d = (d / 8u + 1u) / 2u * 8u;
    return form != C42 ? d : i == 0u ? half_d : d - half_d;
}
