/* kv_codec.h - the codes of the compressed cache: tables, encoders, packing, plain decoding.
 *
 * A codec row: k bits, two tables of 2^k int8 levels, a scale of one byte for each group of elements.
 *   value = rq_kv_scale(row, e) * level[b][code]    rq_kv_scale = 2^((e - 128) / 16) * unit, e = 0: zeros
 * b is the low bit of the predecessor's code in the order of cache.h ("trellis order"), 0 for the first of a
 * group; level[1][c] = -level[0][~c]. A row with level[1] = level[0] is a scalar codec.
 *
 * The encoder is integer arithmetic, so that every implementation writes the same bytes for the same input
 * bits. Per row (token) and group of G elements:
 *   1. An element that is not finite counts as 0 (and is counted). E is the exponent of the largest one:
 *      max |x| < 2^E, at least -24. x_i = round half even (x * 2^(11 - E)), so |x_i| <= 2048.
 *   2. base = (log(sum x_i^2) - log(G) + row->base) >> 5, the scale that fits the group's power, and
 *      above = ((log(max |x_i|) - 245) >> 4) - base, how far above it level 127 would meet the largest
 *      element, both in codes; log = rq_kv_log2, in 1/256 octaves. The search starts around
 *      centre = 16 E - 48 + base + ((row->slope * above + row->offset) >> 5).
 *      Candidates for e, each clamped to [1, 255]: first = centre - stride, and two more at distances
 *      `stride` above it, or three more if stride > 2; stride = 2 for above <= 10, 4 for above <= 18, else 8.
 *      Then, while stride > 1, stride is halved and best - stride and best + stride are tried, best being the
 *      candidate with the best score so far (first, clamped, if none scored). (Where few large elements
 *      rule, the best scale lies far above the one that fits the power: a search around that one alone has
 *      ten times the error.)
 *   3. For a candidate: n = e - 96 - 16 E, at least -47; y_i = (x_i * rq_kv_multiplier(n) + 2048) >> 12,
 *      which is 8 x / (scale of e) in units of a level.
 *   4. The path of codes c_i that minimises sum 8 L_i^2 - 2 y_i L_i = sum (y_i - 8 L_i)^2 / 8 - const:
 *      Viterbi over the two values of the last low bit. Of equal costs: the lower predecessor bit, the lower
 *      code, the lower final bit. `gain` is minus that minimum.
 *   5. score = gain * 2^((e - w) / 8) as integer (rq_kv_score), w = first clamped to [1, 255], minus 16: the
 *      squared error in units of x, up to sign and a constant. The candidate with the largest score is taken,
 *      of equal ones the one tried first. If no score is positive: e = 0 and all codes 0.
 * All sums fit 32 bits for G up to RQ_KV_MAX_GROUP (|y_i| <= 15,690, |L| <= 127: 8 L^2 + 2 |y L| < 4.2e6);
 * the weighted gains of step 5 need 64. */
#ifndef RQ_KV_CODEC_H
#define RQ_KV_CODEC_H

#include "backends/cache.h"

#include <stddef.h>

enum { RQ_KV_MAX_GROUP = 120, RQ_KV_MAX_DIM = 512 };

typedef struct rq_kv_codec {
    uint32_t bits;
    int8_t level[2][16];   /* [predecessor's low bit][code] */
    float unit;            /* of a level at e = 128 */
    int32_t base;          /* where the search of the scale starts, in 1/512 octaves */
    float gain_k;          /* attention multiplies scores of coded K with gain_k, and what coded V adds */
    float gain_v;          /* to the output with gain_v; 1 .. 1 / (1 - error) */
    int32_t slope, offset; /* of the search's start over `above`, in 1/32 codes */
} rq_kv_codec;

/* The row behind C2, C3 or C4; NULL for other forms (C42 has one for each span). */
const rq_kv_codec *rq_kv_codec_of(rq_kv_form form);

/* ---- encoders of codec rows -----------------------------------------------------------------------------
 * */

/* 64 rows side by side: x [G][64] (lane = token), finite or not -> codes [G][64] in element order, scale
 * [64]. G is a multiple of 8 from 8 to RQ_KV_MAX_GROUP. Returns how many inputs were not finite. */
typedef uint64_t (*rq_kv_encode_fn)(const rq_kv_codec *row, const float *x, uint32_t G, uint8_t *codes,
                                    uint8_t *scale);

typedef struct rq_kv_encoder {
    const char *name; /* "scalar", "avx2", "avx512", "neon" */
    rq_kv_encode_fn encode;
} rq_kv_encoder;

/* As with rq_cpu_isa: the fastest that this machine runs, one by name (NULL: not in this build, not on this
 * machine, or no such name), the i-th slowest first; and what the machine has, whatever the build contains.
 * */
const rq_kv_encoder *rq_kv_encoder_best(void);
const rq_kv_encoder *rq_kv_encoder_by_name(const char *name);
const rq_kv_encoder *rq_kv_encoder_at(size_t i);
bool rq_kv_machine_runs(const char *name);

/* ---- whole blocks: K or V of one head of one page, any coded form
 * ---------------------------------------- */

/* x [d][64], element-major, as in an exact K page: token t of element i is x[64 i + t]. Writes the words and
 * the scales as cache.h lays them out (all bytes of rq_coded_layout's k_bytes + k_scale_bytes, or V's).
 * `form` is neither SAME nor TRIP. Returns how many inputs were not finite (they count as 0). `encoder`
 * NULL: the best. */
uint64_t rq_kv_encode_block(const rq_kv_encoder *encoder, rq_kv_form form, bool is_v, uint32_t d,
                            const float *x, uint32_t *words, void *scales);

/* The integers of a block, [d][64]: levels of codec rows, q of Q8_0, code - 8 of Q4_0. */
void rq_kv_unpack_levels(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, int8_t *levels);

/* The float that the integers of group i of token t are multiplied with (gains not included), in a form of one
 * span. */
float rq_kv_block_scale(rq_kv_form form, const void *scales, uint32_t group, uint32_t token);

/* Plain decode, the reference: x [d][64]. */
void rq_kv_decode_block(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, const void *scales,
                        float *x);

/* The steps of the above. Codes [d][64] <-> words (Q8_0: the code is the byte). */
void rq_kv_pack(rq_kv_form form, bool is_v, uint32_t d, const uint8_t *codes, uint32_t *words);
void rq_kv_unpack(rq_kv_form form, bool is_v, uint32_t d, const uint32_t *words, uint8_t *codes);
/* Levels [G][64] of one group from its codes. */
void rq_kv_levels(const rq_kv_codec *row, uint32_t G, const uint8_t *codes, int8_t *levels);
/* n <= 32 elements of 64 tokens, x [n][64] -> codes [n][64] and f16 scales: q8_0 (scale = max / 127, code =
 * q) and q4_0 (scale = the element of largest magnitude / -8, code = q + 8), q = x / scale to the nearest,
 * ties to even. */
uint64_t rq_kv_encode_q8_0(const float *x, uint32_t n, uint8_t *codes, uint16_t *scale);
uint64_t rq_kv_encode_q4_0(const float *x, uint32_t n, uint8_t *codes, uint16_t *scale);

/* ---- the numbers of the rule (implementations share them)
 * ------------------------------------------------ */

/* 2^((e - 128) / 16) * unit, 0 for e = 0; the same bits everywhere. */
float rq_kv_scale(const rq_kv_codec *row, uint8_t e);
/* 256 log2(n), rounded to the nearest by table, n >= 1. */
int32_t rq_kv_log2(uint32_t n);
/* 2^(12 - n / 16), rounded, n >= -47. */
int32_t rq_kv_multiplier(int32_t n);
/* gain * 2^(15 + j / 8), the power rounded for j mod 8; 0 for a gain that is not positive. 0 <= j < 128. */
uint64_t rq_kv_score(int32_t gain, uint32_t j);

/* Element at step i of the trellis order of a group of G. */
static inline uint32_t rq_kv_step_element(uint32_t G, uint32_t i)
{
    uint32_t w = G / 8;
    return 8 * (i % w) + i / w;
}

#endif
