// short_conv.comp - y_t = silu(sum_j w_j x_{t - taps + 1 + j}) of each channel; the inputs before the run are the tail in
// the state of its slot. An invocation carries a channel from token to token of a piece of 64: nothing waits for anything,
// and the piece that needs the tail writes it. Moves x and y once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
#include "recurrent.glsl"
layout(local_size_x = 64) in;
// a: step, state (of the layer, first slot), x, w, y, pending rows (of the layer, first slot); u: channels, taps, strides
// of x and w in floats, bytes of a slot / 64, slots, places of the pending rows
const uint PIECE = 64u;

float last[8]; // inputs, the newest behind `kept` others

void push_input(float x, uint kept)
{
    [[unroll]] for (uint j = 0u; j < 7u; j++)
        if (j < kept) last[j] = j + 1u < kept ? last[j + 1u] : x;
}

void main()
{
    uint c = gl_GlobalInvocationID.x, channels = push.u[0], taps = push.u[1], kept = taps - 1u, places = push.u[6], piece;
    Run r;
    if (c >= channels || !piece_at(U32(push.a[0]), gl_WorkGroupID.y, PIECE, push.u[5], r, piece)) return;
    uint64_t slot = 64ul * uint64_t(r.slot) * push.u[4];
    F32 tail = F32(push.a[1] + slot + 4ul * c), kept_x = F32(push.a[5] + slot + 4ul * c);
    F32 x = F32(push.a[2] + 4ul * c), y = F32(push.a[4] + 4ul * c);
    uint first = piece * PIECE, end = min(first + PIECE, r.count);
    float w[8];
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
        w[j] = j < taps ? F32(push.a[3]).d[j * push.u[3] + c] : 0.0;
        last[j] = 0.0;
        if (j >= kept) continue;
        if (piece != 0u)
            last[j] = x.d[(r.first + first - kept + j) * push.u[2]];
        else if (!begins(r))
            last[j] = tail.d[j * channels];
    }
    if (piece == 0u) {
        for (uint p = r.start - r.accepted; p < r.start; p++) push_input(kept_x.d[p % places * channels], kept);
        // Of the run's own inputs the last ones stay, behind what of the old ones does; of a draft check none.
        uint own = r.pending != 0u ? 0u : min(r.count, kept);
        if (own != 0u || r.accepted != 0u)
            [[unroll]] for (uint j = 0u; j < 7u; j++) {
                if (j + own < kept) {
                    float v = last[j];
                    [[unroll]] for (uint i = 0u; i < 7u; i++)
                        if (i == j + own) v = last[i];
                    tail.d[j * channels] = v;
                } else if (j < kept)
                    tail.d[j * channels] = x.d[(r.first + r.count + j - kept) * push.u[2]];
            }
    }
    for (uint t = first; t < end; t++) {
        float in_t = x.d[(r.first + t) * push.u[2]], sum = 0.0;
        if (r.pending != 0u) kept_x.d[(r.start + t) % places * channels] = in_t;
        [[unroll]] for (uint j = 0u; j < 8u; j++)
            if (j < taps) sum = fma(j < kept ? last[j] : in_t, w[j], sum);
        y.d[(r.first + t) * channels] = quotient(sum, 1.0 + exp_exact(-sum));
        push_input(in_t, kept);
    }
}
