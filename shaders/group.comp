// group.comp - the work block of by-expert products (backends/ops.h): one workgroup, an invocation per expert.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 256) in;
// a: step, ids, block; u: E, k, bucket, offsets of counts, starts, order, tiles
void main()
{
    uint tid = gl_LocalInvocationID.x, n_expert = push.u[0], k = push.u[1];
    U32 g = U32(push.a[2]);
    I32 ids = I32(push.a[1]);
    uint n = min(U32(push.a[0]).d[STEP_N_TOKENS], push.u[2]) * k;
    for (uint e = tid; e < n_expert; e += 256u) {
        uint count = 0u;
        for (uint p = 0u; p < n; p++) count += uint(uint(ids.d[p]) == e);
        g.d[push.u[3] + e] = count;
    }
    memoryBarrierBuffer();
    barrier();
    if (tid == 0u) {
        uint start = 0u, tiles = 0u, used = 0u;
        for (uint e = 0u; e < n_expert; e++) {
            uint count = g.d[push.u[3] + e];
            g.d[push.u[4] + e] = start;
            for (uint first = 0u; first < count; first += 16u) {
                uint at = push.u[6] + 3u * tiles++;
                g.d[at] = e;
                g.d[at + 1u] = start + first;
                g.d[at + 2u] = min(16u, count - first);
            }
            start += count;
            used += uint(count > 0u);
        }
        g.d[push.u[4] + n_expert] = start;
        g.d[0] = start;
        g.d[1] = tiles;
        g.d[2] = used;
        g.d[3] = 0u;
    }
    memoryBarrierBuffer();
    barrier();
    for (uint e = tid; e < n_expert; e += 256u) {
        uint at = push.u[5] + g.d[push.u[4] + e];
        for (uint p = 0u; p < n; p++)
            if (uint(ids.d[p]) == e) g.d[at++] = p;
    }
}
