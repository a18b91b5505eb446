/* trial.h - one trial: a text with planted facts, a question about one of them, and the right answer. */
#ifndef RQ_NEEDLE_TRIAL_H
#define RQ_NEEDLE_TRIAL_H

#include "engine/rqvk.h"
#include "tools/needle/wordings.h"

/* Sentences of a text with the number of tokens each takes, a space in front. */
typedef struct rq_needle_haystack {
    char *text; /* white space folded; owned */
    struct rq_needle_sentence {
        const char *at;
        uint32_t bytes, n_tokens;
    } * sentences;
    size_t n, cap;
    uint32_t n_pad; /* tokens of " and", with which facts are moved to a position */
} rq_needle_haystack;

/* Cuts a text into its sentences of 21 to 299 bytes. Fails when there are fewer than 16. */
rq_status rq_needle_haystack_make(const rq_model *model, const char *text, size_t bytes,
                                  rq_needle_haystack *out, rq_error *err);
void rq_needle_haystack_free(rq_needle_haystack *haystack);

/* How a user's message becomes tokens: the model's chat format, or, where it has none, the bare text followed by a
 * line end. Two numbers, measured once. */
typedef struct rq_needle_form {
    bool chat;
    uint32_t n_before;   /* tokens before the content */
    uint32_t n_overhead; /* all tokens that are not content, the opening of the answer included */
} rq_needle_form;
rq_status rq_needle_form_of(const rq_model *model, rq_needle_form *out, rq_error *err);

typedef struct rq_needle_trial {
    rq_tokens prompt;
    char name[RQ_NEEDLE_NAME_BYTES], value[8];
    const char *thing;
    char answer[160];       /* the sentence expected */
    uint32_t fact_position; /* token where the fact asked for begins */
} rq_needle_trial;

enum { RQ_NEEDLE_ANSWER_TOKENS = 48, RQ_NEEDLE_SHORTEST = 96 };

/* The trial number `index` of a seed: about `length` tokens with the answer, never more; depth in 0 .. 1 is where the
 * fact asked for stands, one to four facts in all, each beginning at a token position p with p % 8 = 5, at which no
 * fact of the training began. Free its prompt with rq_tokens_free. */
rq_status rq_needle_trial_make(const rq_model *model, const rq_needle_haystack *haystack,
                               const rq_needle_form *form, uint64_t seed, uint64_t index, uint32_t length,
                               double depth, rq_needle_trial *out, rq_error *err);

typedef enum rq_needle_outcome {
    RQ_NEEDLE_NOT_RUN,
    RQ_NEEDLE_WRONG,
    RQ_NEEDLE_VALUE,   /* the answer holds exactly the value, not inside a longer number */
    RQ_NEEDLE_SENTENCE /* and it is the sentence expected, white space at its ends apart */
} rq_needle_outcome;
rq_needle_outcome rq_needle_judge(const rq_needle_trial *trial, const char *answer);

#endif
