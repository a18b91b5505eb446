// attend_tile.comp - prompts' attention (attend_tile.glsl) in plain arithmetic: queries in f32, sums in f32 of keys, values
// and weights in halves; an invocation has 4 rows x 2 keys, then 4 rows x 2 elements at a time.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
#include "attend_state.glsl"
#define PAIR uint
#define PADDING 1u
uint pair_of(vec2 x)
{
    return packHalf2x16(x);
}
uint pair_bits(uint x)
{
    return x;
}
#include "attend_tile.glsl"

vec2 sums[SUMS / 2u]; // of block i: rows 4 (b / pairs) .. + 3 of pair b % pairs, b = tid + i INVOCATIONS

void begin()
{
    [[unroll]] for (uint i = 0u; i < SUMS / 2u; i++) sums[i] = vec2(0.0);
}

float row_scale(uint row)
{
    return uintBitsToFloat(push.u[6]);
}

void scores(uint dk)
{
    for (uint b = gl_LocalInvocationID.x; b < ROWS / 4u * KEYS / 2u; b += INVOCATIONS) {
        uint key = b % (KEYS / 2u), row = b / (KEYS / 2u) * 4u;
        uint64_t q[4];
        float s[4][2];
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            q[r] = push.a[2] + 4ul * (head_of(row + r) * push.u[4] + token_of(row + r) * push.u[5]);
            s[r][0] = s[r][1] = 0.0;
        }
        for (uint i = 0u; i < dk / 4u; i++) {
            vec4 x = vec4(unpackHalf2x16(kv[key * STRIDE + 2u * i]), unpackHalf2x16(kv[key * STRIDE + 2u * i + 1u]));
            uint other = (key + KEYS / 2u) * STRIDE + 2u * i;
            vec4 y = vec4(unpackHalf2x16(kv[other]), unpackHalf2x16(kv[other + 1u]));
            [[unroll]] for (uint r = 0u; r < 4u; r++) {
                vec4 a = F32x4(q[r]).d[i];
                s[r][0] += dot(a, x);
                s[r][1] += dot(a, y);
            }
        }
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            score[(row + r) * KEYS + key] = s[r][0];
            score[(row + r) * KEYS + key + KEYS / 2u] = s[r][1];
        }
    }
}

void values(uint dv)
{
    uint pairs = dv / 2u;
    [[unroll]] for (uint i = 0u; i < SUMS / 8u; i++) {
        uint b = gl_LocalInvocationID.x + i * INVOCATIONS, e = b % pairs, row = b / pairs * 4u;
        if (row < ROWS) {
            [[unroll]] for (uint r = 0u; r < 4u; r++) sums[4u * i + r] *= faded[row + r];
            for (uint k = 0u; k < KEYS / 2u; k++) {
                vec2 x = unpackHalf2x16(kv[2u * k * STRIDE + e]), y = unpackHalf2x16(kv[(2u * k + 1u) * STRIDE + e]);
                [[unroll]] for (uint r = 0u; r < 4u; r++) { // what a row does not see may be no number
                    vec2 a = unpackHalf2x16(weight[(row + r) * (KEYS / 2u) + k]), s = sums[4u * i + r];
                    s = a.x == 0.0 ? s : s + a.x * x;
                    sums[4u * i + r] = a.y == 0.0 ? s : s + a.y * y;
                }
            }
        }
    }
}

void results(uint dv)
{
    uint pairs = dv / 2u;
    [[unroll]] for (uint i = 0u; i < SUMS / 8u; i++) {
        uint b = gl_LocalInvocationID.x + i * INVOCATIONS, e = b % pairs, row = b / pairs * 4u;
        [[unroll]] for (uint r = 0u; r < 4u; r++)
            if (row + r < n_rows) {
                vec2 y = sums[4u * i + r] * faded[row + r];
                F32 to = F32(push.a[3] + 4ul * ((token_of(row + r) * push.u[2] + head_of(row + r)) * dv + 2u * e));
                to.d[0] = y.x;
                to.d[1] = y.y;
            }
    }
}
#define BEGIN(dk) begin()
#define SCORES    scores(dk)
#define VALUES    values(dv)
#define RESULTS   results(dv)
#include "attend_tile_main.glsl"
