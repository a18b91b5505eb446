// attend_tile_main.glsl - the loop over pages of attend_tile.glsl, behind the products it takes.
uint boundary_of(uint64_t pool, uint pos, bool is_coded)
{
    if (!is_coded) return 0u;
    uint pages = (pos + 1u) / 64u, recent = pool_word(pool, G_RECENT);
    return max(pages > recent ? pages - recent : 0u, pool_word(pool, G_SINK));
}

// arguments as attend.comp; [12]: rows of halves behind a[4] where queries come as halves
void main()
{
    U32 step = U32(push.a[0]);
    uint64_t pool = push.a[1], tables = uint64_t(push.u[10]) << 32 | push.u[9];
    uint tid = gl_LocalInvocationID.x, group = push.u[0];
    if (gl_WorkGroupID.x >= step.d[STEP_N_WORK + group]) return;
    uint w = step.d[STEP_WORK + group] + WORK_WORDS * gl_WorkGroupID.x;
    kv_head = gl_WorkGroupID.y;
    heads_per = push.u[3];
    first_token = step.d[w + 1u];
    row_first = gl_WorkGroupID.z * ROWS;
    n_rows = min(step.d[w + 2u] * heads_per - min(step.d[w + 2u] * heads_per, row_first), ROWS);
    if (n_rows == 0u) return;
    uint seq = step.d[step.d[STEP_RUNS] + RUN_WORDS * step.d[w]], max_pages = pool_word(pool, G_MAX_PAGES);
    if (seq >= pool_word(pool, G_SEQS)) return;
    U32 table = U32(U64(pool).d[POOL_TABLE] + 4ul * uint64_t(seq) * max_pages);
    U32 coded_table = U32(U64(pool).d[POOL_CODED_TABLE] + 4ul * uint64_t(seq) * max_pages);
    uint dk = pool_word(pool, G_DK), dv = pool_word(pool, G_DV), window = pool_word(pool, G_WINDOW);
    uint form_k = pool_word(pool, G_FORM_K), form_v = pool_word(pool, G_FORM_V), sinks = pool_word(pool, G_SINK);
    bool is_coded = pool_word(pool, G_IS_CODED) != 0u;

    // positions ascend with the rows: the first and the last row bound what the tile sees
    uint row = tid / LANES, lane = tid % LANES;
    uint pos = step.d[step.d[STEP_TOKEN_POS] + token_of(row)], pos_first = step.d[step.d[STEP_TOKEN_POS] + token_of(0u)],
         pos_last = step.d[step.d[STEP_TOKEN_POS] + token_of(ROWS - 1u)];
    uint lowest = window != 0u && pos >= window ? pos + 1u - window : 0u,
         lowest_first = window != 0u && pos_first >= window ? pos_first + 1u - window : 0u;
    uint boundary = boundary_of(pool, pos, is_coded), boundary_first = boundary_of(pool, pos_first, is_coded),
         boundary_last = boundary_of(pool, pos_last, is_coded);
    uint page_end = min(min(step.d[w + 4u], pos_last / 64u + 1u), max_pages);
    if (is_coded) {
        levels_fill(tables, form_k, false);
        levels_fill(tables, form_v, true);
    }
    BEGIN(dk);
    float most = NOTHING, sum = 0.0, factor = row_scale(row);
    for (uint p = max(step.d[w + 3u], lowest_first / 64u); p < page_end; p++) {
        for (uint which = 0u; which < 2u; which++) { // the page's coded form for some rows, its exact form for others
            bool exact = which == 1u;
            if (exact ? p >= sinks && p < boundary_first : p < sinks || p >= boundary_last) continue;
            uint page = exact ? table.d[p] : coded_table.d[p];
            if (exact ? !page_exists(pool, page) : page >= pool_word(pool, G_CODED_PAGES)) continue;
            uint64_t k, v, scales_k = 0ul, scales_v = 0ul;
            if (exact) {
                k = page_block(pool, page, push.u[1], kv_head);
                v = k + 16ul * pool_word(pool, G_K_16);
            } else {
                k = coded_block(pool, page, push.u[1], kv_head);
                v = k + 16ul * pool_word(pool, G_C_K_16);
                scales_k = v + 16ul * pool_word(pool, G_C_V_16);
                scales_v = scales_k + 16ul * pool_word(pool, G_C_KS_16);
            }
            bool mine = row < n_rows && (p < sinks || p >= boundary) == exact;
            for (uint k0 = 0u; k0 < 64u; k0 += KEYS) {
                uint j0 = p * 64u + k0;
                if (j0 > pos_last || j0 + KEYS <= lowest_first) continue;
                barrier(); // kv and value_scale are free
                if (exact || form_k == SAME)
                    exact_keys(k, dk, k0);
                else
                    coded_keys(k, scales_k, tables, form_k, dk, k0);
                if (!exact && form_v != SAME) value_scales(scales_v, tables, form_v, dv);
                barrier();
                SCORES;
                barrier();
                uint from = max(lowest, j0) - j0, to = mine && pos >= j0 ? min(pos - j0 + 1u, KEYS) : 0u;
                float m = NOTHING;
                for (uint i = from; i < to; i++) m = max(m, score[row * KEYS + i] * factor);
                float next = max(most, m), fade = m == NOTHING ? 1.0 : most == NOTHING ? 0.0 : exp_below(most - next), s = 0.0;
                for (uint i = lane * (KEYS / LANES); i < (lane + 1u) * (KEYS / LANES); i += 2u) {
                    vec2 e;
                    [[unroll]] for (uint c = 0u; c < 2u; c++)
                        e[c] = i + c >= from && i + c < to ? exp_below(score[row * KEYS + i + c] * factor - next) : 0.0;
                    s += e.x + e.y;
                    weight[(row * KEYS + i) / 2u] = pair_of(FULL * e);
                }
                sum = sum * fade + s;
                most = next;
                if (lane == 0u) faded[row] = fade;
                uint end = min(pos_last - j0 + 1u, KEYS) + k0, start = max(lowest_first, j0) - j0 + k0;
                if (exact || form_v == SAME)
                    exact_values(v, dv, k0, start, end);
                else
                    coded_values(v, form_v, dv, k0);
                barrier();
                VALUES;
            }
        }
    }
    barrier();
    score[tid] = sum; // a part for each lane of a row
    barrier();
    if (tid < ROWS) {
        float all = 0.0;
        for (uint i = 0u; i < LANES; i++) all += score[tid * LANES + i];
        faded[tid] = all > 0.0 ? 1.0 / (FULL * all) : 0.0;
    }
    barrier();
    RESULTS;
}
