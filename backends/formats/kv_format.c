/* kv_format.c - the table of cache formats. */
#include "backends/formats/kv_format.h"

#include "backends/formats/kv_codec.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define CODED(name, kind)                                                                                    \
    {name "2", {kind, RQ_TYPE_F16, RQ_KV_C2, false}}, {name "3", {kind, RQ_TYPE_F16, RQ_KV_C3, false}},      \
    {                                                                                                        \
        name "4",                                                                                            \
        {                                                                                                    \
            kind, RQ_TYPE_F16, RQ_KV_C4, false                                                               \
        }                                                                                                    \
    }

typedef struct named_format {
    const char *name;
    rq_kv_format format;
} named_format;

static const named_format formats[] = {
    {"f32", {RQ_ROTATION_NONE, RQ_TYPE_F32, RQ_KV_SAME, false}},
    {"f16", {RQ_ROTATION_NONE, RQ_TYPE_F16, RQ_KV_SAME, false}},
    {"bf16", {RQ_ROTATION_NONE, RQ_TYPE_BF16, RQ_KV_SAME, false}},
    {"q8_0", {RQ_ROTATION_NONE, RQ_TYPE_F16, RQ_KV_Q8_0, false}},
    {"q4_0", {RQ_ROTATION_NONE, RQ_TYPE_F16, RQ_KV_Q4_0, false}},
    CODED("planar", RQ_ROTATION_PLANAR),
    CODED("rotor", RQ_ROTATION_ROTOR),
    CODED("iso", RQ_ROTATION_ISO),
    CODED("so8", RQ_ROTATION_SO8),
    CODED("wht", RQ_ROTATION_WHT),
    CODED("haar", RQ_ROTATION_HAAR),
    CODED("none", RQ_ROTATION_NONE),
    {"klt2", {RQ_ROTATION_WHT, RQ_TYPE_F16, RQ_KV_C2, true}},
    {"klt3", {RQ_ROTATION_WHT, RQ_TYPE_F16, RQ_KV_C42, true}},
    {"klt4", {RQ_ROTATION_WHT, RQ_TYPE_F16, RQ_KV_C4, true}},
};

/* Other names of a format above. */
static const named_format aliases[] = {CODED("turbo", RQ_ROTATION_WHT)};

enum { N_FORMATS = sizeof formats / sizeof formats[0], N_ALIASES = sizeof aliases / sizeof aliases[0] };

rq_status rq_kv_format_parse(const char *name, rq_kv_format *out, rq_error *err)
{
    for (size_t i = 0; i < N_FORMATS + N_ALIASES; i++) {
        const named_format *f = i < N_FORMATS ? &formats[i] : &aliases[i - N_FORMATS];
        if (strcasecmp(f->name, name) != 0) continue;
        *out = f->format;
        return RQ_OK;
    }
    return rq_fail(err, RQ_ERR_ARGUMENT,
                   "there is no cache format '%.40s'; there are f32, f16, bf16, q8_0, q4_0, and planar, "
                   "rotor, iso, so8, "
                   "wht (or turbo), haar, none, klt followed by the bits 2, 3 or 4, such as wht3",
                   name);
}

void rq_kv_format_name(const rq_kv_format *format, char name[RQ_KV_NAME_BYTES])
{
    const char *found = "?";
    for (size_t i = 0; i < N_FORMATS; i++) {
        const rq_kv_format *f = &formats[i].format;
        bool same = f->form == format->form && f->rotation == format->rotation && f->klt == format->klt &&
                    (f->form != RQ_KV_SAME || f->exact == format->exact);
        if (same) found = formats[i].name;
    }
    snprintf(name, RQ_KV_NAME_BYTES, "%s", found);
}

const char *rq_kv_format_at(size_t i)
{
    return i < N_FORMATS ? formats[i].name : NULL;
}

rq_status rq_kv_format_allows(const rq_kv_format *format, uint32_t d, rq_error *err)
{
    char name[RQ_KV_NAME_BYTES];
    rq_kv_format_name(format, name);
    if (d == 0 || d % 8 != 0)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "cache format %s: heads of %u elements cannot be cached, only multiples of 8", name,
                       d);
    if (format->form != RQ_KV_SAME && (d < 32 || d > RQ_KV_MAX_DIM))
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "cache format %s: heads of %u elements cannot be compressed, only those of 32 to %d",
                       name, d, RQ_KV_MAX_DIM);
    return format->form == RQ_KV_SAME ? RQ_OK : rq_rotation_allowed(format->rotation, d, err);
}

double rq_kv_exact_bits(rq_type exact)
{
    return exact == RQ_TYPE_F32 ? 32.0 : 16.0;
}

double rq_kv_coded_bits(const rq_kv_format *format, uint32_t d, bool is_v)
{
    rq_kv_form form = format->form;
    if (rq_kv_bits(form) == 0) return rq_kv_exact_bits(format->exact);
    double elements = (double)RQ_PAGE_TOKENS * d;
    double words = (double)rq_kv_block_words(form, is_v, d);
    double scales = (double)RQ_PAGE_TOKENS * rq_kv_groups(form, d);
    return (32.0 * words + (rq_kv_form_is_code(form) ? 8.0 : 16.0) * scales) / elements;
}
