/* figures.c - what the scores of a format add up to; see report.h. */
#include "backends/base/mem.h"
#include "engine/kv.h"
#include "tools/ppl/report.h"

#include <math.h>
#include <string.h>

/* Means of a quantity over tokens, and over windows. */
typedef struct spread {
    rq_mean tokens, windows;
} spread;

/* values[i] - minus[i] over the finished windows; minus may be NULL. */
static spread spread_of(const rq_ppl_results *r, const float *values, const float *minus)
{
    spread s = {0};
    for (size_t w = 0; w < r->n_windows; w++) {
        if (!r->done[w]) continue;
        double sum = 0;
        for (size_t i = w * r->n_rows; i < (w + 1) * r->n_rows; i++) {
            double x = values[i] - (minus ? (double)minus[i] : 0);
            rq_mean_add(&s.tokens, x);
            sum += x;
        }
        rq_mean_add(&s.windows, sum / r->n_rows);
    }
    rq_mean_finish(&s.tokens);
    rq_mean_finish(&s.windows);
    return s;
}

static double coded_share(const rq_ppl_job *job, const rq_ppl_column *c)
{
    rq_model_info info;
    rq_model_describe(job->model, &info);
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < info.n_layers; i++) {
        rq_kv_layer layer;
        if (rq_kv_layer_of(job->model, i, &layer, NULL)) continue;
        sum += rq_coded_share(&job->windows, c->info.kv_recent, c->info.kv_sinks, layer.window);
        n++;
    }
    return n ? sum / n : 0;
}

static rq_status distances(const rq_ppl_results *r, const rq_ppl_column *c, rq_ppl_figures *f, rq_error *err)
{
    float *sorted = rq_malloc(r->n_done * r->n_rows * sizeof *sorted);
    if (!sorted) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the figures of %s", c->entry.label);
    size_t n = 0, same = 0;
    for (size_t w = 0; w < r->n_windows; w++) {
        if (!r->done[w]) continue;
        memcpy(sorted + n, c->kl + w * r->n_rows, r->n_rows * sizeof *sorted);
        n += r->n_rows;
        for (size_t i = w * r->n_rows; i < (w + 1) * r->n_rows; i++) same += c->same_top[i];
    }
    spread s = spread_of(r, c->kl, NULL);
    f->kl = s.tokens.mean;
    f->kl_error = s.tokens.error;
    f->kl_error_by_window = s.windows.error;
    f->kl_99 = rq_quantile(sorted, n, 0.99);
    f->kl_most = n ? sorted[n - 1] : NAN;
    f->same_top = n ? (double)same / (double)n : NAN;
    f->same_top_95 = rq_wilson95(same, n);
    rq_free(sorted);
    return RQ_OK;
}

rq_status rq_ppl_figures_of(const rq_ppl_job *job, const rq_ppl_results *results, const rq_ppl_column *column,
                            rq_ppl_figures *out, rq_error *err)
{
    spread s = spread_of(results, column->nll, NULL);
    rq_ppl_figures f = {.n = s.tokens.n, .ppl = exp(s.tokens.mean), .same_top = 1};
    f.ppl_error = f.ppl * s.tokens.error;
    f.ppl_error_by_window = f.ppl * s.windows.error;
    rq_status status = RQ_OK;
    if (column->info.coded) f.coded_share = coded_share(job, column);
    f.kl_refused = column->info.coded && f.coded_share < RQ_LEAST_CODED_SHARE;
    if (column->kl) {
        spread d = spread_of(results, column->nll, results->reference.nll);
        f.ratio = d.tokens.mean;
        f.ratio_error = d.tokens.error;
        f.ratio_error_by_window = d.windows.error;
        status = distances(results, column, &f, err);
    }
    if (!status) *out = f;
    return status;
}
