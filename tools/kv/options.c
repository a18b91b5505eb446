/* options.c - see options.h. */
#include "tools/kv/options.h"

#include "tools/common/output.h"

#include <string.h>

void kv_options_formats(rq_options *options, kv_format_args *args)
{
    rq_options_add(options, (rq_option){.names = "--formats",
                                        .kind = RQ_OPT_STRING,
                                        .target = &args->names,
                                        .value = "LIST",
                                        .shown = "every rotation at 2, 3 and 4 bits, q8_0, q4_0",
                                        .help = "formats to measure"});
    rq_options_add(options, (rq_option){.names = "--opponent",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &args->opponent,
                                        .help = "also the formats of other systems"});
}

rq_status kv_formats_choose(const kv_format_args *args, kv_format_list *list, rq_error *err)
{
    rq_status s = kv_format_list_add(list, args->names, err);
    if (!s && args->opponent) s = kv_format_list_add_foreign(list, err);
    if (!s && list->n == 0) s = rq_fail(err, RQ_ERR_ARGUMENT, "--formats names no format");
    return s;
}

void kv_options_output(rq_options *options, kv_output *out, const char *svg_help)
{
    rq_options_heading(options, "Output");
    rq_options_add(options, (rq_option){.names = "--json",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &out->json,
                                        .help = "JSON instead of a table"});
    rq_options_add(options, (rq_option){.names = "--csv",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &out->csv,
                                        .help = "CSV instead of a table"});
    rq_options_add(options, (rq_option){.names = "-o,--output",
                                        .kind = RQ_OPT_STRING,
                                        .target = &out->path,
                                        .value = "FILE",
                                        .shown = "standard output",
                                        .help = "where it goes"});
    rq_options_add(options, (rq_option){.names = "--columns",
                                        .kind = RQ_OPT_STRING,
                                        .target = &out->columns,
                                        .value = "LIST",
                                        .shown = "all",
                                        .help = "only these columns"});
    rq_options_add(
        options,
        (rq_option){
            .names = "--svg", .kind = RQ_OPT_STRING, .target = &out->svg, .value = "FILE", .help = svg_help});
}

typedef struct page {
    const kv_output *out;
    const kv_table *table;
    const char *tool;
    const kv_note *notes;
    size_t n_notes;
} page;

static rq_status write_table(void *user, FILE *file, rq_error *err)
{
    const page *p = user;
    kv_table_format format = p->out->json ? KV_TABLE_JSON : p->out->csv ? KV_TABLE_CSV : KV_TABLE_MD;
    return kv_table_write(p->table, format, p->tool, p->notes, p->n_notes, file, err);
}

rq_status kv_output_table(const kv_output *out, const kv_table *table, const char *tool, const kv_note *notes,
                          size_t n_notes, rq_error *err)
{
    page p = {out, table, tool, notes, n_notes};
    return rq_output_write(out->path ? out->path : "-", write_table, &p, err);
}

static rq_status write_plot(void *user, FILE *file, rq_error *err)
{
    return kv_svg_plot(user, file, err);
}

rq_status kv_output_draw(const kv_output *out, const char *title, const char *y_name, kv_point *points,
                         size_t n_points, rq_error *err)
{
    static const char *const series[] = {"rqvk", "other systems"};
    for (size_t i = 0; i < n_points; i++) points[i].series = strncmp(points[i].label, "ref-", 4) == 0;
    kv_plot plot = {.title = title,
                    .x_name = "bits per element, scales included",
                    .y_name = y_name,
                    .log_y = true,
                    .series = series,
                    .n_series = 2,
                    .points = points,
                    .n_points = n_points};
    return rq_output_write(out->svg, write_plot, &plot, err);
}
