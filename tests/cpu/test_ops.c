/* test_ops.c - every operation of the processor against the oracle in double, on every instruction set this
 * machine runs; a token's bits alone, in any bucket and with any number of threads. */
#include "backends/base/mem.h"
#include "backends/cpu/isa.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"
#include "tests/cpu/rig.h"

#include <math.h>
#include <string.h>

/* ---- tapes under test ------------------------------------------------------------------------------------ */

typedef struct weight {
    rq_type type;
    uint32_t ne[3];
} weight;

typedef struct tape_case {
    const char *name;
    void (*build)(rq_tape *t, const struct tape_case *c);
    weight w[4]; /* ne[0] 0: none */
    uint32_t n, heads;
    rq_cache_group group; /* n_heads 0: no cache */
    bool fuse;            /* must become one operation */
    rq_pairing pairing;
    uint32_t n_rot, softcap;
} tape_case;

static rq_ref weight_ref(rq_tape *t, const tape_case *c, uint32_t i)
{
    const uint32_t ne[4] = {c->w[i].ne[0], c->w[i].ne[1] ? c->w[i].ne[1] : 1,
                            c->w[i].ne[2] ? c->w[i].ne[2] : 1, 1};
    return rq_tape_weight(t, i, c->w[i].type, ne, "w");
}

static rq_ref rows(rq_tape *t, uint32_t n)
{
    return rq_tape_act(t, RQ_TYPE_F32, n, t->bucket, 1, 1);
}

static rq_ref head_rows(rq_tape *t, uint32_t d, uint32_t heads)
{
    return rq_tape_act(t, RQ_TYPE_F32, d, heads, t->bucket, 1);
}

static void build_embed(rq_tape *t, const tape_case *c)
{
    rq_op_embed(t, weight_ref(t, c, 0));
}

static void build_norm(rq_tape *t, const tape_case *c)
{
    rq_op_rms_norm(t, rows(t, c->n), c->w[0].ne[0] ? weight_ref(t, c, 0) : 0, 1e-6f);
}

/* Heads inside wider rows, normed head by head: a strided view. */
static void build_norm_view(rq_tape *t, const tape_case *c)
{
    rq_ref x = rows(t, c->n * (c->heads + 1));
    rq_op_rms_norm(t, rq_tape_view(t, x, c->n, c->n, c->heads, c->n, t->bucket, c->n * (c->heads + 1)),
                   weight_ref(t, c, 0), 1e-5f);
}

static void build_pointwise(rq_tape *t, const tape_case *c)
{
    rq_ref a = rows(t, c->n), b = rows(t, c->n), row = weight_ref(t, c, 0);
    rq_op_add(t, a, b);
    rq_op_add(t, a, row);
    rq_op_mul(t, a, b);
    rq_op_mul(t, a, row);
    rq_op_scale(t, a, 0.37f);
}

static void build_glu(rq_tape *t, const tape_case *c)
{
    rq_ref a = rows(t, c->n), b = rows(t, c->n);
    rq_op_glu(t, a, b, RQ_ACT_SILU);
    rq_op_glu(t, a, b, RQ_ACT_GELU_TANH);
}

static void build_matmul(rq_tape *t, const tape_case *c)
{
    rq_op_matmul(t, weight_ref(t, c, 0), rows(t, c->n));
}

static void build_matmul_add(rq_tape *t, const tape_case *c)
{
    rq_ref y = rq_op_matmul(t, weight_ref(t, c, 0), rows(t, c->n));
    rq_op_add(t, y, rows(t, c->w[0].ne[1]));
}

static void build_matmul_bias(rq_tape *t, const tape_case *c)
{
    rq_ref y = rq_op_matmul(t, weight_ref(t, c, 0), rows(t, c->n));
    rq_op_add(t, y, weight_ref(t, c, 1));
}

static void build_norm_matmuls(rq_tape *t, const tape_case *c)
{
    rq_ref x = rq_op_rms_norm(t, rows(t, c->n), weight_ref(t, c, 3), 1e-6f);
    for (uint32_t i = 0; i < 3 && c->w[i].ne[0]; i++) rq_op_matmul(t, weight_ref(t, c, i), x);
}

static void build_norm_glu(rq_tape *t, const tape_case *c)
{
    rq_ref x = rq_op_rms_norm(t, rows(t, c->n), weight_ref(t, c, 3), 1e-6f);
    rq_ref gate = rq_op_matmul(t, weight_ref(t, c, 0), x);
    rq_op_glu(t, gate, rq_op_matmul(t, weight_ref(t, c, 1), x), c->softcap ? RQ_ACT_GELU_TANH : RQ_ACT_SILU);
}

static void build_rope(rq_tape *t, const tape_case *c)
{
    rq_op_rope(t, head_rows(t, c->n, c->heads), weight_ref(t, c, 0), c->n_rot, c->pairing, 1.1f);
}

static void build_kv_write(rq_tape *t, const tape_case *c)
{
    rq_ref k = head_rows(t, c->group.dim_k, c->group.n_heads),
           v = head_rows(t, c->group.dim_v, c->group.n_heads);
    rq_op_kv_write(t, rq_tape_cache(t, 0, 1), k, v);
}

static void build_qkv(rq_tape *t, const tape_case *c)
{
    rq_ref q = head_rows(t, c->group.dim_k, c->heads), k = head_rows(t, c->group.dim_k, c->group.n_heads),
           v = head_rows(t, c->group.dim_v, c->group.n_heads), freq = weight_ref(t, c, 0);
    if (c->w[1].ne[0]) {
        q = rq_op_rms_norm(t, q, weight_ref(t, c, 1), 1e-6f);
        k = rq_op_rms_norm(t, k, weight_ref(t, c, 2), 1e-6f);
    }
    q = rq_op_rope(t, q, freq, c->n_rot, c->pairing, 1.0f);
    k = rq_op_rope(t, k, freq, c->n_rot, c->pairing, 1.0f);
    rq_ref cache = rq_tape_cache(t, 0, 1);
    rq_op_kv_write(t, cache, k, v);
    rq_op_attend(t, cache, q, c->group.dim_v, 0.1f, 0);
}

static void build_route(rq_tape *t, const tape_case *c)
{
    rq_ref ids, weights;
    rq_op_route(t, rows(t, c->n), c->heads, 2.5f, &ids, &weights);
    rq_op_group(t, ids, c->n);
}

/* A whole mixture: gate, up and down by expert. w[0] router, [1] gate, [2] up, [3] down. */
static void build_experts(rq_tape *t, const tape_case *c)
{
    rq_ref ids, weights, x = rows(t, c->n);
    rq_op_route(t, rq_op_matmul(t, weight_ref(t, c, 0), x), c->heads, 1.0f, &ids, &weights);
    rq_ref group = rq_op_group(t, ids, c->w[1].ne[2]);
    rq_ref xe = rq_tape_view(t, x, 0, c->n, 1, c->n, t->bucket, c->n);
    rq_ref gate = rq_op_matmul_experts(t, weight_ref(t, c, 1), xe, ids, group);
    rq_ref up = rq_op_matmul_experts(t, weight_ref(t, c, 2), xe, ids, group);
    rq_ref y = rq_op_matmul_experts(t, weight_ref(t, c, 3), rq_op_glu(t, gate, up, RQ_ACT_SILU), ids, group);
    rq_op_combine(t, y, weights);
}

#define Q(type, a, b)                                                                                        \
    {                                                                                                        \
        RQ_TYPE_##type,                                                                                      \
        {                                                                                                    \
            a, b, 1                                                                                          \
        }                                                                                                    \
    }
#define CACHE(d, dv, kind)                                                                                   \
    {                                                                                                        \
        .n_layers = 2, .n_heads = 2, .dim_k = d, .dim_v = dv, .type_k = RQ_TYPE_##kind,                      \
        .type_v = RQ_TYPE_##kind                                                                             \
    }

static const tape_case cases[] = {
    {"embed f16", build_embed, {Q(F16, 96, 50)}, .n = 0},
    {"embed q4_k", build_embed, {Q(Q4_K, 512, 50)}, .n = 0},
    {"embed q6_k", build_embed, {Q(Q6_K, 256, 50)}, .n = 0},
    {"embed q8_0", build_embed, {Q(Q8_0, 96, 50)}, .n = 0},
    {"norm", build_norm, {Q(F32, 1027, 1)}, .n = 1027},
    {"norm, no weight", build_norm, {{.ne = {0}}}, .n = 64},
    {"norm of heads", build_norm_view, {Q(F32, 80, 1)}, .n = 80, .heads = 3},
    {"pointwise", build_pointwise, {Q(F32, 517, 1)}, .n = 517},
    {"glu", build_glu, {{.ne = {0}}}, .n = 517},
    {"matmul f32", build_matmul, {Q(F32, 200, 77)}, .n = 200},
    {"matmul f16", build_matmul, {Q(F16, 200, 77)}, .n = 200},
    {"matmul bf16", build_matmul, {Q(BF16, 136, 77)}, .n = 136},
    {"matmul q4_k", build_matmul, {Q(Q4_K, 512, 100)}, .n = 512},
    {"matmul q8_0", build_matmul, {Q(Q8_0, 416, 100)}, .n = 416},
    {"matmul + residual", build_matmul_add, {Q(Q6_K, 512, 100)}, .n = 512, .fuse = true},
    {"matmul f32 + residual", build_matmul_add, {Q(F32, 512, 100)}, .n = 512, .fuse = true},
    {"matmul + bias", build_matmul_bias, {Q(Q4_0, 416, 100), Q(F32, 100, 1)}, .n = 416, .fuse = true},
    {"norm, q k v",
     build_norm_matmuls,
     {Q(Q4_K, 512, 160), Q(Q4_K, 512, 64), Q(Q6_K, 512, 64), Q(F32, 512, 1)},
     .n = 512,
     .fuse = true},
    {"norm, q k v of three kinds",
     build_norm_matmuls,
     {Q(Q4_K, 512, 160), Q(Q8_0, 512, 64), Q(F16, 512, 64), Q(F32, 512, 1)},
     .n = 512,
     .fuse = true},
    {"norm, one", build_norm_matmuls, {Q(Q5_K, 256, 33), {0}, {0}, Q(F32, 256, 1)}, .n = 256, .fuse = true},
    {"norm, silu",
     build_norm_glu,
     {Q(Q4_K, 256, 300), Q(Q4_K, 256, 300), {0}, Q(F32, 256, 1)},
     .n = 256,
     .fuse = true},
    {"norm, gelu",
     build_norm_glu,
     {Q(F16, 96, 300), Q(Q8_0, 96, 300), {0}, Q(F32, 96, 1)},
     .n = 96,
     .fuse = true,
     .softcap = 1},
    {"rope neox", build_rope, {Q(F32, 64, 1)}, .n = 128, .heads = 3, .n_rot = 128, .pairing = RQ_ROPE_NEOX},
    {"rope norm", build_rope, {Q(F32, 48, 1)}, .n = 96, .heads = 3, .n_rot = 96, .pairing = RQ_ROPE_NORM},
    {"rope part", build_rope, {Q(F32, 10, 1)}, .n = 80, .heads = 2, .n_rot = 20, .pairing = RQ_ROPE_NEOX},
    {"kv write f16", build_kv_write, {{.ne = {0}}}, .group = CACHE(80, 72, F16)},
    {"kv write f32", build_kv_write, {{.ne = {0}}}, .group = CACHE(64, 128, F32)},
    {"q k v rope write",
     build_qkv,
     {Q(F32, 32, 1)},
     .heads = 6,
     .n_rot = 64,
     .group = CACHE(64, 64, F16),
     .pairing = RQ_ROPE_NORM,
     .fuse = true},
    {"q k v norm rope write",
     build_qkv,
     {Q(F32, 64, 1), Q(F32, 128, 1), Q(F32, 128, 1)},
     .heads = 4,
     .n_rot = 128,
     .group = CACHE(128, 128, F16),
     .pairing = RQ_ROPE_NEOX,
     .fuse = true},
    {"route", build_route, {{.ne = {0}}}, .n = 128, .heads = 8},
    {"route all", build_route, {{.ne = {0}}}, .n = 4, .heads = 4},
    {"experts",
     build_experts,
     {Q(F32, 256, 16),
      {RQ_TYPE_Q4_K, {256, 256, 16}},
      {RQ_TYPE_Q4_K, {256, 256, 16}},
      {RQ_TYPE_Q6_K, {256, 256, 16}}},
     .n = 256,
     .heads = 4},
    {"experts f16",
     build_experts,
     {Q(F32, 96, 5), {RQ_TYPE_F16, {96, 40, 5}}, {RQ_TYPE_Q8_0, {96, 40, 5}}, {RQ_TYPE_F32, {40, 96, 5}}},
     .n = 96,
     .heads = 2},
};
enum { N_CASES = sizeof cases / sizeof *cases, START = 0, MAX_T = 130 };

/* ---- running one ----------------------------------------------------------------------------------------- */

/* Encoded once for the case in hand: encoders take their time. */
static struct {
    const tape_case *of;
    void *bytes[4];
    uint64_t n_bytes[4];
} encoded;

static void forget_weights(void)
{
    for (int i = 0; i < 4; i++) rq_free(encoded.bytes[i]);
    memset(&encoded, 0, sizeof encoded);
}

static void encode_weights(const tape_case *c)
{
    forget_weights();
    encoded.of = c;
    for (uint32_t i = 0; i < 4; i++) {
        const weight *w = &c->w[i];
        if (!w->ne[0]) continue;
        uint64_t seed = 1000 + i,
                 n = (uint64_t)w->ne[0] * (w->ne[1] ? w->ne[1] : 1) * (w->ne[2] ? w->ne[2] : 1);
        float *x = rq_calloc(n, sizeof *x);
        encoded.n_bytes[i] = rq_row_bytes(w->type, n);
        encoded.bytes[i] = rq_calloc(encoded.n_bytes[i], 1);
        bool norm = i == 3 && w->ne[1] == 1; /* norm weights lie near 1 */
        for (uint64_t j = 0; j < n; j++) x[j] = norm ? 1 + 0.1f * rig_uniform(&seed) : rig_normal(&seed);
        if (w->type == RQ_TYPE_F32)
            memcpy(encoded.bytes[i], x, encoded.n_bytes[i]);
        else
            assert_true(rq_quantize(w->type, x, encoded.bytes[i], (int64_t)n));
        rq_free(x);
    }
}

static void load_weights(rig *r, const tape_case *c)
{
    if (encoded.of != c) encode_weights(c);
    for (uint32_t i = 0; i < 4; i++)
        if (encoded.bytes[i]) rig_weight(r, i, encoded.bytes[i], encoded.n_bytes[i]);
}

static bool always(void *user, const rq_tape *tape, const rq_op *op)
{
    rq_error why;
    return rq_backend_cpu.supports(user, tape, op, &why);
}

static uint32_t bucket_of(uint32_t n)
{
    uint32_t b = 1;
    while (b < n) b *= 2;
    return b;
}

static void make_tape(const tape_case *c, uint32_t bucket, bool fuse, rq_device *device, rq_tape *t)
{
    rq_error err = {0};
    rq_tape_init(t, bucket);
    c->build(t, c);
    if (rq_tape_check(t, &err) != RQ_OK) fail_msg("%s: %s", c->name, err.text);
    if (!fuse) return;
    if (rq_tape_fuse(t, always, device, &err) != RQ_OK) fail_msg("%s: %s", c->name, err.text);
    if (t->n_ops != (c->build == build_qkv ? 2 : 1))
        fail_msg("%s: %u operations after fusion", c->name, t->n_ops);
}

static bool is_output(const rq_tape *t, rq_ref ref)
{
    for (uint32_t i = 0; i < t->n_ops; i++)
        for (uint32_t o = 0; o < t->ops[i].n_out; o++)
            if (t->ops[i].out[o] == ref) return true;
    return false;
}

static bool is_input(const rq_tape *t, rq_ref ref)
{
    const rq_value *v = &t->values[ref];
    if (v->space != RQ_SPACE_ACT || v->index != ref) return false;
    for (uint32_t i = 0; i < t->n_prims; i++)
        for (uint32_t o = 0; o < t->prims[i].n_out; o++)
            if (t->prims[i].out[o] == ref) return false;
    return !is_output(t, ref);
}

/* Tokens [first, first + n) of the case's own stream at positions START + token; other tokens' values follow
 * from their number alone. */
static void run_case(rig *r, const rq_tape *t, uint32_t first, uint32_t n)
{
    rig_compile(r, t);
    for (rq_ref i = 1; i < t->n_values; i++) {
        if (!is_input(t, i)) continue;
        const rq_value *v = &t->values[i];
        uint64_t per_token = (uint64_t)v->ne[0] * v->ne[1] * v->ne[2] * v->ne[3] / t->bucket;
        float *x = rig_value(r, i);
        for (uint32_t k = 0; k < n; k++) {
            uint64_t seed = i * 7919u + (first + k) * 104729u;
            rig_normal(&seed);
            for (uint64_t j = 0; j < per_token; j++) x[k * per_token + j] = rig_normal(&seed);
        }
        memset(x + n * per_token, 0xff, (t->bucket - n) * per_token * sizeof *x); /* padding: NaN */
    }
    int32_t ids[MAX_T];
    for (uint32_t k = 0; k < n; k++) ids[k] = (int32_t)((first + k) * 13 % 49);
    if (first <= 3 && 3 < first + n) ids[3 - first] = -2; /* sampled[1] */
    if (first <= 4 && 4 < first + n) ids[4 - first] = 1000;
    ((int32_t *)r->persist[RQ_PERSIST_SAMPLED]->host)[1] = 17;
    const uint32_t *table = r->pool.table ? rig_table(r, 0) : NULL;
    rq_step_reset(&r->step);
    assert_int_equal(rq_step_add_run(&r->step, 0, ids, n, START + first, &table), 0);
    rq_step_finish(&r->step);
    rig_run(r);
}

static void open_case(rig *r, const tape_case *c, const char *implementation, uint32_t threads)
{
    rq_step_caps caps = {
        .max_tokens = 256, .n_groups = c->group.n_heads ? 1 : 0, .n_seqs = 2, .max_pages = 4};
    rig_open(r, implementation, threads, c->group.n_heads ? &c->group : NULL, &caps);
    load_weights(r, c);
    if (c->group.n_heads) rig_fresh_cache(r);
}

static uint64_t token_bytes(const rq_tape *t, rq_ref ref)
{
    const rq_value *v = &t->values[ref];
    return v->stride[3] * v->ne[3] / t->bucket;
}

/* Tolerance of an operation: for its coarsest weight. */
static double tolerance(const rq_tape *t, const rq_op *op)
{
    double limit = rq_op_tolerance(op->kind, RQ_TYPE_F32);
    for (uint32_t i = 0; i < op->n_in; i++) {
        const rq_value *v = &t->values[op->in[i]];
        if (!op->in[i] || v->space != RQ_SPACE_WEIGHT) continue;
        double other = rq_op_tolerance(op->kind, v->type);
        limit = other > limit ? other : limit;
    }
    return limit;
}

/* Tolerance of a value: of the operation that makes it, plus what those before it may add (a gate multiplies
 * two of them). */
static double limit_of(const rq_tape *t, uint32_t op)
{
    double limit = 0;
    for (uint32_t i = 0; i <= op; i++) limit += (i == op ? 1 : 2) * tolerance(t, &t->ops[i]);
    return limit;
}

static void compare(const char *isa, const tape_case *c, const rig *y, const rig *ref, const rq_tape *t,
                    uint32_t n)
{
    for (uint32_t i = 0; i < t->n_ops; i++)
        for (uint32_t o = 0; o < t->ops[i].n_out; o++) {
            rq_ref out = t->ops[i].out[o];
            if (t->ops[i].kind == RQ_OP_GROUP) {
                rq_group_layout l = rq_group_layout_of(t->ops[i].p.group.n_expert, c->heads, t->bucket);
                const int32_t *a = rig_value(y, out), *b = rig_value(ref, out);
                assert_memory_equal(a, b, (l.order + n * c->heads) * sizeof *a);
                assert_memory_equal(a + l.tiles, b + l.tiles, (size_t)b[1] * 3 * sizeof *a);
                continue;
            }
            size_t bytes = n * token_bytes(t, out);
            if (t->values[out].type == RQ_TYPE_I32) {
                if (memcmp(rig_value(y, out), rig_value(ref, out), bytes) != 0)
                    fail_msg("%s, %s: integers differ", isa, c->name);
                continue;
            }
            double nmse = rig_nmse(rig_value(y, out), rig_value(ref, out), bytes / 4), limit = limit_of(t, i);
            if (!(nmse <= limit))
                fail_msg("%s, %s, %u tokens, value %u: nmse %g, limit %g", isa, c->name, n, out, nmse, limit);
        }
    /* The cache: what the oracle did not write must be as it was. */
    double error = 0, power = 0;
    for (uint32_t s = 0; s < ref->pool.n_slabs; s++) {
        const rq_cache_group *g = &ref->group;
        size_t size = g->type_k == RQ_TYPE_F16 ? 2 : 4, count = ref->pool.slabs[s]->bytes / size;
        const uint8_t *a = y->pool.slabs[s]->host, *b = ref->pool.slabs[s]->host;
        for (size_t j = 0; j < count; j++, a += size, b += size) {
            float va, vb;
            uint16_t h;
            if (size == 2) {
                memcpy(&h, a, 2);
                va = rq_f16_to_f32(h);
                memcpy(&h, b, 2);
                vb = rq_f16_to_f32(h);
            } else {
                memcpy(&va, a, 4);
                memcpy(&vb, b, 4);
            }
            if (isnan(vb) != isnan(va)) fail_msg("%s, %s: element %zu of slab %u", isa, c->name, j, s);
            if (isnan(vb)) continue;
            error += ((double)va - (double)vb) * ((double)va - (double)vb);
            power += (double)vb * (double)vb;
        }
    }
    if (!ref->pool.n_slabs) return;
    assert_true(power > 0);
    double limit = rq_op_tolerance(t->n_ops == 1 ? t->ops[0].kind : RQ_OP_QKV_WRITE, ref->group.type_k);
    if (error / power > limit) fail_msg("%s, %s: cache off by %g", isa, c->name, error / power);
}

static void test_against_reference(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {1, 5, 8, 130};
    for (size_t i = 0; i < N_CASES; i++)
        for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++)
            for (int fuse = 0; fuse <= (cases[i].fuse ? 1 : 0); fuse++) {
                const tape_case *c = &cases[i];
                rig ref, y;
                rq_tape t;
                open_case(&ref, c, "reference", 1);
                make_tape(c, bucket_of(tokens[k]), fuse, ref.device, &t);
                run_case(&ref, &t, 0, tokens[k]);
                for (size_t a = 0; rq_cpu_isa_at(a); a++) {
                    open_case(&y, c, rq_cpu_isa_at(a)->name, 2);
                    run_case(&y, &t, 0, tokens[k]);
                    compare(rq_cpu_isa_at(a)->name, c, &y, &ref, &t, tokens[k]);
                    rig_close(&y);
                }
                rq_tape_free(&t);
                rig_close(&ref);
            }
}

/* All tokens at once, then again in pieces of other widths and with other numbers of threads, fused or not. */
static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        uint32_t piece, threads;
        bool fuse;
    } ways[] = {{1, 1, false}, {1, 2, true}, {2, 2, false}, {5, 3, true}, {8, 5, true}, {16, 2, true}};
    enum { N = 77 };
    for (size_t i = 0; i < N_CASES; i++)
        for (size_t a = 0; rq_cpu_isa_at(a); a++)
            for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
                const tape_case *c = &cases[i];
                bool fuse = c->fuse && ways[way].fuse;
                rig all, part;
                rq_tape t_all, t;
                open_case(&all, c, rq_cpu_isa_at(a)->name, 2);
                open_case(&part, c, rq_cpu_isa_at(a)->name, ways[way].threads);
                make_tape(c, bucket_of(N), c->fuse, all.device, &t_all);
                run_case(&all, &t_all, 0, N);
                for (uint32_t first = 0; first < N; first += ways[way].piece) {
                    uint32_t n = N - first < ways[way].piece ? N - first : ways[way].piece;
                    make_tape(c, bucket_of(n), fuse, part.device, &t);
                    run_case(&part, &t, first, n);
                    for (uint32_t o = 0; o < t_all.ops[t_all.n_ops - 1].n_out; o++) {
                        rq_ref out = t_all.ops[t_all.n_ops - 1].out[o];
                        if (t_all.ops[t_all.n_ops - 1].kind == RQ_OP_GROUP) out = t_all.ops[0].out[1];
                        size_t bytes = token_bytes(&t_all, out);
                        if (memcmp((uint8_t *)rig_value(&all, out) + first * bytes, rig_value(&part, out),
                                   n * bytes) != 0)
                            fail_msg("%s, %s: tokens %u.. in pieces of %u with %u threads",
                                     rq_cpu_isa_at(a)->name, c->name, first, ways[way].piece,
                                     ways[way].threads);
                    }
                    rq_tape_free(&t);
                }
                for (uint32_t s = 0; s < all.pool.n_slabs; s++)
                    assert_memory_equal(all.pool.slabs[s]->host, part.pool.slabs[s]->host,
                                        all.pool.slabs[s]->bytes);
                rq_tape_free(&t_all);
                rig_close(&all);
                rig_close(&part);
            }
}

/* ---- what only the head does ----------------------------------------------------------------------------- */

static void test_head(void **state)
{
    (void)state;
    enum { N = 40, V = 20001, ROWS = 5 };
    for (size_t a = 0; rq_cpu_isa_at(a); a++) {
        rig r;
        rq_step_caps caps = {.max_tokens = 16, .n_groups = 0, .n_seqs = 8, .max_pages = 4};
        rig_open(&r, rq_cpu_isa_at(a)->name, 2, NULL, &caps);
        rq_backend_cpu.alloc(r.device, N * 16 * 4, "hidden", &r.persist[RQ_PERSIST_HIDDEN], NULL);
        rq_backend_cpu.alloc(r.device, (uint64_t)V * 8 * 4, "logits", &r.persist[RQ_PERSIST_LOGITS], NULL);
        float *hidden = r.persist[RQ_PERSIST_HIDDEN]->host, *logits = r.persist[RQ_PERSIST_LOGITS]->host;
        int32_t *sampled = r.persist[RQ_PERSIST_SAMPLED]->host;
        int32_t ids[10] = {0};

        /* trunk: rows of x to the same rows of the persistent memory, padding rows left alone */
        rq_tape t;
        rq_tape_init(&t, 16);
        rq_ref x = rows(&t, N);
        rq_op_copy(&t, rq_op_embed(&t, rq_tape_weight(&t, 0, RQ_TYPE_F32, (uint32_t[4]){N, 10, 1, 1}, "e")),
                   rq_tape_persist(&t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, N, 16));
        (void)x;
        float table[N * 10];
        for (int i = 0; i < N * 10; i++) table[i] = (float)i;
        rig_weight(&r, 0, table, sizeof table);
        rig_compile(&r, &t);
        for (int i = 0; i < 10; i++) ids[i] = 9 - i;
        assert_int_equal(rq_step_add_run(&r.step, 0, ids, 10, 0, NULL), 0);
        rq_step_finish(&r.step);
        rig_run(&r);
        for (int i = 0; i < 10; i++) assert_memory_equal(hidden + i * N, table + (9 - i) * N, N * 4);
        for (int i = 10 * N; i < 16 * N; i++) assert_true(hidden[i] == 0);
        rq_tape_free(&t);

        /* head: selected rows, arg-max of crafted logits */
        rq_tape_init(&t, 8);
        rq_ref y = rq_op_select_rows(&t, rq_tape_persist(&t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, N, 16));
        rq_op_argmax(&t, rq_tape_persist(&t, RQ_PERSIST_LOGITS, RQ_TYPE_F32, V, 8),
                     rq_tape_persist(&t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 8, 1));
        rig_compile(&r, &t);
        const uint32_t tokens[ROWS] = {9, 0, 3, 3, 7}, slots[ROWS] = {5, 0, 7, 1, 2};
        for (int i = 0; i < ROWS; i++) assert_true(rq_step_add_row(&r.step, tokens[i], slots[i]));
        uint64_t seed = 3;
        for (int i = 0; i < V * 8; i++) logits[i] = rig_uniform(&seed);
        logits[0 * V + 19999] = 2;
        logits[0 * V + 20000] = 2;                                 /* tie: the lower one */
        logits[1 * V + 0] = NAN, logits[1 * V + 8192] = 3;         /* NaN does not win */
        for (int i = 0; i < V; i++) logits[2 * V + i] = NAN;       /* nothing but NaN: 0 */
        for (int i = 0; i < V; i++) logits[3 * V + i] = -INFINITY; /* the lowest of equals */
        for (int i = 0; i < V; i++) logits[4 * V + i] = i < 9000 ? NAN : -5 - (float)(i == 9001);
        for (int i = 0; i < 8; i++) sampled[i] = -7;
        rig_run(&r);
        const float *selected = rig_value(&r, y);
        for (int i = 0; i < ROWS; i++) assert_memory_equal(selected + i * N, hidden + tokens[i] * N, N * 4);
        assert_int_equal(sampled[5], 19999);
        assert_int_equal(sampled[0], 8192);
        assert_int_equal(sampled[7], 0);
        assert_int_equal(sampled[1], 0);
        assert_int_equal(sampled[2], 9000);
        assert_int_equal(sampled[3], -7);
        rq_tape_free(&t);
        rig_close(&r);
    }
}

/* Logits that are not numbers still choose distinct experts. */
static void test_route_of_nan(void **state)
{
    (void)state;
    rig r;
    rq_step_caps caps = {.max_tokens = 4, .n_groups = 0, .n_seqs = 1, .max_pages = 1};
    rig_open(&r, NULL, 1, NULL, &caps);
    rq_tape t;
    rq_tape_init(&t, 4);
    rq_ref x = rows(&t, 8), ids, weights;
    rq_op_route(&t, x, 3, 1, &ids, &weights);
    rig_compile(&r, &t);
    float *logits = rig_value(&r, x);
    for (int i = 0; i < 8; i++) logits[i] = NAN, logits[8 + i] = INFINITY, logits[16 + i] = -INFINITY;
    for (int i = 0; i < 8; i++) logits[24 + i] = i == 6 ? 1.0f : i == 2 ? 5.0f : NAN;
    int32_t token_ids[4] = {0};
    rq_step_add_run(&r.step, 0, token_ids, 4, 0, NULL);
    rq_step_finish(&r.step);
    rig_run(&r);
    const int32_t *chosen = rig_value(&r, ids);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 3; i++) {
            assert_in_range(chosen[k * 3 + i], 0, 7);
            for (int j = 0; j < i; j++) assert_int_not_equal(chosen[k * 3 + i], chosen[k * 3 + j]);
        }
    assert_int_equal(chosen[9], 2);
    assert_int_equal(chosen[10], 6);
    rq_tape_free(&t);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_route_of_nan),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    forget_weights();
    return failed;
}
