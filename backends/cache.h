/* cache.h - the shape of the key/value cache as every backend sees it (DESIGN section 5).
 *
 * Layers with equal (KV heads, head sizes, window, formats) form a group. A group owns pools of pages of
 * RQ_PAGE_TOKENS tokens; one page holds all layers of the group for these tokens. Page index i of a sequence
 * covers the positions [64 i, 64 i + 64).
 *
 * A page has two forms. It is written in exact form. Groups with a compressed format encode it once, when it is
 * full, into its coded form. Each form has a pool of its own and a table of its own: entry (sequence slot, page
 * index) -> page id. Which form a query reads is a function of positions only: rq_kv_reads_exact. Pages live in
 * slabs of at most 1 GiB: page id -> slab[id >> slab_shift] + (id & slab_mask) * page_bytes.
 *
 * Scratch pages are exact pages that live for one wide step only (a prompt's pages that nobody will read exact
 * later): ids from n_pages on, one layer's bytes each, every layer uses the same. */
#ifndef RQ_CACHE_H
#define RQ_CACHE_H

#include "backends/formats/types.h"

#include <stdbool.h>
#include <stdint.h>

enum { RQ_PAGE_TOKENS = 64, RQ_MAX_GROUPS = 8 };

#define RQ_NO_PAGE        UINT32_MAX
#define RQ_MAX_SLAB_BYTES (1ull << 30)

/* What a coded page holds of K or of V. Codes are levels of a small table (formats/kv_codec.h). */
typedef enum rq_kv_form {
    RQ_KV_SAME, /* what the exact page holds, in its layout */
    RQ_KV_Q8_0, /* int8 and an f16 scale for each 32 elements of a row */
    RQ_KV_Q4_0, /* 4 bits, value = (code - 8) * scale, as above */
    RQ_KV_C2,   /* codec rows of 2, 3 and 4 bits and a one-byte scale for each group */
    RQ_KV_C3,
    RQ_KV_C4,
    RQ_KV_C42, /* the first half of a row as C4, the rest as C2: for rows whose first elements matter more */
    RQ_KV_TRIP /* as SAME, after a round trip through group->trip: codecs under measurement */
} rq_kv_form;

/* Replaces n rows of d elements (K or V of one head, as attention would see them: shifted and rotated) by what
 * a codec makes of them. Called by any thread. */
typedef void (*rq_kv_trip)(void *user, bool is_v, float *rows, uint32_t n, uint32_t d);

typedef struct rq_cache_group {
    uint32_t n_layers;     /* layers of the model in this group; a layer is known by its index in the group */
    uint32_t n_heads;      /* KV heads */
    uint32_t dim_k, dim_v; /* elements of one head of K and of V; multiples of 8 */
    uint32_t window;       /* 0: none, else a query at p sees p - window < position <= p */
    rq_type type_k, type_v;    /* exact form: F16, BF16 or F32 */
    rq_kv_form form_k, form_v; /* coded form; both SAME: pages have the exact form only */
    uint32_t sink_pages;       /* S: the first pages are always read exact */
    uint32_t recent_pages;     /* R / 64, at least 1 where there is a coded form */
    rq_kv_trip trip;
    void *trip_user;
} rq_cache_group;

static inline bool rq_group_is_coded(const rq_cache_group *g)
{
    return g->form_k != RQ_KV_SAME || g->form_v != RQ_KV_SAME;
}

/* The first page index that a query at position p sees; pages below it are never read again. */
static inline uint32_t rq_kv_first_page(const rq_cache_group *g, uint32_t p)
{
    return g->window != 0 && p >= g->window ? (p + 1 - g->window) / RQ_PAGE_TOKENS : 0;
}

/* B(p): a query at position p reads page index s exact if s < S or s >= B(p), else coded. A page is full for
 * at least 64 tokens before anybody reads it coded. */
static inline uint32_t rq_kv_boundary(const rq_cache_group *g, uint32_t p)
{
    if (!rq_group_is_coded(g)) return 0;
    uint32_t pages = (p + 1) / RQ_PAGE_TOKENS, b = pages > g->recent_pages ? pages - g->recent_pages : 0;
    return b > g->sink_pages ? b : g->sink_pages;
}

static inline bool rq_kv_reads_exact(const rq_cache_group *g, uint32_t p, uint32_t page_index)
{
    return page_index < g->sink_pages || page_index >= rq_kv_boundary(g, p);
}

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

static inline uint32_t rq_kv_slab_shift(uint64_t page_bytes)
{
    uint32_t shift = 0;
    while ((page_bytes << (shift + 1)) <= RQ_MAX_SLAB_BYTES && shift < 20) shift++;
    return shift;
}

static inline rq_page_layout rq_page_layout_of(const rq_cache_group *g)
{
    rq_page_layout l;
    uint64_t size_k = g->type_k == RQ_TYPE_F32 ? 4 : 2, size_v = g->type_v == RQ_TYPE_F32 ? 4 : 2;
    l.k_bytes = (RQ_PAGE_TOKENS * (uint64_t)g->dim_k * size_k + 63) & ~63ull;
    l.v_bytes = (RQ_PAGE_TOKENS * (uint64_t)g->dim_v * size_v + 63) & ~63ull;
    l.head_bytes = l.k_bytes + l.v_bytes;
    l.layer_bytes = g->n_heads * l.head_bytes;
    l.page_bytes = g->n_layers * l.layer_bytes;
    l.slab_shift = rq_kv_slab_shift(l.page_bytes);
    return l;
}

/* ---- coded pages ----------------------------------------------------------------------------------------
 *
 * A row (one token, one head) of d elements is cut into groups that share a scale: rq_kv_groups(d) of them for
 * the codec rows, 32 elements each (the last one perhaps fewer) for Q8_0 and Q4_0.
 *
 * Codes are kept in nibbles of 32-bit words, so that a word of K widens to eight elements of one token and a
 * word of V to eight tokens of one element: what integer dot products and matrix units take.
 *   K  logical word (token, r) of a group: nibble c is the code of the group's element 8 r + c.
 *   V  logical word (element, o): nibble c is the code of token 8 o + c of the page.
 * Physical words, from logical words w[0], w[1], ... (r of one group and token; o of one element):
 *   4 bits  p[i] = w[i]
 *   3 bits  four logical words are three: p[3 i + b] = w[4 i + b] | (bit b of every nibble of w[4 i + 3]) moved
 *           to bit 3 of the nibble, b = 0, 1, 2; one to three words left over at the end stay as they are
 *   2 bits  p[i] = w[2 i] | w[2 i + 1] << 2, an odd one at the end stays as it is
 *   8 bits  (Q8_0) words of four bytes: K (token, r) holds the elements 4 r .. 4 r + 3, V (element, o) the
 *           tokens 4 o .. 4 o + 3
 * Trellis order inside a group of G elements, W = G / 8: step i is the element 8 (i % W) + i / W. The
 * predecessor of (r, c) is (r - 1, c), and of (0, c) it is (W - 1, c - 1): for K the same nibble of the word
 * before, for V the same nibble of the word eight elements before.
 *
 * Per layer and KV head: [K words][V words][K scales][V scales], each a multiple of 16 bytes.
 *   K words   [group][physical word][64 tokens]      V words   [physical word][dim_v]
 *   scales    [group][64 tokens], a byte (codec rows) or an f16
 * With RQ_KV_SAME or RQ_KV_TRIP "words" are the block of the exact page and there are no scales.
 *
 * A row is cut into spans, each coded in a form of its own: one span, and two of RQ_KV_C42. Everything above holds
 * for a span as if it were a row; K words, V words and scales of the second follow those of the first. */

static inline bool rq_kv_form_is_code(rq_kv_form form)
{
    return form >= RQ_KV_C2 && form <= RQ_KV_C42;
}

/* Bits of a code, of RQ_KV_C42 in the mean; 0 for SAME and TRIP. */
static inline uint32_t rq_kv_bits(rq_kv_form form)
{
    static const uint8_t bits[] = {0, 8, 4, 2, 3, 4, 3, 0};
    return bits[form];
}

enum { RQ_KV_MAX_SPANS = 2 };

typedef struct rq_kv_span {
    rq_kv_form form;
    uint32_t first, size; /* elements of the row */
} rq_kv_span;

static inline uint32_t rq_kv_spans(rq_kv_form form)
{
    return form == RQ_KV_C42 ? 2 : 1;
}

/* Span i of a row of d elements. */
static inline rq_kv_span rq_kv_span_of(rq_kv_form form, uint32_t d, uint32_t i)
{
    uint32_t half = (d / 8 + 1) / 2 * 8;
    if (form != RQ_KV_C42) return (rq_kv_span){form, 0, d};
    return i == 0 ? (rq_kv_span){RQ_KV_C4, 0, half} : (rq_kv_span){RQ_KV_C2, half, d - half};
}

static inline uint32_t rq_kv_span_group_count(rq_kv_span span)
{
    uint32_t whole = span.size / 64;
    return whole > 1 ? whole : 1;
}

/* Groups of a row, and the size of one: as equal as multiples of 8 allow, the larger ones of a span first. */
static inline uint32_t rq_kv_groups(rq_kv_form form, uint32_t d)
{
    if (!rq_kv_form_is_code(form)) return (d + 31) / 32;
    uint32_t n = 0;
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) n += rq_kv_span_group_count(rq_kv_span_of(form, d, i));
    return n;
}

static inline uint32_t rq_kv_group_size(rq_kv_form form, uint32_t d, uint32_t i)
{
    if (!rq_kv_form_is_code(form)) return d - 32 * i < 32 ? d - 32 * i : 32;
    rq_kv_span span = rq_kv_span_of(form, d, 0);
    uint32_t n = rq_kv_span_group_count(span);
    if (i >= n) {
        i -= n;
        span = rq_kv_span_of(form, d, 1);
        n = rq_kv_span_group_count(span);
    }
    uint32_t units = span.size / 8;
    return 8 * (units / n + (i < units % n));
}

/* Physical words made from n logical ones. */
static inline uint32_t rq_kv_words(rq_kv_form form, uint32_t n)
{
    uint32_t bits = rq_kv_bits(form);
    return bits == 3 ? n / 4 * 3 + n % 4 : bits == 2 ? (n + 1) / 2 : n;
}

/* Physical words of K of one token, in a form of one span. */
static inline uint32_t rq_kv_k_words(rq_kv_form form, uint32_t dim_k)
{
    if (form == RQ_KV_Q8_0) return dim_k / 4;
    uint32_t words = 0;
    for (uint32_t i = 0, n = rq_kv_groups(form, dim_k); i < n; i++)
        words += rq_kv_words(form, rq_kv_group_size(form, dim_k, i) / 8);
    return words;
}

/* Physical words of V of one element, for the 64 tokens of a page, in a form of one span. */
static inline uint32_t rq_kv_v_words(rq_kv_form form)
{
    return form == RQ_KV_Q8_0 ? RQ_PAGE_TOKENS / 4 : rq_kv_words(form, RQ_PAGE_TOKENS / 8);
}

/* Words and groups of the spans before span i; with i = rq_kv_spans(form), of the whole block and row. */
static inline uint32_t rq_kv_span_words(rq_kv_form form, bool is_v, uint32_t d, uint32_t i)
{
    uint32_t words = 0;
    for (uint32_t s = 0; s < i; s++) {
        rq_kv_span span = rq_kv_span_of(form, d, s);
        words += is_v ? span.size * rq_kv_v_words(span.form)
                      : RQ_PAGE_TOKENS * rq_kv_k_words(span.form, span.size);
    }
    return words;
}

static inline uint32_t rq_kv_span_groups(rq_kv_form form, uint32_t d, uint32_t i)
{
    uint32_t groups = 0;
    for (uint32_t s = 0; s < i; s++) {
        rq_kv_span span = rq_kv_span_of(form, d, s);
        groups += rq_kv_groups(span.form, span.size);
    }
    return groups;
}

static inline uint32_t rq_kv_block_words(rq_kv_form form, bool is_v, uint32_t d)
{
    return rq_kv_span_words(form, is_v, d, rq_kv_spans(form));
}

typedef struct rq_coded_layout {
    uint64_t k_bytes, v_bytes, k_scale_bytes, v_scale_bytes; /* of one head */
    uint64_t head_bytes;                                     /* their sum */
    uint64_t layer_bytes, page_bytes;
    uint32_t slab_shift;
} rq_coded_layout;

static inline rq_coded_layout rq_coded_layout_of(const rq_cache_group *g)
{
    rq_page_layout exact = rq_page_layout_of(g);
    rq_coded_layout l = {.k_bytes = exact.k_bytes, .v_bytes = exact.v_bytes};
    if (rq_kv_bits(g->form_k)) {
        l.k_bytes = 4ull * rq_kv_block_words(g->form_k, false, g->dim_k);
        l.k_scale_bytes = (uint64_t)RQ_PAGE_TOKENS * rq_kv_groups(g->form_k, g->dim_k) *
                          (rq_kv_form_is_code(g->form_k) ? 1 : 2);
    }
    if (rq_kv_bits(g->form_v)) {
        l.v_bytes = 4ull * rq_kv_block_words(g->form_v, true, g->dim_v);
        l.v_scale_bytes = (uint64_t)RQ_PAGE_TOKENS * rq_kv_groups(g->form_v, g->dim_v) *
                          (rq_kv_form_is_code(g->form_v) ? 1 : 2);
    }
    l.head_bytes = l.k_bytes + l.v_bytes + l.k_scale_bytes + l.v_scale_bytes;
    l.layer_bytes = g->n_heads * l.head_bytes;
    l.page_bytes = g->n_layers * l.layer_bytes;
    l.slab_shift = rq_kv_slab_shift(l.page_bytes);
    return l;
}

/* Context splits: a query's attention is computed over splits of this many pages, cut at absolute positions,
 * and the partial results are merged in ascending order. A constant, so that a query's bits depend on its
 * position only; the work list may give the splits of one query to different workers or to one. */
enum { RQ_SPLIT_PAGES = 8 };

#endif
