/* entries.h - the list of cache formats that one run measures. */
#ifndef RQ_ENTRIES_H
#define RQ_ENTRIES_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { RQ_MAX_ENTRIES = 64, RQ_ENTRY_TEXT = 24 };

/* One format of keys and one of values. */
typedef struct rq_entry {
    char k[RQ_ENTRY_TEXT], v[RQ_ENTRY_TEXT];
    bool calibrated; /* with the model's profile; else with none */
    char label[2 * RQ_ENTRY_TEXT + 8];
} rq_entry;

typedef struct rq_entries {
    rq_entry items[RQ_MAX_ENTRIES];
    size_t n;
} rq_entries;

/* Appends the entries of a list such as "q8_0,wht3,wht4/wht3,wht3:cal,all": K and V alike, K/V, ":cal" for the
 * model's profile, "all" for every rotation with 4, 3 and 2 bits beside q8_0 and q4_0. Spelling is checked, names
 * are not: the engine knows which formats it has. An entry that is there already is left out. On error `out` is
 * untouched. */
rq_status rq_entries_parse(const char *list, rq_entries *out, rq_error *err);

/* Names that begin with "ref-" are codecs of other systems (tools/kv/foreign.h), run through the engine's hook. */
bool rq_entry_is_foreign(const char *name);

/* Where an entry with this label stands; n when it does not. */
size_t rq_entries_find(const rq_entries *entries, const char *label);

#endif
