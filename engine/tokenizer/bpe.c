/* Byte-pair encoding: the adjacent pair with the lowest rank is merged, the leftmost of equals first, until
 * no pair has a rank. Short words scan for the lowest rank; long ones keep a heap, so that a word of n
 * symbols takes O(n log n). */
#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#include <string.h>

enum { SHORT_WORD = 32 };

rq_status rq_no_memory(rq_error *err)
{
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory in the tokenizer");
}

bool rq_tokens_push(rq_tokens *tokens, rq_token id)
{
    if (tokens->n == tokens->cap &&
        !rq_grow((void **)&tokens->ids, &tokens->cap, tokens->n + 1, sizeof *tokens->ids))
        return false;
    tokens->ids[tokens->n++] = id;
    return true;
}

rq_status rq_emit(rq_encoder *e, rq_token id, rq_error *err)
{
    return rq_tokens_push(e->out, id) ? RQ_OK : rq_no_memory(err);
}

rq_status rq_emit_bytes(rq_encoder *e, const uint8_t *bytes, size_t len, rq_error *err)
{
    rq_token unknown = e->tok->special[RQ_SPECIAL_UNK];
    /* Some files name a control token as the unknown one; text must not be able to produce it. */
    if (unknown >= 0 && e->tok->type[unknown] == RQ_TOKEN_CONTROL) unknown = -1;
    for (size_t i = 0; i < len; i++) {
        rq_token id = e->tok->token_of_byte[bytes[i]];
        if (id < 0) id = unknown;
        if (id >= 0) {
            if (!rq_tokens_push(e->out, id)) return rq_no_memory(err);
            continue;
        }
        /* Vocabularies made from text lack the bytes UTF-8 never uses: they become U+FFFD. */
        static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD};
        for (int k = 0; k < 3; k++) {
            rq_token part = e->tok->token_of_byte[replacement[k]];
            if (part >= 0 && !rq_tokens_push(e->out, part)) return rq_no_memory(err);
        }
    }
    return RQ_OK;
}

/* `word` is what the negative ids of characters without a symbol are offsets into. */
static rq_status emit_symbol(rq_encoder *e, int32_t id, const uint8_t *word, size_t len, rq_error *err)
{
    const rq_tokenizer *tok = e->tok;
    if (id >= 0 && (size_t)id < tok->n_tokens) return rq_emit(e, id, err);
    if (id >= 0) { /* only merges know it */
        rq_span key = tok->symbols.key[id];
        return rq_emit_bytes(e, tok->symbols.pool + key.offset, key.len, err);
    }
    size_t offset = (size_t)(-2 - (int64_t)id);
    unsigned n = tok->algorithm == RQ_ALGO_BYTE_BPE ? 1 : rq_utf8_length(word + offset, len - offset);
    return rq_emit_bytes(e, word + offset, n ? n : 1, err);
}

static uint32_t rank_of(const rq_tokenizer *tok, int32_t left, int32_t right, int32_t *result)
{
    const rq_pair *pair = rq_pairs_find(&tok->merges, left, right);
    if (!pair) return UINT32_MAX;
    *result = pair->result;
    return pair->rank;
}

static size_t merge_short(const rq_tokenizer *tok, int32_t *id, size_t n)
{
    uint32_t rank[SHORT_WORD];
    int32_t result[SHORT_WORD];
    for (size_t i = 0; i < n; i++) {
        result[i] = -1;
        rank[i] = i + 1 < n ? rank_of(tok, id[i], id[i + 1], &result[i]) : UINT32_MAX;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == UINT32_MAX) break;
        id[best] = result[best];
        for (size_t i = best + 1; i + 1 < n; i++) {
            id[i] = id[i + 1];
            rank[i] = rank[i + 1];
            result[i] = result[i + 1];
        }
        n--;
        if (best) rank[best - 1] = rank_of(tok, id[best - 1], id[best], &result[best - 1]);
        if (best + 1 < n) rank[best] = rank_of(tok, id[best], id[best + 1], &result[best]);
    }
    return n;
}

/* Notes the pair that begins at node i and queues it when it has a rank. */
static bool note_pair(rq_encoder *e, int32_t i)
{
    rq_node *node = &e->nodes[i];
    node->rank =
        node->next < 0 ? UINT32_MAX : rank_of(e->tok, node->id, e->nodes[node->next].id, &node->result);
    return node->rank == UINT32_MAX || rq_queue_push(&e->queue, node->rank, (uint32_t)i);
}

/* nodes[0 .. n-1] hold the ids; afterwards the chain from node 0 along `next` holds the merged ones. */
static bool merge_long(rq_encoder *e, size_t n)
{
    rq_node *node = e->nodes;
    rq_queue_item top;
    rq_queue_result result;
    if (!rq_queue_start(&e->queue, n, e->tok->n_ranks)) return false;
    for (size_t i = 0; i < n; i++) {
        node[i].prev = (int32_t)i - 1;
        node[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < n; i++)
        if (!note_pair(e, (int32_t)i)) return false;
    while ((result = rq_queue_pop(&e->queue, &top)) == RQ_QUEUE_ITEM) {
        rq_node *left = &node[top.left];
        if (left->rank != top.rank) continue; /* the pair has changed since, or is no more */
        rq_node *right = &node[left->next];
        left->id = left->result;
        left->next = right->next;
        right->rank = UINT32_MAX;
        if (left->next >= 0) node[left->next].prev = (int32_t)top.left;
        if (left->prev >= 0 && !note_pair(e, left->prev)) return false;
        if (!note_pair(e, (int32_t)top.left)) return false;
    }
    return result == RQ_QUEUE_EMPTY;
}

/* Merges and emits the n symbols whose ids stand in e->nodes. */
static rq_status merge(rq_encoder *e, size_t n, const uint8_t *word, size_t len, rq_error *err)
{
    rq_status status = RQ_OK;
    if (n <= SHORT_WORD) {
        int32_t id[SHORT_WORD];
        for (size_t i = 0; i < n; i++) id[i] = e->nodes[i].id;
        n = merge_short(e->tok, id, n);
        for (size_t i = 0; !status && i < n; i++) status = emit_symbol(e, id[i], word, len, err);
        return status;
    }
    if (!merge_long(e, n)) return rq_no_memory(err);
    for (int32_t i = 0; !status && i >= 0; i = e->nodes[i].next)
        status = emit_symbol(e, e->nodes[i].id, word, len, err);
    return status;
}

rq_status rq_bpe_word(rq_encoder *e, const uint8_t *word, size_t len, rq_error *err)
{
    const rq_tokenizer *tok = e->tok;
    if (tok->whole_words_first) {
        rq_token id = rq_symbols_find(&tok->symbols, word, len);
        if (id >= 0 && (size_t)id < tok->n_tokens) return rq_emit(e, id, err);
    }
    if (!rq_grow((void **)&e->nodes, &e->nodes_cap, len, sizeof *e->nodes)) return rq_no_memory(err);
    for (size_t i = 0; i < len; i++) {
        int32_t id = tok->symbol_of_byte[word[i]];
        e->nodes[i].id = id >= 0 ? id : -2 - (int32_t)i;
    }
    return merge(e, len, word, len, err);
}

rq_status rq_bpe_characters(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err)
{
    const rq_tokenizer *tok = e->tok;
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        unsigned bytes = rq_utf8_length(text + i, len - i);
        int32_t id = -1;
        if (bytes == 1)
            id = tok->symbol_of_byte[text[i]];
        else if (bytes)
            id = rq_symbols_find(&tok->symbols, text + i, bytes);
        if (!rq_grow((void **)&e->nodes, &e->nodes_cap, n + 1, sizeof *e->nodes)) return rq_no_memory(err);
        e->nodes[n++].id = id >= 0 ? id : -2 - (int32_t)i;
        i += bytes ? bytes : 1;
    }
    return merge(e, n, text, len, err);
}
