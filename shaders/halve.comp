// halve.comp - rows of activations in f16 for cooperative matrices, each divided by a power of two that brings its
// largest magnitude below one, so that nothing overflows. Rows are padded with zeros to a multiple of 32; behind all
// rows one float for each, what its sums are to be multiplied by. A workgroup: a row, read twice, written once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
shared float most[64];
// a: x, to; u: n_in, rows, slots (rows are slots of tokens), stride of tokens in floats, stride of slots
void main()
{
    uint n_in = push.u[0], row = gl_WorkGroupID.x + gl_WorkGroupID.y * 32768u, tid = gl_LocalInvocationID.x, padded = (n_in + 31u) / 32u * 32u;
    if (row >= push.u[1]) return;
    F32 x = F32(push.a[0] + 4ul * (uint64_t(row / push.u[2]) * push.u[3] + row % push.u[2] * push.u[4]));
    float m = 0.0;
    for (uint i = tid; i < n_in; i += 64u) m = max(m, abs(x.d[i]));
    most[tid] = m;
    barrier();
    for (uint s = 32u; s > 0u; s >>= 1) {
        if (tid < s) most[tid] = max(most[tid], most[tid + s]);
        barrier();
    }
    // 2^e > the largest, e from -126 to 126
    uint e = clamp((floatBitsToUint(most[0]) >> 23 & 255u) + 1u, 1u, 253u);
    float scale = uintBitsToFloat(e << 23), inverse = uintBitsToFloat(254u - e << 23);
    U32 to = U32(push.a[1] + 2ul * uint64_t(row) * padded);
    for (uint i = 2u * tid; i < padded; i += 128u) {
        float a = i < n_in ? x.d[i] * inverse : 0.0, b = i + 1u < n_in ? x.d[i + 1u] * inverse : 0.0;
        to.d[i / 2u] = to_half_bits(a) | to_half_bits(b) << 16;
    }
    if (tid == 0u) F32(push.a[1] + 2ul * uint64_t(push.u[1]) * padded).d[row] = scale;
}
