// norm.comp - y = x / sqrt(mean(x^2) + eps) * weight, or (L2) y = x / max(sqrt(sum(x^2)), eps); a workgroup per row. Reads the row twice, writes it once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint L2 = 0u;
shared float sums[64];
// a: x, weight or 0, y; u: n, ne1, ne2, strides 1..3 of x in floats, eps, rows
void main()
{
    uint tid = gl_LocalInvocationID.x, n = push.u[0], r = gl_WorkGroupID.x + gl_WorkGroupID.y * 32768u;
    if (r >= push.u[7]) return;
    uint i1 = r % push.u[1], rest = r / push.u[1];
    uint64_t x = push.a[0] + 4ul * (uint64_t(i1) * push.u[3] + uint64_t(rest % push.u[2]) * push.u[4] +
                                    uint64_t(rest / push.u[2]) * push.u[5]);
    float s = 0.0;
    for (uint i = tid; i < n; i += 64u) s += F32(x).d[i] * F32(x).d[i];
    sums[tid] = s;
    barrier();
    for (uint k = 32u; k > 0u; k >>= 1) {
        if (tid < k) sums[tid] += sums[tid + k];
        barrier();
    }
    float eps = uintBitsToFloat(push.u[6]), m = L2 != 0u ? sums[0] : sums[0] / float(n) + eps, root = sqrt(m);
    if (m > 0.0) root = 0.5 * (root + m / root); // what a driver's square root lacks
    if (L2 != 0u) root = max(root, eps);
    float factor = 1.0 / root;
    factor = factor * (2.0 - root * factor);
    for (uint i = tid; i < n; i += 64u) {
        float v = F32(x).d[i] * factor;
        if (push.a[1] != 0ul) v *= F32(push.a[1]).d[i];
        F32(push.a[2]).d[r * n + i] = v;
    }
}
