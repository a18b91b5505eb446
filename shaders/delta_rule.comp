// delta_rule.comp - the gated delta rule (Yang, Kautz & Hatamizadeh 2024, eq. 10), token after token of a run. An
// invocation carries a column of a head's matrix; columns do not meet, so nothing waits for anything. Reads the matrix
// twice a token (the second time from a cache) and writes it once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
#include "recurrent.glsl"
layout(local_size_x = 64) in;
// a: step, state (first matrix of the layer, first slot), q, rate, offset, y; u: where k, v, alpha and beta are, in floats
// from q (signed); strides of q, k, v [heads, tokens], of alpha, of beta; [12] bytes of a slot / 64, slots, dk and dv
// (16 bits each), heads and key heads (16 bits each), scale, is it tiled
F32 beside_q(uint word)
{
    return F32(uint64_t(int64_t(push.a[2]) + 4l * int64_t(int(push.u[word]))));
}

void main()
{
    uint m = gl_WorkGroupID.z * 64u + gl_LocalInvocationID.x, head = gl_WorkGroupID.y;
    uint dk = push.u[14] & 0xffffu, dv = push.u[14] >> 16, heads = push.u[15] & 0xffffu, key_heads = push.u[15] >> 16;
    Run r;
    if (m >= dv || !run_at(U32(push.a[0]), gl_WorkGroupID.x, push.u[13], r)) return;
    uint from = push.u[17] != 0u ? head % key_heads : head / (heads / key_heads);
    uint matrix_bytes = 4u * dk * dv + 63u & ~63u;
    F32 s = F32(push.a[1] + 64ul * uint64_t(r.slot) * push.u[12] + uint64_t(head) * matrix_bytes + 4ul * m);
    F32 q = F32(push.a[2]), k = beside_q(0u), v = beside_q(1u), alpha = beside_q(2u), beta = beside_q(3u);
    if (r.start == 0u)
        for (uint i = 0u; i < dk; i++) s.d[i * dv] = 0.0;
    for (uint t = r.first; t < r.first + r.count; t++) {
        uint at_q = from * push.u[4] + t * push.u[5], at_k = from * push.u[6] + t * push.u[7];
        float a = alpha.d[t * push.u[10] + head] + F32(push.a[4]).d[head];
        float softplus = max(a, 0.0) + log(1.0 + exp_exact(-abs(a)));
        float decay = exp_exact(F32(push.a[3]).d[head] * softplus), write = sigmoid(beta.d[t * push.u[11] + head]);
        precise float read = 0.0, sum = 0.0;
        for (uint i = 0u; i < dk; i++) read = fma(s.d[i * dv] * decay, k.d[at_k + i], read);
        float d = write * (v.d[head * push.u[8] + t * push.u[9] + m] - read);
        for (uint i = 0u; i < dk; i++) {
            precise float e = fma(k.d[at_k + i], d, s.d[i * dv] * decay);
            s.d[i * dv] = e;
            sum = fma(e, q.d[at_q + i], sum);
        }
        F32(push.a[5]).d[(t * heads + head) * dv + m] = sum * uintBitsToFloat(push.u[16]);
    }
}
