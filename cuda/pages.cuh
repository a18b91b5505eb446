// pages.cuh - where a page of the cache lies and what its coded forms look like (backends/cache.h).
#ifndef RQ_CUDA_PAGES_CUH
#define RQ_CUDA_PAGES_CUH

#include "cuda/common.cuh"

CONSTANT uint32_t SAME = 0, Q8_0 = 1, C2 = 3, C3 = 4, C4 = 5, C42 = 6;

DEVICE bool page_exists(const cuda_pool *pool, uint32_t page)
{
    return page < pool->n_pages + pool->n_scratch;
}

// Start of the block of one layer and KV head in an exact page, which may be a scratch page.
DEVICE uint8_t *page_block(const cuda_pool *pool, uint32_t page, uint32_t layer, uint32_t head)
{
    uint64_t at = head * pool->head_bytes;
    if (page >= pool->n_pages) return pool->scratch + (page - pool->n_pages) * pool->layer_bytes + at;
    return pool->slabs[page >> pool->shift] + (page & ((1u << pool->shift) - 1)) * pool->page_bytes +
           layer * pool->layer_bytes + at;
}

DEVICE uint8_t *coded_block(const cuda_pool *pool, uint32_t page, uint32_t layer, uint32_t head)
{
    return pool->coded_slabs[page >> pool->coded_shift] +
           (page & ((1u << pool->coded_shift) - 1)) * pool->coded_page_bytes +
           layer * pool->coded_layer_bytes + head * pool->coded_head_bytes;
}

// Forms of one span; C42 is made of two of them (span_at).
DEVICE bool is_codec(uint32_t form)
{
    return form >= C2 && form <= C4;
}
DEVICE uint32_t bits_of(uint32_t form)
{
    return form == Q8_0 ? 8 : form - 1;
}
DEVICE uint32_t groups_of(uint32_t form, uint32_t d)
{
    return !is_codec(form) ? (d + 31) / 32 : d < 64 ? 1 : d / 64;
}

DEVICE uint32_t group_size(uint32_t form, uint32_t d, uint32_t i)
{
    if (!is_codec(form)) return min_u(d - 32 * i, 32);
    uint32_t n = groups_of(form, d), units = d / 8;
    return 8 * (units / n + (uint32_t)(i < units % n));
}

// Physical words made from n logical ones.
DEVICE uint32_t words_of(uint32_t form, uint32_t n)
{
    uint32_t bits = bits_of(form);
    return bits == 3 ? n / 4 * 3 + n % 4 : bits == 2 ? (n + 1) / 2 : n;
}

// Logical word i of a row of physical words `stride` apart, n logical words in all.
DEVICE uint32_t logical_word(const uint32_t *words, uint32_t stride, uint32_t form, uint32_t i, uint32_t n)
{
    if (form == C4) return words[i * stride];
    if (form == C3) {
        uint32_t set = i / 4, j = i % 4;
        if (4 * set + 4 > n || j < 3) return words[(3 * set + j) * stride] & 0x77777777u;
        uint32_t a = words[3 * set * stride], b = words[(3 * set + 1) * stride],
                 c = words[(3 * set + 2) * stride];
        return (a >> 3 & 0x11111111u) | (b >> 2 & 0x22222222u) | (c >> 1 & 0x44444444u);
    }
    return words[i / 2 * stride] >> 2 * (i & 1) & 0x33333333u;
}

// Physical words of a span's K of one token, and of its V of one element.
DEVICE uint32_t k_words_of(uint32_t form, uint32_t size)
{
    if (form == Q8_0) return size / 4;
    uint32_t words = 0;
    for (uint32_t i = 0, n = groups_of(form, size); i < n; i++)
        words += words_of(form, group_size(form, size, i) / 8);
    return words;
}
DEVICE uint32_t v_words_of(uint32_t form)
{
    return form == Q8_0 ? 16 : words_of(form, 8);
}

// Elements [first, first + size) of a row, coded as a row of their own: their words begin at word `words` of the
// block, their scales at group `groups`.
struct span {
    uint32_t form, first, size, words, groups;
};

DEVICE uint32_t spans_of(uint32_t form)
{
    return form == C42 ? 2 : 1;
}

DEVICE span span_at(uint32_t form, bool is_v, uint32_t d, uint32_t i)
{
    span s = {form, 0, d, 0, 0};
    if (form != C42) return s;
    uint32_t half = (d / 8 + 1) / 2 * 8;
    s.form = C4;
    s.size = half;
    if (i == 0) return s;
    s.words = is_v ? half * v_words_of(C4) : 64 * k_words_of(C4, half);
    s.groups = groups_of(C4, half);
    s.form = C2;
    s.first = half;
    s.size = d - half;
    return s;
}

DEVICE float group_scale(const cuda_tables *tables, const uint8_t *scales, uint32_t form, uint32_t at)
{
    if (form == Q8_0) return half_float(((const uint16_t *)scales)[at]);
    return tables->scales[form - C2][scales[at]];
}

// Does a query at position p read page s in exact form (rq_kv_reads_exact)?
DEVICE uint32_t boundary_of(const cuda_pool *pool, uint32_t p)
{
    if (!pool->is_coded) return 0;
    uint32_t pages = (p + 1) / 64;
    return max_u(pages > pool->recent ? pages - pool->recent : 0, pool->sinks);
}

#endif
