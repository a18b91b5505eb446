// delta_pairs.comp - the gated delta rule in chunks (Yang, Kautz & Hatamizadeh 2024, section 3.3), first part: what the
// tokens of a chunk have to do with one another, for a workgroup of each chunk and head. With a_tj the product of the decays
// of tokens j + 1 .. t, b the share that is written:
//     L_tj = b_t a_tj k_t . k_j for j < t,  T = (1 + L)^-1 diag(b),  P_tj = scale a_tj q_t . k_j for j <= t
// Decays are multiplied and never divided by one another: whatever they are, nothing overflows or cancels. No element
// of T exceeds 1 where keys have length 1: it is a product of contractions seen from two of them.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
#include "recurrent.glsl"
#include "delta_chunk.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 1) const uint FEWEST = 16u; // fewest tokens of a long run
// a and u as in delta_rule.comp, but a[5]: scratch
shared vec4 tile[32][17]; // [element][two tokens]: their keys, their queries
shared float between[CHUNK][CHUNK + 1u], lower[CHUNK][CHUNK + 1u], solved[CHUNK][CHUNK + 1u];
shared float decays[CHUNK], writes[CHUNK];

F32 beside_q(uint word)
{
    return F32(uint64_t(int64_t(push.a[2]) + 4l * int64_t(int(push.u[word]))));
}

// The chunk's run and its number in it.
bool chunk_at(U32 step, uint chunk, uint n_slots, out Run r, out uint piece)
{
    uint n_runs = step.d[STEP_N_RUNS], runs = step.d[STEP_RUNS];
    piece = chunk;
    for (uint at = 0u; at < n_runs; at++) {
        uint count = step.d[runs + RUN_WORDS * at + 2u];
        if (count < FEWEST || step.d[runs + RUN_WORDS * at + 6u] != 0u) continue;
        uint pieces = (count + CHUNK - 1u) / CHUNK;
        if (piece < pieces) return run_at(step, at, n_slots, r);
        piece -= pieces;
    }
    return false;
}

// Inverts both blocks of 16 on the diagonal of 1 + L; an invocation has a column.
void invert_blocks(uint column)
{
    uint base = column & 16u, own = column & 15u;
    float x[16];
    [[unroll]] for (uint t = 0u; t < 16u; t++) {
        float sum = t == own ? 1.0 : 0.0;
        [[unroll]] for (uint i = 0u; i < t; i++) sum = fma(-lower[base + t][base + i], x[i], sum);
        x[t] = sum;
        solved[base + t][column] = sum;
        solved[t + 16u - base][column] = 0.0; // the other block of the column
    }
}

void main()
{
    uint tid = gl_LocalInvocationID.x, head = gl_WorkGroupID.y, r = tid >> 3, c = tid & 7u;
    uint dk = push.u[14] & 0xffffu, heads = push.u[15] & 0xffffu, key_heads = push.u[15] >> 16, piece;
    Run run;
    if (!chunk_at(U32(push.a[0]), gl_WorkGroupID.x, push.u[13], run, piece)) return;
    uint from = (push.u[17] & 1u) != 0u ? head % key_heads : head / (heads / key_heads);
    uint first = run.first + piece * CHUNK, n = min(CHUNK, run.count - piece * CHUNK);
    F32 q = F32(push.a[2] + 4ul * (from * push.u[4] + uint64_t(first) * push.u[5]));
    F32 k = F32(uint64_t(beside_q(0u)) + 4ul * (from * push.u[6] + uint64_t(first) * push.u[7]));
    if (tid < CHUNK) {
        decays[tid] = 1.0, writes[tid] = 0.0;
        if (tid < n) {
            float a = beside_q(2u).d[(first + tid) * push.u[10] + head] + F32(push.a[4]).d[head];
            float softplus = max(a, 0.0) + log(1.0 + exp_exact(-abs(a)));
            decays[tid] = exp_exact(F32(push.a[3]).d[head] * softplus);
            writes[tid] = sigmoid(beside_q(3u).d[(first + tid) * push.u[11] + head]);
        }
    }
    // Tokens 2r and 2r + 1 by tokens 4c .. 4c + 3.
    vec4 kk[2] = {vec4(0.0), vec4(0.0)}, qk[2] = {vec4(0.0), vec4(0.0)};
    for (uint row = 0u; row < dk; row += 32u) {
        uint i = row + (tid & 31u);
        for (uint p = tid >> 5; p < PAIRS; p += 4u) {
            vec4 v = vec4(0.0);
            if (i < dk && 2u * p < n) v.x = k.d[2u * p * push.u[7] + i], v.z = q.d[2u * p * push.u[5] + i];
            if (i < dk && 2u * p + 1u < n)
                v.y = k.d[(2u * p + 1u) * push.u[7] + i], v.w = q.d[(2u * p + 1u) * push.u[5] + i];
            tile[tid & 31u][p] = v;
        }
        barrier();
        for (uint e = 0u; e < 32u; e++) {
            vec4 a = tile[e][r], b = vec4(tile[e][2u * c].xy, tile[e][2u * c + 1u].xy);
            kk[0] = fma(vec4(a.x), b, kk[0]);
            kk[1] = fma(vec4(a.y), b, kk[1]);
            qk[0] = fma(vec4(a.z), b, qk[0]);
            qk[1] = fma(vec4(a.w), b, qk[1]);
        }
        barrier();
    }
    F32 to = chunk_floats(push.a[5], gl_WorkGroupID.x, heads, head);
    if (tid < CHUNK) {
        float left = 1.0;
        for (uint t = 0u; t < CHUNK; t++) {
            if (t > tid) left *= decays[t];
            between[t][tid] = t >= tid ? left : 0.0;
        }
        to.d[CHUNK * CHUNK * 2u + CHUNK + tid] = left;
    } else if (tid == CHUNK) {
        float left = 1.0;
        for (uint t = 0u; t < CHUNK; t++) {
            left *= decays[t];
            to.d[CHUNK * CHUNK * 2u + t] = left;
        }
    }
    barrier();
    float scale = uintBitsToFloat(push.u[16]);
    [[unroll]] for (uint h = 0u; h < 2u; h++)
        [[unroll]] for (uint e = 0u; e < 4u; e++) {
            uint t = 2u * r + h, j = 4u * c + e;
            lower[t][j] = j < t ? writes[t] * between[t][j] * kk[h][e] : 0.0;
            to.d[4u * (PAIRS * j + r) + 2u + h] = j <= t ? scale * between[t][j] * qk[h][e] : 0.0;
        }
    barrier();
    if (tid < CHUNK) invert_blocks(tid);
    barrier();
    // Of the block below them: minus the second inverse times that block times the first.
    uint t = tid >> 3, j = 2u * (tid & 7u);
    vec2 sum = vec2(0.0);
    for (uint i = 0u; i < 16u; i++)
        sum = fma(vec2(lower[16u + t][i]), vec2(solved[i][j], solved[i][j + 1u]), sum);
    between[t][j] = sum.x, between[t][j + 1u] = sum.y;
    barrier();
    sum = vec2(0.0);
    for (uint i = 0u; i < 16u; i++)
        sum = fma(vec2(-solved[16u + t][16u + i]), vec2(between[i][j], between[i][j + 1u]), sum);
    solved[16u + t][j] = sum.x, solved[16u + t][j + 1u] = sum.y;
    barrier();
    [[unroll]] for (uint h = 0u; h < 2u; h++)
        [[unroll]] for (uint e = 0u; e < 4u; e++)
            to.d[4u * (PAIRS * (4u * c + e) + r) + h] = solved[2u * r + h][4u * c + e] * writes[4u * c + e];
}
