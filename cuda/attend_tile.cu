// attend_tile.cu - attention of wide steps on matrix units: a block takes up to 128 rows (queries x the query heads of
// one KV head) of one item of work through its pages, each of which it brings into shared memory once, as halves, be
// it exact or coded (attend_tile.cuh). A warp owns 16 rows: their scores against the 64 keys of a page stay in its
// registers, become weights there (online softmax, Milakov & Gimelshein 2018) and meet the values from there. While
// scores are made values arrive, while values are used the next page's keys arrive: two barriers a page.
//
// Of each (row, key) this costs 4 d multiplications on matrix units, one exponential and about ten more instructions;
// unpacking a coded page about four instructions an element, shared by all rows of the block.
#include "cuda/attend_tile.cuh"

CONSTANT float LOG2_E = 1.44269504088896341f;

// A page that rows of the block read, in one of its forms.
struct visit {
    uint32_t index, page;
    bool exact, there; // there: false behind the last one
};

struct tile_pages {
    const uint32_t *table, *coded_table;
    uint32_t end, first_pos, last_pos, lowest, boundary; // of the first query, but boundary: of the last
};

// Is (v.index, v.exact) read, as positions have it? Looks the page up, but does not wait for it.
DEVICE bool look_up(const cuda_pool *pool, const tile_pages &t, visit &v)
{
    bool sink = v.index < pool->sinks;
    if (v.exact) {
        if (!sink && boundary_of(pool, max_u(t.first_pos, 64 * v.index)) > v.index) return false;
    } else if (!pool->is_coded || sink || v.index >= t.boundary) {
        return false;
    }
    if (t.lowest >= 64 * v.index + 64) return false;
    v.page = v.exact ? t.table[v.index] : t.coded_table[v.index];
    return true;
}

// The first visit at or behind v: ascending pages, a page's coded form first.
DEVICE void find_visit(const cuda_pool *pool, const tile_pages &t, visit &v)
{
    v.there = false;
    while (v.index < t.end) {
        if (look_up(pool, t, v)) {
            v.there = true;
            return;
        }
        if (v.exact) v.index++;
        v.exact = !v.exact;
    }
}

DEVICE void next_visit(const cuda_pool *pool, const tile_pages &t, visit &v)
{
    if (v.exact) v.index++;
    v.exact = !v.exact;
    find_visit(pool, t, v);
}

// Passes over visits of pages that do not exist.
DEVICE void existing_visit(const cuda_pool *pool, const tile_pages &t, visit &v)
{
    while (v.there && (v.exact ? !page_exists(pool, v.page) : v.page >= pool->n_coded))
        next_visit(pool, t, v);
}

// Where a page's keys and values lie, and whether they are halves. Scales of coded pages follow.
struct page_parts {
    const uint8_t *k, *v;
    bool plain_k, plain_v;
};

DEVICE page_parts parts_of(const cuda_pool *pool, const visit &v, uint32_t layer, uint32_t head)
{
    page_parts p = {0, 0, v.exact || pool->form_k == SAME, v.exact || pool->form_v == SAME};
    p.k = v.exact ? page_block(pool, v.page, layer, head) : coded_block(pool, v.page, layer, head);
    p.v = p.k + (v.exact ? pool->k_bytes : pool->coded_k_bytes);
    return p;
}
DEVICE const uint8_t *scales_k(const cuda_pool *pool, const page_parts &p)
{
    return p.v + pool->coded_v_bytes;
}
DEVICE const uint8_t *scales_v(const cuda_pool *pool, const page_parts &p)
{
    return p.v + pool->coded_v_bytes + pool->coded_k_scale_bytes;
}

// Scores of 16 rows against 64 keys: s[j] are keys 8 j to 8 j + 7, in the layout of a product's sums.
template <bool PLAIN, uint32_t PANELS, uint32_t ROWS>
DEVICE void multiply_keys(uint8_t *q, uint8_t *k, uint32_t first_row, uint32_t dk, float s[8][4])
{
    uint32_t lane = thread_x() % 32;
#pragma unroll
    for (uint32_t j = 0; j < 8; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) s[j][i] = 0;
#pragma unroll
    for (uint32_t kk = 0; kk < 4 * PANELS; kk++) {
        if (16 * kk >= dk) break;
        uint8_t *panel = k + kk / 4 * PANEL_BYTES;
        uint32_t a[4], c = 2 * (kk % 4);
        ldmatrix_x4(a, chunk_of(q + kk / 4 * ROWS * 128, first_row + lane % 16, c + lane / 16));
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t b[4];
            if (PLAIN)
                ldmatrix_x4_trans(b, chunk_of(panel, kk % 4 * 16 + lane % 16, 2 * j + lane / 16));
            else
                ldmatrix_x4(b, chunk_of(panel, 16 * j + lane % 8 + lane / 16 * 8, c + lane / 8 % 2));
            mma_f16(s[2 * j], a, b);
            mma_f16(s[2 * j + 1], a, b + 2);
        }
    }
}

// Adds what the weights (halves, in the layout of a product's first operand) give to PANELS panels of elements.
template <bool PLAIN, uint32_t PANELS>
DEVICE void multiply_values(const uint32_t weights[4][4], uint8_t *v, uint32_t first_element, uint32_t dv,
                            float out[8 * PANELS][4])
{
    uint32_t lane = thread_x() % 32;
#pragma unroll
    for (uint32_t j = 0; j < 4 * PANELS; j++) {
        if (first_element + 16 * j >= dv) break;
        uint8_t *panel = v + j / 4 * PANEL_BYTES;
#pragma unroll
        for (uint32_t kk = 0; kk < 4; kk++) {
            uint32_t b[4];
            if (PLAIN)
                ldmatrix_x4_trans(b, chunk_of(panel, 16 * kk + lane % 16, 2 * (j % 4) + lane / 16));
            else
                ldmatrix_x4(b, chunk_of(panel, j % 4 * 16 + lane % 8 + lane / 16 * 8, 2 * kk + lane / 8 % 2));
            mma_f16(out[2 * j], weights[kk], b);
            mma_f16(out[2 * j + 1], weights[kk], b + 2);
        }
    }
}

template <uint32_t PANELS, uint32_t WARPS, uint32_t SPLIT, uint32_t AHEAD>
DEVICE void attend_tile(const cuda_attend_args &p)
{
    typedef tile_state<PANELS, WARPS, SPLIT> state;
    constexpr uint32_t ROWS = state::ROWS, THREADS = state::THREADS, MINE = PANELS / SPLIT;
    LARGE_SHARED(state, shared);
    state &sh = *shared;
    const cuda_pool *pool = p.pool;
    uint32_t tid = thread_x(), warp = tid / 32, lane = tid % 32, g = lane / 4, kv_head = block_y();
    uint32_t per = p.per_kv_head, dk = pool->dim_k, dv = pool->dim_v;
    uint32_t form_k = pool->form_k, form_v = pool->form_v;
    work_item w;
    if (!work_at(p, block_x(), w)) return;
    uint32_t row_first = block_z() * ROWS, n_rows = w.count * per;
    if (row_first >= n_rows) return;
    n_rows = min_u(n_rows - row_first, ROWS);
    const uint32_t *position = p.step + p.step[STEP_TOKEN_POS];
    tile_pages pages;
    pages.table = pool->table + (uint64_t)w.seq * pool->max_pages;
    pages.coded_table = pool->coded_table + (uint64_t)w.seq * pool->max_pages;
    pages.first_pos = position[w.first + row_first / per];
    pages.last_pos = position[w.first + (row_first + n_rows - 1) / per];
    pages.end = min_u(min_u(w.page_end, pages.last_pos / 64 + 1), pool->max_pages);
    pages.boundary = boundary_of(pool, pages.last_pos);
    uint32_t window = pool->window;
    pages.lowest = window != 0 && pages.first_pos >= window ? pages.first_pos + 1 - window : 0;
    uint32_t last_lowest = window != 0 && pages.last_pos >= window ? pages.last_pos + 1 - window : 0;
    uint32_t first_boundary = boundary_of(pool, pages.first_pos);

    float gain_v = 1, gain_v2 = 1; // of the spans
    if (pool->is_coded) {
        bool coded_k = form_k != SAME, coded_v = form_v != SAME;
        if (tid == 0)
            list_units(sh, coded_k ? form_k : Q8_0, coded_v ? form_v : Q8_0, coded_k ? dk : 64,
                       coded_v ? dv : 64);
        for (uint32_t e = tid; e < 256; e += THREADS) sh.key_scale[e] = p.tables->scales[0][e] * 64.0f;
        for (uint32_t i = 0; i < 2; i++) {
            span k = span_at(form_k, false, dk, i), v = span_at(form_v, true, dv, i);
            if (tid == 0 && is_codec(k.form)) sh.gain_k[i] = p.tables->gain_k[k.form - C2];
            float gain =
                is_codec(v.form) ? p.tables->gain_v[v.form - C2] * p.tables->scales[0][128] * 64.0f : 1.0f;
            if (i == 0) gain_v = gain;
            gain_v2 = gain;
        }
    }
    // Queries: a warp takes every WARPS-th row; rows that are none and elements past the end are zeros.
    for (uint32_t r = warp; r < ROWS; r += WARPS) {
        uint32_t row = row_first + r, t = w.first + row / per;
        const float *q = p.q + (kv_head * per + row % per) * p.head_stride + (uint64_t)t * p.token_stride;
        float shift = 0; // what softmax would not see of the mean, the cap does
        for (uint32_t c = lane; c < 8 * PANELS; c += 32) {
            float x[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                bool there = r < n_rows && 8 * c < dk;
                x[i] = there ? q[8 * c + i] * p.scale : 0.0f;
                if (there && p.mean && p.softcap > 0)
                    shift += x[i] * p.mean[kv_head * p.mean_stride + 8 * c + i];
            }
            store16(chunk_of(sh.q + c / 8 * ROWS * 128, r, c % 8),
                    {half2_bits(x[0], x[1]), half2_bits(x[2], x[3]), half2_bits(x[4], x[5]),
                     half2_bits(x[6], x[7])});
        }
        shift = warp_sum(shift);
        if (lane == 0) sh.shift[r] = shift;
    }
    // This thread's two rows of its warp's sixteen.
    uint32_t my_first = warp % (ROWS / 16) * 16, part = warp / (ROWS / 16);
    bool idle = my_first >= n_rows;
    uint32_t pos[2], lowest[2], boundary[2];
    float largest[2] = {NOTHING, NOTHING}, sum[2] = {0, 0}, out[8 * MINE][4];
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row =
            row_first + min_u(my_first + g + 8 * r, n_rows - 1); // rows that are none repeat the last
        pos[r] = position[w.first + row / per];
        lowest[r] = window != 0 && pos[r] >= window ? pos[r] + 1 - window : 0;
        boundary[r] = boundary_of(pool, pos[r]);
    }
#pragma unroll
    for (uint32_t j = 0; j < 8 * MINE; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) out[j][i] = 0;
    block_sync();
    uint8_t *values = SPLIT > 1 ? sh.k : sh.v;
    key_loader<state, PANELS, WARPS, AHEAD> keys;
    value_loader<state, PANELS, WARPS, AHEAD> vals;
    visit now = {w.page_first, 0, false, false};
    find_visit(pool, pages, now);
    existing_visit(pool, pages, now);
    page_parts at = {0, 0, true, true};
    if (now.there) {
        at = parts_of(pool, now, p.layer, kv_head);
        if (!at.plain_k) keys.fetch(sh, at.k, scales_k(pool, at));
        if (!at.plain_v) vals.fetch(sh, at.v, scales_v(pool, at), dv);
        if (at.plain_k)
            copy_keys<PANELS, THREADS>(sh.k, at.k, dk);
        else
            keys.place(sh, p.tables, at.k, scales_k(pool, at), form_k, dk);
        copy_commit();
        if (!at.plain_v) vals.place_scales(sh, gain_v, gain_v2, dv);
    }
    visit ahead = now;
    if (now.there) next_visit(pool, pages, ahead);
    while (now.there) {
        copy_wait<0>();
        block_sync(); // keys are there, and nobody reads the values before
        uint32_t first = 64 * now.index, token_end = pages.last_pos - first + 1;
        if (SPLIT == 1) {
            if (at.plain_v)
                copy_values<PANELS, THREADS>(values, at.v, dv, token_end);
            else
                vals.place(sh, values, p.tables, at.v, form_v, dv);
            copy_commit();
        }
        visit next = ahead;
        existing_visit(pool, pages, next);
        page_parts next_at = {0, 0, true, true};
        if (next.there) next_at = parts_of(pool, next, p.layer, kv_head);
        if (!next_at.plain_k) keys.fetch(sh, next_at.k, scales_k(pool, next_at));
        uint32_t weights[4][4];
        if (!idle) {
            float s[8][4];
            if (at.plain_k)
                multiply_keys<true, PANELS, ROWS>(sh.q, sh.k, my_first, dk, s);
            else
                multiply_keys<false, PANELS, ROWS>(sh.q, sh.k, my_first, dk, s);
            if (p.softcap > 0) {
#pragma unroll
                for (uint32_t j = 0; j < 8; j++)
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++)
                        s[j][i] =
                            p.softcap * tanhf((s[j][i] + sh.shift[my_first + g + i / 2 * 8]) / p.softcap);
            }
            bool sink = now.index < pool->sinks;
            bool whole = pages.first_pos >= first + 63 && last_lowest <= first &&
                         (sink || (now.exact ? now.index >= pages.boundary : now.index < first_boundary));
            if (!whole) {
#pragma unroll
                for (uint32_t r = 0; r < 2; r++) {
                    bool reads = (sink || now.index >= boundary[r]) == now.exact;
#pragma unroll
                    for (uint32_t j = 0; j < 8; j++)
#pragma unroll
                        for (uint32_t i = 0; i < 2; i++) {
                            uint32_t key = first + 8 * j + lane % 4 * 2 + i;
                            if (!reads || key > pos[r] || key < lowest[r])
                                s[j][2 * r + i] = bits_float(0xff800000u);
                        }
                }
            }
            float factor[2];
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                float m = largest[r];
#pragma unroll
                for (uint32_t j = 0; j < 8; j++) m = fmaxf(m, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
                m = fmaxf(m, shfl_xor(m, 1));
                m = fmaxf(m, shfl_xor(m, 2));
                float base = m == NOTHING ? 0.0f : -m * LOG2_E;
                factor[r] = largest[r] == NOTHING ? 0.0f : exp2_fast(fmaf(largest[r], LOG2_E, base));
                largest[r] = m;
                float all = 0;
#pragma unroll
                for (uint32_t j = 0; j < 8; j++)
#pragma unroll
                    for (uint32_t i = 0; i < 2; i++) {
                        s[j][2 * r + i] = exp2_fast(fmaf(s[j][2 * r + i], LOG2_E, base));
                        all += s[j][2 * r + i];
                    }
                sum[r] = fmaf(sum[r], factor[r], all);
            }
            if (vote_any(factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
                for (uint32_t j = 0; j < 8 * MINE; j++)
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++) out[j][i] *= factor[i / 2];
            }
#pragma unroll
            for (uint32_t kk = 0; kk < 4; kk++)
#pragma unroll
                for (uint32_t i = 0; i < 4; i++)
                    weights[kk][i] =
                        half2_bits(s[2 * kk + i / 2][i % 2 * 2], s[2 * kk + i / 2][i % 2 * 2 + 1]);
        }
        if (SPLIT > 1) {
            block_sync(); // nobody reads the keys any more, which values replace
            if (at.plain_v)
                copy_values<PANELS, THREADS>(values, at.v, dv, token_end);
            else
                vals.place(sh, values, p.tables, at.v, form_v, dv);
            copy_commit();
        }
        copy_wait<0>();
        block_sync(); // values are there, and nobody reads the keys before
        if (SPLIT == 1 && next.there) {
            if (next_at.plain_k)
                copy_keys<PANELS, THREADS>(sh.k, next_at.k, dk);
            else
                keys.place(sh, p.tables, next_at.k, scales_k(pool, next_at), form_k, dk);
            copy_commit();
        }
        if (!next_at.plain_v) vals.fetch(sh, next_at.v, scales_v(pool, next_at), dv);
        ahead = next;
        if (next.there) next_visit(pool, pages, ahead);
        if (!idle) {
            uint8_t *mine = values + part * MINE * PANEL_BYTES;
            if (at.plain_v)
                multiply_values<true, MINE>(weights, mine, part * MINE * 64, dv, out);
            else
                multiply_values<false, MINE>(weights, mine, part * MINE * 64, dv, out);
        }
        if (SPLIT > 1 && next.there) {
            block_sync();
            if (next_at.plain_k)
                copy_keys<PANELS, THREADS>(sh.k, next_at.k, dk);
            else
                keys.place(sh, p.tables, next_at.k, scales_k(pool, next_at), form_k, dk);
            copy_commit();
        }
        if (!next_at.plain_v) vals.place_scales(sh, gain_v, gain_v2, dv);
        now = next;
        at = next_at;
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        sum[r] += shfl_xor(sum[r], 1);
        sum[r] += shfl_xor(sum[r], 2);
        uint32_t row = my_first + g + 8 * r, all = row_first + row;
        if (row >= n_rows) continue;
        float f = sum[r] > 0 ? 1.0f / sum[r] : 0.0f;
        float *y = p.y + ((uint64_t)(w.first + all / per) * p.heads + kv_head * per + all % per) * dv;
#pragma unroll
        for (uint32_t j = 0; j < 8 * MINE; j++) {
            uint32_t d = part * MINE * 64 + 8 * j;
            if (d >= dv) break;
            store8(y + d + lane % 4 * 2, {float_bits(out[j][2 * r] * f), float_bits(out[j][2 * r + 1] * f)});
        }
    }
}

#define TILE(name, PANELS, WARPS, SPLIT, AHEAD)                                                              \
    static_assert(sizeof(tile_state<PANELS, WARPS, SPLIT>) <= LARGE_BYTES_##name, "CUDA_LARGE_KERNELS");     \
    KERNEL(name, cuda_attend_args, 32 * WARPS)                                                               \
    {                                                                                                        \
        if (MATRIX_UNITS) attend_tile<PANELS, WARPS, SPLIT, AHEAD>(p);                                       \
    }

#define LARGE_BYTES(name, bytes) CONSTANT uint32_t LARGE_BYTES_##name = bytes;
CUDA_LARGE_KERNELS(LARGE_BYTES)

TILE(attend_tile_64, 1, 8, 1, 1)
TILE(attend_tile_128, 2, 8, 1, 2)
TILE(attend_tile_256, 4, 4, 1, 1)
TILE(attend_tile_512, 8, 4, 2, 1)
