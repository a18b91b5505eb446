/* svg.h - two drawings for reports: points of quality against bits, and a heat map. Both are plain SVG 1.1 that
 * reads on light and on dark pages. */
#ifndef RQ_KV_SVG_H
#define RQ_KV_SVG_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct kv_point {
    double x, y, error; /* error: half the height of the bar, 0: none */
    const char *label;
    unsigned series; /* colour, 0 .. 5 */
} kv_point;

typedef struct kv_plot {
    const char *title, *x_name, *y_name;
    bool log_y;                /* points with y <= 0 are left out then */
    const char *const *series; /* names for the legend, n_series of them */
    size_t n_series;
    const kv_point *points;
    size_t n_points;
} kv_plot;

/* RQ_ERR_ARGUMENT when no point can be drawn. */
rq_status kv_svg_plot(const kv_plot *plot, FILE *out, rq_error *err);

typedef struct kv_heat {
    const char *title, *x_name, *y_name;
    const char *const *columns, *const *rows; /* their labels */
    size_t n_columns, n_rows;
    const double *values; /* [n_rows][n_columns], 0 .. 1 is red .. green; not a number: no cell */
} kv_heat;
rq_status kv_svg_heat(const kv_heat *heat, FILE *out, rq_error *err);

#endif
