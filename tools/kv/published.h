/* published.h - figures that were measured of other systems' formats before, by programs of another author. */
#ifndef RQ_KV_PUBLISHED_H
#define RQ_KV_PUBLISHED_H

#include "tools/kv/experiment.h"

#include <stdbool.h>

/* The synthetic sets of those figures. */
enum { KV_PUBLISHED_SETS = 4 };
extern const kv_set_kind kv_published_sets[KV_PUBLISHED_SETS];

/* The i-th foreign format with figures; NULL past the last one. */
const char *kv_published_name(size_t i);
bool kv_published_has(const char *format);

/* Are the bits and the errors measured on kv_published_sets[set] the published ones? Fails, with the figure in
 * question, when one is more than 2 % and half a unit of its last digit away. */
rq_status kv_published_agrees(const kv_result *got, size_t set, rq_error *err);

/* Measures the format again on all of the sets, and compares. */
rq_status kv_published_check(const char *format, rq_error *err);

#endif
