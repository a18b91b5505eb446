/* queue.h - the order in which pairs are merged: lowest rank first, leftmost of equals.
 *
 * For short words a binary heap. For long ones buckets by rank: merging creates pairs of higher rank than the pair
 * merged almost always, so ranks are visited once in ascending order, each bucket is sorted by position when its turn
 * comes, and only pairs that come too late for that (rank not above the current one) go through the heap. Ten million
 * entries in a heap would mean twenty cache misses for each pop; buckets need about one. */
#ifndef RQ_MERGE_QUEUE_H
#define RQ_MERGE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rq_queue_item {
    uint32_t rank, left;
} rq_queue_item;

/* Zeroed is valid. Reused from word to word; everything is empty between words. */
typedef struct rq_queue {
    rq_queue_item *heap;
    size_t n_heap, heap_cap;
    uint32_t *head; /* [n_ranks] first entry of each bucket + 1, 0: empty */
    uint64_t *full; /* [n_ranks / 64 + 1] which buckets are not empty */
    uint32_t n_ranks;
    struct rq_queue_entry {
        uint32_t left, next;
    } * entry;
    size_t n_entries, entry_cap;
    uint32_t free_entry; /* entries of emptied buckets, + 1 */
    uint32_t *active;    /* positions of the bucket being visited, ascending */
    size_t active_at, n_active, active_cap;
    uint32_t rank; /* of the bucket being visited; no bucket at or below it has entries */
    bool started;
} rq_queue;

/* Prepares for a word of n symbols and ranks below n_ranks. False: out of memory. */
bool rq_queue_start(rq_queue *q, size_t n, uint32_t n_ranks);
bool rq_queue_push(rq_queue *q, uint32_t rank, uint32_t left); /* false: out of memory */
typedef enum rq_queue_result { RQ_QUEUE_EMPTY, RQ_QUEUE_ITEM, RQ_QUEUE_NO_MEMORY } rq_queue_result;
rq_queue_result rq_queue_pop(rq_queue *q, rq_queue_item *out);
void rq_queue_free(rq_queue *q);

#endif
