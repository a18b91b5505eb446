// matmul.comp - y[o, t] = sum_i w[i, o] x[i, t] for many tokens: tiles of 64 outputs x COLS tokens, a chunk of 32
// elements (weights.glsl) at a time unpacked into shared memory, each code read once for a tile. An invocation sums 4 x
// COLS / 8 results. By expert: a tile of the work block of GROUP (16 pairs) instead of COLS tokens; COLS is 16.
//   (neither)  elements in f32
//   USE_F16    sixteen products of codes with x in halves of unit size, then f32; block types
//   USE_DOT    x comes as bytes (quantize.comp) and meets codes in integer dot products; block types
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define WEIGHT_TYPE_ID 0
#include "weights.glsl"
#if defined(USE_DOT)
#include "dot.glsl"
#elif defined(USE_F16)
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#endif
layout(local_size_x = 128) in;
layout(constant_id = 1) const uint EXPERTS = 0u;
layout(constant_id = 2) const uint COLS = 64u;
const uint TN = COLS / 8u;
#if defined(USE_DOT)
shared uvec4 ws[2][64], xs[2][COLS];
shared vec2 w_scale[2][64], x_scale[2][COLS];
#elif defined(USE_F16)
shared f16vec2 ws[16][64], xs[16][COLS]; // two neighbours
shared vec2 w_scale[2][64], x_scale[2][COLS];
#else
shared vec4 ws[32][17]; // [element][rows by four]
shared float xs[32][COLS];
#endif
shared uint64_t from[COLS], to[COLS];
// a: w, tables, x, y, step, group; u as in matvec.comp, then [12] offset of order, [13] offset of tiles; by token: [5]
// columns, [6] word of the step that counts the real ones. With USE_DOT a[2] is what quantize.comp wrote.
void main()
{
    uint tid = gl_LocalInvocationID.x, n_in = push.u[0], n_out = push.u[1], first = gl_WorkGroupID.x * 64u;
    uint64_t w = push.a[0];
    uint n_cols;
    if (EXPERTS != 0u) {
        U32 g = U32(push.a[5]);
        if (gl_WorkGroupID.y >= g.d[1]) return;
        uint tile = push.u[13] + 3u * gl_WorkGroupID.y, k = push.u[5];
        n_cols = g.d[tile + 2u];
        w += uint64_t(g.d[tile]) * (uint64_t(push.u[8]) << 32 | push.u[7]);
        if (tid < n_cols) {
            uint pair = g.d[push.u[12] + g.d[tile + 1u] + tid];
#ifdef USE_DOT
            from[tid] = push.u[9] != 0u ? pair : pair / k;
#else
            from[tid] =
                push.a[2] + 4ul * (uint64_t(pair / k) * push.u[3] + (push.u[9] != 0u ? pair % k * push.u[10] : 0u));
#endif
            to[tid] = push.a[3] + 4ul * uint64_t(pair) * n_out;
        }
    } else {
        uint t = gl_WorkGroupID.y * COLS, n = push.u[5];
        if (push.a[4] != 0ul) n = min(n, U32(push.a[4]).d[push.u[6]]);
        if (t >= n) return;
        n_cols = min(COLS, n - t);
        if (tid < n_cols) {
#ifdef USE_DOT
            from[tid] = t + tid;
#else
            from[tid] = push.a[2] + 4ul * uint64_t(t + tid) * push.u[3];
#endif
            to[tid] = push.a[3] + 4ul * uint64_t(t + tid) * push.u[4];
        }
    }
    pairs_fill(push.a[1], tid, 128u);
    barrier();
    float acc[4][TN];
    [[unroll]] for (uint m = 0u; m < 4u; m++)
        [[unroll]] for (uint c = 0u; c < TN; c++) acc[m][c] = 0.0;
    uint r0 = tid % 16u, c0 = tid / 16u, row = tid % 64u, h = tid / 64u, col = tid % COLS, x_half = tid / COLS;
    uint64_t w_row = w + uint64_t(min(first + row, n_out - 1u)) * push.u[2];
    uint per = IS_FLOAT ? 1u : chunks_per_block();
    for (uint j = 0u; 32u * j < n_in; j++) {
        uint c = j % per, start = IS_FLOAT ? 32u * j : j / per * block_elems();
        uint64_t block = w_row + uint64_t(j / per * block_bytes());
#if !defined(USE_DOT) && !defined(USE_F16)
        float v[16];
        if (IS_FLOAT) {
            weights16(w_row, push.a[1], 2u * j + h, n_in, v);
        } else
#endif
        {
            uvec4 q;
            float scale, low;
            half_of(raw_of(block, c), block, push.a[1], c, h, q, scale, low);
#if defined(USE_DOT)
            ws[h][row] = q;
            w_scale[h][row] = vec2(scale, low);
#elif defined(USE_F16)
            [[unroll]] for (uint i = 0u; i < 8u; i++)
                ws[8u * h + i][row] = f16vec2(code_at(q, 2u * i), code_at(q, 2u * i + 1u));
            w_scale[h][row] = vec2(scale, low);
#else
            widen(q, scale, low, v);
#endif
        }
#if !defined(USE_DOT) && !defined(USE_F16)
        [[unroll]] for (uint i = 0u; i < 16u; i++) ws[16u * h + i][row / 4u][row % 4u] = v[i];
#endif
        for (uint g = x_half; g < 2u; g += 128u / COLS) {
            uint e = IS_FLOAT ? start + 16u * g : start + half_at(c, g);
#if defined(USE_DOT)
            uvec4 b = uvec4(0u);
            vec2 d = vec2(0.0);
            if (col < n_cols) quantized16(push.a[2], push.u[3], n_in, uint(from[col]), e / 16u, b, d);
            xs[g][col] = b;
            x_scale[g][col] = d;
#else
            float x[16];
            [[unroll]] for (uint i = 0u; i < 16u; i++) x[i] = 0.0;
            if (col < n_cols) {
                F32 f = F32(from[col] + 4ul * e);
                [[unroll]] for (uint i = 0u; i < 16u; i++)
                    if (!IS_FLOAT || e + i < n_in) x[i] = f.d[i];
            }
#if defined(USE_F16)
            float most = 0.0, sum = 0.0;
            [[unroll]] for (uint i = 0u; i < 16u; i++) {
                most = max(most, abs(x[i]));
                sum += x[i];
            }
            float d = most > 0.0 ? most : 1.0, inverse = 1.0 / d;
            [[unroll]] for (uint i = 0u; i < 8u; i++)
                xs[8u * g + i][col] = f16vec2(x[2u * i] * inverse, x[2u * i + 1u] * inverse);
            x_scale[g][col] = vec2(d, sum);
#else
            [[unroll]] for (uint i = 0u; i < 16u; i++) xs[16u * g + i][col] = x[i];
#endif
#endif
        }
        barrier();
#if defined(USE_DOT) || defined(USE_F16)
        [[unroll]] for (uint g = 0u; g < 2u; g++) {
#if defined(USE_DOT)
            uvec4 a[4];
#else
            f16vec2 s[4][TN];
            [[unroll]] for (uint m = 0u; m < 4u; m++)
                [[unroll]] for (uint n = 0u; n < TN; n++) s[m][n] = f16vec2(0.0);
            [[unroll]] for (uint i = 0u; i < 8u; i++) {
                f16vec2 p[4];
                [[unroll]] for (uint m = 0u; m < 4u; m++) p[m] = ws[8u * g + i][4u * r0 + m];
                [[unroll]] for (uint n = 0u; n < TN; n++) {
                    f16vec2 b = xs[8u * g + i][c0 + 8u * n];
                    [[unroll]] for (uint m = 0u; m < 4u; m++) s[m][n] = fma(p[m], b, s[m][n]);
                }
            }
#endif
            vec2 aw[4];
            [[unroll]] for (uint m = 0u; m < 4u; m++) {
#if defined(USE_DOT)
                a[m] = ws[g][4u * r0 + m];
#endif
                aw[m] = w_scale[g][4u * r0 + m];
            }
            [[unroll]] for (uint n = 0u; n < TN; n++) {
                vec2 d = x_scale[g][c0 + 8u * n];
#if defined(USE_DOT)
                uvec4 b = xs[g][c0 + 8u * n];
#endif
                [[unroll]] for (uint m = 0u; m < 4u; m++) {
#if defined(USE_DOT)
                    float sum = float(dot16(a[m], b));
#else
                    float sum = float(s[m][n].x) + float(s[m][n].y);
#endif
                    acc[m][n] = fma(aw[m].x * d.x, sum, acc[m][n]);
                    if (HAS_LOW) acc[m][n] = fma(-aw[m].y, d.y, acc[m][n]);
                }
            }
        }
#else
        for (uint i = 0u; i < 32u; i++) {
            vec4 a = ws[i][r0];
            [[unroll]] for (uint n = 0u; n < TN; n++) {
                float b = xs[i][c0 + 8u * n];
                [[unroll]] for (uint m = 0u; m < 4u; m++) acc[m][n] = fma(a[m], b, acc[m][n]);
            }
        }
#endif
        barrier();
    }
    [[unroll]] for (uint n = 0u; n < TN; n++) {
        uint at = c0 + 8u * n;
        if (at >= n_cols) continue;
        [[unroll]] for (uint m = 0u; m < 4u; m++)
            if (first + 4u * r0 + m < n_out) F32(to[at]).d[first + 4u * r0 + m] = acc[m][n];
    }
}
