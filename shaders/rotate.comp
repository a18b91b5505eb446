// rotate.comp - a head through a block-diagonal orthogonal matrix, with its affine step; a workgroup per row.
// Reads and writes each element once; the matrices are small and shared by all tokens.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
shared float row[1024];
// a: x, data, mean, lambda, y; u: d, H, strides of x [heads, tokens] in floats, columns of data | mean << 8 |
// lambda << 16 , n_blocks | inverse << 8, floats of a column of data, blocks: (offset | count << 16,
// size | hadamard << 16) x 6
void main()
{
    uint tid = gl_LocalInvocationID.x, d = push.u[0], h = gl_WorkGroupID.x, t = gl_WorkGroupID.y;
    bool inverse = (push.u[5] >> 8) != 0u;
    uint columns = push.u[4], n_blocks = push.u[5] & 255u;
    uint64_t x = push.a[0] + 4ul * (uint64_t(h) * push.u[2] + uint64_t(t) * push.u[3]);
    uint64_t y = push.a[4] + 4ul * (uint64_t(t) * push.u[1] + h) * d;
    uint64_t mean = push.a[2], lambda = push.a[3], data = push.a[1];
    if (mean != 0ul) mean += 4ul * (h / (push.u[1] / (columns >> 10 & 1023u))) * d;
    if (lambda != 0ul) lambda += 4ul * (h / (push.u[1] / (columns >> 20 & 1023u))) * d;
    if (data != 0ul) data += 4ul * (h / (push.u[1] / (columns & 1023u))) * push.u[6];
    for (uint i = tid; i < d; i += 64u) {
        precise float v = F32(x).d[i];
        if (!inverse && mean != 0ul) v = v - F32(mean).d[i];
        if (!inverse && lambda != 0ul) v = v * F32(lambda).d[i];
        row[i] = v;
    }
    barrier();
    uint at = 0u; // floats of data before this run of blocks
    for (uint b = 0u; b < n_blocks; b++) {
        uint offset = push.u[7u + 2u * b] & 0xffffu, count = push.u[7u + 2u * b] >> 16;
        uint size = push.u[8u + 2u * b] & 0xffffu, n = count * size;
        if ((push.u[8u + 2u * b] >> 16) != 0u) {
            if (!inverse)
                for (uint i = tid; i < n; i += 64u) row[offset + i] *= F32(data).d[at + i];
            barrier();
            for (uint stride = 1u; stride < size; stride *= 2u) {
                for (uint i = tid; i < n / 2u; i += 64u) {
                    uint p = offset + (i / stride) * 2u * stride + i % stride;
                    float u = row[p], v = row[p + stride];
                    row[p] = u + v;
                    row[p + stride] = u - v;
                }
                barrier();
            }
            float factor = 1.0 / sqrt(float(size));
            for (uint i = tid; i < n; i += 64u) row[offset + i] *= inverse ? factor * F32(data).d[at + i] : factor;
            barrier();
            at += n;
        } else {
            float kept[16];
            [[unroll]] for (uint k = 0u; k < 16u; k++) {
                uint i = tid + 64u * k;
                kept[k] = 0.0;
                if (i < n) {
                    uint m = at + i / size * size * size, r = i % size, first = offset + i / size * size;
                    float s = 0.0;
                    for (uint c = 0u; c < size; c++)
                        s += F32(data).d[inverse ? m + c * size + r : m + r * size + c] * row[first + c];
                    kept[k] = s;
                }
            }
            barrier();
            [[unroll]] for (uint k = 0u; k < 16u; k++)
                if (tid + 64u * k < n) row[offset + tid + 64u * k] = kept[k];
            barrier();
            at += n * size;
        }
    }
    for (uint i = tid; i < d; i += 64u) {
        float v = row[i];
        if (inverse && mean != 0ul) v += F32(mean).d[i];
        F32(y).d[i] = v;
    }
}
