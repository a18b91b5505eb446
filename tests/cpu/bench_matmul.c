/* bench_matmul.c - speed of the matrix kernels on one thread: bytes of weights per second for one column, products
 * per second for many. Not a test; run by hand:
 *     bench_matmul [isa] [type ...]
 * Weights of one column are larger than the last-level cache; best of a few passes. */
#include <stdio.h>
#include <time.h>

#include "backends/base/mem.h"
#include "backends/cpu/matmul.h"
#include "tests/cpu/matmul_data.h"

enum { N_IN = 4096, MAX_T = 512 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Reads `bytes` once and returns GB/s: what the memory gives one thread. */
static double read_speed(const uint8_t *p, size_t bytes)
{
    double best = 0;
    for (int pass = 0; pass < 3; pass++) {
        uint64_t s[8] = {0};
        double t = now_s();
        for (size_t i = 0; i + 64 <= bytes; i += 64) {
            uint64_t v[8];
            memcpy(v, p + i, 64);
            for (int j = 0; j < 8; j++) s[j] += v[j];
        }
        t = now_s() - t;
        volatile uint64_t sink = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
        (void)sink;
        if ((double)bytes / t * 1e-9 > best) best = (double)bytes / t * 1e-9;
    }
    return best;
}

static double product_s(const rq_cpu_isa *isa, rq_type type, const uint8_t *w, int64_t rows,
                        const uint8_t *acts, int T, float *y, void *scratch)
{
    double best = 1e9, begin = now_s();
    for (int pass = 0; pass < 40 && (pass < 3 || now_s() - begin < 0.15); pass++) {
        double t = now_s();
        rq_matmul_rows(isa, type, w, rq_row_bytes(type, N_IN), N_IN, 0, rows, acts,
                       rq_matmul_act_bytes(type, N_IN), T, y, (size_t)rows, scratch);
        t = now_s() - t;
        if (t < best) best = t;
    }
    return best;
}

int main(int argc, char **argv)
{
    const rq_cpu_isa *isa = argc > 1 ? rq_cpu_isa_by_name(argv[1]) : rq_cpu_isa_best();
    if (!isa) {
        fprintf(stderr, "no such instruction set here\n");
        return 1;
    }
    size_t budget = 96u << 20;
    uint8_t *w = rq_calloc_aligned(64, budget);
    float *x = rq_malloc((size_t)N_IN * MAX_T * sizeof(float));
    float *y = rq_malloc((size_t)MAX_T * 65536 * sizeof(float));
    uint8_t *acts = rq_calloc_aligned(64, (size_t)N_IN * MAX_T * sizeof(float));
    void *scratch = rq_malloc(rq_matmul_scratch_bytes());
    rq_test_rng g = {1};
    if (!w || !x || !y || !acts || !scratch) return 1;
    memset(w, 1, budget);
    for (size_t i = 0; i < (size_t)N_IN * MAX_T; i++) x[i] = rq_test_normal(&g);
    printf("%s, one thread, n_in %d; plain read %.1f GB/s\n", isa->name, N_IN, read_speed(w, budget));
    printf("%-8s %7s %6s | %22s | GMAC/s T = %6s %6s %6s %6s | quantise GB/s\n", "type", "in cache", "T=1",
           "T=2, 4, 8 (GB/s)", "8", "16", "64", "512");
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        bool wanted = argc < 3;
        for (int i = 2; i < argc; i++) {
            rq_type t;
            if (rq_type_from_name(argv[i], &t) && t == id) wanted = true;
        }
        if (!info || !info->is_weight || !wanted) continue;
        size_t row = rq_row_bytes((rq_type)id, N_IN);
        int64_t rows = (int64_t)(budget / row);
        if (rows > 65536) rows = 65536;
        rows &= ~15;
        rq_test_weights((rq_type)id, w, N_IN * (int64_t)16, &g);
        for (int64_t r = 16; r < rows; r += 16) memcpy(w + (size_t)r * row, w, 16 * row);
        double t = now_s();
        for (int i = 0; i < MAX_T; i++)
            rq_matmul_quantize_act(isa, (rq_type)id, x + (size_t)i * N_IN,
                                   acts + (size_t)i * rq_matmul_act_bytes((rq_type)id, N_IN), N_IN);
        double quantize = (double)N_IN * MAX_T * 4 / (now_s() - t) * 1e-9;
        double bytes = (double)rows * (double)row * 1e-9, macs = (double)N_IN * 1e-9;
        double hot = 1e9;
        for (int i = 0; i < 20; i++) {
            double h = product_s(isa, (rq_type)id, w, 64, acts, 1, y, scratch);
            if (h < hot) hot = h;
        }
        double s1 = product_s(isa, (rq_type)id, w, rows, acts, 1, y, scratch);
        double s2 = product_s(isa, (rq_type)id, w, rows / 16 * 16, acts, 2, y, scratch);
        double s4 = product_s(isa, (rq_type)id, w, rows, acts, 4, y, scratch);
        double s8 = product_s(isa, (rq_type)id, w, rows / 2, acts, 8, y, scratch) * 2;
        double s16 = product_s(isa, (rq_type)id, w, 128, acts, 16, y, scratch);
        double s64 = product_s(isa, (rq_type)id, w, 64, acts, 64, y, scratch);
        double s512 = product_s(isa, (rq_type)id, w, 32, acts, 512, y, scratch);
        printf("%-8s %7.1f %6.1f | %6.1f  %6.1f  %6.1f |     %6s %6.1f %6.1f %6.1f %6.1f | %.1f\n",
               info->name, 64 * (double)row * 1e-9 / hot, bytes / s1, bytes / s2, bytes / s4, bytes / s8, "",
               macs * 8 * (double)rows / s8, macs * 16 * 128 / s16, macs * 64 * 64 / s64,
               macs * 512 * 32 / s512, quantize);
        fflush(stdout);
    }
    rq_free(w);
    rq_free(x);
    rq_free(y);
    rq_free(acts);
    rq_free(scratch);
    return 0;
}
