// attend.comp - attention of up to ROWS rows (queries x the query heads of one KV head) over the pages of one work
// item, in exact or coded form as positions demand (rq_kv_reads_exact). An invocation per key of the page, then per
// element of the values; a page is read and unpacked once for all rows of the workgroup. Codes become levels by
// table, eight to a word; a rotation is never undone here. Online softmax (Milakov & Gimelshein 2018) inside a split
// of eight pages; splits are merged in ascending order, here when the item covers several, by attend_merge.comp when
// each is an item: the same arithmetic in the same order, and a row's does not depend on the other rows.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
#include "attend_state.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint ROWS = 8u;
layout(constant_id = 1) const uint MAX_V = 8u; // elements of the values per invocation: heads of up to 64 MAX_V
layout(constant_id = 2) const uint MAX_D = 512u; // elements of a query
shared float q_row[ROWS * MAX_D];
shared float p_row[ROWS * 64u];
shared float red[ROWS * 64u];
shared float level_k[64], level_v[64]; // of two spans

// An element of an exact page by the device's own conversion: one instruction, and what it makes of a subnormal half (zero,
// on some) is far below what attention resolves.
float load_page(uint64_t p, uint i, uint type)
{
    if (type == 0u) return F32(p).d[i];
    uint h = uint(U16(p).d[i]);
    return type == 1u ? unpackHalf2x16(h).x : uintBitsToFloat(h << 16);
}

// Logical word i of a row of physical words `stride` apart (backends/cache.h), n logical words in all.
uint logical_word(uint64_t words, uint stride, uint form, uint i, uint n)
{
    if (form == C4) return U32(words).d[i * stride];
    if (form == C3) {
        uint set = i / 4u, j = i % 4u;
        if (4u * set + 4u > n) return U32(words).d[(3u * set + j) * stride] & 0x77777777u;
        if (j < 3u) return U32(words).d[(3u * set + j) * stride] & 0x77777777u;
        uint a = U32(words).d[3u * set * stride], b = U32(words).d[(3u * set + 1u) * stride],
             c = U32(words).d[(3u * set + 2u) * stride];
        return a >> 3 & 0x11111111u | b >> 2 & 0x22222222u | c >> 1 & 0x44444444u;
    }
    return U32(words).d[i / 2u * stride] >> 2u * (i & 1u) & 0x33333333u;
}

float scale_of(uint64_t tables, uint64_t scales, uint form, uint at)
{
    if (form == Q8_0) return half_bits(uint(U16(scales).d[at]));
    return F32(tables + TAB_SCALES).d[(form - C2) * 256u + uint(U8(scales).d[at])];
}

// Adds to s the scores of this invocation's key in a coded page.
void coded_scores(uint64_t k, uint64_t scales, uint64_t tables, uint whole, uint dk, uint token, inout float s[ROWS])
{
    uint e = 0u, group = 0u;
    for (uint span = 0u; span < spans_of(whole); span++) {
        uint form = span_form(whole, span), d = span_size(whole, dk, span);
        float of_span[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) of_span[r] = 0.0;
        for (uint g = 0u, n = groups_of(form, d); g < n; g++, group++) {
            uint size = group_size(form, d, g), w = size / 8u;
            precise float sum[ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = 0.0;
            if (form == Q8_0) {
                for (uint i = 0u; i < size / 4u; i++) {
                    uint v = U32(k).d[(e / 4u + i) * 64u + token];
                    [[unroll]] for (uint c = 0u; c < 4u; c++) {
                        float x = float(bitfieldExtract(int(v), int(8u * c), 8));
                        [[unroll]] for (uint r = 0u; r < ROWS; r++)
                            sum[r] = fma(q_row[r * MAX_D + e + 4u * i + c], x, sum[r]);
                    }
                }
            } else {
                uint before = logical_word(k + 4ul * token, 64u, form, w - 1u, w) << 4;
                for (uint i = 0u; i < w; i++) {
                    uint v = logical_word(k + 4ul * token, 64u, form, i, w);
                    for (uint c = 0u; c < 8u; c++) {
                        float x = level_k[32u * span + (v >> 4u * c & 15u) + (before >> 4u * c & 1u) * 16u];
                        [[unroll]] for (uint r = 0u; r < ROWS; r++)
                            sum[r] = fma(q_row[r * MAX_D + e + 8u * i + c], x, sum[r]);
                    }
                    before = v;
                }
                k += 256ul * words_of(form, w);
            }
            float scale = scale_of(tables, scales, form, group * 64u + token);
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                precise float t = fma(sum[r], scale, of_span[r]);
                of_span[r] = t;
            }
            e += size;
        }
        float gain = is_codec(form) ? F32(tables + TAB_CODEC).d[(form - C2) * 5u + 3u] : 1.0;
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            precise float t = fma(of_span[r], gain, s[r]);
            s[r] = t;
        }
    }
}

// Adds to o what the keys [from, to) of a coded page give to element `d`: the sum of p_row * value.
void coded_values(uint64_t v, uint64_t scales, uint64_t tables, uint whole, uint all, uint d, uint from, uint to,
                  inout float o[ROWS])
{
    uint span = d < span_first(whole, all, 1u) || whole != C42 ? 0u : 1u, form = span_form(whole, span);
    uint dv = span_size(whole, all, span), levels = 32u * span;
    if (span == 1u) { // behind the first
        uint first = span_first(whole, all, 1u);
        d -= first;
        v += 4ul * first * words_of(C4, 8u);
        scales += 64ul * groups_of(C4, first);
    }
    uint g = 0u, start = 0u, size = group_size(form, dv, 0u);
    while (d >= start + size) {
        start += size;
        size = group_size(form, dv, ++g);
    }
    uint e = d - start, w = size / 8u;
    bool first = e == 0u;
    uint previous = start + (e >= 8u ? e - 8u : first ? 0u : 8u * (w - 1u) + e - 1u);
    precise float sum[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = 0.0;
    uint per = form == Q8_0 ? 4u : 8u;
    for (uint n = from; n < to;) {
        uint i = n / per, x, y = 0u;
        if (form == Q8_0) {
            x = U32(v).d[i * dv + d];
        } else {
            x = logical_word(v + 4ul * d, dv, form, i, 8u);
            if (!first) y = logical_word(v + 4ul * previous, dv, form, i, 8u);
        }
        for (uint last = min(to, per * i + per); n < last; n++) {
            uint shift = 32u / per * (n % per);
            float l = form == Q8_0 ? float(bitfieldExtract(int(x), int(shift), 8))
                                   : level_v[levels + (x >> shift & 15u) + (y >> shift & 1u) * 16u];
            float value = l * scale_of(tables, scales, form, g * 64u + n);
            [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = fma(p_row[r * 64u + n], value, sum[r]);
        }
    }
    float gain = is_codec(form) ? F32(tables + TAB_CODEC).d[(form - C2) * 5u + 4u] : 1.0;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) o[r] = sum[r] * gain;
}

// Levels of a span's codes.
float level_of(uint64_t tables, uint whole, uint i)
{
    uint form = span_form(whole, i / 32u);
    if (i / 32u >= spans_of(whole) || !is_codec(form)) return 0.0;
    return float(bitfieldExtract(int(U8(tables + TAB_LEVELS).d[(form - C2) * 32u + i % 32u]), 0, 8));
}

// a: step, pool, q, y, partials, mean (0: none); u: group, layer, query heads, query heads per KV head, strides of q
// [heads, tokens] in floats, scale, softcap, floats of a partial result, address of the tables (low, high), has the
// mean a column for each KV head
void main()
{
    U32 step = U32(push.a[0]);
    uint64_t pool = push.a[1], tables = uint64_t(push.u[10]) << 32 | push.u[9];
    uint tid = gl_LocalInvocationID.x, kv_head = gl_WorkGroupID.y, group = push.u[0], per = push.u[3];
    uint dk = pool_word(pool, G_DK), dv = pool_word(pool, G_DV), window = pool_word(pool, G_WINDOW);
    uint type_k = pool_word(pool, G_TYPE_K), type_v = pool_word(pool, G_TYPE_V);
    float scale = uintBitsToFloat(push.u[6]), softcap = uintBitsToFloat(push.u[7]);
    if (gl_WorkGroupID.x >= step.d[STEP_N_WORK + group]) return;
    uint w = step.d[STEP_WORK + group] + WORK_WORDS * gl_WorkGroupID.x;
    uint first = step.d[w + 1u], page_first = step.d[w + 3u], page_end = step.d[w + 4u], n_splits = step.d[w + 6u],
         partial = step.d[w + 7u];
    uint row_first = gl_WorkGroupID.z * ROWS, n_rows = min(step.d[w + 2u] * per - min(step.d[w + 2u] * per, row_first), ROWS);
    if (n_rows == 0u) return;
    uint seq = step.d[step.d[STEP_RUNS] + RUN_WORDS * step.d[w]], max_pages = pool_word(pool, G_MAX_PAGES);
    if (seq >= pool_word(pool, G_SEQS)) return;
    U32 table = U32(U64(pool).d[POOL_TABLE] + 4ul * uint64_t(seq) * max_pages);
    U32 coded_table = U32(U64(pool).d[POOL_CODED_TABLE] + 4ul * uint64_t(seq) * max_pages);

    uint form_k = pool_word(pool, G_FORM_K), form_v = pool_word(pool, G_FORM_V), sinks = pool_word(pool, G_SINK);
    bool is_coded = pool_word(pool, G_IS_CODED) != 0u;
    if (is_coded) {
        level_k[tid] = level_of(tables, form_k, tid);
        level_v[tid] = level_of(tables, form_v, tid);
    }
    uint pos[ROWS], lowest[ROWS], boundary[ROWS], last_pos = 0u;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = row_first + min(r, n_rows - 1u), t = first + row / per; // rows that are none repeat the last
        pos[r] = step.d[step.d[STEP_TOKEN_POS] + t];
        lowest[r] = window != 0u && pos[r] >= window ? pos[r] + 1u - window : 0u;
        boundary[r] = 0u;
        if (is_coded) {
            uint pages = (pos[r] + 1u) / 64u, recent = pool_word(pool, G_RECENT);
            boundary[r] = max(pages > recent ? pages - recent : 0u, sinks);
        }
        last_pos = max(last_pos, pos[r]);
        for (uint i = tid; i < dk; i += 64u)
            q_row[r * MAX_D + i] =
                F32(push.a[2]).d[(kv_head * per + row % per) * push.u[4] + t * push.u[5] + i] * scale;
    }
    page_end = min(min(page_end, last_pos / 64u + 1u), max_pages);
    barrier();
    float shift[ROWS]; // what softmax would not see of the mean, the cap does
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        shift[r] = 0.0;
        if (push.a[5] != 0ul && softcap > 0.0)
            for (uint i = 0u; i < dk; i++)
                shift[r] += q_row[r * MAX_D + i] * F32(push.a[5]).d[kv_head * dk * push.u[11] + i];
    }

    float total_max[ROWS], total_sum[ROWS], split_max[ROWS], split_sum[ROWS];
    float total[MAX_V][ROWS], split[MAX_V][ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        total_max[r] = split_max[r] = NOTHING;
        total_sum[r] = split_sum[r] = 0.0;
        [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i][r] = split[i][r] = 0.0;
    }
    bool merged = false;
    for (uint p = page_first; p < page_end; p++) {
        for (uint form = 0u; form < 2u; form++) { // the page's coded form for some rows, its exact form for others
            bool exact = form == 1u;
            uint seen = 0u, from = 64u, to = 0u;
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                if ((p < sinks || p >= boundary[r]) != exact || pos[r] < p * 64u) continue;
                if (lowest[r] >= p * 64u + 64u) continue;
                seen |= 1u << r;
                from = min(from, lowest[r] > p * 64u ? lowest[r] - p * 64u : 0u);
                to = max(to, min(64u, pos[r] - p * 64u + 1u));
            }
            if (seen == 0u) continue;
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
            uint j = p * 64u + tid;
            float s[ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) s[r] = 0.0;
            if (tid >= from && tid < to) {
                if (exact || form_k == SAME) {
                    precise float sum[ROWS];
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = 0.0;
                    for (uint i = 0u; i < dk; i++) {
                        float x = load_page(k, i * 64u + tid, type_k);
                        [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = fma(q_row[r * MAX_D + i], x, sum[r]);
                    }
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) s[r] = sum[r];
                } else {
                    coded_scores(k, scales_k, tables, form_k, dk, tid, s);
                }
                if (softcap > 0.0)
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) s[r] = softcap * tanh((s[r] + shift[r]) / softcap);
            }
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                bool mine = (seen >> r & 1u) != 0u && j <= pos[r] && j >= lowest[r];
                if (!mine) s[r] = NOTHING;
                red[r * 64u + tid] = s[r];
            }
            barrier();
            for (uint n = 32u; n > 0u; n >>= 1) {
                if (tid < n)
                    [[unroll]] for (uint r = 0u; r < ROWS; r++)
                        red[r * 64u + tid] = max(red[r * 64u + tid], red[r * 64u + tid + n]);
                barrier();
            }
            float old[ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                float page_max = red[r * 64u], new_max = max(split_max[r], page_max);
                old[r] = page_max == NOTHING ? 1.0 : split_max[r] == NOTHING ? 0.0 : exp_below(split_max[r] - new_max);
                s[r] = s[r] == NOTHING ? 0.0 : exp_below(s[r] - new_max);
                split_max[r] = new_max;
            }
            barrier();
            [[unroll]] for (uint r = 0u; r < ROWS; r++) p_row[r * 64u + tid] = red[r * 64u + tid] = s[r];
            barrier();
            for (uint n = 32u; n > 0u; n >>= 1) {
                if (tid < n)
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) red[r * 64u + tid] += red[r * 64u + tid + n];
                barrier();
            }
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                precise float sum = fma(split_sum[r], old[r], red[r * 64u]);
                split_sum[r] = sum;
            }
            [[unroll]] for (uint i = 0u; i < MAX_V; i++) {
                uint d = tid + 64u * i;
                if (d < dv) {
                    float o[ROWS];
                    if (exact || form_v == SAME) {
                        precise float sum[ROWS];
                        [[unroll]] for (uint r = 0u; r < ROWS; r++) sum[r] = 0.0;
                        for (uint n = from; n < to; n++) {
                            float x = load_page(v, n * dv + d, type_v);
                            [[unroll]] for (uint r = 0u; r < ROWS; r++) // what a row does not see may be no number
                                sum[r] = p_row[r * 64u + n] == 0.0 ? sum[r] : fma(p_row[r * 64u + n], x, sum[r]);
                        }
                        [[unroll]] for (uint r = 0u; r < ROWS; r++) o[r] = sum[r];
                    } else {
                        coded_values(v, scales_v, tables, form_v, dv, d, from, to, o);
                    }
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                        precise float next = fma(split[i][r], old[r], o[r]);
                        split[i][r] = next;
                    }
                }
            }
            barrier();
        }
        if ((p + 1u) % 8u == 0u || p + 1u == page_end) { // the split ends
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                if (!merged) {
                    total_max[r] = split_max[r];
                    total_sum[r] = split_sum[r];
                    [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i][r] = split[i][r];
                } else if (split_max[r] != NOTHING) {
                    float m = max(total_max[r], split_max[r]);
                    float a = total_max[r] == NOTHING ? 0.0 : exp_below(total_max[r] - m);
                    float b = exp_below(split_max[r] - m);
                    total_sum[r] = merge(total_sum[r], a, split_sum[r], b);
                    [[unroll]] for (uint i = 0u; i < MAX_V; i++)
                        total[i][r] = merge(total[i][r], a, split[i][r], b);
                    total_max[r] = m;
                }
                split_max[r] = NOTHING;
                split_sum[r] = 0.0;
                [[unroll]] for (uint i = 0u; i < MAX_V; i++) split[i][r] = 0.0;
            }
            merged = true;
        }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        if (r >= n_rows) break;
        uint row = row_first + r, head = kv_head * per + row % per;
        if (n_splits > 1u) {
            F32 to = F32(push.a[4] + 4ul * (uint64_t(partial + row / per) * push.u[2] + head) * push.u[8]);
            if (tid == 0u) {
                to.d[0] = total_max[r];
                to.d[1] = total_sum[r];
            }
            [[unroll]] for (uint i = 0u; i < MAX_V; i++)
                if (tid + 64u * i < dv) to.d[2u + tid + 64u * i] = total[i][r];
        } else {
            float f = total_sum[r] > 0.0 ? 1.0 / total_sum[r] : 0.0;
            [[unroll]] for (uint i = 0u; i < MAX_V; i++)
                if (tid + 64u * i < dv)
                    F32(push.a[3]).d[((first + row / per) * push.u[2] + head) * dv + tid + 64u * i] = total[i][r] * f;
        }
    }
}
