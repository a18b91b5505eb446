/* chunk_impl.h - the gated delta rule over a few tokens at once: products of small matrices in place of passes over the
 * state. Included once per table, behind attend_impl.h, whose panel product it uses.
 *
 * With G_t the sum of the logarithms of decay up to token t (Yang, Kautz & Hatamizadeh 2024, section 3.3, in the form
 * that keeps the differences d_t instead of inverting the triangle; Yang et al. 2024, "Parallelizing linear
 * transformers with the delta rule", section 3):
 *     d_t = b_t (v_t - e^G_t S^T k_t - sum over j < t of e^(G_t - G_j) (k_t . k_j) d_j)
 *     y_t = scale (e^G_t S^T q_t + sum over j <= t of e^(G_t - G_j) (q_t . k_j) d_j)
 *     S'  = e^G_n S + sum over j of e^(G_n - G_j) k_j d_j^T
 * Only differences G_t - G_j with j <= t are raised: nothing overflows that the token form would not. */
#include "backends/cpu/vec/math_impl.h"
#include "backends/cpu/vec/vec.h"

/* Parts of the scratch, in floats; every one a multiple of 16. */
typedef struct chunk_parts {
    float *keys;    /* [n / 16][dim_k][16]: keys as columns */
    float *decayed; /* [dim_k][CHUNK]: keys as columns, times e^(G_n - G_j) */
    float *lower;   /* [CHUNK][CHUNK]: -b_t e^(G_t - G_j) k_t . k_j */
    float *seen;    /* [CHUNK][CHUNK]: scale e^(G_t - G_j) q_t . k_j, 0 above the diagonal */
    float *panel;   /* [dim_k][16] of the state */
    float *read;    /* [CHUNK][16] */
    float *d;       /* [CHUNK][16] */
} chunk_parts;

static chunk_parts chunk_parts_of(float *at, uint32_t dim_k)
{
    chunk_parts p;
    p.keys = at;
    p.decayed = p.keys + (size_t)dim_k * RQ_DELTA_CHUNK;
    p.lower = p.decayed + (size_t)dim_k * RQ_DELTA_CHUNK;
    p.seen = p.lower + RQ_DELTA_CHUNK * RQ_DELTA_CHUNK;
    p.panel = p.seen + RQ_DELTA_CHUNK * RQ_DELTA_CHUNK;
    p.read = p.panel + (size_t)dim_k * RQ_PANEL;
    p.d = p.read + RQ_DELTA_CHUNK * RQ_PANEL;
    return p;
}

/* c[m][16] = (add ? c : 0) + a[m][k] b[k][16], any m. */
static void chunk_product(const float *a, size_t lda, const float *b, float *c, size_t ldc, size_t n_k,
                          bool add, size_t m)
{
    for (size_t i = 0; i < m; i += ROWS)
        panel_product(a + i * lda, lda, b, c + i * ldc, ldc, n_k, add, m - i < ROWS ? m - i : ROWS);
}

/* Keys as columns: plain, and what is left of them at the chunk's end. */
static void chunk_keys(const rq_delta_chunk *c, const chunk_parts *p)
{
    float left[RQ_DELTA_CHUNK] = {0};
    for (uint32_t j = 0; j < c->n; j++) left[j] = (float)(c->log_decay[c->n - 1] - c->log_decay[j]);
    for (uint32_t j = 0; j < RQ_DELTA_CHUNK; j += VL) vf_store(left + j, vf_exp(vf_load(left + j)));
    for (uint32_t first = 0; first < RQ_DELTA_CHUNK; first += RQ_PANEL) {
        float *panel = p->keys + (size_t)first * c->dim_k;
        for (uint32_t j = 0; j < RQ_PANEL; j++) {
            const float *k = c->k + (first + j) * c->k_stride;
            for (uint32_t i = 0; i < c->dim_k; i++) panel[i * RQ_PANEL + j] = first + j < c->n ? k[i] : 0.0f;
        }
        for (uint32_t i = 0; i < c->dim_k; i++)
            for (uint32_t j = 0; j < RQ_PANEL; j += VL)
                vf_store(p->decayed + (size_t)i * RQ_DELTA_CHUNK + first + j,
                         vf_mul(vf_load(panel + i * RQ_PANEL + j), vf_load(left + first + j)));
    }
}

/* What the tokens of the chunk have to do with one another. */
static void chunk_triangles(const rq_delta_chunk *c, const chunk_parts *p)
{
    for (uint32_t first = 0; first < c->n; first += RQ_PANEL) { /* of the keys; rows above see none of them */
        const float *panel = p->keys + (size_t)first * c->dim_k;
        size_t at = (size_t)first * RQ_DELTA_CHUNK + first, rows = c->n - first;
        chunk_product(c->k + first * c->k_stride, c->k_stride, panel, p->lower + at, RQ_DELTA_CHUNK, c->dim_k,
                      false, rows);
        chunk_product(c->q + first * c->q_stride, c->q_stride, panel, p->seen + at, RQ_DELTA_CHUNK, c->dim_k,
                      false, rows);
    }
    for (uint32_t t = 0; t < c->n; t++) {
        float factor[RQ_DELTA_CHUNK];
        uint32_t end = t / RQ_PANEL * RQ_PANEL + RQ_PANEL;
        for (uint32_t j = 0; j < end; j++) /* beyond t: e^-1000, which is 0 */
            factor[j] = j <= t ? (float)(c->log_decay[t] - c->log_decay[j]) : -1000.0f;
        float *lower = p->lower + (size_t)t * RQ_DELTA_CHUNK, *seen = p->seen + (size_t)t * RQ_DELTA_CHUNK;
        vf write = vf_set(-c->write[t]), scale = vf_set(c->scale);
        for (uint32_t j = 0; j < end; j += VL) {
            vf e = vf_exp(vf_load(factor + j));
            vf_store(lower + j, vf_mul(vf_mul(write, e), vf_load(lower + j)));
            vf_store(seen + j, vf_mul(vf_mul(scale, e), vf_load(seen + j)));
        }
        for (uint32_t j = end; j < RQ_DELTA_CHUNK; j++) lower[j] = seen[j] = 0;
    }
}

/* d[t] for all tokens, a panel of columns; `d` holds b_t (v_t - e^G_t S^T k_t). */
static void chunk_solve(const rq_delta_chunk *c, const chunk_parts *p)
{
    for (uint32_t first = 0; first < c->n; first += ROWS) {
        uint32_t end = first + ROWS < c->n ? first + ROWS : c->n;
        const float *lower = p->lower + (size_t)first * RQ_DELTA_CHUNK;
        if (first)
            panel_product(lower, RQ_DELTA_CHUNK, p->d, p->d + first * RQ_PANEL, RQ_PANEL, first, true,
                          end - first);
        for (uint32_t t = first + 1; t < end; t++) {
            float *d = p->d + t * RQ_PANEL;
            lower += RQ_DELTA_CHUNK;
            for (int r = 0; r < COLS; r++) {
                vf sum = vf_load(d + r * VL);
                for (uint32_t j = first; j < t; j++)
                    sum = vf_fma(vf_set(lower[j]), vf_load(p->d + j * RQ_PANEL + r * VL), sum);
                vf_store(d + r * VL, sum);
            }
        }
    }
}

/* 16 columns of rows `from` apart, times f, to rows `to` apart. */
RQ_INLINE void chunk_scale(const float *x, size_t from, vf f, float *y, size_t to, uint32_t rows)
{
    for (uint32_t i = 0; i < rows; i++, x += from, y += to)
        for (int r = 0; r < COLS; r++) vf_store(y + r * VL, vf_mul(f, vf_load(x + r * VL)));
}

/* Columns [m, m + 16) of the state and of the results. */
static void chunk_panel(const rq_delta_chunk *c, const chunk_parts *p, const float *grown, size_t m)
{
    const size_t dim_v = c->dim_v, v_stride = c->v_stride, y_stride = c->y_stride;
    const uint32_t n = c->n, dim_k = c->dim_k;
    const float *v = c->v + m, *write = c->write;
    float *s = c->s + m, *read = p->read, *d = p->d;
    chunk_scale(s, dim_v, vf_set(1.0f), p->panel, RQ_PANEL, dim_k);
    chunk_product(c->k, c->k_stride, p->panel, read, RQ_PANEL, dim_k, false, n);
    for (uint32_t t = 0; t < n; t++)
        for (int r = 0; r < COLS; r++) {
            vf known = vf_mul(vf_set(grown[t]), vf_load(read + t * RQ_PANEL + r * VL));
            vf_store(d + t * RQ_PANEL + r * VL,
                     vf_mul(vf_set(write[t]), vf_sub(vf_load(v + t * v_stride + r * VL), known)));
        }
    chunk_solve(c, p);
    chunk_product(c->q, c->q_stride, p->panel, read, RQ_PANEL, dim_k, false, n);
    for (uint32_t t = 0; t < n; t++)
        chunk_scale(read + t * RQ_PANEL, 0, vf_set(c->scale * grown[t]), read + t * RQ_PANEL, 0, 1);
    for (uint32_t t = 0; t < n; t += ROWS) {
        uint32_t end = t + ROWS < n ? t + ROWS : n;
        panel_product(p->seen + (size_t)t * RQ_DELTA_CHUNK, RQ_DELTA_CHUNK, d, read + t * RQ_PANEL, RQ_PANEL,
                      end, true, end - t);
    }
    chunk_scale(read, RQ_PANEL, vf_set(1.0f), c->y + m, y_stride, n);
    chunk_scale(p->panel, RQ_PANEL, vf_set(grown[n - 1]), s, dim_v, dim_k);
    chunk_product(p->decayed, RQ_DELTA_CHUNK, d, s, dim_v, n, true, dim_k);
}

static void delta_chunk(const rq_delta_chunk *c)
{
    chunk_parts parts = chunk_parts_of(c->scratch, c->dim_k);
    float grown[RQ_DELTA_CHUNK] = {0};
    for (uint32_t t = 0; t < c->n; t++) grown[t] = (float)c->log_decay[t];
    for (uint32_t t = 0; t < RQ_DELTA_CHUNK; t += VL) vf_store(grown + t, vf_exp(vf_load(grown + t)));
    chunk_keys(c, &parts);
    chunk_triangles(c, &parts);
    for (size_t m = 0; m < c->dim_v; m += RQ_PANEL) chunk_panel(c, &parts, grown, m);
}
