/* clang-format off: the table below is laid out by hand */
/* ops.h - the catalogue of operations: what each one computes, what it reads and writes, how exact it must be
 * and what it costs. Backends implement exactly this; cpu/reference is this page in double.
 *
 * Notation: shapes are [contiguous, ..., tokens]; T = tape->bucket; t a token (or head row), r a row.
 * Operands may be strided views, of weights too (stride[1], stride[2], offset; ne[0] contiguous); results are
 * contiguous. An operation's result never shares memory with one of its operands.
 *
 * PADDING. A step has n_tokens real tokens; tokens n_tokens .. T-1 are padding with run -1, and so are head
 * rows n_rows .. R-1. Padding writes nothing to caches, states and PERSIST memory that anybody reads. Padding
 * rows of activations may be computed or skipped, and then hold whatever the arena held: nothing may trap,
 * fail to terminate or index by their contents, and no real row may depend on them.
 *
 * WIDTH. In buckets up to 8 the bits of a token's results do not depend on the bucket, its place in the step
 * or the other tokens (DESIGN 2.3).
 *
 * kind            operands                                        result
 * EMBED           table [n, V]                                    f32 [n, T]
 *     y[:,t] = table[:, id], id = step.token_id[t], or PERSIST sampled[-1 - token_id] when that is negative;
 *     an id outside [0, V) gives a row of zeros. Reads STEP and PERSIST sampled.
 * RMS_NORM        x, weight [ne0] f32 |0                          f32, shape of x
 *     y = x / sqrt(mean(x^2) + eps) * weight, over each row of ne0 (Zhang & Sennrich 2019, eq. 4). p.norm
 * L2_NORM         x                                               f32, shape of x
 *     y = x / max(sqrt(sum(x^2)), eps), over each row of ne0. p.norm
 * MATMUL          w [n_in, n_out], x f32 [n_in, T]                f32 [n_out, T]
 *     y[o,t] = sum_i w[i,o] x[i,t]. Block-quantised w may meet x quantised to int8 blocks: see tolerances.
 * ADD, MUL        a f32, b f32: shape of a, or one row [ne0]      f32, shape of a
 * SCALE           x f32                                           f32: factor * x. p.scale
 * SOFTCAP         x f32                                           f32: cap * tanh(x / cap). p.softcap
 *     (Bello et al. 2016, section 5.1, for logits)
 * GLU             gate, up f32: same shape, or gate [1, ...]      f32, shape of up: act(gate) * up. p.glu
 *     silu(g) = g / (1 + exp(-g)); gelu_tanh(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3)))
 *     (Hendrycks & Gimpel 2016; Shazeer 2020 for the gated forms); sigmoid(g) = 1 / (1 + exp(-g)). A gate with
 *     rows of one element gives it to every element of up's row.
 * ROPE            x f32 [d, heads, T], inv_freq f32 [n_rot/2]     f32 [d, heads, T]. p.rope
 *     angle = position(t) * inv_freq[i], pair (a, c) -> magnitude * (a cos - c sin, a sin + c cos); pairs are
 *     (2i, 2i+1) or (i, i + n_rot/2); elements from n_rot on pass through (Su et al. 2021, eq. 34; YaRN's
 *     magnitude: Peng et al. 2023, eq. 22). The angle is the f32 product of f32 numbers; cos and sin of it
 *     are taken exactly enough for the tolerance up to position 2^20. Reads STEP.
 * ROTATE          x f32 [d, H, T], data f32 [n, 1 or Hd] |0, mean f32 [d, 1 or Hd] |0, lambda f32 likewise |0
 *                                                                 f32 [d, H, T]. p.rotate
 *     forward y = R (lambda * (x - mean)); inverse y = R^T x + mean (lambda is not used). R is block diagonal:
 *     block after block of `data`, for each a matrix [size, size] of rows (y_i = sum_j m[i size + j] x_j), or,
 *     for a Hadamard block, `size` signs s: y = H (s * x) / sqrt(size), butterflies in ascending order of
 *     stride (DESIGN 1). Without blocks R = 1. Head h takes column h / (H / columns) of each table.
 * KV_WRITE        cache (written), k f32 [dk, H, T], v f32 [dv, H, T]   nothing
 *     writes row t of k and v, rounded to the group's exact type (nearest even), to slot token_slot[g][t] of
 *     its page, with the layout of rq_page_layout. Reads STEP.
 * KV_ENCODE       cache (read and written)                        nothing
 *     brings one layer of the pages of step.encodes[g] into coded form: what formats/kv_codec.h makes of each
 *     row, in the layout of rq_coded_layout. The same bytes from every backend. Reads STEP.
 * ATTEND          cache, q f32 [dk, H, T], mean f32 [dk, 1 or Hkv] |0    f32 [dv * H, T]. p.attend
 *     s_j = scale * k_j . q, softcapped if softcap > 0: s = softcap * tanh(s / softcap); softmax over the
 *     visible positions j <= p (window: j > p - window); y = sum_j p_j v_j. Query head h reads KV head
 *     h / (H / H_kv). Work lists of the step; splits of RQ_SPLIT_PAGES pages at absolute positions, each with
 *     (maximum, sum, weighted values), merged in ascending order (Dao 2023; Milakov & Gimelshein 2018 for the
 *     online softmax); a split in which a query sees nothing changes no bit of it. Each page is read in the
 *     form of rq_kv_reads_exact(group, p, page); what coded pages hold is decoded by formats/kv_codec.h, K
 *     times gain_k, V times gain_v. With softcap > 0 and `mean` the score is s_j + scale * mean . q before
 *     the cap. Reads STEP.
 * SHORT_CONV      state (read and written), x f32 [C, T], w f32 [C, taps]     f32 [C, T]
 *     per channel: y_t = silu(sum over j = 0 .. taps-1 of w[j] x_{t - taps + 1 + j}), t the token's place in its
 *     sequence; inputs before the run are the tail in the state of its slot (zeros before position 0), which then
 *     holds the run's last taps - 1 inputs (Fu et al. 2023; Yang et al. 2024 as used here). Reads STEP.
 * DELTA_RULE      state (read and written), q, k f32 [dk, Hk, T], v f32 [dv, Hv, T], alpha, beta f32 [Hv, T],
 *                 rate, offset f32 [Hv]                            f32 [dv, Hv, T]. p.delta
 *     for each value head j with key head h (j mod Hk if tiled, else j / (Hv / Hk)), token after token of a run:
 *     S *= exp(rate softplus(alpha + offset)); d = sigmoid(beta) (v - S^T k); S += k d^T; y = scale S^T q, with S
 *     [dv, dk] the head's matrix in the state of the run's slot (Yang, Kautz & Hatamizadeh 2024, gated delta
 *     networks, eq. 10). softplus(x) = log(1 + e^x). Reads STEP.
 *     Both: a sequence begins with zeros where a run's start - n_accepted is 0; padding touches no state. The first
 *     n_accepted tokens of the sequence's last draft check are applied to the state before the run's own (their results
 *     are nobody's); a run with n_pending > 0 leaves the state so and its own inputs in the pending area (step.h,
 *     state.h).
 * ROUTE           logits f32 [E, T]                               ids i32 [k, T], weights f32 [k, T]. p.route
 *     P = softmax(logits) over all E; the k largest, descending, ties to the lower index; weight =
 *     P / max(sum of the k, 2^-14) * scale. Ids are in [0, E) and distinct whatever the logits are.
 * GROUP           ids i32 [k, T]                                  i32 work block, rq_group_layout
 *     sorts the (token, slot) pairs of the real tokens by expert and cuts them into tiles. Reads STEP.
 * MATMUL_EXPERTS  w [n_in, n_out, E], x f32 [n_in, 1 or k, T], ids i32 [k, T], group |0   f32 [n_out, k, T]
 *     y[:,s,t] = w[:,:,ids[s,t]] x[:, s or 0, t]. Buckets up to 8 go through the (token, slot) pairs with the
 *     accumulation order of MATMUL and need no group; wider ones use the group block. Reads STEP.
 * COMBINE         y f32 [n, k, T], weights f32 [k, T]             f32 [n, T]
 *     sum over s = 0 .. k-1 in this order of weights[s,t] * y[:,s,t].
 * COPY            x f32 [n, T], persist [n, >= T] (written)       nothing
 *     persist[:,t] = x[:,t].
 * SELECT_ROWS     persist f32 [n, max_tokens]                     f32 [n, R]
 *     y[:,r] = persist[:, step.rows[r].token]; rows from n_rows on are zero or untouched. Reads STEP.
 * ARGMAX          logits f32 [V, R], sampled i32 [n_seqs] (written)   nothing
 *     sampled[step.rows[r].slot] = index of the largest logit, ties to the lower, NaN never wins (all NaN:
 *     0). Of rows with the same slot the last counts. Reads STEP.
 * The fused kinds are in tape/fuse.h. */
/* clang-format on */
#ifndef RQ_OPS_H
#define RQ_OPS_H

#include "backends/step.h"
#include "backends/tape/tape.h"

enum { RQ_OP_READS_STEP = 1, RQ_OP_READS_SAMPLED = 2 };

typedef struct rq_op_info {
    const char *name;       /* "matmul_experts" */
    uint8_t min_in, max_in; /* entries of in[] used, absent ones included */
    uint8_t min_out, max_out;
    uint16_t optional; /* bit i: in[i] may be 0 */
    uint16_t
        written; /* bit i: in[i] is written, and but for the cache of KV_ENCODE and for states not read */
    uint8_t flags;
} rq_op_info;

/* The row of a kind; a row named "none" for anything that is not one. Never NULL. */
const rq_op_info *rq_op_get(rq_op_kind kind);

/* ---- bytes touched
 * ----------------------------------------------------------------------------------------- */

#define RQ_NO_ARENA UINT64_MAX

/* ACT: bytes [begin, end) of the arena (planned) or of value `index`'s memory (not planned).
 * CACHE, STATE: all of layer `layer` of group `index`; layer RQ_SCRATCH_LAYER: the group's scratch pages, which
 * all layers use in turn (buckets above 8). PERSIST: bytes of `index`. STEP, WEIGHT: never written. */
#define RQ_SCRATCH_LAYER UINT32_MAX

typedef struct rq_range {
    rq_space space;
    uint32_t index, layer;
    uint64_t begin, end;
    bool write;
} rq_range;

enum { RQ_OP_MAX_RANGES = RQ_OP_MAX_IN + RQ_OP_MAX_OUT + 3 };

/* Writes what the operation reads and writes to out[RQ_OP_MAX_RANGES], returns how many. arena_offset as in
 * rq_segment, or NULL for a tape that is not planned. */
uint32_t rq_op_ranges(const rq_tape *tape, const rq_op *op, const uint64_t *arena_offset, rq_range *out);

/* Do two operations have to keep their order (one writes what the other touches)? */
bool rq_ranges_conflict(const rq_range *a, uint32_t n_a, const rq_range *b, uint32_t n_b);

/* Bytes from a value's first element to the end of its last one; of CACHE and STATE values 0. */
uint64_t rq_value_span(const rq_value *v);

/* ---- the work block of GROUP
 * ------------------------------------------------------------------------------- */

/* Rows of one tile of by-expert products. */
enum { RQ_GROUP_TILE = 16 };

/* An i32 block; the members are offsets in words from its start. Pair = token * k + slot.
 *   [0] number of pairs (n_tokens * k)   [1] number of tiles   [2] experts with at least one pair   [3] 0
 *   counts  [E]           pairs of each expert
 *   starts  [E + 1]       first place of each expert in `order`; starts[E] = number of pairs
 *   order   [T * k]       the pairs by expert ascending, inside an expert by pair ascending
 *   tiles   [max_tiles][3]  expert, first place in `order`, rows (1 .. RQ_GROUP_TILE); experts ascending */
typedef struct rq_group_layout {
    uint32_t counts, starts, order, tiles;
    uint32_t max_tiles;
    uint32_t words;
} rq_group_layout;

static inline rq_group_layout rq_group_layout_of(uint32_t n_expert, uint32_t n_used, uint32_t bucket)
{
    rq_group_layout l;
    uint32_t pairs = n_used * bucket;
    l.counts = 4;
    l.starts = l.counts + n_expert;
    l.order = l.starts + n_expert + 1;
    l.tiles = l.order + pairs;
    /* every expert with pairs may have one tile that is not full */
    l.max_tiles = pairs / RQ_GROUP_TILE + (n_expert < pairs ? n_expert : pairs);
    l.words = l.tiles + 3 * l.max_tiles;
    return l;
}

/* ---- tolerance
 * --------------------------------------------------------------------------------------------- */

/* Largest accepted normalised mean square error, sum (y - ref)^2 / sum ref^2, against the reference in
 * double, for test data without structure (independent, zero mean). `type`: of the weight or cache (Q8_0 for
 * attention that reads coded pages, whatever their form), F32 when there is none. An element may be off by at most 8 sqrt(tolerance) times the root mean square of ref: the
 * tail of a normal distribution over 2^40 elements. 0: bits must be equal. */
double rq_op_tolerance(rq_op_kind kind, rq_type type);
#define RQ_TOLERANCE_TAIL 8.0

/* Largest accepted error of the chunk form of DELTA_RULE (state.h), sqrt(sum (y - ref)^2 / sum ref^2) of all results of
 * a prompt of up to 32768 tokens, and likewise of the state behind it, against the token form: with products of F32, or
 * of F16 or BF16 on matrix units. What it does to the logits of a model: a Kullback-Leibler divergence of at most
 * RQ_DELTA_DIVERGENCE in the mean. */
double rq_delta_tolerance(rq_type products);
#define RQ_DELTA_DIVERGENCE 1e-4

/* ---- cost
 * -------------------------------------------------------------------------------------------------- */

typedef struct rq_op_cost {
    double flops;
    double bytes_read,
        bytes_written; /* of the operands, each once; weights of experts: those expected to be used */
} rq_op_cost;

/* Cost of the operation with T real tokens that each see `kv_len` positions of the cache. groups: by index,
 * or NULL when the tape has no cache operation. */
rq_op_cost rq_op_cost_of(const rq_tape *tape, const rq_op *op, const rq_cache_group *groups, uint32_t kv_len);

/* Type of the weight the operation is about (the largest), or of nothing: F32. */
rq_type rq_op_weight_type(const rq_tape *tape, const rq_op *op);

#endif
