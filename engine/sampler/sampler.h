/* sampler.h - from logits to a token.
 *
 * The chain, in this order (the one llama.cpp users expect):
 *
 *   logit bias -> penalties (repeat, then frequency and presence) -> top-k -> top-p -> min-p -> temperature
 *   -> draw
 *
 * Each filter works on the distribution that the one before it left, renormalised; temperature comes after the
 * filters and does not change what they keep. With temperature <= 0 the largest logit after bias and penalties
 * is taken and no random number is used. One number is drawn per token, none when a single candidate is left.
 * The result is a function of the logits, the settings, the seed and the number of draws so far. */
#ifndef RQ_SAMPLER_H
#define RQ_SAMPLER_H

#include "engine/rqvk.h"
#include "engine/sampler/rng.h"
#include "engine/sampler/select.h"

/* Work space for one thread, shared by all samplers it drives. */
typedef struct rq_sampler_scratch {
    uint32_t n_vocab;
    float *logits;           /* [n_vocab] */
    rq_cand *cands, *sorted; /* [n_vocab] each */
} rq_sampler_scratch;

rq_status rq_sampler_scratch_init(rq_sampler_scratch *scratch, uint32_t n_vocab, rq_error *err);
void rq_sampler_scratch_free(rq_sampler_scratch *scratch);

/* Settings and history of one generation. Zeroed: empty, ready for rq_sampler_start. */
typedef struct rq_sampler {
    rq_sampling settings; /* settings.bias points to `bias` */
    rq_logit_bias *bias;  /* repeated tokens are summed up by applying all */
    size_t cap_bias;
    uint32_t n_vocab;
    uint32_t *repeat_count;    /* [n_vocab], of the last repeat_last_n tokens; NULL until first needed */
    uint32_t *generated_count; /* [n_vocab], of the generated ones */
    bool repeat, counted;      /* which penalties are on */
    const rq_token *banned;    /* borrowed */
    size_t n_banned;
    rq_rng rng;
} rq_sampler;

/* RQ_ERR_ARGUMENT, naming the setting, unless every number makes sense. */
rq_status rq_sampling_check(const rq_sampling *settings, uint32_t n_vocab, rq_error *err);

/* Starts a generation after `history` (the prompt; only its end counts, for the repeat penalty). `banned` ids
 * are never chosen; the array must outlive the generation. Settings are checked and copied. On error the
 * sampler may be started again or freed, nothing else. */
rq_status rq_sampler_start(rq_sampler *s, const rq_sampling *settings, uint32_t n_vocab,
                           const rq_token *history, size_t n_history, const rq_token *banned, size_t n_banned,
                           rq_error *err);
void rq_sampler_free(rq_sampler *s);

/* Chooses from n_vocab logits. RQ_ERR_DEVICE when one of them is not a finite number, RQ_ERR_ARGUMENT when bias
 * and bans leave nothing to choose. No allocation. */
rq_status rq_sampler_choose(rq_sampler *s, rq_sampler_scratch *scratch, const float *logits, rq_token *token,
                            rq_error *err);

/* Tells the sampler that history[n_history - 1] was appended. */
void rq_sampler_accept(rq_sampler *s, const rq_token *history, size_t n_history);

/* Natural logarithms of the softmax of the raw logits, computed in double: of `token` and of the n_top most
 * likely ones, in descending order (ties by id). The logits must be finite; n_top <= RQ_MAX_LOGPROBS, and fewer
 * come back when the vocabulary is smaller. Returns how many. */
uint32_t rq_logprobs(const float *logits, uint32_t n_vocab, rq_token token, uint32_t n_top,
                     rq_token_logprob *chosen, rq_token_logprob *top);

#endif
