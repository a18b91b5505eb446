/* ops_encode.c - bringing full pages into coded form. */
#include "backends/cpu/program.h"

void rq_cpu_kv_encode(rq_cpu_builder *b, const rq_op *op)
{
    (void)op;
    rq_cpu_fail(b, "this build has no coder");
}
