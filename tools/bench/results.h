/* results.h - the rows rqvk-bench prints, in the formats of llama-bench (whose field names are kept, so that
 * scripts written for it work). */
#ifndef RQ_BENCH_RESULTS_H
#define RQ_BENCH_RESULTS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { BENCH_MAX_SAMPLES = 64 };

typedef enum bench_format { BENCH_MD, BENCH_CSV, BENCH_JSON, BENCH_JSONL } bench_format;

typedef struct bench_row {
    const char *model_filename, *model_type, *cpu_info, *backends, *type_k, *type_v;
    uint64_t model_size, model_n_params;
    uint32_t n_batch, n_threads, n_prompt, n_gen, n_depth, n_sequences;
    char test_time[32]; /* UTC, ISO 8601 */
    uint32_t n_samples;
    uint64_t samples_ns[BENCH_MAX_SAMPLES]; /* one repetition each: all tokens of all sequences */
    double host_us;                         /* the host's own work for a step, waiting not counted */
    double ratio; /* speed, as a share of the first backend's; 0: nothing is compared */
} bench_row;

double bench_tokens_per_second(const bench_row *row);

void bench_print_head(FILE *out, bench_format format, bool compares);
void bench_print_row(FILE *out, bench_format format, const bench_row *row, bool first);
void bench_print_tail(FILE *out, bench_format format);

#endif
