// attend_merge.comp - the splits of a token's attention, each made by a workgroup of attend.comp, in ascending
// order. Reads every partial result once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
#include "attend_state.glsl"
layout(local_size_x = 64) in;
const uint MAX_V = 8u;
// as attend.comp
void main()
{
    U32 step = U32(push.a[0]);
    uint tid = gl_LocalInvocationID.x, head = gl_WorkGroupID.y, dv = pool_word(push.a[1], G_DV), group = push.u[0];
    if (gl_WorkGroupID.x >= step.d[STEP_N_WORK + group]) return;
    uint w = step.d[STEP_WORK + group] + WORK_WORDS * gl_WorkGroupID.x;
    uint n_splits = step.d[w + 6u], t = step.d[w + 1u] + gl_WorkGroupID.z;
    if (gl_WorkGroupID.z >= step.d[w + 2u] || n_splits <= 1u || step.d[w + 5u] != 0u) return;
    float total_max = NOTHING, total_sum = 0.0;
    float total[MAX_V];
    [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i] = 0.0;
    for (uint s = 0u; s < n_splits; s++) {
        uint partial = step.d[w + WORK_WORDS * s + 7u];
        F32 p = F32(push.a[4] + 4ul * (uint64_t(partial + gl_WorkGroupID.z) * push.u[2] + head) * push.u[8]);
        float split_max = p.d[0];
        if (s == 0u) {
            total_max = split_max;
            total_sum = p.d[1];
            [[unroll]] for (uint i = 0u; i < MAX_V; i++)
                if (tid + 64u * i < dv) total[i] = p.d[2u + tid + 64u * i];
        } else if (split_max != NOTHING) {
            float m = max(total_max, split_max), a = total_max == NOTHING ? 0.0 : exp_below(total_max - m),
                  b = exp_below(split_max - m);
            total_sum = merge(total_sum, a, p.d[1], b);
            [[unroll]] for (uint i = 0u; i < MAX_V; i++)
                if (tid + 64u * i < dv) total[i] = merge(total[i], a, p.d[2u + tid + 64u * i], b);
            total_max = m;
        }
    }
    float r = total_sum > 0.0 ? 1.0 / total_sum : 0.0;
    [[unroll]] for (uint i = 0u; i < MAX_V; i++)
        if (tid + 64u * i < dv) F32(push.a[3]).d[(t * push.u[2] + head) * dv + tid + 64u * i] = total[i] * r;
}
