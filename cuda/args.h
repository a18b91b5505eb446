/* args.h - what the host hands to kernels: one structure for each, passed by value, and the list of kernels. Read by
 * C (addresses are numbers), by nvcc and by the simulator (addresses are pointers). */
#ifndef RQ_CUDA_ARGS_H
#define RQ_CUDA_ARGS_H

#include <stdint.h>

#ifdef __cplusplus
#define CUDA_PTR(T) T *
#else
#define CUDA_PTR(T) uint64_t
#endif

/* Everything that can be launched: X(name, threads of a block). Products have instances by weight type besides:
 * matvec_TYPE_COLUMNS and matmul_TYPE, TYPE being GGUF's number. */
#define CUDA_KERNELS(X)                                                                                      \
    X(embed, 64)                                                                                             \
    X(rms_norm, 256)                                                                                         \
    X(pointwise, 256)                                                                                        \
    X(rope, 64)                                                                                              \
    X(rotate, 64)                                                                                            \
    X(kv_write, 64)                                                                                          \
    X(kv_encode, 64)                                                                                         \
    X(qkv_write, 64)                                                                                         \
    X(attend_1, 64)                                                                                          \
    X(attend_2, 64)                                                                                          \
    X(attend_4, 64)                                                                                          \
    X(attend_8, 64)                                                                                          \
    X(rotate_tile, 256)                                                                                      \
    X(attend_tile_64, 256)                                                                                   \
    X(attend_tile_128, 256)                                                                                  \
    X(attend_tile_256, 128)                                                                                  \
    X(attend_tile_512, 128)                                                                                  \
    X(attend_group, 128)                                                                                     \
    X(attend_coded, 128)                                                                                     \
    X(attend_coded_3_128, 128)                                                                               \
    X(attend_coded_3_256, 128)                                                                               \
    X(attend_finish, 64)                                                                                     \
    X(route, 64)                                                                                             \
    X(group, 256)                                                                                            \
    X(combine, 256)                                                                                          \
    X(select_rows, 256)                                                                                      \
    X(argmax, 256)                                                                                           \
    X(argmax_last, 64)                                                                                       \
    X(short_conv, 64)                                                                                        \
    X(delta_rule_32, 128)                                                                                    \
    X(delta_rule_64, 128)                                                                                    \
    X(delta_rule_128, 256)                                                                                   \
    X(delta_rule_256, 256)                                                                                   \
    X(delta_prepare_64, 128)                                                                                 \
    X(delta_prepare_128, 128)                                                                                \
    X(delta_chunk_64, 128)                                                                                   \
    X(delta_chunk_128, 128)

/* Kernels with shared memory that is given at the launch: X(name, bytes). */
#define CUDA_LARGE_KERNELS(X)                                                                                \
    X(attend_tile_64, 36608)                                                                                 \
    X(attend_tile_128, 69376)                                                                                \
    X(attend_tile_256, 101376)                                                                               \
    X(attend_tile_512, 101376)                                                                               \
    X(delta_prepare_64, 27648)                                                                               \
    X(delta_prepare_128, 44032)                                                                              \
    X(delta_chunk_64, 56320)                                                                                 \
    X(delta_chunk_128, 89088)

/* clang-format off */
#define CUDA_WEIGHT_TYPES(X) \
    X(0) X(1) X(2) X(3) X(6) X(7) X(8) X(10) X(11) X(12) X(13) X(14) X(16) X(17) X(18) X(19) X(20) X(21) X(22) \
    X(23) X(28) X(29) X(30) X(34) X(35) X(39) X(40) X(41) X(42)
/* clang-format on */

enum {
    CUDA_SLABS = 256,       /* as RQ_MAX_SLABS */
    CUDA_MATVEC_JOBS = 4,   /* weights of one launch */
    CUDA_MATVEC_TOKENS = 8, /* columns of one launch */
    CUDA_MATVEC_THREADS = 256,
    CUDA_MATMUL_THREADS = 128,
    CUDA_CONV_PIECE = 64,    /* tokens of a short convolution's block */
    CUDA_DELTA_LONG = 16,    /* as RQ_DELTA_LONG */
    CUDA_DELTA_CHUNK = 32,   /* most tokens of a chunk */
    CUDA_DELTA_RECORD = 272, /* bytes that a delta rule prepares for a token and value head */
    CUDA_DELTA_COLUMNS = 64  /* of the state, of a block of the chunk form */
};

/* Tables of the quantised types and of the cache's codec rows, in device memory. */
typedef struct cuda_tables {
    uint64_t iq2xxs[256], iq2xs[512], iq2s[1024], iq1s[2048];
    uint32_t iq3xxs[256], iq3s[512];
    uint8_t ksigns[128];
    int8_t iq4nl[16], mxfp4[16],
        levels[3][2][16]; /* read in words of 16 bytes; levels: of codec rows C2, C3, C4 */
    float e8m0[256], ue4m3[256];
    /* of the codec rows */
    float scales[3][256];
    float gain_k[3], gain_v[3];
    int32_t base[3], slope[3], offset[3];
    uint8_t log2[128];
} cuda_tables;

/* A cache pool: addresses of its slabs and tables, and the geometry of its pages (backends/cache.h). */
typedef struct cuda_pool {
    CUDA_PTR(uint8_t) slabs[CUDA_SLABS];
    CUDA_PTR(uint8_t) coded_slabs[CUDA_SLABS];
    CUDA_PTR(const uint32_t) table;
    CUDA_PTR(const uint32_t) coded_table;
    CUDA_PTR(uint8_t) scratch;
    uint64_t page_bytes, layer_bytes, head_bytes, k_bytes, v_bytes;
    uint64_t coded_page_bytes, coded_layer_bytes, coded_head_bytes, coded_k_bytes, coded_v_bytes,
        coded_k_scale_bytes;
    uint32_t shift, coded_shift, n_pages, n_scratch, n_coded;
    uint32_t dim_k, dim_v, n_heads, type_k, type_v, form_k, form_v;
    uint32_t window, max_pages, n_seqs, sinks, recent, is_coded;
} cuda_pool;

typedef struct cuda_embed_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const uint8_t) table;
    CUDA_PTR(const cuda_tables) tables;
    CUDA_PTR(float) y;
    CUDA_PTR(const int32_t) sampled;
    uint64_t row_bytes;
    uint32_t n, n_vocab, n_slots, type;
} cuda_embed_args;

/* Rows of ne1 x ne2 x ne3; strides in elements. join: 0 nothing, 1 second is added, 2 + act: act(second) times. */
typedef struct cuda_norm_args {
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) weight; /* or NULL */
    CUDA_PTR(const float) second;
    CUDA_PTR(float) y;
    uint64_t stride[3], second_stride[3];
    uint32_t n, ne1, ne2, l2, join;
    float eps;
} cuda_norm_args;

typedef enum cuda_pointwise_kind {
    CUDA_ADD,
    CUDA_MUL,
    CUDA_SCALE,
    CUDA_SILU,
    CUDA_GELU,
    CUDA_SIGMOID,
    CUDA_SOFTCAP,
    CUDA_COPY
} cuda_pointwise_kind;

typedef struct cuda_pointwise_args {
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) second;
    CUDA_PTR(float) y;
    uint64_t stride[3], second_stride[3];
    uint32_t n, ne1, ne2, rows, kind, one; /* one: rows of x have one element, for all of the second's */
    float factor;
} cuda_pointwise_args;

typedef struct cuda_rope_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) inv_freq;
    CUDA_PTR(float) y;
    uint64_t head_stride, token_stride;
    uint32_t d, heads, n_rot, neox;
    float magnitude;
} cuda_rope_args;

/* A rotation of heads with its affine step (ROTATE); all members 0: none. */
typedef struct cuda_rotation {
    CUDA_PTR(const float) data;
    CUDA_PTR(const float) mean;
    CUDA_PTR(const float) lambda;
    uint32_t data_columns, data_floats, mean_columns, lambda_columns, n_blocks, inverse;
    struct {
        uint16_t offset, count, size, hadamard;
    } blocks[6];
} cuda_rotation;

/* QKV_WRITE (tape/fuse.h); turns: of q, k, v */
typedef struct cuda_qkv_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const cuda_pool) pool;
    CUDA_PTR(const float) q;
    CUDA_PTR(const float) k;
    CUDA_PTR(const float) v;
    CUDA_PTR(const float) inv_freq;
    CUDA_PTR(const float) q_weight;
    CUDA_PTR(const float) k_weight;
    CUDA_PTR(float) y;
    uint64_t q_stride[2], k_stride[2], v_stride[2]; /* heads, tokens */
    uint32_t group, layer, heads, kv_heads, dk, dv, n_rot, neox, normed, v_normed;
    float magnitude, eps;
    cuda_rotation turns[3];
} cuda_qkv_args;

typedef struct cuda_rotate_args {
    CUDA_PTR(const float) x;
    CUDA_PTR(float) y;
    uint64_t head_stride, token_stride;
    uint32_t d, heads;
    cuda_rotation turn;
} cuda_rotate_args;

/* One matrix of d x d, for wide steps. */
typedef struct cuda_turn_args {
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) data;
    CUDA_PTR(const float) mean;
    CUDA_PTR(const float) lambda;
    CUDA_PTR(float) y;
    uint64_t head_stride, token_stride;
    uint32_t d, heads, tokens, data_columns, mean_columns, lambda_columns, inverse;
} cuda_turn_args;

typedef struct cuda_kv_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const cuda_pool) pool;
    CUDA_PTR(const cuda_tables) tables;
    CUDA_PTR(const float) k;
    CUDA_PTR(const float) v;
    uint64_t k_stride[2], v_stride[2];
    uint32_t group, layer;
} cuda_kv_args;

typedef struct cuda_attend_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const cuda_pool) pool;
    CUDA_PTR(const cuda_tables) tables;
    CUDA_PTR(const float) q;
    CUDA_PTR(const float) mean; /* or NULL; mean_stride floats from one KV head to the next */
    CUDA_PTR(float) y;
    CUDA_PTR(float)
    partials; /* maximum, sum, values: partial_floats for each query head of each partial slot */
    uint64_t head_stride, token_stride;
    uint32_t group, layer, heads, per_kv_head, partial_floats, mean_stride;
    float scale, softcap;
} cuda_attend_args;

/* What becomes of a token's attention: its splits merged, rotated back, times the sigmoid of a gate. */
typedef struct cuda_finish_args {
    cuda_attend_args attend;
    cuda_rotation turn;
    CUDA_PTR(const float) gate; /* or NULL */
    uint64_t gate_stride[2];    /* heads, tokens */
} cuda_finish_args;

/* Recurrent layers: slots of state (backends/state.h). */
typedef struct cuda_conv_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(uint8_t) state;
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) w;
    CUDA_PTR(float) y;
    uint64_t slot_bytes, layer_bytes, x_stride, w_stride;
    uint64_t pending; /* bytes from a slot's start to the layer's pending rows, of `places` */
    uint32_t layer, n_slots, channels, taps, places;
} cuda_conv_args;

typedef struct cuda_delta_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(uint8_t) state;
    CUDA_PTR(const float) q;
    CUDA_PTR(const float) k;
    CUDA_PTR(const float) v;
    CUDA_PTR(const float) alpha;
    CUDA_PTR(const float) beta;
    CUDA_PTR(const float) rate;
    CUDA_PTR(const float) offset;
    CUDA_PTR(float) y;
    uint64_t slot_bytes, layer_bytes, tail_bytes, matrix_bytes;
    uint64_t pending_v, pending_k, pending_gates; /* bytes from a slot's start */
    uint64_t q_stride[2], k_stride[2], v_stride[2], alpha_stride, beta_stride;
    uint32_t layer, n_slots, heads, key_heads, group_key_heads, dk, dv, tiled, places;
    uint32_t chunks; /* long runs go in chunks: what is prepared for them lies at: */
    CUDA_PTR(uint8_t)
    rows; /* [tokens][key_heads]: k and q, each in two parts, of the kernel's dk halves each */
    CUDA_PTR(uint8_t) records; /* [tokens][heads][CUDA_DELTA_RECORD] (delta_chunk.cu) */
    float scale;
} cuda_delta_args;

typedef struct cuda_route_args {
    CUDA_PTR(const float) logits;
    CUDA_PTR(int32_t) ids;
    CUDA_PTR(float) weights;
    uint64_t stride;
    uint32_t n_expert, n_used;
    float scale;
} cuda_route_args;

typedef struct cuda_group_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const int32_t) ids;
    CUDA_PTR(uint32_t) block;
    uint32_t n_expert, n_used, bucket, counts, starts, order, tiles;
} cuda_group_args;

typedef struct cuda_combine_args {
    CUDA_PTR(const float) y;
    CUDA_PTR(const float) weights;
    CUDA_PTR(const float) row; /* or NULL; times the sigmoid of the token's gate */
    CUDA_PTR(const float) gate;
    CUDA_PTR(const float) addend; /* or NULL */
    CUDA_PTR(float) out;
    uint64_t slot_stride, token_stride, weight_stride, row_stride, gate_stride, addend_stride;
    uint32_t n, n_used;
} cuda_combine_args;

typedef struct cuda_select_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const float) x;
    CUDA_PTR(float) y;
    uint32_t n, n_rows;
} cuda_select_args;

typedef struct cuda_argmax_args {
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const float) logits;
    CUDA_PTR(int32_t) best; /* of each row */
    CUDA_PTR(int32_t) sampled;
    uint64_t stride;
    uint32_t n, n_slots, n_rows;
} cuda_argmax_args;

/* y[job][:, t] = w[job] . f(x[:, t]) (+ addend[job][:, t]); f = rms norm where `normed`. With `glu` job 0 is the gate, job 1 up,
 * and y[0] = act(gate) * up. By expert (n_used > 0): one column, that of pair = blockIdx.y of (token, slot). */
typedef struct cuda_matvec_args {
    CUDA_PTR(const uint8_t) w[CUDA_MATVEC_JOBS];
    CUDA_PTR(float) y[CUDA_MATVEC_JOBS];
    CUDA_PTR(const float) x;
    CUDA_PTR(const float) norm_weight;              /* or NULL */
    CUDA_PTR(const float) addend[CUDA_MATVEC_JOBS]; /* or NULL */
    CUDA_PTR(const cuda_tables) tables;
    CUDA_PTR(const uint32_t) step;
    CUDA_PTR(const int32_t) ids;
    uint64_t row_bytes, expert_bytes, x_stride, slot_stride, y_stride[CUDA_MATVEC_JOBS],
        addend_stride[CUDA_MATVEC_JOBS];
    uint32_t n_in, n_out[CUDA_MATVEC_JOBS], n_jobs, columns, normed, glu; /* glu: 1 + act */
    uint32_t n_used, n_expert;
    float eps;
} cuda_matvec_args;

/* Tiles of outputs x tokens, or, with `group`, of outputs x pairs of the work block of GROUP. */
typedef struct cuda_matmul_args {
    CUDA_PTR(const uint8_t) w;
    CUDA_PTR(const float) x;
    CUDA_PTR(float) y;
    CUDA_PTR(const cuda_tables) tables;
    CUDA_PTR(const uint32_t) step; /* or NULL: all columns */
    CUDA_PTR(const uint32_t) group;
    uint64_t row_bytes, expert_bytes, x_stride, slot_stride, y_stride;
    uint32_t n_in, n_out, columns, extent_word, n_used, order, tiles;
} cuda_matmul_args;

#endif
