// matmul.comp - y[o, t] = sum_i w[i, o] x[i, t] for many tokens: tiles of 32 outputs x 32 tokens, 32 elements at a
// time widened into shared memory. By expert: a tile of the work block of GROUP (16 pairs) instead of 32 tokens.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define WEIGHT_TYPE_ID 0
#include "weights.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 1) const uint EXPERTS = 0u;
shared float ws[32][33], xs[32][33];
shared uint64_t from[32], to[32];
// a: w, tables, x, y, step, group; u as in matvec.comp, then [11] offset of order, [12] offset of tiles
void main()
{
    uint tid = gl_LocalInvocationID.x, n_in = push.u[0], n_out = push.u[1], first = gl_WorkGroupID.x * 32u;
    uint64_t w = push.a[0];
    uint n_cols;
    if (EXPERTS != 0u) {
        U32 g = U32(push.a[5]);
        if (gl_WorkGroupID.y >= g.d[1]) return;
        uint tile = push.u[12] + 3u * gl_WorkGroupID.y, k = push.u[5];
        n_cols = g.d[tile + 2u];
        w += uint64_t(g.d[tile]) * (uint64_t(push.u[8]) << 32 | push.u[7]);
        if (tid < 32u && tid < n_cols) {
            uint pair = g.d[push.u[11] + g.d[tile + 1u] + tid];
            from[tid] =
                push.a[2] + 4ul * (uint64_t(pair / k) * push.u[3] + (push.u[9] != 0u ? pair % k * push.u[10] : 0u));
            to[tid] = push.a[3] + 4ul * uint64_t(pair) * n_out;
        }
    } else {
        uint t = gl_WorkGroupID.y * 32u, n = push.u[5];
        if (push.a[4] != 0ul) n = min(n, U32(push.a[4]).d[push.u[6]]);
        if (t >= n) return;
        n_cols = min(32u, n - t);
        if (tid < n_cols) {
            from[tid] = push.a[2] + 4ul * uint64_t(t + tid) * push.u[3];
            to[tid] = push.a[3] + 4ul * uint64_t(t + tid) * push.u[4];
        }
    }
    barrier();
    float acc[4][4];
    [[unroll]] for (uint i = 0u; i < 4u; i++)
        [[unroll]] for (uint c = 0u; c < 4u; c++) acc[i][c] = 0.0;
    uint r0 = tid % 8u, c0 = tid / 8u;
    for (uint k0 = 0u; k0 < n_in; k0 += 32u) {
        for (uint q = tid; q < 128u; q += 64u) { // 32 rows x 4 chunks of eight
            uint r = q / 4u, j = q % 4u;
            float v[8];
            if (first + r < n_out && k0 + 8u * j < n_in)
                weights8(w + uint64_t(first + r) * push.u[2], push.a[1], k0 / 8u + j, n_in, v);
            else
                [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = 0.0;
            [[unroll]] for (uint i = 0u; i < 8u; i++) ws[r][8u * j + i] = v[i];
        }
        for (uint q = tid; q < 1024u; q += 64u) {
            uint c = q / 32u, i = q % 32u;
            xs[c][i] = c < n_cols && k0 + i < n_in ? F32(from[c]).d[k0 + i] : 0.0;
        }
        barrier();
        for (uint i = 0u; i < 32u; i++) {
            float a[4], b[4];
            [[unroll]] for (uint m = 0u; m < 4u; m++) a[m] = ws[r0 + 8u * m][i];
            [[unroll]] for (uint m = 0u; m < 4u; m++) b[m] = xs[c0 + 8u * m][i];
            [[unroll]] for (uint m = 0u; m < 4u; m++)
                [[unroll]] for (uint c = 0u; c < 4u; c++) acc[m][c] += a[m] * b[c];
        }
        barrier();
    }
    [[unroll]] for (uint m = 0u; m < 4u; m++)
        [[unroll]] for (uint c = 0u; c < 4u; c++) {
            uint r = first + r0 + 8u * m, col = c0 + 8u * c;
            if (r < n_out && col < n_cols) F32(to[col]).d[r] = acc[m][c];
        }
}
