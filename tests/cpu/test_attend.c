/* test_attend.c - attention of the processor: against the oracle in double; the same bits however queries are
 * cut into steps and whoever computes them. Unwritten keys are NaN, and so are exact pages that nobody may read
 * any more, so reading one shows. */
#include "backends/base/mem.h"
#include "backends/cpu/isa.h"
#include "backends/ops.h"
#include "tests/cpu/rig.h"

#include <math.h>
#include <string.h>

typedef struct shape {
    uint32_t n_kv, group, dim_k, dim_v, window;
    rq_type type_k, type_v;
    uint32_t start, count; /* queries at positions [start, start + count) */
    float softcap;
    rq_kv_form form_k, form_v; /* of coded pages */
    uint32_t sinks, recent;    /* pages */
    uint32_t mean;             /* columns of a mean of the keys, 0: none */
} shape;

/* no coded pages, no mean */
#define EXACT RQ_KV_SAME, RQ_KV_SAME, 0, 0, 0

static const shape shapes[] = {
    {2, 1, 64, 64, 0, RQ_TYPE_F16, RQ_TYPE_F16, 0, 70, 0, EXACT},
    {1, 2, 128, 128, 0, RQ_TYPE_F16, RQ_TYPE_F16, 500, 40, 0, EXACT},
    {2, 3, 32, 32, 0, RQ_TYPE_F32, RQ_TYPE_F32, 60, 9, 0, EXACT},
    {1, 4, 80, 80, 0, RQ_TYPE_F16, RQ_TYPE_F16, 1100, 70, 0, EXACT},
    {1, 5, 96, 96, 0, RQ_TYPE_F16, RQ_TYPE_F32, 130, 65, 30, EXACT},
    {1, 6, 256, 256, 0, RQ_TYPE_F16, RQ_TYPE_F16, 640, 33, 0, EXACT},
    {1, 7, 40, 72, 0, RQ_TYPE_F32, RQ_TYPE_F16, 63, 66, 0, EXACT},
    {3, 8, 64, 128, 0, RQ_TYPE_F16, RQ_TYPE_F16, 0, 130, 50, EXACT},
    {2, 2, 64, 64, 100, RQ_TYPE_F16, RQ_TYPE_F16, 0, 200, 0, EXACT},
    {1, 4, 128, 128, 512, RQ_TYPE_F16, RQ_TYPE_F16, 1000, 70, 0, EXACT},
    {1, 3, 32, 32, 1, RQ_TYPE_F16, RQ_TYPE_F16, 100, 64, 0, EXACT},
    {1, 1, 8, 8, 70, RQ_TYPE_F16, RQ_TYPE_F16, 700, 130, 0, EXACT},
    {2, 7, 256, 256, 0, RQ_TYPE_F32, RQ_TYPE_F32, 1100, 13, 20, EXACT},
    {2, 2, 80, 64, 0, RQ_TYPE_BF16, RQ_TYPE_BF16, 130, 70, 15, RQ_KV_SAME, RQ_KV_SAME, 0, 0, 1},
    /* coded pages; the queries lie around positions where the boundary moves */
    {2, 2, 128, 128, 0, RQ_TYPE_F16, RQ_TYPE_F16, 570, 70, 0, RQ_KV_C3, RQ_KV_C3, 0, 2, 0},
    {2, 1, 64, 64, 0, RQ_TYPE_F16, RQ_TYPE_F16, 0, 250, 0, RQ_KV_C2, RQ_KV_C4, 0, 1, 0},
    {1, 4, 80, 72, 0, RQ_TYPE_F16, RQ_TYPE_F16, 570, 30, 12, RQ_KV_C4, RQ_KV_C2, 1, 1, 1},
    {2, 3, 40, 40, 0, RQ_TYPE_BF16, RQ_TYPE_F32, 300, 90, 0, RQ_KV_Q8_0, RQ_KV_SAME, 2, 2, 0},
    {4, 2, 32, 64, 0, RQ_TYPE_F32, RQ_TYPE_F16, 320, 65, 9, RQ_KV_SAME, RQ_KV_C3, 0, 2, 2},
    {1, 7, 96, 256, 0, RQ_TYPE_F16, RQ_TYPE_F16, 500, 40, 0, RQ_KV_Q4_0, RQ_KV_Q8_0, 1, 3, 0},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static uint32_t bucket_of(uint32_t n)
{
    uint32_t b = 1;
    while (b < n) b *= 2;
    return b;
}

/* Keys and values of positions [0, end) of a sequence, queries of all positions of the shape. */
static void fill(rig *r, const shape *s, uint32_t seq, uint32_t end)
{
    uint64_t seed = 7 + seq;
    float *k = rq_calloc(s->n_kv * s->dim_k, sizeof *k), *v = rq_calloc(s->n_kv * s->dim_v, sizeof *v);
    for (uint32_t p = 0; p < end; p++) {
        for (uint32_t i = 0; i < s->n_kv * s->dim_k; i++) k[i] = rig_normal(&seed);
        for (uint32_t i = 0; i < s->n_kv * s->dim_v; i++) v[i] = rig_normal(&seed);
        rig_put(r, 1, seq, p, k, v);
    }
    rq_free(k);
    rq_free(v);
}

static void open_rig(rig *r, const shape *s, const char *implementation, uint32_t threads)
{
    rq_cache_group group = {.n_layers = 2,
                            .n_heads = s->n_kv,
                            .dim_k = s->dim_k,
                            .dim_v = s->dim_v,
                            .window = s->window,
                            .type_k = s->type_k,
                            .type_v = s->type_v,
                            .form_k = s->form_k,
                            .form_v = s->form_v,
                            .sink_pages = s->sinks,
                            .recent_pages = s->recent};
    rq_step_caps caps = {
        .max_tokens = 256, .n_groups = 1, .n_seqs = 2, .max_pages = (s->start + s->count + 63) / 64};
    rig_open(r, implementation, threads, &group, &caps);
    rig_fresh_cache(r);
    for (uint32_t seq = 0; seq < 2; seq++) {
        fill(r, s, seq, s->start + s->count);
        /* what somebody reads coded is encoded; what nobody reads exact is gone */
        for (uint32_t p = 0; p < caps.max_pages; p++) {
            if (!rq_kv_reads_exact(&group, s->start + s->count - 1, p)) rig_encode(r, 1, seq, p);
            if (!rq_kv_reads_exact(&group, s->start, p)) rig_forget(r, seq, p);
        }
    }
    if (s->mean) {
        uint64_t seed = 5;
        float mean[512];
        for (uint32_t i = 0; i < s->mean * s->dim_k; i++) mean[i] = rig_normal(&seed);
        rig_weight(r, 0, mean, s->mean * s->dim_k * sizeof *mean);
    }
}

/* Attention for all queries of the shape in steps of `piece` tokens, [count][H * dim_v], with `other` tokens of
 * another sequence in front of each piece. */
static void evaluate(rig *r, const shape *s, const float *q, uint32_t piece, uint32_t other, float *out)
{
    uint32_t heads = s->n_kv * s->group, width = heads * s->dim_k, out_width = heads * s->dim_v;
    const uint32_t *tables[2] = {rig_table(r, 0), rig_table(r, 1)};
    int32_t ids[256] = {0};
    for (uint32_t done = 0; done < s->count; done += piece) {
        uint32_t n = s->count - done < piece ? s->count - done : piece;
        rq_tape tape;
        rq_tape_init(&tape, bucket_of(n + other));
        rq_ref in = rq_tape_act(&tape, RQ_TYPE_F32, s->dim_k, heads, tape.bucket, 1);
        const uint32_t mean_ne[4] = {s->dim_k, s->mean, 1, 1};
        rq_ref mean = s->mean ? rq_tape_weight(&tape, 0, RQ_TYPE_F32, mean_ne, "mean") : 0;
        rq_ref y = rq_op_attend_mean(&tape, rq_tape_cache(&tape, 0, 1), in, mean, s->dim_v,
                                     1.0f / sqrtf((float)s->dim_k), s->softcap);
        rig_compile(r, &tape);
        rq_step_reset(&r->step);
        if (other) assert_int_equal(rq_step_add_run(&r->step, 1, ids, other, s->start, &tables[1]), 0);
        assert_int_equal(rq_step_add_run(&r->step, 0, ids, n, s->start + done, &tables[0]), other);
        assert_int_equal(rq_step_finish(&r->step), tape.bucket);
        float *x = rig_value(r, in);
        for (uint32_t t = 0; t < other; t++) memcpy(x + t * width, q, width * sizeof *x);
        memcpy(x + other * width, q + done * width, n * width * sizeof *x);
        rig_run(r);
        memcpy(out + done * out_width, (float *)rig_value(r, y) + other * out_width,
               n * out_width * sizeof *out);
        rq_tape_free(&tape);
    }
}

static float *queries(const shape *s)
{
    uint64_t seed = 99;
    size_t n = (size_t)s->count * s->n_kv * s->group * s->dim_k;
    float *q = rq_calloc(n, sizeof *q);
    for (size_t i = 0; i < n; i++) q[i] = rig_normal(&seed) * 2;
    return q;
}

static void test_against_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        size_t n = (size_t)s->count * s->n_kv * s->group * s->dim_v;
        float *q = queries(s), *ref = rq_calloc(n, sizeof *ref), *y = rq_calloc(n, sizeof *y);
        rig r;
        open_rig(&r, s, "reference", 1);
        evaluate(&r, s, q, 256, 0, ref);
        rig_close(&r);
        for (size_t a = 0; rq_cpu_isa_at(a); a++) {
            open_rig(&r, s, rq_cpu_isa_at(a)->name, 2);
            evaluate(&r, s, q, 256, 0, y);
            double worst = 0, square = 0;
            for (size_t j = 0; j < n; j++) {
                double d = fabs((double)y[j] - (double)ref[j]);
                worst = d > worst ? d : worst;
                square += (double)ref[j] * (double)ref[j];
                if (isnan(y[j])) fail_msg("%s, shape %zu: NaN at %zu", rq_cpu_isa_at(a)->name, i, j);
            }
            /* coded pages: what int16 queries and weights lose, as in test_attend_coded.c */
            bool coded = s->form_k != RQ_KV_SAME || s->form_v != RQ_KV_SAME;
            double nmse = rig_nmse(y, ref, n),
                   limit = coded ? 1e-7 : rq_op_tolerance(RQ_OP_ATTEND, s->type_k);
            if (nmse > limit || worst > RQ_TOLERANCE_TAIL * sqrt(limit) * sqrt(square / (double)n))
                fail_msg("%s, shape %zu: nmse %g (limit %g), worst %g", rq_cpu_isa_at(a)->name, i, nmse,
                         limit, worst);
            rig_close(&r);
        }
        rq_free(q);
        rq_free(ref);
        rq_free(y);
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        uint32_t piece, other, threads;
    } ways[] = {{1, 0, 1}, {1, 3, 2},  {2, 0, 2},  {5, 0, 3},  {8, 0, 2},
                {5, 3, 5}, {64, 0, 2}, {61, 3, 2}, {256, 0, 3}};
    for (size_t i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        size_t n = (size_t)s->count * s->n_kv * s->group * s->dim_v;
        float *q = queries(s), *first = rq_calloc(n, sizeof *first), *y = rq_calloc(n, sizeof *y);
        for (size_t a = 0; rq_cpu_isa_at(a); a++)
            for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
                rig r;
                memset(y, 0xff, n * sizeof *y);
                open_rig(&r, s, rq_cpu_isa_at(a)->name, ways[way].threads);
                evaluate(&r, s, q, ways[way].piece, ways[way].other, way == 0 ? first : y);
                rig_close(&r);
                if (way && memcmp(first, y, n * sizeof *y) != 0)
                    fail_msg("%s, shape %zu: pieces of %u beside %u with %u threads differ from one by one",
                             rq_cpu_isa_at(a)->name, i, ways[way].piece, ways[way].other, ways[way].threads);
            }
        rq_free(q);
        rq_free(first);
        rq_free(y);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
