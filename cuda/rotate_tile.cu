// rotate_tile.cu - heads of wide steps through one matrix as large as a head (haar, klt): a product of 32 tokens with
// the matrix, which a block reads once for all of them. In floats: a rotation's error must not show.
#include "cuda/common.cuh"

CONSTANT uint32_t RT_D = 256, RT_TOKENS = 32, RT_OUT = 64, RT_STEP = 32;

// Block: a head and 32 tokens; a thread: 2 tokens x 4 outputs of 64 at a time.
KERNEL(rotate_tile, cuda_turn_args, 256)
{
    SHARED(float, rows, RT_D *(RT_TOKENS + 2)); // [element][token]
    SHARED(float, tile, RT_STEP *(RT_OUT + 4)); // [element][output]
    uint32_t tid = thread_x(), h = block_x(), first = block_y() * RT_TOKENS, d = p.d;
    const float *data = p.data + (uint64_t)(h / (p.heads / p.data_columns)) * d * d;
    const float *mean = p.mean, *lambda = p.lambda;
    if (mean) mean += (uint64_t)(h / (p.heads / p.mean_columns)) * d;
    if (lambda) lambda += (uint64_t)(h / (p.heads / p.lambda_columns)) * d;
    for (uint32_t t = tid / 64; t < RT_TOKENS; t += 4)
        for (uint32_t i = tid % 64; i < d; i += 64) {
            float v = 0;
            if (first + t < p.tokens) {
                v = p.x[h * p.head_stride + (first + t) * p.token_stride + i];
                if (!p.inverse && mean) v = v - mean[i];
                if (!p.inverse && lambda) v = v * lambda[i];
            }
            rows[i * (RT_TOKENS + 2) + t] = v;
        }
    uint32_t mine = tid / 16 * 2, column = tid % 16 * 4;
    for (uint32_t out = 0; out < d; out += RT_OUT) {
        float sum[2][4];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sum[i / 4][i % 4] = 0;
        for (uint32_t k = 0; k < d; k += RT_STEP) {
            block_sync(); // the rows are there, and nobody reads the tile before
            for (uint32_t i = tid; i < RT_STEP * RT_OUT; i += 256) {
                uint32_t e = p.inverse ? i / RT_OUT : i % RT_STEP, o = p.inverse ? i % RT_OUT : i / RT_STEP;
                bool there = k + e < d && out + o < d;
                float v = 0;
                if (there) v = data[p.inverse ? (k + e) * d + out + o : (out + o) * d + k + e];
                tile[e * (RT_OUT + 4) + o] = v;
            }
            block_sync();
            uint32_t n = min_u(d - k, RT_STEP);
            for (uint32_t e = 0; e < n; e++) {
                u32x2 x = load8(&rows[(k + e) * (RT_TOKENS + 2) + mine]);
                u32x4 m = load16(&tile[e * (RT_OUT + 4) + column]);
                const float w[4] = {bits_float(m.x), bits_float(m.y), bits_float(m.z), bits_float(m.w)};
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    sum[0][i] = fmaf(bits_float(x.x), w[i], sum[0][i]);
                    sum[1][i] = fmaf(bits_float(x.y), w[i], sum[1][i]);
                }
            }
        }
#pragma unroll
        for (uint32_t t = 0; t < 2; t++) {
            if (first + mine + t >= p.tokens) continue;
            float *y = p.y + ((uint64_t)(first + mine + t) * p.heads + h) * d;
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t o = out + column + i;
                if (o < d) y[o] = p.inverse && mean ? sum[t][i] + mean[o] : sum[t][i];
            }
        }
    }
}
