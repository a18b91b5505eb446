/* check.h - what a planned tape must satisfy, by brute force. Each asserts. */
#ifndef TEST_CHECK_H
#define TEST_CHECK_H

#include "backends/tape/plan.h"

/* Every pair of operations of a piece of which one writes bytes that the other touches has a barrier in between,
 * and without any one of the barriers some pair has not. */
void check_barriers(const rq_tape *t, const rq_split *split, const rq_plan *plan);

/* Whatever is read is still in the arena, and results share no bytes with operands. At most two devices. */
void check_memory(const rq_tape *t, const rq_split *split, const rq_plan *plan);

#endif
