// delta_chunk.comp - the gated delta rule in chunks, second part: a workgroup carries some columns of a head's matrix
// through the chunks of a long run, in shared memory. With T and P of delta_pairs.comp, g_t what is left at token t of
// the state before the chunk and l_j what is left at its end of what j wrote:
//     D = T (v - g S^T k),  y = scale g S^T q + P D,  S' = g_n S + sum over j of l_j k_j d_j^T
// Reads q once, k twice and v once for each block of columns, the state once for a run.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "recurrent.glsl"
#include "delta_chunk.glsl"
layout(local_size_x_id = 6) in;                  // 16 * QUADS: two tokens by four columns each
layout(constant_id = 0) const uint ROWS = 128u;  // of the matrix, to a multiple of 64
layout(constant_id = 1) const uint FEWEST = 16u; // fewest tokens of a long run
layout(constant_id = 2) const uint QUADS = 8u;   // columns by four
// a and u as in delta_rule.comp, but a[3]: scratch
shared vec4 s[ROWS][QUADS], d[CHUNK][QUADS];
shared vec4 tile[32][17];
shared float grown[CHUNK], left[CHUNK];

F32 beside_q(uint word)
{
    return F32(uint64_t(int64_t(push.a[2]) + 4l * int64_t(int(push.u[word]))));
}

uint64_t whole_lines(uint64_t bytes)
{
    return bytes + 63ul & ~63ul;
}

// Four columns of a row, of which `some` are there.
vec4 load4(F32 from, uint some)
{
    if (some >= 4u) return F32x4(uint64_t(from)).d[0];
    vec4 v = vec4(0.0);
    [[unroll]] for (uint e = 0u; e < 3u; e++)
        if (e < some) v[e] = from.d[e];
    return v;
}

void store4(F32 to, vec4 v, uint some)
{
    if (some >= 4u)
        F32x4(uint64_t(to)).d[0] = v;
    else
        [[unroll]] for (uint e = 0u; e < 3u; e++)
            if (e < some) to.d[e] = v[e];
}

F32 plus(F32 p, uint64_t floats)
{
    return F32(uint64_t(p) + 4ul * floats);
}

// Rows [row, row + 32) of the chunk's tokens: keys and queries of each two.
void load_tokens(F32 k, F32 q, uint row, uint dk, uint n, uint tid)
{
    uint i = row + (tid & 31u);
    for (uint p = tid >> 5; p < PAIRS; p += QUADS / 2u) {
        vec4 v = vec4(0.0);
        if (i < dk && 2u * p < n) v.x = k.d[2u * p * push.u[7] + i], v.z = q.d[2u * p * push.u[5] + i];
        if (i < dk && 2u * p + 1u < n)
            v.y = k.d[(2u * p + 1u) * push.u[7] + i], v.w = q.d[(2u * p + 1u) * push.u[5] + i];
        tile[tid & 31u][p] = v;
    }
}

// Rows [row, row + 64) of the keys as they are left at the chunk's end: of each two tokens, and 32 rows further on.
void load_keys(F32 k, uint row, uint dk, uint n, uint tid)
{
    uint i = row + (tid & 31u);
    for (uint p = tid >> 5; p < PAIRS; p += QUADS / 2u) {
        vec4 v = vec4(0.0);
        [[unroll]] for (uint h = 0u; h < 2u; h++) {
            uint t = 2u * p + h;
            if (t >= n) continue;
            if (i < dk) v[h] = left[t] * k.d[t * push.u[7] + i];
            if (i + 32u < dk) v[2u + h] = left[t] * k.d[t * push.u[7] + i + 32u];
        }
        tile[tid & 31u][p] = v;
    }
}

void main()
{
    uint tid = gl_LocalInvocationID.x, head = gl_WorkGroupID.y, r = tid / QUADS, c = tid % QUADS;
    uint dk = push.u[14] & 0xffffu, dv = push.u[14] >> 16, heads = push.u[15] & 0xffffu, key_heads = push.u[15] >> 16;
    uint threads = 16u * QUADS, m = 4u * (gl_WorkGroupID.z * QUADS + c), some = m < dv ? dv - m : 0u;
    U32 step = U32(push.a[0]);
    Run run;
    if (!run_at(step, gl_WorkGroupID.x, push.u[13], run) || !is_long(run, FEWEST)) return;
    uint from = (push.u[17] & 1u) != 0u ? head % key_heads : head / (heads / key_heads);
    uint chunk = chunks_before(step, gl_WorkGroupID.x, FEWEST);
    F32 matrix = F32(push.a[1] + 64ul * uint64_t(run.slot) * push.u[12] + whole_lines(4ul * dk * dv) * head + 4ul * m);
    float scale = uintBitsToFloat(push.u[16]);
    // What was accepted of a draft check is in the state already: delta_rule.comp ran before.
    for (uint i = r; i < ROWS; i += 16u)
        s[i][c] = i < dk && run.start != 0u ? load4(plus(matrix, uint64_t(i) * dv), some) : vec4(0.0);
    for (uint at = 0u; at < run.count; at += CHUNK, chunk++) {
        uint first = run.first + at, n = min(CHUNK, run.count - at);
        F32 q = F32(push.a[2] + 4ul * (from * push.u[4] + uint64_t(first) * push.u[5]));
        F32 k = F32(uint64_t(beside_q(0u)) + 4ul * (from * push.u[6] + uint64_t(first) * push.u[7]));
        F32 v = plus(beside_q(1u), head * push.u[8] + uint64_t(first) * push.u[9] + m);
        F32 y = F32(push.a[5] + 4ul * ((uint64_t(first) * heads + head) * dv + m));
        F32 pairs = chunk_floats(push.a[3], chunk, heads, head);
        vec4 sk[2] = {vec4(0.0), vec4(0.0)}, sq[2] = {vec4(0.0), vec4(0.0)};
        for (uint row = 0u; row < dk; row += 32u) {
            barrier();
            load_tokens(k, q, row, dk, n, tid);
            if (row == 0u && tid < CHUNK) {
                grown[tid] = pairs.d[2u * CHUNK * CHUNK + tid];
                left[tid] = pairs.d[2u * CHUNK * CHUNK + CHUNK + tid];
            }
            barrier();
            for (uint e = 0u; e < 32u; e++) {
                vec4 a = tile[e][r], b = s[row + e][c];
                sk[0] = fma(vec4(a.x), b, sk[0]);
                sk[1] = fma(vec4(a.y), b, sk[1]);
                sq[0] = fma(vec4(a.z), b, sq[0]);
                sq[1] = fma(vec4(a.w), b, sq[1]);
            }
        }
        [[unroll]] for (uint h = 0u; h < 2u; h++) {
            uint t = 2u * r + h;
            vec4 x = t < n ? load4(plus(v, uint64_t(t) * push.u[9]), some) : vec4(0.0);
            d[t][c] = fma(vec4(-grown[t]), sk[h], x);
        }
        barrier();
        for (uint i = tid; i < CHUNK * PAIRS; i += threads)
            tile[i / PAIRS][i % PAIRS] = F32x4A(uint64_t(pairs)).d[i];
        barrier();
        vec4 z[2] = {vec4(0.0), vec4(0.0)};
        for (uint j = 0u; j < 2u * r + 2u; j++) {
            vec4 p = tile[j][r], b = d[j][c];
            z[0] = fma(vec4(p.x), b, z[0]);
            z[1] = fma(vec4(p.y), b, z[1]);
        }
        barrier();
        d[2u * r][c] = z[0], d[2u * r + 1u][c] = z[1];
        barrier();
        sq[0] *= scale * grown[2u * r], sq[1] *= scale * grown[2u * r + 1u];
        for (uint j = 0u; j < 2u * r + 2u; j++) {
            vec4 p = tile[j][r], b = d[j][c];
            sq[0] = fma(vec4(p.z), b, sq[0]);
            sq[1] = fma(vec4(p.w), b, sq[1]);
        }
        [[unroll]] for (uint h = 0u; h < 2u; h++)
            if (2u * r + h < n) store4(plus(y, uint64_t(2u * r + h) * heads * dv), sq[h], some);
        float g = grown[CHUNK - 1u];
        for (uint row = 0u; row < dk; row += 64u) {
            barrier();
            load_keys(k, row, dk, n, tid);
            barrier();
            vec4 a[4];
            [[unroll]] for (uint h = 0u; h < 4u; h++) a[h] = g * s[row + 16u * h + r][c];
            for (uint p = 0u; p < PAIRS; p++) {
                vec4 x = tile[r][p], w = tile[r + 16u][p], d0 = d[2u * p][c], d1 = d[2u * p + 1u][c];
                a[0] = fma(vec4(x.y), d1, fma(vec4(x.x), d0, a[0]));
                a[1] = fma(vec4(w.y), d1, fma(vec4(w.x), d0, a[1]));
                a[2] = fma(vec4(x.w), d1, fma(vec4(x.z), d0, a[2]));
                a[3] = fma(vec4(w.w), d1, fma(vec4(w.z), d0, a[3]));
            }
            [[unroll]] for (uint h = 0u; h < 4u; h++) s[row + 16u * h + r][c] = a[h];
        }
    }
    for (uint i = r; i < dk; i += 16u) store4(plus(matrix, uint64_t(i) * dv), s[i][c], some);
}
