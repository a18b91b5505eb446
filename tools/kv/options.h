/* options.h - what the subcommands that measure formats share: which formats, and where the results go. */
#ifndef RQ_KV_OPTIONS_H
#define RQ_KV_OPTIONS_H

#include "tools/common/args.h"
#include "tools/kv/format.h"
#include "tools/kv/metrics.h"
#include "tools/kv/svg.h"
#include "tools/kv/table.h"

typedef struct kv_format_args {
    const char *names; /* set to the default before */
    bool opponent;
} kv_format_args;

/* --formats --opponent */
void kv_options_formats(rq_options *options, kv_format_args *args);
/* Adds what was asked for to the list; RQ_ERR_ARGUMENT when it is empty then. */
rq_status kv_formats_choose(const kv_format_args *args, kv_format_list *list, rq_error *err);

typedef struct kv_output {
    const char *path, *columns, *svg; /* NULL: standard output, all columns, no drawing */
    bool json, csv;
} kv_output;

/* The heading, --json --csv -o --columns --svg. */
void kv_options_output(rq_options *options, kv_output *out, const char *svg_help);

/* The table where and as it was asked for; the other arguments as for kv_table_write. */
rq_status kv_output_table(const kv_output *out, const kv_table *table, const char *tool, const kv_note *notes,
                          size_t n_notes, rq_error *err);

/* Draws y against bits per element, if a drawing was asked for. Series and axes are set here: points need x, y and
 * the format's name as their label. */
rq_status kv_output_draw(const kv_output *out, const char *title, const char *y_name, kv_point *points,
                         size_t n_points, rq_error *err);

#endif
