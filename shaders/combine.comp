// combine.comp - sum over the slots, in order, of weight * row; one invocation per element.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
// a: y, weights, out; u: n, k, strides of y [slots, tokens], of weights [tokens], in floats
void main()
{
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y, n = push.u[0];
    if (i >= n) return;
    float s = 0.0;
    for (uint k = 0u; k < push.u[1]; k++)
        s += F32(push.a[1]).d[t * push.u[4] + k] * F32(push.a[0]).d[t * push.u[3] + k * push.u[2] + i];
    F32(push.a[2]).d[t * n + i] = s;
}
