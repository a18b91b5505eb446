/* kv_codec_neon.c - the encoder of codec rows, four tokens per register (aarch64). */
#ifdef RQ_SIMDE /* tests on other machines */
#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/arm/neon.h>
#pragma GCC diagnostic pop
#include <math.h>

static inline int32x4_t vcvtnq_s32_f32(float32x4_t v) /* SIMDe 0.7.4 has none */
{
    return (int32x4_t){(int)lrintf(v[0]), (int)lrintf(v[1]), (int)lrintf(v[2]), (int)lrintf(v[3])};
}
#else
#include <arm_neon.h>
#endif

#include "backends/formats/kv_codec_impl.h"

enum { LANES = 4 };
typedef int32x4_t vi;

typedef struct vlevel {
    int32x4_t eight_squares, minus_two;
} vlevel;

#define vi_set(a)             vdupq_n_s32(a)
#define vi_store(p, a)        vst1q_s32(p, a)
#define vi_add(a, b)          vaddq_s32(a, b)
#define vi_or(a, b)           vorrq_s32(a, b)
#define vi_min(a, b)          vminq_s32(a, b)
#define vi_shift_left4(a)     vshlq_n_s32(a, 4)
#define vi_shift_right4(a)    vshrq_n_s32(a, 4)
#define vi_low4(a)            vandq_s32(a, vdupq_n_s32(15))
#define vi_cost(y, l)         vmlaq_s32((l).eight_squares, y, (l).minus_two)
#define vi_pick(from, a, b)   vbslq_s32(vcgtzq_s32(from), b, a)
#define vi_from(a, b)         vandq_s32(vreinterpretq_s32_u32(vcgtq_s32(a, b)), vdupq_n_s32(16))
#define vi_trace(word, state) vshlq_s32(word, vmulq_n_s32(state, -8)) /* words are below 2^16 */
#define vi_state(w)           vandq_s32(vshrq_n_s32(w, 4), vdupq_n_s32(1))

static inline vi vi_clean(const float *p, uint64_t *n_bad)
{
    uint32x4_t v = vreinterpretq_u32_f32(vld1q_f32(p));
    uint32x4_t good = vcltq_u32(vandq_u32(v, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x7f800000));
    *n_bad += 4u - vaddvq_u32(vshrq_n_u32(good, 31));
    return vreinterpretq_s32_u32(vandq_u32(v, good));
}

static inline vi vi_max_magnitude(vi m, vi v)
{
    return vmaxq_s32(m, vandq_s32(v, vdupq_n_s32(0x7fffffff)));
}

static inline vi vi_sample(vi v, const float *factor)
{
    return vcvtnq_s32_f32(vmulq_f32(vreinterpretq_f32_s32(v), vld1q_f32(factor)));
}

static inline vi vi_add_square(vi sum, vi x)
{
    return vmlaq_s32(sum, x, x);
}

static inline vi vi_multipliers(const int32_t *p)
{
    return vld1q_s32(p);
}

static inline vi vi_scaled(vi x, vi m)
{
    return vshrq_n_s32(vmlaq_s32(vdupq_n_s32(2048), x, m), 12);
}

static inline vlevel vlevel_of(int l)
{
    return (vlevel){vdupq_n_s32(8 * l * l), vdupq_n_s32(-2 * l)};
}

static inline void vi_store_codes(uint8_t *p, vi w)
{
    uint16x4_t narrow = vmovn_u32(vreinterpretq_u32_s32(vi_low4(w)));
    uint8x8_t bytes = vmovn_u16(vcombine_u16(narrow, narrow));
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    __builtin_memcpy(p, &four, 4);
}

#define RQ_KV_ENCODE rq_kv_encode_neon
#include "backends/formats/kv_codec_simd.h"
