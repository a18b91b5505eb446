/* kv.h - the compressed cache for programs that measure and prepare it (rqvk-ppl, rqvk-kv): hooks into an
 * engine, profile files and tables of measured formats. Programs that only run models need rqvk.h alone.
 *
 * Formats. Keys and values each have one, as a string: f32, f16 and bf16 are kept as they are; q8_0 and q4_0 are
 * coded without rotation; a rotation and a number of bits (wht3, planar4, none2) is rotated and coded; klt and a
 * number of bits needs a profile with a basis and is coded in its directions; trip is
 * for codecs under measurement (below); auto takes what a table of measurements recommends.
 *
 * Coded keys are kept as R(lambda * (k - mean_k)), values as R(v - mean_v), queries become R(q / lambda) and the
 * result o of attention R^T o + mean_v: softmax does not see mean_k, so what attention computes is the same and
 * only what a codec has to carry changes. R belongs to the format, the vectors to a profile. A side that is not
 * coded (f32, f16, bf16) or has the format trip has neither.
 *
 * klt: keys are kept as W B_k (k - mean_k) and queries become W B_k^-T q; values as W B_v (v - mean_v), and the
 * result is B_v^-1 W^T o + mean_v. B belongs to the profile and need not be orthogonal, W (a Hadamard rotation) to
 * the format; lambda is not used. */
#ifndef RQ_KV_H
#define RQ_KV_H

#include "engine/rqvk.h"

/* ---- hooks ----------------------------------------------------------------------------------------------- */

/* What of a layer a capture takes: after norms, biases and the rotary embedding, before everything above. */
typedef enum rq_kv_which { RQ_KV_Q, RQ_KV_K, RQ_KV_V } rq_kv_which;

typedef struct rq_kv_captured {
    uint32_t layer;
    /* Whose keys and values its queries meet: its own, or those of a layer before it; then there are queries only. */
    uint32_t kv_layer;
    rq_kv_which which;
    uint32_t session;      /* the session's slot: 0 in an engine of one session */
    uint32_t position, n;  /* tokens at the positions [position, position + n) */
    uint32_t n_heads, dim; /* of q: query heads; of k and v: key/value heads */
    const float *rows;     /* [n][n_heads][dim], valid during the call */
} rq_kv_captured;

/* Given to rq_engine_create in rq_engine_params.kv_hooks; copied, `layers` too. */
typedef struct rq_kv_hooks {
    /* The codec of sides whose format is "trip": replaces n rows of d elements by what it makes of them. Called
     * for full pages (64 rows of one KV head at a time) by any of the computing threads, several at once. What
     * it returns is rounded to f16. NULL: the format "trip" is refused. */
    void (*trip)(void *user, bool is_v, float *rows, uint32_t n, uint32_t d);
    void *trip_user;

    /* Receives queries, keys and values of each step, layer by layer, on the engine's own thread, before the
     * logits of the step are delivered. Costs memory for n_batch tokens of all layers in the list, time for
     * copies, and nothing when it is NULL. Failing makes the engine fail with that sentence. Processor only. */
    rq_status (*capture)(void *user, const rq_kv_captured *rows, rq_error *err);
    void *capture_user;
    const uint32_t *layers; /* which layers; n_layers 0: all */
    uint32_t n_layers;
} rq_kv_hooks;

/* ---- layers of a model ----------------------------------------------------------------------------------- */

typedef struct rq_kv_layer {
    uint32_t n_heads, n_heads_kv, dim_k, dim_v;
    uint32_t window; /* 0: none */
    float scale;     /* of scores: what q . k is multiplied by */
    float softcap;   /* 0: none */
} rq_kv_layer;

enum { RQ_KV_NO_LAYER = UINT32_MAX };
/* Whose keys and values a layer of the trunk attends to: its own, or those of a layer before it. RQ_KV_NO_LAYER for
 * recurrent ones and beyond the last. */
uint32_t rq_kv_owner(const rq_model *model, uint32_t layer);

/* Layers are 0 .. rq_model_info.n_layers - 1; RQ_ERR_ARGUMENT beyond, and for those that keep no keys and values of
 * their own (recurrent ones, and those that attend to another layer's). */
rq_status rq_kv_layer_of(const rq_model *model, uint32_t layer, rq_kv_layer *out, rq_error *err);

/* What output matrices W make of errors in the values of a KV head of a layer: the sum of W_h^T W_h over the query
 * heads h that read it, also those of later layers that attend to this one's; out [dim_v][dim_v]. The weight of a norm
 * right behind W counts, a gate before it does not. RQ_ERR_ARGUMENT for layers that keep no values. */
rq_status rq_kv_value_weight(const rq_model *model, uint32_t layer, uint32_t head, double *out,
                             rq_error *err);

/* ---- profiles -------------------------------------------------------------------------------------------- */

/* Vectors and matrices of one layer; NULL where there are none. Owned by the profile. */
typedef struct rq_kv_layer_profile {
    uint32_t n_heads, dim_k, dim_v; /* KV heads; 0 for layers that keep no keys and values of their own */
    uint32_t n_rot; /* elements of a key in rotary pairs: (i, i + n_rot / 2), else (2 i, 2 i + 1) */
    /* How many of these pairs, the first ones, are turned at all: both elements have one scale. */
    uint32_t n_turned;
    float *mean_k, *lambda_k, *mean_v; /* [n_heads][dim] */
    float *so8_k, *so8_v; /* [n_heads][dim / 8][8][8], row = output element: rotations of "so8" formats */
    float *klt_k, *klt_v; /* [n_heads][dim][dim], row = direction, the most important first: bases of "klt" */
} rq_kv_layer_profile;

/* Everything a profile is bound to. Two models with equal identities give the same keys and values. */
typedef struct rq_kv_identity {
    uint64_t model; /* of the file's architecture, shapes and samples of its tensors */
    uint64_t rope;  /* of rotary frequencies, pairing and magnitude */
} rq_kv_identity;
void rq_kv_identify(const rq_model *model, rq_kv_identity *out);

typedef struct rq_kv_profile {
    rq_kv_identity identity;
    uint32_t n_positions; /* calibrated length: means of keys hold for positions below it */
    bool rot_halves;      /* rotary pairs are (i, i + n_rot / 2) */
    uint32_t n_layers;
    rq_kv_layer_profile *layers;
    char note[256]; /* what it was made from, for people */
} rq_kv_profile;

/* Parts of a layer's profile, for rq_kv_profile_add. */
typedef enum rq_kv_part {
    RQ_KV_MEAN_K,
    RQ_KV_LAMBDA_K,
    RQ_KV_MEAN_V,
    RQ_KV_SO8_K,
    RQ_KV_SO8_V,
    RQ_KV_KLT_K,
    RQ_KV_KLT_V
} rq_kv_part;

/* A profile of this model without any vectors; of its trunk: the block that drafts goes without. Free with rq_kv_profile_free. */
rq_status rq_kv_profile_new(const rq_model *model, uint32_t n_positions, rq_kv_profile **out, rq_error *err);
/* Makes room for a part of a layer and returns it: means 0, lambda 1, matrices the identity. NULL when memory runs
 * out, when the layer does not exist or keeps nothing, or for matrices its heads cannot have. Again: the same room. */
float *rq_kv_profile_add(rq_kv_profile *profile, uint32_t layer, rq_kv_part part);
void rq_kv_profile_free(rq_kv_profile *profile);

/* Does every value make sense: finite means, lambda in [1/16, 16] and equal within the pairs that the rotary
 * embedding turns together, orthogonal matrices, finite bases? Both functions below check this too (whether a basis
 * has an inverse shows when an engine uses it). */
rq_status rq_kv_profile_check(const rq_kv_profile *profile, rq_error *err);
rq_status rq_kv_profile_write(const rq_kv_profile *profile, const char *path, rq_error *err);
rq_status rq_kv_profile_read(const char *path, rq_kv_profile **out, rq_error *err);
/* The same from bytes in memory; `label` names them in errors. */
rq_status rq_kv_profile_parse(const void *bytes, size_t n, const char *label, rq_kv_profile **out,
                              rq_error *err);
/* Was the profile made for this model, with these rotary settings, and for at least n_ctx positions? */
rq_status rq_kv_profile_fits(const rq_kv_profile *profile, const rq_model *model, uint32_t n_ctx,
                             rq_error *err);

/* Where a profile is looked for when none is named: the model's path and ".kvprofile". Free with rq_string_free. */
char *rq_kv_profile_path(const rq_model *model);

/* ---- tables of measurements: what the format "auto" reads -------------------------------------------------- */

/* A text file beside the model, its path and ".kvtable", written by `rqvk-kv replay`. First line "rqvk-kvtable 1",
 * then "model HEX", "bound NUMBER", "note TEXT", then for each measured pair "pair K V BITS ERROR". */
typedef struct rq_kv_table_row {
    char type_k[16], type_v[16];
    double bits;  /* per element, the mean of K and V, scales included */
    double error; /* in the unit of the bound: smaller is better */
} rq_kv_table_row;

enum { RQ_KV_MAX_TABLE = 1024 };

typedef struct rq_kv_table {
    uint64_t model; /* rq_kv_identity.model */
    double bound;   /* an error up to this is harmless */
    char note[256]; /* what was measured, for people */
    uint32_t n;
    rq_kv_table_row *rows; /* owned */
} rq_kv_table;

rq_status rq_kv_table_write(const rq_kv_table *table, const char *path, rq_error *err);
rq_status rq_kv_table_read(const char *path, rq_kv_table *out, rq_error *err);
rq_status rq_kv_table_parse(const char *text, size_t n, const char *label, rq_kv_table *out, rq_error *err);
void rq_kv_table_free(rq_kv_table *table); /* leaves a zeroed table */
char *rq_kv_table_path(const rq_model *model);

/* The pair with the fewest bits whose error is within the bound, ties to the smaller error; NULL when there is
 * none. type_k and type_v restrict the choice where they are not "auto". */
const rq_kv_table_row *rq_kv_table_choose(const rq_kv_table *table, const char *type_k, const char *type_v);

#endif
