// delta_chunk.cu - the gated delta rule of long runs, 32 tokens at a time on matrix units (Yang, Kautz & Hatamizadeh 2024,
// section 3.3, in the form that keeps the differences d_t; the inverse of the triangle as in Yang et al. 2024,
// "Parallelizing linear transformers with the delta rule", section 3). In a chunk that finds the state S, with G_t the sum
// of the logarithms of decay up to token t:
//     D  = T (V - e^G K S),  T = (1 + A)^-1 diag(b),  A[t][j] = b_t e^(G_t - G_j) (k_t . k_j) for j < t
//     Y  = scale e^G Q S + P D,                       P[t][j] = scale e^(G_t - G_j) (q_t . k_j) for j <= t
//     S' = e^G_n S + K^T (e^(G_n - G) D)
// Only differences G_t - G_j with j <= t are raised, each summed by itself: nothing overflows that the token form would
// not, and a token that forgets everything takes no digits from those behind it.
//
// T and P do not depend on the state: delta_prepare makes them for all chunks at once, delta_chunk then walks from chunk
// to chunk. Operands are numbers in two parts of bf16 (16 bits together), products three products of parts, sums f32.
//
// Keys of up to 128 elements: with more the state does not fit into the registers of so few warps, and goes token by token.
//
// Bytes of a token and layer: prepared, 8 dk for each key head and 272 for each value head, written once and read by
// each block of 64 columns; v and y once. The state is read and written once for a run.
#include "cuda/recurrent.cuh"

CONSTANT uint32_t CHUNK = CUDA_DELTA_CHUNK, STAGES = 2, RECORD = CUDA_DELTA_RECORD, THREADS = 128;

// A record: a row of T and one of P, of 32 halves, the first parts before the second ones (64 bytes each); then what
// is left at this token of the state that the chunk finds, the same times the scale, and at the chunk's end of this token.
CONSTANT uint32_t RECORD_P = 128, RECORD_GATES = 256;

// ---- numbers in two parts

// Parts of x and y, which are the low and the high half of a word.
DEVICE void split_pair(float x, float y, uint32_t &first, uint32_t &second)
{
    uint32_t a = float_bits(x) + 0x8000u, b = float_bits(y) + 0x8000u;
    first = prmt(a, b, 0x7632);
    float u = x - bits_float(a & 0xffff0000u), v = y - bits_float(b & 0xffff0000u);
    second = prmt(float_bits(u), float_bits(v), 0x7632);
}

// Sums of two neighbouring tiles of 8 columns as the left operand of a product.
struct left_parts {
    uint32_t first[4], second[4];
};
DEVICE left_parts split_sums(const float c0[4], const float c1[4])
{
    left_parts a;
    split_pair(c0[0], c0[1], a.first[0], a.second[0]);
    split_pair(c0[2], c0[3], a.first[1], a.second[1]);
    split_pair(c1[0], c1[1], a.first[2], a.second[2]);
    split_pair(c1[2], c1[3], a.first[3], a.second[3]);
    return a;
}

// c += a b; the product of the second parts is below what they leave out themselves.
DEVICE void multiply_parts(float c[4], const left_parts &a, const uint32_t first[2], const uint32_t second[2])
{
    mma_bf16(c, a.first, second);
    mma_bf16(c, a.second, first);
    mma_bf16(c, a.first, first);
}

// ---- tiles in shared memory: rows of N bytes with 16 behind them, so that eight neighbouring rows never meet in a bank
template <uint32_t N> struct tile {
    static constexpr uint32_t STEP = N + 16;
    alignas(16) uint8_t bytes[CHUNK * STEP];

    DEVICE_MEMBER uint8_t *at(uint32_t row, uint32_t chunk)
    {
        return bytes + row * STEP + 16 * chunk;
    }
    // Rows as the left operand: 16 from `row` on, 16 halves from `chunk` on.
    DEVICE_MEMBER void load_left(uint32_t r[4], uint32_t row, uint32_t chunk)
    {
        uint32_t lane = thread_x() % 32;
        ldmatrix_x4(r, at(lane % 16, lane / 16) + row * STEP + 16 * chunk);
    }
    // Rows as columns of the right operand: 16 of them, as two tiles of 8.
    DEVICE_MEMBER void load_right(uint32_t r[4], uint32_t row, uint32_t chunk)
    {
        uint32_t lane = thread_x() % 32;
        ldmatrix_x4(r, at(lane % 8 + lane / 16 * 8, lane / 8 % 2) + row * STEP + 16 * chunk);
    }
    // Rows as rows of the right operand: 16 of them, and 16 columns as two tiles of 8.
    DEVICE_MEMBER void load_right_rows(uint32_t r[4], uint32_t row, uint32_t chunk)
    {
        uint32_t lane = thread_x() % 32;
        ldmatrix_x4_trans(r, at(lane % 16, lane / 16) + row * STEP + 16 * chunk);
    }
};

// ---- what does not depend on the state

template <uint32_t DK> struct prepared {
    tile<2 * DK> rows[4];                        // k, q: first parts, second parts
    alignas(16) float products[2][CHUNK][CHUNK]; // k_t . k_j, q_t . k_j
    alignas(16) float lower[THREADS / 32][2][CHUNK];
};

// Chunk i of those of all long runs, and which one of its run it is.
DEVICE bool chunk_at(const cuda_delta_args &p, uint32_t i, run_of_step &r, uint32_t &chunk)
{
    chunk = i;
    for (uint32_t at = 0; at < p.step[STEP_N_RUNS]; at++) {
        if (!run_at(p.step, at, p.n_slots, r) || !goes_in_chunks(r)) continue;
        uint32_t n = (r.count + CHUNK - 1) / CHUNK;
        if (chunk < n) return true;
        chunk -= n;
    }
    return false;
}

// Rows of k (0) or q (1) in two parts, to the block's tiles and to where delta_chunk reads them; zeros behind the last.
template <uint32_t DK>
DEVICE void split_rows(const cuda_delta_args &p, prepared<DK> &sh, uint32_t which, uint32_t token, uint32_t n)
{
    uint32_t head = block_y();
    const uint64_t *stride = which ? p.q_stride : p.k_stride;
    const float *x = (which ? p.q : p.k) + head * stride[0];
#pragma unroll 8
    for (uint32_t i = thread_x(); i < CHUNK * DK / 2; i += THREADS) {
        uint32_t t = i / (DK / 2), c = i % (DK / 2), first = 0, second = 0;
        if (t < n) {
            const float *at = x + (token + t) * stride[1] + 2 * c;
            split_pair(2 * c < p.dk ? at[0] : 0.0f, 2 * c + 1 < p.dk ? at[1] : 0.0f, first, second);
            uint8_t *row =
                p.rows + ((uint64_t)(token + t) * p.key_heads + head) * (8 * DK) + which * (4 * DK);
            store4(row + 4 * c, first);
            store4(row + 2 * DK + 4 * c, second);
        }
        store4(sh.rows[2 * which].at(t, c / 4) + 4 * (c % 4), first);
        store4(sh.rows[2 * which + 1].at(t, c / 4) + 4 * (c % 4), second);
    }
}

// A warp's 16 rows of one of the two products; what lies above the diagonal stays undefined.
template <uint32_t DK> DEVICE void multiply_rows(prepared<DK> &sh)
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32, which = warp / 2, row = warp % 2 * 16;
    float c[4][4];
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) c[i / 4][i % 4] = 0;
#pragma unroll 4
    for (uint32_t kk = 0; kk < DK / 16; kk++) {
        left_parts a;
        sh.rows[2 * which].load_left(a.first, row, 2 * kk);
        sh.rows[2 * which + 1].load_left(a.second, row, 2 * kk);
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            if (16 * j > row) continue;
            uint32_t first[4], second[4];
            sh.rows[0].load_right(first, 16 * j, 2 * kk);
            sh.rows[1].load_right(second, 16 * j, 2 * kk);
            multiply_parts(c[2 * j], a, first, second);
            multiply_parts(c[2 * j + 1], a, first + 2, second + 2);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        sh.products[which][row + lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + 2 * (lane % 4) + i % 2] =
            c[i / 4][i % 4];
}

DEVICE void store_parts(uint8_t *row, uint32_t i, float v)
{
    uint32_t first, second;
    split_pair(v, 0, first, second);
    ((uint16_t *)row)[i] = (uint16_t)first;
    ((uint16_t *)(row + 64))[i] = (uint16_t)second;
}

// Records of one value head, by a warp; a lane has a column of T and P. Row t of the inverse is that of 1 less what the
// rows above it give: T_t = 1_t - sum over j < t of A[t][j] T_j.
template <uint32_t DK>
DEVICE void make_records(const cuda_delta_args &p, prepared<DK> &sh, uint32_t head, uint32_t token,
                         uint32_t n)
{
    uint32_t warp = thread_x() / 32, lane = thread_x() % 32;
    float own_log = 0, own_share = 0;
    if (lane < n) {
        own_log = log_decay(p, token + lane, head);
        own_share = share(p, token + lane, head);
    }
    uint8_t *record = p.records + ((uint64_t)token * p.heads + head) * RECORD;
    float column[CHUNK], since = 0, all = 0,
                         left = 0; // sums of logarithms: behind the lane's token, from the first on
    warp_sync();                   // nobody reads the last row of the head before
#pragma unroll
    for (uint32_t t = 0; t < CHUNK; t++) {
        column[t] = 0;
        if (t >= n) continue; // the same for all
        float log = shfl(own_log, t), write = shfl(own_share, t);
        all += log;
        if (lane < t) since += log;
        if (lane == t) left = expf(all);
        float ratio = lane <= t ? expf(since) : 0.0f;
        float *lower = sh.lower[warp][t % 2];
        lower[lane] = lane < t ? write * ratio * sh.products[0][t][lane] : 0.0f;
        float seen = lane <= t ? p.scale * ratio * sh.products[1][t][lane] : 0.0f;
        warp_sync();
        float x = lane == t ? 1.0f : 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < t; j += 4) {
            u32x4 a = load16(lower + j);
            x = fmaf(-bits_float(a.x), column[j], x);
            if (j + 1 < t) x = fmaf(-bits_float(a.y), column[j + 1], x);
            if (j + 2 < t) x = fmaf(-bits_float(a.z), column[j + 2], x);
            if (j + 3 < t) x = fmaf(-bits_float(a.w), column[j + 3], x);
        }
        column[t] = x;
        uint8_t *at = record + (uint64_t)t * p.heads * RECORD;
        store_parts(at, lane, x * own_share);
        store_parts(at + RECORD_P, lane, seen);
    }
    if (lane < n)
        store16(record + (uint64_t)lane * p.heads * RECORD + RECORD_GATES,
                {float_bits(left), float_bits(p.scale * left), float_bits(expf(since)), 0});
}

// Block: a chunk and a key head with all its value heads.
template <uint32_t DK> DEVICE void delta_prepare(const cuda_delta_args &p)
{
    LARGE_SHARED(prepared<DK>, shared);
    prepared<DK> &sh = *shared;
    run_of_step r;
    uint32_t chunk;
    if (!chunk_at(p, block_x(), r, chunk)) return;
    uint32_t token = r.first + CHUNK * chunk, n = min_u(r.count - CHUNK * chunk, CHUNK);
    split_rows(p, sh, 0, token, n);
    split_rows(p, sh, 1, token, n);
    block_sync();
    multiply_rows(sh);
    block_sync();
    for (uint32_t i = thread_x() / 32; i < p.heads / p.key_heads; i += THREADS / 32)
        make_records(p, sh, value_head_of(p, block_y(), i), token, n);
}

// ---- from chunk to chunk. Everything is the other way round: a warp owns 16 columns of the state as rows of a left
// operand, in registers, and what it makes of them for the tokens of a chunk stays there, too

template <uint32_t DK> struct chunk_tiles {
    tile<2 * DK> rows[4]; // as in `prepared`
    tile<128> t, p;
    alignas(16) float gates[CHUNK][4];
};

// Chunks at hand or on their way.
template <uint32_t DK> struct chunk_stages {
    chunk_tiles<DK> tiles[STAGES];
};

// Zeros behind the last token.
DEVICE void bring(void *to, const uint8_t *from, bool there)
{
    if (there)
        copy16_async(to, from);
    else
        store16(to, {0, 0, 0, 0});
}

template <uint32_t DK>
DEVICE void bring_chunk(const cuda_delta_args &p, chunk_tiles<DK> &to, uint32_t head, uint32_t token,
                        uint32_t n)
{
    constexpr uint32_t OF_TILE = DK / 8, OF_RECORD = RECORD / 16;
    const uint8_t *rows = p.rows + ((uint64_t)token * p.key_heads + key_head_of(p, head)) * (8 * DK);
    const uint8_t *records = p.records + ((uint64_t)token * p.heads + head) * RECORD;
#pragma unroll 4
    for (uint32_t i = thread_x(); i < CHUNK * 4 * OF_TILE; i += THREADS) {
        uint32_t t = i / (4 * OF_TILE), c = i % (4 * OF_TILE);
        bring(to.rows[c / OF_TILE].at(t, c % OF_TILE), rows + (uint64_t)t * p.key_heads * (8 * DK) + 16 * c,
              t < n);
    }
    for (uint32_t i = thread_x(); i < CHUNK * OF_RECORD; i += THREADS) {
        uint32_t t = i / OF_RECORD, c = i % OF_RECORD;
        void *at = to.gates[t];
        if (16 * c < RECORD_P)
            at = to.t.at(t, c);
        else if (16 * c < RECORD_GATES)
            at = to.p.at(t, c - RECORD_P / 16);
        bring(at, records + (uint64_t)t * p.heads * RECORD + 16 * c, t < n);
    }
}

// c[tokens] += a * rows of t or p, which are 0 above the diagonal.
DEVICE void multiply_triangle(float c[4][4], float a[4][4], tile<128> &rows)
{
#pragma unroll
    for (uint32_t kk = 0; kk < 2; kk++) {
        left_parts left = split_sums(a[2 * kk], a[2 * kk + 1]);
#pragma unroll
        for (uint32_t j = kk; j < 2; j++) {
            uint32_t first[4], second[4];
            rows.load_right(first, 16 * j, 2 * kk);
            rows.load_right(second, 16 * j, 4 + 2 * kk);
            multiply_parts(c[2 * j], left, first, second);
            multiply_parts(c[2 * j + 1], left, first + 2, second + 2);
        }
    }
}

// Where a thread's numbers of a chunk lie: columns m and m + 8 of tokens 8 j + pair and the one behind it.
struct chunk_place {
    uint32_t head, token, n, m, pair;

    DEVICE_MEMBER bool there(const cuda_delta_args &p, uint32_t i) const
    {
        return row(i) < n && m + column(i) < p.dv;
    }
    DEVICE_MEMBER uint32_t row(uint32_t i) const
    {
        return i / 4 * 8 + pair + i % 2;
    }
    DEVICE_MEMBER uint32_t column(uint32_t i) const
    {
        return i % 4 / 2 * 8;
    }
};

// 0 behind the last token.
DEVICE void load_values(const cuda_delta_args &p, const chunk_place &c, float v[4][4])
{
    const float *from = p.v + c.head * p.v_stride[0] + c.m;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        v[i / 4][i % 4] = c.there(p, i) ? from[(c.token + c.row(i)) * p.v_stride[1] + c.column(i)] : 0.0f;
}

DEVICE void store_results(const cuda_delta_args &p, const chunk_place &c, const float y[4][4])
{
    float *to = p.y + (uint64_t)c.head * p.dv + c.m;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        if (c.there(p, i))
            to[(uint64_t)(c.token + c.row(i)) * p.heads * p.dv + c.column(i)] = y[i / 4][i % 4];
}

// x[tokens] = s * rows of k (0) or q (1).
template <uint32_t DK>
DEVICE void multiply_state(const cuda_delta_args &p, chunk_tiles<DK> &sh, uint32_t which, float (*s)[4],
                           float x[4][4])
{
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) x[i / 4][i % 4] = 0;
#pragma unroll
    for (uint32_t kk = 0; kk < DK / 16; kk++) {
        if (16 * kk >= p.dk) break;
        left_parts a = split_sums(s[2 * kk], s[2 * kk + 1]);
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t first[4], second[4];
            sh.rows[2 * which].load_right(first, 16 * j, 2 * kk);
            sh.rows[2 * which + 1].load_right(second, 16 * j, 2 * kk);
            multiply_parts(x[2 * j], a, first, second);
            multiply_parts(x[2 * j + 1], a, first + 2, second + 2);
        }
    }
}

// One chunk of a warp's columns, the state of which is s; v: the values.
template <uint32_t DK>
DEVICE void take_chunk(const cuda_delta_args &p, chunk_tiles<DK> &sh, const chunk_place &c, float (*s)[4],
                       const float v[4][4])
{
    float x[4][4], d[4][4];
    multiply_state(p, sh, 0, s, x);
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) {
        x[i / 4][i % 4] = fmaf(-sh.gates[c.row(i)][0], x[i / 4][i % 4], v[i / 4][i % 4]);
        d[i / 4][i % 4] = 0;
    }
    multiply_triangle(d, x, sh.t);
    multiply_state(p, sh, 1, s, x);
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) x[i / 4][i % 4] *= sh.gates[c.row(i)][1];
    multiply_triangle(x, d, sh.p);
    store_results(p, c, x);
    float left = sh.gates[c.n - 1][0];
#pragma unroll
    for (uint32_t i = 0; i < DK / 2; i++) s[i / 4][i % 4] *= left;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++) d[i / 4][i % 4] *= sh.gates[c.row(i)][2];
#pragma unroll
    for (uint32_t kk = 0; kk < 2; kk++) {
        left_parts a = split_sums(d[2 * kk], d[2 * kk + 1]);
#pragma unroll
        for (uint32_t j = 0; j < DK / 16; j++) {
            if (16 * j >= p.dk) break;
            uint32_t first[4], second[4];
            sh.rows[0].load_right_rows(first, 16 * kk, 2 * j);
            sh.rows[1].load_right_rows(second, 16 * kk, 2 * j);
            multiply_parts(s[2 * j], a, first, second);
            multiply_parts(s[2 * j + 1], a, first + 2, second + 2);
        }
    }
}

// The state of columns m and m + 8; `at`: column m of the matrix.
template <uint32_t DK>
DEVICE void load_state(const cuda_delta_args &p, const float *at, uint32_t m, float (*s)[4], bool there)
{
    uint32_t pair = 2 * (thread_x() % 4);
    at += pair * p.dv;
#pragma unroll
    for (uint32_t j = 0; j < DK / 8; j++, at += 8 * p.dv)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            s[j][i] = there && 8 * j + pair + i % 2 < p.dk && m + i / 2 * 8 < p.dv
                          ? at[i % 2 * p.dv + i / 2 * 8]
                          : 0.0f;
}
// From the last row up: the addresses shall not be those of loading, kept for so long.
template <uint32_t DK> DEVICE void store_state(const cuda_delta_args &p, float *at, uint32_t m, float (*s)[4])
{
    uint32_t pair = 2 * (thread_x() % 4);
    at += (DK + pair) * p.dv;
#pragma unroll
    for (uint32_t j = DK / 8; j-- > 0;) {
        at -= 8 * p.dv;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (8 * j + pair + i % 2 < p.dk && m + i / 2 * 8 < p.dv) at[i % 2 * p.dv + i / 2 * 8] = s[j][i];
    }
}

template <uint32_t DK>
DEVICE void chunk_run(const cuda_delta_args &p, const run_of_step &r, chunk_tiles<DK> *tiles)
{
    uint32_t lane = thread_x() % 32, head = block_y(), pair = 2 * (lane % 4);
    uint32_t first = block_z() * CUDA_DELTA_COLUMNS + thread_x() / 32 * 16, m = first + lane / 4;
    uint32_t n_chunks = (r.count + CHUNK - 1) / CHUNK;
    float *matrix = matrix_of(p, r, head) + m, s[DK / 8][4];
    load_state<DK>(p, matrix, m, s, r.start != 0); // what was pending is applied
    uint32_t asked = 0;                            // tokens of the run that are at hand or on their way
    for (uint32_t chunk = 0; chunk < n_chunks; chunk++) {
        uint32_t done = CHUNK * chunk, n = min_u(r.count - done, CHUNK), token = r.first + done;
        for (; asked < min_u(done + STAGES * CHUNK, r.count); asked += CHUNK) {
            bring_chunk(p, tiles[asked / CHUNK % STAGES], head, r.first + asked,
                        min_u(r.count - asked, CHUNK));
            copy_commit();
        }
        const chunk_place c = {head, token, n, m, pair};
        float v[4][4];
        load_values(p, c, v);
        if (asked > done + CHUNK)
            copy_wait<STAGES - 1>();
        else
            copy_wait<0>();
        block_sync();
        if (first < p.dv) take_chunk(p, tiles[chunk % STAGES], c, s, v);
        block_sync(); // nobody reads the tiles any more
    }
    store_state<DK>(p, matrix, m, s);
}

// Block: 64 columns of a value head, and every so many-th run.
template <uint32_t DK> DEVICE void delta_chunks(const cuda_delta_args &p)
{
    LARGE_SHARED(chunk_stages<DK>, shared);
    for (uint32_t i = block_x(); i < p.step[STEP_N_RUNS]; i += blocks_x()) {
        run_of_step r;
        if (run_at(p.step, i, p.n_slots, r) && goes_in_chunks(r)) chunk_run<DK>(p, r, shared->tiles);
    }
}

#define DELTA_CHUNKS(dk)                                                                                     \
    KERNEL(delta_prepare_##dk, cuda_delta_args, THREADS)                                                     \
    {                                                                                                        \
        if (MATRIX_UNITS) delta_prepare<dk>(p);                                                              \
    }                                                                                                        \
    KERNEL(delta_chunk_##dk, cuda_delta_args, THREADS)                                                       \
    {                                                                                                        \
        if (MATRIX_UNITS) delta_chunks<dk>(p);                                                               \
    }
DELTA_CHUNKS(64)
DELTA_CHUNKS(128)
