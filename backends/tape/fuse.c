#include "backends/tape/fuse.h"

#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/internal.h"

#include <string.h>

/* Members of a pattern lie at most this many operations apart. */
enum { WINDOW = 48, MAX_MEMBERS = 12, MAX_READERS = 8 };

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

static void count_readers(fuser *f)
{
    const rq_tape *t = f->tape;
    memset(f->n_readers, 0, t->n_values * sizeof *f->n_readers);
    for (uint32_t i = 0; i < t->n_ops; i++) {
        const rq_op *op = &t->ops[i];
        for (uint32_t a = 0; a < op->n_in; a++) {
            if (!op->in[a] || t->values[op->in[a]].space != RQ_SPACE_ACT) continue;
            uint32_t owner = t->values[op->in[a]].index;
            bool counted = false; /* once per operation */
            for (uint32_t b = 0; b < a; b++)
                counted |= op->in[b] && t->values[op->in[b]].space == RQ_SPACE_ACT &&
                           t->values[op->in[b]].index == owner;
            f->n_readers[owner] += !counted;
        }
    }
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

/* Puts the primitives of `fused` on the tape: `norm` unless NULL, then the members; they come off again with
 * t->n_prims. False when memory runs out, which is the tape's sticky error. */
static bool list_prims(rq_tape *t, rq_op *fused, const rq_op *norm, const uint32_t *members, uint32_t n)
{
    if (!rq_tape_grow((void **)&t->prims, &t->cap_prims, t->n_prims + n + 1, sizeof *t->prims)) {
        rq_tape_fail(t, RQ_ERR_MEMORY, "out of memory for %u operations", t->n_prims + n + 1);
        return false;
    }
    fused->prim_first = t->n_prims;
    if (norm) t->prims[t->n_prims++] = *norm;
    for (uint32_t m = 0; m < n; m++) t->prims[t->n_prims++] = t->ops[members[m]];
    fused->prim_count = t->n_prims - fused->prim_first;
    return true;
}

/* Would the backend take it? */
static bool is_wanted(fuser *f, rq_op fused, const rq_op *norm, const uint32_t *members, uint32_t n)
{
    uint32_t n_prims = f->tape->n_prims;
    bool yes = list_prims(f->tape, &fused, norm, members, n) && f->supports(f->user, f->tape, &fused);
    f->tape->n_prims = n_prims;
    return yes;
}

/* Replaces the members (in the order of the primitive list) by `fused`, at the place of the first or the last
 * of them; `norm`, when not NULL, is a norm before them all that becomes part of it and stays where it is.
 * Returns whether it was done; the tape's sticky error is set when memory runs out. */
static bool replace(fuser *f, const rq_op *norm, const uint32_t *members, uint32_t n, rq_op fused)
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
    uint32_t n_prims = t->n_prims;
    if (!list_prims(t, &fused, norm, members, n)) return false;
    if (!f->supports(f->user, t, &fused)) {
        t->n_prims = n_prims;
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
    count_readers(f);
    return true;
}

/* ---- patterns
 * ---------------------------------------------------------------------------------------------- */

static bool same_shape(const rq_value *a, const rq_value *b)
{
    for (int i = 0; i < 4; i++)
        if (a->ne[i] != b->ne[i]) return false;
    return true;
}

/* Does `r` show all of the contiguous value `whole`, element for element, in rows of its own (as [n, 1, T], say)? */
static bool shows_all(const fuser *f, rq_ref r, rq_ref whole)
{
    const rq_value *v = value(f, r), *w = value(f, whole);
    if (v->space != RQ_SPACE_ACT || w->space != RQ_SPACE_ACT || v->index != w->index ||
        v->offset != w->offset || v->type != w->type)
        return false;
    uint64_t n_v = v->ne[0], n_w = w->ne[0], end = v->stride[0] * v->ne[0];
    for (int i = 1; i < 4; i++) {
        if (v->ne[i] != 1 && v->stride[i] != end) return false;
        end *= v->ne[i];
        n_v *= v->ne[i];
        n_w *= w->ne[i];
    }
    return n_v == n_w;
}

/* An operation that multiplies all of `x`, row by row. */
static bool is_product_of(const fuser *f, const rq_op *op, rq_ref x)
{
    if (op->kind == RQ_OP_MATMUL) return op->in[1] == x;
    return op->kind == RQ_OP_MATMUL_EXPERTS && value(f, op->in[1])->ne[0] == value(f, x)->ne[0] &&
           value(f, op->in[1])->ne[1] == 1 && shows_all(f, op->in[1], x);
}

/* The sole reader of what operation `at` makes, if it is of this kind; UINT32_MAX otherwise. */
static uint32_t sole_reader(const fuser *f, uint32_t at, rq_op_kind kind)
{
    uint32_t i;
    return readers(f, at, &i, 1) == 1 && f->tape->ops[i].kind == kind ? i : UINT32_MAX;
}

/* What `add` adds to `y` itself; 0 when y is spread over something larger, or added to itself. */
static rq_ref added_to(const fuser *f, const rq_op *add, rq_ref y)
{
    rq_ref other = add->in[0] == y ? add->in[1] : add->in[0];
    const rq_value *o = value(f, other), *v = value(f, y);
    if (add->in[0] != y && (add->in[1] != y || !same_shape(o, v))) return 0;
    return o->space == RQ_SPACE_ACT && o->index == v->index ? 0 : other;
}

typedef struct candidate {
    rq_op fused;
    uint32_t members[MAX_MEMBERS], n;
} candidate;

/* Gate and up among products of `x` at `ops`, joined by one glu of both. */
static bool find_glu(const fuser *f, const uint32_t *ops, uint32_t n, candidate *c)
{
    const rq_tape *t = f->tape;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t glu = sole_reader(f, ops[i], RQ_OP_GLU), other = UINT32_MAX;
        if (glu == UINT32_MAX || t->ops[glu].p.glu.act == RQ_ACT_SIGMOID) continue;
        const rq_op *g = &t->ops[glu], *gate = &t->ops[ops[i]];
        if (g->in[0] != gate->out[0]) continue;
        for (uint32_t k = 0; k < n; k++)
            if (k != i && t->ops[ops[k]].out[0] == g->in[1] && sole_reader(f, ops[k], RQ_OP_GLU) == glu)
                other = ops[k];
        if (other == UINT32_MAX) continue;
        const rq_op *up = &t->ops[other];
        bool experts = gate->kind == RQ_OP_MATMUL_EXPERTS;
        if (up->kind != gate->kind || (experts && up->in[2] != gate->in[2]) ||
            !same_shape(value(f, gate->out[0]), value(f, up->out[0])))
            continue;
        *c = (candidate){.members = {ops[i], other, glu}, .n = 3};
        c->fused = (rq_op){.kind = RQ_OP_GLU_PRODUCTS,
                           .n_in = 5,
                           .n_out = 1,
                           .in = {gate->in[1], 0, gate->in[0], up->in[0], experts ? gate->in[2] : 0},
                           .out = {g->out[0]},
                           .layer = gate->layer};
        c->fused.p.fused.act = g->p.glu.act;
        return true;
    }
    return false;
}

/* Up to four plain products among those at `ops`, each with what is added to it where `adds`. */
static bool find_products(const fuser *f, const uint32_t *ops, uint32_t n, bool adds, candidate *c)
{
    const rq_tape *t = f->tape;
    uint32_t n_jobs = 0;
    *c = (candidate){.fused = {.kind = RQ_OP_PRODUCTS, .n_in = 2 + 2 * RQ_PRODUCTS_MAX}};
    rq_op *fused = &c->fused;
    for (uint32_t i = 0; i < n && n_jobs < RQ_PRODUCTS_MAX; i++) {
        const rq_op *mm = &t->ops[ops[i]];
        if (mm->kind != RQ_OP_MATMUL) continue;
        fused->layer = mm->layer;
        fused->in[0] = mm->in[1];
        fused->in[2 + n_jobs] = mm->in[0];
        fused->out[n_jobs++] = mm->out[0];
        c->members[c->n++] = ops[i];
    }
    fused->n_out = (uint8_t)n_jobs;
    for (uint32_t j = 0; j < n_jobs && adds; j++) {
        uint32_t add = sole_reader(f, c->members[j], RQ_OP_ADD);
        if (add == UINT32_MAX) continue;
        rq_ref other = added_to(f, &t->ops[add], fused->out[j]);
        if (!other) continue;
        fused->in[2 + RQ_PRODUCTS_MAX + j] = other;
        fused->out[j] = t->ops[add].out[0];
        c->members[c->n++] = add;
    }
    return n_jobs > 0;
}

/* The next operation to be made of the products at `ops` and the norm they share. Several are made of products that
 * are too many or too different for one: the norm is part of each. */
static bool next_of_norm(fuser *f, const rq_op *norm, const uint32_t *ops, uint32_t n, candidate *c)
{
    for (int way = 0; way < 3; way++) {
        if (way == 0 ? !find_glu(f, ops, n, c) : !find_products(f, ops, n, way == 1, c)) continue;
        c->fused.in[0] = norm->in[0];
        c->fused.in[1] = norm->in[1];
        c->fused.p.fused.normed = true;
        c->fused.p.fused.eps = norm->p.norm.eps;
        if (is_wanted(f, c->fused, norm, c->members, c->n)) return true;
    }
    return false;
}

/* rms_norm at `at` and whatever products read it. */
static bool fuse_norm(fuser *f, uint32_t at)
{
    rq_tape *t = f->tape;
    const rq_op norm = t->ops[at];
    uint32_t ops[MAX_READERS], left, n = readers(f, at, ops, MAX_READERS);
    for (uint32_t i = 0; i < n; i++)
        if (!is_product_of(f, &t->ops[ops[i]], norm.out[0]) || t->ops[ops[i]].layer != norm.layer)
            return false;
    candidate c;
    for (left = n; left > 0;) { /* nothing is won unless the norm goes */
        if (!next_of_norm(f, &norm, ops, left, &c)) return false;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < left; i++)
            if (!is_member(c.members, c.n, ops[i])) ops[kept++] = ops[i];
        left = kept;
    }
    bool any = false;
    while ((n = readers(f, at, ops, MAX_READERS)) > 0) {
        if (!next_of_norm(f, &norm, ops, n, &c) || !replace(f, &norm, c.members, c.n, c.fused)) return any;
        any = true;
    }
    if (!any || f->n_readers[value(f, norm.out[0])->index]) return any;
    memmove(&t->ops[at], &t->ops[at + 1], (t->n_ops - at - 1) * sizeof *t->ops);
    t->n_ops--;
    count_readers(f);
    return true;
}

/* A product at `at` and what is added to it. */
static bool fuse_product(fuser *f, uint32_t at)
{
    candidate c;
    return find_products(f, &at, 1, true, &c) && c.n > 1 && replace(f, NULL, c.members, c.n, c.fused);
}

/* rms_norm at `at`, then an addition or a gate. */
static bool fuse_join(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_op *norm = &t->ops[at];
    uint32_t reader, members[2] = {at, 0};
    if (readers(f, at, &reader, 1) != 1) return false;
    const rq_op *op = &t->ops[reader];
    members[1] = reader;
    rq_op fused = {.kind = RQ_OP_NORM_JOIN,
                   .n_in = 3,
                   .n_out = 1,
                   .in = {norm->in[0], norm->in[1]},
                   .out = {op->out[0]},
                   .layer = norm->layer};
    fused.p.fused.eps = norm->p.norm.eps;
    if (op->kind == RQ_OP_ADD) {
        fused.in[2] = added_to(f, op, norm->out[0]);
    } else if (op->kind == RQ_OP_GLU && op->in[1] == norm->out[0]) {
        fused.in[2] = op->in[0];
        fused.p.fused.glu = true;
        fused.p.fused.act = op->p.glu.act;
    }
    if (!fused.in[2] || !same_shape(value(f, fused.in[2]), value(f, norm->out[0]))) return false;
    return replace(f, NULL, members, 2, fused);
}

/* combine, then one addition, or two the first of which adds a row times the sigmoid of one number. */
static bool fuse_combine(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_op *combine = &t->ops[at];
    uint32_t add = sole_reader(f, at, RQ_OP_ADD);
    if (add == UINT32_MAX) return false;
    rq_ref other = added_to(f, &t->ops[add], combine->out[0]);
    if (!other || !same_shape(value(f, other), value(f, combine->out[0]))) return false;
    rq_op fused = {.kind = RQ_OP_COMBINE_ADD,
                   .n_in = 5,
                   .n_out = 1,
                   .in = {combine->in[0], combine->in[1], other},
                   .out = {t->ops[add].out[0]},
                   .layer = combine->layer};
    uint32_t glu = sole_producer(f, add, other, RQ_OP_GLU), last = sole_reader(f, add, RQ_OP_ADD);
    rq_ref addend = last == UINT32_MAX ? 0 : added_to(f, &t->ops[last], t->ops[add].out[0]);
    if (glu != UINT32_MAX && addend && same_shape(value(f, addend), value(f, other)) &&
        t->ops[glu].p.glu.act == RQ_ACT_SIGMOID && value(f, t->ops[glu].in[0])->ne[0] == 1) {
        rq_op gated = fused;
        gated.in[2] = addend;
        gated.in[3] = t->ops[glu].in[1];
        gated.in[4] = t->ops[glu].in[0];
        gated.out[0] = t->ops[last].out[0];
        uint32_t all[] = {at, glu, add, last};
        if (replace(f, NULL, all, 4, gated)) return true;
    }
    uint32_t members[] = {at, add};
    return replace(f, NULL, members, 2, fused);
}

/* attend, its rotation back, a gate. */
static bool fuse_attend(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_op *attend = &t->ops[at];
    rq_op fused = {.kind = RQ_OP_ATTEND_ROTATE,
                   .n_in = 6,
                   .n_out = 1,
                   .in = {attend->in[0], attend->in[1], attend->in[2]},
                   .layer = attend->layer};
    fused.p.attend.scale = attend->p.attend.scale;
    fused.p.attend.softcap = attend->p.attend.softcap;
    uint32_t members[3] = {at}, n = 1, rotate = sole_reader(f, at, RQ_OP_ROTATE);
    rq_ref y = attend->out[0];
    if (rotate != UINT32_MAX) {
        const rq_op *r = &t->ops[rotate];
        if (!r->p.rotate.inverse || !shows_all(f, r->in[0], y)) return false;
        fused.in[3] = r->in[1];
        fused.in[4] = r->in[2];
        fused.out[0] = y = r->out[0];
        members[n++] = rotate;
    }
    uint32_t glu = sole_reader(f, members[n - 1], RQ_OP_GLU);
    if (glu != UINT32_MAX) {
        const rq_op *g = &t->ops[glu];
        rq_ref gate = g->in[0], up = g->in[1];
        if (g->p.glu.act == RQ_ACT_SIGMOID && value(f, gate)->index != value(f, y)->index &&
            shows_all(f, up, y) && value(f, gate)->ne[0] == value(f, up)->ne[0] &&
            value(f, up)->ne[2] == t->bucket) {
            rq_op gated = fused;
            gated.in[5] = gate;
            gated.out[0] = g->out[0];
            members[n] = glu;
            if (replace(f, NULL, members, n + 1, gated)) return true;
        }
    }
    return n > 1 && replace(f, NULL, members, n, fused);
}

static bool same_weight(const fuser *f, rq_ref a, rq_ref b)
{
    const rq_value *va = value(f, a), *vb = value(f, b);
    return va->space == RQ_SPACE_WEIGHT && vb->space == RQ_SPACE_WEIGHT && va->index == vb->index &&
           va->offset == vb->offset;
}

/* Is the value read by one operation only? */
static bool is_read_once(const fuser *f, rq_ref r)
{
    return value(f, r)->space == RQ_SPACE_ACT && f->n_readers[value(f, r)->index] == 1;
}

/* What makes `r` before `at`; UINT32_MAX when it is not near. */
static uint32_t producer(const fuser *f, uint32_t at, rq_ref r)
{
    const rq_tape *t = f->tape;
    for (uint32_t i = at; i-- > 0 && i + WINDOW >= at;)
        if (t->ops[i].n_out == 1 && t->ops[i].out[0] == r) return i;
    return UINT32_MAX;
}

/* The operation that attends with what the kv_write at `at` writes. */
static uint32_t find_attend(const fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_value *cache = value(f, t->ops[at].in[0]);
    for (uint32_t i = at + 1; i < t->n_ops && i <= at + WINDOW; i++) {
        const rq_op *op = &t->ops[i];
        if (op->kind != RQ_OP_ATTEND && op->kind != RQ_OP_ATTEND_ROTATE) continue;
        const rq_value *c = value(f, op->in[0]);
        if (c->index == cache->index && c->layer == cache->layer) return i;
    }
    return UINT32_MAX;
}

/* Norms, positions and rotations of queries, keys and values, and the kv_write at `at`. */
static bool fuse_qkv(fuser *f, uint32_t at)
{
    const rq_tape *t = f->tape;
    const rq_op *write = &t->ops[at];
    uint32_t attend = find_attend(f, at);
    if (attend == UINT32_MAX) return false;
    /* from the results back: [rotations,] ropes, [norms] */
    uint32_t kr = sole_producer(f, at, write->in[1], RQ_OP_ROTATE),
             vr = sole_producer(f, at, write->in[2], RQ_OP_ROTATE),
             qr = producer(f, attend, t->ops[attend].in[1]);
    if (qr != UINT32_MAX && t->ops[qr].kind != RQ_OP_ROTATE) qr = UINT32_MAX;
    if ((kr == UINT32_MAX) != (qr == UINT32_MAX)) return false;
    rq_ref q = t->ops[attend].in[1], k = write->in[1], v = write->in[2];
    rq_op fused = {.kind = RQ_OP_QKV_WRITE, .n_in = 14, .n_out = 1, .out = {q}, .layer = write->layer};
    fused.in[6] = write->in[0];
    if (kr != UINT32_MAX) {
        const rq_op *a = &t->ops[qr], *b = &t->ops[kr];
        if (a->p.rotate.inverse || b->p.rotate.inverse || a->in[2] || !is_read_once(f, a->in[0]))
            return false;
        fused.in[7] = a->in[1];
        fused.in[8] = a->in[3];
        fused.in[9] = b->in[1];
        fused.in[10] = b->in[2];
        fused.in[11] = b->in[3];
        q = a->in[0];
        k = b->in[0];
    }
    if (vr != UINT32_MAX) {
        const rq_op *c = &t->ops[vr];
        if (c->p.rotate.inverse || c->in[3]) return false;
        fused.in[12] = c->in[1];
        fused.in[13] = c->in[2];
        v = c->in[0];
    }
    uint32_t kp = sole_producer(f, kr == UINT32_MAX ? at : kr, k, RQ_OP_ROPE), qp = producer(f, attend, q);
    if (kp == UINT32_MAX || qp == UINT32_MAX || qp == kp || t->ops[qp].kind != RQ_OP_ROPE) return false;
    const rq_op *rq = &t->ops[qp], *rk = &t->ops[kp];
    bool alike = rq->p.rope.n_rot == rk->p.rope.n_rot && rq->p.rope.pairing == rk->p.rope.pairing &&
                 rq->p.rope.magnitude == rk->p.rope.magnitude && same_weight(f, rq->in[1], rk->in[1]);
    if (!alike || reads(t, rq, value(f, k)->index)) return false;
    uint32_t nq = sole_producer(f, qp, rq->in[0], RQ_OP_RMS_NORM),
             nk = sole_producer(f, kp, rk->in[0], RQ_OP_RMS_NORM),
             nv = sole_producer(f, vr == UINT32_MAX ? at : vr, v, RQ_OP_RMS_NORM);
    bool normed =
        nq != UINT32_MAX && nk != UINT32_MAX && nq != nk && t->ops[nq].p.norm.eps == t->ops[nk].p.norm.eps;
    bool v_normed = normed && nv != UINT32_MAX && nv != nk && !t->ops[nv].in[1] &&
                    t->ops[nv].p.norm.eps == t->ops[nk].p.norm.eps;
    fused.in[0] = normed ? t->ops[nq].in[0] : rq->in[0];
    fused.in[1] = normed ? t->ops[nk].in[0] : rk->in[0];
    fused.in[3] = rq->in[1];
    fused.in[4] = normed ? t->ops[nq].in[1] : 0;
    fused.in[5] = normed ? t->ops[nk].in[1] : 0;
    fused.p.fused.normed = normed;
    fused.p.fused.eps = normed ? t->ops[nq].p.norm.eps : 0;
    fused.p.fused.n_rot = rq->p.rope.n_rot;
    fused.p.fused.pairing = rq->p.rope.pairing;
    fused.p.fused.magnitude = rq->p.rope.magnitude;
    for (int way = v_normed ? 0 : 1; way < 2; way++) {
        fused.p.fused.v_normed = way == 0;
        fused.in[2] = way == 0 ? t->ops[nv].in[0] : v;
        const uint32_t list[] = {normed ? nq : UINT32_MAX,
                                 normed ? nk : UINT32_MAX,
                                 way == 0 ? nv : UINT32_MAX,
                                 qp,
                                 kp,
                                 qr,
                                 kr,
                                 vr,
                                 at};
        uint32_t members[MAX_MEMBERS], n = 0;
        for (uint32_t i = 0; i < sizeof list / sizeof *list; i++)
            if (list[i] != UINT32_MAX) members[n++] = list[i];
        if (replace(f, NULL, members, n, fused)) return true;
    }
    return false;
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
    count_readers(&f);
    /* Products go with the norm before them rather than with the addition behind, so norms are tried first; an
     * addition goes with the product before it rather than with a norm. */
    walk(&f, RQ_OP_RMS_NORM, fuse_norm);
    walk(&f, RQ_OP_MATMUL, fuse_product);
    walk(&f, RQ_OP_KV_WRITE, fuse_qkv);
    walk(&f, RQ_OP_ATTEND, fuse_attend);
    walk(&f, RQ_OP_COMBINE, fuse_combine);
    walk(&f, RQ_OP_RMS_NORM, fuse_join);
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

const rq_op *rq_fused_rotate(const rq_tape *tape, const rq_op *fused, uint32_t which)
{
    const rq_op *list = &tape->prims[fused->prim_first], *write = &list[fused->prim_count - 1];
    for (uint32_t i = 0; i < fused->prim_count; i++) {
        if (list[i].kind != RQ_OP_ROTATE) continue;
        rq_ref y = list[i].out[0];
        if (fused->kind != RQ_OP_QKV_WRITE || y == (which == 0 ? fused->out[0] : write->in[which]))
            return &list[i];
    }
    return NULL;
}

bool rq_value_is_internal(const rq_tape *tape, rq_ref v)
{
    if (v == 0 || v >= tape->n_values || tape->values[v].space != RQ_SPACE_ACT) return false;
    uint32_t owner = tape->values[v].index;
    return written_by(tape, tape->prims, tape->n_prims, owner) &&
           !written_by(tape, tape->ops, tape->n_ops, owner);
}
