// attend_coopmat.comp - prompts' attention (attend_tile.glsl) with cooperative matrices of 16 x 16 x 16, f16 times f16
// summed in f32, by four subgroups of whatever width. Queries come as halves below one with a scale for each row
// (halve.comp) and stay in registers for all pages.
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
#include "pages.glsl"
#include "attend_state.glsl"
#define PAIR f16vec2
#define PADDING 4u
f16vec2 pair_of(vec2 x)
{
    return f16vec2(x);
}
f16vec2 pair_bits(uint x)
{
    return unpackFloat2x16(x);
}
#include "attend_tile.glsl"
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F16x2 { f16vec2 d[]; };
const uint STEPS = WIDTH / 16u;         // of 16 elements in a row
const uint BLOCKS = KEYS / 32u;         // of 16 keys, for a subgroup: it has 16 rows and every other block
const uint OWN = 1024u / INVOCATIONS;   // results of an invocation in 32 rows x 32 elements
float sums[SUMS];

#ifndef EMULATE
#define MATRIX_A coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MATRIX_B coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MATRIX_C coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define ZERO(c)  c = MATRIX_C(0.0)
#define LOAD_QUERIES(a, row, i) coopMatLoad(a, kv, (row) * STRIDE + 8u * (i), STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define LOAD_WEIGHTS(a, row, i) coopMatLoad(a, weight, (row) * (KEYS / 2u) + 8u * (i), KEYS / 2u, gl_CooperativeMatrixLayoutRowMajor)
#define LOAD_KEYS(b, key, i) coopMatLoad(b, kv, (key) * STRIDE + 8u * (i), STRIDE, gl_CooperativeMatrixLayoutColumnMajor)
#define LOAD_VALUES(b, key, i) coopMatLoad(b, kv, (key) * STRIDE + 8u * (i), STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define MUL_ADD(a, b, c) c = coopMatMulAdd(a, b, c)
#define STORE(c, at, stride) coopMatStore(c, score, at, stride, gl_CooperativeMatrixLayoutRowMajor)
#else
struct MATRIX_A { uint kind, row, i; };
struct MATRIX_B { uint kind, key, i; };
struct MATRIX_C { float e[64]; }; // of an invocation; subgroups of 8 or more use fewer
#define ZERO(c) \
    for (uint k_ = 0u; k_ < 64u; k_++) c.e[k_] = 0.0
#define LOAD_QUERIES(a, row, i) a = MATRIX_A(0u, row, i)
#define LOAD_WEIGHTS(a, row, i) a = MATRIX_A(1u, row, i)
#define LOAD_KEYS(b, key, i) b = MATRIX_B(0u, key, i)
#define LOAD_VALUES(b, key, i) b = MATRIX_B(1u, key, i)
F16x2 halves_of(uint row);
float of_a(MATRIX_A a, uint row, uint i)
{
    uint e = 16u * a.i + i;
    if (a.kind == 1u) return float(weight[(a.row + row) * (KEYS / 2u) + e / 2u][e & 1u]);
    return e < pool_word(push.a[1], G_DK) ? float(halves_of(a.row + row).d[e / 2u][e & 1u]) : 0.0;
}
float of_b(MATRIX_B b, uint i, uint column)
{
    uint e = 16u * b.i;
    return b.kind == 0u ? float(kv[(b.key + column) * STRIDE + (e + i) / 2u][i & 1u])
                        : float(kv[(b.key + i) * STRIDE + (e + column) / 2u][column & 1u]);
}
#define MUL_ADD(a, b, c) \
    for (uint k_ = 0u; k_ * gl_SubgroupSize < 256u; k_++) { \
        uint e_ = k_ * gl_SubgroupSize + gl_SubgroupInvocationID; \
        for (uint i_ = 0u; i_ < 16u; i_++) c.e[k_] += of_a(a, e_ / 16u, i_) * of_b(b, i_, e_ % 16u); \
    }
#define STORE(c, at, stride) \
    for (uint k_ = 0u; k_ * gl_SubgroupSize < 256u; k_++) { \
        uint e_ = k_ * gl_SubgroupSize + gl_SubgroupInvocationID; \
        score[(at) + e_ / 16u * (stride) + e_ % 16u] = c.e[k_]; \
    }
#endif
MATRIX_A queries[STEPS];

// Of a row: halves, and what their products are to be multiplied by.
F16x2 halves_of(uint row)
{
    uint padded = (pool_word(push.a[1], G_DK) + 31u) / 32u * 32u;
    return F16x2(push.a[4] + 2ul * uint64_t(token_of(row) * push.u[2] + head_of(row)) * padded);
}

float row_scale(uint row)
{
    uint padded = (pool_word(push.a[1], G_DK) + 31u) / 32u * 32u;
    F32 scales = F32(push.a[4] + 2ul * uint64_t(push.u[12]) * padded);
    return uintBitsToFloat(push.u[6]) * scales.d[token_of(row) * push.u[2] + head_of(row)];
}

void begin(uint dk)
{
    for (uint i = 0u; i < SUMS; i++) sums[i] = 0.0;
    uint tid = gl_LocalInvocationID.x;
#ifndef EMULATE
    for (uint r = tid; r < ROWS * (WIDTH / 2u); r += INVOCATIONS) {
        uint row = r / (WIDTH / 2u), e = r % (WIDTH / 2u);
        kv[row * STRIDE + e] = 2u * e < dk ? halves_of(row).d[e] : f16vec2(0.0);
    }
    barrier();
#endif
    [[unroll]] for (uint i = 0u; i < STEPS; i++) LOAD_QUERIES(queries[i], 16u * (gl_SubgroupID / 2u), i);
    barrier();
    // elements behind the last are zero in keys and values for good
    for (uint r = tid; r < KEYS * (WIDTH / 2u); r += INVOCATIONS) kv[r / (WIDTH / 2u) * STRIDE + r % (WIDTH / 2u)] = f16vec2(0.0);
}

void scores()
{
    [[unroll]] for (uint n = 0u; n < BLOCKS; n++) {
        uint block = gl_SubgroupID % 2u + 2u * n;
        MATRIX_C c;
        ZERO(c);
        [[unroll]] for (uint i = 0u; i < STEPS; i++) {
            MATRIX_B b;
            LOAD_KEYS(b, 16u * block, i);
            MUL_ADD(queries[i], b, c);
        }
        STORE(c, 16u * (gl_SubgroupID / 2u) * KEYS + 16u * block, KEYS);
    }
}

// Results leave the matrices through shared memory, where each element has its place.
void values(uint dv)
{
    uint tid = gl_LocalInvocationID.x;
    [[unroll]] for (uint n = 0u; n < SUMS / OWN; n++) {
        if (32u * n < dv) {
            MATRIX_C c;
            ZERO(c);
            [[unroll]] for (uint i = 0u; i < KEYS / 16u; i++) {
                MATRIX_A a;
                MATRIX_B b;
                LOAD_WEIGHTS(a, 16u * (gl_SubgroupID / 2u), i);
                LOAD_VALUES(b, 16u * i, 2u * n + gl_SubgroupID % 2u);
                MUL_ADD(a, b, c);
            }
            STORE(c, 16u * (gl_SubgroupID / 2u) * 32u + 16u * (gl_SubgroupID % 2u), 32u);
            barrier();
            [[unroll]] for (uint k = 0u; k < OWN; k++) {
                uint e = tid + k * INVOCATIONS;
                sums[n * OWN + k] = sums[n * OWN + k] * faded[e / 32u] + score[e];
            }
            barrier();
        }
    }
}

void results(uint dv)
{
    [[unroll]] for (uint n = 0u; n < SUMS / OWN; n++)
        [[unroll]] for (uint k = 0u; k < OWN; k++) {
            uint e = gl_LocalInvocationID.x + k * INVOCATIONS, row = e / 32u, at = 32u * n + e % 32u;
            if (row < n_rows && at < dv)
                F32(push.a[3]).d[(token_of(row) * push.u[2] + head_of(row)) * dv + at] = sums[n * OWN + k] * faded[row];
        }
}
#define BEGIN(dk) begin(dk)
#define SCORES    scores()
#define VALUES    values(dv)
#define RESULTS   results(dv)
#include "attend_tile_main.glsl"
