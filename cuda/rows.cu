// rows.cu - operations on rows of activations: embedding, norm, pointwise, position, rotation, rows of the head.
#include "cuda/rotate.cuh"
#include "cuda/weights.cuh"

// ---- embedding: a block per 512 elements of a token's row, a thread for eight
template <int TYPE> DEVICE void embed_row(const cuda_embed_args &p, int id, uint32_t j, float v[8])
{
    weights8_float<TYPE>(p.table + (uint64_t)(uint32_t)id * p.row_bytes, p.tables, j, p.n, v);
}

KERNEL(embed, cuda_embed_args, 64)
{
    uint32_t t = block_y(), j = block_x() * 64 + thread_x();
    if (t >= p.step[STEP_N_TOKENS] || 8 * j >= p.n) return;
    int id = (int)p.step[p.step[STEP_TOKEN_ID] + t];
    if (id < 0) {
        uint32_t slot = (uint32_t)(-1 - id);
        id = slot < p.n_slots ? p.sampled[slot] : -1;
    }
    float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (id >= 0 && (uint32_t)id < p.n_vocab) {
        switch (p.type) {
#define CASE(type)                                                                                           \
    case type:                                                                                               \
        embed_row<type>(p, id, j, v);                                                                        \
        break;
            CUDA_WEIGHT_TYPES(CASE)
#undef CASE
        }
    }
    for (uint32_t i = 0; i < 8; i++)
        if (8 * j + i < p.n) p.y[(uint64_t)t * p.n + 8 * j + i] = v[i];
}

// ---- y = x / sqrt(mean(x^2) + eps) * weight, or x / max(sqrt(sum(x^2)), eps), then what joins it; a block per row,
// which it reads twice (the second time from a cache)
KERNEL(rms_norm, cuda_norm_args, 256)
{
    SHARED(float, sums, 8);
    uint32_t r = block_x(), i1 = r % p.ne1, rest = r / p.ne1;
    const float *x = p.x + i1 * p.stride[0] + rest % p.ne2 * p.stride[1] + rest / p.ne2 * p.stride[2];
    const float *second = p.second;
    if (second)
        second += i1 * p.second_stride[0] + rest % p.ne2 * p.second_stride[1] + rest / p.ne2 * p.second_stride[2];
    float s = 0;
    for (uint32_t i = thread_x(); i < p.n; i += 256) s += x[i] * x[i];
    float sum = block_sum(s, sums);
    float factor = p.l2 ? 1.0f / fmaxf(sqrtf(sum), p.eps) : 1.0f / sqrtf(sum / (float)p.n + p.eps);
    for (uint32_t i = thread_x(); i < p.n; i += 256) {
        float v = x[i] * factor;
        if (p.weight) v = v * p.weight[i];
        if (p.join == 1) v = v + second[i];
        if (p.join > 1) v = gated(p.join - 2, second[i], v);
        p.y[(uint64_t)r * p.n + i] = v;
    }
}

// ---- a thread per element; rows over x so that there may be many
KERNEL(pointwise, cuda_pointwise_args, 256)
{
    uint64_t at = (uint64_t)block_x() * 256 + thread_x();
    if (at >= (uint64_t)p.n * p.rows) return;
    uint32_t i = (uint32_t)(at % p.n), r = (uint32_t)(at / p.n), i1 = r % p.ne1, rest = r / p.ne1;
    uint64_t i2 = rest % p.ne2, i3 = rest / p.ne2;
    float x = p.x[i1 * p.stride[0] + i2 * p.stride[1] + i3 * p.stride[2] + (p.one ? 0 : i)], y = x, b = 0;
    if (p.second)
        b = p.second[i1 * p.second_stride[0] + i2 * p.second_stride[1] + i3 * p.second_stride[2] + i];
    if (p.kind == CUDA_ADD) y = x + b;
    if (p.kind == CUDA_MUL) y = x * b;
    if (p.kind == CUDA_SCALE) y = x * p.factor;
    if (p.kind == CUDA_SILU) y = gated(0, x, b);
    if (p.kind == CUDA_GELU) y = gated(1, x, b);
    if (p.kind == CUDA_SIGMOID) y = gated(2, x, b);
    if (p.kind == CUDA_SOFTCAP) y = p.factor * tanhf(x / p.factor);
    p.y[at] = y;
}

// ---- a block per head and token, a thread per pair or passed element
KERNEL(rope, cuda_rope_args, 64)
{
    uint32_t h = block_y(), t = block_x();
    if (t >= p.step[STEP_N_TOKENS]) return;
    const float *x = p.x + h * p.head_stride + t * p.token_stride;
    float *y = p.y + ((uint64_t)t * p.heads + h) * p.d;
    uint32_t half = p.n_rot / 2;
    float position = (float)p.step[p.step[STEP_TOKEN_POS] + t];
    for (uint32_t i = thread_x(); i < half; i += 64) {
        float c, s;
        cos_sin(position * p.inv_freq[i], c, s);
        uint32_t at = p.neox ? i : 2 * i, to = p.neox ? i + half : 2 * i + 1;
        float a = x[at], b = x[to];
        y[at] = p.magnitude * (a * c - b * s);
        y[to] = p.magnitude * (a * s + b * c);
    }
    for (uint32_t i = p.n_rot + thread_x(); i < p.d; i += 64) y[i] = x[i];
}

// ---- a head through its rotation; a block per row. The matrices are small and shared by all tokens.
KERNEL(rotate, cuda_rotate_args, 64)
{
    SHARED(float, row, MAX_TURN);
    uint32_t tid = thread_x(), h = block_x(), t = block_y();
    const float *x = p.x + h * p.head_stride + t * p.token_stride;
    float *y = p.y + ((uint64_t)t * p.heads + h) * p.d;
    for (uint32_t i = tid; i < p.d; i += 64) row[i] = x[i];
    rotate_row(p.turn, row, p.d, h, p.heads);
    for (uint32_t i = tid; i < p.d; i += 64) y[i] = row[i];
}

// ---- sum over the slots, in order, of weight * row, then of a gated row, then of the residual; a thread per element
KERNEL(combine, cuda_combine_args, 256)
{
    uint32_t i = block_x() * 256 + thread_x(), t = block_y();
    if (i >= p.n) return;
    float s = 0;
    for (uint32_t k = 0; k < p.n_used; k++)
        s += p.weights[t * p.weight_stride + k] * p.y[t * p.token_stride + k * p.slot_stride + i];
    if (p.row) s = s + gated(2, p.gate[t * p.gate_stride], p.row[t * p.row_stride + i]);
    if (p.addend) s = s + p.addend[t * p.addend_stride + i];
    p.out[(uint64_t)t * p.n + i] = s;
}

// ---- the rows of the head: y[:, r] = hidden[:, rows[r].token]
KERNEL(select_rows, cuda_select_args, 256)
{
    uint32_t i = block_x() * 256 + thread_x(), r = block_y();
    if (i >= p.n || r >= p.step[STEP_N_ROWS]) return;
    uint32_t token = p.step[p.step[STEP_ROWS] + ROW_WORDS * r];
    if (token < p.n_rows) p.y[(uint64_t)r * p.n + i] = p.x[(uint64_t)token * p.n + i];
}

// ---- index of the largest logit of each row, ties to the lower, NaN never; a block per row
KERNEL(argmax, cuda_argmax_args, 256)
{
    SHARED(float, best, 256);
    SHARED(uint32_t, at, 256);
    uint32_t tid = thread_x(), r = block_x();
    if (r >= min_u(p.step[STEP_N_ROWS], p.n_rows)) return;
    const float *x = p.logits + r * p.stride;
    float b = 0;
    uint32_t e = 0xffffffffu;
    for (uint32_t i = tid; i < p.n; i += 256) {
        float v = x[i];
        if (v == v && (e == 0xffffffffu || v > b)) {
            b = v;
            e = i;
        }
    }
    best[tid] = b;
    at[tid] = e;
    block_sync();
    for (uint32_t w = 128; w > 0; w >>= 1) {
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
    if (tid == 0) p.best[r] = at[0] == 0xffffffffu ? 0 : (int)at[0];
}

// ---- to the slots of the rows; of rows with one slot the last counts
KERNEL(argmax_last, cuda_argmax_args, 64)
{
    uint32_t n = min_u(p.step[STEP_N_ROWS], p.n_rows), r = thread_x();
    if (r >= n) return;
    const uint32_t *rows = p.step + p.step[STEP_ROWS];
    uint32_t slot = rows[ROW_WORDS * r + 1];
    for (uint32_t i = r + 1; i < n; i++)
        if (rows[ROW_WORDS * i + 1] == slot) return;
    if (slot < p.n_slots) p.sampled[slot] = p.best[r];
}
