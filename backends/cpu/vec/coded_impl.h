/* coded_impl.h - attention over one page whose K or V is in code, over the registers of simd_int.h. Included by
 * attend_impl.h.
 *
 * A group's codes become int16 levels in scratch once, "pairs" of two elements of K (or two tokens of V) next to
 * each other, and serve all rows: scores = sum over groups of q_scale * key_scale * (q_codes . levels), and for
 * V the weights p * value_scale of a row are brought to int16 by their largest, out += weight_scale * (weights .
 * levels). Queries and weights of 15 bits cost on the usual instruction sets what 7 bits would (one multiply-add
 * of pairs instead of one of bytes and its widening), and their rounding is far below that of the codes.
 *
 * The integer sums are exact: a group has less than 128 elements, 64 tokens, of at most 127 * 32767 each. Float
 * operations on a score or an output element are the same few in the same order whatever the block, so its bits
 * depend on its row alone; and they are the same on every instruction set. */
#include "backends/cpu/vec/simd_int.h"

/* ---- codes to levels -------------------------------------------------------------------------------------- */

typedef struct rq_tables {
    vi first, second;
} rq_tables;

/* C2, C3: one table, the predecessor's bit is bit 3 of the index. C4: one for each value of that bit. Q4_0: code
 * less 8 (Q8_0 needs none). */
static rq_tables tables_of(rq_kv_form form, const int8_t (*level)[16])
{
    int8_t t[2][16];
    for (int i = 0; i < 16; i++) {
        bool wide = form == RQ_KV_C4;
        t[0][i] = (int8_t)(!rq_kv_form_is_code(form) ? i - 8 : wide ? level[0][i] : level[i / 8][i % 8]);
        t[1][i] = wide ? level[1][i] : 0;
    }
    return (rq_tables){vi_table(t[0]), vi_table(t[1])};
}

/* Logical words that one batch of physical ones holds, and how many those are. */
RQ_INLINE uint32_t batch_of(rq_kv_form form, uint32_t left)
{
    uint32_t n = form == RQ_KV_C3 ? 4 : form == RQ_KV_C2 ? 2 : 1;
    return n <= left ? n : 1;
}
RQ_INLINE uint32_t words_of_batch(uint32_t n)
{
    return n == 4 ? 3 : 1;
}

/* Logical words w[0 .. n) of VL columns from physical words `stride` apart. */
RQ_INLINE void open_words(const uint32_t *p, size_t stride, uint32_t n, vi *w)
{
    if (n == 4) {
        const vi low = vi_set(0x77777777);
        vi a = vi_load(p), b = vi_load(p + stride), c = vi_load(p + 2 * stride);
        w[0] = vi_and(a, low);
        w[1] = vi_and(b, low);
        w[2] = vi_and(c, low);
        w[3] =
            vi_or(vi_or(vi_and(vi_shr(a, 3), vi_set(0x11111111)), vi_and(vi_shr(b, 2), vi_set(0x22222222))),
                  vi_and(vi_shr(c, 1), vi_set(0x44444444)));
    } else if (n == 2) {
        const vi low = vi_set(0x33333333);
        vi a = vi_load(p);
        w[0] = vi_and(a, low);
        w[1] = vi_and(vi_shr(a, 2), low);
    } else {
        w[0] = vi_load(p);
    }
}

/* The eight levels of each lane of a logical word as four pairs (0 4, 1 5, 2 6, 3 7). `before`: the words of the
 * predecessors. */
RQ_INLINE void levels_of(vi w, vi before, const rq_kv_form form, const rq_tables *t, vi *pairs)
{
    const vi nibble = vi_set(0x0f0f0f0f);
    vi even, odd;
    if (form == RQ_KV_C4) {
        vi low = vi_and(w, nibble), high = vi_and(vi_shr(w, 4), nibble);
        even = vi_pick(vi_lookup(t->first, low), vi_lookup(t->second, low), vi_shl(before, 7));
        odd = vi_pick(vi_lookup(t->first, high), vi_lookup(t->second, high), vi_shl(before, 3));
    } else {
        if (form != RQ_KV_Q4_0) w = vi_or(w, vi_shl(vi_and(before, vi_set(0x11111111)), 3));
        even = vi_lookup(t->first, vi_and(w, nibble));
        odd = vi_lookup(t->first, vi_and(vi_shr(w, 4), nibble));
    }
    pairs[0] = vi_even(even);
    pairs[1] = vi_even(odd);
    pairs[2] = vi_odd(even);
    pairs[3] = vi_odd(odd);
}

RQ_INLINE void put_levels(vi w, vi before, const rq_kv_form form, const rq_tables *t, int32_t *to,
                          size_t stride)
{
    vi pairs[4];
    levels_of(w, before, form, t, pairs);
    for (int j = 0; j < 4; j++) vi_store(to + (size_t)j * stride, pairs[j]);
}

/* All logical words of VL columns, `units` of them. */
RQ_INLINE void open_column(const uint32_t *p, size_t stride, uint32_t units, const rq_kv_form form, vi *w)
{
    for (uint32_t r = 0, n; r < units; r += n) {
        n = batch_of(form, units - r);
        open_words(p, stride, n, w + r);
        p += words_of_batch(n) * stride;
    }
}

/* K of a group of `units` times eight elements: [4 units][64] pairs. */
RQ_INLINE void k_levels(const uint32_t *p, uint32_t units, const rq_kv_form form, const rq_tables *t,
                        int32_t *to)
{
    for (size_t token = 0; token < KEYS; token += VL) {
        vi w[16];
        open_column(p + token, KEYS, units, form, w);
        vi before = vi_shl(w[units - 1], 4);
        for (uint32_t r = 0; r < units; r++) {
            put_levels(w[r], before, form, t, to + (size_t)4 * r * KEYS + token, KEYS);
            before = w[r];
        }
    }
}

enum { MAX_COLUMNS = 144 }; /* a group, the eight columns before it and as many behind */

/* V's logical words of a group, from its first element's physical words on: [8][MAX_COLUMNS]. The first eight of
 * each row are the predecessors of elements 0 .. 7; what is past the last may be written. */
RQ_INLINE void v_words(const uint32_t *p, size_t dim_v, uint32_t units, const rq_kv_form form,
                       uint32_t *words)
{
    for (size_t e = 0; e < (size_t)8 * units; e += VL) {
        vi w[8];
        open_column(p + e, dim_v, 8, form, w);
        for (int o = 0; o < 8; o++) vi_store(words + o * MAX_COLUMNS + 8 + e, w[o]);
    }
    for (int o = 0; o < 8; o++, words += MAX_COLUMNS) {
        words[0] = 0;
        memcpy(words + 1, words + (size_t)8 * units, 7 * sizeof *words);
    }
}

/* V of a group: [32][stride] pairs. */
RQ_INLINE void v_levels(const uint32_t *p, size_t dim_v, uint32_t units, const rq_kv_form form,
                        const rq_tables *t, int32_t *to, size_t stride)
{
    uint32_t words[8 * MAX_COLUMNS];
    v_words(p, dim_v, units, form, words);
    for (size_t o = 0; o < 8; o++)
        for (size_t e = 0; e < (size_t)8 * units; e += VL) {
            const uint32_t *w = words + o * MAX_COLUMNS + e;
            put_levels(vi_load(w + 8), vi_load(w), form, t, to + 4 * o * stride + e, stride);
        }
}

/* Q8_0: rows of words of four bytes to two rows of pairs each (0 2, 1 3), n columns of each. */
RQ_INLINE void byte_levels(const uint32_t *p, size_t step, size_t rows, size_t n, int32_t *to, size_t stride)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i += VL) {
            vi w = vi_load(p + r * step + i);
            vi_store(to + 2 * r * stride + i, vi_even(w));
            vi_store(to + (2 * r + 1) * stride + i, vi_odd(w));
        }
}

static void open_k(rq_kv_form form, const uint32_t *p, uint32_t size, const rq_tables *t, int32_t *to)
{
    switch (form) {
    case RQ_KV_C2:
        k_levels(p, size / 8, RQ_KV_C2, t, to);
        break;
    case RQ_KV_C3:
        k_levels(p, size / 8, RQ_KV_C3, t, to);
        break;
    case RQ_KV_C4:
        k_levels(p, size / 8, RQ_KV_C4, t, to);
        break;
    case RQ_KV_Q4_0:
        k_levels(p, size / 8, RQ_KV_Q4_0, t, to);
        break;
    default:
        byte_levels(p, KEYS, size / 4, KEYS, to, KEYS);
    }
}

/* A group of V whose physical words of one row are dim_v apart. */
static void open_v(rq_kv_form form, const uint32_t *p, uint32_t size, uint32_t dim_v, const rq_tables *t,
                   int32_t *to, size_t stride)
{
    switch (form) {
    case RQ_KV_C2:
        v_levels(p, dim_v, size / 8, RQ_KV_C2, t, to, stride);
        break;
    case RQ_KV_C3:
        v_levels(p, dim_v, size / 8, RQ_KV_C3, t, to, stride);
        break;
    case RQ_KV_C4:
        v_levels(p, dim_v, size / 8, RQ_KV_C4, t, to, stride);
        break;
    case RQ_KV_Q4_0:
        v_levels(p, dim_v, size / 8, RQ_KV_Q4_0, t, to, stride);
        break;
    default:
        byte_levels(p, dim_v, KEYS / 4, size, to, stride);
    }
}

/* Scales of a group of the page's tokens. */
static void open_scales(rq_kv_form form, const uint8_t *scales, float *to)
{
    const uint16_t *h = (const uint16_t *)(const void *)scales;
    for (int t = 0; t < KEYS; t += VL)
        vf_store(to + t, rq_kv_form_is_code(form) ? vf_code_scales(scales + t) : vf_load_f16(h + t));
}

/* ---- floats to int16 ------------------------------------------------------------------------------------- */

/* Brings n floats (a multiple of 8) to int16 by the largest; returns what 1 stands for. All zero: 0, and so it
 * is below 2^-100, where 32767 / x may be infinite; codes 0 and a scale of NaN where one is not finite. */
RQ_INLINE float reduce(const float *x, size_t n, bool bytes, int16_t *codes)
{
    const vi magnitude = vi_set(0x7fffffff);
    vi m = vi_set(0);
    size_t i = 0;
    for (; i + VL <= n; i += VL) m = vi_max(m, vi_and(vi_load(x + i), magnitude));
    int32_t lanes[VL], bits = 0;
    vi_store(lanes, m);
    for (int j = 0; j < VL; j++) bits = lanes[j] > bits ? lanes[j] : bits;
    for (; i < n; i++) {
        int32_t one;
        memcpy(&one, x + i, sizeof one);
        one &= 0x7fffffff;
        bits = one > bits ? one : bits;
    }
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    if (bits >= 0x7f800000 || largest < 0x1p-100f) {
        memset(codes, 0, n * sizeof *codes);
        return bits >= 0x7f800000 ? NAN : 0.0f;
    }
    float factor = 32767.0f / largest;
    for (i = 0; i < n; i += 8) pack_eight(x + i, factor, bytes, codes + i);
    return largest * (1.0f / 32767.0f);
}

static void attend_reduce(const float *q, uint32_t dim_k, const rq_attend_code *code, int16_t *codes,
                          float *scales)
{
    for (uint32_t i = 0; i < rq_kv_spans(code->form); i++) {
        rq_kv_span span = rq_kv_span_of(code->form, dim_k, i);
        uint32_t groups = rq_kv_groups(span.form, span.size);
        for (uint32_t g = 0; g < groups; g++) {
            uint32_t size = rq_kv_group_size(span.form, span.size, g);
            *scales++ = reduce(q, size, span.form == RQ_KV_Q8_0, codes) * code->span[i].unit;
            q += size;
            codes += size;
        }
    }
}

/* ---- products -------------------------------------------------------------------------------------------- */

/* Where a product goes: c[row][column] (+)= float(sum) * by[row] (* times[column]). */
typedef struct rq_target {
    float *c;
    size_t ldc;
    const float *by;
    size_t by_step;
    const float *times; /* NULL: 1 */
    bool add;
} rq_target;

/* One register of sums, of which n columns are wanted. */
RQ_INLINE void deliver(const rq_target *to, size_t row, size_t column, size_t n, vi sums)
{
    float *c = to->c + row * to->ldc + column;
    vf sum = vf_mul(vi_float(sums), vf_set(to->by[row * to->by_step]));
    if (to->times) sum = vf_mul(sum, vf_load(to->times + column));
    if (n >= VL)
        vf_store(c, to->add ? vf_add(vf_load(c), sum) : sum);
    else if (n > 0)
        vf_store_part(c, to->add ? vf_add(vf_load_part(c, n), sum) : sum, n);
}

/* m rows by w registers from `column` on, of which the first n columns are wanted; sum over pairs k of
 * a[row][k] b[k][column]. m and w are constants where this is inlined. */
RQ_INLINE void code_rows(const int32_t *a, size_t lda, const int32_t *b, size_t ldb, size_t n_pairs,
                         const rq_target *to, size_t row, size_t column, size_t n, const int m, const int w)
{
    vi acc[CODE_ROWS][64 / VL];
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < w; j++) acc[i][j] = vi_set(0);
    a += row * lda;
    b += column;
    for (size_t k = 0; k < n_pairs; k++) {
        vi y[64 / VL];
        UNROLL
        for (int j = 0; j < w; j++) {
            y[j] = vi_load(b + k * ldb + (size_t)j * VL);
            if (m > 1) RQ_PIN(y[j]);
        }
        UNROLL
        for (int i = 0; i < m; i++) {
            vi x = vi_set((uint32_t)a[(size_t)i * lda + k]);
            UNROLL
            for (int j = 0; j < w; j++) acc[i][j] = vi_dot(acc[i][j], x, y[j]);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < w; j++) {
        size_t at = (size_t)j * VL;
        deliver(to, row + (size_t)i, column + at, n > at ? n - at : 0, acc[i][j]);
    }
}

/* n_columns: a multiple of 8; b has rows for a multiple of 16. */
static void code_product(const int32_t *a, size_t lda, const int32_t *b, size_t ldb, size_t n_pairs,
                         const rq_target *to, size_t n_columns, size_t rows)
{
    /* few rows: more registers across, so that additions do not wait for each other */
    enum { ONE = 64 / VL < 8 ? 64 / VL : 8, MORE = 32 / VL < 4 ? 32 / VL : 4 };
    size_t column = 0;
    if (rows == 1)
        for (; column + (size_t)ONE * VL <= n_columns; column += (size_t)ONE * VL)
            code_rows(a, lda, b, ldb, n_pairs, to, 0, column, (size_t)ONE * VL, 1, ONE);
    if (rows == 2)
        for (; column + (size_t)MORE * VL <= n_columns; column += (size_t)MORE * VL)
            code_rows(a, lda, b, ldb, n_pairs, to, 0, column, (size_t)MORE * VL, 2, MORE);
    if (rows == 3 && CODE_ROWS >= 3)
        for (; column + (size_t)MORE * VL <= n_columns; column += (size_t)MORE * VL)
            code_rows(a, lda, b, ldb, n_pairs, to, 0, column, (size_t)MORE * VL, CODE_ROWS >= 3 ? 3 : 1,
                      MORE);
    /* all columns for a few rows, then the next rows: a group's levels stay in the nearest cache */
    size_t n_blocks = (rows + CODE_ROWS - 1) / CODE_ROWS, step = (rows + n_blocks - 1) / n_blocks;
    for (size_t row = 0, first = column; row < rows; row += step)
        for (column = first; column < n_columns; column += RQ_PANEL) {
            size_t n = n_columns - column < RQ_PANEL ? n_columns - column : RQ_PANEL;
            switch (rows - row < step ? rows - row : step) {
#define RQ_CASE(m)                                                                                           \
    case m:                                                                                                  \
        if ((m) <= (int)CODE_ROWS)                                                                           \
            code_rows(a, lda, b, ldb, n_pairs, to, row, column, n, (m) <= (int)CODE_ROWS ? (m) : 1, COLS);   \
        break;
                RQ_ROW_CASES(RQ_CASE)
#undef RQ_CASE
            }
        }
}

/* ---- few rows: levels stay in registers ------------------------------------------------------------------- */

enum { CODE_DIRECT_ROWS = RQ_CODE_DIRECT ? 4 : 0, ROOM = RQ_CODE_DIRECT ? 4 : 1 };

/* sums[i] += the four pairs of a word times a[i][0 .. 4). */
RQ_INLINE void add_word(vi *sums, const vi *pairs, const int32_t *a, size_t lda, const int m)
{
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < 4; j++)
        sums[i] = vi_dot(sums[i], vi_set((uint32_t)a[(size_t)i * lda + (size_t)j]), pairs[j]);
}

/* As k_levels and code_product together. */
RQ_INLINE void k_direct(const uint32_t *p, uint32_t units, const rq_kv_form form, const rq_tables *t,
                        const int32_t *a, size_t lda, const rq_target *to, const int m)
{
    for (size_t token = 0; token < KEYS; token += VL) {
        vi w[16], sums[ROOM], pairs[4];
        open_column(p + token, KEYS, units, form, w);
        UNROLL
        for (int i = 0; i < m; i++) sums[i] = vi_set(0);
        vi before = vi_shl(w[units - 1], 4);
        for (uint32_t r = 0; r < units; r++) {
            levels_of(w[r], before, form, t, pairs);
            add_word(sums, pairs, a + (size_t)4 * r, lda, m);
            before = w[r];
        }
        UNROLL
        for (int i = 0; i < m; i++) deliver(to, (size_t)i, token, VL, sums[i]);
    }
}

/* As v_levels and code_product together. */
RQ_INLINE void v_direct(const uint32_t *p, size_t dim_v, uint32_t units, const rq_kv_form form,
                        const rq_tables *t, const int32_t *a, const rq_target *to, const int m)
{
    uint32_t words[8 * MAX_COLUMNS];
    v_words(p, dim_v, units, form, words);
    for (size_t e = 0; e < (size_t)8 * units; e += VL) {
        vi sums[ROOM], pairs[4];
        UNROLL
        for (int i = 0; i < m; i++) sums[i] = vi_set(0);
        UNROLL
        for (size_t o = 0; o < 8; o++) {
            const uint32_t *w = words + o * MAX_COLUMNS + e;
            levels_of(vi_load(w + 8), vi_load(w), form, t, pairs);
            add_word(sums, pairs, a + 4 * o, KEYS / 2, m);
        }
        UNROLL
        for (int i = 0; i < m; i++) deliver(to, (size_t)i, e, (size_t)8 * units - e, sums[i]);
    }
}

/* The same for words of bytes: `rows` of them, n columns. */
RQ_INLINE void byte_direct(const uint32_t *p, size_t step, size_t rows, size_t n, const int32_t *a,
                           size_t lda, const rq_target *to, const int m)
{
    for (size_t column = 0; column < n; column += VL) {
        vi sums[ROOM];
        UNROLL
        for (int i = 0; i < m; i++) sums[i] = vi_set(0);
        for (size_t r = 0; r < rows; r++) {
            vi w = vi_load(p + r * step + column), even = vi_even(w), odd = vi_odd(w);
            UNROLL
            for (int i = 0; i < m; i++) {
                const int32_t *x = a + (size_t)i * lda + 2 * r;
                sums[i] = vi_dot(sums[i], vi_set((uint32_t)x[0]), even);
                sums[i] = vi_dot(sums[i], vi_set((uint32_t)x[1]), odd);
            }
        }
        UNROLL
        for (int i = 0; i < m; i++) deliver(to, (size_t)i, column, n - column, sums[i]);
    }
}

RQ_INLINE void direct_form(const uint32_t *p, size_t dim_v, uint32_t size, const rq_kv_form form,
                           const rq_tables *t, const int32_t *a, size_t lda, const rq_target *to, const int m)
{
    if (form == RQ_KV_Q8_0 && dim_v)
        byte_direct(p, dim_v, KEYS / 4, size, a, lda, to, m);
    else if (form == RQ_KV_Q8_0)
        byte_direct(p, KEYS, size / 4, KEYS, a, lda, to, m);
    else if (dim_v)
        v_direct(p, dim_v, size / 8, form, t, a, to, m);
    else
        k_direct(p, form == RQ_KV_Q4_0 ? 4 : 8, form, t, a, lda, to, m);
}

/* Whether a group of K or V goes this way: few rows, and a group of the usual size. */
static bool is_direct(rq_kv_form form, uint32_t size, size_t rows)
{
    return rows <= CODE_DIRECT_ROWS && size == (rq_kv_form_is_code(form) ? 64 : 32);
}

/* A group for which is_direct holds; dim_v 0: of K. */
static void direct_code(const uint32_t *p, size_t dim_v, uint32_t size, rq_kv_form form, const rq_tables *t,
                        const int32_t *a, size_t lda, rq_target to, size_t rows)
{
#if RQ_CODE_DIRECT
    while (rows) {
        size_t m = rows == 3 ? 2 : rows;
        switch (form * 8 + (int)m) {
#define RQ_CASE(f, m)                                                                                        \
    case (f)*8 + (m):                                                                                        \
        direct_form(p, dim_v, size, (f), t, a, lda, &to, (m));                                               \
        break;
#define RQ_ROWS(f) RQ_CASE(f, 1) RQ_CASE(f, 2) RQ_CASE(f, 4)
            RQ_ROWS(RQ_KV_C2)
            RQ_ROWS(RQ_KV_C3)
            RQ_ROWS(RQ_KV_C4)
            RQ_ROWS(RQ_KV_Q8_0)
            RQ_ROWS(RQ_KV_Q4_0)
#undef RQ_ROWS
#undef RQ_CASE
        }
        a += m * lda;
        to.c += m * to.ldc;
        to.by += m * to.by_step;
        rows -= m;
    }
#else
    (void)p, (void)dim_v, (void)size, (void)form, (void)t, (void)a, (void)lda, (void)to, (void)rows;
#endif
}

/* ---- a page ---------------------------------------------------------------------------------------------- */

static bool in_code(const rq_attend_code *c)
{
    return rq_kv_bits(c->form) != 0;
}

/* Parts of rq_attend_block.codes. */
enum { LEVEL_COLUMNS = 144 };
typedef struct rq_code_scratch {
    int32_t *levels;  /* [32 .. 64][64 .. 144] pairs */
    float *scales;    /* [64] */
    float *by;        /* [rows] */
    int16_t *weights; /* [rows][64] */
} rq_code_scratch;

static rq_code_scratch code_scratch(const rq_attend_block *b, size_t rows)
{
    rq_code_scratch s;
    s.levels = b->codes;
    s.scales = (float *)b->codes + KEYS / 2 * LEVEL_COLUMNS;
    s.by = s.scales + KEYS;
    s.weights = (int16_t *)(void *)(s.by + rows);
    return s;
}

static void fetch_ahead(const rq_attend_block *b, size_t i, size_t n);

/* A span of a block's codes, in element order. */
typedef struct rq_code_span {
    rq_kv_form form;
    uint32_t first, size, groups, first_group;
    const uint32_t *words;
    const uint8_t *scales;
    size_t scale_step; /* bytes from one group's scales to the next's */
    rq_tables tables;
    float unit;
} rq_code_span;

static rq_code_span code_span(const rq_attend_code *c, bool is_v, uint32_t d, uint32_t i)
{
    rq_kv_span span = rq_kv_span_of(c->form, d, i);
    rq_code_span s = {.form = span.form,
                      .first = span.first,
                      .size = span.size,
                      .groups = rq_kv_groups(span.form, span.size),
                      .first_group = rq_kv_span_groups(c->form, d, i),
                      .words = (const uint32_t *)c->words + rq_kv_span_words(c->form, is_v, d, i),
                      .scale_step = rq_kv_form_is_code(span.form) ? KEYS : 2 * KEYS,
                      .tables = tables_of(span.form, c->span[i].level),
                      .unit = c->span[i].unit};
    s.scales = (const uint8_t *)c->scales + s.first_group * s.scale_step;
    return s;
}

static void scores_of_codes(const rq_attend_block *b, size_t rows)
{
    rq_code_scratch scratch = code_scratch(b, rows);
    uint32_t all_groups = rq_kv_groups(b->code_k.form, b->dim_k);
    for (uint32_t i = 0; i < rq_kv_spans(b->code_k.form); i++) {
        rq_code_span s = code_span(&b->code_k, false, b->dim_k, i);
        const uint32_t *p = s.words;
        const int16_t *q = b->q_codes + s.first;
        for (uint32_t g = 0; g < s.groups; g++) {
            uint32_t size = rq_kv_group_size(s.form, s.size, g), group = s.first_group + g;
            const int32_t *codes = (const int32_t *)(const void *)q;
            fetch_ahead(b, group, 2 * (size_t)all_groups);
            open_scales(s.form, s.scales + g * s.scale_step, scratch.scales);
            rq_target to = {b->scores, KEYS, b->q_scales + group, all_groups, scratch.scales, group > 0};
            if (is_direct(s.form, size, rows)) {
                direct_code(p, 0, size, s.form, &s.tables, codes, b->dim_k / 2, to, rows);
            } else {
                open_k(s.form, p, size, &s.tables, scratch.levels);
                code_product(codes, b->dim_k / 2, scratch.levels, KEYS, size / 2, &to, KEYS, rows);
            }
            p += (size_t)(s.form == RQ_KV_Q8_0 ? size / 4 : rq_kv_words(s.form, size / 8)) * KEYS;
            q += size;
        }
    }
}

static void weigh_codes(const rq_attend_block *b, size_t rows)
{
    rq_code_scratch scratch = code_scratch(b, rows);
    const int32_t *weights = (const int32_t *)(const void *)scratch.weights;
    uint32_t all_groups = rq_kv_groups(b->code_v.form, b->dim_v);
    for (uint32_t i = 0; i < rq_kv_spans(b->code_v.form); i++) {
        rq_code_span s = code_span(&b->code_v, true, b->dim_v, i);
        for (uint32_t g = 0, first = 0; g < s.groups; g++) {
            uint32_t size = rq_kv_group_size(s.form, s.size, g);
            size_t stride = (size + RQ_PANEL - 1) / RQ_PANEL * RQ_PANEL;
            fetch_ahead(b, all_groups + s.first_group + g, 2 * (size_t)all_groups);
            open_scales(s.form, s.scales + g * s.scale_step, scratch.scales);
            for (size_t r = 0; r < rows; r++) {
                float w[KEYS];
                for (int t = 0; t < KEYS; t += VL)
                    vf_store(w + t, vf_mul(vf_load(b->scores + r * KEYS + t), vf_load(scratch.scales + t)));
                scratch.by[r] = reduce(w, KEYS, s.form == RQ_KV_Q8_0, scratch.weights + r * KEYS) * s.unit;
            }
            rq_target to = {b->out + s.first + first, b->pad_v, scratch.by, 1, NULL, true};
            if (is_direct(s.form, size, rows)) {
                direct_code(s.words + first, s.size, size, s.form, &s.tables, weights, KEYS / 2, to, rows);
            } else {
                open_v(s.form, s.words + first, size, s.size, &s.tables, scratch.levels, stride);
                code_product(weights, KEYS / 2, scratch.levels, stride, KEYS / 2, &to, size, rows);
            }
            first += size;
        }
    }
}
