#include "tools/synth/weights.h"

#include <math.h>
#include <string.h>

/* ---- random bits --------------------------------------------------------------------------------------- */

typedef struct random_bits {
    uint64_t s[4];
} random_bits;

/* SplitMix64 (Steele, Lea, Flood 2014): spreads one number into a state. */
static uint64_t split_mix(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256++ (Blackman, Vigna 2019) */
static uint64_t next(random_bits *r)
{
    uint64_t *s = r->s, out = rotl(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return out;
}

static random_bits start(uint64_t key, uint64_t row)
{
    uint64_t x = key ^ (row + 1) * 0xd1342543de82ef95u;
    random_bits r;
    for (int i = 0; i < 4; i++) r.s[i] = split_mix(&x);
    return r;
}

static void fill(random_bits *r, uint8_t *out, uint64_t n)
{
    uint64_t word;
    for (; n >= 8; n -= 8, out += 8) {
        word = next(r);
        memcpy(out, &word, 8);
    }
    word = next(r);
    memcpy(out, &word, n);
}

/* ---- block types --------------------------------------------------------------------------------------- */

/* Where a block type keeps its f16 scale, and how its fields are set around random codes. */
typedef struct layout {
    rq_type type;
    uint8_t scale_at; /* of the f16 scale */
    int8_t min_at;    /* of the f16 minimum or -1 */
    float min_ratio;  /* minimum / scale: such that uniform codes have mean zero */
} layout;

static const layout layouts[] = {
    {RQ_TYPE_Q4_0, 0, -1, 0},     {RQ_TYPE_Q4_1, 0, 2, -7.5f}, {RQ_TYPE_Q5_0, 0, -1, 0},
    {RQ_TYPE_Q5_1, 0, 2, -15.5f}, {RQ_TYPE_Q8_0, 0, -1, 0},    {RQ_TYPE_Q2_K, 80, 82, 1.5f},
    {RQ_TYPE_Q3_K, 108, -1, 0},   {RQ_TYPE_Q4_K, 0, 2, 7.5f},  {RQ_TYPE_Q5_K, 0, 2, 15.5f},
    {RQ_TYPE_Q6_K, 208, -1, 0},   {RQ_TYPE_IQ2_XXS, 0, -1, 0}, {RQ_TYPE_IQ2_XS, 0, -1, 0},
    {RQ_TYPE_IQ2_S, 0, -1, 0},    {RQ_TYPE_IQ3_XXS, 0, -1, 0}, {RQ_TYPE_IQ3_S, 0, -1, 0},
    {RQ_TYPE_IQ1_S, 0, -1, 0},    {RQ_TYPE_IQ4_NL, 0, -1, 0},  {RQ_TYPE_IQ4_XS, 0, -1, 0},
    {RQ_TYPE_TQ1_0, 52, -1, 0},   {RQ_TYPE_TQ2_0, 64, -1, 0},  {RQ_TYPE_Q1_0, 0, -1, 0},
    {RQ_TYPE_Q2_0, 0, -1, 0},     {RQ_TYPE_IQ1_M, 48, -1, 0},  {RQ_TYPE_MXFP4, 0, -1, 0},
    {RQ_TYPE_NVFP4, 0, -1, 0},
};

static const layout *layout_of(rq_type type)
{
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].type == type) return &layouts[i];
    return NULL;
}

static void put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* Sub-scales of Q4_K and Q5_K: eight pairs of 6 bits in 12 bytes, here with minimum scale = scale, 32..63. */
static void set_k_scales(uint8_t *s)
{
    for (int j = 0; j < 4; j++) {
        uint8_t low = (s[j] & 31) | 32, high = (s[j + 4] & 31) | 32; /* of sub-blocks j and j + 4 */
        s[j] = s[j + 4] = (uint8_t)(low | (high >> 4) << 6);
        s[j + 8] = (uint8_t)((high & 15) | (high & 15) << 4);
    }
}

/* Turns a block of random bytes into a valid one. The random bytes of the scale field choose its scale. */
static void dress(const synth_source *source, const layout *l, uint8_t *b)
{
    uint16_t scale = source->scales[b[l->scale_at] & 63];
    switch (l->type) {
    case RQ_TYPE_MXFP4:
        b[0] = (uint8_t)scale;
        return;
    case RQ_TYPE_NVFP4:
        for (int i = 0; i < 4; i++) b[i] = (uint8_t)source->scales[b[i] & 63];
        return;
    case RQ_TYPE_IQ1_M: /* the scale's nibbles are the upper ones of four u16 */
        for (int i = 0; i < 4; i++)
            b[49 + 2 * i] = (uint8_t)((b[49 + 2 * i] & 15) | (scale >> (4 * i) & 15) << 4);
        return;
    case RQ_TYPE_Q2_K:
        for (int i = 0; i < 16; i++) b[i] = (uint8_t)(((b[i] & 15) | 8) * 17);
        break;
    case RQ_TYPE_Q4_K:
    case RQ_TYPE_Q5_K:
        set_k_scales(b + 4);
        break;
    default:
        break;
    }
    put_u16(b + l->scale_at, scale);
    if (l->min_at >= 0) put_u16(b + l->min_at, rq_f32_to_f16(rq_f16_to_f32(scale) * l->min_ratio));
}

static void dress_row(const synth_source *source, uint8_t *row)
{
    const layout *l = layout_of(source->type);
    uint32_t step = rq_type_get(source->type)->block_bytes;
    for (uint64_t at = 0; at < source->row_bytes; at += step) dress(source, l, row + at);
}

/* Root mean square of values decoded from random blocks with the scales that are set now. */
static double measure_rms(const synth_source *source)
{
    const rq_type_info *info = rq_type_get(source->type);
    synth_source sample = *source;
    uint8_t row[8 * 256];
    float values[2048];
    uint32_t blocks = (uint32_t)(sizeof row / 2) / info->block_bytes;
    if (blocks * info->block_elems > 2048) blocks = 2048 / info->block_elems;
    sample.row_bytes = blocks * info->block_bytes;
    double sum = 0, n = 0;
    for (uint64_t r = 0; r < 64; r++) {
        random_bits bits =
            start(12345, r); /* the same sample for every tensor: the scale depends on std only */
        fill(&bits, row, sample.row_bytes);
        dress_row(&sample, row);
        info->dequantize(row, values, blocks * info->block_elems);
        for (uint32_t i = 0; i < blocks * info->block_elems; i++)
            sum += (double)values[i] * (double)values[i];
        n += blocks * info->block_elems;
    }
    return sqrt(sum / n);
}

/* Fills the 64 scales with two neighbouring byte codes, mixed such that the mean square is `square`.
 * value(code) must grow with the code. */
static void mix_codes(synth_source *source, double (*value)(int), int lowest, int highest, double square)
{
    int code = lowest;
    while (code + 1 < highest && value(code + 1) * value(code + 1) <= square) code++;
    double below = value(code) * value(code), above = value(code + 1) * value(code + 1);
    double share = (square - below) / (above - below);
    for (int i = 0; i < 64; i++) source->scales[i] = (uint16_t)(i < share * 64 ? code + 1 : code);
}

static double mxfp4_scale(int code) /* with the doubled code table */
{
    return ldexp(1, code - 128);
}

static double nvfp4_scale(int code) /* UE4M3, halved because the code table is doubled */
{
    int e = code >> 3, m = code & 7;
    return (e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m, -9)) / 2;
}

static void set_scales(synth_source *source, double wanted)
{
    if (source->type == RQ_TYPE_MXFP4 || source->type == RQ_TYPE_NVFP4) {
        bool mx = source->type == RQ_TYPE_MXFP4;
        for (int i = 0; i < 64; i++) source->scales[i] = mx ? 128 : 64; /* value 1 in both */
        double ratio = wanted / measure_rms(source);
        mix_codes(source, mx ? mxfp4_scale : nvfp4_scale, 1, mx ? 254 : 126, ratio * ratio);
        return;
    }
    /* 32 sizes from 0.75 to 1.25, each with both signs: codes need not be symmetric for the mean to vanish.
     */
    double square = 0;
    for (int i = 0; i < 32; i++) square += (0.75 + i / 62.0) * (0.75 + i / 62.0) / 32;
    for (int i = 0; i < 64; i++) source->scales[i] = rq_f32_to_f16(i & 1 ? 1.0f : -1.0f);
    double unit = wanted / measure_rms(source) / sqrt(square);
    for (int i = 0; i < 64; i++) {
        double size = (0.75 + (i >> 1) / 62.0) * unit;
        source->scales[i] = rq_f32_to_f16((float)(i & 1 ? size : -size));
    }
}

/* ---- plain types --------------------------------------------------------------------------------------- */

/* About the standard normal distribution: a sum of four uniform 16-bit numbers, exactly scaled to variance 1
 * (each has variance (65536^2 - 1) / 12). */
static float normal(uint64_t bits)
{
    int32_t sum = (int32_t)(bits & 0xffff) + (int32_t)(bits >> 16 & 0xffff) + (int32_t)(bits >> 32 & 0xffff) +
                  (int32_t)(bits >> 48);
    return (float)(sum - 131070) * 2.6428912e-5f; /* sqrt(12 / 4) / 65536 */
}

static void plain_row(const synth_source *source, random_bits *r, uint8_t *out)
{
    for (uint64_t i = 0; i < source->row_elems; i++) {
        float v = source->mean + source->std * normal(next(r));
        if (source->type == RQ_TYPE_F16)
            put_u16(out + 2 * i, rq_f32_to_f16(v));
        else if (source->type == RQ_TYPE_BF16)
            put_u16(out + 2 * i, rq_f32_to_bf16(v));
        else
            memcpy(out + 4 * i, &v, 4);
    }
}

static bool is_plain(rq_type type)
{
    return type == RQ_TYPE_F32 || type == RQ_TYPE_F16 || type == RQ_TYPE_BF16;
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

bool synth_can_make(rq_type type)
{
    return is_plain(type) || (layout_of(type) && rq_type_get(type)->dequantize);
}

bool synth_source_init(synth_source *source, const synth_tensor *tensor, uint64_t seed)
{
    if (!synth_can_make(tensor->type)) return false;
    *source = (synth_source){.type = tensor->type,
                             .row_elems = tensor->ne[0],
                             .row_bytes = rq_row_bytes(tensor->type, tensor->ne[0]),
                             .mean = (float)tensor->mean,
                             .std = (float)tensor->std};
    uint64_t key =
        0xcbf29ce484222325u ^ seed; /* FNV-1a over the name, from a start that depends on the seed */
    for (const char *c = tensor->name; *c; c++) key = (key ^ (uint8_t)*c) * 0x100000001b3u;
    source->key = split_mix(&key);
    if (!is_plain(tensor->type)) set_scales(source, tensor->std);
    return true;
}

void synth_source_row(const synth_source *source, uint64_t row, void *out)
{
    random_bits r = start(source->key, row);
    if (is_plain(source->type)) {
        plain_row(source, &r, out);
        return;
    }
    fill(&r, out, source->row_bytes);
    dress_row(source, out);
}
