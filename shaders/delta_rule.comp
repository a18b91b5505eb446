// delta_rule.comp - the gated delta rule (Yang, Kautz & Hatamizadeh 2024, eq. 10), token after token of a run. A workgroup
// carries 32 columns of a head's matrix, an invocation a quarter of one column, in registers: the matrix is read once and
// written once, whatever the number of tokens; a draft check does not write it. Sums over a column are made of the four
// quarters in their order.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
#include "recurrent.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint ROWS = 32u; // of a quarter, at least
layout(constant_id = 1) const uint FEWEST = 0u; // tokens of a run that goes in chunks (delta_chunk.comp); 0: none does
// a: step, state (first matrix of the layer, first slot), q, rate, offset, y; u: where k, v, alpha and beta are, in floats
// from q (signed); strides of q, k, v [heads, tokens], of alpha, of beta; [12] bytes of a slot / 64, slots, dk and dv
// (16 bits each), heads and key heads (16 bits each), scale, is it tiled + 2 * places of the pending area, bytes from the
// first matrix to the pending values / 64, heads of a row of pending keys
shared float reads[4][32], sums[4][32];
float s[ROWS];

F32 beside_q(uint word)
{
    return F32(uint64_t(int64_t(push.a[2]) + 4l * int64_t(int(push.u[word]))));
}

uint64_t whole_lines(uint64_t bytes)
{
    return bytes + 63ul & ~63ul;
}

// S *= decay; d = write (v - S^T k); S += k d^T of rows [row, end); returns the sum over these rows of S^T q.
float take_token(F32 k, F32 q, float v, float decay, float write, uint row, uint end, uint quarter, uint lane)
{
    precise float read = 0.0, sum = 0.0;
    [[unroll]] for (uint i = 0u; i < ROWS; i++)
        if (row + i < end) read = fma(s[i] * decay, k.d[row + i], read);
    reads[quarter][lane] = read;
    barrier();
    precise float d = write * (v - (reads[0][lane] + reads[1][lane] + (reads[2][lane] + reads[3][lane])));
    [[unroll]] for (uint i = 0u; i < ROWS; i++)
        if (row + i < end) {
            precise float e = fma(k.d[row + i], d, s[i] * decay);
            s[i] = e;
            sum = fma(e, q.d[row + i], sum);
        }
    sums[quarter][lane] = sum;
    barrier();
    return sums[0][lane] + sums[1][lane] + (sums[2][lane] + sums[3][lane]);
}

void main()
{
    uint lane = gl_LocalInvocationID.x & 31u, quarter = gl_LocalInvocationID.x >> 5;
    uint m = gl_WorkGroupID.z * 32u + lane, head = gl_WorkGroupID.y;
    uint dk = push.u[14] & 0xffffu, dv = push.u[14] >> 16, heads = push.u[15] & 0xffffu, key_heads = push.u[15] >> 16;
    Run r;
    if (!run_at(U32(push.a[0]), gl_WorkGroupID.x, push.u[13], r)) return;
    bool tiled = (push.u[17] & 1u) != 0u, mine = m < dv;
    // Of a run that goes in chunks only what was accepted in front of it is taken here.
    bool in_chunks = FEWEST != 0u && r.pending == 0u && r.count >= FEWEST;
    if (in_chunks && r.accepted == 0u) return;
    uint shared_by = heads / key_heads, from = tiled ? head % key_heads : head / shared_by, places = push.u[17] >> 1;
    uint64_t slot = push.a[1] + 64ul * uint64_t(r.slot) * push.u[12], pending_v = slot + 64ul * uint64_t(push.u[18]);
    uint64_t pending_k = pending_v + whole_lines(4ul * places * dv * heads);
    uint64_t pending_gates = pending_k + whole_lines(8ul * places * dk * push.u[19]);
    F32 matrix = F32(slot + whole_lines(4ul * dk * dv) * head + 4ul * m);
    uint each = (dk + 3u) / 4u, row = quarter * each, end = min(row + each, dk);
    [[unroll]] for (uint i = 0u; i < ROWS; i++)
        s[i] = mine && row + i < end && !begins(r) ? matrix.d[(row + i) * dv] : 0.0;
    for (uint p = r.start - r.accepted; p < r.start; p++) {
        F32 k = F32(pending_k + 4ul * ((p % (2u * places)) * push.u[19] + from) * dk);
        F32 gates = F32(pending_gates + 8ul * ((p % (2u * places)) * heads + head));
        float v = mine ? F32(pending_v).d[(p % places * heads + head) * dv + m] : 0.0;
        take_token(k, k, v, gates.d[0], gates.d[1], row, end, quarter, lane);
    }
    if ((r.pending != 0u || in_chunks) && r.accepted != 0u)
        [[unroll]] for (uint i = 0u; i < ROWS; i++)
            if (mine && row + i < end) matrix.d[(row + i) * dv] = s[i];
    if (in_chunks) return;
    for (uint t = r.first; t < r.first + r.count; t++) {
        F32 q = F32(push.a[2] + 4ul * (from * push.u[4] + t * push.u[5]));
        F32 k = F32(uint64_t(beside_q(0u)) + 4ul * (from * push.u[6] + t * push.u[7]));
        float v = mine ? beside_q(1u).d[head * push.u[8] + t * push.u[9] + m] : 0.0;
        float a = beside_q(2u).d[t * push.u[10] + head] + F32(push.a[4]).d[head];
        float softplus = max(a, 0.0) + log(1.0 + exp_exact(-abs(a)));
        float decay = exp_exact(F32(push.a[3]).d[head] * softplus), write = sigmoid(beside_q(3u).d[t * push.u[11] + head]);
        float y = take_token(k, q, v, decay, write, row, end, quarter, lane);
        if (quarter == 0u && mine) F32(push.a[5]).d[(t * heads + head) * dv + m] = y * uintBitsToFloat(push.u[16]);
        if (r.pending == 0u) continue;
        // What the recurrence needs is kept; of a key the first of those that share it keeps it for all.
        uint p = r.start + t - r.first;
        if (quarter == 0u && mine) F32(pending_v).d[(p % places * heads + head) * dv + m] = v;
        if (gl_WorkGroupID.z != 0u) continue;
        if (tiled ? head < key_heads : head % shared_by == 0u)
            for (uint i = gl_LocalInvocationID.x; i < dk; i += 128u)
                F32(pending_k).d[((p % (2u * places)) * push.u[19] + from) * dk + i] = k.d[i];
        F32 gates = F32(pending_gates + 8ul * ((p % (2u * places)) * heads + head));
        if (gl_LocalInvocationID.x == 0u) gates.d[0] = decay, gates.d[1] = write;
    }
    if (r.pending == 0u)
        [[unroll]] for (uint i = 0u; i < ROWS; i++)
            if (mine && row + i < end) matrix.d[(row + i) * dv] = s[i];
}
