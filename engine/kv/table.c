/* table.c - tables of measured formats: a text file that people can read and change. */
#include "backends/base/buf.h"
#include "backends/base/file.h"
#include "backends/base/mem.h"
#include "engine/kv.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_LINE = 400 };

void rq_kv_table_free(rq_kv_table *table)
{
    if (table == NULL) return;
    rq_free(table->rows);
    *table = (rq_kv_table){0};
}

/* ---- reading ------------------------------------------------------------------------------------------- */

/* The next word of *at, cut off by a NUL; "" at the end. */
static char *word(char **at)
{
    char *start = *at + strspn(*at, " \t"), *end = start + strcspn(start, " \t");
    *at = end + (*end != 0);
    *end = 0;
    return start;
}

static bool number(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && isfinite(*out);
}

static bool format_word(const char *text, char out[16])
{
    size_t n = strlen(text);
    if (n == 0 || n > 15) return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && text[i] != '_') return false;
    memcpy(out, text, n + 1);
    return true;
}

/* One line. false: it makes no sense. */
static bool take_line(char *line, rq_kv_table *t, size_t *cap, bool *memory)
{
    char *at = line, *end;
    const char *what = word(&at);
    if (*what == 0 || *what == '#') return true;
    if (strcmp(what, "note") == 0) {
        snprintf(t->note, sizeof t->note, "%s", at);
        return true;
    }
    if (strcmp(what, "bound") == 0) return number(word(&at), &t->bound) && t->bound >= 0;
    if (strcmp(what, "model") == 0) {
        const char *hex = word(&at);
        errno = 0;
        t->model = strtoull(hex, &end, 16);
        return strlen(hex) == 16 && *end == 0 && errno == 0;
    }
    rq_kv_table_row row = {0};
    if (strcmp(what, "pair") != 0 || t->n == RQ_KV_MAX_TABLE || !format_word(word(&at), row.type_k) ||
        !format_word(word(&at), row.type_v) || !number(word(&at), &row.bits) ||
        !number(word(&at), &row.error) || *word(&at) != 0 || row.bits <= 0 || row.bits > 64 || row.error < 0)
        return false;
    if (!rq_grow((void **)&t->rows, cap, t->n + 1, sizeof row)) {
        *memory = true;
        return false;
    }
    t->rows[t->n++] = row;
    return true;
}

rq_status rq_kv_table_parse(const char *text, size_t n, const char *label, rq_kv_table *out, rq_error *err)
{
    static const char first[] = "rqvk-kvtable 1";
    rq_kv_table t = {0};
    size_t cap = 0, number_of_line = 0;
    bool memory = false, good = true;
    for (size_t at = 0; at < n && good;) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t bytes = end != NULL ? (size_t)(end - text) - at : n - at;
        char line[MAX_LINE];
        number_of_line++;
        good = bytes < sizeof line && memchr(text + at, 0, bytes) == NULL;
        if (!good) break;
        memcpy(line, text + at, bytes);
        line[bytes] = 0;
        if (bytes > 0 && line[bytes - 1] == '\r') line[bytes - 1] = 0;
        good = number_of_line == 1 ? strcmp(line, first) == 0 : take_line(line, &t, &cap, &memory);
        at += bytes + 1;
    }
    rq_status status = RQ_OK;
    if (memory)
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for the table of cache formats %s", label);
    else if (!good || number_of_line == 0)
        status = rq_fail(err, RQ_ERR_FORMAT, "%s: line %zu does not belong into a table of cache formats",
                         label, number_of_line);
    if (status != RQ_OK)
        rq_kv_table_free(&t);
    else
        *out = t;
    return status;
}

rq_status rq_kv_table_read(const char *path, rq_kv_table *out, rq_error *err)
{
    rq_map map;
    rq_status status = rq_map_open(path, &map, err);
    if (status != RQ_OK) return status;
    rq_kv_table t = {0};
    status = rq_kv_table_parse((const char *)map.data, map.bytes, path, &t, err);
    if (status == RQ_OK && rq_map_lost(&map)) {
        rq_kv_table_free(&t);
        status = rq_fail(err, RQ_ERR_IO, "%s: the file became shorter while it was read", path);
    }
    rq_map_close(&map);
    if (status == RQ_OK) *out = t;
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------------- */

rq_status rq_kv_table_write(const rq_kv_table *t, const char *path, rq_error *err)
{
    rq_buf text = {.max = 1 << 20};
    rq_buf_printf(&text, "rqvk-kvtable 1\nmodel %016" PRIx64 "\nbound %.9g\n", t->model, t->bound);
    int note = (int)strcspn(t->note, "\r\n");
    if (note > 0) rq_buf_printf(&text, "note %.*s\n", note, t->note);
    for (uint32_t i = 0; i < t->n; i++)
        rq_buf_printf(&text, "pair %s %s %.6f %.9g\n", t->rows[i].type_k, t->rows[i].type_v, t->rows[i].bits,
                      t->rows[i].error);
    rq_kv_table back = {0}; /* what cannot be read is not written */
    rq_status status = text.failed ? rq_fail(err, RQ_ERR_MEMORY, "out of memory for the table %s", path)
                                   : rq_kv_table_parse(text.data, text.len, path, &back, err);
    rq_kv_table_free(&back);
    if (status == RQ_OK) status = rq_file_replace(path, text.data, text.len, err);
    rq_buf_free(&text);
    return status;
}

/* ---- choosing ------------------------------------------------------------------------------------------ */

static bool admits(const char *asked, const char *type)
{
    return asked == NULL ? strcmp(type, "f16") == 0
                         : strcasecmp(asked, "auto") == 0 || strcasecmp(asked, type) == 0;
}

const rq_kv_table_row *rq_kv_table_choose(const rq_kv_table *t, const char *type_k, const char *type_v)
{
    const rq_kv_table_row *best = NULL;
    for (uint32_t i = 0; i < t->n; i++) {
        const rq_kv_table_row *r = &t->rows[i];
        if (r->error > t->bound || !admits(type_k, r->type_k) || !admits(type_v, r->type_v)) continue;
        if (best == NULL || r->bits < best->bits || (r->bits == best->bits && r->error < best->error))
            best = r;
    }
    return best;
}
