// attend.comp - attention of one query head of one token over the pages of one work item (exact pages).
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

float load(uint64_t p, uint i, uint type)
{
    if (type == 0u) return F32(p).d[i];
    uint h = uint(U16(p).d[i]);
    return type == 1u ? half_bits(h) : uintBitsToFloat(h << 16);
}

// a: step, pool, q, y, partials; u: group, layer, query heads, query heads per KV head, strides of q [heads,
// tokens] in floats, scale, softcap, floats of a partial result
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

    for (uint i = tid; i < dk; i += 64u)
        q_row[i] = F32(push.a[2]).d[head * push.u[4] + t * push.u[5] + i] * scale;
    barrier();

    float total_max = NOTHING, total_sum = 0.0, split_max = NOTHING, split_sum = 0.0;
    float total[MAX_V], split[MAX_V];
    [[unroll]] for (uint i = 0u; i < MAX_V; i++) total[i] = split[i] = 0.0;
    bool merged = false;
    for (uint p = page_first; p < page_end; p++) {
        uint page = table.d[p];
        if (page < pool_word(pool, G_PAGES)) {
            uint64_t k = page_block(pool, page, push.u[1], head / push.u[3]);
            uint64_t v = k + 16ul * pool_word(pool, G_K_16);
            uint j = p * 64u + tid;
            bool seen = j <= pos && j >= lowest;
            float s = 0.0;
            if (seen) {
                for (uint i = 0u; i < dk; i++) s += q_row[i] * load(k, i * 64u + tid, type_k);
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
                        for (uint n = from; n < to; n++) o += p_row[n] * load(v, n * dv + d, type_v);
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
