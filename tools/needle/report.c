/* report.c - see report.h. */
#include "tools/needle/report.h"

#include "backends/base/mem.h"
#include "tools/kv/svg.h"
#include "tools/kv/table.h"
#include "tools/ppl/plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

rq_needle_figures rq_needle_figures_of(const rq_needle_job *job, const rq_needle_results *results,
                                       size_t format, int length, int depth)
{
    rq_needle_figures f = {0};
    size_t n_formats = job->entries->n;
    for (uint64_t i = 0; i < results->n_trials; i++) {
        uint64_t cell = i % rq_needle_n_cells(job);
        if (length != RQ_NEEDLE_ANY && cell / job->n_depths != (uint64_t)length) continue;
        if (depth != RQ_NEEDLE_ANY && cell % job->n_depths != (uint64_t)depth) continue;
        uint8_t own = results->outcomes[i * n_formats + format], first = results->outcomes[i * n_formats];
        if (own == RQ_NEEDLE_NOT_RUN || first == RQ_NEEDLE_NOT_RUN) continue;
        bool right = own >= RQ_NEEDLE_VALUE, first_right = first >= RQ_NEEDLE_VALUE;
        f.n++;
        f.values += right;
        f.sentences += own == RQ_NEEDLE_SENTENCE;
        f.paired.gained += right && !first_right;
        f.paired.lost += first_right && !right;
    }
    f.paired.n = f.n;
    f.value_95 = rq_wilson95(f.values, f.n);
    f.sentence_95 = rq_wilson95(f.sentences, f.n);
    f.difference_95 = rq_paired_difference95(f.paired);
    f.mcnemar = rq_mcnemar_exact(f.paired);
    return f;
}

static double percent(uint64_t k, uint64_t n)
{
    return n ? 100 * (double)k / (double)n : NAN;
}

/* Share of the keys that were read coded while the answer to a prompt of this length was written. */
static double coded_share(const rq_seat_info *info, uint32_t length)
{
    const rq_windows answer = {.n_ctx = length, .first = length - 20, .n = 1};
    return info->coded ? rq_coded_share(&answer, info->kv_recent, info->kv_sinks, 0) : 0;
}

/* ---- table ------------------------------------------------------------------------------------------------- */

static void print_overall(const rq_needle_report *r, size_t format, FILE *out)
{
    const rq_needle_job *job = r->job;
    const rq_seat_info *info = &r->results->columns[format].info;
    rq_needle_figures f = rq_needle_figures_of(job, r->results, format, RQ_NEEDLE_ANY, RQ_NEEDLE_ANY);
    char difference[64] = "-", p[24] = "-", value[48], sentence[48];
    if (format != 0) {
        snprintf(difference, sizeof difference, "%+.2f [%+.2f, %+.2f]",
                 percent(f.values, f.n) - percent(f.values + f.paired.lost - f.paired.gained, f.n),
                 100 * f.difference_95.low, 100 * f.difference_95.high);
        snprintf(p, sizeof p, "%.3g", f.mcnemar);
    }
    snprintf(value, sizeof value, "%.2f [%.2f, %.2f]", percent(f.values, f.n), 100 * f.value_95.low,
             100 * f.value_95.high);
    snprintf(sentence, sizeof sentence, "%.2f [%.2f, %.2f]", percent(f.sentences, f.n),
             100 * f.sentence_95.low, 100 * f.sentence_95.high);
    fprintf(out, "| %-18s | %6.4f | %22s | %22s | %24s | %4" PRIu64 " / %4" PRIu64 " | %8s |\n",
            job->entries->items[format].label, (info->bits_k + info->bits_v) / 2, value, sentence, difference,
            f.paired.lost, f.paired.gained, p);
}

static void print_cells(const rq_needle_report *r, FILE *out)
{
    const rq_needle_job *job = r->job;
    fputs("\nValues found, percent:\n\n| K/V                | length | coded |", out);
    for (uint32_t d = 0; d < job->n_depths; d++) fprintf(out, " depth %3u |", job->depths[d]);
    fputs("   all |\n| ------------------ | -----: | ----: |", out);
    for (uint32_t d = 0; d < job->n_depths; d++) fputs(" --------: |", out);
    fputs(" ----: |\n", out);
    for (size_t i = 0; i < job->entries->n; i++) {
        if (r->results->columns[i].refused[0]) continue;
        for (uint32_t l = 0; l < job->n_lengths; l++) {
            fprintf(out, "| %-18s | %6u | %4.0f%% |", job->entries->items[i].label, job->lengths[l],
                    100 * coded_share(&r->results->columns[i].info, job->lengths[l]));
            for (uint32_t d = 0; d < job->n_depths; d++) {
                rq_needle_figures f = rq_needle_figures_of(job, r->results, i, (int)l, (int)d);
                fprintf(out, " %9.1f |", percent(f.values, f.n));
            }
            rq_needle_figures f = rq_needle_figures_of(job, r->results, i, (int)l, RQ_NEEDLE_ANY);
            fprintf(out, " %5.1f |\n", percent(f.values, f.n));
        }
    }
}

void rq_needle_print_table(const rq_needle_report *r, FILE *out)
{
    const rq_needle_job *job = r->job;
    const rq_needle_results *results = r->results;
    fprintf(out, "%s: %" PRIu64 " of %" PRIu64 " trials, the same for every format\n\n", r->model.description,
            results->n_done, results->n_trials);
    if (results->n_done == 0) return;
    fprintf(out,
            "| K/V                |   bits |         value right, %% |   whole sentence, %% | %24s | lost / "
            "won  | "
            "McNemar p |\n"
            "| ------------------ | -----: | ---------------------: | ---------------------: | "
            "-----------------------: | ----------: | -------: |\n",
            "beside the first, points");
    for (size_t i = 0; i < job->entries->n; i++)
        if (!results->columns[i].refused[0]) print_overall(r, i, out);
    print_cells(r, out);
    for (size_t i = 0; i < job->entries->n; i++)
        if (results->columns[i].refused[0])
            fprintf(out, "\n%s: not measured: %s\n", job->entries->items[i].label,
                    results->columns[i].refused);
    fputs("\nIntervals: 95 %. coded: share of the keys read that were read from coded pages while the answer "
          "was "
          "written.\n",
          out);
}

/* ---- JSON and CSV ---------------------------------------------------------------------------------------------- */

static void json_figures(const rq_needle_figures *f, FILE *out)
{
    fprintf(out,
            "\"trials\": %" PRIu64 ", \"values\": %" PRIu64 ", \"value_low\": %.6f, \"value_high\": %.6f, "
            "\"sentences\": %" PRIu64 ", \"sentence_low\": %.6f, \"sentence_high\": %.6f, \"lost\": %" PRIu64
            ", \"won\": %" PRIu64
            ", \"difference_low\": %.6f, \"difference_high\": %.6f, \"mcnemar_p\": %.6g",
            f->n, f->values, f->value_95.low, f->value_95.high, f->sentences, f->sentence_95.low,
            f->sentence_95.high, f->paired.lost, f->paired.gained, f->difference_95.low,
            f->difference_95.high, f->mcnemar);
}

static void json_format(const rq_needle_report *r, size_t i, FILE *out)
{
    const rq_needle_job *job = r->job;
    const struct rq_needle_column *c = &r->results->columns[i];
    fprintf(out, "    {\"format\": \"%s\"", job->entries->items[i].label);
    if (c->refused[0]) {
        fputs(", \"refused\": ", out);
        kv_json_string(out, c->refused);
        fputc('}', out);
        return;
    }
    fprintf(out, ", \"bits_k\": %.6g, \"bits_v\": %.6g, \"kv_recent\": %u, \"kv_sinks\": %u, ",
            c->info.bits_k, c->info.bits_v, c->info.kv_recent, c->info.kv_sinks);
    rq_needle_figures all = rq_needle_figures_of(job, r->results, i, RQ_NEEDLE_ANY, RQ_NEEDLE_ANY);
    json_figures(&all, out);
    fputs(", \"cells\": [", out);
    for (uint32_t l = 0; l < job->n_lengths; l++)
        for (uint32_t d = 0; d < job->n_depths; d++) {
            rq_needle_figures f = rq_needle_figures_of(job, r->results, i, (int)l, (int)d);
            fprintf(out, "%s\n      {\"length\": %u, \"depth\": %u, \"coded_share\": %.4f, ",
                    l || d ? "," : "", job->lengths[l], job->depths[d],
                    coded_share(&c->info, job->lengths[l]));
            json_figures(&f, out);
            fputc('}', out);
        }
    fputs("]}", out);
}

void rq_needle_print_json(const rq_needle_report *r, FILE *out)
{
    const rq_needle_results *results = r->results;
    const char *slash = strrchr(r->model.path, '/');
    fprintf(out, "{\n  \"program\": \"rqvk-needle\", \"commit\": \"%s\",\n  \"model\": ", RQVK_COMMIT);
    kv_json_string(out, r->model.description);
    fputs(", \"model_file\": ", out);
    kv_json_string(out, slash ? slash + 1 : r->model.path);
    slash = strrchr(r->text_path, '/');
    fputs(", \"text\": ", out);
    kv_json_string(out, slash ? slash + 1 : r->text_path);
    fputs(", \"device\": ", out);
    kv_json_string(out, results->device);
    fprintf(out,
            ",\n  \"seed\": %" PRIu64 ", \"trials\": %" PRIu64 ", \"trials_done\": %" PRIu64
            ", \"seconds\": %.1f,\n  \"rows\": [\n",
            r->job->seed, results->n_trials, results->n_done, results->seconds);
    for (size_t i = 0; i < r->job->entries->n; i++) {
        if (i) fputs(",\n", out);
        json_format(r, i, out);
    }
    fputs("\n  ]\n}\n", out);
}

void rq_needle_print_csv(const rq_needle_report *r, FILE *out)
{
    const rq_needle_job *job = r->job;
    fputs("trial,length,depth", out);
    for (size_t i = 0; i < job->entries->n; i++) fprintf(out, ",%s", job->entries->items[i].label);
    fputc('\n', out);
    for (uint64_t t = 0; t < r->results->n_trials; t++) {
        const uint8_t *outcomes = r->results->outcomes + t * job->entries->n;
        uint64_t cell = t % rq_needle_n_cells(job);
        if (outcomes[0] == RQ_NEEDLE_NOT_RUN) continue;
        fprintf(out, "%" PRIu64 ",%u,%u", t, job->lengths[cell / job->n_depths],
                job->depths[cell % job->n_depths]);
        for (size_t i = 0; i < job->entries->n; i++) {
            if (outcomes[i] == RQ_NEEDLE_NOT_RUN)
                fputc(',', out);
            else
                fprintf(out, ",%d", outcomes[i] - RQ_NEEDLE_WRONG);
        }
        fputc('\n', out);
    }
}

/* ---- drawing ----------------------------------------------------------------------------------------------- */

rq_status rq_needle_print_svg(const rq_needle_report *r, FILE *out, rq_error *err)
{
    enum { MAX_COLUMNS = RQ_NEEDLE_MAX_LENGTHS * RQ_NEEDLE_MAX_DEPTHS, LABEL = 24 };
    const rq_needle_job *job = r->job;
    char labels[MAX_COLUMNS][LABEL], title[256];
    const char *columns[MAX_COLUMNS], *rows[RQ_MAX_ENTRIES];
    size_t n_columns = 0, n_rows = 0;
    double *values = rq_malloc(job->entries->n * rq_needle_n_cells(job) * sizeof *values);
    if (!values) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the drawing");
    for (uint32_t l = 0; l < job->n_lengths; l++)
        for (uint32_t d = 0; d < job->n_depths; d++) {
            snprintf(labels[n_columns], LABEL, "%u @ %u%%", job->lengths[l], job->depths[d]);
            columns[n_columns] = labels[n_columns];
            n_columns++;
        }
    for (size_t i = 0; i < job->entries->n; i++) {
        if (r->results->columns[i].refused[0]) continue;
        rows[n_rows] = job->entries->items[i].label;
        for (size_t c = 0; c < n_columns; c++) {
            rq_needle_figures f =
                rq_needle_figures_of(job, r->results, i, (int)(c / job->n_depths), (int)(c % job->n_depths));
            values[n_rows * n_columns + c] = f.n ? (double)f.values / (double)f.n : NAN;
        }
        n_rows++;
    }
    snprintf(title, sizeof title, "Values recalled: %.100s, %" PRIu64 " trials", r->model.description,
             r->results->n_done);
    const kv_heat heat = {.title = title,
                          .x_name = "tokens of context @ depth of the fact",
                          .y_name = "cache format",
                          .columns = columns,
                          .rows = rows,
                          .n_columns = n_columns,
                          .n_rows = n_rows,
                          .values = values};
    rq_status s = kv_svg_heat(&heat, out, err);
    rq_free(values);
    return s;
}
