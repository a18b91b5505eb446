// matmul.cuh - products of many columns: tiles of 64 outputs x 64 tokens (16 pairs of one expert), 32 elements at a
// time. Weights are widened once for a tile into halves in shared memory, activations are rounded to the same type, and
// matrix units multiply: bf16 for block types and bf16 (it has the range of floats), f16 for f16, where activations are
// the sum of two halves: models with such weights are taken for exact. f32 and f64 stay floats.
#ifndef RQ_CUDA_MATMUL_CUH
#define RQ_CUDA_MATMUL_CUH

#include "cuda/weights.cuh"

CONSTANT uint32_t MM_OUT = 64, MM_K = 32,
                  MM_STRIDE = MM_K + 8 /* halves; rows of a fragment in different banks */;

// The columns of this block's tile: where they come from and go to. False when there are none.
template <uint32_t COLUMNS>
DEVICE bool find_columns(const cuda_matmul_args &p, const uint8_t *&w, uint64_t *from, uint64_t *to,
                         uint32_t &n)
{
    uint32_t tid = thread_x();
    w = p.w;
    if (p.group) {
        const uint32_t *g = p.group;
        if (block_y() >= g[1]) return false;
        const uint32_t *tile = g + p.tiles + 3 * block_y();
        w += tile[0] * p.expert_bytes;
        n = tile[2];
        if (tid < n) {
            uint32_t pair = g[p.order + tile[1] + tid];
            from[tid] = pair / p.n_used * p.x_stride + pair % p.n_used * p.slot_stride;
            to[tid] = (uint64_t)pair * p.n_out;
        }
    } else {
        uint32_t t = block_y() * COLUMNS, all = p.columns;
        if (p.step) all = min_u(all, p.step[p.extent_word]);
        if (t >= all) return false;
        n = min_u(COLUMNS, all - t);
        if (tid < n) {
            from[tid] = (t + tid) * p.x_stride;
            to[tid] = (t + tid) * p.y_stride;
        }
    }
    block_sync();
    return true;
}

template <int TYPE> DEVICE uint32_t narrow_half(float v)
{
    return TYPE == 1 ? half_bits(v) : bf16_bits(v);
}

template <int TYPE> DEVICE u32x4 narrow8(const float v[8])
{
    u32x4 b;
    b.x = narrow_half<TYPE>(v[0]) | narrow_half<TYPE>(v[1]) << 16;
    b.y = narrow_half<TYPE>(v[2]) | narrow_half<TYPE>(v[3]) << 16;
    b.z = narrow_half<TYPE>(v[4]) | narrow_half<TYPE>(v[5]) << 16;
    b.w = narrow_half<TYPE>(v[6]) | narrow_half<TYPE>(v[7]) << 16;
    return b;
}

template <int TYPE, uint32_t COLUMNS> DEVICE void matmul_halves(const cuda_matmul_args &p)
{
    SHARED(uint16_t, ws, MM_OUT * MM_STRIDE);
    SHARED(uint16_t, xs, COLUMNS * MM_STRIDE);
    SHARED(uint16_t, rest, TYPE == 1 ? COLUMNS * MM_STRIDE : 8); // what xs lacks
    SHARED(uint64_t, from, COLUMNS);
    SHARED(uint64_t, to, COLUMNS);
    SHARED(float, shrink, COLUMNS); // f16: a power of two that brings a column into its range
    uint32_t tid = thread_x(), warp = tid / 32, lane = tid % 32, first = block_x() * MM_OUT, n_columns;
    const uint8_t *w;
    if (!find_columns<COLUMNS>(p, w, from, to, n_columns)) return;
    if (TYPE == 1) {
        for (uint32_t c = warp; c < COLUMNS; c += 4) {
            float largest = 0;
            if (c < n_columns)
                for (uint32_t i = lane; i < p.n_in; i += 32)
                    largest = fmaxf(largest, fabsf(p.x[from[c] + i]));
            largest = warp_max(largest);
            uint32_t e = float_bits(largest) >> 23 & 255u;
            if (lane == 0)
                shrink[c] = e > 127 + 14 && e < 255 ? bits_float((127u + 127 + 14 - e) << 23) : 1.0f;
        }
        block_sync();
    }
    float acc[COLUMNS / 8][4];
#pragma unroll
    for (uint32_t i = 0; i < COLUMNS / 8; i++) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;
    for (uint32_t k0 = 0; k0 < p.n_in; k0 += MM_K) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) { // 64 rows x 4 eights
            uint32_t q = tid + 128 * i, r = q / 4, j = q % 4;
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (first + r < p.n_out && k0 + 8 * j < p.n_in)
                weights8_float<TYPE>(w + (uint64_t)(first + r) * p.row_bytes, p.tables, k0 / 8 + j, p.n_in,
                                     v);
            store16(ws + r * MM_STRIDE + 8 * j, narrow8<TYPE>(v));
        }
        for (uint32_t q = tid; q < COLUMNS * 4; q += 128) {
            uint32_t c = q / 4, j = q % 4;
            float v[8];
            const float *x = p.x + (c < n_columns ? from[c] : 0);
            float f = TYPE == 1 ? shrink[c] : 1.0f;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                uint32_t e = k0 + 8 * j + i;
                v[i] = c < n_columns && e < p.n_in ? x[e] * f : 0.0f;
            }
            store16(xs + c * MM_STRIDE + 8 * j, narrow8<TYPE>(v));
            if (TYPE == 1) {
#pragma unroll
                for (uint32_t i = 0; i < 8; i++) v[i] = v[i] - half_float(half_bits(v[i]));
                store16(rest + c * MM_STRIDE + 8 * j, narrow8<TYPE>(v));
            }
        }
        block_sync();
        uint32_t a[2][4];
#pragma unroll
        for (uint32_t s = 0; s < 2; s++)
            ldmatrix_x4(a[s], ws + (16 * warp + lane % 16) * MM_STRIDE + 16 * s + lane / 16 * 8);
#pragma unroll
        for (uint32_t i = 0; i < COLUMNS / 8; i++) {
            uint32_t b[4];
            ldmatrix_x4(b, xs + (8 * i + lane % 8) * MM_STRIDE + lane / 8 * 8);
            if (TYPE == 1) {
                mma_f16(acc[i], a[0], b);
                mma_f16(acc[i], a[1], b + 2);
                ldmatrix_x4(b, rest + (8 * i + lane % 8) * MM_STRIDE + lane / 8 * 8);
                mma_f16(acc[i], a[0], b);
                mma_f16(acc[i], a[1], b + 2);
            } else {
                mma_bf16(acc[i], a[0], b);
                mma_bf16(acc[i], a[1], b + 2);
            }
        }
        block_sync();
    }
#pragma unroll
    for (uint32_t i = 0; i < COLUMNS / 8; i++)
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t r = first + 16 * warp + lane / 4 + k / 2 * 8, c = 8 * i + lane % 4 * 2 + k % 2;
            if (r < p.n_out && c < n_columns) p.y[to[c] + r] = TYPE == 1 ? acc[i][k] / shrink[c] : acc[i][k];
        }
}

// Floats by floats: a thread makes 4 x COLUMNS / 8 of the tile.
template <int TYPE, uint32_t COLUMNS> DEVICE void matmul_floats(const cuda_matmul_args &p)
{
    SHARED(float, ws, MM_OUT *(MM_K + 1));
    SHARED(float, xs, COLUMNS *(MM_K + 1));
    SHARED(uint64_t, from, COLUMNS);
    SHARED(uint64_t, to, COLUMNS);
    uint32_t tid = thread_x(), first = block_x() * MM_OUT, n_columns, r0 = tid % 16, c0 = tid / 16;
    const uint8_t *w;
    if (!find_columns<COLUMNS>(p, w, from, to, n_columns)) return;
    float acc[4][COLUMNS / 8];
#pragma unroll
    for (uint32_t m = 0; m < 4; m++)
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS / 8; c++) acc[m][c] = 0;
    for (uint32_t k0 = 0; k0 < p.n_in; k0 += MM_K) {
        for (uint32_t q = tid; q < MM_OUT * MM_K; q += 128) {
            uint32_t r = q / MM_K, i = q % MM_K;
            ws[r * (MM_K + 1) + i] = first + r < p.n_out && k0 + i < p.n_in
                                         ? weight_float<TYPE>(w + (uint64_t)(first + r) * p.row_bytes, k0 + i)
                                         : 0.0f;
        }
        for (uint32_t q = tid; q < COLUMNS * MM_K; q += 128) {
            uint32_t c = q / MM_K, i = q % MM_K;
            xs[c * (MM_K + 1) + i] = c < n_columns && k0 + i < p.n_in ? p.x[from[c] + k0 + i] : 0.0f;
        }
        block_sync();
        for (uint32_t i = 0; i < MM_K; i++) {
            float a[4];
#pragma unroll
            for (uint32_t m = 0; m < 4; m++) a[m] = ws[(r0 + 16 * m) * (MM_K + 1) + i];
#pragma unroll
            for (uint32_t c = 0; c < COLUMNS / 8; c++) {
                float b = xs[(c0 + 8 * c) * (MM_K + 1) + i];
#pragma unroll
                for (uint32_t m = 0; m < 4; m++) acc[m][c] = fmaf(a[m], b, acc[m][c]);
            }
        }
        block_sync();
    }
#pragma unroll
    for (uint32_t m = 0; m < 4; m++)
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS / 8; c++) {
            uint32_t r = first + r0 + 16 * m, column = c0 + 8 * c;
            if (r < p.n_out && column < n_columns) p.y[to[column] + r] = acc[m][c];
        }
}

template <int TYPE, uint32_t COLUMNS> DEVICE void matmul(const cuda_matmul_args &p)
{
    if constexpr (TYPE == 0 || TYPE == 28)
        matmul_floats<TYPE, COLUMNS>(p);
    else
        matmul_halves<TYPE, COLUMNS>(p);
}

#define MATMUL_KERNEL(type)                                                                                  \
    KERNEL(matmul_##type, cuda_matmul_args, CUDA_MATMUL_THREADS)                                             \
    {                                                                                                        \
        if (p.group)                                                                                         \
            matmul<type, 16>(p);                                                                             \
        else                                                                                                 \
            matmul<type, 64>(p);                                                                             \
    }

#endif
