/* bench_attend.c - speed of attention; run by hand: bench_attend [threads] [implementation] [form] [short]
 * form: f16 (default), c2, c3, c4, q8_0, q4_0; short: generation and a prompt at one depth only */
#include "backends/base/mem.h"
#include "tests/cpu/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

typedef struct setting {
    const char *implementation;
    uint32_t threads;
    rq_kv_form form;
} setting;

static rq_kv_form form_of(const char *name)
{
    static const char *const names[] = {[RQ_KV_Q8_0] = "q8_0",
                                        [RQ_KV_Q4_0] = "q4_0",
                                        [RQ_KV_C2] = "c2",
                                        [RQ_KV_C3] = "c3",
                                        [RQ_KV_C4] = "c4"};
    for (int i = RQ_KV_Q8_0; i <= RQ_KV_C4; i++)
        if (name && strcmp(name, names[i]) == 0) return (rq_kv_form)i;
    return RQ_KV_SAME;
}

static void measure(const setting *set, uint32_t heads, uint32_t kv, uint32_t d, uint32_t layers,
                    uint32_t depth, uint32_t tokens)
{
    uint32_t threads = set->threads;
    rq_cache_group group = {.n_layers = layers,
                            .n_heads = kv,
                            .dim_k = d,
                            .dim_v = d,
                            .type_k = RQ_TYPE_F16,
                            .type_v = RQ_TYPE_F16,
                            .form_k = set->form,
                            .form_v = set->form,
                            .recent_pages = 2};
    rq_step_caps caps = {
        .max_tokens = 2048, .n_groups = 1, .n_seqs = 1, .max_pages = (depth + tokens + 63) / 64};
    rig r;
    rig_open(&r, set->implementation, threads, &group, &caps);
    for (uint32_t i = 0; i < r.pool.n_slabs; i++) memset(r.pool.slabs[i]->host, 0x2c, r.pool.slabs[i]->bytes);
    for (uint32_t i = 0; i < r.pool.n_coded_slabs; i++)
        memset(r.pool.coded_slabs[i]->host, 0x5c, r.pool.coded_slabs[i]->bytes);
    const uint32_t *table = rig_table(&r, 0);
    static int32_t ids[2048];
    rq_step_reset(&r.step);
    rq_step_add_run(&r.step, 0, ids, tokens, depth, &table);
    uint32_t bucket = rq_step_finish(&r.step);
    /* one operation per layer, so that generation reads from memory and not from a cache */
    rq_tape tape;
    rq_tape_init(&tape, bucket);
    rq_ref in = rq_tape_act(&tape, RQ_TYPE_F32, d, heads, bucket, 1);
    for (uint32_t l = 0; l < layers; l++)
        rq_op_attend(&tape, rq_tape_cache(&tape, 0, l), in, d, 1.0f / sqrtf((float)d), 0);
    rig_compile(&r, &tape);
    float *q = rig_value(&r, in);
    uint64_t seed = 1;
    for (uint32_t i = 0; i < d * heads * tokens; i++) q[i] = rig_normal(&seed);
    /* the processor may be shared: the time that the process itself was running is given too */
    double best = 1e30, best_cpu = 1e30;
    for (int i = 0; i < (depth < 1000 && tokens == 1 ? 200 : 5); i++) {
        double t = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        rig_run(&r);
        t = (now_ns(CLOCK_MONOTONIC) - t) / layers;
        cpu = (now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu) / layers / threads;
        best = t < best ? t : best;
        best_cpu = cpu < best_cpu ? cpu : best_cpu;
    }
    double seen = (double)tokens * depth + (double)tokens * (tokens + 1) / 2;
    uint32_t coded = rq_kv_boundary(&group, depth + tokens - 1) * RQ_PAGE_TOKENS;
    double bytes = 2.0 * kv * d * 2 * (depth + tokens - coded), flops = 4.0 * heads * d * seen;
    if (coded) bytes += (double)r.pool.coded_layout.layer_bytes * coded / RQ_PAGE_TOKENS;
    printf("threads %u  heads %u/%u  d %u  depth %5u  tokens %4u: %10.0f ns (cpu %10.0f)  %6.2f (%6.2f) GB/s "
           " %7.2f (%7.2f) GFLOP/s\n",
           threads, heads, kv, d, depth, tokens, best, best_cpu, bytes / best, bytes / best_cpu, flops / best,
           flops / best_cpu);
    rq_tape_free(&tape);
    rig_close(&r);
}

int main(int argc, char **argv)
{
    setting set = {.implementation = argc > 2 ? argv[2] : NULL,
                   .threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2,
                   .form = form_of(argc > 3 ? argv[3] : NULL)};
    if (set.implementation && strcmp(set.implementation, "best") == 0) set.implementation = NULL;
    if (argc > 4) {
        measure(&set, 16, 8, 128, 8, 4096, 1);
        measure(&set, 16, 8, 128, 2, 4096, 512);
        return 0;
    }
    measure(&set, 16, 8, 128, 1, 448, 1); /* from a cache: what the arithmetic alone takes */
    measure(&set, 32, 8, 128, 1, 448, 1);
    measure(&set, 32, 4, 128, 1, 448, 1);
    measure(&set, 14, 2, 64, 1, 448, 1);
    measure(&set, 16, 8, 128, 8, 4096, 1);
    measure(&set, 8, 8, 128, 8, 4096, 1);
    measure(&set, 32, 8, 128, 8, 4096, 1);
    measure(&set, 32, 4, 128, 8, 4096, 1);
    measure(&set, 14, 2, 64, 24, 4096, 1);
    measure(&set, 16, 8, 128, 8, 4096, 4);
    measure(&set, 16, 8, 128, 2, 4096, 512);
    measure(&set, 16, 8, 128, 2, 0, 512);
    return 0;
}
