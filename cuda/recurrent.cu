// recurrent.cu - recurrent layers: their short convolution and their delta rule in token form.
#include "cuda/recurrent.cuh"

// Runs are cut into pieces of `tokens`; piece i of all and which one of its run it is.
DEVICE bool piece_at(const uint32_t *step, uint32_t i, uint32_t tokens, uint32_t n_slots, run_of_step &r,
                     uint32_t &piece)
{
    uint32_t n_runs = step[STEP_N_RUNS];
    const uint32_t *runs = step + step[STEP_RUNS];
    piece = i;
    for (uint32_t at = 0; at < n_runs; at++) {
        uint32_t pieces = (runs[RUN_WORDS * at + 2] + tokens - 1) / tokens;
        if (piece < pieces) return run_at(step, at, n_slots, r);
        piece -= pieces;
    }
    return false;
}

// ---- y_t = silu(sum_j w_j x_{t - taps + 1 + j}). A thread carries a channel from token to token of a piece of 64; the
// piece that needs the tail writes it. Moves x and y once
DEVICE void push_input(float *last, float x, uint32_t kept)
{
#pragma unroll
    for (uint32_t j = 0; j < 7; j++)
        if (j < kept) last[j] = j + 1 < kept ? last[j + 1] : x;
}

KERNEL(short_conv, cuda_conv_args, 64)
{
    constexpr uint32_t PIECE = CUDA_CONV_PIECE;
    uint32_t c = block_x() * 64 + thread_x(), kept = p.taps - 1, piece;
    run_of_step r;
    if (c >= p.channels || !piece_at(p.step, block_y(), PIECE, p.n_slots, r, piece)) return;
    float *tail = (float *)(p.state + r.slot * p.slot_bytes + p.layer * p.layer_bytes) + c;
    float *kept_x = (float *)(p.state + r.slot * p.slot_bytes + p.pending) + c;
    uint32_t first = piece * PIECE, end = min_u(first + PIECE, r.count);
    const float *x = p.x + r.first * p.x_stride + c;
    float last[8], w[8]; // the last inputs, the newest at kept - 1
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        w[j] = j < p.taps ? p.w[j * p.w_stride + c] : 0.0f;
        last[j] = 0;
        if (j >= kept) continue;
        if (piece != 0)
            last[j] = x[(first - kept + j) * p.x_stride];
        else if (!begins(r))
            last[j] = tail[(uint64_t)j * p.channels];
    }
    if (piece == 0) {
        for (uint32_t at = r.start - r.accepted; at < r.start; at++)
            push_input(last, kept_x[(uint64_t)(at % p.places) * p.channels], kept);
        // Of the run's own inputs the last ones stay, behind what of the old ones does; of a draft check none.
        uint32_t own = r.pending ? 0 : min_u(r.count, kept);
        if (own || r.accepted) {
#pragma unroll
            for (uint32_t j = 0; j < 7; j++) {
                if (j >= kept) continue;
                float v = 0;
#pragma unroll
                for (uint32_t i = 0; i < 7; i++)
                    if (i == j + own) v = last[i];
                if (j + own >= kept) v = x[(r.count + j - kept) * p.x_stride];
                tail[(uint64_t)j * p.channels] = v;
            }
        }
    }
    for (uint32_t t = first; t < end; t++) {
        float in = x[t * p.x_stride], sum = 0;
        if (r.pending) kept_x[(uint64_t)((r.start + t) % p.places) * p.channels] = in;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++)
            if (j < p.taps) sum = fmaf(j < kept ? last[j] : in, w[j], sum);
        p.y[(uint64_t)(r.first + t) * p.channels + c] = sum / (1.0f + expf(-sum));
        push_input(last, in, kept);
    }
}

// ---- the gated delta rule (Yang, Kautz & Hatamizadeh 2024, eq. 10). A block carries 32 columns of a head's matrix, each
// warp a part of their rows, in registers: the matrix is read once and written once, whatever the number of tokens; a
// draft check does not write it. Sums over a column are made of the warps' parts in their order
struct delta_block {
    float (*reads)[32], (*sums)[32]; // shared, [WARPS]
    uint32_t lane, warp, row, end;
};

template <int WARPS> DEVICE float sum_of(float (*parts)[32], uint32_t lane)
{
    float sum = parts[0][lane];
#pragma unroll
    for (int w = 1; w < WARPS; w++) sum += parts[w][lane];
    return sum;
}

// S *= decay; d = write (v - S^T k); S += k d^T; returns S^T q.
template <int ROWS, int WARPS>
DEVICE float take_token(const delta_block &b, float *s, const float *k, const float *q, float v, float decay,
                        float write)
{
    float read = 0, sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        if (b.row + i < b.end) read = fmaf(s[i] * decay, k[b.row + i], read);
    b.reads[b.warp][b.lane] = read;
    block_sync();
    float d = write * (v - sum_of<WARPS>(b.reads, b.lane));
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        if (b.row + i < b.end) {
            s[i] = fmaf(k[b.row + i], d, s[i] * decay);
            sum = fmaf(s[i], q[b.row + i], sum);
        }
    b.sums[b.warp][b.lane] = sum;
    block_sync();
    return sum_of<WARPS>(b.sums, b.lane);
}

template <int ROWS, int WARPS>
DEVICE void delta_run(const cuda_delta_args &p, const run_of_step &r, float (*reads)[32], float (*sums)[32])
{
    uint32_t lane = thread_x() % 32, warp = thread_x() / 32, m = block_z() * 32 + lane, head = block_y();
    bool mine = m < p.dv, later = p.chunks && goes_in_chunks(r);
    if (later && r.accepted == 0) return;
    uint32_t shared_by = p.heads / p.key_heads, from = key_head_of(p, head);
    uint8_t *slot = p.state + r.slot * p.slot_bytes;
    float *matrix = matrix_of(p, r, head) + m;
    float *pending_v = (float *)(slot + p.pending_v), *pending_k = (float *)(slot + p.pending_k),
          *pending_gates = (float *)(slot + p.pending_gates);
    uint32_t each = (p.dk + WARPS - 1) / WARPS, row = warp * each, end = min_u(row + each, p.dk);
    delta_block b = {reads, sums, lane, warp, row, end};
    float s[ROWS];
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        s[i] = mine && row + i < end && !begins(r) ? matrix[(uint64_t)(row + i) * p.dv] : 0.0f;
    for (uint32_t at = r.start - r.accepted; at < r.start; at++) {
        uint32_t v_row = at % p.places, k_row = at % (2 * p.places);
        const float *k = pending_k + (uint64_t)(k_row * p.group_key_heads + from) * p.dk;
        const float *gates = pending_gates + 2 * (uint64_t)(k_row * p.heads + head);
        float v = mine ? pending_v[(uint64_t)(v_row * p.heads + head) * p.dv + m] : 0.0f;
        take_token<ROWS, WARPS>(b, s, k, k, v, gates[0], gates[1]);
    }
    if ((r.pending && r.accepted) || later) {
#pragma unroll
        for (uint32_t i = 0; i < ROWS; i++)
            if (mine && row + i < end) matrix[(uint64_t)(row + i) * p.dv] = s[i];
    }
    if (later) return;
    for (uint32_t t = r.first; t < r.first + r.count; t++) {
        const float *k = p.k + from * p.k_stride[0] + t * p.k_stride[1];
        const float *q = p.q + from * p.q_stride[0] + t * p.q_stride[1];
        float v = mine ? p.v[head * p.v_stride[0] + t * p.v_stride[1] + m] : 0.0f;
        float decay = expf(log_decay(p, t, head)), write = share(p, t, head);
        float y = take_token<ROWS, WARPS>(b, s, k, q, v, decay, write);
        if (warp == 0 && mine) p.y[((uint64_t)t * p.heads + head) * p.dv + m] = y * p.scale;
        if (!r.pending) continue;
        // What the recurrence needs is kept; of a key the first of those that share it keeps it for all.
        uint32_t at = r.start + t - r.first, v_row = at % p.places, k_row = at % (2 * p.places);
        if (warp == 0 && mine) pending_v[(uint64_t)(v_row * p.heads + head) * p.dv + m] = v;
        if (block_z() != 0) continue;
        if (p.tiled ? head < p.key_heads : head % shared_by == 0)
            for (uint32_t i = thread_x(); i < p.dk; i += 32 * WARPS)
                pending_k[(uint64_t)(k_row * p.group_key_heads + from) * p.dk + i] = k[i];
        if (thread_x() == 0) {
            pending_gates[2 * (uint64_t)(k_row * p.heads + head)] = decay;
            pending_gates[2 * (uint64_t)(k_row * p.heads + head) + 1] = write;
        }
    }
    if (r.pending) return;
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        if (mine && row + i < end) matrix[(uint64_t)(row + i) * p.dv] = s[i];
}

// A block goes from run to run where there are fewer blocks than runs may be. Runs that go in chunks (delta_chunk.cu) only
// get what is pending applied.
template <int ROWS, int WARPS> DEVICE void delta_runs(const cuda_delta_args &p, float *parts)
{
    for (uint32_t i = block_x(); i < p.step[STEP_N_RUNS]; i += blocks_x()) {
        run_of_step r;
        if (run_at(p.step, i, p.n_slots, r))
            delta_run<ROWS, WARPS>(p, r, (float(*)[32])parts, (float(*)[32])(parts + 32 * WARPS));
    }
}

#define DELTA_RULE(dk, warps)                                                                                \
    KERNEL(delta_rule_##dk, cuda_delta_args, 32 * (warps))                                                   \
    {                                                                                                        \
        SHARED(float, parts, 2 * 32 * (warps));                                                              \
        delta_runs<(dk) / (warps), warps>(p, parts);                                                         \
    }
DELTA_RULE(32, 4)
DELTA_RULE(64, 4)
DELTA_RULE(128, 8)
DELTA_RULE(256, 8)
