/* attend_impl.h - attention over one page of 64 keys, over the registers of simd.h. Included once per table.
 * What follows is about keys and values in exact form; for codes see coded_impl.h.
 *
 * Both products (scores = q K, out += p V) are sums over k of a[row][k] * b[k][column] with one accumulator per
 * row and column, k ascending, one vf_fma per term. There are two ways through them:
 *   direct  one to three rows at a time straight from the page (f16 is widened in the register); reads the page
 *           in its order, for generation, where memory is what takes time;
 *   panels  sixteen columns at a time are widened once into a panel that stays in the nearest cache, then ROWS
 *           rows at a time; for prompts and for many query heads on one KV head.
 * Every accumulator goes through the same operations in the same order either way, so a query's bits do not
 * depend on the path, on the block it is in or on the block's other rows. A row never multiplies a key it does
 * not see (that could be NaN or infinite): where rows of one block see different keys, the keys they have in
 * common go through the block kernel and the rest row by row, in ascending order.
 */
#include "backends/cpu/vec/math_impl.h"
#include "backends/cpu/vec/vec.h"

#include <math.h>
#include <stdbool.h>

/* Rows up to which the direct path is taken. */
enum { DIRECT_ROWS = 4, KEYS = 64 };

#if defined(RQ_COMPACT) /* loops as they stand: unrolled ones take minutes under sanitizers and emulation */
#define UNROLL
#elif defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL _Pragma("unroll")
#endif

/* A case for every number of rows that a micro-kernel may take: in each it is a constant. */
#define RQ_ROW_CASES(CASE)                                                                                   \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)

#include "backends/cpu/vec/coded_impl.h"

/* ---- panels ---------------------------------------------------------------------------------------------- */

/* c[m][16] = (add ? c : 0) + sum over k of a[m][k] b[k][16]; m is a constant where this is inlined. */
RQ_INLINE void panel_rows(const float *a, size_t lda, const float *b, float *c, size_t ldc, size_t n_k,
                          bool add, const int m)
{
    vf acc[ROWS][COLS];
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < COLS; j++) acc[i][j] = add ? vf_load(c + (size_t)i * ldc + j * VL) : vf_set(0.0f);
    for (size_t k = 0; k < n_k; k++) {
        vf column[COLS];
        UNROLL
        for (int j = 0; j < COLS; j++) column[j] = vf_load(b + k * RQ_PANEL + j * VL);
        UNROLL
        for (int i = 0; i < m; i++) {
            vf x = vf_set(a[(size_t)i * lda + k]);
            UNROLL
            for (int j = 0; j < COLS; j++) acc[i][j] = vf_fma(x, column[j], acc[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < COLS; j++) vf_store(c + (size_t)i * ldc + j * VL, acc[i][j]);
}

static void panel_product(const float *a, size_t lda, const float *b, float *c, size_t ldc, size_t n_k,
                          bool add, size_t m)
{
    switch (m) {
#define RQ_CASE(n)                                                                                           \
    case n:                                                                                                  \
        if ((n) <= (int)ROWS) panel_rows(a, lda, b, c, ldc, n_k, add, (n) <= (int)ROWS ? (n) : 1);           \
        break;
        RQ_ROW_CASES(RQ_CASE)
#undef RQ_CASE
    }
}

RQ_INLINE vf load_column(const void *p, size_t i, const rq_type type)
{
    return type == RQ_TYPE_F16    ? vf_load_f16((const uint16_t *)p + i)
           : type == RQ_TYPE_BF16 ? vf_load_bf16((const uint16_t *)p + i)
                                  : vf_load((const float *)p + i);
}

RQ_INLINE float load_one(const void *p, size_t i, const rq_type type)
{
    return type == RQ_TYPE_F16    ? rq_half_to_f32(((const uint16_t *)p)[i])
           : type == RQ_TYPE_BF16 ? rq_bf16_one(((const uint16_t *)p)[i])
                                  : ((const float *)p)[i];
}

/* Rows [r0, r1) of columns [column, column + 16) of src [..][n] to the same rows of dst [..][16]; columns past n
 * become zero. */
RQ_INLINE void pack(const void *src, size_t n, size_t column, size_t r0, size_t r1, float *dst,
                    const rq_type type)
{
    if (column + RQ_PANEL <= n) {
        for (size_t r = r0; r < r1; r++) UNROLL
        for (int j = 0; j < COLS; j++)
            vf_store(dst + r * RQ_PANEL + j * VL, load_column(src, r * n + column + (size_t)j * VL, type));
        return;
    }
    for (size_t r = r0; r < r1; r++)
        for (size_t j = 0; j < RQ_PANEL; j++)
            dst[r * RQ_PANEL + j] = column + j < n ? load_one(src, r * n + column + j, type) : 0.0f;
}

static void pack_panel(const void *src, size_t n, size_t column, size_t r0, size_t r1, float *dst,
                       rq_type type)
{
    if (type == RQ_TYPE_F16)
        pack(src, n, column, r0, r1, dst, RQ_TYPE_F16);
    else if (type == RQ_TYPE_BF16)
        pack(src, n, column, r0, r1, dst, RQ_TYPE_BF16);
    else
        pack(src, n, column, r0, r1, dst, RQ_TYPE_F32);
}

/* ---- direct ---------------------------------------------------------------------------------------------- */

/* c[m][w VL] += sum over k in [k0, k1) of a[m][k] b[k][w VL], b with rows of ldb elements; m, w constants. */
RQ_INLINE void direct_rows(const float *a, size_t lda, const void *b, size_t ldb, size_t column, float *c,
                           size_t ldc, size_t k0, size_t k1, const rq_type type, const int m, const int w)
{
    vf acc[3][KEYS / VL];
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < w; j++) acc[i][j] = vf_load(c + (size_t)i * ldc + column + (size_t)j * VL);
    for (size_t k = k0; k < k1; k++) {
        vf x[3];
        UNROLL
        for (int i = 0; i < m; i++) x[i] = vf_set(a[(size_t)i * lda + k]);
        UNROLL
        for (int j = 0; j < w; j++) {
            vf y = load_column(b, k * ldb + column + (size_t)j * VL, type);
            UNROLL
            for (int i = 0; i < m; i++) acc[i][j] = vf_fma(x[i], y, acc[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) UNROLL
    for (int j = 0; j < w; j++) vf_store(c + (size_t)i * ldc + column + (size_t)j * VL, acc[i][j]);
}

/* Columns [n0, n1) (multiples of 8) for m rows. */
RQ_INLINE void direct_columns(const float *a, size_t lda, const void *b, size_t ldb, float *c, size_t ldc,
                              size_t k0, size_t k1, size_t n0, size_t n1, const rq_type type, const int m)
{
    /* Registers: m * wide accumulators; eight or more hide the latency of the multiply-add. */
    enum { ONE = 64 / VL < 8 ? 64 / VL : 8, MORE = 32 / VL < 4 ? 32 / VL : 4 };
    const int wide = m == 1 ? ONE : MORE;
    size_t n = n0;
    for (; n + (size_t)wide * VL <= n1; n += (size_t)wide * VL)
        direct_rows(a, lda, b, ldb, n, c, ldc, k0, k1, type, m, wide);
    for (; n + VL <= n1; n += VL) direct_rows(a, lda, b, ldb, n, c, ldc, k0, k1, type, m, 1);
    if (n < n1) /* half a register: 16 lanes and a head size that is an odd multiple of 8 */
        for (int i = 0; i < m; i++) {
            float *row = c + (size_t)i * ldc + n;
            vf acc = vf_load_part(row, n1 - n);
            for (size_t k = k0; k < k1; k++) {
                float part[VL] = {0};
                for (size_t j = 0; j < n1 - n; j++) part[j] = load_one(b, k * ldb + n + j, type);
                acc = vf_fma(vf_set(a[(size_t)i * lda + k]), vf_load(part), acc);
            }
            vf_store_part(row, acc, n1 - n);
        }
}

RQ_INLINE void direct_any(const float *a, size_t lda, const void *b, size_t ldb, float *c, size_t ldc,
                          size_t k0, size_t k1, size_t n0, size_t n1, size_t rows, const rq_type type)
{
    while (rows) {
        size_t m = rows == 4 ? 2 : rows < 3 ? rows : 3;
        if (m == 1) direct_columns(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, type, 1);
        if (m == 2) direct_columns(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, type, 2);
        if (m == 3) direct_columns(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, type, 3);
        a += m * lda;
        c += m * ldc;
        rows -= m;
    }
}

static void direct_product(const float *a, size_t lda, const void *b, size_t ldb, float *c, size_t ldc,
                           size_t k0, size_t k1, size_t n0, size_t n1, size_t rows, rq_type type)
{
    if (type == RQ_TYPE_F16)
        direct_any(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, rows, RQ_TYPE_F16);
    else if (type == RQ_TYPE_BF16)
        direct_any(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, rows, RQ_TYPE_BF16);
    else
        direct_any(a, lda, b, ldb, c, ldc, k0, k1, n0, n1, rows, RQ_TYPE_F32);
}

/* ---- online softmax -------------------------------------------------------------------------------------- */

/* Turns a row's scores into weights p = exp(s - max) and rescales its state to the new maximum. */
static void soften(float *s, size_t lo, size_t hi, float softcap, float bias, float *max, float *sum,
                   float *out, size_t n_out)
{
    if (softcap > 0) {
        vf cap = vf_set(softcap), inverse = vf_set(1.0f / softcap), shift = vf_set(bias);
        for (int j = 0; j < KEYS; j += VL)
            vf_store(s + j, vf_mul(cap, vf_tanh(vf_mul(vf_add(vf_load(s + j), shift), inverse))));
    }
    for (size_t j = 0; j < lo; j++) s[j] = -INFINITY;
    for (size_t j = hi; j < KEYS; j++) s[j] = -INFINITY;
    vf largest = vf_set(-INFINITY);
    for (int j = 0; j < KEYS; j += VL) largest = vf_max(vf_load(s + j), largest);
    float old = *max, m = vf_largest(largest);
    m = m > old ? m : old;
    if (m == -INFINITY) { /* infinitely small scores only */
        memset(s, 0, KEYS * sizeof *s);
        return;
    }
    vf shift = vf_set(m), total = vf_set(0.0f);
    for (int j = 0; j < KEYS; j += VL) {
        vf p = vf_exp(vf_sub(vf_load(s + j), shift));
        vf_store(s + j, p);
        total = vf_add(total, p);
    }
    if (m != old) {
        vf factor = vf_exp(vf_set(old - m));
        float first[VL];
        vf_store(first, factor);
        for (size_t i = 0; i < n_out; i += VL) vf_store(out + i, vf_mul(vf_load(out + i), factor));
        *sum *= first[0];
    }
    *sum += vf_sum(total);
    *max = m;
}

/* ---- a page ---------------------------------------------------------------------------------------------- */

/* Prefetches part `i` of `n` of the next page. */
static void fetch_ahead(const rq_attend_block *b, size_t i, size_t n)
{
    if (!b->next) return;
    size_t lines = b->next_bytes / 64, from = lines * i / n, to = lines * (i + 1) / n;
    for (size_t l = from; l < to; l++) vf_prefetch((const char *)b->next + l * 64);
}

static void soften_rows(const rq_attend_block *b)
{
    for (uint32_t i = 0; i < b->n_queries; i++) {
        if (b->lo[i] >= b->hi[i]) continue;
        for (uint32_t r = i * b->group; r < (i + 1) * b->group; r++)
            soften(b->scores + (size_t)r * KEYS, b->lo[i], b->hi[i], b->softcap, b->bias ? b->bias[r] : 0.0f,
                   b->max + r, b->sum + r, b->out + (size_t)r * b->pad_v, b->pad_v);
    }
}

/* Steps of the direct path: rows of the page passed over before the next row group or columns. */
enum { STEPS = 32 };

static void scores_direct(const rq_attend_block *b, size_t lo, size_t hi, size_t rows)
{
    size_t n0 = lo & ~(size_t)15, n1 = (hi + 15) & ~(size_t)15;
    memset(b->scores, 0, rows * KEYS * sizeof *b->scores);
    size_t parts = (b->dim_k + STEPS - 1) / STEPS;
    for (size_t d = 0; d < b->dim_k; d += STEPS) {
        size_t end = d + STEPS < b->dim_k ? d + STEPS : b->dim_k;
        fetch_ahead(b, d / STEPS, parts + 2);
        direct_product(b->q, b->dim_k, b->k, KEYS, b->scores, KEYS, d, end, n0, n1, rows, b->type_k);
    }
}

static void weigh_direct(const rq_attend_block *b)
{
    size_t parts = (b->dim_k + STEPS - 1) / STEPS;
    for (size_t k = 0; k < KEYS; k += STEPS) {
        fetch_ahead(b, parts + k / STEPS, parts + 2);
        for (uint32_t i = 0; i < b->n_queries; i++) {
            size_t from = b->lo[i] > k ? b->lo[i] : k, to = b->hi[i] < k + STEPS ? b->hi[i] : k + STEPS;
            size_t r = (size_t)i * b->group;
            if (from < to)
                direct_product(b->scores + r * KEYS, KEYS, b->v, b->dim_v, b->out + r * b->pad_v, b->pad_v,
                               from, to, 0, b->dim_v, b->group, b->type_v);
        }
    }
}

/* out[rows r, r + m) += p V for one panel of V. */
static void weigh_panel(const rq_attend_block *b, size_t panel, size_t r, size_t m)
{
    const float *v = b->panel;
    float *out = b->out + r * b->pad_v + panel * RQ_PANEL;
    const float *p = b->scores + r * KEYS;
    size_t first = r / b->group, last = (r + m - 1) / b->group, lo = 0, hi = KEYS;
    for (size_t i = first; i <= last; i++) {
        lo = b->lo[i] > lo ? b->lo[i] : lo;
        hi = b->hi[i] < hi ? b->hi[i] : hi;
    }
    bool common = lo < hi;
    if (!common) lo = hi = KEYS; /* all keys count as before the common ones */
    for (size_t j = 0; j < m; j++) {
        size_t i = (r + j) / b->group, from = b->lo[i], to = b->hi[i] < lo ? b->hi[i] : lo;
        if (from < to)
            panel_product(p + j * KEYS + from, KEYS, v + from * RQ_PANEL, out + j * b->pad_v, b->pad_v,
                          to - from, true, 1);
    }
    if (!common) return;
    panel_product(p + lo, KEYS, v + lo * RQ_PANEL, out, b->pad_v, hi - lo, true, m);
    for (size_t j = 0; j < m; j++) {
        size_t i = (r + j) / b->group;
        if (hi < b->hi[i])
            panel_product(p + j * KEYS + hi, KEYS, v + hi * RQ_PANEL, out + j * b->pad_v, b->pad_v,
                          b->hi[i] - hi, true, 1);
    }
}

/* Rows of a panel kernel at a time: blocks of nearly the same size, because one or two rows alone would wait
 * for their own additions. */
static size_t even_step(size_t rows)
{
    size_t n_blocks = (rows + ROWS - 1) / ROWS;
    return (rows + n_blocks - 1) / n_blocks;
}

static void scores_panels(const rq_attend_block *b, size_t lo, size_t hi, size_t rows)
{
    size_t step = even_step(rows);
    for (size_t panel = lo / RQ_PANEL; panel * RQ_PANEL < hi; panel++) {
        pack_panel(b->k, KEYS, panel * RQ_PANEL, 0, b->dim_k, b->panel, b->type_k);
        for (size_t r = 0; r < rows; r += step)
            panel_product(b->q + r * b->dim_k, b->dim_k, b->panel, b->scores + r * KEYS + panel * RQ_PANEL,
                          KEYS, b->dim_k, false, rows - r < step ? rows - r : step);
    }
    fetch_ahead(b, 0, 2);
}

static void weigh_panels(const rq_attend_block *b, size_t lo, size_t hi, size_t rows)
{
    size_t step = even_step(rows);
    fetch_ahead(b, 1, 2);
    for (size_t panel = 0; panel * RQ_PANEL < b->pad_v; panel++) {
        pack_panel(b->v, b->dim_v, panel * RQ_PANEL, lo, hi, b->panel, b->type_v);
        for (size_t r = 0; r < rows; r += step) weigh_panel(b, panel, r, rows - r < step ? rows - r : step);
    }
}

static void attend_visible(const rq_attend_block *b)
{
    size_t lo = KEYS, hi = 0, rows = (size_t)b->n_queries * b->group;
    for (uint32_t i = 0; i < b->n_queries; i++) {
        if (b->lo[i] >= b->hi[i]) continue;
        lo = b->lo[i] < lo ? b->lo[i] : lo;
        hi = b->hi[i] > hi ? b->hi[i] : hi;
    }
    if (lo >= hi) return;
    if (in_code(&b->code_k)) {
        scores_of_codes(b, rows);
    } else if (rows <= DIRECT_ROWS) {
        scores_direct(b, lo, hi, rows);
    } else {
        scores_panels(b, lo, hi, rows);
    }
    soften_rows(b);
    if (in_code(&b->code_v)) {
        weigh_codes(b, rows);
    } else if (rows <= DIRECT_ROWS) {
        weigh_direct(b);
    } else {
        weigh_panels(b, lo, hi, rows);
    }
}

/* Products with codes pass over whole rows, so queries that see nothing of the page must not be among them. */
static void attend_page(const rq_attend_block *b)
{
    if (!in_code(&b->code_k) && !in_code(&b->code_v)) {
        attend_visible(b);
        return;
    }
    for (uint32_t i = 0, end; i < b->n_queries; i = end + 1) {
        for (end = i; end < b->n_queries && b->lo[end] < b->hi[end]; end++) continue;
        if (end == i) continue;
        rq_attend_block part = *b;
        size_t row = (size_t)i * b->group;
        part.n_queries = end - i;
        part.lo += i;
        part.hi += i;
        part.q += row * b->dim_k;
        if (b->bias) part.bias += row;
        if (b->q_codes) {
            part.q_codes += row * b->dim_k;
            part.q_scales += row * rq_kv_groups(b->code_k.form, b->dim_k);
        }
        part.max += row;
        part.sum += row;
        part.out += row * b->pad_v;
        attend_visible(&part);
    }
}

/* ---- splits ---------------------------------------------------------------------------------------------- */

static void attend_merge(float *max, float *sum, float *out, size_t stride, const float *other_max,
                         const float *other_sum, const float *other_out, size_t other_stride, size_t n,
                         size_t dim_v)
{
    for (size_t r = 0; r < n; r++, out += stride, other_out += other_stride) {
        if (other_max[r] == -INFINITY) continue;
        if (max[r] == -INFINITY) {
            max[r] = other_max[r];
            sum[r] = other_sum[r];
            memcpy(out, other_out, dim_v * sizeof *out);
            continue;
        }
        float m = max[r] > other_max[r] ? max[r] : other_max[r];
        vf a = vf_exp(vf_set(max[r] - m)), b = vf_exp(vf_set(other_max[r] - m));
        float af[VL], bf[VL];
        vf_store(af, a);
        vf_store(bf, b);
        size_t i = 0;
        for (; i + VL <= dim_v; i += VL)
            vf_store(out + i, vf_fma(vf_load(other_out + i), b, vf_mul(vf_load(out + i), a)));
        if (i < dim_v)
            vf_store_part(out + i,
                          vf_fma(vf_load_part(other_out + i, dim_v - i), b,
                                 vf_mul(vf_load_part(out + i, dim_v - i), a)),
                          dim_v - i);
        sum[r] = sum[r] * af[0] + other_sum[r] * bf[0];
        max[r] = m;
    }
}

static void attend_finish(const float *out, float sum, float *y, size_t dim_v)
{
    float f = sum == 0 ? 0.0f : 1.0f / sum;
    for (size_t i = 0; i < dim_v; i++) y[i] = out[i] * f;
}
