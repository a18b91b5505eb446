/* vec.h - what the processor backend needs from an instruction set beside matrix products: operations on rows
 * of floats and the inner part of attention. One table per instruction set, made from the same sources
 * (pointwise_impl.h, attend_impl.h) over the wrappers of simd.h.
 *
 * Same bits: every function's result for an element or row depends on that element or row alone. */
#ifndef RQ_CPU_VEC_H
#define RQ_CPU_VEC_H

#include "backends/cache.h"
#include "backends/cpu/isa.h"
#include "backends/tape/tape.h"

#include <stddef.h>
#include <stdint.h>

/* Columns of a panel: the unit in which attention widens pages, on every instruction set. */
enum { RQ_PANEL = 16 };

/* K or V of one head of a coded page (backends/cache.h) and how it is read. */
typedef struct rq_attend_code {
    rq_kv_form form;               /* SAME, TRIP: the block of the exact page, as in an exact page */
    const void *words;             /* the other forms: */
    const void *scales;            /* of the page */
    struct {                       /* for each span of the form */
        const int8_t (*level)[16]; /* codec rows: level[low bit of the predecessor's code][code] */
        float unit;                /* what a level of 1 is worth where the scale is 1 */
    } span[RQ_KV_MAX_SPANS];
} rq_attend_code;

/* What does not change from page to page: form, levels and units (a codec's unit times its gain). */
rq_attend_code rq_attend_code_of(rq_kv_form form, bool is_v);

/* Bytes of rq_attend_block.codes: a group of K or V as pairs of int16, [64][144] at most (a group has fewer
 * than 128 elements), scales of the page's tokens, and a group's weights for every row. */
static inline uint64_t rq_attend_code_scratch(uint64_t rows)
{
    return 64 * 144 * 2 + 64 * 4 + rows * (64 * 2 + 4);
}

/* A block of queries of one KV head against one page of 64 keys. Row r belongs to query r / group. The state
 * (max, sum, out) is that of the online softmax inside one split. */
typedef struct rq_attend_block {
    uint32_t n_queries, group;    /* rows = n_queries * group */
    uint32_t dim_k, dim_v, pad_v; /* pad_v: dim_v rounded up to RQ_PANEL, row stride of `out` in floats */
    rq_type type_k, type_v;
    float softcap;
    const float *bias;             /* [rows], added to scores before the soft cap; NULL: nothing */
    const float *q;                /* [rows][dim_k], already multiplied by the attention scale */
    const void *k, *v;             /* the page's blocks of this head: [dim_k][64], [64][dim_v] */
    rq_attend_code code_k, code_v; /* form SAME: k and v it is */
    const int16_t *q_codes;        /* where K is in code: what attend_reduce makes of q, [rows][dim_k], */
    const float *q_scales;         /* [rows][rq_kv_groups(code_k.form, dim_k)] */
    const void *next;              /* the next page's block, to be prefetched, or NULL */
    uint32_t next_bytes;
    const uint8_t *lo, *hi; /* per query: visible keys [lo, hi) of this page; lo >= hi: none */
    float *max, *sum, *out; /* [rows], [rows], [rows][pad_v] */
    float *panel;           /* scratch: [max(dim_k, 64)][16] */
    float *scores;          /* scratch: [rows][64] */
    void *codes;            /* scratch for coded pages: rq_attend_code_scratch(rows) bytes, 64-byte aligned */
} rq_attend_block;

/* One token of one head of a delta rule: s, f32 [dim_k][dim_v], is read and updated. */
typedef struct rq_delta_token {
    float *s;
    const float *q, *k, *v;
    float *y;
    uint32_t dim_k, dim_v;
    float decay, write, scale; /* s *= decay; s += k write (v - s^T k)^T; y = scale s^T q */
} rq_delta_token;

/* Most tokens of one call, a multiple of RQ_PANEL. */
enum { RQ_DELTA_CHUNK = 32 };

/* Up to RQ_DELTA_CHUNK tokens of one head of a delta rule at once, to rounding what as many rq_delta_token give. Strides
 * are floats from token to token. */
typedef struct rq_delta_chunk {
    float *s; /* [dim_k][dim_v], read and updated */
    const float *q, *k, *v;
    float *y;
    size_t q_stride, k_stride, v_stride, y_stride;
    uint32_t n, dim_k, dim_v; /* dim_v: a multiple of RQ_PANEL */
    const double *log_decay;  /* [n]: of the product of all decays up to this token */
    const float *write;       /* [n] */
    float scale;
    float *scratch; /* rq_delta_scratch(dim_k) bytes, 64-byte aligned */
} rq_delta_chunk;

static inline uint64_t rq_delta_scratch(uint64_t dim_k)
{
    return 4 * (dim_k * (2 * RQ_DELTA_CHUNK + RQ_PANEL) + 2 * RQ_DELTA_CHUNK * (RQ_DELTA_CHUNK + RQ_PANEL));
}

typedef struct rq_vec {
    const char *name; /* as in rq_cpu_isa */

    /* y = x / sqrt(mean(x^2) + eps) * weight (weight may be NULL); y may be x. */
    void (*rms_norm)(const float *x, const float *weight, float *y, size_t n, float eps);
    void (*add)(const float *a, const float *b, float *y, size_t n);
    void (*mul)(const float *a, const float *b, float *y, size_t n);
    void (*scale)(const float *x, float factor, float *y, size_t n);
    void (*glu)(const float *gate, const float *up, float *y, size_t n, rq_act act);
    /* y = y + w x, with one rounding where the machine has a fused multiply-add. */
    void (*weigh_add)(const float *x, float w, float *y, size_t n);
    /* y = exp(x); see math_impl.h for range and error. */
    void (*exp)(const float *x, float *y, size_t n);
    /* Index of the largest, ties to the lower, NaN never wins (all NaN: 0); *max: that element, or -inf. */
    size_t (*argmax)(const float *x, size_t n, float *max);
    /* Rotates a head of d elements by the angles whose cos and sin are given; elements from n_rot on are
     * copied. y may be x. */
    void (*rope)(const float *x, const float *cos, const float *sin, float *y, uint32_t d, uint32_t n_rot,
                 rq_pairing pairing);
    void (*to_f16)(const float *x, uint16_t *y, size_t n); /* round to nearest even */

    /* y = x / max(|x|, eps) */
    void (*l2_norm)(const float *x, float *y, size_t n, float eps);
    /* y[i] = silu(sum over j ascending of x[j][i] * w[j * stride + i]), taps of them */
    void (*conv_silu)(const float *const *x, const float *w, size_t stride, uint32_t taps, float *y,
                      size_t n);
    void (*delta_token)(const rq_delta_token *token);
    void (*delta_chunk)(const rq_delta_chunk *chunk);

    /* A row of queries for keys in code: int16 codes, in the order in which the words of the form come apart,
     * and a scale for each of the form's groups, times the unit and the attention scale that q already has. Of
     * `code` form and units are read. */
    void (*attend_reduce)(const float *q, uint32_t dim_k, const rq_attend_code *code, int16_t *codes,
                          float *scales);
    /* Adds a page to the state of a block of queries. */
    void (*attend_page)(const rq_attend_block *block);
    /* state = merge(state, other): n rows with row strides in floats. A row whose `other` maximum is -inf saw
     * nothing and changes nothing; a row whose own maximum is -inf becomes `other`. */
    void (*attend_merge)(float *max, float *sum, float *out, size_t stride, const float *other_max,
                         const float *other_sum, const float *other_out, size_t other_stride, size_t n,
                         size_t dim_v);
    /* y = out / sum, zeros where nothing was seen. */
    void (*attend_finish)(const float *out, float sum, float *y, size_t dim_v);
} rq_vec;

/* The table that goes with an instruction set; never NULL (the plain one where there is no better). */
const rq_vec *rq_vec_of(const rq_cpu_isa *isa);

extern const rq_vec rq_vec_scalar, rq_vec_avx2, rq_vec_avx512, rq_vec_neon; /* those this build contains */

#endif
