// attend_coded.cu - attention on matrix units over coded pages, and over pages of halves where a KV head has several
// query heads (attend_coded.cuh). A block: one item of work, one KV head, eight rows; a warp makes the scores of 16 keys
// of a page and a quarter of the elements of the result.
#include "cuda/attend_coded.cuh"

// CODED: there are coded pages; without, exact ones are of halves. FORM, D: the form of keys and values and their
// elements where the kernel is made for them: addresses become constants, which are most of what else there is to do
// beside unpacking. 0: whatever the pool says.
template <bool CODED, uint32_t FORM, uint32_t D> DEVICE void attend_rows(const cuda_attend_args &p)
{
    constexpr uint32_t TILES = D ? D / 64 : AC_TILES;
    SHARED(coded_state, shared_state, 1);
    coded_state &sh = shared_state[0];
    const cuda_pool *pool = p.pool;
    uint32_t tid = thread_x(), warp = tid / 32, lane = tid % 32, g = lane / 4, quad = lane % 4,
             kv_head = block_y();
    uint32_t per = p.per_kv_head, dk = D ? D : pool->dim_k, dv = D ? D : pool->dim_v;
    uint32_t form_k = FORM ? FORM : pool->form_k, form_v = FORM ? FORM : pool->form_v;
    uint32_t row = tid / 16, part = tid % 16; // as in weigh
    work_item w;
    if (!work_at(p, block_x(), w)) return;
    uint32_t row_first = block_z() * AC_ROWS, n_rows = w.count * per;
    if (row_first >= n_rows) return;
    n_rows = min_u(n_rows - row_first, AC_ROWS);
    bool idle = 2 * warp >= n_rows; // rows that are none want no weights: nobody looks at their columns
    const uint32_t *table = pool->table + (uint64_t)w.seq * pool->max_pages;
    const uint32_t *coded_table = pool->coded_table + (uint64_t)w.seq * pool->max_pages;
    bool halves = !CODED || (pool->type_k == T_F16 && pool->type_v == T_F16 && dk % 16 == 0);
    span last_span = span_at(form_v, true, dv, 1);
    uint32_t value_groups = CODED ? last_span.groups + groups_of(last_span.form, last_span.size) : 0;
    {
        uint32_t r = row_first + min_u(row, n_rows - 1),
                 t = w.first + r / per; // rows that are none repeat the last
        const float *q = p.q + (kv_head * per + r % per) * p.head_stride + t * p.token_stride;
        float largest = 0, shift = 0;
        for (uint32_t i = part; i < dk; i += 16) {
            float v = q[i] * p.scale;
            uint32_t h = half_bits(v);
            sh.q[0][row][i] = (uint16_t)h;
            sh.q[1][row][i] = (uint16_t)half_bits(v - half_float(h));
            largest = fmaxf(largest, is_finite(v) ? fabsf(v) : 0.0f);
            if (p.mean && p.softcap > 0) shift += v * p.mean[kv_head * p.mean_stride + i];
        }
        largest = row_max(largest);
        shift = row_sum(shift);
        float inverse = largest > 1e-30f ? 16256.0f / largest : 0.0f;
        for (uint32_t i = part; CODED && i < AC_D + 64; i += 16) {
            int8_t hi = 0, lo = 0;
            float v = i < dk ? q[i] * p.scale : 0.0f;
            if (is_finite(v)) split_planes(v, inverse, hi, lo);
            sh.planes[0][row][i] = hi;
            sh.planes[1][row][i] = lo;
        }
        if (part == 0) {
            uint32_t pos = p.step[p.step[STEP_TOKEN_POS] + t];
            sh.q_scale[row] = largest > 1e-30f ? largest / 16256.0f : 0.0f;
            sh.shift[row] = shift;
            sh.pos[row] = pos;
            sh.lowest[row] = pool->window != 0 && pos >= pool->window ? pos + 1 - pool->window : 0;
            sh.boundary[row] = boundary_of(pool, pos);
            sh.split_max[row] = sh.total_max[row] = NOTHING;
            sh.split_sum[row] = sh.total_sum[row] = 0;
        }
    }
    block_sync();
    uint32_t last_pos = 0, first_boundary = 0xffffffffu, last_lowest = 0, sinks = pool->sinks;
    for (uint32_t r = 0; r < n_rows; r++) {
        last_pos = max_u(last_pos, sh.pos[r]);
        first_boundary = min_u(first_boundary, sh.boundary[r]);
        last_lowest = max_u(last_lowest, sh.lowest[r]);
    }
    uint32_t page_end = min_u(min_u(w.page_end, last_pos / 64 + 1), pool->max_pages);
    float total[TILES][4], split[TILES][4]; // element g or g + 8 of a tile, row 2 quad or 2 quad + 1
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++)
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) total[i][k] = split[i][k] = 0;
    bool any = false;
    for (uint32_t page_index = w.page_first; page_index < page_end; page_index++) {
        bool all_coded =
            CODED && page_index >= sinks && page_index < first_boundary && last_lowest < page_index * 64 + 64;
        for (uint32_t pass = CODED ? 0 : 1; pass < 2;
             pass++) { // the page's coded form for some rows, its exact form for others
            bool exact = pass == 1;
            // Pages of which all rows read the coded form are most there are.
            uint32_t seen = all_coded && !exact ? 0xffu : 0;
            for (uint32_t r = 0; r < AC_ROWS && !all_coded; r++) {
                bool reads_exact = page_index < sinks || page_index >= sh.boundary[r];
                if (reads_exact == exact && sh.pos[r] >= page_index * 64 &&
                    sh.lowest[r] < page_index * 64 + 64)
                    seen |= 1u << r;
            }
            if (seen == 0) continue;
            uint32_t page = exact ? table[page_index] : coded_table[page_index];
            if (exact ? !page_exists(pool, page) : page >= pool->n_coded) continue;
            const uint8_t *k, *v, *scales_k = 0, *scales_v = 0;
            if (exact) {
                k = page_block(pool, page, p.layer, kv_head);
                v = k + pool->k_bytes;
                if (halves)
                    exact_scores(sh, k, dk);
                else
                    for (uint32_t at = tid; at < AC_ROWS * 64;
                         at += 128) { // a thread: one key, every other row
                        uint32_t r = at / 64, token = at % 64;
                        float s = 0;
                        for (uint32_t i = 0; i < dk; i++)
                            s = fmaf(half_float(sh.q[0][r][i]) + half_float(sh.q[1][r][i]),
                                     load_exact(k, i * 64 + token, pool->type_k), s);
                        sh.s[r][token] = s;
                    }
            } else {
                k = coded_block(pool, page, p.layer, kv_head);
                v = k + pool->coded_k_bytes;
                scales_k = v + pool->coded_v_bytes;
                scales_v = scales_k + pool->coded_k_scale_bytes;
                coded_scores<D>(sh, k, scales_k, p.tables, form_k, dk);
            }
            block_sync();
            if (!idle) weigh(sh, p, page_index, seen, exact ? 0 : scales_v, value_groups, last_span);
            block_sync();
#pragma unroll
            for (uint32_t i = 0; i < TILES; i++)
#pragma unroll
                for (uint32_t c = 0; c < 4; c++) split[i][c] *= sh.old[2 * quad + c % 2];
            if (exact && halves) {
                exact_values<!CODED, TILES>(sh, v, dv, last_pos - page_index * 64 + 1, split);
            } else if (exact) {
#pragma unroll
                for (uint32_t i = 0; i < TILES; i++) {
                    uint32_t d = 16 * (warp + 4 * i) + g;
                    if (d >= dv) continue;
                    float o[4] = {0, 0, 0, 0};
                    for (uint32_t n = 0; n < 64; n++) {
                        float p0 = sh.s[2 * quad][n], p1 = sh.s[2 * quad + 1][n];
                        if (p0 == 0 && p1 == 0) continue; // what a row does not see may be no number
                        float x0 = load_exact(v, n * dv + d, pool->type_v),
                              x1 = load_exact(v, n * dv + d + 8, pool->type_v);
                        if (p0 != 0) o[0] = fmaf(p0, x0, o[0]), o[2] = fmaf(p0, x1, o[2]);
                        if (p1 != 0) o[1] = fmaf(p1, x0, o[1]), o[3] = fmaf(p1, x1, o[3]);
                    }
#pragma unroll
                    for (uint32_t c = 0; c < 4; c++) split[i][c] += o[c];
                }
            } else {
                coded_values<TILES, D>(sh, v, p.tables, form_v, dv, split);
            }
            block_sync();
        }
        if ((page_index + 1) % 8 != 0 && page_index + 1 != page_end) continue;
        if (tid < AC_ROWS) { // the split ends
            float a = 1, b = 0;
            if (!any) {
                a = 0, b = 1;
                sh.total_max[tid] = sh.split_max[tid];
            } else if (sh.split_max[tid] != NOTHING) {
                merge_factors(sh.total_max[tid], sh.split_max[tid], a, b);
            }
            sh.total_sum[tid] = merged(sh.total_sum[tid], a, sh.split_sum[tid], b);
            sh.a[tid] = a;
            sh.b[tid] = b;
            sh.split_max[tid] = NOTHING;
            sh.split_sum[tid] = 0;
        }
        block_sync();
#pragma unroll
        for (uint32_t i = 0; i < TILES; i++)
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                total[i][c] =
                    merged(total[i][c], sh.a[2 * quad + c % 2], split[i][c], sh.b[2 * quad + c % 2]);
                split[i][c] = 0;
            }
        any = true;
        block_sync();
    }
#pragma unroll
    for (uint32_t c = 0; c < 2; c++) {
        uint32_t r = 2 * quad + c, at = row_first + r, head = kv_head * per + at % per;
        if (r >= n_rows) continue;
        float *to, factor = 1;
        if (w.n_splits > 1) {
            to = p.partials + ((uint64_t)(w.partial + at / per) * p.heads + head) * p.partial_floats + 2;
            if (warp == 0 && g == 0) {
                to[-2] = sh.total_max[r];
                to[-1] = sh.total_sum[r];
            }
        } else {
            to = p.y + ((uint64_t)(w.first + at / per) * p.heads + head) * dv;
            factor = sh.total_sum[r] > 0 ? 1.0f / sh.total_sum[r] : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < TILES; i++) {
            uint32_t d = 16 * (warp + 4 * i) + (CODED ? g : 2 * g);
            if (d >= dv) continue;
            to[d] = total[i][c] * factor;
            to[d + (CODED ? 8 : 1)] = total[i][2 + c] * factor;
        }
    }
}

KERNEL_BLOCKS(attend_coded, cuda_attend_args, 128, 3)
{
    attend_rows<true, 0, 0>(p);
}
KERNEL_BLOCKS(attend_coded_3_128, cuda_attend_args, 128, 2)
{
    attend_rows<true, C3, 128>(p);
}
KERNEL_BLOCKS(attend_coded_3_256, cuda_attend_args, 128, 2)
{
    attend_rows<true, C3, 256>(p);
}
KERNEL_BLOCKS(attend_group, cuda_attend_args, 128, 4)
{
    attend_rows<false, 0, 0>(p);
}
