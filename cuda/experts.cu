// experts.cu - routing tokens to experts, and the work block of by-expert products.
#include "cuda/common.cuh"

// ---- softmax over all experts, the k largest; a block per token. Up to 16384 experts, a bit for each that is taken.
KERNEL(route, cuda_route_args, 64)
{
    SHARED(float, best, 64);
    SHARED(uint32_t, at, 64);
    SHARED(uint32_t, taken, 512);
    SHARED(float, sums, 2);
    SHARED(float, kept_weights, 64);
    uint32_t tid = thread_x(), t = block_x(), n = p.n_expert, k = p.n_used;
    const float *x = p.logits + t * p.stride;
    float largest = 0, kept = 0;
    for (uint32_t i = tid; i < (n + 31) / 32; i += 64) taken[i] = 0;
    block_sync();
    for (uint32_t s = 0; s < k; s++) {
        float b = 0;
        uint32_t e = 0xffffffffu;
        for (uint32_t i = tid; i < n; i += 64) {
            if (taken[i / 32] >> i % 32 & 1) continue;
            float v = x[i];
            if (v != v) v = bits_float(0xff800000u);
            if (e == 0xffffffffu || v > b) {
                b = v;
                e = i;
            }
        }
        best[tid] = b;
        at[tid] = e;
        block_sync();
        for (uint32_t w = 32; w > 0; w >>= 1) {
            if (tid < w) {
                uint32_t o = at[tid + w];
                float v = best[tid + w];
                if (o != 0xffffffffu &&
                    (at[tid] == 0xffffffffu || v > best[tid] || (v == best[tid] && o < at[tid]))) {
                    best[tid] = v;
                    at[tid] = o;
                }
            }
            block_sync();
        }
        uint32_t winner = at[0];
        float value = best[0];
        block_sync();
        if (tid == 0) taken[winner / 32] |= 1u << winner % 32;
        block_sync();
        if (s == 0) largest = value;
        float w = expf(value - largest);
        if (w != w) w = 0;
        if (tid == 0) {
            p.ids[t * k + s] = (int)winner;
            kept_weights[s % 64] = w;
            if (k > 64) p.weights[t * k + s] = w;
        }
        kept += w;
    }
    float all = 0;
    for (uint32_t i = tid; i < n; i += 64) {
        float w = expf(x[i] - largest);
        all += w != w ? 0.0f : w;
    }
    float total = block_sum(all, sums), denominator = fmaxf(kept / total, 6.103515625e-5f); // 2^-14
    for (uint32_t s = tid; s < k; s += 64) {
        float w = k > 64 ? p.weights[t * k + s] : kept_weights[s];
        p.weights[t * k + s] = w / total / denominator * p.scale;
    }
}

// ---- the work block (backends/ops.h): one block, a thread per expert. Reads the ids twice for every expert.
KERNEL(group, cuda_group_args, 256)
{
    uint32_t tid = thread_x(), k = p.n_used, n = min_u(p.step[STEP_N_TOKENS], p.bucket) * k;
    uint32_t *g = p.block;
    for (uint32_t e = tid; e < p.n_expert; e += 256) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < n; i++) count += (uint32_t)((uint32_t)p.ids[i] == e);
        g[p.counts + e] = count;
    }
    block_sync();
    if (tid == 0) {
        uint32_t start = 0, tiles = 0, used = 0;
        for (uint32_t e = 0; e < p.n_expert; e++) {
            uint32_t count = g[p.counts + e];
            g[p.starts + e] = start;
            for (uint32_t first = 0; first < count; first += 16) {
                uint32_t at = p.tiles + 3 * tiles++;
                g[at] = e;
                g[at + 1] = start + first;
                g[at + 2] = min_u(16, count - first);
            }
            start += count;
            used += (uint32_t)(count > 0);
        }
        g[p.starts + p.n_expert] = start;
        g[0] = start;
        g[1] = tiles;
        g[2] = used;
        g[3] = 0;
    }
    block_sync();
    for (uint32_t e = tid; e < p.n_expert; e += 256) {
        uint32_t at = p.order + g[p.starts + e];
        for (uint32_t i = 0; i < n; i++)
            if ((uint32_t)p.ids[i] == e) g[at++] = i;
    }
}
