/* format.h - a cache format as the instruments see it: something that makes rows of one head lossy and says how
 * many bits an element costs. Our own formats ("wht3", "iso4", "q8_0", "f16") go through the codec the engine uses,
 * those of other systems ("ref-turbo4") through foreign.h. */
#ifndef RQ_KV_FORMAT_TOOL_H
#define RQ_KV_FORMAT_TOOL_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_format kv_format;

/* RQ_ERR_ARGUMENT when there is no such format, RQ_ERR_UNSUPPORTED when it does not take heads of `dim`. */
rq_status kv_format_make(const char *name, uint32_t dim, uint64_t seed, kv_format **out, rq_error *err);
void kv_format_free(kv_format *f);
const char *kv_format_name(const kv_format *f);
bool kv_format_is_foreign(const kv_format *f);
bool kv_format_is_exact(const kv_format *f); /* f32, f16, bf16: nothing is coded */
/* Exact bits per element as a page is laid out, scales included. */
double kv_format_bits(const kv_format *f, bool is_v);
/* Encodes and decodes n rows of dim floats in place: what attention sees afterwards, rotated back. Coded rows
 * pass through f16 first, as a page does. The gain that attention puts on decoded rows is left out. Elements that are not finite become 0. */
rq_status kv_format_trip(const kv_format *f, bool is_v, float *rows, size_t n, rq_error *err);

/* Replaces the rotation of a format "so8..." by learned matrices, [dim / 8][8][8], copied. RQ_ERR_ARGUMENT for
 * other formats. */
rq_status kv_format_use_so8(kv_format *f, const float *matrices, rq_error *err);

/* Gives a format "klt..." its basis, [dim][dim], copied. Until then it cannot be used: kv_format_trip fails. */
bool kv_format_is_klt(const kv_format *f);
rq_status kv_format_use_klt(kv_format *f, uint64_t seed, const float *basis, rq_error *err);

/* ---- lists of formats ------------------------------------------------------------------------------------ */

enum { KV_MAX_FORMATS = 64, KV_FORMAT_NAME = 24 };

typedef struct kv_format_list {
    size_t n;
    char names[KV_MAX_FORMATS][KV_FORMAT_NAME];
} kv_format_list;

/* Adds comma-separated names; a name that is there already is not added again. Names are not checked here. */
rq_status kv_format_list_add(kv_format_list *list, const char *names, rq_error *err);
/* Adds every foreign format. */
rq_status kv_format_list_add_foreign(kv_format_list *list, rq_error *err);
/* The codecs the engine has, every rotation once at 2, 3 and 4 bits, q8_0 and q4_0. */
extern const char kv_format_all[];

#endif
