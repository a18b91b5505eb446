// common.glsl - what every shader shares: how arguments arrive, typed views of memory, half floats, the step.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_control_flow_attributes : require

layout(buffer_reference, scalar, buffer_reference_align = 1) buffer U8 { uint8_t d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer U16 { uint16_t d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer U32 { uint d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer I32 { int d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F32 { float d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer U64 { uint64_t d[]; };
// Sixteen bytes at once: of addresses that are multiples of 4, and of 16.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer V4 { uvec4 d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer V16 { uvec4 d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F32x4 { vec4 d[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer F32x4A { vec4 d[]; };

// The whole push block (128 bytes, what every device has): addresses and numbers; each shader names its own.
layout(push_constant, scalar) uniform Push
{
    uint64_t a[6];
    uint u[20];
} push;

// ---- the step (backends/step.h): offsets in words from its start ------------------------------------------
const uint STEP_N_TOKENS = 1, STEP_N_ROWS = 3, STEP_TOKEN_ID = 6, STEP_TOKEN_POS = 7, STEP_TOKEN_RUN = 8,
           STEP_TOKEN_SLOT = 9, STEP_RUNS = 17, STEP_WORK = 18, STEP_N_WORK = 26, STEP_ENCODES = 34, STEP_N_ENCODES = 42, STEP_ROWS = 50;
const uint RUN_WORDS = 8, WORK_WORDS = 8, ROW_WORDS = 2;

// ---- numbers ------------------------------------------------------------------------------------------------

// Half floats by integer arithmetic: what the built-in functions do with subnormal numbers and with ties is
// left to the driver.
float half_bits(uint h)
{
    uint sign = (h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 0x3ffu;
    if (e == 0u) {
        float v = float(m) * 5.9604644775390625e-8; // 2^-24
        return sign != 0u ? -v : v;
    }
    return uintBitsToFloat(sign | (e == 31u ? 0x7f800000u : e + 112u << 23) | m << 13);
}

uint to_half_bits(float x)
{
    uint b = floatBitsToUint(x), sign = b >> 16 & 0x8000u, a = b & 0x7fffffffu;
    if (a >= 0x47800000u) return sign | (a > 0x7f800000u ? 0x7e00u | a >> 13 & 0x3ffu : 0x7c00u);
    if (a < 0x38800000u) { // subnormal, or zero: a multiple of 2^-24
        if (a < 0x33000000u) return sign;
        uint shift = 126u - (a >> 23), m = a & 0x7fffffu | 0x800000u;
        uint q = m >> shift, rest = m & (1u << shift) - 1u, tie = 1u << shift - 1u;
        return sign | q + uint(rest > tie || rest == tie && (q & 1u) != 0u);
    }
    a += 0xfffu + (a >> 13 & 1u);
    return sign | (a >= 0x47800000u ? 0x7c00u : a - 0x38000000u >> 13);
}

uint to_bf16_bits(float x)
{
    uint b = floatBitsToUint(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return b >> 16 | 0x40u;
    return b + 0x7fffu + (b >> 16 & 1u) >> 16;
}
