#include "backends/tape/fuse.h"

#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/internal.h"

#include <string.h>

/* Members of a pattern lie at most this many operations apart. */
enum { WINDOW = 48, MAX_MEMBERS = 5 };

typedef struct fuser {
    rq_tape *tape;
    uint32_t *n_readers; /* by owning ACT value: operations that read it */
    rq_fuse_supports supports;
    void *user;
} fuser;

static const rq_value *value(const fuser *f, rq_ref r)
{
    return &f->tape->values[r];
}

static bool reads(const rq_tape *t, const rq_op *op, uint32_t owner)
{
    for (uint32_t i = 0; i < op->n_in; i++)
        if (op->in[i] && t->values[op->in[i]].space == RQ_SPACE_ACT && t->values[op->in[i]].index == owner)
            return true;
    return false;
}

/* Positions of the operations that read what operation `at` wrote to its first output, at most `max` of them.
 * Returns their number, or 0 when there are more, or some lie outside the window. */
static uint32_t readers(const fuser *f, uint32_t at, uint32_t *out, uint32_t max)
{
    const rq_tape *t = f->tape;
    uint32_t owner = value(f, t->ops[at].out[0])->index, n = 0;
    if (f->n_readers[owner] > max) return 0;
    for (uint32_t i = at + 1; i < t->n_ops && i <= at + WINDOW && n < f->n_readers[owner]; i++)
        if (reads(t, &t->ops[i], owner)) out[n++] = i;
    return n == f->n_readers[owner] ? n : 0;
}

/* The operation before `at` whose first output is `r` itself (not a view of it), of this kind and layer and
 * read by nobody but one operation; UINT32_MAX when there is none. */
static uint32_t sole_producer(const fuser *f, uint32_t at, rq_ref r, rq_op_kind kind)
{
    const rq_tape *t = f->tape;
    for (uint32_t i = at; i-- > 0 && i + WINDOW >= at;) {
        const rq_op *op = &t->ops[i];
        if (op->n_out != 1 || op->out[0] != r) continue;
        bool fits =
            op->kind == kind && op->layer == t->ops[at].layer && f->n_readers[value(f, r)->index] == 1;
        return fits ? i : UINT32_MAX;
    }
    return UINT32_MAX;
}

/* ---- moving operations together
 * ---------------------------------------------------------------------------- */

static bool conflict(const rq_tape *t, const rq_op *a, const rq_op *b)
{
    rq_range ra[RQ_OP_MAX_RANGES], rb[RQ_OP_MAX_RANGES];
    uint32_t na = rq_op_ranges(t, a, NULL, ra), nb = rq_op_ranges(t, b, NULL, rb);
    return rq_ranges_conflict(ra, na, rb, nb);
}

static bool is_member(const uint32_t *members, uint32_t n, uint32_t i)
{
    for (uint32_t m = 0; m < n; m++)
        if (members[m] == i) return true;
    return false;
}

/* May every member jump over the operations between it and `place` that stay behind? */
static bool may_gather(const rq_tape *t, const uint32_t *members, uint32_t n, uint32_t place)
{
    for (uint32_t m = 0; m < n; m++) {
        uint32_t from = members[m] < place ? members[m] : place, to = members[m] < place ? place : members[m];
        for (uint32_t i = from + 1; i < to; i++)
            if (!is_member(members, n, i) && conflict(t, &t->ops[members[m]], &t->ops[i])) return false;
    }
    return true;
}

/* Replaces the members (in the order of the primitive list) by `fused`, at the place of the first or the last
 * of them. Returns whether it was done; the tape's sticky error is set when memory runs out. */
static bool replace(fuser *f, const uint32_t *members, uint32_t n, rq_op fused)
{
    rq_tape *t = f->tape;
    uint32_t first = UINT32_MAX, last = 0;
    for (uint32_t m = 0; m < n; m++) {
        if (t->ops[members[m]].layer != fused.layer) return false;
        if (members[m] < first) first = members[m];
        if (members[m] > last) last = members[m];
    }
    uint32_t place = last;
    if (!may_gather(t, members, n, last)) {
        place = first;
        if (!may_gather(t, members, n, first)) return false;
    }
    if (!rq_tape_grow((void **)&t->prims, &t->cap_prims, t->n_prims + n, sizeof *t->prims)) {
        rq_tape_fail(t, RQ_ERR_MEMORY, "out of memory for %u operations", t->n_prims + n);
        return false;
    }
    fused.prim_first = t->n_prims;
    fused.prim_count = n;
    for (uint32_t m = 0; m < n; m++) t->prims[t->n_prims++] = t->ops[members[m]];
    if (!f->supports(f->user, t, &fused)) {
        t->n_prims -= n;
        return false;
    }
    uint32_t to = first;
    for (uint32_t i = first; i <= last; i++) {
        if (i == place)
            t->ops[to++] = fused;
        else if (!is_member(members, n, i))
            t->ops[to++] = t->ops[i];
    }
    memmove(&t->ops[to], &t->ops[last + 1], (t->n_ops - last - 1) * sizeof *t->ops);
    t->n_ops -= n - 1;
    return true;
}

/* ---- patterns
 * ---------------------------------------------------------------------------------------------- */

/* Are these all products of the first output of operation `at` itself, on its right side? */
static bool all_products(const fuser *f, uint32_t at, const uint32_t *ops, uint32_t n)
{
    const rq_tape *t = f->tape;
    for (uint32_t i = 0; i < n; i++)
        if (t->ops[ops[i]].kind != RQ_OP_MATMUL || t->ops[ops[i]].in[1] != t->ops[at].out[0]) return false;
    return n > 0;
}

/* rms_norm, two products, glu of both. */
static bool fuse_norm_glu(fuser *f, uint32_t at, const uint32_t *products)
{
    const rq_tape *t = f->tape;
    uint32_t glu[2];
    for (int i = 0; i < 2; i++)
        if (readers(f, products[i], &glu[i], 1) != 1) return false;
    const rq_op *norm = &t->ops[at], *g = &t->ops[glu[0]];
    if (glu[0] != glu[1] || g->kind != RQ_OP_GLU || g->p.glu.act == RQ_ACT_SIGMOID) return false;
    uint32_t gate = products[0], up = products[1];
    if (g->in[0] == t->ops[up].out[0]) {
        gate = products[1];
        up = products[0];
    }
    if (g->in[0] != t->ops[gate].out[0] || g->in[1] != t->ops[up].out[0]) return false;
    rq_op fused = {.kind = RQ_OP_NORM_GLU_MATMULS,
                   .n_in = 4,
                   .n_out = 1,
                   .in = {norm->in[0], norm->in[1], t->ops[gate].in[0], t->ops[up].in[0]},
                   .out = {g->out[0]},
                   .layer = norm->layer};
    fused.p.fused.eps = norm->p.norm.eps;
    fused.p.fused.act = g->p.glu.act;
    uint32_t members[] = {at, gate, up, glu[0]};
    return replace(f, members, 4, fused);
}

/* rms_norm at `at` and whatever products read it. */
static bool fuse_norm(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    uint32_t members[1 + 3];
    uint32_t n = readers(f, at, members + 1, 3);
    if (!all_products(f, at, members + 1, n)) return false;
    if (n == 2 && fuse_norm_glu(f, at, members + 1)) return true;
    const rq_op *norm = &t->ops[at];
    rq_op fused = {.kind = RQ_OP_NORM_MATMULS,
                   .n_in = (uint8_t)(2 + n),
                   .n_out = (uint8_t)n,
                   .in = {norm->in[0], norm->in[1]},
                   .layer = norm->layer};
    fused.p.fused.eps = norm->p.norm.eps;
    for (uint32_t i = 0; i < n; i++) {
        fused.in[2 + i] = t->ops[members[1 + i]].in[0];
        fused.out[i] = t->ops[members[1 + i]].out[0];
    }
    members[0] = at;
    return replace(f, members, 1 + n, fused);
}

/* matmul at `at`, added to something once. */
static bool fuse_matmul_add(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    uint32_t add;
    if (readers(f, at, &add, 1) != 1 || t->ops[add].kind != RQ_OP_ADD) return false;
    const rq_op *mm = &t->ops[at], *a = &t->ops[add];
    rq_ref y = mm->out[0], other = a->in[0] == y ? a->in[1] : a->in[0];
    if (a->in[0] == y ? a->in[1] == y : a->in[1] != y) return false;
    if (a->in[0] != y) { /* the product is the second operand: it must not be a row spread over the first */
        for (int i = 0; i < 4; i++)
            if (value(f, other)->ne[i] != value(f, y)->ne[i]) return false;
    }
    if (value(f, other)->space == RQ_SPACE_ACT && value(f, other)->index == value(f, y)->index) return false;
    rq_op fused = {.kind = RQ_OP_MATMUL_ADD,
                   .n_in = 3,
                   .n_out = 1,
                   .in = {mm->in[0], mm->in[1], other},
                   .out = {a->out[0]},
                   .layer = mm->layer};
    uint32_t members[] = {at, add};
    return replace(f, members, 2, fused);
}

static bool same_weight(const fuser *f, rq_ref a, rq_ref b)
{
    const rq_value *va = value(f, a), *vb = value(f, b);
    return va->space == RQ_SPACE_WEIGHT && vb->space == RQ_SPACE_WEIGHT && va->index == vb->index &&
           va->offset == vb->offset;
}

/* The rope whose result queries the cache that the kv_write at `at` writes, turning as `like` does. */
static uint32_t find_query_rope(const fuser *f, uint32_t at, const rq_op *like)
{
    const rq_tape *t = f->tape;
    const rq_value *cache = value(f, t->ops[at].in[0]);
    for (uint32_t i = at + 1; i < t->n_ops && i <= at + WINDOW; i++) {
        const rq_op *op = &t->ops[i];
        if (op->kind != RQ_OP_ATTEND) continue;
        const rq_value *c = value(f, op->in[0]);
        if (c->index != cache->index || c->layer != cache->layer) continue;
        uint32_t rope = i;
        while (rope-- > 0 && rope + WINDOW >= i)
            if (t->ops[rope].n_out == 1 && t->ops[rope].out[0] == op->in[1]) break;
        if (rope >= i || t->ops[rope].kind != RQ_OP_ROPE) return UINT32_MAX;
        const rq_op *q = &t->ops[rope];
        bool alike = q->p.rope.n_rot == like->p.rope.n_rot && q->p.rope.pairing == like->p.rope.pairing &&
                     q->p.rope.magnitude == like->p.rope.magnitude && same_weight(f, q->in[1], like->in[1]);
        return alike ? rope : UINT32_MAX;
    }
    return UINT32_MAX;
}

static bool fuse_qk(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_op *write = &t->ops[at];
    uint32_t k = sole_producer(f, at, write->in[1], RQ_OP_ROPE);
    if (k == UINT32_MAX) return false;
    uint32_t q = find_query_rope(f, at, &t->ops[k]);
    if (q == UINT32_MAX || q == k) return false;
    if (reads(t, &t->ops[q], value(f, write->in[1])->index)) return false;
    const rq_op *rq = &t->ops[q], *rk = &t->ops[k];
    uint32_t nq = sole_producer(f, q, rq->in[0], RQ_OP_RMS_NORM);
    uint32_t nk = sole_producer(f, k, rk->in[0], RQ_OP_RMS_NORM);
    bool normed =
        nq != UINT32_MAX && nk != UINT32_MAX && nq != nk && t->ops[nq].p.norm.eps == t->ops[nk].p.norm.eps;
    rq_op fused = {.kind = RQ_OP_QK_NORM_ROPE_WRITE,
                   .n_in = 7,
                   .n_out = 1,
                   .in = {rq->in[0], rk->in[0], write->in[2], rq->in[1], 0, 0, write->in[0]},
                   .out = {rq->out[0]},
                   .layer = write->layer};
    fused.p.fused.normed = normed;
    fused.p.fused.n_rot = rq->p.rope.n_rot;
    fused.p.fused.pairing = rq->p.rope.pairing;
    fused.p.fused.magnitude = rq->p.rope.magnitude;
    if (normed) {
        fused.in[0] = t->ops[nq].in[0];
        fused.in[1] = t->ops[nk].in[0];
        fused.in[4] = t->ops[nq].in[1];
        fused.in[5] = t->ops[nk].in[1];
        fused.p.fused.eps = t->ops[nq].p.norm.eps;
        uint32_t members[] = {nq, nk, q, k, at};
        return replace(f, members, 5, fused);
    }
    uint32_t members[] = {q, k, at};
    return replace(f, members, 3, fused);
}

/* Tries the pattern at every operation of this kind. A fusion takes up to MAX_MEMBERS - 1 operations out
 * before or behind `i`, so that what follows may have moved up that far: step back and look again. */
static void walk(fuser *f, rq_op_kind kind, bool (*pattern)(fuser *, uint32_t))
{
    const rq_tape *t = f->tape;
    for (uint32_t i = 0; i < t->n_ops && t->status == RQ_OK; i++)
        if (t->ops[i].kind == kind && pattern(f, i)) i = i >= MAX_MEMBERS ? i - MAX_MEMBERS : UINT32_MAX;
}

rq_status rq_tape_fuse(rq_tape *tape, rq_fuse_supports supports, void *user, rq_error *err)
{
    rq_status status = rq_tape_check(tape, err);
    if (status != RQ_OK || tape->n_ops == 0) return status;
    fuser f = {.tape = tape, .supports = supports, .user = user};
    f.n_readers = rq_calloc(tape->n_values, sizeof *f.n_readers);
    if (!f.n_readers) {
        rq_tape_fail(tape, RQ_ERR_MEMORY, "out of memory for the readers of %u values", tape->n_values);
        return rq_tape_check(tape, err);
    }
    for (uint32_t i = 0; i < tape->n_ops; i++) {
        const rq_op *op = &tape->ops[i];
        for (uint32_t a = 0; a < op->n_in; a++) {
            if (!op->in[a] || tape->values[op->in[a]].space != RQ_SPACE_ACT) continue;
            uint32_t owner = tape->values[op->in[a]].index;
            bool counted = false; /* once per operation */
            for (uint32_t b = 0; b < a; b++)
                counted |= op->in[b] && tape->values[op->in[b]].space == RQ_SPACE_ACT &&
                           tape->values[op->in[b]].index == owner;
            f.n_readers[owner] += !counted;
        }
    }
    /* Products go with the norm before them rather than with the addition behind, so norms are tried first.
     */
    walk(&f, RQ_OP_RMS_NORM, fuse_norm);
    walk(&f, RQ_OP_MATMUL, fuse_matmul_add);
    walk(&f, RQ_OP_KV_WRITE, fuse_qk);
    rq_free(f.n_readers);
    return rq_tape_check(tape, err);
}

static bool written_by(const rq_tape *t, const rq_op *ops, uint32_t n, uint32_t owner)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t o = 0; o < ops[i].n_out; o++)
            if (t->values[ops[i].out[o]].index == owner) return true;
    return false;
}

bool rq_value_is_internal(const rq_tape *tape, rq_ref v)
{
    if (v == 0 || v >= tape->n_values || tape->values[v].space != RQ_SPACE_ACT) return false;
    uint32_t owner = tape->values[v].index;
    return written_by(tape, tape->prims, tape->n_prims, owner) &&
           !written_by(tape, tape->ops, tape->n_ops, owner);
}
