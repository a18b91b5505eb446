// encode.cu - one side (K or V) of one head of one page into coded form: the rule of formats/kv_codec.h in integers,
// the same bytes as every other implementation. A thread per token; reads the exact block three times (the second
// and third from a cache), writes the coded one once.
#include "cuda/pages.cuh"

CONSTANT uint32_t MAX_G = 120;

// 2^(-n/16) and 2^(j/8) in fixed point: formats/kv_codec.c
CONSTANT uint16_t MULTIPLIER[16] = {32768, 31379, 30048, 28774, 27554, 26386, 25268, 24196,
                                    23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109};
CONSTANT uint16_t SCORE[8] = {32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097};

DEVICE int multiplier_of(int n)
{
    int shift = (n + 48) >> 4;
    return shift > 17 ? 0 : ((int)MULTIPLIER[n & 15] + (1 << shift >> 1)) >> shift;
}

DEVICE uint64_t score_of(int gain, uint32_t j)
{
    return gain > 0 ? (uint64_t)(uint32_t)gain * SCORE[j & 7] << (j >> 3) : 0;
}

DEVICE int log2_of(const cuda_tables *tables, uint32_t n)
{
    int top = 31 - (int)leading_zeros(n);
    return top * 256 + (int)tables->log2[n << (31 - top) >> 24 & 127u];
}

// One step of the path: costs of ending with low bit 0 and 1, and how (code | predecessor's bit << 4, five bits each).
DEVICE uint32_t advance(int y, int n_codes, const int *levels, int &cost0, int &cost1)
{
    int next0 = 0x7fffffff, next1 = 0x7fffffff;
    uint32_t how0 = 0, how1 = 0;
    for (int b = 0; b < 2; b++) {
        int before = b == 0 ? cost0 : cost1;
        for (int c = 0; c < n_codes; c += 2) {
            int l = levels[b * 16 + c], total = before + 8 * l * l - 2 * y * l;
            if (total < next0) {
                next0 = total;
                how0 = (uint32_t)(c | b << 4);
            }
            l = levels[b * 16 + c + 1];
            total = before + 8 * l * l - 2 * y * l;
            if (total < next1) {
                next1 = total;
                how1 = (uint32_t)(c + 1) | (uint32_t)b << 4;
            }
        }
    }
    cost0 = next0;
    cost1 = next1;
    return how0 | how1 << 5;
}

// One span of a row of d elements, of all tokens of the page.
DEVICE void encode_span(const cuda_tables *tables, span s, const uint8_t *x, uint32_t type, bool is_v,
                        uint32_t d, uint32_t *out, uint8_t *scales, uint16_t *numbers, const int *levels)
{
    uint32_t tid = thread_x(), form = s.form, bits = bits_of(form), row = form - C2;
    uint32_t base_element = 0, base_word = 0;
    uint16_t *mine = numbers + tid;
    for (uint32_t g = 0, n_groups = groups_of(form, s.size); g < n_groups; g++) {
        uint32_t size = group_size(form, s.size, g), w = size / 8, largest = 0;
        for (uint32_t i = 0; i < size; i++) {
            uint32_t e = s.first + base_element + i,
                     v = float_bits(load_exact(x, is_v ? tid * d + e : e * 64 + tid, type));
            v &= 0x7fffffffu;
            if (v < 0x7f800000u) largest = max_u(largest, v);
        }
        if (!is_codec(form)) { // Q8_0: element order
            float scale = fminf(bits_float(largest) / 127.0f, 65504.0f);
            float inverse = scale > 1.17549435e-38f ? 1.0f / scale : 0.0f;
            ((uint16_t *)scales)[g * 64 + tid] = (uint16_t)half_bits(scale);
            for (uint32_t i = 0; i < size; i++) {
                uint32_t e = s.first + base_element + i;
                float v = load_exact(x, is_v ? tid * d + e : e * 64 + tid, type);
                if (!is_finite(v)) v = 0;
                mine[64 * i] = (uint16_t)(int)rintf(fminf(fmaxf(v * inverse, -127.0f), 127.0f));
            }
        } else {
            int exponent = max_i((int)(largest >> 23) - 126, -24);
            float factor = bits_float((uint32_t)(127 + 11 - exponent) << 23);
            uint32_t energy = 0;
            for (uint32_t i = 0; i < size; i++) {
                uint32_t e = s.first + base_element + 8 * (i % w) + i / w;
                float v = load_exact(x, is_v ? tid * d + e : e * 64 + tid, type);
                if (!is_finite(v)) v = 0;
                int q = (int)rintf(v * factor);
                energy += (uint32_t)(q * q);
                mine[64 * i] = (uint16_t)q;
            }
            uint32_t best = 0;
            int n_codes = 1 << bits;
            if (energy != 0) {
                uint32_t peak = (uint32_t)rintf(bits_float(largest) * factor);
                int base = (log2_of(tables, energy) - log2_of(tables, size) + tables->base[row]) >> 5;
                int above = ((log2_of(tables, peak) - 245) >> 4) - base;
                int stride = above <= 10 ? 2 : above <= 18 ? 4 : 8, n_left = stride > 2 ? 4 : 3, centre = 0;
                int candidate = 16 * exponent - 48 + base +
                                ((tables->slope[row] * above + tables->offset[row]) >> 5) - stride;
                int origin = min_i(max_i(candidate, 1), 255) - 16;
                uint64_t best_score = 0;
                for (;;) { // at most 4 + 2 * 3 candidates
                    int tried = min_i(max_i(candidate, 1), 255);
                    int multiplier = multiplier_of(max_i(tried - 96 - 16 * exponent, -47));
                    int cost0 = 0, cost1 = 0x3fffffff;
                    for (uint32_t i = 0; i < size; i++)
                        advance(((int)(int16_t)mine[64 * i] * multiplier + 2048) >> 12, n_codes, levels,
                                cost0, cost1);
                    uint64_t score = score_of(-min_i(cost0, cost1), (uint32_t)(tried - origin));
                    if (score > best_score) {
                        best_score = score;
                        best = (uint32_t)tried;
                    }
                    n_left--;
                    if (n_left > 0 && centre == 0) {
                        candidate += stride;
                    } else if (n_left > 0) {
                        candidate = centre + stride;
                    } else {
                        if (stride == 1) break;
                        stride /= 2;
                        n_left = 2;
                        centre = best != 0 ? (int)best : origin + 16;
                        candidate = centre - stride;
                    }
                }
            }
            scales[g * 64 + tid] = (uint8_t)best;
            // The path: first the choices of every step, ten bits, in place of the numbers; then backwards.
            int cost0 = 0, cost1 = 0x3fffffff;
            int multiplier = best == 0 ? 0 : multiplier_of(max_i((int)best - 96 - 16 * exponent, -47));
            for (uint32_t i = 0; i < size && best != 0; i++)
                mine[64 * i] = (uint16_t)advance(((int)(int16_t)mine[64 * i] * multiplier + 2048) >> 12,
                                                 n_codes, levels, cost0, cost1);
            uint32_t state = cost0 <= cost1 ? 0 : 1;
            for (uint32_t i = size; i-- > 0;) {
                uint32_t how = best == 0 ? 0 : (uint32_t)mine[64 * i] >> 5 * state & 31u;
                state = how >> 4;
                mine[64 * i] = (uint16_t)(how & 15u);
            }
        }
        block_sync();
        // Words. K: the token's own; V: an element's, from the tokens of the page.
        if (form == Q8_0) {
            uint32_t n = is_v ? size * 16 : size / 4 * 64;
            for (uint32_t i = tid; i < n; i += 64) {
                uint32_t e = is_v ? i % size : i / 64 * 4, t = is_v ? i / size * 4 : i % 64, v = 0;
                for (uint32_t k = 0; k < 4; k++)
                    v |= (numbers[is_v ? 64 * e + t + k : 64 * (e + k) + t] & 255u) << 8 * k;
                out[is_v ? t / 4 * s.size + base_element + e : (base_word + e / 4) * 64 + t] = v;
            }
            base_word += size / 4;
        } else {
            uint32_t n_logical = is_v ? 8 : w, rows = is_v ? size : 64;
            for (uint32_t e = tid; e < rows; e += 64) {
                uint32_t done = 0;
                for (uint32_t l = 0; l < n_logical;) {
                    uint32_t per = bits == 3 ? 4 : bits == 2 ? 2 : 1, n = min_u(per, n_logical - l);
                    if (bits == 3 && n < 4) n = 1;
                    uint32_t logical[4];
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++) {
                        logical[i] = 0;
                        for (uint32_t c = 0; i < n && c < 8; c++) {
                            // trellis step of the element, and the token
                            uint32_t r = is_v ? e / 8 : l + i, at = (is_v ? e % 8 : c) * w + r;
                            uint32_t token = is_v ? 8 * (l + i) + c : e;
                            logical[i] |= (numbers[64 * at + token] & 15u) << 4 * c;
                        }
                    }
                    uint32_t n_out = n == 4 ? 3 : 1;
#pragma unroll
                    for (uint32_t o = 0; o < 3; o++) {
                        if (o >= n_out) break;
                        uint32_t v = logical[o];
                        if (n == 4) v |= (logical[3] >> o & 0x11111111u) << 3;
                        if (n == 2) v |= logical[1] << 2;
                        out[is_v ? (done + o) * s.size + base_element + e : (base_word + done + o) * 64 + e] =
                            v;
                    }
                    done += n_out;
                    l += n;
                }
            }
            base_word += words_of(form, w);
        }
        base_element += size;
        block_sync();
    }
}

KERNEL(kv_encode, cuda_kv_args, 64)
{
    // two 16-bit numbers of one token: elements 2 i and 2 i + 1 in trellis order; halves of words, [element][token]
    SHARED(uint16_t, numbers, MAX_G * 64);
    SHARED(int, levels, 32);
    uint32_t tid = thread_x(), head = block_y();
    bool is_v = block_z() == 1;
    const uint32_t *step = p.step;
    const cuda_pool *pool = p.pool;
    if (block_x() >= step[STEP_N_ENCODES + p.group]) return;
    const uint32_t *job = step + step[STEP_ENCODES + p.group] + 2 * block_x();
    if (!page_exists(pool, job[0]) || job[1] >= pool->n_coded) return;
    uint32_t d = is_v ? pool->dim_v : pool->dim_k, form = is_v ? pool->form_v : pool->form_k;
    uint32_t type = is_v ? pool->type_v : pool->type_k;
    const uint8_t *x = page_block(pool, job[0], p.layer, head);
    uint8_t *block = coded_block(pool, job[1], p.layer, head);
    uint32_t *out = (uint32_t *)block;
    uint8_t *scales = block + pool->coded_k_bytes + pool->coded_v_bytes;
    if (is_v) {
        x += pool->k_bytes;
        out = (uint32_t *)(block + pool->coded_k_bytes);
        scales += pool->coded_k_scale_bytes;
    }
    if (form == SAME) {
        uint64_t n = (is_v ? pool->v_bytes : pool->k_bytes) / 16;
        for (uint64_t i = tid; i < n; i += 64) store16((uint8_t *)out + 16 * i, load16(x + 16 * i));
        return;
    }
    for (uint32_t i = 0; i < spans_of(form); i++) {
        span s = span_at(form, is_v, d, i);
        if (is_codec(s.form) && tid < 32) levels[tid] = p.tables->levels[s.form - C2][tid / 16][tid % 16];
        block_sync();
        encode_span(p.tables, s, x, type, is_v, d, out + s.words,
                    scales + s.groups * (s.form == Q8_0 ? 128 : 64), numbers, levels);
    }
}
