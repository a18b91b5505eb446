/* kv_codec.c - the codec rows and the numbers of the encoding rule; which encoder goes with which machine. */
#include "backends/formats/kv_codec.h"

#include <string.h>

#include "backends/formats/kv_codec_impl.h"

/* Levels of two-state trellises, trained on normal values by tools/kv-levels. */
static const rq_kv_codec rows[] = {
    {2, {{-64, -3, 51, 127}, {-127, -51, 3, 64}}, 0x1p-6f, 19, 1.0f, 1.0f},
    {3,
     {{-90, -51, -24, -1, 22, 45, 73, 127}, {-127, -73, -45, -22, 1, 24, 51, 90}},
     0x1p-6f,
     183,
     1.0f,
     1.0f},
    {4,
     {{-105, -77, -58, -44, -32, -21, -10, 0, 11, 21, 32, 43, 55, 69, 90, 127},
      {-127, -90, -69, -55, -43, -32, -21, -11, 0, 10, 21, 32, 44, 58, 77, 105}},
     0x1p-6f,
     259,
     1.0f,
     1.0f},
};

const rq_kv_codec *rq_kv_codec_of(rq_kv_form form)
{
    return rq_kv_form_is_code(form) ? &rows[form - RQ_KV_C2] : NULL;
}

/* ---- the numbers of the rule
 * ----------------------------------------------------------------------------- */

/* 2^(m / 16), rounded to float. */
static const float sixteenths[16] = {
    0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fe0p+0f, 0x1.3dea64p+0f,
    0x1.4bfdaep+0f, 0x1.5ab07ep+0f, 0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
    0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
};

float rq_kv_scale(const rq_kv_codec *row, uint8_t e)
{
    if (e == 0) return 0.0f;
    static const float octaves[16] = {0x1p-8f, 0x1p-7f, 0x1p-6f, 0x1p-5f, 0x1p-4f, 0x1p-3f, 0x1p-2f, 0x1p-1f,
                                      0x1p0f,  0x1p1f,  0x1p2f,  0x1p3f,  0x1p4f,  0x1p5f,  0x1p6f,  0x1p7f};
    return sixteenths[e & 15] * octaves[e >> 4] * row->unit;
}

int32_t rq_kv_log2(uint32_t n)
{
    /* 256 log2(1 + (i + 1/2) / 128) */
    static const uint8_t fraction[128] = {
        1,   4,   7,   10,  13,  16,  18,  21,  24,  26,  29,  32,  34,  37,  40,  42,  45,  47,  50,
        52,  55,  57,  60,  62,  65,  67,  69,  72,  74,  77,  79,  81,  84,  86,  88,  90,  93,  95,
        97,  99,  102, 104, 106, 108, 110, 112, 114, 117, 119, 121, 123, 125, 127, 129, 131, 133, 135,
        137, 139, 141, 143, 145, 147, 149, 151, 153, 155, 156, 158, 160, 162, 164, 166, 168, 169, 171,
        173, 175, 177, 178, 180, 182, 184, 185, 187, 189, 191, 192, 194, 196, 198, 199, 201, 203, 204,
        206, 208, 209, 211, 212, 214, 216, 217, 219, 220, 222, 224, 225, 227, 228, 230, 231, 233, 234,
        236, 238, 239, 241, 242, 244, 245, 247, 248, 249, 251, 252, 254, 255,
    };
    int top = 31 - __builtin_clz(n);
    return top * 256 + fraction[n << (31 - top) >> 24 & 127];
}

int32_t rq_kv_multiplier(int32_t n)
{
    /* 2^(15 - m / 16) */
    static const uint16_t mantissa[16] = {32768, 31379, 30048, 28774, 27554, 26386, 25268, 24196,
                                          23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109};
    int32_t shift = (n + 48) / 16; /* n >= -47: the quotient is floor(n / 16) + 3 */
    return shift > 17 ? 0 : (mantissa[n & 15] + (1 << shift >> 1)) >> shift;
}

uint64_t rq_kv_score(int32_t gain, uint32_t j)
{
    static const uint16_t mantissa[8] = {32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097};
    return gain > 0 ? (uint64_t)gain * mantissa[j & 7] << (j >> 3) : 0;
}

/* ---- which encoder
 * --------------------------------------------------------------------------------------- */

static bool runs_always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool runs_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static bool runs_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}
#endif

static const struct {
    rq_kv_encoder encoder;
    bool (*runs)(void);
} built[] = {
    {{"scalar", rq_kv_encode_scalar}, runs_always},
#if defined(__x86_64__)
    {{"avx2", rq_kv_encode_avx2}, runs_avx2},
    {{"avx512", rq_kv_encode_avx512}, runs_avx512},
#elif defined(__aarch64__)
    {{"neon", rq_kv_encode_neon}, runs_always},
#endif
};

enum { N_BUILT = sizeof built / sizeof built[0] };

const rq_kv_encoder *rq_kv_encoder_at(size_t i)
{
    for (size_t j = 0; j < N_BUILT; j++)
        if (built[j].runs() && i-- == 0) return &built[j].encoder;
    return NULL;
}

const rq_kv_encoder *rq_kv_encoder_best(void)
{
    for (size_t j = N_BUILT; j-- > 1;)
        if (built[j].runs()) return &built[j].encoder;
    return &built[0].encoder;
}

const rq_kv_encoder *rq_kv_encoder_by_name(const char *name)
{
    for (size_t j = 0; name && j < N_BUILT; j++)
        if (strcmp(built[j].encoder.name, name) == 0) return built[j].runs() ? &built[j].encoder : NULL;
    return NULL;
}

bool rq_kv_machine_runs(const char *name)
{
    if (strcmp(name, "scalar") == 0) return true;
#if defined(__x86_64__)
    if (strcmp(name, "avx2") == 0) return runs_avx2();
    if (strcmp(name, "avx512") == 0) return runs_avx512();
#elif defined(__aarch64__)
    if (strcmp(name, "neon") == 0) return true;
#endif
    return false;
}
