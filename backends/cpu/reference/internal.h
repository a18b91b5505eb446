/* internal.h - shared by the files of the reference. */
#ifndef RQ_REFERENCE_INTERNAL_H
#define RQ_REFERENCE_INTERNAL_H

#include "backends/cpu/reference/reference.h"

/* One running operation. */
typedef struct rq_ref_run {
    const rq_tape *tape;
    const rq_op *op;
    const rq_reference_env *env;
    rq_error *err;
} rq_ref_run;

/* A value with its memory. `data` is NULL for absent operands. */
typedef struct rq_ref_view {
    const rq_value *v;
    char *data;
} rq_ref_view;

rq_ref_view rq_ref_in(const rq_ref_run *r, uint32_t i);
rq_ref_view rq_ref_out(const rq_ref_run *r, uint32_t i);

static inline char *rq_ref_at(const rq_ref_view *x, uint64_t i0, uint64_t i1, uint64_t i2, uint64_t i3)
{
    return x->data + i0 * x->v->stride[0] + i1 * x->v->stride[1] + i2 * x->v->stride[2] +
           i3 * x->v->stride[3];
}

/* Element of an f32 or i32 value. */
static inline float *rq_ref_f32(const rq_ref_view *x, uint64_t i0, uint64_t i1, uint64_t i2, uint64_t i3)
{
    return (float *)(void *)rq_ref_at(x, i0, i1, i2, i3);
}
static inline int32_t *rq_ref_i32(const rq_ref_view *x, uint64_t i0, uint64_t i1)
{
    return (int32_t *)(void *)rq_ref_at(x, i0, i1, 0, 0);
}

/* The step, as the operation may read it. */
const rq_step_header *rq_ref_step(const rq_ref_run *r);
/* Run of token t, or NULL for padding. */
const rq_run *rq_ref_run_of(const rq_ref_run *r, uint32_t t);
uint32_t rq_ref_position(const rq_ref_run *r, uint32_t t);

/* Row (i1, i2) of a weight of any type as floats, into `row` (ne[0] of them). */
void rq_ref_decode(const rq_ref_view *w, uint64_t i1, uint64_t i2, float *row);

rq_status rq_ref_rotate(const rq_ref_run *r);
rq_status rq_ref_kv_write(const rq_ref_run *r);
rq_status rq_ref_kv_encode(const rq_ref_run *r);
rq_status rq_ref_attend(const rq_ref_run *r);
rq_status rq_ref_short_conv(const rq_ref_run *r);
rq_status rq_ref_delta_rule(const rq_ref_run *r);
rq_status rq_ref_route(const rq_ref_run *r);
rq_status rq_ref_group(const rq_ref_run *r);
rq_status rq_ref_matmul_experts(const rq_ref_run *r);
rq_status rq_ref_combine(const rq_ref_run *r);

#endif
