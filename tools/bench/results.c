#include "tools/bench/results.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct field {
    const char *name;
    bool is_number;
    char text[512];
} field;

enum { MAX_FIELDS = 32 };

static double tokens_of(const bench_row *r)
{
    return (double)(r->n_prompt + r->n_gen) * r->n_sequences;
}

/* Mean and sample standard deviation of f(sample). */
static void statistics(const bench_row *r, bool per_second, double *mean, double *deviation)
{
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < r->n_samples; i++) {
        double ns = (double)r->samples_ns[i], x = per_second ? tokens_of(r) * 1e9 / ns : ns;
        sum += x;
        squares += x * x;
    }
    double n = r->n_samples;
    *mean = n ? sum / n : 0;
    *deviation = n > 1 ? sqrt(fmax(0, (squares - n * *mean * *mean) / (n - 1))) : 0;
}

double bench_tokens_per_second(const bench_row *row)
{
    double mean, deviation;
    statistics(row, true, &mean, &deviation);
    return mean;
}

static field *add(field *fields, size_t *n, const char *name, bool is_number)
{
    field *f = &fields[(*n)++];
    f->name = name;
    f->is_number = is_number;
    return f;
}

static void add_text(field *fields, size_t *n, const char *name, const char *text)
{
    snprintf(add(fields, n, name, false)->text, sizeof fields->text, "%s", text);
}

static void add_u64(field *fields, size_t *n, const char *name, uint64_t value)
{
    snprintf(add(fields, n, name, true)->text, sizeof fields->text, "%" PRIu64, value);
}

static void add_real(field *fields, size_t *n, const char *name, double value)
{
    snprintf(add(fields, n, name, true)->text, sizeof fields->text, "%.6f", value);
}

static size_t fields_of(const bench_row *r, field *fields)
{
    size_t n = 0;
    double ns, ns_dev, ts, ts_dev;
    statistics(r, false, &ns, &ns_dev);
    statistics(r, true, &ts, &ts_dev);
    add_text(fields, &n, "build_commit", RQVK_COMMIT);
    add_text(fields, &n, "cpu_info", r->cpu_info);
    add_text(fields, &n, "backends", r->backends);
    add_text(fields, &n, "model_filename", r->model_filename);
    add_text(fields, &n, "model_type", r->model_type);
    add_u64(fields, &n, "model_size", r->model_size);
    add_u64(fields, &n, "model_n_params", r->model_n_params);
    add_u64(fields, &n, "n_batch", r->n_batch);
    add_u64(fields, &n, "n_ubatch", r->n_batch);
    add_u64(fields, &n, "n_threads", r->n_threads);
    add_text(fields, &n, "type_k", r->type_k);
    add_text(fields, &n, "type_v", r->type_v);
    add_u64(fields, &n, "n_prompt", r->n_prompt);
    add_u64(fields, &n, "n_gen", r->n_gen);
    add_u64(fields, &n, "n_depth", r->n_depth);
    add_u64(fields, &n, "n_sequences", r->n_sequences);
    add_text(fields, &n, "test_time", r->test_time);
    add_u64(fields, &n, "avg_ns", (uint64_t)ns);
    add_u64(fields, &n, "stddev_ns", (uint64_t)ns_dev);
    add_real(fields, &n, "avg_ts", ts);
    add_real(fields, &n, "stddev_ts", ts_dev);
    add_real(fields, &n, "host_us_per_step", r->host_us);
    add_real(fields, &n, "ratio", r->ratio);
    return n;
}

static void put_json_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else if (*c < 0x20)
            fprintf(out, "\\u%04x", *c);
        else
            fputc(*c, out);
    }
    fputc('"', out);
}

static void put_csv_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void put_json(FILE *out, const bench_row *r, const field *fields, size_t n, const char *gap)
{
    fprintf(out, "{%s", gap);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "\"%s\": ", fields[i].name);
        if (fields[i].is_number)
            fputs(fields[i].text, out);
        else
            put_json_string(out, fields[i].text);
        fprintf(out, ",%s", *gap ? gap : " ");
    }
    fputs("\"samples_ns\": [", out);
    for (uint32_t i = 0; i < r->n_samples; i++) fprintf(out, "%s%" PRIu64, i ? ", " : "", r->samples_ns[i]);
    fprintf(out, "],%s\"samples_ts\": [", *gap ? gap : " ");
    for (uint32_t i = 0; i < r->n_samples; i++)
        fprintf(out, "%s%.3f", i ? ", " : "", tokens_of(r) * 1e9 / (double)r->samples_ns[i]);
    fprintf(out, "]%s}", *gap ? "\n  " : "");
}

void bench_print_head(FILE *out, bench_format format, bool compares)
{
    static const bench_row empty = {
        .model_filename = "", .model_type = "", .cpu_info = "", .backends = "", .type_k = "", .type_v = ""};
    if (format == BENCH_MD) {
        fprintf(
            out,
            "| model                          |       size |     params | backend    | threads | type_k | "
            "type_v |            test |                  t/s | host us/step |%s\n",
            compares ? "  ratio |" : "");
        fprintf(
            out,
            "| ------------------------------ | ---------: | ---------: | ---------- | ------: | -----: | "
            "-----: | --------------: | -------------------: | -----------: |%s\n",
            compares ? " -----: |" : "");
    } else if (format == BENCH_CSV) {
        field fields[MAX_FIELDS];
        size_t n = fields_of(&empty, fields);
        for (size_t i = 0; i < n; i++) fprintf(out, "%s%s", i ? "," : "", fields[i].name);
        fputc('\n', out);
    } else if (format == BENCH_JSON) {
        fputs("[\n  ", out);
    }
    fflush(out);
}

static void print_markdown(FILE *out, const bench_row *r)
{
    char test[64] = "", size[32], params[32], speed[64];
    if (r->n_prompt) snprintf(test, sizeof test, "pp%u", r->n_prompt);
    if (r->n_gen)
        snprintf(test + strlen(test), sizeof test - strlen(test), "%stg%u", r->n_prompt ? "+" : "", r->n_gen);
    if (r->n_depth) snprintf(test + strlen(test), sizeof test - strlen(test), " @ d%u", r->n_depth);
    if (r->n_sequences > 1) snprintf(test + strlen(test), sizeof test - strlen(test), " x%u", r->n_sequences);
    double size_mib = (double)r->model_size / (1 << 20);
    snprintf(size, sizeof size, size_mib >= 1024 ? "%.2f GiB" : "%.2f MiB",
             size_mib >= 1024 ? size_mib / 1024 : size_mib);
    snprintf(params, sizeof params, r->model_n_params >= 1000000000 ? "%.2f B" : "%.2f M",
             (double)r->model_n_params / (r->model_n_params >= 1000000000 ? 1e9 : 1e6));
    double mean, deviation;
    statistics(r, true, &mean, &deviation);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", mean, deviation);
    /* "±" is two bytes wide but one column. */
    fprintf(out, "| %-30s | %10s | %10s | %-10s | %7u | %6s | %6s | %15s | %21s | %12.1f |", r->model_type,
            size, params, r->backends, r->n_threads, r->type_k, r->type_v, test, speed, r->host_us);
    if (r->ratio > 0) fprintf(out, " %5.3fx |", r->ratio);
    fputc('\n', out);
}

void bench_print_row(FILE *out, bench_format format, const bench_row *row, bool first)
{
    field fields[MAX_FIELDS];
    size_t n = fields_of(row, fields);
    switch (format) {
    case BENCH_MD:
        print_markdown(out, row);
        break;
    case BENCH_CSV:
        for (size_t i = 0; i < n; i++) {
            if (i) fputc(',', out);
            put_csv_string(out, fields[i].text);
        }
        fputc('\n', out);
        break;
    case BENCH_JSON:
        if (!first) fputs(",\n  ", out);
        put_json(out, row, fields, n, "\n    ");
        break;
    case BENCH_JSONL:
        put_json(out, row, fields, n, "");
        fputc('\n', out);
        break;
    }
    fflush(out);
}

void bench_print_tail(FILE *out, bench_format format)
{
    if (format == BENCH_JSON) fputs("\n]\n", out);
    fflush(out);
}
