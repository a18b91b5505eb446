// route.comp - softmax over all experts, the k largest; a workgroup per token.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
shared float best[64];
shared uint at[64];
shared float sum_of[64];
// a: logits, ids, weights; u: E, k, stride of logits in floats, scale
void main()
{
    uint tid = gl_LocalInvocationID.x, t = gl_WorkGroupID.x, n = push.u[0], k = push.u[1];
    F32 x = F32(push.a[0] + 4ul * uint64_t(t) * push.u[2]);
    float largest = 0.0, first = 0.0, kept = 0.0;
    uint taken[8]; // bits: expert tid + 64 i of this invocation is taken
    [[unroll]] for (uint i = 0u; i < 8u; i++) taken[i] = 0u;
    for (uint s = 0u; s < k; s++) {
        float b = 0.0;
        uint e = 0xffffffffu;
        for (uint i = tid, j = 0u; i < n; i += 64u, j++) {
            if ((taken[j >> 5] >> (j & 31u) & 1u) != 0u) continue;
            float v = x.d[i];
            if (isnan(v)) v = uintBitsToFloat(0xff800000u);
            if (e == 0xffffffffu || v > b) {
                b = v;
                e = i;
            }
        }
        best[tid] = b;
        at[tid] = e;
        barrier();
        for (uint w = 32u; w > 0u; w >>= 1) {
            if (tid < w) {
                uint o = at[tid + w];
                if (o != 0xffffffffu && (at[tid] == 0xffffffffu || best[tid + w] > best[tid] ||
                                         best[tid + w] == best[tid] && o < at[tid])) {
                    best[tid] = best[tid + w];
                    at[tid] = o;
                }
            }
            barrier();
        }
        uint winner = at[0];
        float value = best[0];
        barrier();
        if (winner % 64u == tid) taken[winner / 64u >> 5] |= 1u << (winner / 64u & 31u);
        if (s == 0u) largest = value;
        float w = exp(value - largest);
        if (isnan(w)) w = 0.0;
        if (tid == 0u) {
            I32(push.a[1]).d[t * k + s] = int(winner);
            F32(push.a[2]).d[t * k + s] = w;
        }
        kept += w;
    }
    float all = 0.0;
    for (uint i = tid; i < n; i += 64u) {
        float w = exp(x.d[i] - largest);
        all += isnan(w) ? 0.0 : w;
    }
    sum_of[tid] = all;
    barrier();
    for (uint w = 32u; w > 0u; w >>= 1) {
        if (tid < w) sum_of[tid] += sum_of[tid + w];
        barrier();
    }
    if (tid == 0u) {
        float total = sum_of[0], denominator = max(kept / total, 6.103515625e-5); // 2^-14
        for (uint s = 0u; s < k; s++)
            F32(push.a[2]).d[t * k + s] =
                F32(push.a[2]).d[t * k + s] / total / denominator * uintBitsToFloat(push.u[3]);
    }
}
