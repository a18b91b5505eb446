// matvec.comp - y[o, t] = sum_i w[i, o] x[i, t] for up to eight tokens; every weight is read and unpacked once.
// A workgroup is 64 / LANES teams of LANES invocations; a team makes ROWS neighbouring outputs of COLS tokens. An
// invocation sums every LANES-th chunk (of eight elements, or of 32 codes: weights.glsl), then the sums of the team are
// added pairwise, neighbours first: an order that depends on the length of the row alone, not on COLS or on the
// width of a subgroup. By expert: z is the (token, slot) pair, COLS is 1.
//   USE_SUBGROUP  adds inside subgroups by shuffles, which are whole and of at most 64 invocations
//   USE_DOT       x comes as bytes (quantize.comp) and meets codes in integer dot products; block types
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define WEIGHT_TYPE_ID 0
#include "weights.glsl"
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#ifdef USE_DOT
#include "dot.glsl"
#endif
layout(local_size_x = 64) in;
layout(constant_id = 1) const uint COLS = 1u;
layout(constant_id = 2) const uint EXPERTS = 0u;
layout(constant_id = 3) const uint ROWS = 2u;
layout(constant_id = 4) const uint X_ALIGN = 4u; // what divides the address of every row of x: 16 or 4
// a: w, tables, x, y, step, ids; u: n_in, n_out, row bytes of w, stride of x in floats (USE_DOT: rows of x), of y, by
// expert: k, n_expert, bytes from one expert to the next (low, high), has x a row for each slot, stride of these rows;
// [11] LANES. With USE_DOT a[2] is what quantize.comp wrote, for each token or (token, slot).

#ifdef USE_SUBGROUP
shared float sums[16u * ROWS * COLS]; // subgroups have four invocations or more
#else
shared float sums[64u * ROWS * COLS];
#endif

void main()
{
#ifdef USE_SUBGROUP
    uint tid = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#else
    uint tid = gl_LocalInvocationID.x;
#endif
    uint n_in = push.u[0], n_out = push.u[1], lanes = push.u[11], lane = tid & lanes - 1u, team = tid / lanes;
    uint64_t w = push.a[0], y = push.a[3];
    uint x_row = 0u;
    uint64_t x = push.a[2];
    if (EXPERTS != 0u) {
        uint pair = gl_WorkGroupID.z, k = push.u[5], t = pair / k;
        if (t >= U32(push.a[4]).d[STEP_N_TOKENS]) return;
        uint expert = U32(push.a[5]).d[pair];
        if (expert >= push.u[6]) return;
        w += uint64_t(expert) * (uint64_t(push.u[8]) << 32 | push.u[7]);
        x_row = push.u[9] != 0u ? pair : t;
#ifndef USE_DOT
        x += 4ul * (uint64_t(t) * push.u[3] + (push.u[9] != 0u ? pair % k * push.u[10] : 0u));
#endif
        y += 4ul * uint64_t(pair) * n_out;
    }
    if (HAS_LEVELS) {
        pairs_fill(push.a[1], tid, 64u);
        barrier();
    }
    float acc[ROWS][COLS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        [[unroll]] for (uint c = 0u; c < COLS; c++) acc[r][c] = 0.0;
    uint first = ((gl_WorkGroupID.x + gl_WorkGroupID.y * 32768u) * (64u / lanes) + team) * ROWS;
    uint64_t row[ROWS]; // rows that are none repeat the last
    [[unroll]] for (uint r = 0u; r < ROWS; r++) row[r] = w + uint64_t(min(first + r, n_out - 1u)) * push.u[2];
#ifndef USE_DOT
    if (IS_FLOAT) {
        for (uint e = 8u * lane; e < n_in; e += 8u * lanes) {
            float v[ROWS][8];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) floats8(row[r], e, n_in, v[r]);
            [[unroll]] for (uint c = 0u; c < COLS; c++) {
                uint64_t at = x + 4ul * (c * push.u[3] + e);
                float a[8];
                if (X_ALIGN >= 16u && e + 8u <= n_in) {
                    vec4 lo = F32x4A(at).d[0], hi = F32x4A(at).d[1];
                    [[unroll]] for (uint i = 0u; i < 8u; i++) a[i] = i < 4u ? lo[i] : hi[i - 4u];
                } else {
                    [[unroll]] for (uint i = 0u; i < 8u; i++) a[i] = e + i < n_in ? F32(at).d[i] : 0.0;
                }
                [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                    precise float s = acc[r][c];
                    [[unroll]] for (uint i = 0u; i < 8u; i++) s = fma(v[r][i], a[i], s);
                    acc[r][c] = s;
                }
            }
        }
    } else
#endif
    {
        uint per = chunks_per_block();
        for (uint j = lane; j < n_in / 32u; j += lanes) {
            uint64_t block[ROWS];
            uint c0 = j % per;
            Raw raw[ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                block[r] = row[r] + uint64_t(j / per * block_bytes());
                raw[r] = raw_of(block[r], c0);
            }
            [[unroll]] for (uint h = 0u; h < 2u; h++) {
                uint e = j / per * block_elems() + half_at(c0, h);
#ifdef USE_DOT
                uvec4 q[ROWS];
                float scale[ROWS], low[ROWS];
                [[unroll]] for (uint r = 0u; r < ROWS; r++)
                    half_of(raw[r], block[r], push.a[1], c0, h, q[r], scale[r], low[r]);
                [[unroll]] for (uint c = 0u; c < COLS; c++) {
                    uvec4 a;
                    vec2 d;
                    quantized16(x, push.u[3], n_in, x_row + c, e / 16u, a, d);
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                        precise float s = fma(scale[r] * d.x, float(dot16(q[r], a)), acc[r][c]);
                        if (HAS_LOW) s = fma(-low[r], d.y, s);
                        acc[r][c] = s;
                    }
                }
#else
                float v[ROWS][16];
                [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                    uvec4 q;
                    float scale, low;
                    half_of(raw[r], block[r], push.a[1], c0, h, q, scale, low);
                    widen(q, scale, low, v[r]);
                }
                [[unroll]] for (uint c = 0u; c < COLS; c++) {
                    uint64_t at = x + 4ul * (c * push.u[3] + e);
                    vec4 a[4];
                    [[unroll]] for (uint i = 0u; i < 4u; i++) a[i] = X_ALIGN >= 16u ? F32x4A(at).d[i] : F32x4(at).d[i];
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                        precise float s = acc[r][c];
                        [[unroll]] for (uint i = 0u; i < 16u; i++) s = fma(v[r][i], a[i / 4u][i % 4u], s);
                        acc[r][c] = s;
                    }
                }
#endif
            }
        }
    }
    // n_sums of the team's lanes are left in shared memory for each output
#ifdef USE_SUBGROUP
    uint width = min(gl_SubgroupSize, lanes), n_sums = lanes / width;
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        [[unroll]] for (uint c = 0u; c < COLS; c++) {
            precise float s = acc[r][c];
            [[unroll]] for (uint m = 1u; m < 64u; m *= 2u)
                if (m < width) s += subgroupShuffleXor(s, m);
            if (lane % width == 0u) sums[(r * COLS + c) * 16u + tid / width] = s;
        }
    const uint stride = 16u;
#else
    uint n_sums = lanes;
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        [[unroll]] for (uint c = 0u; c < COLS; c++) sums[(r * COLS + c) * 64u + tid] = acc[r][c];
    const uint stride = 64u;
#endif
    barrier();
    // invocation: one output of one team after another; partial sums pairwise, as they come
    uint teams = 64u / lanes;
    for (uint o = tid; o < ROWS * COLS * teams; o += 64u) {
        uint of = o / teams, at = o % teams, r = of / COLS, c = of % COLS;
        uint out_row = ((gl_WorkGroupID.x + gl_WorkGroupID.y * 32768u) * teams + at) * ROWS + r;
        float level[7]; // level[i]: a sum of 2^i neighbours that waits for the next one
        precise float s = 0.0;
        for (uint i = 0u; i < n_sums; i++) {
            s = sums[of * stride + at * n_sums + i];
            [[unroll]] for (uint l = 0u; l < 6u; l++) {
                if ((i >> l & 1u) == 0u) {
                    level[l] = s;
                    break;
                }
                s = level[l] + s;
            }
        }
        if (out_row < n_out) F32(y).d[c * push.u[4] + out_row] = s;
    }
}
