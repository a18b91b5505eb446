// matmul_coopmat.comp - y[o, t] = sum_i w[i, o] x[i, t] for many tokens with cooperative matrices of 16 x 16 x 16, f16
// times f16 summed in f32: tiles of 64 outputs x COLS tokens by four subgroups, a chunk of 32 elements (weights.glsl) at
// a time as halves in shared memory. x comes in halves below one (halve.comp), so the sums are of weights times
// numbers below one; a weight beyond the largest half becomes that. By expert: a tile of the work block of GROUP.
// The workgroup is four subgroups of whatever width the device has.
//   EMULATE  plain arithmetic in place of the matrices, which tests everything around them where no device has any
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#ifndef EMULATE
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#pragma use_vulkan_memory_model
#endif
#include "common.glsl"
#define WEIGHT_TYPE_ID 0
#include "weights.glsl"
layout(local_size_x_id = 6) in;
layout(constant_id = 1) const uint EXPERTS = 0u;
layout(constant_id = 2) const uint COLS = 64u;
layout(constant_id = 6) const uint INVOCATIONS = 128u;
const uint WN = COLS == 16u ? 1u : 2u; // subgroups beside each other, WN x 4 / WN
const uint FM = WN, FN = COLS / 16u / WN; // matrices of a subgroup: outputs, tokens
const uint STRIDE = 20u; // pairs from row to row: 32 elements and a gap against bank conflicts
shared f16vec2 ws[64u * STRIDE], xs[COLS * STRIDE];
shared float results[4u * 256u];
shared uint rows_x[COLS];
shared uint64_t to[COLS];
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F16x2 { f16vec2 d[]; };

#ifndef EMULATE
#define MATRIX_A coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MATRIX_B coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MATRIX_C coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define LOAD_A(a, at) coopMatLoad(a, ws, at, STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define LOAD_B(b, at) coopMatLoad(b, xs, at, STRIDE, gl_CooperativeMatrixLayoutColumnMajor)
#define STORE_C(c, at) coopMatStore(c, results, at, 16u, gl_CooperativeMatrixLayoutColumnMajor)
#define ZERO_C MATRIX_C(0.0)
#define MUL_ADD(a, b, c) c = coopMatMulAdd(a, b, c)
#else
#define MATRIX_A uint
#define MATRIX_B uint
struct MATRIX_C { float e[64]; }; // of an invocation; subgroups of 4 or more
#define LOAD_A(a, at) a = at
#define LOAD_B(b, at) b = at
#define STORE_C(c, at) \
    for (uint k_ = 0u; k_ * gl_SubgroupSize < 256u; k_++) \
        results[at + k_ * gl_SubgroupSize + gl_SubgroupInvocationID] = c.e[k_]
#define MUL_ADD(a, b, c) \
    for (uint k_ = 0u; k_ * gl_SubgroupSize < 256u; k_++) { \
        uint e_ = k_ * gl_SubgroupSize + gl_SubgroupInvocationID; \
        for (uint p_ = 0u; p_ < 8u; p_++) { \
            vec2 u_ = vec2(ws[a + e_ % 16u * STRIDE + p_]), v_ = vec2(xs[b + e_ / 16u * STRIDE + p_]); \
            c.e[k_] += u_.x * v_.x + u_.y * v_.y; \
        } \
    }
#endif

float16_t to_half(float x)
{
    return float16_t(clamp(x, -65504.0, 65504.0));
}

// as matmul.comp; a[2] is what halve.comp wrote, u[3] its rows
void main()
{
    uint tid = gl_LocalInvocationID.x, n_in = push.u[0], n_out = push.u[1], first = gl_WorkGroupID.x * 64u;
    uint padded = (n_in + 31u) / 32u * 32u;
    uint64_t w = push.a[0];
    uint n_cols;
    if (EXPERTS != 0u) {
        U32 g = U32(push.a[5]);
        if (gl_WorkGroupID.y >= g.d[1]) return;
        uint tile = push.u[13] + 3u * gl_WorkGroupID.y, k = push.u[5];
        n_cols = g.d[tile + 2u];
        w += uint64_t(g.d[tile]) * (uint64_t(push.u[8]) << 32 | push.u[7]);
        for (uint i = tid; i < n_cols; i += INVOCATIONS) {
            uint pair = g.d[push.u[12] + g.d[tile + 1u] + i];
            rows_x[i] = push.u[9] != 0u ? pair : pair / k;
            to[i] = push.a[3] + 4ul * uint64_t(pair) * n_out;
        }
    } else {
        uint t = gl_WorkGroupID.y * COLS, n = push.u[5];
        if (push.a[4] != 0ul) n = min(n, U32(push.a[4]).d[push.u[6]]);
        if (t >= n) return;
        n_cols = min(COLS, n - t);
        for (uint i = tid; i < n_cols; i += INVOCATIONS) {
            rows_x[i] = t + i;
            to[i] = push.a[3] + 4ul * uint64_t(t + i) * push.u[4];
        }
    }
    pairs_fill(push.a[1], tid, INVOCATIONS);
    barrier();
    MATRIX_C sums[FM * FN];
#ifndef EMULATE
    [[unroll]] for (uint i = 0u; i < FM * FN; i++) sums[i] = ZERO_C;
#else
    for (uint i = 0u; i < FM * FN; i++)
        for (uint k = 0u; k < 64u; k++) sums[i].e[k] = 0.0;
#endif
    uint m0 = gl_SubgroupID / WN * FM, n0 = gl_SubgroupID % WN * FN; // this subgroup's first matrices
    uint per = IS_FLOAT ? 1u : chunks_per_block();
    for (uint j = 0u; 32u * j < n_in; j++) {
        uint c = j % per, start = IS_FLOAT ? 32u * j : j / per * block_elems();
        for (uint i = tid; i < 128u; i += INVOCATIONS) { // 64 rows, two halves of a chunk
            uint row = i % 64u, h = i / 64u;
            uint64_t at = w + uint64_t(min(first + row, n_out - 1u)) * push.u[2];
            float v[16];
            if (IS_FLOAT) {
                weights16(at, push.a[1], 2u * j + h, n_in, v);
            } else {
                uint64_t block = at + uint64_t(j / per * block_bytes());
                uvec4 q;
                float scale, low;
                half_of(raw_of(block, c), block, push.a[1], c, h, q, scale, low);
                widen(q, scale, low, v);
            }
            [[unroll]] for (uint k = 0u; k < 8u; k++)
                ws[row * STRIDE + 8u * h + k] = f16vec2(to_half(v[2u * k]), to_half(v[2u * k + 1u]));
        }
        for (uint i = tid; i < 2u * COLS; i += INVOCATIONS) {
            uint col = i % COLS, h = i / COLS, e = IS_FLOAT ? start + 16u * h : start + half_at(c, h);
            if (col < n_cols) {
                F16x2 x = F16x2(push.a[2] + 2ul * (uint64_t(rows_x[col]) * padded + e));
                [[unroll]] for (uint k = 0u; k < 8u; k++) xs[col * STRIDE + 8u * h + k] = x.d[k];
            } else {
                [[unroll]] for (uint k = 0u; k < 8u; k++) xs[col * STRIDE + 8u * h + k] = f16vec2(0.0);
            }
        }
        barrier();
        [[unroll]] for (uint k = 0u; k < 2u; k++) {
            MATRIX_A a[FM];
            [[unroll]] for (uint m = 0u; m < FM; m++) LOAD_A(a[m], 16u * (m0 + m) * STRIDE + 8u * k);
            [[unroll]] for (uint n = 0u; n < FN; n++) {
                MATRIX_B b;
                LOAD_B(b, 16u * (n0 + n) * STRIDE + 8u * k);
                [[unroll]] for (uint m = 0u; m < FM; m++) MUL_ADD(a[m], b, sums[m * FN + n]);
            }
        }
        barrier();
    }
    // results leave through shared memory, where each element has its place
    F32 scales = F32(push.a[2] + 2ul * uint64_t(push.u[3]) * padded);
    [[unroll]] for (uint i = 0u; i < FM * FN; i++) {
        STORE_C(sums[i], 256u * gl_SubgroupID);
        barrier();
        for (uint k = tid; k < 1024u; k += INVOCATIONS) {
            uint s = k / 256u, col = 16u * (s % WN * FN + i % FN) + k % 256u / 16u,
                 row = first + 16u * (s / WN * FM + i / FN) + k % 16u;
            if (col < n_cols && row < n_out) F32(to[col]).d[row] = results[k] * scales.d[rows_x[col]];
        }
        barrier();
    }
}
