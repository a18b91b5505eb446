// rotate.cuh - a head through a block-diagonal orthogonal matrix, with its affine step, in shared memory.
#ifndef RQ_CUDA_ROTATE_CUH
#define RQ_CUDA_ROTATE_CUH

#include "cuda/common.cuh"

CONSTANT uint32_t MAX_TURN = 1024, TURN_THREADS = 64;

DEVICE bool turns_at_all(const cuda_rotation &r)
{
    return r.n_blocks || r.mean || r.lambda;
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
