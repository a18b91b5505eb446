/* The table, second part: rotations of heads, exact pages in every type, coded pages in every form.
 *
 *   test_cache_table [-v] [IMPLEMENTATION] */
#include "backends/formats/kv_codec.h"
#include "tests/ops/walk.h"

#include <math.h>

static const uint32_t dims[] = {32, 40, 64, 72, 80, 96, 112, 128, 136, 192, 256};
enum { N_DIMS = 11, N_FORMS = 6 };
static const rq_kv_form forms[] = {RQ_KV_C3, RQ_KV_C2, RQ_KV_C4, RQ_KV_Q8_0, RQ_KV_Q4_0, RQ_KV_C42};

/* ---- rotations ----------------------------------------------------------------------------------------- */

/* kv_heads: columns; flag: affine, and heads inside wider rows */
static void build_rotate(rq_tape *t, const op_case *c)
{
    rq_rotation shape;
    rq_rotation_shape(c->rotation, c->dim, &shape);
    rq_ref x = case_heads(t, c->dim, c->heads), data = 0, mean = 0, lambda = 0;
    if (shape.n_blocks) data = case_weight(t, 0, RQ_TYPE_F32, shape.n_floats, c->m, 1);
    if (c->flag) {
        uint64_t row = (uint64_t)c->dim * (c->heads + 1);
        x = rq_tape_view(t, case_rows(t, (uint32_t)row), c->dim, c->dim, c->heads, c->dim, t->bucket, row);
        mean = case_weight(t, 1, RQ_TYPE_F32, c->dim, c->m, 1);
        lambda = case_weight(t, 2, RQ_TYPE_F32, c->dim, 1, 1);
    }
    rq_op_rotate(t, x, data, mean, lambda, shape.blocks, shape.n_blocks, c->inverse);
}

static void every_rotation(walker *w)
{
    for (uint32_t d = 0; d < N_DIMS; d++)
        for (uint32_t kind = 0; kind < RQ_ROTATION_KINDS; kind++) {
            if (rq_rotation_allowed((rq_rotation_kind)kind, dims[d], NULL) != RQ_OK) continue;
            for (uint32_t way = 0; way < 4; way++) {
                op_case c = {.kind = RQ_OP_ROTATE,
                             .type = RQ_TYPE_F32,
                             .what = rq_rotation_name((rq_rotation_kind)kind),
                             .build = build_rotate,
                             .dim = dims[d],
                             .heads = 6,
                             .m = (d + kind) % 3 == 0   ? 1
                                  : (d + kind) % 3 == 1 ? 3
                                                        : 6,
                             .rotation = (rq_rotation_kind)kind,
                             .inverse = way & 1,
                             .flag = way >> 1};
                if ((kind == RQ_ROTATION_HAAR || walk_is_quick()) && way != d % 4) continue;
                walk(w, &c, way == d % 4 ? 64 : 4);
            }
        }
}

/* ---- pages --------------------------------------------------------------------------------------------- */

static uint32_t dim_v(const op_case *c)
{
    return c->m ? c->m : c->dim;
}

static void build_write(rq_tape *t, const op_case *c)
{
    rq_op_kv_write(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->kv_heads),
                   case_heads(t, dim_v(c), c->kv_heads));
}

static void build_encode(rq_tape *t, const op_case *c)
{
    rq_op_kv_encode(t, rq_tape_cache(t, 0, 1));
}

/* flag: with a mean */
static void build_attend(rq_tape *t, const op_case *c)
{
    rq_op_attend_mean(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->heads),
                      c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->dim, c->kv_heads, 1) : 0, dim_v(c),
                      1 / sqrtf((float)c->dim), c->softcap);
}

/* flag: with norms */
static void build_qk(rq_tape *t, const op_case *c)
{
    rq_ref f = case_weight(t, 0, RQ_TYPE_F32, c->dim / 2, 1, 1);
    rq_ref q = rq_op_rope(t, case_heads(t, c->dim, c->heads), f, c->dim, RQ_ROPE_NEOX, 1);
    rq_ref k = rq_op_rope(t, case_heads(t, c->dim, c->kv_heads), f, c->dim, RQ_ROPE_NEOX, 1);
    rq_ref cache = rq_tape_cache(t, 0, 1);
    rq_op_kv_write(t, cache, k, case_heads(t, dim_v(c), c->kv_heads));
    rq_op_attend(t, cache, q, dim_v(c), 1 / sqrtf((float)c->dim), 0);
}

/* A table of the rotation the case is about: one for all heads, or one for each KV head. */
static rq_ref turn(rq_tape *t, const op_case *c, rq_ref x, uint32_t mean, uint32_t lambda, bool inverse)
{
    rq_rotation shape;
    rq_rotation_shape(c->rotation, (uint32_t)t->values[x].ne[0], &shape);
    rq_ref data = shape.n_blocks ? case_weight(t, 3, RQ_TYPE_F32, shape.n_floats, c->kv_heads, 1) : 0;
    return rq_op_rotate(t, x, data, mean ? case_weight(t, mean, RQ_TYPE_F32, c->dim, c->kv_heads, 1) : 0,
                        lambda ? case_weight(t, lambda, RQ_TYPE_F32, c->dim, c->kv_heads, 1) : 0,
                        shape.blocks, shape.n_blocks, inverse);
}

/* flag: with norms, of values too; gate: with means and lambda */
static void build_turned_qkv(rq_tape *t, const op_case *c)
{
    rq_ref f = case_weight(t, 0, RQ_TYPE_F32, c->n_rot / 2, 1, 1), q = case_heads(t, c->dim, c->heads),
           k = case_heads(t, c->dim, c->kv_heads), v = case_heads(t, c->dim, c->kv_heads);
    if (c->flag) {
        q = rq_op_rms_norm(t, q, case_weight(t, 1, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
        k = rq_op_rms_norm(t, k, case_weight(t, 2, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
        v = rq_op_rms_norm(t, v, 0, 1e-6f);
    }
    q = rq_op_rope(t, q, f, c->n_rot, c->pairing, 1);
    k = rq_op_rope(t, k, f, c->n_rot, c->pairing, 1);
    q = turn(t, c, q, 0, c->gate ? 7 : 0, false);
    k = turn(t, c, k, c->gate ? 4 : 0, c->gate ? 5 : 0, false);
    v = turn(t, c, v, c->gate ? 6 : 0, 0, false);
    rq_ref cache = rq_tape_cache(t, 0, 1);
    rq_op_kv_write(t, cache, k, v);
    rq_op_attend(t, cache, q, c->dim, 1 / sqrtf((float)c->dim), 0);
}

/* flag: rotated back; gate: gated */
static void build_finish(rq_tape *t, const op_case *c)
{
    rq_ref y = rq_op_attend(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->heads), c->dim,
                            1 / sqrtf((float)c->dim), 0);
    y = rq_tape_view(t, y, 0, c->dim, c->heads, c->dim, t->bucket, (uint64_t)c->dim * c->heads);
    if (c->flag) y = turn(t, c, y, 6, 0, true);
    uint64_t row = (uint64_t)c->dim * (2 * c->heads);
    if (c->gate)
        rq_op_glu(t,
                  rq_tape_view(t, case_rows(t, (uint32_t)row), c->dim, c->dim, c->heads, 2 * c->dim,
                               t->bucket, row),
                  y, RQ_ACT_SIGMOID);
}

static op_case of_cache(rq_op_kind kind, void (*build)(rq_tape *, const op_case *), const char *what)
{
    return (op_case){.kind = kind,
                     .type = RQ_TYPE_F16,
                     .what = what,
                     .build = build,
                     .dim = 64,
                     .heads = 4,
                     .kv_heads = 2,
                     .position = 200,
                     .recent = 1};
}

static void every_exact_page(walker *w)
{
    for (uint32_t d = 0; d < N_DIMS; d++) {
        op_case c = of_cache(RQ_OP_KV_WRITE, build_write, "bf16");
        c.type = RQ_TYPE_BF16, c.dim = dims[d];
        walk(w, &c, d % 3 ? 8 : 50);
        c.kind = RQ_OP_QKV_WRITE, c.build = build_qk;
        walk(w, &c, 8);
        c.kind = RQ_OP_ATTEND, c.build = build_attend;
        walk(w, &c, d % 3 ? 8 : 50);
        if (d != 2) continue;
        c.softcap = 15, c.flag = true, c.what = "soft cap and mean";
        for (int type = 0; type < 3; type++) {
            c.type = type == 0 ? RQ_TYPE_BF16 : type == 1 ? RQ_TYPE_F16 : RQ_TYPE_F32;
            walk(w, &c, 50);
        }
    }
    op_case c = of_cache(RQ_OP_KV_WRITE, build_write, "into scratch pages");
    c.form_k = c.form_v = RQ_KV_C3, c.scratch = true, c.start = 100;
    walk_once(w, &c, 200);
}

/* The fused kinds around a rotation. */
static void every_turn(walker *w)
{
    for (uint32_t d = 0; d < N_DIMS; d++)
        for (uint32_t kind = 0; kind < RQ_ROTATION_KINDS; kind++) {
            if (rq_rotation_allowed((rq_rotation_kind)kind, dims[d], NULL) != RQ_OK) continue;
            if (dims[d] != 128 && (d + kind) % 4) continue;
            op_case c = of_cache(RQ_OP_QKV_WRITE, build_turned_qkv, rq_rotation_name((rq_rotation_kind)kind));
            c.dim = dims[d], c.n_rot = kind % 2 ? c.dim : c.dim / 8 * 4, c.heads = 6;
            c.rotation = (rq_rotation_kind)kind;
            c.pairing = d % 2 ? RQ_ROPE_NORM : RQ_ROPE_NEOX;
            c.flag = (d + kind) % 3 != 0, c.gate = kind == RQ_ROTATION_NONE || d % 2 == 0;
            walk(w, &c, dims[d] == 64 ? 64 : 4);
            c = of_cache(RQ_OP_ATTEND_ROTATE, build_finish, c.what);
            c.dim = dims[d], c.heads = 6, c.rotation = (rq_rotation_kind)kind;
            c.flag = true, c.gate = (d + kind) % 2;
            if (kind % 2) c.form_k = c.form_v = RQ_KV_C3, c.sinks = 1;
            c.position = d % 2 ? 1100 : 30; /* three splits, or one */
            walk(w, &c, dims[d] == 128 ? 8 : 4);
            c.flag = false, c.gate = true;
            if (kind == 1) walk(w, &c, 8);
        }
}

static void every_encode(walker *w)
{
    for (uint32_t d = 0; d < N_DIMS; d++)
        for (uint32_t f = 0; f < N_FORMS + 2; f++) {
            op_case c = of_cache(RQ_OP_KV_ENCODE, build_encode, "encode");
            bool every = dims[d] == 64 || dims[d] == 136;
            if (!every && f != d % N_FORMS) continue;
            c.dim = dims[d], c.scratch = true;
            c.m = dims[(d + f) % N_DIMS];
            c.type = d % 3 == 0 ? RQ_TYPE_F16 : d % 3 == 1 ? RQ_TYPE_BF16 : RQ_TYPE_F32;
            c.form_k = f < N_FORMS ? forms[f] : f == N_FORMS ? RQ_KV_SAME : RQ_KV_TRIP;
            c.form_v = f < N_FORMS ? forms[(f + d) % N_FORMS] : f == N_FORMS ? RQ_KV_C2 : RQ_KV_TRIP;
            walk_once(w, &c, 16);
        }
}

/* The second run starts inside a page and is cut at the end of one, whose last query has another boundary than the
 * ones before. */
static void every_coded_page(walker *w)
{
    for (uint32_t d = 0; d < N_DIMS; d++)
        for (uint32_t f = 0; f < N_FORMS; f++) {
            op_case c = of_cache(RQ_OP_ATTEND, build_attend, "coded");
            if ((d + f) % 2 && dims[d] != 128)
                continue; /* every other one: each form meets small and large groups */
            c.dim = dims[d];
            c.heads = d % 2 ? 4 : 14;
            c.form_k = forms[f], c.form_v = forms[(f + d / 3) % N_FORMS];
            c.recent = 1 + (d + f) % 2;
            c.position = 600 + 64 * f - d;
            c.start = 440;
            walk(w, &c, f ? 4 : 8);
            walk_once(w, &c, f == d % N_FORMS ? 50 : 20);
        }
    for (uint32_t f = 0; f < N_FORMS; f++) {
        op_case c = of_cache(RQ_OP_ATTEND, build_attend, "sinks");
        c.form_k = c.form_v = forms[f];
        c.dim = 128, c.position = 1100, c.start = 500, c.sinks = 2;
        walk(w, &c, 16);
        c.sinks = 9, c.what = "more sinks than pages";
        walk(w, &c, 2);
        c.sinks = 0, c.what = "narrower values";
        c.m = 72;
        walk(w, &c, 8);
        c.m = 0, c.softcap = 20, c.flag = true, c.what = "soft cap and mean";
        walk(w, &c, 16);
        c.softcap = 0, c.flag = false, c.what = "only K";
        c.form_v = RQ_KV_SAME;
        walk(w, &c, 16);
        c.form_v = forms[f], c.form_k = RQ_KV_SAME, c.what = "only V";
        walk(w, &c, 16);
        c.form_k = RQ_KV_TRIP, c.form_v = RQ_KV_TRIP, c.what = "round trip";
        if (f == 0) walk(w, &c, 16);
        c.form_k = c.form_v = forms[f], c.what = "scratch pages";
        c.scratch = true, c.start = 1, c.position = 70;
        walk_once(w, &c, 250); /* pages read exact by some queries and coded by others */
        c.scratch = false, c.start = 500, c.position = 1100, c.window = 300, c.what = "window";
        walk(w, &c, 16);
    }
    op_case c = of_cache(RQ_OP_ATTEND, build_attend, "f32 pages");
    c.type = RQ_TYPE_F32, c.form_k = RQ_KV_Q8_0, c.form_v = RQ_KV_C4, c.position = 700, c.start = 300;
    walk(w, &c, 64);
    c.type = RQ_TYPE_BF16, c.what = "bf16 pages";
    walk(w, &c, 64);
    c = of_cache(RQ_OP_ATTEND, build_attend,
                 "large heads"); /* a common pair has a kernel of its own on cards */
    c.dim = 256, c.heads = 8, c.form_k = c.form_v = RQ_KV_C3, c.position = 900, c.start = 440;
    walk(w, &c, 4);
}

static void every_row(walker *w)
{
    every_rotation(w);
    every_exact_page(w);
    every_turn(w);
    every_encode(w);
    every_coded_page(w);
}

static bool is_mine(rq_op_kind kind)
{
    return kind == RQ_OP_ROTATE || kind == RQ_OP_KV_WRITE || kind == RQ_OP_KV_ENCODE ||
           kind == RQ_OP_ATTEND || kind == RQ_OP_QKV_WRITE || kind == RQ_OP_ATTEND_ROTATE;
}

int main(int argc, char **argv)
{
    return walk_table(argc, argv, every_row, is_mine);
}
