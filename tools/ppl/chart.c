/* chart.c - the drawing of rqvk-ppl: mean KL from f16 against bits per element. */
#include "tools/kv/svg.h"
#include "tools/ppl/report.h"

#include <math.h>
#include <stdio.h>

/* Kinds of formats, a colour each. */
enum { KIND_PLAIN, KIND_FOREIGN, KIND_OURS, KIND_CALIBRATED, N_KINDS };

static unsigned kind_of(const rq_entry *e)
{
    if (rq_entry_is_foreign(e->k) || rq_entry_is_foreign(e->v)) return KIND_FOREIGN;
    if (e->calibrated) return KIND_CALIBRATED;
    return e->k[0] == 'q' || e->k[0] == 'f' || e->k[0] == 'b' ? KIND_PLAIN : KIND_OURS;
}

rq_status rq_ppl_print_svg(const rq_ppl_report *r, FILE *out, rq_error *err)
{
    static const char *const kinds[N_KINDS] = {"without rotation", "other systems", "rotation and code",
                                               "with profile"};
    char title[256];
    snprintf(title, sizeof title, "%.120s, %zu windows of %u tokens", r->model.description,
             r->results->n_done, r->job->windows.n_ctx);
    kv_point points[RQ_MAX_ENTRIES];
    size_t n = 0;
    for (size_t i = 0; i < r->results->n_columns && n < RQ_MAX_ENTRIES; i++) {
        const rq_ppl_column *c = &r->results->columns[i];
        const rq_ppl_figures *f = &r->columns[i];
        if (c->refused[0] || f->n == 0 || f->kl_refused) continue;
        points[n++] = (kv_point){.x = (c->info.bits_k + c->info.bits_v) / 2,
                                 .y = f->kl,
                                 .error = f->kl_error,
                                 .label = c->entry.label,
                                 .series = kind_of(&c->entry)};
    }
    const kv_plot plot = {.title = title,
                          .x_name = "bits per cached element, scales included",
                          .y_name = "mean KL from an f16 cache",
                          .log_y = true,
                          .series = kinds,
                          .n_series = N_KINDS,
                          .points = points,
                          .n_points = n};
    return kv_svg_plot(&plot, out, err);
}
