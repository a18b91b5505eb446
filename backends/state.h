/* state.h - the recurrent state of sequences as every backend sees it (DESIGN section 5).
 *
 * Recurrent layers with equal shapes form a state group. A group owns one memory of slots, a slot for each sequence;
 * a slot holds, layer after layer, everything the layer remembers: the last inputs of its short convolution and the
 * matrices of its delta rule, all f32. The state of a sequence is the first state_bytes of its slot, so that keeping
 * and restoring it is a copy.
 *
 * Behind the state of a model that drafts lies what the sequence's last draft check left pending (rq_run.n_pending):
 * the inputs of the recurrence for its tokens, until the next run says how many of them were accepted. Where an input
 * lies follows from its position alone. An input that only the thread of its channel or column touches has n_pending
 * places, because the thread applies the old ones before it keeps the new ones; an input that several threads read has
 * twice as many, so that the tokens of a check (positions s .. s + n - 1) never lie where those before it do that are
 * still being applied (s - m .. s - 1, m <= n_pending). */
#ifndef RQ_STATE_H
#define RQ_STATE_H

#include <stdbool.h>
#include <stdint.h>

enum { RQ_MAX_STATE_GROUPS = 4, RQ_MAX_CONV_TAPS = 8 };

/* How prompts go through delta rules (tokens that are generated and draft checks always go one by one).
 *
 * The chunk form computes the same recurrence a few tokens at a time, as products of small matrices (Yang, Kautz &
 * Hatamizadeh 2024, section 3.3): to rounding the same, and another rounding for every way of cutting a prompt into
 * steps. A run takes it where rq_delta_in_chunks says so of its program, it has at least RQ_DELTA_LONG tokens and it is
 * no draft check; accepted tokens of a check in front of it are applied one by one as ever. Chunks are counted from the
 * run's first token; how long they are is the backend's affair. How exact it must be: rq_delta_tolerance. */
typedef enum rq_delta_form {
    RQ_DELTA_AUTO, /* cards: in chunks, processors: token by token, with the same bits however a prompt is cut */
    RQ_DELTA_TOKENS, /* what the chunk form is compared with */
    RQ_DELTA_CHUNKS
} rq_delta_form;

enum {
    RQ_DELTA_WIDE = 64, /* narrowest bucket of a card whose prompts go in chunks, unless they are asked for */
    RQ_DELTA_LONG = 16  /* fewest tokens of a run that goes in chunks; more than RQ_NARROW_BUCKET */
};

/* Do long runs of programs of this bucket go in chunks? Never in buckets up to 8 (DESIGN 2.3). */
static inline bool rq_delta_in_chunks(rq_delta_form form, bool card, uint32_t bucket)
{
    if (form == RQ_DELTA_CHUNKS) return bucket >= RQ_DELTA_LONG;
    return form == RQ_DELTA_AUTO && card && bucket >= RQ_DELTA_WIDE;
}

typedef struct rq_state_group {
    uint32_t n_layers;
    uint32_t conv_channels, conv_taps; /* conv_taps - 1 inputs of every channel are kept */
    uint32_t n_heads, dim_k, dim_v;    /* a matrix [dim_v, dim_k] (contiguous first) for each head */
    uint32_t n_key_heads; /* that share keys; 0: as many as n_heads. Sizes the pending area only */
    uint32_t n_pending; /* most tokens of a draft check, up to RQ_MAX_PENDING; 0: the model does not draft */
} rq_state_group;

/* Bytes from a slot's start; every part is 64-byte aligned. */
typedef struct rq_state_layout {
    uint64_t tail_bytes;   /* f32 [conv_channels, conv_taps - 1], oldest first */
    uint64_t matrix_bytes; /* of one head: f32 [dim_v, dim_k], a row for each element of the key */
    uint64_t layer_bytes;  /* tail, then the heads' matrices */
    uint64_t state_bytes;  /* n_layers * layer_bytes */
    /* The pending area of layer l starts at state_bytes + l * pending_bytes; bytes from there, all f32. Position p is
     * row p % n_pending of x and v, row p % (2 n_pending) of k and gates. */
    uint64_t pending_x;     /* always 0: [conv_channels, n_pending], rows of SHORT_CONV's x */
    uint64_t pending_v;     /* [dim_v, n_heads, n_pending] */
    uint64_t pending_k;     /* [dim_k, n_key_heads, 2 n_pending] */
    uint64_t pending_gates; /* [2, n_heads, 2 n_pending]: the factor of decay, the share that is written */
    uint64_t pending_bytes; /* of a layer, 0 where nothing drafts */
    uint64_t slot_bytes;    /* n_layers * (layer_bytes + pending_bytes) */
} rq_state_layout;

/* Heads of a row of pending keys. */
static inline uint32_t rq_state_key_heads(const rq_state_group *g)
{
    return g->n_key_heads ? g->n_key_heads : g->n_heads;
}

static inline rq_state_layout rq_state_layout_of(const rq_state_group *g)
{
    rq_state_layout l;
    uint64_t n = g->n_pending, key_heads = rq_state_key_heads(g);
    l.tail_bytes = (4ull * g->conv_channels * (g->conv_taps - 1) + 63) & ~63ull;
    l.matrix_bytes = (4ull * g->dim_k * g->dim_v + 63) & ~63ull;
    l.layer_bytes = l.tail_bytes + g->n_heads * l.matrix_bytes;
    l.state_bytes = g->n_layers * l.layer_bytes;
    l.pending_x = 0;
    l.pending_v = (4 * n * g->conv_channels + 63) & ~63ull;
    l.pending_k = l.pending_v + ((4 * n * g->dim_v * g->n_heads + 63) & ~63ull);
    l.pending_gates = l.pending_k + ((8 * n * g->dim_k * key_heads + 63) & ~63ull);
    l.pending_bytes = l.pending_gates + ((16 * n * g->n_heads + 63) & ~63ull);
    l.slot_bytes = l.state_bytes + g->n_layers * l.pending_bytes;
    return l;
}

#endif
