/* kv_codec_simd.h - the encoder of codec rows for one instruction set, one token per lane. Included by a file
 * that has defined
 *   LANES                    tokens per register, a divisor of 64
 *   vi, vlevel               LANES int32; what a product with a level needs
 *   vi_set, vi_store, vi_add, vi_or, vi_min, vi_shift_left4, vi_shift_right4 (arithmetic),
 *   vi_low4 (and 15)
 *   vi_clean(p, bad)         bits of LANES floats with those that are not finite replaced by 0; counts them
 *   vi_max_magnitude(m, v)   the larger of m and v without its sign bit, as integers
 *   vi_sample(v, factor)     the floats v times those at factor, rounded to even, as operand of vi_scaled
 *   vi_add_square(sum, x)    sum + square of a sample
 *   vi_multipliers(p)        LANES multipliers as operand of vi_scaled
 *   vi_scaled(x, m)          (x m + 2048) >> 12 as operand of vi_cost
 *   vlevel_of(l)             of a level
 *   vi_cost(y, l)            8 l^2 - 2 y l
 *   vi_from(a, b)            b < a ? 16 : 0
 *   vi_pick(from, a, b)      from ? b : a
 *   vi_trace(word, state)    word >> (8 * state), state = 0 or 1
 *   vi_state(w)              w >> 4 & 1
 *   vi_store_codes(p, w)     the low four bits of each lane as bytes
 * and RQ_KV_ENCODE, the function's name. */
#include "backends/formats/kv_codec_impl.h"

#define RQ_INLINE static inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#define RQ_UNROLL _Pragma("GCC unroll 16")
#else
#define RQ_UNROLL _Pragma("unroll")
#endif

typedef struct lane_levels {
    vlevel of[2][16];
} lane_levels;

/* The smallest cost of a code with the given low bit. */
RQ_INLINE vi best_cost(vi y, const vlevel *level, const int bit, const int n_codes)
{
    vi best = vi_cost(y, level[bit]);
    RQ_UNROLL
    for (int c = bit + 2; c < n_codes; c += 2) best = vi_min(best, vi_cost(y, level[c]));
    return best;
}

/* The same with the code, the lowest of equal ones: cost * 16 + code (|cost| < 2^23). */
RQ_INLINE vi best_code(vi y, const vlevel *level, const int bit, const int n_codes)
{
    vi best = vi_or(vi_shift_left4(vi_cost(y, level[bit])), vi_set(bit));
    RQ_UNROLL
    for (int c = bit + 2; c < n_codes; c += 2)
        best = vi_min(best, vi_or(vi_shift_left4(vi_cost(y, level[c])), vi_set(c)));
    return best;
}

/* Step 4 without the path. x: samples in trellis order. */
RQ_INLINE void path_gain(const vi *x, vi multiplier, const lane_levels *l, uint32_t G, int32_t *gain,
                         const int bits)
{
    const int n_codes = 1 << bits;
    vi cost0 = vi_set(0), cost1 = vi_set(INT32_MAX / 2);
    for (uint32_t i = 0; i < G; i++) {
        vi y = vi_scaled(x[i], multiplier);
        vi next0 = vi_min(vi_add(cost0, best_cost(y, l->of[0], 0, n_codes)),
                          vi_add(cost1, best_cost(y, l->of[1], 0, n_codes)));
        cost1 = vi_min(vi_add(cost0, best_cost(y, l->of[0], 1, n_codes)),
                       vi_add(cost1, best_cost(y, l->of[1], 1, n_codes)));
        cost0 = next0;
    }
    vi_store(gain, vi_min(cost0, cost1));
    for (int k = 0; k < LANES; k++) gain[k] = -gain[k];
}

/* One step of the path into one state: its cost, and code | predecessor << 4. */
RQ_INLINE vi step_into(vi cost0, vi cost1, vi from0, vi from1, vi *next)
{
    vi a = vi_add(cost0, vi_shift_right4(from0)), b = vi_add(cost1, vi_shift_right4(from1));
    vi from = vi_from(a, b);
    *next = vi_min(a, b);
    return vi_or(from, vi_pick(from, vi_low4(from0), vi_low4(from1)));
}

/* Step 4 with the path: codes [G][64] from the first lane's column on, in element order. */
RQ_INLINE void path_codes(const vi *x, vi multiplier, const lane_levels *l, uint32_t G, uint8_t *codes,
                          const int bits)
{
    const int n_codes = 1 << bits;
    vi step[RQ_KV_MAX_GROUP];
    vi cost0 = vi_set(0), cost1 = vi_set(INT32_MAX / 2);
    for (uint32_t i = 0; i < G; i++) {
        vi y = vi_scaled(x[i], multiplier), next0, next1;
        vi even = step_into(cost0, cost1, best_code(y, l->of[0], 0, n_codes),
                            best_code(y, l->of[1], 0, n_codes), &next0);
        vi odd = step_into(cost0, cost1, best_code(y, l->of[0], 1, n_codes),
                           best_code(y, l->of[1], 1, n_codes), &next1);
        step[i] = vi_or(even, vi_shift_left4(vi_shift_left4(odd)));
        cost0 = next0;
        cost1 = next1;
    }
    vi state = vi_state(vi_from(cost0, cost1));
    for (uint32_t i = G; i-- > 0;) {
        vi w = vi_trace(step[i], state);
        vi_store_codes(codes + (size_t)rq_kv_step_element(G, i) * RQ_PAGE_TOKENS, w);
        state = vi_state(w);
    }
}

/* LANES tokens; x, codes and scale at the first one's column. */
RQ_INLINE uint64_t encode_lanes(const rq_kv_codec *row, const lane_levels *l, const float *x, uint32_t G,
                                uint8_t *codes, uint8_t *scale, const int bits)
{
    vi sample[RQ_KV_MAX_GROUP], largest = vi_set(0), sum = vi_set(0);
    uint64_t n_bad = 0;
    for (uint32_t i = 0; i < G; i++) {
        sample[i] = vi_clean(x + (size_t)rq_kv_step_element(G, i) * RQ_PAGE_TOKENS, &n_bad);
        largest = vi_max_magnitude(largest, sample[i]);
    }
    int32_t bits_of[LANES], energy[LANES], multiplier[LANES], gain[LANES];
    float factor[LANES];
    rq_kv_search search[LANES];
    vi_store(bits_of, largest);
    for (int k = 0; k < LANES; k++) factor[k] = rq_kv_factor(rq_kv_exponent((uint32_t)bits_of[k]));
    for (uint32_t i = 0; i < G; i++) {
        sample[i] = vi_sample(sample[i], factor);
        sum = vi_add_square(sum, sample[i]);
    }
    vi_store(energy, sum);
    int32_t log_g = rq_kv_log2_of(G);
    bool active[LANES], any = false;
    for (int k = 0; k < LANES; k++) {
        active[k] = energy[k] > 0;
        any |= active[k];
        search[k] =
            rq_kv_search_start(row, rq_kv_exponent((uint32_t)bits_of[k]), (uint32_t)energy[k] | !active[k],
                               rq_kv_peak((uint32_t)bits_of[k], factor[k]) | !active[k], log_g);
    }
    while (any) {
        any = false;
        for (int k = 0; k < LANES; k++) multiplier[k] = active[k] ? rq_kv_search_multiplier(&search[k]) : 0;
        path_gain(sample, vi_multipliers(multiplier), l, G, gain, bits);
        for (int k = 0; k < LANES; k++) {
            if (active[k]) active[k] = rq_kv_search_step(&search[k], gain[k]);
            any |= active[k];
        }
    }
    uint8_t keep[LANES];
    bool zeros = false;
    for (int k = 0; k < LANES; k++) {
        scale[k] = search[k].best;
        search[k].next = search[k].best;
        multiplier[k] = rq_kv_search_multiplier(&search[k]);
        keep[k] = search[k].best ? 255 : 0;
        zeros |= !search[k].best;
    }
    path_codes(sample, vi_multipliers(multiplier), l, G, codes, bits);
    for (uint32_t i = 0; zeros && i < G; i++)
        for (int k = 0; k < LANES; k++) codes[(size_t)i * RQ_PAGE_TOKENS + (size_t)k] &= keep[k];
    return n_bad;
}

uint64_t RQ_KV_ENCODE(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes, uint8_t *scale)
{
    lane_levels l;
    uint64_t n_bad = 0;
    for (int p = 0; p < 2; p++)
        for (int c = 0; c < 16; c++) l.of[p][c] = vlevel_of(row->level[p][c]);
    for (uint32_t t = 0; t < RQ_PAGE_TOKENS; t += LANES) switch (row->bits) {
        case 2:
            n_bad += encode_lanes(row, &l, x + t, G, codes + t, scale + t, 2);
            break;
        case 3:
            n_bad += encode_lanes(row, &l, x + t, G, codes + t, scale + t, 3);
            break;
        default:
            n_bad += encode_lanes(row, &l, x + t, G, codes + t, scale + t, 4);
            break;
        }
    return n_bad;
}
