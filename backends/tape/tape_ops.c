/* The builders of operations: every shape and type is checked here, so that backends may rely on them. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/state.h"
#include "backends/tape/internal.h"
#include "backends/tape/tape.h"

#include <math.h>
#include <stdio.h>

/* A printable shape. */
typedef struct shape_text {
    char text[64];
} shape_text;

static shape_text shape_of(const rq_value *v)
{
    shape_text s;
    const rq_type_info *info = rq_type_get((uint32_t)v->type);
    snprintf(s.text, sizeof s.text, "%s [%u, %u, %u]", info ? info->name : "?", v->ne[0], v->ne[1], v->ne[2]);
    return s;
}

static const rq_value *get(const rq_tape *t, rq_ref r)
{
    return r && r < t->n_values ? &t->values[r] : NULL;
}

/* An f32 operand in the arena or a weight vector; checks that it exists. */
static const rq_value *f32_operand(rq_tape *t, rq_op_kind kind, rq_ref r, const char *role)
{
    if (t->status != RQ_OK) return NULL;
    const rq_value *v = get(t, r);
    if (!v) {
        rq_tape_fail(t, RQ_ERR_ARGUMENT, "%s: the operand %s is missing", rq_op_get(kind)->name, role);
        return NULL;
    }
    bool space = v->space == RQ_SPACE_ACT || v->space == RQ_SPACE_WEIGHT || v->space == RQ_SPACE_PERSIST;
    if (v->type != RQ_TYPE_F32 || !space) {
        rq_tape_fail(t, RQ_ERR_UNSUPPORTED, "%s: %s must be f32, not %s", rq_op_get(kind)->name, role,
                     shape_of(v).text);
        return NULL;
    }
    return v;
}

static const rq_value *i32_operand(rq_tape *t, rq_op_kind kind, rq_ref r, const char *role)
{
    if (t->status != RQ_OK) return NULL;
    const rq_value *v = get(t, r);
    if (!v || v->type != RQ_TYPE_I32 || v->space != RQ_SPACE_ACT) {
        rq_tape_fail(t, RQ_ERR_ARGUMENT, "%s: %s must be an i32 activation", rq_op_get(kind)->name, role);
        return NULL;
    }
    return v;
}

/* A matrix that may be quantised. */
static const rq_value *weight_operand(rq_tape *t, rq_op_kind kind, rq_ref r)
{
    if (t->status != RQ_OK) return NULL;
    const rq_value *v = get(t, r);
    const rq_type_info *info = v ? rq_type_get((uint32_t)v->type) : NULL;
    if (!v || v->space != RQ_SPACE_WEIGHT || !info) {
        rq_tape_fail(t, RQ_ERR_ARGUMENT, "%s: the first operand must be a weight", rq_op_get(kind)->name);
        return NULL;
    }
    if (!info->is_weight) {
        rq_tape_fail(t, RQ_ERR_UNSUPPORTED, "%s: weight %s has the type %s, which no product is offered for",
                     rq_op_get(kind)->name, v->name ? v->name : "?", info->name);
        return NULL;
    }
    return v;
}

static const rq_value *space_operand(rq_tape *t, rq_op_kind kind, rq_ref r, rq_space space, const char *role)
{
    if (t->status != RQ_OK) return NULL;
    const rq_value *v = get(t, r);
    if (!v || v->space != space) {
        rq_tape_fail(t, RQ_ERR_ARGUMENT, "%s: the operand %s is missing or of the wrong kind",
                     rq_op_get(kind)->name, role);
        return NULL;
    }
    return v;
}

static rq_ref mismatch(rq_tape *t, rq_op_kind kind, const rq_value *a, const rq_value *b)
{
    return rq_tape_fail(t, RQ_ERR_FORMAT, "%s: %s%s%s does not go with %s%s%s", rq_op_get(kind)->name,
                        a->name ? a->name : "", a->name ? " " : "", shape_of(a).text, b->name ? b->name : "",
                        b->name ? " " : "", shape_of(b).text);
}

static bool same_shape(const rq_value *a, const rq_value *b)
{
    for (int i = 0; i < 4; i++)
        if (a->ne[i] != b->ne[i]) return false;
    return true;
}

static bool is_row(const rq_value *v, uint32_t n)
{
    return v->ne[0] == n && v->ne[1] == 1 && v->ne[2] == 1 && v->ne[3] == 1;
}

/* One element for each row of v? */
static bool is_scalar_of(const rq_value *s, const rq_value *v)
{
    return s->ne[0] == 1 && s->ne[1] == v->ne[1] && s->ne[2] == v->ne[2] && s->ne[3] == v->ne[3];
}

static bool positive(float x)
{
    return isfinite(x) && x > 0;
}

/* Appends the operation. The tape is unchanged when it failed or memory runs out. */
static rq_op *append(rq_tape *t, rq_op_kind kind)
{
    if (t->status != RQ_OK) return NULL;
    if (!rq_tape_grow((void **)&t->ops, &t->cap_ops, t->n_ops + 1, sizeof *t->ops)) {
        rq_tape_fail(t, RQ_ERR_MEMORY, "out of memory for %u operations", t->n_ops + 1);
        return NULL;
    }
    rq_op *op = &t->ops[t->n_ops++];
    *op = (rq_op){.kind = kind, .layer = t->layer};
    return op;
}

/* An f32 result of the shape of x and an operation (kind; a, b) that makes it. */
static rq_op *append_like(rq_tape *t, rq_op_kind kind, rq_ref shape, rq_ref a, rq_ref b, uint8_t n_in)
{
    rq_value v = t->values[shape];
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, v.ne[0], v.ne[1], v.ne[2], v.ne[3]);
    rq_op *op = append(t, kind);
    if (!op) return NULL;
    op->n_in = n_in;
    op->in[0] = a;
    op->in[1] = b;
    op->n_out = 1;
    op->out[0] = y;
    return op;
}

rq_ref rq_op_embed(rq_tape *t, rq_ref table)
{
    const rq_value *w = weight_operand(t, RQ_OP_EMBED, table);
    if (!w) return 0;
    if (w->ne[2] != 1 || w->ne[3] != 1)
        return rq_tape_fail(t, RQ_ERR_FORMAT, "embed: the table %s is not a matrix", shape_of(w).text);
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, w->ne[0], t->bucket, 1, 1);
    rq_op *op = append(t, RQ_OP_EMBED);
    if (!op) return 0;
    op->n_in = 1;
    op->in[0] = table;
    op->n_out = 1;
    return op->out[0] = y;
}

rq_ref rq_op_rms_norm(rq_tape *t, rq_ref x, rq_ref weight, float eps)
{
    const rq_value *v = f32_operand(t, RQ_OP_RMS_NORM, x, "x");
    if (!v) return 0;
    if (weight) {
        const rq_value *w = f32_operand(t, RQ_OP_RMS_NORM, weight, "weight");
        if (!w) return 0;
        if (!is_row(w, v->ne[0])) return mismatch(t, RQ_OP_RMS_NORM, w, v);
    }
    if (!positive(eps) && eps != 0)
        return rq_tape_fail(t, RQ_ERR_FORMAT, "rms_norm: eps %g is not a small positive number", (double)eps);
    rq_op *op = append_like(t, RQ_OP_RMS_NORM, x, x, weight, 2);
    if (!op) return 0;
    op->p.norm.eps = eps;
    return op->out[0];
}

rq_ref rq_op_l2_norm(rq_tape *t, rq_ref x, float eps)
{
    if (!f32_operand(t, RQ_OP_L2_NORM, x, "x")) return 0;
    if (!positive(eps) && eps != 0)
        return rq_tape_fail(t, RQ_ERR_FORMAT, "l2_norm: eps %g is not a small positive number", (double)eps);
    rq_op *op = append_like(t, RQ_OP_L2_NORM, x, x, 0, 1);
    if (!op) return 0;
    op->p.norm.eps = eps;
    return op->out[0];
}

rq_ref rq_op_matmul(rq_tape *t, rq_ref w, rq_ref x)
{
    const rq_value *a = weight_operand(t, RQ_OP_MATMUL, w);
    const rq_value *b = a ? f32_operand(t, RQ_OP_MATMUL, x, "x") : NULL;
    if (!b) return 0;
    if (a->ne[0] != b->ne[0] || a->ne[2] != 1 || a->ne[3] != 1 || b->ne[2] != 1 || b->ne[3] != 1)
        return mismatch(t, RQ_OP_MATMUL, a, b);
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, a->ne[1], b->ne[1], 1, 1);
    rq_op *op = append(t, RQ_OP_MATMUL);
    if (!op) return 0;
    op->n_in = 2;
    op->in[0] = w;
    op->in[1] = x;
    op->n_out = 1;
    return op->out[0] = y;
}

static rq_ref elementwise(rq_tape *t, rq_op_kind kind, rq_ref a, rq_ref b)
{
    const rq_value *va = f32_operand(t, kind, a, "a");
    const rq_value *vb = va ? f32_operand(t, kind, b, "b") : NULL;
    if (!vb) return 0;
    if (!same_shape(va, vb) && !is_row(vb, va->ne[0])) return mismatch(t, kind, va, vb);
    rq_op *op = append_like(t, kind, a, a, b, 2);
    return op ? op->out[0] : 0;
}

rq_ref rq_op_add(rq_tape *t, rq_ref a, rq_ref b)
{
    return elementwise(t, RQ_OP_ADD, a, b);
}

rq_ref rq_op_mul(rq_tape *t, rq_ref a, rq_ref b)
{
    return elementwise(t, RQ_OP_MUL, a, b);
}

rq_ref rq_op_scale(rq_tape *t, rq_ref x, float factor)
{
    if (!f32_operand(t, RQ_OP_SCALE, x, "x")) return 0;
    if (!isfinite(factor)) return rq_tape_fail(t, RQ_ERR_FORMAT, "scale: the factor is not a finite number");
    rq_op *op = append_like(t, RQ_OP_SCALE, x, x, 0, 1);
    if (!op) return 0;
    op->p.scale.factor = factor;
    return op->out[0];
}

rq_ref rq_op_softcap(rq_tape *t, rq_ref x, float cap)
{
    if (!f32_operand(t, RQ_OP_SOFTCAP, x, "x")) return 0;
    if (!positive(cap)) return rq_tape_fail(t, RQ_ERR_FORMAT, "softcap: the cap is not a positive number");
    rq_op *op = append_like(t, RQ_OP_SOFTCAP, x, x, 0, 1);
    if (!op) return 0;
    op->p.softcap.cap = cap;
    return op->out[0];
}

rq_ref rq_op_glu(rq_tape *t, rq_ref gate, rq_ref up, rq_act act)
{
    const rq_value *g = f32_operand(t, RQ_OP_GLU, gate, "gate");
    const rq_value *u = g ? f32_operand(t, RQ_OP_GLU, up, "up") : NULL;
    if (!u) return 0;
    if (!same_shape(g, u) && !is_scalar_of(g, u)) return mismatch(t, RQ_OP_GLU, g, u);
    rq_op *op = append_like(t, RQ_OP_GLU, up, gate, up, 2);
    if (!op) return 0;
    op->p.glu.act = act;
    return op->out[0];
}

/* [d, heads, T] of a step? */
static bool is_heads(const rq_tape *t, const rq_value *v)
{
    return v->ne[2] == t->bucket && v->ne[3] == 1;
}

rq_ref rq_op_rope(rq_tape *t, rq_ref x, rq_ref inv_freq, uint32_t n_rot, rq_pairing pairing, float magnitude)
{
    const rq_value *v = f32_operand(t, RQ_OP_ROPE, x, "x");
    const rq_value *f = v ? f32_operand(t, RQ_OP_ROPE, inv_freq, "inv_freq") : NULL;
    if (!f) return 0;
    if (n_rot == 0 || n_rot % 2 || n_rot > v->ne[0])
        return rq_tape_fail(t, RQ_ERR_FORMAT, "rope: %u rotated elements do not go with a head of %u", n_rot,
                            v->ne[0]);
    if (!is_heads(t, v) || !is_row(f, n_rot / 2)) return mismatch(t, RQ_OP_ROPE, v, f);
    if (!isfinite(magnitude))
        return rq_tape_fail(t, RQ_ERR_FORMAT, "rope: the magnitude is not a finite number");
    rq_op *op = append_like(t, RQ_OP_ROPE, x, x, inv_freq, 2);
    if (!op) return 0;
    op->p.rope.n_rot = n_rot;
    op->p.rope.pairing = pairing;
    op->p.rope.magnitude = magnitude;
    return op->out[0];
}

/* Floats of the data of one head's rotation; 0 when the blocks do not cover d in ascending order. */
static uint64_t rotation_floats(const rq_rotation_block *blocks, uint32_t n_blocks, uint32_t d)
{
    uint64_t floats = 0;
    uint32_t end = 0;
    for (uint32_t i = 0; i < n_blocks; i++) {
        const rq_rotation_block *b = &blocks[i];
        bool power = b->size && !(b->size & (b->size - 1));
        if (b->count == 0 || b->size == 0 || b->offset != end || (b->hadamard && !power)) return 0;
        end += (uint32_t)b->count * b->size;
        floats += (uint64_t)b->count * b->size * (b->hadamard ? 1 : b->size);
        if (end > d) return 0;
    }
    return end == d ? floats : 0;
}

/* One column for all heads, or one for each of a number of heads that divides theirs. */
static bool is_per_head(const rq_value *v, uint64_t n, uint32_t heads)
{
    return v->space == RQ_SPACE_WEIGHT && v->ne[0] == n && v->ne[1] && heads % v->ne[1] == 0 &&
           v->ne[2] == 1 && v->ne[3] == 1;
}

rq_ref rq_op_rotate(rq_tape *t, rq_ref x, rq_ref data, rq_ref mean, rq_ref lambda,
                    const rq_rotation_block *blocks, uint32_t n_blocks, bool inverse)
{
    const rq_op_kind kind = RQ_OP_ROTATE;
    const rq_value *v = f32_operand(t, kind, x, "x");
    if (!v) return 0;
    uint64_t floats = rotation_floats(blocks, n_blocks, v->ne[0]);
    if (!is_heads(t, v) || n_blocks > RQ_ROTATION_BLOCKS || (n_blocks && floats == 0))
        return rq_tape_fail(t, RQ_ERR_FORMAT, "rotate: %u blocks do not cover the heads of x %s", n_blocks,
                            shape_of(v).text);
    if (!data != (n_blocks == 0))
        return rq_tape_fail(t, RQ_ERR_ARGUMENT, "rotate: blocks and their data go together");
    const struct {
        rq_ref ref;
        const char *role;
        uint64_t n;
    } tables[] = {{data, "data", floats}, {mean, "mean", v->ne[0]}, {lambda, "lambda", v->ne[0]}};
    for (int i = 0; i < 3; i++) {
        if (!tables[i].ref) continue;
        const rq_value *w = f32_operand(t, kind, tables[i].ref, tables[i].role);
        if (!w) return 0;
        if (!is_per_head(w, tables[i].n, v->ne[1])) return mismatch(t, kind, w, v);
    }
    rq_op *op = append_like(t, kind, x, x, data, 4);
    if (!op) return 0;
    op->in[2] = mean;
    op->in[3] = lambda;
    op->p.rotate.n_blocks = (uint8_t)n_blocks;
    op->p.rotate.inverse = inverse;
    for (uint32_t i = 0; i < n_blocks; i++) op->p.rotate.blocks[i] = blocks[i];
    return op->out[0];
}

void rq_op_kv_encode(rq_tape *t, rq_ref cache)
{
    if (!space_operand(t, RQ_OP_KV_ENCODE, cache, RQ_SPACE_CACHE, "cache")) return;
    rq_op *op = append(t, RQ_OP_KV_ENCODE);
    if (!op) return;
    op->n_in = 1;
    op->in[0] = cache;
}

void rq_op_kv_write(rq_tape *t, rq_ref cache, rq_ref k, rq_ref v)
{
    if (!space_operand(t, RQ_OP_KV_WRITE, cache, RQ_SPACE_CACHE, "cache")) return;
    const rq_value *vk = f32_operand(t, RQ_OP_KV_WRITE, k, "k");
    const rq_value *vv = vk ? f32_operand(t, RQ_OP_KV_WRITE, v, "v") : NULL;
    if (!vv) return;
    if (!is_heads(t, vk) || !is_heads(t, vv) || vk->ne[1] != vv->ne[1]) {
        mismatch(t, RQ_OP_KV_WRITE, vk, vv);
        return;
    }
    rq_op *op = append(t, RQ_OP_KV_WRITE);
    if (!op) return;
    op->n_in = 3;
    op->in[0] = cache;
    op->in[1] = k;
    op->in[2] = v;
}

rq_ref rq_op_attend(rq_tape *t, rq_ref cache, rq_ref q, uint32_t dim_v, float scale, float softcap)
{
    return rq_op_attend_mean(t, cache, q, 0, dim_v, scale, softcap);
}

rq_ref rq_op_attend_mean(rq_tape *t, rq_ref cache, rq_ref q, rq_ref mean, uint32_t dim_v, float scale,
                         float softcap)
{
    if (!space_operand(t, RQ_OP_ATTEND, cache, RQ_SPACE_CACHE, "cache")) return 0;
    const rq_value *v = f32_operand(t, RQ_OP_ATTEND, q, "q");
    if (!v) return 0;
    if (!is_heads(t, v) || dim_v == 0 || dim_v > 65536)
        return rq_tape_fail(t, RQ_ERR_FORMAT,
                            "attend: q %s and %u value elements are not attention over %u tokens",
                            shape_of(v).text, dim_v, t->bucket);
    if (!isfinite(scale) || !isfinite(softcap) || softcap < 0)
        return rq_tape_fail(t, RQ_ERR_FORMAT, "attend: scale %g or softcap %g makes no sense", (double)scale,
                            (double)softcap);
    if (mean) {
        const rq_value *m = f32_operand(t, RQ_OP_ATTEND, mean, "mean");
        if (!m) return 0;
        if (!is_per_head(m, v->ne[0], v->ne[1])) return mismatch(t, RQ_OP_ATTEND, m, v);
    }
    uint64_t width = (uint64_t)dim_v * v->ne[1];
    if (width > UINT32_MAX) return rq_tape_fail(t, RQ_ERR_FORMAT, "attend: too many heads");
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, (uint32_t)width, t->bucket, 1, 1);
    rq_op *op = append(t, RQ_OP_ATTEND);
    if (!op) return 0;
    op->n_in = 3;
    op->in[0] = cache;
    op->in[1] = q;
    op->in[2] = mean;
    op->n_out = 1;
    op->p.attend.scale = scale;
    op->p.attend.softcap = softcap;
    return op->out[0] = y;
}

rq_ref rq_op_short_conv(rq_tape *t, rq_ref state, rq_ref x, rq_ref w)
{
    const rq_op_kind kind = RQ_OP_SHORT_CONV;
    if (!space_operand(t, kind, state, RQ_SPACE_STATE, "state")) return 0;
    const rq_value *v = f32_operand(t, kind, x, "x");
    const rq_value *c = v ? f32_operand(t, kind, w, "w") : NULL;
    if (!c) return 0;
    bool rows = v->ne[1] == t->bucket && v->ne[2] == 1 && v->ne[3] == 1;
    if (!rows || c->space != RQ_SPACE_WEIGHT || c->ne[0] != v->ne[0] || c->ne[1] < 2 ||
        c->ne[1] > RQ_MAX_CONV_TAPS || c->ne[2] != 1 || c->ne[3] != 1)
        return mismatch(t, kind, v, c);
    rq_op *op = append_like(t, kind, x, state, x, 3);
    if (!op) return 0;
    op->in[2] = w;
    return op->out[0];
}

rq_ref rq_op_delta_rule(rq_tape *t, const rq_delta_in *in)
{
    const rq_op_kind kind = RQ_OP_DELTA_RULE;
    if (!space_operand(t, kind, in->state, RQ_SPACE_STATE, "state")) return 0;
    const rq_ref refs[] = {in->q, in->k, in->v, in->alpha, in->beta, in->rate, in->offset};
    static const char *const roles[] = {"q", "k", "v", "alpha", "beta", "rate", "offset"};
    const rq_value *x[7];
    for (int i = 0; i < 7; i++)
        if (!(x[i] = f32_operand(t, kind, refs[i], roles[i]))) return 0;
    const rq_value *q = x[0], *k = x[1], *v = x[2];
    if (!is_heads(t, q) || !same_shape(q, k) || v->ne[1] % k->ne[1]) return mismatch(t, kind, q, k);
    if (!is_heads(t, v) || k->ne[0] > 4096 || v->ne[0] > 4096) return mismatch(t, kind, k, v);
    for (int i = 3; i < 5; i++)
        if (x[i]->ne[0] != v->ne[1] || x[i]->ne[1] != t->bucket || x[i]->ne[2] != 1)
            return mismatch(t, kind, v, x[i]);
    for (int i = 5; i < 7; i++)
        if (!is_row(x[i], v->ne[1]) || x[i]->space != RQ_SPACE_WEIGHT) return mismatch(t, kind, v, x[i]);
    if (!positive(in->scale)) return rq_tape_fail(t, RQ_ERR_FORMAT, "delta_rule: the scale is not positive");
    rq_op *op = append_like(t, kind, in->v, in->state, 0, 8);
    if (!op) return 0;
    for (int i = 0; i < 7; i++) op->in[1 + i] = refs[i];
    op->p.delta.scale = in->scale;
    op->p.delta.tiled = in->tiled;
    return op->out[0];
}

void rq_op_route(rq_tape *t, rq_ref logits, uint32_t n_used, float scale, rq_ref *ids, rq_ref *weights)
{
    *ids = *weights = 0;
    const rq_value *v = f32_operand(t, RQ_OP_ROUTE, logits, "logits");
    if (!v) return;
    if (n_used == 0 || n_used > v->ne[0] || v->ne[1] != t->bucket || v->ne[2] != 1 || v->ne[3] != 1) {
        rq_tape_fail(t, RQ_ERR_FORMAT, "route: %u experts of %s cannot be used", n_used, shape_of(v).text);
        return;
    }
    if (!isfinite(scale)) {
        rq_tape_fail(t, RQ_ERR_FORMAT, "route: the scale is not a finite number");
        return;
    }
    rq_ref i = rq_tape_act(t, RQ_TYPE_I32, n_used, t->bucket, 1, 1);
    rq_ref w = rq_tape_act(t, RQ_TYPE_F32, n_used, t->bucket, 1, 1);
    rq_op *op = append(t, RQ_OP_ROUTE);
    if (!op) return;
    op->n_in = 1;
    op->in[0] = logits;
    op->n_out = 2;
    op->out[0] = i;
    op->out[1] = w;
    op->p.route.n_used = n_used;
    op->p.route.scale = scale;
    *ids = i;
    *weights = w;
}

rq_ref rq_op_group(rq_tape *t, rq_ref ids, uint32_t n_expert)
{
    const rq_value *v = i32_operand(t, RQ_OP_GROUP, ids, "ids");
    if (!v) return 0;
    if (n_expert == 0 || n_expert > 65536 || v->ne[0] > n_expert || v->ne[1] != t->bucket)
        return rq_tape_fail(t, RQ_ERR_FORMAT, "group: %s are not choices out of %u experts", shape_of(v).text,
                            n_expert);
    rq_group_layout l = rq_group_layout_of(n_expert, v->ne[0], t->bucket);
    rq_ref y = rq_tape_act(t, RQ_TYPE_I32, l.words, 1, 1, 1);
    rq_op *op = append(t, RQ_OP_GROUP);
    if (!op) return 0;
    op->n_in = 1;
    op->in[0] = ids;
    op->n_out = 1;
    op->p.group.n_expert = n_expert;
    return op->out[0] = y;
}

rq_ref rq_op_matmul_experts(rq_tape *t, rq_ref w, rq_ref x, rq_ref ids, rq_ref group)
{
    const rq_op_kind kind = RQ_OP_MATMUL_EXPERTS;
    if (!weight_operand(t, kind, w) || !f32_operand(t, kind, x, "x") || !i32_operand(t, kind, ids, "ids") ||
        ((group || t->bucket > RQ_NARROW_BUCKET) && !i32_operand(t, kind, group, "group")))
        return 0;
    rq_value vx = t->values[x];
    if (vx.ne[2] == 1 && vx.ne[1] == t->bucket && t->bucket > 1) { /* [n_in, T] is seen as [n_in, 1, T] */
        vx.ne[2] = vx.ne[1];
        vx.stride[2] = vx.stride[1];
        vx.stride[3] = vx.stride[2] * vx.ne[2];
        vx.ne[1] = 1;
        x = rq_tape_value(t, &vx);
        if (!x) return 0;
    }
    const rq_value *vw = &t->values[w], *vi = &t->values[ids], *vg = &t->values[group];
    uint32_t k = vi->ne[0];
    if (vw->ne[0] != vx.ne[0] || vw->ne[3] != 1 || vx.ne[2] != t->bucket || vx.ne[3] != 1 ||
        (vx.ne[1] != 1 && vx.ne[1] != k))
        return mismatch(t, kind, vw, &vx);
    if (vi->ne[1] != t->bucket || k > vw->ne[2]) return mismatch(t, kind, vw, vi);
    if (group && vg->ne[0] != rq_group_layout_of(vw->ne[2], k, t->bucket).words)
        return mismatch(t, kind, vw, vg);
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, vw->ne[1], k, t->bucket, 1);
    rq_op *op = append(t, kind);
    if (!op) return 0;
    op->n_in = 4;
    op->in[0] = w;
    op->in[1] = x;
    op->in[2] = ids;
    op->in[3] = group;
    op->n_out = 1;
    return op->out[0] = y;
}

rq_ref rq_op_combine(rq_tape *t, rq_ref y, rq_ref weights)
{
    const rq_value *v = f32_operand(t, RQ_OP_COMBINE, y, "y");
    const rq_value *w = v ? f32_operand(t, RQ_OP_COMBINE, weights, "weights") : NULL;
    if (!w) return 0;
    if (v->ne[2] != t->bucket || v->ne[3] != 1 || w->ne[0] != v->ne[1] || w->ne[1] != t->bucket ||
        w->ne[2] != 1)
        return mismatch(t, RQ_OP_COMBINE, v, w);
    rq_ref out = rq_tape_act(t, RQ_TYPE_F32, v->ne[0], t->bucket, 1, 1);
    rq_op *op = append(t, RQ_OP_COMBINE);
    if (!op) return 0;
    op->n_in = 2;
    op->in[0] = y;
    op->in[1] = weights;
    op->n_out = 1;
    return op->out[0] = out;
}

void rq_op_copy(rq_tape *t, rq_ref x, rq_ref persist)
{
    const rq_value *v = f32_operand(t, RQ_OP_COPY, x, "x");
    const rq_value *p = v ? space_operand(t, RQ_OP_COPY, persist, RQ_SPACE_PERSIST, "persist") : NULL;
    if (!p) return;
    if (p->type != RQ_TYPE_F32 || p->ne[0] != v->ne[0] || v->ne[1] > p->ne[1] || v->ne[2] != 1 ||
        v->ne[3] != 1) {
        mismatch(t, RQ_OP_COPY, v, p);
        return;
    }
    rq_op *op = append(t, RQ_OP_COPY);
    if (!op) return;
    op->n_in = 2;
    op->in[0] = x;
    op->in[1] = persist;
}

rq_ref rq_op_select_rows(rq_tape *t, rq_ref persist)
{
    const rq_value *p = space_operand(t, RQ_OP_SELECT_ROWS, persist, RQ_SPACE_PERSIST, "persist");
    if (!p) return 0;
    if (p->type != RQ_TYPE_F32)
        return rq_tape_fail(t, RQ_ERR_ARGUMENT, "select_rows: rows must be f32, not %s", shape_of(p).text);
    rq_ref y = rq_tape_act(t, RQ_TYPE_F32, p->ne[0], t->bucket, 1, 1);
    rq_op *op = append(t, RQ_OP_SELECT_ROWS);
    if (!op) return 0;
    op->n_in = 1;
    op->in[0] = persist;
    op->n_out = 1;
    return op->out[0] = y;
}

void rq_op_argmax(rq_tape *t, rq_ref logits, rq_ref sampled)
{
    const rq_value *v = f32_operand(t, RQ_OP_ARGMAX, logits, "logits");
    const rq_value *s = v ? space_operand(t, RQ_OP_ARGMAX, sampled, RQ_SPACE_PERSIST, "sampled") : NULL;
    if (!s) return;
    if (s->type != RQ_TYPE_I32 || v->ne[1] != t->bucket || v->ne[2] != 1 || v->ne[3] != 1) {
        mismatch(t, RQ_OP_ARGMAX, v, s);
        return;
    }
    rq_op *op = append(t, RQ_OP_ARGMAX);
    if (!op) return;
    op->n_in = 2;
    op->in[0] = logits;
    op->in[1] = sampled;
}
