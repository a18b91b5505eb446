/* synth.h - small random transformers for the tests of the ground floor. */
#ifndef TEST_SYNTH_H
#define TEST_SYNTH_H

#include "backends/exec/exec.h"

#include <stdbool.h>
#include <stdint.h>

/* xorshift64*; deterministic everywhere. */
typedef struct synth_rng {
    uint64_t state;
} synth_rng;
uint32_t synth_u32(synth_rng *rng);
uint32_t synth_below(synth_rng *rng, uint32_t n);
/* About normal, mean 0, variance 1. */
float synth_normal(synth_rng *rng);

typedef struct synth_config {
    uint32_t n_layers, n_embd, n_head, n_head_kv, dim, n_ff, n_vocab;
    uint32_t n_expert, n_used; /* n_expert 0: dense */
    bool qk_norm, bias;
    uint32_t window; /* of the odd layers; 0: none, one group */
    rq_type type;    /* of matrices */
    rq_type cache_type;
    rq_kv_form form_k, form_v; /* of coded pages; both SAME: none, and nothing is rotated */
    uint32_t sink_pages, recent_pages;
    float softcap;
    uint32_t split_layer; /* layers from here on run on device 1; UINT32_MAX: all on 0 */
} synth_config;

enum { SYNTH_MAX_WEIGHTS = 256 };

typedef struct synth_model {
    synth_config c;
    rq_weight weights[SYNTH_MAX_WEIGHTS];
    uint32_t n_weights;
    rq_cache_group groups[2];
    uint32_t n_groups;
    uint32_t group_pages[2], group_device[2], group_coded_pages[2], group_scratch_pages[2];
} synth_model;

extern const synth_config synth_llama, synth_qwen2, synth_qwen3, synth_moe, synth_windows, synth_coded;

void synth_make(synth_model *m, const synth_config *c, uint64_t seed);
void synth_free(synth_model *m);
/* The callbacks of an executor; user is the model. */
void synth_build(void *user, rq_tape_kind kind, rq_tape *tape);
uint32_t synth_place(void *user, uint32_t layer);

/* Parameters of an executor for this model on these devices, with room for n_seqs sequences of max_pages
 * pages (of each form), and for scratch pages of a step. */
rq_executor_params synth_params(synth_model *m, rq_device *const *devices, uint32_t n_devices,
                                uint32_t max_tokens, uint32_t n_seqs, uint32_t max_pages);

#endif
