#include "backends/tape/plan.h"

#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/internal.h"

#include <stdlib.h>
#include <string.h>

void rq_plan_free(rq_plan *plan)
{
    rq_free(plan->arena_offset);
    rq_free(plan->arena_bytes);
    rq_free(plan->barrier);
    memset(plan, 0, sizeof *plan);
}

/* A value's life on one device. Operation i happens at time 2 i + 1, the copies before it at 2 i. */
typedef struct life {
    uint32_t owner;
    uint32_t start, end;
    uint64_t bytes, offset;
} life;

typedef struct planner {
    const rq_tape *tape;
    const rq_split *split;
    uint32_t *at; /* by owner: its place in `lives`, or UINT32_MAX */
    life *lives;  /* of the device in hand, by start */
    uint32_t n_lives;
    uint32_t *alive; /* places in `lives`, by offset */
} planner;

static void touch(planner *p, uint32_t owner, uint32_t time)
{
    if (p->at[owner] == UINT32_MAX) {
        p->at[owner] = p->n_lives;
        p->lives[p->n_lives++] =
            (life){.owner = owner,
                   .start = time,
                   .bytes = (rq_value_end(&p->tape->values[owner]) + RQ_ARENA_ALIGN - 1) &
                            ~(uint64_t)(RQ_ARENA_ALIGN - 1)};
    }
    p->lives[p->at[owner]].end = time;
}

static void touch_op(planner *p, uint32_t i)
{
    const rq_tape *t = p->tape;
    const rq_op *op = &t->ops[i];
    for (uint32_t a = 0; a < op->n_in; a++)
        if (op->in[a] && t->values[op->in[a]].space == RQ_SPACE_ACT)
            touch(p, t->values[op->in[a]].index, 2 * i + 1);
    for (uint32_t o = 0; o < op->n_out; o++)
        if (t->values[op->out[o]].space == RQ_SPACE_ACT) touch(p, t->values[op->out[o]].index, 2 * i + 1);
}

/* Collects the lives of the values on `device`, in the order in which they start. */
static void collect(planner *p, uint32_t device)
{
    p->n_lives = 0;
    memset(p->at, 0xff, (size_t)p->tape->n_values * sizeof *p->at);
    for (uint32_t i = 0; i < p->split->n_pieces; i++) {
        const rq_piece *piece = &p->split->pieces[i];
        for (uint32_t c = 0; c < piece->copy_count; c++) {
            const rq_border_copy *copy = &p->split->copies[piece->copy_first + c];
            if (copy->from == device || copy->to == device) touch(p, copy->value, 2 * piece->first);
        }
        if (piece->device == device)
            for (uint32_t op = piece->first; op < piece->first + piece->count; op++) touch_op(p, op);
    }
}

/* Gives every life the lowest free place; returns the bytes of the arena. */
static uint64_t place(planner *p)
{
    uint32_t n_alive = 0;
    uint64_t high = 0;
    for (uint32_t i = 0; i < p->n_lives; i++) {
        life *l = &p->lives[i];
        uint32_t kept = 0;
        for (uint32_t a = 0; a < n_alive; a++)
            if (p->lives[p->alive[a]].end >= l->start) p->alive[kept++] = p->alive[a];
        n_alive = kept;
        uint64_t at = 0;
        uint32_t before = 0;
        while (before < n_alive && p->lives[p->alive[before]].offset < at + l->bytes) {
            const life *other = &p->lives[p->alive[before++]];
            at = other->offset + other->bytes;
        }
        memmove(&p->alive[before + 1], &p->alive[before], (n_alive - before) * sizeof *p->alive);
        p->alive[before] = i;
        n_alive++;
        l->offset = at;
        if (at + l->bytes > high) high = at + l->bytes;
    }
    return high;
}

/* Sets the barriers of one piece: an operation that conflicts with one since the last barrier gets one. */
static void set_barriers(const rq_tape *t, const rq_piece *piece, const uint64_t *offsets, uint8_t *barrier)
{
    uint32_t since = piece->first;
    for (uint32_t i = piece->first; i < piece->first + piece->count; i++) {
        rq_range now[RQ_OP_MAX_RANGES], old[RQ_OP_MAX_RANGES];
        uint32_t n_now = rq_op_ranges(t, &t->ops[i], offsets, now);
        barrier[i] = 0;
        for (uint32_t j = since; j < i && !barrier[i]; j++) {
            uint32_t n_old = rq_op_ranges(t, &t->ops[j], offsets, old);
            barrier[i] = rq_ranges_conflict(old, n_old, now, n_now);
        }
        if (barrier[i]) since = i;
    }
}

rq_status rq_plan_make(const rq_tape *tape, const rq_split *split, uint32_t n_devices, rq_plan *out,
                       rq_error *err)
{
    size_t n = (size_t)tape->n_values + 1;
    rq_plan plan = {.n_devices = n_devices, .n_values = tape->n_values};
    planner p = {.tape = tape, .split = split};
    plan.arena_offset = rq_realloc_array(NULL, n * n_devices, sizeof *plan.arena_offset);
    plan.arena_bytes = rq_calloc((size_t)n_devices + 1, sizeof *plan.arena_bytes);
    plan.barrier = rq_calloc((size_t)tape->n_ops + 1, 1);
    p.at = rq_realloc_array(NULL, n, sizeof *p.at);
    p.lives = rq_realloc_array(NULL, n, sizeof *p.lives);
    p.alive = rq_realloc_array(NULL, n, sizeof *p.alive);
    bool ok = plan.arena_offset && plan.arena_bytes && plan.barrier && p.at && p.lives && p.alive;
    for (uint32_t d = 0; ok && d < n_devices; d++) {
        uint64_t *offsets = plan.arena_offset + (size_t)d * tape->n_values;
        memset(offsets, 0xff, (size_t)tape->n_values * sizeof *offsets); /* RQ_NO_ARENA */
        collect(&p, d);
        plan.arena_bytes[d] = place(&p);
        for (uint32_t i = 0; i < p.n_lives; i++) offsets[p.lives[i].owner] = p.lives[i].offset;
    }
    for (uint32_t i = 0; ok && i < split->n_pieces; i++)
        set_barriers(tape, &split->pieces[i], rq_plan_offsets(&plan, split->pieces[i].device), plan.barrier);
    rq_free(p.at);
    rq_free(p.lives);
    rq_free(p.alive);
    if (!ok) {
        rq_plan_free(&plan);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory while planning a forward pass of %u operations",
                       tape->n_ops);
    }
    *out = plan;
    return RQ_OK;
}
