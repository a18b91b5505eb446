// embed.comp - rows of the embedding table by token id. Moves the row once. One invocation: 16 elements.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
layout(local_size_x = 64) in;
// a: step, table, tables, y, sampled; u: n, n_vocab, row_bytes, n_slots
void main()
{
    uint64_t step = push.a[0];
    uint t = gl_WorkGroupID.y, j = gl_GlobalInvocationID.x, n = push.u[0];
    if (t >= U32(step).d[STEP_N_TOKENS]) return;
    if (HAS_LEVELS) {
        pairs_fill(push.a[2], gl_LocalInvocationID.x, 64u);
        barrier();
    }
    if (16u * j >= n) return;
    int id = I32(step).d[U32(step).d[STEP_TOKEN_ID] + t];
    if (id < 0) {
        uint slot = uint(-1 - id);
        id = slot < push.u[3] ? I32(push.a[4]).d[slot] : -1;
    }
    float v[16];
    if (id >= 0 && uint(id) < push.u[1])
        weights16(push.a[1] + uint64_t(uint(id)) * push.u[2], push.a[2], j, n, v);
    else
        [[unroll]] for (uint i = 0u; i < 16u; i++) v[i] = 0.0;
    [[unroll]] for (uint i = 0u; i < 16u; i++)
        if (16u * j + i < n) F32(push.a[3]).d[t * n + 16u * j + i] = v[i];
}
