/* mixture.h - which type each matrix of a model gets, as llama.cpp's quantiser chooses it. */
#ifndef RQ_SYNTH_MIXTURE_H
#define RQ_SYNTH_MIXTURE_H

#include "backends/formats/types.h"

typedef struct synth_mixture {
    const char *name;
    rq_type base;
    uint32_t file_type; /* general.file_type */
    bool pure;          /* every matrix is of the base type */
} synth_mixture;

typedef enum synth_role {
    SYNTH_ROLE_OUTPUT, /* also a tied embedding */
    SYNTH_ROLE_EMBEDDING,
    SYNTH_ROLE_Q,
    SYNTH_ROLE_K,
    SYNTH_ROLE_V,
    SYNTH_ROLE_ATTN_OUTPUT,
    SYNTH_ROLE_GATE_UP,
    SYNTH_ROLE_DOWN,
    SYNTH_ROLE_QKV,  /* queries, keys and values in one */
    SYNTH_ROLE_OTHER /* nothing special about it: the base type */
} synth_role;

typedef struct synth_site {
    synth_role role;
    uint32_t layer,
        n_layer; /* of SYNTH_ROLE_V and SYNTH_ROLE_QKV, counted together: which one, of how many */
    uint32_t n_head, n_head_kv, n_expert;
    uint64_t row; /* elements of a row: the type must have whole blocks in it */
} synth_site;

/* A mixture ("q4_k_m") or a type ("q4_k", "iq2_s"), in any case; with `pure` a name that is both (iq4_xs)
 * means the type. False when the name is neither, or the type cannot be made. */
bool synth_mixture_find(const char *name, bool pure, synth_mixture *out);

/* The names of the mixtures, NULL-terminated, for --help. */
const char *const *synth_mixture_names(void);

rq_type synth_mixture_type(const synth_mixture *mixture, const synth_site *site);

#endif
