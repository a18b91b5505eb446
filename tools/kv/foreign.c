#include "tools/kv/foreign.h"

#include "backends/base/mem.h"
#include "backends/formats/half.h"
#include "tools/kv/random.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 128, MAX_DIM = 1024, MIN_PIECE = 8 };

typedef enum turn { TURN_NONE, TURN_PLANAR, TURN_ISO, TURN_WHT, TURN_H64 } turn;
typedef enum code { CODE_NORM, CODE_Q4_0, CODE_Q8_0 } code;

typedef struct kind {
    const char *name;
    turn turn;
    code code;
    kv_levels levels;
    uint32_t code_bits, scale_bits; /* scale_bits: of one block, unused fields included */
} kind;

static const kind kinds[] = {
    /* rq-models: Givens pairs, 3-bit Lloyd-Max, norm correction */
    {"ref-planar3", TURN_PLANAR, CODE_NORM, KV_LEVELS_3, 3, 16},
    /* rq-models: left quaternions, 3-bit Lloyd-Max, norm correction */
    {"ref-iso3", TURN_ISO, CODE_NORM, KV_LEVELS_3, 3, 16},
    /* TheTom: signed Hadamard, 3-bit Lloyd-Max, norm correction */
    {"ref-turbo3", TURN_WHT, CODE_NORM, KV_LEVELS_3, 3, 16},
    /* rq-models: Givens pairs, 4-bit equal-probability table, norm correction */
    {"ref-planar4", TURN_PLANAR, CODE_NORM, KV_LEVELS_4_EQUAL, 4, 16},
    /* rq-models: left quaternions, 4-bit equal-probability table, norm correction */
    {"ref-iso4", TURN_ISO, CODE_NORM, KV_LEVELS_4_EQUAL, 4, 16},
    /* TheTom: signed Hadamard, 4-bit equal-probability table, norm correction, an unused f16 */
    {"ref-turbo4", TURN_WHT, CODE_NORM, KV_LEVELS_4_EQUAL, 4, 32},
    /* rq-models tbq4 as meant: signed Hadamard, 4-bit Lloyd-Max, norm correction */
    {"ref-wht4", TURN_WHT, CODE_NORM, KV_LEVELS_4, 4, 16},
    /* Givens pairs, 2-bit Lloyd-Max, norm correction */
    {"ref-planar2", TURN_PLANAR, CODE_NORM, KV_LEVELS_2, 2, 16},
    /* TheTom: signed Hadamard, 2-bit Lloyd-Max, norm correction */
    {"ref-turbo2", TURN_WHT, CODE_NORM, KV_LEVELS_2, 2, 16},
    /* ggml q4_0 */
    {"ref-q4_0", TURN_NONE, CODE_Q4_0, 0, 4, 16},
    /* llama.cpp: q4_0 after an unsigned Hadamard of 64 */
    {"ref-q4_0-h64", TURN_H64, CODE_Q4_0, 0, 4, 16},
    /* q4_0 after a signed Hadamard of 128 */
    {"ref-q4_0-wht", TURN_WHT, CODE_Q4_0, 0, 4, 16},
    /* ggml q8_0 */
    {"ref-q8_0", TURN_NONE, CODE_Q8_0, 0, 8, 16},
};

struct kv_foreign {
    const kind *kind;
    uint32_t dim;
    float data[]; /* planar: cosine and sine of each pair; iso: quaternions; wht: signs before, signs after */
};

/* Lloyd-Max levels of N(0, 1), and the conditional means of 16 equally probable cells of it, which the
 * references ship as their 4-bit table. Both follow from the normal distribution alone. */
static const float levels_2[] = {0.452780f, 1.510418f};
static const float levels_3[] = {0.245094f, 0.756005f, 1.343909f, 2.151946f};
static const float levels_4[] = {0.128395f, 0.388048f, 0.656759f, 0.942340f,
                                 1.256231f, 1.618046f, 2.069017f, 2.732590f};
static const float levels_4_equal[] = {0.078493f, 0.237459f, 0.402735f, 0.579964f,
                                       0.777881f, 1.012887f, 1.325913f, 1.967743f};

const float *kv_foreign_levels(kv_levels which, uint32_t *n_half)
{
    static const float *const tables[] = {levels_2, levels_3, levels_4, levels_4_equal};
    static const uint8_t sizes[] = {2, 4, 8, 8};
    *n_half = sizes[which];
    return tables[which];
}

static const kind *find(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}

const char *kv_foreign_name(size_t i)
{
    return i < sizeof kinds / sizeof *kinds ? kinds[i].name : NULL;
}

/* Draws as the sets' published numbers were made: the angle of each pair; two normalised quaternions for each
 * four elements, of which the left one is used; a sign before and a sign after the butterflies by turns. */
static void draw(kv_foreign *f, uint64_t seed)
{
    kv_random r = kv_random_start(seed * 7919 + 17);
    if (f->kind->turn == TURN_PLANAR) {
        for (uint32_t i = 0; i + 1 < f->dim; i += 2) {
            double angle = 2 * M_PI * kv_random_uniform(&r);
            f->data[i] = (float)cos(angle);
            f->data[i + 1] = (float)sin(angle);
        }
    } else if (f->kind->turn == TURN_ISO) {
        for (uint32_t i = 0; i + 3 < f->dim; i += 4) {
            double q[4], norm = 0;
            for (int c = 0; c < 4; c++) {
                q[c] = kv_random_normal(&r);
                norm += q[c] * q[c];
            }
            for (int c = 0; c < 4; c++) f->data[i + (uint32_t)c] = (float)(q[c] / sqrt(norm));
            for (int c = 0; c < 4; c++) (void)kv_random_normal(&r);
        }
    } else if (f->kind->turn == TURN_WHT) {
        for (uint32_t i = 0; i < f->dim; i++) {
            f->data[i] = kv_random_u64(&r) & 1 ? -1 : 1;
            f->data[f->dim + i] = kv_random_u64(&r) & 1 ? -1 : 1;
        }
    }
}

rq_status kv_foreign_make(const char *name, uint32_t dim, uint64_t seed, kv_foreign **out, rq_error *err)
{
    const kind *k = find(name);
    if (!k) return rq_fail(err, RQ_ERR_ARGUMENT, "%s is no format of another system known here", name);
    if (dim < 8 || dim > MAX_DIM || dim % 8)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%s: a head of %u elements; a multiple of 8 up to %d is needed",
                       name, dim, MAX_DIM);
    kv_foreign *f = rq_calloc(1, sizeof *f + 2 * sizeof(float) * dim);
    if (!f) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the rotation of %s", name);
    f->kind = k;
    f->dim = dim;
    draw(f, seed);
    *out = f;
    return RQ_OK;
}

void kv_foreign_free(kv_foreign *f)
{
    rq_free(f);
}

double kv_foreign_bits(const kv_foreign *f)
{
    uint32_t block = f->kind->code == CODE_NORM ? BLOCK : 32, blocks = (f->dim + block - 1) / block;
    return f->kind->code_bits + (double)blocks * f->kind->scale_bits / f->dim;
}

/* ---- rotations ------------------------------------------------------------------------------------------ */

static void butterflies(float *x, uint32_t n)
{
    for (uint32_t half = 1; half < n; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j++) {
                float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
    float scale = 1 / sqrtf((float)n);
    for (uint32_t i = 0; i < n; i++) x[i] *= scale;
}

/* Size of the Hadamard piece that starts at `at`: the largest power of two up to `most` that fits. */
static uint32_t piece(uint32_t at, uint32_t dim, uint32_t most)
{
    uint32_t n = most;
    while (n > MIN_PIECE && n > dim - at) n /= 2;
    return n;
}

static void turn_planar(const kv_foreign *f, float *x, bool back)
{
    for (uint32_t i = 0; i < f->dim; i += 2) {
        float c = f->data[i], s = back ? -f->data[i + 1] : f->data[i + 1], a = x[i], b = x[i + 1];
        x[i] = c * a - s * b;
        x[i + 1] = s * a + c * b;
    }
}

/* Hamilton product q v, elements read as (w, x, y, z); back with the conjugate. */
static void turn_iso(const kv_foreign *f, float *x, bool back)
{
    for (uint32_t i = 0; i < f->dim; i += 4) {
        const float *q = f->data + i;
        float sign = back ? -1 : 1, w = q[0], a = sign * q[1], b = sign * q[2], c = sign * q[3];
        float v0 = x[i], v1 = x[i + 1], v2 = x[i + 2], v3 = x[i + 3];
        x[i] = w * v0 - a * v1 - b * v2 - c * v3;
        x[i + 1] = a * v0 + w * v1 - c * v2 + b * v3;
        x[i + 2] = b * v0 + c * v1 + w * v2 - a * v3;
        x[i + 3] = c * v0 - b * v1 + a * v2 + w * v3;
    }
}

static void turn_wht(const kv_foreign *f, float *x, bool back)
{
    const float *before = f->data + (back ? f->dim : 0), *after = f->data + (back ? 0 : f->dim);
    for (uint32_t at = 0, n; at < f->dim; at += n) {
        n = piece(at, f->dim, BLOCK);
        for (uint32_t i = at; i < at + n; i++) x[i] *= before[i];
        butterflies(x + at, n);
        for (uint32_t i = at; i < at + n; i++) x[i] *= after[i];
    }
}

static void rotate(const kv_foreign *f, float *x, bool back)
{
    switch (f->kind->turn) {
    case TURN_PLANAR:
        turn_planar(f, x, back);
        break;
    case TURN_ISO:
        turn_iso(f, x, back);
        break;
    case TURN_WHT:
        turn_wht(f, x, back);
        break;
    case TURN_H64: {
        uint32_t n = 64; /* upstream: the largest power of two up to 64 that divides the head */
        while (f->dim % n) n /= 2;
        for (uint32_t at = 0; at < f->dim; at += n) butterflies(x + at, n);
        break;
    }
    case TURN_NONE:
        break;
    }
}

/* ---- codes ---------------------------------------------------------------------------------------------- */

static float to_half(double x)
{
    return rq_half_to_f32(rq_half_from_f32((float)x));
}

static float nearest(const float *half, uint32_t n, float x)
{
    float a = fabsf(x);
    uint32_t i = 0;
    while (i + 1 < n && a > 0.5f * (half[i] + half[i + 1])) i++;
    return x < 0 ? -half[i] : half[i];
}

/* The scale that gives the decoded block the length of the original ("norm correction"). */
static void code_norm(const kv_foreign *f, float *x, uint32_t n)
{
    uint32_t n_half;
    const float *half = kv_foreign_levels(f->kind->levels, &n_half);
    double energy = 0, coded = 0;
    for (uint32_t i = 0; i < n; i++) energy += (double)x[i] * x[i];
    if (energy == 0) return;
    float rms = (float)sqrt(energy / n);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = nearest(half, n_half, x[i] / rms);
        coded += (double)x[i] * x[i];
    }
    float scale = to_half(sqrt(energy / coded));
    for (uint32_t i = 0; i < n; i++) x[i] *= scale;
}

/* ggml: the element of largest magnitude becomes code 0, value -8. */
static void code_q4_0(float *x, uint32_t n)
{
    float extreme = 0;
    for (uint32_t i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    float scale = extreme / -8, inverse = scale != 0 ? 1 / scale : 0, stored = to_half(scale);
    for (uint32_t i = 0; i < n; i++) {
        int c = (int)(x[i] * inverse + 8.5f);
        x[i] = (float)((c > 15 ? 15 : c < 0 ? 0 : c) - 8) * stored;
    }
}

static void code_q8_0(float *x, uint32_t n)
{
    float most = 0;
    for (uint32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    float scale = most / 127, inverse = scale != 0 ? 1 / scale : 0, stored = to_half(scale);
    for (uint32_t i = 0; i < n; i++) x[i] = roundf(x[i] * inverse) * stored;
}

void kv_foreign_trip(const kv_foreign *f, float *rows, size_t n)
{
    uint32_t block = f->kind->code == CODE_NORM ? BLOCK : 32;
    for (size_t r = 0; r < n; r++) {
        float *x = rows + r * f->dim;
        rotate(f, x, false);
        for (uint32_t at = 0; at < f->dim; at += block) {
            uint32_t size = f->dim - at < block ? f->dim - at : block;
            if (f->kind->code == CODE_NORM) code_norm(f, x + at, size);
            if (f->kind->code == CODE_Q4_0) code_q4_0(x + at, size);
            if (f->kind->code == CODE_Q8_0) code_q8_0(x + at, size);
        }
        rotate(f, x, true);
    }
}
