/* drive.h - feeds sequences to an executor; for tests. */
#ifndef TEST_DRIVE_H
#define TEST_DRIVE_H

#include "backends/exec/exec.h"

typedef struct drive_piece {
    uint32_t seq, count;
} drive_piece;

typedef struct driver {
    rq_executor *ex;
    uint32_t n_groups, n_vocab, max_pages, n_seqs;
    const rq_cache_group *groups;
    uint32_t n_pages[RQ_MAX_GROUPS], n_scratch[RQ_MAX_GROUPS];
    uint32_t *pages;   /* [n_groups][n_seqs][max_pages]; of coded pages too */
    uint32_t *lengths; /* by sequence */
} driver;

/* Pages are handed out in a scrambled, fixed order. False when memory runs out. */
bool driver_open(driver *d, rq_executor *ex, const rq_executor_params *params);
void driver_close(driver *d);

/* Exact pages that nobody will read any more leave the table, and those of a wide piece that are read in the step
 * only are scratch pages; pages that become full are to be encoded.
 *
 * Begins a step that continues the sequences by these pieces; token k of sequence s is
 * drive_token(s, k, n_vocab). With `rows`, every token gets a row (at most RQ_HEAD_ROWS of them). */
rq_step *driver_fill(driver *d, const drive_piece *pieces, uint32_t n, bool rows);
int32_t drive_token(uint32_t seq, uint32_t k, uint32_t n_vocab);

/* The same, run to its end; the logits of all tokens, [tokens][n_vocab], go to `out` (not NULL). Rows beyond
 * RQ_HEAD_ROWS come through rq_executor_head. */
rq_status driver_run(driver *d, const drive_piece *pieces, uint32_t n, float *out, rq_error *err);

#endif
