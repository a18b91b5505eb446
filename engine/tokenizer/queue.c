#include "engine/tokenizer/queue.h"

#include "backends/base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { HEAP_ONLY = 2048 };

bool rq_queue_start(rq_queue *q, size_t n, uint32_t n_ranks)
{
    q->rank = UINT32_MAX; /* every push goes to the heap */
    q->started = true;
    if (n <= HEAP_ONLY) return true;
    if (!q->head) {
        q->head = rq_calloc(n_ranks, sizeof *q->head);
        q->full = rq_calloc((size_t)n_ranks / 64 + 1, sizeof *q->full);
        q->n_ranks = n_ranks;
        if (!q->head || !q->full) return false;
    }
    q->rank = 0;
    q->started = false; /* nothing visited yet: even rank 0 goes to its bucket */
    q->n_entries = 0;
    q->free_entry = 0;
    q->active_at = q->n_active = 0;
    return true;
}

void rq_queue_free(rq_queue *q)
{
    rq_free(q->heap);
    rq_free(q->head);
    rq_free(q->full);
    rq_free(q->entry);
    rq_free(q->active);
    memset(q, 0, sizeof *q);
}

static bool before(rq_queue_item a, rq_queue_item b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.left < b.left;
}

static bool push_heap(rq_queue *q, rq_queue_item item)
{
    if (!rq_grow((void **)&q->heap, &q->heap_cap, q->n_heap + 1, sizeof *q->heap)) return false;
    size_t i = q->n_heap++;
    for (; i && before(item, q->heap[(i - 1) / 2]); i = (i - 1) / 2) q->heap[i] = q->heap[(i - 1) / 2];
    q->heap[i] = item;
    return true;
}

static rq_queue_item pop_heap(rq_queue *q)
{
    rq_queue_item *heap = q->heap, top = heap[0], item = heap[--q->n_heap];
    size_t n = q->n_heap, i = 0;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
    return top;
}

bool rq_queue_push(rq_queue *q, uint32_t rank, uint32_t left)
{
    if (q->started && rank <= q->rank) return push_heap(q, (rq_queue_item){rank, left});
    uint32_t at = q->free_entry;
    if (at) {
        q->free_entry = q->entry[at - 1].next;
    } else {
        if (!rq_grow((void **)&q->entry, &q->entry_cap, q->n_entries + 1, sizeof *q->entry)) return false;
        at = (uint32_t)++q->n_entries;
    }
    q->entry[at - 1] = (struct rq_queue_entry){left, q->head[rank]};
    q->head[rank] = at;
    q->full[rank / 64] |= (uint64_t)1 << rank % 64;
    return true;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Turns to the lowest bucket that is not empty; false when there is none or no memory (then *ok is false). */
static bool next_bucket(rq_queue *q, bool *ok)
{
    size_t n_words = (size_t)q->n_ranks / 64 + 1, word = q->rank / 64;
    while (word < n_words && !q->full[word]) word++;
    if (word == n_words) return false;
    uint32_t rank = (uint32_t)(word * 64) + (uint32_t)__builtin_ctzll(q->full[word]);
    size_t n = 0;
    bool sorted = true;
    uint32_t last = 0;
    for (uint32_t e = q->head[rank]; e; e = q->entry[e - 1].next) { /* last pushed first */
        if (!rq_grow((void **)&q->active, &q->active_cap, n + 1, sizeof *q->active)) return *ok = false;
        q->active[n] = q->entry[e - 1].left;
        if (n && q->active[n] > q->active[n - 1]) sorted = false;
        n++;
        last = e;
    }
    if (sorted) {
        for (size_t i = 0; i < n / 2; i++) {
            uint32_t swap = q->active[i];
            q->active[i] = q->active[n - 1 - i];
            q->active[n - 1 - i] = swap;
        }
    } else {
        qsort(q->active, n, sizeof *q->active, ascending);
    }
    q->entry[last - 1].next = q->free_entry;
    q->free_entry = q->head[rank];
    q->head[rank] = 0;
    q->full[word] &= q->full[word] - 1;
    q->rank = rank;
    q->started = true;
    q->active_at = 0;
    q->n_active = n;
    return true;
}

rq_queue_result rq_queue_pop(rq_queue *q, rq_queue_item *out)
{
    bool ok = true;
    if (q->active_at == q->n_active && !q->n_heap) {
        if (q->rank == UINT32_MAX || !q->head || !next_bucket(q, &ok))
            return ok ? RQ_QUEUE_EMPTY : RQ_QUEUE_NO_MEMORY;
    }
    if (q->active_at < q->n_active) {
        rq_queue_item item = {q->rank, q->active[q->active_at]};
        if (!q->n_heap || before(item, q->heap[0])) {
            q->active_at++;
            *out = item;
            return RQ_QUEUE_ITEM;
        }
    }
    *out = pop_heap(q);
    return RQ_QUEUE_ITEM;
}
