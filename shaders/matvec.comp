// matvec.comp - y[o, t] = sum_i w[i, o] x[i, t] for up to eight tokens; every weight is read once.
// A workgroup makes ROWS neighbouring outputs of COLS tokens. Each invocation sums every 64th chunk of eight
// elements, then the 64 sums are added in a fixed tree: the order does not depend on COLS or the subgroup.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define WEIGHT_TYPE_ID 0
#include "weights.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 1) const uint COLS = 1u;
layout(constant_id = 2) const uint EXPERTS = 0u; // by-expert: z is the (token, slot) pair, COLS is 1
const uint ROWS = 2u;
shared float sums[64];
// a: w, tables, x, y, step, ids; u: n_in, n_out, row bytes of w, stride of x in floats, of y, by expert: k, n_expert,
// bytes from one expert to the next (low, high), has x a row for each slot, stride of these rows
void main()
{
    uint tid = gl_LocalInvocationID.x, n_in = push.u[0], n_out = push.u[1];
    uint64_t w = push.a[0], x = push.a[2], y = push.a[3];
    if (EXPERTS != 0u) {
        uint pair = gl_WorkGroupID.z, k = push.u[5], t = pair / k;
        if (t >= U32(push.a[4]).d[STEP_N_TOKENS]) return;
        uint expert = U32(push.a[5]).d[pair];
        if (expert >= push.u[6]) return;
        w += uint64_t(expert) * (uint64_t(push.u[8]) << 32 | push.u[7]);
        x += 4ul * (uint64_t(t) * push.u[3] + (push.u[9] != 0u ? pair % k * push.u[10] : 0u));
        y += 4ul * uint64_t(pair) * n_out;
    }
    float acc[ROWS][8];
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        [[unroll]] for (uint c = 0u; c < 8u; c++) acc[r][c] = 0.0;
    uint first = (gl_WorkGroupID.x + gl_WorkGroupID.y * 32768u) * ROWS;
    for (uint j = tid; 8u * j < n_in; j += 64u) {
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            if (first + r >= n_out) continue;
            float v[8];
            weights8(w + uint64_t(first + r) * push.u[2], push.a[1], j, n_in, v);
            [[unroll]] for (uint c = 0u; c < 8u; c++) {
                if (c >= COLS) break;
                precise float s = 0.0;
                [[unroll]] for (uint i = 0u; i < 8u; i++)
                    if (8u * j + i < n_in) s = fma(v[i], F32(x).d[c * push.u[3] + 8u * j + i], s);
                acc[r][c] = acc[r][c] + s;
            }
        }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        [[unroll]] for (uint c = 0u; c < 8u; c++) {
            if (c >= COLS) break;
            sums[tid] = acc[r][c];
            barrier();
            for (uint s = 32u; s > 0u; s >>= 1) {
                if (tid < s) sums[tid] = sums[tid] + sums[tid + s];
                barrier();
            }
            if (tid == 0u && first + r < n_out) F32(y).d[c * push.u[4] + first + r] = sums[0];
            barrier();
        }
}
