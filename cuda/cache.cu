// cache.cu - keys and values of the step into their pages, alone or behind norm and position.
#include "cuda/pages.cuh"

struct place {
    uint8_t *k, *v;
    uint32_t at;
    bool there;
};

// Where token t of the step goes.
DEVICE place place_of(const uint32_t *step, const cuda_pool *pool, uint32_t group, uint32_t layer, uint32_t t,
                      uint32_t head)
{
    place out = {0, 0, 0, false};
    if (t >= step[STEP_N_TOKENS] || (int)step[step[STEP_TOKEN_RUN] + t] < 0) return out;
    uint32_t slot = step[step[STEP_TOKEN_SLOT + group] + t], page = slot / 64;
    if (!page_exists(pool, page)) return out;
    out.k = page_block(pool, page, layer, head);
    out.v = out.k + pool->k_bytes;
    out.at = slot % 64;
    out.there = true;
    return out;
}

// ---- a block per head and token; keys go transposed
KERNEL(kv_write, cuda_kv_args, 64)
{
    uint32_t h = block_y(), t = block_x();
    const cuda_pool *pool = p.pool;
    place to = place_of(p.step, pool, p.group, p.layer, t, h);
    if (!to.there) return;
    const float *k = p.k + h * p.k_stride[0] + t * p.k_stride[1],
                *v = p.v + h * p.v_stride[0] + t * p.v_stride[1];
    for (uint32_t i = thread_x(); i < pool->dim_k; i += 64)
        store_exact(to.k, i * 64 + to.at, pool->type_k, k[i]);
    for (uint32_t i = thread_x(); i < pool->dim_v; i += 64)
        store_exact(to.v, to.at * pool->dim_v + i, pool->type_v, v[i]);
}

// ---- [norm q, norm k,] position, write: a block per token and query head, KV head for keys, KV head for values
KERNEL(qk_write, cuda_qk_args, 64)
{
    SHARED(float, sums, 2);
    uint32_t h = block_y(), t = block_x();
    if (t >= p.step[STEP_N_TOKENS]) return;
    const cuda_pool *pool = p.pool;
    bool is_q = h < p.heads, is_k = !is_q && h < p.heads + p.kv_heads;
    uint32_t kv_head = is_q ? 0 : is_k ? h - p.heads : h - p.heads - p.kv_heads;
    place to = {0, 0, 0, false};
    if (!is_q) to = place_of(p.step, pool, p.group, p.layer, t, kv_head);
    if (!is_q && !to.there) return;
    if (!is_q && !is_k) {
        const float *v = p.v + kv_head * p.v_stride[0] + t * p.v_stride[1];
        for (uint32_t i = thread_x(); i < p.dv; i += 64)
            store_exact(to.v, to.at * p.dv + i, pool->type_v, v[i]);
        return;
    }
    const float *x = is_q ? p.q + h * p.q_stride[0] + t * p.q_stride[1]
                          : p.k + kv_head * p.k_stride[0] + t * p.k_stride[1];
    const float *weight = is_q ? p.q_weight : p.k_weight;
    float factor = 1;
    if (p.normed) {
        float s = 0;
        for (uint32_t i = thread_x(); i < p.dk; i += 64) s += x[i] * x[i];
        factor = 1.0f / sqrtf(block_sum(s, sums) / (float)p.dk + p.eps);
    }
    float *y = p.y + ((uint64_t)t * p.heads + h) * p.dk;
    uint32_t half = p.n_rot / 2;
    float position = (float)p.step[p.step[STEP_TOKEN_POS] + t];
    for (uint32_t i = thread_x(); i < half + (p.dk - p.n_rot); i += 64) {
        bool turns = i < half;
        uint32_t from = !turns ? i + half : p.neox ? i : 2 * i, second = p.neox ? i + half : 2 * i + 1;
        float a = x[from] * factor, b = turns ? x[second] * factor : 0.0f;
        if (weight) {
            a = a * weight[from];
            if (turns) b = b * weight[second];
        }
        if (turns) {
            float c, s, u = a;
            cos_sin(position * p.inv_freq[i], c, s);
            a = p.magnitude * (u * c - b * s);
            b = p.magnitude * (u * s + b * c);
        }
        if (is_q) {
            y[from] = a;
            if (turns) y[second] = b;
        } else {
            store_exact(to.k, from * 64 + to.at, pool->type_k, a);
            if (turns) store_exact(to.k, second * 64 + to.at, pool->type_k, b);
        }
    }
}
