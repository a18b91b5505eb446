/* tape.h - a forward pass as data.
 *
 * A model family appends operations to a tape; the tape is fused, planned, split into segments and compiled
 * by backends. A tape is made for one token bucket T: every extent on it is a number. Values (operands) are
 * typed views of memory in one of six spaces; operations read and write values. Errors stick to the tape:
 * builders return reference 0 once something failed and rq_tape_check reports the first failure. */
#ifndef RQ_TAPE_H
#define RQ_TAPE_H

#include "backends/base/status.h"
#include "backends/cache.h"
#include "backends/formats/rotation.h"
#include "backends/formats/types.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum rq_space {
    RQ_SPACE_NONE,
    RQ_SPACE_WEIGHT, /* index: entry of the weight table */
    RQ_SPACE_ACT,    /* arena; index: the value that owns the memory */
    RQ_SPACE_CACHE,  /* index: group; `layer`: layer in the group */
    RQ_SPACE_STATE,  /* index: state group; `layer` as above */
    RQ_SPACE_STEP,   /* the step buffer, read only */
    RQ_SPACE_PERSIST /* index: rq_persist; survives between programs */
} rq_space;

/* Memory that survives between programs of an executor. */
typedef enum rq_persist {
    RQ_PERSIST_HIDDEN,  /* f32 [n_embd, max_tokens]: trunk rows after the final norm */
    RQ_PERSIST_LOGITS,  /* f32 [n_vocab, RQ_HEAD_ROWS] */
    RQ_PERSIST_SAMPLED, /* i32 [n_seqs]: last arg-max per slot */
    RQ_PERSIST_CAPTURE, /* f32 [capture_floats, max_tokens]: what measurements read after a step; may be absent */
    RQ_PERSIST_TRAIL, /* f32 [n_embd, trail rows]: hidden rows for what predicts further on (exec.h); may be absent */
    RQ_PERSIST_COUNT
} rq_persist;

typedef uint32_t rq_ref; /* index into values; 0 is "none" */

typedef struct rq_value {
    rq_space space;
    rq_type type;
    uint32_t ne[4];     /* extents, ne[0] contiguous; unused ones are 1. Tokens are the last used extent */
    uint64_t stride[4]; /* bytes between neighbours; stride[0] = block bytes of the type */
    uint32_t index, layer;
    uint64_t offset;  /* bytes from the owner's start (views) */
    const char *name; /* for people: "blk.3.q"; static or owned by the tape */
} rq_value;

typedef enum rq_act { RQ_ACT_SILU, RQ_ACT_GELU_TANH, RQ_ACT_SIGMOID } rq_act;
typedef enum rq_pairing { RQ_ROPE_NORM /* (2i, 2i+1) */, RQ_ROPE_NEOX /* (i, i + n_rot/2) */ } rq_pairing;

/* The catalogue itself (name, operands, formula, tolerance of each kind) is ops.h. */
typedef enum rq_op_kind {
    RQ_OP_NONE,
    /* primitives */
    RQ_OP_EMBED,
    RQ_OP_RMS_NORM,
    RQ_OP_L2_NORM,
    RQ_OP_MATMUL,
    RQ_OP_ADD,
    RQ_OP_MUL,
    RQ_OP_SCALE,
    RQ_OP_SOFTCAP,
    RQ_OP_GLU,
    RQ_OP_ROPE,
    RQ_OP_ROTATE,
    RQ_OP_KV_WRITE,
    RQ_OP_KV_ENCODE,
    RQ_OP_ATTEND,
    RQ_OP_SHORT_CONV,
    RQ_OP_DELTA_RULE,
    RQ_OP_ROUTE,
    RQ_OP_GROUP,
    RQ_OP_MATMUL_EXPERTS,
    RQ_OP_COMBINE,
    RQ_OP_COPY,
    RQ_OP_SELECT_ROWS,
    RQ_OP_ARGMAX,
    /* fused: a list of primitives the fuser replaced; see fuse.h */
    RQ_OP_FUSED_FIRST,
    RQ_OP_PRODUCTS = RQ_OP_FUSED_FIRST, /* [rms_norm,] 1-4 products of one x, [an add behind each] */
    RQ_OP_GLU_PRODUCTS,                 /* rms_norm, gate and up product, glu; also by expert */
    RQ_OP_QKV_WRITE,                    /* [norms,] rope of q and k, [rotate q, k, v,] kv_write */
    RQ_OP_ATTEND_ROTATE,                /* attend, [rotate back,] [sigmoid gate] */
    RQ_OP_COMBINE_ADD,                  /* combine, [add a gated row,] add */
    RQ_OP_NORM_JOIN,                    /* rms_norm, then add or glu with something else */
    RQ_OP_COUNT
} rq_op_kind;

enum { RQ_OP_MAX_IN = 14, RQ_OP_MAX_OUT = 4, RQ_PRODUCTS_MAX = 4 };

typedef struct rq_op {
    rq_op_kind kind;
    uint8_t n_in, n_out;
    rq_ref in[RQ_OP_MAX_IN], out[RQ_OP_MAX_OUT];
    union {
        struct {
            float eps;
        } norm;
        struct {
            float factor;
        } scale;
        struct {
            float cap;
        } softcap;
        struct {
            rq_act act;
        } glu;
        struct {
            uint32_t n_rot;
            rq_pairing pairing;
            float magnitude;
        } rope;
        struct {
            uint8_t n_blocks;
            bool inverse;
            rq_rotation_block blocks[RQ_ROTATION_BLOCKS];
        } rotate;
        struct {
            float scale, softcap;
        } attend;
        struct {
            uint32_t n_used;
            float scale;
        } route; /* softmax over all, top-n, renormalised, times scale */
        struct {
            uint32_t n_expert;
        } group;
        struct {
            float scale;
            bool tiled; /* value head j has the key head j mod H_k, else j / (H_v / H_k) */
        } delta;
        struct {
            float eps;
            rq_act act;
            bool normed, v_normed, glu;
            uint32_t n_rot;
            rq_pairing pairing;
            float magnitude;
        } fused;
    } p;
    uint32_t prim_first, prim_count; /* fused: its primitives in tape->prims */
    uint32_t layer;                  /* model layer, for placement and profiles; UINT32_MAX: none */
} rq_op;

typedef struct rq_tape {
    uint32_t bucket; /* T (trunk) or rows (head) */
    rq_value *values;
    uint32_t n_values, cap_values;
    rq_op *ops;
    uint32_t n_ops, cap_ops;
    rq_op *prims;
    uint32_t n_prims, cap_prims;
    uint32_t layer;                          /* given to the operations appended now */
    uint32_t persist_rows[RQ_PERSIST_COUNT]; /* set by the executor before a family writes the tape */
    const rq_cache_group *groups;            /* the same; borrowed, NULL: nobody knows yet */
    uint32_t n_groups;
    rq_status status;
    rq_error error;
} rq_tape;

void rq_tape_init(rq_tape *tape, uint32_t bucket);
void rq_tape_free(rq_tape *tape);
rq_status rq_tape_check(const rq_tape *tape, rq_error *err);

/* ---- values -------------------------------------------------------------------------------------------- */

rq_ref rq_tape_weight(rq_tape *tape, uint32_t index, rq_type type, const uint32_t ne[4], const char *name);
rq_ref rq_tape_cache(rq_tape *tape, uint32_t group, uint32_t layer);
rq_ref rq_tape_state(rq_tape *tape, uint32_t group, uint32_t layer);
/* [ne0, ne1]; ne1 is the number of rows there are: tape->persist_rows[which]. */
rq_ref rq_tape_persist(rq_tape *tape, rq_persist which, rq_type type, uint32_t ne0, uint32_t ne1);
/* A new activation, contiguous. */
rq_ref rq_tape_act(rq_tape *tape, rq_type type, uint32_t ne0, uint32_t ne1, uint32_t ne2, uint32_t ne3);
/* The same memory seen as [ne0, ne1, ne2] with the given strides in elements of ne1 and ne2, `first` elements
 * in. */
rq_ref rq_tape_view(rq_tape *tape, rq_ref x, uint64_t first, uint32_t ne0, uint32_t ne1, uint64_t stride1,
                    uint32_t ne2, uint64_t stride2);

/* ---- operations: append and return the (first) result -------------------------------------------------- */
/* Shapes are [contiguous, ..., tokens]; T = tape->bucket. Formulas are in ops.h. */

rq_ref rq_op_embed(rq_tape *t, rq_ref table);                          /* table [n, vocab] -> f32 [n, T] */
rq_ref rq_op_rms_norm(rq_tape *t, rq_ref x, rq_ref weight, float eps); /* rows of ne0; weight [ne0] or 0 */
rq_ref rq_op_l2_norm(rq_tape *t, rq_ref x, float eps);                 /* rows of ne0 */
rq_ref rq_op_matmul(rq_tape *t, rq_ref w, rq_ref x); /* w [n_in, n_out], x [n_in, T] -> [n_out, T] */
rq_ref rq_op_add(rq_tape *t, rq_ref a, rq_ref b);    /* b as a, or one row for all of a's */
rq_ref rq_op_mul(rq_tape *t, rq_ref a, rq_ref b);    /* same */
rq_ref rq_op_scale(rq_tape *t, rq_ref x, float factor);
rq_ref rq_op_softcap(rq_tape *t, rq_ref x, float cap); /* cap > 0 */
/* act(gate) * up; a gate with rows of one element gives it to the whole row of `up` */
rq_ref rq_op_glu(rq_tape *t, rq_ref gate, rq_ref up, rq_act act);
/* x [d, heads, T]; inv_freq f32 weight [n_rot/2], radians per position, scaling and YaRN folded in; magnitude
 * multiplies cos and sin. Positions come from the step. */
rq_ref rq_op_rope(rq_tape *t, rq_ref x, rq_ref inv_freq, uint32_t n_rot, rq_pairing pairing, float magnitude);
/* x [d, H, T]; data f32 weight [n_floats, 1 or Hd], 0 where there are no blocks; mean, lambda f32 weights
 * [d, 1 or Hd] or 0. The blocks (of a rq_rotation) cover d in ascending order. */
rq_ref rq_op_rotate(rq_tape *t, rq_ref x, rq_ref data, rq_ref mean, rq_ref lambda,
                    const rq_rotation_block *blocks, uint32_t n_blocks, bool inverse);
void rq_op_kv_write(rq_tape *t, rq_ref cache, rq_ref k, rq_ref v); /* k [dk, heads, T], v [dv, heads, T] */
void rq_op_kv_encode(rq_tape *t, rq_ref cache);                    /* the step's pages of one layer */
/* q [dk, H, T] -> [dv * H, T] */
rq_ref rq_op_attend(rq_tape *t, rq_ref cache, rq_ref q, uint32_t dim_v, float scale, float softcap);
/* As above over keys that were stored less their mean; mean f32 weight [dk, H_kv], used where softcap > 0. */
rq_ref rq_op_attend_mean(rq_tape *t, rq_ref cache, rq_ref q, rq_ref mean, uint32_t dim_v, float scale,
                         float softcap);
/* x [C, T], w f32 weight [C, taps] -> [C, T] */
rq_ref rq_op_short_conv(rq_tape *t, rq_ref state, rq_ref x, rq_ref w);
/* What a delta rule takes; all f32. */
typedef struct rq_delta_in {
    rq_ref state;
    rq_ref q, k;         /* [dk, H_k, T], of length 1 */
    rq_ref v;            /* [dv, H_v, T] */
    rq_ref alpha, beta;  /* [H_v, T], before their softplus and sigmoid */
    rq_ref rate, offset; /* weights [H_v]: decay = exp(rate * softplus(alpha + offset)) */
    float scale;         /* of the result */
    bool tiled;          /* which key head serves a value head: p.delta */
} rq_delta_in;
rq_ref rq_op_delta_rule(rq_tape *t, const rq_delta_in *in); /* -> [dv, H_v, T] */
void rq_op_route(rq_tape *t, rq_ref logits, uint32_t n_used, float scale, rq_ref *ids, rq_ref *weights);
/* [E, T] -> i32 [k, T], f32 [k, T] */
rq_ref rq_op_group(rq_tape *t, rq_ref ids, uint32_t n_expert); /* -> i32 work block, layout in ops.h */
rq_ref rq_op_matmul_experts(rq_tape *t, rq_ref w, rq_ref x, rq_ref ids, rq_ref group);
/* w [n_in, n_out, E], x [n_in, 1 or k, T] -> [n_out, k, T]; group 0 in buckets up to RQ_NARROW_BUCKET */
rq_ref rq_op_combine(rq_tape *t, rq_ref y, rq_ref weights); /* y [n, k, T] -> [n, T] */
void rq_op_copy(rq_tape *t, rq_ref x, rq_ref persist);      /* rows of x to the same rows of persist */
rq_ref rq_op_select_rows(rq_tape *t, rq_ref persist);       /* rows named by the step -> f32 [n, R] */
void rq_op_argmax(rq_tape *t, rq_ref logits, rq_ref sampled);

#endif
