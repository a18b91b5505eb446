// attend_tile.cuh - pages of the cache as tiles of halves in shared memory, for attention on matrix units. A page is
// brought there once for all rows of a block: exact pages by asynchronous copies, coded pages through registers, in
// two moves, so that words are on their way while the page before is being used.
//
// A panel is 64 rows of 64 halves, its 16-byte chunks exchanged by row (chunk c of row r lies at c ^ r % 8), so that
// eight neighbouring rows of a matrix never meet in a bank.
//   keys    exact: panel d / 64, row d % 64, column token      coded: panel d / 64, row token, column d % 64
//   values  exact: panel d / 64, row token, column d % 64      coded: panel d / 64, row d % 64, column token
// A coded element is level * unit * 2^((e - 128) / 16) * gain, rounded to half: of values so is the scale; of keys the
// scale is kept as a sum of two halves, since its error would be that of a whole group's share of the score.
#ifndef RQ_CUDA_ATTEND_TILE_CUH
#define RQ_CUDA_ATTEND_TILE_CUH

#include "cuda/attend.cuh"
#include "cuda/levels.cuh"

CONSTANT uint32_t PANEL_BYTES = 64 * 128;

DEVICE uint8_t *chunk_of(uint8_t *panel, uint32_t row, uint32_t chunk)
{
    return panel + row * 128 + ((chunk ^ (row & 7)) << 4);
}

// A stretch of up to 8 octets of a group of K: `element` is the group's first, W its octets, `first` the stretch's
// first octet, `scale` the group's scales.
struct key_unit {
    uint32_t form, words;
    uint8_t element8, W, first, scale;
};

// PANELS: of 64 elements, of a head. Rows of a block: 16 for each warp, or for each SPLIT warps, which share the
// elements of the result between them.
template <uint32_t PANELS, uint32_t WARPS, uint32_t SPLIT> struct tile_state {
    static constexpr uint32_t ROWS = 16 * WARPS / SPLIT, THREADS = 32 * WARPS,
                              SCALES = PANELS == 8 ? 8 : 2 * PANELS; // groups of V at most
    alignas(16) uint8_t q[PANELS * ROWS * 128];
    alignas(16) uint8_t k[PANELS * PANEL_BYTES];
    alignas(16) uint8_t v[SPLIT > 1 ? 16 : PANELS *PANEL_BYTES]; // with SPLIT values replace keys
    alignas(16) uint16_t value_scale[SCALES][64];
    float key_scale[256]; // of 64 levels, gains not included: every codec has the same unit
    float gain_k[2];      // of the spans' codecs
    key_unit units[2 * PANELS];
    uint32_t n_units;
    uint32_t
        value_rows[PANELS * 8]; // octets of elements: row in the group | W << 8 | scale << 16 | span << 24
    span v_span[2];
    float shift[ROWS];
};

DEVICE uint32_t form_code(uint32_t form)
{
    return is_codec(form) ? form - C2 : 0;
}

// Lists of what there is to unpack: by one thread, at the start.
template <typename STATE>
DEVICE void list_units(STATE &sh, uint32_t form_k, uint32_t form_v, uint32_t dk, uint32_t dv)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < spans_of(form_k); i++) {
        span s = span_at(form_k, false, dk, i);
        uint32_t groups = is_codec(s.form) ? groups_of(s.form, s.size) : 1, e = s.first, words = s.words;
        for (uint32_t g = 0; g < groups; g++) {
            uint32_t W = (is_codec(s.form) ? group_size(s.form, s.size, g) : s.size) / 8;
            for (uint32_t first = 0; first < W; first += 8) {
                sh.units[n].form = s.form;
                sh.units[n].words = words;
                sh.units[n].element8 = (uint8_t)(e / 8);
                sh.units[n].W = (uint8_t)W;
                sh.units[n].first = (uint8_t)first;
                sh.units[n++].scale = (uint8_t)(s.groups + (is_codec(s.form) ? g : first / 4));
            }
            e += 8 * W;
            words += 64 * (is_codec(s.form) ? words_of(s.form, W) : 0);
        }
    }
    sh.n_units = n;
    for (uint32_t i = 0, r = 0; i < spans_of(form_v); i++) {
        span s = span_at(form_v, true, dv, i);
        sh.v_span[i] = s;
        for (uint32_t g = 0, groups = groups_of(s.form, s.size); g < groups; g++)
            for (uint32_t k = 0, W = group_size(s.form, s.size, g) / 8; k < W; k++)
                sh.value_rows[r++] = k | W << 8 | (s.groups + g) << 16 | i << 24;
    }
}

// ---- exact blocks: asynchronous copies

template <uint32_t PANELS, uint32_t THREADS> DEVICE void copy_keys(uint8_t *to, const uint8_t *k, uint32_t dk)
{
#pragma unroll
    for (uint32_t n = 0; n < PANELS * 512 / THREADS; n++) {
        uint32_t i = thread_x() + n * THREADS, d = i / 8, c = i % 8;
        uint8_t *at = chunk_of(to + d / 64 * PANEL_BYTES, d % 64, c);
        if (d < dk)
            copy16_async(at, k + 16 * i);
        else if (d < dk + 8) // half of a step of 16 may be past the end
            store16(at, {0, 0, 0, 0});
    }
}

// Tokens from `end` on hold anything: zeros instead.
template <uint32_t PANELS, uint32_t THREADS>
DEVICE void copy_values(uint8_t *to, const uint8_t *v, uint32_t dv, uint32_t end)
{
#pragma unroll
    for (uint32_t n = 0; n < PANELS * 512 / THREADS; n++) {
        uint32_t i = thread_x() + n * THREADS, token = i / (8 * PANELS), c = i % (8 * PANELS);
        uint8_t *at = chunk_of(to + c / 8 * PANEL_BYTES, token, c % 8);
        if (8 * c >= dv) continue;
        if (token < end)
            copy16_async(at, v + (token * dv + 8 * c) * 2);
        else
            store16(at, {0, 0, 0, 0});
    }
}

// ---- coded blocks

// Tables whose levels are 128 larger: bytes without a sign.
template <int FORM> DEVICE level_table raised_levels(const cuda_tables *tables)
{
    level_table l = load_levels<FORM>(tables);
    for (uint32_t b = 0; b < 2; b++)
        for (uint32_t i = 0; i < 4; i++) l.t[b][i] ^= 0x80808080u;
    return l;
}

// Four raised levels times a scale of 64: as the low byte of 16 + l / 64, minus 18, which is exact.
template <int FORM> DEVICE void exact_halves(uint32_t levels, uint32_t &h0, uint32_t &h1)
{
    if (FORM == (int)Q8_0) levels ^= 0x80808080u;
    const uint32_t MINUS_18 = 0xcc80cc80u;
    h0 = half2_add(prmt(levels, 0x4c4c4c4cu, 0x4140), MINUS_18);
    h1 = half2_add(prmt(levels, 0x4c4c4c4cu, 0x4342), MINUS_18);
}

template <int FORM>
DEVICE void scaled_halves(uint32_t levels, uint32_t scale0, uint32_t scale1, uint32_t &h0, uint32_t &h1)
{
    exact_halves<FORM>(levels, h0, h1);
    h0 = half2_mul(h0, scale0);
    h1 = half2_mul(h1, scale1);
}

// By a scale of two parts, the second what rounding takes from the first.
template <int FORM>
DEVICE void finely_scaled(uint32_t levels, uint32_t scale, uint32_t rest, uint32_t &h0, uint32_t &h1)
{
    exact_halves<FORM>(levels, h0, h1);
    h0 = half2_fma(h0, scale, half2_mul(h0, rest));
    h1 = half2_fma(h1, scale, half2_mul(h1, rest));
}

struct raw_key {
    raw_words words;
    uint32_t before, scale;
};

// Words of a warp's job: 8 tokens of a unit, four lanes for a token.
template <int FORM>
DEVICE raw_key fetch_key(const key_unit &u, const uint8_t *block, const uint8_t *scales, uint32_t token)
{
    uint32_t t = thread_x() % 4, P = u.first / 2 + t, W = u.W;
    const uint32_t *words = (const uint32_t *)block + u.words + token;
    raw_key r;
    r.words = fetch_words<FORM>(words, 64, P, W);
    r.before = 0;
    if (FORM != (int)Q8_0 && W != 8 && t == 0)
        r.before = u.first > 0 ? logical_word(words, 64, FORM, u.first - 1, W)
                               : logical_word(words, 64, FORM, W - 1, W) << 4;
    if (FORM == (int)Q8_0) {
        uint32_t group = u.scale + (2 * P < W ? t / 2 : 0);
        r.scale = ((const uint16_t *)scales)[group * 64 + token];
    } else {
        r.scale = scales[u.scale * 64 + token];
    }
    return r;
}

template <int FORM>
DEVICE void place_key(const key_unit &u, const raw_key &r, const level_table &levels, const float *scale_of,
                      float gain, uint8_t *to, uint32_t token)
{
    uint32_t lane = thread_x() % 32, t = lane % 4, P = u.first / 2 + t, W = u.W, before = 0;
    octets o = split_words<FORM>(r.words, P, W);
    if (FORM != (int)Q8_0) {
        before = shfl(o.b, (lane & ~3u) | ((t + 3) & 3));
        if (t == 0) before = W == 8 ? before << 4 : r.before;
    }
    float exact = FORM == (int)Q8_0 ? half_float(r.scale) * 64.0f : scale_of[r.scale] * gain;
    uint32_t scale = half2_bits(exact, exact), rest = 0;
    if (FORM != (int)Q8_0) { // a half times 64 is one
        float lost = exact - half_float(scale & 0xffffu);
        rest = half2_bits(lost, lost);
    }
    uint32_t lo, hi, chunk = u.element8 + 2 * P;
    u32x4 v;
    if (2 * P < W) {
        octet_levels<FORM>(levels, o.a, o.a2, before, lo, hi);
        finely_scaled<FORM>(lo, scale, rest, v.x, v.y);
        finely_scaled<FORM>(hi, scale, rest, v.z, v.w);
        store16(chunk_of(to + chunk / 8 * PANEL_BYTES, token, chunk % 8), v);
    }
    if (2 * P + 1 < W) {
        octet_levels<FORM>(levels, o.b, o.b2, o.a, lo, hi);
        finely_scaled<FORM>(lo, scale, rest, v.x, v.y);
        finely_scaled<FORM>(hi, scale, rest, v.z, v.w);
        store16(chunk_of(to + (chunk + 1) / 8 * PANEL_BYTES, token, (chunk + 1) % 8), v);
    }
}

// Words of 8 elements of V (this lane's: lane / 4) and 64 tokens (this lane's: 16 from 16 (lane % 4) on), of octet
// `e8` of the span.
template <int FORM> DEVICE raw_words fetch_value(const span &s, const uint8_t *block, uint32_t e8)
{
    uint32_t lane = thread_x() % 32;
    return fetch_words<FORM>((const uint32_t *)block + s.words + 8 * e8 + lane / 4, s.size, lane % 4, 8);
}

// Words of the elements that come before those of octet `e8` (row `row` of a group of W).
template <int FORM>
DEVICE raw_words fetch_before(const span &s, const uint8_t *block, uint32_t e8, uint32_t row, uint32_t W)
{
    uint32_t lane = thread_x() % 32, e = lane / 4;
    raw_words none = {{0, 0, 0, 0}};
    if (FORM == (int)Q8_0 || (row == 0 && e == 0)) return none;
    uint32_t at = row > 0 ? 8 * e8 + e - 8 : 8 * (e8 + W - 1) + e - 1;
    return fetch_words<FORM>((const uint32_t *)block + s.words + at, s.size, lane % 4, 8);
}

template <int FORM>
DEVICE void place_value(const octets &o, const octets &before, const level_table &levels,
                        const uint16_t *scales, uint8_t *to, uint32_t octet)
{
    uint32_t lane = thread_x() % 32, t = lane % 4, row = octet % 8 * 8 + lane / 4, lo, hi;
    u32x4 s0 = load16(scales + 16 * t), s1 = load16(scales + 16 * t + 8), v;
    octet_levels<FORM>(levels, o.a, o.a2, before.a, lo, hi);
    scaled_halves<FORM>(lo, s0.x, s0.y, v.x, v.y);
    scaled_halves<FORM>(hi, s0.z, s0.w, v.z, v.w);
    store16(chunk_of(to + octet / 8 * PANEL_BYTES, row, 2 * t), v);
    octet_levels<FORM>(levels, o.b, o.b2, before.b, lo, hi);
    scaled_halves<FORM>(lo, s1.x, s1.y, v.x, v.y);
    scaled_halves<FORM>(hi, s1.z, s1.w, v.z, v.w);
    store16(chunk_of(to + octet / 8 * PANEL_BYTES, row, 2 * t + 1), v);
}

// A statement for the form at hand: the same for all threads.
#define FOR_FORM(form, statement)                                                                            \
    if (form == Q8_0) {                                                                                      \
        constexpr int FORM = (int)Q8_0;                                                                      \
        statement;                                                                                           \
    } else if (form == C2) {                                                                                 \
        constexpr int FORM = (int)C2;                                                                        \
        statement;                                                                                           \
    } else if (form == C3) {                                                                                 \
        constexpr int FORM = (int)C3;                                                                        \
        statement;                                                                                           \
    } else {                                                                                                 \
        constexpr int FORM = (int)C4;                                                                        \
        statement;                                                                                           \
    }

// The loaders of coded blocks. AHEAD jobs of a warp are fetched a phase early; the rest when it is their turn.
template <typename STATE, uint32_t PANELS, uint32_t WARPS, uint32_t AHEAD> struct key_loader {
    raw_key kept[AHEAD];

    static DEVICE_MEMBER uint32_t unit_of(uint32_t n)
    {
        return (thread_x() / 32 + WARPS * n) / 8;
    }
    static DEVICE_MEMBER uint32_t token_of(uint32_t n)
    {
        return (thread_x() / 32 + WARPS * n) % 8 * 8 + thread_x() % 32 / 4;
    }
    DEVICE_MEMBER void fetch(const STATE &sh, const uint8_t *block, const uint8_t *scales)
    {
#pragma unroll
        for (uint32_t n = 0; n < AHEAD; n++) {
            if (unit_of(n) >= sh.n_units) break;
            const key_unit &u = sh.units[unit_of(n)];
            FOR_FORM(u.form, kept[n] = fetch_key<FORM>(u, block, scales, token_of(n)))
        }
    }
    template <int FORM>
    DEVICE_MEMBER void place_form(STATE &sh, const cuda_tables *tables, const uint8_t *block,
                                  const uint8_t *scales, uint32_t form_index)
    {
        level_table levels = raised_levels<FORM>(tables);
        float gain = sh.gain_k[form_index];
#pragma unroll
        for (uint32_t n = 0; n < AHEAD; n++) {
            if (unit_of(n) >= sh.n_units) break;
            const key_unit &u = sh.units[unit_of(n)];
            if (u.form == (uint32_t)FORM)
                place_key<FORM>(u, kept[n], levels, sh.key_scale, gain, sh.k, token_of(n));
        }
        for (uint32_t n = AHEAD; unit_of(n) < sh.n_units; n++) {
            const key_unit &u = sh.units[unit_of(n)];
            if (u.form != (uint32_t)FORM) continue;
            raw_key r = fetch_key<FORM>(u, block, scales, token_of(n));
            place_key<FORM>(u, r, levels, sh.key_scale, gain, sh.k, token_of(n));
        }
    }
    DEVICE_MEMBER void place(STATE &sh, const cuda_tables *tables, const uint8_t *block,
                             const uint8_t *scales, uint32_t form, uint32_t dk)
    {
        if (form == C42) {
            place_form<(int)C4>(sh, tables, block, scales, 0);
            place_form<(int)C2>(sh, tables, block, scales, 1);
        } else {
            FOR_FORM(form, place_form<FORM>(sh, tables, block, scales, 0))
        }
        if (dk % 16 != 0) // half of a step of 16 is past the end
            for (uint32_t token = thread_x(); token < 64; token += 32 * WARPS)
                store16(chunk_of(sh.k + dk / 64 * PANEL_BYTES, token, dk % 64 / 8), {0, 0, 0, 0});
    }
};

template <typename STATE, uint32_t PANELS, uint32_t WARPS, uint32_t AHEAD> struct value_loader {
    static constexpr uint32_t EACH = PANELS * 8 / WARPS,              // octets of a warp
        QUADS = (STATE::SCALES * 16 + 32 * WARPS - 1) / (32 * WARPS); // scales of a thread, by fours
    raw_words kept[AHEAD], first;
    u32x2 scale[QUADS];

    DEVICE_MEMBER void fetch(const STATE &sh, const uint8_t *block, const uint8_t *scales, uint32_t dv)
    {
        uint32_t octet = thread_x() / 32 * EACH;
#pragma unroll
        for (uint32_t n = 0; n < AHEAD; n++) {
            if (8 * (octet + n) >= dv) break;
            uint32_t what = sh.value_rows[octet + n];
            const span &s = sh.v_span[what >> 24];
            uint32_t e8 = octet + n - s.first / 8;
            FOR_FORM(s.form, {
                kept[n] = fetch_value<FORM>(s, block, e8);
                if (n == 0) first = fetch_before<FORM>(s, block, e8, what & 255, what >> 8 & 255);
            })
        }
        bool bytes = sh.v_span[0].form != Q8_0;
#pragma unroll
        for (uint32_t n = 0; n < QUADS; n++) {
            uint32_t at = 4 * (thread_x() + n * 32 * WARPS), last = sh.value_rows[dv / 8 - 1];
            scale[n] = {0, 0};
            if (at / 64 > (last >> 16 & 255)) continue;
            if (bytes)
                scale[n].x = load4(scales + at);
            else
                scale[n] = load8(scales + 2 * at);
        }
    }
    // The scales that were fetched, as halves of 64 units.
    DEVICE_MEMBER void place_scales(STATE &sh, float gain, float gain_2, uint32_t dv)
    {
        bool bytes = sh.v_span[0].form != Q8_0;
#pragma unroll
        for (uint32_t n = 0; n < QUADS; n++) {
            uint32_t at = 4 * (thread_x() + n * 32 * WARPS), last = sh.value_rows[dv / 8 - 1],
                     group = at / 64;
            if (group > (last >> 16 & 255)) continue;
            float x[4];
            if (bytes) {
                bool second = sh.v_span[0].size != dv && group >= sh.v_span[1].groups;
                for (uint32_t i = 0; i < 4; i++) {
                    int e = (int)(scale[n].x >> 8 * i & 255u);
                    x[i] = e == 0 ? 0.0f : exp2_fast((float)(e - 128) * 0.0625f) * (second ? gain_2 : gain);
                }
            } else {
                x[0] = half_float(scale[n].x & 0xffffu) * 64.0f, x[1] = half_float(scale[n].x >> 16) * 64.0f;
                x[2] = half_float(scale[n].y & 0xffffu) * 64.0f, x[3] = half_float(scale[n].y >> 16) * 64.0f;
            }
            store8(&sh.value_scale[group][at % 64], {half2_bits(x[0], x[1]), half2_bits(x[2], x[3])});
        }
    }
    template <int FORM>
    DEVICE_MEMBER void place_form(STATE &sh, uint8_t *to, const cuda_tables *tables, const uint8_t *block,
                                  uint32_t dv)
    {
        level_table levels = raised_levels<FORM>(tables);
        uint32_t octet = thread_x() / 32 * EACH;
        octets before = {0, 0, 0, 0};
        bool follows = false;
#pragma unroll
        for (uint32_t n = 0; n < EACH; n++) {
            if (8 * (octet + n) >= dv) break;
            uint32_t what = sh.value_rows[octet + n], row = what & 255, W = what >> 8 & 255;
            const span &s = sh.v_span[what >> 24];
            if (s.form != (uint32_t)FORM) {
                follows = false;
                continue;
            }
            uint32_t e8 = octet + n - s.first / 8;
            raw_words r = n < AHEAD ? kept[n < AHEAD ? n : 0] : fetch_value<FORM>(s, block, e8);
            octets o = split_words<FORM>(r, thread_x() % 4, 8);
            if (n == 0)
                before = split_words<FORM>(first, thread_x() % 4, 8);
            else if (!follows || row == 0)
                before = split_words<FORM>(fetch_before<FORM>(s, block, e8, row, W), thread_x() % 4, 8);
            place_value<FORM>(o, before, levels, sh.value_scale[what >> 16 & 255], to, octet + n);
            before = o;
            follows = true;
        }
    }
    DEVICE_MEMBER void place(STATE &sh, uint8_t *to, const cuda_tables *tables, const uint8_t *block,
                             uint32_t form, uint32_t dv)
    {
        if (form == C42) {
            place_form<(int)C4>(sh, to, tables, block, dv);
            place_form<(int)C2>(sh, to, tables, block, dv);
        } else {
            FOR_FORM(form, place_form<FORM>(sh, to, tables, block, dv))
        }
    }
};

#endif
