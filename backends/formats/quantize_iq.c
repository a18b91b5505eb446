/* quantize_iq.c - encoders of the types with a grid. The nearest entry is found by trying all of them.
 *
 * A super-block of 256 has one real scale D; groups of 16 or 32 elements share an integer level l and are
 * read as D (a l + b) times grid entries ("cells" of 4 or 8 elements), times signs, or with a delta added.
 * For an entry g and a scale s the error of a cell is |x|^2 - 2 s x.g + s^2 |g|^2: x.g is computed once per
 * cell and entry, and serves every scale tried. Layouts: above the decoders in dequantize_iq.c. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "backends/formats/block_write.h"
#include "backends/formats/quantize.h"
#include "backends/formats/quantize_fit.h"
#include "backends/formats/tables.h"

enum { MAX_ENTRIES = 2048, MAX_CELLS = 8 };

typedef enum sign_rule {
    SIGNS_NONE, /* entries carry signs; a delta of +-1/8 is added */
    SIGNS_FREE,
    SIGNS_EVEN, /* an even number of minus signs in eight elements */
} sign_rule;

typedef struct grid {
    int entries, width;  /* elements per entry: 4 or 8 */
    int share;           /* elements that share a level: 16 or 32 */
    int levels;          /* 8 or 16 */
    bool delta_per_cell; /* else one delta for the elements that share a level */
    sign_rule signs;
    float a, b, top;                           /* level l means a l + b; top: the largest magnitude */
    float value[8][MAX_ENTRIES];               /* [element][entry] */
    float norm[MAX_ENTRIES], sum[MAX_ENTRIES]; /* of squares, of elements */
} grid;

/* What a super-block becomes; the arrays are indexed by cell, group of eight and level group. */
typedef struct iq_code {
    float d;
    uint16_t entry[64];
    uint8_t signs[32], delta[64], level[16];
} iq_code;

static void grid_init(grid *g, int entries, int width, int share, int levels, sign_rule signs, float a,
                      float b)
{
    g->entries = entries;
    g->width = width;
    g->share = share;
    g->levels = levels;
    g->signs = signs;
    g->a = a;
    g->b = b;
    g->delta_per_cell = false;
    g->top = 0;
}

static void grid_put(grid *g, int entry, uint64_t bytes)
{
    g->norm[entry] = 0;
    g->sum[entry] = 0;
    for (int j = 0; j < g->width; j++) {
        float v = (float)(int8_t)(bytes >> 8 * j & 255);
        g->value[j][entry] = v;
        g->norm[entry] += v * v;
        g->sum[entry] += v;
        g->top = fabsf(v) > g->top ? fabsf(v) : g->top;
    }
}

static void grid_8(grid *g, const uint64_t *table)
{
    for (int e = 0; e < g->entries; e++) grid_put(g, e, table[e]);
}

static void grid_4(grid *g, const uint32_t *table)
{
    for (int e = 0; e < g->entries; e++) grid_put(g, e, table[e]);
}

/* Products of one group's cells with all entries. */
typedef struct products {
    int cells;
    float dot[MAX_CELLS][MAX_ENTRIES];
    float sum_x[MAX_CELLS];
} products;

static void products_init(products *p, const grid *g, const float *x)
{
    p->cells = g->share / g->width;
    for (int c = 0; c < p->cells; c++, x += g->width) {
        float *dot = p->dot[c];
        memset(dot, 0, (size_t)g->entries * sizeof *dot);
        p->sum_x[c] = 0;
        for (int j = 0; j < g->width; j++) {
            float v = x[j];
            p->sum_x[c] += v;
            for (int e = 0; e < g->entries; e++) dot[e] += v * g->value[j][e];
        }
    }
}

typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));

static floats load(const float *p)
{
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Lane by lane a where the mask is all ones, b where it is zero. */
static ints choose(ints mask, ints a, ints b)
{
    return (mask & a) | (~mask & b);
}

/* The entry with the least s^2 |g + delta|^2 - 2 s x.(g + delta): the first such of each lane of four, then
 * the first such lane. */
static float nearest(const grid *g, const float *dot, float sum_x, float s, float delta, uint16_t *entry)
{
    float linear = 2 * delta * s * s, constant = s * delta * ((float)g->width * s * delta - 2 * sum_x);
    floats best = {INFINITY, INFINITY, INFINITY, INFINITY};
    ints where = {0, 1, 2, 3}, at = where;
    for (int e = 0; e < g->entries; e += 4) {
        floats cost = s * (s * load(g->norm + e) - 2 * load(dot + e)) + linear * load(g->sum + e);
        ints less = cost < best;
        best = (floats)choose(less, (ints)cost, (ints)best);
        where = choose(less, at, where);
        at += 4;
    }
    int lane = 0;
    for (int l = 1; l < 4; l++) lane = best[l] < best[lane] ? l : lane;
    *entry = (uint16_t)where[lane];
    return best[lane] + constant;
}

/* Entries (and deltas, 1 = minus) of a group at scale s; returns the error less the constant |x|^2. */
static float group_at(const grid *g, const products *p, float s, uint16_t *entry, uint8_t *delta)
{
    float total[2] = {0, 0}, mixed = 0;
    uint16_t at[2][MAX_CELLS];
    uint8_t better[MAX_CELLS];
    for (int c = 0; c < p->cells; c++) {
        if (g->signs != SIGNS_NONE) {
            mixed += nearest(g, p->dot[c], p->sum_x[c], s, 0, &entry[c]);
            delta[c] = 0;
            continue;
        }
        float plus = nearest(g, p->dot[c], p->sum_x[c], s, 0.125f, &at[0][c]);
        float minus = nearest(g, p->dot[c], p->sum_x[c], s, -0.125f, &at[1][c]);
        better[c] = minus < plus;
        mixed += minus < plus ? minus : plus;
        total[0] += plus;
        total[1] += minus;
    }
    if (g->signs != SIGNS_NONE) return mixed;
    uint8_t all = total[1] < total[0];
    for (int c = 0; c < p->cells; c++) {
        delta[c] = g->delta_per_cell ? better[c] : all;
        entry[c] = at[delta[c]][c];
    }
    return g->delta_per_cell ? mixed : total[all];
}

/* The real scale of a group: the best of a few fractions of the peak, each improved by least squares. */
static float group_scale(const grid *g, const products *p, float amax)
{
    static const float fractions[] = {1.2f, 1.0f, 0.84f, 0.7f, 0.59f, 0.5f, 0.4f, 0.3f};
    float best = 0, best_s = 0, reach = g->top + (g->signs == SIGNS_NONE ? 0.125f : 0.0f);
    for (size_t k = 0; k < sizeof fractions / sizeof *fractions && amax > 0; k++) {
        uint16_t entry[MAX_CELLS];
        uint8_t delta[MAX_CELLS];
        float xg = 0, gg = 0;
        group_at(g, p, amax * fractions[k] / reach, entry, delta);
        for (int c = 0; c < p->cells; c++) {
            float d = g->signs != SIGNS_NONE ? 0.0f : delta[c] ? -0.125f : 0.125f;
            xg += p->dot[c][entry[c]] + d * p->sum_x[c];
            gg += g->norm[entry[c]] + 2 * d * g->sum[entry[c]] + (float)g->width * d * d;
        }
        if (xg > 0 && gg > 0 && xg * (xg / gg) > best) {
            best_s = xg / gg;
            best = xg * best_s;
        }
    }
    return best_s;
}

/* Takes the signs off (y gets magnitudes); with an odd number where it must be even, the smallest element's
 * sign is given up and its magnitude turns negative. */
static uint8_t split_signs(const float *x, float *y, bool even)
{
    unsigned mask = 0, odd = 0;
    int smallest = 0;
    for (int j = 0; j < 8; j++) {
        unsigned minus = x[j] < 0;
        mask |= minus << j;
        odd ^= minus;
        y[j] = fabsf(x[j]);
        if (y[j] < y[smallest]) smallest = j;
    }
    if (even && odd) {
        mask ^= 1u << smallest;
        y[smallest] = -y[smallest];
    }
    return (uint8_t)mask;
}

/* Levels and entries for a given D; `real`: the groups' own scales. Returns the least-squares D for them. */
static float assign(const grid *g, const float *y, const float *real, iq_code *out, products *p)
{
    int groups = 256 / g->share, cells = g->share / g->width;
    double xv = 0, vv = 0;
    for (int k = 0; k < groups; k++) {
        uint16_t *entry = out->entry + cells * k, try_entry[MAX_CELLS];
        uint8_t *delta = out->delta + cells * k, try_delta[MAX_CELLS];
        int near = rq_round_code((real[k] * rq_inverse(out->d) - g->b) / g->a, 0, g->levels - 1);
        float best = INFINITY;
        products_init(p, g, y + g->share * k);
        for (int l = near - 1; l <= near + 1; l++) {
            if (l < 0 || l >= g->levels) continue;
            float cost = group_at(g, p, out->d * (g->a * (float)l + g->b), try_entry, try_delta);
            if (cost >= best) continue;
            best = cost;
            out->level[k] = (uint8_t)l;
            memcpy(entry, try_entry, (size_t)cells * sizeof *entry);
            memcpy(delta, try_delta, (size_t)cells);
        }
        double level = (double)(g->a * (float)out->level[k] + g->b);
        for (int c = 0; c < cells; c++) {
            float d = g->signs != SIGNS_NONE ? 0.0f : delta[c] ? -0.125f : 0.125f;
            xv += level * (double)(p->dot[c][entry[c]] + d * p->sum_x[c]);
            vv += level * level *
                  (double)(g->norm[entry[c]] + 2 * d * g->sum[entry[c]] + (float)g->width * d * d);
        }
    }
    return xv > 0 && vv > 0 ? (float)(xv / vv) : 0;
}

static void encode_256(const grid *g, const float *x, iq_code *out)
{
    float y[256], real[16], largest = 0;
    products p;
    memset(out, 0, sizeof *out);
    memcpy(y, x, sizeof y);
    for (int q = 0; q < 32 && g->signs != SIGNS_NONE; q++)
        out->signs[q] = split_signs(x + 8 * q, y + 8 * q, g->signs == SIGNS_EVEN);
    for (int k = 0; k < 256 / g->share; k++) {
        products_init(&p, g, y + g->share * k);
        real[k] = group_scale(g, &p, rq_max_abs(y + g->share * k, g->share));
        largest = real[k] > largest ? real[k] : largest;
    }
    out->d = rq_f16_scale(largest / (g->a * (float)(g->levels - 1) + g->b));
    if (out->d == 0) return; /* all codes stay 0 */
    float better = rq_f16_scale(assign(g, y, real, out, &p));
    if (better > 0 && better != out->d) {
        out->d = better;
        assign(g, y, real, out, &p);
    }
}

/* ---- packing
 * --------------------------------------------------------------------------------------------------- */

/* Four seven-bit sign codes (the eighth bit is their parity) and a level in one word. */
static uint32_t signs_and_level(const uint8_t signs[4], uint8_t level)
{
    uint32_t word = (uint32_t)level << 28;
    for (int l = 0; l < 4; l++) word |= (uint32_t)(signs[l] & 127) << 7 * l;
    return word;
}

void rq_encode_iq2_xxs(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 256, 8, 32, 16, SIGNS_EVEN, 0.25f, 0.125f);
    grid_8(&g, rq_iq2xxs_grid);
    for (; n >= 256; n -= 256, x += 256, b += 66) {
        encode_256(&g, x, &c);
        rq_write_f16(b, c.d);
        for (int k = 0; k < 8; k++) {
            for (int l = 0; l < 4; l++) b[2 + 8 * k + l] = (uint8_t)c.entry[4 * k + l];
            rq_write_u32(b + 6 + 8 * k, signs_and_level(c.signs + 4 * k, c.level[k]));
        }
    }
}

void rq_encode_iq2_xs(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 512, 8, 16, 16, SIGNS_EVEN, 0.25f, 0.125f);
    grid_8(&g, rq_iq2xs_grid);
    for (; n >= 256; n -= 256, x += 256, b += 74) {
        encode_256(&g, x, &c);
        rq_write_f16(b, c.d);
        for (int q = 0; q < 32; q++)
            rq_write_u16(b + 2 + 2 * q, (uint16_t)(c.entry[q] | (c.signs[q] & 127) << 9));
        for (int k = 0; k < 8; k++) b[66 + k] = (uint8_t)(c.level[2 * k] | c.level[2 * k + 1] << 4);
    }
}

void rq_encode_iq2_s(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 1024, 8, 16, 16, SIGNS_FREE, 0.25f, 0.125f);
    grid_8(&g, rq_iq2s_grid);
    for (; n >= 256; n -= 256, x += 256, b += 82) {
        encode_256(&g, x, &c);
        memset(b, 0, 82);
        rq_write_f16(b, c.d);
        for (int q = 0; q < 32; q++) {
            b[2 + q] = (uint8_t)c.entry[q];
            b[34 + q] = c.signs[q];
            b[66 + q / 4] |= (uint8_t)((c.entry[q] >> 8) << 2 * (q % 4));
        }
        for (int k = 0; k < 8; k++) b[74 + k] = (uint8_t)(c.level[2 * k] | c.level[2 * k + 1] << 4);
    }
}

void rq_encode_iq3_xxs(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 256, 4, 32, 16, SIGNS_EVEN, 0.5f, 0.25f);
    grid_4(&g, rq_iq3xxs_grid);
    for (; n >= 256; n -= 256, x += 256, b += 98) {
        encode_256(&g, x, &c);
        rq_write_f16(b, c.d);
        for (int t = 0; t < 64; t++) b[2 + t] = (uint8_t)c.entry[t];
        for (int k = 0; k < 8; k++)
            rq_write_u32(b + 66 + 4 * k, signs_and_level(c.signs + 4 * k, c.level[k]));
    }
}

void rq_encode_iq3_s(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 512, 4, 32, 16, SIGNS_FREE, 2.0f, 1.0f);
    grid_4(&g, rq_iq3s_grid);
    for (; n >= 256; n -= 256, x += 256, b += 110) {
        encode_256(&g, x, &c);
        memset(b, 0, 110);
        rq_write_f16(b, c.d);
        for (int t = 0; t < 64; t++) {
            b[2 + t] = (uint8_t)c.entry[t];
            b[66 + t / 8] |= (uint8_t)((c.entry[t] >> 8) << t % 8);
        }
        memcpy(b + 74, c.signs, 32);
        for (int k = 0; k < 4; k++) b[106 + k] = (uint8_t)(c.level[2 * k] | c.level[2 * k + 1] << 4);
    }
}

void rq_encode_iq1_s(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 2048, 8, 32, 8, SIGNS_NONE, 2.0f, 1.0f);
    grid_8(&g, rq_iq1s_grid);
    for (; n >= 256; n -= 256, x += 256, b += 50) {
        encode_256(&g, x, &c);
        rq_write_f16(b, c.d);
        for (int k = 0; k < 8; k++) {
            unsigned word = (unsigned)c.level[k] << 12 | (unsigned)c.delta[4 * k] << 15;
            for (int l = 0; l < 4; l++) {
                b[2 + 4 * k + l] = (uint8_t)c.entry[4 * k + l];
                word |= (unsigned)(c.entry[4 * k + l] >> 8) << 3 * l;
            }
            rq_write_u16(b + 34 + 2 * k, (uint16_t)word);
        }
    }
}

void rq_encode_iq1_m(const float *x, uint8_t *b, int64_t n)
{
    grid g;
    iq_code c;
    grid_init(&g, 2048, 8, 16, 8, SIGNS_NONE, 2.0f, 1.0f);
    grid_8(&g, rq_iq1s_grid);
    g.delta_per_cell = true;
    for (; n >= 256; n -= 256, x += 256, b += 56) {
        encode_256(&g, x, &c);
        memset(b, 0, 56);
        for (int q = 0; q < 32; q++) {
            b[q] = (uint8_t)c.entry[q];
            b[32 + q / 2] |= (uint8_t)((c.entry[q] >> 8 | c.delta[q] << 3) << 4 * (q % 2));
        }
        unsigned d = rq_half_from_f32(c.d);
        for (int k = 0; k < 4; k++) {
            unsigned word = (d >> 4 * k & 15) << 12;
            for (int t = 0; t < 4; t++) word |= (unsigned)c.level[4 * k + t] << 3 * t;
            rq_write_u16(b + 48 + 2 * k, (uint16_t)word);
        }
    }
}
