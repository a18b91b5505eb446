// recurrent.cu - recurrent layers: their short convolution and their delta rule. A thread carries one channel or one
// column of a head's matrix from token to token of a run; columns do not meet, so nothing waits for anything.
#include "cuda/common.cuh"

struct run_of_step {
    uint32_t first, count, start, slot;
};

DEVICE bool run_at(const uint32_t *step, uint32_t i, uint32_t n_slots, run_of_step &r)
{
    if (i >= step[STEP_N_RUNS]) return false;
    const uint32_t *at = step + step[STEP_RUNS] + RUN_WORDS * i;
    r.first = at[1];
    r.count = at[2];
    r.start = at[3];
    r.slot = at[5];
    return r.slot < n_slots;
}

// ---- y_t = silu(sum_j w_j x_{t - taps + 1 + j}); moves x and y once
KERNEL(short_conv, cuda_conv_args, 64)
{
    uint32_t c = block_x() * 64 + thread_x(), kept = p.taps - 1;
    run_of_step r;
    if (c >= p.channels || !run_at(p.step, block_y(), p.n_slots, r)) return;
    float *tail = (float *)(p.state + r.slot * p.slot_bytes + p.layer * p.layer_bytes);
    float in[8], w[8]; // the last inputs, this one behind them; shifted by one each token
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        in[j] = j < kept && r.start != 0 ? tail[(uint64_t)j * p.channels + c] : 0.0f;
        w[j] = j < p.taps ? p.w[j * p.w_stride + c] : 0.0f;
    }
    for (uint32_t t = r.first; t < r.first + r.count; t++) {
        float x = p.x[t * p.x_stride + c], sum = 0;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            if (j == kept) in[j] = x;
            if (j < p.taps) sum = fmaf(in[j], w[j], sum);
        }
        p.y[(uint64_t)t * p.channels + c] = sum / (1.0f + expf(-sum));
#pragma unroll
        for (uint32_t j = 0; j < 7; j++)
            if (j < kept) in[j] = in[j + 1];
    }
#pragma unroll
    for (uint32_t j = 0; j < 8; j++)
        if (j < kept) tail[(uint64_t)j * p.channels + c] = in[j];
}

// ---- the gated delta rule (Yang, Kautz & Hatamizadeh 2024, eq. 10); reads the matrix twice a token (the second time
// from a cache) and writes it once
KERNEL(delta_rule, cuda_delta_args, 64)
{
    uint32_t m = block_z() * 64 + thread_x(), head = block_y();
    run_of_step r;
    if (m >= p.dv || !run_at(p.step, block_x(), p.n_slots, r)) return;
    uint32_t from = p.tiled ? head % p.key_heads : head / (p.heads / p.key_heads);
    float *s = (float *)(p.state + r.slot * p.slot_bytes + p.layer * p.layer_bytes + p.tail_bytes +
                         head * p.matrix_bytes) +
               m;
    if (r.start == 0)
        for (uint32_t i = 0; i < p.dk; i++) s[(uint64_t)i * p.dv] = 0;
    for (uint32_t t = r.first; t < r.first + r.count; t++) {
        const float *k = p.k + from * p.k_stride[0] + t * p.k_stride[1];
        const float *q = p.q + from * p.q_stride[0] + t * p.q_stride[1];
        float a = p.alpha[t * p.alpha_stride + head] + p.offset[head];
        float softplus = fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
        float decay = expf(p.rate[head] * softplus),
              write = 1.0f / (1.0f + expf(-p.beta[t * p.beta_stride + head]));
        float read = 0, sum = 0;
        for (uint32_t i = 0; i < p.dk; i++) read = fmaf(s[(uint64_t)i * p.dv] * decay, k[i], read);
        float d = write * (p.v[head * p.v_stride[0] + t * p.v_stride[1] + m] - read);
        for (uint32_t i = 0; i < p.dk; i++) {
            float e = fmaf(k[i], d, s[(uint64_t)i * p.dv] * decay);
            s[(uint64_t)i * p.dv] = e;
            sum = fmaf(e, q[i], sum);
        }
        p.y[((uint64_t)t * p.heads + head) * p.dv + m] = sum * p.scale;
    }
}
