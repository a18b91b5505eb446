/* kv_codec.c - the codec rows and the numbers of the encoding rule; which encoder goes with which machine. */
#include "backends/formats/kv_codec.h"

#include <string.h>

#include "backends/formats/kv_codec_impl.h"

/* Levels of two-state trellises and the start of the scale search, trained on normal values by
 * tools/kv-levels.
 *
 * Gains: decoded rows are too short by the factor 1 - error. For keys that flattens the attention, so their
 * gain undoes it (1 / (1 - error) for normal values); of values, whose errors average out where the attention
 * is wide and not where it is sharp, it undoes half (the root). On the built-in model these lowered the KL
 * from f16 by 11, 31 and 61 % at 4, 3 and 2 bits (rqvk-ppl). */
static const rq_kv_codec rows[] = {
    {.bits = 2,
     .level = {{-65, -3, 52, 127}, {-127, -52, 3, 65}},
     .unit = 0x1p-6f,
     .base = -17,
     .slope = 11,
     .offset = -66,
     .gain_k = 1.106f,
     .gain_v = 1.0516f},
    {.bits = 3,
     .level = {{-90, -50, -23, 0, 22, 45, 72, 127}, {-127, -72, -45, -22, 0, 23, 50, 90}},
     .unit = 0x1p-6f,
     .base = 151,
     .slope = 25,
     .offset = -32,
     .gain_k = 1.0242f,
     .gain_v = 1.0120f},
    {.bits = 4,
     .level = {{-106, -79, -60, -45, -32, -21, -10, 0, 11, 21, 32, 43, 55, 71, 92, 127},
               {-127, -92, -71, -55, -43, -32, -21, -11, 0, 10, 21, 32, 45, 60, 79, 106}},
     .unit = 0x1p-6f,
     .base = 215,
     .slope = 27,
     .offset = 17,
     .gain_k = 1.0058f,
     .gain_v = 1.0029f},
};

const rq_kv_codec *rq_kv_codec_of(rq_kv_form form)
{
    return form >= RQ_KV_C2 && form <= RQ_KV_C4 ? &rows[form - RQ_KV_C2] : NULL;
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
    return rq_kv_log2_of(n);
}

int32_t rq_kv_multiplier(int32_t n)
{
    return rq_kv_multiplier_of(n);
}

uint64_t rq_kv_score(int32_t gain, uint32_t j)
{
    return rq_kv_score_of(gain, j);
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
