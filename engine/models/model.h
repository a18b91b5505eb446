/* model.h - a loaded model: file, tokenizer, hyper-parameters, weights, and the forward pass of its family.
 *
 * rq_model_load and rq_model_free of the public header are defined in model.c, rq_model_describe in
 * engine/rqvk.c. A model is immutable after loading. */
#ifndef RQ_MODEL_H
#define RQ_MODEL_H

#include "backends/exec/exec.h"
#include "engine/gguf/gguf.h"
#include "engine/rqvk.h"
#include "engine/tokenizer/tokenizer.h"

enum { RQ_MAX_LAYERS = 512, RQ_MAX_EXPERTS = 1024, RQ_MAX_EXPERTS_USED = 64 };

/* Tensors a layer (or the model as a whole) may have; names, shapes and who needs them: tensors.c. */
typedef enum rq_role {
    RQ_ROLE_TOKEN_EMBD,
    RQ_ROLE_OUTPUT_NORM,
    RQ_ROLE_OUTPUT,
    RQ_ROLE_OUTPUT_BIAS,
    RQ_ROLE_ROPE_FREQS,
    RQ_ROLE_PLE_TOKEN_EMBD, /* embeddings of every layer */
    RQ_ROLE_PLE_PROJECTION,
    RQ_ROLE_PLE_NORM,
    RQ_ROLE_GLOBAL_COUNT,

    RQ_ROLE_ATTN_NORM = RQ_ROLE_GLOBAL_COUNT,
    RQ_ROLE_ATTN_QKV, /* q, k and v rows in one tensor: split into the three roles below when loading */
    RQ_ROLE_ATTN_QKV_BIAS,
    RQ_ROLE_ATTN_Q,
    RQ_ROLE_ATTN_K,
    RQ_ROLE_ATTN_V,
    RQ_ROLE_ATTN_Q_BIAS,
    RQ_ROLE_ATTN_K_BIAS,
    RQ_ROLE_ATTN_V_BIAS,
    RQ_ROLE_ATTN_Q_NORM,
    RQ_ROLE_ATTN_K_NORM,
    RQ_ROLE_ATTN_OUTPUT,
    RQ_ROLE_ATTN_OUTPUT_BIAS,
    RQ_ROLE_FFN_NORM,
    RQ_ROLE_POST_ATTENTION_NORM, /* before the feed-forward block of qwen35; behind attention in gemma */
    RQ_ROLE_POST_FFN_NORM,       /* behind the feed-forward block */
    RQ_ROLE_LAYER_SCALE,         /* one number: of the layer's result */
    RQ_ROLE_FFN_GATE,
    RQ_ROLE_FFN_UP,
    RQ_ROLE_FFN_DOWN,
    RQ_ROLE_FFN_ROUTER,
    RQ_ROLE_FFN_GATE_EXPS,
    RQ_ROLE_FFN_UP_EXPS,
    RQ_ROLE_FFN_GATE_UP_EXPS, /* gate rows then up rows per expert: split into the two roles above */
    RQ_ROLE_FFN_DOWN_EXPS,
    RQ_ROLE_ROUTER_SCALE,  /* gemma4: of what the router sees, */
    RQ_ROLE_EXPERTS_SCALE, /* of each expert's result */
    RQ_ROLE_EXPERTS_NORM,  /* before its experts, behind them, */
    RQ_ROLE_POST_EXPERTS_NORM,
    RQ_ROLE_POST_DENSE_NORM, /* and behind the dense block beside them */
    RQ_ROLE_PLE_GATE,        /* a layer's part in embeddings per layer */
    RQ_ROLE_PLE_OUTPUT,
    RQ_ROLE_PLE_POST_NORM,
    RQ_ROLE_SHARED_ROUTER, /* one row: the gate of the shared expert */
    RQ_ROLE_SHARED_GATE,
    RQ_ROLE_SHARED_UP,
    RQ_ROLE_SHARED_DOWN,

    RQ_ROLE_DELTA_QKV, /* of recurrent layers: q, k and v rows, which the convolution takes together */
    RQ_ROLE_DELTA_GATE,
    RQ_ROLE_DELTA_CONV,
    RQ_ROLE_DELTA_ALPHA,
    RQ_ROLE_DELTA_BETA,
    RQ_ROLE_DELTA_OFFSET,
    RQ_ROLE_DELTA_RATE,
    RQ_ROLE_DELTA_NORM,
    RQ_ROLE_DELTA_OUTPUT,

    RQ_ROLE_MTP_PROJECTION, /* of blocks that predict a token further on: of the token's half, when loaded */
    RQ_ROLE_MTP_EMBD_NORM,
    RQ_ROLE_MTP_HIDDEN_NORM,
    RQ_ROLE_MTP_HEAD_NORM,
    RQ_ROLE_MTP_TOKEN_EMBD,
    RQ_ROLE_MTP_OUTPUT,
    RQ_ROLE_COUNT
} rq_role;

#define RQ_NO_WEIGHT UINT32_MAX

/* A tensor in use: its entry in the weight table, and what its `.scale` sibling multiplies the result by. */
typedef struct rq_tensor_ref {
    uint32_t weight;        /* RQ_NO_WEIGHT: the file does not have it */
    float scale;            /* 1 without a sibling */
    uint64_t expert_stride; /* bytes between experts, 0: contiguous */
} rq_tensor_ref;

typedef enum rq_mixer { RQ_MIXER_ATTENTION, RQ_MIXER_DELTA } rq_mixer;

typedef struct rq_layer {
    rq_mixer mixer;
    bool mtp; /* predicts a token further on; not part of the trunk */
    uint32_t n_head, n_head_kv, n_ff;
    uint32_t dim_k, dim_v; /* head sizes */
    uint32_t window;       /* positions a query sees, itself included; 0: all */
    float scale;           /* of scores */
    uint32_t n_rot;        /* elements of a head that the rotary embedding turns, */
    uint32_t inv_freq;     /* its frequencies, f32 [n_rot / 2]: index of a weight, */
    float rope_magnitude;  /* and what multiplies cos and sin */
    float result_scale;    /* gemma4: of the layer's result */
    uint32_t kv_layer;     /* whose keys and values it attends to: its own, or those of a layer before it */
    uint32_t group, group_layer; /* cache or state group, and index in it */
    rq_tensor_ref mtp_hidden;    /* MTP blocks: of their projection the half for the hidden row */
    rq_tensor_ref t[RQ_ROLE_COUNT];
} rq_layer;

typedef struct rq_hparams {
    uint32_t n_layers; /* of the trunk */
    uint32_t n_mtp;    /* blocks behind them that predict a token further on */
    uint32_t n_embd, n_vocab, n_ctx_train;
    uint32_t dim_k, dim_v; /* head sizes of layers that see everything; others: rq_layer */
    uint32_t n_rot;
    float eps;
    double rope_base;
    double rope_factor; /* positions are divided by it, 1: not */
    bool rope_yarn;
    double yarn_ext, yarn_beta_fast, yarn_beta_slow;
    double rope_attn_factor; /* the file's own factor on cos and sin, whatever the scaling */
    uint32_t rope_ctx_orig;
    float rope_magnitude; /* multiplies cos and sin */
    uint32_t n_expert, n_expert_used, n_ff_expert;
    uint32_t n_ff_shared;          /* of the shared expert, 0: there is none */
    uint32_t conv_taps, state_dim; /* delta rule: taps of its convolution, size of its heads */
    uint32_t n_key_heads, n_value_heads;
    float expert_scale;
    uint32_t n_ple;          /* size of a layer's embeddings, 0: there are none */
    float logit_cap;         /* 0: none */
    double window_rope_base; /* of layers with a window */
} rq_hparams;

typedef struct rq_family rq_family;

struct rq_model {
    rq_gguf *gguf;
    rq_tokenizer *tok;
    const rq_family *family;
    rq_hparams hp;
    rq_layer *layers; /* [n_layers + n_mtp] */
    rq_tensor_ref global[RQ_ROLE_GLOBAL_COUNT];
    rq_weight *weights;
    uint32_t n_weights, cap_weights;
    float *inv_freq_data; /* owned; of layers that see everything, [n_rot/2] */
    float **tables;       /* owned: vectors in another order than the file has them */
    size_t n_tables, cap_tables;
    rq_cache_group groups[RQ_MAX_GROUPS]; /* types F16; rq_engine_create replaces them in its own copy */
    uint32_t n_groups;
    rq_cache_group mtp_group; /* of the first MTP block, as group n_groups; no layers: nothing can draft */
    rq_state_group states[RQ_MAX_STATE_GROUPS];
    uint32_t n_states;
    uint64_t n_params;
    char *path, *name, *description, *chat_template; /* owned; chat_template NULL when the file has none */
    size_t chat_template_bytes;
    char arch[64];
};

/* ---- the forward pass ---------------------------------------------------------------------------------- */

/* What the keys or values of a layer go through before they are kept: y = R(lambda * (x - mean)). Indices into
 * rq_pass.weights, RQ_NO_WEIGHT: none. */
typedef struct rq_pass_side {
    const rq_rotation_block *blocks;
    uint32_t n_blocks;
    uint32_t data; /* of R, f32 [n_floats, 1 or KV heads] */
    /* What queries go through (keys), what brings the result back (values, transposed): R too, and where R is not
     * orthogonal its inverse transposed. */
    uint32_t dual;
    uint32_t mean, lambda;   /* f32 [head size, KV heads] */
    uint32_t lambda_inverse; /* keys: 1 / lambda, for queries */
} rq_pass_side;

typedef struct rq_pass_layer {
    rq_pass_side k, v;
    bool encode;               /* its cache group has a coded form */
    bool capture;              /* q, k and v also go to PERSIST capture, one block of rows each: */
    uint64_t q_at, k_at, v_at; /* where they start, in floats per row of the step */
} rq_pass_layer;

/* A model's forward pass with what an engine adds to it. */
typedef struct rq_pass {
    const rq_model *model;
    const rq_weight *weights;    /* the model's first */
    const rq_pass_layer *layers; /* [n_layers + n_mtp]; NULL: nothing is added */
    uint32_t capture_floats;     /* of PERSIST capture, per row of the step */
} rq_pass;

/* A family of models: what its files look like and how its forward pass goes. */
struct rq_family {
    const char *arch;
    rq_pairing pairing;
    bool qk_norm;        /* needs attn_q_norm and attn_k_norm */
    bool full_rotary;    /* n_rot must equal the head size */
    bool dense, experts; /* kinds of feed-forward block it may have */
    bool hybrid;         /* recurrent layers between attention layers; MTP blocks behind them */
    bool gated;          /* attn_q holds a gate behind the query of each head */
    bool tiled;          /* value head j of a delta rule has key head j mod their number */
    bool shared;         /* its mixtures have a shared expert */
    bool gemma;          /* norms around both blocks, scaled embeddings, layers with a window */
    bool gemma4; /* and what Gemma 4 adds: shapes per kind of layer, shared caches, experts beside a dense
                            block, embeddings per layer */
    rq_act act;  /* of feed-forward blocks */
    bool strict; /* refuses files with tensors it has no use for */
    rq_role ffn_norm; /* the norm before the feed-forward block: names differ */
    void (*build_trunk)(const rq_pass *pass, rq_tape *tape);
    void (*build_head)(const rq_pass *pass, rq_tape *tape);
    /* RQ_TAPE_FOLLOW, or with `draft` RQ_TAPE_DRAFT; NULL: the family has no MTP blocks */
    void (*build_mtp)(const rq_pass *pass, rq_tape *tape, bool draft);
};

/* NULL-terminated; NULL for an architecture nobody here knows. */
const rq_family *const *rq_families(void);
const rq_family *rq_family_find(rq_gguf_str arch);

/* The executor's build callbacks: user is the rq_pass, or the model when nothing is added. */
void rq_pass_build(void *user, rq_tape_kind kind, rq_tape *tape);
void rq_model_build(void *user, rq_tape_kind kind, rq_tape *tape);

/* ---- what families are made of (blocks.c) ---------------------------------------------------------------- */

extern const rq_tensor_ref RQ_NO_TENSOR;

rq_ref rq_block_weight(const rq_model *m, rq_tape *t, rq_tensor_ref ref);
/* Optional vector: 0 when the file has none. */
rq_ref rq_block_vector(const rq_model *m, rq_tape *t, rq_tensor_ref ref);
/* x [n_in, T] -> W x (+ bias) [n_out, T] */
rq_ref rq_block_linear(const rq_model *m, rq_tape *t, rq_tensor_ref w, rq_tensor_ref bias, rq_ref x);
/* x [dim * n, T] as [dim, n, T] */
rq_ref rq_block_heads(rq_tape *t, rq_ref x, uint32_t dim, uint32_t n);
/* Norms of q and k where the family has them, rotary positions, what the engine does to keys and values, and
 * attention over the cache: q, k, v [dim, heads, T] -> [dim_v * heads, T]. k and v are 0 in layers that attend to
 * the keys and values of another. */
rq_ref rq_block_attend(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref q, rq_ref k, rq_ref v);
/* What of this becomes the cache's, alone: k and v as above. */
void rq_block_keep(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref k, rq_ref v);
/* Feed-forward blocks, h [n_embd, T] -> [n_embd, T]: a dense one; routed experts with these logits of the router
 * [n_expert, T]; whichever of them the model has, with the shared expert. */
rq_ref rq_block_dense(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h);
rq_ref rq_block_experts(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h, rq_ref logits);
rq_ref rq_block_ffn(const rq_model *m, rq_tape *t, const rq_layer *l, rq_ref h);
/* Final norm of the trunk's result and its copy to PERSIST hidden. */
void rq_block_end_trunk(const rq_model *m, rq_tape *t, rq_ref x);
/* The bucket's rows of PERSIST trail from row `first` on (exec.h). */
rq_ref rq_block_trail(const rq_model *m, rq_tape *t, uint32_t first);
/* Logits of the rows the step names. */
void rq_block_head(const rq_pass *p, rq_tape *t);

void rq_transformer_trunk(const rq_pass *p, rq_tape *t);      /* transformer.c */
void rq_hybrid_trunk(const rq_pass *p, rq_tape *t);           /* hybrid.c */
void rq_hybrid_mtp(const rq_pass *p, rq_tape *t, bool draft); /* mtp.c */
/* Attention with a gate for every element of its result: a is the norm of the layer's input. */
rq_ref rq_block_gated_attention(const rq_pass *p, rq_tape *t, const rq_layer *l, rq_ref a); /* hybrid.c */
void rq_gemma_trunk(const rq_pass *p, rq_tape *t);                                          /* gemma.c */

/* Parts of loading (hparams.c, tensors.c, rope.c), in this order. */
rq_status rq_hparams_read(rq_model *model, rq_error *err);
rq_status rq_tensors_bind(rq_model *model, rq_error *err);
rq_status rq_rope_prepare(rq_model *model, rq_error *err);
rq_status rq_mtp_bind(rq_model *model, rq_error *err); /* mtp.c; part of rq_tensors_bind */

/* What was asked for of drafts. */
typedef struct rq_draft_wishes {
    uint32_t depth; /* most tokens guessed ahead; 0: nothing drafts */
    float min_p;    /* a draft ends where a guess has less than this probability */
    bool automatic; /* only where it measures faster */
} rq_draft_wishes;
/* Reads the options; refused where they make no sense or the file has no block that could draft. */
rq_status rq_draft_read(const rq_model *model, const rq_engine_params *params, rq_draft_wishes *out,
                        rq_error *err);

/* Room for n floats that live as long as the model; NULL: out of memory. */
float *rq_model_own_table(rq_model *model, size_t n);

/* Adds an entry to the weight table; the name is kept, not copied. */
rq_status rq_model_add_weight(rq_model *model, const char *name, rq_type type, const uint32_t ne[4],
                              const void *host, uint64_t bytes, uint32_t *index, rq_error *err);

#endif
