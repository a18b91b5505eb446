/* kv_format.h - names of cache formats: "f16", "q8_0", "planar3", "so83", ...
 *
 * A format is a rotation and a code (DESIGN section 1), or an exact type. K and V choose theirs
 * independently.
 *   exact types   f32 f16 bf16            the coded page holds what the exact one does
 *   block codes   q8_0 q4_0               no rotation
 *   codec rows    <rotation><bits>        planar iso rotor wht so8 haar none with 2, 3 or 4: "wht3", "so84"
 *                 klt<bits>               wht behind a basis that a profile brings (engine/kv.h), whose first
 *                                         directions matter most; of klt3 the first half has 4 bits, the rest 2
 * turbo<bits> is another name of wht<bits>. Upper case is accepted. */
#ifndef RQ_KV_FORMAT_H
#define RQ_KV_FORMAT_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/formats/rotation.h"

#include <stddef.h>

typedef struct rq_kv_format {
    rq_rotation_kind rotation; /* RQ_ROTATION_NONE for exact types and block codes */
    rq_type exact;             /* of the exact pages: F32, F16, BF16; F16 where there is a code */
    rq_kv_form form;           /* of the coded pages; SAME for exact types */
    bool klt;                  /* a profile's basis comes before the rotation */
} rq_kv_format;

/* RQ_ERR_ARGUMENT with the list of all names when `name` is none of them; *out is written on success only. */
rq_status rq_kv_format_parse(const char *name, rq_kv_format *out, rq_error *err);

/* The canonical name of a format that parse returned (at most 15 bytes and NUL). */
enum { RQ_KV_NAME_BYTES = 16 };
void rq_kv_format_name(const rq_kv_format *format, char name[RQ_KV_NAME_BYTES]);

/* The i-th canonical name, exact types first; NULL past the last. */
const char *rq_kv_format_at(size_t i);

/* RQ_ERR_UNSUPPORTED with a sentence unless heads of d elements can be kept in this format: multiples of 8;
 * with a code also d from 32 to RQ_KV_MAX_DIM; rotations have their own limits (rq_rotation_allowed). */
rq_status rq_kv_format_allows(const rq_kv_format *format, uint32_t d, rq_error *err);

/* What a format with klt does to rows of d elements, from a profile's basis B [d][d] (row = direction): rows pass
 * through `forward` = W B, W a random wht over each span of the form, and what meets them in a product (queries)
 * or undoes it (transposed: results) through `dual` = W B^-T, both [d][d], row-major. RQ_ERR_FORMAT when B has no
 * inverse that f32 could hold. */
rq_status rq_kv_format_basis(const rq_kv_format *format, uint32_t d, uint64_t seed, const float *basis,
                             float *forward, float *dual, rq_error *err);

/* Bits per element, scales included, exactly as a page is laid out: of exact pages, and of coded ones (of V,
 * and of K, whose words are cut by groups). */
double rq_kv_exact_bits(rq_type exact);
double rq_kv_coded_bits(const rq_kv_format *format, uint32_t d, bool is_v);

#endif
