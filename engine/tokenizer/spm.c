/* The merging of SentencePiece's BPE models: starting from characters, the adjacent pair whose concatenation
 * is the token with the highest score is merged, the leftmost of equals first. What is no token in the end is
 * spelled with byte tokens. A whole text is one word, so everything is O(n log n). */
#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

/* Notes the pair that begins at node i and queues it when together it is a token. */
static bool note_pair(rq_encoder *e, const uint8_t *text, int32_t i)
{
    const rq_tokenizer *tok = e->tok;
    rq_spm_node *node = &e->spm_nodes[i];
    node->rank = UINT32_MAX;
    if (node->next < 0) return true;
    uint32_t len = node->len + e->spm_nodes[node->next].len;
    int32_t id = len <= tok->max_key_bytes ? rq_symbols_find(&tok->symbols, text + node->offset, len) : -1;
    if (id < 0) return true;
    node->rank = tok->score_rank[id];
    return rq_queue_push(&e->queue, node->rank, (uint32_t)i);
}

rq_status rq_spm_text(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        unsigned bytes = rq_utf8_length(text + i, len - i);
        if (!bytes) bytes = 1;
        if (!rq_grow((void **)&e->spm_nodes, &e->spm_nodes_cap, n + 1, sizeof *e->spm_nodes))
            return rq_no_memory(err);
        e->spm_nodes[n] = (rq_spm_node){(uint32_t)i, bytes, (int32_t)n - 1, (int32_t)n + 1, UINT32_MAX};
        n++;
        i += bytes;
    }
    if (!n) return RQ_OK;
    rq_spm_node *node = e->spm_nodes;
    node[n - 1].next = -1;
    if (!rq_queue_start(&e->queue, n, e->tok->n_ranks)) return rq_no_memory(err);
    for (size_t i = 0; i < n; i++)
        if (!note_pair(e, text, (int32_t)i)) return rq_no_memory(err);
    rq_queue_item top;
    rq_queue_result result;
    while ((result = rq_queue_pop(&e->queue, &top)) == RQ_QUEUE_ITEM) {
        rq_spm_node *left = &node[top.left];
        /* An entry of a pair that is no more may have the rank of the pair that is there now. Then its turn has come
         * just as well. */
        if (left->rank != top.rank) continue;
        rq_spm_node *right = &node[left->next];
        left->len += right->len;
        left->next = right->next;
        right->rank = UINT32_MAX;
        if (left->next >= 0) node[left->next].prev = (int32_t)top.left;
        if (left->prev >= 0 && !note_pair(e, text, left->prev)) return rq_no_memory(err);
        if (!note_pair(e, text, (int32_t)top.left)) return rq_no_memory(err);
    }
    if (result == RQ_QUEUE_NO_MEMORY) return rq_no_memory(err);
    rq_status status = RQ_OK;
    for (int32_t i = 0; !status && i >= 0; i = node[i].next) {
        int32_t id = rq_symbols_find(&e->tok->symbols, text + node[i].offset, node[i].len);
        status = id >= 0 ? rq_emit(e, id, err) : rq_emit_bytes(e, text + node[i].offset, node[i].len, err);
    }
    return status;
}
