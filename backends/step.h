/* step.h - the step buffer: everything about a step that varies (DESIGN section 2.1).
 *
 * One flat block of 32-bit words, the same on every device: a header of counts and offsets (in words from the
 * start of the block), then arrays of fixed capacity. Kernels read it; nothing else tells them about tokens.
 * The layout depends on the capacities only, never on the step. */
#ifndef RQ_STEP_H
#define RQ_STEP_H

#include "backends/base/status.h"
#include "backends/cache.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    RQ_MAX_BUCKET = 2048, /* most tokens in a step */
    RQ_NARROW_BUCKET = 8, /* widest bucket whose attention is split and whose pages are encoded behind it */
    RQ_HEAD_ROWS = 64,    /* most rows of one head run */
    RQ_TILE_TOKENS = 64,  /* most queries of one attention work item */
    RQ_MAX_RUNS = 256,
    RQ_MAX_PENDING = 8, /* most tokens of a draft check */
    RQ_STEP_MAGIC = 0x52515354
};

typedef struct rq_step_header {
    uint32_t magic;
    uint32_t n_tokens; /* real tokens; the bucket's remaining tokens are padding: run -1 */
    uint32_t n_runs, n_rows, n_groups, n_edits;
    uint32_t token_id;  /* i32 [max_tokens]: the id, or -1 - slot: take PERSIST sampled[slot] */
    uint32_t token_pos; /* u32 [max_tokens] */
    uint32_t token_run; /* i32 [max_tokens]: index of its run, -1 for padding (writes nothing) */
    uint32_t token_slot[RQ_MAX_GROUPS]; /* u32 [max_tokens]: page id * 64 + position % 64, where K and V go */
    uint32_t runs;                      /* rq_run [RQ_MAX_RUNS] */
    uint32_t work[RQ_MAX_GROUPS];       /* rq_work [max_work] */
    uint32_t n_work[RQ_MAX_GROUPS];
    uint32_t encodes[RQ_MAX_GROUPS]; /* rq_encode [max_encodes]: pages to bring into coded form */
    uint32_t n_encodes[RQ_MAX_GROUPS];
    uint32_t rows;  /* rq_row [RQ_HEAD_ROWS] */
    uint32_t edits; /* rq_edit [max_edits]: page table entries to change before the step */
    uint32_t words; /* size of the whole block */
} rq_step_header;

/* A contiguous piece of one sequence.
 *
 * Lazy commit of recurrent state (DESIGN section 5). A run with n_pending > 0 is a draft check: n_pending == count, its
 * tokens are computed from the state in token form but change nothing of it; the inputs of the recurrence are kept in
 * the slot's pending area (state.h) instead, at the places of their positions. n_accepted = m: before anything else the
 * tokens at positions start - m .. start - 1, which the sequence's last run left pending, are applied to the state (now
 * it is written), then the run proceeds, as a check or not. A sequence therefore goes
 *     check of n at s, m <= n accepted -> the next run starts at s + m with n_accepted = m;
 * with m = 0 (the check is forgotten) it starts at s again. Every bit is the one that processing the accepted tokens
 * as ordinary runs of a bucket up to 8 would give. A sequence begins with zeros where start - n_accepted is 0. */
typedef struct rq_run {
    uint32_t seq;   /* sequence slot: row of the page tables */
    uint32_t first; /* first token of the run in the step */
    uint32_t count;
    uint32_t start;                 /* position of its first token */
    uint32_t kv_len;                /* start + count: positions visible to its last token */
    uint32_t state;                 /* slot of recurrent state; the sequence slot */
    uint32_t n_pending, n_accepted; /* lazy commit of draft checks: 0 or count; up to RQ_MAX_PENDING */
} rq_run;

/* One item of attention work: `count` queries of a run against whole pages [page_first, page_end). Tiles are
 * cut at absolute positions that are multiples of RQ_TILE_TOKENS. With n_splits == 1 the item covers all
 * pages its queries see and writes the result; otherwise it covers one split and writes partial result
 * `partial`, and the tile's items are consecutive, in ascending order of pages. */
typedef struct rq_work {
    uint32_t run, first, count; /* first: token in the step */
    uint32_t page_first, page_end;
    uint32_t split, n_splits;
    uint32_t partial; /* slot of the first query's partial result; query i uses partial + i */
} rq_work;

/* A row of the head: which token's hidden row, and where its sampled id goes. */
typedef struct rq_row {
    uint32_t token; /* token of the step */
    uint32_t slot;  /* PERSIST sampled[slot] receives the arg-max */
} rq_row;

typedef enum rq_page_form { RQ_PAGE_EXACT, RQ_PAGE_CODED, RQ_PAGE_FORMS } rq_page_form;

typedef struct rq_edit {
    uint32_t group, form, seq, index; /* entry of the group's table of exact or coded pages */
    uint32_t page;                    /* its new page id, or RQ_NO_PAGE */
} rq_edit;

/* A page that becomes full in this step: exact page -> coded page. In a bucket above 8 every layer encodes it
 * after it has written and before it attends; after a narrow step the encoding tape does it for all layers. */
typedef struct rq_encode {
    uint32_t exact, coded;
} rq_encode;

/* Capacities, fixed when an executor is created. */
typedef struct rq_step_caps {
    uint32_t max_tokens; /* power of two <= RQ_MAX_BUCKET */
    uint32_t n_groups;
    uint32_t n_seqs;    /* sequence slots */
    uint32_t max_pages; /* page table entries per sequence */
    uint32_t max_edits;
    uint32_t max_work;     /* work items per group */
    uint32_t max_partials; /* partial results (queries x splits) per group */
    uint32_t max_encodes;  /* pages that can become full in a step, per group */
} rq_step_caps;

/* Fills the derived capacities (max_edits, max_work, max_partials, max_encodes) so that every legal step fits. */
void rq_step_caps_complete(rq_step_caps *caps);

/* Words of a step buffer of these capacities. */
uint32_t rq_step_words(const rq_step_caps *caps);

/* ---- building a step (host) ---------------------------------------------------------------------------- */

typedef struct rq_step {
    rq_step_caps caps;
    const rq_cache_group *groups;
    uint32_t *words; /* the block; `header` is its start */
    rq_step_header *header;
} rq_step;

/* Makes `words` (rq_step_words of them) an empty step. */
void rq_step_init(rq_step *step, const rq_step_caps *caps, const rq_cache_group *groups, uint32_t *words);
void rq_step_reset(rq_step *step);

/* Appends a run of `count` tokens of sequence slot `seq` starting at position `start`. ids as in token_id.
 * table[g] is the sequence's page table of group g (page ids by page index), already holding the pages the
 * run writes to (exact ones). Returns the index of its first token, or -1 when it does not fit into the step. */
int32_t rq_step_add_run(rq_step *step, uint32_t seq, const int32_t *ids, uint32_t count, uint32_t start,
                        const uint32_t *const *table);
/* Says of the run appended last that it begins with committing the first n_accepted tokens of the sequence's last draft
 * check and, where n_pending is not 0, that it is a draft check (n_pending = its count). Both are at most the n_pending
 * of every state group. false, and nothing is changed, where there is no run or these numbers cannot be. */
bool rq_step_set_draft(rq_step *step, uint32_t n_accepted, uint32_t n_pending);
/* false when the edit list is full: the step must go first. */
bool rq_step_add_edit(rq_step *step, uint32_t group, rq_page_form form, uint32_t seq, uint32_t index,
                      uint32_t page);
/* false when the list is full. */
bool rq_step_add_encode(rq_step *step, uint32_t group, uint32_t exact, uint32_t coded);
/* false when RQ_HEAD_ROWS are taken. */
bool rq_step_add_row(rq_step *step, uint32_t token, uint32_t slot);
/* Pads to the bucket and writes the work lists. Split work (n_splits > 1) is made only in buckets <= 8.
 * Returns the bucket (smallest power of two >= n_tokens). */
uint32_t rq_step_finish(rq_step *step);

/* ---- reading it ---------------------------------------------------------------------------------------- */

static inline const void *rq_step_at(const uint32_t *words, uint32_t offset)
{
    return words + offset;
}

#endif
