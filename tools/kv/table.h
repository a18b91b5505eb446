/* table.h - tables of results: Markdown for people, CSV for spreadsheets, JSON for programs.
 *
 *     kv_table t;
 *     kv_table_start(&t, (const kv_column[]){{"format", 0}, {"bits", 3}, {"kl", 5}}, 3);
 *     kv_table_text(&t, "wht3"); kv_table_number(&t, 3.125); kv_table_number(&t, 0.05);
 *     ... more cells, row by row ...
 *     rq_status s = kv_table_write(&t, KV_TABLE_JSON, "rqvk-kv synth", notes, n_notes, stdout, &err);
 *     kv_table_free(&t);
 *
 * Cells are given in order; running out of memory is remembered and reported by kv_table_write. */
#ifndef RQ_KV_TABLE_H
#define RQ_KV_TABLE_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct kv_column {
    const char *name;  /* the key in JSON, the heading elsewhere: letters, digits, underscores */
    unsigned decimals; /* of numbers in Markdown; CSV and JSON have nine significant digits */
} kv_column;

typedef enum kv_table_format { KV_TABLE_MD, KV_TABLE_CSV, KV_TABLE_JSON } kv_table_format;

typedef struct kv_cell {
    char *text; /* NULL: a number */
    double number;
} kv_cell;

enum { KV_MAX_COLUMNS = 32 };

typedef struct kv_table {
    const kv_column *columns; /* borrowed; at most KV_MAX_COLUMNS */
    size_t n_columns, n_cells, cap;
    kv_cell *cells;
    bool failed, hidden[KV_MAX_COLUMNS];
} kv_table;

/* What produced a table, beside its rows: {"model", "x.gguf"}. */
typedef struct kv_note {
    const char *name, *value;
} kv_note;

void kv_table_start(kv_table *t, const kv_column *columns, size_t n_columns);
void kv_table_free(kv_table *t);
void kv_table_text(kv_table *t, const char *text);
/* Not a number or infinite: an empty cell, null in JSON. */
void kv_table_number(kv_table *t, double number);

/* Only the columns in a comma-separated list are written from now on, in the table's order. RQ_ERR_ARGUMENT for a name
 * that is none, and for an empty list. */
rq_status kv_table_show(kv_table *t, const char *names, rq_error *err);

/* Writes what is there; an incomplete last row is an internal error. JSON: {"tool", "version", the notes, "rows":
 * [{column: value}]}. Markdown and CSV leave the notes out. */
rq_status kv_table_write(const kv_table *t, kv_table_format format, const char *tool, const kv_note *notes,
                         size_t n_notes, FILE *out, rq_error *err);

/* A quoted JSON string, valid for any bytes: what is not UTF-8 becomes U+FFFD. */
void kv_json_string(FILE *out, const char *text);

#endif
