#include "tools/kv/format.h"

#include "backends/base/mem.h"
#include "backends/formats/half.h"
#include "backends/formats/kv_codec.h"
#include "backends/formats/kv_format.h"
#include "tools/kv/foreign.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char kv_format_all[] =
    "q8_0,q4_0,none4,planar4,rotor4,iso4,so84,wht4,haar4,none3,planar3,rotor3,iso3,so83,wht3,"
    "haar3,none2,planar2,rotor2,iso2,so82,wht2,haar2";

struct kv_format {
    char name[KV_FORMAT_NAME];
    uint32_t dim;
    kv_foreign *foreign; /* else the rest is in use */
    rq_kv_format format;
    rq_rotation rotation;
    float *klt, *klt_dual; /* [dim][dim]: what rows go through, and transposed what brings them back */
};

void kv_format_free(kv_format *f)
{
    if (!f) return;
    kv_foreign_free(f->foreign);
    rq_rotation_free(&f->rotation);
    rq_free(f->klt);
    rq_free(f->klt_dual);
    rq_free(f);
}

rq_status kv_format_make(const char *name, uint32_t dim, uint64_t seed, kv_format **out, rq_error *err)
{
    kv_format *f = rq_calloc(1, sizeof *f);
    if (!f) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the format %s", name);
    f->dim = dim;
    (void)snprintf(f->name, sizeof f->name, "%s", name);
    rq_status s;
    if (strncmp(name, "ref-", 4) == 0) {
        s = kv_foreign_make(name, dim, seed, &f->foreign, err);
    } else {
        s = rq_kv_format_parse(name, &f->format, err);
        if (!s) s = rq_kv_format_allows(&f->format, dim, err);
        if (!s) s = rq_rotation_make(f->format.rotation, dim, seed, &f->rotation, err);
        if (!s) rq_kv_format_name(&f->format, f->name);
    }
    if (s) {
        kv_format_free(f);
        return s;
    }
    *out = f;
    return RQ_OK;
}

rq_status kv_format_use_so8(kv_format *f, const float *matrices, rq_error *err)
{
    if (f->foreign || f->format.rotation != RQ_ROTATION_SO8)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s has no learned rotation", f->name);
    rq_rotation learned;
    rq_status s = rq_rotation_from_so8(f->dim, matrices, &learned, err);
    if (s) return s;
    rq_rotation_free(&f->rotation);
    f->rotation = learned;
    return RQ_OK;
}

bool kv_format_is_klt(const kv_format *f)
{
    return !f->foreign && f->format.klt;
}

rq_status kv_format_use_klt(kv_format *f, uint64_t seed, const float *basis, rq_error *err)
{
    size_t n = (size_t)f->dim * f->dim;
    if (!f->klt) f->klt = rq_calloc(n, sizeof *f->klt);
    if (!f->klt_dual) f->klt_dual = rq_calloc(n, sizeof *f->klt_dual);
    if (!f->klt || !f->klt_dual)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a basis of %u directions", f->dim);
    return rq_kv_format_basis(&f->format, f->dim, seed, basis, f->klt, f->klt_dual, err);
}

const char *kv_format_name(const kv_format *f)
{
    return f->name;
}

bool kv_format_is_foreign(const kv_format *f)
{
    return f->foreign != NULL;
}

bool kv_format_is_exact(const kv_format *f)
{
    return !f->foreign && f->format.form == RQ_KV_SAME;
}

double kv_format_bits(const kv_format *f, bool is_v)
{
    if (f->foreign) return kv_foreign_bits(f->foreign);
    if (f->format.form == RQ_KV_SAME) return rq_kv_exact_bits(f->format.exact);
    return rq_kv_coded_bits(&f->format, f->dim, is_v);
}

static float as_type(float x, rq_type type)
{
    if (type == RQ_TYPE_F16) return rq_half_to_f32(rq_half_from_f32(x));
    if (type == RQ_TYPE_BF16) return rq_bf16_to_f32(rq_f32_to_bf16(x));
    return x;
}

/* Room for one page of one head. */
typedef struct page {
    float *x; /* [dim][64] */
    uint32_t *words;
    void *scales;
    float *row, *turned; /* [dim] each */
} page;

static rq_status page_make(const kv_format *f, bool is_v, page *p, rq_error *err)
{
    rq_cache_group g = {.n_layers = 1,
                        .n_heads = 1,
                        .dim_k = f->dim,
                        .dim_v = f->dim,
                        .type_k = RQ_TYPE_F16,
                        .type_v = RQ_TYPE_F16,
                        .form_k = f->format.form,
                        .form_v = f->format.form,
                        .recent_pages = 1};
    rq_coded_layout l = rq_coded_layout_of(&g);
    p->x = rq_malloc(sizeof(float) * f->dim * RQ_PAGE_TOKENS);
    p->words = rq_malloc(is_v ? l.v_bytes : l.k_bytes);
    p->scales = rq_malloc(is_v ? l.v_scale_bytes : l.k_scale_bytes);
    p->row = rq_malloc(sizeof(float) * f->dim);
    p->turned = rq_malloc(sizeof(float) * f->dim);
    return p->x && p->words && p->scales && p->row && p->turned
               ? RQ_OK
               : rq_fail(err, RQ_ERR_MEMORY, "out of memory for a page of %s", f->name);
}

static void page_free(page *p)
{
    rq_free(p->x);
    rq_free(p->words);
    rq_free(p->scales);
    rq_free(p->row);
    rq_free(p->turned);
}

static void turn(const kv_format *f, bool inverse, const float *x, float *y)
{
    uint32_t d = f->dim;
    if (!f->format.klt) {
        rq_rotate_f32(&f->rotation, inverse, x, y);
        return;
    }
    for (uint32_t i = 0; i < d; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < d; j++)
            sum +=
                (double)x[j] * (double)(inverse ? f->klt_dual[(size_t)j * d + i] : f->klt[(size_t)i * d + j]);
        y[i] = (float)sum;
    }
}

/* One page of up to 64 rows through the engine's own encoder and plain decoder. */
static void trip_page(const kv_format *f, bool is_v, page *p, float *rows, uint32_t n)
{
    uint32_t d = f->dim;
    memset(p->x, 0, sizeof(float) * d * RQ_PAGE_TOKENS);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < d; i++)
            p->row[i] = isfinite(rows[(size_t)t * d + i]) ? rows[(size_t)t * d + i] : 0;
        turn(f, false, p->row, p->turned);
        for (uint32_t i = 0; i < d; i++)
            p->x[(size_t)i * RQ_PAGE_TOKENS + t] = as_type(p->turned[i], RQ_TYPE_F16);
    }
    rq_kv_encode_block(NULL, f->format.form, is_v, d, p->x, p->words, p->scales);
    rq_kv_decode_block(f->format.form, is_v, d, p->words, p->scales, p->x);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < d; i++) p->turned[i] = p->x[(size_t)i * RQ_PAGE_TOKENS + t];
        turn(f, true, p->turned, rows + (size_t)t * d);
    }
}

rq_status kv_format_trip(const kv_format *f, bool is_v, float *rows, size_t n, rq_error *err)
{
    size_t cells = n * f->dim;
    if (f->foreign || f->format.form == RQ_KV_SAME) {
        for (size_t i = 0; i < cells; i++) {
            rows[i] = isfinite(rows[i]) ? rows[i] : 0;
            if (!f->foreign) rows[i] = as_type(rows[i], f->format.exact);
        }
        if (f->foreign) kv_foreign_trip(f->foreign, rows, n);
        return RQ_OK;
    }
    if (f->format.klt && !f->klt)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s needs a profile with bases (rqvk-kv calibrate --klt)",
                       f->name);
    page p = {0};
    rq_status s = page_make(f, is_v, &p, err);
    for (size_t at = 0; !s && at < n; at += RQ_PAGE_TOKENS)
        trip_page(f, is_v, &p, rows + at * f->dim,
                  (uint32_t)(n - at < RQ_PAGE_TOKENS ? n - at : RQ_PAGE_TOKENS));
    page_free(&p);
    return s;
}

/* ---- lists ---------------------------------------------------------------------------------------------- */

static rq_status add_one(kv_format_list *list, const char *name, size_t bytes, rq_error *err)
{
    if (bytes == 0 || bytes >= KV_FORMAT_NAME)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a list of formats holds \"%.*s\"",
                       (int)(bytes < 40 ? bytes : 40), name);
    for (size_t i = 0; i < list->n; i++)
        if (strlen(list->names[i]) == bytes && memcmp(list->names[i], name, bytes) == 0) return RQ_OK;
    if (list->n == KV_MAX_FORMATS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a list holds at most %d formats", KV_MAX_FORMATS);
    memcpy(list->names[list->n], name, bytes);
    list->names[list->n++][bytes] = 0;
    return RQ_OK;
}

rq_status kv_format_list_add(kv_format_list *list, const char *names, rq_error *err)
{
    rq_status s = RQ_OK;
    for (const char *p = names; !s && *p;) {
        size_t bytes = strcspn(p, ",");
        s = add_one(list, p, bytes, err);
        p += bytes + (p[bytes] == ',');
    }
    return s;
}

rq_status kv_format_list_add_foreign(kv_format_list *list, rq_error *err)
{
    rq_status s = RQ_OK;
    for (size_t i = 0; !s && kv_foreign_name(i); i++) s = kv_format_list_add(list, kv_foreign_name(i), err);
    return s;
}
