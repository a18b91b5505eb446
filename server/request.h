/* request.h - from the bytes of a request body to a typed request, or a sentence naming the parameter that is
 * wrong. A pure function: no clock, no engine, no globals; the fuzzer's target. */
#ifndef RQ_REQUEST_H
#define RQ_REQUEST_H

#include "engine/rqvk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum rq_api {
    RQ_API_CHAT,       /* /v1/chat/completions */
    RQ_API_COMPLETION, /* /v1/completions */
    RQ_API_TOKENIZE,
    RQ_API_DETOKENIZE,
    RQ_API_TEMPLATE /* /apply-template */
} rq_api;

enum { RQ_MAX_N = 8, RQ_MAX_PROMPTS = 32, RQ_MAX_CHOICES = 64, RQ_MAX_MESSAGES = 4096 };

typedef struct rq_parse_limits {
    size_t max_values;    /* JSON values in a body */
    uint32_t n_vocab;     /* token ids must be below */
    rq_sampling sampling; /* what a request that says nothing gets */
    uint32_t max_tokens;  /* the same; 0: until the context is full */
    bool keep_thoughts;   /* the same: thoughts are not set apart */
} rq_parse_limits;

/* What a client is told. `type` is one of OpenAI's, or "exceed_context_size_error". */
typedef struct rq_api_error {
    int http_status;
    const char *type;
    const char *code; /* NULL: null */
    char param[64];   /* "": null */
    rq_error error;
    uint32_t n_prompt_tokens, n_ctx; /* exceed_context_size_error only */
} rq_api_error;

/* Fills `out` and returns false, so that a failure is one line. `param` may be NULL. */
bool rq_api_fail(rq_api_error *out, int http_status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

typedef struct rq_prompt {
    const char *text; /* NULL: `ids` are given */
    size_t bytes;
    rq_token *ids;
    size_t n_ids;
} rq_prompt;

struct cJSON;
typedef struct rq_api_request {
    rq_api api;
    struct cJSON *root; /* owns the strings below */
    rq_message *messages;
    size_t n_messages;
    rq_opening opening; /* of the answer: with thoughts, without, or as the template does */
    bool keep_thoughts; /* they stay in the content, as the model writes them, instead of being set apart */
    rq_prompt *prompts; /* also: `content` of /tokenize and `tokens` of /detokenize, one prompt each */
    size_t n_prompts;
    rq_request generation; /* stop and sampling.bias point to the two arrays below */
    const char **stops;
    rq_logit_bias *biases;
    int64_t seed; /* -1: choose one */
    uint32_t n;
    bool stream, include_usage, echo, cache_prompt;
    bool add_special, parse_special, with_pieces; /* /tokenize */
    char **joined;                                /* texts put together from parts */
    size_t n_joined;
    /* while parsing only */
    int32_t want_max_tokens, want_max_completion_tokens, want_n_predict, want_top_logprobs;
    bool want_logprobs;
} rq_api_request;

/* Returns true and fills `out` (to be released with rq_api_request_free), or returns false with `error`
 * filled and `out` zeroed. */
bool rq_api_parse(rq_api api, const char *body, size_t bytes, const rq_parse_limits *limits,
                  rq_api_request *out, rq_api_error *error);
void rq_api_request_free(rq_api_request *request);

/* Makes the JSON library allocate through rq_malloc. Once, before the first rq_api_parse. */
void rq_json_use_rq_memory(void);

#endif
