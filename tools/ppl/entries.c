/* entries.c - see entries.h. */
#include "tools/ppl/entries.h"

#include <stdio.h>
#include <string.h>

static const char *const everything =
    "q8_0,q4_0,none4,planar4,iso4,rotor4,so84,wht4,haar4,none3,planar3,iso3,"
    "rotor3,so83,wht3,haar3,none2,planar2,iso2,rotor2,so82,wht2,haar2";

size_t rq_entries_find(const rq_entries *entries, const char *label)
{
    size_t i = 0;
    while (i < entries->n && strcmp(entries->items[i].label, label) != 0) i++;
    return i;
}

static rq_status append(rq_entries *out, const rq_entry *entry, rq_error *err)
{
    if (rq_entries_find(out, entry->label) < out->n) return RQ_OK;
    if (out->n == RQ_MAX_ENTRIES)
        return rq_fail(err, RQ_ERR_ARGUMENT, "more than %d formats in one run", RQ_MAX_ENTRIES);
    out->items[out->n++] = *entry;
    return RQ_OK;
}

/* A name of letters, digits, '_', '-' and '+'. */
static bool copy_name(char out[RQ_ENTRY_TEXT], const char *name, size_t bytes)
{
    if (bytes == 0 || bytes >= RQ_ENTRY_TEXT) return false;
    for (size_t i = 0; i < bytes; i++) {
        char c = name[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                    c == '-' || c == '+';
        if (!fine) return false;
        out[i] = c;
    }
    out[bytes] = 0;
    return true;
}

static void set_label(rq_entry *e)
{
    bool alike = strcmp(e->k, e->v) == 0;
    snprintf(e->label, sizeof e->label, "%s%s%s%s", e->k, alike ? "" : "/", alike ? "" : e->v,
             e->calibrated ? ":cal" : "");
}

static rq_status parse_one(const char *item, size_t bytes, rq_entries *out, rq_error *err)
{
    rq_entry e = {0};
    size_t names = bytes;
    if (bytes > 4 && memcmp(item + bytes - 4, ":cal", 4) == 0) {
        e.calibrated = true;
        names -= 4;
    }
    const char *slash = memchr(item, '/', names);
    size_t first = slash ? (size_t)(slash - item) : names;
    bool fine = copy_name(e.k, item, first) &&
                (slash ? copy_name(e.v, slash + 1, names - first - 1) : copy_name(e.v, item, first));
    if (!fine)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "\"%.*s\" is not a cache format: write one for keys and values (wht3), two (wht4/wht3), "
            "and :cal behind it to use the model's profile",
            (int)(bytes > 60 ? 60 : bytes), item);
    set_label(&e);
    return append(out, &e, err);
}

static rq_status parse_list(const char *list, rq_entries *out, rq_error *err)
{
    for (const char *p = list;; p++) {
        size_t bytes = strcspn(p, ",");
        bool all = bytes == 3 && memcmp(p, "all", 3) == 0 && list != everything;
        rq_status s = all ? parse_list(everything, out, err) : parse_one(p, bytes, out, err);
        if (s) return s;
        p += bytes;
        if (!*p) return RQ_OK;
    }
}

rq_status rq_entries_parse(const char *list, rq_entries *out, rq_error *err)
{
    rq_entries more = *out;
    rq_status s = parse_list(list, &more, err);
    if (!s) *out = more;
    return s;
}

bool rq_entry_is_foreign(const char *name)
{
    return strncmp(name, "ref-", 4) == 0;
}
