/* ops_rows.c - what connects trunk, head and step: copy, selected rows, arg-max. */
#include "backends/cpu/program.h"

#include <math.h>
#include <string.h>

/* ---- copy ------------------------------------------------------------------------------------------------ */

typedef struct copy_args {
    rq_tensor x, y;
    rq_rows rows;
    size_t bytes; /* of a row */
} copy_args;

static void run_copy(rq_cpu_worker *w, const void *args)
{
    const copy_args *a = args;
    uint32_t r, n = rq_rows_active(&a->rows, w);
    while (rq_cpu_take(w, n, &r)) memcpy(a->y.p + r * a->y.nb[1], rq_row_of(&a->x, &a->rows, r), a->bytes);
}

void rq_cpu_copy(rq_cpu_builder *b, const rq_op *op)
{
    copy_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->y = rq_cpu_tensor(b, op->in[1]);
    a->rows = rq_cpu_rows(b, &a->x);
    a->bytes = a->x.ne[0] * a->x.nb[0];
    if (a->y.type != a->x.type || a->y.ne[0] != a->x.ne[0] || a->y.ne[1] < a->x.ne[1]) {
        rq_cpu_fail(b, "source and destination differ in shape");
        return;
    }
    rq_cpu_emit(b, run_copy, a, false);
}

/* ---- selected rows --------------------------------------------------------------------------------------- */

static void run_select_rows(rq_cpu_worker *w, const void *args)
{
    const copy_args *a = args;
    const rq_row *rows = rq_step_at(w->words, w->header->rows);
    uint32_t r;
    while (rq_cpu_take(w, w->active, &r)) {
        if (rows[r].token < a->x.ne[1])
            memcpy(a->y.p + r * a->y.nb[1], a->x.p + rows[r].token * a->x.nb[1], a->bytes);
        else
            memset(a->y.p + r * a->y.nb[1], 0, a->bytes);
    }
}

void rq_cpu_select_rows(rq_cpu_builder *b, const rq_op *op)
{
    copy_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->x = rq_cpu_tensor(b, op->in[0]);
    a->y = rq_cpu_tensor(b, op->out[0]);
    a->bytes = a->x.ne[0] * a->x.nb[0];
    rq_cpu_emit(b, run_select_rows, a, false);
}

/* ---- arg-max --------------------------------------------------------------------------------------------- */

enum { ARGMAX_PIECE = 8192 };

typedef struct argmax_piece {
    float max;
    uint32_t index;
} argmax_piece;

typedef struct argmax_args {
    rq_tensor logits;
    int32_t *sampled;
    uint32_t n_sampled, n_pieces;
    uint64_t pieces; /* argmax_piece [rows][n_pieces] in shared scratch */
} argmax_args;

static void run_argmax_pieces(rq_cpu_worker *w, const void *args)
{
    const argmax_args *a = args;
    argmax_piece *pieces = (argmax_piece *)(w->shared + a->pieces);
    uint32_t unit, n = a->logits.ne[0];
    while (rq_cpu_take(w, w->active * a->n_pieces, &unit)) {
        uint32_t row = unit / a->n_pieces, first = unit % a->n_pieces * ARGMAX_PIECE;
        const float *x = (const float *)(a->logits.p + row * a->logits.nb[1]);
        pieces[unit].index =
            first + (uint32_t)w->vec->argmax(x + first, n - first < ARGMAX_PIECE ? n - first : ARGMAX_PIECE,
                                             &pieces[unit].max);
    }
}

/* Rows of one sequence may share a slot: the last one counts, and only it writes. */
static bool is_last_of_slot(const rq_row *rows, uint32_t n, uint32_t row)
{
    for (uint32_t i = row + 1; i < n; i++)
        if (rows[i].slot == rows[row].slot) return false;
    return true;
}

/* A piece of NaNs has the maximum -inf like one of -infs, but must not win over it: hence the comparison with
 * the element itself. */
static void run_argmax(rq_cpu_worker *w, const void *args)
{
    const argmax_args *a = args;
    const argmax_piece *pieces = (const argmax_piece *)(w->shared + a->pieces);
    const rq_row *rows = rq_step_at(w->words, w->header->rows);
    uint32_t row;
    while (rq_cpu_take(w, w->active, &row)) {
        const float *x = (const float *)(a->logits.p + row * a->logits.nb[1]);
        float max = -INFINITY;
        uint32_t best = 0;
        bool any = false;
        for (uint32_t i = 0; i < a->n_pieces; i++) {
            const argmax_piece *p = &pieces[row * a->n_pieces + i];
            if (x[p->index] == p->max && (!any || p->max > max)) {
                max = p->max;
                best = p->index;
                any = true;
            }
        }
        if (is_last_of_slot(rows, w->active, row) && rows[row].slot < a->n_sampled)
            a->sampled[rows[row].slot] = (int32_t)best;
    }
}

void rq_cpu_argmax(rq_cpu_builder *b, const rq_op *op)
{
    argmax_args *a = rq_cpu_args(b, sizeof *a);
    if (!a) return;
    a->logits = rq_cpu_tensor(b, op->in[0]);
    rq_tensor sampled = rq_cpu_tensor(b, op->in[1]);
    a->sampled = (int32_t *)(void *)sampled.p;
    a->n_sampled = sampled.ne[0] * sampled.ne[1];
    a->n_pieces = (a->logits.ne[0] + ARGMAX_PIECE - 1) / ARGMAX_PIECE;
    a->pieces = rq_cpu_shared(b, (uint64_t)a->n_pieces * a->logits.ne[1] * sizeof(argmax_piece));
    rq_cpu_emit(b, run_argmax_pieces, a, false);
    rq_cpu_emit(b, run_argmax, a, true);
}
