/* kv-levels - makes the level tables of the compressed cache's codec rows (backends/formats/kv_codec.c).
 *
 *   kv-levels [BITS [BLOCKS]]      of 2, 3, 4 bits or of one width; BLOCKS (256) of 4,096 normal values
 *
 * The encoder itself is in the loop, so the tables fit its scale search and its integers:
 *   1. Start: 2^(bits+1) equally spaced levels; the odd ones to table 0, the even ones to table 1, so that
 *      low bits alternate along both.
 *   2. Lloyd's iteration: encode, move each level to the least-squares value of the samples that took it,
 *      make the tables mirror images of each other, scale so that the outermost level is 127 and round.
 *   3. Descent: single levels are changed by small steps as long as that lowers the error.
 *   4. The start of the scale search: for single groups every scale is tried; `base` is what fits the power
 *      on average, `slope` and `offset` the line of least squares through (above, best - base). This is done
 *      before and during 2, too.
 * Printed is the error on other samples, and the row as C. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/base/mem.h"
#include "backends/formats/kv_codec.h"

enum { GROUP = 64, BLOCK = GROUP * RQ_PAGE_TOKENS };

typedef struct samples {
    float *x; /* [n_blocks][GROUP][64] */
    int n_blocks;
} samples;

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-53;
}

static void fill_normal(samples *s, uint64_t seed)
{
    for (size_t i = 0; i < (size_t)s->n_blocks * BLOCK; i += 2) { /* Box, Muller 1958 */
        double radius = sqrt(-2 * log(uniform(&seed))), angle = 6.283185307179586 * uniform(&seed);
        s->x[i] = (float)(radius * cos(angle));
        s->x[i + 1] = (float)(radius * sin(angle));
    }
}

/* What became of samples: error over power, and for each level the sums of its least-squares value. */
typedef struct outcome {
    double nmse, product[2][16], square[2][16];
} outcome;

static outcome encode(const rq_kv_codec *row, const samples *s)
{
    outcome o = {0};
    double error = 0, power = 0;
    for (int b = 0; b < s->n_blocks; b++) {
        uint8_t codes[BLOCK], scale[RQ_PAGE_TOKENS];
        const float *x = s->x + (size_t)b * BLOCK;
        rq_kv_encoder_best()->encode(row, x, GROUP, codes, scale);
        for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t++) {
            double unit = (double)rq_kv_scale(row, scale[t]);
            for (uint32_t i = 0, state = 0; i < GROUP; i++) {
                uint32_t at = rq_kv_step_element(GROUP, i) * RQ_PAGE_TOKENS + t, code = codes[at];
                double v = (double)x[at], d = v - unit * row->level[state][code];
                error += d * d;
                power += v * v;
                o.product[state][code] += unit * v;
                o.square[state][code] += unit * unit;
                state = code & 1;
            }
        }
    }
    o.nmse = error / power;
    return o;
}

/* Table 0 in any unit to a row whose outermost level is 127. */
static void set_levels(rq_kv_codec *row, const double *level)
{
    int n = 1 << row->bits;
    double top = fmax(fabs(level[0]), fabs(level[n - 1]));
    for (int c = 0; c < n; c++) {
        int l = (int)lround(level[c] * 127 / top);
        row->level[0][c] = (int8_t)l;
        row->level[1][n - 1 - c] = (int8_t)-l;
    }
}

/* Squared error of token t of a block with scale e. */
static double group_error(const rq_kv_codec *row, const float *x, uint32_t t, int e)
{
    double unit = (double)rq_kv_scale(row, (uint8_t)e), cost[2] = {0, INFINITY};
    for (uint32_t i = 0; i < GROUP; i++) {
        double v = (double)x[rq_kv_step_element(GROUP, i) * RQ_PAGE_TOKENS + t],
               next[2] = {INFINITY, INFINITY};
        for (int p = 0; p < 2; p++)
            for (int c = 0; c < 1 << row->bits; c++) {
                double d = v - unit * row->level[p][c];
                next[c & 1] = fmin(next[c & 1], cost[p] + d * d);
            }
        cost[0] = next[0];
        cost[1] = next[1];
    }
    return fmin(cost[0], cost[1]);
}

static void fit_search(rq_kv_codec *row, const samples *s)
{
    enum { TOKENS = RQ_PAGE_TOKENS, MOST = 32 * TOKENS };
    static double power[MOST], peak[MOST], best[MOST];
    int n = (s->n_blocks < 32 ? s->n_blocks : 32) * TOKENS;
    double mean = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (int g = 0; g < n; g++) { /* all in codes, 16 an octave */
        const float *x = s->x + (size_t)(g / TOKENS) * BLOCK;
        double square = 0, largest = 0, least = INFINITY;
        for (uint32_t i = 0; i < GROUP; i++) {
            double v = fabs((double)x[i * TOKENS + (uint32_t)g % TOKENS]);
            square += v * v;
            largest = fmax(largest, v);
        }
        power[g] = 128 + 8 * log2(square / GROUP);
        peak[g] = 128 + 16 * log2(largest / 127 / (double)row->unit);
        for (int e = (int)power[g] - 20; e <= (int)power[g] + 30; e++) {
            double error = group_error(row, x, (uint32_t)g % TOKENS, e);
            if (error >= least) continue;
            least = error;
            best[g] = e;
        }
        mean += (best[g] - power[g]) / n;
    }
    for (int g = 0; g < n; g++) {
        double base = power[g] + mean, above = peak[g] - base, y = best[g] - base;
        sx += above;
        sy += y;
        sxx += above * above;
        sxy += above * y;
    }
    double slope = (n * sxy - sx * sy) / (n * sxx - sx * sx);
    row->base = (int32_t)lround(32 * mean) + 16; /* half a code: both are rounded down to codes */
    row->slope = (int32_t)lround(32 * slope);
    row->offset = (int32_t)lround(32 * (sy - slope * sx) / n) + 16;
}

static void lloyd(rq_kv_codec *row, const samples *s)
{
    int n = 1 << row->bits;
    double level[16] = {0};
    for (int c = 0; c < n; c++) level[c] = (2 * c + 1.5 - n) / n; /* the odd ones of 2 n places around 0 */
    set_levels(row, level);
    fit_search(row, s);
    for (int round = 0; round < 60; round++) {
        outcome o = encode(row, s);
        for (int c = 0; c < n; c++) {
            double product = o.product[0][c] - o.product[1][n - 1 - c];
            double square = o.square[0][c] + o.square[1][n - 1 - c];
            if (square > 0) level[c] = product / square;
        }
        set_levels(row, level);
        if (round < 3) fit_search(row, s);
    }
}

static bool better(const rq_kv_codec *candidate, const samples *s, rq_kv_codec *row, double *nmse)
{
    double now = encode(candidate, s).nmse;
    if (now >= *nmse) return false;
    *nmse = now;
    *row = *candidate;
    return true;
}

static void descend(rq_kv_codec *row, const samples *s)
{
    int n = 1 << row->bits;
    double nmse = encode(row, s).nmse;
    bool any = true;
    for (int round = 0; any && round < 40; round++) {
        any = false;
        for (int c = 0; c < n; c++)
            for (int step = -2; step <= 2; step++) {
                rq_kv_codec next = *row;
                int l = (int)next.level[0][c] + step;
                if (step == 0 || abs(l) > 127 || abs((int)row->level[0][c]) == 127) continue;
                next.level[0][c] = (int8_t)l;
                next.level[1][n - 1 - c] = (int8_t)-l;
                any |= better(&next, s, row, &nmse);
            }
    }
}

static void print_row(const rq_kv_codec *row)
{
    printf("{.bits = %u, .level = {", row->bits);
    for (int b = 0; b < 2; b++) {
        printf("%s{", b ? ", " : "");
        for (int c = 0; c < 1 << row->bits; c++) printf("%s%d", c ? ", " : "", row->level[b][c]);
        printf("}");
    }
    printf("}, .unit = 0x1p-6f, .base = %d, .slope = %d, .offset = %d}\n", row->base, row->slope,
           row->offset);
}

int main(int argc, char **argv)
{
    long only = argc > 1 ? strtol(argv[1], NULL, 10) : 0,
         n_blocks = argc > 2 ? strtol(argv[2], NULL, 10) : 256;
    if ((only != 0 && (only < 2 || only > 4)) || n_blocks < 1 || n_blocks > 65536) {
        fprintf(stderr, "usage: kv-levels [2|3|4 [BLOCKS]]\n");
        return 2;
    }
    samples train = {rq_malloc((size_t)n_blocks * BLOCK * sizeof(float)), (int)n_blocks};
    samples test = {rq_malloc((size_t)n_blocks * BLOCK * sizeof(float)), (int)n_blocks};
    if (!train.x || !test.x) {
        fprintf(stderr, "kv-levels: no memory for %ld blocks\n", n_blocks);
        return 1;
    }
    fill_normal(&train, 1);
    fill_normal(&test, 2);
    for (uint32_t bits = 2; bits <= 4; bits++) {
        if (only && bits != (uint32_t)only) continue;
        rq_kv_codec row = {.bits = bits, .unit = 0x1p-6f, .gain_k = 1, .gain_v = 1};
        lloyd(&row, &train);
        printf("%u bits: after Lloyd's iteration %.6f\n", bits, encode(&row, &test).nmse);
        fflush(stdout);
        descend(&row, &train);
        fit_search(&row, &train);
        printf("%u bits: error %.6f\n", bits, encode(&row, &test).nmse);
        print_row(&row);
        fflush(stdout);
    }
    rq_free(train.x);
    rq_free(test.x);
    return 0;
}
