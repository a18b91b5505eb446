#include "backends/tape/split.h"

#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/internal.h"

#include <string.h>

void rq_split_free(rq_split *split)
{
    rq_free(split->pieces);
    rq_free(split->copies);
    memset(split, 0, sizeof *split);
}

enum { NOWHERE = UINT32_MAX };

typedef struct splitter {
    const rq_tape *tape;
    uint32_t n_devices;
    uint32_t *home;   /* by owner: device that wrote it */
    uint8_t *present; /* by device and owner */
    rq_split split;
} splitter;

static rq_status no_memory(rq_error *err)
{
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory while splitting the forward pass over devices");
}

/* Records that `device` is about to read the value behind r; copies it there if it has to. */
static rq_status need(splitter *s, uint32_t device, rq_ref r, rq_error *err)
{
    const rq_tape *t = s->tape;
    if (!r || t->values[r].space != RQ_SPACE_ACT) return RQ_OK;
    uint32_t owner = t->values[r].index;
    if (s->home[owner] == NOWHERE)
        return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass reads value %u before it is written", owner);
    uint8_t *present = &s->present[(size_t)device * t->n_values + owner];
    if (*present) return RQ_OK;
    rq_split *split = &s->split;
    if (!rq_tape_grow((void **)&split->copies, &split->cap_copies, split->n_copies + 1,
                      sizeof *split->copies))
        return no_memory(err);
    split->copies[split->n_copies++] = (rq_border_copy){
        .value = owner, .from = s->home[owner], .to = device, .bytes = rq_value_end(&t->values[owner])};
    split->pieces[split->n_pieces - 1].copy_count++;
    *present = 1;
    return RQ_OK;
}

/* Operands that come from other devices are copied before the piece starts, which is only right when they
 * were written before it: a value written inside a piece is on the piece's device already. */
static rq_status add_op(splitter *s, uint32_t i, uint32_t device, rq_error *err)
{
    const rq_tape *t = s->tape;
    const rq_op *op = &t->ops[i];
    rq_split *split = &s->split;
    if (device >= s->n_devices)
        return rq_fail(err, RQ_ERR_ARGUMENT, "operation %s was placed on device %u of %u",
                       rq_op_get(op->kind)->name, device, s->n_devices);
    if (split->n_pieces == 0 || split->pieces[split->n_pieces - 1].device != device) {
        if (!rq_tape_grow((void **)&split->pieces, &split->cap_pieces, split->n_pieces + 1,
                          sizeof *split->pieces))
            return no_memory(err);
        split->pieces[split->n_pieces++] =
            (rq_piece){.device = device, .first = i, .copy_first = split->n_copies};
    }
    split->pieces[split->n_pieces - 1].count++;
    for (uint32_t a = 0; a < op->n_in; a++) {
        rq_status status = need(s, device, op->in[a], err);
        if (status != RQ_OK) return status;
    }
    for (uint32_t o = 0; o < op->n_out; o++) {
        const rq_value *v = &t->values[op->out[o]];
        if (v->space != RQ_SPACE_ACT) continue;
        if (s->home[v->index] != NOWHERE)
            return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass writes value %u twice", v->index);
        s->home[v->index] = device;
        s->present[(size_t)device * t->n_values + v->index] = 1;
    }
    return RQ_OK;
}

rq_status rq_split_make(const rq_tape *tape, uint32_t n_devices, rq_device_of device_of, void *user,
                        rq_split *out, rq_error *err)
{
    rq_status status = rq_tape_check(tape, err);
    if (status != RQ_OK) return status;
    splitter s = {.tape = tape, .n_devices = n_devices};
    s.home = rq_malloc((size_t)(tape->n_values + 1) * sizeof *s.home);
    s.present = rq_calloc((size_t)n_devices + 1, (size_t)tape->n_values + 1);
    if (!s.home || !s.present)
        status = no_memory(err);
    else
        memset(s.home, 0xff, (size_t)(tape->n_values + 1) * sizeof *s.home);
    for (uint32_t i = 0; i < tape->n_ops && status == RQ_OK; i++)
        status = add_op(&s, i, device_of(user, tape, &tape->ops[i]), err);
    rq_free(s.home);
    rq_free(s.present);
    if (status == RQ_OK)
        *out = s.split;
    else
        rq_split_free(&s.split);
    return status;
}
