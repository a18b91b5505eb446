// argmax.comp - index of the largest logit of each row, ties to the lower; of rows with one slot the last counts.
// One workgroup, so that rows are written in order. Reads the logits once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 256) in;
shared float best[256];
shared uint at[256];
// a: step, logits, sampled; u: n, stride of rows in floats, slots, rows at most
void main()
{
    uint tid = gl_LocalInvocationID.x, n = push.u[0];
    U32 step = U32(push.a[0]);
    uint n_rows = min(step.d[STEP_N_ROWS], push.u[3]);
    for (uint r = 0u; r < n_rows; r++) {
        F32 x = F32(push.a[1] + 4ul * uint64_t(r) * push.u[1]);
        float b = uintBitsToFloat(0xff800000u);
        uint e = 0xffffffffu;
        for (uint i = tid; i < n; i += 256u) {
            float v = x.d[i];
            if (!isnan(v) && (e == 0xffffffffu || v > b)) {
                b = v;
                e = i;
            }
        }
        best[tid] = b;
        at[tid] = e;
        barrier();
        for (uint w = 128u; w > 0u; w >>= 1) {
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
        if (tid == 0u) {
            uint slot = step.d[step.d[STEP_ROWS] + ROW_WORDS * r + 1u];
            if (slot < push.u[2]) I32(push.a[2]).d[slot] = at[0] == 0xffffffffu ? 0 : int(at[0]);
        }
        barrier();
    }
}
