/* cache.h - the shape of the key/value cache as every backend sees it (DESIGN section 5).
 *
 * Layers with equal (KV heads, head sizes, window, formats) form a group. A group owns a pool of pages of
 * RQ_PAGE_TOKENS tokens; one page holds all layers of the group for these tokens. A sequence finds its pages
 * through the group's table: entry (sequence slot, page index) -> page id. Page index i covers the positions
 * [64 i, 64 i + 64). Pages live in slabs of at most 1 GiB: page id -> slab[id >> slab_shift] +
 * (id & slab_mask) * page_bytes. */
#ifndef RQ_CACHE_H
#define RQ_CACHE_H

#include "backends/formats/types.h"

#include <stdint.h>

enum { RQ_PAGE_TOKENS = 64, RQ_MAX_GROUPS = 8 };

#define RQ_NO_PAGE        UINT32_MAX
#define RQ_MAX_SLAB_BYTES (1ull << 30)

typedef struct rq_cache_group {
    uint32_t n_layers;     /* layers of the model in this group; a layer is known by its index in the group */
    uint32_t n_heads;      /* KV heads */
    uint32_t dim_k, dim_v; /* elements of one head of K and of V; multiples of 8 */
    uint32_t window;       /* 0: none, else a query at p sees p - window < position <= p */
    rq_type type_k, type_v; /* exact form: F16 or F32 */
} rq_cache_group;

/* Layout of an exact page, bytes from the page's start. Per layer and KV head: K transposed, [dim_k][64], so
 * that scores of a whole page need no sum across lanes and have the same bits for every number of queries;
 * then V, [64][dim_v]. Everything is contiguous and 64-byte aligned. */
typedef struct rq_page_layout {
    uint64_t k_bytes, v_bytes; /* of one head's block, rounded up to 64 */
    uint64_t head_bytes;       /* k_bytes + v_bytes */
    uint64_t layer_bytes;      /* n_heads * head_bytes */
    uint64_t page_bytes;       /* n_layers * layer_bytes */
    uint32_t slab_shift;       /* pages per slab = 1 << slab_shift, at most RQ_MAX_SLAB_BYTES (or 1 page) */
} rq_page_layout;

static inline rq_page_layout rq_page_layout_of(const rq_cache_group *g)
{
    rq_page_layout l;
    uint64_t size_k = g->type_k == RQ_TYPE_F32 ? 4 : 2, size_v = g->type_v == RQ_TYPE_F32 ? 4 : 2;
    l.k_bytes = (RQ_PAGE_TOKENS * (uint64_t)g->dim_k * size_k + 63) & ~63ull;
    l.v_bytes = (RQ_PAGE_TOKENS * (uint64_t)g->dim_v * size_v + 63) & ~63ull;
    l.head_bytes = l.k_bytes + l.v_bytes;
    l.layer_bytes = g->n_heads * l.head_bytes;
    l.page_bytes = g->n_layers * l.layer_bytes;
    l.slab_shift = 0;
    while ((l.page_bytes << (l.slab_shift + 1)) <= RQ_MAX_SLAB_BYTES && l.slab_shift < 20) l.slab_shift++;
    return l;
}

/* Context splits: a query's attention is computed over splits of this many pages, cut at absolute positions,
 * and the partial results are merged in ascending order. A constant, so that a query's bits depend on its
 * position only; the work list may give the splits of one query to different workers or to one. */
enum { RQ_SPLIT_PAGES = 8 };

#endif
