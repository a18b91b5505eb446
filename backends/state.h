/* state.h - the recurrent state of sequences as every backend sees it (DESIGN section 5).
 *
 * Recurrent layers with equal shapes form a state group. A group owns one memory of slots, a slot for each sequence;
 * a slot holds, layer after layer, everything the layer remembers: the last inputs of its short convolution and the
 * matrices of its delta rule, all f32. The state of a sequence is the bytes of its slot, so that keeping and
 * restoring it is a copy. A run that starts at position 0 begins with zeros, whatever the slot holds. */
#ifndef RQ_STATE_H
#define RQ_STATE_H

#include <stdint.h>

enum { RQ_MAX_STATE_GROUPS = 4, RQ_MAX_CONV_TAPS = 8 };

typedef struct rq_state_group {
    uint32_t n_layers;
    uint32_t conv_channels, conv_taps; /* conv_taps - 1 inputs of every channel are kept */
    uint32_t n_heads, dim_k, dim_v;    /* a matrix [dim_v, dim_k] (contiguous first) for each head */
} rq_state_group;

/* Bytes from a slot's start; every part is 64-byte aligned. */
typedef struct rq_state_layout {
    uint64_t tail_bytes;   /* f32 [conv_channels, conv_taps - 1], oldest first */
    uint64_t matrix_bytes; /* of one head: f32 [dim_v, dim_k], a row for each element of the key */
    uint64_t layer_bytes;  /* tail, then the heads' matrices */
    uint64_t slot_bytes;   /* n_layers * layer_bytes */
} rq_state_layout;

static inline rq_state_layout rq_state_layout_of(const rq_state_group *g)
{
    rq_state_layout l;
    l.tail_bytes = (4ull * g->conv_channels * (g->conv_taps - 1) + 63) & ~63ull;
    l.matrix_bytes = (4ull * g->dim_k * g->dim_v + 63) & ~63ull;
    l.layer_bytes = l.tail_bytes + g->n_heads * l.matrix_bytes;
    l.slot_bytes = g->n_layers * l.layer_bytes;
    return l;
}

#endif
