/* families.c - the families this build runs: a row for each. */
#include "engine/models/model.h"

static const rq_family llama = {.arch = "llama",
                                .pairing = RQ_ROPE_NORM,
                                .full_rotary = true,
                                .dense = true,
                                .experts = true,
                                .ffn_norm = RQ_ROLE_FFN_NORM,
                                .build_trunk = rq_transformer_trunk,
                                .build_head = rq_block_head};
static const rq_family qwen2 = {.arch = "qwen2",
                                .pairing = RQ_ROPE_NEOX,
                                .dense = true,
                                .ffn_norm = RQ_ROLE_FFN_NORM,
                                .build_trunk = rq_transformer_trunk,
                                .build_head = rq_block_head};
static const rq_family qwen3 = {.arch = "qwen3",
                                .pairing = RQ_ROPE_NEOX,
                                .qk_norm = true,
                                .dense = true,
                                .ffn_norm = RQ_ROLE_FFN_NORM,
                                .build_trunk = rq_transformer_trunk,
                                .build_head = rq_block_head};
static const rq_family qwen3moe = {.arch = "qwen3moe",
                                   .pairing = RQ_ROPE_NEOX,
                                   .qk_norm = true,
                                   .experts = true,
                                   .ffn_norm = RQ_ROLE_FFN_NORM,
                                   .build_trunk = rq_transformer_trunk,
                                   .build_head = rq_block_head};
/* Text positions make the interleaved sections of its rotary embedding the plain one. */
static const rq_family qwen35 = {.arch = "qwen35",
                                 .pairing = RQ_ROPE_NEOX,
                                 .qk_norm = true,
                                 .dense = true,
                                 .hybrid = true,
                                 .gated = true,
                                 .tiled = true,
                                 .strict = true,
                                 .ffn_norm = RQ_ROLE_POST_ATTENTION_NORM,
                                 .build_trunk = rq_hybrid_trunk,
                                 .build_head = rq_block_head,
                                 .build_mtp = rq_hybrid_mtp};
static const rq_family qwen35moe = {.arch = "qwen35moe",
                                    .pairing = RQ_ROPE_NEOX,
                                    .qk_norm = true,
                                    .experts = true,
                                    .hybrid = true,
                                    .gated = true,
                                    .tiled = true,
                                    .shared = true,
                                    .strict = true,
                                    .ffn_norm = RQ_ROLE_POST_ATTENTION_NORM,
                                    .build_trunk = rq_hybrid_trunk,
                                    .build_head = rq_block_head,
                                    .build_mtp = rq_hybrid_mtp};

static const rq_family gemma3 = {.arch = "gemma3",
                                 .pairing = RQ_ROPE_NEOX,
                                 .qk_norm = true,
                                 .dense = true,
                                 .gemma = true,
                                 .strict = true,
                                 .act = RQ_ACT_GELU_TANH,
                                 .ffn_norm = RQ_ROLE_FFN_NORM,
                                 .build_trunk = rq_gemma_trunk,
                                 .build_head = rq_block_head};
static const rq_family gemma4 = {.arch = "gemma4",
                                 .pairing = RQ_ROPE_NEOX,
                                 .qk_norm = true,
                                 .dense = true,
                                 .experts = true,
                                 .gemma = true,
                                 .gemma4 = true,
                                 .strict = true,
                                 .act = RQ_ACT_GELU_TANH,
                                 .ffn_norm = RQ_ROLE_FFN_NORM,
                                 .build_trunk = rq_gemma_trunk,
                                 .build_head = rq_block_head};

const rq_family *const *rq_families(void)
{
    static const rq_family *const all[] = {&llama,     &qwen2,  &qwen3,  &qwen3moe, &qwen35,
                                           &qwen35moe, &gemma3, &gemma4, NULL};
    return all;
}
