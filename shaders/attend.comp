// attend.comp - attention of one query head of one token over the pages of one work item, in exact or coded
// form as positions demand (rq_kv_reads_exact). Codes become levels by table, one word of eight at a time; a
// rotation is never undone here.
// A workgroup of 64: an invocation per key of the page, then per element of the values. Online softmax (Milakov &
// Gimelshein 2018) inside a split of eight pages; splits are merged in ascending order, here when the item covers
// several, by attend_merge.comp when each is an item: the same arithmetic in the same order. Reads the item's
// pages once per query head.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
#include "attend_state.glsl"
layout(local_size_x = 64) in;
const uint MAX_V = 8u; // elements of the values per invocation: heads of up to 512
shared float q_row[512];
shared float p_row[64];
shared float red[64];

shared float level_k[32], level_v[32];

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

// Score of this invocation's key.
float coded_score(uint64_t k, uint64_t scales, uint64_t tables, uint form, uint dk, uint token)
{
    float s = 0.0;
    uint e = 0u;
    for (uint g = 0u, n = groups_of(form, dk); g < n; g++) {
        uint size = group_size(form, dk, g), w = size / 8u;
        float sum = 0.0;
        if (form == Q8_0) {
            for (uint r = 0u; r < size / 4u; r++) {
                uint v = U32(k).d[(e / 4u + r) * 64u + token];
                [[unroll]] for (uint i = 0u; i < 4u; i++)
                    sum += q_row[e + 4u * r + i] * float(bitfieldExtract(int(v), int(8u * i), 8));
            }
        } else {
            uint before = logical_word(k + 4ul * token, 64u, form, w - 1u, w) << 4;
            for (uint r = 0u; r < w; r++) {
                uint v = logical_word(k + 4ul * token, 64u, form, r, w);
                [[unroll]] for (uint c = 0u; c < 8u; c++)
                    sum += q_row[e + 8u * r + c] *
                           level_k[(v >> 4u * c & 15u) + (before >> 4u * c & 1u) * 16u];
                before = v;
            }
            k += 256ul * words_of(form, w);
        }
        s += sum * scale_of(tables, scales, form, g * 64u + token);
        e += size;
    }
    return s;
}

// What the page adds to element `d` of the output: the sum over the keys [from, to) of p_row * value.
float coded_values(uint64_t v, uint64_t scales, uint64_t tables, uint form, uint dv, uint d, uint from, uint to)
{
    uint g = 0u, start = 0u, size = group_size(form, dv, 0u);
    while (d >= start + size) {
        start += size;
        size = group_size(form, dv, ++g);
    }
    uint e = d - start, w = size / 8u, r = e / 8u, c = e % 8u;
    bool first = r == 0u && c == 0u;
    uint previous = start + (r > 0u ? e - 8u : first ? 0u : 8u * (w - 1u) + c - 1u);
    float sum = 0.0;
    for (uint n = from; n < to;) {
        if (form == Q8_0) {
            uint x = U32(v).d[n / 4u * dv + d];
            sum += p_row[n] * scale_of(tables, scales, form, g * 64u + n) *
                   float(bitfieldExtract(int(x), int(8u * (n & 3u)), 8));
            n++;
            continue;
        }
        uint o = n / 8u, x = logical_word(v + 4ul * d, dv, form, o, 8u), y = 0u;
        if (!first) y = logical_word(v + 4ul * previous, dv, form, o, 8u);
        for (uint last = min(to, 8u * o + 8u); n < last; n++) {
            uint shift = 4u * (n & 7u);
            sum += p_row[n] * scale_of(tables, scales, form, g * 64u + n) *
                   level_v[(x >> shift & 15u) + (y >> shift & 1u) * 16u];
        }
    }
    return sum;
}

// a: step, pool, q, y, partials, mean (0: none), tables; u: group, layer, query heads, query heads per KV head, strides of q [heads,
// tokens] in floats, scale, softcap, floats of a partial result, address of
// the tables (low, high), has the mean a column for each KV head
void main()
{
    U32 step = U32(push.a[0]);
    uint64_t pool = push.a[1];
    uint tid = gl_LocalInvocationID.x, head = gl_WorkGroupID.y, group = push.u[0];
    uint dk = pool_word(pool, G_DK), dv = pool_word(pool, G_DV), window = pool_word(pool, G_WINDOW);
    uint type_k = pool_word(pool, G_TYPE_K), type_v = pool_word(pool, G_TYPE_V);
    float scale = uintBitsToFloat(push.u[6]), softcap = uintBitsToFloat(push.u[7]);
    if (gl_WorkGroupID.x >= step.d[STEP_N_WORK + group]) return;
    uint w = step.d[STEP_WORK + group] + WORK_WORDS * gl_WorkGroupID.x;
    uint first = step.d[w + 1u], count = step.d[w + 2u], page_first = step.d[w + 3u], page_end = step.d[w + 4u],
         n_splits = step.d[w + 6u], partial = step.d[w + 7u];
    if (gl_WorkGroupID.z >= count) return;
    uint t = first + gl_WorkGroupID.z, pos = step.d[step.d[STEP_TOKEN_POS] + t];
    uint seq = step.d[step.d[STEP_RUNS] + RUN_WORDS * step.d[w]];
    uint lowest = window != 0u && pos >= window ? pos + 1u - window : 0u;
    uint max_pages = pool_word(pool, G_MAX_PAGES);
    if (seq >= pool_word(pool, G_SEQS)) return;
    page_end = min(min(page_end, pos / 64u + 1u), max_pages);
    U32 table = U32(U64(pool).d[POOL_TABLE] + 4ul * uint64_t(seq) * max_pages);
    U32 coded_table = U32(U64(pool).d[POOL_CODED_TABLE] + 4ul * uint64_t(seq) * max_pages);
    uint64_t tables = uint64_t(push.u[10]) << 32 | push.u[9];

    for (uint i = tid; i < dk; i += 64u)
        q_row[i] = F32(push.a[2]).d[head * push.u[4] + t * push.u[5] + i] * scale;
    uint form_k = pool_word(pool, G_FORM_K), form_v = pool_word(pool, G_FORM_V);
    uint sinks = pool_word(pool, G_SINK), boundary = 0u;
    float gain_k = 1.0, gain_v = 1.0, shift = 0.0;
    if (pool_word(pool, G_IS_CODED) != 0u) {
        uint pages = (pos + 1u) / 64u, recent = pool_word(pool, G_RECENT);
        boundary = max(pages > recent ? pages - recent : 0u, sinks);
        if (tid < 32u) {
            if (is_codec(form_k))
                level_k[tid] = float(bitfieldExtract(int(U8(tables + TAB_LEVELS).d[(form_k - C2) * 32u + tid]), 0, 8));
            if (is_codec(form_v))
                level_v[tid] = float(bitfieldExtract(int(U8(tables + TAB_LEVELS).d[(form_v - C2) * 32u + tid]), 0, 8));
        }
        if (is_codec(form_k)) gain_k = F32(tables + TAB_CODEC).d[(form_k - C2) * 3u + 1u];
        if (is_codec(form_v)) gain_v = F32(tables + TAB_CODEC).d[(form_v - C2) * 3u + 2u];
    }
    barrier();
    if (push.a[5] != 0ul && softcap > 0.0) // what softmax would not see of the mean, the cap does
        for (uint i = 0u; i < dk; i++) shift += q_row[i] * F32(push.a[5]).d[head / push.u[3] * dk * push.u[11] + i];

    float total_max = NOTHING, total_sum = 0.0, split_max = NOTHING, split_sum = 0.0;
    float total[MAX_V], split[MAX_V];
    [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i] = split[i] = 0.0;
    bool merged = false;
    for (uint p = page_first; p < page_end; p++) {
        bool exact = p < sinks || p >= boundary;
        uint page = exact ? table.d[p] : coded_table.d[p];
        if (exact ? page_exists(pool, page) : page < pool_word(pool, G_CODED_PAGES)) {
            uint64_t k, v, scales_k, scales_v;
            if (exact) {
                k = page_block(pool, page, push.u[1], head / push.u[3]);
                v = k + 16ul * pool_word(pool, G_K_16);
            } else {
                k = coded_block(pool, page, push.u[1], head / push.u[3]);
                v = k + 16ul * pool_word(pool, G_C_K_16);
                scales_k = v + 16ul * pool_word(pool, G_C_V_16);
                scales_v = scales_k + 16ul * pool_word(pool, G_C_KS_16);
            }
            bool plain_k = exact || form_k == SAME, plain_v = exact || form_v == SAME;
            uint j = p * 64u + tid;
            bool seen = j <= pos && j >= lowest;
            float s = 0.0;
            if (seen) {
                if (plain_k)
                    for (uint i = 0u; i < dk; i++) s += q_row[i] * load_exact(k, i * 64u + tid, type_k);
                else
                    s = gain_k * coded_score(k, scales_k, tables, form_k, dk, tid);
                s += shift;
                if (softcap > 0.0) s = softcap * tanh(s / softcap);
            }
            red[tid] = seen ? s : NOTHING;
            barrier();
            for (uint n = 32u; n > 0u; n >>= 1) {
                if (tid < n) red[tid] = max(red[tid], red[tid + n]);
                barrier();
            }
            float page_max = red[0];
            barrier();
            if (page_max != NOTHING) {
                float new_max = max(split_max, page_max);
                float old = split_max == NOTHING ? 0.0 : exp_below(split_max - new_max);
                float e = seen ? exp_below(s - new_max) : 0.0;
                p_row[tid] = e;
                red[tid] = e;
                barrier();
                for (uint n = 32u; n > 0u; n >>= 1) {
                    if (tid < n) red[tid] = red[tid] + red[tid + n];
                    barrier();
                }
                split_sum = split_sum * old + red[0];
                split_max = new_max;
                uint from = lowest > p * 64u ? lowest - p * 64u : 0u, to = min(64u, pos - p * 64u + 1u);
                [[unroll]] for (uint i = 0u; i < MAX_V; i++) {
                    uint d = tid + 64u * i;
                    if (d < dv) {
                        float o = split[i] * old;
                        if (plain_v)
                            for (uint n = from; n < to; n++) o += p_row[n] * load_exact(v, n * dv + d, type_v);
                        else
                            o += gain_v * coded_values(v, scales_v, tables, form_v, dv, d, from, to);
                        split[i] = o;
                    }
                }
                barrier();
            }
        }
        if ((p + 1u) % 8u == 0u || p + 1u == page_end) { // the split ends
            if (!merged) {
                total_max = split_max;
                total_sum = split_sum;
                [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i] = split[i];
            } else if (split_max != NOTHING) {
                float m = max(total_max, split_max), a = total_max == NOTHING ? 0.0 : exp_below(total_max - m),
                      b = exp_below(split_max - m);
                total_sum = total_sum * a + split_sum * b;
                [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i] = total[i] * a + split[i] * b;
                total_max = m;
            }
            merged = true;
            split_max = NOTHING;
            split_sum = 0.0;
            [[unroll]] for (uint i = 0u; i < MAX_V; i++) split[i] = 0.0;
        }
    }
    if (n_splits > 1u) {
        F32 out_at = F32(push.a[4] + 4ul * (uint64_t(partial + gl_WorkGroupID.z) * push.u[2] + head) * push.u[8]);
        if (tid == 0u) {
            out_at.d[0] = total_max;
            out_at.d[1] = total_sum;
        }
        [[unroll]] for (uint i = 0u; i < MAX_V; i++)
            if (tid + 64u * i < dv) out_at.d[2u + tid + 64u * i] = total[i];
    } else {
        float r = total_sum > 0.0 ? 1.0 / total_sum : 0.0;
        [[unroll]] for (uint i = 0u; i < MAX_V; i++)
            if (tid + 64u * i < dv)
                F32(push.a[3]).d[(t * push.u[2] + head) * dv + tid + 64u * i] = total[i] * r;
    }
}
