/* cache.h - bookkeeping of the key/value cache: which page of which pool belongs to which sequence, and what is
 * kept for later requests.
 *
 * Each cache group has a pool of exact pages and, if it has a coded form, one of coded pages (backends/cache.h).
 * A page of 64 tokens that is full becomes a node of a tree: its parent is the node of the 64 tokens before, it
 * is found by a hash over the chain, and the ids are compared, so a hash proves nothing by itself. A sequence is
 * a path of nodes and a last, partial page of its own. Sequences with the same beginning share its nodes; nodes
 * nobody uses stay until their pages are needed, the one unused for longest goes first.
 *
 * A node keeps its coded page as long as it lives. Its exact page it keeps while a sequence may read it (page
 * index >= B(next position), and the sinks), and after that as long as there is room: those of save points longest,
 * because what follows such a position can be computed only where the exact pages before it are still there. Pages of a group with a window, of both forms, are kept in the same way: a sequence
 * holds those its window touches, and their entries in its tables vanish as the window moves on.
 *
 * Reservations make running out of pages impossible in the middle of a request: what a sequence may still need
 * is set aside when the request is admitted, and nobody else can take it. Exact pages of a group with a coded
 * form and all pages of a window need no reservation; their pools hold every sequence's share (size.h). After rq_cache_create nothing is
 * allocated. Only ids live here; the bytes are the executor's.
 *
 * Not thread-safe: the scheduler calls it under its lock. */
#ifndef RQ_ENGINE_CACHE_H
#define RQ_ENGINE_CACHE_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/step.h"
#include "engine/cache/size.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct rq_cache rq_cache;

/* A page whose bytes must be copied before the next step runs (rq_executor_copy_page). */
typedef struct rq_page_copy {
    uint32_t group, from, to;
} rq_page_copy;

typedef struct rq_cache_params {
    const rq_cache_group *groups; /* copied */
    uint32_t n_groups;
    const uint32_t *pages, *coded_pages, *scratch_pages; /* of each group; the last two NULL: none */
    uint32_t n_seqs, max_pages;                          /* sequences, and pages of each */
    uint32_t n_batch;                                    /* most tokens of a step */
    uint64_t seed;                                       /* what else the pages' content depends on */
    uint64_t
        key_mask; /* bits of a key that count, 0: all; few in tests, so that different tokens share keys */
    /* A save point that rq_cache_save gave is no more; called from inside of any function that takes pages. */
    void (*dropped)(void *user, uint32_t save);
    void *dropped_user;
} rq_cache_params;

/* Page numbers must fit: pages * 64 <= UINT32_MAX. Pools hold what rq_cache_held says. Groups with a window have no
 * sinks. */
rq_status rq_cache_create(const rq_cache_params *params, rq_cache **out, rq_error *err);
void rq_cache_free(rq_cache *cache);

/* Sets pages aside so that the sequence can grow to n_tokens. False, with nothing changed, when a pool has too
 * few that are neither in use nor set aside for others. Replaces the sequence's earlier reservation. */
bool rq_cache_reserve(rq_cache *cache, uint32_t seq, uint64_t n_tokens);
/* Gives back what was set aside and not used. */
void rq_cache_unreserve(rq_cache *cache, uint32_t seq);

/* ---- a step ----------------------------------------------------------------------------------------------- */

/* Makes the sequence ready to be written from its end up to n_tokens: adds pages, coded ones for those that
 * become full. In a wide step (more than 8 tokens, one sequence) pages nobody will read exact afterwards are
 * scratch pages. An extension that was not committed is undone first. False, with nothing else changed, when
 * pages are missing; never after a reservation of as many tokens. */
bool rq_cache_extend(rq_cache *cache, uint32_t seq, uint64_t n_tokens, bool wide);
/* Adds the page table entries that changed since the device last heard of them to the step. False when the
 * step's edit list is full; calling again with the next step continues. */
bool rq_cache_edits(rq_cache *cache, uint32_t seq, rq_step *step);
/* Adds the pages that become full by the extension to the step's lists of pages to encode. */
bool rq_cache_encodes(rq_cache *cache, uint32_t seq, rq_step *step);
/* Forgets that entries were sent: the step they were added to never ran. */
void rq_cache_resend(rq_cache *cache, uint32_t seq);
/* The sequence's tables of exact pages by group, as rq_step_add_run takes them. */
const uint32_t *const *rq_cache_tables(const rq_cache *cache, uint32_t seq);
/* The copies to make, in this order, before the step that is being composed runs; at most
 * rq_cache_most_copies. They are the caller's business from now on. */
uint32_t rq_cache_most_copies(const rq_cache *cache);
uint32_t rq_cache_take_copies(rq_cache *cache, rq_page_copy *copies);
/* Of what the sequence was extended to, only the tokens below n_tokens count; they touch as many pages. */
void rq_cache_keep(rq_cache *cache, uint32_t seq, uint64_t n_tokens);
/* The step has run: the sequence holds what it was extended to. ids: all its tokens. Full pages become nodes; if
 * another sequence made the same node meanwhile, that one is shared and the own pages are given back. */
void rq_cache_commit(rq_cache *cache, uint32_t seq, const int32_t *ids);

/* ---- length ------------------------------------------------------------------------------------------------ */

/* Tokens the sequence holds. */
uint64_t rq_cache_length(const rq_cache *cache, uint32_t seq);

/* Forgets positions >= n_tokens, and the reservation. Where the exact pages that the next token would read are
 * gone, or there is no page for a partial copy, more is cut off. Returns the length. What is cut off stays in
 * the tree. */
uint64_t rq_cache_truncate(rq_cache *cache, uint32_t seq, uint64_t n_tokens);
/* Empties the sequence and removes from the tree what no other one uses: its content is not worth keeping. */
void rq_cache_discard(rq_cache *cache, uint32_t seq);
/* Removes everything that no sequence uses from the tree, and save points with it. */
void rq_cache_clear(rq_cache *cache);

typedef struct rq_cache_match {
    uint64_t n_known;  /* tokens of the longest match, from position 0 */
    uint64_t n_tokens; /* the sequence's length now; less than n_known where exact pages are gone */
} rq_cache_match;
/* Lengthens the sequence by what the cache holds of ids[0 .. n): nodes of the tree, and a part of a page of the
 * tree or of another sequence where that saves enough. ids begin with what the sequence holds. Never fails
 * and never needs more pages than evaluating the same tokens would: with a reservation of n tokens there are
 * enough, without one it may take less than there is. */
rq_cache_match rq_cache_advance(rq_cache *cache, uint32_t seq, const int32_t *ids, uint64_t n);

/* Lengthens the sequence to exactly n tokens of `ids`, which begin with what it holds: by whole pages of the tree, and a
 * last partial page of its own whose content the caller brings. False, with nothing changed, where a page is gone. */
bool rq_cache_resume(rq_cache *cache, uint32_t seq, const int32_t *ids, uint64_t n);

/* ---- save points ------------------------------------------------------------------------------------------- */

/* A save point is a position from which later sequences may go on. It belongs to the tokens, not to the sequence, and
 * holds references to the pages that are read there and could be let go before their node: those of windows, and exact
 * ones where there is a code. They are kept longer than other pages. When one of them is taken all the same, because
 * running sequences need it and nothing less useful is left, the save points that hold it go as wholes, those unused
 * for longest first; they go with their node, too. */
#define RQ_NO_SAVE UINT32_MAX

/* Position n of the sequence becomes a save point, now or when it is reached; where there is one it counts as used just
 * now. More than a few to come are ignored. */
void rq_cache_mark(rq_cache *cache, uint32_t seq, uint64_t n);
/* Forgets the sequence's positions to come. */
void rq_cache_unmark(rq_cache *cache, uint32_t seq);
/* The save point at position n, which the sequence has reached; the caller keeps something of its own for it, below
 * rq_cache_most_saves, and hears when it goes (params.dropped). RQ_NO_SAVE: pages are gone. */
uint32_t rq_cache_save(rq_cache *cache, uint32_t seq, uint64_t n);
/* Gives it up. */
void rq_cache_forget(rq_cache *cache, uint32_t save);
/* The longest one of fewer than `below` tokens that ids begin with, of those the caller asked for by rq_cache_save;
 * RQ_NO_SAVE: none. */
uint32_t rq_cache_find_save(const rq_cache *cache, const int32_t *ids, uint64_t below);
uint32_t rq_cache_most_saves(const rq_cache *cache);

/* ---- numbers ----------------------------------------------------------------------------------------------- */

/* The largest share of a pool used by sequences, as whole pages' tokens. Of a group with a coded form the coded
 * pool counts, of one with a window none; where all have one, what the sequences hold. */
uint64_t rq_cache_tokens_used(const rq_cache *cache);
/* Nodes of the tree, in use or not. */
uint32_t rq_cache_nodes(const rq_cache *cache);
/* Pages of a group (coded ones where it has them) that are neither in use nor set aside; of a window, exact ones that
 * are free. */
uint32_t rq_cache_available(const rq_cache *cache, uint32_t group);

/* Checks every invariant (tree, lists, reference counts, tables, reservations); for tests. */
bool rq_cache_consistent(const rq_cache *cache);

#endif
