// quantize.comp - rows of activations as bytes for integer dot products (layout: dot.glsl): 32 neighbours share a scale,
// the largest magnitude / 127. An invocation: 32 elements; reads the rows once, writes 1.5 bytes an element.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer F32x2 { vec2 d[]; };
// a: x, to; u: n_in, rows, slots (rows are slots of tokens), stride of tokens in floats, stride of slots
void main()
{
    uint n_in = push.u[0], row = gl_WorkGroupID.y, b = gl_GlobalInvocationID.x;
    if (32u * b >= n_in) return;
    F32x4 x = F32x4(push.a[0] + 4ul * (uint64_t(row / push.u[2]) * push.u[3] + row % push.u[2] * push.u[4] + 32u * b));
    vec4 v[8];
    float most = 0.0;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        v[i] = x.d[i];
        vec4 a = abs(v[i]);
        most = max(most, max(max(a.x, a.y), max(a.z, a.w)));
    }
    float inverse = most > 0.0 ? 127.0 / most : 0.0, d = most / 127.0;
    V16 codes = V16(push.a[1] + uint64_t(row) * n_in);
    F32x2 scales = F32x2(push.a[1] + uint64_t(push.u[1]) * n_in);
    [[unroll]] for (uint h = 0u; h < 2u; h++) {
        uvec4 q;
        int sum = 0;
        [[unroll]] for (uint i = 0u; i < 4u; i++) {
            ivec4 k = ivec4(roundEven(clamp(v[4u * h + i] * inverse, -127.0, 127.0)));
            sum += k.x + k.y + k.z + k.w;
            uvec4 u = uvec4(k) & 255u;
            q[i] = u.x | u.y << 8 | u.z << 16 | u.w << 24;
        }
        codes.d[2u * b + h] = q;
        scales.d[row * (n_in / 16u) + 2u * b + h] = vec2(d, d * float(sum));
    }
}
