// rotate.cuh - a head through a block-diagonal orthogonal matrix, with its affine step, in shared memory.
#ifndef RQ_CUDA_ROTATE_CUH
#define RQ_CUDA_ROTATE_CUH

#include "cuda/common.cuh"

CONSTANT uint32_t MAX_TURN = 1024, TURN_THREADS = 64;

DEVICE bool turns_at_all(const cuda_rotation &r)
{
    return r.n_blocks || r.mean || r.lambda;
}

// Eight rows' sums of all lanes' parts at once: lane l returns that of row l / 4.
DEVICE float eight_sums(float v[8])
{
    uint32_t lane = thread_x() % 32;
#pragma unroll
    for (uint32_t n = 4, mask = 16; n > 0; n /= 2, mask /= 2)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if (i >= n) continue;
            bool upper = (lane & mask) != 0;
            float other = shfl_xor(upper ? v[i] : v[i + n], mask);
            v[i] = (upper ? v[i + n] : v[i]) + other;
        }
    float sum = v[0] + shfl_xor(v[0], 2);
    return sum + shfl_xor(sum, 1);
}

DEVICE float dot4(u32x4 a, u32x4 b, float sum)
{
    sum = fmaf(bits_float(a.x), bits_float(b.x), sum);
    sum = fmaf(bits_float(a.y), bits_float(b.y), sum);
    sum = fmaf(bits_float(a.z), bits_float(b.z), sum);
    return fmaf(bits_float(a.w), bits_float(b.w), sum);
}

// Large blocks, of which a matrix is read once in words of 16 bytes that neighbouring lanes take from one line: `count`
// blocks of `size` elements (a multiple of 8), matrices one behind the other; row is shared and ends as the product.
DEVICE bool is_large(const float *data, uint32_t size, uint32_t offset)
{
    return size >= 32 && size % 8 == 0 && offset % 4 == 0 && ((uint64_t)data & 15) == 0;
}

// y[e] = sum_c M[e][c] x[c]: a warp takes eight rows of the matrix at a time, a lane keeps one of 32 sums.
DEVICE void turn_large(const float *data, float *row, uint32_t size, uint32_t n)
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32;
    float kept[MAX_TURN / TURN_THREADS];
#pragma unroll
    for (uint32_t k = 0; k < MAX_TURN / TURN_THREADS; k++) {
        kept[k] = 0;
        if (TURN_THREADS * k >= n) continue;
#pragma unroll 1 // sixteen times in a row as it is
        for (uint32_t s = 0; s < 4; s++) {
            uint32_t r = TURN_THREADS * k + 32 * warp + 8 * s, block = r / size;
            if (r >= n) break;
            const float *m = data + (uint64_t)r * size, *x = row + block * size;
            float v[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) v[i] = 0;
            for (uint32_t c = 4 * lane; c < size; c += 128) {
                u32x4 there = load16(x + c), w[8];
#pragma unroll
                for (uint32_t i = 0; i < 8; i++) w[i] = load16(m + i * size + c);
#pragma unroll
                for (uint32_t i = 0; i < 8; i++) v[i] = dot4(w[i], there, v[i]);
            }
            float sum = eight_sums(v);
            if (lane % 4 == s) kept[k] = sum;
        }
    }
    block_sync();
#pragma unroll
    for (uint32_t k = 0; k < MAX_TURN / TURN_THREADS; k++) {
        uint32_t e = TURN_THREADS * k + 32 * warp + lane % 4 * 8 + lane / 4;
        if (e < n) row[e] = kept[k];
    }
    block_sync();
}

// y[e] = sum_c M[c][e] x[c]: a lane has four neighbouring sums of each 128, a warp every other c.
DEVICE void turn_large_back(const float *data, float *row, uint32_t size, uint32_t n)
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32;
    float kept[MAX_TURN / 128][4];
#pragma unroll
    for (uint32_t k = 0; k < MAX_TURN / 128; k++) {
        uint32_t e = 128 * k + 4 * lane, first = e / size * size;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) kept[k][i] = 0;
        if (e >= n) continue;
        const float *m = data + (uint64_t)first * size + (e - first), *x = row + first;
#pragma unroll 8
        for (uint32_t c = warp; c < size; c += 2) {
            u32x4 w = load16(m + (uint64_t)c * size);
            float v = x[c];
            kept[k][0] = fmaf(bits_float(w.x), v, kept[k][0]);
            kept[k][1] = fmaf(bits_float(w.y), v, kept[k][1]);
            kept[k][2] = fmaf(bits_float(w.z), v, kept[k][2]);
            kept[k][3] = fmaf(bits_float(w.w), v, kept[k][3]);
        }
    }
    block_sync();
    for (uint32_t half = 0; half < 2; half++) { // the warps' parts, always in this order
        if (warp == half) {
#pragma unroll
            for (uint32_t k = 0; k < MAX_TURN / 128; k++)
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    uint32_t e = 128 * k + 4 * lane + i;
                    if (e < n) row[e] = half ? row[e] + kept[k][i] : kept[k][i];
                }
        }
        block_sync();
    }
}

// Row of d elements of head h of `heads` by a block of 64 threads. Thread i brings the elements i + 64 k and finds them
// there when it returns; whatever else it wants of the row is behind a barrier, on both sides.
DEVICE void rotate_row(const cuda_rotation &r, float *row, uint32_t d, uint32_t h, uint32_t heads)
{
    uint32_t tid = thread_x();
    const float *mean = r.mean, *lambda = r.lambda, *data = r.data;
    if (mean) mean += (uint64_t)(h / (heads / r.mean_columns)) * d;
    if (lambda) lambda += (uint64_t)(h / (heads / r.lambda_columns)) * d;
    if (data) data += (uint64_t)(h / (heads / r.data_columns)) * r.data_floats;
    if (!r.inverse)
        for (uint32_t i = tid; i < d; i += TURN_THREADS) {
            float v = row[i];
            if (mean) v = v - mean[i];
            if (lambda) v = v * lambda[i];
            row[i] = v;
        }
    block_sync();
    uint32_t at = 0; // floats of data before this run of blocks
    for (uint32_t b = 0; b < r.n_blocks; b++) {
        uint32_t offset = r.blocks[b].offset, size = r.blocks[b].size, n = r.blocks[b].count * size;
        if (r.blocks[b].hadamard) {
            if (!r.inverse)
                for (uint32_t i = tid; i < n; i += TURN_THREADS) row[offset + i] *= data[at + i];
            block_sync();
            for (uint32_t stride = 1; stride < size; stride *= 2) {
                for (uint32_t i = tid; i < n / 2; i += TURN_THREADS) {
                    uint32_t q = offset + i / stride * 2 * stride + i % stride;
                    float u = row[q], v = row[q + stride];
                    row[q] = u + v;
                    row[q + stride] = u - v;
                }
                block_sync();
            }
            float factor = 1.0f / sqrtf((float)size);
            for (uint32_t i = tid; i < n; i += TURN_THREADS)
                row[offset + i] *= r.inverse ? factor * data[at + i] : factor;
            block_sync();
            at += n;
        } else if (is_large(data + at, size, offset)) {
            if (r.inverse)
                turn_large_back(data + at, row + offset, size, n);
            else
                turn_large(data + at, row + offset, size, n);
            at += n * size;
        } else {
            float kept[MAX_TURN / TURN_THREADS];
#pragma unroll
            for (uint32_t k = 0; k < MAX_TURN / TURN_THREADS; k++) {
                uint32_t i = tid + TURN_THREADS * k;
                kept[k] = 0;
                if (i < n) {
                    uint32_t m = at + i / size * size * size, e = i % size, first = offset + i / size * size;
                    float s = 0;
                    for (uint32_t c = 0; c < size; c++)
                        s += data[r.inverse ? m + c * size + e : m + e * size + c] * row[first + c];
                    kept[k] = s;
                }
            }
            block_sync();
#pragma unroll
            for (uint32_t k = 0; k < MAX_TURN / TURN_THREADS; k++)
                if (tid + TURN_THREADS * k < n) row[offset + tid + TURN_THREADS * k] = kept[k];
            block_sync();
            at += n * size;
        }
    }
    if (r.inverse && mean)
        for (uint32_t i = tid; i < d; i += TURN_THREADS) row[i] = row[i] + mean[i];
}

#endif
