/* The merging of SentencePiece's BPE models: starting from characters, the adjacent pair whose concatenation
 * is the token with the highest score is merged, the leftmost of equals first. What is no token in the end is
 * spelled with byte tokens. A whole text is one word, so everything is O(n log n). */
#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

static bool higher(rq_spm_entry a, rq_spm_entry b)
{
    return a.score != b.score ? a.score > b.score : a.left < b.left;
}

/* Adds the pair (left, right) when together they are a token. */
static bool try_pair(rq_encoder *e, size_t *n_heap, const uint8_t *text, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return true;
    const rq_tokenizer *tok = e->tok;
    const rq_spm_node *a = &e->spm_nodes[left], *b = &e->spm_nodes[right];
    uint32_t len = a->len + b->len;
    if (len > tok->max_key_bytes) return true;
    int32_t id = rq_symbols_find(&tok->symbols, text + a->offset, len);
    if (id < 0) return true;
    if (!rq_grow((void **)&e->spm_heap, &e->spm_heap_cap, *n_heap + 1, sizeof *e->spm_heap)) return false;
    rq_spm_entry item = {tok->score[id], (uint32_t)left, len}, *heap = e->spm_heap;
    size_t i = (*n_heap)++;
    for (; i && higher(item, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
    return true;
}

static rq_spm_entry pop(rq_spm_entry *heap, size_t *n_heap)
{
    rq_spm_entry top = heap[0], item = heap[--*n_heap];
    size_t n = *n_heap, i = 0;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && higher(heap[child + 1], heap[child])) child++;
        if (!higher(heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
    return top;
}

rq_status rq_spm_text(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    size_t n = 0, heap = 0;
    for (size_t i = 0; i < len;) {
        unsigned bytes = rq_utf8_length(text + i, len - i);
        if (!bytes) bytes = 1;
        if (!rq_grow((void **)&e->spm_nodes, &e->spm_nodes_cap, n + 1, sizeof *e->spm_nodes))
            return rq_no_memory(err);
        e->spm_nodes[n] = (rq_spm_node){(uint32_t)i, bytes, (int32_t)n - 1, (int32_t)n + 1};
        n++;
        i += bytes;
    }
    if (!n) return RQ_OK;
    rq_spm_node *node = e->spm_nodes;
    node[n - 1].next = -1;
    for (size_t i = 1; i < n; i++)
        if (!try_pair(e, &heap, text, (int32_t)i - 1, (int32_t)i)) return rq_no_memory(err);
    while (heap) {
        rq_spm_entry top = pop(e->spm_heap, &heap);
        rq_spm_node *left = &node[top.left];
        if (!left->len || left->next < 0) continue;
        rq_spm_node *right = &node[left->next];
        /* Symbols only grow, so an equal length means an unchanged pair. */
        if (left->len + right->len != top.len) continue;
        left->len = top.len;
        right->len = 0;
        left->next = right->next;
        if (left->next >= 0) node[left->next].prev = (int32_t)top.left;
        if (!try_pair(e, &heap, text, left->prev, (int32_t)top.left) ||
            !try_pair(e, &heap, text, (int32_t)top.left, left->next))
            return rq_no_memory(err);
    }
    rq_status status = RQ_OK;
    for (int32_t i = 0; !status && i >= 0; i = node[i].next) {
        int32_t id = rq_symbols_find(&e->tok->symbols, text + node[i].offset, node[i].len);
        status = id >= 0 ? rq_emit(e, id, err) : rq_emit_bytes(e, text + node[i].offset, node[i].len, err);
    }
    return status;
}
