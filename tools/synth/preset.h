/* preset.h - the shapes rqvk-synth knows. A new model of a known family is one row in preset.c; a new family
 * is one more branch in plan.c. */
#ifndef RQ_SYNTH_PRESET_H
#define RQ_SYNTH_PRESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum synth_family {
    SYNTH_LLAMA,
    SYNTH_QWEN2,
    SYNTH_QWEN3,
    SYNTH_QWEN3MOE,
    SYNTH_QWEN35, /* a mixture if it has experts */
    SYNTH_GEMMA4
} synth_family;

typedef struct synth_preset {
    const char *name, *about;
    synth_family family;
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx;
    float rope_base, norm_eps;
    bool tied;                           /* no output.weight: token_embd serves as the head */
    uint32_t n_expert, n_used, n_ff_exp; /* 0 unless a mixture of experts */
    uint32_t period;                     /* every so many-th layer attends to everything; 0: all */
    /* SYNTH_QWEN35: the other layers are recurrent */
    uint32_t n_key_heads, n_value_heads, state_dim, n_rot, n_ff_shared;
    uint32_t n_mtp; /* blocks behind the trunk, not counted in n_layer */
    /* SYNTH_GEMMA4: the other layers see a window; n_head_kv and head_dim are theirs, these of those that see all */
    uint32_t window, n_head_kv_full, head_dim_full;
} synth_preset;

/* The table; *n rows. */
const synth_preset *synth_presets(size_t *n);
const synth_preset *synth_preset_find(const char *name); /* NULL when there is none */
const char *synth_arch(const synth_preset *preset);      /* general.architecture */

/* Does this layer attend to everything before it? */
bool synth_layer_is_full(const synth_preset *preset, uint32_t layer);

#endif
