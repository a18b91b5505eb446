/* The table: every operation x types x shapes x backends and implementations, against the reference.
 *
 *   test_ops_table [-v] [IMPLEMENTATION]
 *
 * Prints, per implementation and operation, the worst error as a share of its tolerance. */
#include "backends/base/mem.h"
#include "backends/vulkan/vulkan.h"
#include "tests/ops/rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* ---- builders ------------------------------------------------------------------------------------------ */

/* m: rows of the table */
static void build_embed(rq_tape *t, const op_case *c)
{
    rq_op_embed(t, case_weight(t, 0, c->type, c->n, c->m, 1));
}

/* heads > 0: of heads inside wider rows; flag: without weight */
static void build_norm(rq_tape *t, const op_case *c)
{
    rq_ref x = c->heads ? 0 : case_rows(t, c->n);
    if (c->heads)
        x = rq_tape_view(t, case_rows(t, c->n * (c->heads + 2)), c->n, c->n, c->heads, c->n, t->bucket,
                         (uint64_t)c->n * (c->heads + 2));
    rq_op_rms_norm(t, x, c->flag ? 0 : case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1), 1e-6f);
}

static void build_matmul(rq_tape *t, const op_case *c)
{
    rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), case_rows(t, c->n));
}

/* flag: the second operand is one row */
static void build_add(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1) : case_rows(t, c->n);
    rq_op_add(t, case_rows(t, c->n), b);
}

static void build_mul(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 0, RQ_TYPE_F32, c->n, 1, 1) : case_rows(t, c->n);
    rq_op_mul(t, case_rows(t, c->n), b);
}

static void build_scale(rq_tape *t, const op_case *c)
{
    rq_op_scale(t, case_rows(t, c->n), -0.37f);
}

/* flag: gate and up are the halves of one product */
static void build_glu(rq_tape *t, const op_case *c)
{
    rq_ref gate, up;
    if (c->flag) {
        rq_ref both = case_rows(t, 2 * c->n);
        gate = rq_tape_view(t, both, 0, c->n, t->bucket, 2ull * c->n, 1, 2ull * c->n * t->bucket);
        up = rq_tape_view(t, both, c->n, c->n, t->bucket, 2ull * c->n, 1, 0);
    } else {
        gate = case_rows(t, c->n);
        up = case_rows(t, c->n);
    }
    rq_op_glu(t, gate, up, c->act);
}

static void build_rope(rq_tape *t, const op_case *c)
{
    rq_op_rope(t, case_heads(t, c->dim, c->heads), case_weight(t, 0, RQ_TYPE_F32, c->n_rot / 2, 1, 1),
               c->n_rot, c->pairing, c->flag ? 1.3f : 1.0f);
}

static uint32_t dim_v(const op_case *c)
{
    return c->m ? c->m : c->dim;
}

static void build_kv_write(rq_tape *t, const op_case *c)
{
    rq_op_kv_write(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->kv_heads),
                   case_heads(t, dim_v(c), c->kv_heads));
}

static void build_attend(rq_tape *t, const op_case *c)
{
    rq_op_attend(t, rq_tape_cache(t, 0, 1), case_heads(t, c->dim, c->heads), dim_v(c),
                 1 / sqrtf((float)c->dim), c->softcap);
}

static void build_route(rq_tape *t, const op_case *c)
{
    rq_ref ids, weights;
    rq_op_route(t, case_rows(t, c->n_expert), c->n_used, c->flag ? 2.5f : 1.0f, &ids, &weights);
}

static void build_group(rq_tape *t, const op_case *c)
{
    rq_op_group(t, rq_tape_act(t, RQ_TYPE_I32, c->n_used, t->bucket, 1, 1), c->n_expert);
}

/* flag: every slot has its own row */
static void build_experts(rq_tape *t, const op_case *c)
{
    rq_ref ids = rq_tape_act(t, RQ_TYPE_I32, c->n_used, t->bucket, 1, 1),
           group = rq_op_group(t, ids, c->n_expert);
    rq_op_matmul_experts(t, case_weight(t, 0, c->type, c->n, c->m, c->n_expert),
                         case_heads(t, c->n, c->flag ? c->n_used : 1), ids, group);
}

static void build_combine(rq_tape *t, const op_case *c)
{
    rq_op_combine(t, case_heads(t, c->n, c->n_used), case_rows(t, c->n_used));
}

static void build_copy(rq_tape *t, const op_case *c)
{
    rq_op_copy(t, case_rows(t, c->n), rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, c->n, t->bucket));
}

static void build_select(rq_tape *t, const op_case *c)
{
    rq_op_select_rows(t, rq_tape_persist(t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, c->n, t->bucket));
}

static void build_argmax(rq_tape *t, const op_case *c)
{
    rq_op_argmax(t, case_rows(t, c->n),
                 rq_tape_persist(t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, t->persist_rows[RQ_PERSIST_SAMPLED]));
}

static void build_norm_matmuls(rq_tape *t, const op_case *c)
{
    rq_ref h = rq_op_rms_norm(t, case_rows(t, c->n), c->flag ? 0 : case_weight(t, 3, RQ_TYPE_F32, c->n, 1, 1),
                              1e-6f);
    for (uint32_t i = 0; i < c->heads; i++)
        rq_op_matmul(t, case_weight(t, i, c->type, c->n, i ? 9 : c->m, 1), h);
}

static void build_norm_glu(rq_tape *t, const op_case *c)
{
    rq_ref h = rq_op_rms_norm(t, case_rows(t, c->n), case_weight(t, 2, RQ_TYPE_F32, c->n, 1, 1), 1e-6f);
    rq_ref gate = rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), h);
    rq_op_glu(t, gate, rq_op_matmul(t, case_weight(t, 1, c->type, c->n, c->m, 1), h), c->act);
}

/* flag: a bias row */
static void build_matmul_add(rq_tape *t, const op_case *c)
{
    rq_ref b = c->flag ? case_weight(t, 1, RQ_TYPE_F32, c->m, 1, 1) : case_rows(t, c->m);
    rq_op_add(t, rq_op_matmul(t, case_weight(t, 0, c->type, c->n, c->m, 1), case_rows(t, c->n)), b);
}

/* flag: with norms. The result is attended to, so that the pattern is one. */
static void build_qk(rq_tape *t, const op_case *c)
{
    rq_ref q = case_heads(t, c->dim, c->heads), k = case_heads(t, c->dim, c->kv_heads);
    rq_ref v = case_heads(t, dim_v(c), c->kv_heads), f = case_weight(t, 0, RQ_TYPE_F32, c->n_rot / 2, 1, 1);
    if (c->flag) {
        q = rq_op_rms_norm(t, q, case_weight(t, 1, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
        k = rq_op_rms_norm(t, k, case_weight(t, 2, RQ_TYPE_F32, c->dim, 1, 1), 1e-6f);
    }
    q = rq_op_rope(t, q, f, c->n_rot, c->pairing, 1);
    k = rq_op_rope(t, k, f, c->n_rot, c->pairing, 1);
    rq_ref cache = rq_tape_cache(t, 0, 1);
    rq_op_kv_write(t, cache, k, v);
    rq_op_attend(t, cache, q, dim_v(c), 1 / sqrtf((float)c->dim), 0);
}

/* ---- walking ------------------------------------------------------------------------------------------- */

typedef struct walker {
    rq_device *device;
    const char *implementation;
    bool verbose;
    uint32_t n_cases, n_failed;
    double worst[RQ_OP_COUNT]; /* share of the tolerance */
    bool unfused[RQ_OP_COUNT];
    op_error sums[RQ_OP_COUNT][RQ_TYPE_LIMIT];
    case_data data;
} walker;

static void fault(walker *w, const op_case *c, uint32_t bucket, uint32_t n, const char *what, double value)
{
    const rq_type_info *type = rq_type_get((uint32_t)c->type);
    printf("%s %s %s (%s) n %u m %u heads %u/%u dim %u, %u tokens in bucket %u: %s %g\n", w->implementation,
           rq_op_get(c->kind)->name, type->name, c->what ? c->what : "", c->n, c->m, c->heads, c->kv_heads,
           c->dim, n, bucket, what, value);
    w->n_failed++;
}

static void judge(walker *w, const op_case *c, uint32_t bucket, uint32_t n, const op_error *e)
{
    double tolerance = rq_op_tolerance(c->kind, c->type);
    op_error *sum = &w->sums[c->kind][c->type];
    sum->error += e->error;
    sum->reference += e->reference;
    sum->n += e->n;
    if (tolerance == 0) {
        if (!e->bits) fault(w, c, bucket, n, "other bits, by up to", e->largest);
        return;
    }
    if (e->n < 256 || e->reference == 0)
        return; /* too few for a mean; they count in the sum over all cases */
    double share = e->error / e->reference / tolerance, rms = sqrt(e->reference / (double)e->n);
    double tail = e->largest / (RQ_TOLERANCE_TAIL * sqrt(tolerance) * rms);
    if (share > w->worst[c->kind]) w->worst[c->kind] = share;
    if (!(share <= 1)) fault(w, c, bucket, n, "error over tolerance", share);
    if (!(tail <= 1)) fault(w, c, bucket, n, "one element off, over tolerance", tail);
}

enum { ROW_BYTES = 1 << 16 };

/* One case in several buckets, full and padded. The first token's bits must be those it has alone. */
static void walk(walker *w, const op_case *c, uint32_t largest)
{
    static const uint32_t sizes[] = {1, 3, 8, 50, 2, 4, 16, 64};
    /* The second half of the buckets once per operation and kind of kernel: floats, and one block type. */
    bool all = c->type == RQ_TYPE_F32 || c->type == RQ_TYPE_F16 || c->type == RQ_TYPE_Q4_K;
    static uint8_t alone[ROW_BYTES], beside[ROW_BYTES];
    memset(alone, 0, sizeof alone);
    for (uint32_t i = 0; i < (all ? 8 : 4); i++) {
        uint32_t n = sizes[i], bucket = 1;
        if (n > largest) continue;
        while (bucket < n) bucket *= 2;
        rq_error why = {0};
        const char *by = case_served_by(w->device, c, bucket, &why);
        if (!by && c->kind >= RQ_OP_FUSED_FIRST) { /* such a backend runs the primitives */
            w->unfused[c->kind] = true;
            break;
        }
        if (!by) {
            fault(w, c, bucket, n, why.text, 0);
            break;
        }
        bool honest = strcmp(w->implementation, "reference") == 0 ||
                      (strcmp(by, "reference") != 0 && strcmp(by, "widened") != 0);
        if (!honest) fault(w, c, bucket, n, "served by the reference or by widening", 0);
        memset(beside, 0, sizeof beside);
        op_error e = case_run(w->device, c, bucket, n, &w->data, n == 1 ? alone : beside, ROW_BYTES);
        judge(w, c, bucket, n, &e);
        if (n > 1 && bucket <= 8 && !c->rows && memcmp(alone, beside, ROW_BYTES) != 0)
            fault(w, c, bucket, n, "the first token has other bits than alone", 0);
        w->n_cases++;
    }
    case_data_clear(&w->data);
}

/* ---- the catalogue ------------------------------------------------------------------------------------- */

static void walk_products(walker *w, rq_type type)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    uint32_t block = info->block_elems;
    const uint32_t widths[] = {block, 3 * block, block == 1 ? 257 : block < 256 ? 9 * block : 4 * block, 512};
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t n = widths[i];
        bool few = i != 3; /* the widest shape goes through all buckets */
        op_case c = {
            .kind = RQ_OP_MATMUL, .type = type, .what = "plain", .build = build_matmul, .n = n, .m = 33};
        walk(w, &c, few ? 8 : 64);
        if (i == 1) c.m = 1, walk(w, &c, 16);
        if (few) continue;
        c = (op_case){.kind = RQ_OP_MATMUL_ADD,
                      .type = type,
                      .what = "residual",
                      .build = build_matmul_add,
                      .n = n,
                      .m = 17};
        walk(w, &c, 64);
        c.flag = true, c.what = "bias";
        walk(w, &c, 16);
        c = (op_case){.kind = RQ_OP_NORM_GLU_MATMULS,
                      .type = type,
                      .what = "silu",
                      .build = build_norm_glu,
                      .n = n,
                      .m = 67};
        walk(w, &c, 64);
        for (uint32_t k = 1; k <= 3; k++) {
            c = (op_case){.kind = RQ_OP_NORM_MATMULS,
                          .type = type,
                          .what = "1-3",
                          .build = build_norm_matmuls,
                          .n = n,
                          .m = 21,
                          .heads = k,
                          .flag = k == 2};
            walk(w, &c, k == 3 ? 64 : 8);
        }
        for (uint32_t skew = 0; skew < 3; skew++) {
            c = (op_case){.kind = RQ_OP_MATMUL_EXPERTS,
                          .type = type,
                          .what = skew == 0   ? "even"
                                  : skew == 1 ? "all to the same"
                                              : "the last ones",
                          .build = build_experts,
                          .n = skew ? 2 * block < 64 ? 64 : 2 * block : n,
                          .m = 11,
                          .n_expert = 7,
                          .n_used = 2,
                          .skew = skew,
                          .flag = skew == 2};
            walk(w, &c, 64);
        }
    }
    op_case e = {
        .kind = RQ_OP_EMBED, .type = type, .what = "rows", .build = build_embed, .n = 3 * block, .m = 13};
    walk(w, &e, 16);
}

static void every_product(walker *w)
{
    for (uint32_t type = 0; type < RQ_TYPE_LIMIT; type++) {
        const rq_type_info *info = rq_type_get(type);
        if (info && info->is_weight) walk_products(w, (rq_type)type);
    }
}

static void every_pointwise(walker *w)
{
    static const uint32_t widths[] = {1, 5, 64, 257, 1024};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t flag = 0; flag < 2; flag++) {
            op_case c = {.type = RQ_TYPE_F32, .what = "", .n = widths[i], .flag = flag};
#define POINTWISE(k, b) c.kind = k, c.build = b, walk(w, &c, 64)
            POINTWISE(RQ_OP_RMS_NORM, build_norm);
            POINTWISE(RQ_OP_ADD, build_add);
            POINTWISE(RQ_OP_MUL, build_mul);
            POINTWISE(RQ_OP_SCALE, build_scale);
            c.act = RQ_ACT_SILU;
            POINTWISE(RQ_OP_GLU, build_glu);
            c.act = RQ_ACT_GELU_TANH;
            POINTWISE(RQ_OP_GLU, build_glu);
            POINTWISE(RQ_OP_COPY, build_copy);
            c.heads = 3;
            POINTWISE(RQ_OP_RMS_NORM, build_norm);
            c.rows = true;
            POINTWISE(RQ_OP_SELECT_ROWS, build_select);
            POINTWISE(RQ_OP_ARGMAX, build_argmax);
#undef POINTWISE
        }
}

static void every_attention(walker *w)
{
    static const uint32_t dims[] = {64, 80, 96, 128, 256}, ratios[] = {1, 2, 4, 7};
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t r = 0; r < 4; r++) {
            op_case c = {.type = (d + r) % 2 ? RQ_TYPE_F32 : RQ_TYPE_F16,
                         .what = "far",
                         .dim = dims[d],
                         .kv_heads = 2,
                         .heads = 2 * ratios[r],
                         .position = 1100};
            c.kind = RQ_OP_ATTEND, c.build = build_attend;
            walk(w, &c, r == 1 ? 64 : 8); /* three splits; the second run crosses a page */
            c.position = 0, c.what = "first position";
            walk(w, &c, 2);
            c.position = 1100, c.window = 100, c.what = "window";
            if (r == 2) walk(w, &c, 64);
            c.window = 0, c.softcap = 20, c.what = "soft cap";
            if (r == 3) walk(w, &c, 16);
            c.softcap = 0, c.m = 48, c.what = "narrower values";
            if (r == 0) walk(w, &c, 16);
            c.m = 0, c.position = 70, c.what = "write";
            c.kind = RQ_OP_KV_WRITE, c.build = build_kv_write;
            walk(w, &c, r ? 8 : 64);
        }
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t i = 0; i < 4; i++) {
            op_case c = {.kind = RQ_OP_QK_NORM_ROPE_WRITE,
                         .type = i < 3 ? RQ_TYPE_F16 : RQ_TYPE_F32,
                         .what = "turn and write",
                         .build = build_qk,
                         .dim = dims[d],
                         .kv_heads = 2,
                         .heads = 2 * ratios[i],
                         .position = 200,
                         .n_rot = i == 2 ? dims[d] / 4 * 2 : dims[d],
                         .flag = i != 1,
                         .pairing = i % 2 ? RQ_ROPE_NORM : RQ_ROPE_NEOX};
            walk(w, &c, d == 1 ? 64 : 8);
        }
    for (uint32_t d = 0; d < 5; d++)
        for (uint32_t i = 0; i < 4; i++) {
            op_case c = {.kind = RQ_OP_ROPE,
                         .type = RQ_TYPE_F32,
                         .what = "turn",
                         .build = build_rope,
                         .dim = dims[d],
                         .heads = 3,
                         .n_rot = i < 2 ? dims[d] : dims[d] / 4 * 2,
                         .pairing = i % 2 ? RQ_ROPE_NEOX : RQ_ROPE_NORM,
                         .position = i == 3 ? 1 << 20 : 5000,
                         .flag = i == 2};
            walk(w, &c, d == 3 ? 64 : 8);
        }
}

static void every_routing(walker *w)
{
    static const struct {
        uint32_t e, k;
    } shapes[] = {{2, 1}, {6, 6}, {8, 2}, {60, 4}, {128, 8}};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t skew = 0; skew < 3; skew++) {
            op_case c = {.type = RQ_TYPE_F32,
                         .what = "",
                         .n_expert = shapes[i].e,
                         .n_used = shapes[i].k,
                         .skew = skew,
                         .flag = skew == 1,
                         .n = skew == 0 ? 33 : 256};
            if (skew == 2 && c.n_used == c.n_expert) continue; /* needs one more than are used */
            c.kind = RQ_OP_ROUTE, c.build = build_route, walk(w, &c, 64);
            c.kind = RQ_OP_GROUP, c.build = build_group, walk(w, &c, 64);
            c.kind = RQ_OP_COMBINE, c.build = build_combine, walk(w, &c, 64);
        }
}

static void report(walker *w)
{
    for (uint32_t k = 1; k < RQ_OP_COUNT; k++) {
        bool any = false;
        double worst = w->worst[k];
        if (w->unfused[k]) {
            printf("  %-10s %-18s as its primitives\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
            continue;
        }
        for (uint32_t t = 0; t < RQ_TYPE_LIMIT; t++) {
            const op_error *e = &w->sums[k][t];
            double tolerance = rq_op_tolerance((rq_op_kind)k, (rq_type)t);
            any |= e->n > 0;
            if (!e->n || e->reference == 0 || tolerance == 0) continue;
            double share = e->error / e->reference / tolerance;
            if (w->verbose)
                printf("  %-10s %-18s %-8s %.4f of the tolerance over %llu elements\n", w->implementation,
                       rq_op_get((rq_op_kind)k)->name, rq_type_get(t)->name, share, (unsigned long long)e->n);
            if (share > worst) worst = share;
            if (!(share <= 1)) {
                printf("%s %s %s: mean error %g of the tolerance\n", w->implementation,
                       rq_op_get((rq_op_kind)k)->name, rq_type_get(t)->name, share);
                w->n_failed++;
            }
        }
        if (rq_op_tolerance((rq_op_kind)k, RQ_TYPE_F32) == 0)
            printf("  %-10s %-18s same bits\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
        else
            printf("  %-10s %-18s %.4f\n", w->implementation, rq_op_get((rq_op_kind)k)->name, worst);
        if (!any && k != RQ_OP_ARGMAX && k != RQ_OP_GROUP) {
            printf("%s %s: no case\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
            w->n_failed++;
        }
    }
}

static const char *only;
static bool verbose;

static void the_table(void **state)
{
    /* Implementations by name; a device opens those it has. NULL: the backend's own choice. */
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon", "vulkan"};
    uint32_t n_opened = 0;
    for (const rq_backend *const *b = rq_backends(); *b; b++)
        for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (only && strcmp(only, names[i]) != 0) continue;
            rq_device_options options = {.n_threads = 2, .implementation = names[i]};
            walker w = {.implementation = names[i], .verbose = verbose};
            case_data_init(&w.data);
            rq_error err = {0};
            if ((*b)->open(&options, &w.device, &err) != RQ_OK) {
                printf("%s %s is not on this machine: %s\n", (*b)->name, names[i], err.text);
                continue;
            }
            n_opened++;
            every_pointwise(&w);
            every_routing(&w);
            every_attention(&w);
            every_product(&w);
            printf("%s %s: %u cases, worst error as a share of the tolerance:\n", (*b)->name, names[i],
                   w.n_cases);
            report(&w);
            if (*b == &rq_backend_vulkan) assert_int_equal(rq_vulkan_messages(w.device), 0);
            (*b)->close(w.device);
            case_data_free(&w.data);
            assert_int_equal(w.n_failed, 0);
        }
    assert_true(n_opened > 0);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0)
            verbose = true;
        else
            only = argv[i];
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
