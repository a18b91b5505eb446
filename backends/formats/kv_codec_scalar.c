/* kv_codec_scalar.c - the encoder of codec rows in plain C: the rule of kv_codec.h, step by step. */
#include <math.h>
#include <string.h>

#include "backends/formats/kv_codec_impl.h"

enum { TOKENS = RQ_PAGE_TOKENS };

static int32_t cost_of(int32_t level, int32_t y)
{
    return 8 * level * level - 2 * y * level;
}

/* Step 4 without the path: minus the smallest cost. */
static int32_t path_gain(const rq_kv_codec *row, const int32_t *y, uint32_t G)
{
    int32_t n_codes = 1 << row->bits, cost[2] = {0, INT32_MAX / 2};
    for (uint32_t i = 0; i < G; i++) {
        int32_t next[2] = {INT32_MAX, INT32_MAX};
        for (int p = 0; p < 2; p++)
            for (int c = 0; c < n_codes; c++) {
                int32_t total = cost[p] + cost_of(row->level[p][c], y[i]);
                if (total < next[c & 1]) next[c & 1] = total;
            }
        cost[0] = next[0];
        cost[1] = next[1];
    }
    return -(cost[0] <= cost[1] ? cost[0] : cost[1]);
}

/* Step 4 with the path, in trellis order. */
static void path_codes(const rq_kv_codec *row, const int32_t *y, uint32_t G, uint8_t *codes)
{
    struct {
        uint8_t code, from;
    } best[RQ_KV_MAX_GROUP][2];
    int32_t n_codes = 1 << row->bits, cost[2] = {0, INT32_MAX / 2};
    for (uint32_t i = 0; i < G; i++) {
        int32_t next[2] = {INT32_MAX, INT32_MAX};
        for (int p = 0; p < 2; p++)
            for (int c = 0; c < n_codes; c++) {
                int32_t total = cost[p] + cost_of(row->level[p][c], y[i]);
                if (total < next[c & 1]) {
                    next[c & 1] = total;
                    best[i][c & 1].code = (uint8_t)c;
                    best[i][c & 1].from = (uint8_t)p;
                }
            }
        cost[0] = next[0];
        cost[1] = next[1];
    }
    int state = cost[0] <= cost[1] ? 0 : 1;
    for (uint32_t i = G; i-- > 0;) {
        codes[i] = best[i][state].code;
        state = best[i][state].from;
    }
}

/* One row of G integers in trellis order: the scale, and the codes in that order. */
static uint8_t encode_row(const rq_kv_codec *row, const int32_t *x, int32_t exponent, uint32_t energy,
                          uint32_t peak, uint32_t G, uint8_t *codes)
{
    memset(codes, 0, G);
    if (energy == 0) return 0;
    rq_kv_search search = rq_kv_search_start(row, exponent, energy, peak, rq_kv_log2_of(G));
    int32_t y[RQ_KV_MAX_GROUP], gain;
    do {
        int32_t multiplier = rq_kv_search_multiplier(&search);
        for (uint32_t i = 0; i < G; i++) y[i] = (x[i] * multiplier + 2048) >> 12;
        gain = path_gain(row, y, G);
    } while (rq_kv_search_step(&search, gain));
    if (search.best == 0) return 0;
    search.next = search.best;
    int32_t multiplier = rq_kv_search_multiplier(&search);
    for (uint32_t i = 0; i < G; i++) y[i] = (x[i] * multiplier + 2048) >> 12;
    path_codes(row, y, G, codes);
    return search.best;
}

uint64_t rq_kv_encode_scalar(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                             uint8_t *scale)
{
    uint64_t n_bad = 0;
    for (uint32_t t = 0; t < TOKENS; t++) {
        float clean[RQ_KV_MAX_GROUP];
        uint32_t largest = 0;
        for (uint32_t i = 0; i < G; i++) {
            float v = x[rq_kv_step_element(G, i) * TOKENS + t];
            uint32_t bits = rq_f32_bits(v) & 0x7fffffff;
            if (bits >= 0x7f800000) {
                n_bad++;
                v = 0.0f;
                bits = 0;
            }
            clean[i] = v;
            if (bits > largest) largest = bits;
        }
        int32_t exponent = rq_kv_exponent(largest);
        float factor = rq_kv_factor(exponent);
        int32_t q[RQ_KV_MAX_GROUP];
        uint32_t energy = 0;
        for (uint32_t i = 0; i < G; i++) {
            q[i] = (int32_t)lrintf(clean[i] * factor);
            energy += (uint32_t)(q[i] * q[i]);
        }
        uint8_t path[RQ_KV_MAX_GROUP];
        scale[t] = encode_row(row, q, exponent, energy, rq_kv_peak(largest, factor), G, path);
        for (uint32_t i = 0; i < G; i++) codes[rq_kv_step_element(G, i) * TOKENS + t] = path[i];
    }
    return n_bad;
}
