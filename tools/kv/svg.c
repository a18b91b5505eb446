#include "tools/kv/svg.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { WIDTH = 760, HEIGHT = 480, LEFT = 80, RIGHT = 30, TOP = 46, BOTTOM = 56, N_COLOURS = 6 };

static const char *const colours[N_COLOURS] = {"#0072b2", "#d55e00", "#009e73",
                                               "#cc79a7", "#e69f00", "#56b4e9"};

static void xml_text(FILE *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '<')
            fputs("&lt;", out);
        else if (*p == '>')
            fputs("&gt;", out);
        else if (*p == '&')
            fputs("&amp;", out);
        else if (*p >= 0x20)
            fputc(*p, out);
    }
}

static void label(FILE *out, double x, double y, const char *anchor, const char *extra, const char *text)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>", x, y, anchor, extra);
    xml_text(out, text);
    fputs("</text>\n", out);
}

static void head(FILE *out, int width, int height, const char *title)
{
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
            "fill=\"#fff\"/>\n",
            width, height, width, height);
    label(out, width / 2.0, 24, "middle", "font-size=\"15\"", title);
}

/* A linear scale from [low, high] to pixels. */
typedef struct axis {
    double low, high, from, to;
    bool log;
} axis;

static double place(const axis *a, double value)
{
    double v = a->log ? log10(value) : value;
    return a->from + (v - a->low) / (a->high - a->low) * (a->to - a->from);
}

/* Step of about n marks over a span: 1, 2 or 5 times a power of ten. */
static double step_of(double span, int n)
{
    double raw = span / n, power = pow(10, floor(log10(raw))), unit = raw / power;
    return power * (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10);
}

static void mark(FILE *out, const axis *a, bool vertical, double value)
{
    char text[32];
    double at = place(a, value);
    (void)snprintf(text, sizeof text, "%.4g", value);
    if (vertical) {
        fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT,
                WIDTH - RIGHT, at, at);
        label(out, LEFT - 8, at + 4, "end", "", text);
    } else {
        fprintf(out, "<line y1=\"%d\" y2=\"%d\" x1=\"%.1f\" x2=\"%.1f\" stroke=\"#ddd\"/>\n", TOP,
                HEIGHT - BOTTOM, at, at);
        label(out, at, HEIGHT - BOTTOM + 18, "middle", "", text);
    }
}

static void marks(FILE *out, const axis *a, bool vertical)
{
    if (a->log) {
        for (int power = (int)floor(a->low); power <= (int)ceil(a->high); power++)
            for (int unit = 1; unit < 10; unit += unit == 1 ? 1 : 3) { /* 1, 2, 5 */
                double value = unit * pow(10, power);
                if (log10(value) >= a->low && log10(value) <= a->high) mark(out, a, vertical, value);
            }
        return;
    }
    double step = step_of(a->high - a->low, 7);
    int64_t first = (int64_t)ceil(a->low / step), last = (int64_t)floor(a->high / step);
    for (int64_t i = first; i <= last && i < first + 50; i++) mark(out, a, vertical, (double)i * step);
}

static bool drawn(const kv_plot *plot, const kv_point *p)
{
    return isfinite(p->x) && isfinite(p->y) && (!plot->log_y || p->y > 0);
}

/* Ranges of all points with some room around them; false when there is nothing to draw. */
static bool fit(const kv_plot *plot, axis *x, axis *y)
{
    *x = (axis){.low = INFINITY, .high = -INFINITY, .from = LEFT, .to = WIDTH - RIGHT};
    *y = (axis){.low = INFINITY, .high = -INFINITY, .from = HEIGHT - BOTTOM, .to = TOP, .log = plot->log_y};
    for (size_t i = 0; i < plot->n_points; i++) {
        const kv_point *p = &plot->points[i];
        if (!drawn(plot, p)) continue;
        double v = plot->log_y ? log10(p->y) : p->y;
        x->low = fmin(x->low, p->x);
        x->high = fmax(x->high, p->x);
        y->low = fmin(y->low, v);
        y->high = fmax(y->high, v);
    }
    if (!(x->low <= x->high)) return false;
    double room_x = fmax(0.08 * (x->high - x->low), 1e-3), room_y = fmax(0.08 * (y->high - y->low), 1e-3);
    x->low -= room_x;
    x->high += room_x;
    y->low -= room_y;
    y->high += room_y;
    return true;
}

rq_status kv_svg_plot(const kv_plot *plot, FILE *out, rq_error *err)
{
    axis x, y;
    if (!fit(plot, &x, &y)) return rq_fail(err, RQ_ERR_ARGUMENT, "there is nothing to draw");
    head(out, WIDTH, HEIGHT, plot->title);
    marks(out, &x, false);
    marks(out, &y, true);
    label(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, "middle", "", plot->x_name);
    char turned[64];
    (void)snprintf(turned, sizeof turned, "transform=\"rotate(-90 18 %d)\"", (TOP + HEIGHT - BOTTOM) / 2);
    label(out, 18, (TOP + HEIGHT - BOTTOM) / 2.0, "middle", turned, plot->y_name);
    for (size_t i = 0; i < plot->n_points; i++) {
        const kv_point *p = &plot->points[i];
        if (!drawn(plot, p)) continue;
        double px = place(&x, p->x), py = place(&y, p->y);
        const char *colour = colours[p->series % N_COLOURS];
        if (p->error > 0 && p->y - p->error > 0)
            fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", px, px,
                    place(&y, p->y - p->error), place(&y, p->y + p->error), colour);
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" fill=\"%s\"/>\n", px, py, colour);
        label(out, px + 7, py + 4, "start", "font-size=\"10\"", p->label);
    }
    for (size_t i = 0; i < plot->n_series; i++) {
        double at = TOP + 16 + 18.0 * (double)i;
        fprintf(out, "<circle cx=\"%d\" cy=\"%.1f\" r=\"4.5\" fill=\"%s\"/>\n", WIDTH - RIGHT - 150, at - 4,
                colours[i % N_COLOURS]);
        label(out, WIDTH - RIGHT - 140, at, "start", "", plot->series[i]);
    }
    fputs("</svg>\n", out);
    return ferror(out) ? rq_fail(err, RQ_ERR_IO, "cannot write the drawing") : RQ_OK;
}

rq_status kv_svg_heat(const kv_heat *heat, FILE *out, rq_error *err)
{
    enum { CELL_WIDTH = 78, CELL_HEIGHT = 30, SIDE = 130, ABOVE = 64, BELOW = 40 };
    if (heat->n_columns == 0 || heat->n_rows == 0 || heat->n_columns > 1000 || heat->n_rows > 1000)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a heat map has 1 to 1000 rows and columns");
    int width = SIDE + CELL_WIDTH * (int)heat->n_columns + 20,
        height = ABOVE + CELL_HEIGHT * (int)heat->n_rows + BELOW;
    head(out, width, height, heat->title);
    label(out, SIDE + CELL_WIDTH * (double)heat->n_columns / 2, height - 12, "middle", "", heat->x_name);
    label(out, SIDE - 10, ABOVE - 8, "end", "", heat->y_name);
    for (size_t c = 0; c < heat->n_columns; c++)
        label(out, SIDE + CELL_WIDTH * ((double)c + 0.5), ABOVE - 8, "middle", "", heat->columns[c]);
    for (size_t r = 0; r < heat->n_rows; r++) {
        double top = ABOVE + CELL_HEIGHT * (double)r;
        label(out, SIDE - 10, top + 20, "end", "", heat->rows[r]);
        for (size_t c = 0; c < heat->n_columns; c++) {
            double value = heat->values[r * heat->n_columns + c], left = SIDE + CELL_WIDTH * (double)c;
            if (!isfinite(value)) continue;
            double hue = 120 * fmin(fmax(value, 0), 1);
            char text[32];
            (void)snprintf(text, sizeof text, "%.3f", value);
            fprintf(out,
                    "<rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" fill=\"hsl(%.0f,60%%,72%%)\"/>\n",
                    left, top, CELL_WIDTH - 2, CELL_HEIGHT - 2, hue);
            label(out, left + CELL_WIDTH / 2.0 - 1, top + 19, "middle", "", text);
        }
    }
    fputs("</svg>\n", out);
    return ferror(out) ? rq_fail(err, RQ_ERR_IO, "cannot write the drawing") : RQ_OK;
}
