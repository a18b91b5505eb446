// short_conv.comp - y_t = silu(sum_j w_j x_{t - taps + 1 + j}) of each channel; the inputs before the run are the tail in
// the state of its slot. An invocation carries a channel from token to token of a run: nothing waits for anything.
// Moves x and y once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
#include "recurrent.glsl"
layout(local_size_x = 64) in;
// a: step, state (of the layer, first slot), x, w, y; u: channels, taps, strides of x and w in floats, bytes of a slot /
// 64, slots
void main()
{
    uint c = gl_GlobalInvocationID.x, channels = push.u[0], taps = push.u[1], kept = taps - 1u;
    Run r;
    if (c >= channels || !run_at(U32(push.a[0]), gl_WorkGroupID.y, push.u[5], r)) return;
    F32 tail = F32(push.a[1] + 64ul * uint64_t(r.slot) * push.u[4]);
    float v[8], w[8]; // the last inputs, this one behind them; they move up by one each token
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
        v[j] = j < kept && r.start != 0u ? tail.d[j * channels + c] : 0.0;
        w[j] = j < taps ? F32(push.a[3]).d[j * push.u[3] + c] : 0.0;
    }
    for (uint t = r.first; t < r.first + r.count; t++) {
        float x = F32(push.a[2]).d[t * push.u[2] + c], sum = 0.0;
        [[unroll]] for (uint j = 0u; j < 8u; j++) {
            if (j == kept) v[j] = x;
            if (j < taps) sum = fma(v[j], w[j], sum);
        }
        F32(push.a[4]).d[t * channels + c] = quotient(sum, 1.0 + exp_exact(-sum));
        [[unroll]] for (uint j = 0u; j < 7u; j++)
            if (j < kept) v[j] = v[j + 1u];
    }
    [[unroll]] for (uint j = 0u; j < 8u; j++)
        if (j < kept) tail.d[j * channels + c] = v[j];
}
