// cache.cu - keys and values of the step into their pages, alone or behind norm, position and rotation, and what becomes
// of what attention returns.
#include "cuda/attend.cuh"
#include "cuda/rotate.cuh"

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

// ---- QKV_WRITE: a block per token and query head, KV head for keys, KV head for values. A row goes through shared
// memory once for everything that happens to it.
KERNEL(qkv_write, cuda_qkv_args, 64)
{
    SHARED(float, row, MAX_TURN);
    SHARED(float, sums, 2);
    uint32_t h = block_y(), t = block_x(), which = 0;
    if (t >= p.step[STEP_N_TOKENS]) return;
    if (h >= p.heads) h -= p.heads, which = 1;
    if (which == 1 && h >= p.kv_heads) h -= p.kv_heads, which = 2;
    const cuda_pool *pool = p.pool;
    place to = {0, 0, 0, false};
    if (which) to = place_of(p.step, pool, p.group, p.layer, t, h);
    if (which && !to.there) return;
    const float *x = p.q + h * p.q_stride[0] + t * p.q_stride[1], *weight = p.q_weight;
    if (which == 1) x = p.k + h * p.k_stride[0] + t * p.k_stride[1], weight = p.k_weight;
    if (which == 2) x = p.v + h * p.v_stride[0] + t * p.v_stride[1], weight = 0;
    uint32_t d = which == 2 ? p.dv : p.dk, half = p.n_rot / 2;
    float factor = 1;
    if (which == 2 ? p.v_normed : p.normed) {
        float s = 0;
        for (uint32_t i = thread_x(); i < d; i += 64) s += x[i] * x[i];
        factor = 1.0f / sqrtf(block_sum(s, sums) / (float)d + p.eps);
    }
    if (which == 2)
        for (uint32_t i = thread_x(); i < d; i += 64) row[i] = x[i] * factor;
    else {
        float position = (float)p.step[p.step[STEP_TOKEN_POS] + t];
        for (uint32_t i = thread_x(); i < half + (d - p.n_rot); i += 64) {
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
                row[second] = b;
            }
            row[from] = a;
        }
    }
    block_sync();
    if (turns_at_all(p.turns[which])) rotate_row(p.turns[which], row, d, h, which ? p.kv_heads : p.heads);
    for (uint32_t i = thread_x(); i < d; i += 64) {
        float v = row[i];
        if (which == 0)
            p.y[((uint64_t)t * p.heads + h) * d + i] = v;
        else if (which == 1)
            store_exact(to.k, i * 64 + to.at, pool->type_k, v);
        else
            store_exact(to.v, to.at * d + i, pool->type_v, v);
    }
}

// ---- a token's attention: its splits, each made by a block of its own, merged in ascending order, rotated back, gated.
// Reads every partial result once; what one split made whole lies in y already.
KERNEL(attend_finish, cuda_finish_args, 64)
{
    SHARED(float, row, MAX_TURN);
    const cuda_attend_args &a = p.attend;
    uint32_t tid = thread_x(), head = block_y(), dv = a.pool->dim_v, query = block_z();
    bool turns = turns_at_all(p.turn);
    work_item w;
    if (!work_at(a, block_x(), w)) return;
    if (query >= w.count || w.split != 0 || (w.n_splits <= 1 && !turns && !p.gate)) return;
    const uint32_t *at = a.step + a.step[STEP_WORK + a.group] + WORK_WORDS * block_x();
    uint64_t token = w.first + query;
    float *y = a.y + (token * a.heads + head) * dv;
    if (w.n_splits <= 1) {
        for (uint32_t i = tid; i < dv; i += 64) row[i] = y[i];
    } else {
        constexpr uint32_t MAX_V = 512 / 64;
        float total_max = NOTHING, total_sum = 0, total[MAX_V];
#pragma unroll
        for (uint32_t i = 0; i < MAX_V; i++) total[i] = 0;
        for (uint32_t s = 0; s < w.n_splits; s++) {
            uint32_t partial = at[WORK_WORDS * s + 7];
            const float *from =
                a.partials + ((uint64_t)(partial + query) * a.heads + head) * a.partial_floats;
            float split_max = from[0], f = 0, g = 1;
            if (s == 0)
                total_max = split_max;
            else if (split_max == NOTHING)
                continue;
            else
                merge_factors(total_max, split_max, f, g);
            total_sum = s == 0 ? from[1] : merged(total_sum, f, from[1], g);
#pragma unroll
            for (uint32_t i = 0; i < MAX_V; i++)
                if (tid + 64 * i < dv) {
                    float v = from[2 + tid + 64 * i];
                    total[i] = s == 0 ? v : merged(total[i], f, v, g);
                }
        }
        float r = total_sum > 0 ? 1.0f / total_sum : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < MAX_V; i++)
            if (tid + 64 * i < dv) row[tid + 64 * i] = total[i] * r;
    }
    if (turns) rotate_row(p.turn, row, dv, head, a.heads);
    for (uint32_t i = tid; i < dv; i += 64)
        y[i] = p.gate ? gated(2, p.gate[head * p.gate_stride[0] + token * p.gate_stride[1] + i], row[i]) : row[i];
}
