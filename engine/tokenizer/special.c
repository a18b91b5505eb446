/* Special tokens are found with an Aho-Corasick automaton (Aho and Corasick, 1975) over the reversed texts,
 * run over the text from its end: its state at a position then names the longest special token that starts
 * there, and the chain of suffix links names the shorter ones. One pass, whatever the number of special
 * tokens. */
#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#include <stdlib.h>

enum { SPECIAL_TEXT_LIMIT_BYTES = 16 << 20 };

typedef struct rq_ac_node {
    uint32_t fail;  /* node of the longest proper suffix */
    uint32_t found; /* this node or the first on its suffix chain that is a whole token; 0: none */
    rq_token id;    /* token that ends here, -1: none */
    uint32_t len;   /* bytes from the root */
} rq_ac_node;

struct rq_matcher {
    rq_pairs edge; /* (node, byte) -> node */
    uint32_t root[256];
    rq_ac_node *node;
    size_t n_nodes;
};

void rq_matcher_free(rq_matcher *m)
{
    if (!m) return;
    rq_pairs_free(&m->edge);
    rq_free(m->node);
    rq_free(m);
}

static uint32_t step(const rq_matcher *m, uint32_t node, uint8_t byte)
{
    if (!node) return m->root[byte];
    const rq_pair *edge = rq_pairs_find(&m->edge, (int32_t)node, byte);
    return edge ? (uint32_t)edge->result : 0;
}

/* Adds one text, last byte first. */
static bool insert(rq_matcher *m, const uint8_t *text, uint32_t len, rq_token id, uint32_t *parent)
{
    uint32_t at = 0;
    for (uint32_t i = len; i-- > 0;) {
        uint32_t next = step(m, at, text[i]);
        if (!next) {
            bool added;
            next = (uint32_t)m->n_nodes;
            if (!at)
                m->root[text[i]] = next;
            else if (!rq_pairs_add(&m->edge, (int32_t)at, text[i], 0, (int32_t)next, &added))
                return false;
            m->node[next] = (rq_ac_node){0, 0, -1, m->node[at].len + 1};
            parent[next] = at << 8 | text[i];
            m->n_nodes++;
        }
        at = next;
    }
    if (m->node[at].id < 0) m->node[at].id = id; /* ids ascend: of equal texts the lower id counts */
    return true;
}

/* Sets the links of all nodes, shorter ones first. `order` is scratch of n_nodes, parent as insert left it.
 */
static bool link_nodes(rq_matcher *m, const uint32_t *parent, uint32_t *order)
{
    uint32_t longest = 0;
    for (size_t i = 0; i < m->n_nodes; i++)
        if (m->node[i].len > longest) longest = m->node[i].len;
    uint32_t *start = rq_calloc((size_t)longest + 2, sizeof *start);
    if (!start) return false;
    for (size_t i = 0; i < m->n_nodes; i++) start[m->node[i].len + 1]++;
    for (uint32_t l = 0; l < longest; l++) start[l + 1] += start[l];
    for (size_t i = 0; i < m->n_nodes; i++) order[start[m->node[i].len]++] = (uint32_t)i;
    rq_free(start);
    for (size_t i = 1; i < m->n_nodes; i++) { /* order[0] is the root */
        uint32_t at = order[i], up = parent[at] >> 8, next = 0;
        uint8_t byte = (uint8_t)parent[at];
        if (up) {
            uint32_t f = m->node[up].fail;
            while (!(next = step(m, f, byte)) && f) f = m->node[f].fail;
        }
        m->node[at].fail = next;
        m->node[at].found = m->node[at].id >= 0 ? at : m->node[next].found;
    }
    return true;
}

rq_status rq_matcher_create(const rq_symbols *symbols, const rq_span *text, const rq_token *ids, size_t n,
                            rq_matcher **out, rq_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) bytes += text[ids[i]].len;
    if (bytes > SPECIAL_TEXT_LIMIT_BYTES - 2)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "the vocabulary's special tokens are %zu bytes of text, more than %d", bytes,
                       SPECIAL_TEXT_LIMIT_BYTES - 2);
    rq_matcher *m = rq_calloc(1, sizeof *m);
    uint32_t *parent = rq_calloc(bytes + 1, sizeof *parent);
    uint32_t *order = rq_calloc(bytes + 1, sizeof *order);
    if (m) {
        rq_pairs_init(&m->edge);
        m->node = rq_calloc(bytes + 1, sizeof *m->node);
        m->n_nodes = 1;
    }
    bool ok = m && parent && order && m->node;
    if (ok) m->node[0].id = -1;
    for (size_t i = 0; ok && i < n; i++)
        ok = insert(m, symbols->pool + text[ids[i]].offset, text[ids[i]].len, ids[i], parent);
    ok = ok && link_nodes(m, parent, order);
    rq_free(parent);
    rq_free(order);
    if (!ok) {
        rq_matcher_free(m);
        return rq_no_memory(err);
    }
    *out = m;
    return RQ_OK;
}

typedef struct rq_candidate {
    uint32_t at, node;
} rq_candidate;

static bool before(const rq_matcher *m, rq_candidate a, rq_candidate b)
{
    const rq_ac_node *x = &m->node[a.node], *y = &m->node[b.node];
    if (x->len != y->len) return x->len > y->len;
    if (x->id != y->id) return x->id < y->id;
    return a.at < b.at;
}

static void sift_down(const rq_matcher *m, rq_candidate *heap, size_t n, size_t i)
{
    rq_candidate item = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(m, heap[child + 1], heap[child])) child++;
        if (!before(m, heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static int by_position(const void *a, const void *b)
{
    uint32_t x = ((const rq_hit *)a)->begin, y = ((const rq_hit *)b)->begin;
    return x < y ? -1 : x > y;
}

static bool taken(const uint8_t *bits, size_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* Takes candidates in order. What is taken is never shorter than what comes later, so a later one overlaps it
 * exactly when one of its own ends is taken. */
static rq_status choose(const rq_matcher *m, const uint8_t *mark, const uint8_t *text, size_t len,
                        rq_candidate *heap, size_t n, rq_hit **hits, size_t *n_hits, rq_error *err)
{
    size_t cap = 0;
    uint8_t *bits = rq_calloc(len / 8 + 1, 1);
    bool ok = bits != NULL;
    for (size_t i = n / 2; i-- > 0;) sift_down(m, heap, n, i);
    while (ok && n) {
        rq_candidate c = heap[0];
        const rq_ac_node *node = &m->node[c.node];
        size_t end = c.at + node->len;
        if (!taken(bits, c.at) && taken(bits, end - 1)) { /* perhaps a shorter one starts here */
            uint32_t shorter = m->node[node->fail].found;
            if (shorter)
                heap[0].node = shorter;
            else
                heap[0] = heap[--n];
            if (n) sift_down(m, heap, n, 0);
            continue;
        }
        heap[0] = heap[--n];
        if (n) sift_down(m, heap, n, 0);
        if (taken(bits, c.at)) continue;
        if (mark[node->id] & RQ_MARK_RSTRIP)
            while (end < len && !taken(bits, end) &&
                   (text[end] == ' ' || (text[end] >= '\t' && text[end] <= '\r')))
                end++;
        ok = rq_grow((void **)hits, &cap, *n_hits + 1, sizeof **hits);
        if (!ok) break;
        (*hits)[(*n_hits)++] = (rq_hit){c.at, (uint32_t)end, node->id};
        for (size_t i = c.at; i < end; i++) bits[i / 8] |= (uint8_t)(1 << i % 8);
    }
    rq_free(bits);
    if (!ok) {
        rq_free(*hits);
        *hits = NULL;
        *n_hits = 0;
        return rq_no_memory(err);
    }
    if (*n_hits) qsort(*hits, *n_hits, sizeof **hits, by_position);
    return RQ_OK;
}

rq_status rq_matcher_find(const rq_matcher *m, const uint8_t *mark, const uint8_t *text, size_t len,
                          rq_hit **hits, size_t *n_hits, rq_error *err)
{
    *hits = NULL;
    *n_hits = 0;
    if (m->n_nodes < 2) return RQ_OK;
    rq_candidate *found = NULL;
    size_t n = 0, cap = 0;
    uint32_t at = 0;
    for (size_t i = len; i-- > 0;) {
        uint32_t next;
        while (!(next = step(m, at, text[i])) && at) at = m->node[at].fail;
        at = next;
        if (!at || !m->node[at].found) continue;
        if (!rq_grow((void **)&found, &cap, n + 1, sizeof *found)) {
            rq_free(found);
            return rq_no_memory(err);
        }
        found[n++] = (rq_candidate){(uint32_t)i, m->node[at].found};
    }
    rq_status status = n ? choose(m, mark, text, len, found, n, hits, n_hits, err) : RQ_OK;
    rq_free(found);
    return status;
}
