// attend.cu - attention of up to ROWS rows (queries x the query heads of one KV head) over the pages of one work
// item, in exact or coded form as positions demand, for every type and form there is. A thread per key of the page,
// then per element of the values; a page is read and unpacked once for all rows of the block. A rotation is never
// undone here. Online softmax (Milakov & Gimelshein 2018) inside a split of eight pages; splits are merged in
// ascending order, here when the item covers several, by attend_finish when each is an item: the same arithmetic in the
// same order, and a row's does not depend on the other rows.
#include "cuda/attend.cuh"

CONSTANT uint32_t MAX_D = 512;

// Adds to s the scores of this thread's key in one span of a coded page.
template <int ROWS>
DEVICE void span_scores(const uint8_t *k, const uint8_t *scales, const cuda_tables *tables, span part,
                        float gain, const float *levels, const float *q, float s[ROWS])
{
    uint32_t token = thread_x(), e = part.first, form = part.form;
    const uint32_t *words = (const uint32_t *)k + part.words + token;
    for (uint32_t g = 0, n = groups_of(form, part.size); g < n; g++) {
        uint32_t size = group_size(form, part.size, g), w = size / 8;
        float sum[ROWS];
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) sum[r] = 0;
        if (form == Q8_0) {
            for (uint32_t i = 0; i < size / 4; i++) {
                uint32_t v = words[((e - part.first) / 4 + i) * 64];
#pragma unroll
                for (uint32_t c = 0; c < 4; c++) {
                    float x = (float)(int8_t)(v >> 8 * c);
#pragma unroll
                    for (uint32_t r = 0; r < ROWS; r++)
                        sum[r] = fmaf(q[r * MAX_D + e + 4 * i + c], x, sum[r]);
                }
            }
        } else {
            uint32_t before = logical_word(words, 64, form, w - 1, w) << 4;
            for (uint32_t i = 0; i < w; i++) {
                uint32_t v = logical_word(words, 64, form, i, w);
#pragma unroll
                for (uint32_t c = 0; c < 8; c++) {
                    float x = levels[(v >> 4 * c & 15u) + (before >> 4 * c & 1u) * 16];
#pragma unroll
                    for (uint32_t r = 0; r < ROWS; r++)
                        sum[r] = fmaf(q[r * MAX_D + e + 8 * i + c], x, sum[r]);
                }
                before = v;
            }
            words += 64 * words_of(form, w);
        }
        float scale = group_scale(tables, scales, form, (part.groups + g) * 64 + token) * gain;
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) s[r] = fmaf(sum[r], scale, s[r]);
        e += size;
    }
}

// What the keys [from, to) of a coded page give to element `d` of a span: the sums of p_row * value.
template <int ROWS>
DEVICE void span_values(const uint8_t *values, const uint8_t *scales, const cuda_tables *tables, span part,
                        uint32_t d, uint32_t from, uint32_t to, const float *levels, const float *p_row,
                        float sum[ROWS])
{
    uint32_t form = part.form, dv = part.size;
    const uint32_t *v = (const uint32_t *)values + part.words;
    uint32_t g = 0, start = 0, size = group_size(form, dv, 0);
    while (d >= start + size) {
        start += size;
        size = group_size(form, dv, ++g);
    }
    uint32_t e = d - start, w = size / 8;
    bool first = e == 0;
    uint32_t previous = start + (e >= 8  ? e - 8
                                 : first ? 0
                                         : 8 * (w - 1) + e - 1),
             per = form == Q8_0 ? 4 : 8;
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) sum[r] = 0;
    for (uint32_t n = from; n < to;) {
        uint32_t i = n / per, x, y = 0;
        if (form == Q8_0) {
            x = v[i * dv + d];
        } else {
            x = logical_word(v + d, dv, form, i, 8);
            if (!first) y = logical_word(v + previous, dv, form, i, 8);
        }
        for (uint32_t last = min_u(to, per * i + per); n < last; n++) {
            uint32_t shift = 32 / per * (n % per);
            float l = form == Q8_0 ? (float)(int8_t)(x >> shift)
                                   : levels[(x >> shift & 15u) + (y >> shift & 1u) * 16];
            float value = l * group_scale(tables, scales, form, (part.groups + g) * 64 + n);
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) sum[r] = fmaf(p_row[r * 64 + n], value, sum[r]);
        }
    }
}

// MAX_V: elements of the values per thread, for heads of up to 64 MAX_V.
template <int ROWS, uint32_t MAX_V> DEVICE void attend(const cuda_attend_args &p)
{
    SHARED(float, q_row, ROWS *MAX_D);
    SHARED(float, p_row, ROWS * 64);
    SHARED(float, red, ROWS * 2);
    SHARED(float, level_k, 64); // of each span
    SHARED(float, level_v, 64);
    const cuda_pool *pool = p.pool;
    uint32_t tid = thread_x(), kv_head = block_y(), per = p.per_kv_head, dk = pool->dim_k, dv = pool->dim_v;
    uint32_t window = pool->window, form_k = pool->form_k, form_v = pool->form_v, sinks = pool->sinks;
    work_item w;
    if (!work_at(p, block_x(), w)) return;
    uint32_t row_first = block_z() * ROWS, n_rows = w.count * per;
    if (row_first >= n_rows) return;
    n_rows = min_u(n_rows - row_first, ROWS);
    const uint32_t *table = pool->table + (uint64_t)w.seq * pool->max_pages;
    const uint32_t *coded_table = pool->coded_table + (uint64_t)w.seq * pool->max_pages;
    if (pool->is_coded) {
        uint32_t k = span_at(form_k, false, dk, tid / 32).form, v = span_at(form_v, true, dv, tid / 32).form;
        if (is_codec(k)) level_k[tid] = (float)p.tables->levels[k - C2][tid / 16 % 2][tid % 16];
        if (is_codec(v)) level_v[tid] = (float)p.tables->levels[v - C2][tid / 16 % 2][tid % 16];
    }
    uint32_t pos[ROWS], lowest[ROWS], boundary[ROWS], last_pos = 0;
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        uint32_t row = row_first + min_u(r, n_rows - 1),
                 t = w.first + row / per; // rows that are none repeat the last
        pos[r] = p.step[p.step[STEP_TOKEN_POS] + t];
        lowest[r] = window != 0 && pos[r] >= window ? pos[r] + 1 - window : 0;
        boundary[r] = boundary_of(pool, pos[r]);
        last_pos = max_u(last_pos, pos[r]);
        const float *q = p.q + (kv_head * per + row % per) * p.head_stride + t * p.token_stride;
        for (uint32_t i = tid; i < dk; i += 64) q_row[r * MAX_D + i] = q[i] * p.scale;
    }
    uint32_t page_end = min_u(min_u(w.page_end, last_pos / 64 + 1), pool->max_pages);
    block_sync();
    float shift[ROWS]; // what softmax would not see of the mean, the cap does
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        shift[r] = 0;
        if (p.mean && p.softcap > 0)
            for (uint32_t i = 0; i < dk; i++)
                shift[r] += q_row[r * MAX_D + i] * p.mean[kv_head * p.mean_stride + i];
    }
    float total_max[ROWS], total_sum[ROWS], split_max[ROWS], split_sum[ROWS];
    float total[MAX_V][ROWS], split[MAX_V][ROWS];
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        total_max[r] = split_max[r] = NOTHING;
        total_sum[r] = split_sum[r] = 0;
#pragma unroll
        for (uint32_t i = 0; i < MAX_V; i++) total[i][r] = split[i][r] = 0;
    }
    bool any = false;
    for (uint32_t page_index = w.page_first; page_index < page_end; page_index++) {
        for (uint32_t pass = 0; pass < 2;
             pass++) { // the page's coded form for some rows, its exact form for others
            bool exact = pass == 1;
            uint32_t seen = 0, from = 64, to = 0;
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) {
                if ((page_index < sinks || page_index >= boundary[r]) != exact || pos[r] < page_index * 64)
                    continue;
                if (lowest[r] >= page_index * 64 + 64) continue;
                seen |= 1u << r;
                from = min_u(from, lowest[r] > page_index * 64 ? lowest[r] - page_index * 64 : 0);
                to = max_u(to, min_u(64, pos[r] - page_index * 64 + 1));
            }
            if (seen == 0) continue;
            uint32_t page = exact ? table[page_index] : coded_table[page_index];
            if (exact ? !page_exists(pool, page) : page >= pool->n_coded) continue;
            const uint8_t *k, *v, *scales_k = 0, *scales_v = 0;
            if (exact) {
                k = page_block(pool, page, p.layer, kv_head);
                v = k + pool->k_bytes;
            } else {
                k = coded_block(pool, page, p.layer, kv_head);
                v = k + pool->coded_k_bytes;
                scales_k = v + pool->coded_v_bytes;
                scales_v = scales_k + pool->coded_k_scale_bytes;
            }
            uint32_t j = page_index * 64 + tid;
            float s[ROWS];
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) s[r] = 0;
            if (tid >= from && tid < to) {
                if (exact || form_k == SAME) {
                    for (uint32_t i = 0; i < dk; i++) {
                        float x = load_exact(k, i * 64 + tid, pool->type_k);
#pragma unroll
                        for (uint32_t r = 0; r < ROWS; r++) s[r] = fmaf(q_row[r * MAX_D + i], x, s[r]);
                    }
                } else {
                    for (uint32_t i = 0; i < spans_of(form_k); i++) {
                        span part = span_at(form_k, false, dk, i);
                        float gain = is_codec(part.form) ? p.tables->gain_k[part.form - C2] : 1.0f;
                        span_scores<ROWS>(k, scales_k, p.tables, part, gain, level_k + 32 * i, q_row, s);
                    }
                }
                if (p.softcap > 0)
#pragma unroll
                    for (uint32_t r = 0; r < ROWS; r++)
                        s[r] = p.softcap * tanhf((s[r] + shift[r]) / p.softcap);
            }
            float page_max[ROWS];
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) {
                bool mine = (seen >> r & 1u) != 0 && j <= pos[r] && j >= lowest[r];
                if (!mine) s[r] = NOTHING;
                float m = warp_max(s[r]);
                if (tid % 32 == 0) red[2 * r + tid / 32] = m;
            }
            block_sync();
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) page_max[r] = fmaxf(red[2 * r], red[2 * r + 1]);
            block_sync();
            float old[ROWS];
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) {
                float new_max = fmaxf(split_max[r], page_max[r]);
                old[r] = page_max[r] == NOTHING    ? 1.0f
                         : split_max[r] == NOTHING ? 0.0f
                                                   : exp_below(split_max[r] - new_max);
                s[r] = s[r] == NOTHING ? 0.0f : exp_below(s[r] - new_max);
                split_max[r] = new_max;
                p_row[r * 64 + tid] = s[r];
                float sum = warp_sum(s[r]);
                if (tid % 32 == 0) red[2 * r + tid / 32] = sum;
            }
            block_sync();
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++)
                split_sum[r] = fmaf(split_sum[r], old[r], red[2 * r] + red[2 * r + 1]);
#pragma unroll
            for (uint32_t i = 0; i < MAX_V; i++) {
                uint32_t d = tid + 64 * i;
                if (d >= dv) continue;
                float o[ROWS];
                if (exact || form_v == SAME) {
#pragma unroll
                    for (uint32_t r = 0; r < ROWS; r++) o[r] = 0;
                    for (uint32_t n = from; n < to; n++) {
                        float x = load_exact(v, n * dv + d, pool->type_v);
#pragma unroll
                        for (uint32_t r = 0; r < ROWS; r++) // what a row does not see may be no number
                            o[r] = p_row[r * 64 + n] == 0 ? o[r] : fmaf(p_row[r * 64 + n], x, o[r]);
                    }
                } else {
                    uint32_t at = 0; // the span of d
                    span part = span_at(form_v, true, dv, 0);
                    if (d >= part.size) part = span_at(form_v, true, dv, ++at);
                    float gain = is_codec(part.form) ? p.tables->gain_v[part.form - C2] : 1.0f;
                    span_values<ROWS>(v, scales_v, p.tables, part, d - part.first, from, to,
                                      level_v + 32 * at, p_row, o);
#pragma unroll
                    for (uint32_t r = 0; r < ROWS; r++) o[r] *= gain;
                }
#pragma unroll
                for (uint32_t r = 0; r < ROWS; r++) split[i][r] = fmaf(split[i][r], old[r], o[r]);
            }
            block_sync();
        }
        if ((page_index + 1) % 8 != 0 && page_index + 1 != page_end) continue;
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) { // the split ends
            if (!any) {
                total_max[r] = split_max[r];
                total_sum[r] = split_sum[r];
#pragma unroll
                for (uint32_t i = 0; i < MAX_V; i++) total[i][r] = split[i][r];
            } else if (split_max[r] != NOTHING) {
                float a, b;
                merge_factors(total_max[r], split_max[r], a, b);
                total_sum[r] = merged(total_sum[r], a, split_sum[r], b);
#pragma unroll
                for (uint32_t i = 0; i < MAX_V; i++) total[i][r] = merged(total[i][r], a, split[i][r], b);
            }
            split_max[r] = NOTHING;
            split_sum[r] = 0;
#pragma unroll
            for (uint32_t i = 0; i < MAX_V; i++) split[i][r] = 0;
        }
        any = true;
    }
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        if (r >= n_rows) break;
        uint32_t row = row_first + r, head = kv_head * per + row % per;
        if (w.n_splits > 1) {
            float *to = p.partials + ((uint64_t)(w.partial + row / per) * p.heads + head) * p.partial_floats;
            if (tid == 0) {
                to[0] = total_max[r];
                to[1] = total_sum[r];
            }
#pragma unroll
            for (uint32_t i = 0; i < MAX_V; i++)
                if (tid + 64 * i < dv) to[2 + tid + 64 * i] = total[i][r];
        } else {
            float f = total_sum[r] > 0 ? 1.0f / total_sum[r] : 0.0f;
            float *y = p.y + ((uint64_t)(w.first + row / per) * p.heads + head) * dv;
#pragma unroll
            for (uint32_t i = 0; i < MAX_V; i++)
                if (tid + 64 * i < dv) y[tid + 64 * i] = total[i][r] * f;
        }
    }
}

KERNEL(attend_1, cuda_attend_args, 64)
{
    attend<1, 8>(p);
}
KERNEL(attend_2, cuda_attend_args, 64)
{
    attend<2, 8>(p);
}
KERNEL(attend_4, cuda_attend_args, 64)
{
    attend<4, 4>(p);
}
KERNEL(attend_8, cuda_attend_args, 64)
{
    attend<8, 2>(p);
}
