/* preset.h - the shapes rqvk-synth knows. A new model of a known family is one row in preset.c; a new family
 * is one more branch in plan.c. */
#ifndef RQ_SYNTH_PRESET_H
#define RQ_SYNTH_PRESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum synth_family { SYNTH_LLAMA, SYNTH_QWEN2, SYNTH_QWEN3, SYNTH_QWEN3MOE } synth_family;

typedef struct synth_preset {
    const char *name, *about;
    synth_family family;
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx;
    float rope_base, norm_eps;
    bool tied;                           /* no output.weight: token_embd serves as the head */
    uint32_t n_expert, n_used, n_ff_exp; /* 0 unless a mixture of experts */
} synth_preset;

/* The table; *n rows. */
const synth_preset *synth_presets(size_t *n);
const synth_preset *synth_preset_find(const char *name); /* NULL when there is none */
const char *synth_arch(synth_family family);             /* general.architecture */

#endif
