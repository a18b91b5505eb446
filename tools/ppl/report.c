/* report.c - table, CSV and JSON of rqvk-ppl; see report.h. */
#include "tools/ppl/report.h"

#include "tools/kv/table.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static double bits_of(const rq_ppl_column *c)
{
    return (c->info.bits_k + c->info.bits_v) / 2;
}

/* ---- table ------------------------------------------------------------------------------------------------- */

static void print_row(const rq_ppl_column *c, const rq_ppl_figures *f, FILE *out)
{
    char ppl[48], kl[40] = "-", kl_99[24] = "-", kl_most[24] = "-", top[24] = "-", ratio[40] = "-",
                  share[16] = "-";
    snprintf(ppl, sizeof ppl, "%.4f ± %.4f", f->ppl, f->ppl_error);
    if (c->info.coded) snprintf(share, sizeof share, "%.1f %%", 100 * f->coded_share);
    if (c->kl && !f->kl_refused) {
        snprintf(ratio, sizeof ratio, "%+.5f ± %.5f", f->ratio, f->ratio_error);
        snprintf(kl, sizeof kl, "%.6f ± %.6f", f->kl, f->kl_error);
        snprintf(kl_99, sizeof kl_99, "%.5f", f->kl_99);
        snprintf(kl_most, sizeof kl_most, "%.4f", f->kl_most);
        snprintf(top, sizeof top, "%.2f %%", 100 * f->same_top);
    }
    /* "±" is two bytes wide but one column. */
    fprintf(out, "| %-20s | %6.4f | %7s | %22s | %*s | %*s | %9s | %9s | %9s |\n", c->entry.label, bits_of(c),
            share, ppl, strlen(ratio) > 1 ? 22 : 21, ratio, strlen(kl) > 1 ? 22 : 21, kl, kl_99, kl_most,
            top);
}

static void print_refusals(const rq_ppl_report *r, FILE *out)
{
    const rq_ppl_results *results = r->results;
    bool advised = false;
    for (size_t i = 0; i < results->n_columns; i++) {
        const rq_ppl_column *c = &results->columns[i];
        if (c->refused[0]) fprintf(out, "\n%s: not measured: %s\n", c->entry.label, c->refused);
        if (c->refused[0] || !r->columns[i].kl_refused || advised) continue;
        advised = true;
        uint32_t n_ctx, recent;
        rq_coded_share_advice(&r->job->windows, r->all, c->info.kv_recent, c->info.kv_sinks, &n_ctx, &recent);
        fprintf(out,
                "\nNo comparison with f16: only %.1f %% of the keys read were coded, and %.0f %% are needed",
                100 * r->columns[i].coded_share, 100 * RQ_LEAST_CODED_SHARE);
        bool trained = n_ctx && n_ctx <= r->model.n_ctx_train;
        if (trained && recent)
            fprintf(out, ": take --ctx-size %u, or --kv-recent %u", n_ctx, recent);
        else if (recent)
            fprintf(out, ": take --kv-recent %u", recent);
        else if (n_ctx)
            fprintf(out, ": take --ctx-size %u%s", n_ctx,
                    trained ? "" : ", although the model was trained for less");
        fputs(".\n", out);
    }
}

void rq_ppl_print_table(const rq_ppl_report *r, FILE *out)
{
    const rq_ppl_results *results = r->results;
    const rq_windows *w = &r->job->windows;
    fprintf(out, "%s, %s: %zu%s windows of %u tokens, %" PRIu64 " tokens scored (positions %u to %u)\n\n",
            r->model.description, r->text_path, results->n_done, r->interrupted ? " (interrupted)" : "",
            w->n_ctx, r->reference.n, w->first + 1, w->n_ctx - 1);
    if (results->n_done == 0) return;
    fputs("| K/V                  |   bits | coded   |             perplexity |     ln(ppl / ppl f16) |  "
          "         KL from f16 |   KL 99 % |    KL max |  same top |\n"
          "| -------------------- | -----: | ------: | ---------------------: | --------------------: |  "
          "-------------------: | --------: | --------: | --------: |\n",
          out);
    print_row(&results->reference, &r->reference, out);
    for (size_t i = 0; i < results->n_columns; i++)
        if (!results->columns[i].refused[0]) print_row(&results->columns[i], &r->columns[i], out);
    print_refusals(r, out);
    fprintf(out,
            "\nbits: per cached element, scales included, mean of K and V. ±: one standard error over tokens "
            "taken as independent. coded: share of the keys read that were read from coded pages.\n");
}

/* ---- CSV and JSON -------------------------------------------------------------------------------------------- */

typedef struct field {
    const char *name;
    double value;
    bool known;
} field;

enum { MAX_FIELDS = 24 };

static size_t fields_of(const rq_ppl_column *c, const rq_ppl_figures *f, field out[MAX_FIELDS])
{
    bool measured = !c->refused[0] && f->n, compared = measured && c->kl && !f->kl_refused;
    const field list[] = {
        {"bits_k", c->info.bits_k, measured},
        {"bits_v", c->info.bits_v, measured},
        {"bits", bits_of(c), measured},
        {"bytes_per_token", (double)c->info.bytes_per_token, measured},
        {"kv_recent", c->info.kv_recent, measured},
        {"kv_sinks", c->info.kv_sinks, measured},
        {"coded_share", f->coded_share, measured},
        {"tokens", (double)f->n, measured},
        {"ppl", f->ppl, measured},
        {"ppl_error", f->ppl_error, measured},
        {"ppl_error_by_window", f->ppl_error_by_window, measured},
        {"ln_ratio", f->ratio, compared},
        {"ln_ratio_error", f->ratio_error, compared},
        {"ln_ratio_error_by_window", f->ratio_error_by_window, compared},
        {"kl", f->kl, compared},
        {"kl_error", f->kl_error, compared},
        {"kl_error_by_window", f->kl_error_by_window, compared},
        {"kl_99", f->kl_99, compared},
        {"kl_max", f->kl_most, compared},
        {"same_top", f->same_top, compared},
        {"same_top_low", f->same_top_95.low, compared},
        {"same_top_high", f->same_top_95.high, compared},
    };
    memcpy(out, list, sizeof list);
    return sizeof list / sizeof *list;
}

static void csv_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void csv_row(const rq_ppl_column *c, const rq_ppl_figures *f, FILE *out)
{
    field fields[MAX_FIELDS];
    size_t n = fields_of(c, f, fields);
    fprintf(out, "%s,%s,%s,%d,%d", c->entry.label, c->entry.k, c->entry.v, c->entry.calibrated,
            rq_entry_is_foreign(c->entry.k) || rq_entry_is_foreign(c->entry.v));
    for (size_t i = 0; i < n; i++) {
        fputc(',', out);
        if (fields[i].known && isfinite(fields[i].value)) fprintf(out, "%.10g", fields[i].value);
    }
    fputc(',', out);
    csv_text(out, c->refused);
    fputc('\n', out);
}

void rq_ppl_print_csv(const rq_ppl_report *r, FILE *out)
{
    field fields[MAX_FIELDS];
    size_t n = fields_of(&r->results->reference, &r->reference, fields);
    fputs("format,type_k,type_v,calibrated,foreign", out);
    for (size_t i = 0; i < n; i++) fprintf(out, ",%s", fields[i].name);
    fputs(",refused\n", out);
    csv_row(&r->results->reference, &r->reference, out);
    for (size_t i = 0; i < r->results->n_columns; i++) csv_row(&r->results->columns[i], &r->columns[i], out);
}

static void json_row(const rq_ppl_column *c, const rq_ppl_figures *f, FILE *out)
{
    field fields[MAX_FIELDS];
    size_t n = fields_of(c, f, fields);
    fprintf(out,
            "    {\"format\": \"%s\", \"type_k\": \"%s\", \"type_v\": \"%s\", \"calibrated\": %s, "
            "\"foreign\": %s",
            c->entry.label, c->entry.k, c->entry.v, c->entry.calibrated ? "true" : "false",
            rq_entry_is_foreign(c->entry.k) || rq_entry_is_foreign(c->entry.v) ? "true" : "false");
    for (size_t i = 0; i < n; i++) {
        if (fields[i].known && isfinite(fields[i].value))
            fprintf(out, ", \"%s\": %.10g", fields[i].name, fields[i].value);
        else
            fprintf(out, ", \"%s\": null", fields[i].name);
    }
    if (c->refused[0]) {
        fputs(", \"refused\": ", out);
        kv_json_string(out, c->refused);
    }
    fputc('}', out);
}

void rq_ppl_print_json(const rq_ppl_report *r, FILE *out)
{
    const rq_windows *w = &r->job->windows;
    fprintf(out, "{\n  \"program\": \"rqvk-ppl\", \"commit\": \"%s\",\n  \"model\": ", RQVK_COMMIT);
    kv_json_string(out, r->model.description);
    fputs(", \"model_file\": ", out);
    const char *slash = strrchr(r->model.path, '/');
    kv_json_string(out, slash ? slash + 1 : r->model.path);
    fputs(",\n  \"text\": ", out);
    slash = strrchr(r->text_path, '/');
    kv_json_string(out, slash ? slash + 1 : r->text_path);
    fputs(", \"device\": ", out);
    kv_json_string(out, r->results->device);
    fprintf(
        out,
        ",\n  \"n_ctx\": %u, \"stride\": %u, \"first_scored\": %u, \"windows\": %zu, \"windows_done\": %zu, "
        "\"interrupted\": %s, \"seconds\": %.1f,\n  \"rows\": [\n",
        w->n_ctx, w->stride, w->first + 1, r->results->n_windows, r->results->n_done,
        r->interrupted ? "true" : "false", r->results->seconds);
    json_row(&r->results->reference, &r->reference, out);
    for (size_t i = 0; i < r->results->n_columns; i++) {
        fputs(",\n", out);
        json_row(&r->results->columns[i], &r->columns[i], out);
    }
    fputs("\n  ]\n}\n", out);
}
