// recurrent.cuh - what kernels of recurrent layers share: the runs of a step. What a draft check leaves pending and how
// the next run applies it is in backends/step.h and backends/state.h.
#ifndef RQ_CUDA_RECURRENT_CUH
#define RQ_CUDA_RECURRENT_CUH

#include "cuda/common.cuh"

struct run_of_step {
    uint32_t first, count, start, slot, pending, accepted;
};

DEVICE bool run_at(const uint32_t *step, uint32_t i, uint32_t n_slots, run_of_step &r)
{
    if (i >= step[STEP_N_RUNS]) return false;
    const uint32_t *at = step + step[STEP_RUNS] + RUN_WORDS * i;
    r.first = at[1];
    r.count = at[2];
    r.start = at[3];
    r.slot = at[5];
    r.pending = at[6];
    r.accepted = at[7];
    return r.slot < n_slots;
}

// Runs that a wide program takes in chunks (rq_delta_form in backends/state.h).
DEVICE bool goes_in_chunks(const run_of_step &r)
{
    return r.pending == 0 && r.count >= CUDA_DELTA_LONG;
}

// A sequence begins with zeros.
DEVICE bool begins(const run_of_step &r)
{
    return r.start == r.accepted;
}

// Of a delta rule: the key head of a value head, and the i-th value head of a key head.
DEVICE uint32_t key_head_of(const cuda_delta_args &p, uint32_t head)
{
    return p.tiled ? head % p.key_heads : head / (p.heads / p.key_heads);
}
DEVICE uint32_t value_head_of(const cuda_delta_args &p, uint32_t key_head, uint32_t i)
{
    return p.tiled ? key_head + i * p.key_heads : key_head * (p.heads / p.key_heads) + i;
}

// The factor of decay is e^log_decay; of the difference between a value and what the state says `share` is written.
DEVICE float log_decay(const cuda_delta_args &p, uint32_t token, uint32_t head)
{
    float a = p.alpha[token * p.alpha_stride + head] + p.offset[head];
    float softplus = fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
    return p.rate[head] * softplus;
}
DEVICE float share(const cuda_delta_args &p, uint32_t token, uint32_t head)
{
    return 1.0f / (1.0f + expf(-p.beta[token * p.beta_stride + head]));
}

// The matrix of a head in its sequence's slot: [dk][dv].
DEVICE float *matrix_of(const cuda_delta_args &p, const run_of_step &r, uint32_t head)
{
    return (float *)(p.state + r.slot * p.slot_bytes + p.layer * p.layer_bytes + p.tail_bytes +
                     head * p.matrix_bytes);
}

#endif
