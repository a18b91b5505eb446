#include "tools/kv/table.h"

#include "backends/base/mem.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

void kv_table_start(kv_table *t, const kv_column *columns, size_t n_columns)
{
    *t = (kv_table){.columns = columns, .n_columns = n_columns};
}

void kv_table_free(kv_table *t)
{
    for (size_t i = 0; i < t->n_cells; i++) rq_free(t->cells[i].text);
    rq_free(t->cells);
    t->cells = NULL;
    t->n_cells = t->cap = 0;
}

static void append(kv_table *t, kv_cell cell)
{
    if (t->failed || !rq_grow((void **)&t->cells, &t->cap, t->n_cells + 1, sizeof *t->cells)) {
        t->failed = true;
        rq_free(cell.text);
        return;
    }
    t->cells[t->n_cells++] = cell;
}

void kv_table_text(kv_table *t, const char *text)
{
    char *copy = rq_strdup(text);
    if (copy)
        append(t, (kv_cell){.text = copy});
    else
        t->failed = true;
}

void kv_table_number(kv_table *t, double number)
{
    append(t, (kv_cell){.number = number});
}

rq_status kv_table_show(kv_table *t, const char *names, rq_error *err)
{
    if (!*names) return rq_fail(err, RQ_ERR_ARGUMENT, "a table without columns says nothing: name one");
    for (size_t i = 0; i < t->n_columns; i++) t->hidden[i] = true;
    for (const char *p = names; *p;) {
        size_t bytes = strcspn(p, ","), i = 0;
        while (i < t->n_columns &&
               (strlen(t->columns[i].name) != bytes || memcmp(t->columns[i].name, p, bytes) != 0))
            i++;
        if (i == t->n_columns)
            return rq_fail(err, RQ_ERR_ARGUMENT, "the table has no column %.*s",
                           (int)(bytes < 40 ? bytes : 40), p);
        t->hidden[i] = false;
        p += bytes + (p[bytes] == ',');
    }
    return RQ_OK;
}

/* Length of the UTF-8 character at p, 0 when it is none. */
static size_t utf8_length(const unsigned char *p)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : 0;
    if ((p[0] & 0xf8) == 0xf0 && p[0] < 0xf5) n = 4;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (n == 3 && ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0))) return 0;
    if (n == 4 && ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))) return 0;
    return n;
}

void kv_json_string(FILE *out, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    fputc('"', out);
    while (*p) {
        size_t n = utf8_length(p);
        if (n == 0) {
            fputs("\\ufffd", out);
            p++;
        } else if (*p == '"' || *p == '\\' || *p < 0x20) {
            fprintf(out, "\\u%04x", *p++);
        } else {
            fwrite(p, 1, n, out);
            p += n;
        }
    }
    fputc('"', out);
}

static void csv_text(FILE *out, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (const char *p = text; *p; p++) {
        if (*p == '"') fputc('"', out);
        fputc(*p, out);
    }
    fputc('"', out);
}

static void write_csv(const kv_table *t, FILE *out)
{
    const char *comma = "";
    for (size_t i = 0; i < t->n_columns; i++) {
        if (t->hidden[i]) continue;
        fputs(comma, out);
        csv_text(out, t->columns[i].name);
        comma = ",";
    }
    for (size_t i = 0; i < t->n_cells; i++) {
        if (i % t->n_columns == 0) comma = "\n";
        if (t->hidden[i % t->n_columns]) continue;
        fputs(comma, out);
        comma = ",";
        if (t->cells[i].text)
            csv_text(out, t->cells[i].text);
        else if (isfinite(t->cells[i].number))
            fprintf(out, "%.9g", t->cells[i].number);
    }
    fputc('\n', out);
}

static void json_cell(const kv_cell *cell, FILE *out)
{
    if (cell->text)
        kv_json_string(out, cell->text);
    else if (isfinite(cell->number))
        fprintf(out, "%.9g", cell->number);
    else
        fputs("null", out);
}

static void write_json(const kv_table *t, const char *tool, const kv_note *notes, size_t n_notes, FILE *out)
{
    fputs("{\"tool\": ", out);
    kv_json_string(out, tool);
    fputs(", \"version\": ", out);
    kv_json_string(out, RQVK_VERSION);
    for (size_t i = 0; i < n_notes; i++) {
        fputs(",\n ", out);
        kv_json_string(out, notes[i].name);
        fputs(": ", out);
        kv_json_string(out, notes[i].value);
    }
    fputs(",\n \"rows\": [", out);
    const char *before = "";
    for (size_t i = 0; i < t->n_cells; i++) {
        size_t column = i % t->n_columns;
        if (column == 0) before = i ? "},\n  {" : "\n  {";
        if (t->hidden[column]) continue;
        fputs(before, out);
        kv_json_string(out, t->columns[column].name);
        fputs(": ", out);
        json_cell(&t->cells[i], out);
        before = ", ";
    }
    fputs(t->n_cells ? "}]}\n" : "]}\n", out);
}

/* A cell as Markdown shows it; a bar inside a cell would end it. */
static int format_md(const kv_table *t, size_t i, char *text, size_t bytes)
{
    const kv_cell *cell = &t->cells[i];
    if (!cell->text && !isfinite(cell->number)) {
        text[0] = 0;
        return 0;
    }
    int n = cell->text
                ? snprintf(text, bytes, "%s", cell->text)
                : snprintf(text, bytes, "%.*f", (int)t->columns[i % t->n_columns].decimals, cell->number);
    for (char *p = text; *p; p++)
        if (*p == '|' || *p == '\n') *p = '/';
    return n < (int)bytes ? n : (int)bytes - 1;
}

static int width_md(const kv_table *t, size_t column)
{
    int width = (int)strlen(t->columns[column].name);
    char text[128];
    for (size_t i = column; i < t->n_cells; i += t->n_columns) {
        int n = format_md(t, i, text, sizeof text);
        if (n > width) width = n;
    }
    return width;
}

static void write_md(const kv_table *t, FILE *out)
{
    char text[128];
    int width[KV_MAX_COLUMNS];
    for (size_t i = 0; i < t->n_columns; i++) {
        width[i] = width_md(t, i);
        if (!t->hidden[i]) fprintf(out, "| %-*s ", width[i], t->columns[i].name);
    }
    fputs("|\n", out);
    for (size_t i = 0; i < t->n_columns; i++) {
        bool is_text = t->n_cells > i && t->cells[i].text;
        if (t->hidden[i]) continue;
        fputc('|', out);
        for (int w = width[i] + (is_text ? 2 : 1); w > 0; w--) fputc('-', out);
        if (!is_text) fputc(':', out);
    }
    fputs("|\n", out);
    for (size_t i = 0; i < t->n_cells; i++) {
        size_t column = i % t->n_columns;
        format_md(t, i, text, sizeof text);
        if (!t->hidden[column]) fprintf(out, t->cells[i].text ? "| %-*s " : "| %*s ", width[column], text);
        if (column == t->n_columns - 1) fputs("|\n", out);
    }
}

rq_status kv_table_write(const kv_table *t, kv_table_format format, const char *tool, const kv_note *notes,
                         size_t n_notes, FILE *out, rq_error *err)
{
    if (t->failed) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the table of results");
    if (t->n_columns == 0 || t->n_cells % t->n_columns)
        return rq_fail(err, RQ_ERR_INTERNAL, "the table of results has an incomplete row");
    if (format == KV_TABLE_MD) write_md(t, out);
    if (format == KV_TABLE_CSV) write_csv(t, out);
    if (format == KV_TABLE_JSON) write_json(t, tool, notes, n_notes, out);
    return ferror(out) ? rq_fail(err, RQ_ERR_IO, "cannot write the table of results") : RQ_OK;
}
