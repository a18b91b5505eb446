// matvec.cuh - products with up to eight columns: y[o, t] = sum_i w[i, o] f(x[i, t]).
//
// Weights of block types go once, in words of 16 bytes, through a ring in shared memory of each warp, and meet
// activations of eight bits (one scale for 32) in integer dot products. A block makes its activations itself: it norms
// and quantises them in the beginning, which costs no launch. A warp makes whole rows, each lane the same elements of
// a row for every number of columns, and lanes are summed in a fixed tree: a column's bits do not depend on the others.
#ifndef RQ_CUDA_MATVEC_CUH
#define RQ_CUDA_MATVEC_CUH

#include "cuda/weights.cuh"

CONSTANT uint32_t MV_WARPS = CUDA_MATVEC_THREADS / 32, MV_ROWS = 2 /* of a warp at a time */, MV_STAGES = 3,
                  MV_STAGE = 1024 /* elements */, MV_CODES = 16384 /* of all columns */,
                  MV_FLOATS = 8192 /* normed ones kept for weights of floats */;

// Q4_K and Q5_K: a lane takes 16 bytes of nibbles, 16 elements of each of two neighbouring groups of 32.
template <int TYPE, int COLS>
DEVICE void stage_dot_k45(const uint8_t *w, const uint32_t *x, const float *d, uint32_t stride, uint32_t n,
                          float acc[COLS])
{
    uint32_t lane = thread_x() % 32, block = lane / 8, pair = lane % 8 / 2, half = lane % 2;
    if (256 * block >= n) return;
    const uint8_t *b = w + block * weight_type<TYPE>::bytes;
    u32x4 head = load16(b), q = load16(b + (TYPE == 12 ? 16 : 48) + 16 * (lane % 8));
    uint32_t lo[4] = {q.x & 0x0f0f0f0fu, q.y & 0x0f0f0f0fu, q.z & 0x0f0f0f0fu, q.w & 0x0f0f0f0fu};
    uint32_t hi[4] = {q.x >> 4 & 0x0f0f0f0fu, q.y >> 4 & 0x0f0f0f0fu, q.z >> 4 & 0x0f0f0f0fu,
                      q.w >> 4 & 0x0f0f0f0fu};
    if (TYPE == 13) {
        u32x4 fifth = load16(b + 16 + 16 * half);
        const uint32_t bits[4] = {fifth.x >> 2 * pair, fifth.y >> 2 * pair, fifth.z >> 2 * pair,
                                  fifth.w >> 2 * pair};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            lo[i] |= (bits[i] & 0x01010101u) << 4;
            hi[i] |= (bits[i] >> 1 & 0x01010101u) << 4;
        }
    }
    // scales and minima of groups 2 pair and 2 pair + 1: bytes of head.y, z, w (k4_scale, two at a time)
    uint32_t shift = 16 * (pair & 1), s, m;
    if (pair < 2) {
        s = head.y >> shift & 0x3f3fu;
        m = head.z >> shift & 0x3f3fu;
    } else {
        s = (head.w >> shift & 0x0f0fu) | (head.y >> shift & 0xc0c0u) >> 2;
        m = (head.w >> shift & 0xf0f0u) >> 4 | (head.z >> shift & 0xc0c0u) >> 2;
    }
    float scale = half_float(head.x & 0xffffu), minimum = half_float(head.x >> 16);
    float s0 = scale * (float)(s & 255u), s1 = scale * (float)(s >> 8), m0 = minimum * (float)(m & 255u),
          m1 = minimum * (float)(m >> 8);
    x += 64 * block + 16 * pair + 4 * half;
    d += 8 * block + 2 * pair;
#pragma unroll
    for (uint32_t c = 0; c < COLS; c++) {
        u32x4 u = load16(x + c * stride / 4), v = load16(x + c * stride / 4 + 8);
        int dot0 = dp4a(lo[3], u.w, dp4a(lo[2], u.z, dp4a(lo[1], u.y, dp4a(lo[0], u.x, 0))));
        int dot1 = dp4a(hi[3], v.w, dp4a(hi[2], v.z, dp4a(hi[1], v.y, dp4a(hi[0], v.x, 0))));
        const uint32_t ones = 0x01010101u;
        int sum0 = dp4a(ones, u.w, dp4a(ones, u.z, dp4a(ones, u.y, dp4a(ones, u.x, 0))));
        int sum1 = dp4a(ones, v.w, dp4a(ones, v.z, dp4a(ones, v.y, dp4a(ones, v.x, 0))));
        acc[c] = fmaf(fmaf(s0, (float)dot0, -(m0 * (float)sum0)), d[c * stride / 32], acc[c]);
        acc[c] = fmaf(fmaf(s1, (float)dot1, -(m1 * (float)sum1)), d[c * stride / 32 + 1], acc[c]);
    }
}

// Q6_K: a lane takes eight elements of each of the four groups of half a block.
template <int COLS>
DEVICE void stage_dot_k6(const uint8_t *w, const uint32_t *x, const float *d, uint32_t stride, uint32_t n,
                         float acc[COLS])
{
    uint32_t lane = thread_x() % 32, block = lane / 8, half = lane % 8 / 4, l = 8 * (lane % 4);
    if (256 * block >= n) return;
    const uint8_t *b = w + block * weight_type<14>::bytes, *low = b + 64 * half + l,
                  *high = b + 128 + 32 * half + l;
    const uint32_t a[2] = {u32_even(low), u32_even(low + 4)},
                   c2[2] = {u32_even(low + 32), u32_even(low + 36)};
    const uint32_t h[2] = {u32_even(high), u32_even(high + 4)};
    float scale = f16_at(b + 208);
    x += 64 * block + 32 * half + l / 4;
    d += 8 * block + 4 * half;
#pragma unroll
    for (uint32_t g = 0; g < 4; g++) {
        uint32_t q[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            q[i] = ((g % 2 ? c2[i] : a[i]) >> 4 * (g / 2) & 0x0f0f0f0fu) | (h[i] >> 2 * g & 0x03030303u) << 4;
        float s = scale * (float)(int8_t)b[192 + 8 * half + 2 * g + l / 16];
#pragma unroll
        for (uint32_t c = 0; c < COLS; c++) {
            u32x2 u = load8(x + c * stride / 4 + 8 * g);
            // q - 32: the product with -32 apart
            int dot = dp4a(q[0], u.x, dp4a(q[1], u.y, dp4a(0xe0e0e0e0u, u.x, dp4a(0xe0e0e0e0u, u.y, 0))));
            acc[c] = fmaf(s * (float)dot, d[c * stride / 32 + g], acc[c]);
        }
    }
}

// What a lane adds of its share of a stage: elements of `n` that begin at the stage's first one. `w` is where the
// stage's first block begins (in shared memory), x and d the codes and scales of the first column; columns are
// `stride` elements apart.
template <int TYPE, int COLS>
DEVICE void stage_dot(const uint8_t *w, const cuda_tables *tables, const uint32_t *x, const float *d,
                      uint32_t stride, uint32_t n, float acc[COLS])
{
    if (TYPE == 12 || TYPE == 13) {
        stage_dot_k45<TYPE, COLS>(w, x, d, stride, n, acc);
        return;
    }
    if (TYPE == 14) {
        stage_dot_k6<COLS>(w, x, d, stride, n, acc);
        return;
    }
    const uint32_t per = weight_type<TYPE>::elements / 8;
    for (uint32_t u = thread_x() % 32; 8 * u < n; u += 32) {
        eight v = weights8<TYPE>(w + u / per * weight_type<TYPE>::bytes, tables, u % per);
#pragma unroll
        for (uint32_t c = 0; c < COLS; c++) {
            u32x2 a = load8(x + c * stride / 4 + 2 * u);
            float s = v.d * (float)dp4a(v.lo, a.x, dp4a(v.hi, a.y, 0));
            if (weight_type<TYPE>::offset)
                s = fmaf(v.m, (float)dp4a(0x01010101u, a.x, dp4a(0x01010101u, a.y, 0)), s);
            acc[c] = fmaf(s, d[c * stride / 32 + u / 4], acc[c]);
        }
    }
}

// Column c of [first, first + n) into codes and scales: eight threads for 32 elements.
DEVICE void quantise_column(const float *x, const float *norm_weight, float factor, uint32_t n,
                            uint32_t *codes, float *scales)
{
    uint32_t tid = thread_x(), part = tid % 8;
    for (uint32_t g0 = 0; g0 < n / 32; g0 += CUDA_MATVEC_THREADS / 8) {
        uint32_t g = g0 + tid / 8;
        bool mine = g < n / 32;
        float v[4], largest = 0;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t e = 32 * g + 4 * part + i;
            v[i] = mine ? x[e] * factor : 0.0f;
            if (mine && norm_weight) v[i] = v[i] * norm_weight[e];
            if (!is_finite(v[i])) v[i] = 0;
            largest = fmaxf(largest, fabsf(v[i]));
        }
        for (uint32_t m = 1; m < 8; m <<= 1) largest = fmaxf(largest, shfl_xor(largest, m));
        if (!mine) continue;
        float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        uint32_t word = 0;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) word |= ((uint32_t)(int)rintf(v[i] * inverse) & 255u) << 8 * i;
        codes[8 * g + part] = word;
        if (part == 0) scales[g] = largest > 1e-30f ? largest / 127.0f : 0.0f;
    }
}

struct job_row {
    const uint8_t *w;
    uint32_t job, row;
};

DEVICE job_row row_of(const cuda_matvec_args &p, uint32_t v)
{
    job_row r = {p.w[0], 0, v};
    if (p.glu) {
        r.job = v & 1;
        r.row = v >> 1;
        r.w = r.job ? p.w[1] : p.w[0];
    } else {
#pragma unroll
        for (uint32_t j = 1; j < CUDA_MATVEC_JOBS; j++)
            if (r.job == j - 1 && j < p.n_jobs && r.row >= p.n_out[j - 1]) {
                r.row -= p.n_out[j - 1];
                r.job = j;
                r.w = p.w[j];
            }
    }
    r.w += (uint64_t)r.row * p.row_bytes;
    return r;
}

DEVICE uint32_t all_rows(const cuda_matvec_args &p)
{
    uint32_t n = p.n_out[0];
#pragma unroll
    for (uint32_t j = 1; j < CUDA_MATVEC_JOBS; j++)
        if (j < p.n_jobs) n += p.n_out[j];
    return n;
}

// Of a by-expert launch: which expert's matrix, or false when this block has nothing to do.
DEVICE bool find_pair(const cuda_matvec_args &p, uint64_t &w_offset, uint64_t &x_offset, uint64_t &y_offset)
{
    w_offset = x_offset = y_offset = 0;
    if (p.n_used == 0) return true;
    uint32_t pair = block_y(), t = pair / p.n_used;
    if (t >= p.step[STEP_N_TOKENS]) return false;
    uint32_t expert = (uint32_t)p.ids[pair];
    if (expert >= p.n_expert) return false;
    w_offset = expert * p.expert_bytes;
    x_offset = t * p.x_stride + pair % p.n_used * p.slot_stride;
    y_offset = (uint64_t)pair * p.n_out[0];
    return true;
}

template <int COLS>
DEVICE void write_rows(const cuda_matvec_args &p, const job_row &r, uint64_t y_offset, const float sum[COLS])
{
    if (thread_x() % 32 != 0) return;
    float *y = p.y[r.job] + y_offset;
    const float *addend = p.addend[r.job];
    uint64_t stride = p.y_stride[r.job], addend_stride = p.addend_stride[r.job];
#pragma unroll
    for (uint32_t c = 0; c < COLS; c++) {
        if (c >= p.columns) break;
        y[c * stride + r.row] = addend ? sum[c] + addend[c * addend_stride + r.row] : sum[c];
    }
}

// What the norm multiplies each column by; 1 without a norm.
template <int COLS>
DEVICE void norm_factors(const cuda_matvec_args &p, const float *x, float *sums, float factor[COLS])
{
#pragma unroll
    for (uint32_t c = 0; c < COLS; c++) {
        factor[c] = 1;
        if (!p.normed || c >= p.columns) continue;
        float s = 0;
        for (uint32_t i = thread_x(); i < p.n_in; i += CUDA_MATVEC_THREADS) {
            float v = x[c * p.x_stride + i];
            s += v * v;
        }
        factor[c] = 1.0f / sqrtf(block_sum(s, sums) / (float)p.n_in + p.eps);
        block_sync();
    }
}

// Before the launch waits for the one before it: the beginnings of this warp's first rows are asked for, a line of 128
// bytes a lane. Weights are what no launch writes; which expert's they are, one does.
DEVICE void ask_ahead(const cuda_matvec_args &p, uint32_t first_row, uint32_t rows, uint32_t row_bytes)
{
    if (p.n_used == 0) {
        uint32_t lane = thread_x() % 32, row = first_row + lane / 16, at = lane % 16 * 128;
        if (row < rows && at < row_bytes) prefetch(row_of(p, row).w + at);
    }
    launch_wait();
}

template <int TYPE, int COLS> DEVICE void matvec_blocks(const cuda_matvec_args &p)
{
    constexpr uint32_t CHUNK = MV_CODES / COLS; // elements of a column in shared memory at a time
    constexpr uint32_t STAGE_BYTES = MV_STAGE / weight_type<TYPE>::elements * weight_type<TYPE>::bytes;
    constexpr uint32_t RING_BYTES = (STAGE_BYTES + 15 + 15) / 16 * 16;
    SHARED(uint32_t, codes, MV_CODES / 4);
    SHARED(float, scales, MV_CODES / 32);
    SHARED(float, sums, 8);
    SHARED(uint8_t, rings, MV_WARPS * MV_STAGES * RING_BYTES);
    uint64_t w_offset, x_offset, y_offset;
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, rows = all_rows(p);
    ask_ahead(p, (block_x() * MV_WARPS + warp) * MV_ROWS, rows, (uint32_t)p.row_bytes);
    if (!find_pair(p, w_offset, x_offset, y_offset)) return;
    const float *x = p.x + x_offset;
    uint8_t *ring = rings + warp * MV_STAGES * RING_BYTES;
    float factor[COLS];
    norm_factors<COLS>(p, x, sums, factor);
    bool whole = p.n_in <= CHUNK;
    for (uint32_t first = block_x() * MV_WARPS * MV_ROWS; first < rows;
         first += blocks_x() * MV_WARPS * MV_ROWS) {
        // Not before the last round: what the next launch asks for ahead shall still be in the cache when it begins.
        if (first + blocks_x() * MV_WARPS * MV_ROWS >= rows) launch_next();
        float acc[MV_ROWS][COLS];
        job_row row[MV_ROWS];
#pragma unroll
        for (uint32_t r = 0; r < MV_ROWS; r++) {
            row[r] = row_of(p, min_u(first + warp * MV_ROWS + r, rows - 1));
            row[r].w += w_offset;
#pragma unroll
            for (uint32_t c = 0; c < COLS; c++) acc[r][c] = 0;
        }
        for (uint32_t k0 = 0; k0 < p.n_in; k0 += CHUNK) {
            uint32_t n = min_u(CHUNK, p.n_in - k0), stages = (n + MV_STAGE - 1) / MV_STAGE;
            // the first stages are on their way while activations are quantised
            auto fetch = [&](uint32_t i) {
                if (i < stages * MV_ROWS) {
                    const uint8_t *w = row[0].w;
                    if (i >= stages) w = row[MV_ROWS - 1].w;
                    uint32_t s = i < stages ? i : i - stages;
                    w += (uint64_t)(k0 + s * MV_STAGE) / weight_type<TYPE>::elements *
                         weight_type<TYPE>::bytes;
                    uint32_t elements = min_u(MV_STAGE, n - s * MV_STAGE);
                    uint64_t from = (uint64_t)w & ~(uint64_t)15;
                    uint32_t bytes = (uint32_t)((uint64_t)w - from) +
                                     elements / weight_type<TYPE>::elements * weight_type<TYPE>::bytes;
                    for (uint32_t q = 16 * lane; q < bytes; q += 512)
                        copy16_async(ring + i % MV_STAGES * RING_BYTES + q, (const uint8_t *)from + q);
                }
                copy_commit();
            };
            for (uint32_t i = 0; i < MV_STAGES - 1; i++) fetch(i);
            if (!whole || first == block_x() * MV_WARPS * MV_ROWS) {
                block_sync();
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) {
                    if (c >= p.columns) break;
                    quantise_column(x + c * p.x_stride + k0,
                                    p.norm_weight ? p.norm_weight + k0 : p.norm_weight, factor[c], n,
                                    codes + c * CHUNK / 4, scales + c * CHUNK / 32);
                }
                block_sync();
            }
            uint32_t i = 0;
#pragma unroll
            for (uint32_t r = 0; r < MV_ROWS; r++)
                for (uint32_t s = 0; s < stages; s++, i++) {
                    fetch(i + MV_STAGES - 1);
                    copy_wait<MV_STAGES - 1>();
                    warp_sync();
                    const uint8_t *w = row[r].w + (uint64_t)(k0 + s * MV_STAGE) /
                                                      weight_type<TYPE>::elements * weight_type<TYPE>::bytes;
                    stage_dot<TYPE, COLS>(ring + i % MV_STAGES * RING_BYTES + ((uint64_t)w & 15), p.tables,
                                          codes + s * MV_STAGE / 4, scales + s * MV_STAGE / 32, CHUNK,
                                          min_u(MV_STAGE, n - s * MV_STAGE), acc[r]);
                    warp_sync();
                }
        }
        copy_wait<0>();
        float kept[COLS];
#pragma unroll
        for (uint32_t r = 0; r < MV_ROWS; r++) {
            float sum[COLS];
#pragma unroll
            for (uint32_t c = 0; c < COLS; c++) sum[c] = warp_sum(acc[r][c]);
            bool mine = first + warp * MV_ROWS + r < rows;
            if (p.glu && r % 2 == 0) {
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) kept[c] = sum[c];
                continue;
            }
            if (p.glu) {
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) sum[c] = gated(p.glu - 1, kept[c], sum[c]);
                row[r].job = 0;
            }
            if (mine) write_rows<COLS>(p, row[r], y_offset, sum);
        }
    }
}

// ---- types of one element a block: floats with floats, a warp per row
template <int TYPE> DEVICE void eight_of_row(const uint8_t *w, uint32_t j, uint32_t n, float v[8])
{
    if ((TYPE == 1 || TYPE == 30) && 8 * j + 8 <= n && ((uint64_t)w & 15) == 0) {
        u32x4 b = load16_once(w + 16 * j);
        const uint32_t word[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            v[2 * i] = TYPE == 1 ? half_float(word[i] & 0xffffu) : bits_float(word[i] << 16);
            v[2 * i + 1] = TYPE == 1 ? half_float(word[i] >> 16) : bits_float(word[i] & 0xffff0000u);
        }
    } else if (TYPE == 0 && 8 * j + 8 <= n && ((uint64_t)w & 15) == 0) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            u32x4 b = load16_once(w + 32 * j + 16 * h);
            v[4 * h] = bits_float(b.x), v[4 * h + 1] = bits_float(b.y);
            v[4 * h + 2] = bits_float(b.z), v[4 * h + 3] = bits_float(b.w);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) v[i] = 8 * j + i < n ? weight_float<TYPE>(w, 8 * j + i) : 0.0f;
    }
}

template <int TYPE, int COLS> DEVICE void matvec_floats(const cuda_matvec_args &p)
{
    SHARED(float, sums, 8);
    SHARED(float, kept, MV_FLOATS);
    uint64_t w_offset, x_offset, y_offset;
    uint32_t lane = thread_x() % 32, rows = all_rows(p), per_warp = p.glu ? 2 : 1;
    ask_ahead(p, (block_x() * MV_WARPS + thread_x() / 32) * per_warp, rows, (uint32_t)p.row_bytes);
    if (!find_pair(p, w_offset, x_offset, y_offset)) return;
    const float *x = p.x + x_offset;
    uint64_t x_stride = p.x_stride;
    float factor[COLS];
    norm_factors<COLS>(p, x, sums, factor);
    bool late = p.normed; // the norm is not in x yet
    if (p.normed && p.n_in * p.columns <= MV_FLOATS) {
#pragma unroll
        for (uint32_t c = 0; c < COLS; c++) {
            if (c >= p.columns) break;
            for (uint32_t i = thread_x(); i < p.n_in; i += CUDA_MATVEC_THREADS) {
                float v = x[c * x_stride + i] * factor[c];
                kept[c * p.n_in + i] = p.norm_weight ? v * p.norm_weight[i] : v;
            }
        }
        block_sync();
        x = kept;
        x_stride = p.n_in;
        late = false;
    }
    for (uint32_t first = (block_x() * MV_WARPS + thread_x() / 32) * per_warp; first < rows;
         first += blocks_x() * MV_WARPS * per_warp) {
        if (first + blocks_x() * MV_WARPS * per_warp >= rows) launch_next();
        float gate[COLS];
        for (uint32_t k = 0; k < per_warp; k++) {
            job_row r = row_of(p, first + k);
            float acc[COLS];
#pragma unroll
            for (uint32_t c = 0; c < COLS; c++) acc[c] = 0;
            for (uint32_t j = lane; 8 * j < p.n_in; j += 32) {
                float w[8];
                eight_of_row<TYPE>(r.w + w_offset, j, p.n_in, w);
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) {
                    if (c >= p.columns) break;
                    float s = 0;
#pragma unroll
                    for (uint32_t i = 0; i < 8; i++) {
                        if (8 * j + i >= p.n_in) continue;
                        float v = x[c * x_stride + 8 * j + i];
                        if (late) {
                            v = v * factor[c];
                            if (p.norm_weight) v = v * p.norm_weight[8 * j + i];
                        }
                        s = fmaf(w[i], v, s);
                    }
                    acc[c] = acc[c] + s;
                }
            }
#pragma unroll
            for (uint32_t c = 0; c < COLS; c++) acc[c] = warp_sum(acc[c]);
            if (p.glu && k == 0) {
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) gate[c] = acc[c];
                continue;
            }
            if (p.glu) {
#pragma unroll
                for (uint32_t c = 0; c < COLS; c++) acc[c] = gated(p.glu - 1, gate[c], acc[c]);
                r.job = 0;
            }
            write_rows<COLS>(p, r, y_offset, acc);
        }
    }
}

template <int TYPE, int COLS> DEVICE void matvec(const cuda_matvec_args &p)
{
    if constexpr (weight_type<TYPE>::block)
        matvec_blocks<TYPE, COLS>(p);
    else
        matvec_floats<TYPE, COLS>(p);
}

#define MATVEC_KERNELS(type)                                                                                 \
    KERNEL_AHEAD(matvec_##type##_1, cuda_matvec_args, CUDA_MATVEC_THREADS)                                   \
    {                                                                                                        \
        matvec<type, 1>(p);                                                                                  \
    }                                                                                                        \
    KERNEL_AHEAD(matvec_##type##_4, cuda_matvec_args, CUDA_MATVEC_THREADS)                                   \
    {                                                                                                        \
        matvec<type, 4>(p);                                                                                  \
    }                                                                                                        \
    KERNEL_AHEAD(matvec_##type##_8, cuda_matvec_args, CUDA_MATVEC_THREADS)                                   \
    {                                                                                                        \
        matvec<type, 8>(p);                                                                                  \
    }

#endif
