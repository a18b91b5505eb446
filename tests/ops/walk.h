/* walk.h - rows of the table of operations: each is run in several buckets by an implementation, and judged against
 * the reference by the tolerance of its kind. */
#ifndef TEST_OPS_WALK_H
#define TEST_OPS_WALK_H

#include "tests/ops/rig.h"

typedef struct walker {
    rq_device *device;
    const char *implementation;
    bool verbose;
    bool products_only; /* a variant of the products: the other operations are those of every variant */
    uint32_t n_cases, n_failed;
    uint32_t n_seen[RQ_OP_COUNT]; /* rows of the table, run or not */
    double worst[RQ_OP_COUNT];    /* share of the tolerance */
    bool unfused[RQ_OP_COUNT];    /* run as their primitives, in some buckets at least */
    op_error sums[RQ_OP_COUNT][RQ_TYPE_LIMIT];
    case_data data;
} walker;

/* One case in several buckets up to `largest` tokens, full and padded. The first token's bits must be those it has
 * alone in every narrow bucket. */
void walk(walker *w, const op_case *c, uint32_t largest);
/* One case in one bucket with n tokens. */
void walk_once(walker *w, const op_case *c, uint32_t n);

/* --quick was given: rows may leave shapes out. */
bool walk_is_quick(void);

/* A test program: opens every implementation of every backend in this build, walks `rows` with it, prints the worst
 * error of each kind as a share of its tolerance, and fails where a row did or a kind that is `mine` has none.
 *   -v                says more
 *   --quick           fewer cases
 *   NAME              that implementation alone
 *   --variant NAME    of a card: the products in that arithmetic ("integer-dot")
 *   --disable LIST    of a card: abilities not to be used ("subgroup,float16")
 *   --type NAME       that type of weights or caches alone
 * RQVK_SIMT_TURN, 0 to 2, in the environment: that third of the rows of each operation alone, for builds in which
 * every row takes long.
 * Returns what main shall. */
int walk_table(int argc, char **argv, void (*rows)(walker *w), bool (*mine)(rq_op_kind kind));

#endif
