/* published.h - figures that were measured of other systems' formats before, by programs of another author. */
#ifndef RQ_PUBLISHED_H
#define RQ_PUBLISHED_H

#include "backends/base/status.h"

#include <stdbool.h>

/* Are there figures of this foreign format? */
bool rq_published_has(const char *format);

/* Measures the format again on the four synthetic sets of those figures. Fails, with the figure in question, when
 * one is more than 2 % and half a unit of its last digit away. */
rq_status rq_published_check(const char *format, rq_error *err);

#endif
